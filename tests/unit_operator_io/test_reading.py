"""What raw objects mean. Pods here are as a kubelet of 1.34 wrote them, cut to what is read."""

from __future__ import annotations

from typing import Any

import pytest

from kubedistill_api.base import Stage
from kubedistill_api.exits import Exit
from kubedistill_api.identity import StageKey
from kubedistill_api.results import FailedResult, termination_message
from kubedistill_api.status import FailureClass
from kubedistill_operator.cluster import kinds, reading
from kubedistill_operator.core.seen import JobState


def a_pod(status: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "ns", "uid": "pod-uid", "labels": {}, **metadata},
        "spec": {"nodeName": "node-1", "containers": [{"name": "stage"}]},
        "status": status or {},
    }


def a_job(status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    labels = {"kubedistill.io/stage": "Generate", "kubedistill.io/teacher": "big", "kubedistill.io/attempt": "2"}
    return {
        "metadata": {"name": "j", "uid": "job-uid", "labels": labels, "resourceVersion": "41"}
        | {"creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": spec,
        "status": status or {},
    }


def ended(**terminated: Any) -> dict[str, Any]:
    return {"phase": "Failed", "containerStatuses": [{"name": "stage", "state": {"terminated": terminated}}]}


def condition(type_: str, status: str = "True", **more: str) -> dict[str, Any]:
    return {"type": type_, "status": status, **more}


WAITING = {
    "unschedulable": (
        {"conditions": [condition("PodScheduled", "False", reason="Unschedulable", message="0/1 nodes")]},
        ("Unschedulable", "0/1 nodes"),
    ),
    "image": (
        {
            "containerStatuses": [
                {"name": "stage", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "x"}}}
            ]
        },
        ("ImagePullBackOff", "x"),
    ),
    "init-container-first": (
        {
            "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "ErrImagePull"}}}],
            "containerStatuses": [{"name": "stage", "state": {"waiting": {"reason": "PodInitializing"}}}],
        },
        ("ErrImagePull", ""),
    ),
    "running": ({"containerStatuses": [{"name": "stage", "state": {"running": {}}}]}, ("", "")),
    "scheduled": ({"conditions": [condition("PodScheduled")]}, ("", "")),
}


@pytest.mark.parametrize(("status", "expected"), WAITING.values(), ids=WAITING.keys())
def test_a_waiting_pod_says_why(status: dict[str, Any], expected: tuple[str, str]) -> None:
    pod = reading.read_pod(a_pod(status))
    assert (pod.waiting_reason, pod.waiting_message) == expected


DISRUPTED = {
    "preempted": ({"conditions": [condition("DisruptionTarget", reason="PreemptionByScheduler")]}, True),
    "not-any-more": ({"conditions": [condition("DisruptionTarget", "False")]}, False),
    "evicted": ({"phase": "Failed", "reason": "Evicted"}, True),
    "out-of-memory": (ended(exitCode=137, reason="OOMKilled"), False),
}


@pytest.mark.parametrize(("status", "expected"), DISRUPTED.values(), ids=DISRUPTED.keys())
def test_a_pod_is_disrupted_where_the_node_ended_it(status: dict[str, Any], expected: bool) -> None:
    assert reading.read_pod(a_pod(status)).disrupted is expected


def test_a_killed_pod_keeps_its_exit_code_reason_and_last_words() -> None:
    pod = reading.read_pod(a_pod(ended(exitCode=137, reason="OOMKilled", finishedAt="2026-01-01T00:00:05Z")), "bye")
    assert (pod.exit_code, pod.terminated_reason, pod.log_tail, pod.node) == (137, "OOMKilled", "bye", "node-1")
    assert pod.finished_at == reading.time_of("2026-01-01T00:00:05Z")
    assert pod.result is None


def test_a_termination_message_that_is_a_result_is_read() -> None:
    result = FailedResult(
        stage=Stage.PREPARE, exit_code=Exit.BAD_DATA, class_=FailureClass.BAD_DATA, reason="DataFileEmpty", message="m"
    )
    pod = reading.read_pod(a_pod(ended(exitCode=65, message=termination_message(result))))
    assert pod.result == result


@pytest.mark.parametrize("text", ["", "Traceback (most recent call last):", "{}", '{"outcome": "Maybe"}', "null"])
def test_a_termination_message_that_is_none_is_no_result(text: str) -> None:
    assert reading.read_termination(text) is None


STATES = {
    "suspended": (a_job(suspend=True), JobState.SUSPENDED),
    "active": (a_job(suspend=False), JobState.ACTIVE),
    "complete": (a_job({"conditions": [condition("Complete")]}), JobState.SUCCEEDED),
    "failed": (a_job({"conditions": [condition("Failed")]}), JobState.FAILED),
    # The controller has decided, but pods are still ending: not yet.
    "failing": (a_job({"conditions": [condition("FailureTarget")]}), JobState.ACTIVE),
}


@pytest.mark.parametrize(("raw", "state"), STATES.values(), ids=STATES.keys())
def test_a_job_is_where_its_conditions_say(raw: dict[str, Any], state: JobState) -> None:
    job = reading.read_job(raw, [], {}, [])
    assert job is not None
    assert job.state is state


def test_a_job_has_its_key_its_attempt_and_its_own_pods_only() -> None:
    owner = {"controller": True, "uid": "job-uid", "kind": "Job", "name": "j"}
    mine = a_pod(ownerReferences=[owner])
    other = a_pod(name="o", ownerReferences=[{**owner, "uid": "another"}])
    job = reading.read_job(a_job(), [other, mine], {"pod-uid": "tail"}, [])
    assert job is not None
    assert (job.key, job.attempt, job.resource_version) == (StageKey(Stage.GENERATE, "big"), 2, "41")
    assert [(pod.name, pod.log_tail) for pod in job.pods] == [("p", "tail")]


HELD = {
    "held": ({"parallelism": 0}, None, (True, None)),
    "let-run": ({"parallelism": 2}, "2026-01-01T01:00:00Z", (False, "2026-01-01T01:00:00Z")),
    "never-held": ({"parallelism": 2}, None, (False, "2026-01-01T00:00:01Z")),
}


@pytest.mark.parametrize(("spec", "let_run", "expected"), HELD.values(), ids=HELD.keys())
def test_a_jobs_clock_may_begin_before_it_is_allowed_to_have_pods(
    spec: dict[str, Any], let_run: str | None, expected: tuple[bool, str | None]
) -> None:
    raw = a_job({"startTime": "2026-01-01T00:00:01Z"}, **spec, activeDeadlineSeconds=99)
    raw["metadata"]["annotations"] = {"kubedistill.io/started-at": let_run} if let_run else {}
    job = reading.read_job(raw, [], {}, [])
    assert job is not None
    assert (job.held, job.started_at) == (expected[0], reading.time_of(expected[1]))
    assert (job.clock_from, job.deadline_seconds) == (reading.time_of("2026-01-01T00:00:01Z"), 99)


@pytest.mark.parametrize(("component", "look"), [("look", True), ("generate", False), (None, False)])
def test_a_look_is_told_by_its_component(component: str | None, look: bool) -> None:
    raw = a_job()
    raw["metadata"]["labels"] |= {"app.kubernetes.io/component": component} if component else {}
    job = reading.read_job(raw, [], {}, [])
    assert job is not None
    assert job.look is look


@pytest.mark.parametrize("label", ["kubedistill.io/stage", "kubedistill.io/attempt"])
def test_a_job_whose_labels_say_nothing_is_not_seen(label: str) -> None:
    raw = a_job()
    raw["metadata"]["labels"][label] = "?"
    assert reading.read_job(raw, [], {}, []) is None


def test_a_teacher_has_its_url_and_the_pods_it_selects() -> None:
    chosen = {"kubedistill.io/teacher": "big", "kubedistill.io/attempt": "2"}
    raw = {
        "metadata": {"name": "j-teacher-big-2", "namespace": "ns", "uid": "u", "labels": chosen},
        "spec": {
            "selector": {"matchLabels": chosen},
            "template": {"spec": {"containers": [{"name": "vllm", "ports": [{"containerPort": 8000}]}]}},
        },
        "status": {"readyReplicas": 1},
    }
    teacher = reading.read_teacher(raw, [a_pod(labels=chosen), a_pod(name="other")], {})
    assert teacher is not None
    assert (teacher.teacher, teacher.attempt, teacher.replicas_ready) == ("big", 2, 1)
    assert teacher.url == "http://j-teacher-big-2.ns.svc:8000/v1"
    assert [pod.name for pod in teacher.pods] == ["p"]
    assert not teacher.answered


LOGS = {
    "failed": (ended(exitCode=1), True),
    "crashing": ({"phase": "Running", "containerStatuses": [{"state": {}, "lastState": {"terminated": {}}}]}, False),
    "crashed": (
        {"phase": "Running", "containerStatuses": [{"state": {}, "lastState": {"terminated": {"exitCode": 1}}}]},
        True,
    ),
    "running": ({"phase": "Running", "containerStatuses": [{"state": {"running": {}}, "lastState": {}}]}, False),
}


@pytest.mark.parametrize(("status", "expected"), LOGS.values(), ids=LOGS.keys())
def test_only_a_pod_that_failed_has_its_log_read(status: dict[str, Any], expected: bool) -> None:
    assert reading.wants_log(a_pod(status)) is expected


PATHS = {
    ("Pod", "ns", "p", "log"): "/api/v1/namespaces/ns/pods/p/log",
    ("Job", "ns", "", ""): "/apis/batch/v1/namespaces/ns/jobs",
    ("DistillationJob", None, "", ""): "/apis/kubedistill.io/v1alpha1/distillationjobs",
    ("DistillationJob", "ns", "x", "status"): "/apis/kubedistill.io/v1alpha1/namespaces/ns/distillationjobs/x/status",
}


@pytest.mark.parametrize(("place", "expected"), PATHS.items(), ids=PATHS.values())
def test_an_object_is_where_the_api_server_keeps_it(place: tuple[str, str | None, str, str], expected: str) -> None:
    assert kinds.path(*place) == expected


def test_a_job_without_pods_waits_for_them_until_it_has_ended() -> None:
    mine = a_pod(ownerReferences=[{"uid": "job-uid", "controller": True}])
    assert reading.waits_for_pods(a_job(), [a_pod()])
    assert not reading.waits_for_pods(a_job(), [mine])
    assert not reading.waits_for_pods(a_job(suspend=True), [])
    assert not reading.waits_for_pods(a_job(parallelism=0), [])
    assert not reading.waits_for_pods(a_job({"conditions": [condition("Complete")]}), [])


ENDS = {
    "it goes on": ({}, ["Running"], False),
    "complete, and all pods say so": ({"conditions": [condition("Complete")]}, ["Succeeded", "Succeeded"], False),
    "complete, and one pod is behind": ({"conditions": [condition("Complete")]}, ["Succeeded", "Running"], True),
    "complete, and no pod is known": ({"conditions": [condition("Complete")]}, [], True),
    "failed, and all pods say how": ({"conditions": [condition("Failed")]}, ["Failed", "Failed"], False),
    "failed, and one pod is behind": ({"conditions": [condition("Failed")]}, ["Running", "Failed"], True),
    "failed, and no pod does": ({"conditions": [condition("Failed")]}, ["Running"], True),
}


@pytest.mark.parametrize(("status", "phases", "expected"), ENDS.values(), ids=ENDS.keys())
def test_a_job_that_ended_has_pods_that_say_how_or_they_are_asked_for(
    status: dict[str, Any], phases: list[str], expected: bool
) -> None:
    owners = [{"uid": "job-uid", "controller": True}]
    pods = [a_pod({"phase": phase}, ownerReferences=owners) for phase in phases]
    pods.append(a_pod({"phase": "Failed"}, ownerReferences=[{"uid": "another", "controller": True}]))
    assert reading.lacks_ends(a_job(status, completions=2), pods) is expected


def test_of_several_events_the_newest_speaks() -> None:
    """A controller that repeats itself updates `series`, or, through the old API, `deprecatedLastTimestamp`."""
    events = [
        {"note": "first", "eventTime": "2026-01-01T00:00:05.000000Z"},
        {"note": "repeated", "eventTime": None, "deprecatedLastTimestamp": "2026-01-01T00:09:00Z"},
        {"note": "series", "series": {"lastObservedTime": "2026-01-01T00:08:00.000000Z"}},
    ]
    assert reading.last_note(events) == "repeated"
    assert reading.last_note([]) == ""


def test_a_deployment_says_that_its_pods_are_refused() -> None:
    raw = {
        "metadata": {**a_job()["metadata"], "name": "t", "namespace": "ns"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [{}]}}},
        "status": {"conditions": [condition("ReplicaFailure", message="exceeded quota: gpus")]},
    }
    teacher = reading.read_teacher(raw, [], {})
    assert teacher is not None
    assert teacher.pods_refused == "exceeded quota: gpus"
