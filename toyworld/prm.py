r"""The toy process reward model: the student's own weights, trained on to mark each step of an answer with + or -.

Public models of the kind are trained on the sampled answers of a language model, a step's mark being whether it can still be completed to the
right answer. Here too the answers are sampled, from the student, and the marks are exact: whether all is right up to and including the step.
"""
import random
import re
from pathlib import Path

from transformers import AutoTokenizer, LlamaForCausalLM

from toyworld import copied
from toyworld import problems as toy
from toyworld.student import draw_problem, pretrain

N_ANSWERS, EPOCHS = 6000, 3


def marks(problem: toy.Problem, steps: list[str]) -> list[bool]:
    """For each step of an answer, as stat_sel.split_steps gives them, whether it and all before it are right; in a right answer the last is too.

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


def sampled(student: Path, seed: int, n: int) -> tuple:
    """The student, and n fresh problems, of all skills alike, each with the student's answer at T = 1."""
    import common
    import stat_sel
    rng = random.Random(f"prm {seed}")
    problems = sorted((draw_problem(rng, 1.0, 0.2) for _ in range(n)), key=lambda problem: len(problem.text))
    answering, answers = common.load_student(str(student)), []
    for i in range(0, len(problems), 200):
        prompts = [common.prompt_ids(answering.tokenizer, stat_sel.question(problem.text)) for problem in problems[i:i + 200]]
        answers += [out["response"] for out in common.sample(answering, prompts, 1.0, 60, seed=i)]
    return rng, answering, list(zip(problems, answers, strict=True))


def make_prm(path: Path, student: Path, seed: int, scale: float) -> None:
    """Trains on the marks of sampled answers; saves to `path`."""
    if copied(path):
        return
    import stat_sel
    rng, answering, answers = sampled(student, seed, int(N_ANSWERS * scale))
    plus, minus, encoded = *answering.tokenizer.convert_tokens_to_ids(["+", "-"]), []
    for problem, text in answers:
        steps = stat_sel.split_steps(text)
        ids, at = stat_sel.chat_of_steps(answering.tokenizer, problem.text, steps)  # every mark in the text is "+", as when it scores
        labels = dict(zip(at, marks(problem, steps), strict=True))
        encoded.append((ids + [plus], [-100] + [{True: plus, False: minus, None: -100}[labels.get(t)] for t in range(len(ids))]))
    model = LlamaForCausalLM.from_pretrained(student)
    pretrain(path, model, AutoTokenizer.from_pretrained(student), [encoded * EPOCHS], rng, batch=32, peak=1e-3)


def make_reward(path: Path, student: Path, seed: int, scale: float) -> None:
    """A reward model for whole answers: the student's trunk under a head that was fitted, by logistic regression, to whether answers are right."""
    import torch
    from transformers import LlamaForSequenceClassification

    import common
    import stat_sel
    _, answering, answers = sampled(student, seed, int(N_ANSWERS * scale))
    tokenizer, model = answering.tokenizer, LlamaForSequenceClassification.from_pretrained(student, num_labels=1)
    chats = [common.apply_template(tokenizer, [*stat_sel.question(p.text), {"role": "assistant", "content": text}]) for p, text in answers]
    rows = [tokenizer(chat, add_special_tokens=False).input_ids for chat in chats]
    with torch.no_grad():
        hidden = torch.cat([model.model(*common.pad(rows[i:i + 100], "cpu")).last_hidden_state[
            torch.arange(len(rows[i:i + 100])), torch.tensor([len(row) - 1 for row in rows[i:i + 100]])] for i in range(0, len(rows), 100)])  # (N, d)
    is_right = torch.tensor([float(toy.check(p, text)["is_right"]) for p, text in answers])
    optimizer = torch.optim.LBFGS(model.score.parameters(), max_iter=200)

    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(model.score(hidden)[:, 0], is_right) + 1e-4 * model.score.weight.square().sum()
        value.backward()
        return value
    optimizer.step(loss)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
