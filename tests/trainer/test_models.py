"""Models as they come out of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kubedistill_trainer.models import at_ease


class Weights(nn.Linear):
    """As much of a model as matters here."""

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype


@pytest.mark.parametrize(
    ("dtype", "flags"),
    [(torch.bfloat16, {"avx512_bf16", "amx_bf16", "bf16"}), (torch.float16, {"avx512_fp16", "amx_fp16", "asimdhp"})],
)
def test_half_precision_stays_where_the_cpu_computes_in_it(dtype: torch.dtype, flags: set[str]) -> None:
    """What the kernel says of the CPU decides."""
    native = flags & set(Path("/proc/cpuinfo").read_text().split())
    assert at_ease(Weights(2, 2, dtype=dtype)).dtype is (dtype if native else torch.float32)


def test_float32_stays_and_a_gpu_is_left_alone() -> None:
    assert at_ease(Weights(2, 2)).dtype is torch.float32
    assert at_ease(Weights(2, 2, dtype=torch.bfloat16, device="meta")).dtype is torch.bfloat16
