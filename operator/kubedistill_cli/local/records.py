"""Who a local job is and how far it came: what the API server would keep."""

from __future__ import annotations

import uuid
from pathlib import Path

from pydantic import BaseModel, ValidationError

from kubedistill_api import uris
from kubedistill_api.digests import spec_digest
from kubedistill_api.job import DistillationJob
from kubedistill_api.status import Phase, Status
from kubedistill_cli.local.folders import JobFolder


class JobRecord(BaseModel):
    """The file `status.json` of a job's folder."""

    name: str
    uid: str
    spec_digest: str
    file: str = ""
    """Where the job was read from."""
    status: Status = Status()

    def with_status(self, status: Status) -> JobRecord:
        """The same job, further on."""
        return self.model_copy(update={"status": status})


def load(folder: JobFolder) -> JobRecord | None:
    """What was recorded, if it can be read."""
    try:
        return JobRecord.model_validate_json(folder.record.read_bytes())
    except (OSError, ValidationError):
        return None


def record_for(job: DistillationJob, folder: JobFolder, file: Path) -> JobRecord:
    """The record to go on with: the old one, or a new one for a changed spec or after a failure.

    A new record is no new beginning: what the stages committed to the workspace is found again by its digest.
    """
    asked = spec_digest(job.spec)
    old = load(folder)
    if old is not None and old.spec_digest == asked and _goes_on(old.status):
        return old
    uid = old.uid if old is not None and old.spec_digest == asked else str(uuid.uuid4())
    return JobRecord(name=job.metadata.name, uid=uid, spec_digest=asked, file=str(file))


def _goes_on(status: Status) -> bool:
    """Whether the recorded end still stands. A failed job is tried again; so is one whose model is gone."""
    if status.phase is Phase.FAILED:
        return False
    model = status.result.model_uri if status.result else ""
    return not uris.scheme_is(model, ("file",)) or Path(uris.parse(model).path).exists()
