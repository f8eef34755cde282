"""The pod that stages and teachers share: security, volumes, environment, and the user's overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kubedistill_api import environment
from kubedistill_api.job import DistillationJob
from kubedistill_api.placement import StageTemplate, TemplateStage

USER = 65532
"""A user without a name, home or group of its own; the images do not need one."""
SCRATCH = environment.SCRATCH_DEFAULT

POD_SECURITY: Mapping[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Mapping[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}

HOME: Mapping[str, str] = {
    # The root file system is read-only and the user has no entry in /etc/passwd: caches go to the scratch folder, and
    # torch finds a name.
    "HOME": SCRATCH,
    "USER": "kubedistill",
    "HF_HOME": f"{SCRATCH}/huggingface",
    "XDG_CACHE_HOME": f"{SCRATCH}/cache",
    "PYTHONUNBUFFERED": "1",
}


def template_for(job: DistillationJob, stage: TemplateStage) -> StageTemplate:
    """The user's overrides for a stage, or none."""
    return next((t for t in job.spec.stage_templates if t.stage is stage), StageTemplate(stage=stage))


def environment_list(
    defaults: Mapping[str, str], template: StageTemplate, secrets: Iterable[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Variables by name; the user's win."""
    given = {**defaults, **{var.name: var.value for var in template.env}}
    return [*({"name": name, "value": value} for name, value in given.items()), *secrets]


def resources(defaults: Mapping[str, str], gpus: int, template: StageTemplate) -> dict[str, Any]:
    """Requests and limits: the defaults, the GPUs, and the user's values over them, key by key."""
    devices: dict[str, Any] = {"nvidia.com/gpu": gpus} if gpus else {}
    requests: dict[str, Any] = {**defaults, **devices, **template.resources.requests}
    limits: dict[str, Any] = {**devices, **template.resources.limits}
    for name, limit in template.resources.limits.items():
        # A limit below our default request would be refused; Kubernetes' own default for a request is the limit.
        if name not in template.resources.requests:
            requests[name] = limit
    return {"requests": requests, **({"limits": limits} if limits else {})}


def scratch_volumes(*, shared_memory: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and mounts for what may be lost; `/dev/shm` for processes that share tensors."""
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}, {"name": "scratch", "emptyDir": {}}]
    mounts: list[dict[str, Any]] = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "scratch", "mountPath": SCRATCH}]
    if shared_memory:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    return volumes, mounts


def claim_volumes(claims: Mapping[str, bool]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and mounts of claims, under the root that `pvc://` URIs are resolved against."""
    volumes = []
    mounts = []
    for number, (claim, writable) in enumerate(sorted(claims.items())):
        name = f"claim-{number}"
        volumes.append({"name": name, "persistentVolumeClaim": {"claimName": claim}})
        mount: dict[str, Any] = {"name": name, "mountPath": f"{environment.CLAIM_ROOT_DEFAULT}/{claim}"}
        mounts.append(mount if writable else {**mount, "readOnly": True})
    return volumes, mounts


def credentials(job: DistillationJob) -> list[dict[str, Any]]:
    """The job's Secret as environment: the kubelet reads it, the operator never does."""
    name = job.spec.credentials.secret_name
    return [{"secretRef": {"name": name}}] if name else []


def pod_spec(
    job: DistillationJob,
    template: StageTemplate,
    container: dict[str, Any],
    volumes: list[dict[str, Any]],
) -> dict[str, Any]:
    """A pod of one container that passes the `restricted` profile, with the user's overrides."""
    mounts = container.get("volumeMounts", [])
    user_volumes = [v.model_dump(mode="json", by_alias=True, exclude_none=True) for v in template.volumes]
    user_mounts = [m.model_dump(mode="json", by_alias=True, exclude_defaults=True) for m in template.volume_mounts]
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": dict(POD_SECURITY),
        "containers": [
            {**container, "securityContext": dict(CONTAINER_SECURITY), "volumeMounts": [*mounts, *user_mounts]}
        ],
        "volumes": [*volumes, *user_volumes],
    }
    scheduling = job.spec.scheduling
    optional: dict[str, Any] = {
        "serviceAccountName": job.spec.credentials.service_account_name,
        "priorityClassName": scheduling.priority_class_name,
        "schedulerName": scheduling.scheduler_name,
        "nodeSelector": dict(template.node_selector),
        "tolerations": [t.model_dump(mode="json", by_alias=True, exclude_defaults=True) for t in template.tolerations],
    }
    return {**spec, **{name: value for name, value in optional.items() if value}}
