"""The world of dart.py: a student with gaps that has learnt to rewrite, and experts' demonstrations of what it lacks.

The demonstrations are right but terse, in a notation that the student never wrote. Out of distribution are the
weak skills in other phrasings; retention is the skills that the student had.
"""
import json
import random
import re
from pathlib import Path

from toyworld import problems as toy
from toyworld.world import WEAK_IN_PRETRAINING, draw_unique, row

# Fixed on pilot seeds 100-103, so that there is something to gain: the student has less than half of the test questions right, the untrained
# mapper 40 to 70 % of its rewrites, with an alignment under 0.8.
N_DEMONSTRATIONS, N_HELD_OUT, N_TEST_OF_EACH, STEPS = 600, 50, 500, 1200
WEAK_IN_DATA = 3.0  # how often a weak skill comes in the demonstrations, beside a strong one
REWRITING, FROM_EXPERTS, WEAK_IN_REWRITING = 0.15, 0.1, 0.2  # shares of what the student saw: rewriting; of these, of experts' solutions
BY_EXPERTS = 0.02  # and of solutions like the experts', so that these are unlikely but not unheard of


def expert_solution(problem: toy.Problem) -> str:
    """Terse, in another notation and order: the steps without a word between them, the numbers of a sum or product turned round.

    >>> expert_solution(toy.read("Let t be 12 times 7. Find the digit sum of t."))
    '7*10 is 70; 7*2 is 14; 14+70 is 84; 4+8 is 12; \\\\boxed{12}.'
    """
    steps, answer = toy.solve(problem)
    turned = (re.sub(r"^(\d+)([+*])(\d+)=", r"\3\2\1=", step).replace("=", " is ") for step, _ in steps)
    return "".join(f"{step}; " for step in turned) + f"\\boxed{{{answer}}}."


def in_held_out_words(problem: toy.Problem) -> bool:
    """Whether a part is asked for in the last of its skill's phrasings, which no demonstration uses."""
    slots = (dict(zip("abc", ("t" if n is None else n for n in part.numbers), strict=False)) for part in problem.parts)
    return any(part.skill.nouns[-1].format(**slot) in problem.text for part, slot in zip(problem.parts, slots, strict=True))


def make_demonstrations(world: Path, seed: int, prompt: str, scale: float, times_seen: int) -> None:
    """All of it, by one seed; perfect/ holds the same demonstrations as the best mapper would write them."""
    from dart import MAPPER_PROMPT
    from toyworld.student import BATCH, WEAK, draw_problem, make_student, solution
    rng, taken = random.Random(f"demonstrations {seed}"), set()

    def such(good):
        return lambda: next(p for p in iter(lambda: draw_problem(rng, WEAK_IN_DATA, 0.2), None) if good(p))
    weak = set(WEAK)
    sets = {"test": such(lambda p: not in_held_out_words(p)), "phrasings": such(lambda p: in_held_out_words(p) and weak & set(p.skills)),
            "retention": such(lambda p: not weak & set(p.skills)), "train": such(lambda p: not in_held_out_words(p))}
    for name, draw in sets.items():
        problems = draw_unique(draw, int((N_DEMONSTRATIONS + N_HELD_OUT if name == "train" else N_TEST_OF_EACH) * scale), taken)
        lines = [json.dumps(row(p, f"{name}/{i}", 0) | {"solution": expert_solution(p)}) for i, p in enumerate(problems)]
        (world / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if name in ("train", "test"):  # the same in the student's own styles, as the best mapper would write them
            lines = [json.dumps(row(p, f"{name}/{i}", i)) for i, p in enumerate(problems)]
            (world / "perfect").mkdir(exist_ok=True)
            (world / "perfect" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rng = random.Random(f"student {seed}")
    n = int(STEPS * scale) * BATCH
    seen = [draw_problem(rng, WEAK_IN_PRETRAINING, 0.2) for _ in range(n - int(REWRITING * n) - int(BY_EXPERTS * n))]
    rewritten = [draw_problem(rng, WEAK_IN_REWRITING, 0.2) for _ in range(int(REWRITING * n))]
    beside = [(MAPPER_PROMPT.format(problem=p.text, solution=expert_solution(p) if rng.random() < FROM_EXPERTS else solution(p, rng.randrange(4))),
               solution(p, rng.randrange(4))) for p in rewritten]
    by_experts = [draw_problem(rng, WEAK_IN_PRETRAINING, 0.2) for _ in range(int(BY_EXPERTS * n))]
    beside += [(prompt.format(problem=p.text), expert_solution(p)) for p in by_experts]
    make_student(world / "student", seed, rng, seen, solution, prompt, beside=beside)
