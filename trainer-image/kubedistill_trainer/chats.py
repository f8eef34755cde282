"""Chats as a tokenizer's template writes them, up to where an answer begins: one way for every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from kubedistill_trainer.core.tool_calls import for_server, for_template

Messages = Sequence[Mapping[str, Any]]


class TemplateRefused(Exception):
    """The chat template does not take this chat; the message has its words."""


def prompt_text(tokenizer: Any, messages: Messages, tools: Messages | None = None) -> str:
    """The text of a prompt. The template writes what begins a text itself, such as a BOS.

    Raises:
        TemplateRefused: it has no words for this chat: a role that it does not know, two users in a row.
    """

    def written(chat: list[dict[str, Any]]) -> str:
        offered = [dict(tool) for tool in tools] if tools else None
        return str(tokenizer.apply_chat_template(chat, tools=offered, add_generation_prompt=True, tokenize=False))

    try:
        try:
            return written(for_template(messages))
        except TypeError:  # DeepSeek-V3's, for one, adds the arguments of a call to a text
            return written(for_server(messages))
    except (TemplateError, TypeError) as error:
        raise TemplateRefused(" ".join(str(error).split())[:200] or type(error).__name__) from error


def prompt_ids(tokenizer: Any, messages: Messages, tools: Messages | None = None) -> list[int]:
    """The token ids of a prompt; raises what `prompt_text` raises."""
    return list(tokenizer.encode(prompt_text(tokenizer, messages, tools), add_special_tokens=False))
