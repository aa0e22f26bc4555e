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
import sqlite3
import subprocess
import sys
import threading
import time
import unicodedata
import urllib.parse
from collections import Counter, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import filelock
from tqdm import tqdm


class UserError(Exception):
    """What the user can mend, in one sentence: where, what was expected, what came, what to do. The command line prints it and exits with 2."""


# --- Teacher: cached, capped calls to any OpenAI-compatible chat server. ---
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


OPENAI = "https://api.openai.com/v1"
LAX = re.DOTALL | re.IGNORECASE
THOUGHT = "|".join((  # how thoughts begin that a server leaves in the text
    r"<(?:\w+:)?(?:think|thinking|thoughts?)>|[\[◁]think[\]▷]",  # <think>Perhaps 5?</think> It is 4.
    r"<\|channel\|?>(?:analysis|commentary|thought)|<\|START_THINKING\|>",  # <|channel|>analysis<|message|>5?
))
THOUGHT_END = "|".join((
    r"</(?:\w+:)?(?:think|thinking|thoughts?)>|[\[◁]/think[\]▷]",
    r"<\|channel\|>final<\|message\|>|<channel\|>|<\|END_THINKING\|>",
    r"assistantfinal",  # its marks are lost: analysisPerhaps 5?assistantfinalIt is 4.
))
END_OF_TURN = r"<[|｜][^<>|｜]*(?:end|eot|eom|return)[^<>|｜]*[|｜]>|<end_of_turn>|<eos>|</s>"  # 4<|im_end|>
PROMPTS_FAULT = "|".join((  # a server's words for a prompt that is too long or offends
    r"context.{0,20}(?:length|size|window|limit)",  # This model's maximum context length is 4096 tokens
    r"too (?:long|large|many)|reduce the ",  # prompt is too long: 5000 tokens > 4096 maximum
    r"tokens?\b.{0,40}(?:<=|>|exceed|limit|maximum)",  # `inputs` tokens + `max_new_tokens` must be <= 4096
    r"(?:exceed|longer|maximum|limit|at most).{0,60}(?:token|length|prompt|input)",
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
    return re.sub(r"""://(?:[^\s"']*@)?([^\s"'?]*)(?:\?[^\s"']*)?""", r"://\1", text)


def read_completion(body: bytes) -> dict:
    """What is kept of a chat completion. ValueError if `body` is something else, status 200 or not."""
    try:
        data = json.loads(body)
        choice, usage = data["choices"][0], data.get("usage") or {}
        message, finish = choice["message"], str(choice.get("finish_reason"))
        text, refusal = message.get("content") or "", message.get("refusal")
        if not isinstance(text, str):  # a list of parts; a part that thinks aloud has no text
            text = "".join(part.get("text") or "" for part in text)
        if re.search("error|abort", finish):
            raise ValueError(finish)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError("not a chat completion: " + body[:200].decode(errors="replace")) from None
    refused = refusal or re.search("filter|safety|refus|sensitive|prohibit", finish)
    return {"text": text or str(refusal or ""), "finish": finish, "none": "refused" if refused else None,
            "n_in": usage.get("prompt_tokens"), "n_out": usage.get("completion_tokens")}


def read_row(row: dict) -> tuple[Reply, str | None]:
    """A reply of the cache without thoughts and end of turn, and why it is of no use."""
    bare = re.sub(f"(?:{THOUGHT}).*?(?:{THOUGHT_END})", "", row["text"], flags=LAX)
    bare = re.sub(f"^.*(?:{THOUGHT_END})", "", bare, flags=LAX)  # a thought that began in the prompt
    is_cut = re.search("length|max|limit", row["finish"] or "", LAX) or re.search(THOUGHT, bare, LAX)
    is_full = row["n_out"] >= row["max_tokens"] and not row["estimated"]
    bare = re.split(END_OF_TURN, bare, maxsplit=1, flags=LAX)[0]
    none = "cut off" if is_cut or is_full else None if bare.strip() else "empty"
    text = bare if bare == row["text"] else bare.strip()
    return Reply(text, row["n_in"], row["n_out"], row["estimated"]), row["none"] or none


class Teacher:
    """Asks `model`; each reply goes into the SQLite file `cache` as it comes and is never paid for again.

    base_url: e.g. http://localhost:8000/v1 (vLLM, llama.cpp, Ollama); None = OPENAI_BASE_URL, or OpenAI.
    max_usd: caps what the file records, calls in flight at their worst; a bill for a lost reply is unknown.
    timeout_s: of a call with all its tries. max_none: share of an ask that may be None; one always may.
    totals[step]: calls with n_in, n_out, usd; cached, cached_in, cached_out; None by reason.
    """

    max_lost_in_row = 20  # then the server is given up

    def __init__(self, model: str, base_url: str | None = None, cache: str | Path = "teacher.sqlite",
                 concurrency: int = 16, max_usd: float | None = None, usd_per_m_in: float | None = None,
                 usd_per_m_out: float | None = None, timeout_s: float = 600.0, tries: int = 20, seed: int = 0,
                 max_none: float = 0.05, write: bool = True, needs_key: bool = True):
        self.model, self.concurrency, self.max_usd, self.timeout_s = model, concurrency, max_usd, timeout_s
        self.tries, self.seed, self.max_none, prices = tries, seed, max_none, (usd_per_m_in, usd_per_m_out)
        address = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
        self.base_url, _, query = address.partition("?")
        self.query, self.url = dict(urllib.parse.parse_qsl(query)), hide_secrets(address).rstrip("/")
        self.name = f"teacher {model} at {self.url}"
        self.is_local = bool(re.match(r"https?://(localhost|127\.[\d.]+|\[::1\])(:|/|$)", self.url))
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        self.api_key = key or ("" if self.url == OPENAI else "no-key")
        is_open = key and self.url.startswith("http:") and not self.is_local and not base_url
        self.prices = None if None in prices else prices
        for wrong, sentence in (
            (not re.match(r"https?://([\w.-]+|\[[\da-fA-F:]+\])(:[1-6]?\d{1,4})?(/|$)", self.url),
             f"--teacher-url must be like http://localhost:8000/v1, not {self.url.rpartition('@')[2]!r}"),
            (needs_key and not self.api_key, "OPENAI_API_KEY is not set: export it, or give --teacher-url"),
            (not (key.isascii() and key.isprintable()), "OPENAI_API_KEY holds odd characters: copy it again"),
            (needs_key and is_open, f"OPENAI_BASE_URL {self.url} gets OPENAI_API_KEY over plain http only if "
                                    "--teacher-url names it too; give that, or take https"),
            (timeout_s <= 0, f"--teacher-timeout must be above zero, not {timeout_s}"),
            (min(self.prices or (0,)) < 0, f"a price is below zero: {prices}"),
            (not self.prices and {max_usd, *prices} != {None},
             "--max-usd needs --usd-per-m-in and --usd-per-m-out, both"),
        ):
            if wrong:
                raise UserError(f"teacher: {sentence}")
        # What the server refused of our fields: another name, a lowest value, or None for left out.
        self.learnt = {"max_tokens": "max_completion_tokens"} if self.url == OPENAI else {}
        self.is_swapped, self.stopped, self.spent, self.problem = False, False, 0.0, ""
        self.totals = defaultdict(lambda: Counter(calls=0, cached=0, n_in=0, n_out=0, usd=0.0))
        self._open(Path(cache), write)

    def plan(self, steps: dict[str, list[Request]], show: bool = False) -> int:
        """Print what `steps` cost at most; show: and each step's first prompt. Returns how many calls."""
        print(f"{self.name}: at most this (tokens in: a guess; tokens out: the limit)\n"
              f"{'step':<24}{'calls':>9}{'cached':>9}{'tokens in':>14}{'tokens out':>14}{'usd':>14}")
        for step, requests in [*steps.items(), ("total", list(itertools.chain(*steps.values())))]:
            todo = self._split(requests)[1].values()
            n_in, n_out = sum(estimate_tokens(r.messages) for r in todo), sum(r.max_tokens for r in todo)
            usd = f"{self._usd(n_in, n_out):,.4f}" if self.prices else "no price"
            print(f"{step:<24}{len(todo):>9,}{len(requests) - len(todo):>9,}{n_in:>14,}{n_out:>14,}{usd:>14}")
        if self.max_usd is not None:
            print(f"cap: ${self.max_usd:g}, of which ${self.spent_usd:.4f} is spent according to {self.path}")
        for step, requests in steps.items() if show else ():
            for message in requests[0].messages if requests else ():
                print(f"--- {step}: {message['role']} ---\n{message['content']}")
        return len(todo)

    def check(self) -> None:
        """One short call, kept nowhere: a wrong key or a dead server shows now, not after hours."""
        if self._send({"": Request([{"role": "user", "content": "Say yes."}], max_tokens=16)}, None, 1):
            raise UserError(f"{self.name}: a first short call failed ({self.problem})")

    def ask(self, requests: list[Request], step: str = "", max_none: float | None = None
            ) -> list[Reply | None]:
        """The replies, in order; None where one is cut off, empty, refused, refused by server, or lost.

        More None than max_none allows end the run; a rerun asks only for what is missing.
        """
        start, total, before = time.monotonic(), self.totals[step], self.totals[step].copy()
        limit, missing, self.problem = self.max_none if max_none is None else max_none, {}, ""
        allowed, (known, todo) = max(1, int(limit * len(requests))), self._split(requests)
        if todo:
            with self._alone():
                known, todo = self._split(requests)  # another process may have asked meanwhile
                n_useless = sum(none is not None for _, none in known.values())
                missing = self._send(todo, step, allowed - n_useless + 1)
        total["cached"] += len(requests) - len(todo)
        for reply, _ in known.values():
            total.update(cached_in=reply.n_in, cached_out=reply.n_out)
        known, _ = self._split(requests)
        found = [known.get(key) or (None, missing.get(key, "not asked")) for key in map(self._key, requests)]
        nones = Counter(none for _, none in found if none)
        total.update(nones)
        new, told = total - before, ", ".join(f"{n} {none}" for none, n in nones.items()) or "0"
        usd, step = f"${new['usd']:.4f}, " if self.prices else "", step or "teacher"
        print(f"{step}: {new['calls']:,} calls, {new['cached']:,} cached, {new['n_in']:,} tokens in, "
              f"{new['n_out']:,} out, {usd}None: {told}, {time.monotonic() - start:.1f} s", flush=True)
        if nones["not asked"] or nones.total() > allowed or 0 < len(requests) == nones["lost"]:
            for key, (_, none) in known.items():  # ours: a rerun asks again, since another draw may be of use
                if none in ("empty", "refused"):
                    self._sql("UPDATE replies SET key = NULL WHERE server = ? AND key = ?", self.url, key)
            raise UserError(
                f"{step}: of {len(requests)} teacher replies {told} ({self.problem or 'see above'}); "
                f"--teacher-max-none {limit:g} allows {allowed}; if cut off raise --teacher-max-tokens, "
                f"if lost --teacher-timeout, or lower --concurrency; {self.path} keeps the others, and the "
                "same command asks only for what is missing")
        return [None if none else reply for reply, none in found]

    def _send(self, todo: dict[str, Request], step: str | None, enough: int) -> dict[str, str]:
        """Asks for `todo` until `enough` came to nothing; key -> why, for those."""
        self._sql("DELETE FROM replies WHERE rowid < 0")  # what cannot be written shows before a call is paid
        self.stopped, self.spent = False, self.spent_usd
        with ThreadPoolExecutor(1) as pool:  # because a notebook's event loop runs in this thread
            try:
                return pool.submit(asyncio.run, self._work(todo, step, enough)).result()
            finally:
                self.stopped = True  # after Ctrl-C nothing more is sent

    async def _work(self, todo: dict[str, Request], step: str | None, enough: int) -> dict[str, str]:
        import openai  # a second, so only where it is needed

        queue, missing, in_flight, lost_in_row = deque(todo.items()), {}, [], 0
        try:  # a client for each event loop; it tries again after 408, 409, 429, 5xx and broken connections
            http = openai.DefaultAsyncHttpxClient(timeout=self.timeout_s, trust_env=not self.is_local)
            client = openai.AsyncOpenAI(
                api_key=self.api_key, base_url=self.base_url, default_query=self.query, http_client=http,
                timeout=self.timeout_s, max_retries=2 if step is None else self.tries - 1)
        except (ImportError, ValueError) as error:
            raise UserError(f"{self.name}: the proxy in ALL_PROXY or HTTP(S)_PROXY cannot be used "
                            f"({hide_secrets(str(error))}); unset it, or name the host in NO_PROXY") from None

        async def worker() -> None:
            nonlocal lost_in_row
            while queue and not self.stopped and len(missing) < enough and lost_in_row < self.max_lost_in_row:
                key, request = queue[0]
                worst = self._usd(estimate_tokens(request.messages), request.max_tokens)
                if self.max_usd is not None and self.spent + sum(in_flight) + worst > self.max_usd:
                    if not in_flight:
                        raise UserError(f"teacher: ${self.spent:.4f} of --max-usd ${self.max_usd:g} is spent "
                                        f"and the next call may cost ${worst:.4f}; {self.path} keeps all: "
                                        "the same command with a higher --max-usd goes on")
                    await asyncio.sleep(0.02)
                    continue
                queue.popleft()
                in_flight.append(worst)
                none = await self._call(client, key, request, step)
                missing.update({key: none} if none else {})
                lost_in_row = lost_in_row + 1 if none == "lost" else 0
                in_flight.remove(worst)
                bar.update()

        with tqdm(desc=step or "teacher", unit="call", total=len(todo), disable=step is None) as bar:
            async with client:
                workers = asyncio.gather(*(worker() for _ in range(min(self.concurrency, len(todo)))))
                while not workers.done() and not self.stopped:
                    await asyncio.wait([workers], timeout=0.5)
                self.stopped = True  # where one worker has failed the others send nothing more
                await asyncio.wait([workers], timeout=2)  # after Ctrl-C, since what is in flight is paid
                if workers.done():
                    workers.result()  # raises what ended a worker
        return missing

    async def _call(self, client, key: str, request: Request, step: str | None) -> str | None:
        """Ask until the reply is in the cache. Returns why it is None, or "lost", "refused by server"."""
        import openai

        n_garbage, text = 0, json.dumps(request.messages, ensure_ascii=False)
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a pair: \ud835
        try:
            async with asyncio.timeout(self.timeout_s):  # the client's own is per read: a drip outlives it
                while not self.stopped and n_garbage < self.tries:
                    fields = self._fields(key, request)
                    try:
                        raw = await client.chat.completions.with_raw_response.create(
                            model=self.model, messages=json.loads(text), extra_body=fields)
                        return self._save(key, request, step, read_completion(raw.content))
                    except openai.APIStatusError as error:
                        if none := self._refusal(error, fields, key, request):
                            return none
                    except ValueError as error:  # status 200, but no completion
                        self.problem, n_garbage = hide_secrets(str(error)), n_garbage + 1
                        await asyncio.sleep(min(0.25 * 2**n_garbage, 8))
        except TimeoutError:
            self.problem = (f"no reply within --teacher-timeout {self.timeout_s:g} s: raise that, or lower "
                            f"--concurrency {self.concurrency}")
        except openai.APIConnectionError as error:
            self.problem = hide_secrets(f"{type(error.__cause__).__name__}: {error.__cause__}")
        return "lost"

    def _fields(self, key: str, request: Request) -> dict:
        fields = {"temperature": request.temperature, "seed": int(key[:7] or "0", 16),
                  "max_tokens": request.max_tokens}
        for name, learnt in self.learnt.items():
            value = fields.pop(name)
            if learnt is not None:
                fields |= {learnt: value} if isinstance(learnt, str) else {name: max(value, learnt)}
        return fields

    def _refusal(self, error, fields: dict, key: str, request: Request) -> str | None:
        """What an HTTP error means: "refused by server", "lost", or None: ask again with other fields."""
        status, text = error.status_code, hide_secrets(" ".join(str(error.body or error).split()))
        text = text if status != 401 else "wrong key"  # a 401 likes to quote half of the key
        self.problem = f"HTTP {status}: {text[:200]}"
        of_prompt = re.search(PROMPTS_FAULT, re.sub(r"\bmax_\w*tokens\b", "", text), LAX)
        if status == 413 or status in (400, 403, 422, 451, 500) and of_prompt:
            return "refused by server"
        named = [name for name in fields if re.search(rf"\b{name}\b", text, LAX)]
        if status in (400, 422) and named:
            name = min(named, key=text.lower().find)
            other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}.get(name)
            if self._fields(key, request).get(name) != fields[name]:
                return None  # another call in flight has found out
            if other is None:
                is_above_zero = fields[name] == 0 and re.search(r"positive|greater|> ?0|\(0,", text, LAX)
                self.learnt[name] = 0.01 if is_above_zero else None
            elif not self.is_swapped and not re.search(r"\b(range|value|less)\b", text, LAX):
                self.learnt["max_tokens"], self.is_swapped = other, True  # kept, since --max-usd counts on it
            if self._fields(key, request).get(name) != fields[name]:
                print(f"{self.name}: {self.problem}; from here on {name} is changed or left out", flush=True)
                return None
        if "insufficient_quota" not in text and (status in (408, 409, 425, 429) or status >= 500):
            return "lost"
        raise UserError(f"{self.name}: the request is refused ({self.problem}); check OPENAI_API_KEY, "
                        f"credit, the model's name and --teacher-url (often .../v1); {self.path} keeps all")

    def _open(self, path: Path, write: bool) -> None:
        """The cache: a row per reply, the last one counts. An earlier teacher.jsonl is read in once."""
        self.path = path.with_suffix(".sqlite") if path.suffix == ".jsonl" else path
        old = path if path.name != "teacher.sqlite" else path.with_suffix(".jsonl")
        try:
            if write:
                path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path if write or self.path.exists() else ":memory:"
            self.db = sqlite3.connect(file, timeout=60, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"teacher: the cache {self.path} cannot be opened: {error}") from None
        self._sql("CREATE TABLE IF NOT EXISTS replies (server, key, row)")  # row: JSON
        if old.suffix == ".jsonl" and old.is_file() and not self._sql("PRAGMA user_version").fetchone()[0]:
            with open(old, encoding="utf-8", errors="replace") as lines:  # one that a kill tore is no JSON
                self._sql("INSERT INTO replies SELECT iif(json_extract(?1, '$.model') = ?2, ?3, ''), "
                          "json_extract(?1, '$.key'), ?1 WHERE json_valid(?1) AND "
                          "json_extract(?1, '$.n_in') >= 0",
                          many=((line, self.model, self.url) for line in lines))
            self._sql("PRAGMA user_version = 1")
        self._sql("CREATE INDEX IF NOT EXISTS draws ON replies (server, key)")
        own = "server = '' AND json_extract(row, '$.model') = ?"  # earlier keys lack the server: this is it
        if self._sql(f"SELECT 1 FROM replies WHERE {own} LIMIT 1", self.model).fetchone():
            self._sql(f"UPDATE replies SET server = ? WHERE {own}", self.url, self.model)

    def _sql(self, command: str, *values, many=None) -> sqlite3.Cursor:
        try:
            with self.db:  # commits
                return self.db.executemany(command, many) if many else self.db.execute(command, values)
        except sqlite3.Error as error:
            raise UserError(f"teacher: the cache {self.path} cannot be used: {error}; make room, or name "
                            "another by --cache") from None

    @contextlib.contextmanager
    def _alone(self):
        """While this process asks no other does by the same cache; kill -9 frees the lock."""
        lock = filelock.FileLock(f"{self.path}.lock", fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            print(f"{self.path}: another process asks by it; waiting for that to end", flush=True)
            lock.acquire()
        except (OSError, NotImplementedError) as error:
            print(f"{self.path}: no locks there ({error}); let no second process ask by it", flush=True)
        try:
            yield
        finally:
            lock.release()

    def _key(self, request: Request, seed: int | None = None) -> str:
        """Hash of what moves the draw, the server apart; max_tokens only says where it is cut off."""
        seed = seed if seed is not None else self.seed if request.temperature else 0
        drawn_from = [self.model, request.messages, float(request.temperature), seed, request.sample]
        return hashlib.sha256(json.dumps(drawn_from, sort_keys=True).encode()).hexdigest()[:32]

    def _split(self, requests: list[Request]) -> tuple[dict, dict[str, Request]]:
        """What the cache knows, key -> (reply, why it is None), and what must be sent, key -> request."""
        known, todo = {}, {}
        for request in sorted(requests, key=lambda r: r.max_tokens):  # of duplicates the longest stays
            key, earlier = self._key(request), self._key(request, self.seed)  # once with the seed at T = 0
            row = self._sql("SELECT row FROM replies WHERE server = ? AND key IN (?, ?) ORDER BY rowid DESC "
                            "LIMIT 1", self.url, key, earlier).fetchone()
            row = json.loads(row[0]) if row else {"max_tokens": 0}
            known[key] = read_row(row) if "text" in row else (None, "cut off")
            if known[key][1] == "cut off" and request.max_tokens > row["max_tokens"]:
                todo[key] = request
        return {key: known[key] for key in known.keys() - todo.keys()}, todo

    def _save(self, key: str, request: Request, step: str | None, row: dict) -> str | None:
        if step is None:  # it was check()
            return None
        estimated = not all(isinstance(row[n], int) and row[n] > 0 for n in ("n_in", "n_out"))
        if estimated:
            row |= {"n_in": estimate_tokens(request.messages), "n_out": estimate_tokens(row["text"])}
        usd = self._usd(row["n_in"], row["n_out"]) if self.prices else None
        row |= {"model": self.model, "step": step, "max_tokens": request.max_tokens, "estimated": estimated,
                "usd": usd}  # None counts at the prices of whoever reads it
        self._sql("INSERT INTO replies VALUES (?, ?, ?)", self.url, key, json.dumps(row))
        self.spent += usd or 0.0
        self.totals[step].update(calls=1, n_in=row["n_in"], n_out=row["n_out"], usd=usd or 0.0)
        return read_row(row)[1]

    def _usd(self, n_in: int, n_out: int) -> float:
        return (n_in * self.prices[0] + n_out * self.prices[1]) / 1e6 if self.prices else 0.0

    @property
    def recorded(self) -> dict[str, Counter]:
        """What was paid for in the file's whole life, by step."""
        found = defaultdict(Counter)
        names = ", ".join(f"json_extract(row, '$.{name}')" for name in ("step", "n_in", "n_out", "usd"))
        for step, n_in, n_out, usd in self._sql(f"SELECT {names} FROM replies"):
            usd = self._usd(n_in, n_out) if usd is None else usd
            found[step].update(calls=1, n_in=n_in, n_out=n_out, usd=usd)
        return found

    @property
    def spent_usd(self) -> float:
        return sum(total["usd"] for total in self.recorded.values())


def read_tags(reply: str, tag: str) -> list[str]:
    """The text of each <tag>...</tag>, from its innermost <tag> on.

    >>> read_tags("The <skill> tag: <skill> factoring </skill>", "skill")
    ['factoring']
    """
    return [text.strip() for text in re.findall(rf"<{tag}>((?:(?!<{tag}>).)*?)</{tag}>", reply, LAX)]


def read_tag(reply: str, tag: str) -> str | None:
    """The text of the last <tag>...</tag>; None if there is none."""
    return (read_tags(reply, tag) or [None])[-1]


def open_teacher(args, write: bool = True) -> Teacher:
    """The teacher that a method's flags name. write=False, for a plan: makes no file."""
    return Teacher(args.teacher, args.teacher_url, args.cache or Path(args.out, "teacher.sqlite"),
                   args.concurrency, args.max_usd, args.usd_per_m_in, args.usd_per_m_out, args.teacher_timeout,
                   seed=args.seed, max_none=args.teacher_max_none, write=write, needs_key=not args.plan)


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
    new = json.loads(hide_secrets(json.dumps(dataclasses.asdict(args), default=str)))  # as the file gives it back: Path -> str, tuple -> list
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
        "argv": [hide_secrets(word) for word in sys.argv],
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


if __name__ == "__main__" and sys.argv[1:] == ["--grade-worker"]:
    _grade_worker()
