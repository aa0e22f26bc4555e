"""A GRPO step: seconds and peak memory of dart.grpo_step beside TRL's GRPOTrainer without vLLM.

4 prompts x 8 completions of 64 new tokens, from one and the same 4-bit model, with the same LoRA, rate and a KL term;
the reward is the share of digits in a text, so that every group has a signal. No end token counts, so all
completions have their full length. The first of several steps sets up and is not counted.

    python benchmarks/grpo.py
    python benchmarks/grpo.py --model 3b --pretend      # on a GPU
"""
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import record  # noqa: E402

CONTENDERS = ("dart", "trl")


def reward_of(text: str) -> float:
    return sum(map(str.isdigit, text)) / max(1, len(text))


def ours(args, student, rows) -> dict:
    import bitsandbytes as bnb
    import peft

    import dart
    how = dart.Args(prompts=args.prompts, group=args.group, max_new_tokens=args.new_tokens, micro_batch=args.micro_batch)
    model = peft.get_peft_model(student.model, peft.LoraConfig(
        r=how.lora_rank, lora_alpha=how.lora_alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    student = student._replace(model=model, stop_ids=frozenset({-1}))
    optimizer = bnb.optim.PagedAdamW8bit([p for p in model.parameters() if p.requires_grad], lr=how.rl_lr, weight_decay=0.0)

    def rate(drawn, outs):
        return [{"reward": reward_of(out["response"]), "is_right": False, "align": 0.0} for out in outs]
    task, seconds, memory = dart.Task("mapper", lambda row: dart.question(row["problem"]), rate), [], record.Memory()
    for step in range(1, args.steps + 2):
        started = time.time()
        row, _ = dart.grpo_step(how, student, optimizer, task, dart.rows_of_step(how, task, rows, step), how.beta, step)
        seconds.append(round(time.time() - started, 2))
        assert row["generated"] == args.prompts * args.group * args.new_tokens
    return {"seconds": seconds, **memory.found()}


def of_trl(args, student, rows) -> dict:
    import peft
    import torch
    import transformers
    import trl
    from datasets import Dataset

    import dart
    how, times = dart.Args(), []
    student.model.generation_config.eos_token_id = None
    student.tokenizer.eos_token = student.tokenizer.convert_ids_to_tokens(5)  # one that is not written
    n = args.prompts * args.group
    config = trl.GRPOConfig(
        output_dir=record.scratch(), per_device_train_batch_size=args.micro_batch, gradient_accumulation_steps=n // args.micro_batch,
        num_generations=args.group, max_completion_length=args.new_tokens, beta=how.beta, learning_rate=how.rl_lr,
        lr_scheduler_type="constant", max_steps=args.steps + 1, weight_decay=0.0, max_grad_norm=how.max_grad_norm, optim="paged_adamw_8bit",
        use_vllm=False, bf16=torch.cuda.is_available(), use_cpu=not torch.cuda.is_available(), gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False}, logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True, seed=0)
    lora = peft.LoraConfig(r=how.lora_rank, lora_alpha=how.lora_alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            times.append(time.time())

        def on_step_end(self, *_, **__):
            times.append(time.time())

    def reward(completions, **_):
        return [reward_of(one[0]["content"]) for one in completions]
    memory = record.Memory()
    data = Dataset.from_list([{"prompt": dart.question(row["problem"])} for row in rows])
    trainer = trl.GRPOTrainer(model=student.model, reward_funcs=reward, args=config, train_dataset=data, processing_class=student.tokenizer,
                              peft_config=lora, callbacks=[Clock()])
    started = time.time()
    trainer.train()
    ends = [started, *times[1::2]]  # rollouts are made before a step begins
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    return {"seconds": [round(b - a, 2) for a, b in zip(ends, ends[1:], strict=False)], **memory.found(), "mean_lengths": lengths}


def main() -> None:
    parser = record.parser(__doc__, "grpo")
    parser.add_argument("--pretend", action="store_true", help="made-up rows: for times alone")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    if not args.who:
        record.checkpoint(args.model)
        record.contend(args, __file__, CONTENDERS)
        return
    import common
    rows = record.pretend_problems(32) if args.pretend else record.problems(32, 800)
    student = common.load_student(record.checkpoint(args.model))
    found = (ours if args.who == "dart" else of_trl)(args, student, rows)
    found["s_per_step"] = round(statistics.fmean(found["seconds"][1:] or found["seconds"]), 2)
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
