"""benchmarks/: every place runs at toy size, its tables hold what was measured. What takes how long, no test can know."""
import json
import shlex
import sys
from types import SimpleNamespace
from unittest import mock

import pytest

from benchmarks import gpu, grpo, record, sampling, training
from tests import started


@pytest.fixture
def places(small_world, tmp_path):
    """The toy student in SmolLM2's place."""
    (tmp_path / "SmolLM2-135M-Instruct").symlink_to(small_world / "student")
    return {"REALWORLD_DIR": str(tmp_path), "BENCH_DIR": str(tmp_path / "bench")}


@pytest.mark.parametrize("script, words", [
    ("training", "--rows 8 --who stat_sel"), ("grpo", "--new-tokens 8 --steps 1 --who dart"),
    ("sampling", "--rows 12 --max-new-tokens 20 --batch 4 --run-ons 0.2 --who common.answer"),
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
        assert 20 <= found["steps"] <= 3 * 20


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
    done = started.run("benchmarks/teacher.py", "--ms", "0", "--at-once", "4", "--cached", "300", "--save", saved)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(saved.read_text())["rows"]
    assert rows["0 ms, 4 at once"]["calls"] == 400 and rows["300 cached"]["read_s"] > 0
    assert all(rows["0 ms, 4 at once"][who] > 0 for who in ("Teacher.ask", "openai"))


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
    with mock.patch.object(sys, "argv", ["gpu.py", "--minutes", "10", "--save", str(saved)]):
        gpu.main()
    rows = json.loads(saved.read_text())["rows"]
    assert rows["3B, training"] == {"stat_sel": {"tokens": 1}}
    assert rows["3B, sampling"] == {"failed": "see the script alone"}
    assert rows["0.5B, GRPO"] == {"failed": "no time left"}


def test_a_contender_that_takes_too_long_is_ended(places, tmp_path):
    saved = tmp_path / "bench.json"
    done = started.run("benchmarks/training.py", "--model", "tiny", "--pretend", "--only", "stat_sel", "--limit-s", "0.5", "--save", saved, **places)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(saved.read_text())["rows"]["stat_sel"]["failed"].startswith("not done after")


def test_a_table_leaves_out_what_was_not_measured():
    rows = {"a": {"x": {"tokens": 1}, "y": {"failed": "no"}}, "b": {"failed": "no time left"}, "c": {"tokens": 2}}
    assert record.flat(rows) == {"a: x": {"tokens": 1}, "c": {"tokens": 2}}
