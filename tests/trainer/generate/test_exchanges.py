"""A chat with the teacher: whatever its shape, its answers are the teacher's own and all else stays as it was."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kubedistill_api.base import Task
from kubedistill_api.generation import Filters, Reasoning, ReasoningTarget
from kubedistill_trainer.core.guidance import Guidance
from kubedistill_trainer.core.rows import parse_row
from kubedistill_trainer.generation.exchanges import Exchange, Wanted
from kubedistill_trainer.store.rows import PromptRow
from kubedistill_trainer.teachers.protocol import Answered

Message = dict[str, Any]
words = st.text("abcdefgh ", min_size=1, max_size=12).filter(str.strip)


@st.composite
def tool_calls(draw: st.DrawFn) -> list[Message]:
    """The assistant calls tools, and each gives something back."""
    names = draw(st.lists(st.sampled_from(["clock", "stock"]), min_size=1, max_size=2))
    calls = [{"id": str(n), "type": "function", "function": {"name": name}} for n, name in enumerate(names)]
    results = [{"role": "tool", "content": draw(words), "tool_call_id": str(n)} for n in range(len(names))]
    return [{"role": "assistant", "content": draw(st.sampled_from(["", None])), "tool_calls": calls}, *results]


@st.composite
def chats(draw: st.DrawFn) -> list[Message]:
    """System prompts, several turns, tools called in any of them; the last answer recorded or not."""
    chat: list[Message] = []
    if draw(st.booleans()):
        chat.append({"role": draw(st.sampled_from(["system", "developer"])), "content": draw(words)})
    for _ in range(draw(st.integers(1, 4))):
        chat.append({"role": "user", "content": draw(words)})
        for _ in range(draw(st.integers(0, 2))):
            chat += draw(tool_calls())
        chat.append({"role": "assistant", "content": draw(words)})
    return chat if draw(st.booleans()) else chat[:-1]


def exchange_of(chat: list[Message], guidance: Guidance) -> Exchange:
    """The chat as Prepare stores it and Generate begins it."""
    row = parse_row({"messages": chat})
    messages = json.dumps([message.as_dict() for message in row.messages])
    stored = PromptRow(row.row_id, messages, row.label or "", row.row_id)
    return Exchange(stored, 0, Wanted(guidance.task, Filters(), (), 7, guidance))


def held(exchange: Exchange, form: str) -> list[list[Message]]:
    """Lead a chat to its end; what was asked, turn by turn."""
    asked = []
    while not exchange.finished:
        request = exchange.request()
        asked.append([dict(message) for message in request.messages])
        exchange.give(Answered(form.format(number=request.turn), complete=True, tokens=3))
    return asked


def spoken(message: Message) -> bool:
    return message["role"] == "assistant" and not message.get("tool_calls")


@given(chats())
def test_all_but_the_answers_stays_where_it_was_tools_included(chat: list[Message]) -> None:
    exchange = exchange_of(chat, Guidance())
    asked = held(exchange, "answer {number}")
    assert exchange.rejection is None
    whole = chat if spoken(chat[-1]) else [*chat, {"role": "assistant", "content": "wanted"}]
    assert len(exchange.history) == len(whole)
    answers = iter(f"answer {number}" for number in range(len(asked)))
    for before, after in zip(whole, exchange.history, strict=True):
        assert after == ({**before, "content": next(answers)} if spoken(before) else {**before, **content(before)})
    assert next(answers, None) is None


def content(message: Message) -> Message:
    """Absent content is empty content."""
    return {"content": message["content"] or ""}


@given(chats())
def test_every_turn_is_asked_with_the_teachers_own_answers_before_it(chat: list[Message]) -> None:
    exchange = exchange_of(chat, Guidance())
    asked = held(exchange, "answer {number}")
    for turn, messages in enumerate(asked):
        assert [message["content"] for message in messages if spoken(message)] == [f"answer {n}" for n in range(turn)]
        assert not spoken(messages[-1])
        assert messages == exchange.history[: len(messages)]
    assert [len(messages) for messages in asked] == exchange.prompts


@given(chats(), st.sampled_from(ReasoningTarget))
def test_a_reasoning_teacher_sees_its_instruction_and_the_student_never_does(
    chat: list[Message], target: ReasoningTarget
) -> None:
    guidance = Guidance(Task.CONVERSATION, Reasoning.CHAIN_OF_THOUGHT, target)
    exchange = exchange_of(chat, guidance)
    asked = held(exchange, "Thought.\nAnswer: {number}")
    assert exchange.rejection is None
    learnt = "{}" if target is ReasoningTarget.ANSWER_ONLY else "Thought.\nAnswer: {}"
    for turn, messages in enumerate(asked):
        assert sum(guidance.instruction in str(message["content"]) for message in messages) == 1
        said = [message["content"] for message in messages if spoken(message)]
        assert said == [learnt.format(number) for number in range(turn)]
    assert guidance.instruction not in exchange.messages()
    assert exchange.written == ("" if learnt != "{}" else f"Thought.\nAnswer: {len(asked) - 1}")
