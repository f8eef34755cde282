"""Which prompts a teacher answers, and in which shard: the same for every worker and every restart. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kubedistill_trainer.core.rows import fraction_of
from kubedistill_trainer.store.rows import SPLITS, PromptRow, Split


@dataclass(frozen=True)
class ShardPlan:
    """One piece of the work, committed as a whole."""

    split: Split
    index: int
    rows: tuple[PromptRow, ...]


def share_of(rows: Sequence[PromptRow], share_from: float, share_to: float) -> list[PromptRow]:
    """The prompts whose hash, as a fraction of 1, falls into [share_from, share_to)."""
    return [row for row in rows if share_from <= fraction_of(row.prompt_hash, "teacher") < share_to]


def plan_shards(rows: Mapping[Split, Sequence[PromptRow]], shards: int) -> list[ShardPlan]:
    """Prompts in at most `shards` pieces of equal size for training, and in as large ones for validation.

    Prompts go by their hash, so a shard is a fair sample of them; within a shard short ones come first, because prompts
    of one length are read together without padding.
    """
    size = max(1, -(-len(rows["train"]) // shards))
    return [
        ShardPlan(split, index, tuple(sorted(piece, key=lambda row: len(row.messages))))
        for split in SPLITS
        for index, piece in enumerate(_pieces(sorted(rows[split], key=lambda row: row.prompt_hash), size))
    ]


def of_worker(plans: Sequence[ShardPlan], worker: int, workers: int) -> list[ShardPlan]:
    """The shards that one worker makes."""
    return list(plans[worker % workers :: workers])


def seed_of(seed: int, row_id: str, sample: int, turn: int) -> int:
    """A request's own seed: the same whenever the same is asked."""
    text = f"{seed}/{row_id}/{sample}/{turn}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _pieces(rows: Sequence[PromptRow], size: int) -> list[Sequence[PromptRow]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
