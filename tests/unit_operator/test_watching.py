"""A living attempt: progress that is written seldom, waiting that is told, idleness that ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from kubedistill_api.base import Stage
from kubedistill_api.identity import StageKey
from kubedistill_api.progress import ProgressReport
from kubedistill_api.status import (
    ConditionStatus,
    ConditionType,
    Failure,
    FailureClass,
    Ledger,
    Phase,
    Progress,
    StageState,
    Status,
    TrainingStatus,
)
from kubedistill_operator.core import records
from kubedistill_operator.core.conditions import with_condition
from kubedistill_operator.core.pipeline import pipeline
from kubedistill_operator.core.planner import plan
from kubedistill_operator.core.plans import Plan
from kubedistill_operator.core.seen import JobState, Seen, SeenJob, SeenPod, SeenTeacher
from kubedistill_operator.core.settings import Settings

Kit = Mapping[str, Any]
GENERATE = StageKey(Stage.GENERATE, "big")
TRAIN = StageKey(Stage.TRAIN)


def at(kit: Kit, key: StageKey, progress: Progress | None = None, **spec: Any) -> Any:
    """A job whose steps before `key` are done, and whose first attempt of it was recorded."""
    job = kit["a_job"](**spec)
    status = records.begun(job, kit["START"], Settings())
    for step in pipeline(job.spec):
        stage = status.stage(step.name)
        assert stage is not None
        if step.key == key:
            status = records.with_stage(status, records.changed(stage, attempt=1, progress=progress))
            break
        done = {"state": StageState.SUCCEEDED, "attempt": 1, "input_digest": "sha256:i", "output_digest": "sha256:o"}
        status = records.with_stage(status, records.changed(stage, **done))
    return job.model_copy(update={"status": status})


def running(kit: Kit, key: StageKey, *reports: ProgressReport, **more: Any) -> SeenJob:
    """The attempt, with one pod that runs."""
    pod = SeenPod(name="the-pod", phase="Running", created_at=kit["START"])
    job = SeenJob("small-x-1", "uid-2", key, 1, JobState.ACTIVE, created_at=kit["START"], started_at=kit["START"])
    return replace(job, pods=(pod,), progress=reports, **more)


def report(key: StageKey, done: int, total: int = 100, **more: Any) -> ProgressReport:
    """What a worker says."""
    progress = Progress(done=done, total=total, unit="rows", rate_per_second="2")
    return ProgressReport(stage=key.stage, progress=progress, **more)


def passed(kit: Kit, job: Any, seen_job: SeenJob, seconds: int, *teachers: SeenTeacher) -> Plan:
    """The plan so many seconds after the start."""
    now: datetime = kit["START"] + timedelta(seconds=seconds)
    return plan(job, Seen(jobs=(seen_job,), teachers=teachers), now, Settings())


def teacher(kit: Kit, **more: Any) -> SeenTeacher:
    """The attempt's teacher."""
    return replace(SeenTeacher("t", "uid-3", "big", 1, created_at=kit["START"], answered=True), **more)


def test_progress_of_all_workers_is_added_up(kit: Kit) -> None:
    job = at(kit, GENERATE)
    reports = (report(GENERATE, 10, ledger=Ledger(accepted=9, rejected=1)), report(GENERATE, 30))
    step = passed(kit, job, running(kit, GENERATE, *reports), 5, teacher(kit))
    progress = step.status.stage("Generate:big").progress
    assert (progress.done, progress.total, progress.rate_per_second) == (40, 200, "4")
    assert step.status.progress == "40/200 rows"
    assert step.status.ledger == Ledger(accepted=9, rejected=1)
    assert step.status.phase is Phase.GENERATING
    assert step.status.stage("Generate:big").state is StageState.RUNNING


def test_a_worker_that_has_ended_takes_no_answers_back(kit: Kit) -> None:
    job = at(kit, GENERATE)
    both = [report(GENERATE, 10, ledger=Ledger(accepted=accepted, rejected=1)) for accepted in (9, 20)]
    first = passed(kit, job, running(kit, GENERATE, *both), 5, teacher(kit))
    job = job.model_copy(update={"status": first.status})
    later = passed(kit, job, running(kit, GENERATE, both[1]), 30, teacher(kit))
    assert later.status.ledger == first.status.ledger == Ledger(accepted=29, rejected=2)


def test_progress_is_written_at_most_every_fifteen_seconds(kit: Kit) -> None:
    job = at(kit, TRAIN)
    first = passed(kit, job, running(kit, TRAIN, report(TRAIN, 1)), 0)
    job = job.model_copy(update={"status": first.status})
    soon = passed(kit, job, running(kit, TRAIN, report(TRAIN, 2)), 10)
    assert soon.status == first.status
    late = passed(kit, job, running(kit, TRAIN, report(TRAIN, 3)), 15)
    assert late.status.stage("Train").progress.done == 3


def test_the_trainings_numbers_are_in_the_status(kit: Kit) -> None:
    numbers = TrainingStatus(step=5, total_steps=9, loss="0.4", micro_batch_size=2)
    step = passed(kit, at(kit, TRAIN), running(kit, TRAIN, report(TRAIN, 5, training=numbers)), 3)
    assert step.status.training == numbers


def test_a_pod_without_a_place_is_told_in_the_schedulers_words(kit: Kit) -> None:
    pod = SeenPod(
        name="p", phase="Pending", created_at=kit["START"], waiting_reason="Unschedulable",
        waiting_message="0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    )  # fmt: skip
    step = passed(kit, at(kit, TRAIN), replace(running(kit, TRAIN), pods=(pod,)), 60)
    assert step.status.reason == "Unschedulable"
    told = step.status.condition(ConditionType.RECONCILING)
    assert told is not None
    assert "3 Insufficient nvidia.com/gpu" in told.message
    assert step.status.stage("Train").state is StageState.WAITING


def test_a_pod_without_a_place_fails_after_the_pending_deadline(kit: Kit) -> None:
    pod = SeenPod(name="p", phase="Pending", created_at=kit["START"], waiting_reason="ImagePullBackOff")
    job = at(kit, TRAIN, runPolicy={"pendingDeadlineSeconds": 60})
    waits = replace(running(kit, TRAIN), pods=(pod,))
    assert passed(kit, job, waits, 59).status.phase is Phase.TRAINING
    step = passed(kit, job, waits, 61)
    assert (step.status.phase, step.status.reason) == (Phase.FAILED, "ImagePullBackOff")
    assert step.status.last_failure is not None
    assert "pendingDeadlineSeconds" in step.status.last_failure.message


def lived(kit: Kit, job: Any, looks: list[tuple[int, SeenJob]], *teachers: SeenTeacher) -> Status:
    """The status after passes at these seconds."""
    for seconds, seen_job in looks:
        job = job.model_copy(update={"status": passed(kit, job, seen_job, seconds, *teachers).status})
    status: Status = job.status
    return status


SERVED = [{"name": "big", "model": {"uri": "hf://acme/big"}, "serving": {"idleTimeoutSeconds": 100}}]


def test_a_generation_that_moves_is_left_alone(kit: Kit) -> None:
    looks = [(s, running(kit, GENERATE, report(GENERATE, s))) for s in range(10, 1000, 90)]
    status = lived(kit, at(kit, GENERATE, teachers=SERVED), looks, teacher(kit))
    assert status.stage("Generate:big").state is StageState.RUNNING


@pytest.mark.parametrize(
    "late",
    [lambda kit: running(kit, GENERATE, report(GENERATE, 10)), lambda kit: running(kit, GENERATE)],
    ids=["stuck", "silent"],
)
def test_a_generation_that_moves_nothing_is_stopped_so_that_its_gpus_are_free(kit: Kit, late: Any) -> None:
    looks = [(10, running(kit, GENERATE, report(GENERATE, 10))), (60, late(kit)), (220, late(kit))]
    status = lived(kit, at(kit, GENERATE, teachers=SERVED), looks, teacher(kit))
    assert status.last_failure is not None
    assert status.last_failure.reason == "NoProgress"
    assert status.stage("Generate:big").restarts == 1


HANGS = {"replicas_ready": 1, "asked": True, "answered": False, "message": "it did not answer a completion within 30 s"}


def test_a_teacher_that_is_only_full_is_no_silent_one(kit: Kit) -> None:
    """A completion of ours waits behind a hundred others; theirs are answered."""
    looks = [(s, running(kit, GENERATE, report(GENERATE, s))) for s in range(15, 600, 15)]
    status = lived(kit, at(kit, GENERATE, teachers=SERVED), looks, teacher(kit, **HANGS))
    assert status.condition(ConditionType.TEACHER_READY).status is ConditionStatus.TRUE


def test_a_teacher_that_falls_silent_behind_a_healthy_port_is_told_and_may_come_back(kit: Kit) -> None:
    job = at(kit, GENERATE, teachers=SERVED)
    moves = running(kit, GENERATE, report(GENERATE, 10))
    for seconds in (10, 25):
        step = passed(kit, job, moves, seconds, teacher(kit, **HANGS))
        assert step.status.condition(ConditionType.TEACHER_READY).status is ConditionStatus.TRUE, "it answered just now"
        job = job.model_copy(update={"status": step.status})
    job = job.model_copy(update={"status": passed(kit, job, moves, 31, teacher(kit, **HANGS)).status})
    told = job.status.condition(ConditionType.TEACHER_READY)
    assert (told.status, told.reason, job.status.reason) == ("False", "TeacherSilent", "TeacherSilent")
    assert "did not answer a completion within 30 s. A generation that moves nothing for 100 s" in told.message
    assert job.status.phase is Phase.GENERATING
    unknown = passed(kit, job, moves, 40, teacher(kit, replicas_ready=1)).status
    assert unknown.condition(ConditionType.TEACHER_READY) == told, "a new operator has not asked it yet"
    back = passed(kit, job, moves, 50, teacher(kit, replicas_ready=1, asked=True)).status
    assert (back.condition(ConditionType.TEACHER_READY).status, back.reason) == ("True", "")


def test_a_teacher_that_goes_in_mid_generation_is_told(kit: Kit) -> None:
    pod = SeenPod(name="t-0", waiting_reason="CrashLoopBackOff", waiting_message="back-off 40s")
    gone = teacher(kit, answered=False, pods=(pod,))
    status = passed(kit, at(kit, GENERATE, teachers=SERVED), running(kit, GENERATE), 10, gone).status
    told = status.condition(ConditionType.TEACHER_READY)
    assert (told.status, told.reason) == ("False", "TeacherNotReady")
    assert "pod t-0 waits (CrashLoopBackOff): back-off 40s" in told.message


def test_a_silent_teacher_whose_generation_moves_nothing_is_begun_again(kit: Kit) -> None:
    stuck = running(kit, GENERATE, report(GENERATE, 10))
    looks = [(10, stuck), (60, stuck), (220, stuck)]
    status = lived(kit, at(kit, GENERATE, teachers=SERVED), looks, teacher(kit, **HANGS))
    assert status.last_failure.reason == "NoProgress"
    assert "did not answer a completion within 30 s" in status.last_failure.message
    assert status.stage("Generate:big").restarts == 1


def test_an_operator_that_was_away_for_hours_stops_nothing_at_its_first_look(kit: Kit) -> None:
    job = at(kit, GENERATE, teachers=SERVED)
    looks = [(10, running(kit, GENERATE, report(GENERATE, 10))), (9000, running(kit, GENERATE, report(GENERATE, 90)))]
    assert lived(kit, job, looks, teacher(kit)).last_failure is None
    silent_first = [looks[0], (9000, running(kit, GENERATE))]
    status = lived(kit, job, silent_first, teacher(kit))
    assert status.last_failure is None


def test_a_teacher_that_crashes_again_and_again_is_not_waited_for(kit: Kit) -> None:
    pod = SeenPod(name="t-0", restarts=3, exit_code=1, log_tail="x\nRuntimeError: bad flag")
    waits = replace(running(kit, GENERATE), held=True)
    step = passed(kit, at(kit, GENERATE), waits, 30, teacher(kit, answered=False, pods=(pod,)))
    assert step.status.last_failure is not None
    assert step.status.last_failure.reason == "TeacherCrashed"
    assert "RuntimeError: bad flag" in step.status.last_failure.message


@pytest.mark.parametrize(
    ("more", "late"),
    [
        ({"replicas_ready": 1}, False),
        ({"replicas_ready": 1, "asked": True}, True),
        ({"replicas_ready": 1, "asked": True, "answered": True}, False),
        ({"replicas_ready": 0}, True),
    ],
    ids=["ready-and-not-asked", "ready-and-silent", "ready-and-answering", "not-ready"],
)
def test_a_new_operator_asks_a_ready_teacher_before_it_calls_it_late(kit: Kit, more: Any, late: bool) -> None:
    waits = replace(running(kit, GENERATE), held=True)
    step = passed(kit, at(kit, GENERATE), waits, 86400, teacher(kit, **{"answered": False, **more}))
    failure = step.status.last_failure
    assert (failure is not None) is late
    assert failure is None or failure.reason == "TeacherNotReady"


def test_a_teacher_without_gpus_says_so(kit: Kit) -> None:
    pod = SeenPod(name="t-0", waiting_reason="Unschedulable", waiting_message="Insufficient nvidia.com/gpu")
    waits = replace(running(kit, GENERATE), held=True)
    step = passed(kit, at(kit, GENERATE), waits, 30, teacher(kit, answered=False, pods=(pod,)))
    assert (step.status.phase, step.status.reason) == (Phase.STARTING_TEACHER, "Unschedulable")
    assert "Insufficient nvidia.com/gpu" in step.status.condition(ConditionType.TEACHER_READY).message


def test_a_status_never_outgrows_its_limit(kit: Kit) -> None:
    status = at(kit, TRAIN).status
    for type_ in ConditionType:
        status = with_condition(status, type_, True, "X", "ü" * 2000, kit["START"])
    failure = Failure(stage="Train", class_=FailureClass.APPLICATION, message="ü" * 2048, log_tail="ü" * 4096)
    fitted = records.fitting(status.model_copy(update={"last_failure": failure}))
    assert len(fitted.model_dump_json(by_alias=True, exclude_none=True).encode()) <= records.SIZE_LIMIT


@pytest.mark.parametrize(
    ("queue", "sentence"),
    [("gpus", "The Job waits for the queue gpus to admit it."), ("", "Job/small-prepare-1 is suspended.")],
)
async def test_a_suspended_job_names_its_queue_if_it_has_one(
    kit: Kit, settings: Settings, queue: str, sentence: str
) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"](scheduling={"queueName": queue}), script=lambda run: None)
    await kit["one_pass"](cluster, settings)
    cluster.objects[("Job", "small-prepare-1")]["spec"]["suspend"] = True
    status = (await kit["one_pass"](cluster, settings)).status
    assert status.condition(ConditionType.PREPARED).message == sentence


TWO = {
    "teachers": [
        {"name": name, "model": {"uri": f"hf://acme/{name}"}, "batch": {"gpus": 0}} for name in ("first", "second")
    ]
}


def test_the_second_teachers_answers_are_counted_beside_the_firsts_while_they_come(kit: Kit) -> None:
    key = StageKey(Stage.GENERATE, "second")
    job = at(kit, key, **TWO)
    before = records.with_ledger(job.status, "Generate:first", Ledger(accepted=5, rejected=1))
    job = job.model_copy(update={"status": before})
    for done, accepted in ((10, 9), (20, 18)):
        said = report(key, done, ledger=Ledger(accepted=accepted, rejected=1))
        status = passed(kit, job, running(kit, key, said), done * 10).status
        assert status.ledger == Ledger(accepted=5 + accepted, rejected=2)
        assert status.stage("Generate:second").ledger == Ledger(accepted=accepted, rejected=1)
        job = job.model_copy(update={"status": status})
