"""experiments/difficulty.py and experiments/labels.py: what they find by hand, and both on a small run in the toy world."""
import doctest
import json
import shutil
import statistics

import pytest

import common
import stat_sel
from experiments import difficulty, labels
from tests.test_run_end_to_end import flags, read
from toyworld import teacher as toy_teacher


def test_doctests():
    assert doctest.testmod(difficulty).failed == 0 and doctest.testmod(difficulty).attempted == 2


@pytest.mark.parametrize("counts, rates", [
    ((6, 2, 0, 2), (80, 75, 100, 600 / 7)), ((0, 0, 3, 1), (25, None, 0, 0)), ((0, 0, 0, 4), (100, None, None, None)),
    ((0, 0, 0, 0), (None,) * 4), ((1, 1, 1, 1), (50, 50, 50, 50))])
def test_agreement_by_hand(counts, rates):
    found = difficulty.agreement(*counts)
    assert list(found) == ["accuracy", "precision", "recall", "F1"]
    assert tuple(found.values()) == pytest.approx(rates)


@pytest.mark.parametrize("answers, is_inconsistent", [
    (["1", "2", "3", "4", "5"], True), (["1", "2", "3", "4", "1"], False), (["0.5", "2", "\\frac{1}{2}", "4", "5"], False),
    ([None] * 5, True), (["1", None, None, None, None], True), (["7", None, "7", None, None], False), ([], True)])
def test_is_inconsistent_by_hand(answers, is_inconsistent):
    assert difficulty.is_inconsistent(answers) == is_inconsistent


@pytest.fixture(scope="module")
def graded_run(small_world, tmp_path_factory):
    """A run that was stopped after step 2."""
    from tests import started
    server, url = toy_teacher.serve()
    out = tmp_path_factory.mktemp("runs") / "graded"
    done = started.run("stat_sel.py", *flags(small_world, url, out, "--arms", "stat", "--until", "grade", "--limit", "40"))
    server.shutdown()
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture
def copied(graded_run, tmp_path):
    return shutil.copytree(graded_run, tmp_path / "run")


def test_the_criteria_of_a_run(copied, call_file):
    done = call_file("experiments.difficulty", copied, "--length-words", "12")
    assert done.returncode == 0, done.stderr
    rows, samples = read(copied / "difficulty.jsonl"), read(copied / "difficulty_samples.jsonl")
    graded = {row["id"]: row for row in read(copied / "2_graded.jsonl") if row["part"] == "Q_val"}
    assert [row["id"] for row in rows] == list(graded) and len(rows) == 40 and len(samples) == 200
    n_differ = 0
    for row in rows:
        texts = [one["response"] for one in samples if one["id"] == row["id"]]
        answers = [common.extract_answer(text) for text in texts]
        n_most = max([sum(common.is_equiv(a, b) for b in answers if b is not None) for a in answers if a is not None], default=0)
        words = statistics.fmean(len(text.split()) for text in texts)
        old = graded[row["id"]]
        assert row["words"] == pytest.approx(words) and (row["is_right"], row["rewards"]) == (old["is_right"], old["rewards"])
        assert row["difficult_by"] == {"prm": old["difficult"], "consistency": n_most < 2, "length": words >= 12}
        n_differ += len(set(texts)) > 1
    assert n_differ > 20  # at T = 1
    table = [line for line in done.stdout.splitlines() if "40 answers" in line]
    assert [line.split(",")[0] for line in table] == ["prm", "consistency", "length"]
    accuracy = statistics.fmean((row["words"] >= 12) == (row["is_right"] is not True) for row in rows)
    assert table[2].split()[3] == f"{100 * accuracy:.1f}"

    before = (copied / "difficulty_samples.jsonl").read_bytes()
    again = call_file("experiments.difficulty", copied, "--length-words", "1")  # the samples are there
    assert again.returncode == 0 and (copied / "difficulty_samples.jsonl").read_bytes() == before
    assert all(row["difficult_by"]["length"] for row in read(copied / "difficulty.jsonl"))
    run = common.open_run(stat_sel.Args(), copied, vars(stat_sel.Args()))  # the run goes on as before
    run.lock.release()


def test_without_rewards_prm_is_left_out(copied, call_file):
    rows = [row | {"rewards": None} for row in read(copied / "2_graded.jsonl")]
    (copied / "2_graded.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = call_file("experiments.difficulty", copied, "--sample-batch", "100")
    assert done.returncode == 0 and "prm is left out" in done.stdout and "prm," not in done.stdout and "consistency, 40" in done.stdout


def test_the_teachers_labels_of_the_test(copied, small_world, teacher_url, call_file):
    done = call_file("experiments.labels", copied, "--teacher-url", teacher_url)
    assert done.returncode == 0, done.stderr
    rows, skills = read(copied / "labels_test.jsonl"), json.loads((small_world / "skills.json").read_text())
    tests = {row["id"]: row for row in read(copied / "0_questions.jsonl") if row["part"] == "Q_test"}
    assert [row["id"] for row in rows] == list(tests) and sum(not row["skills"] for row in rows) < 10
    for row in rows:
        subject = tests[row["id"]]["subject"]
        assert set(row["skills"]) <= {f"{subject}: {name}" for name in skills[subject]} and len(row["skills"]) <= 5
    assert "labels of Q_test" in done.stdout and "40 questions without a skill" in done.stdout
    again = call_file("experiments.labels", copied, "--teacher-url", "http://127.0.0.1:9/v1")  # nobody listens there
    assert again.returncode == 0 and read(copied / "labels_test.jsonl") == rows


@pytest.mark.parametrize("script", ["experiments.difficulty", "experiments.labels"])
def test_what_is_no_such_run_is_refused_in_one_sentence(script, copied, tmp_path, call_file):
    def refused(path, words):
        done = call_file(script, path)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1, done.stderr
    refused(tmp_path / "none", "found no args.json")
    args = json.loads((copied / "args.json").read_text())
    for change, words in (({"lr": 1e-4}, "an older stat_sel.py"), ({"seed": 1}, "its questions (P, Q_val"), ({"data": "none/there"}, "none/there")):
        (copied / "args.json").write_text(json.dumps(args | change))
        refused(copied, words)
    (copied / "args.json").write_text(json.dumps(args | {"a later field": 1}))
    held = common.lock(copied / ".lock", timeout_s=0)
    refused(copied, "another process")
    held.release()
    (copied / "2_graded.jsonl").unlink()
    refused(copied, "found no 2_graded.jsonl")


def test_a_dead_teacher_is_said_at_once(copied, call_file):
    done = call_file("experiments.labels", copied, "--teacher-url", "http://127.0.0.1:9/v1")
    assert done.returncode == 2 and "a first short call failed" in done.stderr and not (copied / "labels_test.jsonl").exists()


def test_wrong_flags_are_refused(copied, call_file):
    for given in ((), (copied, "--length-words", "0"), (copied, "--sample-batch", "0"), (copied, "--words", "3")):
        done = call_file("experiments.difficulty", *given)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def test_both_are_scripts(copied, run_file):
    for script in (difficulty, labels):
        done = run_file(script.__file__, "--help", cwd=copied)
        assert done.returncode == 0 and "run directory of stat_sel.py" in done.stdout
