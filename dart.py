r"""DART: a mapper, trained by RL, rewrites fixed demonstrations into ones that the target model can learn from; the target is fine-tuned on these.

Re-implemented from the abstract and third-party summaries: the paper's body could not be read. What these do not say is marked ours.
Paper   Sun, Wang, Zhang, Wu, Zhang, Peng, Wu, "Learning to Adapt SFT Data for Better Reasoning Generalization", arXiv 2605.26924v1 (not DART-Math)
Steps   1 prepare    how likely the target finds each demonstration, L_raw, and its own right answers, L_on
        2 map        the mapper is trained by GRPO to rewrite: right, likely under the target, without cheating
        3 synthesise K rewrites of each demonstration, verified; the likeliest is taken, the demonstration itself where none passes
        4 train      the target, by plain SFT (QLoRA) on the result
        5 test       in distribution, out of distribution, and retention: what the target could do before
Names   D = {(x, y, a)} = demonstrations: problem, solution, answer; y' = rewrite, of the mapper M; pi_T = the target before training;
        L(y') = mean log-probability of a token of y' under pi_T, which is shown x alone, as in training and testing; G = group, K = n_rewrites.
Memory  One 4-bit base and one LoRA adapter at a time: pi_T and GRPO's reference policy are the base with the adapter switched off.
Arms    base       the target as it is
        sft        SFT on y
        prompt     SFT on rewrites of the mapper before any training, verified and chosen in the same way
        best_of_n  the same with as many rewrites as DART's generated tokens buy
        rejection  SFT on the target's own right answers, y where there is none, sampled at the same cost (rejection-sampling self-distillation)
        grpo       GRPO on the target itself, reward 1 for a right answer, at the same cost
        dart       DART
Cost    generated tokens. DART's are those of steps 1, 2 and 3; with --budget-tokens best_of_n, rejection and grpo can be run without it.
Change  the reward: judge, and choose; the arm grpo's own stands in reinforce. The RL loss: advantages and grpo_loss, for several updates a batch
        update. Your data: a folder with train.jsonl and test.jsonl, their rows problem, solution and answer, one that common.score can tell.
Run     python dart.py                                                                       # GSM8K's human solutions, one GPU
        python dart.py --no-penalty --arms base dart --out runs/dart_no_penalty              # without the rules against cheating
        python dart.py --student Qwen/Qwen2.5-3B --adapter runs/stat_sel/adapter/stat --data math --ood gsm8k --retention amc23 --arms base grpo
                       --budget-tokens 2000000 --out runs/grpo                               # "+GRPO" of the STAT paper
        python -m toyworld dart                                                              # no GPU, minutes
Writes  runs/dart/  args.json env.json 0_fingerprint.json
        0_questions.jsonl 1_own.jsonl 1_levels.jsonl 2_steps_<mapper, grpo>.jsonl
        3_rewrites_<arm>.jsonl
        (3_rewrites_best_of_n_<i>.jsonl, 3_own_<i>.jsonl) 3_chosen_<arm>.jsonl 4_data_<arm>.json train_<arm>.jsonl loss_<arm>.jsonl
        adapter/<mapper, arm, grpo_1, ...>/ 5_answers_<arm>_<set>.jsonl 5_test_<arm>.jsonl metrics.jsonl result.json
"""
import contextlib
import math
import random
import re
import shutil
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

import common
from common import UserError

# May differ between the starts of one run. The batch sizes move the draws of dropout and of sampling: what is there already is kept.
HOW = ("micro_batch", "sample_batch", "checkpointing", "save_every")


@dataclass(frozen=True)
class Args:
    student: str = "Qwen/Qwen2.5-3B-Instruct"  # target, and mapper: Hub name or folder of a chat model
    adapter: str | None = None  # LoRA adapter that arms base and grpo start from, such as runs/stat_sel/adapter/stat; without a KL term
    chat_template_kwargs: str | None = None  # JSON that every use of the student's chat template gets, such as {"enable_thinking": false}
    data: str = "gsm8k"  # "gsm8k", "math", or a folder with train.jsonl (D) and test.jsonl (in distribution)
    ood: tuple[str, ...] = ("math_perturb_hard",)  # sets to test on out of distribution: names as of --data, or .jsonl files
    retention: tuple[str, ...] = ("math500",)  # sets of what the target could do before
    n_demonstrations: int = 2000  # drawn from the train split (ours: fewer than GSM8K has, because time grows with them)
    limit: int | None = None  # test on so many questions of each set only: a quick look
    out: str = "runs/dart"  # run directory; the same command goes on where it stopped
    seed: int = 0  # moves everything that is drawn
    arms: tuple[Literal["base", "sft", "prompt", "best_of_n", "rejection", "grpo", "dart"], ...] = ("base", "sft", "prompt", "dart")  # see Arms

    rl_steps: int = 100  # steps of the mapper's GRPO (ours, untuned on real models: in the toy world the reward levels off after some 60)
    prompts: int = 16  # demonstrations of a step (ours: because some groups hold equal rewards and give no signal)
    group: int = 8  # G, rewrites of each (ours: because fewer seldom hold right ones and wrong ones together)
    rl_lr: float = 2e-5  # constant (ours, untuned: a fifth of SFT's, because a policy gradient is noisier)
    clip: float = 0.2  # epsilon of the clipped ratio (GRPO): of no effect with one update a batch, as here, where the ratio is 1
    beta: float = 0.01  # of the KL to the base, k3 (ours: below GRPO's 0.04, because rewriting is far from what the base does); 0 with --adapter
    penalty: bool = True  # the rules against cheating in the reward; without it they are counted only
    reject_cheats: bool = False  # take no rewrite on which such a rule fires (ours: off, because then it would hide what the reward teaches)
    min_gap: float = 0.1  # the mapper is not trained where L_on - L_raw is less (ours: because these demonstrations are in distribution already)
    save_every: int = 10  # GRPO steps between checkpoints
    n_own: int = 4  # own answers sampled for L_on (ours: because the likelihood of one is noise)
    n_rewrites: int = 4  # K (ours: because one of four mostly passes)
    temperature: float = 0.7  # of the K rewrites (ours: because at 1, as in training, more of them slip)
    budget_tokens: int | None = None  # generated tokens for best_of_n, rejection and grpo; default: as many as DART's
    curve: int = 4  # points at equal distances on the way to them at which grpo is tested, the end among them (ours: because each costs all tests)

    max_new_tokens: int = 1024  # length limit of an answer and of a rewrite (ours: because one that never ends holds up its whole batch)
    lr: float = 1e-4  # peak, of SFT (ours, untuned: common for LoRA; the same for all arms)
    epochs: int = 3  # (ours, with all that follows of training: because the STAT paper's settings are at hand, and are all arms' alike)
    batch: int = 8  # pairs in an optimiser step
    micro_batch: int = 2  # pairs in a forward pass: lower it if memory is short
    max_tokens: int = 2048  # a training pair is cut after this many tokens
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05  # of SFT; none in GRPO (ours: because with dropout the policy trained is not the one that sampled)
    weight_decay: float = 0.1  # of SFT; none in GRPO (ours: because its weights should leave the base for the reward alone)
    max_grad_norm: float = 0.3  # gradient clip, of SFT and of GRPO
    warmup: float = 0.03  # share of the steps, then cosine to zero
    checkpointing: bool = True  # gradient checkpointing: less memory, a third more time
    sample_batch: int = 32  # answers generated at once: lower it if memory is short


# --- Prompts (ours). --------------------------------------------------------------------------------------------------------------------------
# Copied from stat_sel.STUDENT_PROMPT
STUDENT_PROMPT = "{problem}\n\nReason step by step and put the final answer in \\boxed{{}}."

MAPPER_PROMPT = """Here are a problem and a worked solution.

<problem>
{problem}
</problem>

<solution>
{solution}
</solution>

Write a complete, self-contained solution in your own way of reasoning. Do not mention the one above. Put the final answer in \\boxed{{}}."""


# --- The reward: pure functions of texts and numbers. ------------------------------------------------------------------------------------------
def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.casefold())


def grams(text: str, n: int = 8) -> list[tuple[str, ...]]:
    """All runs of n words or signs of a text, in order."""
    found = words(text)
    return [tuple(found[i:i + n]) for i in range(len(found) - n + 1)]


def contained(text: str, other: str) -> float:
    """Share of the text's 8-grams that stand in another text; a shorter text is one gram.

    >>> contained("one two three", "one two three."), contained("one two three", "three two one")
    (1.0, 0.0)
    """
    n = max(1, min(8, len(words(text))))
    own, others = grams(text, n), set(grams(other, n))
    return sum(gram in others for gram in own) / len(own) if own else 0.0


def false_equations(text: str) -> list[str]:
    """Every sum, difference or product of two whole numbers that does not hold. Parts of longer expressions are not judged, nor are quotients.

    >>> false_equations("7+8=15, then 2*15=31 and 40 - 15 = 25; 1 + 2 + 3 = 6"), false_equations("\\\\(12×5=61\\\\)")
    (['2*15=31'], ['12 * 5=61'])
    """
    text, out = re.sub(r"\\[][()]|\*\*", "\n", text), []  # signs that only set a formula off
    text = re.sub(r" ?(\\times|\\cdot|×|(?<=\d) ?x(?= ?\d)) ?", " * ", re.sub(r"(?m)^\s*([*•]|\d+[.)])\s+", "", text))
    text = re.sub(r"(?<=\d),(?=\d{3}\b)|\\?\$", "", text)
    for run in re.finditer(r"(?:[\d+*/^()= -]|\.(?=\d))+", text):  # as long as it is nothing but arithmetic
        sides, before, after = run[0].split("="), text[:run.start()][-1:], text[run.end():][:1]
        glued = run[0][0] != " " and re.match(r"[\w:}\\]", before)  # to a letter, a time of day
        ends_free = run[0][-1] == " " or not re.match(r"[\w:%{\\]", after)
        for i, (left, right) in enumerate(zip(sides, sides[1:], strict=False)):
            sum_, c = re.fullmatch(r" *(\d+) *([-+*]) *(\d+) *", left), re.fullmatch(r" *(-?\d+) *", right)
            if sum_ and c and not (i == 0 and glued) and (ends_free or i < len(sides) - 2):
                x, op, y = sum_.groups()
                if {"+": int(x) + int(y), "-": int(x) - int(y), "*": int(x) * int(y)}[op] != int(c[1]):
                    out.append(f"{left.strip()}={c[1]}")
    return out


def in_words(gram: tuple[str, ...] | list[str]) -> int:
    """How many words of two letters or more are in it: formulas repeat themselves without harm, sentences do not."""
    return sum(word.isalpha() and len(word) > 1 for word in gram)


def hard_fails(text: str, given: str, cut_off: bool) -> list[str]:
    """Why a rewrite is no self-contained solution at all: the names of the rules that it breaks.

    ours: all limits, because with these fewer than one in a hundred of GSM8K's human solutions break a rule: a quarter of the demonstration's words;
    the rest of the answer's own sentence after it, of twenty words at most; a sentence said four times, a formula twelve.
    """
    boxes = common.read_boxes(text)
    before, after = (text[:boxes[-1][0]], text[boxes[-1][1]:]) if boxes else (text, "")
    rest, *more = (re.findall(r"\w+", part) for part in re.split(r"[.!?]\s+|\n", re.sub(r"\\(end|tag)\{[^}]*\}|\\[a-zA-Z]+", " ", after)))
    counts = Counter(grams(text))
    return [name for name, broken in (
        ("cut off", cut_off),
        ("no answer", not boxes),
        ("too short", len(words(before)) < max(3, len(words(given)) // 4)),
        ("text after the answer", len(rest) > 20 or any(more)),
        ("mentions the solution", bool(re.search(
            r"\b(reference|given|provided|above|worked) (solution|answer|response|reasoning)\b|\bsolution (given|provided|above|shown)\b", text,
            re.IGNORECASE))),
        ("repetition", any(n >= 4 and in_words(gram) >= 5 or n >= 12 for gram, n in counts.items()))) if broken]


def cheats(text: str, problem: str, given: str) -> list[str]:
    """Ways to a high reward without a better demonstration: the names of the rules that fire.

    ours: all limits. A copy with a word changed here and there still shares 0.8 of its 8-grams; a solution may take up the problem's terms, but not
    half of its sentences; nothing needs to be said twice.
    """
    parts = [part.strip().casefold() for part in re.split(r"[.;]\s|\n", text)]
    sentences = [part for part in parts if len(part) >= 12 and (in_words(words(part)) >= 3 or "=" in part)]
    asked, said = [gram for gram in grams(problem) if in_words(gram) >= 4], set(grams(text))
    return [name for name, fires in (
        ("copy", contained(text, given) > 0.8),
        ("false equation", bool(false_equations(text))),
        ("echo", sum(gram in said for gram in asked) > 0.5 * len(asked)),
        ("padding", len(set(sentences)) < len(sentences))) if fires]


def alignment(level: float, raw: float, on: float) -> float:
    """How far from the demonstration's likelihood to that of the target's own right answers a rewrite has come, 0 to 1.

    ours: capped at on, because beyond it only low entropy would be paid, templates and short text, which is no alignment.
    >>> alignment(-1.0, -2.0, -0.5), alignment(-3.0, -2.0, -0.5), alignment(-0.1, -2.0, -0.5)
    (0.6666666666666666, 0.0, 1.0)
    """
    return min(max((min(level, on) - raw) / (on - raw), 0.0), 1.0)


def reward(fails: list[str], is_right: bool, aligned: float, fired: list[str], penalty: bool = True) -> float:
    """-1 for a hard fail, -0.5 to 0 for a wrong answer, 0.1 to 0.15 for a right one that cheats, 0.2 to 1 for one that does not.

    ours: bands that no rules together can make overlap, because else a cheat could pay for a wrong answer, or likelihood for a cheat. Within a band
    each rule that fires costs something, because then one cheat is better than two.
    >>> reward([], True, 1.0, []), reward([], True, 1.0, ["copy", "echo"]), reward([], False, 1.0, ["copy"]), reward(["no answer"], True, 1.0, [])
    (1.0, 0.1, -0.1, -1.0)
    """
    n = len(fired) if penalty else 0
    if fails:
        return -1.0
    if not is_right:
        return max(-0.5, 0.0 - 0.1 * n)  # not minus zero
    return max(0.1, 0.2 - 0.05 * n) if n else 0.2 + 0.8 * aligned


# --- GRPO (DeepSeekMath, arXiv 2402.03300, Eq. 3; token mean over the batch as in DAPO, arXiv 2503.14476). ----------------------------------------
# ours: GRPO, because the abstract says no more than RL, and this needs neither a value model nor a second copy of the weights.
def advantages(rewards: list[float]) -> list[float] | None:
    """Of the rewrites of one demonstration: (r - mean) / max(std, 0.05); None for equal rewards, from which nothing is learnt.

    ours: the floor, because a group whose rewards hardly differ would be blown up.
    >>> advantages([1.0, 0.0]), advantages([0.3, 0.3])
    ([1.0, -1.0], None)
    """
    if max(rewards) - min(rewards) < 1e-9:
        return None
    mean, std = statistics.fmean(rewards), statistics.pstdev(rewards)
    return [(r - mean) / max(std, 0.05) for r in rewards]


def grpo_loss(log_p: torch.Tensor, old: torch.Tensor, ref: torch.Tensor | None, advantage: float, clip: float, beta: float) -> tuple:
    """(loss, KL), each summed over the tokens (n,) of one completion; the loss is beta times the KL (k3) minus clipped ratio times advantage."""
    ratio = (log_p - old).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    kl = torch.zeros_like(log_p) if ref is None else (ref - log_p).exp() - (ref - log_p) - 1
    return (beta * kl - gain).sum(), kl.sum()


def token_log_probs(model, pairs: list[tuple[list[int], int]], device) -> list[torch.Tensor]:
    """log p of each token of each completion, end token included: (n_completion,) each; logits are computed only there, in float32.

    pairs: tokens of prompt and completion, and how many are the prompt's.
    """
    ids, mask = common.pad([ids for ids, _ in pairs], device)
    hidden = common.hidden_states(model, ids, mask)  # (B, T, d)
    head = model.get_base_model().lm_head if hasattr(model, "get_base_model") else model.lm_head
    return [head(hidden[i, n - 1:len(row) - 1]).float().log_softmax(-1).gather(1, ids[i, n:len(row), None])[:, 0] for i, (row, n) in enumerate(pairs)]


@torch.no_grad()
def levels(args, student: common.Student, problems: list[str], texts: list[str]) -> list[torch.Tensor]:
    """Log-probabilities under pi_T of the tokens of each text as an answer to its problem. Any adapter is off."""
    pairs = [encode(student, [*question(x), {"role": "assistant", "content": y}], 10**6) for x, y in zip(problems, texts, strict=True)]
    order, out = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0])), {}
    model = student.model.eval()
    for start in tqdm(range(0, len(order), args.sample_batch), desc="score", unit="batch", disable=len(order) <= 1000 or None):
        part = order[start:start + args.sample_batch]
        with model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext():
            found = token_log_probs(model, [pairs[i] for i in part], student.device)
        out |= dict(zip(part, (log_p.cpu() for log_p in found), strict=True))
    return [out[i] for i in range(len(pairs))]


def judge(args, student: common.Student, rows: list[dict], outs: list[dict]) -> list[dict]:
    """The reward of each rewrite and what it is made of. rows: demonstrations with their "raw" and "on"."""
    found = levels(args, student, [row["problem"] for row in rows], [out["response"] for out in outs])
    judged = []
    for row, out, log_p in zip(rows, outs, found, strict=True):
        fails, fired = hard_fails(out["response"], row["solution"], out["cut_off"]), cheats(out["response"], row["problem"], row["solution"])
        is_right, level = common.score(out["response"], row["answer"], row["problem"]) is True, log_p.mean().item()
        gap = row["on"] - row["raw"]
        aligned = alignment(level, row["raw"], row["on"]) if gap > 0 else 1.0
        judged.append({"reward": reward(fails, is_right, aligned, fired, args.penalty), "fails": fails, "cheats": fired, "is_right": is_right,
                       "level": level, "capped": min(level, row["on"]), "align": aligned, "n_scored": len(log_p)})
    return judged


def update(args, student: common.Student, optimizer, signal: list[tuple[list[int], int, float]], beta: float) -> float:
    """One optimiser step on completions (tokens of prompt and completion, how many are the prompt's, advantage); the mean KL of a token."""
    model, n_tokens, kl_sum = student.model.train(), sum(len(ids) - n for ids, n, _ in signal), 0.0  # train: for checkpointing; there is no dropout
    for i in range(0, len(signal), args.micro_batch):
        part = signal[i:i + args.micro_batch]
        pairs, ref = [(ids, n) for ids, n, _ in part], [None] * len(part)
        if beta:
            with torch.no_grad(), model.disable_adapter():
                ref = token_log_probs(model, pairs, student.device)
        loss = 0.0
        for log_p, reference, (_, _, advantage) in zip(token_log_probs(model, pairs, student.device), ref, part, strict=True):
            # The completions were sampled with these very weights, since there is one update a batch: the old log-probabilities are the new ones, the
            # ratio is 1, and its gradient is the policy gradient. clip would matter to a second update.
            one, kl = grpo_loss(log_p, log_p.detach(), reference, advantage, args.clip, beta)
            loss, kl_sum = loss + one / n_tokens, kl_sum + kl.item()
        loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], args.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return kl_sum / n_tokens


def solves(row: dict, out: dict) -> bool:
    """Whether a completion ends by itself and has the right answer."""
    return not out["cut_off"] and common.score(out["response"], row["answer"], row["problem"]) is True


def n_generated(outs: list[dict]) -> int:
    """Tokens that were sampled for these completions, end tokens among them."""
    return sum(out["n_tokens"] + (not out["cut_off"]) for out in outs)


def grpo_step(args, student: common.Student, optimizer, batch: list[dict], ask, rate, beta: float, seeds: tuple) -> dict:
    """G completions of each row's prompt, their rewards, advantages within each group, one update; what the log says of it."""
    drawn = [row for row in batch for _ in range(args.group)]
    prompts = [ids for row in batch for ids in [common.prompt_ids(student.tokenizer, ask(row))] * args.group]
    outs = [out for i in range(0, len(prompts), args.sample_batch) for out in common.sample(
        student, prompts[i:i + args.sample_batch], 1.0, args.max_new_tokens, common.torch_seed(*seeds, i))]
    judged, signal = rate(drawn, outs), []
    for i in range(0, len(drawn), args.group):
        found = advantages([one["reward"] for one in judged[i:i + args.group]])  # None: a group of equal rewards is left out
        signal += [(prompts[i + j] + outs[i + j]["tokens"], len(prompts[i]), a) for j, a in enumerate(found or [])]
    kl = update(args, student, optimizer, signal, beta) if signal else None
    return {"drawn": len(outs), "generated": n_generated(outs), "scored": sum(one.get("n_scored", 0) for one in judged),
            "skipped": len(batch) - len(signal) // args.group, "kl": kl if beta else None,
            **{name: statistics.fmean(one[name] for one in judged) for name in ("reward", "is_right", "align") if name in judged[0]},
            **{kind: dict(Counter(rule for one in judged for rule in one.get(kind, []))) for kind in ("fails", "cheats")}}


def grpo(args, run, student: common.Student, rows: list[dict], name: str, ask, rate, beta: float, budget: int | None = None) -> None:
    """Trains the adapter of `student` by GRPO: adapter/<name>/ and 2_steps_<name>.jsonl, a row for each step.

    ask(row): the chat to complete; rate(rows, outs): {"reward", ...} of each completion. It ends after --rl-steps, or, with a budget, when so many
    tokens have been generated; on the way there it leaves adapter/<name>_1/, _2/, ... for the curve, at the first step that reaches i / --curve of
    them. Every --save-every steps adapter, optimiser and log are saved; what is drawn in a step follows from its number.
    """
    import bitsandbytes as bnb
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    folder, checkpoint, log = run.path / "adapter", run.path / "adapter" / f"{name}.checkpoint.pt", []
    folder.mkdir(exist_ok=True)
    model = student.model

    def save(name):
        aside = folder / f"{name}.tmp"
        model.save_pretrained(aside)
        student.tokenizer.save_pretrained(aside)
        shutil.rmtree(folder / name, ignore_errors=True)  # of a start that was killed after its last checkpoint
        aside.rename(folder / name)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):  # of an adapter that is gone on from
            module.p = 0.0
    if args.checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    optimizer = bnb.optim.PagedAdamW8bit([p for p in model.parameters() if p.requires_grad], lr=args.rl_lr, weight_decay=0.0)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
        set_peft_model_state_dict(model, saved["adapter"])
        optimizer.load_state_dict(saved["optimizer"])
        log = saved["log"]
    n_so_far = sum(row["generated"] for row in log)
    bar = tqdm(total=budget or args.rl_steps, initial=n_so_far if budget else len(log), desc=f"GRPO {name}", unit="token" if budget else "step")
    while (n_so_far < budget) if budget else (len(log) < args.rl_steps):
        started, step, before = time.time(), len(log), n_so_far
        batch = common.rng(args.seed, name, step).sample(rows, min(args.prompts, len(rows)))
        log.append({"step": step, **grpo_step(args, student, optimizer, batch, ask, rate, beta, (args.seed, name, step))})
        n_so_far += log[-1]["generated"]
        run.log(grpo=name, at=step, seconds=round(time.time() - started, 2), peak_gib=common.peak_gib(), reward=log[-1]["reward"])
        bar.update(log[-1]["generated"] if budget else 1)
        bar.set_postfix(reward=f"{log[-1]['reward']:.2f}", right=f"{log[-1]['is_right']:.2f}")
        for i in range(1, args.curve if budget else 1):
            if before < budget * i / args.curve <= n_so_far:
                log[-1].setdefault("points", []).append(i)
                save(f"{name}_{i}")
        if len(log) % args.save_every == 0:
            torch.save({"adapter": get_peft_model_state_dict(model), "optimizer": optimizer.state_dict(), "log": log}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").rename(checkpoint)
    bar.close()
    run.write(f"2_steps_{name}.jsonl", log)
    save(name)


# --- The steps, with files. ---------------------------------------------------------------------------------------------------------------------
def prepare(row: dict) -> dict:
    """A demonstration whose solution ends in the common form of an answer (ours: because else its form alone would handicap raw SFT)."""
    boxes = common.read_boxes(row["solution"])
    solution = row["solution"] if boxes else f"{row['solution'].rstrip()}\nThe answer is \\boxed{{{row['answer']}}}."
    return {"id": row["id"], "problem": row["problem"], "solution": solution, "answer": row["answer"]}


def measure(args, run, student, rows: list[dict], own: dict[str, list[dict]]) -> list[dict]:
    """Step 1: the demonstrations with their L_raw, "raw", and L_on, "on". student: a function that loads pi_T.

    on: the mean over the target's own right answers to it; where it has none, the median of the others (ours: because these are what the target's
    distribution looks like where it is right). Should it have none to any, its wrong answers stand in (ours: because a run on a hopeless student
    should still end, and say so).
    """
    by_id, answers = {row["id"]: row for row in rows}, [(row, i, out) for row in rows for i, out in enumerate(own[row["id"]])]
    right = [(row, i, out) for row, i, out in answers if solves(row, out)]
    broken = Counter(rule for row, _, out in right for rule in hard_fails(out["response"], row["solution"], False)
                     + cheats(out["response"], row["problem"], row["solution"]))
    print(f"  {len(right)} of {len(answers)} own answers are right; rules that these break: {dict(broken)}")  # many: the rules do not fit this model
    if not right:
        print("  the target's wrong answers stand in for L_on")
    texts = {(row["id"], None): row["solution"] for row in rows} | {(row["id"], i): out["response"] for row, i, out in right or answers}
    order = [{"id": row_id, "sample": i} for row_id, i in sorted(texts, key=lambda key: (len(texts[key]), str(key)))]

    def make(batch):
        found = levels(args, student(), [by_id[item["id"]]["problem"] for item in batch], [texts[item["id"], item["sample"]] for item in batch])
        return [item | {"level": log_p.mean().item(), "n_scored": len(log_p)} for item, log_p in zip(batch, found, strict=True)]
    scored = run.batches("1_levels.jsonl", [order[i:i + args.sample_batch] for i in range(0, len(order), args.sample_batch)], make, unit="text")
    raw, on = {row["id"]: row["level"] for row in scored if row["sample"] is None}, {}
    for row in scored:
        if row["sample"] is not None:
            on.setdefault(row["id"], []).append(row["level"])
    on = {row_id: statistics.fmean(some) for row_id, some in on.items()}
    median = statistics.median(on.values())
    return [row | {"raw": raw[row["id"]], "on": on.get(row["id"], median)} for row in rows]


def rewriting(row: dict) -> list[dict]:
    """The mapper's chat."""
    return [{"role": "user", "content": MAPPER_PROMPT.format(problem=row["problem"], solution=row["solution"])}]


def rewrite_all(args, run, name: str, student, rows: list[dict], n: int) -> list[dict]:
    """n rewrites of each demonstration by a mapper, judged; written batch by batch. student: a function that loads it."""
    order = sorted((len(row["problem"] + row["solution"]), row["id"], i) for row in rows for i in range(n))
    items, by_id = [{"id": row_id, "sample": i} for _, row_id, i in order], {row["id"]: row for row in rows}
    batches = [items[i:i + args.sample_batch] for i in range(0, len(items), args.sample_batch)]

    def make(batch):
        prompts = [common.prompt_ids(student().tokenizer, rewriting(by_id[item["id"]])) for item in batch]
        seed = common.torch_seed(args.seed, name, batch[0]["id"], batch[0]["sample"])
        outs = common.sample(student(), prompts, args.temperature, args.max_new_tokens, seed)
        judged = judge(args, student(), [by_id[item["id"]] for item in batch], outs)
        return [item | {name: out[name] for name in ("response", "n_tokens", "cut_off")} | one
                for item, out, one in zip(batch, outs, judged, strict=True)]
    return run.batches(name, batches, make, unit="rewrite")


def choose(rows: list[dict], rewrites: list[dict], reject_cheats: bool = False) -> list[dict]:
    """Step 3's end: of the rewrites with a right answer and no hard fail the likeliest; y where there is none.

    ours: the likeliest, because so GRAPE (arXiv 2502.04194) chooses among responses; ties at the cap, where they are as likely as own answers, go to
    the first, because beyond it the likelihood says nothing.
    """
    passed = {row["id"]: [] for row in rows}
    for one in rewrites:
        if one["is_right"] and not one["fails"] and not (reject_cheats and one["cheats"]):
            passed[one["id"]].append(one)
    best = {key: max(some, key=lambda one: one["capped"]) for key, some in passed.items() if some}
    return [{"id": row["id"], "problem": row["problem"], "answer": row["answer"], "from": "rewrite" if row["id"] in best else "given",
             "solution": best[row["id"]]["response"] if row["id"] in best else row["solution"]} for row in rows]


def before_answer(text: str, answer: str, problem: str) -> str:
    """A solution without its answer: all that stands before it is said for the first time.

    ours: if the problem gives the same number, before it first follows a "=", else before its last mention, because the others may be the problem's;
    if it is said in the last box alone, up to that.
    >>> before_answer("12+7=19, 19+9=28. \\\\boxed{28}", "28", "12+7+9?"), before_answer("28 are left, 19+9=28. \\\\boxed{28}", "28", "Of 28...")
    ('12+7=19, 19+9=', '28 are left, 19+9=')
    """
    boxes = common.read_boxes(text)
    head = text[:boxes[-1][0]] if boxes else text
    spelt = rf"(?<![\w.,])({re.escape(answer)}|{re.escape(f'{int(answer):,}' if answer.isdecimal() else answer)})(?!\w|[.,]\d)"
    found = [one.start() for one in re.finditer(spelt, head)]
    if re.search(spelt, problem):
        found = [at for at in found if re.search(r"=[^\w=]*$", head[:at])] or found[-1:]
    return head[:found[0]] if found else head + "\\boxed{"


@torch.no_grad()
def uplift(args, student: common.Student, chosen: list[dict]) -> list[float]:
    """log p_T(a | x, y' without its answer) - log p_T(a | x): what the reasoning says of the answer. It stands outside the reward. student: pi_T."""
    def log_p(heads):
        pairs = []
        for row, text in zip(chosen, heads, strict=True):
            head = common.prompt_ids(student.tokenizer, question(row["problem"])) + student.tokenizer(text, add_special_tokens=False).input_ids
            pairs.append((head + student.tokenizer(row["answer"], add_special_tokens=False).input_ids, len(head)))
        return [x.sum().item() for i in range(0, len(pairs), args.sample_batch)
                for x in token_log_probs(student.model.eval(), pairs[i:i + args.sample_batch], student.device)]
    with_reasoning = log_p([before_answer(row["solution"], row["answer"], row["problem"]) for row in chosen])
    return [a - b for a, b in zip(with_reasoning, log_p(["\\boxed{"] * len(chosen)), strict=True)]


def describe(args, student: common.Student, rows: list[dict], chosen: list[dict]) -> dict:
    """What an arm's training data is like: likelihoods of all of it; cheats and uplift of the rewrites, of all where an arm has none."""
    found = levels(args, student, [row["problem"] for row in chosen], [row["solution"] for row in chosen])
    given = {row["id"]: row["solution"] for row in rows}
    written = [row for row in chosen if row["from"] == "rewrite"] or chosen
    fired = [cheats(row["solution"], row["problem"], given[row["id"]]) for row in written]
    return {"log_prob": statistics.fmean(log_p.mean().item() for log_p in found),
            "unlikely": sum((log_p < math.log(0.01)).sum().item() for log_p in found) / sum(map(len, found)),
            "fallback": sum(row["from"] == "given" for row in chosen) / len(chosen),
            "cheats": {rule: sum(rule in some for some in fired) / len(written) for rule in ("copy", "false equation", "echo", "padding")},
            "uplift": statistics.fmean(uplift(args, student, written))}


def evaluate_sets(args, run, arm: str, student, tests: dict[str, list[dict]]) -> list[dict]:
    """Whether the arm answers each test question rightly, at temperature 0; None where no final answer was found."""
    def make():
        out = []
        for name, rows in tests.items():
            stem = re.sub(r"\W+", "_", Path(name).stem)
            found = common.answer(args, run, f"5_answers_{arm}_{stem}.jsonl", student, rows, question, 0.0)
            out += [{"id": row["id"], "set": name, "is_right": common.score(found[row["id"]][0]["response"], row["answer"], row["problem"]),
                     "cut_off": found[row["id"]][0]["cut_off"]} for row in rows]
        return out
    return run.step(f"5_test_{arm}.jsonl", make)


# --- Copied from stat_sel.py, where they are explained: the student. ----------------------------------------------------------------------
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

    ours: no loss on the prompts, because the student is never asked to write one.
    """
    ids, mask = common.pad([ids for ids, _ in pairs], device)
    # target[b, t]: token t is one of the answer's; it is predicted at t - 1
    target = [[n <= t < len(row) for t in range(ids.shape[1])] for row, n in pairs]
    target = torch.tensor(target, device=device)  # (B, T)
    hidden = common.hidden_states(model, ids, mask)  # (B, T, d)
    logits = model.get_base_model().lm_head(hidden[:, :-1][target[:, 1:]]).float()  # (n_completion, V)
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][target[:, 1:]], reduction="sum")


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
        torch.cuda.set_rng_state_all(saved["rng_cuda"])
        losses, start = saved["losses"], saved["epoch"]
    model.train()
    n_before, started = len(losses), time.time()
    bar = tqdm(total=n_steps, initial=len(losses), desc=f"train {name}", unit="step")
    for epoch in range(start, args.epochs):
        epoch_started, rng = time.time(), common.rng(args.seed, "order", epoch)
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
        checkpoint.parent.mkdir(exist_ok=True)
        states = {"adapter": peft.get_peft_model_state_dict(model), "optimizer": optimizer.state_dict(),
                  "schedule": schedule.state_dict(), "rng": torch.get_rng_state(),
                  "rng_cuda": torch.cuda.get_rng_state_all(), "losses": losses, "epoch": epoch + 1}
        torch.save(states, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").rename(checkpoint)
        seconds = round(time.time() - epoch_started, 1)
        run.log(train=name, epoch=epoch + 1, seconds=seconds, peak_gib=common.peak_gib())
    bar.close()
    run.write(f"loss_{name}.jsonl", [{"step": i, "loss": loss} for i, loss in enumerate(losses)])
    part = final.with_name(f"{name}.tmp")
    model.save_pretrained(part)
    student.tokenizer.save_pretrained(part)
    part.rename(final)


# --- The arms. --------------------------------------------------------------------------------------------------------------------------------
def read_sets(args) -> tuple[dict[str, str], list[dict], dict[str, list[dict]]]:
    """Refuses what cannot be done, before anything is loaded; then (column of each test set, D, questions of each test set)."""
    common.check_args(args, lr=1, warmup=1, lora_dropout=0.99, weight_decay=1, max_grad_norm=1e9, rl_lr=1, clip=1, beta=1e9, min_gap=1e9,
                      temperature=1e9)
    common.template_head(args.chat_template_kwargs)  # refuses what is not JSON
    bought = [arm for arm in args.arms if arm in ("best_of_n", "rejection", "grpo")]
    columns = {args.data: "in distribution"} | dict.fromkeys(args.ood, "out of distribution") | dict.fromkeys(args.retention, "retention")
    if args.group < 2:
        raise UserError("--group: expected at least 2, came 1: advantages are differences within a group")
    if args.data.endswith(".jsonl") or Path(args.data).is_file():
        raise UserError(f"--data {args.data}: expected a folder with train.jsonl and test.jsonl, or a name, came one file; give its folder")
    if args.data == "math" and "math500" in columns:
        raise UserError("--ood, --retention: math500 is a part of --data math's test split; give another set, such as --retention amc23")
    if args.adapter and set(args.arms) - {"base", "grpo"}:
        raise UserError(f"--adapter: only the arms base and grpo start from one, came --arms {' '.join(args.arms)}; leave the others out")
    if bought and "dart" not in args.arms and not args.budget_tokens:
        raise UserError(f"--arms {' '.join(bought)}: they get as many tokens as DART generates; add the arm dart, or give --budget-tokens")
    if len(columns) < 1 + len(args.ood) + len(args.retention):
        raise UserError("--data, --ood, --retention: expected each set once, came one twice; leave out the second")
    if len({Path(name).stem for name in columns}) < len(columns):
        raise UserError(f"--data, --ood, --retention: expected file names that differ, came {', '.join(columns)}; rename one")
    for flag, name in (("--student", args.student), ("--adapter", args.adapter)):
        common.check_checkpoint(name, flag)  # now, not after hours
    tests = {name: common.load(name, "test") for name in columns}
    pool = [prepare(row) for row in common.load(args.data, "train") if row["answer"] and row["solution"]]
    pool = common.without(pool, [row for rows in tests.values() for row in rows])
    if not pool:
        raise UserError(f"--data {args.data}: its train split has no demonstration, a question with a solution and an answer; check the file")
    tests = {name: common.rng(args.seed, "limit", name).sample(rows, min(args.limit or len(rows), len(rows))) for name, rows in tests.items()}
    rows = common.rng(args.seed, "demonstrations").sample(pool, min(args.n_demonstrations, len(pool)))
    print(f"D {len(rows)} demonstrations of {len(pool)}; tested on " + ", ".join(f"{len(some)} {columns[name]}" for name, some in tests.items()))
    return columns, rows, tests


def reinforce(args, run, load, rows: list[dict], arm: str, budget: int | None) -> Path:
    """The adapter that GRPO makes: the mapper for the arm dart, the target itself, rewarded for right answers, for the arm grpo."""
    from peft import LoraConfig, get_peft_model
    name, beta = "mapper" if arm == "dart" else arm, 0.0 if args.adapter else args.beta
    if not (run.path / "adapter" / name).exists():
        student = load(args.adapter, fresh=True)
        torch.manual_seed(common.torch_seed(args.seed, "adapter"))
        if not args.adapter:
            student = student._replace(model=get_peft_model(student.model, LoraConfig(
                r=args.lora_rank, lora_alpha=args.lora_alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")))
        if arm == "dart":
            learnable = [row for row in rows if row["on"] - row["raw"] >= args.min_gap]
            grpo(args, run, student, learnable, name, rewriting, lambda drawn, outs: judge(args, student, drawn, outs), beta)
        else:
            grpo(args, run, student, rows, name, lambda row: question(row["problem"]), lambda drawn, outs: [
                {"reward": float(ok), "is_right": ok} for ok in map(solves, drawn, outs)], beta, budget)
    (run.path / "adapter" / f"{name}.checkpoint.pt").unlink(missing_ok=True)
    return run.path / "adapter" / name


def make_data(args, run, load, rows: list[dict], own: dict, arm: str, budget: int | None) -> list[dict]:
    """What an arm's target is trained on: {"id", "problem", "answer", "solution", "from": "given" or "rewrite"} for each demonstration."""
    given = [{name: row[name] for name in ("id", "problem", "answer", "solution")} | {"from": "given"} for row in rows]
    if arm == "sft":
        return given
    if arm == "rejection":
        samples = [own]  # those of step 1 are the first
        while sum(n_generated(outs) for sampled in samples for outs in sampled.values()) < budget:
            samples.append(common.answer(args, run, f"3_own_{len(samples)}.jsonl", load, rows, question, 1.0, 1))
        good = [next((out["response"] for sampled in samples for out in sampled[row["id"]] if solves(row, out)), None) for row in rows]
        return [row | ({"from": "rewrite", "solution": text} if text else {}) for row, text in zip(given, good, strict=True)]
    if arm == "best_of_n":
        rewrites, n_own = [], sum(map(n_generated, own.values()))
        while n_own + n_generated(rewrites) < budget:
            rewrites += rewrite_all(args, run, f"3_rewrites_{arm}_{len(rewrites) // len(rows)}.jsonl", load, rows, 1)
        return choose(rows, rewrites, args.reject_cheats)
    mapper = reinforce(args, run, load, rows, arm, None) if arm == "dart" else None
    return choose(rows, rewrite_all(args, run, f"3_rewrites_{arm}.jsonl", lambda: load(mapper), rows, args.n_rewrites), args.reject_cheats)


def cost(run, arm: str) -> dict[str, int]:
    """What an arm cost, from the run's files: tokens generated, tokens scored for L (not those of the KL term), optimiser steps. Step 1 counts
    whole for each arm that needs it."""
    def rows(pattern):
        return [row for path in sorted(run.path.glob(pattern)) for row in run.read(path.name)]
    steps = rows({"dart": "2_steps_mapper.jsonl", "grpo": "2_steps_grpo.jsonl"}.get(arm, "-"))
    own = rows("1_own.jsonl") if arm in ("prompt", "best_of_n", "rejection", "dart") else []
    own += rows("3_own_*.jsonl") if arm == "rejection" else []
    rewrites = rows(f"3_rewrites_{arm}*.jsonl")
    return {"generated": n_generated(own + rewrites) + sum(row["generated"] for row in steps),
            "scored": sum(row["n_scored"] for row in rewrites + rows("1_levels.jsonl") * bool(rewrites)) + sum(row["scored"] for row in steps),
            "rl_steps": len(steps), "sft_steps": len(rows(f"loss_{arm}.jsonl"))}


def main(args: Args) -> None:
    columns, rows, tests = read_sets(args)
    run, loaded = common.open_run(args, args.out, HOW), {}
    common.check_questions(run, {"D": rows} | {f"test {name}": some for name, some in tests.items()})
    run.step("0_questions.jsonl", lambda: [
        {"id": row["id"], "part": part, "problem": row["problem"]} for part, some in (("D", rows), *tests.items()) for row in some])

    def load(adapter=None, fresh=False):
        """The target under an adapter; one model is in memory at a time. fresh: one to train, which is not kept."""
        if fresh or adapter not in loaded:
            loaded.clear()
            student = common.load_student(args.student, adapter, args.chat_template_kwargs)
            return student if fresh else loaded.setdefault(adapter, student)
        return loaded[adapter]
    own, n_learnable, budget = {}, None, args.budget_tokens
    data, outcomes = {}, {}
    if set(args.arms) & {"prompt", "best_of_n", "rejection", "dart"}:
        own = common.answer(args, run, "1_own.jsonl", load, rows, question, 1.0, args.n_own)
        rows = measure(args, run, load, rows, own)
        n_learnable = sum(row["on"] - row["raw"] >= args.min_gap for row in rows)
        print(f"  {n_learnable} of {len(rows)} demonstrations are less likely than the target's own right answers by --min-gap {args.min_gap}")
        if "dart" in args.arms and not n_learnable:
            raise UserError("--arms dart: every demonstration is in distribution already, so the mapper has nothing to learn; leave dart out")
    for arm in sorted(args.arms, key=lambda arm: arm != "dart"):  # DART first: the others are given what it costs
        adapter = run.path / "adapter" / arm if arm != "base" else args.adapter
        if arm == "grpo":
            reinforce(args, run, load, rows, arm, budget)
            for i in range(1, args.curve):
                evaluate_sets(args, run, f"grpo_{i}", lambda i=i: load(run.path / "adapter" / f"grpo_{i}"), tests)
        elif arm != "base":
            chosen = make_data(args, run, load, rows, own, arm, budget)
            chosen = run.step(f"3_chosen_{arm}.jsonl", lambda chosen=chosen: chosen)
            data[arm] = run.step(f"4_data_{arm}.json", lambda chosen=chosen: describe(args, load(), rows, chosen))
            print(f"  {arm}: {data[arm]}")
            if not adapter.exists():
                pairs = run.step(f"train_{arm}.jsonl", lambda chosen=chosen: [{"messages": question(row["problem"]) + [
                    {"role": "assistant", "content": row["solution"]}]} for row in chosen])
                train(args, run, load(fresh=True), pairs, arm, args.lr)
            (run.path / "adapter" / f"{arm}.checkpoint.pt").unlink(missing_ok=True)
        if arm == "dart":
            budget = budget or cost(run, arm)["generated"]
        outcomes[arm] = evaluate_sets(args, run, arm, lambda adapter=adapter: load(adapter), tests)
        if n_cut := sum(row["cut_off"] for row in outcomes[arm]):
            print(f"  {arm}: {n_cut} of {len(outcomes[arm])} test answers were cut off at --max-new-tokens {args.max_new_tokens}")
    for name, column in columns.items():
        right = {arm: [row["is_right"] is True for row in outcomes[arm] if row["set"] == name] for arm in args.arms}
        print(f"\n{column}: {name}\n" + common.compare(right, "sft" if "sft" in args.arms else args.arms[0]))
    run.write("result.json", {"method": "dart", "arms": list(args.arms), "columns": columns, "data": data, "n": len(rows), "n_learnable": n_learnable,
                              "cost": {arm: cost(run, arm) for arm in args.arms}})
    print(f"{run.path}/result.json")


if __name__ == "__main__":
    common.cli(main, Args, __doc__)
