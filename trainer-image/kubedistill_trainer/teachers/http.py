"""A teacher behind HTTP: our own vLLM, or any server that speaks the OpenAI API.

A window of requests is kept full; no request waits for another. What may pass is asked again with full jitter, what
will not is given back at once. `TopK` comes in one of two ways:

- vLLM: token ids in and out. The text first; then one more request scores prompt and answer (`prompt_logprobs`), which
  is prefill and much cheaper than generating with logprobs.
- Others: `top_logprobs` of the answer itself, at most 20. Their tokens must be found again in the teacher's tokenizer;
  where they cannot be, the server is refused with a sentence.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import numpy as np

from kubedistill_trainer.core.signals import tail_logprob
from kubedistill_trainer.errors import BadConfiguration, NotFound, Transient
from kubedistill_trainer.store.shards import NO_LOGPROB, Signal
from kubedistill_trainer.teachers.protocol import Answered, Failed, Outcome, Request, Sampling, Work, encode
from kubedistill_trainer.teachers.rates import Rates

log = logging.getLogger("kubedistill")

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Server:
    """Where the teacher answers, and what it bears."""

    url: str
    """The base URL, ending in `/v1`."""
    model: str
    """The model's name there."""
    api_key: str = field(default="", repr=False)
    token_ids: bool = False
    """It is a vLLM: prompts go as token ids, and answers come as token ids."""
    concurrency: int = 16
    """Requests under way at once, in this process."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    """Of this process."""
    request_seconds: float = 600.0
    """One try may take so long."""
    patience_seconds: float = 1800.0
    """A request is given up after so long, and a server that answers nobody for so long too."""


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
    ) -> None:
        self._server = server
        self._sampling = sampling
        self._tokenizer = tokenizer
        self._ends = tuple(ends)
        self._clock = clock
        self._rates = Rates(server.requests_per_minute, server.tokens_per_minute)
        self._last_answer = clock()

    def answer(self, work: Work, stopping: threading.Event) -> None:
        """See `protocol.Teacher`."""
        asyncio.run(self._answer(work, stopping))

    def close(self) -> None:
        """Nothing is held between calls."""

    async def _answer(self, work: Work, stopping: threading.Event) -> None:
        """Keep the window full until nothing is left."""
        self._last_answer = self._clock()
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
        return signal_of(rows, answer, self._sampling.k)

    async def _answer_in_text(self, client: httpx.AsyncClient, request: Request) -> Outcome:
        """Any server: a chat in, text out; its own logprobs if they are wanted."""
        body = {**self._common(request), "messages": list(request.messages)}
        if request.tools:
            body["tools"] = list(request.tools)
        if self._sampling.k:
            body |= {"logprobs": True, "top_logprobs": self._sampling.k}
        size = sum(len(str(message.get("content", ""))) for message in request.messages) // 4
        reply = await self._post(client, "chat/completions", body, size)
        choice = reply["choices"][0]
        text = choice["message"].get("content") or ""
        complete = choice["finish_reason"] == "stop"
        counted = int((reply.get("usage") or {}).get("completion_tokens") or 0)
        if not self._sampling.k:
            return Answered(text, complete, tokens=counted)
        ids, rows = self._tokens_of(choice)
        if complete and len(self._ended(ids, complete)) > len(ids):
            ids = self._ended(ids, complete)  # most servers keep the end and its scores to themselves:
            rows.append({ids[-1]: 0.0})  # it was written, so it is taken as certain
        return Answered(text, complete, tuple(ids), signal_of(rows, ids, self._sampling.k), len(ids))

    def _tokens_of(self, choice: Mapping[str, Any]) -> tuple[list[int], list[dict[int, float]]]:
        """Ids and candidates of an answer, its tokens' texts found again in the teacher's tokenizer."""
        content = (choice.get("logprobs") or {}).get("content")
        if not content:
            raise BadConfiguration(
                "TeacherHasNoScores", f"{self._server.url} returns no logprobs: write generation.signal: Text."
            )
        ids: list[int] = []
        rows: list[dict[int, float]] = []
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
            rows.append(
                {each: logprob for each, logprob in candidates if each is not None} | {token: float(item["logprob"])}
            )
            if token in self._ends:
                break
        return ids, rows

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
        deadline = self._clock() + self._server.patience_seconds
        tries = 0
        while True:
            await self._rates.wait(prompt_tokens + int(body["max_tokens"]))
            words, wait = "", None
            try:
                reply = await client.post(path, json=body)
                if reply.is_success:
                    self._last_answer = self._clock()
                    return _whole(reply)
                words, wait = _words(reply), retry_after(reply.headers.get("Retry-After"), time.time())
                if reply.status_code not in RETRIED:
                    raise self._refusal(reply.status_code, words)
                words = f"HTTP {reply.status_code}: {words}"
            except (httpx.TransportError, ValueError) as error:
                words = f"{type(error).__name__} {error}".strip()
            tries += 1
            pause = backoff(tries, random.random()) if wait is None else wait + random.random()
            if self._clock() + pause > deadline:
                if self._clock() + pause - self._last_answer >= self._server.patience_seconds:
                    raise Transient("TeacherUnavailable", f"{self._server.url} has not answered for long: {words}.")
                raise Refused(503, f"given up after {tries} tries: {words}")
            log.info("asking again in %.1f s: %s", pause, words)
            await asyncio.sleep(pause)

    def _refusal(self, status: int, words: str) -> Exception:
        if status in (401, 403):
            return _credential_refused(self._server.url, status, words)
        if status == 404:
            return NotFound(
                "TeacherModelNotFound",
                f"{self._server.url} has no model {self._server.model!r}, or no such path: {words}.",
            )
        return Refused(status, words)


def signal_of(rows: Sequence[Mapping[int, float]], answer: Sequence[int], k: int) -> Signal:
    """Stored form of a server's logprobs: the K likeliest of each position, and the token that was written.

    Servers add the written token where it is not among the K; it is no candidate then. Some give fewer than K.
    """
    ids_NK = np.full((len(answer), k), -1, dtype=np.int32)
    logprobs_NK = np.full((len(answer), k), NO_LOGPROB, dtype=np.float16)
    tail_N = np.zeros(len(answer), dtype=np.float32)
    target_N = np.zeros(len(answer), dtype=np.float32)
    for position, (row, token) in enumerate(zip(rows, answer, strict=True)):
        best = sorted(row.items(), key=lambda item: -item[1])[:k]
        ids_NK[position, : len(best)] = [each for each, _ in best]
        logprobs_NK[position, : len(best)] = [max(logprob, NO_LOGPROB) for _, logprob in best]
        tail_N[position] = tail_logprob([logprob for _, logprob in best])
        target_N[position] = max(row[token], NO_LOGPROB)
    return Signal(ids_NK, logprobs_NK, tail_N, target_N)


def token_id(tokenizer: Any, text: str, octets: Sequence[int] | None) -> int | None:
    """The one token of a tokenizer that stands for a text (or for bytes that are no text); None if none does."""
    added = tokenizer.get_added_vocab().get(text)
    if added is not None:
        return int(added)
    candidates = tokenizer.encode(text, add_special_tokens=False)
    if len(candidates) == 1 and tokenizer.decode(candidates) == text:
        return int(candidates[0])
    if octets is not None:
        letters = "".join(_BYTE_LETTERS[octet] for octet in octets)
        found = tokenizer.convert_tokens_to_ids(letters)
        if found is not None and found != tokenizer.unk_token_id:
            return int(found)
    return None


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


def check_server(server: Server) -> None:
    """Ask an external teacher for one short answer.

    Raises:
        NotFound: the credential is refused, or the server has no such model; the sentence has the names it has.
        Transient: it does not answer now.
    """
    headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    body = {"model": server.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    url = server.url.rstrip("/")
    try:
        with httpx.Client(headers=headers, timeout=60.0) as client:
            reply = client.post(f"{url}/chat/completions", json=body)
            names = "" if reply.is_success or reply.status_code in (401, 403) else _names(client, url)
    except httpx.TransportError as error:
        raise Transient("TeacherUnavailable", f"{url} does not answer: {error}.") from error
    words = _words(reply)
    if reply.is_success:
        return
    if reply.status_code in (401, 403):
        raise _credential_refused(url, reply.status_code, words)
    if names and server.model not in names.split(", "):
        raise NotFound(
            "TeacherModelNotFound", f"{url} has no model {server.model!r}: write external.model, one of {names}."
        )
    if reply.status_code in RETRIED:
        raise Transient("TeacherUnavailable", f"{url} does not answer now (HTTP {reply.status_code}: {words}).")
    raise BadConfiguration("TeacherRefuses", f"{url} refuses a simple request (HTTP {reply.status_code}: {words}).")


def _credential_refused(url: str, status: int, words: str) -> NotFound:
    return NotFound(
        "CredentialRefused", f"{url} refuses the credential (HTTP {status}: {words}): check external.credentialsSecret."
    )


def _names(client: httpx.Client, url: str) -> str:
    try:
        return ", ".join(str(model["id"]) for model in client.get(f"{url}/models").json()["data"][:20])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return ""


def _whole(reply: httpx.Response) -> Any:
    """The reply's JSON.

    Raises:
        ValueError: it is none, or has no answer in it.
    """
    value = reply.json()
    if not isinstance(value, dict) or not value.get("choices"):
        raise ValueError(f"a reply without an answer: {_words(reply)}")
    return value


def _words(reply: httpx.Response) -> str:
    """What a server says of an error, in one line."""
    try:
        said = reply.json()
        error = said.get("error", said) if isinstance(said, dict) else said
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except ValueError:
        text = reply.text
    return " ".join(text.split())[:300].rstrip(".") or reply.reason_phrase


def _byte_letters() -> list[str]:
    """The letter that byte-level tokenizers write for each byte (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {octet: chr(octet) for octet in plain}
    others = (octet for octet in range(256) if octet not in letters)
    return [letter for _, letter in sorted((letters | {o: chr(256 + n) for n, o in enumerate(others)}).items())]


_BYTE_LETTERS = _byte_letters()
