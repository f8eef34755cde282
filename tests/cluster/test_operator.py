"""The operator as a process of this machine on a real API server, whose Jobs never run: there are no nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import definitions
import pytest
import yaml
from rig import access

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
LEASE_SECONDS = 6
CRD = "distillationjobs.kubedistill.io"


@dataclass
class Process:
    """One operator."""

    popen: subprocess.Popen[str]
    port: int

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float | None:
        """The value of the sample of exactly this name and labels."""
        lines = self.get("/metrics")[1].splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.rsplit(" ", 1)[0] == name), None)

    def leads(self) -> bool:
        try:
            return self.metric("kubedistill_leader") == 1 and self.get("/readyz")[0] == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(30)


@dataclass
class World:
    """A namespace of its own, kubectl in it, and operators that serve it."""

    kubeconfig: Path
    namespace: str
    processes: list[Process] = field(default_factory=list)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return access.kubectl(self.kubeconfig, "-n", self.namespace, *arguments, stdin=stdin)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        text = self.kubectl("get", kind, name, "-o", "json", "--ignore-not-found")
        found: dict[str, Any] = json.loads(text) if text.strip() else {}
        return found

    def apply(self, document: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(document))

    def status(self, name: str) -> dict[str, Any]:
        status: dict[str, Any] = self.get("dj", name).get("status", {})
        return status

    def condition(self, name: str, type_: str) -> dict[str, Any]:
        return next((c for c in self.status(name).get("conditions", []) if c["type"] == type_), {})

    def managed(self, kind: str, name: str) -> list[dict[str, Any]]:
        """Who wrote which fields of an object."""
        text = self.kubectl("get", kind, name, "-o", "json", "--show-managed-fields")
        fields: list[dict[str, Any]] = json.loads(text)["metadata"]["managedFields"]
        return fields

    def event_reasons(self, name: str) -> list[str]:
        """The reasons of the Events about a DistillationJob."""
        events = json.loads(self.kubectl("get", "events.events.k8s.io", "-o", "json"))["items"]
        return [event["reason"] for event in events if event["regarding"]["name"] == name]

    def operator(self) -> Process:
        """Start one more."""
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("KUBEDISTILL_")},
            "KUBECONFIG": str(self.kubeconfig),
            "KUBEDISTILL_NAMESPACES": self.namespace,
            "KUBEDISTILL_LEASE_NAMESPACE": self.namespace,
            "KUBEDISTILL_LEASE_SECONDS": str(LEASE_SECONDS),
            "KUBEDISTILL_PORT": "0",
            "KUBEDISTILL_PROGRESS_SECONDS": "1",
        }
        popen = subprocess.Popen(
            [sys.executable, "-m", "kubedistill_operator"], env=environment, stderr=subprocess.PIPE, text=True
        )
        assert popen.stderr is not None
        for line in popen.stderr:
            if "serving /healthz" in line:
                process = Process(popen, int(line.rsplit(" ", 1)[1]))
                self.processes.append(process)
                return process
        raise AssertionError("the operator did not start")


def wait_for(what: Callable[[], Any], seconds: float = 120) -> Any:
    """The first true value; the last one is shown when there is none in time."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, f"it did not happen within {seconds} s; last seen: {value!r}"
        time.sleep(0.2)
    return value


@pytest.fixture
def world(api_server: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    namespace = f"n{abs(hash(request.node.name)) % 10**10}"
    definitions.install(api_server, ROOT / "crds/distillationjobs.yaml", CRD)
    access.kubectl(api_server, "create", "namespace", namespace)
    world = World(api_server, namespace)
    yield world
    for process in world.processes:
        if process.popen.poll() is None:
            process.stop(signal.SIGKILL)
        assert process.popen.stderr is not None
        process.popen.stderr.close()
    access.kubectl(api_server, "delete", "namespace", namespace, "--wait=false")


def a_job(name: str = "thin", **spec: Any) -> dict[str, Any]:
    teacher = {"name": "t", "model": {"uri": "hf://acme/teacher"}, "batch": {"engine": "Transformers"}}
    return {
        "apiVersion": "kubedistill.io/v1alpha1",
        "kind": "DistillationJob",
        "metadata": {"name": name},
        "spec": {
            "teachers": [teacher],
            "student": {"model": {"uri": "hf://acme/student"}},
            "data": {"train": {"uri": "pvc://data/train.jsonl"}},
            "output": {"uri": "pvc://data/out"},
            **spec,
        },
    }


def test_a_job_gets_its_first_stage_a_status_and_events(world: World) -> None:
    operator = world.operator()
    wait_for(operator.leads)
    world.apply(a_job())
    wait_for(lambda: world.status("thin").get("phase") == "Preparing")
    job = world.get("job", "thin-prepare-1")
    uid = world.get("dj", "thin")["metadata"]["uid"]
    assert job["metadata"]["labels"]["kubedistill.io/job-uid"] == uid
    assert job["metadata"]["ownerReferences"][0]["uid"] == uid
    managers = [field["manager"] for field in world.managed("job", "thin-prepare-1") if field["operation"] == "Apply"]
    assert managers == ["kubedistill"]
    assert world.get("configmap", "thin-prepare-1")["data"]
    assert world.condition("thin", "Accepted")["status"] == "True"
    wait_for(lambda: {"Accepted", "StageStarted"} <= set(world.event_reasons("thin")))
    assert operator.metric(f'kubedistill_job_phase{{name="thin",namespace="{world.namespace}",phase="Preparing"}}') == 1


def test_it_leaves_no_finalizer_and_no_annotation(world: World) -> None:
    wait_for(world.operator().leads)
    world.kubectl("create", "-f", "-", stdin=yaml.safe_dump(a_job()))
    wait_for(lambda: world.status("thin").get("phase") == "Preparing")
    metadata = world.get("dj", "thin")["metadata"]
    assert "finalizers" not in metadata
    assert "annotations" not in metadata


def test_deleting_the_job_frees_everything(world: World) -> None:
    wait_for(world.operator().leads)
    world.apply(a_job())
    wait_for(lambda: world.get("job", "thin-prepare-1"))
    world.kubectl("delete", "dj", "thin")
    wait_for(lambda: not world.get("job", "thin-prepare-1") and not world.get("configmap", "thin-prepare-1"))


def test_a_name_that_somebody_else_has_is_left_alone_and_told(world: World) -> None:
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "thin-prepare-1"}, "data": {"keep": "me"}}
    world.apply(theirs)
    wait_for(world.operator().leads)
    world.apply(a_job())
    waiting = wait_for(lambda: (c := world.condition("thin", "Reconciling")).get("reason") == "NameTaken" and c)
    assert "ConfigMap/thin-prepare-1 exists and belongs to somebody else" in waiting["message"]
    assert world.get("configmap", "thin-prepare-1")["data"] == {"keep": "me"}
    assert not world.get("job", "thin-prepare-1")


def test_a_full_quota_is_told_and_waited_for(world: World) -> None:
    world.kubectl("create", "quota", "none", "--hard=count/jobs.batch=0")
    wait_for(lambda: world.get("quota", "none").get("status", {}).get("hard"))
    operator = world.operator()
    wait_for(operator.leads)
    world.apply(a_job())
    told = wait_for(lambda: (c := world.condition("thin", "Prepared")).get("reason") == "QuotaExceeded" and c)
    assert told["status"] == "False"
    assert "Job/thin-prepare-1" in told["message"]
    assert "exceeded quota: none, requested: count/jobs.batch=1" in told["message"]
    assert world.condition("thin", "Reconciling")["reason"] == world.status("thin")["reason"] == "QuotaExceeded"
    wait_for(lambda: "QuotaExceeded" in world.event_reasons("thin"))
    assert not world.get("job", "thin-prepare-1")
    assert operator.metric('kubedistill_reconcile_total{outcome="error"}') == 0
    world.kubectl("delete", "quota", "none")
    wait_for(lambda: world.get("job", "thin-prepare-1"))
    wait_for(lambda: world.condition("thin", "Prepared").get("reason") == "Starting")
    assert world.event_reasons("thin").count("QuotaExceeded") == 1
    refused = operator.metric('kubedistill_reconcile_total{outcome="refused"}')
    assert refused is not None
    assert refused < 6, "it pauses between its tries"


LIMITS = {
    "claim": ({"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}, "PersistentVolumeClaim/thin-workspace"),
    "pods": ({"type": "Container", "max": {"memory": "100Mi"}}, "the pods of Job/thin-prepare-1"),
}


@pytest.mark.parametrize(("limit", "whose"), LIMITS.values(), ids=LIMITS.keys())
def test_a_limit_range_that_refuses_is_told(world: World, limit: dict[str, Any], whose: str) -> None:
    """A claim is a child of ours; pods are the Job controller's, whose only word is an Event."""
    limits = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "low"}, "spec": {"limits": [limit]}}
    world.apply(limits)
    wait_for(world.operator().leads)
    world.apply(a_job())
    told = wait_for(lambda: (c := world.condition("thin", "Prepared")).get("reason") == "Refused" and c)
    assert f"The API server refuses {whose} and is asked again: " in told["message"]
    assert "thin-" in told["message"].partition("again: ")[2]


def test_a_quota_that_pods_exceed_is_told(world: World) -> None:
    world.kubectl("create", "quota", "none", "--hard=pods=0")
    wait_for(lambda: world.get("quota", "none").get("status", {}).get("hard"))
    wait_for(world.operator().leads)
    world.apply(a_job())
    told = wait_for(lambda: (c := world.condition("thin", "Prepared")).get("reason") == "QuotaExceeded" and c)
    assert "the pods of Job/thin-prepare-1" in told["message"]
    assert "exceeded quota: none, requested: pods=1" in told["message"]


def test_the_next_operator_takes_over_at_once_when_the_first_is_asked_to_stop(world: World) -> None:
    first = world.operator()
    wait_for(first.leads)
    second = world.operator()
    assert second.get("/healthz") == (200, "ok")
    assert second.get("/readyz") == (200, "ok")
    assert not second.leads()
    assert first.stop() == 0
    started = time.monotonic()
    wait_for(second.leads, 20)
    assert time.monotonic() - started < LEASE_SECONDS
    world.apply(a_job())
    wait_for(lambda: world.status("thin").get("phase") == "Preparing")


def test_a_leader_that_dies_is_replaced_when_its_lease_runs_out(world: World) -> None:
    first, second = world.operator(), world.operator()
    leader = wait_for(lambda: next((p for p in (first, second) if p.leads()), None))
    other = second if leader is first else first
    leader.stop(signal.SIGKILL)
    wait_for(other.leads, 20)


def test_a_leader_that_was_asleep_past_its_lease_never_writes_again(world: World) -> None:
    first = world.operator()
    wait_for(first.leads)
    second = world.operator()
    first.popen.send_signal(signal.SIGSTOP)
    wait_for(second.leads, 20)
    first.popen.send_signal(signal.SIGCONT)
    assert first.popen.wait(30) != 0
    assert second.leads()


def test_a_status_written_by_hand_is_healed_by_the_next_pass(world: World) -> None:
    wait_for(world.operator().leads)
    world.apply(a_job())
    wait_for(lambda: world.status("thin").get("phase") == "Preparing")
    wrong = ("--subresource=status", "--type=merge", "-p", '{"status":{"phase":"Training"}}')
    world.kubectl("patch", "dj", "thin", *wrong)
    wait_for(lambda: world.status("thin").get("phase") == "Preparing")


def test_what_happened_while_no_operator_ran_is_made_good(world: World) -> None:
    first = world.operator()
    wait_for(first.leads)
    world.apply(a_job())
    wait_for(lambda: world.status("thin").get("phase") == "Preparing")
    first.stop(signal.SIGKILL)
    world.apply(a_job("second"))
    world.kubectl("delete", "job", "thin-prepare-1", "--cascade=background")
    wait_for(world.operator().leads, 30)
    wait_for(lambda: world.status("second").get("phase") == "Preparing")
    stage = wait_for(lambda: next(s for s in world.status("thin")["stages"] if s["name"] == "Prepare"))
    assert wait_for(lambda: world.get("job", f"thin-prepare-{stage['attempt']}") or world.get("job", "thin-prepare-2"))


def test_suspending_frees_the_stage_and_resuming_starts_it_again(world: World) -> None:
    wait_for(world.operator().leads)
    world.apply(a_job())
    wait_for(lambda: world.get("job", "thin-prepare-1"))
    world.kubectl("patch", "dj", "thin", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    wait_for(lambda: world.status("thin").get("phase") == "Suspended")
    wait_for(lambda: not world.get("job", "thin-prepare-1"))
    world.kubectl("patch", "dj", "thin", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    wait_for(lambda: world.status("thin").get("executionAttempt") == 2)
    wait_for(lambda: world.kubectl("get", "jobs", "-o", "name").strip())


def test_a_hundred_jobs_at_once_are_all_begun(world: World) -> None:
    operator = world.operator()
    wait_for(operator.leads)
    world.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all([a_job(f"many-{n}") for n in range(100)]))
    wait_for(lambda: operator.metric('kubedistill_jobs{phase="Preparing"}') == 100, 120)
    assert operator.metric('kubedistill_reconcile_total{outcome="error"}') == 0
