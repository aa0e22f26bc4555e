r"""Toy logic in the manner of ProntoQA: made-up kinds, rules about them, a claim, and the exact answer.

"Every rompus is loud. Each wumpus is a tumpus. Every tumpus is not loud. Max is a wumpus. True or false: Max is loud?" Two chains of rules lead to
the trait and to its contrary, shuffled; the named one is on the first of them, so only going along it tells the answer. Depth, the number of rules
that it takes, 1 to 6, is the difficulty. `read` turns text back into a problem, so the toy teacher works from what it is shown. There is one way of
writing a solution: with several, the choice among them would be most of the loss of an answer.
"""
import json
import random
import re
from pathlib import Path
from typing import NamedTuple

KINDS = ("wumpus", "tumpus", "rompus", "dumpus", "numpus", "zumpus", "yumpus", "vumpus", "sterpus", "jompus", "lempus", "gorpus", "brimpus", "lorpus",
         "shumpus", "grimpus")
TRAITS = ("loud", "shy", "red", "cold", "sour", "small", "kind", "slow")
NAMES = ("Alex", "Ben", "Fae", "Gil", "Ida", "Jon", "Kim", "Max", "Ned", "Polly", "Rex", "Sam", "Stella", "Tom", "Una", "Wren")
PIECES = rf" ?[a-z]*pus(?: is(?: a| not)?)?| (?:{'|'.join(TRAITS)})| ?[A-Z][a-z]+|[.?]"  # each alone in the tokenizer
DEPTHS = (1, 2, 3, 4, 5, 6)

# Fixed on pilot seeds 100-103 by the room that they leave, not by which criterion wins; reported runs use other seeds.
N_TRAIN, N_TEST = 1500, 2000
WEIGHTS = (40, 40, 5, 5, 5, 5)  # of the depths in the train split: mostly shallow. The test split is uniform in depth.
# The student has seen no problem that takes more than two rules. First it learns to say rules again, without which it finds none.
SHALLOW, STEPS, DRILL_STEPS = (1, 2), 600, 400


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


def write_solution(steps: list[str], answer: str) -> str:
    return f"{' '.join(steps)} \\boxed{{{answer}}}."


def is_right(problem: Problem, solution: str) -> bool:
    return re.findall(r"\\boxed\{([^{}]*)\}", solution)[-1:] == [solve(problem)[1]]


def row(problem: Problem, row_id: str) -> dict:
    """A problem in MATH's fields."""
    return {"id": row_id, "problem": problem.text, "level": f"Level {level(problem)}", "subject": "Deduction",
            "solution": write_solution(*solve(problem)), "answer": solve(problem)[1]}


def make_deduction(world: Path, seed: int, prompt: str, scale: float, times_seen: int) -> None:
    """Questions, and a student that is good at short chains and has seen no long one."""
    from toyworld.student import BATCH, make_student
    from toyworld.world import draw_unique
    rng, taken = random.Random(f"deduction {seed}"), set()
    for split, n, weights in (("test", N_TEST, None), ("train", N_TRAIN, WEIGHTS)):
        problems = draw_unique(lambda weights=weights: make(rng, rng.choices(DEPTHS, weights)[0]), int(n * scale), taken)
        lines = [json.dumps(row(problem, f"{split}/{i}")) for i, problem in enumerate(problems)]
        (world / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rng = random.Random(f"student {seed}")
    drilled = [make(rng, rng.choice(SHALLOW)) for _ in range(int(DRILL_STEPS * scale) * BATCH)]
    problems = [make(rng, rng.choice(SHALLOW)) for _ in range(int(STEPS * scale) * BATCH)]
    drills = [(problem.text, recite(problem, rng)) for problem in drilled]
    make_student(world / "student", seed, rng, problems, lambda problem, style: write_solution(*solve(problem)), prompt, PIECES, drills)
