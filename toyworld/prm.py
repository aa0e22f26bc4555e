r"""The toy process reward model: the student's own weights, trained on to mark each step of an answer with + or -.

Public models of the kind are trained on the sampled answers of a language model, a step's mark being whether it can still be completed to the
right answer. Here too the answers are sampled, from the student, and the marks are exact: whether all is right up to and including the step.
"""
import random
import re
from pathlib import Path

from transformers import AutoTokenizer, LlamaForCausalLM

from toyworld import problems as toy
from toyworld.student import draw_problem, pretrain

N_ANSWERS, EPOCHS = 6000, 3


def marks(problem: toy.Problem, steps: list[str]) -> list[bool]:
    """For each step of an answer, as common.split_steps gives them, whether it and all before it are right; in a right answer the last is too.

    >>> marks(toy.read("Find 2y+3 if y=4."), ["First 4+4=8", "Then 8+3=12", "Answer: \\boxed{12}."])
    [True, False, False]
    """
    to_come, answer = [step for step, _ in toy.solve(problem)[0]], toy.solve(problem)[1]
    is_right, out = True, []
    for step in steps:
        for equation in ("=".join(found.groups()) for found in toy.STEP.finditer(step)):
            is_right = is_right and to_come[:1] == [equation]
            to_come = to_come[1:]
        for boxed in re.findall(r"\\boxed\{([^{}]*)\}", step):
            is_right = is_right and boxed == answer and not to_come
        out.append(is_right)
    if not re.search(r"\\boxed\{", " ".join(steps)):
        out[-1] = False  # it ends without an answer
    return out


def make_prm(path: Path, student: Path, seed: int, scale: float) -> None:
    """Samples the student's answers to fresh problems, of all skills alike, at T = 1; trains on their marks; saves to `path`."""
    import common
    import stat_sel
    rng = random.Random(f"prm {seed}")
    problems = sorted((draw_problem(rng, 1.0, 0.2) for _ in range(int(N_ANSWERS * scale))), key=lambda problem: len(problem.text))
    answering, encoded = common.load_student(str(student)), []
    plus, minus = answering.tokenizer.convert_tokens_to_ids(["+", "-"])
    for i in range(0, len(problems), 200):
        prompts = [common.prompt_ids(answering.tokenizer, stat_sel.question(problem.text)) for problem in problems[i:i + 200]]
        for problem, out in zip(problems[i:i + 200], stat_sel.sample(answering, prompts, 1.0, 60, seed=i), strict=True):
            steps = common.split_steps(out["response"])
            ids, at = common.chat_of_steps(answering.tokenizer, problem.text, steps, plus)  # every mark in the text is "+", as when it scores
            labels = dict(zip(at, marks(problem, steps), strict=True))
            encoded.append((ids + [plus], [-100] + [{True: plus, False: minus, None: -100}[labels.get(t)] for t in range(len(ids))]))
    model = LlamaForCausalLM.from_pretrained(student)
    pretrain(path, model, AutoTokenizer.from_pretrained(student), [encoded * EPOCHS], rng, batch=32, peak=1e-3)
