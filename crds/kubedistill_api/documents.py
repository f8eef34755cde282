"""Job documents as people write them: YAML in, a DistillationJob or a list of problems out.

kubectl reads YAML as JSON does, so `2e-5` is a number there; PyYAML alone would read it as text. The loader here
follows the core schema of YAML 1.2 for numbers and booleans.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from pydantic import ValidationError

from kubedistill_api.job import DistillationJob
from kubedistill_api.rules import Problem, broken_rules, join


class Yaml12Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the numbers and booleans of YAML 1.2, and without silent duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, as PyYAML makes it.

        Raises:
            yaml.constructor.ConstructorError: a key stands twice.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key.value, str):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


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


class InvalidDocumentError(Exception):
    """A document that is no valid DistillationJob; `problems` has all that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def read_job(text: str) -> DistillationJob:
    """The one DistillationJob of a YAML text.

    Raises:
        InvalidDocumentError: it is not YAML, not one job, or breaks the schema or a rule; all problems at once.
    """
    try:
        documents = [d for d in yaml.load_all(text, Yaml12Loader) if d is not None]
    except yaml.YAMLError as error:
        raise InvalidDocumentError([Problem("", f"this is not YAML: {_one_line(error)}")]) from error
    jobs = [d for d in documents if isinstance(d, dict) and d.get("kind") == "DistillationJob"]
    if len(jobs) != 1:
        found = f"{len(jobs)} of kind DistillationJob among {len(documents)} documents"
        raise InvalidDocumentError([Problem("", f"write one DistillationJob in a file; found {found}")])
    return parse_job(jobs[0])


def parse_job(document: dict[str, Any]) -> DistillationJob:
    """A job from plain values, checked against the schema and then against every rule.

    Raises:
        InvalidDocumentError: with all problems of the schema, or, where there are none, of the rules.
    """
    try:
        # Strict and through JSON, as in the API server: "3" is no number and "yes" no boolean.
        job = DistillationJob.model_validate_json(json.dumps(_without_nulls(document)), strict=True)
    except ValidationError as error:
        raise InvalidDocumentError(schema_problems(error)) from error
    problems = list(broken_rules(job))
    if problems:
        raise InvalidDocumentError(problems)
    return job


def schema_problems(error: ValidationError) -> list[Problem]:
    """Pydantic's errors with the field paths that a user wrote."""
    return [Problem(_path(item["loc"]), _sentence(dict(item))) for item in error.errors(include_url=False)]


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path = f"{path}[{part}]" if isinstance(part, int) else join(path, part)
    return path


def _sentence(item: dict[str, Any]) -> str:
    if item["type"] == "extra_forbidden":
        return "there is no such field"
    if item["type"] == "missing":
        return "this field is required"
    given = item.get("input")
    shown = "" if isinstance(given, dict | list) else f" (found {given!r})"
    return f"{item['msg'][:1].lower()}{item['msg'][1:]}{shown}"


def _without_nulls(value: Any) -> Any:
    """The API server prunes nulls of fields that are not nullable before it applies defaults; so do we."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _one_line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())
