"""The dead-man's switch: how long a Generate Job, and the teacher that it owns, may live without an operator.

A Job that is held (no pods, parallelism 0) has a short deadline, and the plan moves it ahead while the teacher starts.
Once the teacher answers, the Job gets its pods and the deadline of the generation. Either way the Job ends by itself
when nobody comes back; its TTL removes it, and garbage collection the teacher.
"""

from __future__ import annotations

from kubedistill_operator.core.pipeline import Step
from kubedistill_operator.core.plans import Lease, Ref
from kubedistill_operator.core.runs import workers
from kubedistill_operator.core.seen import SeenJob
from kubedistill_operator.core.times import since
from kubedistill_operator.core.world import World
from kubedistill_operator.manifests.stage_job import generate_deadline, hold_seconds


def renewed(world: World, step: Step, attempt: SeenJob) -> tuple[Lease, ...]:
    """A held Job's deadline, moved ahead once half of it is over; nothing before that."""
    serving = world.job.spec.teacher(step.key.teacher).serving
    if serving is None or attempt.clock_from is None or attempt.deadline_seconds is None:
        return ()
    whole = hold_seconds(serving)
    left = attempt.deadline_seconds - since(attempt.clock_from, world.now).total_seconds()
    return (_lease(world, attempt, whole),) if left < whole / 2 else ()


def let_run(world: World, attempt: SeenJob) -> Lease:
    """A held Job gets its pods, and the whole time of a generation from now."""
    seconds = generate_deadline(world.job.spec, world.settings)
    return _lease(world, attempt, seconds, workers(world.job.spec, attempt.key.teacher, world.settings))


def _lease(world: World, attempt: SeenJob, seconds: int, workers: int = 0) -> Lease:
    begun = attempt.clock_from or attempt.created_at or world.now
    return Lease(Ref("Job", attempt.name, attempt.uid), begun, world.now, seconds, workers, attempt.resource_version)
