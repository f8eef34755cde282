"""Children that the recorded status does not need. Jobs that ended are kept until their TTL: people read their logs."""

from __future__ import annotations

from kubedistill_api.status import Status
from kubedistill_operator.core.plans import Ref
from kubedistill_operator.core.records import DONE
from kubedistill_operator.core.seen import JobState, Seen, SeenJob

LIVE = (JobState.ACTIVE, JobState.SUSPENDED)


def leftovers(recorded: Status, seen: Seen) -> tuple[Ref, ...]:
    """What to delete, judged by what an earlier pass wrote down, never by what this one is about to write.

    A teacher goes as soon as its Generate Job no longer lives, whatever was recorded.
    """
    jobs = [job for job in seen.jobs if job.state in LIVE and not _wanted(recorded, job)]
    kept = {(j.key.teacher, j.attempt) for j in seen.jobs if j.state in LIVE and j not in jobs and not j.look}
    teachers = [t for t in seen.teachers if (t.teacher, t.attempt) not in kept]
    return (
        *(Ref("Job", job.name, job.uid) for job in jobs if not job.deleting),
        *(Ref("Deployment", teacher.name, teacher.uid) for teacher in teachers if not teacher.deleting),
    )


def _wanted(recorded: Status, job: SeenJob) -> bool:
    """Whether a living Job is the attempt that was recorded, or one that was started and not yet recorded."""
    if recorded.finished or recorded.suspended_time is not None:
        return False
    stage = recorded.stage(str(job.key))
    if stage is None:
        return True
    if stage.state in DONE:
        return False
    return job.attempt > stage.attempt or (job.attempt == stage.attempt and stage.retry_time is None)
