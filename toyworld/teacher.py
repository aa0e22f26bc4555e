"""A simulated teacher: an OpenAI-compatible server on loopback that answers the method files' own prompts by solving the problem it reads.

It labels, diagnoses and rewrites. A set share of its replies is wrong or malformed, as an LLM's are. What it says follows from the request's
text and `seed` alone. On problems of another world (real mathematics) it only plays its part: skills by chance, rewrites that repeat the
given solution.
"""
import json
import random
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from toyworld import problems as toy

P_WRONG, P_MALFORMED = 0.08, 0.03  # shares of replies that are wrong (a skill or a number), or not in the form asked for


def section(prompt: str, tag: str) -> str | None:
    found = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", prompt, re.DOTALL)
    return found[1].strip() if found else None


def reply(prompt: str, seed: int) -> str:
    """The teacher's reply to a prompt of a method file."""
    rng = random.Random(f"{seed} {prompt}")
    text, response, solution, skills = (section(prompt, tag) for tag in ("problem", "response", "solution", "skills"))
    names = [line.strip("- ") for line in (skills or "").splitlines() if line.strip()]
    problem = toy.read(text or "")
    wrong, malformed = rng.random() < P_WRONG, rng.random() < P_MALFORMED
    if response is not None:
        return diagnose(rng, problem, response, names, wrong, malformed)
    if solution is not None:
        return rewrite(rng, problem, solution, wrong, malformed)
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
    steps, answer = toy.solve(problem)
    steps, style = [step for step, _ in steps], rng.randrange(len(toy.STYLES))
    if wrong:  # the last number is off
        digit = rng.choice([d for d in "0123456789" if d != steps[-1][-1]])
        steps[-1], answer = steps[-1][:-1] + digit, answer[:-1] + digit
    text = toy.write_solution(steps, answer, style)
    return text.replace("\\boxed", "") if malformed else text


class Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = asked["messages"][-1]["content"]
        text = reply(prompt, asked.get("seed") or 0)
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


def serve() -> tuple[Server, str]:
    """Starts the teacher in a thread of this process; returns the server and its base URL."""
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/v1"
