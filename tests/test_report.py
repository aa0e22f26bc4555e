"""Intervals by hand; the committed tables are what report.py makes of the committed results."""
import doctest
import json
import re

import pytest

import report
import stat_sel
from tests.conftest import ROOT


def test_doctests():
    assert doctest.testmod(report) == doctest.TestResults(failed=0, attempted=1)


@pytest.mark.parametrize("p, df, table", [
    (0.975, 1, 12.7062), (0.975, 4, 2.7764), (0.975, 30, 2.0423), (0.95, 2, 2.9200), (0.9975, 4, 5.5976), (0.75, 1, 1.0)])
def test_t_quantile_equals_the_printed_tables(p, df, table):
    assert report.t_quantile(p, df) == pytest.approx(table, abs=1e-4)


def test_t_interval_by_hand():
    assert report.t_interval([1, 2, 3]) == pytest.approx((2, 2 - 4.30265 / 3 ** 0.5, 2 + 4.30265 / 3 ** 0.5), abs=1e-4)
    assert report.t_interval([5.0])[1:] == (-float("inf"), float("inf"))
    assert report.t_interval([2, 2, 2]) == (2, 2, 2)


def run(seed, base, stat, train_skills, profile):
    arm = {"n": 10, "n_pairs": 4, "n_questions": 3, "train_seconds": 1.0, "peak_gib": 0.5, "skills_by_teacher": train_skills}
    return {"seed": seed, "profile": profile, "arms": {
        "base": arm | {"k": base, "skills_by_data": {}, "skills_by_teacher": {}, "by_skill": {"b": [base, 10]}},
        "stat": arm | {"k": stat, "skills_by_data": train_skills, "by_skill": {"b": [stat, 10]}}}}


def test_differences_are_paired_within_a_run():
    runs = [run(1, 2, 4, {}, {}), run(2, 7, 9, {}, {}), run(3, 4, 6, {}, {})]
    assert report.difference(runs, "stat", "base") == pytest.approx((20, 20, 20))  # +2 of 10 each time, whatever the level


def test_distance_to_the_profile_by_hand():
    assert report.distance_to_profile(run(1, 2, 4, {"S: a": 1, "S: b": 1}, {"S: a": 5, "S: b": 5}), "stat", "skills_by_data") == 0
    assert report.distance_to_profile(run(1, 2, 4, {"S: a": 3, "S: b": 1}, {"S: a": 1, "S: b": 1}), "stat", "skills_by_data") == 25
    assert report.distance_to_profile(run(1, 2, 4, {"S: a": 3}, {"S: b": 1}), "stat", "skills_by_data") == 100
    assert report.distance_to_profile(run(1, 2, 4, {}, {"S: b": 1}), "stat", "skills_by_data") is None  # the data has no labels
    assert report.distance_to_profile(run(1, 2, 4, {"T: a": 1, "S: a": 1}, {"S: a": 1}), "stat", "skills_by_teacher") == 50


def test_most_missed_pools_the_runs_and_breaks_ties_by_name():
    runs = [run(1, 1, 1, {}, {"S: b": 2, "S: a": 1}), run(2, 1, 1, {}, {"S: a": 1, "T: c": 9})]
    assert report.most_missed(runs) == ["T: c", "S: a", "S: b"] and report.most_missed(runs, top=1) == ["T: c"]


def test_data_without_labels_still_gives_a_table():
    runs = [run(seed, 5, 6, {}, {"S: a": 1}) | {"commit": "c", "gpu": "cpu", "teacher_totals": {}} for seed in (1, 2)]
    for one in runs:
        one["arms"] |= {"augment": one["arms"]["stat"], "shuffled": one["arms"]["stat"]}
        for arm in one["arms"].values():
            arm |= {"by_skill": {}, "missed": (0, 0), "other": (5, 10)}
    shown = report.tables({"runs": runs})
    assert "| C1: STAT-Sel > MATH-Augment | is open" in shown and "C6" not in shown and "C5" not in shown


def test_runs_that_differ_in_how_they_ran_are_gathered():
    assert set(stat_sel.HOW) <= set(report.MAY_DIFFER) and {"lr", "n_pairs", "arms"}.isdisjoint(report.MAY_DIFFER)


def test_an_unfinished_run_is_refused(tmp_path, run_file):
    done = run_file("report.py", tmp_path)
    assert done.returncode == 2 and "result.json" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "results").glob("toy_*.json")))
def test_the_readme_shows_the_table_of_the_committed_results(name):
    results = json.loads((ROOT / "results" / name).read_text())
    pattern = rf"<!-- results: python report.py results/{name} -->\n(.*?)<!-- end of results -->"
    shown = re.search(pattern, (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown and shown[1].strip() == report.tables(results).strip()
    assert len({run["seed"] for run in results["runs"]}) == len(results["runs"]) >= 5 and results["command"]


def test_plots_are_made(tmp_path):
    name = next((ROOT / "results").glob("toy_stat_sel.json"), None)
    if name is None:
        pytest.skip("results/toy_stat_sel.json is not there")
    results = json.loads(name.read_text())
    report.plot_profile(results, tmp_path / "a.png")
    report.plot_skills(results, tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000 and (tmp_path / "b.png").stat().st_size > 10_000
