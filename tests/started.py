"""Starts files of this project as processes of their own, forked from one that has imported the libraries: ten seconds sooner each.

What starts so is a real process with its own memory, which a test may kill; only the imports are shared. A file that is copied with its
common.py finds nothing of the project's. Where the start itself is tested, the fixture run_file starts a new interpreter instead.

killed() kills one with -9 at a sign of what it does, on any machine at the same place: a file that it writes, a reply that it keeps.
"""
import contextlib
import multiprocessing
import os
import random
import runpy
import signal
import sqlite3
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("FAULT_KILLS", "3"))  # of each method; `make faults` takes 25
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["torch", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama", "bitsandbytes",
                              "transformers.integrations.bitsandbytes", "peft", "openai", "tyro", "tqdm", "filelock"])


def as_main(argv: list[str], environment: dict, out: str, cwd: Path) -> None:
    for fd, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{out}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    is_module = argv[0] == "-m"
    sys.argv[:] = argv[is_module:]
    folder = ROOT if is_module else Path(argv[0]).parent
    has_its_own = (folder / "common.py").exists()  # a copy: then nothing of the project's may be found
    sys.path[:] = [str(folder), *(p for p in sys.path if not has_its_own or Path(p).resolve() != ROOT)]
    if most := os.environ.pop("FILE_LIMIT", ""):  # bytes that a file may have: as on a full disk
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), int(most)))
    if sign := os.environ.pop("KILL_AT", ""):
        kill_at(sign, *(float(os.environ.pop(f"KILL_{name}", default)) for name, default in (("NTH", 1), ("AFTER", 0), ("BY", signal.SIGKILL))))
    runpy.run_module(argv[1], run_name="__main__", alter_sys=True) if is_module else runpy.run_path(argv[0], run_name="__main__")


def kill_at(sign: str, nth: float, after_s: float, by: float) -> None:
    """A signal to this process after_s after the nth thing that holds the sign.

    Things are "file: what is appended", "teacher: step of a reply that is kept", "rename: file".
    """
    import common
    append, save, rename, replace, seen = common.append, common.Teacher._save, os.rename, os.replace, []

    def kill():
        os.kill(os.getpid(), int(by))

    def count(event):
        seen.extend([event] if sign in event else [])
        if len(seen) == nth:
            timer = threading.Timer(after_s, kill)
            timer.daemon = True
            timer.start() if after_s else kill()

    def counted(move):
        def moved(old, new, **how):
            move(old, new, **how)
            count(f"rename: {new}")
        return moved

    def counted_append(f, text):
        append(f, text)
        count(f"{Path(f.name).name}: {text}")

    def counted_save(teacher, key, request, step, row):
        kept = save(teacher, key, request, step, row)
        count(f"teacher: {step}")
        return kept
    common.append, common.Teacher._save = counted_append, counted_save
    os.rename, os.replace = counted(rename), counted(replace)


def start(*argv, cwd=ROOT, **environment):
    """A process that runs argv[0], a path or a name in the project's folder, or a module: start("-m", "toyworld", "dart")."""
    argv = [*map(str, argv)] if argv[0] == "-m" else [str(ROOT / argv[0]), *map(str, argv[1:])]
    env = {k: v for k, v in os.environ.items() if k not in ("OPENAI_API_KEY", "OPENAI_BASE_URL")} | environment
    out = tempfile.mktemp(prefix="started-")
    process = forks.Process(target=as_main, args=(argv, env, out, cwd))
    process.start()
    process.out = out
    return process


def finish(process) -> SimpleNamespace:
    """returncode, stdout and stderr of a process, when it has ended."""
    process.join()
    texts = {}
    for name in ("stdout", "stderr"):
        path = Path(f"{process.out}.{name}")
        with contextlib.suppress(FileNotFoundError):  # killed at once
            texts[name] = path.read_text()
            path.unlink()
    return SimpleNamespace(returncode=process.exitcode, **texts)


def run(*argv, cwd=ROOT, **environment) -> SimpleNamespace:
    return finish(start(*argv, cwd=cwd, **environment))


def killed(sign: str, *argv, nth: int = 1) -> None:
    """Runs argv until the nth sign (see kill_at), at which it is killed with -9."""
    done = run(*argv, KILL_AT=sign, KILL_NTH=str(nth))
    assert done.returncode == -signal.SIGKILL, f"it ended before {sign!r}: {done.stdout[-500:]}{done.stderr[-3000:]}"


def kill_at_random(command, whole: Path, folder: Path, seed: str, n_kills: int = 0) -> set[Path]:
    """Starts command(out) again and again, killed at seeded random moments, KILLS in all; every run ends like `whole`.

    A moment is a random time of up to a second behind a random one of the next things that it writes: so it lies inside of whatever it does
    then. A run takes some eight kills; then another begins. Behind every third kill comes a Ctrl-C, that must end it in its one sentence.
    n_kills: those of the first, folder/killed-0, so far. Returns what was compared.
    """
    rng, outs, out, is_interrupted = random.Random(seed), [], None, False
    n_things = len((whole / "metrics.jsonl").read_text().splitlines()) + len(list(whole.rglob("*"))) + len(rows_of_cache(whole))
    while out or n_kills < KILLS:
        if not out:
            outs.append(out := folder / f"killed-{len(outs)}")
        moment = {"KILL_AT": ":", "KILL_NTH": str(rng.randint(1, 2 * n_things // min(KILLS, 8))), "KILL_AFTER": str(rng.random())}
        is_interrupted = n_kills % 3 == 2 and not is_interrupted
        done = run(*command(out), **moment if n_kills < KILLS else {}, KILL_BY=str(int(signal.SIGINT if is_interrupted else signal.SIGKILL)))
        if done.returncode == -signal.SIGKILL:
            n_kills += 1
            continue
        if done.returncode == 130:
            assert done.stderr.splitlines()[-1] == "interrupted; the same command goes on from here" and "Traceback" not in done.stderr
            continue
        assert done.returncode == 0, f"{out.name} after {n_kills} kills: {done.stderr[-3000:]}"
        compared, out = compare(whole, out), None
    return compared


def compare(whole: Path, out: Path) -> set[Path]:
    """The same rows and weights; no half file; no reply that was paid for twice."""
    assert not [path for path in out.rglob("*") if path.name.endswith((".tmp", ".part", ".checkpoint.pt"))]
    for path in rows_and_weights(out):
        assert (out / path).read_bytes() == (whole / path).read_bytes(), path
    keys = rows_of_cache(out)
    assert len(keys) == len(set(keys)) and set(keys) <= set(rows_of_cache(whole))
    return rows_and_weights(out)


def rows_and_weights(run: Path) -> set[Path]:
    """The files of a run that hold neither times nor paths."""
    found = [*run.rglob("*.jsonl"), *run.rglob("*.safetensors"), *run.glob("*_*.json")]
    return {path.relative_to(run) for path in found if path.name != "metrics.jsonl"}


def rows_of_cache(run: Path) -> list[str]:
    """The keys of the replies in a run's cache."""
    if not (run / "teacher.sqlite").exists():
        return []
    with contextlib.closing(sqlite3.connect(run / "teacher.sqlite")) as db:
        return [key for key, in db.execute("SELECT key FROM replies")]
