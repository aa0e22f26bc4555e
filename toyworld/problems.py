r"""Toy mathematics: nineteen skills over three subjects, worked solutions, and an exact check of every step.

A problem is text. `read` turns text back into the skills and numbers it was made from, so the toy teacher and the checker work from what they
are shown, never from hidden labels. A two-skill problem feeds the value of a first part, t, into a second: "Let t be 47+38. Find t mod 7."

Every step of a solution is an equation over integers ("7+8=15", "38 mod 7=3"), the last one is the boxed answer.
"""
import functools
import random
import re
from typing import NamedTuple


class Skill(NamedTuple):
    subject: str
    name: str
    nouns: tuple[str, ...]  # phrasings; each names every slot
    draw: object  # (rng, size 1..3) -> tuple of ints, one per slot a, b, c
    steps: object  # ints -> list of equations; the value is the right side of the last


def _digits(n: int) -> list[int]:
    return [int(ch) for ch in str(n)]


def _two_digit(rng: random.Random, size: int) -> int:
    return rng.randint(*{1: (3, 10), 2: (6, 20), 3: (11, 30)}[size])


def _multiply(a, b):
    tens, units = a // 10 * 10 * b, a % 10 * b
    return [f"{a // 10 * 10}*{b}={tens}", f"{a % 10}*{b}={units}", f"{tens}+{units}={a * b}"]


def _fold(op, numbers):
    """Steps that add or multiply numbers one after the other."""
    total, *rest = numbers
    out = []
    for n in rest or [0 if op == "+" else 1]:
        value = total + n if op == "+" else total * n
        out, total = [*out, f"{total}{op}{n}={value}"], value
    return out


def _gcd(a, b):
    a, b, out = max(a, b), min(a, b), []
    while b:
        out, a, b = [*out, f"{a} mod {b}={a % b}"], b, a % b
    return [*out, f"{a}+0={a}"]


def _draw_pair(rng, size):
    return _two_digit(rng, size), _two_digit(rng, size)


def _draw_subtract(rng, size):
    return tuple(sorted(rng.sample(range(2, {1: 11, 2: 21, 3: 31}[size]), 2), reverse=True))


def _draw_gcd(rng, size):
    g = rng.randint(2, 3 * size)
    a, b = rng.sample(range(1, 8), 2)
    return g * a, g * b


def _draw_equation(rng, size):  # x / a - b = c
    a, c, sum_ = rng.randint(2, 4), rng.randint(1, 6 * size), rng.randint(6 * size, 6 * size + 6)
    return a, max(1, sum_ - c), c


def _draw_next_term(rng, size):
    first, gap = rng.randint(1, 10 * size), rng.randint(2, 3 * size)
    return first, first + gap, first + 2 * gap


def _draw_falling(rng, size):
    return _draw_next_term(rng, size)[::-1]


SKILLS = [
    Skill("Prealgebra", "addition", ("{a}+{b}", "the sum of {a} and {b}", "{a} plus {b}"), _draw_pair, lambda a, b: [f"{a}+{b}={a + b}"]),
    Skill("Prealgebra", "subtraction", ("{a}-{b}", "{b} less than {a}", "{a} minus {b}"), _draw_subtract, lambda a, b: [f"{a}-{b}={a - b}"]),
    Skill("Prealgebra", "multiplication", ("{a}*{b}", "the product of {a} and {b}", "{a} times {b}"),
          lambda rng, size: (_two_digit(rng, size), rng.randint(2, 9)), _multiply),
    Skill("Prealgebra", "perimeters", ("the perimeter of a rectangle {a} by {b}", "the way around a field {a} wide and {b} long"),
          lambda rng, size: (rng.randint(2, 5 * size), rng.randint(2, 5 * size)),
          lambda a, b: [f"{a}+{b}={a + b}", f"{a + b}+{a + b}={2 * (a + b)}"]),
    Skill("Prealgebra", "areas", ("the area of a rectangle {a} by {b}", "how much a field {a} wide and {b} long holds"),
          lambda rng, size: (_two_digit(rng, size), rng.randint(2, 5)), _multiply),
    Skill("Prealgebra", "sums of three", ("the sum of {a}, {b}, {c}", "{a}, {b}, {c} added up"),
          lambda rng, size: (rng.randint(2, 7 * size), rng.randint(2, 7 * size), rng.randint(2, 9)), lambda *numbers: _fold("+", numbers)),
    Skill("Number Theory", "remainders", ("{a} mod {b}", "the remainder of {a} by {b}", "what {a} leaves on division by {b}"),
          lambda rng, size: (_two_digit(rng, size), rng.randint(3, 9)),
          lambda a, b: [f"{b}*{a // b}={a // b * b}", f"{a}-{a // b * b}={a % b}"]),
    Skill("Number Theory", "greatest common divisors", ("gcd({a},{b})", "the largest divisor shared by {a} and {b}"), _draw_gcd, _gcd),
    Skill("Number Theory", "digit sums", ("the digit sum of {a}", "the sum of the digits of {a}"),
          lambda rng, size: (rng.randint(10, 99) if size < 3 else rng.randint(100, 999),), lambda a: _fold("+", _digits(a))),
    Skill("Number Theory", "digit products", ("the digit product of {a}", "the product of the digits of {a}"),
          lambda rng, size: (rng.randint(10, 39 + 20 * size),), lambda a: _fold("*", _digits(a))),
    Skill("Number Theory", "digit differences", ("the digit difference of {a}", "how far the digits of {a} are apart"),
          lambda rng, size: (rng.randint(10, 99),), lambda a: [f"{max(_digits(a))}-{min(_digits(a))}={max(_digits(a)) - min(_digits(a))}"]),
    Skill("Algebra", "sequences", ("the next term of {a},{b},{c}", "what follows {a},{b},{c}"), _draw_next_term,
          lambda a, b, c: [f"{b}-{a}={b - a}", f"{c}+{b - a}={c + b - a}"]),
    Skill("Algebra", "function values", ("f({c}) if f(x)={a}x+{b}", "the value of {a}x+{b} at x={c}"),
          lambda rng, size: (rng.randint(2, 3 + 2 * size), rng.randint(1, 9), rng.randint(2, 3 + 2 * size)),
          lambda a, b, c: [f"{a}*{c}={a * c}", f"{a * c}+{b}={a * c + b}"]),
    Skill("Algebra", "linear equations", ("x if x/{a}-{b}={c}", "the root of x/{a}-{b}={c}"), _draw_equation,
          lambda a, b, c: [f"{c}+{b}={c + b}", *_multiply(c + b, a)]),
    Skill("Algebra", "falling sequences", ("the next number falling from {a},{b},{c}", "where {a},{b},{c} falls to"), _draw_falling,
          lambda a, b, c: [f"{a}-{b}={a - b}", f"{c}-{a - b}={c - a + b}"]),
    Skill("Algebra", "doubling", ("2y+{b} if y={a}", "twice {a} and {b} more"), lambda rng, size: (rng.randint(2, 8 * size), rng.randint(1, 9)),
          lambda a, b: [f"{a}+{a}={2 * a}", f"{2 * a}+{b}={2 * a + b}"]),
    Skill("Algebra", "brackets", ("{a}({b}+{c})", "{a} times the bracket {b}+{c}"),
          lambda rng, size: (rng.randint(2, 4), rng.randint(2, 6 * size), rng.randint(2, 6 * size)),
          lambda a, b, c: [f"{b}+{c}={b + c}", *_multiply(b + c, a)]),
    Skill("Algebra", "missing addends", ("x if {b}+x={a}", "what {b} lacks to {a}"), _draw_subtract, lambda a, b: [f"{a}-{b}={a - b}"]),
    Skill("Algebra", "distances", ("|{a}-{b}|", "the distance of {a} and {b}"), lambda rng, size: tuple(rng.sample(range(2, 10 * size + 1), 2)),
          lambda a, b: [f"{max(a, b)}-{min(a, b)}={abs(a - b)}"]),
]
BY_NAME = {skill.name: skill for skill in SKILLS}
FRAMES = ("What is {}?", "Find {}.", "Compute {}.")
# Second parts of two-skill problems take t in slot a; each must be defined for every value that a first part can have.
FIRST = ("addition", "subtraction", "perimeters", "linear equations", "function values")
SECOND = ("addition", "digit sums", "digit products")
STYLES = (  # how a worked solution is written, a step a line: before a step, between steps, before the box
    ("", ",\n", ".\nSo "),
    ("First ", ",\nthen ", ".\nAnswer: "),
    ("We have ", "\nand ", ",\ngiving "),
    ("", ";\n", ";\nhence "),
)


class Part(NamedTuple):
    skill: Skill
    numbers: tuple  # the slots; the first is None where t goes


class Problem(NamedTuple):
    text: str
    parts: tuple[Part, ...]

    @property
    def skills(self) -> list[str]:
        return list(dict.fromkeys(part.skill.name for part in self.parts))


def _noun(rng: random.Random, part: Part) -> str:
    numbers = dict(zip("abc", ("t" if n is None else n for n in part.numbers), strict=False))
    return rng.choice(part.skill.nouns).format(**numbers)


def make(rng: random.Random, name: str, size: int, second: str | None = None) -> Problem:
    """A problem of the skill `name`, of size 1..3; with `second`, the value of the first part is the first number of the second."""
    parts = [Part(BY_NAME[name], BY_NAME[name].draw(rng, size))]
    if second:
        parts.append(Part(BY_NAME[second], (None, *BY_NAME[second].draw(rng, size)[1:])))
    nouns = [_noun(rng, part) for part in parts]
    frame = rng.choice(FRAMES)
    return Problem(f"Let t be {nouns[0]}. {frame.format(nouns[1])}" if second else frame.format(nouns[0]), tuple(parts))


@functools.cache
def _patterns() -> list[tuple[Skill, re.Pattern]]:
    out = []
    for skill in SKILLS:
        for noun in skill.nouns:
            pattern = re.escape(noun)
            for slot in "abc":
                pattern = pattern.replace(re.escape("{" + slot + "}"), rf"(?P<{slot}>\d+|t)")
            out.append((skill, re.compile(pattern)))
    return out


def _read_noun(text: str) -> Part | None:
    for skill, pattern in _patterns():
        if found := pattern.fullmatch(text):
            slots = found.groupdict()
            return Part(skill, tuple(None if slots[s] == "t" else int(slots[s]) for s in sorted(slots)))
    return None


def read(text: str) -> Problem | None:
    """The problem that a text states, or None where it is not one of this world's."""
    lead = re.fullmatch(r"Let t be (.+?)\. (.+)", text.strip())
    frames = [re.escape(frame).replace(r"\{\}", "(.+)") for frame in FRAMES]
    found = next((m for frame in frames if (m := re.fullmatch(frame, lead[2] if lead else text.strip()))), None)
    parts = [_read_noun(noun) for noun in ([lead[1]] if lead else []) + [found[1]]] if found else [None]
    if None in parts or [None in part.numbers for part in parts] != [i > 0 for i in range(len(parts))]:
        return None
    return Problem(text.strip(), tuple(parts))


def solve(problem: Problem) -> tuple[list[tuple[str, str]], str]:
    """The canonical steps, each with the skill it needs, and the final answer."""
    steps, value = [], None
    for part in problem.parts:
        numbers = [int(value) if n is None else n for n in part.numbers]
        steps += [(step, part.skill.name) for step in part.skill.steps(*numbers)]
        value = steps[-1][0].split("=")[1]
    return steps, value


def write_solution(steps: list[str], answer: str, style: int) -> str:
    start, between, end = STYLES[style % len(STYLES)]
    return f"{start}{between.join(steps)}{end}\\boxed{{{answer}}}."


def level(problem: Problem) -> int:
    """1..5: by the largest number of a one-skill problem, and two levels for two-skill problems."""
    size = sum(max(n for part in problem.parts for n in part.numbers if n is not None) > limit for limit in (10, 20))
    return 1 + size if len(problem.parts) == 1 else 4 + (size > 0)


# --- The exact checker -------------------------------------------------------------------------------------------------------------------
def _value(side: str) -> int | None:
    """The integer that one side of an equation stands for; None where it is not arithmetic of this world."""
    found = re.fullmatch(r"(-?\d{1,9})(?:(\+|-|\*| mod )(\d{1,9}))?", side.strip())
    if not found:
        return None
    a, op, b = int(found[1]), found[2], int(found[3] or 0)
    if op == " mod ":
        return a % b if b else None
    return {None: a, "+": a + b, "-": a - b, "*": a * b}[op]


STEP = re.compile(r"(-?\d+(?:(?:\+|-|\*| mod )\d+)?)=(-?\d+)")


def step_is_true(step: str) -> bool:
    """Whether an equation holds.
    >>> step_is_true("38 mod 7=3"), step_is_true("7+8=16"), step_is_true("5 mod 0=5")
    (True, False, False)
    """
    left, _, right = step.partition("=")
    return None is not _value(left) == _value(right)


def _unturned(step: str) -> str:
    """A step with the numbers of a sum or a product in order, since either order is right."""
    left, _, right = step.partition("=")
    for op in "+*":
        left = op.join(sorted(left.split(op), key=lambda number: (len(number), number)))
    return f"{left}={right}"


def check(problem: Problem, solution: str) -> dict:
    """What is right and wrong in a solution: steps [(equation, true?)], the first skill that fails (None if none), and whether the answer is right.

    A part of the problem fails where one of its equations is false or is not there, be it turned round.
    """
    steps = ["=".join(found.groups()) for found in STEP.finditer(solution)]
    right = {_unturned(step) for step in steps if step_is_true(step)}
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", solution)
    canonical, answer = solve(problem)
    missing = next((skill for step, skill in canonical if _unturned(step) not in right), None)
    is_right = bool(boxed) and boxed[-1] == answer
    if missing is None and not is_right:
        missing = canonical[-1][1]  # every step is there, the wrong number was boxed
    return {"steps": [(step, step_is_true(step)) for step in steps], "missing": missing, "is_right": is_right}
