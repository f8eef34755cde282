"""A teacher's vLLM: its Deployment and Service, both owned by the Generate Job they work for."""

from __future__ import annotations

from typing import Any

from kubedistill_api import uris
from kubedistill_api.base import Stage
from kubedistill_api.generation import Generation
from kubedistill_api.identity import StageKey, job_name, teacher_name
from kubedistill_api.job import DistillationJob
from kubedistill_api.placement import TemplateStage
from kubedistill_api.teachers import Serving, Teacher
from kubedistill_operator.manifests import pods
from kubedistill_operator.manifests.base import Defaults, Manifest, labels, metadata, owned_by_stage, queue_label
from kubedistill_operator.manifests.workspace import path_of

CONTAINER = "vllm"
PORT = 8000
SERVED_NAME = "teacher"
"""The model's name in requests, whatever it is called elsewhere."""
MIN_LOGPROBS = 20
"""vLLM's own default."""

REQUESTS = {"cpu": "1", "memory": "4Gi"}

COMPLETION_CHECK = (
    "import json, urllib.request as u; "
    f"u.urlopen(u.Request('http://127.0.0.1:{PORT}/v1/completions', "
    f"json.dumps({{'model': '{SERVED_NAME}', 'prompt': 'Hi', 'max_tokens': 1}}).encode(), "
    "{'Content-Type': 'application/json'}), timeout=55)"
)
"""The engine may be dead behind a server that calls itself healthy: a pod starts when it has answered a completion."""


def endpoint_url(job: DistillationJob, teacher: str, attempt: int) -> str:
    """The base URL of an attempt's teacher, as the pods of its Generate stage reach it."""
    service = teacher_name(job.metadata.name, teacher, attempt)
    return f"http://{service}.{job.metadata.namespace}.svc:{PORT}/v1"


def teacher_service(job: DistillationJob, teacher: Teacher, attempt: int, stage_uid: str) -> Manifest:
    """One name in front of the replicas."""
    found = _labels(job, teacher, attempt)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(job, teacher, attempt, stage_uid, found),
        "spec": {"selector": found, "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]},
    }


def teacher_deployment(
    job: DistillationJob, teacher: Teacher, attempt: int, stage_uid: str, revision: str, defaults: Defaults
) -> Manifest:
    """The server. `revision`: the commit that Prepare pinned the model to; empty where there is none."""
    serving = teacher.serving or Serving()
    found = _labels(job, teacher, attempt)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(job, teacher, attempt, stage_uid, {**found, **queue_label(job)}),
        "spec": {
            "replicas": serving.replicas,
            # Two generations of a model rarely fit the same GPUs.
            "strategy": {"type": "Recreate"},
            "progressDeadlineSeconds": serving.startup_timeout_seconds,
            "revisionHistoryLimit": 0,
            "selector": {"matchLabels": found},
            "template": {
                "metadata": {"labels": {**found, **queue_label(job)}},
                "spec": _pod(job, teacher, serving, revision, defaults),
            },
        },
    }


def vllm_arguments(teacher: Teacher, serving: Serving, generation: Generation, revision: str = "") -> list[str]:
    """vLLM's command line, from the spec's own fields; the user's flags come last."""
    ways = serving.parallelism
    arguments = [
        f"--model={_model(teacher)}",
        f"--served-model-name={SERVED_NAME}",
        f"--port={PORT}",
        f"--max-logprobs={max(generation.top_k, MIN_LOGPROBS)}",
        # Else the model's generation_config.json adds a top-k, min-p or repetition penalty that the spec does not name,
        # and the sampled tail is biased.
        "--generation-config=vllm",
    ]
    pinned = revision or (teacher.model.revision if teacher.model else "")
    if pinned and _scheme(teacher) == "hf":
        arguments.append(f"--revision={pinned}")
    if _scheme(teacher) == "s3":
        arguments.append("--load-format=runai_streamer")
    for flag, size in (("tensor", ways.tensor), ("pipeline", ways.pipeline), ("data", ways.data)):
        if size > 1:
            arguments.append(f"--{flag}-parallel-size={size}")
    if ways.expert:
        arguments.append("--enable-expert-parallel")
    if serving.max_model_len is not None:
        arguments.append(f"--max-model-len={serving.max_model_len}")
    return [*arguments, *serving.extra_args]


def _pod(job: DistillationJob, teacher: Teacher, serving: Serving, revision: str, defaults: Defaults) -> dict[str, Any]:
    template = pods.template_for(job, TemplateStage.TEACHER)
    scratch, scratch_mounts = pods.scratch_volumes(shared_memory=True)
    model = teacher.model.uri if teacher.model else ""
    claim = {uris.parse(model).authority: False} if model.startswith("pvc://") else {}
    claimed, claim_mounts = pods.claim_volumes(claim)
    container = {
        "name": CONTAINER,
        "image": serving.image or defaults.vllm_image,
        "imagePullPolicy": defaults.image_pull_policy,
        "command": ["python3", "-m", "vllm.entrypoints.openai.api_server"],
        "args": vllm_arguments(teacher, serving, job.spec.generation, revision),
        "env": pods.environment_list(_environment(teacher, serving), template),
        "envFrom": pods.credentials(job),
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": pods.resources(REQUESTS, serving.gpus_per_node, template),
        "volumeMounts": [*scratch_mounts, *claim_mounts],
        **_probes(serving),
    }
    return pods.pod_spec(job, template, container, [*scratch, *claimed])


def _probes(serving: Serving) -> dict[str, Any]:
    """Started when it answered; afterwards ready and alive while its engine is, not while it is quick."""
    health = {"httpGet": {"path": "/health", "port": "http"}}
    return {
        "startupProbe": {
            "exec": {"command": ["python3", "-c", COMPLETION_CHECK]},
            "periodSeconds": 5,
            "timeoutSeconds": 60,
            "failureThreshold": max(1, serving.startup_timeout_seconds // 5),
        },
        "readinessProbe": {**health, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**health, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
    }


def _environment(teacher: Teacher, serving: Serving) -> dict[str, str]:
    found = {**pods.HOME, "VLLM_CACHE_ROOT": f"{pods.SCRATCH}/vllm", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if _scheme(teacher) != "hf":
        found["HF_HUB_OFFLINE"] = "1"
    if serving.gpus_per_node == 0:
        found["VLLM_CPU_KVCACHE_SPACE"] = "2"
    return found


def _model(teacher: Teacher) -> str:
    """The model as vLLM takes it: a name on the hub, a folder, or an object store's URI."""
    uri = teacher.model.uri if teacher.model else ""
    match _scheme(teacher):
        case "hf":
            return uri.removeprefix("hf://")
        case "s3":
            return uri
        case _:
            return path_of(uri)


def _scheme(teacher: Teacher) -> str:
    return teacher.model.uri.partition("://")[0] if teacher.model else ""


def _labels(job: DistillationJob, teacher: Teacher, attempt: int) -> dict[str, str]:
    return labels(job, StageKey(Stage.GENERATE, teacher.name), attempt, "teacher")


def _metadata(
    job: DistillationJob, teacher: Teacher, attempt: int, stage_uid: str, found: dict[str, str]
) -> dict[str, Any]:
    stage = job_name(job.metadata.name, StageKey(Stage.GENERATE, teacher.name), attempt)
    name = teacher_name(job.metadata.name, teacher.name, attempt)
    return metadata(job, name, found, owned_by_stage(stage, stage_uid))
