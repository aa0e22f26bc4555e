"""A chat server on loopback that misbehaves on request: BadServer(script) with script(prompt, nth) -> what to do.

prompt: the last message's content; nth: how often this prompt has come, from 1. What to do: a name listed in
BadServer.reply, or (status, body as JSON). Where `script` takes three arguments, the third is the whole request.
"""

import json
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text, finish="stop", usage=True, **message):
    data = {"id": "x", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}]}  # fmt: skip
    return data | ({"usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}} if usage else {})


class BadServer:
    def __init__(self, script=lambda prompt, nth: "ok", delay_s=0.0):
        self.script, self.delay_s, self.lock, self.log, self.in_flight, self.most_in_flight = script, delay_s, threading.Lock(), [], 0, 0

    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

            def log_message(self, *_):
                pass

            def do_POST(self):
                outer.serve(self)

        class Server(ThreadingHTTPServer):
            request_queue_size, daemon_threads = 256, True

            def handle_error(self, request, client_address):  # clients that are killed or give up are part of the tests
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    @property
    def prompts(self):
        return [body["messages"][-1]["content"] for body in self.log]

    def serve(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self.lock:
            self.log.append(body | {"_time": time.monotonic(), "_key": handler.headers["Authorization"], "_path": handler.path})
            nth = Counter(self.prompts)[prompt]
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        time.sleep(self.delay_s)
        try:
            takes_body = self.script.__code__.co_argcount == 3
            self.reply(handler, self.script(prompt, nth, body) if takes_body else self.script(prompt, nth), prompt)
        finally:
            with self.lock:
                self.in_flight -= 1

    def reply(self, handler, name, prompt):
        good = completion("echo " + prompt)
        data = json.dumps(good).encode()
        if name in ("reset", "short", "drip", "hang"):
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            if name == "drip":
                for byte in data:
                    handler.wfile.write(bytes([byte]))
                    time.sleep(0.05)
            elif name == "hang":
                time.sleep(3)
            else:
                handler.wfile.write(data[: len(data) // 2])
                if name == "reset":  # linger 0: the close sends RST
                    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
            return handler.connection.close() if name == "reset" else None
        error = {"error": {"message": f"this is {name}", "type": "bad", "code": None}}
        status, headers, body = (name[0], {}, name[1]) if isinstance(name, tuple) else {
            "ok": (200, {}, good),
            "slow": (200, {}, good),
            "no usage": (200, {}, completion("echo " + prompt, usage=False)),
            "odd usage": (200, {}, good | {"usage": {"prompt_tokens": 10, "completion_tokens": "many"}}),
            "429": (429, {}, error),
            "429 after 1": (429, {"Retry-After": "1"}, error),
            "429 after 300 ms": (429, {"retry-after-ms": "300"}, error),
            "429 after 900": (429, {"Retry-After": "900"}, error),
            "quota": (429, {}, {"error": {"message": "You exceeded your current quota", "type": "x", "code": "insufficient_quota"}}),
            "401": (401, {}, {"error": {"message": "Wrong key: " + handler.headers["Authorization"][7:17] + "***"}}),
            "403": (403, {}, {"error": {"message": "no access for " + handler.headers["Authorization"]}}),
            "404": (404, {}, {"error": {"message": "The model does not exist", "code": "model_not_found"}}),
            "404 html": (404, {}, b"<html>\n<h1>Not Found</h1>\n</html>"),
            "400": (400, {}, {"error": {"message": "messages must alternate", "code": None}}),
            "too long": (400, {}, {"object": "error", "message": "This model's maximum context length is 4096 tokens.", "code": 400}),
            "too long llama.cpp": (400, {}, {"error": {"code": 400, "message": "exceeded", "type": "exceed_context_size_error"}}),
            "too long or rude": (400, {}, {"error": {"code": "content_filter", "message": "The prompt was filtered"}}),
            "too long by code": (400, {}, {"error": {"code": "context_length_exceeded", "message": "too many tokens"}}),
            "truncated": (200, {}, data[: len(data) // 2]),
            "nothing": (200, {}, b""),
            "html": (200, {}, b"<html>502 Bad Gateway</html>"),
            "list": (200, {}, [1]),
            "string": (200, {}, "hello"),
            "null": (200, {}, None),
            "latin1": (200, {}, b'{"choices": "\xe9"}'),
            "error with 200": (200, {}, error),
            "no choices": (200, {}, {"id": "x"}),
            "null choices": (200, {}, good | {"choices": None}),
            "empty choices": (200, {}, good | {"choices": []}),
            "null message": (200, {}, good | {"choices": [{"index": 0, "finish_reason": "stop", "message": None}]}),
            "number content": (200, {}, completion(5)),
            "abort": (200, {}, completion("half of", "abort")),
            "null content": (200, {}, completion(None)),
            "blank": (200, {}, completion(" \n")),
            "parts": (200, {}, completion([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "echo "},
                                           {"type": "text", "text": prompt}])),
            "refusal": (200, {}, completion(None, refusal="I can't help with that.")),
            "filter": (200, {}, completion("half of", "content_filter")),
            "length": (200, {}, completion("half of", "length")),
            "reasoning only": (200, {}, completion("", reasoning_content="Let me think")),
            "reasoning cut": (200, {}, completion(None, "length", reasoning_content="Let me thi")),
        }.get(name) or (int(name), {}, error)  # fmt: skip
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for header, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            handler.send_header(header, value)
        handler.end_headers()
        handler.wfile.write(body)
