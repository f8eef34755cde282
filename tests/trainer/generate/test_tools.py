"""Chats that call tools: what each kind of teacher is asked, and what of it is stored."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from teaching.server import TestTeacher
from teaching.work import context_of, prepare, prompt_row

from kubedistill_api.run import GenerateRun
from kubedistill_trainer.errors import BadData
from kubedistill_trainer.stages import generate
from kubedistill_trainer.store.rows import PromptRow
from kubedistill_trainer.store.shards import AnswerRow, read_answers
from kubedistill_trainer.store.workspace import Workspace

Run = Callable[..., GenerateRun]

WITH_TOOLS = (
    "{% if tools %}<s>tools: {{ tools | tojson }}</s>{% endif %}"
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}"
    "{% for call in message.get('tool_calls') or [] %}"
    "[{{ call['function']['name'] }} {{ call['function']['arguments'] | tojson }}]{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
"""As templates of real models do: they write arguments as JSON themselves."""
OBJECT = {"city": "Oslo"}
TEXT = '{"city": "Oslo"}'
TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}]
ASKED = (
    f"<s>tools: {json.dumps(TOOLS)}</s><s>user: What time is it in Oslo?</s>"
    '<s>assistant: [clock {"city": "Oslo"}]</s><s>tool: 12:00</s><s>assistant: '
)
PERMISSIVE = {"dropTruncated": False, "dropRepetitive": False, "minTokens": 0}


def chat(arguments: Any) -> list[dict[str, Any]]:
    """A call and its result, an answer that is made anew, and one more question."""
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": arguments}}
    return [
        {"role": "user", "content": "What time is it in Oslo?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "12:00", "tool_call_id": "1"},
        {"role": "assistant", "content": "recorded"},
        {"role": "user", "content": "And in Rome?"},
    ]


@pytest.fixture
def tokenizer(tiny_tokenizer: Any) -> Any:
    own = copy.deepcopy(tiny_tokenizer)
    own.chat_template = WITH_TOOLS
    return own


@pytest.fixture(params=[OBJECT, TEXT], ids=["an object", "a text of JSON"])
def arguments(request: pytest.FixtureRequest) -> Any:
    """As users' data have them."""
    return request.param


@pytest.fixture
def workspace(tmp_path: Path, tiny_folder: Path, tokenizer: Any, arguments: Any) -> Workspace:
    """One chat that calls a tool; teacher and student write it by the template above."""
    place = Workspace.open(f"file://{tmp_path / 'workspace'}")
    first, *more = chat(arguments)
    plain = prompt_row(first["content"], *more)
    prepare(place, tiny_folder, [PromptRow(plain.row_id, plain.messages, "", plain.prompt_hash, json.dumps(TOOLS))])
    for name in ("tokenizer", "teachers/t"):
        place.write_bytes(f"prepared/{name}/chat_template.jinja", WITH_TOOLS.encode())
    return place


def the_answer(workspace: Workspace) -> AnswerRow:
    (row,) = read_answers(workspace, ["answers/t-1"], "train")
    return row


def check_stored(row: AnswerRow, tokenizer: Any) -> None:
    """Tools, calls and results are in the row, and nothing but the teacher's two answers is a target."""
    said = [message["content"] for message in json.loads(row.messages)]
    assert said[1:3] == ["", "12:00"]
    first, last = said[3], said[5]
    ended = "</s>" if row.finish_reason == "stop" else ""
    whole = f"{ASKED}{first}</s><s>user: And in Rome?</s><s>assistant: {last}{ended}"
    assert tokenizer.decode(row.input_ids) == whole
    assert tokenizer.decode(row.input_ids[row.target_mask]).replace("</s>", "") == f"{first}{last}"


def test_a_server_of_chats_gets_tools_and_calls_as_its_api_has_them(
    workspace: Workspace, a_run: Run, tmp_path: Path, tokenizer: Any
) -> None:
    with TestTeacher() as teacher:
        generate.run(a_run(teacher.url), context_of(workspace, tmp_path))
    first, second = (body for body in teacher.seen if "tools" in body)
    assert first["tools"] == second["tools"] == TOOLS
    assert first["messages"] == chat(TEXT)[:3]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "tool", "assistant", "user"]
    assert second["messages"][3]["content"] == "Echo: 12:00"
    row = the_answer(workspace)
    assert row.text == "Echo: And in Rome?"
    check_stored(row, tokenizer)


def test_a_vllm_gets_tools_and_calls_as_the_template_writes_them(
    workspace: Workspace, a_run: Run, tmp_path: Path, tokenizer: Any, tiny_model: Any
) -> None:
    how: dict[str, Any] = {"temperature": 0, "maxTokens": 6, "signal": "TopK", "topK": 4, "filters": PERMISSIVE}
    with TestTeacher(tokenizer, tiny_model) as teacher:
        generate.run(a_run(teacher.url, kind="serving", **how), context_of(workspace, tmp_path))
    assert not any("tools" in body or "messages" in body for body in teacher.seen)
    assert ASKED in {tokenizer.decode(body["prompt"]) for body in teacher.seen}


def test_an_engine_in_process_gets_the_same(
    workspace: Workspace, a_run: Run, tmp_path: Path, tokenizer: Any, tiny_folder: Path, tiny_model: Any
) -> None:
    how: dict[str, Any] = {"temperature": 0, "maxTokens": 6, "filters": PERMISSIVE}
    folder = tmp_path / "teacher"
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    run = a_run(kind="batch", **how)
    model = run.teacher.model.model_copy(update={"uri": folder.as_uri()})
    own = run.model_copy(update={"teacher": run.teacher.model_copy(update={"model": model})})
    generate.run(own, context_of(workspace, tmp_path))
    local = the_answer(workspace)
    check_stored(local, tokenizer)
    workspace.remove("answers")
    with TestTeacher(tokenizer, tiny_model) as teacher:
        generate.run(a_run(teacher.url, kind="serving", **how), context_of(workspace, tmp_path))
    served = the_answer(workspace)
    check_stored(served, tokenizer)
    assert served.input_ids.tolist() == local.input_ids.tolist()
    assert served.target_mask.tolist() == local.target_mask.tolist()


def test_a_call_where_an_answer_was_asked_for_is_told_as_that(workspace: Workspace, a_run: Run, tmp_path: Path) -> None:
    class Calling(TestTeacher):
        def chat(self, body: dict[str, Any]) -> Any:
            call = {"id": "2", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
            return {"choices": [{"message": message, "finish_reason": "tool_calls"}]}

    with Calling() as teacher, pytest.raises(BadData) as error:
        generate.run(a_run(teacher.url), context_of(workspace, tmp_path))
    assert "Unanswerable (3)" in error.value.message
    assert "the teacher called a tool (clock) where an answer was asked for" in error.value.message
