"""benchmarks/cost.py: counts by hand; the rates are flags and no test can know them."""
import re
from types import SimpleNamespace

import pytest

import common
import stat_sel
from benchmarks.cost import ActiveArgs, Args, DartArgs, count_tests, draw_lengths, estimate, estimate_active, estimate_dart, n_steps


def test_steps_by_hand():
    assert n_steps([100] * 4, 4) == 100 and n_steps([100] * 12, 4) == 300  # all reach the limit: whole batches of 100 steps
    assert n_steps([1, 2, 3, 9, 1, 2, 3, 7], 4) == 3 + 3 + 6 and n_steps([], 4) == 0  # each batch leaves one; these two go on together
    args = Args(run_ons=0.05, max_new_tokens=2048)
    lengths = draw_lengths(args, 960)
    assert max(lengths) == 2048 and 20 < lengths.count(2048) < 90 and 200 < sorted(lengths)[480] < 300


def test_the_rounds_are_those_of_answer(tmp_path, monkeypatch):
    """The rule stands in two places: what answers really take, counted in common.answer on answers of known lengths."""
    lengths = dict(enumerate(draw_lengths(Args(max_new_tokens=300, median=60), 203)))
    steps = []

    def sample(student, prompts, temperature, limit, seed, begun, leave):
        written, left = [list(tokens) for tokens in begun], [lengths[i] for i in prompts]
        for t in range(1, limit + 1):
            for i, tokens in enumerate(written):
                if len(tokens) < left[i]:
                    tokens.append(0)
            if sum(len(tokens) < n for tokens, n in zip(written, left, strict=True)) <= leave * len(prompts):
                steps.append(t)
                break
        return [{"response": "", "cut_off": False, "n_tokens": 0, "tokens": tokens, "is_open": len(tokens) < n}
                for tokens, n in zip(written, left, strict=True)]
    monkeypatch.setattr(common, "sample", sample)
    monkeypatch.setattr(common, "prompt_ids", lambda tokenizer, chat: chat)
    args = stat_sel.Args(out=str(tmp_path), sample_batch=32, max_new_tokens=300)
    rows = [{"id": i, "problem": f"{i:04}"} for i in lengths]  # all of one length: they come in this order
    common.answer(args, common.open_run(args, tmp_path), "1_answers.jsonl", lambda: SimpleNamespace(tokenizer=None), rows, int, 0.1)
    assert sum(steps) == n_steps(list(lengths.values()), 32)


def test_a_run_of_the_papers_size(capsys):
    args = Args(arms=("base", "train", "augment", "embed", "stat", "shuffled"), ood=("gsm8k", "amc23"), usd_per_m_in=1.0, usd_per_m_out=2.0)
    assert count_tests(args) == {"MATH": 4000, "gsm8k": 1319, "amc23": 40 * 64}
    estimate(args)
    out = capsys.readouterr().out
    assert "train 7,500, augment 9,500, embed 7,800, stat 9,500" in out  # 5 questions, 3 rewrites for 520 difficult ones
    hours = [float(x) for x in re.findall(r"(\d+\.\d\d) \|$", out.split("of the teacher")[0], re.MULTILINE)]
    assert abs(sum(hours[:-1]) - hours[-1]) < 0.05
    assert "| label | 7,500 | 6.75 |" in out and "| diagnose | 520 |" in out  # 7,500 (400 + 2 x 250) / 1e6


def test_without_several_rates_none_is_chosen(capsys):
    estimate(Args(limit=100, n_pairs=300))
    assert "| choose --lr | 0.00 |" in capsys.readouterr().out
    estimate(Args(limit=100, n_pairs=300, lr=(1e-4, 2e-4)))
    assert "| choose --lr | 0.00 |" not in capsys.readouterr().out


def test_a_run_of_dart_by_hand(capsys):
    """All answers reach the limit of 100 tokens, a step takes a second, twice as long with an adapter."""
    rates = {"median": 10**6, "max_new_tokens": 100, "step_ms": 1000.0, "prompt_tokens": 0, "train_tokens_per_s": 1e12,
             "load_s": 0.0, "adapter_factor": 2.0}
    args = DartArgs(**rates, arms=("base", "dart"), n_demonstrations=150, n_heldout=50, n_own=1, n_rewrites=2, rl_steps=18, prompts=10, group=10,
                    sample_batch=50, eval_every=9, limit=100)
    estimate_dart(args)
    hours = {name: float(x) for name, x in re.findall(r"\| (.+) \| (\d+\.\d\d) \|", capsys.readouterr().out)}
    expected = {"own answers": 4, "GRPO: sampling": (18 * 2 + 3) * 2, "GRPO: updates": 0, "rewrites of dart": 6 * 2, "rewrites of prompt": 0,
                "arms at DART's cost": 0, "SFT": 0, "test": 6 * (1 + 2), "load": 0}  # batches of 100 seconds
    assert hours == {name: pytest.approx(n * 100 / 3600, abs=0.006) for name, n in (expected | {"all": sum(expected.values())}).items()}


@pytest.mark.parametrize("select, answered, scored, children", [
    ("loss", 2 * (1 + 2 + 2), 3 * 250, 1 + 2 + 2), ("random", 0, 0, 0), ("static_loss", 2, 250, 1), ("incorrect", 2 * (1 + 2 + 2), 0, 0),
    ("true_loss", 0, 3 * 200, 0)])
def test_a_run_of_the_active_loop_by_hand(select, answered, scored, children, capsys):
    """Batches of 100 answers take 100 s, with an adapter 200 s; a pair has 1,000 tokens, a thousand are trained on in a second."""
    rates = {"median": 850, "run_ons": 1.0, "max_new_tokens": 100, "step_ms": 1000.0, "train_tokens_per_s": 1000.0, "load_s": 0.0,
             "prompt_tokens": 0, "adapter_factor": 2.0}
    args = ActiveArgs(**rates, select=select, n_seeds=200, rounds=3, per_round=50, sample_batch=100, limit=100, epochs=3, usd_per_m_in=1.0,
                      usd_per_m_out=4.0)
    estimate_active(args)
    out = capsys.readouterr().out
    hours = {name: float(x) for name, x in re.findall(r"\| (.+) \| (\d+\.\d\d) \|", out)}
    expected = {"answer D_0": 100 * answered, "score": scored / 3, "answer new items": 100 * children,
                "train": 3 * 50 * (1 + 2 + 3), "test": 100 * (1 + 2 + 2 + 2), "load": 0}
    assert hours == {name: pytest.approx(s / 3600, abs=0.006) for name, s in (expected | {"all": sum(expected.values())}).items()}
    assert "teacher calls 300, usd 0.30." in out  # 300 x 250 x 4 / 1e6


@pytest.mark.parametrize("wrong", [{"select": "judge"}, {"data": "nowhere"}])
def test_what_is_not_estimated_of_the_active_loop_is_refused(wrong):
    with pytest.raises(common.UserError):
        estimate_active(ActiveArgs(**wrong))
