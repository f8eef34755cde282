"""Estimates against numbers that were published or measured elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from kubedistill_api.output import Format, GgufType
from kubedistill_api.training import Precision
from kubedistill_trainer.core.estimates import (
    FOUR_BITS,
    GIB,
    RUNTIME_BYTES,
    ModelShape,
    TrainingPlan,
    activation_bytes,
    generation_gpu_hours,
    kv_cache_bytes,
    model_state_bytes,
    published_bytes,
    publishing_bytes,
    student_bytes,
    teacher_bytes,
    tokens_to_generate,
    training_gpu_hours,
)

LLAMA_8B = ModelShape(
    parameters=8_030_261_248,
    layer_parameters=218_112_000,
    layers=32,
    hidden=4096,
    kv_heads=8,
    head_dim=128,
    vocabulary=128_256,
    layer_linear=218_103_808,
    layer_features=81_920,
)
PLAN = TrainingPlan(
    world_size=64,
    zero_stage=0,
    precision=Precision.BF16,
    micro_batch=1,
    sequence_length=4096,
    gradient_checkpointing=True,
)
ZERO_PAPER = replace(LLAMA_8B, parameters=7_500_000_000)


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_model_states_are_those_of_figure_1_of_the_zero_paper(stage, gigabytes):
    """7.5 billion parameters on 64 devices."""
    assert model_state_bytes(ZERO_PAPER, replace(PLAN, zero_stage=stage)) / 1e9 == pytest.approx(gigabytes, rel=0.02)


def test_float32_needs_as_much_state_as_half_precision_with_its_copy():
    assert model_state_bytes(ZERO_PAPER, replace(PLAN, precision=Precision.FP32)) == 16 * ZERO_PAPER.parameters


def test_adapters_save_gradients_and_state_but_not_weights():
    plan = replace(PLAN, adapter_rank=16)
    assert model_state_bytes(LLAMA_8B, plan) == 2 * LLAMA_8B.parameters + 16 * LLAMA_8B.adapter_parameters(16)


def test_four_bits_are_those_of_the_qlora_paper_and_leave_embeddings_and_head_alone():
    """Section 3: double quantisation takes the constants from 0.5 to 0.127 bits a parameter."""
    assert pytest.approx(4.127, abs=5e-4) == 8 * FOUR_BITS
    plan = replace(PLAN, adapter_rank=16)
    saved = model_state_bytes(LLAMA_8B, plan) - model_state_bytes(LLAMA_8B, replace(plan, four_bits=True))
    assert saved == pytest.approx((2 - FOUR_BITS) * 32 * 218_103_808, abs=1)


@pytest.mark.parametrize("rank", [4, 16])
def test_adapters_have_as_many_parameters_as_peft_makes(rank):
    options = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
               "num_key_value_heads": 2, "num_hidden_layers": 3}  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**options))
        shape = ModelShape.of(model)
        adapted = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear"))
    assert shape.adapter_parameters(rank) == adapted.get_nb_trainable_parameters()[0]


def test_what_is_offloaded_does_not_count():
    plan = replace(PLAN, zero_stage=3, world_size=1, offload_optimizer=True, offload_parameters=True)
    assert model_state_bytes(ZERO_PAPER, plan) == 2 * ZERO_PAPER.parameters


def test_a_cache_of_one_llama_3_context_is_a_gibibyte():
    """8,192 tokens x 128 KiB: the figure that vLLM reports for this model."""
    assert kv_cache_bytes(LLAMA_8B, 8192) == GIB


def test_a_teacher_is_spread_over_its_devices():
    one, four = (teacher_bytes(LLAMA_8B, 8192, devices) for devices in (1, 4))
    assert one == 2 * LLAMA_8B.parameters + GIB + RUNTIME_BYTES
    assert four - RUNTIME_BYTES == pytest.approx((one - RUNTIME_BYTES) / 4, abs=1)


def test_checkpointing_saves_most_of_the_activations():
    kept = activation_bytes(LLAMA_8B, replace(PLAN, gradient_checkpointing=False))
    assert kept == 34 * 4096 * 4096 * 32
    assert activation_bytes(LLAMA_8B, PLAN) < kept / 10


@pytest.mark.parametrize(
    "more",
    [{"micro_batch": 2}, {"sequence_length": 8192}, {"world_size": 8, "zero_stage": 2}, {"precision": Precision.FP32}],
    ids=["larger-micro-batch", "longer-rows", "fewer-devices", "wider-numbers"],
)
def test_a_heavier_plan_needs_more(more):
    plan = replace(PLAN, zero_stage=2)
    assert student_bytes(LLAMA_8B, replace(plan, **more)) > student_bytes(LLAMA_8B, plan)


def test_the_shape_is_read_off_a_model_without_weights_and_follows_pruning():
    options = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
               "num_key_value_heads": 2, "tie_word_embeddings": True}  # fmt: skip
    with torch.device("meta"):
        whole = ModelShape.of(LlamaForCausalLM(LlamaConfig(num_hidden_layers=5, **options)))
        small = ModelShape.of(LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **options)))
    assert (whole.layers, whole.hidden, whole.kv_heads, whole.head_dim, whole.vocabulary) == (5, 32, 2, 8, 64)
    assert whole.pruned(2) == small
    assert whole.layer_linear == 32 * (32 + 16 + 16 + 32) + 3 * 32 * 48
    assert whole.layer_features == 64 + 48 + 48 + 64 + 3 * 80


def test_tokens_are_an_upper_bound():
    assert tokens_to_generate(rows=1000, samples_per_prompt=2, max_tokens=512) == 1_024_000


def test_hours_grow_with_tokens_and_with_computing_twice():
    assert training_gpu_hours(LLAMA_8B, 10**9, gradient_checkpointing=False) == pytest.approx(95.6, rel=0.01)
    assert training_gpu_hours(LLAMA_8B, 10**9, gradient_checkpointing=True) == pytest.approx(127.5, rel=0.01)
    assert generation_gpu_hours(LLAMA_8B, 10**9) == pytest.approx(148.7, rel=0.01)


SMOLLM2_135M = replace(LLAMA_8B, parameters=134_515_008)


@pytest.mark.parametrize(
    ("form", "gguf_type", "measured"),
    [
        (Format.GGUF, GgufType.BF16, 270_885_792),
        (Format.GGUF, GgufType.Q8_0, 144_810_912),
        (Format.ONNX, GgufType.BF16, 538_060_032 + 326_353),
    ],
)
def test_files_are_as_large_as_their_weights(form: Format, gguf_type: GgufType, measured: int) -> None:
    """Measured with SmolLM2-135M; a GGUF file has the tokenizer in it, too."""
    assert published_bytes(SMOLLM2_135M, form, gguf_type) == pytest.approx(measured, rel=0.015)


@pytest.mark.parametrize(("form", "peak_mebibytes"), [(Format.GGUF, 1669), (Format.ONNX, 2303)])
def test_publishing_needs_what_was_measured_and_hardly_more(form: Format, peak_mebibytes: int) -> None:
    assert 1.0 <= publishing_bytes(SMOLLM2_135M, [Format.MERGED, form]) / (peak_mebibytes * 2**20) <= 1.2


def test_copying_needs_no_memory_for_weights() -> None:
    assert publishing_bytes(SMOLLM2_135M, [Format.MERGED, Format.ADAPTER]) == publishing_bytes(
        LLAMA_8B, [Format.MERGED, Format.ADAPTER]
    )
