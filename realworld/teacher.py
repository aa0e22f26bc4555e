"""An oracle: it answers the method files' own prompts from the data's annotations, as no real teacher can.

The skill of a problem is its annotated kind, and a wrong answer lacks that skill. A rewrite is the formula
worked out, in one of many wordings; which, follows from the request's text and `seed` alone.
"""
import random
from pathlib import Path

import common
from realworld.data import write
from toyworld.teacher import section


def make_reply(made: Path):
    """reply(prompt, seed) for the problems in a folder's train.jsonl and test.jsonl."""
    rows = [row for split in ("train", "test") for _, row in common.read_rows(made / f"{split}.jsonl")]
    known = {row["problem"].strip(): row for row in rows}

    def reply(prompt: str, seed: int) -> str:
        row, response = known.get(section(prompt, "problem")), section(prompt, "response")
        if row is None:
            return "I do not know this problem."
        skill = f"<skill>{row['skill']}</skill>"
        if section(prompt, "solution") is not None:
            return write(row["steps"], row["answer"], random.Random(f"{seed} {prompt}"))
        if response is None:
            return f"<reason>It is annotated so.</reason>\n{skill}"
        if common.score(response, row["answer"], row["problem"]):
            return "<judge>correct</judge>\n<reason>It has the answer.</reason>\n<skill>none</skill>"
        return f"<judge>incorrect</judge>\n<reason>It has another answer.</reason>\n{skill}"
    return reply
