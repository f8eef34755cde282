"""CustomResourceDefinitions for tests: installed, and established before anybody uses them."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rig import access


def install(kubeconfig: Path, manifest: Path, *names: str, patience_seconds: float = 60) -> None:
    """Apply the manifest and wait for the named definitions.

    `kubectl wait` takes a definition that was made this instant, and has no conditions yet, for an error.
    """
    access.kubectl(kubeconfig, "apply", "--server-side", "-f", str(manifest))
    end = time.monotonic() + patience_seconds
    for name in names:
        while not _is_established(kubeconfig, name):
            assert time.monotonic() < end, f"{name} was not established within {patience_seconds} s"
            time.sleep(0.2)


def _is_established(kubeconfig: Path, name: str) -> bool:
    status = json.loads(access.kubectl(kubeconfig, "get", "crd", name, "-o", "json")).get("status", {})
    conditions = status.get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
