"""benchmarks/: every place runs at toy size, its tables hold what was measured. What takes how long, no test can know."""
import json
import shlex
import sys
from types import SimpleNamespace
from unittest import mock

import pytest

from benchmarks import gpu, grpo, record, sampling, training
from benchmarks.cost import Rates
from tests import started


@pytest.fixture
def places(small_world, tmp_path):
    """The toy student in SmolLM2's place."""
    (tmp_path / "SmolLM2-135M-Instruct").symlink_to(small_world / "student")
    return {"REALWORLD_DIR": str(tmp_path), "BENCH_DIR": str(tmp_path / "bench")}


@pytest.mark.parametrize("script, words", [
    ("training", "--rows 8 --who stat_sel"), ("grpo", "--new-tokens 8 --steps 1 --who dart"),
    ("sampling", "--rows 16 --max-new-tokens 100 --batch 4 --run-ons 0.25 --who common.answer"),
    ("sampling", "--rows 6 --max-new-tokens 12 --batch 4 --bits 4 --who generate"), ("gpu", "--model tiny --who prm")])
def test_a_contender_prints_what_it_measured(script, words, places):
    pretend = [] if script == "gpu" else ["--pretend"]
    done = started.run(f"benchmarks/{script}.py", *shlex.split(words), *pretend, **places)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0 < found["loaded_gib"] <= found["peak_gib"] + 0.01 and min(found.get("tokens_per_s", 1), found.get("s_per_step", 1)) > 0
    if script == "training":
        assert len(found["seconds"]) == 2 and len(found["losses"]) == 2  # an update for 8 rows, two epochs
    if "common.answer" in words:
        assert (found["tokens"], found["steps"]) == (16 * 100, 4 * 100)  # the toy student's tokens are short: all reach the limit


def test_the_hook_ends_each_row_at_its_place():
    import torch
    hook, head, stop = sampling.Lengths(3), None, []
    hook.start([1, 3, 2], "cpu")
    for _ in range(3):
        stop.append(hook(head, None, torch.zeros(3, 1, 5))[:, -1].argmax(-1).eq(3).tolist())
    assert stop == [[True, False, False], [True, False, True], [True, True, True]]
    hook.start([1, 3, 2], "cpu")
    hook.select(torch.tensor([2, 0]))
    assert hook(head, None, torch.zeros(2, 1, 5))[:, -1].argmax(-1).eq(3).tolist() == [False, True]


def test_the_teacher_and_its_peer_are_timed(tmp_path):
    saved = tmp_path / "bench.json"
    done = started.run("benchmarks/teacher.py", "--ms", "100", "--at-once", "4", "--seconds", "1", "--cached", "300", "--save", saved)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(saved.read_text())["rows"]
    assert rows["100 ms, 4 at once"]["calls"] == 40 and rows["300 cached"]["read_s"] > 0
    assert all(0 < rows["100 ms, 4 at once"][who] <= 40 for who in ("Teacher.ask", "openai"))  # 4 in a tenth of a second are the most


@pytest.mark.parametrize("name, script, model, words", gpu.STAGES, ids=[stage[0] for stage in gpu.STAGES])
def test_a_stage_of_the_gpu_benchmark_names_contenders_and_flags_that_exist(name, script, model, words, monkeypatch):
    places = {"training": training, "sampling": sampling, "grpo": grpo, "gpu": gpu}
    if "--only" in words:
        assert set(words[words.index("--only") + 1:]) <= set(places[script].CONTENDERS)
    monkeypatch.setattr(sys, "argv", [script, "--model", model, *words])
    found = []
    for use in ("contend", "alone", "checkpoint", "save"):
        monkeypatch.setattr(record, use, lambda *args, use=use: found.append(use) or {})
    monkeypatch.setattr(gpu, "reward_model", lambda args: found.append("prm"))
    places[script].main()  # SystemExit for a wrong flag
    assert found


def test_the_gpu_benchmark_keeps_what_it_has_when_time_is_short(monkeypatch, tmp_path):
    saved, ran = tmp_path / "gpu.json", []

    def run(argv, **how):
        ran.append(argv)
        if len(ran) != 2:  # the second fails
            type(tmp_path)(argv[-1]).write_text(json.dumps({"rows": {"stat_sel": {"tokens": 1}}}))
    monkeypatch.setattr(gpu.subprocess, "run", run)
    monkeypatch.setattr(record, "alone", lambda *args: {"tokens": 2})
    times = iter([0, *[100] * 9, *[10**6] * 100])
    monkeypatch.setattr(gpu, "time", SimpleNamespace(time=lambda: next(times)))
    monkeypatch.setattr(record, "machine", dict)
    monkeypatch.setattr(record, "checkpoint", str)
    with mock.patch.object(sys, "argv", ["gpu.py", "--minutes", "10", "--save", str(saved)]):
        gpu.main()
    rows = json.loads(saved.read_text())["rows"]
    assert rows["3B, training"] == {"stat_sel": {"tokens": 1}}
    assert rows["3B, sampling"] == {"failed": "see the script alone"}
    assert rows["0.5B, GRPO"] == {"failed": "no time left"}


def test_without_the_models_package_it_is_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("realworld.student.importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("REALWORLD_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--save", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    assert stop.value.code == 2 and "pip install" in capsys.readouterr().err and not (tmp_path / "gpu.json").exists()


def test_the_pages_ratios_are_those_of_the_results():
    """What stands in a sentence; tables are compared by test_readme."""
    def rows(place):
        return json.loads((started.ROOT / "results" / f"bench_{place}.json").read_text())["rows"]

    def above(row):
        return row["peak_gib"] - row["loaded_gib"]
    text = (started.ROOT / "docs" / "performance.md").read_text()
    rate, memory, sampled, step = rows("training"), rows("memory"), rows("sampling"), rows("grpo")
    ours, trl, lean = rate["stat_sel"], rate["trl"], rate["trl chunked, by length"]
    speed = [row["tokens_per_s"] for row in (ours, trl, lean)]
    assert f"**{speed[0] / speed[1]:.1f} times TRL's default, {speed[0] / speed[2]:.1f} times its leanest form**" in text
    assert f"gain TRL {100 * (speed[2] / speed[1] - 1):.0f} %" in text
    assert f"loaded model: {above(ours) / above(trl):.2f} of TRL's default" in text
    assert f"**{above(memory['stat_sel']) / above(memory['trl']):.2f} of what TRL's default needs**" in text
    speed = [sampled[who]["tokens_per_s"] for who in ("common.answer", "generate", "generate_batch")]
    assert f"{speed[0] / speed[1]:.1f} times `generate`, {speed[0] / speed[2]:.1f} times `generate_batch`" in text
    assert f"{step['trl']['s_per_step'] / step['dart']['s_per_step']:.1f} times as fast, at {above(step['dart']) / above(step['trl']):.1f} of" in text
    found = [one for name, one in json.loads((started.ROOT / "results" / "scorer.json").read_text())["sets"].items() if name.startswith("replies")]
    n = sum(one["scorer"]["rows"] for one in found)
    ms = [sum(one[who]["mean_ms"] * one[who]["rows"] for one in found) / n for who in ("scorer", "math-verify")]
    assert f"On {n:,} replies of models a verdict takes {ms[0]:.1f} ms in the mean, math-verify's {ms[1]:.1f} ms: {ms[1] / ms[0]:.1f} times" in text


def test_the_rates_of_the_estimates_are_those_measured():
    rows = record.flat(json.loads((started.ROOT / "results" / "bench_gpu.json").read_text())["rows"])
    rates, bare = Rates(), rows["3B, sampling: common.answer"]["ms_per_step"]
    assert rates.step_ms == pytest.approx(bare, rel=0.01)
    assert rates.adapter_factor == pytest.approx(rows["3B, sampling: with adapter"]["ms_per_step"] / bare, rel=0.01)
    assert rates.merged_factor == pytest.approx(rows["3B, sampling merged: common.answer"]["ms_per_step"] / bare, rel=0.01)
    assert rates.train_tokens_per_s == pytest.approx(rows["3B, training: stat_sel"]["tokens_per_s"], rel=0.01)
    assert rates.prm_tokens_per_s == pytest.approx(rows["8B, reward model: score_steps"]["tokens_per_s"], rel=0.01)
    trained = rows["3B, training: stat_sel"]
    readme = (started.ROOT / "README.md").read_text()
    assert f"train at {round(trained['tokens_per_s'], -1):,.0f} tokens/s in {trained['peak_gib']:.1f} GiB" in readme
    peaks = [f"{rows[name]['peak_gib']:.1f}" for name in (
        "3B, training: stat_sel", "3B, sampling: with adapter", "3B, sampling merged: common.answer", "8B, reward model: score_steps")]
    running = (started.ROOT / "docs" / "running.md").read_text()
    for words in ("two pairs of 400 tokens | {} |", "48 at once | {}; with `--test-weights merged` {} |", "the 8B reward model | {} |"):
        n = words.count("{}")
        assert words.format(*peaks[:n]) in running
        peaks = peaks[n:]


def test_a_contender_that_takes_too_long_is_ended(places, tmp_path):
    saved = tmp_path / "bench.json"
    done = started.run("benchmarks/training.py", "--model", "tiny", "--pretend", "--only", "stat_sel", "--limit-s", "0.5", "--save", saved, **places)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(saved.read_text())["rows"]["stat_sel"]["failed"].startswith("not done after")


def test_a_table_leaves_out_what_was_not_measured():
    rows = {"a": {"x": {"tokens": 1}, "y": {"failed": "no"}}, "b": {"failed": "no time left"}, "c": {"tokens": 2}}
    assert record.flat(rows) == {"a: x": {"tokens": 1}, "c": {"tokens": 2}}
