"""The kinds we touch and where the API server keeps them."""

from __future__ import annotations

from typing import Any, TypeAlias

from kubedistill_api.base import GROUP, KIND, PLURAL, VERSION

Raw: TypeAlias = dict[str, Any]
"""An object as the API server sends it."""

_ROOTS = {
    "Pod": ("api/v1", "pods"),
    "Service": ("api/v1", "services"),
    "ConfigMap": ("api/v1", "configmaps"),
    "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims"),
    "Job": ("apis/batch/v1", "jobs"),
    "Deployment": ("apis/apps/v1", "deployments"),
    "Event": ("apis/events.k8s.io/v1", "events"),
    KIND: (f"apis/{GROUP}/{VERSION}", PLURAL),
}


def path(kind: str, namespace: str | None, name: str = "", subresource: str = "") -> str:
    """The path of a kind's collection (of all namespaces without one), of one object, or of its subresource.

    Raises:
        KeyError: we do not touch this kind.
    """
    root, plural = _ROOTS[kind]
    parts = ["", root, *(["namespaces", namespace] if namespace else []), plural, name, subresource]
    return "/".join([parts[0], *(part for part in parts[1:] if part)])


def controller_uid(raw: Raw) -> str:
    """The uid of the object's controller; empty where it has none."""
    owners = raw.get("metadata", {}).get("ownerReferences") or []
    return next((owner["uid"] for owner in owners if owner.get("controller")), "")


def labels(raw: Raw) -> dict[str, str]:
    """The object's labels."""
    return raw.get("metadata", {}).get("labels") or {}


def version(raw: Raw) -> int:
    """The resourceVersion as a number, to tell which of two copies of one object is newer."""
    return int(raw.get("metadata", {}).get("resourceVersion") or 0)
