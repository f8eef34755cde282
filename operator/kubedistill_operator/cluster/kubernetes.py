"""`core.ports.Cluster` on a real Kubernetes: sees by an `Observer`, writes by server-side apply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import aiohttp
from pydantic import BaseModel, ValidationError

from kubedistill_api.base import KIND
from kubedistill_api.documents import schema_problems
from kubedistill_api.identity import ANNOTATION_STARTED, LABEL_JOB_UID
from kubedistill_api.job import DistillationJob
from kubedistill_api.rules import Problem
from kubedistill_api.status import Status
from kubedistill_operator.cluster.api import APPLY_PATCH, JSON_PATCH, MERGE_PATCH, Api
from kubedistill_operator.cluster.caches import Caches
from kubedistill_operator.cluster.errors import ChildRefusedError, ForeignObjectError, RefusedError
from kubedistill_operator.cluster.kinds import Raw, controller_uid, labels, path, version
from kubedistill_operator.cluster.observing import Observer
from kubedistill_operator.core.plans import Lease, Manifest, Ref
from kubedistill_operator.core.ports import ConflictError
from kubedistill_operator.core.seen import Refusal, Seen
from kubedistill_operator.core.times import rfc3339


class UnreadableJobError(Exception):
    """The object passed the CRD that is installed, but this operator's models cannot read it."""

    def __init__(self, raw: Raw, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.raw = raw
        self.problems = problems


class KubernetesCluster:
    """The children of every DistillationJob, on the API server."""

    def __init__(
        self,
        api: Api,
        caches: Caches,
        http: aiohttp.ClientSession,
        *,
        progress_seconds: float,
        wake: Callable[[str], None] = lambda uid: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`wake` is called with the uid of a DistillationJob whose teacher began or ceased to answer.

        `now` is the clock of the plans: by it they know how long the API server has refused a child.
        """
        self._api = api
        self._caches = caches
        self._observer = Observer(api, caches, http, progress_seconds=progress_seconds, wake=wake, now=now)
        self._written: dict[tuple[str, str], Raw] = {}
        self._foreign: dict[str, set[tuple[str, str, str]]] = {}
        self._refused: dict[str, dict[str, Refusal]] = {}
        self._now = now

    async def job(self, namespace: str, name: str) -> DistillationJob | None:
        """The job as the watch or our own last write knows it, whichever is newer.

        Raises:
            UnreadableJobError: this operator cannot read it.
        """
        cached = self._caches.job(namespace, name)
        written = self._written.get((namespace, name))
        if cached is None or (written is not None and version(written) <= version(cached)):
            self._written.pop((namespace, name), None)
            written = None
        raw = written or cached
        if raw is None:
            return None
        try:
            return DistillationJob.model_validate(raw)
        except ValidationError as error:
            raise UnreadableJobError(raw, schema_problems(error)) from error

    async def observe(self, job: DistillationJob) -> Seen:
        """Every child that carries the job's uid, and what stood in the way of those that could not be made."""
        uid = job.metadata.uid
        seen = await self._observer.observe(job)
        foreign = await self._still_foreign(job.metadata.namespace, uid)
        return replace(seen, foreign=foreign, refused=tuple(self._refused.get(uid, {}).values()))

    async def apply(self, job: DistillationJob, manifest: Manifest) -> None:
        """Make one child be as the manifest says, unless its name is somebody else's.

        Raises:
            ForeignObjectError: it is; the next observation tells the plan.
            ConflictError: an earlier child of this name is still being removed, or was replaced meanwhile.
            ChildRefusedError: the API server will not have it; the next observation tells the plan.
        """
        uid, child = job.metadata.uid, f"{manifest['kind']}/{manifest['metadata']['name']}"
        try:
            await self._apply(job, manifest)
        except ForeignObjectError:
            raise
        except RefusedError as error:
            self._note_refusal(uid, child, error)
            raise ChildRefusedError(child, error) from error
        self._refused.get(uid, {}).pop(child, None)

    async def _apply(self, job: DistillationJob, manifest: Manifest) -> None:
        kind, metadata = manifest["kind"], manifest["metadata"]
        namespace, name = job.metadata.namespace, metadata["name"]
        where = path(kind, namespace, name)
        existing = await self._api.find(where)
        if existing is not None:
            self._check_ownership(job, manifest, existing)
            if kind in ("Job", "ConfigMap"):
                # Both are immutable: an apply would take a Job's pods away, and of a run file that another version of
                # the operator would write differently, it would be refused for ever. What an attempt was told stands.
                return
            manifest = {**manifest, "metadata": {**metadata, "uid": existing["metadata"]["uid"]}}
        elif kind in ("Job", "Deployment"):
            await self._check_owner(namespace, manifest)
        await self._api.patch(where, manifest, APPLY_PATCH, query=(("force", "true"),))

    async def lease(self, job: DistillationJob, lease: Lease) -> None:
        """Move a Job's deadline, and give it pods where the lease has any, if it still is as it was seen.

        A copy that the watch has not brought up to date may show a Job held that was let run since: the time for
        which a held Job is renewed would then end its generation.

        Raises:
            ConflictError: it changed since, or another has its name.
        """
        ref = lease.job
        body: dict[str, Any] = {
            "metadata": {"uid": ref.uid},
            "spec": {"activeDeadlineSeconds": lease.deadline_seconds},
        }
        if lease.resource_version:
            body["metadata"]["resourceVersion"] = lease.resource_version
        if lease.workers:
            body["metadata"]["annotations"] = {ANNOTATION_STARTED: rfc3339(lease.now)}
            body["spec"]["parallelism"] = lease.workers
        await self._api.patch(path(ref.kind, job.metadata.namespace, ref.name), body, MERGE_PATCH)

    async def delete(self, job: DistillationJob, ref: Ref) -> None:
        """Delete one child, if it still has this uid. A Job stays, deleting, until its pods are gone."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": ref.uid},
            "propagationPolicy": "Foreground" if ref.kind == "Job" else "Background",
        }
        try:
            await self._api.delete(path(ref.kind, job.metadata.namespace, ref.name), body)
        except RefusedError as error:
            if error.status != 404:
                raise
        except ConflictError:
            now = await self._api.find(path(ref.kind, job.metadata.namespace, ref.name))
            if now is not None and now["metadata"]["uid"] == ref.uid:
                raise  # the server's own conflict

    async def write_status(self, job: DistillationJob, status: Status) -> None:
        """Replace the status, unless the object changed since it was read.

        Raises:
            ConflictError: it did.
        """
        await self.write_raw_status(job.metadata.namespace, job.metadata.name, job.metadata.resource_version, status)

    async def write_raw_status(self, namespace: str, name: str, resource_version: str, status: Status) -> None:
        """As `write_status`, for an object that the models cannot read."""
        wanted = plain_status(status)
        body = [
            # The API server compares a resourceVersion that a patch sets with the one that is there.
            {"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version},
            {"op": "add", "path": "/status", "value": wanted},
        ]
        where = path(KIND, namespace, name, "status")
        try:
            self._written[namespace, name] = await self._api.patch(where, body, JSON_PATCH)
        except ConflictError:
            # Either our copy is old, or a first try was committed and its answer lost.
            now = await self._api.find(path(KIND, namespace, name))
            if now is None:
                raise
            self._written[namespace, name] = now
            if now.get("status") != wanted:
                raise
        except RefusedError as error:
            if error.status != 404:
                raise
            raise ConflictError(f"{namespace}/{name} is gone") from error

    async def post_event(self, manifest: Manifest) -> None:
        """Tell people what happened; told twice, it is one Event, since its name says what it is about."""
        try:
            await self._api.post(path("Event", manifest["metadata"]["namespace"]), manifest)
        except RefusedError as error:
            # 404: the namespace is gone. 403 with this cause: it is going.
            if error.reason != "AlreadyExists" and error.status != 404 and "being terminated" not in error.message:
                raise

    async def close(self) -> None:
        """Stop what runs beside the passes."""
        await self._observer.close()

    def forget(self, job_uid: str) -> None:
        """Drop what is remembered of a job that is gone."""
        self._foreign.pop(job_uid, None)
        self._refused.pop(job_uid, None)
        self._observer.forget(job_uid)

    # Refusals

    def _note_refusal(self, job_uid: str, child: str, error: RefusedError) -> None:
        known = self._refused.setdefault(job_uid, {})
        before, now = known.get(child), self._now()
        known[child] = Refusal(
            child=child,
            message=error.message,
            times=before.times + 1 if before else 1,
            since=before.since if before else now,
            last=now,
        )

    # Ownership

    async def _check_owner(self, namespace: str, manifest: Manifest) -> None:
        """A watch may have missed the end of an owner, whose children the garbage collector removes as we make them.

        Raises:
            ConflictError: the owner is gone, or will be.
        """
        owner = next(owner for owner in manifest["metadata"]["ownerReferences"] if owner.get("controller"))
        kind, name, uid = owner["kind"], owner["name"], owner["uid"]
        now = await self._api.find(path(kind, namespace, name))
        if now is None or now["metadata"]["uid"] != uid:
            self._caches.correct(kind, uid, None)
            raise ConflictError(f"{kind} {name} is gone")
        if "deletionTimestamp" in now["metadata"]:
            raise ConflictError(f"{kind} {name} is being deleted")

    def _check_ownership(self, job: DistillationJob, manifest: Manifest, existing: Raw) -> None:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        owner, wanted = controller_uid(existing), controller_uid(manifest)
        if owner == wanted and "deletionTimestamp" not in existing["metadata"]:
            return
        if labels(existing).get(LABEL_JOB_UID) == job.metadata.uid and owner:
            raise ConflictError(f"an earlier {kind} {name} is still being removed")
        self._foreign.setdefault(job.metadata.uid, set()).add((kind, name, wanted))
        raise ForeignObjectError(kind, name)

    async def _still_foreign(self, namespace: str, job_uid: str) -> frozenset[str]:
        """Names that were taken when we tried, and still are."""
        found = set()
        for kind, name, wanted in list(self._foreign.get(job_uid, ())):
            existing = await self._api.find(path(kind, namespace, name))
            if existing is None or controller_uid(existing) == wanted:
                self._foreign[job_uid].discard((kind, name, wanted))
            else:
                found.add(f"{kind}/{name}")
        return frozenset(found)


def plain_status(status: Status) -> dict[str, Any]:
    """A status as it is written: what is empty and may be absent is, since an empty text is no timestamp."""
    plain: dict[str, Any] = _plain(status)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        written = [(field.alias or name, field, _plain(getattr(value, name))) for name, field in fields]
        return {key: item for key, field, item in written if field.is_required() or not _is_empty(item)}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def _is_empty(value: Any) -> bool:
    return value is None or value in ("", [], {})
