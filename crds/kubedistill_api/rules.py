"""Rules beyond the schema: each written once, next to the model it binds, in CEL and in Python.

The API server refuses by the CEL text; `kubedistill validate`, the local runner and the operator's Accepted condition
use the predicate. A test asks a real API server and the predicate the same questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class Rule:
    """What must hold for one model.

    `holds` gets the model (as `Any`: the rule stands on the class it belongs to). `field` is the path, relative to the
    model, of what the user should change; `message` says what to write instead.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]
    field: str = ""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a document: where, and what to write instead."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


def broken_rules(model: BaseModel, path: str = "") -> Iterator[Problem]:
    """Every rule that does not hold in a model and in the models inside it, outermost first."""
    for rule in getattr(model, "rules", ()):
        if not rule.holds(model):
            yield Problem(join(path, rule.field), rule.message)
    for name, field in type(model).model_fields.items():
        yield from _broken_inside(getattr(model, name), join(path, field.alias or name))


def _broken_inside(value: object, path: str) -> Iterator[Problem]:
    match value:
        case BaseModel():
            yield from broken_rules(value, path)
        case list() | tuple():
            for index, item in enumerate(value):
                yield from _broken_inside(item, f"{path}[{index}]")
        case Mapping():
            for key, item in value.items():
                yield from _broken_inside(item, join(path, str(key)))


def join(path: str, field: str) -> str:
    """`spec` and `teachers` make `spec.teachers`; an empty side is left out."""
    return f"{path}.{field}" if path and field else path or field
