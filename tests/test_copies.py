"""What two method files share is copied whole under a mark, "# Copied from file.name" (" with old->new"), and stays equal to its source."""
import ast
import dataclasses
import re
from pathlib import Path

import pytest

import stat_sel
import stat_syn
from tests.conftest import ROOT

METHODS = {name: ROOT / f"{name}.py" for name in ("stat_sel", "stat_syn", "dart", "active_loop", "report") if (ROOT / f"{name}.py").exists()}
EACH_ITS_OWN = {"Args", "Arm", "MAY_CHANGE", "plan", "draw", "main"}  # the settings and the glue
MARK = re.compile(r"# Copied from (\w+)\.(\w+)(?: with (\w+)->(\w+))?")


def definitions(text: str) -> dict[str, tuple[int, str]]:
    """Of each function, class and constant at the top level of a file: its first line, counted from 0, and its text."""
    lines, found = text.splitlines(), {}
    for node in ast.parse(text).body:
        names = [node.name] if hasattr(node, "name") else [t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name)]
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        found |= {name: (first, "\n".join(lines[first:node.end_lineno])) for name in names}
    return found


def faults(files: dict[str, str]) -> list[str]:
    """What is wrong with the copies in these files, name -> text."""
    made, out, marked = {name: definitions(text) for name, text in files.items()}, [], set()
    for file, text in files.items():
        for n, line in enumerate(text.splitlines()):
            comment = line[line.index("#"):] if "#" in line else ""
            if re.match(r"#\s*cop(y|ied)\W*(from|of)?\W+\w+\.\w+", comment, re.IGNORECASE) and not MARK.fullmatch(line):
                out.append(f"{file} line {n + 1}: a misspelt mark: {line}")
            if mark := MARK.fullmatch(line):
                source, name, old, new = mark.groups()
                here = next((key for key, (first, _) in made[file].items() if first == n + 1), None)
                expected = made.get(source, {}).get(name)
                if here is None or expected is None or source == file:
                    out.append(f"{file} line {n + 1}: no definition below it, or no {source}.{name}")
                    continue
                wanted = re.sub(rf"\b{old}\b", new, expected[1]) if old else expected[1]
                marked.add((file, here))
                if made[file][here][1] != wanted:
                    out.append(f"{file}.{here} is not equal to {source}.{name}")
    for name in {name for found in made.values() for name in found} - EACH_ITS_OWN:
        unmarked = [file for file, found in made.items() if name in found and (file, name) not in marked]
        if len(unmarked) > 1:
            out.append(f"{name} is defined in {' and '.join(unmarked)} without a mark")
    return out


def test_the_copies_are_equal_to_their_sources():
    texts = {name: path.read_text() for name, path in METHODS.items()}
    assert faults(texts) == []
    assert sum(len(re.findall(r"^# Copied from ", text, re.MULTILINE)) for text in texts.values()) >= 20


SOURCE = "def f(x):\n    return x + 1\n\n\nA = 3\n"


@pytest.mark.parametrize("copy, words", [
    ("# Copied from one.f\ndef f(x):\n    return x + 1\n", None),
    ("# Copied from one.f with f->g\ndef g(x):\n    return x + 1\n", None),
    ("# Copied from one.A\nA = 3\n", None),
    ("# Copied from one.f\n@cache\ndef f(x):\n    return x + 1\n", "not equal"),
    ("# Copied from one.f\ndef f(x):\n    return x + 2\n", "not equal"),
    ("# Copied from one.f\ndef f(x):\n    # why\n    return x + 1\n", "not equal"),
    ("# Copied from one.f with g->f\ndef g(x):\n    return x + 1\n", "not equal"),
    ("# copied from one.f\ndef g(x):\n    return x + 1\n", "misspelt"),
    ("# Copied  from one.f\ndef g(x):\n    return x + 1\n", "misspelt"),
    ("# Copied from one.f, shortened\ndef g(x):\n    return x + 1\n", "misspelt"),
    ("# Copy of one.f\ndef g(x):\n    return x + 1\n", "misspelt"),
    ("#Copied from: one.f\ndef g(x):\n    return x + 1\n", "misspelt"),
    ("# Copied from one.h\ndef h(x):\n    return x + 1\n", "no one.h"),
    ("# Copied from two.f\ndef f(x):\n    return x + 1\n", "no definition"),
    ("# Copied from one.f\n\ndef f(x):\n    return x + 1\n", "no definition below"),
    ("def f(x):\n    return x + 1\n", "without a mark"),
    ("A = 3\n", "without a mark"),
    ("def main():\n    pass\n", None)])
def test_a_copy_that_drifted_or_lost_its_mark_is_found(copy, words):
    found = faults({"one": SOURCE + "def main():\n    return 1\n", "two": copy})
    assert (found == []) if words is None else any(words in fault for fault in found), found


def test_the_settings_that_two_methods_share_have_one_default_and_one_explanation():
    def settings(module):
        text = Path(module.__file__).read_text().split("class Args:")[1].split("\n\n\n")[0]
        lines = re.findall(r"^    (\w+): [^#\n]+#? ?(.*)$", text, re.MULTILINE)
        return {field.name: (field.default, field.type, dict(lines)[field.name]) for field in dataclasses.fields(module.Args)}
    sel, syn = settings(stat_sel), settings(stat_syn)
    assert set(sel) - set(syn) == {"questions_per_skill"} and len(set(sel) & set(syn)) > 40
    own = {"out", "arms", "teacher", "n_rewrites", "n_pairs"}  # they name what the method itself does
    assert {name for name in set(sel) & set(syn) if sel[name] != syn[name]} == own
    assert {name for name in own if sel[name][0] != syn[name][0]} == {"out", "arms"}
    assert set(stat_sel.MAY_CHANGE) <= set(stat_syn.MAY_CHANGE)
    assert set(stat_syn.PROFILED_BY) <= set(sel) & set(syn) and not set(stat_syn.PROFILED_BY) & set(stat_syn.MAY_CHANGE)
