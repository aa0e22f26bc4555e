"""Loading, sampling and training a real 4-bit student: against transformers' own computations."""
import json
import random
import re
import textwrap

import pytest
import torch

import common
import stat_sel
from stat_sel import Args, question
from tests import started
from tests.conftest import ROOT


@pytest.fixture
def student(small_world):
    return common.load_student(str(small_world / "student"))


def chat(problem, response):
    return stat_sel.question(problem) + [{"role": "assistant", "content": response}]


def prompt_of(student, problem):
    return common.prompt_ids(student.tokenizer, stat_sel.question(problem))


@pytest.fixture
def rows(small_world):
    return common.load(str(small_world), "train")


@pytest.fixture
def pairs(student, rows):
    return [stat_sel.encode(student, chat(row["problem"], row["solution"]), 200) for row in rows[:12]]


def with_lora(student, dropout=0.0, checkpointing=False):
    from peft import LoraConfig, get_peft_model
    torch.manual_seed(0)
    model = get_peft_model(student.model, LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", init_lora_weights=False))
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_it_is_really_four_bit(student):
    import bitsandbytes as bnb
    linear = [m for m in student.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(linear) == 2 * 7 and all(m.weight.quant_state.quant_type == "nf4" for m in linear)
    assert not any(p.requires_grad for p in student.model.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_completion_loss_equals_the_plain_loss(student, pairs, checkpointing):
    model = with_lora(student, checkpointing=checkpointing)
    pairs = pairs * (1 + 512 // sum(len(ids) - n for ids, n in pairs))  # more than the logits that are made at a time
    assert sum(len(ids) - n for ids, n in pairs) > 512
    ours = stat_sel.completion_loss(model, pairs, student.device)
    our_gradients = gradients(model, ours)
    # The plain way: all logits, transformers' own loss, one pair at a time, without padding.
    plain = 0.0
    for ids, n in pairs:
        labels = torch.tensor([[-100] * n + ids[n:]])
        plain = plain + model(input_ids=torch.tensor([ids]), labels=labels).loss * (len(ids) - n)
    plain_gradients = gradients(model, plain)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    assert our_gradients.keys() == plain_gradients.keys() and len(our_gradients) == 2 * 14
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-3, atol=1e-4)


def test_the_loss_does_not_depend_on_padding_or_on_the_prompt_tokens(student, pairs):
    model = with_lora(student)
    together = stat_sel.completion_loss(model, pairs, student.device).item()
    apart = sum(stat_sel.completion_loss(model, [pair], student.device).item() for pair in pairs)
    assert together == pytest.approx(apart, rel=1e-5)


def test_the_end_token_is_trained_even_where_it_is_the_padding_token(student, rows):
    ids, n = stat_sel.encode(student, chat(rows[0]["problem"], "\\boxed{1}"), 200)
    assert ids[-1] == student.tokenizer.eos_token_id and ids[-1] in student.stop_ids
    student.tokenizer.pad_token = student.tokenizer.eos_token
    again = stat_sel.encode(student, chat(rows[0]["problem"], "\\boxed{1}"), 200)
    assert again == (ids, n)
    model = with_lora(student)
    cut = (ids[:-1], n)
    assert stat_sel.completion_loss(model, [(ids, n)], student.device) > stat_sel.completion_loss(model, [cut], student.device)


def test_a_pair_whose_answer_is_cut_away_is_left_out(student, rows):
    row = chat(rows[0]["problem"], rows[0]["solution"])
    ids, n = stat_sel.encode(student, row, 10_000)
    assert stat_sel.encode(student, row, n) is None
    assert stat_sel.encode(student, row, n + 1) == (ids[:n + 1], n)


def test_answering_and_training_see_the_same_prompt(student, rows):
    prompt = prompt_of(student, rows[0]["problem"])
    ids, n = stat_sel.encode(student, chat(rows[0]["problem"], "x"), 10_000)
    assert ids[:n] == prompt
    messages = [{"role": "user", "content": stat_sel.STUDENT_PROMPT.format(problem=rows[0]["problem"])}, {"role": "assistant", "content": "x"}]
    assert ids == student.tokenizer(student.tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False).input_ids


def test_gradients_survive_a_generation(student, pairs):
    """On CPUs with AVX512-BF16 an unguarded 4-bit layer repacks itself in a forward pass without gradients, and trains wrongly ever after."""
    model = with_lora(student)
    before = gradients(model, stat_sel.completion_loss(model, pairs, student.device))
    common.sample(student._replace(model=model), [ids[:n] for ids, n in pairs], 0.0, 8, seed=0)
    after = gradients(model.train(), stat_sel.completion_loss(model, pairs, student.device))
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        assert torch.equal(gradient, after[name]), name


def test_the_guard_is_needed_where_the_cpu_repacks(student, pairs):
    import bitsandbytes as bnb
    layer = next(m for m in student.model.modules() if isinstance(m, bnb.nn.Linear4bit))
    if not (hasattr(layer, "support_avx512bf16_for_cpu") and bnb.nn.modules.has_avx512bf16()):
        pytest.skip("this CPU does not repack 4-bit weights, so the fault that the guard prevents cannot be shown here")
    for module in student.model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = True
    model = with_lora(student)
    before = gradients(model, stat_sel.completion_loss(model, pairs, student.device))
    common.sample(student._replace(model=model), [ids[:n] for ids, n in pairs], 0.0, 4, seed=0)
    after = gradients(model.train(), stat_sel.completion_loss(model, pairs, student.device))
    assert any(not torch.allclose(before[name], after[name], rtol=0.05) for name in before)


def test_greedy_answers_equal_those_of_generate(student, rows):
    """Batched, left-padded, with rows leaving, against transformers' generate one by one."""
    prompts = [prompt_of(student, row["problem"]) for row in rows[:40]]
    ours = common.sample(student, prompts, 0.0, 60, seed=0)
    assert len({out["n_tokens"] for out in ours}) > 3  # they end at different steps, so rows did leave
    for prompt, out in zip(prompts, ours, strict=True):
        theirs = student.model.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False, max_new_tokens=60,
            eos_token_id=sorted(student.stop_ids))[0, len(prompt):]
        assert out["response"] == student.tokenizer.decode(theirs, skip_special_tokens=True)
        assert out["cut_off"] == (theirs[-1].item() not in student.stop_ids) and out["tokens"] == theirs.tolist()


def test_sampling_follows_the_softmax_without_top_k(student, rows):
    prompt, temperature, n = prompt_of(student, rows[0]["problem"]), 6.0, 8000
    p = (student.model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
    draws = common.sample(student, [prompt] * n, temperature, 1, seed=1)
    text_p = {}
    for token, probability in enumerate(p.tolist()):
        text = "" if token in student.stop_ids else student.tokenizer.decode([token], skip_special_tokens=True)
        text_p[text] = text_p.get(text, 0) + probability
    counts = {}
    for out in draws:
        counts[out["response"]] = counts.get(out["response"], 0) + 1
    frequent = {text: q for text, q in text_p.items() if q * n >= 10}
    statistic = sum((counts.get(text, 0) - n * q) ** 2 / (n * q) for text, q in frequent.items())
    assert len(frequent) > 60 and statistic < len(frequent) + 5 * (2 * len(frequent)) ** 0.5
    again = common.sample(student, [prompt] * 50, temperature, 5, seed=2)
    assert again == common.sample(student, [prompt] * 50, temperature, 5, seed=2) != common.sample(student, [prompt] * 50, temperature, 5, seed=3)


def test_every_end_token_stops(student, rows, monkeypatch):
    prompt = prompt_of(student, rows[0]["problem"])
    first = common.sample(student, [prompt], 0.0, 5, seed=0)[0]["response"]
    token = student.tokenizer(first, add_special_tokens=False).input_ids[0]
    out = common.sample(student._replace(stop_ids=student.stop_ids | {token}), [prompt], 0.0, 5, seed=0)[0]
    assert out == {"response": "", "cut_off": False, "n_tokens": 0, "tokens": [token], "is_open": False}


def open_answers(tmp_path, name, size, limit=40):
    args = Args(out=str(tmp_path / name), sample_batch=size, max_new_tokens=limit)
    return args, common.open_run(args, args.out)


def test_answers_in_rounds_are_those_of_plain_sampling(student, rows, tmp_path):
    """Token by token at temperature 0, whatever the batch; each once, in the same order; and no file of a round stays."""
    plain = [common.sample(student, [prompt_of(student, row["problem"])], 0.0, 40, seed=0)[0] for row in rows[:50]]
    lengths = sorted(out["n_tokens"] for out in plain)
    assert lengths[0] < lengths[-1]  # else no answer would be put aside
    for size in (7, 16):
        args, run = open_answers(tmp_path, f"by-{size}", size)
        found = common.answer(args, run, "1_answers.jsonl", lambda: student, rows[:50], question, 0.0, n=2)
        assert [[one["sample"] for one in outs] for outs in found.values()] == [[0, 1]] * 50
        for row, out in zip(rows[:50], plain, strict=True):
            one, two = ({k: v for k, v in got.items() if k not in ("id", "sample", "run_on")} for got in found[row["id"]])
            assert one == two == {k: out[k] for k in ("response", "cut_off", "n_tokens")} and not found[row["id"]][0]["run_on"]
        assert not list(run.path.glob("*round*")) and (run.path / "1_answers.jsonl").exists()


def test_begun_answers_go_on_where_they_were(student, rows):
    prompts = [prompt_of(student, row["problem"]) for row in rows[:12]]
    whole = common.sample(student, prompts, 0.0, 40, seed=0)
    halves = common.sample(student, prompts, 0.0, 40, seed=0, leave=0.5)
    left = [i for i, out in enumerate(halves) if out["is_open"]]
    assert 0 < len(left) <= 6 and all(halves[i] == whole[i] for i in range(12) if i not in left)
    rest = common.sample(student, [prompts[i] for i in left], 0.0, 40, 1, [halves[i]["tokens"] for i in left])
    assert rest == [whole[i] for i in left]
    cut = common.sample(student, prompts, 0.0, 3, seed=0)
    assert all(out["n_tokens"] <= 3 and out["cut_off"] == (out["tokens"][-1] not in student.stop_ids) for out in cut)
    assert not any(out["is_open"] for out in cut)  # at the limit an answer is done


def test_a_kill_between_rounds_changes_nothing(student, rows, tmp_path, monkeypatch):
    """Stopped in the third batch and in the last, at temperature 1: the same answers, and only the batch it was in is made again."""
    class Killed(BaseException):
        pass
    real, calls, dies_at = common.sample, [], []

    def sample(*given):
        calls.append(given)
        if len(calls) in dies_at:
            raise Killed
        return real(*given)
    monkeypatch.setattr(common, "sample", sample)

    def answers(name):
        args, run = open_answers(tmp_path, name, 8)
        try:
            return common.answer(args, run, "1_answers.jsonl", lambda: student, rows[:40], question, 1.0)
        finally:
            run.lock.release()
    whole = answers("whole")
    n_batches = len(calls)
    assert n_batches > 5  # 40 answers by 8, and at least one more round
    calls.clear()
    dies_at += [3, n_batches + 1]
    for _ in dies_at:
        with pytest.raises(Killed):
            answers("killed")
    assert answers("killed") == whole and len(calls) == n_batches + 2


def test_fewer_than_half_of_the_steps_on_lengths_as_of_math(student, rows, tmp_path, monkeypatch, capsys):
    """A step is one token for a batch. Lengths: log-normal about 250 tokens, and 5 % of answers that run to the limit of 2,048."""
    rng = random.Random(0)
    lengths = {f"q{i}": 2048 if rng.random() < 0.05 else min(2048, int(rng.lognormvariate(5.5, 0.6))) for i in range(960)}
    steps = []

    def simulated(student, prompts, temperature, limit, seed, begun, leave):
        left = [lengths[prompt] - len(tokens) for prompt, tokens in zip(prompts, begun, strict=True)]
        n = sorted(left)[len(left) - 1 - int(leave * len(left))]
        steps.append(n)
        return [{"response": "", "cut_off": False, "n_tokens": 0, "tokens": tokens + [0] * min(n, more), "is_open": more > n}
                for more, tokens in zip(left, begun, strict=True)]
    monkeypatch.setattr(common, "sample", simulated)
    monkeypatch.setattr(common, "prompt_ids", lambda tokenizer, chat: chat)
    asked = [{"id": i, "problem": i} for i in lengths]
    args, run = open_answers(tmp_path, "run", 32, 2048)
    common.answer(args, run, "1_answers.jsonl", lambda: student, asked, lambda problem: problem, 0.1)
    order = sorted(lengths, key=lambda i: (len(i), i))
    before = sum(max(lengths[i] for i in order[at:at + 32]) for at in range(0, 960, 32))
    with capsys.disabled():
        print(f"\nsteps of 960 answers: {before} in whole batches, {sum(steps)} in rounds")
    assert sum(steps) < before / 2


@pytest.mark.parametrize("text, kept", [
    ("So \\boxed{4}.\n\nQuestion: What is 3+3?\nIt is \\boxed{6}.", "So \\boxed{4}."),
    ("The answer is 4.\n\nProblem 2. Find 3+3.\n\\boxed{6}", "The answer is 4."),
    ("So \\boxed{4}.\n### Problem:\nFind 3+3.", "So \\boxed{4}."), ("So \\boxed{4}.\nHuman: thanks", "So \\boxed{4}."),
    ("So \\boxed{4}.<|im_start|>user\nFind 3+3.", "So \\boxed{4}."), ("So \\boxed{4}.\nNext problem: 1+1", "So \\boxed{4}."),
    ("Question: What is 2+2?\nIt is \\boxed{4}.", None),  # said again before there is an answer
    ("Problem 1: 2+2\nProblem 2: 3+3\nSo \\boxed{4}.", None),
    ("It is \\boxed{4}.\n\nQ = 5. The question is done.", None), ("So \\boxed{4}.\n\nWe check the problem: 2+2 = 4.", None), ("", None)])
def test_an_invented_question_is_cut(text, kept):
    assert common.cut_run_on(text) == (text if kept is None else kept)


def test_two_end_tokens_are_found(small_world, tmp_path):
    """As in Qwen2.5's base models: the template ends a turn with another token than the tokenizer's end of text."""
    import shutil
    shutil.copytree(small_world / "student", tmp_path / "student")
    template = tmp_path / "student" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|end|>", "<|user|>\n"))
    config = json.loads((tmp_path / "student" / "generation_config.json").read_text())
    (tmp_path / "student" / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [1, 7]}))
    student = common.load_student(str(tmp_path / "student"))
    user = student.tokenizer.convert_tokens_to_ids("<|user|>")
    assert student.stop_ids == {1, 7, user} and student.end == "<|end|>"  # trained with the one that the weights know
    assert stat_sel.encode(student, chat("p", "r"), 100)[0][-1] == 1


def test_tokenizer_survives_saving(student, rows):
    text = rows[0]["problem"] + " é☃ \\frac{1}{2}\n\n x"
    ids = student.tokenizer(text, add_special_tokens=False).input_ids
    assert student.tokenizer.decode(ids) == text and student.tokenizer.padding_side == "left"


TRAINING = """
    import sys; sys.path.insert(0, {root!r})
    import common, stat_sel, torch
    torch.set_num_threads(1)
    args = stat_sel.Args(student={student!r}, out=sys.argv[1], epochs=3, batch=8, micro_batch=4)
    rows = [{{"messages": stat_sel.question(r["problem"]) + [{{"role": "assistant", "content": r["solution"]}}]}}
            for r in common.load({data!r}, "train")[:60]]
    stat_sel.train(args, common.open_run(args, args.out), common.load_student(args.student), rows, "arm", 1e-3)
"""


def test_a_killed_training_goes_on_bit_for_bit(small_world, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TRAINING.format(root=str(ROOT), student=str(small_world / "student"), data=str(small_world))))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert started.run(script, whole).returncode == 0
    started.killed('"train": "arm", "epoch": 1', script, killed)
    assert (killed / "adapter" / "arm.checkpoint.pt").exists() and not (killed / "adapter" / "arm").exists()  # it was killed between two epochs
    assert started.run(script, killed).returncode == 0
    assert (whole / "loss_arm.jsonl").read_bytes() == (killed / "loss_arm.jsonl").read_bytes()
    one, two = ((run / "adapter" / "arm" / "adapter_model.safetensors").read_bytes() for run in (whole, killed))
    assert one == two
    losses = [json.loads(line)["loss"] for line in (whole / "loss_arm.jsonl").read_text().splitlines()]
    assert len(losses) == 3 * 8 and sum(losses[16:]) < sum(losses[:8])


def test_a_training_goes_on_with_fewer_gpus(small_world, rows, tmp_path, monkeypatch):
    """Simulated: two cards when it was killed, one now."""
    args = Args(student=str(small_world / "student"), out=str(tmp_path / "run"), epochs=2, batch=8, micro_batch=8)
    run, given, save = common.open_run(args, args.out), [], common.save
    states = [torch.full((16,), i, dtype=torch.uint8) for i in range(2)]
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", given.extend)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def save_and_stop(*what):
        save(*what)
        raise KeyboardInterrupt
    monkeypatch.setattr(common, "save", save_and_stop)
    pairs = [{"messages": chat(r["problem"], r["solution"])} for r in rows[:8]]
    with pytest.raises(KeyboardInterrupt):
        stat_sel.train(args, run, common.load_student(args.student), pairs, "arm", 1e-3)
    monkeypatch.setattr(common, "save", save)
    stat_sel.train(args, run, common.load_student(args.student), pairs, "arm", 1e-3)
    assert len(run.read("loss_arm.jsonl")) == 2 and len(given) == 1 and torch.equal(given[0], states[0])


def test_micro_batches_do_not_change_the_training(small_world, rows, tmp_path):
    finals = []
    for micro in (8, 3):
        args = Args(student=str(small_world / "student"), out=str(tmp_path / str(micro)), epochs=1, batch=8, micro_batch=micro,
                    lora_dropout=0.0, checkpointing=micro == 3)
        run = common.open_run(args, args.out)
        pairs = [{"messages": chat(r["problem"], r["solution"])} for r in rows[:24]]
        stat_sel.train(args, run, common.load_student(args.student), pairs, "arm", 1e-3)
        finals.append([row["loss"] for row in run.read("loss_arm.jsonl")])
    assert finals[0] == pytest.approx(finals[1], rel=1e-3)


def test_the_saved_adapter_gives_the_same_answers(small_world, rows, tmp_path):
    args = Args(student=str(small_world / "student"), out=str(tmp_path / "run"), epochs=1, batch=8, micro_batch=8)
    student = common.load_student(args.student)
    prompts = [prompt_of(student, row["problem"]) for row in rows[:20]]
    base = common.sample(student, prompts, 0.0, 30, seed=0)
    stat_sel.train(args, common.open_run(args, args.out), student, [{"messages": chat(r["problem"], r["solution"])} for r in rows[:40]], "arm", 3e-3)
    trained = common.sample(student, prompts, 0.0, 30, seed=0)  # the LoRA layers went into this very model
    loaded = common.load_student(args.student, tmp_path / "run" / "adapter" / "arm")
    assert common.sample(loaded, prompts, 0.0, 30, seed=0) == trained != base


def test_training_goes_on_from_an_adapter(small_world, rows, tmp_path):
    """The second training starts where the first ended: at its loss, with its weights; and it leaves the first one's files alone."""
    from safetensors.torch import load_file
    pairs = [{"messages": chat(r["problem"], r["solution"])} for r in rows[:24]]
    first = Args(student=str(small_world / "student"), out=str(tmp_path / "one"), epochs=3, batch=8, lora_dropout=0.0, lora_rank=4)
    runs = [common.open_run(first, first.out)]
    stat_sel.train(first, runs[0], common.load_student(first.student), pairs, "arm", 3e-3)
    adapter = tmp_path / "one" / "adapter" / "arm"
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    second = Args(student=first.student, adapter=str(adapter), out=str(tmp_path / "two"), epochs=1, batch=24, lora_dropout=0.0, lora_rank=16)
    runs.append(common.open_run(second, second.out))
    stat_sel.train(second, runs[1], common.load_student(second.student, second.adapter), pairs, "arm", 1e-6)
    before, after = (run.read("loss_arm.jsonl") for run in runs)
    assert after[0]["loss"] < sum(row["loss"] for row in before[:3]) / 3
    old, new = (load_file(path / "adapter_model.safetensors") for path in (adapter, tmp_path / "two" / "adapter" / "arm"))
    assert old.keys() == new.keys()
    for name in old:  # rank 4, as the adapter says; one step at a tiny rate
        torch.testing.assert_close(old[name], new[name], rtol=0, atol=1e-5)
    assert (adapter / "adapter_model.safetensors").read_bytes() == weights


def test_an_adapter_that_does_not_fit(small_world, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(common.UserError, match="--adapter .*can't be loaded"):
        common.load_student(str(small_world / "student"), tmp_path / "empty")


def test_merging_on_the_dequantised_base_keeps_the_answers(small_world, rows, tmp_path):
    """The README's way; merging into 4-bit weights would round the adapter away."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    args = Args(student=str(small_world / "student"), out=str(tmp_path / "run"), epochs=2, batch=8, micro_batch=8)
    student = common.load_student(args.student)
    stat_sel.train(args, common.open_run(args, args.out), student, [{"messages": chat(r["problem"], r["solution"])} for r in rows[:40]], "arm", 3e-3)
    plain = common.load_student(args.student).model.dequantize()
    PeftModel.from_pretrained(plain, tmp_path / "run" / "adapter" / "arm").merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert not hasattr(merged.config, "quantization_config")
    ids = torch.tensor([prompt_of(student, rows[0]["problem"])])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, student.model.eval()(ids).logits, rtol=1e-3, atol=1e-3)
    tested = common.load_student(args.student, tmp_path / "run" / "adapter" / "arm", merged=True)  # --test-weights merged
    assert not any("lora" in name or weight.dtype == torch.uint8 for name, weight in tested.model.named_parameters())
    prompts = [prompt_of(student, row["problem"]) for row in rows[:20]]
    assert common.sample(tested, prompts, 0.0, 30, seed=0) == common.sample(student, prompts, 0.0, 30, seed=0)
    base = common.load_student(args.student, merged=True)
    assert common.sample(base, prompts, 0.0, 30, seed=0) == common.sample(common.load_student(args.student), prompts, 0.0, 30, seed=0)


@pytest.mark.parametrize("flag, file", [("--student", "config.json"), ("--adapter", "adapter_config.json")])
def test_a_checkpoint_that_is_not_there(tmp_path, flag, file):
    (tmp_path / "empty").mkdir()
    for name in (str(tmp_path / "no"), "./no", "no", str(tmp_path / "empty")):
        with pytest.raises(common.UserError, match=f"^{flag} {re.escape(name)}: no such folder, or no {file} in it"):
            common.check_checkpoint(name, flag)
    with pytest.raises(common.UserError, match="can't be loaded"):
        common.load_student(str(tmp_path / "empty"))
    common.check_checkpoint(None, flag)


def test_names_on_the_hub_are_asked_for_at_once(monkeypatch):
    import huggingface_hub
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args: asked.append(args))
    common.check_checkpoint("x/y", "--student")
    common.check_checkpoint("x/y", "--adapter")
    assert asked == [("x/y", "config.json"), ("x/y", "adapter_config.json")]

    def gated(*args, **kwargs):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it at https://huggingface.co/x/y. 401 Client Error.")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", gated)
    with pytest.raises(common.UserError, match="--prm x/y can't be loaded: the weights are gated: accept their licence"):
        common.check_checkpoint("x/y", "--prm")


def test_weights_without_a_vocabulary_are_refused(small_world, tmp_path):
    """As a reward model with a head of its own: its marks would come from a head drawn at random."""
    import shutil

    from safetensors.torch import load_file, save_file
    shutil.copytree(small_world / "student", tmp_path / "headless")
    config = json.loads((tmp_path / "headless" / "config.json").read_text())
    (tmp_path / "headless" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    weights = {name: w for name, w in load_file(tmp_path / "headless" / "model.safetensors").items() if "lm_head" not in name}
    save_file(weights, tmp_path / "headless" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(common.UserError, match="--prm .*lm_head"):
        common.load_4bit(str(tmp_path / "headless"), "--prm")
