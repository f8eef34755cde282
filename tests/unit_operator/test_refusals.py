"""A child that the API server refuses: told in its words, asked for again with growing pauses, not taken for made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from kubedistill_api.status import ConditionStatus, ConditionType, Phase, StageState, Status
from kubedistill_operator.core.planner import plan
from kubedistill_operator.core.seen import Seen, SeenTeacher
from kubedistill_operator.core.settings import Settings
from kubedistill_operator.telemetry.events import notes

Kit = Mapping[str, Any]
QUOTA = 'jobs.batch "small-prepare-1" is forbidden: exceeded quota: none, requested: count/jobs.batch=1, limited: 0'
LIMIT = (
    'persistentvolumeclaims "small-workspace" is forbidden: maximum storage usage per claim is 1Gi, but limit is 50Gi'
)


async def passes(kit: Kit, cluster: Any, settings: Settings, seconds: int, every: int = 1) -> None:
    """Passes for so long."""
    for _ in range(0, seconds, every):
        await kit["one_pass"](cluster, settings)
        cluster.now += timedelta(seconds=every)


@pytest.mark.parametrize(
    ("kind", "sentence", "reason"),
    [
        ("Job", QUOTA, "QuotaExceeded"),
        ("PersistentVolumeClaim", LIMIT, "Refused"),
        ("ConfigMap", 'ConfigMap "small-prepare-1" is invalid: data: Too long', "Refused"),
    ],
    ids=["quota", "limit-range", "invalid"],
)
async def test_a_refused_child_is_told_in_the_api_servers_words(
    kit: Kit, settings: Settings, kind: str, sentence: str, reason: str
) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"](), refuses=lambda m: sentence if m["kind"] == kind else "")
    await passes(kit, cluster, settings, 2)
    status: Status = cluster.asked.status
    assert (status.phase, status.reason) == (Phase.PREPARING, reason)
    for type_, held in (
        (ConditionType.PREPARED, ConditionStatus.FALSE),
        (ConditionType.RECONCILING, ConditionStatus.TRUE),
        (ConditionType.SUCCEEDED, ConditionStatus.UNKNOWN),
    ):
        told = status.condition(type_)
        assert told is not None
        assert (told.status, told.reason) == (held, reason)
        assert told.message.endswith(sentence)
        assert kind in told.message
    stage = status.stage("Prepare")
    assert stage is not None
    assert (stage.state, stage.attempt, stage.restarts) == (StageState.PENDING, 0, 0)


async def test_a_refused_child_is_asked_for_again_with_growing_pauses(kit: Kit) -> None:
    asked = []

    def refuses(manifest: dict[str, Any]) -> str:
        if manifest["kind"] == "Job":
            asked.append(cluster.now)
            return QUOTA
        return ""

    cluster = kit["MemoryCluster"](kit["a_job"](), refuses=refuses)
    await passes(kit, cluster, Settings(retry_base_seconds=10, retry_limit_seconds=60), 400)
    pauses = [(after - before).total_seconds() for before, after in pairwise(asked)]
    assert pauses == [10, 20, 40, 60, 60, 60, 60, 60]
    assert cluster.version == 1, "the sentence stays the same, so it is written once"


async def test_a_freed_quota_lets_the_job_go_on(kit: Kit, settings: Settings) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"](), refuses=lambda m: QUOTA if m["kind"] == "Job" else "")
    await passes(kit, cluster, settings, 30)
    assert cluster.made == []
    cluster.refuses = lambda m: ""
    status = await kit["until"](cluster, settings)
    assert status.phase is Phase.SUCCEEDED
    assert status.stage("Prepare").attempt == 1
    assert status.reason == "Succeeded"


async def test_a_refused_teacher_is_told_and_holds_no_gpu(kit: Kit, settings: Settings) -> None:
    sentence = 'deployments.apps "small-teacher-big-1" is forbidden: exceeded quota: none'
    cluster = kit["MemoryCluster"](kit["a_job"](), refuses=lambda m: sentence if m["kind"] == "Deployment" else "")
    status = await kit["until"](cluster, settings, lambda s: s.reason == "QuotaExceeded")
    assert status.phase is Phase.STARTING_TEACHER
    told = status.condition(ConditionType.TEACHER_READY)
    assert (told.status, told.reason) == (ConditionStatus.FALSE, "QuotaExceeded")
    assert sentence in told.message
    assert cluster.objects[("Job", "small-generate-big-1")]["spec"]["parallelism"] == 0
    cluster.refuses = lambda m: ""
    assert (await kit["until"](cluster, settings)).phase is Phase.SUCCEEDED


@pytest.mark.parametrize("kind", ["Job", "Deployment"])
async def test_a_refusal_ends_the_job_after_the_pending_deadline(kit: Kit, settings: Settings, kind: str) -> None:
    job = kit["a_job"](runPolicy={"pendingDeadlineSeconds": 60})
    cluster = kit["MemoryCluster"](job, refuses=lambda m: QUOTA if m["kind"] == kind else "")
    status = await kit["until"](cluster, settings, seconds=5)
    assert (status.phase, status.reason) == (Phase.FAILED, "QuotaExceeded")
    assert "pendingDeadlineSeconds" in status.last_failure.message
    assert QUOTA in status.last_failure.message
    await kit["one_pass"](cluster, settings)
    assert not any(found == "Job" and "generate" in name for found, name in cluster.objects)


async def test_people_are_told_once_by_an_event(kit: Kit, settings: Settings) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"](), refuses=lambda m: QUOTA if m["kind"] == "Job" else "")
    before = cluster.asked.status
    await passes(kit, cluster, settings, 2)
    refused = cluster.asked.status
    warnings = [note for note in notes(before, refused) if note.warning]
    assert [(note.reason, QUOTA in note.text) for note in warnings] == [("QuotaExceeded", True)]
    await passes(kit, cluster, settings, 60)
    assert list(notes(refused, cluster.asked.status)) == []


PODS = (
    'pods "small-prepare-1-x7k2p" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=8, limited: 0'
)


async def test_pods_that_are_refused_are_told_by_their_job(kit: Kit, settings: Settings) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"](), script=lambda run: None)
    await kit["one_pass"](cluster, settings)
    made = (await cluster.observe(cluster.asked)).jobs[0]
    none = Seen(jobs=(replace(made, pods=(), pods_refused=PODS),), claim_bound=True)
    step = plan(cluster.asked, none, cluster.now, settings)
    assert step.status.reason == "QuotaExceeded"
    told = step.status.condition(ConditionType.RECONCILING)
    assert told is not None
    assert told.message == f"The API server refuses the pods of Job/small-prepare-1 and is asked again: {PODS}"
    assert step.check_in is not None
    some = plan(cluster.asked, Seen(jobs=(replace(made, pods_refused=PODS),)), cluster.now, settings)
    assert some.status.reason == "", "what has pods goes on, though it may not have all"


async def test_refused_pods_end_the_job_after_the_pending_deadline(kit: Kit, settings: Settings) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"](runPolicy={"pendingDeadlineSeconds": 60}), script=lambda run: None)
    await kit["one_pass"](cluster, settings)
    made = replace((await cluster.observe(cluster.asked)).jobs[0], pods=(), pods_refused=PODS)
    for seconds, phase in ((60, Phase.PREPARING), (61, Phase.FAILED)):
        now = made.started_at + timedelta(seconds=seconds)
        assert plan(cluster.asked, Seen(jobs=(made,)), now, settings).status.phase is phase


async def test_refused_pods_of_a_teacher_are_told(kit: Kit, settings: Settings) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"](), teacher_answers=False)
    await kit["until"](cluster, settings, lambda s: s.phase is Phase.STARTING_TEACHER)
    seen = await cluster.observe(cluster.asked)
    refused = tuple(replace(teacher, pods_refused=PODS) for teacher in seen.teachers) or (
        SeenTeacher("t", "u", "big", 1, created_at=cluster.now, pods_refused=PODS),
    )
    step = plan(cluster.asked, replace(seen, teachers=refused), cluster.now, settings)
    told = step.status.condition(ConditionType.TEACHER_READY)
    assert told is not None
    assert (told.reason, step.status.reason) == ("QuotaExceeded", "QuotaExceeded")
    assert PODS in told.message
