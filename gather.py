"""What finished runs leave for tables: counts, never texts. report.py calls this; no method file imports it.

A gathered run is {"method", "seed", "arms": {arm: {"scores", "cost", ...}}, ...}. A score, more of which is
claimed to be better, is [right, of] or a number; scores and costs are looked up by name. A skill is written
"subject: name".
"""
import itertools
import math
import re
import statistics
from collections import Counter, defaultdict
from pathlib import Path

import common
from common import UserError, read_json

MAY_DIFFER = {  # between the runs of one table; a method's own are those that make another arm of a run
    "": "prm data skills seed out teacher_url teacher_max_tokens teacher_timeout teacher_max_none cache "
        "concurrency max_usd usd_per_m_in usd_per_m_out plan until micro_batch sample_batch prm_batch "
        "checkpointing profile_from from_ writer_url writer_usd_per_m_in writer_usd_per_m_out save_every",
    "stat_sel": "arms", "stat_syn": "arms", "active_loop": "select reward_model norm",
    "dart": "ood retention arms penalty reject_cheats"}
TOY = re.compile(r"\b(mathematics|deduction|demonstrations)(-\d+)(-[0-9a-f]{8})?")  # name, seed, digest
COLUMNS = ("in distribution", "out of distribution", "retention")  # DART's
NEAR = "near the profile"  # C5: 100 minus the distance between the skills of an arm's pairs and the profile


def gather(paths: list[str]) -> dict:
    """{"args", "runs"} of runs of one method, or of files with some; of a loop {"data": {its name: these}}.

    Runs of one seed join in one, each with other arms. All seeds must have the same arms, arguments and data.
    """
    parts: dict[str, tuple] = {}
    for path in paths:
        for name, args, run in read_saved(path) if path.endswith(".json") else [read_run(Path(path))]:
            first, agreed, runs = parts.setdefault(name, (path, args, {}))
            if odd := {key for key in args.keys() | agreed.keys() if args.get(key) != agreed.get(key)}:
                raise UserError(f"{path}: its arguments differ from those of {first}: "
                                f"{', '.join(sorted(odd))}; gather runs of one setting")
            mine = runs.setdefault(run["seed"], run | {"arms": {}, "steps": {}})
            if mine.get("made") != run.get("made"):
                raise UserError(f"{path}: its data or student are not those of the other runs with seed "
                                f"{run['seed']}; make them anew")
            of = [data_name(one["made"][0]) for one in (*runs.values(), run) if "made" in one]
            if len(set(of)) > 1:
                raise UserError(f"{path}: its data, {of[-1]}, are not {of[0]} as in {first}; gather runs of "
                                "one set")
            if twice := mine["arms"].keys() & run["arms"].keys():
                raise UserError(f"{path}: arm {min(twice)} with seed {run['seed']} came twice; leave out one")
            mine["arms"] |= run["arms"]
            mine["steps"] |= run.get("steps", {})
            mine["commits"] = list(dict.fromkeys(mine["commits"] + run["commits"]))
            mine["gpu"] = ", ".join(dict.fromkeys(f"{mine['gpu']}, {run['gpu']}".split(", ")))
    for first, _, runs in parts.values():
        lengths = {len(one.get("curve", ())) for run in runs.values() for one in run["arms"].values()}
        if len({tuple(sorted(run["arms"])) for run in runs.values()}) > 1 or len(lengths) > 1:
            raise UserError(f"{first}, ...: expected the same arms, and as many rounds, for every seed; "
                            "finish what is missing, or run all without --budget-tokens")
    if "" in parts and len(parts) > 1:
        raise UserError(f"{paths[0]}, ...: expected runs of one method, came a loop and another; part them")
    done = {name: {"args": args, "runs": [runs[seed] for seed in sorted(runs)]}
            for name, (_, args, runs) in parts.items()}
    return {"data": done} if "" not in done else done[""]


def read_saved(path: str) -> list[tuple[str, dict, dict]]:
    """As read_run, of each run in a file."""
    results = read_results(path)
    parts = results.get("data", {"": results})
    return [(name, part["args"], run) for name, part in parts.items() for run in part["runs"]]


def read_results(path: str) -> dict:
    """What --save wrote."""
    results = read_json(path)
    try:
        parts = results["data"].values() if "data" in results else [results]
        known = parts and all(part["runs"] and all("arms" in run for run in part["runs"]) for part in parts)
    except (AttributeError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(f"{path}: expected a file that report.py --save wrote, came another; give that, or "
                        "run directories")
    return results


def read_run(path: Path) -> tuple[str, dict, dict]:
    """Of a finished run: the data's name (of a loop), the arguments that one table shares, what is kept."""
    if not (path / "result.json").exists():
        raise UserError(f"{path}: expected a finished run with a result.json, found none; finish it, or "
                        "leave it out")
    result, args, env = (read_json(path / name) for name in ("result.json", "args.json", "env.json"))
    method, last = result["method"], env[-1]
    free = f"{MAY_DIFFER['']} {MAY_DIFFER.get(method, '')}".split()
    agreed = {name: x for name, x in args.items() if name not in free} | {"method": method} | {
        name: Path(args[name]).name for name in ("student", "embedder") if args.get(name)}
    if more_a_skill(result, args):
        agreed["questions_per_skill"] = 5
    run = {"method": method, "seed": args["seed"], "commits": [str(last["commit"])[:10]], "gpu": last["gpu"],
           "packages": last["packages"]}
    run["made"] = [re.sub(TOY.pattern + "(/perfect$)?", r"\1\2", str(args[name]))
                   for name in ("data", "student")]
    read_arms = {"active_loop": loop_arms, "dart": dart_arms}.get(method, stat_arms)
    run["arms"] = read_arms(path, result, args, run)
    if not run["arms"]:
        raise UserError(f"{path}: expected an arm that belongs into a table, found none; leave it out")
    return data_name(args["data"]) if method == "active_loop" else "", agreed, run


def data_name(data: str) -> str:
    """The name of --data; a toy world's is that of its family, whatever its seed."""
    toy = TOY.match(Path(data).name)
    return toy[1] if toy else Path(data).name


def read_rows(path: Path, there: bool = True) -> list[dict]:
    """The rows of a .jsonl file; none if it need not be there, as with given pairs, and is not."""
    return [row for _, row in common.read_rows(path)] if there or path.exists() else []


def percent(score: list[int] | float | None) -> float | None:
    """% of [right, of]; None of nothing."""
    if not isinstance(score, list):
        return score
    return 100 * score[0] / score[1] if score[1] else None


def right(rows: list[dict]) -> list[int]:
    """[k, n]. An answer in which no final answer was found (None) is not right."""
    return [sum(row["is_right"] is True for row in rows), len(rows)]


def logged_seconds(path: Path) -> Counter:
    """Seconds by file, arm's training or GRPO; of what was done again, the later row counts."""
    logged, total = {}, Counter()
    for row in read_rows(path / "metrics.jsonl", there=False):
        name = row.get("grpo") or row.get("train") or row.get("step", "")
        if "seconds" in row and ".round_" not in name:  # a part of a step that is there whole
            logged[name, row.get("epoch", row.get("step"))] = row["seconds"]
    for (name, _), seconds in logged.items():
        total[name] += seconds
    return total


def training(path: Path, *names: str) -> dict[str, float | None]:
    """Seconds and peak memory logged under these names, with every learning rate that was tried."""
    of_these = re.compile(rf"({'|'.join(map(re.escape, names))})(_[\d.]+(e-?\d+)?)?")
    peaks = [row["peak_gib"] for row in read_rows(path / "metrics.jsonl", there=False)
             if "peak_gib" in row and of_these.fullmatch(str(row.get("grpo") or row.get("train")))]
    seconds = [s for name, s in logged_seconds(path).items() if of_these.fullmatch(name)]
    return {"training s": sum(seconds), "peak GiB": max(peaks, default=None)} if seconds else {}


def most_missed(runs: list[dict], top: int = 10) -> list[str]:
    """The most-missed skills, by the profiles on Q_val of all runs, ties by name (Fig. 4)."""
    counts = sum((Counter(run.get("profile")) for run in runs), Counter())
    return [skill for skill, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:top]]


def stat_arms(path: Path, result: dict, args: dict, run: dict) -> dict[str, dict]:
    """STAT: by part of Q_test, by skill, on other sets; the skills of the training pairs.

    "missed skills": the questions that need one of the ten skills most missed in this run.
    """
    profile = [row for row in read_rows(path / "4_profile.jsonl", there=False) if not row["fault"]]
    run["profile"] = Counter(itertools.chain(*(row["skills"] for row in profile)))
    run["embedder"] = args["embedder"]
    if judged := read_rows(path / "difficulty.jsonl", there=False):  # counts of (difficult, wrong)
        run["detection"] = {name: [
            sum((row["difficult_by"][name], row["is_right"] is not True) == kind for row in judged)
            for kind in itertools.product((True, False), repeat=2)] for name in judged[0]["difficult_by"]}
    difficult = {row["id"] for row in read_rows(path / "2_graded.jsonl")
                 if row["part"] == "Q_test" and row["difficult"]}
    by_teacher, of_test = ({row["id"]: row["skills"] for row in read_rows(path / name, there=False)}
                           for name in ("3_skill_map.jsonl", "labels_test.jsonl"))
    own = own_labels(path, set(itertools.chain(*by_teacher.values())))
    needed, missed = of_test or own["Q_test"], set(most_missed([run]))
    dropped = {row["id"]: f"dropped: {row['dropped']}"
               for row in read_rows(path / "dropped.jsonl", there=False)}
    written = read_rows(path / "5_written.jsonl", there=False)
    arms = {}
    for arm in result["arms"]:
        pairs = read_rows(path / f"train_{arm}.jsonl", there=arm != "base")
        answers = read_rows(path / f"7_test_{arm}.jsonl")
        by_skill, on_math = defaultdict(list), [row for row in answers if row["set"] == "MATH"]
        for row in on_math:
            for skill in sorted(set(needed.get(row["id"], []))):
                by_skill[skill].append(row)
        scores = {"MATH": right(on_math), "MATH^D": right([row for row in on_math if row["id"] in difficult]),
                  "off MATH^D": right([row for row in on_math if row["id"] not in difficult]),
                  "missed skills": right([row for row in on_math if missed & set(needed.get(row["id"], []))])}
        scores |= on_other_sets([row for row in answers if row["set"] != "MATH"])
        cost = {"no answer": sum(row["is_right"] is None for row in on_math),
                "cut off": sum(row["cut_off"] for row in on_math)}
        of_p = pairs if all(row["id"] in own["P"] for row in pairs) else []  # the data labels no new question
        by_data = Counter(itertools.chain(*(own["P"][row["id"]] for row in of_p)))
        drawn_by = Counter(itertools.chain(*(  # of a new question the skill that was asked for
            by_teacher.get(row["id"], [row["skill"]] if row.get("skill") else []) for row in pairs)))
        if pairs:
            cost |= {"pairs": len(pairs), "questions": len({row["messages"][-2]["content"] for row in pairs}),
                     **training(path, arm)}
            scores |= {name: 100 - total_variation(skills, run["profile"]) for name, skills in (
                (NEAR, by_data), (f"{NEAR} (labels drawn by)", drawn_by)) if skills and run["profile"]}
        cost |= Counter(name for row in written if row["arm"] == arm
                        for name in ("asked for", dropped.get(row["id"], "kept")))
        arms[f"{arm}{more_a_skill(result, args)}"] = {
            "scores": scores, "by_skill": {skill: right(rows) for skill, rows in by_skill.items()},
            "skills_by_teacher": drawn_by, "skills_by_data": by_data, "cost": cost}
    return arms


def on_other_sets(answers: list[dict]) -> dict[str, float]:
    """avg@k and, of more than one sample of a question, pass@k."""
    sets, scores = defaultdict(lambda: defaultdict(list)), {}
    for row in answers:
        sets[row["set"]][row["id"]].append(row)
    for name, questions in sets.items():
        counts, k = [right(samples) for samples in questions.values()], max(map(len, questions.values()))
        scores[f"{name}, avg@{k}"] = 100 * statistics.fmean(n / of for n, of in counts)
        if k > 1:
            scores[f"{name}, pass@{k}"] = 100 * statistics.fmean(n > 0 for n, _ in counts)
    return scores


def more_a_skill(result: dict, args: dict) -> str:
    """", 20 a skill" if arm stat alone was drawn with other --questions-per-skill than the paper's 5.

    It then stands beside the run that has the paper's.
    """
    k = args.get("questions_per_skill", 5)
    return f", {k} a skill" if list(result.get("arms", ())) == ["stat"] and k != 5 else ""


def total_variation(p: dict[str, int], q: dict[str, int]) -> float:
    """Distance of two counts, 0 to 100 % (Fig. 2)."""
    p_total, q_total = sum(p.values()), sum(q.values())
    return 50 * math.fsum(abs(p.get(s, 0) / p_total - q.get(s, 0) / q_total) for s in p.keys() | q.keys())


def own_labels(path: Path, known: set[str]) -> dict[str, dict[str, list[str]]]:
    """The data's own labels by part and question, spelt as the known skills.

    {} of a part in which over 5 % are others; ours: that limit, because names of another list agree with the
    known ones by accident.
    """
    def plain(skill):
        return skill.replace("_", " ").casefold()
    spelt, found = {plain(skill): skill for skill in known}, {"P": {}, "Q_val": {}, "Q_test": {}}
    for row in read_rows(path / "0_questions.jsonl"):
        names = [f"{row['subject']}: {name}" for name in row["skills"] or []]
        found[row["part"]][row["id"]] = [spelt.get(plain(name), None if known else name) for name in names]
    for part, labels in found.items():
        n, n_other = sum(map(len, labels.values())), sum(skills.count(None) for skills in labels.values())
        found[part] = {} if n_other > 0.05 * n else {
            key: [name for name in skills if name] for key, skills in labels.items()}
    return found


def criterion(args: dict) -> str:
    """The arm of a loop."""
    return args["select"] + ", sum" * ("loss" in args["select"] and args.get("norm") == "sum")


def loop_arms(path: Path, result: dict, args: dict, run: dict) -> dict[str, dict]:
    """Active loop: one criterion; accuracy after each round, teacher tokens, means of what rounds log."""
    curve = result["curve"]
    if len(curve) < 2:
        raise UserError(f"{path}: expected a round of training, found the test before it alone; leave it out")
    scores = {f"{one['items']} items": one["right"] for one in curve}
    scores |= {"mean over rounds": statistics.fmean(percent(one["right"]) for one in curve[1:]),
               "last round": curve[-1]["right"]}
    logged, seconds = defaultdict(list), Counter()
    no_drop = {why: 0 for one in curve for why in one.get("dropped", ())}
    for one in curve[:-1]:
        for name, x in (no_drop | one.get("dropped", {}) | one).items():
            if isinstance(x, int | float) and name not in ("round", "items"):
                logged[name].append(x)
    cost = {"tokens in": curve[-1]["tokens"][0], "tokens": tokens(curve[-1])}
    cost |= {name: statistics.fmean(some) for name, some in logged.items()}
    for name, s in logged_seconds(path).items():  # r3 is the training of that round
        if step := re.fullmatch(r"r[0-9]+(?:_(answers|selected|items|test_answers)[.]jsonl?)?", name):
            seconds[f"{step[1] or 'train'} s"] += s
    return {criterion(args): {"curve": curve, "scores": scores, "cost": cost | seconds}}


def tokens(row: dict) -> int:
    """Teacher tokens, read and written, up to a row of a loop's curve."""
    return sum(row["tokens"])


def dart_arms(path: Path, result: dict, args: dict, run: dict) -> dict[str, dict]:
    """DART: by column, with what it costs and what the data is like that an arm trains on.

    A run with --no-penalty gives "no penalty", with --reject-cheats "..., rejecting", on perfect data
    "perfect".
    """
    perfect = TOY.search(args["data"]) and args["data"].endswith("/perfect")
    only = {"sft": "perfect"} if perfect else {} if args["penalty"] else {"dart": "no penalty"}
    arms, columns, steps = {}, result["columns"], run.setdefault("steps", {})
    for arm in result["arms"]:
        if only and arm not in only:
            continue
        name = only.get(arm, arm + ", rejecting" * bool(args.get("reject_cheats")))
        trained = "mapper" if arm == "dart" else arm
        if name in ("dart", "no penalty", "grpo"):
            steps[name] = [row for row in read_rows(path / f"2_steps_{trained}.jsonl") if row["step"] > 0]
        answers, data = read_rows(path / f"5_test_{arm}.jsonl"), result["data"].get(arm) or {}
        scores, fires = by_column(answers, columns), data.get("cheats", {})  # the share on which a rule fires
        cost = result["cost"][arm] | {key: x for key, x in data.items() if key != "cheats"} | fires
        cost |= {"cut off": sum(row["cut_off"] for row in answers), **training(path, trained, arm)}
        if "uplift" in data:
            scores |= {"answer uplift (nats)": data["uplift"],
                       "no false equation": 100 * (1 - fires.get("false equation", 0))}
        arms[name] = {"scores": scores, "cost": cost}
        if arm == "grpo":
            for i in range(1, args["curve"]):
                answers = read_rows(path / f"5_test_grpo_{i}.jsonl")
                arms[f"grpo at {i}/{args['curve']}"] = {"scores": by_column(answers, columns), "cost": {}}
    return arms


def by_column(answers: list[dict], columns: dict[str, str]) -> dict[str, list[int]]:
    return {column: right([row for row in answers if columns[row["set"]] == column])
            for column in COLUMNS if column in columns.values()}
