r"""STAT-Syn: the teacher writes new problems for the skills a student lacks;
the student is trained on them.

Paper   He, Panigrahi, Lin, Arora, "Skill-Targeted Adaptive Training", arXiv
        2510.10023v1: data, no code.
Steps   1 answer, 2 grade, 3 label, 4 diagnose: the Missing-Skill-Profile, as
        in stat_sel.py (§2.1, §2.2)
        5 write     for every (question, missing skill) the teacher reads three
                    questions of P with that skill and writes new ones (§2.3,
                    §B.2)
          screen    out go copies of a question read but for numbers and
                    names, questions of P, earlier new ones, and what gives a
                    test question away
          solve     the teacher solves each new question three times (§2.3,
                    §B.2)
          keep      questions on whose answer two solutions agree, with these
                    (§2.3, §B.2)
        6 train     QLoRA on the new pairs, and on as many made otherwise
                    (§C.1, §C.2)
        7 test      accuracy on Q_test, on MATH^D and on other sets (§3.1)
Names   As in stat_sel.py. The size of a question's agreeing() group is its
        consistency score (§2.3).
Arms    base      the student as it is
        augment   rewritten answers to any question of P: MATH-Augment
        stat      STAT-Syn
        shuffled  STAT-Syn with each skill of the profile replaced by another
                  that has about as many questions: does the targeting help, or
                  any new problem? (ours)
        embed     new questions from those of P nearest to each difficult one:
                  Embed-Syn (§C.2)
        sel, embed_sel  not trained here: STAT-Sel and Embed-Sel of the run
                  that --profile-from names
Calls   of the teacher at the paper's sizes, for arm stat: stat_sel.py's labels
        and diagnoses, some 2,600 to write (521 questions, 2.5 skills each,
        twice), and three for each question that passes the screen.
Resume  As in stat_sel.py.
Differs What stat_sel.py says. The paper asks the teacher for novel questions;
        here what is not novel is dropped. One question a writer's call. The
        default writer is the teacher. The paper does not say how many
        questions Embed-Syn writes: here as many as STAT-Syn, or n_new for each
        difficult question.
Run     python stat_syn.py --teacher gpt-4o-mini --writer gpt-4o
        python stat_syn.py --profile-from runs/stat_sel \
            --cache runs/stat_sel/teacher.sqlite
        python stat_syn.py --plan                   # sends nothing
        python -m toyworld stat_syn                 # no GPU, no key, minutes
Writes  runs/stat_syn/ as stat_sel.py, and 5_written.jsonl 5_solutions.jsonl
        dropped.jsonl
"""
import dataclasses
import functools
import importlib.util
import itertools
import math
import random
import re
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.utils.checkpoint
from tqdm import tqdm

import common
from common import Request, UserError

MAY_CHANGE = tuple((  # between the starts of one run; batch sizes move the draws of what is still to do
    "teacher_url teacher_max_tokens teacher_timeout teacher_max_none cache concurrency max_usd usd_per_m_in "
    "usd_per_m_out plan until micro_batch sample_batch prm_batch checkpointing profile_from writer_url "
    "writer_usd_per_m_in writer_usd_per_m_out").split())
PROFILED_BY = (  # what steps 1 to 4 follow from: must agree with the run that --profile-from names
    "student adapter chat_template_kwargs data val skills skill_map seed limit teacher n_val difficulty prm "
    "tau1 tau2 max_difficult temperature max_new_tokens test_weights student_url").split()
Arm = Literal["base", "augment", "stat", "shuffled", "embed"]
TAKEN = {"stat": "sel", "embed": "embed_sel"}  # arms of that run, and their names here


@dataclass(frozen=True)
class Args:
    # Model:
    student: str = "Qwen/Qwen2.5-3B"  # model to improve: Hub name or folder (§3.1)
    adapter: str | None = None  # LoRA adapter to go on from, with its LoRA settings (§3.3)
    chat_template_kwargs: str | None = None  # JSON for the student's template, as {"enable_thinking": false}
    prm: str = "RLHFlow/Llama3.1-8B-PRM-Mistral-Data"  # process reward model: marks steps + or - (§C.1)
    max_new_tokens: int = 2048  # length limit of an answer (ours: because MATH's go up to 6,767 characters)
    embedder: str = "Qwen/Qwen3-Embedding-0.6B"  # sentence-transformers model (§C.2: gte-Qwen2-7B-instruct)
    trust_remote_code: bool = False  # run the embedder's own code, where it has some

    # Data:
    data: str = "math"  # "math", or a folder with train.jsonl (P) and test.jsonl (Q_val and Q_test)
    val: str | None = None  # profile on half of this set at most, and test on the rest of it (§3.3)
    ood: tuple[str, ...] = ()  # other sets to test on, such as gsm8k amc23 aime24, or .jsonl files (§3.1)
    samples: int = 64  # answers at T = 1 to each question of a set with fewer than 100 (§3.1: AMC23, AIME)
    skills: str | None = None  # JSON file {subject: [skill, ...]} instead of the paper's list (Tables 5, 6)
    skill_map: str | None = None  # JSON file {question id: [skill, ...]} instead of the teacher's labels
    limit: int | None = None  # only so many questions of Q_val, of P and of each test set: a quick look
    n_val: int = 1000  # size of Q_val; the rest of the test split is Q_test (§3.1)

    # Teacher:
    teacher: str = "gpt-4o-mini"  # model that labels, diagnoses, rewrites and solves (§C.3)
    teacher_url: str | None = None  # OpenAI-compatible server; default: OpenAI, key from OPENAI_API_KEY
    teacher_max_tokens: int = 2048  # length limit of a reply; raise it for a model that thinks aloud
    writer: str | None = None  # stronger model that writes (§C.3.3: gpt-4o); else the teacher
    writer_url: str | None = None  # its address, if it is not the teacher's; both get the same key
    teacher_timeout: float = 600.0  # seconds for one call with all its retries
    teacher_max_none: float = 0.05  # share of a step's replies that may be lost, cut off, empty or refused
    cache: str | None = None  # file of teacher replies; default: teacher.sqlite in the run directory
    concurrency: int = 16  # teacher calls in flight
    usd_per_m_in: float | None = None  # price of a million input tokens
    usd_per_m_out: float | None = None  # price of a million output tokens
    writer_usd_per_m_in: float | None = None  # the writer's, if it is another model
    writer_usd_per_m_out: float | None = None  # the writer's
    max_usd: float | None = None  # stop cleanly before spending more; needs both prices
    plan: bool = False  # print the teacher calls ahead, one prompt of each kind, and stop

    # Method:
    arms: tuple[Arm, ...] = ("base", "augment", "stat")  # see Arms
    difficulty: Literal["prm", "answer"] = "prm"  # by rewards (Eq. 1), or what is answered wrong (ours)
    max_difficult: int | None = None  # profile so many difficult questions at most
    tau1: float = 0.85  # difficult if the last or the mean step reward is no higher (Eq. 1, §C.1)
    tau2: float = 0.7  # or that of an earlier step (Eq. 1, §C.1)
    temperature: float = 0.1  # of the student's answers (§3.1)
    n_references: int = 3  # questions of P that the teacher reads before it writes (§B.2)
    n_new: int = 2  # questions that it then writes, one a call (§B.2)
    n_solutions: int = 3  # solutions of each (§B.2)
    min_agreeing: int = 2  # a question is kept if so many of them agree on the answer (§B.2)
    n_nearest: int = 5  # questions retrieved for a difficult one by Embed-Syn, which reads 3 (§C.2)
    n_rewrites: int = 3  # rewritten answers to choose from for a question of MATH-Augment (§B.2)
    n_pairs: int = 9500  # question-answer pairs in every trained arm (§B.2)

    # Training:
    lr: tuple[float, ...] = (1e-4,)  # peak; of several the best for each arm (§C.1: from 2e-5 to 5e-4)
    n_heldout: int = 300  # questions of P held out to find it (ours: because Q_test decides nothing)
    epochs: int = 3  # (§C.1)
    batch: int = 8  # pairs in an optimiser step (§C.1: 2 x 4)
    micro_batch: int = 2  # pairs in a forward pass: lower it if memory is short
    max_tokens: int = 2048  # a pair is cut after this many tokens (ours: because so long is an answer)
    lora_rank: int = 16  # (§C.1)
    lora_alpha: int = 32  # (§C.1)
    lora_dropout: float = 0.05  # (§C.1)
    weight_decay: float = 0.1  # (§C.1)
    max_grad_norm: float = 0.3  # gradient clip (§C.1)
    warmup: float = 0.03  # share of the steps, then cosine to zero (§C.1)
    checkpointing: bool = True  # gradient checkpointing: less memory, a third more time

    # Running:
    profile_from: str | None = None  # run of stat_sel.py to take steps 1 to 4 over from
    out: str = "runs/stat_syn"  # run directory; the same command goes on where it stopped
    seed: int = 0  # moves everything that is drawn (paper: 0, §C.1)
    until: Literal["grade", "label", "diagnose", "draw", "train"] | None = None  # stop after this step
    student_url: str | None = None  # server that answers for the student; loads adapters as vLLM does
    test_weights: Literal["nf4", "merged"] = "nf4"  # answer in 4 bits, or faster, unpacked to 16 bits
    sample_batch: int = 48  # answers generated at once (ours: because 24 GB should hold 48 of a 3B model)
    prm_batch: int = 8  # answers scored at once: lower it if memory is short


# --- Prompts, in our own words, with the fields of §C.3. ----------------------------------------------------
WRITE_PROMPT = """Here are problems from {subject}, each with its solution.

{examples}

{link}

Write one new problem. It must be novel: not one of these with other numbers or with other names of its
variables. It must be about as difficult as they are, say all that is needed to solve it, and have one final
answer that can be checked. First say how the problems above relate to the skill that they need, then draft
how a new one can be made, then write the problem alone, without its solution. Answer in this form:
<reason>how the problems relate to the skill</reason>
<draft>how to make the new problem</draft>
<question>the new problem</question>"""
EXAMPLE = "<problem>\n{problem}\n</problem>\n\n<solution>\n{solution}\n</solution>"
SKILL_LINK = "They share a skill, which the new problem must need most of all:\n\n<skill>\n{skill}\n</skill>"
EMBED_LINK = "They are alike, and the new problem must be of their kind."

SOLVE_PROMPT = """Solve this problem.

<problem>
{problem}
</problem>

Reason step by step, show every calculation, and put the final answer, once, in \\boxed{{}}."""

# Copied from stat_sel.STUDENT_PROMPT
STUDENT_PROMPT = "{problem}\n\nReason step by step and put the final answer in \\boxed{{}}."

# Copied from stat_sel.LABEL_PROMPT
LABEL_PROMPT = """Here is a problem from the subject {subject}, and the list of skills that it calls for.

<problem>
{problem}
</problem>

<skills>
{skills}
</skills>

Which of the listed skills does a solution of this problem need? Name the most important ones, at most five,
exactly as they are listed. Answer in this form:
<reason>why the solution needs them</reason>
<skill>first skill, second skill</skill>"""

# Copied from stat_sel.PROFILE_PROMPT
PROFILE_PROMPT = """A student answered a problem from the subject {subject}. Find out which skills the student
still lacks.

<problem>
{problem}
</problem>

<response>
{response}
</response>

<skills>
{skills}
</skills>

Follow the response step by step and judge whether it is correct. If it is not, name the listed skills that
the student must improve to get it right, exactly as they are listed. Answer in this form:
<judge>correct or incorrect</judge>
<reason>where the response goes wrong, and what was missing</reason>
<skill>first skill, second skill</skill>"""

# Copied from stat_sel.REWRITE_PROMPT
REWRITE_PROMPT = """Here are a problem and a correct solution.

<problem>
{problem}
</problem>

<solution>
{solution}
</solution>

Write the solution anew in your own words: complete, step by step, with every calculation shown, not
mentioning that a solution was given. Keep the final answer and put it in \\boxed{{}}."""

# Copied from stat_sel.MATH_SKILLS
MATH_SKILLS = {subject: names.split(" | ") for subject, names in {
    "Algebra": "algebraic expression skills | algebraic manipulation skills | arithmetic skills | "
    "calculation and conversion skills | combinatorial operations and basic arithmetic | "
    "complex number skills | distance and midpoint skills | exponent and root skills | factoring skills | "
    "function composition skills | function skills | geometric sequence skills | "
    "graph and geometry skills | inequality skills | logarithmic and exponential skills | "
    "number theory skills | polynomial concepts | quadratic equation skills | ratio and proportion skills | "
    "sequence and series skills | solving equations",
    "Counting & Probability": "calculating and understanding combinations | combinatorial mathematics | "
    "combinatorics concepts | counting principals | factorials and prime factorization | "
    "number theory and arithmetic operations | permutation and combinations | "
    "probability calculation with replacement | probability concepts and calculations | "
    "probability theory and distribution | combinatorics operations",
    "Geometry": "3d geometry and volume calculation skills | algebraic skills | area calculation skills | "
    "circle geometry skills | combinatorics and probability skills | "
    "coordinate geometry and transformation skills | other geometric skills | pythagorean skills | "
    "quadrilateral and polygon skills | ratio and proportion skills | triangle geometry skills | "
    "trigonometry skills | understanding circle properties and algebraic manipulation",
    "Intermediate Algebra": "absolute value skills | algebraic manipulation and equations | "
    "calculus optimization skills | complex number manipulation and operations | "
    "function composition and transformation | graph understanding and interpretation | "
    "inequality solving and understanding | polynomial concepts | properties and application of exponents | "
    "quadratic equations and solutions | recursive functions and sequences | "
    "sequence and series analysis skills | simplification and basic operations | solving inequalities | "
    "solving system of equations | summation and analysis of series | "
    "understanding and application of functions | understanding and applying floor and ceiling functions | "
    "understanding and manipulation of rational functions | understanding and utilizing infininte series | "
    "understanding ellipse properties | understanding logarithmic properties and solving equations",
    "Number Theory": "arithmetic sequences | base conversion | basic arithmetic | division and remainders | "
    "exponentiation | factorization | greatest common divisor calculations | modular arithmetic | "
    "number manipulation | number theory | polynomial operations | prime number theory | "
    "sequence analysis | solving equations | understanding of fractions",
    "Prealgebra": "average calculations | basic arithmetic operations | circles | "
    "counting and number theory | exponentiation rules | fractions and decimals | geometry | "
    "multiples and zero properties | multiplication and division | perimeter and area | "
    "prime number theory | probability and combinatorics | ratio and proportion | linear equation",
    "Precalculus": "algebra and equations | basic trigonometry | calculus | complex number operations | "
    "complex numbers | coordinate systems | determinant calculation | geometric relations | "
    "geometry and space calculation | geometry triangle properties | matrix operations | "
    "parametric equations | sequences series and summation | three dimensional geometry | "
    "trigonometric calculations | vector operations",
}.items()}


# --- Step 5: pure functions in the paper's order. No files, no network. ------------------------------------
def draw_references(profile: dict[str, list], skill_map: dict[str, list], k: int, rng) -> list[dict]:
    """k questions of P with the skill, for every difficult question and every skill it lacks (§2.3, §B.2).

    Rows {"for", "skill", "references"}: all of them where the Skill-Map has fewer; none for a skill without.
    """
    groups = []
    for question, skills in profile.items():
        for skill in skills:
            if linked := skill_map.get(skill):
                read = rng.sample(linked, min(k, len(linked)))
                groups.append({"for": question, "skill": skill, "references": read})
    return groups


def draw_neighbours(nearest: dict[str, list], n: int, k: int, rng) -> list[dict]:
    """n groups of k among the questions nearest to a difficult one, the difficult ones in turn (§C.2)."""
    turns, groups = itertools.cycle(rng.sample(list(nearest), len(nearest))), []
    for question in itertools.islice(turns, n):
        read = rng.sample(nearest[question], min(k, len(nearest[question])))
        groups.append({"for": question, "skill": None, "references": read})
    return groups


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


def masked(problem: str) -> str:
    """A problem in plain form with its numbers and single letters made alike (§2.3: no renamed copies).

    >>> masked("If $x + 2.5y = 10$, find $y$.") == masked("If $a+3b=7$, find $c$.")
    True
    """
    text = " ".join(common.words(problem))
    text = re.sub(r"\d+(\.\d+)?( \d{3}(?!\d))*", "0", text)  # 2.5, 10 000
    return re.sub(r"\b[a-z]\b", "x", text)


def screen(written: list[dict], pool: list[dict], tests: list[dict]) -> tuple[list[dict], list[dict]]:
    """The new questions, and those dropped: {..., "dropped": why, "matched": what one is too near to}.

    written: rows of arm, problem, references (ids of `pool`), fault.
    """
    problems, earlier, new, dropped = {row["id"]: row["problem"] for row in pool}, {}, [], []
    of_pool = {common.plain(problem): problem for problem in problems.values()}
    leaks = common.leaked([row["problem"] or "" for row in written], [row["problem"] for row in tests])
    for row, leak in zip(written, leaks, strict=True):
        if row["fault"]:
            dropped.append(row | {"dropped": row["fault"], "matched": None})
            continue
        own, text = masked(row["problem"]), common.plain(row["problem"])
        copied = [problems[i] for i in row["references"] if masked(problems[i]) == own]
        found = {"in a test set": leak, "copy of a question read": next(iter(copied), None),
                 "in P": of_pool.get(text), "written before": earlier.get((row["arm"], text))}
        why = next((why for why in found if found[why]), None)
        if why:
            dropped.append(row | {"dropped": why, "matched": found[why]})
        else:
            new.append(row)
            earlier[row["arm"], text] = row["problem"]
    return new, dropped


# --- Step 5, with files and network. -----------------------------------------------------------------------
def ask_twice(teacher, asked: list[Request], read, step: str, reads=str) -> list[dict]:
    """read(reply) of each request; where that has a fault, of one more attempt, with "first_fault"."""
    found = [read(reply and reply.text) for reply in teacher.ask(asked, step, reads=reads)]
    again = [i for i, row in enumerate(found) if row["fault"]]
    retries = [asked[i]._replace(sample=-1 - asked[i].sample) for i in again]  # no first attempt's number
    # ours: any share of these may come to nothing, because they are what came to nothing before
    second = teacher.ask(retries, f"{step}, 2nd attempt", max_none=1.0) if again else []
    firsts, lasts = Counter(found[i]["fault"] for i in again), Counter()
    for i, reply in zip(again, second, strict=True):
        found[i] = read(reply and reply.text) | {"first_fault": found[i]["fault"]}
        lasts.update([found[i]["fault"]] if found[i]["fault"] else [])
    print(f"  {step}: asked again for {dict(firsts) or 'none'}; given up: {dict(lasts) or 'none'}")
    return found


def writing(args, groups: list[dict], pool: list[dict]) -> list[Request]:
    """n_new requests for each group of references; groups of an arm that are the same are other samples."""
    by_id, asked, seen = {row["id"]: row for row in pool}, [], Counter()
    for group in groups:
        rows, skill = [by_id[i] for i in group["references"]], group["skill"]
        subjects = dict.fromkeys(row["subject"] or "mathematics" for row in rows)
        text = WRITE_PROMPT.format(subject=" and ".join(subjects),
                                   examples="\n\n".join(EXAMPLE.format(**row) for row in rows),
                                   link=SKILL_LINK.format(skill=skill) if skill else EMBED_LINK)
        for _ in range(args.n_new):  # ours: at T = 1, because several that differ are wanted
            message = {"role": "user", "content": text}
            asked.append(Request([message], 1.0, args.teacher_max_tokens, seen[group["arm"], text]))
            seen[group["arm"], text] += 1
    return asked


def group_references(args, pool: list[dict], profile, labels, nearest, difficult: list[dict]) -> list[dict]:
    """What the teacher reads for each arm: rows {"arm", "for", "skill", "references"}."""
    k, groups = args.n_references, []
    skill_map = invert({row["id"]: labels.get(row["id"], []) for row in pool})
    there = Counter(min(k, len(skill_map.get(skill, []))) for skills in profile.values() for skill in skills)
    print(f"  {there.total()} missing skills: for {there[0]} of them P has no question, and nothing is "
          f"written; for {sum(there[n] for n in range(1, k))} it has fewer than {k}")
    for arm in args.arms:
        rng = common.rng(args.seed, "references", arm)
        if arm == "stat":
            drawn = draw_references(profile, skill_map, k, rng)
        elif arm == "shuffled":
            drawn = draw_references(shuffle_profile(profile, skill_map, rng), skill_map, k, rng)
        elif arm == "embed":
            n = there.total() - there[0] or len(nearest)  # ours: as many as STAT-Syn, for equal numbers
            drawn = draw_neighbours(nearest, n, k, rng)
        else:
            continue
        if not drawn:
            raise UserError(f"arm {arm}: nothing to write from (difficult questions: {len(difficult)}, "
                            f"profile: {len(profile)}); take more questions, or leave the arm out")
        groups += [{"arm": arm} | group for group in drawn]
    return groups


def synthesise(args, run, teacher, writer, groups: list[dict], pool: list[dict], tests: list[dict]) -> dict:
    """Step 5: the pairs of each arm, {"id", "sample", "skill", "problem", "response"}."""
    def write():
        asked, numbers = writing(args, groups, pool), {arm: itertools.count() for arm in args.arms}
        writer.plan({"5 write": asked})
        found = ask_twice(writer, asked, read_question, "5 write", common.tagged("question"))
        repeated = [group for group in groups for _ in range(args.n_new)]
        return [{"id": f"{group['arm']}/{next(numbers[group['arm']])}"} | group | row
                for group, row in zip(repeated, found, strict=True)]
    written = run.step("5_written.jsonl", write)
    new, dropped = screen(written, pool, tests)

    def solve():
        keys = [(row["id"], i) for row in new for i in range(args.n_solutions)]
        rows = [row | {"subject": None, "solution": None} for row in new]
        asked = requests(args, SOLVE_PROMPT, rows, n=args.n_solutions, temperature=1.0)
        teacher.plan({"5 solve": asked})
        found = ask_twice(teacher, asked, read_solution, "5 solve",
                          lambda text: common.read_boxes(text) or None)
        return [{"id": i, "sample": sample} | row for (i, sample), row in zip(keys, found, strict=True)]
    solutions: dict[str, list[dict]] = {row["id"]: [] for row in new}
    for row in run.step("5_solutions.jsonl", solve):
        solutions[row["id"]].append(row)
    pairs: dict[str, list[dict]] = {group["arm"]: [] for group in groups}
    scores: dict[str, Counter] = {arm: Counter() for arm in pairs}
    for row in new:
        answers = [None if one["fault"] else one["answer"] for one in solutions[row["id"]]]
        chosen = agreeing(answers)
        scores[row["arm"]][len(chosen)] += 1
        if len(chosen) < args.min_agreeing:
            dropped.append(row | {"dropped": "inconsistent", "matched": None, "answers": answers})
            continue
        for i in chosen:
            pair = {"id": row["id"], "sample": i, "skill": row["skill"], "problem": row["problem"]}
            pairs[row["arm"]].append(pair | {"response": solutions[row["id"]][i]["response"]})
    run.step("dropped.jsonl", lambda: dropped)
    for arm, rows in pairs.items():
        reasons = Counter(row["dropped"] for row in dropped if row["arm"] == arm)
        print(f"  {arm}: {sum(row['arm'] == arm for row in written)} questions asked for; dropped: "
              f"{dict(reasons) or 'none'}; consistency scores {dict(sorted(scores[arm].items()))}; kept "
              f"{len({row['id'] for row in rows})} with {len(rows)} solutions")
    return pairs


def draw(args, run, pairs: dict[str, list[dict]]) -> dict[str, int]:
    """train_<arm>.jsonl for each arm: --n-pairs random pairs, or all it has (§B.2). Returns their numbers."""
    n_pairs = {}
    for arm, rows in pairs.items():
        if not rows:
            raise UserError(f"arm {arm}: no pair is left; read {run.path}/dropped.jsonl or 5_rewrites.jsonl, "
                            "or take more questions")
        chosen = rows[:args.n_pairs]  # augment's stand in their order
        if arm != "augment":
            chosen = common.rng(args.seed, "pairs", arm).sample(rows, len(rows))[:args.n_pairs]
        made = []
        for row in chosen:
            chat = [*question(row["problem"]), {"role": "assistant", "content": row["response"]}]
            made.append({"id": row["id"], "sample": row["sample"], "skill": row["skill"], "messages": chat})
        run.step(f"train_{arm}.jsonl", lambda made=made: made)
        n_pairs[arm] = len(made)
        print(f"  {arm}: {len(made):,} pairs, {len({row['id'] for row in made}):,} different questions, of "
              f"{len(rows):,} that it could have")
        if len(made) < args.n_pairs:
            print(f"  {arm}: fewer than --n-pairs {args.n_pairs:,}; a larger --n-new or --n-val gives more")
    return n_pairs


# --- A run of stat_sel.py to go on from. -------------------------------------------------------------------
def differences(there: dict, here: dict, names) -> str:
    odd = [name for name in names if there.get(name) != here.get(name)]
    return "; ".join(f"{name} was {there.get(name)}, is {here.get(name)}" for name in odd)


def check_source(args) -> None:
    """Refuse a --profile-from that is no run of stat_sel.py with steps 1 to 4, or one of other arguments."""
    path = Path(args.profile_from)
    needed = ("args.json", "0_questions.jsonl", "3_skill_map.jsonl", "4_profile.jsonl")
    missing = [name for name in needed if not (path / name).is_file()]
    there = {} if missing else common.read_json(path / "args.json")
    if "questions_per_skill" not in there:  # an argument of that file alone
        came = f"found no {missing[0]}" if missing else "found another method's"
        raise UserError(f"--profile-from {path}: expected a run of stat_sel.py with arm stat, its steps 1 to "
                        f"4 finished, {came}; name another")
    if odd := differences(there, dataclasses.asdict(args), PROFILED_BY):
        raise UserError(f"--profile-from {path}: its profile follows from other arguments ({odd}); give "
                        "those, or leave it out")


def same_questions(source: Path, questions: "Questions") -> bool:
    """Whether that run was made with the P, Q_val and Q_test of this one."""
    file, tests = source / "0_fingerprint.json", questions.sets["MATH"]
    here = {"P": questions.pool, "Q_val": questions.val, "test MATH": tests}
    there = common.read_json(file) if file.exists() else {}
    ids = [row["id"] for _, row in common.read_rows(source / "0_questions.jsonl")]
    same = [there.get(part) == common.digest(rows) for part, rows in here.items()]
    return all(same) and ids == [row["id"] for row in questions.pool + questions.val + tests]


def take_over(args, run) -> None:
    """Copy the files of steps 1 to 4 of that run, and the tests of its arms stat and embed, as TAKEN says."""
    source = Path(args.profile_from)
    there, here = common.read_json(source / "args.json"), run.read("args.json")
    steps = "1_answers 2_rewards 2_graded 3_skill_map 4_profile".split()
    names = {f"{step}.jsonl": f"{step}.jsonl" for step in steps}
    shared = sorted(there.keys() & here.keys() - {"out", "arms", *MAY_CHANGE})
    if odd := differences(there, here, shared):
        print(f"  {source}: its arms do not stand beside these: they were made with other arguments ({odd})")
    else:
        for arm, name in TAKEN.items():
            names |= {f"{part}_{arm}.jsonl": f"{part}_{name}.jsonl" for part in ("train", "7_test")}
    for old, new in names.items():
        if (source / old).exists():
            rows = [row for _, row in common.read_rows(source / old)]
            if rows != run.step(new, lambda rows=rows: rows):
                raise UserError(f"{run.path}/{new}: it is not the one of --profile-from {source}; go on "
                                "without that, or choose another --out")


# --- Copied from stat_sel.py, where it is explained: steps 1 to 4, the control, training and testing. ------
# Copied from stat_sel.is_difficult
def is_difficult(rewards: list[float], tau1: float, tau2: float) -> bool:
    """Whether R(q) = 0, by the rewards r_q,1..r_q,t of one answer's steps, in [0, 1], t >= 1 (§2.1, Eq. 1).

    >>> is_difficult([0.71, 1.0], 0.85, 0.7), is_difficult([0.7, 1.0, 1.0], 0.85, 0.7)
    (False, True)
    """
    *earlier, last = rewards
    mean = math.fsum(rewards) / len(rewards)
    return last <= tau1 or mean <= tau1 or any(r <= tau2 for r in earlier)


# Copied from stat_sel.read_skills
def read_skills(text: str, subject: str, names: list[str]) -> tuple[list[str], list[str]]:
    """The listed skills in a comma-separated text, as "subject: name", and what is not on the list.

    >>> read_skills("Factoring_Skills, magic", "Algebra", ["factoring skills", "function skills"])
    (['Algebra: factoring skills'], ['magic'])
    """
    def plain(name):
        name = re.sub(r"^\W*\d+[.)]\s", "", name).replace("_", " ")  # "2. Factoring_Skills"
        return " ".join(name.casefold().strip(" \n-*•\"'`.[]").split())
    listed, known, unknown = {plain(name): name for name in names}, {}, []
    for item in re.split(r"[,;\n|]", text):
        name = plain(item).removeprefix(f"{plain(subject)}: ")
        if name in listed:
            known[f"{subject}: {listed[name]}"] = None
        elif name and name != "none":
            unknown.append(name)
    return list(known), unknown


# Copied from stat_sel.read_profile
def read_profile(reply: str, subject: str, names: list[str]) -> dict:
    """Judge and missing skills of a reply (§2.2, §C.3.2); `fault`: why it puts nothing into the profile."""
    judge, skills = common.read_tag(reply, "judge") or "", common.read_tags(reply, "skill")
    known, unknown = read_skills(", ".join(skills), subject, names)
    # "Incorrect (wrong sign)" is a verdict, "correct or incorrect" is none
    verdict = re.match(r"\W*(in|not )?correct\b(?!\W*or\b|/)", judge, re.IGNORECASE)
    if not skills or not verdict:
        fault = "malformed"
    elif not verdict[1]:
        judge, fault = "correct", "judged correct"  # ours: even with skills, since a right answer lacks none
    else:
        judge, fault = "incorrect", None if known else "no listed skill"
    return {"judge": judge, "skills": [] if fault else known, "unknown": unknown, "fault": fault,
            "reason": common.read_tag(reply, "reason")}


# Copied from stat_sel.invert
def invert(labels: dict[str, list[str]]) -> dict[str, list[str]]:
    """Skill-Map: S -> subset of P, from the skills of each question (§2)."""
    skill_map: dict[str, list[str]] = {}
    for question, skills in labels.items():
        for skill in skills:
            skill_map.setdefault(skill, []).append(question)
    return skill_map


# Copied from stat_sel.shuffle_profile
def shuffle_profile(profile: dict[str, list[str]], skill_map: dict[str, list[str]], rng) -> dict:
    """The profile with every skill replaced by another that has about as many questions in the Skill-Map.

    The skills are sorted by that number, and in each group of four every skill takes another's place, the
    same one for the whole profile. A skill without questions stays: it draws none.
    ours: by size, because a frequent skill put on a rare one would draw fewer different questions, and a
    control that loses by that says nothing of the targeting.
    """
    by_size, replacement = sorted(skill_map, key=lambda skill: (len(skill_map[skill]), skill)), {}
    groups = [by_size[i:i + 4] for i in range(0, len(by_size), 4)]
    if len(groups) > 1 and len(groups[-1]) < 4:
        groups[-2:] = [groups[-2] + groups[-1]]
    for group in groups:
        turned = rng.sample(group, len(group))
        replacement |= dict(zip(turned, turned[1:] + turned[:1], strict=True))
    return {i: [replacement.get(skill, skill) for skill in skills] for i, skills in profile.items()}


# Copied from stat_sel.order_pairs
def order_pairs(drawn: list[str], n_rewrites: int, rng) -> list[tuple[str, int]]:
    """(question, number of its rewrite) in the order in which an arm takes them: different ones first.

    A question that was drawn more often tends to come earlier. Repeats follow when the different pairs are
    used up. ours: because the paper's 9.5k pairs hold about 4k questions (§B.2), more than with repeats.
    >>> sorted(order_pairs(["a", "b", "a"], 1, random.Random(0))[:2])
    [('a', 0), ('b', 0)]
    """
    pairs = [(i, n) for i in drawn for n in range(n_rewrites)]
    seen, first, repeats = set(), [], []
    for pair in rng.sample(pairs, len(pairs)):
        (repeats if pair in seen else first).append(pair)
        seen.add(pair)
    return first + repeats


# Copied from stat_sel.read_lists
def read_lists(path: str, flag: str, what: str) -> dict[str, list[str]]:
    """A JSON file {what: [name, ...]} that a flag names."""
    lists = common.read_json(path)
    is_good = isinstance(lists, dict) and all(isinstance(names, list) for names in lists.values())
    for name in itertools.chain(*lists.values()) if is_good else ():
        is_good = is_good and isinstance(name, str) and not re.search(r"[,;|\n]", name)
    if not is_good:
        raise UserError(f"{flag} {path}: expected {{{what}: [skill, ...]}} with none of , ; | in a skill's "
                        "name; correct the file")
    return lists


# Copied from stat_sel.split_math
def split_math(rows: list[dict], n_val: int, seed: int) -> tuple[list[dict], list[dict]]:
    """(validation, test): n_val rows at random and the others, each in file order (§3.1)."""
    if not 0 < n_val < len(rows):
        raise UserError(f"split: expected 0 < n_val < {len(rows)} (the rows), came {n_val}; change n_val")
    by_text = sorted(range(len(rows)), key=lambda i: rows[i]["problem"])  # the file's order does not matter
    chosen = set(common.rng(seed, "split_math").sample(by_text, n_val))
    return ([row for i, row in enumerate(rows) if i in chosen],
            [row for i, row in enumerate(rows) if i not in chosen])


# Copied from stat_sel.Questions
class Questions(NamedTuple):
    pool: list[dict]  # P: training questions with a solution and an answer
    val: list[dict]  # Q_val: what the student is profiled on
    sets: dict[str, list[dict]]  # what is tested on: first "MATH", the rest of the test split
    n_samples: dict[str, int]  # answers to each question of a set
    removed: dict[str, int]  # how many questions a set has lost because they are profiled on
    heldout: list[dict]  # taken out of P to choose between several --lr


# Copied from stat_sel.load_questions
def load_questions(args) -> Questions:
    """Training, validation and test questions, none of them in two of the three, by their texts."""
    if args.data.endswith(".jsonl") or Path(args.data).is_file():
        raise UserError(f"--data {args.data}: expected a folder with train.jsonl and test.jsonl, came one "
                        "file; give the folder")
    train, tests = common.load(args.data, "train"), common.load(args.data, "test")
    others: dict[str, list[dict]] = {}
    for given in dict.fromkeys(([args.val] if args.val else []) + list(args.ood)):
        name = "/".join([*Path(given).parts[-2:-1], Path(given).stem or "here"])
        if name.replace("/", "_") in ("MATH", *(other.replace("/", "_") for other in others)):
            raise UserError(f"--ood: two sets would be called {name}, by the last two parts of their paths; "
                            "rename one")
        others[name] = common.load(given)
    if args.val:
        name = next(iter(others))
        n_val = min(args.n_val, len(others[name]) // 2)  # ours: because something must be left to test on
        val = [row | {"id": f"{name}/{row['id']}"} for row in split_math(others[name], n_val, args.seed)[0]]
    else:
        val, tests = split_math(tests, args.n_val, args.seed)
    whole, sets, n_samples, removed = {"MATH": tests, **others}, {}, {}, {}
    for name, rows in whole.items():
        sets[name] = common.without(rows, val)
        # ours: by size, since the sets that STAT samples often have 30 or 40 questions, all others hundreds
        n_samples[name] = args.samples if name != "MATH" and len(rows) < 100 else 1
        removed[name] = len(rows) - len(sets[name])
        if not sets[name]:
            raise UserError(f"{name}: every question of it is profiled on; leave it out, or profile on fewer")
    solved = [row for row in train if row["answer"] and row["solution"]]
    leaks = common.leaked([row["problem"] for row in solved], [
        row["problem"] for row in [*val, *itertools.chain(*whole.values())]])
    pool = [row for row, leak in zip(solved, leaks, strict=True) if not leak]
    tested_on = ", ".join(f"{name} {len(rows)} ({removed[name]} taken out: profiled on)"
                          for name, rows in sets.items())
    print(f"P {len(pool)} questions ({len(train) - len(pool)} left out: no answer, or in an evaluation set), "
          f"Q_val {len(val)}; tested on {tested_on}")
    if args.limit:
        def cut(rows):
            return common.rng(args.seed, "limit").sample(rows, min(args.limit, len(rows)))
        pool, val, sets = cut(pool), cut(val), {name: cut(rows) for name, rows in sets.items()}
    heldout = []
    if len(args.lr) > 1:
        heldout = common.rng(args.seed, "heldout").sample(pool, min(args.n_heldout, len(pool) // 4))
        ids = {row["id"] for row in heldout}
        pool = [row for row in pool if row["id"] not in ids]
        print(f"{len(heldout)} questions of P are held out to choose between {len(args.lr)} learning rates")
    ids = [row["id"] for row in pool + val + sets["MATH"]]
    if len(set(ids)) < len(ids):
        raise UserError(f"--data {args.data}: an id stands in train.jsonl and in test.jsonl; make ids unique")
    return Questions(pool, val, sets, n_samples, removed, heldout)


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


# Copied from stat_sel.split_steps
def split_steps(response: str) -> list[str]:
    r"""The steps of an answer for a reward model: its paragraphs, or its lines if it is one paragraph.

    ours: where to cut, because STAT does not say. A display formula is never cut. The final answer, if there
    is one, comes as a last step of its own, as the authors showed it before (AdaptMI). Never none.
    >>> split_steps("x+1=3.\n\nSo\n\\[x\n\n=2\\]"), split_steps("2+3=5\nSo \\boxed{5}.")[1:]
    (['x+1=3.', 'So\n\\[x\n\n=2\\]'], ['So \\boxed{5}.', 'The final answer is: \\boxed{5}.'])
    """
    display = r"(?<!\\)\\\[.*?(?:\\\]|\Z)|\$\$.*?(?:\$\$|\Z)|\\begin\{(\w+\*?)\}.*?(?:\\end\{\1\}|\Z)"
    text = re.sub(display, lambda formula: formula[0].replace("\n", "\0"), response.strip(), flags=re.DOTALL)
    paragraphs = re.split(r"\n\s*\n", text)
    parts = paragraphs if len(paragraphs) > 1 else text.split("\n")
    steps = [part.replace("\0", "\n").strip() for part in parts if part.strip()]
    if (final := common.extract_answer(response)) is not None:
        steps.append(f"The final answer is: \\boxed{{{final}}}.")
    return steps or [""]


# Copied from stat_sel.chat_of_steps
def chat_of_steps(tokenizer, problem: str, steps: list[str]) -> tuple[list[int], list[int]]:
    """Tokens of the chat "problem + step 1", "+", "step 2", "+", ... that RLHFlow's reward models read, and
    the positions that predict its marks. The template is applied once, whatever the number of steps."""
    chat, mark, ids, at = [], "\ue000", [], []  # the mark stands for "+", which may stand in a step too
    for i, step in enumerate(steps):
        text = f"{problem} {step}" if i == 0 else step
        chat += [{"role": "user", "content": text.replace(mark, "")},
                 {"role": "assistant", "content": mark}]
    parts = common.apply_template(tokenizer, chat).split(mark)
    for part in parts[:-1]:
        ids += tokenizer(part, add_special_tokens=False).input_ids
        at.append(len(ids) - 1)
        ids += tokenizer("+", add_special_tokens=False).input_ids[-1:]
    whole = tokenizer("+".join(parts), add_special_tokens=False).input_ids
    if len(at) != len(steps) or whole[:len(ids)] != ids:
        raise UserError("--prm: its chat template does not leave earlier turns as they are with a + behind "
                        "them; take a model of RLHFlow's kind")
    return ids[:-1], at


# Copied from stat_sel.check_prm
def check_prm(name: str) -> None:
    """Refuse a reward model that cannot mark steps, before the student answers for hours."""
    from transformers import AutoConfig, AutoTokenizer
    with common.loading("--prm", name):
        tokenizer = AutoTokenizer.from_pretrained(name)
    chat_of_steps(tokenizer, "problem", ["one", "two"])
    kinds = AutoConfig.from_pretrained(name).architectures or ["none"]
    if not kinds[0].endswith("ForCausalLM"):
        raise UserError(f"--prm {name}: expected a causal language model that writes + and -, came "
                        f"{kinds[0]}; take a model of RLHFlow's kind")


# Copied from stat_sel.score_steps
def score_steps(model, tokenizer, answers: list[tuple[str, list[str]]]) -> list[list[float]]:
    """r_q,1..r_q,t for each (problem, steps): P("+") / (P("+") + P("-")) (§2.1).

    All steps of an answer take one forward pass: attention is causal, and every earlier mark is "+".
    """
    marks = [tokenizer(mark, add_special_tokens=False).input_ids[-1] for mark in "+-"]
    chats = [chat_of_steps(tokenizer, problem, steps) for problem, steps in answers]
    with torch.no_grad():
        ids, mask = common.pad([ids for ids, _ in chats], model.device)
        hidden = common.hidden_states(model, ids, mask)  # (B, T, d)
        pairs = zip(hidden, chats, strict=True)
        logits = [model.lm_head(row[at]).float() for row, (_, at) in pairs]  # (t, V) each
    return [steps[:, marks].softmax(-1)[:, 0].tolist() for steps in logits]


# Copied from stat_sel.step_rewards
def step_rewards(args, run, rows: list[dict], answers: dict[str, str]) -> dict[str, list[float]]:
    """The rewards of the steps of each question's answer, in batches of similar length."""
    load_prm = functools.cache(lambda: common.load_4bit(args.prm, "--prm"))  # only if something is left to do
    by_id = {row["id"]: (row["problem"], answers[row["id"]]) for row in rows}
    items = [{"id": i} for i in sorted(by_id, key=lambda i: (sum(map(len, by_id[i])), i))]

    def make(batch):
        asked = [by_id[item["id"]] for item in batch]
        found = score_steps(*load_prm(), [(problem, split_steps(response)) for problem, response in asked])
        return [item | {"rewards": rewards} for item, rewards in zip(batch, found, strict=True)]
    batches = [items[i:i + args.prm_batch] for i in range(0, len(items), args.prm_batch)]
    return {row["id"]: row["rewards"] for row in run.batches("2_rewards.jsonl", batches, make, unit="answer")}


# Copied from stat_sel.loader
def loader(args, adapter: str | Path | None):
    """A function that loads the student with an adapter, here or at --student-url, once, if it is called."""
    if args.student_url:
        return functools.cache(lambda: common.served(args, adapter))
    return functools.cache(lambda: common.load_student(
        args.student, adapter, args.chat_template_kwargs, merged=args.test_weights == "merged"))


# Copied from stat_sel.grade
def grade(args, run, val: list[dict], tests: list[dict]) -> list[dict]:
    """1, 2: the answers to Q_val and Q_test and which are difficult, those of Q_test for MATH^D (§2.1)."""
    rows, load = val + tests, loader(args, args.adapter)
    found = common.answer(args, run, "1_answers.jsonl", load, rows, question, args.temperature)
    load.cache_clear()  # the reward model takes the student's place
    answers = {i: drawn[0]["response"] for i, drawn in found.items()}
    rewards = step_rewards(args, run, rows, answers) if args.difficulty == "prm" else {}

    def make():
        graded = []
        for i, row in enumerate(rows):
            response, r = answers[row["id"]], rewards.get(row["id"])
            is_right = common.score(response, row["answer"], row["problem"])
            difficult = is_difficult(r, args.tau1, args.tau2) if r else not is_right  # Eq. 1
            graded.append({"id": row["id"], "part": "Q_val" if i < len(val) else "Q_test", "rewards": r,
                           "response": response, "is_right": is_right, "difficult": difficult})
        return graded
    graded = run.step("2_graded.jsonl", make)
    for part in ("Q_val", "Q_test"):
        there = [row for row in graded if row["part"] == part]
        print(f"  {part}: {sum(row['difficult'] for row in there)} of {len(there)} difficult, "
              f"{sum(bool(row['is_right']) for row in there)} right")
    return graded


# Copied from stat_sel.check_embedder
def check_embedder(args) -> None:
    """Refuse an embedder whose own code would have to be trusted, unless the user says so."""
    from transformers.utils import cached_file
    if importlib.util.find_spec("sentence_transformers") is None:
        raise UserError("--arms embed: no sentence-transformers here; pip install sentence-transformers")
    common.check_checkpoint(args.embedder, "--embedder")
    with common.loading("--embedder", args.embedder):
        modules = common.read_json(cached_file(args.embedder, "modules.json"))
        own_code = [module for module in modules if not module["type"].startswith("sentence_transformers.")]
        for folder in {"", *(module["path"] for module in modules)}:
            file = f"{folder}/config.json".lstrip("/")
            config = cached_file(args.embedder, file, _raise_exceptions_for_missing_entries=False)
            own_code += [file] * bool(config and "auto_map" in common.read_json(config))
    if own_code and not args.trust_remote_code:
        raise UserError(f"--embedder {args.embedder}: it comes with code of its own, without which it would "
                        "embed badly; read that and give --trust-remote-code, or take another")


# Copied from stat_sel.retrieve
def retrieve(args, run, difficult: list[dict], pool: list[dict], k: int) -> dict[str, list[str]]:
    """The k questions of P nearest to each difficult one, by id, the nearest first (§C.2)."""
    def make():
        from sentence_transformers import SentenceTransformer
        common.free_gpu()
        with common.loading("--embedder", args.embedder):
            embedder = SentenceTransformer(args.embedder, trust_remote_code=args.trust_remote_code,
                                           model_kwargs={"use_safetensors": True})
        if embedder.device.type == "cpu":
            embedder.float()  # many a CPU only emulates the half precision that the weights may have
        how = {"batch_size": args.prm_batch, "convert_to_tensor": True, "normalize_embeddings": True}
        keys = embedder.encode_document([row["problem"] for row in pool], **how)  # (N, d)
        queries = embedder.encode_query([row["problem"] for row in difficult], **how)  # (M, d)
        near = (queries @ keys.T).sort(descending=True, stable=True).indices[:, :k].tolist()
        ids = [[pool[i]["id"] for i in found] for found in near]
        return dict(zip([row["id"] for row in difficult], ids, strict=True))
    return run.step("2_nearest.json", make) if difficult else {}


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


# Copied from stat_sel.label
def label(args, run, teacher, rows: list[dict], skills) -> dict[str, list[str]]:
    """3: the skills of each question, by the teacher or from --skill-map (§C.3.1)."""
    def make():
        if args.skill_map:
            given, most = read_lists(args.skill_map, "--skill-map", "question id"), None
            texts = ["\n".join(given.get(row["id"], [])) for row in rows]
        else:
            asked, most = requests(args, LABEL_PROMPT, rows, skills), 5
            replies = teacher.ask(asked, "3 label", reads=common.tagged("skill"))
            texts = [", ".join(common.read_tags(reply.text, "skill")) if reply else "" for reply in replies]
        found = []
        for row, text in zip(rows, texts, strict=True):
            known, unknown = read_skills(text, row["subject"], skills[row["subject"]])
            found.append({"id": row["id"], "skills": known[:most], "unknown": unknown})
        return found
    labels = run.step("3_skill_map.jsonl", make)
    print(f"  {sum(not row['skills'] for row in labels)} of {len(labels)} questions without a skill, "
          f"{sum(len(row['unknown']) for row in labels)} names not on the list")
    return {row["id"]: row["skills"] for row in labels}


# Copied from stat_sel.diagnose
def diagnose(args, run, teacher, difficult: list[dict], graded: list[dict], skills) -> dict[str, list[str]]:
    """4: the Missing-Skill-Profile (§2.2). The teacher never sees the gold answer."""
    def make():
        responses = {row["id"]: row["response"] for row in graded}
        asked = requests(args, PROFILE_PROMPT, difficult, skills, [responses[row["id"]] for row in difficult])
        found, lost = [], {"judge": None, "skills": [], "unknown": [], "fault": "no reply", "reason": None}
        replies = teacher.ask(asked, "4 diagnose", reads=common.tagged("judge"))
        for row, reply in zip(difficult, replies, strict=True):
            read = read_profile(reply.text, row["subject"], skills[row["subject"]]) if reply else lost
            found.append({"id": row["id"], **read})
        return found
    rows = run.step("4_profile.jsonl", make)
    faults = Counter(row["fault"] for row in rows if row["fault"])
    profile = {row["id"]: row["skills"] for row in rows if not row["fault"]}
    print(f"  Missing-Skill-Profile of {len(profile)} difficult questions; left out: "
          f"{dict(faults) or 'none'}; {sum(len(row['unknown']) for row in rows)} names not on the list")
    counts = Counter(skill for missing in profile.values() for skill in missing).most_common(10)  # Figs. 2, 6
    for skill, n in counts:
        print(f"  {n:>6,} {'#' * math.ceil(40 * n / counts[0][1]):<40} {skill}")
    return profile


# Copied from stat_sel.rewrite
def rewrite(args, run, teacher, pool: list[dict], orders: dict[str, list[tuple[str, int]]]) -> dict:
    """5: the rewrites with the gold answer, {(question, number): text}; a wrong one is dropped (§B.2).

    orders: the pairs of each arm as it takes them. Each round asks for those of an arm's first n_pairs that
    are not there yet. Wrong ones drop out, later ones move up, until nothing is missing.
    """
    by_id = {row["id"]: row for row in pool}

    def make():
        found: dict[tuple[str, int], dict] = {}
        while True:
            wanted = {}
            for order in orders.values():
                usable = (pair for pair in order if pair not in found or found[pair]["is_right"])
                wanted |= dict.fromkeys(itertools.islice(usable, args.n_pairs))
            wanted = [pair for pair in wanted if pair not in found]
            if not wanted:
                return list(found.values())
            asked = requests(args, REWRITE_PROMPT, [by_id[i] for i, _ in wanted], temperature=1.0)
            asked = [request._replace(sample=n) for request, (_, n) in zip(asked, wanted, strict=True)]
            replies = teacher.ask(asked, "5 rewrite", reads=common.extract_answer)
            for (i, n), reply in zip(wanted, replies, strict=True):
                text = reply.text if reply else None
                is_right = reply and common.score(text, by_id[i]["answer"], by_id[i]["problem"])
                found[i, n] = {"id": i, "sample": n, "response": text, "is_right": is_right}
    rows = run.step("5_rewrites.jsonl", make)
    n_wrong = sum(not row["is_right"] for row in rows)
    print(f"  {n_wrong} of {len(rows)} rewrites dropped for a wrong or missing answer")
    return {(row["id"], row["sample"]): row["response"] for row in rows if row["is_right"]}


# Copied from stat_sel.few
def few(args, arm: str, n: int) -> str:
    """The mark of an arm that has fewer pairs than the others."""
    return f" ({n:,} pairs)" if n < args.n_pairs and arm not in ("base", "train") else ""


# Copied from stat_sel.train_arm
def train_arm(args, run, heldout: list[dict], arm: str) -> None:
    """6: adapter/<arm>; of several --lr that of the most right answers to the held-out part of P (§C.1)."""
    adapters, n_right = run.path / "adapter", {}
    for lr in () if (adapters / arm).exists() else args.lr:
        name = arm if len(args.lr) == 1 else f"{arm}_{lr:g}"
        if not (adapters / name).exists():
            student = common.load_student(args.student, args.adapter, args.chat_template_kwargs)
            train(args, run, student, run.read(f"train_{arm}.jsonl"), name, lr)
            del student
        if len(args.lr) > 1:
            file, load = f"6_heldout_{name}.jsonl", loader(args, adapters / name)
            found = common.answer(args, run, file, load, heldout, question, args.temperature)
            answers = [(found[row["id"]][0]["response"], row) for row in heldout]
            marks = [common.score(text, row["answer"], row["problem"]) for text, row in answers]
            n_right[lr] = marks.count(True)
            load.cache_clear()
    for checkpoint in adapters.glob(f"{arm}*.checkpoint.pt"):
        checkpoint.unlink()
    if n_right:
        best = max(args.lr, key=n_right.get)
        print(f"  {arm}: learning rate {best:g}; right of {len(heldout)} held out, by rate: {n_right}")
        run.log(arm=arm, lr=best, n_right=n_right)
        shutil.copytree(adapters / f"{arm}_{best:g}", adapters / f"{arm}.tmp", dirs_exist_ok=True)
        (adapters / f"{arm}.tmp").rename(adapters / arm)


# Copied from stat_sel.test
def test(args, run, questions: Questions, arm: str) -> list[dict]:
    """7: every answer to the evaluation sets. is_right is None where no final answer was found."""
    load = loader(args, args.adapter if arm == "base" else run.path / "adapter" / arm)  # as it was saved

    def make():
        out = []
        for name, rows in questions.sets.items():
            n, file = questions.n_samples[name], f"7_answers_{arm}_{name.replace('/', '_')}.jsonl"
            temperature = args.temperature if n == 1 else 1.0
            found = common.answer(args, run, file, load, rows, question, temperature, n)
            for row in rows:
                for one in found[row["id"]]:
                    is_right = common.score(one["response"], row["answer"], row["problem"])
                    out.append({"set": name, "id": row["id"], "sample": one["sample"], "is_right": is_right,
                                "cut_off": one["cut_off"]})
        return out
    return run.step(f"7_test_{arm}.jsonl", make)


# Copied from stat_sel.show
def show(tested: dict[str, list[dict]], hard: set[str]) -> None:
    """Right answers and paired leads over augment, or the first arm, on each set and MATH^D (ids in hard)."""
    reference = next((name for name in tested if name.startswith("augment")), next(iter(tested)))
    for name in dict.fromkeys(row["set"] for row in tested[reference]):
        right: dict[str, dict[str, list[bool]]] = {arm: {} for arm in tested}
        for arm, rows in tested.items():
            for row in rows:
                if row["set"] == name:
                    right[arm].setdefault(row["id"], []).append(bool(row["is_right"]))
        ids = list(right[reference])
        n = len(right[reference][ids[0]])
        parts = {name if n == 1 else f"{name}, mean of {n} answers": ids}
        if name == "MATH":
            title = "MATH^D: the questions that are difficult by an independent draw of the base's answers"
            parts[title] = [i for i in ids if i in hard]
        for title, some in parts.items():
            outcomes = {arm: [sum(found[i]) / n for i in some] for arm, found in right.items()}
            print(f"\n{title}\n{common.compare(outcomes, reference)}")
        for arm in [arm for arm in tested if arm != "base"] if n == 1 and "base" in tested else ():
            changes = Counter((right["base"][i][0], right[arm][i][0]) for i in ids)
            print(f"{arm}: {changes[False, True]} wrong -> right, {changes[True, False]} right -> wrong")


# Copied from stat_sel.finish
def finish(args, run, teacher, method: str, questions: Questions, tested: dict, n_pairs: dict, hard) -> None:
    """Print the tables, in which an arm with fewer pairs than others is marked, and write result.json."""
    show({arm + few(args, arm, n_pairs.get(arm, 0)): rows for arm, rows in tested.items()}, hard)
    counts = {arm: {name: [0, 0] for name in questions.sets} for arm in tested}  # right of answers
    for arm, rows in tested.items():
        for row in rows:
            counts[arm][row["set"]][0] += bool(row["is_right"])
            counts[arm][row["set"]][1] += 1
    run.write("result.json", {"method": method, "removed": questions.removed, "arms": counts,
                              "teacher_totals": teacher.recorded if teacher else {}})
    print(f"{run.path}/result.json; more tables: report.py {run.path}")


# Copied from stat_sel.check_flags
def check_flags(args, needs_prm: bool) -> dict[str, list[str]]:
    """Refuse now what would go wrong after hours; the skills of each subject."""
    common.check_args(args, temperature=100, warmup=1, lora_dropout=0.99, weight_decay=1, max_grad_norm=1e9,
                      teacher_max_none=1, teacher_timeout=1e9, tau1=1, tau2=1)
    if not all(0 < lr <= 1 for lr in args.lr):
        raise UserError(f"--lr: expected numbers above 0, at most 1, came {' '.join(map(str, args.lr))}")
    common.template_head(args.chat_template_kwargs)  # refuses what is not JSON
    skills = read_lists(args.skills, "--skills", "subject") if args.skills else MATH_SKILLS
    if not args.plan:
        common.check_checkpoint(args.student, "--student")
        common.check_checkpoint(args.adapter, "--adapter")
        if needs_prm:
            common.check_checkpoint(args.prm, "--prm")
            check_prm(args.prm)
        if "embed" in args.arms:
            check_embedder(args)
    return skills


# Copied from stat_sel.check_questions
def check_questions(args, skills: dict[str, list[str]], questions: Questions) -> None:
    """Refuse a skill map of other questions, and subjects that have no skills."""
    pool, val = questions.pool, questions.val
    if args.skill_map:
        known = read_lists(args.skill_map, "--skill-map", "question id")
        for part, rows in (("P", pool), ("Q_val", val if "accuracy" in args.arms else [])):
            if rows and not any(row["id"] in known for row in rows):
                raise UserError(f"--skill-map {args.skill_map}: expected ids of questions of {part}, such as "
                                f"{rows[0]['id']!r}, came none; check the file")
    by_skill = set(args.arms) & {"stat", "shuffled", "accuracy"}
    for flag, rows in ((f"--data {args.data}", pool), (f"--val {args.val or args.data}", val)):
        unknown = {str(row["subject"]) for row in rows} - skills.keys()
        if unknown and by_skill:
            raise UserError(f"{flag}: subject {min(unknown)!r} is not in the skill list "
                            f"({', '.join(skills)}); give a list by --skills")


# Copied from stat_sel.start
def start(args, questions: Questions) -> "common.Run":
    """The run directory; one that was made with other questions is refused."""
    run = common.open_run(args, args.out, MAY_CHANGE)
    parts = {"P": questions.pool, "Q_val": questions.val}
    common.check_questions(run, parts | {f"test {name}": rows for name, rows in questions.sets.items()})
    kept = []
    for part, rows in (*parts.items(), ("Q_test", questions.sets["MATH"])):
        kept += [{"id": row["id"], "part": part, "subject": row["subject"], "level": row["level"],
                  "skills": row["skills"]} for row in rows]
    run.step("0_questions.jsonl", lambda: kept)
    return run


def plan(args, writer_args, pool, val, to_label, skills, new_arms: list[str], targeted: bool) -> int:
    """Print what teacher and writer will cost at most; write and solve are guessed until there is a profile.

    Returns the number of calls.
    """
    file, asked = Path(args.profile_from or args.out, "4_profile.jsonl"), {}
    known, rng = targeted and file.is_file(), common.rng(args.seed, "plan")
    if to_label and not args.skill_map and not file.with_name("3_skill_map.jsonl").is_file():
        asked["3 label"] = requests(args, LABEL_PROMPT, to_label, skills)
    if targeted and not known:
        longest = "x" * 3 * args.max_new_tokens  # three bytes count as a token
        shown = ["(the student's response)"] + [longest] * (len(val) - 1)
        asked["4 diagnose, at most"] = requests(args, PROFILE_PROMPT, val, skills, shown)
    if "augment" in args.arms:
        asked["5 rewrite, at most"] = requests(args, REWRITE_PROMPT, pool, n=args.n_rewrites, temperature=1.0)
    n = len(val) * (3 if targeted else 1)  # ours: diagnoses name two or three skills (§C.3.2)
    if known:
        n = sum(len(row["skills"]) for _, row in common.read_rows(file))
    groups = []
    for arm in new_arms:
        for _ in range(n):
            read = [row["id"] for row in rng.sample(pool, min(args.n_references, len(pool)))]
            skill = None if arm == "embed" else "(a missing skill)"
            groups.append({"arm": arm, "skill": skill, "references": read})
    if new_arms:
        write = writing(args, groups, pool)
        rows = rng.choices(pool, k=len(write))  # questions of P stand in
        solve = requests(args, SOLVE_PROMPT, rows, n=args.n_solutions, temperature=1.0)
        print(f"5 write, 5 solve: by {n} missing skills {f'in {file}' if known else 'as a guess'}; what "
              "comes malformed is asked for once more, on top of this")
        asked["5 write"] = write
        asked["5 solve"] = [one._replace(sample=i) for i, one in enumerate(solve)]  # twice counts twice
    n_calls = 0
    if args.writer:
        write = {"5 write": asked.pop("5 write", [])}
        n_calls += common.open_teacher(writer_args, write=False).plan(write, show=args.plan)
    return n_calls + common.open_teacher(args, write=False).plan(asked, show=args.plan)


def check_writer(args) -> None:
    """Refuse flags of step 5 that do not go together."""
    for small, large in (("min_agreeing", "n_solutions"), ("n_references", "n_nearest")):
        if getattr(args, small) > getattr(args, large):
            a, b = (f"--{name.replace('_', '-')}" for name in (small, large))
            raise UserError(f"{a}: expected at most {b} {getattr(args, large)}, came {getattr(args, small)}")
    if not args.writer and {args.writer_url, args.writer_usd_per_m_in, args.writer_usd_per_m_out} != {None}:
        raise UserError("--writer-url and --writer-usd-per-m-... say something of a --writer; give that too")
    prices = ("usd_per_m_in", "usd_per_m_out", "writer_usd_per_m_in", "writer_usd_per_m_out")
    unknown = [name for name in prices if getattr(args, name) is None]
    if args.writer and unknown and (len(unknown) < 4 or args.max_usd is not None):
        raise UserError("--writer: expected prices of both models or of none, and with --max-usd of both; "
                        f"--{unknown[0].replace('_', '-')} is missing")
    if args.profile_from:
        check_source(args)
        cache = Path(args.cache or args.profile_from)
        if args.cache and not any(cache.with_suffix(end).is_file() for end in (".sqlite", ".jsonl")):
            raise UserError(f"--cache {args.cache}: no such file; give the teacher.sqlite of the run that "
                            "--profile-from names, or leave --cache out")


def main(args: Args) -> None:
    check_writer(args)
    skills = check_flags(args, needs_prm=args.difficulty == "prm" and not args.profile_from)
    questions = load_questions(args)
    pool, val = questions.pool, questions.val
    check_questions(args, skills, questions)
    if args.profile_from and not same_questions(Path(args.profile_from), questions):
        raise UserError(f"--profile-from {args.profile_from}: its questions are others; has --data changed "
                        "since, or is --ood another?")
    writer_args = args
    if args.writer:
        writer_args = dataclasses.replace(
            args, teacher=args.writer, teacher_url=args.writer_url or args.teacher_url,
            usd_per_m_in=args.writer_usd_per_m_in, usd_per_m_out=args.writer_usd_per_m_out)
    new_arms = [arm for arm in args.arms if arm not in ("base", "augment")]
    targeted = bool({"stat", "shuffled"} & set(args.arms))
    needs_teacher = set(args.arms) != {"base"} and args.until != "grade"
    to_label = pool if targeted else []
    if needs_teacher:
        n_calls = plan(args, writer_args, pool, val, to_label, skills, new_arms, targeted)
    if args.plan:
        if not needs_teacher:
            print("No call of a teacher: no arm or step here has one.")
        return
    run = start(args, questions)
    if args.profile_from:
        take_over(args, run)
    teacher = writer = None
    if needs_teacher:
        teacher = common.open_teacher(args)
        writer = common.open_teacher(writer_args) if args.writer else teacher
    drawn = all((run.path / f"train_{arm}.jsonl").exists() for arm in args.arms if arm != "base")
    if teacher and n_calls and not drawn:
        for one in dict.fromkeys((teacher, writer)):
            one.check()  # now, not after the student has answered for hours

    # Steps 1 and 2 and the embeddings come before the teacher's: then the GPU is free for a local teacher.
    graded = grade(args, run, val, questions.sets["MATH"])
    hard = {row["id"] for row in graded if row["difficult"]}
    difficult = [row for row in val if row["id"] in hard]
    if args.max_difficult and args.max_difficult < len(difficult):
        difficult = common.rng(args.seed, "max_difficult").sample(difficult, args.max_difficult)
    nearest = retrieve(args, run, difficult, pool, args.n_nearest) if "embed" in args.arms else {}
    common.free_gpu()
    if args.until == "grade":
        return
    labels = label(args, run, teacher, to_label, skills) if to_label else {}
    if args.until == "label":
        return
    profile = diagnose(args, run, teacher, difficult, graded, skills) if targeted else {}
    if args.until == "diagnose":
        return
    pairs = {}
    if "augment" in args.arms:
        rng = common.rng(args.seed, "draw", "augment")
        problems = {row["id"]: row["problem"] for row in pool}
        order = order_pairs(list(problems), args.n_rewrites, rng)
        right = rewrite(args, run, teacher, pool, {"augment": order})
        order = [pair for pair in order if pair in right]
        pairs["augment"] = [{"id": i, "sample": n, "skill": None, "problem": problems[i],
                             "response": right[i, n]} for i, n in order]
    if new_arms:
        groups = group_references(args, pool, profile, labels, nearest, difficult)
        tests = list(itertools.chain(*questions.sets.values()))
        pairs |= synthesise(args, run, teacher, writer, groups, pool, tests)
    n_pairs = draw(args, run, pairs)
    if args.until == "draw":
        return
    for arm in n_pairs:
        train_arm(args, run, questions.heldout, arm)
    if args.until == "train":
        return
    tested = {arm: test(args, run, questions, arm) for arm in args.arms}
    for arm in TAKEN.values():
        if (run.path / f"7_test_{arm}.jsonl").exists():
            tested[arm], n_pairs[arm] = run.read(f"7_test_{arm}.jsonl"), len(run.read(f"train_{arm}.jsonl"))
    print("pairs trained on: " + ", ".join(f"{arm} {n}" for arm, n in n_pairs.items()))
    finish(args, run, teacher, "stat_syn", questions, tested, n_pairs, hard)


if __name__ == "__main__":
    common.cli(main, Args, __doc__)
