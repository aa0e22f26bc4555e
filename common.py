"""What the method files share: teacher calls, MATH scoring, data, 4-bit models, run directory, command line.

Copy this file with the method file that you take. Importing it loads no torch, openai or datasets.
"""
import asyncio
import contextlib
import dataclasses
import datetime
import errno
import functools
import gc
import hashlib
import importlib.metadata
import inspect
import io
import itertools
import json
import logging
import marshal
import math
import os
import platform
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
import unicodedata
import urllib.parse
import urllib.request
import warnings
from collections import Counter, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from string import ascii_uppercase
from typing import NamedTuple

from tqdm import tqdm


class UserError(Exception):
    """What the user can mend, in a sentence: where, what was expected, what came, what to do. Exit code 2."""


# --- Teacher: cached, capped calls to any OpenAI-compatible chat server. ---
class Request(NamedTuple):
    messages: list[dict]  # [{"role": ..., "content": ...}, ...]
    temperature: float = 0.0
    max_tokens: int = 1024
    sample: int = 0  # which of several draws; moves the seed that the server gets


class Reply(NamedTuple):
    text: str
    n_in: int  # tokens
    n_out: int
    is_cut: bool = False  # at the length limit


OPENAI = "https://api.openai.com/v1"
LAX = re.DOTALL | re.IGNORECASE
# A thought left in the text: <think>5?</think>, ◁think▷5?◁/think▷, <|START_THINKING|>5?<|END_THINKING|>,
# <|channel|>analysis<|message|>5?<|channel|>final<|message|>; without its marks: analysis5?assistantfinal
THOUGHT = r"(?:\w+:)?(?:think|thinking|thoughts?)>|think[\]▷]"
OPEN = rf"[<\[◁](?:{THOUGHT})|<\|START_THINKING\|>|<\|channel\|?>(?:analysis|commentary|thought)"
END = rf"[<\[◁]/(?:{THOUGHT})|<\|END_THINKING\|>|<channel\|>|<\|channel\|>final<\|message\|>|assistantfinal"
END_OF_TURN = r"<[|｜][^<>|｜]*(?:end|eot|eom|return)[^<>|｜]*[|｜]>|<end_of_turn>|<eos>|</s>"  # 4<|im_end|>
PROMPTS_FAULT = "|".join((  # a server's words for a prompt that is too long or offends
    r"context.{0,20}(?:length|size|window|limit)|too (?:long|large|many)|reduce the ",  # too long: 5000
    r"tokens?\b.{0,40}(?:<=|>|exceed|limit|maximum)",  # `inputs` tokens + `max_new_tokens` must be <= 4096
    r"(?:exceed|longer|maximum|limit|at most).{0,60}(?:token|length|prompt|input)",  # exceeds the input limit
    r"content.{0,30}(?:filter|polic|risk|manage|violat|block|inspect|restrict)",  # Content Exists Risk
    r"inspection|moderation|inappropriate|flagged|unsafe|safety|harmful|prohibited|high risk",
    r"(?<!case.)sensitive|illegal content|invalid_prompt|usage (?:polic|guideline)|敏感|不安全|违规",
))


def estimate_tokens(messages: list[dict] | str) -> int:
    """Tokens guessed without a tokenizer: a third of the JSON's bytes."""
    return len(json.dumps(messages, ensure_ascii=False).encode(errors="replace")) // 3 + 1


def hide_secrets(text: str) -> str:
    """The text without OPENAI_API_KEY, and without password and query of the addresses in it.

    >>> hide_secrets("at http://user:password@host:8000/v1?api_key=secret now")
    'at http://host:8000/v1 now'
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if len(key) >= 12:  # "EMPTY" is no secret, and part of other words
        text = text.replace(key, "<key>")
    return re.sub(r"""://(?:[^\s"']*@)?([^\s"'?]*)(?:\?[^\s"'\\]*)?""", r"://\1", text)


def read_completion(body: bytes) -> dict:
    """What the cache keeps of a chat completion. ValueError if `body` is none."""
    try:
        data = json.loads(body)
        choice, usage = data["choices"][0], data.get("usage") or {}
        message, finish = choice["message"], str(choice.get("finish_reason"))
        text, refusal = message.get("content") or "", message.get("refusal")
        if not isinstance(text, str):  # a list of parts; a part that thinks aloud has no text
            text = "".join(part.get("text") or "" for part in text)
        n_in, n_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
    except (ValueError, LookupError, TypeError, AttributeError):
        finish = "error"
    if re.search("error|abort", finish):
        raise ValueError("not a chat completion: " + body[:200].decode(errors="replace"))
    is_refused = refusal or re.search("filter|safety|refus|sensitive|prohibit", finish)
    return {"text": text or str(refusal or ""), "finish": finish, "none": "refused" if is_refused else None,
            "n_in": n_in, "n_out": n_out}


def read_row(row: dict, of_student: bool = False) -> tuple[Reply, str | None]:
    """A reply of the cache without thoughts and end of turn, and why it is of no use.

    of_student: an empty or cut-off reply is an answer like any other.
    """
    text = re.sub(f"(?:{OPEN}).*?(?:{END})", "", row["text"], flags=LAX)
    text = re.sub(f"^.*(?:{END})", "", text, flags=LAX)  # a thought that was opened in the prompt
    is_full = row["n_out"] >= row["max_tokens"] and not row["estimated"]
    is_cut = re.search("length|max|limit", row["finish"] or "", LAX) or re.search(OPEN, text, LAX)
    text = re.split(END_OF_TURN, text, maxsplit=1, flags=LAX)[0]
    none = "cut off" if is_cut or is_full else None if text.strip() else "empty"
    text = text if text == row["text"] else text.strip()
    reply = Reply(text, int(row["n_in"]), int(row["n_out"]), none == "cut off")
    return reply, None if of_student else row["none"] or none


@dataclasses.dataclass(eq=False, repr=False)  # base_url may hold a password
class Teacher:
    """Asks `model`; each reply goes into the SQLite file `cache` as it comes and is never paid for again."""

    model: str
    base_url: str | None = None  # such as http://localhost:8000/v1; None: OPENAI_BASE_URL, or OpenAI
    cache: str | Path = "teacher.sqlite"
    concurrency: int = 16
    max_usd: float | None = None  # caps what the cache records; what a lost reply cost is unknown
    usd_per_m_in: float | None = None
    usd_per_m_out: float | None = None
    timeout_s: float = 600.0  # for a call with all its tries
    tries: int = 20
    seed: int = 0
    max_none: float = 0.05  # share of an ask that may be None; above 0 one always may
    write: bool = True  # False: makes no file
    needs_key: bool = True
    extra: dict = dataclasses.field(default_factory=dict)  # other fields of a request
    of_student: bool = False  # see read_row
    max_lost_in_row = 20  # then the server is given up

    def __post_init__(self):
        self.key, is_named = os.environ.get("OPENAI_API_KEY", "").strip(), bool(self.base_url)
        self.base_url = self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
        self.url = hide_secrets(self.base_url).rpartition("@")[2].rstrip("/")
        who = "student" if self.of_student else "teacher"
        self.name, self.flag = f"{who} {self.model} at {self.url}", f"--{who}-url"
        self.is_local = bool(re.match(r"https?://(localhost|127\.[\d.]+|\[::1\])(:|/|$)", self.url))
        self.prices = [usd for usd in (self.usd_per_m_in, self.usd_per_m_out) if usd is not None]
        is_exposed = self.url.startswith("http:") and not self.is_local and not is_named
        address = r"https?://([\w.-]+|\[[\da-fA-F:]+\])(:[1-6]?\d{1,4})?(/|$)"
        for is_wrong, sentence in (
            (not re.match(address, self.url), f"{self.flag} must be like http://localhost:8000/v1"),
            (self.needs_key and not self.key and self.url == OPENAI,
             "OPENAI_API_KEY is not set; export it, or give --teacher-url"),
            (not self.key.isascii() or not self.key.isprintable(), "OPENAI_API_KEY has odd characters"),
            (self.needs_key and self.key and is_exposed,
             "OPENAI_BASE_URL gets no key over plain http unless --teacher-url names it too"),
            (self.timeout_s <= 0, "--teacher-timeout must be above zero"),
            (min(self.prices, default=0) < 0, "a price is below zero"),
            (len(self.prices) < 2 and (self.prices or self.max_usd is not None),
             "--max-usd needs --usd-per-m-in and --usd-per-m-out"),
        ):
            if is_wrong:
                raise UserError(f"{self.name}: {sentence}")
        self.refused, self.coldest = set(), 0.0  # fields and temperatures that the server refuses: see _learn
        self.limit = "max_completion_tokens" if self.url == OPENAI else "max_tokens"
        self.used = Counter()  # tokens of all replies read, whoever paid for them
        self._open(Path(self.cache))

    def plan(self, steps: dict[str, list[Request]], show: bool = False) -> int:
        """Print what `steps` cost at most; show: and each step's first prompt. Returns how many calls."""
        print(f"{self.name}: at most this (tokens in: a guess)\n"
              f"{'step':<24}{'calls':>9}{'cached':>9}{'tokens in':>14}{'tokens out':>14}{'usd':>14}")
        for step, requests in (steps | {"total": sum(steps.values(), [])}).items():
            todo = self._look_up(requests)[1].values()
            n_in, n_out = sum(estimate_tokens(r.messages) for r in todo), sum(r.max_tokens for r in todo)
            usd = f"{self._usd(n_in, n_out):,.4f}" if self.prices else "unpriced"
            print(f"{step:<24}{len(todo):>9,}{len(requests) - len(todo):>9,}{n_in:>14,}{n_out:>14,}{usd:>14}")
        if self.max_usd is not None:
            print(f"cap: ${self.max_usd:g}, of which {self.path} holds ${self.spent_usd:.4f}")
        for step, requests in steps.items():
            if show and requests:
                print(f"--- {step} ---\n{requests[0].messages[-1]['content']}")
        return len(todo)

    def check(self) -> None:
        """One short call, kept nowhere: a wrong key or a dead server shows now, not after hours."""
        request = Request([{"role": "user", "content": "Say yes."}], max_tokens=16)
        if self._send({"1": request}, None, 1) != {"1": (None, None)}:
            raise UserError(f"{self.name}: a first short call failed ({self.problem})")

    def ask(self, requests: list[Request], step="teacher", max_none=None, reads=str) -> list[Reply | None]:
        """The replies, in order; None where one is cut off, empty, refused, refused by server, or lost.

        More None than max_none allows end the run; a rerun asks only for what is missing. So do more than a
        quarter (or than max_none, if that is more) for which reads(text) is None: then the teacher does not
        answer in the form asked for.
        """
        start, self.paid, self.problem = time.monotonic(), Counter(), "see above"
        max_none = self.max_none if max_none is None else max_none
        allowed, held = max(int(max_none > 0), int(max_none * len(requests))), self._lock()
        try:
            found, todo = self._look_up(requests)
            n_none = sum(none is not None for _, none in found.values()) - len(todo)
            if todo and n_none <= allowed:
                found |= self._send(todo, step, allowed - n_none + 1)
        finally:
            held.release()
        for reply, _ in found.values():
            if reply:
                self.used.update(n_in=reply.n_in, n_out=reply.n_out)
        replies = [found[self._keys(request)[0]] for request in requests]
        nones = Counter(none for _, none in replies if none)
        told = ", ".join(f"{n} {none}" for none, n in nones.items()) or "0"
        calls, n_in, n_out = (self.paid[name] for name in ("calls", "n_in", "n_out"))
        usd = f"${self._usd(n_in, n_out):.4f}, " if self.prices else ""
        print(f"{step}: {calls:,} calls, {len(requests) - len(todo):,} cached, {n_in:,} tokens in, "
              f"{n_out:,} out, {usd}None: {told}, {time.monotonic() - start:.1f} s", flush=True)
        if nones["not asked"] or nones.total() > allowed or 0 < len(requests) == nones["lost"]:
            self._forget([key for key, (_, none) in found.items() if none in ("empty", "refused")])
            raise UserError(
                f"{step}: of {len(requests)} replies {told} ({self.problem}), --teacher-max-none "
                f"{max_none:g} allows {allowed}; if cut off raise --teacher-max-tokens, if lost "
                f"--teacher-timeout; a rerun goes on from {self.path}")
        texts = {key: reply.text for key, (reply, none) in found.items() if not none}
        odd = {key: text for key, text in texts.items() if reads(text) is None}
        # ours: a quarter, because a weak teacher's work is of use too; more where so many may be lost anyway
        if len(odd) > max(3, int(max(0.25, max_none) * len(found))):
            self._forget(odd)
            raise UserError(f"{step}: {len(odd)} of {len(found)} replies are not in the form asked for, such "
                            f"as {min(odd.values())[:80]!r}; use a teacher that keeps to it; a rerun asks")
        return [None if none else reply for reply, none in replies]

    def _forget(self, keys) -> None:
        """ours: a rerun asks for these again, since another draw may be of use; they stay paid."""
        for key in keys:
            self._sql("UPDATE replies SET key = NULL WHERE server = ? AND key = ?", self.url, key)

    def _send(self, todo: dict[str, Request], step: str | None, enough: int) -> dict:
        """Ask until `enough` are None; key -> (reply, why it is None). Without a step nothing is kept."""
        self._sql("DELETE FROM replies WHERE rowid < 0")  # what cannot be written shows before a call is paid
        self.stopped, self.spent = False, self.spent_usd
        with ThreadPoolExecutor(1) as pool:  # because a notebook's event loop runs in this thread
            try:
                return pool.submit(asyncio.run, self._work(todo, step, enough)).result()
            finally:
                self.stopped = True  # by Ctrl-C too

    def post(self, path: str, body: dict) -> None:
        """Another call of the server; that it has been made "already" is fine."""
        import openai

        async def send():
            async with self._client(3) as client:
                await client.post(path, cast_to=str, body=body)
        with ThreadPoolExecutor(1) as pool:
            try:
                pool.submit(asyncio.run, send()).result()
            except openai.APIError as error:
                told = hide_secrets(f"{error} {error.__cause__ or ''}".strip())
                if "already" not in told:
                    raise UserError(f"{self.name}: {self.flag}{path} failed for {body} ({told:.200}); is the "
                                    "server up, and started with --enable-lora?") from None

    async def _work(self, todo, step, enough) -> dict:
        queue, in_flight, found, n_none, lost_in_row = deque(todo.items()), {}, {}, 0, 0
        bar = tqdm(desc=step, unit="call", total=len(todo), disable=not step)
        async with self._client(self.tries if step else 3) as client:
            try:
                while (queue or in_flight) and not self.stopped:
                    if queue and self._fits(queue[0][1], in_flight.values()):
                        key, request = queue.popleft()
                        task = asyncio.create_task(self._call(client, key, request, step), name=key)
                        in_flight[task] = request
                        continue
                    done, _ = await asyncio.wait(in_flight, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        reply, none = task.result()
                        found[task.get_name()] = reply, none
                        del in_flight[task]
                        n_none += none is not None
                        lost_in_row = lost_in_row + 1 if none == "lost" else 0
                        bar.update()
                    if n_none >= enough or lost_in_row >= self.max_lost_in_row:
                        queue.clear()
            finally:
                bar.close()
                if in_flight:  # after an error or Ctrl-C; these are paid, so what comes soon is kept
                    await asyncio.wait([asyncio.gather(*in_flight, return_exceptions=True)], timeout=2)
        return found

    def _fits(self, request: Request, in_flight) -> bool:
        """Whether this call may be sent too: --concurrency, and --max-usd if all cost what they can."""
        if len(in_flight) >= self.concurrency or self.max_usd is None:
            return len(in_flight) < self.concurrency
        usd = [self._usd(estimate_tokens(one.messages), one.max_tokens) for one in (request, *in_flight)]
        is_dear = self.spent + sum(usd) > self.max_usd
        if is_dear and not in_flight:
            raise UserError(f"${self.spent:.4f} of --max-usd ${self.max_usd:g} is spent and the next call "
                            f"may cost ${usd[0]:.4f}; a rerun with a higher --max-usd goes on")
        return not is_dear

    def _client(self, tries: int):
        """It tries again after 408, 409, 429, 5xx and broken connections."""
        import openai  # a second, so only where it is needed

        base_url, _, query = self.base_url.partition("?")
        try:
            http = openai.DefaultAsyncHttpxClient(timeout=self.timeout_s, trust_env=not self.is_local)
        except (ImportError, ValueError) as error:
            raise UserError(f"{self.name}: ALL_PROXY or HTTP(S)_PROXY cannot be used "
                            f"({hide_secrets(str(error))}); unset it, or set NO_PROXY") from None
        return openai.AsyncOpenAI(api_key=self.key or "no-key", base_url=base_url, timeout=self.timeout_s,
                                  default_query=dict(urllib.parse.parse_qsl(query)), http_client=http,
                                  max_retries=tries - 1)

    async def _call(self, client, key: str, request: Request, step) -> tuple:
        """The reply, which then is in the cache, and why it is None."""
        import openai

        fields = {"temperature": max(request.temperature, self.coldest), "seed": int(key[:7], 16),
                  self.limit: request.max_tokens, **self.extra}
        for name in self.refused & fields.keys():
            del fields[name]
        text = json.dumps(request.messages, ensure_ascii=False)
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a pair: \ud835
        try:
            async with asyncio.timeout(self.timeout_s):  # the client's own is per read: a drip outlives it
                for nth in range(self.tries):
                    if self.stopped:
                        break
                    try:
                        raw = await client.chat.completions.with_raw_response.create(
                            model=self.model, messages=json.loads(text), extra_body=fields)
                        row = read_completion(raw.content)
                        return self._save(key, request, step, row) if step else (None, None)
                    except ValueError as error:  # status 200, but no completion
                        self.problem = hide_secrets(str(error))
                        await asyncio.sleep(min(2**nth, 16) / 2)
        except openai.APIStatusError as error:
            none = self._refusal(error, fields)
            return (None, none) if none else await self._call(client, key, request, step)
        except TimeoutError:
            self.problem = (f"no reply within --teacher-timeout {self.timeout_s:g} s: raise that, or lower "
                            f"--concurrency {self.concurrency}")
        except openai.APIConnectionError as error:
            self.problem = hide_secrets(f"{type(error.__cause__).__name__}: {error.__cause__}")
        return None, "lost"

    def _refusal(self, error, fields: dict) -> str | None:
        """What an HTTP error means: "refused by server", "lost", or None: ask again with other fields."""
        status, text = error.status_code, hide_secrets(" ".join(str(error.body or error).split()))
        text = text if status != 401 else "wrong key"  # a 401 likes to quote half of the key
        self.problem = f"HTTP {status}: {text[:200]}"
        of_prompt = re.search(PROMPTS_FAULT, re.sub(r"\bmax_\w*tokens\b", "", text), LAX)
        if status == 413 or status in (400, 403, 422, 451, 500) and of_prompt:
            return "refused by server"
        if status in (400, 422) and not self.stopped and self._learn(fields, text):
            return None
        if "insufficient_quota" not in text and (status in (408, 409, 425, 429) or status >= 500):
            return "lost"
        raise UserError(f"{self.name}: {self.problem}; check OPENAI_API_KEY, credit, the model's name and "
                        f"{self.flag} (often .../v1); a rerun goes on from {self.path}")

    def _learn(self, fields: dict, text: str) -> bool:
        """Whether the server refuses one of `fields`, which from here on is sent otherwise or not at all."""
        named = re.search(rf"\b({'|'.join(fields)})\b", text, LAX)
        name = named[0].lower() if named else ""
        is_zero = name == "temperature" and fields[name] == 0
        other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}.get(name)
        if name in self.refused or is_zero and self.coldest:
            return True  # another call in flight has found out
        if not name or other and (other in self.refused or re.search(r"\b(range|value|less)\b", text, LAX)):
            return False  # one of the two limits is always sent, since --max-usd counts on it
        if is_zero and re.search(r"positive|greater|> ?0|\(0,", text, LAX):
            self.coldest = 0.01
        else:
            self.refused.add(name)
            self.limit = other or self.limit
        print(f"{self.name}: {self.problem}; from here on {name} is changed or left out", flush=True)
        return True

    def _save(self, key: str, request: Request, step: str, row: dict) -> tuple[Reply, str | None]:
        is_counted = all(isinstance(row[n], int) and row[n] > 0 for n in ("n_in", "n_out"))
        if not is_counted:
            row |= {"n_in": estimate_tokens(request.messages), "n_out": estimate_tokens(row["text"])}
        usd = self._usd(row["n_in"], row["n_out"])  # None in the cache: at the prices of whoever reads it
        row |= {"model": self.model, "step": step, "max_tokens": request.max_tokens,
                "estimated": not is_counted, "usd": usd if self.prices else None}
        self._sql("INSERT INTO replies VALUES (?, ?, ?)", self.url, key, json.dumps(row))
        self.spent += usd
        self.paid.update(calls=1, n_in=row["n_in"], n_out=row["n_out"])
        return read_row(row, self.of_student)

    def _usd(self, n_in: int, n_out: int) -> float:
        return (n_in * self.prices[0] + n_out * self.prices[1]) / 1e6 if self.prices else 0.0

    @property
    def recorded(self) -> dict[str, Counter]:
        """What was paid for in the cache's whole life, by step."""
        found = defaultdict(Counter)
        fields = ", ".join(f"json_extract(row, '$.{name}')" for name in ("step", "n_in", "n_out", "usd"))
        with self._disk():
            for step, n_in, n_out, usd in self._sql(f"SELECT {fields} FROM replies"):
                usd = self._usd(n_in, n_out) if usd is None else usd
                found[step].update(calls=1, n_in=n_in, n_out=n_out, usd=usd)
        return found

    @property
    def spent_usd(self) -> float:
        return sum(total["usd"] for total in self.recorded.values())

    def _open(self, path: Path) -> None:
        """The cache: a row per reply, the last one counts. An earlier teacher.jsonl is read in once."""
        self.path, old = path.with_suffix(".sqlite"), path.with_suffix(".jsonl")
        with self._disk():
            if self.write:
                path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path if self.write or self.path.exists() else ":memory:"
            self.db = sqlite3.connect(file, timeout=60, check_same_thread=False)
        self._sql("CREATE TABLE IF NOT EXISTS replies (server, key, row)")  # row: JSON
        if old.is_file() and not self._sql("PRAGMA user_version")[0][0]:
            with self._disk(), self.db, open(old, encoding="utf-8", errors="replace") as lines:
                self.db.executemany(  # a line that a kill tore is no JSON
                    "INSERT INTO replies SELECT json_extract(?1, '$.model'), json_extract(?1, '$.key'), ?1 "
                    "WHERE json_valid(?1) AND json_extract(?1, '$.n_in') >= 0", ([line] for line in lines))
                self.db.execute("PRAGMA user_version = 1")
        self._sql("UPDATE replies SET server = ? WHERE server = ?", self.url, self.model)  # it had no server
        self._sql("CREATE INDEX IF NOT EXISTS draws ON replies (server, key)")

    @contextlib.contextmanager
    def _disk(self):
        try:
            yield
        except (OSError, sqlite3.Error, ValueError, LookupError, TypeError) as error:  # also a damaged row
            raise UserError(f"the cache {self.path} cannot be used: {error}; make room, or name another by "
                            "--cache") from None

    def _sql(self, command: str, *values) -> list[tuple]:
        with self._disk(), self.db:  # commits
            return self.db.execute(command, values).fetchall()

    def _lock(self):
        """While this process asks no other does by the same cache."""
        try:
            return lock(f"{self.path}.lock", timeout_s=0)
        except TimeoutError:
            print(f"{self.path}: waiting for another process that asks by it", flush=True)
            return lock(f"{self.path}.lock", timeout_s=-1)  # as long as it takes

    def _keys(self, request: Request) -> list[str]:
        """Hashes of what moves the draw, the server apart: now, and in versions with a seed at T = 0."""
        keys = []
        for seed in (self.seed if request.temperature else 0, self.seed):
            drawn_from = [self.model, request.messages, float(request.temperature), seed, request.sample]
            keys.append(hashlib.sha256(json.dumps(drawn_from, sort_keys=True).encode()).hexdigest()[:32])
        return keys

    def _look_up(self, requests: list[Request]) -> tuple[dict, dict[str, Request]]:
        """By key: each (reply, why it is None), and the requests for which that is "not asked"."""
        found, todo = {}, {}
        for request in sorted(requests, key=lambda r: r.max_tokens):  # of duplicates the longest stays
            key, earlier = self._keys(request)
            rows = self._sql("SELECT row FROM replies WHERE server = ? AND key IN (?, ?) ORDER BY rowid DESC "
                             "LIMIT 1", self.url, key, earlier)
            with self._disk():
                row = json.loads(rows[0][0]) if rows else {}
                found[key] = read_row(row, self.of_student) if row else (None, "not asked")
            if not row or found[key][1] == "cut off" and row["max_tokens"] < request.max_tokens:
                found[key], todo[key] = (None, "not asked"), request
        return found, todo


def read_tags(reply: str, tag: str) -> list[str]:
    """The text of each <tag>...</tag>, from its innermost <tag> on.

    >>> read_tags("The <skill> tag: <skill> factoring </skill>", "skill")
    ['factoring']
    """
    return [text.strip() for text in re.findall(rf"<{tag}>((?:(?!<{tag}>).)*?)</{tag}>", reply, LAX)]


def read_tag(reply: str, tag: str) -> str | None:
    """The text of the last <tag>...</tag>, if there is one."""
    return (read_tags(reply, tag) or [None])[-1]


def tagged(tag: str):
    """For Teacher.ask(reads=...): the reply must hold <tag>...</tag>."""
    return functools.partial(read_tag, tag=tag)


def open_teacher(args, write: bool = True) -> Teacher:
    """The teacher that a method's flags name. write=False, for a plan: makes no file."""
    return Teacher(args.teacher, args.teacher_url, args.cache or Path(args.out, "teacher.sqlite"),
                   args.concurrency, args.max_usd, args.usd_per_m_in, args.usd_per_m_out,
                   args.teacher_timeout, seed=args.seed, max_none=args.teacher_max_none, write=write,
                   needs_key=not args.plan)


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


# --- Data: every set as rows of id, problem, solution, answer, subject, level, skills. ---
PERTURB = "https://raw.githubusercontent.com/Kaffaljidhmah2/MATH-Perturb/main/math_perturb/math_perturb_"
BBH = "https://raw.githubusercontent.com/suzgunmirac/BIG-Bench-Hard/main/bbh/"
HUB = {  # name: addresses in the order they are tried, with split for tests, revision, configs
    "math": ["EleutherAI/hendrycks_math test 21a5633873b6a120296cce3e2df9d5550074f4a3 algebra "
             "counting_and_probability geometry intermediate_algebra number_theory prealgebra precalculus",
             "DigitalLearningGmbH/MATH-lighteval test main"],
    "gsm8k": ["openai/gsm8k test 740312add88f781978c0658806c59bc2815b9866 main"],
    "svamp": ["ChilleD/SVAMP test 5e0bf1e5e7c0e9c4bc39180d224f41f3f801b7ef"],
    "math500": ["HuggingFaceH4/MATH-500 test 6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
                "nlile/hendrycks-MATH-benchmark test main"],  # its train holds 4,500 of MATH's tests
    "math_squared": ["veds12/math-squared train main"],  # MATH^2
    "amc23": ["math-ai/amc23 test main", "zwhe99/amc23 test main"],
    "aime24": ["HuggingFaceH4/aime_2024 train 2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
               "math-ai/aime24 test main"],
    "aime25": ["math-ai/aime25 test 563bb8404243c5f09de6ec262f2db674fe5bce9b",
               "yentinglin/aime_2025 train main"],
    "bbh_boolean_expressions": [BBH + "boolean_expressions.json test main"],
    "bbh_web_of_lies": [BBH + "web_of_lies.json test main"],
    "prontoqa": ["renma/ProntoQA validation main"],
    "arc_challenge": ["allenai/ai2_arc test main ARC-Challenge"],
    "math_perturb_simple": [PERTURB + "simple.jsonl test main"],
    "math_perturb_hard": [PERTURB + "hard.jsonl test main"],
}


def load(name_or_path: str, split: str = "test") -> list[dict]:
    """Rows of a set in HUB, of a file (whatever the split), or of a folder's file for the split.

    Ids are unique. Solution, subject, level (int) and skills may be None, the answer "" (MATH's empty boxes).
    """
    if name_or_path in HUB:
        stem, found = f"{name_or_path}-{split}", _from_hub(name_or_path, split)
    else:
        start = Path(name_or_path, split) if Path(name_or_path).is_dir() else name_or_path
        endings = ("", ".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".csv.gz")
        there = [f"{start}{ending}" for ending in endings if Path(f"{start}{ending}").is_file()]
        if not there:
            raise UserError(f"{start}.jsonl: no such file; pass a file, a folder or one of {', '.join(HUB)}")
        stem, found = Path(there[0]).name.split(".")[0], read_rows(there[0])
    rows, n_same = {}, Counter()
    for where, raw in found:
        row = _row(raw, where)
        n_same[row["problem"]] += 1
        made = digest([row["problem"], n_same[row["problem"]]])  # not the position: a file may be reordered
        row["id"] = row["id"] or f"{stem}/{made}"
        if row["id"] in rows:
            raise UserError(f"{where}: field 'id': {row['id']!r} stands above too; make it unique")
        rows[row["id"]] = row
    if not rows:
        raise UserError(f"{name_or_path}: expected at least one question, found none; check the file")
    return list(rows.values())


def _from_hub(name: str, split: str) -> list[tuple[str, dict]]:
    if split != "test" and (split != "train" or name not in ("math", "gsm8k", "svamp")):
        raise UserError(f"{name}: no split {split!r}; use test (math, gsm8k, svamp: or train)")
    for line in HUB[name]:
        address, tests, revision, *configs = line.split()
        how, rows = {"split": tests if split == "test" else split, "revision": revision}, []
        try:
            for config in configs or [None]:
                rows += read_rows(address, name=config, **how)
            print(f"{len(rows):,} rows from {address}, revision {revision}")
            return rows
        except UserError as error:  # gone, gated, no network: the next one may do
            print(error, file=sys.stderr)
    raise UserError(f"{name}: not to be read, for the reason above; mend it, or pass a local path")


def read_rows(source: str | Path, **how) -> list[tuple[str, dict]]:
    """(where it stands, object) of each row of a file; by `how`, of a set on the Hub or an address."""
    source, rows, n = str(source), [], 0
    table = re.search(r"\.(csv|parquet|json(?=l?\.gz))(l?\.gz)?$", source)  # x.csv, x.jsonl.gz
    try:
        if table or how and not source.startswith("https:"):
            import datasets  # slow, and not needed for JSON

            file = {"path": table[1], "data_files": source, "split": "train"} if table else {"path": source}
            items = datasets.load_dataset(**file, **how)
        else:
            with urllib.request.urlopen(source, timeout=60) if how else open(source, "rb") as file:
                text = file.read().removeprefix(b"\xef\xbb\xbf")
            is_whole = text.lstrip().startswith(b"[") or b'"examples"' in text[:1000]  # the latter: BBH
            items = json.loads(text) if is_whole else text.splitlines()
            items = items["examples"] if isinstance(items, dict) else items
        for n, item in enumerate(items, 1):
            if isinstance(item, bytes) and not item.strip():
                continue
            row = json.loads(item) if isinstance(item, bytes) else item  # the text's U+2028 would cut a line
            if not isinstance(row, dict):
                raise ValueError(f"it is {row!r:.40}")
            rows.append((f"{source} row {n}", row))
    except Exception as error:  # any, because each format and the network have their own
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{source} row {n}: expected a JSON object, but: {reason:.200}; check it") from None
    return rows


def read_json(path: str | Path):
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected JSON, but: {error}; repair it or check the path") from None


def _row(raw: dict, where: str) -> dict:
    """A question of any source; NaN and infinity are missing."""
    missing = (None, math.inf, -math.inf)
    known = {name.casefold(): one for name, one in raw.items() if one == one and one not in missing}

    def field(*names, like="", expected="text", need=False) -> str | None:
        value = next((known[name] for name in names if name in known), None)
        if value is None and not need:
            return None
        if isinstance(value, float) and value.is_integer():  # pandas: level 5.0
            value = int(value)
        if type(value) not in (str, int, float) or not re.search(like, str(value)):
            name = next((name for name in names if name in known), names[0])
            raise UserError(f"{where}: field {name!r}: expected {expected}, came {value!r:.60}; correct it")
        return str(value)

    for name in ("option_a", "a", "image"):
        if known.get(name):
            raise UserError(f"{where}: field {name!r}: no student would see it; put it into the problem")
    problem, solution = field("problem", "question", "input", like=r"[^\d\s]", need=True), field("solution")
    if about := field("body", "context", "passage"):  # SVAMP's question says too little without it
        problem = f"{about} {problem}"
    if solution and "answer" not in known:  # MATH on the Hub, where two boxes are empty
        is_empty = solution.rpartition("\\boxed")[2].startswith("{}")
        known["answer"] = "" if is_empty else extract_answer(solution)
    expected = "text, a number or a \\boxed{}"
    answer = field("answer", "answerkey", "target", expected=expected, need=True).strip()
    if options := known.get("options") or known.get("choices"):
        shown, answer = _options(options, answer, where)
        problem = f"{problem}\n{shown}\nGive the letter or number of the right option."
    if "\n#### " in answer:  # GSM8K: the solution with <<calculator marks>>, then the answer
        solution, answer = answer.rsplit("\n#### ", 1)
        answer = answer.strip().replace(",", "")
        solution = re.sub(r"<<[^<>]*>>", "", solution) + f"\nThe answer is $\\boxed{{{answer}}}$."
    level = field("level", like=r"^(Level )?(\d+|\?)$", expected="a number or 'Level 3'")
    digits = re.search(r"\d+", level or "")  # two rows of MATH have "Level ?"
    skills = known.get("skills")
    if skills is not None and (type(skills) is not list or {type(name) for name in skills} - {str}):
        raise UserError(f"{where}: field 'skills': expected a list of names, came {skills!r:.60}; correct it")
    return {"id": field("id", "problem_id", "unique_id"), "problem": problem, "solution": solution,
            "answer": answer, "subject": field("subject", "type"), "level": digits and int(digits[0]),
            "skills": skills}


def _options(options, answer: str, where: str) -> tuple[str, str]:
    """The options of a question as lines, and the label of the right one.

    options: a list of texts, or {"text": [...], "label": [...]}. answer: a label, a text or a place from 0.
    """
    texts, labels = options, None
    if isinstance(options, dict):
        texts, labels = options.get("text"), options.get("label")
    labels = labels or list(ascii_uppercase[:len(texts or [])])
    are_lists = type(texts) is list and type(labels) is list and len(texts) == len(labels)
    if not are_lists or {type(text) for text in texts} != {str}:
        raise UserError(f"{where}: options: expected at most 26 texts, came {options!r:.60}; correct them")
    lines, right = [], {str(i): label for i, label in enumerate(labels)}
    for label, text in zip(labels, texts, strict=True):
        lines.append(f"({label}) " + re.sub(rf"^\(?{label}[).:]\s*", "", text))
        right[text] = right[lines[-1].partition(" ")[2]] = label
    right |= {label: label for label in labels}
    if answer not in right:
        raise UserError(f"{where}: field 'answer': expected one of {', '.join(labels)}, came {answer!r:.60}")
    return "\n".join(lines), right[answer]


SIGNS = str.maketrans({pair[0]: f"\\{pair[1:]} " for pair in (
    "×times ·cdot *cdot <lt >gt ≤le ≥ge ≠ne √sqrt ∞infty ±pm °^circ ∪cup ∩cap ∈in −- –- "
    "αalpha βbeta θtheta πpi").split()})
SPELLINGS = [  # (a spelling of the same mathematics, the one that stands for it), in small letters
    ("[⁰¹²³⁴-⁹]+", r"^\g<0> "),  # x²: x^2
    ("[¼-¾⅐-⅞]", r" \g<0> "),  # 3½: 3 1/2
    (r"\\\\|\\[()\[\]]", "$"),  # \(x\), \[x\]: $x$
    (r"\\(left|right|big+[lrm]?|q?quad|displaystyle|[lc]?dots[bc]?)(?![a-z])\.?", " "),
    *[(r"\\(text|mbox|math|operatorname)[a-z]*\s*\{([^{}]*)\}", r" \2 ")] * 2,  # \text{ cm}: cm
    (r"\\([lg])t *=", r"\\\1e "),  # <=: \le
    (r"(\\[lgn]e)q(?![a-z])", r"\1 "),  # \leq: \le
    (r"\{,\}", ","),  # 14{,}9AB: 14,9AB
    (r"(?<=\d)(,\\!|\\,|,)(?=\d{3})", ""),  # 1,000: 1000
    (r"_(\d)", r"_\1 "),  # \log_28: \log_2 8
    (r"(?<![\w.])\.(?=\d)", "0."),  # .5: 0.5
    (r"\\[dtc]frac", r"\\frac"),
    (r"\\frac\s*(\d|[a-z]|\{\w+\})\s*(\d|[a-z]|\{\w+\})", r" \1/\2 "),  # \frac12: 1/2
    (r"(?<!\\)\{\s*(\d[\d.]*|[a-z]|\\[a-z]+)\s*\}", r" \1 "),  # x^{2}: x^2
]
WORD = r"\d+(?:\.\d+)?|[^\W\d_]+|[-+/^_=|()\[\]{}%]|(?<=[\dn)])!(?!\s*$)|'(?=\()"  # 5!, f'(x)


@functools.lru_cache(maxsize=1 << 15)
def words(text: str) -> tuple[str, ...]:
    """A question's words, numbers and signs in one spelling."""
    text = text.casefold().translate(SIGNS)
    for spelling, one in SPELLINGS:
        text = re.sub(spelling, one, text)
    return tuple(re.findall(WORD, unicodedata.normalize("NFKC", text).casefold().replace("⁄", "/")))


def plain(text: str) -> str:
    """The words in one piece; 2 3 is not 23."""
    return "".join(f",{word}," if word[0].isdigit() else word for word in words(text))


def without(rows: list[dict], others: list[dict]) -> list[dict]:
    """The rows whose problem is not, in plain form, one of `others`."""
    texts = {plain(row["problem"]) for row in others}
    return [row for row in rows if plain(row["problem"]) not in texts]


def windows(text: str) -> dict[str, None]:
    """Every 13 words in a row of a question, once, in order; figures, which begin with the same code, apart.

    ours: 13, because that is the usual measure of contamination since GPT-3's.
    """
    text = re.sub(r"\[asy\].*?\[/asy\]", "", text, flags=re.DOTALL)
    found = [word for word in words(text) if word[0].isalnum()]
    return dict.fromkeys(" ".join(found[i:i + 13]) for i in range(len(found) - 12))


def leaked(problems: list[str], tests: list[str]) -> list[str | None]:
    """For each problem the test question that it gives away: the same one, or one with half its windows.

    ours: half of the windows of the shorter of the two, because many questions share a single one, such as
    "m and n are relatively prime positive integers. Find".
    """
    same, sizes, holders = {plain(text): text for text in tests}, [], defaultdict(list)
    for i, text in enumerate(tests):
        sizes.append(len(own := windows(text)))
        for window in own:
            holders[window].append(i)
    found = []
    for text in problems:
        own, leak = windows(text), same.get(plain(text))
        shared = Counter(i for window in own for i in holders.get(window, ()))
        for i, n in shared.most_common():
            if not leak and n >= min(len(own), sizes[i]) / 2:
                leak = tests[i]
        found.append(leak)
    return found


def check_questions(run: "Run", parts: dict[str, list[dict]]) -> None:
    """Refuse a run that was made with other questions, or with these in another order."""
    file, now = "0_fingerprint.json", {part: digest(rows) for part, rows in parts.items()}
    kept, ids = now, {row["id"] for rows in parts.values() for row in rows}
    if (run.path / file).exists():
        kept = run.read(file)
    elif (run.path / "0_questions.jsonl").exists():  # an earlier run, whose ids may have been positions
        kept = now if all(row["id"] in ids for row in run.read("0_questions.jsonl")) else {}
    if changed := [part for part in {**kept, **now} if kept.get(part) != now.get(part)]:
        raise UserError(f"{run.path}: its questions ({', '.join(changed)}) are not those that the data gives "
                        "now; give the old data, or choose another --out")
    run.write(file, now)


def digest(value) -> str:
    """Twelve hex digits that stand for any JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def torch_seed(seed: int, *names: str) -> int:
    """A seed in [0, 2**32) that belongs to this step alone: a skipped step shifts no other."""
    return int(digest([seed, *names])[:8], 16)


def rng(seed: int, *names: str) -> random.Random:
    return random.Random(torch_seed(seed, *names))


# --- Models: 4-bit weights from the Hub or a folder; prompts; sampling. ---
PROBE = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "@answer@"}]


class Student(NamedTuple):
    model: object  # a torch module, with a LoRA adapter if it has one
    tokenizer: object
    end: str  # what training puts behind an answer
    stop_ids: frozenset[int]  # every token that ends an answer
    device: object


@contextlib.contextmanager
def loading(flag: str, name):
    """Makes one sentence of what goes wrong while a checkpoint is loaded."""
    try:
        yield
    except Exception as error:  # any, because the libraries below each have their own
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if "out of memory" in text or isinstance(error, MemoryError):
            raise  # cli says what to do
        if "gated" in text.lower() or "401" in text:
            text = "the weights are gated: accept their licence on the Hub, then run `hf auth login`"
        raise UserError(f"{flag} {name} can't be loaded: {text.splitlines()[0]}") from error


def check_checkpoint(name: str | None, flag: str) -> None:
    """Refuse early what holds no model or adapter, in a folder or on the Hub; None is fine."""
    file = {"--adapter": "adapter_config.json", "--embedder": "modules.json"}.get(flag, "config.json")
    if name is None or Path(name, file).is_file():
        return
    if Path(name).exists() or name.count("/") != 1 or name[0] in "./~":
        raise UserError(f"{flag} {name}: no such folder, or no {file} in it; check the path")
    from huggingface_hub import hf_hub_download
    with loading(flag, name):
        hf_hub_download(name, file)


def free_gpu() -> None:
    """Give back what models took that are used no more, to a next one or to another process."""
    import torch
    if torch.cuda.is_available():
        gc.collect()  # PEFT's wrappers refer to one another
        torch.cuda.empty_cache()


def load_4bit(name: str, flag: str, bits: int = 4) -> tuple:
    """(model, tokenizer), frozen; with 4 bits in NF4 (STAT's §C.1).

    It computes in bfloat16, on a CPU in float32.
    """
    import torch
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Paged optimizers are not|`is_gradient_checkpointing` is")  # harmless
    import transformers
    from bitsandbytes.nn import Linear4bit
    transformers.utils.logging.disable_progress_bar()
    dtype, device = torch.float32, "cpu"
    if torch.cuda.is_available():
        free_gpu()
        dtype, device = torch.bfloat16, "cuda"
        if not torch.cuda.is_bf16_supported(including_emulation=False):  # ours: float16 needs a loss scale
            raise UserError(f"{torch.cuda.get_device_name()} lacks bfloat16; take a GPU of 2020 or later")
        torch.cuda.reset_peak_memory_stats()
    # ours: double quantisation, because it saves 0.4 bit a weight
    nf4 = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                          bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True)
    with loading(flag, name):
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        probe = prompt_ids(tokenizer, [*PROBE, PROBE[0]])
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            name, quantization_config=nf4 if bits == 4 else None, dtype=dtype, device_map=device,
            use_safetensors=True, output_loading_info=True)
        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False  # else eval mode breaks gradients on some CPUs
                module.compute_dtype = module.weight.quant_state.dtype = dtype  # of a 4-bit checkpoint too
        for weight in model.parameters():
            if weight.is_floating_point():
                weight.data = weight.data.to(dtype)
        model.requires_grad_(False).eval()
        embedding = model.get_input_embeddings()
        embedding.register_forward_pre_hook(check_ids)
        check_ids(embedding, [torch.tensor(tokenizer.vocab_size - 1)])  # not all added tokens come up
        check_model(model, probe, info["missing_keys"], drops_rows=flag == "--student")
    return model, tokenizer


def check_model(model, probe: list[int], missing: set[str], drops_rows: bool) -> None:
    """Refuse a model that would be used wrongly here, by what it has and does, not by its name."""
    import torch
    from transformers import DynamicCache
    layers = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers}
    other = model._is_stateful or layers - {"DynamicLayer", "DynamicSlidingWindowLayer"}
    if drops_rows and other:  # sample() drops the answers that have ended
        raise UserError("not all its layers are attention, whose memory alone can drop single answers")
    if any(weight.dim() == 3 for weight in model.parameters()):
        raise UserError("it holds experts in one tensor, or the like, which neither 4 bits nor LoRA cover")
    if missing:  # a reward model's own head would be drawn at random
        raise UserError(f"expected a causal language model, but it has no {min(missing)}")
    # Logits are lm_head(hidden_states(...)) here. A cap shows when the head gives a thousand times as much.
    ids = torch.tensor([probe], device=model.device)
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: 1000 * output)
    with torch.no_grad():
        theirs, ours = model(ids).logits, model.lm_head(hidden_states(model, ids, torch.ones_like(ids)))
    hook.remove()
    if (theirs - ours).norm() > 0.1 * ours.norm():
        raise UserError("it caps or rescales its logits, which the files here do not")


def check_ids(embedding, inputs) -> None:
    """Refuse a token without an embedding, where a GPU would fail without a word."""
    if inputs[0].max() >= embedding.num_embeddings:
        raise UserError(f"its embedding has no row for token {inputs[0].max()}; take another model")


def load_student(name: str, adapter: str | Path | None = None, template_kwargs: str | None = None,
                 merged: bool = False, bits: int = 4) -> Student:
    """A chat model in NF4, with a LoRA adapter that training may go on from, if one is given.

    bits: 16 leaves it unpacked, on a CPU in 32. merged: unpacked, with the adapter added: answers in half the
    time, no training.
    """
    if adapter and (config := Path(adapter, "adapter_config.json")).is_file():
        with loading("--adapter", adapter):
            base = str(json.loads(config.read_bytes()).get("base_model_name_or_path"))
            is_other = base != name and base.count("/") == name.count("/") == 1  # names on the Hub
            if is_other and not Path(name).exists() and not Path(base).exists():  # it would fit, and be wrong
                raise UserError(f"trained on {base}, not on --student {name}; give that")
    model, tokenizer = load_4bit(name, "--student", bits)
    # in the template itself, because then the tokenizer saved beside an adapter has it too
    tokenizer.chat_template = template_head(template_kwargs) + tokenizer.get_chat_template()
    turn_end = apply_template(tokenizer, PROBE).rpartition("@answer@")[2].strip()
    turn_ids, eos = tokenizer(turn_end, add_special_tokens=False).input_ids, tokenizer.eos_token
    if not eos and len(turn_ids) != 1:
        raise UserError(f"--student {name}: no token ends answers; set eos_token in tokenizer_config.json")
    known = model.generation_config.eos_token_id
    stop = {tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])}
    stop |= set(turn_ids if len(turn_ids) == 1 else [])
    # ours: a base model such as Qwen2.5's may not know its template's end of turn, and LoRA leaves
    # embeddings as they are: then its own end of text.
    end = eos if eos and eos not in turn_end else turn_end
    model = model.dequantize() if merged and bits == 4 else model
    if adapter:
        from peft import PeftModel
        from transformers.utils import cached_file
        with loading("--adapter", adapter):
            cached_file(adapter, "adapter_model.safetensors")  # or PEFT would read a pickle
            model = PeftModel.from_pretrained(model, adapter, is_trainable=not merged).eval()
            model = model.merge_and_unload() if merged else model
    return Student(model, tokenizer, end, frozenset(stop - {None}), model.device)


def template_head(text: str | None) -> str:
    """--chat-template-kwargs as the head of a template: {"a": true} as {% set a = True %}."""
    import jinja2
    with contextlib.suppress(ValueError, jinja2.TemplateSyntaxError):  # the latter: {"false": 1}
        values = json.loads(text or "{}")
        taken = {"messages", "add_generation_prompt"}  # given with each chat
        if isinstance(values, dict) and all(map(str.isidentifier, values)) and taken.isdisjoint(values):
            head = "".join(f"{{% set {name} = {value!r} %}}" for name, value in values.items())
            jinja2.Environment().parse(head)
            return head
    raise UserError(f'--chat-template-kwargs {text}: expected JSON such as {{"enable_thinking": false}}')


def apply_template(tokenizer, messages: list[dict], **kwargs) -> str:
    """The text of a chat; of today's date a fixed one, so that a run stays the same."""
    import jinja2
    date = datetime.datetime(2024, 7, 26)
    now = r"strftime_now\(\s*(['\"])(.*?)\1\s*\)"  # strftime_now("%d %B %Y")
    try:
        template = re.sub(now, lambda call: repr(date.strftime(call[2])), tokenizer.get_chat_template())
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False,
                                             date_string=date.strftime("%d %b %Y"), **kwargs)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise UserError(f"the chat template of {tokenizer.name_or_path} refuses a chat: {error}") from error


def prompt_ids(tokenizer, messages: list[dict]) -> list[int]:
    """The tokens of a chat up to the assistant's next turn."""
    text = apply_template(tokenizer, messages, add_generation_prompt=True)
    # ours: a thought that the template opens there is closed, because the pairs to train on hold none
    thought = r"([<\[◁])([\w:|]*think\w*\|?)([>\]▷])\s*\Z"  # <think>, <seed:think>, [THINK]
    if opened := re.search(thought, text, re.IGNORECASE):
        text += "\n\n{}/{}{}\n\n".format(*opened.groups())
    return tokenizer(text, add_special_tokens=False).input_ids


def pad(rows: list[list[int]], device, side: str = "right") -> tuple:
    """Token rows padded to one length: ids and mask, (B, T) each."""
    import torch
    marked = [torch.tensor([row, [1] * len(row)]).T for row in rows]  # (t, 2) each
    return torch.nn.utils.rnn.pad_sequence(marked, True, padding_side=side).to(device).unbind(-1)


def hidden_states(model, ids, mask):
    """The last hidden states, (B, T, d), of a model with or without LoRA layers; no logits."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


RUN_ON = re.compile(  # a question of the model's own: "\n\nProblem 2:", "\nHuman:", "<|im_start|>user"
    r"\n\W*(?:(?:next|new|another) )?(?:problem|question|exercise|example|instruction|human|user|q)"
    r"(?: ?#?\d+)?\W{0,2}(?::|\n|(?<=\d)\.)|<\|(?:im_start|start_header_id|user)", re.IGNORECASE)


def cut_run_on(text: str) -> str:
    r"""An answer without the question that a base model goes on to invent.

    >>> cut_run_on("So \\boxed{4}.\n\nQuestion: What is 3+3?"), cut_run_on("Question: 2+2? So \\boxed{4}.")
    ('So \\boxed{4}.', 'Question: 2+2? So \\boxed{4}.')
    """
    for m in RUN_ON.finditer(text):
        if extract_answer(text[:m.start()]) is not None:
            return text[:m.start()].rstrip()
    return text


def without_run_on(out: dict) -> dict:
    """A sampled answer, cut where it goes on to a question of the model's own; "run_on": whether it did."""
    text = cut_run_on(out["response"])
    if text == out["response"]:
        return out | {"run_on": False}
    return out | {"run_on": True, "response": text, "cut_off": False, "is_open": False}


def sample(student, prompts: list[list[int]], temperature: float, max_new_tokens: int, seed: int,
           begun: list[list[int]] | None = None, leave: float = 0.0, log_probs: bool = False) -> list[dict]:
    """One answer to each prompt: {"response", "cut_off", "n_tokens", "tokens" with the end token, "is_open"}.

    temperature 0 takes the likeliest token; no top-k, no top-p. begun: the tokens that answers have already.
    It stops when no more than a share of `leave` is unfinished; these are open, and may go on as begun.
    log_probs: also "log_probs" of the new tokens, those of the model itself, as at temperature 1.
    """
    import torch
    from transformers import DynamicCache
    model, device = student.model.eval(), student.device
    generator = torch.Generator(device).manual_seed(seed)
    stop = torch.tensor(sorted(student.stop_ids), device=device)
    begun = begun or [[] for _ in prompts]
    room = torch.tensor([max_new_tokens - len(tokens) for tokens in begun], device=device)
    ids, mask = pad([a + b for a, b in zip(prompts, begun, strict=True)], device, side="left")  # (B, T) each
    rows = torch.arange(len(prompts), device=device)  # those still in the batch
    alive, n_new = torch.ones_like(rows, dtype=torch.bool), torch.zeros_like(rows)
    cache, new = DynamicCache(config=model.config), ids.new_zeros(len(prompts), int(room.max()))
    found = torch.zeros(new.shape if log_probs else (0, 0), device=device)
    for t in range(new.shape[1]):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1]:]
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, cache=cache,
                           logits_to_keep=1).logits[:, -1].float()  # (B, V)
        if temperature > 0:
            ids = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        else:
            ids = logits.argmax(-1, keepdim=True)
        new[rows, t] = ids[:, 0]
        if log_probs:
            found[rows, t] = logits.log_softmax(-1).gather(1, ids)[:, 0]
        n_new[rows[alive]] = t + 1
        alive &= ~torch.isin(ids[:, 0], stop) & (room[rows] > t + 1)
        if alive.sum() <= leave * len(prompts):
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        if alive.sum() <= 0.75 * len(alive):  # ours: not for every single row, because it copies the cache
            keep = alive.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            ids, mask, rows, alive = (x[keep] for x in (ids, mask, rows, alive))
    unfinished, outs = set(rows[alive].tolist()), []
    for i, (row, n) in enumerate(zip(new.tolist(), n_new.tolist(), strict=True)):
        tokens = begun[i] + row[:n]
        n_tokens = len(tokens) - (tokens[-1] in student.stop_ids)
        text = student.tokenizer.decode(tokens[:n_tokens], skip_special_tokens=True)
        outs.append({"response": text, "cut_off": n_tokens == len(tokens), "n_tokens": n_tokens,
                     "tokens": tokens, "is_open": i in unfinished})
        if log_probs:
            outs[-1]["log_probs"] = found[i, :n].tolist()
    return outs


def served(args, adapter: str | Path | None) -> Teacher:
    """The student behind --student-url, with an adapter that it loads by vLLM's own call.

    The server must see the adapter's folder; for vLLM: VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve
    --enable-lora --generation-config vllm.
    """
    name, kwargs = args.student, json.loads(args.chat_template_kwargs or "{}")
    if adapter:
        path = Path(adapter).absolute()
        weights = hashlib.sha256((path / "adapter_model.safetensors").read_bytes()).hexdigest()[:8]
        name = "-".join([*path.parts[-3:], weights])  # ours: so an adapter trained anew is not the old one
    extra = {"top_p": 1.0} | ({"chat_template_kwargs": kwargs} if kwargs else {})
    server = Teacher(name, args.student_url, Path(args.out, "student.sqlite"), args.concurrency,
                     timeout_s=args.teacher_timeout, seed=args.seed, max_none=0, needs_key=False, extra=extra,
                     of_student=True)
    if adapter:
        server.post("/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
    return server


def answer(args, run, name: str, student, rows: list[dict], question, temperature: float, n: int = 1) -> dict:
    """n answers to every question, by id: {"id", "sample", "response", "cut_off", "n_tokens", "run_on"}.

    student() loads the student, or gives what served() does, only if something is to be done;
    question(problem) is a chat. A batch ends when three quarters of its answers have ended; the others go on
    together in a next round (ours: because a few long answers would keep all others waiting). A question of
    the model's own is cut: "run_on".
    """
    problems = {row["id"]: row["problem"] for row in rows}
    order = sorted(problems, key=lambda i: (len(problems[i]), i))  # ours: for less padding
    items = [{"id": i, "sample": k, "tokens": []} for i in order for k in range(n)]
    stem = name.removesuffix(".jsonl")

    def make(part: str, leave: float, batch: list[dict]) -> list[dict]:
        prompts = [prompt_ids(student().tokenizer, question(problems[item["id"]])) for item in batch]
        seed = torch_seed(args.seed, part, batch[0]["id"], batch[0]["sample"])
        begun = [item["tokens"] for item in batch]
        outs = sample(student(), prompts, temperature, args.max_new_tokens, seed, begun, leave)
        return [item | without_run_on(out) for item, out in zip(batch, outs, strict=True)]

    def ask(server: Teacher) -> list[dict]:
        asked, first = [], torch_seed(args.seed, name)  # another step asks the same question anew
        for item in items:
            chat = question(problems[item["id"]])
            asked.append(Request(chat, temperature, args.max_new_tokens, first + item["sample"]))
        replies = server.ask(asked, name)  # none of them is None: see served
        outs = [{"response": one.text, "cut_off": one.is_cut, "n_tokens": one.n_out} for one in replies]
        return [item | without_run_on(out) for item, out in zip(items, outs, strict=True)]

    def in_rounds() -> list[dict]:
        todo, made = items, {}
        for i in itertools.count():
            if not todo:
                return [made[item["id"], item["sample"]] for item in items]
            part, size = f"{stem}.round_{i}.jsonl", args.sample_batch
            leave = 0.25 if len(todo) > size else 0.0
            batches = [todo[start:start + size] for start in range(0, len(todo), size)]
            rows = run.batches(part, batches, functools.partial(make, part, leave), "answer", quiet=True)
            made |= {(row["id"], row["sample"]): row for row in rows}
            todo = [row for row in rows if row["is_open"]]

    def work():
        rows = ask(student()) if getattr(args, "student_url", None) else in_rounds()
        kept = ("id", "sample", "response", "cut_off", "n_tokens", "run_on")
        return [{key: row[key] for key in kept} for row in rows]
    found = {i: [] for i in problems}
    for out in run.step(name, work):
        found[out["id"]].append(out)
    for part in run.path.glob(f"{stem}.round_*"):
        part.unlink()
    if n_run_on := sum(out["run_on"] for outs in found.values() for out in outs):
        print(f"  {n_run_on} of {len(items)} answers went on to a question of the model's own; cut there")
    return found


# --- Run: one directory per run; a file that is there is whole, and a rerun goes on after it. --------------
def lock(path: str | Path, timeout_s: float):
    """The lock on file `path`, held until its release() or the end of the process, even by kill -9.

    TimeoutError: another process holds it. A file system without locks is said, and gone on with.
    """
    import filelock
    held = filelock.FileLock(path, fallback_to_soft=False)  # a soft lock would outlive kill -9
    try:
        held.acquire(timeout=timeout_s)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise
        print(f"{path}: this file system has no locks, so start no second process there", flush=True)
    return held


def open_run(args, out: str | Path, how: tuple[str, ...] = ()) -> "Run":
    """Directory `out`, new or from an earlier start with the same `args`, kept for this process alone.

    how: fields that only say how to run (address, price, micro-batch) and may change, as "out" may.
    """
    path, run = Path(out), None
    path.mkdir(parents=True, exist_ok=True)
    there = {p.name for p in path.iterdir()} - {".lock", "args.json.tmp"}  # a run killed at its very start
    if there and "args.json" not in there:
        raise UserError(f"{path}: expected a run's directory, found other files; choose another --out")
    with contextlib.suppress(TimeoutError):
        run = Run(path, lock(path / ".lock", timeout_s=0))
    if run is None:
        gc.collect()  # a run that failed in this very process, as in a notebook, may hold it
        try:
            run = Run(path, lock(path / ".lock", timeout_s=0))
        except TimeoutError:
            raise UserError(f"{path}: another process runs in this directory; choose another --out") from None
    new = json.loads(hide_secrets(json.dumps(dataclasses.asdict(args), default=str)))  # as args.json has it
    old = run.read("args.json") if "args.json" in there else new
    changed = []
    for name in sorted({*old, *new} - {"out", *how}):
        if old.get(name) != new.get(name):
            changed.append(f"{name} was {json.dumps(old.get(name))}, is {json.dumps(new.get(name))}")
    if changed:
        run.lock.release()
        raise UserError(f"{path}: it was made with other arguments ({'; '.join(changed)}); "
                        "give the old ones or choose another --out")
    run.write("args.json", new)
    with open(path / "metrics.jsonl", "ab+") as f:
        f.seek(0)
        f.truncate(f.read().rfind(b"\n") + 1)  # a line that a kill or a full disk has torn
    earlier = run.read("env.json") if "env.json" in there else []
    run.write("env.json", [*earlier, environment()])
    return run


def environment() -> dict:
    def output(*command):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            quiet = {"stderr": subprocess.DEVNULL, "text": True, "cwd": Path(__file__).parent}
            return subprocess.check_output(command, **quiet).strip()

    packages = ("torch", "transformers", "peft", "bitsandbytes", "openai", "math-verify")
    found = {d.name: d.version for d in importlib.metadata.distributions()}
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "argv": [hide_secrets(word) for word in sys.argv],
        "python": platform.python_version(),
        "commit": output("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
        "gpu": output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "cpu",
        "packages": {name: found.get(name) for name in packages},
    }


class Run(NamedTuple):
    path: Path
    lock: object

    def read(self, name: str):
        """What a .json file holds, or the rows of a .jsonl file."""
        try:
            text = (self.path / name).read_bytes()
            if name.endswith(".jsonl"):
                return [json.loads(line) for line in text.splitlines()]
            return json.loads(text)
        except ValueError as error:
            raise UserError(f"{self.path / name}: expected JSON, but: {error}; delete it") from None

    def write(self, name: str, value) -> None:
        """Rows (name.jsonl) or any JSON (name.json), whole or not at all."""
        if name.endswith(".jsonl"):
            text = "".join(json.dumps(row) + "\n" for row in value)  # ASCII: half a surrogate may be in it
        else:
            text = json.dumps(value, indent=1) + "\n"
        with open(self.path / f"{name}.tmp", "wb") as f:
            append(f, text)
        os.replace(f.name, self.path / name)

    def log(self, **values) -> None:
        """Append a line to metrics.jsonl. A step that is done again logs again: the later line counts."""
        with open(self.path / "metrics.jsonl", "ab") as f:
            row = {"time": round(time.time(), 2), **values}
            append(f, json.dumps(row, default=float) + "\n")  # float: torch's scalars

    def step(self, name: str, make, quiet: bool = False):
        """What file `name` holds, as JSON gives it back. If there is none, make() is written first."""
        started, there = time.monotonic(), (self.path / name).exists()
        if not there:
            self.write(name, make())
            self.log(step=name, seconds=round(time.monotonic() - started, 2))
        value = self.read(name)
        rows = f"{len(value):,} rows, " if isinstance(value, list) else ""
        took = "there already" if there else f"{time.monotonic() - started:.1f} s, peak {peak_gib()} GiB"
        if not quiet:
            print(f"{name}: {rows}{took}", flush=True)
        return value

    def batches(self, name: str, batches: list, make, unit="question", desc="", quiet=False) -> list[dict]:
        """A long step: make(batch) gives a row for each item, in order, with its "id". A kill costs a batch.

        Rows of an earlier start that belong to other items are refused, not thrown away: they cost much.
        """
        part = self.path / f"{name}.part"

        def work():
            kept = part.read_bytes().splitlines(keepends=True) if part.exists() else []
            if kept and not kept[-1].endswith(b"\n"):
                kept.pop()  # torn by a kill
            rows, n_made, started = [], 0, time.monotonic()
            bar = tqdm(total=sum(map(len, batches)), unit=unit, desc=desc or name)
            with open(part, "ab") as f, bar:
                for n_seen, batch in enumerate(batches, 1):
                    lines = kept[len(rows):len(rows) + len(batch)]
                    is_kept = len(lines) == len(batch)
                    if is_kept:
                        new = [json.loads(line) for line in lines]
                    else:
                        if n_made == 0:
                            f.truncate(sum(map(len, kept[:len(rows)])))  # a batch that a kill cut off
                        new = make(batch)
                    if [row["id"] for row in new] != [item["id"] for item in batch]:
                        source = part if is_kept else "make()"
                        raise UserError(f"{name}: {source} holds rows of other items than this step has now; "
                                        f"move {part.name} away to make it anew")
                    if not is_kept:
                        append(f, "".join(json.dumps(row) + "\n" for row in new))
                        n_made += 1
                        say_left(name, started, n_made, len(batches) - n_seen)
                    rows += new
                    bar.update(len(batch))
            return rows

        rows = self.step(name, work, quiet)
        part.unlink(missing_ok=True)
        return rows


def append(f, text: str | bytes) -> None:
    f.write(text.encode() if isinstance(text, str) else text)
    f.flush()
    os.fsync(f.fileno())


def save(states: dict, path: Path) -> None:
    """A training's checkpoint, whole or not at all."""
    import torch
    box = io.BytesIO()  # because on a full disk torch itself fails without a word of it
    torch.save(states, box)
    path.parent.mkdir(exist_ok=True)
    with open(path.with_suffix(".tmp"), "wb") as f:
        append(f, box.getvalue())
    os.replace(f.name, path)


def say_left(name: str, started: float, n_done: int, n_left: int) -> None:
    """One line, when the first three batches of a long step have shown how long one takes."""
    hours = (time.monotonic() - started) / n_done * n_left / 3600
    if n_done == 3 and hours > 0.05:
        print(f"{name}: about {hours:.1f} hours left, peak so far {peak_gib()} GiB", flush=True)


def peak_gib() -> float:
    """Peak memory so far: the GPU's where torch uses one, else this process's."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    if sys.platform == "win32":
        return math.nan
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**30 if sys.platform == "darwin" else 2**20), 2)


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


# --- Command line. ------------------------------------------------------------------------------------------
def check_args(args, **tops: float) -> None:
    """Refuses whole numbers below 1 (but the seed), empty lists, repeated names, fields outside [0, top]."""
    for field in dataclasses.fields(args):
        value, flag = getattr(args, field.name), "--" + field.name.replace("_", "-")
        if field.name in tops and not 0 <= value <= tops[field.name]:
            raise UserError(f"{flag}: expected a number from 0 to {tops[field.name]}, came {value}")
        if type(value) is int and field.name != "seed" and value < 1:
            raise UserError(f"{flag}: expected at least 1, came {value}")
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise UserError(f"{flag}: expected each name once, came {' '.join(map(str, value))}")
        if value == () and field.default != ():
            raise UserError(f"{flag}: expected at least one value, came none")


def cli(main, Args, description: str) -> None:
    """Call main(Args from the command line). What a user can mend ends in one sentence and exit code 2."""
    import tyro
    box, told = io.StringIO(), io.StringIO()
    is_help = {"-h", "--help"} & set(sys.argv)
    if hasattr(sys.stdout, "reconfigure"):  # a terminal may lack letters of a path or a question
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with contextlib.redirect_stderr(box), contextlib.redirect_stdout(told if is_help else sys.stdout):
            # a space before each line, or tyro joins them
            args = tyro.cli(Args, description=description.replace("\n", "\n "))
    except SystemExit as stop:
        if text := told.getvalue():
            print(grouped(text, Args), end="")
        if stop.code:  # tyro drew a box: title, message, rule, similar flags
            lines = [line.strip("╭│╰─╮╯ ") for line in box.getvalue().splitlines()]
            message = " ".join(itertools.takewhile(bool, lines[1:]))
            similar = [line.split()[0] for line in lines if line.startswith("--")]
            hint = f"is it {similar[0]}? " if similar and "Unrecognized" in message else ""
            print(f"error: {message}; {hint}see --help", file=sys.stderr)
        raise
    try:
        main(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # as with `| head`: what it prints is wanted no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if (sentence := what_to_mend(error, args)) is None:
            sys.excepthook = lambda *bug: print(hide_secrets("".join(traceback.format_exception(*bug))),
                                                end="", file=sys.stderr)
            raise
        print(f"error: {hide_secrets(sentence)}", file=sys.stderr)
        sys.exit(2)


def grouped(text: str, Args) -> str:
    """tyro's --help with the names of groups: comments such as "# Model:" above the first of their fields."""
    above, source = {}, "".join(map(inspect.getsource, Args.__mro__[:-1]))
    for name, field in re.findall(r"^ +# (\w+):\n +(\w+):", source, re.MULTILINE):
        above[field.rstrip("_").replace("_", "-")] = name

    def heading(line: re.Match) -> str:
        name = above.get(line[1])
        return f"\n{name}\n{line[0]}" if name else line[0]
    return re.sub(r"^  --([\w-]+).*$", heading, text, flags=re.MULTILINE)


def what_to_mend(error: Exception, args) -> str | None:
    """What the user is told of an error; None if it is a bug."""
    if isinstance(error, UserError):
        return str(error)
    full = r"out of memory|ALLOC_FAILED|can't allocate memory"  # of CUDA, cuBLAS, the CPU
    if isinstance(error, MemoryError) or re.search(full, str(error)):
        sizes = {key: size for key, size in vars(args).items() if key.endswith("_batch") and size > 1}
        halves = [f"--{key.replace('_', '-')} {size // 2} (now {size})" for key, size in sizes.items()]
        return f"the memory is full; the same command goes on with {' or '.join(halves) or 'a smaller model'}"
    disk = re.search(r"([^:]*) \(os error \d+\)", str(error))  # of safetensors and tokenizers
    if isinstance(error, OSError) or disk:
        what = disk[1].strip() if disk else error.strerror or str(error).strip().split("\n")[0]
        is_full = disk or error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO)
        if where := getattr(error, "filename", None) or is_full and vars(args).get("out"):
            what = f"{where}: {what}"
        return f"{what}; mend that or choose another --out, then run the same command again"
    if type(error).__module__.split(".")[0] in ("httpx2", "huggingface_hub"):
        return f"the network failed ({type(error).__name__}: {error}); run the same command again later"
    return None
