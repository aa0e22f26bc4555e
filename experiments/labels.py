"""Ask the teacher which skills the test questions need: report.py then shows the accuracy by them.

Paper   He, Panigrahi, Lin, Arora, "Skill-Targeted Adaptive Training", arXiv 2510.10023v1, §C.3.1 and Fig. 4
Needs   a run of stat_sel.py whose step 2 is finished; the teacher's flags stand in its args.json
Run     python experiments/labels.py runs/stat_sel
        python experiments/labels.py runs/stat_sel --teacher-url http://localhost:8000/v1
Writes  labels_test.jsonl in the run's directory; without it report.py takes the data's own labels
"""
import dataclasses
import sys
from pathlib import Path

from tyro.conf import Positional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common  # noqa: E402
import stat_sel  # noqa: E402
from experiments.difficulty import open_finished  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Args:
    run: Positional[str]  # run directory of stat_sel.py
    teacher_url: str | None = None  # OpenAI-compatible server; default: the run's


def main(args: Args) -> None:
    run, made_with, questions = open_finished(args.run)
    url = args.teacher_url or made_with.teacher_url
    how = dataclasses.replace(made_with, teacher_url=url, arms=("stat",))  # "stat" needs a skill list
    skills = stat_sel.read_lists(how.skills, "--skills", "subject") if how.skills else stat_sel.MATH_SKILLS
    stat_sel.check_questions(how, skills, questions)
    rows = questions.sets["MATH"]

    def make():
        teacher, asked = common.open_teacher(how), stat_sel.requests(how, stat_sel.LABEL_PROMPT, rows, skills)
        if teacher.plan({"labels of Q_test": asked}):
            teacher.check()
        labels = []
        for row, reply in zip(rows, teacher.ask(asked, "labels of Q_test"), strict=True):
            text = ", ".join(common.read_tags(reply.text, "skill")) if reply else ""
            known, unknown = stat_sel.read_skills(text, row["subject"], skills[row["subject"]])
            labels.append({"id": row["id"], "skills": known[:5], "unknown": unknown})
        return labels
    labels = run.step("labels_test.jsonl", make)
    print(f"  {sum(not row['skills'] for row in labels)} of {len(labels)} questions without a skill, "
          f"{sum(len(row['unknown']) for row in labels)} names not on the list")


if __name__ == "__main__":
    common.cli(main, Args, __doc__)
