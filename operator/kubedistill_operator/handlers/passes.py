"""The pass: observe, plan, act, record. Repeated for a key until nothing is left to do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from kubedistill_api.job import DistillationJob
from kubedistill_api.status import Status
from kubedistill_operator.cluster.errors import (
    ChildRefusedError,
    ForeignObjectError,
    LeadershipLostError,
    RefusedError,
    UnavailableError,
)
from kubedistill_operator.cluster.kubernetes import KubernetesCluster, UnreadableJobError
from kubedistill_operator.core.planner import plan, refuse
from kubedistill_operator.core.ports import ConflictError
from kubedistill_operator.core.settings import Settings
from kubedistill_operator.handlers.workqueue import WorkQueue

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 120.0
CONFLICT_PAUSE_SECONDS = 0.2
"""The watch needs a moment to bring what we did not know."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class Key:
    """One DistillationJob."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Record(Protocol):
    """Tells people what a status write changed."""

    async def __call__(self, job: DistillationJob, before: Status, after: Status) -> None:
        """Called after the write succeeded, and only then."""
        ...


class Meter(Protocol):
    """Counts passes."""

    def passed(self, outcome: str, seconds: float) -> None:
        """A pass ended: ok, conflict, refused, unavailable or error."""
        ...


async def reconcile(
    key: Key, cluster: KubernetesCluster, clock: Callable[[], datetime], settings: Settings, record: Record
) -> timedelta | None:
    """One pass. Returns when to look again, None: only when something happens."""
    job = await cluster.job(key.namespace, key.name)
    if job is None:
        return None  # Garbage collection does the rest: we own no finalizer.
    step = plan(job, await cluster.observe(job), clock(), settings)
    for lease in step.leases:  # Before a child may be refused, which ends the pass: time does not wait for it.
        await cluster.lease(job, lease)
    for manifest in step.apply:
        await cluster.apply(job, manifest)
    for ref in step.delete:
        await cluster.delete(job, ref)
    if step.status != job.status:
        await cluster.write_status(job, step.status)
        await record(job, job.status, step.status)
    return step.check_in


class Reconciler:
    """Workers that take keys from the queue and pass."""

    def __init__(
        self, queue: WorkQueue[Key], cluster: KubernetesCluster, settings: Settings, record: Record, meter: Meter
    ) -> None:
        self._queue = queue
        self._cluster = cluster
        self._settings = settings
        self._record = record
        self._meter = meter
        self._failures: dict[Key, int] = {}
        self._since: dict[Key, float] = {}

    @property
    def longest_pass_seconds(self) -> float:
        """How long the oldest running pass has run."""
        now = asyncio.get_running_loop().time()
        return max((now - since for since in self._since.values()), default=0.0)

    async def work(self) -> None:
        """One worker, for ever.

        Raises:
            LeadershipLostError: nothing may be written any more; the process must end.
        """
        while True:
            key = await self._queue.take()
            started = self._since[key] = asyncio.get_running_loop().time()
            try:
                outcome, again = await self._pass(key)
            finally:
                self._since.pop(key, None)
                self._queue.done(key)
            self._meter.passed(outcome, asyncio.get_running_loop().time() - started)
            if again is not None:
                self._queue.add(key, again)

    async def _pass(self, key: Key) -> tuple[str, float | None]:
        """What came of a pass, and in how many seconds to look again."""
        try:
            check_in = await reconcile(key, self._cluster, _now, self._settings, self._record)
        except ConflictError as error:
            log.debug("%s: %s", key, error)
            return "conflict", max(CONFLICT_PAUSE_SECONDS, self._pause(key) if self._failed(key) > 3 else 0.0)
        except ForeignObjectError as error:
            # The next observation says so, and the plan tells the user.
            log.info("%s: %s", key, error.message)
            return "foreign", 0.0 if self._failed(key) == 1 else self._pause(key)
        except ChildRefusedError as error:
            # As above; when to ask again is for the plan to say.
            log.info("%s: the API server refused %s", key, error.message)
            return "refused", 0.0 if self._failed(key) == 1 else self._pause(key)
        except RefusedError as error:
            self._failed(key)
            log.warning("%s: the API server refused: %s", key, error)
            return "refused", self._pause(key)
        except UnavailableError as error:
            self._failed(key)
            log.warning("%s: %s", key, error)
            return "unavailable", self._pause(key)
        except UnreadableJobError as error:
            return await self._refuse(key, error)
        except LeadershipLostError:
            raise
        except Exception:
            # One job's defect must not stop the others; the traceback is for us, the backoff for the API server.
            self._failed(key)
            log.exception("%s: the pass failed", key)
            return "error", self._pause(key)
        self._failures.pop(key, None)
        return "ok", None if check_in is None else max(0.0, check_in.total_seconds())

    async def _refuse(self, key: Key, error: UnreadableJobError) -> tuple[str, float | None]:
        metadata = error.raw["metadata"]
        before = Status.model_validate(error.raw.get("status") or {})
        after = refuse(before, metadata.get("generation", 0), error.problems, _now())
        if after != before:
            try:
                await self._cluster.write_raw_status(key.namespace, key.name, metadata["resourceVersion"], after)
            except (ConflictError, UnavailableError, RefusedError) as problem:
                log.warning("%s: %s", key, problem)
                self._failed(key)
                return "conflict", self._pause(key)
        return "unreadable", None

    def _failed(self, key: Key) -> int:
        self._failures[key] = self._failures.get(key, 0) + 1
        return self._failures[key]

    def _pause(self, key: Key) -> float:
        """Seconds that double with every failure in a row."""
        exponent = min(self._failures.get(key, 1) - 1, 30)
        return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * float(2**exponent))


def _now() -> datetime:
    return datetime.now(UTC)
