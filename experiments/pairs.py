"""Train a student on given question-answer pairs and test it as stat_sel.py does: no teacher, no drawing.

Reads   rows of JSON, .csv, .parquet or .gz with messages [{"role", "content"}, ...]; conversations
        [{"from", "value"}, ...]; instruction, input, output; prompt, completion; problem, solution; question,
        answer; ... "system" is the first turn, "history" holds earlier ones. Only the last answer is learned.
Leaves  pairs without a question or an answer, and those whose question holds one that is tested on.
System  turns that the student's template refuses or drops are put before the question.
Tested  are the student as it is (base) and the trained one (pairs), as by stat_sel.py, whose flags count.
Run     python experiments/pairs.py --pairs FILE --student Qwen/Qwen2.5-3B --ood gsm8k --out runs/given
Writes  runs/pairs/ as stat_sel.py does, with train_pairs.jsonl and adapter/pairs/
"""
import contextlib
import itertools
import sys
from dataclasses import dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common  # noqa: E402
import stat_sel  # noqa: E402
from common import UserError  # noqa: E402

ROLES = {"human": "user", "gpt": "assistant", "model": "assistant"}
FIELDS = [form.split() for form in (
    "instruction output", "prompt completion", "problem solution", "question answer", "instruction response",
    "prompt response", "query response")]
FORMS = "messages, conversations, or " + ", ".join(map(" and ".join, FIELDS))
UNUSED = ("val skills skill_map arms until teacher teacher_url teacher_max_tokens teacher_timeout plan "
          "teacher_max_none cache concurrency usd_per_m_in usd_per_m_out max_usd max_difficult n_heldout "
          "questions_per_skill embedder trust_remote_code n_rewrites n_pairs").split()


@dataclass(frozen=True, kw_only=True)
class Args(stat_sel.Args):
    pairs: str  # file of pairs, in a form that the head of this file names
    out: str = "runs/pairs"  # run directory; the same command goes on where it stopped


def turn(message) -> dict:
    """{"role", "content"} of a turn in either chat form."""
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    role = ROLES.get(role, role)
    if role not in ("system", "user", "assistant") or not isinstance(content, str | None):
        raise ValueError(f"a turn of {role!r} with {type(content).__name__}")
    return {"role": role, "content": content or ""}


def chat(role: str, content) -> list[dict]:
    """The turns of a field: TRL's prompt and completion may be chats themselves."""
    return content if isinstance(content, list) else [{"role": role, "content": content}]


def read_pair(row: dict) -> list[dict]:
    """The turns of a row, the answer last; ValueError or the like if it has none of the forms."""
    turns = row.get("messages") or row.get("conversations")
    form = next((form for form in FIELDS if row.get(form[0]) is not None and form[1] in row), None)
    if not turns and form:
        turns = []
        for question, answer in row.get("history") or []:
            turns += chat("user", question) + chat("assistant", answer)
        asked = row[form[0]]
        if row.get("input"):  # Alpaca: what the instruction is about
            asked = f"{asked}\n\n{row['input']}"
        turns += chat("user", asked) + chat("assistant", row[form[1]])
    turns = [turn(message) for message in turns or []]
    if row.get("system") and turns[0]["role"] != "system":
        turns.insert(0, turn({"role": "system", "content": row["system"]}))
    if [message["role"] for message in turns[-2:]] != ["user", "assistant"]:
        raise ValueError("the last turns are no question and its answer")
    return turns


def read_pairs(path: str) -> list[dict]:
    """Rows {"id", "messages"} of a file, without those that lack a question or an answer."""
    pairs, rows = [], common.read_rows(path)
    for where, row in rows:
        try:
            turns = read_pair(row)
        except (ValueError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"--pairs {where}: expected {FORMS}, came {str(row):.80} ({error})") from None
        if all(message["content"].strip() for message in turns[-2:]):
            pairs.append({"id": row.get("id"), "messages": turns})
    if len(pairs) < len(rows):
        print(f"{len(rows) - len(pairs)} of {len(rows)} pairs left out: no question or no answer")
    if not pairs:
        raise UserError(f"--pairs {path}: expected at least one pair with an answer, came none")
    return pairs


def untested(pairs: list[dict], tests: list[dict]) -> list[dict]:
    """The pairs of which no user's turn holds a test problem."""
    asked = []
    for pair in pairs:
        users = [message["content"] for message in pair["messages"] if message["role"] == "user"]
        asked.append("\n".join(map(common.plain, users)))
    everything = "\n".join(asked)
    tested = [text for text in {common.plain(row["problem"]) for row in tests} if text in everything]
    left = [pair for pair, text in zip(pairs, asked, strict=True) if not any(one in text for one in tested)]
    print(f"{len(pairs)} pairs, {len(pairs) - len(left)} of them left out: they hold a question tested on")
    if not left:
        raise UserError("--pairs: every pair holds a question that is tested on; check --data and the file")
    return left


def fit_template(pairs: list[dict], student: str, template_kwargs: str | None = None) -> list[dict]:
    """The pairs as the student's template can show them."""
    from transformers import AutoTokenizer
    with common.loading("--student", student):
        tokenizer = AutoTokenizer.from_pretrained(student)
        if tokenizer.chat_template is None:
            raise UserError("its tokenizer has no chat template; use an instruction-tuned model, or add one")
    tokenizer.chat_template = common.template_head(template_kwargs) + tokenizer.get_chat_template()
    takes_system, out = False, []
    with contextlib.suppress(UserError):
        probe = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+3?"}]
        takes_system = "Be brief." in common.apply_template(tokenizer, probe)
    for n, pair in enumerate(pairs, 1):
        first, *rest = pair["messages"]
        if first["role"] == "system" and not takes_system:
            rest[0] = rest[0] | {"content": f"{first['content']}\n\n{rest[0]['content']}"}
            pair = pair | {"messages": rest}
        try:
            common.apply_template(tokenizer, pair["messages"][:-1], add_generation_prompt=True)
        except UserError as error:
            raise UserError(f"--pairs: pair {n} of those left can't be asked: {error}; take it out") from None
        out.append(pair)
    n_moved = sum(pair != old for pair, old in zip(out, pairs, strict=True))
    print(f"{n_moved} system turns put before the question, since the template takes none")
    return out


def main(args: Args) -> None:
    for field in fields(args):
        if field.name in UNUSED and getattr(args, field.name) != field.default:
            raise UserError(f"--{field.name.replace('_', '-')}: nothing here uses it; leave it out")
    stat_sel.check_flags(args, needs_prm=args.difficulty == "prm")
    if len(args.lr) > 1:
        raise UserError("--lr: expected one number, since the given pairs may hold a question that is "
                        "held out to choose; give one")
    given = read_pairs(args.pairs)
    questions = stat_sel.load_questions(args)
    given = untested(given, [row for rows in questions.sets.values() for row in rows])
    given = fit_template(given, args.student, args.chat_template_kwargs)
    ending = stat_sel.question("")[0]["content"].strip()
    lacking = sum(ending not in pair["messages"][-2]["content"] for pair in given)
    print(f"{lacking} of {len(given)} questions lack the sentence that the test questions end with")

    run = common.open_run(args, args.out, stat_sel.MAY_CHANGE)
    parts = {f"test {name}": rows for name, rows in questions.sets.items()}
    common.check_questions(run, {"pairs": given} | parts)
    graded = stat_sel.grade(args, run, [], questions.sets["MATH"])
    run.step("train_pairs.jsonl", lambda: given)
    stat_sel.train_arm(args, run, [], "pairs")
    tested = {arm: stat_sel.test(args, run, questions, arm) for arm in ("base", "pairs")}
    stat_sel.show(tested, {row["id"] for row in graded if row["difficult"]})
    arms = {"base": {}, "pairs": {}}
    for arm, name in itertools.product(arms, questions.sets):
        is_right = [bool(row["is_right"]) for row in tested[arm] if row["set"] == name]
        arms[arm][name] = [sum(is_right), len(is_right)]  # right of answers
    run.write("result.json", {"method": "pairs", "arms": arms})
    print(f"{run.path}/result.json")


if __name__ == "__main__":
    common.cli(main, Args, __doc__)
