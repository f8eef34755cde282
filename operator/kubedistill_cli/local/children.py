"""What the local runner made: Jobs with their pods, teachers, run files. Written down after every change."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kubedistill_cli.local.folders import write_whole
from kubedistill_operator.core.seen import JobState


class LocalPod(BaseModel):
    """One process, as a pod of a Job or of a teacher. A process that ended for no fault of its own starts again."""

    name: str
    index: int = 0
    pid: int = 0
    started: int = 0
    """Start time of the process in ticks: with the pid its identity."""
    port: int = 0
    created_at: datetime | None = None
    finished_at: datetime | None = None
    exit_code: int | None = None
    failures: int = 0
    """Times it ended badly before."""

    @property
    def alive(self) -> bool:
        """Whether it was started and has not been seen to end."""
        return self.pid != 0 and self.exit_code is None


class LocalChild(BaseModel):
    """One object: its manifest, its identity, and for a Job or a Deployment its pods."""

    manifest: dict[str, Any]
    uid: str
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    state: JobState | None = None
    reason: str = ""
    message: str = ""
    deleting_since: datetime | None = None
    pods: dict[int, LocalPod] = {}
    meeting_port: int = 0
    """Where the pods of this attempt meet, if they need each other."""

    @property
    def kind(self) -> str:
        """Job, Deployment, Service, ConfigMap …"""
        return str(self.manifest["kind"])

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.manifest["metadata"]["name"])

    @property
    def owners(self) -> set[str]:
        """The uids it lives with."""
        return {owner["uid"] for owner in self.manifest["metadata"].get("ownerReferences", [])}

    @property
    def held(self) -> bool:
        """Whether it is a Job that may have no pod yet."""
        return self.kind == "Job" and self.manifest["spec"].get("parallelism") == 0

    @property
    def meets(self) -> bool:
        """Whether it is a Job whose pods need each other: they have a name that the others know."""
        return self.kind == "Job" and "subdomain" in self.manifest["spec"]["template"]["spec"]

    @property
    def container(self) -> dict[str, Any]:
        """The one container of its pods."""
        found: dict[str, Any] = self.manifest["spec"]["template"]["spec"]["containers"][0]
        return found


class Children(BaseModel):
    """All objects of a job, by `Kind/name`."""

    found: dict[str, LocalChild] = {}

    @classmethod
    def load(cls, path: Path) -> Children:
        """What an earlier runner wrote down, or nothing."""
        return cls.model_validate_json(path.read_text()) if path.exists() else cls()

    def save(self, path: Path) -> None:
        """Write all of it down."""
        write_whole(path, self.model_dump_json(indent=1))

    def of(self, kind: str) -> list[LocalChild]:
        """All objects of a kind."""
        return [child for child in self.found.values() if child.kind == kind]

    def get(self, kind: str, name: str) -> LocalChild | None:
        """One object."""
        return self.found.get(f"{kind}/{name}")
