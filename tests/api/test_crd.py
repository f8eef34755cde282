"""The CRD beside the package: what the models say, bounded and small."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from kubedistill_api import crd

METADATA = {"creationTimestamp": {"type": "string"}}
CRD_FILE = Path(__file__).parents[2] / "crds" / "distillationjobs.yaml"


def schemas(node: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every schema of the CRD with its path."""
    found = [(path, node)]
    for name, field in node.get("properties", {}).items():
        found += schemas(field, f"{path}.{name}")
    for inside, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(node.get(inside), dict):
            found += schemas(node[inside], path + mark)
    return found


@pytest.fixture(scope="module")
def root() -> dict[str, Any]:
    versions = crd.custom_resource_definition()["spec"]["versions"]
    return cast("dict[str, Any]", versions[0]["schema"]["openAPIV3Schema"])


def test_the_file_is_what_the_models_say() -> None:
    assert CRD_FILE.read_text() == crd.render(), "run `make generate`"


def test_every_printer_column_shows_a_field_that_is_one_value(root: dict[str, Any]) -> None:
    """Of a list, kubectl is sent the first value alone."""
    for _, type_, path, _ in crd.PRINTER_COLUMNS:
        field = root
        for name in path.removeprefix(".").split("."):
            field = field.get("properties", {}).get(name, {}) if name != "metadata" else {"properties": METADATA}
        assert field["type"] == {"date": "string"}.get(type_, type_), path


def test_it_stays_small_enough_for_client_side_apply() -> None:
    assert len(crd.render().encode()) < crd.LIMIT_BYTES


def test_every_string_list_and_map_of_the_spec_is_bounded(root: dict[str, Any]) -> None:
    unbounded = []
    for path, node in schemas(root["properties"]["spec"]):
        match node.get("type"):
            case "string" if not ("enum" in node or "maxLength" in node or "pattern" in node or "const" in node):
                unbounded.append(path)
            case "array" if "maxItems" not in node:
                unbounded.append(path)
            case "object" if isinstance(node.get("additionalProperties"), dict) and "maxProperties" not in node:
                unbounded.append(path)
    assert unbounded == []


def test_every_field_of_the_spec_says_what_it_is(root: dict[str, Any]) -> None:
    silent = [
        path
        for path, node in schemas(root["properties"]["spec"])
        if path and not path.endswith(("[]", "{}")) and not node.get("description")
    ]
    assert silent == [], "write an attribute docstring"


def test_no_schema_keeps_what_a_structural_schema_must_not_have(root: dict[str, Any]) -> None:
    forbidden = {"$ref", "anyOf", "oneOf", "allOf", "title", "const", "discriminator", "$defs"}
    found = {path: forbidden & node.keys() for path, node in schemas(root) if forbidden & node.keys()}
    assert found == {}


def test_a_job_nobody_has_seen_is_in_progress_for_kstatus(root: dict[str, Any]) -> None:
    assert root["properties"]["status"]["default"] == {"observedGeneration": -1}
