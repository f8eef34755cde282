"""A frozen student in four bits, for adapters to learn on (Dettmers et al. 2023, "QLoRA"), by bitsandbytes.

Linear layers are held as NF4 in blocks of 64, whose scales are held in 8 bits (double quantisation). Embeddings, norms
and the output layer stay in the precision of the training: the loss reads the output layer's weight. Nothing in four
bits is ever saved: the base is made anew of the student's own weights, and equal weights give equal bits.
"""

from __future__ import annotations

import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kubedistill_trainer.errors import BadConfiguration
from kubedistill_trainer.models import load_model

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it misses a kernel that it would download


def load(path: Path, dtype: torch.dtype, device: str) -> Any:
    """The causal language model of a local folder on `device`, its linear layers in four bits, computing in `dtype`.

    Raises:
        NotFound: as `load_model`.
        BadConfiguration: this machine cannot compute with four bits.
    """
    from transformers import BitsAndBytesConfig

    check_device(device)
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = load_model(path, dtype, device, how)
    for layer in layers(model):
        # Else, on a CPU with AVX512-BF16, a look without gradients packs the weights for good, after which no gradient
        # flows through them, without an error.
        layer.support_avx512bf16_for_cpu = False
    return model


def layers(model: nn.Module) -> list[Any]:
    """The layers that are held in four bits."""
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def check_device(device: str) -> None:
    """Take a layer in four bits forward and backward on `device`.

    Raises:
        BadConfiguration: bitsandbytes is missing, or does not compute there.
    """
    try:
        import bitsandbytes

        layer = bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4").to(device)
        layer(torch.ones(2, 64, device=device, requires_grad=True)).sum().backward()
    except torch.OutOfMemoryError:
        raise
    except (ImportError, RuntimeError, NotImplementedError) as error:
        text = " ".join(str(error).split())[:300].rstrip(".")
        raise BadConfiguration(
            "FourBitsUnsupported",
            f"QLoRA computes with bitsandbytes, which does not work here on the device {device}: {text}. Write "
            "student.adapter.type: LoRA, or use an image with a bitsandbytes for this device.",
        ) from error


def check_device_apart(device: str) -> None:
    """The same in a process of its own, for one that only starts those who train: whoever has computed on a GPU holds
    hundreds of MiB of it for as long as it lives.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        if refusal := process.submit(_refusal, device).result():
            raise BadConfiguration(*refusal)


def _refusal(device: str) -> tuple[str, str] | None:
    """In parts: the error itself cannot be pickled."""
    try:
        check_device(device)
    except BadConfiguration as error:
        return error.reason, error.message
    return None
