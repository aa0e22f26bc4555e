"""Starts files of this project as processes of their own, forked from one that has imported the libraries: ten seconds sooner each.

What starts so is a real process with its own memory, which a test may kill; only the imports are shared. Where the start itself is tested, and
where a copied common.py must be found, the fixture run_file starts a new interpreter instead.
"""
import contextlib
import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parent.parent
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["torch", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama", "bitsandbytes",
                              "transformers.integrations.bitsandbytes", "peft", "openai", "tyro", "tqdm", "filelock"])


def as_main(argv: list[str], environment: dict, out: str) -> None:
    for fd, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{out}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv[:] = argv
    sys.path.insert(0, str(Path(argv[0]).parent))
    runpy.run_path(argv[0], run_name="__main__")


def start(*argv, **environment):
    """A process that runs argv[0], a path or a name in the project's folder: start("stat_sel.py", "--plan")."""
    argv = [str(ROOT / argv[0]), *map(str, argv[1:])]
    env = {k: v for k, v in os.environ.items() if k not in ("OPENAI_API_KEY", "OPENAI_BASE_URL")} | environment
    out = tempfile.mktemp(prefix="started-")
    process = forks.Process(target=as_main, args=(argv, env, out))
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


def run(*argv, **environment) -> SimpleNamespace:
    return finish(start(*argv, **environment))
