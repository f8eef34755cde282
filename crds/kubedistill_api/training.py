"""Training: the objective, the optimizer's settings, and where it runs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field

from kubedistill_api.base import Fraction, Model
from kubedistill_api.rules import Rule


class ObjectiveType(StrEnum):
    """What is minimised. `CrossEntropy` learns the text; the others compare distributions (nats)."""

    CROSS_ENTROPY = "CrossEntropy"
    FORWARD_KL = "ForwardKL"
    REVERSE_KL = "ReverseKL"
    JENSEN_SHANNON = "JensenShannon"
    SKEW_KL = "SkewKL"


BETA = {ObjectiveType.JENSEN_SHANNON: 0.5, ObjectiveType.SKEW_KL: 0.1}
"""`beta` where none is written, for the objectives that have one."""


class HiddenLayers(StrEnum):
    """Which pairs of layers are matched."""

    LAST = "Last"
    EVENLY_SPACED = "EvenlySpaced"


class HiddenStates(Model):
    """Match hidden states through a learned projection, one for each pair of layers: 1 - cos, a mean over pairs."""

    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Of this term; it is added to the loss."""
    layers: HiddenLayers = HiddenLayers.LAST
    """`Last`: the last layers; `EvenlySpaced`: also a quarter, a half and three quarters of the way."""


class Attention(Model):
    """Match attention relations of the last layers (MiniLMv2): KL, a mean over queries, keys, values and heads."""

    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Of this term; it is added to the loss."""


class Objective(Model):
    """The loss."""

    rules: ClassVar = (
        Rule(
            cel="!has(self.beta) || self.type in ['JensenShannon', 'SkewKL']",
            message="beta belongs to JensenShannon and SkewKL: leave it out, or write one of these as type",
            holds=lambda objective: objective.beta is None or objective.type in BETA,
            field="beta",
        ),
    )

    type: ObjectiveType = ObjectiveType.CROSS_ENTROPY
    """The divergence."""
    soft_weight: Fraction = 0.75
    """Share of the soft loss; the rest is cross-entropy on the teacher's tokens. 1.0 suits a pruned student."""
    beta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """JensenShannon and SkewKL: the teacher's share in the mixture that is compared with; absent: 0.5 and 0.1."""
    hidden_states: HiddenStates | None = None
    """Match hidden states as well; the teacher's weights stand beside the student, whole on every device."""
    attention: Attention | None = None
    """Match attention relations as well; the teacher's weights stand beside the student here, too."""

    @property
    def looks_inside(self) -> bool:
        """Whether the teacher's weights are needed beside the student."""
        return self.hidden_states is not None or self.attention is not None

    @property
    def teacher_share(self) -> float:
        """`beta`, or its default for this type.

        Raises:
            KeyError: the type has no beta.
        """
        return BETA[self.type] if self.beta is None else self.beta


class Scheduler(StrEnum):
    """How the learning rate falls after the warm-up."""

    COSINE = "Cosine"
    LINEAR = "Linear"
    CONSTANT = "Constant"


class Hyperparameters(Model):
    """The optimizer's settings. Batches count sequences."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-5
    """AdamW's peak learning rate."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 3
    """Passes over the accepted answers."""
    max_steps: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Stop after so many optimizer steps, whatever `epochs` says."""
    micro_batch_size: Annotated[int, Field(ge=1, le=65536)] = 2
    """Sequences for each device and forward pass."""
    global_batch_size: Annotated[int, Field(ge=1, le=10**6)] = 16
    """Sequences for each optimizer step; the accumulation is derived."""
    max_sequence_length: Annotated[int, Field(ge=16, le=2**24)] = 4096
    """Tokens of prompt and answer together; longer rows are left out and counted."""
    packing: bool = True
    """Put the sequences of a micro batch end to end instead of padding them."""
    warmup_ratio: Fraction = 0.03
    """Share of the steps in which the learning rate rises."""
    scheduler: Scheduler = Scheduler.COSINE
    """How it falls afterwards."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """AdamW's decoupled weight decay."""
    gradient_clipping: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Largest global norm of the gradient."""
    seed: Annotated[int, Field(ge=0, le=2**53)] = 42
    """Of the data order and of new weights."""


class EarlyStopping(Model):
    """Stop when the validation loss no longer falls."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    """Validations without an improvement that are borne."""
    min_delta: Annotated[float, Field(ge=0, le=100)] = 0.0
    """A smaller improvement (nats a token) counts as none."""


class Precision(StrEnum):
    """The number format of the forward and backward pass."""

    BF16 = "BF16"
    FP16 = "FP16"
    FP32 = "FP32"


OWNED_DEEPSPEED_KEYS = {
    "train_batch_size": "hyperparameters.globalBatchSize",
    "train_micro_batch_size_per_gpu": "hyperparameters.microBatchSize",
    "gradient_accumulation_steps": "hyperparameters.globalBatchSize",
    "optimizer": "hyperparameters.learningRate and weightDecay",
    "scheduler": "hyperparameters.scheduler and warmupRatio",
    "fp16": "precision",
    "bf16": "precision",
    "bfloat16": "precision",
    "gradient_clipping": "hyperparameters.gradientClipping",
}
"""Keys of DeepSpeed's configuration that are written from the spec's own fields, and those fields. `bfloat16` is its
older name for `bf16`."""
OWNED_ZERO_KEYS = {
    "stage": "deepspeed.zeroStage",
    "offload_optimizer": "deepspeed.offloadOptimizer",
    "cpu_offload": "deepspeed.offloadOptimizer",
    "offload_param": "deepspeed.offloadParameters",
    "cpu_offload_param": "deepspeed.offloadParameters",
}
"""The same inside `zero_optimization`, DeepSpeed's older names among them."""
ZERO = "zero_optimization"


class DeepSpeed(Model):
    """How DeepSpeed spreads the optimizer's state, gradients and weights (ZeRO, arXiv:1910.02054)."""

    rules: ClassVar = (
        Rule(
            cel="self.offloadOptimizer ? self.zeroStage >= 1 : true",
            message="offloadOptimizer needs zeroStage: 1, 2 or 3",
            holds=lambda deepspeed: not deepspeed.offload_optimizer or deepspeed.zero_stage >= 1,
            field="offloadOptimizer",
        ),
        Rule(
            cel="self.offloadParameters ? self.zeroStage == 3 : true",
            message="offloadParameters needs zeroStage: 3",
            holds=lambda deepspeed: not deepspeed.offload_parameters or deepspeed.zero_stage == 3,
            field="offloadParameters",
        ),
    )

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    """0: nothing is spread; 1: optimizer state; 2: and gradients; 3: and weights."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in the host's memory."""
    offload_parameters: bool = False
    """Keep the weights in the host's memory."""
    config: dict[str, Any] = {}
    """More of DeepSpeed's own configuration, merged last; keys that the spec's own fields write are refused by
    Prepare, those inside `zero_optimization` (`stage`, `offload_optimizer`, `offload_param`) too."""

    def owned(self) -> dict[str, str]:
        """Keys in `config` that the spec's own fields write, dotted, and the fields of `training` to write instead."""
        found = {key: field for key, field in OWNED_DEEPSPEED_KEYS.items() if key in self.config}
        zero = self.config.get(ZERO, {})
        if not isinstance(zero, dict):  # DeepSpeed takes `true` for stage 1
            return {**found, ZERO: OWNED_ZERO_KEYS["stage"]}
        return found | {f"{ZERO}.{key}": field for key, field in OWNED_ZERO_KEYS.items() if key in zero}


class Checkpoints(Model):
    """How often the state of the training is saved."""

    every_steps: Annotated[int, Field(ge=1, le=10**9)] = 500
    """Optimizer steps between two checkpoints."""
    keep_last: Annotated[int, Field(ge=1, le=1000)] = 3
    """Older ones are removed."""


class OnOutOfMemory(StrEnum):
    """What happens when the device's memory is full."""

    HALVE_MICRO_BATCH = "HalveMicroBatch"
    FAIL = "Fail"


class Training(Model):
    """How the student is trained."""

    rules: ClassVar = (
        Rule(
            cel="self.hyperparameters.globalBatchSize % (self.hyperparameters.microBatchSize * self.nodes * "
            "(self.gpusPerNode > 0 ? self.gpusPerNode : self.processesPerNode)) == 0",
            message="hyperparameters.globalBatchSize must be a multiple of microBatchSize x devices (nodes x "
            "gpusPerNode, on CPU nodes x processesPerNode)",
            holds=lambda training: (
                training.hyperparameters.global_batch_size
                % (training.hyperparameters.micro_batch_size * training.world_size)
                == 0
            ),
            field="hyperparameters.globalBatchSize",
        ),
    )

    objective: Objective = Objective()
    """The loss."""
    hyperparameters: Hyperparameters = Hyperparameters()
    """The optimizer's settings."""
    early_stopping: EarlyStopping | None = None
    """Absent: off. The weights of the lowest validation loss are kept either way."""
    nodes: Annotated[int, Field(ge=1, le=1000)] = 1
    """Nodes that train together; their pods start, and start again, as one group."""
    gpus_per_node: Annotated[int, Field(ge=0, le=16)] = 1
    """GPUs, and so processes, of each node; 0: CPU."""
    processes_per_node: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes of each node when there is no GPU."""
    precision: Precision = Precision.BF16
    """The number format of the forward and backward pass."""
    deepspeed: DeepSpeed = DeepSpeed()
    """How DeepSpeed spreads the state."""
    gradient_checkpointing: bool = True
    """Compute activations twice instead of keeping them."""
    checkpoints: Checkpoints = Checkpoints()
    """How often the state is saved."""
    on_out_of_memory: OnOutOfMemory = OnOutOfMemory.HALVE_MICRO_BATCH
    """`HalveMicroBatch` keeps the global batch, at most three times."""

    @property
    def processes(self) -> int:
        """Processes of each node."""
        return self.gpus_per_node or self.processes_per_node

    @property
    def world_size(self) -> int:
        """Processes that train together."""
        return self.nodes * self.processes
