"""What operator and image say to each other: run files, results, names."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubedistill_api.base import Stage
from kubedistill_api.exits import Exit
from kubedistill_api.identity import NAME_LIMIT, StageKey, bounded, digest, job_name, stage_folder
from kubedistill_api.results import (
    CLASS_OF_EXIT,
    TERMINATION_MESSAGE_LIMIT,
    FailedResult,
    PrepareResult,
    read_result,
    termination_message,
)
from kubedistill_api.status import Estimate, FailureClass


def a_result(**changes: object) -> PrepareResult:
    values: dict[str, object] = {"input_digest": "a", "output_digest": "b", "folder": "f", "estimate": Estimate()}
    return PrepareResult.model_validate(values | changes)


def test_a_result_reads_back_as_it_was() -> None:
    result = a_result(message="done")
    assert read_result(termination_message(result)) == result


def test_a_failure_reads_back_as_it_was() -> None:
    failure = FailedResult.model_validate(
        {"stage": Stage.PREPARE, "exitCode": 65, "class": FailureClass.BAD_DATA, "reason": "Empty", "message": "m"}
    )
    assert read_result(termination_message(failure)) == failure


@given(st.lists(st.text(max_size=800), max_size=20), st.text(max_size=9000))
def test_a_termination_message_always_fits(warnings: list[str], message: str) -> None:
    text = termination_message(a_result(warnings=warnings, message=message))
    assert len(text.encode()) <= TERMINATION_MESSAGE_LIMIT
    assert isinstance(read_result(text), PrepareResult)


def test_every_exit_but_ok_has_a_class() -> None:
    assert set(Exit) - {Exit.OK} == set(CLASS_OF_EXIT)


names = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=40)


@given(names, st.sampled_from(Stage), names, st.integers(1, 10_000))
def test_names_of_children_are_short_and_do_not_collide(job: str, stage: Stage, teacher: str, attempt: int) -> None:
    key = StageKey(stage, teacher[:20] if stage is Stage.GENERATE else "")
    name = job_name(job, key, attempt)
    assert len(name) <= NAME_LIMIT
    assert name != job_name(job, key, attempt + 1)
    assert StageKey.parse(str(key)) == key


def test_a_bounded_name_keeps_its_head_and_tells_long_names_apart() -> None:
    one, other = bounded("a" * 60 + "1"), bounded("a" * 60 + "2")
    assert one != other
    assert one.startswith("aaaa")


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


@pytest.mark.parametrize(
    ("key", "folder"),
    [
        pytest.param(StageKey(Stage.GENERATE, "big"), "answers/big-0123456789ab", id="answers are shared"),
        pytest.param(StageKey(Stage.TRAIN), "jobs/ns.j/train-0123456789ab", id="the rest is the job's own"),
    ],
)
def test_folders_are_named_by_what_shaped_their_content(key: StageKey, folder: str) -> None:
    assert stage_folder("ns", "j", key, "sha256:0123456789abcdef") == folder
