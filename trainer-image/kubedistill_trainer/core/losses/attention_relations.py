"""Attention-relation matching: how the tokens of a row resemble each other to the student, and to the teacher.

MiniLMv2, Wang et al. 2021 (arXiv:2012.15828). The queries of a layer, all heads in one line, are cut anew into A
relation heads of size d; likewise its keys and its values. Each makes a distribution over the tokens up to a position,

    R = softmax(X X^T / sqrt(d)), causal,

and the loss is the mean, over the three and over the A heads, of KL(R_teacher || R_student), summed over the counted
positions. Numbers of heads and widths may differ between student and teacher. Layers need no map, since only the last
one of each is compared (as in MiniLM, arXiv:2002.10957), and nothing new is learned.

The vectors are what the projections give, before rotary positions. Relations cost A x length^2; they are made for a
block of positions at a time and made again on the way back, so that no more than a block is ever held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kubedistill_trainer.core.signals import LossSum

BLOCK_ELEMENTS = 2**24
"""Entries of the relations of one block: 64 MiB in float32."""


class Vectors(NamedTuple):
    """What the last attention's projections give for all B x T positions, each [B T, its width]."""

    queries: Tensor
    keys: Tensor
    values: Tensor

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(each.shape[-1] for each in self)


class Span(NamedTuple):
    """One row of a micro batch among its B x T positions."""

    start: int
    stop: int
    counted_n: Tensor
    """Its counted positions, from 0 at its start."""


def relation_heads(student: Sequence[int], teacher: Sequence[int], at_most: int) -> int:
    """A: the largest number of heads, no more than `at_most`, that cuts all widths of both evenly."""
    common = math.gcd(*student, *teacher)
    return max(heads for heads in range(1, min(common, at_most) + 1) if common % heads == 0)


def attention_relations(
    student: Vectors, teacher: Vectors, spans: Sequence[Span], heads: int, *, block_elements: int = BLOCK_ELEMENTS
) -> LossSum:
    """The loss over the counted positions of all rows; a row sees itself only."""
    total = torch.zeros((), dtype=_precise(student.queries), device=student.queries.device)
    for span in spans:
        rows = slice(span.start, span.stop)
        longest = max(1, block_elements // (heads * (span.stop - span.start)))
        for block_n in torch.split(span.counted_n, longest):
            for ours, theirs in zip(student, teacher, strict=True):
                part: Tensor = checkpoint(
                    _divergence, ours[rows], theirs[rows].detach(), block_n, heads, use_reentrant=False
                )
                total = total + part / (heads * len(student))
    return LossSum(total, sum(len(span.counted_n) for span in spans))


def _divergence(student_TD: Tensor, teacher_TD: Tensor, block_n: Tensor, heads: int) -> Tensor:
    """KL(teacher || student) of the relations of one kind, summed over heads and the positions of a block."""
    with torch.autocast(student_TD.device.type, enabled=False):
        future_nT = torch.arange(len(student_TD), device=block_n.device) > block_n[:, None]
        p_AnT, q_AnT = (_log_relations(each, block_n, future_nT, heads) for each in (teacher_TD, student_TD))
        return (p_AnT.exp() * (p_AnT - q_AnT)).masked_fill(future_nT, 0.0).sum()


def _log_relations(vectors_TD: Tensor, block_n: Tensor, future_nT: Tensor, heads: int) -> Tensor:
    """[A, n, T]; what lies ahead of a position gets no mass, and 0 in place of -inf."""
    split_ATd = vectors_TD.to(_precise(vectors_TD)).view(len(vectors_TD), heads, -1).transpose(0, 1)
    scores_AnT = split_ATd[:, block_n] @ split_ATd.transpose(1, 2) / math.sqrt(split_ATd.shape[-1])
    return scores_AnT.masked_fill(future_nT, -torch.inf).log_softmax(-1).masked_fill(future_nT, 0.0)


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
