"""What an installation decides for all its jobs: images, defaults and patience. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from kubedistill_operator.manifests.base import Defaults


@dataclass(frozen=True)
class Settings(Defaults):
    """One installation's choices. Frozen, so that a plan depends on nothing else."""

    retry_base_seconds: int = 10
    retry_limit_seconds: int = 300
    """The backoff between attempts doubles from the base up to the limit."""
    progress_seconds: int = 15
    """Progress is written at most this often."""
    stall_seconds: int = 7200
    """A training or evaluation that moved nothing for so long is stopped and tried again."""
    max_workers: int = 1000
    """Generate pods of one teacher at most, whatever the spec asks for."""
    local_files: bool = False
    """Whether a `file://` workspace or output means something: with the local runner it does."""
