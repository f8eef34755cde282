"""What makes a spec unusable here, beyond its schema: a readable list of checks, all problems at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from kubedistill_api import uris
from kubedistill_api.base import DNS_LABEL
from kubedistill_api.job import DistillationJob
from kubedistill_api.rules import Problem, broken_rules
from kubedistill_operator.core.settings import Settings


def problems(job: DistillationJob, settings: Settings) -> list[Problem]:
    """Everything that is wrong with a job, so that a user mends it once."""
    found = list(broken_rules(job))
    return found or [problem for check in CHECKS for problem in check(job, settings)]


def unreadable_uris(job: DistillationJob, settings: Settings) -> Iterator[Problem]:
    """A URI without a bucket or claim, or with a relative path."""
    for path, uri in named_uris(job):
        try:
            place = uris.parse(uri)
        except ValueError as error:
            yield Problem(path, str(error))
            continue
        if place.scheme == "pvc" and not re.fullmatch(DNS_LABEL, place.authority):
            yield Problem(path, f"{place.authority!r} cannot be the name of a PersistentVolumeClaim")
        if ".." in place.path.split("/"):
            yield Problem(path, f"{uri!r} leaves its folder: write it without '..'")


def files_of_a_pod(job: DistillationJob, settings: Settings) -> Iterator[Problem]:
    """A workspace or an output that would vanish with the pod."""
    if settings.local_files:
        return
    for path, uri in named_uris(job):
        if path in ("spec.output.uri", "spec.workspace.uri") and uri.startswith("file://"):
            yield Problem(
                path,
                "file:// is a folder of the pod, which is gone with it: write s3:// or pvc:// (file:// is for "
                "`kubedistill run`)",
            )


def output_in_the_way(job: DistillationJob, settings: Settings) -> Iterator[Problem]:
    """An output inside an input, or around it."""
    if job.spec.output_overlaps_input():
        yield Problem("spec.output.uri", "the output overlaps an input: write a folder of its own")


def names_of_services(job: DistillationJob, settings: Settings) -> Iterator[Problem]:
    """A name that no Service can have (RFC 1035). A rule of the CRD would stop jobs that need no Service."""
    served = any(teacher.serving is not None for teacher in job.spec.teachers)
    if job.metadata.name[:1].isdigit() and (served or job.spec.training.nodes > 1):
        yield Problem(
            "metadata.name",
            "a Service is named after the job, for its teacher or the nodes of its training, and cannot begin with a "
            "digit: write a name that begins with a letter",
        )


CHECKS: tuple[Callable[[DistillationJob, Settings], Iterator[Problem]], ...] = (
    unreadable_uris,
    files_of_a_pod,
    output_in_the_way,
    names_of_services,
)


def named_uris(job: DistillationJob) -> Iterator[tuple[str, str]]:
    """Every URI of the spec with its field path."""
    spec = job.spec
    for index, teacher in enumerate(spec.teachers):
        if teacher.model is not None:
            yield f"spec.teachers[{index}].model.uri", teacher.model.uri
    if spec.student.model is not None:
        yield "spec.student.model.uri", spec.student.model.uri
    yield "spec.data.train.uri", spec.data.train.uri
    if spec.data.validation is not None:
        yield "spec.data.validation.uri", spec.data.validation.uri
    yield "spec.output.uri", spec.output.uri
    if spec.workspace.uri is not None:
        yield "spec.workspace.uri", spec.workspace.uri
