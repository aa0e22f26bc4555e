"""What the exact checker says of STAT-Syn's new questions: how many need the skill that was asked for, what the consistency filter is worth.

    python -m toyworld.audit runs/toy_stat_syn/seed-* --save results/audit_stat_syn.json
    python -m toyworld.audit results/audit_stat_syn.json
"""
import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import common
import report
import stat_syn
from toyworld import problems as toy


def count(path: Path) -> dict[str, dict[str, list[int]]]:
    """For each arm of a run [how many, of how many]: solutions that are right "before" and "after" the filter; kept questions "on_skill"."""
    if not (path / "5_written.jsonl").is_file():
        raise common.UserError(f"{path}: expected a run of stat_syn.py, found no 5_written.jsonl; give its directory")
    dropped = {row["id"]: row["dropped"] for row in report.read_rows(path / "dropped.jsonl")}
    solutions, out = defaultdict(list), defaultdict(lambda: {"before": [0, 0], "after": [0, 0], "on_skill": [0, 0]})
    for row in report.read_rows(path / "5_solutions.jsonl"):
        solutions[row["id"]].append(row)
    for row in report.read_rows(path / "5_written.jsonl"):
        if dropped.get(row["id"], "inconsistent") != "inconsistent":
            continue  # it was never solved
        problem, answers, counts = toy.read(row["problem"]), [one["answer"] for one in solutions[row["id"]]], out[row["arm"]]
        is_right = [problem is not None and answer == toy.solve(problem)[1] for answer in answers]
        kept = [] if row["id"] in dropped else stat_syn.agreeing([None if one["fault"] else one["answer"] for one in solutions[row["id"]]])
        for name, indices in (("before", [i for i, answer in enumerate(answers) if answer is not None]), ("after", kept)):
            counts[name][0] += sum(is_right[i] for i in indices)
            counts[name][1] += len(indices)
        if kept and row["skill"]:
            counts["on_skill"][0] += problem is not None and row["skill"].partition(": ")[2] in problem.skills
            counts["on_skill"][1] += 1
    return out


def table(runs: list[dict]) -> str:
    def share(run, arm, name):
        k, n = run[arm][name]
        return 100 * k / n if n else None
    rows = []
    for arm in runs[0]:
        gain = report.t_interval([share(run, arm, "after") - share(run, arm, "before") for run in runs])
        cells = [report.shown(report.t_interval([share(run, arm, name) for run in runs]), "") for name in ("before", "after", "on_skill")]
        rows.append([arm, str(sum(run[arm]["before"][1] for run in runs)), *cells[:2], report.shown(gain), cells[2]])
    return "\n".join(report.table(["arm", "solutions", "right %", "right % of those kept", "gain of the filter",
                                   "kept questions that need the asked skill %"], rows)).strip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="run directories of stat_syn.py in the toy world, or one saved file")
    parser.add_argument("--save", help="write the counts to this file")
    args = parser.parse_args()
    try:
        if args.paths[0].endswith(".json"):
            runs = common.read_json(args.paths[0]).get("runs", [])
            if not runs or "seed" in runs[0]:  # report.py's
                raise common.UserError(f"{args.paths[0]}: expected a file that --save wrote, came another; give that, or run directories")
        else:
            runs = [count(Path(path)) for path in args.paths]
    except common.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.save:
        Path(args.save).write_text(json.dumps({"command": f"python -m toyworld.audit {' '.join(sys.argv[1:])}", "runs": runs}, indent=1) + "\n")
    print(table(runs), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
