"""What a teacher tells the student about the tokens it wrote, and what a loss gives back.

A loss never sees a whole vocabulary. At each of N positions it sees the K candidates of the teacher, one class for all
the rest (the tail), and the token that was written. Teacher and student are described in the same terms, so every
loss is a few lines over `[N, K]` tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from kubedistill_trainer.core.floors import LOGPROB_FLOOR

TAIL_FLOOR = math.log(1e-6)
"""The least tail that is believed of what was stored. A server's logprobs are rounded, and 1 - P of them is noise
below. Reverse KL reads log p of the tail, where LOGPROB_FLOOR would pass for a teacher that is certain."""

NO_TOKEN = -1
"""Fills the candidates of a position for which the teacher named fewer than K. It is no token id, so it meets none."""


@dataclass(frozen=True)
class LossSum:
    """A loss summed over `count` targets. Only `mean_over` divides, and by the targets of the whole optimizer step.

    `parts` holds the terms of a mixed objective, each unweighted and detached, for the log.
    """

    total: Tensor
    count: int
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: LossSum) -> LossSum:
        parts = dict(self.parts)
        for name, value in other.parts.items():
            parts[name] = parts[name] + value if name in parts else value
        return LossSum(self.total + other.total, self.count + other.count, parts)

    def mean_over(self, targets: int) -> Tensor:
        """This share of the step's mean loss; `targets` counts the step over all micro batches and all ranks."""
        return self.total / targets


@dataclass(frozen=True)
class Logprobs:
    """The student as a loss sees it: K candidates, the tail and the written token, in nats.

    -inf is a class that holds no token, and nothing else: a filler, or the tail of a whole vocabulary.
    """

    topk_NK: Tensor
    tail_N: Tensor
    target_N: Tensor


@dataclass(frozen=True)
class Text:
    """The teacher said no more than what it wrote."""

    def __getitem__(self, rows: slice | Tensor) -> Text:
        return self

    def candidates(self, target_ids_N: Tensor) -> Tensor:
        return target_ids_N.new_empty(len(target_ids_N), 0)

    def to(self, device: torch.device | str) -> Text:
        return self


@dataclass(frozen=True)
class TopK:
    """The teacher's K likeliest tokens and the rest in one class, at each of N positions; raw, at temperature 1.

    Row n belongs to the n-th *target*: rows are stored by the token they predict. Ids are unique within a row;
    NO_TOKEN fills rows with fewer candidates. No value is -inf: LOGPROB_FLOOR stands for no mass.
    """

    ids_NK: Tensor
    logprobs_NK: Tensor
    tail_N: Tensor
    target_N: Tensor
    """The logprob of the token that was written, whether it is among the candidates or not."""

    @classmethod
    def from_storage(cls, ids_NK: Tensor, logprobs_NK: Tensor, tail_N: Tensor, target_N: Tensor) -> Self:
        """Read what was stored (float16 candidates, float32 tail) as a distribution that sums to one.

        Candidates were rounded: a logprob moves by up to 1/64 of itself or of a nat (`store.candidates`). The tail was
        not, so the candidates are taken back to what it leaves over: the K + 1 classes sum to one, a divergence is
        non-negative again, and what rounding does to it is of second order. (Taking the candidates alone to a sum of
        one would be the well-known bias.) A tail below TAIL_FLOOR counts as TAIL_FLOOR.
        """
        ids_NK = ids_NK.long()
        logprobs_NK = logprobs_NK.float().clamp(min=LOGPROB_FLOOR)
        logprobs_NK = torch.where(ids_NK == NO_TOKEN, LOGPROB_FLOOR, logprobs_NK)
        tail_N = tail_N.float().clamp(min=TAIL_FLOOR, max=0.0)
        left_N = (-torch.expm1(tail_N)).log()  # -inf where the tail is all
        scaled_NK = logprobs_NK + (left_N - logprobs_NK.logsumexp(-1))[:, None]
        return cls(
            ids_NK,
            torch.where(ids_NK == NO_TOKEN, LOGPROB_FLOOR, scaled_NK.clamp(LOGPROB_FLOOR, 0.0)),
            tail_N,
            target_N.float().clamp(min=LOGPROB_FLOOR),
        )

    @classmethod
    def concatenate(cls, signals: Sequence[TopK]) -> Self:
        """The signals of several sequences in one; all must have the same K."""
        return cls(
            torch.cat([signal.ids_NK for signal in signals]),
            torch.cat([signal.logprobs_NK for signal in signals]),
            torch.cat([signal.tail_N for signal in signals]),
            torch.cat([signal.target_N for signal in signals]),
        )

    def __len__(self) -> int:
        return len(self.ids_NK)

    def __getitem__(self, rows: slice | Tensor) -> TopK:
        return TopK(self.ids_NK[rows], self.logprobs_NK[rows], self.tail_N[rows], self.target_N[rows])

    def candidates(self, target_ids_N: Tensor) -> Tensor:
        return self.ids_NK

    def to(self, device: torch.device | str) -> TopK:
        return TopK(
            self.ids_NK.to(device, non_blocking=True),
            self.logprobs_NK.to(device, non_blocking=True),
            self.tail_N.to(device, non_blocking=True),
            self.target_N.to(device, non_blocking=True),
        )


TeacherSignal = Text | TopK


@dataclass(frozen=True)
class Supervision:
    """What the student is held to: the written tokens and what the teacher thought of them, at N positions."""

    target_ids_N: Tensor
    teacher: TeacherSignal

    def __post_init__(self) -> None:
        if isinstance(self.teacher, TopK) and len(self.teacher) != len(self.target_ids_N):
            raise ValueError(
                f"{len(self.target_ids_N)} targets but {len(self.teacher)} rows of teacher logprobs: "
                "rows are joined by sample, one row for each target"
            )

    def __len__(self) -> int:
        return len(self.target_ids_N)

    def __getitem__(self, rows: slice | Tensor) -> Supervision:
        return Supervision(self.target_ids_N[rows], self.teacher[rows])

    @property
    def candidates(self) -> Tensor:
        """The token ids for which a loss needs the student's logprobs; K = 0 for text alone."""
        return self.teacher.candidates(self.target_ids_N)

    def to(self, device: torch.device | str) -> Supervision:
        return Supervision(self.target_ids_N.to(device, non_blocking=True), self.teacher.to(device))


def top_k(logits_NV: Tensor, target_ids_N: Tensor, k: int) -> TopK:
    """The signal of a teacher whose logits are at hand, computed in float32 (or float64, if they are).

    The tail is summed over the tokens outside the top K, not as 1 - P, which cancels to nothing when P is near one.
    Slice the logits to the tokenizer's size first: padded rows of the vocabulary hold real mass.
    """
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    total_N = logits_NV.logsumexp(-1)
    top_NK, ids_NK = logits_NV.topk(min(k, logits_NV.shape[-1]), dim=-1)
    tail_N = logits_NV.scatter(-1, ids_NK, -torch.inf).logsumexp(-1)
    target_N = logits_NV.gather(-1, target_ids_N[:, None]).squeeze(-1)
    return TopK(
        ids_NK,
        (top_NK - total_N[:, None]).clamp(min=LOGPROB_FLOOR),
        (tail_N - total_N).clamp(min=LOGPROB_FLOOR),
        (target_N - total_N).clamp(min=LOGPROB_FLOOR),
    )


def tail_logprob(logprobs: Iterable[float]) -> float:
    """The logarithm of the mass that a server's K logprobs leave over; never below LOGPROB_FLOOR.

    Servers round: the K probabilities may sum to one or a hair more. Then the tail is empty, not negative.
    """
    left = 1.0 - math.fsum(math.exp(logprob) for logprob in logprobs)
    return max(math.log(left), LOGPROB_FLOOR) if left > 0 else LOGPROB_FLOOR
