r"""STAT-Sel: redraw the training set towards the skills a student lacks, then fine-tune the student on the draw.

Paper   He, Panigrahi, Lin, Arora, "Skill-Targeted Adaptive Training", arXiv 2510.10023v1. The authors published data, no code.
Steps   1 answer    the student answers every validation question, 0-shot, T = 0.1                        (§2.1)
        2 grade     a process reward model scores the steps; which answers are difficult for the student    (§2.1, Eq. 1, §E.1)
        3 label     the teacher names up to five skills for each question of P: the Skill-Map               (§2, §C.3.1)
        4 diagnose  the teacher names the skills each difficult answer lacks: the Missing-Skill-Profile     (§2.2, §C.3.2)
        5 draw      five questions of P for every (question, missing skill), three rewritten answers each   (§2.3, §B.2)
        6 train     QLoRA on the draw, and on the same number of pairs drawn otherwise                      (§C.1, §C.2)
        7 test      accuracy on the questions that were not profiled on, and on other sets                  (§3.1)
Names   P, the training questions (§2) = pool; S, the skill list = skills; Q_val = val, Q_test = tests; r_q,i = rewards; Skill-Map = skill_map;
        Missing-Skill-Profile = profile (§2.2); Q_val_difficult = difficult; MATH^D = the difficult part of Q_test (§2.1).
        A skill is the pair (subject, name), written "subject: name": names repeat across subjects.
Arms    base      the student as it is
        train     P with its own solutions: MATH-Train (§C.2)
        augment   random pairs of rewritten answers over all of P: MATH-Augment
        hard      the same over levels 4 and 5: MATH-Hard
        embed     the five questions of P nearest to each difficult one: Embed-Sel
        stat      STAT-Sel
        shuffled  STAT-Sel with the profile's skills permuted among the skills: does the targeting help, or any redraw? (ours)
Differs Questions of Q_test are picked for MATH^D by one draw of the base student's answers, and the base is scored on another: else it would rise
        by regression to the mean. One learning rate for all arms, where the paper chooses one for each. Length-grouped batches without packing.
        The 112 skills printed in Tables 5 and 6; the text speaks of 128. A rewrite whose final answer is not the gold one is dropped; so is a
        question of P that stands in an evaluation set, or has no answer. The reward model sees the final answer as a step of its own, as in the
        authors' earlier AdaptMI. Embeddings are mean-pooled, whatever the embedder's own way is.
Run     python stat_sel.py --teacher gpt-4o-mini                                         # the paper's sizes, one GPU
        python stat_sel.py --teacher gpt-4o-mini --plan                                  # calls, tokens, one prompt of each kind; sends nothing
        python stat_sel.py --teacher MODEL --teacher-url http://localhost:8000/v1 --limit 100   # any OpenAI-compatible server, a small slice
        python -m toyworld stat_sel                                                      # no GPU, no key, minutes
Writes  runs/stat_sel/  args.json env.json 0_fingerprint.json
        0_questions.jsonl 1_answers.jsonl (1_samples.jsonl 2_rewards.jsonl) 2_graded.jsonl
        3_skill_map.jsonl 4_profile.jsonl (5_nearest.json) 5_rewrites.jsonl train_<arm>.jsonl loss_<arm>.jsonl adapter/<arm>/
        7_answers_<arm>_<set>.jsonl 7_test_<arm>.jsonl teacher.sqlite metrics.jsonl result.json
"""
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

# May differ between the starts of one run. The batch sizes move the draws of dropout and of sampling: what is there already is kept.
HOW = ("teacher_url", "teacher_max_tokens", "teacher_timeout", "teacher_max_none", "cache", "concurrency", "max_usd", "usd_per_m_in", "usd_per_m_out",
       "plan", "micro_batch", "sample_batch", "prm_batch", "checkpointing")


@dataclass(frozen=True)
class Args:
    student: str = "Qwen/Qwen2.5-3B"  # model to improve: Hub name or folder (§3.1)
    adapter: str | None = None  # LoRA adapter of an earlier run to start from, such as runs/stat_sel/adapter/stat; its own LoRA settings count (§3.3)
    chat_template_kwargs: str | None = None  # JSON that every use of the student's chat template gets, such as {"enable_thinking": false}
    data: str = "math"  # "math", or a folder with train.jsonl (P) and test.jsonl (split into Q_val and Q_test)
    val: str | None = None  # profile on this set, such as math_perturb_hard or a .jsonl file; on half of it at most, the rest is tested on (§3.3)
    ood: tuple[str, ...] = ()  # other sets to test on: gsm8k math500 amc23 aime24 aime25 math_perturb_simple math_perturb_hard, .jsonl files (§3.1)
    samples: int = 64  # answers to each question of another set with fewer than 100, at T = 1 (§3.1: AMC23, AIME)
    skills: str | None = None  # JSON file {subject: [skill, ...]} instead of the paper's list (Tables 5, 6)
    skill_map: str | None = None  # JSON file {question id: [skill, ...]} instead of asking the teacher for labels (§C.3.1)
    label_test: bool = False  # ask the teacher for the skills of Q_test too, for accuracy by skill (Fig. 4); toy data has them
    out: str = "runs/stat_sel"  # run directory; the same command goes on where it stopped
    seed: int = 0  # moves everything that is drawn (paper: 0, §C.1)
    limit: int | None = None  # take only so many questions of Q_val, of P and of each test set: a quick look
    arms: tuple[Literal["base", "train", "augment", "hard", "embed", "stat", "shuffled"], ...] = ("base", "augment", "stat", "shuffled")  # see Arms

    teacher: str = "gpt-4o-mini"  # model that labels, diagnoses and rewrites (§C.3)
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

    n_val: int = 1000  # size of Q_val; the rest of the test split is Q_test (§3.1)
    difficulty: Literal["prm", "consistency", "length", "answer"] = "prm"  # Eq. 1 (§2.1); five samples disagree, or are long (§E.1); wrong (ours)
    compare: bool = False  # grade Q_val by the other criteria too, to see how well each finds the wrong answers (Tables 8, 11)
    prm: str = "RLHFlow/Llama3.1-8B-PRM-Mistral-Data"  # process reward model that marks each step with + or - (§C.1)
    tau1: float = 0.85  # difficult if the last or the mean step reward is no higher (Eq. 1, §C.1)
    tau2: float = 0.7  # or that of an earlier step (Eq. 1, §C.1)
    length_words: int = 800  # difficult by length if five samples have as many words in the mean (§E.1)
    temperature: float = 0.1  # of the student's answers (§3.1); at 0 the two draws of MATH^D are one
    max_new_tokens: int = 2048  # length limit of an answer (ours: because MATH's longest solution has 6,767 characters)
    questions_per_skill: int = 5  # drawn for every (difficult question, missing skill) (§B.2; Algorithm 1 says 3), and by Embed-Sel (§C.2)
    embedder: str | None = None  # model whose mean-pooled hidden states are Embed-Sel's embeddings (§C.2: gte-Qwen2-7B-instruct); else the student
    n_rewrites: int = 3  # rewritten answers of a drawn question (§B.2)
    n_pairs: int = 9500  # question-answer pairs in every trained arm but train (§B.2)

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


# MATH's subjects and skills: the 112 pairs of Tables 5 and 6, where §2 speaks of 128.
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


# --- The method: pure functions in the paper's order. No files, no network. -----------------------------------------------------------------
def is_difficult(rewards: list[float], tau1: float, tau2: float) -> bool:
    """Whether R(q) = 0, by the rewards r_q,1..r_q,t of one answer's steps, in [0, 1], t >= 1 (§2.1, Eq. 1).

    >>> is_difficult([0.71, 1.0], 0.85, 0.7), is_difficult([0.7, 1.0, 1.0], 0.85, 0.7), is_difficult([0.99, 0.85], 0.85, 0.7)
    (False, True, True)
    """
    *earlier, last = rewards
    return last <= tau1 or math.fsum(rewards) / len(rewards) <= tau1 or any(r <= tau2 for r in earlier)  # Eq. 1


def is_inconsistent(answers: list[str | None]) -> bool:
    """Whether a question is difficult by the consistency heuristic: its most common answer appears fewer than two times (§E.1).

    answers: the final answers of five samples; None (no answer found) agrees with nothing.
    >>> is_inconsistent(["1", "2", "3", None, None]), is_inconsistent(["1", "2", "1.0", "3", "4"])
    (True, False)
    """
    found = [a for a in answers if a is not None]
    return not any(common.is_equiv(a, b) for i, a in enumerate(found) for b in found[:i])


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


# --- The questions. ----------------------------------------------------------------------------------------------------
def read_lists(path: str, flag: str, what: str) -> dict[str, list[str]]:
    """A JSON file {what: [name, ...]} that a flag names."""
    lists = common.read_json(path)
    good = isinstance(lists, dict) and all(isinstance(names, list) for names in lists.values())
    for name in itertools.chain(*lists.values()) if good else ():
        good = good and isinstance(name, str) and not re.search(r"[,;|\n]", name)
    if not good:
        raise UserError(f"{flag} {path}: expected {{{what}: [skill, ...]}} with none of , ; | in a skill's name; correct the file")
    return lists


def split_math(rows: list[dict], n_val: int, seed: int) -> tuple[list[dict], list[dict]]:
    """(validation, test): n_val rows at random and the others, each in file order; 1,000 and 4,000 of MATH's test split (§3.1)."""
    if not 0 < n_val < len(rows):
        raise UserError(f"split: expected 0 < n_val < {len(rows)} (the number of rows), came {n_val}; change n_val")
    by_text = sorted(range(len(rows)), key=lambda i: rows[i]["problem"])  # so the order of the file does not matter
    chosen = set(common.rng(seed, "split_math").sample(by_text, n_val))
    return [row for i, row in enumerate(rows) if i in chosen], [row for i, row in enumerate(rows) if i not in chosen]


class Questions(NamedTuple):
    pool: list[dict]  # P: training questions with a solution and an answer
    val: list[dict]  # Q_val: what the student is profiled on
    sets: dict[str, list[dict]]  # what is tested on: first "MATH", the rest of the test split
    n_samples: dict[str, int]  # answers to each question of a set
    removed: dict[str, int]  # how many questions a set has lost because they are profiled on


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


# --- The student: its prompt and its training. -----------------------------------------------------------------------------------------------------
def question(problem: str) -> list[dict]:
    """The chat that asks a problem: the only place where a prompt is made, for answering, training and testing."""
    return [{"role": "user", "content": STUDENT_PROMPT.format(problem=problem)}]


def end_once(student: common.Student, text: str) -> str:
    """An answer with its end behind it, once, even if the answer brought its own."""
    ends = (student.end, *(student.tokenizer.decode([i]) for i in student.stop_ids if i >= 0))
    while text.rstrip().endswith(ends):
        for end in ends:
            text = text.rstrip().removesuffix(end).rstrip()
    return text + student.end


def encode(student: common.Student, messages: list[dict], max_tokens: int) -> tuple[list[int], int] | None:
    """Tokens of a chat that ends in the answer to learn, and how many come before it; None if nothing of it is left within max_tokens."""
    prompt = common.prompt_ids(student.tokenizer, messages[:-1])
    ids = prompt + student.tokenizer(end_once(student, messages[-1]["content"]), add_special_tokens=False).input_ids
    return (ids[:max_tokens], len(prompt)) if len(prompt) < max_tokens else None


def completion_loss(model, pairs: list[tuple[list[int], int]], device) -> torch.Tensor:
    """Summed cross-entropy of the answers' tokens, the end token among them. Logits are computed only there: (n_completion, V), not (B, T, V).

    ours: no loss on the prompts, because the student is never asked to write one.
    """
    ids, mask = common.pad([ids for ids, _ in pairs], device)
    target = torch.tensor([[n <= t < len(row) for t in range(ids.shape[1])] for row, n in pairs], device=device)  # by length: a pad may equal an end
    hidden = common.hidden_states(model, ids, mask)  # (B, T, d)
    logits = model.get_base_model().lm_head(hidden[:, :-1][target[:, 1:]]).float()  # (n_completion, V)
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][target[:, 1:]], reduction="sum")


def grouped_batches(lengths: list[int], size: int, rng: random.Random) -> list[list[int]]:
    """Shuffled batches of indices of similar length: shuffle, sort within chunks, shuffle the batches.

    ours: chunks of 50 batches, because that leaves their content nearly random and takes most padding away.
    """
    order, batches = rng.sample(range(len(lengths)), len(lengths)), []
    for start in range(0, len(order), 50 * size):
        chunk = sorted(order[start:start + 50 * size], key=lambda i: -lengths[i])
        batches += [chunk[i:i + size] for i in range(0, len(chunk), size)]
    return rng.sample(batches, len(batches))


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


# --- Step rewards and embeddings. ---------------------------------------------------------------------------
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


def check_prm(name: str) -> None:
    """Refuse a reward model that cannot mark steps, by its tokenizer and its configuration, before the student answers for hours."""
    from transformers import AutoConfig, AutoTokenizer
    with common.loading("--prm", name):
        tokenizer = AutoTokenizer.from_pretrained(name)
    chat_of_steps(tokenizer, "problem", ["one", "two"])
    kinds = AutoConfig.from_pretrained(name).architectures or ["none"]
    if not kinds[0].endswith("ForCausalLM"):
        raise UserError(f"--prm {name}: expected a causal language model that writes + and -, came {kinds[0]}; take a model of RLHFlow's kind")


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


def nearest(queries: torch.Tensor, keys: torch.Tensor, k: int) -> list[list[int]]:
    """The k keys (M, d) of the largest inner product with each query (N, d), equal ones in their order."""
    return (queries @ keys.T).sort(descending=True, stable=True).indices[:, :k].tolist()


# --- The stages, with files and network. ----------------------------------------------------------------------------------------------------
def requests(args, prompt: str, rows: list[dict], skills=None, responses=None, n: int = 1, temperature: float = 0.0) -> list[Request]:
    """n requests for each question, with its subject's skills and the student's response where the prompt asks for them."""
    # ours: T = 0 but for rewrites, because one label or diagnosis is wanted, the likeliest, but n rewrites that differ
    return [Request([{"role": "user", "content": prompt.format(
                subject=row["subject"], problem=row["problem"], solution=row["solution"], response=response,
                skills="\n".join(skills[row["subject"]]) if skills else "")}], temperature, args.teacher_max_tokens, sample)
            for row, response in zip(rows, responses or [""] * len(rows), strict=True) for sample in range(n)]


def own_skills(rows: list[dict], skills: dict[str, list[str]]) -> dict[str, list[str]]:
    """The labels that the data itself carries, as "subject: name"; empty for all questions if over 5 % of them are not on the list.

    ours: that limit, because names of another list agree with this one by accident only, and a table of accidents looks like a result.
    """
    read = {row["id"]: read_skills(",".join(row["skills"] or []), row["subject"] or "", skills.get(row["subject"], [])) for row in rows}
    n_known, n_unknown = (sum(len(found[i]) for found in read.values()) for i in (0, 1))
    return {row_id: known if n_unknown <= 0.05 * (n_known + n_unknown) else [] for row_id, (known, _) in read.items()}


def agreement(hits: int, false_alarms: int, misses: int, rejections: int) -> dict[str, float | None]:
    """How well a criterion of difficulty finds the wrong answers, in %; None where the denominator is zero (Tables 8, 11).

    hits: difficult and wrong; false alarms: difficult and right; misses: not difficult and wrong; rejections: neither.
    >>> agreement(6, 2, 0, 2)
    {'accuracy': 80.0, 'precision': 75.0, 'recall': 100.0, 'F1': 85.71428571428571}
    """
    parts = {"accuracy": (hits + rejections, hits + false_alarms + misses + rejections), "precision": (hits, hits + false_alarms),
             "recall": (hits, hits + misses), "F1": (2 * hits, 2 * hits + false_alarms + misses)}
    return {name: 100 * k / n if n else None for name, (k, n) in parts.items()}


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


def retrieve(args, run, student, difficult: list[dict], pool: list[dict], k: int) -> dict[str, list[str]]:
    """The k questions of P nearest to each difficult one, by id, the nearest first (§C.2)."""
    def make():  # ours: mean-pooled hidden states, because any causal model has them
        model, tokenizer, *_ = common.load_4bit(args.embedder, "--embedder") if args.embedder else student()
        hard, all_of_p = (embed(model, tokenizer, [row["problem"] for row in rows], args.sample_batch) for rows in (difficult, pool))
        found = nearest(hard, all_of_p, k)
        return {row["id"]: [pool[i]["id"] for i in near] for row, near in zip(difficult, found, strict=True)}
    return run.step("5_nearest.json", make) if difficult else {}


def draw(args, run, teacher, student, pool: list[dict], profile, labels, difficult: list[dict]) -> None:
    """Stage 3: train_<arm>.jsonl for each arm, in chat form (§2.3, §B.2, §C.2).

    Every question that an arm draws is rewritten n_rewrites times, for all arms alike; a rewrite whose final answer is not the gold one is dropped.
    A question drawn k times weighs k. train and hard may have fewer pairs than the others, which have equally many.
    """
    k, by_id = args.questions_per_skill, {row["id"]: row for row in pool}
    skill_map = invert({row["id"]: labels.get(row["id"], []) for row in pool})
    if skill_map:
        print(f"  {len(skill_map)} skills, {sum(len(linked) < k for linked in skill_map.values())} of them with fewer than {k} questions: "
              "all of those are drawn, none twice at once")

    drawn = {}
    for arm in args.arms:
        if arm in ("augment", "hard"):
            drawn[arm] = [row["id"] for row in pool if arm == "augment" or (row["level"] or 0) >= 4]
        elif arm == "embed":
            drawn[arm] = list(itertools.chain(*retrieve(args, run, student, difficult, pool, k).values()))
        elif arm in ("stat", "shuffled"):
            source = profile if arm == "stat" else shuffle_profile(profile, skill_map, k, common.rng(args.seed, "shuffle"))
            drawn[arm] = draw_stat(source, skill_map, k, common.rng(args.seed, "draw", arm))
        if drawn.get(arm) == []:
            raise UserError(f"arm {arm}: no question of P to draw (difficult ones: {len(difficult)}, profile: {len(profile)}, levels 4 and 5 for "
                            "hard); take more questions, or leave the arm out")
    asked = set(itertools.chain(*drawn.values()))
    right, pairs = rewrite(args, run, teacher, [row for row in pool if row["id"] in asked]), {}
    for arm, ids in drawn.items():
        rows = [row for i in ids for row in right.get(i, [])]
        pairs[arm] = common.rng(args.seed, "pairs", arm).sample(rows, len(rows))
        if not rows:
            raise UserError(f"arm {arm}: none of its rewrites has the gold answer; read {run.path}/5_rewrites.jsonl, or take more questions")
    n = min([args.n_pairs, *(len(rows) for arm, rows in pairs.items() if arm != "hard")])
    if "train" in args.arms:
        pairs["train"] = [{"id": row["id"], "sample": None, "response": row["solution"]} for row in pool]
    for arm, rows in pairs.items():
        rows = run.step(f"train_{arm}.jsonl", lambda arm=arm, rows=rows: [
            {"id": row["id"], "sample": row["sample"],
             "messages": question(by_id[row["id"]]["problem"]) + [{"role": "assistant", "content": row["response"]}]}
            for row in (rows if arm == "train" else rows[:n])])
        print(f"  {arm}: {len(rows)} pairs of {len({row['id'] for row in rows})} questions, of {len(pairs[arm])} that it could have")


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


def main(args: Args) -> None:
    common.check_args(args, lr=1, temperature=100, warmup=1, lora_dropout=0.99, weight_decay=1, max_grad_norm=1e9, teacher_max_none=1,
                      teacher_timeout=1e9, tau1=1, tau2=1)
    common.template_head(args.chat_template_kwargs)  # refuses what is not JSON
    skills = read_lists(args.skills, "--skills", "subject") if args.skills else MATH_SKILLS
    skill_map = read_lists(args.skill_map, "--skill-map", "question id") if args.skill_map else {}
    for flag, name in (("--student", args.student), ("--adapter", args.adapter), ("--embedder", args.embedder if "embed" in args.arms else None),
                       ("--prm", args.prm if args.difficulty == "prm" or args.compare else None)):
        common.check_checkpoint(None if args.plan else name, flag)  # now, not after hours
    if not args.plan and (args.difficulty == "prm" or args.compare):
        check_prm(args.prm)
    questions = load_questions(args)
    pool, val, tests = questions.pool, questions.val, questions.sets["MATH"]
    if args.skill_map and not any(row["id"] in skill_map for row in pool):
        raise UserError(f"--skill-map {args.skill_map}: expected ids of questions of P, such as {pool[0]['id']!r}, came none; check the file")
    taught = set(args.arms) - {"base", "train"}
    targeted = bool(taught & {"stat", "shuffled"})
    if taught:
        for flag, rows in ((f"--data {args.data}", pool + tests), (f"--val {args.val}", val)):
            if unknown := {str(row["subject"]) for row in rows} - skills.keys():
                raise UserError(f"{flag}: subject {min(unknown)!r} is not in the skill list ({', '.join(skills)}); give a list by --skills")
        longest = ["(the student's response)"] + ["x" * 3 * args.max_new_tokens] * (len(val) - 1)  # the first is shown; three bytes count as a token
        to_label = (pool if targeted else []) + tests * args.label_test
        n_calls = common.open_teacher(args, write=False).plan({
            "3 label": [] if args.skill_map else requests(args, LABEL_PROMPT, to_label, skills),
            "4 diagnose, at most": requests(args, PROFILE_PROMPT, val, skills, longest) if targeted else [],
            "5 rewrite, at most": requests(args, REWRITE_PROMPT, pool, n=args.n_rewrites, temperature=1.0)}, show=args.plan)
    if args.plan:
        return
    run = common.open_run(args, args.out, HOW)
    common.check_questions(run, {"P": pool, "Q_val": val} | {f"test {name}": rows for name, rows in questions.sets.items()})
    teacher, labels, profile = common.open_teacher(args) if taught else None, {}, {}
    run.step("0_questions.jsonl", lambda: [
        {"id": row["id"], "part": part, "subject": row["subject"], "level": row["level"], "skills": own[row["id"]]}
        for part, rows in (("P", pool), ("Q_val", val), ("Q_test", tests)) for own in [own_skills(rows, skills)] for row in rows])
    if taught and n_calls and not (run.path / "2_graded.jsonl").exists():
        teacher.check()  # now, not after the student has answered for hours
    student = functools.cache(lambda: common.load_student(args.student, args.adapter, args.chat_template_kwargs))
    graded = grade(args, run, student, val, tests)
    hard = {row["id"] for row in graded if row["difficult"]}
    if taught and to_label:
        labels = label(args, run, teacher, to_label, skills)
    if targeted:
        profile = diagnose(args, run, teacher, val, graded, skills)
    draw(args, run, teacher, student, pool, profile, labels, [row for row in val if row["id"] in hard])

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
    show(tested, hard)
    run.write("result.json", {
        "method": "stat_sel", "removed": questions.removed, "teacher_totals": teacher.recorded if teacher else {},
        "arms": {arm: {name: [sum(bool(row["is_right"]) for row in rows if row["set"] == name), sum(row["set"] == name for row in rows)]
                       for name in questions.sets} for arm, rows in tested.items()}})  # right of answers
    print(f"{run.path}/result.json; more tables: python report.py {run.path}")


if __name__ == "__main__":
    common.cli(main, Args, __doc__)
