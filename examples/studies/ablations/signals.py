"""Fewer candidates out of many: what Generate would have stored with a smaller K, without asking the teacher again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kubedistill_trainer.core.floors import LOGPROB_FLOOR
from kubedistill_trainer.store.shards import AnswerRow, Signal


def cut(signal: Signal, k: int) -> Signal:
    """The `k` likeliest candidates; the mass of the others goes into the tail. The written token keeps its logprob.

    Stored candidates are rounded, the tail is not. So the candidates are first taken back to what the tail leaves over,
    as `TopK.from_storage` does, and a cut signal is read as the same K + 1 classes that the whole one has.
    """
    if k >= signal.topk_ids_NK.shape[1]:
        return signal
    logprobs_NK = signal.topk_logprobs_NK.astype(np.float64)
    logprobs_NK = np.where(signal.topk_ids_NK < 0, LOGPROB_FLOOR, logprobs_NK)
    tail_N = np.minimum(signal.tail_logprob_N.astype(np.float64), 0.0)
    with np.errstate(divide="ignore"):  # a tail of all the mass leaves the candidates none
        left_N = np.log(-np.expm1(tail_N))
    exact_NK = logprobs_NK + (left_N - _logsumexp(logprobs_NK))[:, None]
    order_NK = np.argsort(-logprobs_NK, axis=1, kind="stable")
    kept_NK, others_NK = order_NK[:, :k], order_NK[:, k:]
    beyond_NK = np.concatenate([np.take_along_axis(exact_NK, others_NK, axis=1), tail_N[:, None]], axis=1)
    return replace(
        signal,
        topk_ids_NK=np.take_along_axis(signal.topk_ids_NK, kept_NK, axis=1),
        topk_logprobs_NK=np.take_along_axis(signal.topk_logprobs_NK, kept_NK, axis=1),
        tail_logprob_N=np.maximum(_logsumexp(beyond_NK), LOGPROB_FLOOR).astype(np.float32),
    )


def with_k(row: AnswerRow, k: int) -> AnswerRow:
    """The row as it would be with `k` candidates. Raises ValueError if it has no candidates."""
    if row.signal is None:
        raise ValueError(f"row {row.row_id} has no candidates")
    return replace(row, signal=cut(row.signal, k))


def _logsumexp(values_NK: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    peak_N1 = np.maximum(values_NK.max(axis=1, keepdims=True), LOGPROB_FLOOR)
    total_N: npt.NDArray[np.float64] = np.exp(values_NK - peak_N1).sum(axis=1)
    with np.errstate(divide="ignore"):
        summed_N: npt.NDArray[np.float64] = np.log(total_N) + peak_N1[:, 0]
    return summed_N
