"""The core on a GPU in half precision, against the same numbers in float64 on the CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kubedistill_api.training import Objective
from kubedistill_trainer.core.attention import packed_attention
from kubedistill_trainer.core.chunked import chunked_loss
from kubedistill_trainer.core.head import Head
from kubedistill_trainer.core.losses import loss_of
from kubedistill_trainer.core.signals import Supervision, top_k

pytestmark = pytest.mark.gpu

LENGTHS = (5, 130, 1, 64)
HEADS, KEYS, SIZE = 8, 2, 64
POSITIONS, VOCABULARY, HIDDEN, K = 300, 32_003, 256, 32
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""Of ||ours - truth|| / ||truth||: the rounding of the inputs' type, a few times over."""


def apart(ours: Tensor, truth: Tensor) -> float:
    return float((ours.double().cpu() - truth).norm() / truth.norm())


@pytest.mark.parametrize(
    "options", [{}, {"sliding_window": 16}, {"softcap": 20.0}], ids=["causal", "window", "softcap"]
)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_packed_attention_is_that_of_each_row_alone(dtype: torch.dtype, options: dict[str, Any]) -> None:
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, heads, sum(LENGTHS), SIZE, generator=draw).to(dtype) for heads in (HEADS, KEYS, KEYS)]
    pull = torch.randn(1, sum(LENGTHS), HEADS, SIZE, generator=draw).to(dtype)
    borders = torch.tensor([0, *LENGTHS]).cumsum(0).int()

    def mixed(device: str, kind: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
        leaves = [part.to(device, kind).requires_grad_() for part in parts]
        packed = {"cu_seq_lens_q": borders.to(device), "max_length_q": max(LENGTHS)}
        out, _ = packed_attention(SimpleNamespace(), *leaves, None, **packed, **options)
        return out, torch.autograd.grad(out, leaves, pull.to(device, kind))

    truth, slopes = mixed("cpu", torch.float64)
    ours, ours_slopes = mixed("cuda", dtype)
    assert ours.dtype == dtype
    assert apart(ours, truth) < TOLERANCE[dtype]
    for slope, exact in zip(ours_slopes, slopes, strict=True):
        assert apart(slope, exact) < 2 * TOLERANCE[dtype]


def test_autocast_reaches_the_attention_of_packed_rows() -> None:
    parts = [torch.randn(1, heads, sum(LENGTHS), SIZE, device="cuda") for heads in (HEADS, KEYS, KEYS)]
    borders = torch.tensor([0, *LENGTHS], device="cuda").cumsum(0).int()
    with torch.autocast("cuda", torch.bfloat16):
        out, _ = packed_attention(SimpleNamespace(), *parts, None, cu_seq_lens_q=borders, max_length_q=max(LENGTHS))
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["CrossEntropy", "ForwardKL", "ReverseKL", "JensenShannon", "SkewKL"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_chunked_loss_of_half_precision_is_near_the_truth(dtype: torch.dtype, kind: str) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(POSITIONS, HIDDEN, generator=draw).to(dtype)
    weight_VH = (torch.randn(VOCABULARY, HIDDEN, generator=draw) / 8).to(dtype)
    logits_NV = 3 * torch.randn(POSITIONS, VOCABULARY, generator=draw)
    targets_N = torch.randint(VOCABULARY, (POSITIONS,), generator=draw)
    supervision = Supervision(targets_N, top_k(logits_NV, targets_N, K))
    soft = {} if kind == "CrossEntropy" else {"soft_weight": 0.6}
    loss = loss_of(Objective(type=kind, **soft), sampled_tail=False)

    def learn(device: str, kind: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
        leaves = (hidden_NH.to(device, kind).requires_grad_(), weight_VH.to(device, kind).requires_grad_())
        few = 64 * VOCABULARY * 4  # several chunks
        total = chunked_loss(leaves[0], Head(leaves[1]), supervision.to(device), loss, chunk_bytes=few).total
        return total, torch.autograd.grad(total, leaves)

    truth, slopes = learn("cpu", torch.float64)
    ours, ours_slopes = learn("cuda", dtype)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(truth.item(), rel=3e-3)
    for slope, exact in zip(ours_slopes, slopes, strict=True):
        assert apart(slope, exact) < TOLERANCE[torch.bfloat16]
