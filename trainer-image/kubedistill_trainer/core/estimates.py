"""What a job will need, before anything expensive starts. Estimates err on the high side; each names its source."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from kubedistill_api.output import Format, GgufType
from kubedistill_api.training import Precision
from kubedistill_trainer.core.chunked import CHUNK_BYTES
from kubedistill_trainer.core.pruning import decoder_layers

GIB = 2**30
RUNTIME_BYTES = 2 * GIB
"""CUDA context, communication buffers and fragmentation of one process on a GPU; measured 1 to 2 GiB."""
PUBLISH_BYTES = GIB
"""The program of Publish with torch; measured 0.9 GiB."""
TRAINING_FLOPS = 140e12
"""What a GPU of the A100/H100 class gives in training at an ordinary utilisation of 35-40 % (A100: 312e12 peak)."""
GENERATION_FLOPS = 30e12
"""The same in batched decoding, which waits for memory: a tenth of the peak."""
FOUR_BITS = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes of a weight in NF4: a scale of 8 bits for 64 weights, and one of 32 bits for 256 of these scales (Dettmers et
al. 2023, "QLoRA", section 3)."""


@dataclass(frozen=True)
class ModelShape:
    """What memory depends on, from a model's config."""

    parameters: int
    layer_parameters: int
    """Of one decoder layer."""
    layers: int
    hidden: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    layer_linear: int = 0
    """Of the parameters of one decoder layer, the weights of its linear layers."""
    layer_features: int = 0
    """Inputs and outputs of these linear layers, added up."""

    def adapter_parameters(self, rank: int) -> int:
        """Of adapters on all linear layers: two factors each, rank x inputs and outputs x rank."""
        return self.layers * self.layer_features * rank

    def pruned(self, layers: int) -> ModelShape:
        """The same model with fewer layers."""
        return replace(self, layers=layers, parameters=self.parameters - (self.layers - layers) * self.layer_parameters)

    @classmethod
    def of(cls, model: Any) -> ModelShape:
        """Of a causal language model from transformers; one on the `meta` device costs no memory."""
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        layer = decoder_layers(model)[0]
        linear = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        return cls(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            layer_parameters=sum(parameter.numel() for parameter in layer.parameters()),
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocabulary=config.vocab_size,
            layer_linear=sum(module.weight.numel() for module in linear),
            layer_features=sum(module.in_features + module.out_features for module in linear),
        )


@dataclass(frozen=True)
class TrainingPlan:
    """What the memory of a training process depends on, beside the model."""

    world_size: int
    zero_stage: int
    precision: Precision
    micro_batch: int
    sequence_length: int
    gradient_checkpointing: bool
    offload_optimizer: bool = False
    offload_parameters: bool = False
    adapter_rank: int | None = None
    """Of adapters on all linear layers, the only weights that are trained; None: all weights are."""
    four_bits: bool = False
    """The linear layers below the adapters are held in four bits."""


def teacher_bytes(shape: ModelShape, context: int, devices: int, bytes_per_parameter: float = 2.0) -> int:
    """Of each of `devices` that share one copy: weights, and the cache of one full context."""
    return round((shape.parameters * bytes_per_parameter + kv_cache_bytes(shape, context)) / devices) + RUNTIME_BYTES


def kv_cache_bytes(shape: ModelShape, tokens: int, bytes_per_value: int = 2) -> int:
    """Keys and values of `tokens` tokens: 2 x layers x key-value heads x head size each."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * tokens * bytes_per_value


def published_bytes(shape: ModelShape, form: Format, gguf_type: GgufType) -> int:
    """Of a model's weights in a format: in bfloat16, ONNX in float32, Q8_0 in blocks of 32 with a scale in 16 bits."""
    bits = 32.0 if form is Format.ONNX else 16.0
    if form is Format.GGUF and gguf_type is GgufType.Q8_0:
        bits = 8.5
    return round(shape.parameters * bits / 8)


def publishing_bytes(shape: ModelShape, formats: Collection[Format]) -> int:
    """Memory of Publish: none for the weights where files are only copied; else what the checks load (measured with
    SmolLM2-135M, see docs/formats.md)."""
    per_parameter = {Format.GGUF: 7, Format.ONNX: 11}
    return PUBLISH_BYTES + shape.parameters * max(per_parameter.get(form, 0) for form in formats)


def student_bytes(shape: ModelShape, plan: TrainingPlan) -> int:
    """Of each training process: weights, gradients, optimizer, activations and the loss's buffer."""
    return model_state_bytes(shape, plan) + activation_bytes(shape, plan) + _loss_bytes(shape) + RUNTIME_BYTES


def beside_bytes(teacher: ModelShape, precision: Precision) -> int:
    """Of each training process: the weights of a teacher that stands whole beside the student, and is not trained."""
    return teacher.parameters * (4 if precision is Precision.FP32 else 2)


def model_state_bytes(shape: ModelShape, plan: TrainingPlan) -> int:
    """Weights, gradients and Adam's state (Rajbhandari et al. 2020, "ZeRO", section 3.1 and figure 1).

    Half precision: 2 + 2 + 12 bytes a parameter (the 12: float32 copy, momentum, variance); float32: 4 + 4 + 8.
    Stage 1 spreads the optimizer's state over the processes, stage 2 the gradients too, stage 3 the weights too.
    What is offloaded lies in the host's memory. Adapters are trained beside weights that have no gradient and no state.
    """
    full = plan.precision is Precision.FP32
    per_weight, per_state = (4, 8) if full else (2, 12)
    adapters = 0 if plan.adapter_rank is None else shape.adapter_parameters(plan.adapter_rank)
    trainable = shape.parameters if plan.adapter_rank is None else adapters
    packed = shape.layers * shape.layer_linear if plan.four_bits else 0

    def share(stage: int) -> int:
        return plan.world_size if plan.zero_stage >= stage else 1

    held = (shape.parameters - packed + adapters) * per_weight + packed * FOUR_BITS
    weights = 0 if plan.offload_parameters else held / share(3)
    gradients = trainable * per_weight / share(2)
    state = 0 if plan.offload_optimizer else trainable * per_state / share(1)
    return round(weights + gradients + state)


def least_bytes(shape: ModelShape, plan: TrainingPlan) -> int:
    """Of each training process: what no batch is too small for. An underestimate where gradients leave the device with
    the optimizer's state, and where adapters are trained, which are left out.
    """
    only_weights = plan.offload_optimizer or plan.adapter_rank is not None
    return model_state_bytes(shape, replace(plan, adapter_rank=0) if only_weights else plan)


def checkpoint_bytes(shape: ModelShape, plan: TrainingPlan) -> int:
    """What all processes together write of what is trained: weights, Adam's two moments and, in half precision, the
    float32 copy. Gradients are not kept.
    """
    trained = shape.parameters if plan.adapter_rank is None else shape.adapter_parameters(plan.adapter_rank)
    return trained * (12 if plan.precision is Precision.FP32 else 14)


def activation_bytes(shape: ModelShape, plan: TrainingPlan) -> int:
    """What the forward pass keeps for the backward pass (Korthikanti et al. 2022, equation 2).

    34 bytes a token, layer and hidden unit in half precision; the attention matrix, the equation's second term, is
    never kept (flash attention). Checkpointing keeps the layers' inputs (2 bytes) and one layer in full.
    """
    tokens = plan.micro_batch * plan.sequence_length
    per_layer = tokens * shape.hidden * (2 if plan.precision is Precision.FP32 else 1)
    if plan.gradient_checkpointing:
        return per_layer * (2 * shape.layers + 34)
    return per_layer * 34 * shape.layers


def tokens_to_generate(rows: int, samples_per_prompt: int, max_tokens: int) -> int:
    """An upper bound: no answer is longer than allowed."""
    return rows * samples_per_prompt * max_tokens


def generation_gpu_hours(shape: ModelShape, tokens: int) -> float:
    """A forward pass is 2 operations a parameter and token (Kaplan et al. 2020, section 2.1)."""
    return 2 * shape.parameters * tokens / GENERATION_FLOPS / 3600


def training_gpu_hours(shape: ModelShape, tokens: int, *, gradient_checkpointing: bool) -> float:
    """Forward and backward: 6 operations a parameter and token; 8 with checkpointing, which goes forward twice."""
    return (8 if gradient_checkpointing else 6) * shape.parameters * tokens / TRAINING_FLOPS / 3600


def reading_gpu_hours(shape: ModelShape, tokens: int) -> float:
    """Forward only, whole rows at once: 2 operations a parameter and token, at the pace of training."""
    return 2 * shape.parameters * tokens / TRAINING_FLOPS / 3600


def _loss_bytes(shape: ModelShape) -> int:
    """The logits of one chunk, the float32 gradient of the head, and head and gradient once more in half precision: all
    that depends on the vocabulary.
    """
    return CHUNK_BYTES["cuda"] + (4 + 2 + 2) * shape.vocabulary * shape.hidden
