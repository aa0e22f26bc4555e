"""Pictures of runs of any method, live or finished, and of results files. No method file imports this.

    python plot.py runs/dart --out docs                        # a run's directory
    python plot.py runs/dart runs/dart_seed_1 --out docs       # runs of one method: means and bands
    python plot.py results/toy_dart.json --out docs            # what report.py --save gathered

A curve is one run's {key: (x, y)}. A line is the mean of its runs' curves at the keys that all of them have.
"""
import argparse
import contextlib
import itertools
import json
import math
import statistics
import sys
import textwrap
import zlib
from collections import Counter, defaultdict
from pathlib import Path

from matplotlib.figure import Figure

import gather
import report
from common import UserError, read_json

FIRST = ("missed", "stat", "dart", "loss", "grpo", "base", "augment", "random")  # drawn whatever else is
COLOURS = {"missed": "black"} | {name: f"C{i}" for i, names in enumerate((  # the same in every picture
    "train|prompt|static_loss|padding", "augment|sft|random|cut off", "hard|no penalty|badge|repetition",
    "embed|grpo|incorrect|copy", "stat|dart|loss|false equation", "shuffled|best_of_n|true_loss|echo",
    "accuracy|rejection|reward|too short", "base|no answer|loss, sum", "sel|prompt, rejecting|judge|loss_low",
    "embed_sel|dart, rejecting|lion|mentions the solution")) for name in names.split("|")}
STEPS = (  # what a GRPO step logs, its axis, its scale
    ("reward", "mean reward", 1), ("is_right", "right answers (%)", 100),
    ("held_out", "mean reward, held out", 1), ("align", "alignment (0 to 1)", 1),
    ("kl", "KL to the base (nats a token)", 1), ("entropy", "entropy (nats a token)", 1),
    ("length", "length (tokens)", 1), ("cut_off", "cut off (%)", 100),
    ("signal", "groups with signal (%)", 100))


def colour(name: str) -> str:
    return COLOURS.get(name, f"C{zlib.crc32(name.encode()) % 10}")


# --- Panels ------------------------------------------------------------------------------------------------
def five(values: dict[str, list[float]]) -> tuple[list[str], str]:
    """FIRST's names, then those furthest from the first of them, five in all; and a note on the others."""
    own = min(values, key=lambda name: (*FIRST, name).index(name))

    def rank(name):
        gaps = [abs(x - y) for x, y in zip(values[name], values[own], strict=False) if x == x and y == y]
        return (*FIRST, name).index(name), -statistics.fmean(gaps or [0])
    kept = sorted(values, key=rank)[:5]
    left = "; ".join(name for name in values if name not in kept)
    return [name for name in values if name in kept], textwrap.fill(f"not drawn: {left}", 70) if left else ""


def mean_line(curves: list[dict]) -> list[tuple]:
    """(x, mean, smallest, largest y) at each key that all curves have."""
    curves = list(filter(None, curves)) or [{}]
    keys = sorted(key for key in curves[0] if all(key in curve for curve in curves))
    points = [list(zip(*(curve[key] for curve in curves), strict=True)) for key in keys]
    return [(statistics.fmean(x), statistics.fmean(y), min(y), max(y)) for x, y in points]


def panel(axis, lines: dict[str, list[tuple]], xlabel: str, ylabel: str) -> None:
    kept, note = five({name: [y for _, y, *_ in line] for name, line in lines.items()})
    for name in kept:
        x, y, low, high = zip(*lines[name], strict=True)
        axis.plot(x, y, "o-" if len(x) < 9 else "-", ms=4, lw=1.3, color=colour(name), label=name)
        axis.fill_between(x, low, high, color=colour(name), alpha=0.12, lw=0)
        if len(x) == 1:
            axis.vlines(x, low, high, color=colour(name), lw=1)
    low, high = axis.get_ylim()
    axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(low, high))
    axis.set_title(note, fontsize=7)
    gap, at = 0.075 * (high - low), -math.inf  # names that would meet are moved apart
    for n, name in enumerate(sorted(kept, key=lambda name: lines[name][-1][1]), 1):
        x, y, *_ = lines[name][-1]
        at = max(y, at + gap)
        end = {"arrowstyle": "-", "lw": 0.5, "color": colour(name), "relpos": (0, 0.5), "shrinkA": 0}
        axis.annotate(name, (x, y), (9, min(at, high - gap * (len(kept) - n))), "data",
                      ("offset points", "data"), end, va="center", color=colour(name), fontsize=8)


def grid(title: str, panels: list[tuple], columns: int = 3) -> Figure | None:
    """panels: ({name: curves}, x label, y label)."""
    runs = [n for lines, *_ in panels for curves in lines.values() if (n := sum(map(bool, curves)))]
    panels = [({name: line for name, curves in lines.items() if (line := mean_line(curves))}, *labels)
              for lines, *labels in panels]
    if not (panels := [one for one in panels if one[0]]):
        return None
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.8 * columns, 2.9 * rows + 0.4), layout="constrained")
    for axis, one in itertools.zip_longest(figure.subplots(rows, columns, squeeze=False).flat, panels):
        panel(axis, *one) if one else axis.remove()
    n = "-".join(map(str, sorted({min(runs), max(runs)})))
    many = f"means of {n} runs; bands: smallest to largest run"
    figure.suptitle(f"{title}: {many if max(runs) > 1 else '1 run a line'}", fontsize=11)
    return figure


def bars(title: str, xlabel: str, skills: list[str], series: dict[str, list[tuple]]) -> Figure | None:
    """series: (mean, half a whisker) of each skill; NaN is not drawn. A name stands at its first bar."""
    series = {name: some for name, some in series.items() if any(mean == mean for mean, _ in some)}
    if not series:
        return None
    kept, note = five({name: [mean for mean, _ in some] for name, some in series.items()})
    figure = Figure(figsize=(9, 0.7 * len(skills) + 1.2), layout="constrained")
    axis, height = figure.subplots(), 0.8 / len(kept)
    for i, name in enumerate(kept):
        rows = [(j + (i + 0.5) * height - 0.4, *one) for j, one in enumerate(series[name])]
        y, means, halves = zip(*(row for row in rows if row[1] == row[1]), strict=True)
        axis.barh(y, means, height, xerr=halves, color=colour(name), label=name,
                  error_kw={"ecolor": "gray", "lw": 0.8})
        x = max(0, means[0] + halves[0])
        axis.text(x, y[0], f"  {name}", va="center", color=colour(name), fontsize=8)
    axis.set(yticks=range(len(skills)), yticklabels=skills, ylim=(len(skills) - 0.5, -0.5), xlabel=xlabel)
    axis.axvline(0, color="black", lw=0.8)
    axis.margins(x=0.1)
    axis.set_title(note, fontsize=7)
    figure.suptitle(title, fontsize=11)
    return figure


# --- DART --------------------------------------------------------------------------------------------------
def curve(rows: list[dict], key: str, scale: float = 100, default: float = math.nan) -> dict:
    points = [(row["step"], default if row.get(key) is None else row[key]) for row in rows]
    return {x: (x, y * scale) for x, y in points if y == y}


def in_shares(row: dict) -> dict:
    """A row of metrics.jsonl has shares of the rules, and the length; a gathered one counts."""
    rules, n = (row.get("fails") or {}) | (row.get("cheats") or {}), row.get("drawn", 1)
    length = row["generated"] / n if "drawn" in row else row.get("length")
    return row | {"length": length, "rules": {rule: k / n for rule, k in rules.items()}}


def draw_steps(title: str, runs: list[dict], arms: tuple) -> Figure | None:
    steps = {arm: [list(map(in_shares, run["steps"].get(arm, []))) for run in runs] for arm in arms}
    steps = {arm: list(filter(None, some)) for arm, some in steps.items() if any(some)}
    panels = [({arm: [curve(rows, key, scale) for rows in some] for arm, some in steps.items()},
               "GRPO step", words) for key, words, scale in STEPS]
    for arm, some in steps.items():
        found = [[row["rules"] | {"step": row["step"]} for row in rows] for rows in some]
        total = sum((Counter(row["rules"]) for rows in some for row in rows), Counter())
        rules = sorted(total, key=total.get)  # the rarest first: five() keeps those far from it
        panels.append(({rule: [curve(rows, rule, default=0) for rows in found] for rule in rules},
                       "GRPO step", f"{arm}: a rule fires (%)"))
    return grid(title, panels)


def draw_tokens(runs: list[dict]) -> Figure | None:
    """Accuracy of base and of the arms that generate, at their ends, and direct GRPO's on its way."""
    def points(run, arm, column):
        way, found = [arm], {}
        if arm == "grpo" and "base" in run["arms"]:
            way = ["base", *(name for name in run["arms"] if name.startswith("grpo at ")), arm]
        for i, stop in enumerate(way, 1 - len(way)):
            x = run["arms"][arm]["cost"].get("generated", 0) / 1000 * (1 + i / max(1, len(way) - 1))
            found |= {i: (x, y)} if (y := report.value(run, stop, column)) is not None else {}
        return found
    arms = [arm for arm in runs[0]["arms"] if arm == "base" or runs[0]["arms"][arm]["cost"].get("generated")]
    return grid("DART, base and the arms that generate", [
        ({arm: [points(run, arm, column) for run in runs] for arm in arms},
         "generated tokens (thousands)", f"right {column} (%)") for column in gather.COLUMNS])


# --- Active loop -------------------------------------------------------------------------------------------
def draw_active(data: dict[str, dict]) -> Figure | None:
    def points(rounds, x):
        return {i: (x(row), gather.percent(row["right"])) for i, row in enumerate(rounds)}
    panels = []
    for words, x in (("items trained on", lambda row: row["items"]),
                     ("teacher tokens, read and written (thousands)", lambda row: gather.tokens(row) / 1000)):
        for name, part in data.items():
            lines = defaultdict(list)
            for criterion, found in (item for run in part["runs"] for item in run["arms"].items()):
                lines[criterion].append(points(found["curve"], x))
            panels.append((lines, words, f"{name}: right (%)"))
    return grid("Active loop", panels, len(data))


# --- STAT --------------------------------------------------------------------------------------------------
def draw_stat(runs: list[dict]) -> dict[str, Figure | None]:
    """Figs. 2, 6 and 4: the most-missed skills in the profile and in the arms' pairs; the change on them."""
    skills = gather.most_missed(runs)
    arms = [arm for arm in runs[0]["arms"] if arm != "base" and all(arm in run["arms"] for run in runs)]
    by_data = all(run["arms"][arm]["skills_by_data"] for run in runs for arm in arms)
    counts = {"missed": [run["profile"] for run in runs]} | {
        arm: [run["arms"][arm]["skills_by_data" if by_data else "skills_by_teacher"] for run in runs]
        for arm in arms}

    def title(words, whiskers):
        many = f"means of {len(runs)} runs; whiskers: {whiskers}"
        return f"{words}: {many if len(runs) > 1 else '1 run'}"

    def share(rows, skill):
        values = [100 * row.get(skill, 0) / (sum(row.values()) or 1) for row in rows]
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0

    def change(arm, skill):
        found = report.lead(runs, arm, "base", skill, len(skills))
        mean, low, _ = found or (math.nan, 0, 0)
        return mean, mean - low if math.isfinite(low) else 0
    shares = {name: [share(rows, skill) for skill in skills] for name, rows in counts.items() if any(rows)}
    with_base = arms if "base" in runs[0]["arms"] else []
    changes = {arm: [change(arm, skill) for skill in skills] for arm in with_base}
    return {"profile": bars(title("Skills missed, and skills of the training pairs", "± 1 sd"),
                            "share of all skill mentions (%)", skills, shares),
            "skills": bars(title("Change on the most-missed skills", "corrected 95 % intervals"),
                           "accuracy minus base (points)", skills, changes)}


# --- Live runs ---------------------------------------------------------------------------------------------
def rows_of(file: Path) -> list[dict]:
    """The rows so far; a line that a kill has torn, or that is being written, is left out."""
    rows = []
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def steps_so_far(path: Path, args: dict) -> dict[str, list[dict]]:
    """The GRPO steps of each arm; of a step that was done again, the later row."""
    names, steps = {"mapper": "dart" if args.get("penalty", True) else "no penalty"}, defaultdict(dict)
    for row in rows_of(path / "metrics.jsonl"):
        if "grpo" in row:
            steps[names.get(row["grpo"], row["grpo"])][row["step"]] = row
    return {arm: list(rows.values()) for arm, rows in steps.items()}


def rounds_so_far(path: Path) -> list[dict]:
    """The active loop's curve: result.json's, or the same from the files of its rounds."""
    if (path / "result.json").is_file():
        return read_json(path / "result.json")["curve"]
    rounds, items, tokens = [], 0, [0, 0]
    while answers := rows_of(path / f"r{len(rounds)}_test.jsonl"):
        files = [path / f"r{len(rounds)}_{name}.json" for name in ("selected", "items")]
        rounds.append({"items": items, "tokens": tokens, "right": gather.right(answers)})
        for made in map(read_json, filter(Path.is_file, files)):
            items += sum(not row["dropped"] for row in made.get("rows", ()))
            tokens = [a + b for a, b in zip(tokens, made["tokens"], strict=True)]
    return rounds


# --- What to draw ------------------------------------------------------------------------------------------
def read_run(path: Path) -> tuple[str, dict]:
    """The method and the arguments of a run."""
    if not path.is_dir():
        raise UserError(f"{path}: expected a run's directory, or one results file alone; check the path")
    files = path / "result.json", path / "args.json"
    result, args = (read_json(file) if file.is_file() else {} for file in files)
    signs = {"per_round": "active_loop", "profile_from": "stat_syn", "tau1": "stat_sel"}
    return result.get("method") or next((signs[sign] for sign in signs if sign in args), "dart"), args


def draw(paths: list[Path]) -> dict[str, Figure]:
    """The name of each picture's file -> the picture."""
    is_results = len(paths) == 1 and paths[0].suffix == ".json"
    if is_results:
        results = gather.read_results(paths[0])
        data, runs = results.get("data"), results.get("runs")
        method, done = runs[0]["method"] if runs else "active_loop", runs
    else:
        methods, args = zip(*map(read_run, paths), strict=True)
        method, data = methods[0], defaultdict(lambda: {"runs": []})
        if len(set(methods)) > 1:
            raise UserError(f"runs of {' and '.join(sorted(set(methods)))}: draw one method at a time")
        ended = [str(path) for path in paths if (path / "result.json").is_file()]
        done = gather.gather(ended)["runs"] if ended and method != "active_loop" else []
    if method == "active_loop":
        for path, one in zip(paths, args, strict=True) if not is_results else ():
            arms = {gather.criterion(one): {"curve": rounds_so_far(path)}}
            data[gather.data_name(one["data"])]["runs"].append({"arms": arms})
        drawn = {"active_curve": draw_active(data)}
    elif method == "dart":
        if not is_results:
            runs = [{"steps": steps_so_far(*one)} for one in zip(paths, args, strict=True)]
        drawn = {"dart_mapper": draw_steps("DART's mapper", runs, ("dart", "no penalty")),
                 "dart_grpo": draw_steps("Direct GRPO", runs, ("grpo",)),
                 "dart_tokens": draw_tokens(done) if done else None}
    else:
        drawn = {f"{method}_{name}": figure for name, figure in (draw_stat(done) if done else {}).items()}
    if not any(drawn.values()):
        raise UserError(f"{paths[0]}: nothing to draw yet; wait for a GRPO step, a tested round, STAT's end")
    return {name: figure for name, figure in drawn.items() if figure}


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("paths", nargs="+", type=Path, help="runs of one method, or one results file")
    parser.add_argument("--out", type=Path, default=Path("runs/plots"), help="folder for the PNGs")
    args = parser.parse_args()
    try:
        pictures = draw(args.paths)
        args.out.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures.items():
            figure.savefig(file := args.out / f"{name}.png", dpi=80)
            print(file)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
