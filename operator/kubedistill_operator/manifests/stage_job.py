"""The Job of one attempt of one stage."""

from __future__ import annotations

from typing import Any

from kubedistill_api import environment
from kubedistill_api.base import Stage
from kubedistill_api.exits import PERMANENT, Exit
from kubedistill_api.identity import COMPONENT_LOOK, meeting_name
from kubedistill_api.job import DistillationJob, DistillationJobSpec
from kubedistill_api.placement import TemplateStage
from kubedistill_api.run import GenerateRun, PrepareRun, Run, TrainRun, looks_only, name_of_job, stage_key
from kubedistill_api.teachers import BatchEngine, Serving, Teacher
from kubedistill_operator.manifests import pods
from kubedistill_operator.manifests.base import Defaults, Manifest, labels, metadata, owned_by_job, queue_label
from kubedistill_operator.manifests.run_file import KEY
from kubedistill_operator.manifests.workspace import claims

CONTAINER = "stage"
ENTRYPOINT = ("python", "-m", "kubedistill_trainer")
"""What the image's ENTRYPOINT starts behind tini, which passes SIGTERM on and reaps what workers leave. The Job gives
only arguments: a command would put Python in tini's place."""

REQUESTS = {
    Stage.PREPARE: {"cpu": "250m", "memory": "1Gi"},
    Stage.GENERATE: {"cpu": "250m", "memory": "1Gi"},
    Stage.TRAIN: {"cpu": "1", "memory": "4Gi"},
    Stage.EVALUATE: {"cpu": "500m", "memory": "2Gi"},
    Stage.PUBLISH: {"cpu": "250m", "memory": "1Gi"},
}
"""What is reserved where the spec says nothing. No limits: those would kill a model that is larger than we guessed."""

GRACE_SECONDS = 30
HOLD_GRACE_SECONDS = 60


def stage_job(job: DistillationJob, run: Run, defaults: Defaults) -> Manifest:
    """One attempt as a Job. With a teacher of its own it is made without pods, and gets them once the teacher answers.

    Not suspended: the clock of a suspended Job stands still, and the teacher that it owns would outlive the operator.
    """
    name = name_of_job(run)
    component = COMPONENT_LOOK if looks_only(run) else run.stage.lower()
    serving = _waits_for(run)
    queue = {} if serving is not None else queue_label(job)
    found = {**labels(job, stage_key(run), run.attempt, component), **queue}
    spec: dict[str, Any] = {
        **_completions(run),
        "backoffLimit": _backoff_limit(job.spec, run),
        "ttlSecondsAfterFinished": defaults.stage_ttl_seconds,
        "podFailurePolicy": {"rules": _failure_rules()},
        "podReplacementPolicy": "Failed",
        "template": {"metadata": {"labels": found}, "spec": _pod(job, run, name, defaults)},
    }
    if run.stage is Stage.GENERATE and not looks_only(run):
        spec["activeDeadlineSeconds"] = generate_deadline(job.spec, defaults)
    if serving is not None:
        spec |= {"parallelism": 0, "activeDeadlineSeconds": hold_seconds(serving)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(job, name, found, owned_by_job(job)),
        "spec": spec,
    }


def generate_deadline(spec: DistillationJobSpec, defaults: Defaults) -> int:
    """Seconds that a generation may take."""
    return spec.run_policy.active_deadline_seconds or defaults.generate_deadline_seconds


def hold_seconds(serving: Serving) -> int:
    """Seconds that a Job without pods lives unless they are renewed: as long as its teacher may take to start."""
    return serving.startup_timeout_seconds + HOLD_GRACE_SECONDS


def gpus(spec: DistillationJobSpec, stage: Stage, teacher: str = "") -> int:
    """GPUs of each pod of a stage."""
    match stage:
        case Stage.TRAIN:
            return spec.training.gpus_per_node
        case Stage.EVALUATE:
            return min(1, spec.training.gpus_per_node)
        case Stage.GENERATE:
            batch = spec.teacher(teacher).batch
            return batch.gpus if batch else 0
    return 0


def _waits_for(run: Run) -> Serving | None:
    """The teacher that is made for the stage, where there is one.

    Such a Job carries no queue label: Kueue would start it by its own clock. It asks for no GPU; its teacher does, and
    queues for it.
    """
    return run.teacher.serving if isinstance(run, GenerateRun) and not run.look_only else None


def _completions(run: Run) -> dict[str, Any]:
    """Generate's pods share the shards by their index; Train's are nodes."""
    if isinstance(run, GenerateRun):
        return {"completionMode": "Indexed", "completions": run.workers, "parallelism": run.workers}
    if isinstance(run, TrainRun):
        return {"completionMode": "Indexed", "completions": _nodes(run), "parallelism": _nodes(run)}
    return {"completions": 1, "parallelism": 1}


def _nodes(run: Run) -> int:
    """Pods that need each other: they get names, and one of them does not live without the others."""
    return run.training.nodes if isinstance(run, TrainRun) else 1


def _backoff_limit(spec: DistillationJobSpec, run: Run) -> int:
    """Retries inside the attempt. Only Generate has them: a new attempt of it would start its teacher anew."""
    return spec.run_policy.max_restarts if run.stage is Stage.GENERATE and not looks_only(run) else 0


def _failure_rules() -> list[dict[str, Any]]:
    permanent = sorted(int(code) for code in (*PERMANENT, Exit.DEVICE_OUT_OF_MEMORY))
    return [
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": permanent},
        },
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]


def _pod(job: DistillationJob, run: Run, name: str, defaults: Defaults) -> dict[str, Any]:
    template = pods.template_for(job, TemplateStage(run.stage))
    teacher = run.teacher.name if isinstance(run, GenerateRun) else ""
    devices = gpus(job.spec, run.stage, teacher)
    writes_output = run.stage in (Stage.PREPARE, Stage.PUBLISH)
    scratch, scratch_mounts = pods.scratch_volumes(shared_memory=run.stage is Stage.TRAIN or devices > 0)
    claimed, claim_mounts = pods.claim_volumes(claims(job, defaults, output_writable=writes_output))
    container = {
        "name": CONTAINER,
        "image": _image(run, defaults),
        "imagePullPolicy": defaults.image_pull_policy,
        "args": [run.stage.lower()],
        "env": pods.environment_list(pods.HOME, template, _api_keys(run)),
        "envFrom": pods.credentials(job),
        "ports": [
            {"name": "metrics", "containerPort": environment.PORT_DEFAULT},
            *([{"name": "meeting", "containerPort": environment.MEETING_PORT}] if _nodes(run) > 1 else []),
        ],
        "resources": pods.resources(REQUESTS[run.stage], devices, template),
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            {"name": "run", "mountPath": environment.RUN_FILE_DEFAULT.rsplit("/", 1)[0], "readOnly": True},
            *scratch_mounts,
            *claim_mounts,
        ],
    }
    together = {"subdomain": meeting_name(job.metadata.name)} if _nodes(run) > 1 else {}
    run_volume = {"name": "run", "configMap": {"name": name, "items": [{"key": KEY, "path": KEY}]}}
    grace = defaults.train_grace_seconds if run.stage is Stage.TRAIN else GRACE_SECONDS
    return {
        **pods.pod_spec(job, template, container, [run_volume, *scratch, *claimed]),
        **together,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace,
    }


def _image(run: Run, defaults: Defaults) -> str:
    """The trainer's; with vLLM in it where the pods hold a teacher in vLLM. A look asks no teacher."""
    holds_vllm = isinstance(run, GenerateRun) and not run.look_only and _in_vllm(run.teacher)
    return defaults.trainer_vllm_image if holds_vllm else defaults.trainer_image


def images(spec: DistillationJobSpec, defaults: Defaults) -> dict[str, str]:
    """The installation's images that a job may run, by their names in its status."""
    found = {"trainer": defaults.trainer_image, "vllm": defaults.vllm_image}
    return {**found, "trainer-vllm": defaults.trainer_vllm_image} if any(map(_in_vllm, spec.teachers)) else found


def _in_vllm(teacher: Teacher) -> bool:
    """Whether the Generate pods hold this teacher in a vLLM of their own."""
    return teacher.batch is not None and teacher.batch.engine is BatchEngine.VLLM


def _api_keys(run: Run) -> list[dict[str, Any]]:
    """The keys of the external teachers that a stage asks, from their Secrets: Prepare tries each of them."""
    teachers: list[Teacher] = []
    if isinstance(run, PrepareRun):
        teachers = run.spec.teachers
    if isinstance(run, GenerateRun) and not run.look_only:
        teachers = [run.teacher]
    secrets = ((t.name, t.external.credentials_secret) for t in teachers if t.external is not None)
    return [
        {
            "name": environment.teacher_api_key(name),
            "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}},
        }
        for name, secret in secrets
        if secret is not None
    ]
