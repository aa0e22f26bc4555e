"""Teacher calls/s of common.Teacher beside bare `openai` clients, and the time to read 100,000 cached replies.

The server, a process of its own, waits --ms and answers; n calls at once can do n / wait calls a second at most, up to
what a client can do at all, which the rows without a wait show.

    python benchmarks/teacher.py
"""
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import record  # noqa: E402

REPLY = json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "usage": {
    "prompt_tokens": 300, "completion_tokens": 100, "total_tokens": 400}, "choices": [
    {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "A reply of a teacher. " * 20}}]}).encode()


async def serve(wait_s: float) -> None:
    """Prints its port, then answers every request after a wait."""
    async def answer(reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
                await reader.readexactly(size)
                await asyncio.sleep(wait_s)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(REPLY) + REPLY)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def chats(n: int) -> list[list[dict]]:
    return [[{"role": "user", "content": f"Question {i}. " + "Name the skills that this problem needs. " * 20}] for i in range(n)]


def use_teacher(url: str, at_once: int, n: int) -> float:
    import common
    teacher = common.Teacher("m", url, Path(record.scratch(), "teacher.sqlite"), at_once)
    requests, started = [common.Request(chat) for chat in chats(n)], time.time()
    assert None not in teacher.ask(requests)
    return time.time() - started


def use_openai(url: str, at_once: int, n: int) -> float:
    import openai

    async def ask_all():
        gate = asyncio.Semaphore(at_once)
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            async def one(chat):
                async with gate:
                    return await client.chat.completions.create(model="m", messages=chat, max_tokens=1024)
            started = time.time()
            await asyncio.gather(*map(one, chats(n)))
            return time.time() - started
    return asyncio.run(ask_all())


def cached(n: int) -> dict:
    """Seconds to open a cache of n replies, and to read all of them without a call."""
    import common
    path, requests = Path(record.scratch(), "teacher.sqlite"), [common.Request(chat) for chat in chats(n)]
    with server(0) as url:
        filled = common.Teacher("m", url, path)
        filled.ask(requests[:1])
        where, _, row = filled.db.execute("SELECT server, key, row FROM replies").fetchone()
        with filled.db:
            filled.db.executemany("INSERT INTO replies VALUES (?, ?, ?)", ((where, filled._keys(one)[0], row) for one in requests[1:]))
        started = time.time()
        teacher = common.Teacher("m", url, path)
        opened = time.time()
        assert None not in teacher.ask(requests) and teacher.paid["calls"] == 0
    return {"open_s": round(opened - started, 3), "read_s": round(time.time() - opened, 2), "mib": round(path.stat().st_size / 2**20)}


@contextlib.contextmanager
def server(ms: float):
    process = subprocess.Popen([sys.executable, __file__, "--serve", str(ms)], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()


def main() -> None:
    parser = record.parser(__doc__, "teacher", contenders=False)
    parser.add_argument("--serve", type=float, metavar="MS", help="be the server, with this wait")
    parser.add_argument("--ms", type=float, nargs="*", default=[0, 50, 500])
    parser.add_argument("--at-once", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=8, help="that the calls take at the most possible rate")
    parser.add_argument("--cached", type=int, default=100_000)
    args = parser.parse_args()
    if args.serve is not None:
        asyncio.run(serve(args.serve / 1000))
    found = {}
    for ms in args.ms:
        for at_once in args.at_once:
            n = max(16, 400 if ms == 0 else min(2000, round(at_once * 1000 * args.seconds / ms)))
            row = {"calls": n, "most": round(at_once / (ms / 1000), 1) if ms else None}
            for who, use in (("Teacher.ask", use_teacher), ("openai", use_openai)):
                with server(ms) as url:
                    row[who] = round(n / use(url, at_once, n), 1)
            found[f"{ms:g} ms, {at_once} at once"] = row
            print(f"{ms:g} ms, {at_once} at once: {row} calls/s", flush=True)
    found[f"{args.cached} cached"] = cached(args.cached)
    print(found[f"{args.cached} cached"])
    record.save(args, found)


if __name__ == "__main__":
    sys.exit(main())
