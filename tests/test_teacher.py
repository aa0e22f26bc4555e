"""The teacher against a real server on loopback that misbehaves in every way we know of."""

import asyncio
import errno
import fcntl
import inspect
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
import pytest

import common as module
from common import Request, Teacher, UserError, estimate_tokens, hide_secrets, read_completion, read_tag, read_tags
from tests.bad_server import BadServer, completion
from tests.conftest import read_cache as rows

KEY = "sk-secret0123456789"
PRICES = {"usd_per_m_in": 0.0, "usd_per_m_out": 1e6}  # a dollar a token; a good reply of the server has 5


def ask_for(prompt, **settings):
    return Request([{"role": "user", "content": prompt}], **settings)


def texts(replies):
    return [reply and reply.text for reply in replies]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_BASE_URL", "ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)


@pytest.fixture
def make(tmp_path):
    """make(server, ...) -> a Teacher on tmp_path/teacher.sqlite."""
    return lambda server, **settings: Teacher(
        "m", server.url, **{"cache": tmp_path / "teacher.sqlite", "timeout_s": 10, "tries": 3} | settings)


def stop(teacher, requests, *parts, **settings):
    """The sentence that asking ends in: one line, naming `parts`, never the key."""
    with pytest.raises(UserError) as info:
        teacher.ask(requests, "label", **settings)
    sentence = str(info.value)
    assert all(str(part) in sentence for part in parts), sentence
    assert KEY[:9] not in sentence and "\n" not in sentence
    return sentence


# --- Order, duplicates, cache ---
def test_replies_come_in_order_whatever_the_server_does_first(make):
    with BadServer(lambda prompt, nth: time.sleep(random.random() / 20) or "ok") as server:
        teacher = make(server, concurrency=8)
        assert texts(teacher.ask([ask_for(str(i)) for i in range(40)])) == [f"echo {i}" for i in range(40)]
        assert 2 <= server.most_in_flight <= 8


def test_what_the_server_gets(make):
    with BadServer() as server:
        requests = [ask_for("a", temperature=0.7, max_tokens=77, sample=i) for i in range(3)]
        make(server).ask(requests)
        got = {(body["model"], body["temperature"], body["max_tokens"], body["_key"]) for body in server.log}
        assert got == {("m", 0.7, 77, f"Bearer {KEY}")}
        seeds = {body["seed"] for body in server.log}
        assert len(seeds) == 3 and all(0 <= seed < 2**31 for seed in seeds)
        make(server, seed=1).ask(requests)  # another seed draws anew
        assert len(server.log) == 6 and len({body["seed"] for body in server.log}) == 6


def test_without_a_key_a_server_of_ones_own_gets_a_dummy(make, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with BadServer() as server:
        assert texts(make(server).ask([ask_for("a")])) == ["echo a"]


def test_duplicates_are_sent_once_and_a_rerun_sends_nothing(make, capsys):
    requests = [ask_for(p) for p in "abacaba"]
    with BadServer() as server:
        teacher = make(server, usd_per_m_in=1e6, usd_per_m_out=1e6)
        first = teacher.ask(requests, "label")
        assert texts(first) == ["echo " + p for p in "abacaba"]
        assert sorted(server.prompts) == ["a", "b", "c"]
        assert "label: 3 calls, 4 cached, 30 tokens in, 15 out, $45.0000, None: 0" in capsys.readouterr().out
        assert teacher.used == {"n_in": 30, "n_out": 15}
        again = make(server)
        assert again.ask(requests, "label") == first and len(server.log) == 3
        assert "label: 0 calls, 7 cached, 0 tokens in, 0 out, None: 0" in capsys.readouterr().out
        assert again.used == {"n_in": 30, "n_out": 15}
        assert again.ask([]) == []


@pytest.mark.parametrize("other", [{"temperature": 0.5}, {"sample": 1}, {"messages": [{"role": "system", "content": "a"}]}])
def test_whatever_moves_the_draw_is_another_call(make, other):
    with BadServer() as server:
        teacher = make(server)
        teacher.ask([ask_for("a")])
        make(server, seed=5).ask([ask_for("a", max_tokens=9)])  # the same draw: at T = 0 no seed moves it
        assert len(server.log) == 1
        teacher.ask([ask_for("a")._replace(**other)])
        assert len(server.log) == 2


def test_two_models_or_servers_share_a_file_but_no_replies(make, tmp_path):
    with BadServer() as server, BadServer() as another:
        make(server).ask([ask_for("a")])
        Teacher("other", server.url, cache=tmp_path / "teacher.sqlite").ask([ask_for("a")])
        assert [body["model"] for body in server.log] == ["m", "other"]
        make(another).ask([ask_for("a")])
        make(server).ask([ask_for("a")])
        assert len(server.log) == 2 and len(another.log) == 1
        assert server.log[0]["seed"] == another.log[0]["seed"]  # results do not hang on a port


def test_asking_twice_in_a_row_and_inside_a_running_loop(make):
    with BadServer() as server:
        teacher = make(server)

        async def notebook():
            return teacher.ask([ask_for("c")]), teacher.ask([ask_for("d")])

        assert texts(teacher.ask([ask_for("a")]) + teacher.ask([ask_for("b")])) == ["echo a", "echo b"]
        one, two = asyncio.run(notebook())
        assert texts(one + two + teacher.ask([ask_for("e")])) == ["echo c", "echo d", "echo e"]


def old_line(prompt, text, temperature=0.0, seed=0, **changes):
    """A line of teacher.jsonl as earlier versions wrote it."""
    drawn_from = ["m", [{"role": "user", "content": prompt}], float(temperature), seed, 0]
    key = module.hashlib.sha256(json.dumps(drawn_from, sort_keys=True).encode()).hexdigest()[:32]
    row = {"text": text, "finish": "stop", "none": None, "n_in": 10, "n_out": 5, "key": key, "model": "m", "step": "label",
           "max_tokens": 99, "estimated": False, "usd": 2.0}
    return json.dumps(row | changes) + "\n"


@pytest.mark.parametrize("name", ["teacher.sqlite", "teacher.jsonl"])
def test_an_earlier_teacher_jsonl_is_read_in_once(make, tmp_path, name):
    (tmp_path / "teacher.jsonl").write_text(old_line("a", "A", seed=3) + old_line("b", "B \ud800", seed=7) + old_line("c", "C", 0.7, seed=7)
                                            + old_line("d", "half", finish="length", none="cut off") + '[1]\n{"key": "x"}\n\n{"a{"b": 1}\n{"key"')
    requests = [ask_for("a"), ask_for("b"), ask_for("c", temperature=0.7)]
    with BadServer() as server, BadServer() as another:
        planned = make(server, seed=7, write=False)
        assert planned.plan({"label": requests}) == 1 and not (tmp_path / "teacher.sqlite").exists()  # the seed of a was 3
        for _ in range(2):
            teacher = make(server, seed=7, cache=tmp_path / name, **PRICES)
            assert texts(teacher.ask(requests)) == ["echo a", "B \ud800", "C"]
            assert teacher.spent_usd == 4 * 2 + 5 and teacher.recorded["label"]["calls"] == 4
        assert server.prompts == ["a"] and len(rows(tmp_path / "teacher.sqlite")) == 5
        assert texts(make(server).ask([ask_for("d", max_tokens=99)])) == [None] and len(server.log) == 1
        assert texts(make(another, seed=7).ask([ask_for("b")])) == ["echo b"]  # they are the first server's


def test_a_file_that_is_no_cache(make, tmp_path):
    (tmp_path / "teacher.sqlite").write_bytes(b"[1]\n" * 500)
    (tmp_path / "folder.sqlite").mkdir()
    with BadServer() as server:
        for cache, words in (("teacher.sqlite", "not a database"), ("folder.sqlite", "unable to open"), ("teacher.sqlite/x", "")):
            with pytest.raises(UserError, match=f"cache.*{cache}.*cannot be.*{words}"):
                make(server, cache=tmp_path / cache)


def test_a_full_disk_stops_in_one_sentence_and_a_rerun_goes_on(make):
    with BadServer() as server:
        teacher = make(server)
        teacher.ask([ask_for("a")])
        teacher.db.execute("PRAGMA max_page_count = 1")
        stop(teacher, [ask_for("b" * 5000)], "is full", teacher.path)
        teacher.db.execute("PRAGMA max_page_count = 1000000")
        assert texts(make(server).ask([ask_for("a"), ask_for("b" * 5000)])) == ["echo a", "echo " + "b" * 5000]
        assert [prompt[0] for prompt in server.prompts] == ["a", "b", "b"]


def test_a_cache_that_cannot_be_written_is_found_before_a_call_is_paid(make):
    with BadServer() as server:
        teacher = make(server)
        teacher.db.execute("PRAGMA query_only = 1")
        stop(teacher, [ask_for("a")], "readonly", "--cache")
        assert server.log == []


def test_text_of_any_kind_survives_the_cache(make):
    text = "é ☃ 漢字 \u2028 \x85 \r\n \\frac \" 𝔸"
    with BadServer() as server:
        assert texts(make(server).ask([ask_for(text)])) == texts(make(server).ask([ask_for(text)])) == ["echo " + text]
        assert len(server.log) == 1


def test_half_a_surrogate_pair_is_replaced(make):
    with BadServer() as server:
        assert texts(make(server).ask([ask_for("x \ud835 y"), ask_for("\ud835\udd38")])) == ["echo x \ufffd y", "echo 𝔸"]
        server.script = lambda prompt, nth: (200, completion("\ud835"))
        assert texts(make(server).ask([ask_for("z")])) == texts(make(server).ask([ask_for("z")])) == ["\ud835"]


def test_100_000_replies_open_quickly(make, tmp_path):
    """Measured in a process of its own, beside what importing takes; as SQLite, and read in from teacher.jsonl."""
    with BadServer() as server:
        teacher = make(server)
        with teacher.db:
            row = json.dumps({"text": "x" * 1000, "finish": "stop", "none": None, "n_in": 9, "n_out": 9, "model": "m", "step": "s",
                              "max_tokens": 99, "estimated": False, "usd": 0.1})
            teacher.db.executemany("INSERT INTO replies VALUES (?, ?, ?)", ((teacher.url, f"{i:032x}", row) for i in range(100_000)))
    script = """
import resource, sys, time, common, openai
start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
teacher = common.Teacher("m", "http://127.0.0.1:9/v1", cache=sys.argv[1], max_usd=1e9, usd_per_m_in=1, usd_per_m_out=1)
teacher.plan({"s": [common.Request([{"role": "user", "content": str(i)}]) for i in range(1000)]})
assert round(teacher.spent_usd) == 10_000, teacher.spent_usd
print(time.process_time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "teacher.sqlite"], cwd=Path(module.__file__).parent,
                          capture_output=True, text=True, check=True)
    seconds, mib = map(float, done.stdout.split()[-2:])
    print(f"{seconds:.2f} s, {mib:.0f} MiB")
    assert seconds < 2 and mib < 150


# --- Kills, Ctrl-C, two processes ---
CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from {module} import Request, Teacher
Teacher("m", sys.argv[2], cache=sys.argv[3], concurrency=6, max_usd=float(sys.argv[5]), usd_per_m_in=0, usd_per_m_out=1e6).ask(
    [Request([{{"role": "user", "content": f"{{i}} "}}], max_tokens=8) for i in range(int(sys.argv[4]))])
"""


def child(server, path, n, max_usd=1e9):
    script = CHILD.format(module=Teacher.__module__)
    argv = [os.path.dirname(os.path.abspath(module.__file__)), server.url, str(path), str(n), str(max_usd)]
    return subprocess.Popen([sys.executable, "-c", script, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a suite in the background ignores it


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)


def test_kill_9_in_the_middle_repeats_no_call_that_reached_the_cache(make, tmp_path):
    path, requests = tmp_path / "teacher.sqlite", [ask_for(f"{i} ") for i in range(60)]
    is_killed = threading.Event()
    with BadServer(lambda prompt, nth: "ok" if len(server.log) <= 25 or is_killed.wait(60) else "500") as server:
        process = child(server, path, 60)
        wait_for(lambda: len(server.log) > 25)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.1)  # what is in flight reaches the log
        is_killed.set()
        sent, kept = len(server.log), {row["text"][5:] for row in rows(path)}
        assert 0 < len(kept) < 60 and sent >= 25
        assert texts(make(server).ask(requests)) == [f"echo {i} " for i in range(60)]  # no lock outlives the killed one
        asked_again = set(server.prompts[:sent]) & set(server.prompts[sent:])
        assert not kept & set(server.prompts[sent:]) and len(asked_again) <= 6
        assert len(server.log) == 60 + len(asked_again)


@pytest.mark.parametrize("n_quick, kept", [(15, True), (0, False)])
def test_ctrl_c_sends_nothing_more_and_keeps_what_comes_soon(make, tmp_path, n_quick, kept):
    path, answers = tmp_path / "teacher.sqlite", threading.Event()
    with BadServer(lambda prompt, nth: "ok" if len(server.log) <= n_quick or answers.wait(60) else "500") as server:
        process = child(server, path, 60)
        wait_for(lambda: len(server.log) >= n_quick + 4)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        if kept:
            time.sleep(0.2)
            answers.set()
        assert process.wait(10) != 0 and time.monotonic() - start < 5
        assert len(server.log) <= n_quick + 2 * 6 and len(rows(path)) == (len(server.log) if kept else 0)
        answers.set()


def test_two_processes_pay_each_prompt_once_under_one_cap(tmp_path):
    path = tmp_path / "teacher.sqlite"
    with BadServer(delay_s=0.02) as server:
        both = [child(server, path, 40) for _ in "xy"]
        told = [process.communicate(timeout=30)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0] and sum("another process" in text for text in told) == 1
        assert len(server.log) == 40 == len(rows(path))
        path.unlink()
        both = [child(server, path, 40, max_usd=100) for _ in "xy"]
        assert all("--max-usd $100" in process.communicate(timeout=30)[1] for process in both)
        assert 92 < sum(row["usd"] for row in rows(path)) <= 100


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(make, monkeypatch, capsys, number):
    def flock(*_):
        raise OSError(number, "no locks")
    monkeypatch.setattr(fcntl, "flock", flock)
    with BadServer() as server:
        assert texts(make(server).ask([ask_for("a")])) == ["echo a"] and texts(make(server).ask([ask_for("a")])) == ["echo a"]
        assert "no locks" in capsys.readouterr().out and len(server.log) == 1


# --- Retries ---
GARBAGE = ["truncated", "nothing", "html", "list", "string", "null", "latin1", "error with 200", "no choices", "null choices",
           "empty choices", "null message", "number content", "abort"]


def test_passing_trouble_is_retried_and_lasting_trouble_is_none(make, capsys):
    troubles = ["500", "503", "502", "408", "409", "429", "reset", "short", *GARBAGE]

    def script(prompt, nth):
        kind, _, trouble = prompt.partition(": ")
        return "ok" if prompt == "fine" or (kind == "passing" and nth == 3) else trouble

    with BadServer(script) as server:
        passing, lasting = [[ask_for(f"{kind}: {trouble}") for trouble in troubles] for kind in ("passing", "lasting")]
        assert texts(make(server).ask(passing)) == [f"echo passing: {trouble}" for trouble in troubles]
        teacher = make(server, concurrency=4)
        assert texts(teacher.ask([*lasting[::2], ask_for("fine")], "s", max_none=1.0)) == [None] * 11 + ["echo fine"]
        assert "None: 11 lost" in capsys.readouterr().out
        assert all(server.prompts.count(f"lasting: {trouble}") == 3 for trouble in troubles[::2])
        server.script = lambda prompt, nth: "ok"  # the lost ones are not cached: a rerun asks again
        assert texts(make(server).ask(lasting)) == [f"echo lasting: {trouble}" for trouble in troubles]


def test_a_teacher_that_is_away_for_a_minute_loses_nothing(make, monkeypatch):
    """All waits are a twentieth of the real ones, so it is away for three seconds."""
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.5 / 20)
    monkeypatch.setattr(openai._base_client, "MAX_RETRY_DELAY", 8 / 20)
    since = []

    def script(prompt, nth):
        since.extend([time.monotonic()] if len(server.log) >= 20 and not since else [])
        return "reset" if since and time.monotonic() - since[0] < 3 else "ok"
    requests = [ask_for(f"question {i}") for i in range(60)]
    with BadServer(script) as server:
        tries = inspect.signature(Teacher).parameters["tries"].default
        assert texts(make(server, tries=tries, concurrency=8).ask(requests)) == [f"echo question {i}" for i in range(60)]
        assert len(server.log) > 100


@pytest.mark.parametrize("name, wait_s", [("429 after 1", 1), ("429 after 300 ms", 0.3)])
def test_retry_after_is_obeyed(make, name, wait_s):
    with BadServer(lambda prompt, nth: name if nth == 1 else "ok") as server:
        assert texts(make(server).ask([ask_for("a")])) == ["echo a"]
        one, two = (body["_time"] for body in server.log)
        assert wait_s <= two - one < wait_s + 3  # generous: the machine may be busy


def test_a_retry_after_beyond_the_limit_is_not_waited_for(make):
    with BadServer(lambda prompt, nth: "429 after 900" if prompt == "a" else "ok") as server:
        start = time.monotonic()
        assert texts(make(server).ask([ask_for("b"), ask_for("a")])) == ["echo b", None]
        assert time.monotonic() - start < 10 and server.prompts.count("a") == 1


@pytest.mark.parametrize("name", ["drip", "hang"])
def test_the_time_limit_is_for_the_whole_call_and_has_a_flag(make, name, capsys):
    with BadServer(lambda prompt, nth: name if prompt in "ac" else "ok") as server:
        teacher, start = make(server, timeout_s=1.5, tries=6), time.monotonic()
        assert texts(teacher.ask([ask_for("a"), ask_for("b")], "s")) == [None, "echo b"]
        assert 1.4 < time.monotonic() - start < 6 and "None: 1 lost" in capsys.readouterr().out
        stop(teacher, [ask_for("a"), ask_for("c")], "2 lost", "--teacher-timeout 1.5", "--concurrency 16")


# --- Fields that a server refuses ---
def openai_says(message, param=None, code=None):
    return 400, {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def forbids(*fields):
    detail = [{"type": "extra_forbidden", "loc": ["body", field], "msg": "Extra inputs are not permitted"} for field in fields]
    return 422, {"detail": detail}


ONE = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."
OTHER = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
FIELDS = {  # what a server says to (field and whether it is bad there), and what it gets at last
    "temperature 1 only": ([("temperature", openai_says(ONE, "temperature", "unsupported_value"))], {"temperature": None}),
    "kimi": ([("temperature", openai_says("invalid temperature: only 1 is allowed for this model"))], {"temperature": None}),
    "deprecated": ([("temperature", openai_says("`temperature` is deprecated for this model."))], {"temperature": None}),
    "tgi": ([("cold", (422, {"error": "Input validation error: `temperature` must be strictly positive",
                             "error_type": "validation"}))], {"temperature": 0.01}),
    "half open": ([("cold", openai_says("temperature must be in (0, 2]"))], {"temperature": 0.01}),
    "above zero": ([("cold", (422, {"detail": [{"loc": ["body", "temperature"], "msg": "Input should be greater than 0"}]}))],
                   {"temperature": 0.01}),
    "completion": ([("max_tokens", openai_says(OTHER, "max_tokens", "unsupported_parameter"))],
                   {"max_tokens": None, "max_completion_tokens": 1024}),
    "seed": ([("seed", openai_says("Unrecognized request argument supplied: seed"))], {"seed": None}),
    "gemini": ([("seed", openai_says('Invalid JSON payload received. Unknown name "seed": Cannot find field.'))], {"seed": None}),
    "bedrock": ([("seed", openai_says("Malformed input request: #: extraneous key [seed] is not permitted"))], {"seed": None}),
    "two at once": ([("seed", forbids("seed", "temperature")), ("temperature", forbids("temperature"))],
                    {"seed": None, "temperature": None}),
    "one by one": ([("seed", forbids("seed")), ("max_tokens", forbids("max_tokens")), ("cold", openai_says(
        "temperature has to be > 0")), ("temperature", openai_says("temperature is unsupported"))],
        {"seed": None, "temperature": None, "max_completion_tokens": 1024, "max_tokens": None}),
}


@pytest.mark.parametrize("case", FIELDS)
def test_a_refused_field_is_left_out_or_swapped_and_said_once(make, case, capsys):
    refusals, last = FIELDS[case]

    def script(prompt, nth, body):
        for field, answer in refusals:
            if (body.get("temperature") == 0 if field == "cold" else field in body):
                return answer
        return "ok"

    with BadServer(script) as server:
        teacher = make(server, concurrency=4)
        teacher.check()
        sent = len(server.log)
        assert sent == 1 + capsys.readouterr().out.count("from here on") <= 5
        assert texts(teacher.ask([ask_for(str(i)) for i in range(9)])) == [f"echo {i}" for i in range(9)]
        assert len(server.log) == sent + 9  # remembered for the run
        assert {name: server.log[-1].get(name) for name in last} == last
        assert texts(make(server, concurrency=4).ask([ask_for(str(i)) for i in range(20)])) == [f"echo {i}" for i in range(20)]
        capsys.readouterr()
        if case == "tgi":
            make(server).ask([ask_for("warm", temperature=0.7)])
            assert server.log[-1]["temperature"] == 0.7


def test_a_limit_that_is_too_high_is_not_swapped(make):
    said = openai_says("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]")
    with BadServer(lambda prompt, nth: said) as server:
        stop(make(server), [ask_for("a")], "the valid range")
        assert len(server.log) == 1


# --- Replies that are of no use ---
@pytest.mark.parametrize("name, none", [
    ("null content", "empty"), ("blank", "empty"), ("reasoning only", "empty"), ("refusal", "refused"), ("filter", "refused"),
    ("length", "cut off"), ("reasoning cut", "cut off"), ((200, completion("half", "max_tokens")), "cut off"),
    ((200, completion("half", "MAX_TOKENS")), "cut off"), ((200, completion("<think>half")), "cut off"),
    ((200, completion("<think>all</think>\n")), "empty"), ((200, completion("<|im_end|>")), "empty")])
def test_useless_replies_are_none_by_reason_and_paid_once(make, name, none, capsys):
    with BadServer(lambda prompt, nth: name if prompt == "a" else "ok") as server:
        teacher, good = make(server), [ask_for(str(i)) for i in range(40)]
        assert teacher.ask([ask_for("a"), ask_for("a"), *good], "s")[:2] == [None, None]
        assert f"None: 2 {none}" in capsys.readouterr().out
        assert make(server).ask([ask_for("a"), *good])[0] is None
        assert len(server.log) == 41


@pytest.mark.parametrize("finish", ["stop", "max_tokens", None])
def test_a_reply_of_the_whole_limit_is_cut_off(make, finish):
    with BadServer(lambda prompt, nth: (200, completion("half of", finish))) as server:  # its usage says 5 tokens
        assert texts(make(server).ask([ask_for("a", max_tokens=5)])) == [None]
        assert texts(make(server).ask([ask_for("b", max_tokens=6)])) == [None if finish == "max_tokens" else "half of"]


def test_cut_off_is_asked_again_when_max_tokens_grew(make):
    with BadServer(lambda prompt, nth: "length" if nth < 3 else "ok") as server:
        for max_tokens, text, sent in [(10, None, 1), (10, None, 1), (6, None, 1), (20, None, 2), (15, None, 2), (40, "echo a", 3),
                                       (6, "echo a", 3)]:  # fmt: skip
            teacher = make(server, **PRICES)
            assert (texts(teacher.ask([ask_for("a", max_tokens=max_tokens)])), len(server.log)) == ([text], sent)
        assert teacher.spent_usd == 15  # what was paid stays counted
    with BadServer() as server:  # of duplicates the longest is sent
        make(server).ask([ask_for("b", max_tokens=n) for n in (6, 50, 20)])
        assert [body["max_tokens"] for body in server.log] == [50]


@pytest.mark.parametrize("name, none", [("length", "cut off"), ("null content", "empty"), ("refusal", "refused"),
                                        ("too long", "refused by server"), ("503", "lost")])
def test_a_step_of_mostly_none_is_not_taken_for_done(make, name, none):
    with BadServer(lambda prompt, nth: name if int(prompt) % 2 else "ok") as server:
        requests = [ask_for(str(i), max_tokens=50) for i in range(40)]
        stop(make(server, concurrency=1), requests, f"3 {none}", "not asked", "--teacher-max-none 0.05", "--teacher-max-tokens")
        n = len(server.log)
        assert texts(make(server, max_none=0.5).ask(requests)) == [None if i % 2 else f"echo {i}" for i in range(40)]
        assert len(set(server.prompts[n:]) & set(server.prompts[:n])) == (0 if none == "cut off" else 3)  # only what was missing
        server.script = lambda prompt, nth: "ok"
        if none == "cut off":
            n = len(server.log)
            stop(make(server), requests, "20 cut off")  # before another call is paid
            assert len(server.log) == n
            requests = [request._replace(max_tokens=100) for request in requests]
        elif none in ("empty", "refused"):  # a stricter run stops, and the next asks anew
            stop(make(server), requests, f"20 {none}")
        assert texts(make(server).ask(requests)) == [f"echo {i}" for i in range(40)]


ZERO = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize("usage", ["no usage", "odd usage", None, ZERO, {}, {"prompt_tokens": 10}])
def test_missing_or_zero_usage_is_estimated_and_counts(make, usage):
    def script(prompt, nth):
        return usage if isinstance(usage, str) else (200, completion("echo " + prompt) | {"usage": usage})
    with BadServer(script) as server:
        teacher = make(server, **PRICES)
        reply, = teacher.ask([ask_for("a" * 300)])
        assert rows(teacher.path)[0]["estimated"] and 100 <= reply.n_in <= 120 and 100 <= reply.n_out <= 110
        assert make(server).ask([ask_for("a" * 300)]) == [reply] and teacher.spent_usd == reply.n_out


THOUGHTS = [
    "<think>perhaps \\boxed{5}?</think> It is 4.", "perhaps 5?\n</think>\n\nIt is 4.", "<think>a <think> b</think> c</think>It is 4.",
    "<thinking>5?</thinking>\nIt is 4.<|im_end|>", "<Think>5?</Think>It is 4.<|eot_id|>\n", "[THINK]5?[/THINK]It is 4.</s>",
    "<|channel|>analysis<|message|>5?<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>",
    "analysis5?assistantfinalIt is 4.", "◁think▷5?◁/think▷It is 4.<end_of_turn>", "<seed:think>5?</seed:think>It is 4.<eos>",
    "<|START_THINKING|>5?<|END_THINKING|>It is 4.<|END_OF_TURN_TOKEN|>", "It is 4.<|endoftext|>", "It is 4.<|im_end|>\n<|im_start|>user",
    "<think></think>It is 4.<｜end▁of▁sentence｜>", "It is 4.<|im_end|><|im_end|>"]


def test_thoughts_and_end_of_turn_marks_are_taken_off(make):
    with BadServer(lambda prompt, nth: (200, completion(prompt))) as server:
        for _ in range(2):  # from the cache too
            assert texts(make(server).ask([ask_for(text) for text in THOUGHTS])) == ["It is 4."] * len(THOUGHTS)
        server.script = lambda prompt, nth: "parts"
        assert texts(make(server).ask([ask_for("a")])) == ["echo a"]
        server.script = lambda prompt, nth: (200, completion(prompt))
        untouched = ["if $x < 4$ then I think: analysis is final", " a\n", "<reason>so</reason><skill>a</skill>", "$|a| <|b|>$"]
        assert texts(make(server).ask([ask_for(text) for text in untouched])) == untouched


BY_FIELD = {"seed": 1, "temperature": 0, "max_tokens": 2048}
REFUSED = [
    "too long", "too long llama.cpp", "too long by code", "too long or rude", openai_says("Content Exists Risk"),
    openai_says("Input data may contain inappropriate content.", code="data_inspection_failed"),
    (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000", "error_type": "validation"}),
    openai_says("prompt is too long: 5000 tokens > 4096 maximum"), (413, {"error": {"message": "too big"}}),
    openai_says("'max_tokens' or 'max_completion_tokens' is too large: 2048. This model's maximum context length is 4096 tokens"),
    openai_says("The response was filtered due to the prompt triggering Azure OpenAI's content management policy."),
    openai_says("Your request was flagged by our moderation system"), (403, {"error": {"message": "Content violates usage guidelines."}}),
    openai_says("Invalid prompt: your prompt was flagged", code="invalid_prompt"), openai_says("系统检测到输入内容可能包含不安全或敏感内容"),
    openai_says("The input token count (5000) exceeds the maximum number of tokens allowed (4096)."),
    openai_says("Please reduce the length of the messages."), openai_says("Requested token count exceeds the model's limit"),
    (400, {"error": {"code": "1301", "message": "high risk"}}), (500, {"error": "the request exceeds the available context size"})]


def test_a_prompt_that_is_refused_is_none_alone(make, capsys):
    with BadServer(lambda prompt, nth: REFUSED[int(prompt)] if prompt.isdigit() else "ok") as server:
        teacher = make(server)
        prompts = [word for i in range(len(REFUSED)) for word in (str(i), f"good {i}")]
        replies = texts(teacher.ask([ask_for(p) for p in prompts], "s", max_none=0.5))
        assert replies[::2] == [None] * len(REFUSED) and replies[1::2] == [f"echo good {i}" for i in range(len(REFUSED))]
        assert f"None: {len(REFUSED)} refused by server" in capsys.readouterr().out and len(set(server.prompts)) == 2 * len(REFUSED)
        assert texts(make(server).ask([ask_for(p) for p in ("a", "4", "b")])) == ["echo a", None, "echo b"]
        stop(make(server, max_none=0), [ask_for("4"), ask_for("c")], "1 refused by server", "allows 0")  # of a student none may be
        sentence = stop(make(server), [ask_for("4"), ask_for("5"), ask_for("6")], "refused by server")
        assert "Content Exists Risk" in sentence or "inappropriate" in sentence or "4096" in sentence


@pytest.mark.parametrize("max_none, n_odd, stops", [(0.05, 3, False), (0.05, 4, True), (0.5, 7, False), (0.5, 8, True), (1.0, 15, False)])
def test_odd_replies_end_a_run_unless_others_may_stand_in_for_them(make, max_none, n_odd, stops):
    with BadServer(lambda prompt, nth: "ok") as server:
        teacher, requests = make(server), [ask_for(f"odd {i}" if i < n_odd else f"fine {i}") for i in range(15)]
        how = {"max_none": max_none, "reads": lambda text: None if "odd" in text else text}
        if stops:
            stop(teacher, requests, f"{n_odd} of 15 replies are not in the form asked for", **how)
        else:
            assert len(texts(teacher.ask(requests, "s", **how))) == 15


# --- What stops a run at once, in one sentence ---
@pytest.mark.parametrize("name, words", [("401", "OPENAI_API_KEY"), ("403", "OPENAI_API_KEY"), ("404", "model"), ("404 html", "/v1"),
                                         ("400", "messages must alternate"), ("quota", "credit"), ("402", "credit")])  # fmt: skip
def test_hopeless_errors_stop_at_once_and_keep_what_came(make, name, words):
    with BadServer(lambda prompt, nth: name if prompt == "bad" else "ok") as server:
        teacher = make(server, concurrency=1, tries=1)
        stop(teacher, [ask_for(p) for p in ("a", "b", "bad", "c")], server.url, "teacher m", words)
        assert server.prompts == ["a", "b", "bad"]
        assert texts(make(server).ask([ask_for(p) for p in "ab"])) == ["echo a", "echo b"] and len(server.log) == 3
        server.script = lambda prompt, nth: name
        with pytest.raises(UserError, match=words):
            make(server).check()
        server.script = lambda prompt, nth: "length"  # a few tokens are enough for a check
        assert make(server).check() is None and len(rows(teacher.path)) == 2


def test_an_unreachable_server(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    teacher = Teacher("m", f"http://user:{KEY}@127.0.0.1:{port}/v1", cache=tmp_path / "c.sqlite", tries=3)
    stop(teacher, [ask_for(str(i)) for i in range(100)], "ConnectError", "--teacher-timeout")
    with pytest.raises(UserError, match=f"127.0.0.1:{port}/v1.*ConnectError"):
        teacher.check()


def test_a_server_that_dies_stops_after_twenty_lost_calls(make):
    with BadServer(lambda prompt, nth: "ok" if int(prompt) < 5 else "503") as server:
        stop(make(server, tries=2, concurrency=4), [ask_for(str(i)) for i in range(1000)], "503", "not asked")
        assert len(set(server.prompts)) <= 5 + 20 + 3
        server.script = lambda prompt, nth: "ok" if int(prompt) % 2 else "503"  # every other one: no reason to stop
        replies = make(server, tries=2, concurrency=1).ask([ask_for(str(i)) for i in range(5, 60)], max_none=0.5)
        assert sum(reply is None for reply in replies) == 27


@pytest.mark.parametrize("settings, words", [
    ({"base_url": None}, "OPENAI_API_KEY is not set"), ({"base_url": "localhost:8000/v1"}, "be like http://"),
    ({"base_url": "http://localhost:99999/v1"}, "99999"), ({"base_url": "http://[::1/v1"}, "be like"), ({"max_usd": 1.0}, "--usd-per-m-in"),
    ({"max_usd": 1.0, "usd_per_m_in": 1.0}, "--usd-per-m-in"), ({"usd_per_m_out": 1.0}, "--usd-per-m-in"),
    ({"timeout_s": 0}, "--teacher-timeout"), ({"usd_per_m_in": -1.0, "usd_per_m_out": 1.0}, "below zero"),
])  # fmt: skip
def test_bad_settings_are_refused_before_anything_is_sent(tmp_path, monkeypatch, settings, words):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match=words):
        Teacher("m", **{"base_url": "http://127.0.0.1:1/v1", "cache": tmp_path / "c.sqlite"} | settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["sk-\u2026", "sk-a\nb"])
def test_a_key_that_no_header_can_carry(tmp_path, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="OPENAI_API_KEY") as info:
        Teacher("m", cache=tmp_path / "c.sqlite")
    assert key not in str(info.value)


# --- Addresses, keys, proxies ---
def test_a_plan_needs_no_key(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert Teacher("m", cache=tmp_path / "c.sqlite", write=False, needs_key=False).plan({"s": [ask_for("a")]}) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_empty_base_url_is_unset(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    teacher = Teacher("m", "", cache=tmp_path / "c.sqlite")
    assert teacher.url == teacher.base_url == "https://api.openai.com/v1"


@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "base_url"])
def test_the_key_goes_over_plain_http_only_where_the_flag_names_the_server(tmp_path, monkeypatch, variable):
    for url, is_refused in (("http://10.0.0.5:8000/v1", True), ("http://localhost.evil.com/v1", True), ("https://10.0.0.5/v1", False),
                            ("http://localhost:8000/v1", False), ("http://127.0.0.1/v1", False), ("http://[::1]:8000/v1", False)):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        if is_refused and variable == "OPENAI_BASE_URL":
            with pytest.raises(UserError, match="OPENAI_BASE_URL.*--teacher-url"):
                Teacher("m", cache=tmp_path / "c.sqlite")
        else:
            Teacher("m", url if variable == "base_url" else None, cache=tmp_path / "c.sqlite")
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://10.0.0.5:8000/v1")
    Teacher("m", cache=tmp_path / "c.sqlite")  # no key, nothing to lose


def test_a_secret_in_an_address_reaches_the_server_and_nothing_else(make, capsys):
    with BadServer() as server:
        address = f"http://127.0.0.1:{server.port}/v1"
        teacher = Teacher("m", f"{address}/?api_key=s3cret&v=2", cache=Path(make(server).path), tries=1)
        assert texts(teacher.ask([ask_for("a")])) == ["echo a"]
        assert server.log[-1]["_path"] == "/v1/chat/completions?api_key=s3cret&v=2"
        assert texts(make(server).ask([ask_for("a")])) == ["echo a"] and len(server.log) == 1  # the same server
        password = Teacher("m", address.replace("//", "//me:s3cret@"), cache=teacher.path, tries=1)
        server.script = lambda prompt, nth: (401, {"error": {"message": f"wrong {server.log[-1]['_key']} at {address}?api_key=s3cret"}})
        for one in (teacher, password):
            assert "s3cret" not in stop(one, [ask_for("b")])
        server.script = lambda prompt, nth: (503, {"error": f"at {address}?api_key=s3cret with {KEY}"})
        assert "s3cret" not in stop(teacher, [ask_for("b"), ask_for("c")], "HTTP 503")
        assert "s3cret" not in capsys.readouterr().out and b"s3cret" not in teacher.path.read_bytes()


def test_secrets_are_hidden_in_any_text():
    assert hide_secrets('["--teacher-url=https://u:p@ss@h/v1", "http://h:8/v1?key=1&b=2"]') == '["--teacher-url=https://h/v1", "http://h:8/v1"]'
    kwargs = json.dumps({"chat_template_kwargs": json.dumps({"url": "http://h/v1?key=1", "on": True})})
    assert json.loads(json.loads(hide_secrets(kwargs))["chat_template_kwargs"]) == {"url": "http://h/v1", "on": True}
    assert hide_secrets(f"Bearer {KEY}, a@b, runs/x?y") == "Bearer <key>, a@b, runs/x?y"


def test_a_run_keeps_no_secret(tmp_path, monkeypatch):
    from stat_sel import MAY_CHANGE, Args
    monkeypatch.setattr(sys, "argv", ["stat_sel.py", "--teacher-url=http://me:s3cret@h/v1", "http://h/v1?api_key=s3cret", KEY])
    for address in ("http://me:s3cret@h/v1", "http://h/v1?api_key=s3cret"):
        run = module.open_run(Args(teacher_url=address, out=str(tmp_path / "run")), tmp_path / "run", MAY_CHANGE)
        run.lock.release()
    kept = "".join(path.read_text() for path in (tmp_path / "run").iterdir())
    assert "s3cret" not in kept and KEY not in kept and "http://h/v1" in kept


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "http://127.0.0.1:9"])
def test_a_proxy_is_not_asked_for_the_own_machine(make, monkeypatch, tmp_path, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with BadServer() as server:
        assert texts(make(server).ask([ask_for("a")])) == ["echo a"]
    far = Teacher("m", "http://192.0.2.1/v1", cache=tmp_path / "c.sqlite", tries=1, timeout_s=2)
    with pytest.raises(UserError, match="ALL_PROXY|Connect"):
        far.check()


# --- Money ---
def test_the_cap_stops_before_it_is_passed_and_a_higher_one_goes_on(make, capsys):
    requests = [ask_for(str(i), max_tokens=8) for i in range(10)]
    with BadServer() as server:
        sentence = stop(make(server, max_usd=24, **PRICES), requests, "$20.0000", "$24", "--max-usd")
        assert server.most_in_flight <= 3 and "$8.0000" in sentence  # 3 x 8 fit in 24
        assert len(server.log) == len(rows(make(server).path)) == 4  # 20 spent; 8 more could make it 28
        stop(make(server, max_usd=27, **PRICES), requests, "$20.0000")  # a new process has not forgotten
        assert len(server.log) == 4
        teacher = make(server, max_usd=54, **PRICES)
        assert texts(teacher.ask(requests, "s")) == [f"echo {i}" for i in range(10)]
        assert len(server.log) == 10 and "s: 6 calls, 4 cached, 60 tokens in, 30 out, $30.0000" in capsys.readouterr().out
        assert teacher.spent_usd == 50
        stop(make(server, max_usd=54, **PRICES), [ask_for("x", max_tokens=8)], "$50.0000")


def test_useless_and_unpriced_replies_count_towards_the_cap(make):
    with BadServer(lambda prompt, nth: "refusal") as server:
        make(server).ask([ask_for("a")])  # without prices: counted at those of the later run
        assert rows(make(server).path)[0]["usd"] is None
        teacher = make(server, max_usd=15, **PRICES)
        assert teacher.spent_usd == 5
        assert teacher.ask([ask_for("b", max_tokens=8)]) == [None] and teacher.spent_usd == 10
        stop(teacher, [ask_for("c", max_tokens=6)], "$10.0000")


def test_plan_prints_calls_tokens_and_dollars_and_sends_nothing(make, capsys):
    with BadServer() as server:
        teacher = make(server, max_usd=9, **PRICES)
        teacher.ask([ask_for("a", max_tokens=7)])
        capsys.readouterr()
        steps = {"label": [ask_for(p, max_tokens=100) for p in "abcc"], "rewrite": [ask_for("long " * 60, max_tokens=1000)], "none": []}
        assert teacher.plan(steps, show=True) == 3
        out = capsys.readouterr().out
        table = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
        assert table["label"][:2] == ["2", "2"] and table["label"][3:] == ["200", "200.0000"]
        assert table["total"][:2] == ["3", "2"] and table["total"][3:] == ["1,200", "1,200.0000"]
        assert 100 <= int(table["rewrite"][2]) <= 120
        assert "cap: $9" in out and "$5.0000" in out and "long " * 60 in out and len(server.log) == 1
        make(server).plan(steps)
        out = capsys.readouterr().out
        assert "$" not in out and "long long" not in out


def test_what_was_paid_is_counted_over_all_starts(make):
    prices = {"usd_per_m_in": 1.0, "usd_per_m_out": 2.0}
    with BadServer() as server:
        first = make(server, **prices)
        first.ask([ask_for("a"), ask_for("b")], "label")
        n_in = first.recorded["label"]["n_in"]
        second = make(server, **prices)
        second.ask([ask_for("a"), ask_for("c")], "label")
        assert second.recorded["label"]["calls"] == 3 == len(server.log)
        assert make(server, **prices).recorded == second.recorded
        assert second.recorded["label"]["usd"] == pytest.approx(second.spent_usd)
        assert second.recorded["label"]["n_in"] == 3 * n_in / 2


# --- Small parts ---
def test_estimates_grow_with_the_text_and_bound_plain_english():
    text = "The quick brown fox jumps over the lazy dog. "  # ten tokens or so
    assert 10 <= estimate_tokens(text) and 1000 <= estimate_tokens(text * 100) <= 1600
    assert estimate_tokens("漢" * 100) >= 100 and estimate_tokens("\ud800") >= 1


def test_a_completion_of_random_bytes_is_a_value_error_or_a_reply():
    rng, body = random.Random(0), json.dumps({"choices": [{"finish_reason": "stop", "message": {"content": "hi"}}]}).encode()
    good = 0
    for _ in range(3000):
        broken = bytearray(body)
        for _ in range(rng.randint(1, 3)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            good += isinstance(read_completion(bytes(broken))["text"], str)
        except ValueError:
            pass
    assert 0 < good < 3000


def test_tags_are_read():
    reply = "The <skill> tag: <judge>x</judge><SKILL> a b </skill>, <skill>c</skill><judge>incorrect</judge>"
    assert read_tags(reply, "skill") == ["a b", "c"] and read_tag(reply, "judge") == "incorrect" and read_tag(reply, "mark") is None


def test_profiles_are_read_with_several_skills_and_a_judge_that_explains():
    from stat_sel import read_profile
    names, skills = ["factoring skills", "function skills"], "<skill>factoring skills</skill><skill>function skills</skill>"
    for judge, verdict in (("incorrect", "incorrect"), ("Incorrect (wrong sign)", "incorrect"), ("**Incorrect**", "incorrect"),
                           ("not correct", "incorrect"), ("Correct.", "correct"), ("correct: all steps hold", "correct")):
        found = read_profile(f"<judge>{judge}</judge>{skills}", "Algebra", names)
        assert found["judge"] == verdict, judge
        assert found["skills"] == (["Algebra: factoring skills", "Algebra: function skills"] if verdict == "incorrect" else [])
    for judge in ("correct or incorrect", "correct/incorrect", "partly", ""):
        assert read_profile(f"<judge>{judge}</judge>{skills}", "Algebra", names)["fault"] == "malformed", judge
    assert read_profile("<judge>incorrect</judge>", "Algebra", names)["fault"] == "malformed"
