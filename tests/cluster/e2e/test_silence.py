"""A teacher that is stopped behind its healthy port is noticed, and its shards are asked for again at a new one."""

from __future__ import annotations

import time
from typing import Any

import pytest
from walk.jobs import toy_job
from walk.kube import Kube, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

NAME = "silent"
GENERATE = "Generate:toy"
WITHIN_SECONDS = 60
"""From the engine's stop to the condition that tells of it (promise P12)."""
STOP_THE_ENGINE = """
import os, pathlib, signal
stopped = 0
for process in pathlib.Path("/proc").glob("[0-9]*"):
    if int((process / "stat").read_text().rpartition(")")[2].split()[1]) == 1:  # a child of the server
        os.kill(int(process.name), signal.SIGSTOP)
        stopped += 1
assert stopped
"""
TEACHER = {
    "name": "toy",
    "model": {"uri": "pvc://kubedistill-models/toy"},
    "serving": {
        "image": "localhost/kubedistill/vllm-cpu:dev",
        "gpusPerNode": 0,
        "maxModelLen": 512,
        "extraArgs": ["--enforce-eager", "--dtype=float32", "--max-num-seqs=8", "--max-num-batched-tokens=8192"],
        "startupTimeoutSeconds": 900,
        "idleTimeoutSeconds": 90,
    },
}


def stage(kube: Kube) -> dict[str, Any]:
    found = [stage for stage in kube.status(NAME).get("stages", []) if stage["name"] == GENERATE]
    return found[0] if found else {}


def condition(kube: Kube) -> dict[str, Any]:
    return next((c for c in kube.status(NAME).get("conditions", []) if c["type"] == "TeacherReady"), {})


def done(kube: Kube) -> int:
    return int((stage(kube).get("progress") or {}).get("done", 0))


def served(kube: Kube) -> list[dict[str, Any]]:
    selector = f"kubedistill.io/job={NAME},app.kubernetes.io/component=teacher"
    pods: list[dict[str, Any]] = kube.get("pods", "", "-l", selector)["items"]
    return pods


def test_an_engine_that_hangs_is_noticed_and_its_shards_are_asked_for_again(kube: Kube) -> None:
    kube("delete", "dj", NAME, "--ignore-not-found", "--wait=true")
    # Enough to ask for some minutes: what is done is told every 15 seconds.
    data = {"train": {"uri": "pvc://kubedistill-data/support-train.jsonl"}, "maxRows": 200}
    job = toy_job(NAME, teachers=[TEACHER], data=data)
    job["spec"]["generation"] |= {"maxTokens": 256, "shards": 10}
    kube.apply(job)
    until("some answers are there", lambda: done(kube) > 0, 900)
    assert condition(kube)["status"] == "True"
    pod = served(kube)[0]["metadata"]["name"]
    kube("exec", pod, "--", "python3", "-c", STOP_THE_ENGINE)
    stopped = time.monotonic()
    until("it is told", lambda: condition(kube).get("reason") == "TeacherSilent", WITHIN_SECONDS)
    assert time.monotonic() - stopped < WITHIN_SECONDS
    assert "did not answer a completion" in condition(kube)["message"]
    assert served(kube)[0]["status"]["containerStatuses"][0]["ready"], "its port is healthy"
    assert "TeacherSilent" in kube.row(NAME)
    until("a second attempt begins", lambda: stage(kube).get("attempt") == 2, 240)
    failure = kube.status(NAME)["lastFailure"]
    assert (failure["stage"], failure["reason"]) == (GENERATE, "NoProgress")
    until("the answers are there", lambda: stage(kube).get("state") == "Succeeded", 900)
    generated = stage(kube)
    assert generated["ledger"]["accepted"] == generated["progress"]["total"], "no row is lost to a server that hangs"
    assert pod not in {each["metadata"]["name"] for each in served(kube)}
    kube("delete", "dj", NAME, "--wait=true")
