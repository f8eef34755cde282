"""Servers that answer, but not with what scores need, and one that never answers: each is told with a sentence."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from teaching.server import TestTeacher

from kubedistill_trainer.errors import BadConfiguration, Transient
from kubedistill_trainer.teachers.http import HttpTeacher
from kubedistill_trainer.teachers.protocol import Answered, Failed, ListOfWork, Request, Sampling
from kubedistill_trainer.teachers.servers import Server

SCORED = Sampling(temperature=0, max_tokens=4, k=3)


class Altered(TestTeacher):
    """Changes one thing in every first choice that it gives back."""

    def __init__(self, tokenizer: Any, model: Any, name: str, change: Any) -> None:
        super().__init__(tokenizer, model)
        self.name, self.change = name, change

    def handle(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        status, headers, value = super().handle(path, body)
        choice = value["choices"][0]
        if self.name in choice:
            choice[self.name] = self.change(choice[self.name])
        return status, headers, value


def work() -> ListOfWork:
    return ListOfWork([Request("a", 0, 0, [{"role": "user", "content": "Hi"}])])


MISSING: dict[str, tuple[bool, str, Any, str, str]] = {
    "scores-of-too-few-tokens": (True, "prompt_logprobs", lambda rows: rows[1:], "TeacherHasNoScores", "use vLLM"),
    "scores-of-too-many": (True, "prompt_logprobs", lambda rows: [*rows, {}], "TeacherHasNoScores", "all of a prompt"),
    "no-scores-of-a-prompt": (True, "prompt_logprobs", lambda rows: None, "TeacherHasNoScores", "use vLLM"),
    "no-token-ids": (True, "token_ids", lambda ids: None, "TeacherHasNoTokenIds", "too old (0.11 or newer)"),
    "no-scores-of-an-answer": (False, "logprobs", lambda said: None, "TeacherHasNoScores", "generation.signal: Text"),
    "empty-scores-of-an-answer": (
        False,
        "logprobs",
        lambda said: {"content": []},
        "TeacherHasNoScores",
        "signal: Text",
    ),
}


@pytest.mark.parametrize(("token_ids", "name", "change", "reason", "words"), MISSING.values(), ids=MISSING)
def test_a_server_without_the_scores_that_were_asked_for_ends_the_stage(
    tiny_tokenizer: Any, tiny_model: Any, token_ids: bool, name: str, change: Any, reason: str, words: str
) -> None:
    """Every other answer would lack them too: none is counted as failed, and nothing is stored."""
    asked = work()
    with Altered(tiny_tokenizer, tiny_model, name, change) as teacher:
        client = HttpTeacher(Server(teacher.url, "teacher", token_ids=token_ids), SCORED, tiny_tokenizer, [0])
        with pytest.raises(BadConfiguration) as error:
            client.answer(asked, threading.Event())
    assert error.value.reason == reason
    assert words in error.value.message
    assert teacher.url in error.value.message
    assert asked.outcomes == {}


@pytest.mark.parametrize("later", [True, False], ids=["but the next time", "ever"])
@pytest.mark.slow
def test_a_server_that_accepts_and_does_not_answer_is_asked_again_and_then_told(later: bool) -> None:
    """A pause before the second try is at most 2 s, so there is always one."""
    released = threading.Event()

    def silent(number: int, body: dict[str, Any]) -> None:
        if number == 1 or not later:
            released.wait(60)

    asked = work()
    with TestTeacher(fault=silent) as teacher:
        server = Server(teacher.url, "teacher", request_seconds=0.3, patience_seconds=2.5)
        client = HttpTeacher(server, Sampling())
        try:
            if later:
                client.answer(asked, threading.Event())
            else:
                with pytest.raises(Transient, match="has not answered for long: ReadTimeout") as error:
                    client.answer(asked, threading.Event())
                assert error.value.reason == "TeacherUnavailable"
        finally:
            released.set()
    assert len(teacher.seen) >= 2
    assert later == any(isinstance(outcome, Answered) for outcome in asked.outcomes.values())


def asks(body: dict[str, Any], words: str) -> bool:
    return words in str(body.get("messages") or body.get("prompt"))


def several(*words: str) -> ListOfWork:
    return ListOfWork([Request(word, 0, 0, [{"role": "user", "content": word}]) for word in words])


@pytest.mark.slow
@pytest.mark.parametrize("token_ids", [True, False], ids=["vLLM", "any"])
def test_a_server_that_hangs_costs_no_row(tiny_tokenizer: Any, tiny_model: Any, token_ids: bool) -> None:
    """It answers the second request late, and nobody from then on: the first one's time is over long before patience
    with the server is."""
    released = threading.Event()

    def hangs(number: int, body: dict[str, Any]) -> None:
        (released.wait if number != 2 else time.sleep)(60 if number != 2 else 1.5)

    asked = several("a", "b")
    with TestTeacher(tiny_tokenizer, tiny_model, fault=hangs) as teacher:
        server = Server(teacher.url, "teacher", token_ids=token_ids, request_seconds=2, patience_seconds=2.2)
        client = HttpTeacher(server, Sampling(max_tokens=2), tiny_tokenizer, [0])
        try:
            with pytest.raises(Transient, match="has not answered for long: ReadTimeout") as error:
                client.answer(asked, threading.Event())
        finally:
            released.set()
    assert error.value.reason == "TeacherUnavailable"
    assert len(asked.outcomes) == 1
    assert all(isinstance(outcome, Answered) for outcome in asked.outcomes.values()), "none was given up"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "token_ids"),
    [(("poison", "a", "b"), False), (("poison", "poison too", "a"), False), (("poison",), True)],
    ids=["one", "several", "one of vLLM's"],
)
def test_a_request_that_no_server_answers_is_given_up_alone(
    tiny_tokenizer: Any, tiny_model: Any, words: tuple[str, ...], token_ids: bool
) -> None:
    released = threading.Event()

    def hangs(number: int, body: dict[str, Any]) -> None:
        poison = asks(body, "poison") or isinstance(body.get("prompt"), list)
        released.wait(60 if poison else 0.5)

    asked = several(*words)
    with TestTeacher(tiny_tokenizer, tiny_model, fault=hangs) as teacher:
        server = Server(teacher.url, "t", token_ids=token_ids, request_seconds=1, patience_seconds=1.2)
        client = HttpTeacher(server, Sampling(max_tokens=2), tiny_tokenizer, [0])
        try:
            client.answer(asked, threading.Event())
        finally:
            released.set()
    failed = [outcome for outcome in asked.outcomes.values() if isinstance(outcome, Failed)]
    assert len(failed) == sum("poison" in word for word in words)
    assert all("tries: ReadTimeout" in outcome.reason for outcome in failed)
