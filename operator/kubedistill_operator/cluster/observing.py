"""How a job's children are looked at: the watches' copies, and what they cannot tell, which is asked for.

It writes nothing to the API server. What it reads there and the watches had missed, it puts into their copies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import aiohttp

from kubedistill_api.identity import LABEL_ATTEMPT, LABEL_JOB_UID, LABEL_STAGE, LABEL_TEACHER
from kubedistill_api.job import DistillationJob
from kubedistill_api.status import StageState, StageStatus, Status
from kubedistill_operator.cluster.api import Api
from kubedistill_operator.cluster.caches import Caches
from kubedistill_operator.cluster.errors import ClusterError
from kubedistill_operator.cluster.kinds import Raw, controller_uid, labels, path, version
from kubedistill_operator.cluster.probes import ProgressProbe, TeacherProbe
from kubedistill_operator.cluster.reading import (
    is_active,
    lacks_ends,
    last_note,
    read_job,
    read_teacher,
    waits_for_pods,
    wants_log,
)
from kubedistill_operator.core.seen import Seen, SeenJob, SeenTeacher
from kubedistill_operator.core.times import since

CONTROLLER_LABEL = "batch.kubernetes.io/controller-uid"
"""On the pods of a Job, by the Job controller."""
LOG_LINES = 20
LOG_BYTES = 4096
YOUNG = timedelta(seconds=4)
"""So long the Job controller may take to make pods before we ask why there are none."""
LIVE_STATES = frozenset({StageState.WAITING, StageState.RUNNING})
OPEN_STATES = LIVE_STATES | {StageState.PENDING}


class Observer:
    """Sees the children of every DistillationJob."""

    def __init__(
        self,
        api: Api,
        caches: Caches,
        http: aiohttp.ClientSession,
        *,
        progress_seconds: float,
        wake: Callable[[str], None],
        now: Callable[[], datetime],
    ) -> None:
        """`wake` is called with the uid of a DistillationJob whose teacher began or ceased to answer."""
        self._api = api
        self._caches = caches
        self._progress = ProgressProbe(http, time.monotonic, progress_seconds)
        self._teachers = TeacherProbe(http, time.monotonic, self._teacher_changed)
        self._wake = wake
        self._now = now
        self._job_of_teacher: dict[str, str] = {}
        self._tails: dict[str, str] = {}

    async def observe(self, job: DistillationJob) -> Seen:
        """Every child that carries the job's uid, the progress of running pods, the last words of failed ones."""
        uid = job.metadata.uid
        await self._find_overlooked(job)
        pods = list(self._caches.children("Pod", uid))
        raw_jobs = list(self._caches.children("Job", uid))
        reports = await self._progress.pull(uid, [pod for pod in pods if is_active(pod) and _is_of_any(raw_jobs, pod)])
        tails = await self._log_tails(pods)
        jobs = [
            read_job(raw, pods, tails, [reports[p] for p in _pod_uids_of(raw, pods) if p in reports])
            for raw in raw_jobs
        ]
        jobs = await asyncio.gather(
            *(self._with_refused_pods(j, raw, pods) for j, raw in zip(jobs, raw_jobs, strict=True))
        )
        teachers = [read_teacher(raw, pods, tails) for raw in self._caches.children("Deployment", uid)]
        return Seen(
            jobs=tuple(sorted(_present(jobs), key=_job_order)),
            teachers=tuple(self._asked(uid, teacher) for teacher in sorted(_present(teachers), key=_teacher_order)),
            claim_bound=await self._claim_bound(job),
        )

    async def close(self) -> None:
        """Stop what runs beside the passes."""
        await self._teachers.close()

    def forget(self, job_uid: str) -> None:
        """Drop what is remembered of a job that is gone."""
        self._progress.forget(job_uid, [pod["metadata"]["uid"] for pod in self._caches.children("Pod", job_uid)])
        for teacher in [t for t, uid in self._job_of_teacher.items() if uid == job_uid]:
            del self._job_of_teacher[teacher]
            self._teachers.forget(teacher)

    async def _find_overlooked(self, job: DistillationJob) -> None:
        """Jobs that the status says are there, and pods that say how they ended: absence is confirmed by asking."""
        uid, namespace = job.metadata.uid, job.metadata.namespace
        recorded = {stage.job for stage in job.status.stages if stage.job and stage.state in LIVE_STATES}
        known = {raw["metadata"]["name"] for raw in self._caches.children("Job", uid)}
        found = await asyncio.gather(*(self._api.find(path("Job", namespace, n)) for n in sorted(recorded - known)))
        for raw in found:
            if raw is not None and labels(raw).get(LABEL_JOB_UID) == uid:
                self._caches.correct("Job", raw["metadata"]["uid"], raw)
        pods = list(self._caches.children("Pod", uid))
        for raw in list(self._caches.children("Job", uid)):
            if _is_open(job.status, raw) and lacks_ends(raw, pods):
                query = [("labelSelector", f"{CONTROLLER_LABEL}={raw['metadata']['uid']}")]
                copies = {pod["metadata"]["uid"]: version(pod) for pod in pods}
                for pod in (await self._api.get(path("Pod", namespace), query)).get("items") or []:
                    if copies.get(pod["metadata"]["uid"], -1) < version(pod):
                        self._caches.correct("Pod", pod["metadata"]["uid"], pod)

    async def _log_tails(self, pods: Iterable[Raw]) -> dict[str, str]:
        """The last lines of each failed pod's log, read once, by the pod's uid."""
        failed = {pod["metadata"]["uid"]: pod for pod in pods if wants_log(pod)}
        missing = [pod for uid, pod in failed.items() if uid not in self._tails]
        tails = await asyncio.gather(*(self._log_tail(pod) for pod in missing))
        self._tails.update({pod["metadata"]["uid"]: tail for pod, tail in zip(missing, tails, strict=True)})
        return {uid: self._tails[uid] for uid in failed}

    async def _log_tail(self, pod: Raw) -> str:
        metadata = pod["metadata"]
        query = [
            ("container", pod["spec"]["containers"][0]["name"]),
            ("tailLines", str(LOG_LINES)),
            ("limitBytes", str(LOG_BYTES * 4)),
        ]
        if pod["status"].get("phase") != "Failed":
            query.append(("previous", "true"))
        try:
            text = await self._api.get(path("Pod", metadata["namespace"], metadata["name"], "log"), query, accept="*/*")
        except ClusterError:
            return ""  # Its node or its log is gone; the exit code must do.
        return str(text)[-LOG_BYTES:].strip()

    async def _with_refused_pods(self, seen: SeenJob | None, raw: Raw, pods: Iterable[Raw]) -> SeenJob | None:
        """The Job controller tells only by an Event that it may not make pods; asked for where a Job has none."""
        if seen is None or not waits_for_pods(raw, pods) or since(seen.created_at, self._now()) < YOUNG:
            return seen
        query = [("fieldSelector", f"regarding.uid={seen.uid},reason=FailedCreate")]
        try:
            found = await self._api.get(path("Event", raw["metadata"]["namespace"]), query)
        except ClusterError:
            return seen  # We may not list Events, or cannot just now; the Job only seems to start.
        return replace(seen, pods_refused=last_note(found.get("items") or []))

    def _asked(self, job_uid: str, teacher: SeenTeacher) -> SeenTeacher:
        self._job_of_teacher[teacher.uid] = job_uid
        if not teacher.replicas_ready or teacher.deleting:
            self._teachers.forget(teacher.uid)
            return replace(teacher, message=_first_complaint(teacher))
        answer = self._teachers.answer(teacher.uid, teacher.url)
        return replace(teacher, answered=answer.answered, asked=answer.asked, message=answer.message)

    def _teacher_changed(self, teacher_uid: str) -> None:
        if job_uid := self._job_of_teacher.get(teacher_uid):
            self._wake(job_uid)

    async def _claim_bound(self, job: DistillationJob) -> bool | None:
        pvc = job.spec.workspace.pvc
        if pvc is not None and pvc.claim_name:
            claim = await self._api.find(path("PersistentVolumeClaim", job.metadata.namespace, pvc.claim_name))
        else:
            claim = next(iter(self._caches.children("PersistentVolumeClaim", job.metadata.uid)), None)
        return None if claim is None else claim.get("status", {}).get("phase") == "Bound"


def _is_open(status: Status, job: Raw) -> bool:
    """Whether what becomes of this Job is not recorded yet."""
    found = labels(job)
    name = ":".join(part for part in (found.get(LABEL_STAGE), found.get(LABEL_TEACHER)) if part)
    stage = status.stage(name) or StageStatus(name=name)
    return (
        stage.state in OPEN_STATES
        and found.get(LABEL_ATTEMPT, "").isdecimal()
        and (int(found[LABEL_ATTEMPT]) >= stage.attempt)
    )


def _present(found: Iterable[Any]) -> list[Any]:
    return [item for item in found if item is not None]


def _pod_uids_of(job: Raw, pods: Iterable[Raw]) -> list[str]:
    return [pod["metadata"]["uid"] for pod in pods if controller_uid(pod) == job["metadata"]["uid"]]


def _is_of_any(jobs: Iterable[Raw], pod: Raw) -> bool:
    return any(controller_uid(pod) == job["metadata"]["uid"] for job in jobs)


def _job_order(job: SeenJob) -> tuple[str, int]:
    return str(job.key), job.attempt


def _teacher_order(teacher: SeenTeacher) -> tuple[str, int]:
    return teacher.teacher, teacher.attempt


def _first_complaint(teacher: SeenTeacher) -> str:
    return next((f"{p.waiting_reason}: {p.waiting_message}" for p in teacher.pods if p.waiting_reason), "")
