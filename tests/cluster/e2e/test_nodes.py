"""A training over two pods on a real cluster: they find each other by name, and one that is killed takes both along."""

from __future__ import annotations

import time
from typing import Any

import pytest
from walk.jobs import toy_job
from walk.kube import Kube, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

NAME = "two-nodes"
WITHIN_SECONDS = 120
"""From the end of one rank to a new attempt of all (docs/decisions/0016)."""
KILL_A_RANK = """
import os, pathlib, signal
for process in pathlib.Path("/proc").glob("[0-9]*"):
    if int(process.name) != os.getpid() and b"spawn_main" in (process / "cmdline").read_bytes():
        os.kill(int(process.name), signal.SIGKILL)
"""


def pods_of(kube: Kube, attempt: int) -> list[dict[str, Any]]:
    """The training's pods of an attempt that run."""
    found = kube.children(NAME, "pods", "Train")
    of_attempt = [pod for pod in found if pod["metadata"]["labels"]["kubedistill.io/attempt"] == str(attempt)]
    return [pod for pod in of_attempt if pod["status"].get("phase") == "Running"]


def step(kube: Kube) -> int:
    return int((kube.status(NAME).get("training") or {}).get("step", 0))


def test_two_pods_train_together_and_start_anew_together(kube: Kube) -> None:
    kube("delete", "dj", NAME, "--ignore-not-found", "--wait=true")
    job = toy_job(NAME, workspace={"pvc": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}})
    little = {"cpu": "100m", "memory": "512Mi"}  # two pods on one small node
    job["spec"]["stageTemplates"] = [{"stage": "Train", "resources": {"requests": little}}]
    training = job["spec"]["training"]
    training |= {"nodes": 2, "deepspeed": {"zeroStage": 2}, "checkpoints": {"everySteps": 20}}
    training["hyperparameters"] |= {"microBatchSize": 4, "epochs": 200, "learningRate": 1e-4}
    kube.apply(job)
    until("two pods train", lambda: step(kube) > 20, 600)
    first = pods_of(kube, 1)
    assert {pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] for pod in first} == {"0", "1"}
    second = next(pod["metadata"]["name"] for pod in first if pod["metadata"]["name"].startswith(f"{NAME}-train-1-1"))
    kube("exec", second, "--", "python", "-c", KILL_A_RANK)
    killed = time.monotonic()
    until("both run again", lambda: len(pods_of(kube, 2)) == 2, WITHIN_SECONDS)
    assert time.monotonic() - killed < WITHIN_SECONDS
    failure = kube.status(NAME)["lastFailure"]
    assert (failure["stage"], failure["pod"], failure["reason"]) == ("Train", second, "RankKilled")

    def trained() -> bool:
        stages = {stage["name"]: stage["state"] for stage in kube.status(NAME)["stages"]}
        return stages["Train"] == "Succeeded"

    until("the training ends", trained, 600)
    status = kube.status(NAME)
    assert status["training"]["step"] == status["training"]["totalSteps"]
    assert next(stage for stage in status["stages"] if stage["name"] == "Train")["restarts"] == 1
    kube("delete", "dj", NAME, "--wait=true")
    assert not kube.children(NAME, "services")
