"""Sampling: useful tokens/s of common.answer beside `generate` and transformers' continuous batching.

Prompts are MATH's problems; an answer's length is that of the problem's own solution in tokens, and a share of
--run-ons goes on to the limit, as small students do. The lengths are forced, the same for all: a hook on the head
sets the end token at its place, and forbids it before. "sorted" knows the lengths ahead, which nobody does: a bound.
"with adapter" is common.answer with a LoRA adapter that is not merged.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --model 3b --pretend --bits 4     # on a GPU
"""
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import record  # noqa: E402

CONTENDERS = ("common.answer", "generate", "generate, sorted by length", "generate_batch", "with adapter")


class Lengths:
    """A forward hook on the head: row i ends as its token number left[i]."""

    def __init__(self, stop: int):
        self.stop, self.left, self.steps = stop, None, 0

    def start(self, lengths: list[int], device) -> None:
        import torch
        self.left, self.step = torch.tensor(lengths, device=device), 0

    def select(self, rows) -> None:
        self.left = self.left[rows]

    def __call__(self, head, inputs, logits):
        self.step, self.steps = self.step + 1, self.steps + 1
        logits[:, -1, self.stop] = -1e9
        logits[self.left <= self.step, -1, self.stop] = 1e9
        return logits


def use_answer(args, student, rows, prompts, lengths, hook) -> None:
    import transformers

    import common
    import stat_sel
    lengths = {tuple(prompt): length for prompt, length in zip(prompts, lengths, strict=True)}
    sample, select = common.sample, transformers.DynamicCache.batch_select_indices

    def sampled(student, prompts, temperature, max_new_tokens, seed, begun=None, *more, **others):
        begun = begun or [[] for _ in prompts]
        hook.start([lengths[tuple(a)] - len(b) for a, b in zip(prompts, begun, strict=True)], student.device)
        return sample(student, prompts, temperature, max_new_tokens, seed, begun, *more, **others)

    def selected(cache, rows):
        hook.select(rows)
        return select(cache, rows)
    common.sample, transformers.DynamicCache.batch_select_indices = sampled, selected
    how = stat_sel.Args(out=record.scratch() + "/run", sample_batch=args.batch, max_new_tokens=args.max_new_tokens)
    found = common.answer(how, common.open_run(how, how.out), "answers.jsonl", lambda: student, rows, stat_sel.question, args.temperature)
    made = [found[row["id"]][0]["n_tokens"] + 1 for row in rows]
    assert sum(made) >= 0.98 * sum(lengths.values()), "answers of other lengths than were asked for"


def use_generate(args, student, prompts, lengths, hook) -> None:
    import torch

    import common
    for i in range(0, len(prompts), args.batch):
        ids, mask = common.pad(prompts[i:i + args.batch], student.device, side="left")
        hook.start(lengths[i:i + args.batch], student.device)
        with torch.no_grad():
            out = student.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=args.max_new_tokens, eos_token_id=hook.stop, pad_token_id=hook.stop,
                do_sample=args.temperature > 0, temperature=args.temperature or None, top_k=None, top_p=None)
        assert out.shape[1] - ids.shape[1] == max(lengths[i:i + args.batch])


def use_batch(args, student, prompts, lengths) -> None:
    """Each request has its own limit, and no end token."""
    import transformers
    config = transformers.GenerationConfig(do_sample=args.temperature > 0, temperature=args.temperature or None, top_k=None, top_p=None,
                                           eos_token_id=-1, pad_token_id=0, max_new_tokens=args.max_new_tokens)
    cpu = {} if student.device.type == "cuda" else {"page_size": 32, "num_blocks": 16 * args.batch, "max_batch_tokens": 512}
    batching = transformers.ContinuousBatchingConfig(max_requests_per_batch=args.batch, **cpu)
    made = 0
    with student.model.continuous_batching_context_manager(generation_config=config, continuous_batching_config=batching) as manager:
        for prompt, length in zip(prompts, lengths, strict=True):
            manager.add_request(prompt, max_new_tokens=length)
        for _ in prompts:
            while not (result := manager.get_result(timeout=1)):
                if not manager.is_running():
                    raise RuntimeError(f"it stopped: {manager.background_thread_status.fatal_error}")
            if result.error:
                raise RuntimeError(result.error)
            made += len(result.generated_tokens)
    assert made == sum(lengths), "answers of other lengths than were asked for"


def measure(args) -> dict:
    import random

    import torch

    import common
    import stat_sel
    rows = record.pretend_problems(args.rows) if args.pretend else record.problems(args.rows)
    student = common.load_student(record.checkpoint(args.model), bits=args.bits)
    tokens = student.tokenizer
    prompts = [common.prompt_ids(tokens, stat_sel.question(row["problem"])) for row in rows]
    lengths = [min(args.max_new_tokens, len(tokens(row["solution"]).input_ids) + 1) for row in rows]
    for i in random.Random(0).sample(range(len(rows)), round(args.run_ons * len(rows))):
        lengths[i] = args.max_new_tokens
    order = sorted(range(len(rows)), key=lambda i: lengths[i])
    if args.who == "with adapter":
        import peft
        student = student._replace(model=peft.get_peft_model(student.model, peft.LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")))
    student.model.generate(input_ids=torch.tensor([prompts[0]], device=student.device), max_new_tokens=2, pad_token_id=0)  # kernels
    hook = Lengths(min(student.stop_ids))
    memory, started = record.Memory(), time.time()
    if args.who == "generate_batch":
        use_batch(args, student, prompts, lengths)
    else:
        student.model.get_output_embeddings().register_forward_hook(hook)
        if args.who in ("common.answer", "with adapter"):
            use_answer(args, student._replace(stop_ids=frozenset({hook.stop})), rows, prompts, lengths, hook)
        else:
            which = order if "sorted" in args.who else range(len(rows))
            use_generate(args, student, [prompts[i] for i in which], [lengths[i] for i in which], hook)
    seconds = time.time() - started
    steps = {"steps": hook.steps, "ms_per_step": round(1000 * seconds / hook.steps, 1)} if hook.steps else {}
    return {"tokens": sum(lengths), "seconds": round(seconds, 2), "tokens_per_s": round(sum(lengths) / seconds, 1), **steps, **memory.found()}


def main() -> None:
    parser = record.parser(__doc__, "sampling")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--pretend", action="store_true", help="made-up rows: for times alone")
    parser.add_argument("--bits", type=int, choices=[4, 16], default=16)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--max-new-tokens", type=int, default=768)
    parser.add_argument("--run-ons", type=float, default=0.05)
    parser.add_argument("--temperature", type=float, default=0.1)
    args = parser.parse_args()
    if args.who:
        print("\n" + json.dumps(measure(args)))
        return
    record.checkpoint(args.model)
    record.contend(args, __file__, CONTENDERS)


if __name__ == "__main__":
    sys.exit(main())
