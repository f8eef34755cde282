"""The plan over a job's life, on the cluster in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest

from kubedistill_api.base import Stage
from kubedistill_api.digests import generate_digest
from kubedistill_api.results import FailedResult, GenerateResult, Success
from kubedistill_api.run import Run
from kubedistill_api.status import (
    Condition,
    ConditionStatus,
    ConditionType,
    FailureClass,
    GateOutcome,
    Ledger,
    Phase,
    Score,
    StageState,
)
from kubedistill_operator.core.planner import plan
from kubedistill_operator.core.seen import Seen
from kubedistill_operator.core.settings import Settings

Kit = Mapping[str, Any]


def said(run: Run, code: int, reason: str, class_: FailureClass, **more: Any) -> FailedResult:
    """A stage's words at its bad end."""
    return FailedResult(stage=run.stage, exit_code=code, class_=class_, reason=reason, message="Mend it.", **more)


def failing(
    kit: Kit, stage: Stage, code: int, class_: FailureClass, times: int = 99, **more: Any
) -> Callable[..., Any]:
    """A script in which a stage ends badly so many times."""

    def script(run: Run) -> Success | FailedResult:
        if run.stage is stage and run.attempt <= times:
            return said(run, code, "Reasoned", class_, **more)
        return kit["success"](run)

    return script


def condition(cluster: Any, type_: ConditionType) -> Condition:
    """A condition that must be there."""
    found = cluster.asked.status.condition(type_)
    assert found is not None
    return found


async def test_a_job_runs_from_nothing_to_a_model(kit: Kit, settings: Settings) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"]())
    status = await kit["until"](cluster, settings)
    assert status.phase is Phase.SUCCEEDED
    assert status.result is not None
    assert status.result.model_uri == "s3://acme/models/small"
    assert cluster.made == [
        "small-prepare-1",
        "small-generate-big-1",
        "small-train-1",
        "small-evaluate-1",
        "small-publish-1",
    ]
    assert all(status.is_true(t) for t in (ConditionType.PREPARED, ConditionType.GENERATED, ConditionType.TRAINED))
    assert status.score == "ROUGE 0.1 → 0.5"
    assert status.ledger == Ledger(accepted=9, rejected=1)
    assert status.usage is not None
    assert status.usage.tokens_generated == 100


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["big"], "big"),
        (["big", "other", "third"], "big, other, third"),
        ([letter * 20 for letter in "abcd"], ", ".join(letter * 20 for letter in "abcd")),
    ],
    ids=["one", "three", "as many as there may be, with the longest names"],
)
async def test_the_printer_column_names_every_teacher(
    names: list[str], told: str, kit: Kit, settings: Settings
) -> None:
    teachers = [{"name": name, "model": {"uri": f"hf://acme/{name}"}, "serving": {}} for name in names]
    cluster = kit["MemoryCluster"](kit["a_job"](teachers=teachers))
    await kit["one_pass"](cluster, settings)
    assert cluster.asked.status.teachers == told


async def test_the_status_reads_like_a_batch_job_to_kstatus(kit: Kit, settings: Settings) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"](), script=lambda run: None)
    await kit["one_pass"](cluster, settings)
    assert condition(cluster, ConditionType.RECONCILING).status is ConditionStatus.TRUE
    assert condition(cluster, ConditionType.SUCCEEDED).status is ConditionStatus.UNKNOWN
    cluster.script = kit["success"]
    status = await kit["until"](cluster, settings)
    assert not status.is_true(ConditionType.RECONCILING)
    assert not status.is_true(ConditionType.STALLED)
    assert status.condition("Ready") is None
    assert status.observed_generation == 1


async def test_the_teacher_comes_after_its_job_and_before_the_questions(kit: Kit, settings: Settings) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"](), teacher_answers=False)
    await kit["until"](cluster, settings, lambda status: status.current_stage == "Generate:big")
    job = cluster.objects[("Job", "small-generate-big-1")]
    assert job["spec"]["parallelism"] == 0
    assert job["spec"]["activeDeadlineSeconds"] > 0
    assert job["spec"]["ttlSecondsAfterFinished"] > 0
    assert not any(kind == "Deployment" for kind, _ in cluster.objects)
    await kit["one_pass"](cluster, settings)
    owner = cluster.objects[("Deployment", "small-teacher-big-1")]["metadata"]["ownerReferences"][0]
    assert owner["uid"] == job["metadata"]["uid"]
    assert cluster.asked.status.phase is Phase.STARTING_TEACHER
    await kit["one_pass"](cluster, settings)
    assert cluster.objects[("Job", "small-generate-big-1")]["spec"]["parallelism"] == 0
    cluster.teacher_answers = True
    await kit["one_pass"](cluster, settings)
    assert cluster.objects[("Job", "small-generate-big-1")]["spec"]["parallelism"] > 0
    assert condition(cluster, ConditionType.TEACHER_READY).status is ConditionStatus.TRUE


async def test_the_teacher_is_gone_once_the_answers_are_there(kit: Kit, settings: Settings) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"]())
    await kit["until"](cluster, settings, lambda status: status.current_stage == "Train")
    assert not any(kind == "Deployment" for kind, _ in cluster.objects)
    assert ("Job", "small-generate-big-1") in cluster.objects, "people read its logs until the TTL"


@pytest.mark.parametrize(
    "teacher",
    [
        {"external": {"url": "https://x.example/v1", "model": "m", "termsAccepted": True}},
        {"model": {"uri": "hf://acme/big"}, "batch": {}},
    ],
    ids=["external", "batch"],
)
async def test_a_teacher_that_is_not_ours_to_serve_has_no_deployment(
    kit: Kit, settings: Settings, teacher: dict[str, Any]
) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"](teachers=[{"name": "big", **teacher}]))
    await kit["until"](cluster, settings, lambda status: status.current_stage == "Generate:big")
    assert cluster.objects[("Job", "small-generate-big-1")]["spec"]["parallelism"] > 0
    await kit["until"](cluster, settings)
    assert not any(kind == "Deployment" for kind, _ in cluster.objects)


async def test_an_external_teacher_is_asked_by_no_more_pods_than_its_limits_have_room_for(
    kit: Kit, settings: Settings
) -> None:
    external = {"url": "https://x.example/v1", "model": "m", "termsAccepted": True, "requestsPerMinute": 2}
    cluster = kit["MemoryCluster"](kit["a_job"](teachers=[{"name": "big", "external": external}]))
    await kit["until"](cluster, settings, lambda status: status.current_stage == "Generate:big")
    assert cluster.objects[("Job", "small-generate-big-1")]["spec"]["completions"] == 2


async def test_two_teachers_are_asked_one_after_the_other(kit: Kit, settings: Settings) -> None:
    teachers = [
        {"name": n, "model": {"uri": f"hf://acme/{n}"}, "serving": {}, "weight": w} for n, w in (("a", 1), ("b", 3))
    ]
    runs: list[Run] = []

    def script(run: Run) -> Success:
        runs.append(run)
        return kit["success"](run)

    cluster = kit["MemoryCluster"](kit["a_job"](teachers=teachers), script=script)
    status = await kit["until"](cluster, settings)
    shares = [(run.teacher.name, run.share_from, run.share_to) for run in runs if run.stage is Stage.GENERATE]
    assert shares == [("a", 0.0, 0.25), ("b", 0.25, 1.0)]
    assert status.ledger == Ledger(accepted=18, rejected=2)
    train = next(run for run in runs if run.stage is Stage.TRAIN)
    assert len(train.answers) == 2


async def test_a_teacher_that_fails_and_is_asked_again_is_counted_once_beside_the_others(
    kit: Kit, settings: Settings
) -> None:
    teachers = [{"name": n, "model": {"uri": f"hf://acme/{n}"}, "batch": {"gpus": 0}} for n in ("a", "b")]

    def script(run: Run) -> Success | FailedResult:
        if run.stage is Stage.GENERATE and run.teacher.name == "b" and run.attempt == 1:
            ledger = Ledger(accepted=1, rejected=3)
            return said(run, 75, "TeacherUnavailable", FailureClass.INFRASTRUCTURE, ledger=ledger)
        return kit["success"](run)

    cluster = kit["MemoryCluster"](kit["a_job"](teachers=teachers), script=script)
    failed = await kit["until"](
        cluster, settings, lambda status: status.last_failure is not None and status.ledger.accepted > 9
    )
    assert failed.ledger == Ledger(accepted=10, rejected=4)
    status = await kit["until"](cluster, settings)
    assert status.ledger == Ledger(accepted=18, rejected=2)
    assert [status.stage(f"Generate:{name}").ledger for name in "ab"] == [Ledger(accepted=9, rejected=1)] * 2


async def test_a_teacher_that_never_answers_is_tried_again_and_then_given_up(kit: Kit, settings: Settings) -> None:
    job = kit["a_job"](
        teachers=[{"name": "big", "model": {"uri": "hf://acme/big"}, "serving": {"startupTimeoutSeconds": 60}}],
        runPolicy={"maxRestarts": 1},
    )
    cluster = kit["MemoryCluster"](job, teacher_answers=False)
    status = await kit["until"](cluster, settings)
    assert status.phase is Phase.FAILED
    assert status.reason == "TeacherNotReady"
    assert status.last_failure is not None
    assert status.last_failure.stage == "Teacher:big"
    assert "startupTimeoutSeconds" in status.last_failure.message
    assert [name for name in cluster.made if "generate" in name] == [
        "small-generate-big-1",
        "small-generate-big-2-look",
        "small-generate-big-2",
    ]
    await kit["one_pass"](cluster, settings)
    assert ("Job", "small-generate-big-2") not in cluster.objects
    assert not any(kind == "Deployment" for kind, _ in cluster.objects)


async def test_the_phase_stays_with_the_teacher_from_one_attempt_of_it_to_the_next(
    kit: Kit, settings: Settings
) -> None:
    job = kit["a_job"](
        teachers=[{"name": "big", "model": {"uri": "hf://acme/big"}, "serving": {"startupTimeoutSeconds": 60}}],
    )
    cluster = kit["MemoryCluster"](job, teacher_answers=False)
    await kit["until"](cluster, settings, lambda status: status.current_stage == "Generate:big")
    phases = []
    for _ in range(40):
        phases.append(cluster.asked.status.phase)
        await kit["one_pass"](cluster, settings)
        cluster.now += timedelta(seconds=5)
    assert len([name for name in cluster.made if "generate" in name]) > 1
    assert set(phases) == {Phase.STARTING_TEACHER}
    cluster.teacher_answers = True
    await kit["until"](cluster, settings, lambda status: status.phase is Phase.GENERATING)


@pytest.mark.parametrize("code", [64, 65, 66])
async def test_a_permanent_failure_is_not_tried_again(kit: Kit, settings: Settings, code: int) -> None:
    cluster = kit["MemoryCluster"](
        kit["a_job"](), script=failing(kit, Stage.PREPARE, code, FailureClass.BAD_CONFIGURATION)
    )
    status = await kit["until"](cluster, settings)
    assert (status.phase, status.reason) == (Phase.FAILED, "Reasoned")
    assert cluster.made == ["small-prepare-1"]
    assert status.is_true(ConditionType.STALLED)
    assert condition(cluster, ConditionType.SUCCEEDED).message == "Mend it."
    assert condition(cluster, ConditionType.PREPARED).reason == "Reasoned"
    assert status.last_failure is not None
    assert status.last_failure.exit_code == code


async def test_a_failure_that_may_pass_is_tried_again_with_growing_pauses(kit: Kit, settings: Settings) -> None:
    script = failing(kit, Stage.TRAIN, 75, FailureClass.INFRASTRUCTURE, times=2)
    cluster = kit["MemoryCluster"](kit["a_job"](), script=script)
    pauses = []
    for attempt in (1, 2):
        status = await kit["until"](
            cluster,
            settings,
            lambda s, n=attempt: (s.stage("Train") or s.stages[0]).restarts == n,
            seconds=1,
            passes=200,
        )
        stage = status.stage("Train")
        pauses.append(stage.retry_time)
        assert status.reason == "Retrying"
        assert stage.state is StageState.WAITING
    status = await kit["until"](cluster, settings)
    assert status.phase is Phase.SUCCEEDED
    assert status.stage("Train").attempt == 3
    assert pauses[0] < pauses[1]


async def test_retries_end_with_a_sentence_that_says_how_often(kit: Kit, settings: Settings) -> None:
    script = failing(kit, Stage.TRAIN, 75, FailureClass.INFRASTRUCTURE)
    cluster = kit["MemoryCluster"](kit["a_job"](runPolicy={"maxRestarts": 2}), script=script)
    status = await kit["until"](cluster, settings)
    assert status.phase is Phase.FAILED
    assert status.last_failure is not None
    assert "failed 3 times" in status.last_failure.message
    assert status.stage("Train").attempt == 3


async def test_a_preemption_does_not_count(kit: Kit, settings: Settings) -> None:
    script = failing(kit, Stage.TRAIN, 143, FailureClass.PREEMPTED, times=5)
    cluster = kit["MemoryCluster"](kit["a_job"](runPolicy={"maxRestarts": 0}), script=script)
    status = await kit["until"](cluster, settings, passes=200)
    assert status.phase is Phase.SUCCEEDED
    stage = status.stage("Train")
    assert (stage.restarts, stage.preemptions, stage.attempt) == (0, 5, 6)


async def test_a_full_device_halves_the_micro_batch_three_times_at_most(kit: Kit, settings: Settings) -> None:
    sizes: list[int] = []

    def script(run: Run) -> Success | FailedResult:
        if run.stage is Stage.TRAIN:
            sizes.append(run.micro_batch_size)
            return said(run, 70, "DeviceOutOfMemory", FailureClass.DEVICE_OUT_OF_MEMORY)
        return kit["success"](run)

    job = kit["a_job"](training={"hyperparameters": {"microBatchSize": 16, "globalBatchSize": 64}})
    cluster = kit["MemoryCluster"](job, script=script)
    status = await kit["until"](cluster, settings)
    assert sizes == [16, 8, 4, 2]
    assert (status.phase, status.reason) == (Phase.FAILED, "DeviceOutOfMemory")
    assert status.stage("Train").restarts == 0


async def test_a_full_device_fails_where_the_spec_says_so(kit: Kit, settings: Settings) -> None:
    script = failing(kit, Stage.TRAIN, 70, FailureClass.DEVICE_OUT_OF_MEMORY)
    cluster = kit["MemoryCluster"](kit["a_job"](training={"onOutOfMemory": "Fail"}), script=script)
    status = await kit["until"](cluster, settings)
    assert status.phase is Phase.FAILED
    assert status.stage("Train").attempt == 1


async def test_a_gate_that_refuses_leaves_the_scores(kit: Kit, settings: Settings) -> None:
    scores = [Score(metric="ROUGE", student="0.1", baseline="0.2", gate=GateOutcome.FAILED)]
    script = failing(kit, Stage.EVALUATE, 1, FailureClass.APPLICATION, scores=scores)
    cluster = kit["MemoryCluster"](kit["a_job"](), script=script)
    status = await kit["until"](cluster, settings)
    assert status.phase is Phase.FAILED
    assert status.evaluation == scores
    assert status.result is None
    assert cluster.made[-1] == "small-evaluate-1"


async def test_suspend_stops_what_runs_and_resume_is_a_new_attempt(kit: Kit, settings: Settings) -> None:
    def script(run: Run) -> Success | None:
        return None if run.stage is Stage.TRAIN else kit["success"](run)

    cluster = kit["MemoryCluster"](kit["a_job"](), script=script)
    await kit["until"](cluster, settings, lambda s: (s.stage("Train") or s.stages[0]).state is StageState.RUNNING)
    cluster.edit(suspend=True)
    await kit["one_pass"](cluster, settings)
    assert cluster.asked.status.phase is Phase.SUSPENDED
    assert ("Job", "small-train-1") in cluster.objects, "first the reason is written down, then the Job is deleted"
    await kit["one_pass"](cluster, settings)
    assert ("Job", "small-train-1") not in cluster.objects
    assert condition(cluster, ConditionType.SUSPENDED).status is ConditionStatus.TRUE
    assert not cluster.asked.status.is_true(ConditionType.RECONCILING)
    cluster.now += timedelta(hours=5)
    cluster.edit(suspend=False)
    cluster.script = kit["success"]
    status = await kit["until"](cluster, settings)
    assert status.phase is Phase.SUCCEEDED
    assert "small-train-2" in cluster.made
    assert status.execution_attempt == 2
    assert status.suspended_seconds >= 5 * 3600
    assert condition(cluster, ConditionType.SUSPENDED).status is ConditionStatus.FALSE


async def test_suspend_while_the_teacher_starts_frees_it(kit: Kit, settings: Settings) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"](), teacher_answers=False)
    await kit["until"](cluster, settings, lambda status: status.phase is Phase.STARTING_TEACHER)
    cluster.edit(suspend=True)
    await kit["one_pass"](cluster, settings)
    await kit["one_pass"](cluster, settings)
    assert not any(kind in ("Deployment", "Service") for kind, _ in cluster.objects)
    cluster.edit(suspend=False)
    cluster.teacher_answers = True
    status = await kit["until"](cluster, settings)
    assert status.phase is Phase.SUCCEEDED
    assert "small-generate-big-2" in cluster.made


async def test_a_job_that_begins_suspended_starts_nothing(kit: Kit, settings: Settings) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"](suspend=True))
    await kit["one_pass"](cluster, settings)
    assert cluster.asked.status.phase is Phase.SUSPENDED
    assert cluster.made == []
    cluster.edit(suspend=False)
    assert (await kit["until"](cluster, settings)).phase is Phase.SUCCEEDED


async def test_the_jobs_deadline_does_not_count_suspensions(kit: Kit, settings: Settings) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"](runPolicy={"activeDeadlineSeconds": 600}), script=lambda run: None)
    await kit["one_pass"](cluster, settings)
    cluster.now += timedelta(seconds=300)
    cluster.edit(suspend=True)
    await kit["one_pass"](cluster, settings)
    cluster.now += timedelta(hours=2)
    await kit["one_pass"](cluster, settings)
    cluster.edit(suspend=False)
    await kit["one_pass"](cluster, settings)
    assert cluster.asked.status.phase is Phase.PREPARING
    cluster.now += timedelta(seconds=301)
    step = await kit["one_pass"](cluster, settings)
    assert (step.status.phase, step.status.reason) == (Phase.FAILED, "DeadlineExceeded")
    assert step.status.stage("Prepare").state is StageState.FAILED
    await kit["one_pass"](cluster, settings)
    assert not any(kind == "Job" for kind, _ in cluster.objects)


async def test_a_finished_job_goes_after_its_ttl(kit: Kit, settings: Settings) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"](runPolicy={"ttlSecondsAfterFinished": 3600}))
    await kit["until"](cluster, settings)
    step = await kit["one_pass"](cluster, settings)
    assert step.delete == ()
    assert step.check_in is not None
    cluster.now += timedelta(seconds=3601)
    job = cluster.asked
    step = plan(job, await cluster.observe(job), cluster.now, settings)
    assert [(ref.kind, ref.name, ref.uid) for ref in step.delete] == [("DistillationJob", "small", "uid-1")]


async def test_a_finished_job_is_left_alone(kit: Kit, settings: Settings) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"]())
    before = await kit["until"](cluster, settings)
    cluster.objects.clear()
    cluster.now += timedelta(days=3)
    step = await kit["one_pass"](cluster, settings)
    assert (step.apply, step.leases, step.delete, step.check_in) == ((), (), (), None)
    assert step.status == before


async def test_an_unsound_spec_starts_nothing_and_heals_by_an_edit(kit: Kit, settings: Settings) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"](student={}, output={"uri": "file:///tmp/x"}))
    step = await kit["one_pass"](cluster, settings)
    assert (step.status.phase, step.status.reason) == (Phase.FAILED, "InvalidSpec")
    assert step.status.is_true(ConditionType.STALLED)
    assert condition(cluster, ConditionType.ACCEPTED).status is ConditionStatus.FALSE
    assert "spec.student" in condition(cluster, ConditionType.ACCEPTED).message
    assert step.apply == ()
    assert step.status.start_time is None
    cluster.edit(**kit["a_spec"]())
    assert (await kit["until"](cluster, settings)).phase is Phase.SUCCEEDED


async def test_file_uris_are_for_the_local_runner(kit: Kit) -> None:
    for local, phase in ((False, Phase.FAILED), (True, Phase.PREPARING)):
        cluster = kit["MemoryCluster"](kit["a_job"](output={"uri": "file:///out"}))
        step = await kit["one_pass"](cluster, Settings(local_files=local))
        assert step.status.phase is phase


async def test_the_ledger_of_answers_that_prepare_found_too_few_is_the_jobs(kit: Kit, settings: Settings) -> None:
    ledger = Ledger(accepted=30, rejected=10)
    script = failing(kit, Stage.PREPARE, 65, FailureClass.BAD_DATA, ledger=ledger)
    status = await kit["until"](kit["MemoryCluster"](kit["a_job"](), script=script), settings)
    assert status.ledger == ledger
    assert status.stage("Prepare").ledger is None


async def test_answers_that_are_there_need_no_teacher(kit: Kit, settings: Settings) -> None:
    job = kit["a_job"]()

    def script(run: Run) -> Success:
        result = kit["success"](run)
        if run.stage is Stage.PREPARE:
            found = GenerateResult(
                input_digest=generate_digest(run.spec, "big", result.output_digest, result.models, run.job.uid),
                output_digest="sha256:answers",
                folder="answers/big-x",
                teacher="big",
                ledger=Ledger(accepted=7),
            )
            return result.model_copy(update={"answers": [found]})
        return result

    cluster = kit["MemoryCluster"](job, script=script)
    status = await kit["until"](cluster, settings)
    assert not any("generate" in name for name in cluster.made)
    assert status.stage("Generate:big").state is StageState.REUSED
    assert status.ledger == Ledger(accepted=7)
    assert status.is_true(ConditionType.GENERATED)


async def test_a_lost_job_is_made_again_under_its_name(kit: Kit, settings: Settings) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"](), script=lambda run: None)
    await kit["one_pass"](cluster, settings)
    del cluster.objects[("Job", "small-prepare-1")]
    cluster.script = kit["success"]
    status = await kit["until"](cluster, settings)
    assert status.phase is Phase.SUCCEEDED
    assert status.stage("Prepare").attempt == 1


async def test_a_name_that_is_taken_is_told_and_waited_for(kit: Kit, settings: Settings) -> None:
    step = plan(kit["a_job"](), Seen(foreign=frozenset({"Job/small-prepare-1"})), kit["START"], settings)
    assert step.apply == ()
    assert step.status.reason == "NameTaken"
    assert "Job/small-prepare-1" in step.status.condition(ConditionType.RECONCILING).message
    assert step.check_in is not None
    assert step.status.stage("Prepare").attempt == 0


async def test_only_the_training_changes_so_only_the_training_is_done_again(kit: Kit, settings: Settings) -> None:
    """The digests, over a whole life: another learning rate keeps Generate's folder and moves Train's."""
    folders = []
    for rate in (1e-5, 2e-5):
        runs: list[Run] = []

        def script(run: Run, runs: list[Run] = runs) -> Success:
            runs.append(run)
            return kit["success"](run).model_copy(update={"output_digest": f"sha256:{run.stage}"})

        job = kit["a_job"](training={"hyperparameters": {"learningRate": rate}})
        await kit["until"](kit["MemoryCluster"](job, script=script), settings)
        folders.append({run.stage: run.folder for run in runs})
    assert folders[0][Stage.GENERATE] == folders[1][Stage.GENERATE]
    assert folders[0][Stage.TRAIN] != folders[1][Stage.TRAIN]
