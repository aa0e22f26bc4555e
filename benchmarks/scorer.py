"""Measures the answer scorer on replies that models wrote, on edited MATH answers and on MATH's own solutions.

The replies are JSON lines with text, gold, expected, bench and tier, labelled by four graders where they agree and by
hand where they do not. The labels of the edited answers hold by construction: an edit returns None where it cannot be
sure. Printed: equal answers rejected and different ones accepted, beside math-verify on the same rows, and the time.

Run     python benchmarks/scorer.py --data path/to/math --replies replies.jsonl     # five minutes on a CPU
        python benchmarks/scorer.py --ablate      # also what each rule and marker buys
"""

import argparse
import json
import os
import random
import re
import sys
import time
from fractions import Fraction
from pathlib import Path

INT, FRAC = r"-?\d+", r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}"
UNITS = [r"\text{ cm}", r"\text{ units}", r"\ \text{meters}", " inches", r"\text{ square units}", r"\mbox{ feet}", " dollars"]
KEEP, CHANGE = {}, {}


def keeps(edit):
    KEEP[edit.__name__] = edit
    return edit


def changes(edit):
    CHANGE[edit.__name__] = edit
    return edit


# --- Reading answers, without the scorer ----------------------------------------------------------------------------------
def value(s: str) -> Fraction | None:
    """The number that a plain integer, decimal, a/b or \\frac{a}{b} is."""
    if m := re.fullmatch(FRAC, s):
        return Fraction(int(m[1] + m[2]), int(m[3])) if int(m[3]) else None
    m = re.fullmatch(r"-?\d+(?:\.\d+|/[1-9]\d*)?", s)
    return Fraction(s) if m else None


def top(s: str, separators: str) -> list[str]:
    """s cut outside brackets at single characters; the separator opens the part to its right, as in ["a", "+b", "-c"]."""
    parts, depth = [""], 0
    for i, char in enumerate(s):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0 and char in separators and not (char in "+-" and not parts[-1].strip()):
            parts.append(char)
        elif depth < 0 or s.startswith("\\begin", i):
            return [s]
        else:
            parts[-1] += char
    return parts


def elements(s: str) -> list[str]:
    """Items of a bare list, or [] for anything else; "1,000" is not taken for one."""
    if re.search(r"\\text|\\[!,;]|[=<>]|\\le|\\ge|\\{|\\begin|\d,\d{3}(?!\d)", s):
        return []
    parts = [p.strip(", ") for p in top(s, ",")]
    return parts if len(parts) > 1 and all(parts) else []


def bracketed(s: str) -> tuple[str, list[str], str] | None:
    """('(', ['1', '2'], ']') of (1, 2]."""
    m = re.fullmatch(r"(?:\\left)? ?([(\[]) ?(.*?) ?(?:\\right)? ?([)\]])\.?", s)
    parts = [p.strip(", ") for p in top(m[2], ",")] if m else []
    return (m[1], parts, m[3]) if len(parts) > 1 and all(parts) and "\\cup" not in s else None


def differ(a: str, b: str) -> bool:
    """Surely different: two plain numbers that are unequal."""
    x, y = value(a), value(b)
    return x is not None and y is not None and x != y


def is_interval(s: str) -> bool:
    b = bracketed(s)
    return bool(b and len(b[1]) == 2 and ("[" in b[0] or "]" in b[2] or "infty" in s))


def polynomial(s: str):
    """The sympy polynomial that s, made of + - * ^ ( ) digits and letters, is; None where s holds anything else."""
    import sympy

    if not re.fullmatch(r"[-+() a-z\d^{}]+", s) or not re.search("[a-z]", s) or len(set(re.findall("[a-z]", s)) - {"e", "i"}) != 1:
        return None
    if set(s) & {"e", "i"} or re.search(r"[a-z]\(", s):
        return None
    text = re.sub(r"\^\{?(\d+)\}?", r"**\1", s)
    text = re.sub(r"(?<=[\d)a-z]) ?(?=[a-z(])", "*", text).replace(" ", "")
    return None if "{" in text else sympy.sympify(text)


def plain_latex(expression) -> str:
    return re.sub(r"\*\*(\d+)", r"^{\1}", str(expression)).replace("*", "")


# --- Edits that keep the value --------------------------------------------------------------------------------------------
@keeps
def frac_command(s, rng):
    new = s.replace("\\frac", rng.choice(["\\dfrac", "\\tfrac", "\\cfrac"])) if "\\frac{" in s else s
    return new if new != s else None


@keeps
def frac_short(s, rng):
    new = re.sub(r"\\frac\{(\d)\}\{(\d)\}", rng.choice([r"\\frac\1\2", r"\\frac \1 \2", r"\\frac\1{\2}", r"\\frac{\1}\2"]), s)
    return new if new != s else None


@keeps
def frac_slash(s, rng):
    new = re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", s)
    alone = re.fullmatch(FRAC, s) or (bracketed(s) and all(value(p) is not None for p in bracketed(s)[1]))
    return new if alone and new != s else None


@keeps
def frac_decimal(s, rng):
    v = value(s) if "frac" in s else None
    d = f"{float(v):.10f}".rstrip("0") if v is not None else ""
    return d if v is not None and v.denominator > 1 and Fraction(d) == v else None


@keeps
def decimal_frac(s, rng):
    v = value(s) if "." in s else None
    return rf"{'-' * (v < 0)}\frac{{{abs(v.numerator)}}}{{{v.denominator}}}" if v is not None and v.denominator > 1 else None


@keeps
def frac_unsimplified(s, rng):
    m, k = re.fullmatch(FRAC, s), rng.randint(2, 9)
    return rf"{m[1]}\frac{{{int(m[2]) * k}}}{{{int(m[3]) * k}}}" if m else None


@keeps
def frac_sign(s, rng):
    m = re.fullmatch(FRAC, s)
    return rng.choice([rf"\frac{{-{m[2]}}}{{{m[3]}}}", rf"\frac{{{m[2]}}}{{-{m[3]}}}", f"-{m[2]}/{m[3]}"]) if m and m[1] else None


@keeps
def mixed_number(s, rng):
    m = re.fullmatch(FRAC, s)
    if not m or int(m[2]) < int(m[3]) or int(m[2]) % int(m[3]) == 0:
        return None
    whole, rest = divmod(int(m[2]), int(m[3]))
    return m[1] + rng.choice([rf"{whole}\frac{{{rest}}}{{{m[3]}}}", rf"{whole} \dfrac{{{rest}}}{{{m[3]}}}", f"{whole} {rest}/{m[3]}"])


@keeps
def thousands(s, rng):
    if not re.fullmatch(r"-?\d{4,}", s):
        return None
    return f"{int(s):,}".replace(",", rng.choice([",", ",", "{,}", ",\\!", "\\,", " "])) if s[:1] != "0" else None


@keeps
def zeros(s, rng):
    if re.fullmatch(INT, s):
        return rng.choice([s + ".0", s + ".00", s + "."])
    return s.replace("0.", ".", 1) if re.fullmatch(r"-?0\.\d+", s) else s + "0" if re.fullmatch(r"-?\d+\.\d+", s) else None


@keeps
def spacing(s, rng):
    if "\\text" in s or "\\mbox" in s:
        return None
    space = rng.choice([" ", "\\,", "\\ ", "\\;", "  "])
    new = re.sub(r"(?<=[\w})]) *([-+]) *(?=[\w\\(])", lambda m: space + m[1] + space, s)
    return new if new != s else None


@keeps
def no_spaces(s, rng):
    new = re.sub(r"(?<![a-zA-Z\\,;]) +| +(?=[-+=()\\])", "", s)
    return new if new != s and "\\text" not in s and "\\mbox" not in s and "\\ " not in s and not re.search(r"\d \d", s) else None


@keeps
def left_right(s, rng):
    b = bracketed(s)
    if "\\left" in s:
        return re.sub(r"\\(?:left|right) ?", "", s)
    size = rng.choice([("\\left", "\\right"), ("\\bigl", "\\bigr"), ("\\Big", "\\Big")])
    return f"{size[0]}{b[0]}{', '.join(b[1])}{size[1]}{b[2]}" if b else None


@keeps
def wrapped(s, rng):
    forms = ["${}$", "\\({}\\)", "\\boxed{{{}}}", "$\\boxed{{{}}}$", "$$ {} $$", "\\[ {} \\]", " {} ", "{}.", "${}$.", "**{}**"]
    return rng.choice(forms).format(s)


@keeps
def display(s, rng):
    form = rng.choice([r"\displaystyle {}", r"{{\displaystyle {}}}", r"\displaystyle{{{}}}"])
    return form.format(s) if "\\frac" in s and "," not in s else None


@keeps
def unit_added(s, rng):
    return s + rng.choice(UNITS) if value(s) is not None and "/" not in s else None


@keeps
def unit_dropped(s, rng):
    m = re.fullmatch(r"([-\d./\\{}a-z\sqrt]*?[\d}])\s*\\(?:text|mbox) ?\{ [a-z. ]+\}(?:\^\d)?", s)
    return m[1] if m else None


@keeps
def degrees(s, rng):
    if "^\\circ" in s or "^{\\circ}" in s:
        new = rng.choice(["", "°", "^{\\circ}", r" \text{ degrees}"])
        return None if re.search("sin|cos|tan|,", s) else re.sub(r"\^\{?\\circ\}?", lambda m: new, s)
    return s + rng.choice(["^\\circ", "°", "^{\\circ}", " degrees"]) if re.fullmatch(r"\d+", s) else None


@keeps
def dollars(s, rng):
    m = re.fullmatch(r"\\\$ ?([\d.]+)", s)
    return m[1] if m else rng.choice(["\\$", "\\$ ", "$"]) + s if re.fullmatch(r"\d+(?:\.\d\d)?", s) else None


@keeps
def percent(s, rng):
    m = re.fullmatch(r"([\d.]+) ?\\%", s)
    if m:
        return m[1] + rng.choice(["%", "", " \\%", " percent", r"\text{ percent}"])
    return s + rng.choice(["\\%", "%", r"\ \%"]) if re.fullmatch(r"\d{1,2}", s) else None


@keeps
def assigned(s, rng):
    if re.search(r"[=<>_,]|\\text|\\mbox|\\[lg]e|\\in\b|\\begin|\\cup|:|\\\$|\\%", s) or re.search("[A-Z]", s):
        return None
    name = rng.choice([c for c in "xyknABC" if c not in s] + ["f(3)", "\\angle ABC", "x_1"])
    return f"{name}{rng.choice(['=', ' = '])}{s}"


@keeps
def assignment_dropped(s, rng):
    m = re.fullmatch(r"[a-zA-Z] ?= ?([^=]+)", s)
    return m[1] if m and not re.search("[<>,]|\\\\le", s) else None


@keeps
def tuple_named(s, rng):
    b = bracketed(s)
    if not b or b[0] + b[2] != "()" or len(b[1]) > 3 or "infty" in s or re.search("[a-z]", re.sub(r"\\[a-z]+", "", s)):
        return None
    return f"({','.join('xyz'[: len(b[1])])}) = {s}"


@keeps
def sum_reordered(s, rng):
    if re.search(r"[=<>,_:]|\\text|\\begin|\\cup|\\mbox|\\[lg]e|pm", s):
        return None
    parts = top(s.strip(), "+-")
    if len(parts) < 2 or any(not p.strip("+- ") for p in parts):
        return None
    parts = [p if p.strip()[0] in "+-" else "+" + p for p in parts]
    turned = parts[::-1] if len(parts) == 2 else rng.sample(parts, len(parts))
    new = " ".join(p.strip() for p in turned).lstrip("+")
    return new if turned != parts else None


@keeps
def product_reordered(s, rng):
    if m := re.fullmatch(r"(-?)(\d+) ?(\\sqrt\{\d+\}|\\pi|i)", s):
        return rng.choice([f"{m[1]}{m[3]} \\cdot {m[2]}", f"{m[1]}{m[2]} \\cdot {m[3]}", f"{m[1]}{m[2]} * {m[3]}"])
    m = re.fullmatch(r"\(([^()]+)\) ?\(([^()]+)\)", s)
    return f"({m[2]})({m[1]})" if m and m[1] != m[2] else None


@keeps
def list_reordered(s, rng):
    items = elements(s)
    new = rng.sample(items, len(items))
    return ", ".join(new) if items and new != items else None


@keeps
def list_as_set(s, rng):
    items = elements(s)
    return rng.choice(["\\{{{}\\}}", "\\left\\{{{}\\right\\}}"]).format(", ".join(reversed(items))) if items else None


@keeps
def list_and(s, rng):
    items = elements(s)
    word = rng.choice([" and ", r" \text{ and } ", " or ", r"\text{ or }", ", and "])
    return ", ".join(items[:-1]) + word + items[-1] if items else None


@keeps
def plus_minus(s, rng):
    items = elements(s)
    m = re.fullmatch(r"([^+-]+?) ?\+ ?(.+)", items[0]) if len(items) == 2 else None
    conjugate = m and items[1].replace(" ", "") == f"{m[1]}-{m[2]}".replace(" ", "") and not re.search("[-+]", m[2])
    return f"{m[1]} \\pm {m[2]}" if conjugate else None


@keeps
def polynomial_expanded(s, rng):
    p = polynomial(s)
    new = plain_latex(p.expand()) if p is not None and "(" in s else None
    return new if new and p.expand().is_Add else None


@keeps
def polynomial_factored(s, rng):
    p = polynomial(s)
    new = plain_latex(p.factor()) if p is not None and "(" not in s else ""
    return new if "(" in new and "/" not in new else None


@keeps
def polynomial_times(s, rng):
    p = polynomial(s)
    sign = rng.choice(["*", r" \\cdot ", r"\\times "])
    return re.sub(r"(?<=\d)(?=[a-z(])", sign, s) if p is not None and re.search(r"\d[a-z(]", s) else None


@keeps
def surd_inside(s, rng):
    m = re.fullmatch(r"(-?)(\d+) ?\\sqrt\{(\d+)\}", s)
    return rf"{m[1]}\sqrt{{{int(m[2]) ** 2 * int(m[3])}}}" if m else None


@keeps
def surd_rationalised(s, rng):
    m = re.fullmatch(r"(-?)\\frac\{\\sqrt\{(\d+)\}\}\{(\d+)\}", s)
    if m:
        return rf"{m[1]}\frac{{{m[2]}}}{{{m[3]}\sqrt{{{m[2]}}}}}"
    m = re.fullmatch(r"(-?)(\d*) ?\\sqrt\{(\d+)\}", s)
    return rf"{m[1]}\frac{{{int(m[2] or 1) * int(m[3])}}}{{\sqrt{{{m[3]}}}}}" if m else None


@keeps
def surd_power(s, rng):
    m = re.fullmatch(r"(-?)(\d*) ?\\sqrt(?:\[(\d)\])?\{(\d+|[a-z])\}", s)
    return f"{m[1]}{m[2]}{' * ' if m[2] else ''}{m[4]}^{{1/{m[3] or 2}}}" if m else None


@keeps
def plain_names(s, rng):
    new = re.sub(r" ?\\sqrt\{(\d+)\}", r"*sqrt(\1)", s) if re.fullmatch(r"-?\d+ ?\\sqrt\{\d+\}", s) else s
    new = re.sub(r" ?\\pi", rng.choice(["pi", " pi", "*pi"]), new) if re.fullmatch(r"-?\d+ ?\\pi", new) else new
    return new if new != s else None


@keeps
def surd_short(s, rng):
    new = re.sub(r"\\sqrt\{(\d)\}", rng.choice([r"\\sqrt\1", r"\\sqrt \1"]), s)
    return new if new != s else None


@keeps
def pi_fraction(s, rng):
    m = re.fullmatch(r"(-?)\\frac\{(\d*) ?\\pi\}\{(\d+)\}", s)
    return rng.choice([rf"{m[1]}\frac{{{m[2] or 1}}}{{{m[3]}}}\pi", f"{m[1]}{m[2]}\\pi/{m[3]}", f"{m[1]}{m[2]}π/{m[3]}"]) if m else None


@keeps
def unicode(s, rng):
    new = s
    for latex, char in (("\\pi", "π"), ("\\infty", "∞"), ("\\cup", "∪"), ("^\\circ", "°"), ("\\le ", "≤ "), ("\\cdot", "·"), ("\\pm", "±")):
        new = new.replace(latex, char)
    new = re.sub(r"\\sqrt\{(\d+)\}", r"√\1", new)
    new = re.sub(r"\^(?:\{([23])\}|([23])(?!\d))", lambda m: "²³"[int(m[1] or m[2]) - 2], new)
    new = re.sub(r"^-|(?<= )-(?= )", "−", new)
    new = {"\\frac{1}{2}": "½", "\\frac{3}{4}": "¾", "\\frac{1}{4}": "¼"}.get(new, new)
    return new if new != s and "text" not in s else None


@keeps
def matrix_brackets(s, rng):
    return s.replace("pmatrix", "bmatrix") if "pmatrix" in s else None


@keeps
def matrix_array(s, rng):
    m = re.fullmatch(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", s)
    columns = "c" * (m[1].split("\\\\")[0].count("&") + 1) if m else ""
    return rf"\left[\begin{{array}}{{{columns}}}{m[1]}\end{{array}}\right]" if m else None


@keeps
def matrix_slash(s, rng):
    new = re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"\1/\2", s)
    return new if "pmatrix" in s and new != s else None


@keeps
def interval_member(s, rng):
    return rng.choice([f"x \\in {s}", f"x ∈ {s}", f"$x \\in {s}$"]) if is_interval(s) or "\\cup" in s and "x" not in s else None


@keeps
def interval_inequality(s, rng):
    if not is_interval(s):
        return None
    (left, (low, high), right), sign = bracketed(s), rng.choice([("\\le", "\\ge"), ("\\leq", "\\geq"), ("≤", "≥"), ("<=", ">=")])
    if "infty" in low and "infty" in high:
        return None
    if "infty" in low:
        return f"x {sign[0] if right == ']' else '<'} {high}"
    if "infty" in high:
        return rng.choice([f"x {sign[1] if left == '[' else '>'} {low}", f"{low} {sign[0] if left == '[' else '<'} x"])
    return f"{low} {sign[0] if left == '[' else '<'} x {sign[0] if right == ']' else '<'} {high}"


@keeps
def hole(s, rng):
    m = re.fullmatch(r"(?:\\left)? ?\(-\\infty, ?([^,()]+?) ?(?:\\right)? ?\) ?\\cup ?(?:\\left)? ?\( ?([^,()]+?), ?\\infty ?(?:\\right)? ?\)", s)
    if not m or m[1].strip() != m[2].strip():
        return None
    return rng.choice([rf"\mathbb{{R}} \setminus \{{{m[1]}\}}", f"x \\ne {m[1]}", f"x ≠ {m[1]}"])


@keeps
def all_reals(s, rng):
    is_line = re.fullmatch(r"\(-\\infty, ?\\infty\)", s)
    return rng.choice([r"\mathbb{R}", r"\text{all real numbers}", "ℝ", r"\text{All reals}"]) if is_line else None


@keeps
def base_written(s, rng):
    m = re.fullmatch(r"(\d+)_\{?(\d)\}?", s)
    if not m:
        return None
    word = "zero one two three four five six seven eight nine".split()[int(m[2])]
    return rng.choice([f"{m[1]}_{m[2]}", f"{m[1]}_{{{m[2]}}}", rf"{m[1]}_{{\text{{{word}}}}}", f"({m[1]})_{m[2]}"])


@keeps
def text_plain(s, rng):
    m = re.fullmatch(r"\\text\{([A-Za-z]{3,})\}", s)
    return rng.choice([m[1], m[1].lower(), rf"\textbf{{{m[1]}}}", rf"\mathrm{{{m[1]}}}", m[1].capitalize() + "."]) if m else None


@keeps
def choice(s, rng):
    m = re.fullmatch(r"\\text\{\(?([A-H])\)?\}|([A-H])", s)
    letter = m and (m[1] or m[2])
    return rng.choice([letter, f"({letter})", rf"\text{{{letter}}}", rf"\textbf{{({letter})}}", rf"\mathrm{{({letter})}}"]) if m else None


@keeps
def equation_moved(s, rng):
    m = re.fullmatch(r"y ?= ?([^=]+)", s)
    if m and re.search("x", m[1]):
        return rng.choice([f"{m[1]} = y", f"y - ({m[1]}) = 0"])
    m = re.fullmatch(r"([^=]+?) ?= ?0", s)
    return rng.choice([f"0 = {m[1]}", f"-({m[1]}) = 0", f"2({m[1]}) = 0"]) if m and re.search("[xyz]", m[1]) else None


@keeps
def scientific(s, rng):
    m = re.fullmatch(r"([1-9])(0{3,})", s)
    return rf"{m[1]} {rng.choice([chr(92) + 'times', chr(92) + 'cdot', '×'])} 10^{{{len(m[2])}}}" if m else None


# --- Edits that change the value ------------------------------------------------------------------------------------------
@changes
def digit(s, rng):
    spots = [m.start() for m in re.finditer(r"\d", s)]
    if not spots or re.search(r"sqrt\[|\\approx|= \d|text\{[A-Z]", s) or re.search(r"^0\.\d*=", s):
        return None
    i = rng.choice(spots)
    return s[:i] + rng.choice([d for d in "0123456789" if d != s[i]]) + s[i + 1 :]


@changes
def sign_of_number(s, rng):
    if value(s):
        return s[1:] if s[0] == "-" else "-" + s
    return None


@changes
def sign_inside(s, rng):
    spots = [m.start() for m in re.finditer(r"(?<=[\w}) ])[-+](?= ?[\w\\(])", s) if m.start() > 0]
    if not spots or re.search(r"\\text|\\begin|pm|,|=|[A-Z]", s):
        return None
    i = rng.choice(spots)
    return s[:i] + "+-"["+-".index(s[i]) ^ 1] + s[i + 1 :]


@changes
def sign_of_element(s, rng):
    b = bracketed(s)
    spots = [i for i, x in enumerate(b[1]) if value(x)] if b else []
    if not spots:
        return None
    i = rng.choice(spots)
    new = list(b[1])
    new[i] = new[i][1:] if new[i][0] == "-" else "-" + new[i]
    return f"{b[0]}{', '.join(new)}{b[2]}"


@changes
def swapped_fraction(s, rng):
    m = re.fullmatch(FRAC, s)
    return rf"{m[1]}\frac{{{m[3]}}}{{{m[2]}}}" if m and m[2] != m[3] and int(m[2]) else None


@changes
def base_changed(s, rng):
    m = re.fullmatch(r"(\d+)_\{?(\d+)\}?", s)
    return f"{m[1]}_{{{int(m[2]) + rng.choice([1, 2])}}}" if m else None


@changes
def base_digits(s, rng):
    m = re.fullmatch(r"(\d+)_\{?(\d+)\}?", s)
    return rng.choice([f"{m[1]}0_{m[2]}", f"1{m[1]}_{m[2]}", f"{m[1][:-1]}_{m[2]}"]) if m and len(m[1]) > 1 else None


@changes
def tuple_swapped(s, rng):
    b = bracketed(s)
    pairs = [i for i in range(len(b[1]) - 1) if differ(b[1][i], b[1][i + 1])] if b else []
    if not pairs:
        return None
    i, new = rng.choice(pairs), list(b[1])
    new[i], new[i + 1] = new[i + 1], new[i]
    return f"{b[0]}{', '.join(new)}{b[2]}"


@changes
def tuple_as_set(s, rng):
    b = bracketed(s)
    return f"\\{{{', '.join(b[1])}\\}}" if b and not is_interval(s) else None


@changes
def tuple_element(s, rng):
    b = bracketed(s)
    return f"{b[0]}{', '.join(b[1] + ['0'] if rng.random() < 0.5 else b[1][:-1])}{b[2]}" if b and len(b[1]) > 2 else None


@changes
def bracket_type(s, rng):
    if not is_interval(s):
        return None
    left, (low, high), right = bracketed(s)
    flip = {"(": "[", "[": "(", ")": "]", "]": ")"}
    if "infty" in low and "infty" in high:
        return None
    if "infty" not in low and ("infty" in high or rng.random() < 0.5):
        return f"{flip[left]}{low},{high}{right}"
    return f"{left}{low},{high}{flip[right]}"


@changes
def union_part(s, rng):
    sets = re.split(r"\s*\\cup\s*", s)
    return " \\cup ".join(sets[:-1]) if len(sets) > 1 else None


@changes
def inequality_turned(s, rng):
    b = bracketed(s) if is_interval(s) else None
    if not b or ("infty" in b[1][0]) == ("infty" in b[1][1]):
        return None
    return f"x {'>' if 'infty' in b[1][0] else '<'} {b[1][1] if 'infty' in b[1][0] else b[1][0]}"


@changes
def variable_renamed(s, rng):
    names = set(re.findall(r"(?<![\\a-zA-Z])[a-z](?![a-zA-Z])", s)) - {"e", "i"}
    if len(names) != 1 or re.search(r"\\text|\\mbox|=|\(x\)|\\in", s):
        return None
    old = names.pop()
    return re.sub(rf"(?<![\\a-zA-Z]){old}(?![a-zA-Z])", rng.choice([c for c in "xyztnmk" if c != old]), s)


@changes
def variable_case(s, rng):
    p = polynomial(s)
    return re.sub("[a-z]", lambda m: m[0].upper(), s) if p is not None and len(s) > 1 else None  # a letter alone may be a choice


@changes
def exponent(s, rng):
    new = re.sub(r"(?<=[a-z)])\^\{?(\d)\}?(?!\d)", lambda m: f"^{{{int(m[1]) + rng.choice([1, 2])}}}", s, count=1)
    return new if new != s else None


@changes
def root_index(s, rng):
    if "\\sqrt[" in s:
        return re.sub(r"\\sqrt\[\d\]", r"\\sqrt", s)
    new = re.sub(r"\\sqrt(?=\{\d+\})", rng.choice([r"\\sqrt[3]", r"\\sqrt[4]"]), s, count=1)
    return new if new != s and "," not in s else None


@changes
def root_dropped(s, rng):
    new = re.sub(r"\\sqrt\{(\d+)\}", r"\\cdot \1" if re.match(r"-?\d", s) else r"\1", s, count=1)
    return new if re.fullmatch(r"-?\d* ?\\sqrt\{\d+\}", s) else None


@changes
def factor_dropped(s, rng):
    m = re.fullmatch(r"(-?\d+) ?(\\pi|i|\\sqrt\{\d+\}|[a-z])", s)
    return m[1] if m else None


@changes
def list_element(s, rng):
    items = elements(s)
    if not items:
        return None
    i = rng.randrange(len(items))
    return ", ".join(items[:i] + items[i + 1 :]) if rng.random() < 0.5 else ", ".join(items + ["97"])


@changes
def list_digit(s, rng):
    items = elements(s)
    spots = [i for i, x in enumerate(items) if re.fullmatch(INT, x)]
    if not spots:
        return None
    i = rng.choice(spots)
    new = str(int(items[i]) + rng.choice([-1, 1, 10]))
    return ", ".join(items[:i] + [new] + items[i + 1 :]) if new not in items else None


@changes
def off_by_one(s, rng):
    return str(int(s) + rng.choice([-1, 1])) if re.fullmatch(INT, s) else None


@changes
def times_ten(s, rng):
    if re.fullmatch(r"-?[1-9]\d*", s):
        return rng.choice([s + "0", s + "00", f"{s[:-1]}.{s[-1]}" if len(s.strip("-")) > 1 and s[-1] != "0" else s + "0"])
    return None


@changes
def rounded(s, rng):
    m = re.fullmatch(FRAC, s)
    if m and Fraction(int(m[2]), int(m[3])).limit_denominator(1000) == Fraction(int(m[2]), int(m[3])):
        places = rng.randint(2, 4)
        new = f"{m[1]}{int(m[2]) / int(m[3]):.{places}f}"
        return new if Fraction(new) != value(s) else None
    m = re.fullmatch(r"(\d*) ?\\(pi|sqrt\{\d+\})", s)
    if not m:
        return None
    number = 3.141592653589793 if m[2] == "pi" else int(m[2][5:-1]) ** 0.5
    return f"{int(m[1] or 1) * number:.{rng.randint(2, 8)}f}" if number % 1 else None


@changes
def almost(s, rng):
    return s + rng.choice([".001", ".0000001", ".5"]) if re.fullmatch(r"\d+", s) else s + "1" if re.fullmatch(r"\d+\.\d+", s) else None


@changes
def added_term(s, rng):
    if value(s) is None:
        return None
    return s + rng.choice(["x", "+x", "\\pi", "i", "\\sqrt{2}", "!"]) if value(s) not in (0, 1, 2) else None


@changes
def matrix_transposed(s, rng):
    m = re.fullmatch(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", s)
    rows = [[c.strip() for c in row.split("&")] for row in m[1].split("\\\\")] if m else []
    turned = [list(c) for c in zip(*rows, strict=False)] if rows and len({len(r) for r in rows}) == 1 else rows
    body = " \\\\ ".join(" & ".join(row) for row in turned)
    return rf"\begin{{pmatrix}} {body} \end{{pmatrix}}" if turned != rows else None


@changes
def matrix_entry(s, rng):
    spots = [m for m in re.finditer(r"(?<![\d/{])-?\d+(?![\d/}])", s)] if "pmatrix" in s else []
    if not spots:
        return None
    m = rng.choice(spots)
    return s[: m.start()] + str(int(m[0]) + rng.choice([-1, 1])) + s[m.end() :]


@changes
def word_changed(s, rng):
    words = "even odd Monday Tuesday Sunday circle ellipse parabola neither Evelyn Briana east west".split()
    m = re.fullmatch(r"\\text\{([A-Za-z]{3,})\}", s)
    return rng.choice([w for w in words if w.lower() != m[1].lower()]) if m else None


@changes
def choice_changed(s, rng):
    m = re.fullmatch(r"\\text\{\(?([A-H])\)?\}", s)
    return rng.choice([f"({c})" for c in "ABCDEFGH" if c != m[1]]) if m else None


@changes
def unit_contradicted(s, rng):
    m = re.fullmatch(r"(.*?)\\text\{ ?(cm|feet|inches|dollars|degrees|days|hours|minutes|miles)\}", s)
    other = {"cm": "m", "feet": "inches", "inches": "feet", "dollars": "cents", "degrees": "radians", "days": "hours", "hours": "minutes"}
    return m[1] + rf"\text{{ {other.get(m[2], 'seconds' if m[2] == 'minutes' else 'km')}}}" if m else None


@changes
def equation_constant(s, rng):
    m = re.fullmatch(r"(.*[xyz].*=.*?)(\d+)", s)
    return f"{m[1]}{int(m[2]) + 1}" if m and "^" not in m[1][-2:] else None


@changes
def one_side_only(s, rng):
    m = re.fullmatch(r"([^=]*[xyz][^=]*[+-][^=]*)= ?(\d+)", s)
    return rng.choice([m[1], m[2]]) if m else None


def neighbours(answers: list[str], rng: random.Random, n: int) -> list[tuple]:
    """Pairs of different MATH answers of one kind: plain numbers that differ, or words that differ."""
    numbers = [a for a in answers if value(a) is not None]
    words = [a for a in answers if re.fullmatch(r"\\text\{[A-Za-z]+\}", a)]
    rest = [a for a in answers if len(a) > 6 and re.search(r"\\sqrt|\\pi|[xyz]", a) and not re.search(r"[,=]|\\text", a)]
    pairs = [("neighbour_number", *rng.sample(numbers, 2)) for _ in range(n)]
    pairs += [("neighbour_word", *rng.sample(words, 2)) for _ in range(n)]
    pairs = [p for p in pairs if differ(*p[1:]) or p[0] == "neighbour_word" and p[1].lower() != p[2].lower()]
    kinds = [("neighbour_mixed", *rng.sample([rng.choice(numbers), rng.choice(rest)], 2)) for _ in range(n)]
    return pairs + [p for p in kinds if not all(value(x) is not None for x in p[1:])]


def make_pairs(answers: list[str], seed: int = 0, per_kind: int = 70) -> list[tuple[str, str, str, bool]]:
    """(kind, gold, pred, same) rows; the same for the same answers and seed."""
    answers, rows = sorted(set(filter(None, (a.strip(" .") for a in answers)))), []
    for same, edits in ((True, KEEP), (False, CHANGE)):
        for name, edit in edits.items():
            rng = random.Random(f"{seed} {name}")
            found = ((name, a, new, same) for a in rng.sample(answers, len(answers)) if (new := edit(a, rng)) and new != a)
            rows += [row for row, _ in zip(found, range(per_kind), strict=False)]
    return rows + [(*p, False) for p in neighbours(answers, random.Random(f"{seed} neighbours"), per_kind)]


def math_rows(folder: Path) -> list[dict]:
    lines = [line for name in ("train", "test") for line in (folder / f"{name}.jsonl").open(encoding="utf-8")]
    return [row for row in map(json.loads, lines) if row["answer"]]


def read_replies(path: Path) -> dict[str, list[dict]]:
    """The replies by group; those to OlympiadBench, whose golds are of other kinds, are a group of their own."""
    groups = {"box": [], "marker": [], "OlympiadBench": [], "tag": []}
    for row in map(json.loads, path.open(encoding="utf-8")):
        kind = "box" if "\\boxed" in row["text"] else "marker"
        group = "tag" if row["tier"] == "tag" else "OlympiadBench" if row["bench"].startswith("Olympiad") else kind
        groups[group].append(row)
    return groups


def math_verify_pair(gold: str, pred: str) -> bool:
    from math_verify import parse, verify

    return verify(parse(f"${gold}$"), parse(f"${pred}$"))  # its own alarms stop it after 5 s


def math_verify_reply(gold: str, text: str) -> bool:
    from math_verify import parse, verify

    return verify(parse(f"${gold}$"), parse(text))


def errors(rows: list[tuple[str, str, bool]], judge) -> dict:
    """What a judge (gold, text -> bool) gets wrong of rows (gold, text, expected), and how long it takes."""
    wrong, seconds = [], []
    for gold, text, expected in rows:
        start = time.perf_counter()
        verdict = judge(gold, text) is True
        seconds.append(time.perf_counter() - start)
        if verdict != expected:
            wrong.append((gold, text, expected))
    seconds.sort()
    same = sum(expected for *_, expected in rows)
    return {"rows": len(rows), "same": same, "rejects": sum(expected for *_, expected in wrong),
            "accepts": sum(not expected for *_, expected in wrong), "mean_ms": 1000 * sum(seconds) / len(rows),
            "p99_ms": 1000 * seconds[int(0.99 * len(rows))], "wrong": wrong}


def ablate(common, sets: dict[str, list[tuple]]) -> list[dict]:
    """Each rule and each marker switched off: what that costs on each set. Verdicts of the algebra are remembered."""
    ask, known = common._ask, {}

    def remember(left, *question):
        if question not in known:
            try:
                known[question] = ask(left, *question)
            except TimeoutError:
                known[question] = None
        if known[question] is None:
            raise TimeoutError
        return known[question]

    def wrong() -> dict[str, set]:
        common._is_equiv.cache_clear()
        common._normal.cache_clear()
        judges = {name: (lambda gold, pred: common.is_equiv(pred, gold)) if name == "pairs" else
                  (lambda gold, text: common.score(text, gold)) for name in sets}
        return {name: set(errors(rows, judges[name])["wrong"]) for name, rows in sets.items()}
    common._ask = remember
    usual, found = wrong(), []
    for table in (common._RULES, common._MARKS):
        for i, entry in enumerate(list(table)):
            del table[i]
            costs = {name: len(rows) - len(usual[name]) for name, rows in wrong().items()}
            table.insert(i, entry)
            pattern = (entry[0] if isinstance(entry, tuple) else entry).pattern
            found.append({"off": pattern, **costs})
            print(f"{pattern[:70]:72}" + "".join(f"{name} {cost:+4}  " for name, cost in costs.items()), flush=True)
    common._ask = ask
    return found


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import common

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(os.environ.get("REAL_DATA", "."))
    parser.add_argument("--data", default=str(here / "math"), help="folder with MATH's train.jsonl and test.jsonl")
    parser.add_argument("--replies", default=str(here / "replies_dev.jsonl"),
                        help="JSON lines of real replies: text, gold, expected, bench, tier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-kind", type=int, default=70)
    parser.add_argument("--alone", action="store_true", help="without math-verify beside it")
    parser.add_argument("--ablate", action="store_true", help="each rule and marker switched off; ten minutes more")
    parser.add_argument("--save", help="write the counts to this file")
    args = parser.parse_args()
    math = math_rows(Path(args.data))
    groups = read_replies(Path(args.replies))
    pairs = make_pairs([row["answer"] for row in math], args.seed, args.per_kind)
    sets = {f"replies, {name}": [(row["gold"], row["text"], row["expected"]) for row in rows] for name, rows in groups.items()}
    sets["pairs"] = [(gold, pred, same) for _, gold, pred, same in pairs]
    sets["MATH"] = [(row["answer"], row["solution"], True) for row in math]
    common.is_equiv("x+1", "1+x")  # the algebra's process is up
    judges = {"scorer": (lambda gold, text: common.score(text, gold), lambda gold, pred: common.is_equiv(pred, gold))}
    if not args.alone:
        judges["math-verify"] = (math_verify_reply, math_verify_pair)
    result = {"command": "REAL_DATA=FOLDER python benchmarks/scorer.py " + " ".join(sys.argv[1:]), "sets": {}}
    print(f"{'':24}{'judge':14}{'rejects equal':>22}{'accepts different':>22}{'mean ms':>10}{'p99 ms':>10}")
    for name, rows in sets.items():
        result["sets"][name] = {}
        for judge, (of_reply, of_pair) in judges.items():
            if judge == "math-verify" and name == "MATH":
                continue
            counts = errors(rows, of_pair if name == "pairs" else of_reply)
            wrong = counts.pop("wrong")
            result["sets"][name][judge] = counts
            n, same = counts["rows"], counts["same"]
            rates = [f"{wrongs} of {all_} ({100 * wrongs / max(all_, 1):.2f} %)" for wrongs, all_ in (
                (counts["rejects"], same), (counts["accepts"], n - same))]
            print(f"{name:24}{judge:14}{rates[0]:>22}{rates[1]:>22}{counts['mean_ms']:10.1f}{counts['p99_ms']:10.1f}")
            for gold, text, expected in wrong if judge == "scorer" else []:
                print(f"    {'rejected' if expected else 'accepted'}: {gold!r} {text[-80:]!r}")
    if args.ablate:
        joined = {"replies": [row for name, rows in sets.items() if name.startswith("replies") for row in rows]}
        result["ablation"] = ablate(common, joined | {name: sets[name] for name in ("pairs", "MATH")})
    if args.save:
        Path(args.save).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
