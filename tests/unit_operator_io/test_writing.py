"""What is written, and what is left as it is: against a server that keeps the API server's rules for these objects."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration

from kubedistill_api.job import DistillationJob
from kubedistill_api.status import Status
from kubedistill_operator.cluster.api import APPLY_PATCH, Api
from kubedistill_operator.cluster.kinds import Raw, path
from kubedistill_operator.cluster.kubernetes import KubernetesCluster
from kubedistill_operator.core.plans import Lease, Manifest, Ref
from kubedistill_operator.core.ports import ConflictError

SPEC = {
    "teachers": [{"name": "big", "model": {"uri": "hf://acme/big"}, "serving": {}}],
    "student": {"model": {"uri": "hf://acme/small"}},
    "data": {"train": {"uri": "s3://acme/train.jsonl"}},
    "output": {"uri": "s3://acme/models/small"},
}
JOB = DistillationJob.model_validate({"metadata": {"name": "small", "namespace": "team", "uid": "uid-1"}, "spec": SPEC})
OWNER = {"apiVersion": "kubedistill.io/v1alpha1", "kind": "DistillationJob", "name": "small", "uid": "uid-1"}


@dataclass
class ApiServer:
    """Objects by their path. An immutable one is not changed, and one that changed since it was read is a conflict."""

    objects: dict[str, Raw] = field(default_factory=dict)
    patches: list[tuple[str, Any]] = field(default_factory=list)
    refusals: list[web.Response] = field(default_factory=list)
    """Answers to the next writes, before any is heard."""
    posted: list[Any] = field(default_factory=list)

    async def get(self, request: web.Request) -> web.Response:
        if request.path.endswith("/pods"):
            pods = [raw for where, raw in self.objects.items() if where.startswith(f"{request.path}/")]
            return web.json_response({"items": pods})
        found = self.objects.get(request.path.removesuffix("/status"))
        return web.json_response(found) if found else _status(404, "NotFound", "not found")

    async def post(self, request: web.Request) -> web.Response:
        if self.refusals:
            return self.refusals.pop()
        self.posted.append(json.loads(await request.text()))
        return web.json_response(self.posted[-1])

    async def status(self, request: web.Request) -> web.Response:
        """A JSON patch of the status, whose answer may be lost after it was committed."""
        version, status = (part["value"] for part in json.loads(await request.text()))
        raw = self.objects[request.path.removesuffix("/status")]
        if raw["metadata"]["resourceVersion"] != version:
            return _status(409, "Conflict", "the object has been modified")
        raw["metadata"]["resourceVersion"] = str(int(version) + 1)
        raw["status"] = status
        return self.refusals.pop() if self.refusals else web.json_response(raw)

    async def patch(self, request: web.Request) -> web.Response:
        if request.path.endswith("/status"):
            return await self.status(request)
        body = json.loads(await request.text())
        self.patches.append((request.path, body))
        before = self.objects.get(request.path)
        if before is None and request.content_type != APPLY_PATCH.split(";", maxsplit=1)[0]:
            return _status(404, "NotFound", "not found")
        before = before or {"metadata": {"resourceVersion": "0"}}
        for part in ("uid", "resourceVersion"):
            wanted = body["metadata"].get(part)
            if wanted is not None and wanted != before["metadata"].get(part):
                return _status(409, "Conflict", "the object has been modified")
        if before.get("immutable") and body.get("data") != before["data"]:
            return _status(422, "Invalid", "data: Forbidden: field is immutable when `immutable` is set")
        version = int(before["metadata"]["resourceVersion"]) + 1
        metadata = {"uid": "uid-new", **before["metadata"], **body["metadata"], "resourceVersion": str(version)}
        after = {**before, **body, "metadata": metadata, "spec": {**before.get("spec", {}), **body.get("spec", {})}}
        self.objects[request.path] = after
        return web.json_response(after)


def _status(code: int, reason: str, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "reason": reason, "message": message}, status=code)


@dataclass
class Caches:
    """What was watched: nothing, where a test only writes."""

    known: dict[str, dict[str, Raw]] = field(default_factory=dict)
    """By kind and uid."""
    gone: list[str] = field(default_factory=list)

    def job(self, namespace: str, name: str) -> Raw | None:
        return None

    def jobs(self) -> Iterable[Raw]:
        return ()

    def children(self, kind: str, job_uid: str) -> Iterable[Raw]:
        return list(self.known.get(kind, {}).values())

    def correct(self, kind: str, uid: str, raw: Raw | None) -> None:
        if raw is None:
            self.gone.append(uid)
        else:
            self.known.setdefault(kind, {})[uid] = raw


@pytest.fixture
def server() -> ApiServer:
    """The objects, and what was asked of them."""
    return ApiServer()


@pytest.fixture
def caches() -> Caches:
    """The copies."""
    return Caches()


@pytest.fixture
async def cluster(server: ApiServer, caches: Caches) -> AsyncIterator[KubernetesCluster]:
    """The operator's side of the seam, connected to it over HTTP."""
    app = web.Application()
    app.router.add_get("/{path:.*}", server.get)
    app.router.add_patch("/{path:.*}", server.patch)
    app.router.add_post("/{path:.*}", server.post)
    async with TestServer(app) as listening, aiohttp.ClientSession() as http:
        client = ApiClient(Configuration(host=str(listening.make_url("")).rstrip("/")))
        try:
            yield KubernetesCluster(Api(client), caches, http, progress_seconds=15)
        finally:
            await client.close()


def run_file(text: str) -> Manifest:
    owners = [{**OWNER, "controller": True}]
    metadata = {"name": "small-prepare-1", "namespace": "team", "ownerReferences": owners}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": True,
        "data": {"run.json": text},
    }


async def test_the_run_file_of_an_attempt_stands_though_another_version_would_write_it_differently(
    server: ApiServer, cluster: KubernetesCluster
) -> None:
    await cluster.apply(JOB, run_file("as the old operator wrote it"))
    await cluster.apply(JOB, run_file("as the new one would"))
    found = server.objects[path("ConfigMap", "team", "small-prepare-1")]
    assert found["data"] == {"run.json": "as the old operator wrote it"}
    assert len(server.patches) == 1


def lease(resource_version: str, workers: int = 0) -> Lease:
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    return Lease(Ref("Job", "small-generate-big-1", "uid-2"), begun, begun, 600, workers, resource_version)


async def test_a_lease_that_was_decided_by_an_older_copy_of_the_job_is_refused(
    server: ApiServer, cluster: KubernetesCluster
) -> None:
    where = path("Job", "team", "small-generate-big-1")
    spec = {"parallelism": 0, "activeDeadlineSeconds": 60}
    server.objects[where] = {"metadata": {"uid": "uid-2", "resourceVersion": "7"}, "spec": spec}
    await cluster.lease(JOB, lease("7", workers=3))
    given = {"parallelism": 3, "activeDeadlineSeconds": 600}
    assert server.objects[where]["spec"] == given
    with pytest.raises(ConflictError):
        await cluster.lease(JOB, replace(lease("7"), seconds=60))
    assert server.objects[where]["spec"] == given


DJ = path("DistillationJob", "team", "small")


def recorded(version: str = "7") -> Raw:
    return {
        "metadata": {"name": "small", "namespace": "team", "uid": "uid-1", "resourceVersion": version},
        "spec": SPEC,
    }


def read_at(version: str, **status: Any) -> DistillationJob:
    metadata = JOB.metadata.model_copy(update={"resource_version": version})
    return JOB.model_copy(update={"metadata": metadata, "status": Status.model_validate(status)})


PREPARING = Status.model_validate({"phase": "Preparing"})


async def test_a_status_whose_answer_was_lost_after_the_commit_was_written(
    server: ApiServer, cluster: KubernetesCluster
) -> None:
    server.objects[DJ] = recorded()
    server.refusals = [_status(504, "Timeout", "too late")]
    await cluster.write_status(read_at("7"), PREPARING)
    assert server.objects[DJ]["status"]["phase"] == "Preparing"


async def test_a_status_that_was_decided_by_an_older_copy_is_refused(
    server: ApiServer, cluster: KubernetesCluster
) -> None:
    server.objects[DJ] = recorded("8")
    with pytest.raises(ConflictError):
        await cluster.write_status(read_at("7"), PREPARING)
    assert "status" not in server.objects[DJ]


def stage() -> Manifest:
    return {**run_file(""), "apiVersion": "batch/v1", "kind": "Job", "data": {}}


def teacher() -> Manifest:
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "small-generate-1", "uid": "uid-2", "controller": True}
    metadata = {"name": "small-teacher-1", "namespace": "team", "ownerReferences": [owner]}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata}


ORPHANS = {
    "a Job whose DistillationJob is gone": (stage(), {}, "uid-1"),
    "a Job whose DistillationJob is another of its name": (stage(), {DJ: "uid-9"}, "uid-1"),
    "a teacher whose Job is gone": (teacher(), {DJ: "uid-1"}, "uid-2"),
}


@pytest.mark.parametrize(("manifest", "there", "gone"), ORPHANS.values(), ids=ORPHANS.keys())
async def test_nothing_that_holds_gpus_is_made_for_an_owner_that_is_gone(
    server: ApiServer,
    caches: Caches,
    cluster: KubernetesCluster,
    manifest: Manifest,
    there: dict[str, str],
    gone: str,
) -> None:
    server.objects = {where: {"metadata": {"uid": uid}} for where, uid in there.items()}
    with pytest.raises(ConflictError, match="is gone"):
        await cluster.apply(JOB, manifest)
    assert server.patches == []
    assert caches.gone == [gone]


async def test_a_job_is_made_for_one_that_is_there(server: ApiServer, cluster: KubernetesCluster) -> None:
    server.objects[DJ] = recorded()
    await cluster.apply(JOB, stage())
    assert path("Job", "team", "small-prepare-1") in server.objects


async def test_how_a_job_ended_is_asked_for_where_the_watch_of_its_pods_is_behind(
    server: ApiServer, caches: Caches, cluster: KubernetesCluster
) -> None:
    labels = {"kubedistill.io/job-uid": "uid-1", "kubedistill.io/stage": "Prepare", "kubedistill.io/attempt": "1"}
    done = {"conditions": [{"type": "Complete", "status": "True"}]}
    job = {"metadata": {"name": "small-prepare-1", "uid": "uid-2", "labels": labels}, "spec": {}, "status": done}
    owners = [{"uid": "uid-2", "controller": True}]
    metadata = {"name": "p", "namespace": "team", "uid": "uid-3", "ownerReferences": owners, "labels": labels}
    caches.known = {"Job": {"uid-2": job}, "Pod": {"uid-3": {"metadata": metadata, "status": {"phase": "Running"}}}}
    newer = {**metadata, "resourceVersion": "9"}
    server.objects[path("Pod", "team", "p")] = {"metadata": newer, "status": {"phase": "Succeeded"}}
    seen = await cluster.observe(JOB)
    assert [pod.phase for pod in seen.jobs[0].pods] == ["Succeeded"]


async def test_an_event_is_told_though_the_server_was_in_conflict_with_itself(
    server: ApiServer, cluster: KubernetesCluster
) -> None:
    server.refusals = [_status(409, "Conflict", "resourcequotas: the object has been modified")]
    await cluster.post_event({"metadata": {"namespace": "team", "name": "e"}})
    assert len(server.posted) == 1
