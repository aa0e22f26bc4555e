r"""ASDiv's problems in the project's own form: P, Q_val and Q_test, with solutions worked out from formulas.

>>> steps, is_worked_out = work_out("5*9+17=62", "62")
>>> print(write(steps, "62"))
5*9=45, 45+17: 45+10=55, 55+7=62. The answer is \boxed{62}.
>>> print(write(steps, "62", random.Random(1)))
5 times 9 is 45. Then 45 plus 17: 45 plus 10 is 55, 55 plus 7 is 62. The answer is \boxed{62}.
"""
import ast
import contextlib
import json
import math
import random
import re
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path

import common

N_POOL, N_HELDOUT, N_DART, N_VAL, N_TEST, N_SVAMP = 700, 150, 400, 200, 350, 100
N_FOR_TESTS = 720  # Q_val and Q_test are drawn from these, anew for each seed
MIN_QUESTIONS = 30  # of a skill
MAX_LINES = 4  # of a calculation by places; a longer one stands as it is
HUB = "EleutherAI/asdiv"  # one split, validation: body, question, solution_type, answer, formula
NUMERIC = r"-?\d[\d,]*(?:\.\d+)?(?:[:/]\d+)?"
SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "^"}
SAID = {"+": "plus", "-": "minus", "*": "times", "/": "divided by", "^": "to the power of"}
OPENINGS = ("", "", "Let us work it out. ", "Step by step: ", "We calculate. ")
CLOSINGS = ("The answer is {}.", "So the answer is {}.", "That makes {}.", "Answer: {}.")


# --- Formulas. ----------------------------------------------------------------------------------------------
def number(x: Fraction) -> str:
    """As a whole number, a decimal of at most four places, or a fraction.

    >>> number(Fraction(7)), number(Fraction(1, 4)), number(Fraction(-1, 3))
    ('7', '0.25', '-1/3')
    """
    places = next((n for n in range(5) if (x * 10 ** n).denominator == 1), None)
    return str(x) if places in (None, 0) else f"{float(x):.{places}f}"


def calculate(x: Fraction, sign: str, y: Fraction, steps: list[str]) -> Fraction:
    """The exact result; the calculation joins the steps. Of powers small whole ones and square roots."""
    if sign == "/" and not y or sign == "^" and y not in (2, 3, Fraction(1, 2)):
        raise ValueError("no such number")
    if sign == "^" and y == Fraction(1, 2):
        root = Fraction(math.isqrt(x.numerator), math.isqrt(x.denominator))
        steps.append(f"{number(root)}*{number(root)}={number(x)}")
        return root
    z = {"+": x + y, "-": x - y, "*": x * y, "/": y and x / y, "^": x ** int(y) if sign == "^" else x}[sign]
    shown = [f"({one})" if "/" in one or one[0] == "-" else one for one in (number(x), number(y))]
    step = sign.join(shown)
    if step != number(z):  # 1/3 is 1/3
        steps.append(f"{step}={number(z)}")
    return z


def evaluate(node, text: str, steps: list[str]) -> Fraction:
    """The value of a parsed expression of numbers, + - * / ^, GCD and LCM; ValueError where more is in it."""
    if isinstance(node, ast.Constant):
        return Fraction(ast.get_source_segment(text, node))
    if isinstance(node, ast.UnaryOp):
        return -evaluate(node.operand, text, steps)
    if isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
        x = evaluate(node.left, text, steps)
        y = evaluate(node.right, text, [] if isinstance(node.op, ast.Pow) else steps)  # no step for ^(1/2)
        return calculate(x, SIGNS[type(node.op)], y, steps)
    if not isinstance(node, ast.Call) or node.func.id not in ("GCD", "LCM"):
        raise ValueError(f"{ast.unparse(node)} is not read")
    first, *others = (evaluate(one, text, steps) for one in node.args)
    for other in others:
        a, b = int(max(first, other)), int(min(first, other))
        while b:  # Euclid
            steps.append(f"{a}/{b}={a // b} r{a % b}")
            a, b = b, a % b
        divisor = Fraction(a)
        if node.func.id == "LCM":
            first = calculate(first, "*", calculate(other, "/", divisor, steps), steps)
        else:
            first = divisor
    return first


def value(text: str, steps: list[str]) -> Fraction:
    as_python = ((r"\[", "("), (r"\]", ")"), (r"\^", "**"), (r"(?<=\d)\(", "*("), (r"(?<![\d.])0+(?=\d)", ""))
    for found, python in as_python:
        text = re.sub(found, python, text)
    return evaluate(ast.parse(text.strip(), mode="eval").body, text.strip(), steps)


def work_out(formula: str, answer: str) -> tuple[list[str], bool]:
    """(steps, True) if they follow from the formula and end in the answer; else ([formula], False)."""
    steps, last = [], ""
    with contextlib.suppress(ValueError, SyntaxError, AttributeError):
        *parts, last_part = re.sub(r"\s*\([A-Za-z /]+\)", "", formula).split(";")  # without units
        for part in parts:
            work_out_part(part.strip(), None, steps)
        last = work_out_part(last_part.strip(), answer, steps)
        if last == answer or is_near(last, answer):
            return steps, True
    return [formula], False


def work_out_part(part: str, answer: str | None, steps: list[str]) -> str:
    """What one statement of a formula comes to; its calculations join the steps. answer: of the last one."""
    if part.startswith("hh:mm"):
        steps.append(f"the time is {part.rpartition('=')[2].strip()}")
        return part.rpartition("=")[2].strip()
    if re.fullmatch(r"[\d.]+(, *[\d.]+){2,}", part):  # a sequence
        steps.append(part)
        return part.rpartition(",")[2].strip()
    left, _, given = (side.strip() for side in re.sub(r"(?<=[\d)]) [a-z]+\b", "", part).rpartition("="))
    if ":" in given:  # 72:40=9:5; the answer is that or one of its numbers
        (a, b), (c, d) = ([value(one, []) for one in side.split(":")] for side in (left or given, given))
        if a * d != b * c:
            raise ValueError("another ratio")
        factor = max(a / c, c / a)
        if factor > 1 and factor.denominator == 1:
            for x, y in ((a, c), (b, d)):
                steps.append(f"{number(x)}{'*' if c > a else '/'}{factor}={number(y)}")
        steps.append(part)
        return answer if answer in (number(c), number(d)) else given
    n_before = len(steps)
    x = value(left, steps)
    if rest := re.fullmatch(r"(\d+) r(\d+)", given):  # 44/5=8 r4; the answer is 8, 4, or 9
        quotient, left_over = rest.groups()
        asked = steps.pop().partition("=")[0] if len(steps) > n_before else left
        divisor = Fraction(asked.rpartition("/")[2])
        if int(x) != int(quotient) or (x - int(x)) * divisor != int(left_over):
            raise ValueError("another quotient")
        steps.append(f"{asked}={given}")
        if answer == left_over != quotient:
            steps.append(f"{left_over} left over")
            return left_over
        if answer and answer == str(int(quotient) + 1):
            steps.append(f"{quotient}+1={answer}")
            return answer
        return quotient
    if not is_near(number(x), given):
        raise ValueError("another result")
    if x != Fraction(given):
        steps.append(f"{number(x)} is about {given}")
    elif len(steps) == n_before:
        steps.append(part)
    return number(x)


def is_near(x: str, answer: str) -> bool:
    """Equal up to the answer's decimals, if it has some."""
    places = len(answer.partition(".")[2])
    with contextlib.suppress(ValueError):
        return abs(Fraction(x) - Fraction(answer)) <= (Fraction(1, 2 * 10 ** places) if places else 0)
    return False


def write(steps: list[str], answer: str, rng: random.Random | None = None) -> str:
    """A solution; with rng in one of many wordings, half of them with the signs in words."""
    opening, closing, between, steps = "", CLOSINGS[0], ", ", [expand(step) for step in steps]
    if rng:
        opening, closing = rng.choice(OPENINGS), rng.choice(CLOSINGS)
        steps = [say(step) for step in steps] if rng.random() < 0.5 else steps
        between = rng.choice((", ", ". ", ", then ", ". Then "))
    return f"{opening}{between.join(steps)}. " + closing.format(f"\\boxed{{{answer}}}")


def places(x: Fraction) -> list[Fraction]:
    """What the digits stand for, the largest first.

    >>> [number(part) for part in places(Fraction("503.2"))]
    ['500', '3', '0.2']
    """
    whole, _, decimals = number(x).partition(".")
    digits, top = whole + decimals, len(whole) - 1
    return [int(digit) * Fraction(10) ** (top - i) for i, digit in enumerate(digits) if digit != "0"]


def expand(step: str) -> str:
    """A calculation with several digits on both sides, worked out place by place; any other as it is.

    >>> expand("1222-513=709")
    '1222-513: 1222-500=722, 722-10=712, 712-3=709'
    >>> expand("47*8=376"), expand("144/6=24")
    ('47*8: 40*8=320, 7*8=56, 320+56=376', '144/6: 120/6=20, 24/6=4, 20+4=24')
    """
    found = re.fullmatch(r"([\d.]+)([-+*/])([\d.]+)=([\d.]+)", step)
    if not found:
        return step
    x, y, z = (Fraction(found[i]) for i in (1, 3, 4))
    sign, lines = found[2], []
    if sign in "+-":
        parts = places(y) if sign == "-" or len(places(x)) > 1 else []
        for part in parts:
            before, x = x, x + part if sign == "+" else x - part
            lines.append(f"{number(before)}{sign}{number(part)}={number(x)}")
    else:
        if sign == "*" and len(places(y)) > len(places(x)):
            x, y = y, x
        parts, left = places(x if sign == "*" else z), x
        for part in parts:
            if sign == "*":
                lines.append(f"{number(part)}*{number(y)}={number(part * y)}")
            else:
                taken = left if part == parts[-1] else part * y
                left -= taken
                lines.append(f"{number(taken)}/{number(y)}={number(part)}")
        lines.append("+".join(number(part * y if sign == "*" else part) for part in parts) + f"={number(z)}")
    is_longer = len(parts) > 1 and len(lines) <= MAX_LINES
    return f"{step.partition('=')[0]}: {', '.join(lines)}" if is_longer else step


def say(text: str) -> str:
    """Calculations in words.

    >>> say("40+7=47"), say("9/6=1 r3")
    ('40 plus 7 is 47', '9 divided by 6 is 1, with 3 left')
    """
    text = re.sub(r"=(\S+) r(\d+)", r" is \1, with \2 left", text)
    text = re.sub(r"(?<=[\d)])([-+*/^])(?=[\d(])", lambda sign: f" {SAID[sign[1]]} ", text)
    return text.replace("=", " is ")


def demonstrate(row: dict) -> str:
    """DART's demonstration: the bare formula, the least likely form to a student who writes steps."""
    return f"{row['formula']}. \\boxed{{{row['answer']}}}"


# --- The problems. ------------------------------------------------------------------------------------------
def read_asdiv(source: str) -> list[dict]:
    """Every problem with a numeric answer, in the order of their texts, of a folder, a file, or the Hub."""
    path = Path(source)
    if path.is_dir():
        found = [one for file in sorted(path.glob("*.jsonl")) for one in common.read_rows(file)]
    else:
        how = {} if path.exists() else {"split": "validation", "revision": "main"}
        found = common.read_rows(source, **how)
    rows = {}
    for where, raw in found:
        try:
            problem = raw.get("problem") or f"{raw['body'].strip()} {raw['question'].strip()}"
            kind = raw["skills"][0] if "skills" in raw else raw["solution_type"]
            answer = re.fullmatch(rf"({NUMERIC})( *\(.*\))?", raw["answer"].strip())  # "9 (apples)"
            formula = raw["formula"]
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise common.UserError(
                f"{where}: expected problem, answer, formula and skills, or as on the Hub body, question, "
                f"answer, formula and solution_type, but: {error!r}; correct it") from None
        if answer:
            steps, is_worked_out = work_out(formula, answer[1])
            rows[problem] = {
                "id": common.digest(problem), "problem": problem, "answer": answer[1], "formula": formula,
                "steps": steps, "is_worked_out": is_worked_out, "kind": kind, "subject": "Arithmetic"}
    return [rows[problem] for problem in sorted(rows)]


def merge(kinds: list[str], least: int = MIN_QUESTIONS) -> dict[str, str]:
    """The skill of each kind of problem.

    A kind with fewer than `least` problems joins the kinds with its first word, under that word. Where these
    are too few together, it becomes "Other".
    >>> merge(["Sum"] * 3 + ["TVQ-Final"] * 2 + ["TVQ-Initial", "GCD"], least=3)
    {'Sum': 'Sum', 'TVQ-Final': 'TVQ', 'TVQ-Initial': 'TVQ', 'GCD': 'Other'}
    """
    n, families, skills = Counter(kinds), defaultdict(list), {}
    for kind in n:
        families[kind.partition("-")[0]].append(kind)
    for first, together in families.items():
        n_together = sum(n[kind] for kind in together)
        for kind in together:
            is_whole = min(n[kind] for kind in together) >= least
            skills[kind] = kind if is_whole else first if n_together >= least else "Other"
    return skills


def make_data(made: Path, root: Path, asdiv: str, svamp: str, seed: int, scale: float = 1.0) -> None:
    """Q_val with Q_test, drawn by the seed. The same for all seeds: P, what is held out of it, the skills;
    dart/: demonstrations of other problems, and retention, a part of P; root/ood/svamp.jsonl."""
    n_heldout, n_pool, n_dart, n_svamp, n_tests = (
        math.ceil(n * scale) for n in (N_HELDOUT, N_POOL, N_DART, N_SVAMP, N_VAL + N_TEST))
    ood = sorted(common.load(svamp), key=lambda row: row["problem"])
    ood = common.rng(0, "svamp").sample(ood, min(n_svamp, len(ood)))
    rows = read_asdiv(asdiv)
    if len(rows) < 2000:
        raise common.UserError(f"--asdiv {asdiv}: expected some 2,148 problems with a numeric answer, came "
                               f"{len(rows)}; check it")
    skills = merge([row["kind"] for row in rows])
    for row in rows:
        row |= {"skill": skills[row.pop("kind")], "solution": write(row["steps"], row["answer"])}
    rows = common.rng(0, "asdiv").sample(rows, len(rows))
    # those of P stay the teacher's: else report.py would take them for labels that nothing was drawn by
    for_tests, rest = [row | {"skills": [row["skill"]]} for row in rows[:N_FOR_TESTS]], rows[N_FOR_TESTS:]
    tests = common.rng(seed, "asdiv tests").sample(for_tests, n_tests)
    leaks = common.leaked([row["problem"] for row in rest], [row["problem"] for row in for_tests + ood])
    rest = [row for row, leak in zip(rest, leaks, strict=True) if not leak]
    heldout, pool, others = rest[:n_heldout], rest[n_heldout:][:n_pool], rest[n_heldout + n_pool:][:n_dart]
    demonstrations = [row | {"solution": demonstrate(row)} for row in others]
    dart = made / "dart"
    for folder in (dart, root / "ood"):
        folder.mkdir(parents=True, exist_ok=True)
    (made / "skills.json").write_text(json.dumps({"Arithmetic": sorted(set(skills.values()))}))
    files = {root / "ood" / "svamp": ood, made / "train": pool, made / "test": tests,
             dart / "train": demonstrations, dart / "test": tests, dart / "retention": pool[:len(pool) // 7],
             made / "heldout": heldout}
    for path, some in files.items():
        path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    print(f"P {len(pool)}, held out {len(heldout)}, Q_val and Q_test {len(tests)}; {sum(map(bool, leaks))} "
          "left out of P that give a test question away; formulas that can't be worked out: "
          f"{sum(not row['is_worked_out'] for row in rows)} of {len(rows)}")
