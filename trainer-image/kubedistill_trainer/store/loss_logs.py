"""`losses.jsonl`: one line for each optimizer step, and one for each look at the held-out answers.

    {"step": 12, "loss": 1.84, "lr": 0.0005, "tokens": 1630, "targets": 702, "parts": {"ForwardKL": 1.71, ...}}
    {"step": 12, "validation_loss": 1.92, "targets": 3310}

Losses are means over the targets of the step, in nats; `parts` are the unweighted terms of the objective.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kubedistill_trainer.store.workspace import Workspace

NAME = "losses.jsonl"


class LossLog:
    """The losses of one training. Lines are appended as they come; on a file system anybody may follow them."""

    def __init__(self, workspace: Workspace, folder: str, scratch: Path) -> None:
        self._workspace = workspace
        self._name = f"{folder}/{NAME}"
        self._direct = workspace.local_path(self._name)
        self.path = self._direct or scratch / NAME

    def rewind(self, step: int, validated_step: int) -> None:
        """Forget what came after `step`, and looks at the held-out answers after `validated_step`: it will come again.

        A look may be in the log and not yet in the checkpoint of its step. A line cut short by a crash goes, too.
        """
        if self._direct is None and self._workspace.exists(self._name):
            self._workspace.fetch(self._name, self.path)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if 0 < _step(line) <= (validated_step if '"validation_loss"' in line else step)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f".{NAME}")
        draft.write_text("".join(f"{line}\n" for line in kept))
        draft.replace(self.path)

    def append(self, **values: Any) -> None:
        """Add one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(values, separators=(", ", ": ")) + "\n")

    def upload(self) -> None:
        """Bring the file to where the workspace is, if that is elsewhere."""
        if self._direct is None and self.path.exists():
            self._workspace.put(self.path, self._name)


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0
