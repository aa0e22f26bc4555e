"""The answer scorer: extraction, equivalence, MATH against itself, edited pairs, hostile input, one process for the algebra."""

import asyncio
import doctest
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import common as scoring
from benchmarks import scorer as scorer_bench
from common import extract_answer, is_equiv, score

HERE = Path(scoring.__file__).parent
DATA = Path(os.environ.get("REAL_DATA", "/nonexistent"))
needs_math = pytest.mark.skipif(not (DATA / "math/test.jsonl").exists(), reason="MATH is not here: set REAL_DATA to its folder")
needs_pairs = pytest.mark.skipif(not (DATA / "scoring_dev.jsonl").exists(), reason="scoring_dev.jsonl is not here: set REAL_DATA")


@pytest.fixture(scope="module")
def math_rows():
    return [json.loads(line) for name in ("train", "test") for line in (DATA / f"math/{name}.jsonl").open(encoding="utf-8")]


def test_doctests():
    assert doctest.testmod(scoring).failed == 0 and doctest.testmod(scoring).attempted > 1


# --- Extraction -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text, answer",
    [
        (r"First \boxed{3} then \boxed{5}", "5"),
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{12}. As requested in \boxed{} form.", "12"),
        (r"Put the answer in \boxed{...}. It is \boxed{7}. That was \boxed{...}", "7"),
        (r"\boxed{7} wait, actually \boxed{\frac{3}{", "7"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed 5", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed5.", "5"),
        (r"\fbox{5}", "5"),
        (r"\\boxed{5}", "5"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\boxed{5}}", "5"),
        (r"\boxed{5}. The final answer is 9.", "5"),
        ("The final answer is $5$. I hope it is correct.", "5"),
        ("The answer is 3.5.", "3.5"),
        ("The answer is 3.5. Really.", "3.5"),
        ("Answer: 5", "5"),
        ("**Answer:** 5", "5"),
        ("**Final Answer**\n\n$\\frac{1}{2}$", r"\frac{1}{2}"),
        ("**Final Answer**: 12", "12"),
        ("Final Answer: The largest $n$ is 34.", "34"),
        ("So 3 * 4 = 12\n#### 1,234", "1,234"),
        ("#### Step 2\nAnswer: 7\n", "7"),
        ("The answer is 5.\nNo: the answer is 6, since x > 0.", "6"),
        ("Therefore the answer is (C).", "(C)"),
        (r"The answer is \(x = 2\).", "x = 2"),
        ("The answer is:\n\\[ 9 \\]", "9"),
        ("In 1998 there were 3 cats and 7 dogs.", None),
        ("", None),
        (r"\boxed{}", None),
        (r"\boxed{\frac{1}{", None),
        (None, None),
    ],
)
def test_extract(text, answer):
    assert extract_answer(text) == answer


def test_score_is_none_without_an_answer():
    assert score("I do not know.", "5") is None
    assert score(r"\boxed{\text{I do not know}}", "5") is False
    assert score(r"\boxed{\frac{10}{4}}", "2.5") is True
    assert score(r"\boxed{-2} \quad \text{and} \quad \boxed{1}.", "1, -2") is True
    assert score(r"\boxed{1}. Later on we also see that \boxed{2}", "1, 2") is False


# --- Equivalence ----------------------------------------------------------------------------------------------------------
SAME = r"""
1/2 ~ \frac12 ~ 0.5 ~ .50 ~ \dfrac{1}{2} ~ $\frac{1}{2}$ ~ \boxed{0.5} ~ x = 1/2 ~ ½ ~ \left(\frac{1}{2}\right)
1,234,567 ~ 1234567 ~ 1{,}234{,}567 ~ 1,\!234,\!567 ~ 1\,234\,567 ~ 1 234 567 ~ \$1,234,567.00
7/2 ~ 3\frac{1}{2} ~ 3 1/2 ~ 3.5 ~ 3½
1500 ~ 1.5 \times 10^3 ~ 1.5e3 ~ 1.5·10^{3}
\frac{1}{3} ~ 0.\overline{3} ~ 0.333333
-5 ~ −5 ~ - 5 ~ -5.
50 ~ 50\% ~ 50% ~ 50 percent
50\% ~ 1/2
45 ~ 45^\circ ~ 45° ~ 45^{\circ} ~ 45 \text{ degrees}
15 ~ 15 \text{ cm}^2 ~ 15\mbox{ cm}^2 ~ 15 cm ~ 15 \text{ ways.}
60 \text{ mph} ~ 60 \text{ miles per hour} ~ 60
(C) ~ C ~ \text{(C)} ~ \textbf{(C)}\ 12 ~ c
\text{Evelyn} ~ evelyn ~ \textbf{Evelyn}.
\text{an ellipse} ~ ellipse
four ~ 4
1,2,3 ~ 3, 2, 1 ~ \{2, 1, 3\} ~ 1, 2 \text{ and } 3 ~ x = 1, x = 2, x = 3 ~ \{3,2,1\}
(1,2) ~ (1.0, \frac{4}{2}) ~ \left( 1, 2 \right) ~ (x,y) = (1,2) ~ \begin{pmatrix} 1 \\ 2 \end{pmatrix} ~ \langle 1,2 \rangle
(1,2),(3,4) ~ (3,4), (1,2)
[2, 5) ~ 2 \le x < 5 ~ 5 > x \geq 2 ~ x \in [2,5)
(-\infty, 3] ~ x \leq 3 ~ 3 ≥ x ~ x∈(-∞,3]
(-\infty,-1) \cup (1,\infty) ~ x < -1 \text{ or } x > 1 ~ (1, \infty)∪(-\infty,-1)
x \ne 3 ~ (-\infty,3)\cup(3,\infty) ~ \mathbb{R} \setminus \{3\}
\text{all real numbers} ~ (-\infty,\infty) ~ ℝ
1 \pm \sqrt{2} ~ 1+\sqrt2, 1-\sqrt2 ~ \{1-√2, 1+√2\}
\begin{pmatrix} \frac12 & 0 \\ 0 & 1 \end{pmatrix} ~ \begin{bmatrix}0.5&0\\0&1\end{bmatrix} ~ \frac12\begin{pmatrix}1&0\\0&2\end{pmatrix}
204_5 ~ 204_{5} ~ 204_{\text{five}} ~ (204)_5
10:30 ~ 10:30 \text{ a.m.}
3:4 ~ 3 : 4
2\sqrt{3} ~ \sqrt{12} ~ 2√3 ~ \frac{6}{\sqrt{3}} ~ 2\cdot 3^{1/2} ~ \sqrt3 * 2
(x+1)^2 ~ x^2+2x+1 ~ 1 + 2*x + x²
30p\sqrt{p} ~ 30\sqrt{p^3}
y = 2x+3 ~ 2x - y + 3 = 0 ~ 2x+3
x^2+y^2=4 ~ 4 = y^2+x^2 ~ 3x^2+3y^2-12=0
f(2) < f(1) ~ f(1) > f(2)
\sin 30^\circ ~ 1/2 ~ \cos\frac{\pi}{3}
i ~ \sqrt{-1}
1000! ~ 1000 \cdot 999!
"""
DIFFERENT = r"""
0.333 ~ 1/3
3.14159265 ~ \pi
1.2857142857 ~ \frac{9}{7}
0.123456 ~ 0.1234564
0.0000001 ~ 0.0000002
861_{12} ~ 861_{13}
101_2 ~ 101
(1,2) ~ (2,1)
(1,2) ~ \{1,2\}
[1,2) ~ (1,2)
[1,2] ~ (1,2)
5 ~ 500\%
5 \text{ cm} ~ 5 \text{ m}
4:30 \text{ p.m.} ~ 4:30 \text{ a.m.}
10:30 ~ \frac13
abc ~ cab
x ~ X
e ~ E
x ~ y
\sqrt{x^2} ~ x
\sqrt[3]{7} ~ \sqrt{7}
11/2 ~ 1 1/2
1,000 ~ 1, 0
32, 349 ~ 32349
\pm 3 ~ 3
7 = 11a+c ~ 11a+c
a^2 + b = 0 ~ 0
x < 1 ~ x > -1
x < 1 ~ x \le 1
x = 1 ~ y = 1
\frac{1}{2004!} ~ \frac{1}{2006!}
2^{99} ~ 2^{98}
\text{odd} ~ \text{oddd}
\text{east} ~ \text{west}
\begin{pmatrix}1&2\\3&4\end{pmatrix} ~ \begin{vmatrix}1&2\\3&4\end{vmatrix}
\emptyset ~ 0
5 ~ five hundred
12345678901234567890 ~ 12345678901234567891
"""


@pytest.mark.parametrize("line", SAME.strip().splitlines())
def test_same(line):
    first, *others = line.split(" ~ ")
    assert [x for x in others if not (is_equiv(x, first) and is_equiv(first, x))] == []


@pytest.mark.parametrize("line", DIFFERENT.strip().splitlines())
def test_different(line):
    a, b = line.split(" ~ ")
    assert not is_equiv(a, b) and not is_equiv(b, a)


@pytest.mark.parametrize(
    "a, b", [("", ""), ("5", ""), ("$$", "."), (None, "5"), ("5", None), (5, "5"), (["5"], "5"), (float("nan"), "nan")]
)
def test_nothing_equals_nothing(a, b):
    assert is_equiv(a, b) is False


# --- Real data ------------------------------------------------------------------------------------------------------------
@needs_math
def test_every_math_answer_equals_itself(math_rows):
    rows = [row for row in math_rows if row["answer"]]
    assert len(rows) > 12_000
    wrong = [row["id"] for row in rows if score(row["solution"], row["answer"]) is not True]
    boxed = [row["id"] for row in rows if score(rf"\boxed{{{row['answer']}}}", row["answer"]) is not True]
    assert wrong == boxed == []


@needs_pairs
def test_pairs_decided_by_other_graders():
    rows = [json.loads(line) for line in (DATA / "scoring_dev.jsonl").open(encoding="utf-8")]
    rows = [row for row in rows if row["tier"] == "core" and "needs_extraction" not in row["tags"] and row["gold"] != row["pred"]]
    wrong = [(row["expected"], row["gold"], row["pred"]) for row in rows if is_equiv(row["pred"], row["gold"]) is not row["expected"]]
    assert len(rows) > 200
    assert [w for w in wrong if not w[0]] == [] and len(wrong) <= 3


@needs_math
def test_edited_math_answers(math_rows):
    rows = scorer_bench.make_pairs([row["answer"] for row in math_rows], seed=1, per_kind=12)
    verdicts = [(same, is_equiv(pred, gold), kind, gold, pred) for kind, gold, pred, same in rows]
    rejected = [v for v in verdicts if v[0] and not v[1]]
    accepted = [v for v in verdicts if not v[0] and v[1]]
    assert sum(v[0] for v in verdicts) > 400 and sum(not v[0] for v in verdicts) > 300
    assert len(rejected) <= 0.02 * sum(v[0] for v in verdicts), rejected
    assert len(accepted) <= 0.005 * sum(not v[0] for v in verdicts), accepted
    assert all(is_equiv(gold, pred) is verdict for _, verdict, _, gold, pred in verdicts)


def test_edits_work_without_data():
    rows = scorer_bench.make_pairs(
        [r"\frac{1}{2}", "(1,2]", "12", "x^2+x", r"\text{odd}", r"\text{even}", r"2\sqrt{3} + x", "7"], per_kind=2
    )
    kinds = {kind for kind, *_ in rows}
    assert {"frac_decimal", "interval_inequality", "digit", "bracket_type", "polynomial_factored"} <= kinds
    assert [row for row in rows if is_equiv(row[2], row[1]) is not row[3]] == []


# --- Hostile input --------------------------------------------------------------------------------------------------------
REPEATED = (
    r"""( ) [ ] { } \ \{ $ ^ _ , ; = < x= a 9 - + . ½ √ ² \frac \sqrt \frac{ \boxed{ \text{ \left( \pm \cup \begin{pmatrix}
() (, ! € 1, 1,000 😀 % ° \% : | ' " * ` ~ & and; or; \\ 1/ x^ \in""".split()
    + ["1 ", "a b ", "is ", " and ", "\n", "\t", " ", "\ud800", "\x00"]
)
HOSTILE = r"""
9^{9^{9^9}} ~ 9^9^9^9 ~ 9^9^9 ~ 7^{123456789} ~ 10!!!! ~ (10!)! ~ 1000000! ~ \binom{10^8}{5*10^7} ~ 10^{10^{10}} ~ 10^{-10^{10}} ~ 9^{99999}
2^{2^{2^{2^{2^{2}}}}} ~ 99999^{99999} ~ \sqrt{9^{9^{9}}} ~ e^{e^{e^{e^{10}}}} ~ 1e999999999 ~ 1e-999999999 ~ 1e5e5 ~ x^{x^{x^{x}}} ~ a^b^c^d
\sum_{k=1}^{10000000} \frac{1}{k^2+k+1} ~ \sum_{k=1}^{\infty} \frac{1}{k^3+k} ~ \prod_{k=1}^{1000000} k
\int_0^1 x^x dx ~ \int e^{x^2} \sin(x^3) dx ~ \lim_{x \to 0} \frac{\sin x^x}{x^{\sin x}} ~ \frac{1}{(x+1)^{300}-(x+2)^{300}} ~ x^{9999}
(x+1)^{500}(x+2)^{500} ~ (a+b+c+d)^{400} ~ (x+y+z)^{99}-(x+y)^{99} ~ 1/0 ~ \frac{1}{0} ~ 0/0 ~ \frac{0}{0} ~ nan ~ inf ~ - ~ + ~ x= ~ = ~ =5
() ~ [] ~ {} ~ \{\} ~ , ~ (,) ~ a=b=c=d ~ \ ~ [[1,2],[3 ~ \frac{\frac{\frac{1}{2}}{3}} ~ \begin{pmatrix}1&2\\3\end{pmatrix}
\end{pmatrix} ~ 1_{99999} ~ _ ~ ^ ~ a_b_c_d ~ ５ ~ 𝟓 ~ ٣ ~ 1/2/3/4/5 ~ --5 ~ +-5 ~ 5.. ~ 0x1F
__import__('os').system('true') ~ \input{x} ~ lambda: 0 ~ \log_{0}{1}
\sqrt[0]{5} ~ <<<>>> ~ \pm\pm\pm\pm\pm\pm5 ~ \u202e5 ~ 5% % ~ $$$$ ~ \boxed{\boxed{}} ~ \text{\text{\text{\text{5}}}}
1:2:3:4:5:6 ~ (A)(B)(C)(D) ~ \sum_{i=1}^{999}\sum_{j=1}^{999} i^j
"""


def hostile() -> list[str]:
    cases = [case for line in HOSTILE.strip().splitlines() for case in line.split(" ~ ")]
    cases += [unit * (n // len(unit)) for unit in REPEATED for n in (100_000, 200)]
    cases += [",".join(f"{i}{end}" for i in range(n)) for n in (100, 3000) for end in ("", "/7", "x", r"\sqrt2")]
    cases += [f"{o * 99}1{c * 99}" for o, c in ("()", "[]", "{}", "||", (r"\{", r"\}"), (r"\sqrt{", "}"), (r"\frac{1}{1+", "}"))]
    cases += ["1" * 599, "x" * 599, "(" * 250 + "x" + ")" * 250, "*".join(["(x+1)"] * 80)]
    return cases + ["+".join(f"x^{{{i}}}" for i in range(60)), "+".join(rf"\sqrt{{{i}}}" for i in range(2, 40))]


def test_hostile_input_is_answered_in_time():
    cases, slow, start = hostile(), [], time.monotonic()
    assert len(cases) >= 200
    is_equiv("x+1", "1+x")  # the algebra's process is up
    for text in cases:
        for gold in ("x+1", "5"):
            begin = time.monotonic()
            if not ("x+1" == gold == text or text == "5" == gold):
                assert is_equiv(text, gold) is is_equiv(gold, text)
            took = (time.monotonic() - begin) / 2  # two calls
            slow += [(took, text[:50], gold)] if took > 2 else []
    assert slow == []
    assert is_equiv("x+2", "2+x") and time.monotonic() - start < 60


@pytest.mark.parametrize(
    "unit",
    [r"\boxed{", "{", "}", r"\boxed{}", r"\boxed ", "\\", "$", r"\[", "answer is ", "Answer: ", "#### ", "answer *", "####   \n", " ", "a"],
)
def test_extraction_takes_linear_time(unit):
    text, begin = unit * (1_000_000 // len(unit)), time.monotonic()
    extract_answer(text)
    score(text + r" \boxed{5}", "5")
    assert time.monotonic() - begin < 4


# --- The one process for the algebra --------------------------------------------------------------------------------------
HARD, EASY = ("(x+y+z)^{99}-(x+y)^{99}", "x+1"), ("(x+1)(x+2)", "x^2+3x+2")


def fresh(i: int) -> tuple[str, str]:
    return f"(x+{i})(x+1)", f"x^2+{i + 1}x+{i}"  # not yet remembered


def test_a_hung_question_is_killed_and_the_next_one_answered():
    begin = time.monotonic()
    assert not is_equiv(r"\sum_{k=1}^{9999} \frac{1}{k^3+k+17}", r"\prod_{k=1}^{9999} (k^2+1)")
    assert time.monotonic() - begin < 2
    assert is_equiv(*fresh(31))


def test_a_killed_worker_is_replaced():
    assert is_equiv(*fresh(32))
    scoring._workers[os.getpid()]["process"].kill()
    scoring._workers[os.getpid()]["process"].wait()
    assert is_equiv(*fresh(33))


def test_threads_share_it():
    verdicts = {}
    threads = [
        threading.Thread(target=lambda i=i: verdicts.update({i: is_equiv(*fresh(i)) and not is_equiv(fresh(i)[0], "x^2")}))
        for i in range(100, 116)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(verdicts) == 16 and all(verdicts.values())
    assert len(scoring._workers) == 1


def test_inside_asyncio():
    async def both():
        return is_equiv(*fresh(41)), await asyncio.to_thread(is_equiv, *fresh(42))

    assert asyncio.run(both()) == (True, True)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_a_forked_child_starts_its_own():
    assert is_equiv(*fresh(51))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(is_equiv, [fresh(i) for i in range(52, 60)]) == [True] * 8
    assert is_equiv(*fresh(60))


def test_works_from_dash_c_and_dies_with_its_parent():
    code = (
        "import sys, common as scoring; assert 'torch' not in sys.modules and 'sympy' not in sys.modules;"
        "assert scoring.is_equiv('(x+1)(x+2)', 'x^2+3x+2'); import os; print(scoring._workers[os.getpid()]['process'].pid)"
    )
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    pid = int(subprocess.run([sys.executable, "-c", code], env=env, cwd="/", capture_output=True, text=True, check=True, timeout=30).stdout)
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
            return
        time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
