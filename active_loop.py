r"""Active loop: the student's own scores choose the seeds of the data it is
trained on next.

Re-implemented from the abstract, the project page and public reviews: the
paper's body could not be read. What these do not say is marked ours.
Paper   Kessler, Xia, Madrigal Diaz, Han, Hashemi, Rajmohan, Ruehle, Ash,
        "Towards Active Synthetic Data Generation for Finetuning Language
        Models", arXiv 2512.00884
Steps   of each round t = 0 .. T-1, on fixed seed questions D_0; new questions
        never join them:
        1 answer  the student answers every seed: r<t>_answers.jsonl
        2 score   by --select: what the answer, or its loss, says of the seed
        3 select  the m seeds with the highest scores: r<t>_selected.json
        4 write   the teacher makes one item of each in two calls: a new
                  question from the seed's alone, then a worked answer to it:
                  r<t>_items.json
        5 train   the base anew on all items so far, by QLoRA:
                  train_r<t+1>.jsonl adapter/r<t+1>/
        6 test    accuracy on the test questions: r<t+1>_test_answers.jsonl
                  r<t+1>_test.jsonl
Names   D_0 = seeds, T = rounds, m = per_round. item = new question with
        answer; own answer = the student's answer to a seed; base = the student
        before the first round.
Select  random       no scores: static generation, since neither seeds nor
                     teacher know the student
        loss         high loss of the student on its own answer: the paper's
                     choice
        loss_low     the same loss, lowest first: do hard seeds help, or easy
                     ones? (ours)
        static_loss  the base's loss, ranked once and walked down; loss -
                     static_loss is what the closed loop adds, static_loss -
                     random what hard seeds add (ours)
        true_loss    high loss of the student on the seed's own solution
        reward       low score of the own answer by a reward model
        judge        low mark of the own answer by the teacher
        lion         in turn a seed whose teacher's answer is marked higher,
                     and another (LION)
        badge        k-means++ over sketches of the loss's gradient on the own
                     answer (BADGE)
        incorrect    seeds answered wrongly, then the others (LLM2LLM,
                     2403.15042)
Ours    An own answer cut off at --max-new-tokens has no score, since what runs
        on looks certain: its seed comes after all others, is counted, and not
        judged. An item that is malformed, repeats a seed or an item, or leaks
        a test question is dropped, and the next seed asked: so all criteria
        train on equally many items.
Budget  --budget-tokens N: no further round begins once the teacher has read
        and written N tokens. Judging, verification, dropped items and cached
        replies count. A round that has begun is finished.
Share   --from RUN copies the base's answers and test from another criterion's
        run on the same questions.
Run     python active_loop.py --data gsm8k          # 4 rounds of 250
        python active_loop.py --data math --levels 1 2 3 --n-seeds 7500 \
            --per-round 1000 --rounds 10
        python active_loop.py --plan                # sends nothing
        python -m toyworld active_loop              # no GPU, no key, minutes
Writes  runs/active_loop/ args.json env.json 0_fingerprint.json
        0_questions.jsonl, the files above, the student on the items
        r<t>_child_answers.jsonl r<t>_child_losses.json, teacher_answers.json
        (lion), loss_r<t>.jsonl teacher.sqlite metrics.jsonl result.json
"""
import bisect
import functools
import itertools
import math
import random
import re
import statistics
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.utils.checkpoint
import tyro
from tqdm import tqdm

import common
from common import Request, UserError

MAY_CHANGE = tuple((  # between the starts of one run; batch sizes move the draws of what is still to do
    "teacher_url teacher_max_tokens teacher_timeout teacher_max_none cache concurrency max_usd usd_per_m_in "
    "usd_per_m_out plan micro_batch sample_batch checkpointing from_").split())
BASE_BY = ("student", "chat_template_kwargs", "max_new_tokens")  # and by the questions: see Share


@dataclass(frozen=True)
class Args:
    # Model:
    student: str = "Qwen/Qwen2.5-3B"  # model to improve: Hub name or folder
    chat_template_kwargs: str | None = None  # JSON for the student's template, as {"enable_thinking": false}
    reward_model: str | None = None  # sequence-classification model, for --select reward
    max_new_tokens: int = 1024  # length limit of an answer

    # Data:
    data: str = "gsm8k"  # "gsm8k", "math", or a folder with train.jsonl (for D_0) and test.jsonl
    levels: tuple[int, ...] = ()  # only questions of these levels; the paper's Math1-3: 1 2 3
    n_seeds: int = 2000  # size of D_0, drawn from the train split (ours: for one GPU and an evening)
    limit: int | None = None  # test on so many questions only: a quick look

    # Teacher:
    teacher: str = "gpt-4o-mini"  # model that writes the items, and judges
    teacher_url: str | None = None  # OpenAI-compatible server; default: OpenAI, key from OPENAI_API_KEY
    teacher_max_tokens: int = 2048  # length limit of a reply; raise it for a model that thinks aloud
    teacher_timeout: float = 600.0  # seconds for one call with all its retries
    teacher_max_none: float = 0.05  # share of a step's replies that may be lost, cut off, empty or refused
    cache: str | None = None  # file of teacher replies; default: teacher.sqlite in the run directory
    concurrency: int = 16  # teacher calls in flight
    usd_per_m_in: float | None = None  # price of a million input tokens
    usd_per_m_out: float | None = None  # price of a million output tokens
    max_usd: float | None = None  # stop cleanly before spending more; needs both prices
    plan: bool = False  # print the teacher calls ahead, one prompt of each kind, and stop

    # Method:
    select: Literal["random", "loss", "loss_low", "static_loss", "true_loss", "reward", "judge", "lion",
                    "badge", "incorrect"] = "loss"  # see Select
    norm: Literal["mean", "sum"] = "mean"  # of losses over an answer's tokens (the paper's is not known)
    rounds: int = 4  # T (ours; the paper's 10,000 items are 10 rounds of 1,000)
    per_round: int = 250  # m, items of a round (ours)
    no_repeat: bool = False  # no seed is selected twice, whatever the criterion
    warm_start: bool = False  # train on from the last round's student, not from the base (ablation)
    sampling: float = 0.0  # above 0: draw seeds with probability ~ exp(score / sampling) (ablation)
    verify: Literal["none", "sc"] = "none"  # sc: keep an item if n_agreeing of n_solutions answers agree
    n_solutions: int = 5  # worked answers to a new question under --verify sc
    n_agreeing: int = 3  # so many must agree; where answers are True or False, ask for all
    budget_tokens: int | None = None  # see Budget

    # Training:
    lr: float = 1e-4  # peak (ours, untuned)
    epochs: int = 3  # (ours)
    batch: int = 8  # pairs in an optimiser step (ours)
    micro_batch: int = 2  # pairs in a forward pass: lower it if memory is short
    max_tokens: int = 2048  # a training pair is cut there (ours)
    lora_rank: int = 16  # (ours, as all of LoRA's settings: those of the STAT paper)
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    weight_decay: float = 0.1
    max_grad_norm: float = 0.3  # gradient clip
    warmup: float = 0.03  # share of the steps, then cosine to zero
    checkpointing: bool = True  # gradient checkpointing: less memory, a third more time

    # Running:
    out: str = "runs/active_loop"  # run directory; the same command goes on where it stopped
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None  # see Share
    seed: int = 0  # moves everything that is drawn
    sample_batch: int = 32  # answers generated at once: lower it if memory is short


# --- Prompts (ours). ----------------------------------------------------------------------------------------
# Copied from stat_sel.STUDENT_PROMPT
STUDENT_PROMPT = "{problem}\n\nReason step by step and put the final answer in \\boxed{{}}."

# ours: neutral, not "make it harder", because then a drift in difficulty comes from the selection alone
NEW_PROMPT = """Here is a problem.

<problem>
{problem}
</problem>

Write a new problem that is inspired by this one. It must say all that is needed to solve it, and have one
final answer that can be checked. Give the problem alone, without its solution, in this form:
<question>the new problem</question>"""

# Copied from stat_syn.SOLVE_PROMPT
SOLVE_PROMPT = """Solve this problem.

<problem>
{problem}
</problem>

Reason step by step, show every calculation, and put the final answer, once, in \\boxed{{}}."""

# for one response or two; NEXT stands between two
JUDGE_PROMPT = """Here are a problem and one or more responses to it.

<problem>
{problem}
</problem>

<response>
{response}
</response>

How good are they: correct, complete, well reasoned? Give each, in order, a mark from 1 (worthless) to 10
(perfect), with commas between, in this form:
<mark>marks</mark>"""
NEXT = "\n</response>\n\n<response>\n"


# --- Criteria: pure functions from scores to an order of the seeds. No files, no network. -------------------
def by_score(scores: dict[str, float], rng: random.Random, sampling: float = 0.0) -> list[str]:
    """Ids from the highest score to the lowest, equal ones at random.

    sampling > 0: drawn one by one with probability ~ exp(score / sampling), by Gumbel noise (1903.06059).
    """
    shuffled = rng.sample(list(scores), len(scores))
    if not sampling:
        return sorted(shuffled, key=scores.get, reverse=True)  # stable, so ties stay shuffled
    noise = {i: -math.log(-math.log(rng.uniform(1e-12, 1 - 1e-12))) for i in shuffled}
    return sorted(shuffled, key=lambda i: scores[i] / sampling + noise[i], reverse=True)


def by_gap(gaps: dict[str, float], rng: random.Random) -> list[str]:
    """LION's order (2305.12870): easy and hard seeds in turn, each kind at random; then what is left of one.

    gaps: the teacher's mark minus the student's. From 1 on a seed is hard.
    """
    easy = [i for i, gap in gaps.items() if gap < 1]
    hard = [i for i, gap in gaps.items() if gap >= 1]
    rng.shuffle(easy)
    rng.shuffle(hard)
    order = []
    while easy or hard:
        order += [kind.pop() for kind in (easy, hard) if kind]
    return order


def by_gradient(sketches: dict[str, torch.Tensor], m: int, rng: random.Random) -> list[str]:
    """BADGE's order (1906.03671): m ids by k-means++ over the sketches (s,), then the others at random.

    First the largest norm; then each with probability ~ its squared distance from the nearest before it.
    """
    ids, order, left = list(sketches), [], list(range(len(sketches)))
    points = torch.stack(list(sketches.values())) if ids else torch.zeros(0, 1)  # (N, s)
    distance = points.square().sum(1)  # from the origin, for the first
    while left and len(order) < m:
        weights = distance[left].tolist()
        if not order:
            chosen = left[weights.index(max(weights))]
        else:
            chosen = rng.choices(left, weights if any(weights) else None)[0]
        near = (points - points[chosen]).square().sum(1)
        distance = torch.minimum(distance, near) if order else near
        order.append(chosen)
        left.remove(chosen)
    return [ids[n] for n in order + rng.sample(left, len(left))]


def spearman(xs: list[float], ys: list[float]) -> float | None:
    """Rank correlation, ties with their mean rank; None where one side has no two different values.

    >>> spearman([1, 2, 3], [10, 20, 15]), spearman([1, 1], [1, 2])
    (0.5, None)
    """
    def ranks(values):  # doubled
        ordered = sorted(values)
        return [bisect.bisect_left(ordered, value) + bisect.bisect_right(ordered, value) for value in values]
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    return round(statistics.correlation(ranks(xs), ranks(ys)), 6)


def read_marks(reply: str | None, n: int) -> list[float] | None:
    """The n marks of a judge's reply, 1 to 10; None where it has not just so many.

    >>> read_marks("<mark>8/10, 7</mark>", 2), read_marks("<mark>11</mark>", 1)
    ([8.0, 7.0], None)
    """
    text = re.sub(r"(?:/|out of)\s*10\b", "", common.read_tag(reply or "", "mark") or "")
    found = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]
    return found if len(found) == n and all(1 <= mark <= 10 for mark in found) else None


# --- Scores of the seeds. -----------------------------------------------------------------------------------
@torch.no_grad()
def score_answers(student: common.Student, pairs: list[tuple[list[int], int]], norm: str,
                  sketch_seed: int | None = None) -> list[dict]:
    """{"loss"} of each answer: -log p at temperature 1, the mean or the sum over its tokens and its end.

    pairs: tokens of question and answer, and how many are the question's. The last one stands for any end
    token: the likeliest is scored, since a greedy answer ended with that. Logits are float32.
    sketch_seed: adds "sketch" (4096,) = R_v^T g R_h. g (V, d) = mean_t (p_t - e_y,t) h_t^T is the mean loss's
    gradient by the last weights, never stored; R_v (V, 64) and R_h (d, 64) are Gaussian.
    """
    model = student.model.eval()
    head = (model.get_base_model() if hasattr(model, "get_base_model") else model).lm_head
    ids, mask = common.pad([ids for ids, _ in pairs], student.device)
    hidden = common.hidden_states(model, ids, mask)  # (B, T, d)
    ends = torch.tensor(sorted(student.stop_ids), device=student.device)
    if sketch_seed is not None:
        generator = torch.Generator().manual_seed(sketch_seed)
        r_v = torch.randn(head.out_features, 64, generator=generator).to(student.device) / 8
        r_h = torch.randn(head.in_features, 64, generator=generator).to(student.device) / 8
    found = []
    for i, (row, n) in enumerate(pairs):
        h, y = hidden[i, n - 1:len(row) - 1], ids[i, n:len(row)]  # (n_answer, d), (n_answer,)
        log_p = head(h).float().log_softmax(-1)  # (n_answer, V)
        y[-1] = ends[log_p[-1, ends].argmax()]  # the end
        loss = -log_p.gather(1, y[:, None])  # (n_answer, 1)
        found.append({"loss": (loss.mean() if norm == "mean" else loss.sum()).item()})
        if sketch_seed is not None:
            error = log_p.exp()
            error[torch.arange(len(y)), y] -= 1  # p_t - e_y,t
            found[-1]["sketch"] = ((error @ r_v).T @ (h.float() @ r_h) / len(y)).flatten().cpu()
    return found


def chat_of(row: dict, text: str) -> list[dict]:
    return [*question(row["problem"]), {"role": "assistant", "content": text}]


def losses(args, student: common.Student, rows: list[dict], texts: dict[str, str]) -> dict[str, dict]:
    """score_answers of texts[id], an answer to each question, by id; a question without one is left out."""
    pairs, found = {}, {}
    for row in rows:
        if row["id"] in texts:
            pairs[row["id"]] = encode(student, chat_of(row, texts[row["id"]]), 10**6)
    order = sorted(pairs, key=lambda i: (len(pairs[i][0]), i))  # for less padding
    seed = common.torch_seed(args.seed, "sketch") if args.select == "badge" else None
    for start in tqdm(range(0, len(order), args.sample_batch), desc="score", unit="batch"):
        batch = order[start:start + args.sample_batch]
        found |= zip(batch, score_answers(student, [pairs[i] for i in batch], args.norm, seed), strict=True)
    return found


def judge_marks(args, teacher, rows: list[dict], answers: list[list[str]], step: str) -> list:
    """The teacher's marks of one answer or two to each question; None where a reply has none."""
    asked = requests(args, JUDGE_PROMPT, rows, responses=[NEXT.join(texts) for texts in answers])
    read = functools.partial(read_marks, n=len(answers[0]) if answers else 1)
    found = [read(reply and reply.text) for reply in teacher.ask(asked, step, reads=read)]
    print(f"  {step}: {found.count(None)} of {len(found)} replies without a mark")
    return found


def lion_gaps(args, teacher, rows: list[dict], own: list[str], theirs: list[str], step: str) -> list:
    """The teacher's mark minus the student's (ours: in both orders, because judges favour a place)."""
    pairs = list(zip(theirs, own, strict=True))
    one = judge_marks(args, teacher, rows, pairs, step)
    two = judge_marks(args, teacher, rows, [pair[::-1] for pair in pairs], step)
    gaps = []
    for a, b in zip(one, two, strict=True):
        gaps.append((a[0] - a[1] + b[1] - b[0]) / 2 if a and b else None)
    return gaps


def reward_scores(args, rows: list[dict], own: list[str]) -> list[float]:
    """Minus the reward model's score of each own answer (ours: any model of one output, with a template)."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig
    common.free_gpu()
    how = {"dtype": torch.float32}  # half precision is slow or wrong on a CPU
    if torch.cuda.is_available():
        nf4 = BitsAndBytesConfig(True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        how = {"dtype": torch.bfloat16, "device_map": {"": 0}, "quantization_config": nf4}
    with common.loading("--reward-model", args.reward_model):
        tokenizer = AutoTokenizer.from_pretrained(args.reward_model)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            args.reward_model, num_labels=1, use_safetensors=True, output_loading_info=True, **how)
    if info["missing_keys"]:
        raise UserError(f"--reward-model {args.reward_model}: expected a reward model of one output, but "
                        f"{min(info['missing_keys'])} is missing; take another")
    model.eval()
    found = []
    for row, text in zip(rows, tqdm(own, desc="reward", unit="answer"), strict=True):
        chat = common.apply_template(tokenizer, chat_of(row, text))
        ids = tokenizer(chat, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
        with torch.no_grad():
            found.append(-model(input_ids=ids).logits[0, 0].item())
    return found


# --- The steps of a round, with files and network. ----------------------------------------------------------
def spent(teacher, before=(0, 0)) -> list[int]:
    """Tokens that the teacher has read and written since `before`, cached replies included (see Budget)."""
    return [teacher.used["n_in"] - before[0], teacher.used["n_out"] - before[1]]


def answer_once(args, run, name: str, student, rows: list[dict]) -> dict[str, dict]:
    """The student's greedy answer to each question, by id."""
    return {i: one for i, (one,) in common.answer(args, run, name, student, rows, question, 0.0).items()}


def answer_seeds(args, run, t, student, seeds: list[dict]) -> dict[str, dict]:
    """Step 1: the student's answer to each seed, by id; none where the criterion reads none."""
    if args.select in ("random", "true_loss") or args.select == "static_loss" and t > 0:
        return {}
    own = answer_once(args, run, f"r{t}_answers.jsonl", student, seeds)
    print(f"  {sum(one['cut_off'] for one in own.values())} of {len(own)} answers cut off, so asked last")
    return own


def score_seeds(args, run, t, teacher, student, rows: list[dict], texts: dict[str, str]) -> dict:
    """Step 2: {"score", "loss" and "sketch" where there are such} of each seed that has a score, by id.

    texts: the own answers that are not cut off, by id.
    """
    if args.select == "random":
        return {row["id"]: {"score": 0.0} for row in rows}
    if args.select == "static_loss" and t > 0:
        kept = run.read("r0_selected.json")["scores"]
        return {row["id"]: {"score": kept[row["id"]]} for row in rows if row["id"] in kept}
    if args.select == "true_loss":
        texts = {row["id"]: row["solution"] for row in rows}
    if args.select in ("loss", "loss_low", "static_loss", "true_loss", "badge"):
        sign = -1 if args.select == "loss_low" else 1
        found = losses(args, student(), rows, texts)
        return {i: row | {"score": sign * row["loss"]} for i, row in found.items()}
    rows = [row for row in rows if row["id"] in texts]
    own = [texts[row["id"]] for row in rows]
    if args.select == "incorrect":
        is_right = [common.score(texts[row["id"]], row["answer"], row["problem"]) for row in rows]
        scores = [0.0 if right else 1.0 for right in is_right]  # no final answer: wrong
    elif args.select == "reward":
        student.cache_clear()  # the reward model needs its place
        scores = reward_scores(args, rows, own)
    elif args.select == "judge":
        found = judge_marks(args, teacher, rows, [[text] for text in own], f"r{t} judge")
        scores = [-mark[0] if mark else None for mark in found]
    else:
        theirs = run.read("teacher_answers.json")
        scores = lion_gaps(args, teacher, rows, own, [theirs[row["id"]] for row in rows], f"r{t} judge")
    return {row["id"]: {"score": x} for row, x in zip(rows, scores, strict=True) if x is not None}


def select(args, run, t, teacher, student, seeds: list[dict], own: dict[str, dict], asked: list) -> dict:
    """Steps 2 and 3: {"order": ids, the first of them selected, "scores", "losses", "cut_off", "tokens"}.

    own: step 1; asked: the seeds of each earlier round.
    """
    n_times = Counter(itertools.chain(*asked))

    def make():
        before, rng = spent(teacher), common.rng(args.seed, "select", t)
        if args.select == "lion" and t == 0:
            replies = teacher.ask(requests(args, SOLVE_PROMPT, seeds), "answer")
            theirs = [reply.text if reply else "(no answer)" for reply in replies]
            run.write("teacher_answers.json", dict(zip([row["id"] for row in seeds], theirs, strict=True)))
        rows = [row for row in seeds if not (args.no_repeat and n_times[row["id"]])]
        texts = {i: one["response"] for i, one in own.items() if not one["cut_off"]}
        found = score_seeds(args, run, t, teacher, student, rows, texts)
        scores = {i: row["score"] for i, row in found.items()}
        if args.select == "badge":  # twice m, since some items will be dropped
            order = by_gradient({i: row["sketch"] for i, row in found.items()}, 2 * args.per_round, rng)
        elif args.select == "lion":
            order = by_gap(scores, rng)
        else:
            order = by_score(scores, rng, args.sampling)
        last = [row["id"] for row in rows if row["id"] not in scores]
        rng.shuffle(last)
        order += sorted(last, key=lambda i: i not in texts)  # without a readable mark, then cut off
        if args.select == "static_loss":
            order.sort(key=lambda i: n_times[i])  # walks down: what was asked comes last again
        lengths = [own[i]["n_tokens"] for i in scores] if own else []
        return {"order": order, "scores": scores, "cut_off": len(own) - len(texts),
                "losses": {i: row["loss"] for i, row in found.items() if "loss" in row},
                "rho_length": spearman(list(scores.values()), lengths), "tokens": spent(teacher, before)}
    chosen = run.step(f"r{t}_selected.json", make)
    print(f"  rank correlation of score and length of the answer: {chosen['rho_length']}")
    return chosen


def propose(args, t, teacher, part, n_times: Counter, known: dict[str, str], tests, max_none) -> list[dict]:
    """A new question from each seed of `part`, or why it is dropped. It joins `known`, plain form -> text.

    ours: at T = 1, another sample each time, because a seed selected again is to give another item.
    """
    asked = requests(args, NEW_PROMPT, part, temperature=1.0)
    asked = [one._replace(sample=n_times[row["id"]]) for row, one in zip(part, asked, strict=True)]
    replies = teacher.ask(asked, f"r{t} write", max_none, reads=common.tagged("question"))
    found = [read_question(reply and reply.text) for reply in replies]
    leaks = common.leaked([one["problem"] or "" for one in found], tests)
    new = []
    for seed, one, leak in zip(part, found, leaks, strict=True):
        why, matched, text = one["fault"], None, common.plain(one["problem"] or "")
        if not why:
            matched = leak or known.get(text)
            known.setdefault(text, one["problem"])
        if matched:
            why = "in a test set" if leak else "a seed or an earlier item"
        new.append({"seed": seed["id"], "problem": one["problem"], "response": None, "answer": None,
                    "dropped": why, "matched": matched})
    return new


def solve_items(args, t, teacher, rows: list[dict], max_none) -> None:
    """Adds the teacher's worked answer to each new question, or why it is dropped."""
    n, needed = (args.n_solutions, args.n_agreeing) if args.verify == "sc" else (1, 1)
    asked = requests(args, SOLVE_PROMPT, [row | {"subject": None, "solution": None} for row in rows], n=n,
                     temperature=float(n > 1))
    replies = teacher.ask(asked, f"r{t} solve", max_none,
                          reads=lambda text: common.read_boxes(text) or None)
    solved = [read_solution(reply and reply.text) for reply in replies]
    for i, row in enumerate(rows):
        some = solved[n * i:n * i + n]
        group = agreeing([None if one["fault"] else one["answer"] for one in some])
        if len(group) >= needed:
            row |= {"response": some[group[0]]["response"], "answer": some[group[0]]["answer"]}
        else:
            row["dropped"] = "inconsistent" if n > 1 else some[0]["fault"]


def write(args, run, t, teacher, order: list[str], parts: dict, items: list[dict], asked: list) -> dict:
    """Step 4: {"rows": one for each seed asked, in order, until per_round are not dropped; "tokens"}."""
    seeds, tests = {row["id"]: row for row in parts["D_0"]}, [row["problem"] for row in parts["test"]]

    def make():
        before, rows, n_missing = spent(teacher), [], args.per_round
        known = {common.plain(row["problem"]): row["problem"] for row in parts["D_0"] + items}
        n_times = Counter(itertools.chain(*asked))
        while n_missing and len(rows) < len(order):
            # ours: after the first part every reply may be lost, because other seeds stand in for them
            max_none = 1.0 if rows else None
            part = [seeds[i] for i in order[len(rows):len(rows) + n_missing]]
            new = propose(args, t, teacher, part, n_times, known, tests, max_none)
            solve_items(args, t, teacher, [row for row in new if not row["dropped"]], max_none)
            rows += new
            n_missing = args.per_round - sum(not row["dropped"] for row in rows)
        rows = [{"id": f"r{t}/{i}", **row} for i, row in enumerate(rows)]
        return {"rows": rows, "tokens": spent(teacher, before)}
    made = run.step(f"r{t}_items.json", make)
    dropped, n = Counter(row["dropped"] for row in made["rows"]), len(made["rows"])
    n_new = dropped.pop(None, 0)
    print(f"  {n} seeds asked, {n_new} of {args.per_round} items; dropped: {dict(dropped) or 'none'}")
    if n_new == 0 and not items:
        raise UserError(f"round {t}: none of {n} seeds gave an item; read {run.path}/r{t}_items.json")
    return made


def compare_children(args, run, t, student, items: list[dict], of_seeds: dict) -> float | None:
    """Rank correlation of this round's losses on the selected seeds and on the items made of them."""
    if not of_seeds or args.select == "true_loss":
        return None
    own = answer_once(args, run, f"r{t}_child_answers.jsonl", student, items)
    texts = {i: one["response"] for i, one in own.items() if not one["cut_off"]}
    of_items = run.step(f"r{t}_child_losses.json", lambda: {
        i: row["loss"] for i, row in losses(args, student(), items, texts).items()})
    both = [row for row in items if row["seed"] in of_seeds and row["id"] in of_items]
    return spearman([of_seeds[row["seed"]] for row in both], [of_items[row["id"]] for row in both])


def train_on(args, run, t, items: list[dict]) -> None:
    """Step 5: the student of t rounds, from the base or under --warm-start from the last one."""
    adapter = run.path / "adapter" / f"r{t}"
    if not adapter.exists():
        earlier = adapter.with_name(f"r{t - 1}") if args.warm_start and t > 1 else None
        rows = [{"messages": chat_of(row, row["response"])} for row in items]
        run.step(f"train_r{t}.jsonl", lambda: rows)
        student = common.load_student(args.student, earlier, args.chat_template_kwargs)
        train(args, run, student, rows, f"r{t}", args.lr)
    adapter.with_suffix(".checkpoint.pt").unlink(missing_ok=True)


def evaluate(args, run, t, student, tests: list[dict]) -> list[int]:
    """Step 6: how many test questions the student answers rightly, and of how many."""
    def make():
        own = answer_once(args, run, f"r{t}_test_answers.jsonl", student, tests)
        return [{"id": row["id"], "cut_off": own[row["id"]]["cut_off"],
                 "is_right": common.score(own[row["id"]]["response"], row["answer"], row["problem"])}
                for row in tests]
    rows = run.step(f"r{t}_test.jsonl", make)
    return [sum(row["is_right"] is True for row in rows), len(rows)]


# --- A run to share the base's answers with. ----------------------------------------------------------------
def check_base(args, digests: dict[str, str]) -> None:
    """Refuse a --from of another student or of other questions."""
    if not Path(args.from_, "0_fingerprint.json").is_file():
        raise UserError(f"--from {args.from_}: expected the directory of a run, found none there; check it")
    there, here = common.read_json(Path(args.from_, "args.json")), asdict(args)
    odd = [f"{name} was {there.get(name)}" for name in BASE_BY if there.get(name) != here[name]]
    if common.read_json(Path(args.from_, "0_fingerprint.json")) != digests:
        odd.append("its questions are others")
    if odd:
        raise UserError(f"--from {args.from_}: expected a run with this one's base and questions, but "
                        f"{' and '.join(odd)}; name another run, or leave it out")


def take_base(args, run) -> None:
    """Copy what that run has of the base's answers and test, and the seconds that they took."""
    path = Path(args.from_)
    logged = [row for _, row in common.read_rows(path / "metrics.jsonl")]
    seconds = {row["step"]: row["seconds"] for row in logged if "step" in row}
    names = [] if args.select in ("random", "true_loss") else ["r0_answers.jsonl"]
    for name in [*names, "r0_test_answers.jsonl", "r0_test.jsonl"]:  # last what begin() looks for
        if (path / name).exists() and not (run.path / name).exists():
            run.step(name, lambda name=name: [row for _, row in common.read_rows(path / name)])
            run.log(step=name, seconds=seconds.get(name, 0.0), taken_from=str(path))


# --- Copied from stat_sel.py and stat_syn.py, where it is explained. ---------------------------------------
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


# Copied from stat_sel.requests
def requests(args, prompt: str, rows: list[dict], skills=None, responses=None, n=1, temperature=0.0) -> list:
    """n requests for each question, with its subject's skills and the student's response where asked for."""
    # ours: T = 0 but for rewrites, because the likeliest label is wanted, but n rewrites that differ
    asked = []
    for row, response in zip(rows, responses or [""] * len(rows), strict=True):
        names = "\n".join(skills[row["subject"]]) if skills else ""
        text = prompt.format(subject=row["subject"], problem=row["problem"], solution=row["solution"],
                             response=response, skills=names)
        message = {"role": "user", "content": text}
        asked += [Request([message], temperature, args.teacher_max_tokens, sample) for sample in range(n)]
    return asked


# Copied from stat_syn.read_question
def read_question(reply: str | None) -> dict:
    """Reason, draft and question of a reply (§C.3.3). `fault` says why there is no question in it."""
    reason, draft, problem = (common.read_tag(reply or "", tag) for tag in ("reason", "draft", "question"))
    solution = r"^\W*(final )?(solution|answer)\W*:"
    if reply is None:
        fault = "no reply"
    elif not problem:
        fault = "missing tag"
    else:
        is_solved = common.read_boxes(problem) or re.search(solution, problem, re.IGNORECASE | re.MULTILINE)
        fault = "holds an answer" if is_solved else None
    return {"reason": reason, "draft": draft, "problem": problem, "fault": fault}


# Copied from stat_syn.read_solution
def read_solution(reply: str | None) -> dict:
    """A solution and its final answer, which must be boxed; `fault`: why there is none, or no sure one."""
    boxed = [box for *_, box in common.read_boxes(reply or "")]
    if reply is None:
        fault = "no reply"
    elif not boxed:
        fault = "no final answer"
    else:
        fault = "several boxes" if any(not common.is_equiv(box, boxed[-1]) for box in boxed) else None
    return {"response": reply, "answer": boxed[-1] if boxed else None, "fault": fault}


# Copied from stat_syn.agreeing
def agreeing(answers: list[str | None]) -> list[int]:
    """The largest group of solutions that agree on the answer, by index, the first of equals (§2.3, §B.2).

    Each agrees with each, since 50, 50% and 1/2 are not one answer. None agrees with nothing.
    >>> agreeing(["7", "1/2", "0.5"]), agreeing(["1", None, "2"]), agreeing([None, None, None])
    ([1, 2], [0], [])
    """
    groups = []
    for i, first in enumerate(answers):
        group = [] if first is None else [i]
        for j, answer in enumerate(answers):
            if group and j != i and answer and all(common.is_equiv(answer, answers[k]) for k in group):
                group.append(j)
        groups.append(sorted(group))
    return max(groups, key=len, default=[])


def plan(args, seeds: list[dict]) -> None:
    """Print what the teacher will cost, before the first paid call. Seeds stand in for the new questions."""
    rows = [seeds[i % len(seeds)] for i in range(args.rounds * args.per_round)]
    n = args.n_solutions if args.verify == "sc" else 1
    n_marks = 2 if args.select == "lion" else 1  # each in an order of its own
    steps = {"write, for each item": requests(args, NEW_PROMPT, rows, temperature=1.0),
             "solve": requests(args, SOLVE_PROMPT, rows, n=n)}
    if args.select in ("judge", "lion"):
        longest = NEXT.join(["x" * 3 * args.max_new_tokens] * n_marks)
        responses = ["(the student's answer)", *[longest] * (len(seeds) - 1)]
        steps["judge"] = requests(args, JUDGE_PROMPT, seeds, responses=responses) * args.rounds * n_marks
    if args.select == "lion":
        steps["answer"] = requests(args, SOLVE_PROMPT, seeds)
    for name, asked in steps.items():
        steps[name] = [request._replace(sample=i) for i, request in enumerate(asked)]  # each is one call
    print("In place of each item that is dropped another seed is asked, which is not in this plan.")
    common.open_teacher(args, write=False).plan(steps, show=args.plan)


def refuse_early(args) -> None:
    """Refuse what would fail later, before a file is made."""
    common.check_args(args, lr=1, warmup=1, lora_dropout=0.99, weight_decay=1, max_grad_norm=1e9,
                      teacher_max_none=1, teacher_timeout=1e9, sampling=1e9)
    common.template_head(args.chat_template_kwargs)  # refuses what is not JSON
    if args.n_agreeing > args.n_solutions:
        raise UserError(f"--n-agreeing: expected at most --n-solutions {args.n_solutions}, came "
                        f"{args.n_agreeing}; ask for fewer")
    if args.sampling and args.select in ("badge", "lion"):
        raise UserError(f"--sampling: --select {args.select} has no scores to draw by; leave it out")
    if (args.select == "reward") != (args.reward_model is not None):
        raise UserError("--select reward and --reward-model NAME belong together; give both or none")
    if args.plan:
        return
    common.check_checkpoint(args.student, "--student")
    common.check_checkpoint(args.reward_model, "--reward-model")
    if args.reward_model:
        from transformers import AutoTokenizer
        with common.loading("--reward-model", args.reward_model):
            common.apply_template(AutoTokenizer.from_pretrained(args.reward_model), question("q"))


def load_parts(args) -> dict[str, list[dict]]:
    """{"D_0", "test"}: the questions. D_0's have answers and solutions, and none is a test question."""
    split = {}
    for name in ("train", "test"):
        rows = common.load(args.data, name)
        split[name] = [row for row in rows if not args.levels or row["level"] in args.levels]
    tests = split["test"]
    pool = common.without([row for row in split["train"] if row["answer"] and row["solution"]], tests)
    if not pool or not tests:
        raise UserError(f"--data {args.data}, --levels {args.levels}: {len(pool)} questions to draw from and "
                        f"{len(tests)} to test on; check both")
    tests = common.rng(args.seed, "limit").sample(tests, min(args.limit or len(tests), len(tests)))
    seeds = common.rng(args.seed, "seeds").sample(pool, min(args.n_seeds, len(pool)))
    if args.no_repeat and args.rounds * args.per_round > len(seeds):
        raise UserError(f"--no-repeat: {args.rounds} rounds of {args.per_round} items need more seeds than "
                        f"the {len(seeds)} of D_0; ask for fewer")
    print(f"D_0 {len(seeds)} questions of {len(pool)}, tested on {len(tests)}")
    return {"D_0": seeds, "test": tests}


def begin(args, parts: dict[str, list[dict]]) -> tuple:
    """The run's directory and the teacher. Refuses other arguments, other questions, a dead server."""
    takes_base = args.from_ and not Path(args.out, "r0_test.jsonl").exists()  # later that run may be gone
    if takes_base:
        check_base(args, {part: common.digest(rows) for part, rows in parts.items()})
    run = common.open_run(args, args.out, MAY_CHANGE)
    common.check_questions(run, parts)
    run.step("0_questions.jsonl", lambda: [
        {"id": row["id"], "part": part, "problem": row["problem"]} for part in parts for row in parts[part]])
    if takes_base:
        take_base(args, run)
    teacher = common.open_teacher(args)
    if not any((run.path / name).exists() for name in ("result.json", f"r{args.rounds - 1}_items.json")):
        teacher.check()  # now, not after the student has answered for hours
    return run, teacher


def main(args: Args) -> None:
    refuse_early(args)
    parts = load_parts(args)
    seeds, tests = parts["D_0"], parts["test"]
    plan(args, seeds)
    if args.plan:
        return
    run, teacher = begin(args, parts)
    items, asked, curve, tokens = [], [], [], [0, 0]  # asked: the seeds of each round
    for t in range(args.rounds + 1):
        if t > 0:
            train_on(args, run, t, items)
        adapter = run.path / "adapter" / f"r{t}" if t > 0 else None
        load = functools.partial(common.load_student, args.student, adapter, args.chat_template_kwargs)
        student = functools.cache(load)  # loaded when first needed
        n_right, n = evaluate(args, run, t, student, tests)
        curve.append({"round": t, "items": len(items), "right": [n_right, n], "tokens": tokens})
        print(f"round {t}: {n_right} of {n} right after {len(items)} items, {sum(tokens):,} teacher tokens")
        if t == args.rounds or args.budget_tokens and sum(tokens) >= args.budget_tokens:
            break
        own = answer_seeds(args, run, t, student, seeds)
        chosen = select(args, run, t, teacher, student, seeds, own, asked)
        made = write(args, run, t, teacher, chosen["order"], parts, items, asked)
        new = [row for row in made["rows"] if not row["dropped"]]
        if not new:
            break
        rho_children = compare_children(args, run, t, student, new, chosen["losses"])
        student.cache_clear()  # one model at a time
        now = {row["seed"] for row in made["rows"]}
        last = asked[-1] if asked else []
        curve[-1] |= {
            "rho_length": chosen["rho_length"], "rho_children": rho_children, "cut_off": chosen["cut_off"],
            "asked": len(now), "dropped": Counter(row["dropped"] for row in made["rows"] if row["dropped"]),
            "again": len(now.intersection(itertools.chain(*asked))), "overlap": len(now.intersection(last))}
        asked.append(sorted(now))
        items = items + new
        tokens = [sum(counts) for counts in zip(tokens, chosen["tokens"], made["tokens"], strict=True)]
    run.write("result.json", {
        "method": "active_loop", "select": args.select, "norm": args.norm, "from": args.from_,
        "teacher_totals": teacher.recorded, "curve": curve})
    print(f"{run.path}/result.json")


if __name__ == "__main__":
    common.cli(main, Args, __doc__)
