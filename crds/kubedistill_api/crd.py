"""The CustomResourceDefinition, generated from the models: structural, bounded, with the rules as CEL.

`python -m kubedistill_api.crd` prints it; `make generate` writes it beside the package.
"""

from __future__ import annotations

import sys
from typing import Any

import yaml
from pydantic import BaseModel

from kubedistill_api.base import GROUP, KIND, PLURAL, VERSION
from kubedistill_api.job import IMMUTABLE, NAME_LIMIT_RULE, DistillationJobSpec
from kubedistill_api.status import Status

LIMIT_BYTES = 200 * 1024
"""Below this size client-side apply, which copies the object into an annotation, works."""

PRINTER_COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    ("Phase", "string", ".status.phase", 0),
    ("Stage", "string", ".status.currentStage", 0),
    ("Progress", "string", ".status.progress", 0),
    ("Score", "string", ".status.score", 0),
    ("Reason", "string", ".status.reason", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Teacher", "string", ".status.teachers", 1),
    ("Student", "string", ".spec.student.model.uri", 1),
    ("Model URI", "string", ".status.result.modelURI", 1),
    ("GPU-seconds", "integer", ".status.usage.gpuSeconds", 1),
)


def custom_resource_definition() -> dict[str, Any]:
    """The CRD as plain values."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["dj"],
                "categories": ["kubedistill"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(*column) for column in PRINTER_COLUMNS],
                    "schema": {"openAPIV3Schema": _root_schema()},
                }
            ],
        },
    }


def _column(name: str, type_: str, path: str, priority: int) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": type_, "jsonPath": path}
    return {**column, "priority": priority} if priority else column


def _root_schema() -> dict[str, Any]:
    spec = structural_schema(DistillationJobSpec)
    status = structural_schema(Status)
    _drop_defaults(status)
    status["properties"]["observedGeneration"]["default"] = -1
    status["default"] = {"observedGeneration": -1}
    return {
        "type": "object",
        "description": "Distils large language models (teachers) into a small one (the student).",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
        "x-kubernetes-validations": [
            {"rule": NAME_LIMIT_RULE.cel, "message": NAME_LIMIT_RULE.message},
            *({"rule": rule, "message": message} for rule, message in IMMUTABLE),
        ],
    }


def _drop_defaults(node: dict[str, Any]) -> None:
    """A status holds what was written, nothing that was filled in."""
    node.pop("default", None)
    for inside in (*node.get("properties", {}).values(), node.get("items"), node.get("additionalProperties")):
        if isinstance(inside, dict):
            _drop_defaults(inside)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def structural_schema(model: type[BaseModel]) -> dict[str, Any]:
    """A model's schema as Kubernetes takes it: no references, no unions with null, no titles; rules as CEL."""
    schema = model.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs", {})
    rules = {cls.__name__: cls for cls in _models_inside(model, set())}
    return _structural(schema, definitions, rules)


def _models_inside(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    """The model and every model that a field of it can hold."""
    if model not in seen:
        seen.add(model)
        for field in model.model_fields.values():
            for inner in _classes(field.annotation):
                _models_inside(inner, seen)
    return seen


def _classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [cls for arg in getattr(annotation, "__args__", ()) for cls in _classes(arg)]


def _structural(
    node: dict[str, Any], definitions: dict[str, Any], models: dict[str, type[BaseModel]]
) -> dict[str, Any]:
    node = dict(node)
    if "$ref" in node:
        target = definitions[node.pop("$ref").rsplit("/", 1)[1]]
        node = {**target, **{k: v for k, v in node.items() if k in ("description", "default")}}
    if node.get("x-kubernetes-int-or-string"):
        return {"x-kubernetes-int-or-string": True}
    if "anyOf" in node:
        options = [option for option in node.pop("anyOf") if option.get("type") != "null"]
        if len(options) != 1:
            raise TypeError(f"a union has no structural schema: {options}")
        node = {**_structural(options[0], definitions, models), **node}
        if node.get("default", ...) is None:
            del node["default"]
        node.pop("title", None)
        return node
    return _shaped(node, definitions, models)


def _shaped(node: dict[str, Any], definitions: dict[str, Any], models: dict[str, type[BaseModel]]) -> dict[str, Any]:
    title = node.pop("title", "")
    node.pop("discriminator", None)
    if "exclusiveMinimum" in node:
        node.update(minimum=node["exclusiveMinimum"], exclusiveMinimum=True)
    if "exclusiveMaximum" in node:
        node.update(maximum=node["exclusiveMaximum"], exclusiveMaximum=True)
    if node.get("type") == "array":
        node["items"] = _structural(node["items"], definitions, models)
    elif node.get("type") == "object":
        _shape_object(node, title, definitions, models)
    elif node.get("type") == "integer":
        node["format"] = "int64"
    if isinstance(node.get("default"), dict):
        # In full, not `{}`: the API server checks a default against the rules before it fills what is inside.
        node["default"] = _without_nulls(node["default"])
    if node.get("default", ...) is None:
        del node["default"]
    if "description" in node:
        node["description"] = " ".join(node["description"].split())
    return node


def _shape_object(
    node: dict[str, Any], title: str, definitions: dict[str, Any], models: dict[str, type[BaseModel]]
) -> None:
    additional = node.pop("additionalProperties", None)
    if "properties" in node:
        node["properties"] = {
            name: _structural(field, definitions, models) for name, field in node["properties"].items()
        }
    elif isinstance(additional, dict) and additional:
        node["additionalProperties"] = _structural(additional, definitions, models)
    else:
        node["x-kubernetes-preserve-unknown-fields"] = True
    node.pop("propertyNames", None)
    if title in models and (rules := getattr(models[title], "rules", ())):
        node["x-kubernetes-validations"] = [{"rule": rule.cel, "message": rule.message} for rule in rules]


def render() -> str:
    """The CRD as YAML, with a line that says where it comes from."""
    body = yaml.safe_dump(custom_resource_definition(), sort_keys=False, width=110, allow_unicode=True)
    return f"# Generated from crds/kubedistill_api by `make generate`; do not edit.\n{body}"


if __name__ == "__main__":
    sys.stdout.write(render())
