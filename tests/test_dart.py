"""DART's reward rule by rule, GRPO against a naive computation, and whole runs in the toy world."""
import doctest
import itertools
import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

import common
import dart
from dart import advantages, alignment, choose, grpo_loss, reward
from tests import started
from tests.conftest import ROOT, shared_world
from toyworld import audit


def test_doctests():
    assert doctest.testmod(dart).failed == 0 and doctest.testmod(dart).attempted >= 5


# --- The reward. ------------------------------------------------------------------------------------------------------------------------------
GOOD = "First 12+7=19,\nthen 19+9=28.\nAnswer: \\boxed{28}."
GIVEN = "19 from 12+7; 28 from 19+9; \\boxed{28}."


@pytest.mark.parametrize("text, problem, head", [
    ("The sum is 28. So \\boxed{28}.", "12+16?", "The sum is "), ("1+280=281, \\boxed{28}", "?", "1+280=281, \\boxed{"),
    ("28+1=29, 29-1=28: \\boxed{28}", "28 boys", "28+1=29, 29-1="),
    ("There are 28 boys; it is 28. \\boxed{28}", "28 boys", "There are 28 boys; it is "),
    ("nonsense which gives **28** \\boxed{28}", "?", "nonsense which gives **"), ("4 \\times 7 = \\$28", "?", "4 \\times 7 = \\$")])
def test_uplift_is_measured_before_the_answer(text, problem, head):
    assert dart.before_answer(text, "28", problem) == head
    assert dart.before_answer("700+380=1,080. \\boxed{1080}", "1080", "?") == "700+380="


def test_alignment_by_hand():
    assert alignment(-2.0, -2.0, -0.5) == 0 and alignment(-0.5, -2.0, -0.5) == 1 == alignment(0.0, -2.0, -0.5)  # a copy; as likely; capped
    assert alignment(-1.25, -2.0, -0.5) == pytest.approx(0.5) and alignment(-9.0, -2.0, -0.5) == 0


def test_the_bands_never_overlap():
    rules = ["copy", "false equation", "echo", "padding"]
    bands = {"fail": set(), "wrong": set(), "right": set()}
    for n, aligned, penalty in itertools.product(range(5), (0.0, 0.3, 1.0), (True, False)):
        bands["fail"].add(reward(["no answer"], True, aligned, rules[:n], penalty))
        bands["wrong"].add(reward([], False, aligned, rules[:n], penalty))
        bands["right"].add(reward([], True, aligned, rules[:n], penalty))
        if n and penalty:
            assert 0.1 <= reward([], True, aligned, rules[:n]) <= 0.2 <= reward([], True, aligned, [])
    assert bands["fail"] == {-1.0} and -0.5 <= min(bands["wrong"]) and max(bands["wrong"]) == 0
    assert 0.1 <= min(bands["right"]) and max(bands["right"]) == 1
    assert reward([], True, 0.5, rules, penalty=False) == reward([], True, 0.5, [])


def test_of_the_rewrites_that_pass_the_likeliest_is_taken():
    rows = [{"id": i, "problem": i, "answer": "1", "solution": "y"} for i in "abc"]
    made = [{"id": key, "response": text, "is_right": right, "fails": fails, "capped": level, "cheats": ["echo"] * (text == "more")}
            for key, text, right, fails, level in (
        ("a", "less", True, [], -2.0), ("a", "more", True, [], -1.0), ("a", "as likely", True, [], -1.0), ("a", "wrong", False, [], 0.0),
        ("b", "failed", True, ["cut off"], 0.0))]
    assert [(row["solution"], row["from"]) for row in choose(rows, made)] == [("more", "rewrite"), ("y", "given"), ("y", "given")]
    assert [row["solution"] for row in choose(rows, made, reject_cheats=True)] == ["as likely", "y", "y"]


def test_an_answer_is_put_into_the_common_form():
    row = {"id": "1", "problem": "p", "answer": "7", "subject": None}
    assert dart.prepare(row | {"solution": "3+4=7 "})["solution"] == "3+4=7\nThe answer is \\boxed{7}."
    assert dart.prepare(row | {"solution": "So \\boxed{7}."})["solution"] == "So \\boxed{7}."


# --- GRPO. ------------------------------------------------------------------------------------------------------------------------------------
def test_advantages_by_hand():
    assert advantages([0.5, 0.5, 0.5]) is None
    assert advantages([0.0, 1.0, 0.0, 1.0]) == [-1.0, 1.0, -1.0, 1.0]
    assert advantages([0.50, 0.52]) == pytest.approx([-0.05, 0.05])  # 0.01 / 0.2, not 1


def test_the_loss_by_hand():
    log_p, old, ref = torch.log(torch.tensor([0.5, 0.2])), torch.log(torch.tensor([0.25, 0.4])), torch.log(torch.tensor([0.5, 0.1]))
    kl = 0.5 - math.log(0.5) - 1  # of the second token; the first is as likely for both
    loss = grpo_loss(log_p, old, ref, 1.0, 0.2, 0.1)  # ratios 2 and 0.5: the first is clipped to 1.2
    assert loss.item() == pytest.approx(0.1 * kl - 1.2 - 0.5, abs=1e-5)
    loss = grpo_loss(log_p, old, ref, -1.0, 0.2, 0.0)  # for a bad completion the worse of both counts
    assert loss.item() == pytest.approx(2.0 + 0.8, abs=1e-5)


def test_the_kl_is_exact_where_it_is_small():
    for d in (1e-4, 1e-3, 0.1, -2.0):
        one, two = torch.tensor([-1.0]), torch.tensor([-1.0 + d])
        d = (two - one).item()  # as float32 has it
        assert dart.k3(one, two).item() == pytest.approx(math.expm1(d) - d, rel=2e-3)  # exp(d) - d - 1 in float32 is off by 100 % at 1e-4


@pytest.fixture(scope="module")
def small_demonstrations(tmp_path_factory):
    """A world with 72 demonstrations whose student has been trained for 288 steps: it writes answers, nearly all of them wrong."""
    return shared_world(tmp_path_factory, 0, dart.STUDENT_PROMPT, 0.12, family="demonstrations")


def with_adapter(path, seed=0):
    from peft import LoraConfig, get_peft_model
    student = common.load_student(str(path / "student"))
    torch.manual_seed(seed)
    student = student._replace(model=get_peft_model(student.model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")))
    for p in student.model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.05)  # B starts at 0: then half of all gradients are 0 too
    return student


def some_pairs(student, texts=("3+4=7.\nSo \\boxed{7}.", "First 12+9=21.\nAnswer: \\boxed{21}.", "no", "1 2 3 4 5 6 7")):
    return [dart.encode(student, [*dart.question(f"What is {i}+{i}?"), {"role": "assistant", "content": text}], 10**6)
            for i, text in enumerate(texts)]


def naive_log_probs(model, ids, n):
    logits = model(input_ids=torch.tensor([ids])).logits[0].float()
    return [logits[t - 1].log_softmax(-1)[ids[t]] for t in range(n, len(ids))]


def completions(args, student, pairs, a):
    old, _, ref = dart.policy(args, student, pairs)
    return [dart.Completion(*pair, *rest) for pair, *rest in zip(pairs, old, ref, a, strict=True)]


def naive_gradient(student, pairs, a, beta, old=None, clip=0.2):
    """Token by token, the mean over all tokens of -min(ratio A, clipped ratio A) + beta KL; old None: of these very weights."""
    weights, n_tokens, total, kl_sum = [p for p in student.model.parameters() if p.requires_grad], sum(len(ids) - n for ids, n in pairs), 0.0, 0.0
    for i, ((ids, n), advantage) in enumerate(zip(pairs, a, strict=True)):
        with torch.no_grad(), student.model.disable_adapter():
            base = naive_log_probs(student.model, ids, n)
        for t, (log_p, reference) in enumerate(zip(naive_log_probs(student.model, ids, n), base, strict=True)):
            ratio = (log_p - (log_p.detach() if old is None else old[i][t])).exp()
            kl = (reference - log_p).exp() - (reference - log_p) - 1
            gain = min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
            total, kl_sum = total + (beta * kl - gain) / n_tokens, kl_sum + kl.item() / n_tokens
    return torch.autograd.grad(total, weights), kl_sum


def test_an_update_follows_the_policy_gradient_computed_naively(small_demonstrations):
    """The ratio is 1: sum A * grad log p over all tokens, plus beta times the KL's, whatever the micro-batches."""
    student = with_adapter(small_demonstrations)
    pairs, a, args = some_pairs(student), [1.0, -0.5, 2.0, -1.5], dart.Args(micro_batch=3, max_grad_norm=1e9)
    weights = [p for p in student.model.parameters() if p.requires_grad]
    gradient, _ = naive_gradient(student, pairs, a, 0.3)
    before = [p.detach().clone() for p in weights]
    norm = dart.update(args, student, torch.optim.SGD(weights, lr=1.0), completions(args, student, pairs, a), 0.3)
    for old, new, naive in zip(before, weights, gradient, strict=True):
        assert torch.allclose(old - new, naive, atol=2e-5, rtol=1e-3)
    assert max(one.abs().max() for one in gradient) > 1e-3
    assert norm == pytest.approx(math.sqrt(sum(one.square().sum().item() for one in gradient)), rel=1e-3)


def test_after_an_update_the_ratio_is_not_1_and_the_clip_acts(small_demonstrations):
    student = with_adapter(small_demonstrations)
    pairs, a, args = some_pairs(student), [1.0, -0.5, 2.0, -1.5], dart.Args(micro_batch=4, max_grad_norm=1e9)
    weights = [p for p in student.model.parameters() if p.requires_grad]
    made = completions(args, student, pairs, a)
    dart.update(args, student, torch.optim.SGD(weights, lr=0.1), made, 0.0)
    now = dart.token_log_probs(student.model, pairs, student.device)
    ratios = torch.cat([(x - one.old).exp().detach() for x, one in zip(now, made, strict=True)])
    assert ((ratios - 1).abs() > 0.2).any()
    gradient, _ = naive_gradient(student, pairs, a, 0.0, [one.old for one in made])
    plain, _ = naive_gradient(student, pairs, a, 0.0)
    before = [p.detach().clone() for p in weights]
    dart.update(args, student, torch.optim.SGD(weights, lr=1.0), made, 0.0)
    moved = [old - new.detach() for old, new in zip(before, weights, strict=True)]
    for one, naive in zip(moved, gradient, strict=True):
        assert torch.allclose(one, naive, atol=2e-5, rtol=1e-3)
    assert not all(torch.allclose(one, naive, atol=2e-5, rtol=1e-3) for one, naive in zip(moved, plain, strict=True))


def test_mini_batches_are_updates_with_the_first_log_probs(small_demonstrations, monkeypatch):
    rows = common.load(str(small_demonstrations), "train")[:4]
    seen = []
    for minibatch in (None, 2, 1):
        student = with_adapter(small_demonstrations)
        args, n = dart.Args(group=2, max_new_tokens=5, minibatch=minibatch), []
        monkeypatch.setattr(dart, "update", lambda args, student, optimizer, signal, beta, n=n: n.append(signal) or 1.0)
        row, _ = dart.grpo_step(args, student, None, task([float(i % 2) for i in range(8)]), rows, 0.0, 1)
        assert [len(signal) for signal in n] == {None: [8], 2: [4, 4], 1: [2] * 4}[minibatch] and row["signal"] == 1
        seen.append([one for signal in n for one in signal])
    for one, two in itertools.pairwise(seen):
        assert [x.ids for x in one] == [x.ids for x in two] and all(torch.equal(x.old, y.old) for x, y in zip(one, two, strict=True))


def test_what_is_sampled_has_the_log_probs_that_are_trained(small_demonstrations):
    """With its cache and left padding the sampler is the policy of the padded pass over whole completions: the old log-probs are the new ones."""
    student = with_adapter(small_demonstrations)._replace(stop_ids=frozenset({-1}))
    prompts = [common.prompt_ids(student.tokenizer, dart.question(text))
               for text in ("What is 3+4?", "Let t be 12+7. Find the digit sum of t.", "Go")]
    outs = common.sample(student, prompts, 1.0, 6, seed=3, log_probs=True)
    drawn = [out["tokens"] for out in outs]
    generator, log_probs = torch.Generator().manual_seed(3), []
    for t in range(6):
        with torch.no_grad():
            logits = torch.stack([student.model(input_ids=torch.tensor([prompt + tokens[:t]])).logits[0, -1].float()
                                  for prompt, tokens in zip(prompts, drawn, strict=True)])
        assert torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0].tolist() == [tokens[t] for tokens in drawn]
        log_probs.append(logits.log_softmax(-1)[range(3), [tokens[t] for tokens in drawn]])
    with torch.no_grad():
        pairs = [(prompt + tokens, len(prompt)) for prompt, tokens in zip(prompts, drawn, strict=True)]
        found = dart.token_log_probs(student.model, pairs, student.device)
    assert torch.allclose(torch.stack(found, 1), torch.stack(log_probs), atol=5e-4)
    assert torch.allclose(torch.tensor([out["log_probs"] for out in outs]).T, torch.stack(log_probs), atol=5e-4)


def task(rewards):
    return dart.Task("step", lambda row: dart.question(row["problem"]), lambda drawn, outs: [{"reward": r, "is_right": False} for r in rewards])


def test_groups_of_equal_rewards_are_skipped_and_counted(small_demonstrations):
    student = with_adapter(small_demonstrations)._replace(stop_ids=frozenset({-1}))  # all answers have 5 tokens
    rows = common.load(str(small_demonstrations), "train")[:3]
    weights = [p for p in student.model.parameters() if p.requires_grad]
    args = dart.Args(group=2, max_new_tokens=5, micro_batch=8)

    def step(rewards):
        before = [p.detach().clone() for p in weights]
        row, texts = dart.grpo_step(args, student, torch.optim.SGD(weights, lr=0.1), task(rewards), rows, 0.01, 1)
        assert [text["id"] for text in texts] == [row["id"] for row in rows] and all("response" in text for text in texts)
        return row, any(not torch.equal(old, new) for old, new in zip(before, weights, strict=True))
    row, moved = step([0.3] * 6)
    assert row["signal"] == 0 == row["grad_norm"] and not moved and row["kl"] > 0  # of all rollouts, with or without signal
    row, moved = step([0.3, 0.3, 0.3, 0.9, 0.3, 0.3])
    assert row["signal"] == pytest.approx(1 / 3) and moved and row["reward"] == pytest.approx(0.4) and row["grad_norm"] > 0
    assert row["cut_off"] == 1 and row["length"] == 5 and row["generated"] == 30 and 0 < row["entropy"] < math.log(512)
    assert row["sampler_gap"] < 1e-3 and row["std"][1] == 0 and row["std"][2] > 0


def test_what_is_logged_of_a_step_against_a_naive_computation(small_demonstrations):
    student, rows = with_adapter(small_demonstrations), common.load(str(small_demonstrations), "train")[:2]
    args, kept = dart.Args(group=2, max_new_tokens=6, micro_batch=3), []
    made = task([0.0, 1.0, 0.0, 0.0])
    rate = made.rate
    made = made._replace(rate=lambda drawn, outs: kept.extend(zip(drawn, outs, strict=True)) or rate(drawn, outs))
    row, _ = dart.grpo_step(args, student, torch.optim.SGD([p for p in student.model.parameters() if p.requires_grad], lr=0.0), made, rows, 0.1, 1)
    entropy, kl = [], []
    for given, out in kept:
        prompt = common.prompt_ids(student.tokenizer, dart.question(given["problem"]))
        with torch.no_grad():
            with student.model.disable_adapter():
                base = naive_log_probs(student.model, prompt + out["tokens"], len(prompt))
            logits = student.model(input_ids=torch.tensor([prompt + out["tokens"]])).logits[0].float().log_softmax(-1)
        for t, (token, ref) in enumerate(zip(out["tokens"], base, strict=True)):
            log_p = logits[len(prompt) + t - 1]
            entropy.append(-(log_p.exp() * log_p).sum().item())
            kl.append((ref - log_p[token]).exp().item() - (ref - log_p[token]).item() - 1)
    assert row["entropy"] == pytest.approx(sum(entropy) / len(entropy), rel=1e-3) and row["kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-2)


def test_every_demonstration_is_met_once_an_epoch():
    rows, args = list(range(10)), dart.Args(prompts=4)
    met = [i for step in range(1, 6) for i in dart.rows_of_step(args, task([]), rows, step)]
    assert sorted(met[:10]) == rows == sorted(met[10:]) and met[:10] != met[10:]
    assert dart.rows_of_step(args, task([]), [1, 2], 3) in ([1, 2], [2, 1])


def test_log_probs_do_not_depend_on_batch_and_padding_and_are_those_of_the_sft_loss(small_demonstrations):
    student = with_adapter(small_demonstrations)
    pairs = some_pairs(student)
    together = dart.token_log_probs(student.model, pairs, student.device)
    for i, pair in enumerate(pairs):
        alone, = dart.token_log_probs(student.model, [pair], student.device)
        assert torch.allclose(alone, together[i], atol=2e-4)
        assert -alone.sum().item() == pytest.approx(dart.completion_loss(student.model, [pair], student.device).item(), abs=2e-3)


def test_rewards_are_the_bases_whatever_the_adapter_the_order_and_the_batch(small_demonstrations):
    rows = [dart.prepare(row) | {"raw": -3.0, "on": -1.0} for row in common.load(str(small_demonstrations), "train")][:8]
    outs = [{"response": text, "cut_off": False}
            for text in ("3+4=7.\nSo \\boxed{7}.", GOOD, "no", "", rows[4]["solution"], GOOD * 3, "x", "1+1=3")]
    args = dart.Args(sample_batch=3)
    student = with_adapter(small_demonstrations)
    found = dart.judge(args, student, rows, outs)
    plain = dart.judge(dart.Args(sample_batch=8), common.load_student(str(small_demonstrations / "student")), rows, outs)
    turned = dart.judge(args, student, rows[::-1], outs[::-1])[::-1]
    for one, two, three in zip(found, plain, turned, strict=True):
        assert one["level"] == pytest.approx(two["level"], abs=5e-4) and one["level"] == pytest.approx(three["level"], abs=5e-4)
        assert one["align"] == pytest.approx(two["align"], abs=5e-4) and one["reward"] == pytest.approx(three["reward"], abs=5e-4)
        assert [one[key] for key in ("fails", "cheats", "is_right")] == [two[key] for key in ("fails", "cheats", "is_right")]
    raw = dart.levels(args, student, [rows[4]["problem"]], [rows[4]["solution"]])[0].mean().item()
    assert found[4]["level"] == pytest.approx(raw, abs=5e-4) and "copy" in found[4]["cheats"]  # y itself is at L_raw


def test_one_base_and_one_adapter_are_in_memory(small_demonstrations):
    """GRPO's reference and pi_T are the same weights with the adapter switched off."""
    student = with_adapter(small_demonstrations)
    base = common.load_student(str(small_demonstrations / "student")).model
    trained = sum(p.numel() for p in student.model.parameters() if p.requires_grad)
    assert sum(p.numel() for p in student.model.parameters()) == sum(p.numel() for p in base.parameters()) + trained
    assert trained == sum(4 * sum(module.weight.quant_state.shape) for name, module in base.named_modules() if type(module).__name__ == "Linear4bit")
    pairs = some_pairs(student)
    with torch.no_grad():
        with student.model.disable_adapter():
            off = dart.token_log_probs(student.model, pairs, student.device)
        on = dart.token_log_probs(student.model, pairs, student.device)
        alone = dart.token_log_probs(base, pairs, student.device)
    assert all(torch.equal(x, y) for x, y in zip(off, alone, strict=True)) and not torch.equal(on[0], off[0])


def test_uplift_against_a_naive_computation(small_demonstrations):
    student = with_adapter(small_demonstrations)
    rows = [{"problem": "What is 3+4?", "solution": "3+4=7.\nSo \\boxed{7}.", "answer": "7"},
            {"problem": "Find 12+9.", "solution": "First 12+9=21.\nAnswer: \\boxed{21}.", "answer": "21"}]

    def naive(row, head):
        prompt = common.prompt_ids(student.tokenizer, dart.question(row["problem"])) + student.tokenizer(head, add_special_tokens=False).input_ids
        return sum(x.item() for x in naive_log_probs(student.model, prompt + student.tokenizer(row["answer"]).input_ids, len(prompt)))
    with torch.no_grad():
        expected = [naive(row, head) - naive(row, "\\boxed{") for row, head in zip(rows, ("3+4=", "First 12+9="), strict=True)]
    assert dart.uplift(dart.Args(), student, rows) == pytest.approx(expected, abs=2e-3) and abs(expected[0]) > 0.01


def test_l_on_is_the_mean_of_own_right_answers_or_the_median_of_the_others(monkeypatch, capsys, tmp_path):
    rows = [{"id": key, "problem": key, "solution": "y", "answer": "1"} for key in "abcd"]
    level = {"y": [-5.0], "\\boxed{1} A": [-1.0, -3.0], "\\boxed{1} B": [-4.0], "\\boxed{1} C": [-9.0], "\\boxed{2}": [0.0]}
    monkeypatch.setattr(dart, "levels", lambda args, student, problems, texts: [torch.tensor(level[text]) for text in texts])
    own = {key: [{"response": text, "cut_off": cut_off} for text, cut_off in outs] for key, outs in {
        "a": [("\\boxed{1} A", False), ("\\boxed{1} B", False)], "b": [("\\boxed{2}", False), ("\\boxed{1} A", True)],
        "c": [("\\boxed{1} C", False)], "d": [("\\boxed{1} A", False)]}.items()}
    args = dart.Args(sample_batch=3)
    run = common.open_run(args, tmp_path / "run")
    found = dart.measure(args, run, lambda: None, rows, own)
    assert [(row["id"], row["raw"], row["on"]) for row in found] == [("a", -5.0, -3.0), ("b", -5.0, -3.0), ("c", -5.0, -9.0), ("d", -5.0, -2.0)]
    assert sum(row["n_scored"] for row in run.read("1_levels.jsonl")) == 4 + 2 + 1 + 1 + 2
    assert "4 of 6 own answers are right, 1 are cut off" in capsys.readouterr().out
    hopeless = {key: [{"response": "\\boxed{2}", "cut_off": False}] for key in "abcd"}
    with pytest.raises(common.UserError, match="none of 4 own answers is right.*--max-new-tokens"):
        dart.measure(args, common.open_run(args, tmp_path / "hopeless"), lambda: None, rows, hopeless)


def test_training_one_adapter_leaves_another_bit_equal(small_demonstrations):
    """A run trains the mapper and the target one after the other, each on its own copy of the base; even in one model an update is one adapter's."""
    import bitsandbytes as bnb
    from peft import LoraConfig
    student = with_adapter(small_demonstrations)
    student.model.add_adapter("target", LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False))
    before = {name: p.detach().clone() for name, p in student.model.named_parameters()}
    optimizer = bnb.optim.PagedAdamW8bit([p for p in student.model.parameters() if p.requires_grad], lr=1e-2)
    made = completions(dart.Args(), student, some_pairs(student), (1.0, -1.0, 0.5, -0.5))
    dart.update(dart.Args(), student, optimizer, made, 0.01)
    moved = {name for name, p in student.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in student.model.named_parameters() if ".default." in name} and any(".target." in name for name in before)


# --- Whole runs. ------------------------------------------------------------------------------------------------------------------------------
SMALL = ["--rl-steps", "4", "--prompts", "4", "--group", "4", "--rl-lr", "1e-3", "--n-own", "2", "--n-rewrites", "2", "--limit", "10",
         "--epochs", "1", "--batch", "4", "--micro-batch", "16", "--no-checkpointing", "--lr", "1e-3", "--sample-batch", "50",
         "--max-new-tokens", "40", "--save-every", "2", "--curve", "2", "--eval-every", "2"]


def flags(made, out, *more):
    return [str(x) for x in ("--student", made / "student", "--data", made, "--ood", made / "phrasings.jsonl", made / "larger.jsonl",
                             "--retention", made / "retention.jsonl", "--out", out, *SMALL, *more)]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def easy(small_demonstrations, tmp_path_factory):
    """The small world's questions with the answers that its student, which is nearly always wrong, gives: to these it is right."""
    made = tmp_path_factory.mktemp("easy")
    student = common.load_student(str(small_demonstrations / "student"))
    rows = [row for name in ("train", "test", "phrasings", "retention") for row in read(small_demonstrations / f"{name}.jsonl")]
    prompts = [common.prompt_ids(student.tokenizer, dart.question(row["problem"])) for row in rows]
    outs = [out for i in range(0, len(prompts), 50) for out in common.sample(student, prompts[i:i + 50], 0.0, 40, 0)]
    answers = [common.extract_answer(out["response"]) for out in outs]
    easy = [row | {"answer": answer, "solution": f"It is {answer}; \\boxed{{{answer}}}."}
            for row, answer in zip(rows, answers, strict=True) if answer]
    assert len(easy) >= 30, "the student writes hardly any answer"
    for name, part in (("train", easy[:16]), ("test", easy[16:30]), ("phrasings", rows[-10:]), ("larger", rows[-20:-10]),
                       ("retention", rows[-30:-20])):
        part = [row | {"id": f"{name}/{i}"} for i, row in enumerate(part)]
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (made / "student").symlink_to(small_demonstrations / "student")
    return made


@pytest.fixture(scope="module")
def whole_run(easy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name in ("dart.py", "common.py"):  # the two files are enough
        shutil.copy(ROOT / name, folder)
    out = folder / "whole"
    arms = ["--arms", "base", "sft", "prompt", "dropped", "best_of_n", "rejection", "grpo", "dart"]
    done = started.run(folder / "dart.py", *flags(easy, out, *arms), cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stdout


def test_every_arm_runs_at_dart_s_cost(whole_run, easy):
    out, printed = whole_run
    result = json.loads((out / "result.json").read_text())
    cost, n = result["cost"], result["n"]
    assert list(result["columns"].values()) == ["in distribution", *["out of distribution"] * 2, "retention"] and printed.count("vs sft") == 4
    own = [row for row in read(out / "1_own.jsonl")]
    steps = read(out / "2_steps_mapper.jsonl")
    made = {arm: [row for path in out.glob(f"3_rewrites_{arm}*.jsonl") for row in read(path)] for arm in ("dart", "prompt", "best_of_n")}
    assert dart.n_generated([{"n_tokens": 3, "cut_off": False}, {"n_tokens": 5, "cut_off": True}]) == 9
    n_own = dart.n_generated(own)
    assert cost["dart"]["generated"] == n_own + sum(row["generated"] for row in steps) + dart.n_generated(made["dart"])
    assert cost["prompt"]["generated"] == n_own + dart.n_generated(made["prompt"]) and len(made["prompt"]) == 2 * n == len(made["dart"])
    for arm in ("best_of_n", "rejection", "grpo"):
        assert cost[arm]["generated"] >= cost["dart"]["generated"] > 0
    passes = sorted(out.glob("3_rewrites_best_of_n_*"))  # the last was needed
    assert n_own + dart.n_generated([row for path in passes[:-1] for row in read(path)]) < cost["dart"]["generated"]
    assert [row["step"] for row in steps] == [0, 1, 2, 3, 4] and cost["dart"]["rl_steps"] == 4
    assert [row["step"] for row in steps if "held_out" in row] == [0, 2, 4] and all(-1 <= row["reward"] <= 1 for row in steps[1:])
    live = [row for row in read(out / "metrics.jsonl") if row.get("grpo") == "mapper"]
    assert live.pop(0)["held_out"] == steps[0]["held_out"]  # before training
    assert [{key: row[key] for key in steps[1]} for row in live] == [{key: row[key] for key in steps[1]} for row in steps[1:]]
    keys = {"reward", "is_right", "align", "kl", "entropy", "length", "cut_off", "grad_norm", "sampler_gap", "signal", "std", "fails", "cheats",
            "generated", "scored", "seconds", "peak_gib"}
    assert all(keys <= row.keys() for row in live) and live[0]["kl"] == pytest.approx(0, abs=1e-4)  # the adapter begins at the base
    shown = read(out / "2_rollouts_mapper.jsonl")
    assert [row["step"] for row in shown] == [step for step in (1, 2, 3, 4) for _ in range(4)]
    assert all({"id", "response", "reward", "fails", "cheats", "is_right", "align"} <= row.keys() for row in shown)
    assert all((out / "adapter" / name).is_dir() for name in ("mapper", "mapper_last", "grpo", "grpo_last"))
    assert "before training, by step 1" in printed and "is the best on 4 held out" in printed and "a lead can be" in printed
    policy = read(out / "2_steps_grpo.jsonl")  # half-way there its adapter is kept and tested
    halfway, = [i for i, row in enumerate(policy) if "points" in row]
    assert sum(row["generated"] for row in policy[:halfway]) < cost["dart"]["generated"] / 2 <= sum(row["generated"] for row in policy[:halfway + 1])
    assert policy[halfway]["points"] == [1] and (out / "adapter" / "grpo_1").is_dir() and len(read(out / "5_test_grpo_1.jsonl")) == len(
        read(out / "5_test_grpo.jsonl"))
    assert cost["dart"]["scored"] == sum(row["n_scored"] for row in read(out / "1_levels.jsonl") + made["dart"]) + sum(row["scored"] for row in steps)
    kept = [row for row in read(out / "3_chosen_dart.jsonl") if row["from"] == "rewrite"]
    assert read(out / "3_chosen_dropped.jsonl") == kept and len(read(out / "train_dropped.jsonl")) == len(kept) == result["data"]["dropped"]["n"]
    for arm in ("sft", "prompt", "best_of_n", "rejection", "dart"):
        pairs = read(out / f"train_{arm}.jsonl")
        assert len(pairs) == n and cost[arm]["sft_steps"] == math.ceil(n / 4)  # equal numbers of pairs and steps
        chosen = read(out / f"3_chosen_{arm}.jsonl")
        assert [row["solution"] for row in chosen] == [pair["messages"][1]["content"] for pair in pairs]
        assert result["data"][arm]["fallback"] == pytest.approx(sum(row["from"] == "given" for row in chosen) / n)
    judged = read(out / "3_judged_rejection.jsonl")
    for row in read(out / "3_chosen_rejection.jsonl"):  # the likeliest of all own right answers
        passing = [one for one in judged if one["row"] == row["id"] and not one["fails"]]
        assert (row["from"] == "given") == (not passing)
        if passing:
            assert common.score(row["solution"], row["answer"]) is True
            assert max(one["capped"] for one in passing) == max(one["capped"] for one in passing if one["response"] == row["solution"])
    levels = read(out / "1_levels.jsonl")
    assert all(level["level"] <= 0 for level in levels) and n >= result["n_learnable"] > 0
    assert sum(level["sample"] is None for level in levels) == n + 4  # and those held out
    parts = Counter(row["part"] for row in read(out / "0_questions.jsonl"))
    assert parts["D"] == n == 12 and parts["held out"] == 4


def test_the_targets_own_right_answers_score_at_the_maximum_and_a_copy_at_the_minimum(easy, tmp_path):
    args, student = dart.Args(max_new_tokens=40), common.load_student(str(easy / "student"))
    rows = [dart.prepare(row) for row in common.load(str(easy), "train")]
    outs = common.sample(student, [common.prompt_ids(student.tokenizer, dart.question(row["problem"])) for row in rows], 0.0, 40, 0)
    own = {row["id"]: [out] for row, out in zip(rows, outs, strict=True)}
    rows = dart.measure(args, common.open_run(args, tmp_path / "run"), lambda: student, rows, own)
    learnable = [dart.solves(row, own[row["id"]][0]) and row["on"] - row["raw"] > 0.1 for row in rows]
    assert sum(learnable) > 5
    copies = dart.judge(args, student, rows, [{"response": row["solution"], "cut_off": False} for row in rows])
    for is_learnable, mine, copied in zip(learnable, dart.judge(args, student, rows, outs), copies, strict=True):
        if is_learnable:
            assert mine["align"] == pytest.approx(1, abs=1e-2) and copied["align"] == pytest.approx(0, abs=1e-2)


def test_killed_at_random_it_ends_with_the_same_rewards_and_weights(whole_run, easy, tmp_path):
    (whole, _), out = whole_run, tmp_path / "killed-0"

    def command(out):
        return ["dart.py", *flags(easy, out, "--arms", "grpo", "dart")]
    for name, at in (("mapper", 3), ("grpo", 4)):
        started.killed(f'"grpo": "{name}", "step": {at}', *command(out))
        assert (out / "adapter" / f"{name}.checkpoint.pt").exists()
    compared = started.kill_at_random(command, whole, tmp_path, "dart", n_kills=2)
    assert {Path(f"adapter/{name}/adapter_model.safetensors") for name in ("mapper", "grpo", "dart")} <= compared
    assert {Path(f"2_{what}_{name}.jsonl") for what in ("steps", "rollouts") for name in ("mapper", "grpo")} <= compared
    one, two = (json.loads((run / "result.json").read_text())["cost"] for run in (whole, out))
    assert all(one[arm] == two[arm] for arm in two) and two.keys() == {"grpo", "dart"}


def test_grpo_goes_on_from_an_adapter_without_a_kl_term(whole_run, easy, tmp_path, call_file):
    whole, _ = whole_run
    adapter = whole / "adapter" / "sft"
    before = (adapter / "adapter_model.safetensors").read_bytes()
    done = call_file("dart.py", *flags(easy, tmp_path / "out", "--adapter", adapter, "--arms", "base", "grpo", "--beta", "1e9", "--rl-steps", "2"))
    assert done.returncode == 0, done.stderr
    assert (adapter / "adapter_model.safetensors").read_bytes() == before
    answers = [read(run / name) for run, name in ((whole, "5_test_sft.jsonl"), (tmp_path / "out", "5_test_base.jsonl"))]
    assert answers[0] == answers[1]  # base is the student with the adapter
    steps = read(tmp_path / "out" / "2_steps_grpo.jsonl")
    assert len(steps) == 3 and steps[1]["kl"] > 0 and all(row["grad_norm"] < 1e3 for row in steps[1:])  # 1e9 times the KL would be far above


def test_without_the_penalty_cheating_is_counted_only(easy, tmp_path, call_file):
    done = call_file("dart.py", *flags(easy, tmp_path / "out", "--arms", "base", "dart", "--no-penalty"))
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "out" / "3_rewrites_dart.jsonl")
    assert any(row["cheats"] and not row["fails"] for row in rows)
    for row in rows:
        assert row["reward"] == pytest.approx(reward(row["fails"], row["is_right"], row["align"], []))


def test_of_several_rates_each_arm_takes_the_best_on_what_is_held_out(easy, tmp_path, call_file):
    argv, out = flags(easy, tmp_path / "out", "--arms", "base", "sft", "--bits", "16", "--n-heldout", "3", "--limit", "4"), tmp_path / "out"
    argv.insert(argv.index("--lr") + 2, "1e-5")
    done = call_file("dart.py", *argv)
    assert done.returncode == 0, done.stderr
    parts = {part: {row["id"] for row in read(out / "0_questions.jsonl") if row["part"] == part} for part in ("D", "held out")}
    assert len(parts["held out"]) == 3 and not parts["D"] & parts["held out"] and "1_own.jsonl" not in {path.name for path in out.iterdir()}
    n_right = {}
    for lr in ("0.001", "1e-05"):
        answers = read(out / f"5_heldout_sft_{lr}.jsonl")
        assert {row["id"] for row in answers} == parts["held out"]
        rows = {row["id"]: row for row in common.load(str(easy), "train")}
        n_right[float(lr)] = sum(dart.solves(rows[row["id"]], row) for row in answers)
    best = max((1e-3, 1e-5), key=n_right.get)
    assert f"sft: learning rate {best:g}; right of 3 held out" in done.stdout
    taken, other = (out / "adapter" / name / "adapter_model.safetensors" for name in ("sft", f"sft_{best:g}"))
    assert taken.read_bytes() == other.read_bytes() and read(out / "loss_sft.jsonl") == read(out / f"loss_sft_{best:g}.jsonl")


def test_with_16_bits_the_base_is_unpacked(small_demonstrations):
    packed, plain = (common.load_student(str(small_demonstrations / "student"), bits=bits).model for bits in (4, 16))
    kinds = [{type(module).__name__ for module in model.modules()} for model in (packed, plain)]
    assert "Linear4bit" in kinds[0] and "Linear4bit" not in kinds[1]
    assert {p.dtype for p in plain.parameters()} == {torch.float32} and not any(p.requires_grad for p in plain.parameters())


def test_the_best_step_is_used_and_the_last_is_kept(small_demonstrations, tmp_path):
    """Held-out rewards that rise and fall again: the adapter is that of the step in between."""
    student, rows = with_adapter(small_demonstrations), common.load(str(small_demonstrations), "train")[:4]
    args = dart.Args(rl_steps=3, prompts=2, group=2, max_new_tokens=4, eval_every=1, save_every=9, checkpointing=False, rl_lr=0.01)
    run, weights, values = common.open_run(args, tmp_path / "run"), [], iter([0.1, 0.2, 0.9, 0.3])

    def rate(drawn, outs):
        if drawn[0]["id"] == "h":
            weights.append(torch.cat([p.detach().flatten().clone() for p in student.model.parameters() if p.requires_grad]))
            return [{"reward": next(values), "is_right": True}]
        return [{"reward": float(i % 2), "is_right": True} for i in range(len(outs))]
    dart.grpo(args, run, student, dart.Task("mapper", dart.rewriting, rate), rows, [rows[0] | {"id": "h"}], 0.0)

    def kept(name):
        model = common.load_student(str(small_demonstrations / "student"), run.path / "adapter" / name).model
        return torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "lora" in name])
    assert torch.equal(kept("mapper"), weights[2]) and torch.equal(kept("mapper_last"), weights[3]) and not torch.equal(weights[2], weights[3])
    assert [row["held_out"] for row in read(run.path / "2_steps_mapper.jsonl")] == [0.1, 0.2, 0.9, 0.3]


def test_a_budget_of_which_the_held_out_test_takes_much(easy, tmp_path, call_file):
    """All of it: refused. Points of the curve: they are the student of the first step."""
    command = ["--arms", "base", "grpo", "--curve", "4", "--budget-tokens"]
    done = call_file("dart.py", *flags(easy, tmp_path / "none", *command, "5"))
    assert done.returncode == 2 and (n := re.search(r"before step 1 of grpo takes (\d+) already", done.stderr)), done.stderr
    done = call_file("dart.py", *flags(easy, tmp_path / "out", *command, 2 * int(n[1])))
    assert done.returncode == 0, done.stderr
    first, *_ = [row["points"] for row in read(tmp_path / "out" / "2_steps_grpo.jsonl") if "points" in row]
    assert first[:2] == [1, 2] and len(list((tmp_path / "out" / "adapter").glob("grpo_[0-9]"))) == 3


def test_a_budget_that_step_1_has_spent_already_is_refused(easy, tmp_path, call_file):
    done = call_file("dart.py", *flags(easy, tmp_path / "out", "--arms", "base", "best_of_n", "--budget-tokens", "50"))
    assert done.returncode == 2 and "--budget-tokens 50: step 1 alone" in done.stderr and (tmp_path / "out" / "1_own.jsonl").exists()


def test_a_slice_of_real_gsm8k(real_data, easy, tmp_path, call_file):
    """Human questions and solutions run through all steps, among some that the toy student, which solves none of them, can answer."""
    made = tmp_path / "gsm8k"
    made.mkdir()
    human = {split: common.load(str(real_data / "gsm8k"), split)[:6] for split in ("train", "test")}
    for name, part in (("train", human["train"] + read(easy / "train.jsonl")[:6]), ("test", human["test"])):
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    argv = flags(easy, tmp_path / "out", "--n-demonstrations", "9", "--arms", "base", "dart", "--max-new-tokens", "60",
                 "--temperature", "0.1", "--rl-steps", "2")
    argv[argv.index("--data") + 1] = str(made)
    done = call_file("dart.py", *argv)
    assert done.returncode == 0, done.stderr
    assert "own answers are right" in done.stdout and len(read(tmp_path / "out" / "2_steps_mapper.jsonl")) == 3
    pairs = read(tmp_path / "out" / "train_dart.jsonl")
    assert all("\\boxed{" in row["messages"][1]["content"] for row in pairs)
    assert sum(row["problem"] in pair["messages"][0]["content"] for row in human["train"] for pair in pairs) >= 3


@pytest.mark.parametrize("change, words", [
    (["--arms", "rejection"], "--budget-tokens"), (["--arms", "dropped"], "add the arm dart"), (["--minibatch", "3"], "divisor"),
    (["--lr", "0"], "--lr"), (["--levels", "9"], "--levels"), (["--adapter", "nowhere", "--arms", "base", "sft"], "--adapter"),
    (["--student", "nowhere"], "no such folder"),
    (["--group", "0"], "--group"), (["--temperature", "-1"], "--temperature"), (["--arms", "best"], "best"), (["--data", "nowhere"], "nowhere"),
    (["--clip", "2"], "--clip"), (["--group", "1"], "within a group"), (["--data", "train.jsonl"], "came one file"),
    (["--ood", "other/test.jsonl", "--retention", "test.jsonl"], "rename one"), (["--data", "math", "--ood", "math500"], "part of --data math")])
def test_a_mistake_gets_one_sentence(change, words, easy, tmp_path, call_file):
    argv = flags(easy, tmp_path / "out")
    if change[0] in argv:
        at = argv.index(change[0])
        del argv[at:next(i for i in range(at + 1, len(argv)) if argv[i].startswith("--"))]
    done = call_file("dart.py", *argv, *change)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("error:") == 1 and not (tmp_path / "out").exists(), done.stderr


def test_the_toy_command_runs_on_perfect_demonstrations(tmp_path):
    done = started.run("-m", "toyworld", "dart", "--scale", "0.02", "--perfect", "--arms", "sft", "--limit", "5", "--epochs", "1", cwd=tmp_path,
                       TOYWORLD_DIR=str(tmp_path / "worlds"))
    assert done.returncode == 0, done.stderr[-2000:]
    made = next((tmp_path / "worlds").glob("demonstrations-0-*"))
    solutions = {row["problem"]: row["solution"] for row in read(made / "perfect" / "train.jsonl")}
    pairs = read(tmp_path / "runs" / "toy_dart" / "seed-0" / "train_sft.jsonl")
    assert len(pairs) == 10 and all(solutions[row["messages"][0]["content"].partition("\n\n")[0]] == row["messages"][1]["content"] for row in pairs)
    for column in ("in distribution", "out of distribution", "retention"):
        assert column in done.stdout


# --- The toy world's own check of the rewrites. -----------------------------------------------------------------------------------------------
def test_the_audit_by_hand(tmp_path):
    problem = "Let t be 12+7. Find the digit sum of t."
    sound, false, missing = ("12+7=19,\n1+9=10.\nSo \\boxed{10}.", "12+7=18,\n1+9=10.\nSo \\boxed{10}.", "1+9=10.\nSo \\boxed{10}.")
    rows = [{"id": str(i), "part": "D", "problem": problem} for i in range(4)] + [
        {"id": "4", "part": "D", "problem": "Find the digit product of 38."}]  # a weak skill
    files = {"0_questions.jsonl": [*rows, {"id": "t", "part": "d", "problem": "?"}],
             "3_rewrites_dart.jsonl": [{"id": str(i), "response": text, "is_right": right, "fails": fails} for i, text, right, fails in (
                 (0, sound, True, []), (0, false, True, []), (1, missing, True, []), (1, sound, False, []), (2, sound, True, ["cut off"]))],
             "3_chosen_dart.jsonl": [{"id": str(i), "solution": text, "from": kind} for i, (text, kind) in enumerate((
                 (sound, "rewrite"), (missing, "rewrite"), (false, "rewrite"), (false, "given"), ("3*8=24.\nSo \\boxed{24}.", "rewrite")))]}
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    (tmp_path / "result.json").write_text(json.dumps({"arms": ["base", "dart"]}))
    both = {}
    for penalty, name in ((True, "dart"), (False, "no penalty")):
        (tmp_path / "args.json").write_text(json.dumps({"penalty": penalty}))
        counts = audit.count_rewrites(tmp_path)
        assert counts == {name: {"pass": [3, 5], "sound": [2, 4], "false": [1, 4], "missing": [1, 4],
                                 "sound, weak": [1, 1], "sound, strong": [1, 3]}}
        both |= counts
    assert audit.table([counts]).splitlines()[-1] == "| no penalty | 60.0 | 50.0 | 25.0 | 25.0 | 100.0 | 33.3 |"
    better = {"dart": {"pass": [1, 1], "sound": [4, 4], "false": [0, 4], "missing": [0, 4], "sound, weak": [0, 0], "sound, strong": [4, 4]},
              "no penalty": both["no penalty"]}
    shown = audit.table([both, better]).splitlines()
    expected = "| dart minus no penalty | +20.0 [-234.1, +274.1] | +25.0 [-292.7, +342.7] | -12.5 ["  # means of 0 and 40, 0 and 50, 0 and -25
    assert shown[-1].startswith(expected) and "| +0.0 | +33.3 [" in shown[-1]  # one run alone has both; means of 0 and 66.7


def test_the_audit_counts_own_right_answers(tmp_path):
    (tmp_path / "args.json").write_text(json.dumps({"penalty": True}))
    (tmp_path / "result.json").write_text(json.dumps({"arms": ["rejection"]}))
    for name, row in (("0_questions", {"id": "0", "part": "D", "problem": "Find 12+7."}),
                      ("3_chosen_rejection", {"id": "0", "solution": "12+7=19. \\boxed{19}", "from": "rewrite"})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    assert audit.table([audit.count_rewrites(tmp_path)]).splitlines()[-1] == "| rejection |  | 100.0 | 0.0 | 0.0 |  | 100.0 |"
