"""Job files: read, with relative paths made absolute, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kubedistill_api.documents import InvalidDocumentError, read_job
from kubedistill_api.job import DistillationJob, DistillationJobSpec
from kubedistill_api.rules import Problem
from kubedistill_api.uris import rebased
from kubedistill_operator.core.checks import problems
from kubedistill_operator.core.settings import Settings


def load(path: Path) -> DistillationJob:
    """The job of a file, with `file://` paths relative to the file's folder made absolute.

    Raises:
        InvalidDocumentError: with everything that is wrong with it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidDocumentError([Problem("", f"this file cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise InvalidDocumentError(
            [Problem("", f"this is no text in UTF-8 (byte {error.start + 1} cannot be read); is it the right file?")]
        ) from error
    job = read_job(text)
    spec = DistillationJobSpec.model_validate(
        _rebased(job.spec.model_dump(mode="json", by_alias=True, exclude_none=True), str(path.resolve().parent))
    )
    job = job.model_copy(update={"spec": spec})
    found = problems(job, Settings(local_files=True))
    if found:
        raise InvalidDocumentError(found)
    return job


def refusals_of_a_cluster(job: DistillationJob) -> list[Problem]:
    """What an operator would refuse of a job that `kubedistill run` takes."""
    return problems(job, Settings())


class _PlainDumper(yaml.SafeDumper):
    """No anchors: what stands twice is written twice, as people do."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def as_yaml(documents: list[dict[str, Any]]) -> str:
    """Objects as a YAML stream."""
    text = yaml.dump_all(documents, Dumper=_PlainDumper, sort_keys=False, width=110, allow_unicode=True)
    return str(text)


def _rebased(value: Any, folder: str) -> Any:
    """The document with every field called `uri` rebased."""
    match value:
        case dict():
            return {
                key: rebased(item, folder) if key == "uri" and isinstance(item, str) else _rebased(item, folder)
                for key, item in value.items()
            }
        case list():
            return [_rebased(item, folder) for item in value]
    return value
