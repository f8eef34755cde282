"""A provider with limits, over real HTTP: it is never asked more than it bears, and a pause holds for everybody.

The minute of these tests is one second long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from teaching.server import TestTeacher

from kubedistill_trainer.errors import Transient
from kubedistill_trainer.teachers.http import HttpTeacher, tokens_used
from kubedistill_trainer.teachers.protocol import Answered, ListOfWork, Request, Sampling
from kubedistill_trainer.teachers.rates import Limits
from kubedistill_trainer.teachers.servers import Server

pytestmark = pytest.mark.slow  # they wait for a clock

MINUTE = 1.0
MAX_TOKENS = 100


def questions(count: int, text: str = "Q") -> ListOfWork:
    return ListOfWork([Request(f"{text}{n}", 0, 0, [{"role": "user", "content": f"{text}{n}"}]) for n in range(count)])


def a_client(url: str, requests: int | None = None, tokens: int | None = None) -> HttpTeacher:
    server = Server(url, "teacher", concurrency=8, tokens_per_minute=tokens, requests_per_minute=requests)
    return HttpTeacher(server, Sampling(max_tokens=MAX_TOKENS), limits=Limits(requests, tokens, minute_seconds=MINUTE))


def most_in_a_minute(times: list[float], cost: int = 1) -> int:
    return max(cost * sum(begin <= at < begin + MINUTE for at in times) for begin in times)


def answered(work: ListOfWork) -> int:
    return sum(isinstance(outcome, Answered) for outcome in work.outcomes.values())


def ask_all(*clients: tuple[HttpTeacher, ListOfWork]) -> None:
    """Every client at once, as the pods of a job."""
    threads = [threading.Thread(target=client.answer, args=(work, threading.Event())) for client, work in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_workers_together_stay_below_the_providers_requests() -> None:
    with TestTeacher() as provider:
        works = [questions(18, "a"), questions(18, "b")]
        ask_all(*((a_client(provider.url, requests=6), work) for work in works))
    assert [answered(work) for work in works] == [18, 18]
    assert most_in_a_minute(provider.times) <= 12
    assert provider.times[-1] - provider.times[0] < 3.5 * MINUTE, "the limit is used"


def test_the_servers_count_of_tokens_makes_room_for_more() -> None:
    def cheap(body: dict[str, Any], text: str) -> dict[str, int]:
        return {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}

    seconds = {}
    for name, counts in {"believed": TestTeacher.counts_tokens, "corrected": cheap}.items():
        with TestTeacher(counts_tokens=counts) as provider:
            client, work = a_client(provider.url, tokens=6 * (MAX_TOKENS + 20)), questions(12)
            ask_all((client, work))
        assert answered(work) == 12
        assert most_in_a_minute(provider.times) <= (6 if name == "believed" else 12)
        seconds[name] = provider.times[-1] - provider.times[0]
    assert seconds["believed"] >= MINUTE
    assert seconds["corrected"] < MINUTE


def test_what_one_request_is_told_to_wait_all_wait() -> None:
    def closed(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str]] | None:
        return (429, {"Retry-After": "1"}) if number == 4 else None

    with TestTeacher(fault=closed) as provider:
        client, work = a_client(provider.url, requests=600), questions(60)
        ask_all((client, work))
    assert answered(work) == 60
    gaps = [after - before for before, after in zip(provider.times, provider.times[1:], strict=False)]
    place = gaps.index(max(gaps))
    assert max(gaps) > 0.9
    assert place < 4 + 8, "only those that were under way by then still arrived"


def test_a_pause_longer_than_anybody_waits_ends_the_attempt() -> None:
    with (
        TestTeacher(fault=lambda number, body: (429, {"Retry-After": "3600"})) as provider,
        pytest.raises(Transient, match="has not answered for long: HTTP 429"),
    ):
        a_client(provider.url).answer(questions(3), threading.Event())
    assert len(provider.times) <= 3


def test_a_provider_that_enforces_its_limit_never_has_to() -> None:
    lock, lately, refused = threading.Lock(), [], []

    def enforce(provider: TestTeacher) -> Callable[[int, dict[str, Any]], tuple[int, dict[str, str]] | None]:
        def fault(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str]] | None:
            with lock:
                now = provider.times[number - 1]
                lately[:] = [at for at in lately if at > now - MINUTE]
                if len(lately) >= 20:
                    refused.append(number)
                    return 429, {"Retry-After": "0"}
                lately.append(now)
                return None

        return fault

    provider = TestTeacher()
    provider.fault = enforce(provider)
    with provider:
        client, work = a_client(provider.url, requests=20), questions(50)
        ask_all((client, work))
    assert answered(work) == 50
    assert refused == []


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"usage": {"total_tokens": 12}}, 12),
        ({"usage": {"prompt_tokens": 5, "completion_tokens": 6}}, 11),
        ({"usage": {"completion_tokens": 6}}, 99),
        ({"usage": None}, 99),
        ({}, 99),
    ],
    ids=str,
)
def test_what_a_request_cost_is_what_the_server_counted(reply: dict[str, Any], expected: int) -> None:
    assert tokens_used(reply, 99) == expected
