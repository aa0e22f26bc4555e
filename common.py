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
import math
import os
import platform
import random
import re
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


# --- Scoring: the last \boxed, then "the answer is"; own normal form first, algebra in a process that can be killed. ------
# Chosen where careful graders differ. A unit, $ or ° may be missing but not contradict. 50% is 50 and, a share being at most 1,
# also 1/2. 101_2 is not 101. A bare list has no order unless compared with (1,2), which is neither {1,2} nor [1,2].
# Numbers are exact: 0.333 is not 1/3, nor 3.14159265 pi; but a decimal of six places that shows its period twice recurs.
MAX_ANSWER_CHARS = 600  # longer answers are compared as they are; the longest of MATH has 159 characters
ALGEBRA_SECONDS = 1.0  # for all of one pair; a pair that needs more counts as different
_NUMERALS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
_UNITS = {word: unit.split()[0] for unit in (  # spellings of one unit; other words of 3 letters may be dropped after a space
    "% percent pct percentage|° degree deg|m meter metre|cm centimeter|mm millimeter|km kilometer|inch in inche|foot ft feet|yard yd|"
    "mile mi|g gram gm|kg kilogram|pound lb|second s sec|minute min|hour h hr|day|week|month|year yr|dollar usd|cent|euro|l liter|ml|"
    "radian rad|am|pm|sq|cu").split("|") for word in unit.split()}
_UNICODE = {ord(char): new for chars, new in (
    ("−–—‐", "-"), ("×", r"\times "), ("·⋅", r"\cdot "), ("∗", "*"), ("÷", "/"), ("∞", r"\infty "), ("⩽", "≤"), ("⩾", "≥"), ("∪", r"\cup "),
    ("∅", r"\emptyset "), ("π", r"\pi "), ("θ", r"\theta "), ("º", "°"), ("√", r"\sqrt "), ("±", r"\pm "), ("≈", r"\approx "),
    ("ℝ", r"\mathbb{R}"), ("′’‘", "'"), ("“”\x00", ""), ("〈⟨", "("), ("〉⟩", ")")) for char in chars}
_GROUP = functools.reduce(lambda inner, _: rf"\{{(?:[^{{}}]|{inner})*\}}", range(5), r"\{[^{}]*\}")  # balanced braces, six deep
_TRIG = r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)"
_FUNCTION = rf"{_TRIG}|log|ln|exp|sqrt"
_REWRITES = [(re.compile(pattern), new) for pattern, new in (  # in this order; afterwards ";" ends an item, "," may be a thousand's
    (r"[¼-¾⅐-⅞]", lambda m: "\\frac{" + unicodedata.normalize("NFKC", m[0]).replace("⁄", "}{") + "}"),
    (r"[⁻⁰¹²³⁴-⁹]+", lambda m: "^{" + unicodedata.normalize("NFKC", m[0]).replace("−", "-") + "}"),
    (r"[₀-₉]+", lambda m: "_{" + unicodedata.normalize("NFKC", m[0]) + "}"), (r"^(['\"`*]+)(.+?)\1$", r"\2"),
    *[(rf"\\f?box(?:ed)?\s*({_GROUP})", lambda m: m[1][1:-1]),
      (r"(?<=[_^])\s*\\(?:text[a-z]*|[mh]box|math(?:rm|bf|it|sf|tt|normal))\s*(?=\{)", ""),
      (rf"\\(?:textcolor\s*\{{\w+\}}|text[a-z]*|[mh]box|math(?:rm|bf|it|sf|tt|normal)|boldsymbol|bm|underline)\s*({_GROUP})",
       lambda m: f" {m[1][1:-1]} ")] * 2,
    (r"(?:\{,\}|,\s*\\!)\s*(?=\d{3})", ""),
    (r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|limits|rm|bf|phantom)(?![a-zA-Z])|\\!|\\?\$|€|£|(?<!\\)\\[][()]", ""),
    (r"(?:(?<!\\)\\[,;:\s]|\\q?quad(?![a-z])|~|\s)+", " "), (r"\\[dtc]?(frac|binom)(?![a-z])", r"\\\1"), (r"\\bar(?![a-z])", r"\\overline"),
    (r"\{([^{}]*)\\choose([^{}]*)\}", r"\\binom{\1}{\2}"), (r"\\leq?(?:slant)?(?![a-z])|<=", "≤"), (r"\\geq?(?:slant)?(?![a-z])|>=", "≥"),
    (r"\\neq?(?![a-z])|!=|\\not ?=", "≠"), (r"\\in(?![a-z])", "∈"), (r"\\lt(?![a-z])", "<"), (r"\\gt(?![a-z])", ">"),
    (r"\\div(?![a-z])", "/"), (r"\\lbrace", r"\\{"), (r"\\rbrace", r"\\}"), (r"\\langle", "("), (r"\\rangle", ")"),
    (r"\\[lr]?vert(?![a-z])", "|"), (r"\\varnothing|\\\{ ?\\\}", r"\\emptyset"),
    (r"\^ ?\{? ?\\circ ?\}?|\\degree(?![a-z])", "°"), (r"\\%", "%"),
    (rf"(?<![\\a-zA-Z])(pi|infinity|inf|{_FUNCTION})(?![a-zA-Z])", r"\\\1"), (r"\+? ?\\inf(?:ini?ty)?(?![a-z])", r"\\infty"),
    (r"(\\sqrt|\^) ?\(([^()]*)\)", r"\1{\2}"), (r"\\overline ?\{([A-Z]+)\}", r"\1"),
    (r"^\\\{ ?[a-z](?: ?∈[^:|]*)? ?(?:\\mid|\||:)(.*)\\\}$", r"\1"),
    (r"(?i)(?<![\\a-z])all real(?: number)?s|\\mathbb ?\{?R\}?", r"(-\\infty;\\infty)"),
    (r"\(-\\infty;\\infty\) ?(?:\\setminus|\\backslash|-) ?\\\{([^,;{}]*)\\\}", r"(-\\infty;\1)\\cup (\1;\\infty)"),
    (r"^[A-Za-z ]*\b(?:is|are|equals)(?![a-z]):? ?(?=\S)|^ ?(?:\\approx|about|approximately) ?", ""),
    (r"(?<=[\d}]) ?\(([a-zA-Z. ]+)\) ?$", r" \1"), (r"(?<![a-zA-Z\\])[a-zA-Z]\([a-z]\) ?=", "y="),
    (r",? ?(?<![\\a-zA-Z])(?:and|or)(?![a-zA-Z]) ?|, |;", ";"), (r"(?<![\w.])\.(?=\d)", "0."),
    (r"(?<![\d,./])\d{1,3}(?: \d{3})+(?![\d/]| ?\\frac)", lambda m: m[0].replace(" ", "")),
    (r"\\sqrt ?(\[[^]]*\])? ?(\d+|[a-zA-Z]|\\[a-z]+)", r"\\sqrt\1{\2}"), (r"\\(frac|binom) ?([\da-zA-Z]|\\[a-z]+)", r"\\\1{\2}"),
    (rf"(\\(?:frac|binom) ?{_GROUP}) ?([\da-zA-Z]|\\[a-z]+)", r"\1{\2}"), (r"_ ?(\d+|[a-zA-Z])", r"_{\1}"), (r"(?<=\d)_\{10\}$", ""),
    (rf"\^ ?([-+]?\d+(?:\.\d+)?|[a-zA-Z]|\\[a-z]+(?:{_GROUP})*)", r"^{\1}"), (r"(?<![\w})\]°%]) +| +(?!\w)|(?<=\}) +(?=\{)", ""))]
_D = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?"
_FRACTION = re.compile(rf"([+-]?)(?:(\d+) ?(?=\\| \d))? ?(?:\\frac\{{(-?{_D})\}}\{{(-?{_D})\}}|({_D})/({_D}))")
_DECIMAL = re.compile(rf"([+-]?)({_D})(?:\\overline\{{(\d+)\}})?(?:[eE]([+-]?\d+)|(?:\\times|\\cdot|\*) ?10\^\{{([+-]?\d+)\}})?")
_BASE = re.compile(r"\(?([\dA-Za-z.,]*\d[\dA-Za-z.,]*)\)? ?(?:_\{\(?(?:base)? ?(\w+) ?\)?\}|\(?base ?(\w+)\)?)")
_UNIT = re.compile(r"(.*\d.*?|.*\\.*?)(\s*[°%] ?[CF]?|(?<![\\A-Za-z])\s*[A-Za-z][A-Za-z./ ]*)(?:\^\{[23]\})?")
_NAME = re.compile(  # may stand left of "=" without being part of the answer: x, f(2), P(X=1), a_{37}, (p,q), |AB|, S:T, Area
    rf"(?!.*\\(?:{_FUNCTION}|infty|pi)(?![a-z]))(?=.*[a-zA-Z])(?:[A-Za-z\\{{}}()|:/,;'° ]|_\{{[\w ]+\}}|(?<=[A-Zf-h])\([^()]*\))+")
_SIGNS = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "≠": "≠", "=": "=", "∈": "∈"}  # and what they become when the sides change places
_HOSTILE = re.compile(r"\d{5,}\W*!|!\W*!|\^\W*\d{5}|\d\W*\^[^-+*]*\d\W*\^|\^[^-+*]*\^[^-+*]*\^|binom\W*\d{5}")  # towers, 10!!!, 7^{10^8}

def _normal(s: str) -> str:
    """The one spelling of an answer that the functions below read."""
    s = s.translate(_UNICODE).strip().rstrip("\\").strip()
    s = s if "\\begin" in s else re.sub(r"\\\\(?=[a-zA-Z])", r"\\", s)  # escaped once too often; in a matrix \\ ends a row
    for i, (pattern, new) in enumerate(_REWRITES):
        s = pattern.sub(new, unicodedata.normalize("NFKC", s) if i == 3 else s)
    return s.strip(" .,:;")

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

def _parts(s: str) -> tuple[str, list[str]]:
    """("", items) of a bare list, ("[)", items), ("{}", items), ("cup", sets), ("matrix2", cells), or ("leaf", [s])."""
    if m := re.fullmatch(r"[([]?\\begin\{(?:([vV])|[pbB]|small)?(?:matrix|array)\}(?:\{[clr| ]*\})?(.*)\\end\{[a-zA-Z]*\}[])]?", s):
        rows = re.sub(r"\\\\ ?$|\\hline", "", m[2].strip()).split("\\\\")
        return f"{m[1] or 'matrix'}{len(rows)}", [cell.strip() for row in rows for cell in row.split("&")]
    for kind, separator in (("cup", r"\\cup(?![a-z])"), ("", "[,;]")):
        if len(items := _split(s, separator)) > 1:
            return kind, items
    m = re.fullmatch(r"(\\?[([{])(.*?)(\\?[])}])", s)
    items = _split(m[2], "[,;]") if m else []
    if len(items) == 1 and m[1] + m[3] in ("()", "{}"):
        return _parts(items[0])
    return ((m[1] + m[3]).replace("\\", ""), items) if items else ("leaf", [s])

def _number(s: str) -> Fraction | None:
    r"""1,000.5, 3\frac{1}{2}, 1 1/2, -2/3, 1.5e-7, 0.\overline{3} as an exact number; None for anything else."""
    if m := _FRACTION.fullmatch(s):
        over, under = (Fraction(x.replace(",", "")) for x in (m[3] or m[5], m[4] or m[6]))
        if under == 0 or m[2] and not 0 < over < under:
            return None
        value = int(m[2] or 0) + over / under
    elif (m := _DECIMAL.fullmatch(s)) and len(m[4] or m[5] or "") < 4:
        value = Fraction(m[2].replace(",", "")) * Fraction(10) ** int(m[4] or m[5] or 0)
        value += Fraction(int(m[3] or 0), (10 ** len(m[3] or "1") - 1) * 10 ** len(m[2].partition(".")[2]))
    else:
        return None
    return -value if m[1] == "-" else value

def _equal_numbers(a: str, b: str, x: Fraction, y: Fraction) -> bool:
    """x == y, the numbers of a and b, or one is written as a decimal that shows the period of the other twice."""
    for text, shown, q in ((a, x, y), (b, y, x)):
        n = len(text.partition(".")[2])
        if 6 <= n < 50 and abs(shown - q) * 10**n < 1:
            if any((10**p - 1) * 10 ** (n - 2 * p) * q % 1 == 0 for p in range(1, n // 2 + 1)):
                return True
    return x == y

def _base(s: str) -> tuple[str, str] | None:
    """("2A", "11") of 2A_{11} or "2A (base eleven)"; None without a base."""
    if m := _BASE.fullmatch(s):
        base = (m[2] or m[3]).lower()
        return m[1].replace(",", "").lstrip("0").upper(), str(_NUMERALS.index(base)) if base in _NUMERALS else base

def _unit(s: str) -> tuple[str, set[str]]:
    """The answer without its unit, and what is known of the unit: nothing of a word like "ways"."""
    if (m := _UNIT.fullmatch(s)) and not re.search(rf"\\{_TRIG}", s) and m[1].strip():
        words = [word.rstrip("s") if len(word) > 2 else word for word in re.findall(r"[a-z]+|[°%]", m[2].lower().replace(".", ""))]
        known, spaced = words[0] in _UNITS, m[2][0] == " "
        if known and (spaced or words[0] in "°%" or len(words[0]) > 1) or spaced and len(words[0]) > 1 and max(map(len, words)) > 2:
            return m[1].strip(), {_UNITS[word] for word in words if word in _UNITS}
    return s, set()

def _chain(s: str) -> tuple[list[str], list[str]]:
    """Sides and signs of a relation, inequalities turned to "<": (["2", "x"], ["<"]) of x > 2."""
    sides = _split(s, "[<>≤≥≠=∈]")
    signs = re.findall("[<>≤≥≠=∈]", s) if len(sides) > 1 else []
    return (sides[::-1], [_SIGNS[sign] for sign in signs[::-1]]) if signs and signs[0] in ">≥" else (sides, signs)

def _as_set(s: str) -> str:
    r"""(-\infty;2] of x ≤ 2, (1;5) of 1 < x < 5, a union of "x < 2 or x > 3"; s itself where it is no such thing."""
    if len(items := _split(s, "[,;]")) > 1:
        sets = [_as_set(item) for item in items]
        return s if any(map(str.__eq__, sets, items)) else r"\cup ".join(sets)
    sides, signs = _chain(s)
    if len(sides) == 2 and _NAME.fullmatch(sides[0]):
        sides, signs = [r"-\infty", *sides], ["<", *signs]
    elif len(sides) == 2:
        sides, signs = [*sides, r"\infty"], [*signs, "<"]
    if len(sides) != 3 or not _NAME.fullmatch(sides[1]) or not set(signs) <= set("<≤≠"):
        return s
    text = f"{'(['[signs[0] == '≤']}{sides[0]};{sides[2]}{')]'[signs[1] == '≤']}"
    return rf"{text}\cup ({sides[2]};\infty)" if "≠" in signs else text

def _plus_minus(s: str) -> str:
    r"""A list with the first \pm of every item written out: 1+\sqrt{2};1-\sqrt{2} of 1\pm\sqrt{2}."""
    kind, items = _parts(s)
    items = items if kind in ("", "{}") else [s]
    return ";".join(item.replace(r"\pm", sign, 1) for item in items for sign in ("+-" if r"\pm" in item else "+"))

def _equal_bags(xs: list[str], ys: list[str], ask) -> bool:
    """Whether two lists hold the same answers in any order."""
    left = list(ys)
    for x in xs:
        match = x if x in left else next((y for y in left[:20] if _equal(x, y, ask)), None)
        if match is None:
            return False
        left.remove(match)
    return not left

def _equal(a: str, b: str, ask) -> bool:
    """Whether two normal forms mean the same; ask(mode, a, b) does the algebra."""
    if a == b or not a or not b:
        return a == b != ""
    for x, y in ((a, b), (b, a)):
        m = re.fullmatch(r"(\()?([A-J])(?:\)|[.:]) ?(.+)", x)
        if m and (m[2] == y or m[1] and not y.startswith("(") and _equal(m[3], y, ask)):
            return True  # "(A) 12" is A, and 12
    if 0 < max(a.count(r"\pm"), b.count(r"\pm")) < 5:
        return _equal(_plus_minus(a), _plus_minus(b), ask)
    if _base(a) or _base(b):
        return _base(a) == _base(b)
    a, b = (sides[-1 if _NAME.fullmatch(sides[0]) else 0] for sides in (_split(s, r"\\approx(?![a-z])") or [s] for s in (a, b)))
    (a, unit_a), (b, unit_b) = _unit(a), _unit(b)
    if unit_a and unit_b and not unit_a & unit_b:
        return False
    x, y = _number(a), _number(b)
    if x is not None and y is not None:
        share = unit_a ^ unit_b == {"%"} and (x / 100 == y <= 1 if unit_a else y / 100 == x <= 1)
        if share or _equal_numbers(a, b, x, y) or "," not in a + b:
            return share or _equal_numbers(a, b, x, y)
    elif x is not None or y is not None:  # so its commas are thousands, unless the other one is a list: 100,200 and 100, 200
        a, b = (s.replace(",", "") if q is not None and (",0" in s or len(_split(other, "[,;]")) == 1) else s
                for s, q, other in ((a, x, b), (b, y, a)))
    verdict = _equal_relations(a, b, ask)
    return _equal_parts(a, b, ask) if verdict is None else verdict

def _equal_relations(a: str, b: str, ask) -> bool | None:
    """The verdict where a or b is an equation, inequality or membership; None where neither is, or where one is a list."""
    (xs, signs), (ys, others) = _chain(a), _chain(b)
    sets = [
        sides[-1] if len(sides) == 2 and sign[0] in "=∈" and _NAME.fullmatch(sides[0]) else _as_set(s)
        for s, sides, sign in ((a, xs, signs), (b, ys, others))
    ]
    if any(len(_split(s, "[,;]")) > 1 and (len(sides) != 2 or _number(sides[1]) is None) for s, sides in ((a, xs), (b, ys))):
        return _equal(*sets, ask) if (sets[0] == a) != (sets[1] == b) else None
    if signs == others and signs:
        mode = "factor" if signs[0] in "<≤" else "ratio"
        return (len(xs) == len(ys) and all(_equal(x, y, ask) for x, y in zip(xs, ys, strict=True))) or (
            len(xs) == len(ys) == 2 and signs != ["∈"] and ask(mode, "({})-({})".format(*xs), "({})-({})".format(*ys)))
    if "=" in signs + others:
        sides, other = (xs, b) if signs else (ys, a)
        if (signs and others) or _NAME.fullmatch(sides[0]):
            return not (signs and others) and _equal(sides[-1], other, ask)
        numbers = all(_number(_unit(side)[0]) is not None for side in sides)  # 0.56 = 56%
        return bool(numbers or _NAME.fullmatch(sides[-1])) and _equal(sides[0], other, ask)
    return (sets != [a, b] and _equal(*sets, ask)) if signs or others else None

def _equal_parts(a: str, b: str, ask) -> bool:
    """Lists, sets, tuples, intervals, unions and matrices by their elements; words; the rest by algebra."""
    (kind, xs), (other, ys) = _parts(a), _parts(b)
    if len(xs) == len(ys) == 1 and {kind, other} <= {"leaf", "{}"} and (xs, ys) != ([a], [b]):
        return _equal(xs[0], ys[0], ask)
    if {kind, other} <= {"", "{}"} or kind == other == "cup":
        return _equal_bags(xs, ys, ask)
    alike = kind == other or {kind, other} in ({"", "()"}, {"()", f"matrix{len(xs)}"})  # a tuple without brackets, or as a column
    if alike and kind != "leaf":
        return len(xs) == len(ys) and all(_equal(x, y, ask) for x, y in zip(xs, ys, strict=True))
    if not alike:
        return "leaf" in (kind, other) and "matrix" in kind + other and ask("value", a, b)
    a, b = (str(_NUMERALS.index(s.lower())) if s.lower() in _NUMERALS else s for s in (a, b))
    words = [re.sub(r"^(?:an?|the) |[^a-z]", "", s.lower()) if re.fullmatch(r"[A-Za-z][A-Za-z' .-]*", s) else "" for s in (a, b)]
    if len(a) == len(b) == 1:
        return a == b or a.upper() == b.upper() and a.upper() in "ABCD"  # the choices, in either case
    if all(words) and (words[0] == words[1] or max(map(len, words)) > 2):
        return words[0] == words[1]  # so abc is a word, xy a product
    if ":" in a + b:  # ratios and times
        xs, ys = a.split(":"), b.split(":")
        return len(xs) == len(ys) and all(_equal(x.strip(), y.strip(), ask) for x, y in zip(xs, ys, strict=True))
    return ask("value", a, b)

@functools.lru_cache(maxsize=1 << 16)
def _is_equiv(a: str, b: str) -> bool:
    try:
        return bool(_equal(_normal(a), _normal(b), functools.partial(_ask, [ALGEBRA_SECONDS])))
    except (RecursionError, TimeoutError, BrokenPipeError):
        return False

def is_equiv(pred: str, gold: str) -> bool:
    r"""Whether two bare answers mean the same. Symmetric; returns within two seconds and raises for no input.

    >>> is_equiv(r"\dfrac12", "0.5"), is_equiv("(1, 2)", "(2,1)"), is_equiv("x = 5", "5"), is_equiv("101_2", "101_3")
    (True, False, True, False)
    """
    if not (isinstance(pred, str) and isinstance(gold, str)):
        return False
    a, b = sorted((pred.strip(), gold.strip()))
    return _is_equiv(a, b) if a != b and max(len(a), len(b)) <= MAX_ANSWER_CHARS else a == b != ""

def score(text: str, gold: str) -> bool | None:
    """Whether the answer in a reply is the gold one; None where the reply holds no answer."""
    answer, boxes = extract_answer(text), read_boxes(text)
    if answer is None or is_equiv(answer, gold):
        return None if answer is None else True
    n = next((n for n in range(1, len(boxes)) if not _BETWEEN.fullmatch(text, boxes[-n - 1][1], boxes[-n][0])), len(boxes))
    return n > 1 and is_equiv("; ".join(content for _, _, content in boxes[-n:]), gold)

_BOX = re.compile(r"\\{1,2}(?:boxed|fbox)\s*(\{|-?\d[\d.,/]*|[A-Z](?![A-Za-z]))|\\.|[{}]", re.DOTALL)
_BETWEEN = re.compile(r"(?:[\s$,;\\()\[\]]|and|or|\\q?quad|\\text\{ ?(?:and|or) ?\})*")  # "\boxed{1} and \boxed{2}" are one answer
_MARK = re.compile(
    r"\banswers?[*_\s]{0,9}(?:(?:is|are|should be|must be|would be|[:=])[*_:\s]{0,9}|(?=\$|\\[(\[])|(?<=\n)|(?<=\*\*))"
    r"|^\#{4}\s{0,9}(?=\S*[\d\\$]\S*\s*$|[A-Z]\s*$)", re.IGNORECASE | re.MULTILINE)
_MATH = r"\$\$?([^$]*)\$\$?|\\\((.*?)\\\)|\\\[(.*?)\\\]"
_STOP = re.compile(_MATH + r"|(\.(?=[\s*\"<]|$)|\n|<\||,?\s(?:since|because|which|where|so)\b)", re.DOTALL)

def read_boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of every balanced, non-empty box, in order of their ends."""
    boxes, opened = [], []
    for m in _BOX.finditer(text if isinstance(text, str) else ""):
        if m[1] == "{" or m[0] == "{":
            opened.append(m if m[1] else None)  # a box, or any other brace
        elif m[1]:
            boxes.append((m.start(), m.end(), m[1].rstrip(".,/")))
        elif m[0] == "}" and opened and (box := opened.pop()) and text[box.end() : m.start()].strip(" .…$\n"):
            boxes.append((box.start(), m.end(), text[box.end() : m.start()].strip()))
    return boxes

def extract_answer(text: str) -> str | None:
    r"""The last balanced, non-empty \boxed{...}, else what follows the last "answer is", "Answer:" or "####"; else None.

    >>> extract_answer(r"So \boxed{\frac{1}{2}}, as asked in \boxed{} form."), extract_answer("The answer is $3.5$. Done")
    ('\\frac{1}{2}', '3.5')
    """
    if boxes := read_boxes(text):
        return boxes[-1][2]
    answer = ""
    for m in list(_MARK.finditer(text if isinstance(text, str) else ""))[:-20:-1]:
        line = text[m.end() : m.end() + MAX_ANSWER_CHARS].lstrip(" *_:\n")
        line = line[: next((stop.start() for stop in _STOP.finditer(line) if stop[4]), len(line))]
        line = re.sub(r"^.*\b(?:is|are|equals)\b\s*", "", line, flags=re.DOTALL).strip(" *_\"")
        math = re.fullmatch(_MATH, line, re.DOTALL)
        if answer := next(filter(None, math.groups()), "").strip(" .") if math else line:
            break
    return answer or None

_workers = {}  # process id: lock and worker; a forked child finds neither, and starts its own

def _ask(seconds_left: list[float], mode: str, a: str, b: str) -> bool:
    """The worker's verdict on two LaTeX expressions. When seconds_left[0] run out it is killed, and TimeoutError raised."""
    if any(len(s) > MAX_ANSWER_CHARS // 2 or _HOSTILE.search(s) for s in (a, b)):
        return False
    own = _workers.setdefault(os.getpid(), {"lock": threading.Lock(), "process": None})
    with own["lock"]:
        if own["process"] is None or own["process"].poll() is not None:  # unbuffered, so that a fork flushes nothing twice
            command = [sys.executable, os.path.abspath(__file__), "--grade-worker"]
            worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
            if worker.stdout.readline() != b"ready\n":
                raise UserError("scoring: math-verify was expected, its process did not start; pip install math-verify")
            own["process"] = worker
        worker, reply, start = own["process"], b"", time.monotonic()
        timer = threading.Timer(seconds_left[0], worker.kill)
        timer.daemon = True
        timer.start()
        try:
            worker.stdin.write(json.dumps([mode, a, b]).encode() + b"\n")
            reply = worker.stdout.readline()
        finally:
            timer.cancel()
            seconds_left[0] -= time.monotonic() - start
            if not reply or seconds_left[0] < 0.02:  # hung, killed or interrupted: a late reply must not meet the next question
                worker.kill()
                worker.wait()
    if not reply:
        raise TimeoutError
    return json.loads(reply)

def _grade_worker() -> None:
    """Answers JSON lines [mode, a, b] with true or false until stdin ends, that is until the parent is gone."""
    import faulthandler

    answers, sys.stdout = sys.stdout, sys.stderr
    _same_algebra("value", "x^{2}", r"\sqrt{x}")  # imports
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        faulthandler.dump_traceback_later(10 * ALGEBRA_SECONDS, exit=True)  # in case the parent died while this hangs
        try:
            verdict = _same_algebra(*json.loads(line))
        except Exception:  # the parser and sympy raise what they like: what cannot be read is not equal
            verdict = False
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(bool(verdict)), file=answers, flush=True)

def _same_algebra(mode: str, *latex: str) -> bool:
    """Equal "value", or constant "ratio" or positive "factor", at random rational points where both are real (if any are)."""
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy  # the parser of math-verify, which ...

    def read(s: str):
        s = re.sub(r"(\d+(?:\.\d+)?)°", r"(\1\\pi/180)", s) if re.search(rf"\\{_TRIG}", s) else s
        s = re.sub(r"(?<![\d.}])(\d+) ?(\\frac\{\d+\}\{\d+\})", r"(\1+\2)", s)  # a mixed number is a sum
        s = re.sub(r"(?<=\d),(?=\d{3})|[%°]", "", s).replace("*", r"\cdot ")
        s = re.sub(r"(\d+)\.(\d*)", lambda m: rf"\frac{{{m[1]}{m[2]}}}{{1{'0' * len(m[2])}}}", s)
        config = ConversionConfig(lowercase_symbols=False, interpret_as_mixed_fractions=False)  # ... does not offer these two
        x = latex2sympy(s, normalization_config=None, conversion_config=config).doit()
        x = x.replace(lambda f: isinstance(f, sympy.core.function.AppliedUndef), lambda f: sympy.Symbol(str(f)))
        return x.subs(sympy.Symbol("i"), sympy.I)

    def vanishes(x) -> bool:  # evalf tries 150 digits; a sum that is 0 then has not one correct digit
        value = x.evalf(20, maxn=150)
        return value == 0 or value.is_number and all(part == 0 or part._prec == 1 for part in value.as_real_imag())

    x, y = map(read, latex)
    if isinstance(x, sympy.MatrixBase) and isinstance(y, sympy.MatrixBase):
        return x.shape == y.shape and all(vanishes(p - q) for p, q in zip(x.flat(), y.flat(), strict=True))
    if x == y:
        return mode == "value" or not x.is_number
    rng, names = random.Random(0), sorted(x.free_symbols | y.free_symbols, key=str)
    signs = [(1,), (1, -1)] * (4 if names else 1)  # every other point has negative coordinates too
    points = [{n: sympy.Rational(rng.randint(1, 999) * rng.choice(sign), 97) for n in names} for sign in signs]
    values = [(x.subs(point), y.subs(point)) for point in points]
    values = [(p, q) for p, q in values if p.evalf(15).is_real and q.evalf(15).is_real] or values
    if mode == "value":
        return all(vanishes(p - q) for p, q in values)
    p0, q0 = values[0]
    if vanishes(p0) or vanishes(q0) or not all(vanishes(p * q0 - p0 * q) for p, q in values):
        return False
    return mode == "ratio" or all((p * q).evalf(15) > 0 for p, q in values)


# --- Data: every set as rows of id, problem, solution, answer, subject, level, skills. --------------------
MATH_CONFIGS = ("algebra counting_and_probability geometry intermediate_algebra number_theory prealgebra "
                "precalculus").split()
PERTURB = "https://raw.githubusercontent.com/Kaffaljidhmah2/MATH-Perturb/main/math_perturb/math_perturb_"
HUB = {  # name: [(address, configs, its split for tests, revision if we know one), ...], tried in this order
    "math": [
        ("EleutherAI/hendrycks_math", MATH_CONFIGS, "test", "21a5633873b6a120296cce3e2df9d5550074f4a3"),
        ("DigitalLearningGmbH/MATH-lighteval", ["default"], "test", None)],
    "gsm8k": [("openai/gsm8k", ["main"], "test", "740312add88f781978c0658806c59bc2815b9866")],
    "svamp": [("ChilleD/SVAMP", [None], "test", "5e0bf1e5e7c0e9c4bc39180d224f41f3f801b7ef")],
    "math500": [
        ("HuggingFaceH4/MATH-500", [None], "test", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"),
        ("nlile/hendrycks-MATH-benchmark", [None], "test", None)],  # its train holds 4,500 of MATH's tests
    "math_squared": [("veds12/math-squared", [None], "train", None)],  # MATH^2
    "amc23": [("math-ai/amc23", [None], "test", None), ("zwhe99/amc23", [None], "test", None)],
    "aime24": [
        ("HuggingFaceH4/aime_2024", [None], "train", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a"),
        ("math-ai/aime24", [None], "test", None)],
    "aime25": [
        ("math-ai/aime25", [None], "test", "563bb8404243c5f09de6ec262f2db674fe5bce9b"),
        ("yentinglin/aime_2025", [None], "train", None)],
    "math_perturb_simple": [(PERTURB + "simple.jsonl", [None], "train", None)],
    "math_perturb_hard": [(PERTURB + "hard.jsonl", [None], "train", None)],
}


def load(name_or_path: str, split: str = "test", root: str | None = None) -> list[dict]:
    """Rows of a set in HUB, of a file (split is then ignored), or of a folder's file for the split.

    root: a folder of local copies instead of the Hub: root/math/test.jsonl, root/math_perturb/hard.jsonl.
    Ids are unique. Solution, subject, level (int) and skills may be None, the answer "" (MATH's empty boxes).
    """
    if root is None and name_or_path in HUB:
        if split != "test" and (split != "train" or name_or_path not in ("math", "gsm8k", "svamp")):
            raise UserError(f"{name_or_path}: no split {split!r}; use test (math, gsm8k, svamp: or train)")
        stem, found = f"{name_or_path}-{split}", _by_datasets(HUB[name_or_path], split)
    else:
        path = Path(name_or_path)
        if root is not None:
            path = Path(root, name_or_path.replace("math_perturb_", "math_perturb/"))
        start = path / split if path.is_dir() else path
        endings = ("", ".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".csv.gz")
        there = [file for file in (Path(f"{start}{ending}") for ending in endings) if file.is_file()]
        if not there:
            raise UserError(f"{start}.jsonl: no such file; pass a .jsonl, .json, .csv or .parquet file, "
                            f"a folder with a {split}.jsonl, or one of {', '.join(HUB)}")
        stem, found = there[0].name.split(".")[0], read_rows(there[0])
    rows, n_same = {}, Counter()
    for where, raw in found:
        row = _row(raw, where)
        if row["id"] is None:  # from the text, because a position names another question in a reordered file
            digest = hashlib.sha256(row["problem"].encode(errors="replace")).hexdigest()[:12]
            n_same[digest] += 1
            row["id"] = f"{stem}/{digest}" + (f"-{n_same[digest]}" if n_same[digest] > 1 else "")
        if row["id"] in rows:
            raise UserError(f"{where}: field 'id': {row['id']!r} stands above too; make the ids unique")
        rows[row["id"]] = row
    if not rows:
        raise UserError(f"{name_or_path}: expected at least one question, found none; check the file")
    return list(rows.values())


def read_rows(path: Path) -> list[tuple[str, dict]]:
    """(where it stands, object) of each row of a file."""
    if path.suffix in (".csv", ".parquet", ".gz"):
        return _by_datasets([(str(path), [None], "train", None)], "test")
    return read_jsonl(path)


def _by_datasets(candidates: list[tuple], split: str) -> list[tuple[str, dict]]:
    """The same of the first candidate that can be read: a set on the Hub, or a file here or at an address."""
    import datasets  # slow, and not needed for JSON

    for address, configs, test, revision in candidates:
        kinds = re.findall(r"\.(csv|parquet|json)", address)  # x.csv.gz; none on the Hub
        kind, files = (kinds[-1], address) if kinds else (address, None)
        try:
            parts = [datasets.load_dataset(kind, config, split=test if split == "test" else split,
                                           data_files=files, revision=revision) for config in configs]
        except Exception as error:  # gone, gated, no network, another format: the next one may do
            sentence = f"{address} failed: {type(error).__name__}: {error.__cause__ or error}"
            print(sentence[:300], file=sys.stderr)
            continue
        pinned = f", revision {revision}" if revision else ""
        print(f"{sum(map(len, parts)):,} rows from {address}{pinned}")
        return [(f"{address} row {n}", row) for n, row in enumerate(itertools.chain(*parts), 1)]
    tried = ", ".join(address for address, *_ in candidates)
    raise UserError(f"{tried}: not to be read, for the reason above; mend it, or pass a local path")


def read_jsonl(path: Path) -> list[tuple[str, dict]]:
    """The same of JSON lines or of a JSON list, whatever the file's ending."""
    rows, n = [], 0
    try:
        text = path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # not decoded, because U+2028 would cut a line
        is_list = text.lstrip().startswith(b"[")
        for n, item in enumerate(json.loads(text) if is_list else text.splitlines(), 1):
            if is_list or item.strip():
                row = item if is_list else json.loads(item)
                if not isinstance(row, dict):
                    raise ValueError(f"it is {row!r:.40}")
                rows.append((f"{path} {'row' if is_list else 'line'} {n}", row))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} line {n}: expected a JSON object, but: {error}; repair it") from None
    return rows


def read_json(path: str | Path):
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected a JSON file, but: {error}; repair it or check the path") from None


def _row(raw: dict, where: str) -> dict:
    """A question of any source, by the names that sets give their fields; NaN and infinity are missing."""
    known = {}
    for name, value in raw.items():
        if isinstance(value, float) and value.is_integer():  # pandas: level 5.0
            value = int(value)
        if value is not None and (type(value) is not float or math.isfinite(value)):
            known[name.casefold()] = value

    def field(*names, types=(str,), like=r"(?s).*", expected="text", need=False):
        value = next((known[name] for name in names if name in known), None)
        good = type(value) in types and re.fullmatch(like, str(value))
        if not good and (need or value is not None):
            name = " or ".join(names)
            raise UserError(f"{where}: field {name!r}: expected {expected}, came {value!r:.60}; correct it")
        return value

    hidden = [name for name in ("options", "choices", "option_a", "a", "image") if known.get(name)]
    if hidden:
        raise UserError(f"{where}: field {hidden[0]!r}: no student would see it; put it into the problem")
    problem, solution = field("problem", "question", like=r"(?s).*\S.*", need=True), field("solution")
    about = field("body", "context", "passage")  # SVAMP's question says too little without its body
    if solution and "answer" not in known:  # MATH on the Hub
        empty = solution[solution.rfind("\\boxed") :].startswith("\\boxed{}")  # two rows of train
        known["answer"] = "" if empty else extract_answer(solution)
    answer = field("answer", types=(str, int, float), expected="text, a number or a \\boxed{}", need=True)
    answer = str(answer).strip()
    if "\n#### " in answer:  # GSM8K: the solution with <<calculator marks>>, then the answer
        solution, answer = answer.rsplit("\n#### ", 1)
        answer = answer.strip().replace(",", "")
        solution = re.sub(r"<<[^<>]*>>", "", solution) + f"\nThe answer is $\\boxed{{{answer}}}$."
    level = field("level", types=(str, int), like=r"(Level )?(\d+|\?)", expected="a number or 'Level 3'")
    digits = re.search(r"\d+", str(level))  # two MATH rows have "Level ?"
    row_id = field("id", "problem_id", "unique_id", types=(str, int), expected="text or a whole number")
    skills = field("skills", types=(list,), expected="a list of names")
    if not all(isinstance(name, str) for name in skills or []):
        raise UserError(f"{where}: field 'skills': expected names, came {skills!r:.60}; correct it")
    return {
        "id": None if row_id is None else str(row_id), "problem": f"{about} {problem}" if about else problem,
        "solution": solution, "answer": answer, "subject": field("subject", "type"),
        "level": int(digits[0]) if digits else None, "skills": skills}


SIGNS = str.maketrans({pair[0]: f"\\{pair[2:]} " for pair in (
    "×=times *=cdot ·=cdot ⋅=cdot ÷=div ≤=le ≥=ge ≠=ne √=sqrt ∞=infty ±=pm °=^circ ∠=angle △=triangle "
    "∪=cup ∩=cap ∈=in →=to −=- –=- ⁄=/ α=alpha β=beta γ=gamma θ=theta λ=lambda π=pi σ=sigma φ=phi").split()})
_TEXT = (r"\\(text|mbox|math|operatorname)[a-z]*\s*\{([^{}]*)\}", r" \2 ")
_ONE = r"(\d|[a-z]|\{([\d,]+|[a-z])\})"
SPELLINGS = [  # (a spelling of the same mathematics, the one that stands for it), in small letters
    (r"\\\\|\\[()\[\]]", "$"),  # \(x\), \[x\]: $x$
    (r"\\(left|right|big+[lrm]?|q?quad|displaystyle|[lc]?dots[bc]?)(?![a-z])\.?", " "),  # \left(x\right): (x)
    _TEXT, _TEXT,  # \text{ cm}: cm; twice, for \mathop{\text{lcm}}
    (r"<=|\\leq?(?![a-z])", " le "),  # \leq, \le
    (r">=|\\geq?(?![a-z])", " ge "),
    (r"\\neq?(?![a-z])", " ne "),
    (r"\\lt(?![a-z])", "<"),
    (r"\\gt(?![a-z])", ">"),
    (r"\\([lr]?vert|mid)(?![a-z])", "|"),
    (r"\{,\}|,\\!|(?<=\d)\\,(?=\d{3})", ","),  # 1{,}000, 1\,000: 1,000
    (r"(?<![.\d])\d{4,99}(?!\d)", lambda number: f"{int(number[0]):,}"),  # 1000: 1,000
    (r"(?<![\w.])\.(?=\d)", "0."),  # .5: 0.5
    (r"_(\d)(?=\d)", r"_\1 "),  # \log_28: \log_2 8
    (rf"\\[dtc]?frac\s*{_ONE}\s*{_ONE}", r" \1/\3 "),  # \frac12: 1/2
    (r"\\[dtc]frac", r"\\frac"),
    (r"(?<!\\)\{\s*(\d[\d.,]*|[a-z]|\\[a-z]+)\s*\}", r" \1 "),  # x^{2}: x^2
]
WORD = re.compile(  # a number, a word, a sign, the ! of 5! or n!, the ' of f'(x)
    r"\d+(?:\.\d+)?|[^\W\d_]+|[-+/^_<>=|()\[\]{}%]|(?<=[\d)])!(?!\s*$)|(?<=\b[a-z])!|'(?=\()")


def words(text: str) -> list[str]:
    """A question's words, numbers and signs in one spelling, without $, stops, backslashes and spacing."""
    text = re.sub("[⁰¹²³⁴-⁹]+", r"^\g<0> ", text)  # x²: x^2
    text = re.sub("[¼-¾⅐-⅞]", r" \g<0> ", text)  # 3½: 3 1/2
    text = unicodedata.normalize("NFKC", text).casefold().translate(SIGNS)
    for spelling, one in SPELLINGS:
        text = re.sub(spelling, one, text)
    return WORD.findall(text)


def plain(text: str) -> str:
    """A question in one spelling; 1.5 is not 15, x+1 not x-1, |2-3| not 2-3, 2 3 not 23."""
    return "".join(f",{word}," if word[0].isdigit() else word for word in words(text))


def without(rows: list[dict], others: list[dict]) -> list[dict]:
    """The rows whose problem is not, in plain form, one of `others`."""
    texts = {plain(row["problem"]) for row in others}
    return [row for row in rows if plain(row["problem"]) not in texts]


def fingerprint(parts: dict[str, list[dict]]) -> dict[str, str]:
    """A short hash of the questions of each part of a run, in their order."""
    return {part: hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] for part, rows in parts.items()}


def check_questions(run: "Run", parts: dict[str, list[dict]]) -> None:
    """Refuse a run that was made with other questions, or with these in another order."""
    name, now, kept = "0_fingerprint.json", fingerprint(parts), {}
    if (run.path / name).exists():
        kept = run.read(name)
    else:  # a new run, or one made before; its ids may have been positions
        ids = {row["id"] for rows in parts.values() for row in rows}
        asked = run.read("0_questions.jsonl") if (run.path / "0_questions.jsonl").exists() else []
        if all(row["id"] in ids for row in asked):
            kept = now
            run.write(name, now)
    changed = [part for part in {**kept, **now} if kept.get(part) != now.get(part)]
    if changed:
        raise UserError(f"{run.path}: its questions ({', '.join(changed)}) are not those that the data gives "
                        "now; give the old data, or choose another --out")


def torch_seed(seed: int, *names: str) -> int:
    """A seed in [0, 2**32) that belongs to this step alone: a skipped step shifts no other."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, *names]).encode()).digest()[:4])


def rng(seed: int, *names: str) -> random.Random:
    return random.Random(torch_seed(seed, *names))


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


# --- Tables for the terminal; richer ones are report.py's. -------------------------------------------------
def compare(outcomes: dict[str, list[float]], reference: str, n_boot: int = 10_000) -> str:
    """A line per arm: right answers, their share, and the paired lead over arm `reference` in points.

    outcomes[arm]: 0 or 1 for each question, or the share of several answers; the same questions for all.
    The lead's 95 % interval is the percentiles of n_boot draws of the questions. Questions with one lead are
    alike, so drawing how often each lead comes is drawing questions, but quick.
    """
    import numpy as np

    n, width = len(outcomes[reference]), max(map(len, outcomes))
    if n == 0:
        return "no questions"
    lines = [f"{'':<{width}}  right of {n}       %  points vs {reference} [95 % interval]"]
    for arm, right in outcomes.items():
        counts = f"{round(float(sum(right)), 1):g}/{n}"
        line = f"{arm:<{width}}  {counts:>{len(f'right of {n}')}}  {100 * sum(right) / n:6.1f}"
        if arm != reference:
            leads = np.array(right, float) - np.array(outcomes[reference], float)  # raises if lengths differ
            values, n_each = np.unique(leads, return_counts=True)
            draw = np.random.default_rng(torch_seed(0, "bootstrap"))
            drawn = 100 * draw.multinomial(n, n_each / n, n_boot) @ values / n
            low, high = np.percentile(drawn, [2.5, 97.5])
            line += f"  {100 * leads.mean():+5.1f} [{low:+.1f}, {high:+.1f}]"
        lines.append(line)
    return "\n".join(lines)


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


if __name__ == "__main__" and sys.argv[1:] == ["--grade-worker"]:
    _grade_worker()
