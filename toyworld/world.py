"""Makes a world on disk: problem sets in MATH's fields, a checkpoint of a student; for mathematics a list of skills and a process reward model too.

Everything follows from one seed. `python -m toyworld.world` makes the checkpoints of world 0 that come with the code.
"""
import hashlib
import json
import os
import random
import shutil
import tempfile
from pathlib import Path

from toyworld import READY
from toyworld import problems as toy
from toyworld.deduction import make_deduction

# Fixed on pilot seeds 100-103; reported runs use other seeds, so other problems and other students.
N_TRAIN, N_VAL, N_TEST = 1500, 1000, 2000
WEAK_IN_DATA = 0.3  # how often a weak skill comes in P and in the test questions, beside a strong one
WEAK_IN_PRETRAINING = 0.005  # and in what the student saw before, P aside
PRETRAINING_STEPS = 2400


def row(problem, row_id: str, style: int) -> dict:
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
    files = {"mathematics": ("problems.py", "prm.py"), "deduction": ("deduction.py",), "demonstrations": ("problems.py", "demonstrations.py")}[family]
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
        from toyworld.demonstrations import make_demonstrations
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
