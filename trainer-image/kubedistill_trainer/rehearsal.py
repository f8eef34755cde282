"""A student shows, before it trains, that it is computed here as its authors meant it.

The loss does not go through a model's own forward pass: rows lie packed, the attention is ours, the vocabulary
projection is read off the model. Whatever an architecture does beside that would be left out without a word: a scale on
its logits, a state that flows from one row into the next, an attention that does not hear of the borders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kubedistill_trainer.core import attention
from kubedistill_trainer.core.batching import Example, pack, pad
from kubedistill_trainer.core.chunked import student_view
from kubedistill_trainer.core.head import Head
from kubedistill_trainer.core.signals import Text
from kubedistill_trainer.errors import BadConfiguration

LENGTHS = (7, 5)
"""Tokens of the rows that are tried: two, so that one can disturb the other."""
TOLERANCE = {torch.float32: 0.01, torch.float16: 0.3, torch.bfloat16: 0.3}
"""Nats by which logprobs may differ, a mean over tokens: rounding and no more. A row that sees its neighbour is off by
about as much as its tokens tell of the next one."""


@torch.no_grad()
def rehearse(model: Any, vocabulary: int, *, packing: bool) -> None:
    """Read two short rows together as the training will, and alone as the model itself does.

    Leaves the model with our attention. `vocabulary` is the tokenizer's.

    Raises:
        BadConfiguration: the logprobs differ, or the architecture cannot be computed here.
    """
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(vocabulary, (length,), generator=draw) for length in LENGTHS]
    alone_N = torch.cat([_alone(model, ids_T, vocabulary) for ids_T in rows])
    model.set_attn_implementation(attention.install())
    try:
        together_N = _together(model, rows, vocabulary, packing)
    except ValueError as error:
        raise BadConfiguration("ArchitectureUnsupported", f"{_opening(model)}: {error}. {_ADVICE}") from error
    gap = float((together_N - alone_N).abs().mean())
    if gap > TOLERANCE.get(model.dtype, 0.0):  # weights that are no numbers are left to the loss, which says so
        padded = f"Write training.hyperparameters.packing: false, or {_ADVICE[0].lower()}{_ADVICE[1:]}"
        raise BadConfiguration(
            "ArchitectureUnsupported",
            f"{_opening(model)}: its logprobs in a batch are {gap:.2g} nats from its own. "
            f"{padded if packing else _ADVICE}",
        )


_ADVICE = "Use a student of another architecture, such as Llama, Qwen, Mistral, Gemma or Phi."


def _opening(model: Any) -> str:
    return f"The student's architecture, {model.config.model_type!r}, cannot be trained here"


def _alone(model: Any, ids_T: Tensor, vocabulary: int) -> Tensor:
    """Logprob of each token but the first, by the model's own forward pass."""
    logits_TV: Tensor = model(input_ids=ids_T[None].to(model.device), use_cache=False).logits[0, :-1, :vocabulary]
    found_TV = logits_TV.float().log_softmax(-1).cpu()
    return found_TV.gather(-1, ids_T[1:, None]).squeeze(-1)


def _together(model: Any, rows: Sequence[Tensor], vocabulary: int, packing: bool) -> Tensor:
    """The same logprobs by way of the training's forward pass and the head that its loss uses."""
    examples = [Example(str(row), ids_T, torch.arange(len(ids_T)) > 0, Text()) for row, ids_T in enumerate(rows)]
    batch = (pack(examples) if packing else pad(examples, pad_id=0)).to(model.device)
    hidden_BTH = model.get_decoder()(**batch.model_inputs()).last_hidden_state
    view = student_view(batch.counted(hidden_BTH), Head.of(model, vocabulary), batch.supervision)
    return view.logprobs.target_N.float().cpu()
