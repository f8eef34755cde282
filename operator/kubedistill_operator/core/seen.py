"""What was seen of a job's children: a frozen picture of the world, the only thing besides the job that a plan reads.

Two seams make it: the Kubernetes API and the local runner's processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from kubedistill_api.identity import StageKey
from kubedistill_api.progress import ProgressReport
from kubedistill_api.results import FailedResult, Success


class JobState(StrEnum):
    """Where a stage's Job is."""

    SUSPENDED = "Suspended"  # by a queue
    ACTIVE = "Active"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True)
class SeenPod:
    """One pod of a stage or of a teacher."""

    name: str
    node: str = ""
    phase: str = "Pending"
    """Pending, Running, Succeeded or Failed."""
    index: int = 0
    """Completion index; 0 for a teacher's pod."""
    created_at: datetime | None = None
    finished_at: datetime | None = None
    waiting_reason: str = ""
    """Why it does not run yet: Unschedulable, ImagePullBackOff, CreateContainerConfigError …; empty when it runs."""
    waiting_message: str = ""
    exit_code: int | None = None
    """Of the main container; None while it runs."""
    terminated_reason: str = ""
    """OOMKilled, Error, Completed, Evicted …"""
    restarts: int = 0
    disrupted: bool = False
    """It was preempted, evicted or its node was lost (condition DisruptionTarget)."""
    result: Success | FailedResult | None = None
    """What its termination message says, where it is a result."""
    log_tail: str = ""
    """The last lines of its log, read only when it failed."""


@dataclass(frozen=True)
class SeenJob:
    """One attempt of one stage."""

    name: str
    uid: str
    key: StageKey
    attempt: int
    state: JobState
    held: bool = False
    """It may have no pod yet: its teacher has not answered."""
    look: bool = False
    """It goes before the attempt of its number, without a teacher, to see whether the answers are there."""
    reason: str = ""
    """Of the Job's Failed condition: DeadlineExceeded, PodFailurePolicy, BackoffLimitExceeded …"""
    message: str = ""
    created_at: datetime | None = None
    started_at: datetime | None = None
    """When it was allowed to have pods."""
    finished_at: datetime | None = None
    clock_from: datetime | None = None
    """From when its deadline is counted: also a Job that is held grows old."""
    deadline_seconds: int | None = None
    completions: int = 1
    """Pods that must succeed."""
    deleting: bool = False
    pods: tuple[SeenPod, ...] = ()
    pods_refused: str = ""
    """Why the API server has none of its pods, in its words: a quota or a LimitRange binds pods, not Jobs."""
    progress: tuple[ProgressReport, ...] = ()
    """Pulled from the active pods, one report each."""
    resource_version: str = ""
    """Of the copy that was read, which may be older than the Job; empty where nobody else writes."""


@dataclass(frozen=True)
class SeenTeacher:
    """One teacher's Deployment and Service."""

    name: str
    uid: str
    teacher: str
    attempt: int
    replicas_ready: int = 0
    answered: bool = False
    """It answered a completion request when it was last looked at."""
    asked: bool = False
    """This process has asked it since it was ready, and knows what came of that."""
    url: str = ""
    """Its base URL as a Generate pod reaches it, ending in `/v1`."""
    message: str = ""
    """Why it did not answer, in the server's or the scheduler's words."""
    created_at: datetime | None = None
    deleting: bool = False
    pods: tuple[SeenPod, ...] = ()
    pods_refused: str = ""
    """As of a Job."""


@dataclass(frozen=True)
class Refusal:
    """A child that the API server would not have when it was last asked for."""

    child: str
    """`Kind/name`."""
    message: str
    """The API server's own sentence."""
    times: int
    """How often in a row."""
    since: datetime
    """The first time. An operator that was started anew counts from its own first try."""
    last: datetime
    """The last time."""


@dataclass(frozen=True)
class Seen:
    """Everything a plan may know of the world."""

    jobs: tuple[SeenJob, ...] = ()
    teachers: tuple[SeenTeacher, ...] = ()
    claim_bound: bool | None = None
    """Of the workspace's claim: None where there is none (yet)."""
    foreign: frozenset[str] = field(default_factory=frozenset)
    """Names of children that exist but belong to somebody else, as `Kind/name`."""
    refused: tuple[Refusal, ...] = ()
    """Children that the API server refused and that have not been made since."""

    def job(self, key: StageKey, attempt: int) -> SeenJob | None:
        """This attempt's Job, if it is there."""
        return self._find(key, attempt, look=False)

    def look(self, key: StageKey, attempt: int) -> SeenJob | None:
        """The look before this attempt, if it is there."""
        return self._find(key, attempt, look=True)

    def teacher(self, name: str, attempt: int) -> SeenTeacher | None:
        """This attempt's teacher, if it is there."""
        return next((t for t in self.teachers if t.teacher == name and t.attempt == attempt), None)

    def _find(self, key: StageKey, attempt: int, *, look: bool) -> SeenJob | None:
        return next((j for j in self.jobs if j.key == key and j.attempt == attempt and j.look is look), None)
