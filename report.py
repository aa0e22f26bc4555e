r"""Tables over runs and intervals; plot.py draws. No method file imports this.

    python report.py runs/toy_stat_sel/seed-* --save results/toy_stat_sel.json   # gather runs of one method
    python report.py results/toy_stat_sel.json                                   # tables from what was gathered
    python report.py results/toy_stat_sel.json --brief                           # arms and claims alone
    python report.py mine.json other.json                                        # what was gathered of some seeds, joined

The unit is the run (one seed: one split, one draw, one student). A difference between two arms is paired within
a run; its interval is the t-interval over runs. A skill is written "subject: name".

A gathered run is {"method", "seed", "arms": {arm: {"scores", "cost", ...}}, ...}. A score, more of which is
claimed to be better, is [right, of] or a number; scores and costs are looked up by name.
"""
import argparse
import itertools
import json
import math
import re
import statistics
import sys
from collections import Counter, defaultdict
from pathlib import Path

from scipy.special import stdtrit

from common import UserError, read_json
from common import read_rows as read_file

MAY_DIFFER = {  # between the runs of one table; a method's own are those that make another arm of a run
    "": "prm data skills seed out teacher_url teacher_max_tokens teacher_timeout teacher_max_none cache concurrency "
        "max_usd usd_per_m_in usd_per_m_out plan until micro_batch sample_batch prm_batch checkpointing profile_from "
        "from_ writer_url writer_usd_per_m_in writer_usd_per_m_out save_every",
    "stat_sel": "arms", "active_loop": "select reward_model norm", "dart": "ood retention arms penalty reject_cheats"}
COLUMNS = ("in distribution", "out of distribution", "retention")  # DART's
NEAR = "near the profile"  # C5: 100 minus the distance between the skills of an arm's pairs and the profile
OVER_ROUNDS = ("mean over rounds", "last round", "at equal teacher tokens")  # what a loop's claims are about

# --- Claims, as data: what is said, arm a > arm b. -------------------------------------------------------------
ARMS = {  # the paper's name of an arm -> the file's
    "stat_sel": {"MATH-Train": "train", "MATH-Augment": "augment", "MATH-Hard": "hard", "Embed-Sel": "embed",
                 "STAT-Sel": "stat", "shuffled STAT-Sel": "shuffled", "STAT-Sel, 20 a skill": "stat, 20 a skill"},
    "stat_syn": {"MATH-Augment": "augment", "STAT-Syn": "stat", "Embed-Syn": "embed", "STAT-Sel": "sel",
                 "shuffled STAT-Syn": "shuffled", "Embed-Sel": "embed_sel",
                 "STAT-Syn, right pairs only": "stat_right", "STAT-Syn, a fifth random": "stat_mixed"}}
STAT = (("C1", "STAT-Sel", "MATH-Augment"), ("C1", "MATH-Augment", "base"), ("C2", "STAT-Syn", "MATH-Augment"),
        ("C3", "STAT-Sel", "Embed-Sel"), ("C3", "STAT-Syn", "Embed-Sel"), ("beside C3", "STAT-Syn", "Embed-Syn"),
        ("C4", "STAT-Syn", "STAT-Sel"), ("baseline", "STAT-Sel", "MATH-Train"),
        ("baseline", "STAT-Sel", "MATH-Hard"), ("control", "STAT-Sel", "shuffled STAT-Sel"),
        ("control", "STAT-Sel", "accuracy"), ("beside C1", "STAT-Sel, 20 a skill", "STAT-Sel"),
        ("beside C1", "STAT-Sel, 20 a skill", "MATH-Augment"), ("beside C1", "STAT-Sel, 20 a skill", "accuracy"),
        ("control", "STAT-Syn", "shuffled STAT-Syn"),
        ("beside C2", "STAT-Syn, right pairs only", "STAT-Syn"), ("beside C2", "STAT-Syn, a fifth random", "STAT-Syn"),
        ("beside C2", "STAT-Syn, a fifth random", "MATH-Augment"))
CLAIMS = {
    "stat_sel": STAT, "stat_syn": STAT,
    "active_loop": (("A1", "loss", "random"), ("hard seeds", "static_loss", "random"),
                    ("closed loop", "loss", "static_loss"), ("A4", "loss", "true_loss"),
                    ("beside A1", "loss", "incorrect"), ("beside A1", "loss", "badge"),
                    ("beside A1", "loss, sum", "random"), ("beside A1", "loss, sum", "loss")),
    "dart": (("D1", "dart", "sft"), ("D1", "dart", "sft at 0.0002"), ("beside D1", "dart", "base"),
             ("D2", "dart", "prompt"), ("beside D2", "dart", "dropped"), ("beside D2", "dart", "best_of_n"),
             ("beside D2", "dart", "rejection"), ("beside D2, the ceiling", "perfect", "dart"),
             ("D3", "dart", "grpo"), ("D4", "dart", "no penalty"), ("beside D4", "dart, rejecting", "dart"),
             ("beside D2 and D4", "dart, rejecting", "prompt, rejecting"))}
FIG_4 = {"stat_sel": "nine of ten", "stat_syn": "all ten"}
# Table 3 of arXiv 2510.10023: Llama-3.2-3B-Instruct, Qwen2.5-3B, Llama-3.2-1B-Instruct
PAPER = {"MATH": {
    "base": (44.0, 55.8, 26.0), "MATH-Train": (44.8, 50.0, 27.0), "MATH-Augment": (45.2, 56.6, 27.8),
    "MATH-Hard": (45.6, 56.7, 28.4), "Embed-Sel": (46.0, 57.5, 27.4), "Embed-Syn": (48.8, 56.4, 28.4),
    "STAT-Sel": (51.5, 58.4, 32.4), "STAT-Syn": (50.2, 59.4, 34.5)},
    "MATH^D": {
    "MATH-Augment": (23.9, 45.6, 14.2), "Embed-Sel": (26.5, 46.4, 15.6), "Embed-Syn": (27.3, 47.4, 17.2),
    "STAT-Sel": (26.6, 47.6, 15.6), "STAT-Syn": (31.7, 49.2, 18.3)}}


# --- The core: values, paired differences, intervals. ----------------------------------------------------------
def percent(score: list[int] | float | None) -> float | None:
    """% of [right, of]; None of nothing."""
    if not isinstance(score, list):
        return score
    return 100 * score[0] / score[1] if score[1] else None


def value(run: dict, arm: str, name: str) -> float | None:
    """A score in %, overall or of one skill, or a cost."""
    found = run["arms"].get(arm, {})
    return next((percent(found[part][name]) for part in ("scores", "by_skill", "cost") if name in found.get(part, {})), None)


def t_interval(values: list[float | None], comparisons: int = 1) -> tuple[float, float, float] | None:
    """Mean and 95 % interval over the runs that have a value; comparisons: Bonferroni's divisor.

    With one run the interval is infinite.
    """
    values = [x for x in values if x is not None]
    if len(values) < 2:
        return (values[0], -math.inf, math.inf) if values else None
    half = stdtrit(len(values) - 1, 1 - 0.025 / comparisons) * statistics.stdev(values) / math.sqrt(len(values))
    return (mean := statistics.fmean(values)), mean - half, mean + half


def lead(runs: list[dict], a: str, b: str, name: str, comparisons: int = 1) -> tuple[float, float, float] | None:
    """t_interval of a's value minus b's within each run."""
    if name == "at equal teacher tokens":
        return t_interval([at_equal_tokens(run["arms"][a]["curve"], run["arms"][b]["curve"]) for run in runs], comparisons)
    pairs = [(value(run, a, name), value(run, b, name)) for run in runs]
    return t_interval([None if None in pair else pair[0] - pair[1] for pair in pairs], comparisons)


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
    return ["", f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def names(runs: list[dict], arms: list[str], part: str) -> list[str]:
    return list(dict.fromkeys(name for run in runs for arm in arms for name in run["arms"][arm].get(part, ())))


# --- Tables. -----------------------------------------------------------------------------------------------------
def tables(results: dict, brief: bool = False) -> str:
    """The tables in Markdown: everything in them is computed from `results`."""
    if "data" in results:
        return "\n".join(f"**{name}**\n\n{tables(part, brief)}" for name, part in results["data"].items())
    runs = results["runs"]
    method, arms = runs[0]["method"], list(runs[0]["arms"])
    commits = dict.fromkeys(str(commit)[:10] for run in runs for commit in run["commits"])
    lines = [f"{len(runs)} run{'s' * (len(runs) > 1)}, seeds {', '.join(str(run['seed']) for run in runs)}; accuracy in % with 95 % t-intervals over "
             f"runs; differences in points, paired within a run. Commit {', '.join(commits)}, "
             f"{', '.join(sorted({run['gpu'] for run in runs}))}."]
    columns = names(runs, arms, "scores")
    header = []
    for name in columns:
        n = {score[1] for run in runs for arm in arms if isinstance(score := run["arms"][arm]["scores"].get(name), list)}
        header.append(f"{name} ({'-'.join(map(str, sorted({min(n), max(n)})))})" if n else name)
    lines += table(["arm", *header], [
        [arm, *(shown(t_interval([value(run, arm, name) for run in runs]), "") for name in columns)] for arm in arms])
    if "MATH^D" in columns:
        lines += ["", "MATH^D: what base's first draw makes difficult. Any other student gains on it, so compare trained arms alone. "
                  "At equal accuracy an arm that changes more answers gains more on it, and loses more off it."]
    lines += claims(runs, method, arms) + beside(runs, method, arms)
    if brief:
        return "\n".join(lines) + "\n"
    costs = names(runs, arms, "cost")
    lines += ["", "Means over runs, of those that have it:", *table(["arm", *costs], [
        [arm, *(mean_shown([value(run, arm, name) for run in runs]) for name in costs)] for arm in arms])]
    if skills := most_missed(runs) if names(runs, arms, "by_skill") else []:
        compared = [(a, b) for a, b in (("stat", "base"), ("stat", "augment")) if {a, b} <= set(arms)]
        lines += ["", f"The {len(skills)} most-missed skills, chosen on Q_val, measured on Q_test; intervals corrected for their number:",
                  *table(["skill", *arms, *(f"{a} - {b}" for a, b in compared)], [
                      [skill, *(shown(t_interval([value(run, arm, skill) for run in runs]), "").split(" ")[0] for arm in arms),
                       *(shown(lead(runs, a, b, skill, len(skills))) for a, b in compared)] for skill in skills])]
    return "\n".join(lines) + "\n"


def claims(runs: list[dict], method: str, arms: list[str]) -> list[str]:
    """A row for each claim whose two arms are there; * where it holds with intervals corrected for their number too."""
    rows, called = [], ARMS.get(method, {})
    columns = OVER_ROUNDS if method == "active_loop" else names(runs, arms, "scores")
    there = [(claim, better, worse, a, b) for claim, better, worse in CLAIMS[method]
             if {a := called.get(better, better), b := called.get(worse, worse)} <= set(arms)]
    for claim, better, worse, a, b in there:
        cells = []
        for name in columns:  # MATH^D is picked for what base gets wrong, so any other student gains on it
            found, corrected = (None if b == "base" and "MATH^D" in name else lead(runs, a, b, name, n) for n in (1, len(there)))
            star = "*" * bool(found and verdict(found) == verdict(corrected) != "is open" and math.isfinite(found[1]))
            cells.append(f"{verdict(found)}{star}: {shown(found)}" if found else "")
        paper = [f"{name} {', '.join(f'{x - y:+.1f}' for x, y in zip(of[better], of[worse], strict=True))}"
                 for name, of in PAPER.items() if better in of and worse in of]
        no_embedder = " (its embedder: the student's own hidden states)" * (
            worse.startswith("Embed") and runs[0].get("embedder", 0) is None)
        rows.append([f"{claim}: {better} > {worse}{no_embedder}", *cells, *(["; ".join(paper)] * bool(called))])
    paper = ["in the paper (Llama-3.2-3B-Instruct, Qwen2.5-3B, Llama-3.2-1B-Instruct)"] * bool(called)
    note = f"*: so with the interval corrected for {len(there)} claims too (Bonferroni); not for the columns."
    return [*table(["claim", *columns, *paper], rows), "", note] if rows else []


def beside(runs: list[dict], method: str, arms: list[str]) -> list[str]:
    """Claims that are no difference of two scores."""
    lines = []
    if method.startswith("stat") and {"stat", "base"} <= set(arms):
        skills = most_missed(runs)
        if rises := [rise for skill in skills if (rise := lead(runs, "stat", "base", skill, len(skills)))]:
            lines.append(f"C6: of the {len(rises)} most-missed skills the mean rises on {sum(mean > 0 for mean, *_ in rises)}, beyond its "
                         f"corrected interval on {sum(low > 0 for _, low, _ in rises)} (Fig. 4: on {FIG_4[method]}, under MATH-Hard on all).")
    if method == "active_loop" and {"loss", "random"} <= set(arms):
        best = Counter()
        for run in runs:
            for name in [name for name in names([run], arms, "scores") if name.endswith(" items")][1:]:
                scores = {arm: value(run, arm, name) for arm in arms}
                best.update(arm for arm in arms if scores[arm] == max(scores.values()))
        lines.append("A2: loss is best or tied most often: " + ("holds" if best["loss"] == max(best.values()) else "does not hold")
                     + "; of all rounds: " + ", ".join(f"{arm} {best[arm]}" for arm in arms) + ".")
    return list(itertools.chain(*(("", line) for line in lines)))


def most_missed(runs: list[dict], top: int = 10) -> list[str]:
    """The most-missed skills, from the profiles on Q_val over all runs, ties by name; measured on Q_test (Fig. 4)."""
    counts = sum((Counter(run.get("profile")) for run in runs), Counter())
    return [skill for skill, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:top]]


# --- Gathering. --------------------------------------------------------------------------------------------------
def gather(paths: list[str]) -> dict:
    """What the tables need of finished runs of one method, or of files with some of them: counts, never texts.

    Runs of one seed join in one row, each with other arms.
    """
    parts: dict[str, tuple] = {}
    for path in paths:
        for name, args, run in read_saved(path) if path.endswith(".json") else [read_run(Path(path))]:
            first, agreed, runs = parts.setdefault(name, (path, args, {}))
            if args != agreed:
                raise UserError(f"{path}: its arguments differ from those of {first}; gather runs of one setting")
            mine = runs.setdefault(run["seed"], run | {"arms": {}, "steps": {}})
            if mine.get("made") != run.get("made"):
                raise UserError(f"{path}: its data or student are not those of the other runs with seed {run['seed']}; make them anew")
            if twice := mine["arms"].keys() & run["arms"].keys():
                raise UserError(f"{path}: arm {min(twice)} with seed {run['seed']} came twice; leave out one")
            mine["arms"] |= run["arms"]
            mine["steps"] |= run.get("steps", {})
            mine["commits"] = list(dict.fromkeys(mine["commits"] + run["commits"]))
    for first, _, runs in parts.values():
        lengths = {len(one.get("curve", ())) for run in runs.values() for one in run["arms"].values()}
        if len({tuple(sorted(run["arms"])) for run in runs.values()}) > 1 or len(lengths) > 1:
            raise UserError(f"{first}, ...: expected the same arms, and as many rounds, for every seed; finish what is missing")
    done = {name: {"args": args, "runs": [runs[seed] for seed in sorted(runs)]} for name, (_, args, runs) in parts.items()}
    return {"data": done} if "" not in done else done[""]


def read_saved(path: str) -> list[tuple[str, dict, dict]]:
    results = read_results(path)
    return [(name, part["args"], run) for name, part in results.get("data", {"": results}).items() for run in part["runs"]]


def read_run(path: Path) -> tuple[str, dict, dict]:
    """Name of the data (of a loop), arguments that runs of one table share, and what is kept of a finished run."""
    if not (path / "result.json").exists():
        raise UserError(f"{path}: expected a finished run with a result.json, found none; finish it, or leave it out")
    result, args, env = (read_json(path / name) for name in ("result.json", "args.json", "env.json"))
    method = result["method"]
    free = f"{MAY_DIFFER['']} {MAY_DIFFER.get(method, '')}".split()
    agreed = {name: x for name, x in args.items() if name not in free} | {"method": method} | {
        name: Path(args[name]).name for name in ("student", "embedder") if args.get(name)}
    run = {"method": method, "seed": args["seed"], "commits": [str(env[-1]["commit"])[:10]], "gpu": env[-1]["gpu"], "packages": env[-1]["packages"],
           "made": [re.sub(r"-[0-9a-f]{8}\b|/perfect$", "", str(args[name])) for name in ("data", "student")]}  # a toy world's digest
    if more_a_skill(result, args):
        agreed["questions_per_skill"] = 5
    of = {"active_loop": loop_arms, "dart": dart_arms}.get(method, stat_arms)
    return data_name(args) if method == "active_loop" else "", agreed, run | {"arms": of(path, result, args, run)}


def data_name(args: dict) -> str:
    """The toy world's folders carry its seed."""
    return re.sub(r"-\d+-[0-9a-f]{8}.*", "", Path(args["data"]).name)


def read_results(path: str) -> dict:
    """What --save wrote."""
    results = read_json(path)
    if not isinstance(results, dict) or "data" not in results and not all("arms" in run for run in results.get("runs", [{}])):
        raise UserError(f"{path}: expected a file that report.py --save wrote, came another; give that, or run directories")
    return results


def read_rows(path: Path, there: bool = True) -> list[dict]:
    """The rows of a .jsonl file; none if it need not be there, as with given pairs, and is not."""
    return [row for _, row in read_file(path)] if there or path.exists() else []


def right(rows: list[dict]) -> list[int]:
    """[k, n]. An answer in which no final answer was found (None) is not right."""
    return [sum(row["is_right"] is True for row in rows), len(rows)]


def logged_seconds(path: Path) -> Counter:
    """Seconds of each logged step, the last of those logged twice."""
    logged, total = {}, Counter()
    for row in read_rows(path / "metrics.jsonl", there=False):
        if "seconds" in row:
            name = row.get("grpo") or row.get("train") or row["step"]
            logged[name, row.get("epoch", row.get("step"))] = row["seconds"]
    for (name, _), seconds in logged.items():
        total[name] += seconds
    return total


def training(path: Path, *names: str) -> dict[str, float | None]:
    """Seconds and peak memory of what is logged under these names, each at one of several rates perhaps."""
    of_these = re.compile(rf"({'|'.join(map(re.escape, names))})(_[\d.]+(e-?\d+)?)?")
    peaks = [row["peak_gib"] for row in read_rows(path / "metrics.jsonl", there=False)
             if "peak_gib" in row and of_these.fullmatch(str(row.get("grpo") or row.get("train")))]
    seconds = [s for name, s in logged_seconds(path).items() if of_these.fullmatch(name)]
    return {"training s": sum(seconds), "peak GiB": max(peaks, default=None)} if seconds else {}


def more_a_skill(result: dict, args: dict) -> str:
    """", 20 a skill": arm stat alone, with other --questions-per-skill than the paper's 5, stands beside the run that has the paper's."""
    k = args.get("questions_per_skill", 5)
    return f", {k} a skill" if list(result.get("arms", ())) == ["stat"] and k != 5 else ""


def stat_arms(path: Path, result: dict, args: dict, row: dict) -> dict[str, dict]:
    """STAT: by part of Q_test, by skill, on other sets; the skills of the training pairs."""
    beside = more_a_skill(result, args)
    difficult = {one["id"] for one in read_rows(path / "2_graded.jsonl") if one["part"] == "Q_test" and one["difficult"]}
    profile = [one for one in read_rows(path / "4_profile.jsonl", there=False) if not one["fault"]]
    row |= {"profile": Counter(itertools.chain(*(one["skills"] for one in profile))), "embedder": args["embedder"]}
    if judged := read_rows(path / "difficulty.jsonl", there=False):  # difficult and wrong, and right; not difficult and wrong, and right
        row["detection"] = {name: [sum((one["difficult_by"][name], one["is_right"] is not True) == kind for one in judged)
                                   for kind in itertools.product((True, False), repeat=2)] for name in judged[0]["difficult_by"]}
    by_teacher, of_test = ({one["id"]: one["skills"] for one in read_rows(path / name, there=False)}
                           for name in ("3_skill_map.jsonl", "labels_test.jsonl"))
    own = own_labels(path, set(itertools.chain(*by_teacher.values())))
    missed, needed, arms = set(most_missed([row])), of_test or own["Q_test"], {}
    dropped = {one["id"]: f"dropped: {one['dropped']}" for one in read_rows(path / "dropped.jsonl", there=False)}
    written = read_rows(path / "5_written.jsonl", there=False)
    for arm in result["arms"]:
        pairs = read_rows(path / f"train_{arm}.jsonl", there=arm != "base")
        answers = read_rows(path / f"7_test_{arm}.jsonl")
        on_math, by_skill, others = [one for one in answers if one["set"] == "MATH"], defaultdict(list), defaultdict(lambda: defaultdict(list))
        for one in answers:
            for skill in sorted(set(needed.get(one["id"], []))) if one["set"] == "MATH" else ():
                by_skill[skill].append(one)
            if one["set"] != "MATH":
                others[one["set"]][one["id"]].append(one)
        scores = {"MATH": right(on_math), "MATH^D": right([one for one in on_math if one["id"] in difficult]),
                  "off MATH^D": right([one for one in on_math if one["id"] not in difficult]),
                  "missed skills": right([one for one in on_math if missed & set(needed.get(one["id"], []))])}
        of_p = pairs if all(one["id"] in own["P"] for one in pairs) else []  # new questions have no labels of the data's
        for name, of in others.items():
            shares, k = [right(samples) for samples in of.values()], max(map(len, of.values()))
            scores[f"{name}, avg@{k}"] = 100 * statistics.fmean(n / of for n, of in shares)
            scores |= {f"{name}, pass@{k}": 100 * statistics.fmean(n > 0 for n, _ in shares)} if k > 1 else {}
        kept = arms[f"{arm}{beside}"] = {
            "scores": scores, "by_skill": {skill: right(of) for skill, of in by_skill.items()},
            "skills_by_teacher": Counter(itertools.chain(*(  # of a new question the skill that was asked for
                by_teacher.get(one["id"], [one["skill"]] if one.get("skill") else []) for one in pairs))),
            "skills_by_data": Counter(itertools.chain(*(own["P"][one["id"]] for one in of_p)))}
        cost = kept["cost"] = {
            "no answer": sum(one["is_right"] is None for one in on_math), "cut off": sum(one["cut_off"] for one in on_math)}
        if pairs:
            cost |= {"pairs": len(pairs), "questions": len({one["messages"][-2]["content"] for one in pairs}),
                     **training(path, arm)}
            near = {NEAR: kept["skills_by_data"], f"{NEAR} (labels drawn by)": kept["skills_by_teacher"]}
            scores |= {name: 100 - total_variation(skills, row["profile"]) for name, skills in near.items() if skills and row["profile"]}
        cost |= Counter(name for one in written if one["arm"] == arm for name in ("asked for", dropped.get(one["id"], "kept")))
    return arms


def total_variation(p: dict[str, int], q: dict[str, int]) -> float:
    """Distance of two counts, 0 to 100 % (Fig. 2)."""
    return 50 * math.fsum(abs(p.get(s, 0) / sum(p.values()) - q.get(s, 0) / sum(q.values())) for s in p.keys() | q.keys())


def own_labels(path: Path, known: set[str]) -> dict[str, dict[str, list[str]]]:
    """The data's own labels by part and question, spelt as the known skills; {} for a part with over 5 % of others.

    ours: that limit, because names of another list agree with the known ones by accident.
    """
    def plain(skill):
        return skill.replace("_", " ").casefold()
    spelt, found = {plain(skill): skill for skill in known}, {"P": {}, "Q_val": {}, "Q_test": {}}
    for row in read_rows(path / "0_questions.jsonl"):
        names = [f"{row['subject']}: {name}" for name in row["skills"] or []]
        found[row["part"]][row["id"]] = [spelt.get(plain(name), None if known else name) for name in names]
    for part, labels in found.items():
        n, n_other = sum(map(len, labels.values())), sum(skills.count(None) for skills in labels.values())
        found[part] = {} if n_other > 0.05 * n else {i: [name for name in skills if name] for i, skills in labels.items()}
    return found


def loop_arms(path: Path, result: dict, args: dict, row: dict) -> dict[str, dict]:
    """Active loop: one criterion, accuracy after each round."""
    curve, seconds = result["curve"], Counter()
    for name, s in logged_seconds(path).items():  # r3_answers.jsonl, r3 (its training), ...
        seconds[f"{re.sub(r'^r[0-9]+_?|[.]jsonl?$', '', name) or 'train'} s"] += s
    arm = result["select"] + ", sum" * (args.get("norm") == "sum")
    return {arm: {"curve": curve, "scores": loop_scores(curve), "cost": loop_costs(curve) | seconds}}


def loop_scores(curve: list[dict]) -> dict:
    return {f"{one['items']} items": one["right"] for one in curve} | {
        "mean over rounds": statistics.fmean(percent(one["right"]) for one in curve[1:]), "last round": curve[-1]["right"]}


def loop_costs(curve: list[dict]) -> dict[str, float]:
    """Teacher tokens of a run; of a round, on average, whatever number it logs."""
    logged = [{"tokens in": one["tokens"][0], "tokens": tokens(one)} | one.get("dropped", {}) for one in curve]
    for row, one in zip(logged, curve, strict=True):
        row |= {name: x for name, x in one.items() if isinstance(x, int | float) and name not in ("round", "items")}
    found = {name: [row[name] for row in logged[:-1] if name in row] for row in logged for name in row}
    return {name: statistics.fmean(some) for name, some in found.items() if some} | {
        name: logged[-1][name] for name in ("tokens in", "tokens")}


def tokens(row: dict) -> int:
    return sum(row["tokens"])


def at_equal_tokens(one: list[dict], two: list[dict]) -> float:
    """The first curve's accuracy minus the second's after as many teacher tokens, on straight lines between rounds."""
    end, found = min(tokens(one[-1]), tokens(two[-1])), []
    for curve in (one, two):
        points = [(tokens(row), percent(row["right"])) for row in curve]
        (t, low), (u, high) = next((pair for pair in itertools.pairwise(points) if end <= pair[1][0]), points[-2:])
        found.append(low + (high - low) * (end - t) / (u - t))
    return found[0] - found[1]


def dart_arms(path: Path, result: dict, args: dict, row: dict) -> dict[str, dict]:
    """DART: by column. A run with --no-penalty gives "no penalty", --reject-cheats "..., rejecting", perfect data "perfect"."""
    only = {"sft": "perfect"} if args["data"].endswith("/perfect") else {} if args["penalty"] else {"dart": "no penalty"}
    arms, columns = {}, result["columns"]
    steps = row.setdefault("steps", {})
    for arm in result["arms"]:
        if only and arm not in only:
            continue
        name, trained = only.get(arm, f"{arm}, rejecting" if args.get("reject_cheats") else arm), {"dart": "mapper"}.get(arm, arm)
        if name in ("dart", "no penalty", "grpo"):
            steps[name] = [one for one in read_rows(path / f"2_steps_{trained}.jsonl") if one["step"] > 0]
        cost = result["cost"][arm] | data_costs(result["data"].get(arm) or {})
        answers = read_rows(path / f"5_test_{arm}.jsonl")
        cost |= {"cut off": sum(one["cut_off"] for one in answers), **training(path, trained, arm)}
        arms[name] = {"scores": by_column(answers, columns) | data_scores(cost), "cost": cost}
        if arm == "grpo":
            arms |= {f"grpo at {i}/{args['curve']}": {"scores": by_column(read_rows(path / f"5_test_grpo_{i}.jsonl"), columns), "cost": {}}
                     for i in range(1, args["curve"])}
    return arms


def by_column(answers: list[dict], columns: dict[str, str]) -> dict[str, list[int]]:
    return {column: right([one for one in answers if columns[one["set"]] == column]) for column in COLUMNS if column in columns.values()}


def data_scores(cost: dict) -> dict[str, float]:
    """What D4 is about, of the data that an arm trains on."""
    if "uplift" not in cost:
        return {}
    return {"answer uplift (nats)": cost["uplift"], "no false equation": 100 * (1 - cost.get("false equation", 0))}


def data_costs(data: dict) -> dict[str, float]:
    """What dart.py says of the data that an arm trains on; a rule against cheating: the share of rows on which it fires."""
    return {name: x for name, x in data.items() if name != "cheats"} | data.get("cheats", {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="run directories, or files that --save wrote")
    parser.add_argument("--save", help="write what was gathered to this results file")
    parser.add_argument("--brief", action="store_true", help="print the arms and the claims, not what stands after them")
    args = parser.parse_args()
    try:
        results = read_results(args.paths[0]) if len(args.paths) == 1 and args.paths[0].endswith(".json") else gather(args.paths)
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
