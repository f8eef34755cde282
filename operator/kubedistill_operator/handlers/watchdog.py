"""Notices what the watches missed: what the API server has and our copies have not.

A watch can die silently, or lose an event, and a process that hears nothing looks like one with nothing to do. So from
time to time every watched kind is listed (metadata only) and compared with the copies. What was missed is read, our
copy corrected, and the job handed to the queue. What the watch itself does not bring for too long means that it is
dead, and the process says so at `/healthz`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from kubedistill_api.base import KIND
from kubedistill_api.identity import LABEL_JOB, LABEL_JOB_UID
from kubedistill_operator.cluster.api import METADATA_LIST, Api
from kubedistill_operator.cluster.caches import WATCHED
from kubedistill_operator.cluster.errors import ClusterError, RefusedError
from kubedistill_operator.cluster.kinds import Raw, labels, path, version
from kubedistill_operator.core.ports import ConflictError
from kubedistill_operator.handlers.passes import Key

TOLERATED_SECONDS = 180.0
PAGE = "500"

log = logging.getLogger(__name__)


class Copies(Protocol):
    """The copies, as far as an audit needs them."""

    @property
    def full(self) -> bool:
        """Whether the watches have brought all that was there when they began."""
        ...

    def versions(self, kind: str) -> dict[str, int]:
        """The resourceVersion of every copy of one kind that the watches brought, by uid."""
        ...

    def known(self, kind: str) -> dict[str, Raw]:
        """Every object of one kind, by uid, corrected."""
        ...

    def correct(self, kind: str, uid: str, raw: Raw | None) -> None:
        """The object was read so; None: it was not there."""
        ...

    def settle(self, kind: str) -> None:
        """Drop corrections that are needed no more."""
        ...


class Lag:
    """Since when is a copy behind? Pure bookkeeping, one instance for each kind."""

    def __init__(self) -> None:
        self._expected: dict[str, tuple[int, float]] = {}
        """uid -> the resourceVersion we ought to have by now (0: to be gone), and since when."""

    def update(self, listed: dict[str, int], copies: dict[str, int], now: float) -> set[str]:
        """Compare resourceVersions by uid; returns the uids that are behind."""
        behind = {
            uid: version for uid, version in listed.items() if uid not in copies or copies[uid] < version
        } | dict.fromkeys(copies.keys() - listed.keys(), 0)
        kept = {}
        for uid, wanted in behind.items():
            before = self._expected.get(uid)
            # An object that changes all the time is behind in every listing; what counts is a change we never got.
            caught_up = before is not None and wanted != 0 and uid in copies and copies[uid] >= before[0]
            kept[uid] = (wanted, now) if before is None or caught_up else before
        self._expected = kept
        return set(behind)

    def seconds(self, now: float) -> float:
        """How long the oldest missing change has been missing."""
        return max((now - since for _, since in self._expected.values()), default=0.0)


class Watchdog:
    """Audits the copies, for ever."""

    def __init__(
        self,
        api: Api,
        copies: Copies,
        namespaces: Iterable[str],
        enqueue: Callable[[Key], None],
        every_seconds: float,
        forget: Callable[[str], None] = lambda uid: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._copies = copies
        self._namespaces = tuple(namespaces)
        self._enqueue = enqueue
        self._every_seconds = every_seconds
        self._forget = forget
        self._clock = clock
        self._lags = {kind: Lag() for kind in (KIND, *WATCHED)}

    @property
    def lag_seconds(self) -> float:
        """How long the copies have lacked a change that the API server has."""
        now = self._clock()
        return max(lag.seconds(now) for lag in self._lags.values())

    async def run(self) -> None:
        """Audit every kind, wait, repeat."""
        while True:
            await asyncio.sleep(self._every_seconds)
            for kind in self._lags:
                try:
                    await self.audit(kind)
                except (ClusterError, ConflictError) as error:
                    log.warning("the copies of %s could not be compared: %s", kind, error)

    async def audit(self, kind: str) -> None:
        """Compare one kind, and correct what differs."""
        known = self._copies.known(kind)  # before the listing: what comes after it is not gone
        found: dict[str, Raw] = {}
        for namespace in self._namespaces or (None,):
            async for item in self._list(kind, namespace):
                found[item["metadata"]["uid"]] = item
        versions = {uid: version(item) for uid, item in found.items()}
        behind = self._lags[kind].update(versions, self._copies.versions(kind), self._clock())
        if not self._copies.full:
            return  # a job without its children would be acted on
        for uid in known.keys() - found.keys():
            self._correct(kind, uid, None, known[uid])
        for uid in found:
            # Also one that a single answer called gone, wrongly: a watch that is up to date would never bring it back.
            if uid not in known or (uid in behind and version(known[uid]) < versions[uid]):
                self._correct(kind, uid, await self._read(kind, found[uid]), found[uid])
        self._copies.settle(kind)

    def _correct(self, kind: str, uid: str, raw: Raw | None, item: Raw) -> None:
        self._copies.correct(kind, uid, raw)
        if kind == KIND and raw is None:
            self._forget(uid)
        if key := _key(kind, item):
            self._enqueue(key)

    async def _read(self, kind: str, item: Raw) -> Raw | None:
        """The object as it is now; None where it, or this one of its name, is gone."""
        metadata = item["metadata"]
        try:
            raw: Raw = await self._api.get(path(kind, metadata["namespace"], metadata["name"]))
        except RefusedError as error:
            if not error.says_not_found:
                raise
            return None
        return raw if raw["metadata"]["uid"] == metadata["uid"] else None

    async def _list(self, kind: str, namespace: str | None) -> Any:
        query = [("limit", PAGE), *([("labelSelector", LABEL_JOB_UID)] if kind != KIND else [])]
        token = ""
        while True:
            page = await self._api.get(
                path(kind, namespace), [*query, *([("continue", token)] if token else [])], accept=METADATA_LIST
            )
            for item in page["items"] or ():  # An empty list of metadata comes as null.
                yield item
            token = page["metadata"].get("continue", "")
            if not token:
                return


def _key(kind: str, item: Raw) -> Key | None:
    metadata = item["metadata"]
    name = metadata["name"] if kind == KIND else labels(item).get(LABEL_JOB, "")
    return Key(metadata["namespace"], name) if name else None
