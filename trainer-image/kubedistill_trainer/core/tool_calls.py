"""Calls of tools in a chat, as those who read them want their arguments. Pure.

The OpenAI API takes them as a text of JSON, chat templates as an object (transformers, "Tool use"): a template that
writes them with `tojson` would write a text in quotation marks, full of backslashes. Users' data have either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Message = Mapping[str, Any]


def for_template(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """A chat with arguments as objects. A text that is no JSON of an object stays as it is."""
    return [_with_arguments(message, _as_object) for message in messages]


def for_server(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """A chat with arguments as texts."""
    return [_with_arguments(message, _as_text) for message in messages]


def called(message: Message) -> list[str]:
    """The names of the tools that a message calls."""
    return [str(function["name"]) for call in _calls(message) if (function := _function(call)) and "name" in function]


def _with_arguments(message: Message, changed: Callable[[Any], Any]) -> dict[str, Any]:
    calls = _calls(message)
    if not calls:
        return dict(message)
    return {**message, "tool_calls": [_changed(call, changed) for call in calls]}


def _changed(call: Any, changed: Callable[[Any], Any]) -> Any:
    function = _function(call)
    if function is None or "arguments" not in function:
        return call
    return {**call, "function": {**function, "arguments": changed(function["arguments"])}}


def _calls(message: Message) -> list[Any]:
    calls = message.get("tool_calls")
    return calls if isinstance(calls, list) else []


def _function(call: Any) -> Mapping[str, Any] | None:
    function = call.get("function") if isinstance(call, Mapping) else None
    return function if isinstance(function, Mapping) else None


def _as_object(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _as_text(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
