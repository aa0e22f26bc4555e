"""experiments/pairs.py: what is read as a pair, what is left out, and how it is asked; its whole run is in test_run_end_to_end.py."""
import dataclasses
import importlib.util
import itertools
import json
import os

import pytest

import common
from common import UserError
from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("pairs", ROOT / "experiments" / "pairs.py")
pairs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pairs)
CHAT = [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "\\boxed{5}"}]
SHARE = [{"from": "human", "value": "2+3?"}, {"from": "gpt", "value": "\\boxed{5}"}]
SYSTEM = {"role": "system", "content": "Be brief."}


def read(tmp_path, *rows) -> list[list[dict]]:
    (tmp_path / "p.json").write_text(json.dumps(rows))
    return [pair["messages"] for pair in pairs.read_pairs(str(tmp_path / "p.json"))]


@pytest.mark.parametrize("row, turns", [
    ({"messages": CHAT, "more": 1}, CHAT), ({"conversations": SHARE}, CHAT), ({"messages": [SYSTEM, *CHAT]}, [SYSTEM, *CHAT]),
    ({"conversations": [{"from": "system", "value": "Be brief."}, *SHARE]}, [SYSTEM, *CHAT]),
    ({"system": "Be brief.", "conversations": SHARE}, [SYSTEM, *CHAT]), ({"system": "", "messages": CHAT}, CHAT),
    ({"system": "no", "messages": [SYSTEM, *CHAT]}, [SYSTEM, *CHAT]),
    ({"system": "Be brief.", "instruction": "2+3?", "output": "\\boxed{5}"}, [SYSTEM, *CHAT]),
    ({"instruction": "2+3?", "input": "", "output": "\\boxed{5}"}, CHAT),
    ({"instruction": "Add.", "input": "2+3", "output": "5"}, [{"role": "user", "content": "Add.\n\n2+3"}, {"role": "assistant", "content": "5"}]),
    ({"instruction": "2+3?", "output": "\\boxed{5}", "history": [["1+1?", "2"]]},
     [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}, *CHAT]),
    ({"prompt": "2+3?", "completion": "\\boxed{5}"}, CHAT), ({"prompt": CHAT[:1], "completion": CHAT[1:]}, CHAT),
    ({"problem": "2+3?", "solution": "\\boxed{5}", "answer": "5"}, CHAT), ({"question": "2+3?", "answer": "\\boxed{5}"}, CHAT),
    ({"messages": None, "question": "2+3?", "answer": "\\boxed{5}"}, CHAT)])
def test_the_forms_of_a_pair(tmp_path, row, turns):
    assert read(tmp_path, row) == [turns]


def test_a_list_or_lines_whatever_the_ending(tmp_path):
    rows = [{"id": "x", "messages": CHAT}, {"conversations": SHARE}]
    for name, text in (("a.jsonl", json.dumps(rows)), ("b.json", "\n\n".join(map(json.dumps, rows))), ("c.txt", json.dumps(rows, indent=1))):
        (tmp_path / name).write_text(text)
        assert pairs.read_pairs(str(tmp_path / name)) == [{"id": "x", "messages": CHAT}, {"id": None, "messages": CHAT}]


@pytest.mark.parametrize("row", [
    {}, {"messages": []}, {"messages": CHAT[:1]}, {"messages": CHAT[::-1]}, {"messages": "2+3"}, {"messages": [{"role": "user"}]},
    {"messages": 3}, {"messages": [{"role": "user", "content": 5}, CHAT[1]]}, {"question": "2+3?"}, {"instruction": 3, "output": "x"},
    {"conversations": [{"from": "robot", "value": "x"}, *SHARE]}, {"messages": [*CHAT, CHAT[1]]}, {"text": "2+3?"},
    {"prompt": "2+3?", "completion": ["5"]}, {"instruction": "a", "output": "b", "history": [["only one"]]}])
def test_other_pairs_are_refused_with_their_row(tmp_path, row):
    with pytest.raises(UserError, match="--pairs .*p.json row 2: expected messages") as caught:
        read(tmp_path, {"messages": CHAT}, row)
    assert "\n" not in str(caught.value)


def test_pairs_without_an_answer_are_left_out_and_counted(tmp_path, capsys):
    empty = [{"question": "2+3?", "answer": text} for text in ("", " \n", None)] + [{"question": " ", "answer": "5"}]
    assert read(tmp_path, *empty, {"messages": CHAT}) == [CHAT]
    assert "4 of 5 pairs left out: no question or no answer" in capsys.readouterr().out
    for rows in (empty, []):
        with pytest.raises(UserError, match="expected at least one pair with an answer"):
            read(tmp_path, *rows)


def test_pairs_that_are_tested_on_are_left_out(capsys):
    def pair(*questions):
        turns = [({"role": "user", "content": text}, {"role": "assistant", "content": "!"}) for text in questions]
        return {"id": None, "messages": list(itertools.chain(*turns))}
    tests = [{"problem": "What is $2 + 3$?"}, {"problem": "What is 9?"}]
    given = [pair("What is \\(2+3\\)?\nReason step by step."), pair("What is 2-3?"), pair("Why?"), pair("What is 2+3?", "Sure?"),
             pair("What is 2+35?")]
    assert pairs.untested(given, tests) == [given[1], given[2], given[4]]
    assert "5 pairs, 2 of them left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="every pair holds a question that is tested on"):
        pairs.untested(given[:1], tests)


TURNS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
DROPS = "{% for m in messages if m['role'] != 'system' %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
ALTERNATES = ("{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
              "{% endif %}{% endfor %}" + TURNS)


@pytest.fixture
def student(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    def make(template):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
        tokenizer.chat_template = template
        folder = tmp_path / f"student {hash(template)}"
        tokenizer.save_pretrained(folder)
        return str(folder)
    return make


@pytest.mark.parametrize("template, taken", [(TURNS, True), (REFUSES, False), (DROPS, False), (ALTERNATES, False)])
def test_a_system_turn_is_asked_one_way_or_the_other(student, template, taken, capsys):
    given = [{"id": 0, "messages": [SYSTEM, *CHAT]}, {"id": 1, "messages": CHAT}]
    before = [{"role": "user", "content": "Be brief.\n\n2+3?"}, CHAT[1]]
    assert [pair["messages"] for pair in pairs.fit_template(given, student(template))] == [[SYSTEM, *CHAT] if taken else before, CHAT]
    assert f"{0 if taken else 1} system turns put before the question" in capsys.readouterr().out


def test_what_the_template_refuses_is_refused_before_anything_is_loaded(student, tmp_path):
    twice = [{"id": 0, "messages": CHAT}, {"id": 1, "messages": [CHAT[0], *CHAT]}]
    with pytest.raises(UserError, match="pair 2 of those left .*roles must alternate"):
        pairs.fit_template(twice, student(ALTERNATES))
    with pytest.raises(UserError, match="no chat template"):
        pairs.fit_template(twice, student(None))
    with pytest.raises(UserError, match="--chat-template-kwargs"):
        pairs.fit_template(twice, student(TURNS), "no JSON")
    with pytest.raises(UserError, match="--student .* can't be loaded"):
        pairs.fit_template(twice, str(tmp_path))


def test_the_screen_recognises_respelt_questions_of_math():
    if not os.environ.get("REAL_DATA"):
        pytest.skip("REAL_DATA names no folder with the real sets")
    tests = common.load(f"{os.environ['REAL_DATA']}/math", "test")
    texts = [row["problem"].replace("\\frac", "\\dfrac").replace("-", "−").replace("\\left", "") for row in tests]
    given = [{"id": i, "messages": [{"role": "user", "content": f"{text}\n\nThink."}, CHAT[1]]} for i, text in enumerate(texts)]
    with pytest.raises(UserError, match="every pair"):
        pairs.untested(given, tests)


def test_a_template_gets_its_keywords(student):
    given, template = [{"id": 0, "messages": [SYSTEM, *CHAT]}], student("{% if brief %}" + TURNS + "{% endif %}")
    assert len(pairs.fit_template(given, template, '{"brief": true}')[0]["messages"]) == 3
    assert len(pairs.fit_template(given, template)[0]["messages"]) == 2  # this template drops all


def test_flags_of_the_teacher_are_refused():
    unused = {"--" + name.replace("_", "-") for name in pairs.UNUSED}
    known = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(pairs.Args)}
    assert unused < known and {flag for flag in known if "teacher" in flag} < unused and "--chat-template-kwargs" not in unused
    for given in ({"teacher": "gpt"}, {"plan": True}, {"arms": ("base",)}):
        with pytest.raises(UserError, match=f"--{next(iter(given))}: nothing here uses it"):
            pairs.main(pairs.Args(pairs="x", **given))
