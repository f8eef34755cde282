"""The examples that no test runs, since they need GPUs or a provider: what the command line says of them.

01 runs in `make demo` and its parts in tests/trainer, 02 on a real cluster (`make demo-cluster`, tests/cluster/e2e).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from kubedistill_cli.app import app

EXAMPLES = Path(__file__).parents[2] / "examples"
JOBS = sorted(EXAMPLES.glob("*.yaml"))
Manifest = dict[str, Any]


def kubedistill(*arguments: str, **environment: str) -> str:
    """What the command prints; it must succeed."""
    done = CliRunner().invoke(app, arguments, env=environment, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@cache
def everything(number: str) -> tuple[Manifest, ...]:
    """Every object that an example would make, in every stage."""
    return tuple(yaml.safe_load_all(kubedistill("plan", "--all", str(next(EXAMPLES.glob(f"{number}-*.yaml"))))))


def planned(number: str, *kinds: str) -> list[Manifest]:
    """Those of these kinds."""
    return [manifest for manifest in everything(number) if manifest["kind"] in kinds]


def containers(number: str) -> Iterator[tuple[str, Manifest]]:
    """The container of every pod, by the stage (or Teacher) that it is for."""
    for manifest in planned(number, "Job", "Deployment"):
        stage = (
            "Teacher" if manifest["kind"] == "Deployment" else manifest["metadata"]["labels"]["kubedistill.io/stage"]
        )
        yield stage, manifest["spec"]["template"]["spec"]["containers"][0]


def runs(number: str) -> dict[str, Any]:
    """What each stage is told, by stage."""
    files = (json.loads(manifest["data"]["run.json"]) for manifest in planned(number, "ConfigMap"))
    return {run["stage"]: run for run in files}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_command_line_finds_every_example_sound(path: Path) -> None:
    said = json.loads(kubedistill("validate", "--output", "json", str(path)))
    assert (said["valid"], said["problems"]) == (True, [])
    in_a_cluster = path.stem in ("02-vllm-teacher", "03-production-llama", "04-external-teacher")
    assert (said["refusedByACluster"] == []) == in_a_cluster
    assert "the job is sound" in kubedistill("validate", str(path))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_first_pass_makes_no_teacher_and_asks_for_no_gpu(path: Path) -> None:
    """Prepare looks at the data first, on CPUs alone."""
    made = list(yaml.safe_load_all(kubedistill("plan", str(path))))
    assert {manifest["kind"] for manifest in made} <= {"PersistentVolumeClaim", "ConfigMap", "Job"}
    (job,) = [manifest for manifest in made if manifest["kind"] == "Job"]
    assert job["metadata"]["labels"]["kubedistill.io/stage"] == "Prepare"
    assert "nvidia.com/gpu" not in json.dumps(job)


def test_production_asks_for_the_gpus_that_it_says() -> None:
    gpus = {stage: c["resources"].get("limits", {}).get("nvidia.com/gpu", 0) for stage, c in containers("03")}
    assert gpus == {"Prepare": 0, "Generate": 0, "Teacher": 8, "Train": 8, "Evaluate": 1, "Publish": 0}
    (teacher,) = planned("03", "Deployment")
    assert teacher["spec"]["replicas"] == 1
    (train,) = [m for m in planned("03", "Job") if m["metadata"]["labels"]["kubedistill.io/stage"] == "Train"]
    assert (train["spec"]["completions"], train["spec"]["completionMode"]) == (1, "Indexed")


def test_production_uses_every_gpu_of_the_teacher() -> None:
    ways = runs("03")["Generate"]["teacher"]["serving"]["parallelism"]
    serving = runs("03")["Generate"]["teacher"]["serving"]
    assert ways["tensor"] * ways["pipeline"] * ways["data"] == serving["nodes"] * serving["gpusPerNode"] == 8
    arguments = dict(containers("03"))["Teacher"]["args"]
    assert "--model=meta-llama/Llama-3.1-405B-Instruct-FP8" in arguments
    assert "--tensor-parallel-size=8" in arguments
    assert not any("pipeline" in argument for argument in arguments)
    assert arguments[-2:] == ["--kv-cache-dtype=fp8", "--gpu-memory-utilization=0.92"], "the user's flags come last"


def test_production_keeps_everything_in_s3() -> None:
    assert planned("03", "PersistentVolumeClaim") == []
    assert {run["workspace"] for run in runs("03").values()} == {"s3://acme-workspace/kubedistill"}
    assert runs("03")["Publish"]["output"]["uri"] == "s3://acme-models/support-llama-8b"
    for stage, container in containers("03"):
        assert container["envFrom"] == [{"secretRef": {"name": "acme-s3"}}], stage
        assert not any("claim" in mount["name"] for mount in container["volumeMounts"]), stage


def test_production_waits_for_its_teacher_and_lands_on_its_nodes() -> None:
    for manifest in planned("03", "Job", "Deployment"):
        stage = manifest["metadata"]["labels"]["kubedistill.io/stage"]
        pod = manifest["spec"]["template"]["spec"]
        assert pod["priorityClassName"] == "batch-high"
        if manifest["kind"] == "Deployment" or stage == "Train":
            assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
            assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        if manifest["kind"] == "Job":
            assert (manifest["spec"]["parallelism"] == 0) is (stage == "Generate")


def test_an_external_teacher_is_not_served() -> None:
    assert planned("04", "Deployment", "Service") == []
    assert runs("04")["Generate"]["endpoint"] == {"url": "https://teacher.example/v1", "model": "large-chat-model"}
    (generate,) = [m for m in planned("04", "Job") if m["metadata"]["labels"]["kubedistill.io/stage"] == "Generate"]
    assert generate["spec"]["parallelism"] > 0


def test_an_external_teachers_key_is_a_reference_and_only_where_the_teacher_is_asked() -> None:
    for stage, container in containers("04"):
        keys = [variable for variable in container["env"] if variable["name"].startswith("KUBEDISTILL_TEACHER")]
        reference = {"secretKeyRef": {"name": "teacher-api", "key": "key"}}
        wanted = [{"name": "KUBEDISTILL_TEACHER_API_KEY_PROVIDER", "valueFrom": reference}]
        assert keys == (wanted if stage in ("Prepare", "Generate") else []), stage


def test_the_teacher_of_numbers_is_told_to_reason_and_its_scores_are_those_that_are_learnt() -> None:
    generation = runs("05")["Generate"]["generation"]
    assert runs("05")["Generate"]["task"] == "Math"
    assert (generation["reasoning"], generation["reasoningTarget"]) == ("ChainOfThought", "ReasoningAndAnswer")
    assert planned("05", "Deployment", "Service") == []


def test_no_secret_of_this_machine_is_in_a_plan() -> None:
    planted = {name: f"planted-{name}" for name in ("KUBEDISTILL_TEACHER_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN")}
    for path in JOBS:
        assert "planted-" not in kubedistill("plan", "--all", str(path), **planted)
