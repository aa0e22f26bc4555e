"""Tables over runs and intervals; gather.py reads the runs, plot.py draws. No method file imports this.

    python report.py runs/toy_stat_sel/seed-* --save results/toy_stat_sel.json   # gather runs of one method
    python report.py results/toy_stat_sel.json                                   # tables of what was gathered
    python report.py results/toy_stat_sel.json --brief                           # arms and claims alone
    python report.py mine.json other.json                                        # what was gathered, joined

The unit is the run (one seed: one split, one draw, one student). A difference between two arms is paired
within a run; its interval is the t-interval over runs.
"""
import argparse
import itertools
import json
import math
import re
import statistics
import sys
from collections import Counter
from pathlib import Path

from scipy.special import stdtrit

from common import UserError
from gather import gather, most_missed, percent, read_results, tokens

# --- Claims, as data: what is said, arm a > arm b. ----------------------------------------------------
OVER_ROUNDS = ("mean over rounds", "last round", "at equal teacher tokens")  # a loop's claims are about these
ARMS = {  # the paper's name of an arm -> the file's
    "stat_sel": {"MATH-Train": "train", "MATH-Augment": "augment", "MATH-Hard": "hard", "Embed-Sel": "embed",
                 "STAT-Sel": "stat", "shuffled STAT-Sel": "shuffled",
                 "STAT-Sel, 20 a skill": "stat, 20 a skill"},
    "stat_syn": {"MATH-Augment": "augment", "STAT-Syn": "stat", "Embed-Syn": "embed", "STAT-Sel": "sel",
                 "shuffled STAT-Syn": "shuffled", "Embed-Sel": "embed_sel",
                 "STAT-Syn, right pairs only": "stat_right", "STAT-Syn, a fifth random": "stat_mixed"}}
STAT = """
C1: STAT-Sel > MATH-Augment
C1: MATH-Augment > base
C2: STAT-Syn > MATH-Augment
C3: STAT-Sel > Embed-Sel
C3: STAT-Syn > Embed-Sel
beside C3: STAT-Syn > Embed-Syn
C4: STAT-Syn > STAT-Sel
baseline: STAT-Sel > MATH-Train
baseline: STAT-Sel > MATH-Hard
control: STAT-Sel > shuffled STAT-Sel
control: STAT-Sel > accuracy
beside C1: STAT-Sel, 20 a skill > STAT-Sel
beside C1: STAT-Sel, 20 a skill > MATH-Augment
beside C1: STAT-Sel, 20 a skill > accuracy
control: STAT-Syn > shuffled STAT-Syn
beside C2: STAT-Syn, right pairs only > STAT-Syn
beside C2: STAT-Syn, a fifth random > STAT-Syn
beside C2: STAT-Syn, a fifth random > MATH-Augment
"""
LOOP = """
A1: loss > random
hard seeds: static_loss > random
closed loop: loss > static_loss
A4: loss > true_loss
beside A1: loss > incorrect
beside A1: loss > badge
beside A1: loss > loss_low
beside A1: loss, sum > random
beside A1: loss, sum > loss
hard seeds: static_loss, sum > random
closed loop: loss, sum > static_loss, sum
A4: loss, sum > true_loss, sum
"""
DART = """
D1: dart > sft
beside D1: dart > base
D2: dart > prompt
beside D2: dart > dropped
beside D2: dart > best_of_n
beside D2: dart > rejection
beside D2, the ceiling: perfect > dart
D3: dart > grpo
D4: dart > no penalty
beside D4: dart, rejecting > dart
beside D2 and D4: dart, rejecting > prompt, rejecting
"""
CLAIMS = {method: [re.fullmatch("(.*): (.*) > (.*)", line).groups() for line in said.strip().splitlines()]
          for method, said in {"stat_sel": STAT, "stat_syn": STAT, "active_loop": LOOP, "dart": DART}.items()}
FIG_4 = {"stat_sel": "nine of ten", "stat_syn": "all ten"}
# Table 3 of arXiv 2510.10023: Llama-3.2-3B-Instruct, Qwen2.5-3B, Llama-3.2-1B-Instruct
PAPER = {"MATH": {
    "base": (44.0, 55.8, 26.0), "MATH-Train": (44.8, 50.0, 27.0), "MATH-Augment": (45.2, 56.6, 27.8),
    "MATH-Hard": (45.6, 56.7, 28.4), "Embed-Sel": (46.0, 57.5, 27.4), "Embed-Syn": (48.8, 56.4, 28.4),
    "STAT-Sel": (51.5, 58.4, 32.4), "STAT-Syn": (50.2, 59.4, 34.5)},
    "MATH^D": {
    "MATH-Augment": (23.9, 45.6, 14.2), "Embed-Sel": (26.5, 46.4, 15.6), "Embed-Syn": (27.3, 47.4, 17.2),
    "STAT-Sel": (26.6, 47.6, 15.6), "STAT-Syn": (31.7, 49.2, 18.3)}}


# --- The core: values, paired differences, intervals. -------------------------------------------------
def value(run: dict, arm: str, name: str) -> float | None:
    """A score in %, overall or of one skill, or a cost."""
    parts = (run["arms"].get(arm, {}).get(part, {}) for part in ("scores", "by_skill", "cost"))
    return next((percent(part[name]) for part in parts if name in part), None)


def t_interval(values: list[float | None], comparisons: int = 1) -> tuple[float, float, float] | None:
    """Mean and 95 % interval over the runs that have a value; comparisons: Bonferroni's divisor.

    With one run the interval is infinite.
    """
    values = [x for x in values if x is not None]
    if len(values) < 2:
        return (values[0], -math.inf, math.inf) if values else None
    t, mean = stdtrit(len(values) - 1, 1 - 0.025 / comparisons), statistics.fmean(values)
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def lead(runs: list[dict], a: str, b: str, name: str, comparisons: int = 1) -> tuple | None:
    """t_interval of a's value minus b's within each run."""
    if name == "at equal teacher tokens":
        curves = [(run["arms"][a]["curve"], run["arms"][b]["curve"]) for run in runs]
        return t_interval([at_equal_tokens(*both) for both in curves], comparisons)
    pairs = [(value(run, a, name), value(run, b, name)) for run in runs]
    return t_interval([None if None in pair else pair[0] - pair[1] for pair in pairs], comparisons)


def at_equal_tokens(one: list[dict], two: list[dict]) -> float:
    """The first curve's accuracy minus the second's after as many teacher tokens, straight between rounds."""
    end, found = min(tokens(one[-1]), tokens(two[-1])), []
    for curve in (one, two):
        points = [(tokens(row), percent(row["right"])) for row in curve]
        pairs = itertools.pairwise(points)
        (t, low), (u, high) = next(pair for pair in pairs if end <= pair[1][0])
        found.append(low + (high - low) * (end - t) / (u - t or 1))  # a server may count no tokens
    return found[0] - found[1]


def verdict(interval: tuple[float, float, float]) -> str:
    if math.isinf(interval[1]):
        return "not told by one run"
    return "holds" if interval[1] > 0 else "is reversed" if interval[2] < 0 else "is open"


def shown(interval: tuple[float, float, float] | None, sign: str = "+") -> str:
    """A mean with its interval; alone, where there is one run and so no interval."""
    if not interval:
        return ""
    form = "{:{s}.1f} [{:{s}.1f}, {:{s}.1f}]" if math.isfinite(interval[1]) else "{:{s}.1f}"
    return form.format(*interval, s=sign)


def mean_shown(values: list[float | None]) -> str:
    values = [x for x in values if x is not None]
    if not values:
        return ""
    mean = statistics.fmean(values)
    return f"{mean:,.0f}" if abs(mean) >= 100 or mean == 0 else f"{mean:.{1 if abs(mean) >= 10 else 2}f}"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    head, *body = (f"| {' | '.join(row)} |" for row in (header, *rows))
    return ["", head, "|---" * len(header) + "|", *body]


def names(runs: list[dict], part: str) -> list[str]:
    """Names of the scores, say, of any arm."""
    arms = (arm for run in runs for arm in run["arms"].values())
    return list(dict.fromkeys(name for arm in arms for name in arm.get(part, ())))


# --- Tables. ------------------------------------------------------------------------------------------
def tables(results: dict, brief: bool = False) -> str:
    """The tables in Markdown: everything in them is computed from `results`."""
    if "data" in results:
        parts = results["data"].items()
        return "\n".join(f"**{name}**\n\n{tables(part, brief)}" for name, part in parts)
    runs = results["runs"]
    method, arms = runs[0]["method"], list(runs[0]["arms"])
    commits = dict.fromkeys(str(commit)[:10] for run in runs for commit in run["commits"])
    lines = [f"{len(runs)} run{'s' * (len(runs) > 1)}, seeds {', '.join(str(run['seed']) for run in runs)}; "
             "accuracy in % with 95 % t-intervals over runs; differences in points, paired within a run. "
             f"Commit {', '.join(commits)}, {', '.join(sorted({run['gpu'] for run in runs}))}."]
    columns = names(runs, "scores")
    lines += table(["arm", *(f"{name}{questions(runs, name)}" for name in columns)], [
        [arm, *(shown(t_interval([value(run, arm, name) for run in runs]), "") for name in columns)]
        for arm in arms])
    if "MATH^D" in columns:
        lines += ["", "MATH^D: what base's first draw makes difficult. Any other student gains on it, so "
                  "compare trained arms alone. At equal accuracy an arm that changes more answers gains more "
                  "on it, and loses more off it."]
    lines += claims(runs, method, arms) + beside(runs, method, arms)
    if brief:
        return "\n".join(lines) + "\n"
    costs = names(runs, "cost")
    lines += ["", "Means over runs, of those that have it:", *table(["arm", *costs], [
        [arm, *(mean_shown([value(run, arm, name) for run in runs]) for name in costs)] for arm in arms])]
    if skills := most_missed(runs) if names(runs, "by_skill") else []:
        compared = [(a, b) for a, b in (("stat", "base"), ("stat", "augment")) if {a, b} <= set(arms)]
        means = {(skill, arm): t_interval([value(run, arm, skill) for run in runs])
                 for skill in skills for arm in arms}
        lines += ["", f"The {len(skills)} most-missed skills, chosen on Q_val, measured on Q_test; intervals "
                  "corrected for their number:", *table(
                      ["skill", *arms, *(f"{a} - {b}" for a, b in compared)],
                      [[skill, *(shown(means[skill, arm], "").split(" ")[0] for arm in arms),
                        *(shown(lead(runs, a, b, skill, len(skills))) for a, b in compared)]
                       for skill in skills])]
    return "\n".join(lines) + "\n"


def questions(runs: list[dict], name: str) -> str:
    """" (n)", or the least and the most over runs; nothing of a score that is no count."""
    scores = [arm["scores"].get(name) for run in runs for arm in run["arms"].values()]
    n = [score[1] for score in scores if isinstance(score, list)]
    return f" ({'-'.join(map(str, sorted({min(n), max(n)})))})" if n else ""


def claims(runs: list[dict], method: str, arms: list[str]) -> list[str]:
    """A row for each claim whose two arms are there; * where the corrected interval says the same."""
    rows, called = [], ARMS.get(method, {})
    columns = OVER_ROUNDS if method == "active_loop" else names(runs, "scores")
    there = [(claim, better, worse, a, b) for claim, better, worse in CLAIMS[method]
             if {a := called.get(better, better), b := called.get(worse, worse)} <= set(arms)]
    for claim, better, worse, a, b in there:
        cells = []
        for name in columns:  # MATH^D is picked for what base gets wrong, so any other student gains on it
            found, corrected = (None if b == "base" and "MATH^D" in name else lead(runs, a, b, name, n)
                                for n in (1, len(there)))
            told = found and math.isfinite(found[1]) and verdict(found) == verdict(corrected) != "is open"
            cells.append(f"{verdict(found)}{'*' * bool(told)}: {shown(found)}" if found else "")
        if called:
            leads = {name: zip(of[better], of[worse], strict=True) for name, of in PAPER.items()
                     if better in of and worse in of}
            cells.append("; ".join(f"{name} {', '.join(f'{x - y:+.1f}' for x, y in pairs)}"
                                   for name, pairs in leads.items()))
        no_embedder = worse.startswith("Embed") and "embedder" in runs[0] and not runs[0]["embedder"]
        rows.append([f"{claim}: {better} > {worse}"
                     + " (its embedder: the student's own hidden states)" * no_embedder, *cells])
    paper = ["in the paper (Llama-3.2-3B-Instruct, Qwen2.5-3B, Llama-3.2-1B-Instruct)"] * bool(called)
    note = f"*: so with the interval corrected for {len(there)} claims too (Bonferroni); not for the columns."
    return [*table(["claim", *columns, *paper], rows), "", note] if rows else []


def beside(runs: list[dict], method: str, arms: list[str]) -> list[str]:
    """C6 of STAT, A2 of the active loop: claims that are no difference of two scores."""
    if method.startswith("stat") and {"stat", "base"} <= set(arms):
        skills = most_missed(runs)
        rises = [rise for skill in skills if (rise := lead(runs, "stat", "base", skill, len(skills)))]
        beyond = f", beyond its corrected interval on {sum(low > 0 for _, low, _ in rises)}" * (len(runs) > 1)
        if rises:
            return ["", f"C6: of the {len(rises)} most-missed skills the mean rises on "
                    f"{sum(mean > 0 for mean, *_ in rises)}{beyond} (Fig. 4: on {FIG_4[method]}, under "
                    "MATH-Hard on all)."]
    if method == "active_loop" and {"loss", "random"} <= set(arms):
        best = Counter()
        for run in runs:
            curves = {arm: run["arms"][arm]["curve"] for arm in arms}
            for t in range(1, len(curves["loss"])):
                scores = {arm: percent(curve[t]["right"]) for arm, curve in curves.items()}
                best.update(arm for arm in arms if scores[arm] == max(scores.values()))
        holds = "holds" if best["loss"] == max(best.values()) else "does not hold"
        return ["", f"A2: loss is best or tied most often: {holds}; of all rounds: "
                + ", ".join(f"{arm} {best[arm]}" for arm in arms) + "."]
    return []


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("paths", nargs="+", help="run directories, or files that --save wrote")
    parser.add_argument("--save", help="write what was gathered to this results file")
    parser.add_argument("--brief", action="store_true", help="print the arms and the claims alone")
    args = parser.parse_args()
    try:
        is_saved = len(args.paths) == 1 and args.paths[0].endswith(".json")
        results = read_results(args.paths[0]) if is_saved else gather(args.paths)
        if args.save:
            results["command"] = f"make results; this part: python report.py {' '.join(sys.argv[1:])}"
            Path(args.save).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(tables(results, args.brief))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
