"""Growth: seconds and peak memory of each stage of STAT-Sel at 1, 2, 4 and 8 times the data, in the toy world.

Q_val, P and Q_test grow together, and the pairs with them. A stage is linear if the seconds for an item stay the same.

    python benchmarks/growth.py
"""
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import record  # noqa: E402

STAGES = {  # name: the file that ends it
    "answer": "1_answers.jsonl", "step rewards": "2_rewards.jsonl", "label": "3_skill_map.jsonl", "diagnose": "4_profile.jsonl",
    "rewrite": "5_rewrites.jsonl", "train": "train", "test": "7_test_stat.jsonl"}


def measure(limit: int, n_pairs: int) -> dict:
    out = Path(record.scratch(), "run")
    words = ["stat_sel", "--limit", str(limit), "--n-pairs", str(n_pairs), "--arms", "base", "stat", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "toyworld", *words], cwd=record.ROOT, check=True, capture_output=True)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    took, peaks = {row["step"]: row["seconds"] for row in rows if "step" in row}, [row["peak_gib"] for row in rows if "peak_gib" in row]
    took["train"] = sum(row["seconds"] for row in rows if "train" in row)
    return {"limit": limit, "n_pairs": n_pairs, **{name: round(took[file], 2) for name, file in STAGES.items()}, "peak_gib": max(peaks)}


def main() -> None:
    parser = record.parser(__doc__, "growth", contenders=False)
    parser.add_argument("--limits", type=int, nargs="*", default=[180, 360, 720, 1440])
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    found = {}
    for limit in args.limits:
        found[str(limit)] = measure(limit, limit)
        print(found[str(limit)], flush=True)
    record.save(args, found)


if __name__ == "__main__":
    sys.exit(main())
