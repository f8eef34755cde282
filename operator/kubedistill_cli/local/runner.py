"""The loop: observe, plan, act, record, and show, twice a second, until the job ends or rests."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol

from kubedistill_api import uris
from kubedistill_api.job import DistillationJob
from kubedistill_api.status import Status
from kubedistill_cli.local.cluster import LocalCluster
from kubedistill_cli.local.folders import JobFolder
from kubedistill_cli.local.records import JobRecord
from kubedistill_operator.core.planner import plan
from kubedistill_operator.core.seen import Seen
from kubedistill_operator.core.settings import Settings

PAUSE_SECONDS = 0.5


class View(Protocol):
    """What shows a job while it runs."""

    def show(self, job: DistillationJob, seen: Seen) -> None:
        """Show the job as it is now."""
        ...

    def say(self, text: str) -> None:
        """Say a sentence."""
        ...


class BusyError(Exception):
    """Another runner works on this job."""


def local_settings(folder: JobFolder) -> Settings:
    """Short pauses, and a folder as the workspace."""
    return Settings(
        workspace_uri=uris.of_path(str(folder.workspace.resolve())),
        local_files=True,
        max_workers=os.cpu_count() or 1,
        retry_base_seconds=1,
        retry_limit_seconds=15,
        progress_seconds=1,
    )


@contextmanager
def locked(folder: JobFolder) -> Iterator[None]:
    """Only one runner works on a job.

    Raises:
        BusyError: another one does.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise BusyError(f"another `kubedistill run` (process {file.read().strip()}) works on it") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


async def run(job: DistillationJob, record: JobRecord, folder: JobFolder, view: View) -> Status:
    """Run a job until it ends. The first Ctrl-C suspends it, the second ends everything at once."""
    settings = local_settings(folder)
    cluster = LocalCluster(job, record, folder)
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if asked.is_set():
            view.say("Killed. What was committed is kept; the same command goes on from there.")
            cluster.close()
            os._exit(128 + signal.SIGINT)
        asked.set()
        cluster.suspend()
        view.say("Stopping at a checkpoint; press Ctrl-C again to kill.")

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        while True:
            current, seen = await one_pass(cluster, job, settings)
            view.show(current, seen)
            rests = current.status.suspended_time is not None and current.spec.suspend
            if (current.status.finished or rests) and cluster.at_rest():
                return current.status
            await asyncio.sleep(PAUSE_SECONDS)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        cluster.close()


async def one_pass(cluster: LocalCluster, job: DistillationJob, settings: Settings) -> tuple[DistillationJob, Seen]:
    """What the operator does: see, decide, act, record."""
    current = await cluster.job(job.metadata.namespace, job.metadata.name) or job
    seen = await cluster.observe(current)
    step = plan(current, seen, datetime.now(UTC), settings)
    for lease in step.leases:
        await cluster.lease(current, lease)
    for manifest in step.apply:
        await cluster.apply(current, manifest)
    for ref in step.delete:
        await cluster.delete(current, ref)
    if step.status != current.status:
        await cluster.write_status(current, step.status)
    return current.model_copy(update={"status": step.status}), seen
