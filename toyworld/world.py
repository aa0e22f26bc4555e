"""Makes a world on disk: problem sets in MATH's fields, a list of skills, checkpoints of a student and of a process reward model.

Everything follows from one seed.
"""
import hashlib
import json
import os
import random
from pathlib import Path

from toyworld import problems as toy

# Fixed on pilot seeds 100-103; reported runs use other seeds, so other problems and other students.
N_TRAIN, N_VAL, N_TEST = 1500, 1000, 2000
WEAK_IN_DATA = 0.3  # how often a weak skill comes in P and in the test questions, beside a strong one
WEAK_IN_PRETRAINING = 0.005  # and in what the student saw before, P aside
PRETRAINING_STEPS = 2400


def row(problem: toy.Problem, row_id: str, style: int) -> dict:
    from toyworld.student import solution
    return {"id": row_id, "problem": problem.text, "level": f"Level {toy.level(problem)}", "subject": problem.parts[-1].skill.subject,
            "solution": solution(problem, style), "answer": toy.solve(problem)[1], "skills": problem.skills}


def draw_unique(rng: random.Random, n: int, taken: set[str]) -> list[toy.Problem]:
    """n problems whose texts are not in `taken`, which they join."""
    from toyworld.student import draw_problem
    out = []
    while len(out) < n:
        problem = draw_problem(rng, WEAK_IN_DATA, 0.2)
        if problem.text not in taken:
            taken.add(problem.text)
            out.append(problem)
    return out


def make_world(root: Path, seed: int, prompt: str, scale: float = 1.0, times_seen: int = 1) -> Path:
    """The folder of the world `seed` under root; made where it is not there yet.

    scale: below 1, a smaller, worse-trained world for tests. times_seen: how often the student saw P in its pretraining.
    """
    makers = "".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("problems.py", "student.py", "prm.py", "world.py"))
    # So a changed world is not taken for an older one. The reward model also follows from stat_sel.sample and common.split_steps: after a change
    # of those, delete the folder.
    digest = hashlib.sha256((makers + prompt).encode()).hexdigest()[:8]
    world = root / f"world-{seed}-{digest}{'' if scale == 1 else f'-scale-{scale}'}{'' if times_seen == 1 else f'-seen-{times_seen}'}"
    if (world / "prm").is_dir():  # made last
        return world
    from toyworld.prm import make_prm
    from toyworld.student import make_student
    world.mkdir(parents=True, exist_ok=True)
    rng, taken = random.Random(f"world {seed}"), set()
    tests = draw_unique(rng, int((N_VAL + N_TEST) * scale), taken)
    pool = draw_unique(rng, int(N_TRAIN * scale), taken)
    for split, problems in (("test", tests), ("train", pool)):
        lines = [json.dumps(row(p, f"{split}/{i}", rng.randrange(4))) for i, p in enumerate(problems)]
        (world / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    # A problem is of its last part's subject, so the lists of those subjects hold the skills of first parts too.
    lists = {skill.subject: [] for skill in toy.SKILLS}
    for skill in toy.SKILLS:
        lists[skill.subject].append(skill.name)
    for subject in {toy.BY_NAME[name].subject for name in toy.SECOND}:
        lists[subject] += [name for name in toy.FIRST if name not in lists[subject]]
    (world / "skills.json").write_text(json.dumps(lists), encoding="utf-8")
    if not (world / "student").is_dir():
        make_student(world / "student", seed, pool * times_seen, prompt, int(PRETRAINING_STEPS * scale), WEAK_IN_PRETRAINING)
    make_prm(world / "prm", world / "student", seed, scale)
    return world


def default_root() -> Path:
    return Path(os.environ.get("TOYWORLD_DIR", "runs/toyworld"))
