"""Shared by the benchmarks: checkpoints by name, a process for each contender, memory, and the file in results/."""
import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CACHE = Path(os.environ.get("BENCH_DIR", ROOT / "runs" / "bench"))
SHAPES = {  # hidden size, layers, heads, key-value heads, feed-forward size, vocabulary; on Llama's architecture
    "tiny": (64, 2, 4, 2, 128, 50000),
    "0.5b": (896, 24, 14, 2, 4864, 151936),  # Qwen2.5-0.5B's
    "3b": (2048, 36, 16, 2, 11008, 151936),  # Qwen2.5-3B's
    "8b": (4096, 32, 32, 8, 14336, 128256),  # Llama-3.1-8B's
}


def parser(description: str, place: str, contenders: bool = True) -> argparse.ArgumentParser:
    """The flags that every place has, and those of places with a model and contenders."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--save", default=str(ROOT / "results" / f"bench_{place}.json"), help="file to write (default: %(default)s)")
    if not contenders:
        return made
    made.add_argument("--model", default="smollm2", help=f"smollm2, a shape with random weights ({', '.join(SHAPES)}), a folder or a Hub name")
    made.add_argument("--who", help="this contender alone, in this process; prints one line of JSON")
    made.add_argument("--only", nargs="*", help="these contenders; default: all")
    made.add_argument("--limit-s", type=float, default=7200, help="for all contenders; one that takes longer is ended (default: %(default)s)")
    return made


def checkpoint(name: str) -> str:
    """A folder or Hub name. SmolLM2 comes out of its package; a shape gets random weights and SmolLM2's tokenizer."""
    import common
    from realworld import student
    if name not in (*SHAPES, "smollm2"):
        return name
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        base = student.make_base(Path(os.environ.get("REALWORLD_DIR", CACHE)))
    except common.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    made = CACHE / name
    if name == "smollm2" or made.exists():
        return str(base if name == "smollm2" else made)
    import torch
    import transformers
    width, layers, heads, kv_heads, ff, vocab = SHAPES[name]
    config = transformers.LlamaConfig.from_pretrained(
        base, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        head_dim=width // heads, intermediate_size=ff, vocab_size=vocab, tie_word_embeddings=name != "8b")
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available()
    with torch.device("cuda" if on_gpu else "cpu"):
        model = transformers.LlamaForCausalLM._from_config(config, dtype=torch.bfloat16 if on_gpu else torch.float32)
    part = made.with_suffix(".tmp")
    model.save_pretrained(part)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(part)
    part.rename(made)
    return str(made)


def problems(n: int, longest: int = 2000) -> list[dict]:
    """n of MATH's training problems, the same ones each time, of at most so many characters with the solution."""
    import common
    where = os.environ.get("REAL_DATA")
    rows = common.load(f"{where}/math" if where else "math", "train")
    rows = [row for row in rows if len(row["problem"] + row["solution"]) <= longest]
    return common.rng(0, "benchmark").sample(rows, n)


def pretend_problems(n: int) -> list[dict]:
    """Rows of MATH's typical length without the data set: for times alone."""
    return [{"id": str(i), "problem": f"{i}. " + "What is 3 + 4 times 5? " * (3 + i % 5), "answer": "23",
             "solution": "We see that 4 times 5 is 20. " * (8 + i * 7 % 30) + "The answer is \\boxed{23}."} for i in range(n)]


class Memory:
    """Peak memory from here on, and what was taken before: the GPU's where torch uses one, else the process's."""

    def __init__(self):
        import torch
        self.cuda = torch.cuda if torch.cuda.is_available() else None
        if self.cuda:
            self.cuda.reset_peak_memory_stats()
            self.before = self.cuda.memory_allocated() / 2**30
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew; Linux alone has it
            self.before = self.resident("VmRSS")

    @staticmethod
    def resident(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 2**20

    def found(self) -> dict:
        peak = self.cuda.max_memory_allocated() / 2**30 if self.cuda else self.resident("VmHWM")
        return {"loaded_gib": round(self.before, 3), "peak_gib": round(peak, 3)}


def alone(script: str, words: list[str], limit_s: float) -> dict:
    """What a contender prints in a process of its own: the JSON of its last line, or {"failed": why}; it is ended after limit_s."""
    started = time.time()
    try:
        done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, timeout=limit_s)
        found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {
            "failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    except subprocess.TimeoutExpired:
        found = {"failed": f"not done after {limit_s:.0f} s"}
    return found | {"process_s": round(time.time() - started, 1)}


def contend(args, script: str, contenders: dict) -> dict[str, dict]:
    """Each contender in its own process, with this command's flags; prints the table."""
    found, words, ends = {}, sys.argv[1:], time.time() + args.limit_s
    for who in args.only or contenders:
        found[who] = alone(script, [*words, "--who", who], max(0, ends - time.time()))
        print(f"{who:28}" + "  ".join(f"{key} {value}" for key, value in found[who].items() if not isinstance(value, list)), flush=True)
        save(args, found)
    return found


def machine() -> dict:
    """What the numbers belong to."""
    import torch
    names = ("torch", "transformers", "peft", "bitsandbytes", "trl", "openai", "math-verify")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    cpu = next((line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu or platform.processor()
    return {"device": device, "cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads(), "versions": versions}


def save(args, rows) -> None:
    command = f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()
    result = {"command": command, "made": time.strftime("%Y-%m-%d"), **machine(), "rows": rows}
    Path(args.save).parent.mkdir(parents=True, exist_ok=True)
    Path(args.save).write_text(json.dumps(result, indent=1) + "\n")


def scratch() -> str:
    return tempfile.mkdtemp(prefix="bench-")


def flat(rows: dict) -> dict[str, dict]:
    """Rows of rows, as gpu.py has them, as rows; what was not measured is left out."""
    found = {}
    for name, row in rows.items():
        if any(isinstance(value, dict) for value in row.values()):
            found |= {f"{name}: {who}": one for who, one in row.items()}
        else:
            found[name] = row
    return {name: row for name, row in found.items() if "failed" not in row}


def main() -> None:
    """Prints a file of results/ as a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description=main.__doc__)
    parser.add_argument("place", choices=[path.stem[6:] for path in sorted((ROOT / "results").glob("bench_*.json"))])
    result = json.loads((ROOT / "results" / f"bench_{parser.parse_args().place}.json").read_text())
    rows = flat(result["rows"])
    keys = list(dict.fromkeys(key for row in rows.values() for key in row if key not in ("losses", "process_s", "mean_lengths")))
    print(f"| |{'|'.join(key.replace('_', ' ') for key in keys)}|\n|---|{'---:|' * len(keys)}")
    for name, row in rows.items():
        cells = [", ".join(map(str, row[key])) if isinstance(row.get(key), list) else f"{row[key]:,}" if row.get(key) is not None else ""
                 for key in keys]
        print(f"| {name} | {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    print(f"\n{result['device']}, {result['threads']} threads; {versions}; {result['made']}. `{result['command']}`")


if __name__ == "__main__":
    main()
