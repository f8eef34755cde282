"""From a checkpoint to a model that anybody can load: one form, whatever it was trained with.

The untrained student is built again, the trained weights are put into it, adapters are merged, and the result is
saved in bfloat16 with tokenizer, chat template and generation config. Then it is loaded as a user would load it, and
compared weight by weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kubedistill_trainer.models import end_ids

DTYPE = torch.bfloat16


class ExportBroken(Exception):
    """What was saved is not what was trained: a fault of this program or of a disk, never of the user."""


def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put trained weights into a model. Tied weights may come under any of their names.

    Raises ExportBroken unless exactly the weights that were trained are there, each of the right shape.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    unknown = sorted(set(weights) - set(named) - set(dict(model.named_buffers())))
    filled = {id(named[name]) for name in weights if name in named}
    missing = sorted(name for name, weight in named.items() if weight.requires_grad and id(weight) not in filled)
    if unknown or missing:
        raise ExportBroken(f"weights without a place: {unknown[:3]}, places without a weight: {missing[:3]}")
    with torch.no_grad():
        for name, weight in weights.items():
            if name in named:
                if named[name].shape != weight.shape:
                    raise ExportBroken(f"{name} is {tuple(weight.shape)}, not {tuple(named[name].shape)}")
                named[name].copy_(weight)


def save(model: Any, tokenizer: Any, start: Path | None, target: Path) -> None:
    """Save a student (a PeftModel too: its adapters are merged) with everything that it needs to be used.

    `start` is the folder of the model that it came from, for the end tokens that are listed there. With adapters the
    unmerged ones go to `adapter` beside the target. Raises ExportBroken if the saved model is not the given one.
    """
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(target.with_name("adapter"))
        model = model.merge_and_unload()
    model = model.to(DTYPE)
    _set_ends(model, tokenizer, start)
    model.config.use_cache = True
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    _compare(model, target)


def _set_ends(model: Any, tokenizer: Any, start: Path | None) -> None:
    """Generation stops where the chat template ends a turn, and padding is known."""
    ends = end_ids(tokenizer, start)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), None)
    for config in (model.generation_config, model.config):
        if ends:
            config.eos_token_id = ends if len(ends) > 1 else ends[0]
        config.pad_token_id = padding


def _compare(model: nn.Module, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded, report = AutoModelForCausalLM.from_pretrained(str(folder), dtype=DTYPE, output_loading_info=True)
    wrong = {kind: names for kind, names in report.items() if names}
    if wrong:
        raise ExportBroken(f"{folder.name} does not load cleanly: {wrong}")
    here, there = model.state_dict(), loaded.state_dict()
    if set(here) != set(there):
        raise ExportBroken(f"names differ: {sorted(set(here) ^ set(there))[:3]}")
    different = [name for name, weight in here.items() if not torch.equal(weight, there[name])]
    if different:
        raise ExportBroken(f"weights differ after loading: {different[:3]}")
