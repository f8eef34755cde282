"""Job documents as people write them: YAML in, a DistillationJob or a list of problems out."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from kubedistill_api.base import GROUP, KIND, VERSION
from kubedistill_api.job import DistillationJob
from kubedistill_api.rules import Problem, broken_rules, join
from kubedistill_api.yaml12 import UnreadableError, read_documents

SHOWN = 60
"""Characters of a wrong value that are repeated."""


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
        documents, repeated = read_documents(text)
    except UnreadableError as error:
        raise InvalidDocumentError([Problem("", f"this is not YAML: {error}")]) from error
    problems = [Problem("", sentence) for sentence in repeated]
    document = _the_job_of(documents)
    if "apiVersion" not in document:
        problems.append(Problem("apiVersion", f"this field is required: write {GROUP}/{VERSION}"))
    if "kind" not in document:
        problems.append(Problem("kind", f"this field is required: write {KIND}"))
    try:
        job = parse_job(document)
    except InvalidDocumentError as error:
        raise InvalidDocumentError([*problems, *error.problems]) from error
    if problems:
        raise InvalidDocumentError(problems)
    return job


def _the_job_of(documents: list[Any]) -> dict[str, Any]:
    """The one document that is a job, or is meant to be: other objects may stand beside it.

    Raises:
        InvalidDocumentError: there is none, or more than one.
    """
    jobs = [d for d in documents if isinstance(d, dict) and d.get("kind") == KIND]
    if len(jobs) == 1:
        return jobs[0]
    if len(jobs) > 1:
        raise _refusal("", f"there are {len(jobs)} DistillationJobs in this file: write one")
    if not documents:
        raise _refusal("", f"the file is empty: write one {KIND}")
    if len(documents) > 1:
        raise _refusal("", f"none of the {len(documents)} documents is of kind {KIND}: write one")
    only = documents[0]
    if not isinstance(only, dict):
        what = (
            "a list" if isinstance(only, list) else f"the text {only[:SHOWN]!r}" if isinstance(only, str) else "a value"
        )
        raise _refusal("", f"this is {what}: a {KIND} is a mapping with apiVersion, kind, metadata and spec")
    if "kind" in only:
        raise _refusal("kind", f"write {KIND} (found {_shown(only['kind'])})")
    return only


def _refusal(path: str, message: str) -> InvalidDocumentError:
    return InvalidDocumentError([Problem(path, message)])


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
    shown = "" if isinstance(given, dict | list) else f" (found {_shown(given)})"
    return f"{item['msg'][:1].lower()}{item['msg'][1:]}{shown}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _without_nulls(value: Any) -> Any:
    """The API server prunes nulls of fields that are not nullable before it applies defaults; so do we."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
