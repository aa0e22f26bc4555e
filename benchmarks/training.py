"""Training: tokens/s and peak memory of stat_sel.train beside TRL's SFTTrainer, from one and the same 4-bit model.

The same rows (MATH's problems with their solutions), LoRA, batch, rate and schedule on both sides; each contender in
its own process. The second epoch is timed, so that no set-up is in it. TRL also at its leanest: its chunked loss, and
rows of similar length together.

    python benchmarks/training.py                       # the environment of `make bench` has TRL
    python benchmarks/training.py --model 3b --rows 64  # a shape with random weights, on a GPU
"""
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import record  # noqa: E402

CONTENDERS = {  # name: gradient checkpointing, then what differs from TRL's default; None: stat_sel.train
    "stat_sel": (True, None), "trl": (True, {}),
    "trl chunked, by length": (True, {"loss_type": "chunked_nll", "train_sampling_strategy": "group_by_length"}),
    "stat_sel, no checkpointing": (False, None), "trl, no checkpointing": (False, {}),
}


def read_args():
    parser = record.parser(__doc__, "training")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--pretend", action="store_true", help="made-up rows: for times alone")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, default=2)
    return parser.parse_args()


def ours(args, student, rows: list[dict], checkpointing: bool) -> dict:
    import common
    import stat_sel
    how = stat_sel.Args(out=record.scratch() + "/run", epochs=args.epochs, micro_batch=args.micro_batch, checkpointing=checkpointing)
    run = common.open_run(how, how.out)
    pairs = [{"messages": [*stat_sel.question(row["problem"]), {"role": "assistant", "content": row["solution"]}]} for row in rows]
    tokens = sum(len(stat_sel.encode(student, pair["messages"], how.max_tokens)[0]) for pair in pairs)
    memory = record.Memory()
    stat_sel.train(how, run, student, pairs, "arm", how.lr[0])
    found = memory.found()
    log = [row for row in run.read("metrics.jsonl") if "train" in row]
    return {"tokens": tokens, "seconds": [row["seconds"] for row in log], **found,
            "losses": [round(row["loss"], 4) for row in run.read("loss_arm.jsonl")]}


def of_trl(args, student, rows: list[dict], checkpointing: bool, differs: dict) -> dict:
    import peft
    import torch
    import transformers
    import trl
    from datasets import Dataset

    import stat_sel
    how, ends = stat_sel.Args(), [0.0]
    data = Dataset.from_list([{"prompt": stat_sel.question(row["problem"]),
                               "completion": [{"role": "assistant", "content": row["solution"]}]} for row in rows])
    lora = peft.LoraConfig(r=how.lora_rank, lora_alpha=how.lora_alpha, lora_dropout=how.lora_dropout, target_modules="all-linear",
                           task_type="CAUSAL_LM")
    config = trl.SFTConfig(
        output_dir=record.scratch(), num_train_epochs=args.epochs, per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=how.batch // args.micro_batch, learning_rate=how.lr[0], lr_scheduler_type="cosine",
        warmup_steps=how.warmup, weight_decay=how.weight_decay, max_grad_norm=how.max_grad_norm, optim="paged_adamw_8bit",
        max_length=how.max_tokens, completion_only_loss=True, gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None, bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(), logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True, seed=0, **differs)

    class Clock(transformers.TrainerCallback):
        def on_train_begin(self, *_, **__):
            ends[0] = time.time()

        def on_epoch_end(self, *_, **__):
            ends.append(time.time())
    memory = record.Memory()
    trainer = trl.SFTTrainer(model=student.model, args=config, train_dataset=data, processing_class=student.tokenizer,
                             peft_config=lora, callbacks=[Clock()])
    trainer.train()
    return {"tokens": sum(map(len, trainer.train_dataset["input_ids"])), "seconds": [round(b - a, 2) for a, b in zip(ends, ends[1:], strict=False)],
            **memory.found(), "losses": [round(float(row["loss"]), 4) for row in trainer.state.log_history if "loss" in row]}


def main() -> None:
    args = read_args()
    if not args.who:
        record.checkpoint(args.model)  # made once, before any clock runs
        record.contend(args, __file__, CONTENDERS)
        return
    import common
    student = common.load_student(record.checkpoint(args.model))
    rows = record.pretend_problems(args.rows) if args.pretend else record.problems(args.rows)
    checkpointing, differs = CONTENDERS[args.who]
    found = ours(args, student, rows, checkpointing) if differs is None else of_trl(args, student, rows, checkpointing, differs)
    found["tokens_per_s"] = round(found["tokens"] / found["seconds"][-1], 1)
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
