"""Step rewards and embeddings of real models: against one forward pass per step, and one text at a time."""
import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import common
import stat_sel

# Of Llama 3's form: headers, a date, turns that end in a token of their own.
TEMPLATE = (
    "{{ '<|begin|>' }}{% for m in messages %}{% if loop.first %}{{ '<|head|>system<|/head|>\n\nToday: ' + date_string + '<|eot|>' }}{% endif %}"
    "{{ '<|head|>' + m.role + '<|/head|>\n\n' + m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}")


def make_prm(folder, template=TEMPLATE):
    specials = ["<|begin|>", "<|head|>", "<|/head|>", "<|eot|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(specials + alphabet)}, merges=[]))
    tok.add_special_tokens(specials)
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<|begin|>", eos_token="<|eot|>", chat_template=template)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=4096, initializer_range=0.3))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
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
    from dataclasses import make_dataclass
    answered = [({"id": f"q{i}", "problem": problem}, "\n\n".join(steps)) for i, (problem, steps) in enumerate(cases())]
    args = make_dataclass("Args", [("seed", int)])(0)
    runs = [common.open_run(args, tmp_path / name) for name in ("one", "two")]
    whole = stat_sel.step_rewards(runs[0], "2_rewards.jsonl", prm, answered, 4)
    assert whole.keys() == {row["id"] for row, _ in answered}
    score, calls = stat_sel.score_steps, []

    def dies_at_the_second_batch(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(*given)
    monkeypatch.setattr(stat_sel, "score_steps", dies_at_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        stat_sel.step_rewards(runs[1], "2_rewards.jsonl", prm, answered, 4)
    assert stat_sel.step_rewards(runs[1], "2_rewards.jsonl", prm, answered, 4) == whole and len(calls) == 3
    assert stat_sel.step_rewards(runs[1], "2_rewards.jsonl", "nowhere", answered, 4) == whole  # it is there: no model is loaded
    assert stat_sel.step_rewards(runs[1], "other.jsonl", "nowhere", [], 4) == {}


@pytest.mark.parametrize("template", [
    TEMPLATE.replace("m.content | trim", "(m.content if loop.last else '')"),  # forgets earlier turns, as those of thinking models do
    TEMPLATE.replace("m.content | trim", "(' ' if m.role == 'assistant' else '') + m.content")])  # another token than the one asked for
def test_a_template_that_changes_earlier_turns_is_refused(tmp_path, template):
    model, tokenizer = common.load_4bit(make_prm(tmp_path, template), "--prm")
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


def test_embeddings_do_not_depend_on_the_batch(prm):
    model, tokenizer = common.load_4bit(prm, "--embedder")
    texts = [problem + " ".join(steps) for problem, steps in cases()]
    naive = []
    for text in texts:
        with torch.no_grad():
            hidden = model(tokenizer(text, return_tensors="pt").input_ids, output_hidden_states=True).hidden_states[-1][0]
        mean = hidden.mean(0)
        naive.append(mean / mean.norm())
    for batch in (1, 4, 100):
        torch.testing.assert_close(stat_sel.embed(model, tokenizer, texts, batch), torch.stack(naive), rtol=0, atol=2e-4)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen2.5-3B"}')
    with pytest.raises(common.UserError, match="trained on Qwen/Qwen2.5-3B, not on --student Qwen/Qwen2.5-3B-Instruct"):
        common.load_student("Qwen/Qwen2.5-3B-Instruct", tmp_path)
