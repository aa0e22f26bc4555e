r"""Tables over runs and intervals; plot.py draws. No method file imports this.

    python report.py runs/toy_stat_sel/seed-* --save results/toy_stat_sel.json   # gather runs of one method with different seeds
    python report.py results/toy_stat_sel.json                                   # tables from what was gathered
    python report.py results/toy_stat_sel.json --brief                           # arms and claims alone

The unit is the run (one seed: one split, one draw, one student). A difference between two arms is paired within a run: its interval is the
t-interval over runs. Where ten skills are compared at once, their intervals are Bonferroni-corrected. A skill is written "subject: name".
A share without a denominator is None, is left out of the means over runs, and is shown as a blank where no run has it.
"""
import argparse
import functools
import itertools
import json
import math
import re
import statistics
import sys
from collections import Counter, defaultdict
from pathlib import Path

from common import UserError, read_json
from common import read_rows as read_file

MAY_DIFFER = (  # between the runs of one table
    "prm", "data", "skills", "seed", "out", "teacher_url", "teacher_max_tokens", "teacher_timeout", "teacher_max_none", "cache",
    "concurrency", "max_usd", "usd_per_m_in", "usd_per_m_out", "plan", "until", "micro_batch", "sample_batch", "prm_batch", "checkpointing",
    "profile_from", "from_", "writer_url", "writer_usd_per_m_in", "writer_usd_per_m_out")
TAU1, TAU2 = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95), (0.5, 0.6, 0.7, 0.8)  # the grid that Table 8 is compared with


# --- Gathering ------------------------------------------------------------------------------------------------------------------------------
def gather(paths: list[str]) -> dict:
    """What the tables need of the finished runs in these directories: counts per arm, per skill and per criterion, never the texts."""
    runs, arguments = [], {}
    methods = {read_json(file)["method"] if (file := Path(path, "result.json")).is_file() else None for path in paths}
    if methods == {"active_loop"}:
        by_data = defaultdict(list)
        for path in paths:
            by_data[data_name(read_json(Path(path, "args.json")))].append(path)
        return {"data": {name: gather_active(some) for name, some in by_data.items()}}
    if methods == {"dart"}:
        return gather_dart(paths)
    for path in map(Path, paths):
        if missing := [name for name in ("result.json", "0_questions.jsonl") if not (path / name).exists()]:
            raise UserError(f"{path}: expected a finished run with a {missing[0]}, found none; finish it, or leave it out")
        result, args, env = (read_json(path / name) for name in ("result.json", "args.json", "env.json"))
        arguments[str(path)] = {name: value for name, value in args.items() if name not in MAY_DIFFER} | {
            name: Path(args[name]).name for name in ("student", "embedder") if args[name]}  # the toy world's folders carry its seed
        graded = read_rows(path / "2_graded.jsonl")
        val = [row for row in graded if row["part"] == "Q_val"]
        difficult = {row["id"] for row in graded if row["part"] == "Q_test" and row["difficult"]}
        profile = [row for row in read_rows(path / "4_profile.jsonl", there=False) if not row["fault"]]
        run = result | {name: args[name] for name in ("seed", "student", "teacher", "embedder", "difficulty")} | {
            "commit": env[-1]["commit"], "gpu": env[-1]["gpu"], "packages": env[-1]["packages"],
            "n_val": len(val), "n_difficult": sum(row["difficult"] for row in val), "val_right": right(val)[0], "n_profile": len(profile),
            "profile": Counter(skill for row in profile for skill in row["skills"]), "written": count_written(path), **detection(path, val)}
        runs.append(run | {"arms": count_arms(path, run, difficult)})
    agreed = agreed_on(arguments, "their seed")
    if len({run["seed"] for run in runs}) < len(paths):
        raise UserError(f"{', '.join(paths)}: expected a seed of its own for each run, came one twice; leave out the second")
    return {"args": agreed, "runs": sorted(runs, key=lambda run: run["seed"])}


def data_name(args: dict) -> str:
    """The toy world's folders carry its seed."""
    return re.sub(r"-\d+-[0-9a-f]{8}.*", "", Path(args["data"]).name)


def read_results(path: str) -> dict:
    """What --save wrote."""
    results = read_json(path)
    if not (isinstance(results, dict) and ("data" in results or all("arms" in run for run in results.get("runs", [{}])))):
        raise UserError(f"{path}: expected a file that report.py --save wrote, came another; give that, or run directories")
    return results


def agreed_on(arguments: dict[str, dict], what: str) -> dict:
    """The arguments of every run, without those in `what`; refused if one run has others."""
    first, *others = arguments
    if odd := [path for path in others if arguments[path] != arguments[first]]:
        raise UserError(f"{odd[0]}: its arguments differ from those of {first}; gather runs that differ in {what} alone")
    return arguments[first]


def read_rows(path: Path, there: bool = True) -> list[dict]:
    """The rows of a .jsonl file; none if it need not be there, as with given pairs, and is not."""
    return [row for _, row in read_file(path)] if there or path.exists() else []


def right(rows: list[dict]) -> list[int]:
    """[k, n]. An answer in which no final answer was found (None) is not right."""
    return [sum(row["is_right"] is True for row in rows), len(rows)]


def own_labels(path: Path, known: set[str]) -> dict[str, dict[str, list[str]]]:
    """The data's own labels by part and question, as "subject: name", spelt as the known skills; {} for a part with over 5 % of others.

    ours: that limit, because names of another list agree with the known ones by accident, and a table of accidents looks like a result.
    """
    def plain(skill):
        return skill.replace("_", " ").casefold()
    spelt, found = {plain(skill): skill for skill in known}, {"P": {}, "Q_val": {}, "Q_test": {}}
    for row in read_rows(path / "0_questions.jsonl"):
        found[row["part"]][row["id"]] = [f"{row['subject']}: {name}" for name in row["skills"] or []]
    for part, labels in found.items() if known else ():
        unknown = [plain(skill) not in spelt for skills in labels.values() for skill in skills]
        found[part] = {} if sum(unknown) > 0.05 * len(unknown) else {
            row_id: [spelt[plain(skill)] for skill in skills if plain(skill) in spelt] for row_id, skills in labels.items()}
    return found


def count_arms(path: Path, run: dict, difficult: set[str]) -> dict[str, dict]:
    """What the files of each arm say. difficult: the questions of Q_test that base's first draw makes so."""
    by_teacher, of_test = ({row["id"]: row["skills"] for row in read_rows(path / name, there=False)}
                           for name in ("3_skill_map.jsonl", "labels_test.jsonl"))
    own = own_labels(path, set(itertools.chain(*by_teacher.values())))
    missed, needed, arms = set(most_missed([run])), of_test or own["Q_test"], {}
    logged = read_rows(path / "metrics.jsonl", there=False)
    for arm in run["arms"]:
        pairs = read_rows(path / f"train_{arm}.jsonl", there=arm != "base")
        questions, of_arm = [pair["id"] for pair in pairs], re.compile(rf"{arm}(_[\d.e-]+)?")  # of several learning rates each is a cost
        epochs = {(row["train"], row["epoch"]): row for row in logged if of_arm.fullmatch(row.get("train", ""))}  # the last of each
        on_math, by_skill, others = [], defaultdict(list), defaultdict(lambda: defaultdict(list))
        for answer in read_rows(path / f"7_test_{arm}.jsonl"):
            if answer["set"] == "MATH":
                on_math.append(answer | {"needs": set(needed.get(answer["id"], []))})
                for skill in sorted(on_math[-1]["needs"]):
                    by_skill[skill].append(answer)
            else:
                others[answer["set"]][answer["id"]].append(answer)
        k, n = right(on_math)
        arms[arm] = {
            "n_pairs": len(pairs), "n_questions": len({pair["messages"][-2]["content"] for pair in pairs}),
            "train_seconds": sum(row["seconds"] for row in epochs.values()),
            "peak_gib": max((row["peak_gib"] for row in epochs.values()), default=None),
            "k": k, "n": n, "no_answer": sum(a["is_right"] is None for a in on_math), "cut_off": sum(a["cut_off"] for a in on_math),
            "math_d": right([a for a in on_math if a["id"] in difficult]), "missed": right([a for a in on_math if a["needs"] & missed]),
            "other": right([a for a in on_math if not a["needs"] & missed]), "by_skill": {skill: right(rows) for skill, rows in by_skill.items()},
            "skills_by_teacher": Counter(  # of a new question the one that was asked for
                skill for pair in pairs for skill in by_teacher.get(pair["id"], [pair["skill"]] if pair.get("skill") else [])),
            "skills_by_data": Counter(skill for question in questions for skill in own["P"].get(question, [])),
            "sets": {name: {"n": len(rows), "samples": max(map(len, rows.values())),
                            "avg": 100 * statistics.fmean(k / n for k, n in map(right, rows.values())),
                            "pass": 100 * statistics.fmean(right(samples)[0] > 0 for samples in rows.values())} for name, rows in others.items()}}
    return arms


def count_written(path: Path) -> dict[str, dict[str, int]]:
    """What became of the questions that STAT-Syn's arms asked for: how many are kept, and how many dropped for each reason."""
    counts: dict[str, Counter] = defaultdict(Counter)
    dropped = {row["id"]: row["dropped"] for row in read_rows(path / "dropped.jsonl", there=False)}
    for row in read_rows(path / "5_written.jsonl", there=False):
        counts[row["arm"]].update(["asked for", dropped.get(row["id"], "kept")])
    return counts


def detection(path: Path, val: list[dict]) -> dict:
    """How each criterion of difficulty agrees with the truth on Q_val, as the four counts of agreement().

    By the rows of difficulty.jsonl, in older runs by those of step 2. A criterion that no row was graded by is not there.
    """
    from stat_sel import is_difficult  # here, because it brings torch along, which the tables do without
    val = read_rows(path / "difficulty.jsonl", there=False) or [row for row in val if "difficult_by" in row]

    def counts(says):
        n = Counter((says(row), row["is_right"] is not True) for row in val)
        return [n[True, True], n[True, False], n[False, True], n[False, False]]
    found = {name: counts(lambda row, name=name: row["difficult_by"][name]) for name in ("prm", "consistency", "length")}
    grid = {f"{tau1}, {tau2}": counts(lambda row, tau1=tau1, tau2=tau2: is_difficult(row["rewards"], tau1, tau2) if row["rewards"] else None)
            for tau1 in TAU1 for tau2 in TAU2} if any(found["prm"]) else {}
    return {"detection": {name: n for name, n in found.items() if any(n)}, "grid": grid}


# --- Intervals ------------------------------------------------------------------------------------------------------------------------------
def t_below(x: float, df: int, n: int = 2000) -> float:
    """P(T <= x) for Student's t, x >= 0, by Simpson's rule; with t = sqrt(df) tan(u) the range is finite and the density cos(u) ** (df - 1)."""
    scale, top = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi), math.atan(x / math.sqrt(df))
    weights = [1 if i in (0, n) else 4 if i % 2 else 2 for i in range(n + 1)]
    return 0.5 + scale * sum(w * math.cos(top * i / n) ** (df - 1) for i, w in enumerate(weights)) * top / n / 3


@functools.cache
def t_quantile(p: float, df: int) -> float:
    """The p-quantile of Student's t, p in (0.5, 1), to 6 digits, by bisection.
    >>> round(t_quantile(0.975, 4), 3), round(t_quantile(0.975, 1), 2)
    (2.776, 12.71)
    """
    low, high = 0.0, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_below(middle, df) < p else (low, middle)
    return low


def t_interval(values: list[float | None], comparisons: int = 1) -> tuple[float, float, float] | None:
    """Mean and 95 % interval over the runs that have a value; comparisons: Bonferroni's divisor. With one run the interval is infinite."""
    values = [value for value in values if value is not None]
    if len(values) < 2:
        return (values[0], -math.inf, math.inf) if values else None
    mean = statistics.fmean(values)
    half = t_quantile(1 - 0.025 / comparisons, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def paired(pairs: list, comparisons: int = 1) -> tuple[float, float, float] | None:
    """t_interval of the first minus the second of each run's pair."""
    return t_interval([None if None in pair else pair[0] - pair[1] for pair in pairs], comparisons)


def shown(interval: tuple[float, float, float] | None, sign: str = "+") -> str:
    """A mean with its interval; alone, where there is one run and so no interval."""
    return "" if not interval else ("{:{s}.1f} [{:{s}.1f}, {:{s}.1f}]" if math.isfinite(interval[1]) else "{:{s}.1f}").format(*interval, s=sign)


def mean_shown(values: list[float | None]) -> str:
    values = [value for value in values if value is not None]
    return f"{statistics.fmean(values):.1f}" if values else ""


def span(numbers: list[int]) -> str:
    """The smallest and the largest of the runs' numbers, or the one that they agree on; nothing for zero."""
    return "-".join(map(str, sorted({min(numbers), max(numbers)}))) if any(numbers) else ""


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    return ["", f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def accuracy(run: dict, arm: str, *part: str) -> float | None:
    """% right on Q_test, or on a part of what was tested: "math_d" (MATH^D) or "rest"; "missed" or "other" (the test questions that
    need one of the run's ten most-missed skills, or none of them); "by_skill", skill; "sets", name, "avg" or "pass". None of no questions."""
    value = run["arms"][arm]
    if part == ("rest",):  # the questions that are not difficult
        k, n = value["math_d"]
        value, part = {"k": value["k"] - k, "n": value["n"] - n}, ()
    for key in part:
        value = value.get(key, {})
    if isinstance(value, float):
        return value
    k, n = (value["k"], value["n"]) if not part else value or (0, 0)
    return 100 * k / n if n else None


def difference(runs: list[dict], a: str, b: str, *part: str, comparisons: int = 1) -> tuple[float, float, float] | None:
    return paired([(accuracy(run, a, *part), accuracy(run, b, *part)) for run in runs], comparisons)


# --- Claims of STAT, at equal numbers of pairs unless a row says otherwise ------------------------------------------------------------------
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


# Table 3 of arXiv 2510.10023: Llama-3.2-3B-Instruct, Qwen2.5-3B, Llama-3.2-1B-Instruct
PAPER = {"": {"base": (44.0, 55.8, 26.0), "MATH-Train": (44.8, 50.0, 27.0), "MATH-Augment": (45.2, 56.6, 27.8), "MATH-Hard": (45.6, 56.7, 28.4),
              "Embed-Sel": (46.0, 57.5, 27.4), "Embed-Syn": (48.8, 56.4, 28.4), "STAT-Sel": (51.5, 58.4, 32.4), "STAT-Syn": (50.2, 59.4, 34.5)},
         "math_d": {"MATH-Augment": (23.9, 45.6, 14.2), "Embed-Sel": (26.5, 46.4, 15.6), "Embed-Syn": (27.3, 47.4, 17.2),
                    "STAT-Sel": (26.6, 47.6, 15.6), "STAT-Syn": (31.7, 49.2, 18.3)}}
NAMES = {  # the paper's name of an arm -> how each method file calls it
    "stat_sel": {"base": "base", "MATH-Train": "train", "MATH-Augment": "augment", "MATH-Hard": "hard", "Embed-Sel": "embed", "STAT-Sel": "stat",
                 "shuffled": "shuffled", "accuracy": "accuracy"},
    "stat_syn": {"base": "base", "MATH-Augment": "augment", "STAT-Syn": "stat", "Embed-Syn": "embed", "shuffled STAT-Syn": "shuffled",
                 "STAT-Sel": "sel", "Embed-Sel": "embed_sel"}}
PAPER_DETECTION = {"prm": "accuracy 78.0; precision 70, recall 92, F1 80", "consistency": "accuracy 79.8", "length": "accuracy 74.2"}  # §E.1
PARTS = {"": "", "math_d": " on MATH^D", "rest": " off MATH^D", "missed": " on the ten most-missed skills"}
COMPARISONS = (
    ("C1", "STAT-Sel", "MATH-Augment", ""), ("C1", "MATH-Augment", "base", ""), ("C1", "STAT-Sel", "MATH-Augment", "math_d"),
    ("beside C1", "STAT-Sel", "MATH-Augment", "rest"),
    ("C2", "STAT-Syn", "MATH-Augment", ""), ("C2", "STAT-Syn", "MATH-Augment", "math_d"),
    ("beside C2", "STAT-Syn", "MATH-Augment", "rest"),
    ("C3", "STAT-Sel", "Embed-Sel", ""), ("C3", "STAT-Syn", "Embed-Sel", ""), ("beside C3", "STAT-Syn", "Embed-Syn", ""),
    ("C4", "STAT-Syn", "STAT-Sel", "math_d"), ("beside C4", "STAT-Syn", "STAT-Sel", ""), ("beside C4", "STAT-Syn", "STAT-Sel", "missed"),
    ("baseline", "STAT-Sel", "MATH-Train", ""), ("baseline", "STAT-Sel", "MATH-Hard", ""), ("control", "STAT-Sel", "shuffled", ""),
    ("control", "STAT-Sel", "accuracy", ""), ("control", "STAT-Syn", "shuffled STAT-Syn", ""), ("control", "STAT-Syn", "shuffled STAT-Syn", "missed"))


def verdict(interval: tuple[float, float, float]) -> str:
    if math.isinf(interval[1]):
        return "not told by one run"
    return "holds" if interval[1] > 0 else "is reversed" if interval[2] < 0 else "is open: the interval holds 0"


def claims(runs: list[dict]) -> list[str]:
    """A row for each claim whose two arms are there."""
    arms, rows, names = runs[0]["arms"], [], NAMES[runs[0]["method"]]
    for claim, better, worse, part in COMPARISONS:
        a, b = names.get(better), names.get(worse)
        if not {a, b} <= set(arms) or not (found := difference(runs, a, b, *[part] * bool(part))):
            continue
        numbers = [PAPER.get(part, {}).get(name, ()) for name in (better, worse)]
        paper = [f"{x - y:+.1f}" for x, y in zip(*numbers, strict=False)]
        sizes = [span([run["arms"][arm]["n_pairs"] for run in runs]) for arm in (a, b)]
        unequal = f", with {sizes[0]} pairs against {sizes[1]}" if b != "base" and sizes[0] != sizes[1] else ""
        no_embedder = worse.startswith("Embed") and runs[0]["embedder"] is None
        rows.append([f"{claim}{PARTS[part]}: {better} > {worse}",
                     "not testable here: the student's own hidden states stood in for an embedder" if no_embedder else verdict(found),
                     f"{shown(found)} points{unequal}", ", ".join(paper) or "not run there"])
    if {"stat", "augment"} <= set(arms):
        if nearer := paired([[distance_to_profile(run, arm, "skills_by_data") for arm in ("augment", "stat")] for run in runs]):
            rows.append(["C5: the skills of STAT-Sel's training set are nearer the profile than MATH-Augment's", verdict(nearer),
                         f"{shown(nearer)} points of total variation, by labels that nothing was drawn by", "Fig. 2, no number"])
    skills = most_missed(runs)
    changes = [difference(runs, "stat", "base", "by_skill", s, comparisons=len(skills)) for s in skills] if {"stat", "base"} <= set(arms) else []
    if means := [change[0] for change in changes if change]:
        paper = "nine of ten" if runs[0]["method"] == "stat_sel" else "all ten"
        risen = sum(change[1] > 0 for change in changes if change)
        rows.append([f"C6: accuracy rises on each of the {len(skills)} most-missed skills",
                     f"the mean rises on {sum(mean > 0 for mean in means)}, beyond its corrected interval on {risen}",
                     f"{min(means):+.1f} to {max(means):+.1f} points", f"Fig. 4: on {paper}, and under MATH-Hard on all ten"])
    header = ["claim", "here", "difference, 95 % interval", "in the paper (Llama-3.2-3B-Instruct, Qwen2.5-3B, Llama-3.2-1B-Instruct)"]
    return table(header, rows) if rows else []


# --- Tables ---------------------------------------------------------------------------------------------------------------------------------
def tables(results: dict) -> str:
    """The tables in Markdown: everything in them is computed from `results`."""
    if "data" in results:
        return "\n".join(f"**{name}**\n\n{active_tables(part)}" for name, part in results["data"].items())
    runs = results["runs"]
    if runs[0]["method"] == "dart":
        return dart_tables(results)
    arms = list(runs[0]["arms"])
    trained = [arm for arm in arms if arm != "base"]
    reference = next((arm for arm in ("augment", *trained, *arms) if arm in arms), "")
    lines = [head(runs, "")]
    lines += arms_table(runs, arms, reference) + claims(runs)
    calls, tokens_in, tokens_out = (statistics.fmean(sum(step.get(name, 0) for step in run["teacher_totals"].values()) for run in runs)
                                    for name in ("calls", "n_in", "n_out"))
    lines += ["", f"The teacher in a run, by all that its cache file holds: {calls:,.0f} calls, {tokens_in:,.0f} tokens in, {tokens_out:,.0f} out."]
    for labels, words in (("skills_by_data", "labels that nothing was drawn by"), ("skills_by_teacher", "the labels drawn by")):
        distances = {arm: t_interval([distance_to_profile(run, arm, labels) for run in runs]) for arm in trained}
        if any(distances.values()):
            lines += ["", f"Distance between training set and Missing-Skill-Profile, by {words} (total variation, 0 = the same, 100 = disjoint): "
                      + "; ".join(f"{arm} {shown(found, '')}" for arm, found in distances.items() if found) + "."]
    lines += written_table(runs)
    parts = {arm: [difference(runs, arm, reference, part) for part in ("missed", "other")] for arm in trained if arm != reference}
    if parts and reference in trained and all(found for pair in parts.values() for found in pair):
        lines += ["", f"Minus {reference} on the test questions that need one of the run's ten most-missed skills, and on the others: "
                  + "; ".join(f"{arm} {shown(missed)} and {shown(other)}" for arm, (missed, other) in parts.items()) + "."]
    lines += skills_table(runs, arms, reference) + sets_table(runs, arms, reference)
    return "\n".join(lines + (detection_tables(runs) if runs[0]["method"] == "stat_sel" else [])) + "\n"


def head(runs: list[dict], tested: str) -> str:
    commits = dict.fromkeys(str(commit)[:10] for run in runs for commit in run.get("commits", [run.get("commit")]))
    return (f"{len(runs)} runs, seeds {', '.join(str(run['seed']) for run in runs)}; accuracy in %{tested} with 95 % t-intervals over runs; "
            f"differences in points, paired within a run. Commit {', '.join(commits)}, {', '.join(sorted({run['gpu'] for run in runs}))}.")


def agreement(hits: int, false_alarms: int, misses: int, rejections: int) -> dict[str, float | None]:
    """How well a criterion of difficulty finds the wrong answers, in %; None where the denominator is zero (Tables 8, 11).

    hits: difficult and wrong; false alarms: difficult and right; misses: not difficult and wrong; rejections: neither.
    >>> agreement(6, 2, 0, 2)
    {'accuracy': 80.0, 'precision': 75.0, 'recall': 100.0, 'F1': 85.71428571428571}
    """
    parts = {"accuracy": (hits + rejections, hits + false_alarms + misses + rejections), "precision": (hits, hits + false_alarms),
             "recall": (hits, hits + misses), "F1": (2 * hits, 2 * hits + false_alarms + misses)}
    return {name: 100 * k / n if n else None for name, (k, n) in parts.items()}


def arms_table(runs: list[dict], arms: list[str], reference: str) -> list[str]:
    """MATH^D is set against other arms only: its questions are picked for what base gets wrong, so any other student gains on them."""
    out = []
    for arm in arms:
        rows = [run["arms"][arm] for run in runs]
        k, n, no_answer, cut_off = (sum(row[name] for row in rows) for name in ("k", "n", "no_answer", "cut_off"))
        to_reference, to_base = (shown(difference(runs, arm, other)) if arm != other and other in arms else "" for other in (reference, "base"))
        on_math_d = shown(difference(runs, arm, reference, "math_d")) if arm != reference and "base" not in (arm, reference) else ""
        cost = ["", "", ""]
        if any(n_pairs := [row["n_pairs"] for row in rows]):
            cost = [f"{statistics.fmean(row['n_questions'] for row in rows):.0f}",
                    *((f"{statistics.fmean(row['train_seconds'] for row in rows):.0f}", f"{max(row['peak_gib'] for row in rows):.2f}")
                      if all(row["peak_gib"] for row in rows) else ("", ""))]  # an arm taken over from another run has none
        out.append([arm, f"{k} / {n}", f"{no_answer}, {cut_off}", shown(t_interval([accuracy(run, arm) for run in runs]), ""), to_reference, to_base,
                    shown(t_interval([accuracy(run, arm, "math_d") for run in runs]), ""), on_math_d, span(n_pairs), *cost])
    header = ["arm", "right of", "no answer, cut off", "%", f"minus {reference}", "minus base", "MATH^D %", f"MATH^D minus {reference}", "pairs",
              "of questions", "training s", "peak GiB"]
    removed = span([run["removed"].get("MATH", 0) for run in runs])
    return [*table(header, out), "", f"MATH^D: the test questions that base's first draw makes difficult (by {runs[0]['difficulty']}); base too is "
            "scored on another draw. Claim only against other arms." + f" Taken out of MATH because profiled on: {removed}." * bool(removed)]


def written_table(runs: list[dict]) -> list[str]:
    written = {arm: [run.get("written", {}).get(arm, {}) for run in runs] for arm in runs[0].get("written", {})}
    columns = sorted({name for counts in written.values() for row in counts for name in row}, key=lambda x: (x != "asked for", x != "kept", x))
    rows = [[arm, *(str(sum(row.get(name, 0) for row in counts)) for name in columns)] for arm, counts in written.items()]
    return ["", "New questions, in all runs: kept, and dropped by reason.", *table(["arm", *columns], rows)] if rows else []


def skills_table(runs: list[dict], arms: list[str], reference: str) -> list[str]:
    skills = most_missed(runs)
    compared = [("stat", other) for other in dict.fromkeys(("base", reference)) if {"stat", other} <= set(arms) and other != "stat"]
    if not compared or not any(run["arms"]["stat"]["by_skill"] for run in runs):
        return []
    rows = [[skill, *(mean_shown([accuracy(run, arm, "by_skill", skill) for run in runs]) for arm in arms),
             *(shown(difference(runs, a, b, "by_skill", skill, comparisons=len(skills))) for a, b in compared)] for skill in skills]
    return ["", f"Accuracy on the {len(skills)} most-missed skills (chosen on Q_val, measured on Q_test), intervals corrected for {len(skills)} "
            "comparisons:", *table(["skill", *arms, *(f"{a} minus {b}" for a, b in compared)], rows)]


def sets_table(runs: list[dict], arms: list[str], reference: str) -> list[str]:
    rows = []
    for name, first in runs[0]["arms"][arms[0]]["sets"].items():
        n = span([run["arms"][arms[0]]["sets"][name]["n"] for run in runs])
        removed = span([run["removed"].get(name, 0) for run in runs]) or "0"
        for measure in ("avg", "pass") if first["samples"] > 1 else ("avg",):
            cells = [mean_shown([accuracy(run, arm, "sets", name, measure) for run in runs]) + (
                "" if arm == reference else ", " + shown(difference(runs, arm, reference, "sets", name, measure))) for arm in arms]
            rows.append([name, n, removed, f"{measure}@{first['samples']}", *cells])
    return ["", f"Other evaluation sets: % and the difference from {reference}; removed: the questions taken out because profiled on.",
            *table(["set", "questions", "removed", "measure", *arms], rows)] if rows else []


def detection_tables(runs: list[dict]) -> list[str]:
    if not runs[0]["detection"]:
        return []
    n_val, n_right, n_difficult = (sum(run[name] for run in runs) for name in ("n_val", "val_right", "n_difficult"))
    rows = []
    for criterion in runs[0]["detection"]:
        counts = [run["detection"][criterion] for run in runs if criterion in run["detection"]]
        columns = zip(*(agreement(*found).values() for found in counts), strict=True)
        rows.append([criterion, str(sum(map(sum, counts))), *(shown(t_interval(column), "") for column in columns), PAPER_DETECTION[criterion]])
    lines = ["", f"Difficulty against the truth (base's answer is wrong) on Q_val: {n_right} of {n_val} are right, {n_difficult} are difficult by "
             f"{runs[0]['difficulty']}: {100 * n_difficult / n_val:.1f} % (the paper, by reward filtering, Table 12: 62.3, 52.1 and 94.0 %).",
             *table(["criterion", "answers", "accuracy %", "precision %", "recall %", "F1 %", "in the paper, §E.1"], rows)]
    if not all(run["grid"] for run in runs):
        return lines
    grid = []
    for tau1 in TAU1:
        columns = [list(zip(*(agreement(*run["grid"][f"{tau1}, {tau2}"]).values() for run in runs), strict=True)) for tau2 in TAU2]
        grid.append([f"tau1 {tau1}", *(f"{mean_shown(f1)} / {mean_shown(right)}" for right, _, _, f1 in columns)])
    return [*lines, "", "F1 / accuracy in % of reward filtering over its thresholds, means over runs (Table 8; the paper takes 0.85 and 0.7):",
            *table(["", *(f"tau2 {tau2}" for tau2 in TAU2)], grid)]


# --- Active loop: criteria against items and teacher tokens ---------------------------------------------------------------------------------
def gather_active(paths: list[str]) -> dict:
    """Finished runs of active_loop.py on one set of data, one for each seed and criterion, as one row for each seed: {"criteria": {name: curve}}."""
    runs, arguments, worlds, asked, wrong = {}, {}, {}, defaultdict(dict), {}
    for path in map(Path, paths):
        result, args, env = (read_json(path / name) for name in ("result.json", "args.json", "env.json"))
        seed, criterion = args["seed"], args["select"]
        arguments[str(path)] = {name: value for name, value in args.items() if name not in (*MAY_DIFFER, "select", "reward_model")} | {
            "student": Path(args["student"]).name, "tested on": result["curve"][0]["right"][1]}
        row = runs.setdefault(seed, {"method": "active_loop", "seed": seed, "commit": env[-1]["commit"], "gpu": env[-1]["gpu"],
                                     "packages": env[-1]["packages"], "criteria": {}, "seconds": {}})
        if criterion in row["criteria"]:
            raise UserError(f"{path}: criterion {criterion} with seed {seed} came twice; leave out one")
        made = args["data"], args["student"], env[-1]["commit"]
        if worlds.setdefault(seed, made) != made:
            raise UserError(f"{path}: its data, student or commit are not those of the other criteria with seed {seed}; make them anew")
        row["criteria"][criterion], row["seconds"][criterion] = result["curve"], count_seconds(path)
        for t in range(len(result["curve"]) - 1):
            asked[seed, t][criterion] = [item["seed"] for item in read_json(path / f"r{t}_items.json")["rows"]]
        if criterion == "incorrect":  # every criterion's base student is the same, and answers greedily
            chosen = read_json(path / "r0_selected.json")
            seeds = chosen.get("order", chosen["scores"])
            wrong[seed] = {key for key in seeds if chosen["scores"].get(key, 1)}  # an answer that is cut off has no score, and is wrong
            row["base_wrong"] = {"all seeds": [len(wrong[seed]), len(seeds)]}
    for (seed, t), by_criterion in asked.items():
        for a, ids in by_criterion.items():
            if seed in wrong and t == 0:
                runs[seed]["base_wrong"][a] = [len(wrong[seed].intersection(ids)), len(ids)]
            for b, others in by_criterion.items():
                runs[seed].setdefault("shared", {}).setdefault(f"{a}, {b}", []).append([len(set(ids) & set(others)), len(ids)])
    agreed = agreed_on(arguments, "seed and criterion")
    if len({tuple(sorted(row["criteria"])) for row in runs.values()}) > 1:
        raise UserError(f"{paths[0]}, ...: expected the same criteria for every seed; finish the runs that lack one")
    if len({len(curve) for row in runs.values() for curve in row["criteria"].values()}) > 1:
        raise UserError(f"{paths[0]}, ...: expected equally many rounds of every run; a budget or a lack of seeds has ended some sooner")
    return {"args": agreed, "runs": [runs[seed] for seed in sorted(runs)]}


PHASES = {"answer": r"r\d+_answers\.jsonl", "score": r"r\d+_selected\.json", "teacher": r"r\d+_items\.json", "train": r"r\d+",
          "test": r"r\d+_test_answers\.jsonl"}


def logged_seconds(path: Path) -> dict[str, float]:
    """Seconds of each logged step, the last of those logged twice."""
    logged = {}
    for row in read_rows(path / "metrics.jsonl", there=False):
        if "seconds" in row:
            name = row.get("grpo") or row.get("train") or row["step"]
            logged[name, row.get("epoch", row.get("step"))] = row["seconds"]
    total = Counter()
    for (name, _), seconds in logged.items():
        total[name] += seconds
    return total


def count_seconds(path: Path) -> dict[str, float]:
    """Seconds of each phase over all rounds, from metrics.jsonl. A judge's marks are part of "score"."""
    total = Counter()
    for name, seconds in logged_seconds(path).items():
        total.update({phase: seconds for phase, pattern in PHASES.items() if re.fullmatch(pattern, name)})
    return {phase: round(total[phase], 1) for phase in PHASES}


def percent(curve: list[dict]) -> list[float]:
    return [100 * row["right"][0] / row["right"][1] for row in curve]


def at(curve: list[dict], x: float, axis=lambda row: row["items"]) -> float:
    """The accuracy at x items (or teacher tokens), on straight lines between the rounds; beyond the last round, that round's."""
    xs, values = [axis(row) for row in curve], percent(curve)
    for i in range(1, len(xs)):
        if x <= xs[i]:
            return values[i - 1] + (values[i] - values[i - 1]) * (x - xs[i - 1]) / (xs[i] - xs[i - 1])
    return values[-1]


def items_needed(curve: list[dict], target: float) -> float | None:
    """After how many items a curve first reaches `target` %, on straight lines between its rounds; None if it never does.

    >>> points = [{"items": 0, "right": [5, 10]}, {"items": 10, "right": [7, 10]}]
    >>> items_needed(points, 60.0), items_needed(points, 80.0), at(points, 5)
    (5.0, None, 60.0)
    """
    values, items = percent(curve), [row["items"] for row in curve]
    for i, value in enumerate(values):
        if value >= target:
            return items[i - 1] + (target - values[i - 1]) / (value - values[i - 1]) * (items[i] - items[i - 1]) if i else 0.0
    return None


def tokens(row: dict) -> int:
    return sum(row["tokens"])


def gain(run: dict, a: str, b: str, when: str = "mean") -> float:
    """a's accuracy minus b's, in points: the "mean" over all rounds with items, after the "last", or at equal "tokens" (the fewer of the two)."""
    one, two = run["criteria"][a], run["criteria"][b]
    if when == "tokens":
        end = min(tokens(one[-1]), tokens(two[-1]))
        return at(one, end, tokens) - at(two, end, tokens)
    pairs = list(zip(percent(one), percent(two), strict=True))
    return statistics.fmean(x - y for x, y in pairs[1:]) if when == "mean" else pairs[-1][0] - pairs[-1][1]


SPLIT = (("A1: loss > random", "loss", "random"), ("hard seeds: static_loss > random", "static_loss", "random"),
         ("closed loop: loss > static_loss", "loss", "static_loss"), ("A4: own-answer loss > true loss", "loss", "true_loss"),
         ("loss > incorrect", "loss", "incorrect"), ("loss > badge", "loss", "badge"))


def active_tables(results: dict) -> str:
    runs = results["runs"]
    criteria = sorted(runs[0]["criteria"], key=lambda c: (c != "random", c != "loss", c))
    items = [row["items"] for row in runs[0]["criteria"][criteria[0]]]
    equal = all([row["items"] for row in curve] == items for run in runs for curve in run["criteria"].values())
    n = span([curve[0]["right"][1] for run in runs for curve in run["criteria"].values()])
    lines = [head(runs, f" of {n} test questions")]
    if not equal:
        lines += ["", "The numbers of items differ between criteria or seeds: rounds are compared, not equal numbers of items."]
    lines += table(["criterion", *(f"{n} items" for n in items)], [
        [c, *(shown(t_interval([percent(run["criteria"][c])[t] for run in runs]), "") for t in range(len(items)))] for c in criteria])
    rows = []
    for name, a, b in SPLIT:
        # static_loss walks down its ranking, and loss asks a seed again: without --no-repeat their difference would be one of variety
        if {a, b} <= set(criteria) and ("static_loss" not in (a, b) or results["args"]["no_repeat"]):
            mean, last, equal_tokens = (t_interval([gain(run, a, b, when) for run in runs]) for when in ("mean", "last", "tokens"))
            rows.append([name, verdict(mean), shown(mean), shown(last), shown(equal_tokens)])
    if "loss" in criteria and len(criteria) > 1:
        best = {c: sum(percent(run["criteria"][c])[t] == max(percent(run["criteria"][d])[t] for d in criteria)
                       for run in runs for t in range(1, len(items))) for c in criteria}
        most = best["loss"] == max(best.values())
        rows.append(["A2: loss is best or tied most often", f"{'holds' if most else 'does not hold'}: of {len(runs) * (len(items) - 1)} rounds "
                     + ", ".join(f"{c} {n}" for c, n in sorted(best.items(), key=lambda item: -item[1])), "", "", ""])
    if results["args"]["teacher"] == "toy":
        rows += [["A3: the judge does not pay", "not testable here: the judge's quality is our own setting", "", "", ""],
                 ["A5: seed and item scores correlate in rank", "not testable here: the child's likeness is our own setting", "", "", ""]]
    lines += table(["claim", "here, by the mean over rounds", "mean over rounds", f"after {items[-1]} items", "at equal teacher tokens"],
                   rows) if rows else []
    if "random" in criteria:
        rows = []
        for c in criteria:
            cells = []
            for share in (0.5, 0.75, 1.0):
                budget, ratios = share * items[-1], []
                for run in runs:
                    target = at(run["criteria"]["random"], budget)
                    if target > percent(run["criteria"]["random"])[0]:
                        needed = items_needed(run["criteria"][c], target)
                        ratios.append(None if needed is None else needed / budget)
                reached = [ratio for ratio in ratios if ratio is not None]
                cells.append((f"{statistics.fmean(reached):.2f}" if reached else "-") + (f" ({len(reached)} of {len(runs)} seeds)"
                                                                                        if len(reached) < len(runs) else ""))
            rows.append([c, *cells])
        lines += ["", "Items needed to reach the accuracy that random has after a share of the items, as a ratio to that number, mean over the seeds "
                  "that reach it, of those in which random has gained by then. A curve that goes up and down passes a level early: compare with "
                  "random's own ratio, not with 1.",
                  *table(["criterion", *(f"{share} %: {share * items[-1] // 100} items" for share in (50, 75, 100))], rows)]
    pairs = [(a, b) for i, a in enumerate(criteria) for b in criteria[i + 1:]]
    if len(runs) > 1 and pairs:
        tested = sorted((p_value([gain(run, a, b) for run in runs]), a, b) for a, b in pairs)
        won, level = [], 0.0
        for i, (p, a, b) in enumerate(tested):  # Holm
            level = max(level, min(1.0, p * (len(tested) - i)))
            mean = statistics.fmean(gain(run, a, b) for run in runs)
            won.append([f"{a} - {b}" if mean >= 0 else f"{b} - {a}", f"{abs(mean):+.1f}", f"{level:.3f}" if level >= 0.001 else "< 0.001"])
        lines += ["", "Every pair of criteria by the mean over rounds: the better minus the worse, p of a paired t-test over seeds, Holm-corrected:",
                  *table(["pair", "points", "p"], won)]
    if all("base_wrong" in run for run in runs):
        shares = {c: t_interval([100 * run["base_wrong"][c][0] / run["base_wrong"][c][1] for run in runs]) for c in ("all seeds", *criteria)}
        lines += ["", "Seeds that the base student answers wrongly, % of those asked in the first round: "
                  + "; ".join(f"{c} {shown(found, '')}" for c, found in shares.items()) + "."]
    rows, costs, overlaps = [], [], []
    for c in criteria:
        rounds = [row for run in runs for row in run["criteria"][c] if "asked" in row]
        n_asked, dropped = sum(row["asked"] for row in rounds), sum((Counter(row["dropped"]) for row in rounds), Counter())
        shares = [f"{100 * n / n_asked:.0f}" for n in (n_asked - dropped.total(), dropped["a seed or an earlier item"], dropped["in a test set"])]
        rhos = [mean_shown([None if row[name] is None else 100 * row[name] for row in rounds]) for name in ("rho_children", "rho_length")]
        rows.append([c, f"{n_asked / len(rounds):.0f}", *shares, *(f"{statistics.fmean(row[name] for row in rounds):.0f}" for name in (
            "cut_off", "again", "overlap")), *rhos])
        seconds = {phase: statistics.fmean(run["seconds"][c][phase] for run in runs) for phase in PHASES}
        last = [run["criteria"][c][-1]["tokens"] for run in runs]
        costs.append([c, *(f"{statistics.fmean(one):,.0f}" for one in ([n_in for n_in, _ in last], [sum(both) for both in last])),
                      *(f"{value:.0f}" for value in seconds.values()),
                      f"{100 * seconds['score'] / seconds['answer']:.0f} %" if seconds["answer"] else ""])
        overlaps.append([c, *("" if d == c else f"{100 * statistics.fmean(n / of for run in runs for n, of in run['shared'][f'{c}, {d}']):.0f}"
                              for d in criteria)])
    lines += ["", "Of a round, on average: seeds asked; % of them whose item was accepted, repeated a seed or an item, leaked a test question; "
              "answers cut off; seeds asked before; seeds that the round before asked too; rank correlation x 100 of seed and item losses, and of "
              "score and answer length.",
              *table(["criterion", "asked", "accepted %", "repeated %", "in test %", "cut off", "again", "overlap", "seed - item", "score - length"],
                     rows),
              "", "Of a run: teacher tokens, judging and dropped items counted; seconds on this machine, and scoring against answering.",
              *table(["criterion", "tokens in", "tokens in and out", *(f"{phase} s" for phase in PHASES), "score / answer"], costs)]
    if len(criteria) > 1:
        lines += ["", "Overlap: % of the seeds asked in a round by the row's criterion that the column's asks in the same round.",
                  *table(["criterion", *criteria], overlaps)]
    return "\n".join(lines) + "\n"


def p_value(values: list[float]) -> float:
    """Two-sided p of the t-test that the mean is zero.

    >>> round(p_value([1.0, 2.0, 3.0]), 3), p_value([0.0, 0.0])
    (0.074, 1.0)
    """
    spread = statistics.stdev(values)
    mean = statistics.fmean(values)
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * (1 - t_below(abs(mean) / spread * math.sqrt(len(values)), len(values) - 1))


# --- DART: arms in three columns ------------------------------------------------------------------------------------------------------------
COLUMNS = ("in distribution", "out of distribution", "retention")


def gather_dart(paths: list[str]) -> dict:
    """Finished runs of dart.py as one row for each seed. A run with --no-penalty gives the arm "no penalty" to the row of its seed, one with
    --reject-cheats its arms as "..., rejecting", one on the toy world's perfect demonstrations its SFT as the arm "perfect"; the rest is left out."""
    runs, arguments, worlds = {}, {}, {}
    for path in map(Path, paths):
        result, args, env = (read_json(path / name) for name in ("result.json", "args.json", "env.json"))
        arguments[str(path)] = {name: value for name, value in args.items() if name not in (
            *MAY_DIFFER, "ood", "retention", "arms", "penalty", "reject_cheats")} | {"student": Path(args["student"]).name}
        seed, is_perfect = args["seed"], args["data"].endswith("/perfect")
        shown_as = ({"sft": "perfect"} if is_perfect
                    else {"dart": "no penalty"} if not args["penalty"]
                    else {arm: f"{arm}, rejecting" if args.get("reject_cheats") else arm for arm in result["arms"]})
        row = runs.setdefault(seed, {"method": "dart", "seed": seed, "commits": [], "gpu": env[-1]["gpu"], "packages": env[-1]["packages"],
                                     "arms": {}, "steps": {}})
        row["commits"] = list(dict.fromkeys([*row["commits"], *(str(start["commit"])[:10] for start in env)]))
        made = [re.sub(r"-[0-9a-f]{8}\b|/perfect$", "", args[name]) for name in ("data", "student")]  # the toy world's folders carry a digest
        if worlds.setdefault(seed, made) != made:
            raise UserError(f"{path}: its data or student are not those of the other runs with seed {seed}; make them anew")
        seconds, logged = logged_seconds(path), read_rows(path / "metrics.jsonl", there=False)
        for arm in [arm for arm in result["arms"] if arm in shown_as]:
            if shown_as[arm] in row["arms"]:
                raise UserError(f"{path}: arm {shown_as[arm]} with seed {seed} came twice; leave out one")
            trained = {"dart": "mapper"}.get(arm, arm)
            peak = [one["peak_gib"] for one in logged if "peak_gib" in one and (is_training(one.get("train"), arm) or trained == one.get("grpo"))]
            row["arms"][shown_as[arm]] = {
                **outcome(path, arm, result["columns"]), "cost": result["cost"][arm], "data": result["data"].get(arm),
                "peak_gib": max(peak, default=None), "seconds": round(sum(value for key, value in seconds.items() if belongs(key, arm)), 1)}
            if shown_as[arm] == "dart":
                row["seconds"] = {"preparing": seconds["1_own.jsonl"] + seconds["1_levels.jsonl"], "mapper": seconds["mapper"],
                                  "synthesis": seconds["3_rewrites_dart.jsonl"],
                                  "SFT": sum(value for step, value in seconds.items() if is_training(step, "dart"))}
            if shown_as[arm] in ("dart", "no penalty", "grpo"):
                row["steps"][shown_as[arm]] = [one for one in read_rows(path / f"2_steps_{trained}.jsonl") if one["step"] > 0]
            if arm == "grpo":
                row["curve"] = [outcome(path, f"grpo_{i}", result["columns"]) for i in range(1, args["curve"])]
    agreed = agreed_on(arguments, "their seed and penalty")
    if len({tuple(sorted(row["arms"])) for row in runs.values()}) > 1:
        raise UserError(f"{paths[0]}, ...: expected the same arms for every seed; finish the runs that lack one")
    return {"args": agreed, "runs": [runs[seed] for seed in sorted(runs)]}


def outcome(path: Path, arm: str, columns: dict[str, str]) -> dict[str, dict[str, list[int]]]:
    """[right, of] of each column, and of each set out of distribution; how many answers were cut off."""
    answers = read_rows(path / f"5_test_{arm}.jsonl")
    return {"cut_off": sum(one["cut_off"] for one in answers),
            "columns": {column: right([one for one in answers if columns[one["set"]] == column]) for column in COLUMNS},
            "sets": {Path(name).stem: right([one for one in answers if one["set"] == name]) for name, column in columns.items()
                     if column == "out of distribution"}}


def belongs(step: str, arm: str) -> bool:
    """Whether a logged step is part of what an arm costs; testing and describing are not. Own answers are DART's cost, and of who uses them."""
    if arm == "dropped":  # DART's rewrites
        return is_training(step, arm) or belongs(step, "dart") and not is_training(step, "dart")
    prepared = ("1_own.jsonl", "1_levels.jsonl") if arm in ("dart", "prompt", "best_of_n", "rejection") else ()
    is_rl = step == {"dart": "mapper", "grpo": "grpo"}.get(arm)
    made = re.fullmatch(rf"3_(rewrites|chosen|judged)_{arm}(_\d+)?\.jsonl", step) or arm == "rejection" and step.startswith("3_own_")
    return is_training(step, arm) or is_rl or step in prepared or bool(made)


def is_training(step: str | None, arm: str) -> bool:
    """Whether a logged step is an arm's SFT, at one of several rates perhaps."""
    return bool(re.fullmatch(rf"{re.escape(arm)}(_[\d.]+(e-?\d+)?)?", step or ""))


def level_with(points: list[tuple[float, float]], target: float) -> float | None:
    """Where a curve of (tokens, accuracy) first reaches the target, straight lines between its points; None if nowhere.

    >>> level_with([(0, 50), (100, 70), (200, 60)], 65), level_with([(0, 50), (100, 70)], 71), level_with([(0, 50)], 40)
    (75.0, None, 0)
    """
    if points[0][1] >= target:
        return points[0][0]
    for (t, low), (u, high) in itertools.pairwise(points):
        if high >= target:
            return t + (u - t) * (target - low) / (high - low)
    return None


def portion(counts: list[int]) -> float | None:
    """% of [right, of]; None of nothing."""
    return 100 * counts[0] / counts[1] if counts[1] else None


def share(run: dict, arm: str, column: str) -> float | None:
    return portion(run["arms"][arm]["columns"][column])


def lead(runs: list[dict], a: str, b: str, column: str) -> tuple[float, float, float] | None:
    return paired([(share(run, a, column), share(run, b, column)) for run in runs])


def dart_tables(results: dict) -> str:
    runs = results["runs"]
    slow = [arm for arm in runs[0]["arms"] if arm.startswith("sft at ")]
    arms = [arm for arm in ("base", "sft", *slow, "prompt", "best_of_n", "rejection", "grpo", "dart", "dropped", "no penalty",
                            "prompt, rejecting", "dart, rejecting", "perfect") if arm in runs[0]["arms"]]
    n = " / ".join(span([run["arms"][arms[0]]["columns"][column][1] for run in runs]) or "0" for column in COLUMNS)
    lines = [head(runs, f" of {n} questions (in distribution / out of it / retention)") + " Cut off: of all test answers; tokens generated, "
             "tokens scored for L, steps and seconds are means."]
    rows = []
    for arm in arms:
        found = [run["arms"][arm] for run in runs]
        mean = {name: statistics.fmean(one["cost"].get(name, 0) for one in found) for name in ("generated", "scored", "rl_steps", "sft_steps")}
        peak = [one["peak_gib"] for one in found if one["peak_gib"]]
        rows.append([arm, *(shown(t_interval([share(run, arm, column) for run in runs]), "") for column in COLUMNS),
                     str(sum(one["cut_off"] for one in found)), *(f"{mean[name]:,.0f}" for name in mean),
                     f"{statistics.fmean(one['seconds'] for one in found):.0f}",
                     f"{max(peak):.2f}" if peak else ""])
    lines += table(["arm", *COLUMNS, "cut off", "tokens generated", "tokens scored", "RL steps", "SFT steps", "s", "peak GiB"], rows)
    equal, built_in = "at as many generated tokens", "the gap in style is built in" if results["args"]["student"] == "student" else ""
    rows = []
    for claim, a, b, remark in (
            ("D1", "dart", "sft", built_in), *(("D1", "dart", arm, built_in) for arm in slow), ("beside D1", "dart", "base", ""),
            ("D2", "dart", "prompt", ""),
            ("beside D2", "dart", "dropped", ""),
            ("beside D2", "dart", "best_of_n", equal), ("beside D2", "dart", "rejection", equal), ("beside D2, the ceiling", "perfect", "dart", ""),
            ("D3", "dart", "grpo", equal), ("D4", "dart", "no penalty", ""),
            ("beside D4", "dart, rejecting", "dart", ""), ("beside D2 and D4", "dart, rejecting", "prompt, rejecting", "")):
        if {a, b} <= set(arms):
            found = [lead(runs, a, b, column) for column in COLUMNS]
            rows.append([f"{claim}: {a} > {b}" + f" ({remark})" * bool(remark),
                         *(f"{verdict(one).partition(':')[0]}: {shown(one)}" if one else "" for one in found)])
    if {"dart", "no penalty"} <= set(arms):
        for name, words in (("uplift", "answer uplift of the rewrites taken, in nats"),
                            ("false equation", "rewrites taken with a false equation, in %")):
            values = [[run["arms"][arm]["data"][name] if name == "uplift" else 100 * run["arms"][arm]["data"]["cheats"].get(name, 0)
                       for arm in ("dart", "no penalty")] for run in runs]
            rows.append([f"D4: {words}: dart minus no penalty", shown(t_interval([x - y for x, y in values])), "", ""])
    lines += table(["claim, in points", *COLUMNS], rows) if rows else []
    if "dart" in arms:
        total = {name: sum(run["seconds"][name] for run in runs) for name in runs[0]["seconds"]}
        n_mapper = [100 * sum(step["generated"] for step in run["steps"]["dart"]) / run["arms"]["dart"]["cost"]["generated"] for run in runs]
        lines += ["", "Of DART's seconds: " + ", ".join(f"{name} {100 * s / (sum(total.values()) or 1):.0f} %" for name, s in total.items())
                  + f"; of its generated tokens: mapper {statistics.fmean(n_mapper):.0f} %."]
    if len(sets := runs[0]["arms"][arms[0]]["sets"]) > 1:
        lines += ["", "Out of distribution, set by set, in %: " + "; ".join(f"{name}: " + ", ".join(
            f"{arm} {mean_shown([portion(run['arms'][arm]['sets'][name]) for run in runs])}" for arm in arms) for name in sets) + "."]
    if {"base", "dart", "grpo"} <= set(arms):
        lines += grpo_curve(runs)
    rows, rules = [], dict.fromkeys(rule for run in runs for arm in arms for rule in (run["arms"][arm]["data"] or {}).get("cheats", ()))
    for arm in arms:
        found = [run["arms"][arm]["data"] for run in runs if run["arms"][arm]["data"]]
        if found:
            rows.append([arm, *(f"{statistics.fmean(one[name] for one in found):.2f}" for name in ("log_prob", "uplift")),
                         *(f"{100 * statistics.fmean(one[name] for one in found):.1f}" for name in ("unlikely", "fallback")),
                         *(f"{100 * statistics.fmean(one['cheats'].get(rule, 0) for one in found):.1f}"
                           if any(one["fallback"] < 1 for one in found) else "" for rule in rules)])
    if rows:
        lines += ["", "The data that each arm trains on: mean log-probability of a token under the untrained target; answer uplift, what the "
                  "reasoning says of the answer, in nats; tokens with p < 0.01; demonstrations kept as given; rules against cheating that fire. "
                  "Rules, and uplift where there are any, are of the rewrites.",
                  *table(["arm", "log p", "uplift", "p < 0.01 %", "kept %", *(f"{rule} %" for rule in rules)], rows)]
    return "\n".join(lines) + "\n"


def grpo_curve(runs: list[dict]) -> list[str]:
    """D3: direct GRPO's accuracy on the way, and the tokens after which it is level with DART."""
    n, rows = len(runs[0]["curve"]) + 1, []
    ways = [[run["arms"]["base"], *run["curve"], run["arms"]["grpo"]] for run in runs]
    tested = [column for column in COLUMNS if all(share(run, "dart", column) is not None for run in runs)]
    for i in range(n + 1):
        cells = [[portion(way[i]["columns"][column]) for way in ways] for column in COLUMNS]
        ahead = [share(run, "dart", COLUMNS[0]) - mine for run, mine in zip(runs, cells[0], strict=True)]
        rows.append([f"{i} / {n}", *(shown(t_interval(cell), "") for cell in cells), shown(t_interval(ahead))])
    level = {column: [level_with([(i / n, portion(one["columns"][column])) for i, one in enumerate(way)], share(run, "dart", column))
                      for run, way in zip(runs, ways, strict=True)] for column in tested}
    return ["", "D3: direct GRPO on the way to as many generated tokens as DART's.", *table(
        ["tokens", *COLUMNS, "dart minus grpo, in distribution"], rows), "", "It is level with DART, run by run, after this part of DART's tokens: "
        + "; ".join(f"{column}: {', '.join('never' if x is None else f'{x:.2f}' for x in some)}" for column, some in level.items()) + "."]


def brief(text: str) -> str:
    """What stands in tables() up to the claims, of each set of data.

    >>> print(brief("arms\\n\\n| claim | here |\\n| C1 | holds |\\n\\nmore\\n**next**\\narms"))
    arms
    <BLANKLINE>
    | claim | here |
    | C1 | holds |
    <BLANKLINE>
    **next**
    arms
    """
    out, claims, done = [], False, False
    for line in text.splitlines():
        done = (done or claims and not line) and not line.startswith("**")
        claims = line.startswith("| claim") or claims and bool(line)
        if not done or not line and out[-1]:
            out.append(line)
    return "\n".join(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="run directories, or one results file")
    parser.add_argument("--save", help="write what was gathered to this results file")
    parser.add_argument("--brief", action="store_true", help="print the arms and the claims, not what stands after them")
    args = parser.parse_args()
    try:
        results = read_results(args.paths[0]) if args.paths[0].endswith(".json") else gather(args.paths)
        if args.save:
            results["command"] = f"make results; this part: python report.py {' '.join(sys.argv[1:])}"
            Path(args.save).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(brief(tables(results)) if args.brief else tables(results))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
