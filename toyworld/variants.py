"""Two more arms for a finished run of STAT-Syn, to find out what its wrong answers and its few sources cost: of as many pairs as its arm stat,

stat_right  those pairs of stat whose answer is right by the exact checker; some come twice in place of the wrong ones
stat_mixed  four fifths of stat's pairs and a fifth of augment's, drawn at random

    python -m toyworld.variants runs/toy_stat_syn/seed-31   # trains and tests them in that directory, and adds them to its result.json
"""
import dataclasses

from tyro.conf import Positional

import common
import stat_syn
from experiments.difficulty import open_finished
from toyworld import problems as toy


@dataclasses.dataclass(frozen=True)
class Args:
    run: Positional[str]  # finished run of stat_syn.py in the toy world, with arms base, augment and stat


def is_right(pair: dict, problem: str) -> bool:
    found = toy.read(problem)
    return found is not None and common.score(pair["messages"][-1]["content"], toy.solve(found)[1], problem) is True


def main(args: Args) -> None:
    run, made_with, questions = open_finished(args.run, stat_syn)
    if not (run.path / "result.json").is_file() or not {"base", "augment", "stat"} <= set(made_with.arms):
        raise common.UserError(f"{args.run}: expected a finished run with arms base, augment and stat; finish it, or make another")
    problems = {row["id"]: row["problem"] for row in run.read("5_written.jsonl")}
    pairs, rng = run.read("train_stat.jsonl"), common.rng(made_with.seed, "variants")
    right = [pair for pair in pairs if is_right(pair, problems[pair["id"]])]
    n_random = len(pairs) // 5
    made = {"stat_right": right + rng.choices(right, k=len(pairs) - len(right)),
            "stat_mixed": rng.sample(pairs, len(pairs) - n_random) + rng.sample(run.read("train_augment.jsonl"), n_random)}
    print(f"  {len(right)} of {len(pairs)} pairs of stat have a right answer")
    result = run.read("result.json")
    for arm, chosen in made.items():
        run.step(f"train_{arm}.jsonl", lambda chosen=chosen: chosen)
        stat_syn.train_arm(made_with, run, questions.heldout, arm)
    tested = {arm: stat_syn.test(made_with, run, questions, arm) for arm in (*made_with.arms, *made)}
    stat_syn.show(tested, {row["id"] for row in run.read("2_graded.jsonl") if row["difficult"]})
    for arm in made:
        result["arms"][arm] = {name: [sum(row["is_right"] is True for row in tested[arm] if row["set"] == name),
                                      sum(row["set"] == name for row in tested[arm])] for name in questions.sets}
    run.write("result.json", result)


if __name__ == "__main__":
    common.cli(main, Args, __doc__)
