"""What hypothesis makes up: no exception but a UserError, no hang, equality both ways. `make faults` tries many more."""
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import common
from tests.bad_server import BadServer
from tests.started import KILLS

MANY = 50 if KILLS == 3 else 4000
settings.register_profile("ours", max_examples=MANY, deadline=4000, derandomize=KILLS == 3, print_blob=True, database=None,
                          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
settings.load_profile("ours")

MATHS = r"""\boxed{ ~ \fbox  ~ } ~ { ~ \frac ~ \dfrac{1}{ ~ \sqrt{ ~ \text{ cm ~ \left( ~ \right] ~ \pi ~ \cup ~ \begin{pmatrix} ~ \end{pmatrix} ~ &
\\ ~ ^ ~ _ ~ ^{\circ} ~ \% ~ \$ ~ $ ~ ( ~ ) ~ [ ~ ] ~ , ~ ; ~ and ~ or ~ = ~ < ~ \le ~ + ~ - ~ * ~ / ~ . ~ x ~ y ~ i ~ e ~ 0 ~ 1 ~ 2 ~ 10 ~ 1,000 ~
3.50 ~ 1/2 ~ A ~ \infty ~ \pm ~ ! ~ | ~ \cdot ~ #### ~ answer is """
MATHS = [piece for line in MATHS.splitlines() for piece in line.split(" ~ ")] + ["\n", "\n\n", " "]
TAGS = ["<skill>", "</skill>", "<Skill >", "<", ">", "/", "`", "\n", "a, b"]
FIELDS = ["problem", "solution", "answer", "question", "level", "subject", "skills", "id"]
answers = st.lists(st.sampled_from(MATHS), min_size=1, max_size=8).map("".join)
texts = st.lists(st.sampled_from(MATHS) | st.text(max_size=6), max_size=30).map("".join)
values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3), max_leaves=8)


@pytest.fixture(autouse=True, scope="module")
def algebra():
    """Its process takes seconds to start on a busy machine, once; the limit of an example is for the example."""
    assert common.is_equiv("(x+1)^2", "x^2+2x+1")


@given(texts)
@settings(max_examples=1000 if KILLS == 3 else 10_000)
def test_an_answer_is_found_or_not(text):
    found = common.extract_answer(text)
    assert found is None or isinstance(found, str)
    assert common.score(text, "12") in (True, False, None)
    assert (found is None) == (common.score(text, "12") is None)


@given(answers, answers)
@settings(max_examples=1000 if KILLS == 3 else 10_000)
def test_equality_holds_both_ways(a, b):
    assert common.is_equiv(a, b) == common.is_equiv(b, a)
    assert common.is_equiv(a, a) or not a.strip()


@given(texts)
def test_a_cut_answer_is_a_beginning(text):
    cut = common.cut_run_on(text)
    assert text.startswith(cut) and common.cut_run_on(cut) == cut


@given(st.lists(st.sampled_from(TAGS) | st.text(max_size=5), max_size=12).map("".join))
def test_tags_hold_what_stands_between_them(text):
    assert all(found in text for found in common.read_tags(text, "skill"))
    assert common.read_tag(text, "skill") in (None, *common.read_tags(text, "skill"))


@given(values, st.dictionaries(st.sampled_from(["choices", "usage", "error", "id"]), values), st.integers(0, 200))
def test_a_completion_is_one_or_a_value_error(value, fields, cut):
    for body in (json.dumps(value), json.dumps(fields), json.dumps({"choices": [{"message": value, "finish_reason": "stop"}]})):
        for raw in (body.encode(), body.encode()[:cut]):
            try:
                row = common.read_completion(raw)
            except ValueError:
                continue
            reply, none = common.read_row(row | {"n_in": 1, "n_out": 1, "max_tokens": 9, "estimated": False})
            assert isinstance(reply.text, str) and none in (None, "cut off", "empty", "refused")


@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), values), min_size=1, max_size=3))
def test_rows_are_read_or_refused_in_a_sentence(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        found = common.load(str(path))
    except common.UserError as error:
        assert "rows.jsonl" in str(error) and "\n" not in str(error)
    else:
        assert all(isinstance(row["problem"], str) and isinstance(row["answer"], str) for row in found)


@given(st.text(max_size=20) | values.map(json.dumps))
def test_template_arguments_are_set_or_refused(text):
    try:
        head = common.template_head(text)
    except common.UserError:
        return
    import jinja2
    jinja2.Environment().from_string(head)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "teacher.sqlite"
    with BadServer() as server:
        common.Teacher("m", server.url, path).ask([common.Request([{"role": "user", "content": f"question {i}"}]) for i in range(20)])
    return path.read_bytes()


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=30))
@settings(max_examples=MANY // 4)
def test_a_cache_with_flipped_bytes_is_used_or_refused_in_a_sentence(cache, tmp_path, flips):
    raw = bytearray(cache)
    for at, byte in flips:
        raw[at % len(raw)] = byte
    path = tmp_path / "flipped.sqlite"
    path.write_bytes(raw)
    requests = [common.Request([{"role": "user", "content": f"question {i}"}]) for i in range(20)]
    try:
        with BadServer() as server:
            replies = common.Teacher("m", server.url, path).ask(requests)
    except common.UserError as error:
        assert "flipped.sqlite" in str(error)
    else:
        assert all(reply is None or isinstance(reply.text, str) for reply in replies)
    finally:
        path.unlink()
