"""One way to write a chat, whatever the template is like."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kubedistill_trainer.chats import TemplateRefused, prompt_ids, prompt_text

QUESTION = {"role": "user", "content": "Café?"}


def calls(arguments: Any) -> dict[str, Any]:
    function = {"name": "clock", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def with_template(tokenizer: Any, template: str) -> Any:
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    return own


ARGUMENTS: dict[str, Any] = {"an-object": {"city": "Køln"}, "a-text": '{"city": "Køln"}'}
TEMPLATES = {
    "writes-json-itself": "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}"
    "{% endfor %}{% endfor %}",
    "adds-texts": "{% for m in messages %}{% for c in m.tool_calls %}{{ '' + c.function.arguments }}"
    "{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_are_written_once_however_data_and_template_have_them(
    tiny_tokenizer: Any, template: str, arguments: Any
) -> None:
    chat = [QUESTION, calls(arguments)]
    assert prompt_text(with_template(tiny_tokenizer, template), chat) == '{"city": "Køln"}'
    assert chat[1] == calls(arguments), "the chat itself is not touched"


@pytest.mark.parametrize(
    "message",
    [
        calls("no JSON"),
        calls("[1]"),
        calls("[" * 100_000),
        {**QUESTION, "tool_calls": None},
        {**QUESTION, "tool_calls": ["?"]},
    ],
    ids=["no JSON", "a list", "too deep", "no calls", "calls that are none"],
)
def test_what_is_no_call_as_we_know_it_stays_as_it_is(tiny_tokenizer: Any, message: dict[str, Any]) -> None:
    seen = with_template(tiny_tokenizer, "{{ messages[0].tool_calls | tojson }}")
    assert prompt_text(seen, [message]) == prompt_text(seen, [message | {"content": ""}])


def test_a_chat_that_the_template_refuses_is_told_in_its_words(tiny_tokenizer: Any) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}Hi"
    strict = with_template(tiny_tokenizer, template)
    assert prompt_ids(strict, [QUESTION]) == tiny_tokenizer.encode("Hi")
    with pytest.raises(TemplateRefused, match="System role not supported"):
        prompt_ids(strict, [{"role": "system", "content": "Be brief."}, QUESTION])
