"""Who leads: the official client's election on a Lease, made deaf to blips and blind to nothing.

The library renews; this module bounds each request in time, remembers when a renewal was last sent and succeeded, and
lets no write pass after the lease may have run out (a process that was stopped and resumed must not believe its past).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
from kubernetes.aio import client
from kubernetes.aio.client import ApiClient, ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from kubedistill_operator.cluster.errors import LeadershipLostError
from kubedistill_operator.handlers.installation import Lease

T = TypeVar("T")
log = logging.getLogger(__name__)


class Fence:
    """Says whether this process may still write."""

    def __init__(self, valid_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`valid_seconds` after a renewal was sent, another process may lead."""
        self._valid_seconds = valid_seconds
        self._clock = clock
        self._renewed_at: float | None = None

    @property
    def held(self) -> bool:
        """Whether the lease cannot have run out yet."""
        return self._renewed_at is not None and self._clock() - self._renewed_at < self._valid_seconds

    def renewed(self, sent_at: float) -> None:
        """A renewal that was sent at this time succeeded."""
        self._renewed_at = sent_at

    def check(self) -> None:
        """Pass, or raise.

        Raises:
            LeadershipLostError: the lease may have run out.
        """
        if not self.held:
            raise LeadershipLostError("the lease was not renewed in time: another operator may lead")


class FencedLock(LeaseLock):  # type: ignore[misc]  # the client has no types here
    """The library's lock with requests that end in time, as errors that its loop understands."""

    def __init__(self, lease: Lease, api_client: ApiClient, fence: Fence) -> None:
        super().__init__(lease.name, lease.namespace, lease.identity, api_client)
        self._fence = fence
        self._patience_seconds = lease.seconds / 3

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        """The record, or the error that kept it from us."""
        try:
            return await self._bounded(super().get(name, namespace))
        except ApiException as error:
            return False, error

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        """Take a lease that nobody has. The library's own way asks for `pretty=True`, which its models refuse."""
        body = client.V1Lease(metadata=client.V1ObjectMeta(name=name), spec=self.update_lease(election_record))

        async def create() -> bool:
            await self.api_instance.create_namespaced_lease(namespace, body)
            return True

        return await self._written(create)

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        """Renew, or take over."""
        return await self._written(lambda: super(FencedLock, self).update(name, namespace, updated_record))

    async def release(self) -> None:
        """Let the next one begin at once instead of waiting for the lease to run out."""
        api = client.CoordinationV1Api(api_client=self.api_instance.api_client)
        try:
            lease = await self._bounded(api.read_namespaced_lease(self.name, self.namespace))
            if lease.spec.holder_identity == self.identity:
                lease.spec.holder_identity = None
                await self._bounded(api.replace_namespaced_lease(self.name, self.namespace, lease))
        except ApiException as error:
            log.info("the lease was not released, it will run out: %s", error.reason)

    async def _written(self, write: Callable[[], Awaitable[bool]]) -> bool:
        sent_at = time.monotonic()
        try:
            succeeded = await self._bounded(write())
        except ApiException as error:
            log.warning("the lease was not written: %s", error.reason)
            return False
        if succeeded:
            self._fence.renewed(sent_at)
        return succeeded

    async def _bounded(self, request: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._patience_seconds):
                return await request
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiException(status=0, reason=f"{type(error).__name__} {error}".strip()) from error


async def lead(
    lease: Lease, api_client: ApiClient, fence: Fence, work: Callable[[], Awaitable[None]], stop: asyncio.Event
) -> bool:
    """Wait for the lease, then work until the work ends or the lease is lost. True: it ended; False: it was lost.

    `stop` ends the waiting; work that has begun must end by itself.
    """
    lock = FencedLock(lease, api_client, fence)
    began: list[asyncio.Task[None]] = []
    ended = asyncio.Event()

    async def started() -> None:
        log.info("leading as %s", lease.identity)
        began.append(asyncio.ensure_future(work()))
        try:
            await asyncio.wait(began)
        finally:
            ended.set()

    config = Config(
        lock,
        lease_duration=lease.seconds,
        renew_deadline=lease.seconds * 2 / 3,
        retry_period=max(1.0, lease.seconds / 7.5),
        onstarted_leading=started,
        onstopped_leading=_nothing,
    )
    election = asyncio.create_task(LeaderElection(config).run(), name="leader election")
    others = [asyncio.create_task(ended.wait()), asyncio.create_task(_stopped_idle(stop, began))]
    try:
        await asyncio.wait([election, *others], return_when=asyncio.FIRST_COMPLETED)
        if ended.is_set() and began[0].done():
            await lock.release()
            began[0].result()
            return True
        if election.done():
            election.result()
            return False
        return True
    finally:
        for task in (election, *others, *began):
            task.cancel()
        await asyncio.gather(election, *others, *began, return_exceptions=True)


async def _nothing() -> None:
    """The caller learns that the lease is lost from the election's end."""


async def _stopped_idle(stop: asyncio.Event, began: list[asyncio.Task[None]]) -> None:
    """Ends when this process shall stop and has not begun to work."""
    await stop.wait()
    if began:
        await asyncio.wait(began)
