"""Writes what documents are generated from the models: the field reference. `make generate` runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kubedistill_api.crd import custom_resource_definition

TARGET = Path(__file__).parent / "reference" / "distillationjob.md"
HEAD = """# DistillationJob: every field

Generated from `crds/kubedistill_api` by `make generate`; do not edit. What must hold beyond types and bounds stands
under *Rules*: the API server and `kubedistill validate` refuse what breaks them, with these sentences.
"""


def render() -> str:
    """The reference as Markdown."""
    root = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    parts = [HEAD]
    for part in ("spec", "status"):
        parts += [f"## {part}\n", "| Field | Type | Default | Meaning |", "|---|---|---|---|"]
        parts += [_row(path, node) for path, node in _fields(root["properties"][part], part)]
        parts.append("")
    parts += ["## Rules\n", "| Where | What must hold |", "|---|---|"]
    rules = [("", root), *_fields(root["properties"]["spec"], "spec"), ("spec", root["properties"]["spec"])]
    for path, node in rules:
        schema = node.get("items", node)
        parts += [f"| `{path or '(job)'}` | {rule['message']} |" for rule in schema.get("x-kubernetes-validations", ())]
    return "\n".join(parts) + "\n"


def _fields(node: dict[str, Any], path: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, field in node.get("properties", {}).items():
        inner = field["items"] if field.get("type") == "array" else field
        mark = "[]" if inner is not field else ""
        found += [(f"{path}.{name}{mark}", field), *_fields(inner, f"{path}.{name}{mark}")]
    return found


def _row(path: str, node: dict[str, Any]) -> str:
    inner = node.get("items", node)
    type_ = " \\| ".join(inner["enum"]) if "enum" in inner else inner.get("type", "int or string")
    default = "" if node.get("default") in (None, {}, [], "") else f"`{json.dumps(node['default'])}`"
    meaning = " ".join(str(node.get("description", "")).split())
    return f"| `{path}` | {type_} | {default} | {_range(inner)}{meaning} |"


def _range(node: dict[str, Any]) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    if node.get("type") not in ("integer", "number") or low is None or high is None or high > 10**12:
        return ""
    return f"({low:.12g} to {high:.12g}) "


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(render())
