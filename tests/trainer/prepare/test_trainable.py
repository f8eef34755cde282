"""What an architecture says against being trained here is said in Prepare, with what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toys.architectures import ARCHITECTURES
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    GptOssConfig,
    Lfm2Config,
    LlamaConfig,
    Qwen3NextConfig,
)

from kubedistill_api.teachers import ModelRef
from kubedistill_api.training import Hyperparameters
from kubedistill_trainer.core.estimates import ModelShape
from kubedistill_trainer.errors import BadConfiguration
from kubedistill_trainer.preparation.looking import Look
from kubedistill_trainer.preparation.trainable import check_student

SHAPE = {"vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
IMAGES = Gemma3Config(text_config={**SHAPE, "intermediate_size": 64}, vision_config={"num_hidden_layers": 2})


@pytest.fixture
def student(tiny_tokenizer: Any) -> Any:
    """A model of this configuration, looked at."""

    def of(config: Any) -> Look:
        with torch.device("meta"):
            shape = ModelShape.of(AutoModelForCausalLM.from_config(config))
        return Look("student", ModelRef(uri="file:///m"), Path("/m"), config, shape, None, 0, tiny_tokenizer)

    return of


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_common_architecture_is_taken(architecture: str, student: Any) -> None:
    check_student(student(ARCHITECTURES[architecture](264)), Hyperparameters(max_sequence_length=64))


@pytest.mark.parametrize(
    ("config", "hyper", "reason", "advice"),
    [
        pytest.param(IMAGES, {}, "StudentNotTextOnly", "write a student.model that is text only", id="images"),
        pytest.param(
            GptOssConfig(**SHAPE, num_local_experts=2),
            {},
            "ArchitectureUnsupported",
            "such as a Llama, Qwen, Mistral, Gemma or Phi",
            id="attention sinks",
        ),
        pytest.param(
            Qwen3NextConfig(**SHAPE, num_experts=2, layer_types=["linear_attention", "full_attention"]),
            {},
            "PackingUnsupported",
            "layers (linear_attention) that carry one packed row into the next: write "
            "training.hyperparameters.packing: false",
            id="linear attention",
        ),
        pytest.param(
            Lfm2Config(**SHAPE, num_attention_heads=4, layer_types=["conv", "full_attention"]),
            {},
            "PackingUnsupported",
            "layers (conv)",
            id="convolutions",
        ),
        pytest.param(
            LlamaConfig(**{**SHAPE, "vocab_size": 200}),
            {},
            "OutputLayerUnsupported",
            "the model has 200 output rows",
            id="small head",
        ),
        pytest.param(
            ARCHITECTURES["phi4-mini"](264),
            {"max_sequence_length": 65},
            "PositionsUnsupported",
            "maxSequenceLength: 64 or less, or microBatchSize: 1",
            id="longrope",
        ),
        pytest.param(
            LlamaConfig(**SHAPE, rope_parameters=DYNAMIC, max_position_embeddings=128),
            {"max_sequence_length": 129},
            "PositionsUnsupported",
            "more than 128 tokens (rope_type dynamic)",
            id="dynamic rope",
        ),
    ],
)
def test_what_would_be_computed_wrong_is_refused_with_what_to_write(
    config: Any, hyper: dict[str, Any], reason: str, advice: str, student: Any
) -> None:
    with pytest.raises(BadConfiguration) as refused:
        check_student(student(config), Hyperparameters(**hyper))
    assert refused.value.reason == reason
    assert advice in str(refused.value)


@pytest.mark.parametrize(
    ("config", "hyper"),
    [
        (Lfm2Config(**SHAPE, num_attention_heads=4, layer_types=["conv", "full_attention"]), {"packing": False}),
        (ARCHITECTURES["phi4-mini"](264), {"max_sequence_length": 65, "micro_batch_size": 1}),
    ],
    ids=["padded", "one row at a time"],
)
def test_what_was_advised_is_taken(config: Any, hyper: dict[str, Any], student: Any) -> None:
    check_student(student(config), Hyperparameters(**hyper))


def test_a_teacher_that_takes_images_as_well_has_the_shape_of_its_language_model() -> None:
    with torch.device("meta"):
        shape = ModelShape.of(AutoModelForCausalLM.from_config(IMAGES))
    assert (shape.layers, shape.hidden) == (2, 32)
