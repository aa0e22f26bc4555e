"""The run directory, the command line and the tables; what a kill, a full disk and a second process do is done for real."""

import dataclasses
import errno
import functools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import common
from common import Run, UserError, compare, open_run

HERE = Path(common.__file__).parent
ENV = {**os.environ, "PYTHONPATH": str(HERE), "COLUMNS": "80"}


@dataclasses.dataclass(frozen=True)
class Args:
    out: Path = Path("runs/x")
    model: Path = Path("m")
    tau: float = 1
    skills: tuple[str, ...] = ("a", "b")
    address: str = "here"


@pytest.fixture
def run(tmp_path):
    run = open_run(Args(), tmp_path / "run")
    yield run
    run.lock.release()


def start(path, how=(), **changes) -> Run:
    """Open and close, as one process after another would."""
    run = open_run(dataclasses.replace(Args(), **changes), path, how)
    run.lock.release()
    return run


# --- Identity and lock. ---
def test_same_arguments_go_on_and_others_are_refused(tmp_path):
    start(tmp_path / "r")
    start(tmp_path / "r", tau=1.0, model="m", out="elsewhere")  # equal in JSON, or no part of the identity
    with pytest.raises(UserError) as caught:
        start(tmp_path / "r", tau=2.0, skills=("a",), address="there")
    named = re.search(r"\((.*)\)", str(caught.value))[1].split("; ")
    assert named == ['address was "here", is "there"', 'skills was ["a", "b"], is ["a"]', "tau was 1.0, is 2.0"]
    assert json.loads((tmp_path / "r/args.json").read_text())["tau"] == 1.0
    start(tmp_path / "r", how=("address",), address="there")
    assert json.loads((tmp_path / "r/args.json").read_text())["address"] == "there"


def test_a_torn_line_of_the_log_is_cut_off_at_the_next_start(tmp_path):
    start(tmp_path / "r").log(step="a", seconds=1.0)
    with open(tmp_path / "r/metrics.jsonl", "a") as f:
        f.write('{"time": 17')
    start(tmp_path / "r").log(step="b", seconds=2.0)
    assert [row["step"] for _, row in common.read_rows(tmp_path / "r/metrics.jsonl")] == ["a", "b"]


def test_a_field_that_came_or_went_is_refused(tmp_path):
    start(tmp_path / "r")
    newer = dataclasses.make_dataclass("Newer", [("beta", float, 0.5)], bases=(Args,), frozen=True)
    with pytest.raises(UserError, match="beta was null, is 0.5"):
        open_run(newer(), tmp_path / "r")
    (tmp_path / "r/args.json").write_text("{")
    with pytest.raises(UserError, match="args.json: expected JSON"):
        start(tmp_path / "r")


def test_foreign_directories(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    with pytest.raises(UserError, match="other files"):
        start(tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["notes.txt"]
    (tmp_path / "killed").mkdir()  # between the first two writes
    for name in (".lock", "args.json.tmp"):
        (tmp_path / "killed" / name).write_text("")
    start(tmp_path / "killed")


def test_environment(tmp_path):
    for _ in range(2):
        run = start(tmp_path / "r")
    starts = run.read("env.json")
    assert len(starts) == 2
    assert starts[0]["argv"] == sys.argv and starts[0]["packages"]["openai"] and starts[0]["gpu"]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True)
    assert (starts[0]["commit"] or "").removesuffix("-dirty") == ("" if commit.returncode else commit.stdout.strip())


def test_import_is_light():
    code = "import sys, common; print([m for m in ('torch', 'datasets', 'openai', 'numpy', 'tyro') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True).stdout == "[]\n"


# --- Steps. ---
def test_step_makes_once_and_gives_what_json_gives_back(run, capsys):
    rows = [{"id": "a", "pair": (1, 2), "half": "\ud83d", "sep": "\u2028"}, {"id": "b", 3: None}]
    expected = [{"id": "a", "pair": [1, 2], "half": "\ud83d", "sep": "\u2028"}, {"id": "b", "3": None}]
    assert run.step("1_x.jsonl", lambda: rows) == expected == run.step("1_x.jsonl", lambda: pytest.fail("made twice"))
    assert run.step("2_y.json", lambda: {"k": (1,)}) == {"k": [1]} == run.step("2_y.json", lambda: pytest.fail("made twice"))
    assert run.step("3_none.jsonl", list) == [] == run.step("3_none.jsonl", lambda: pytest.fail("made twice"))
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("1_x.jsonl: 2 rows, 0.") and out[2].startswith("2_y.json: 0.")
    assert out[1] == "1_x.jsonl: 2 rows, there already"
    assert not list(run.path.glob("*.tmp"))


def test_a_step_that_fails_leaves_no_file(run):
    with pytest.raises(ZeroDivisionError):
        run.step("1_x.json", lambda: 1 / 0)
    with pytest.raises(TypeError):
        run.step("1_x.jsonl", lambda: [{"id": object()}])
    assert not (run.path / "1_x.json").exists() and not (run.path / "1_x.jsonl").exists()


def test_write_and_log(run):
    import numpy as np

    run.log(step=1, loss=np.float32(0.5))
    run.log(step=2, loss=0.25)
    lines = run.read("metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, 0.25)] and lines[0]["time"] <= lines[1]["time"]


BATCHES = [[{"id": f"{b}/{i}"} for i in range(3)] for b in range(4)]


def answer(batch):
    return [{"id": item["id"], "length": len(item["id"])} for item in batch]


def test_batches_cut_a_torn_end_and_go_on(tmp_path):
    with_all = open_run(Args(), tmp_path / "whole")
    expected = with_all.batches("1_a.jsonl", BATCHES, answer)
    assert [row["id"] for row in expected] == [item["id"] for batch in BATCHES for item in batch]
    text = (tmp_path / "whole/1_a.jsonl").read_bytes()
    assert not (tmp_path / "whole/1_a.jsonl.part").exists()
    ends = [i for i in range(len(text) + 1) if i in (0, len(text)) or text[i - 1 : i] == b"\n"]
    for cut in sorted({*ends, *(e + 5 for e in ends[:-1]), *(e - 1 for e in ends[1:])}):  # at, after and just before each newline
        run = open_run(Args(), tmp_path / f"cut{cut}")
        (run.path / "1_a.jsonl.part").write_bytes(text[:cut])
        made = []
        assert run.batches("1_a.jsonl", BATCHES, lambda batch, made=made: made.append(batch) or answer(batch)) == expected
        assert made == BATCHES[text[:cut].count(b"\n") // 3 :]
        assert (run.path / "1_a.jsonl").read_bytes() == text
        assert not (run.path / "1_a.jsonl.part").exists()
        run.lock.release()
    assert with_all.batches("1_a.jsonl", BATCHES, lambda batch: pytest.fail("made twice")) == expected
    assert with_all.batches("2_none.jsonl", [], answer) == []


def test_killed_again_after_a_torn_end(run):
    part = run.path / "1_a.jsonl.part"
    part.write_text("".join(json.dumps(row) + "\n" for row in answer(BATCHES[0] + BATCHES[1]))[:-8])

    def one_more(batch):
        if batch == BATCHES[2]:
            raise KeyboardInterrupt
        return answer(batch)

    with pytest.raises(KeyboardInterrupt):
        run.batches("1_a.jsonl", BATCHES, one_more)
    assert part.read_text() == "".join(json.dumps(row) + "\n" for row in answer(BATCHES[0] + BATCHES[1]))
    made = []
    run.batches("1_a.jsonl", BATCHES, lambda batch: made.append(batch) or answer(batch))
    assert made == BATCHES[2:]


def test_other_batch_sizes_keep_the_rows_of_the_same_order(run):
    """The micro-batch may change between starts."""
    items = [item for batch in BATCHES for item in batch]
    (run.path / "1_a.jsonl.part").write_text("".join(json.dumps(row) + "\n" for row in answer(items[:9])))
    made = []
    rows = run.batches("1_a.jsonl", [items[:4], items[4:8], items[8:]], lambda batch: made.append(batch) or answer(batch))
    assert made == [items[8:]] and rows == answer(items)


def test_a_long_step_says_once_how_long_it_will_take(run, capsys, monkeypatch):
    """12 batches of 100 s: after the third, 9 are to come, 900 s or 0.25 hours."""
    now = [0.0]
    monkeypatch.setattr(common.time, "monotonic", lambda: now[0])

    def slow(batch):
        now[0] += 100
        return answer(batch)
    run.batches("1_a.jsonl", [[{"id": f"{b}"}] for b in range(12)], slow)
    said = [line for line in capsys.readouterr().out.splitlines() if "hours left" in line]
    assert len(said) == 1 and said[0].startswith("1_a.jsonl: about 0.2 hours left, peak so far ")
    run.batches("2_b.jsonl", [[{"id": f"{b}"}] for b in range(12)], answer)
    assert "hours left" not in capsys.readouterr().out


def test_a_file_system_without_locks_is_said(tmp_path, capsys, monkeypatch):
    import filelock

    def no_locks(self, **kwargs):
        raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    assert start(tmp_path / "r").read("args.json")["tau"] == 1
    assert "this file system has no locks" in capsys.readouterr().out


def test_it_imports_where_unix_only_modules_are_missing():
    code = "import sys; sys.modules.update(fcntl=None, resource=None, termios=None); import common"
    assert subprocess.run([sys.executable, "-c", code], env=ENV).returncode == 0


@pytest.mark.parametrize("platform, unit", [("linux", 2**20), ("darwin", 2**30), ("win32", None)])
def test_peak_memory_on_each_system(monkeypatch, platform, unit):
    """Simulated: ru_maxrss is KiB on Linux and bytes on macOS; Windows has none."""
    import resource
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setitem(sys.modules, "torch", None)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert common.peak_gib() == pytest.approx(most / unit, abs=0.1) if unit else math.isnan(common.peak_gib())


def test_kept_rows_of_other_items_are_refused_and_stay(run):
    part = run.path / "1_a.jsonl.part"
    part.write_text("".join(json.dumps(row) + "\n" for row in answer(BATCHES[1])))
    before = part.read_bytes()
    with pytest.raises(UserError, match="1_a.jsonl.part.*other items"):
        run.batches("1_a.jsonl", BATCHES, answer)
    assert part.read_bytes() == before
    part.unlink()
    with pytest.raises(UserError, match="make"):
        run.batches("1_a.jsonl", BATCHES, lambda batch: answer(batch)[::-1])
    assert part.read_bytes() == b""


SLOW = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from common import cli, open_run
@dataclass(frozen=True)
class Args:
    out: str = "r"
    hold: int = -1
def make_with(hold):
    def make(batch):
        with open("calls.txt", "a") as f:
            f.write(batch[0]["id"] + "\\n")
        if batch[0]["id"].startswith(f"{hold}/"):
            time.sleep(60)
        return [{"id": item["id"], "text": "x" * 50_000} for item in batch]
    return make
def main(args):
    run = open_run(args, args.out, how=("hold",))
    run.batches("1_a.jsonl", [[{"id": f"{b}/{i}"} for i in range(5)] for b in range(12)], make_with(args.hold))
cli(main, Args, "slow")
"""


def script(tmp_path, text, *flags, **kwargs):
    (tmp_path / "script.py").write_text(text)
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # where the suite runs in the background, SIGINT is ignored
    return subprocess.Popen([sys.executable, "script.py", *flags], cwd=tmp_path, env=ENV, stderr=subprocess.PIPE, text=True, preexec_fn=listen,
                            **kwargs)


def finish(process) -> tuple[int, str]:
    err = process.communicate()[1]
    return process.returncode, err


def wait_for(path: Path, n: int) -> None:
    while not path.exists() or path.read_bytes().count(b"\n") < n:
        time.sleep(0.005)


def test_kill_9_repeats_at_most_one_batch_and_a_second_process_is_refused(tmp_path):
    assert finish(script(tmp_path, SLOW, "--out", "whole"))[0] == 0
    expected = (tmp_path / "whole/1_a.jsonl").read_bytes()
    (tmp_path / "calls.txt").unlink()
    kills = 0
    for n_batches in (1, 4, 7):  # it waits in the batch after these, and is killed there
        process = script(tmp_path, SLOW, "--hold", str(n_batches))
        wait_for(tmp_path / "r/1_a.jsonl.part", 5 * n_batches)
        if not kills:
            code, err = finish(subprocess.Popen(process.args, cwd=tmp_path, env=ENV, stderr=subprocess.PIPE, text=True))
            assert code == 2 and "another process runs in this directory" in err and len(err.splitlines()) == 1
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stderr.close()
        assert not (tmp_path / "r/1_a.jsonl").exists()
        kills += 1
    assert finish(script(tmp_path, SLOW))[0] == 0
    assert (tmp_path / "r/1_a.jsonl").read_bytes() == expected
    calls = (tmp_path / "calls.txt").read_text().split()
    assert 12 <= len(calls) <= 12 + kills and len(set(calls)) == 12


# --- The command line. ---
APP = """
import errno, os, sys, time
from dataclasses import dataclass
from common import UserError, cli, open_run
@dataclass(frozen=True)
class Args:
    what: str = "fine"  # what to do
    tau1: float = 0.85  # difficult below this (Eq. 1)
    micro_batch: int = 8
    '''rows at once'''
    plot: bool = True  # draw it
class OutOfMemoryError(RuntimeError): ...
def main(args):
    if args.what == "user": raise UserError("file: expected a, came b; do c")
    if args.what == "bug": raise KeyError("bug")
    if args.what == "memory": raise OutOfMemoryError("CUDA out of memory. Tried to allocate\\nmuch")
    if args.what == "interrupt": raise KeyboardInterrupt
    if args.what == "missing": open("no/such/file")
    if args.what == "network":
        import httpx2 as httpx
        raise httpx.ConnectTimeout("no route")
    if args.what == "weights":
        import numpy, resource
        from safetensors.numpy import save_file
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        save_file({"w": numpy.zeros(1000)}, "w.safetensors")
    if args.what == "sleep":
        print(file=open("ready", "w"))
        time.sleep(20)
    if args.what in ("full", "file"):
        if args.what == "file": open("r", "w").close()
        run = open_run(args, "r")
        os.symlink("/dev/full", "r/1_x.json.tmp")
        run.write("1_x.json", [1])
    print("torch" in sys.modules, args)
cli(main, Args, "Does things.")
"""


@pytest.mark.parametrize(
    "flags, code, words",
    [
        (["--what", "user"], 2, ["error: file: expected a, came b; do c"]),
        (["--what", "memory"], 2, ["error: the memory is full; the same command goes on with --micro-batch 4 (now 8)"]),
        (["--what", "interrupt"], 130, ["interrupted"]),
        (["--what", "full"], 2, ["error: ", "No space left on device"]),
        (["--what", "weights"], 2, ["error: ", "File too large; mend that"]),
        (["--what", "file"], 2, ["error: r: File exists"]),
        (["--what", "missing"], 2, ["error: no/such/file: No such file or directory"]),
        (["--what", "network"], 2, ["error: the network failed (ConnectTimeout: no route)"]),
        (["--taux", "3"], 2, ["error: Unrecognized options: --taux, 3", "--tau1", "--help"]),
        (["--tau1", "abc"], 2, ["error: ", "--tau1", "'abc'"]),
        (["--tau1"], 2, ["error: ", "--tau1"]),
        (["stray"], 2, ["error: Unrecognized options: stray; see --help"]),
        (["--no-plot", "3"], 2, ["error: ", "3"]),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, flags, code, words):
    if "full" in flags and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here to stand for a full disk")
    came, err = finish(script(tmp_path, APP, *flags))
    assert came == code and len(err.splitlines()) == 1 and all(word in err for word in words), err


def test_bugs_keep_their_traceback(tmp_path):
    code, err = finish(script(tmp_path, APP, "--what", "bug"))
    assert code == 1 and "Traceback" in err and "KeyError: 'bug'" in err.splitlines()[-1]


@pytest.mark.parametrize("error, code", [("RuntimeError", 1), ("OSError", 2), ("UserError", 2)])
def test_no_error_shows_a_secret(tmp_path, monkeypatch, error, code):
    line = f'raise {error}(f"no answer from http://me:s3cret@h/v1?key=s3cret with {{os.environ[\'OPENAI_API_KEY\']}}")'
    monkeypatch.setitem(ENV, "OPENAI_API_KEY", "sk-0123456789")
    came, err = finish(script(tmp_path, APP.replace("def main(args):", f"def main(args):\n    {line}")))
    assert came == code and "no answer from http://h/v1 with <key>" in err and "s3cret" not in err and "0123456789" not in err


def test_a_clock_that_jumps_moves_no_duration(run, monkeypatch):
    stamps = iter([1e9, 0.0, 2e9])
    monkeypatch.setattr(common.time, "time", lambda: next(stamps))
    for name in ("1_a.json", "2_b.json", "3_c.json"):
        run.step(name, lambda: 1)
    rows = run.read("metrics.jsonl")
    assert [row["time"] for row in rows] == [1e9, 0, 2e9] and all(0 <= row["seconds"] < 60 for row in rows)


def test_flags_and_help(tmp_path):
    process = script(tmp_path, APP, "--no-plot", "--micro-batch", "4", stdout=subprocess.PIPE)
    out = process.communicate()[0]
    assert process.returncode == 0 and out == "False Args(what='fine', tau1=0.85, micro_batch=4, plot=False)\n"
    process = script(tmp_path, APP, "--help", stdout=subprocess.PIPE)
    out, err = process.communicate()
    assert process.returncode == 0 and not err
    assert all(w in out for w in ["Does things.", "--tau1", "difficult below this (Eq. 1)", "0.85", "rows at once", "--no-plot"])


@pytest.mark.parametrize("name", ["stat_sel.py", "stat_syn.py", "active_loop.py", "dart.py"])
def test_help_is_grouped_and_fits_a_terminal(name, call_file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = call_file(name, "--help").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    groups = [line for line in lines if line in ("Model", "Data", "Teacher", "Method", "Training", "Running")]
    assert groups == ["Model", "Data", *["Teacher"] * (name != "dart.py"), "Method", "Training", "Running"]
    assert lines[lines.index("Data") + 1].startswith("  --data ")


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path, lines):
    app = APP.replace("def main(args):", f"def main(args):\n    time.sleep(0.2)\n    print('line\\n' * {lines})")
    process = script(tmp_path, app, stdout=subprocess.PIPE)
    process.stdout.close()
    assert finish(process) == (141, "")


def test_ctrl_c(tmp_path):
    process = script(tmp_path, APP, "--what", "sleep")
    wait_for(tmp_path / "ready", 1)
    process.send_signal(signal.SIGINT)
    assert finish(process) == (130, "interrupted; the same command goes on from here\n")


# --- The comparison that a run prints. ---
def lead(a, b, **more) -> tuple[float, float, float]:
    """a's lead over b and its interval, as compare prints them."""
    line = compare({"a": a, "b": b}, "b", **more).splitlines()[1]
    return tuple(map(float, re.search(r"([+-][\d.]+) \[(.*), (.*)\]$", line).groups()))


def test_equal_arms_and_extremes():
    a = [True, False, True]
    assert lead(a, a) == (0, 0, 0)
    assert lead([True] * 4, [False] * 4) == (100, 100, 100) and lead([False] * 4, [True] * 4) == (-100, -100, -100)
    assert compare({"a": [], "b": []}, "b") == "no questions"
    for other in ([True] * 2, [True] * 4):
        with pytest.raises(ValueError):
            compare({"a": a, "b": other}, "b")


def test_two_questions_by_hand():
    """One win in two questions: a resample's lead is 0, 50 or 100 points with odds 1:2:1, so both ends lie inside the 2.5 % tails."""
    assert lead([True, False], [False, False]) == (50, 0, 100)


def test_as_resampling_the_questions_one_by_one():
    import numpy as np

    draw = random.Random(0)
    whole = [[draw.random() < p for _ in range(150)] for p in (0.7, 0.5)]
    shares = [[draw.randrange(5) / 4 for _ in range(150)] for _ in range(2)]  # of four answers to each question
    for a, b in (whole, shares):
        diff, low, high = lead(a, b, n_boot=20_000)
        leads = np.array(a, float) - np.array(b, float)
        picks = np.random.default_rng(1).integers(0, 150, (20_000, 150))
        naive = np.percentile(100 * leads[picks].mean(axis=1), [2.5, 97.5])
        assert diff == pytest.approx(100 * leads.mean(), abs=0.06) and np.allclose([low, high], naive, atol=0.8)  # one question is 0.67 points


def test_coverage():
    """Arms that agree on half of the questions and are right on 60 % and 50 % of the others: the true lead is 5 points."""
    draw, inside = random.Random(0), 0
    for _ in range(400):
        shared = [draw.random() < 0.5 for _ in range(300)]
        a, b = ([draw.random() < p if s else True for s in shared] for p in (0.6, 0.5))
        _, low, high = lead(a, b, n_boot=1000)
        inside += low <= 5 <= high
    assert 0.92 <= inside / 400 <= 0.98  # 95 % with a standard error of 1.1


def test_a_line_per_arm():
    arms = {"base": [True, False] * 50, "stat_sel": [True] * 75 + [False] * 25}
    head, base, stat = compare(arms, "base").splitlines()
    assert "vs base" in head and base.split() == ["base", "50/100", "50.0"]
    assert stat.split()[:4] == ["stat_sel", "75/100", "75.0", "+25.0"] and stat.endswith("]")
    assert compare(arms, "base") == compare(arms, "base")


def test_large_comparisons_are_quick():
    draw = random.Random(0)
    arms = {name: [draw.random() < p for _ in range(4000)] for name, p in [("base", 0.5), ("stat_sel", 0.55), ("stat_syn", 0.6)]}
    start = time.process_time()
    compare(arms, "base")
    assert time.process_time() - start < 2
