"""What a table of N seeds can show of each claim, told from pilots before the seeds are run.

Half-width  expected of the 95 % interval over N seeds, from the spread of the pilots' paired differences.
At most     what can show: a perfect score minus the rival's in the pilots. For dart.py what the best possible
            demonstrations bring (arm perfect) minus the rival's.
A claim can be told if the second is above the first. Four of five tables find an effect of 1.4 half-widths.

Run     python experiments/power.py results/pilots/toy_stat_sel.json --seeds 8
"""
import argparse
import math
import statistics
import sys
from pathlib import Path

from scipy.special import stdtrit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import gather  # noqa: E402
import report  # noqa: E402
from common import UserError  # noqa: E402

ON = {"": ("MATH", "MATH^D", "missed skills"), "active_loop": report.OVER_ROUNDS[:2], "dart": gather.COLUMNS}


def differences(runs: list[dict], a: str, b: str, name: str) -> list[float]:
    """a's value minus b's in each run that has both."""
    return [x - y for run in runs
            if None not in (x := report.value(run, a, name), y := report.value(run, b, name))]


def power(results: dict, seeds: int) -> str:
    """A table: a row for each claim that the pilots have, and each column on which claims are judged."""
    if "data" in results:
        parts = results["data"].items()
        return "\n".join(f"**{name}**\n\n{power(part, seeds)}" for name, part in parts)
    runs, rows = results["runs"], []
    method, arms = runs[0]["method"], runs[0]["arms"]
    called = report.ARMS.get(method, {})
    for claim, better, worse in report.CLAIMS[method]:
        a, b = called.get(better, better), called.get(worse, worse)
        for name in ON.get(method, ON[""]):
            found = differences(runs, a, b, name)
            if len(found) < 2 or b == "base" and name == "MATH^D":
                continue  # MATH^D is chosen by the base's answers
            half = stdtrit(seeds - 1, 0.975) * statistics.stdev(found) / math.sqrt(seeds)
            most = 100 - statistics.fmean(report.value(run, b, name) for run in runs)
            if "perfect" in arms:
                most = statistics.fmean(differences(runs, "perfect", b, name))
            lead = f"{statistics.fmean(found):+.1f}"
            rows.append([f"{claim}: {better} > {worse}", name, lead, f"{half:.1f}", f"{most:.1f}",
                         "yes" if most > half else "no"])
    if not rows:
        raise UserError(f"{method}: expected two pilots or more with a claim's arms, came fewer; run more")
    header = ["claim", "on", "pilots", f"half-width with {seeds} seeds", "at most", "can be told"]
    return "\n".join(report.table(header, rows)).strip() + "\n"


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("pilots", help="file that report.py --save wrote")
    parser.add_argument("--seeds", type=int, default=8, help="how many runs the table will have")
    args = parser.parse_args()
    try:
        results = gather.read_results(args.pilots)
        if args.seeds < 2:
            raise UserError(f"--seeds: expected 2 or more, came {args.seeds}; one run has no interval")
        print(power(results, args.seeds), end="")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
