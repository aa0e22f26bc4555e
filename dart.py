r"""DART: a mapper, trained by RL, rewrites fixed demonstrations into ones the
target can learn from.

Re-implemented from the abstract and third-party summaries: the paper's body
could not be read. What these do not say is marked ours. A component called
"logical density filtering" is not built: only its name is known.
Paper   Sun, Wang, Zhang, Wu, Zhang, Peng, Wu, "Learning to Adapt SFT Data for
        Better Reasoning Generalization", arXiv 2605.26924v1 (not DART-Math)
Steps   1 prepare    how likely the target finds each demonstration, L_raw, and
                     its own right answers, L_on
        2 map        the mapper is trained by GRPO to rewrite: right, likely
                     under the target, no cheating
        3 synthesise K rewrites of each demonstration; of those that pass the
                     likeliest is taken, the demonstration itself where none
                     passes
        4 train      the target, by plain SFT (QLoRA) on the result
        5 test       in distribution, out of distribution, and retention: what
                     the target could do before
Names   D = {(x, y, a)} = demonstrations: problem, solution, answer; y' =
        rewrite, of the mapper M; pi_T = the target before training; L(y') =
        mean log-probability of a token of y' under pi_T, which is shown x
        alone, as in training and testing; G = group, K = n_rewrites.
Adapters  One base is in memory, with one LoRA adapter or none. Switched
        on: the mapper where it samples and learns, the target's where it is
        trained and tested. Switched off, or not there: the base, which is pi_T
        (L_raw, L_on, L(y'), uplift) and GRPO's reference policy (KL).
Arms    base       the target as it is
        sft        SFT on y
        prompt     SFT on rewrites of the mapper before any training, verified
                   and chosen in the same way
        dart       DART
        dropped    SFT on DART's rewrites alone: demonstrations without one are
                   left out
        best_of_n  as prompt, with as many rewrites as DART's generated tokens
                   buy
        rejection  SFT on the likeliest of the target's own right answers, y
                   where there is none (near STaR)
        grpo       GRPO on the target itself, reward 1 for a right answer
Budget  best_of_n, rejection and grpo may generate as many tokens as DART did
        in steps 1, 2 and 3, or --budget-tokens. They stop after the pass over
        D, or the GRPO step, that reaches it. Step 1 counts for each arm that
        uses it; tests, and what is only scored, do not count.
Change  the reward: judge, reward and choose; the arm grpo's own stands in
        reinforce. The RL loss: advantages and grpo_loss. Your data: a folder
        with train.jsonl and test.jsonl, rows problem, solution, answer.
Run     python dart.py                              # GSM8K, one GPU
        python dart.py --data math --levels 3 4 5 --ood svamp prontoqa \
            bbh_boolean_expressions bbh_web_of_lies arc_challenge \
            --retention amc23 --out runs/dart_math  # sets of the paper's
        python dart.py --no-penalty --arms base dart --out runs/no_penalty
        python plot.py runs/dart                    # also while it runs
        python -m toyworld dart                     # no GPU, minutes
        The STAT paper's +GRPO: docs/stat.md has the command.
Writes  runs/dart/ args.json env.json 0_fingerprint.json 0_questions.jsonl
        1_own.jsonl 1_levels.jsonl 2_steps_<mapper, grpo>.jsonl
        2_rollouts_<mapper, grpo>.jsonl 3_rewrites_<arm>.jsonl 3_own_<i>.jsonl
        3_judged_rejection.jsonl 3_chosen_<arm>.jsonl 4_data_<arm>.json
        train_<arm>.jsonl loss_<arm>.jsonl loss_<arm>_<lr>.jsonl
        adapter/<mapper, arm, mapper_last, grpo_last, grpo_1, ...>/
        5_heldout_<arm>_<lr>.jsonl 5_answers_<arm>_<set>.jsonl
        5_test_<arm>.jsonl metrics.jsonl result.json
"""
import contextlib
import functools
import itertools
import json
import math
import random
import re
import shutil
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.utils.checkpoint
from tqdm import tqdm

import common
from common import UserError

# May differ between the starts of one run. The batch sizes move the draws of dropout and of sampling: what is
# there already is kept.
MAY_CHANGE = ("micro_batch", "sample_batch", "checkpointing", "save_every")
ORDER = ("base", "sft", "prompt", "dart", "dropped", "best_of_n", "rejection", "grpo")  # of the arms


@dataclass(frozen=True)
class Args:
    # Model:
    student: str = "Qwen/Qwen2.5-3B-Instruct"  # target, and mapper: Hub name or folder of a chat model
    adapter: str | None = None  # LoRA adapter that arms base and grpo start from; then without a KL term
    chat_template_kwargs: str | None = None  # JSON for the chat template, such as {"enable_thinking": false}
    bits: Literal[4, 16] = 4  # of the base; 16 (32 on a CPU) is faster, for models up to 1.5B
    max_new_tokens: int = 512  # length limit of answers and rewrites (ours: for one night)

    # Data:
    data: str = "gsm8k"  # a name, or a folder with train.jsonl (D) and test.jsonl (in distribution)
    levels: tuple[int, ...] = ()  # only these levels, in D and in distribution; the paper's: MATH's 3 4 5
    ood: tuple[str, ...] = ("math_perturb_hard",)  # test sets out of distribution: names, or .jsonl files
    retention: tuple[str, ...] = ("math500",)  # test sets of what the target could do before
    n_demonstrations: int = 1000  # size of D, drawn from the train split (ours: for a night on one GPU)
    n_heldout: int = 50  # further ones, in no arm's data: they choose the GRPO step, and between several --lr
    limit: int | None = None  # test on so many questions of each set only: a quick look

    # Method:
    arms: tuple[Literal[ORDER], ...] = ("base", "sft", "prompt", "dart")  # see Arms
    rl_steps: int = 100  # of GRPO (ours, untuned on real models)
    prompts: int = 16  # demonstrations of a step (ours: some groups hold equal rewards and give no signal)
    group: int = 8  # G, rewrites of each (ours: fewer seldom hold right ones and wrong ones together)
    minibatch: int | None = None  # demonstrations of an update; default: all, so one update a step
    rl_lr: float = 2e-5  # constant (ours, untuned: a fifth of SFT's, because a policy gradient is noisier)
    clip: float = 0.2  # epsilon of the clipped ratio (GRPO); acts with --minibatch only
    beta: float = 0.01  # of the KL to the base (ours: below GRPO's 0.04, as rewriting is far from it)
    penalty: bool = True  # the rules against cheating in the reward; without it they are counted only
    reject_cheats: bool = False  # take no rewrite that cheats (ours: off, to see what the reward does)
    min_gap: float = 0.1  # no RL where L_on - L_raw is below (ours: these are in distribution already)
    eval_every: int | None = 20  # GRPO steps between tests on the held-out part; None: the last is used
    n_own: int = 4  # own answers sampled for L_on (ours: because the likelihood of one is noise)
    n_rewrites: int = 4  # K (ours: because one of four mostly passes)
    temperature: float = 0.7  # of rewrites and own answers (ours: because at 1 more of them slip)
    budget_tokens: int | None = None  # see Budget; default: as many as DART generates
    curve: int = 4  # equal parts of grpo's way, at whose ends it is tested

    # Training:
    lr: tuple[float, ...] = (1e-4,)  # peak, of SFT; of several each arm takes the best on the held-out part
    epochs: int = 3  # (ours, with all that follows of training: the STAT paper's, and all arms' alike)
    batch: int = 8  # pairs in an optimiser step
    micro_batch: int = 2  # pairs in a forward pass: lower it if memory is short
    max_tokens: int = 2048  # a training pair is cut after this many tokens
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05  # of SFT; 0 in GRPO (ours: the policy trained is the one that sampled)
    weight_decay: float = 0.1  # of SFT; 0 in GRPO (ours: the reward alone moves its weights)
    max_grad_norm: float = 0.3  # gradient clip, of SFT and of GRPO
    warmup: float = 0.03  # share of the steps, then cosine to zero
    checkpointing: bool = True  # gradient checkpointing: less memory, a third more time

    # Running:
    out: str = "runs/dart"  # run directory; the same command goes on where it stopped
    seed: int = 0  # moves everything that is drawn
    save_every: int = 10  # GRPO steps between checkpoints
    sample_batch: int = 128  # answers generated at once: lower it if memory is short


# --- Prompts (ours). ----------------------------------------------------------------------------------------
# Copied from stat_sel.STUDENT_PROMPT
STUDENT_PROMPT = "{problem}\n\nReason step by step and put the final answer in \\boxed{{}}."

MAPPER_PROMPT = """Here are a problem and a worked solution.

<problem>
{problem}
</problem>

<solution>
{solution}
</solution>

Write a complete, self-contained solution in your own way of reasoning. Do not mention the one above. Put the
final answer in \\boxed{{}}."""


# --- The reward: pure functions of texts and numbers. ------------------------------------------------------
def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.casefold())


def in_words(run: list | tuple) -> int:
    """Words of two letters or more in it: formulas repeat themselves without harm, sentences do not."""
    return sum(word.isalpha() and len(word) > 1 for word in run)


def kept(text: str, other: str) -> float:
    """Share of a text's neighbouring words that another has in this order, two words apart at most.

    ours: so, because moved sentences and words in between change little. Pairs of numbers
    and letters do not count; 0 where fewer than 8 do.
    >>> kept("it was a bright cold day in April once", "Once, in April: it was such a bright and cold day in")
    0.875
    """
    own, others = (re.findall(r"[^\W_]+", part.casefold()) for part in (text, other))
    found = {pair for gap in (1, 2, 3) for pair in zip(others, others[gap:], strict=False)}
    pairs = [pair for pair in zip(own, own[1:], strict=False) if in_words(pair)]
    return sum(pair in found for pair in pairs) / len(pairs) if len(pairs) >= 8 else 0.0


# How plain arithmetic comes from a text: a pattern, what takes its place, an example.
PLAIN = (
    (r"(?m)^ *[-*•] ", ""),  # of a list: - 48/2 = 24
    (r"\*\*", ""),  # bold: **48/2 = 24**
    (r"\\?[$€£]|\\left|\\right|\\[][(),;! ]", ""),  # \$24, $24$, \left(2+3\right)
    (r"\\(?:text|mathrm)\{([^{}]*)\}", r"\1"),  # 24\text{ clips}
    (r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))", ""),  # 1,200
    (r"\\[dt]?frac ?\{([^{}]*)\} ?\{([^{}]*)\}", r"((\1)/(\2))"),  # \frac{48}{2}
    (r"\\times\b|\\cdot\b|[×·⋅]|(?<=[\d) ])x(?= ?[\d(.])", "*"),  # 12 \times 5, 12 x 5
    (r"\b(?:times|multiplied by) (?=\d)", "*"),  # 12 times 5
    (r"\\div\b|÷|\bdivided by (?=\d)", "/"),  # 48 ÷ 2, 48 divided by 2
    (r"[−–]|\bminus (?=\d)", "-"),  # 72 − 24, 72 minus 24
    (r"\bplus (?=\d)", "+"),  # 48 plus 24
    (r"\\%| percent\b|(?<=\d) cents?\b", "%"),  # 20 percent; 75 cents = $0.75
    (r"(%|/ ?\d+\)*) of (?=\d)", r"\1*"),  # 20% of 50, 1/2 of 50
    (r"\\[a-z]+ ?|(?<=\d)[a-z]\b|/ ?\d+/\d+", "#"),  # not judged: \sqrt 16, 2x, 3 / 1/4
    (r" (?:is|are|was|equals?|makes?|gives?|leaves?)(?= [\d.]++(?! more| less))", "="),  # 48 plus 24 is 72
    (r"[^\S\n]+", " "))  # spaces
UNIT = r"(?: ?/ ?[a-z]{2,}| (?!and |or |is |so |squared )[a-z']{2,}){0,3}"  # 48 clips, 3 ticks/burr
BRACKET = r"\([^()=]{0,60}(?:\([^()=]{1,60}\)[^()=]{0,60}){0,4}\)"  # ((3-1)/(2)), none deeper
NUMBER = rf"(?:\d++(?:\.\d++)?+|\.\d++|{BRACKET})%?+{UNIT}"
SIDE = rf"{NUMBER}(?: ?[-+*/] ?{NUMBER})*"
BEFORE = r"(?<![^\s(\[:])(?<!\d:)(?<![-+*/^#\d] )(?!(?<=\d, )\d{3}\b)"  # not 9:30 + 2, - 3 + 2
AFTER = r"(?![^\s.,;:)\]])(?! ?[-+*/^(#]| [b-z]\b|:\d| \d|, \d{3}\b|\.\.)"  # not 5a, 5 - a, 14, 400, 3...
CHAIN = re.compile(f"{BEFORE}{SIDE}(?: ?= ?-?{SIDE})+{AFTER}")
OPERATION = re.compile(r"[\d)%] ?[-+*/]")
ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NAMED = {name: n for n, name in enumerate(ONES)} | {name: 10 * n for n, name in enumerate(TENS, 2)}
NAMED |= {f"{ten}-{one}": NAMED[ten] + NAMED[one] for ten in TENS for one in ONES[1:10]}
NUMBER_NAMES = re.compile(rf"\b({'|'.join(sorted(NAMED, key=len, reverse=True))})\b")  # the longest first
MEASURES = set("minute hour day week month year inche feet dozen".split())


def arithmetic(text: str) -> str:
    """The text in small letters, with signs for words and LaTeX, # for what is not judged."""
    text = NUMBER_NAMES.sub(lambda name: str(NAMED[name[0]]), text.casefold())
    for pattern, put in PLAIN:
        text = re.sub(pattern, put, text)
    return text


def values(side: str) -> set[Fraction]:
    """The exact worth of an expression, as percent count or not; nothing if it is no arithmetic."""
    if not re.fullmatch(r"(?!.*\*\*)[\d.%+*/() -]{1,200}", side):
        return set()  # eval below sees only numbers, brackets and + - * /
    side = re.sub(r"(\d*\.?\d+)(%?)", r"(Fraction('\1')\2)", side)
    try:
        return {Fraction(eval(text)) for text in {side.replace("%", ""), side.replace("%", "/100")}}
    except (SyntaxError, TypeError, ArithmeticError):
        return set()


def may_hold(left: str, right: str) -> bool:
    """Whether two sides may be equal: rounded or cut to the digits that the right one shows, to none only
    after a division. A share may be said to be worth something: 3/4 = 15.

    >>> may_hold("1/3", "0.3"), may_hold("1/4", "0.26"), may_hold("1/2", "50%"), may_hold("3.5+2", "5")
    (True, False, True, False)
    """
    number = right.removesuffix("%")
    lefts, rights = values(left), values(number)
    if not lefts or not rights:
        return True
    if number != right:
        lefts |= {100 * exact for exact in lefts}
    elif re.fullmatch(r"\d+/\d+", left) and min(lefts) < 1 <= min(rights):
        return True
    shown = re.fullmatch(r"-?(?:\d+|\d*\.(\d+))", number)
    is_rounded = shown and (shown[1] or "/" in left)
    step = Fraction(1, 10 ** len(shown[1] or "")) if is_rounded else 0  # of its last digit
    gaps = [(abs(a - b), abs(b) < abs(a)) for a in lefts for b in rights]
    return any(gap == 0 or gap < step and (is_cut or 2 * gap <= step) for gap, is_cut in gaps)


def false_equations(text: str) -> list[str]:
    """Operations with a false result, without units. Not judged: letters, a mere number on the left, an
    operation on the right in a longer chain, different units: 1 hour + 20 minutes = 80 minutes.

    >>> false_equations("7+8=15, 48 clips + 24 clips = 80 clips; 20% of 50 is 15. 2x + 3 = 7, 10/3 = 3.33")
    ['48 + 24=80', '20%*50=15']
    """
    out = []
    for chain in CHAIN.findall(arithmetic(text)):
        units = set(re.findall(r"[\d)] ([a-z]+?)s?\b", chain))
        if units & MEASURES and len(units) > 1 and re.search("[-+]", chain):
            continue
        sides = [re.sub(UNIT, "", side).strip() for side in chain.split("=")]
        for left, right in zip(sides, sides[1:], strict=False):
            is_result = len(sides) == 2 or not OPERATION.search(right)
            if is_result and OPERATION.search(left) and not may_hold(left, right):
                out.append(f"{left}={right}")
    return out


FIGURE = re.compile(r"(?s)\[asy\](?:(?!\[/?asy\]).)*\[/asy\]")
FORMULA = re.compile(r"[=+*/<>^\\#$]|\d ?- ?\d")
ANSWER = r"(solution|answer|response|result)\b"
MENTION = re.compile("|".join((
    rf"(?i)\b(reference|gold|given|provided|above|official|known|expected) {ANSWER}",  # the gold answer
    rf"\b{ANSWER} (given|provided|above|shown|key)\b(?! by)",  # the answer key
    rf"\b(told|given|know) that the (\w+ )?{ANSWER}",  # told that the answer
    r"\bthe (reference|key|demonstration|example)( (says|shows|gives)|,)")))  # as the key says


def sentences(text: str) -> list[str]:
    text = FIGURE.sub(" ", text).casefold()
    return [part.strip() for part in re.split(r"[.;!?](?:\s|$)|\n", text) if re.search(r"\w", part)]


def hard_fails(text: str, given: str, cut_off: bool) -> list[str]:
    """Why a rewrite is no self-contained solution at all: the names of the rules that it breaks.

    ours: all limits, because human solutions keep them: a quarter of the demonstration's words; a sentence
    fewer than 4 times, a formula 12; after the answer's sentence only a check with a formula.
    """
    text = FIGURE.sub(" ", text)
    start, end, _ = (common.read_boxes(text) or [(len(text), len(text), "")])[-1]
    n_before, n_after = len(words(text[:start])), len(words(text[end:]))
    later = " ".join(sentences("72" + text[end:])[1:])
    is_check = re.search(r"[\d=$\\]", later)
    found = words(text)
    runs = Counter(zip(*(found[i:] for i in range(8)), strict=False))
    return [name for name, broken in (
        ("cut off", cut_off),
        ("no answer", start == len(text)),
        ("too short", n_before < max(3, len(words(given)) // 4)),
        ("text after the answer", n_after > max(60, 2 * n_before) or later and not is_check),
        ("mentions the solution", MENTION.search(text)),
        ("repetition", any(n > 3 and in_words(run) > 4 or n > max(11, len(found) / 16)
                           for run, n in runs.items()))) if broken]


def has_working(text: str, problem: str = "") -> bool:
    """Whether a formula, or a number neither of the problem nor the answer, stands before the answer.

    >>> has_working("Twice 12 makes 24. \\\\boxed{25}"), has_working("Step by step. \\\\boxed{25}")
    (True, False)
    """
    start, _, answer = (common.read_boxes(text) or [(len(text), 0, "")])[-1]
    before = re.sub(r"\*\*|\$(?=\d|\W?$)", "", text[:start].casefold())
    new = set(re.findall(r"(?<!step )\b\d+", before)) - set(re.findall(r"\d+", f"{problem} {answer}"))
    return bool(new or FORMULA.search(before))


def cheats(text: str, problem: str, given: str) -> list[str]:
    """Ways to a high reward without a better demonstration: the names of the rules that fire.

    ours: all limits, because human solutions keep them, see experiments/cheating.py: they do not
    retell the problem nor say a sentence with other numbers, and half of their words are at work.
    """
    parts = sentences(text)
    told = [part for part in parts if not FORMULA.search(part)]
    filler = " ".join(part for part in told if not re.search(r"\d", part)).split()
    said = [re.sub(r"\d", "", part) if part in told else part for part in parts if in_words(words(part)) > 3]
    is_part = " ".join(words(text)) in " ".join(words(given))
    return [name for name, fires in (
        ("copy", is_part or kept(given, text) > 0.7 or kept(text, given) > 0.8),
        ("false equation", false_equations(text)),
        ("echo", kept(FIGURE.sub(" ", problem), " . ".join(told)) > 0.55),
        ("padding", len(set(said)) < len(said)),
        ("filler", len(filler) > max(30, len(text.split()) / 2)),
        ("no working", has_working(given) and not has_working(text, problem))) if fires]


def alignment(level: float, raw: float, on: float) -> float:
    """How far a rewrite has come from the demonstration's likelihood to that of own right answers, 0 to 1.

    ours: capped at on, because beyond it only low entropy would be paid, templates and short text.
    >>> alignment(-1.0, -2.0, -0.5), alignment(-3.0, -2.0, -0.5), alignment(-0.1, -2.0, -0.5)
    (0.6666666666666666, 0.0, 1.0)
    """
    return min(max((min(level, on) - raw) / (on - raw), 0.0), 1.0)


def reward(fails: list[str], is_right: bool, aligned: float, fired: list[str], penalty: bool = True) -> float:
    """-1 for a hard fail, to 0 for a wrong answer, 0.1 to 0.15 for a right one that cheats, else 0.2 to 1.

    ours: bands that no rules together can make overlap, because else a cheat could pay for a wrong answer, or
    likelihood for a cheat. Within a band each rule that fires costs: one cheat is better than two.
    >>> reward([], True, 1.0, []), reward([], True, 1.0, ["copy", "echo"]), reward([], False, 1.0, ["copy"])
    (1.0, 0.1, -0.1)
    """
    n = len(fired) if penalty else 0
    if fails:
        return -1.0
    if not is_right:
        return max(-0.5, 0.0 - 0.1 * n)  # not minus zero
    return max(0.1, 0.2 - 0.05 * n) if n else 0.2 + 0.8 * aligned


# --- GRPO (DeepSeekMath, arXiv 2402.03300, Eq. 3; token mean over the batch as in DAPO, arXiv 2503.14476). --
# ours: GRPO, because the abstract says no more than RL, and this needs no value model.
MIN_STD = 0.2  # ours: between the two heaps that groups form in the toy world, see docs/dart.md
N_SHOWN = 4  # rollouts of a step that are kept as text: the first of the first groups


def advantages(rewards: list[float]) -> list[float] | None:
    """Of the rewrites of one demonstration: (r - mean) / max(std, MIN_STD); None where all rewards are equal.

    ours: the floor, because else a few hundredths of alignment would count as much as right against wrong.
    >>> advantages([1.0, 0.0]), advantages([0.3, 0.3])
    ([1.0, -1.0], None)
    """
    if max(rewards) - min(rewards) < 1e-9:
        return None
    mean, std = statistics.fmean(rewards), statistics.pstdev(rewards)
    return [(r - mean) / max(std, MIN_STD) for r in rewards]


def k3(log_p: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """Schulman's estimate of KL(policy || reference) at each token: e^d - d - 1, d = log ref - log p."""
    return torch.expm1(ref - log_p) - (ref - log_p)  # exp(d) - d - 1 would be rounding at small d


def grpo_loss(log_p: torch.Tensor, old: torch.Tensor, ref: torch.Tensor, advantage: float, clip: float,
              beta: float) -> torch.Tensor:
    """beta times the KL minus clipped ratio times advantage, summed over one completion's tokens (n,)."""
    ratio = (log_p - old).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return (beta * k3(log_p, ref) - gain).sum()


class Completion(NamedTuple):
    """A rollout to learn from. old, ref: log-probabilities (n,) when it was sampled, and under the base."""
    ids: list[int]  # tokens of prompt and completion
    n_prompt: int  # how many are the prompt's
    old: torch.Tensor
    ref: torch.Tensor
    advantage: float


def distributions(model, pairs: list[tuple[list[int], int]], device):
    """For each completion log p of the whole vocabulary, (n, V), and its tokens, (n,), end token included.

    pairs: tokens of prompt and completion, and how many are the prompt's. Logits only of the completion; the
    head and the softmax in float32, because bfloat16 logits are off by up to a tenth.
    """
    ids, mask = common.pad([ids for ids, _ in pairs], device)
    hidden = common.hidden_states(model, ids, mask)  # (B, T, d)
    head = model.get_base_model().lm_head if hasattr(model, "get_base_model") else model.lm_head
    weight, bias = head.weight.float(), None if head.bias is None else head.bias.float()
    for i, (row, n) in enumerate(pairs):
        states = hidden[i, n - 1:len(row) - 1].float()  # (n, d)
        yield torch.nn.functional.linear(states, weight, bias).log_softmax(-1), ids[i, n:len(row)]


def token_log_probs(model, pairs: list[tuple[list[int], int]], device) -> list[torch.Tensor]:
    """log p of each token of each completion, (n,) each."""
    return [log_p.gather(1, y[:, None])[:, 0] for log_p, y in distributions(model, pairs, device)]


def without_adapter(model):
    return model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext()


@torch.no_grad()
def levels(args, student: common.Student, problems: list[str], texts: list[str]) -> list[torch.Tensor]:
    """Log-probabilities under pi_T of the tokens of each text as an answer to its problem."""
    pairs = [encode(student, [*question(problem), {"role": "assistant", "content": text}], 10**6)
             for problem, text in zip(problems, texts, strict=True)]
    order, out, model = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0])), {}, student.model.eval()
    for part in tqdm(batches_of(args, order), desc="score", unit="batch", disable=len(order) <= 1000 or None):
        with without_adapter(model):
            found = token_log_probs(model, [pairs[i] for i in part], student.device)
        out |= {i: log_p.cpu() for i, log_p in zip(part, found, strict=True)}
    return [out[i] for i in range(len(pairs))]


def judge(args, student: common.Student, rows: list[dict], outs: list[dict]) -> list[dict]:
    """The reward of each rewrite and its parts. rows: demonstrations with their "raw" and "on"."""
    found = levels(args, student, [row["problem"] for row in rows], [out["response"] for out in outs])
    judged = []
    for row, out, log_p in zip(rows, outs, found, strict=True):
        text, level = out["response"], log_p.mean().item()
        fails = hard_fails(text, row["solution"], out["cut_off"])
        fired = cheats(text, row["problem"], row["solution"])
        is_right = common.score(text, row["answer"], row["problem"]) is True
        aligned = alignment(level, row["raw"], row["on"]) if row["on"] > row["raw"] else 1.0
        judged.append({"reward": reward(fails, is_right, aligned, fired, args.penalty), "fails": fails,
                       "cheats": fired, "is_right": is_right, "level": level, "capped": min(level, row["on"]),
                       "align": aligned, "n_scored": len(log_p)})
    return judged


def solves(row: dict, out: dict) -> bool:
    """Whether a completion ends by itself and has the right answer."""
    return not out["cut_off"] and common.score(out["response"], row["answer"], row["problem"]) is True


def n_generated(outs: list[dict]) -> int:
    """Tokens that were sampled for these completions, end tokens among them."""
    return sum(out["n_tokens"] + (not out["cut_off"]) for out in outs)


class Task(NamedTuple):
    """What GRPO trains for: ask(row) is the chat to complete, rate(rows, outs) gives each {"reward", ...}."""
    name: str
    ask: object
    rate: object


def roll_out(args, student, task: Task, rows: list[dict], n: int, temperature: float, *seeds) -> tuple:
    """n completions to each row: the rows, repeated, their prompts' tokens, the completions, the ratings."""
    drawn = [row for row in rows for _ in range(n)]
    prompts = [ids for row in rows for ids in [common.prompt_ids(student.tokenizer, task.ask(row))] * n]
    outs = []
    for i, batch in enumerate(batches_of(args, prompts)):
        seed = common.torch_seed(args.seed, task.name, *seeds, i)
        outs += common.sample(student, batch, temperature, args.max_new_tokens, seed, log_probs=True)
    return drawn, prompts, outs, task.rate(drawn, outs)


@torch.no_grad()
def policy(args, student, pairs: list[tuple[list[int], int]]) -> tuple[list, list, list]:
    """Of each completion log p (n,) and entropy (n,) under the policy as it is, and log p (n,) under pi_T."""
    old, entropy, ref, model = [], [], [], student.model.train()  # as in update; there is no dropout
    for i in range(0, len(pairs), args.micro_batch):
        part = pairs[i:i + args.micro_batch]
        for log_p, y in distributions(model, part, student.device):
            old.append(log_p.gather(1, y[:, None])[:, 0])
            entropy.append(-(log_p.exp() * log_p).sum(1))
        with without_adapter(model):
            ref += token_log_probs(model, part, student.device)
    return old, entropy, ref


def update(args, student: common.Student, optimizer, signal: list[Completion], beta: float) -> float:
    """One optimiser step; the norm of its gradient before it is clipped."""
    model, n_tokens = student.model.train(), sum(len(one.old) for one in signal)  # train: for checkpointing
    for i in range(0, len(signal), args.micro_batch):
        part = signal[i:i + args.micro_batch]
        log_probs = token_log_probs(model, [(one.ids, one.n_prompt) for one in part], student.device)
        loss = sum(grpo_loss(log_p, one.old, one.ref, one.advantage, args.clip, beta)
                   for log_p, one in zip(log_probs, part, strict=True))
        (loss / n_tokens).backward()
    weights = [p for p in model.parameters() if p.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(weights, args.max_grad_norm).item()
    optimizer.step()
    optimizer.zero_grad()
    return norm


def grpo_step(args, student, optimizer, task: Task, batch: list[dict], beta: float, step: int) -> tuple:
    """G rollouts of each row, advantages within each group, the updates; what is logged, and the rollouts.

    A completion that is cut off is punished as a wrong one or a hard fail; it is not masked. With one update
    a step its ratio is 1, and the gradient is the plain policy gradient. With --minibatch the later updates
    meet rollouts of earlier weights: there the clip acts.
    """
    drawn, prompts, outs, rated = roll_out(args, student, task, batch, args.group, 1.0, step)
    pairs = [(prompt + out["tokens"], len(prompt)) for prompt, out in zip(prompts, outs, strict=True)]
    old, entropy, ref = policy(args, student, pairs)
    groups, stds, norms = [], [], []
    for i in range(0, len(drawn), args.group):
        rewards = [one["reward"] for one in rated[i:i + args.group]]
        found = advantages(rewards) or []  # a group of equal rewards is left out
        groups.append([Completion(*pairs[i + j], old[i + j], ref[i + j], a) for j, a in enumerate(found)])
        stds.append(statistics.pstdev(rewards))
    size = args.minibatch or len(batch)
    for i in range(0, len(batch), size):
        if signal := [one for group in groups[i:i + size] for one in group]:
            norms.append(update(args, student, optimizer, signal, beta))
    gaps = [torch.tensor(out["log_probs"]) - log_p.cpu() for out, log_p in zip(outs, old, strict=True)]
    deciles = statistics.quantiles(stds, n=10, method="inclusive") if len(stds) > 1 else stds * 9
    row = {"step": step, **summary(rated, outs), "entropy": torch.cat(entropy).mean().item(),
           "kl": k3(torch.cat(old), torch.cat(ref)).mean().item(),
           "sampler_gap": torch.cat(gaps).abs().mean().item(), "grad_norm": statistics.fmean(norms or [0.0]),
           "signal": sum(map(bool, groups)) / len(groups), "std": [deciles[0], deciles[4], deciles[8]]}
    texts = [{"step": step, "id": drawn[i]["id"], "response": outs[i]["response"], **rated[i]}
             for i in range(0, len(drawn), args.group)][:N_SHOWN]
    return row, texts


def summary(rated: list[dict], outs: list[dict]) -> dict:
    """What is logged of any rollouts: means of the ratings, shares of the rules, lengths, tokens."""
    means = [key for key in ("reward", "is_right", "align") if key in rated[0]]
    row = {key: statistics.fmean(one[key] for one in rated) for key in means}
    for kind in ("fails", "cheats"):
        fired = Counter(rule for one in rated for rule in one.get(kind, []))
        row[kind] = {rule: n / len(rated) for rule, n in sorted(fired.items())}
    return row | {"length": statistics.fmean(out["n_tokens"] for out in outs),
                  "cut_off": statistics.fmean(out["cut_off"] for out in outs), "generated": n_generated(outs),
                  "scored": sum(one.get("n_scored", 0) for one in rated)}


def rows_of_step(args, task: Task, rows: list[dict], step: int) -> list[dict]:
    """--prompts rows for step 1, 2, ...: all once an epoch, each epoch in an order of its own."""
    n, size = len(rows), min(args.prompts, len(rows))

    def order(epoch):
        return common.rng(args.seed, task.name, epoch).sample(rows, n)
    first = (step - 1) * size
    return (order(first // n) + order(first // n + 1))[first % n:first % n + size]


def grpo(args, run, student: common.Student, task: Task, rows: list[dict], heldout: list[dict], beta: float,
         budget: int | None = None) -> None:
    """Trains the adapter of `student` by GRPO: adapter/<name>/, of the step that is best on `heldout`.

    It ends after --rl-steps, or with a budget when so many tokens have been generated, those on heldout among
    them; on the way grpo leaves adapter/grpo_1/, ... at i / --curve of that. Every --save-every steps
    adapter, optimiser and log are saved; what is drawn in a step follows from its number.
    2_steps_<name>.jsonl, and metrics.jsonl as it goes: a row for each step, with the keys of grpo_step and of
    summary; "held_out", where it was tested, is the mean reward there of the policy after that step.
    """
    import bitsandbytes as bnb
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    name, model, log = task.name, student.model, []
    eval_every = args.eval_every if heldout else None
    folder, shown = run.path / "adapter", run.path / f"2_rollouts_{name}.jsonl"
    checkpoint = folder / f"{name}.checkpoint.pt"
    folder.mkdir(exist_ok=True)

    def save(name):
        aside = folder / f"{name}.tmp"
        model.save_pretrained(aside)
        student.tokenizer.save_pretrained(aside)
        shutil.rmtree(folder / name, ignore_errors=True)  # of a start that was killed
        aside.rename(folder / name)

    def test(step) -> dict:
        """The policy on the held-out part, one completion each; the best so far is kept."""
        _, _, outs, rated = roll_out(args, student, task, heldout, 1, args.temperature, "heldout")
        found = summary(rated, outs)
        if found["reward"] > max((row["held_out"] for row in log if "held_out" in row), default=-math.inf):
            save(f"{name}_best")
        return {"step": step, "held_out": found["reward"], "generated": found["generated"],
                "scored": found["scored"]}
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):  # of an adapter that is gone on from
            module.p = 0.0
    if args.checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = bnb.optim.PagedAdamW8bit(weights, lr=args.rl_lr, weight_decay=0.0)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
        set_peft_model_state_dict(model, saved["adapter"])
        optimizer.load_state_dict(saved["optimizer"])
        log = saved["log"]
    lines = shown.read_text().splitlines(keepends=True) if shown.exists() else []
    texts = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be torn by a kill
    run.write(shown.name, [text for text in texts if text["step"] < len(log)])
    if not log:
        log.append(test(0) if eval_every else {"step": 0, "generated": 0, "scored": 0})
        run.log(grpo=name, **log[0])
    done = sum(row["generated"] for row in log) if budget else len(log) - 1
    goal = budget or args.rl_steps
    if budget and log[0]["generated"] >= budget:
        raise UserError(f"--budget-tokens {budget}: the held-out test before step 1 of {name} takes "
                        f"{log[0]['generated']} already; raise it, in another --out")
    bar = tqdm(total=goal, initial=done, desc=f"GRPO {name}", unit="token" if budget else "step")
    while done < goal:
        started, step, before = time.monotonic(), len(log), done
        batch = rows_of_step(args, task, rows, step)
        row, texts = grpo_step(args, student, optimizer, task, batch, beta, step)
        done += row["generated"] if budget else 1
        if eval_every and (step % eval_every == 0 or done >= goal):
            found = test(step)
            row["held_out"] = found["held_out"]
            row["generated"] += found["generated"]
            row["scored"] += found["scored"]
            done += found["generated"] if budget else 0
        passed = before if step > 1 else 0  # the test before step 1 may pass a point
        points = [i for i in range(1, args.curve) if passed < goal * i / args.curve <= done]
        if name == "grpo" and points:
            row["points"] = points
            for i in points:
                save(f"{name}_{i}")
        log.append(row)
        with open(shown, "ab") as f:
            common.append(f, "".join(json.dumps(text) + "\n" for text in texts))
        run.log(grpo=name, **row, seconds=round(time.monotonic() - started, 2), peak_gib=common.peak_gib())
        if step == 1:
            low, middle, high = row["std"]
            aligned = f", alignment {row['align']:.2f}" if "align" in row else ""
            print(f"  {name} before training, by step 1's rollouts: {row['is_right']:.0%} right{aligned}; "
                  f"{row['signal']:.0%} of the groups have unequal rewards; standard deviation in a group "
                  f"{low:.2f}, {middle:.2f}, {high:.2f} (deciles 1, 5, 9; floor {MIN_STD})")
        bar.update(done - before)
        bar.set_postfix(reward=f"{row['reward']:.2f}", right=f"{row['is_right']:.2f}")
        if step % args.save_every == 0:
            state = {"adapter": get_peft_model_state_dict(model), "optimizer": optimizer.state_dict()}
            common.save(state | {"log": log}, checkpoint)
    bar.close()
    run.write(f"2_steps_{name}.jsonl", log)
    if eval_every:
        tested = {row["step"]: row["held_out"] for row in log if "held_out" in row}
        best = max(tested, key=tested.get)
        print(f"  {name}: step {best} of {len(log) - 1} is the best on {len(heldout)} held out, mean reward "
              f"{tested[best]:.3f}; untrained {tested[0]:.3f}, last {log[-1]['held_out']:.3f}")
        save(f"{name}_last")
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / f"{name}_best").rename(folder / name)
    else:
        save(name)


# --- The steps, with files. ---------------------------------------------------------------------------------
def prepare(row: dict) -> dict:
    """A demonstration that ends in the common form of an answer (ours: else sft would fail by form alone)."""
    solution = row["solution"]
    if not common.read_boxes(solution):
        solution = f"{solution.rstrip()}\nThe answer is \\boxed{{{row['answer']}}}."
    return {"id": row["id"], "problem": row["problem"], "solution": solution, "answer": row["answer"]}


def measure(args, run, load, rows: list[dict], own: dict[str, list[dict]]) -> list[dict]:
    """Step 1: the demonstrations with their L_raw, "raw", and L_on, "on".

    on: the mean over the target's own right answers to it; where it has none, the median of the others (ours:
    because these are what the target's distribution looks like where it is right).
    """
    by_id = {row["id"]: row for row in rows}
    right = [(row["id"], i, out["response"])
             for row in rows for i, out in enumerate(own[row["id"]]) if solves(row, out)]
    all_own = [out for outs in own.values() for out in outs]
    n_own, n_cut = len(all_own), sum(out["cut_off"] for out in all_own)
    if not right:
        raise UserError(f"{run.path}/1_own.jsonl: none of {n_own} own answers is right ({n_cut} cut off), so "
                        "L_on is not known; take a stronger --student or easier --data, or raise "
                        "--max-new-tokens")
    broken = Counter()
    for row_id, _, text in right:
        problem, given = by_id[row_id]["problem"], by_id[row_id]["solution"]
        broken.update(hard_fails(text, given, False) + cheats(text, problem, given))
    print(f"  {len(right)} of {n_own} own answers are right, {n_cut} are cut off; rules that the right ones "
          f"break: {dict(broken)}")  # if many, the rules do not fit this model
    texts = {(row["id"], None): row["solution"] for row in rows}
    texts |= {(row_id, i): text for row_id, i, text in right}
    order = sorted(texts, key=lambda key: (len(texts[key]), str(key)))
    items = [{"id": row_id, "sample": i} for row_id, i in order]

    def make(batch):
        problems = [by_id[item["id"]]["problem"] for item in batch]
        found = levels(args, load(), problems, [texts[item["id"], item["sample"]] for item in batch])
        return [item | {"level": log_p.mean().item(), "n_scored": len(log_p)}
                for item, log_p in zip(batch, found, strict=True)]
    raw, on = {}, {}
    for row in run.batches("1_levels.jsonl", batches_of(args, items), make, unit="text"):
        if row["sample"] is None:
            raw[row["id"]] = row["level"]
        else:
            on.setdefault(row["id"], []).append(row["level"])
    on = {row_id: statistics.fmean(some) for row_id, some in on.items()}
    median = statistics.median(on.values())
    return [row | {"raw": raw[row["id"]], "on": on.get(row["id"], median)} for row in rows]


def batches_of(args, items: list) -> list[list]:
    return [items[i:i + args.sample_batch] for i in range(0, len(items), args.sample_batch)]


def rewriting(row: dict) -> list[dict]:
    """The mapper's chat."""
    content = MAPPER_PROMPT.format(problem=row["problem"], solution=row["solution"])
    return [{"role": "user", "content": content}]


def rewrite_all(args, run, name: str, load, rows: list[dict], n: int) -> list[dict]:
    """n rewrites of each demonstration by the mapper that load() gives, judged; written batch by batch."""
    by_id = {row["id"]: row for row in rows}
    order = sorted(rows, key=lambda row: (len(row["problem"] + row["solution"]), row["id"]))
    items = [{"id": row["id"], "sample": i} for row in order for i in range(n)]

    def make(batch):
        given = [by_id[item["id"]] for item in batch]
        prompts = [common.prompt_ids(load().tokenizer, rewriting(row)) for row in given]
        seed = common.torch_seed(args.seed, name, batch[0]["id"], batch[0]["sample"])
        outs = common.sample(load(), prompts, args.temperature, args.max_new_tokens, seed)
        return [item | {key: out[key] for key in ("response", "n_tokens", "cut_off")} | one
                for item, out, one in zip(batch, outs, judge(args, load(), given, outs), strict=True)]
    return run.batches(name, batches_of(args, items), make, unit="rewrite")


def choose(rows: list[dict], rewrites: list[dict], reject_cheats: bool = False) -> list[dict]:
    """Step 3's end: of the rewrites with a right answer and no hard fail the likeliest; y if there is none.

    ours: the likeliest, because so GRAPE (arXiv 2502.04194) chooses; ties at the cap go to the first, because
    beyond it the likelihood says nothing.
    """
    best = {}
    for one in rewrites:
        passes = one["is_right"] and not one["fails"] and not (reject_cheats and one["cheats"])
        if passes and (one["id"] not in best or one["capped"] > best[one["id"]]["capped"]):
            best[one["id"]] = one
    chosen = []
    for row in rows:
        given = {key: row[key] for key in ("id", "problem", "answer", "solution")} | {"from": "given"}
        one = best.get(row["id"])
        chosen.append(given | {"solution": one["response"], "from": "rewrite"} if one else given)
    return chosen


def before_answer(text: str, answer: str, problem: str) -> str:
    """A solution without its answer: all that stands before it is said for the first time.

    ours: if the problem gives the same number, before it first follows a "=", else before its last mention,
    because the others may be the problem's; if it is said in the last box alone, up to that.
    >>> before_answer("12+7=19, 19+9=28. \\\\boxed{28}", "28", "12+7+9?")
    '12+7=19, 19+9='
    """
    boxes = common.read_boxes(text)
    head = text[:boxes[-1][0]] if boxes else text
    with_commas = f"{int(answer):,}" if answer.isdecimal() else answer
    spelt = rf"(?<![\w.,])({re.escape(answer)}|{re.escape(with_commas)})(?!\w|[.,]\d)"
    found = [one.start() for one in re.finditer(spelt, head)]
    if re.search(spelt, problem):
        found = [at for at in found if re.search(r"=[^\w=]*$", head[:at])] or found[-1:]
    return head[:found[0]] if found else head + "\\boxed{"


@torch.no_grad()
def uplift(args, student: common.Student, chosen: list[dict]) -> list[float]:
    """log p_T(a | x, y' without its answer) - log p_T(a | x): what the reasoning says of the answer.

    It stands outside the reward. student: pi_T.
    """
    def log_p(heads):
        pairs = []
        for row, text in zip(chosen, heads, strict=True):
            prompt = common.prompt_ids(student.tokenizer, question(row["problem"]))
            head, answer = student.tokenizer([text, row["answer"]], add_special_tokens=False).input_ids
            pairs.append((prompt + head + answer, len(prompt + head)))
        return [one.sum().item() for batch in batches_of(args, pairs)
                for one in token_log_probs(student.model.eval(), batch, student.device)]
    with_reasoning = log_p([before_answer(row["solution"], row["answer"], row["problem"]) for row in chosen])
    return [a - b for a, b in zip(with_reasoning, log_p(["\\boxed{"] * len(chosen)), strict=True)]


def describe(args, load, rows: list[dict], chosen: list[dict]) -> dict:
    """What an arm's training data is like: likelihoods of all; cheats and uplift of the rewrites."""
    student = load()
    found = levels(args, student, [row["problem"] for row in chosen], [row["solution"] for row in chosen])
    given = {row["id"]: row["solution"] for row in rows}
    written = [row for row in chosen if row["from"] == "rewrite"] or chosen
    fired = Counter(rule for row in written
                    for rule in cheats(row["solution"], row["problem"], given[row["id"]]))
    n_unlikely = sum((log_p < math.log(0.01)).sum().item() for log_p in found)
    return {"n": len(chosen), "log_prob": statistics.fmean(log_p.mean().item() for log_p in found),
            "unlikely": n_unlikely / sum(map(len, found)),
            "fallback": sum(row["from"] == "given" for row in chosen) / len(chosen),
            "cheats": {rule: n / len(written) for rule, n in sorted(fired.items())},
            "uplift": statistics.fmean(uplift(args, student, written))}


def file_stem(name: str) -> str:
    """What stands for a set in a file's name."""
    return re.sub(r"\W+", "_", Path(name).stem)


def evaluate_sets(args, run, arm: str, load, tests: dict[str, list[dict]]) -> list[dict]:
    """Whether the arm answers each test question rightly, at temperature 0; None: it gives no answer."""
    def make():
        out = []
        for name, rows in tests.items():
            file = f"5_answers_{arm}_{file_stem(name)}.jsonl"
            found = common.answer(args, run, file, load, rows, question, 0.0)
            for row in rows:
                one = found[row["id"]][0]
                out.append({"id": row["id"], "set": name, "cut_off": one["cut_off"],
                            "is_right": common.score(one["response"], row["answer"], row["problem"])})
        return out
    rows = run.step(f"5_test_{arm}.jsonl", make)
    if n_cut := sum(row["cut_off"] for row in rows):
        print(f"  {arm}: {n_cut} of {len(rows)} test answers were cut off at --max-new-tokens "
              f"{args.max_new_tokens}")
    return rows


# --- Copied from stat_sel.py, where they are explained: the student. ---------------------------------------
# Copied from stat_sel.question
def question(problem: str) -> list[dict]:
    """The chat that asks a problem, the same for answering, training and testing."""
    return [{"role": "user", "content": STUDENT_PROMPT.format(problem=problem)}]


# Copied from stat_sel.end_once
def end_once(student: common.Student, text: str) -> str:
    """An answer with its end behind it, once, even if the answer brought its own."""
    ends = (student.end, *(student.tokenizer.decode([i]) for i in student.stop_ids if i >= 0))
    while text.rstrip().endswith(ends):
        for end in ends:
            text = text.rstrip().removesuffix(end).rstrip()
    return text + student.end


# Copied from stat_sel.encode
def encode(student: common.Student, messages: list[dict], max_tokens: int) -> tuple[list[int], int] | None:
    """Tokens of a chat that ends in the answer to learn, and how many come before it.

    None if nothing of the answer is left within max_tokens.
    """
    prompt = common.prompt_ids(student.tokenizer, messages[:-1])
    answer = end_once(student, messages[-1]["content"])
    ids = prompt + student.tokenizer(answer, add_special_tokens=False).input_ids
    return (ids[:max_tokens], len(prompt)) if len(prompt) < max_tokens else None


# Copied from stat_sel.completion_loss
def completion_loss(model, pairs: list[tuple[list[int], int]], device) -> torch.Tensor:
    """Summed cross-entropy of the answers' tokens, the end token among them; logits are computed only there.

    ours: no loss on the prompts, because the student is never asked to write one; logits of 512 tokens at a
    time, made again for the gradient, because those of long answers would be most of the memory.
    """
    ids, mask = common.pad([ids for ids, _ in pairs], device)
    # target[b, t]: token t is one of the answer's; it is predicted at t - 1
    target = [[n <= t < len(row) for t in range(ids.shape[1])] for row, n in pairs]
    target = torch.tensor(target, device=device)  # (B, T)
    hidden, head = common.hidden_states(model, ids, mask), model.get_base_model().lm_head  # (B, T, d)
    states, wanted = hidden[:, :-1][target[:, 1:]], ids[:, 1:][target[:, 1:]]  # (n, d), (n,)

    def loss(states, wanted):
        return torch.nn.functional.cross_entropy(head(states).float(), wanted, reduction="sum")
    parts = zip(states.split(512), wanted.split(512), strict=True)
    return sum(torch.utils.checkpoint.checkpoint(loss, *part, use_reentrant=False) for part in parts)


# Copied from stat_sel.grouped_batches
def grouped_batches(lengths: list[int], size: int, rng: random.Random) -> list[list[int]]:
    """Shuffled batches of indices of similar length: shuffle, sort within chunks, shuffle the batches.

    ours: chunks of 50 batches, because that leaves their content nearly random and takes most padding away.
    """
    order, batches = rng.sample(range(len(lengths)), len(lengths)), []
    for start in range(0, len(order), 50 * size):
        chunk = sorted(order[start:start + 50 * size], key=lambda i: -lengths[i])
        batches += [chunk[i:i + size] for i in range(0, len(chunk), size)]
    return rng.sample(batches, len(batches))


# Copied from stat_sel.train
def train(args, run, student: common.Student, rows: list[dict], name: str, lr: float) -> None:
    """QLoRA on rows {"messages"}, the last of them the answer to learn (§C.1).

    Writes adapter/<name>/ and loss_<name>.jsonl. After every epoch adapter, optimiser, position and
    generator states are saved: killed and rerun, it goes on to the same weights.
    """
    import bitsandbytes as bnb
    import peft
    from transformers import get_cosine_schedule_with_warmup
    final, checkpoint = run.path / "adapter" / name, run.path / "adapter" / f"{name}.checkpoint.pt"
    pairs = [pair for row in rows if (pair := encode(student, row["messages"], args.max_tokens))]
    if len(pairs) < len(rows):
        print(f"  train {name}: {len(rows) - len(pairs)} pairs left out, their prompts alone reach "
              f"--max-tokens {args.max_tokens}")
    if not pairs:
        raise UserError(f"train {name}: no pair is left; raise --max-tokens (now {args.max_tokens})")
    torch.manual_seed(common.torch_seed(args.seed, "train"))  # ours: one draw, as arms are compared in pairs
    model = student.model
    if not isinstance(model, peft.PeftModel):
        model = peft.get_peft_model(model, peft.LoraConfig(
            r=args.lora_rank, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout,
            target_modules="all-linear", task_type="CAUSAL_LM"))
    if args.checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    weights = [p for p in model.parameters() if p.requires_grad]
    n_steps, losses, start = args.epochs * math.ceil(len(pairs) / args.batch), [], 0
    optimizer = bnb.optim.PagedAdamW8bit(weights, lr=lr, weight_decay=args.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(args.warmup * n_steps), n_steps)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
        peft.set_peft_model_state_dict(model, saved["adapter"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["rng"])
        torch.cuda.set_rng_state_all(saved["rng_cuda"][:torch.cuda.device_count()])
        losses, start = saved["losses"], saved["epoch"]
    model.train()
    n_before, started = len(losses), time.monotonic()
    bar = tqdm(total=n_steps, initial=len(losses), desc=f"train {name}", unit="step")
    for epoch in range(start, args.epochs):
        epoch_started, rng = time.monotonic(), common.rng(args.seed, "order", epoch)
        for batch in grouped_batches([len(ids) for ids, _ in pairs], args.batch, rng):
            # ours: the mean over the batch's tokens, because then micro-batches do not matter
            n_tokens, total = sum(len(pairs[i][0]) - pairs[i][1] for i in batch), 0.0
            for i in range(0, len(batch), args.micro_batch):
                part = [pairs[j] for j in batch[i:i + args.micro_batch]]
                loss = completion_loss(model, part, student.device) / n_tokens
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(weights, args.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(total)
            bar.update()
            bar.set_postfix(loss=f"{total:.3f}")
            common.say_left(f"train {name}", started, len(losses) - n_before, n_steps - len(losses))
        states = {"adapter": peft.get_peft_model_state_dict(model), "optimizer": optimizer.state_dict(),
                  "schedule": schedule.state_dict(), "rng": torch.get_rng_state(),
                  "rng_cuda": torch.cuda.get_rng_state_all(), "losses": losses, "epoch": epoch + 1}
        common.save(states, checkpoint)
        seconds = round(time.monotonic() - epoch_started, 1)
        run.log(train=name, epoch=epoch + 1, seconds=seconds, peak_gib=common.peak_gib())
    bar.close()
    run.write(f"loss_{name}.jsonl", [{"step": i, "loss": loss} for i, loss in enumerate(losses)])
    part = final.with_name(f"{name}.tmp")
    model.save_pretrained(part)
    student.tokenizer.save_pretrained(part)
    part.rename(final)


# --- The arms. ----------------------------------------------------------------------------------------------
def columns_of(args) -> dict[str, str]:
    """Refuses what cannot be done, before anything is loaded; the column of each test set."""
    common.check_args(args, warmup=1, lora_dropout=0.99, weight_decay=1, max_grad_norm=1e9, rl_lr=1, clip=1,
                      beta=1e9, min_gap=1e9, temperature=1e9)
    common.template_head(args.chat_template_kwargs)  # refuses what is not JSON
    if not all(0 < lr <= 1 for lr in args.lr):
        raise UserError(f"--lr: expected numbers above 0, at most 1, came {' '.join(map(str, args.lr))}")
    if args.group < 2:
        raise UserError("--group: expected at least 2, came 1: advantages are differences within a group")
    if args.minibatch and args.prompts % args.minibatch:
        raise UserError(f"--minibatch {args.minibatch}: expected a divisor of --prompts {args.prompts}")
    if args.data.endswith(".jsonl") or Path(args.data).is_file():
        raise UserError(f"--data {args.data}: expected a folder with train.jsonl and test.jsonl, or a name, "
                        "came one file; give its folder")
    if args.adapter and set(args.arms) - {"base", "grpo"}:
        raise UserError("--adapter: only the arms base and grpo start from one, came --arms "
                        f"{' '.join(args.arms)}; leave the others out")
    if "dart" not in args.arms:
        if "dropped" in args.arms:
            raise UserError("--arms dropped: it is trained on DART's rewrites; add the arm dart")
        if not args.budget_tokens and (bought := {"best_of_n", "rejection"} & set(args.arms)):
            raise UserError(f"--arms {' '.join(sorted(bought))}: they may generate as many tokens as DART; "
                            "add the arm dart, or give --budget-tokens")
    columns = {args.data: "in distribution"} | dict.fromkeys(args.ood, "out of distribution")
    columns |= dict.fromkeys(args.retention, "retention")
    if args.data == "math" and "math500" in columns:
        raise UserError("--ood, --retention: math500 is a part of --data math's test split; give another "
                        "set, such as --retention amc23")
    if len(columns) < 1 + len(args.ood) + len(args.retention):
        raise UserError("--data, --ood, --retention: expected each set once, came one twice; leave it out")
    if len({file_stem(name) for name in columns}) < len(columns):
        raise UserError("--data, --ood, --retention: expected file names that differ in letters or digits, "
                        f"came {', '.join(columns)}; rename one")
    for flag, name in (("--student", args.student), ("--adapter", args.adapter)):
        common.check_checkpoint(name, flag)  # now, not after hours
    return columns


def read_sets(args, columns) -> tuple[list[dict], list[dict], dict[str, list[dict]]]:
    """D, the demonstrations held out of it, the questions of each test set."""
    def load(name, split):
        wanted = args.levels if name == args.data else ()
        return [row for row in common.load(name, split) if not wanted or row["level"] in wanted]
    tests = {name: load(name, "test") for name in columns}
    pool = [prepare(row) for row in load(args.data, "train") if row["answer"] and row["solution"]]
    pool = common.without(pool, [row for rows in tests.values() for row in rows])
    if len(pool) < 2 or not tests[args.data]:
        raise UserError(f"--data {args.data}, --levels {args.levels}: expected questions with a solution "
                        f"and an answer, and tests, came {len(pool)} and {len(tests[args.data])}; check both")
    for name, rows in tests.items():
        n = min(args.limit or len(rows), len(rows))
        tests[name] = common.rng(args.seed, "limit", name).sample(rows, n)
    n_heldout = min(args.n_heldout, len(pool) // 4 or 1)
    n = min(args.n_demonstrations, len(pool) - n_heldout)
    rows = common.rng(args.seed, "demonstrations").sample(pool, n + n_heldout)
    print(f"D {n} demonstrations of {len(pool)}, {n_heldout} more are held out; tested on "
          + ", ".join(f"{len(some)} {columns[name]}" for name, some in tests.items()))
    return rows[:n], rows[n:], tests


def learnable(args, rows: list[dict]) -> list[dict]:
    """The demonstrations that are less likely than own right answers by --min-gap."""
    return [row for row in rows if row["on"] - row["raw"] >= args.min_gap]


def reinforce(args, run, load, rows: list[dict], heldout: list[dict], arm: str, budget: int | None) -> Path:
    """The adapter that GRPO makes: the mapper for the arm dart, for grpo the target itself."""
    from peft import LoraConfig, get_peft_model
    name, beta = "mapper" if arm == "dart" else arm, 0.0 if args.adapter else args.beta
    if not (run.path / "adapter" / name).exists():
        student = load(args.adapter, fresh=True)
        torch.manual_seed(common.torch_seed(args.seed, "adapter"))
        if not args.adapter:
            student = student._replace(model=get_peft_model(student.model, LoraConfig(
                r=args.lora_rank, lora_alpha=args.lora_alpha, lora_dropout=0.0, target_modules="all-linear",
                task_type="CAUSAL_LM")))
        if arm == "dart":
            rows, heldout = learnable(args, rows), learnable(args, heldout)
            task = Task(name, rewriting, functools.partial(judge, args, student))
        else:
            task = Task(name, lambda row: question(row["problem"]), lambda rows, outs: [
                {"reward": float(ok), "is_right": ok} for ok in map(solves, rows, outs)])
        grpo(args, run, student, task, rows, heldout, beta, budget)
    (run.path / "adapter" / f"{name}.checkpoint.pt").unlink(missing_ok=True)
    return run.path / "adapter" / name


def sample_own(args, run, load, rows: list[dict], own: dict, budget: int) -> list[dict]:
    """Own right answers for the arm rejection, judged: of step 1, and of passes over D until the budget."""
    found = [(row, out) for row in rows for out in own[row["id"]]]
    for i in itertools.count(1):
        if n_generated([out for _, out in found]) >= budget:
            break
        more = common.answer(args, run, f"3_own_{i}.jsonl", load, rows, question, args.temperature, 1)
        found += [(row, more[row["id"]][0]) for row in rows]
    right = [(row, out) for row, out in found if solves(row, out)]

    def make(batch):
        some = [right[item["id"]] for item in batch]
        judged = judge(args, load(), [row for row, _ in some], [out for _, out in some])
        return [item | {"row": row["id"], "response": out["response"]} | one
                for item, (row, out), one in zip(batch, some, judged, strict=True)]
    items = [{"id": i} for i in sorted(range(len(right)), key=lambda i: len(right[i][1]["response"]))]
    judged = run.batches("3_judged_rejection.jsonl", batches_of(args, items), make, unit="answer")
    return [one | {"id": one["row"]} for one in judged]


def make_data(args, run, load, rows, heldout, own: dict, arm: str, budget: int | None) -> list[dict]:
    """What an arm's target is trained on: {"id", "problem", "answer", "solution", "from"} (choose)."""
    if arm == "sft":
        return choose(rows, [])
    if arm == "dropped":
        if kept := [row for row in run.read("3_chosen_dart.jsonl") if row["from"] == "rewrite"]:
            return kept
        raise UserError("--arms dropped: no demonstration has a rewrite that passes; leave it out")
    if arm == "rejection":
        return choose(rows, sample_own(args, run, load, rows, own, budget), args.reject_cheats)
    if arm == "best_of_n":
        rewrites, n_own = [], n_generated([out for outs in own.values() for out in outs])
        while n_own + n_generated(rewrites) < budget:
            name = f"3_rewrites_{arm}_{len(rewrites) // len(rows)}.jsonl"
            rewrites += rewrite_all(args, run, name, load, rows, 1)
        return choose(rows, rewrites, args.reject_cheats)
    mapper = reinforce(args, run, load, rows, heldout, arm, None) if arm == "dart" else None
    rewrites = rewrite_all(args, run, f"3_rewrites_{arm}.jsonl", lambda: load(mapper), rows, args.n_rewrites)
    return choose(rows, rewrites, args.reject_cheats)


def fine_tune(args, run, load, heldout: list[dict], arm: str) -> None:
    """adapter/<arm>/: SFT on train_<arm>.jsonl; of several --lr that with most right answers on heldout."""
    adapters, n_right = run.path / "adapter", {}
    for lr in () if (adapters / arm).exists() else args.lr:
        name = arm if len(args.lr) == 1 else f"{arm}_{lr:g}"
        if not (adapters / name).exists():
            train(args, run, load(fresh=True), run.read(f"train_{arm}.jsonl"), name, lr)
        if len(args.lr) > 1:
            tested = functools.partial(load, adapters / name)
            found = common.answer(args, run, f"5_heldout_{name}.jsonl", tested, heldout, question, 0.0)
            n_right[lr] = sum(solves(row, found[row["id"]][0]) for row in heldout)
    if n_right:
        best = max(args.lr, key=n_right.get)
        print(f"  {arm}: learning rate {best:g}; right of {len(heldout)} held out, by rate: {n_right}")
        run.log(arm=arm, lr=best, n_right=n_right)
        shutil.copy(run.path / f"loss_{arm}_{best:g}.jsonl", run.path / f"loss_{arm}.jsonl")
        shutil.copytree(adapters / f"{arm}_{best:g}", adapters / f"{arm}.tmp", dirs_exist_ok=True)
        (adapters / f"{arm}.tmp").rename(adapters / arm)
    for checkpoint in adapters.glob(f"{arm}*.checkpoint.pt"):
        checkpoint.unlink()


def cost(run, arm: str) -> dict[str, int]:
    """What an arm cost, from the run's files: tokens generated, tokens scored for L, optimiser steps."""
    def rows(pattern):
        return [row for path in sorted(run.path.glob(pattern)) for row in run.read(path.name)]
    source = "dart" if arm == "dropped" else arm
    steps = rows({"dart": "2_steps_mapper.jsonl", "grpo": "2_steps_grpo.jsonl"}.get(source, "-"))
    own = rows("1_own.jsonl") if source in ("prompt", "best_of_n", "rejection", "dart") else []
    own += rows("3_own_*.jsonl") if arm == "rejection" else []
    rewrites, judged = rows(f"3_rewrites_{source}*.jsonl"), rows(f"3_judged_{source}.jsonl")
    scored = rewrites + judged + (rows("1_levels.jsonl") if rewrites or judged else [])
    return {"generated": n_generated(own + rewrites) + sum(row["generated"] for row in steps),
            "scored": sum(row["n_scored"] for row in scored) + sum(row["scored"] for row in steps),
            "rl_steps": max([row["step"] for row in steps], default=0),
            "sft_steps": len(rows(f"loss_{arm}.jsonl"))}


def to_pair(row: dict) -> dict:
    return {"messages": [*question(row["problem"]), {"role": "assistant", "content": row["solution"]}]}


def right_of(outcomes: dict[str, list[dict]], name: str) -> dict[str, list[bool]]:
    """For each arm whether it has each question of the test set right."""
    return {arm: [row["is_right"] is True for row in rows if row["set"] == name]
            for arm, rows in outcomes.items()}


def say_room(outcomes: dict[str, list[dict]], columns: dict[str, str]) -> None:
    """Before RL: whether these test sets could show a lead of DART over the best arm so far, in this one run.

    The half-width is that of the paired difference between the last two arms tested: 1.96 sqrt(share of
    questions on which they differ / n).
    """
    for name, column in columns.items():
        right = right_of(outcomes, name)
        *_, one, two = right.values()
        best, n = max(right, key=lambda arm: sum(right[arm])), len(one)
        half = 196 * math.sqrt(sum(a != b for a, b in zip(one, two, strict=True))) / n
        share = 100 * sum(right[best]) / n
        print(f"  {column}, {name}: {best} has {share:.1f} % of {n}, so a lead can be {100 - share:.1f} "
              f"points at most; one run tells leads above about {half:.1f}")


def main(args: Args) -> None:
    columns = columns_of(args)
    rows, heldout, tests = read_sets(args, columns)
    run, loaded = common.open_run(args, args.out, MAY_CHANGE), {}
    parts = {"D": rows, "held out": heldout} | {f"test {name}": some for name, some in tests.items()}
    common.check_questions(run, parts)
    run.step("0_questions.jsonl", lambda: [
        {"id": row["id"], "part": part.removeprefix("test "), "problem": row["problem"]}
        for part, some in parts.items() for row in some])

    def load(adapter=None, fresh=False):
        """The target under an adapter; one model is in memory at a time. fresh: to train, not kept."""
        if fresh or adapter not in loaded:
            loaded.clear()
            student = common.load_student(args.student, adapter, args.chat_template_kwargs, bits=args.bits)
            return student if fresh else loaded.setdefault(adapter, student)
        return loaded[adapter]
    own, n_learnable, budget, data, outcomes = {}, None, args.budget_tokens, {}, {}
    if set(args.arms) & {"prompt", "best_of_n", "rejection", "dart"}:
        both, n_rows = rows + heldout, len(rows)
        own = common.answer(args, run, "1_own.jsonl", load, both, question, args.temperature, args.n_own)
        n_own = n_generated([out for outs in own.values() for out in outs])
        if budget and budget <= n_own:
            raise UserError(f"--budget-tokens {budget}: step 1 alone has generated {n_own} tokens; give more")
        both = measure(args, run, load, both, own)
        rows, heldout = both[:n_rows], both[n_rows:]
        n_learnable = len(learnable(args, rows))
        raw, on = (statistics.fmean(row[key] for row in rows) for key in ("raw", "on"))
        print(f"  {n_learnable} of {n_rows} demonstrations are less likely than own right answers by "
              f"--min-gap {args.min_gap}; means: L_raw {raw:.2f}, L_on {on:.2f}")
        if "dart" in args.arms and not n_learnable:
            raise UserError("--arms dart: every demonstration is in distribution already, so the mapper has "
                            "nothing to learn; leave dart out")
    for arm in sorted(args.arms, key=ORDER.index):
        if arm == "dart" and len(outcomes) > 1:
            say_room(outcomes, columns)
        if arm == "grpo":
            reinforce(args, run, load, rows, heldout, arm, budget)
            for i in range(1, args.curve):
                point = run.path / "adapter" / f"grpo_{i}"
                evaluate_sets(args, run, point.name, functools.partial(load, point), tests)
        elif arm != "base":
            chosen = make_data(args, run, load, rows, heldout, own, arm, budget)
            chosen = run.step(f"3_chosen_{arm}.jsonl", lambda chosen=chosen: chosen)
            data[arm] = run.step(f"4_data_{arm}.json", functools.partial(describe, args, load, rows, chosen))
            print(f"  {arm}: {data[arm]}")
            run.step(f"train_{arm}.jsonl", functools.partial(list, map(to_pair, chosen)))
            fine_tune(args, run, load, heldout, arm)
        if arm == "dart":
            budget = budget or cost(run, arm)["generated"]
        adapter = args.adapter if arm == "base" else run.path / "adapter" / arm
        outcomes[arm] = evaluate_sets(args, run, arm, functools.partial(load, adapter), tests)
    reference = "sft" if "sft" in outcomes else next(iter(outcomes))
    for name, column in columns.items():
        print(f"\n{column}: {name}\n" + common.compare(right_of(outcomes, name), reference))
    run.write("result.json", {"method": "dart", "arms": list(args.arms), "columns": columns, "data": data,
                              "n": len(rows), "n_learnable": n_learnable,
                              "cost": {arm: cost(run, arm) for arm in args.arms}})
    print(f"{run.path}/result.json")


if __name__ == "__main__":
    common.cli(main, Args, __doc__)
