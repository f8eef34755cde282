"""Notices a dead watch: what the API server has and our copies have not, for too long.

A watch can die silently, and a process that hears nothing looks like one with nothing to do. So from time to time
every watched kind is listed (metadata only) and compared with the copies. What was missed is handed to the queue at
once; what stays missed means that a watch is dead, and the process says so at `/healthz`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from kubedistill_api.base import KIND
from kubedistill_api.identity import LABEL_JOB, LABEL_JOB_UID
from kubedistill_operator.cluster.api import METADATA_LIST, Api
from kubedistill_operator.cluster.caches import WATCHED
from kubedistill_operator.cluster.errors import ClusterError
from kubedistill_operator.cluster.kinds import labels, path
from kubedistill_operator.handlers.passes import Key

AUDIT_SECONDS = 60.0
TOLERATED_SECONDS = 180.0
PAGE = "500"

log = logging.getLogger(__name__)


class Versions(Protocol):
    """The copies, as far as an audit needs them."""

    def versions(self, kind: str) -> dict[str, str]:
        """The resourceVersion of every copy of one kind, by uid."""
        ...


class Lag:
    """Since when is a copy behind? Pure bookkeeping, one instance for each kind."""

    def __init__(self) -> None:
        self._expected: dict[str, tuple[int, float]] = {}
        """uid -> the resourceVersion we ought to have by now (0: to be gone), and since when."""

    def update(self, listed: dict[str, str], copies: dict[str, str], now: float) -> set[str]:
        """Compare; returns the uids that are behind."""
        behind = {
            uid: int(version) for uid, version in listed.items() if uid not in copies or int(copies[uid]) < int(version)
        } | dict.fromkeys(copies.keys() - listed.keys(), 0)
        kept = {}
        for uid, wanted in behind.items():
            before = self._expected.get(uid)
            # An object that changes all the time is behind in every listing; what counts is a change we never got.
            caught_up = before is not None and wanted != 0 and uid in copies and int(copies[uid]) >= before[0]
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
        copies: Versions,
        namespaces: Iterable[str],
        enqueue: Callable[[Key], None],
        clock: Callable[[], float],
    ) -> None:
        self._api = api
        self._copies = copies
        self._namespaces = tuple(namespaces)
        self._enqueue = enqueue
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
            await asyncio.sleep(AUDIT_SECONDS)
            for kind in self._lags:
                try:
                    await self.audit(kind)
                except ClusterError as error:
                    log.warning("the copies of %s could not be compared: %s", kind, error)

    async def audit(self, kind: str) -> None:
        """Compare one kind."""
        found: dict[str, dict[str, Any]] = {}
        for namespace in self._namespaces or (None,):
            async for item in self._list(kind, namespace):
                found[item["metadata"]["uid"]] = item
        listed = {uid: item["metadata"]["resourceVersion"] for uid, item in found.items()}
        for uid in self._lags[kind].update(listed, self._copies.versions(kind), self._clock()):
            if uid in found and (key := _key(kind, found[uid])):
                self._enqueue(key)

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


def _key(kind: str, item: dict[str, Any]) -> Key | None:
    metadata = item["metadata"]
    name = metadata["name"] if kind == KIND else labels(item).get(LABEL_JOB, "")
    return Key(metadata["namespace"], name) if name else None
