"""stat_sel.py as a user runs it: whole runs in the toy world, kills, refusals, and a slice of real data."""
import contextlib
import hashlib
import http.server
import itertools
import json
import random
import re
import shutil
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

import common
import stat_sel
from tests import started
from tests.bad_server import BadServer, completion
from tests.conftest import ROOT, read_cache
from toyworld import teacher as toy_teacher

SMALL = ["--seed", "0", "--n-val", "60", "--limit", "90", "--n-pairs", "40",
         "--epochs", "1", "--batch", "16", "--micro-batch", "16", "--no-checkpointing",
         "--lr", "1e-3", "--sample-batch", "50", "--max-new-tokens", "60", "--concurrency", "4"]


def flags(small_world, url, out, *more):
    made = {f"--{name}": small_world / name for name in ("student", "prm", "embedder")}
    return [*itertools.chain(*made.items()), "--data", small_world, "--skills", small_world / "skills.json", "--teacher", "toy",
            "--teacher-url", url, "--out", out, *SMALL, *more]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_run(small_world, tmp_path_factory):
    """One uninterrupted run that the other tests compare with."""
    server, url = toy_teacher.serve()
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = started.run("stat_sel.py", *flags(small_world, url, out))
    server.shutdown()
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stdout


def counted(run, *arms):
    """The arms' right answers to Q_test, from the rows."""
    return {arm: sum(bool(row["is_right"]) for row in read(run / f"7_test_{arm}.jsonl") if row["set"] == "MATH") for arm in arms}


def test_a_run_ends_with_its_table(whole_run):
    out, printed = whole_run
    result = json.loads((out / "result.json").read_text())
    arms = ("base", "augment", "stat", "shuffled")
    assert {arm: sets["MATH"] for arm, sets in result["arms"].items()} == {arm: [k, 90] for arm, k in counted(out, *arms).items()}
    assert len({len(read(out / f"train_{arm}.jsonl")) for arm in arms[1:]}) == 1  # equal numbers of pairs
    assert printed.count("vs augment") == 2 and "MATH^D" in printed and printed.count("at most") >= 2 and "##" in printed
    assert printed.count(" wrong -> right, ") == 3 and printed.count(" different questions, ") == 3
    for arm in arms[1:]:
        rows = read(out / f"train_{arm}.jsonl")
        assert [m["role"] for m in rows[0]["messages"]] == ["user", "assistant"]
        assert (out / "adapter" / arm / "adapter_model.safetensors").exists()
    assert not list(out.rglob("*.tmp")) + list(out.rglob("*.part")) + list(out.rglob("*.checkpoint.pt"))


def test_killed_at_random_it_ends_the_same_and_pays_nothing_twice(whole_run, small_world, tmp_path, teacher_url):
    compared = started.kill_at_random(lambda out: ["stat_sel.py", *flags(small_world, teacher_url, out)], whole_run[0], tmp_path, "stat_sel")
    assert compared == started.rows_and_weights(whole_run[0])
    one, two = (json.loads((run / "result.json").read_text()) for run in (whole_run[0], tmp_path / "killed-0"))
    assert one["arms"] == two["arms"]


PASSING = ("429", "429 after 300 ms", "500", "503", "reset", "short", "truncated", "nothing", "html", "list", "null choices", "string")
USELESS = {"blank": "empty", "null content": "empty", "reasoning only": "empty", "refusal": "refused", "filter": "refused", "length": "cut off"}


def test_a_whole_run_on_a_teacher_that_misbehaves_counts_right(small_world, tmp_path):
    """A third of the replies fail in passing, some are useless for good, some are of 1 MB or without usage: all are counted, and no more is paid."""
    billed, useless, huge = Counter(), {}, "Let me think. " * 80_000

    def script(prompt, nth, body):
        rng = random.Random(f"{prompt}{body.get('seed')}{nth}")
        if prompt == "Say yes.":
            return "ok"
        if nth < 4 and rng.random() < 0.33:
            return rng.choice(PASSING)
        kind = random.Random(f"{prompt}{body.get('seed')}")  # the same however often it is asked
        if kind.random() < 0.05:
            useless[prompt, body["seed"]] = name = kind.choice(sorted(USELESS))
            billed.update({"n_in": 10, "n_out": 5})
            return name
        text = toy_teacher.reply(prompt, body["seed"])
        text = f"<think>{huge}</think>{text}" if kind.random() < 0.01 else text
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": min(len(text) // 4, 900)}  # below the limit
        billed.update({"n_in": usage["prompt_tokens"], "n_out": usage["completion_tokens"]})
        return 200, completion(text) | {"usage": usage}
    with BadServer(script) as server:
        url = server.url.replace("//", "//me:s3cret@")
        done = started.run("stat_sel.py", *flags(
            small_world, url, tmp_path / "out", "--usd-per-m-in", "1", "--usd-per-m-out", "2", "--teacher-max-none", "0.3",
            "--concurrency", "16", "--arms", "base", "stat"), OPENAI_API_KEY="sk-0123456789abc")
    assert done.returncode == 0, done.stderr[-3000:]
    written = [done.stdout.encode(), done.stderr.encode(), *(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())]
    assert server.log[-1]["_key"] and not any(secret in text for text in written for secret in (b"s3cret", b"0123456789abc"))
    rows = read_cache(tmp_path / "out" / "teacher.sqlite")
    assert {name: sum(row[name] for row in rows) for name in billed} == billed and len(useless) >= 5
    asked = {(body["messages"][-1]["content"], body["seed"]) for body in server.log if body["messages"][-1]["content"] != "Say yes."}
    assert len(rows) == len(asked)  # each was paid for once, useless ones too
    usd = sum(row["usd"] for row in rows)
    assert usd == pytest.approx((billed["n_in"] + 2 * billed["n_out"]) / 1e6)
    steps = re.findall(r"^\S.*: ([\d,]+) calls, \d+ cached, .* \$(\S+), None: (.*), [\d.]+ s$", done.stdout, re.MULTILINE)
    assert sum(int(calls.replace(",", "")) for calls, _, _ in steps) == len(asked)
    assert sum(float(usd) for _, usd, _ in steps) == pytest.approx(usd, abs=1e-3)
    told = Counter()
    for none in ",".join(nones for _, _, nones in steps if nones != "0").split(","):
        told.update({none.strip().partition(" ")[2]: int(none.split()[0])} if none.strip() else {})
    assert told == Counter(USELESS[name] for name in useless.values())


def test_difficulty_is_eq_1_on_the_rewards(whole_run):
    graded = read(whole_run[0] / "2_graded.jsonl")
    rewards = {row["id"]: row["rewards"] for row in read(whole_run[0] / "2_rewards.jsonl")}
    assert {row["part"] for row in graded} == {"Q_val", "Q_test"} and len(graded) == len(rewards) == 150
    for row in graded:
        r = rewards[row["id"]]
        assert len(r) == len(stat_sel.split_steps(row["response"])) and all(0 < x < 1 for x in r)
        assert row["difficult"] == (r[-1] <= 0.85 or sum(r) / len(r) <= 0.85 or any(x <= 0.7 for x in r[:-1]))
    assert sum(row["difficult"] for row in graded) > 0
    profiled = {row["id"] for row in read(whole_run[0] / "4_profile.jsonl")}
    assert profiled == {row["id"] for row in graded if row["part"] == "Q_val" and row["difficult"]}


def test_the_base_is_tested_on_another_draw_than_difficulty_was_graded_on(whole_run):
    """At T = 0.1 most answers are the same; it is the same question drawn anew."""
    first = {row["id"]: row["response"] for row in read(whole_run[0] / "1_answers.jsonl")}
    second = {row["id"]: row["response"] for row in read(whole_run[0] / "7_answers_base_MATH.jsonl")}
    assert second.keys() < first.keys() and any(first[i] != second[i] for i in second)


def test_every_pair_trained_on_has_the_gold_answer(whole_run, small_world):
    gold = {row["id"]: row for row in common.load(str(small_world), "train")}
    for arm in ("augment", "stat", "shuffled"):
        for row in read(whole_run[0] / f"train_{arm}.jsonl"):
            assert gold[row["id"]]["problem"] in row["messages"][0]["content"]
            assert common.score(row["messages"][1]["content"], gold[row["id"]]["answer"]) is True


def test_no_test_question_was_profiled_or_trained_on(whole_run, small_world):
    out = whole_run[0]
    tested, profiled = {row["id"] for row in read(out / "7_test_base.jsonl")}, {row["id"] for row in read(out / "4_profile.jsonl")}
    parts = {part: {row["id"] for row in read(out / "0_questions.jsonl") if row["part"] == part} for part in ("P", "Q_val", "Q_test")}
    assert len(tested) == 90 and len(parts["Q_val"]) == 60 and tested == parts["Q_test"] and profiled <= parts["Q_val"]
    texts = {row["id"]: common.plain(row["problem"]) for split in ("train", "test") for row in common.load(str(small_world), split)}
    used = {part: {texts[i] for i in ids} for part, ids in parts.items()}
    assert sum(map(len, used.values())) == len(set().union(*used.values()))
    assert {row["id"] for row in read(out / "train_stat.jsonl")} <= parts["P"]


def test_the_pairs_are_those_of_the_profile(whole_run, small_world):
    """Each pair's weight, computed from the files: no question more often than the profile can draw it."""
    out = whole_run[0]
    labels = {row["id"]: row["skills"] for row in read(out / "3_skill_map.jsonl")}
    missing = [skill for row in read(out / "4_profile.jsonl") if not row["fault"] for skill in row["skills"]]
    drawn, available = {}, {}
    for row in read(out / "train_stat.jsonl"):
        drawn[row["id"], row["sample"]] = drawn.get((row["id"], row["sample"]), 0) + 1
    for (question, _), n in drawn.items():
        available[question] = sum(skill in labels[question] for skill in missing)
        assert n <= available[question], question
    assert max(drawn.values()) == 1  # of more than 40 different pairs none is repeated


def test_a_rerun_reads_and_pays_nothing_again(whole_run, small_world, call_file):
    out, _ = whole_run
    before = {path.name: path.read_bytes() for path in out.glob("*.jsonl")}
    again = call_file("stat_sel.py", *flags(small_world, "http://127.0.0.1:9/v1", out))  # nobody listens there
    assert again.returncode == 0, again.stderr[-2000:]
    assert {path.name: path.read_bytes() for path in out.glob("*.jsonl")} == before


def test_other_arguments_are_refused(whole_run, small_world, call_file):
    again = call_file("stat_sel.py", *flags(small_world, "http://127.0.0.1:9/v1", whole_run[0], "--n-rewrites", "2"))
    assert again.returncode == 2 and "n_rewrites was 3, is 2" in again.stderr and "Traceback" not in again.stderr


def test_kill_9_anywhere_changes_nothing(whole_run, small_world, tmp_path):
    """Killed while it answers, asks, trains and tests, each time at the first sign of that, and rerun: the same files, and no reply is asked for
    that was in the cache."""
    asked = []
    reply = toy_teacher.reply

    def counting(prompt, seed):
        if prompt != "Say yes.":  # of Teacher.check
            asked.append((prompt, seed))
        return reply(prompt, seed)
    toy_teacher.reply = counting
    server, url = toy_teacher.serve()
    out = tmp_path / "killed"
    command = ["stat_sel.py", *flags(small_world, url, out)]
    try:
        for sign in ("1_answers.round_0.jsonl.part", "teacher", "loss_augment.jsonl", "7_answers_stat_MATH.round_0.jsonl.part"):
            started.killed(sign, *command)
            assert not (out / "result.json").exists()
        done = started.run(*command)
    finally:
        server.shutdown()
        toy_teacher.reply = reply
    assert done.returncode == 0, done.stderr[-3000:]
    whole, _ = whole_run
    assert {str(path.relative_to(out)) for path in out.rglob("*")} == {str(path.relative_to(whole)) for path in whole.rglob("*")}
    for path in whole.rglob("*"):
        if path.suffix in (".jsonl", ".safetensors") and path.name != "metrics.jsonl":
            assert path.read_bytes() == (out / path.relative_to(whole)).read_bytes(), path.name
    repeated = len(asked) - len(set(asked))
    assert asked and repeated <= 4  # calls in flight at the kill, no more than --concurrency
    one, two = (json.loads((run / "result.json").read_text()) for run in (whole, out))
    assert one["arms"] == two["arms"]


def test_lost_replies_stop_the_run_and_a_rerun_asks_for_them_alone(whole_run, small_world, tmp_path):
    """The teacher is away for one step: nothing of that step is written down as an answer."""
    reply = toy_teacher.reply

    def failing(prompt, seed):
        if "<response>" in prompt and sum(prompt.encode()) % 2:
            raise ConnectionError  # the handler dies, the client sees a closed connection
        return reply(prompt, seed)
    server, url = toy_teacher.serve()
    out = tmp_path / "out"
    script = tmp_path / "impatient.py"  # two tries instead of twenty, short waits: the same code, sooner
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import common, openai, stat_sel
openai._base_client.INITIAL_RETRY_DELAY = 0.01
common.Teacher.__init__.__defaults__ = tuple(2 if value == 20 else value for value in common.Teacher.__init__.__defaults__)
common.cli(stat_sel.main, stat_sel.Args, "")
""")
    command = [script, *flags(small_world, url, out, "--arms", "stat")]
    try:
        toy_teacher.reply = failing
        stopped = started.run(*command)
        assert stopped.returncode == 2 and " lost" in stopped.stderr, stopped.stderr[-2000:]
        assert not (out / "4_profile.jsonl").exists()
        toy_teacher.reply = reply
        done = started.run(*command)
    finally:
        toy_teacher.reply = reply
        server.shutdown()
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "4_profile.jsonl").read_bytes() == (whole_run[0] / "4_profile.jsonl").read_bytes()


def test_two_files_are_enough(small_world, tmp_path, teacher_url, run_file):
    for name in ("stat_sel.py", "common.py"):
        shutil.copy(ROOT / name, tmp_path)
    shown = run_file("stat_sel.py", "--help", cwd=tmp_path)
    assert shown.returncode == 0 and "--questions-per-skill" in shown.stdout and "§B.2" in shown.stdout
    argv = flags(small_world, teacher_url, tmp_path / "out", "--limit", "30", "--arms", "base", "stat")
    done = started.run(tmp_path / "stat_sel.py", *argv, cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "out" / "result.json").exists(), done.stderr[-2000:]


class Served(http.server.BaseHTTPRequestHandler):
    """A student's server that follows vLLM's documented calls: chat completions by model name, /v1/load_lora_adapter."""
    loaded, asked = {}, []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/load_lora_adapter":
            is_there = Path(body["lora_path"], "adapter_config.json").is_file()
            status = 404 if not is_there else 400 if body["lora_name"] in self.loaded else 200
            told = {404: "No adapter found", 400: "The lora adapter has already been loaded."}
            answer = {"error": {"message": told[status]}} if status in told else "Success: LoRA adapter added"
            self.loaded[body["lora_name"]] = body["lora_path"]
        elif body["model"] not in ("toy-student", *self.loaded):
            status, answer = 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        else:
            self.asked.append(body)
            problem = body["messages"][0]["content"].split("\n")[0]
            text = f"So \\boxed{{{len(problem) % 7}}}." if body["model"] == "toy-student" else f"So \\boxed{{{len(problem) % 5}}}.\n\nProblem: 1+1?"
            finish = "length" if len(problem) % 11 == 0 else "stop"
            status, answer = 200, {"choices": [{"message": {"content": "" if len(problem) % 13 == 0 else text}, "finish_reason": finish}],
                                   "usage": {"prompt_tokens": 9, "completion_tokens": 7}}
        raw = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args):
        pass


@pytest.fixture
def student_url():
    Served.loaded, Served.asked = {}, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Served)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_answers_come_from_a_server_of_the_student(small_world, tmp_path, teacher_url, student_url, call_file):
    """The base by its name, an arm by its adapter, which is loaded there; each answer is asked for once; a cut-off or empty one is an answer."""
    out = tmp_path / "served"
    shutil.copytree(small_world / "student", tmp_path / "toy-student")
    command = flags(small_world, teacher_url, out, "--arms", "base", "augment", "--difficulty", "answer", "--limit", "20")
    command += ["--student-url", student_url]
    command[command.index("--student") + 1] = "toy-student"
    with contextlib.chdir(tmp_path):
        done = call_file("stat_sel.py", *command)
        assert done.returncode == 0, done.stderr[-2000:]
        n_asked = len(Served.asked)
        assert call_file("stat_sel.py", *command).returncode == 0 and len(Served.asked) == n_asked
    (name, path), = Served.loaded.items()
    weights = hashlib.sha256((out / "adapter" / "augment" / "adapter_model.safetensors").read_bytes()).hexdigest()[:8]
    assert (name, path) == (f"served-adapter-augment-{weights}", str(out / "adapter" / "augment"))  # another adapter gets another name
    assert Counter(body["model"] for body in Served.asked) == {"toy-student": 60, name: 20}  # Q_val, Q_test twice; Q_test
    args = json.loads((out / "args.json").read_text())
    assert common.served(stat_sel.Args(**args), path).model == name and len(Served.asked) == n_asked  # loaded already
    assert {(body["temperature"], body["top_p"], body["max_tokens"]) for body in Served.asked} == {(0.1, 1.0, 60)}
    base, arm = (read(out / f"7_answers_{name}_MATH.jsonl") for name in ("base", "augment"))
    assert {row["n_tokens"] for row in base} == {7} and not any(row["run_on"] for row in base)
    assert all(row["run_on"] == bool(row["response"]) and "Problem" not in row["response"] for row in arm)
    assert any(row["cut_off"] for row in base) == any(len(body["messages"][0]["content"].split("\n")[0]) % 11 == 0 for body in Served.asked)
    assert counted(out, "base", "augment") == {name: sum(common.score(row["response"], gold[row["id"]]) is True for row in rows) for gold in [
        {row["id"]: row["answer"] for row in common.load(str(small_world), "test")}] for name, rows in (("base", base), ("augment", arm))}


@pytest.mark.parametrize("url, words", [
    ("{teacher}", "--student-url/load_lora_adapter failed for .*started with --enable-lora"),
    ("http://127.0.0.1:9/v1", "--student-url/load_lora_adapter failed for .*refused|Connection error"),
    ("127.0.0.1:9", "--student-url must be like http")])
def test_a_server_that_cannot_answer_for_the_student_is_refused_in_one_sentence(url, words, tmp_path, teacher_url):
    args = stat_sel.Args(student="s", student_url=url.format(teacher=teacher_url), out=str(tmp_path))
    (tmp_path / "adapter" / "stat").mkdir(parents=True)
    (tmp_path / "adapter" / "stat" / "adapter_model.safetensors").write_bytes(b"weights")
    with pytest.raises(common.UserError, match=words):
        common.served(args, tmp_path / "adapter" / "stat" if url.startswith(("{", "http")) else None)


def test_plan_sends_nothing(small_world, tmp_path, call_file):
    done = call_file("stat_sel.py", *flags(small_world, "http://127.0.0.1:9/v1", tmp_path / "out", "--plan"))
    assert done.returncode == 0, done.stderr
    assert "5 rewrite, at most" in done.stdout and done.stdout.count("<problem>") == 3  # one prompt of each kind
    assert "$" not in done.stdout and not (tmp_path / "out").exists()  # so the next command may have other arguments
    priced = call_file("stat_sel.py", *flags(
        small_world, "http://127.0.0.1:9/v1", tmp_path / "out", "--plan", "--usd-per-m-in", "1", "--usd-per-m-out", "2"))
    assert "usd" in priced.stdout
    none = call_file("stat_sel.py", *flags(small_world, "http://127.0.0.1:9/v1", tmp_path / "out", "--plan", "--until", "grade"))
    assert none.stdout.splitlines()[-1].startswith("No call of a teacher")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", None])
def test_a_dead_server_is_found_before_the_student_answers_and_a_plan_needs_no_key(url, small_world, tmp_path, call_file):
    command = [str(f) for f in flags(small_world, url or "x", tmp_path / "out")]
    if url:
        done = call_file("stat_sel.py", *command)
        assert done.returncode == 2 and "ConnectError" in done.stderr and "Traceback" not in done.stderr
        assert not list((tmp_path / "out").glob("1_answers*"))
    else:
        at = command.index("--teacher-url")
        done = call_file("stat_sel.py", *command[:at], *command[at + 2:], "--plan")
        assert done.returncode == 0 and "api.openai.com" in done.stdout and not (tmp_path / "out").exists()


def test_a_cap_stops_and_a_higher_one_goes_on(whole_run, small_world, tmp_path, teacher_url, call_file):
    out = tmp_path / "out"
    price = ["--usd-per-m-in", "1", "--usd-per-m-out", "1"]
    stopped = call_file("stat_sel.py", *flags(small_world, teacher_url, out, *price, "--max-usd", "0.02"))
    assert stopped.returncode == 2 and "--max-usd goes on" in stopped.stderr and "Traceback" not in stopped.stderr
    assert len(read_cache(out / "teacher.sqlite")) > 10
    done = call_file("stat_sel.py", *flags(small_world, teacher_url, out, *price, "--max-usd", "1"))
    assert done.returncode == 0
    assert (out / "train_stat.jsonl").read_bytes() == (whole_run[0] / "train_stat.jsonl").read_bytes()


def test_a_given_skill_map(small_world, tmp_path, teacher_url, call_file):
    rows = read(small_world / "train.jsonl")
    (tmp_path / "map.json").write_text(json.dumps({row["id"]: row["skills"] for row in rows}))
    done = call_file("stat_sel.py", *flags(small_world, teacher_url, tmp_path / "out", "--difficulty", "answer", "--skill-map",
                                          tmp_path / "map.json", "--limit", "30", "--arms", "stat"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["skills"] for row in read(tmp_path / "out" / "3_skill_map.jsonl")][0] != []
    assert not any("label" in row["step"] for row in read_cache(tmp_path / "out" / "teacher.sqlite"))
    assert all(row["difficult"] == (row["is_right"] is not True) and row["rewards"] is None for row in read(tmp_path / "out" / "2_graded.jsonl"))


def test_every_baseline_at_its_size(small_world, tmp_path, teacher_url, call_file):
    """train keeps P whole, hard takes levels 4 and 5, embed the questions nearest to the difficult ones, accuracy those of weak skills."""
    out = tmp_path / "out"
    arms = ["train", "hard", "embed", "stat", "accuracy"]
    done = call_file("stat_sel.py", *flags(small_world, teacher_url, out, "--arms", "base", *arms, "--difficulty", "answer"))
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["id"]: row for row in common.load(str(small_world), "train")}
    trained = {arm: read(out / f"train_{arm}.jsonl") for arm in arms}
    pool = {row["id"] for row in read(out / "0_questions.jsonl") if row["part"] == "P"}
    assert {row["id"] for row in trained["train"]} == pool and len(trained["train"]) == 90
    assert all(row["messages"][1]["content"] == rows[row["id"]]["solution"] for row in trained["train"])
    assert {rows[row["id"]]["level"] for row in trained["hard"]} <= {4, 5}
    near = json.loads((out / "2_nearest.json").read_text())
    graded = read(out / "2_graded.jsonl")
    assert near.keys() == {row["id"] for row in graded if row["difficult"] and row["part"] == "Q_val"}
    assert all(len(set(found)) == 5 and set(found) <= pool for found in near.values())
    assert {row["id"] for row in trained["embed"]} <= set().union(*near.values())
    assert len(trained["embed"]) == len(trained["stat"]) == len(trained["accuracy"]) == 40
    few = len(trained["hard"])  # a small arm is marked, and pulls no other down
    assert few < 40 and f"hard ({few} pairs)" in done.stdout and "embed (" not in done.stdout and "train (" not in done.stdout
    labels = {row["id"]: row["skills"] for row in read(out / "3_skill_map.jsonl")}
    of_val = {skill for row in graded if row["part"] == "Q_val" for skill in labels[row["id"]]}  # Q_val is labelled too
    assert len(labels) == 150 and all(of_val & set(labels[row["id"]]) for row in trained["accuracy"])
    asked = read(out / "5_rewrites.jsonl")
    taken = {(row["id"], row["sample"]) for arm in arms[1:] for row in trained[arm]}
    assert {(row["id"], row["sample"]) for row in asked if row["is_right"]} == taken  # none is paid for and not used


def test_the_best_of_several_learning_rates_is_found_on_questions_held_out_of_p(small_world, tmp_path, teacher_url, call_file):
    out = tmp_path / "out"
    done = call_file("stat_sel.py", *flags(small_world, teacher_url, out, "--arms", "augment", "--difficulty", "answer", "--limit", "60",
                                          "--n-heldout", "10", "--lr", "1e-5", "3e-3"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "10 questions of P are held out to choose between 2 learning rates" in done.stdout
    pool = {row["id"] for row in read(out / "0_questions.jsonl") if row["part"] == "P"}
    heldout = [{row["id"]: row["response"] for row in read(out / f"6_heldout_augment_{lr}.jsonl")} for lr in ("1e-05", "0.003")]
    assert len(pool) == 50 and len(heldout[0]) == 10 and not pool & heldout[0].keys() and heldout[0].keys() == heldout[1].keys()
    gold = {row["id"]: row["answer"] for row in common.load(str(small_world), "train")}
    right = [sum(common.score(text, gold[i]) is True for i, text in found.items()) for found in heldout]
    best = ("1e-05", "0.003")[right[1] > right[0]]
    weights = [(out / "adapter" / name / "adapter_model.safetensors").read_bytes() for name in ("augment", f"augment_{best}")]
    assert weights[0] == weights[1] and f"learning rate {best}; right of 10 held out" in done.stdout
    assert {row["id"] for row in read(out / "train_augment.jsonl")} <= pool


def test_it_stops_after_a_step_and_goes_on(whole_run, small_world, tmp_path, teacher_url, call_file):
    """A card that a local teacher needs too: the student and the reward model first, then the teacher alone, then the training."""
    out, nobody = tmp_path / "out", "http://127.0.0.1:9/v1"
    for until, url, comes, not_yet in (
            ("grade", nobody, "2_graded.jsonl", "3_skill_map.jsonl"), ("label", teacher_url, "3_skill_map.jsonl", "4_profile.jsonl"),
            ("diagnose", teacher_url, "4_profile.jsonl", "5_rewrites.jsonl"), ("draw", teacher_url, "train_stat.jsonl", "adapter"),
            ("train", nobody, "adapter/stat", "7_test_base.jsonl")):
        done = call_file("stat_sel.py", *flags(small_world, url, out, "--until", until))
        assert done.returncode == 0, done.stderr[-2000:]
        assert (out / comes).exists() and not (out / not_yet).exists()
    done = call_file("stat_sel.py", *flags(small_world, nobody, out))
    assert done.returncode == 0 and (out / "7_test_stat.jsonl").read_bytes() == (whole_run[0] / "7_test_stat.jsonl").read_bytes()


def test_the_embedder_is_used_in_its_own_way(small_world, tmp_path, teacher_url, call_file, monkeypatch):
    """What the run calls near is what the model's own encode says, with the instruction that it puts before a query."""
    from sentence_transformers import SentenceTransformer
    shutil.copytree(small_world / "embedder", tmp_path / "asks")
    config = json.loads((tmp_path / "asks" / "config_sentence_transformers.json").read_text())
    (tmp_path / "asks" / "config_sentence_transformers.json").write_text(json.dumps(config | {"prompts": {"query": "12 12 12 + + + mod mod 7 7 "}}))
    near = []
    for name in ("asks", "plain"):
        embedder = tmp_path / "asks" if name == "asks" else small_world / "embedder"
        out = tmp_path / f"out_{name}"
        done = call_file("stat_sel.py", *flags(small_world, teacher_url, out, "--limit", "30", "--arms", "embed", "--difficulty", "answer",
                                              "--until", "grade"), "--embedder", embedder)
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads((out / "2_nearest.json").read_text())
        problems = {row["id"]: row["problem"] for split in ("train", "test") for row in common.load(str(small_world), split)}
        pool = [row["id"] for row in read(out / "0_questions.jsonl") if row["part"] == "P"]
        model = SentenceTransformer(str(embedder), device="cpu")
        query = "12 12 12 + + + mod mod 7 7 " if name == "asks" else ""
        one, two = (model.encode(texts, convert_to_tensor=True) for texts in ([query + problems[i] for i in found], [problems[i] for i in pool]))
        scores = torch.nn.functional.cosine_similarity(one[:, None], two[None], dim=-1)
        for i, row in zip(found, scores, strict=True):
            chosen = torch.tensor([row[pool.index(j)] for j in found[i]])
            torch.testing.assert_close(chosen, row.topk(5).values)
        near.append(found)
    assert near[0] != near[1]


@pytest.mark.parametrize("file, content, words", [
    ("config.json", {"auto_map": {"AutoModel": "modeling_x.X"}}, "code of its own"), ("modules.json", None, "no modules.json in it"),
    ("part/config.json", {"auto_map": {"AutoModel": "modeling_x.X"}}, "code of its own"), ("config.json", {}, None)])
def test_an_embedder_with_foreign_code_or_without_a_pooling_is_refused(file, content, words, small_world, tmp_path, call_file):
    shutil.copytree(small_world / "embedder", tmp_path / "e")
    path = tmp_path / "e" / file
    if content is None:
        path.unlink()
    elif path.parent.name == "part":  # the module in a folder of its own
        modules = json.loads((tmp_path / "e" / "modules.json").read_text())
        names = [path for path in (tmp_path / "e").iterdir() if path.name != "modules.json"]
        path.parent.mkdir()
        for name in names if modules[0]["path"] == "" else []:
            shutil.copy(name, path.parent)
        (tmp_path / "e" / "modules.json").write_text(json.dumps([modules[0] | {"path": "part"}]))
        path.write_text(json.dumps(content))
    else:
        path.write_text(json.dumps(content))
    command = [*flags(small_world, "http://127.0.0.1:9/v1", tmp_path / "out", "--arms", "base", "embed", "--limit", "3", "--difficulty", "answer",
                      "--until", "grade"), "--embedder", tmp_path / "e"]
    done = call_file("stat_sel.py", *command)
    assert (done.returncode, words is None or words in done.stderr) == (2 if words else 0, True), done.stderr
    if content:
        assert call_file("stat_sel.py", *command, "--trust-remote-code").returncode == 0
    if words is None:  # a module whose class is not the library's
        modules = json.loads((tmp_path / "e" / "modules.json").read_text())
        (tmp_path / "e" / "modules.json").write_text(json.dumps([module | {"type": "mine.Module"} for module in modules]))
        assert "code of its own" in call_file("stat_sel.py", *command).stderr


def test_without_sentence_transformers_the_other_arms_run(small_world, tmp_path, call_file, monkeypatch):
    monkeypatch.setattr(stat_sel.importlib.util, "find_spec", lambda name: None)
    command = flags(small_world, "http://127.0.0.1:9/v1", tmp_path / "out", "--limit", "3", "--difficulty", "answer", "--until", "grade", "--arms")
    done = call_file("stat_sel.py", *command, "embed")
    assert done.returncode == 2 and "pip install sentence-transformers" in done.stderr and done.stderr.count("\n") == 1
    assert call_file("stat_sel.py", *command, "base").returncode == 0


def test_continual_mode_and_other_sets(whole_run, small_world, tmp_path, teacher_url, call_file):
    """From STAT-Sel's adapter, profiled on another set; that leaves every evaluation set; small sets are drawn k times (§3.3, §3.1)."""
    lines = (small_world / "test.jsonl").read_text().splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join(lines[:120]) + "\n")  # so a part of the test split is profiled on
    (tmp_path / "few.jsonl").write_text("\n".join(lines[:30]) + "\n")
    adapter, out = whole_run[0] / "adapter" / "stat", tmp_path / "out"
    done = call_file("stat_sel.py", *flags(
        small_world, teacher_url, out, "--adapter", adapter, "--val", tmp_path / "other.jsonl", "--ood", tmp_path / "few.jsonl", "--samples", "3",
        "--arms", "base", "stat"))
    assert done.returncode == 0, done.stderr[-2000:]
    profiled_on = {row["id"].removeprefix(f"{tmp_path.name}/other/") for row in read(out / "0_questions.jsonl") if row["part"] == "Q_val"}
    assert len(profiled_on) == 60 and profiled_on <= {json.loads(line)["id"] for line in lines[:120]}
    texts = {json.loads(line)["problem"] for line in lines if json.loads(line)["id"] in profiled_on}
    by_id = {json.loads(line)["id"]: json.loads(line)["problem"] for line in lines}
    rows = read(out / "7_test_stat.jsonl")
    names = ["MATH", f"{tmp_path.name}/other", f"{tmp_path.name}/few"]
    assert list(dict.fromkeys(row["set"] for row in rows)) == names
    assert not {by_id[row["id"]] for row in rows} & texts
    few = {row["id"] for row in rows if row["set"] == names[2]}
    removed = json.loads((out / "result.json").read_text())["removed"]
    assert removed == {"MATH": 60, names[1]: 60, names[2]: 30 - len(few)} and 0 < len(few) < 30
    assert f"({removed[names[2]]} taken out: profiled on)" in done.stdout
    assert sum(row["set"] == names[2] for row in rows) == 3 * len(few) and "/few, mean of 3 answers" in done.stdout
    # The base of this run is the adapter's student: its answers are those of that student, and not those of the bare one.
    answers = read(out / "1_answers.jsonl")[:50]  # the first batch
    args = json.loads((out / "args.json").read_text())
    for path, same in ((adapter, True), (None, False)):
        student = common.load_student(args["student"], path)
        problems = {row["id"]: row["problem"] for row in common.load(str(tmp_path / "other.jsonl")) + common.load(str(small_world), "test")}
        prompts = [common.prompt_ids(student.tokenizer, stat_sel.question(problems[row["id"].removeprefix(f"{names[1]}/")])) for row in answers]
        seed = common.torch_seed(0, "1_answers.round_0.jsonl", answers[0]["id"], 0)
        found = common.sample(student, prompts, args["temperature"], args["max_new_tokens"], seed, leave=0.25)
        found = [(out["response"], row["response"]) for out, row in zip(found, answers, strict=True) if not out["is_open"]]
        assert all(one == two for one, two in found) is same and len(found) > 30


def test_given_pairs_need_no_teacher(whole_run, small_world, tmp_path):
    """STAT-Sel's own pairs, given back in chat form: the same adapter, bit for bit."""
    out, source = tmp_path / "out", whole_run[0] / "train_stat.jsonl"
    command = [str(f) for f in flags(small_world, "x", out, "--pairs", source, "--difficulty", "answer")]
    for flag in ("--teacher-url", "--teacher", "--n-pairs", "--skills", "--concurrency", "--embedder"):  # none of its own
        at = command.index(flag)
        del command[at:at + 2]
    done = started.run("experiments/pairs.py", *command)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "0 of 40 questions lack the sentence" in done.stdout and not (out / "teacher.sqlite").exists()
    weights = [(run / "adapter" / arm / "adapter_model.safetensors").read_bytes() for run, arm in ((out, "pairs"), (whole_run[0], "stat"))]
    assert weights[0] == weights[1]
    assert list(json.loads((out / "result.json").read_text())["arms"]) == ["base", "pairs"]


def test_other_questions_under_a_run_are_refused(small_world, tmp_path, call_file):
    """Changed problems, changed answers or another order: no old result, no new one beside it."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    lines = {split: (small_world / f"{split}.jsonl").read_text().splitlines() for split in ("train", "test")}

    def run(**changed):
        for split, rows in (lines | changed).items():
            (data / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
        return call_file("stat_sel.py", "--student", small_world / "student", "--data", data, "--out", out, "--n-val", 60, "--limit", 3,
                         "--arms", "base", "--difficulty", "answer", "--max-new-tokens", 4, "--temperature", 0)

    def edited(split, field):
        return {split: [json.dumps(json.loads(line) | {field: json.loads(line)[field] + "7"}) for line in lines[split]]}
    first = run()
    assert first.returncode == 0, first.stderr
    before = {path: path.read_bytes() for path in out.iterdir() if path.name.startswith(("0_", "7_", "result"))}
    for changed in (edited("test", "problem"), edited("test", "answer"), edited("train", "problem"), {"test": lines["test"][::-1]}):
        done = run(**changed)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "are not those that the data gives now" in done.stderr, changed
    assert run().returncode == 0 and all(path.read_bytes() == text for path, text in before.items())


@pytest.mark.parametrize("change, words", [
    (["--prm", "nowhere"], "--prm nowhere"),
    (["--adapter", "nowhere"], "--adapter nowhere"),
    (["--val", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--ood", "gsm9k"], "gsm9k"),
    (["--tau1", "1.5"], "--tau1"),
    (["--samples", "0"], "--samples"),
    (["--n-pairz", "3"], "n-pairz"),
    (["--lr", "quick"], "lr"),
    (["--arms", "base", "magic"], "magic"),
    (["--data", "nowhere"], "nowhere"),
    (["--data", str(ROOT / "results" / "scorer.json")], "give the folder"),
    (["--data", str(ROOT / "some.jsonl")], "give the folder"),
    (["--arms"], "--arms"),
    (["--lora-dropout", "3"], "--lora-dropout"),
    (["--lora-rank", "0"], "--lora-rank"),
    (["--skills", str(ROOT / "results" / "scorer.json")], "{subject: [skill, ...]}"),
    (["--skill-map", str(ROOT / "results" / "scorer.json")], "{question id: [skill, ...]}"),
    (["--out", "/dev/null/x"], "/dev/null"),
    (["--skills", "nowhere.json"], "nowhere.json"),
    (["--skill-map", "nowhere.json"], "nowhere.json"),
    (["--student", "nowhere"], "no such folder"),
    (["--teacher-url", "127.0.0.1:9"], "http://"),
    (["--max-usd", "1"], "--max-usd needs"),
    (["--n-val", "0"], "--n-val"),
    (["--n-val", "300"], "n_val"),
    (["--epochs", "0"], "--epochs"),
    (["--batch", "0"], "--batch"),
])
def test_a_mistake_gets_one_sentence(change, words, small_world, tmp_path, teacher_url, call_file):
    out = tmp_path / "out"
    command = [str(flag) for flag in flags(small_world, teacher_url, out)]
    if change[0] in command:
        at = command.index(change[0])
        del command[at:at + 2]
    done = call_file("stat_sel.py", *command, *change)
    assert done.returncode == 2, done.stdout + done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(sentences) == 1 and words in sentences[0], done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("flag, wrong", [("--prm", "nowhere"), ("--student", "nowhere"), ("--embedder", "nowhere"), ("--adapter", "nowhere")])
def test_a_wrong_name_is_refused_at_once_and_leaves_nothing(flag, wrong, small_world, tmp_path, call_file):
    command = [str(f) for f in flags(small_world, "http://127.0.0.1:9/v1", tmp_path / "out", "--arms", "embed")]
    if flag in command:
        del command[command.index(flag):command.index(flag) + 2]
    done = call_file("stat_sel.py", *command, flag, wrong)
    assert done.returncode == 2 and f"{flag} {wrong}: no such folder" in done.stderr and not (tmp_path / "out").exists()


def test_baselines_without_a_profile_ask_for_none(small_world, tmp_path, teacher_url, call_file):
    """augment needs rewrites only; base and train need no teacher at all."""
    done = call_file("stat_sel.py", *flags(small_world, teacher_url, tmp_path / "a", "--arms", "augment", "--limit", "20", "--difficulty", "answer"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert {row["step"] for row in read_cache(tmp_path / "a" / "teacher.sqlite")} == {"5 rewrite"}
    done = call_file("stat_sel.py", *flags(
        small_world, "http://127.0.0.1:9/v1", tmp_path / "b", "--arms", "base", "train", "--limit", "20", "--difficulty", "answer"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "b" / "teacher.sqlite").exists() and len(read(tmp_path / "b" / "train_train.jsonl")) == 20


def test_a_missing_key_gets_one_sentence(small_world, tmp_path, call_file):
    command = [str(f) for f in flags(small_world, "x", tmp_path / "out")]
    at = command.index("--teacher-url")
    del command[at:at + 2]
    done = call_file("stat_sel.py", *command)
    assert done.returncode == 2 and "OPENAI_API_KEY is not set" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()  # so the mended command may name another teacher


def test_a_full_gpu_gets_one_sentence(tmp_path, small_world, teacher_url):
    """The real exception class, raised where the weights are loaded: this machine may have no GPU to fill."""
    script = tmp_path / "full.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch, common, stat_sel
def full(*args, **kwargs):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
common.load_student = full
common.cli(stat_sel.main, stat_sel.Args, "")
""")
    done = started.run(script, *flags(small_world, teacher_url, tmp_path / "out"))
    assert done.returncode == 2 and "--micro-batch" in done.stderr and "Traceback" not in done.stderr


def test_a_slice_of_real_math(real_data, math_slice, small_world, tmp_path, teacher_url, call_file):
    """Shows that it runs on MATH with the built-in skill list; a toy student and a toy teacher show no more than that."""
    done = call_file("stat_sel.py", "--data", math_slice, "--student", small_world / "student", "--teacher", "toy",
                    "--prm", small_world / "prm", "--teacher-url", teacher_url, "--out", tmp_path / "out", "--limit", "20", "--arms", "base", "stat",
                    "--n-val", "100",
                    "--epochs", "1", "--max-new-tokens", "16", "--n-pairs", "24", "--no-checkpointing", "--samples", "2",
                    "--ood", real_data / "gsm8k" / "test.jsonl", real_data / "amc23" / "test.jsonl", real_data / "aime24" / "test.jsonl")
    assert done.returncode == 0, done.stderr[-2000:]
    labels = {row["id"]: row["skills"] for row in read(tmp_path / "out" / "3_skill_map.jsonl")}
    assert len(labels) == 20 and sum(map(bool, labels.values())) > 16  # of P; a few of the labels are malformed
    assert len(read(tmp_path / "out" / "train_stat.jsonl")) == 24
    counts = {name: n for name, (_, n) in json.loads((tmp_path / "out" / "result.json").read_text())["arms"]["stat"].items()}
    assert counts == {"MATH": 20, "gsm8k/test": 20, "amc23/test": 40, "aime24/test": 40}


def test_continual_mode_on_real_math_perturb(real_data, math_slice, small_world, tmp_path, teacher_url, call_file):
    done = call_file("stat_sel.py", "--data", math_slice, "--student", small_world / "student", "--teacher", "toy",
                    "--prm", small_world / "prm", "--teacher-url", teacher_url, "--out", tmp_path / "out", "--limit", "40", "--epochs", "1",
                    "--max-new-tokens", "8", "--n-pairs", "8", "--no-checkpointing", "--arms", "stat",
                    "--val", real_data / "math_perturb" / "hard.jsonl", "--ood", real_data / "math_perturb" / "simple.jsonl")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Q_val 139;" in done.stdout and "math_perturb/hard 140 (139 taken out" in done.stdout  # 279 questions
    assert all(row["id"].startswith("math_perturb/hard/") for row in read(tmp_path / "out" / "4_profile.jsonl"))


def test_the_readmes_adapter_lines_run(whole_run, small_world, tmp_path):
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
    script = tmp_path / "use.py"
    for name, path in (("merged", tmp_path / "merged"), ("Qwen/Qwen2.5-3B", small_world / "student"),
                       ("runs/stat_sel/adapter/stat", whole_run[0] / "adapter" / "stat")):
        code = code.replace(name, str(path))
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + code)
    done = started.run(script)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr[-2000:]
