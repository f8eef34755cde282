"""Where the local runner keeps things."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = ".kubedistill"


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job: `<root>/jobs/<name>`."""

    root: Path
    name: str

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.root / "jobs" / self.name

    @property
    def lock(self) -> Path:
        """Held by the runner that works here."""
        return self.path / "lock"

    @property
    def record(self) -> Path:
        """Identity and status of the job."""
        return self.path / "status.json"

    @property
    def children(self) -> Path:
        """What the runner made: the local counterpart of the API server's store."""
        return self.path / "children.json"

    @property
    def workspace(self) -> Path:
        """The workspace of jobs that name none."""
        return self.path / "workspace"

    @property
    def scratch(self) -> Path:
        """May be lost: downloads and caches of the stages."""
        return self.path / "scratch"

    @property
    def claims(self) -> Path:
        """`pvc://claim/path` is a folder in here; shared by all jobs."""
        return self.root / "claims"

    def log(self, pod: str) -> Path:
        """The log of one pod: of one stage, attempt and index."""
        return self.path / "logs" / f"{pod}.log"

    def pod(self, pod: str) -> Path:
        """Run file and result of one pod."""
        return self.path / "pods" / pod


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader, or the next start after a crash, finds the old or the new text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def job_folders(root: Path) -> list[JobFolder]:
    """Every job that ran here, newest first."""
    found = [JobFolder(root, path.parent.name) for path in root.glob("jobs/*/status.json")]
    return sorted(found, key=lambda folder: folder.record.stat().st_mtime, reverse=True)
