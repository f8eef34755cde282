"""How the rows of a step become micro batches: who takes which, and how they lie in one tensor.

The loss of a step is a sum over its rows divided once, so any split gives the same gradient. That leaves the split
free to be a fast one: rows of similar length together, all ranks about equally busy.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kubedistill_trainer.core.signals import Supervision, TeacherSignal, Text, TopK
from kubedistill_trainer.core.targets import shift


@dataclass(frozen=True)
class Example:
    """One row, ready to train on. `teacher` has one row for each true entry of the mask, in order."""

    row_id: str
    input_ids_T: Tensor
    target_mask_T: Tensor
    teacher: TeacherSignal

    @property
    def targets(self) -> int:
        return int(self.target_mask_T.sum())


@dataclass(frozen=True)
class MicroBatch:
    """Some rows as a model takes them: packed into one line without padding, or padded to one length."""

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    """Restarts at 0 with every row, so that a row is encoded as if it were alone."""
    attention_mask_BT: Tensor | None
    """1 at real tokens. None if packed: there is no padding, and the borders are in `cu_seqlens`."""
    cu_seqlens: Tensor | None
    """int32 borders of the packed rows: 0, l1, l1 + l2, ... None if padded."""
    longest: int
    positions_N: Tensor
    """Where the logits of the targets stand, as an index into the B x T positions."""
    supervision: Supervision
    row_ids: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Positions the model computes, padding included."""
        return self.input_ids_BT.numel()

    def counted(self, hidden_BTH: Tensor) -> Tensor:
        """The hidden states of the counted positions, [N, H]: all that the head needs to see."""
        return hidden_BTH.flatten(0, 1)[self.positions_N]

    def model_inputs(self) -> dict[str, Tensor | int | bool | None]:
        """Keyword arguments for a transformers model; the borders under the names that its attentions know."""
        inputs: dict[str, Tensor | int | bool | None] = {
            "input_ids": self.input_ids_BT,
            "position_ids": self.position_ids_BT,
            "attention_mask": self.attention_mask_BT,
            "use_cache": False,
        }
        if self.cu_seqlens is not None:
            borders = {"cu_seq_lens_q": self.cu_seqlens, "cu_seq_lens_k": self.cu_seqlens}
            inputs |= {**borders, "max_length_q": self.longest, "max_length_k": self.longest}
        return inputs

    def to(self, device: torch.device | str) -> MicroBatch:
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return MicroBatch(
            self.input_ids_BT.to(device, non_blocking=True),
            self.position_ids_BT.to(device, non_blocking=True),
            move(self.attention_mask_BT),
            move(self.cu_seqlens),
            self.longest,
            self.positions_N.to(device, non_blocking=True),
            self.supervision.to(device),
            self.row_ids,
        )


def split(lengths: Sequence[int], world_size: int, micro_batch: int) -> list[list[tuple[int, ...]]]:
    """Deal the rows of a step: `split(...)[rank][turn]` are indices into `lengths`.

    Every rank gets the same number of turns (collectives need that), each of `micro_batch` rows. Rows are dealt by
    length, longest first, so that those of one turn are alike on all ranks and memory is tried at its worst at once.
    What a turn holds depends on `world_size x micro_batch` alone. Its micro batches get about equally many tokens, for
    ZeRO-2 and 3 wait for each other in every turn; the largest goes to the rank that has had the fewest so far, for
    the others wait once a step.

    Raises ValueError unless the rows fill whole micro batches on every rank.
    """
    per_turn = world_size * micro_batch
    if not lengths or len(lengths) % per_turn:
        raise ValueError(f"{len(lengths)} rows do not fill micro batches of {micro_batch} on {world_size} ranks")
    by_length = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    ranks: list[list[tuple[int, ...]]] = [[] for _ in range(world_size)]
    tokens = [0] * world_size
    for start in range(0, len(by_length), per_turn):
        micro_batches = _even(by_length[start : start + per_turn], lengths, world_size)
        least_first = sorted(range(world_size), key=lambda rank: tokens[rank])
        for rank, rows in zip(least_first, micro_batches, strict=True):
            ranks[rank].append(rows)
            tokens[rank] += sum(lengths[row] for row in rows)
    return ranks


def _even(rows: Sequence[int], lengths: Sequence[int], parts: int) -> list[tuple[int, ...]]:
    """Rows, longest first, in parts of equally many rows and about equally many tokens; the largest part comes first.

    Each row goes to the part that has the fewest tokens and room: the longest processing time first (Graham 1969,
    "Bounds on multiprocessing timing anomalies"). Parts differ by no more than the longest row and the shortest.
    """
    room = len(rows) // parts
    held: list[list[int]] = [[] for _ in range(parts)]
    open_parts = [(0, part) for part in range(parts)]  # a heap
    for row in rows:
        tokens, part = heapq.heappop(open_parts)
        held[part].append(row)
        if len(held[part]) < room:
            heapq.heappush(open_parts, (tokens + lengths[row], part))
    return sorted(map(tuple, held), key=lambda part: -sum(lengths[row] for row in part))


def pack(examples: Sequence[Example]) -> MicroBatch:
    """All rows in one line, [1, T]. The attention must heed the borders: see `attention`."""
    lengths = [len(example.input_ids_T) for example in examples]
    starts = [0, *accumulate(lengths)]
    return MicroBatch(
        input_ids_BT=torch.cat([example.input_ids_T for example in examples])[None],
        position_ids_BT=torch.cat([torch.arange(length) for length in lengths])[None],
        attention_mask_BT=None,
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        longest=max(lengths),
        positions_N=_positions(examples, starts),
        supervision=_supervision(examples),
        row_ids=tuple(example.row_id for example in examples),
    )


def pad(examples: Sequence[Example], pad_id: int) -> MicroBatch:
    """One row each, [B, T], filled up at the end. Causal attention from a real token never reaches padding."""
    rows = [example.input_ids_T for example in examples]
    ids_BT = pad_sequence(rows, batch_first=True, padding_value=pad_id)
    longest = ids_BT.shape[1]
    mask_BT = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return MicroBatch(
        input_ids_BT=ids_BT,
        position_ids_BT=torch.arange(longest).repeat(len(rows), 1),
        attention_mask_BT=mask_BT,
        cu_seqlens=None,
        longest=longest,
        positions_N=_positions(examples, range(0, ids_BT.numel(), longest)),
        supervision=_supervision(examples),
        row_ids=tuple(example.row_id for example in examples),
    )


def _positions(examples: Sequence[Example], starts: Sequence[int]) -> Tensor:
    shifted = (shift(example.input_ids_T, example.target_mask_T) for example in examples)
    return torch.cat([each.positions_N + start for each, start in zip(shifted, starts, strict=False)])


def _supervision(examples: Sequence[Example]) -> Supervision:
    shifted = (shift(example.input_ids_T, example.target_mask_T) for example in examples)
    return Supervision(torch.cat([each.target_ids_N for each in shifted]), _signal(examples))


def _signal(examples: Sequence[Example]) -> TeacherSignal:
    signals = [example.teacher for example in examples if isinstance(example.teacher, TopK)]
    if not signals:
        return Text()
    if len(signals) < len(examples):
        raise ValueError("some rows carry the teacher's logprobs and some do not; a batch has one signal")
    return TopK.concatenate(signals)
