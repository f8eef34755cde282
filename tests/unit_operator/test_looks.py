"""P2: a teacher is not started again for answers that are there. A look goes before every attempt but the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from kubedistill_api.base import Stage
from kubedistill_api.job import DistillationJob
from kubedistill_api.results import FailedResult, Success
from kubedistill_api.run import Run
from kubedistill_api.status import ConditionType, FailureClass, Phase, StageState
from kubedistill_operator.core.pipeline import Step, pipeline
from kubedistill_operator.core.planner import plan
from kubedistill_operator.core.runs import look_for, run_for
from kubedistill_operator.core.seen import JobState, Seen, SeenJob
from kubedistill_operator.core.settings import Settings
from kubedistill_operator.manifests.stage_job import stage_job

Kit = Mapping[str, Any]
FIRST, LOOK = "small-generate-big-1", "small-generate-big-1-look"


def scripted(kit: Kit, look: Callable[[Run], Success | FailedResult | None]) -> Callable[[Run], Any]:
    """Generate goes on for ever; a look says what it is told to say; all else succeeds."""

    def script(run: Run) -> Success | FailedResult | None:
        if run.stage is not Stage.GENERATE:
            return kit["success"](run)
        return look(run) if run.look_only else None

    return script


def found(kit: Kit) -> Callable[[Run], Success]:
    """What a look says where all answers are there."""
    return lambda run: kit["success"](run, reused=True).model_copy(update={"missing_shards": 0})


async def asking(kit: Kit, settings: Settings, look: Callable[[Run], Any], **spec: Any) -> Any:
    """A cluster whose teacher is being asked."""
    cluster = kit["MemoryCluster"](kit["a_job"](**spec), script=scripted(kit, look))
    await kit["until"](cluster, settings, lambda status: status.phase is Phase.GENERATING)
    return cluster


def lose_the_job(cluster: Any) -> None:
    """Hours without an operator: the Job has ended, and its TTL removed it with its teacher."""
    del cluster.objects[("Job", FIRST)]
    cluster.collect_garbage()
    cluster.now += timedelta(hours=9)


def step_of(job: DistillationJob) -> Step:
    """The step that asks the one teacher."""
    return pipeline(job.spec)[1]


def teachers(cluster: Any) -> list[str]:
    return [name for kind, name in cluster.objects if kind == "Deployment"]


async def test_answers_that_were_finished_while_nobody_watched_start_no_teacher(kit: Kit, settings: Settings) -> None:
    cluster = await asking(kit, settings, found(kit))
    lose_the_job(cluster)
    for _ in range(20):
        await kit["one_pass"](cluster, settings)
        assert teachers(cluster) == []
    status = cluster.asked.status
    assert status.phase is Phase.SUCCEEDED
    assert cluster.made[1:4] == [FIRST, LOOK, "small-train-1"]
    stage = status.stage("Generate:big")
    assert (stage.state, stage.attempt, stage.restarts) == (StageState.REUSED, 1, 0)
    assert status.is_true(ConditionType.GENERATED)
    assert status.usage.tokens_generated == 0


async def test_what_a_look_misses_is_asked_of_the_teacher(kit: Kit, settings: Settings) -> None:
    cluster = await asking(kit, settings, kit["success"])
    lose_the_job(cluster)
    await kit["until"](cluster, settings, lambda status: status.phase is Phase.GENERATING)
    assert cluster.made[1:] == [FIRST, LOOK, FIRST]
    assert teachers(cluster) == ["small-teacher-big-1"]
    assert cluster.asked.status.stage("Generate:big").job == FIRST
    cluster.script = kit["success"]
    assert (await kit["until"](cluster, settings)).phase is Phase.SUCCEEDED


async def test_a_result_that_nobody_read_is_looked_for_without_the_teacher(kit: Kit, settings: Settings) -> None:
    cluster = await asking(kit, settings, found(kit))
    seen = await cluster.observe(cluster.asked)
    ended = replace(next(j for j in seen.jobs if j.name == FIRST), state=JobState.SUCCEEDED, pods=())
    step = plan(cluster.asked, Seen(jobs=(ended,), claim_bound=True), cluster.now, settings)
    assert step.status.last_failure.reason == "ResultMissing"
    await cluster.write_status(cluster.asked, step.status)
    lose_the_job(cluster)
    assert (await kit["until"](cluster, settings)).phase is Phase.SUCCEEDED
    assert "small-generate-big-2-look" in cluster.made
    assert "small-generate-big-2" not in cluster.made


async def test_the_first_attempt_is_not_preceded_by_a_look_for_prepare_has_just_looked(
    kit: Kit, settings: Settings
) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"]())
    await kit["until"](cluster, settings)
    assert not any("look" in name for name in cluster.made)


@pytest.mark.parametrize(
    "teacher",
    [
        {"external": {"url": "https://x.example/v1", "model": "m", "termsAccepted": True}},
        {"model": {"uri": "hf://acme/big"}, "batch": {}},
    ],
    ids=["external", "batch"],
)
async def test_an_attempt_that_starts_no_teacher_looks_for_itself(
    kit: Kit, settings: Settings, teacher: dict[str, Any]
) -> None:
    cluster = await asking(kit, settings, found(kit), teachers=[{"name": "big", **teacher}])
    lose_the_job(cluster)
    await kit["one_pass"](cluster, settings)
    assert cluster.made[1:] == [FIRST, FIRST]


async def test_a_look_that_cannot_look_is_tried_again_and_starts_no_teacher(kit: Kit, settings: Settings) -> None:
    def away(run: Run) -> FailedResult:
        words = {"class_": FailureClass.INFRASTRUCTURE, "reason": "StoreUnavailable", "message": "It is away."}
        return FailedResult(stage=run.stage, exit_code=75, **words)

    cluster = await asking(kit, settings, away, runPolicy={"maxRestarts": 2})
    lose_the_job(cluster)
    status = await kit["until"](cluster, settings)
    assert (status.phase, status.reason) == (Phase.FAILED, "StoreUnavailable")
    assert cluster.made[2:] == [LOOK, "small-generate-big-2-look", "small-generate-big-3-look"]
    assert teachers(cluster) == []


async def test_suspending_ends_a_look(kit: Kit, settings: Settings) -> None:
    cluster = await asking(kit, settings, lambda run: None)
    lose_the_job(cluster)
    await kit["one_pass"](cluster, settings)
    await kit["one_pass"](cluster, settings)
    assert cluster.asked.status.phase is Phase.STARTING_TEACHER
    assert "looks whether" in cluster.asked.status.condition(ConditionType.RECONCILING).message
    cluster.edit(suspend=True)
    await kit["one_pass"](cluster, settings)
    await kit["one_pass"](cluster, settings)
    assert not any(kind == "Job" and "generate" in name for kind, name in cluster.objects)
    cluster.edit(suspend=False)
    cluster.script = kit["success"]
    assert (await kit["until"](cluster, settings)).phase is Phase.SUCCEEDED


async def test_a_job_made_anew_is_not_judged_by_the_silence_of_the_one_that_was_lost(
    kit: Kit, settings: Settings
) -> None:
    cluster = await asking(kit, settings, kit["success"])
    lose_the_job(cluster)
    await kit["until"](cluster, settings, lambda status: status.phase is Phase.GENERATING)
    fresh = SeenJob(FIRST, "u", step_of(cluster.asked).key, 1, JobState.ACTIVE, started_at=cluster.now)
    teacher = (await cluster.observe(cluster.asked)).teachers
    step = plan(cluster.asked, Seen(jobs=(fresh,), teachers=teacher), cluster.now, settings)
    assert step.status.last_failure is None


def test_a_look_is_one_small_pod_that_starts_at_once_and_queues_like_any_other(kit: Kit, settings: Settings) -> None:
    job = kit["a_job"](scheduling={"queueName": "gpus"}, generation={"parallelism": 8})
    step = step_of(job)
    made = stage_job(job, look_for(run_for(job, job.status, step.key, 2, settings)), settings)
    assert made["metadata"]["name"] == "small-generate-big-2-look"
    assert made["metadata"]["labels"]["app.kubernetes.io/component"] == "look"
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    spec = made["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (1, 1, 0)
    assert "activeDeadlineSeconds" not in spec, "it holds no GPU; what moves nothing is stopped by the plan"
