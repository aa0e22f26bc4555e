"""Starts files of this project as processes of their own, forked from one that has imported the libraries: ten seconds sooner each.

What starts so is a real process with its own memory, which a test may kill; only the imports are shared. A file that is copied with its
common.py finds nothing of the project's. Where the start itself is tested, the fixture run_file starts a new interpreter instead.

killed() kills one with -9 at a sign of what it does, on any machine at the same place: a file that it writes, a reply that it keeps.
"""
import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parent.parent
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
    if sign := os.environ.pop("KILL_AT", ""):
        kill_at(sign, int(os.environ.pop("KILL_NTH")))
    runpy.run_module(argv[1], run_name="__main__", alter_sys=True) if is_module else runpy.run_path(argv[0], run_name="__main__")


def kill_at(sign: str, nth: int) -> None:
    """SIGKILL to this process right after the nth thing that holds the sign: "file: what is appended", "teacher: step of a reply that is kept"."""
    import common
    append, save, seen = common.append, common.Teacher._save, []

    def count(event):
        seen.extend([event] if sign in event else [])
        if len(seen) >= nth:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted_append(f, text):
        append(f, text)
        count(f"{Path(f.name).name}: {text}")

    def counted_save(teacher, key, request, step, row):
        kept = save(teacher, key, request, step, row)
        count(f"teacher: {step}")
        return kept
    common.append, common.Teacher._save = counted_append, counted_save


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
