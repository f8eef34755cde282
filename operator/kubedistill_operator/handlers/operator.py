"""The operator as a whole: what is started, in which order, and what ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any

import aiohttp
from kubernetes.aio.client import Configuration
from prometheus_client import CollectorRegistry

from kubedistill_api.job import DistillationJob
from kubedistill_api.status import Status
from kubedistill_operator.cluster.api import Api
from kubedistill_operator.cluster.connection import connect, load_configuration
from kubedistill_operator.cluster.errors import ClusterError, LeadershipLostError
from kubedistill_operator.cluster.kubernetes import KubernetesCluster
from kubedistill_operator.handlers.health import HealthServer
from kubedistill_operator.handlers.installation import Installation
from kubedistill_operator.handlers.leadership import Fence, lead
from kubedistill_operator.handlers.passes import Key, Reconciler
from kubedistill_operator.handlers.triggers import IndexCaches, registry
from kubedistill_operator.handlers.watchdog import TOLERATED_SECONDS, Watchdog
from kubedistill_operator.handlers.watches import watch
from kubedistill_operator.handlers.workqueue import WorkQueue
from kubedistill_operator.telemetry.events import event, notes
from kubedistill_operator.telemetry.jobs import JobCollector
from kubedistill_operator.telemetry.passes import PassMeter

LONGEST_PASS_SECONDS = 600.0
FENCE_SHARE = 0.9
"""Of the lease: writes end a little before another may begin."""

log = logging.getLogger(__name__)


class Operator:
    """One operator process.

    1. Serve probes and metrics.
    2. Wait for the lease; until then this process is alive, ready and idle.
    3. Watch, queue, pass. Losing the lease, or the watches, ends the process.
    """

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._leading = False
        self._watching = asyncio.Event()
        self._caches = IndexCaches()
        self._queue: WorkQueue[Key] = WorkQueue(self._loop.time)
        self._fence = Fence(installation.lease.seconds * FENCE_SHARE)
        self._metrics = CollectorRegistry()
        self._meter = PassMeter(self._metrics)
        self._reconciler: Reconciler | None = None
        self._watchdog: Watchdog | None = None

    async def run(self) -> int:
        """Until a signal, or until the lease is lost; returns the process's exit code."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._stop.set)
        self._measure()
        async with AsyncExitStack() as stack:
            health = HealthServer(self._installation.port, self._alive, self._ready, self._metrics)
            await health.start()
            stack.push_async_callback(health.stop)
            log.info("serving /healthz, /readyz and /metrics on port %d", health.port)
            configuration = await load_configuration()
            work = partial(self._lead, configuration)
            if not self._installation.lease.enabled:
                await work()
                return 0
            # A pool of its own: no busy pass may keep the lease waiting.
            lease_client = await stack.enter_async_context(connect(configuration))
            if await lead(self._installation.lease, lease_client, self._fence, work, self._stop):
                return 0
            log.error("the lease is lost: another operator leads")
            return 1

    async def _lead(self, configuration: Configuration) -> None:
        """Watch and pass until a signal."""
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(connect(configuration))
            http = await stack.enter_async_context(aiohttp.ClientSession())
            api = Api(client, self._fence.check if self._installation.lease.enabled else lambda: None)
            cluster = KubernetesCluster(
                api,
                self._caches,
                http,
                progress_seconds=self._installation.settings.progress_seconds,
                wake=self._wake,
            )
            stack.push_async_callback(cluster.close)
            self._reconciler = Reconciler(
                self._queue, cluster, self._installation.settings, partial(self._tell, cluster), self._meter
            )
            self._watchdog = Watchdog(
                api,
                self._caches,
                self._installation.namespaces,
                self._queue.add,
                self._installation.audit_seconds,
                cluster.forget,
            )
            self._leading = True
            watches = watch(
                registry(self._caches, self._queue.add, configuration, cluster.forget),
                self._installation.namespaces,
                self._installation.lease.identity,
                stop=self._stop,
                ready=self._watching,
            )
            await self._until_first_ends(
                watches, self._watchdog.run(), *(self._reconciler.work() for _ in range(self._installation.workers))
            )

    async def _until_first_ends(self, *works: Coroutine[Any, Any, None]) -> None:
        tasks = [asyncio.create_task(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except LeadershipLostError:
            log.error("the lease ran out before a write: another operator may lead")
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _wake(self, job_uid: str) -> None:
        for raw in self._caches.jobs():
            if raw["metadata"]["uid"] == job_uid:
                self._queue.add(Key(raw["metadata"]["namespace"], raw["metadata"]["name"]))

    async def _tell(self, cluster: KubernetesCluster, job: DistillationJob, before: Status, after: Status) -> None:
        """Events only after the status was written; one that is lost costs nothing but itself."""
        written = job.model_copy(update={"status": after})
        for note in notes(before, after):
            log.info("%s/%s: %s: %s", job.metadata.namespace, job.metadata.name, note.reason, note.text)
            try:
                now = datetime.now(UTC)
                await cluster.post_event(event(written, note, self._installation.lease.identity, now))
            except LeadershipLostError:
                raise
            except ClusterError as error:
                log.warning("an Event was not posted: %s", error)

    def _measure(self) -> None:
        self._metrics.register(
            JobCollector(self._caches.jobs, self._installation.metrics_jobs, lambda: datetime.now(UTC))
        )
        self._meter.watch("leader", "1 while this process leads.", lambda: float(self._leading))
        self._meter.watch("queue_depth", "Keys that are due and wait for a worker.", lambda: self._queue.overdue)
        self._meter.watch("queue_waiting", "Keys that wait, due or not.", lambda: len(self._queue))
        self._meter.watch("passes_running", "Passes that run now.", lambda: self._queue.busy)
        self._meter.watch("watch_lag_seconds", "How long a change has been missing from our copies.", self._lag)

    def _lag(self) -> float:
        return self._watchdog.lag_seconds if self._watchdog else 0.0

    def _alive(self) -> str:
        if self._lag() > TOLERATED_SECONDS:
            return f"a watch is dead: a change has been missing for {self._lag():.0f} s"
        if self._reconciler and self._reconciler.longest_pass_seconds > LONGEST_PASS_SECONDS:
            return f"a pass has run for {self._reconciler.longest_pass_seconds:.0f} s"
        return ""

    def _ready(self) -> str:
        if self._leading and not self._watching.is_set():
            return "the watches have not started"
        return ""
