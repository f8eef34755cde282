"""A teacher over HTTP for tests: a real server in a thread, which can be told to misbehave.

It speaks as vLLM does (token ids in and out, prompt_logprobs) with the scores of a model in this process, and as any
OpenAI server does (chat in, text and top_logprobs out).
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

Fault = tuple[int, dict[str, str]]
"""A status and headers to answer with."""


@dataclass
class TestTeacher:
    """What the server knows and has seen."""

    __test__ = False

    tokenizer: Any = None
    model: Any = None
    reply: Callable[[list[dict[str, Any]]], str] = lambda messages: f"Echo: {messages[-1]['content']}"
    fault: Callable[[int, dict[str, Any]], Fault | None] = lambda number, body: None
    """Of the n-th request (from 1) with this body; None: it is answered."""
    delay_seconds: float = 0.0
    seen: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of all requests."""
    times: list[float] = field(default_factory=list)
    """When each came, in seconds of the monotonic clock."""
    api_key: str = ""
    """What must be shown; empty: nobody is asked for one."""
    counts_tokens: Callable[[dict[str, Any], str], dict[str, int]] = lambda body, text: {
        "completion_tokens": max(1, len(text) // 4)
    }
    """The usage that it reports for a body and its answer."""
    most_at_once: int = 0
    url: str = ""
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _server: Any = None

    def __enter__(self) -> TestTeacher:
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if teacher.api_key and self.headers["Authorization"] != f"Bearer {teacher.api_key}":
                    self.answer(401, {}, {"error": {"message": "no such key"}})
                    return
                status, headers, value = teacher.handle(self.path, body)
                self.answer(status, headers, value)

            def do_GET(self) -> None:
                self.answer(200, {}, {"data": [{"id": "teacher"}]})

            def answer(self, status: int, headers: dict[str, str], value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(data)))
                with suppress(BrokenPipeError):  # whoever asked was stopped meanwhile
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def handle(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        with self._lock:
            self.seen.append(body)
            self.times.append(time.monotonic())
            number = len(self.seen)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if self.delay_seconds:
                threading.Event().wait(self.delay_seconds)
            fault = self.fault(number, body)
            if fault is not None:
                return fault[0], fault[1], {"error": {"message": f"told to say {fault[0]}"}}
            return 200, {}, self.chat(body) if path.endswith("/chat/completions") else self.completion(body)
        finally:
            with self._lock:
                self._at_once -= 1

    def prompts(self) -> Counter[str]:
        """How often each question was asked."""
        return Counter(body["messages"][-1]["content"] for body in self.seen if "messages" in body)

    def chat(self, body: dict[str, Any]) -> Any:
        text = self.reply(body["messages"])
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": self.openai_scores(body, text)}
        return {"choices": [choice], "usage": self.counts_tokens(body, text)}

    def completion(self, body: dict[str, Any]) -> Any:
        asked = body["prompt"]
        prompt = self.tokenizer.encode(asked) if isinstance(asked, str) else list(asked)
        if "prompt_logprobs" in body:
            rows = [None, *self.scores(prompt, body["prompt_logprobs"])]
            return {"choices": [{"text": "", "finish_reason": "length", "token_ids": [5], "prompt_logprobs": rows}]}
        ids = self.greedy(prompt, body["max_tokens"])
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        reason = "stop" if ids[-1] == self.tokenizer.eos_token_id else "length"
        return {"choices": [{"text": text, "finish_reason": reason, "token_ids": ids}]}

    @torch.no_grad()
    def greedy(self, prompt: list[int], limit: int) -> list[int]:
        ids = list(prompt)
        while len(ids) < len(prompt) + limit:
            ids.append(int(self.logits(ids)[-1].argmax()))
            if ids[-1] == self.tokenizer.eos_token_id:
                break
        return ids[len(prompt) :]

    def scores(self, ids: list[int], k: int) -> list[dict[str, Any]]:
        """As vLLM: for each token after the first, the K likeliest and the token itself."""
        logprobs = self.logits(ids).log_softmax(-1)
        rows = []
        for row, token in zip(logprobs[:-1], ids[1:], strict=True):
            best = {*row.topk(k).indices.tolist(), token}
            rows.append({str(each): {"logprob": float(row[each])} for each in best})
        return rows

    def openai_scores(self, body: dict[str, Any], text: str) -> list[dict[str, Any]]:
        prompt = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        logprobs = self.logits([*prompt, *ids]).log_softmax(-1)[len(prompt) - 1 : -1]
        return [
            self.said(token, row)
            | {"top_logprobs": [self.said(t, row) for t in row.topk(body["top_logprobs"]).indices]}
            for token, row in zip(ids, logprobs, strict=True)
        ]

    def said(self, token: Any, row: Any) -> dict[str, Any]:
        text = self.tokenizer.decode([int(token)])
        letter = self.tokenizer.convert_ids_to_tokens(int(token))
        octets = None if letter in self.tokenizer.all_special_tokens else [_OCTETS[each] for each in letter]
        return {"token": text, "bytes": octets, "logprob": float(row[int(token)])}

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Any:
        return self.model(torch.tensor([ids])).logits[0, :, : len(self.tokenizer)]


def _octets() -> dict[str, int]:
    plain = [o for o in range(256) if 33 <= o <= 126 or 161 <= o <= 172 or o >= 174]
    others = [o for o in range(256) if o not in plain]
    return {chr(o): o for o in plain} | {chr(256 + n): o for n, o in enumerate(others)}


_OCTETS = _octets()
