"""Every method on a GPU: the toy world end to end, then answering, scoring, training and a GRPO step at real models' shapes with random weights.

    python benchmarks/gpu.py                # 3B student, 8B reward model: about 30 GB of disk and a GPU with 24 GB; no network
    python benchmarks/gpu.py --shape tiny   # the same steps at toy size, to see that they run

Prints seconds and peak memory; random weights answer nonsense up to the length limit, so the answering time is that of the longest answers.
"""
import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: E402

import common  # noqa: E402
import dart  # noqa: E402
import stat_sel  # noqa: E402
from toyworld import world  # noqa: E402

SHAPES = {  # hidden size, layers, heads, key-value heads, feed-forward size, vocabulary
    "tiny": (64, 2, 4, 2, 128, 1024),
    "3b": (2048, 36, 16, 2, 11008, 151936),  # Qwen2.5-3B's, on Llama's architecture
    "8b": (4096, 32, 32, 8, 14336, 128256),  # Llama-3.1-8B's
}


def make_checkpoint(folder: Path, shape: str, tokenizer) -> Path:
    """A random checkpoint of that shape with the toy tokenizer; its vocabulary is the real one's size, so the logits cost what they cost there."""
    width, layers, heads, kv_heads, ff, vocab = SHAPES[shape]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=ff,
        vocab_size=vocab, tie_word_embeddings=shape != "8b", max_position_embeddings=4096, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / shape)
    tokenizer.save_pretrained(folder / shape)
    return folder / shape


def timed(label: str, work):
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.time()
    value = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    print(f"{label}: {time.time() - started:.1f} s, peak {common.peak_gib():.2f} GiB", flush=True)
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="3b")
    parser.add_argument("--prm-shape", choices=SHAPES, default="8b")
    parser.add_argument("--methods", nargs="*", default=["stat_sel", "stat_syn", "active_loop", "dart"], help="to run in the toy world")
    parser.add_argument("--new-tokens", type=int, default=512, help="length of every answer")
    parser.add_argument("--words", type=int, default=500, help="length of a training answer, in words of about two tokens")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the toy world")
    parser.add_argument("--limit", type=int, default=1500, help="questions of each kind in the toy run")
    args = parser.parse_args()
    print(f"device: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'}")
    with tempfile.TemporaryDirectory() as folder:
        small = args.scale < 1
        more = {"stat_sel": ["--arms", "base", "stat"], "stat_syn": ["--arms", "base", "stat"],
                "active_loop": ["--select", "loss"] + ["--n-seeds", "60", "--per-round", "8", "--rounds", "1"] * small,
                "dart": ["--arms", "base", "dart"] + ["--rl-steps", "2", "--n-own", "1"] * small}
        for method in args.methods:
            toy = [sys.executable, "-m", "toyworld", method, "--scale", str(args.scale), "--limit", str(args.limit), "--out", f"{folder}/{method}"]
            started = time.time()
            if code := subprocess.call([*toy, *more[method]], cwd=ROOT):
                return code
            print(f"{method} in the toy world, end to end: {time.time() - started:.1f} s; its memory stands in the lines above")
        made = world.make_world(ROOT / world.default_root(), 0, stat_sel.STUDENT_PROMPT, args.scale)
        checkpoint = make_checkpoint(Path(folder), args.shape, AutoTokenizer.from_pretrained(made / "student"))
        run_args = stat_sel.Args(student=str(checkpoint), out=f"{folder}/run", epochs=1)
        student = timed(f"load {args.shape} in 4 bits", lambda: common.load_student(run_args.student))
        prompts = [common.prompt_ids(student.tokenizer, stat_sel.question("What is 3+4?"))] * run_args.sample_batch
        timed(f"answer {run_args.sample_batch} questions with {args.new_tokens} tokens each",
              lambda: common.sample(student._replace(stop_ids=frozenset({-1})), prompts, 0.1, args.new_tokens, seed=0))
        chat = stat_sel.question("What is 3+4?") + [{"role": "assistant", "content": "seven " * args.words}]
        rows = [{"messages": chat}] * 32
        run = common.open_run(run_args, run_args.out)
        timed(f"train on {len(rows)} pairs of {len(stat_sel.encode(student, chat, 4096)[0])} tokens, batch {run_args.batch} = "
              f"{run_args.batch // run_args.micro_batch} x {run_args.micro_batch}",
              lambda: stat_sel.train(run_args, run, student, rows, "arm", run_args.lr[0]))
        run.lock.release()
        student = None  # one model at a time
        student = common.load_student(run_args.student)
        grpo_args = dart.Args(student=run_args.student, out=f"{folder}/grpo", rl_steps=1, max_new_tokens=args.new_tokens)
        from peft import LoraConfig, get_peft_model
        student = student._replace(stop_ids=frozenset({-1}), model=get_peft_model(student.model, LoraConfig(
            r=grpo_args.lora_rank, lora_alpha=grpo_args.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")))
        shown = [{"id": str(i), "problem": "What is 3+4?", "solution": "seven " * args.words, "answer": "7", "raw": -2.0, "on": -1.0}
                 for i in range(grpo_args.prompts)]

        def judge(rows, outs):  # random weights are never right: a reward that differs, so that every rewrite is trained on
            return [one | {"reward": float(i % 2)} for i, one in enumerate(dart.judge(grpo_args, student, rows, outs))]
        run = common.open_run(grpo_args, grpo_args.out)
        timed(f"a GRPO step on {grpo_args.prompts} x {grpo_args.group} rewrites of {args.new_tokens} tokens, judged",
              lambda: dart.grpo(grpo_args, run, student, dart.Task("mapper", dart.rewriting, judge), shown, [], grpo_args.beta))
        run.lock.release()
        student = None  # the reward model needs its place
        prm = make_checkpoint(Path(folder), args.prm_shape, AutoTokenizer.from_pretrained(made / "prm"))
        model, tokenizer = timed(f"load the reward model, {args.prm_shape}, in 4 bits", lambda: common.load_4bit(str(prm), "--prm"))
        answers = [("What is 3+4?", ["seven " * (args.words // 10)] * 10)] * run_args.prm_batch
        stat_sel.score_steps(model, tokenizer, answers[:1])  # the first pass also sets up the kernels
        timed(f"score {len(answers)} answers of 10 steps, {args.words} words each", lambda: stat_sel.score_steps(model, tokenizer, answers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
