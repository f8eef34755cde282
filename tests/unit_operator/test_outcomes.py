"""What became of an attempt, by what its pods say: one row for each way to end."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from kubedistill_api.base import Stage
from kubedistill_api.exits import PEER_LOST
from kubedistill_api.identity import StageKey
from kubedistill_api.results import FailedResult, GenerateResult
from kubedistill_api.status import FailureClass, Ledger, Score
from kubedistill_operator.core.outcomes import Broken, Done, Going, Remedy, outcome
from kubedistill_operator.core.seen import JobState, SeenJob, SeenPod

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
JOB = SeenJob("small-train-2", "uid-7", StageKey(Stage.TRAIN), 2, JobState.FAILED, reason="BackoffLimitExceeded")


def pod(code: int | None, **more: object) -> SeenPod:
    """A pod that ended."""
    return replace(SeenPod(name="small-train-2-0-abcde", node="node-1", phase="Failed", exit_code=code), **more)


def words(code: int, class_: FailureClass, reason: str = "Reasoned", **more: object) -> FailedResult:
    """What a stage says at a bad end."""
    return FailedResult.model_validate(
        {"stage": "Train", "exit_code": code, "class_": class_, "reason": reason, "message": "Mend it.", **more}
    )


LOST = words(75, FailureClass.INFRASTRUCTURE, PEER_LOST)


@pytest.mark.parametrize(
    ("job", "class_", "reason", "remedy"),
    [
        pytest.param(
            replace(JOB, pods=(pod(64, result=words(64, FailureClass.BAD_CONFIGURATION)),)),
            FailureClass.BAD_CONFIGURATION, "Reasoned", Remedy.NONE, id="64-said",
        ),
        pytest.param(replace(JOB, pods=(pod(65),)), FailureClass.BAD_DATA, "StageFailed", Remedy.NONE, id="65-silent"),
        pytest.param(
            replace(JOB, reason="PodFailurePolicy", message="Container stage failed with exit code 66"),
            FailureClass.NOT_FOUND, "PodFailurePolicy", Remedy.NONE, id="66-pod-gone",
        ),
        pytest.param(
            replace(JOB, pods=(pod(70, result=words(70, FailureClass.DEVICE_OUT_OF_MEMORY)),)),
            FailureClass.DEVICE_OUT_OF_MEMORY, "Reasoned", Remedy.SMALLER_BATCH, id="70-said",
        ),
        pytest.param(
            replace(JOB, pods=(pod(75, result=words(75, FailureClass.INFRASTRUCTURE)),)),
            FailureClass.INFRASTRUCTURE, "Reasoned", Remedy.RETRY, id="75-said",
        ),
        pytest.param(replace(JOB, pods=(pod(1),)), FailureClass.APPLICATION, "StageFailed", Remedy.RETRY, id="bug"),
        pytest.param(replace(JOB, pods=(pod(139),)), FailureClass.APPLICATION, "StageFailed", Remedy.RETRY, id="segv"),
        pytest.param(
            replace(JOB, pods=(pod(137, terminated_reason="OOMKilled"),)),
            FailureClass.HOST_OUT_OF_MEMORY, "OutOfMemory", Remedy.RETRY, id="oom-killed",
        ),
        pytest.param(replace(JOB, pods=(pod(137),)), FailureClass.APPLICATION, "Killed", Remedy.RETRY, id="killed"),
        pytest.param(
            replace(JOB, pods=(pod(137, disrupted=True),)),
            FailureClass.PREEMPTED, "Preempted", Remedy.RESUME, id="evicted",
        ),
        pytest.param(
            replace(JOB, pods=(pod(143, result=words(143, FailureClass.PREEMPTED, "Stopped")),)),
            FailureClass.PREEMPTED, "Preempted", Remedy.RESUME, id="stopped-at-checkpoint",
        ),
        pytest.param(
            replace(JOB, pods=(pod(143), pod(65, result=words(65, FailureClass.BAD_DATA)), pod(137, disrupted=True))),
            FailureClass.BAD_DATA, "Reasoned", Remedy.NONE, id="the-cause-before-its-victims",
        ),
        pytest.param(
            replace(JOB, pods=(pod(75, result=LOST), pod(137), pod(75, result=LOST))),
            FailureClass.APPLICATION, "Killed", Remedy.RETRY, id="a-killed-node-before-those-that-lost-it",
        ),
        pytest.param(
            replace(JOB, pods=(pod(75, result=LOST), pod(137, disrupted=True))),
            FailureClass.PREEMPTED, "Preempted", Remedy.RESUME, id="an-evicted-node-before-one-that-lost-it",
        ),
        pytest.param(
            replace(JOB, pods=(pod(75, result=LOST),)),
            FailureClass.INFRASTRUCTURE, "PeerLost", Remedy.RETRY, id="nobody-else-to-blame",
        ),
        pytest.param(
            replace(JOB, completions=2, pods=(pod(75, result=LOST, index=1),)),
            FailureClass.PREEMPTED, "Preempted", Remedy.RESUME, id="a-pod-that-went-with-its-node",
        ),
        pytest.param(
            replace(JOB, reason="DeadlineExceeded", pods=(pod(143),)),
            FailureClass.DEADLINE, "StageDeadlineExceeded", Remedy.NONE, id="deadline",
        ),
        pytest.param(replace(JOB), FailureClass.INFRASTRUCTURE, "BackoffLimitExceeded", Remedy.RETRY, id="pods-gone"),
        pytest.param(
            replace(JOB, pods=(pod(1, result=words(1, FailureClass.APPLICATION, scores=[Score(metric="ROUGE")])),)),
            FailureClass.APPLICATION, "Reasoned", Remedy.NONE, id="gate",
        ),
    ],
)  # fmt: skip
def test_a_bad_end_has_a_class_a_reason_and_a_remedy(
    job: SeenJob, class_: FailureClass, reason: str, remedy: Remedy
) -> None:
    found = outcome(job)
    assert isinstance(found, Broken)
    assert (found.failure.class_, found.failure.reason, found.remedy) == (class_, reason, remedy)
    assert found.failure.stage == "Train"
    assert found.failure.attempt == 2
    assert found.failure.message.endswith(".") or job.message in found.failure.message


def test_a_failure_names_pod_node_code_and_last_lines() -> None:
    found = outcome(replace(JOB, pods=(pod(1, log_tail="a\nb\nValueError: no"),)))
    assert isinstance(found, Broken)
    failure = found.failure
    assert (failure.pod, failure.node, failure.exit_code) == ("small-train-2-0-abcde", "node-1", 1)
    assert failure.log_tail.endswith("ValueError: no")
    assert "ValueError: no" in failure.message


def test_out_of_memory_says_which_limit_to_raise() -> None:
    found = outcome(replace(JOB, pods=(pod(137, terminated_reason="OOMKilled"),)))
    assert isinstance(found, Broken)
    assert "resources.limits.memory" in found.failure.message


@pytest.mark.parametrize("state", [JobState.ACTIVE, JobState.SUSPENDED])
def test_a_living_attempt_goes_on(state: JobState) -> None:
    assert isinstance(outcome(replace(JOB, state=state, pods=(pod(1),))), Going)


def test_of_several_workers_the_one_that_saw_most_rows_speaks() -> None:
    def result(accepted: int, digest: str) -> GenerateResult:
        ledger = Ledger(accepted=accepted)
        return GenerateResult(input_digest="i", output_digest=digest, folder="f", teacher="big", ledger=ledger)

    said = [result(3, "d"), result(9, "d"), result(6, "d"), result(99, "")]
    pods = tuple(SeenPod(name="p", phase="Succeeded", exit_code=0, result=one) for one in said)
    found = outcome(replace(JOB, state=JobState.SUCCEEDED, pods=pods))
    assert isinstance(found, Done)
    assert isinstance(found.result, GenerateResult)
    assert found.result.ledger.accepted == 9


def test_a_success_that_nobody_read_is_asked_again() -> None:
    found = outcome(replace(JOB, state=JobState.SUCCEEDED, pods=()))
    assert isinstance(found, Broken)
    assert (found.failure.reason, found.remedy) == ("ResultMissing", Remedy.RETRY)


@pytest.mark.parametrize(("look", "missing", "whole"), [(False, 0, True), (False, 2, False), (True, 2, True)])
def test_a_worker_that_ended_before_the_others_does_not_speak_for_the_whole(
    look: bool, missing: int, whole: bool
) -> None:
    part = GenerateResult(
        input_digest="i", output_digest="o", folder="f", teacher="big", ledger=Ledger(), missing_shards=missing
    )
    key = StageKey(Stage.GENERATE, "big")
    pods = (pod(0, phase="Succeeded", result=part), pod(0, phase="Succeeded", index=1))
    found = outcome(replace(JOB, key=key, state=JobState.SUCCEEDED, look=look, pods=pods))
    assert isinstance(found, Done) is whole
    if not whole:
        assert isinstance(found, Broken)
        assert (found.failure.reason, found.remedy) == ("ResultMissing", Remedy.RETRY)
