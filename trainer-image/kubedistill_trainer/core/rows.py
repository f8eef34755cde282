"""What a line of the user's data means: parse one row, name it by its content, say on which side of the split it falls.

Accepted shapes, by field name and never by column order:
- `messages`: a chat; each assistant message marks a turn that the teacher answers (its text is kept as a reference
  only), and a chat that ends with a user gets one answer more;
- `prompt`, optionally with `system`, and with the expected answer as `label` or `completion`.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Any

FIELDS = ("messages", "prompt", "system", "label", "completion", "tools")
"""Our names for what a row may hold. `data.columns` maps them to the user's."""
NAMES_SHOWN, NAME_SHOWN = 20, 60
"""Names of fields in a sentence, and letters of each: a row may have any."""
ROLES = ("system", "developer", "user", "assistant", "tool")


class RowError(ValueError):
    """The row cannot be used; the message says why and what to write instead."""


class LabelError(RowError):
    """The row could be asked, but no answer could ever agree with its label."""


_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat. `more` holds what only templates understand: tool calls, names."""

    role: str
    content: str
    more: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)

    def as_dict(self) -> dict[str, Any]:
        """As chat templates and servers take it."""
        return {"role": self.role, "content": self.content, **self.more}

    @property
    def is_answer(self) -> bool:
        """Whether the teacher writes this message. Calls of tools are part of the history, not answers."""
        return self.role == "assistant" and not self.more.get("tool_calls")


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a chat up to and including what the last answer replies to."""

    messages: tuple[Message, ...]
    """Never ends with an answer. Answers in between mark turns; the teacher writes them anew."""
    label: str | None = None
    """The expected last answer, where the data know it."""
    tools: tuple[Mapping[str, Any], ...] = ()
    place: str = field(default="", compare=False)
    """Where it stands in the user's files, for people."""
    _id: str = field(default="", init=False, repr=False, compare=False)

    @property
    def row_id(self) -> str:
        """Digest of all content: equal rows have equal ids, whatever file, line or run they come from."""
        if not self._id:
            value = _digest([[m.as_dict() for m in self.messages], self.label, list(self.tools)])
            object.__setattr__(self, "_id", value)
        return self._id

    @property
    def prompt_key(self) -> str:
        """The first user message, blind to case and spacing: rows that share it are related."""
        first = next((message.content for message in self.messages if message.role == "user"), "")
        return " ".join(unicodedata.normalize("NFKC", first).casefold().split())

    @property
    def answers(self) -> int:
        """How many answers the teacher writes."""
        return 1 + sum(message.is_answer for message in self.messages)

    def as_dict(self) -> dict[str, Any]:
        """As JSON; `Row.from_dict` reads it back."""
        return {"messages": [m.as_dict() for m in self.messages], "label": self.label, "tools": list(self.tools)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Row:
        """What `as_dict` wrote; no checks are repeated."""
        messages = (
            Message(m["role"], m["content"], {k: v for k, v in m.items() if k not in ("role", "content")})
            for m in raw["messages"]
        )
        return cls(tuple(messages), raw["label"], tuple(raw["tools"]))


def parse_row(raw: object, columns: Mapping[str, str] | None = None, system_prompt: str = "", place: str = "") -> Row:
    """One row of user data as a `Row`.

    `columns` maps our field names to the user's ({prompt: question}). `system_prompt` goes before rows that bring no
    system message. Raises RowError with the cause and the keys that were found.
    """
    if not isinstance(raw, Mapping):
        raise RowError(f"a row is a JSON object, this is {_kind(raw)}")
    fields = {name: raw.get((columns or {}).get(name, name)) for name in FIELDS}
    match fields:
        case {"messages": None, "prompt": None}:
            raise RowError(_unknown_shape(raw, columns or {}))
        case {"messages": messages, "prompt": None}:
            chat = [_message(message, number) for number, message in enumerate(_list(messages, "messages"), start=1)]
        case {"messages": None, "prompt": prompt}:
            chat = [Message("user", _text(prompt, "prompt"))]
        case _:
            raise RowError("a row has messages or prompt, this one has both")
    if fields["system"] is not None:
        chat.insert(0, Message("system", _text(fields["system"], "system")))
    elif system_prompt and not any(message.role in ("system", "developer") for message in chat):
        chat.insert(0, Message("system", system_prompt))
    _check_order(chat)
    reference = chat.pop().content if chat[-1].is_answer else None
    return Row(tuple(chat), _label(fields, reference), _tools(fields["tools"]), place)


def unknown_columns(columns: Mapping[str, str]) -> list[str]:
    """What is wrong with `data.columns`: one sentence for each name that is not ours."""
    return [
        f"data.columns maps {name!r}, which is no field of ours; write one of {', '.join(FIELDS)} on the left and your "
        "own name on the right"
        for name in columns
        if name not in FIELDS
    ]


def fraction_of(key: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the key and the purpose alone. Different purposes are independent."""
    whole = int.from_bytes(hashlib.sha256(f"{purpose}\0{key}".encode()).digest()[:7])
    return (whole >> 3) / 2**53  # 53 bits are what a float holds: with more, the largest would be rounded to 1


def is_held_out(row: Row, validation_fraction: float) -> bool:
    """Whether a row belongs to validation: by the hash of its prompt, so related rows stay together for ever."""
    return fraction_of(row.prompt_key, "validation") < validation_fraction


def _message(raw: object, number: int) -> Message:
    if not isinstance(raw, Mapping):
        raise RowError(f"message {number} is {_kind(raw)}, not an object with role and content")
    role, content = raw.get("role"), raw.get("content")
    if role not in ROLES:
        raise RowError(f"message {number} has role {role!r}; known are {', '.join(ROLES)}")
    more = {name: value for name, value in raw.items() if name not in ("role", "content") and value is not None}
    if more:
        _check_json(more, f"message {number}")
    if content in (None, "") and more.get("tool_calls"):
        return Message(role, "", more)
    return Message(role, _text(content, f"the content of message {number}"), more or _NOTHING)


def _text(value: object, what: str) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
            raise RowError(f"{what} has parts that are not text; only text can be distilled")
        value = "".join(str(part.get("text", "")) for part in value)
    if not isinstance(value, str):
        raise RowError(f"{what} is {_kind(value)}, not text")
    if not value.strip():
        raise RowError(f"{what} is empty")
    return _encodable(value, what)


def _encodable(value: str, what: str) -> str:
    """JSON can write half of a surrogate pair; no file and no tokenizer can hold it."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise RowError(f"{what} holds {half}, half of a character: write the whole pair, or the character") from error
    return value


def _tools(value: object) -> tuple[Mapping[str, Any], ...]:
    """A list of objects, or its JSON: a column of Parquet cannot hold tools of different shapes otherwise."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError("tools is text, but no JSON: write a list of objects") from error
    tools = [] if value is None else _list(value, "tools")
    for number, tool in enumerate(tools, start=1):
        if not isinstance(tool, Mapping):
            raise RowError(f"tool {number} is {_kind(tool)}, not an object that describes a function")
    _check_json(tools, "tools")
    return tuple(tools)


def _check_json(value: object, what: str) -> None:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RowError(f"{what} cannot be said in JSON ({error})") from error
    _encodable(text, what)


def _list(value: object, what: str) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise RowError(f"{what} is {_kind(value)}, not a list")
    return list(value)


def _label(fields: Mapping[str, object], reference: str | None) -> str | None:
    given = {name: fields[name] for name in ("label", "completion") if fields[name] is not None}
    if len(given) == 2:
        raise RowError("a row has label or completion, this one has both")
    for name, value in given.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise RowError(f"{name} is {value}, which is no number: leave it out")
            return str(value)
        return _text(value, name)
    return reference


def _check_order(chat: Sequence[Message]) -> None:
    if not any(message.role == "user" for message in chat):
        raise RowError("there is no user message: nothing asks the teacher")
    for number, message in enumerate(chat, start=1):
        if message.is_answer and (number == 1 or chat[number - 2].role not in ("user", "tool")):
            raise RowError(f"message {number} is an answer, but no user or tool message comes right before it")
    if not chat[-1].is_answer and chat[-1].role not in ("user", "tool"):
        raise RowError(f"the last message is of the role {chat[-1].role}: nothing asks for an answer")


def _unknown_shape(raw: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    names = [str(name)[:NAME_SHOWN].encode("utf-8", "backslashreplace").decode() for name in islice(raw, NAMES_SHOWN)]
    found = ", ".join([*names, *(["…"] if len(raw) > NAMES_SHOWN else [])]) or "no fields at all"
    missing = "; ".join(f"data.columns says that {ours} is called {theirs}" for ours, theirs in columns.items())
    hint = missing or "if yours are called otherwise, write for example data.columns: {prompt: question, label: answer}"
    return f"a row needs messages or prompt, this one has {found} ({hint})"


def _kind(value: object) -> str:
    return {None.__class__: "null", str: "text", list: "a list", bool: "a boolean", dict: "an object"}.get(
        type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
    )


_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _digest(value: object) -> str:
    return hashlib.sha256(_CANONICAL.encode(value).encode("utf-8", "surrogatepass")).hexdigest()[:32]
