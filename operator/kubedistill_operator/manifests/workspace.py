"""The workspace: its URI as the stages see it, the claim that the job makes, and every claim a pod mounts."""

from __future__ import annotations

from kubedistill_api import environment, identity, uris
from kubedistill_api.job import DistillationJob
from kubedistill_api.placement import WorkspaceClaim
from kubedistill_operator.manifests.base import Defaults, Manifest, owned_by_job


def workspace_uri(job: DistillationJob, defaults: Defaults) -> str:
    """Where the stages leave their files."""
    if job.spec.workspace.uri is not None:
        return job.spec.workspace.uri.rstrip("/")
    if defaults.workspace_uri and job.spec.workspace.pvc is None:
        return defaults.workspace_uri
    return f"pvc://{_claim(job)}"


def workspace_claim(job: DistillationJob, defaults: Defaults) -> Manifest | None:
    """The claim that the job makes and owns; None where it names one, or an object store."""
    wanted = job.spec.workspace.pvc or WorkspaceClaim()
    if wanted.claim_name or not workspace_uri(job, defaults).startswith("pvc://") or job.spec.workspace.uri:
        return None
    spec = {
        "accessModes": [str(mode) for mode in wanted.access_modes],
        "resources": {"requests": {"storage": wanted.size}},
    }
    if wanted.storage_class_name is not None:
        spec["storageClassName"] = wanted.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": _claim(job),
            "namespace": job.metadata.namespace,
            "labels": {
                identity.LABEL_MANAGED_BY: identity.MANAGER,
                identity.LABEL_NAME: identity.MANAGER,
                identity.LABEL_COMPONENT: "workspace",
                identity.LABEL_JOB: job.metadata.name,
                identity.LABEL_JOB_UID: job.metadata.uid,
            },
            "ownerReferences": [owned_by_job(job)],
        },
        "spec": spec,
    }


def claims(job: DistillationJob, defaults: Defaults, *, output_writable: bool) -> dict[str, bool]:
    """Every claim that the job's URIs name, and whether a stage may write to it."""
    found: dict[str, bool] = {}
    for uri, writable in (
        *((uri, False) for uri in job.spec.input_uris()),
        (job.spec.output.uri, output_writable),
        (workspace_uri(job, defaults), True),
    ):
        if uri.startswith("pvc://"):
            claim = uris.parse(uri).authority
            found[claim] = found.get(claim, False) or writable
    return found


def path_of(uri: str) -> str:
    """Where a `pvc://` or `file://` URI lies inside a pod."""
    place = uris.parse(uri)
    if place.scheme == "file":
        return place.path
    return f"{environment.CLAIM_ROOT_DEFAULT}/{place.authority}/{place.path}".rstrip("/")


def _claim(job: DistillationJob) -> str:
    named = job.spec.workspace.pvc
    return named.claim_name if named and named.claim_name else identity.claim_name(job.metadata.name)
