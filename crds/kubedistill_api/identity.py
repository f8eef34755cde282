"""Identity in one module: names of children, labels, digests and folders of the workspace."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from kubedistill_api.base import GROUP, Stage

NAME_LIMIT = 52
"""A Job's pods are called `<job>-<index>-<5 characters>`, which must stay a DNS label of 63 characters."""

MANAGER = "kubedistill"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_NAME = "app.kubernetes.io/name"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_JOB = f"{GROUP}/job"
LABEL_JOB_UID = f"{GROUP}/job-uid"
LABEL_STAGE = f"{GROUP}/stage"
LABEL_TEACHER = f"{GROUP}/teacher"
LABEL_ATTEMPT = f"{GROUP}/attempt"

ANNOTATION_STARTED = f"{GROUP}/started-at"
"""On a Job that waited for its teacher: when it was given pods. Its own clock began earlier."""

COMPONENT_LOOK = "look"
"""Component of a Generate attempt that only looks whether the answers are there, before its teacher is started."""


@dataclass(frozen=True, order=True)
class StageKey:
    """One step of the pipeline: a stage, and for Generate the teacher it asks."""

    stage: Stage
    teacher: str = ""

    def __str__(self) -> str:
        return f"{self.stage}:{self.teacher}" if self.teacher else str(self.stage)

    @staticmethod
    def parse(text: str) -> StageKey:
        """The inverse of `str`.

        Raises:
            ValueError: the part before the colon is no stage.
        """
        stage, _, teacher = text.partition(":")
        return StageKey(Stage(stage), teacher)


def bounded(name: str, limit: int = NAME_LIMIT) -> str:
    """The name itself, or its head and a digest where it is too long; deterministic."""
    if len(name) <= limit:
        return name
    return f"{name[: limit - 9].rstrip('-.')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def job_name(job: str, key: StageKey, attempt: int, *, look_only: bool = False) -> str:
    """The name of a stage's Job (and of its run file's ConfigMap); a look goes before the attempt of its number."""
    parts = [job, key.stage.lower(), *([key.teacher] if key.teacher else []), str(attempt)]
    return bounded("-".join([*parts, COMPONENT_LOOK] if look_only else parts))


def teacher_name(job: str, teacher: str, attempt: int) -> str:
    """The name of a teacher's Deployment and Service."""
    return bounded(f"{job}-teacher-{teacher}-{attempt}")


def meeting_name(job: str) -> str:
    """The name of the headless Service through which the nodes of a training find each other, whatever the attempt."""
    return bounded(f"{job}-train")


def claim_name(job: str) -> str:
    """The name of the workspace's PersistentVolumeClaim when the job owns it."""
    return bounded(f"{job}-workspace")


def digest(value: BaseModel | Any) -> str:
    """`sha256:` and the digest of a value's canonical JSON: sorted keys, no blanks, defaults included."""
    plain = value.model_dump(mode="json", by_alias=True) if isinstance(value, BaseModel) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def short(digest: str) -> str:
    """Twelve characters of a digest, for names of folders."""
    return digest.removeprefix("sha256:")[:12]


def stage_folder(namespace: str, job: str, key: StageKey, input_digest: str) -> str:
    """Where a stage writes, relative to the workspace.

    Folders are named by what shaped their content, so a changed spec never meets old files. A teacher's answers lie
    outside the job's folder: any job of the same workspace that would make the same answers finds them.
    """
    if key.stage is Stage.GENERATE:
        return f"answers/{key.teacher}-{short(input_digest)}"
    return f"jobs/{namespace}.{job}/{key.stage.lower()}-{short(input_digest)}"
