"""Copies that a watch left behind, corrected by what was read."""

from __future__ import annotations

import pytest

from kubedistill_operator.cluster.corrections import Corrections
from kubedistill_operator.cluster.kinds import Raw


def an_object(uid: str, version: int, label: str = "mine") -> Raw:
    return {"metadata": {"uid": uid, "resourceVersion": str(version), "labels": {"whose": label}}}


def is_mine(raw: Raw) -> bool:
    return bool(raw["metadata"]["labels"]["whose"] == "mine")


CASES = {
    "nothing was noted": ([("a", 5)], {}, {"a": 5}),
    "the copy is older": ([("a", 5)], {"a": 7}, {"a": 7}),
    "the copy is newer": ([("a", 9)], {"a": 7}, {"a": 9}),
    "it never came": ([], {"a": 7}, {"a": 7}),
    "it is gone": ([("a", 5), ("b", 6)], {"a": None}, {"b": 6}),
}


@pytest.mark.parametrize(("copies", "noted", "expected"), CASES.values(), ids=CASES.keys())
def test_the_newest_that_is_known_counts(
    copies: list[tuple[str, int]], noted: dict[str, int | None], expected: dict[str, int]
) -> None:
    corrections = Corrections()
    for uid, version in noted.items():
        corrections.note("Job", uid, None if version is None else an_object(uid, version))
    found = corrections.applied("Job", [an_object(uid, version) for uid, version in copies], is_mine)
    assert {raw["metadata"]["uid"]: int(raw["metadata"]["resourceVersion"]) for raw in found} == expected
    assert corrections.applied("Pod", [], is_mine) == []


def test_what_never_came_and_is_another_s_is_left_out() -> None:
    corrections = Corrections()
    corrections.note("Job", "a", an_object("a", 7, "theirs"))
    assert corrections.applied("Job", [], is_mine) == []


def test_a_correction_stands_until_the_copies_have_caught_up() -> None:
    corrections = Corrections()
    corrections.note("Job", "a", an_object("a", 7))
    corrections.note("Job", "b", None)
    corrections.settle("Job", {"a": 5, "b": 6})
    assert [raw["metadata"]["uid"] for raw in corrections.applied("Job", [an_object("b", 6)], is_mine)] == ["a"]
    corrections.settle("Job", {"a": 7})
    assert corrections.applied("Job", [], is_mine) == []


def test_the_end_that_a_watch_tells_of_ends_the_correction_too() -> None:
    corrections = Corrections()
    corrections.note("Job", "a", an_object("a", 7))
    corrections.forget("Job", "a")
    assert corrections.applied("Job", [], is_mine) == []
