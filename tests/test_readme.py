"""README.md and docs/: every command is one that the files take, every link leads somewhere, every table is what its source gives."""
import argparse
import importlib
import itertools
import json
import re
import shlex
import subprocess
import sys
from unittest import mock

import pytest
import tyro

import active_loop
import common
import dart
import gather
import report
import stat_sel
from docs import refresh
from experiments import difficulty
from realworld import table
from realworld.__main__ import read as read_real
from tests.conftest import ROOT
from toyworld import audit
from toyworld.__main__ import FLAGS, make_parser

TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in refresh.FILES}
README = TEXTS["README.md"]
EVERYTHING = "\n".join(TEXTS.values())
DOCUMENTED = (
    "stat_sel", "stat_syn", "active_loop", "dart", "experiments.pairs", "experiments.difficulty", "experiments.labels", "experiments.cheating",
    "experiments.power",
    "benchmarks.cost", "benchmarks.training", "benchmarks.sampling", "benchmarks.grpo", "benchmarks.teacher", "benchmarks.growth", "benchmarks.gpu",
    "report", "plot")
OTHER_PROGRAMS = (".", "pip", "export", "vllm", "ollama", "llama-server", "git", "hf", "torchrun")  # not ours
DEVELOPMENT = (".venv/bin/ruff check .", ".venv/bin/python -m pytest -q ")  # commands of CONTRIBUTING.md


def commands(text: str) -> list[str]:
    """The commands in a page's code blocks without a language, continued lines joined."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in "" if language else block.replace("\\\n", " ").splitlines():
            if command := re.sub(r"(^|\s+)#.*", "", line).strip():
                found.append(command)
    return found


def documented(name: str) -> list[str]:
    """The commands in the docstring of a file."""
    lines = re.sub(r" \\\n +|\n +(?=--)", " ", importlib.import_module(name).__doc__).splitlines()
    return [line[line.index("python "):].split("  #")[0].strip() for line in lines if "python " in line]


COMMANDS = {name: commands(text) for name, text in TEXTS.items()}
ALL = sorted({command for found in COMMANDS.values() for command in found} | {
    command for name in DOCUMENTED for command in documented(name)} | set(re.findall(r"`(python [^`]+)`", EVERYTHING)))


class Parsed(Exception):
    pass


def take(name: str, words: list[str]) -> None:
    """Have the module's own parser read the words; SystemExit where it refuses them."""
    module, parse = importlib.import_module(name), argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise Parsed
    if words[:1] == ["dart"] and hasattr(module, "DartArgs"):
        tyro.cli(module.DartArgs, args=words[1:])
    elif words[:1] == ["active_loop"] and hasattr(module, "ActiveArgs"):
        tyro.cli(module.ActiveArgs, args=words[1:])
    elif hasattr(module, "Args"):
        tyro.cli(module.Args, args=words)
    else:
        with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop), \
                mock.patch.object(sys, "argv", [name, *words]), pytest.raises(Parsed):
            module.main()


def test_there_are_commands():
    assert {"make demo", "make test"} <= set(COMMANDS["README.md"])
    assert all(len(COMMANDS[f"docs/{name}.md"]) >= 1 for name in refresh.PAGES if name != "results")
    assert len(ALL) >= 40 and all(len(documented(name)) >= 1 for name in DOCUMENTED)


@pytest.mark.parametrize("command", [command for command in ALL if re.match(r"python (dart|active_loop|stat_s..)\.py", command)])
def test_no_command_of_a_method_is_refused_before_it_starts(command, monkeypatch):
    """What their parsers take can still contradict itself. Checkpoints and files are not looked for."""
    monkeypatch.setattr(common, "check_checkpoint", lambda name, flag: None)
    monkeypatch.setattr(stat_sel, "check_prm", lambda name: None)
    monkeypatch.setattr(stat_sel, "check_embedder", lambda args: None)
    monkeypatch.setattr(stat_sel, "read_lists", lambda *args: {})
    _, name, *words = shlex.split(command)
    module = importlib.import_module(name.removesuffix(".py"))
    if set(words) & {"--help", "-h"}:
        return
    args = tyro.cli(module.Args, args=words)
    if name == "dart.py":
        assert "in distribution" in dart.columns_of(args).values()
    elif name == "active_loop.py":
        active_loop.refuse_early(args)
    else:
        stat_sel.check_flags(args, needs_prm=False)


@pytest.mark.parametrize("command", ALL)
def test_every_command_is_one_the_files_take(command):
    words = shlex.split(command)
    while "=" in words[0]:  # OLLAMA_CONTEXT_LENGTH=8192 ollama serve
        words = words[1:]
    if words[0] == "make":
        assert subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True).returncode == 0
    elif words[:3] == ["python", "-m", "toyworld"]:
        toy, rest = make_parser().parse_known_args(words[3:])
        take(toy.method, FLAGS[toy.method] + rest)
    elif words[:3] == ["python", "-m", "realworld"]:
        if words[3] == "table":
            take("realworld.table", words[4:])
        else:
            read_real(words[3:])
    elif words[:2] == ["python", "docs/refresh.py"]:
        assert len(words) == 2
    elif command.startswith(DEVELOPMENT):
        assert all((ROOT / word).is_file() for word in words if word.startswith("tests/"))
    elif words[:2] == ["python", "-m"]:
        take(words[2], words[3:])
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
        take(words[1].removesuffix(".py").replace("/", "."), words[2:])
    else:
        assert words[0] in OTHER_PROGRAMS, command


def test_a_wrong_command_would_be_seen():
    for command in ("python stat_sel.py --compare", "python report.py --breif x", "python -m toyworld dart --frist 1"):
        with pytest.raises((SystemExit, pytest.fail.Exception)):
            test_every_command_is_one_the_files_take(command)


def test_make_help_names_every_target():
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)[1].split()
    shown = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert sorted(line.split(": ")[0] for line in shown) == sorted(targets) and all(len(line.split(": ", 1)[1]) > 5 for line in shown)
    assert re.search(r"^(\w+):", text, re.MULTILINE)[1] == "demo"  # what plain make does


def test_the_readme_is_light():
    assert len(README.encode()) <= 14_000


def test_every_page_is_checked():
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == {f"{name}.md" for name in refresh.PAGES}


def anchors(text: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def broken_links(page: str, text: str) -> list[str]:
    """The links of a page to a file or a heading that is not there; addresses on the web are not looked up."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not link.startswith("https://") and (not target.exists() or anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_somewhere(page):
    assert broken_links(page, TEXTS[page]) == []


def test_the_estimated_hours_are_those_of_the_command(capsys):
    def hours(command):
        capsys.readouterr()
        with mock.patch.object(sys, "argv", shlex.split(command)[1:]):
            importlib.import_module("benchmarks.cost").main()
        found = re.search(r"^\| all \| ([0-9.]+) ", capsys.readouterr().out, re.MULTILINE)[1]
        return f"{float(found):.1f}"
    text = re.sub(r"\s+", " ", README)
    told = re.findall(r"By `(python benchmarks/cost.py [^`]+)` [^.`]*? takes (\d+\.\d) hours", text)
    assert len(told) == 2 and [hours(command) for command, _ in told] == [number for _, number in told]
    text = re.sub(r"\s+", " ", TEXTS["docs/running.md"])
    command = re.search(r"`(python benchmarks/cost.py --arms base augment stat [^`]+)`", text)[1]
    assert f"takes {hours(command)} hours a seed" in text and f"({hours(command.replace(' --test-weights merged', ''))} without" in text
    text = re.sub(r"\s+", " ", TEXTS["docs/reproduce.md"])
    command = re.search(r"results: python -m benchmarks.cost (dart .*?) -->", text)[1]
    check = re.search(r"with `(--arms base sft --n-demonstrations \d+)`", text)[1]
    takes = hours(f"python benchmarks/cost.py {command} {check}")
    assert f"and {takes} for the check" in text and f"no RL, takes {takes} hours" in text
    sft = re.search(r"\| GRPO: updates .*?\| SFT \| ([0-9.]+) \|", text)[1]
    assert f"for {float(sft):.1f} hours more of SFT" in text
    command = re.search(r"`(python benchmarks/cost.py active_loop [^`]+)` with `--select`", text)[1]
    found = [hours(f"{command} --select {name}") for name in ("loss", "random", "static_loss")]
    assert "needs {} hours for `loss`, {} for `random`, {} for `static_loss`".format(*found) in text
    assert f"| Active loop | {sum(map(float, found)):.1f} hours" in text or f"| Active loop | {sum(map(float, found)):.1f} for" in text


def test_the_tests_that_a_page_names_are_there():
    named = set(re.findall(r"`(test_\w+)`", TEXTS["docs/reliability.md"]))
    defined = " ".join(re.findall(r"def (test_\w+)", "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))))
    assert len(named) >= 10 and [name for name in named if name not in defined] == []


def test_a_broken_link_would_be_seen():
    wrong = "[a](docs/no.md) [b](#nowhere) [c](docs/stat.md#nowhere)"
    assert broken_links("README.md", wrong + " [d](docs/stat.md#stat-syn) [e](https://x.org)") == re.findall(r"\((.*?)\)", wrong)


@pytest.mark.parametrize("page", TEXTS)
def test_the_tables_are_what_their_commands_print(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = TEXTS[page]
    assert refresh.refreshed(text) == text, "run python docs/refresh.py"
    assert refresh.refreshed(re.sub(r"\| holds|\b\d+(?= KB \|)", "0", text)) == text  # it would be seen


def test_all_committed_results_are_shown():
    for path in (ROOT / "results").glob("toy_*.json"):
        assert f"<!-- results: python report.py results/{path.name} --brief -->" in EVERYTHING
        assert f"<!-- results: python report.py results/{path.name} -->" in TEXTS["docs/results.md"]
    for path in (ROOT / "results" / "pilots").glob("toy_*.json"):
        assert f"<!-- results: python -m experiments.power results/pilots/{path.name} -->" in TEXTS["docs/results.md"]
    listed = (ROOT / "results" / "README.md").read_text()
    for path in (ROOT / "results").glob("*.json"):
        assert f"`{path.name}`" in listed or path.name.startswith("bench_")
    for path in (ROOT / "results").glob("audit_*.json"):
        assert f"<!-- results: python -m toyworld.audit results/{path.name} -->" in EVERYTHING
        saved = json.loads(path.read_text())
        assert len(saved["runs"]) >= 5 and saved["command"].startswith("python -m toyworld.audit ")
    for path in (ROOT / "results").glob("real_*.json"):
        assert f"<!-- results: python -m realworld.table {path.stem.removeprefix('real_')} -->" in TEXTS["docs/real.md"]
        assert json.loads(path.read_text()) == table.merge(sorted(path.with_suffix("").glob("seed-*.json")))[0]


@pytest.mark.parametrize("name", ["toy_active", "toy_dart", "toy_stat_sel", "toy_stat_sel_seen_4", "toy_stat_syn"])
def test_a_joined_file_is_what_its_seeds_give(name):
    seeds = sorted((ROOT / "results" / name).glob("seed-??.json"))
    joined = results(name)
    assert len(seeds) == 8 and joined.pop("command") and gather.gather(list(map(str, seeds))) == joined
    if name in ("toy_active", "toy_dart", "toy_stat_syn"):
        audits = [json.loads(path.with_suffix(".audit.json").read_text())["runs"] for path in seeds]
        assert list(itertools.chain(*audits)) == results(name.replace("toy", "audit"))["runs"]


@pytest.mark.parametrize("page", TEXTS)
def test_the_commits_are_those_of_the_tables(page):
    shown = {commit for line in EVERYTHING.splitlines() if re.match(r"\d+ runs?,", line) for commit in re.findall(r"\b[0-9a-f]{10}\b", line)}
    assert set(re.findall(r"(?:\bat|,|\band|\bcommits?) ([0-9a-f]{10})\b", re.sub(r"\s+", " ", TEXTS[page]))) <= shown


def results(name: str) -> dict:
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def row(method: str) -> str:
    """The method's row of the README's first table."""
    return next(line for line in README.splitlines() if f"| `{method}.py`, " in line)


def claims(page: str, claim: str, column: int = 0) -> list[tuple[str, str]]:
    """(difference with its interval, verdict in a word) of a claim, in each table of the page that has it; one run has no interval."""
    found = []
    for line in TEXTS[page].splitlines():
        if line.startswith(f"| {claim} |") and "[" in line:
            verdict, difference = line.split(" | ")[1 + column].split(": ")
            found.append((difference, verdict.removeprefix("is ").rstrip("*")))
    assert found, claim
    return found


def test_the_readmes_results_are_those_of_the_tables():
    def mean(runs, arm):
        return f"{report.t_interval([report.value(run, arm, 'MATH') for run in runs])[0]:.1f}"
    for method in ("stat_sel", "stat_syn"):
        runs = results(f"toy_{method}")["runs"]
        assert f"| {mean(runs, 'base')} -> {mean(runs, 'stat')};" in row(method)
    base, dart = (f"{report.t_interval([report.value(run, arm, gather.COLUMNS[0]) for run in results('toy_dart')['runs']])[0]:.1f}"
                  for arm in ("base", "dart"))
    assert f"| in distribution {base} -> {dart};" in row("dart")
    of_sel, of_syn = (claims("docs/stat.md", claim)[0] for claim in ("C1: STAT-Sel > MATH-Augment", "C2: STAT-Syn > MATH-Augment"))
    hard = claims("docs/stat.md", "C2: STAT-Syn > MATH-Augment", column=1)[0]
    active, mapper, raw = (claims(page, claim) for page, claim in (
        ("docs/active.md", "A1: loss > random"), ("docs/dart.md", "D2: dart > prompt"), ("docs/dart.md", "D1: dart > sft")))
    assert f"over random pairs {of_sel[0]}: {of_sel[1]};" in row("stat_sel")
    for claim, words in (("control: STAT-Sel > shuffled STAT-Sel", "over permuted skills {}: {};"),
                         ("beside C1: STAT-Sel, 20 a skill > MATH-Augment", "on the same seeds, it leads random pairs by {}")):
        assert words.format(*claims("docs/stat.md", claim)[0]) in README
    mixed = claims("docs/stat.md", "beside C2: STAT-Syn, a fifth random > MATH-Augment")[0]
    easy = claims("docs/stat.md", "C2: STAT-Syn > MATH-Augment", column=2)[0]
    assert (f"difficult questions, {hard[0]}, and loses on the others, {easy[0]}, as an arm that changes more answers may. "
            f"With a fifth of random pairs mixed in it leads by {mixed[0]}.") in README
    real, of_real = results("real_stat_sel")["runs"], claims("docs/real.md", "C1: STAT-Sel > MATH-Augment")[0]
    assert (f"{mean(real, 'base')} -> {mean(real, 'stat')}; over random pairs {of_real[0]}: {of_real[1]};") in row("stat_sel") and len(real) == 6
    assert f"over random pairs {of_syn[0]}: {of_syn[1]};" in row("stat_syn")
    by_sum = claims("docs/active.md", "beside A1: loss, sum > random")[0]
    assert (f"loss over random: mathematics {active[0][0]}: {active[0][1]}, by sum {by_sum[0]}: {by_sum[1]}; "
            f"deduction, built to let it pay, {active[1][0]}: {active[1][1]};") in row("active_loop")
    assert f"over raw SFT {raw[0][0]}: {raw[0][1]}; over the untrained mapper {mapper[0][0]}: {mapper[0][1]};" in row("dart")


def test_the_criteria_that_were_run_once_are_those_of_the_committed_results():
    once, here = (results(name)["data"]["mathematics"]["runs"][0] for name in ("active_once", "toy_active"))
    assert once["seed"] == here["seed"] == 31
    named = ("reward", "judge", "lion", "random", "loss", "loss, sum")
    runs = {name: (once if name in once["arms"] else here)["arms"][name]["curve"] for name in named}
    end = {name: f"{gather.percent(curve[-1]['right']):.1f}" for name, curve in runs.items()}
    used = ", ".join(f"{gather.tokens(curve[-1]):,}" for curve in runs.values())
    assert (f"after 400 items reward {end['reward']}, judge {end['judge']}, lion {end['lion']} %, random {end['random']}, "
            f"loss {end['loss']}, loss, sum {end['loss, sum']} %; "
            f"teacher tokens {used}.") in " ".join(TEXTS["docs/active.md"].split())


def test_what_is_read_from_stats_tables_is_in_the_committed_results():
    runs, text = results("toy_stat_sel")["runs"], " ".join(TEXTS["docs/stat.md"].split())
    rises = {arm: sum(report.lead(runs, arm, "base", skill)[0] > 0 for skill in gather.most_missed(runs)) for arm in ("stat", "augment", "hard")}
    assert rises == {"stat": 10, "augment": 10, "hard": 5}
    assert "so they do with random pairs, and under MATH-Hard, which has half the pairs, on five." in text
    different = {arm: f"{sum(report.value(run, arm, 'questions') for run in runs) / len(runs):,.0f}" for arm in runs[0]["arms"] if arm != "base"}
    assert ("STAT-Sel {stat}, permuted {shuffled}, Embed-Sel {embed}, `accuracy` {accuracy}, random {augment}.".format(**different)) in text
    assert f"20`: {different['stat, 20 a skill']} different ones)" in text
    near = [report.t_interval([report.value(run, arm, gather.NEAR) for run in runs])[0] for arm in ("stat, 20 a skill", "stat")]
    assert "less closely ({:.0f} in place of {:.0f}, of 100)".format(*near) in text
    leads = [f"{-report.lead(runs, 'stat', arm, 'MATH')[0]:.1f}" for arm in ("accuracy", "embed")]
    assert "`accuracy` leads STAT-Sel by {} points and Embed-Sel, against C3, by {}; neither".format(*leads) in text
    assert "without a diagnosis lead STAT-Sel: `accuracy` by {}, Embed-Sel by {}.".format(*leads) in README
    first = [report.lead(runs, "stat", "augment", name) for name in ("MATH", "missed skills", "off MATH^D")] + [
        report.lead(runs, "stat", "shuffled", "MATH")]
    assert all(report.shown(lead) in text for lead in first)
    rates = {}
    for name in ("prm", "consistency", "length"):
        rows = [difficulty.agreement(*run["detection"][name]) for run in runs]
        rates[name] = {rate: f"{sum(row[rate] for row in rows) / len(rows):.1f}" for rate in ("accuracy", "recall")}
    assert (f"The reward model finds {rates['prm']['recall']} % of the wrong answers, but is right about {rates['prm']['accuracy']} % of all "
            f"({sum(sum(run['detection']['prm']) for run in runs):,} answers to Q_val). The consistency criterion is right about "
            f"{rates['consistency']['accuracy']} % and finds {rates['consistency']['recall']} % of the wrong answers; "
            f"length finds {rates['length']['recall']} %.") in text
    runs = results("toy_stat_sel_seen_4")["runs"]
    n = {arm: [sum(report.value(run, arm, name) for run in runs) / len(runs) for name in ("pairs", "questions")]
         for arm in ("stat", "augment", "stat, 20 a skill")}
    assert "STAT-Sel has {:,.0f} pairs of {:,.0f} different questions, random pairs {:,.0f} of {:,.0f}.".format(*n["stat"], *n["augment"]) in text
    assert "with {:,.0f} pairs of {:,.0f} questions it gains".format(*n["stat, 20 a skill"]) in text
    better = [report.shown(report.lead(runs, arm, "augment", "MATH")) for arm in ("stat", "stat, 20 a skill")]
    assert f"With a better student, on half their pairs, it loses to them, {better[0]}; 20 a skill, on as many, is not told apart." in README
    assert better[1] in text
    mean, low, high = report.lead(results("real_stat_sel")["runs"], "augment", "shuffled", "MATH")
    assert f"loses to random pairs too, by {mean:.1f} points [{low:.1f}, {high:.1f}]" in TEXTS["docs/real.md"]
    assert f"Random pairs bring {report.lead(runs, 'augment', 'base', 'MATH')[0]:.1f} points here" in text
    runs = results("toy_stat_syn")["runs"]
    own, sel, mixed = (f"{sum(report.value(run, arm, 'questions') for run in runs) / len(runs):,.0f}" for arm in ("stat", "sel", "stat_mixed"))
    assert f"Its pairs come from {own} different questions, STAT-Sel's from {sel}," in text and f"({mixed}, not {own})" in text


def test_what_is_read_from_the_loops_tables_is_in_the_committed_results():
    parts, audits = results("toy_active")["data"], results("audit_active")["runs"]
    text = " ".join(TEXTS["docs/active.md"].split())

    def mean(values):
        return sum(values) / len(values)

    def share(name, *arms, family="mathematics"):
        return tuple(f"{mean([audit.share_of(run, f'{family}: {arm}', name) for run in audits]):.0f}" for arm in arms)
    mean_or_sum, third = ("loss", "loss, sum"), ("loss", "loss, sum", "random")
    rho = [mean([run["arms"][arm]["cost"]["rho_length"] for run in parts["mathematics"]["runs"]]) for arm in mean_or_sum]
    half = [(high - low) / 2 for _, low, high in [report.lead(parts["deduction"]["runs"], "loss", "random", "mean over rounds")]]
    for words in ("(rank correlation {:.2f}; of the sum {:.2f})".format(*rho),
                  "an AUROC of {} %, the sum with {} %.".format(*share(audit.LOOP[6], *mean_or_sum)),
                  "the base gets {} % wrong by the mean, {} % by the sum, {} % at random.".format(*share(audit.LOOP[0], *third)),
                  "of the items {} and {} % need more than two rules, at random {} %.".format(*share(audit.LOOP[2], *third, family="deduction")),
                  "The half-width is {:.1f}, not 0.6".format(*half)):
        assert words in text, words
    assert "badge 0, loss, sum 19." in text and "true_loss 9, incorrect 2, badge 4, loss, sum 8." in text
    assert "the loss is best in 19 of 32 rounds of mathematics, and in 8 of deduction, `true_loss` in 9." in text
    right = [100 - mean([audit.share_of(run, f"{family}: incorrect", audit.LOOP[0]) for run in audits]) for family in parts]
    assert "the base gets {:.0f} and {:.0f} % of what it asks right.".format(*right) in text
    ends = [mean([report.value(run, "loss_low", f"{n} items") for run in parts["deduction"]["runs"]]) for n in (0, 160)]
    assert "near the base ({:.1f} to {:.1f} %)".format(*ends) in text
    old = report.lead(results("pilots/toy_active")["data"]["deduction"]["runs"], "loss", "random", "mean over rounds")
    assert f"open in both families, deduction {report.shown(old)}." in text


@pytest.mark.parametrize("page, part, n", [("docs/stat.md", r"### STAT-Sel in the toy world.*(?=## Failed ideas)", 12),
                                           ("docs/active.md", r"## Results.*(?=- In the earlier worlds)", 12),
                                           ("docs/active.md", r"\*\*Where the sum leads.*(?=Run once each)", 3)])
def test_every_interval_that_is_read_from_tables_stands_in_them(page, part, n):
    toy = re.search(part, TEXTS[page], re.DOTALL)[0]
    prose, tables = refresh.BLOCK.sub("", toy), "".join(block[0] for block in refresh.BLOCK.finditer(toy))
    told = re.findall(r"[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]", " ".join(prose.split()))
    assert len(told) >= n and [lead for lead in told if lead not in tables] == []


def test_the_claims_that_cannot_be_told_are_those_of_the_power_tables():
    untold = [line.split(" | ")[:2] for line in TEXTS["docs/results.md"].splitlines() if line.endswith("| no |")]
    d3 = [column for claim, column in untold if claim.startswith("| D3")]
    assert sorted(d3) == sorted(gather.COLUMNS) and {column for claim, column in untold if not claim.startswith("| D3")} == {"retention"}


def test_what_is_read_from_darts_tables_is_in_the_committed_results():
    runs, audits = results("toy_dart")["runs"], results("audit_dart")["runs"]
    inside, outside, retention = gather.COLUMNS

    def mean(values):
        return sum(values) / len(values)

    def lead(a, b, column=inside):
        return report.shown(report.lead(runs, a, b, column))

    def share(kind, *arms):
        return tuple(f"{mean([100 * run[arm][kind][0] / run[arm][kind][1] for run in audits]):.0f}" for arm in arms)

    def steps(get):
        return [mean([get(step) for run in runs for step in run["steps"]["dart"][part]]) for part in (slice(10), slice(-10, None))]

    def kept(arm):
        return f"{100 * mean([run['arms'][arm]['cost']['fallback'] for run in runs]):.0f}"
    right, false, align = (steps(get) for get in (
        lambda step: 100 * step["is_right"], lambda step: 100 * step["cheats"].get("false equation", 0), lambda step: step["align"]))
    both, old = ("prompt", "dart"), results("pilots/toy_dart")["runs"]
    before = [report.shown(report.lead(old, "dart", arm, inside)) for arm in ("prompt", "best_of_n")]
    text = " ".join(TEXTS["docs/dart.md"].split())
    for words in (
            f"costs {lead('sft', 'base')} points in distribution and {lead('sft', 'base', retention)} in retention.",
            f"DART leads it by {lead('dart', 'sft')} in distribution and by {lead('dart', 'sft', outside)} out of it.",
            f"rewrites alone lead it by {lead('prompt', 'sft')}, the target's own right answers (`rejection`) by {lead('rejection', 'sft')}.",
            f"told apart from it there, {lead('best_of_n', 'dart')} and {lead('rejection', 'dart')} over DART; "
            f"in retention `rejection` leads by {lead('rejection', 'dart', retention)}, and its data has fewer",
            f"a quarter of these tokens it is not told apart, {lead('grpo at 1/4', 'dart')} over DART, and leads in retention by "
            f"{lead('grpo at 1/4', 'dart', retention)}.",
            f"Beside the base DART gains {lead('dart', 'base')} in distribution, and pays in retention: {lead('dart', 'base', retention)}.",
            f"bring {lead('dart', 'prompt')} over the untrained mapper's rewrites in distribution, {lead('dart', 'prompt', outside)} out of it.",
            "In the first ten steps {:.0f} % of the rollouts have the right answer, in the last ten {:.0f} %;".format(*right),
            "a false equation stands in {:.0f} and {:.0f} %; alignment goes from {:.2f} to {:.2f}.".format(*false, *align),
            "Of the untrained mapper's rewrites {} % pass, of the trained one's {} %;".format(*share("pass", *both)),
            "but of those taken {} and {} % are sound.".format(*share("sound", *both)),
            "lacks these are {} and {} %, elsewhere {} and {} %.".format(*share("sound, weak", *both), *share("sound, strong", *both)),
            f"Perfect rewrites lead DART's by {lead('perfect', 'dart')} in distribution and {lead('perfect', 'dart', outside)} out of it.",
            f"GRPO leads DART in distribution, {lead('dart', 'grpo')}, and in retention, {lead('dart', 'grpo', retention)}.",
            "It trains for {:.0f} s, DART for {:.0f} s.".format(
                *(mean([run["arms"][arm]["cost"]["training s"] for run in runs]) for arm in ("grpo", "dart"))),
            f"in the data, {lead('dart', 'no penalty', 'no false equation')} points of the rows, yet the target is worse for them: "
            f"{lead('dart', 'no penalty')} in distribution",
            f"the data is {share('sound', 'dart, rejecting')[0]} % sound, but {kept('dart, rejecting')} % of the demonstrations "
            f"have no rewrite left; the target is not told apart, {lead('dart, rejecting', 'dart')}. There RL has "
            f"{lead('dart, rejecting', 'prompt, rejecting')} over",
            f"shows no difference, {lead('dart', 'dropped')} for DART: they are {kept('dart')} %.",
            "DART led the untrained mapper by {} in distribution, and best-of-N by {}.".format(*before)):
        assert words in text, words
    (pilot,) = results("pilots/pilot_dart")["runs"]
    room = report.value(pilot, "perfect", inside) - report.value(pilot, "dart", inside)
    assert f"led DART's by {room:.0f} points in distribution" in text and f"one pilot gave {room:.0f} points of room" in TEXTS["docs/results.md"]
    assert (f"loses retention to the base, {lead('dart', 'base', retention)}, and to direct GRPO, {lead('dart', 'grpo', retention)}. "
            f"{share('sound', 'dart')[0]} % of its rewrites are sound.") in README
    assert f"mapper brings {report.lead(runs, 'prompt', 'sft', inside)[0]:+.1f} of DART's lead over raw SFT." in README
    sounder = report.t_interval([100 * (run["dart"]["sound"][0] / run["dart"]["sound"][1] - run["prompt"]["sound"][0] / run["prompt"]["sound"][1])
                                 for run in audits])
    assert f"not shown to be sounder ({report.shown(sounder)})" in text
    assert f"left perfect rewrites only {report.lead(old, 'perfect', 'dart', inside)[0]:.1f} points above DART's" in text
    half = [(high - low) / 2 for _, low, high in (report.lead(runs, "dart", "prompt", column) for column in (inside, retention))]
    assert "half-width of {:.1f}, not 2.0, in distribution and at {:.1f}, not 1.0,".format(*half) in TEXTS["docs/results.md"]


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"TODO|TOYTIME|SCORERTABLE|^DEMO$|\b0 KB", EVERYTHING, re.MULTILINE)


def scorer_rows(sets: dict) -> list[str]:
    """The table of results/scorer.json."""
    rows = ["| set | rows | judge | rejects equal answers | accepts different answers | mean ms | p99 ms |",
            "|---|---|---|---|---|---|---|"]
    for name, judges in sets.items():
        for judge, counts in judges.items():
            other = counts["rows"] - counts["same"]
            shares = [f"{wrong} of {n} ({100 * wrong / n:.2f} %)" if n else "-"
                      for wrong, n in ((counts["rejects"], counts["same"]), (counts["accepts"], other))]
            judged_by = "`common.py`" if judge == "scorer" else "math-verify 0.9.0"
            times = f"{counts['mean_ms']:.1f} | {counts['p99_ms']:.0f}"
            rows.append(f"| {name} | {counts['rows']} | {judged_by} | {shares[0]} | {shares[1]} | {times} |")
    return rows


def test_the_scorers_table_is_that_of_the_committed_results():
    sets = results("scorer")["sets"]
    assert next(iter(sets)).startswith("replies") and len(sets) == 6
    assert "\n".join(scorer_rows(sets)) in TEXTS["docs/scoring.md"]


METHODS = {"stat_sel": "stat", "stat_syn": "stat", "active_loop": "active", "dart": "dart"}  # file: page


def files_of(docstring: str) -> set[str]:
    """The files that a method's docstring says it writes, behind "Writes" or by the round; what stands in <> differs from run to run."""
    writes = docstring[docstring.index("\nWrites"):] + " ".join(re.findall(r"(?<!\w)r<t[^ ]+", docstring))
    return {re.sub("<[^>]*>", "<>", name) for name in re.findall(r"(?:\w|<[^>]*>)+\.(?:jsonl|json|sqlite)\b|adapter/(?:\w|<[^>]*>)+/", writes)}


@pytest.mark.parametrize("method, page", METHODS.items())
def test_a_page_lists_every_file_that_its_method_writes(method, page):
    files = files_of(importlib.import_module(method).__doc__)
    rows = "\n".join(line for line in TEXTS[f"docs/{page}.md"].splitlines() if line.startswith("|"))
    listed = {re.sub("<[^>]*>", "<>", name) for name in re.findall(r"`([^`]+)`", rows)}
    assert len(files) >= 3 and files <= listed, files - listed
    assert files_of("\nWrites 1_x.jsonl 2_<a, b>_c.json adapter/<arm>/") == {"1_x.jsonl", "2_<>_c.json", "adapter/<>/"}


def functions_in_details(text: str, method: str) -> list[str]:
    """The functions that open the numbered items of a page's section on the details of a method's file."""
    section = text.split(f"# Implementation details of {method}.py\n")[1].split("\n#")[0]
    items = re.findall(r"^\d+\. ((?:`\w+`(?:, )?)+): ", section, re.MULTILINE)
    assert len(items) == len(re.findall(r"^\d+\. ", section, re.MULTILINE))
    return re.findall(r"`(\w+)`", " ".join(items)) + re.findall(r"`(\w+)`: ", section)


@pytest.mark.parametrize("method, page", METHODS.items())
def test_every_function_of_the_numbered_details_exists(method, page):
    names, module = functions_in_details(TEXTS[f"docs/{page}.md"], method), importlib.import_module(method)
    assert len(names) >= 8 and [name for name in names if not callable(getattr(module, name, None))] == []


def test_what_is_said_of_stat_sels_real_runs_is_in_the_committed_results():
    runs, text = results("real_stat_sel")["runs"], " ".join(TEXTS["docs/real.md"].split())
    assert report.lead(runs, "shuffled", "augment", "MATH")[2] < 0 and "The control loses to random pairs too" in text
    kept = sorted(report.t_interval([report.value(run, arm, "off MATH^D") for run in runs])[0] for arm in runs[0]["arms"] if arm != "base")
    assert f"the arms keep {kept[0]:.0f} to {kept[-1]:.0f} %." in text and runs[0]["arms"]["stat"]["scores"]["off MATH^D"][0] > 0
    assert results("real_stat_sel")["args"]["lr"] == [5e-4] and "One rate, 5e-4, serves all arms" in text


def test_what_is_said_of_darts_real_run_is_in_the_committed_results():
    (run,) = results("real_dart")["runs"]
    text, steps = " ".join(TEXTS["docs/real.md"].split()), run["steps"]["dart"]

    def mean(part, name):
        return sum(step[name] for step in part) / len(part)
    first, last = steps[:10], steps[-10:]
    kept = {arm: f"{100 * run['arms'][arm]['cost']['fallback']:.0f} %" for arm in ("dart", "prompt")}
    assert (f"right in {100 * mean(first, 'is_right'):.0f} % of its rollouts in the first ten steps and in "
            f"{100 * mean(last, 'is_right'):.0f} % in the last ten, at an alignment of "
            f"{mean(first, 'align'):.2f} and {mean(last, 'align'):.2f}.") in text
    assert f"leave {kept['dart']} of the demonstrations as given, where the untrained mapper's leave {kept['prompt']}." in text
    (uplift, was), (no_false, before) = ([f"{run['arms'][arm]['scores'][name]:.1f}" for arm in ("dart", "prompt")]
                                         for name in ("answer uplift (nats)", "no false equation"))
    assert f"answer uplift {uplift} nats against {was}, no false equation in {no_false} % against {before}." in text
    right = {arm: run["arms"][arm]["scores"]["in distribution"] for arm in run["arms"]}
    assert max(k for arm, (k, _) in right.items() if arm != "base") < right["base"][0] and f"the base ({right['base'][0]} of 100)" in text
    assert right["dart"][0] - right["sft"][0] == 2 and right["dart"][0] - right["prompt"][0] == -1 and "-1.0 over the untrained mapper" in row("dart")
    share = run["differ"]["sft dart"][0] / run["differ"]["sft dart"][1]
    assert f"is about {1.96 * 100 * (share / 100) ** 0.5:.0f} points" in text
