"""The table over finished seeds. It only reads and prints: it is no part of the hash of the code behind them.

    python -m realworld.table stat_sel                                       # or python -m realworld table
    python -m realworld.table stat_sel --save results/real_stat_sel.json    # for plot.py and report.py
"""
import argparse
import itertools
import json
import math
import statistics
import sys
from pathlib import Path

from scipy.special import stdtrit

import common
import gather
import report

RESULTS = Path(__file__).parent.parent / "results"


def record(out: Path, tuned: Path, code: str) -> dict:
    """What is kept of a finished run: counts, and no text of any question.

    report.py's counts, the code's hash, how the student was made, on how many test questions two arms differ.
    """
    kept, result = gather.gather([str(out)]), common.read_json(out / "result.json")
    for name in ("ood", "retention"):
        if name in kept["args"]:
            kept["args"][name] = [Path(path).stem for path in kept["args"][name]]
    stage, differ = 5 if result["method"] == "dart" else 7, {}
    tested = {arm: gather.read_rows(out / f"{stage}_test_{arm}.jsonl") for arm in result["arms"]}
    for a, b in itertools.combinations(tested, 2):
        first = tested[a][0]["set"]  # the set in distribution is tested first
        mine, other = ({row["id"]: row["is_right"] is True for row in tested[arm] if row["set"] == first}
                       for arm in (a, b))
        differ[f"{a} {b}"] = [sum(mine[i] != other[i] for i in mine), len(mine)]
    kept["runs"][0] |= {"code": code, "differ": differ, "step_seconds": gather.logged_seconds(out),
                        "student_made": common.read_json(tuned.with_suffix(".json"))}
    return kept


def merge(files: list[Path]) -> list[dict]:
    """The seeds of equal code and arguments as one results file of report.py each, the largest first."""
    groups: dict[str, dict] = {}
    for path in files:
        kept = common.read_json(path)
        key = common.digest([kept["runs"][0]["code"], kept["args"]])
        groups.setdefault(key, {"args": kept["args"], "runs": []})["runs"] += kept["runs"]
    for group in groups.values():
        group["runs"].sort(key=lambda run: run["seed"])
    return sorted(groups.values(), key=lambda group: -len(group["runs"]))


def power(runs: list[dict], arm: str, reference: str) -> str:
    """What a table of such runs can show of an arm's lead.

    Chance alone moves the difference in one run by 100 sqrt(share / n), where the arms differ on a share of
    n questions. The half-width is that of the t-interval over seeds.
    """
    pairs = [run["differ"].get(f"{reference} {arm}") or run["differ"][f"{arm} {reference}"] for run in runs]
    n, share = pairs[0][1], sum(k for k, _ in pairs) / sum(n for _, n in pairs)
    halves = []
    for seeds in sorted({len(runs), 3, 8} - {1}):
        half = stdtrit(seeds - 1, 0.975) * 100 * math.sqrt(share / n / seeds)
        halves.append(f"{half:.1f} points with {seeds} seeds")
    first, spread = next(iter(runs[0]["arms"]["base"]["scores"])), ""
    if len(runs) > 1:
        leads = [report.value(run, arm, first) - report.value(run, reference, first) for run in runs]
        spread = (f" By chance alone the differences of single seeds have a standard deviation of "
                  f"{100 * math.sqrt(share / n):.1f} points; these have {statistics.stdev(leads):.1f}.")
    base = [report.value(run, "base", first) for run in runs]
    mean = sum(base) / len(base)
    return (f"Power: {arm} and {reference} differ on {100 * share:.1f} % of {n} test questions. By chance "
            f"alone the half-width of the interval of their difference is {', '.join(halves)}.{spread} "
            f"The base has {mean:.1f} %, so {100 - mean:.1f} points are the most that can show.")


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("method", choices=("stat_sel", "dart"), nargs="?", default="stat_sel")
    parser.add_argument("--results", type=Path, default=RESULTS, help="holds real_<method>/seed-*.json")
    parser.add_argument("--save", type=Path, help="file for the largest group of seeds, in report.py's form")
    args = parser.parse_args()
    folder = args.results / f"real_{args.method}"
    groups = merge(sorted(folder.glob("seed-*.json")))
    if not groups:
        print(f"error: {folder}: no seed-*.json; run python -m realworld {args.method}", file=sys.stderr)
        return 2
    arm, reference = ("dart", "sft") if args.method == "dart" else ("stat", "augment")
    for group in groups:
        if {arm, reference, "base"} <= group["runs"][0]["arms"].keys():
            print(power(group["runs"], arm, reference) + "\n")
        print(f"Code {group['runs'][0]['code']}. {report.tables(group)}")
    if args.save:
        args.save.write_text(json.dumps(groups[0], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
