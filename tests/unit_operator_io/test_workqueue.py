"""The work queue, on a clock that the test turns."""

from __future__ import annotations

import asyncio

import pytest

from kubedistill_operator.handlers.workqueue import WorkQueue


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue[str]:
    return WorkQueue(clock)


async def taken(queue: WorkQueue[str]) -> str | None:
    """What a worker would get at once; None where it would wait."""
    try:
        async with asyncio.timeout(0.01):
            return await queue.take()
    except TimeoutError:
        return None


async def test_a_key_that_is_added_often_is_taken_once(queue: WorkQueue[str]) -> None:
    for _ in range(5):
        queue.add("a")
    assert await taken(queue) == "a"
    queue.done("a")
    assert await taken(queue) is None


async def test_keys_come_in_the_order_of_their_times(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("late", 2)
    queue.add("soon", 1)
    clock.now = 3
    assert [await taken(queue), await taken(queue)] == ["soon", "late"]


async def test_a_key_waits_until_it_is_due(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a", 10)
    assert await taken(queue) is None
    assert (len(queue), queue.overdue) == (1, 0)
    clock.now = 10
    assert queue.overdue == 1
    assert await taken(queue) == "a"


async def test_an_earlier_time_wins_over_a_later_one(queue: WorkQueue[str]) -> None:
    queue.add("a", 100)
    queue.add("a")
    queue.add("a", 50)
    assert await taken(queue) == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_a_key_that_is_worked_on_is_not_taken_twice_and_comes_back(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert await taken(queue) == "a"
    queue.add("a")
    assert await taken(queue) is None
    assert queue.busy == 1
    queue.done("a")
    assert await taken(queue) == "a"


async def test_a_key_added_with_a_delay_while_worked_on_keeps_its_delay(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a")
    await taken(queue)
    queue.add("a", 5)
    queue.done("a")
    assert await taken(queue) is None
    clock.now = 5
    assert await taken(queue) == "a"


async def test_a_waiting_worker_wakes_for_a_new_key(queue: WorkQueue[str]) -> None:
    worker = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    queue.add("a")
    assert await asyncio.wait_for(worker, 1) == "a"


async def test_two_waiting_workers_share_two_keys(queue: WorkQueue[str]) -> None:
    workers = [asyncio.create_task(queue.take()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add("a")
    queue.add("b")
    assert set(await asyncio.wait_for(asyncio.gather(*workers), 1)) == {"a", "b"}
