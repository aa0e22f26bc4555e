"""How often DART's rules fire on human solutions, and how many false steps they find.

Alarms  of every rule but "copy"; all count, also human errors.
Catch   one marked result of a GSM8K solution gets another last digit.
Run     python experiments/cheating.py
        (--gsm8k data/gsm8k --math data/math for folders)
"""
import dataclasses
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
    seed: int = 0


def wilson(k: int, n: int) -> str:
    """A share and its interval of 95 %."""
    z2, p = 1.96 ** 2, k / n
    middle, half = p + z2 / (2 * n), (z2 * (p * (1 - p) / n + z2 / (4 * n * n))) ** 0.5
    low, high = (100 * (middle + sign * half) / (1 + z2 / n) for sign in (-1, 1))
    return f"{k}/{n} = {100 * p:.2f} % [{low:.2f}, {high:.2f}]"


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


def main(args: Args) -> None:
    common.check_args(args)
    for name in (args.gsm8k, args.math):
        rows = [dart.prepare(row) for row in common.load(name, "train")]
        print(f"\nfalse alarms on {name}")
        for rule, k in sorted(alarms(rows).items()):
            print(f"  {rule:<24}{wilson(k, len(rows))}")
    path = Path(args.gsm8k) / "train.jsonl"
    raw = common.read_rows(path) if path.exists() else common._from_hub(args.gsm8k, "train")
    rng, total, caught = random.Random(args.seed), Counter(), Counter()
    made = [falsify(row["answer"], rng) for _, row in rng.sample(raw, len(raw))]
    for text, kind in list(filter(None, made))[:args.n]:
        for name in (kind, "all"):
            total[name] += 1
            caught[name] += bool(dart.false_equations(text))
    print("\nfalse steps found")
    for kind in sorted(total):
        print(f"  {kind:<24}{wilson(caught[kind], total[kind])}")


if __name__ == "__main__":
    common.cli(main, Args, __doc__)
