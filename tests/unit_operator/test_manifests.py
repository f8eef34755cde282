"""What a job makes, as a whole: every object of six jobs beside a golden file, and what must hold of each of them.

The files under `golden/` are for reading in a review. After a change that is meant:

    UPDATE_GOLDEN=1 .venv/bin/pytest tests/unit_operator/test_manifests.py
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubedistill_api.documents import parse_job, read_job
from kubedistill_api.job import DistillationJob
from kubedistill_cli.preview import all_stages
from kubedistill_operator.core.records import begun
from kubedistill_operator.core.settings import Settings

Kit = Mapping[str, Any]
Manifest = dict[str, Any]
EXAMPLES = Path(__file__).parents[2] / "examples"
GOLDEN = Path(__file__).parent / "golden"

OVERRIDES = [
    {
        "stage": stage,
        "resources": {"requests": {"cpu": 2}, "limits": {"memory": "2Gi", "example.com/fpga": 1}},
        "nodeSelector": {"disk": stage.lower()},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}, {"key": "a", "value": "b"}],
        "env": [{"name": "HF_HOME", "value": "/models"}, {"name": "MINE", "value": stage}],
        "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}],
        "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    }
    for stage in ("Prepare", "Generate", "Teacher", "Train", "Evaluate", "Publish")
]
TWO_TEACHERS = [
    {"name": "served", "model": {"uri": "hf://acme/big"}, "serving": {"replicas": 2, "gpusPerNode": 1}},
    {"name": "inside", "model": {"uri": "pvc://models/big"}, "batch": {"engine": "VLLM", "gpus": 2}},
]

OWN_IMAGES = Settings(trainer_image="plain", trainer_vllm_image="with-vllm", vllm_image="server")


def example(number: str) -> DistillationJob:
    """An example, as the API server would have it."""
    job = read_job(next(EXAMPLES.glob(f"{number}-*.yaml")).read_text())
    return job.model_copy(update={"metadata": job.metadata.model_copy(update={"namespace": "team", "uid": "uid-1"})})


def cases(kit: Kit) -> dict[str, DistillationJob]:
    """The jobs, by the name of their golden file."""
    scheduling = {"queueName": "gpus", "priorityClassName": "low", "schedulerName": "bin-packer"}
    return {
        "minimal": kit["a_job"](),
        "every-override": kit["a_job"](stageTemplates=OVERRIDES),
        "queued": kit["a_job"](teachers=TWO_TEACHERS, scheduling=scheduling, credentials={"serviceAccountName": "w"}),
        "vllm-on-cpus": example("02"),
        "production": example("03"),
        "external-teacher": example("04"),
        "two-nodes": kit["a_job"](training={"nodes": 2, "gpusPerNode": 4}, workspace={"uri": "s3://acme/workspace"}),
    }


NAMES = ("minimal", "every-override", "queued", "vllm-on-cpus", "production", "external-teacher", "two-nodes")


@pytest.fixture(params=NAMES)
def case(kit: Kit, request: pytest.FixtureRequest) -> tuple[str, DistillationJob, list[Manifest]]:
    """One job with everything it makes."""
    job = cases(kit)[request.param]
    return request.param, job, all_stages(job, kit["START"], Settings())


def test_the_cases_are_sound_jobs(kit: Kit) -> None:
    for job in cases(kit).values():
        parse_job(json.loads(job.model_dump_json(by_alias=True, exclude_none=True, exclude={"status"})))


def test_every_object_is_as_its_golden_file_says(case: tuple[str, DistillationJob, list[Manifest]]) -> None:
    name, _, made = case
    path = GOLDEN / f"{name}.yaml"
    opened = [readable(manifest) for manifest in made]
    # Leaves on one line: a golden file is read by people.
    text = yaml.dump_all(opened, Dumper=Plain, sort_keys=False, default_flow_style=None, width=118, allow_unicode=True)
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"if that is meant: UPDATE_GOLDEN=1 pytest {Path(__file__).name}"


class Plain(yaml.SafeDumper):
    """No anchors: what stands twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def readable(manifest: Manifest) -> Manifest:
    """A run file opened, without the parts of the spec that it repeats, and without digests of them: a new field of the
    API is no change of a manifest.
    """
    if manifest["kind"] != "ConfigMap":
        return manifest
    text = re.sub(r"sha256:[0-9a-f]{64}", "sha256:…", manifest["data"]["run.json"])
    run = json.loads(re.sub(r"-[0-9a-f]{12}\b", "-…", text))
    told = {key: value for key, value in run.items() if isinstance(value, str | int) or key in ("job", "endpoint")}
    return {**manifest, "data": {"run.json": told}}


def of(made: list[Manifest], *kinds: str) -> Iterator[Manifest]:
    return (manifest for manifest in made if manifest["kind"] in kinds)


def pods(made: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod that is made, with its controller's name."""
    for manifest in of(made, "Job", "Deployment"):
        yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]


def test_every_pod_passes_the_restricted_profile(case: tuple[str, DistillationJob, list[Manifest]]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, field by field."""
    for name, pod in pods(case[2]):
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & pod.keys(), name
        (container,) = pod["containers"]
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert security["readOnlyRootFilesystem"] is True, name
        assert "privileged" not in security, name
        assert not any("hostPort" in port for port in container["ports"]), name
        sources = {key for volume in pod["volumes"] for key in volume if key != "name"}
        assert sources <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}, name


def test_no_pod_has_a_token_of_the_api_server(case: tuple[str, DistillationJob, list[Manifest]]) -> None:
    for name, pod in pods(case[2]):
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name


def test_volumes_and_mounts_belong_together(case: tuple[str, DistillationJob, list[Manifest]]) -> None:
    for name, pod in pods(case[2]):
        volumes = [volume["name"] for volume in pod["volumes"]]
        mounts = pod["containers"][0]["volumeMounts"]
        assert len(set(volumes)) == len(volumes), name
        assert {mount["name"] for mount in mounts} == set(volumes), name
        places = [mount["mountPath"] for mount in mounts]
        assert len(set(places)) == len(places), name


def test_every_container_asks_for_resources_that_the_api_server_takes(
    case: tuple[str, DistillationJob, list[Manifest]],
) -> None:
    for name, pod in pods(case[2]):
        resources = pod["containers"][0]["resources"]
        requests, limits = resources["requests"], resources.get("limits", {})
        assert {"cpu", "memory"} <= requests.keys(), name
        # Devices cannot be overcommitted: their request must be their limit.
        assert {k: v for k, v in requests.items() if "/" in k} == {k: v for k, v in limits.items() if "/" in k}, name


SERVERS = ("Deployment", "Service")


def test_every_object_goes_with_its_one_owner(case: tuple[str, DistillationJob, list[Manifest]]) -> None:
    _, job, made = case
    generates = {
        m["metadata"]["name"] for m in of(made, "Job") if m["metadata"]["labels"].get("kubedistill.io/teacher")
    }
    for manifest in made:
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert owner["controller"] is True
        assert "blockOwnerDeletion" not in owner, "that would ask for rights on finalizers"
        if manifest["metadata"]["labels"].get("kubedistill.io/teacher") and manifest["kind"] in SERVERS:
            assert (owner["apiVersion"], owner["kind"]) == ("batch/v1", "Job"), "the dead-man's switch"
            assert owner["name"] in generates
        else:
            assert (owner["kind"], owner["name"], owner["uid"]) == ("DistillationJob", job.metadata.name, "uid-1")


def test_every_object_can_be_found_by_its_labels(case: tuple[str, DistillationJob, list[Manifest]]) -> None:
    _, job, made = case
    valid = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in made]
    assert len(set(names)) == len(names)
    for manifest in made:
        metadata = manifest["metadata"]
        assert metadata["namespace"] == "team"
        assert len(metadata["name"]) <= 52
        assert metadata["labels"]["kubedistill.io/job"] == job.metadata.name
        assert metadata["labels"]["kubedistill.io/job-uid"] == "uid-1"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "kubedistill"
        for value in metadata["labels"].values():
            assert len(value) <= 63
            assert valid.fullmatch(value)
        if manifest["kind"] in ("Job", "Deployment"):
            assert manifest["spec"]["template"]["metadata"]["labels"] == metadata["labels"]


def test_every_stage_ends_even_with_no_operator_alive(case: tuple[str, DistillationJob, list[Manifest]]) -> None:
    for manifest in of(case[2], "Job"):
        spec, name = manifest["spec"], manifest["metadata"]["name"]
        assert spec["ttlSecondsAfterFinished"] > 0, name
        assert spec["template"]["spec"]["restartPolicy"] == "Never", "podFailurePolicy asks for it"
        fail, ignore = spec["podFailurePolicy"]["rules"]
        assert fail["action"] == "FailJob"
        assert fail["onExitCodes"] == {"containerName": "stage", "operator": "In", "values": [64, 65, 66, 70]}
        assert ignore == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        assert spec["podReplacementPolicy"] == "Failed", "with a podFailurePolicy nothing else is taken"
        generates = "kubedistill.io/teacher" in manifest["metadata"]["labels"]
        assert ("activeDeadlineSeconds" in spec) == generates, name
        assert spec["backoffLimit"] == (case[1].spec.run_policy.max_restarts if generates else 0), name


def test_only_the_job_of_a_served_teacher_waits_and_it_has_no_queue(
    case: tuple[str, DistillationJob, list[Manifest]],
) -> None:
    _, job, made = case
    served = {teacher.name for teacher in job.spec.teachers if teacher.serving is not None}
    queue = job.spec.scheduling.queue_name
    for manifest in of(made, "Job"):
        labels = manifest["metadata"]["labels"]
        waits = labels.get("kubedistill.io/teacher") in served
        assert (manifest["spec"]["parallelism"] == 0) is waits
        assert "suspend" not in manifest["spec"], "a suspended Job has no deadline, nor what it owns"
        # Kueue would start it by its own clock.
        assert labels.get("kueue.x-k8s.io/queue-name", "") == ("" if waits else queue)
    teachers = list(of(made, "Deployment"))
    assert {m["metadata"]["labels"]["kubedistill.io/teacher"] for m in teachers} == served
    assert all(m["metadata"]["labels"].get("kueue.x-k8s.io/queue-name", "") == queue for m in teachers)


def test_a_stage_gives_arguments_and_leaves_the_entrypoint(case: tuple[str, DistillationJob, list[Manifest]]) -> None:
    for manifest in of(case[2], "Job"):
        container = manifest["spec"]["template"]["spec"]["containers"][0]
        assert container["args"] == [manifest["metadata"]["labels"]["kubedistill.io/stage"].lower()]
        assert "command" not in container


def test_a_teacher_is_started_by_a_completion_and_kept_by_its_health(
    case: tuple[str, DistillationJob, list[Manifest]],
) -> None:
    _, job, made = case
    services = {m["metadata"]["name"]: m for m in of(made, "Service") if m["spec"].get("clusterIP") != "None"}
    for manifest in of(made, "Deployment"):
        serving = job.spec.teacher(manifest["metadata"]["labels"]["kubedistill.io/teacher"]).serving
        assert serving is not None
        (container,) = manifest["spec"]["template"]["spec"]["containers"]
        startup = container["startupProbe"]
        assert "/v1/completions" in startup["exec"]["command"][-1]
        assert startup["failureThreshold"] * startup["periodSeconds"] >= serving.startup_timeout_seconds - 4
        for probe in ("readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
        assert manifest["spec"]["strategy"] == {"type": "Recreate"}, "two teachers rarely fit the same GPUs"
        assert manifest["spec"]["replicas"] == serving.replicas
        selector = manifest["spec"]["selector"]["matchLabels"]
        assert selector.items() <= manifest["spec"]["template"]["metadata"]["labels"].items()
        service = services.pop(manifest["metadata"]["name"])
        assert service["spec"]["selector"] == selector
        (port,) = service["spec"]["ports"]
        assert port["targetPort"] in {named["name"] for named in container["ports"]}
        asked = next(m for m in of(made, "ConfigMap") if f"{service['metadata']['name']}.team.svc" in str(m["data"]))
        assert f":{port['port']}/v1" in asked["data"]["run.json"]
    assert services == {}


def test_nodes_that_train_together_have_names_that_each_other_knows(kit: Kit) -> None:
    """https://kubernetes.io/docs/tasks/job/job-with-pod-to-pod-communication/"""
    made = all_stages(cases(kit)["two-nodes"], kit["START"], Settings())
    kinds = [m["kind"] for m in made if m["metadata"]["labels"]["kubedistill.io/stage"] == "Train"]
    assert kinds == ["Service", "ConfigMap", "Job"], "a pod without its name would find nobody"
    (service,) = [m for m in of(made, "Service") if m["spec"].get("clusterIP") == "None"]
    (train,) = [m for m in of(made, "Job") if m["metadata"]["labels"]["kubedistill.io/stage"] == "Train"]
    (told,) = [json.loads(m["data"]["run.json"]) for m in of(made, "ConfigMap") if '"leader"' in str(m["data"])]
    spec, pod = train["spec"], train["spec"]["template"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert spec["backoffLimit"] == 0, "one that fails takes the others with it: they start anew together"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    assert "kubedistill.io/attempt" not in service["spec"]["selector"], "one Service for all attempts"
    (port,) = [p["containerPort"] for p in pod["containers"][0]["ports"] if p["name"] == "meeting"]
    assert told["leader"] == f"{train['metadata']['name']}-0.{pod['subdomain']}.team.svc:{port}"
    assert (told["training"]["nodes"], pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) == (2, 4)


def test_one_node_has_nobody_to_meet(kit: Kit) -> None:
    made = all_stages(cases(kit)["minimal"], kit["START"], Settings())
    assert not [m for m in of(made, "Service") if m["spec"].get("clusterIP") == "None"]
    assert not any("subdomain" in pod for _, pod in pods(made))
    assert not any('"leader"' in str(m["data"]) for m in of(made, "ConfigMap"))


def test_a_run_file_is_immutable_and_mounted_by_its_job(case: tuple[str, DistillationJob, list[Manifest]]) -> None:
    made = case[2]
    files = {m["metadata"]["name"]: m for m in of(made, "ConfigMap")}
    assert all(manifest["immutable"] is True for manifest in files.values())
    for manifest in of(made, "Job"):
        volumes = manifest["spec"]["template"]["spec"]["volumes"]
        (mounted,) = [volume["configMap"]["name"] for volume in volumes if volume["name"] == "run"]
        assert mounted in files


def test_the_status_names_the_images_that_the_stages_run(
    case: tuple[str, DistillationJob, list[Manifest]], kit: Kit
) -> None:
    made = all_stages(case[1], kit["START"], OWN_IMAGES)
    run = {pod["containers"][0]["image"] for _, pod in pods(list(of(made, "Job")))}
    resolved = begun(case[1], kit["START"], OWN_IMAGES).resolved
    assert resolved is not None
    assert run == set(resolved.images.values()) - {"server"}


@pytest.mark.parametrize(
    ("how", "more"),
    [
        pytest.param({"batch": {"engine": "VLLM"}}, {"trainer-vllm": "with-vllm"}, id="vLLM in the pods"),
        pytest.param({"batch": {"engine": "Transformers"}}, {}, id="Transformers in the pods"),
        pytest.param({"serving": {}}, {}, id="served"),
    ],
)
def test_the_image_with_vllm_is_named_where_a_teacher_is_held_in_it(
    how: dict[str, Any], more: dict[str, str], kit: Kit
) -> None:
    others = [{"name": "other", "model": {"uri": "hf://acme/other"}, "serving": {}}]
    job = kit["a_job"](teachers=[*others, {"name": "big", "model": {"uri": "hf://acme/big"}, **how}])
    resolved = begun(job, kit["START"], OWN_IMAGES).resolved
    assert resolved is not None
    assert resolved.images == {"trainer": "plain", "vllm": "server", **more}


def test_what_a_user_overrides_wins_key_by_key(kit: Kit) -> None:
    for name, pod in pods(all_stages(cases(kit)["every-override"], kit["START"], Settings())):
        (container,) = pod["containers"]
        environment = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert (environment["HF_HOME"], environment["HOME"]) == ("/models", "/scratch"), name
        assert container["resources"]["requests"]["cpu"] == 2, name
        assert container["resources"]["requests"]["memory"] == "2Gi", "a request above its limit would be refused"
        assert pod["tolerations"][1] == {"key": "a", "value": "b"}, name
        assert pod["nodeSelector"].keys() == {"disk"}, name


def test_the_same_job_makes_the_same_objects(kit: Kit) -> None:
    """Server-side apply writes nothing where nothing changed, so nothing may depend on order or chance."""
    for name, job in cases(kit).items():
        first, second = (yaml.safe_dump_all(all_stages(job, kit["START"], Settings())) for _ in range(2))
        assert first == second, name
