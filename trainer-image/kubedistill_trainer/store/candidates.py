"""How a shard keeps a teacher's candidates: in the order and at the precision that compress. Pure.

Order. The likeliest stands first, so that it stays the likeliest where rounding makes two equal; the others follow by
id. Sorted ids have alike upper bytes, which zstd finds; sorted by logprob, as teachers give them, they are noise.

Precision. A logprob moves to the nearest of 233 levels: steps of 1/32 down to -2, then 32 steps in each octave.
So a logprob moves by e with |e| <= max(1, -logprob) / 64: the less mass, the further. What that does to a divergence is
of second order. `TopK.from_storage` takes the candidates back to what the tail, which is exact, leaves over: among them
the stored distribution is p' with p'_i ~ p_i exp(e_i), and

    KL(p || p') = log E_p[exp e] - E_p[e],  about  Var_p(e) / 2  <=  E_p[max(1, log^2 p)] / 8192,

below (1 + log^2(K + 1)) / 8192 nats: 0.0016 at K = 32. On a real teacher's answers it is 0.0001 (docs/benchmarks.md).
233 levels, because the indices of a dictionary of up to 256 are whole bytes: of narrower ones zstd sees nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kubedistill_trainer.core.floors import LOGPROB_FLOOR

FINE = 5
"""Binary digits after the point above -2."""

Ids = npt.NDArray[np.int32]
Logprobs = npt.NDArray[np.float16]


def kept(ids_NK: Ids, logprobs_NK: Logprobs) -> tuple[Ids, Logprobs]:
    """Candidates as a shard keeps them. What was kept once is kept as it is."""
    order_NK = _order(ids_NK, logprobs_NK)
    return (
        np.take_along_axis(ids_NK, order_NK, axis=1),
        rounded(np.take_along_axis(logprobs_NK, order_NK, axis=1)),
    )


def rounded(logprobs_NK: npt.NDArray[np.floating]) -> Logprobs:
    """Each logprob on its nearest level. Order is kept, but for those that become equal."""
    exact_NK = np.clip(logprobs_NK.astype(np.float32), LOGPROB_FLOOR, 0.0)
    octave_NK = np.maximum(np.frexp(exact_NK)[1] - 1, 0)  # 0 above -2, 1 above -4, ...
    step_NK = np.ldexp(np.float32(1), octave_NK - FINE)
    levels_NK: Logprobs = (np.rint(exact_NK / step_NK) * step_NK).astype(np.float16)
    return levels_NK


def _order(ids_NK: Ids, logprobs_NK: Logprobs) -> npt.NDArray[np.int64]:
    if not ids_NK.size:  # of nothing there is no argmax
        return np.zeros(ids_NK.shape, dtype=np.int64)
    keys_NK = ids_NK.copy()
    np.put_along_axis(keys_NK, logprobs_NK.argmax(axis=1)[:, None], np.iinfo(np.int32).min, axis=1)
    return np.argsort(keys_NK, axis=1)
