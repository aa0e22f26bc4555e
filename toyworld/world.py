"""Makes a world on disk: problem sets in MATH's fields, a checkpoint of a student; for mathematics a list of skills and a process reward model too.

Everything follows from one seed. `python -m toyworld.world` makes the checkpoints of world 0 that come with the code.
"""
import functools
import hashlib
import json
import os
import random
import re
import shutil
import tempfile
from pathlib import Path

from toyworld import READY, deduction
from toyworld import problems as toy

# Fixed on pilot seeds 100-103; reported runs use other seeds, so other problems and other students.
N_TRAIN, N_VAL, N_TEST = 1500, 1000, 2000
WEAK_IN_DATA = 0.3  # how often a weak skill comes in P and in the test questions, beside a strong one
WEAK_IN_PRETRAINING = 0.005  # and in what the student saw before, P aside
PRETRAINING_STEPS = 2400
# The student of deduction has seen no problem that takes more than two rules. First it learns to say rules again, without which it finds none.
SHALLOW, DEDUCTION_STEPS, DRILL_STEPS = (1, 2), 600, 400
# The student of demonstrations has learnt to rewrite a little, the experts' way of writing least of all.
N_DEMONSTRATIONS, N_TEST_OF_EACH, REWRITING, FROM_EXPERTS = 600, 500, 0.2, 0.15
WEAK_IN_REWRITING = 0.1


def row(problem, row_id: str, style: int) -> dict:
    if isinstance(problem, deduction.Problem):
        steps, answer = deduction.solve(problem)
        return {"id": row_id, "problem": problem.text, "level": f"Level {deduction.level(problem)}", "subject": "Deduction",
                "solution": deduction.write_solution(steps, answer, style), "answer": answer}
    from toyworld.student import solution
    return {"id": row_id, "problem": problem.text, "level": f"Level {toy.level(problem)}", "subject": problem.parts[-1].skill.subject,
            "solution": solution(problem, style), "answer": toy.solve(problem)[1], "skills": problem.skills}


def draw_unique(draw, n: int, taken: set[str]) -> list:
    """n problems of draw() whose texts are not in `taken`, which they join."""
    out = []
    while len(out) < n:
        problem = draw()
        if problem.text not in taken:
            taken.add(problem.text)
            out.append(problem)
    return out


def world_name(seed: int, prompt: str, scale: float = 1.0, times_seen: int = 1, family: str = "mathematics") -> str:
    """Holds a digest of the code that makes the world, so that a changed world is not taken for an older one.

    The reward model also follows from common.sample and stat_sel.split_steps: after a change of those, delete the folder.
    """
    files = {"mathematics": ("problems.py", "prm.py"), "deduction": ("deduction.py",), "demonstrations": ("problems.py",)}[family]
    makers = "".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("student.py", "world.py", *files))
    if family == "demonstrations":
        from dart import MAPPER_PROMPT
        makers += MAPPER_PROMPT
    digest = hashlib.sha256((makers + prompt).encode()).hexdigest()[:8]
    return f"{family}-{seed}-{digest}{'' if scale == 1 else f'-scale-{scale}'}{'' if times_seen == 1 else f'-seen-{times_seen}'}"


def make_world(root: Path, seed: int, prompt: str, scale: float = 1.0, times_seen: int = 1, family: str = "mathematics", prm: bool = True) -> Path:
    """The folder of the world `seed` under root; what is not there yet is made.

    scale: below 1, a smaller, worse-trained world for tests. times_seen: how often the student saw P in its pretraining (mathematics).
    prm: whether the process reward model is needed (mathematics).
    """
    world = root / world_name(seed, prompt, scale, times_seen, family)
    if not (world / "student").is_dir():  # made last, but for the reward model
        world.mkdir(parents=True, exist_ok=True)
        {"mathematics": make_mathematics, "deduction": make_deduction, "demonstrations": make_demonstrations}[family](
            world, seed, prompt, scale, times_seen)
    if prm and family == "mathematics" and not (world / "prm").is_dir():
        from toyworld.prm import make_prm
        make_prm(world / "prm", world / "student", seed, scale)
    return world


def write_splits(world: Path, rng: random.Random, tests: list, pool: list) -> None:
    for split, problems in (("test", tests), ("train", pool)):
        lines = [json.dumps(row(p, f"{split}/{i}", rng.randrange(4))) for i, p in enumerate(problems)]
        (world / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_mathematics(world: Path, seed: int, prompt: str, scale: float, times_seen: int) -> None:
    """A student with gaps: poor at the skills that its pretraining hardly showed."""
    from toyworld.student import BATCH, draw_problem, make_student, solution
    rng, taken = random.Random(f"world {seed}"), set()
    tests, pool = (draw_unique(lambda: draw_problem(rng, WEAK_IN_DATA, 0.2), int(n * scale), taken) for n in (N_VAL + N_TEST, N_TRAIN))
    write_splits(world, rng, tests, pool)
    # A problem is of its last part's subject, so the lists of those subjects hold the skills of first parts too.
    lists = {skill.subject: [] for skill in toy.SKILLS}
    for skill in toy.SKILLS:
        lists[skill.subject].append(skill.name)
    for subject in {toy.BY_NAME[name].subject for name in toy.SECOND}:
        lists[subject] += [name for name in toy.FIRST if name not in lists[subject]]
    (world / "skills.json").write_text(json.dumps(lists), encoding="utf-8")
    rng = random.Random(f"student {seed}")
    fresh = [draw_problem(rng, WEAK_IN_PRETRAINING, 0.2) for _ in range(int(PRETRAINING_STEPS * scale) * BATCH - len(pool) * times_seen)]
    make_student(world / "student", seed, rng, fresh + pool * times_seen, solution, prompt)


def make_deduction(world: Path, seed: int, prompt: str, scale: float, times_seen: int) -> None:
    """A student that is good at short chains and has seen no long one."""
    from toyworld.student import BATCH, make_student
    rng, taken = random.Random(f"deduction {seed}"), set()
    tests, pool = (draw_unique(lambda: deduction.make(rng, rng.choice(deduction.DEPTHS)), int(n * scale), taken) for n in (N_TEST, N_TRAIN))
    write_splits(world, rng, tests, pool)
    rng = random.Random(f"student {seed}")
    drilled, problems = ([deduction.make(rng, rng.choice(SHALLOW)) for _ in range(int(steps * scale) * BATCH)]
                         for steps in (DRILL_STEPS, DEDUCTION_STEPS))
    make_student(world / "student", seed, rng, problems, lambda problem, style: deduction.write_solution(*deduction.solve(problem), style), prompt,
                 deduction.PIECES, [(problem.text, deduction.recite(problem, rng)) for problem in drilled])


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


@functools.cache
def largest_seen(skill: str) -> int:
    """The largest number that problems of a skill hold as the student has seen them, by 3,000 draws."""
    rng = random.Random(0)
    return max(max(toy.BY_NAME[skill].draw(rng, 3)) for _ in range(3000))


def make_demonstrations(world: Path, seed: int, prompt: str, scale: float, times_seen: int) -> None:
    """A student with gaps that has learnt to rewrite, and demonstrations of experts: of skills that it lacks, in a style that it never wrote."""
    from dart import MAPPER_PROMPT
    from toyworld.student import BATCH, WEAK, draw_problem, make_student, solution
    rng, taken = random.Random(f"demonstrations {seed}"), set()

    def such(good):
        return lambda: next(p for p in iter(lambda: draw_problem(rng, 1.0, 0.2), None) if good(p))
    weak = set(WEAK)
    sets = {"test": such(lambda p: not in_held_out_words(p)), "phrasings": such(lambda p: in_held_out_words(p) and weak & set(p.skills)),
            "larger": lambda: next(p for p in iter(lambda: toy.make(rng, rng.choice(WEAK), 4), None)
                                   if not in_held_out_words(p) and max(p.parts[0].numbers) > largest_seen(p.skills[0])),
            "retention": such(lambda p: not weak & set(p.skills)), "train": such(lambda p: not in_held_out_words(p))}
    for name, draw in sets.items():
        problems = draw_unique(draw, int((N_DEMONSTRATIONS if name == "train" else N_TEST_OF_EACH) * scale), taken)
        lines = [json.dumps(row(p, f"{name}/{i}", 0) | {"solution": expert_solution(p)}) for i, p in enumerate(problems)]
        (world / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if name in ("train", "test"):  # the same in the student's own styles, as the best mapper would write them
            lines = [json.dumps(row(p, f"{name}/{i}", i)) for i, p in enumerate(problems)]
            (world / "perfect").mkdir(exist_ok=True)
            (world / "perfect" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rng = random.Random(f"student {seed}")
    n = int(PRETRAINING_STEPS * scale) * BATCH
    seen = [draw_problem(rng, WEAK_IN_PRETRAINING, 0.2) for _ in range(n - int(REWRITING * n))]
    rewritten = [draw_problem(rng, WEAK_IN_REWRITING, 0.2) for _ in range(int(REWRITING * n))]
    beside = [(MAPPER_PROMPT.format(problem=p.text, solution=expert_solution(p) if rng.random() < FROM_EXPERTS else solution(p, rng.randrange(4))),
               solution(p, rng.randrange(4))) for p in rewritten]
    make_student(world / "student", seed, rng, seen, solution, prompt, beside=beside)


def keep_ready(prompt: str) -> None:
    """Makes world 0 anew and keeps its two checkpoints beside the code, in bfloat16 to be small: the demo need not train them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    shutil.rmtree(READY, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        made = make_world(Path(folder), 0, prompt)
        for name in ("student", "prm"):
            AutoModelForCausalLM.from_pretrained(made / name).bfloat16().save_pretrained(READY / made.name / name)
            AutoTokenizer.from_pretrained(made / name).save_pretrained(READY / made.name / name)


def default_root() -> Path:
    return Path(os.environ.get("TOYWORLD_DIR", "runs/toyworld"))


if __name__ == "__main__":
    import stat_sel
    keep_ready(stat_sel.STUDENT_PROMPT)
