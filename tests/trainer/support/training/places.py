"""Workspaces that trainings of tests run in."""

from __future__ import annotations

from pathlib import Path


def lay_out(answers: Path, folder: Path) -> None:
    """A workspace that is new but for the answers."""
    folder.mkdir(exist_ok=True)
    for part in ("prepared", "answers"):
        if not (folder / part).exists():
            (folder / part).symlink_to(answers / part)
