"""What a student's architecture says about whether it can be trained here, before its weights are fetched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kubedistill_api.training import Hyperparameters
from kubedistill_trainer import four_bits
from kubedistill_trainer.core.head import Head
from kubedistill_trainer.errors import BadConfiguration
from kubedistill_trainer.preparation.looking import Look, without_weights

ATTENTIONS = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers, as configurations name them, in which a packed row stays by itself."""
MOVING_ROPES = ("longrope", "dynamic")
"""Rotary positions whose frequencies change for all rows of a batch as soon as one of them is long."""


def check_student(student: Look, hyper: Hyperparameters) -> None:
    """Whether the training computes this student as its authors meant it.

    Raises:
        BadConfiguration: it does not; the sentence says what to write instead.
    """
    model = without_weights(student.ref, student.config)
    _check_text_only(student, model)
    _check_attention(student, model)
    _check_head(student, model)
    if hyper.packing:
        _check_layers(student, model)
    if hyper.micro_batch_size > 1:
        _check_positions(student, model, hyper.max_sequence_length)


def check_four_bits(student: Look, *, on_gpus: bool) -> None:
    """Whether adapters can be trained on this student in four bits, and merged into its weights afterwards.

    What GPUs can do is seen where they are, in Train: here is none.

    Raises:
        BadConfiguration: they cannot; the sentence says what to write instead.
    """
    if not on_gpus:
        four_bits.check_device("cpu")
    stored: Any = getattr(student.config, "quantization_config", None)
    if stored is not None:
        kind = stored.get("quant_method") if isinstance(stored, Mapping) else getattr(stored, "quant_method", None)
        raise BadConfiguration(
            "StudentQuantized",
            f"The student {student.ref.uri} is stored quantised ({kind}), and adapters are merged into full weights: "
            "write a student.model that is not quantised; QLoRA holds it in four bits while it trains.",
        )


def _check_text_only(student: Look, model: Any) -> None:
    if model.config.get_text_config() is not model.config:
        raise BadConfiguration(
            "StudentNotTextOnly",
            f"The student {student.ref.uri} is a {model.config.model_type!r}, which also takes images or sound: write "
            "a student.model that is text only.",
        )


def _check_attention(student: Look, model: Any) -> None:
    if not model._supports_sdpa:
        raise BadConfiguration(
            "ArchitectureUnsupported",
            f"The student {student.ref.uri} is a {model.config.model_type!r}, whose attention (with sinks, for one) is "
            "not computed here: write another student.model, such as a Llama, Qwen, Mistral, Gemma or Phi.",
        )


def _check_head(student: Look, model: Any) -> None:
    try:
        Head.of(model, len(student.tokenizer))
    except ValueError as error:
        raise BadConfiguration(
            "OutputLayerUnsupported",
            f"The output layer of the student {student.ref.uri} cannot be trained, {error}: write another "
            "student.model.",
        ) from error


def _check_layers(student: Look, model: Any) -> None:
    others = sorted(set(getattr(model.config, "layer_types", None) or ()) - ATTENTIONS)
    if others or getattr(model, "_is_stateful", False):
        kinds = ", ".join(others) or "with a state"
        raise BadConfiguration(
            "PackingUnsupported",
            f"The student {student.ref.uri} has layers ({kinds}) that carry one packed row into the next: write "
            "training.hyperparameters.packing: false.",
        )


def _check_positions(student: Look, model: Any, longest: int) -> None:
    for kind, limit in _moving_ropes(model.config):
        if longest > limit:
            raise BadConfiguration(
                "PositionsUnsupported",
                f"The student {student.ref.uri} encodes positions anew once a row has more than {limit} tokens "
                f"(rope_type {kind}), and would do so to the short rows of a micro batch as well: write "
                f"training.hyperparameters.maxSequenceLength: {limit} or less, or microBatchSize: 1.",
            )


def _moving_ropes(config: Any) -> Iterator[tuple[str, int]]:
    """Kind and limit of each; a configuration has one set of parameters, or one for each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    sets = [each for each in parameters.values() if isinstance(each, Mapping)] or [parameters]
    for each in sets:
        if each.get("rope_type") in MOVING_ROPES:
            yield each["rope_type"], int(each.get("original_max_position_embeddings") or config.max_position_embeddings)
