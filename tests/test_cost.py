"""benchmarks/cost.py: counts by hand; the rates are flags and no test can know them."""
import re
from dataclasses import replace

from benchmarks.cost import Args, count_tests, estimate, n_steps


def test_steps_by_hand():
    args = Args(run_ons=1.0, max_new_tokens=100, sample_batch=4)
    assert n_steps(args, 4) == 100 and n_steps(args, 12) == 300  # all reach the limit: whole batches of 100 steps
    some = replace(args, run_ons=0.05, max_new_tokens=2048, sample_batch=32)
    assert n_steps(some, 960) < n_steps(replace(some, run_ons=1.0), 960) / 2.5
    assert n_steps(some, 0) == 0


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
