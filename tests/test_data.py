"""Loading: the real sets where REAL_DATA has them, the layouts on the Hub as small files, and every refusal."""

import json
import os
import random
import re
from pathlib import Path

import pytest

import common
from common import HUB, MATH_CONFIGS, UserError, load, rng, split_math, torch_seed

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
        ("math_perturb_simple", "test", 279),
        ("math_perturb_hard", "test", 279),
    ],
)
def test_real_sets(name, split, n):
    rows = load(name, split, root=REAL_DATA)
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
    for row in load("gsm8k", "train", root=REAL_DATA):
        assert not re.search(r"<<|>>|####", row["solution"])
        assert row["solution"].endswith(f"\\boxed{{{row['answer']}}}$.") and "," not in row["answer"]


@real
def test_real_math_without_answers_gives_the_same_answers(tmp_path):
    """The Hub's MATH has no answer field: the last box of the solution must give back what the local file holds."""
    lines = [json.loads(line) for line in Path(REAL_DATA, "math/train.jsonl").read_bytes().splitlines()]
    bare = [{"problem": r["problem"], "level": r["level"], "type": r["subject"], "solution": r["solution"]} for r in lines]
    hub, local = load(write(tmp_path / "x.jsonl", *bare)), load("math", "train", root=REAL_DATA)
    assert [(a["subject"], a["level"]) for a in hub] == [(b["subject"], b["level"]) for b in local]
    assert [a["answer"] for a in hub] == [b["answer"] for b in local]
    assert [i for i, a in enumerate(hub) if not a["answer"]] == [7327, 7477]


@real
def test_real_paths_and_folders_agree():
    folder = load(f"{REAL_DATA}/math", "test")
    assert folder == load(f"{REAL_DATA}/math/test.jsonl", "ignored") == load("math", root=REAL_DATA)


# --- Row layouts. ---
def test_gsm8k(tmp_path):
    answer = "She sells 500*2=<<500*2=1000>>1000 eggs,\nso $<<1000+234=1234>>1,234.\n#### 1,234"
    row = one(tmp_path, question="How many?", answer=answer)
    solution = "She sells 500*2=1000 eggs,\nso $1,234.\nThe answer is $\\boxed{1234}$."
    rest = {"subject": None, "level": None, "skills": None}
    assert row == {"id": "x/0", "problem": "How many?", "solution": solution, "answer": "1234", **rest}


@pytest.mark.parametrize(
    "answer, text", [(27.0, "27"), (0.25, "0.25"), (-3, "-3"), (0, "0"), ("\\frac12", "\\frac12"), ("", ""), (12.3, "12.3"), ("# 7", "# 7")]
)
def test_answers(tmp_path, answer, text):
    assert one(tmp_path, problem="p", answer=answer)["answer"] == text


@pytest.mark.parametrize("level, number", [("Level 3", 3), (5, 5), ("4", 4), ("Level ?", None), (None, None)])
def test_levels(tmp_path, level, number):
    assert one(tmp_path, **ROW | {"level": level})["level"] == number


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"id": 0}, "0"),
        ({"id": "a", "unique_id": "b"}, "a"),
        ({"problem_id": 17}, "17"),
        ({"unique_id": "test/algebra/1.json"}, "test/algebra/1.json"),
        ({"id": None}, "x/0"),
        ({}, "x/0"),
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
    assert [(row["id"], row["problem"]) for row in load(str(path))] == [("x/0", "a\u2028b τ"), ("x/1", "a\u2028b τ")]


# --- Refusals: each one sentence that names file, line and field. ---
@pytest.mark.parametrize(
    "second, words",
    [
        ({"problem": "q"}, ["'answer'"]),
        ({"answer": "2"}, ["'problem or question'", "None"]),
        (ROW | {"problem": "  "}, ["'problem or question'"]),
        (ROW | {"problem": 5}, ["problem", "5"]),
        (ROW | {"answer": ["2"]}, ["'answer'", "['2']"]),
        (ROW | {"answer": True}, ["'answer'", "True"]),
        (ROW | {"solution": 3}, ["'solution'", "3"]),
        (ROW | {"level": "hard"}, ["'level'", "'Level 3'", "hard"]),
        (ROW | {"level": 2.5}, ["'level'", "2.5"]),
        (ROW | {"skills": "adding"}, ["'skills'", "adding"]),
        (ROW | {"skills": ["adding", 3]}, ["'skills'"]),
        (ROW | {"subject": 3}, ["'subject or type'", "3"]),
        (ROW | {"id": 1.5}, ["id", "1.5"]),
        (ROW | {"id": "x/0"}, ["'id'", "'x/0'", "unique"]),
        ({"problem": "p", "solution": "no box"}, ["'answer'", "boxed"]),
        ('{"problem": "p", ', ["JSON"]),
        ("[1, 2]", ["JSON object"]),
        ("7", ["JSON object"]),
    ],
)
def test_bad_lines(tmp_path, second, words):
    message = refusal(write(tmp_path / "x.jsonl", ROW, second))
    assert all(word in message for word in ["x.jsonl line 2", *words]), message


def test_bad_files(tmp_path):
    assert "at least one question" in refusal(write(tmp_path / "empty.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(ROW).encode() + b'\n{"problem": "caf\xe9", "answer": "1"}\n')
    assert "latin.jsonl line 2" in refusal(str(tmp_path / "latin.jsonl"))
    write(tmp_path / "folder/train.jsonl", ROW)
    assert "test.jsonl" in refusal(str(tmp_path / "folder"), "test")
    assert len(load(str(tmp_path / "folder"), "train")) == 1
    (tmp_path / "dir.jsonl").mkdir()
    assert "dir.jsonl" in refusal(str(tmp_path / "dir.jsonl"))
    message = refusal("mathh")
    assert "mathh" in message and "math_perturb_hard" in message


# --- The Hub: its answers stand in small files, everything else is the real datasets library. ---
@pytest.fixture
def hub(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    real_load, answers, asked = datasets.load_dataset, {}, []

    def fake(address, config=None, split=None, data_files=None):
        asked.append((data_files or address, config, split))
        if (data_files or address, split) not in answers:
            raise datasets.exceptions.DatasetNotFoundError(f"{address} is not here")
        rows = answers[data_files or address, split]
        path = write(tmp_path / f"hub{len(asked)}.jsonl", *(rows[config] if isinstance(rows, dict) else rows))
        return real_load("json", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", fake)
    return answers, asked


def test_hub_math_joins_the_seven_subjects(hub, capsys):
    answers, asked = hub
    row = {"problem": "p", "level": "Level ?", "solution": "\\boxed{3}"}
    answers["EleutherAI/hendrycks_math", "train"] = {config: [row | {"type": config}] * 2 for config in MATH_CONFIGS}
    rows = load("math", "train")
    assert [row["subject"] for row in rows] == [config for config in MATH_CONFIGS for _ in "12"]
    assert (rows[13]["id"], rows[13]["answer"], rows[13]["level"]) == ("math-train/13", "3", None)
    assert "14 rows from EleutherAI/hendrycks_math" in capsys.readouterr().out
    assert len(asked) == 7


def test_hub_next_candidate(hub, capsys):
    answers, asked = hub
    answers["DigitalLearningGmbH/MATH-lighteval", "test"] = [ROW]
    assert load("math", "test")[0]["answer"] == "2"
    out, err = capsys.readouterr()
    assert "DigitalLearningGmbH/MATH-lighteval" in out and "EleutherAI/hendrycks_math failed: DatasetNotFoundError" in err
    assert [a[0] for a in asked] == ["EleutherAI/hendrycks_math", "DigitalLearningGmbH/MATH-lighteval"]


@pytest.mark.parametrize(
    "name, address, split, row, answer",
    [
        ("gsm8k", "openai/gsm8k", "train", {"question": "q", "answer": "text\n#### 5"}, "5"),
        ("gsm8k", "openai/gsm8k", "test", {"question": "q", "answer": "text\n#### -5"}, "-5"),
        ("math500", "HuggingFaceH4/MATH-500", "test", ROW | {"level": 3, "unique_id": "test/a/1.json"}, "2"),
        ("amc23", "math-ai/amc23", "test", {"id": 0, "question": "q", "answer": "27", "url": "u"}, "27"),
        ("amc23", "zwhe99/amc23", "test", {"id": 0, "question": "q", "answer": 27.0}, "27"),
        ("aime24", "HuggingFaceH4/aime_2024", "train", {"id": 60, "problem": "p", "solution": "s", "answer": "204", "year": "2024"}, "204"),
        ("aime24", "math-ai/aime24", "test", {"id": 60, "problem": "p", "solution": "\\boxed{204}"}, "204"),
        ("aime25", "math-ai/aime25", "test", {"id": "0", "problem": "p", "answer": "70"}, "70"),
        ("aime25", "yentinglin/aime_2025", "train", {"id": "0", "problem": "p", "answer": "70", "solution": "s"}, "70"),
        ("math_perturb_hard", HUB["math_perturb_hard"][0][0], "train", {"problem_id": 1, "problem": "p", "answer": 36, "type": "T"}, "36"),
    ],
)
def test_hub_layouts(hub, name, address, split, row, answer):
    answers, _ = hub
    answers[address, split] = [row]
    wanted = "train" if (name, split) == ("gsm8k", "train") else "test"  # some keep their only questions in a split called train
    (loaded,) = load(name, wanted)
    assert set(loaded) == KEYS and loaded["answer"] == answer and loaded["problem"] == row.get("problem", row.get("question"))


def test_hub_fails(hub):
    for name, candidates in HUB.items():
        message = refusal(name)
        assert all(address in message for address, *_ in candidates) and "local path" in message
    assert "'train'" in refusal("aime24", "train") and "'validation'" in refusal("math", "validation")


# --- Seeds and the split. ---
def test_seeds_belong_to_their_step():
    assert rng(0, "a").random() == rng(0, "a").random()
    seeds = {torch_seed(seed, *names) for seed in range(50) for names in ([], ["a"], ["b"], ["a", "b"], ["ab"], ["b", "a"])}
    assert len(seeds) == 300 and 0 <= min(seeds) and max(seeds) < 2**32
    state = random.getstate()
    rng(0, "a").random()
    assert random.getstate() == state


def test_split_math():
    rows = [{"id": str(i), "problem": f"problem {i * 7919 % 5000}"} for i in range(5000)]
    val, test = split_math(rows, 1000, seed=0)
    assert (len(val), len(test)) == (1000, 4000)
    assert sorted(val + test, key=lambda row: int(row["id"])) == rows
    assert [int(row["id"]) for row in val] == sorted(int(row["id"]) for row in val)
    assert split_math(rows, 1000, seed=0) == (val, test) != split_math(rows, 1000, seed=1)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert {row["id"] for row in split_math(shuffled, 1000, seed=0)[0]} == {row["id"] for row in val}
    overlap = len({row["id"] for row in val} & {row["id"] for row in split_math(rows, 1000, seed=1)[0]})
    assert 140 < overlap < 260  # 200 expected of two independent draws, standard deviation 11
    for n_val in (0, 5000, -1):
        with pytest.raises(UserError, match="n_val"):
            split_math(rows, n_val, seed=0)


# --- pairs in chat form, questions for a run
CHAT = [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "\\boxed{5}"}]
SHARE = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "2+3?"}, {"from": "gpt", "value": "\\boxed{5}"}]


def test_pairs_are_read_in_both_chat_forms(tmp_path):
    lines, whole = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_text(json.dumps({"id": "x", "messages": CHAT, "more": 1}) + "\n\n" + json.dumps({"conversations": SHARE}) + "\n")
    whole.write_text(json.dumps([{"id": "x", "messages": CHAT}, {"conversations": SHARE}]))
    expected = [{"id": "x", "messages": CHAT}, {"id": None, "messages": [{"role": "system", "content": "Be brief."}, *CHAT]}]
    assert common.read_pairs(str(lines)) == common.read_pairs(str(whole)) == expected


@pytest.mark.parametrize("row", [
    {}, {"messages": []}, {"messages": CHAT[:1]}, {"messages": CHAT[::-1]}, {"messages": "2+3"}, {"messages": [{"role": "user"}]}, "text",
    {"messages": 3}, {"messages": [{"role": "user", "content": None}, CHAT[1]]}, {"question": "2+3?", "answer": "5"},
    {"conversations": [{"from": "robot", "value": "x"}, *SHARE[1:]]}, {"messages": [*CHAT, CHAT[1]]}])
def test_other_pairs_are_refused_with_their_row(tmp_path, row):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"messages": CHAT}, row]))
    with pytest.raises(UserError, match="--pairs .*a.json, row 2: expected 'messages'"):
        common.read_pairs(str(path))
    path.write_text("[]")
    with pytest.raises(UserError, match="expected a list of at least one pair"):
        common.read_pairs(str(path))
    path.write_text("3")
    with pytest.raises(UserError, match="expected a list"):
        common.read_pairs(str(path))


def test_questions_are_the_same_but_for_case_spacing_and_stops():
    rows = [{"problem": text} for text in ("Find  $12+3$.", "Find 12*3", "Find 1.5", "Find 15", "Find 12 + 3, please!", "Find |12+3|", "Find 1(2+3)")]
    assert common.without(rows, [{"problem": "find {12} + 3"}, {"problem": "FIND 15?"}]) == [*rows[1:3], *rows[4:]]
    assert common.without(rows, []) == rows


def write_sets(folder, train, test):
    for name, texts in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(
            json.dumps({"id": f"{name}/{i}", "problem": text, "solution": "\\boxed{1}", "answer": "1"}) + "\n" for i, text in enumerate(texts)))


def test_no_question_has_two_uses(tmp_path):
    """By their texts, whatever their ids: what is profiled on is not tested on, what is tested on is not trained on."""
    write_sets(tmp_path, [f"train {i}" for i in range(30)] + ["TEST  3!", "few 2"], [f"test {i}" for i in range(20)])
    write(tmp_path / "few.jsonl", *({"problem": text, "answer": "1"} for text in ["few 1", "few 2", "Test 0.", "test 1"]))
    write(tmp_path / "many.jsonl", *({"problem": f"m {i}", "answer": "1"} for i in range(100)))
    got = common.load_questions(str(tmp_path), 8, seed=0, ood=(str(tmp_path / "few.jsonl"), str(tmp_path / "many.jsonl")), samples=7)
    few, many = f"{tmp_path.name}/few", f"{tmp_path.name}/many"
    assert list(got.sets) == ["MATH", few, many] and got.n_samples == {"MATH": 1, few: 7, many: 1}
    profiled = {row["problem"] for row in got.val}
    assert len(profiled) == 8 and len(got.sets["MATH"]) == 12 and not profiled & {row["problem"] for row in got.sets["MATH"]}
    assert got.removed == {"MATH": 0, few: len(profiled & {"test 0", "test 1"}), many: 0}
    assert {row["problem"] for row in got.pool} == {f"train {i}" for i in range(30)}
    other = common.load_questions(str(tmp_path), 90, seed=0, val=str(tmp_path / "many.jsonl"), samples=7)
    assert len(other.val) == 50 == len(other.sets[many]) and len(other.sets["MATH"]) == 20 and other.n_samples[many] == 1
    assert all(row["id"].startswith(f"{many}/") for row in other.val)
    cut = common.load_questions(str(tmp_path), 8, seed=0, ood=(str(tmp_path / "many.jsonl"),), samples=7, limit=5)
    assert {len(cut.pool), len(cut.val), *map(len, cut.sets.values())} == {5} and cut.n_samples[many] == 1  # by the whole set's size


def test_questions_that_cannot_be_told_apart_or_are_all_profiled_on(tmp_path):
    write_sets(tmp_path, ["a", "b"], [f"t {i}" for i in range(10)])
    got = common.load_questions(str(tmp_path), 9, seed=0)
    (tmp_path / "seen.jsonl").write_text(json.dumps({"problem": got.val[0]["problem"], "answer": "1"}) + "\n")
    with pytest.raises(UserError, match="every question of it is profiled on"):
        common.load_questions(str(tmp_path), 9, seed=0, ood=(str(tmp_path / "seen.jsonl"),))
    rows = [json.loads(line) | {"id": f"test/{i}"} for i, line in enumerate((tmp_path / "train.jsonl").read_text().splitlines())]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="make the ids unique"):
        common.load_questions(str(tmp_path), 9, seed=0)


def test_math_500_loses_what_is_profiled_on(real_data, tmp_path):
    """MATH-500 is a part of MATH's test split."""
    rows = [json.loads(line) for line in (real_data / "math" / "test.jsonl").read_text().splitlines()]
    (tmp_path / "math500.jsonl").write_text("".join(json.dumps(row | {"id": f"m/{i}"}) + "\n" for i, row in enumerate(rows) if row["math500"]))
    got = common.load_questions(str(real_data / "math"), 1000, seed=0, ood=(str(tmp_path / "math500.jsonl"),))
    name = f"{tmp_path.name}/math500"
    profiled = {row["problem"] for row in got.val}
    expected = sum(row["math500"] and row["problem"] in profiled for row in rows)
    assert len(got.sets[name]) == 500 - got.removed[name] and got.removed[name] == expected and 60 < expected < 140


def test_sets_that_would_share_a_name_are_refused(tmp_path):
    write_sets(tmp_path, ["a"], [f"t {i}" for i in range(10)])
    for folder in ("one/x", "two/x"):
        write(tmp_path / folder / "test.jsonl", {"problem": "p", "answer": "1"})
    with pytest.raises(UserError, match="two sets would be called x/test"):
        common.load_questions(str(tmp_path), 3, seed=0, ood=(str(tmp_path / "one/x/test.jsonl"), str(tmp_path / "two/x/test.jsonl")))
    same = str(tmp_path / "one/x/test.jsonl")
    assert list(common.load_questions(str(tmp_path), 3, seed=0, ood=(same, same)).sets) == ["MATH", "x/test"]


def test_given_pairs_that_are_tested_on_are_left_out(capsys):
    def pair(question):
        return {"id": None, "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "!"}]}
    pairs = [pair("What is $2+3$?\nReason step by step."), pair("What is 2-3?"), pair("Why?")]
    assert common.untested(pairs, [{"problem": "What is 2 + 3?"}, {"problem": "What is 9?"}]) == pairs[1:]
    assert "3 pairs, 1 of them left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="every pair holds a question that is tested on"):
        common.untested(pairs[:1], [{"problem": "What is 2 + 3?"}])
