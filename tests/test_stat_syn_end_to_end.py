"""stat_syn.py as a user runs it: whole runs in the toy world, from a run of stat_sel.py and alone, kills, refusals, a slice of real data."""
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

import common
import stat_syn
from tests import started
from tests.conftest import ROOT, read_cache
from tests.test_run_end_to_end import flags, read
from toyworld import problems as toy
from toyworld import teacher as toy_teacher
from toyworld import world

STAGES_1_TO_4 = ("1_answers.jsonl", "2_rewards.jsonl", "2_graded.jsonl", "3_skill_map.jsonl", "4_profile.jsonl")


@pytest.fixture(scope="module")
def sel_run(small_world, tmp_path_factory):
    """A run of stat_sel.py to go on from."""
    server, url = toy_teacher.serve()
    out = tmp_path_factory.mktemp("runs") / "sel"
    done = started.run("stat_sel.py", *flags(small_world, url, out, "--arms", "embed", "stat"))
    server.shutdown()
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def whole_run(small_world, sel_run, tmp_path_factory):
    """One uninterrupted run with every arm that goes on from sel_run; another model writes."""
    server, url = toy_teacher.serve()
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = started.run(*command(small_world, url, out, sel_run))
    server.shutdown()
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stdout


def command(small_world, url, out, sel_run, *more):
    return ["stat_syn.py", *map(str, flags(
        small_world, url, out, "--arms", "base", "augment", "stat", "shuffled", "embed", "--profile-from", sel_run, "--writer", "scribe", *more))]


def test_a_run_ends_with_its_table_and_stat_sels_beside_it(whole_run, sel_run):
    out, printed = whole_run
    arms = json.loads((out / "result.json").read_text())["arms"]
    assert list(arms) == ["base", "augment", "stat", "shuffled", "embed", "sel", "embed_sel"]
    assert all(sets["MATH"] == [sum(bool(row["is_right"]) for row in read(out / f"7_test_{arm}.jsonl")), 90] for arm, sets in arms.items())
    assert len({len(read(out / f"train_{arm}.jsonl")) for arm in ("augment", "stat", "shuffled", "embed")}) == 1  # equal numbers of pairs
    assert printed.count("vs augment") == 2 and printed.count("embed_sel  ") == 2
    assert "pairs trained on: augment 40, stat 40, shuffled 40, embed 40, sel 40, embed_sel 40\n" in printed
    for old, new in (("stat", "sel"), ("embed", "embed_sel")):
        for part in ("train", "7_test"):
            assert (out / f"{part}_{new}.jsonl").read_bytes() == (sel_run / f"{part}_{old}.jsonl").read_bytes()
    assert not list(out.rglob("*.tmp")) + list(out.rglob("*.part")) + list(out.rglob("*.checkpoint.pt"))


def test_killed_at_random_it_ends_the_same_and_pays_nothing_twice(whole_run, small_world, sel_run, tmp_path, teacher_url):
    compared = started.kill_at_random(lambda out: command(small_world, teacher_url, out, sel_run), whole_run[0], tmp_path, "stat_syn")
    assert compared == started.rows_and_weights(whole_run[0])
    one, two = (json.loads((run / "result.json").read_text()) for run in (whole_run[0], tmp_path / "killed-0"))
    assert one["arms"] == two["arms"]


def test_steps_1_to_4_are_taken_over_and_not_paid_again(whole_run, sel_run):
    out, printed = whole_run
    for name in STAGES_1_TO_4:
        assert (out / name).read_bytes() == (sel_run / name).read_bytes()
    paid = Counter((row["model"], row["step"].partition(",")[0]) for row in read_cache(out / "teacher.sqlite"))
    assert set(paid) == {("toy", "5 rewrite"), ("scribe", "5 write"), ("toy", "5 solve")}
    plan = printed.split("5 rewrite")[0]
    assert "3 label" not in plan and "4_profile.jsonl" in plan  # the plan knows the profile


def test_every_pair_is_new_consistent_and_of_the_profile(whole_run, small_world):
    """What is trained on, told from the files alone: agreed on by two solutions of the same question, in no test set, not in P."""
    out, _ = whole_run
    written, pool = {row["id"]: row for row in read(out / "5_written.jsonl")}, {row["id"]: row for row in common.load(str(small_world), "train")}
    dropped, solved = {row["id"] for row in read(out / "dropped.jsonl")}, {}
    for row in read(out / "5_solutions.jsonl"):
        solved.setdefault(row["id"], []).append(row)
    assert written.keys() - dropped <= solved.keys() and all(len(rows) == 3 for rows in solved.values())
    known = {common.plain(row["problem"]) for split in ("train", "test") for row in common.load(str(small_world), split)
             if row["id"] in {q["id"] for q in read(out / "0_questions.jsonl") if q["part"] in ("P", "Q_test")}}
    labels = {row["id"]: row["skills"] for row in read(out / "3_skill_map.jsonl")}
    missing = Counter(skill for row in read(out / "4_profile.jsonl") if not row["fault"] for skill in row["skills"] if any(
        skill in own for i, own in labels.items() if i in pool))
    for arm in ("stat", "shuffled", "embed"):
        rows = read(out / f"train_{arm}.jsonl")
        assert len({(row["id"], row["sample"]) for row in rows}) == len(rows)
        for row in rows:
            question, answers = written[row["id"]], [one["answer"] for one in solved[row["id"]] if not one["fault"]]
            mine = solved[row["id"]][row["sample"]]
            assert row["id"] not in dropped and row["messages"][1]["content"] == mine["response"] and row["skill"] == question["skill"]
            assert sum(common.is_equiv(answer, mine["answer"]) for answer in answers) >= 2
            assert question["problem"] in row["messages"][0]["content"] and common.plain(question["problem"]) not in known
    of_stat = Counter(row["skill"] for row in written.values() if row["arm"] == "stat")
    assert of_stat == {skill: 2 * n for skill, n in missing.items()}  # a skill's weight is its frequency in the profile
    for row in written.values():
        subject = {pool[i]["subject"] for i in row["references"]}
        assert len(set(row["references"])) == len(row["references"]) <= 3 and (row["arm"] == "embed" or (
            len(subject) == 1 and all(row["skill"] in labels[i] for i in row["references"])))
    assert len({row["arm"] for row in written.values()}) == 3
    assert Counter(row["arm"] for row in written.values())["embed"] == of_stat.total()


def test_what_is_dropped_is_written_down_with_the_reason(whole_run):
    out, printed = whole_run
    dropped = read(out / "dropped.jsonl")
    reasons = Counter(row["dropped"] for row in dropped)
    assert {"copy of a question read", "inconsistent"} <= set(reasons)
    for row in dropped:
        assert bool(row["matched"]) == (row["dropped"] in ("in a test set", "copy of a question read", "in P", "written before"))
    inconsistent = [row for row in dropped if row["dropped"] == "inconsistent"]
    assert all(len(row["answers"]) == 3 and len(stat_syn.agreeing(row["answers"])) < 2 for row in inconsistent)
    assert printed.count("questions asked for; dropped:") == 3 and f"'inconsistent': {sum(row['arm'] == 'stat' for row in inconsistent)}" in printed


def test_killed_twice_it_ends_the_same_and_pays_nothing_twice(whole_run, sel_run, small_world, tmp_path):
    """Killed while it writes and again while it solves; stat_sel.py's tests kill what is copied, training and testing."""
    asked = []
    reply = toy_teacher.reply

    def counting(prompt, seed):
        if prompt != "Say yes.":  # of Teacher.check
            asked.append((prompt, seed))
        return reply(prompt, seed)
    toy_teacher.reply = counting
    server, url = toy_teacher.serve()
    out = tmp_path / "killed"
    try:
        for step, comes_next in (("5 write", "5_written.jsonl"), ("5 solve", "5_solutions.jsonl")):
            started.killed(f"teacher: {step}", *command(small_world, url, out, sel_run), nth=20)
            assert not (out / comes_next).exists()
        done = started.run(*command(small_world, url, out, sel_run))
    finally:
        server.shutdown()
        toy_teacher.reply = reply
    assert done.returncode == 0, done.stderr[-3000:]
    whole, _ = whole_run
    assert {str(path.relative_to(out)) for path in out.rglob("*")} == {str(path.relative_to(whole)) for path in whole.rglob("*")}
    for path in whole.rglob("*"):
        if path.suffix in (".jsonl", ".safetensors") and path.name != "metrics.jsonl":
            assert path.read_bytes() == (out / path.relative_to(whole)).read_bytes(), path.name
    assert asked and len(asked) - len(set(asked)) <= 8  # calls in flight at the kills, twice no more than --concurrency
    one, two = (json.loads((run / "result.json").read_text()) for run in (whole, out))
    assert one["arms"] == two["arms"]


def test_a_rerun_asks_for_nothing(whole_run, sel_run, small_world):
    out, _ = whole_run
    before = {path.name: path.read_bytes() for path in out.glob("*.jsonl")}
    again = started.run(*command(small_world, "http://127.0.0.1:9/v1", out, sel_run))  # nobody listens there
    assert again.returncode == 0, again.stderr[-2000:]
    assert {path.name: path.read_bytes() for path in out.glob("*.jsonl")} == before


def test_alone_it_makes_the_same_profile_and_the_same_pairs(whole_run, small_world, tmp_path, teacher_url):
    """Steps 1 to 4 are those of stat_sel.py: without its run they come out the same, and so does all that follows. Two files are enough."""
    for name in ("stat_syn.py", "common.py"):
        shutil.copy(ROOT / name, tmp_path)
    argv = flags(small_world, teacher_url, tmp_path / "out", "--arms", "base", "stat", "--writer", "scribe")
    done = started.run(tmp_path / "stat_syn.py", *argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in (*STAGES_1_TO_4, "7_test_base.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (whole_run[0] / name).read_bytes(), name
    alone, beside = ([row for row in read(run / "5_written.jsonl") if row["arm"] == "stat"] for run in (tmp_path / "out", whole_run[0]))
    assert alone == beside
    assert "sel" not in json.loads((tmp_path / "out" / "result.json").read_text())["arms"]


@pytest.mark.parametrize("change, words", [
    (["--seed", "1"], "seed was 0, is 1"), (["--student", "{prm}"], "student was"), (["--tau1", "0.8"], "tau1 was 0.85, is 0.8"),
    (["--limit", "80"], "limit was 90, is 80"), (["--teacher", "other"], "teacher was toy, is other")])
def test_the_profile_of_another_run_is_refused(change, words, sel_run, small_world, tmp_path, call_file):
    argv = [str(f) for f in flags(small_world, "http://127.0.0.1:9/v1", tmp_path / "out", "--profile-from", sel_run)]
    if change[0] in argv:
        del argv[argv.index(change[0]):argv.index(change[0]) + 2]
    done = call_file("stat_syn.py", *argv, change[0], change[1].format(prm=small_world / "prm"))
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_stat_syns_own_arms_are_not_taken_for_stat_sels(whole_run, small_world, tmp_path, call_file):
    done = call_file("stat_syn.py", *flags(small_world, "http://127.0.0.1:9/v1", tmp_path / "out", "--profile-from", whole_run[0]))
    assert done.returncode == 2 and "expected a run of stat_sel.py" in done.stderr and "another method's" in done.stderr


def test_a_profile_of_its_own_is_not_mixed_with_another(sel_run, small_world, tmp_path, teacher_url, call_file):
    """A run that has begun by itself, with other answers than those of the run that it is now to go on from."""
    out, other = tmp_path / "out", ["--arms", "base", "stat", "--student", small_world / "prm", "--limit", "5",
                                    "--usd-per-m-in", "1", "--usd-per-m-out", "1", "--max-usd", "1e-4"]
    started = call_file("stat_syn.py", *flags(small_world, teacher_url, out, *other))
    assert started.returncode == 2 and "--max-usd" in started.stderr and (out / "2_graded.jsonl").exists()  # no money for the teacher
    there = tmp_path / "sel"
    shutil.copytree(sel_run, there)
    (there / "args.json").write_text(json.dumps(json.loads((there / "args.json").read_text()) | {"student": str(small_world / "prm"), "limit": 5}))
    for name in ("0_questions.jsonl", "0_fingerprint.json"):
        shutil.copy(out / name, there)
    done = call_file("stat_syn.py", *flags(small_world, "http://127.0.0.1:9/v1", out, *other, "--profile-from", there))
    assert done.returncode == 2 and "it is not the one of --profile-from" in done.stderr, done.stderr[-2000:]
    assert not (out / "4_profile.jsonl").exists()


def test_a_small_arm_that_is_taken_over_is_marked_and_pulls_no_other_down(sel_run, small_world, tmp_path, teacher_url, call_file):
    there = tmp_path / "sel"
    shutil.copytree(sel_run, there)
    for arm in ("stat", "embed"):
        rows = read(there / f"train_{arm}.jsonl")
        (there / f"train_{arm}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:33 if arm == "stat" else None]))
    done = call_file("stat_syn.py", *flags(small_world, teacher_url, tmp_path / "out", "--profile-from", there, "--arms", "stat"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "pairs trained on: stat 40, sel 33, embed_sel 40" in done.stdout and "\nsel (33 pairs) " in done.stdout


def test_other_questions_under_the_same_name_are_refused(sel_run, small_world, tmp_path, call_file):
    there = tmp_path / "sel"
    shutil.copytree(sel_run, there)
    rows = read(there / "0_questions.jsonl")
    (there / "0_questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    done = call_file("stat_syn.py", *flags(small_world, "http://127.0.0.1:9/v1", tmp_path / "out", "--profile-from", there))
    assert done.returncode == 2 and "has --data changed since" in done.stderr


def test_replies_that_are_not_there_are_not_paid_again_unasked(sel_run, small_world, tmp_path, call_file):
    done = call_file("stat_syn.py", *flags(small_world, "http://127.0.0.1:9/v1", tmp_path / "out", "--profile-from", sel_run,
                                           "--cache", sel_run / "teachers.jsonl"))
    assert done.returncode == 2 and "teachers.jsonl: no such file" in done.stderr and not (sel_run / "teachers.jsonl").exists()


def test_arms_trained_otherwise_do_not_stand_beside(sel_run, small_world, tmp_path, teacher_url, call_file):
    out = tmp_path / "out"
    done = call_file("stat_syn.py", *flags(small_world, teacher_url, out, "--profile-from", sel_run, "--arms", "stat", "--lr", "2e-3"))
    assert done.returncode == 0 and "do not stand beside these" in done.stdout and "lr was [0.001], is [0.002]" in done.stdout, done.stderr[-2000:]
    assert list(json.loads((out / "result.json").read_text())["arms"]) == ["stat"] and (out / "4_profile.jsonl").exists()


@pytest.mark.parametrize("change, words", [
    (["--profile-from", "nowhere"], "--profile-from nowhere: expected a run of stat_sel.py"),
    (["--min-agreeing", "4"], "--min-agreeing: expected at most --n-solutions 3"),
    (["--n-new", "0"], "--n-new"), (["--arms", "hard"], "hard"), (["--writer-url", "x", "--writer", "y"], "http://"),
    (["--writer-url", "http://localhost:1/v1"], "give that too"), (["--n-references", "6"], "--n-references: expected at most --n-nearest 5"),
    (["--max-usd", "1", "--writer", "y", "--usd-per-m-in", "1", "--usd-per-m-out", "1"], "--writer-usd-per-m-in is missing"),
    (["--usd-per-m-in", "1", "--usd-per-m-out", "1", "--writer", "y", "--writer-usd-per-m-in", "2"], "--writer-usd-per-m-out is missing"),
    (["--max-usd", "1", "--writer", "y"], "--usd-per-m-in is missing"), (["--usd-per-m-in", "-1", "--usd-per-m-out", "1"], "below zero"),
    (["--arms", "stat", "stat"], "--arms: expected each name once"), (["--skill-map", "{world}/skills.json"], "expected ids of questions of P"),
    (["--n-val", "0"], "--n-val"), (["--embedder", "nowhere", "--arms", "embed"], "--embedder nowhere"), (["--data", "nowhere"], "nowhere")])
def test_a_mistake_gets_one_sentence(change, words, small_world, tmp_path, call_file):
    argv = [str(f) for f in flags(small_world, "http://127.0.0.1:9/v1", tmp_path / "out")]
    if change[0] in argv:
        del argv[argv.index(change[0]):argv.index(change[0]) + 2]
    done = call_file("stat_syn.py", *argv, *(word.format(world=small_world) for word in change))
    assert done.returncode == 2, done.stdout + done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(sentences) == 1 and words in sentences[0] and "Traceback" not in done.stderr, done.stderr


def test_plan_sends_nothing(small_world, tmp_path, sel_run, call_file):
    def shown(*more):
        argv = flags(small_world, "http://127.0.0.1:9/v1", tmp_path / "out", "--plan", "--usd-per-m-in", "1", "--usd-per-m-out", "2", *more)
        done = call_file("stat_syn.py", *argv)
        assert done.returncode == 0 and not (tmp_path / "out").exists(), done.stderr
        return done.stdout
    guessed = shown()
    assert "by 180 missing skills as a guess" in guessed  # three for each of 60
    assert [line.split()[2] for line in guessed.splitlines() if line.startswith(("5 write ", "5 solve "))] == ["360", "1,080"]
    for field in ("<draft>", "Solve this problem.", "<judge>", "Which of the listed skills"):
        assert field in guessed
    known = shown("--profile-from", sel_run, "--writer", "scribe", "--writer-usd-per-m-in", "10", "--writer-usd-per-m-out", "20")
    n = sum(len(row["skills"]) for row in read(sel_run / "4_profile.jsonl"))
    assert f"by {n} missing skills in" in known and "4 diagnose" not in known and known.count("at most this") == 2 and "teacher scribe" in known
    assert "missing skills" not in shown("--arms", "augment") and "by 60 missing skills as a guess" in shown("--arms", "embed")


def test_a_writers_price_counts_under_the_cap(small_world, sel_run, tmp_path, teacher_url):
    price = ["--usd-per-m-in", "0", "--usd-per-m-out", "0", "--writer-usd-per-m-in", "1", "--writer-usd-per-m-out", "1"]
    argv = command(small_world, teacher_url, tmp_path / "out", sel_run, *price, "--max-usd", "0.02")
    stopped = started.run(*argv)
    assert stopped.returncode == 2 and "--max-usd goes on" in stopped.stderr and "Traceback" not in stopped.stderr
    spent = [row for row in read_cache(tmp_path / "out" / "teacher.sqlite")]
    assert 0.01 < sum(row["usd"] for row in spent) <= 0.02 and {row["model"] for row in spent if row["usd"]} == {"scribe"}


def test_a_slice_of_real_math(real_data, math_slice, small_world, tmp_path, teacher_url, call_file):
    """Shows that it runs on MATH with the built-in skill list; a toy student and a toy teacher show no more than that."""
    done = call_file("stat_syn.py", "--data", math_slice, "--student", small_world / "student", "--teacher", "toy",
                    "--prm", small_world / "prm", "--embedder", small_world / "embedder", "--teacher-url", teacher_url, "--out", tmp_path / "out",
                    "--limit", "20", "--n-val", "100",
                    "--arms", "base", "stat", "embed", "--epochs", "1", "--max-new-tokens", "8", "--n-pairs", "24",
                    "--no-checkpointing", "--ood", real_data / "gsm8k" / "test.jsonl")
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(read(tmp_path / "out" / "train_stat.jsonl")) == 24 and len(read(tmp_path / "out" / "5_written.jsonl")) >= 20
    problems = {row["id"]: row["problem"] for row in common.load(str(math_slice), "train")}
    for row in read(tmp_path / "out" / "5_written.jsonl")[:20]:
        assert any(problems[i] in (row["problem"] or "") for i in row["references"]) or row["fault"]  # the toy teacher writes around a given one
    assert set(json.loads((tmp_path / "out" / "result.json").read_text())["arms"]["stat"]) == {"MATH", "gsm8k/test"}


def test_right_pairs_alone_and_a_fifth_of_random_ones_are_two_more_arms(whole_run, tmp_path):
    out = shutil.copytree(whole_run[0], tmp_path / "run")
    done = started.run("-m", "toyworld.variants", out)
    assert done.returncode == 0, done.stderr[-2000:]
    problems, (stat, right, mixed, augment) = {row["id"]: row["problem"] for row in read(out / "5_written.jsonl")}, (
        [json.dumps(row) for row in read(out / f"train_{arm}.jsonl")] for arm in ("stat", "stat_right", "stat_mixed", "augment"))
    wrong = [row for row in map(json.loads, stat)
             if not (problem := toy.read(problems[row["id"]])) or f"boxed{{{toy.solve(problem)[1]}}}" not in row["messages"][-1]["content"]]
    assert len(right) == len(mixed) == len(stat) == 40 and set(right) == set(stat) - set(map(json.dumps, wrong))
    assert len([row for row in mixed if row in augment]) == 8 and len(set(mixed)) == 40
    arms = json.loads((out / "result.json").read_text())["arms"]
    assert list(arms)[-2:] == ["stat_right", "stat_mixed"]
    assert all(arms[arm]["MATH"] == [sum(bool(row["is_right"]) for row in read(out / f"7_test_{arm}.jsonl")), 90] for arm in arms)
    shown = started.run("report.py", out, "--brief").stdout
    assert "| beside C2: STAT-Syn, right pairs only > STAT-Syn |" in shown and "| beside C2: STAT-Syn, a fifth random > MATH-Augment |" in shown
    again = started.run("-m", "toyworld.variants", tmp_path)
    assert again.returncode == 2 and "found no args.json" in again.stderr


def test_the_toy_command_goes_on_from_stat_sels(tmp_path, small_world):
    how = {"TOYWORLD_DIR": str(small_world.parent), "cwd": tmp_path}
    common_flags = ["--scale", "0.1", "--limit", "12", "--epochs", "1"]
    for method in ("stat_sel", "stat_syn"):
        done = started.run("-m", "toyworld", method, *common_flags, "--arms", "stat", **how)
        assert done.returncode == 0, done.stderr[-2000:]
    assert world.make_world(small_world.parent, 0, stat_syn.STUDENT_PROMPT, 0.1) == small_world  # the command took the one that was there
    result = json.loads(Path(tmp_path, "runs/toy_stat_syn/seed-0/result.json").read_text())
    assert list(result["arms"]) == ["stat", "sel"] and "goes on from STAT-Sel's run: --profile-from" in done.stdout
    other = started.run("-m", "toyworld", "stat_syn", *common_flags, "--arms", "stat", "--n-val", "50", "--plan", "--out", "b", **how)
    assert other.returncode == 0 and "makes its own profile" in other.stdout and "n_val was 100, is 50" in other.stdout, other.stderr
