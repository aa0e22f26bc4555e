"""Runs an unmodified method file in the toy world, through its ordinary flags.

    python -m toyworld stat_sel                      # makes world 0 (cached in runs/toyworld), starts the teacher, runs stat_sel.py
    python -m toyworld stat_sel --seed 7 --lr 2e-3   # other flags go to the method; --seed is also the world's
    python -m toyworld stat_syn                      # goes on from that run where it is there
    python -m toyworld active_loop                   # loss and random; --sweep: seven criteria, five seeds, both families of problems
    python -m toyworld dart
    python -m toyworld stat_sel --data ../MATH --limit 20   # toy student and toy teacher on other data: shows that it runs, nothing more
"""
import argparse
import importlib
import sys
from pathlib import Path

import tyro

import common
import plot
import report
from toyworld import teacher, world
from toyworld.embedder import make_embedder

# What the toy's scale needs; fixed on pilot seeds, as in world.py.
SMALL = ["--batch", "32", "--micro-batch", "32", "--no-checkpointing", "--sample-batch", "100", "--max-new-tokens", "100"]
TAUGHT = [*SMALL, "--lr", "2e-3", "--concurrency", "8"]
STAT = [*TAUGHT, "--n-val", str(world.N_VAL), "--n-pairs", "1900", "--prm-batch", "100"]
FLAGS = {"stat_sel": STAT, "stat_syn": [*STAT, "--n-new", "8"],
         "active_loop": [*TAUGHT, "--n-seeds", "1500", "--rounds", "4", "--per-round", "100", "--verify", "sc"],
         "dart": [*SMALL, "--lr", "2e-3", "5e-4", "--n-own", "2", "--rl-steps", "40", "--rl-lr", "1e-3",
                  "--n-demonstrations", "600"]}

# Of two possible answers three of five agree too easily. Fewer items, because they soon teach the student all depths.
DEDUCTION = ["--n-agreeing", "5", "--per-round", "40"]
# The first has all of the base's answers, and the others take them over from it.
SWEEP, SEEDS = ("loss", "random", "loss_low", "static_loss", "true_loss", "incorrect", "badge"), (11, 12, 13, 14, 15)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m toyworld", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=sorted(FLAGS), help="the method file to run; every flag that is not listed here goes to it")
    parser.add_argument("--seed", type=int, default=0, help="seed of the world and of the run")
    parser.add_argument("--scale", type=float, default=1.0, help="below 1: a smaller, worse-trained world, for tests of the plumbing")
    parser.add_argument("--times-seen", type=int, default=1, help="how often the student saw P in pretraining; at 4 it is saturated on P")
    parser.add_argument("--family", choices=("mathematics", "deduction"), help="of problems; deduction is for active_loop (default: mathematics; in "
                        "a sweep both)")
    parser.add_argument("--perfect", action="store_true", help="dart: demonstrations in the student's own styles, without a slip; what SFT on them "
                        "brings is the ceiling of any mapper")
    parser.add_argument("--sweep", type=int, nargs="*", metavar="SEED", help="active_loop: seven criteria, each with these seeds (11 to 15), "
                        "compared; without it loss and random with one seed")
    return parser


def run_method(args, method, rest: list[str], seed: int, family: str = "mathematics", part: str = "") -> tuple[int, str]:
    """Runs the method file in the world `seed`; returns its exit code and its run directory, in which `part` is a folder."""
    given, of_stat = {flag.partition("=")[0] for flag in rest}, args.method.startswith("stat")
    made = world.make_world(world.default_root(), seed, method.STUDENT_PROMPT, args.scale, args.times_seen, family, prm=of_stat)
    server, url = teacher.serve()
    flags = ["--seed", str(seed), "--student", str(made / "student"), *FLAGS[args.method], *(DEDUCTION if family == "deduction" else [])]
    if of_stat:
        flags += ["--prm", str(made / "prm"), "--embedder", str(made / "embedder")]
        if not (made / "embedder").is_dir():
            make_embedder(made / "embedder", made / "student", seed)
    if args.method != "dart":
        flags += ["--teacher", "toy", "--teacher-url", url]
    elif "--data" not in given:
        flags += ["--ood", str(made / "phrasings.jsonl"), "--retention", str(made / "retention.jsonl")]
    if "--select" in given and "--reward-model" not in given and tyro.cli(method.Args, args=[*flags, *rest]).select == "reward":
        if not (made / "reward").is_dir():
            from toyworld.prm import make_reward
            make_reward(made / "reward", made / "student", seed, args.scale)
        flags += ["--reward-model", str(made / "reward")]
    if args.scale != 1 and of_stat:
        flags += ["--n-val", str(int(world.N_VAL * args.scale))]
    if "--data" not in given:
        flags += ["--data", str(made / "perfect" if args.perfect else made)] + ["--skills", str(made / "skills.json")] * of_stat
    run = f"{'' if args.times_seen == 1 else f'_seen_{args.times_seen}'}/seed-{seed}"
    flags += ["--out", str(Path(f"runs/toy_{args.method}{run}", family if args.method == "active_loop" else "", part))]
    earlier = Path(f"runs/toy_stat_sel{run}")
    if args.method == "stat_syn" and "--profile-from" not in given and (earlier / "result.json").exists():
        goes_on = ["--profile-from", str(earlier), "--cache", f"{earlier}/teacher.sqlite"]
        try:
            method.check_source(tyro.cli(method.Args, args=[*flags, *rest, *goes_on]))
            flags += goes_on
            print(f"goes on from STAT-Sel's run: {' '.join(goes_on)}")
        except common.UserError as error:  # that run was made with other arguments
            print(f"makes its own profile: {error}")
    sys.argv = [f"{args.method}.py", *flags, *rest]
    try:
        common.cli(method.main, method.Args, method.__doc__)
    except SystemExit as stop:
        return stop.code, ""
    finally:
        server.shutdown()
    return 0, tyro.cli(method.Args, args=sys.argv[1:]).out


def main() -> int:
    args, rest = make_parser().parse_known_args()
    method, given = importlib.import_module(args.method), {flag.partition("=")[0] for flag in rest}
    settings = tyro.cli(method.Args, args=FLAGS[args.method] + rest)  # a wrong flag is refused before a world is made for it
    if args.sweep is not None and (args.method != "active_loop" or {"--select", "--out"} & given):
        print("error: --sweep: it is active_loop's, and takes neither --select nor --out; leave them out", file=sys.stderr)
        return 2
    if args.perfect and (args.method != "dart" or "--data" in given):
        print("error: --perfect: it is dart's, and gives --data itself; leave it out", file=sys.stderr)
        return 2
    if args.method != "active_loop" and args.family == "deduction":
        print("error: --family deduction: its problems are for active_loop alone; leave it out", file=sys.stderr)
        return 2
    suffix = "_sum" if getattr(settings, "norm", "") == "sum" else ""
    if args.method != "active_loop" or {"--select", "--out"} & given:
        family = "demonstrations" if args.method == "dart" else args.family or "mathematics"
        return run_method(args, method, rest, args.seed, family, settings.select + suffix if "--select" in given else "")[0]
    sweep, outs = args.sweep is not None, []
    for seed in args.sweep or (SEEDS if sweep else [args.seed]):
        for family in [args.family] if args.family else ["mathematics", "deduction"] if sweep else ["mathematics"]:
            shared = []
            for criterion in SWEEP if sweep else SWEEP[:2]:
                more = ["--select", criterion, *["--no-repeat"] * sweep, *shared]
                code, out = run_method(args, method, [*rest, *more], seed, family, criterion + suffix)
                if code or settings.plan:
                    return code
                outs.append(out)
                shared = shared or ["--from", out]
    sys.argv = ["report.py", *outs]
    if code := report.main():
        return code
    sys.argv = ["plot.py", *outs, "--out", str(Path(outs[0]).parents[2])]
    return plot.main()


if __name__ == "__main__":
    sys.exit(main())
