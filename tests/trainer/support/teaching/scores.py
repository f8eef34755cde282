"""Whether a teacher's scores are a model's own: token by token, not only value by value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from kubedistill_trainer.store.shards import Signal

ROUNDED = 1 / 64
"""Of a candidate's logprob, or of a nat: how far a shard rounds it (`store/candidates.py`)."""


def check_candidates(signal: Signal, logprobs_NV: Tensor, absolute: float, relative: float = 0.0) -> None:
    """Every candidate carries the model's own logprob of its id, and none that is likelier was left out.

    A logprob may be off by `absolute`, and by `relative` of itself or of a nat. Of tokens that are alike to within
    that, either may be the candidate.
    """
    logprobs_NV = logprobs_NV.float()
    ids_NK = torch.tensor(signal.topk_ids_NK).long()
    said_NK = torch.tensor(signal.topk_logprobs_NK).float()
    assert ids_NK.shape[0] == logprobs_NV.shape[0]
    for ids_K, said_K, own_V in zip(ids_NK, said_NK, logprobs_NV, strict=True):
        named = ids_K >= 0
        ids, said, own = ids_K[named], said_K[named], own_V[ids_K[named]]
        assert len(ids.unique()) == len(ids) > 0
        off = (said - own).abs()
        allowed = absolute + relative * own.abs().clamp(min=1)
        assert (off <= allowed).all(), f"candidates {ids.tolist()} are off by {off.tolist()}"
        left_out = own_V.clone()
        left_out[ids] = -torch.inf
        if len(ids) == len(ids_K):
            assert left_out.max() <= own.min() + allowed.max(), "a likelier token was left out"


def apart(one: Signal, other: Signal, positions: int) -> Iterator[float]:
    """How far two teachers' logprobs of the same ids are apart at their first positions, in nats, or in parts of a
    logprob beyond one nat.

    A candidate that only one of them has is compared with the other's least: it may not be likelier than that.
    """
    for n in range(positions):
        here, there = (
            dict(zip(each.topk_ids_NK[n].tolist(), each.topk_logprobs_NK[n].astype(np.float32).tolist(), strict=True))
            for each in (one, other)
        )
        for mine, theirs in ((here, there), (there, here)):
            least = min(theirs.values())
            for token, logprob in mine.items():
                off = abs(logprob - theirs[token]) if token in theirs else max(0.0, logprob - least)
                yield off / max(1.0, -logprob)
        target = float(one.target_logprob_N[n])
        yield abs(target - float(other.target_logprob_N[n])) / max(1.0, -target)


def in_common(*answers: Sequence[int]) -> int:
    """How many tokens all answers begin with."""
    length = 0
    for tokens in zip(*answers, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length
