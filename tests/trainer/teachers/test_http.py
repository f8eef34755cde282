"""A provider with limits, over real HTTP: it is not asked more than it bears, and a pause holds for everybody.

The minute of these tests is one second long. A busy machine lets requests arrive later than they were sent, and
bunched: so what is asserted is how long all of them take at least, and that a wrong pace would be another by far.
"""

from __future__ import annotations

import threading
import time
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


def answered(work: ListOfWork) -> int:
    return sum(isinstance(outcome, Answered) for outcome in work.outcomes.values())


def ask_all(*clients: tuple[HttpTeacher, ListOfWork]) -> float:
    """Every client at once, as the pods of a job; the seconds until all was answered."""
    begun = time.monotonic()
    threads = [threading.Thread(target=client.answer, args=(work, threading.Event())) for client, work in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - begun


def test_two_workers_together_stay_below_the_providers_requests() -> None:
    with TestTeacher() as provider:
        works = [questions(18, "a"), questions(18, "b")]
        seconds = ask_all(*((a_client(provider.url, requests=6), work) for work in works))
    assert [answered(work) for work in works] == [18, 18]
    assert seconds >= (36 / 12 - 1) * MINUTE
    assert seconds < 20 * MINUTE


def test_the_servers_count_of_tokens_makes_room_for_more() -> None:
    def cheap(body: dict[str, Any], text: str) -> dict[str, int]:
        return {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}

    seconds = {}
    for name, counts in {"believed": TestTeacher.counts_tokens, "corrected": cheap}.items():
        with TestTeacher(counts_tokens=counts) as provider:
            client, work = a_client(provider.url, tokens=4 * (MAX_TOKENS + 20)), questions(12)
            seconds[name] = ask_all((client, work))
        assert answered(work) == 12
    assert seconds["believed"] >= (12 / 4 - 1) * MINUTE
    assert seconds["corrected"] < seconds["believed"] / 1.5


def test_what_one_request_is_told_to_wait_all_wait() -> None:
    def closed(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str]] | None:
        return (429, {"Retry-After": "2"}) if number == 4 else None

    with TestTeacher(fault=closed) as provider:
        client, work = a_client(provider.url), questions(100)
        seconds = ask_all((client, work))
    assert answered(work) == 100
    assert seconds >= 2
    meanwhile = [at for at in provider.times if provider.times[3] < at < provider.times[3] + 2]
    assert len(meanwhile) < 30, "only those that were under way before the answer was read"


def test_a_pause_longer_than_anybody_waits_ends_the_attempt() -> None:
    with (
        TestTeacher(fault=lambda number, body: (429, {"Retry-After": "3600"})) as provider,
        pytest.raises(Transient, match="has not answered for long: HTTP 429"),
    ):
        a_client(provider.url).answer(questions(3), threading.Event())
    assert len(provider.times) <= 3


def test_a_retry_that_waits_for_its_turn_is_not_given_up() -> None:
    """Each try waits 2.2 s for its turn, and the server is borne for 2.1 s: pauses between tries are at most 1 s."""
    with TestTeacher(fault=lambda number, body: (503, {"Retry-After": "0"}) if number < 3 else None) as provider:
        server = Server(provider.url, "teacher", requests_per_minute=1, patience_seconds=2.1)
        client, work = HttpTeacher(server, Sampling(), limits=Limits(1, None, minute_seconds=2.2)), questions(1)
        client.answer(work, threading.Event())
    assert answered(work) == 1
    assert len(provider.seen) == 3


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
