"""How long accepted answers are, without reading what is in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kubedistill_trainer.store.tables import table_of
from kubedistill_trainer.store.workspace import Workspace

ENOUGH = 50_000
"""Answers: a histogram of more looks the same."""


def answer_lengths(workspace: Workspace, folders: Sequence[str], enough: int = ENOUGH) -> list[tuple[int, int]]:
    """Tokens of prompt and answer of each accepted answer, whole shards until there are `enough`."""
    lengths: list[tuple[int, int]] = []
    for path in (path for folder in folders for path in workspace.list(f"{folder}/shards")):
        if len(lengths) >= enough:
            break
        masks = table_of(workspace.read_bytes(path), ["target_mask"]).column(0)
        for mask in masks:
            targets = np.asarray(mask.values.to_numpy(zero_copy_only=False), dtype=bool)
            lengths.append((len(targets) - int(targets.sum()), int(targets.sum())))
    return lengths
