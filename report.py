r"""Tables over runs, intervals and plots. No method file imports this.

    python report.py runs/toy_stat_sel/seed-* --save results/toy_stat_sel.json   # gather runs of one method with different seeds
    python report.py results/toy_stat_sel.json --plots docs                      # tables and PNGs from what was gathered

The unit is the run (one seed: one split, one draw, one student). A difference between two arms is paired within a run: its interval is the
t-interval over runs. Where ten skills are compared at once, their intervals are Bonferroni-corrected. A skill is written "subject: name".
"""
import argparse
import json
import math
import statistics
import sys
from collections import Counter
from pathlib import Path

from common import UserError, read_json, read_jsonl

MAY_DIFFER = ("student", "data", "skills", "seed", "out", "teacher_url", "teacher_max_tokens", "cache", "concurrency", "max_usd", "usd_per_m_in",
              "usd_per_m_out", "plan", "micro_batch", "sample_batch", "checkpointing")  # between the runs of one table


# --- Gathering ------------------------------------------------------------------------------------------------------------------------------
def gather(paths: list[str]) -> dict:
    """What the tables need of the finished runs in these directories: counts per arm and per skill, never the texts."""
    runs, arguments = [], {}
    for path in map(Path, paths):
        if not (path / "result.json").exists():
            raise UserError(f"{path}: expected a finished run with a result.json, found none; finish it, or leave it out")
        result, args, env = (read_json(path / name) for name in ("result.json", "args.json", "env.json"))
        arguments[str(path)] = {name: value for name, value in args.items() if name not in MAY_DIFFER}
        missed = set(most_missed([result]))
        for arm, row in result["arms"].items():
            row["by_skill"], row["missed"], row["other"] = {}, (0, 0), (0, 0)
            for _, question in read_jsonl(path / f"7_test_{arm}.jsonl"):
                kind = "missed" if missed & set(question["skills"] or []) else "other"
                row[kind] = (row[kind][0] + bool(question["is_right"]), row[kind][1] + 1)
                for skill in question["skills"] or []:
                    k, n = row["by_skill"].get(skill, (0, 0))
                    row["by_skill"][skill] = (k + bool(question["is_right"]), n + 1)
        runs.append(result | {"commit": env[-1]["commit"], "gpu": env[-1]["gpu"], "packages": env[-1]["packages"]})
    first, *others = arguments
    if odd := [path for path in others if arguments[path] != arguments[first]]:
        raise UserError(f"{odd[0]}: its arguments differ from those of {first}; gather runs that differ in their seed alone")
    return {"args": arguments[first], "runs": sorted(runs, key=lambda run: run["seed"])}


# --- Intervals ------------------------------------------------------------------------------------------------------------------------------
def t_quantile(p: float, df: int) -> float:
    """The p-quantile of Student's t, p in (0.5, 1), to 6 digits: Simpson's rule on the density, then bisection.
    >>> round(t_quantile(0.975, 4), 3), round(t_quantile(0.975, 1), 2)
    (2.776, 12.71)
    """
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df)

    def below(x, n=2000):  # substituting t = sqrt(df) tan(u) keeps the range finite: the density becomes cos(u) ** (df - 1)
        top = math.atan(x / math.sqrt(df))
        weights = [1 if i in (0, n) else 4 if i % 2 else 2 for i in range(n + 1)]
        area = sum(w * math.cos(top * i / n) ** (df - 1) for i, w in enumerate(weights)) * top / n / 3
        return 0.5 + scale * math.sqrt(df) / math.sqrt(math.pi) * area
    low, high = 0.0, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < p else (low, middle)
    return low


def t_interval(values: list[float], comparisons: int = 1) -> tuple[float, float, float]:
    """Mean and 95 % interval over runs; comparisons: Bonferroni's divisor. With one run the interval is infinite."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = t_quantile(1 - 0.025 / comparisons, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def shown(interval: tuple[float, float, float], sign: str = "+") -> str:
    mean, low, high = interval
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def accuracy(run: dict, arm: str) -> float:
    return 100 * run["arms"][arm]["k"] / run["arms"][arm]["n"]


def part_accuracy(run: dict, arm: str, part: str) -> float:
    """On the test questions that need one of the run's ten most-missed skills ("missed"), or none of them ("other")."""
    k, n = run["arms"][arm][part]
    return 100 * k / n


def difference(runs: list[dict], a: str, b: str) -> tuple[float, float, float]:
    return t_interval([accuracy(run, a) - accuracy(run, b) for run in runs])


# --- Claims C5 and C6 of STAT ---------------------------------------------------------------------------------------------------------------
def distance_to_profile(run: dict, arm: str, labels: str) -> float | None:
    """Total variation distance, 0..100 %, between the skills of the arm's training pairs and the Missing-Skill-Profile (Fig. 2).

    labels: "skills_by_data", labels that nothing was drawn by, or "skills_by_teacher", those drawn by. None where the data has no labels.
    """
    p, q = run["arms"][arm][labels], run["profile"]
    if not p or not q:
        return None
    return 50 * sum(abs(p.get(s, 0) / sum(p.values()) - q.get(s, 0) / sum(q.values())) for s in p.keys() | q.keys())


def most_missed(runs: list[dict], top: int = 10) -> list[str]:
    """The most-missed skills, from the profiles on Q_val over all runs, ties by name; measured on Q_test (Fig. 4)."""
    counts = sum((Counter(run["profile"]) for run in runs), Counter())
    return [skill for skill, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:top]]


def skill_accuracy(run: dict, arm: str, skill: str) -> float | None:
    k, n = run["arms"][arm]["by_skill"].get(skill, (0, 0))
    return 100 * k / n if n else None


def skill_change(runs: list[dict], a: str, b: str, skill: str, comparisons: int) -> tuple[float, float, float] | None:
    pairs = [(skill_accuracy(run, a, skill), skill_accuracy(run, b, skill)) for run in runs]
    pairs = [(x, y) for x, y in pairs if x is not None and y is not None]
    return t_interval([x - y for x, y in pairs], comparisons) if pairs else None


PAPER = {  # MATH accuracy in Table 3 of arXiv 2510.10023: Llama-3.2-3B-Instruct, Qwen2.5-3B, Llama-3.2-1B-Instruct
    "base": (44.0, 55.8, 26.0), "augment": (45.2, 56.6, 27.8), "stat": (51.5, 58.4, 32.4)}


def verdict(interval: tuple[float, float, float]) -> str:
    return "holds" if interval[1] > 0 else "is reversed" if interval[2] < 0 else "is open: the interval holds 0"


def claims(runs: list[dict]) -> list[str]:
    """C1, C5 and C6 of STAT as rows of a table; each is a difference between arms at equal numbers of pairs."""
    rows = []
    for name, a, b in (("C1: STAT-Sel > MATH-Augment", "stat", "augment"), ("C1: MATH-Augment > base", "augment", "base"),
                       ("control: STAT-Sel > shuffled", "stat", "shuffled")):
        found = difference(runs, a, b)
        paper = ", ".join(f"{x - y:+.1f}" for x, y in zip(PAPER[a], PAPER[b], strict=True)) if a in PAPER and b in PAPER else "not run there"
        rows.append(f"| {name} | {verdict(found)} | {shown(found)} points | {paper} |")
    distances = [(distance_to_profile(run, "augment", "skills_by_data"), distance_to_profile(run, "stat", "skills_by_data")) for run in runs]
    if all(None not in pair for pair in distances):
        nearer = t_interval([augment - stat for augment, stat in distances])
        rows.append(f"| C5: the skills of STAT-Sel's training set are nearer the profile than MATH-Augment's | {verdict(nearer)} | "
                    f"{shown(nearer)} points of total variation, by labels that nothing was drawn by | Fig. 2, no number |")
    skills = most_missed(runs)
    changes = {skill: skill_change(runs, "stat", "base", skill, len(skills)) for skill in skills}
    risen = [skill for skill, change in changes.items() if change and change[1] > 0]
    if not (means := [change[0] for change in changes.values() if change]):
        return ["", "| claim | here | difference, 95 % interval | in the paper (three students) |", "|---|---|---|---|", *rows]
    rows.append(f"| C6: accuracy rises on each of the {len(skills)} most-missed skills | the mean rises on {sum(m > 0 for m in means)}, beyond its "
                f"corrected interval on {len(risen)} | {min(means):+.1f} to {max(means):+.1f} points | Fig. 4: on all ten |")
    return ["", "| claim | here | difference, 95 % interval | in the paper (three students) |", "|---|---|---|---|", *rows]


# --- Tables ---------------------------------------------------------------------------------------------------------------------------------
def tables(results: dict) -> str:
    """The tables in Markdown: everything in them is computed from `results`."""
    runs = results["runs"]
    arms = list(runs[0]["arms"])
    reference = "augment" if "augment" in arms else arms[0]
    lines = [f"{len(runs)} runs, seeds {', '.join(str(run['seed']) for run in runs)}; accuracy in % with 95 % t-intervals over runs; "
             f"differences in points, paired within a run. Commit {', '.join(sorted({str(run['commit'])[:10] for run in runs}))}, "
             f"{', '.join(sorted({run['gpu'] for run in runs}))}.", "",
             f"| arm | right of | % | minus {reference} | minus base | pairs | of questions | training s | peak GiB |",
             "|---|---|---|---|---|---|---|---|---|"]
    for arm in arms:
        rows = [run["arms"][arm] for run in runs]
        n_pairs, n_questions = [row["n_pairs"] for row in rows], [row["n_questions"] for row in rows]
        to_reference, to_base = ("" if arm == other or other not in arms else shown(difference(runs, arm, other)) for other in (reference, "base"))
        lines.append(
            f"| {arm} | {sum(row['k'] for row in rows)} / {sum(row['n'] for row in rows)} | "
            f"{shown(t_interval([accuracy(run, arm) for run in runs]), '')} | {to_reference} | {to_base} | "
            f"{'-'.join(str(n) for n in sorted({min(n_pairs), max(n_pairs)}) if n)} | "
            + (f"{statistics.fmean(n_questions):.0f} | {statistics.fmean(row['train_seconds'] for row in rows):.0f} | "
               f"{max(row['peak_gib'] for row in rows):.2f} |" if max(n_pairs) else " | | |"))
    trained = [arm for arm in arms if arm != "base"]
    if {"base", "augment", "stat", "shuffled"} <= set(arms):
        lines += claims(runs)
    calls, tokens_in, tokens_out = (statistics.fmean(sum(step.get(name, 0) for step in run["teacher_totals"].values()) for run in runs)
                                    for name in ("calls", "n_in", "n_out"))
    lines += ["", f"The teacher in a run: {calls:,.0f} calls, {tokens_in:,.0f} tokens in, {tokens_out:,.0f} out."]
    for labels, words in (("skills_by_data", "labels that nothing was drawn by"), ("skills_by_teacher", "the labels drawn by")):
        distances = {arm: [distance_to_profile(run, arm, labels) for run in runs] for arm in trained}
        if trained and all(d is not None for row in distances.values() for d in row):
            lines += ["", f"Distance between training set and Missing-Skill-Profile, by {words} (total variation, 0 = the same, 100 = disjoint): "
                      + "; ".join(f"{arm} {shown(t_interval(row), '')}" for arm, row in distances.items()) + "."]
    if trained and all(run["arms"][arm][part][1] for run in runs for arm in arms for part in ("missed", "other")) and reference in trained:
        lines += ["", f"Minus {reference} on the test questions that need one of the run's ten most-missed skills, and on the others: " + "; ".join(
            f"{arm} " + " and ".join(shown(t_interval([part_accuracy(run, arm, part) - part_accuracy(run, reference, part) for run in runs]))
                                     for part in ("missed", "other")) for arm in trained if arm != reference) + "."]
    skills = most_missed(runs)
    compared = [(a, b) for a, b in (("stat", "base"), ("stat", reference)) if {a, b} <= set(arms) and a != b]
    if compared and any(run["arms"]["stat"]["by_skill"] for run in runs):
        header = ["skill", *arms, *(f"{a} minus {b}" for a, b in compared)]
        lines += ["", f"Accuracy on the {len(skills)} most-missed skills (chosen on Q_val, measured on Q_test), intervals corrected for "
                  f"{len(skills)} comparisons:", "", "| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
        for skill in skills:
            changes = [skill_change(runs, a, b, skill, len(skills)) for a, b in compared]
            means = [[x for run in runs if (x := skill_accuracy(run, arm, skill)) is not None] for arm in arms]
            lines.append(f"| {skill} | " + " | ".join(f"{statistics.fmean(m):.1f}" if m else "" for m in means) + " | "
                         + " | ".join(shown(c) if c else "" for c in changes) + " |")
    return "\n".join(lines) + "\n"


# --- Plots ----------------------------------------------------------------------------------------------------------------------------------
def plot_profile(results: dict, path: Path) -> None:
    """Figs. 2 and 6: shares of the ten most-missed skills in the profile and in each arm's pairs; bars are means, whiskers +- 1 sd over runs."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    runs, skills = results["runs"], most_missed(results["runs"])
    trained = [arm for arm in runs[0]["arms"] if arm != "base"]

    def shares(counts):
        total = sum(counts.values()) or 1
        return [100 * counts.get(skill, 0) / total for skill in skills]
    columns = {"Missing-Skill-Profile": [shares(run["profile"]) for run in runs]}
    labels = "skills_by_data" if any(run["arms"][arm]["skills_by_data"] for run in runs for arm in trained) else "skills_by_teacher"
    columns |= {f"training pairs: {arm}": [shares(run["arms"][arm][labels]) for run in runs] for arm in trained}
    figure, axes = pyplot.subplots(figsize=(9, 0.6 * len(skills) + 1.6), layout="constrained")
    height = 0.8 / len(columns)
    for i, (name, rows) in enumerate(columns.items()):
        spread = [statistics.stdev(column) if len(rows) > 1 else 0 for column in zip(*rows, strict=True)]
        axes.barh([y + i * height for y in range(len(skills))], [statistics.fmean(column) for column in zip(*rows, strict=True)], height,
                  xerr=spread, label=name, color="black" if i == 0 else f"C{i - 1}", error_kw={"lw": 0.8, "ecolor": "gray"})
    axes.set_yticks([y + 0.4 - height / 2 for y in range(len(skills))], skills)
    axes.invert_yaxis()
    axes.set_xlabel("share of all skill mentions (%)")
    axes.set_title(f"The skills missed, and those trained on ({len(runs)} runs, ± 1 sd)")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_skills(results: dict, path: Path) -> None:
    """Fig. 4: accuracy change on the most-missed skills against the base student, with corrected t-intervals over runs."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    runs, skills = results["runs"], most_missed(results["runs"])
    trained = [arm for arm in runs[0]["arms"] if arm != "base"]
    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(skills) + 1.6), layout="constrained")
    for i, arm in enumerate(trained):
        for y, skill in enumerate(skills):
            if change := skill_change(runs, arm, "base", skill, len(skills)):
                mean, low, high = change
                whiskers = [[mean - low], [high - mean]] if len(runs) > 1 else None
                axes.errorbar(mean, y + (i - (len(trained) - 1) / 2) * 0.2, xerr=whiskers, fmt="o", color=f"C{i}", capsize=2,
                              label=arm if y == 0 else None)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(skills)), skills)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy minus base (points)")
    axes.set_title(f"Change on the most-missed skills ({len(runs)} runs, corrected 95 % intervals)")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="run directories, or one results file")
    parser.add_argument("--save", help="write what was gathered to this results file")
    parser.add_argument("--plots", help="write the PNGs into this folder")
    args = parser.parse_args()
    try:
        results = read_json(args.paths[0]) if args.paths[0].endswith(".json") else gather(args.paths)
        if args.save:
            results["command"] = f"make results; this part: python report.py {' '.join(sys.argv[1:])}"
            Path(args.save).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(tables(results))
        if args.plots:
            Path(args.plots).mkdir(parents=True, exist_ok=True)
            stem = f"{Path(args.plots)}/{results['runs'][0]['method']}"
            plot_profile(results, Path(f"{stem}_profile.png"))
            if "base" in results["runs"][0]["arms"]:
                plot_skills(results, Path(f"{stem}_skills.png"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
