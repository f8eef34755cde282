"""What products are computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def product_dtype(tensor: Tensor) -> torch.dtype:
    """What a matrix product of this tensor is computed in: what autocast says, else the tensor's own type."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device) and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return tensor.dtype
