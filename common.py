"""What the method files share: teacher calls, MATH scoring, data, 4-bit models and reward models, the run directory, the command line.

Copy this file with the method file that you take. Importing it loads none of torch, openai, datasets or math-verify.
"""
import asyncio
import contextlib
import dataclasses
import errno
import fcntl
import functools
import gc
import hashlib
import importlib.metadata
import io
import itertools
import json
import marshal
import math
import os
import platform
import random
import re
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from collections import Counter, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm


class UserError(Exception):
    """What the user can mend, in one sentence: where, what was expected, what came, what to do. The command line prints it and exits with 2."""


# --- Teacher: cached, capped calls to any OpenAI-compatible chat server. ----------------------------------------------
class Request(NamedTuple):
    messages: list[dict]  # [{"role": ..., "content": ...}, ...]
    temperature: float = 0.0
    max_tokens: int = 1024
    sample: int = 0  # which of several replies to the same messages; moves the seed that the server gets


class Reply(NamedTuple):
    text: str
    n_in: int  # tokens
    n_out: int
    estimated: bool = False  # the server counted no tokens: estimate_tokens did


def estimate_tokens(messages: list[dict] | str) -> int:
    """Tokens guessed without a tokenizer: a third of the UTF-8 bytes of the JSON, whose escapes and braces pass for the chat template."""
    return len(json.dumps(messages, ensure_ascii=False).encode(errors="replace")) // 3 + 1


def read_completion(body: bytes) -> dict:
    """What is kept of a chat completion; none: why its text is of no use. ValueError if `body` is something else, status 200 or not."""
    try:
        data = json.loads(body)
        choice, usage = data["choices"][0], data.get("usage") or {}
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content") or "", message.get("refusal")
        n_in, n_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(text, str):  # a list of parts; a part that thinks aloud has no text
            text = "".join(part.get("text") or "" for part in text)
        if finish in ("error", "abort"):
            raise ValueError(finish)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError("not a chat completion: " + body[:2000].decode(errors="replace")) from None
    none = "refused" if refusal or finish == "content_filter" else "cut off" if finish == "length" else None if text.strip() else "empty"
    return {"text": text or refusal or "", "finish": finish, "none": none, "n_in": n_in, "n_out": n_out}


def retry_after_s(headers) -> float:
    """Seconds that the server asks us to wait; 0 if it does not say, or says it as a date."""
    ms = headers.get("retry-after-ms") or headers.get("retry-after", "") + "e3"
    return float(ms) / 1000 if re.fullmatch(r"\d+(\.\d+)?(e3)?", ms) else 0.0


class Teacher:
    """Asks `model`; each reply is appended to the file `cache` as it comes and never paid for again.

    base_url: e.g. http://localhost:8000/v1 (vLLM, llama.cpp, Ollama); None = OpenAI. The key is read from OPENAI_API_KEY.
    max_usd: caps what the whole cache file records. Calls in flight count at their worst (estimated input + max_tokens), so only a wrong
        estimate can pass it. What a server bills for a call whose reply never came is unknown, and not counted.
    timeout_s: limits one call with all its retries; tries does not count 429s. seed: moves every draw, so it is part of the cache key.
    totals[step]: calls (replies received) with n_in, n_out, usd; cached (known, or asked twice) with cached_in, cached_out; None by reason.
    """

    first_wait_s, max_wait_s = 0.5, 30.0  # before the retries: 0.5, 1, 2, 4, ... s, each less up to half
    max_lost_in_row = 20  # then the server is given up; if it never replied, once as many are lost as were sent at the start

    def __init__(self, model: str, base_url: str | None = None, cache: str | Path = "teacher.jsonl", concurrency: int = 16,
                 max_usd: float | None = None, usd_per_m_in: float | None = None, usd_per_m_out: float | None = None,
                 timeout_s: float = 600.0, tries: int = 6, seed: int = 0, max_lost: float = 1.0):
        self.model, self.base_url, self.path = model, base_url or os.environ.get("OPENAI_BASE_URL"), Path(cache)
        self.concurrency, self.max_usd, self.timeout_s, self.tries, self.seed = concurrency, max_usd, timeout_s, tries, seed
        self.max_lost = max_lost  # share of an ask's replies that may be lost; more end the run, because a rerun asks for lost ones again
        self.prices = None if usd_per_m_in is None or usd_per_m_out is None else (usd_per_m_in, usd_per_m_out)
        self.url = re.sub(r"//[^/@]*@", "//", self.base_url or "https://api.openai.com/v1")  # for sentences: without user:password
        self.name = f"teacher {model} at {self.url}"
        self.api_key = os.environ.get("OPENAI_API_KEY", "").strip() or ("no-key" if self.base_url else "")
        for wrong, sentence in (
            (not self.api_key, "OPENAI_API_KEY is not set: export your key, or give base_url for a server of your own"),
            (not (self.api_key.isascii() and self.api_key.isprintable()), "OPENAI_API_KEY holds characters that no key has: copy it again"),
            (not re.match(r"https?://([\w.-]+|\[[\da-fA-F:]+\])(:[1-6]?\d{1,4})?(/|$)", self.url),
             f"base_url must be like http://localhost:8000/v1, not {self.url!r}"),
            (min(self.prices or (0,)) < 0, f"a price is below zero: {self.prices}"),
            (not self.prices and {max_usd, usd_per_m_in, usd_per_m_out} != {None}, "max_usd needs usd_per_m_in and usd_per_m_out, both"),
            (min(concurrency, tries) < 1 or timeout_s <= 0, f"must be positive: {concurrency=}, {tries=}, {timeout_s=}"),
        ):
            if wrong:
                raise UserError(f"teacher: {sentence}")
        self.totals = defaultdict(lambda: Counter(calls=0, cached=0, n_in=0, n_out=0, usd=0.0))
        self.recorded = defaultdict(Counter)  # the same by step for the cache file's whole life, over all starts
        self.cache, self.offset, self.torn, self.spent_usd, self.patience, self.problem = {}, 0, False, 0.0, 0, ""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "ab+", buffering=0)  # unbuffered: one write() is one os.write, which O_APPEND keeps whole
        except OSError as error:
            raise UserError(f"teacher: the cache {cache} cannot be opened: {error.strerror}") from None
        self._load()

    def plan(self, steps: dict[str, list[Request]], show: bool = False) -> None:
        """Print what `steps` will cost at most, before the first paid call; show: also each step's first prompt in full."""
        self._load()
        print(f"{self.name}: at most this (tokens in: a guess, a third of the bytes; tokens out: the limit)")
        print(f"{'step':<24}{'calls':>9}{'cached':>9}{'tokens in':>14}{'tokens out':>14}" + f"{'usd':>12}" * bool(self.prices))
        for step, requests in [*steps.items(), ("total", list(itertools.chain(*steps.values())))]:
            todo = self._todo(requests).values()
            n_in, n_out = sum(estimate_tokens(r.messages) for r in todo), sum(r.max_tokens for r in todo)
            print(f"{step:<24}{len(todo):>9,}{len(requests) - len(todo):>9,}{n_in:>14,}{n_out:>14,}"
                  + f"{self._usd(n_in, n_out):>12,.4f}" * bool(self.prices))
        if self.max_usd is not None:
            print(f"cap: ${self.max_usd:g}, of which ${self.spent_usd:.4f} is spent according to {self.path}")
        for step, requests in steps.items() if show else ():
            for message in requests[0].messages if requests else ():
                print(f"--- {step}: {message['role']} ---\n{message['content']}")

    def ask(self, requests: list[Request], step: str = "") -> list[Reply | None]:
        """The replies, in order. None: empty, refused, cut off (paid for and cached), or refused by server, lost (a rerun asks again)."""
        start, total, before = time.monotonic(), self.totals[step], self.totals[step].copy()
        self._load()
        keys, todo, unanswered, replies = [self._key(r) for r in requests], self._todo(requests), {}, []
        total["cached"] += len(requests) - len(todo)
        for key in set(keys) - todo.keys():
            total.update(cached_in=self.cache[key]["n_in"], cached_out=self.cache[key]["n_out"])
        if todo:
            queue = deque(todo.items())
            with tqdm(desc=step or "teacher", unit="call", total=len(todo), mininterval=1.0) as bar, ThreadPoolExecutor(1) as pool:
                try:  # in a thread of its own, because a notebook's event loop runs in this one
                    unanswered = pool.submit(asyncio.run, self._send(queue, step, bar)).result()
                finally:
                    queue.clear()  # after Ctrl-C nothing more is sent; calls in flight end, and are cached
        for key in keys:
            none = unanswered.get(key) or self.cache[key]["none"]
            total.update([none] if none else [])
            replies.append(None if none else Reply(*(self.cache[key][field] for field in Reply._fields)))
        new = total - before
        nones = ", ".join(f"{new[none]} {none}" for none in ("empty", "refused", "cut off", "refused by server", "lost") if new[none])
        print(f"{step or 'teacher'}: {new['calls']:,} calls, {new['cached']:,} cached, {new['n_in']:,} tokens in, {new['n_out']:,} out, "
              + f"${new['usd']:.4f}, " * bool(self.prices) + f"None: {nones or 0}, {time.monotonic() - start:.1f} s", flush=True)
        if new["lost"] > self.max_lost * len(requests):
            raise UserError(f"{step}: {new['lost']} of {len(requests)} teacher replies were lost (the last problem: {self.problem}); all others are "
                            f"kept in {self.path}: run the same command again")
        return replies

    async def _send(self, queue: deque, step: str, bar: tqdm) -> dict[str, str]:
        """Empties `queue` of its (key, request); returns key -> reason for those whose reply is not in the cache."""
        import openai  # half a second, so only where it is needed

        tasks, unanswered, worst = {}, {}, 0.0  # tasks: task -> (key, dollars at worst)
        timeout = openai.Timeout(self.timeout_s, connect=min(5.0, self.timeout_s))
        # One client per event loop: used under a second asyncio.run it fails with "Event loop is closed".
        async with openai.AsyncOpenAI(api_key=self.api_key, base_url=self.base_url, max_retries=0, timeout=timeout) as client:
            try:
                while queue or tasks:
                    while queue and len(tasks) < self.concurrency:
                        key, request = queue[0]
                        worst = self._usd(estimate_tokens(request.messages), request.max_tokens)
                        if self.max_usd is not None and self.spent_usd + sum(usd for _, usd in tasks.values()) + worst > self.max_usd:
                            break
                        tasks[asyncio.create_task(self._call(client, *queue.popleft(), step))] = key, worst
                    if not tasks:
                        raise UserError(f"teacher: ${self.spent_usd:.4f} of max_usd ${self.max_usd:g} is spent and the next call may cost "
                                        f"${worst:.4f}; {self.path} keeps every reply: the same command with a higher --max-usd goes on")
                    self.patience = self.patience or len(tasks)
                    for task in (await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))[0]:
                        none = task.result()  # may raise what stops the run; the task then stays in tasks, for the finally
                        key, _ = tasks.pop(task)
                        unanswered.update({key: none} if none else {})
                        bar.update()
                        self.patience = self.patience - 1 if none == "lost" else self.max_lost_in_row
                        if not self.patience:
                            raise UserError(f"{self.name}: call after call failed, in {self.tries} tries or {self.timeout_s:g} s "
                                            f"({self.problem}); check base_url and the server, then run the same command again")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return unanswered

    async def _call(self, client, key: str, request: Request, step: str) -> str | None:
        """Ask until the reply is in the cache: None. Else why it is not: "lost" or "refused by server"."""
        import openai

        loop, failures, wait_s = asyncio.get_running_loop(), 0, self.first_wait_s
        deadline = loop.time() + self.timeout_s
        limit = "max_tokens" if self.base_url else "max_completion_tokens"  # OpenAI's newer models take only the latter
        while True:
            pause_s = wait_s * random.SystemRandom().uniform(0.5, 1)
            try:
                async with asyncio.timeout_at(deadline):  # the client's own timeout is per read: a slow drip outlives it
                    raw = await client.chat.completions.with_raw_response.create(
                        model=self.model, messages=request.messages, temperature=request.temperature, seed=int(key[:7], 16),
                        **{limit: request.max_tokens})
                return self._save(key, request, step, read_completion(raw.content))
            except (openai.APIError, TimeoutError, ValueError) as error:  # ValueError: status 200, but no completion
                status, cause = getattr(error, "status_code", 0), error.__cause__ or error  # a connection error's cause says more than it
                text = " ".join(str(getattr(error, "body", None) or cause).replace(self.api_key, "<key>").split())
                self.problem = f"{f'HTTP {status}' if status else type(cause).__name__}: {text[:200]}"
                if status in (400, 413, 422) and re.search(r"context.{0,20}(length|size|window)|content_(filter|policy)", text, re.I):
                    return "refused by server"  # the trouble of this prompt alone: too long, or offensive
                if (status == 429 and "insufficient_quota" in text) or not (status in (0, 408, 409, 425, 429) or status >= 500):
                    hint = ("the account has no credit left" if status in (402, 429)
                            else "check OPENAI_API_KEY" if status in (401, 403)
                            else "check the model's name and base_url (it usually ends in /v1)" if status == 404
                            else "the request is refused")
                    problem = "HTTP 401" if status == 401 else self.problem  # a 401 likes to quote the key, or half of it
                    raise UserError(f"{self.name}: {hint} ({problem}); replies so far are in {self.path}") from None
                failures += status != 429
                pause_s += retry_after_s(error.response.headers) if status else 0
                if failures >= self.tries or loop.time() + pause_s > deadline:
                    return "lost"
            await asyncio.sleep(pause_s)
            wait_s = min(2 * wait_s, self.max_wait_s)

    def _usd(self, n_in: int, n_out: int) -> float:
        return (n_in * self.prices[0] + n_out * self.prices[1]) / 1e6 if self.prices else 0.0

    def _key(self, request: Request) -> str:
        """Hash of all that moves the draw: not max_tokens, since a higher limit only goes on where a lower one cut off."""
        drawn_from = [self.model, request.messages, float(request.temperature), self.seed, request.sample]
        return hashlib.sha256(json.dumps(drawn_from, sort_keys=True).encode()).hexdigest()[:32]

    def _todo(self, requests: list[Request]) -> dict[str, Request]:
        """key -> request, each once, of what must be sent: not in the cache, or cut off there at a lower max_tokens."""
        todo = {}
        for request in sorted(requests, key=lambda r: r.max_tokens):  # of duplicates the longest stays
            known = self.cache.get(key := self._key(request))
            if known is None or (known["none"] == "cut off" and known["max_tokens"] < request.max_tokens):
                todo[key] = request
        return todo

    def _save(self, key: str, request: Request, step: str, reply: dict) -> None:
        n_in, n_out = reply["n_in"], reply["n_out"]
        if estimated := not all(isinstance(n, int) and n >= 0 for n in (n_in, n_out)):
            n_in, n_out = estimate_tokens(request.messages), estimate_tokens(reply["text"])
        usd = self._usd(n_in, n_out) if self.prices else None  # None counts at the prices of whoever reads the file
        record = reply | {"key": key, "model": self.model, "step": step, "max_tokens": request.max_tokens, "n_in": n_in,
                          "n_out": n_out, "estimated": estimated, "usd": usd}
        self._load()
        line = b"\n" * self.torn + json.dumps(record).encode() + b"\n"  # a torn last line (kill -9, full disk) stays on its own line
        try:
            if self.file.write(line) < len(line):
                raise OSError(0, "the disk is full")
        except OSError as error:
            raise UserError(f"teacher: the cache {self.path} cannot be written: {error.strerror}") from None
        self.totals[step].update(calls=1, n_in=n_in, n_out=n_out, usd=usd or 0.0)
        self._load()

    def _load(self) -> None:
        """Take in the lines that this and other processes have added to the cache file; money is counted here, once."""
        self.file.seek(self.offset)
        *lines, rest = self.file.read().split(b"\n")
        self.torn, n_bad = bool(rest), 0  # torn, or just being written by another process
        for line in lines:
            self.offset += len(line) + 1
            try:
                record = json.loads(line or b"{}")
                usd = self._usd(record["n_in"], record["n_out"]) if record["usd"] is None else record["usd"]
                self.cache[record["key"]] = {name: record[name] for name in (*Reply._fields, "none", "max_tokens")}
                self.spent_usd += usd
                self.recorded[record["step"]].update(calls=1, n_in=record["n_in"], n_out=record["n_out"], usd=usd)
            except (ValueError, LookupError, TypeError):
                n_bad += bool(line)
        if n_bad > 1 and not self.cache:
            raise UserError(f"teacher: {self.path} is no cache of replies: none of its {n_bad} lines is one; name another file")


def read_tag(reply: str, tag: str) -> str | None:
    """The text of the last <tag>...</tag>, from its innermost <tag> on; None if there is none.

    >>> read_tag("The <skill> tag: <skill> factoring </skill>", "skill")
    'factoring'
    """
    found = re.findall(rf"<{tag}>((?:(?!<{tag}>).)*?)</{tag}>", reply, re.DOTALL | re.IGNORECASE)
    return found[-1].strip() if found else None


def open_teacher(args, write: bool = True) -> Teacher:
    """The teacher that a method's flags name, its cache in the run directory. write=False, for a plan, makes no file."""
    cache = Path(args.cache or Path(args.out, "teacher.jsonl"))
    return Teacher(args.teacher, args.teacher_url, cache=cache if write or cache.exists() else os.devnull, concurrency=args.concurrency,
                   max_usd=args.max_usd, usd_per_m_in=args.usd_per_m_in, usd_per_m_out=args.usd_per_m_out, seed=args.seed, max_lost=0.01)


# --- Scoring: the last box, else what follows a marker; own normal form first, then algebra in a process. ---
# Chosen where careful graders differ: a unit may be missing but not contradict. 50% is 50 and 1/2; 101_2 is
# not 101. A bare list has no order unless compared with (1,2), which is not {1,2}. Numbers are exact.
MAX_ANSWER_CHARS = 600  # longer answers are compared as they are; the longest of MATH has 159 characters
ALGEBRA_CPU_S = 0.5  # the worker's own time for all of one pair; a pair that needs more counts as different
ALGEBRA_WALL_S = 1.5  # comes first only on a machine that is loaded several times over


def _by_spelling(table: dict[str, str]) -> dict[str, str]:
    return {spelling: one for one, spellings in table.items() for spelling in spellings.split()}


_UNICODE = str.maketrans(_by_spelling({
    "-": "− – —", r"\times ": "×", r"\cdot ": "· ⋅ *", "/": "÷", r"\infty ": "∞", r"\cup ": "∪", r"\pi ": "π",
    r"\sqrt ": "√", r"\pm ": "±", r"\approx ": "≈", r"\mathbb{R}": "ℝ", "'": "′ ’", "": "\0"}))
_COMMANDS = _by_spelling({
    r"\frac": "dfrac tfrac cfrac", r"\binom": "dbinom tbinom", "≤": "le leq leqslant", "≥": "ge geq geqslant",
    "≠": "ne neq", "<": "lt", ">": "gt", "∈": "in", "/": "div", "(": "langle", ")": "rangle", "|": "vert mid",
    "°": "degree", " ": "quad qquad", "": "left right big bigl bigr Big Bigl Bigr displaystyle"})
_UNITS = _by_spelling({
    "%": "% percent", "°": "° degrees", "m": "m meters", "cm": "cm centimeters", "mm": "mm",
    "km": "km kilometers", "in": "in inch inches", "ft": "ft feet foot", "mi": "mi miles", "g": "g gm grams",
    "kg": "kg kilograms", "s": "s seconds", "min": "min minutes", "h": "h hours", "days": "days",
    "dollars": "dollar dollars", "cents": "cent cents", "rad": "radians", "am": "am", "pm": "pm"})
_NUMERALS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_ZEROS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9}
_TRIG = r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)"
_TEXT = r"\\(?:text[a-z]*|[mh]box|math(?:rm|bf|it|sf|tt|normal)|boldsymbol|bm|underline)"
_D = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?"  # 1,234.5
_GROUP = r"\{[^{}]*\}"
for _ in range(5):  # braces in braces, six deep
    _GROUP = rf"\{{(?:[^{{}}]|{_GROUP})*\}}"


def _plain(m: re.Match) -> str:
    return unicodedata.normalize("NFKC", m[0]).replace("⁄", "}{").replace("−", "-")


def _unit(m: re.Match) -> str:
    """~ and the unit as _UNITS spells it; nothing of a word like "ways", of which nothing is known."""
    words = re.findall("[a-z]+|[°%]", m[1].lower().replace(".", ""))
    known = [_UNITS[word] for word in words if word in _UNITS]
    if len(m[1]) == 1 and m[1].isalpha() or re.search(rf"\\{_TRIG}", m.string):
        return m[0]  # 5m may be a product
    if not known:
        return "" if m[1][0] == " " and max(map(len, words)) > 2 else m[0]
    power = "^2" if "square" in words else "^3" if "cubic" in words else f"^{m[2]}" if m[2] else ""
    return f"~{known[0]}{power}"


_RULES = [(re.compile(pattern), new) for pattern, new in (  # in this order; afterwards ";" ends an item
    (r"[¼-¾⅐-⅞]", lambda m: rf"\frac{{{_plain(m)}}}"),  # ½
    (r"[⁻⁰¹²³⁴-⁹]+", lambda m: f"^{{{_plain(m)}}}"),  # x²
    (r"(?<!\\)\\\\(?=[a-zA-Z]{2})", r"\\"),  # \\frac, escaped once too often
    (rf"\\f?box(?:ed)?\s*({_GROUP})", lambda m: m[1][1:-1]),  # \boxed{5}
    (rf"{_TEXT}\s*({_GROUP})", lambda m: f" {m[1][1:-1]} "),  # \text{odd}
    (r"(?:\{,\}|,\s*\\!)\s*(?=\d{3})", ""),  # 1{,}000
    (rf"(?:\\\$|^\$(?=[^$]*$))\s*({_D})", r"\1 dollar "),  # \$5
    (r"\\!|\\?\$|(?<!\\)\\[][()]", ""),  # \(5\)
    (r"\\([a-zA-Z]+)", lambda m: _COMMANDS.get(m[1], m[0])),  # \dfrac
    (r"(?:(?<!\\)\\[,;:\s]|~|\s)+", " "),  # 1\,234
    (r"[<>!]=|\\not ?=", lambda m: "≤≥≠≠"["<>!\\".index(m[0][0])]),  # x<=2
    (r"\^ ?\{? ?\\circ ?\}?", "°"),  # 45^\circ
    (r"\\%", "%"),  # 50\%
    (r"(?<![\\a-zA-Z])(pi|sqrt)(?![a-zA-Z])", r"\\\1"),  # 2 pi
    (r"(\\sqrt|\^) ?\(([^()]*)\)", r"\1{\2}"),  # x^(1/2)
    (r"(?<=\d) ?x ?(?=\d)", r"\\cdot "),  # 2 x 3 = 6
    (r"(?i)(?<![\\a-z])all real(?: number)?s|\\mathbb ?\{?R\}?", r"(-\\infty;\\infty)"),  # all reals
    (r"\(-\\infty;\\infty\) ?(?:\\setminus|-) ?\\\{([^;{}]*)\\\}", r"(-\\infty;\1)\\cup(\1;\\infty)"),  # -{2}
    (r"^[A-Za-z ]*\b(?:is|are|equals)(?![a-z]):? ?(?=\S)|^ ?(?:option|choice) ", ""),  # the sum is 5
    (r"^ ?(?:[A-Za-z]? ?\\approx|about|approximately) ?", ""),  # x \approx 5
    (r"(?<=[\w})%]),? ?\(?(?:or )?(?:\\approx|approximately|about)(?![a-z]).*$", ""),  # 1/3 or about 0.33
    (r"(\d) ?(?:\^ ?\{? ?)?(?:st|nd|rd|th)(?![a-z])(?: ?\})?", r"\1"),  # 12^{th} grade
    (rf"(?i)^ ?({'|'.join(_NUMERALS)})(?= ?[a-z]| *$)", lambda m: (
        str(_NUMERALS.index(m[1].lower())))),  # three boxes
    (r"(?<=\d) ?(hundred|thousand|million|billion)(?![a-z])", lambda m: (
        rf"\cdot 10^{_ZEROS[m[1]]}")),  # 5 million
    (r"(?<=\d)[eE]([-+]?\d+)$", r"\\cdot 10^{\1}"),  # 1.5e3
    (r"(?<![a-zA-Z\\])[a-zA-Z]\([a-z](?:, ?[a-z])*\) ?=", "y="),  # f(x) = 2x
    (r"(?<![\\a-zA-Z])[A-Za-z]{2,}: (?=\S)", ""),  # Anna: 7, Bob: 14
    (r",? ?(?<![\\a-zA-Z])(?:and|or)(?![a-zA-Z]) ?|, |;", ";"),  # 1, 2 and 3
    (r"(?<![\w.])\.(?=\d)", "0."),  # .5
    (r"(?<![\d,./])\d{1,3}(?: \d{3})+(?![\d/]| ?\\frac)", lambda m: m[0].replace(" ", "")),  # 1 234
    (r"\\sqrt ?(\[[^]]*\])? ?(\d+|[a-zA-Z]|\\[a-z]+)", r"\\sqrt\1{\2}"),  # \sqrt2
    (r"\\(frac|binom) ?([\da-zA-Z]|\\[a-z]+)", r"\\\1{\2}"),  # \frac12
    (rf"(\\(?:frac|binom) ?{_GROUP}) ?([\da-zA-Z]|\\[a-z]+)", r"\1{\2}"),  # \frac{1}2
    (r"(?<![\w.}/,^])(\d+)/(\d+)(?![\w./,])", r"\\frac{\1}{\2}"),  # 1/2
    (r"(\d*\.(\d*))\\overline ?\{(\d+)\}", lambda m: (
        rf"({m[1]}0+\frac{{{m[3]}}}{{{'9' * len(m[3])}{'0' * len(m[2])}}})")),  # 0.\overline{3}
    (r"_ ?(\d+|[a-zA-Z]|\\[a-z]+)", r"_{\1}"),  # 11_2
    (rf"\^ ?([-+]?\d+(?:\.\d+)?|[a-zA-Z]|\\[a-z]+(?:{_GROUP})*)", r"^{\1}"),  # x^2
    (r"(?<![\dA-Z.])\(?(?=[A-Z.]*\d)([\dA-Z.]+)\)? ?(?:_\{[ (]*(?:base )?|\(?base )(\w+)[ )]*\}?", lambda m: (
        f"{m[1].lstrip('0')}_{{{_NUMERALS.index(m[2]) if m[2] in _NUMERALS else m[2]}}}")),  # 11 (base two)
    (r"(?<=\d)\((\d+)\)", r"\\cdot \1"),  # 1000(26)
    (r"(?<=[\d})°.])( ?[°%]| ?[A-Za-z][A-Za-z./ ]*)(?:\^\{([23])\})?(?=;|$)", _unit),  # 5 square feet
    (r"^ ?(?:\(?([A-J])\)|([A-J])[.:] ) ?\w.*$", r"\1\2"),  # (C) 12
    (r"(?<![\w})\]°%]) +| +(?!\w)|(?<=\}) +(?=\{)", ""),  # x + 1
    (r"^[a-zA-Z]∈", ""),  # x \in [1,2)
    (r"^[a-zA-Z]≠([^;=]+)$", r"(-\\infty;\1)\\cup (\1;\\infty)"),  # x \ne 3
    (r"^\(?([A-J]|[a-d])\)?$", lambda m: m[1].upper()),  # (c)
    (r"^(?:an?|the) (?=[A-Za-z])", ""))]  # an ellipse


@functools.lru_cache(maxsize=1 << 12)
def _normal(s: str) -> str:
    """The one spelling of an answer that the functions below read."""
    s = s.strip().strip("*`\"").translate(_UNICODE).strip().rstrip("\\").strip()  # **5**
    for pattern, new in _RULES:
        s = pattern.sub(new, s)
    return s.strip(" .,:;")


_NUMBER = re.compile(rf"(-?)(?:({_D})|\\frac\{{(-?{_D})\}}\{{(-?{_D})\}})")  # -1,000.5 or -\frac{1}{2}
_MATRIX = re.compile(
    r"[([]?\\begin\{(?:([vV])|[pbB]|small)?(?:matrix|array)\}(?:\{[clr| ]*\})?(.*)\\end\{[a-zA-Z]*\}[])]?")
_TURNED = str.maketrans("<>≤≥", "><≥≤")
_TOWER = re.compile(  # 9^{9^{9}}, 10!!
    r"\^\{[^{}]*(?:\^|\}\^)|\d{5}\W*!|!\W*!|\^\{\W*\d{5}|binom\{(?:\D*\d{5}|[^{}]*\^)")


def _number(s: str) -> Fraction | None:
    m = _NUMBER.fullmatch(s)
    if not m:
        return None
    over, under = (Fraction((x or "1").replace(",", "")) for x in (m[2] or m[3], m[4]))
    return over / under * (-1 if m[1] else 1) if under else None


def _split(s: str, separator: str) -> list[str]:
    """Parts of s between separators (a pattern) outside all brackets; [] where brackets do not match."""
    parts, depth = [""], 0
    for token in re.split(rf"(\\begin|\\end|[([{{]|[])}}]|{separator})", s):
        depth += (token in ("(", "[", "{", r"\begin")) - (token in (")", "]", "}", r"\end"))
        if depth < 0:
            return []
        if depth == 0 and re.fullmatch(separator, token):
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts] if depth == 0 else []


def _items(s: str) -> list[str]:
    """The items of a list, 1+x and 1-x for each 1 \\pm x."""
    items = _split(s, "[,;]")
    for _ in range(4):  # the first \pm of each item that still has one
        signed = [(item, sign) for item in items for sign in ("+-" if r"\pm" in item else "+")]
        items = [item.replace(r"\pm", sign, 1) for item, sign in signed]
    return items


def _is_name(s: str, value: str = "") -> bool:
    """Whether s left of "=" is no part of the answer: x, f(2), a_{n+1}; of a number also BC^{2}, \\sin A."""
    rest = re.sub(r"_\{[^{}]*\}|(?<=[A-Zf-h])\([^()]*\)", "", s)
    if not re.match(r"[^\d-]*[a-zA-Z]", rest):
        return False
    if _number(value) is not None:
        return not re.search("[-+]", rest)
    return not re.search(rf"[-+*^\d]|\\(?:{_TRIG}|log|ln|sqrt|pi|infty)(?![a-z])", rest)


def _read(s: str) -> tuple[str, list[str]]:
    """Kind and parts: ("list", items), ("{}", items), ("()", items), ("[)", ends), ("cup", sets),
    (":", parts), ("=", sides), ("<≤", sides), ("matrix2", cells), or ("leaf", [s])."""
    if m := _MATRIX.fullmatch(s):
        rows = re.sub(r"\\\\ ?$|\\hline", "", m[2].strip()).split("\\\\")
        return f"{m[1] or ''}matrix{len(rows)}", [cell.strip() for row in rows for cell in row.split("&")]
    items = _items(s)
    if len(items) > 1 and _number(s.rpartition("~")[0] or s) is None:
        if all(re.search("[<>≤≥]", item) for item in items):
            return "cup", items
        return "list", items
    for kind, separator in (("=", "="), ("cup", r"\\cup(?![a-z])"), (":", ":")):
        if len(parts := _split(s, separator)) > 1:
            return kind, parts
    parts = re.split("([<>≤≥])", s)
    if re.search("[>≥]", s):
        parts = [part.translate(_TURNED) for part in parts[::-1]]
    sides, signs = parts[::2], "".join(parts[1::2])
    if len(sides) == 2:
        is_left = _is_name(sides[0])
        sides = [r"-\infty", *sides] if is_left else [*sides, r"\infty"]
        signs = "<" + signs if is_left else signs + "<"
    if len(sides) == 3 and _is_name(sides[1]) and "|" not in sides[1]:
        return ("[" if signs[0] == "≤" else "(") + ("]" if signs[1] == "≤" else ")"), sides[::2]
    if signs:
        return signs, sides
    m = re.fullmatch(r"\\?([\[({])(.*?)\\?([])}])", s)
    items = _split(m[2], "[,;]") if m else []
    if len(items) == 1 and m[1] in "({":
        return _read(items[0])
    return (m[1] + m[3], items) if items else ("leaf", [s])


def _value(sides: list[str], ask) -> str:
    """"5" of x = 5, BC^{2} = 5 and 2+3 = 5; "" of 5 = 7."""
    first, last = sides[0], sides[-1]
    if _is_name(first, last):
        return last
    if _is_name(last, first):
        return first
    return last if all(_equal(first, side, ask) for side in sides[1:]) else ""


def _equal_items(xs: list[str], ys: list[str], ask, in_order: bool = False) -> bool:
    left = list(ys)
    for x in xs if len(xs) == len(ys) else [""]:
        near = left[:1] if in_order else [x] if x in left else left[:20]
        match = next((y for y in near if _equal(x, y, ask)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _equal(a: str, b: str, ask) -> bool:
    """Whether two normal forms mean the same; ask(mode, a, b) does the algebra."""
    if a == b or not a or not b:
        return a == b != ""
    (kind, xs), (other, ys) = _read(a), _read(b)
    if "=" in (kind, other) and kind != other:
        return _equal(_value(xs, ask), b, ask) if kind == "=" else _equal(a, _value(ys, ask), ask)
    kinds = {kind, other}
    if kinds <= {"list", "{}"} or kinds == {"cup"}:
        return _equal_items(xs, ys, ask)
    if kinds == {"leaf"}:
        return _equal_leaves(xs[0], ys[0], ask)
    if len(kinds) == 1 or kinds in ({"list", "()"}, {"()", f"matrix{len(xs)}"}):
        if _equal_items(xs, ys, ask, in_order=True):
            return True
        sides = "({})-({})"
        return kind == "=" and len(xs + ys) == 4 and ask("ratio", sides.format(*xs), sides.format(*ys))
    if kinds <= {"list", "{}", "leaf"}:  # 100,200 is a number, unless the other one is the list 100; 200
        number, items = (a, ys) if kind == "leaf" else (b, xs)
        if all(_equal(items[0], item, ask) for item in items[1:]):  # 1/2 or 0.5
            return _equal(number, items[0], ask)
        return ",0" not in number and _equal_items(number.split(","), items, ask)
    return "leaf" in kinds and "matrix" in kind + other and ask("value", a, b)


def _equal_leaves(a: str, b: str, ask) -> bool:
    """Numbers and words, with their units or without; the rest by algebra."""
    (a, _, unit), (b, _, other) = a.partition("~"), b.partition("~")
    if unit and other and unit != other:
        return False
    x, y = _number(a), _number(b)
    if x is not None and y is not None:
        if {unit, other} == {"%", ""} and (x / 100 == y <= 1 if unit else y / 100 == x <= 1):
            return True
        places = max(len(s.partition(".")[2]) for s in (a, b))
        return x == y or places >= 12 and abs(x - y) * 10**places < 1  # a float: 0.16923076923076924 of 11/65
    if a == b or len(a) == len(b) == 1 or re.search(r"\d_\{", a + b):
        return a == b
    if all(re.fullmatch(r"[A-Za-z][A-Za-z' .-]*", s) for s in (a, b)) and max(len(a), len(b)) > 2:
        a, b = (re.sub("[^a-z]", "", s.lower()) for s in (a, b))
        return a == b  # abc is a word, xy a product
    return ask("value", a, b)


@functools.lru_cache(maxsize=1 << 16)
def _is_equiv(a: str, b: str) -> bool:
    ask = functools.partial(_ask, {"cpu": ALGEBRA_CPU_S, "wall": ALGEBRA_WALL_S})
    try:
        return _equal(_normal(a), _normal(b), ask)
    except (RecursionError, TimeoutError, BrokenPipeError):
        return False


def is_equiv(pred: str, gold: str) -> bool:
    r"""Whether two bare answers mean the same. Symmetric; returns within two seconds and raises for no input.

    >>> is_equiv(r"\dfrac12", "0.5"), is_equiv("(1, 2)", "(2,1)"), is_equiv("x = 5", "5")
    (True, False, True)
    """
    if not (isinstance(pred, str) and isinstance(gold, str)):
        return False
    a, b = sorted((pred.strip(), gold.strip()))
    return _is_equiv(a, b) if a != b and max(len(a), len(b)) <= MAX_ANSWER_CHARS else a == b != ""


_THOUGHT = re.compile(r"\A.*</think>|<think>.*", re.DOTALL)
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_BOX = re.compile(r"\\{1,2}(?:boxed|fbox)\s*(\{|-?\d[\d.,/]*|[A-Z](?![A-Za-z]))|\\.|[{}]", re.DOTALL)
_OPEN_BOX = re.compile(rf"\\boxed\s*\{{((?:[^{{}}$\n]|{_GROUP})+?)(?:\$|\\[])]|\n|\Z)")  # \boxed{42$
_MINUS = re.compile(r"(?:[=$(:]|\bis|\bare)\s*[-−]\s*\Z")  # x = -\boxed{5}
_ABOUT = re.compile(r"[\s$,;()\\]*(?:or )?(?:approximately|about|approx|≈)[\s$(\\]*")  # .. about \boxed{0.33}
_AND = re.compile(r"(?:[\s$,;\\()\[\]]|and|or|\\q?quad|\\text\{ ?(?:and|or) ?\})*")  # \boxed{1} and \boxed{2}
_NEXT = re.compile(r"[^.\d]{0,60}|\W*\n\s*(?:[-*•]|\d+\.)[^.\d]{0,60}")  # * a = \boxed{1}\n* b = \boxed{2}
_MARKS = [re.compile(pattern, re.IGNORECASE | re.MULTILINE) for pattern in (
    r"<answer>",  # <answer>5</answer>
    r"\"(?:final_?)?answer\"\s*:",  # {"answer": 5}
    r"^\#{4}\s{0,9}(?=.*\d|[A-Z]\s*$)(?!step\b)",  # #### 5 clips
    r"^A:",  # A: 5
    r"\banswers?(?: to [^.\n:]{1,60})?[*_\s]{0,9}(?:\b(?:is|are|should be|must be)\b|[:=])(?! correct)",
    r"^\W{0,9}(?:final )?answer\W{0,9}\n")]  # **Final Answer**
_MATH = r"\$\$?([^$]*)\$\$?|\\\((.*?)\\\)|\\\[(.*?)\\\]"
_STOP = re.compile(  # .. the end of what a marker announces, outside formulas
    _MATH + r"|(\.(?=[\s*\"<]|$)|\n|<[|/a-z]|\"|,?\s(?:since|because|as|which|where|so)\b)", re.DOTALL)
_PROSE = re.compile(  # about 500 feet
    r"(?!.*\b(?:no|not|than|negative|minus|half)\b)(?:[A-Za-z'-]+[ ,:]+){1,12}"
    r"((?:\\[(\[]|\$)?-?[\d.,/]+(?![\d.,/])\D*)")


def read_boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of every balanced, non-empty box, in order of their ends."""
    boxes, opened = [], []
    for m in _BOX.finditer(text if isinstance(text, str) else ""):
        if m[1] == "{" or m[0] == "{":
            opened.append(m if m[1] else None)  # a box, or any other brace
        elif m[1]:
            boxes.append((m.start(), m.end(), m[1].rstrip(".,/")))
        elif m[0] == "}" and opened and (box := opened.pop()) and text[box.end():m.start()].strip(" .…$\n"):
            boxes.append((box.start(), m.end(), text[box.end():m.start()].strip()))
    return boxes


def _boxed(text: str) -> list[str]:
    """The last box, or the list that the last boxes are; then what else a grader may take the boxes for."""
    outside = _CODE.sub("", text)
    boxes = read_boxes(outside)
    if boxes:
        text = outside
    elif outside != text:
        boxes = read_boxes(text)
    ends = [box[0] for box in boxes[1:]] + [len(text)]
    boxes = [box for box, end in zip(boxes, ends, strict=False) if box[0] < end]  # none inside another
    if not boxes:
        m = _OPEN_BOX.search(text, max(text.rfind("\\boxed"), 0))
        return [m[1].strip()] if m else []
    while len(boxes) > 1 and _ABOUT.fullmatch(text, boxes[-2][1], boxes[-1][0]):
        boxes.pop()
    contents = []
    for start, _, content in boxes:
        contents.append("-" + content if _MINUS.search(text[max(start - 12, 0):start]) else content)
    found = []
    for between in (_AND, _NEXT):
        n = 1
        while n < len(boxes) and between.fullmatch(text, boxes[-n - 1][1], boxes[-n][0]):
            n += 1
        found.append(", ".join(dict.fromkeys(contents[-n:])))
    if found[0] == ", ".join(contents[-2:]) and re.search("and|or", text[boxes[-2:][0][1]:boxes[-1][0]]):
        found.append(contents[-1])  # MATH's gold is the last of two
    return found


def _marked(text: str) -> str:
    """What follows the last marker that something follows."""
    for start in sorted(m.end() for mark in _MARKS for m in mark.finditer(text))[:-20:-1]:
        line = text[start:start + MAX_ANSWER_CHARS].lstrip(" *_:\n\"")
        line = re.sub(r"^[A-Za-z ]{1,40}:\s+", "", line)  # the answer is therefore:
        line = line[:next((stop.start() for stop in _STOP.finditer(line) if stop[4]), len(line))]
        if line.count("}") > line.count("{"):
            line = line.rstrip(" \n}]")  # {"answer": 5}
        line = re.sub(r"^.*\b(?:is|are|equals)\b\s*", "", line, flags=re.DOTALL).strip(" *_,")
        prose = _PROSE.fullmatch(line)
        line = prose[1] if prose else line
        math = re.fullmatch(_MATH, line, re.DOTALL)
        if answer := next(filter(None, math.groups()), "").strip(" .") if math else line:
            return answer
    return ""


def _readings(text: str) -> list[str]:
    text = _THOUGHT.sub("", text) if isinstance(text, str) else ""
    return _boxed(text) or list(filter(None, [_marked(text)]))


def extract_answer(text: str) -> str | None:
    r"""The last box or boxes of a reply, else what follows its last marker, such as "answer is"; else None.

    >>> extract_answer(r"So \boxed{5}, not in \boxed{} form."), extract_answer("The answer is $3.5$. Done")
    ('5', '3.5')
    """
    return next(iter(_readings(text)), None)


def _is_copied(answer: str, gold: str, question: str) -> bool:
    """Whether an answer is an expression of the question that nobody has worked out, as 513^2-487^2 is."""
    form, wanted, asked = (_normal(s).replace(" ", "") for s in (answer, gold, question))
    form = form.rpartition("=")[2]
    if form == wanted.rpartition("=")[2] or not re.search(r"[\w)}][-+*/^!(]|\\(?!frac)[a-z]", form):
        return False
    return bool(re.search(rf"(?<![\d.^]){re.escape(form)}(?![\d.^])", asked))


def score(text: str, gold: str, question: str | None = None) -> bool | None:
    """Whether the answer in a reply is the gold one; None where the reply holds no answer.

    question: an unevaluated expression that stands in it is no answer, unless the gold has that form.
    """
    answers = _readings(text)
    if not answers:
        return None
    return any(is_equiv(one, gold) and not (question and _is_copied(one, gold, question)) for one in answers)


_workers = {}  # process id: lock, worker and spare; a forked child finds none, and starts its own


def _algebra() -> None:
    """The worker's program: answers JSON lines [mode, a, b, seconds] with [verdict or null, seconds]."""
    import json
    import random
    import re
    import signal
    import sys
    import time

    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy  # math-verify's parser

    def read(s: str):
        if re.search(r"\\(arc)?(sin|cos|tan|cot|sec|csc)", s):
            s = re.sub(r"([\d.]+)°", r"(\1\\pi/180)", s)
        s = re.sub(r"(?<=\d),(?=\d{3})|[%°]", "", s)
        s = re.sub(r"(\d+)\.(\d*)", lambda m: rf"\frac{{{m[1]}{m[2]}}}{{1{'0' * len(m[2])}}}", s)
        config = ConversionConfig(lowercase_symbols=False, interpret_as_mixed_fractions=False)
        x = latex2sympy(s, normalization_config=None, conversion_config=config)
        return x.doit().subs(sympy.Symbol("i"), sympy.I)

    def vanishes(x) -> bool:  # evalf tries 150 digits; a sum that is 0 then has not one correct digit
        value = x.evalf(20, maxn=150)
        if value == 0 or not value.is_number:
            return value == 0
        return all(part == 0 or part._prec == 1 for part in value.as_real_imag())

    def same(mode: str, *latex: str) -> bool:  # "value" or constant "ratio", at random points
        x, y = map(read, latex)
        if isinstance(x, sympy.MatrixBase) and isinstance(y, sympy.MatrixBase):
            return x.shape == y.shape and all(vanishes(entry) for entry in x - y)
        rng, points = random.Random(0), []
        names = sorted(x.free_symbols | y.free_symbols, key=str)
        for i in range(8 if names else 1):  # every other point has negative coordinates too
            points.append({n: sympy.Rational(2 * rng.randint(-500 * (i % 2), 500) + 1, 97) for n in names})
        pairs = ((x.subs(point), y.subs(point)) for point in points)
        real = (pair for pair in pairs if all(one.evalf(15).is_real for one in pair))
        p0, q0 = next(real, None) or (x.subs(points[0]), y.subs(points[0]))
        if mode == "value":
            return x == y or vanishes(p0 - q0) and all(vanishes(p - q) for p, q in real)
        return not vanishes(p0) and not vanishes(q0) and all(vanishes(p * q0 - p0 * q) for p, q in real)

    def limit(seconds: float) -> None:  # of this process's own time: other load does not count
        signal.signal(signal.SIGINT, signal.default_int_handler if seconds else signal.SIG_IGN)
        if hasattr(signal, "setitimer"):  # on Windows the parent's clock alone counts
            signal.signal(signal.SIGPROF, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_PROF, seconds)  # raises KeyboardInterrupt ...
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds and seconds + 0.2)  # ... ends the process

    answers, sys.stdout = sys.stdout, sys.stderr
    limit(0)
    for mode in ("value", "ratio"):  # imports the rest and fills the parser's tables, before the clock runs
        same(mode, r"\frac{(x+1)(x+2)}{3}-\sin(2\pi)", r"(x^{2}+3\cdot x+2)/3+\sqrt{2}-\sqrt{2}")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        *question, seconds = json.loads(line)
        start = time.process_time()
        try:
            limit(seconds)
            verdict = bool(same(*question))
        except KeyboardInterrupt:
            verdict = None
        except Exception:  # the parser and sympy raise what they like: what cannot be read is not equal
            verdict = False
        limit(0)
        print(json.dumps([verdict, time.process_time() - start]), file=answers, flush=True)


def _start_worker() -> subprocess.Popen:
    """A process that runs _algebra. Its code is sent, so that this works pasted into a notebook too."""
    program = "import marshal, sys; s = sys.stdin.buffer; exec(marshal.loads(s.read(int(s.readline()))))"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    worker = subprocess.Popen([sys.executable, "-P", "-c", program], bufsize=0, **pipes)
    code = marshal.dumps(_algebra.__code__)
    worker.stdin.write(b"%d\n" % len(code) + code)
    return worker


def _watch(worker: subprocess.Popen, seconds: float, is_done: threading.Event) -> None:
    """Interrupts the worker after so many seconds, and ends it where that does not help."""
    if not is_done.wait(seconds) and os.name == "posix":
        worker.send_signal(signal.SIGINT)
    if not is_done.wait(0.3):
        worker.kill()


def _ask(left: dict[str, float], mode: str, a: str, b: str) -> bool:
    """The worker's verdict on two LaTeX expressions; TimeoutError where it needs too long."""
    if any(len(s) > MAX_ANSWER_CHARS // 2 or _TOWER.search(s) for s in (a, b)):
        return False
    own = _workers.setdefault(os.getpid(), {"lock": threading.Lock(), "worker": None, "spare": None})
    with own["lock"]:
        if own["worker"] is None or own["worker"].poll() is not None:
            is_ready = own["spare"] is not None and own["spare"].poll() is None
            own["worker"] = own["spare"] if is_ready else _start_worker()
            if own["worker"].stdout.readline() != b"ready\n":
                raise UserError("scoring: the algebra's process did not start; pip install math-verify")
            own["spare"] = _start_worker()  # so that a kill costs the next pair no start
        worker, reply, start, is_done = own["worker"], b"", time.monotonic(), threading.Event()
        threading.Thread(target=_watch, args=(worker, left["wall"], is_done), daemon=True).start()
        try:
            worker.stdin.write(json.dumps([mode, a, b, left["cpu"]]).encode() + b"\n")
            reply = worker.stdout.readline()
        finally:
            is_done.set()
            if not reply:  # killed or interrupted: a late reply must not meet the next question
                worker.kill()
                worker.wait()
    verdict, seconds = json.loads(reply or "[null, 0]")
    left["cpu"] -= seconds
    left["wall"] -= time.monotonic() - start
    if verdict is None or min(left.values()) <= 0:
        raise TimeoutError
    return verdict


# --- Data: every set as rows of id, problem, solution, answer, subject, level, skills. ----------------------------------------------
MATH_CONFIGS = ["algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus"]
PERTURB_URL = "https://raw.githubusercontent.com/Kaffaljidhmah2/MATH-Perturb/main/math_perturb/math_perturb_"
HUB = {  # name: (address, configs, its name for the test split), tried in this order; only math and gsm8k have a train split
    # nlile/hendrycks-MATH-benchmark is cut 12,000/500: its train split holds 4,500 MATH test questions, so it is no candidate for "math".
    "math": [("EleutherAI/hendrycks_math", MATH_CONFIGS, "test"), ("DigitalLearningGmbH/MATH-lighteval", ["default"], "test")],
    "gsm8k": [("openai/gsm8k", ["main"], "test")],
    "math500": [("HuggingFaceH4/MATH-500", [None], "test"), ("nlile/hendrycks-MATH-benchmark", [None], "test")],
    "amc23": [("math-ai/amc23", [None], "test"), ("zwhe99/amc23", [None], "test")],  # AI-MO's AMC set is another: 83 of 2022 and 2023
    "aime24": [("HuggingFaceH4/aime_2024", [None], "train"), ("math-ai/aime24", [None], "test")],
    "aime25": [("math-ai/aime25", [None], "test"), ("yentinglin/aime_2025", [None], "train")],
    "math_perturb_simple": [(PERTURB_URL + "simple.jsonl", [None], "train")],
    "math_perturb_hard": [(PERTURB_URL + "hard.jsonl", [None], "train")],
}


# MATH's subjects and skills: the 112 pairs of Tables 5 and 6 of arXiv 2510.10023, whose §2 speaks of 128.
MATH_SKILLS = {subject: names.split(" | ") for subject, names in {
    "Algebra": "algebraic expression skills | algebraic manipulation skills | arithmetic skills | calculation and conversion skills | "
    "combinatorial operations and basic arithmetic | complex number skills | distance and midpoint skills | exponent and root skills | "
    "factoring skills | function composition skills | function skills | geometric sequence skills | graph and geometry skills | "
    "inequality skills | logarithmic and exponential skills | number theory skills | polynomial concepts | quadratic equation skills | "
    "ratio and proportion skills | sequence and series skills | solving equations",
    "Counting & Probability": "calculating and understanding combinations | combinatorial mathematics | combinatorics concepts | "
    "counting principals | factorials and prime factorization | number theory and arithmetic operations | permutation and combinations | "
    "probability calculation with replacement | probability concepts and calculations | probability theory and distribution | "
    "combinatorics operations",
    "Geometry": "3d geometry and volume calculation skills | algebraic skills | area calculation skills | circle geometry skills | "
    "combinatorics and probability skills | coordinate geometry and transformation skills | other geometric skills | pythagorean skills | "
    "quadrilateral and polygon skills | ratio and proportion skills | triangle geometry skills | trigonometry skills | "
    "understanding circle properties and algebraic manipulation",
    "Intermediate Algebra": "absolute value skills | algebraic manipulation and equations | calculus optimization skills | "
    "complex number manipulation and operations | function composition and transformation | graph understanding and interpretation | "
    "inequality solving and understanding | polynomial concepts | properties and application of exponents | "
    "quadratic equations and solutions | recursive functions and sequences | sequence and series analysis skills | "
    "simplification and basic operations | solving inequalities | solving system of equations | summation and analysis of series | "
    "understanding and application of functions | understanding and applying floor and ceiling functions | "
    "understanding and manipulation of rational functions | understanding and utilizing infininte series | "
    "understanding ellipse properties | understanding logarithmic properties and solving equations",
    "Number Theory": "arithmetic sequences | base conversion | basic arithmetic | division and remainders | exponentiation | factorization | "
    "greatest common divisor calculations | modular arithmetic | number manipulation | number theory | polynomial operations | "
    "prime number theory | sequence analysis | solving equations | understanding of fractions",
    "Prealgebra": "average calculations | basic arithmetic operations | circles | counting and number theory | exponentiation rules | "
    "fractions and decimals | geometry | multiples and zero properties | multiplication and division | perimeter and area | "
    "prime number theory | probability and combinatorics | ratio and proportion | linear equation",
    "Precalculus": "algebra and equations | basic trigonometry | calculus | complex number operations | complex numbers | coordinate systems | "
    "determinant calculation | geometric relations | geometry and space calculation | geometry triangle properties | matrix operations | "
    "parametric equations | sequences series and summation | three dimensional geometry | trigonometric calculations | vector operations",
}.items()}


def load(name_or_path: str, split: str = "test", root: str | None = None) -> list[dict]:
    """Rows of a set in HUB, of a .jsonl file (split is then ignored) or of a folder that holds {split}.jsonl.

    root: a folder of local copies, used instead of the Hub: root/math/test.jsonl, root/math_perturb/hard.jsonl ("math_perturb_hard").
    A row's id is unique; answer is "" where the solution's box is empty; solution, subject, level (int) and skills may be None.
    """
    if root is None and name_or_path in HUB:
        where, lines = _from_hub(name_or_path, split)
        stem = f"{name_or_path}-{split}"
    else:
        path = Path(root or "", name_or_path.replace("math_perturb_", "math_perturb/") if root else name_or_path)
        if path.suffix != ".jsonl":
            path = path / f"{split}.jsonl" if path.is_dir() else path.with_name(f"{path.name}.jsonl")
        if not path.is_file():
            raise UserError(f"{path}: no such file; pass a .jsonl file, a folder holding {split}.jsonl, or one of {', '.join(HUB)}")
        where, lines, stem = path, read_jsonl(path), path.stem
    rows = {}
    for i, (n, raw) in enumerate(lines):
        row = _row(raw, f"{where} line {n}", f"{stem}/{i}")
        if row["id"] in rows:
            raise UserError(f"{where} line {n}: field 'id': {row['id']!r} stands in an earlier line too; make the ids unique")
        rows[row["id"]] = row
    if not rows:
        raise UserError(f"{where}: expected at least one question, found none; check the file")
    return list(rows.values())


def _from_hub(name: str, split: str) -> tuple[str, list[tuple[int, dict]]]:
    import datasets  # slow, and not needed for local files

    if split != "test" and (split, name) not in {("train", "math"), ("train", "gsm8k")}:
        raise UserError(f"{name}: there is no split {split!r}; use test (math and gsm8k also have train)")
    for address, configs, test_split in HUB[name]:
        kind, more = ("json", {"data_files": address}) if address.startswith("https:") else (address, {})
        try:
            parts = [datasets.load_dataset(kind, c, split=test_split if split == "test" else split, **more) for c in configs]
        except Exception as error:  # whatever ails this address (gone, gated, no such split, no network), the next one may do
            print(f"{name}: {address} failed: {type(error).__name__}: {error}"[:200], file=sys.stderr)
        else:
            print(f"{name} {split}: {sum(map(len, parts)):,} rows from {address}")
            return address, list(enumerate((row for part in parts for row in part), 1))
    raise UserError(f"{name}: tried {', '.join(address for address, *_ in HUB[name])}, none answered; pass a local path instead")


def read_jsonl(path: Path) -> list[tuple[int, dict]]:
    """(line number from 1, object) of each line that is not blank."""
    rows, n = [], 0
    try:
        for n, line in enumerate(path.read_bytes().splitlines(), 1):  # of bytes: U+2028 inside a string cuts no line
            if line.strip():
                rows.append((n, dict(json.loads(line))))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} line {n}: expected one JSON object in UTF-8, but: {error}; repair or delete the line") from None
    return rows


def _row(raw: dict, where: str, fallback_id: str) -> dict:
    def field(*names, expected="text", types=(str,), need=False, good=lambda value: True):
        value = next((raw[name] for name in names if raw.get(name) is not None), None)
        if (value is None and need) or (value is not None and not (type(value) in types and good(value))):
            raise UserError(f"{where}: field {' or '.join(names)!r}: expected {expected}, came {value!r:.60}; correct the file")
        return value

    problem, solution = field("problem", "question", need=True, good=str.strip), field("solution")
    if solution and raw.get("answer") is None:  # MATH on the Hub
        empty = solution[solution.rfind("\\boxed") :].startswith("\\boxed{}")  # two rows of train
        raw = {**raw, "answer": "" if empty else extract_answer(solution)}
    answer = field("answer", expected="text, a number, or a solution with a \\boxed{}", types=(str, int, float), need=True)
    if isinstance(answer, float) and answer.is_integer():  # AMC: 27.0
        answer = int(answer)
    elif "\n#### " in str(answer):  # GSM8K: the solution with <<calculator marks>>, then the answer
        solution, answer = answer.rsplit("\n#### ", 1)
        answer = answer.strip().replace(",", "")
        solution = re.sub(r"<<[^<>]*>>", "", solution) + f"\nThe answer is $\\boxed{{{answer}}}$."
    as_level = {"expected": "a number or 'Level 3'", "types": (str, int), "good": lambda x: re.fullmatch(r"(Level )?(\d+|\?)", str(x))}
    level = re.search(r"\d+", str(field("level", **as_level)))  # two MATH rows have "Level ?"
    skills = field("skills", expected="a list of names", types=(list,), good=lambda x: all(isinstance(skill, str) for skill in x))
    given = field("id", "problem_id", "unique_id", expected="text or a whole number", types=(str, int))
    row = {"id": fallback_id if given is None else str(given), "problem": problem, "solution": solution, "answer": str(answer).strip()}
    return {**row, "subject": field("subject", "type"), "level": int(level[0]) if level else None, "skills": skills}


def read_json(path: str | Path):
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except ValueError as error:
        raise UserError(f"{path}: expected JSON, but: {error}; repair the file") from None


def read_lists(path: str, flag: str, what: str) -> dict[str, list[str]]:
    """A JSON file {what: [name, ...]} that a flag names."""
    lists = read_json(path)
    if not isinstance(lists, dict) or not all(
            isinstance(names, list) and all(isinstance(x, str) and not re.search(r"[,;|\n]", x) for x in names) for names in lists.values()):
        raise UserError(f"{flag} {path}: expected {{{what}: [skill, ...]}} with none of , ; | in a skill's name; correct the file")
    return lists


def read_pairs(path: str, flag: str = "--pairs") -> list[dict]:
    """Training pairs in chat form from a .json list or a .jsonl file: rows {"id", "messages": [{"role", "content"}, ..., the answer last]}.

    Read are "messages" (role, content) and "conversations" (from, value; human and gpt, as ShareGPT has them).
    """
    rows = read_json(path) if path.endswith(".json") else [row for _, row in read_jsonl(Path(path))]
    if not rows or not isinstance(rows, list):
        raise UserError(f"{flag} {path}: expected a list of at least one pair, came {rows!r:.40}; check the file")
    pairs = []
    for n, row in enumerate(rows, 1):
        turns = (row.get("messages") or row.get("conversations")) if isinstance(row, dict) else None
        try:
            turns = [{"role": t["role"], "content": t["content"]} if "role" in t else
                     {"role": {"human": "user", "gpt": "assistant"}.get(t["from"], t["from"]), "content": t["value"]} for t in turns]
        except (TypeError, KeyError):
            turns = []
        good = all(t["role"] in ("system", "user", "assistant") and isinstance(t["content"], str) for t in turns)
        if not (good and len(turns) > 1 and turns[-1]["role"] == "assistant" and turns[-2]["role"] == "user"):
            raise UserError(f"{flag} {path}, row {n}: expected 'messages' of role and content that end with a question and its answer, came "
                            f"{json.dumps(row)!s:.80}; bring the file into this form")
        pairs.append({"id": row.get("id"), "messages": turns})
    return pairs


def plain(text: str) -> str:
    """A question without case, spacing, stops, braces and dollars; 1.5 is not 15, x+1 not x-1, |2-3| not 2-3."""
    return re.sub(r"[^\w+\-*/^<>=|().,]|[.,](?!\d)", "", text.casefold())


def without(rows: list[dict], others: list[dict]) -> list[dict]:
    """The rows whose problem is not, in plain form, one of `others`."""
    texts = {plain(row["problem"]) for row in others}
    return [row for row in rows if plain(row["problem"]) not in texts]


def untested(pairs: list[dict], tests: list[dict]) -> list[dict]:
    """The training pairs, {"messages"}, whose question does not hold one of the test problems; says how many do."""
    questions = [plain(pair["messages"][-2]["content"]) for pair in pairs]
    everything = "\n".join(questions)
    tested = [text for text in {plain(row["problem"]) for row in tests} if text in everything]
    left = [pair for pair, question in zip(pairs, questions, strict=True) if not any(text in question for text in tested)]
    print(f"{len(pairs)} pairs, {len(pairs) - len(left)} of them left out because they hold a question that is tested on")
    if not left:
        raise UserError("--pairs: every pair holds a question that is tested on; check --data and the file")
    return left


def torch_seed(seed: int, *names: str) -> int:
    """A seed in [0, 2**32), for torch and numpy, that belongs to this step alone: a skipped step shifts no other."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, *names]).encode()).digest()[:4])


def rng(seed: int, *names: str) -> random.Random:
    return random.Random(torch_seed(seed, *names))


def split_math(rows: list[dict], n_val: int, seed: int) -> tuple[list[dict], list[dict]]:
    """(validation, test): n_val rows at random and the others, each in file order. STAT: 1,000 and 4,000 of MATH test (§3.1)."""
    if not 0 < n_val < len(rows):
        raise UserError(f"split: expected 0 < n_val < {len(rows)} (the number of rows), came {n_val}; change n_val")
    by_text = sorted(range(len(rows)), key=lambda i: rows[i]["problem"])  # so the order of the file does not matter
    chosen = set(rng(seed, "split_math").sample(by_text, n_val))
    return [row for i, row in enumerate(rows) if i in chosen], [row for i, row in enumerate(rows) if i not in chosen]


class Questions(NamedTuple):
    pool: list[dict]  # training questions with a solution and an answer
    val: list[dict]  # what the student is profiled on
    sets: dict[str, list[dict]]  # what is tested on: first "MATH", the rest of the test split
    n_samples: dict[str, int]  # answers to each question of a set
    removed: dict[str, int]  # how many questions a set has lost because they are profiled on


def load_questions(data: str, n_val: int, seed: int, val: str | None = None, ood: tuple[str, ...] = (), samples: int = 1,
                   limit: int | None = None) -> Questions:
    """Training, validation and test questions, none of them in two of the three, by their texts.

    val: a set to profile on instead of n_val questions of the test split; of it half at most, and the rest is tested on. ood: other sets to test
    on; `samples` answers a question are for those with fewer than 100. limit: at most so many questions of each.
    """
    if data.endswith(".jsonl"):
        raise UserError(f"--data {data}: expected a folder with train.jsonl and test.jsonl, came one file; give the folder")
    train, tests = load(data, "train"), load(data, "test")
    names = {name: "/".join(Path(name).with_suffix("").parts[-2:]) for name in dict.fromkeys([val] * bool(val) + list(ood))}
    if twice := [name for name, count in Counter(["MATH", *names.values()]).items() if count > 1]:
        raise UserError(f"--ood: two sets would be called {twice[0]}, by the last two parts of their paths; rename one")
    others = {short: load(name) for name, short in names.items()}
    if val:
        name, rows = next(iter(others.items()))
        chosen, _ = split_math(rows, min(n_val, len(rows) // 2), seed)  # ours: half at most, because something must be left to test on
        chosen = [row | {"id": f"{name}/{row['id']}"} for row in chosen]
    else:
        chosen, tests = split_math(tests, n_val, seed)
    sets = {"MATH": tests, **others}
    # ours: by size, because the sets that STAT samples often (AMC23, AIME; §3.1) have 30 or 40 questions and all others hundreds
    n_samples = {name: samples if name != "MATH" and len(rows) < 100 else 1 for name, rows in sets.items()}
    left = {name: without(rows, chosen) for name, rows in sets.items()}
    removed = {name: len(sets[name]) - len(rows) for name, rows in left.items()}
    if empty := [name for name, rows in left.items() if not rows]:
        raise UserError(f"{empty[0]}: every question of it is profiled on; leave it out, or profile on fewer")
    pool = without([row for row in train if row["answer"] and row["solution"]], [*chosen, *itertools.chain(*sets.values())])
    print(f"P {len(pool)} questions ({len(train) - len(pool)} left out: no answer, or in an evaluation set), Q_val {len(chosen)}; tested on "
          + ", ".join(f"{name} {len(rows)} ({removed[name]} taken out: profiled on)" for name, rows in left.items()))
    if limit:
        pool, chosen, *rest = (rng(seed, "limit").sample(rows, min(limit, len(rows))) for rows in (pool, chosen, *left.values()))
        left = dict(zip(left, rest, strict=True))
    if len({row["id"] for row in pool + chosen + left["MATH"]}) < len(pool + chosen + left["MATH"]):
        raise UserError(f"--data {data}: an id stands in train.jsonl and in test.jsonl too; make the ids unique")
    return Questions(pool, chosen, left, n_samples, removed)


# --- Models: 4-bit weights from the Hub or a folder. ----------------------------------------------------------------------------------
def check_checkpoint(name: str | None, flag: str) -> None:
    """Refuse early what is neither a folder with a model or an adapter nor one on the Hub; None is fine."""
    file = "adapter_config.json" if flag == "--adapter" else "config.json"
    if name is None or (Path(name) / file).is_file():
        return
    if Path(name).is_dir():
        raise UserError(f"{flag} {name}: there is no {file} in that folder; give the folder that a checkpoint was saved to")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{flag} {name}: no such folder; give a folder with a checkpoint or a Hub name such as Qwen/Qwen2.5-3B")
    from huggingface_hub import hf_hub_download
    try:
        hf_hub_download(name, file)
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {name} can't be loaded: {loading_advice(error)}") from error


def loading_advice(error: Exception) -> str:
    gated = "gated" in str(error).lower() or "401" in str(error)
    return "the weights are gated: accept their licence on the Hub, then run `hf auth login`" if gated else str(error).strip().split("\n")[0]


def load_4bit(name: str, flag: str) -> tuple:
    """(model, tokenizer) of a causal language model, frozen, in NF4; compute in bfloat16, on a machine without a GPU in float32.

    The memory of models that nothing refers to any more is given back first, and the GPU's peak counted anew.
    """
    import logging
    import warnings

    import torch
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU|`is_gradient_checkpointing` is deprecated")  # both harmless
    import bitsandbytes as bnb
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from transformers.utils import logging as hf_logging
    hf_logging.disable_progress_bar()
    gc.collect()  # PEFT's wrappers refer to one another
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    # ours: double quantisation, because it saves 0.4 bit a weight, and STAT's §C.1 names NF4 and bfloat16 but does not speak of it
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, info = AutoModelForCausalLM.from_pretrained(
            name, quantization_config=quantization, dtype=dtype, device_map={"": 0} if torch.cuda.is_available() else None, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {name} can't be loaded: {loading_advice(error)}") from error
    if info["missing_keys"] and flag != "--embedder":  # a reward model with a head of its own would score at random
        raise UserError(f"{flag} {name}: expected a causal language model, but {min(info['missing_keys'])} is not among its weights; take another")
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False  # else one forward pass in eval mode silently breaks all later gradients on such CPUs
    if any(getattr(model.config, field, None) for field in ("final_logit_softcapping", "logit_scale", "logits_scaling")):
        raise UserError(f"{flag} {name}: it rescales its logits after lm_head, which the files here do not; take a Llama or Qwen2 kind")
    return model.requires_grad_(False).eval(), tokenizer


class Student(NamedTuple):
    model: object  # a torch module, with a LoRA adapter if it has one
    tokenizer: object
    end: str  # what training puts behind an answer
    stop_ids: frozenset[int]  # every token that ends an answer
    device: object


def load_student(name: str, adapter: str | Path | None = None) -> Student:
    """A chat model in NF4, with a LoRA adapter that training may go on from, if one is given."""
    if adapter and (config := Path(adapter, "adapter_config.json")).is_file():
        base = str(read_json(config).get("base_model_name_or_path"))
        if base != name and "/" in base and not Path(base).exists() and not Path(name).exists():  # two names on the Hub: it would fit, and be wrong
            raise UserError(f"--adapter {adapter}: it was trained on {base}, not on --student {name}; give --student {base}")
    model, tokenizer = load_4bit(name, "--student")
    if tokenizer.chat_template is None:
        raise UserError(f"--student {name}: its tokenizer has no chat template; use an instruction-tuned model, or add one")
    shown = apply_template(tokenizer, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "@answer@"}])
    end = shown.rpartition("@answer@")[2].strip() or tokenizer.eos_token
    stop = model.generation_config.eos_token_id
    stop = set(stop if isinstance(stop, list) else [stop]) | {tokenizer.eos_token_id, tokenizer(end, add_special_tokens=False).input_ids[-1]}
    # ours: a base model may have a template whose end of turn it was never trained on (so users report of Qwen2.5's), and LoRA leaves embeddings as
    # they are: then its own end of text, because that one it knows.
    end = end if tokenizer.eos_token in end else tokenizer.eos_token
    if adapter:
        from peft import PeftModel
        try:
            model = PeftModel.from_pretrained(model, adapter, is_trainable=True).eval()
        except (OSError, ValueError, RuntimeError) as error:
            message = str(error).strip().split("\n")[0]
            raise UserError(f"--adapter {adapter}: expected a folder with a LoRA adapter of {name}, but: {message}; check both") from error
    return Student(model, tokenizer, end, frozenset(stop - {None}), model.device)


def apply_template(tokenizer, messages: list[dict], **kwargs) -> str:
    # Llama 3's template prints today's date unless it is given one: a run must not change overnight.
    return tokenizer.apply_chat_template(messages, tokenize=False, date_string="26 Jul 2024", **kwargs)


def prompt_ids(tokenizer, messages: list[dict]) -> list[int]:
    """The tokens of a chat up to the assistant's next turn."""
    return tokenizer(apply_template(tokenizer, messages, add_generation_prompt=True), add_special_tokens=False).input_ids


def pad(rows: list[list[int]], device) -> tuple:
    """Token rows padded on the right: ids and mask, (B, T) each."""
    import torch
    width = max(map(len, rows))
    return (torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device),
            torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device))


def hidden_states(model, ids, mask):
    """The last hidden states, (B, T, d), of a causal model with or without LoRA layers; no logits are computed."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def grouped_batches(lengths: list[int], size: int, rng: random.Random) -> list[list[int]]:
    """Shuffled batches of indices of similar length: shuffle, sort within chunks, shuffle the batches.

    ours: chunks of 50 batches, because that leaves the batches' content nearly random and takes most of the padding away.
    """
    order = rng.sample(range(len(lengths)), len(lengths))
    chunks = [sorted(order[i:i + 50 * size], key=lambda j: -lengths[j]) for i in range(0, len(order), 50 * size)]
    batches = [chunk[i:i + size] for chunk in chunks for i in range(0, len(chunk), size)]
    return rng.sample(batches, len(batches))


def split_steps(response: str) -> list[str]:
    r"""The steps of an answer for a reward model: its paragraphs, or its lines if it is one paragraph; a display formula is never cut.

    ours: where to cut, because STAT does not say. The final answer, if there is one, comes as a last step of its own, because STAT's authors
    showed it to such a model so before (AdaptMI). Never none.
    >>> split_steps("x+1=3.\n\nSo\n\\[x\n\n=2\\]"), split_steps("2+3=5\nSo \\boxed{5}.")[1:]
    (['x+1=3.', 'So\n\\[x\n\n=2\\]'], ['So \\boxed{5}.', 'The final answer is: \\boxed{5}.'])
    """
    display = r"(?<!\\)\\\[.*?(?:\\\]|\Z)|\$\$.*?(?:\$\$|\Z)|\\begin\{(\w+\*?)\}.*?(?:\\end\{\1\}|\Z)"
    text = re.sub(display, lambda formula: formula[0].replace("\n", "\0"), response.strip(), flags=re.DOTALL)
    paragraphs, answer = re.split(r"\n\s*\n", text), extract_answer(response)
    steps = [step.replace("\0", "\n").strip() for step in (paragraphs if len(paragraphs) > 1 else text.split("\n"))]
    return [step for step in steps if step] + [f"The final answer is: \\boxed{{{answer}}}."] * (answer is not None) or [""]


def chat_of_steps(tokenizer, problem: str, steps: list[str], plus: int) -> tuple[list[int], list[int]]:
    """Tokens of the chat "problem + step 1", "+", "step 2", "+", ... that RLHFlow's reward models read; the positions that predict its marks."""
    chat, prompts = [], []
    for i, step in enumerate(steps):
        chat.append({"role": "user", "content": f"{problem} {step}" if i == 0 else step})
        prompts.append(prompt_ids(tokenizer, chat))
        chat.append({"role": "assistant", "content": "+"})
    if any(longer[:len(prompt) + 1] != [*prompt, plus] for prompt, longer in itertools.pairwise(prompts)):
        raise UserError("--prm: its chat template does not leave earlier turns as they are with a + behind them; take a model of RLHFlow's kind")
    return prompts[-1], [len(prompt) - 1 for prompt in prompts]


def score_steps(model, tokenizer, answers: list[tuple[str, list[str]]]) -> list[list[float]]:
    """r_q,1..r_q,t of STAT's §2.1 for each (problem, steps): P("+") / (P("+") + P("-")) by a process reward model.

    All steps of an answer take one forward pass: attention is causal, and every earlier mark is "+" whatever its score.
    """
    import torch
    plus, minus = (tokenizer(mark, add_special_tokens=False).input_ids[-1] for mark in "+-")
    chats = [chat_of_steps(tokenizer, problem, steps, plus) for problem, steps in answers]
    with torch.no_grad():
        hidden = hidden_states(model, *pad([ids for ids, _ in chats], model.device))  # (B, T, d)
        logits = [model.lm_head(row[marks]).float()[:, [plus, minus]] for row, (_, marks) in zip(hidden, chats, strict=True)]  # (t, 2) each
    return [pair.softmax(-1)[:, 0].tolist() for pair in logits]


def step_rewards(run: "Run", name: str, prm: str, answered: list[tuple[dict, str]], batch: int) -> dict[str, list[float]]:
    """The rewards of the steps of every (question, response), by the question's id; in batches of similar length, kept in the file `name`."""
    if not answered:
        return {}
    load_prm = functools.cache(lambda: load_4bit(prm, "--prm"))  # only if something is left to do
    by_id = {row["id"]: (row["problem"], response) for row, response in answered}
    items = [{"id": i} for i in sorted(by_id, key=lambda i: (sum(map(len, by_id[i])), i))]

    def make(part):
        steps = [(problem, split_steps(response)) for problem, response in (by_id[item["id"]] for item in part)]
        return [item | {"rewards": rewards} for item, rewards in zip(part, score_steps(*load_prm(), steps), strict=True)]
    rows = run.batches(name, [items[i:i + batch] for i in range(0, len(items), batch)], make, unit="answer")
    return {row["id"]: row["rewards"] for row in rows}


def embed(model, tokenizer, texts: list[str], batch: int):
    """Mean-pooled last hidden states of unit length, (N, d)."""
    import torch
    order, rows = sorted(range(len(texts)), key=lambda i: len(texts[i])), {}
    for i in tqdm(range(0, len(order), batch), desc="embed", unit="batch"):
        with torch.no_grad():
            ids, mask = pad([tokenizer(texts[j]).input_ids for j in order[i:i + batch]], model.device)
            hidden = hidden_states(model, ids, mask).float() * mask[:, :, None]  # (B, T, d)
        mean = torch.nn.functional.normalize(hidden.sum(1), dim=-1)
        rows |= dict(zip(order[i:i + batch], mean.cpu(), strict=True))
    return torch.stack([rows[i] for i in range(len(texts))])


def nearest(queries, keys, k: int) -> list[list[int]]:
    """The k keys (M, d) of the largest inner product with each query (N, d), equal ones in their order."""
    return (queries @ keys.T).sort(descending=True, stable=True).indices[:, :k].tolist()


# --- Run: one directory per run; a file that is there is whole, and a rerun goes on after it. ---------------------------------------
def open_run(args, out: str | Path, how: tuple[str, ...] = ()) -> "Run":
    """Open directory `out`, new or from an earlier start with the same `args` (a dataclass); it is locked until the process ends.

    how: fields that only say how to run (address, concurrency, price, micro-batch) and may change between starts; "out" is one anyway.
    """
    path = Path(out)
    path.mkdir(parents=True, exist_ok=True)
    there = {p.name for p in path.iterdir()} - {".lock", "args.json.tmp"}  # alone, these two are a run killed at its very start
    if there and "args.json" not in there:
        raise UserError(f"{path}: expected a new, an empty or an earlier run's directory, found other files; choose another --out")
    run = Run(path, open(path / ".lock", "a"))
    try:
        fcntl.flock(run.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it, even after kill -9
    except BlockingIOError:
        raise UserError(f"{path}: another process runs in this directory; wait for it or choose another --out") from None
    new = json.loads(json.dumps(dataclasses.asdict(args), default=str))  # as the file gives it back: Path -> str, tuple -> list
    old = run.read("args.json") if "args.json" in there else new
    pairs = {k: [json.dumps(d[k]) if k in d else "absent" for d in (old, new)] for k in sorted({*old, *new} - {"out", *how})}
    changed = [f"{k} was {a}, is {b}" for k, (a, b) in pairs.items() if a != b and old.get(k, a) != new.get(k, b)]  # 1 equals 1.0
    if changed:
        run.lock.close()  # else the caught error would hold it
        raise UserError(f"{path}: it was made with other arguments ({'; '.join(changed)}); give the old ones or choose another --out")
    run.write("args.json", new)
    run.write("env.json", (run.read("env.json") if "env.json" in there else []) + [_environment()])  # one entry per start
    return run


def _environment() -> dict:
    def output(*command):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    found = {d.name: d.version for d in importlib.metadata.distributions()}
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "argv": sys.argv,
        "commit": output("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),  # null outside a repository
        "gpu": output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "cpu",  # torch may not be loaded yet
        "python": platform.python_version(),
        "packages": {name: found.get(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "openai", "math-verify", "tyro")},
    }


@dataclasses.dataclass
class Run:
    path: Path
    lock: io.IOBase

    def read(self, name: str):
        try:
            text = (self.path / name).read_bytes()
            return [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else json.loads(text)
        except ValueError as error:
            raise UserError(f"{self.path / name}: expected JSON, but: {error}; repair it, or delete it to have it made anew") from None

    def write(self, name: str, value) -> None:
        """Rows (name.jsonl), any JSON (name.json) or text (other names), whole or not at all."""
        if name.endswith(".jsonl"):
            value = "".join(json.dumps(row) + "\n" for row in value)  # ASCII: a reply may hold half a surrogate pair
        elif name.endswith(".json"):
            value = json.dumps(value, indent=1) + "\n"
        aside = self.path / f"{name}.tmp"
        with open(aside, "w", encoding="utf-8") as f:
            _append(f, value)
        aside.rename(self.path / name)

    def log(self, **values) -> None:
        """Append a line to metrics.jsonl. A step that is resumed or redone logs again: the later line counts."""
        with open(self.path / "metrics.jsonl", "a") as f:
            f.write(json.dumps({"time": round(time.time(), 2), **values}, default=float) + "\n")  # float: numpy and torch scalars

    def step(self, name: str, make):
        """What file `name` holds; if it is not there, make() is written to it first, and its seconds are logged. Either way it is what JSON gives
        back."""
        start, there = time.time(), (self.path / name).exists()
        if not there:
            self.write(name, make())
            self.log(step=name, seconds=round(time.time() - start, 2))
        value, torch = self.read(name), sys.modules.get("torch")
        rows = f"{len(value):,} rows, " if isinstance(value, list) else ""
        peak = f", peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if torch and torch.cuda.is_available() else ""
        print(f"{name}: {rows}" + ("there already" if there else f"{time.time() - start:.1f} s{peak}"), flush=True)
        return value

    def batches(self, name: str, batches: list[list[dict]], make, unit: str = "question", desc: str | None = None) -> list[dict]:
        """A long step: make(batch) gives one row per item, in order, with the item's "id". A kill costs at most the current batch.

        Rows kept from an earlier start that belong to other items are refused, not thrown away: they may have cost money.
        """
        part = self.path / f"{name}.part"

        def work():
            from tqdm import tqdm

            rows, lines = [], part.read_bytes().splitlines(keepends=True) if part.exists() else []
            with open(part, "a") as f, tqdm(total=sum(map(len, batches)), unit=unit, desc=desc or name) as bar:
                for batch in batches:
                    kept = lines[len(rows) : len(rows) + len(batch)]
                    whole = len(kept) == len(batch) > 0 and kept[-1].endswith(b"\n")
                    if kept and not whole:  # a kill tore this batch: cut it off
                        f.truncate(sum(map(len, lines[: len(rows)])))
                    new = [json.loads(line) for line in kept] if whole else make(batch)
                    if [row["id"] for row in new] != [item["id"] for item in batch]:
                        came = f"{part} holds rows of" if whole else "make() returned rows for"
                        raise UserError(f"{name}: {came} other items than this step has now; move {part.name} away to make it anew")
                    if not whole:
                        _append(f, "".join(json.dumps(row) + "\n" for row in new))
                    rows += new
                    bar.update(len(batch))
            return rows

        rows = self.step(name, work)
        part.unlink(missing_ok=True)
        return rows


def _append(f, text: str) -> None:
    f.write(text)
    f.flush()
    os.fsync(f.fileno())


# --- Tables for the terminal. -------------------------------------------------------------------------------------------------------
def paired_bootstrap(a: list[bool], b: list[bool], n_boot: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """a's lead over b on the same questions, in points, with a 95 % percentile interval over resampled questions; nan for none.

    Only questions that one of the two alone has right move the lead, so drawing their two counts is drawing questions, but quick.
    """
    import numpy as np

    if len(a) != len(b) or None in a or None in b:
        raise ValueError("expected an outcome of both arms for each question; leave out the questions that lack one")
    n, wins, losses = len(a), sum(x and not y for x, y in zip(a, b, strict=True)), sum(y and not x for x, y in zip(a, b, strict=True))
    if n == 0:
        return math.nan, math.nan, math.nan
    drawn = np.random.default_rng(torch_seed(seed, "bootstrap")).multinomial(n, [wins / n, losses / n, (n - wins - losses) / n], n_boot)
    low, high = np.percentile(100 * (drawn[:, 0] - drawn[:, 1]) / n, [2.5, 97.5])
    return 100 * (wins - losses) / n, float(low), float(high)


def arms_table(outcomes: dict[str, list[bool]], reference: str, n_boot: int = 10_000, seed: int = 0) -> str:
    """A line per arm: right answers with their 95 % interval, and the paired lead over arm `reference` in points with its own."""
    width = max(map(len, [*outcomes, "arm"]))
    table = [f"{'arm':<{width}}  {'right':>11}  {'%':>5}  {'95 % interval':>14}  {'vs ' + reference:>14}  {'95 % interval':>14}"]
    for arm, right in outcomes.items():
        share, *inside = paired_bootstrap(right, [False] * len(right), n_boot, seed)
        lead, *around = paired_bootstrap(right, outcomes[reference], n_boot, seed)
        counts, inside, around = f"{sum(right):,}/{len(right):,}", "[{:.1f}, {:.1f}]".format(*inside), "[{:+.1f}, {:+.1f}]".format(*around)
        table.append(f"{arm:<{width}}  {counts:>11}  {share:>5.1f}  {inside:>14}  {lead:>+14.1f}  {around:>14}")
    return "\n".join(table)


def sets_table(tested: dict[str, list[dict]], reference: str, part: tuple[str, set[str]]) -> str:
    """The arms on every evaluation set, and on a part (name, ids) of the first. tested[arm]: rows of set, id, is_right, one for each sample."""
    lines = []
    for name in dict.fromkeys(row["set"] for row in tested[reference]):
        right: dict[str, dict[str, list[bool]]] = {arm: defaultdict(list) for arm in tested}
        for arm, rows in tested.items():
            for row in rows:
                if row["set"] == name:
                    right[arm][row["id"]].append(bool(row["is_right"]))
        k = len(next(iter(right[reference].values())))
        means = {arm: 100 * sum(map(sum, found.values())) / sum(map(len, found.values())) for arm, found in right.items()}
        lines += ["", f"{name}, pass@{k}" + "".join(f"; avg@{k} of {arm} {mean:.1f} %" for arm, mean in means.items() if k > 1),
                  arms_table({arm: [any(draws) for draws in found.values()] for arm, found in right.items()}, reference)]
        inside = {arm: [draws[0] for i, draws in found.items() if i in part[1]] for arm, found in right.items()}
        if name == tested[reference][0]["set"] and inside[reference]:
            lines += ["", part[0], arms_table(inside, reference)]
    return "\n".join(lines)


def agreement(hits: int, false_alarms: int, misses: int, rejections: int) -> dict[str, float | None]:
    """How well a criterion of difficulty finds the wrong answers, in %; None where the denominator is zero.

    hits: difficult and wrong; false alarms: difficult and right; misses: not difficult and wrong; rejections: neither.
    >>> agreement(6, 2, 0, 2)
    {'accuracy': 80.0, 'precision': 75.0, 'recall': 100.0, 'F1': 85.71428571428571}
    """
    parts = {"accuracy": (hits + rejections, hits + false_alarms + misses + rejections), "precision": (hits, hits + false_alarms),
             "recall": (hits, hits + misses), "F1": (2 * hits, 2 * hits + false_alarms + misses)}
    return {name: 100 * k / n if n else None for name, (k, n) in parts.items()}


def bars(counts: dict[str, int], top: int = 10, width: int = 40) -> str:
    """The `top` largest counts as bars, equal ones by name; the longest bar is `width` signs.

    >>> print(bars({"b": 1, "a": 4, "c": 1}, top=2, width=4))
    a  4 ####
    b  1 #
    (1 more)
    """
    shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:top]
    name_width, most = max([len(name) for name, _ in shown], default=0), max([1, *counts.values()])
    lines = [f"{name:<{name_width}}  {n:>{len(f'{most:,}')},} {'#' * math.ceil(width * n / most)}".rstrip() for name, n in shown]
    return "\n".join(lines + [f"({len(counts) - top} more)"] * (len(counts) > top)) or "(none)"


# --- Command line. -------------------------------------------------------------------------------------------------------------------
def peak_gib() -> float:
    """Peak memory so far: the GPU's where torch uses one, else this process's."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**30 if sys.platform == "darwin" else 2**20), 2)


def check_args(args, **tops: float) -> None:
    """Whole numbers but the seed are at least 1, lists are not empty and name nothing twice, and the fields in `tops` lie between 0 and that."""
    for field in dataclasses.fields(args):
        name, value, flag = field.name, getattr(args, field.name), f"--{field.name.replace('_', '-')}"
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise UserError(f"{flag}: expected each name once, came {' '.join(map(str, value))}")
        if name in tops and not 0 <= value <= tops[name]:
            raise UserError(f"{flag}: expected a number from 0 to {tops[name]}, came {value}")
        if name != "seed" and type(value) is int and value < 1 or value == () != field.default:
            raise UserError(f"{flag}: expected at least {'one value' if value == () else 1}, came {'none' if value == () else value}")


def cli(main, Args, description: str) -> None:
    """Call main(Args from the command line). What a user can mend ends in one sentence and exit code 2; a bug keeps its traceback."""
    import tyro

    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            args = tyro.cli(Args, description=description.replace("\n", "\n "))  # tyro joins lines that are not indented
    except SystemExit as stop:
        if stop.code:  # tyro drew a box of title, message, rule, hints
            lines = [line.strip("╭│╰─╮╯ ") for line in box.getvalue().splitlines()]
            message = " ".join(itertools.takewhile(bool, lines[1:]))
            similar = [f"is it {line.split()[0]}? " for line in lines if line.startswith("--") and "Unrecognized" in message]
            print(f"error: {message}; {''.join(similar[:1])}see --help", file=sys.stderr)
        raise
    try:
        main(args)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, UserError):
            message = str(error)
        elif type(error).__name__ == "OutOfMemoryError":  # torch's, known by name since torch may not be loaded
            flags = ["--" + field.name.replace("_", "-") for field in dataclasses.fields(Args) if field.name.endswith("_batch")]
            message = f"the GPU's memory is full; lower {' or '.join(flags) or 'the batch size'}, or take a smaller model"
        elif isinstance(error, OSError) and errno.errorcode.get(error.errno) in (
                "ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "EEXIST", "ENOTDIR", "ENAMETOOLONG"):
            message = f"{error.filename or 'a file'}: {error.strerror}; make room or choose another --out, then run the same command again"
        else:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
