"""P1 in memory: the operator dies before and after every write, and the end is the same, with one Job an attempt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest

from kubedistill_api.base import Stage
from kubedistill_api.results import FailedResult, Success
from kubedistill_api.run import Run
from kubedistill_api.status import FailureClass, Phase
from kubedistill_operator.core.seen import JobState
from kubedistill_operator.core.settings import Settings

Kit = Mapping[str, Any]
PASSES = 80


def steady(kit: Kit) -> Callable[[Run], Success | FailedResult]:
    """Every stage succeeds."""
    return kit["success"]


def one_bad_training(kit: Kit) -> Callable[[Run], Success | FailedResult]:
    """The first training ends with exit code 75."""

    def script(run: Run) -> Success | FailedResult:
        if run.stage is Stage.TRAIN and run.attempt == 1:
            return FailedResult(
                stage=run.stage, exit_code=75, class_=FailureClass.INFRASTRUCTURE, reason="Away", message="It is away."
            )
        return kit["success"](run)

    return script


async def live(
    kit: Kit, scenario: Callable[[Kit], Any], crash_at: int | None, *, rests: bool = False, loses: bool = False
) -> tuple[Any, int]:
    """A job's whole life with one crash; the cluster at its end, and how many moments there were to crash at."""
    moments = 0

    def write(name: str) -> None:
        nonlocal moments
        moments += 1
        if moments == crash_at:
            raise kit["Crash"](name)

    cluster = kit["MemoryCluster"](kit["a_job"](), script=scenario(kit))
    settings = Settings()
    for number in range(PASSES):
        if rests and number == 4:
            cluster.edit(suspend=True)
        if rests and number == 8:
            cluster.edit(suspend=False)
        if loses and cluster.objects.pop(("Job", "small-generate-big-1"), None):
            cluster.collect_garbage()
            loses = False
        try:
            await kit["one_pass"](cluster, settings, write)
        except kit["Crash"]:
            continue
        seen = await cluster.observe(cluster.asked)
        living = [j for j in seen.jobs if j.state in (JobState.ACTIVE, JobState.SUSPENDED)] + list(seen.teachers)
        if cluster.asked.status.finished and not living:
            return cluster, moments
        cluster.now += timedelta(seconds=20)
    raise AssertionError(f"stuck: {cluster.asked.status.model_dump_json(indent=1)}")


@pytest.mark.parametrize("rests", [False, True], ids=["undisturbed", "suspended-once"])
@pytest.mark.parametrize("scenario", [steady, one_bad_training], ids=["golden", "retried"])
async def test_a_crash_around_any_write_changes_nothing_in_the_end(
    kit: Kit, scenario: Callable[[Kit], Any], rests: bool
) -> None:
    undisturbed, moments = await live(kit, scenario, None, rests=rests)
    assert moments > 40
    for crash_at in range(1, moments + 1):
        cluster, _ = await live(kit, scenario, crash_at, rests=rests)
        status = cluster.asked.status
        assert status.phase is Phase.SUCCEEDED
        assert status.result == undisturbed.asked.status.result
        twice = [name for name, times in Counter(cluster.made).items() if times > 1]
        assert not twice, f"crash at write {crash_at}: {twice}"


async def test_a_crash_around_any_write_after_a_lost_job_starts_no_second_attempt(kit: Kit) -> None:
    """The Job is gone as soon as it was made; what looks after it, and the Job that is made anew, are made once."""
    _, moments = await live(kit, steady, None, loses=True)
    for crash_at in range(1, moments + 1):
        cluster, _ = await live(kit, steady, crash_at, loses=True)
        assert cluster.asked.status.phase is Phase.SUCCEEDED
        made = Counter(name for name in cluster.made if "generate" in name)
        assert made["small-generate-big-1"] <= 2
        assert set(made) <= {"small-generate-big-1", "small-generate-big-1-look"}
        assert made["small-generate-big-1-look"] <= 1


async def test_a_job_of_one_teacher_costs_few_writes(kit: Kit) -> None:
    _, moments = await live(kit, steady, None)
    assert moments / 2 <= 25
