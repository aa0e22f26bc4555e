"""Loading: the real sets where REAL_DATA has them, the layouts on the Hub as small files, and every refusal."""

import gzip
import io
import json
import math
import os
import random
import re
from pathlib import Path

import pytest

import common
from common import HUB, UserError, digest, load, plain, rng, torch_seed, without

REAL_DATA = os.environ.get("REAL_DATA", "")
real = pytest.mark.skipif(not REAL_DATA, reason="REAL_DATA names no folder with the real sets")
KEYS = {"id", "problem", "solution", "answer", "subject", "level", "skills"}
ROW = {"problem": "1+1?", "solution": "So \\boxed{2}.", "answer": "2", "level": "Level 1", "subject": "Algebra"}


def write(path: Path, *rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def one(tmp_path, **row) -> dict:
    return load(write(tmp_path / "x.jsonl", row))[0]


def made_id(stem: str, text: str, n: int = 1) -> str:
    return f"{stem}/{digest([text, n])}"


def load_real(name: str, split: str) -> list[dict]:
    return load(f"{REAL_DATA}/{name}", split)


def refusal(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        load(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- Real files. ---
@real
@pytest.mark.parametrize(
    "name, split, n",
    [
        ("math", "train", 7500),
        ("math", "test", 5000),
        ("gsm8k", "train", 7473),
        ("gsm8k", "test", 1319),
        ("amc23", "test", 40),
        ("aime24", "test", 30),
        ("math_perturb/simple.jsonl", "test", 279),
        ("math_perturb/hard.jsonl", "test", 279),
        ("svamp", "test", 1000),
        ("asdiv", "train", 1300),
        ("asdiv", "test", 848),
    ],
)
def test_real_sets(name, split, n):
    rows = load_real(name, split)
    assert len(rows) == n == len({row["id"] for row in rows})
    assert all(set(row) == KEYS and row["problem"].strip() for row in rows)
    empty = {row["id"] for row in rows if not row["answer"].strip()}
    assert empty == ({"train/7327", "train/7477"} if (name, split) == ("math", "train") else set())
    assert all(row["answer"] == row["answer"].strip() for row in rows if name == "gsm8k")
    if name in ("amc23", "aime24", "gsm8k"):
        assert all(re.fullmatch(r"-?\d+(\.\d+)?", row["answer"]) for row in rows)
    if name == "math":
        assert sum(row["level"] is None for row in rows) == (2 if split == "train" else 0)  # "Level ?"
        assert {row["level"] for row in rows} <= {None, 1, 2, 3, 4, 5}
        assert all(row["skills"] is None or row["skills"] for row in rows) and len({row["subject"] for row in rows}) == 7


@real
def test_real_gsm8k_solutions_carry_no_marks_and_end_in_the_box():
    for row in load_real("gsm8k", "train"):
        assert not re.search(r"<<|>>|####", row["solution"])
        assert row["solution"].endswith(f"\\boxed{{{row['answer']}}}$.") and "," not in row["answer"]


@real
def test_real_math_without_answers_gives_the_same_answers(tmp_path):
    """The Hub's MATH has no answer field: the last box of the solution must give back what the local file holds."""
    lines = [json.loads(line) for line in Path(REAL_DATA, "math/train.jsonl").read_bytes().splitlines()]
    bare = [{"problem": r["problem"], "level": r["level"], "type": r["subject"], "solution": r["solution"]} for r in lines]
    hub, local = load(write(tmp_path / "x.jsonl", *bare)), load_real("math", "train")
    assert [(a["subject"], a["level"]) for a in hub] == [(b["subject"], b["level"]) for b in local]
    two_parts = [a["answer"] for a, b in zip(hub, local, strict=True) if a["answer"] != b["answer"].strip()]
    assert len(two_parts) == 9 and all("," in answer for answer in two_parts)  # of several boxes the local file has the last
    assert [i for i, a in enumerate(hub) if not a["answer"]] == [7327, 7477]


@real
def test_real_paths_and_folders_agree():
    folder = load(f"{REAL_DATA}/math", "test")
    assert folder == load(f"{REAL_DATA}/math/test.jsonl", "ignored")


# --- Row layouts. ---
def test_gsm8k(tmp_path):
    answer = "She sells 500*2=<<500*2=1000>>1000 eggs,\nso $<<1000+234=1234>>1,234.\n#### 1,234"
    row = one(tmp_path, question="How many?", answer=answer)
    solution = "She sells 500*2=1000 eggs,\nso $1,234.\nThe answer is $\\boxed{1234}$."
    rest = {"subject": None, "level": None, "skills": None}
    assert row == {"id": made_id("x", "How many?"), "problem": "How many?", "solution": solution, "answer": "1234", **rest}


@pytest.mark.parametrize(
    "answer, text", [(27.0, "27"), (0.25, "0.25"), (-3, "-3"), (0, "0"), ("\\frac12", "\\frac12"), ("", ""), (12.3, "12.3"), ("# 7", "# 7")]
)
def test_answers(tmp_path, answer, text):
    assert one(tmp_path, problem="p", answer=answer)["answer"] == text


@pytest.mark.parametrize("level, number", [
    ("Level 3", 3), (5, 5), (5.0, 5), ("4", 4), ("Level ?", None), (None, None), (math.nan, None), (-math.inf, None)])
def test_levels(tmp_path, level, number):
    assert one(tmp_path, **ROW | {"level": level})["level"] == number


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"id": 0}, "0"),
        ({"id": "a", "unique_id": "b"}, "a"),
        ({"problem_id": 17}, "17"),
        ({"unique_id": "test/algebra/1.json"}, "test/algebra/1.json"),
        ({"id": 17.0}, "17"),
        ({"id": None}, made_id("x", ROW["problem"])),
        ({"id": math.nan, "unique_id": "b"}, "b"),
        ({}, made_id("x", ROW["problem"])),
    ],
)
def test_ids(tmp_path, given, expected):
    assert one(tmp_path, **ROW | given)["id"] == expected


def test_box_of_the_solution(tmp_path):
    bare = {"problem": "p", "type": "Geometry", "level": "Level 2"}
    half, empty = "not \\boxed{} nor \\boxed{1} but \\boxed{\\frac{1}{2}}", "so the answer is $\\boxed{}$."
    path = write(tmp_path / "x.jsonl", bare | {"solution": half}, bare | {"solution": empty})
    assert [(row["answer"], row["subject"]) for row in load(path)] == [("\\frac{1}{2}", "Geometry"), ("", "Geometry")]


def test_blank_lines_byte_order_mark_and_line_separator(tmp_path):
    path = tmp_path / "x.jsonl"
    line = json.dumps(ROW | {"problem": "a\u2028b τ"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n\r\n" + line.encode())
    made = made_id("x", "a\u2028b τ")
    assert [(row["id"], row["problem"]) for row in load(str(path))] == [(made, "a\u2028b τ"), (made_id("x", "a\u2028b τ", 2), "a\u2028b τ")]


def test_ids_follow_the_text_not_the_position(tmp_path):
    rows = [{"problem": f"p {i % 7}", "answer": str(i % 7)} for i in range(10)]
    first = load(write(tmp_path / "x.jsonl", *rows))
    again = load(write(tmp_path / "x.jsonl", *rows[::-1]))
    assert len({row["id"] for row in first}) == 10 and {row["id"] for row in first} == {row["id"] for row in again}
    assert {row["id"]: row["problem"] for row in first} == {row["id"]: row["problem"] for row in again}
    assert first[7]["id"] == made_id("x", "p 0", 2)
    other = load(write(tmp_path / "x.jsonl", rows[0] | {"problem": "p  0"}))  # other spacing is another text
    assert other[0]["id"] not in {row["id"] for row in first}


def test_a_list_or_lines_whatever_the_ending(tmp_path):
    lines, whole = "\n".join(json.dumps(ROW | {"id": i}) for i in "ab"), json.dumps([ROW | {"id": i} for i in "ab"], indent=1)
    for n, text in enumerate((lines, whole, "\n " + whole, "\ufeff" + whole)):
        for ending in ("json", "jsonl"):
            (tmp_path / f"{n}.{ending}").write_text(text, encoding="utf-8")
            assert [row["id"] for row in load(str(tmp_path / f"{n}.{ending}"))] == ["a", "b"]


def test_csv_parquet_and_gz_by_datasets(tmp_path, monkeypatch):
    import datasets
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [ROW | {"level": 5, "answer": "1/2"}, ROW | {"problem": "q", "level": None, "answer": "27"}]
    table = datasets.Dataset.from_list(rows)
    (tmp_path / "folder").mkdir()
    table.to_csv(str(tmp_path / "x.csv"))
    table.to_parquet(str(tmp_path / "folder/test.parquet"))
    for packed in ("x.csv", "y.jsonl"):
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        text = (tmp_path / packed).read_bytes() if packed == "x.csv" else lines
        (tmp_path / f"{packed}.gz").write_bytes(gzip.compress(text))
    for path in ("x.csv", "folder", "x.csv.gz", "y.jsonl.gz"):
        found = load(str(tmp_path / path))
        assert [(row["problem"], row["level"], row["answer"]) for row in found] == [("1+1?", 5, "1/2"), ("q", None, "27")], path
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    assert "bad.parquet" in refusal(str(tmp_path / "bad.parquet"))


def test_what_the_student_would_not_see_is_joined_or_refused(tmp_path):
    body = {"Body": "Each pack costs 76.", "Question": "What do two cost?", "Answer": "152.0", "Type": "Multiplication"}
    row = one(tmp_path, **body)
    assert row["problem"] == "Each pack costs 76. What do two cost?" and row["subject"] == "Multiplication"
    for hidden in ({"A": "1", "B": "2"}, {"option_a": "1"}):
        name = next(iter(hidden)).casefold()
        assert f"field '{name}'" in refusal(write(tmp_path / "x.jsonl", {"question": "q", "answer": "B"} | hidden))
    assert one(tmp_path, **ROW | {"options": None, "choices": []})["answer"] == "2"


SHOWN = "q?\n(A) True\n(B) False\nGive the letter or number of the right option."


@pytest.mark.parametrize("raw, problem, answer", [
    ({"context": "c.", "options": ["A) True", "B) False"], "answer": "B"}, "c. " + SHOWN, "B"),  # ProntoQA
    ({"choices": {"text": ["True", "False"], "label": ["A", "B"]}, "answerKey": "A"}, SHOWN, "A"),  # ARC
    ({"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"}, SHOWN.replace("(A) True\n(B) False", "(1) x\n(2) y"), "1"),
    ({"choices": ["True", "False"], "answer": 1}, SHOWN, "B"),  # MMLU
    ({"options": ["True", "False"], "answer": "False"}, SHOWN, "B")])
def test_options_stand_in_the_problem(tmp_path, raw, problem, answer):
    row = one(tmp_path, question="q?", **raw)
    assert (row["problem"], row["answer"]) == (problem, answer)
    assert common.score(f"It is so: \\boxed{{\\text{{({answer})}}}}", answer) is True and common.score("\\boxed{C}", answer) is False


@pytest.mark.parametrize("raw, word", [
    ({"options": ["A)1", "B)2"], "answer": "C"}, "one of A, B"), ({"choices": {"text": ["1"], "label": ["A", "B"]}, "answer": "A"}, "options"),
    ({"options": [1, 2], "answer": "A"}, "options"),
    ({"choices": {"text": ["1"]}, "answer": "D"}, "one of A"), ({"options": "A or B", "answer": "A"}, "options")])
def test_options_that_do_not_fit_are_refused(tmp_path, raw, word):
    assert word in refusal(write(tmp_path / "x.jsonl", {"question": "q"} | raw))


def test_bbh_is_read_as_it_is_published(real_data):
    for name, answers in (("boolean_expressions", {"True", "False"}), ("web_of_lies", {"Yes", "No"})):
        rows = common.load(str(real_data / "bbh" / f"{name}.json"))
        assert len(rows) == 250 and {row["answer"] for row in rows} == answers
        assert all(common.score(f"So \\boxed{{{a}}}.", row["answer"]) is (a == row["answer"]) for row in rows[:20] for a in answers)


def test_examples_in_one_object_are_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"canary": "c", "examples": [{"input": "not ( True ) is", "target": "False"}]}))
    assert [(row["problem"], row["answer"]) for row in common.load(str(path))] == [("not ( True ) is", "False")]


@pytest.mark.parametrize("answer", [math.nan, math.inf, -math.inf, None])
def test_an_answer_that_is_no_number_is_missing(tmp_path, answer):
    assert "'answer'" in refusal(write(tmp_path / "x.jsonl", {"problem": "p", "answer": answer}))
    assert one(tmp_path, problem="p", solution="\\boxed{3}", answer=answer)["answer"] == "3"


# --- Refusals: each one sentence that names file, line and field. ---
@pytest.mark.parametrize(
    "second, words",
    [
        ({"problem": "q"}, ["'answer'"]),
        ({"answer": "2"}, ["'problem'", "None"]),
        (ROW | {"problem": "  "}, ["'problem'"]),
        (ROW | {"problem": 5}, ["problem", "5"]),
        (ROW | {"answer": ["2"]}, ["'answer'", "['2']"]),
        (ROW | {"answer": True}, ["'answer'", "True"]),
        (ROW | {"level": "hard"}, ["'level'", "'Level 3'", "hard"]),
        (ROW | {"level": 2.5}, ["'level'", "2.5"]),
        (ROW | {"skills": "adding"}, ["'skills'", "adding"]),
        (ROW | {"skills": ["adding", 3]}, ["'skills'"]),
        (ROW | {"problem": "q", "id": made_id("x", ROW["problem"])}, ["'id'", made_id("x", ROW["problem"]), "unique"]),
        ({"problem": "p", "solution": "no box"}, ["'answer'", "boxed"]),
        ('{"problem": "p", ', ["JSON"]),
        ("[1, 2]", ["JSON object"]),
        ("7", ["JSON object"]),
    ],
)
def test_bad_lines(tmp_path, second, words):
    message = refusal(write(tmp_path / "x.jsonl", ROW, second))
    assert all(word in message for word in ["x.jsonl row 2", *words]), message


def test_bad_files(tmp_path):
    assert "at least one question" in refusal(write(tmp_path / "empty.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(ROW).encode() + b'\n{"problem": "caf\xe9", "answer": "1"}\n')
    assert "latin.jsonl row 2" in refusal(str(tmp_path / "latin.jsonl"))
    write(tmp_path / "folder/train.jsonl", ROW)
    assert "test.jsonl" in refusal(str(tmp_path / "folder"), "test")
    assert len(load(str(tmp_path / "folder"), "train")) == 1
    (tmp_path / "dir.jsonl").mkdir()
    assert "dir.jsonl/test.jsonl" in refusal(str(tmp_path / "dir.jsonl"))
    message = refusal("mathh")
    assert "mathh" in message and "math_perturb_hard" in message


# --- The Hub: its answers stand in small files, everything else is the real datasets library. ---
@pytest.fixture
def hub(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    real_load, answers, asked = datasets.load_dataset, {}, []

    def fake(path, name=None, split=None, data_files=None, revision=None):
        asked.append((path, name, split, revision))
        if (path, split) not in answers:
            raise datasets.exceptions.DatasetNotFoundError(f"{path} is not here")
        rows = answers[path, split]
        path = write(tmp_path / f"hub{len(asked)}.jsonl", *(rows[name] if isinstance(rows, dict) else rows))
        return real_load("json", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))

    def fake_open(address, timeout):
        asked.append((address,))
        if (address, "test") not in answers:
            raise OSError("no network")
        return io.BytesIO("".join(json.dumps(row) + "\n" for row in answers[address, "test"]).encode())

    monkeypatch.setattr(common.urllib.request, "urlopen", fake_open)
    monkeypatch.setattr(datasets, "load_dataset", fake)
    return answers, asked


def test_hub_math_joins_the_seven_subjects(hub, capsys):
    answers, asked = hub
    address, _, revision, *subjects = HUB["math"][0].split()
    row = {"problem": "p", "level": "Level ?", "solution": "\\boxed{3}"}
    answers[address, "train"] = {subject: [row | {"type": subject}] * 2 for subject in subjects}
    rows = load("math", "train")
    assert len(set(subjects)) == 7 and [row["subject"] for row in rows] == [subject for subject in subjects for _ in "12"]
    assert (rows[13]["id"], rows[13]["answer"], rows[13]["level"]) == (made_id("math-train", "p", 14), "3", None)
    assert f"14 rows from {address}, revision {revision}" in capsys.readouterr().out
    assert len(asked) == 7 and {revision for *_, revision in asked} == {revision} and len(revision) == 40


def test_hub_next_candidate(hub, capsys):
    answers, asked = hub
    answers["DigitalLearningGmbH/MATH-lighteval", "test"] = [ROW]
    assert load("math", "test")[0]["answer"] == "2"
    out, err = capsys.readouterr()
    assert "1 rows from DigitalLearningGmbH/MATH-lighteval, revision main\n" in out
    assert "EleutherAI/hendrycks_math row 0: expected a JSON object, but: EleutherAI/hendrycks_math is not here" in err
    assert [a[0] for a in asked] == ["EleutherAI/hendrycks_math", "DigitalLearningGmbH/MATH-lighteval"]


@pytest.mark.parametrize(
    "name, address, split, row, answer",
    [
        ("gsm8k", "openai/gsm8k", "train", {"question": "q", "answer": "text\n#### 5"}, "5"),
        ("gsm8k", "openai/gsm8k", "test", {"question": "q", "answer": "text\n#### -5"}, "-5"),
        ("math500", "HuggingFaceH4/MATH-500", "test", ROW | {"level": 3, "unique_id": "test/a/1.json"}, "2"),
        ("amc23", "math-ai/amc23", "test", {"id": 0, "question": "q", "answer": "27", "url": "u"}, "27"),
        ("amc23", "zwhe99/amc23", "test", {"id": 0, "question": "q", "answer": 27.0}, "27"),
        ("aime24", "math-ai/aime24", "test", {"id": 60, "problem": "p", "solution": "\\boxed{204}"}, "204"),
        ("aime25", "yentinglin/aime_2025", "train", {"id": "0", "problem": "p", "answer": "70", "solution": "s"}, "70"),
        ("aime24", "HuggingFaceH4/aime_2024", "train", {"id": 60, "problem": "p", "solution": "s", "answer": "204", "year": "2024"}, "204"),
        ("aime25", "math-ai/aime25", "test", {"id": "0", "problem": "p", "answer": "70"}, "70"),
        ("svamp", "ChilleD/SVAMP", "test", {"ID": "chal-1", "Body": "B.", "Question": "q", "Equation": "e", "Answer": "51", "Type": "S"}, "51"),
        ("math_squared", "veds12/math-squared", "train", {"Question": "q", "Answer": "3"}, "3"),
        ("math_perturb_hard", HUB["math_perturb_hard"][0].split()[0], "test", {"problem_id": 1, "problem": "p", "answer": 36, "type": "T"}, "36"),
    ],
)
def test_hub_layouts(hub, name, address, split, row, answer):
    answers, _ = hub
    answers[address, split] = [row]
    wanted = "train" if (name, split) == ("gsm8k", "train") else "test"  # some keep their only questions in a split called train
    (loaded,) = load(name, wanted)
    assert set(loaded) == KEYS and loaded["answer"] == answer and loaded["problem"] in (row.get("problem", row.get("question")), "q", "B. q")


def test_hub_fails(hub, capsys):
    _, asked = hub
    for name, lines in HUB.items():
        asked.clear()
        message, printed = refusal(name), capsys.readouterr().err
        assert name in message and "local path" in message and len(asked) == len(lines) == printed.count("\n")
        assert all(line.split()[0] in printed for line in lines)
    assert "'train'" in refusal("aime24", "train") and "'validation'" in refusal("math", "validation")


# --- Seeds. ---
def test_seeds_belong_to_their_step():
    assert rng(0, "a").random() == rng(0, "a").random()
    seeds = {torch_seed(seed, *names) for seed in range(50) for names in ([], ["a"], ["b"], ["a", "b"], ["ab"], ["b", "a"])}
    assert len(seeds) == 300 and 0 <= min(seeds) and max(seeds) < 2**32
    state = random.getstate()
    rng(0, "a").random()
    assert random.getstate() == state


# --- Comparing questions. ---
def test_questions_are_the_same_but_for_case_spacing_and_stops():
    rows = [{"problem": text} for text in ("Find  $12+3$.", "Find 12*3", "Find 1.5", "Find 15", "Find 12 + 3, please!", "Find |12+3|", "Find 1(2+3)")]
    assert without(rows, [{"problem": "find {12} + 3"}, {"problem": "FIND 15?"}]) == [*rows[1:3], *rows[4:]]
    assert without(rows, []) == rows


@pytest.mark.parametrize("spellings", [
    ["$x+1$", "\\(x+1\\)", "\\[x+1\\]", "$$x + 1$$", "x\\,+\\;1", "{x}+{1}", "X+1."],
    ["\\frac{1}{2}", "\\dfrac12", "\\tfrac 1 2", "\\frac1{2}", "1/2", "½"], ["3\\frac12", "3½", "3 1/2"],
    ["\\frac{x+1}{2}", "\\dfrac{x+1}2"], ["\\frac{54317}{80000}", "54317/80000", "\\dfrac{54{,}317}{80\\,000}"],
    ["\\left(x\\right)", "\\bigl(x\\bigr)", "(x)"], ["1{,}000", "1,\\!000", "1,000", "1\\,000", "1000"], [".5", "0.5"],
    ["x^2", "x^{2}", "x²"], ["\\log_8 2", "\\log_82", "\\log_{8}2"], ["3 - 2", "3−2"], ["3\\times 2", "3×2"],
    ["3\\cdot 2", "3·2", "3*2"], ["x\\le 1", "x\\leq1", "x ≤ 1", "x<=1"], ["x\\neq y", "x≠y"], ["\\sqrt{2}", "\\sqrt2", "√2"],
    ["5\\text{ cm}", "5\\mbox{ cm}", "5 cm"], ["\\mathop{\\text{lcm}}(2)", "\\mathop{\\mathrm{lcm}}(2)"], ["\\pi r", "πr"],
    ["90^\\circ", "90^{\\circ}", "90°"], ["\\{1,2\\}", "\\left\\{ 1, 2 \\right\\}"], ["14{,}9AB", "14,9AB"],
    ["1,\\ldots,n", "1, \\dots, n", "1, …, n"],
    ["\\mathbb{R}", "ℝ"], ["50\\%", "50%"], 
    ["Find $5!$.", "Find \\(5!\\)."], ["Take 3!", "take 3."], ["x\\lt1", "x < 1"]])
def test_spellings_of_the_same_mathematics(spellings):
    assert len({plain(text) for text in spellings}) == 1, [plain(text) for text in spellings]


@pytest.mark.parametrize("one, other", [
    ("1.5", "15"), ("x+1", "x-1"), ("|2-3|", "2-3"), ("2 3", "23"), ("1,2", "12"), ("x^{12}", "x^1 2"), ("x^{n+1}", "x^n+1"), ("$5!$", "$5$"),
    ("\\frac{1}{23}", "\\frac{12}{3}"), ("\\frac{12}{x+1}", "\\frac12{x+1}"), ("3\\frac12", "\\frac{31}{2}"), ("x<1", "x>1"),
    ("x\\le 1", "x\\ge 1"), ("x\\le 1", "x<1"), ("[1,2]", "(1,2)"), ("\\{1,2\\}", "(1,2)"), ("50%", "50"), ("f'(x)", "f(x)"),
    ("a\\cdot b", "a\\times b"), ("x_1", "x1"), ("\\sqrt{ab}", "\\sqrt{a}b"), ("\\sqrt[3]{2}", "3\\sqrt2"), ("0.5", "0.05"),
    ("-3", "3"), ("2(3)", "23"), ("x=1", "x1")])
def test_other_mathematics_stays_other(one, other):
    assert plain(one) != plain(other)


def test_a_number_of_any_length_has_a_plain_form():
    assert plain("1" * 9999) == f",{'1' * 9999}," != plain("1" * 9998)


def test_a_question_is_found_within_a_longer_text_but_not_within_a_longer_number():
    assert plain("What is $2+3$?") in plain("Think.\n\nWhat is \\(2+3\\)? Reason step by step.")
    assert plain("What is $2+3$?") not in plain("What is $2+35$?") and plain("2+3") not in plain("12+3")


@real
def test_no_two_problems_of_math_collapse_and_every_respelling_is_recognised():
    rows = load_real("math", "train") + load_real("math", "test")
    by_text = {}
    for row in rows:
        letters = re.sub(r"[\W_]|left|right|neq?(?![a-z])", "", row["problem"].casefold())
        by_text.setdefault(plain(row["problem"]), set()).add(letters)
    assert sum(len(texts) > 1 for texts in by_text.values()) == 0 and len(rows) - len(by_text) == 11
    tests = rows[7500:]
    for old, new in ((r"(?<!\\)\$([^$]+)(?<!\\)\$", r"\\(\1\\)"), (r"\\frac", r"\\dfrac"), (r"-", "−"), (r"\^(\d)(?!\d)", r"^{\1}")):
        other = [row | {"problem": re.sub(old, new, row["problem"])} for row in tests]
        assert sum(a != b for a, b in zip(other, tests, strict=True)) > 800 and without(other, tests) == []


# --- A run and its questions. ---
def test_a_run_refuses_other_questions(tmp_path):
    run = common.Run(tmp_path, None)
    rows = [{"id": f"x/{i}", "problem": f"p {i}", "answer": str(i), "solution": None} for i in range(3)]
    common.check_questions(run, {"P": rows, "test": rows})
    common.check_questions(run, {"P": rows, "test": rows})
    for other in (rows[:2], [*rows[:2], rows[2] | {"problem": "q"}], [*rows[:2], rows[2] | {"answer": "7"}], rows[::-1]):
        with pytest.raises(UserError, match=r"its questions \(test\) are not those that the data gives now; give the old data"):
            common.check_questions(run, {"P": rows, "test": other})
    with pytest.raises(UserError, match=r"\(more\)"):
        common.check_questions(run, {"P": rows, "test": rows, "more": rows})


def test_an_earlier_run_without_a_hash_gets_one_if_its_ids_are_there(tmp_path):
    run = common.Run(tmp_path, None)
    run.write("0_questions.jsonl", [{"id": "x/0", "part": "P"}])
    with pytest.raises(UserError, match=r"\(P\)"):
        common.check_questions(run, {"P": [{"id": "x/abc", "problem": "p"}]})
    common.check_questions(run, {"P": [{"id": "x/0", "problem": "p"}]})
    with pytest.raises(UserError, match=r"\(P\)"):
        common.check_questions(run, {"P": [{"id": "x/0", "problem": "q"}]})
