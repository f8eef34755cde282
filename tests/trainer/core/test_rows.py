"""What a line of the user's data means, and what is said of one that means nothing."""

from __future__ import annotations

import json
import math
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubedistill_trainer.core.rows import (
    Message,
    Row,
    RowError,
    fraction_of,
    is_held_out,
    parse_row,
    unknown_columns,
)

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "clock"}}]}

GOOD = {
    "prompt": ({"prompt": "Hi"}, ["user"], None, 1),
    "prompt-and-label": ({"prompt": "Hi", "label": "greeting"}, ["user"], "greeting", 1),
    "prompt-and-completion": ({"prompt": "Hi", "completion": "Hello"}, ["user"], "Hello", 1),
    "a-label-that-is-a-number": ({"prompt": "2+2", "label": 4}, ["user"], "4", 1),
    "a-label-with-decimals": ({"prompt": "1/2", "label": 0.5}, ["user"], "0.5", 1),
    "its-own-system-message": ({"prompt": "Hi", "system": "Be kind"}, ["system", "user"], None, 1),
    "fields-nobody-knows": ({"id": 7, "prompt": "Hi", "source": "x"}, ["user"], None, 1),
    "chat": ({"messages": [USER]}, ["user"], None, 1),
    "chat-with-its-answer": ({"messages": [USER, ANSWER]}, ["user"], "Hello", 1),
    "chat-with-two-answers": ({"messages": [USER, ANSWER, USER, ANSWER]}, ["user", "assistant", "user"], "Hello", 2),
    "chat-that-calls-a-tool": (
        {"messages": [USER, CALL, {"role": "tool", "content": "12:00", "tool_call_id": "1"}], "tools": [{"x": 1}]},
        ["user", "assistant", "tool"],
        None,
        1,
    ),
    "chat-that-calls-a-tool-with-empty-words": (
        {"messages": [USER, {**CALL, "content": ""}, {"role": "tool", "content": "12:00", "tool_call_id": "1"}]},
        ["user", "assistant", "tool"],
        None,
        1,
    ),
    "text-in-parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}, ["user"], None, 1),
    "a-null-label": ({"prompt": "Hi", "label": None}, ["user"], None, 1),
}


@pytest.mark.parametrize(("raw", "roles", "label", "answers"), GOOD.values(), ids=GOOD)
def test_a_row_is_read_by_the_names_of_its_fields(raw, roles, label, answers):
    row = parse_row(raw)
    assert [message.role for message in row.messages] == roles
    assert row.label == label
    assert row.answers == answers
    assert Row.from_dict(row.as_dict()) == row


BAD = {
    "no-object": ("text", "a row is a JSON object, this is text"),
    "unknown-fields": (
        {"question": "?", "answer": "!"},
        "this one has question, answer .*write for example data.columns",
    ),
    "no-fields": ({}, "this one has no fields at all"),
    "both-shapes": ({"prompt": "Hi", "messages": [USER]}, "messages or prompt, this one has both"),
    "two-answers": ({"prompt": "Hi", "label": "a", "completion": "b"}, "label or completion, this one has both"),
    "empty-prompt": ({"prompt": " \n"}, "prompt is empty"),
    "prompt-of-a-number": ({"prompt": 5}, "prompt is a number, not text"),
    "a-label-that-is-a-list": ({"prompt": "Hi", "label": []}, "label is empty"),
    "a-label-that-is-a-boolean": ({"prompt": "Hi", "label": True}, "label is a boolean"),
    "a-label-without-end": ({"prompt": "1/0", "label": float("inf")}, "label is inf, which is no number"),
    "half-a-character": ({"prompt": "Hi \ud83d"}, r"prompt holds \\ud83d, half of a character"),
    "half-a-character-in-a-label": ({"prompt": "Hi", "label": "\udc00"}, r"label holds \\udc00"),
    "half-a-character-in-tools": ({"prompt": "Hi", "tools": [{"name": "\ud83d"}]}, "tools holds"),
    "tools-of-text": ({"prompt": "Hi", "tools": "weather"}, "tools is text, but no JSON"),
    "a-tool-that-is-text": ({"prompt": "Hi", "tools": ["weather"]}, "tool 1 is text, not an object"),
    "a-tool-with-a-date": ({"prompt": "Hi", "tools": [{"since": date(2026, 1, 1)}]}, "tools cannot be said in JSON"),
    "a-message-with-bytes": ({"messages": [{**USER, "blob": b"x"}]}, "message 1 cannot be said in JSON"),
    "messages-of-text": ({"messages": "Hi"}, "messages is text, not a list"),
    "no-messages": ({"messages": []}, "no user message"),
    "only-a-system-message": ({"messages": [{"role": "system", "content": "Be kind"}]}, "no user message"),
    "a-message-that-is-text": ({"messages": ["Hi"]}, "message 1 is text, not an object"),
    "an-unknown-role": ({"messages": [{"role": "human", "content": "Hi"}]}, "message 1 has role 'human'; known are"),
    "null-content": ({"messages": [{"role": "user", "content": None}]}, "the content of message 1 is null"),
    "an-image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text can be distilled"),
    "two-answers-in-a-row": (
        {"messages": [USER, ANSWER, ANSWER]},
        "message 3 is an answer, but no user or tool",
    ),
    "an-answer-first": ({"messages": [ANSWER, USER, ANSWER]}, "message 1 is an answer, but no user or tool"),
    "ends-with-a-call": ({"messages": [USER, CALL]}, "the last message is of the role assistant"),
}


@pytest.mark.parametrize(("raw", "message"), BAD.values(), ids=BAD)
def test_a_row_that_cannot_be_used_says_why(raw, message):
    with pytest.raises(RowError, match=message):
        parse_row(raw)


def test_columns_map_our_name_to_the_users():
    row = parse_row(
        {"question": "Hi", "answer": "Hello", "prompt": "not this"}, {"prompt": "question", "label": "answer"}
    )
    assert row == parse_row({"prompt": "Hi", "label": "Hello"})


def test_a_mapped_field_that_is_missing_is_named_with_the_keys_that_are_there():
    with pytest.raises(RowError, match=r"this one has query .*data.columns says that prompt is called question"):
        parse_row({"query": "Hi"}, {"prompt": "question"})


def test_names_of_any_length_and_letters_make_a_sentence_that_can_be_written():
    with pytest.raises(RowError) as raised:
        parse_row({"\ud83d": "x", **{f"{number}" * 1000: 1 for number in range(1000)}}, {})
    raised.value.args[0].encode()
    assert len(str(raised.value)) < 2000


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_json_has_not_break_a_row(number):
    """Servers refuse them, and so does what sends the request."""
    with pytest.raises(RowError, match="tools cannot be said in JSON"):
        parse_row({"prompt": "Hi", "tools": [{"minimum": number}]}, {})


def test_columns_with_the_sides_swapped_are_noticed():
    (sentence,) = unknown_columns({"question": "prompt"})
    assert "'question', which is no field of ours; write one of messages, prompt" in sentence
    assert unknown_columns({"prompt": "question"}) == []


OWN_SYSTEM = {
    "field": {"prompt": "Hi", "system": "Mine"},
    "message": {"messages": [{"role": "system", "content": "Mine"}, USER]},
}


@pytest.mark.parametrize("raw", OWN_SYSTEM.values(), ids=OWN_SYSTEM)
def test_the_jobs_system_prompt_yields_to_the_rows_own(raw):
    assert [m.content for m in parse_row(raw, system_prompt="Default").messages] == ["Mine", "Hi"]
    assert parse_row({"prompt": "Hi"}, system_prompt="Default").messages[0] == Message("system", "Default")


def test_equal_content_is_one_row_and_any_difference_another():
    row = parse_row({"prompt": "Hi", "label": "x"})
    assert row.row_id == parse_row({"label": "x", "prompt": "Hi", "line": 9}).row_id
    others = [{"prompt": "Hi"}, {"prompt": "Hi!", "label": "x"}, {"prompt": "Hi", "label": "y"}]
    others.append({"prompt": "Hi", "label": "x", "system": "Be kind"})
    assert len({row.row_id, *(parse_row(other).row_id for other in others)}) == 5


def test_the_digest_of_a_row_is_fixed_for_ever():
    """Answers of an earlier run are found by it."""
    assert parse_row({"prompt": "Grüße", "label": "x"}).row_id == "5b170f08a4300850d7ce7215533dc7a4"


@given(st.text(min_size=1).filter(str.strip))
def test_any_text_at_all_makes_a_row_with_an_id(text):
    assert len(parse_row({"prompt": text}).row_id) == 32


def test_related_rows_fall_on_one_side_of_the_split():
    """Same question: other spacing, another case, another system prompt, a longer chat, another label."""
    base = parse_row({"prompt": "Where is my parcel?", "label": "shipping"})
    related = [
        {"prompt": "where is  my parcel? "},
        {"prompt": "Where is my parcel?", "system": "Be brief"},
        {"messages": [{"role": "user", "content": "WHERE IS MY PARCEL?"}, ANSWER, USER]},
    ]
    for raw in related:
        assert parse_row(raw).prompt_key == base.prompt_key


def test_the_split_takes_about_its_fraction_and_grows_without_moving_rows():
    rows = [Row((Message("user", f"question {number}"),)) for number in range(2000)]
    tenth = {row.row_id for row in rows if is_held_out(row, 0.1)}
    fifth = {row.row_id for row in rows if is_held_out(row, 0.2)}
    assert 150 < len(tenth) < 250
    assert tenth < fifth


def test_purposes_are_independent():
    """A teacher's share of the prompts must not be a share of one side of the split."""
    both = sum(fraction_of(str(i), "validation") < 0.5 and fraction_of(str(i), "teacher") < 0.5 for i in range(2000))
    assert 400 < both < 600
    assert all(0 <= fraction_of(str(i), "teacher") < 1 for i in range(100))


def test_tools_may_be_json_as_a_column_of_parquet_holds_them():
    tools = [{"type": "function", "function": {"name": "weather"}}, {"type": "function", "function": {"args": [1]}}]
    assert parse_row({"prompt": "Hi", "tools": json.dumps(tools)}) == parse_row({"prompt": "Hi", "tools": tools})


def test_where_a_row_stood_is_no_part_of_it():
    here, there = (parse_row({"prompt": "Hi"}, place=place) for place in ("a, line 1", "b, line 2"))
    assert here == there
    assert here.row_id == there.row_id
    assert (here.place, there.place) == ("a, line 1", "b, line 2")
