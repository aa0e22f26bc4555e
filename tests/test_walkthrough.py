"""docs/walkthrough.ipynb: its cells run, in order, and what it shows is what they print.

    python -m tests.test_walkthrough    # runs it and saves the outputs anew
"""
import ast
import base64
import contextlib
import io
import json
import os
import re
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "walkthrough.ipynb"
SAME_ANYWHERE = ("questions", "label")  # the others hang on the student's answers, so on a CPU's rounding
NOTEBOOK = json.loads(FILE.read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def play() -> tuple[dict, dict[str, list[dict]], list[str]]:
    """Runs the code cells in docs/: the names they leave, each cell's outputs, the warnings that show."""
    names, outputs = {"__name__": "__main__"}, {}
    path, environment = sys.path.copy(), os.environ.copy()
    with contextlib.chdir(FILE.parent), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        try:
            for n, cell in enumerate(CODE, 1):
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    value = run_cell(cell, names)
                outputs[cell["id"]] = as_outputs(printed.getvalue(), value, n)
        finally:
            sys.path[:] = path
            os.environ.clear()
            os.environ.update(environment)
    hidden = DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning  # by Python itself
    shown = [str(one.message) for one in warned if not issubclass(one.category, hidden)]
    return names, outputs, shown


def run_cell(cell: dict, names: dict):
    """The value of the cell's last line, as a notebook shows it."""
    tree, value = ast.parse(source(cell)), None
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, cell["id"], "exec"), names)
    if last:
        value = eval(compile(ast.Expression(last.value), cell["id"], "eval"), names)
    return value


def as_outputs(text: str, value, n: int) -> list[dict]:
    """What a cell printed, and its value where it is a picture, in the notebook's form."""
    found = []
    if text:
        lines = text.splitlines(keepends=True)
        found.append({"name": "stdout", "output_type": "stream", "text": lines})
    if value is not None:
        data = {"image/png": base64.b64encode(value._repr_png_()).decode(), "text/plain": ["<Picture>"]}
        found.append({"data": data, "execution_count": n, "metadata": {}, "output_type": "execute_result"})
    return found


def text_of(outputs: list[dict]) -> str:
    return "".join(line for one in outputs for line in one.get("text", ()))


def without_times(text: str) -> str:
    return re.sub(r"[\d.]+ (s|GiB)\b", r"# \1", text)


@pytest.fixture(scope="module")
def played():
    return play()


def test_a_fresh_python_finds_the_project(run_file, tmp_path):
    """From docs/ and from the top folder."""
    for folder in (FILE.parent, ROOT):
        script = tmp_path / "first_cell.py"  # a file elsewhere has nothing of the project's on its path
        script.write_text(source(CODE[0]) + "\nimport common\nprint(common.__file__)\n")
        done = run_file(script, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()) == ROOT / "common.py"


def test_the_question_is_the_first_difficult_one_that_lacks_a_skill(played):
    it, diagnosed = played[0], played[0]["profile"]
    args, rewards = it["args"], it["rewards"]
    assert (args.tau1, args.tau2) == (0.85, 0.7)
    mean = sum(rewards) / len(rewards)
    assert rewards[-1] <= 0.85 or mean <= 0.85 or min(rewards[:-1], default=1) <= 0.7  # Eq. 1
    assert it["our_id"] == next(row["id"] for row in it["difficult"] if diagnosed.get(row["id"]))
    assert it["read"]["judge"] == "incorrect" and it["read"]["skills"] == diagnosed[it["our_id"]]


def test_what_is_shown_of_the_question_is_what_was_graded(played):
    it, shown = played[0], {name: text_of(outputs) for name, outputs in played[1].items()}
    assert it["ours"]["problem"] in shown["ours"] and it["answer"]["response"] in shown["ours"]
    assert len(it["steps"]) == len(it["rewards"])
    for reward, step in zip(it["rewards"], it["steps"], strict=True):
        assert f"{reward:.3f}  {step}" in shown["rewards"]
    assert shown["difficult"].endswith("Difficult: True\n")
    assert it["answer"]["response"] in shown["prompt"]
    assert it["ours"]["solution"] not in shown["prompt"]
    assert "0 calls, 1 cached" in shown["reply"]


def test_the_drawn_questions_have_the_missing_skill(played):
    it = played[0]
    lacking, drawn = it["profile"][it["our_id"]], it["drawn"]
    assert len(drawn) == sum(min(5, len(it["skill_map"].get(skill, []))) for skill in lacking) > 0
    assert all(set(it["labels"][i]) & set(lacking) for i in drawn)
    assert it["our_id"] not in it["by_id"]


def test_they_are_those_that_the_run_draws(played):
    it, args = played[0], played[0]["args"]
    rng = it["common"].rng(args.seed, "draw", "stat")
    whole = it["stat_sel"].draw_stat(it["profile"], it["skill_map"], args.questions_per_skill, rng)
    assert whole[:len(it["drawn"])] == it["drawn"]
    assert it["for_ours"] and {pair["id"] for pair in it["pairs"]} <= set(whole)


def test_it_was_trained(played):
    it = played[0]
    steps_an_epoch = -(-len(it["pairs"]) // it["args"].batch)
    assert len(it["losses"]) == 3 * steps_an_epoch
    assert sum(it["losses"][-steps_an_epoch:]) < sum(it["losses"][:steps_an_epoch])
    assert all(len(texts) == 20 for texts in it["answers"].values())
    assert it["answers"]["before"] != it["answers"]["after"]


def test_nothing_is_left_behind(played):
    assert not played[0]["folder"].exists()


def test_no_warning_is_shown(played):
    assert played[2] == []


def test_the_saved_outputs_are_what_the_cells_print(played):
    for cell in CODE:
        now, saved, hint = played[1][cell["id"]], cell["outputs"], "run python -m tests.test_walkthrough"
        assert [one["output_type"] for one in now] == [one["output_type"] for one in saved], hint
        if cell["id"] in SAME_ANYWHERE:
            assert text_of(saved) and without_times(text_of(now)) == without_times(text_of(saved)), hint


def test_the_notebook_is_whole():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in ids)
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert {*SAME_ANYWHERE} < {cell["id"] for cell in CODE}
    assert FILE.stat().st_size < 80_000


def test_its_cells_are_short():
    for cell in CODE:
        lines = source(cell).splitlines()
        assert len(lines) <= 15 and max(map(len, lines)) <= 110, cell["id"]


def test_its_outputs_are_light_and_name_no_local_path():
    pictures, words = [], [source(cell) for cell in NOTEBOOK["cells"]]
    for output in (output for cell in CODE for output in cell["outputs"]):
        assert output["output_type"] in ("stream", "execute_result") and output.get("name") != "stderr"
        pictures += [output["data"]["image/png"]] if "data" in output else []
        words.append(text_of([output]))
    assert len(pictures) == 1 and len(base64.b64decode(pictures[0])) < 40_000
    assert base64.b64decode(pictures[0]).startswith(b"\x89PNG")
    for text in words:
        assert not re.search(r"/(tmp|home|root|work|var|Users)\b|Warning|Traceback", text), text


def test_its_links_lead_somewhere():
    texts = "\n".join(source(cell) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", texts) if "://" not in link]
    assert links and all((FILE.parent / link.partition("#")[0]).is_file() for link in links)


def main() -> None:
    for n, (cell, outputs) in enumerate(zip(CODE, play()[1].values(), strict=True), 1):
        cell |= {"execution_count": n, "outputs": outputs}
    FILE.write_text(json.dumps(NOTEBOOK, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
