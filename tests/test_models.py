"""Real models of small size: step rewards and embeddings against the naive way, sampling against generate, and what is refused at load."""
import dataclasses
import json
import random
import re
import time

import peft
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import common
import stat_sel

# Of Llama 3's form: headers, a date, turns that end in a token of their own.
TEMPLATE = (
    "{{ '<|begin|>' }}{% for m in messages %}{% if loop.first %}{{ '<|head|>system<|/head|>\n\nToday: ' + date_string + '<|eot|>' }}{% endif %}"
    "{{ '<|head|>' + m.role + '<|/head|>\n\n' + m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}")


SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 4096, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 3}


def make_tokenizer(template=TEMPLATE, eos="<|eot|>", more=()):
    """A token for each byte, after the special ones."""
    specials = ["<|begin|>", "<|head|>", "<|/head|>", "<|eot|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(specials + alphabet)}, merges=[]))
    tok.add_special_tokens([*specials, *more])
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<|begin|>", eos_token=eos, chat_template=template)


def make_model(folder, config=LlamaConfig, tokenizer=None, dtype=torch.float32, **more):
    """A random checkpoint of the kind of `config`: 4 layers of width 64."""
    torch.manual_seed(0)
    config = config(**{"vocab_size": 260, **SIZES, **more}) if isinstance(config, type) else config
    transformers.AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return str(folder)


def make_prm(folder, template=TEMPLATE):
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=260, **SIZES | {"num_hidden_layers": 2})).save_pretrained(folder)
    make_tokenizer(template).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def prm(tmp_path_factory):
    return make_prm(tmp_path_factory.mktemp("prm"))


def cases():
    rng = random.Random(0)
    def text(n):
        return "".join(rng.choice("abc 123+-=\\é") for _ in range(n)).strip() or "x"
    return [(text(20), [text(rng.randint(1, 60)) for _ in range(n)]) for n in (1, 2, 7, 3, 1, 5)]


def step_by_step(model, tokenizer, problem, steps):
    """As the reward model's own usage has it: a forward pass over the whole chat for every step, all logits, the softmax over two marks."""
    plus, minus = tokenizer.convert_tokens_to_ids("+"), tokenizer.convert_tokens_to_ids("-")
    chat, rewards = [], []
    for i, step in enumerate(steps):
        chat += [{"role": "user", "content": (problem + " " if i == 0 else "") + step}, {"role": "assistant", "content": "+"}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, date_string="26 Jul 2024")
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        assert ids[0, -2] == plus  # then the end of the turn; so the third last position predicts the mark
        with torch.no_grad():
            logits = model(ids).logits[0, -3].float()
        rewards.append((logits[plus].exp() / (logits[plus].exp() + logits[minus].exp())).item())
    return rewards


def test_one_pass_equals_a_pass_per_step(prm):
    model, tokenizer = common.load_4bit(prm, "--prm")
    naive = [step_by_step(model, tokenizer, *case) for case in cases()]
    assert len({round(r, 3) for rewards in naive for r in rewards}) > 10  # a random model that tells steps apart
    together = stat_sel.score_steps(model, tokenizer, cases())  # one padded batch
    apart = [stat_sel.score_steps(model, tokenizer, [case])[0] for case in cases()]
    for one, two, three in zip(naive, together, apart, strict=True):
        assert one == pytest.approx(two, abs=2e-4) and one == pytest.approx(three, abs=2e-4)


def test_a_run_keeps_its_rewards_and_goes_on(prm, tmp_path, monkeypatch):
    from dataclasses import make_dataclass, replace
    answered = [({"id": f"q{i}", "problem": problem}, "\n\n".join(steps)) for i, (problem, steps) in enumerate(cases())]
    args = make_dataclass("Args", ["prm", "prm_batch"])(prm, 4)
    rows, answers = [row for row, _ in answered], {row["id"]: text for row, text in answered}
    runs = [common.open_run(args, tmp_path / name) for name in ("one", "two")]
    whole = stat_sel.step_rewards(args, runs[0], rows, answers)
    assert whole.keys() == {row["id"] for row, _ in answered}
    score, calls = stat_sel.score_steps, []

    def dies_at_the_second_batch(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(*given)
    monkeypatch.setattr(stat_sel, "score_steps", dies_at_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        stat_sel.step_rewards(args, runs[1], rows, answers)
    assert stat_sel.step_rewards(args, runs[1], rows, answers) == whole and len(calls) == 3
    assert stat_sel.step_rewards(replace(args, prm="nowhere"), runs[1], rows, answers) == whole  # it is there: no model is loaded


@pytest.mark.parametrize("template", [
    TEMPLATE.replace("m.content | trim", "(m.content if loop.last else '')"),  # forgets earlier turns, as those of thinking models do
    TEMPLATE.replace("m.content | trim", "(' ' if m.role == 'assistant' else '') + m.content")])  # another token than the one asked for
def test_a_template_that_changes_earlier_turns_is_refused(tmp_path, template):
    model, tokenizer = common.load_4bit(make_prm(tmp_path, template), "--prm")
    tokenizer.add_tokens([" +"])
    with pytest.raises(common.UserError, match="--prm: its chat template"):
        stat_sel.score_steps(model, tokenizer, cases())


@pytest.mark.parametrize("response, steps", [
    ("One.\n\nTwo.\n \n\n Three. ", ["One.", "Two.", "Three."]),
    ("a=1\nb=2", ["a=1", "b=2"]),
    ("one line", ["one line"]),
    ("a\nb\n\nc", ["a\nb", "c"]),  # blank lines first: then single ones do not cut
    ("Then\n\\[\nx=1\n\\]\nso", ["Then", "\\[\nx=1\n\\]", "so"]),
    ("A\n\n$$\nx\n\ny\n$$\n\nB", ["A", "$$\nx\n\ny\n$$", "B"]),
    ("A\n\n\\begin{align*}\nx\\\\[2pt]\n\ny\n\\end{align*}\n\nB", ["A", "\\begin{align*}\nx\\\\[2pt]\n\ny\n\\end{align*}", "B"]),
    ("A\n\n\\[ x\n\ny", ["A", "\\[ x\n\ny"]),  # cut off inside a formula
    ("So \\boxed{5}.", ["So \\boxed{5}.", "The final answer is: \\boxed{5}."]),
    ("", [""]), ("\n\n", [""])])
def test_split_steps(response, steps):
    assert stat_sel.split_steps(response) == steps


def test_a_chat_of_many_steps_is_made_in_linear_time(prm):
    tokenizer = common.load_4bit(prm, "--prm")[1]
    step = "We add 3 + 4 = 7, and so the next number of the row is 7."
    assert len(stat_sel.chat_of_steps(tokenizer, "\ue000 What is next?\ue000", [f"\ue000{step}"])[1]) == 1  # our mark in a text
    seconds = []
    for n in (100, 800):
        started = time.process_time()
        ids, at = stat_sel.chat_of_steps(tokenizer, "What is next?", [step] * n)
        seconds.append(time.process_time() - started)
        assert len(at) == n and [ids[i + 1] for i in at[:-1]] == [tokenizer.convert_tokens_to_ids("+")] * (n - 1)
    assert seconds[1] < 24 * seconds[0]  # eight times as many; in quadratic time 64 times


def test_an_adapter_of_another_model_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen2.5-3B"}')
    with pytest.raises(common.UserError, match="trained on Qwen/Qwen2.5-3B, not on --student Qwen/Qwen2.5-3B-Instruct"):
        common.load_student("Qwen/Qwen2.5-3B-Instruct", tmp_path)


# --- What is loaded gives generate's answers, or is refused. ---------------------------------------------------------------------------------
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "head_dim": 16}
HYBRIDS = {
    "Lfm2Config": {"full_attn_idxs": [1, 3]},
    "Qwen3NextConfig": LINEAR | {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "Qwen3_5TextConfig": LINEAR,
    "FalconH1Config": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16},
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "use_mamba_kernels": False},
    "BambaConfig": {"attn_layer_indices": [1, 3], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16},
    "RecurrentGemmaConfig": {"lru_width": 64, "attention_window_size": 16},
    "MambaConfig": {}}


@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_memory_that_cannot_drop_answers_is_refused(tmp_path, kind):
    path = make_model(tmp_path, getattr(transformers, kind), **HYBRIDS[kind])
    with pytest.raises(common.UserError, match="^--student .*: not all its layers are attention"):
        common.load_student(path)


@pytest.mark.parametrize("kind, more", [
    ("LlamaConfig", {}), ("MistralConfig", {"sliding_window": 8}), ("Phi3Config", {"sliding_window": 8}),
    ("Gemma3TextConfig", {"sliding_window": 8, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    ("Qwen2Config", {"vocab_size": 261, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    ("GraniteConfig", {"logits_scaling": 1.0})])
def test_greedy_answers_equal_those_of_generate(tmp_path, kind, more):
    """Prompts of unequal length, beyond the window too, in one left-padded batch that rows leave at different times."""
    student = common.load_student(make_model(tmp_path, getattr(transformers, kind), **more))
    # Each prompt's own answer decides where it ends: at its third, sixth, ... token.
    prompts = [common.prompt_ids(student.tokenizer, [{"role": "user", "content": "x" * n + str(n)}]) for n in (1, 30, 7, 3, 17, 40)]
    whole = common.sample(student._replace(stop_ids=frozenset({3})), prompts, 0.0, 24, seed=0)
    ends = {out["tokens"][min(3 * i + 2, len(out["tokens"]) - 1)] for i, out in enumerate(whole)}
    student = student._replace(stop_ids=frozenset(ends))
    for prompt, out in zip(prompts, common.sample(student, prompts, 0.0, 24, seed=0), strict=True):
        theirs = student.model.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False, max_new_tokens=24,
            eos_token_id=sorted(ends))[0, len(prompt):]
        assert out["tokens"] == theirs.tolist()


GEMMA = {"head_dim": 16, "sliding_window": 8}
PER_LAYER = {"vocab_size_per_layer_input": 260, "hidden_size_per_layer_input": 8}


@pytest.mark.parametrize("kind, more", [
    ("Gemma2Config", GEMMA | {"final_logit_softcapping": 30.0}), ("GraniteConfig", {"logits_scaling": 8.0}), ("CohereConfig", {"logit_scale": 0.25}),
    ("NanoChatConfig", {}), ("Gemma4TextConfig", GEMMA | PER_LAYER | {"final_logit_softcapping": 3.0})])
@pytest.mark.parametrize("flag", ["--student", "--prm"])
def test_capped_or_rescaled_logits_are_refused(tmp_path, kind, more, flag):
    with pytest.raises(common.UserError, match=f"^{flag} .*: it caps or rescales its logits"):
        common.load_4bit(make_model(tmp_path, getattr(transformers, kind), **more), flag)


def test_a_cap_in_a_text_config_is_refused(tmp_path):
    def config(cap):
        text = SIZES | GEMMA | PER_LAYER | {"vocab_size": 260, "final_logit_softcapping": cap}
        text["layer_types"] = ["sliding_attention", "full_attention"] * 2
        return transformers.Gemma4Config(text_config=text, vision_config=None, audio_config=None)
    with pytest.raises(common.UserError, match="it caps or rescales its logits"):
        common.load_student(make_model(tmp_path / "capped", config(3.0)))
    common.load_student(make_model(tmp_path / "free", config(None)))


@pytest.mark.parametrize("kind, more", [
    ("Qwen3MoeConfig", {"head_dim": 16, "num_experts": 8, "moe_intermediate_size": 64}), ("MixtralConfig", {"num_local_experts": 4}),
    ("GptOssConfig", {"head_dim": 16, "num_local_experts": 4})])
def test_experts_that_stay_out_of_four_bits_are_refused(tmp_path, kind, more):
    with pytest.raises(common.UserError, match="it holds experts in one tensor"):
        common.load_student(make_model(tmp_path, getattr(transformers, kind), **more))


def test_a_cpu_computes_in_float32_whatever_the_checkpoint_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = make_model(tmp_path, dtype=torch.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    student = common.load_student(path)
    kinds = {p.dtype for p in student.model.parameters()}
    assert kinds == {torch.float32, torch.uint8}  # uint8: two weights of 4 bits
    quantised = [m for m in student.model.modules() if type(m).__name__ == "Linear4bit"]
    assert {m.compute_dtype for m in quantised} == {m.weight.quant_state.dtype for m in quantised} == {torch.float32}


def test_a_checkpoint_in_four_bits_computes_in_float32_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = make_model(tmp_path)
    nf4 = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    transformers.AutoModelForCausalLM.from_pretrained(path, quantization_config=nf4, dtype=torch.bfloat16).save_pretrained(path)
    model = common.load_student(path).model
    assert {p.dtype for p in model.parameters()} == {torch.float32, torch.uint8}
    quantised = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    assert {m.compute_dtype for m in quantised} == {m.weight.quant_state.dtype for m in quantised} == {torch.float32}


@pytest.mark.parametrize("file, text", [
    ("model.safetensors", "abc"), ("tokenizer.json", "{}"), ("tokenizer.json", "{"), ("config.json", "[]"), ("config.json", '{"model_type": "x"}')])
def test_a_broken_checkpoint_gets_one_sentence(tmp_path, file, text):
    path = make_model(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(common.UserError, match="^--student .* can't be loaded: [^\\n]+$"):
        common.load_student(path)


def test_weights_that_are_pickles_are_refused(tmp_path, small_world):
    student = small_world / "student"
    model = transformers.AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "model"))
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(common.UserError, match="^--student .* can't be loaded: .*safetensors"):
        common.load_student(str(tmp_path / "model"))
    adapted = peft.get_peft_model(common.load_student(str(student)).model, peft.LoraConfig(r=4, target_modules="all-linear"))
    adapted.save_pretrained(tmp_path / "adapter")
    common.load_student(str(student), tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    torch.save(peft.get_peft_model_state_dict(adapted), tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(common.UserError, match="^--adapter .* can't be loaded: .*safetensors"):
        common.load_student(str(student), tmp_path / "adapter")


def test_a_gpu_without_bfloat16_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(common.UserError, match="Tesla T4 lacks bfloat16"):
        common.load_student(str(tmp_path))


@dataclasses.dataclass(frozen=True)
class Batches:
    micro_batch: int = 1
    sample_batch: int = 32


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError(),
                                   RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
                                   RuntimeError("[enforce fail at alloc_cpu.cpp:125] DefaultCPUAllocator: can't allocate memory")])
def test_a_full_memory_names_the_flag_and_half_its_value(monkeypatch, capsys, error):
    def full(args):
        raise error
    monkeypatch.setattr("sys.argv", ["x"])
    with pytest.raises(SystemExit) as stop:
        common.cli(full, Batches, "")
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "--sample-batch 16 (now 32)" in err and "--micro-batch" not in err


# --- Templates and tokens. --------------------------------------------------------------------------------------------------------------------
QUESTION = [{"role": "user", "content": "q"}]


def shown(tokenizer, messages=QUESTION):
    return tokenizer.decode(common.prompt_ids(tokenizer, messages))


@pytest.mark.parametrize("date, text", [("date_string", "26 Jul 2024"), ("strftime_now('%d %B %Y')", "26 July 2024"),
                                        ("strftime_now('%Y-%m-%d')", "2024-07-26"),
                                        ("strftime_now('%A, %-d %b %y')", "Friday, 26 Jul 24")])
def test_a_template_that_prints_the_date_prints_a_fixed_one(date, text):
    assert f"Today: {text}<|eot|>" in shown(make_tokenizer(TEMPLATE.replace("date_string", date)))


@pytest.mark.parametrize("template, words", [
    ("{{ raise_exception('System role not supported') }}", "System role not supported"), ("{{ 1 + 'a' }}", "unsupported operand"),
    ("{% for %}", "Expected an expression"), ("{{ nowhere.to_be.found }}", "undefined")])
def test_a_template_that_refuses_a_chat_gets_one_sentence(template, words):
    with pytest.raises(common.UserError, match=f"refuses a chat: .*{words}"):
        common.prompt_ids(make_tokenizer(template), QUESTION)


def test_without_an_end_token_the_template_s_end_of_turn_is_taken(tmp_path):
    path = make_model(tmp_path / "turn", tokenizer=make_tokenizer(eos=None), eos_token_id=None)
    student = common.load_student(path)
    assert student.end == "<|eot|>" and student.stop_ids == {3}
    for template in (TEMPLATE.replace("<|eot|>", ""), TEMPLATE.replace("<|eot|>", "##")):
        path = make_model(tmp_path / "none", tokenizer=make_tokenizer(template, eos=None), eos_token_id=None)
        with pytest.raises(common.UserError, match="set eos_token"):
            common.load_student(path)


@pytest.mark.parametrize("flag", ["--student", "--prm"])
def test_a_token_of_ordinary_texts_without_an_embedding_is_refused(tmp_path, flag):
    with pytest.raises(common.UserError, match=f"^{flag} .*: its embedding has no row for token 259"):
        common.load_4bit(make_model(tmp_path, vocab_size=259), flag)


def test_a_token_of_the_template_without_an_embedding_is_refused(tmp_path):
    tokenizer = make_tokenizer(TEMPLATE.replace("<|eot|>", "<|a|>"), more=["<|a|>"])
    with pytest.raises(common.UserError, match="^--student .*: its embedding has no row for token 260"):
        common.load_student(make_model(tmp_path, tokenizer=tokenizer))


def test_a_token_for_images_may_lack_an_embedding_until_a_text_holds_it(tmp_path):
    student = common.load_student(make_model(tmp_path, tokenizer=make_tokenizer(more=["<|a|>", "<|b|>"])))
    common.sample(student, [common.prompt_ids(student.tokenizer, QUESTION)], 0.0, 2, seed=0)
    prompt = common.prompt_ids(student.tokenizer, [{"role": "user", "content": "what is <|b|>?"}])
    with pytest.raises(common.UserError, match="^its embedding has no row for token 261"):
        common.sample(student, [prompt], 0.0, 2, seed=0)


@pytest.mark.parametrize("opened, closed", [
    ("<think>\n", "<think>\n\n\n</think>\n\n"), ("<think>", "<think>\n\n</think>\n\n"), ("[THINK]", "[THINK]\n\n[/THINK]\n\n"),
    ("<seed:think>\n", "<seed:think>\n\n\n</seed:think>\n\n"), ("<thinking>\n", "<thinking>\n\n\n</thinking>\n\n"),
    ("<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n"), ("I think\n", "I think\n")])
def test_an_open_thought_is_closed_in_answering_and_training(tmp_path, opened, closed):
    template = TEMPLATE.replace("{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n'", "{% if add_generation_prompt %}{{ " + repr(
        f"<|head|>assistant<|/head|>\n\n{opened}"))
    student = common.load_student(make_model(tmp_path, tokenizer=make_tokenizer(template)))
    assert shown(student.tokenizer).endswith(f"assistant<|/head|>\n\n{closed}")
    ids, n = stat_sel.encode(student, [*QUESTION, {"role": "assistant", "content": "so 4"}], 1000)
    assert ids[:n] == common.prompt_ids(student.tokenizer, QUESTION) and student.tokenizer.decode(ids[n:]) == "so 4<|eot|>"


THINKING = TEMPLATE.replace("assistant<|/head|>\n\n'", "assistant<|/head|>\n\n' + ('' if enable_thinking | default(true) else '(none)')")


def test_template_kwargs_reach_answers_pairs_and_the_saved_tokenizer(tmp_path):
    path = make_model(tmp_path / "model", tokenizer=make_tokenizer(THINKING))
    plain, student = common.load_student(path), common.load_student(path, template_kwargs='{"enable_thinking": false, "x": "a\'\\"%}\\n\\u00e9"}')
    assert not shown(plain.tokenizer).endswith("(none)") and shown(student.tokenizer).endswith("(none)")
    ids, n = stat_sel.encode(student, [*QUESTION, {"role": "assistant", "content": "4"}], 1000)
    assert student.tokenizer.decode(ids[n - 6:n]) == "(none)"
    student.tokenizer.save_pretrained(tmp_path / "saved")
    assert shown(transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")).endswith("(none)")


@pytest.mark.parametrize("name", ["stat_sel", "stat_syn", "dart", "active_loop"])
@pytest.mark.parametrize("given", ["{enable_thinking: false}", "[1]", '{"a b": 1}', '{"messages": []}'])
def test_template_kwargs_that_are_no_json_object_get_one_sentence(call_file, tmp_path, name, given):
    done = call_file(f"{name}.py", "--chat-template-kwargs", given, "--out", tmp_path / "out")
    assert done.returncode == 2 and re.search("--chat-template-kwargs .*expected JSON such as", done.stderr) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("brought", ["", "<|eot|>", "<|eot|>\n", " <|eot|> <|eot|>", "<|begin|><|eot|>"])
def test_an_answer_that_brings_its_end_is_trained_with_one(tmp_path, brought):
    student = common.load_student(make_model(tmp_path))
    student = student._replace(stop_ids=student.stop_ids | {0})  # two tokens end an answer, as in base models with a chat template
    ids, n = stat_sel.encode(student, [*QUESTION, {"role": "assistant", "content": "\\boxed{4}" + brought}], 1000)
    assert student.tokenizer.decode(ids[n:]) == "\\boxed{4}<|eot|>"
    assert stat_sel.encode(student, [*QUESTION, {"role": "assistant", "content": " a \n"}], 1000)[0][-4:-1] == student.tokenizer(
        " a \n", add_special_tokens=False).input_ids[1:]  # what brings no end is left as it is


# --- Reward models, before the student answers. -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fault, words", [
    ("no template", "chat_template is not set"), ("forgets", "--prm: its chat template"), ("head", "came LlamaForSequenceClassification")])
def test_a_reward_model_that_cannot_mark_is_refused_before_the_first_answer(small_world, tmp_path, call_file, monkeypatch, fault, words):
    path = make_prm(tmp_path / "prm")
    if fault == "head":
        transformers.LlamaForSequenceClassification(LlamaConfig(vocab_size=260, **SIZES)).save_pretrained(path)
    else:
        template = None if fault == "no template" else TEMPLATE.replace("m.content | trim", "(m.content if loop.last else '')")
        (tmp_path / "prm" / "chat_template.jinja").unlink()
        make_tokenizer(template).save_pretrained(path)
    monkeypatch.setattr(common, "load_student", lambda *args: pytest.fail("the student was loaded"))
    for name in ("stat_sel.py", "stat_syn.py"):
        done = call_file(name, "--data", small_world, "--skills", small_world / "skills.json", "--student", small_world / "student", "--prm", path,
                         "--teacher", "toy", "--teacher-url", "http://127.0.0.1:9/v1", "--out", tmp_path / "out", "--n-val", "60")
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1
