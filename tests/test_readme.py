"""Every command of the README is one that the files take; every table and number of lines is what its source gives."""
import json
import re
import shlex
import subprocess

import pytest
import tyro

import active_loop
import dart
import report
import stat_sel
import stat_syn
from docs import refresh
from tests.conftest import ROOT
from tests.test_pairs import pairs
from toyworld.__main__ import FLAGS, make_parser

README = (ROOT / "README.md").read_text()
BLOCKS = [text for language, text in re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE) if not language]
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.split("#")[0].strip()]
METHODS = {"stat_sel": stat_sel, "stat_syn": stat_syn, "active_loop": active_loop, "dart": dart}
DOC_COMMANDS = [line.split("  #")[0].strip().removeprefix("Run").strip()
                for method in (*METHODS.values(), pairs) for line in method.__doc__.splitlines() if "python " in line]


def test_there_are_commands():
    assert len(COMMANDS) >= 8 and {"make demo", "make test"} <= set(COMMANDS) and len(DOC_COMMANDS) >= 4


@pytest.mark.parametrize("command", COMMANDS + DOC_COMMANDS)
def test_every_command_is_one_the_files_take(command):
    words = shlex.split(command)
    if words[0] == "make":
        assert subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True).returncode == 0
    elif words[0] == "python" and words[1].removesuffix(".py") in METHODS:
        tyro.cli(METHODS[words[1].removesuffix(".py")].Args, args=words[2:])  # raises SystemExit at a wrong flag
    elif words[:2] == ["python", "experiments/pairs.py"]:
        tyro.cli(pairs.Args, args=words[2:])
    elif words[:3] == ["python", "-m", "toyworld"]:
        toy, rest = make_parser().parse_known_args(words[3:])
        tyro.cli(METHODS[toy.method].Args, args=FLAGS[toy.method] + rest)
    elif words[:2] == ["python", "report.py"]:
        assert {w for w in words if w.startswith("--")} <= {"--save", "--plots", "--brief"}
    else:
        assert words[0] in ("pip", "export"), command


@pytest.mark.parametrize("file", refresh.FILES, ids=lambda file: file.name)
def test_the_tables_are_what_their_commands_print(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = file.read_text()
    assert refresh.refreshed(text) == text, "run python docs/refresh.py"
    assert refresh.refreshed(re.sub(r"\| holds|(?<=\.py` \| )\d+(?= \|)", "0", text)) == text  # it would be seen


def test_all_committed_results_are_shown():
    for path in (ROOT / "results").glob("toy_*.json"):
        assert f"<!-- results: python report.py results/{path.name} --brief -->" in README
        assert f"<!-- results: python report.py results/{path.name} -->" in (ROOT / "docs" / "results.md").read_text()
    for path in (ROOT / "results").glob("audit_*.json"):
        assert f"<!-- results: python -m toyworld.audit results/{path.name} -->" in README
        saved = json.loads(path.read_text())
        assert len(saved["runs"]) >= 5 and saved["command"].startswith("python -m toyworld.audit runs/")


def test_before_and_after_are_those_of_the_committed_results():
    def mean(runs, arm):
        return report.mean_shown([report.accuracy(run, arm) for run in runs])
    for method in ("stat_sel", "stat_syn"):
        runs = json.loads((ROOT / "results" / f"toy_{method}.json").read_text())["runs"]
        cell = f"{mean(runs, 'base')} -> {mean(runs, 'stat')} % (toy; random pairs: {mean(runs, 'augment')}) |"
        assert any(f"`{method}.py`" in line and line.endswith(cell) for line in README.splitlines()), cell
    for name in ("mathematics", "deduction"):
        curves = [run["criteria"] for run in json.loads((ROOT / "results" / "toy_active.json").read_text())["data"][name]["runs"]]
        before, loss, random = (report.mean_shown([report.percent(curve[name])[t] for curve in curves])
                                for name, t in (("loss", 0), ("loss", -1), ("random", -1)))
        assert f"{before} -> {loss} % (toy {name}; random: {random})" in README
    runs = json.loads((ROOT / "results" / "toy_dart.json").read_text())["runs"]
    base, sft, best, grpo, after = (report.mean_shown([report.share(run, arm, "in distribution") for run in runs])
                                    for arm in ("base", "sft", "best_of_n", "grpo", "dart"))
    assert f"{base} -> {after} % (toy; with as many tokens best-of-N: {best}, direct GRPO: {grpo}; raw SFT: {sft})" in README


def test_the_criteria_that_were_run_once_are_those_of_the_committed_results():
    once, here = (json.loads((ROOT / "results" / f"{name}.json").read_text())["data"]["mathematics"]["runs"][0]
                  for name in ("active_once", "toy_active"))
    assert once["seed"] == here["seed"] == 11
    runs = {name: (once if name in once["criteria"] else here)["criteria"][name] for name in ("reward", "judge", "lion", "random", "loss")}
    end = {name: report.mean_shown([report.percent(curve)[-1]]) for name, curve in runs.items()}
    used = ", ".join(f"{report.tokens(curve[-1]):,}" for curve in runs.values())
    assert (f"after 400 items reward {end['reward']}, judge {end['judge']}, lion {end['lion']} %, random {end['random']}, loss {end['loss']} %; "
            f"teacher tokens {used}.") in README


def test_what_is_read_from_darts_tables_is_in_the_committed_results():
    runs = json.loads((ROOT / "results" / "toy_dart.json").read_text())["runs"]
    audits = json.loads((ROOT / "results" / "audit_dart.json").read_text())["runs"]
    text = " ".join(README.split())

    def mean(values):
        return sum(values) / len(values)

    def lead(a, b, column):
        return f"{report.lead(runs, a, b, column)[0]:.1f}"

    def sound(arm):
        return mean([100 * run[arm]["sound"][0] / run[arm]["sound"][1] for run in audits])
    kept = {arm: f"{100 * mean([run['arms'][f'{arm}, rejecting']['data']['fallback'] for run in runs]):.0f}" for arm in ("dart", "prompt")}
    aligned = {f"{mean([row['align'] for run in runs for row in run['steps']['dart'][part]]):.2f}" for part in (slice(10), slice(-10, None))}
    inside, outside = report.COLUMNS[:2]
    for words in (f"{sound('dart') - sound('no penalty'):.1f} points more of the rewrites taken are sound",
                  f"the data is then {sound('dart, rejecting'):.0f} % sound, but {kept['dart']} % of the demonstrations have no rewrite left",
                  f"the untrained mapper leaves {kept['prompt']} % without a rewrite, and DART leads it by "
                  f"{lead('dart, rejecting', 'prompt, rejecting', inside)} points in distribution and by "
                  f"{lead('dart, rejecting', 'prompt, rejecting', outside)} out of it",
                  f"would bring {lead('perfect', 'dart', inside)} points more in distribution",
                  f"alignment stands at {' or '.join(sorted(aligned))} before and after"):
        assert words in text, words
    rounded = {2: "two", 3: "three", 5: "five", 8: "eight"}
    assert f"RL adds {rounded[round(float(lead('dart', 'prompt', inside)))]} points in distribution" in text
    assert f"gains {rounded[round(float(lead('dart', 'base', inside)))]} points there and pays " in text
    assert f"pays {rounded[-round(float(lead('dart', 'base', report.COLUMNS[2])))]} in retention" in text


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"TOYTIME|BEFOREAFTER|CLAIMS|SCORERTEXT|LINES", README)


def scorer_rows(sets: dict) -> list[str]:
    """The README's table of results/scorer.json."""
    rows = ["| set | rows | judge | rejects equal answers | accepts different answers | mean ms | p99 ms |",
            "|---|---|---|---|---|---|---|"]
    for name, judges in sets.items():
        for judge, row in judges.items():
            other = row["rows"] - row["same"]
            shares = [f"{wrong} of {n} ({100 * wrong / n:.2f} %)" if n else "-"
                      for wrong, n in ((row["rejects"], row["same"]), (row["accepts"], other))]
            shown = "`common.py`" if judge == "scorer" else "math-verify 0.9.0"
            rows.append(f"| {name} | {row['rows']} | {shown} | {shares[0]} | {shares[1]} | {row['mean_ms']:.1f} | {row['p99_ms']:.0f} |")
    return rows


def test_the_scorers_table_is_that_of_the_committed_results():
    sets = json.loads((ROOT / "results" / "scorer.json").read_text())["sets"]
    assert next(iter(sets)).startswith("replies") and len(sets) == 6
    assert "\n".join(scorer_rows(sets)) in README
