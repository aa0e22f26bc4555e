r"""Active loop: each round the student's own scores choose the seed questions from which the teacher writes what the student is trained on next.

Re-implemented from the abstract, the project page and public reviews: the paper's body could not be read. What these do not say is marked ours.
Paper   Kessler, Xia, Madrigal Diaz, Han, Hashemi, Rajmohan, Ruehle, Ash, "Towards Active Synthetic Data Generation for Finetuning Language Models",
        arXiv 2512.00884
Steps   of each round t = 0 .. T-1, on fixed seed questions D_0; new questions never join them:
        1 answer    the student answers every seed question
        2 score     by --select: what the student's answer, or its loss on it, says of the question
        3 select    the m seeds with the highest scores
        4 write     the teacher makes one item from each in two calls: a new question from the seed question alone, then a worked answer to it
        5 train     the base student anew on the union of all items so far, by QLoRA
        6 test      accuracy on the test questions
Names   D_0 = seeds, T = rounds, m = per_round. item = a new question with its answer; own answer = the student's answer to a seed question.
Select  random      no scores: static generation, since neither the seeds nor the teacher know the student
        loss        high loss of the student on its own answer: the paper's choice
        true_loss   high loss of the student on the seed's own solution
        static_loss loss of the base student, ranked once and walked down; loss - static_loss is what the closed loop adds (ours)
        reward      low score that a reward model gives the own answer
        judge       low mark that the teacher gives it
        lion        half where the teacher's answer is marked higher than the own one, half from the others (LION)
        badge       k-means++ over sketches of the loss's gradient on the own answer (BADGE)
        incorrect   seeds that the student answered wrongly (LLM2LLM), then the others
Ours    Answers are greedy. An item that is malformed, repeats a seed or an earlier item, or leaks a test question is dropped, and the next seed of
        the order is asked instead: so all criteria train on equally many items. What else is ours says so where it happens.
Run     python active_loop.py --data gsm8k --teacher gpt-4o-mini                          # the small run: 2,000 seeds, 4 rounds of 250
        python active_loop.py --data math --levels 1 2 3 --n-seeds 7500 --per-round 1000 --rounds 10   # the paper's sizes
        python active_loop.py --plan                                                     # calls, tokens, one prompt of each kind; sends nothing
        python -m toyworld active_loop                                                   # no GPU, no key, minutes
Writes  runs/active_loop/  args.json env.json 0_fingerprint.json 0_questions.jsonl;
        of each round (r<t>_answers.jsonl) r<t>_selected.json r<t>_items.json
        train_r<t>.jsonl loss_r<t>.jsonl adapter/r<t>/ r<t>_test_answers.jsonl r<t>_test.jsonl (r<t>_child_answers.jsonl r<t>_child_losses.json);
        (teacher_answers.json) teacher.sqlite metrics.jsonl result.json
"""
import functools
import gc
import itertools
import math
import random
import re
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch
from tqdm import tqdm

import common
from common import Request, UserError

# May differ between the starts of one run. The batch sizes move the draws of dropout and of sampling: what is there already is kept.
HOW = ("teacher_url", "teacher_max_tokens", "teacher_timeout", "teacher_max_none", "cache", "concurrency", "max_usd", "usd_per_m_in", "usd_per_m_out",
       "plan", "micro_batch", "sample_batch", "checkpointing")


@dataclass(frozen=True)
class Args:
    student: str = "Qwen/Qwen2.5-3B"  # model to improve: Hub name or folder
    chat_template_kwargs: str | None = None  # JSON that every use of the student's chat template gets, such as {"enable_thinking": false}
    data: str = "gsm8k"  # "gsm8k", "math", or a folder with train.jsonl (for D_0) and test.jsonl
    levels: tuple[int, ...] = ()  # only questions of these levels, for D_0 and for testing; the paper's Math1-3 is --data math --levels 1 2 3
    n_seeds: int = 2000  # size of D_0, drawn from the train split (ours: for one GPU and an evening)
    limit: int | None = None  # test on so many questions only: a quick look
    out: str = "runs/active_loop"  # run directory; the same command goes on where it stopped
    seed: int = 0  # moves everything that is drawn

    select: Literal["random", "loss", "true_loss", "static_loss", "reward", "judge", "lion", "badge", "incorrect"] = "loss"  # see Select
    rounds: int = 4  # T (ours: for one GPU and an evening; the paper's budget of 10,000 items is 10 rounds of 1,000)
    per_round: int = 250  # m, items of a round (ours, as above; the paper's is 1,000)
    no_repeat: bool = False  # no seed is selected twice, whatever the criterion
    warm_start: bool = False  # train on from the last round's student instead of the base student (ablation)
    sampling: float = 0.0  # above 0: seeds are drawn with probability ~ exp(score / sampling) (Gumbel top-m), not taken from the top (ablation)
    verify: Literal["none", "sc"] = "none"  # sc: keep an item only if n_agreeing of n_solutions worked answers agree
    n_solutions: int = 5  # worked answers to a new question under --verify sc
    n_agreeing: int = 3  # so many must agree; where answers are True or False, ask for all
    budget_tokens: int | None = None  # no further round once the teacher has read and written so many tokens, judging and dropped items included
    reward_model: str | None = None  # sequence-classification model, for --select reward

    teacher: str = "gpt-4o-mini"  # model that writes the items, and judges
    teacher_url: str | None = None  # address of any OpenAI-compatible server; default: OpenAI, key from OPENAI_API_KEY
    teacher_max_tokens: int = 2048  # length limit of a teacher's reply; raise it for a model that thinks aloud
    teacher_timeout: float = 600.0  # seconds for one call with all its retries
    teacher_max_none: float = 0.05  # share of a step's replies that may be cut off, empty, refused or lost (ours: a healthy teacher stays below)
    cache: str | None = None  # file of teacher replies, each good for its server alone; default: teacher.sqlite in the run directory
    concurrency: int = 16  # teacher calls in flight
    usd_per_m_in: float | None = None  # price of a million input tokens
    usd_per_m_out: float | None = None  # price of a million output tokens
    max_usd: float | None = None  # stop cleanly before spending more; needs both prices
    plan: bool = False  # print the teacher calls ahead, one prompt of each kind, and stop

    max_new_tokens: int = 1024  # length limit of an answer
    lr: float = 1e-4  # peak (ours, untuned)
    epochs: int = 3  # (ours)
    batch: int = 8  # pairs in an optimiser step (ours)
    micro_batch: int = 2  # pairs in a forward pass: lower it if memory is short
    max_tokens: int = 2048  # a training pair is cut after this many tokens (ours: the length limit of an answer)
    lora_rank: int = 16  # (ours, as all of LoRA's settings: those of the STAT paper)
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    weight_decay: float = 0.1
    max_grad_norm: float = 0.3  # gradient clip
    warmup: float = 0.03  # share of the steps, then cosine to zero
    checkpointing: bool = True  # gradient checkpointing: less memory, a third more time
    sample_batch: int = 32  # answers generated at once: lower it if memory is short


# --- Prompts (ours). --------------------------------------------------------------------------------------------------------------------------
# Copied from stat_sel.STUDENT_PROMPT
STUDENT_PROMPT = "{problem}\n\nReason step by step and put the final answer in \\boxed{{}}."

# ours: neutral, not "make it harder", because then a drift in difficulty comes from the selection alone
NEW_PROMPT = """Here is a problem.

<problem>
{problem}
</problem>

Write a new problem that is inspired by this one. It must say all that is needed to solve it, and have one final answer that can be checked. Give the
problem alone, without its solution, in this form:
<question>the new problem</question>"""

# Copied from stat_syn.SOLVE_PROMPT
SOLVE_PROMPT = """Solve this problem.

<problem>
{problem}
</problem>

Reason step by step, show every calculation, and put the final answer, once, in \\boxed{{}}."""

JUDGE_PROMPT = """Here are a problem and {n} to it.

<problem>
{problem}
</problem>

{responses}

How good {is_are}: correct, complete, well reasoned? Give {marks} from 1 (worthless) to 10 (perfect) in this form:
{form}"""


# --- Criteria: pure functions from scores to an order of the seeds. No files, no network. -----------------------------------------------------
def by_score(scores: list[float | None], rng: random.Random, sampling: float = 0.0) -> list[int]:
    """Seeds from the highest score to the lowest, equal ones at random; one without a score (None) is left out.

    sampling > 0: they are drawn one by one with probability ~ exp(score / sampling), by Gumbel noise on the scores.
    """
    known = [i for i, score in enumerate(scores) if score is not None]
    noise = {i: -math.log(-math.log(rng.uniform(1e-12, 1 - 1e-12))) for i in known}
    return sorted(known, key=lambda i: (scores[i] / sampling + noise[i], 0.0) if sampling else (scores[i], noise[i]), reverse=True)


def by_gap(gaps: list[float | None], m: int, rng: random.Random) -> list[int]:
    """LION's order: m/2 at random from the hard seeds, whose teacher's answer is marked at least 1 higher than the student's, m/2 from the others.

    Where there are too few of one kind, more of the other follow.
    """
    hard, easy = (rng.sample(part, len(part)) for part in (
        [i for i, gap in enumerate(gaps) if gap is not None and gap >= 1], [i for i, gap in enumerate(gaps) if gap is not None and gap < 1]))
    mixed = [i for pair in itertools.zip_longest(easy[m - m // 2:], hard[m // 2:]) for i in pair if i is not None]
    return hard[:m // 2] + easy[:m - m // 2] + mixed


def by_gradient(sketches: torch.Tensor, known: list[int], m: int, rng: random.Random) -> list[int]:
    """BADGE's order: k-means++ over the rows (N, s) that are known, from the one of the largest norm on; m of them, then the rest at random."""
    left, order, norms = list(known), [], sketches.square().sum(1)
    distance = norms.clone()  # from the origin: the first is the one of the largest norm
    while left and len(order) < m:
        weights = distance[left].tolist()
        if not order:
            chosen = left[weights.index(max(weights))]
        else:
            chosen = rng.choices(left, weights)[0] if any(weights) else rng.choice(left)
        near = (norms + norms[chosen] - 2 * sketches @ sketches[chosen]).clamp(min=0)
        near[near < 1e-5 * norms[chosen]] = 0  # rounding
        distance = torch.minimum(distance, near) if order else near
        order.append(chosen)
        left.remove(chosen)
    return order + rng.sample(left, len(left))


def spearman(xs: list[float], ys: list[float]) -> float | None:
    """Rank correlation, ties with their mean rank; None where one side has no two different values.

    >>> spearman([1, 2, 3], [10, 20, 15]), spearman([1, 1], [1, 2])
    (0.5, None)
    """
    def ranks(values):
        first = {value: i for i, value in reversed(list(enumerate(sorted(values))))}
        count = Counter(values)
        return [first[value] + (count[value] - 1) / 2 for value in values]
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    return round(statistics.correlation(ranks(xs), ranks(ys)), 6)


# --- The student's scores. ---------------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def score_answers(student: common.Student, pairs: list[tuple[list[int], int]], sketch_seed: int | None = None) -> list[dict]:
    """{"loss"} of each answer: the mean over its tokens, the end token among them, of -log p at temperature 1; with sketch_seed also {"sketch"}.

    pairs: tokens of question and answer, and how many are the question's; the last is taken for any end token, and the likeliest one is scored, since
    that is what a greedy answer ended with. One padded forward pass; logits in float32, (n_answer, V), for one answer
    at a time.
    sketch (4096,): R_v^T g R_h for the gradient g (V, d) of that loss by the last layer's weights, g = mean_t (p_t - e_y,t) h_t^T, which is never
    stored; R_v (V, 64), R_h (d, 64) are Gaussian.
    """
    model = student.model.eval()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids, mask = common.pad([ids for ids, _ in pairs], student.device)
    hidden, ends = common.hidden_states(model, ids, mask), torch.tensor(sorted(student.stop_ids), device=student.device)  # (B, T, d)
    if sketch_seed is not None:
        generator = torch.Generator().manual_seed(sketch_seed)
        of_v, of_h = (torch.randn(n, 64, generator=generator).to(student.device) / 8 for n in (base.lm_head.out_features, base.lm_head.in_features))
    out = []
    for i, (row, n) in enumerate(pairs):
        h, y = hidden[i, n - 1:len(row) - 1], ids[i, n:len(row)]  # (n_answer, d), (n_answer,)
        log_p = base.lm_head(h).float().log_softmax(-1)  # (n_answer, V)
        y = torch.cat([y[:-1], ends[log_p[-1, ends].argmax()][None]])
        out.append({"loss": -log_p.gather(1, y[:, None]).mean().item()})
        if sketch_seed is not None:
            error = log_p.exp()
            error[torch.arange(len(y)), y] -= 1  # p_t - e_y,t
            out[-1]["sketch"] = ((error @ of_v).T @ (h.float() @ of_h) / len(y)).flatten().cpu()
    return out


# --- The loop, with files and network. ----------------------------------------------------------------------------------------------------------
def losses(args, student: common.Student, rows: list[dict], texts: dict[str, str | None], sketch: bool = False) -> dict[str, dict]:
    """score_answers for texts[id], an answer to each question, by id; nothing for a question without a text."""
    pairs = {row["id"]: encode(student, [*question(row["problem"]), {"role": "assistant", "content": texts[row["id"]]}], 10**6)
             for row in rows if texts[row["id"]] is not None}
    order, found = sorted(pairs, key=lambda i: (len(pairs[i][0]), i)), {}
    for start in tqdm(range(0, len(order), args.sample_batch), desc="score", unit="batch"):
        batch = order[start:start + args.sample_batch]
        scored = score_answers(student, [pairs[i] for i in batch], common.torch_seed(args.seed, "sketch") if sketch else None)
        found |= dict(zip(batch, scored, strict=True))
    return found


def spent(teacher) -> list[int]:
    """Tokens that the teacher has read and written for this process's questions, those that the cache answered among them: what the method takes.

    What is paid may be less: an answer that is the same in a later round is judged once. That sum is teacher_totals in result.json."""
    return [teacher.used["n_in"], teacher.used["n_out"]]


def judging(args, rows: list[dict], answers: list[list[str]]) -> list[Request]:
    """Requests for marks for one answer or two to each question."""
    one = {"n": "an answer", "is_are": "is the answer", "marks": "a mark", "form": "<mark>number</mark>"}
    two = {"n": "two answers", "is_are": "are the answers", "marks": "each a mark",
           "form": "<mark>number for the first, number for the second</mark>"}
    return [Request([{"role": "user", "content": JUDGE_PROMPT.format(problem=row["problem"], responses="\n\n".join(
        f"<response>\n{text}\n</response>" for text in texts), **(one if len(texts) == 1 else two))}], 0.0, args.teacher_max_tokens)
        for row, texts in zip(rows, answers, strict=True)]


def mark(args, teacher, rows: list[dict], answers: list[list[str]], step: str) -> list[list[float] | None]:
    """The teacher's marks, 1 to 10, for one answer or two to each question; None where a reply has none."""
    n, out = len(answers[0]) if answers else 1, []
    for reply in teacher.ask(judging(args, rows, answers), step):
        text = re.sub(r"(?:/|out of)\s*10\b", "", common.read_tag(reply.text, "mark") or "") if reply else ""
        found = [float(x) for x in re.findall(r"\d+(?:\.\d+)?", text)]
        out.append(found if len(found) == n and all(1 <= x <= 10 for x in found) else None)
    print(f"  {step}: {sum(found is None for found in out)} of {len(out)} replies without a mark")
    return out


def rewards(args, rows: list[dict], answers: list[str]) -> list[float]:
    """The reward model's score of each answer (ours: any sequence-classification model of one output with a chat template)."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    gc.collect()  # PEFT's wrappers refer to one another
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # on a CPU in float32, since half precision is slow or wrong there
    dtype, where = (torch.bfloat16, {"": 0}) if torch.cuda.is_available() else (torch.float32, None)
    with common.loading("--reward-model", args.reward_model):
        tokenizer = AutoTokenizer.from_pretrained(args.reward_model)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            args.reward_model, quantization_config=quantization if torch.cuda.is_available() else None, num_labels=1, output_loading_info=True,
            dtype=dtype, device_map=where)
    if info["missing_keys"] or tokenizer.chat_template is None:
        raise UserError(f"--reward-model {args.reward_model}: expected a reward model of one output with a chat template, but "
                        f"{min(info['missing_keys'], default='the template')} is missing; take another")
    model.eval()
    out = []
    for row, text in tqdm(list(zip(rows, answers, strict=True)), desc="reward", unit="answer"):
        chat = common.apply_template(tokenizer, [*question(row["problem"]), {"role": "assistant", "content": text}])
        ids = tokenizer(chat, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
        with torch.no_grad():
            out.append(model(input_ids=ids).logits[0, 0].item())
    return out


def select(args, run, t: int, teacher, student, seeds: list[dict], barred: set[str]) -> dict:
    """Steps 1 to 3 of round t: {"order": ids, the first of them selected, "scores", "losses", "cut_off", "tokens"} (r<t>_selected.json)."""
    rng, before = common.rng(args.seed, "select", t), spent(teacher)
    if args.select == "static_loss" and t > 0:  # the base student's ranking is kept
        return run.step(f"r{t}_selected.json", lambda: run.read("r0_selected.json") | {
            "losses": {}, "rho_length": None, "cut_off": 0, "tokens": [0, 0]})
    own = common.answer(args, run, f"r{t}_answers.jsonl", student, seeds, question, 0.0) if args.select not in ("random", "true_loss") else {}

    def make():
        # ours: an answer that was cut off at the length limit has no score, because what runs on and on looks certain; its seed comes last, so that
        # every criterion draws from the same seeds
        texts = {row["id"]: None if own[row["id"]][0]["cut_off"] else own[row["id"]][0]["response"] for row in seeds} if own else {}
        answered, found, scores = [row for row in seeds if texts.get(row["id"]) is not None], {}, {}
        if args.select in ("loss", "static_loss", "badge", "true_loss"):
            given = {row["id"]: row["solution"] for row in seeds} if args.select == "true_loss" else texts
            found = losses(args, student(), seeds, given, sketch=args.select == "badge")
            scores = {i: row["loss"] for i, row in found.items()}
        elif args.select == "random":
            scores = {row["id"]: 0.0 for row in seeds}
        elif args.select == "incorrect":
            # ours: the others follow, because when the wrong ones run out equal numbers of items are to be compared still
            scores = {row["id"]: float(not common.score(texts[row["id"]] or "", row["answer"], row["problem"])) for row in seeds}
        elif args.select == "reward":
            student.cache_clear()  # the reward model needs its place
            scores = {row["id"]: -x for row, x in zip(answered, rewards(args, answered, [texts[row["id"]] for row in answered]), strict=True)}
        else:
            asked, marks = [row for row in answered if row["id"] not in barred], {}
            if args.select == "judge":
                marks = {row["id"]: found and -found[0] for row, found in zip(asked, mark(
                    args, teacher, asked, [[texts[row["id"]]] for row in asked], f"r{t} judge"), strict=True)}
            else:  # ours: each pair of answers in both orders, because judges favour a place
                if t == 0:
                    replies = teacher.ask(requests(args, SOLVE_PROMPT, seeds), "answer")
                    run.write("teacher_answers.json", {row["id"]: reply.text if reply else "(no answer)"
                                                       for row, reply in zip(seeds, replies, strict=True)})
                theirs = run.read("teacher_answers.json")
                both = [[theirs[row["id"]], texts[row["id"]]] for row in asked]
                one, two = mark(args, teacher, asked, both, f"r{t} judge"), mark(args, teacher, asked, [pair[::-1] for pair in both], f"r{t} judge")
                marks = {row["id"]: (a[0] - a[1] + b[1] - b[0]) / 2 if a and b else None for row, a, b in zip(asked, one, two, strict=True)}
            scores = {i: x for i, x in marks.items() if x is not None}
        ids = [row["id"] for row in seeds]
        values = [scores.get(i) if i not in barred else None for i in ids]
        if args.select == "badge":
            sketches = torch.stack([found[i]["sketch"] if i in found else torch.zeros(4096) for i in ids])
            order = by_gradient(sketches, [i for i, x in enumerate(values) if x is not None], 2 * args.per_round, rng)
        elif args.select == "lion":
            order = by_gap(values, args.per_round, rng)
        else:
            order = by_score(values, rng, args.sampling)
        last = [i for i, x in enumerate(values) if x is None and ids[i] not in barred]
        order += rng.sample(last, len(last))
        lengths = {i: rows[0]["n_tokens"] for i, rows in own.items() if i in scores}
        return {"order": [ids[i] for i in order], "scores": scores, "losses": {i: row["loss"] for i, row in found.items()},
                "rho_length": spearman([scores[i] for i in lengths], list(lengths.values())), "cut_off": len(own) and len(own) - len(answered),
                "tokens": [after - b for after, b in zip(spent(teacher), before, strict=True)]}
    return run.step(f"r{t}_selected.json", make)


def write(args, run, t: int, teacher, order: list[dict], tested: list[str], seen: dict[str, str], asked_before: Counter) -> dict:
    """Step 4 of round t: items from the seeds in order until per_round are accepted: {"rows", "tokens"} (r<t>_items.json).

    seen: plain form -> text of D_0 and of all earlier items; asked_before: how often each seed was asked in earlier rounds, to draw another sample.
    """
    def make():
        before, rows, texts = spent(teacher), [], dict(seen)
        n = args.n_solutions if args.verify == "sc" else 1
        while (missing := args.per_round - sum(not row["dropped"] for row in rows)) > 0 and len(rows) < len(order):
            part = order[len(rows):len(rows) + missing]
            # ours: of the few that are asked after the first part any share may come to nothing, because other seeds stand in for them
            max_none = 1.0 if rows else None
            # ours: at T = 1, because a seed that is selected again is to give another question
            replies = teacher.ask([Request([{"role": "user", "content": NEW_PROMPT.format(problem=row["problem"])}], 1.0, args.teacher_max_tokens,
                                           asked_before[row["id"]]) for row in part], f"r{t} write", max_none)
            new, found = [], [read_question(reply and reply.text) for reply in replies]
            leaks = common.leaked([one["problem"] or "" for one in found], tested)
            for row, one, leak in zip(part, found, leaks, strict=True):
                problem, why, matched = one["problem"], one["fault"], None
                if not why:
                    text = common.plain(problem)
                    why = "in a test set" if leak else "a seed or an earlier item" if text in texts else None
                    matched = leak or texts.get(text)
                    texts.setdefault(text, problem)
                new.append({"id": f"r{t}/{len(rows) + len(new)}", "seed": row["id"], "problem": problem, "response": None, "answer": None,
                            "dropped": why, "matched": matched})
            left = [row for row in new if not row["dropped"]]
            asked = requests(args, SOLVE_PROMPT, [row | {"subject": None, "solution": None} for row in left], n=n, temperature=float(n > 1))
            solved = [read_solution(reply and reply.text) for reply in teacher.ask(asked, f"r{t} solve", max_none)]
            for i, row in enumerate(left):
                some = solved[n * i:n * i + n]
                group = agreeing([None if one["fault"] else one["answer"] for one in some])
                if len(group) < (args.n_agreeing if n > 1 else 1):
                    row["dropped"] = "inconsistent" if n > 1 else some[0]["fault"]
                else:
                    row |= {"response": some[group[0]]["response"], "answer": some[group[0]]["answer"]}
            rows += new
        return {"rows": rows, "tokens": [after - b for after, b in zip(spent(teacher), before, strict=True)]}
    made = run.step(f"r{t}_items.json", make)
    dropped = Counter(row["dropped"] for row in made["rows"] if row["dropped"])
    print(f"  {len(made['rows'])} seeds asked, {len(made['rows']) - dropped.total()} items, dropped: {dict(dropped) or 'none'}")
    return made


def compare_children(args, run, t: int, student, items: list[dict], seed_losses: dict[str, float]) -> float | None:
    """Rank correlation between the losses on the selected seeds and on the items made from them, both by this round's student on its own answers."""
    if not seed_losses or args.select == "true_loss":
        return None
    own = common.answer(args, run, f"r{t}_child_answers.jsonl", student, items, question, 0.0)

    def make():
        found = losses(args, student(), items, {i: None if rows[0]["cut_off"] else rows[0]["response"] for i, rows in own.items()})
        return {i: row["loss"] for i, row in found.items()}
    children = run.step(f"r{t}_child_losses.json", make)
    both = [(seed_losses[row["seed"]], children[row["id"]]) for row in items if row["id"] in children and row["seed"] in seed_losses]
    return spearman([seed for seed, _ in both], [child for _, child in both])


def evaluate(args, run, t: int, student, tests: list[dict]) -> list[dict]:
    """Whether each test question is answered rightly by the student of t rounds; None where no final answer was found."""
    def make():
        found = common.answer(args, run, f"r{t}_test_answers.jsonl", student, tests, question, 0.0)
        return [{"id": row["id"], "is_right": common.score(found[row["id"]][0]["response"], row["answer"], row["problem"]),
                 "cut_off": found[row["id"]][0]["cut_off"]} for row in tests]
    return run.step(f"r{t}_test.jsonl", make)


# --- Copied from stat_sel.py and stat_syn.py, where they are explained: the student, the teacher's replies, decontamination. ------------------
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
    """Print what the teacher will cost, before the first paid call; nothing is asked again for what is dropped, but another seed is asked instead."""
    rows = [seeds[i % len(seeds)] for i in range(args.per_round)]
    n = args.n_solutions if args.verify == "sc" else 1
    writes = [Request([{"role": "user", "content": NEW_PROMPT.format(problem=row["problem"])}], 1.0, args.teacher_max_tokens, i)
              for i, row in enumerate(rows * args.rounds)]
    solves = [request._replace(sample=i) for i, request in enumerate(requests(args, SOLVE_PROMPT, rows * args.rounds, n=n))]  # seeds stand in
    steps = {"write, for each item": writes, "solve": solves}
    if args.select in ("judge", "lion"):
        shown, longest = ["(the student's answer)"] * (1 + (args.select == "lion")), ["x" * 3 * args.max_new_tokens] * (1 + (args.select == "lion"))
        asked = judging(args, seeds, [shown] + [longest] * (len(seeds) - 1))
        steps["judge"] = [request._replace(sample=i) for i, request in enumerate(asked * args.rounds * len(shown))]
        steps |= {"answer": requests(args, SOLVE_PROMPT, seeds)} if args.select == "lion" else {}
    print("In place of each item that is dropped another seed is asked, which is not in this plan.")
    common.open_teacher(args, write=False).plan(steps, show=args.plan)


def main(args: Args) -> None:
    common.check_args(args, lr=1, warmup=1, lora_dropout=0.99, weight_decay=1, max_grad_norm=1e9, teacher_max_none=1,
                      teacher_timeout=1e9, sampling=1e9)
    common.template_head(args.chat_template_kwargs)  # refuses what is not JSON
    if args.n_agreeing > args.n_solutions:
        raise UserError(f"--n-agreeing: expected at most --n-solutions {args.n_solutions}, came {args.n_agreeing}")
    if args.sampling and args.select in ("badge", "lion"):
        raise UserError(f"--sampling: --select {args.select} has no scores to draw by; leave it out")
    if (args.select == "reward") != (args.reward_model is not None):
        raise UserError("--select reward and --reward-model NAME belong together; give both or none")
    for flag, name in (("--student", args.student), ("--reward-model", args.reward_model)):
        common.check_checkpoint(None if args.plan else name, flag)  # now, not after hours
    if args.reward_model and not args.plan:
        from transformers import AutoTokenizer
        with common.loading("--reward-model", args.reward_model):
            common.apply_template(AutoTokenizer.from_pretrained(args.reward_model), question("q"))
    levels = set(args.levels)
    tests, pool = ([row for row in common.load(args.data, split) if not levels or row["level"] in levels] for split in ("test", "train"))
    pool = common.without([row for row in pool if row["answer"] and row["solution"]], tests)
    tests = common.rng(args.seed, "limit").sample(tests, min(args.limit or len(tests), len(tests)))
    seeds = common.rng(args.seed, "seeds").sample(pool, min(args.n_seeds, len(pool)))
    if not seeds or not tests:
        raise UserError(f"--data {args.data}, --levels {args.levels}: {len(pool)} questions to draw from and {len(tests)} to test on; check both")
    if len({row["id"] for row in seeds + tests}) < len(seeds + tests):
        raise UserError(f"--data {args.data}: an id stands in train.jsonl and in test.jsonl too; make the ids unique")
    if args.no_repeat and args.rounds * args.per_round > len(seeds):
        raise UserError(f"--no-repeat: {args.rounds} rounds of {args.per_round} items need more seeds than the {len(seeds)} of D_0; ask for fewer")
    print(f"D_0 {len(seeds)} questions of {len(pool)}, tested on {len(tests)}")
    plan(args, seeds)
    if args.plan:
        return
    run = common.open_run(args, args.out, HOW)
    parts = {"D_0": seeds, "test": tests}
    common.check_questions(run, parts)
    run.step("0_questions.jsonl", lambda: [{"id": row["id"], "part": part, "problem": row["problem"]} for part in parts for row in parts[part]])
    teacher, tested = common.open_teacher(args), [row["problem"] for row in tests]
    if not (run.path / "result.json").exists() and not (run.path / f"r{args.rounds - 1}_items.json").exists():
        teacher.check()  # now, not after the student has answered for hours
    by_id, seen = {row["id"]: row for row in seeds}, {common.plain(row["problem"]): row["problem"] for row in seeds}
    items, asked_before, selected, tokens, curve = [], Counter(), [], [0, 0], []
    student = functools.cache(lambda: None)
    for t in range(args.rounds + 1):
        adapter = run.path / "adapter" / f"r{t}" if t else None
        if t and not adapter.exists():
            earlier = run.path / "adapter" / f"r{t - 1}" if args.warm_start and t > 1 else None
            train_rows = [{"messages": question(row["problem"]) + [{"role": "assistant", "content": row["response"]}]} for row in items]
            student.cache_clear()  # one model at a time
            train_rows = run.step(f"train_r{t}.jsonl", lambda rows=train_rows: rows)
            train(args, run, common.load_student(args.student, earlier, args.chat_template_kwargs), train_rows, f"r{t}", args.lr)
        if t:
            adapter.with_suffix(".checkpoint.pt").unlink(missing_ok=True)
        student = functools.cache(lambda adapter=adapter: common.load_student(args.student, adapter, args.chat_template_kwargs))
        outcome = evaluate(args, run, t, student, tests)
        n_right = sum(row["is_right"] is True for row in outcome)
        curve.append({"round": t, "items": len(items), "right": [n_right, len(outcome)], "tokens": list(tokens)})
        print(f"round {t}: {n_right} of {len(tests)} right after {len(items)} items, {sum(tokens):,} teacher tokens")
        if t == args.rounds or args.budget_tokens and sum(tokens) >= args.budget_tokens:
            break
        barred = {i for part in selected for i in part} if args.no_repeat else set()
        chosen = select(args, run, t, teacher, student, seeds, barred)
        order = [i for i in chosen["order"] if i not in barred]
        if args.select == "static_loss":  # walks down: what was asked comes last again
            order = sorted(order, key=lambda i: asked_before[i])
        made = write(args, run, t, teacher, [by_id[i] for i in order], tested, seen, asked_before)
        new = [row for row in made["rows"] if not row["dropped"]]
        if not new and not items:
            raise UserError(f"round {t}: no item was accepted of {len(made['rows'])} seeds asked; read {run.path}/r{t}_items.json")
        if len(new) < args.per_round:
            print(f"  round {t}: {len(new)} items, not --per-round {args.per_round}: no seed is left to ask")
        if not new:
            break
        selected.append([row["seed"] for row in made["rows"]])
        asked_before.update(selected[-1])
        seen |= {common.plain(row["problem"]): row["problem"] for row in new}
        items += new
        tokens = [total + a + b for total, a, b in zip(tokens, chosen["tokens"], made["tokens"], strict=True)]
        last = set(selected[-2]) if t else set()  # of the round before
        curve[-1] |= {"rho_length": chosen["rho_length"], "rho_children": compare_children(args, run, t, student, new, chosen["losses"]),
                      "asked": len(made["rows"]), "dropped": Counter(row["dropped"] for row in made["rows"] if row["dropped"]),
                      "cut_off": chosen["cut_off"], "again": sum(asked_before[i] > 1 for i in selected[-1]), "overlap": len(last & set(selected[-1]))}
    run.write("result.json", {"method": "active_loop", "select": args.select, "teacher_totals": teacher.recorded, "curve": curve})
    print(f"{run.path}/result.json")


if __name__ == "__main__":
    common.cli(main, Args, __doc__)
