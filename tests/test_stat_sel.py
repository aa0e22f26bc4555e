"""The method's pure functions: by hand, and against a second naive computation."""
import contextlib
import doctest
import json
import math
import random
import re
import statistics
from collections import Counter
from fractions import Fraction

import pytest

import stat_sel
from common import UserError
from stat_sel import Args


def test_doctests():
    assert doctest.testmod(stat_sel).attempted >= 3
    assert doctest.testmod(stat_sel).failed == 0


def test_the_built_in_list_is_tables_5_and_6():
    assert sum(map(len, stat_sel.MATH_SKILLS.values())) == 112
    assert {s: len(n) for s, n in stat_sel.MATH_SKILLS.items()} == {
        "Algebra": 21, "Counting & Probability": 11, "Geometry": 13, "Intermediate Algebra": 22, "Number Theory": 15, "Prealgebra": 14,
        "Precalculus": 16}
    assert all("," not in name for names in stat_sel.MATH_SKILLS.values() for name in names)
    assert all(len(set(names)) == len(names) for names in stat_sel.MATH_SKILLS.values())


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


def test_a_shuffled_skill_becomes_another_of_about_its_size():
    sizes = {"a": 1, "b": 2, "c": 2, "d": 3, "e": 40, "f": 41, "g": 50, "h": 60, "i": 70}
    skill_map = {skill: [f"{skill}{i}" for i in range(n)] for skill, n in sizes.items()}
    profile = {i: [skill] for i, skill in enumerate("aabcdefghi")} | {99: ["gone"]}
    seen = set()
    for seed in range(50):
        other = stat_sel.shuffle_profile(profile, skill_map, random.Random(seed))
        moved = {profile[i][0]: other[i][0] for i in profile}
        assert moved.pop("gone") == "gone" and other[0] == other[1]
        assert all(skill != new for skill, new in moved.items()) and sorted(moved.values()) == sorted(moved)  # a permutation, none in its place
        assert {moved[skill] for skill in "abcd"} == set("abcd") and {moved[skill] for skill in "efghi"} == set("efghi")
        seen.add(tuple(moved.values()))
    assert len(seen) > 20
    assert stat_sel.shuffle_profile({1: ["x"]}, {"x": ["q"]}, random.Random(0)) == {1: ["x"]}  # there is no other
    assert stat_sel.shuffle_profile({1: ["x"]}, {}, random.Random(0)) == {1: ["x"]}


@pytest.mark.parametrize("seed", range(3))
def test_the_control_draws_about_as_many_unique_questions(seed):
    """Skills of very different sizes, as on MATH, where a free permutation would draw a third fewer questions."""
    rng = random.Random(seed)
    skills = [f"s: {i}" for i in range(40)]
    weights = [2 ** -(i / 6) for i in range(40)]
    skill_map = stat_sel.invert({f"q{i}": list(dict.fromkeys(rng.choices(skills, weights, k=2))) for i in range(4000)})
    profile = {f"v{i}": list(dict.fromkeys(rng.choices(skills, weights, k=3))) for i in range(500)}
    unique = [len(set(stat_sel.draw_stat(p, skill_map, 5, random.Random(0)))) for p in
              (profile, stat_sel.shuffle_profile(profile, skill_map, random.Random(seed)))]
    assert abs(unique[1] - unique[0]) < 0.1 * unique[0], unique


def test_a_skill_weighs_by_one_over_the_accuracy_on_it():
    outcomes = [(True, ["easy", "both"]), (True, ["easy"]), (False, ["both"]), (False, ["never"]), (True, ["not in P"])]
    skill_map = {"easy": ["e1", "e2"], "both": ["b"], "never": ["n"], "unseen": ["u"]}
    drawn = Counter(stat_sel.draw_accuracy(outcomes, skill_map, 13000, random.Random(0)))
    assert set(drawn) == {"e1", "e2", "b", "n"}  # a skill that Q_val does not show has no weight
    expected = {"e1": 500, "e2": 500, "b": 2000, "n": 10000}  # 1/1 over two questions; 1/0.5; 1/0 is clipped at 10
    assert sum((drawn[i] - n) ** 2 / n for i, n in expected.items()) < 16.3  # chi-square, 3 degrees of freedom, p = 0.001
    assert stat_sel.draw_accuracy([], skill_map, 5, random.Random(0)) == []


def test_different_pairs_come_first():
    order = stat_sel.order_pairs(["a", "b", "a", "a"], 2, random.Random(0))
    assert Counter(order) == {("a", 0): 3, ("a", 1): 3, ("b", 0): 1, ("b", 1): 1}
    assert len(set(order[:4])) == 4  # all different ones before the first repeat
    first = Counter(stat_sel.order_pairs(["a"] * 9 + ["b"], 1, random.Random(seed))[0] for seed in range(1000))
    assert 870 < first["a", 0] < 930  # a question drawn nine times as often comes first nine times as often: 900, sd 9.5


@pytest.mark.parametrize("n, size", [(1, 8), (8, 8), (1000, 8), (1003, 16)])
def test_grouped_batches_hold_each_row_once(n, size):
    lengths = [random.Random(i).randint(5, 500) for i in range(n)]
    batches = stat_sel.grouped_batches(lengths, size, random.Random(0))
    assert sorted(i for batch in batches for i in batch) == list(range(n))
    assert len(batches) == math.ceil(n / size) and all(len(batch) <= size for batch in batches)
    if n >= 1000:  # grouped: within a batch lengths spread far less than over all
        assert sum(max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches) / len(batches) < 100


def test_args_defaults_are_the_papers():
    args = Args()
    assert (args.lora_rank, args.lora_alpha, args.lora_dropout, args.epochs, args.batch) == (16, 32, 0.05, 3, 8)
    assert (args.max_grad_norm, args.weight_decay, args.warmup, args.temperature) == (0.3, 0.1, 0.03, 0.1)
    assert (args.n_val, args.questions_per_skill, args.n_rewrites, args.n_pairs) == (1000, 5, 3, 9500)
    assert (args.difficulty, args.tau1, args.tau2, args.samples) == ("prm", 0.85, 0.7, 64)
    assert set(args.lr) <= {5e-4, 2e-4, 1e-4, 8e-5, 2e-5}


# --- The questions of a run.
def test_split_math():
    rows = [{"id": str(i), "problem": f"problem {i * 7919 % 5000}"} for i in range(5000)]
    val, test = stat_sel.split_math(rows, 1000, seed=0)
    assert (len(val), len(test)) == (1000, 4000)
    assert sorted(val + test, key=lambda row: int(row["id"])) == rows
    assert [int(row["id"]) for row in val] == sorted(int(row["id"]) for row in val)
    assert stat_sel.split_math(rows, 1000, seed=0) == (val, test) != stat_sel.split_math(rows, 1000, seed=1)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert {row["id"] for row in stat_sel.split_math(shuffled, 1000, seed=0)[0]} == {row["id"] for row in val}
    overlap = len({row["id"] for row in val} & {row["id"] for row in stat_sel.split_math(rows, 1000, seed=1)[0]})
    assert 140 < overlap < 260  # 200 expected of two independent draws, standard deviation 11
    for n_val in (0, 5000, -1):
        with pytest.raises(UserError, match="n_val"):
            stat_sel.split_math(rows, n_val, seed=0)


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def questions(data, n_val, seed, **more):
    return stat_sel.load_questions(Args(data=data, n_val=n_val, seed=seed, **more))


def write_sets(folder, train, test):
    for name, texts in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(
            json.dumps({"id": f"{name}/{i}", "problem": text, "solution": "\\boxed{1}", "answer": "1"}) + "\n" for i, text in enumerate(texts)))


def test_no_question_has_two_uses(tmp_path):
    """By their texts, whatever their ids: what is profiled on is not tested on, what is tested on is not trained on."""
    write_sets(tmp_path, [f"train {i}" for i in range(30)] + ["TEST  3!", "few 2"], [f"test {i}" for i in range(20)])
    write(tmp_path / "few.jsonl", *({"problem": text, "answer": "1"} for text in ["few 1", "few 2", "Test 0.", "test 1"]))
    write(tmp_path / "many.jsonl", *({"problem": f"m {i}", "answer": "1"} for i in range(100)))
    got = questions(str(tmp_path), 8, seed=0, ood=(str(tmp_path / "few.jsonl"), str(tmp_path / "many.jsonl")), samples=7)
    few, many = f"{tmp_path.name}/few", f"{tmp_path.name}/many"
    assert list(got.sets) == ["MATH", few, many] and got.n_samples == {"MATH": 1, few: 7, many: 1}
    profiled = {row["problem"] for row in got.val}
    assert len(profiled) == 8 and len(got.sets["MATH"]) == 12 and not profiled & {row["problem"] for row in got.sets["MATH"]}
    assert got.removed == {"MATH": 0, few: len(profiled & {"test 0", "test 1"}), many: 0}
    assert {row["problem"] for row in got.pool} == {f"train {i}" for i in range(30)}
    other = questions(str(tmp_path), 90, seed=0, val=str(tmp_path / "many.jsonl"), samples=7)
    assert len(other.val) == 50 == len(other.sets[many]) and len(other.sets["MATH"]) == 20 and other.n_samples[many] == 1
    assert all(row["id"].startswith(f"{many}/") for row in other.val)
    cut = questions(str(tmp_path), 8, seed=0, ood=(str(tmp_path / "many.jsonl"),), samples=7, limit=5)
    assert {len(cut.pool), len(cut.val), *map(len, cut.sets.values())} == {5} and cut.n_samples[many] == 1  # by the whole set's size


def test_questions_that_cannot_be_told_apart_or_are_all_profiled_on(tmp_path):
    write_sets(tmp_path, ["a", "b"], [f"t {i}" for i in range(10)])
    got = questions(str(tmp_path), 9, seed=0)
    (tmp_path / "seen.jsonl").write_text(json.dumps({"problem": got.val[0]["problem"], "answer": "1"}) + "\n")
    with pytest.raises(UserError, match="every question of it is profiled on"):
        questions(str(tmp_path), 9, seed=0, ood=(str(tmp_path / "seen.jsonl"),))
    rows = [json.loads(line) | {"id": f"test/{i}"} for i, line in enumerate((tmp_path / "train.jsonl").read_text().splitlines())]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="make ids unique"):
        questions(str(tmp_path), 9, seed=0)


def test_math_500_loses_what_is_profiled_on(real_data, tmp_path):
    """MATH-500 is a part of MATH's test split."""
    rows = [json.loads(line) for line in (real_data / "math" / "test.jsonl").read_text().splitlines()]
    (tmp_path / "math500.jsonl").write_text("".join(json.dumps(row | {"id": f"m/{i}"}) + "\n" for i, row in enumerate(rows) if row["math500"]))
    got = questions(str(real_data / "math"), 1000, seed=0, ood=(str(tmp_path / "math500.jsonl"),))
    name = f"{tmp_path.name}/math500"
    profiled = {row["problem"] for row in got.val}
    expected = sum(row["math500"] and row["problem"] in profiled for row in rows)
    assert len(got.sets[name]) == 500 - got.removed[name] and got.removed[name] == expected and 60 < expected < 140


def test_sets_that_would_share_a_name_are_refused(tmp_path):
    write_sets(tmp_path, ["a"], [f"t {i}" for i in range(10)])
    for folder in ("one/x", "two/x"):
        write(tmp_path / folder / "test.jsonl", {"problem": "p", "answer": "1"})
    with pytest.raises(UserError, match="two sets would be called x/test"):
        questions(str(tmp_path), 3, seed=0, ood=(str(tmp_path / "one/x/test.jsonl"), str(tmp_path / "two/x/test.jsonl")))
    write(tmp_path / "one_x.jsonl", {"problem": "p", "answer": "1"})  # "one/x" and "one_x" would share a file of answers
    write(tmp_path / "one/x.jsonl", {"problem": "p", "answer": "1"})
    with contextlib.chdir(tmp_path), pytest.raises(UserError, match="two sets would be called one_x"):
        questions(".", 3, seed=0, ood=("one/x.jsonl", "one_x.jsonl"))
    same = str(tmp_path / "one/x/test.jsonl")
    assert list(questions(str(tmp_path), 3, seed=0, ood=(same, same)).sets) == ["MATH", "x/test"]


def test_skill_lists_are_refused_in_another_form(tmp_path):
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"S": ["a", "b"]}))
    assert stat_sel.read_lists(str(path), "--skills", "subject") == {"S": ["a", "b"]}
    for other in ([], {"S": "a"}, {"S": ["a, b"]}, {"S": [3]}, {"S": ["a"], "T": None}):
        path.write_text(json.dumps(other))
        with pytest.raises(UserError, match="--skills .*expected {subject: "):
            stat_sel.read_lists(str(path), "--skills", "subject")


def test_the_arms_are_shown_on_each_set_and_on_the_difficult_part(capsys):
    rows = [{"set": "MATH", "id": i, "is_right": right} for i, right in (("a", True), ("b", False))]
    rows += [{"set": "few", "id": "c", "is_right": right} for right in (True, False, None)]
    better = [row | {"is_right": True} for row in rows]
    stat_sel.show({"base": rows, "augment": rows, "stat": better}, {"b"})
    math_, hard, few = capsys.readouterr().out.strip().split("\n\n")
    assert hard.splitlines()[-2:] == ["augment: 0 wrong -> right, 0 right -> wrong", "stat: 1 wrong -> right, 0 right -> wrong"]
    assert math_.splitlines()[0] == "MATH" and re.search(r"2/2 +100\.0 +\+50\.0", math_) and "vs augment" in math_
    assert hard.startswith("MATH^D") and re.search(r"0/1 +0\.0", hard) and re.search(r"1/1 +100\.0", hard)
    assert few.startswith("few, mean of 3 answers") and re.search(r"0\.3/1 +33\.3", few) and "+66.7" in few
