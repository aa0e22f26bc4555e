"""Train a student on given question-answer pairs and test it as stat_sel.py does: no teacher, no drawing.

Reads   a JSON list or JSON lines, whatever the file's ending (also .csv, .parquet, .gz), of rows with
        messages       [{"role", "content"}, ...], or conversations, [{"from", "value"}, ...]
        instruction, input and output; prompt and completion; problem and solution; question and answer; ...
        A field "system" is the first turn, "history" holds earlier ones. Only the last answer is learned.
Leaves  pairs without a question or an answer, and those whose question holds one that is tested on; says how many.
System  turns that the student's template refuses or drops are put before the question, since the pairs teach both.
Tested  are the student as it is (base) and the trained one (pairs), on the questions of the test split that a run
        of stat_sel.py would test on, on MATH^D, those of them that are difficult for the base, and on --ood.
Run     python experiments/pairs.py --pairs FILE --student Qwen/Qwen2.5-3B --ood gsm8k --out runs/given
Writes  runs/pairs/  args.json env.json 0_fingerprint.json 1_answers.jsonl (1_samples.jsonl 2_rewards.jsonl)
        2_graded.jsonl train_pairs.jsonl loss_pairs.jsonl adapter/pairs/ 7_answers_<arm>_<set>.jsonl
        7_test_<arm>.jsonl metrics.jsonl result.json
"""
import dataclasses
import functools
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common  # noqa: E402
import stat_sel  # noqa: E402
from common import UserError  # noqa: E402

HOW = ("micro_batch", "sample_batch", "prm_batch", "checkpointing")
ROLES = {"human": "user", "gpt": "assistant", "model": "assistant"}
FIELDS = (("instruction", "output"), ("prompt", "completion"), ("problem", "solution"), ("question", "answer"),
          ("instruction", "response"), ("prompt", "response"), ("query", "response"))
FORMS = "messages, conversations, or " + ", ".join(f"{question} and {answer}" for question, answer in FIELDS)


@dataclass(frozen=True)
class Args:
    pairs: str  # file of pairs, in any of the forms that the head of this file names
    student: str = "Qwen/Qwen2.5-3B"  # model to improve: Hub name or folder (§3.1)
    adapter: str | None = None  # LoRA adapter of an earlier run to start from, such as runs/stat_sel/adapter/stat; its own LoRA settings count (§3.3)
    data: str = "math"  # "math", or a folder with train.jsonl (P) and test.jsonl (split into Q_val and Q_test)
    ood: tuple[str, ...] = ()  # other sets to test on: gsm8k math500 amc23 aime24 aime25 math_perturb_simple math_perturb_hard, .jsonl files (§3.1)
    samples: int = 64  # answers to each question of another set with fewer than 100, at T = 1 (§3.1: AMC23, AIME)
    out: str = "runs/pairs"  # run directory; the same command goes on where it stopped
    seed: int = 0  # moves everything that is drawn (paper: 0, §C.1)
    limit: int | None = None  # take only so many questions of Q_val, of P and of each test set: a quick look
    n_val: int = 1000  # size of Q_val; the rest of the test split is Q_test (§3.1)
    difficulty: Literal["prm", "consistency", "length", "answer"] = "prm"  # Eq. 1 (§2.1); five samples disagree, or are long (§E.1); wrong (ours)
    prm: str = "RLHFlow/Llama3.1-8B-PRM-Mistral-Data"  # process reward model that marks each step with + or - (§C.1)
    tau1: float = 0.85  # difficult if the last or the mean step reward is no higher (Eq. 1, §C.1)
    tau2: float = 0.7  # or that of an earlier step (Eq. 1, §C.1)
    length_words: int = 800  # difficult by length if five samples have as many words in the mean (§E.1)
    temperature: float = 0.1  # of the student's answers (§3.1); at 0 the two draws of MATH^D are one
    max_new_tokens: int = 2048  # length limit of an answer (ours: because MATH's longest solution has 6,767 characters)

    lr: float = 1e-4  # peak (ours: the middle one, untuned); the paper chooses from 5e-4, 2e-4, 1e-4, 8e-5, 2e-5 for each method (§C.1)
    epochs: int = 3  # (§C.1)
    batch: int = 8  # pairs in an optimiser step (§C.1: 2 x 4)
    micro_batch: int = 2  # pairs in a forward pass: lower it if memory is short
    max_tokens: int = 2048  # a training pair is cut after this many tokens (ours: the length limit of an answer)
    lora_rank: int = 16  # (§C.1)
    lora_alpha: int = 32  # (§C.1)
    lora_dropout: float = 0.05  # (§C.1)
    weight_decay: float = 0.1  # (§C.1)
    max_grad_norm: float = 0.3  # gradient clip (§C.1)
    warmup: float = 0.03  # share of the steps, then cosine to zero (§C.1)
    checkpointing: bool = True  # gradient checkpointing: less memory, a third more time
    sample_batch: int = 32  # answers generated at once: lower it if memory is short
    prm_batch: int = 8  # answers scored at once: lower it if memory is short


def turn(message) -> dict:
    """{"role", "content"} of a turn in either of the two chat forms; content None becomes ""."""
    if not isinstance(message, dict):
        raise ValueError("a turn is no object")
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    role = ROLES.get(role, role)
    if role not in ("system", "user", "assistant") or not isinstance(content, str | None):
        raise ValueError(f"a turn of {role!r} with {type(content).__name__}")
    return {"role": role, "content": content or ""}


def read_pair(row: dict) -> list[dict]:
    """The turns of a row, the answer last; ValueError if it has none of the forms."""
    chat = row.get("messages") or row.get("conversations")
    for question, answer in FIELDS:
        if chat or row.get(question) is None or answer not in row:
            continue
        asked, answered = row[question], row[answer]
        if row.get("input"):  # Alpaca: what the instruction is about
            asked = f"{asked}\n\n{row['input']}"
        chat = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]  # a list: TRL's prompt
        chat = chat + (answered if isinstance(answered, list) else [{"role": "assistant", "content": answered}])
        earlier = [{"role": role, "content": text} for past in row.get("history") or []
                   for role, text in zip(("user", "assistant"), past, strict=True)]
        chat = earlier + chat
    if not isinstance(chat, list):
        raise ValueError("none of these fields")
    turns = [turn(message) for message in chat]
    if row.get("system") and turns and turns[0]["role"] != "system":
        turns.insert(0, turn({"role": "system", "content": row["system"]}))
    if [message["role"] for message in turns[-2:]] != ["user", "assistant"]:
        raise ValueError("the last turns are no question and its answer")
    return turns


def read_pairs(path: str) -> list[dict]:
    """Rows {"id", "messages"} of a file; pairs without a question or an answer are left out and counted."""
    pairs = []
    rows = common.read_rows(Path(path))
    for where, row in rows:
        try:
            turns = read_pair(row)
        except (ValueError, TypeError) as error:
            raise UserError(f"--pairs {where}: expected {FORMS}, came {str(row):.80} ({error}); bring the file into "
                            "one of these forms") from None
        if all(message["content"].strip() for message in turns[-2:]):
            pairs.append({"id": row.get("id"), "messages": turns})
    if len(pairs) < len(rows):
        print(f"{len(rows) - len(pairs)} of {len(rows)} pairs left out: no question or no answer")
    if not pairs:
        raise UserError(f"--pairs {path}: expected at least one pair with an answer, came none; check the file")
    return pairs


def untested(pairs: list[dict], tests: list[dict]) -> list[dict]:
    """The pairs of which no user's turn holds one of the test problems; says how many do."""
    asked = []
    for pair in pairs:
        users = [message["content"] for message in pair["messages"] if message["role"] == "user"]
        asked.append("\n".join(map(common.plain, users)))
    everything = "\n".join(asked)
    tested = [text for text in {common.plain(row["problem"]) for row in tests} if text in everything]
    left = [pair for pair, text in zip(pairs, asked, strict=True) if not any(problem in text for problem in tested)]
    print(f"{len(pairs)} pairs, {len(pairs) - len(left)} of them left out because they hold a question that is tested on")
    if not left:
        raise UserError("--pairs: every pair holds a question that is tested on; check --data and the file")
    return left


def fit_template(pairs: list[dict], student: str) -> list[dict]:
    """The pairs as the student's template can show them: system turns before the question if it refuses or drops them."""
    from transformers import AutoTokenizer

    with common.loading("--student", student):
        tokenizer = AutoTokenizer.from_pretrained(student)
    if tokenizer.chat_template is None:
        raise UserError(f"--student {student}: its tokenizer has no chat template; use an instruction-tuned model, or add one")
    probe = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+3?"}]
    try:
        takes_system = "Be brief." in common.apply_template(tokenizer, probe)
    except UserError:
        takes_system = False
    out, n_moved = [], 0
    for n, pair in enumerate(pairs, 1):
        first, *rest = pair["messages"]
        if first["role"] == "system" and not takes_system:
            n_moved += 1
            pair = pair | {"messages": [rest[0] | {"content": f"{first['content']}\n\n{rest[0]['content']}"}, *rest[1:]]}
        try:
            common.apply_template(tokenizer, pair["messages"][:-1], add_generation_prompt=True)
        except UserError as error:
            raise UserError(f"--pairs: pair {n} of those left cannot be asked of --student {student}, whose template "
                            f"says: {error}; take it out, or bring its turns into that order") from None
        out.append(pair)
    if n_moved:
        print(f"{n_moved} system turns put before the question: {student}'s template takes none")
    return out


def main(args: Args) -> None:
    common.check_args(args, lr=1, temperature=100, warmup=1, lora_dropout=0.99, weight_decay=1, max_grad_norm=1e9, tau1=1, tau2=1)
    for flag, name in (("--student", args.student), ("--adapter", args.adapter),
                       ("--prm", args.prm if args.difficulty == "prm" else None)):
        common.check_checkpoint(name, flag)  # now, not after hours
    given = read_pairs(args.pairs)
    given_to_stat = {name: value for name, value in dataclasses.asdict(args).items() if name != "pairs"}
    settings = stat_sel.Args(**given_to_stat)
    questions = stat_sel.load_questions(settings)
    given = untested(given, [row for rows in questions.sets.values() for row in rows])
    given = fit_template(given, args.student)
    ending = stat_sel.question("")[0]["content"].strip()
    lacking = sum(ending not in pair["messages"][-2]["content"] for pair in given)
    print(f"{lacking} of {len(given)} questions lack the sentence that the test questions end with")

    run = common.open_run(args, args.out, HOW)
    parts = {f"test {name}": rows for name, rows in questions.sets.items()}
    common.check_questions(run, {"pairs": given} | parts)
    student = functools.cache(lambda: common.load_student(args.student, args.adapter))
    graded = stat_sel.grade(settings, run, student, [], questions.sets["MATH"])
    run.step("train_pairs.jsonl", lambda: given)
    tested, adapter = {}, run.path / "adapter" / "pairs"
    tested["base"] = stat_sel.test(settings, run, student, questions, "base")
    student.cache_clear()
    if not adapter.exists():
        stat_sel.train(settings, run, common.load_student(args.student, args.adapter), given, "pairs")
    adapter.with_suffix(".checkpoint.pt").unlink(missing_ok=True)
    trained = functools.cache(lambda: common.load_student(args.student, adapter))  # what is tested is what was saved
    tested["pairs"] = stat_sel.test(settings, run, trained, questions, "pairs")
    stat_sel.show(tested, {row["id"] for row in graded if row["difficult"]})
    arms = {}
    for arm, rows in tested.items():  # right of answers
        n_right, n_all = Counter(row["set"] for row in rows if row["is_right"]), Counter(row["set"] for row in rows)
        arms[arm] = {name: [n_right[name], n_all[name]] for name in questions.sets}
    run.write("result.json", {"method": "pairs", "arms": arms})
    print(f"{run.path}/result.json")


if __name__ == "__main__":
    common.cli(main, Args, __doc__)
