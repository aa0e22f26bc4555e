"""DART's reward rule by rule, GRPO against a naive computation, and whole runs in the toy world."""
import doctest
import itertools
import json
import math
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

import common
import dart
from dart import advantages, alignment, cheats, choose, contained, false_equations, grpo_loss, hard_fails, reward
from tests import started
from tests.conftest import ROOT, shared_world
from toyworld import audit, world
from toyworld.student import draw_problem, solution


def test_doctests():
    assert doctest.testmod(dart).failed == 0 and doctest.testmod(dart).attempted >= 5


# --- The reward. ------------------------------------------------------------------------------------------------------------------------------
GOOD = "First 12+7=19,\nthen 19+9=28.\nAnswer: \\boxed{28}."
GIVEN = "19 from 12+7; 28 from 19+9; \\boxed{28}."


@pytest.mark.parametrize("rule, bad", [
    ("no answer", "First 12+7=19,\nthen 19+9=28."),
    ("too short", "So \\boxed{28}."),
    ("text after the answer", GOOD + "\nI hope this helps"),
    ("text after the answer", GOOD + " One could also have begun at the other end of the problem"),
    ("mentions the solution", "As in the given solution 12+7=19 and 19+9=28, so \\boxed{28}."),
    ("mentions the solution", "As the solution above shows, 12+7=19 and 19+9=28, so \\boxed{28}."),
    ("repetition", "We add seven to it and look at what we have now. " * 4 + "12+7=19, 19+9=28. \\boxed{28}."),
    ("repetition", "12+7=19, 19+9=28. " * 12 + "\\boxed{28}.")])
def test_each_hard_fail_has_its_rule(rule, bad):
    assert rule in hard_fails(bad, GIVEN, False) and hard_fails(GOOD, GIVEN, False) == [] and hard_fails(GOOD, GIVEN, True) == ["cut off"]
    assert hard_fails("\\begin{align*} 12+7&=19 \\\\ 19+9&=\\boxed{28}. \\end{align*}", GIVEN, False) == []
    assert hard_fails("12+7=19, 19+9=28, so she sold \\(\\boxed{28}\\) clips altogether.", GIVEN, False) == []
    assert hard_fails("The given numbers are 12 and 7: 12+7=19, 19+9=28. $\\boxed{28}$", GIVEN, False) == []  # given, but no solution


@pytest.mark.parametrize("rule, bad", [
    ("copy", GIVEN), ("false equation", "First 12+7=18,\nthen 18+9=28.\nAnswer: \\boxed{28}."),
    ("echo", "Let t be 12 plus 7. Find t plus 9. 12+7=19, 19+9=28, so \\boxed{28}."),
    ("padding", "Let us add them all.\nLet us add them all.\n12+7=19, 19+9=28. \\boxed{28}")])
def test_each_way_of_cheating_has_its_rule(rule, bad):
    problem = "Let t be 12 plus 7. Find t plus 9."
    assert cheats(bad, problem, GIVEN) == [rule] and cheats(GOOD, problem, GIVEN) == []


def test_human_solutions_hardly_break_a_rule(real_data):
    rows = [dart.prepare(row) for row in common.load(str(real_data / "gsm8k"), "train")]
    fired = Counter(rule for row in rows for text in [row["solution"]] for rule in hard_fails(text, text, False) + cheats(text, row["problem"], ""))
    assert len(rows) > 7000 and all(n < 0.01 * len(rows) for n in fired.values()), fired


def test_equations_are_read_alone():
    assert false_equations("7+8=16. 7 - 3 = 3 and 4×5=21") == ["7+8=16", "7 - 3=3", "4 * 5=21"]
    for text in ("1+2+3=6", "3.5+2=5", "2+3=5.5", "1/2+3=4", "20 from 10+8", "2*3+4=10", "x+2=5", "10-3-2=5", "2^3+1=9", "1 + 2 + 3 = 6",
                 "10 - 3 - 2 = 5", "10 + 6 = 2^4", "5 + 7 = 3 * 4", "1,200 + 300 = 1500", "9:30 + 2 = 11:30", "5 + 6 = 13_8", "2x + 3 = 7",
                 "x -3 + 5 = 9", "12 mod 7=5", "3 + 4 = 7x", "a3 + 4 = 9", "2\\times 3 + 4 = 10"):
        assert false_equations(text) == [], text  # parts of longer ones are not judged


def test_right_solutions_in_the_students_own_styles_break_no_rule():
    rng = random.Random(5)
    for _ in range(500):
        problem = draw_problem(rng, 1.0, 0.3)
        given = world.expert_solution(problem)
        for style in range(4):
            text = solution(problem, style)
            assert hard_fails(text, given, False) == [] == cheats(text, problem.text, given), text
        assert "copy" in cheats(given, problem.text, given)


@pytest.mark.parametrize("text, problem, head", [
    ("The sum is 28. So \\boxed{28}.", "12+16?", "The sum is "), ("1+280=281, \\boxed{28}", "?", "1+280=281, \\boxed{"),
    ("28+1=29, 29-1=28: \\boxed{28}", "28 boys", "28+1=29, 29-1="),
    ("There are 28 boys; it is 28. \\boxed{28}", "28 boys", "There are 28 boys; it is "),
    ("nonsense which gives **28** \\boxed{28}", "?", "nonsense which gives **"), ("4 \\times 7 = \\$28", "?", "4 \\times 7 = \\$")])
def test_uplift_is_measured_before_the_answer(text, problem, head):
    assert dart.before_answer(text, "28", problem) == head
    assert dart.before_answer("700+380=1,080. \\boxed{1080}", "1080", "?") == "700+380="


def test_containment_against_a_naive_count():
    rng = random.Random(0)
    for _ in range(300):
        text, other = ([rng.choice("abc") for _ in range(rng.randint(1, 20))] for _ in range(2))
        n = min(8, len(text))
        naive = [any(other[j:j + n] == text[i:i + n] for j in range(len(other))) for i in range(len(text) - n + 1)]
        assert contained(" ".join(text), " ".join(other)) == pytest.approx(sum(naive) / len(naive))


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
    assert advantages([0.50, 0.52]) == pytest.approx([-0.2, 0.2])  # 0.01 / 0.05, not 1


def test_the_loss_by_hand():
    log_p, old, ref = torch.log(torch.tensor([0.5, 0.2])), torch.log(torch.tensor([0.25, 0.4])), torch.log(torch.tensor([0.5, 0.1]))
    kl = 0.5 - math.log(0.5) - 1  # of the second token; the first is as likely for both
    loss, shown = grpo_loss(log_p, old, ref, 1.0, 0.2, 0.1)  # ratios 2 and 0.5: the first is clipped to 1.2
    assert loss.item() == pytest.approx(0.1 * kl - 1.2 - 0.5, abs=1e-5) and shown.item() == pytest.approx(kl, abs=1e-5)
    loss, _ = grpo_loss(log_p, old, ref, -1.0, 0.2, 0.0)  # for a bad completion the worse of both counts
    assert loss.item() == pytest.approx(2.0 + 0.8, abs=1e-5)


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


def test_an_update_follows_the_policy_gradient_computed_naively(small_demonstrations):
    """The ratio is 1; token by token, sum A * grad log p, over all tokens of the batch, plus beta times the KL's, whatever the micro-batches."""
    student = with_adapter(small_demonstrations)
    pairs, a, beta = some_pairs(student), [1.0, -0.5, 2.0, -1.5], 0.3
    weights, n_tokens = [p for p in student.model.parameters() if p.requires_grad], sum(len(ids) - n for ids, n in pairs)
    total, total_kl = 0.0, 0.0
    for (ids, n), advantage in zip(pairs, a, strict=True):
        with torch.no_grad(), student.model.disable_adapter():
            base = naive_log_probs(student.model, ids, n)
        for log_p, reference in zip(naive_log_probs(student.model, ids, n), base, strict=True):
            kl = (reference - log_p).exp() - (reference - log_p) - 1
            total, total_kl = total + (-advantage * log_p + beta * kl) / n_tokens, total_kl + kl.item() / n_tokens
    gradient, before = torch.autograd.grad(total, weights), [p.detach().clone() for p in weights]
    found = dart.update(dart.Args(micro_batch=3, max_grad_norm=1e9), student, torch.optim.SGD(weights, lr=1.0),
                        [(*pair, advantage) for pair, advantage in zip(pairs, a, strict=True)], beta)
    assert found == pytest.approx(total_kl, rel=1e-3)
    for old, new, naive in zip(before, weights, gradient, strict=True):
        assert torch.allclose(old - new, naive, atol=2e-5, rtol=1e-3)
    assert max(one.abs().max() for one in gradient) > 1e-3


def test_what_is_sampled_has_the_log_probs_that_are_trained(small_demonstrations):
    """With its cache and left padding the sampler is the policy of the padded pass over whole completions: the old log-probs are the new ones."""
    student = with_adapter(small_demonstrations)._replace(stop_ids=frozenset({-1}))
    prompts = [common.prompt_ids(student.tokenizer, dart.question(text))
               for text in ("What is 3+4?", "Let t be 12+7. Find the digit sum of t.", "Go")]
    drawn = [out["tokens"] for out in common.sample(student, prompts, 1.0, 6, seed=3)]
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


def test_groups_of_equal_rewards_are_skipped_and_counted(small_demonstrations):
    student = with_adapter(small_demonstrations)
    rows = common.load(str(small_demonstrations), "train")[:3]
    weights = [p for p in student.model.parameters() if p.requires_grad]
    args = dart.Args(group=2, max_new_tokens=5, micro_batch=8)

    def step(rewards):
        before = [p.detach().clone() for p in weights]
        log = dart.grpo_step(args, student, torch.optim.SGD(weights, lr=0.1), rows, lambda row: dart.question(row["problem"]),
                             lambda drawn, outs: [{"reward": r, "is_right": False} for r in rewards], 0.01, (0, "step"))
        return log, any(not torch.equal(old, new) for old, new in zip(before, weights, strict=True))
    log, moved = step([0.3] * 6)
    assert (log["skipped"], log["kl"], log["drawn"]) == (3, None, 6) and not moved
    log, moved = step([0.3, 0.3, 0.3, 0.9, 0.3, 0.3])
    assert log["skipped"] == 2 and log["kl"] is not None and moved and log["reward"] == pytest.approx(0.4)


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
    assert "4 of 6 own answers are right" in capsys.readouterr().out
    hopeless = {key: [{"response": "\\boxed{2}", "cut_off": False}] for key in "abcd"}
    found = dart.measure(args, common.open_run(args, tmp_path / "hopeless"), lambda: None, rows, hopeless)
    assert {row["on"] for row in found} == {0.0} and "wrong answers stand in" in capsys.readouterr().out


def test_training_one_adapter_leaves_another_bit_equal(small_demonstrations):
    """A run trains the mapper and the target one after the other, each on its own copy of the base; even in one model an update is one adapter's."""
    import bitsandbytes as bnb
    from peft import LoraConfig
    student = with_adapter(small_demonstrations)
    student.model.add_adapter("target", LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False))
    before = {name: p.detach().clone() for name, p in student.model.named_parameters()}
    optimizer = bnb.optim.PagedAdamW8bit([p for p in student.model.parameters() if p.requires_grad], lr=1e-2)
    dart.update(dart.Args(), student, optimizer, [(*pair, a) for pair, a in zip(some_pairs(student), (1.0, -1.0, 0.5, -0.5), strict=True)], 0.01)
    moved = {name for name, p in student.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in student.model.named_parameters() if ".default." in name} and any(".target." in name for name in before)


# --- Whole runs. ------------------------------------------------------------------------------------------------------------------------------
SMALL = ["--rl-steps", "4", "--prompts", "4", "--group", "4", "--rl-lr", "1e-3", "--n-own", "2", "--n-rewrites", "2", "--limit", "10",
         "--epochs", "1", "--batch", "4", "--micro-batch", "16", "--no-checkpointing", "--lr", "1e-3", "--sample-batch", "50",
         "--max-new-tokens", "40", "--save-every", "2", "--curve", "2"]


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
    rows = [row for name in ("train", "test", "phrasings", "larger", "retention") for row in read(small_demonstrations / f"{name}.jsonl")]
    prompts = [common.prompt_ids(student.tokenizer, dart.question(row["problem"])) for row in rows]
    outs = [out for i in range(0, len(prompts), 50) for out in common.sample(student, prompts[i:i + 50], 0.0, 40, 0)]
    answers = [common.extract_answer(out["response"]) for out in outs]
    easy = [row | {"answer": answer, "solution": f"It is {answer}; \\boxed{{{answer}}}."}
            for row, answer in zip(rows, answers, strict=True) if answer]
    assert len(easy) >= 30, "the student writes hardly any answer"
    for name, part in (("train", easy[:16]), ("test", easy[16:30]), ("phrasings", rows[-10:]), ("larger", rows[-20:-10]),
                       ("retention", rows[:10])):
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
    arms = ["--arms", "base", "sft", "prompt", "best_of_n", "rejection", "grpo", "dart"]
    done = subprocess.run([sys.executable, "dart.py", *flags(easy, out, *arms)], cwd=folder, capture_output=True, text=True)
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
    assert len(steps) == 4 == cost["dart"]["rl_steps"] and all(len(row["fails"]) >= 0 and -1 <= row["reward"] <= 1 for row in steps)
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-4) or steps[0]["skipped"] == 4  # the adapter begins at the base
    policy = read(out / "2_steps_grpo.jsonl")  # half-way there its adapter is kept and tested
    halfway, = [i for i, row in enumerate(policy) if "points" in row]
    assert sum(row["generated"] for row in policy[:halfway]) < cost["dart"]["generated"] / 2 <= sum(row["generated"] for row in policy[:halfway + 1])
    assert policy[halfway]["points"] == [1] and (out / "adapter" / "grpo_1").is_dir() and len(read(out / "5_test_grpo_1.jsonl")) == len(
        read(out / "5_test_grpo.jsonl"))
    assert cost["dart"]["scored"] == sum(row["n_scored"] for row in read(out / "1_levels.jsonl") + made["dart"]) + sum(row["scored"] for row in steps)
    for arm in ("sft", "prompt", "best_of_n", "rejection", "dart"):
        pairs = read(out / f"train_{arm}.jsonl")
        assert len(pairs) == n and cost[arm]["sft_steps"] == math.ceil(n / 4)  # equal numbers of pairs and steps
        chosen = read(out / f"3_chosen_{arm}.jsonl")
        assert [row["solution"] for row in chosen] == [pair["messages"][1]["content"] for pair in pairs]
        assert result["data"][arm]["fallback"] == pytest.approx(sum(row["from"] == "given" for row in chosen) / n)
    for row in read(out / "3_chosen_rejection.jsonl"):
        assert row["from"] == "given" or common.score(row["solution"], row["answer"]) is True
    levels = read(out / "1_levels.jsonl")
    assert all(level["level"] <= 0 for level in levels) and sum(level["sample"] is None for level in levels) == n >= result["n_learnable"] > 0


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


def test_killed_in_grpo_it_ends_with_the_same_rewards_and_weights(whole_run, easy, tmp_path):
    out = tmp_path / "killed"
    command = ["dart.py", *flags(easy, out, "--arms", "sft", "grpo", "dart")]
    for name, at in (("mapper", 2), ("grpo", 3)):
        started.killed(f'"grpo": "{name}", "at": {at}', *command)
        assert (out / "adapter" / f"{name}.checkpoint.pt").exists()
    done = started.run(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, _ = whole_run
    compared = {path.relative_to(out) for path in out.rglob("*") if path.suffix in (".jsonl", ".safetensors") and path.name != "metrics.jsonl"}
    assert {Path(f"adapter/{name}/adapter_model.safetensors") for name in ("mapper", "grpo", "dart")} <= compared
    assert {Path(f"2_steps_{name}.jsonl") for name in ("mapper", "grpo")} <= compared
    for path in compared:
        assert (whole / path).read_bytes() == (out / path).read_bytes(), path.name
    one, two = (json.loads((run / "result.json").read_text())["cost"] for run in (whole, out))
    assert all(one[arm] == two[arm] for arm in two) and {"sft", "grpo", "dart"} <= two.keys()
    assert not list(out.rglob("*.checkpoint.pt")) + list(out.rglob("*.tmp")) + list(out.rglob("*.part"))


def test_grpo_goes_on_from_an_adapter_without_a_kl_term(whole_run, easy, tmp_path, call_file):
    whole, _ = whole_run
    adapter = whole / "adapter" / "sft"
    before = (adapter / "adapter_model.safetensors").read_bytes()
    done = call_file("dart.py", *flags(easy, tmp_path / "out", "--adapter", adapter, "--arms", "base", "grpo", "--budget-tokens", "400"))
    assert done.returncode == 0, done.stderr
    assert all(row["kl"] is None for row in read(tmp_path / "out" / "2_steps_grpo.jsonl"))
    assert (adapter / "adapter_model.safetensors").read_bytes() == before
    answers = [read(run / name) for run, name in ((whole, "5_test_sft.jsonl"), (tmp_path / "out", "5_test_base.jsonl"))]
    assert answers[0] == answers[1]  # base is the student with the adapter


def test_without_the_penalty_cheating_is_counted_only(easy, tmp_path, call_file):
    done = call_file("dart.py", *flags(easy, tmp_path / "out", "--arms", "base", "dart", "--no-penalty"))
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "out" / "3_rewrites_dart.jsonl")
    assert any(row["cheats"] and not row["fails"] for row in rows)
    for row in rows:
        assert row["reward"] == pytest.approx(reward(row["fails"], row["is_right"], row["align"], []))


def test_a_slice_of_real_gsm8k(real_data, easy, tmp_path, call_file):
    """Shows that human solutions run through all steps; a toy-sized student, which answers hardly any of them, shows no more than that."""
    argv = flags(easy, tmp_path / "out", "--n-demonstrations", "12", "--arms", "base", "sft", "dart", "--max-new-tokens", "60")
    argv[argv.index("--data") + 1] = str(real_data / "gsm8k")
    done = call_file("dart.py", *argv)
    assert done.returncode == 0, done.stderr
    assert "own answers are right" in done.stdout and len(read(tmp_path / "out" / "2_steps_mapper.jsonl")) == 4
    assert all("\\boxed{" in row["messages"][1]["content"] for row in read(tmp_path / "out" / "train_dart.jsonl"))


@pytest.mark.parametrize("change, words", [
    (["--arms", "grpo"], "--budget-tokens"), (["--adapter", "nowhere", "--arms", "base", "sft"], "--adapter"),
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


def test_the_toy_command_runs_on_perfect_demonstrations(tmp_path, run_file):
    done = run_file("-m", "toyworld", "dart", "--scale", "0.02", "--perfect", "--arms", "sft", "--limit", "5", "--epochs", "1", cwd=tmp_path,
                    env={"PYTHONPATH": str(ROOT), "TOYWORLD_DIR": str(tmp_path / "worlds")})
    assert done.returncode == 0, done.stderr[-2000:]
    made = next((tmp_path / "worlds").glob("demonstrations-0-*"))
    solutions = {row["problem"]: row["solution"] for row in read(made / "perfect" / "train.jsonl")}
    pairs = read(tmp_path / "runs" / "toy_dart" / "seed-0" / "train_sft.jsonl")
    assert len(pairs) == 12 and all(solutions[row["messages"][0]["content"].partition("\n\n")[0]] == row["messages"][1]["content"] for row in pairs)
    for column in ("in distribution", "out of distribution", "retention"):
        assert column in done.stdout


# --- The toy world's own check of the rewrites. -----------------------------------------------------------------------------------------------
def test_the_audit_by_hand(tmp_path):
    problem = "Let t be 12+7. Find the digit sum of t."
    sound, false, missing = ("12+7=19,\n1+9=10.\nSo \\boxed{10}.", "12+7=18,\n1+9=10.\nSo \\boxed{10}.", "1+9=10.\nSo \\boxed{10}.")
    rows = [{"id": str(i), "part": "D", "problem": problem} for i in range(5)]
    files = {"0_questions.jsonl": [*rows, {"id": "t", "part": "d", "problem": "?"}],
             "3_rewrites_dart.jsonl": [{"id": str(i), "response": text, "is_right": right, "fails": fails} for i, text, right, fails in (
                 (0, sound, True, []), (0, false, True, []), (1, missing, True, []), (1, sound, False, []), (2, sound, True, ["cut off"]))],
             "3_chosen_dart.jsonl": [{"id": str(i), "solution": text, "from": kind} for i, (text, kind) in enumerate((
                 (sound, "rewrite"), (missing, "rewrite"), (false, "rewrite"), (false, "given"), (sound, "rewrite")))]}
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    (tmp_path / "result.json").write_text(json.dumps({"arms": ["base", "dart"]}))
    both = {}
    for penalty, name in ((True, "dart"), (False, "no penalty")):
        (tmp_path / "args.json").write_text(json.dumps({"penalty": penalty}))
        counts = audit.count_rewrites(tmp_path)
        assert counts == {name: {"pass": [3, 5], "sound": [2, 4], "false": [1, 4], "missing": [1, 4]}}
        both |= counts
    assert audit.table([counts]).splitlines()[-1] == "| no penalty | 60.0 | 50.0 | 25.0 | 25.0 |"
    better = {"dart": {"pass": [1, 1], "sound": [4, 4], "false": [0, 4], "missing": [0, 4]}, "no penalty": both["no penalty"]}
    shown = audit.table([both, better]).splitlines()
    expected = "| dart minus no penalty | +20.0 [-234.1, +274.1] | +25.0 [-292.7, +342.7] | -12.5 ["  # means of 0 and 40, 0 and 50, 0 and -25
    assert shown[-1].startswith(expected)


def test_the_audit_counts_own_right_answers(tmp_path):
    (tmp_path / "args.json").write_text(json.dumps({"penalty": True}))
    (tmp_path / "result.json").write_text(json.dumps({"arms": ["rejection"]}))
    for name, row in (("0_questions", {"id": "0", "part": "D", "problem": "Find 12+7."}),
                      ("3_chosen_rejection", {"id": "0", "solution": "12+7=19. \\boxed{19}", "from": "rewrite"})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    assert audit.table([audit.count_rewrites(tmp_path)]).splitlines()[-1] == "| rejection |  | 100.0 | 0.0 | 0.0 |"
