"""YAML as kubectl reads it: text in, plain JSON values out, and every complaint with its line.

kubectl reads YAML as JSON does, so `2e-5` is a number there; PyYAML alone would read it as text. The loader here
follows the core schema of YAML 1.2 for numbers and booleans, and knows no tags beyond JSON's types.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.constructor import ConstructorError

LARGEST = 100_000
"""Values that a file may stand for: aliases of aliases (a "billion laughs") would fill the memory."""


class UnreadableError(Exception):
    """A text that is no YAML, or none that stands for JSON; the sentence names the line."""


class Yaml12Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the numbers and booleans of YAML 1.2; `repeated` has the keys that stand twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping, as PyYAML makes it; of a key that stands twice the last value counts."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key.value, str):
                if key.value in seen:
                    self.repeated.append(f"the key {key.value!r} stands twice ({_place(key.start_mark)})")
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value.

        Raises:
            yaml.constructor.ConstructorError: its tag asks for a type that its text is not, or for none of JSON's.
        """
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError) as error:
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(None, None, f"{str(node.value)[:40]!r} is no {kind}", node.start_mark) from error


def _undefined(loader: Yaml12Loader, node: yaml.Node) -> Any:
    return loader.construct_undefined(node)


_RESOLVERS = {
    "tag:yaml.org,2002:bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "tag:yaml.org,2002:int": (r"^[-+]?[0-9]+$", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
    "tag:yaml.org,2002:null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:merge": (r"^(?:<<)$", ["<"]),
}
Yaml12Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _RESOLVERS.items():
    Yaml12Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))
Yaml12Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
for _type in ("timestamp", "binary", "set", "omap", "pairs"):
    # Dates, bytes and sets are no JSON: as unknown here as a tag of one's own.
    Yaml12Loader.add_constructor(f"tag:yaml.org,2002:{_type}", _undefined)


def read_documents(text: str) -> tuple[list[Any], list[str]]:
    """The documents of a text, empty ones left out, and a sentence for every key that stands twice.

    Raises:
        UnreadableError: it cannot be read as YAML, or stands for more than a job could be.
    """
    found: list[Any] = []
    try:
        loader = Yaml12Loader(text)
        while loader.check_data():  # type: ignore[no-untyped-call]
            found.append(loader.get_data())
        if sum(_size(document, {}) for document in found) > LARGEST:
            raise UnreadableError(f"it stands for more than {LARGEST:,} values; is an alias inside an alias?")
    except yaml.MarkedYAMLError as error:
        raise UnreadableError(_sentence(error)) from error
    except yaml.reader.ReaderError as error:
        raise UnreadableError(f"it has a character that YAML does not allow, at position {error.position}") from error
    except RecursionError as error:
        raise UnreadableError("it is nested too deeply, or an alias stands inside itself") from error
    return [document for document in found if document is not None], loader.repeated


def _size(value: Any, known: dict[int, int]) -> int:
    """How many values it stands for; what several aliases share is counted for each, and looked at once."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(item, known) for item in inside)
    return known[id(value)]


_PLAINER = (
    (r"found character '\\t' that cannot start any token", "a tab stands where only blanks may: indent with blanks"),
    (r"could not determine a constructor for the tag (\S+)", r"the tag \1 means nothing here: leave it out"),
    (r"found unhashable key", "a key must be a text, and this one is a list or a mapping"),
)
"""Sentences of PyYAML that speak of its own inside."""


def _sentence(error: yaml.MarkedYAMLError) -> str:
    problem, mark = error.problem or "it cannot be read", error.problem_mark
    for theirs, ours in _PLAINER:
        problem = re.sub(theirs, ours, problem)
    text = f"{problem} ({_place(mark)})" if mark else problem
    if error.context and error.context_mark and mark and error.context_mark.line != mark.line:
        text += f", {error.context} that begins on line {error.context_mark.line + 1}"
    return " ".join(text.split())


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"
