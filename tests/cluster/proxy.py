"""An API server's bad day: a proxy that refuses, drops, tears, repeats and forgets, by cards from a shuffled deck.

Cards instead of dice: in each round of a deck every fault comes as often as it is written, whatever the seed, so a test
may assert that each of them happened.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import aiohttp
from aiohttp import web
from direct import Direct, lines
from yarl import URL

SLOW_SECONDS = 0.7
"""How long a watch event that is delayed is held back, and all that come after it on the same stream."""
RETRY_AFTER_SECONDS = 1


class Fault(StrEnum):
    """What can go wrong with a request, a watch, or one event of a watch."""

    NONE = "passed on"
    # Instead of passing a request on:
    CONFLICT = "answered 409"
    GONE = "answered 410"
    BUSY = "answered 429 with Retry-After"
    BROKEN = "answered 500"
    AWAY = "answered 503"
    DROPPED = "connection dropped"
    # After passing a write on:
    DROPPED_AFTER = "connection dropped after the commit"
    LATE_AFTER = "answered 504 after the commit"
    # Of a watch's stream:
    LOST = "watch event dropped"
    TWICE = "watch event sent twice"
    SLOW = "watch event delayed"
    EXPIRED = "watch ended by an ERROR event of code 410"
    ENDED = "watch ended early"
    TORN = "watch torn in the middle of an event"
    FATAL = "watch ended by an ERROR event of code 500"


Counts = Mapping[Fault, int]

READS: Counts = {Fault.BUSY: 1, Fault.BROKEN: 1, Fault.AWAY: 1, Fault.DROPPED: 1, Fault.NONE: 16}
WRITES: Counts = {
    Fault.CONFLICT: 1,
    Fault.BUSY: 1,
    Fault.BROKEN: 1,
    Fault.AWAY: 1,
    Fault.DROPPED: 1,
    Fault.DROPPED_AFTER: 2,
    Fault.LATE_AFTER: 1,
    Fault.NONE: 12,
}
WATCHES: Counts = {Fault.GONE: 1, Fault.BUSY: 1, Fault.AWAY: 1, Fault.NONE: 7}
EVENTS: Counts = {
    Fault.LOST: 3,
    Fault.TWICE: 2,
    Fault.SLOW: 2,
    Fault.EXPIRED: 1,
    Fault.ENDED: 1,
    Fault.TORN: 1,
    Fault.NONE: 20,
}
LEASE: Counts = {Fault.CONFLICT: 1, Fault.AWAY: 1, Fault.DROPPED: 1, Fault.DROPPED_AFTER: 1, Fault.NONE: 20}
"""Few enough that the lease is rarely lost, which would hide what the other faults do."""


class Deck:
    """Cards of one kind of traffic, shuffled anew when the last one was dealt."""

    def __init__(self, cards: Counts, lottery: random.Random) -> None:
        self.cards = cards
        self._lottery = lottery
        self._left: list[Fault] = []

    def deal(self) -> Fault:
        """The next card."""
        if not self._left:
            self._left = [fault for fault, count in self.cards.items() for _ in range(count)]
            self._lottery.shuffle(self._left)
        return self._left.pop()


@dataclass
class FaultyProxy:
    """Plain HTTP on loopback in front of a real API server, whose credentials it holds."""

    upstream: Direct
    seed: int
    faults: bool = True
    """False: everything is passed on but what is played by hand."""
    counts: Counter[tuple[str, Fault]] = field(default_factory=Counter)
    """How often each card was played, by deck."""
    url: str = ""
    _runner: web.AppRunner | None = None

    def __post_init__(self) -> None:
        self._next: dict[str, Fault] = {}
        decks = {"read": READS, "write": WRITES, "watch": WATCHES, "event": EVENTS, "lease": LEASE}
        self._decks = {name: Deck(cards, random.Random(f"{self.seed} {name}")) for name, cards in decks.items()}

    async def __aenter__(self) -> FaultyProxy:
        application = web.Application(client_max_size=2**24)
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def kubeconfig(self) -> dict[str, Any]:
        """For whoever shall go through the proxy."""
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "faulty",
            "contexts": [{"name": "faulty", "context": {"cluster": "faulty", "user": "faulty"}}],
            "clusters": [{"name": "faulty", "cluster": {"server": self.url}}],
            "users": [{"name": "faulty", "user": {}}],
        }

    def unplayed(self) -> set[tuple[str, Fault]]:
        """Faults that never happened, those of the lease aside."""
        dealt = {(name, fault) for name, deck in self._decks.items() if name != "lease" for fault in deck.cards}
        return dealt - {card for card, count in self.counts.items() if count}

    def play(self, deck: str, card: Fault) -> None:
        """Let this be the next card, whatever the deck says."""
        self._next[deck] = card

    def _deal(self, deck: str) -> Fault:
        card = self._next.pop(deck, None) or (self._decks[deck].deal() if self.faults else Fault.NONE)
        self.counts[deck, card] += 1
        return card

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") == "true":
            return await self._watch(request)
        plain = "read" if request.method == "GET" else "write"
        deck = "lease" if "/leases" in request.path else plain
        card = self._deal(deck)
        if card is Fault.CONFLICT and request.method == "GET":
            card = Fault.NONE  # a reading of the lease: nobody answers one so
        if refusal := _refusal(card):
            return refusal
        if card is Fault.DROPPED:
            return _drop(request)
        async with await self._passed_on(request) as answer:
            body = await answer.read()
            if card is Fault.DROPPED_AFTER:
                return _drop(request)
            if card is Fault.LATE_AFTER:
                return _status(504, "Timeout", "the proxy gave up waiting")
            return web.Response(status=answer.status, body=body, headers=_kept(answer.headers))

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        if refusal := _refusal(self._deal("watch")):
            return refusal
        async with await self._passed_on(request) as answer:
            response = web.StreamResponse(status=answer.status, headers=_kept(answer.headers))
            await response.prepare(request)
            try:
                async for line in lines(answer):
                    if not await self._event(request, response, line):
                        break
            except aiohttp.ClientConnectionResetError:
                pass  # who watched is gone
            return response

    async def _event(self, request: web.Request, response: web.StreamResponse, line: bytes) -> bool:
        """Send one event, or what becomes of it; False: the stream ends here."""
        bookmark = json.loads(line)["type"] == "BOOKMARK"
        card = Fault.NONE if bookmark else self._deal("event")
        match card:
            case Fault.LOST:
                return True
            case Fault.TWICE:
                await response.write(line + line)
                return True
            case Fault.SLOW:
                await asyncio.sleep(SLOW_SECONDS)
            case Fault.EXPIRED | Fault.FATAL:
                code, reason = (410, "Expired") if card is Fault.EXPIRED else (500, "InternalError")
                said = {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": "as dealt"}
                await response.write(json.dumps({"type": "ERROR", "object": said}).encode() + b"\n")
                return False
            case Fault.ENDED:
                return False
            case Fault.TORN:
                await response.write(line[: len(line) // 2])
                _drop(request)
                return False
        await response.write(line)
        return True

    async def _passed_on(self, request: web.Request) -> aiohttp.ClientResponse:
        headers = {k: v for k, v in request.headers.items() if k.lower() in ("accept", "content-type")}
        url = URL(self.upstream.server + request.raw_path, encoded=True)
        body = await request.read()
        return await self.upstream.session.request(request.method, url, data=body or None, headers=headers)


def _refusal(card: Fault) -> web.Response | None:
    match card:
        case Fault.CONFLICT:
            return _status(409, "Conflict", "the object has been modified; please apply your changes to the latest")
        case Fault.GONE:
            return _status(410, "Expired", "too old resource version")
        case Fault.BUSY:
            return _status(429, "TooManyRequests", "too many requests", {"Retry-After": str(RETRY_AFTER_SECONDS)})
        case Fault.BROKEN:
            return _status(500, "InternalError", "etcdserver: leader changed")
        case Fault.AWAY:
            return _status(503, "ServiceUnavailable", "apiserver is shutting down")
    return None


def _status(code: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason}
    return web.json_response({**body, "message": message}, status=code, headers=headers)


def _drop(request: web.Request) -> web.Response:
    """Cut the connection; what is returned goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in headers.items() if k.lower() in ("content-type", "retry-after", "warning", "audit-id")}
