"""The operator may be away: the teacher's resources are freed all the same, and the job goes on when it is back."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from walk import steps
from walk.jobs import toy_job
from walk.kube import Kube, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

NAME = "away"
TTL = int(yaml.safe_load(steps.VALUES.read_text())["operator"]["stageTtlSeconds"])


@pytest.fixture
def scaled(operator: Kube) -> Any:
    """A way to scale the operator, which is put back at the end."""

    def to(replicas: int) -> None:
        operator("scale", "deployment/kubedistill", f"--replicas={replicas}")
        operator("rollout", "status", "deployment/kubedistill", "--timeout=120s")

    yield to
    to(2)


def until_gone(kube: Kube, operator: Kube, name: str, seconds: int) -> None:
    """Wait with no operator until a job's Generate Job is gone, and its teacher with it."""
    component = ("-l", "app.kubernetes.io/name=kubedistill-operator")
    until("no operator is left", lambda: not operator.get("pods", "", *component)["items"], 60)
    until("the Generate Job is gone", lambda: not kube.children(name, "jobs", "Generate"), seconds)
    until("the teacher is gone with it", lambda: not kube.children(name, "deployments"), 60)
    served = ("-l", f"kubedistill.io/job={name},app.kubernetes.io/component=teacher")
    until("its pods are gone too", lambda: not kube.get("pods", "", *served)["items"], 90)


def test_away_while_the_teacher_starts_it_is_freed(kube: Kube, operator: Kube, scaled: Any) -> None:
    name = "away-early"
    kube("delete", "dj", name, "--ignore-not-found", "--wait=true")
    serving = {"image": "localhost/kubedistill/no-such-image:dev", "gpusPerNode": 0, "startupTimeoutSeconds": 60}
    teacher = {"name": "toy", "model": {"uri": "pvc://kubedistill-models/toy"}, "serving": serving}
    kube.apply(toy_job(name, teachers=[teacher]))
    until("the teacher starts", lambda: bool(kube.children(name, "deployments")), 600, every_seconds=1)
    scaled(0)
    until_gone(kube, operator, name, 2 * 60 + TTL + 60)
    kube("delete", "dj", name, "--wait=true")


def test_away_in_mid_generate_the_teacher_is_freed_and_nothing_lost(kube: Kube, operator: Kube, scaled: Any) -> None:
    kube("delete", "dj", NAME, "--ignore-not-found", "--wait=true")
    teacher = {
        "name": "toy",
        "model": {"uri": "pvc://kubedistill-models/toy"},
        "serving": {
            "image": "localhost/kubedistill/vllm-cpu:dev",
            "gpusPerNode": 0,
            "maxModelLen": 512,
            "extraArgs": ["--enforce-eager", "--dtype=float32", "--max-num-seqs=16", "--max-num-batched-tokens=8192"],
            "startupTimeoutSeconds": 900,
        },
    }
    data = {"train": {"uri": "pvc://kubedistill-data/support-train.jsonl"}}
    kube.apply(toy_job(NAME, teachers=[teacher], data=data))
    until("asking starts", lambda: kube.status(NAME).get("phase") == "Generating", 900, every_seconds=1)
    scaled(0)
    until_gone(kube, operator, NAME, 600 + TTL)
    scaled(2)
    kube.wait(NAME, "Succeeded", 900)
    generate = next(stage for stage in kube.status(NAME)["stages"] if stage["name"] == "Generate:toy")
    # Its end was read before the operator went, or found by a look after it came back: no teacher was started again.
    assert generate["state"] == "Succeeded" or generate["job"] == f"{NAME}-generate-toy-1-look"
    assert kube.status(NAME)["result"]["modelURI"] == f"pvc://kubedistill-students/{NAME}"
