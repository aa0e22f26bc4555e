"""A real language model on human word problems: SmolLM2-135M, ASDiv, SVAMP, and an oracle as the teacher.

data.py      the problems, and their formulas worked out step by step
student.py   the base model's checkpoint, and the student: fine-tuned once on P
teacher.py   answers the methods' own prompts from the data's annotations
__main__.py  runs a method file, unmodified
table.py     the table over finished seeds
What this world is, and is not: docs/real.md.
"""
