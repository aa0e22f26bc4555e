"""The method's pure functions: by hand, and against a second naive computation."""
import doctest
import math
import random
import statistics
from collections import Counter
from fractions import Fraction

import pytest
import torch

import common
import stat_sel
from stat_sel import Args


def test_doctests():
    assert doctest.testmod(stat_sel).attempted >= 3
    assert doctest.testmod(stat_sel).failed == 0


def test_the_built_in_list_is_tables_5_and_6():
    assert sum(map(len, common.MATH_SKILLS.values())) == 112
    assert {s: len(n) for s, n in common.MATH_SKILLS.items()} == {
        "Algebra": 21, "Counting & Probability": 11, "Geometry": 13, "Intermediate Algebra": 22, "Number Theory": 15, "Prealgebra": 14,
        "Precalculus": 16}
    assert all("," not in name for names in common.MATH_SKILLS.values() for name in names)
    assert all(len(set(names)) == len(names) for names in common.MATH_SKILLS.values())


@pytest.mark.parametrize("answers, difficult", [
    ([None] * 5, True), (["1", None, None, None, None], True), (["1", "2", "3", "4", "5"], True),
    (["1", "2", "3", "4", "1"], False), (["\\frac12", "0.5", "3", "4", "5"], False), ([], True)])
def test_consistency(answers, difficult):
    assert stat_sel.is_inconsistent(answers) is difficult


@pytest.mark.parametrize("rewards, difficult", [
    ([0.9], False), ([0.85], True), ([0.850001], False), ([0.0, 1.0], True),
    ([0.85, 0.85], True), ([0.84, 0.86], True),  # the last one is above tau1, the mean a tie
    ([0.7, 1.0, 1.0, 1.0], True), ([0.7001, 1.0, 1.0, 1.0], False),  # a tie with tau2, the mean 0.925
    ([1.0, 1.0, 1.0, 0.85], True),  # only the last step is held to tau1
    ([0.75, 0.95, 0.86], False),  # an earlier step below tau1 is fine, as is one above tau2 alone
    ([0.95, 0.95, 0.95, 0.65, 0.99], True)])
def test_eq_1_by_hand(rewards, difficult):
    assert stat_sel.is_difficult(rewards, 0.85, 0.7) is difficult


def test_eq_1_exempts_the_last_step_from_tau2_only():
    assert stat_sel.is_difficult([0.9, 0.6], 0.5, 0.7) is False and stat_sel.is_difficult([0.6, 0.9], 0.5, 0.7) is True
    assert stat_sel.is_difficult([0.6], 0.5, 0.7) is False


def test_eq_1_against_a_naive_version():
    rng = random.Random(0)
    verdicts = Counter()
    for _ in range(5000):
        rewards = [rng.choice([0.5, 0.7, 0.75, 0.85, 0.9, 1.0]) for _ in range(rng.randint(1, 6))]
        tau1, tau2 = rng.choice([0.5, 0.7, 0.85]), rng.choice([0.5, 0.7, 0.85])
        easy = rewards[-1] > tau1 and statistics.mean(map(Fraction, map(str, rewards))) > Fraction(str(tau1))
        for i in range(len(rewards) - 1):
            if not rewards[i] > tau2:
                easy = False
        assert stat_sel.is_difficult(rewards, tau1, tau2) is (not easy), (rewards, tau1, tau2)
        verdicts[easy] += 1
    assert min(verdicts.values()) > 500


def test_agreement_by_hand():
    assert common.agreement(1, 0, 0, 1) == {"accuracy": 100, "precision": 100, "recall": 100, "F1": 100}
    assert common.agreement(0, 0, 1, 3) == {"accuracy": 75, "precision": None, "recall": 0, "F1": 0}
    assert common.agreement(7, 3, 1, 9) == pytest.approx({"accuracy": 80, "precision": 70, "recall": 87.5, "F1": 2 * 70 * 87.5 / 157.5})
    assert set(common.agreement(0, 0, 0, 0).values()) == {None}


def test_nearest_by_hand_and_ties_in_order():
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.6, 0.8], [-1.0, 0.0]])
    assert stat_sel.nearest(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), keys, 3) == [[0, 2, 3], [2, 3, 1]]
    assert stat_sel.nearest(torch.tensor([[0.0, 1.0]]), keys, 9) == [[1, 2, 3, 0, 4]]


def test_read_profile():
    names = ["factoring skills", "function skills"]
    def read(text):
        got = stat_sel.read_profile(text, "Algebra", names)
        return got["skills"], got["unknown"], got["fault"]
    form = "<judge>{}</judge><reason>r</reason><skill>{}</skill>"
    assert read(form.format("incorrect", "Function skills, FACTORING SKILLS, function skills")) == (
        ["Algebra: function skills", "Algebra: factoring skills"], [], None)
    assert read(form.format("Incorrect", "algebra: factoring_skills; guessing")) == (["Algebra: factoring skills"], ["guessing"], None)
    assert read(form.format("correct", "factoring skills")) == ([], [], "judged correct")
    assert read(form.format("incorrect", "magic")) == ([], ["magic"], "no listed skill")
    assert read(form.format("maybe", "factoring skills"))[2] == "malformed"
    assert read(form.format("**Incorrect.**", "1. factoring skills\n2) Function skills"))[0] == [
        "Algebra: factoring skills", "Algebra: function skills"]
    assert read("The student should practise factoring skills.") == ([], [], "malformed")
    assert read("<judge>incorrect</judge><skill>\n- function skills\n- factoring skills\n</skill>")[0] == [
        "Algebra: function skills", "Algebra: factoring skills"]


def random_case(seed):
    rng = random.Random(seed)
    skills = [f"s: {i}" for i in range(8)]
    labels = {f"q{i}": rng.sample(skills, rng.randint(0, 3)) for i in range(120)}
    profile = {f"v{i}": rng.sample(skills, rng.randint(1, 3)) for i in range(200)}
    return labels, profile


@pytest.mark.parametrize("seed", range(5))
def test_draw_follows_the_profile(seed):
    labels, profile = random_case(seed)
    skill_map = stat_sel.invert(labels)
    assert all((q in skill_map.get(s, [])) == (s in labels[q]) for q in labels for s in {s for v in labels.values() for s in v})  # naive inverse
    drawn = stat_sel.draw_stat(profile, skill_map, 5, random.Random(seed))
    wanted = sum(min(5, sum(skill in labels[q] for q in labels)) for skills in profile.values() for skill in skills)
    assert len(drawn) == wanted
    # The draws come in the profile's order: cut them up and look at each.
    at, count = 0, Counter()
    for skills in profile.values():
        for skill in skills:
            part = drawn[at:at + min(5, len(skill_map.get(skill, [])))]
            at += len(part)
            assert len(set(part)) == len(part) and all(skill in labels[q] for q in part)
            count[skill] += len(part)
    frequency = Counter(skill for skills in profile.values() for skill in skills)
    for skill, n in frequency.items():
        assert count[skill] == n * min(5, len(skill_map[skill]))  # a skill's weight is its frequency in the profile


def test_draw_is_uniform_within_a_skill():
    drawn = Counter(stat_sel.draw_stat({i: ["a"] for i in range(4000)}, {"a": list("pqrstuvwxy")}, 5, random.Random(0)))
    expected = 4000 * 5 / 10
    assert sum((n - expected) ** 2 / expected for n in drawn.values()) < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


def test_draw_with_few_or_no_questions():
    assert sorted(stat_sel.draw_stat({1: ["a", "none"], 2: ["a"]}, {"a": ["x", "y"]}, 5, random.Random(0))) == ["x", "x", "y", "y"]
    assert stat_sel.draw_stat({}, {"a": ["x"]}, 5, random.Random(0)) == []


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_profile_permutes_the_skills(seed):
    labels, profile = random_case(seed)
    skill_map = stat_sel.invert(labels)
    assert min(map(len, skill_map.values())) >= 5
    other = stat_sel.shuffle_profile(profile, skill_map, 5, random.Random(seed))
    before, after = (Counter(s for skills in p.values() for s in skills) for p in (profile, other))
    assert sorted(before.values()) == sorted(after.values())  # the same frequencies, on other skills
    assert all(len(set(other[q])) == len(profile[q]) for q in profile)


def test_the_control_draws_no_fewer_questions():
    skill_map = {"a": list("pqrstu"), "b": list("ghijk"), "c": list("lmnop"), "few": ["x"]}
    profile = {1: ["few", "a"], 2: ["few"], 3: ["gone"]}
    for seed in range(20):
        other = stat_sel.shuffle_profile(profile, skill_map, 5, random.Random(seed))
        assert {skill for skills in other.values() for skill in skills} <= {"a", "b", "c"} and other[1][0] == other[2][0]
        assert len(stat_sel.draw_stat(other, skill_map, 5, random.Random(0))) == 20 > len(stat_sel.draw_stat(profile, skill_map, 5, random.Random(0)))
    assert stat_sel.shuffle_profile(profile, {"few": ["x"]}, 5, random.Random(0)) == {1: ["few", "few"], 2: ["few"], 3: ["few"]}
    assert stat_sel.shuffle_profile(profile, {}, 5, random.Random(0)) == {1: [], 2: [], 3: []}


def test_labels_of_another_list_are_not_taken_for_ours():
    skills = {"S": ["prime numbers", "angles"]}
    rows = [{"id": i, "subject": "S", "skills": ["prime_numbers"]} for i in range(20)]
    assert stat_sel.own_skills(rows, skills)[0] == ["S: prime numbers"]
    assert set(map(tuple, stat_sel.own_skills(rows + [{"id": 20, "subject": "S", "skills": ["magic", "more"]}], skills).values())) == {()}
    assert stat_sel.own_skills([{"id": 0, "subject": "S", "skills": None}], skills) == {0: []}


@pytest.mark.parametrize("n, size", [(1, 8), (8, 8), (1000, 8), (1003, 16)])
def test_grouped_batches_hold_each_row_once(n, size):
    lengths = [random.Random(i).randint(5, 500) for i in range(n)]
    batches = common.grouped_batches(lengths, size, random.Random(0))
    assert sorted(i for batch in batches for i in batch) == list(range(n))
    assert len(batches) == math.ceil(n / size) and all(len(batch) <= size for batch in batches)
    if n >= 1000:  # grouped: within a batch lengths spread far less than over all
        assert sum(max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches) / len(batches) < 100


def test_args_defaults_are_the_papers():
    args = Args()
    assert (args.lora_rank, args.lora_alpha, args.lora_dropout, args.epochs, args.batch) == (16, 32, 0.05, 3, 8)
    assert (args.max_grad_norm, args.weight_decay, args.warmup, args.temperature) == (0.3, 0.1, 0.03, 0.1)
    assert (args.n_val, args.questions_per_skill, args.n_rewrites, args.n_pairs) == (1000, 5, 3, 9500)
    assert (args.difficulty, args.tau1, args.tau2, args.length_words, args.samples) == ("prm", 0.85, 0.7, 800, 64)
    assert args.lr in (5e-4, 2e-4, 1e-4, 8e-5, 2e-5)
