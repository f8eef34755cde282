"""The main job on a real cluster: vLLM teaches, the operator is killed twice on the way, a model comes out."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from demo import EXAMPLE, JOB
from rig import services
from walk import steps
from walk.kube import Kube, WalkError, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def prometheus(operator: Kube, kube: Kube) -> Iterator[str]:
    """A real Prometheus that scrapes the operator's pods as a PodMonitor would."""
    with services.prometheus(steps.scrape_configuration(operator.kubeconfig)) as url:
        yield url


@pytest.fixture(scope="module")
def story(operator: Kube, kube: Kube, prometheus: str) -> dict[str, Any]:
    """Run the example once, disturbing it, and keep what was seen on the way."""
    kube("delete", "dj", JOB, "--ignore-not-found", "--wait=true")
    document = yaml.safe_load(EXAMPLE.read_text())
    # On few cores that other tests keep busy too, OpenMP's threads would burn the time in which they wait.
    patient = [{"name": "OMP_WAIT_POLICY", "value": "PASSIVE"}]
    busy = ("Teacher", "Train", "Evaluate")
    document["spec"]["stageTemplates"] = [{"stage": stage, "env": patient} for stage in busy]
    kube.apply(document)
    rows: list[str] = []
    disturbed: dict[str, str] = {}
    jobs: dict[str, str] = {}
    teachers: set[str] = set()

    def ended() -> bool:
        rows.append(kube.row(JOB))
        for job in kube.get("jobs")["items"]:
            jobs[job["metadata"]["uid"]] = job["metadata"]["name"]
        deployments = kube.get("deployments")["items"]
        teachers.update(d["spec"]["template"]["spec"]["containers"][0]["image"] for d in deployments)
        status = kube.status(JOB)
        for stage in status.get("stages", []):
            done = (stage.get("progress") or {}).get("done", 0)
            name = stage["name"].split(":")[0]
            if name in ("Generate", "Train") and stage["state"] == "Running" and done > 0 and name not in disturbed:
                disturbed[name] = kill_leader(operator)
        if status.get("phase") == "Failed":
            raise WalkError(json.dumps(status.get("lastFailure"), indent=1))
        return status.get("phase") == "Succeeded"

    until("the job succeeds", ended, 2200, every_seconds=2)
    return {"rows": rows, "disturbed": disturbed, "jobs": jobs, "teachers": teachers, "status": kube.status(JOB)}


def kill_leader(operator: Kube) -> str:
    """Delete the pod that leads."""
    holder = str(operator.get("lease", "kubedistill")["spec"]["holderIdentity"])
    pods = [pod["metadata"]["name"] for pod in operator.get("pods")["items"]]
    leader = next(name for name in pods if holder.startswith(name))
    operator("delete", "pod", leader, "--wait=false", "--grace-period=0", "--force")
    return leader


def test_kubectl_wait_returns(kube: Kube, story: dict[str, Any]) -> None:
    kube.wait(JOB, "Succeeded", 10)


def test_the_operator_was_killed_in_mid_generate_and_in_mid_train(story: dict[str, Any]) -> None:
    assert set(story["disturbed"]) == {"Generate", "Train"}


def test_there_was_one_job_for_each_stage_and_attempt(story: dict[str, Any]) -> None:
    names = Counter(name for name in story["jobs"].values() if name.startswith(JOB))
    assert set(names.values()) == {1}, "two Jobs of one name have lived"
    assert {name.removeprefix(f"{JOB}-") for name in names} == {
        "prepare-1", "generate-smollm2-1", "train-1", "evaluate-1", "publish-1",
    }  # fmt: skip


def test_get_shows_phase_stage_and_progress_while_it_runs(story: dict[str, Any]) -> None:
    seen = "\n".join(story["rows"])
    for phase in ("Preparing", "StartingTeacher", "Generating", "Training", "Evaluating"):
        assert phase in seen
    assert re.search(r"Training\s+Train\s+\d+/\d+ steps", seen)


def test_get_shows_the_score_at_the_end(kube: Kube, story: dict[str, Any]) -> None:
    assert story["status"]["score"]
    assert story["status"]["score"].split()[0] in kube.row(JOB)


def test_the_teacher_was_a_vllm_deployment_and_is_gone(kube: Kube, story: dict[str, Any]) -> None:
    assert story["teachers"] == {"localhost/kubedistill/vllm-cpu:dev"}
    assert kube.get("deployments")["items"] == []
    assert kube.get("services", "", "-l", "kubedistill.io/job")["items"] == []


def test_the_model_loads_and_answers(kube: Kube, story: dict[str, Any]) -> None:
    answer = steps.ask(kube, story["status"]["result"]["modelURI"], "How do I reset my password?")
    assert answer["layers"] == 20
    assert answer["answer"].strip()


def test_the_student_is_better_than_before(story: dict[str, Any]) -> None:
    score = next(s for s in story["status"]["evaluation"] if s["metric"] == "TeacherKL")
    assert float(score["student"]) < 0.7 * float(score["baseline"])


def test_no_finalizer_and_no_annotation_of_kopf_was_left(kube: Kube, story: dict[str, Any]) -> None:
    metadata = kube.get("dj", JOB)["metadata"]
    assert "finalizers" not in metadata
    assert not [key for key in metadata.get("annotations", {}) if "kopf" in key or "zalando" in key]


def test_prometheus_has_points_of_the_training_loss(prometheus: str, story: dict[str, Any]) -> None:
    query = urllib.parse.urlencode({"query": "count_over_time(kubedistill_job_training_loss[1h])"})
    with urllib.request.urlopen(f"{prometheus}/api/v1/query?{query}", timeout=10) as answer:
        found = json.load(answer)["data"]["result"]
    assert found
    assert any(int(series["value"][1]) > 0 and series["metric"].get("name") == JOB for series in found), found
