"""One file per loss. A loss takes the student's `Logprobs` and the `Supervision` and returns a `LossSum`.

Law of this package: additive over positions, no masks (only counted positions come in), no clamps inside a
divergence (they turn gradients around), no division (see `LossSum`), and the teacher's tail is never left out.
"""

from kubedistill_trainer.core.losses.cross_entropy import cross_entropy
from kubedistill_trainer.core.losses.forward_kl import forward_kl_bucket, forward_kl_sampled
from kubedistill_trainer.core.losses.jensen_shannon import jensen_shannon_bucket, jensen_shannon_sampled
from kubedistill_trainer.core.losses.objectives import Loss, loss_of, mixed
from kubedistill_trainer.core.losses.reverse_kl import reverse_kl_bucket
from kubedistill_trainer.core.losses.skew_kl import skew_kl_bucket, skew_kl_sampled

__all__ = [
    "Loss",
    "cross_entropy",
    "forward_kl_bucket",
    "forward_kl_sampled",
    "jensen_shannon_bucket",
    "jensen_shannon_sampled",
    "loss_of",
    "mixed",
    "reverse_kl_bucket",
    "skew_kl_bucket",
    "skew_kl_sampled",
]
