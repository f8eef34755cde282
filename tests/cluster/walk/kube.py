"""kubectl and helm, as a user would call them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rig import paths


class WalkError(Exception):
    """A command failed, or what was waited for did not come; the message says which."""


def tool(name: str) -> str:
    """The rig's own program, else the one on the PATH."""
    built = paths.cache() / "bin" / name
    found = str(built) if built.exists() else shutil.which(name)
    if found is None:
        raise WalkError(f"{name} is not here: `make cluster` builds it")
    return found


@dataclass(frozen=True)
class Kube:
    """One cluster, seen from one namespace."""

    kubeconfig: Path
    namespace: str

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in the namespace and give its output.

        Raises:
            WalkError: it failed; the message has what it said.
        """
        return run([tool("kubectl"), "-n", self.namespace, *arguments], self.kubeconfig, stdin)

    def get(self, kind: str, name: str = "", *more: str) -> dict[str, Any]:
        """One object, empty when it is not there, or a list with its `items`, as plain values."""
        text = self("get", kind, *([name] if name else []), "-o", "json", "--ignore-not-found", *more)
        nothing: dict[str, Any] = {} if name else {"items": []}  # of no items at all kubectl prints nothing
        found: dict[str, Any] = json.loads(text) if text.strip() else nothing
        return found

    def apply(self, manifest: dict[str, Any] | str) -> None:
        """Apply one manifest (or YAML text)."""
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        self("apply", "-f", "-", stdin=text)

    def status(self, job: str) -> dict[str, Any]:
        """The status of a DistillationJob."""
        status: dict[str, Any] = self.get("dj", job).get("status", {})
        return status

    def children(self, job: str, kind: str, stage: str = "") -> list[dict[str, Any]]:
        """A job's children of one kind, of one stage or of all."""
        selector = f"kubedistill.io/job={job}" + (f",kubedistill.io/stage={stage}" if stage else "")
        items: list[dict[str, Any]] = self.get(kind, "", "-l", selector)["items"]
        return items

    def row(self, job: str) -> str:
        """The job's line of `kubectl get dj`."""
        return self("get", "dj", job, "--no-headers").strip()

    def wait(self, job: str, condition: str, timeout_seconds: int) -> None:
        """`kubectl wait`, as a pipeline would."""
        self("wait", f"--for=condition={condition}", f"--timeout={timeout_seconds}s", f"dj/{job}")


def run(command: list[str], kubeconfig: Path, stdin: str | None = None) -> str:
    """A command against the cluster; its output.

    Raises:
        WalkError: it failed.
    """
    done = subprocess.run(
        command,
        input=stdin,
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, "KUBECONFIG": str(kubeconfig)},
    )
    if done.returncode:
        raise WalkError(f"`{' '.join(command[:6])} …` failed:\n{done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def until(what: str, ask: Callable[[], Any], timeout_seconds: float, every_seconds: float = 1.0) -> Any:
    """The first true answer.

    Raises:
        WalkError: none came in time.
    """
    end = time.monotonic() + timeout_seconds
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > end:
            raise WalkError(f"waited {timeout_seconds:.0f} s in vain: {what}")
        time.sleep(every_seconds)
