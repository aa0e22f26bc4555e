"""The toy world: its problems can be read back, its checker misses no spoilt step, its teacher errs as often as it says."""
import doctest
import random
import re

import pytest

import common
import stat_sel
from toyworld import prm, teacher, world
from toyworld import problems as toy
from toyworld.student import draw_problem, solution


def draws(n, seed=0):
    rng = random.Random(seed)
    return [draw_problem(rng, 1.0, 0.3) for _ in range(n)]


def test_doctests():
    assert doctest.testmod(toy) == doctest.testmod(prm) == doctest.TestResults(failed=0, attempted=1)


def test_there_are_skills_enough():
    assert len(toy.SKILLS) >= 10 and len({skill.subject for skill in toy.SKILLS}) == 3
    assert any(len(problem.parts) == 2 for problem in draws(100)) and {toy.level(problem) for problem in draws(2000)} == {1, 2, 3, 4, 5}
    assert all(len(skill.nouns) > 1 for skill in toy.SKILLS)


def test_every_text_is_read_back_as_what_it_was_made_from():
    for problem in draws(3000):
        assert toy.read(problem.text) == problem
    for text in ("What is love?", "Let t be 3+4. Find 5+6.", "Find t+3.", "", "Find 3+4. Find 5+6."):
        assert toy.read(text) is None


def test_every_worked_solution_is_right_by_another_computation():
    """The value of each part, computed anew from its phrase alone."""
    import math
    naive = {
        "addition": lambda a, b: a + b, "subtraction": lambda a, b: a - b, "multiplication": lambda a, b: a * b,
        "perimeters": lambda a, b: 2 * a + 2 * b, "remainders": lambda a, b: a % b, "greatest common divisors": math.gcd,
        "digit sums": lambda a: sum(map(int, str(a))), "digit products": lambda a: math.prod(map(int, str(a))),
        "sequences": lambda a, b, c: c + (b - a), "function values": lambda a, b, c: a * c + b,
        "linear equations": lambda a, b, c: (c + b) * a, "distances": lambda a, b: abs(a - b), "areas": lambda a, b: a * b,
        "sums of three": lambda a, b, c: a + b + c, "digit differences": lambda a: abs(a // 10 - a % 10), "doubling": lambda a, b: 2 * a + b,
        "falling sequences": lambda a, b, c: 2 * c - b, "brackets": lambda a, b, c: a * (b + c), "missing addends": lambda a, b: a - b}
    for problem in draws(3000):
        value = None
        for part in problem.parts:
            value = naive[part.skill.name](*(value if n is None else n for n in part.numbers))
        assert toy.solve(problem)[1] == str(value)
        for style in range(len(toy.STYLES)):
            text = solution(problem, style)
            assert common.score(text, str(value)) is True
            found = toy.check(problem, text)
            assert found["is_right"] and found["missing"] is None and all(is_right for _, is_right in found["steps"])


def test_a_spoilt_step_is_found_and_laid_to_the_right_skill():
    rng = random.Random(1)
    for problem in draws(1000, seed=1):
        steps, answer = toy.solve(problem)
        i = rng.randrange(len(steps))
        step, skill = steps[i]
        left, _, right = step.partition("=")
        spoilt = [s for s, _ in steps[:i]] + [f"{left}={int(right) + rng.choice((-2, -1, 1, 2))}"] + [s for s, _ in steps[i + 1:]]
        found = toy.check(problem, toy.write_solution(spoilt, str(int(answer) + 1), 0))
        assert not found["is_right"] and any(not is_right for _, is_right in found["steps"])
        assert found["missing"] == skill or step in [s for s, _ in steps[:i] + steps[i + 1:]]  # or the same step stands there twice
    assert toy.check(draws(1)[0], "I do not know.")["missing"] == draws(1)[0].skills[0]


def ask(prompt, seed=0):
    return teacher.reply(prompt, seed)


def test_the_teacher_is_wrong_as_often_as_it_says():
    n, wrong, malformed = 1500, 0, 0
    for i, problem in enumerate(draws(n, seed=2)):
        text = ask(stat_sel.REWRITE_PROMPT.format(problem=problem.text, solution=solution(problem, 0)), seed=i)
        right = common.score(text, toy.solve(problem)[1])
        wrong, malformed = wrong + (right is False), malformed + (right is None)
    for count, p in ((wrong, teacher.P_WRONG * (1 - teacher.P_MALFORMED)), (malformed, teacher.P_MALFORMED)):
        assert abs(count - n * p) < 4 * (n * p * (1 - p)) ** 0.5


def test_the_teacher_labels_and_diagnoses():
    names = list(toy.BY_NAME)
    problem = toy.read("Let t be 12+7. Find the digit sum of t.")
    fields = {"subject": "Number Theory", "problem": problem.text, "skills": "\n".join(names)}
    labels = [stat_sel.read_skills(common.read_tag(ask(stat_sel.LABEL_PROMPT.format(**fields), seed), "skill") or "", "Number Theory", names)[0]
              for seed in range(200)]
    assert labels.count(["Number Theory: addition", "Number Theory: digit sums"]) > 160
    for response, missing in (("12+7=18, 1+8=9. So \\boxed{9}.", "addition"), ("12+7=19, 1+9=11. So \\boxed{11}.", "digit sums"),
                              ("12+7=19, 1+9=10. So \\boxed{10}.", None)):
        found = [stat_sel.read_profile(ask(stat_sel.PROFILE_PROMPT.format(response=response, **fields), seed), "Number Theory", names)
                 for seed in range(200)]
        faults, skills = [row["fault"] for row in found], [row["skills"] for row in found]
        if missing:
            assert 150 < skills.count([f"Number Theory: {missing}"]) < 200 and 0 < faults.count("malformed") < 30
        else:
            assert faults.count("judged correct") > 180


def test_the_teacher_follows_the_request_and_its_seed():
    prompt = stat_sel.REWRITE_PROMPT.format(problem="What is 3+4?", solution="3+4=7. So \\boxed{7}.")
    assert ask(prompt, 1) == ask(prompt, 1) and len({ask(prompt, seed) for seed in range(50)}) > 3


def test_over_http_with_the_openai_client(teacher_url, tmp_path):
    client = common.Teacher("toy", teacher_url, cache=tmp_path / "cache.jsonl")
    row = {"subject": "Prealgebra", "problem": "What is 3+4?", "solution": "3+4=7. So \\boxed{7}."}
    request, = stat_sel.requests(stat_sel.Args(), stat_sel.REWRITE_PROMPT, [row], temperature=1.0)
    first, = client.ask([request])
    assert "\\boxed" in first.text or "{7}" in first.text
    assert common.Teacher("toy", teacher_url, cache=tmp_path / "other.jsonl").ask([request]) == [first]


def test_a_world_holds_what_the_method_needs(small_world):
    train, tests = common.load(str(small_world), "train"), common.load(str(small_world), "test")
    assert len(train) == int(world.N_TRAIN * 0.1) and len(tests) == int((world.N_VAL + world.N_TEST) * 0.1)
    assert not {row["problem"] for row in train} & {row["problem"] for row in tests}
    for row in train + tests:
        assert common.score(row["solution"], row["answer"]) is True and row["skills"] == toy.read(row["problem"]).skills


@pytest.mark.parametrize("flag", ["--help"])
def test_the_command_explains_itself(flag, run_file):
    shown = run_file("-m", "toyworld", flag)
    assert shown.returncode == 0 and "stat_sel" in shown.stdout


def test_marks_of_right_and_spoilt_answers():
    """Every step of a worked solution is right; from the first one that is spoilt, left out or boxed wrongly on, none is."""
    rng = random.Random(2)
    for problem in draws(600, seed=2):
        text, answer = solution(problem, rng.randrange(4)), toy.solve(problem)[1]
        steps = common.split_steps(text)
        assert prm.marks(problem, steps) == [True] * len(steps) and len(steps) == len(toy.solve(problem)[0]) + 2
        i = rng.randrange(len(steps) - 2)
        left, value = re.search(r"(\S+(?: mod \d+)?)=(-?\d+)", steps[i]).groups()
        spoilt = [*steps[:i], steps[i].replace(f"{left}={value}", f"{left}={int(value) + 1}"), *steps[i + 1:]]
        assert prm.marks(problem, spoilt) == [True] * i + [False] * (len(steps) - i)
        left_out = steps[:i] + steps[i + 1:]
        assert not any(prm.marks(problem, left_out)[i:])
        wrong_box = [step.replace(f"{{{answer}}}", f"{{{int(answer) + 1}}}") for step in steps]
        assert prm.marks(problem, wrong_box) == [True] * (len(steps) - 2) + [False] * 2
        assert prm.marks(problem, steps[:-2])[-1] is False  # it stops before the answer
        assert prm.marks(problem, ["I do not know."]) == [False]


def test_the_reward_model_has_learnt_from_the_answers(small_world):
    """The small world's student is nearly always wrong, and its reward model has hardly more to learn than that: with the marks at other places or
    the signs exchanged it would not say so. How good a full-sized one is, stands in the results."""
    model, tokenizer = common.load_4bit(str(small_world / "prm"), "--prm")
    problems, rng = draws(50, seed=3), random.Random(0)
    answers = [(p.text, common.split_steps(solution(rng.choice(problems), rng.randrange(4)))) for p in problems]  # of other problems
    rewards = common.score_steps(model, tokenizer, answers)
    assert [len(found) for found in rewards] == [len(steps) for _, steps in answers] and all(0 < r < 1 for found in rewards for r in found)
    assert sum(found[-1] for found in rewards) / 50 < 0.2
