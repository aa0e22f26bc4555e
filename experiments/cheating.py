"""How often DART's rules fire on human solutions, and how many false steps they find.

Alarms  of every rule but "copy", on the even and the odd rows of a set; all count, also human errors.
Catch   one marked result of a GSM8K solution gets another last digit.
Run     python experiments/cheating.py --gsm8k data/gsm8k --math data/math --save results/cheating.json
        python -m experiments.cheating --saved results/cheating.json
"""
import dataclasses
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common  # noqa: E402
import dart  # noqa: E402

KINDS = {"+": "sum", "-": "difference", "*": "product", "/": "quotient"}


@dataclasses.dataclass(frozen=True)
class Args:
    gsm8k: str = "gsm8k"  # name or folder, as of common.load
    math: str = "math"
    n: int = 1000  # GSM8K solutions that get a false step
    every: int = 1  # take every so many-th solution only: a quick look
    seed: int = 0
    save: str | None = None  # file for the counts
    saved: str | None = None  # print the tables of such a file


def wilson(k: int, n: int) -> str:
    """A share and its interval of 95 %."""
    z2, p = 1.96 ** 2, k / n
    middle, half = p + z2 / (2 * n), (z2 * (p * (1 - p) / n + z2 / (4 * n * n))) ** 0.5
    low, high = (100 * (middle + sign * half) / (1 + z2 / n) for sign in (-1, 1))
    return f"{100 * p:.2f} % [{low:.2f}, {high:.2f}]"


def alarms(rows: list[dict]) -> Counter:
    fired = Counter()
    for row in rows:
        text, problem = row["solution"], row["problem"]
        fired.update(dart.hard_fails(text, "", False) + dart.cheats(text, problem, ""))
        fired["no working"] += not dart.has_working(text, problem)
    return fired


def falsify(answer: str, rng: random.Random) -> tuple[str, str] | None:
    """A GSM8K answer with a false result, without its marks, and the kind of that calculation.

    >>> falsify("48/2 = <<48/2=24>>24 clips\\n#### 24", random.Random(0))
    ('48/2 = 27 clips', 'quotient')
    """
    marks = [m for m in re.finditer(r"<<([^<>=]*)=[^<>]*>>(\d[\d,]*(?:\.\d+)?|\.\d+)", answer)
             if re.search(r"[\d)%.] *[-+*/]", m[1])]
    if not marks:
        return None
    mark = rng.choice(marks)
    last = rng.choice([digit for digit in "0123456789" if digit != mark[2][-1]])
    signs = re.findall(r"(?<=[\d)%.])[-+*/]", mark[1].replace(" ", ""))
    kind = ("percent" if "%" in answer[:mark.start()].rpartition("\n")[2] else
            "three terms or more" if len(signs) > 1 else
            "decimals" if "." in mark[1] + mark[2] else KINDS[signs[0]])
    false = answer[:mark.end(2) - 1] + last + answer[mark.end(2):]
    return re.sub(r"<<[^<>]*>>", "", false).split("\n####")[0], kind


def count(args: Args) -> dict:
    """{"alarms": {set: {"n": [even, odd], rule: [even, odd]}}, "false steps": {kind: [found, of]}}"""
    found = {"alarms": {}, "false steps": {}}
    for name, source in (("GSM8K", args.gsm8k), ("MATH", args.math)):
        rows = [dart.prepare(row) for row in common.load(source, "train")[::args.every]]
        halves = rows[::2], rows[1::2]
        fired = [alarms(half) for half in halves]
        found["alarms"][name] = {"n": list(map(len, halves))} | {
            rule: [one[rule] for one in fired] for rule in sorted(fired[0] | fired[1])}
    path = Path(args.gsm8k) / "train.jsonl"
    raw = common.read_rows(path) if path.exists() else common._from_hub(args.gsm8k, "train")
    rng, steps = random.Random(args.seed), {}
    made = [falsify(row["answer"], rng) for _, row in rng.sample(raw, len(raw))]
    for text, kind in list(filter(None, made))[:args.n]:
        for name in (kind, "all"):
            steps.setdefault(name, [0, 0])
            steps[name][0] += bool(dart.false_equations(text))
            steps[name][1] += 1
    return found | {"false steps": dict(sorted(steps.items()))}


def run(args: Args) -> None:
    found = common.read_json(args.saved) if args.saved else count(args)
    sets = found["alarms"]
    print("| rule | " + " | ".join(f"{name}: even, odd rows | all" for name in sets) + " |")
    print("|---|" + "---|---|" * len(sets))
    for rule in sorted(set().union(*sets.values()) - {"n"}):
        cells = [rule]
        for one in sets.values():
            fired = one.get(rule, [0, 0])
            cells += [f"{fired[0]}, {fired[1]}", wilson(sum(fired), sum(one["n"]))]
        print(f"| {' | '.join(cells)} |")
    print("\n| false steps | found | |\n|---|---|---|")
    for kind, (k, n) in found["false steps"].items():
        print(f"| {kind} | {k} of {n} | {wilson(k, n)} |")
    if args.save:  # with what a quick look finds, which a test compares
        found["every 20th"] = count(dataclasses.replace(args, every=20, n=100))
        Path(args.save).write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    common.cli(run, Args, __doc__)


if __name__ == "__main__":
    main()
