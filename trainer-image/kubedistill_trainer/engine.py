"""DeepSpeed behind one class. No other module imports it.

What is settled here, once:
- The loss of an optimizer step is the sum over its targets divided by all of them, over all micro batches and ranks.
  DeepSpeed averages over ranks and would divide by the accumulation: the first is undone, the second switched off.
- BF16 without ZeRO is autocast over float32 weights. With ZeRO the weights are bfloat16, the optimizer's copy and the
  accumulated gradients float32.
- On a CPU nothing is compiled: torch's fused AdamW, and gloo without DeepSpeed's shared-memory extension.
"""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from kubedistill_api import uris
from kubedistill_api.exits import PEER_LOST
from kubedistill_api.training import Precision, Training
from kubedistill_trainer.core.batching import MicroBatch
from kubedistill_trainer.core.signals import LossSum
from kubedistill_trainer.distiller import MODEL, Distiller
from kubedistill_trainer.errors import Transient
from kubedistill_trainer.table import table_at

os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it looked for something better

import deepspeed
from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
from deepspeed.checkpoint import ds_to_universal
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

TAG = "state"
"""DeepSpeed's own folder inside a checkpoint's."""
PROJECTION_RATE = 10.0
"""What is trained beside the student starts at chance and must be found before it can teach: it learns so many times as
fast. A choice, not a measurement."""
RESHAPED = "reshaped"
"""Marks a checkpoint's folder that any world size can load."""
RATE = "rate"
"""A group's share of the learning rate, among the optimizer's own settings of the group."""
UNIVERSAL_INFO = "universal_checkpoint_info"
"""The conversion to another world size wants this key; for a model without tensor parallelism it has nothing to say."""
COLLECTIVE_TIMEOUT = timedelta(hours=1)
"""Ranks wait for each other at most so long; the slowest wait is for a checkpoint on slow storage."""


@dataclass(frozen=True)
class Place:
    """This process among those that train together."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    per_node: int = 1
    """Processes of each node. Ranks are counted node by node."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def node(self) -> int:
        return self.rank // self.per_node

    @property
    def local_rank(self) -> int:
        """This process among those of its node."""
        return self.rank % self.per_node

    @property
    def nodes(self) -> int:
        return self.world_size // self.per_node


@contextmanager
def together(place: Place, rendezvous: str) -> Iterator[None]:
    """Collectives work inside the block. `rendezvous` is the same for all ranks: the URI of a file that does not exist
    yet, or `tcp://host:port` of a TCPStore.

    Raises:
        Transient: PeerLost; a collective failed, most likely because another process is gone.
    """
    if place.device.type == "cuda":
        set_accelerator(CUDA_Accelerator())
        torch.cuda.set_device(place.device)
    else:
        set_accelerator(CPU_Accelerator())  # else it moves everything to a GPU that it finds
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is compiled, for a minute or more
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(place.local_rank)  # DeepSpeed insists on it, whoever launched it
    backend = "nccl" if place.device.type == "cuda" else "gloo"
    try:
        torch.distributed.init_process_group(
            backend,
            rank=place.rank,
            world_size=place.world_size,
            timeout=COLLECTIVE_TIMEOUT,
            store=_meeting_point(rendezvous, place.world_size),
        )
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=COLLECTIVE_TIMEOUT)
        yield
    except RuntimeError as error:
        if place.world_size == 1 or not _is_of_a_collective(error):
            raise
        raise Transient(PEER_LOST, f"Another process of the training is gone: {error}") from error
    finally:
        if deepspeed.comm.is_initialized():
            deepspeed.comm.destroy_process_group()
        if before is None:  # others read it as "launched by torchrun", also in processes that this one starts
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before


def _meeting_point(rendezvous: str, world_size: int) -> Any:
    if rendezvous.startswith("file:"):
        # torch itself does not decode such a URI: it looks for a folder "my%20jobs"
        file = torch.distributed.FileStore(uris.parse(rendezvous).path, world_size)  # type: ignore[attr-defined]
        file.set_timeout(COLLECTIVE_TIMEOUT)
        return file
    table = table_at(rendezvous)
    table.set_timeout(COLLECTIVE_TIMEOUT)
    return torch.distributed.PrefixStore("ranks", table)  # type: ignore[attr-defined]


def _is_of_a_collective(error: RuntimeError) -> bool:
    """Gloo's errors are told from others by their words only."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()


def configuration(training: Training, micro_batch_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a spec. The user's own keys are merged last; those that the spec owns are not.

    Raises ValueError for an owned key, and for a micro batch that does not divide the global batch.
    """
    asked = training.deepspeed
    hyper = training.hyperparameters
    if owned := asked.owned():
        raise ValueError(f"deepspeed.config sets {', '.join(owned)}: write {', '.join(dict.fromkeys(owned.values()))}")
    accumulation, rest = divmod(hyper.global_batch_size, micro_batch_size * training.world_size)
    if rest:
        raise ValueError(
            f"a global batch of {hyper.global_batch_size} is no multiple of {micro_batch_size} x {training.world_size}"
        )
    offload = {"device": "cpu", "pin_memory": training.gpus_per_node > 0}
    ours = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": hyper.gradient_clipping,
        "zero_optimization": {
            "stage": asked.zero_stage,
            **({"offload_optimizer": offload} if asked.offload_optimizer else {}),
            **({"offload_param": offload} if asked.offload_parameters else {}),
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        **_precision(training),
    }
    return _merged(ours, asked.config)


def weights_dtype(training: Training, *, frozen: bool = False) -> torch.dtype:
    """What the student is loaded in: float32 where it is what the optimizer changes, see the top of this module.

    `frozen`: only adapters are trained, and those are float32 anyway.
    """
    match training.precision:
        case Precision.FP32:
            return torch.float32
        case Precision.FP16:
            return torch.float16
        case Precision.BF16:
            return torch.bfloat16 if frozen or training.deepspeed.zero_stage > 0 else torch.float32


class Engine:
    """A student under training on this rank. All methods are collective unless they say otherwise."""

    def __init__(
        self,
        distiller: Distiller,
        training: Training,
        micro_batch_size: int,
        place: Place,
        resume_from: Path | None = None,
    ) -> None:
        """`resume_from` is a checkpoint's folder, of this world size or `reshaped`.

        Raises RuntimeError if DeepSpeed finds nothing to load there.
        """
        config = configuration(training, micro_batch_size)
        if resume_from is not None and (resume_from / RESHAPED).exists():
            config["checkpoint"] = {"load_universal": True}
        self.place = place
        self._partial = any(not weight.requires_grad for weight in distiller.parameters())
        if self._partial:
            cast(Any, distiller).register_state_dict_post_hook(_keep_what_is_trained)
        with _quiet():
            self._engine: Any = deepspeed.initialize(
                model=distiller, optimizer=_optimizer(distiller, training), config=config, dist_init_required=False
            )[0]
        if training.deepspeed.zero_stage == 3:
            for weight in distiller.head_weights:
                deepspeed.zero.register_external_parameter(distiller.loss_head, weight)
        if resume_from is not None:
            self._load(resume_from)

    def step(self, batches: Sequence[MicroBatch], targets: int, learning_rate: float) -> LossSum:
        """One optimizer step over this rank's micro batches; the loss comes back summed over this rank.

        `targets` counts all targets of the step, over all ranks.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate * group.get(RATE, 1.0)
        self._engine.train()
        total = LossSum(torch.zeros((), device=self.place.device), 0)
        for batch in batches:
            loss = self._loss(batch)
            share = loss.mean_over(targets) * self.place.world_size
            self._engine.backward(share, scale_wrt_gas=False)
            self._engine.step()
            total = total + LossSum(loss.total.detach(), loss.count, loss.parts)
        return total

    @torch.no_grad()
    def evaluate(self, batch: MicroBatch) -> LossSum:
        """The same loss without dropout and without learning, summed over this rank's batch."""
        self._engine.eval()
        return self._loss(batch)

    def add_up(self, values: Sequence[float | Tensor]) -> list[float]:
        """Numbers summed over all ranks, in float64."""
        column = torch.tensor([float(value) for value in values], dtype=torch.float64, device=self.place.device)
        if self.place.world_size > 1:
            torch.distributed.all_reduce(column)
        return [float(value) for value in column.tolist()]

    def save(self, folder: Path) -> None:
        """Write this rank's part of weights and optimizer state into a checkpoint's folder, and wait for the others."""
        (folder / TAG).mkdir(parents=True, exist_ok=True)  # DeepSpeed makes it on the first node only
        with _quiet():
            self._engine.save_checkpoint(
                str(folder),
                tag=TAG,
                client_state={UNIVERSAL_INFO: {}},
                save_latest=False,
                exclude_frozen_parameters=self._partial,
            )
        self.wait()

    def wait(self) -> None:
        """Until all ranks are here."""
        torch.distributed.barrier()

    def _load(self, folder: Path) -> None:
        """What is set anew afterwards, ZeRO-3's loader for another world size gets wrong: it gives one `step` tensor to
        all groups, which then count it up together, and the first group's weight decay to all.
        """
        basic = self._engine.basic_optimizer
        decays = [group["weight_decay"] for group in basic.param_groups]
        with _quiet():
            found, _ = self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=not self._partial)
        if found is None:
            raise RuntimeError(f"DeepSpeed finds nothing to load in {folder}")
        for group, decay in zip(basic.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        for state in basic.state.values():
            state["step"] = state["step"].clone()

    def _loss(self, batch: MicroBatch) -> LossSum:
        total, parts = self._engine(batch.to(self.place.device))
        return LossSum(total, len(batch.supervision), parts)


def weights(folder: Path) -> dict[str, Tensor]:
    """The trained weights of a checkpoint, whatever its ZeRO stage and world size, on the CPU.

    Not collective: the folder is all that is needed. Names are those of the student; frozen weights are left out.
    """
    whole = folder / TAG / "mp_rank_00_model_states.pt"
    if whole.exists():
        state = _torch_load(whole)["module"]
    else:  # ZeRO-3
        with _quiet():
            state = get_fp32_state_dict_from_zero_checkpoint(str(folder), TAG, exclude_frozen_parameters=True)
    return {name.removeprefix(MODEL): tensor for name, tensor in state.items() if name.startswith(MODEL)}


def reshaped(folder: Path, target: Path) -> Path:
    """A checkpoint made at one world size in a form that any world size can load; returns `target`.

    Without ZeRO every rank holds everything, and the folder itself will do.
    """
    if not any((folder / TAG).glob("*optim_states.pt")):
        return folder
    options = Namespace(
        input_folder=str(folder / TAG),
        output_folder=str(target / TAG),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=False,
    )
    with _quiet():
        ds_to_universal.main(options)
    (target / RESHAPED).touch()
    return target


def _keep_what_is_trained(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    """DeepSpeed leaves a frozen weight out under one of its names: a tied one has others, one in four bits scales."""
    trained = {name for name, weight in module.named_parameters(remove_duplicate=False) if weight.requires_grad}
    trained.update(name for name, _ in module.named_buffers())
    for name in [name for name in state if name.removeprefix(prefix) not in trained]:
        del state[name]


def _optimizer(distiller: nn.Module, training: Training) -> torch.optim.Optimizer:
    """AdamW over what is trained. Matrices decay; norms, biases and what is trained beside the student do not."""
    hyper = training.hyperparameters
    named = [(name, weight) for name, weight in distiller.named_parameters() if weight.requires_grad]
    student = [weight for name, weight in named if name.startswith(MODEL)]
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in student if weight.dim() >= 2], "weight_decay": hyper.weight_decay},
        {"params": [weight for weight in student if weight.dim() < 2], "weight_decay": 0.0},
        {
            "params": [weight for name, weight in named if not name.startswith(MODEL)],
            "weight_decay": 0.0,
            RATE: PROJECTION_RATE,
        },
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=hyper.learning_rate, fused=True)


def _precision(training: Training) -> dict[str, Any]:
    spread = training.deepspeed.zero_stage > 0
    match training.precision:
        case Precision.FP32:
            return {}
        case Precision.FP16:
            return {"fp16": {"enabled": True}}
        case Precision.BF16 if spread:
            return {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
        case Precision.BF16:
            return {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}


def _merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries merged, `theirs` last."""
    both = dict(ours)
    for key, value in theirs.items():
        nested = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = _merged(both[key], value) if nested else value
    return both


def _torch_load(path: Path) -> dict[str, Any]:
    """A file of our own making: DeepSpeed pickles more than tensors."""
    return cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=False))


@contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed prints; what it prints helps nobody who reads a pod's log."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
