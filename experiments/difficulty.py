"""Which criterion of difficulty finds the wrong answers of a run of stat_sel.py? As in Table 11.

Paper   He, Panigrahi, Lin, Arora, "Skill-Targeted Adaptive Training", arXiv 2510.10023v1, §E.1
Needs   a run whose step 2 is finished; its flags, data and models stand in its args.json
Asks    five answers to each question of Q_val at T = 1, of the student as the run began with it
Against whether the answer that step 2 graded is wrong:
        prm          Eq. 1, from the step rewards of step 2; left out where the run has none
        consistency  the most common of the five answers appears fewer than two times
        length       the five answers have --length-words words on average, or more. It mostly finds answers
                     that never end: 99 % of MATH's solutions have fewer than 360 words
Resume  The same command goes on after a kill; another --length-words asks for no answer again.
Run     python experiments/difficulty.py runs/stat_sel
        python experiments/difficulty.py runs/toy_stat_sel/seed-0 --length-words 12
Writes  difficulty_samples.jsonl and difficulty.jsonl in the run's directory
"""
import dataclasses
import sys
from collections import Counter
from pathlib import Path

from tyro.conf import Positional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common  # noqa: E402
import stat_sel  # noqa: E402
from common import UserError  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Args:
    run: Positional[str]  # run directory of stat_sel.py
    length_words: int = 800  # difficult by length from so many words on (§E.1)
    sample_batch: int = 32  # answers generated at once: lower it if memory is short


def is_inconsistent(answers: list[str | None]) -> bool:
    """Whether the most common of a question's final answers appears fewer than two times (§E.1).

    None (no answer found) agrees with nothing.
    >>> is_inconsistent(["1", "2", "3", None, None]), is_inconsistent(["1", "2", "1.0", "3", "4"])
    (True, False)
    """
    found = [answer for answer in answers if answer is not None]
    return not any(common.is_equiv(a, b) for i, a in enumerate(found) for b in found[:i])


def counted(rows: list[dict], says) -> list[int]:
    """Difficult and wrong; difficult and right; the other two. says(row) None: left out."""
    n = Counter((found, row["is_right"] is not True) for row in rows if (found := says(row)) is not None)
    return [n[True, True], n[True, False], n[False, True], n[False, False]]


def agreement(hits: int, false_alarms: int, misses: int, rejections: int) -> dict[str, float | None]:
    """How well a criterion finds the wrong answers, in %; None where the denominator is zero (Tables 8, 11).

    >>> agreement(6, 2, 0, 2)
    {'accuracy': 80.0, 'precision': 75.0, 'recall': 100.0, 'F1': 85.71428571428571}
    """
    parts = {"accuracy": (hits + rejections, hits + false_alarms + misses + rejections),
             "precision": (hits, hits + false_alarms), "recall": (hits, hits + misses),
             "F1": (2 * hits, 2 * hits + false_alarms + misses)}
    return {name: 100 * k / n if n else None for name, (k, n) in parts.items()}


def open_finished(path: str, method=stat_sel) -> tuple:
    """A run of a STAT file after its step 2, kept for this process alone, its arguments and its questions."""
    folder = Path(path)
    for name in ("args.json", "0_questions.jsonl", "2_graded.jsonl"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: expected a run of {method.__name__}.py with its step 2 finished, "
                            f"found no {name}; finish it, or give another")
    known, given = {field.name for field in dataclasses.fields(method.Args)}, {}
    for name, value in common.read_json(folder / "args.json").items():
        if name in known:
            given[name] = tuple(value) if isinstance(value, list) else value
    if not isinstance(given.get("lr"), tuple):
        raise UserError(f"{folder}: an older {method.__name__}.py made this run; make it anew")
    args = method.Args(**given | {"out": path})
    questions = method.load_questions(args)
    try:
        run = common.Run(folder, common.lock(folder / ".lock", timeout_s=0))
    except TimeoutError:
        raise UserError(f"{folder}: another process runs in this directory; wait for its end") from None
    parts = {f"test {name}": rows for name, rows in questions.sets.items()}
    common.check_questions(run, {"P": questions.pool, "Q_val": questions.val} | parts)
    return run, args, questions


def main(args: Args) -> None:
    common.check_args(args)
    run, made_with, questions = open_finished(args.run)
    common.check_checkpoint(made_with.student, "--student")
    common.check_checkpoint(made_with.adapter, "--adapter")
    how = dataclasses.replace(made_with, sample_batch=args.sample_batch)
    load = stat_sel.loader(how, how.adapter)
    # ours: at T = 1, because at 0.1 five samples nearly always agree
    found = common.answer(
        how, run, "difficulty_samples.jsonl", load, questions.val, stat_sel.question, temperature=1.0, n=5)

    rows = []
    for row in run.read("2_graded.jsonl"):
        if row["part"] == "Q_val":
            texts, rewards = [one["response"] for one in found[row["id"]]], row["rewards"]
            words = sum(len(text.split()) for text in texts) / len(texts)
            by = {"prm": stat_sel.is_difficult(rewards, how.tau1, how.tau2) if rewards else None,
                  "consistency": is_inconsistent([common.extract_answer(text) for text in texts]),
                  "length": words >= args.length_words}
            rows.append({"id": row["id"], "is_right": row["is_right"], "rewards": rewards, "words": words,
                         "difficult_by": by})
    run.write("difficulty.jsonl", rows)
    if not any(row["rewards"] for row in rows):
        print("prm is left out: the run has no step rewards (--difficulty answer)")
    criteria = ("prm", "consistency", "length")
    counts = {name: counted(rows, lambda row, name=name: row["difficult_by"][name]) for name in criteria}
    print(f"\n{'difficult against wrong, %':<28}{'accuracy':>10}{'precision':>10}{'recall':>10}{'F1':>10}")
    for name, n in counts.items():
        if not any(n):  # no row was graded by it
            continue
        cells = ["-" if share is None else f"{share:.1f}" for share in agreement(*n).values()]
        print(f"{f'{name}, {sum(n)} answers':<28}" + "".join(f"{cell:>10}" for cell in cells))
    print(f"{run.path}/difficulty.jsonl")


if __name__ == "__main__":
    common.cli(main, Args, __doc__)
