"""Cross-entropy on the text the teacher wrote."""

from __future__ import annotations

from kubedistill_trainer.core.signals import Logprobs, LossSum, Supervision


def cross_entropy(student: Logprobs, supervision: Supervision) -> LossSum:
    """-log q(written token), summed. In expectation over the teacher's samples: its entropy plus the forward KL."""
    return LossSum(-student.target_N.sum(), len(supervision))
