"""The teacher against a real server on loopback that misbehaves in every way we know of."""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import common as module
from common import Request, Teacher, UserError, estimate_tokens, read_completion
from tests.bad_server import BadServer

KEY = "sk-secret0123456789"


def ask_for(prompt, **settings):
    return Request([{"role": "user", "content": prompt}], **settings)


def texts(replies):
    return [reply and reply.text for reply in replies]


def lines(path):
    return [json.loads(line) for line in Path(path).read_bytes().split(b"\n") if line]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(Teacher, "first_wait_s", 0.01)


@pytest.fixture
def make(tmp_path):
    """make(server, ...) -> a Teacher on tmp_path/teacher.jsonl."""
    return lambda server, **settings: Teacher("m", server.url, **{"cache": tmp_path / "teacher.jsonl", "timeout_s": 10} | settings)


def stop(teacher, requests, *parts):
    """The sentence that asking ends in: one line, naming `parts`, never the key."""
    with pytest.raises(UserError) as info:
        teacher.ask(requests, "label")
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
        assert teacher.totals["label"] == {"calls": 3, "cached": 4, "n_in": 30, "n_out": 15, "usd": 45}
        again = make(server)
        assert again.ask(requests, "label") == first and len(server.log) == 3
        assert again.totals["label"] == {"calls": 0, "cached": 7, "n_in": 0, "n_out": 0, "usd": 0, "cached_in": 30, "cached_out": 15}
        assert "label: 0 calls, 7 cached" in capsys.readouterr().out
        assert again.ask([]) == []
    fields = {"key", "model", "step", "max_tokens", "text", "finish", "none", "n_in", "n_out", "estimated", "usd"}
    assert all(set(record) == fields and record["step"] == "label" for record in lines(again.path))


@pytest.mark.parametrize("other", [{"temperature": 0.5}, {"sample": 1}, {"messages": [{"role": "system", "content": "a"}]}])
def test_whatever_moves_the_draw_is_another_call(make, other):
    with BadServer() as server:
        teacher = make(server)
        teacher.ask([ask_for("a")])
        teacher.ask([ask_for("a", max_tokens=9, temperature=0)])  # the same draw
        assert len(server.log) == 1
        teacher.ask([ask_for("a")._replace(**other)])
        assert len(server.log) == 2


def test_two_models_share_a_file_but_no_replies(make, tmp_path):
    with BadServer() as server:
        make(server).ask([ask_for("a")])
        Teacher("other", server.url, cache=tmp_path / "teacher.jsonl").ask([ask_for("a")])
        assert [body["model"] for body in server.log] == ["m", "other"]


def test_asking_twice_in_a_row_and_inside_a_running_loop(make):
    with BadServer() as server:
        teacher = make(server)

        async def notebook():
            return teacher.ask([ask_for("c")]), teacher.ask([ask_for("d")])

        assert texts(teacher.ask([ask_for("a")]) + teacher.ask([ask_for("b")])) == ["echo a", "echo b"]
        one, two = asyncio.run(notebook())
        assert texts(one + two + teacher.ask([ask_for("e")])) == ["echo c", "echo d", "echo e"]


def test_a_torn_last_line_costs_that_line_only(make, capsys):
    with BadServer() as server:
        path = make(server).path
        make(server).ask([ask_for(p) for p in "ab"])
        whole = path.read_bytes()
        path.write_bytes(whole[:-20])  # as a killed process or a full disk leaves it
        teacher = make(server)
        assert texts(teacher.ask([ask_for(p) for p in "abc"])) == ["echo a", "echo b", "echo c"]
        assert len(server.log) == 4  # a, b, the torn one again, c
        assert texts(make(server).ask([ask_for(p) for p in "abc"])) == ["echo a", "echo b", "echo c"] and len(server.log) == 4
        good = [line for line in path.read_bytes().split(b"\n") if line.endswith(b"}")]
        assert len([json.loads(line) for line in good]) == 3  # none is glued to the torn one


def test_lines_that_are_no_replies(make, tmp_path):
    (tmp_path / "teacher.jsonl").write_bytes(b'[1]\n\n{"key": "x"}\n\xff\n')
    with BadServer() as server, pytest.raises(UserError, match="is no cache of replies"):
        make(server)
    (tmp_path / "teacher.jsonl").unlink()
    (tmp_path / "teacher.jsonl").mkdir()
    with pytest.raises(UserError, match="cannot be opened"):
        make(server)


def test_text_of_any_kind_survives_the_cache(make):
    text = "é ☃ 漢字 \u2028 \x85 \r\n \\frac \" 𝔸"
    with BadServer() as server:
        assert texts(make(server).ask([ask_for(text)])) == texts(make(server).ask([ask_for(text)])) == ["echo " + text]
        assert len(server.log) == 1


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from {module} import Request, Teacher
Teacher("m", sys.argv[2], cache=sys.argv[3], concurrency=6).ask(
    [Request([{{"role": "user", "content": f"{{i}} " + sys.argv[5] * int(sys.argv[6])}}]) for i in range(int(sys.argv[4]))])
"""


def child(server, path, n, fill="", times=1):
    script = CHILD.format(module=Teacher.__module__)
    argv = [os.path.dirname(os.path.abspath(module.__file__)), server.url, str(path), str(n), fill, str(times)]
    return subprocess.Popen([sys.executable, "-c", script, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a suite in the background ignores it


def test_kill_9_in_the_middle_repeats_no_call_that_reached_the_cache(make, tmp_path):
    path, requests = tmp_path / "teacher.jsonl", [ask_for(f"{i} ") for i in range(60)]
    with BadServer(delay_s=0.04) as server:
        process = child(server, path, 60)
        end = time.monotonic() + 20
        while len(server.log) < 25 and time.monotonic() < end:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.1)  # what is in flight reaches the log
        sent, kept = len(server.log), {record["text"][5:] for record in lines(path)}
        assert 0 < len(kept) < 60 and sent >= 25
        assert texts(make(server).ask(requests)) == [f"echo {i} " for i in range(60)]
        asked_again = set(server.prompts[:sent]) & set(server.prompts[sent:])
        assert not kept & set(server.prompts[sent:]) and len(asked_again) <= 6
        assert len(server.log) == 60 + len(asked_again)


def test_ctrl_c_sends_nothing_more_and_keeps_what_was_in_flight(make, tmp_path):
    path = tmp_path / "teacher.jsonl"
    with BadServer(delay_s=0.2) as server:
        process = child(server, path, 60)
        end = time.monotonic() + 20
        while len(server.log) < 15 and time.monotonic() < end:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) != 0
        assert 15 <= len(server.log) <= 15 + 6 and len(lines(path)) == len(server.log)


def test_two_processes_on_one_cache(make, tmp_path):
    path = tmp_path / "teacher.jsonl"
    with BadServer() as server:
        both = [child(server, path, 80, fill, 3000) for fill in "xy"]  # lines longer than a page
        assert [process.wait(30) for process in both] == [0, 0]
        assert len(server.log) == 160 and len(lines(path)) == 160 and len({record["key"] for record in lines(path)}) == 160
        make(server).ask([ask_for(f"{i} " + fill * 3000) for i in range(80) for fill in "xy"])
        assert len(server.log) == 160


def test_a_full_disk_stops_in_one_sentence_and_loses_one_reply(make):
    class HalfWritten:
        def __init__(self, file):
            self.seek, self.read, self.write = file.seek, file.read, lambda line: file.write(line[:30])

    with BadServer() as server:
        teacher = make(server)
        teacher.ask([ask_for("a")])
        whole, teacher.file = teacher.file, HalfWritten(teacher.file)
        stop(teacher, [ask_for("b")], "cannot be written", "full", teacher.path)
        teacher.file = whole
        assert texts(teacher.ask([ask_for(p) for p in "abc"])) == ["echo a", "echo b", "echo c"]
        assert texts(make(server).ask([ask_for(p) for p in "abc"])) == ["echo a", "echo b", "echo c"]
        assert sorted(server.prompts) == ["a", "b", "b", "c"]


# --- Retries ---
GARBAGE = ["truncated", "nothing", "html", "list", "string", "null", "latin1", "error with 200", "no choices", "null choices",
           "empty choices", "null message", "number content", "abort"]  # fmt: skip


@pytest.mark.parametrize("trouble", ["500", "503", "502", "408", "409", "429", "reset", "short", *GARBAGE])
def test_passing_trouble_is_retried_and_lasting_trouble_is_none(make, trouble):
    def script(prompt, nth):
        return "ok" if prompt == "fine" or (prompt == "passing" and nth == 3) else trouble

    with BadServer(script) as server:
        teacher = make(server, tries=3, timeout_s=0.5 if trouble == "429" else 10)
        assert texts(teacher.ask([ask_for("fine"), ask_for("passing")])) == ["echo fine", "echo passing"]
        assert server.prompts.count("passing") == 3
        assert texts(teacher.ask([ask_for("lasting"), ask_for("fine")], "s")) == [None, "echo fine"]
        assert teacher.totals["s"]["lost"] == 1
        tried = server.prompts.count("lasting")
        assert tried > 3 if trouble == "429" else tried == 3  # 429s wear out the time only
        assert len(lines(teacher.path)) == 2  # the lost one is not cached: a rerun asks again
        server.script = lambda prompt, nth: "ok"
        assert texts(make(server).ask([ask_for("lasting")])) == ["echo lasting"]


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
def test_the_time_limit_is_for_the_whole_call(make, name):
    with BadServer(lambda prompt, nth: name if prompt == "a" else "ok") as server:
        teacher, start = make(server, timeout_s=1.5), time.monotonic()
        assert texts(teacher.ask([ask_for("a"), ask_for("b")], "s")) == [None, "echo b"]
        assert 1.4 < time.monotonic() - start < 6 and teacher.totals["s"]["lost"] == 1


def test_waits_grow(make, monkeypatch):
    monkeypatch.setattr(Teacher, "first_wait_s", 0.1)
    with BadServer(lambda prompt, nth: "500" if prompt == "a" and nth < 4 else "ok") as server:
        make(server).ask([ask_for("a")])
        times = [body["_time"] for body in server.log]
        gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
        assert len(gaps) == 3 and all(0.05 * 2**i <= gap < 5 for i, gap in enumerate(gaps)), gaps


# --- Replies that are of no use ---
@pytest.mark.parametrize("name, none", [("null content", "empty"), ("blank", "empty"), ("reasoning only", "empty"), ("refusal", "refused"),
                                        ("filter", "refused"), ("length", "cut off"), ("reasoning cut", "cut off")])  # fmt: skip
def test_useless_replies_are_none_by_reason_and_paid_once(make, name, none, capsys):
    with BadServer(lambda prompt, nth: name) as server:
        teacher = make(server)
        assert teacher.ask([ask_for("a"), ask_for("a")], "s") == [None, None]
        assert teacher.totals["s"][none] == 2 and teacher.totals["s"]["n_out"] == 5
        assert f"None: 2 {none}" in capsys.readouterr().out
        assert make(server).ask([ask_for("a")]) == [None]
        assert len(server.log) == 1 and lines(teacher.path)[0]["none"] == none


def test_cut_off_is_asked_again_when_max_tokens_grew(make):
    with BadServer(lambda prompt, nth: "length" if nth < 3 else "ok") as server:
        for max_tokens, text, sent in [(10, None, 1), (10, None, 1), (5, None, 1), (20, None, 2), (15, None, 2), (40, "echo a", 3),
                                       (5, "echo a", 3)]:  # fmt: skip
            assert (texts(make(server).ask([ask_for("a", max_tokens=max_tokens)])), len(server.log)) == ([text], sent)
    with BadServer() as server:  # of duplicates the longest is sent
        make(server).ask([ask_for("b", max_tokens=n) for n in (5, 50, 20)])
        assert [body["max_tokens"] for body in server.log] == [50]


def test_content_in_parts(make):
    with BadServer(lambda prompt, nth: "parts") as server:
        assert texts(make(server).ask([ask_for("a")])) == ["echo a"]


@pytest.mark.parametrize("name", ["no usage", "odd usage"])
def test_missing_usage_is_estimated_and_marked(make, name):
    with BadServer(lambda prompt, nth: name) as server:
        reply, = make(server).ask([ask_for("a" * 300)])
        assert reply.estimated and 100 <= reply.n_in <= 120 and 100 <= reply.n_out <= 110
        assert make(server).ask([ask_for("a" * 300)]) == [reply]


def test_too_long_for_the_server_is_this_prompts_own_trouble(make):
    with BadServer(lambda prompt, nth: prompt if prompt.startswith("too long") else "ok") as server:
        teacher = make(server)
        prompts = ["too long", "a", "too long llama.cpp", "too long by code", "too long or rude"]
        assert texts(teacher.ask([ask_for(p) for p in prompts], "s")) == [None, "echo a", None, None, None]
        assert teacher.totals["s"]["refused by server"] == 4 and len(lines(teacher.path)) == 1 and len(server.log) == 5


# --- What stops a run at once, in one sentence ---
@pytest.mark.parametrize("name, words", [("401", "OPENAI_API_KEY"), ("403", "OPENAI_API_KEY"), ("404", "model"), ("404 html", "/v1"),
                                         ("400", "temperature must be >= 0"), ("quota", "credit"), ("402", "credit")])  # fmt: skip
def test_hopeless_errors_stop_at_once_and_keep_what_came(make, name, words):
    with BadServer(lambda prompt, nth: name if prompt == "bad" else "ok") as server:
        teacher = make(server, concurrency=1)
        stop(teacher, [ask_for(p) for p in ("a", "b", "bad", "c")], server.url, "teacher m", words)
        assert server.prompts == ["a", "b", "bad"]
        assert texts(make(server).ask([ask_for(p) for p in "ab"])) == ["echo a", "echo b"] and len(server.log) == 3


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_an_unreachable_server(tmp_path, monkeypatch):
    url = f"http://user:{KEY}@127.0.0.1:{free_port()}/v1"
    teacher = Teacher("m", url, cache=tmp_path / "c.jsonl")
    stop(teacher, [ask_for(str(i)) for i in range(100)], url[url.index("127") :], "base_url")
    monkeypatch.undo()  # the waits that users get
    longest = sum(min(Teacher.max_wait_s, Teacher.first_wait_s * 2**i) for i in range(teacher.tries - 1))
    assert longest <= 16


def test_nothing_but_garbage_from_the_start_names_the_problem(make):
    with BadServer(lambda prompt, nth: "html") as server:
        stop(make(server, tries=2), [ask_for("a"), ask_for("b")], "502 Bad Gateway")
        assert len(server.log) == 4


def test_a_server_that_dies_stops_after_twenty_lost_calls(make):
    with BadServer(lambda prompt, nth: "ok" if int(prompt) < 5 else "503") as server:
        stop(make(server, tries=2, concurrency=4), [ask_for(str(i)) for i in range(100)], "503")
        assert len(set(server.prompts)) <= 5 + 20 + 3
        server.script = lambda prompt, nth: "ok" if int(prompt) % 2 else "503"  # every other one: no reason to stop
        assert sum(reply is None for reply in make(server, tries=2, concurrency=1).ask([ask_for(str(i)) for i in range(5, 60)])) == 27


@pytest.mark.parametrize("settings, words", [
    ({"base_url": None}, "OPENAI_API_KEY is not set"), ({"base_url": "localhost:8000/v1"}, "be like http://"),
    ({"base_url": "http://localhost:99999/v1"}, "99999"), ({"base_url": "http://[::1/v1"}, "be like"), ({"max_usd": 1.0}, "usd_per_m_in"),
    ({"max_usd": 1.0, "usd_per_m_in": 1.0}, "usd_per_m_in"), ({"usd_per_m_out": 1.0}, "usd_per_m_in"),
    ({"concurrency": 0}, "concurrency=0"),
])  # fmt: skip
def test_bad_settings_are_refused_before_anything_is_sent(tmp_path, monkeypatch, settings, words):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match=words):
        Teacher("m", **{"base_url": "http://127.0.0.1:1/v1", "cache": tmp_path / "c.jsonl"} | settings)
    assert not (tmp_path / "c.jsonl").exists()


@pytest.mark.parametrize("key", ["sk-\u2026", "sk-a\nb"])
def test_a_key_that_no_header_can_carry(tmp_path, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="OPENAI_API_KEY") as info:
        Teacher("m", cache=tmp_path / "c.jsonl")
    assert key not in str(info.value)


# --- Money ---
def test_the_cap_stops_before_it_is_passed_and_a_higher_one_goes_on(make):
    prices = {"usd_per_m_in": 0.0, "usd_per_m_out": 1e6}  # a dollar a token; each reply has 5, each request allows 8
    requests = [ask_for(str(i), max_tokens=8) for i in range(10)]
    with BadServer() as server:
        sentence = stop(make(server, max_usd=24, **prices), requests, "$20.0000", "$24", "--max-usd")
        assert server.most_in_flight <= 3 and "$8.0000" in sentence  # 3 x 8 fit in 24
        assert len(server.log) == len(lines(make(server).path)) == 4  # 20 spent; 8 more could make it 28
        stop(make(server, max_usd=27, **prices), requests, "$20.0000")  # a new process has not forgotten
        assert len(server.log) == 4
        teacher = make(server, max_usd=54, **prices)
        assert texts(teacher.ask(requests, "s")) == [f"echo {i}" for i in range(10)]
        assert len(server.log) == 10 and teacher.totals["s"]["usd"] == 30 and teacher.spent_usd == 50
        stop(make(server, max_usd=54, **prices), [ask_for("x", max_tokens=8)], "$50.0000")


def test_useless_and_unpriced_replies_count_towards_the_cap(make):
    prices = {"usd_per_m_in": 0.0, "usd_per_m_out": 1e6}
    with BadServer(lambda prompt, nth: "refusal") as server:
        make(server).ask([ask_for("a")])  # without prices: counted at those of the later run
        assert lines(make(server).path)[0]["usd"] is None
        teacher = make(server, max_usd=15, **prices)
        assert teacher.spent_usd == 5
        assert teacher.ask([ask_for("b", max_tokens=8)]) == [None] and teacher.spent_usd == 10
        stop(teacher, [ask_for("c", max_tokens=6)], "$10.0000")


def test_plan_prints_calls_tokens_and_dollars_and_sends_nothing(make, capsys):
    with BadServer() as server:
        teacher = make(server, max_usd=9, usd_per_m_in=0.0, usd_per_m_out=1e6)
        teacher.ask([ask_for("a", max_tokens=7)])
        capsys.readouterr()
        steps = {"label": [ask_for(p, max_tokens=100) for p in "abcc"], "rewrite": [ask_for("long " * 60, max_tokens=1000)], "none": []}
        teacher.plan(steps, show=True)
        out = capsys.readouterr().out
        rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
        assert rows["label"][:2] == ["2", "2"] and rows["label"][3:] == ["200", "200.0000"]
        assert rows["total"][:2] == ["3", "2"] and rows["total"][3:] == ["1,200", "1,200.0000"]
        assert 100 <= int(rows["rewrite"][2]) <= 120
        assert "cap: $9" in out and "$5.0000" in out and "long " * 60 in out and len(server.log) == 1
        make(server).plan(steps)
        out = capsys.readouterr().out
        assert "usd" not in out and "long long" not in out


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
            good += read_completion(bytes(broken))["none"] in (None, "empty", "refused", "cut off")
        except ValueError:
            pass
    assert 0 < good < 3000


def test_what_was_paid_is_counted_over_all_starts(make):
    with BadServer() as server:
        first = make(server, usd_per_m_in=1.0, usd_per_m_out=2.0)
        first.ask([ask_for("a"), ask_for("b")], "label")
        second = make(server, usd_per_m_in=1.0, usd_per_m_out=2.0)
        second.ask([ask_for("a"), ask_for("c")], "label")
        assert second.totals["label"]["calls"] == 1 and second.recorded["label"]["calls"] == 3
        assert make(server, usd_per_m_in=1.0, usd_per_m_out=2.0).recorded == second.recorded
        assert second.recorded["label"]["usd"] == pytest.approx(second.spent_usd)
        assert second.recorded["label"]["n_in"] == 3 * first.totals["label"]["n_in"] / 2
