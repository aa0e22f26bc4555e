r"""Toy logic in the manner of ProntoQA: made-up kinds, rules about them, a claim, and the exact answer.

"Every rompus is loud. Each wumpus is a tumpus. Every tumpus is not loud. Max is a wumpus. True or false: Max is loud?" Two chains of rules lead to
the trait and to its contrary, shuffled; the named one is on the first of them, so only going along it tells the answer. Depth, the number of rules
that it takes, 1 to 6, is the difficulty. `read` turns text back into a problem, so the toy teacher works from what it is shown.
"""
import random
import re
from typing import NamedTuple

KINDS = ("wumpus", "tumpus", "rompus", "dumpus", "numpus", "zumpus", "yumpus", "vumpus", "sterpus", "jompus", "lempus", "gorpus", "brimpus", "lorpus",
         "shumpus", "grimpus")
TRAITS = ("loud", "shy", "red", "cold", "sour", "small", "kind", "slow")
NAMES = ("Alex", "Ben", "Fae", "Gil", "Ida", "Jon", "Kim", "Max", "Ned", "Polly", "Rex", "Sam", "Stella", "Tom", "Una", "Wren")
STYLES = (("", " ", " "), ("We know: ", " ", " So "), ("", "\n", "\n"), ("Start: ", "\n", "\nAnswer: "))  # start, between steps, before the answer
PIECES = rf" ?[a-z]*pus(?: is(?: a| not)?)?| (?:{'|'.join(TRAITS)})| ?[A-Z][a-z]+|[.?]"  # each alone in the tokenizer
DEPTHS = (1, 2, 3, 4, 5, 6)


class Problem(NamedTuple):
    text: str
    name: str
    start: str  # kind
    rules: dict[str, str]  # kind -> "a kind", "trait" or "not trait"
    trait: str  # of the claim


def make(rng: random.Random, depth: int) -> Problem:
    """A problem that takes `depth` rules, beside a chain of up to three others."""
    others, trait, name = rng.randint(1, 3), rng.choice(TRAITS), rng.choice(NAMES)
    kinds = rng.sample(KINDS, depth + others)
    rules = {}
    for chain, sign in zip((kinds[:depth], kinds[depth:]), rng.sample(("", "not "), 2), strict=True):
        rules |= {kind: f"a {above}" for kind, above in zip(chain, chain[1:], strict=False)} | {chain[-1]: sign + trait}
    said = [f"{rng.choice(('Every', 'Each'))} {kind} is {rules[kind]}." for kind in rng.sample(kinds, len(kinds))]
    return Problem(f"{' '.join(said)} {name} is a {kinds[0]}. True or false: {name} is {trait}?", name, kinds[0], rules, trait)


def read(text: str) -> Problem | None:
    """The problem that a text states, or None where it is not one of this world's, or not one that its rules decide."""
    found = re.fullmatch(r"((?:(?:Every|Each) \w+ is (?:a |not )?\w+\. )+)(\w+) is a (\w+)\. True or false: (\w+) is (\w+)\?", text.strip())
    rules = re.findall(r"(?:Every|Each) (\w+) is ((?:a |not )?\w+)\.", found[1]) if found else []
    if not found or found[2] != found[4] or len(dict(rules)) < len(rules):
        return None
    problem = Problem(text.strip(), found[2], found[3], dict(rules), found[5])
    return problem if reached(problem) else None


def reached(problem: Problem) -> list[str]:
    """What the rules say of the named one, in order, down to whether the claimed trait is theirs; [] where they do not decide it."""
    out, kind = [], problem.start
    while kind in problem.rules and len(out) < len(problem.rules):
        out.append(problem.rules[kind])
        if out[-1].removeprefix("not ") == problem.trait:
            return out
        kind = out[-1].removeprefix("a ")
    return []


def level(problem: Problem) -> int:
    return len(reached(problem))


def solve(problem: Problem) -> tuple[list[str], str]:
    """The steps, a rule and what follows from it each, and the answer."""
    kind, steps = problem.start, [f"{problem.name} is a {problem.start}."]
    for what in reached(problem):
        steps.append(f"Every {kind} is {what}. {problem.name} is {what}.")
        kind = what.removeprefix("a ")
    return steps, str(what == problem.trait)


def recite(problem: Problem, rng: random.Random) -> str:
    """All rules once more, in another order."""
    return " ".join(f"Every {kind} is {problem.rules[kind]}." for kind in rng.sample(list(problem.rules), len(problem.rules)))


def write_solution(steps: list[str], answer: str, style: int) -> str:
    start, between, end = STYLES[style % len(STYLES)]
    return f"{start}{between.join(steps)}{end}\\boxed{{{answer}}}."


def is_right(problem: Problem, solution: str) -> bool:
    return re.findall(r"\\boxed\{([^{}]*)\}", solution)[-1:] == [solve(problem)[1]]
