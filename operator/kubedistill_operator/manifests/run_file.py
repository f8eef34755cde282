"""The ConfigMap that carries a stage's run file."""

from __future__ import annotations

from kubedistill_api.job import DistillationJob
from kubedistill_api.run import Run, name_of_job, stage_key
from kubedistill_operator.manifests.base import Manifest, labels, metadata, owned_by_job

KEY = "run.json"


def run_file(job: DistillationJob, run: Run) -> Manifest:
    """Immutable, named as the stage's Job. Owned by the DistillationJob, since the Job that mounts it comes later."""
    found = labels(job, stage_key(run), run.attempt, "run-file")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(job, name_of_job(run), found, owned_by_job(job)),
        "immutable": True,
        "data": {KEY: run.model_dump_json(by_alias=True, exclude_none=True, indent=1)},
    }
