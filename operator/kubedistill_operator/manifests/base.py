"""What every child has in common: names, labels, owners, and the defaults of an installation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from kubedistill_api import identity
from kubedistill_api.base import GROUP, KIND, VERSION
from kubedistill_api.identity import StageKey
from kubedistill_api.job import DistillationJob

Manifest: TypeAlias = dict[str, Any]
"""A Kubernetes object with the fields we own, for server-side apply."""


@dataclass(frozen=True)
class Defaults:
    """What an installation decides for the children of all its jobs."""

    trainer_image: str = "kubedistill/trainer:latest"
    trainer_vllm_image: str = "kubedistill/trainer-vllm:latest"
    """The trainer image with vLLM in it."""
    vllm_image: str = "vllm/vllm-openai:latest"
    image_pull_policy: str = "IfNotPresent"
    workspace_uri: str = ""
    """Of jobs that name none; empty: a claim that the job makes and owns. The local runner names a folder."""
    stage_ttl_seconds: int = 300
    """A finished Job, and the teacher it owns, are removed after so long, with no operator alive."""
    generate_deadline_seconds: int = 7 * 24 * 3600
    """The longest generation where the spec gives no deadline: the dead-man's switch needs one."""
    train_grace_seconds: int = 120
    """How long a training may take to write its checkpoint after SIGTERM."""


def labels(job: DistillationJob, key: StageKey, attempt: int, component: str) -> dict[str, str]:
    """The labels by which a child is found and drawn."""
    found = {
        identity.LABEL_MANAGED_BY: identity.MANAGER,
        identity.LABEL_NAME: identity.MANAGER,
        identity.LABEL_COMPONENT: component,
        identity.LABEL_JOB: job.metadata.name,
        identity.LABEL_JOB_UID: job.metadata.uid,
        identity.LABEL_STAGE: str(key.stage),
        identity.LABEL_ATTEMPT: str(attempt),
    }
    return {**found, identity.LABEL_TEACHER: key.teacher} if key.teacher else found


def metadata(job: DistillationJob, name: str, found: dict[str, str], owner: dict[str, Any]) -> dict[str, Any]:
    """A child's metadata with its one controller."""
    return {"name": name, "namespace": job.metadata.namespace, "labels": found, "ownerReferences": [owner]}


def owned_by_job(job: DistillationJob) -> dict[str, Any]:
    """Deleted with the DistillationJob. No `blockOwnerDeletion`: that would ask for rights on finalizers."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "name": job.metadata.name,
        "uid": job.metadata.uid,
        "controller": True,
    }


def owned_by_stage(name: str, uid: str) -> dict[str, Any]:
    """Deleted with a stage's Job: how a teacher goes when nobody is left to remove it."""
    return {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": True}


def queue_label(job: DistillationJob) -> dict[str, str]:
    """Kueue's label, where the job names a queue."""
    queue = job.spec.scheduling.queue_name
    return {"kueue.x-k8s.io/queue-name": queue} if queue else {}
