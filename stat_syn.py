r"""STAT-Syn: the teacher writes new problems for the skills a student lacks; the student is fine-tuned on those that the teacher solves consistently.

Paper   He, Panigrahi, Lin, Arora, "Skill-Targeted Adaptive Training", arXiv 2510.10023v1. The authors published data, no code.
Steps   1 answer    to 4 diagnose: the Missing-Skill-Profile, as in stat_sel.py                             (§2.1, §2.2)
        5 write     for every (question, missing skill) the teacher reads three questions of P with that skill and writes new ones (§2.3, §B.2)
          screen    dropped are copies of a question read but for numbers and names (§2.3; `masked`), what equals a question of P or an earlier new
                    one, and what equals a test question or shares 13 words in a row with it (`fingerprints`)
          solve     the teacher solves each new question three times                                       (§2.3, §B.2)
          keep      questions on whose answer two solutions agree, with the solutions that agree (`agreeing`) (§2.3, §B.2)
                    A reply without question or boxed answer, or with boxes that differ, is asked for once more (`ask_twice`).
        6 train     QLoRA on the new pairs, and on the same number of pairs made otherwise                  (§C.1, §C.2)
        7 test      accuracy on the questions that were not profiled on, and on other sets                  (§3.1)
Names   As in stat_sel.py: P = pool, Q_val = val, Q_test = tests, Skill-Map = skill_map, Missing-Skill-Profile = profile, MATH^D = the difficult part
        of Q_test. The consistency score (§2.3) of a question = the size of its agreeing() group. Questions read = references.
Arms    base      the student as it is
        augment   random pairs of rewritten answers over all of P: MATH-Augment
        stat      STAT-Syn
        shuffled  STAT-Syn with the profile's skills permuted among the skills: does the targeting help, or any new problem? (ours)
        embed     new questions from the questions of P nearest to each difficult one: Embed-Syn (§C.2)
        sel, embed_sel  not trained here: STAT-Sel and Embed-Sel of the run of stat_sel.py that --profile-from names
Differs What stat_sel.py says of MATH^D, the learning rate, batches, the 112 skills, the reward model and the embeddings. The paper only asks the
        teacher for novel questions; here what is not novel, or stands in a test set, is dropped. It does not say how many questions Embed-Syn writes
        for a difficult question: here as many in all as STAT-Syn, or n_new where the run has no profile.
Run     python stat_syn.py --teacher gpt-4o-mini --writer gpt-4o                          # the paper's sizes and models, one GPU
        python stat_syn.py --profile-from runs/stat_sel --cache runs/stat_sel/teacher.sqlite   # after stat_sel.py; pays nothing twice
        python stat_syn.py --plan                                                        # calls, tokens, one prompt of each kind; sends nothing
        python stat_syn.py --teacher MODEL --teacher-url http://localhost:8000/v1 --limit 100   # any OpenAI-compatible server, a small slice
        python -m toyworld stat_syn                                                      # no GPU, no key, minutes
Writes  runs/stat_syn/  args.json env.json 0_fingerprint.json
        0_questions.jsonl 1_answers.jsonl (1_samples.jsonl 2_rewards.jsonl) 2_graded.jsonl
        3_skill_map.jsonl 4_profile.jsonl (5_nearest.json) (5_rewrites.jsonl) 5_written.jsonl 5_solutions.jsonl dropped.jsonl train_<arm>.jsonl
        loss_<arm>.jsonl adapter/<arm>/ 7_answers_<arm>_<set>.jsonl 7_test_<arm>.jsonl teacher.sqlite metrics.jsonl result.json
"""
import dataclasses
import functools
import itertools
import math
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

# Arguments that may differ between the starts of one run. The batch sizes move the draws of dropout and of sampling: what is there already is kept.
HOW = ("teacher_url", "teacher_max_tokens", "teacher_timeout", "teacher_max_none", "cache", "concurrency", "max_usd", "usd_per_m_in", "usd_per_m_out",
       "plan", "micro_batch", "sample_batch", "prm_batch", "checkpointing", "profile_from", "writer_url", "writer_usd_per_m_in",
       "writer_usd_per_m_out")
# Arguments that steps 1 to 4 follow from: these must agree with the run that --profile-from names.
PROFILED_BY = ("student", "adapter", "chat_template_kwargs", "data", "val", "skills", "skill_map", "label_test", "seed", "limit",
               "teacher", "n_val", "difficulty", "prm", "compare", "tau1", "tau2", "length_words", "temperature", "max_new_tokens")
TAKEN = {"stat": "sel", "embed": "embed_sel"}  # arms of that run, and their names here


@dataclass(frozen=True)
class Args:
    student: str = "Qwen/Qwen2.5-3B"  # model to improve: Hub name or folder (§3.1)
    adapter: str | None = None  # LoRA adapter of an earlier run to start from, such as runs/stat_sel/adapter/stat; its own LoRA settings count (§3.3)
    chat_template_kwargs: str | None = None  # JSON that every use of the student's chat template gets, such as {"enable_thinking": false}
    data: str = "math"  # "math", or a folder with train.jsonl (P) and test.jsonl (split into Q_val and Q_test)
    val: str | None = None  # profile on this set, such as math_perturb_hard or a .jsonl file; on half of it at most, the rest is tested on (§3.3)
    ood: tuple[str, ...] = ()  # other sets to test on: gsm8k math500 amc23 aime24 aime25 math_perturb_simple math_perturb_hard, .jsonl files (§3.1)
    samples: int = 64  # answers to each question of another set with fewer than 100, at T = 1 (§3.1: AMC23, AIME)
    profile_from: str | None = None  # directory of a run of stat_sel.py with the same student and seed: steps 1 to 4 are taken over from it
    skills: str | None = None  # JSON file {subject: [skill, ...]} instead of the paper's list (Tables 5, 6)
    skill_map: str | None = None  # JSON file {question id: [skill, ...]} instead of asking the teacher for labels (§C.3.1)
    label_test: bool = False  # ask the teacher for the skills of Q_test too, for accuracy by skill (Fig. 4); toy data has them
    out: str = "runs/stat_syn"  # run directory; the same command goes on where it stopped
    seed: int = 0  # moves everything that is drawn (paper: 0, §C.1)
    limit: int | None = None  # take only so many questions of Q_val, of P and of each test set: a quick look
    arms: tuple[Literal["base", "augment", "stat", "shuffled", "embed"], ...] = ("base", "augment", "stat")  # see Arms

    teacher: str = "gpt-4o-mini"  # model that labels, diagnoses, rewrites and solves (§C.3)
    teacher_url: str | None = None  # address of any OpenAI-compatible server; default: OpenAI, key from OPENAI_API_KEY
    teacher_max_tokens: int = 2048  # length limit of a teacher's reply; raise it for a model that thinks aloud
    writer: str | None = None  # stronger model that writes the new questions (§C.3.3: gpt-4o); else the teacher
    writer_url: str | None = None  # its address, if it is not the teacher's (OpenAI: https://api.openai.com/v1); both get the same key
    teacher_timeout: float = 600.0  # seconds for one call with all its retries
    teacher_max_none: float = 0.05  # share of a step's replies that may be cut off, empty, refused or lost (ours: a healthy teacher stays below)
    cache: str | None = None  # file of teacher replies, each good for its server alone; default: teacher.sqlite in the run directory
    concurrency: int = 16  # teacher calls in flight
    usd_per_m_in: float | None = None  # price of a million input tokens
    usd_per_m_out: float | None = None  # price of a million output tokens
    writer_usd_per_m_in: float | None = None  # the writer's, if it is another model
    writer_usd_per_m_out: float | None = None  # the writer's
    max_usd: float | None = None  # stop cleanly before spending more; needs both prices
    plan: bool = False  # print the teacher calls ahead, one prompt of each kind, and stop

    n_val: int = 1000  # size of Q_val; the rest of the test split is Q_test (§3.1)
    difficulty: Literal["prm", "consistency", "length", "answer"] = "prm"  # Eq. 1 (§2.1); five samples disagree, or are long (§E.1); wrong (ours)
    compare: bool = False  # grade Q_val by the other criteria too, to see how well each finds the wrong answers (Tables 8, 11)
    prm: str = "RLHFlow/Llama3.1-8B-PRM-Mistral-Data"  # process reward model that marks each step with + or - (§C.1)
    tau1: float = 0.85  # difficult if the last or the mean step reward is no higher (Eq. 1, §C.1)
    tau2: float = 0.7  # or that of an earlier step (Eq. 1, §C.1)
    length_words: int = 800  # difficult by length if five samples have as many words in the mean (§E.1)
    temperature: float = 0.1  # of the student's answers (§3.1); at 0 the two draws of MATH^D are one
    max_new_tokens: int = 2048  # length limit of an answer (ours: because MATH's longest solution has 6,767 characters)
    n_references: int = 3  # questions of P that the teacher reads before it writes (§B.2)
    n_new: int = 2  # questions that it then writes (§B.2)
    n_solutions: int = 3  # solutions of each (§B.2)
    min_agreeing: int = 2  # a question is kept if so many of them agree on the answer (§B.2)
    n_nearest: int = 5  # questions of P retrieved for each difficult one by Embed-Syn, which reads n_references of them (§C.2)
    embedder: str | None = None  # model whose mean-pooled hidden states are Embed-Syn's embeddings (§C.2: gte-Qwen2-7B-instruct); else the student
    n_rewrites: int = 3  # rewritten answers of a question of MATH-Augment (§B.2)
    n_pairs: int = 9500  # question-answer pairs in every trained arm (§B.2)

    lr: float = 1e-4  # peak (ours: the middle one, untuned); the paper chooses from 5e-4, 2e-4, 1e-4, 8e-5, 2e-5 for each method (§C.1)
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
    prm_batch: int = 8  # answers scored at once: lower it if memory is short


# --- Prompts, in our own words, with the fields of §C.3. -----------------------------------------------------------------------------------
WRITE_PROMPT = """Here are problems from {subject}, each with its solution.

{examples}

{link}

Write one new problem. It must be novel: not one of these with other numbers or with other names of its variables. It must be about as
difficult as they are, say all that is needed to solve it, and have one final answer that can be checked. First say how the problems above
relate to the skill that they need, then draft how a new one can be made, then write the problem alone, without its solution. Answer in this form:
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

# Copied from stat_sel.PROFILE_PROMPT
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

# Copied from stat_sel.REWRITE_PROMPT
REWRITE_PROMPT = """Here are a problem and a correct solution.

<problem>
{problem}
</problem>

<solution>
{solution}
</solution>

Write the solution anew in your own words: complete, step by step, with every calculation shown, not mentioning that a solution was given.
Keep the final answer and put it in \\boxed{{}}."""

# Copied from stat_sel.MATH_SKILLS
MATH_SKILLS = {subject: names.split(" | ") for subject, names in {
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


# --- Step 5: pure functions in the paper's order. No files, no network. ----------------------------------------------------------------------
def draw_references(profile: dict[str, list[str]], skill_map: dict[str, list[str]], k: int, rng: random.Random) -> list[dict]:
    """k questions of P with the skill, for every difficult question and every skill it lacks: {"for", "skill", "references"} (§2.3, §B.2).

    All of them where the Skill-Map has fewer; nothing for a skill that no question of P has.
    """
    return [{"for": question, "skill": skill, "references": rng.sample(linked, min(k, len(linked)))}
            for question, skills in profile.items() for skill in skills if (linked := skill_map.get(skill))]


def draw_neighbours(nearest: dict[str, list[str]], n: int, k: int, rng: random.Random) -> list[dict]:
    """n groups of k among the questions nearest to a difficult one, the difficult ones in turn (Embed-Syn, §C.2)."""
    turns = rng.sample(list(nearest), len(nearest))
    return [{"for": question, "skill": None, "references": rng.sample(nearest[question], min(k, len(nearest[question])))}
            for question in itertools.islice(itertools.cycle(turns), n)]


def read_question(reply: str | None) -> dict:
    """Reason, draft and question of a reply (§C.3.3). `fault` says why there is no question in it."""
    reason, draft, problem = (common.read_tag(reply or "", tag) for tag in ("reason", "draft", "question"))
    solved = problem and (common.read_boxes(problem) or re.search(r"^\W*(final )?(solution|answer)\W*:", problem, re.IGNORECASE | re.MULTILINE))
    fault = "no reply" if reply is None else "missing tag" if not problem else "holds an answer" if solved else None
    return {"reason": reason, "draft": draft, "problem": problem, "fault": fault}


def read_solution(reply: str | None) -> dict:
    """A solution and its final answer, which must be boxed. `fault` says why there is none, or none for certain."""
    boxed = [box for *_, box in common.read_boxes(reply or "")]
    several = any(not common.is_equiv(box, boxed[-1]) for box in boxed)
    fault = "no reply" if reply is None else "no final answer" if not boxed else "several boxes" if several else None
    return {"response": reply, "answer": boxed[-1] if boxed else None, "fault": fault}


def agreeing(answers: list[str | None]) -> list[int]:
    """The largest group of solutions that agree on the answer (§2.3, §B.2), by index; its size is the question's consistency score.

    Each agrees with each, since 50, 50% and 1/2 are not one answer. None, no answer found, agrees with nothing. Of equally large groups the first.
    >>> agreeing(["7", "1/2", "0.5"]), agreeing(["1", None, "2"]), agreeing([None, None, None])
    ([1, 2], [0], [])
    """
    groups = []
    for i, first in enumerate(answers):
        group = [] if first is None else [i]
        for j, answer in enumerate(answers):
            if group and j != i and answer is not None and all(common.is_equiv(answer, answers[k]) for k in group):
                group.append(j)
        groups.append(sorted(group))
    return max(groups, key=len, default=[])


def masked(problem: str) -> str:
    """A problem in plain form, numbers and single letters made alike: what is left is the same after renaming and renumbering (§2.3).

    >>> masked("If $x + 2.5y = 10$, find $y$.") == masked("If $a+3b=7$, find $c$."), masked("Find $x-1$.") == masked("Find $x+1$.")
    (True, False)
    """
    text = " ".join(common.words(problem))
    text = re.sub(r"\d+(\.\d+)?( \d{3}(?!\d))*", "0", text)  # 2.5, 10 000
    return re.sub(r"\b[a-z]\b", "x", text)


def fingerprints(problem: str) -> set[str]:
    """What two questions share if one of them leaks the other: all of it in plain form, or 13 words in a row.

    ours: 13 words, because that is the usual measure of contamination since GPT-3's; the paper does not speak of any.
    """
    words = common.words(re.sub(r"\[asy\].*?\[/asy\]", "", problem, flags=re.DOTALL))  # figures begin with the same code
    words = [word for word in words if word.isalnum() or "." in word]
    return {common.plain(problem), *(" ".join(words[i:i + 13]) for i in range(len(words) - 12))}


def screen(written: list[dict], pool: list[dict], tests: list[dict]) -> tuple[list[dict], list[dict]]:
    """The new questions, and those that are dropped: {..., "dropped": why, "matched": the text that one is too near to}.

    written: rows of arm, problem, references (ids of `pool`), fault. Dropped are, in this order: faulty ones; what leaks a test question; copies of a
    question read, renamed or renumbered (§2.3); what equals a question of P; what equals an earlier one of the same arm.
    """
    problems, earlier, new, dropped = {row["id"]: row["problem"] for row in pool}, {}, [], []
    of_pool = {common.plain(problem): problem for problem in problems.values()}
    tested = {mark: row["problem"] for row in tests for mark in fingerprints(row["problem"])}
    for row in written:
        if row["fault"]:
            dropped.append(row | {"dropped": row["fault"], "matched": None})
            continue
        own, text = masked(row["problem"]), common.plain(row["problem"])
        found = {"in a test set": next((tested[mark] for mark in sorted(fingerprints(row["problem"])) if mark in tested), None),
                 "copy of a question read": next((problems[i] for i in row["references"] if masked(problems[i]) == own), None),
                 "in P": of_pool.get(text), "written before": earlier.get((row["arm"], text))}
        if why := next((why for why in found if found[why]), None):
            dropped.append(row | {"dropped": why, "matched": found[why]})
        else:
            new.append(row)
            earlier[row["arm"], text] = row["problem"]
    return new, dropped


# --- Step 5, with files and network. ----------------------------------------------------------------------------------------------------------
def ask_twice(teacher, asked: list[Request], read, step: str) -> list[dict]:
    """read(reply) of each request; where that has a fault, of one more attempt, and `first_fault` says what came before."""
    found = [read(reply and reply.text) for reply in teacher.ask(asked, step)]
    again = [i for i, row in enumerate(found) if row["fault"]]
    retries = [asked[i]._replace(sample=-1 - asked[i].sample) for i in again]  # negative: no first attempt has that number
    # ours: any share of these may come to nothing, because they are what came to nothing before
    second = teacher.ask(retries, f"{step}, 2nd attempt", max_none=1.0) if again else []
    for i, reply in zip(again, second, strict=True):
        found[i] = read(reply and reply.text) | {"first_fault": found[i]["fault"]}
    firsts, lasts = Counter(found[i]["first_fault"] for i in again), Counter(found[i]["fault"] for i in again if found[i]["fault"])
    print(f"  {step}: asked again for {dict(firsts) or 'none'}; given up: {dict(lasts) or 'none'}")
    return found


def writing(args, groups: list[dict], by_id: dict[str, dict]) -> list[Request]:
    """n_new requests for each group of references. Two groups of one arm may be the same: then they are different samples, not one."""
    asked, seen = [], Counter()
    for group in groups:
        rows, skill = [by_id[i] for i in group["references"]], group["skill"]
        text = WRITE_PROMPT.format(subject=" and ".join(dict.fromkeys(row["subject"] for row in rows)),
                                   examples="\n\n".join(EXAMPLE.format(**row) for row in rows),
                                   link=SKILL_LINK.format(skill=skill) if skill else EMBED_LINK)
        for _ in range(args.n_new):  # ours: at T = 1, because several that differ are wanted
            asked.append(Request([{"role": "user", "content": text}], 1.0, args.teacher_max_tokens, seen[group["arm"], text]))
            seen[group["arm"], text] += 1
    return asked


def group_references(args, run, student, pool: list[dict], profile, labels, difficult: list[dict]) -> list[dict]:
    """What the teacher reads for each arm: rows {"arm", "for", "skill", "references"}."""
    k, skill_map, groups = args.n_references, invert({row["id"]: labels.get(row["id"], []) for row in pool}), []
    there = Counter(min(k, len(skill_map.get(skill, []))) for skills in profile.values() for skill in skills)
    print(f"  {there.total()} missing skills: for {there[0]} of them P has no question, and nothing is written; for "
          f"{sum(there[n] for n in range(1, k))} it has fewer than {k}")
    for arm in args.arms:
        rng = common.rng(args.seed, "references", arm)
        if arm in ("stat", "shuffled"):
            source = profile if arm == "stat" else shuffle_profile(profile, skill_map, k, common.rng(args.seed, "shuffle"))
            drawn = draw_references(source, skill_map, k, rng)
        elif arm == "embed":
            nearest = retrieve(args, run, student, difficult, pool, args.n_nearest)
            # ours: as many groups as STAT-Syn has, because equal numbers of pairs are compared
            drawn = draw_neighbours(nearest, there.total() - there[0] or len(nearest), k, rng)
        else:
            continue
        if not drawn:
            raise UserError(f"arm {arm}: nothing to write from (difficult questions: {len(difficult)}, profile: {len(profile)}); take more "
                            "questions, or leave the arm out")
        groups += [{"arm": arm} | group for group in drawn]
    return groups


def synthesise(args, run, teacher, writer, groups: list[dict], pool: list[dict], tests: list[dict]) -> dict[str, list[dict]]:
    """Step 5: the pairs of each arm, {"id", "sample", "skill", "problem", "response"}; what is dropped on the way goes to dropped.jsonl."""
    by_id = {row["id"]: row for row in pool}

    def write():
        asked, numbers = writing(args, groups, by_id), {arm: itertools.count() for arm in args.arms}
        writer.plan({"5 write": asked})
        found = ask_twice(writer, asked, read_question, "5 write")
        repeated = [group for group in groups for _ in range(args.n_new)]
        return [{"id": f"{group['arm']}/{next(numbers[group['arm']])}"} | group | row for group, row in zip(repeated, found, strict=True)]
    written = run.step("5_written.jsonl", write)
    new, dropped = screen(written, pool, tests)

    def solve():
        keys = [(row["id"], i) for row in new for i in range(args.n_solutions)]
        asked = requests(args, SOLVE_PROMPT, [row | {"subject": None, "solution": None} for row in new], n=args.n_solutions, temperature=1.0)
        teacher.plan({"5 solve": asked})
        found = ask_twice(teacher, asked, read_solution, "5 solve")
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
        else:
            pairs[row["arm"]] += [{"id": row["id"], "sample": i, "skill": row["skill"], "problem": row["problem"],
                                   "response": solutions[row["id"]][i]["response"]} for i in chosen]
    run.step("dropped.jsonl", lambda: dropped)
    for arm, rows in pairs.items():
        print(f"  {arm}: {sum(row['arm'] == arm for row in written)} questions asked for; dropped: "
              f"{dict(Counter(row['dropped'] for row in dropped if row['arm'] == arm)) or 'none'}; consistency scores "
              f"{dict(sorted(scores[arm].items()))}; kept {len({row['id'] for row in rows})} with {len(rows)} solutions")
    return pairs


def draw(args, run, pairs: dict[str, list[dict]]) -> None:
    """train_<arm>.jsonl for each arm: as many random pairs of each, and no more than the arms taken over have (§B.2)."""
    sizes = {arm: len(rows) for arm, rows in pairs.items()}
    sizes |= {arm: len(run.read(f"train_{arm}.jsonl")) for arm in TAKEN.values() if (run.path / f"train_{arm}.jsonl").exists()}
    least = min(sizes, key=sizes.get)
    if sizes[least] < args.n_pairs:
        print(f"  {sizes[least]} pairs an arm, not --n-pairs {args.n_pairs}: {least} has no more; a larger --n-new or --n-val gives new ones")
    for arm, rows in pairs.items():
        if not rows:
            raise UserError(f"arm {arm}: no pair is left; read {run.path}/dropped.jsonl or 5_rewrites.jsonl, or take more questions")
        drawn = common.rng(args.seed, "pairs", arm).sample(rows, len(rows))[:min(args.n_pairs, sizes[least])]
        made = run.step(f"train_{arm}.jsonl", lambda drawn=drawn: [
            {"id": row["id"], "sample": row["sample"], "skill": row["skill"],
             "messages": question(row["problem"]) + [{"role": "assistant", "content": row["response"]}]} for row in drawn])
        print(f"  {arm}: {len(made)} pairs of {len({row['id'] for row in made})} questions, of {len(rows)} that it could have")


# --- A run of stat_sel.py to go on from. ----------------------------------------------------------------------------------------------------
def differences(there: dict, here: dict, names) -> str:
    return "; ".join(f"{name} was {there.get(name)}, is {here.get(name)}" for name in names if there.get(name) != here.get(name))


def check_source(args) -> None:
    """Refuse a --profile-from that is no run of stat_sel.py with steps 1 to 4, or one of other arguments: another student, another seed."""
    path = Path(args.profile_from)
    needed = ("args.json", "0_questions.jsonl", "3_skill_map.jsonl", "4_profile.jsonl")
    missing = [name for name in needed if not (path / name).is_file()]
    there = {} if missing else common.read_json(path / "args.json")
    if "questions_per_skill" not in there:  # an argument of that file alone
        came = f"found no {missing[0]}" if missing else "found another method's"
        raise UserError(f"--profile-from {path}: expected a run of stat_sel.py with arm stat, its steps 1 to 4 finished, {came}; name another")
    if odd := differences(there, dataclasses.asdict(args), PROFILED_BY):
        raise UserError(f"--profile-from {path}: its profile follows from other arguments ({odd}); give those, or leave it out")


def same_questions(path: Path, asked: list[dict], parts: dict[str, list[dict]]) -> bool:
    """Whether that run was made with the P, Q_val and Q_test of this one."""
    there, here = {}, {part: common.digest(rows) for part, rows in parts.items()}
    if (path / "0_fingerprint.json").exists():  # runs made before had none
        there = common.read_json(path / "0_fingerprint.json")
    changed = [part for part in ("P", "Q_val", "test MATH") if there.get(part, here[part]) != here[part]]
    return not changed and [row for _, row in common.read_rows(path / "0_questions.jsonl")] == asked


def take_over(args, run) -> None:
    """Copy the files of steps 1 to 4 of the run that --profile-from names, and the tests of its arms stat and embed, as sel and embed_sel."""
    source = Path(args.profile_from)
    there, here = common.read_json(source / "args.json"), run.read("args.json")
    names = {f"{name}.jsonl": f"{name}.jsonl" for name in ("1_answers", "1_samples", "2_rewards", "2_graded", "3_skill_map", "4_profile")}
    if odd := differences(there, here, sorted(there.keys() & here.keys() - {"out", "arms", *HOW})):
        print(f"  {source}: its arms do not stand beside these, since they were made with other arguments ({odd})")
    else:
        names |= {f"{part}_{arm}.jsonl": f"{part}_{name}.jsonl" for arm, name in TAKEN.items() for part in ("train", "7_test")}
    for old, new in names.items():
        rows = [row for _, row in common.read_rows(source / old)] if (source / old).exists() else None
        if rows is not None and rows != run.step(new, lambda rows=rows: rows):
            raise UserError(f"{run.path}/{new}: it is not the one of --profile-from {source}; go on without that, or choose another --out")


# --- Copied from stat_sel.py, where it is explained: steps 1 to 4, the control, the student's prompt and training. ---------------------------
# Copied from stat_sel.is_difficult
def is_difficult(rewards: list[float], tau1: float, tau2: float) -> bool:
    """Whether R(q) = 0, by the rewards r_q,1..r_q,t of one answer's steps, in [0, 1], t >= 1 (§2.1, Eq. 1).

    >>> is_difficult([0.71, 1.0], 0.85, 0.7), is_difficult([0.7, 1.0, 1.0], 0.85, 0.7), is_difficult([0.99, 0.85], 0.85, 0.7)
    (False, True, True)
    """
    *earlier, last = rewards
    return last <= tau1 or math.fsum(rewards) / len(rewards) <= tau1 or any(r <= tau2 for r in earlier)  # Eq. 1


# Copied from stat_sel.is_inconsistent
def is_inconsistent(answers: list[str | None]) -> bool:
    """Whether a question is difficult by the consistency heuristic: its most common answer appears fewer than two times (§E.1).

    answers: the final answers of five samples; None (no answer found) agrees with nothing.
    >>> is_inconsistent(["1", "2", "3", None, None]), is_inconsistent(["1", "2", "1.0", "3", "4"])
    (True, False)
    """
    found = [a for a in answers if a is not None]
    return not any(common.is_equiv(a, b) for i, a in enumerate(found) for b in found[:i])


# Copied from stat_sel.read_skills
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


# Copied from stat_sel.read_profile
def read_profile(reply: str, subject: str, names: list[str]) -> dict:
    """Judge and missing skills of one reply (§2.2, §C.3.2). `fault` says why a reply puts nothing into the profile."""
    judge, skills = common.read_tag(reply, "judge") or "", common.read_tags(reply, "skill")
    known, unknown = read_skills(", ".join(skills), subject, names)
    verdict = re.match(r"\W*(in|not )?correct\b(?!\W*or\b|/)", judge, re.IGNORECASE)  # "Incorrect (wrong sign)", not "correct or incorrect"
    judge = judge if not verdict else "incorrect" if verdict[1] else "correct"
    if not skills or not verdict:
        fault = "malformed"
    elif judge == "correct":
        fault = "judged correct"  # ours: out of the profile even if skills are named, because a right answer shows no lack
    else:
        fault = None if known else "no listed skill"
    return {"judge": judge, "skills": [] if fault else known, "unknown": unknown, "fault": fault, "reason": common.read_tag(reply, "reason")}


# Copied from stat_sel.invert
def invert(labels: dict[str, list[str]]) -> dict[str, list[str]]:
    """Skill-Map: S -> subset of P, from the skills of each question (§2)."""
    skill_map: dict[str, list[str]] = {}
    for question, skills in labels.items():
        for skill in skills:
            skill_map.setdefault(skill, []).append(question)
    return skill_map


# Copied from stat_sel.shuffle_profile
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


# Copied from stat_sel.read_lists
def read_lists(path: str, flag: str, what: str) -> dict[str, list[str]]:
    """A JSON file {what: [name, ...]} that a flag names."""
    lists = common.read_json(path)
    good = isinstance(lists, dict) and all(isinstance(names, list) for names in lists.values())
    for name in itertools.chain(*lists.values()) if good else ():
        good = good and isinstance(name, str) and not re.search(r"[,;|\n]", name)
    if not good:
        raise UserError(f"{flag} {path}: expected {{{what}: [skill, ...]}} with none of , ; | in a skill's name; correct the file")
    return lists


# Copied from stat_sel.split_math
def split_math(rows: list[dict], n_val: int, seed: int) -> tuple[list[dict], list[dict]]:
    """(validation, test): n_val rows at random and the others, each in file order; 1,000 and 4,000 of MATH's test split (§3.1)."""
    if not 0 < n_val < len(rows):
        raise UserError(f"split: expected 0 < n_val < {len(rows)} (the number of rows), came {n_val}; change n_val")
    by_text = sorted(range(len(rows)), key=lambda i: rows[i]["problem"])  # so the order of the file does not matter
    chosen = set(common.rng(seed, "split_math").sample(by_text, n_val))
    return [row for i, row in enumerate(rows) if i in chosen], [row for i, row in enumerate(rows) if i not in chosen]


# Copied from stat_sel.Questions
class Questions(NamedTuple):
    pool: list[dict]  # P: training questions with a solution and an answer
    val: list[dict]  # Q_val: what the student is profiled on
    sets: dict[str, list[dict]]  # what is tested on: first "MATH", the rest of the test split
    n_samples: dict[str, int]  # answers to each question of a set
    removed: dict[str, int]  # how many questions a set has lost because they are profiled on


# Copied from stat_sel.load_questions
def load_questions(args) -> Questions:
    """Training, validation and test questions, none of them in two of the three, by their texts.

    args.val: a set to profile on instead of n_val questions of the test split; of it half at most, and the rest is tested on.
    """
    if args.data.endswith(".jsonl") or Path(args.data).is_file():
        raise UserError(f"--data {args.data}: expected a folder with train.jsonl and test.jsonl, came one file; give the folder")
    train, tests = common.load(args.data, "train"), common.load(args.data, "test")
    given = dict.fromkeys(([args.val] if args.val else []) + list(args.ood))
    names = ["/".join(Path(name).with_suffix("").parts[-2:]) for name in given]
    for i, name in enumerate(names):
        if name in ["MATH", *names[:i]]:
            raise UserError(f"--ood: two sets would be called {name}, by the last two parts of their paths; rename one")
    others = dict(zip(names, map(common.load, given), strict=True))
    if args.val:
        rows = others[names[0]]
        val, _ = split_math(rows, min(args.n_val, len(rows) // 2), args.seed)  # ours: half, because something must be left to test on
        val = [row | {"id": f"{names[0]}/{row['id']}"} for row in val]
    else:
        val, tests = split_math(tests, args.n_val, args.seed)
    whole = {"MATH": tests, **others}
    pool = common.without([row for row in train if row["answer"] and row["solution"]], [*val, *itertools.chain(*whole.values())])
    sets, n_samples, removed = {}, {}, {}
    for name, rows in whole.items():
        sets[name] = common.without(rows, val)
        # ours: by size, because the sets that STAT samples often (AMC23, AIME; §3.1) have 30 or 40 questions and all others hundreds
        n_samples[name] = args.samples if name != "MATH" and len(rows) < 100 else 1
        removed[name] = len(rows) - len(sets[name])
        if not sets[name]:
            raise UserError(f"{name}: every question of it is profiled on; leave it out, or profile on fewer")
    print(f"P {len(pool)} questions ({len(train) - len(pool)} left out: no answer, or in an evaluation set), Q_val {len(val)}; tested on "
          + ", ".join(f"{name} {len(rows)} ({removed[name]} taken out: profiled on)" for name, rows in sets.items()))
    if args.limit:
        pool, val, *rest = (common.rng(args.seed, "limit").sample(rows, min(args.limit, len(rows))) for rows in (pool, val, *sets.values()))
        sets = dict(zip(sets, rest, strict=True))
    ids = [row["id"] for row in pool + val + sets["MATH"]]
    if len(set(ids)) < len(ids):
        raise UserError(f"--data {args.data}: an id stands in train.jsonl and in test.jsonl too; make the ids unique")
    return Questions(pool, val, sets, n_samples, removed)


# Copied from stat_sel.question
def question(problem: str) -> list[dict]:
    """The chat that asks a problem: the only place where a prompt is made, for answering, training and testing."""
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
    """Tokens of a chat that ends in the answer to learn, and how many come before it; None if nothing of it is left within max_tokens."""
    prompt = common.prompt_ids(student.tokenizer, messages[:-1])
    ids = prompt + student.tokenizer(end_once(student, messages[-1]["content"]), add_special_tokens=False).input_ids
    return (ids[:max_tokens], len(prompt)) if len(prompt) < max_tokens else None


# Copied from stat_sel.completion_loss
def completion_loss(model, pairs: list[tuple[list[int], int]], device) -> torch.Tensor:
    """Summed cross-entropy of the answers' tokens, the end token among them. Logits are computed only there: (n_completion, V), not (B, T, V).

    ours: no loss on the prompts, because the student is never asked to write one.
    """
    ids, mask = common.pad([ids for ids, _ in pairs], device)
    target = torch.tensor([[n <= t < len(row) for t in range(ids.shape[1])] for row, n in pairs], device=device)  # by length: a pad may equal an end
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
def train(args, run, student: common.Student, rows: list[dict], name: str) -> None:
    """QLoRA on rows {"messages"}, the last of them the answer to learn (§C.1): writes adapter/<name>/ and loss_<name>.jsonl.

    After every epoch adapter, optimiser, position and generator states are saved: killed and rerun, it goes on to the same weights.
    """
    import bitsandbytes as bnb
    from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from transformers import get_cosine_schedule_with_warmup
    final, checkpoint = run.path / "adapter" / name, run.path / "adapter" / f"{name}.checkpoint.pt"
    pairs = [pair for row in rows if (pair := encode(student, row["messages"], args.max_tokens))]
    if len(pairs) < len(rows):
        print(f"  train {name}: {len(rows) - len(pairs)} pairs left out, their prompts alone reach --max-tokens {args.max_tokens}")
    if not pairs:
        raise UserError(f"train {name}: no pair is left; raise --max-tokens (now {args.max_tokens})")
    torch.manual_seed(common.torch_seed(args.seed, "train"))  # ours: the same draw for every arm, because the arms are compared in pairs
    model = student.model if isinstance(student.model, PeftModel) else get_peft_model(student.model, LoraConfig(
        r=args.lora_rank, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, target_modules="all-linear", task_type="CAUSAL_LM"))
    if args.checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    weights = [p for p in model.parameters() if p.requires_grad]
    n_steps, losses, start = args.epochs * math.ceil(len(pairs) / args.batch), [], 0
    optimizer = bnb.optim.PagedAdamW8bit(weights, lr=args.lr, weight_decay=args.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(args.warmup * n_steps), n_steps)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
        set_peft_model_state_dict(model, saved["adapter"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["rng"])
        torch.cuda.set_rng_state_all(saved["rng_cuda"])
        losses, start = saved["losses"], saved["epoch"]
    model.train()
    n_before, started = len(losses), time.time()
    bar = tqdm(total=n_steps, initial=len(losses), desc=f"train {name}", unit="step")
    for epoch in range(start, args.epochs):
        epoch_started = time.time()
        for batch in grouped_batches([len(ids) for ids, _ in pairs], args.batch, common.rng(args.seed, "order", epoch)):  # §C.1
            n_tokens = sum(len(pairs[i][0]) - pairs[i][1] for i in batch)  # ours: the mean over tokens, because then micro-batches do not matter
            total = 0.0
            for i in range(0, len(batch), args.micro_batch):
                loss = completion_loss(model, [pairs[j] for j in batch[i:i + args.micro_batch]], student.device) / n_tokens
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(weights, args.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(total)
            bar.update()
            common.say_left(f"train {name}", started, len(losses) - n_before, n_steps - len(losses))
            bar.set_postfix(loss=f"{total:.3f}")
        checkpoint.parent.mkdir(exist_ok=True)
        torch.save({"adapter": get_peft_model_state_dict(model), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
                    "rng": torch.get_rng_state(), "rng_cuda": torch.cuda.get_rng_state_all(), "losses": losses,
                    "epoch": epoch + 1}, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").rename(checkpoint)
        run.log(train=name, epoch=epoch + 1, seconds=round(time.time() - epoch_started, 1), peak_gib=common.peak_gib())
    bar.close()
    run.write(f"loss_{name}.jsonl", [{"step": i, "loss": loss} for i, loss in enumerate(losses)])
    model.save_pretrained(final.with_suffix(".tmp"))
    student.tokenizer.save_pretrained(final.with_suffix(".tmp"))
    final.with_suffix(".tmp").rename(final)


# Copied from stat_sel.split_steps
def split_steps(response: str) -> list[str]:
    r"""The steps of an answer for a reward model: its paragraphs, or its lines if it is one paragraph; a display formula is never cut.

    ours: where to cut, because STAT does not say. The final answer, if there is one, comes as a last step of its own, because STAT's authors
    showed it to such a model so before (AdaptMI). Never none.
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
    """Tokens of the chat "problem + step 1", "+", "step 2", "+", ... that RLHFlow's reward models read; the positions that predict its marks."""
    plus, chat, prompts = tokenizer("+", add_special_tokens=False).input_ids[-1], [], []
    for i, step in enumerate(steps):
        chat.append({"role": "user", "content": f"{problem} {step}" if i == 0 else step})
        prompts.append(common.prompt_ids(tokenizer, chat))
        chat.append({"role": "assistant", "content": "+"})
    if any(longer[:len(prompt) + 1] != [*prompt, plus] for prompt, longer in itertools.pairwise(prompts)):
        raise UserError("--prm: its chat template does not leave earlier turns as they are with a + behind them; take a model of RLHFlow's kind")
    return prompts[-1], [len(prompt) - 1 for prompt in prompts]


# Copied from stat_sel.check_prm
def check_prm(name: str) -> None:
    """Refuse a reward model that cannot mark steps, by its tokenizer and its configuration, before the student answers for hours."""
    from transformers import AutoConfig, AutoTokenizer
    with common.loading("--prm", name):
        tokenizer = AutoTokenizer.from_pretrained(name)
    chat_of_steps(tokenizer, "problem", ["one", "two"])
    kinds = AutoConfig.from_pretrained(name).architectures or ["none"]
    if not kinds[0].endswith("ForCausalLM"):
        raise UserError(f"--prm {name}: expected a causal language model that writes + and -, came {kinds[0]}; take a model of RLHFlow's kind")


# Copied from stat_sel.score_steps
def score_steps(model, tokenizer, answers: list[tuple[str, list[str]]]) -> list[list[float]]:
    """r_q,1..r_q,t for each (problem, steps): P("+") / (P("+") + P("-")) by a process reward model (§2.1).

    All steps of an answer take one forward pass: attention is causal, and every earlier mark is "+" whatever its score.
    """
    marks = [tokenizer(mark, add_special_tokens=False).input_ids[-1] for mark in "+-"]
    chats = [chat_of_steps(tokenizer, problem, steps) for problem, steps in answers]
    with torch.no_grad():
        hidden = common.hidden_states(model, *common.pad([ids for ids, _ in chats], model.device))  # (B, T, d)
        logits = [model.lm_head(row[at]).float()[:, marks] for row, (_, at) in zip(hidden, chats, strict=True)]  # (t, 2) each
    return [pair.softmax(-1)[:, 0].tolist() for pair in logits]


# Copied from stat_sel.step_rewards
def step_rewards(run, name: str, prm: str, answered: list[tuple[dict, str]], batch: int) -> dict[str, list[float]]:
    """The rewards of the steps of every (question, response), by the question's id; in batches of similar length, kept in the file `name`."""
    if not answered:
        return {}
    load_prm = functools.cache(lambda: common.load_4bit(prm, "--prm"))  # only if something is left to do
    by_id = {row["id"]: (row["problem"], response) for row, response in answered}
    items = [{"id": i} for i in sorted(by_id, key=lambda i: (sum(map(len, by_id[i])), i))]

    def make(part):
        steps = [(problem, split_steps(response)) for problem, response in (by_id[item["id"]] for item in part)]
        return [item | {"rewards": rewards} for item, rewards in zip(part, score_steps(*load_prm(), steps), strict=True)]
    rows = run.batches(name, [items[i:i + batch] for i in range(0, len(items), batch)], make, unit="answer")
    return {row["id"]: row["rewards"] for row in rows}


# Copied from stat_sel.embed
def embed(model, tokenizer, texts: list[str], batch: int) -> torch.Tensor:
    """Mean-pooled last hidden states of unit length, (N, d)."""
    order, rows = sorted(range(len(texts)), key=lambda i: len(texts[i])), {}
    for i in tqdm(range(0, len(order), batch), desc="embed", unit="batch"):
        with torch.no_grad():
            ids, mask = common.pad([tokenizer(texts[j]).input_ids for j in order[i:i + batch]], model.device)
            hidden = common.hidden_states(model, ids, mask).float() * mask[:, :, None]  # (B, T, d)
        mean = torch.nn.functional.normalize(hidden.sum(1), dim=-1)
        rows |= dict(zip(order[i:i + batch], mean.cpu(), strict=True))
    return torch.stack([rows[i] for i in range(len(texts))])


# Copied from stat_sel.nearest
def nearest(queries: torch.Tensor, keys: torch.Tensor, k: int) -> list[list[int]]:
    """The k keys (M, d) of the largest inner product with each query (N, d), equal ones in their order."""
    return (queries @ keys.T).sort(descending=True, stable=True).indices[:, :k].tolist()


# Copied from stat_sel.requests
def requests(args, prompt: str, rows: list[dict], skills=None, responses=None, n: int = 1, temperature: float = 0.0) -> list[Request]:
    """n requests for each question, with its subject's skills and the student's response where the prompt asks for them."""
    # ours: T = 0 but for rewrites, because one label or diagnosis is wanted, the likeliest, but n rewrites that differ
    return [Request([{"role": "user", "content": prompt.format(
                subject=row["subject"], problem=row["problem"], solution=row["solution"], response=response,
                skills="\n".join(skills[row["subject"]]) if skills else "")}], temperature, args.teacher_max_tokens, sample)
            for row, response in zip(rows, responses or [""] * len(rows), strict=True) for sample in range(n)]


# Copied from stat_sel.own_skills
def own_skills(rows: list[dict], skills: dict[str, list[str]]) -> dict[str, list[str]]:
    """The labels that the data itself carries, as "subject: name"; empty for all questions if over 5 % of them are not on the list.

    ours: that limit, because names of another list agree with this one by accident only, and a table of accidents looks like a result.
    """
    read = {row["id"]: read_skills(",".join(row["skills"] or []), row["subject"] or "", skills.get(row["subject"], [])) for row in rows}
    n_known, n_unknown = (sum(len(found[i]) for found in read.values()) for i in (0, 1))
    return {row_id: known if n_unknown <= 0.05 * (n_known + n_unknown) else [] for row_id, (known, _) in read.items()}


# Copied from stat_sel.agreement
def agreement(hits: int, false_alarms: int, misses: int, rejections: int) -> dict[str, float | None]:
    """How well a criterion of difficulty finds the wrong answers, in %; None where the denominator is zero (Tables 8, 11).

    hits: difficult and wrong; false alarms: difficult and right; misses: not difficult and wrong; rejections: neither.
    >>> agreement(6, 2, 0, 2)
    {'accuracy': 80.0, 'precision': 75.0, 'recall': 100.0, 'F1': 85.71428571428571}
    """
    parts = {"accuracy": (hits + rejections, hits + false_alarms + misses + rejections), "precision": (hits, hits + false_alarms),
             "recall": (hits, hits + misses), "F1": (2 * hits, 2 * hits + false_alarms + misses)}
    return {name: 100 * k / n if n else None for name, (k, n) in parts.items()}


# Copied from stat_sel.bars
def bars(counts: dict[str, int], top: int = 10, width: int = 40) -> str:
    """The `top` largest counts as bars, equal ones by name; the longest bar is `width` signs.

    >>> print(bars({"b": 1, "a": 4, "c": 1}, top=2, width=4))
    a  4 ####
    b  1 #
    (1 more)
    """
    shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:top]
    name_width, most = max([len(name) for name, _ in shown], default=0), max([1, *counts.values()])
    lines = [f"{name:<{name_width}}  {n:>{len(f'{most:,}')},} {'#' * math.ceil(width * n / most)}".rstrip() for name, n in shown]
    return "\n".join(lines + [f"({len(counts) - top} more)"] * (len(counts) > top)) or "(none)"


# Copied from stat_sel.grade
def grade(args, run, student, val: list[dict], tests: list[dict]) -> list[dict]:
    """Stage 1: the questions of Q_val and Q_test with the student's answer and whether it is difficult (§2.1; Q_test for MATH^D)."""
    rows = val + tests
    answers = {i: drawn[0]["response"] for i, drawn in common.answer(args, run, "1_answers.jsonl", student, rows, question, args.temperature).items()}
    sampled, scored = (rows if args.difficulty in by else val if args.compare else [] for by in (("consistency", "length"), ("prm",)))
    # ours: at T = 1, because at 0.1 five samples nearly always agree
    samples = common.answer(args, run, "1_samples.jsonl", student, sampled, question, temperature=1.0, n=5) if sampled else {}
    student.cache_clear()  # the reward model needs the student's place
    # r_q,1..r_q,t of every answer, all steps of one in one forward pass
    rewards = step_rewards(run, "2_rewards.jsonl", args.prm, [(row, answers[row["id"]]) for row in scored], args.prm_batch)

    def make():
        graded = []
        for i, row in enumerate(rows):
            response, r = answers[row["id"]], rewards.get(row["id"])
            texts = [sample["response"] for sample in samples.get(row["id"], [])]
            words = sum(len(text.split()) for text in texts) / len(texts) if texts else None
            is_right = common.score(response, row["answer"], row["problem"])
            by = {"answer": not is_right, "length": words >= args.length_words if texts else None,
                  "consistency": is_inconsistent([common.extract_answer(text) for text in texts]) if texts else None,
                  "prm": is_difficult(r, args.tau1, args.tau2) if r else None}
            graded.append({"id": row["id"], "part": "Q_val" if i < len(val) else "Q_test", "response": response, "is_right": is_right, "words": words,
                           "rewards": r, "difficult_by": by, "difficult": by[args.difficulty]})
        return graded
    graded = run.step("2_graded.jsonl", make)
    for part in ("Q_val", "Q_test"):
        there = [row for row in graded if row["part"] == part]
        print(f"  {part}: {sum(row['difficult'] for row in there)} of {len(there)} difficult, {sum(bool(row['is_right']) for row in there)} right")
    for criterion in ("prm", "consistency", "length"):  # Tables 8, 11
        pairs = Counter((row["difficult_by"][criterion], not row["is_right"]) for row in graded if row["part"] == "Q_val")
        if any(counts := [pairs[True, True], pairs[True, False], pairs[False, True], pairs[False, False]]):
            found = agreement(*counts)
            print(f"  difficult by {criterion} against wrong: " + ", ".join(f"{name} {x:.1f} %" for name, x in found.items() if x is not None))
    return graded


# Copied from stat_sel.label
def label(args, run, teacher, rows: list[dict], skills) -> dict[str, list[str]]:
    """Stage 2, first half: the skills of each question, by the teacher or from --skill-map (§C.3.1)."""
    def make():
        if args.skill_map:
            given = read_lists(args.skill_map, "--skill-map", "question id")
            texts = ["\n".join(given.get(row["id"], [])) for row in rows]
        else:
            replies = teacher.ask(requests(args, LABEL_PROMPT, rows, skills), "3 label")
            texts = [", ".join(common.read_tags(reply.text, "skill")) if reply else "" for reply in replies]
        read = [read_skills(text, row["subject"], skills[row["subject"]]) for row, text in zip(rows, texts, strict=True)]
        most = None if args.skill_map else 5
        return [{"id": row["id"], "skills": known[:most], "unknown": unknown} for row, (known, unknown) in zip(rows, read, strict=True)]
    labels = run.step("3_skill_map.jsonl", make)
    print(f"  {sum(not row['skills'] for row in labels)} of {len(labels)} questions without a skill, "
          f"{sum(len(row['unknown']) for row in labels)} names not on the list")
    return {row["id"]: row["skills"] for row in labels}


# Copied from stat_sel.diagnose
def diagnose(args, run, teacher, val: list[dict], graded: list[dict], skills) -> dict[str, list[str]]:
    """Stage 2, second half: the Missing-Skill-Profile (§2.2). The teacher never sees the gold answer."""
    def make():
        by_id = {row["id"]: row for row in val}
        difficult = [row for row in graded if row["part"] == "Q_val" and row["difficult"]]
        rows = [by_id[row["id"]] for row in difficult]
        out, asked = [], requests(args, PROFILE_PROMPT, rows, skills, [row["response"] for row in difficult])
        for row, reply in zip(rows, teacher.ask(asked, "4 diagnose"), strict=True):
            lost = {"judge": None, "skills": [], "unknown": [], "fault": "no reply", "reason": None}
            out.append({"id": row["id"]} | (read_profile(reply.text, row["subject"], skills[row["subject"]]) if reply else lost))
        return out
    rows = run.step("4_profile.jsonl", make)
    faults = Counter(row["fault"] for row in rows if row["fault"])
    profile = {row["id"]: row["skills"] for row in rows if not row["fault"]}
    print(f"  Missing-Skill-Profile of {len(profile)} difficult questions; left out: {dict(faults) or 'none'}; "
          f"{sum(len(row['unknown']) for row in rows)} names not on the list")
    print(bars(Counter(skill for missing in profile.values() for skill in missing)))
    return profile


# Copied from stat_sel.rewrite
def rewrite(args, run, teacher, rows: list[dict]) -> dict[str, list[dict]]:
    """The rewritten answers of each question that end in its gold answer, by id; n_rewrites are asked for (§B.2)."""
    def make():
        keys = [(row, i) for row in rows for i in range(args.n_rewrites)]
        replies = teacher.ask(requests(args, REWRITE_PROMPT, rows, n=args.n_rewrites, temperature=1.0), "5 rewrite") if rows else []
        return [{"id": row["id"], "sample": i, "response": reply and reply.text,
                 "is_right": reply and common.score(reply.text, row["answer"], row["problem"])}
                for (row, i), reply in zip(keys, replies, strict=True)]
    rewrites, right = run.step("5_rewrites.jsonl", make), {}
    for row in rewrites:
        if row["is_right"]:
            right.setdefault(row["id"], []).append(row)
    print(f"  {sum(not row['is_right'] for row in rewrites)} of {len(rewrites)} rewrites dropped for a wrong or missing answer")
    return right


# Copied from stat_sel.retrieve
def retrieve(args, run, student, difficult: list[dict], pool: list[dict], k: int) -> dict[str, list[str]]:
    """The k questions of P nearest to each difficult one, by id, the nearest first (§C.2)."""
    def make():  # ours: mean-pooled hidden states, because any causal model has them
        model, tokenizer, *_ = common.load_4bit(args.embedder, "--embedder") if args.embedder else student()
        hard, all_of_p = (embed(model, tokenizer, [row["problem"] for row in rows], args.sample_batch) for rows in (difficult, pool))
        found = nearest(hard, all_of_p, k)
        return {row["id"]: [pool[i]["id"] for i in near] for row, near in zip(difficult, found, strict=True)}
    return run.step("5_nearest.json", make) if difficult else {}


# Copied from stat_sel.show
def show(tested: dict[str, list[dict]], hard: set[str]) -> None:
    """Print right answers and paired leads over augment (or the first arm), of each evaluation set and of MATH^D, the ids in `hard`."""
    reference = "augment" if "augment" in tested else next(iter(tested))
    for name in dict.fromkeys(row["set"] for row in tested[reference]):
        drawn: dict[str, dict[str, list[bool]]] = {arm: {} for arm in tested}
        for arm, rows in tested.items():
            for row in rows:
                if row["set"] == name:
                    drawn[arm].setdefault(row["id"], []).append(bool(row["is_right"]))
        ids = list(drawn[reference])
        n = len(drawn[reference][ids[0]])
        parts = {name + (f", mean of {n} answers" if n > 1 else ""): ids}
        if name == "MATH":
            parts["MATH^D: the questions that are difficult by an independent draw of the base student's answers"] = [i for i in ids if i in hard]
        for title, some in parts.items():
            outcomes = {arm: [sum(found[i]) / n for i in some] for arm, found in drawn.items()}
            print(f"\n{title}\n{common.compare(outcomes, reference)}")


# Copied from stat_sel.test
def test(args, run, student, questions, arm: str) -> list[dict]:
    """Every answer to the evaluation sets; is_right is None where no final answer was found, which counts as wrong and is shown apart."""
    def make():
        out = []
        for name, rows in questions.sets.items():
            n = questions.n_samples[name]
            file, temperature = f"7_answers_{arm}_{name.replace('/', '_')}.jsonl", args.temperature if n == 1 else 1.0
            found = common.answer(args, run, file, student, rows, question, temperature, n)
            out += [{"set": name, "id": row["id"], "sample": one["sample"], "is_right": common.score(one["response"], row["answer"], row["problem"]),
                     "cut_off": one["cut_off"]} for row in rows for one in found[row["id"]]]
        return out
    return run.step(f"7_test_{arm}.jsonl", make)


def plan(args, writer_args, pool: list[dict], val: list[dict], to_label: list[dict], skills, new_arms: list[str], targeted: bool) -> int:
    """Print what teacher and writer will cost at most, before the first paid call; write and solve are guessed until there is a profile.
    Returns the number of calls."""
    file, asked, guess = Path(args.profile_from or args.out, "4_profile.jsonl"), {}, common.rng(args.seed, "plan")
    known = targeted and file.is_file()
    if to_label and not args.skill_map and not file.with_name("3_skill_map.jsonl").is_file():
        asked["3 label"] = requests(args, LABEL_PROMPT, to_label, skills)
    if targeted and not known:
        longest = ["(the student's response)"] + ["x" * 3 * args.max_new_tokens] * (len(val) - 1)  # the first is shown; three bytes count as a token
        asked["4 diagnose, at most"] = requests(args, PROFILE_PROMPT, val, skills, longest)
    if "augment" in args.arms:
        asked["5 rewrite"] = requests(args, REWRITE_PROMPT, pool, n=args.n_rewrites, temperature=1.0)
    # ours: three missing skills for each question of Q_val, because §C.3.2's diagnoses name two or three, and far from all questions are difficult
    n = sum(len(row["skills"]) for _, row in common.read_rows(file)) if known else len(val) * (3 if targeted else 1)
    groups = [{"arm": arm, "skill": None if arm == "embed" else "(a missing skill)",
               "references": [row["id"] for row in guess.sample(pool, min(args.n_references, len(pool)))]} for arm in new_arms for _ in range(n)]
    write = writing(args, groups, {row["id"]: row for row in pool})
    solve = requests(args, SOLVE_PROMPT, guess.choices(pool, k=len(write)), n=args.n_solutions, temperature=1.0)  # questions of P stand in
    solve = [request._replace(sample=i) for i, request in enumerate(solve)]  # so that one which comes twice counts twice
    if new_arms:
        print(f"5 write, 5 solve: by {n} missing skills {f'in {file}' if known else 'as a guess'}; what comes malformed is asked for once more, "
              "on top of this")
        asked |= {"5 write": write, "5 solve": solve}
    n_calls = 0
    if args.writer:
        n_calls += common.open_teacher(writer_args, write=False).plan({"5 write": asked.pop("5 write", [])}, show=args.plan)
    return n_calls + common.open_teacher(args, write=False).plan(asked, show=args.plan)


def main(args: Args) -> None:
    common.check_args(args, lr=1, temperature=100, warmup=1, lora_dropout=0.99, weight_decay=1, max_grad_norm=1e9, teacher_max_none=1,
                      teacher_timeout=1e9, tau1=1, tau2=1)
    common.template_head(args.chat_template_kwargs)  # refuses what is not JSON
    for small, large in (("min_agreeing", "n_solutions"), ("n_references", "n_nearest")):
        if getattr(args, small) > getattr(args, large):
            a, b = (f"--{name.replace('_', '-')}" for name in (small, large))
            raise UserError(f"{a}: expected at most {b} {getattr(args, large)}, came {getattr(args, small)}")
    if not args.writer and {args.writer_url, args.writer_usd_per_m_in, args.writer_usd_per_m_out} != {None}:
        raise UserError("--writer-url, --writer-usd-per-m-in and --writer-usd-per-m-out say something of a --writer; give that too")
    prices = ("usd_per_m_in", "usd_per_m_out", "writer_usd_per_m_in", "writer_usd_per_m_out")
    unknown = [name for name in prices if getattr(args, name) is None]
    if args.writer and unknown and (len(unknown) < 4 or args.max_usd is not None):
        raise UserError("--writer: expected prices of both models or of none, and with --max-usd of both; "
                        f"--{unknown[0].replace('_', '-')} is missing")
    if args.profile_from and args.cache and not any(Path(args.cache).with_suffix(end).is_file() for end in (".sqlite", ".jsonl")):
        raise UserError(f"--cache {args.cache}: no such file; give the teacher.sqlite of the run that --profile-from names, or leave --cache out")
    writer_args = dataclasses.replace(args, teacher=args.writer, teacher_url=args.writer_url or args.teacher_url,
                                      usd_per_m_in=args.writer_usd_per_m_in, usd_per_m_out=args.writer_usd_per_m_out) if args.writer else args
    skills = read_lists(args.skills, "--skills", "subject") if args.skills else MATH_SKILLS
    skill_map = read_lists(args.skill_map, "--skill-map", "question id") if args.skill_map else {}
    if args.profile_from:
        check_source(args)
    needs_prm = not args.profile_from and (args.difficulty == "prm" or args.compare)
    for flag, name in (("--student", args.student), ("--adapter", args.adapter), ("--embedder", args.embedder if "embed" in args.arms else None),
                       ("--prm", args.prm if needs_prm else None)):
        common.check_checkpoint(None if args.plan else name, flag)  # now, not after hours
    if needs_prm and not args.plan:
        check_prm(args.prm)
    questions = load_questions(args)
    pool, val, tests = questions.pool, questions.val, questions.sets["MATH"]
    parts = {"P": pool, "Q_val": val} | {f"test {name}": rows for name, rows in questions.sets.items()}
    asked = [{"id": row["id"], "part": part, "subject": row["subject"], "level": row["level"], "skills": own[row["id"]]}
             for part, rows in (("P", pool), ("Q_val", val), ("Q_test", tests)) for own in [own_skills(rows, skills)] for row in rows]
    if args.profile_from and not same_questions(Path(args.profile_from), asked, parts):
        raise UserError(f"--profile-from {args.profile_from}: its questions are others; has --data changed since, or is --ood another?")
    if args.skill_map and not any(row["id"] in skill_map for row in pool):
        raise UserError(f"--skill-map {args.skill_map}: expected ids of questions of P, such as {pool[0]['id']!r}, came none; check the file")
    new_arms, taught = [arm for arm in args.arms if arm not in ("base", "augment")], set(args.arms) - {"base"}
    targeted = bool({"stat", "shuffled"} & taught)
    to_label = (pool if targeted else []) + tests * args.label_test
    if taught:
        for flag, rows in ((f"--data {args.data}", pool + tests), (f"--val {args.val}", val)):
            if unknown := {str(row["subject"]) for row in rows} - skills.keys():
                raise UserError(f"{flag}: subject {min(unknown)!r} is not in the skill list ({', '.join(skills)}); give a list by --skills")
        n_calls = plan(args, writer_args, pool, val, to_label, skills, new_arms, targeted)
    if args.plan:
        return
    run = common.open_run(args, args.out, HOW)
    common.check_questions(run, parts)
    run.step("0_questions.jsonl", lambda: asked)
    if args.profile_from:
        take_over(args, run)
    teacher = common.open_teacher(args) if taught else None
    writer = common.open_teacher(writer_args) if taught and args.writer else teacher
    if taught and n_calls and not (run.path / "2_graded.jsonl").exists():
        for one in dict.fromkeys((teacher, writer)):
            one.check()  # now, not after the student has answered for hours
    student = functools.cache(lambda: common.load_student(args.student, args.adapter, args.chat_template_kwargs))
    graded = grade(args, run, student, val, tests)
    hard = {row["id"] for row in graded if row["difficult"]}
    labels = label(args, run, teacher, to_label, skills) if taught and to_label else {}
    profile = diagnose(args, run, teacher, val, graded, skills) if targeted else {}
    pairs = {}
    if "augment" in args.arms:
        pairs["augment"] = [{"id": row["id"], "sample": one["sample"], "skill": None, "problem": row["problem"], "response": one["response"]}
                            for right in [rewrite(args, run, teacher, pool)] for row in pool for one in right.get(row["id"], [])]
    if new_arms:
        groups = group_references(args, run, student, pool, profile, labels, [row for row in val if row["id"] in hard])
        pairs |= synthesise(args, run, teacher, writer, groups, pool, list(itertools.chain(*questions.sets.values())))
    if pairs:
        draw(args, run, pairs)

    tested = {}
    for arm in args.arms:
        adapter = args.adapter if arm == "base" else run.path / "adapter" / arm
        student.cache_clear()
        if arm != "base" and not adapter.exists():
            train(args, run, common.load_student(args.student, args.adapter, args.chat_template_kwargs), run.read(f"train_{arm}.jsonl"), arm)
        if arm != "base":
            adapter.with_suffix(".checkpoint.pt").unlink(missing_ok=True)
        # what is tested is what was saved
        student = functools.cache(lambda adapter=adapter: common.load_student(args.student, adapter, args.chat_template_kwargs))
        tested[arm] = test(args, run, student, questions, arm)
    for arm in TAKEN.values():
        if (run.path / f"7_test_{arm}.jsonl").exists():
            tested[arm] = run.read(f"7_test_{arm}.jsonl")
    n_pairs = {arm: len(run.read(f"train_{arm}.jsonl")) for arm in tested if arm != "base"}
    print("pairs trained on: " + ", ".join(f"{arm} {n}" for arm, n in n_pairs.items()))
    show(tested, hard)
    run.write("result.json", {
        "method": "stat_syn", "removed": questions.removed, "teacher_totals": teacher.recorded if teacher else {},
        "arms": {arm: {name: [sum(bool(row["is_right"]) for row in rows if row["set"] == name), sum(row["set"] == name for row in rows)]
                       for name in questions.sets} for arm, rows in tested.items()}})  # right of answers
    print(f"{run.path}/result.json; more tables: python report.py {run.path}")


if __name__ == "__main__":
    common.cli(main, Args, __doc__)
