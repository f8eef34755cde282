"""How the nodes of one training find each other: a name for each pod of its Job."""

from __future__ import annotations

from kubedistill_api import environment
from kubedistill_api.base import Stage
from kubedistill_api.identity import LABEL_ATTEMPT, StageKey, job_name, meeting_name
from kubedistill_api.job import DistillationJob
from kubedistill_operator.manifests.base import Manifest, labels, metadata, owned_by_job

TRAIN = StageKey(Stage.TRAIN)


def leader(job: DistillationJob, attempt: int) -> str:
    """`host:port` of an attempt's first pod: an Indexed Job gives it the Job's name and its index as hostname."""
    host = f"{job_name(job.metadata.name, TRAIN, attempt)}-0"
    service = meeting_name(job.metadata.name)
    return f"{host}.{service}.{job.metadata.namespace}.svc:{environment.MEETING_PORT}"


def meeting_service(job: DistillationJob) -> Manifest:
    """One for all attempts, made before the first: owned by the DistillationJob, since its Jobs come later."""
    found = labels(job, TRAIN, 1, Stage.TRAIN.lower())
    del found[LABEL_ATTEMPT]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(job, meeting_name(job.metadata.name), found, owned_by_job(job)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # they meet before anything else
            "selector": found,
            "ports": [{"name": "meeting", "port": environment.MEETING_PORT, "targetPort": environment.MEETING_PORT}],
        },
    }
