"""The operator may be away: the teacher's resources are freed all the same, and the job goes on when it is back."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from conftest import toy_job
from walk import steps
from walk.kube import Kube, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

NAME = "away"


@pytest.fixture
def scaled(operator: Kube) -> Any:
    """A way to scale the operator, which is put back at the end."""

    def to(replicas: int) -> None:
        operator("scale", "deployment/kubedistill-operator", f"--replicas={replicas}")
        operator("rollout", "status", "deployment/kubedistill-operator", "--timeout=120s")

    yield to
    to(2)


def test_scaled_to_zero_in_mid_generate_frees_the_teacher_and_loses_nothing(
    kube: Kube, operator: Kube, scaled: Any
) -> None:
    ttl = int(yaml.safe_load(steps.VALUES.read_text())["settings"]["stageTTLSeconds"])
    kube("delete", "dj", NAME, "--ignore-not-found", "--wait=true")
    teacher = {
        "name": "toy",
        "model": {"uri": "pvc://kubedistill-models/toy"},
        "serving": {
            "image": "localhost/kubedistill/vllm-cpu:dev",
            "gpusPerNode": 0,
            "maxModelLen": 512,
            "extraArgs": ["--enforce-eager", "--dtype=float32"],
            "startupTimeoutSeconds": 900,
        },
    }
    data = {"train": {"uri": "pvc://kubedistill-data/support-train.jsonl"}}
    kube.apply(toy_job(NAME, teachers=[teacher], data=data))
    until("asking starts", lambda: kube.status(NAME).get("phase") == "Generating", 900, every_seconds=1)
    scaled(0)
    until(
        "no operator is left",
        lambda: operator.get("pods", "", "-l", "app.kubernetes.io/component=operator")["items"] == [],
        60,
    )
    mine = ("", "-l", f"kubedistill.io/job={NAME}")
    until(
        "the Generate Job has ended and is gone",
        lambda: not kube.get("jobs", *mine, "-l", "kubedistill.io/stage=Generate")["items"],
        600 + ttl,
    )
    until("the teacher is gone with it", lambda: not kube.get("deployments", *mine)["items"], 60)
    until(
        "its pods are gone too", lambda: not kube.get("pods", *mine, "-l", "kubedistill.io/stage=Teacher")["items"], 90
    )
    scaled(2)
    kube.wait(NAME, "condition=Succeeded", 900)
    assert kube.status(NAME)["result"]["modelURI"] == f"pvc://kubedistill-students/{NAME}"
