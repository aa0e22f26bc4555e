"""STAT-Syn's pure functions by hand and against naive versions; what the consistency filter is worth on the toy teacher."""
import doctest
import json
import random
import re
from collections import Counter

import pytest

import common
import stat_sel
import stat_syn
from stat_syn import agreeing, masked, read_question, read_solution, screen
from tests.conftest import ROOT
from toyworld import audit
from toyworld import problems as toy
from toyworld import teacher as toy_teacher
from toyworld.student import draw_problem, solution


def test_doctests():
    assert doctest.testmod(stat_syn).failed == 0 and doctest.testmod(stat_syn).attempted >= 5


@pytest.mark.parametrize("answers, group", [
    (["7", "7", "7"], [0, 1, 2]), (["7", "8", "7"], [0, 2]), (["8", "7", "7"], [1, 2]),
    (["1", "2", "3"], [0]),  # all different: score 1, so the question goes
    ([None, None, None], []), ([], []),  # None agrees with nothing, not even None
    (["1", None, "1"], [0, 2]), ([None, "1", None], [1]), ([None, "1", "2"], [1]),
    (["0.5", "\\frac12", "1/2"], [0, 1, 2]), (["x+1", "1+x", "x-1"], [0, 1]), (["(1,2)", "(2,1)", "(1, 2)"], [0, 2]),
    (["1", "2", "2", "1"], [0, 3]),  # a tie: the first group
    (["1", "2", "2", "1", "2"], [1, 2, 4]),
    (["50", "50\\%", "1/2"], [0, 1]), (["5\\text{ cm}", "5", "5\\text{ m}"], [0, 1])])  # the ends do not agree, though the middle does with both
def test_consistency_score_by_hand(answers, group):
    assert agreeing(answers) == group


def test_consistency_score_against_counting():
    rng = random.Random(0)
    for _ in range(2000):
        answers = [rng.choice([None, "1", "2", "3"]) for _ in range(rng.randint(0, 5))]
        counts = Counter(answer for answer in answers if answer is not None)
        most = max(counts.values(), default=0)
        group = agreeing(answers)
        assert len(group) == most
        if most:
            first = next(answer for answer in answers if answer is not None and counts[answer] == most)
            assert group == [i for i, answer in enumerate(answers) if answer == first]


def test_read_question():
    form = "<reason>r</reason>\n<draft>d</draft>\n<question>{}</question>"
    assert read_question(form.format("\nWhat is 3+4? ")) == {"reason": "r", "draft": "d", "problem": "What is 3+4?", "fault": None}
    assert read_question("<question>What?</question>")["fault"] is None  # nothing is made of reason and draft
    assert read_question(None)["fault"] == "no reply"
    for reply in ("What is 3+4?", "<question>What is 3+4?", "<question> </question>", "", form.replace("question", "problem").format("q")):
        assert read_question(reply)["fault"] == "missing tag", reply
    assert read_question(form.format(r"What is 3+4? \boxed{7}"))["fault"] == "holds an answer"
    assert read_question(form.format("Find x if 2x=4.\n\n**Solution:** x=2."))["fault"] == "holds an answer"
    assert read_question(form.format("Find x if 2x=4.\nAnswer: 2"))["fault"] == "holds an answer"
    assert read_question(form.format("Find x. Give your answer: a whole number."))["fault"] is None
    assert read_question("<draft>The <question> must need it.</draft><question>What is 3+4?</question>")["problem"] == "What is 3+4?"
    assert read_question(form.format("One?") + form.format("Two?"))["problem"] == "Two?"  # a draft of the whole form, then the form


def test_read_solution():
    assert read_solution(r"So \boxed{7}.") == {"response": r"So \boxed{7}.", "answer": "7", "fault": None}
    assert read_solution(r"$\boxed{7}$, that is \boxed{7.0}")["fault"] is None  # the same answer twice
    assert read_solution(r"First \boxed{3}, then \boxed{7}.")["fault"] == "several boxes"
    assert read_solution("It cannot be solved.")["fault"] == "no final answer" and read_solution("")["fault"] == "no final answer"
    assert read_solution("The answer is 7.")["fault"] == "no final answer"  # the student is to learn the box
    assert read_solution(None)["fault"] == "no reply"


@pytest.mark.parametrize("a, b, same", [
    ("What is 3+4?", "What is 12+9?", True), ("What is 3+4?", "what is  $3 + 40$ ?", True),  # other numbers, other spacing
    ("Solve $2x+5=11$ for $x$.", "Solve $7y+2=30$ for $y$.", True), ("If $f(x)=x^2$, find $f(3)$.", "If $g(t)=t^2$, find $g(12)$.", True),
    ("Find 1,000 mod 7.", "Find 12 mod 5.", True), ("Find 2.5+1.", "Find 3+1.75.", True),
    ("What is 3+4?", "What is 3-4?", False), ("What is 3+4?", "What is 3+4+5?", False), ("What is 3+4?", "Find 3+4.", False),
    ("Find $\\sin 30$.", "Find $\\cos 30$.", False), ("Find $\\pi r^2$.", "Find $\\pi s^2$.", True),
    ("Find $\\frac{1}{2}$.", "Find $\\sqrt{2}$.", False)])
def test_a_copy_is_one_up_to_numbers_and_names(a, b, same):
    assert (masked(a) == masked(b)) is same


BOILER = "The answer can be written as m/n where m and n are relatively prime positive integers. Find m+n."
LONG = "A train leaves the city of Bern at nine in the morning and arrives in Basel one hour later with 80 people."
POOL = [{"id": "p1", "problem": "What is 3+4?"}, {"id": "p2", "problem": "Find the sum of 5 and 6."}, {"id": "p3", "problem": "Find 8 mod 3."}]


def new(problem, arm="stat", references=("p1",), fault=None):
    return {"arm": arm, "problem": problem, "references": list(references), "fault": fault}


@pytest.mark.parametrize("row, why, matched", [
    (new("What is 9+5?"), "copy of a question read", "What is 3+4?"),
    (new("What is 9+5?", references=["p2", "p1"]), "copy of a question read", "What is 3+4?"),
    (new("What is 9+5?", references=["p2", "p3"]), None, None),  # like p1 but for its numbers, and p1 was not read
    (new("find  the SUM of $5$ and $6$"), "in P", "Find the sum of 5 and 6."),
    (new("Find the sum of 5 and 7."), None, None),
    (new("How much is 7*8?"), "in a test set", "How much is 7*8?"), (new("how much is $7 * 8$"), "in a test set", "How much is 7*8?"),
    (new("How much is 7+8?"), None, None), (new("How much is 7*8 plus one?"), None, None),  # short questions count as a whole
    (new("Today a train leaves the city of Bern at nine in the morning and arrives in Lausanne."), "in a test set", LONG),
    (new("A train leaves the city of Bern at nine in the evening, and arrives in Basel one hour later with 80 people."), None, None),  # 11, 9 words
    (new(f"A coin is thrown four times, and six dice are rolled at once; how likely are two heads and three sixes to come up? {BOILER}"), None, None),
    (new(None, fault="missing tag"), "missing tag", None)])
def test_novelty_and_decontamination(row, why, matched):
    other = f"Two of the twelve children in a class are twins. They sit down in a row by chance; how likely do the twins sit side by side? {BOILER}"
    tests = [{"problem": "How much is 7*8?"}, {"problem": LONG}, {"problem": other}]
    kept, dropped = screen([row], POOL, tests)
    assert (kept, dropped) == (([row], []) if why is None else ([], [row | {"dropped": why, "matched": matched}]))


def test_a_question_is_new_once_in_an_arm():
    rows = [new("How many are 2 and 2?"), new("how many are $2$ and $2$?"), new("How many are 2 and 2?", arm="embed"), new("How many are 2 and 3?")]
    kept, dropped = screen(rows, POOL, [])
    assert kept == [rows[0], rows[2], rows[3]]
    assert dropped == [rows[1] | {"dropped": "written before", "matched": "How many are 2 and 2?"}]


def test_decontamination_against_a_naive_search():
    rng = random.Random(0)
    words = ["ab", "cd", "ef", "gh", "ij", "3"]
    found = Counter()
    for _ in range(400):
        test, fresh = (" ".join(rng.choice(words) for _ in range(rng.randint(3, 30))) for _ in range(2))
        if rng.random() < 0.5:  # plant a part of the one in the other
            at, n = rng.randrange(len(test.split())), rng.randint(10, 28)
            fresh = " ".join([*fresh.split()[:5], *test.split()[at:at + n], *fresh.split()[5:]])
        a, b = test.split(), fresh.split()
        mine, theirs = ({tuple(text[i:i + 13]) for i in range(len(text) - 12)} for text in (b, a))
        n = len(mine & theirs)
        shared = a == b or n > 0 and n >= min(len(mine), len(theirs)) / 2
        assert (common.leaked([fresh], [test])[0] == test) is shared
        found[shared] += 1
    assert min(found.values()) > 20


def test_of_two_test_questions_that_are_given_away_alike_the_first_is_named():
    """Not the one that a set of strings, whose order is another in each process, happens to have first."""
    words = [chr(97 + i // 6) + chr(97 + i % 6) for i in range(40)]
    new, *tests = (" ".join(part) for part in (words, words[:25], words[10:35], words[12:37]))
    assert list(common.windows(new)) == [" ".join(words[i:i + 13]) for i in range(28)]
    assert common.leaked([new], tests) == tests[:1] and common.leaked([new], tests[::-1]) == tests[:1]


def test_train_and_test_overlap_of_real_math(real_data):
    """194 of 7,500 train questions give a test question away; 640 share 13 words in a row with one, most of them what many questions say."""
    train, tests = ([row["problem"] for row in common.load(f"{real_data}/math", split)] for split in ("train", "test"))
    marks = {mark for text in tests for mark in common.windows(text)}
    assert sum(not marks.isdisjoint(common.windows(text)) for text in train) == 640
    assert sum(map(bool, common.leaked(train, tests))) == 194
    respelt = [text.replace("\\frac", "\\dfrac").replace("-", "−").replace("\\left", "") for text in tests]
    assert all(common.leaked(tests, tests)) and all(common.leaked(respelt, tests))


def test_references_are_drawn_for_every_missing_skill():
    rng, skills = random.Random(0), [f"S: {i}" for i in range(8)]
    labels = {f"q{i}": rng.sample(skills[:7], rng.randint(0, 3)) for i in range(120)} | {"only": ["S: few"]}
    skill_map = stat_sel.invert(labels)
    profile = {f"v{i}": rng.sample([*skills, "S: few"], rng.randint(1, 3)) for i in range(200)}
    groups = stat_syn.draw_references(profile, skill_map, 3, random.Random(1))
    no_question = "S: 7"
    assert [(g["for"], g["skill"]) for g in groups] == [(q, s) for q, missing in profile.items() for s in missing if s != no_question]
    for group in groups:
        ids = group["references"]
        assert len(set(ids)) == len(ids) == (1 if group["skill"] == "S: few" else 3) and all(group["skill"] in labels[i] for i in ids)
    count = Counter(i for g in groups if g["skill"] == "S: 0" for i in g["references"])
    expected = sum(count.values()) / len(skill_map["S: 0"])
    assert set(count) <= set(skill_map["S: 0"]) and max(count.values()) < 6 * expected + 6


def test_neighbours_are_taken_in_turn():
    nearest = {q: [f"{q}{i}" for i in range(5)] for q in "abc"}
    groups = stat_syn.draw_neighbours(nearest, 7, 3, random.Random(0))
    assert sorted(Counter(g["for"] for g in groups).values()) == [2, 2, 3]
    assert all(len(set(g["references"])) == 3 and set(g["references"]) <= set(nearest[g["for"]]) for g in groups)
    assert len({tuple(sorted(g["references"])) for g in groups}) > 3  # not always the same three of the five
    assert [g["skill"] for g in groups] == [None] * 7 and stat_syn.draw_neighbours({}, 3, 3, random.Random(0)) == []


class Asked:
    """A teacher that answers by (sample): what each attempt gets."""
    def __init__(self, replies):
        self.replies, self.calls = replies, []

    def ask(self, requests, step, max_none=None, reads=None):
        self.calls.append((step, [request.sample for request in requests]))
        return [None if (text := self.replies[request.sample]) is None else common.Reply(text, 1, 1) for request in requests]


def test_a_malformed_reply_is_asked_for_once_more(capsys):
    teacher = Asked({0: r"\boxed{1}", 1: "what?", 2: None, -2: r"\boxed{2}", -3: "no idea"})
    rows = stat_syn.ask_twice(teacher, [common.Request([], sample=i) for i in range(3)], read_solution, "5 solve")
    assert teacher.calls == [("5 solve", [0, 1, 2]), ("5 solve, 2nd attempt", [-2, -3])]
    assert [(row["answer"], row["fault"], row.get("first_fault")) for row in rows] == [
        ("1", None, None), ("2", None, "no final answer"), (None, "no final answer", "no reply")]
    assert "asked again for {'no final answer': 1, 'no reply': 1}; given up: {'no final answer': 1}" in capsys.readouterr().out
    calm = Asked({0: r"\boxed{1}"})
    assert "first_fault" not in stat_syn.ask_twice(calm, [common.Request([])], read_solution, "5 solve")[0] and len(calm.calls) == 1


def test_the_same_references_twice_are_two_samples_not_one():
    rows = {i: {"id": i, "subject": "S", "problem": f"{i}?", "solution": f"{i}!"} for i in "abc"}
    group = {"arm": "stat", "for": "v1", "skill": "S: x", "references": ["a", "b", "c"]}
    groups = [group, group | {"for": "v2"}, group | {"references": ["b", "a", "c"]}, group | {"arm": "shuffled"},
              group | {"arm": "embed", "skill": None}]
    asked = stat_syn.writing(stat_syn.Args(n_new=2), groups, list(rows.values()))
    assert [request.sample for request in asked] == [0, 1, 2, 3, 0, 1, 0, 1, 0, 1]
    text = asked[0].messages[0]["content"]
    assert all(f"<problem>\n{i}?\n</problem>\n\n<solution>\n{i}!\n</solution>" in text for i in "abc")
    assert "S: x" in text and "problems from S, each" in text
    two = stat_syn.writing(stat_syn.Args(), [group], list((rows | {"b": rows["b"] | {"subject": "T"}}).values()))[0].messages[0]["content"]
    assert "problems from S and T, each" in two
    assert "<skill>" not in asked[-1].messages[0]["content"] and asked[0].messages == asked[6].messages


def test_defaults_are_the_papers():
    args = stat_syn.Args()
    assert (args.n_references, args.n_new, args.n_solutions, args.min_agreeing, args.n_pairs, args.n_nearest) == (3, 2, 3, 2, 9500, 5)


# --- The toy teacher as a writer and a solver. ------------------------------------------------------------------------------------------------
def write_toy(n=1500, seed=0):
    """n proposals: the references read, the skill asked for, the reply as it was read."""
    rng, out = random.Random(seed), []
    problems = [draw_problem(rng, 1.0, 0.2) for _ in range(3000)]
    skills = sorted({f"{p.parts[-1].skill.subject}: {name}" for p in problems for name in p.skills})
    by_skill = {skill: [p for p in problems if skill in {f"{p.parts[-1].skill.subject}: {name}" for name in p.skills}] for skill in skills}
    rows = {p.text: {"id": p.text, "subject": p.parts[-1].skill.subject, "problem": p.text, "solution": solution(p, 0)} for p in problems}
    for i in range(n):
        skill = rng.choice(skills)
        group = {"arm": "stat", "for": "v", "skill": skill, "references": [p.text for p in rng.sample(by_skill[skill], 3)]}
        prompt = stat_syn.writing(stat_syn.Args(n_new=1), [group], list(rows.values()))[0].messages[0]["content"]
        out.append(group | read_question(toy_teacher.reply(prompt, i)))
    return out, list(rows.values())


def near(count, n, p):
    return abs(count - n * p) < 4 * (n * p * (1 - p)) ** 0.5 + 0.02 * n


def test_the_toy_teacher_writes_new_problems_of_the_asked_skill():
    written, pool = write_toy()
    n = len(written)
    assert near(sum(row["fault"] == "missing tag" for row in written), n, toy_teacher.P_MALFORMED)
    kept, dropped = screen(written, pool, [])
    why = Counter(row["dropped"] for row in dropped)
    assert near(why["copy of a question read"], n, toy_teacher.P_COPY)
    read = [(row, toy.read(row["problem"])) for row in kept]
    unsolvable = sum(problem is None for _, problem in read)
    assert near(unsolvable, n, toy_teacher.P_UNSOLVABLE)
    off = sum(problem is not None and row["skill"].partition(": ")[2] not in problem.skills for row, problem in read)
    assert near(off, n, toy_teacher.P_OFF_SKILL)
    for row, problem in read:  # other phrasing or structure than everything read, which is what novelty asks for
        assert not any(re.sub(r"\d+", "0", row["problem"]) == re.sub(r"\d+", "0", text) for text in row["references"]), row
        assert problem is None or len(problem.parts) in (1, 2)
    subjects = [(row["skill"].partition(": ")[0], problem.parts[-1].skill.subject) for row, problem in read if problem]
    assert sum(a == b for a, b in subjects) > 0.93 * len(subjects)


def test_the_consistency_filter_raises_the_share_of_right_answers():
    """On the toy teacher, which slips in a fifth of its solutions: from about 73 % of all solutions to about 94 % of those kept. What stays wrong are
    slips that two solutions share, and guesses at what can't be solved that happen to agree."""
    written, pool = write_toy(n=900, seed=1)
    new_rows, _ = screen(written, pool, [])
    before, after, scores = Counter(), Counter(), Counter()
    for row in new_rows:
        problem = toy.read(row["problem"])
        prompt = stat_syn.SOLVE_PROMPT.format(problem=row["problem"])
        solutions = [read_solution(toy_teacher.reply(prompt, seed)) for seed in range(3)]
        is_right = [problem is not None and one["answer"] == toy.solve(problem)[1] for one in solutions]
        before.update(is_right)
        group = agreeing([None if one["fault"] else one["answer"] for one in solutions])
        scores[len(group)] += 1
        if len(group) >= 2:
            after.update(is_right[i] for i in group)
    share = {name: 100 * c[True] / c.total() for name, c in (("before", before), ("after", after))}
    assert 69 < share["before"] < 77 and 91 < share["after"] < 97 and share["after"] - share["before"] > 15, share
    assert min(scores[n] for n in (1, 2, 3)) > 0.05 * len(new_rows), scores


def test_the_audit_by_hand(tmp_path):
    """Three questions of addition: one solved rightly by two of three, one wrongly by all, one that can't be solved; and one of another skill."""
    problems = ["Find 3+4.", "Find 5+6.", "Find t+6.", "Find 3*40.", "Find 1+1."]
    answers = [["7", "7", "8"], ["12", "12", "12"], ["1", "2", None], ["120", "120", "120"], ["2", "2", "2"]]
    (tmp_path / "5_written.jsonl").write_text("".join(json.dumps(
        {"id": f"stat/{i}", "arm": "stat", "skill": "Prealgebra: addition", "problem": text}) + "\n" for i, text in enumerate(problems)))
    (tmp_path / "5_solutions.jsonl").write_text("".join(json.dumps(
        {"id": f"stat/{i}", "answer": answer, "fault": None if answer else "no final answer"}) + "\n" for i in range(4) for answer in answers[i]))
    (tmp_path / "dropped.jsonl").write_text(json.dumps({"id": "stat/2", "dropped": "inconsistent"}) + "\n"
                                            + json.dumps({"id": "stat/4", "dropped": "in P"}) + "\n")
    counts = audit.count(tmp_path)
    assert counts == {"stat": {"before": [5, 11], "after": [5, 8], "on_skill": [2, 3]}}
    assert audit.table([counts]).splitlines()[-1] == "| stat | 11 | 45.5 | 62.5 | +17.0 | 66.7 |"


@pytest.mark.parametrize("path", ["nowhere.json", "tests", "results/toy_stat_syn.json", "results/scorer.json"])
def test_the_audit_refuses_what_is_no_run(path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["audit", str(ROOT / path)])
    assert audit.main() == 2 and capsys.readouterr().err.startswith("error: ")


def test_the_toy_teacher_plays_its_part_on_real_problems():
    rows = {i: {"id": i, "subject": "Algebra", "problem": f"Solve the equation $x^{i}={i}$.", "solution": "$\\boxed{1}$"} for i in "345"}
    group = {"arm": "embed", "for": "v", "skill": None, "references": list("345")}
    reply = toy_teacher.reply(stat_syn.writing(stat_syn.Args(), [group], list(rows.values()))[0].messages[0]["content"], 0)
    problem = read_question(reply)["problem"]
    assert screen([group | {"problem": problem, "fault": None}], list(rows.values()), [])[0]
    answers = [read_solution(toy_teacher.reply(stat_syn.SOLVE_PROMPT.format(problem=problem), seed))["answer"] for seed in range(3)]
    assert len(agreeing(answers)) >= 2
