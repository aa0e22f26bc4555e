"""The active loop's criteria by hand, its scores against naive computations, and whole runs in the toy world."""
import doctest
import functools
import json
import math
import random
import re
import shutil
from collections import Counter

import pytest
import torch

import active_loop
import common
import gather
import report
from active_loop import by_gap, by_gradient, by_score, spearman
from tests import started
from tests.conftest import read_cache
from toyworld import audit, deduction
from toyworld import teacher as toy_teacher


def test_doctests():
    assert doctest.testmod(active_loop).failed == 0 and doctest.testmod(active_loop).attempted >= 2


# --- Criteria. ------------------------------------------------------------------------------------------------
def test_the_highest_scores_come_first():
    assert by_score({"a": 0.1, "b": 3.0, "c": 2.0}, random.Random(0)) == ["b", "c", "a"]
    assert by_score({}, random.Random(0)) == []


def test_equal_scores_come_in_random_order():
    scores = {"a": 0.0, "b": 1.0, "c": 0.0, "d": 0.0}
    orders = Counter(tuple(by_score(scores, random.Random(seed))) for seed in range(600))
    assert len(orders) == 6 and all(order[0] == "b" for order in orders) and min(orders.values()) > 60
    assert by_score(scores, random.Random(1)) == by_score(scores, random.Random(1))


def test_gumbel_top_m_draws_by_the_softmax():
    scores, tau, n = {"a": 0.0, "b": 1.0, "c": 2.0}, 0.7, 6000
    first = Counter(by_score(scores, random.Random(seed), tau)[0] for seed in range(n))
    total = sum(math.exp(score / tau) for score in scores.values())
    for i, score in scores.items():
        p = math.exp(score / tau) / total
        assert abs(first[i] - n * p) < 4 * (n * p * (1 - p)) ** 0.5
    assert by_score(scores, random.Random(0), 1e-6) == ["c", "b", "a"]


def test_lion_takes_easy_and_hard_seeds_in_turn():
    gaps = {"a": 2.0, "b": 0.0, "c": 1.0, "d": 0.9, "e": 5.0, "f": -3.0, "g": 0.0}  # hard: a, c, e
    order = by_gap(gaps, random.Random(0))
    assert {*order[0:6:2], order[6]} == {"b", "d", "f", "g"} and set(order[1:6:2]) == {"a", "c", "e"}
    assert len({tuple(by_gap(gaps, random.Random(seed))) for seed in range(50)}) > 20  # each kind at random
    assert sorted(by_gap({"a": 0.0, "b": 0.5}, random.Random(0))) == ["a", "b"] and by_gap({}, random.Random(0)) == []
    assert sorted(by_gap({"a": 9.0, "b": 1.0, "c": 2.0}, random.Random(0))) == ["a", "b", "c"]


def test_badge_takes_one_of_each_tight_cluster_first():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[10.0, 0.0], [0.0, 9.0]])
    points = torch.cat([centre + 0.01 * torch.randn(20, 2, generator=generator) for centre in centres])
    for seed in range(50):
        order = by_gradient(dict(enumerate(points)), 2, random.Random(seed))
        assert order[0] < 20 <= order[1]  # the larger norm, then the other cluster
        assert sorted(order) == list(range(40))
    assert sorted(by_gradient({"a": torch.zeros(2), "b": torch.zeros(2)}, 2, random.Random(0))) == ["a", "b"]
    assert by_gradient({}, 2, random.Random(0)) == []


def test_badge_draws_by_squared_distance():
    points = {"a": torch.tensor([5.0, 0.0]), "b": torch.tensor([4.0, 0.0]), "c": torch.tensor([3.0, 0.0]),
              "d": torch.tensor([5.0, 0.0])}  # squared distances from the first: 1, 4, 0
    second = Counter(by_gradient(points, 2, random.Random(seed))[1] for seed in range(2000))
    assert set(second) == {"b", "c"} and abs(second["c"] - 1600) < 80


def test_spearman_by_hand():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == 1 and spearman([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.948683, abs=1e-5)  # ranks 1, 2.5, 2.5, 4
    assert spearman([1, 1], [2, 3]) is None and spearman([], []) is None


@pytest.mark.parametrize("reply, n, expected", [
    ("<mark>8</mark>", 1, [8]), ("<mark>8/10</mark>", 1, [8]), ("<mark>7 out of 10</mark>", 1, [7]), ("8", 1, None),
    ("<mark>11</mark>", 1, None), ("<mark>8, 7</mark>", 1, None), ("<mark>8, 7</mark>", 2, [8, 7]), (None, 1, None),
    ("<mark>8/10, 7/10</mark>", 2, [8, 7]), ("<mark>8/10</mark>", 2, None), ("<mark>0.5</mark>", 1, None)])
def test_marks_are_read(reply, n, expected):
    assert active_loop.read_marks(reply, n) == expected


class Judge:
    """A teacher that marks an answer with the number of its letters, and keeps what it is asked."""
    used = Counter()

    def __init__(self):
        self.prompts = []

    def ask(self, requests, step, reads=None):
        prompts = [request.messages[0]["content"] for request in requests]
        self.prompts += prompts
        found = [re.findall(r"<response>\n(.*?)\n</response>", prompt, re.DOTALL) for prompt in prompts]
        return [common.Reply(f"<mark>{', '.join(str(len(text)) for text in texts)}</mark>", 1, 1) for texts in found]


def test_the_gap_is_the_mean_over_both_orders():
    class OfPlace(Judge):  # marks the first answer two higher
        def ask(self, requests, step, reads=None):
            return [one and common.Reply(re.sub(r"\d+", lambda m: str(int(m[0]) + 2), one.text, count=1), 1, 1)
                    for one in super().ask(requests, step)]
    rows = [{"id": i, "problem": "q", "subject": None, "solution": None} for i in "abc"]
    gaps = active_loop.lion_gaps(active_loop.Args(), OfPlace(), rows, ["x", "xxx", "x" * 20], ["xxxx", "x", "xx"], "r0 judge")
    assert gaps == [3, -2, None]  # a mark of 20 is none


# --- Selection: an answer that was cut off comes last, and is paid for no judge. ---------------------------------
CUT_OFF = ("2", "5", "8")
SEEDS = [{"id": str(i), "problem": f"q{i}", "solution": "s" * i, "answer": "7", "subject": None} for i in range(12)]


class Says:
    """A teacher whose every reply is one text; asks as the true one does whether the replies can be read."""
    def __init__(self, text):
        self.text = text

    def ask(self, requests, step, max_none=None, reads=str):
        if reads(self.text) is None:
            raise common.UserError("not in the form asked for")
        return [common.Reply(self.text, 1, 1)] * len(requests)


def test_a_teacher_that_keeps_to_no_form_is_told_at_once():
    args, rows = active_loop.Args(), [{"problem": "Find 1+1.", "subject": None, "solution": None}]
    solved = [dict(rows[0])]
    active_loop.solve_items(args, 0, Says("So \\boxed{2}."), solved, None)
    assert solved[0]["answer"] == "2" and active_loop.judge_marks(args, Says("<mark>8, 7</mark>"), rows, [["a", "b"]], "judge") == [[8, 7]]
    with pytest.raises(common.UserError, match="form"):
        active_loop.solve_items(args, 0, Says("The answer is 2."), solved, None)  # readable, but no item may come of it
    with pytest.raises(common.UserError, match="form"):
        active_loop.judge_marks(args, Says("<mark>Response 1: 8/10, Response 2: 7/10</mark>"), rows, [["a", "b"]], "judge")
    assert active_loop.judge_marks(args, Says("<mark>8</mark>"), [], [], "judge") == []


def selected(criterion, tmp_path, monkeypatch, asked=(), t=0, teacher=None, **more):
    """What select() chooses among twelve seeds, of which three are cut off; the loss is the length of the text."""
    own = {row["id"]: {"id": row["id"], "response": "x" * (int(row["id"]) % 7 + 1), "cut_off": row["id"] in CUT_OFF,
                       "n_tokens": int(row["id"])} for row in SEEDS}
    own["4"]["response"] = "\\boxed{7}"  # the one right answer
    monkeypatch.setattr(active_loop, "answer_once", lambda *_: own)
    monkeypatch.setattr(active_loop, "losses", lambda args, student, rows, texts: {
        row["id"]: {"loss": float(len(texts[row["id"]])), "sketch": torch.tensor([float(row["id"])])}
        for row in rows if row["id"] in texts})
    monkeypatch.setattr(active_loop, "reward_scores", lambda args, rows, own: [float(len(text)) for text in own])
    args = active_loop.Args(select=criterion, per_round=3, **more)
    student, run = functools.cache(lambda: None), common.Run(tmp_path, None)
    own = active_loop.answer_seeds(args, run, t, student, SEEDS)
    return active_loop.select(args, run, t, teacher or Judge(), student, SEEDS, own, list(asked))


@pytest.mark.parametrize("criterion", ["loss", "loss_low", "static_loss", "reward", "judge", "lion", "badge", "incorrect"])
def test_answers_cut_off_come_last_and_are_counted(criterion, tmp_path, monkeypatch, capsys):
    teacher = Judge()
    chosen = selected(criterion, tmp_path, monkeypatch, teacher=teacher)
    assert set(chosen["order"][-3:]) == set(CUT_OFF) and len(chosen["order"]) == 12 and chosen["cut_off"] == 3
    assert not set(CUT_OFF) & chosen["scores"].keys() and "3 of 12 answers cut off" in capsys.readouterr().out
    judged = [prompt for prompt in teacher.prompts if "<mark>" in prompt]
    assert len(judged) == {"judge": 9, "lion": 18}.get(criterion, 0)
    assert not [prompt for prompt in judged if any(f"\nq{i}\n" in prompt for i in CUT_OFF)]


@pytest.mark.parametrize("criterion", ["random", "true_loss"])
def test_what_reads_no_answer_knows_no_cut_off(criterion, tmp_path, monkeypatch, capsys):
    chosen = selected(criterion, tmp_path, monkeypatch)
    assert chosen["scores"].keys() == {row["id"] for row in SEEDS} and chosen["cut_off"] == 0
    assert "cut off" not in capsys.readouterr().out
    if criterion == "true_loss":
        assert chosen["order"] == [str(i) for i in range(11, -1, -1)]  # by the length of the seed's own solution


def test_the_first_seeds_by_hand(tmp_path, monkeypatch):
    """Own answers: 9 letters at "4", 7 at "6", 6 at "5" (cut off), 5 at "11", 1 at "0" and "7", 2 at "1" and "8" (cut off)."""
    def order(criterion, **more):
        (tmp_path / criterion).mkdir()
        return selected(criterion, tmp_path / criterion, monkeypatch, **more)["order"]
    assert order("loss")[:3] == ["4", "6", "11"] and set(order("loss_low")[:2]) == {"0", "7"}
    assert set(order("judge")[:2]) == {"0", "7"} and order("reward")[:2] == ["4", "6"]
    assert order("incorrect")[8] == "4"  # right: after the eight wrong ones, before those cut off


def test_a_seed_without_a_readable_mark_comes_before_those_cut_off(tmp_path, monkeypatch):
    class Silent(Judge):
        def ask(self, requests, step, reads=None):
            return [None if "\nq6\n" in one.messages[0]["content"] else reply
                    for one, reply in zip(requests, super().ask(requests, step), strict=True)]
    chosen = selected("judge", tmp_path, monkeypatch, teacher=Silent())
    assert chosen["order"][8] == "6" and set(chosen["order"][9:]) == set(CUT_OFF) and chosen["cut_off"] == 3


def test_no_repeat_bars_what_was_asked_and_does_not_judge_it(tmp_path, monkeypatch):
    teacher = Judge()
    chosen = selected("judge", tmp_path, monkeypatch, asked=[["0", "2"], ["3"]], t=2, teacher=teacher, no_repeat=True)
    assert sorted(chosen["order"], key=int) == ["1", "4", "5", "6", "7", "8", "9", "10", "11"]
    assert len(teacher.prompts) == 7 and chosen["cut_off"] == 3


def test_the_same_seed_selects_the_same_and_another_round_draws_anew(tmp_path, monkeypatch):
    orders = []
    for name, t in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        orders.append(selected("random", tmp_path / name, monkeypatch, t=t)["order"])
    assert orders[0] == orders[1] != orders[2]


# --- Scores. ----------------------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def student(small_world):
    return common.load_student(str(small_world / "student"))


def pairs_of(student, n=6):
    texts = ["3+4=7.\nSo \\boxed{7}.", "First 12+9=21.\nAnswer: \\boxed{21}.", "\\boxed{5}", "1", "It is 12*5=60,\nso \\boxed{60}.", "no"]
    return [active_loop.encode(student, [*active_loop.question(f"What is {i}+{i * i}?"), {"role": "assistant", "content": text}], 10**6)
            for i, text in enumerate(texts[:n])]


def naive_loss(student, ids, n):
    """The sum over the answer's tokens, its end among them."""
    logits = student.model(input_ids=torch.tensor([ids])).logits[0].float()
    return sum(-logits[t - 1].log_softmax(-1)[ids[t]].item() for t in range(n, len(ids)))


def test_the_loss_is_the_mean_or_the_sum_over_the_answer_and_its_end(student):
    pairs = pairs_of(student)
    means, sums = (active_loop.score_answers(student, pairs, norm) for norm in ("mean", "sum"))
    for (ids, n), mean, total in zip(pairs, means, sums, strict=True):
        expected = naive_loss(student, ids, n)
        assert ids[-1] in student.stop_ids and total["loss"] == pytest.approx(expected, abs=2e-3)
        assert mean["loss"] == pytest.approx(expected / (len(ids) - n), abs=2e-4)


def test_the_norm_changes_the_order(student):
    """Of the mean a short answer comes first, of the sum a long one; loss_low is the order turned round."""
    rows = [{"id": str(i), "problem": f"What is {i}+{i * i}?"} for i in range(4)]
    texts = {"0": "no", "1": "3+4=7.\nSo \\boxed{7}.", "2": "It is 12*5=60,\nso \\boxed{60}. It is 12*5=60,\nso \\boxed{60}.", "3": "yes"}
    orders = {}
    for norm in ("mean", "sum"):
        found = active_loop.losses(active_loop.Args(norm=norm), student, rows, texts)
        orders[norm] = by_score({i: row["loss"] for i, row in found.items()}, random.Random(0))
        args = active_loop.Args(norm=norm, select="loss_low")
        low = active_loop.score_seeds(args, None, 0, None, lambda: student, rows, texts)
        assert by_score({i: row["score"] for i, row in low.items()}, random.Random(0)) == orders[norm][::-1]
        assert all(low[i]["loss"] == -low[i]["score"] > 0 for i in low)
    assert orders["mean"] != orders["sum"] and orders["sum"][0] == "2"


def test_the_end_that_a_greedy_answer_wrote_is_scored(student):
    """Base models end with another token than the chat's: of several end tokens the likeliest is the one that was written."""
    pairs = pairs_of(student)
    last = [student.model(input_ids=torch.tensor([ids])).logits[0, -2].float() for ids, _ in pairs]
    other = next(logits.argmax().item() for logits in last if logits.argmax().item() not in student.stop_ids)  # likelier than the end there
    two = student._replace(stop_ids=student.stop_ids | {other})
    for (ids, n), row, logits in zip(pairs, active_loop.score_answers(two, pairs, "sum"), last, strict=True):
        end = max(two.stop_ids, key=lambda token: logits[token].item())
        assert row["loss"] == pytest.approx(naive_loss(student, [*ids[:-1], end], n), abs=2e-3)


def test_the_score_does_not_depend_on_batch_and_padding(student):
    pairs = pairs_of(student)
    together = active_loop.score_answers(student, pairs, "sum", sketch_seed=0)
    for i, pair in enumerate(pairs):
        alone, = active_loop.score_answers(student, [pair], "sum", sketch_seed=0)
        assert alone["loss"] == pytest.approx(together[i]["loss"], abs=2e-3)
        assert torch.allclose(alone["sketch"], together[i]["sketch"], atol=1e-3 * together[i]["sketch"].abs().max().item() + 1e-5)


def test_uniform_logits_give_log_v(student):
    import copy
    flat = student._replace(model=copy.deepcopy(student.model))
    flat.model.lm_head = torch.nn.Linear(flat.model.config.hidden_size, flat.model.config.vocab_size, bias=False)
    torch.nn.init.zeros_(flat.model.lm_head.weight)
    log_v, pairs = math.log(flat.model.config.vocab_size), pairs_of(student)
    for norm in ("mean", "sum"):
        for (ids, n), row in zip(pairs, active_loop.score_answers(flat, pairs, norm), strict=True):
            assert row["loss"] == pytest.approx(log_v * (1 if norm == "mean" else len(ids) - n), rel=1e-6)


def test_the_sketch_is_that_of_the_last_layers_gradient(student):
    """R_v^T g R_h with g taken by autograd from the loss; and distances of sketches are near those of the gradients."""
    pairs, head = pairs_of(student), student.model.lm_head
    generator = torch.Generator().manual_seed(3)
    of_v, of_h = (torch.randn(n, 64, generator=generator) / 8 for n in (head.out_features, head.in_features))
    rows, gradients = active_loop.score_answers(student, pairs, "sum", sketch_seed=3), []  # of the mean loss all the same
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


def test_killed_at_random_it_ends_the_same_and_pays_nothing_twice(whole_run, small_world, tmp_path, monkeypatch):
    asked, reply = [], toy_teacher.reply

    def counting(prompt, seed):
        if prompt != "Say yes.":  # of Teacher.check
            asked.append((prompt, seed))
        return reply(prompt, seed)
    monkeypatch.setattr(toy_teacher, "reply", counting)
    server, url = toy_teacher.serve()
    (whole, _), out = whole_run, tmp_path / "killed-0"

    def command(out):
        return ["active_loop.py", *flags(small_world, url, out)]
    for step in ("r0 solve", "r1 write"):
        started.killed(f"teacher: {step}", *command(out), nth=5)
        assert not (out / f"{step[:2]}_items.json").exists()
    compared = started.kill_at_random(command, whole, tmp_path, "active_loop", n_kills=2)
    server.shutdown()
    assert compared == started.rows_and_weights(whole) and any(path.name.endswith("_items.json") for path in compared)
    n_runs = len(list(tmp_path.glob("killed-*")))
    assert asked and len(asked) - n_runs * len(set(asked)) <= 4 * started.KILLS  # calls in flight at the kills
    one, two = (json.loads((run / "result.json").read_text()) for run in (whole, out))
    assert one["curve"] == two["curve"]


@pytest.mark.parametrize("select", ["random", "loss_low", "static_loss", "badge", "incorrect", "judge", "lion", "true_loss"])
def test_every_criterion_runs(select, small_world, tmp_path, teacher_url, call_file):
    out = tmp_path / "out"
    norm = "sum" if select == "loss_low" else "mean"
    done = call_file("active_loop.py", *flags(small_world, teacher_url, out, "--select", select, "--no-repeat", "--per-round", "8", "--limit", "10",
                                              "--norm", norm))
    assert done.returncode == 0, done.stderr
    told = json.loads((out / "result.json").read_text())
    assert (told["method"], told["select"], told["norm"], told["from"]) == ("active_loop", select, norm, None)
    asked = [[row["seed"] for row in json.loads((out / f"r{t}_items.json").read_text())["rows"]] for t in (0, 1)]
    assert not set(asked[0]) & set(asked[1]) and [row["items"] for row in json.loads((out / "result.json").read_text())["curve"]] == [0, 8, 16]
    if select == "static_loss":
        kept = [json.loads((out / f"r{t}_selected.json").read_text()) for t in (0, 1)]
        assert kept[1]["scores"] == {i: x for i, x in kept[0]["scores"].items() if i not in asked[0]}
        assert [*asked[0], *asked[1]] == kept[0]["order"][:len(asked[0]) + len(asked[1])]
    # Which way round: the first seeds are those that the student has wrong, or has the higher loss on.
    chosen = json.loads((out / "r0_selected.json").read_text())
    first = [chosen["scores"][i] for i in chosen["order"] if i in chosen["scores"]]
    gold = {row["id"]: row["answer"] for row in common.load(str(small_world), "train")}
    if select in ("judge", "lion", "incorrect"):
        wrong = {row["id"]: not common.score(row["response"], gold[row["id"]]) for row in read(out / "r0_answers.jsonl")
                 if not row["cut_off"]}
        by_wrong = [[chosen["scores"][i] for i in chosen["scores"] if wrong[i] is value] for value in (True, False)]
        assert by_wrong[0] and by_wrong[1] and sum(by_wrong[0]) / len(by_wrong[0]) > sum(by_wrong[1]) / len(by_wrong[1])
    if select in ("judge", "incorrect", "true_loss", "loss_low"):
        assert first == sorted(first, reverse=True)
    if select in ("judge", "lion"):
        assert sum("judge" in row["step"] for row in read_cache(out / "teacher.sqlite")) > 20
    assert len(chosen["order"]) == 60  # what has no score comes last


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


def test_the_base_is_shared_with_another_run(whole_run, small_world, tmp_path, teacher_url, call_file):
    """A copied run stands in for the other criterion's; a killed run goes on when it is gone."""
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(whole_run[0], source)
    argv = flags(small_world, teacher_url, out, "--select", "incorrect", "--rounds", "1", "--per-round", "8", "--from", source)
    started.killed("teacher: r0 solve", "active_loop.py", *argv)
    taken = ("r0_answers.jsonl", "r0_test_answers.jsonl", "r0_test.jsonl")
    assert all((out / name).read_bytes() == (source / name).read_bytes() for name in taken)
    there = {row["step"]: row["seconds"] for row in read(source / "metrics.jsonl") if "step" in row}
    here = {row["step"]: row["seconds"] for row in read(out / "metrics.jsonl") if row.get("taken_from")}
    assert here == {name: there[name] for name in taken}  # a criterion's cost is what it costs alone
    shutil.rmtree(source)
    done = call_file("active_loop.py", *argv)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "result.json").read_text())["from"] == str(source)
    done = call_file("active_loop.py", *argv[:-2])  # where the base came from is no part of what the run is
    assert done.returncode == 0, done.stderr


def test_what_reads_no_answer_takes_the_test_alone(whole_run, small_world, tmp_path, call_file):
    done = call_file("active_loop.py", *flags(small_world, "http://127.0.0.1:9/v1", tmp_path / "out", "--select", "random", "--from", whole_run[0]))
    assert done.returncode == 2 and "127.0.0.1:9" in done.stderr  # the server, looked for behind the copying
    assert (tmp_path / "out" / "r0_test.jsonl").exists() and not (tmp_path / "out" / "r0_answers.jsonl").exists()


@pytest.mark.parametrize("change, words", [
    (["--seed", "1"], "its questions are others"), (["--max-new-tokens", "50"], "max_new_tokens was 60;"),
    (["--limit", "30"], "its questions are others"), (["--n-seeds", "50"], "its questions are others"),
    (["--chat-template-kwargs", "{}"], "chat_template_kwargs was None;")])
def test_the_base_of_another_run_is_refused(change, words, whole_run, small_world, tmp_path, call_file):
    argv = flags(small_world, "http://127.0.0.1:9/v1", tmp_path / "out")
    if change[0] in argv:
        del argv[argv.index(change[0]):argv.index(change[0]) + 2]
    done = call_file("active_loop.py", *argv, *change, "--from", whole_run[0])
    assert done.returncode == 2 and words in done.stderr and "leave it out" in done.stderr and not (tmp_path / "out").exists(), done.stderr


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
def test_a_slice_of_real_data(data, more, real_data, math_slice, small_world, tmp_path, teacher_url, call_file):
    """Shows that it runs on GSM8K and on MATH's levels 1 to 3; a toy student and a toy teacher show no more than that."""
    argv = flags(small_world, teacher_url, tmp_path / "out", "--n-seeds", "30", "--per-round", "6", "--rounds", "1", "--limit", "12",
                 "--max-new-tokens", "100", *more)
    argv[argv.index("--data") + 1] = str(math_slice if data == "math" else real_data / data)
    done = call_file("active_loop.py", *argv)
    assert done.returncode == 0, done.stderr
    assert [row["items"] for row in json.loads((tmp_path / "out" / "result.json").read_text())["curve"]][1] > 0


def test_the_toy_command_compares_loss_with_random(tmp_path):
    """On deduction; on mathematics the other tests of this file run."""
    command = ("-m", "toyworld", "active_loop", "--family", "deduction", "--scale", "0.04", "--n-seeds", "30", "--limit", "10",
               "--rounds", "1", "--per-round", "6", "--epochs", "1")
    done = started.run(*command, cwd=tmp_path, TOYWORLD_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "**deduction**" in done.stdout and "A1: loss > random" in done.stdout and "Warning" not in done.stderr
    assert (tmp_path / "runs" / "toy_active_loop" / "active_curve.png").exists()
    args = json.loads((tmp_path / "runs" / "toy_active_loop" / "seed-0" / "deduction" / "loss" / "args.json").read_text())
    assert args["n_agreeing"] == 5  # of True and False three of five agree too easily
    taken = [row["step"] for row in read(tmp_path / "runs/toy_active_loop/seed-0/deduction/random/metrics.jsonl") if row.get("taken_from")]
    assert taken == ["r0_test_answers.jsonl", "r0_test.jsonl"]  # the base is tested once for both
    by_mean = tmp_path / "runs/toy_active_loop/seed-0/deduction/loss"
    summed = started.run(*command, "--select", "loss", "--norm", "sum", "--from", by_mean, cwd=tmp_path, TOYWORLD_DIR=str(tmp_path))
    assert summed.returncode == 0, summed.stderr[-2000:]
    tables = report.tables(gather.gather([str(by_mean), str(by_mean.with_name("loss_sum"))]))  # two arms of one run
    assert "| beside A1: loss, sum > loss | not told by one run: " in tables
    made = next(tmp_path.glob("deduction-0-*"))
    levels = {split: Counter(row["level"] for row in common.load(str(made), split)) for split in ("train", "test")}
    assert levels["train"][1] + levels["train"][2] > 0.6 * levels["train"].total()  # mostly shallow
    assert levels["test"].keys() == set(range(1, 7)) and levels["test"][1] + levels["test"][2] < 0.5 * levels["test"].total()


def test_the_audit_by_hand(tmp_path):
    """Two rounds; one seed of four is weak, another is answered wrongly, a third cut off."""
    add, weak = "Find {}+{}.", "Find the digit product of 38."
    rows = [("s0", weak), ("s1", add.format(1, 2)), ("s2", add.format(3, 4)), ("s3", add.format(5, 6)), ("t0", weak), ("t1", add.format(7, 8))]
    own = {"s0": "24", "s1": "9", "s2": "7", "s3": None}

    def item(seed, problem, answer, dropped=None):
        return {"seed": seed, "problem": problem, "answer": answer, "dropped": dropped}
    run = tmp_path / "mathematics" / "loss"
    run.mkdir(parents=True)
    lines = {"0_questions.jsonl": [{"id": i, "problem": text} for i, text in rows],
             "r0_answers.jsonl": [{"id": i, "response": f"\\boxed{{{x}}}" if x else "1+"} for i, x in own.items()],
             "r2_test.jsonl": [{"id": "t0", "is_right": None}, {"id": "t1", "is_right": True}]}
    for name, some in lines.items():
        (run / name).write_text("".join(json.dumps(row) + "\n" for row in some))
    for name, value in (("args.json", {"rounds": 2, "select": "loss", "norm": "mean", "from_": None, "seed": 5}), ("r0_selected.json", {
            "losses": {"s0": 1.0, "s1": 1.0, "s2": 0.5}}), ("r0_items.json", {"rows": [item("s0", weak, "1000"), item("s1", "?", None, "why")]}),
            ("r1_items.json", {"rows": [item("s3", add.format(2, 2), "4")]})):
        (run / name).write_text(json.dumps(value))
    counts = audit.count_choices(run)
    assert list(counts) == ["mathematics: loss"] and list(counts["mathematics: loss"].values()) == [
        [2, 3], [1, 3], [1, 2], [1, 2], [0, 1], [1, 1], [1.5, 2]]  # of the pairs one is a tie
    assert audit.table([counts]).splitlines()[-1] == "| mathematics: loss | 66.7 | 33.3 | 50.0 | 50.0 | 0.0 | 100.0 | 75.0 |"
    deep, shallow = (deduction.make(random.Random(0), depth) for depth in (3, 2))  # more than two rules are weak
    for name, some in {"0_questions.jsonl": [{"id": "s0", "problem": deep.text}, {"id": "t0", "problem": shallow.text}],
                       "r0_answers.jsonl": [{"id": "s0", "response": f"\\boxed{{{deduction.solve(deep)[1]}}}"}],
                       "r1_test.jsonl": [{"id": "t0", "is_right": True}]}.items():
        (run / name).write_text("".join(json.dumps(row) + "\n" for row in some))
    (run / "args.json").write_text(json.dumps({"rounds": 1, "select": "random", "norm": "mean", "from_": None, "seed": 5}))
    (run / "r0_items.json").write_text(json.dumps({"rows": [item("s0", shallow.text, deduction.solve(shallow)[1])]}))
    assert list(audit.count_choices(run)["mathematics: random"].values()) == [[0, 1], [1, 1], [0, 1], [1, 1], [0, 0], [1, 1], [0, 0]]
    (run / "r0_answers.jsonl").unlink()
    with pytest.raises(common.UserError, match="the base's answers"):
        audit.count_choices(run)


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
    (["--no-repeat", "--rounds", "9"], "need more seeds than the 60"), (["--norm", "median"], "median"),
    (["--from", "nowhere"], "--from nowhere: expected")])
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
