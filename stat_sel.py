r"""STAT-Sel: redraw the training set towards the skills a student lacks, then fine-tune the student on the draw.

Paper   He, Panigrahi, Lin, Arora, "Skill-Targeted Adaptive Training", arXiv 2510.10023v1. The authors published data, no code.
Steps   1 answer    the student answers every validation question, 0-shot, T = 0.1                        (§2.1)
        2 grade     which answers are difficult for it; here by answer or by consistency                   (§2.1, §E.1)
        3 label     the teacher names up to five skills for each question of P: the Skill-Map               (§2, §C.3.1)
        4 diagnose  the teacher names the skills each difficult answer lacks: the Missing-Skill-Profile     (§2.2, §C.3.2)
        5 draw      five questions of P for every (question, missing skill), three rewritten answers each   (§2.3, §B.2)
        6 train     QLoRA on the draw, and on the same number of pairs drawn otherwise                      (§C.1, §C.2)
        7 test      accuracy on the questions that were not profiled on                                     (§3.1)
Names   P, the training questions (§2) = pool; S, the skill list = skills; Q_val = val, Q_test = test; Skill-Map = skill_map;
        Missing-Skill-Profile = profile (§2.2); Q_val_difficult = difficult (§2.1).
        A skill is the pair (subject, name), written "subject: name": names repeat across subjects.
Arms    base      the student as it is
        augment   random pairs of rewritten answers over all of P: MATH-Augment (§C.2)
        stat      STAT-Sel
        shuffled  STAT-Sel with the profile's skills permuted among the skills: does the targeting help, or any redraw? (ours)
Differs Difficulty comes from the answers: the process reward model of §2.1 is not here yet. One learning rate for all arms, where the paper chooses
        one for each. Length-grouped batches without packing. The 112 skills printed in Tables 5 and 6; the text speaks of 128. A rewrite whose final
        answer is not the gold one is dropped; so is a question of P that stands in the test split, or has no answer.
Run     python stat_sel.py --teacher gpt-4o-mini                                         # the paper's sizes, one GPU
        python stat_sel.py --teacher gpt-4o-mini --plan                                  # calls, tokens, one prompt of each kind; sends nothing
        python stat_sel.py --teacher MODEL --teacher-url http://localhost:8000/v1 --limit 100   # any OpenAI-compatible server, a small slice
        python -m toyworld stat_sel                                                      # no GPU, no key, minutes
Writes  runs/stat_sel/  args.json env.json 1_answers.jsonl 2_graded.jsonl 3_skill_map.jsonl (3_test_skills.jsonl) 4_profile.jsonl 5_draw.json
        train_<arm>.jsonl loss_<arm>.jsonl adapter/<arm>/ 7_test_<arm>.jsonl teacher.jsonl metrics.jsonl result.json
"""
import functools
import gc
import math
import os
import random
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from tqdm import tqdm

import common
from common import Request, UserError

# May differ between the starts of one run. The two batch sizes move the draws of dropout and of sampling: what is there already is kept.
HOW = ("teacher_url", "teacher_max_tokens", "cache", "concurrency", "max_usd", "usd_per_m_in", "usd_per_m_out", "plan", "micro_batch", "sample_batch",
       "checkpointing")


@dataclass(frozen=True)
class Args:
    student: str = "Qwen/Qwen2.5-3B"  # model to improve: Hub name or folder (§3.1)
    data: str = "math"  # "math", or a folder with train.jsonl (P) and test.jsonl (split into Q_val and Q_test)
    skills: str | None = None  # JSON file {subject: [skill, ...]} instead of the paper's list (Tables 5, 6)
    skill_map: str | None = None  # JSON file {question id: [skill, ...]} instead of asking the teacher for labels (§C.3.1)
    label_test: bool = False  # ask the teacher for the skills of Q_test too, for accuracy by skill (Fig. 4); toy data has them
    out: str = "runs/stat_sel"  # run directory; the same command goes on where it stopped
    seed: int = 0  # moves everything that is drawn (paper: 0, §C.1)
    limit: int | None = None  # take only so many questions of Q_val, of P and of Q_test: a quick look
    arms: tuple[Literal["base", "augment", "stat", "shuffled"], ...] = ("base", "augment", "stat", "shuffled")  # what to train and test

    teacher: str = "gpt-4o-mini"  # model that labels, diagnoses and rewrites (§C.3)
    teacher_url: str | None = None  # address of any OpenAI-compatible server; default: OpenAI, key from OPENAI_API_KEY
    teacher_max_tokens: int = 2048  # length limit of a teacher's reply; raise it for a model that thinks aloud
    cache: str | None = None  # file of teacher replies; default: teacher.jsonl in the run directory
    concurrency: int = 16  # teacher calls in flight
    usd_per_m_in: float | None = None  # price of a million input tokens
    usd_per_m_out: float | None = None  # price of a million output tokens
    max_usd: float | None = None  # stop cleanly before spending more; needs both prices
    plan: bool = False  # print the teacher calls ahead, one prompt of each kind, and stop

    n_val: int = 1000  # size of Q_val; the rest of the test split is Q_test (§3.1)
    difficulty: Literal["answer", "consistency"] = "answer"  # difficult if wrong, or if five samples never agree twice (§E.1)
    temperature: float = 0.1  # of the student's answers (§3.1)
    max_new_tokens: int = 2048  # length limit of an answer (ours: because MATH's longest solution has 6,767 characters)
    questions_per_skill: int = 5  # drawn for every (difficult question, missing skill) (§B.2; Algorithm 1 says 3)
    n_rewrites: int = 3  # rewritten answers of a drawn question (§B.2)
    n_pairs: int = 9500  # question-answer pairs in every trained arm (§B.2)

    lr: float = 1e-4  # peak; the paper chooses from 5e-4, 2e-4, 1e-4, 8e-5, 2e-5 for each method (§C.1)
    epochs: int = 3  # (§C.1)
    batch: int = 8  # pairs in an optimiser step (§C.1: 2 x 4)
    micro_batch: int = 2  # pairs in a forward pass: lower it if memory is short
    max_tokens: int = 2048  # a training pair is cut after this many tokens (ours: the length limit of an answer)
    lora_rank: int = 16  # (§C.1)
    lora_alpha: int = 32  # (§C.1)
    lora_dropout: float = 0.05  # (§C.1)
    weight_decay: float = 0.1  # (§C.1)
    max_grad_norm: float = 0.3  # gradient clip (§C.1)
    warmup: float = 0.03  # share of the steps, then cosine to zero (§C.1)
    checkpointing: bool = True  # gradient checkpointing: less memory, a third more time
    sample_batch: int = 32  # answers generated at once: lower it if memory is short


# The 112 (subject, skill) pairs of Tables 5 and 6; §2 speaks of 128.
SKILLS = {subject: names.split(" | ") for subject, names in {
    "Algebra": "algebraic expression skills | algebraic manipulation skills | arithmetic skills | calculation and conversion skills | "
    "combinatorial operations and basic arithmetic | complex number skills | distance and midpoint skills | exponent and root skills | "
    "factoring skills | function composition skills | function skills | geometric sequence skills | graph and geometry skills | "
    "inequality skills | logarithmic and exponential skills | number theory skills | polynomial concepts | quadratic equation skills | "
    "ratio and proportion skills | sequence and series skills | solving equations",
    "Counting & Probability": "calculating and understanding combinations | combinatorial mathematics | combinatorics concepts | "
    "counting principals | factorials and prime factorization | number theory and arithmetic operations | permutation and combinations | "
    "probability calculation with replacement | probability concepts and calculations | probability theory and distribution | "
    "combinatorics operations",
    "Geometry": "3d geometry and volume calculation skills | algebraic skills | area calculation skills | circle geometry skills | "
    "combinatorics and probability skills | coordinate geometry and transformation skills | other geometric skills | pythagorean skills | "
    "quadrilateral and polygon skills | ratio and proportion skills | triangle geometry skills | trigonometry skills | "
    "understanding circle properties and algebraic manipulation",
    "Intermediate Algebra": "absolute value skills | algebraic manipulation and equations | calculus optimization skills | "
    "complex number manipulation and operations | function composition and transformation | graph understanding and interpretation | "
    "inequality solving and understanding | polynomial concepts | properties and application of exponents | "
    "quadratic equations and solutions | recursive functions and sequences | sequence and series analysis skills | "
    "simplification and basic operations | solving inequalities | solving system of equations | summation and analysis of series | "
    "understanding and application of functions | understanding and applying floor and ceiling functions | "
    "understanding and manipulation of rational functions | understanding and utilizing infininte series | "
    "understanding ellipse properties | understanding logarithmic properties and solving equations",
    "Number Theory": "arithmetic sequences | base conversion | basic arithmetic | division and remainders | exponentiation | factorization | "
    "greatest common divisor calculations | modular arithmetic | number manipulation | number theory | polynomial operations | "
    "prime number theory | sequence analysis | solving equations | understanding of fractions",
    "Prealgebra": "average calculations | basic arithmetic operations | circles | counting and number theory | exponentiation rules | "
    "fractions and decimals | geometry | multiples and zero properties | multiplication and division | perimeter and area | "
    "prime number theory | probability and combinatorics | ratio and proportion | linear equation",
    "Precalculus": "algebra and equations | basic trigonometry | calculus | complex number operations | complex numbers | coordinate systems | "
    "determinant calculation | geometric relations | geometry and space calculation | geometry triangle properties | matrix operations | "
    "parametric equations | sequences series and summation | three dimensional geometry | trigonometric calculations | vector operations",
}.items()}

# --- Prompts, in our own words, with the fields of §C.3. -----------------------------------------------------------------------------------
# The student sees one and the same text when it answers, is trained, and is tested.
STUDENT_PROMPT = "{problem}\n\nReason step by step and put the final answer in \\boxed{{}}."

LABEL_PROMPT = """Here is a problem from the subject {subject}, and the list of skills that the subject calls for.

<problem>
{problem}
</problem>

<skills>
{skills}
</skills>

Which of the listed skills does a solution of this problem need? Name the most important ones, at most five, exactly as they are listed.
Answer in this form:
<reason>why the solution needs them</reason>
<skill>first skill, second skill</skill>"""

PROFILE_PROMPT = """A student answered a problem from the subject {subject}. Find out which skills the student still lacks.

<problem>
{problem}
</problem>

<response>
{response}
</response>

<skills>
{skills}
</skills>

Follow the response step by step and judge whether it is correct. If it is not, name the listed skills that the student must improve to get it
right, exactly as they are listed. Answer in this form:
<judge>correct or incorrect</judge>
<reason>where the response goes wrong, and what was missing</reason>
<skill>first skill, second skill</skill>"""

REWRITE_PROMPT = """Here are a problem and a correct solution.

<problem>
{problem}
</problem>

<solution>
{solution}
</solution>

Write the solution anew in your own words: complete, step by step, with every calculation shown, not mentioning that a solution was given.
Keep the final answer and put it in \\boxed{{}}."""


def teacher_messages(prompt: str, **fields: str) -> list[dict]:
    return [{"role": "user", "content": prompt.format(**fields)}]


# --- The method: pure functions in the paper's order. No files, no network. -----------------------------------------------------------------
def is_inconsistent(answers: list[str | None]) -> bool:
    """Whether a question is difficult by the consistency heuristic: its most common answer appears fewer than two times (§E.1).

    answers: the final answers of five samples; None (no answer found) agrees with nothing.
    >>> is_inconsistent(["1", "2", "3", None, None]), is_inconsistent(["1", "2", "1.0", "3", "4"])
    (True, False)
    """
    found = [a for a in answers if a is not None]
    return not any(common.is_equiv(a, b) for i, a in enumerate(found) for b in found[:i])


def read_tag(reply: str, tag: str) -> str | None:
    """The text of the last <tag>...</tag>; None if there is none."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", reply, re.DOTALL | re.IGNORECASE)
    return found[-1].strip() if found else None


def read_skills(text: str, subject: str, names: list[str]) -> tuple[list[str], list[str]]:
    """The listed skills in a comma-separated text, as "subject: name", without repeats; and what is not on the list.

    >>> read_skills("Factoring_Skills, magic", "Algebra", ["factoring skills", "function skills"])
    (['Algebra: factoring skills'], ['magic'])
    """
    def plain(name):
        return " ".join(re.sub(r"^\W*\d+[.)]\s", "", name).replace("_", " ").casefold().strip(" \n-*•\"'`.[]").split())
    listed, known, unknown = {plain(name): name for name in names}, [], []
    for item in re.split(r"[,;\n|]", text):
        name = plain(item).removeprefix(f"{plain(subject)}: ")
        if name in listed:
            known.append(f"{subject}: {listed[name]}")
        elif name and name != "none":
            unknown.append(name)
    return list(dict.fromkeys(known)), unknown


def read_profile(reply: str, subject: str, names: list[str]) -> dict:
    """Judge and missing skills of one reply (§2.2, §C.3.2). `fault` says why a reply puts nothing into the profile."""
    judge, text = read_tag(reply, "judge"), read_tag(reply, "skill")
    known, unknown = read_skills(text or "", subject, names)
    judge = re.sub(r"[^a-z]", "", (judge or "").casefold())
    if text is None or judge not in ("correct", "incorrect"):
        fault = "malformed"
    elif judge == "correct":
        fault = "judged correct"  # ours: out of the profile even if skills are named, because a right answer shows no lack
    else:
        fault = None if known else "no listed skill"
    return {"judge": judge, "skills": [] if fault else known, "unknown": unknown, "fault": fault, "reason": read_tag(reply, "reason")}


def invert(labels: dict[str, list[str]]) -> dict[str, list[str]]:
    """Skill-Map: S -> subset of P, from the skills of each question (§2)."""
    skill_map: dict[str, list[str]] = {}
    for question, skills in labels.items():
        for skill in skills:
            skill_map.setdefault(skill, []).append(question)
    return skill_map


def draw_stat(profile: dict[str, list[str]], skill_map: dict[str, list[str]], k: int, rng: random.Random) -> list[str]:
    """Questions of P for every difficult question and every skill it lacks, with repeats (§2.3, Algorithm 1).

    k questions for each skill, none twice within it; all of them where the Skill-Map has fewer. So a skill weighs by its frequency in the profile.
    """
    drawn = []
    for skills in profile.values():
        for skill in skills:
            linked = skill_map.get(skill, [])
            drawn += rng.sample(linked, min(k, len(linked)))
    return drawn


def shuffle_profile(profile: dict[str, list[str]], skill_map: dict[str, list[str]], k: int, rng: random.Random) -> dict[str, list[str]]:
    """The profile with its skills permuted among those with k questions or more in the Skill-Map (or the most that any has): no fewer draws.

    ours: a control, because a gain of any redraw would look like one of the targeting. A skill with fewer questions becomes any of the others,
    because a control that drew fewer questions would lose by that alone.
    """
    k = min(k, max(map(len, skill_map.values()), default=0))
    names = sorted(skill for skill, linked in skill_map.items() if len(linked) >= k)
    other = dict(zip(names, rng.sample(names, len(names)), strict=True))
    few = sorted({skill for skills in profile.values() for skill in skills} - other.keys())
    other |= {skill: rng.choice(names) for skill in few if names}
    return {question: [other[skill] for skill in skills if skill in other] for question, skills in profile.items()}


def choose_pairs(orders: dict[str, list[tuple]], rewrites: dict[tuple, str | None], n: int) -> dict[str, list[tuple]]:
    """The first n pairs (question, rewrite) of each arm's shuffled order whose rewrite is not known to be bad; fewer if some arm has fewer."""
    left = {arm: [pair for pair in order if rewrites.get(pair, "not asked yet") is not None] for arm, order in orders.items()}
    n = min(n, *map(len, left.values()))
    return {arm: pairs[:n] for arm, pairs in left.items()}


def learning_rate(step: int, n_steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then cosine to zero (§C.1). step: 0..n_steps-1.
    >>> [round(learning_rate(s, 5, 1.0, 0.2), 3) for s in range(5)]
    [1.0, 1.0, 0.854, 0.5, 0.146]
    """
    n_warmup = math.ceil(warmup * n_steps)
    if step < n_warmup:
        return peak * (step + 1) / n_warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


# --- The student: loading, sampling, training. -----------------------------------------------------------------------------------------------
class Student(NamedTuple):
    model: torch.nn.Module
    tokenizer: object
    end: str  # what the chat template puts behind an answer
    stop_ids: frozenset[int]  # every token that ends an answer
    device: torch.device


def load_student(args) -> Student:
    """The student in NF4 with its tokenizer; compute in bf16 (fp16 before Ampere, fp32 without a GPU)."""
    import logging
    import warnings
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU|`is_gradient_checkpointing` is deprecated")  # both harmless
    import bitsandbytes as bnb
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from transformers.utils import logging as hf_logging
    hf_logging.disable_progress_bar()
    if not Path(args.student).is_dir() and (args.student.count("/") != 1 or args.student.startswith((".", "/", "~"))):
        raise UserError(f"--student {args.student}: no such folder; give a folder with a checkpoint or a Hub name such as Qwen/Qwen2.5-3B")
    cuda = torch.cuda.is_available()
    dtype = torch.float32 if not cuda else torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    quantization = BitsAndBytesConfig(  # §C.1; ours: double quantisation, because it saves 0.4 bit a weight and the paper does not say
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.student)
        model = AutoModelForCausalLM.from_pretrained(
            args.student, quantization_config=quantization, dtype=dtype, device_map={"": 0} if cuda else None)
    except (OSError, ValueError) as error:
        gated = "gated" in str(error).lower() or "401" in str(error)
        advice = "the weights are gated: accept their licence on the Hub, then run `hf auth login`" if gated else str(error).split("\n")[0]
        raise UserError(f"--student {args.student} can't be loaded: {advice}") from error
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False  # else one forward pass in eval mode silently breaks all later gradients on such CPUs
    model.requires_grad_(False)
    if any(getattr(model.config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")):
        raise UserError(f"--student {args.student}: it rescales its logits after lm_head, which completion_loss does not; take a Llama or Qwen2 kind")
    if tokenizer.chat_template is None:
        raise UserError(f"--student {args.student}: its tokenizer has no chat template; use an instruction-tuned model, or add one")
    shown = apply_template(tokenizer, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "@answer@"}])
    end = shown.rpartition("@answer@")[2].strip() or tokenizer.eos_token
    stop = model.generation_config.eos_token_id
    stop = set(stop if isinstance(stop, list) else [stop]) | {tokenizer.eos_token_id, tokenizer(end, add_special_tokens=False).input_ids[-1]}
    return Student(model, tokenizer, end, frozenset(stop - {None}), torch.device("cuda" if cuda else "cpu"))


def apply_template(tokenizer, messages: list[dict], **kwargs) -> str:
    # Llama 3.2's template prints today's date unless it is given one: a run must not change overnight.
    return tokenizer.apply_chat_template(messages, tokenize=False, date_string="26 Jul 2024", **kwargs)


def prompt_ids(student: Student, problem: str) -> list[int]:
    """The tokens up to the student's turn: the only place where a prompt is made, for answering, training and testing."""
    messages = [{"role": "user", "content": STUDENT_PROMPT.format(problem=problem)}]
    return student.tokenizer(apply_template(student.tokenizer, messages, add_generation_prompt=True), add_special_tokens=False).input_ids


@torch.no_grad()
def sample(student: Student, prompts: list[list[int]], temperature: float, max_new_tokens: int, seed: int) -> list[dict]:
    """One answer to each prompt of a batch: {"response", "cut_off", "n_tokens"}. temperature 0 takes the likeliest token.

    The prompts are left-padded; rows that are done leave the batch. No top-k, no top-p.
    """
    from transformers import DynamicCache
    model, device = student.model.eval(), student.device
    generator = torch.Generator(device).manual_seed(seed)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)  # (B, T)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)  # (B, T)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    stop = torch.tensor(sorted(student.stop_ids), device=device)
    cache, rows, written = DynamicCache(config=model.config), torch.arange(len(prompts), device=device), [[] for _ in prompts]
    stopped = [False] * len(prompts)
    for _ in range(max_new_tokens):
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1).logits[:, -1].float()
        if temperature > 0:
            ids = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)  # (B, 1)
        else:
            ids = logits.argmax(-1, keepdim=True)
        done = torch.isin(ids[:, 0], stop)
        for row, token, is_done in zip(rows.tolist(), ids[:, 0].tolist(), done.tolist(), strict=True):
            if not stopped[row]:
                stopped[row] = is_done
                written[row] += [] if is_done else [token]
        alive = torch.tensor([not stopped[row] for row in rows.tolist()], device=device)
        if not alive.any():
            break
        mask, positions = torch.cat([mask, mask.new_ones(len(mask), 1)], 1), positions[:, -1:] + 1
        if alive.sum() <= 0.75 * len(alive):  # ours: not for every single row, because it copies the cache
            keep = alive.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            ids, mask, positions, rows = ids[keep], mask[keep], positions[keep], rows[keep]
    texts = student.tokenizer.batch_decode(written, skip_special_tokens=True)
    return [{"response": text, "cut_off": not stop, "n_tokens": len(w)} for text, stop, w in zip(texts, stopped, written, strict=True)]


def answer(args, run, name: str, student, rows: list[dict], temperature: float, n: int = 1) -> dict[str, list[dict]]:
    """n answers to every question, by id; written batch by batch, so a killed run goes on from the last batch.

    student: a function that loads it, called only if something is left to do.
    """
    order = sorted((len(row["problem"]), row["id"], i) for row in rows for i in range(n))  # length-sorted batches waste less padding
    items = [{"id": row_id, "sample": i} for _, row_id, i in order]
    problems = {row["id"]: row["problem"] for row in rows}
    batches = [items[i:i + args.sample_batch] for i in range(0, len(items), args.sample_batch)]

    def make(batch):
        prompts = [prompt_ids(student(), problems[item["id"]]) for item in batch]
        seed = common.torch_seed(args.seed, name, batch[0]["id"], batch[0]["sample"])
        return [item | out for item, out in zip(batch, sample(student(), prompts, temperature, args.max_new_tokens, seed), strict=True)]
    found: dict[str, list[dict]] = {row["id"]: [] for row in rows}
    for out in run.batches(name, batches, make, unit="answer"):
        found[out["id"]].append(out)
    return found


def encode(student: Student, row: dict, max_tokens: int) -> tuple[list[int], int] | None:
    """Tokens of a pair and how many of them are the prompt; None if nothing of the answer is left within max_tokens."""
    prompt = prompt_ids(student, row["problem"])
    ids = prompt + student.tokenizer(row["response"] + student.end, add_special_tokens=False).input_ids
    return (ids[:max_tokens], len(prompt)) if len(prompt) < max_tokens else None


def completion_loss(model, pairs: list[tuple[list[int], int]], device) -> torch.Tensor:
    """Summed cross-entropy of the answers' tokens, the end token among them. Logits are computed only there: (n_completion, V), not (B, T, V).

    ours: no loss on the prompts, because the student is never asked to write one.
    """
    width = max(len(ids) for ids, _ in pairs)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in pairs], device=device)  # (B, T), padded on the right
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in pairs], device=device)
    target = torch.tensor([[n <= t < len(ids) for t in range(width)] for ids, n in pairs], device=device)  # by length: a pad never equals an end
    base = model.get_base_model()  # holds the LoRA layers; its .model ends before the vocabulary
    hidden = base.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # (B, T, d)
    logits = base.lm_head(hidden[:, :-1][target[:, 1:]]).float()  # (n_completion, V)
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][target[:, 1:]], reduction="sum")


def grouped_batches(lengths: list[int], size: int, rng: random.Random) -> list[list[int]]:
    """Shuffled batches of indices of similar length (§C.1: group by length): shuffle, sort within chunks, shuffle the batches.

    ours: chunks of 50 batches, because that leaves the batches' content nearly random and takes most of the padding away.
    """
    order = rng.sample(range(len(lengths)), len(lengths))
    chunks = [sorted(order[i:i + 50 * size], key=lambda j: -lengths[j]) for i in range(0, len(order), 50 * size)]
    batches = [chunk[i:i + size] for chunk in chunks for i in range(0, len(chunk), size)]
    return rng.sample(batches, len(batches))


def train(args, run, student: Student, rows: list[dict], name: str):
    """QLoRA on rows {"problem", "response"} (§C.1). Returns the PEFT model; writes adapter/<name>/ and loss_<name>.jsonl.

    After every epoch adapter, optimiser, position and generator states are saved: killed and rerun, it goes on to the same weights.
    """
    import bitsandbytes as bnb
    from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    final, checkpoint = run.path / "adapter" / name, run.path / "adapter" / f"{name}.checkpoint.pt"
    if final.exists():
        return PeftModel.from_pretrained(student.model, final)
    pairs = [pair for row in rows if (pair := encode(student, row, args.max_tokens))]
    if len(pairs) < len(rows):
        print(f"  train {name}: {len(rows) - len(pairs)} pairs left out, their prompts alone reach --max-tokens {args.max_tokens}")
    if not pairs:
        raise UserError(f"train {name}: no pair is left; raise --max-tokens (now {args.max_tokens})")
    if student.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(common.torch_seed(args.seed, "train"))  # ours: the same draw for every arm, because the arms are compared in pairs
    model = get_peft_model(student.model, LoraConfig(
        r=args.lora_rank, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, target_modules="all-linear", task_type="CAUSAL_LM"))
    if args.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = bnb.optim.PagedAdamW8bit(weights, lr=args.lr, weight_decay=args.weight_decay)
    scaler = torch.amp.GradScaler(student.device.type, enabled=next(student.model.parameters()).dtype == torch.float16)
    n_steps, losses, start = args.epochs * math.ceil(len(pairs) / args.batch), [], 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
        set_peft_model_state_dict(model, saved["adapter"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        torch.set_rng_state(saved["rng"])
        if student.device.type == "cuda":
            torch.cuda.set_rng_state(saved["rng_cuda"])
        losses, start = saved["losses"], saved["epoch"]
    model.train()
    epoch_started = time.time()
    bar = tqdm(total=n_steps, initial=len(losses), desc=f"train {name}", unit="step")
    for epoch in range(start, args.epochs):
        for batch in grouped_batches([len(ids) for ids, _ in pairs], args.batch, common.rng(args.seed, "order", epoch)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(len(losses), n_steps, args.lr, args.warmup)
            n_tokens = sum(len(pairs[i][0]) - pairs[i][1] for i in batch)  # ours: the mean over tokens, because then micro-batches do not matter
            total = 0.0
            for i in range(0, len(batch), args.micro_batch):
                loss = completion_loss(model, [pairs[j] for j in batch[i:i + args.micro_batch]], student.device) / n_tokens
                scaler.scale(loss).backward()
                total += loss.item()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(weights, args.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            losses.append(total)
            bar.update()
            bar.set_postfix(loss=f"{total:.3f}")
        checkpoint.parent.mkdir(exist_ok=True)
        torch.save({"adapter": get_peft_model_state_dict(model), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
                    "rng": torch.get_rng_state(), "rng_cuda": torch.cuda.get_rng_state() if student.device.type == "cuda" else None,
                    "losses": losses, "epoch": epoch + 1}, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").rename(checkpoint)
        run.log(train=name, epoch=epoch + 1, seconds=round(time.time() - epoch_started, 1), peak_gib=common.peak_gib())
        epoch_started = time.time()
    bar.close()
    run.write(f"loss_{name}.jsonl", [{"step": i, "loss": loss} for i, loss in enumerate(losses)])
    aside = final.with_suffix(".tmp")
    model.save_pretrained(aside)
    student.tokenizer.save_pretrained(aside)
    aside.rename(final)
    checkpoint.unlink()
    return model


# --- The stages, with files and network. ----------------------------------------------------------------------------------------------------
def label_requests(args, rows: list[dict], skills: dict[str, list[str]]) -> list[Request]:
    # ours: T = 0 for labels and diagnoses, because one answer is wanted, the likeliest
    return [Request(teacher_messages(LABEL_PROMPT, subject=row["subject"], problem=row["problem"], skills="\n".join(skills[row["subject"]])),
                    max_tokens=args.teacher_max_tokens) for row in rows]


def profile_requests(args, rows: list[dict], responses: list[str], skills: dict[str, list[str]]) -> list[Request]:
    return [Request(teacher_messages(PROFILE_PROMPT, subject=row["subject"], problem=row["problem"], response=response,
                                     skills="\n".join(skills[row["subject"]])), max_tokens=args.teacher_max_tokens)
            for row, response in zip(rows, responses, strict=True)]


def rewrite_request(args, row: dict, i: int) -> Request:
    return Request(teacher_messages(REWRITE_PROMPT, problem=row["problem"], solution=row["solution"]),
                   temperature=1.0, max_tokens=args.teacher_max_tokens, sample=i)  # ours: T = 1, because at a low one the three would hardly differ


def own_skills(rows: list[dict], skills: dict[str, list[str]]) -> dict[str, list[str]]:
    """The labels that the data itself carries, as "subject: name"; empty for all questions if over 5 % of them are not on the list.

    ours: that limit, because names of another list agree with this one by accident only, and a table of accidents looks like a result.
    """
    read = {row["id"]: read_skills(",".join(row["skills"] or []), row["subject"], skills[row["subject"]]) for row in rows}
    n_known, n_unknown = (sum(len(found[i]) for found in read.values()) for i in (0, 1))
    return {row_id: known if n_unknown <= 0.05 * (n_known + n_unknown) else [] for row_id, (known, _) in read.items()}


def grade(args, run, student, val: list[dict]) -> list[dict]:
    """Stage 1: every question of Q_val with its answer and whether it is difficult."""
    answers = answer(args, run, "1_answers.jsonl", student, val, args.temperature)
    samples = {}
    if args.difficulty == "consistency":  # ours: at T = 1, because at 0.1 five samples nearly always agree
        samples = answer(args, run, "1_samples.jsonl", student, val, temperature=1.0, n=5)

    def make():
        graded = []
        for row in val:
            response = answers[row["id"]][0]["response"]
            is_right = common.score(response, row["answer"])
            difficult = is_inconsistent([common.extract_answer(s["response"]) for s in samples[row["id"]]]) if samples else not is_right
            graded.append({"id": row["id"], "response": response, "is_right": is_right, "difficult": difficult})
        return graded
    return run.step("2_graded.jsonl", make)


def label(args, run, teacher, rows: list[dict], skills, name: str) -> dict[str, list[str]]:
    """Stage 2, first half: the skills of each question, by the teacher or from --skill-map (§C.3.1)."""
    def make():
        if args.skill_map:
            given = common.read_lists(args.skill_map, "--skill-map", "question id")
            replies = [",".join(given.get(row["id"], [])) for row in rows]
        else:
            replies = [reply and (read_tag(reply.text, "skill") or "") for reply in teacher.ask(label_requests(args, rows, skills), name)]
        read = [read_skills(reply or "", row["subject"], skills[row["subject"]]) for row, reply in zip(rows, replies, strict=True)]
        return [{"id": row["id"], "skills": known[:5], "unknown": unknown} for row, (known, unknown) in zip(rows, read, strict=True)]
    labels = run.step(name, make)
    print(f"  {sum(not row['skills'] for row in labels)} of {len(labels)} questions without a skill, "
          f"{sum(len(row['unknown']) for row in labels)} names not on the list")
    return {row["id"]: row["skills"] for row in labels}


def diagnose(args, run, teacher, val: list[dict], graded: list[dict], skills) -> dict[str, list[str]]:
    """Stage 2, second half: the Missing-Skill-Profile (§2.2). The teacher never sees the gold answer."""
    def make():
        by_id = {row["id"]: row for row in val}
        difficult = [row for row in graded if row["difficult"]]
        rows = [by_id[row["id"]] for row in difficult]
        out, requests = [], profile_requests(args, rows, [row["response"] for row in difficult], skills)
        for row, reply in zip(rows, teacher.ask(requests, "4 diagnose"), strict=True):
            lost = {"judge": None, "skills": [], "unknown": [], "fault": "no reply", "reason": None}
            out.append({"id": row["id"]} | (read_profile(reply.text, row["subject"], skills[row["subject"]]) if reply else lost))
        return out
    rows = run.step("4_profile.jsonl", make)
    faults = Counter(row["fault"] for row in rows if row["fault"])
    profile = {row["id"]: row["skills"] for row in rows if not row["fault"]}
    print(f"  Missing-Skill-Profile of {len(profile)} difficult questions; left out: {dict(faults) or 'none'}; "
          f"{sum(len(row['unknown']) for row in rows)} names not on the list")
    print(common.bars(Counter(skill for missing in profile.values() for skill in missing)))
    return profile


def draw(args, run, teacher, pool: list[dict], profile, skill_map) -> dict[str, list[tuple[str, int, str]]]:
    """Stage 3: n_pairs pairs (question, rewrite) for each arm, and train_<arm>.jsonl in chat form.

    Three rewrites a question, shared by all arms; a rewrite whose final answer is not the gold one is dropped and the next pair takes its place.
    Only rewrites that some arm uses are asked for. A question drawn k times weighs k.
    """
    by_id, trained = {row["id"]: row for row in pool}, [arm for arm in args.arms if arm != "base"]
    print(f"  {len(skill_map)} skills, {sum(len(linked) < args.questions_per_skill for linked in skill_map.values())} of them with fewer than "
          f"{args.questions_per_skill} questions: all of those are drawn, none twice at once")

    def make():
        orders = {}
        for arm in trained:
            rng = common.rng(args.seed, "draw", arm)
            if arm == "augment":
                questions = [row["id"] for row in pool]
            else:
                source = profile
                if arm == "shuffled":
                    source = shuffle_profile(profile, skill_map, args.questions_per_skill, common.rng(args.seed, "shuffle"))
                questions = draw_stat(source, skill_map, args.questions_per_skill, rng)
            pairs = [(question, i) for question in questions for i in range(args.n_rewrites)]
            orders[arm] = rng.sample(pairs, len(pairs))
            if not pairs:
                raise UserError(f"arm {arm}: no question of P has a missing skill; read {run.path}/4_profile.jsonl, or take more questions")
        rewrites: dict[tuple, str | None] = {}
        for attempt in range(1, 100):
            chosen = choose_pairs(orders, rewrites, args.n_pairs)
            asked = [pair for pair in dict.fromkeys(pair for pairs in chosen.values() for pair in pairs) if pair not in rewrites]
            if not asked:
                break
            replies = teacher.ask([rewrite_request(args, by_id[question], i) for question, i in asked], f"5 rewrite, round {attempt}")
            for (question, i), reply in zip(asked, replies, strict=True):
                rewrites[question, i] = reply.text if reply and common.score(reply.text, by_id[question]["answer"]) else None
        if (n := len(chosen[trained[0]])) < args.n_pairs:
            print(f"  only {n} pairs can be had by every arm, less than --n-pairs {args.n_pairs}: all arms are trained on {n}")
        kept = {arm: [(question, i, rewrites[question, i]) for question, i in pairs] for arm, pairs in chosen.items()}
        return {"dropped": sum(text is None for text in rewrites.values()), "asked": len(rewrites), "pairs": kept}
    drawn = run.step("5_draw.json", make) if trained else {"pairs": {}}
    for arm, pairs in drawn["pairs"].items():
        print(f"  {arm}: {len(pairs)} pairs of {len({question for question, *_ in pairs})} questions; "
              f"{drawn['dropped']} of {drawn['asked']} rewrites dropped for a wrong or missing answer")
        if not pairs:
            raise UserError(f"arm {arm}: no pair with a right rewrite; read {run.path}/5_draw.json and the teacher's replies in its cache")
        run.step(f"train_{arm}.jsonl", lambda pairs=pairs: [
            {"id": question, "sample": i, "messages": [
                {"role": "user", "content": STUDENT_PROMPT.format(problem=by_id[question]["problem"])},
                {"role": "assistant", "content": text}]} for question, i, text in pairs])
    return drawn["pairs"]


def test(args, run, student, rows: list[dict], arm: str, test_skills: dict[str, list[str]]) -> list[dict]:
    """Every question of Q_test with its answer; is_right is None where no final answer was found, which counts as wrong and is shown apart."""
    answers = answer(args, run, f"7_test_{arm}.answers.jsonl", student, rows, args.temperature)
    return run.step(f"7_test_{arm}.jsonl", lambda: [
        {"id": row["id"], "is_right": common.score(answers[row["id"]][0]["response"], row["answer"]),
         "cut_off": answers[row["id"]][0]["cut_off"], "skills": test_skills[row["id"]]} for row in rows])


def load_questions(args, skills) -> tuple[list[dict], list[dict], list[dict]]:
    """P, Q_val and Q_test (§3.1); with --limit a slice of each."""
    if args.data.endswith(".jsonl"):
        raise UserError(f"--data {args.data}: expected a folder with train.jsonl and test.jsonl, came one file; give the folder")
    train_rows, rest = common.load(args.data, "train"), common.load(args.data, "test")
    val, tests = common.split_math(rest, args.n_val, args.seed)
    texts = {re.sub(r"\W", "", row["problem"].casefold()) for row in rest}  # MATH has a few questions in both splits
    pool = [row for row in train_rows if row["answer"] and row["solution"] and re.sub(r"\W", "", row["problem"].casefold()) not in texts]
    print(f"P {len(pool)} questions ({len(train_rows) - len(pool)} left out: no answer, or in the test split), Q_val {len(val)}, Q_test {len(tests)}")
    if args.limit:
        pool, val, tests = (common.rng(args.seed, "limit").sample(rows, min(args.limit, len(rows))) for rows in (pool, val, tests))
    if unknown := {str(row["subject"]) for row in pool + val + tests} - skills.keys():
        raise UserError(f"--data {args.data}: subject {min(unknown)!r} is not in the skill list ({', '.join(skills)}); give a list by --skills")
    return pool, val, tests


def summary(rows: list[dict], pairs: list, labels: dict[str, list[str]], own: dict[str, list[str]], logged: list[dict]) -> dict:
    """What result.json keeps of an arm. labels, own: the skills of P by the teacher and by the data; logged: a line of metrics for each epoch."""
    return {"k": sum(bool(row["is_right"]) for row in rows), "n": len(rows), "no_answer": sum(row["is_right"] is None for row in rows),
            "cut_off": sum(row["cut_off"] for row in rows), "n_pairs": len(pairs), "n_questions": len({question for question, *_ in pairs}),
            "train_seconds": sum(line["seconds"] for line in logged), "peak_gib": max((line["peak_gib"] for line in logged), default=None),
            # Fig. 2, by the teacher's labels (which were drawn by) and by the data's own where it has some
            "skills_by_teacher": Counter(skill for question, *_ in pairs for skill in labels[question]),
            "skills_by_data": Counter(skill for question, *_ in pairs for skill in own[question])}


def main(args: Args) -> None:
    common.check_args(args, lr=1, temperature=100, warmup=1, lora_dropout=0.99, weight_decay=1, max_grad_norm=1e9)
    skills = common.read_lists(args.skills, "--skills", "subject") if args.skills else SKILLS
    if args.skill_map:
        common.read_lists(args.skill_map, "--skill-map", "question id")
    pool, val, tests = load_questions(args, skills)
    cache = Path(args.cache or Path(args.out, "teacher.jsonl"))
    if not args.plan:
        run = common.open_run(args, args.out, HOW)
    teacher = common.Teacher(args.teacher, args.teacher_url, cache=os.devnull if args.plan and not cache.exists() else cache,
                             seed=args.seed, max_lost=0.01,
                             concurrency=args.concurrency, max_usd=args.max_usd, usd_per_m_in=args.usd_per_m_in, usd_per_m_out=args.usd_per_m_out)
    longest = ["(the student's response)"] + ["x" * 3 * args.max_new_tokens] * (len(val) - 1)  # the first one is shown, three bytes count as a token
    teacher.plan({"3 label": [] if args.skill_map else label_requests(args, pool + tests * args.label_test, skills),
                  "4 diagnose, at most": profile_requests(args, val, longest, skills),
                  "5 rewrite, at most": [rewrite_request(args, row, i) for row in pool for i in range(args.n_rewrites)]}, show=args.plan)
    if args.plan:
        return
    student = functools.cache(lambda: load_student(args))
    graded = grade(args, run, student, val)
    n_difficult, n_right = sum(row["difficult"] for row in graded), sum(bool(row["is_right"]) for row in graded)
    print(f"  {n_difficult} of {len(graded)} questions are difficult; {n_right} answered right")
    labels = label(args, run, teacher, pool, skills, "3_skill_map.jsonl")
    test_skills = label(args, run, teacher, tests, skills, "3_test_skills.jsonl") if args.label_test else own_skills(tests, skills)  # for Fig. 4
    profile = diagnose(args, run, teacher, val, graded, skills)
    drawn = draw(args, run, teacher, pool, profile, invert(labels))

    by_id, outcomes, arms = {row["id"]: row for row in pool}, {}, {}
    for arm in args.arms:
        if arm == "base" or (run.path / f"7_test_{arm}.jsonl").exists():
            rows = test(args, run, student, tests, arm, test_skills)
        else:
            pairs = [{"problem": by_id[question]["problem"], "response": text} for question, _, text in drawn[arm]]
            tuned = train(args, run, student(), pairs, arm)
            rows = test(args, run, lambda tuned=tuned: student()._replace(model=tuned), tests, arm, test_skills)
            tuned.unload()  # takes the adapter off: the next arm starts from the same base
            gc.collect()
        outcomes[arm] = [bool(row["is_right"]) for row in rows]
        epochs = {line["epoch"]: line for line in (run.read("metrics.jsonl") if arm in drawn else []) if line.get("train") == arm}
        arms[arm] = summary(rows, drawn.get(arm, []), labels, own_skills(pool, skills), list(epochs.values()))
    reference = "augment" if "augment" in outcomes else args.arms[0]
    print(common.arms_table(outcomes, reference))
    counts = Counter(skill for missing in profile.values() for skill in missing)
    missed = {skill for skill, _ in counts.most_common(10)}
    if any(chosen := [bool(missed & set(test_skills[row["id"]])) for row in tests]):
        print(f"on the {sum(chosen)} test questions that need one of the ten most-missed skills:")
        print(common.arms_table({arm: [o for o, c in zip(outcomes[arm], chosen, strict=True) if c] for arm in outcomes}, reference))
    run.write("result.json", {
        "method": "stat_sel", "student": args.student, "teacher": args.teacher, "seed": args.seed,
        "n_val": len(val), "n_difficult": n_difficult, "val_right": n_right, "n_profile": len(profile),
        "profile": counts, "teacher_totals": teacher.recorded, "arms": arms})
    print(f"{run.path}/result.json")


if __name__ == "__main__":
    common.cli(main, Args, __doc__)
