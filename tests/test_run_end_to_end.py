"""stat_sel.py as a user runs it: whole runs in the toy world, kills, refusals, and a slice of real data."""
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import stat_sel
from tests.conftest import ROOT
from toyworld import teacher as toy_teacher
from toyworld import world

SMALL = ["--seed", "0", "--n-val", "60", "--limit", "90", "--n-pairs", "40",
         "--epochs", "1", "--batch", "16", "--micro-batch", "16", "--no-checkpointing",
         "--lr", "1e-3", "--sample-batch", "50", "--max-new-tokens", "60", "--concurrency", "4"]


def flags(small_world, url, out, *more):
    return ["--student", small_world / "student", "--data", small_world, "--skills", small_world / "skills.json",
            "--teacher", "toy", "--teacher-url", url, "--out", out, *SMALL, *more]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_run(small_world, tmp_path_factory):
    """One uninterrupted run that the other tests compare with."""
    server, url = toy_teacher.serve()
    out = tmp_path_factory.mktemp("runs") / "whole"
    command = [sys.executable, ROOT / "stat_sel.py", *map(str, flags(small_world, url, out))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    server.shutdown()
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stdout


def test_a_run_ends_with_its_table(whole_run):
    out, printed = whole_run
    result = json.loads((out / "result.json").read_text())
    assert list(result["arms"]) == ["base", "augment", "stat", "shuffled"]
    assert {row["n"] for row in result["arms"].values()} == {90}
    assert len({row["n_pairs"] for arm, row in result["arms"].items() if arm != "base"}) == 1  # equal numbers of pairs
    assert printed.count("vs augment") == 2 and "most-missed skills:" in printed and printed.count("at most") >= 2 and "##" in printed
    for arm in ("augment", "stat", "shuffled"):
        rows = read(out / f"train_{arm}.jsonl")
        assert [m["role"] for m in rows[0]["messages"]] == ["user", "assistant"]
        assert (out / "adapter" / arm / "adapter_model.safetensors").exists()
    assert not list(out.rglob("*.tmp")) + list(out.rglob("*.part")) + list(out.rglob("*.checkpoint.pt"))


def test_every_pair_trained_on_has_the_gold_answer(whole_run, small_world):
    import common
    gold = {row["id"]: row for row in common.load(str(small_world), "train")}
    for arm in ("augment", "stat", "shuffled"):
        for row in read(whole_run[0] / f"train_{arm}.jsonl"):
            assert gold[row["id"]]["problem"] in row["messages"][0]["content"]
            assert common.score(row["messages"][1]["content"], gold[row["id"]]["answer"]) is True


def test_no_test_question_was_profiled_or_trained_on(whole_run):
    out = whole_run[0]
    tested, profiled = {row["id"] for row in read(out / "7_test_base.jsonl")}, {row["id"] for row in read(out / "1_answers.jsonl")}
    assert len(tested) == 90 and len(profiled) == 60 and not tested & profiled
    assert not tested & {row["id"] for row in read(out / "train_stat.jsonl")}


def test_stat_draws_only_linked_questions(whole_run):
    out = whole_run[0]
    labels = {row["id"]: row["skills"] for row in read(out / "3_skill_map.jsonl")}
    missing = {skill for row in read(out / "4_profile.jsonl") for skill in row["skills"]}
    assert all(set(labels[row["id"]]) & missing for row in read(out / "train_stat.jsonl"))


def test_a_rerun_reads_and_pays_nothing_again(whole_run, small_world, run_file):
    out, _ = whole_run
    before = {path.name: path.read_bytes() for path in out.glob("*.jsonl")}
    again = run_file("stat_sel.py", *flags(small_world, "http://127.0.0.1:9/v1", out))  # nobody listens there
    assert again.returncode == 0, again.stderr[-2000:]
    assert {path.name: path.read_bytes() for path in out.glob("*.jsonl")} == before


def test_other_arguments_are_refused(whole_run, small_world, run_file):
    again = run_file("stat_sel.py", *flags(small_world, "http://127.0.0.1:9/v1", whole_run[0], "--n-rewrites", "2"))
    assert again.returncode == 2 and "n_rewrites was 3, is 2" in again.stderr and "Traceback" not in again.stderr


@pytest.mark.parametrize("waits_for", ["1_answers.jsonl.part", "teacher.jsonl", "adapter/augment", "7_test_stat.answers.jsonl.part"])
def test_kill_9_anywhere_changes_nothing(waits_for, whole_run, small_world, tmp_path):
    """Killed at this file's first sign and rerun: the same files, and no reply is asked for that was in the cache."""
    asked = []
    reply = toy_teacher.reply

    def counting(prompt, seed):
        asked.append((prompt, seed))
        time.sleep(0.002)
        return reply(prompt, seed)
    toy_teacher.reply = counting
    server, url = toy_teacher.serve()
    out = tmp_path / "killed"
    command = [sys.executable, ROOT / "stat_sel.py", *map(str, flags(small_world, url, out))]
    try:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(12000):
            sign = out / waits_for
            if process.poll() is not None or sign.exists() and (sign.is_dir() or sign.stat().st_size > 0):
                break
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "result.json").exists()
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    finally:
        server.shutdown()
        toy_teacher.reply = reply
    assert done.returncode == 0, done.stderr[-3000:]
    whole, _ = whole_run
    for path in whole.rglob("*"):
        if path.suffix in (".jsonl", ".safetensors") and path.name not in ("teacher.jsonl", "metrics.jsonl"):
            assert path.read_bytes() == (out / path.relative_to(whole)).read_bytes(), path.name
    repeated = len(asked) - len(set(asked))
    assert repeated <= 4  # calls in flight at the kill, no more than --concurrency
    one, two = (json.loads((run / "result.json").read_text()) for run in (whole, out))
    volatile = ("teacher_totals", "arms")
    assert {k: v for k, v in one.items() if k not in volatile} == {k: v for k, v in two.items() if k not in volatile}
    assert [row["k"] for row in one["arms"].values()] == [row["k"] for row in two["arms"].values()]


def test_lost_replies_stop_the_run_and_a_rerun_asks_for_them_alone(whole_run, small_world, tmp_path):
    """The teacher is away for one step: nothing of that step is written down as an answer."""
    reply = toy_teacher.reply

    def failing(prompt, seed):
        if "<response>" in prompt and sum(prompt.encode()) % 2:
            raise ConnectionError  # the handler dies, the client sees a closed connection
        return reply(prompt, seed)
    server, url = toy_teacher.serve()
    out = tmp_path / "out"
    script = tmp_path / "impatient.py"  # two tries instead of six, short waits: the same code, sooner
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import common, stat_sel
common.Teacher.first_wait_s = 0.01
common.Teacher.__init__.__defaults__ = tuple(2 if value == 6 else value for value in common.Teacher.__init__.__defaults__)
common.cli(stat_sel.main, stat_sel.Args, "")
""")
    command = [sys.executable, script, *map(str, flags(small_world, url, out, "--arms", "stat"))]
    try:
        toy_teacher.reply = failing
        stopped = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert stopped.returncode == 2 and "replies were lost" in stopped.stderr, stopped.stderr[-2000:]
        assert not (out / "4_profile.jsonl").exists()
        toy_teacher.reply = reply
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
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
    done = run_file("stat_sel.py", *flags(small_world, teacher_url, tmp_path / "out", "--limit", "30", "--arms", "base", "stat"), cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "out" / "result.json").exists(), done.stderr[-2000:]


def test_plan_sends_nothing(small_world, tmp_path, run_file):
    done = run_file("stat_sel.py", *flags(small_world, "http://127.0.0.1:9/v1", tmp_path / "out", "--plan"))
    assert done.returncode == 0, done.stderr
    assert "5 rewrite, at most" in done.stdout and done.stdout.count("<problem>") == 3  # one prompt of each kind
    assert "$" not in done.stdout and not (tmp_path / "out").exists()  # so the next command may have other arguments
    priced = run_file("stat_sel.py", *flags(
        small_world, "http://127.0.0.1:9/v1", tmp_path / "out", "--plan", "--usd-per-m-in", "1", "--usd-per-m-out", "2"))
    assert "usd" in priced.stdout


def test_a_cap_stops_and_a_higher_one_goes_on(whole_run, small_world, tmp_path, teacher_url, run_file):
    out = tmp_path / "out"
    price = ["--usd-per-m-in", "1", "--usd-per-m-out", "1"]
    stopped = run_file("stat_sel.py", *flags(small_world, teacher_url, out, *price, "--max-usd", "0.02"))
    assert stopped.returncode == 2 and "--max-usd goes on" in stopped.stderr and "Traceback" not in stopped.stderr
    assert len(read(out / "teacher.jsonl")) > 10
    done = run_file("stat_sel.py", *flags(small_world, teacher_url, out, *price, "--max-usd", "1"))
    assert done.returncode == 0
    assert (out / "train_stat.jsonl").read_bytes() == (whole_run[0] / "train_stat.jsonl").read_bytes()


def test_consistency_and_a_given_skill_map(small_world, tmp_path, teacher_url, run_file):
    rows = read(small_world / "train.jsonl")
    (tmp_path / "map.json").write_text(json.dumps({row["id"]: row["skills"] for row in rows}))
    done = run_file("stat_sel.py", *flags(small_world, teacher_url, tmp_path / "out", "--difficulty", "consistency", "--skill-map",
                                          tmp_path / "map.json", "--limit", "30", "--arms", "stat"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(read(tmp_path / "out" / "1_samples.jsonl")) == 150
    assert [row["skills"] for row in read(tmp_path / "out" / "3_skill_map.jsonl")][0] != []
    assert not any("skill_map" in row["step"] for row in read(tmp_path / "out" / "teacher.jsonl"))


@pytest.mark.parametrize("change, words", [
    (["--n-pairz", "3"], "n-pairz"),
    (["--lr", "quick"], "lr"),
    (["--arms", "base", "magic"], "magic"),
    (["--data", "nowhere"], "nowhere"),
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
    (["--teacher-url", "http://127.0.0.1:9/v1"], "127.0.0.1:9"),
    (["--teacher-url", "127.0.0.1:9"], "http://"),
    (["--max-usd", "1"], "max_usd needs"),
    (["--n-val", "0"], "--n-val"),
    (["--n-val", "300"], "n_val"),
    (["--epochs", "0"], "--epochs"),
    (["--batch", "0"], "--batch"),
])
def test_a_mistake_gets_one_sentence(change, words, small_world, tmp_path, teacher_url, run_file):
    out = tmp_path / "out"
    command = [str(flag) for flag in flags(small_world, teacher_url, out)]
    if change[0] in command:
        at = command.index(change[0])
        del command[at:at + 2]
    done = run_file("stat_sel.py", *command, *change)
    assert done.returncode == 2, done.stdout + done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(sentences) == 1 and words in sentences[0], done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_missing_key_gets_one_sentence(small_world, tmp_path, run_file):
    command = [str(f) for f in flags(small_world, "x", tmp_path / "out")]
    at = command.index("--teacher-url")
    del command[at:at + 2]
    done = run_file("stat_sel.py", *command)
    assert done.returncode == 2 and "OPENAI_API_KEY is not set" in done.stderr and "Traceback" not in done.stderr


def test_a_full_gpu_gets_one_sentence(tmp_path, run_file, small_world):
    """The real exception class, raised where the weights are loaded: this machine may have no GPU to fill."""
    script = tmp_path / "full.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch, common, stat_sel
def full(args):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
stat_sel.load_student = full
common.cli(stat_sel.main, stat_sel.Args, "")
""")
    done = run_file(script, *flags(small_world, "http://127.0.0.1:9/v1", tmp_path / "out"))
    assert done.returncode == 2 and "--micro-batch" in done.stderr and "Traceback" not in done.stderr


def test_a_slice_of_real_math(real_data, small_world, tmp_path, teacher_url, run_file):
    """Shows that it runs on MATH with the built-in skill list; a toy student and a toy teacher show no more than that."""
    done = run_file("stat_sel.py", "--data", real_data / "math", "--student", small_world / "student", "--teacher", "toy",
                    "--teacher-url", teacher_url, "--out", tmp_path / "out", "--limit", "60", "--epochs", "1", "--max-new-tokens", "16",
                    "--label-test", "--n-pairs", "24", "--no-checkpointing")
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert sum(bool(row["skills"]) for row in read(tmp_path / "out" / "7_test_base.jsonl")) > 40  # a few of the labels are malformed
    assert sum(result["profile"].values()) > 0 and result["arms"]["stat"]["n_pairs"] > 0 and result["arms"]["base"]["n"] == 60


def test_the_toy_command(tmp_path, run_file, small_world):
    done = run_file("-m", "toyworld", "stat_sel", "--scale", "0.1", "--out", tmp_path / "out", "--limit", "20", "--arms", "base", "stat",
                    env={"TOYWORLD_DIR": str(small_world.parent)})
    assert done.returncode == 0 and (tmp_path / "out" / "result.json").exists(), done.stderr[-2000:]
    assert world.make_world(small_world.parent, 0, stat_sel.STUDENT_PROMPT, 0.1) == small_world  # it was there already


def test_the_gpu_benchmark_runs_at_toy_size(small_world, run_file):
    done = run_file("benchmarks/gpu.py", "--shape", "tiny", "--scale", "0.1", "--new-tokens", "4", "--words", "20",
                    env={"TOYWORLD_DIR": str(small_world.parent)})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("GiB") >= 4 and "train on 32 pairs" in done.stdout


def test_the_readmes_adapter_lines_run(whole_run, small_world, run_file, tmp_path):
    code, = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    script = tmp_path / "use.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + code.replace("Qwen/Qwen2.5-3B", str(small_world / "student"))
                      .replace("runs/stat_sel/adapter/stat", str(whole_run[0] / "adapter" / "stat")))
    done = run_file(script)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr[-2000:]
