"""Shared fixtures: a small toy world, and the real data where REAL_DATA names a folder that holds it."""
import contextlib
import importlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest

import common

ROOT = Path(__file__).parent.parent


def read_cache(path) -> list[dict]:
    """The teacher's replies in a cache file; none where it is not there yet, or just being made."""
    if not Path(path).exists():
        return []
    with contextlib.closing(sqlite3.connect(path)) as db, contextlib.suppress(sqlite3.OperationalError):
        return [{"server": server, "key": key, **json.loads(row)} for server, key, row in db.execute("SELECT * FROM replies")]
    return []


os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TQDM_DISABLE"] = "1"


@pytest.fixture(scope="session")
def real_data():
    path = os.environ.get("REAL_DATA")
    if not path or not Path(path).is_dir():
        pytest.skip("REAL_DATA names no folder with the real data sets")
    return Path(path)


@pytest.fixture(scope="session")
def math_slice(real_data, tmp_path_factory):
    """Every tenth question of MATH: what is shown with it is that real questions run through."""
    made = tmp_path_factory.mktemp("math")
    for split in ("train.jsonl", "test.jsonl"):
        (made / split).write_text("".join((real_data / "math" / split).read_text().splitlines(keepends=True)[::10]))
    return made


def shared_world(tmp_path_factory, *args, **kwargs) -> Path:
    """A world that the first of the suite's processes makes, and all use."""
    from toyworld import world
    root = tmp_path_factory.getbasetemp().parent / "toyworld" if "PYTEST_XDIST_WORKER" in os.environ else tmp_path_factory.mktemp("toyworld")
    root.mkdir(exist_ok=True)
    os.environ["TOYWORLD_DIR"] = str(root)
    with filelock.FileLock(root / f"{kwargs.get('family', 'mathematics')}.lock"):
        return world.make_world(root, *args, **kwargs)


@pytest.fixture(scope="session")
def small_world(tmp_path_factory):
    """A world of 60 validation and 100 test questions with a student trained for 160 steps: enough to run, too little to be good."""
    import stat_sel
    from toyworld.embedder import make_embedder
    made = shared_world(tmp_path_factory, 0, stat_sel.STUDENT_PROMPT, 0.1)
    with filelock.FileLock(made / "embedder.lock"):
        if not (made / "embedder").is_dir():
            make_embedder(made / "embedder", made / "student", 0)
    return made


def pytest_collection_modifyitems(items):
    """Whole runs first: a long file that begins last would keep one worker busy alone. Teacher's, while a worker makes the world of the next."""
    long = ("test_run_end_to_end", "test_dart", "test_teacher", "test_stat_syn_end_to_end", "test_active_loop", "test_walkthrough",
            "test_scoring", "test_realworld", "test_models", "test_student", "test_fuzz", "test_benchmarks")
    items.sort(key=lambda item: long.index(item.path.stem) if item.path.stem in long else len(long))


@pytest.fixture
def teacher_url():
    from toyworld import teacher
    server, url = teacher.serve()
    yield url
    server.shutdown()


@pytest.fixture
def run_file():
    """Runs a file of this project: run_file("stat_sel.py", "--help", cwd=..., env={...})."""
    def run(*argv, cwd=ROOT, env=None):
        environment = {k: v for k, v in os.environ.items() if k not in ("OPENAI_API_KEY", "OPENAI_BASE_URL")} | (env or {})
        return subprocess.run([sys.executable, *map(str, argv)], cwd=cwd, env=environment, capture_output=True, text=True)
    return run


@pytest.fixture
def call_file(monkeypatch, capsys):
    """Calls a method file's command line in this process, seconds sooner than run_file: call_file("stat_sel.py", "--plan")."""
    def call(name, *argv):
        module = importlib.import_module(name.removesuffix(".py"))
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        for key in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
            monkeypatch.delenv(key, raising=False)
        capsys.readouterr()
        try:
            common.cli(module.main, module.Args, module.__doc__)
            code = 0
        except SystemExit as stop:
            code = stop.code
        return SimpleNamespace(returncode=code, **dict(zip(("stdout", "stderr"), capsys.readouterr(), strict=True)))
    return call
