"""What goes wrong is said: a condition, a reason and a sentence, in the status and in `kubectl get dj`."""

from __future__ import annotations

from typing import Any

import pytest
from walk import steps
from walk.jobs import toy_job
from walk.kube import Kube, WalkError, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

DATA = "kubedistill-data"


def serving(**more: Any) -> list[dict[str, Any]]:
    return [
        {
            "name": "toy",
            "model": {"uri": "pvc://kubedistill-models/toy"},
            "serving": {"gpusPerNode": 0, "startupTimeoutSeconds": 30, **more},
        }
    ]


def data(name: str) -> dict[str, Any]:
    return {"train": {"uri": f"pvc://{DATA}/{name}"}}


FILES = {
    "columns.jsonl": '{"ask": "How?", "reply": "So."}\n' * 20,
    "empty.jsonl": "",
    "broken.jsonl": '{"prompt": "fine"}\n{"prompt": "no end\n{"prompt": broken}\n' * 5,
}
GPU = {"serving": {"gpusPerNode": 8, "parallelism": {"tensor": 8}}}
CASES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "wrong-columns": ({"data": data("columns.jsonl")}, "BadData", ["ask", "reply", "data.columns"]),
    "empty-file": ({"data": data("empty.jsonl")}, "BadData", ["empty"]),
    "broken-lines": ({"data": data("broken.jsonl")}, "BadData", ["line 2", "column"]),
    "unknown-model": (
        {"teachers": [{"name": "toy", "model": {"uri": "pvc://kubedistill-models/nothing"}, **GPU}]},
        "NotFound",
        ["nothing"],
    ),
}


@pytest.fixture(scope="module")
def prepared(kube: Kube) -> Kube:
    """The broken files lie in the claim, and every bad job is applied at once."""
    for name, text in FILES.items():
        steps.write(kube, text, DATA, name)
    for name, (spec, _, _) in CASES.items():
        kube("delete", "dj", name, "--ignore-not-found", "--wait=true")
        kube.apply(toy_job(name, **spec))
    return kube


def failed(kube: Kube, name: str, seconds: int) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        status = kube.status(name)
        if status.get("phase") == "Succeeded":
            raise WalkError(f"{name} succeeded")
        return status if status.get("phase") == "Failed" else None

    status: dict[str, Any] = until(f"{name} fails", ended, seconds, every_seconds=2)
    return status


@pytest.mark.parametrize("name", CASES)
def test_what_prepare_can_know_ends_the_job_before_a_gpu_is_asked_for(prepared: Kube, name: str) -> None:
    _, class_, words = CASES[name]
    status = failed(prepared, name, 600)
    failure = status["lastFailure"]
    assert failure["class"] == class_
    assert failure["stage"] == "Prepare"
    assert all(word in failure["message"] for word in words), failure["message"]
    stalled = next(c for c in status["conditions"] if c["type"] == "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", failure["reason"])
    assert failure["reason"] in prepared.row(name)
    pods = prepared.children(name, "pods")
    assert {pod["metadata"]["labels"]["kubedistill.io/stage"] for pod in pods} <= {"Prepare"}
    asked = [c["resources"].get("limits", {}) for pod in pods for c in pod["spec"]["containers"]]
    assert not any("nvidia.com/gpu" in limits for limits in asked)


def test_a_teacher_that_never_gets_ready_is_named(kube: Kube) -> None:
    name = "never-ready"
    kube("delete", "dj", name, "--ignore-not-found", "--wait=true")
    teachers = serving(image="localhost/kubedistill/no-such-image:dev")
    kube.apply(toy_job(name, teachers=teachers, runPolicy={"maxRestarts": 0}))
    status = failed(kube, name, 600)
    failure = status["lastFailure"]
    assert failure["stage"] == "Teacher:toy"
    assert "image" in failure["message"].lower()
    assert failure["reason"] in kube.row(name)
    ready = next(c for c in status["conditions"] if c["type"] == "TeacherReady")
    assert ready["status"] == "False"
    until("the teacher is gone", lambda: not kube.children(name, "deployments"), 60)


def test_a_training_that_is_out_of_memory_is_named(kube: Kube) -> None:
    name = "oom"
    kube("delete", "dj", name, "--ignore-not-found", "--wait=true")
    little = {"stage": "Train", "resources": {"requests": {"memory": "64Mi"}, "limits": {"memory": "128Mi"}}}
    kube.apply(toy_job(name, stageTemplates=[little], runPolicy={"maxRestarts": 0}))
    status = failed(kube, name, 900)
    failure = status["lastFailure"]
    assert (failure["stage"], failure["class"]) == ("Train", "HostOutOfMemory")
    assert failure["exitCode"] == 137
    assert failure["pod"].startswith(f"{name}-train-")
    assert "memory" in failure["message"]
    assert failure["reason"] in kube.row(name)
