"""P2 and P3 while a teacher starts: its Job lives only as long as an operator renews it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from kubedistill_api.status import ConditionType, Phase, StageState
from kubedistill_operator.core.planner import plan
from kubedistill_operator.core.ports import ConflictError
from kubedistill_operator.core.settings import Settings

Kit = Mapping[str, Any]
STARTUP = 600
HOLD = STARTUP + 60
FIRST = ("Job", "small-generate-big-1")
QUOTA = 'deployments.apps "small-teacher-big-1" is forbidden: exceeded quota: none'


async def starting(kit: Kit, settings: Settings, startup: int = STARTUP, **more: Any) -> Any:
    """A cluster whose teacher does not answer yet."""
    serving = {"startupTimeoutSeconds": startup, "idleTimeoutSeconds": 100}
    teachers = [{"name": "big", "model": {"uri": "hf://acme/big"}, "serving": serving}]
    policy = {"activeDeadlineSeconds": 7200}
    job = kit["a_job"](teachers=teachers, runPolicy=policy, generation={"parallelism": 3})
    cluster = kit["MemoryCluster"](job, teacher_answers=False, **more)
    await kit["until"](cluster, settings, lambda status: status.phase is Phase.STARTING_TEACHER, seconds=1)
    return cluster


async def passes(kit: Kit, cluster: Any, settings: Settings, seconds: int, every: int = 5) -> list[Any]:
    """An operator that looks every few seconds; its plans."""
    found = []
    for _ in range(0, seconds, every):
        cluster.now += timedelta(seconds=every)
        found.append(await kit["one_pass"](cluster, settings))
    return found


def age(cluster: Any, key: tuple[str, str] = FIRST) -> float:
    """Seconds since a child was made."""
    seconds: float = (cluster.now - cluster.born[cluster.objects[key]["metadata"]["uid"]]).total_seconds()
    return seconds


def deadline(cluster: Any) -> int:
    seconds: int = cluster.objects[FIRST]["spec"]["activeDeadlineSeconds"]
    return seconds


async def test_a_teacher_that_starts_without_an_operator_is_freed_after_its_startup_timeout(
    kit: Kit, settings: Settings
) -> None:
    cluster = await starting(kit, settings)
    await kit["one_pass"](cluster, settings)
    assert ("Deployment", "small-teacher-big-1") in cluster.objects
    cluster.now += timedelta(seconds=HOLD)
    (held,) = (job for job in (await cluster.observe(cluster.asked)).jobs if job.key.teacher)
    assert (held.state, held.reason) == ("Failed", "DeadlineExceeded"), "its TTL removes it, and its teacher with it"


async def test_an_operator_that_comes_back_to_that_starts_the_teacher_again_and_counts_no_failure(
    kit: Kit, settings: Settings
) -> None:
    cluster = await starting(kit, settings)
    await kit["one_pass"](cluster, settings)
    cluster.now += timedelta(minutes=90)
    await kit["one_pass"](cluster, settings)
    status = cluster.asked.status
    assert status.last_failure.reason == "OperatorAway"
    stage = status.stage("Generate:big")
    assert (stage.restarts, stage.preemptions, stage.state) == (0, 1, StageState.WAITING)
    cluster.teacher_answers = True
    await kit["until"](cluster, settings, lambda s: s.phase is Phase.GENERATING)
    assert "small-generate-big-2" in cluster.made


async def test_a_teacher_that_starts_in_good_time_costs_no_write_more(kit: Kit, settings: Settings) -> None:
    cluster = await starting(kit, settings)
    plans = await passes(kit, cluster, settings, seconds=STARTUP // 2)
    assert [step for step in plans if step.leases] == []


async def test_a_slow_teacher_is_renewed_seldom_and_always_in_time(kit: Kit, settings: Settings) -> None:
    cluster = await starting(kit, settings)
    leases = 0
    for _ in range(110):
        (step,) = await passes(kit, cluster, settings, seconds=5)
        leases += len(step.leases)
        assert HOLD / 2 <= deadline(cluster) - age(cluster) <= HOLD
    assert leases == 1


@pytest.mark.parametrize("startup", [60, STARTUP])
async def test_a_quota_may_be_full_for_hours(kit: Kit, settings: Settings, startup: int) -> None:
    cluster = await starting(kit, settings, startup, refuses=lambda m: QUOTA if m["kind"] == "Deployment" else "")
    hold = startup + 60
    end, leases = cluster.now + timedelta(seconds=5400), 0
    while cluster.now < end:
        step = await kit["one_pass"](cluster, settings)
        leases += len(step.leases)
        # The operator looks again when it said it would, and at once after a refusal.
        cluster.now += timedelta(0) if step.apply else step.check_in
    assert cluster.asked.status.reason == "QuotaExceeded"
    assert cluster.made[-1] == "small-generate-big-1"
    assert cluster.asked.status.last_failure is None
    assert leases <= 5400 / hold * 2, "renewed seldom"
    cluster.refuses = lambda m: ""
    cluster.teacher_answers = True
    await kit["until"](cluster, settings, lambda s: s.phase is Phase.GENERATING)


async def test_a_generation_has_its_whole_time_from_when_the_teacher_answered(kit: Kit, settings: Settings) -> None:
    cluster = await starting(kit, settings, script=lambda run: None if run.stage == "Generate" else kit["success"](run))
    await passes(kit, cluster, settings, seconds=300)
    cluster.teacher_answers = True
    waited = age(cluster)
    await kit["one_pass"](cluster, settings)
    spec = cluster.objects[FIRST]["spec"]
    assert (spec["parallelism"], spec["activeDeadlineSeconds"]) == (3, waited + 7200)
    await passes(kit, cluster, settings, seconds=90)
    status = cluster.asked.status
    assert status.last_failure is None, "the minutes before do not count as idle"
    assert status.stage("Generate:big").state is StageState.RUNNING
    assert status.is_true(ConditionType.TEACHER_READY)


@pytest.mark.parametrize("write", ["before lease Job", "after lease Job"])
async def test_a_crash_around_the_start_changes_nothing(kit: Kit, settings: Settings, write: str) -> None:
    cluster = await starting(kit, settings)
    await kit["one_pass"](cluster, settings)
    cluster.teacher_answers = True

    def crash(name: str) -> None:
        if name == write:
            raise kit["Crash"](name)

    with pytest.raises(kit["Crash"]):
        await kit["one_pass"](cluster, settings, crash)
    assert (await kit["until"](cluster, settings)).phase is Phase.SUCCEEDED
    assert cluster.made.count("small-generate-big-1") == 1


async def test_a_pass_that_still_sees_the_job_held_does_not_take_its_time_once_it_was_let_run(
    kit: Kit, settings: Settings
) -> None:
    cluster = await starting(kit, settings, script=lambda run: None if run.stage == "Generate" else kit["success"](run))
    await passes(kit, cluster, settings, seconds=STARTUP // 2 + 20, every=20)
    stale = await cluster.observe(cluster.asked)
    cluster.teacher_answers = True
    await kit["one_pass"](cluster, settings)
    given = deadline(cluster)
    late = plan(cluster.asked, stale, cluster.now + timedelta(seconds=20), settings)
    (lease,) = late.leases
    with pytest.raises(ConflictError):
        await cluster.lease(cluster.asked, lease)
    assert deadline(cluster) == given


SUSPENDED = {
    "after-it-was-let-run": {"suspend": True},
    "when-it-was-made": {"suspend": True, "parallelism": 3},
}


@pytest.mark.parametrize("case", SUSPENDED)
async def test_a_suspended_generation_holds_its_teacher_no_longer_than_an_idle_one(
    kit: Kit, settings: Settings, case: str
) -> None:
    """By a queue, by a person, or by an older operator, which let a Job run by ending its suspension."""
    cluster = await starting(kit, settings, script=lambda run: None if run.stage == "Generate" else kit["success"](run))
    await kit["one_pass"](cluster, settings)
    if case == "after-it-was-let-run":
        cluster.teacher_answers = True
        await passes(kit, cluster, settings, seconds=20)
        assert cluster.objects[FIRST]["spec"]["parallelism"] == 3
    cluster.objects[FIRST]["spec"] |= SUSPENDED[case]
    await passes(kit, cluster, settings, seconds=70)
    assert ("Deployment", "small-teacher-big-1") in cluster.objects, "a queue may admit it soon"
    await passes(kit, cluster, settings, seconds=50)
    failure = cluster.asked.status.last_failure
    assert failure is not None
    assert failure.reason == "NoProgress"
    assert "suspended" in failure.message
    assert ("Deployment", "small-teacher-big-1") not in cluster.objects
