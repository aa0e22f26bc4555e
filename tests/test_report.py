"""Intervals and counts by hand; the committed tables are what report.py makes of the committed results."""
import itertools
import json
import re
from pathlib import Path

import pytest

import active_loop
import common
import dart
import gather
import report
import stat_sel
import stat_syn
from experiments import power
from tests.conftest import ROOT
from toyworld import audit

BEFORE = json.loads((ROOT / "tests" / "report_before.json").read_text())


@pytest.mark.parametrize("name", sorted({row[0] for row in BEFORE}))
def test_the_committed_results_give_the_numbers_that_they_gave_before(name):
    """report_before.json: [file, data, arm a, arm b or none, score, mean, low, high] by an earlier report.py from the same runs."""
    path = ROOT / "results" / "pilots" / f"{name}.json"
    results = json.loads((path if path.exists() else ROOT / "results" / path.name).read_text())
    for _, data, a, b, score, *was in [row for row in BEFORE if row[0] == name]:
        runs = (results["data"][data] if data else results)["runs"]
        now = report.lead(runs, a, b, score) if b else report.t_interval([report.value(run, a, score) for run in runs])
        assert now == pytest.approx(was, abs=1e-3), (data, a, b, score)


def test_one_run_has_no_interval():
    one = report.t_interval([5.0])
    assert report.shown(one) == "+5.0" and report.verdict(one) == "not told by one run"
    assert report.shown(report.t_interval([2.0, 2.0]), "") == "2.0 [2.0, 2.0]" and report.verdict(report.t_interval([2.0, 2.0])) == "holds"


def test_t_interval_by_hand():
    assert report.t_interval([1, 2, 3]) == pytest.approx((2, 2 - 4.30265 / 3 ** 0.5, 2 + 4.30265 / 3 ** 0.5), abs=1e-4)
    assert report.t_interval([5.0])[1:] == (-float("inf"), float("inf"))
    assert report.t_interval([2, 2, 2]) == (2, 2, 2)
    assert report.t_interval([1, None, 2, 3]) == report.t_interval([1, 2, 3]) and report.t_interval([None]) is None


QUESTIONS = {"P": {"p1": ["A"], "p2": ["A", "b"], "p3": None},  # the known skill is "S: a"
             "Q_val": {key: ["a"] for key in ("v1", "t4", "v3", "v4", "v5")},  # another set's t4, where --val names one
             "Q_test": {"t1": ["a"], "t2": ["b"], "t3": ["a", "b"], "t4": []}}
VAL = [  # is_right, difficult, rewards, inconsistent, words; at 0.85, 0.7 and 800 words
    (True, False, [0.9, 0.95], False, 800.0),  # as long as the limit: long
    (False, True, [0.9, 0.85], True, 799.9),  # the last step is tau1: difficult
    (None, True, [0.7, 0.99, 0.99, 0.99], True, 900.0),  # an earlier step is tau2: difficult; no final answer: wrong
    (True, True, [0.6, 0.99, 0.99, 0.99, 0.99, 0.99], None, 10.0),
    (False, False, None, False, 10.0)]  # no steps
PROFILE = {"S: c": 1, "S: b": 1} | {f"S: k{i}": 5 for i in range(9)}  # b and c tie for the tenth place: b by its name
RIGHT = {"base": [True, False, None, True], "augment": [True, True, False, False], "stat": [True, True, True, False]}
DRAWN = {"augment": ["p1", "p1", "p2"], "stat": ["p2", "p2", "p3"], "hard": ["p2"]}
ARMS = ("base", "train", "augment", "hard", "embed", "stat", "shuffled", "accuracy")


def write_run(path, seed=1, arms=("base", "augment", "stat"), rewards=True, embedder="embedder", method="stat_sel", criteria="difficulty.jsonl",
              label_test=False, **args):
    """The files of a finished run: four test questions, of which t2 and t3 are difficult, and AMC with two samples of each of two questions.

    criteria: the file whose rows say what each criterion of difficulty finds; older runs have them in 2_graded.jsonl.
    """
    path.mkdir(parents=True)

    def write(name, rows):
        (path / name).write_text("".join(json.dumps(row) + "\n" for row in rows) if name.endswith("l") else json.dumps(rows))
    args = {"seed": seed, "data": f"worlds/mathematics-{seed}-0123abcd", "student": f"worlds/{seed}/student", "prm": f"prm-{seed}", "arms": arms,
            "tau1": 0.85, "tau2": 0.7, "lr": [1e-4],
            "teacher": "toy", "difficulty": "prm", "embedder": embedder and f"worlds/{seed}/{embedder}"} | args
    taught = set(arms) - {"base", "train"}
    write("args.json", args)
    write("env.json", [{"commit": "old", "gpu": "old", "packages": {}}, {"commit": "c" * 40, "gpu": "cpu", "packages": {"torch": "2"}}])
    write("0_questions.jsonl", [{"id": key, "part": part, "subject": "S", "level": None, "skills": skills}
                                for part, rows in QUESTIONS.items() for key, skills in rows.items()])
    val = [{"id": key, "part": "Q_val", "response": "r", "is_right": right, "words": words, "rewards": steps if rewards else None, "difficult": hard}
           for key, (right, hard, steps, _, words) in zip(QUESTIONS["Q_val"], VAL, strict=True)]
    by = [row | {"difficult_by": {"prm": hard if steps and rewards else None, "consistency": inconsistent, "length": words >= 800}}
          for row, (_, hard, steps, inconsistent, words) in zip(val, VAL, strict=True)]
    write("2_graded.jsonl", (by if criteria == "2_graded.jsonl" else val) + [
        {"id": key, "part": "Q_test", "response": "r", "is_right": True, "rewards": None, "difficult": key in ("t2", "t3")}
        for key in QUESTIONS["Q_test"]])
    if criteria == "difficulty.jsonl":
        write(criteria, [{key: row[key] for key in ("id", "is_right", "rewards", "words", "difficult_by")} for row in by])
    if label_test:
        write("labels_test.jsonl", [{"id": "t1", "skills": ["S: c"], "unknown": []}])
    if taught:
        write("3_skill_map.jsonl", [{"id": key, "skills": [skill], "unknown": []} for key, skill in (
            ("p1", "S: b"), ("p2", "S: a"), ("p3", "S: c"))])
    for arm in arms:
        if arm != "base":
            write(f"train_{arm}.jsonl", [{"id": key, "sample": 0, "messages": [{"content": f"{key}?"}, {"content": "!"}]}
                                         for key in DRAWN.get(arm, ["p1", "p2", "p3"])])
        write(f"7_test_{arm}.jsonl", [
            {"set": "MATH", "id": key, "sample": 0, "is_right": right, "cut_off": right is None}
            for key, right in zip(QUESTIONS["Q_test"], RIGHT.get(arm, [False, True, True, True]), strict=True)] + [
            {"set": "AMC", "id": key, "sample": i, "is_right": right, "cut_off": False}
            for key, i, right in (("t1", 0, True), ("t1", 1, False), ("t2", 0, None), ("t2", 1, False))])
        if arm != "base":
            write_lines = [{"time": 0, "train": arm, "epoch": epoch, "seconds": seconds, "peak_gib": 0.5 - epoch / 10}
                           for epoch, seconds in ((1, 9.0), (1, 0.25), (2, 0.75))]  # the first epoch was begun anew
            with open(path / "metrics.jsonl", "a") as f:
                f.write("".join(json.dumps(row) + "\n" for row in write_lines))
    if taught:
        write("4_profile.jsonl", [{"id": f"v{i}", "skills": skills, "fault": None} for i, skills in enumerate(
            [["S: c", "S: b"], *[[f"S: k{i}" for i in range(9)]] * 5])] + [{"id": "v9", "skills": [], "fault": "malformed"}])
    write("result.json", {"method": method, "removed": {"MATH": 0, "AMC": 7},
                          "teacher_totals": {"3 label": {"calls": 3, "n_in": 20, "n_out": 10}}, "arms": {arm: {} for arm in arms}})
    return str(path)


@pytest.fixture
def gathered(tmp_path):
    def make(n=2, **settings):
        results = gather.gather([write_run(tmp_path / str(seed), seed, **settings) for seed in range(n, 0, -1)])
        assert report.tables(results) == report.tables(json.loads(json.dumps(results)))  # from the runs as from the committed file
        return results
    return make


def test_counts_by_hand(gathered):
    results = gathered()
    assert [run["seed"] for run in results["runs"]] == [1, 2] and "seed" not in results["args"] and "prm" not in results["args"]
    run = results["runs"][0]
    assert (run["commits"], run["gpu"]) == (["c" * 10], "cpu")
    base, augment = run["arms"]["base"], run["arms"]["augment"]
    assert base["scores"] == {"MATH": [2, 4], "MATH^D": [0, 2], "off MATH^D": [2, 2], "missed skills": [0, 2],
                              "AMC, avg@2": 25.0, "AMC, pass@2": 50.0}
    assert base["cost"] == {"no answer": 1, "cut off": 1}  # AMC's null is not MATH's
    assert augment["scores"]["MATH^D"] == [1, 2] and augment["scores"]["off MATH^D"] == [1, 2] and augment["scores"]["missed skills"] == [1, 2]
    assert base["by_skill"] == {"S: a": [1, 2], "S: b": [0, 2]} and augment["by_skill"] == {"S: a": [1, 2], "S: b": [1, 2]}
    assert augment["skills_by_teacher"] == {"S: b": 2, "S: a": 1} and augment["skills_by_data"] == {"S: a": 3, "S: b": 1}
    assert base["skills_by_teacher"] == base["skills_by_data"] == {}
    assert augment["cost"] == {"no answer": 0, "cut off": 0, "pairs": 3, "questions": 2, "training s": 1.0, "peak GiB": 0.4}
    assert run["detection"] == {"prm": [2, 1, 0, 1], "consistency": [2, 0, 1, 1], "length": [1, 1, 2, 1]}
    near = pytest.approx(100 / 47)  # of its 3 or 4 labels one or two are on b, which is 1 of the profile's 47
    assert augment["scores"]["near the profile"] == augment["scores"]["near the profile (labels drawn by)"] == near
    assert report.value(run, "base", "AMC, pass@2") == 50 and report.value(run, "base", "S: a") == 50 and report.value(run, "base", "pairs") is None


def test_a_run_with_more_questions_a_skill_is_another_arm(tmp_path):
    whole = write_run(tmp_path / "whole", questions_per_skill=5)
    wide = write_run(tmp_path / "wide", arms=("stat",), questions_per_skill=20)
    results = gather.gather([whole, wide])
    assert list(results["runs"][0]["arms"]) == ["base", "augment", "stat", "stat, 20 a skill"]
    assert "| beside C1: STAT-Sel, 20 a skill > STAT-Sel | not told by one run: +0.0 |" in report.tables(results)
    with pytest.raises(common.UserError, match="its arguments differ"):  # two seeds of one arm, drawn differently
        gather.gather([whole, write_run(tmp_path / "other", seed=2, questions_per_skill=20)])
    alone = gather.gather([write_run(tmp_path / "alone", arms=("base", "stat"), questions_per_skill=20)])
    assert list(alone["runs"][0]["arms"]) == ["base", "stat"]


def test_the_teachers_labels_of_the_test_are_used_where_they_were_asked_for(gathered):
    base = gathered(label_test=True)["runs"][0]["arms"]["base"]
    assert base["by_skill"] == {"S: c": [1, 1]} and base["scores"]["missed skills"] == [0, 0]


def test_the_datas_own_labels_are_spelt_as_the_known_skills_and_ignored_where_they_are_others(tmp_path):
    def read(known, *names):
        rows = [{"id": i, "part": "P", "subject": "S", "skills": some} for i, some in enumerate(names)]
        (tmp_path / "0_questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = gather.own_labels(tmp_path, known)
        assert found["Q_val"] == found["Q_test"] == {}
        return found["P"]
    known = {"S: prime numbers", "S: sums"}
    assert read(known, ["Prime_Numbers", "sums"], None, []) == {0: ["S: prime numbers", "S: sums"], 1: [], 2: []}
    assert read(known, ["sums"] * 19, ["magic"]) == {0: ["S: sums"] * 19, 1: []}  # 5 % of others
    assert read(known, ["sums"] * 18, ["magic"]) == {}
    assert read(set(), ["magic"]) == {0: ["S: magic"]}  # no skill map


def test_the_arms_by_hand_and_nothing_on_math_d_against_base(gathered):
    results = gathered()
    text, brief = report.tables(results), report.tables(results, brief=True)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["arm", "MATH (4)", "MATH^D (2)", "off MATH^D (2)", "missed skills (2)", "AMC, avg@2", "AMC, pass@2", "near the profile",
                       "near the profile (labels drawn by)"]
    assert rows[2][:4] == ["base", "50.0 [50.0, 50.0]", "0.0 [0.0, 0.0]", "100.0 [100.0, 100.0]"]
    assert rows[4][:3] == ["stat", "75.0 [75.0, 75.0]", "100.0 [100.0, 100.0]"]
    claims = {row[0]: row[1:] for row in rows if row[0].startswith("C1")}
    assert claims["C1: STAT-Sel > MATH-Augment"][:2] == ["holds*: +25.0 [+25.0, +25.0]", "holds*: +50.0 [+50.0, +50.0]"]
    assert claims["C1: MATH-Augment > base"][:3] == ["is open: +0.0 [+0.0, +0.0]", "", ""]
    assert "| augment | 0 | 0 | 3.00 | 2.00 | 1.00 | 0.40 |" in text and "| base | 0.00 | 1.00 |" not in text
    assert "C6: of the 1 most-missed skills the mean rises on 1, beyond its corrected interval on 1 (Fig. 4" in text
    assert "Means over runs" not in brief and "C6" in brief


@pytest.mark.parametrize("arms", [tuple(arm for arm in ARMS if arm in some) for n in (1, 2, 3, 8) for some in itertools.combinations(ARMS, n)])
def test_tables_of_any_arms(gathered, arms):
    results = gathered(n=1 + len(arms) % 2, arms=arms)
    shown = report.tables(results)
    assert all(f"\n| {arm} | " in shown for arm in arms) and "nan" not in shown and "None" not in shown
    for claim, needs in (("| C1: STAT-Sel > MATH-Augment", "stat augment"), ("| C1: MATH-Augment > base", "augment base"),
                         ("| C3", "stat embed"), ("| baseline: STAT-Sel > MATH-Train", "stat train"),
                         ("| baseline: STAT-Sel > MATH-Hard", "stat hard"), ("| control: STAT-Sel > shuffled", "stat shuffled"),
                         ("| control: STAT-Sel > accuracy", "stat accuracy"), ("C6: ", "stat base")):
        assert (f"\n{claim}" in shown) == (set(needs.split()) <= set(arms)), claim
    assert ("beyond its corrected interval" in shown) == ("\nC6: " in shown and len(results["runs"]) > 1)
    assert ("| claim |" in shown) == ("stat" in arms and len({*arms} - {"base"}) > 1 or {"augment", "base"} <= set(arms))


SYN = ("base", "augment", "stat", "shuffled", "embed", "sel", "embed_sel")


def test_stat_syns_claims_stand_beside_stat_sels(tmp_path):
    for seed in (1, 2):
        path = tmp_path / str(seed)
        write_run(path, seed, arms=SYN, method="stat_syn")
        rows = [json.loads(line) for line in (path / "train_stat.jsonl").read_text().splitlines()]
        (path / "train_stat.jsonl").write_text("".join(json.dumps(row | {"id": f"stat/{i}", "skill": "S: c"}) + "\n" for i, row in enumerate(rows)))
        logged = [line for line in (path / "metrics.jsonl").read_text().splitlines() if "sel" not in json.loads(line)["train"]]
        (path / "metrics.jsonl").write_text("\n".join(logged) + "\n")  # what is taken over was trained elsewhere
        (path / "5_written.jsonl").write_text("".join(
            json.dumps({"id": f"{arm}/{i}", "arm": arm}) + "\n" for arm in ("stat", "embed") for i in range(4)))
        (path / "dropped.jsonl").write_text("".join(
            json.dumps({"id": f"stat/{i}", "arm": "stat", "dropped": why}) + "\n" for i, why in ((0, "inconsistent"), (3, "in P"))))
    results = gather.gather([str(tmp_path / "1"), str(tmp_path / "2")])
    assert results["runs"][0]["arms"]["stat"]["skills_by_teacher"] == {"S: c": 3}  # of a new question the skill that was asked for
    shown = report.tables(results)
    rows = {row[0]: row[1:] for line in shown.splitlines() if (row := [cell.strip() for cell in line.split("|")[1:-1]])}
    for claim, on_math, paper in (
            ("C2: STAT-Syn > MATH-Augment", "+25.0 [+25.0, +25.0]", "MATH +5.0, +2.8, +6.7; MATH^D +7.8, +3.6, +4.1"),
            ("C1: STAT-Sel > MATH-Augment", "+25.0 [+25.0, +25.0]", "MATH +6.3, +1.8, +4.6; MATH^D +2.7, +2.0, +1.4"),
            ("C4: STAT-Syn > STAT-Sel", "+0.0 [+0.0, +0.0]", "MATH -1.3, +1.0, +2.1; MATH^D +5.1, +1.6, +2.7"),
            ("beside C3: STAT-Syn > Embed-Syn", "+0.0 [+0.0, +0.0]", "MATH +1.4, +3.0, +6.1; MATH^D +4.4, +1.8, +1.1"),
            ("C3: STAT-Syn > Embed-Sel", "+0.0 [+0.0, +0.0]", "MATH +4.2, +1.9, +7.1; MATH^D +5.2, +2.8, +2.7"),
            ("control: STAT-Syn > shuffled STAT-Syn", "+0.0 [+0.0, +0.0]", "")):
        assert rows[claim][0].endswith(on_math) and rows[claim][-1] == paper, claim
    assert "STAT-Sel > shuffled" not in shown and "MATH-Train" not in shown
    written = {arm: {name: n for name, n in one["cost"].items() if name in ("asked for", "kept") or name.startswith("dropped")}
               for arm, one in results["runs"][0]["arms"].items()}
    assert written["stat"] == {"asked for": 4, "kept": 2, "dropped: inconsistent": 1, "dropped: in P": 1}
    assert written["embed"] == {"asked for": 4, "kept": 4} and not written["sel"] and "None" not in shown
    assert "training s" not in results["runs"][0]["arms"]["sel"]["cost"]


def test_an_older_run_without_an_embedder_says_so(gathered, tmp_path):
    words = "C3: STAT-Sel > Embed-Sel (its embedder: the student's own hidden states)"
    assert words in report.tables(gathered(arms=("embed", "stat"), embedder=None))
    one = write_run(tmp_path / "with", arms=("embed", "stat"), embedder="gte-Qwen2-7B-instruct")
    assert "| C3: STAT-Sel > Embed-Sel | not told by one run: +0.0 |" in report.tables(gather.gather([one]))


def test_c5_holds_where_the_targeted_pairs_are_nearer(gathered):
    results = gathered()
    for run in results["runs"]:
        run["arms"]["stat"]["scores"]["near the profile"] = 100.0
    nearer = f"{100 * (1 - 1 / 47):+.1f}"
    (row,) = [line for line in report.tables(results).splitlines() if line.startswith("| C1: STAT-Sel > MATH-Augment")]
    assert f"| holds*: {nearer} [{nearer}, {nearer}] |" in row


def test_the_seconds_of_all_learning_rates_count(gathered, tmp_path):
    path = Path(write_run(tmp_path / "one", arms=("embed", "embed_sel"), lr=[1e-5, 2e-3]))
    (path / "metrics.jsonl").write_text("".join(json.dumps({"train": name, "epoch": 1, "seconds": s, "peak_gib": g}) + "\n" for name, s, g in (
        ("embed_1e-05", 50, 3), ("embed_1e-05", 1, 3), ("embed_0.002", 2, 4), ("embed_sel", 7, 5))))
    arms = gather.gather([str(path)])["runs"][0]["arms"]
    assert [(arm["cost"]["training s"], arm["cost"]["peak GiB"]) for arm in arms.values()] == [(3, 4), (7, 5)]


def test_without_a_teacher_there_are_no_labels_and_no_profile(gathered):
    shown = report.tables(gathered(arms=("base", "train")))
    assert "| train | 75.0" in shown and "most-missed" not in shown


def small(base, stat, profile=()):
    return {"profile": dict(profile), "arms": {"base": {"scores": {"MATH": [base, 10], "MATH^D": [base, 10]}},
                                               "stat": {"scores": {"MATH": [stat, 10], "MATH^D": [0, 0]}}}}


def test_differences_are_paired_within_a_run():
    runs = [small(2, 4), small(7, 9), small(4, 6)]
    assert report.lead(runs, "stat", "base", "MATH") == pytest.approx((20, 20, 20))  # +2 of 10 each time, whatever the level
    assert report.lead(runs, "stat", "base", "MATH^D") is None and report.shown(None) == ""


def test_distance_to_the_profile_by_hand():
    assert gather.total_variation({"S: a": 1, "S: b": 1}, {"S: a": 5, "S: b": 5}) == 0
    assert gather.total_variation({"S: a": 3, "S: b": 1}, {"S: a": 1, "S: b": 1}) == 25
    assert gather.total_variation({"S: a": 3}, {"S: b": 1}) == 100
    assert gather.total_variation({"T: a": 1, "S: a": 1}, {"S: a": 1}) == 50


def test_most_missed_pools_the_runs_and_breaks_ties_by_name():
    runs = [small(1, 1, profile={"S: b": 2, "S: a": 1}), small(1, 1, profile={"S: a": 1, "T: c": 9})]
    assert gather.most_missed(runs) == ["T: c", "S: a", "S: b"] and gather.most_missed(runs, top=1) == ["T: c"]


def test_runs_that_differ_in_how_they_ran_are_gathered():
    free = set(gather.MAY_DIFFER[""].split())
    may_change = {name for method in (stat_sel, stat_syn, active_loop, dart) for name in method.MAY_CHANGE}
    assert may_change | {"prm"} <= free and {"lr", "n_pairs", "arms"}.isdisjoint(free)


def test_an_unfinished_run_is_refused(tmp_path, run_file):
    done = run_file("report.py", tmp_path)
    assert done.returncode == 2 and "result.json" in done.stderr and "Traceback" not in done.stderr


def test_a_file_that_cannot_be_written_is_one_sentence(monkeypatch, capsys):
    for module, name in ((report, "toy_dart"), (audit, "audit_dart")):
        monkeypatch.setattr("sys.argv", [module.__name__, str(ROOT / "results" / f"{name}.json"), "--save", "/dev/full"])
        assert module.main() == 2 and "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["audit_stat_syn.json", "scorer.json"])
def test_another_results_file_is_refused(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["report.py", str(ROOT / "results" / name)])
    assert report.main() == 2 and "expected a file that report.py --save wrote" in capsys.readouterr().err


def test_runs_with_other_arguments_are_refused(tmp_path):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", seed=2, tau1=0.9)
    with pytest.raises(common.UserError, match="two: its arguments differ from those of .*one: tau1; gather"):
        gather.gather([one, two])


def test_the_same_seed_twice_is_refused(tmp_path):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two")
    with pytest.raises(common.UserError, match="came twice"):
        gather.gather([one, two])


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "results").glob("toy_*.json")))
def test_the_committed_results_are_of_five_seeds(name):
    results = json.loads((ROOT / "results" / name).read_text())
    for part in results.get("data", {"": results}).values():
        assert len({run["seed"] for run in part["runs"]}) == len(part["runs"]) >= 5 and results["command"]


# --- Active loop. -------------------------------------------------------------------------------------------------------------------------------
def write_active(path, seed, select, rights, **args):
    path.mkdir(parents=True)
    more = {"asked": 12, "dropped": {"in a test set": 3}, "cut_off": 1, "again": 0, "overlap": 2, "rho_length": None,
            "rho_children": 0.5 if select == "loss" else None}
    curve = [{"round": t, "items": 10 * t, "right": [k, 100], "tokens": [100 * t, 50 * t]} | (more if t < len(rights) - 1 else {})
             for t, k in enumerate(rights)]
    for name, value in (("result.json", {"method": "active_loop", "select": select, "curve": curve, "teacher_totals": {}}),
                        ("args.json", {"seed": seed, "select": select, "no_repeat": True, "teacher": "toy", "data": f"mathematics-{seed}-0123abcd",
                                       "student": f"world-{seed}/student", "out": str(path)} | args),
                        *((f"r{t}_items.json", {"rows": [{"seed": "s1"}, {"seed": "s2" if select == "loss" else "s3"}]}) for t in (0, 1)),
                        ("r0_selected.json", {"scores": {"s1": 1.0, "s2": 0.0, "s3": 0.0, "s4": 0.0}}),
                        ("env.json", [{"commit": "c" * 40, "gpu": "cpu", "packages": {}}])):
        (path / name).write_text(json.dumps(value))
    logged = [{"step": "r0_answers.jsonl", "seconds": 9}, {"step": "r0_answers.jsonl", "seconds": 10}, {"step": "r1_answers.jsonl", "seconds": 10},
              {"step": "r0_selected.json", "seconds": 3}, {"step": "r0_test_answers.jsonl", "seconds": 7}, {"step": "r0_test.jsonl", "seconds": 8},
              {"train": "r1", "epoch": 1, "seconds": 4}, {"train": "r1", "epoch": 2, "seconds": 5}, {"tau": 1}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logged))
    return str(path)


@pytest.fixture
def active(tmp_path):
    curves = {"random": ([50, 52, 54], [50, 51, 56]), "loss": ([50, 56, 60], [50, 53, 58]), "static_loss": ([50, 54, 60], [50, 53, 58])}
    return gather.gather([write_active(tmp_path / f"{c}-{seed}", seed, c, rows[seed]) for c, rows in curves.items() for seed in (0, 1)])


def test_the_active_loops_tables_by_hand(active):
    part = active["data"]["mathematics"]
    assert [run["seed"] for run in part["runs"]] == [0, 1] and "select" not in part["args"]
    shown = report.tables(active)
    assert report.tables(json.loads(json.dumps(active))) == shown
    assert "| random | 50.0 [50.0, 50.0] | 51.5 [45.1, 57.9] | 55.0 [42.3, 67.7] |" in shown  # 12.706 / 2 times the distance of the two
    a1 = report.t_interval([(4 + 6) / 2, (2 + 2) / 2])
    assert f"| A1: loss > random | {report.verdict(a1)}: {report.shown(a1)} | is open: +4.0 " in shown
    assert "| closed loop: loss > static_loss | is open: +0.5 " in shown and "| hard seeds: static_loss > random |" in shown
    assert "holds; of all rounds: random 0, loss 4, static_loss 3." in shown and "A4" not in shown
    assert "None" not in shown and "nan" not in shown
    cost = part["runs"][0]["arms"]["loss"]["cost"]
    assert {name: cost[name] for name in ("tokens in", "tokens", "asked", "in a test set", "cut_off", "again", "overlap", "rho_children")} == {
        "tokens in": 200, "tokens": 300, "asked": 12, "in a test set": 3, "cut_off": 1, "again": 0, "overlap": 2, "rho_children": 0.5}
    seconds = [cost[f"{phase} s"] for phase in ("answers", "selected", "train", "test_answers")]
    assert seconds == [20, 3, 9, 7]  # the later of two lines for one step counts


def test_accuracy_at_equal_tokens_by_hand(active):
    run = active["data"]["mathematics"]["runs"][0]
    for row in run["arms"]["loss"]["curve"]:
        row["tokens"] = [2 * n for n in row["tokens"]]  # loss pays twice as much: 300 tokens buy it one round
    assert report.lead([run], "loss", "random", "at equal teacher tokens")[0] == pytest.approx(56 - 54)
    assert report.lead([run], "loss", "random", "last round")[0] == pytest.approx(6)
    none = [row | {"tokens": [0, 0]} for row in run["arms"]["loss"]["curve"]]
    assert report.at_equal_tokens(none, none[:1] + run["arms"]["random"]["curve"][1:]) == 0  # before any token both are the base
    assert report.lead([run], "loss", "random", "mean over rounds")[0] == pytest.approx(5)


def test_the_papers_numbers_are_those_of_the_page():
    """report.py's, beside the whole Table 3 in docs/stat.md."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (ROOT / "docs" / "stat.md").read_text().splitlines()
            if re.match(r"\|[^|]*\| [\w-]+ (\| \d+\.\d ){10}\|$", line)]
    assert len(rows) == 24
    for arm, numbers in report.PAPER["MATH"].items():
        assert numbers == tuple(float(row[2]) for row in rows if row[1] == arm)
    for arm, numbers in report.PAPER["MATH^D"].items():
        assert numbers == tuple(float(row[3]) for row in rows if row[1] == arm)


def test_active_runs_must_agree_and_be_complete(tmp_path):
    one = write_active(tmp_path / "a", 0, "loss", [1, 2])
    with pytest.raises(common.UserError, match="the same arms, and as many rounds"):
        gather.gather([one, write_active(tmp_path / "b", 1, "random", [1, 2])])
    with pytest.raises(common.UserError, match="came twice"):
        gather.gather([one, write_active(tmp_path / "c", 0, "loss", [1, 2])])
    with pytest.raises(common.UserError, match="arguments differ"):
        gather.gather([one, write_active(tmp_path / "d", 0, "random", [1, 2], lr=1)])
    with pytest.raises(common.UserError, match="as many rounds"):
        gather.gather([one, write_active(tmp_path / "e", 0, "random", [1, 2, 3])])
    with pytest.raises(common.UserError, match="its data or student"):
        gather.gather([one, write_active(tmp_path / "f", 0, "random", [1, 2], student="elsewhere/student")])


def test_what_no_round_of_a_loop_has_counts_as_zero_and_parts_of_a_step_count_once(tmp_path):
    path = tmp_path / "a"
    write_active(path, 0, "badge", [50, 52, 54], norm="sum")
    result = json.loads((path / "result.json").read_text())
    result["curve"][0]["dropped"], result["curve"][1]["dropped"] = {"missing tag": 4}, {}
    (path / "result.json").write_text(json.dumps(result))
    with open(path / "metrics.jsonl", "a") as f:
        f.write("".join(json.dumps({"step": name, "seconds": 5}) + "\n" for name in (
            "r0_answers.round_0.jsonl", "r1_test_answers.round_1.jsonl", "r1_child_answers.jsonl", "train_r1.jsonl", "0_questions.jsonl")))
    (badge, arm), = gather.read_run(path)[2]["arms"].items()
    assert badge == "badge" and arm["cost"]["missing tag"] == 2  # its order does not change with the norm
    assert {name: x for name, x in arm["cost"].items() if name.endswith(" s")} == {
        "answers s": 20, "selected s": 3, "train s": 9, "test_answers s": 7}


def test_a_loop_and_another_method_are_no_one_table(tmp_path):
    paths = [write_active(tmp_path / "a", 0, "loss", [50, 60]), write_dart(tmp_path / "b", 0, {"base": [5, 5, 9], "dart": [8, 6, 9]})]
    with pytest.raises(common.UserError, match="runs of one method"):
        gather.gather(paths)
    with pytest.raises(common.UserError, match="an arm that belongs"):
        gather.gather([write_dart(tmp_path / "c", 0, {"base": [5, 5, 9], "grpo": [8, 6, 9]}, penalty=False)])


def test_two_sets_of_data_make_two_parts(tmp_path):
    paths = [write_active(tmp_path / f"{data}-{c}", 0, c, [50, 60], data=data)
             for data in ("a/deduction-0-89abcdef", "gsm8k") for c in ("loss", "random")]
    results = gather.gather(paths)
    assert list(results["data"]) == ["deduction", "gsm8k"] and report.tables(results).count("A1: loss > random") == 2


# --- DART. --------------------------------------------------------------------------------------------------------------------------------------
def write_dart(path, seed, arms, penalty=True, **args):
    """arms: name -> right answers of 10 in each column."""
    path.mkdir(parents=True)
    columns = {"d": "in distribution", "o.jsonl": "out of distribution", "r.jsonl": "retention"}
    data = {"log_prob": -1.0, "unlikely": 0.25, "fallback": 0.5, "uplift": 3.0 if penalty else 2.0,
            "cheats": {"copy": 0.0, "false equation": 0.0 if penalty else 0.2}}
    files = {"result.json": {"method": "dart", "arms": list(arms), "columns": columns, "n": 4,
                             "cost": {arm: {"generated": 100, "scored": 50, "rl_steps": 2} for arm in arms},
                             "data": {arm: data for arm in arms if arm != "base"}},
             "args.json": {"seed": seed, "penalty": penalty, "arms": list(arms), "data": "demonstrations-7-0123abcd",
                           "student": f"w-{seed}/student", "out": str(path),
                           "ood": ["o.jsonl"], "retention": ["r.jsonl"]} | args,
             "env.json": [{"commit": "c" * 40, "gpu": "cpu", "packages": {}}]}
    for name, value in files.items():
        (path / name).write_text(json.dumps(value))
    for arm, rights in arms.items():
        rows = [{"id": str(i), "set": name, "is_right": i < k, "cut_off": i == 9} for name, k in zip(columns, rights, strict=True) for i in range(10)]
        (path / f"5_test_{arm}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "args.json").write_text(json.dumps({"lr": [0.002]} | files["args.json"]))
    step = {"reward": 0.5, "align": 0.4, "is_right": 0.7, "generated": 80, "length": 9, "cheats": {"copy": 0.25}, "fails": {}}
    for name in ("mapper", "grpo"):
        (path / f"2_steps_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (
            {"step": 0, "generated": 0, "held_out": 0.5}, step | {"step": 1, "kl": 0.0}, step | {"step": 2, "kl": 0.1})))
    logged = [{"step": "1_own.jsonl", "seconds": 10}, {"step": "1_levels.jsonl", "seconds": 5},
              {"grpo": "mapper", "step": 1, "seconds": 9, "peak_gib": 1.0}, {"grpo": "mapper", "step": 1, "seconds": 2, "peak_gib": 1.5},
              {"grpo": "mapper", "step": 2, "seconds": 3, "peak_gib": 1.25},
              {"step": "3_rewrites_dart.jsonl", "seconds": 4}, {"step": "3_chosen_dart.jsonl", "seconds": 1},
              {"train": "dart_0.002", "epoch": 1, "seconds": 12, "peak_gib": 1.0}, {"train": "dart_5e-05", "epoch": 1, "seconds": 8, "peak_gib": 1.0},
              {"train": "dart_0.002", "epoch": 1, "seconds": 12, "peak_gib": 1.0}, {"train": "sft", "epoch": 1, "seconds": 21, "peak_gib": 1.0},
              {"step": "5_test_dart.jsonl", "seconds": 99}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logged))
    return str(path)


def test_darts_tables_by_hand(tmp_path):
    paths = [write_dart(tmp_path / f"{seed}", seed, {"base": [5, 5, 9], "sft": [4, 3, 2], "dart": [8, 6 + seed, 9]}) for seed in (0, 1)]
    paths += [write_dart(tmp_path / f"{seed}n", seed, {"base": [5, 5, 9], "dart": [7, 6, 9]}, penalty=False) for seed in (0, 1)]
    paths += [write_dart(tmp_path / f"{seed}p", seed, {"sft": [9, 7, 9]}, data="demonstrations-7-0123abcd/perfect") for seed in (0, 1)]
    paths += [write_dart(tmp_path / f"{seed}r", seed, {"dart": [9, 7, 9]}, reject_cheats=True) for seed in (0, 1)]
    results = gather.gather(paths)
    assert [set(run["arms"]) for run in results["runs"]] == [{"base", "sft", "dart", "dart, rejecting", "no penalty", "perfect"}] * 2
    shown = report.tables(json.loads(json.dumps(results)))
    cost = results["runs"][0]["arms"]["dart"]["cost"]
    assert (cost["generated"], cost["scored"], cost["rl_steps"], cost["cut off"], cost["log_prob"], cost["copy"]) == (100, 50, 2, 3, -1, 0)
    assert (cost["training s"], cost["peak GiB"]) == (2 + 3 + 12 + 8, 1.5)  # two steps of the mapper (the later of two lines counts), two rates
    assert "| dart | 80.0 [80.0, 80.0] | 65.0 [1.5, 128.5] | 90.0 [90.0, 90.0] |" in shown
    assert "| D1: dart > sft | holds*: +40.0 [+40.0, +40.0] | is open: +35.0 [-28.5, +98.5] | holds*: +70.0 [+70.0, +70.0] |" in shown
    assert "| beside D2, the ceiling: perfect > dart | holds*: +10.0 [+10.0, +10.0] |" in shown
    assert "| D4: dart > no penalty | holds*: +10.0 [+10.0, +10.0] |" in shown and "D2: dart > prompt" not in shown and "| D3" not in shown
    assert "| holds*: +1.0 [+1.0, +1.0] | holds*: +20.0 [+20.0, +20.0] |" in shown  # uplift, rewrites without a false equation
    assert "| beside D4: dart, rejecting > dart | holds*: +10.0 [+10.0, +10.0] |" in shown and "| beside D1: dart > base | holds*: +30.0" in shown
    assert "None" not in shown and "nan" not in shown


def test_a_folder_of_ones_own_named_perfect_is_data_like_any(tmp_path):
    path = write_dart(tmp_path / "a", 0, {"base": [5, 5, 9], "dart": [8, 6, 9]}, data="mine/perfect")
    assert list(gather.gather([path])["runs"][0]["arms"]) == ["base", "dart"]


def test_d3_by_hand(tmp_path):
    paths = [write_dart(tmp_path / f"{seed}", seed, {"base": [4, 4, 9], "grpo": [8, 4, 7], "dart": [7, 6, 9]}, curve=2) for seed in (0, 1)]
    for path in paths:
        rows = [{"id": str(i), "set": name, "is_right": i < k, "cut_off": False}
                for name, k in (("d", 6), ("o.jsonl", 5), ("r.jsonl", 8)) for i in range(10)]
        (Path(path) / "5_test_grpo_1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = report.tables(json.loads(json.dumps(gather.gather(paths))))
    assert "| grpo at 1/2 | 60.0 [60.0, 60.0] | 50.0 [50.0, 50.0] | 80.0 [80.0, 80.0] |" in shown
    assert "| D3: dart > grpo | is reversed*: -10.0 [-10.0, -10.0] | holds*: +20.0" in shown


@pytest.mark.parametrize("arms", [("dart",), ("sft", "dart"), ("base", "grpo"), ("base", "grpo", "dart")])
def test_a_part_of_the_arms_and_columns_is_enough(arms, tmp_path):
    path = Path(write_dart(tmp_path / "a", 0, dict.fromkeys(arms, [5, 6, 7]), curve=1))
    result = json.loads((path / "result.json").read_text())
    (path / "result.json").write_text(json.dumps(result | {"columns": {"d": "in distribution", "o.jsonl": "out of distribution"}}))
    for file in path.glob("5_test_*.jsonl"):  # no set for retention
        file.write_text("".join(line + "\n" for line in file.read_text().splitlines() if "r.jsonl" not in line))
    (path / "metrics.jsonl").unlink()
    shown = report.tables(json.loads(json.dumps(gather.gather([str(path)]))))
    assert all(f"| {arm} | 50.0 | 60.0 |" in shown for arm in arms) and "nan" not in shown and "None" not in shown


def test_dart_runs_must_agree(tmp_path):
    one = write_dart(tmp_path / "a", 0, {"base": [5, 5, 9], "dart": [8, 6, 9]})
    for name, seed, words, more in (("b", 0, "came twice", {}), ("c", 1, "arguments differ", {"epochs": 1}),
                                    ("d", 0, "data or student", {"data": "e"})):
        with pytest.raises(common.UserError, match=words):
            gather.gather([one, write_dart(tmp_path / name, seed, {"base": [5, 5, 9], "dart": [8, 6, 9]}, **more)])
    with pytest.raises(common.UserError, match="the same arms"):
        gather.gather([one, write_dart(tmp_path / "e", 1, {"base": [5, 5, 9]})])


def test_files_of_single_seeds_join_as_their_runs_do(tmp_path, monkeypatch, capsys):
    paths = [write_run(tmp_path / str(seed), seed) for seed in (1, 2)]
    paths += [write_dart(tmp_path / f"dart-{seed}", seed, {"base": [5, 5, 9], "dart": [8, 6, 9]}) for seed in (0, 1)]
    paths += [write_active(tmp_path / f"{c}-{seed}", seed, c, [50, 60]) for seed in (0, 1) for c in ("loss", "random")]
    for some in (paths[:2], paths[2:4], paths[4:]):
        files = []
        for path in some:
            files.append(f"{path}.json")
            monkeypatch.setattr("sys.argv", ["report.py", path, "--save", files[-1]])
            assert report.main() == 0
        assert gather.gather(files) == json.loads(json.dumps(gather.gather(some)))
    with pytest.raises(common.UserError, match="came twice"):
        gather.gather([files[0], some[0]])
    seeds = sorted(map(str, (ROOT / "results" / "real_stat_sel").glob("seed-*.json")))
    assert report.tables(gather.gather(seeds)) == report.tables(gather.read_results(ROOT / "results" / "real_stat_sel.json"))
    capsys.readouterr()


# --- Power: what a table can show, before it is made.
def test_power_by_hand():
    def pilot(**right):
        return {"method": "stat_sel", "arms": {arm: {"scores": {"MATH": [k, 100]}} for arm, k in right.items()}}
    pilots = {"runs": [pilot(base=90 + n, augment=80, stat=82 + 2 * n) for n in range(3)]}
    # Leads 2, 4, 6 have sd 2; t(7) = 2.3646; 2.3646 x 2 / sqrt(8) = 1.67. Random pairs have 80 of 100, so 20 are left.
    assert "| C1: STAT-Sel > MATH-Augment | MATH | +4.0 | 1.7 | 20.0 | yes |" in power.power(pilots, 8)
    assert "| C1: MATH-Augment > base | MATH | -11.0 | 9.0 | 9.0 | yes |" in power.power(pilots, 2)  # 12.706 x 1 / sqrt(2) = 8.98 < 9


def test_one_pilot_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["power.py", str(ROOT / "results" / "pilots" / "pilot_dart.json")])
    assert power.main() == 2 and "expected two pilots or more" in capsys.readouterr().err


def test_of_dart_perfect_demonstrations_are_the_ceiling():
    runs = [{"method": "dart", "arms": {arm: {"scores": {"in distribution": [k, 100]}} for arm, k in
             {"dart": 70 + n, "grpo": 80, "perfect": 83}.items()}} for n in (0, 4)]
    # sd of -10 and -6: 2.83; with two seeds 12.706 x 2.83 / sqrt(2) = 25.4; perfect is 3 above grpo.
    assert "| D3: dart > grpo | in distribution | -8.0 | 25.4 | 3.0 | no |" in power.power({"runs": runs}, 2)


# --- What else is refused, or read. -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("content", [[], {"runs": []}, {"data": "math", "seed": 0}, {"data": {"dart": {"log_prob": -1}}}, {"data": {}}, {"runs": 3}])
def test_a_file_of_another_kind_is_refused(content, tmp_path, monkeypatch, capsys):
    (tmp_path / "args.json").write_text(json.dumps(content))
    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path / "args.json")])
    assert report.main() == 2 and "expected a file that report.py --save wrote" in capsys.readouterr().err


def test_seeds_of_other_data_are_refused(tmp_path):
    for two in ("mine-20240202", "other"):
        paths = [write_run(tmp_path / f"{two}-{seed}", seed, data=data, student="s") for seed, data in ((1, "mine-20240101"), (2, two))]
        with pytest.raises(common.UserError, match=f"its data, {two}, are not mine-20240101"):
            gather.gather(paths)
    worlds = [write_run(tmp_path / str(seed), seed, data=f"runs/toyworld/mathematics-{seed}-0123abc{seed}", student="s") for seed in (1, 2)]
    assert len(gather.gather(worlds)["runs"]) == 2


def test_stat_syns_runs_of_one_seed_join(tmp_path):
    paths = [write_run(tmp_path / arms[-1], arms=arms, method="stat_syn") for arms in (("base", "augment"), ("stat",))]
    env = Path(paths[1]) / "env.json"
    env.write_text(env.read_text().replace('"cpu"', '"H100"'))
    (run,) = gather.gather(paths)["runs"]
    assert list(run["arms"]) == ["base", "augment", "stat"] and run["gpu"] == "cpu, H100"


def test_a_loop_without_a_round_is_refused(tmp_path):
    with pytest.raises(common.UserError, match="expected a round of training"):
        gather.gather([write_active(tmp_path / "a", 0, "loss", [50])])


def test_rounds_with_other_numbers_of_items_are_compared(tmp_path):
    paths = [write_active(tmp_path / name, 0, name, [50, 60, right]) for name, right in (("loss", 70), ("random", 65))]
    result = json.loads((tmp_path / "random" / "result.json").read_text())
    result["curve"][2]["items"] = 19
    (tmp_path / "random" / "result.json").write_text(json.dumps(result))
    assert "best or tied most often: holds; of all rounds: loss 2, random 1." in report.tables(gather.gather(paths))
