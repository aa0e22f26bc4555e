r"""The toy process reward model: a tiny Llama, trained on right and spoilt solutions to say after each step whether all is right so far.

It is read like the public models of its kind: in a chat whose user turns are "question step 1", "step 2", ..., and whose assistant turns are
"+", the reward of a step is P("+") / (P("+") + P("-")) where its mark is predicted. The last step is "The final answer is: \boxed{X}."
Unlike the student, it has seen all skills equally often.
"""
import random
import re
from pathlib import Path

from transformers import AutoTokenizer, LlamaForCausalLM

from toyworld import problems as toy
from toyworld.student import BATCH, draw_problem, make_model, pretrain

LAYERS, NEW = 4, 2
KINDS = ("skill", "misreading", "omission", "box", "result", "equation")
P_RIGHT = 0.75  # share of right solutions in training


def carry_on(steps: list[str], old: int, new: int) -> list[str]:
    """Steps that follow a step whose value came out as `new` instead of `old`: each is redone with the numbers that it then finds.

    >>> carry_on(["14+14=28", "28+5=33"], 14, 15)
    ['15+15=30', '30+5=35']
    """
    found, out = {old: new}, []
    for step in steps:
        a, op, b, result = re.fullmatch(r"(-?\d+)(\D+?)(-?\d+)=(-?\d+)", step).groups()
        left = f"{found.get(int(a), int(a))}{op}{found.get(int(b), int(b))}"
        value = toy.evaluate(left)
        out.append(step if value is None else f"{left}={value}")
        found[int(result)] = int(out[-1].split("=")[1])
    return out


def slip(rng: random.Random, number: int) -> int:
    """Another number, as a slip makes it: one digit wrong or dropped, or a little off."""
    sign, digits = -1 if number < 0 else 1, str(abs(number))
    i = rng.randrange(len(digits))
    others = [digits[:i] + d + digits[i + 1:] for d in ("", *"0123456789")]
    others = [number + d for d in (-10, -2, -1, 1, 2, 10)] + [sign * int(text or 0) for text in others]
    return rng.choice([n for n in others if n != number and (n >= 0 or number < 0)])


def spoil(rng: random.Random, problem: toy.Problem, kind: str) -> tuple[list[str], str]:
    """Steps and boxed answer as a weak student writes them; by chance they may be right.

    The procedure of another skill on the same numbers, a problem misread, a step left out, a wrong number boxed, a wrong result, or a true equation
    that is not called for; in the last two cases later steps mostly go on from the wrong value.
    """
    steps, answer = toy.solve(problem)
    steps, i = [step for step, _ in steps], rng.randrange(len(steps))
    seen = [int(n) for n in re.findall(r"\d+", problem.text + " " + " ".join(steps[:i]))]  # what a student could reach for
    if kind in ("skill", "misreading"):
        j = rng.randrange(len(problem.parts))
        skill, numbers = problem.parts[j]
        if kind == "skill":
            skill = rng.choice([other for other in toy.SKILLS if len(_slots(other)) == len(numbers)])
        else:
            k = rng.choice([k for k, n in enumerate(numbers) if n is not None] or [0])
            changed = max(1, rng.choice([*seen, slip(rng, seen[0])]))
            numbers = (*numbers[:k], changed, *numbers[k + 1:])
        parts = (*problem.parts[:j], toy.Part(skill, numbers), *problem.parts[j + 1:])
        steps, answer = toy.solve(problem._replace(parts=parts))
        return [step for step, _ in steps], answer
    if kind == "box":
        return steps, str(rng.choice([*seen, slip(rng, int(answer))]))
    if kind == "omission" and len(steps) > 1:
        steps = steps[:i] + steps[i + 1:]
        return steps, rng.choice([answer, steps[-1].split("=")[1]])
    left, value = steps[i].split("=")
    if kind == "result":
        wrong = f"{left}={slip(rng, int(value))}"
    else:
        left = f"{rng.choice(seen)}{rng.choice('++--*')}{rng.choice(seen)}"
        wrong = f"{left}={toy.evaluate(left)}"
    rest = steps[i + (kind == "result" or rng.random() < 0.7):]  # else the equation comes in between
    if rng.random() < 0.8:
        rest = carry_on(rest, int(value), int(wrong.split("=")[1]))
    steps = [*steps[:i], wrong, *rest]
    return steps, steps[-1].split("=")[1]


def _slots(skill: toy.Skill) -> set[str]:
    return set(re.findall(r"{(\w)}", skill.nouns[0]))


def marked(problem: toy.Problem, steps: list[str], answer: str, style: int) -> tuple[list[str], list[bool]]:
    """The steps of a solution as they are scored, the final answer among them, and for each whether all is right up to it."""
    right, right_answer = toy.solve(problem)
    right = [step for step, _ in right]
    lines = [*toy.write_solution(steps, answer, style).split("\n"), f"The final answer is: \\boxed{{{answer}}}."]
    is_right = [steps[:i] == right[:i] for i in range(1, len(steps) + 1)] + [steps == right and answer == right_answer] * 2
    return lines, is_right


def encode(tokenizer, problem: toy.Problem, steps: list[str], answer: str, style: int) -> tuple[list[int], list[int]]:
    """Tokens of the chat, every mark in it "+", and their labels.

    The label of a mark is "+" or "-". The other labels are there because a model of this size does not learn to judge from the marks alone: the text
    as it is while it is right, and "-" from the first wrong token on.
    """
    lines, is_right = marked(problem, steps, answer, style)
    right_lines, _ = marked(problem, [step for step, _ in toy.solve(problem)[0]], toy.solve(problem)[1], style)
    minus, end = tokenizer.convert_tokens_to_ids(["-", "<|end|>"])

    def chat(lines):
        lines = [f"{problem.text} {lines[0]}", *lines[1:]]
        messages = [{"role": role, "content": text} for line in lines for role, text in (("user", line), ("assistant", "+"))]
        return tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False).input_ids

    ids, right_ids = chat(lines), chat(right_lines)
    wrong = next((i for i, pair in enumerate(zip(ids, right_ids, strict=False)) if pair[0] != pair[1]), min(len(ids), len(right_ids)))
    labels = ids[:wrong] + right_ids[wrong:wrong + 1] + [minus] * (len(ids) - wrong)
    n = 1 + len(tokenizer(problem.text).input_ids)
    labels = [-100] * n + labels[n:len(ids)]
    return ids, [-100 if i == end else label for i, label in zip(ids, labels, strict=True)]


def make_prm(path: Path, student: Path, seed: int, steps: int) -> None:
    """Trains the model for `steps` optimiser steps and saves it to `path`."""
    rng = random.Random(f"prm {seed}")
    rows = []
    for _ in range(steps * BATCH):
        problem = draw_problem(rng, 1.0, 0.25)
        solved = ([step for step, _ in toy.solve(problem)[0]], toy.solve(problem)[1]) if rng.random() < P_RIGHT else spoil(rng, problem, rng.choice(KINDS))
        rows.append((problem, *solved, rng.randrange(4)))
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = make_model(tokenizer, LAYERS, seed)
    weights = LlamaForCausalLM.from_pretrained(student).state_dict()
    model.load_state_dict(weights, strict=False)
    for layer in model.model.layers[-NEW:]:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    pretrain(path, model, tokenizer, [encode(tokenizer, *row) for row in rows], rng)
