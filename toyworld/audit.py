"""What the exact checker says of STAT-Syn's new questions (do they need the skill that was asked for, what is the consistency filter worth), of
DART's rewrites (is every step there and true), and of what each criterion of the active loop chooses (seeds answered wrongly, items of what is weak).

    python -m toyworld.audit runs/toy_stat_syn/seed-* --save results/audit_stat_syn.json
    python -m toyworld.audit runs/toy_dart/seed-*/{all,no_penalty,rejecting} --save results/audit_dart.json
    python -m toyworld.audit runs/toy_active_loop/seed-*/*/* --save results/audit_active.json
    python -m toyworld.audit results/audit_stat_syn.json   # or several such files, joined
"""
import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import common
import gather
import report
import stat_syn
from toyworld import deduction
from toyworld import problems as toy
from toyworld.student import WEAK
from toyworld.teacher import read

LOOP = ("asked seeds that the base gets wrong", "that are weak", "kept items that are weak", "kept items with a right answer",
        "right of weak tests, last round", "of the others", "AUROC of the base's loss")


def count(path: Path) -> dict[str, dict[str, list[int]]]:
    """For each arm of a run [how many, of how many]: solutions that are right "before" and "after" the filter; kept questions "on_skill"."""
    if not (path / "5_written.jsonl").is_file():
        raise common.UserError(f"{path}: expected a run of stat_syn.py, found no 5_written.jsonl; give its directory")
    dropped = {row["id"]: row["dropped"] for row in gather.read_rows(path / "dropped.jsonl")}
    solutions, out = defaultdict(list), defaultdict(lambda: {"before": [0, 0], "after": [0, 0], "on_skill": [0, 0]})
    for row in gather.read_rows(path / "5_solutions.jsonl"):
        solutions[row["id"]].append(row)
    for row in gather.read_rows(path / "5_written.jsonl"):
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


def count_rewrites(path: Path) -> dict[str, dict[str, list[int]]]:
    """For each arm of a run of dart.py [how many, of how many]: rewrites that "pass" (a right answer, no hard fail); of those
    taken, the "sound" ones (no step is false, all that the problem needs are there), those with a "false" step, and those in which a step is
    "missing" and none false; "sound, weak" of the demonstrations that need a skill the student lacks, "sound, strong" of the others. Rejection
    rewrites nothing: what it takes are own answers."""
    problems = {row["id"]: toy.read(row["problem"]) for row in gather.read_rows(path / "0_questions.jsonl") if row["part"] == "D"}
    args, out = common.read_json(path / "args.json"), {}
    for arm in common.read_json(path / "result.json")["arms"]:
        rewrites = [row for file in sorted(path.glob(f"3_rewrites_{arm}*.jsonl")) for row in gather.read_rows(file)]
        taken = [row for row in gather.read_rows(path / f"3_chosen_{arm}.jsonl", there=False) if row["from"] == "rewrite"]
        if taken and (args["penalty"] or arm == "dart"):
            checked = [toy.check(problems[row["id"]], row["solution"]) for row in taken]
            kinds = ["false" if not all(is_true for _, is_true in found["steps"]) else "missing" if found["missing"] else "sound"
                     for found in checked]
            parts = ["weak" if set(WEAK) & set(problems[row["id"]].skills) else "strong" for row in taken]
            both = Counter(zip(kinds, parts, strict=True))
            name = f"{arm}, rejecting" if args.get("reject_cheats") else arm if args["penalty"] else "no penalty"
            out[name] = {"pass": [sum(row["is_right"] and not row["fails"] for row in rewrites), len(rewrites)],
                         **{kind: [kinds.count(kind), len(taken)] for kind in ("sound", "false", "missing")},
                         **{f"sound, {part}": [both["sound", part], parts.count(part)] for part in ("weak", "strong")}}
    return out


def rewrites_table(runs: list[dict]) -> str:
    arms, kinds = list(dict.fromkeys(arm for run in runs for arm in run)), ("sound", "false", "missing", "sound, weak", "sound, strong")
    rows = [[arm, *(report.shown(report.t_interval([share_of(run, arm, name) for run in runs if arm in run]), "") for name in ("pass", *kinds))]
            for arm in arms]
    for a, b in (("dart", "no penalty"), ("dart", "prompt")):
        pairs = [run for run in runs if {a, b} <= set(run)]
        both = {name: [(share_of(run, a, name), share_of(run, b, name)) for run in pairs] for name in ("pass", *kinds)}
        leads = [report.t_interval([None if None in pair else pair[0] - pair[1] for pair in some]) for some in both.values()]
        rows += [[f"{a} minus {b}", *map(report.shown, leads)]] if pairs else []
    header = ["arm", "rewrites that pass %", "of those taken: sound %", "with a false step %", "only lacking a step %",
              "sound % where a weak skill is needed", "and elsewhere"]
    return "\n".join(report.table(header, rows)).strip() + "\n"


def count_choices(path: Path) -> dict[str, dict[str, list[int]]]:
    """For the arm of a run of active_loop.py [how many, of how many], in the order of LOOP. Weak: the problem needs a weak skill, or more than two
    rules. Of all pairs of a seed that the base answers wrongly and one that it answers rightly, the share in which the first has the higher loss is
    the AUROC; answers that were cut off have no loss, and count as wrong in the other columns."""
    def answer(problem):
        return (deduction if is_deduction else toy).solve(problem)[1]

    def is_weak(problem):
        return deduction.level(problem) > max(deduction.SHALLOW) if is_deduction else bool(set(WEAK) & set(problem.skills))

    def share(flags):
        return [sum(flags), len(flags)]
    args, asked, items = common.read_json(path / "args.json"), [], []
    problems = {row["id"]: read(row["problem"]) for row in gather.read_rows(path / "0_questions.jsonl")}
    base = path if (path / "r0_answers.jsonl").is_file() else Path(args["from_"] or path)  # random and true_loss read none
    if None in problems.values() or not (base / "r0_answers.jsonl").is_file():
        raise common.UserError(f"{path}: expected a run in the toy world with the base's answers, its own or by --from; leave it out")
    is_deduction = isinstance(next(iter(problems.values())), deduction.Problem)
    wrong = {row["id"]: re.findall(r"\\boxed{([^{}]*)}", row["response"])[-1:] != [answer(problems[row["id"]])]
             for row in gather.read_rows(base / "r0_answers.jsonl")}
    for t in range(args["rounds"]):
        rows = common.read_json(path / f"r{t}_items.json")["rows"]
        asked += [row["seed"] for row in rows]
        items += [(read(row["problem"]), row["answer"]) for row in rows if row["dropped"] is None]
    tested = {row["id"]: bool(row["is_right"]) for row in gather.read_rows(path / f"r{args['rounds']}_test.jsonl")}
    losses = common.read_json(path / "r0_selected.json")["losses"] if args["select"] == "loss" else {}
    of_wrong, of_right = ([x for i, x in losses.items() if wrong[i] == side] for side in (True, False))
    counts = (share([wrong[i] for i in asked]), share([is_weak(problems[i]) for i in asked]),
              share([bool(one) and is_weak(one) for one, _ in items]), share([bool(one) and said == answer(one) for one, said in items]),
              *(share([right for i, right in tested.items() if is_weak(problems[i]) == side]) for side in (True, False)),
              [sum((x > y) + (x == y) / 2 for x in of_wrong for y in of_right), len(of_wrong) * len(of_right)])
    return {f"{path.parent.name}: {gather.criterion(args)}": dict(zip(LOOP, counts, strict=True))}


def share_of(run: dict, arm: str, name: str) -> float | None:
    k, n = run.get(arm, {}).get(name, (0, 0))  # older files lack some
    return 100 * k / n if n else None


def choices_table(runs: list[dict]) -> str:
    rows = [[arm, *(report.shown(report.t_interval([share_of(run, arm, name) for run in runs]), "") for name in LOOP)] for arm in runs[0]]
    return "\n".join(report.table(["in %", *LOOP], rows)).strip() + "\n"


def table(runs: list[dict]) -> str:
    if LOOP[0] in next(iter(runs[0].values())):
        return choices_table(runs)
    if "pass" in next(iter(runs[0].values())):
        return rewrites_table(runs)
    rows = []
    for arm in runs[0]:
        gain = report.t_interval([share_of(run, arm, "after") - share_of(run, arm, "before") for run in runs])
        cells = [report.shown(report.t_interval([share_of(run, arm, name) for run in runs]), "") for name in ("before", "after", "on_skill")]
        rows.append([arm, str(sum(run[arm]["before"][1] for run in runs)), *cells[:2], report.shown(gain), cells[2]])
    return "\n".join(report.table(["arm", "solutions", "right %", "right % of those kept", "gain of the filter",
                                   "kept questions that need the asked skill %"], rows)).strip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="run directories of stat_syn.py, dart.py or active_loop.py in the toy world, or saved files")
    parser.add_argument("--save", help="write the counts to this file")
    args = parser.parse_args()
    try:
        if args.paths[0].endswith(".json"):
            saved = {path: common.read_json(path).get("runs", []) for path in args.paths}
            if odd := [path for path, some in saved.items() if not some or "seed" in some[0]]:  # report.py's
                raise common.UserError(f"{odd[0]}: expected a file that --save wrote, came another; give that, or run directories")
            runs = [run for some in saved.values() for run in some]
        else:
            runs = {}
            for path in map(Path, args.paths):  # of dart.py and active_loop.py several runs of a seed are one row
                counted = {"3_chosen_dart.jsonl": count_rewrites, "r0_items.json": count_choices}
                how = next((how for name, how in counted.items() if (path / name).is_file()), count)
                name = str(path) if how is count else common.read_json(path / "args.json")["seed"]
                runs.setdefault(name, {}).update(how(path))
            runs = list(runs.values())
        if args.save:
            saved = {"command": f"python -m toyworld.audit {' '.join(sys.argv[1:])}", "runs": runs}
            Path(args.save).write_text(json.dumps(saved, indent=1) + "\n")
    except (common.UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(runs), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
