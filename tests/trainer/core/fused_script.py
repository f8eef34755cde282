"""The chunked loss with Triton's kernels and without, on a CPU: `TRITON_INTERPRET=1 fused_script.py`, by test_fused.

Prints, for each head and type, the largest relative difference of values and of gradients.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor

from kubedistill_api.training import Objective
from kubedistill_trainer.core import fused
from kubedistill_trainer.core.chunked import chunked_loss, student_view
from kubedistill_trainer.core.head import Head
from kubedistill_trainer.core.losses import loss_of
from kubedistill_trainer.core.signals import NO_TOKEN, Supervision, TopK, top_k

N, V, H, K = 5, fused.BLOCK + 77, 8, 6
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias_V": torch.linspace(-1, 1, V)},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 3.0},
    "all": {"bias_V": torch.linspace(-1, 1, V), "scale": 1.7, "softcap": 5.0},
}


def learn(dtype: torch.dtype, options: dict[str, Any]) -> list[Tensor]:
    """Value, what evaluation reads, and gradients."""
    draw = torch.Generator().manual_seed(0)
    bias = options.get("bias_V")
    leaves = [torch.randn(N, H, generator=draw).to(dtype), torch.randn(V, H, generator=draw).to(dtype)]
    leaves += [] if bias is None else [bias.clone()]
    for leaf in leaves:
        leaf.requires_grad_()
    targets_N = torch.randint(V, (N,), generator=draw)
    signal = top_k(3 * torch.randn(N, V, generator=draw), targets_N, K)
    ids_NK = signal.ids_NK.clone()
    ids_NK[0, K // 2 :] = NO_TOKEN
    supervision = Supervision(targets_N, TopK(ids_NK, signal.logprobs_NK, signal.tail_N, signal.target_N))
    head = Head(leaves[1], **{**options, **({} if bias is None else {"bias_V": leaves[2]})})
    loss = loss_of(Objective(type="ForwardKL", soft_weight=0.6), sampled_tail=False)
    total = chunked_loss(leaves[0], head, supervision, loss, chunk_bytes=2 * V * 4).total
    view = student_view(leaves[0], head, supervision)
    return [total.detach(), view.logprobs.tail_N, view.top_ids_N.float(), *torch.autograd.grad(total, leaves)]


def main() -> None:
    found = {}
    for dtype in (torch.float32, torch.float16):
        for name, options in HEADS.items():
            os.environ["TRITON_INTERPRET"] = "1"
            ours = learn(dtype, options)
            del os.environ["TRITON_INTERPRET"]
            theirs = learn(dtype, options)
            found[f"{dtype} {name}"] = [
                float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(ours, theirs, strict=True)
            ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
