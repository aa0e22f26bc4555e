"""The toy world: its problems can be read back, its checker misses no spoilt step, its teacher errs as often as it says."""
import doctest
import json
import random
import re
import sys

import pytest
import torch
from safetensors.torch import load_file

import active_loop
import common
import stat_sel
import toyworld.__main__
from toyworld import READY, deduction, demonstrations, prm, teacher, world
from toyworld import problems as toy
from toyworld.student import WEAK, draw_problem, solution


def draws(n, seed=0):
    rng = random.Random(seed)
    return [draw_problem(rng, 1.0, 0.3) for _ in range(n)]


def test_doctests():
    assert doctest.testmod(toy) == doctest.testmod(prm) == doctest.testmod(demonstrations) == doctest.TestResults(failed=0, attempted=1)


def test_the_checkpoints_that_come_with_the_code_belong_to_it():
    """Made by other code they would be another world's: `python -m toyworld.world` makes them anew, in five minutes."""
    made = READY / world.world_name(0, stat_sel.STUDENT_PROMPT)
    assert [path.name for path in READY.iterdir()] == [made.name] and {path.name for path in made.iterdir()} == {"student", "prm"}


def test_a_checkpoint_that_comes_with_the_code_is_copied(tmp_path):
    assert (READY / world.world_name(0, stat_sel.STUDENT_PROMPT)).is_dir()  # else it would be trained here
    made = world.make_world(tmp_path, 0, stat_sel.STUDENT_PROMPT)
    for name in ("student", "prm"):  # the same numbers, in float32
        kept, copied = (load_file(root / made.name / name / "model.safetensors") for root in (READY, tmp_path))
        assert kept.keys() == copied.keys() and {weight.dtype for weight in copied.values()} == {torch.float32}
        assert all(torch.equal(kept[key].float(), copied[key]) for key in kept)
        files = [{path.name: path.read_bytes() for path in (root / made.name / name).glob("*token*")} for root in (READY, tmp_path)]
        assert files[0] == files[1] and json.loads((tmp_path / made.name / name / "config.json").read_text())["dtype"] == "float32"
    assert len(common.load(str(made), "test")) == world.N_VAL + world.N_TEST


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
        others = [toy._unturned(s) for s, _ in steps[:i] + steps[i + 1:]]
        assert found["missing"] == skill or toy._unturned(step) in others  # the same step stands there twice
    assert toy.check(draws(1)[0], "I do not know.")["missing"] == draws(1)[0].skills[0]


def test_a_sum_or_product_may_be_turned_round_and_nothing_else():
    for problem in draws(500):
        steps, answer = toy.solve(problem)
        turned = [re.sub(r"^(\d+)([+*])(\d+)=", r"\3\2\1=", step) for step, _ in steps]
        assert toy.check(problem, toy.write_solution(turned, answer, 1))["missing"] is None
    problem = toy.read("Find 12-7.")
    assert toy.check(problem, "12-7=5. \\boxed{5}")["missing"] is None and toy.check(problem, "7-12=-5. \\boxed{5}")["missing"] == "subtraction"
    assert toy.check(toy.read("What is 12+7?"), "7+11=18, so \\boxed{19}")["missing"] == "addition"


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


# --- Deduction. -------------------------------------------------------------------------------------------------------------------------------
def chains(n, seed=0):
    rng = random.Random(seed)
    return [deduction.make(rng, depth) for _ in range(n) for depth in deduction.DEPTHS]


def test_chains_are_read_back_and_decided_as_by_saturation():
    """Another computation: every rule is applied to all that is known until nothing new follows."""
    answers = set()
    for problem in chains(300):
        assert deduction.read(problem.text) == problem
        known, rules = {f"a {problem.start}"}, re.findall(r"(?:Every|Each) (\w+) is ([\w ]+)\.", problem.text)
        for _ in rules:
            known |= {what for kind, what in rules if f"a {kind}" in known}
        holds, fails = problem.trait in known, f"not {problem.trait}" in known
        steps, answer = deduction.solve(problem)
        assert holds != fails and answer == str(holds)
        assert deduction.level(problem) == len(known) - 1 == len(steps) - 1
        text = deduction.write_solution(steps, answer)
        assert common.score(text, answer) is True and common.score(text, str(not holds)) is False and deduction.is_right(problem, text)
        said = deduction.recite(problem, random.Random(0))
        assert sorted(re.findall(r"Every (\w+) is ([\w ]+)\.", said)) == sorted(rules)
        answers.add(answer)
    assert answers == {"True", "False"}
    for text in ("", "What is 3+4?", "Every cat is a dog. Max is a cat. True or false: Max is red?", "Max is a cat. True or false: Max is red?",
                 "Every cat is red. Every cat is not red. Max is a cat. True or false: Max is red?",
                 "Every cat is red. Max is a cat. True or false: Rex is red?"):
        assert deduction.read(text) is None


def test_neither_claim_nor_rules_alone_tell_the_answer():
    problems = chains(2000)
    for guess in (lambda p: True, lambda p: p.text.find(" is not ") > p.text.find(f" is {p.trait}.")):  # which of the two last rules comes first
        share = sum(str(guess(p)) == deduction.solve(p)[1] for p in problems) / len(problems)
        assert abs(share - 0.5) < 0.02


def test_the_teacher_of_deduction_errs_as_often_as_it_says():
    problems, slips, same, undecided, deeper = chains(300, seed=1), 0, 0, 0, 0
    for i, problem in enumerate(problems):
        solved = active_loop.read_solution(ask(active_loop.SOLVE_PROMPT.format(problem=problem.text), i))
        slips += solved["answer"] not in (None, deduction.solve(problem)[1])
        found = active_loop.read_question(ask(active_loop.NEW_PROMPT.format(problem=problem.text), i))["problem"]
        same, new = same + (found == problem.text), deduction.read(found or "")
        undecided += found is not None and new is None
        deeper += new is not None and deduction.level(new) > deduction.level(problem)
    n = len(problems) * (1 - teacher.P_MALFORMED)
    for count, p in ((slips, teacher.P_SLIP_DEDUCTION), (same, teacher.P_COPY), (undecided, teacher.P_UNSOLVABLE)):
        assert abs(count - n * p) < 4 * (n * p * (1 - p)) ** 0.5
    assert 0.1 * n < deeper < 0.2 * n
    right = deduction.write_solution(*deduction.solve(problems[0]))
    marks = [ask(active_loop.JUDGE_PROMPT.format(problem=problems[0].text, response=right), i) for i in range(99)]
    assert sum("9" in mark or "8" in mark or "10" in mark for mark in marks) > 80


# --- Demonstrations. --------------------------------------------------------------------------------------------------------------------------
def test_experts_are_right_in_a_style_of_their_own():
    for problem in draws(500, seed=4):
        text, (steps, answer) = demonstrations.expert_solution(problem), toy.solve(problem)
        assert common.score(text, answer) is True and len(text.split("; ")) == len(steps) + 1 and "=" not in text
        for said, (step, _) in zip(text.split("; "), steps, strict=False):
            left, _, right = said.partition(" is ")
            assert toy.step_is_true(f"{left}={right}") and step.endswith(f"={right}")


def test_held_out_words_are_the_last_of_a_skills_phrasings():
    for text, held_out in (("What is 3+4?", False), ("What is 3 plus 4?", True), ("Let t be 3 plus 4. Find the digit sum of t.", True),
                           ("Find the sum of the digits of 38.", True), ("Let t be the sum of 3 and 4. Find the digit sum of t.", False)):
        assert demonstrations.in_held_out_words(toy.read(text)) is held_out
    shares = [demonstrations.in_held_out_words(problem) for problem in draws(2000)]
    assert 0.35 < sum(shares) / len(shares) < 0.65


def test_a_world_of_demonstrations_keeps_its_sets_apart(tmp_path):
    made = world.make_world(tmp_path, 1, stat_sel.STUDENT_PROMPT, 0.01, family="demonstrations")
    sets = {name: common.load(str(made / f"{name}.jsonl")) for name in ("train", "test", "phrasings", "retention")}
    texts = [row["problem"] for rows in sets.values() for row in rows]
    assert len(set(texts)) == len(texts) and len(sets["train"]) == 6
    weak = {name: [bool(set(row["skills"]) & set(WEAK)) for row in rows] for name, rows in sets.items()}
    assert all(weak["phrasings"]) and not any(weak["retention"]) and any(weak["train"])
    read = {name: [toy.read(row["problem"]) for row in rows] for name, rows in sets.items()}
    assert all(demonstrations.in_held_out_words(p) == (name == "phrasings") for name in read if name != "retention" for p in read[name])
    assert all(row["solution"] == demonstrations.expert_solution(toy.read(row["problem"])) for row in sets["train"])
    perfect = common.load(str(made / "perfect"), "train")
    assert [row["problem"] for row in perfect] == [row["problem"] for row in sets["train"]]
    assert all(toy.check(toy.read(row["problem"]), row["solution"])["missing"] is None for row in perfect)
    assert [row["id"] for row in common.load(str(made / "perfect"), "test")] == [row["id"] for row in common.load(str(made), "test")]


@pytest.mark.parametrize("argv, words", [
    (["stat_sel", "--family", "deduction"], "--family deduction"), (["stat_sel", "--sweep"], "--sweep"),
    (["active_loop", "--sweep", "1", "--select=loss"], "--sweep"), (["stat_sel", "--perfect"], "--perfect"),
    (["dart", "--perfect", "--data=elsewhere"], "--perfect")])
def test_flags_that_do_not_go_together_are_refused(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["toyworld", *argv])
    assert toyworld.__main__.main() == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--help"])
def test_the_command_explains_itself(flag, run_file):
    shown = run_file("-m", "toyworld", flag)
    assert shown.returncode == 0 and "stat_sel" in shown.stdout


def test_marks_of_right_and_spoilt_answers():
    """Every step of a worked solution is right; from the first one that is spoilt, left out or boxed wrongly on, none is."""
    rng = random.Random(2)
    for problem in draws(600, seed=2):
        text, answer = solution(problem, rng.randrange(4)), toy.solve(problem)[1]
        steps = stat_sel.split_steps(text)
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
    answers = [(p.text, stat_sel.split_steps(solution(rng.choice(problems), rng.randrange(4)))) for p in problems]  # of other problems
    rewards = stat_sel.score_steps(model, tokenizer, answers)
    assert [len(found) for found in rewards] == [len(steps) for _, steps in answers] and all(0 < r < 1 for found in rewards for r in found)
    assert sum(found[-1] for found in rewards) / 50 < 0.2
