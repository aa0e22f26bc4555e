"""A simulated teacher: an OpenAI-compatible server on loopback that answers the method files' own prompts by solving the problem it reads.

It labels, diagnoses and rewrites, proposes new problems, solves and marks; of deduction it does the last three. A set share of its replies is wrong
or malformed, as an LLM's are. What it says follows from the request's text and `seed` alone. On problems of another world (real mathematics) it only
plays its part: skills by chance, rewrites that repeat the given solution, new problems around a given one, made-up answers.
"""
import json
import random
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from toyworld import deduction
from toyworld import problems as toy

P_WRONG, P_MALFORMED = 0.08, 0.03  # shares of replies that are wrong (a skill or a number), or not in the form asked for
P_COPY, P_UNSOLVABLE, P_OFF_SKILL = 0.08, 0.05, 0.05  # of new problems: a given one with other numbers, one without an answer, one of another skill
P_SLIP = 0.2  # of solutions without a given one: the last number is off. Half of the slips are the one that the problem invites, so they may agree
P_SLIP_DEDUCTION = 0.05  # fewer: all slips there are alike


def section(prompt: str, tag: str) -> str | None:
    found = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", prompt, re.DOTALL)
    return found[1].strip() if found else None


def read(text: str):
    """The problem of either family that a text states, or None."""
    return toy.read(text) or deduction.read(text)


def reply(prompt: str, seed: int) -> str:
    """The teacher's reply to a prompt of a method file."""
    rng = random.Random(f"{seed} {prompt}")
    text, response, solution, skills = (section(prompt, tag) for tag in ("problem", "response", "solution", "skills"))
    names = [line.strip("- ") for line in (skills or "").splitlines() if line.strip()]
    if "<mark>" in prompt:
        return judge(rng, read(text or ""), re.findall(r"<response>\n(.*?)\n</response>", prompt, re.DOTALL))
    if "<question>" in prompt:
        return propose(rng, re.findall(r"<problem>\n(.*?)\n</problem>", prompt, re.DOTALL), section(prompt, "skill"), rng.random() < P_MALFORMED)
    problem = read(text or "")
    wrong, malformed = rng.random() < P_WRONG, rng.random() < P_MALFORMED
    if response is not None:
        return diagnose(rng, problem, response, names, wrong, malformed)
    if solution is not None:
        return rewrite(rng, problem, solution, wrong, malformed)
    if not names:
        return solve(rng, problem, text or "", malformed)
    return label(rng, problem, names, wrong, malformed)


def label(rng, problem, names, wrong, malformed) -> str:
    known = [name for name in (problem.skills if problem else []) if name in names] or rng.sample(names, min(2, len(names)))
    if wrong:
        known = rng.sample(names, min(len(known), len(names)))
    if malformed:
        return f"It needs {known[0]}."
    return f"<reason>Solving it takes {' and '.join(known)}.</reason>\n<skill>{', '.join(known)}</skill>"


def diagnose(rng, problem, response, names, wrong, malformed) -> str:
    if problem:
        found = toy.check(problem, response)
        missing = [] if found["is_right"] else [found["missing"]]
        bad = [step for step, is_right in found["steps"] if not is_right]
        reason = f"The step {bad[0]} is false." if bad else "A step is missing."
    else:
        missing, reason = rng.sample(names, min(2, len(names))), "The response does not reach the answer."
    if missing and wrong:
        missing = [rng.choice(names)]
    if malformed:
        return f"The student should practise {', '.join(missing) or 'nothing'}."
    judge = "incorrect" if missing else "correct"
    return f"<judge>{judge}</judge>\n<reason>{reason}</reason>\n<skill>{', '.join(missing) or 'none'}</skill>"


def rewrite(rng, problem, solution, wrong, malformed) -> str:
    if problem is None:
        return f"Let us work it out.\n{solution}"
    digit = rng.choice([d for d in "0123456789" if d != toy.solve(problem)[1][-1]]) if wrong else None
    return write(rng, problem, digit, malformed)


def write(rng, problem, last_digit, malformed) -> str:
    """A worked solution; with last_digit, one whose last number ends in that."""
    steps, answer = toy.solve(problem)
    steps, style = [step for step, _ in steps], rng.randrange(len(toy.STYLES))
    if last_digit:
        steps[-1], answer = steps[-1][:-1] + last_digit, answer[:-1] + last_digit
    text = toy.write_solution(steps, answer, style)
    return text.replace("\\boxed", "") if malformed else text


def propose(rng, given: list[str], skill: str | None, malformed) -> str:
    """A new problem of the skill "subject: name", or of the kind of the given ones, in a form that none of them has."""
    known = [problem for text in given if (problem := read(text))]
    if known and isinstance(known[0], deduction.Problem):
        text = propose_deduction(rng, rng.choice(known))
    elif not known:
        text = f"Let A be the answer to this: {rng.choice(given)} What is A plus {rng.randint(2, 9)}?"
    else:
        kind, like = rng.random(), rng.choice(known)
        forms, texts = {hide_numbers(text) for text in given}, [draw_new(rng, like, skill, kind < P_OFF_SKILL) for _ in range(20)]
        if kind > 1 - P_COPY:  # nothing but the numbers is new
            texts = [draw_new(rng, like, None, False) for _ in range(200)]
            text = next((text for text in texts if hide_numbers(text) in forms), like.text)
        else:
            text = next((text for text in texts if hide_numbers(text) not in forms), texts[0])
        if P_OFF_SKILL < kind < P_OFF_SKILL + P_UNSOLVABLE:
            text = re.sub(r"\d+", "t", text.partition(". ")[2] or text, count=1)  # what t is, is not said
    tag = "problem" if malformed else "question"
    return f"<reason>They have it in common.</reason>\n<draft>The same skill in another form.</draft>\n<{tag}>{text}</{tag}>"


def propose_deduction(rng, like: deduction.Problem) -> str:
    """A problem that takes as many rules as the given one, or one more or fewer; some are the given one, in some the rules decide nothing."""
    kind, depth = rng.random(), deduction.level(like) + rng.choice((-1, 0, 0, 0, 1))
    text = deduction.make(rng, min(max(depth, deduction.DEPTHS[0]), deduction.DEPTHS[-1])).text
    if kind < P_UNSOLVABLE:
        text = text.replace(deduction.read(text).start, "someone", 1) if rng.random() < 0.5 else text.partition(". ")[2]
    return like.text if kind > 1 - P_COPY else text


def judge(rng, problem, responses: list[str]) -> str:
    """A mark for each answer: about 9 for a right one, about 3 for a wrong one, now and then the other way round."""
    check = deduction.is_right if isinstance(problem, deduction.Problem) else lambda problem, text: toy.check(problem, text)["is_right"]
    is_right = [problem is not None and check(problem, text) != (rng.random() < P_WRONG) for text in responses]
    return f"<mark>{', '.join(str((9 if right else 3) + rng.randint(-1, 1)) for right in is_right)}</mark>"


def hide_numbers(text: str) -> str:
    return re.sub(r"\d+", "0", text)


def draw_new(rng, like: toy.Problem, skill: str | None, off_skill: bool) -> str:
    """A problem of the skill, as large as `like`; without a skill, or where it comes alone in another subject, of the parts that it takes."""
    size, names = (toy.level(like) - 1) % 3 + 1, [part.skill.name for part in like.parts]
    if skill:
        subject, _, name = skill.partition(": ")
        seconds = [second for second in toy.SECOND if toy.BY_NAME[second].subject == subject]
        alone = toy.BY_NAME[name].subject == subject
        names = [name] if alone else [name, rng.choice(seconds)]
        if alone and rng.random() < 0.2:  # as the second part of two
            names = [rng.choice(toy.FIRST), name] if name in toy.SECOND else names
    if off_skill:
        names = [rng.choice([name for name in toy.BY_NAME if name not in names])]
    return toy.make(rng, names[0], min(size, 2) if len(names) > 1 else size, *names[1:]).text


def solve(rng, problem, text: str, malformed) -> str:
    """A solution from the problem alone; what it can't solve it guesses at."""
    if isinstance(problem, deduction.Problem):
        steps, answer = deduction.solve(problem)
        if rng.random() < P_SLIP_DEDUCTION:  # the last rule is turned round
            contrary = f"not {problem.trait}" if answer == "True" else problem.trait
            steps[-1], answer = steps[-1].replace(f"is {deduction.reached(problem)[-1]}.", f"is {contrary}."), str(answer == "False")
        text = deduction.write_solution(steps, answer)
        return text.replace("\\boxed", "") if malformed else text
    if problem is None:
        guess = rng.randint(1, 2) if text.startswith("Let A be") else rng.randint(1, 20) if "True or false" not in text else rng.random() < 0.5
        return f"It must be \\boxed{{{guess}}}."
    digit, other = toy.solve(problem)[1][-1], rng.choice("123456789")
    slip = None if rng.random() > P_SLIP else other if rng.random() < 0.5 else "1"
    return write(rng, problem, slip and str((int(digit) + int(slip)) % 10), malformed)


class Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    answer = None  # another teacher's reply(prompt, seed)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = asked["messages"][-1]["content"]
        text = (self.answer or reply)(prompt, asked.get("seed") or 0)
        body = json.dumps({
            "id": "toy", "object": "chat.completion", "created": 0, "model": asked["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(text) // 4, "total_tokens": (len(prompt) + len(text)) // 4},
        }).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size, daemon_threads = 256, True


def serve(answer=None) -> tuple[Server, str]:
    """Starts the teacher, or another one that replies by answer(prompt, seed), in a thread; returns the server and its base URL."""
    handler = type("Other", (Handler,), {"answer": staticmethod(answer)}) if answer else Handler
    server = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/v1"
