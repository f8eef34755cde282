"""Between the operator and a real API server, requests fail and watch events get lost: nothing is lost or done twice.

Whatever else acts (the controllers, whoever plays the kubelet, the user) reaches the API server directly, and a watch
from the side counts every Job and every Deployment that was ever created.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import definitions
import kubelet
import pytest
from aiohttp import web
from direct import Direct, Raw, direct
from proxy import Fault, FaultyProxy
from rig import access

from kubedistill_api.base import Stage
from kubedistill_api.exits import Exit
from kubedistill_api.results import FailedResult, Success
from kubedistill_api.run import Run
from kubedistill_api.status import FailureClass

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
CRD = "distillationjobs.kubedistill.io"
DJ = "apis/kubedistill.io/v1alpha1/namespaces/{}/distillationjobs"
CHILDREN = (
    "apis/batch/v1/namespaces/{}/jobs",
    "apis/apps/v1/namespaces/{}/deployments",
    "api/v1/namespaces/{}/pods",
    "api/v1/namespaces/{}/services",
    "api/v1/namespaces/{}/configmaps",
    "api/v1/namespaces/{}/persistentvolumeclaims",
)
PATIENCE_SECONDS = 120
TEACHER_PORT = 8000

OPERATOR = """
import os, socket, sys
from kubedistill_operator.__main__ import main
ask = socket.getaddrinfo
def answer(host, *rest, **named):
    # There is no cluster DNS where there is no node.
    return ask(os.environ["TEACHERS"] if str(host).endswith(".svc") else host, *rest, **named)
socket.getaddrinfo = answer
sys.exit(main())
"""


@dataclass
class Ledger:
    """Every object of some kinds that was ever created: uids by name. And the names of those that were deleted."""

    created: dict[str, dict[str, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))
    deleted: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    async def keep(self, api: Direct, kind: str, path: str) -> None:
        """Write down, for ever."""
        async for event in api.watch(path):
            metadata = event["object"]["metadata"]
            self.created[kind][metadata["name"]].add(metadata["uid"])
            if event["type"] == "DELETED":
                self.deleted[kind].add(metadata["name"])

    def of(self, kind: str, job: str) -> dict[str, int]:
        """How many of each name one DistillationJob had."""
        return {name: len(uids) for name, uids in self.created[kind].items() if name.startswith(f"{job}-")}


@dataclass
class Supervised:
    """The operator, started anew when it ends, as Kubernetes does it."""

    environment: dict[str, str]
    log: Path
    exits: list[tuple[int, str]] = field(default_factory=list)
    """Exit codes, and the last words before each."""

    async def run(self) -> None:
        """For ever."""
        while True:
            begin = self.log.stat().st_size if self.log.exists() else 0
            with self.log.open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", OPERATOR, env=self.environment, stdout=log, stderr=log
                )
                try:
                    code = await process.wait()
                finally:
                    if process.returncode is None:
                        process.kill()
                        await process.wait()
            assert len(self.exits) < 10, "it ends again and again: " + self.log.read_text(errors="replace")[begin:]
            self.exits.append((code, self.log.read_text(errors="replace")[begin:][-3000:]))


@dataclass
class World:
    """A namespace that an operator serves from behind a faulty proxy."""

    api: Direct
    namespace: str
    proxy: FaultyProxy
    ledger: Ledger
    operator: Supervised

    async def create(self, name: str, **spec: Any) -> None:
        await self.api.ask("POST", "/" + DJ.format(self.namespace), a_job(name, **spec))

    async def delete(self, name: str) -> None:
        await self.api.ask("DELETE", "/" + DJ.format(self.namespace) + f"/{name}")

    async def status(self, name: str) -> Raw:
        found = await self.api.find("/" + DJ.format(self.namespace) + f"/{name}") or {}
        status: Raw = found.get("status", {})
        return status

    async def ended(self, *names: str) -> bool:
        return {(await self.status(name)).get("phase") for name in names} <= {"Succeeded", "Failed"}

    async def is_gone(self, job: str) -> bool:
        """Whether no child of a DistillationJob is left."""
        selector = f"?labelSelector=kubedistill.io/job={job}"
        listed = [await self.api.ask("GET", "/" + path.format(self.namespace) + selector) for path in CHILDREN]
        return not any(found["items"] for found in listed)

    async def has_job(self, name: str) -> bool:
        return name in self.ledger.created["Job"]

    async def generates(self, job: str) -> bool:
        stages = (await self.status(job)).get("stages", [])
        return any(stage["name"] == "Generate:t" and stage["state"] == "Running" for stage in stages)

    async def has_ended_once(self) -> bool:
        return bool(self.operator.exits)


def a_job(name: str, **spec: Any) -> Raw:
    return {
        "apiVersion": "kubedistill.io/v1alpha1",
        "kind": "DistillationJob",
        "metadata": {"name": name},
        "spec": {
            "teachers": [batch("t")],
            "student": {"model": {"uri": "hf://acme/student"}},
            "data": {"train": {"uri": "pvc://data/train.jsonl"}},
            "generation": {"shards": 2, "parallelism": 1},
            "output": {"uri": f"pvc://data/{name}"},
            **spec,
        },
    }


def batch(name: str) -> Raw:
    return {"name": name, "model": {"uri": f"hf://acme/{name}"}, "batch": {"engine": "Transformers"}}


def served(name: str) -> Raw:
    return {"name": name, "model": {"uri": f"hf://acme/{name}"}, "serving": {}}


def script(run: Run) -> Success | FailedResult | None:
    """How the pods of each job end."""
    match run.job.name, run.stage:
        case "refused", Stage.TRAIN:
            return failed(run, Exit.BAD_DATA, FailureClass.BAD_DATA)
        case "again", Stage.TRAIN if run.attempt == 1:
            return failed(run, Exit.TRANSIENT, FailureClass.INFRASTRUCTURE)
        case "dropped", Stage.GENERATE:
            return None
        case _:
            return kubelet.success(run)


def failed(run: Run, code: Exit, class_: FailureClass) -> FailedResult:
    return FailedResult.model_validate(
        {"stage": run.stage, "exit_code": int(code), "class": class_, "reason": "Scripted", "message": "As asked."}
    )


async def until(what: Callable[[], Awaitable[Any]], why: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until it is true."""
    end = time.monotonic() + seconds
    while not await what():
        assert time.monotonic() < end, f"not within {seconds} s: {why}"
        await asyncio.sleep(0.25)


@asynccontextmanager
async def teachers() -> AsyncIterator[str]:
    """Servers that answer a completion, on a loopback address of their own: the port is the Deployment's."""

    async def complete(_: web.Request) -> web.Response:
        return web.json_response({"choices": [{"text": " there"}]})

    application = web.Application()
    application.router.add_post("/v1/completions", complete)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    address = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(2, 254)}"
    await web.TCPSite(runner, address, TEACHER_PORT).start()
    try:
        yield address
    finally:
        await runner.cleanup()


@asynccontextmanager
async def a_world(kubeconfig: Path, namespace: str, seed: int, folder: Path) -> AsyncIterator[World]:
    definitions.install(kubeconfig, ROOT / "crds/distillationjobs.yaml", CRD)
    access.kubectl(kubeconfig, "create", "namespace", namespace)
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(direct(kubeconfig))
        proxy = await stack.enter_async_context(FaultyProxy(api, seed))
        address = await stack.enter_async_context(teachers())
        faulty = folder / "kubeconfig"
        faulty.write_text(json.dumps(proxy.kubeconfig()))
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("KUBEDISTILL_")},
            "KUBECONFIG": str(faulty),
            "TEACHERS": address,
            "KUBEDISTILL_NAMESPACES": namespace,
            "KUBEDISTILL_LEASE_NAMESPACE": namespace,
            "KUBEDISTILL_PORT": "0",
            "KUBEDISTILL_AUDIT_SECONDS": "2",
            "KUBEDISTILL_RETRY_BASE_SECONDS": "1",
            "KUBEDISTILL_PROGRESS_SECONDS": "1",
        }
        world = World(api, namespace, proxy, Ledger(), Supervised(environment, folder / "operator.log"))
        paths = {"Job": CHILDREN[0], "Deployment": CHILDREN[1]}
        works = [
            world.operator.run(),
            kubelet.Kubelet(api, namespace, script).run(),
            *(world.ledger.keep(api, kind, "/" + path.format(namespace)) for kind, path in paths.items()),
        ]
        tasks = [asyncio.create_task(work) for work in works]
        try:
            yield world
            assert not [task.exception() for task in tasks if task.done()]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            access.kubectl(kubeconfig, "delete", "namespace", namespace, "--wait=false")


ONCE = {"prepare-1": 1, "generate-t-1": 1, "train-1": 1, "evaluate-1": 1, "publish-1": 1}
SHAPES: dict[str, Raw] = {
    "batch": {},
    "served": {"teachers": [served("t")]},
    "two": {"teachers": [batch("t"), batch("u")]},
    "refused": {},
    "again": {},
}
JOBS: dict[str, dict[str, int]] = {
    "batch": ONCE,
    "served": ONCE,
    "two": {**ONCE, "generate-u-1": 1},
    "refused": {"prepare-1": 1, "generate-t-1": 1, "train-1": 1},
    "again": {**ONCE, "train-2": 1},
}


@pytest.mark.parametrize("seed", [11])
async def test_nothing_is_lost_and_nothing_is_done_twice(api_server: Path, tmp_path: Path, seed: int) -> None:
    async with a_world(api_server, f"faults-{seed}", seed, tmp_path) as world:
        await world.create("dropped", teachers=[served("t")])
        for name, spec in SHAPES.items():
            await world.create(name, **spec)

        await until(lambda: world.generates("dropped"), "dropped asks its teacher")
        await world.delete("dropped")
        await until(lambda: world.ended(*SHAPES), "all jobs end")
        await until(lambda: world.is_gone("dropped"), "nothing of dropped is left")
        assert world.proxy.unplayed() == set()

        statuses = {name: await world.status(name) for name in SHAPES}
        phases = {**dict.fromkeys(SHAPES, "Succeeded"), "refused": "Failed"}
        assert {name: status["phase"] for name, status in statuses.items()} == phases
        assert statuses["refused"]["lastFailure"]["exitCode"] == Exit.BAD_DATA
        assert statuses["again"]["lastFailure"]["exitCode"] == Exit.TRANSIENT
        created = {name: world.ledger.of("Job", name) for name in JOBS}
        assert created == {
            name: {f"{name}-{stage}": count for stage, count in wanted.items()} for name, wanted in JOBS.items()
        }
        assert world.ledger.of("Job", "dropped") == {"dropped-prepare-1": 1, "dropped-generate-t-1": 1}
        ended = world.ledger.deleted["Job"] - set(world.ledger.of("Job", "dropped"))
        assert ended == set(), "a Job that has ended stays until its TTL: people read its log"
        teachers = {name: len(uids) for name, uids in world.ledger.created["Deployment"].items()}
        assert teachers == {"served-teacher-t-1": 1, "dropped-teacher-t-1": 1}
        lost = ("the lease is lost: another operator leads", "the lease ran out before a write")
        assert [last for _, last in world.operator.exits if not any(words in last for words in lost)] == []


async def test_an_operator_whose_watch_fails_for_good_ends_and_the_next_one_goes_on(
    api_server: Path, tmp_path: Path
) -> None:
    async with a_world(api_server, "faults-fatal", 0, tmp_path) as world:
        world.proxy.faults = False
        await world.create("batch")
        await until(lambda: world.has_job("batch-prepare-1"), "batch begins")
        world.proxy.play("event", Fault.FATAL)
        await until(world.has_ended_once, "the process ends", 30)
        await until(lambda: world.ended("batch"), "batch ends all the same")
        assert (await world.status("batch"))["phase"] == "Succeeded"
        assert world.ledger.of("Job", "batch") == {f"batch-{stage}": count for stage, count in ONCE.items()}
        assert [code for code, _ in world.operator.exits] == [1]
