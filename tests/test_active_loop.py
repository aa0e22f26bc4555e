"""The active loop's criteria by hand, its scores against naive computations, and whole runs in the toy world."""
import doctest
import json
import math
import random
from collections import Counter

import pytest
import torch

import active_loop
import common
from active_loop import by_gap, by_gradient, by_score, spearman
from tests import started
from tests.conftest import ROOT, read_cache
from toyworld import teacher as toy_teacher


def test_doctests():
    assert doctest.testmod(active_loop).failed == 0 and doctest.testmod(active_loop).attempted >= 2


# --- Criteria. --------------------------------------------------------------------------------------------------------------------------------
def test_the_highest_scores_come_first_and_none_has_no_place():
    assert by_score([0.1, 3.0, None, 2.0], random.Random(0)) == [1, 3, 0]
    assert by_score([], random.Random(0)) == [] and by_score([None, None], random.Random(0)) == []


def test_equal_scores_come_in_random_order():
    orders = Counter(tuple(by_score([0.0, 1.0, 0.0, 0.0], random.Random(seed))) for seed in range(600))
    assert len(orders) == 6 and all(order[0] == 1 for order in orders) and min(orders.values()) > 60
    assert by_score([0.0] * 9, random.Random(1)) == by_score([0.0] * 9, random.Random(1))


def test_gumbel_top_m_draws_by_the_softmax():
    scores, tau, n = [0.0, 1.0, 2.0], 0.7, 6000
    first = Counter(by_score(scores, random.Random(seed), tau)[0] for seed in range(n))
    total = sum(math.exp(score / tau) for score in scores)
    for i, score in enumerate(scores):
        p = math.exp(score / tau) / total
        assert abs(first[i] - n * p) < 4 * (n * p * (1 - p)) ** 0.5
    assert by_score(scores, random.Random(0), 1e-6) == [2, 1, 0]


def test_lion_takes_half_hard_half_easy():
    gaps = [2.0, 0.0, 1.0, 0.9, None, 5.0, -3.0, 0.0]  # hard: 0, 2, 5
    top_ups = by_gap([2.0] * 20 + [0.0] * 20, 10, random.Random(0))[10:20]
    assert sum(i < 20 for i in top_ups) == 5  # what follows is mixed as well
    order = by_gap(gaps, 4, random.Random(0))
    assert set(order[:2]) < {0, 2, 5} and set(order[2:4]) <= {1, 3, 6, 7} and sorted(order) == [0, 1, 2, 3, 5, 6, 7]
    assert set(by_gap([0.0] * 5, 4, random.Random(0))[:4]) <= set(range(5)) and len(by_gap([9.0] * 3, 4, random.Random(0))) == 3


def test_badge_takes_one_of_each_tight_cluster_first():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[10.0, 0.0], [0.0, 9.0]])
    sketches = torch.cat([centre + 0.01 * torch.randn(20, 2, generator=generator) for centre in centres])
    for seed in range(50):
        order = by_gradient(sketches, list(range(40)), 2, random.Random(seed))
        assert order[0] < 20 <= order[1]  # the larger norm, then the other cluster
        assert sorted(order) == list(range(40))
    assert by_gradient(torch.zeros(3, 2), [0, 2], 2, random.Random(0)) in ([0, 2], [2, 0])


def test_badge_draws_by_squared_distance():
    sketches = torch.tensor([[5.0, 0.0], [4.0, 0.0], [3.0, 0.0], [5.0, 0.0]])  # squared distances from the first: 1, 4, 0
    second = Counter(by_gradient(sketches, [0, 1, 2, 3], 2, random.Random(seed))[1] for seed in range(2000))
    assert set(second) == {1, 2} and abs(second[2] - 1600) < 80


def test_spearman_by_hand():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == 1 and spearman([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.948683, abs=1e-5)  # ranks 1, 2.5, 2.5, 4
    assert spearman([1, 1], [2, 3]) is None and spearman([], []) is None


# --- Scores. ----------------------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def student(small_world):
    return common.load_student(str(small_world / "student"))


def pairs_of(student, n=6):
    texts = ["3+4=7.\nSo \\boxed{7}.", "First 12+9=21.\nAnswer: \\boxed{21}.", "\\boxed{5}", "1", "It is 12*5=60,\nso \\boxed{60}.", "no"]
    return [active_loop.encode(student, [*active_loop.question(f"What is {i}+{i * i}?"), {"role": "assistant", "content": text}], 10**6)
            for i, text in enumerate(texts[:n])]


def naive_loss(student, ids, n):
    logits = student.model(input_ids=torch.tensor([ids])).logits[0].float()
    return sum(-logits[t - 1].log_softmax(-1)[ids[t]].item() for t in range(n, len(ids))) / (len(ids) - n)


def test_the_loss_is_the_mean_over_the_answer_and_its_end(student):
    pairs = pairs_of(student)
    found = active_loop.score_answers(student, pairs)
    for (ids, n), row in zip(pairs, found, strict=True):
        assert ids[-1] in student.stop_ids and row["loss"] == pytest.approx(naive_loss(student, ids, n), abs=2e-4)


def test_the_end_that_a_greedy_answer_wrote_is_scored(student):
    """Base models end with another token than the chat's: of several end tokens the likeliest is the one that was written."""
    pairs = pairs_of(student)
    last = [student.model(input_ids=torch.tensor([ids])).logits[0, -2].float() for ids, _ in pairs]
    other = next(logits.argmax().item() for logits in last if logits.argmax().item() not in student.stop_ids)  # likelier than the end there
    two = student._replace(stop_ids=student.stop_ids | {other})
    for (ids, n), row, logits in zip(pairs, active_loop.score_answers(two, pairs), last, strict=True):
        end = max(two.stop_ids, key=lambda token: logits[token].item())
        assert row["loss"] == pytest.approx(naive_loss(student, [*ids[:-1], end], n), abs=2e-4)


def test_the_score_does_not_depend_on_batch_and_padding(student):
    pairs = pairs_of(student)
    together = active_loop.score_answers(student, pairs, sketch_seed=0)
    for i, pair in enumerate(pairs):
        alone, = active_loop.score_answers(student, [pair], sketch_seed=0)
        assert alone["loss"] == pytest.approx(together[i]["loss"], abs=2e-4)
        assert torch.allclose(alone["sketch"], together[i]["sketch"], atol=1e-3 * together[i]["sketch"].abs().max().item() + 1e-5)


def test_uniform_logits_give_log_v(student):
    import copy
    flat = student._replace(model=copy.deepcopy(student.model))
    flat.model.lm_head = torch.nn.Linear(flat.model.config.hidden_size, flat.model.config.vocab_size, bias=False)
    torch.nn.init.zeros_(flat.model.lm_head.weight)
    for row in active_loop.score_answers(flat, pairs_of(student)):
        assert row["loss"] == pytest.approx(math.log(flat.model.config.vocab_size), abs=1e-5)


def test_the_sketch_is_that_of_the_last_layers_gradient(student):
    """R_v^T g R_h with g taken by autograd from the loss; and distances of sketches are near those of the gradients."""
    pairs, head = pairs_of(student), student.model.lm_head
    generator = torch.Generator().manual_seed(3)
    of_v, of_h = (torch.randn(n, 64, generator=generator) / 8 for n in (head.out_features, head.in_features))
    rows, gradients = active_loop.score_answers(student, pairs, sketch_seed=3), []
    for ids, n in pairs:
        hidden = common.hidden_states(student.model, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))[0].detach().float()
        weight = head.weight.detach().float().clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(hidden[n - 1:-1] @ weight.T, torch.tensor(ids[n:]))
        loss.backward()
        gradients.append(weight.grad)
    for row, gradient in zip(rows, gradients, strict=True):
        expected = (of_v.T @ gradient @ of_h).flatten()
        assert torch.allclose(row["sketch"], expected, atol=1e-3 * expected.abs().max().item())
    for i in range(len(rows)):
        for j in range(i):
            near = (rows[i]["sketch"] - rows[j]["sketch"]).norm() / (gradients[i] - gradients[j]).norm()
            assert 0.7 < near < 1.3


# --- Whole runs. --------------------------------------------------------------------------------------------------------------------------------
SMALL = ["--n-seeds", "60", "--limit", "40", "--rounds", "2", "--per-round", "20", "--epochs", "1", "--batch", "16", "--micro-batch", "16",
         "--no-checkpointing", "--lr", "1e-3", "--sample-batch", "50", "--max-new-tokens", "60", "--concurrency", "4"]


def flags(small_world, url, out, *more):
    return [str(x) for x in ("--student", small_world / "student", "--data", small_world, "--teacher", "toy", "--teacher-url", url, "--out", out,
                             *SMALL, *more)]


def assert_ranked(chosen):
    """The seeds of the highest scores first; those without a score, whose answer was cut off, last."""
    ranked, last = chosen["order"][:len(chosen["scores"])], chosen["order"][len(chosen["scores"]):]
    values = [chosen["scores"][i] for i in ranked]
    assert values == sorted(values, reverse=True) and len(last) == chosen["cut_off"] and not set(last) & chosen["scores"].keys()


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_run(small_world, tmp_path_factory):
    server, url = toy_teacher.serve()
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = started.run("active_loop.py", *flags(small_world, url, out))
    server.shutdown()
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stdout


def test_a_run_adds_items_round_by_round(whole_run, small_world):
    out, printed = whole_run
    curve = json.loads((out / "result.json").read_text())["curve"]
    assert [row["items"] for row in curve] == [0, 20, 40] and [row["round"] for row in curve] == [0, 1, 2]
    assert all(row["right"] == [sum(one["is_right"] is True for one in read(out / f"r{row['round']}_test.jsonl")), 40] for row in curve)
    problems = {row["id"]: row["problem"] for split in ("train", "test") for row in common.load(str(small_world), split)}
    parts = {part: {row["id"] for row in read(out / "0_questions.jsonl") if row["part"] == part} for part in ("D_0", "test")}
    assert len(parts["D_0"]) == 60 and len(parts["test"]) == 40
    items = [row for t in (0, 1) for row in json.loads((out / f"r{t}_items.json").read_text())["rows"]]
    good = [row for row in items if not row["dropped"]]
    texts = [common.plain(row["problem"]) for row in good]
    assert len(set(texts)) == len(texts) == 40 and not set(texts) & {common.plain(problems[i]) for ids in parts.values() for i in ids}
    assert {row["seed"] for row in items} <= parts["D_0"]  # new questions never join the pool
    for t in (1, 2):  # the union of all items so far
        assert [row["messages"][1]["content"] for row in read(out / f"train_r{t}.jsonl")] == [row["response"] for row in good[:20 * t]]
    calls = Counter(row["step"] for row in read_cache(out / "teacher.sqlite"))
    for t in (0, 1):
        rows = json.loads((out / f"r{t}_items.json").read_text())["rows"]
        assert calls[f"r{t} write"] == len(rows) and calls[f"r{t} solve"] <= len(rows)  # two calls for each seed that is asked
    assert curve[2]["tokens"] == [sum(row[n] for row in read_cache(out / "teacher.sqlite")) for n in ("n_in", "n_out")]


def test_the_seeds_of_the_highest_loss_are_asked(whole_run):
    out, _ = whole_run
    for t in (0, 1):
        chosen = json.loads((out / f"r{t}_selected.json").read_text())
        assert_ranked(chosen)
        assert len(chosen["order"]) == 60 == len(chosen["scores"]) + chosen["cut_off"]
        asked = [row["seed"] for row in json.loads((out / f"r{t}_items.json").read_text())["rows"]]
        assert asked == chosen["order"][:len(asked)]
        children, rows = json.loads((out / f"r{t}_child_losses.json").read_text()), json.loads((out / f"r{t}_items.json").read_text())["rows"]
        both = [(chosen["losses"][row["seed"]], children[row["id"]]) for row in rows if row["id"] in children]
        told = json.loads((out / "result.json").read_text())["curve"][t]
        assert told["rho_children"] == spearman(*zip(*both, strict=True)) and -1 <= told["rho_length"] <= 1
    assert chosen["scores"] != json.loads((out / "r0_selected.json").read_text())["scores"]  # by the student of that round


def test_killed_twice_it_ends_the_same_and_pays_nothing_twice(whole_run, small_world, tmp_path):
    asked = []
    reply = toy_teacher.reply

    def counting(prompt, seed):
        if prompt != "Say yes.":  # of Teacher.check
            asked.append((prompt, seed))
        return reply(prompt, seed)
    toy_teacher.reply = counting
    server, url = toy_teacher.serve()
    out = tmp_path / "killed"
    command = ["active_loop.py", *flags(small_world, url, out)]
    try:
        for step in ("r0 solve", "r1 write"):
            started.killed(f"teacher: {step}", *command, nth=5)
            assert not (out / f"{step[:2]}_items.json").exists()
        done = started.run(*command)
    finally:
        server.shutdown()
        toy_teacher.reply = reply
    assert done.returncode == 0, done.stderr[-3000:]
    whole, _ = whole_run
    for path in whole.rglob("*"):
        if path.suffix in (".jsonl", ".safetensors") and path.name != "metrics.jsonl" or path.name.endswith("_items.json"):
            assert path.read_bytes() == (out / path.relative_to(whole)).read_bytes(), path.name
    assert len(asked) - len(set(asked)) <= 8  # calls in flight at the kills
    one, two = (json.loads((run / "result.json").read_text()) for run in (whole, out))
    assert one["curve"] == two["curve"]


@pytest.mark.parametrize("select", ["random", "static_loss", "badge", "incorrect", "judge", "lion", "true_loss"])
def test_every_criterion_runs(select, small_world, tmp_path, teacher_url, call_file):
    out = tmp_path / "out"
    done = call_file("active_loop.py", *flags(small_world, teacher_url, out, "--select", select, "--no-repeat", "--per-round", "8", "--limit", "10"))
    assert done.returncode == 0, done.stderr
    asked = [[row["seed"] for row in json.loads((out / f"r{t}_items.json").read_text())["rows"]] for t in (0, 1)]
    assert not set(asked[0]) & set(asked[1]) and [row["items"] for row in json.loads((out / "result.json").read_text())["curve"]] == [0, 8, 16]
    if select == "static_loss":
        kept = [json.loads((out / f"r{t}_selected.json").read_text()) for t in (0, 1)]
        assert kept[0]["scores"] == kept[1]["scores"] and [*asked[0], *asked[1]] == kept[0]["order"][:len(asked[0]) + len(asked[1])]
    # Which way round: the first seeds are those that the student has wrong, or has the higher loss on.
    chosen = json.loads((out / "r0_selected.json").read_text())
    first = [chosen["scores"][i] for i in chosen["order"] if i in chosen["scores"]]
    gold = {row["id"]: row["answer"] for row in common.load(str(small_world), "train")}
    if select in ("judge", "lion", "incorrect"):
        wrong = {row["id"]: not common.score(row["response"], gold[row["id"]]) for row in read(out / "r0_answers.jsonl")}
        by_wrong = [[chosen["scores"][i] for i in chosen["scores"] if wrong[i] is value] for value in (True, False)]
        assert by_wrong[0] and by_wrong[1] and sum(by_wrong[0]) / len(by_wrong[0]) > sum(by_wrong[1]) / len(by_wrong[1])
    if select in ("judge", "incorrect", "true_loss"):
        assert first == sorted(first, reverse=True)
    if select in ("judge", "lion"):
        assert sum("judge" in row["step"] for row in read_cache(out / "teacher.sqlite")) > 20
    assert len(chosen["order"]) == 60  # what has no score comes last


def test_marks_are_read():
    class Replies:
        def ask(self, requests, step):
            return [common.Reply(text, 1, 1) for text in texts]
    texts = ["<mark>8</mark>", "<mark>8/10</mark>", "<mark>7 out of 10</mark>", "8", "<mark>11</mark>", "<mark>8, 7</mark>"]
    rows = [{"problem": "q"}] * 6
    assert active_loop.mark(active_loop.Args(), Replies(), rows, [["a"]] * 6, "judge") == [[8], [8], [7], None, None, None]
    texts = ["<mark>8, 7</mark>", "<mark>8/10, 7/10</mark>", "<mark>8/10</mark>"]
    assert active_loop.mark(active_loop.Args(), Replies(), rows[:3], [["a", "b"]] * 3, "judge") == [[8, 7], [8, 7], None]


def test_a_reward_model_is_loaded(small_world, tmp_path, teacher_url, call_file):
    """Shows that it runs with a real sequence-classification checkpoint; this one has random weights."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification
    tokenizer = AutoTokenizer.from_pretrained(small_world / "student")
    torch.manual_seed(0)
    LlamaForSequenceClassification(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_labels=1,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    done = call_file("active_loop.py", *flags(small_world, teacher_url, tmp_path / "out", "--select", "reward", "--reward-model", tmp_path / "reward",
                                              "--rounds", "1", "--per-round", "8", "--limit", "10"))
    assert done.returncode == 0, done.stderr
    chosen = json.loads((tmp_path / "out" / "r0_selected.json").read_text())
    assert len(set(chosen["scores"].values())) > 20
    assert_ranked(chosen)


def test_static_loss_walks_down_its_ranking_where_seeds_may_come_again(small_world, tmp_path, teacher_url, call_file):
    out = tmp_path / "out"
    done = call_file("active_loop.py", *flags(small_world, teacher_url, out, "--select", "static_loss", "--per-round", "8", "--limit", "10"))
    assert done.returncode == 0, done.stderr
    asked = [row["seed"] for t in (0, 1) for row in json.loads((out / f"r{t}_items.json").read_text())["rows"]]
    assert asked == json.loads((out / "r0_selected.json").read_text())["order"][:len(asked)]


def test_a_warm_start_goes_on_from_the_last_round(small_world, tmp_path, teacher_url, call_file):
    """The first round is trained alike; the second, on the same items, from another student."""
    weights = {}
    for name, more in (("cold", []), ("warm", ["--warm-start"])):
        done = call_file("active_loop.py", *flags(small_world, teacher_url, tmp_path / name, "--select", "random", "--per-round", "8",
                                                  "--limit", "10", "--batch", "2", *more))  # the first of the steps is at lr 0
        assert done.returncode == 0, done.stderr
        weights[name] = [(tmp_path / name / "adapter" / f"r{t}" / "adapter_model.safetensors").read_bytes() for t in (1, 2)]
    assert (tmp_path / "cold" / "train_r2.jsonl").read_bytes() == (tmp_path / "warm" / "train_r2.jsonl").read_bytes()
    assert weights["cold"][0] == weights["warm"][0] and weights["cold"][1] != weights["warm"][1]


def test_warm_start_sampling_and_the_budget(small_world, tmp_path, teacher_url, call_file):
    out = tmp_path / "out"
    done = call_file("active_loop.py", *flags(small_world, teacher_url, out, "--warm-start", "--sampling", "0.5", "--rounds", "3", "--per-round", "8",
                                              "--limit", "10", "--budget-tokens", "2500"))
    assert done.returncode == 0, done.stderr
    curve = json.loads((out / "result.json").read_text())["curve"]
    assert sum(curve[-2]["tokens"]) < 2500 <= sum(curve[-1]["tokens"]) and len(curve) < 4  # no further round is begun
    chosen = json.loads((out / "r0_selected.json").read_text())
    assert [i for i in chosen["order"] if i in chosen["scores"]] != sorted(chosen["scores"], key=chosen["scores"].get, reverse=True)


@pytest.mark.parametrize("data, more", [("gsm8k", []), ("math", ["--levels", "1", "2", "3"])])
def test_a_slice_of_real_data(data, more, real_data, small_world, tmp_path, teacher_url, call_file):
    """Shows that it runs on GSM8K and on MATH's levels 1 to 3; a toy student and a toy teacher show no more than that."""
    argv = flags(small_world, teacher_url, tmp_path / "out", "--n-seeds", "30", "--per-round", "6", "--rounds", "1", "--limit", "12",
                 "--max-new-tokens", "100", *more)
    argv[argv.index("--data") + 1] = str(real_data / data)
    done = call_file("active_loop.py", *argv)
    assert done.returncode == 0, done.stderr
    assert [row["items"] for row in json.loads((tmp_path / "out" / "result.json").read_text())["curve"]][1] > 0


def test_the_toy_command_compares_loss_with_random(tmp_path, run_file):
    """On deduction; on mathematics the other tests of this file run."""
    done = run_file("-m", "toyworld", "active_loop", "--family", "deduction", "--scale", "0.04", "--n-seeds", "30", "--limit", "10", "--rounds", "1",
                    "--per-round", "6", "--epochs", "1", cwd=tmp_path, env={"TOYWORLD_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
    assert "**deduction**" in done.stdout and "A1: loss > random" in done.stdout and "Warning" not in done.stderr
    assert (tmp_path / "runs" / "toy_active_loop" / "active_curve.png").exists()
    args = json.loads((tmp_path / "runs" / "toy_active_loop" / "seed-0" / "deduction" / "loss" / "args.json").read_text())
    assert args["n_agreeing"] == 5  # of True and False three of five agree too easily


def test_verification_keeps_what_most_answers_agree_on(small_world, tmp_path, teacher_url, call_file):
    out = tmp_path / "out"
    done = call_file("active_loop.py", *flags(
        small_world, teacher_url, out, "--select", "random", "--verify", "sc", "--rounds", "1", "--limit", "10"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "r0_items.json").read_text())["rows"]
    assert sum(not row["dropped"] for row in rows) == 20 and len(rows) > 20  # topped up from the order
    assert Counter(row["step"] for row in read_cache(out / "teacher.sqlite"))["r0 solve"] > 90


@pytest.mark.parametrize("change, words", [
    (["--select", "reward"], "belong together"), (["--select", "best"], "best"), (["--n-agreeing", "9"], "--n-agreeing"),
    (["--rounds", "0"], "--rounds"), (["--levels", "9"], "0 questions to draw from"), (["--student", "nowhere"], "no such folder"),
    (["--sampling", "-1"], "--sampling"), (["--sampling", "1", "--select", "badge"], "no scores to draw by"),
    (["--no-repeat", "--rounds", "9"], "need more seeds than the 60")])
def test_a_mistake_gets_one_sentence(change, words, small_world, tmp_path, call_file):
    argv = flags(small_world, "http://127.0.0.1:9/v1", tmp_path / "out")
    if change[0] in argv:
        del argv[argv.index(change[0]):argv.index(change[0]) + 2]
    done = call_file("active_loop.py", *argv, *change)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("error:") == 1 and not (tmp_path / "out").exists(), done.stderr


def test_plan_sends_nothing(small_world, tmp_path, call_file):
    done = call_file("active_loop.py", *flags(small_world, "http://127.0.0.1:9/v1", tmp_path / "out", "--plan"))
    assert done.returncode == 0 and "inspired by this one" in done.stdout and not (tmp_path / "out").exists(), done.stderr
    assert [line.split()[-5] for line in done.stdout.splitlines() if line.startswith(("write", "solve"))] == ["40", "40"]
