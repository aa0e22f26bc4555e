"""GPU hours and teacher dollars of a run of stat_sel.py on MATH, of dart.py or of active_loop.py, ahead.

Counts   follow from the method's own flags; the sizes of the sets are SIZES.
Steps    of sampling are simulated with the rounds of common.answer on drawn lengths: log-normal about
         --median tokens, and a share --run-ons of answers that reach the length limit.
Rates    are flags. Their defaults were measured on one H100 (results/bench_gpu.json): a 3B student in 4 bits, an 8B
         reward model. Answering and training there seem bound by the launches of kernels, so by the number of
         layers and the CPU. A 24 GB card was not measured; its reward model will take several times as long.
         A local teacher's hours are not in it. For stat_syn.py: its --plan; training and tests as here, with its pairs.
Run      python benchmarks/cost.py dart --n-demonstrations 2000
         python benchmarks/cost.py active_loop --select loss --usd-per-m-in 0.15 --usd-per-m-out 0.6
         python benchmarks/cost.py --ood gsm8k amc23 aime24 aime25 --usd-per-m-in 0.15 --usd-per-m-out 0.6
"""
import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import active_loop  # noqa: E402
import common  # noqa: E402
import dart  # noqa: E402
import stat_sel  # noqa: E402
from common import UserError  # noqa: E402

N_TRAIN, N_TEST = 7500, 5000
SIZES = {"gsm8k": 1319, "svamp": 300, "math500": 500, "math_squared": 210, "amc23": 40, "aime24": 30,
         "aime25": 30, "math_perturb_simple": 279, "math_perturb_hard": 279, "bbh_boolean_expressions": 250,
         "bbh_web_of_lies": 250, "prontoqa": 500, "arc_challenge": 1172, "math": N_TEST}
SHARE_DIFFICULT, SKILLS_EACH = 0.52, 2.5  # of Qwen2.5-3B (Table 12); "typically 2-3" (§2.2)


@dataclass(frozen=True)
class Rates:
    median: int = 250  # tokens of an answer
    run_ons: float = 0.05  # share of answers that reach --max-new-tokens
    step_ms: float = 108.0  # one token for a batch, in 4 bits, without an adapter
    adapter_factor: float = 1.35  # how much longer a step takes with one
    merged_factor: float = 0.52  # and unpacked: --test-weights merged
    train_tokens_per_s: float = 1080.0  # with gradient checkpointing, --micro-batch 2
    prm_tokens_per_s: float = 24000.0  # of an 8B model in 4 bits
    load_s: float = 60.0  # to load a model
    prompt_tokens: int = 400  # of a teacher's prompt, list of skills included
    reply_tokens: int = 250  # of a teacher's reply


@dataclass(frozen=True)
class Args(Rates, stat_sel.Args):
    pass


@dataclass(frozen=True)
class DartArgs(Rates, dart.Args):
    pass


@dataclass(frozen=True)
class ActiveArgs(Rates, active_loop.Args):
    pass


def draw_lengths(args, n: int) -> list[int]:
    """Tokens of n answers."""
    rng, most = random.Random(0), args.max_new_tokens
    return [most if rng.random() < args.run_ons else min(most, int(args.median * rng.lognormvariate(0, 0.6)))
            for _ in range(n)]


def n_steps(lengths: list[int], size: int) -> int:
    """Steps that these answers take in the rounds of common.answer: a batch leaves a quarter unfinished."""
    total = 0
    while lengths:
        leave, rest = 0.25 if len(lengths) > size else 0.0, []
        for start in range(0, len(lengths), size):
            batch = lengths[start:start + size]
            steps = sorted(batch)[len(batch) - 1 - int(leave * len(batch))]
            total += steps
            rest += [length - steps for length in batch if length > steps]
        lengths = rest
    return total


def count_tests(args) -> dict[str, int]:
    """Answers to each evaluation set."""
    n_test = N_TEST - (0 if args.val else args.n_val)
    found = {"MATH": min(args.limit or n_test, n_test)}
    for name in args.ood:
        if name not in SIZES:
            raise UserError(f"--ood {name}: expected one of {', '.join(SIZES)}, whose sizes are known here")
        found[name] = min(args.limit or SIZES[name], SIZES[name]) * (args.samples if SIZES[name] < 100 else 1)
    return found


def estimate(args: Args) -> None:
    n_val, n_pool = (min(args.limit or n, n) for n in (args.n_val, N_TRAIN))
    tests = count_tests(args)
    trained = [arm for arm in args.arms if arm != "base"]
    taught = [arm for arm in trained if arm != "train"]
    n_difficult = round(SHARE_DIFFICULT * n_val)
    drawn = {"augment": n_pool, "hard": n_pool // 2, "embed": 5 * n_difficult, "accuracy": args.n_pairs}
    n_pairs = {"train": n_pool}
    for arm in taught:
        n_drawn = drawn.get(arm, round(n_difficult * SKILLS_EACH * args.questions_per_skill))
        n_pairs[arm] = min(args.n_pairs, args.n_rewrites * n_drawn)
    pair_tokens = args.median + 150  # and its prompt

    is_merged = args.test_weights == "merged"
    step_s, factor = args.step_ms / 1000 * (args.merged_factor if is_merged else 1), 1 if is_merged else args.adapter_factor

    def sampling(n: int) -> float:
        return n_steps(draw_lengths(args, n), args.sample_batch) * step_s
    per_arm = sum(map(sampling, tests.values()))
    n_graded, n_trainings = n_val + tests["MATH"], len(trained) * len(args.lr)
    train_tokens = args.epochs * len(args.lr) * sum(n_pairs[arm] for arm in trained) * pair_tokens
    hours = {
        "answer (Q_val, Q_test)": sampling(n_graded),
        "grade": n_graded * pair_tokens / args.prm_tokens_per_s * (args.difficulty == "prm"),
        "train": train_tokens / args.train_tokens_per_s,
        "choose --lr": n_trainings * sampling(args.n_heldout) * factor * (len(args.lr) > 1),
        "test": per_arm * ("base" in args.arms) + per_arm * factor * len(trained),
        "load": args.load_s * (3 + 2 * n_trainings)}
    say_hours(hours)

    by_skill = bool(set(taught) & {"stat", "shuffled", "accuracy"})
    calls = {"label": n_pool * by_skill + n_val * ("accuracy" in taught),
             "diagnose": n_difficult * bool(set(taught) & {"stat", "shuffled"}),
             # a tenth is wrong and replaced; arms share what both take
             "rewrite": min(round(1.1 * sum(n_pairs[arm] for arm in taught)), args.n_rewrites * n_pool)}
    prices = args.usd_per_m_in or 0, args.usd_per_m_out or 0
    price = (args.prompt_tokens * prices[0] + args.reply_tokens * prices[1]) / 1e6
    print("\n| of the teacher | calls | usd |\n|---|---:|---:|")
    for step, n in (calls | {"all": sum(calls.values())}).items():
        print(f"| {step} | {n:,} | {n * price:.2f} |")
    print(f"\nRates are flags, by default an H100's. Answers an arm: "
          f"{', '.join(f'{name} {n:,}' for name, n in tests.items())}; pairs: "
          f"{', '.join(f'{arm} {n_pairs[arm]:,}' for arm in trained)}.")


def say_hours(hours: dict[str, float]) -> None:
    print("| on the GPU | hours |\n|---|---:|")
    for step, seconds in (hours | {"all": sum(hours.values())}).items():
        print(f"| {step} | {seconds / 3600:.2f} |")


def estimate_dart(args: DartArgs) -> None:
    """best_of_n, rejection and grpo sample as many tokens as DART: each is counted as DART's sampling once more."""
    unpacked = args.merged_factor if args.bits == 16 else 1  # an adapter adds the same time to either
    step_s, with_adapter, size = unpacked * args.step_ms / 1000, 1 + (args.adapter_factor - 1) / unpacked, args.sample_batch
    n, arms = args.n_demonstrations, set(args.arms)
    tokens = args.median + args.prompt_tokens

    def sampling(n_answers: int) -> float:  # to the end of each batch; only common.answer goes on in rounds
        lengths = draw_lengths(args, n_answers)
        return sum(max(lengths[i:i + size]) for i in range(0, n_answers, size)) * step_s
    n_tests = 0
    for name in (args.data, *args.ood, *args.retention):
        if name not in SIZES:
            raise UserError(f"{name}: expected one of {', '.join(SIZES)}, whose sizes are known here")
        n_tests += min(args.limit or SIZES[name], SIZES[name])
    n_rollouts = args.rl_steps * args.prompts * args.group
    n_tested = args.n_heldout * (1 + args.rl_steps // args.eval_every) if args.eval_every else 0
    sft, sampled = len(arms - {"base", "grpo"}), len(arms & {"best_of_n", "rejection", "grpo"})
    passes = 1.5  # ours: rollouts are scored, then trained on, a pass each of half the cost of training
    rewrites = sampling(n * args.n_rewrites) * with_adapter
    hours = {"own answers": n_steps(draw_lengths(args, (n + args.n_heldout) * args.n_own), size) * step_s
             if arms - {"base", "sft", "grpo"} else 0.0}
    if "dart" in arms:
        hours |= {"GRPO: sampling": (args.rl_steps * sampling(args.prompts * args.group) + sampling(n_tested)) * with_adapter,
                  "GRPO: updates": passes * n_rollouts * tokens / args.train_tokens_per_s, "rewrites of dart": rewrites}
    hours |= {"rewrites of prompt": rewrites * ("prompt" in arms), "arms at DART's cost": sampled * sum(hours.values()),
              "SFT": sft * len(args.lr) * args.epochs * n * tokens / args.train_tokens_per_s,
              "test": n_steps(draw_lengths(args, n_tests), size) * step_s * (
                  ("base" in arms) + with_adapter * (sft + ("grpo" in arms) * args.curve)),
              "load": args.load_s * 3 * len(arms)}
    say_hours(hours)
    print(f"\nRates are flags, by default an H100's. Rollouts {n_rollouts:,}, tests {n_tests:,} an arm.")


def estimate_active(args: ActiveArgs) -> None:
    """Every round at its full size; no item is dropped. A pass over a text costs a third of training on it."""
    if args.data not in SIZES:
        raise UserError(f"--data {args.data}: expected one of {', '.join(SIZES)}, whose sizes are known here")
    if args.select in ("reward", "judge", "lion"):
        raise UserError(f"--select {args.select}: its scores are not estimated here; see active_loop.py --plan")
    n_test, n_rounds, m = min(args.limit or SIZES[args.data], SIZES[args.data]), args.rounds, args.per_round

    def sampling(n: int, t: int) -> float:
        factor = args.adapter_factor if t > 0 else 1.0
        return n_steps(draw_lengths(args, n), args.sample_batch) * args.step_ms / 1000 * factor
    read = {"random": 0, "true_loss": 0, "static_loss": 1}.get(args.select, n_rounds)  # rounds of own answers
    scored = {"random": 0, "incorrect": 0, "static_loss": 1}.get(args.select, n_rounds)  # rounds of losses
    compared = scored if args.select != "true_loss" else 0  # rounds whose items are answered and scored too
    pair_tokens = args.median + 150  # and its prompt
    pass_s = pair_tokens / args.train_tokens_per_s / 3
    n_learned = args.epochs * m * n_rounds * (n_rounds + 1) // 2  # each time on all items so far
    say_hours({
        "answer D_0": sum(sampling(args.n_seeds, t) for t in range(read)),
        "score": (args.n_seeds * scored + m * compared) * pass_s,
        "answer new items": sum(sampling(m, t) for t in range(compared)),
        "train": n_learned * pair_tokens / args.train_tokens_per_s,
        "test": sum(sampling(n_test, t) for t in range(n_rounds + 1)),
        "load": args.load_s * (2 * n_rounds + 1)})
    calls = m * n_rounds * (1 + (args.n_solutions if args.verify == "sc" else 1))
    prices = args.usd_per_m_in or 0, args.usd_per_m_out or 0
    usd = calls * (args.prompt_tokens * prices[0] + args.reply_tokens * prices[1]) / 1e6
    print(f"\nRates are flags, by default an H100's. Tests {n_test:,} a round, teacher calls {calls:,}, usd {usd:.2f}.")


def main() -> None:
    if sys.argv[1:2] == ["dart"]:
        del sys.argv[1]
        common.cli(estimate_dart, DartArgs, __doc__)
    elif sys.argv[1:2] == ["active_loop"]:
        del sys.argv[1]
        common.cli(estimate_active, ActiveArgs, __doc__)
    else:
        common.cli(estimate, Args, __doc__)


if __name__ == "__main__":
    main()
