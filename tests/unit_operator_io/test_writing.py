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

    async def get(self, request: web.Request) -> web.Response:
        found = self.objects.get(request.path)
        return web.json_response(found) if found else _status(404, "NotFound", "not found")

    async def patch(self, request: web.Request) -> web.Response:
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


class NoCaches:
    """Nothing was watched: these tests only write."""

    def job(self, namespace: str, name: str) -> Raw | None:
        return None

    def jobs(self) -> Iterable[Raw]:
        return ()

    def children(self, kind: str, job_uid: str) -> Iterable[Raw]:
        return ()


@pytest.fixture
def server() -> ApiServer:
    """The objects, and what was asked of them."""
    return ApiServer()


@pytest.fixture
async def cluster(server: ApiServer) -> AsyncIterator[KubernetesCluster]:
    """The operator's side of the seam, connected to it over HTTP."""
    app = web.Application()
    app.router.add_get("/{path:.*}", server.get)
    app.router.add_patch("/{path:.*}", server.patch)
    async with TestServer(app) as listening, aiohttp.ClientSession() as http:
        client = ApiClient(Configuration(host=str(listening.make_url("")).rstrip("/")))
        try:
            yield KubernetesCluster(Api(client), NoCaches(), http, progress_seconds=15)
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
