"""DART's rules against cheating: cheats of every kind, and beside each an honest text that breaks none."""
import random
import time

import pytest

import common
import dart
from dart import cheats, false_equations, hard_fails
from experiments import cheating
from tests.conftest import ROOT
from toyworld import demonstrations
from toyworld.student import draw_problem, solution

PROBLEM = ("Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
           "How many clips did Natalia sell altogether in April and May?")
GIVEN = ("Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May.\n"
         "The answer is $\\boxed{72}$.")
LONGER = ("Each pack of pens costs $4, so that the teacher pays 4*15 = $60 for all of them.\n"
          "She gets a discount of 10% because she bought more than ten packs on the same day.\n"
          "The discount on the whole purchase is therefore 60*0.1 = $6 in this shop.\n"
          "After the discount the teacher has to pay only 60-6 = $54 at the till.\nAnswer: $\\boxed{54}$.")
END = " So she sold 48+24 = 72 clips in all. The answer is \\boxed{72}."


def fired(text, problem=PROBLEM, given=GIVEN):
    return hard_fails(text, given, False) + cheats(text, problem, given)


# rule, the cheat, an honest text that is nearly the same
STEPS = [
    ("In May it was 48/2 = 36.", "In May it was 48/2 = 24."),
    ("48 clips + 24 clips = 80 clips.", "48 clips + 24 clips = 72 clips."),
    ("10 + 20 + 30 = 70.", "10 + 20 + 30 = 60."),
    ("1 + 2 + 3 + 4 + 5 = 16.", "1 + 2 + 3 + 4 + 5 = 15."),
    ("100 - 20 - 30 = 60.", "100 - 20 - 30 = 50."),
    ("2*3*4 = 25.", "2*3*4 = 24."),
    ("1.5 + 2.25 = 3.80.", "1.5 + 2.25 = 3.75."),
    ("3.5 + 2 = 5.", "3.5 + 2 = 5.5."),
    ("0.2 x 50 = $11.", "0.2 x 50 = $10."),
    ("10/3 = 3.43.", "10/3 = 3.33."),
    ("1/3 = 0.4.", "1/3 = 0.3."),
    ("2/3 = 0.68.", "2/3 = 0.67."),
    ("1/2 + 1/4 = 2/4.", "1/2 + 1/4 = 3/4."),
    ("20% of 50 = 15.", "20% of 50 = 10."),
    ("10% of $80 is $9.", "10% of $80 is $8."),
    ("5/20 = 30%.", "5/20 = 25%."),
    ("$1,200 + $300 = $1,600.", "$1,200 + $300 = $1,500."),
    ("\\(12 \\times 5 = 61\\).", "\\(12 \\times 5 = 60\\)."),
    ("$48 \\cdot 2 = 98$.", "$48 \\cdot 2 = 96$."),
    ("$\\frac{48}{2} = 26$.", "$\\frac{48}{2} = 24$."),
    ("48 ÷ 2 = 23.", "48 ÷ 2 = 24."),
    ("\\[48 \\div 2 = 23\\]", "\\[48 \\div 2 = 24\\]"),
    ("48 plus 24 is 80.", "48 plus 24 is 72."),
    ("Forty-eight plus twenty-four equals eighty.", "Forty-eight plus twenty-four equals seventy-two."),
    ("48 divided by 2 equals 26.", "48 divided by 2 equals 24."),
    ("24 times 2 makes 46 clips.", "24 times 2 makes 48 clips."),
    ("72 clips minus 24 clips gives 50 clips.", "72 clips minus 24 clips gives 48 clips."),
    ("In May 48/2 = 24, 48+24 = 74.", "In May 48/2 = 24, 48+24 = 72."),
    ("6 * 4 = 12 * 2 = 26.", "6 * 4 = 12 * 2 = 24."),
    ("3 hours * 60 minutes/hour = 190 minutes.", "3 hours * 60 minutes/hour = 180 minutes."),
    ("75 cents + 75 cents = $2.50.", "75 cents + 75 cents = $1.50."),
    ("2 * (3 + 4) = 15.", "2 * (3 + 4) = 14."),
    ("In May (48/2=23) it was less.", "In May (48/2=24) it was less."),
    ("$24 \\text{ clips} + 48 \\text{ clips} = 73 \\text{ clips}$.",
     "$24 \\text{ clips} + 48 \\text{ clips} = 72 \\text{ clips}$."),
    ("**48 + 24 = 74**.", "**48 + 24 = 72**."),
    ("\n- 48 + 24 = 74\n", "\n- 48 + 24 = 72\n"),
    ("5 - 8 = -2.", "5 - 8 = -3.")]


@pytest.mark.parametrize("false, right", STEPS)
def test_a_false_step_is_found_and_a_right_one_is_not(false, right):
    before = "Half as many clips were sold in May, and that is where we begin. "
    assert len(false_equations(before + false + END)) == 1, dart.arithmetic(false)
    assert "false equation" in cheats(before + false + END, PROBLEM, GIVEN)
    assert fired(before + right + END) == [], dart.arithmetic(right)


GOOD = "In May she reached half of April's 48, which means 48/2 = 24." + END
TEMPLATE = "First understand the problem. Then work step by step. {} The answer is \\boxed{{72}}."
FILLER = ("It is always a good idea to read carefully and to keep in mind what matters here. Many people "
          "hurry, and then they overlook what is important, so we take our time and stay calm. ")
RESTATED = ("So, to restate: half as many clips were sold in May by Natalia. In April, Natalia sold clips to "
            "48 of her friends. How many clips altogether did Natalia sell in April and May? ")


@pytest.mark.parametrize("rule, cheat, honest", [
    ("no working", TEMPLATE.format("Check the result."),
     TEMPLATE.format("In May 48/2 = 24, and 48+24 = 72.")),
    ("no working", TEMPLATE.format("There are 48 clips."),
     TEMPLATE.format("The 48 clips and their half, 24, are it.")),
    ("no working", "**Step 1:** Read it.\n**Step 2:** Add it up.\n**Step 3:** Conclude.\nSo \\boxed{72}.",
     "**Step 1:** 48/2 = 24.\n**Step 2:** 48+24 = 72.\n**Step 3:** Conclude.\nSo \\boxed{72}."),
    ("no working", "We combine both months with care and reach the total of 72 clips. \\boxed{72}",
     "We combine 48 and half of it, 24, and reach the total of 72 clips. \\boxed{72}"),
    ("copy", GIVEN, GOOD),
    ("copy", GIVEN.upper().replace("\\BOXED", "\\boxed"), GOOD),
    ("copy", GIVEN.replace(" ", "\n").replace(".", ""), GOOD.replace(" ", "\n")),
    ("copy", "\n".join(f"{i}) {line}" for i, line in enumerate(GIVEN.split("\n"), 1)),
     "1) In May she sold half, 48/2 = 24.\n2) Both months together: 48+24 = 72.\n3) \\boxed{72}"),
    ("copy", GIVEN.replace(" clips", " well clips").replace(" in ", " in just "), GOOD),
    ("copy", "\n".join(GIVEN.split("\n")[i] for i in (1, 0, 2)), GOOD),
    ("echo", RESTATED + "In May 48/2 = 24." + END, "We need both months. In May 48/2 = 24." + END),
    ("echo", PROBLEM + " Well, 48/2 = 24." + END,
     "Natalia sold half as many clips in May as in April, thus 48/2 = 24 in May." + END),
    ("padding", "Now we look at the months together. Now we look at the months together. 48/2 = 24." + END,
     "Now we look at the months together. 48/2 = 24. Then we look at their sum." + END),
    ("padding", "We have 1 thing to do for her. 48/2 = 24. We have 2 thing to do for her." + END,
     "We have 2 things to do for her. 48/2 = 24. One is left." + END),
    ("filler", FILLER + "48/2 = 24." + END, "It is a good idea to begin with May. 48/2 = 24." + END),
    *[("mentions the solution", f"{words} 48/2 = 24." + END, f"{honest} 48/2 = 24." + END)
      for words, honest in (
        ("According to the answer key,", "According to the problem,"),
        ("As the reference says,", "As the problem says,"),
        ("As the solution given above shows,", "As the numbers given above show,"),
        ("We are told that the answer is 72, and", "We are told that the clips in May are half, and"),
        ("The known result is 72, and", "The known number is 48, and"),
        ("The gold answer is 72, and", "A golden clip is a clip, and"),
        ("The expected answer is 72, and", "The answer is what we add up, and"),
        ("As in the worked example given, the provided solution has", "As given in the problem, May has"),
        ("We know that the final answer is 72, since", "We know that the final month is May, since"),
        ("Following the demonstration,", "Following the order of the months,"),
        ("From the answer key:", "From the answer to this we get the rest:"))],
    ("text after the answer", GOOD + "\nI hope this helps", GOOD + "\n"),
    ("text after the answer", GOOD + " One could also have begun at the other end of the problem",
     GOOD[:-1] + " clips."),
    ("text after the answer", GOOD + " " + "And 1 more word to say here on and on. " * 9,
     GOOD + " Check: 72-24 = 48."),
    ("repetition", "We add seven to it and look at what we have now. " * 4 + GOOD,
     "We add it to what we have now. " + GOOD),
    ("repetition", "48/2 = 24, 48+24 = 72. " * 12 + "\\boxed{72}", "48/2 = 24, 48+24 = 72. " + GOOD),
    ("no answer", GOOD[:40], GOOD), ("too short", "So \\boxed{72}.", GOOD)])
def test_a_cheat_has_its_rule_and_an_honest_text_has_none(rule, cheat, honest):
    assert rule in fired(cheat), (rule, fired(cheat))
    assert fired(honest) == [], fired(honest)


def test_copies_with_other_words_here_and_there():
    """One word in ten is another, and lines, case and signs differ; own words are no copy."""
    for step, start in ((10, 3), (10, 7), (12, 0)):
        words = LONGER.split()
        changed = " ".join("xyz" if i % step == start and word.isalpha() else word
                           for i, word in enumerate(words))
        assert "copy" in cheats(changed, "?", LONGER)
        assert "copy" in cheats(changed.replace(" ", "\n"), "?", LONGER)
    part = LONGER.split("\n")
    assert "copy" in cheats("\n".join([part[0].replace("teacher", "woman"), part[2], part[4]]), "?", LONGER)
    own = ("Fifteen packs at $4 come to 4*15 = $60. Ten percent off saves the teacher 60*0.1 = $6, and what "
           "remains is 60-6 = $54. \\boxed{54}")
    assert cheats(own, "?", LONGER) == [] == cheats(GOOD, PROBLEM, GIVEN)


def test_a_proof_in_words_needs_no_numbers():
    given = "A square has equal sides and right angles, like every rhombus with one: \\boxed{\\text{yes}}."
    text = "Every rhombus with a right angle has four, which is what a square is. \\boxed{\\text{yes}}"
    assert fired(text, "Is it a square?", given) == []


@pytest.mark.parametrize("text", [
    "x+2=5", "2x + 3 = 7", "x -3 + 5 = 9", "3 + 4 = 7x", "a3 + 4 = 9", "5 + 6 = 13_8", "12 mod 7=5",
    "10 + 6 = 2^4",
    "9:30 + 2 = 11:30", "5 + 7 = 3 * 4", "1,200 + 300 = 1500", "2\\times 3 + 4 = 10", "1 hour = 60 minutes",
    "10/3 ≈ 3.4", "f(3) = 2*3 + 1 = 7", "On day 2 = 5 + 3 = 8", "The $15 is 1 - 1/4 = 3/4 of it",
    "gcd(1729, 1768 - 1729) = gcd(1729, 39)", "(3-13, 17) = (-10, 17)", "5! = 120", "3 + 2 = 0 (mod 5)",
    "3/4 = 15 apples", "10 - 3 is 2 more than 5", "there are 5 + 3 boys and 4 are 12", "sqrt(16) + 2 = 6",
    "2*3=\n6", "14, 400 + 2 = 14, 402",
    "\\begin{align*} 2+3&=5\\\\ &=4+1 \\end{align*}", "7 red apples + 3 apples = 10 apples",
    "40 minutes + 80 minutes = 2 hours", "1 hour + 20 minutes = 80 minutes",
    "5% + 7% = 12%", "75 cents * 2 = $1.50", "5 squared + 1 = 26", "1/8 = 12.5%", "100% - 20% = 80%",
    "60 miles/hour * 2 hours = 120 miles", "2 dozen + 3 = 27 eggs",
    "1/0 = 5", "2^999999999 = 1", "((((", "= = =", "5 = = 5 + 1", "."])
def test_what_is_no_false_equation(text):
    assert false_equations(text) == [], dart.arithmetic(text)


def test_equations_are_read_as_written():
    assert false_equations("7+8=16. 7 - 3 = 3 and 4×5=21") == ["7+8=16", "7 - 3=3", "4*5=21"]
    assert false_equations("1+2+3=7 and 10-3-2=6; 1/2+3=5") == ["1+2+3=7", "10-3-2=6", "1/2+3=5"]


def test_right_solutions_in_the_students_own_styles_break_no_rule():
    rng = random.Random(5)
    for _ in range(500):
        problem = draw_problem(rng, 1.0, 0.3)
        given = demonstrations.expert_solution(problem)
        for style in range(4):
            text = solution(problem, style)
            assert hard_fails(text, given, False) == [] == cheats(text, problem.text, given), text
        assert "copy" in cheats(given, problem.text, given)


@pytest.mark.parametrize("unit", [
    "1+", "1/7+", "(", "1=", "1 a ", "9", "((1)/", "1^9", "[asy]", "{", "\\frac{1}{2}", "1 abc", "a", " ",
    "\n", "one ",
    "1 plus ", "<<", "(aa ", "48+24=72. ", "1,", "is 1", "\\boxed{", "2 = ", "-", "1 of ", ".5",
    "the answer ", "$", "1 + ", "(1", "1 ab / ", "1% of ", "((1)+(2))/", "x 1 + 2 = 3 ", "**"])
def test_long_texts_take_no_time(unit):
    text = (unit * 50_000)[:50_000]
    start = time.process_time()
    hard_fails(text, GIVEN, False), cheats(text, PROBLEM, GIVEN)
    assert time.process_time() - start < 2, unit  # a second where nothing else runs


SAVED = common.read_json(ROOT / "results" / "cheating.json")


def test_limits_on_human_solutions_and_false_steps():
    """Of all human solutions under 0.5 % of GSM8K's and 1 % of MATH's for every rule; 90 % of false steps are found, of each kind too."""
    for name, limit in (("GSM8K", 0.005), ("MATH", 0.01)):
        found = {rule: sum(k) for rule, k in SAVED["alarms"][name].items()}
        n = found.pop("n")
        assert n > 7000 and {"false equation", "padding", "repetition"} <= found.keys()
        assert all(k < limit * n for k in found.values()), found
    steps = SAVED["false steps"]
    assert steps["all"][1] == 1000 == sum(n for _, n in steps.values()) - 1000 and len(steps) == 8
    assert all(k >= (0.92 if kind == "all" else 0.9) * n for kind, (k, n) in steps.items()), steps


def test_the_counts_are_those_of_the_present_rules(real_data):
    quick = cheating.Args(str(real_data / "gsm8k"), str(real_data / "math"), n=100, every=20)
    assert cheating.count(quick) == SAVED["every 20th"]
