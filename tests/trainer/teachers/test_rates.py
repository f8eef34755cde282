"""Limits of a provider: never exceeded, hardly wasted, corrected by what was used, and closed when it says so."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubedistill_api.teachers import Teacher
from kubedistill_trainer.teachers.rates import SLACK, Gate, Limits

MINUTE = 60.0


def sent(limits: Limits, needs: list[int], used: list[int] | None = None) -> list[tuple[float, int]]:
    """When each request goes if all wait from the start, by a clock that only the limits move; and what it cost."""
    now, found = 0.0, []
    for need, cost in zip(needs, used or needs, strict=True):
        while (wait := limits.seconds_until(need, now)) > 0:
            now += wait
        limits.settle(limits.take(need, now), cost)
        found.append((now, cost))
    return found


def most_in_a_minute(found: list[tuple[float, int]]) -> int:
    """The most units in any minute that begins with a request."""
    return max(sum(cost for at, cost in found if begin <= at < begin + MINUTE) for begin, _ in found)


@given(limit=st.integers(1, 500), asked=st.integers(1, 400))
def test_requests_never_exceed_the_limit_and_use_nearly_all_of_it(limit: int, asked: int) -> None:
    found = sent(Limits(limit, None), [10] * asked)
    assert most_in_a_minute([(at, 1) for at, _ in found]) <= limit
    longest = (asked / limit + 1) * MINUTE * (1 + SLACK)
    assert found[-1][0] <= longest, "a limit that is not reached makes nobody wait"


@given(limit=st.integers(100, 5000), needs=st.lists(st.integers(1, 100), min_size=1, max_size=100), data=st.data())
def test_tokens_never_exceed_the_limit_whatever_the_answers_turn_out_to_be(
    limit: int, needs: list[int], data: st.DataObject
) -> None:
    used = [data.draw(st.integers(0, need)) for need in needs]
    assert most_in_a_minute(sent(Limits(None, limit), needs, used)) <= limit


@given(needs=st.lists(st.integers(1, 100), min_size=2, max_size=60))
def test_tokens_that_were_not_used_are_there_for_others(needs: list[int]) -> None:
    expected = sent(Limits(None, 100), needs)
    corrected = sent(Limits(None, 100), needs, [0] * len(needs))
    assert corrected[-1][0] == 0.0 <= expected[-1][0]


def test_a_request_that_was_estimated_too_low_makes_the_next_ones_wait() -> None:
    limits = Limits(None, 1200)
    limits.settle(limits.take(1, 0.0), 1200)
    assert limits.seconds_until(1, 0.0) == pytest.approx(MINUTE * (1 + SLACK))


def test_a_request_larger_than_the_limit_goes_alone() -> None:
    first, second = sent(Limits(None, 100), [5000, 1])
    assert (first[0], second[0]) == (0.0, pytest.approx(MINUTE * (1 + SLACK)))


@pytest.mark.parametrize("limits", [Limits(None, None), Limits(600, 10_000)], ids=["no limits", "limits"])
def test_while_the_provider_is_closed_nothing_goes(limits: Limits) -> None:
    limits.close(7.0, now=10.0)
    limits.close(2.0, now=11.0)
    assert limits.seconds_until(1, 12.0) == pytest.approx(5.0), "the longest pause counts"
    assert limits.seconds_until(1, 17.0) == 0


async def test_the_first_who_comes_goes_first_and_leaves_the_others_what_it_did_not_use() -> None:
    gate, order = Gate(Limits(None, 100)), []

    async def go(name: str, tokens: int) -> None:
        await gate.enter(tokens)
        order.append(name)

    taken = await gate.enter(100)
    others = [asyncio.create_task(go("large", 100)), asyncio.create_task(go("small", 1))]
    await asyncio.sleep(0.01)
    assert order == [], "the small one would fit no better: it came later"
    gate.settle(taken, 0)
    await asyncio.wait(others, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
    assert order == ["large"]
    for task in others:
        task.cancel()


EXTERNAL = {"url": "http://teacher.example/v1", "model": "m", "termsAccepted": True, "maxConcurrency": 100}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 8),
        ({"maxConcurrency": 3}, 3),
        ({"requestsPerMinute": 2}, 2),
        ({"tokensPerMinute": 10_500}, 5),
        ({"tokensPerMinute": 500}, 1),
        ({"tokensPerMinute": 10**6, "requestsPerMinute": 10**6}, 8),
    ],
    ids=str,
)
def test_no_more_pods_ask_than_every_limit_has_room_for(limits: dict[str, int], expected: int) -> None:
    teacher = Teacher.model_validate({"name": "t", "external": {**EXTERNAL, **limits}})
    assert teacher.workers(8, max_tokens=500) == expected


@given(
    wanted=st.integers(1, 64),
    concurrency=st.integers(1, 100),
    requests=st.integers(1, 1000),
    tokens=st.integers(400, 100_000),
)
def test_the_parts_of_all_pods_are_never_more_than_the_whole(
    wanted: int, concurrency: int, requests: int, tokens: int
) -> None:
    limits = {"maxConcurrency": concurrency, "requestsPerMinute": requests, "tokensPerMinute": tokens}
    workers = Teacher.model_validate({"name": "t", "external": {**EXTERNAL, **limits}}).workers(wanted, max_tokens=100)
    for whole in limits.values():
        assert workers * max(1, whole // workers) <= whole
    assert tokens // workers >= 400, "four answers fit into each part"


def test_served_and_batch_teachers_are_asked_by_as_many_as_are_wanted() -> None:
    model = {"uri": "file:///m"}
    for how in ({"serving": {}}, {"batch": {}}):
        assert Teacher.model_validate({"name": "t", "model": model, **how}).workers(8, 500) == 8
