"""The kubelet's part on an API server without nodes: pods get the statuses that a kubelet would write.

The controllers are real: they make the pods of Jobs and Deployments, count them, and end the Jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from direct import Direct, DirectError, Raw

from kubedistill_api.base import Stage
from kubedistill_api.results import (
    EvaluateResult,
    FailedResult,
    GenerateResult,
    PrepareResult,
    PublishResult,
    Success,
    TrainResult,
    termination_message,
)
from kubedistill_api.run import Run, read_run
from kubedistill_api.status import Estimate, Ledger, Score

Script = Callable[[Run], Success | FailedResult | None]
"""What the pod of a run says at its end; None: it goes on running."""


@dataclass
class Kubelet:
    """Plays every pod of one namespace."""

    api: Direct
    namespace: str
    script: Script
    begun: set[str] = field(default_factory=set)
    """Pods by their uid."""

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as plays:
            async for event in self.api.watch(f"/api/v1/namespaces/{self.namespace}/pods"):
                uid = event["object"]["metadata"]["uid"]
                if event["type"] != "DELETED" and uid not in self.begun:
                    self.begun.add(uid)
                    plays.create_task(self._play(event["object"]))

    async def _play(self, pod: Raw) -> None:
        try:
            await self._write(pod, "Running", {"running": {"startedAt": _now()}}, ready=True)
            name = pod["metadata"]["labels"].get("batch.kubernetes.io/job-name")
            if name is None:
                return  # A teacher: it serves until it is deleted.
            run_file = await self.api.ask("GET", f"/api/v1/namespaces/{self.namespace}/configmaps/{name}")
            said = self.script(read_run(run_file["data"]["run.json"]))
            if said is None:
                return
            code = said.exit_code if isinstance(said, FailedResult) else 0
            ended = {
                "exitCode": code,
                "reason": "Error" if code else "Completed",
                "message": termination_message(said),
                "startedAt": _now(),
                "finishedAt": _now(),
            }
            await self._write(pod, "Failed" if code else "Succeeded", {"terminated": ended}, ready=False)
        except DirectError as error:
            if error.status != 404:  # It was deleted.
                raise

    async def _write(self, pod: Raw, phase: str, state: Raw, *, ready: bool) -> None:
        container = pod["spec"]["containers"][0]
        status = {
            "phase": phase,
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": "",
                    "restartCount": 0,
                    "ready": ready,
                    "state": state,
                }
            ],
        }
        where = f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}/status"
        await self.api.merge(where, {"metadata": {"uid": pod["metadata"]["uid"]}, "status": status})


def success(run: Run) -> Success:
    """What a stage says that did its work."""
    said = {
        "input_digest": run.input_digest,
        "output_digest": f"sha256:out-{run.stage.lower()}-{run.input_digest[-8:]}",
        "folder": run.folder,
    }
    match run.stage:
        case Stage.PREPARE:
            return PrepareResult(**said, estimate=Estimate(rows=10))
        case Stage.GENERATE:
            missing = 2 if run.look_only else 0
            ledger = Ledger() if run.look_only else Ledger(accepted=9, rejected=1)
            return GenerateResult(**said, teacher=run.teacher.name, ledger=ledger, missing_shards=missing)
        case Stage.TRAIN:
            return TrainResult(**said, steps=5, loss=0.5, micro_batch_size=run.micro_batch_size)
        case Stage.EVALUATE:
            return EvaluateResult(**said, scores=[Score(metric="ROUGE", student="0.5", baseline="0.1")])
        case Stage.PUBLISH:
            return PublishResult(**said, model_uri=run.output.uri, digest="sha256:model", size_bytes=7)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
