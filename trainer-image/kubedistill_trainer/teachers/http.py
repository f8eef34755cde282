"""A teacher behind HTTP: our own vLLM, or any server that speaks the OpenAI API.

A window of requests is kept full; no request waits for another. What may pass is asked again with full jitter, what
will not is given back at once. A provider's limits are kept from this side (`rates`), and the pause that its 429 asks
for holds for every request. `TopK` comes in one of two ways:

- vLLM: token ids in and out. The text first; then one more request scores prompt and answer (`prompt_logprobs`), which
  is prefill and much cheaper than generating with logprobs.
- Others: `top_logprobs` of the answer itself, at most 20. Their tokens must be found again in the teacher's tokenizer;
  where they cannot be, the server is refused with a sentence.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from kubedistill_trainer.chats import TemplateRefused
from kubedistill_trainer.core.tool_calls import called, for_server
from kubedistill_trainer.errors import BadConfiguration, NotFound, Transient
from kubedistill_trainer.store.shards import Signal
from kubedistill_trainer.teachers.logprobs import candidates_of, of_vocabulary, signal_of, token_id
from kubedistill_trainer.teachers.protocol import Answered, Failed, Outcome, Request, Sampling, Work, encode, refused
from kubedistill_trainer.teachers.rates import Gate, Limits
from kubedistill_trainer.teachers.servers import RETRIED, Server, a_token, credential_refused, words_of

log = logging.getLogger("kubedistill")

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0
CHARACTERS_OF_A_TOKEN = 4
"""In English; what the server counts corrects it."""
TOO_MANY_REQUESTS = 429
CHECK_SECONDS = 60.0
"""So long a server may take for one token before it counts as one that answers nobody."""


class Refused(Exception):
    """The server will not answer this request, whoever asks and how often."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"HTTP {status}: {words}")
        self.status = status
        self.words = words


class HttpTeacher:
    """See the module. `tokenizer` is the teacher's; it is needed for token ids and for `TopK`."""

    def __init__(
        self,
        server: Server,
        sampling: Sampling,
        tokenizer: Any = None,
        ends: Sequence[int] = (),
        clock: Callable[[], float] = time.monotonic,
        limits: Limits | None = None,
    ) -> None:
        """`limits`: those of the server, unless others are given."""
        self._server = server
        self._sampling = sampling
        self._tokenizer = tokenizer
        self._ends = tuple(ends)
        self._clock = clock
        self._limits = limits or Limits(server.requests_per_minute, server.tokens_per_minute)
        self._gate = Gate(self._limits, clock)
        self._last_answer = clock()
        self._checking = asyncio.Lock()

    def answer(self, work: Work, stopping: threading.Event) -> None:
        """See `protocol.Teacher`."""
        asyncio.run(self._answer(work, stopping))

    def close(self) -> None:
        """Nothing is held between calls."""

    async def _answer(self, work: Work, stopping: threading.Event) -> None:
        """Keep the window full until nothing is left."""
        self._last_answer = self._clock()
        self._gate = Gate(self._limits, self._clock)
        self._checking = asyncio.Lock()
        under_way: dict[asyncio.Task[Outcome], Request] = {}
        async with self._client() as client:
            try:
                while not stopping.is_set():
                    for request in work.take(self._server.concurrency - len(under_way)):
                        under_way[asyncio.create_task(self._ask(client, request))] = request
                    if not under_way:
                        return
                    done, _ = await asyncio.wait(under_way, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        work.give(under_way.pop(task), task.result())
            finally:
                for task in under_way:
                    task.cancel()
                await asyncio.gather(*under_way, return_exceptions=True)

    def _client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self._server.api_key}"} if self._server.api_key else {}
        limits = httpx.Limits(max_connections=self._server.concurrency, max_keepalive_connections=None)
        timeout = httpx.Timeout(self._server.request_seconds, connect=30.0)
        return httpx.AsyncClient(
            base_url=f"{self._server.url.rstrip('/')}/", headers=headers, limits=limits, timeout=timeout
        )

    async def _ask(self, client: httpx.AsyncClient, request: Request) -> Outcome:
        try:
            if self._server.token_ids:
                return await self._answer_in_tokens(client, request)
            return await self._answer_in_text(client, request)
        except Refused as error:
            return Failed(str(error))
        except TemplateRefused as error:
            return refused(error)

    async def _answer_in_tokens(self, client: httpx.AsyncClient, request: Request) -> Outcome:
        """vLLM: the prompt's token ids in, the answer's token ids out, and their scores in a second request."""
        prompt = encode(self._tokenizer, request)
        body = {**self._common(request), "prompt": prompt, "return_token_ids": True, "skip_special_tokens": True}
        reply = await self._post(client, "completions", body, len(prompt))
        choice = reply["choices"][0]
        ids = choice.get("token_ids")
        if ids is None:
            raise BadConfiguration(
                "TeacherHasNoTokenIds",
                f"{self._server.url} returns no token_ids: the vLLM image is too old (0.11 or newer).",
            )
        if max(ids, default=0) >= len(self._tokenizer):
            return Failed("the teacher wrote a token that its tokenizer does not have: its vocabulary is padded")
        complete = choice["finish_reason"] == "stop"
        ids = self._ended(ids, complete)
        signal = await self._score(client, prompt, ids) if self._sampling.k and ids else None
        return Answered(choice["text"], complete, tuple(ids), signal, len(ids))

    async def _score(self, client: httpx.AsyncClient, prompt: list[int], answer: list[int]) -> Signal:
        body = {
            "model": self._server.model,
            "prompt": [*prompt, *answer],
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": self._sampling.k,
        }
        reply = await self._post(client, "completions", body, len(prompt) + len(answer))
        positions = reply["choices"][0].get("prompt_logprobs")
        if positions is None or len(positions) != len(prompt) + len(answer):
            raise BadConfiguration(
                "TeacherHasNoScores", f"{self._server.url} returns no prompt_logprobs for all of a prompt: use vLLM."
            )
        scored = positions[len(prompt) :]
        rows = [{int(token): float(item["logprob"]) for token, item in position.items()} for position in scored]
        k, vocabulary = self._sampling.k, len(self._tokenizer)
        pairs = list(zip(rows, answer, strict=True))
        named = [of_vocabulary(candidates_of(row, token, k), vocabulary) for row, token in pairs]
        return signal_of(named, [of_vocabulary(row, vocabulary)[token] for row, token in pairs], k)

    async def _answer_in_text(self, client: httpx.AsyncClient, request: Request) -> Outcome:
        """Any server: a chat in, text out; its own logprobs if they are wanted."""
        body = {**self._common(request), "messages": for_server(request.messages)}
        if request.tools:
            body["tools"] = list(request.tools)
        if self._sampling.k:
            body |= {"logprobs": True, "top_logprobs": self._sampling.k}
        reply = await self._post(client, "chat/completions", body, self._size(request))
        choice = reply["choices"][0]
        if names := called(choice["message"]):
            words = f"the teacher called a tool ({', '.join(names)}) where an answer was asked for"
            return Failed(words, by_request=True)
        text = choice["message"].get("content") or ""
        complete = choice["finish_reason"] == "stop"
        counted = int((reply.get("usage") or {}).get("completion_tokens") or 0)
        if not self._sampling.k:
            return Answered(text, complete, tokens=counted)
        ids, rows, written = self._tokens_of(choice)
        if complete and len(self._ended(ids, complete)) > len(ids):
            ids = self._ended(ids, complete)  # most servers keep the end and its scores to themselves:
            rows.append({ids[-1]: 0.0})  # it was written, so it is taken as certain
            written.append(0.0)
        return Answered(text, complete, tuple(ids), signal_of(rows, written, self._sampling.k), len(ids))

    def _size(self, request: Request) -> int:
        """Tokens of a prompt: about, where no tokenizer is known, and only where somebody counts them."""
        if self._server.tokens_per_minute is None:
            return 0
        if self._tokenizer is not None:
            with suppress(TemplateRefused):  # the server's own template may take what this one refuses
                return len(encode(self._tokenizer, request))
        return len(json.dumps([list(request.messages), request.tools], ensure_ascii=False)) // CHARACTERS_OF_A_TOKEN

    def _tokens_of(self, choice: Mapping[str, Any]) -> tuple[list[int], list[dict[int, float]], list[float]]:
        """Ids, candidates and own logprobs of an answer's tokens, whose texts are found again in the tokenizer."""
        content = (choice.get("logprobs") or {}).get("content")
        if not content:
            raise BadConfiguration(
                "TeacherHasNoScores", f"{self._server.url} returns no logprobs: write generation.signal: Text."
            )
        ids: list[int] = []
        rows: list[dict[int, float]] = []
        written: list[float] = []
        for item in content:
            token = self._id_of(item)
            if token is None:
                raise BadConfiguration(
                    "TeacherTokensUnknown",
                    f"The token {item['token']!r} of {self._server.model} is not in the tokenizer of the teacher's "
                    "model: correct model.uri, or write generation.signal: Text.",
                )
            ids.append(token)
            candidates = ((self._id_of(each), float(each["logprob"])) for each in item.get("top_logprobs") or [])
            rows.append({each: logprob for each, logprob in candidates if each is not None})
            written.append(float(item["logprob"]))
            if token in self._ends:
                break
        return ids, rows, written

    def _ended(self, ids: Sequence[int], complete: bool) -> list[int]:
        """The tokens up to the first end, which a complete answer always has."""
        for place, token in enumerate(ids):
            if token in self._ends:
                return list(ids[: place + 1])
        return [*ids, self._ends[0]] if complete and self._ends else list(ids)

    def _id_of(self, item: Mapping[str, Any]) -> int | None:
        """A token's id. vLLM says `token_id:5`; others give its text, or its bytes where it is no whole text."""
        text = str(item["token"])
        if text.startswith("token_id:"):
            return int(text.removeprefix("token_id:"))
        return token_id(self._tokenizer, text, item.get("bytes"))

    def _common(self, request: Request) -> dict[str, Any]:
        return {
            "model": self._server.model,
            "max_tokens": self._sampling.max_tokens,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "seed": request.seed % 2**31,
        }

    async def _post(self, client: httpx.AsyncClient, path: str, body: Mapping[str, Any], prompt_tokens: int) -> Any:
        """One request, asked again for as long as that may help.

        Raises:
            Refused: the server will not answer this request.
            StageError: the server will not answer anybody.
        """
        tries, deadline = 0, float("inf")
        while True:
            came = self._clock()
            taken = await self._gate.enter(prompt_tokens + int(body["max_tokens"]))
            if tries:  # it waited for its turn, as every request does, or because the server asked all for a pause
                deadline += self._clock() - came
            else:
                deadline = self._clock() + self._server.patience_seconds
            words, wait, heard = "", None, False
            asked = client.build_request("POST", path, json=body)
            try:
                reply = await client.send(asked)
                heard = True
                if reply.is_success:
                    self._last_answer = self._clock()
                    answer = _whole(reply, self._server.api_key)
                    self._gate.settle(taken, tokens_used(answer, taken.tokens))
                    return answer
                self._gate.settle(taken, 0)
                words = words_of(reply, self._server.api_key)
                wait = retry_after(reply.headers.get("Retry-After"), time.time())
                if reply.status_code not in RETRIED:
                    raise self._refusal(reply.status_code, words)
                if reply.status_code == TOO_MANY_REQUESTS and wait is not None:
                    self._gate.close(wait)
                words = f"HTTP {reply.status_code}: {words}"
            except (httpx.TransportError, ValueError) as error:
                words = f"{type(error).__name__} {error}".strip()
            tries += 1
            pause = backoff(tries, random.random()) if wait is None else wait + random.random()
            if self._clock() + pause > deadline:
                silent = self._clock() + pause - self._last_answer >= self._server.patience_seconds
                if silent if heard else not await self._lives(client):
                    raise Transient("TeacherUnavailable", f"{self._server.url} has not answered for long: {words}.")
                raise Refused(503, f"given up after {tries} tries: {words}")
            log.info("asking again in %.1f s: %s", pause, words)
            await asyncio.sleep(pause)

    async def _lives(self, client: httpx.AsyncClient) -> bool:
        """Whether the server still answers anybody. Where a request got no answer, either it is to blame, or the server
        hangs, and its row must not be lost for that."""
        since = self._clock()
        async with self._checking:
            if self._last_answer > since:
                return True
            path, body = a_token(self._server.model, chat=not self._server.token_ids)
            seconds = min(CHECK_SECONDS, self._server.request_seconds)
            with suppress(httpx.TransportError):
                reply = await client.post(path, json=body, timeout=seconds)
                if reply.is_success or reply.status_code == TOO_MANY_REQUESTS:
                    self._last_answer = self._clock()
            return self._last_answer > since

    def _refusal(self, status: int, words: str) -> Exception:
        if status in (401, 403):
            return credential_refused(self._server.url, status, words)
        if status == 404:
            return NotFound(
                "TeacherModelNotFound",
                f"{self._server.url} has no model {self._server.model!r}, or no such path: {words}.",
            )
        return Refused(status, words)


def backoff(tries: int, chance: float) -> float:
    """Seconds before the next try: full jitter below a limit that doubles each time."""
    return chance * min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0**tries)


def retry_after(value: str | None, now: float) -> float | None:
    """What a server's Retry-After asks for, in seconds from `now` (Unix time); None: nothing that can be read."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (TypeError, ValueError):
        return None


def tokens_used(answer: Mapping[str, Any], expected: int) -> int:
    """What a request cost by the server's count; what was expected of it where the server says nothing."""
    usage = answer.get("usage") or {}
    total = usage.get("total_tokens") or int(usage.get("prompt_tokens") or 0) + int(usage.get("completion_tokens") or 0)
    return int(total) if usage.get("total_tokens") or usage.get("prompt_tokens") else expected


def _whole(reply: httpx.Response, secret: str) -> Any:
    """The reply's JSON.

    Raises:
        ValueError: it is none, or has no answer in it.
    """
    value = reply.json()
    if not isinstance(value, dict) or not value.get("choices"):
        raise ValueError(f"a reply without an answer: {words_of(reply, secret)}")
    return value
