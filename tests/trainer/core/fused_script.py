"""The chunked loss with Triton's kernels and without, on a CPU: `TRITON_INTERPRET=1 fused_script.py`, by test_fused.

Prints, for each case, the relative differences of value, tail, and gradients, and whether the first choices are equal.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kubedistill_api.training import Objective
from kubedistill_trainer.core import fused
from kubedistill_trainer.core.chunked import chunked_loss, student_view
from kubedistill_trainer.core.head import Head
from kubedistill_trainer.core.losses import cross_entropy, loss_of
from kubedistill_trainer.core.signals import NO_TOKEN, Supervision, Text, TopK, top_k
from kubedistill_trainer.core.tails import kernels_for

N, H = 6, 8
MORE = fused.BLOCK + 77
"""A vocabulary that is more than one block, and no whole number of them."""


@dataclass(frozen=True)
class Case:
    """What differs from the plain one."""

    vocabulary: int = MORE
    k: int = 6
    """0: text alone."""
    confident: bool = False
    """The student gives the written token nearly all: what cancels must not be rounded before."""
    head: dict[str, Any] = field(default_factory=dict)


CASES = {
    "plain": Case(),
    "confident": Case(confident=True),
    "confident, text": Case(confident=True, k=0),
    "text": Case(k=0),
    "less than a block": Case(vocabulary=50),
    "all are candidates": Case(vocabulary=50, k=50),
    "bias": Case(head={"bias_V": torch.linspace(-1, 1, MORE)}),
    "scale": Case(head={"scale": 0.25}),
    "softcap": Case(head={"softcap": 3.0}),
    "all of a head": Case(head={"bias_V": torch.linspace(-1, 1, MORE), "scale": 1.7, "softcap": 5.0}),
}


def learn(dtype: torch.dtype, case: Case) -> list[Tensor]:
    """First choices, then value, tail, and gradients."""
    draw = torch.Generator().manual_seed(0)
    logits_NV = 3 * torch.randn(N, case.vocabulary, generator=draw)
    targets_N = torch.randint(case.vocabulary, (N,), generator=draw)
    targets_N[::2] = logits_NV[::2].argmax(-1)  # every other written token is a candidate, as nearly all are
    hidden_NH = torch.randn(N, H, generator=draw)
    weight_VH = torch.randn(case.vocabulary, H, generator=draw)
    if case.confident:
        weight_VH *= 0.05
        weight_VH[targets_N] = 16 * hidden_NH / hidden_NH.square().sum(-1, keepdim=True)
    bias_V = case.head.get("bias_V")
    leaves = [hidden_NH.to(dtype), weight_VH.to(dtype)] + ([] if bias_V is None else [bias_V.clone()])
    for leaf in leaves:
        leaf.requires_grad_()
    head = Head(leaves[1], **{**case.head, **({} if bias_V is None else {"bias_V": leaves[2]})})
    supervision = Supervision(targets_N, Text())
    loss = cross_entropy
    if case.k:
        signal = top_k(logits_NV, targets_N, case.k)
        ids_NK = signal.ids_NK.clone()
        ids_NK[0, case.k // 2 :] = NO_TOKEN
        supervision = Supervision(targets_N, TopK(ids_NK, signal.logprobs_NK, signal.tail_N, signal.target_N))
        loss = loss_of(Objective(type="ForwardKL", soft_weight=0.6), sampled_tail=False)
    total = chunked_loss(leaves[0], head, supervision, loss, chunk_bytes=2 * case.vocabulary * 4).total
    view = student_view(leaves[0], head, supervision)
    tail_N = view.logprobs.tail_N.exp()  # -inf where all are candidates
    return [view.top_ids_N, total.detach(), tail_N, *torch.autograd.grad(total, leaves)]


def gap(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp(min=1e-6))


def main() -> None:
    found = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for name, case in CASES.items():
            os.environ["TRITON_INTERPRET"] = "1"
            assert kernels_for(torch.device("cpu"), dtype) is fused
            first, *ours = learn(dtype, case)
            del os.environ["TRITON_INTERPRET"]
            choice, *theirs = learn(dtype, case)
            gaps = [gap(a, b) for a, b in zip(ours, theirs, strict=True)]
            found[f"{dtype} {name}"] = {"gaps": gaps, "same": first.equal(choice)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
