"""One rank's training: the loop, and what it needs around it."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kubedistill_api.run import TrainRun
from kubedistill_api.status import Checkpoint as CheckpointStatus
from kubedistill_api.status import TrainingStatus
from kubedistill_trainer.beside import Matching, TeacherBeside, Terms
from kubedistill_trainer.core import attention
from kubedistill_trainer.core.batching import Example, MicroBatch, pack, pad, split
from kubedistill_trainer.core.losses import loss_of
from kubedistill_trainer.core.losses.hidden_states import layer_pairs
from kubedistill_trainer.core.rate import Rate
from kubedistill_trainer.core.signals import LossSum
from kubedistill_trainer.distiller import Distiller, plain
from kubedistill_trainer.engine import Engine, Place, together, weights_dtype
from kubedistill_trainer.errors import BadConfiguration, DeviceOutOfMemory, Stopped
from kubedistill_trainer.models import at_ease, load_model, load_tokenizer, torch_dtype
from kubedistill_trainer.ranks import usable_cpus
from kubedistill_trainer.rehearsal import rehearse
from kubedistill_trainer.stages.train_keeper import Courier, Helper, Keeper
from kubedistill_trainer.stages.train_plan import Plan, validated
from kubedistill_trainer.store.checkpoints import Checkpoints, TrainingState
from kubedistill_trainer.store.examples import Examples
from kubedistill_trainer.store.loss_logs import LossLog
from kubedistill_trainer.store.workspace import Workspace
from kubedistill_trainer.students import fitting, load_start, with_adapter
from kubedistill_trainer.table import Letters


@dataclass(frozen=True)
class News:
    """What rank 0 tells the process that people ask."""

    training: TrainingStatus
    message: str


@dataclass(frozen=True)
class Outcome:
    """What rank 0 returns."""

    state: TrainingState
    tokens_per_second: float
    last_checkpoint: CheckpointStatus | None


@dataclass(frozen=True)
class RankWork:
    """All that a rank is told; it may be sent to another process. Folders are local."""

    run: TrainRun
    start: Path
    """The student before training."""
    teacher: Path | None
    """The teacher whose inside the student's is held to; None: nobody's."""
    tokenizer: Path
    train: Path
    """Examples."""
    valid: Path
    """Examples."""
    scratch: Path
    rendezvous: str
    """Where the ranks find each other, as `engine.together` takes it."""
    resume: TrainingState
    resume_from: Path | None
    """The folder of the checkpoint of that state, fit for this world size; None at the very beginning."""

    def __call__(self, rank: int, stopping: threading.Event, tell: Callable[[Any], None]) -> Outcome:
        place = _place(rank, self.run)
        with _memory_errors_named(self.run.micro_batch_size), together(place, self.rendezvous):
            return _Training(self, place, stopping, tell).go()


class _Training:
    """The loop of one rank. Whatever is decided in it is decided alike on all ranks."""

    def __init__(self, work: RankWork, place: Place, stopping: threading.Event, tell: Callable[[News], None]) -> None:
        run = work.run
        self._run = run
        self._place = place
        self._stopping = stopping
        self._tell = tell
        self._train = Examples(work.train)
        self._valid = Examples(work.valid)
        self._plan = Plan.of(run.training, len(self._train))
        self._state = work.resume
        tokenizer = load_tokenizer(work.tokenizer)
        self._pad_id = int(tokenizer.pad_token_id or 0)
        distiller = _distiller(work, tokenizer, place)
        self._engine = Engine(distiller, run.training, run.micro_batch_size, place, work.resume_from)
        workspace = Workspace.open(run.workspace, work.scratch)
        self._checkpoints = Checkpoints(workspace, run.folder, work.scratch, run.input_digest)
        self._keeper: Keeper | None = None
        self._losses: LossLog | None = None
        self._helper: Helper | None = None
        letters = Letters(work.rendezvous) if place.nodes > 1 and place.local_rank == 0 else None
        if place.first:
            self._losses = LossLog(workspace, run.folder, work.scratch)
            keep = run.training.checkpoints.keep_last
            self._helper = self._keeper = Keeper(self._checkpoints, self._losses, place, keep, letters)
        elif letters is not None:
            self._helper = Courier(self._checkpoints, place, letters)
        self._rate = Rate()

    def go(self) -> Outcome:
        """Train to the end.

        1. Look at the held-out answers if that is due: a run that was stopped at a milestone has not yet.
        2. Take a step. 3. At a milestone, or when any rank was asked to stop, write a checkpoint. 4. Again.

        Raises:
            Stopped: any rank was asked to stop; the checkpoint is complete.
            BadConfiguration: the loss is no longer a number.
        """
        try:
            self._validate_if_due()
            while not self._state.finished:
                stop = self._step()
                if stop or self._state.step in self._plan.milestones:
                    self._checkpoint()
                if stop:
                    raise Stopped
                self._validate_if_due()
        finally:
            if self._helper is not None:
                self._helper.close()
        last = self._keeper.last if self._keeper is not None else None
        return Outcome(self._state, self._rate.overall, last)

    def _step(self) -> bool:
        """One optimizer step; whether any rank was asked to stop."""
        if self._helper is not None:
            self._helper.check()  # before the others wait for this rank
        step = self._state.step
        hyper = self._run.training.hyperparameters
        torch.manual_seed(_seed(hyper.seed, step, self._place.rank))  # dropout is the same after a resume
        rows = self._plan.order.rows_of_step(step)
        targets = int(self._train.targets[list(rows)].sum())
        lengths = [int(self._train.lengths[row]) for row in rows]
        turns = split(lengths, self._place.world_size, self._run.micro_batch_size)[self._place.rank]
        batches = [self._batch([self._train[rows[index]] for index in turn]) for turn in turns]
        learning_rate = self._plan.learning_rate(step)
        loss = self._engine.step(batches, targets, learning_rate)
        names = sorted(loss.parts)
        sums: list[float | torch.Tensor] = [loss.total, *(loss.parts[name] for name in names)]
        total, *parts, stop = self._engine.add_up([*sums, float(self._stopping.is_set())])
        mean = _finite(total / targets, step + 1, learning_rate)
        self._state = self._state.model_copy(update={"step": step + 1, "loss": mean})
        self._rate.add(sum(lengths))
        if self._losses is not None:
            self._losses.append(
                step=step + 1,
                loss=mean,
                lr=learning_rate,
                tokens=sum(lengths),
                targets=targets,
                parts={name: part / targets for name, part in zip(names, parts, strict=True)},
            )
        self._say("training")
        return stop > 0

    def _checkpoint(self) -> None:
        """All ranks write; threads beside them make it complete while they go on."""
        if self._helper is not None:
            self._helper.begin(self._state.step)
        self._engine.wait()
        self._engine.save(self._checkpoints.local(self._state.step))
        if self._helper is not None:
            self._helper.commit(self._state)

    def _validate_if_due(self) -> None:
        if not self._plan.validates(self._state):
            return
        loss = self._validation_loss()
        training = self._run.training
        self._state = validated(self._state, loss, training.early_stopping, self._plan.total_steps)
        if self._losses is not None and loss is not None:
            self._losses.append(step=self._state.step, validation_loss=loss, targets=int(self._valid.targets.sum()))
        if self._keeper is not None:
            self._keeper.note(self._state)
        self._say("training")

    def _validation_loss(self) -> float | None:
        """Mean loss on the held-out answers, over all ranks; None if there are none.

        Each rank makes the same number of passes, because ZeRO-3 gathers weights in each: a rank without rows left
        repeats the first ones and does not count them.
        """
        if not len(self._valid):
            return None
        self._say("validating")
        size, world = self._run.micro_batch_size, self._place.world_size
        by_length = sorted(range(len(self._valid)), key=lambda row: int(self._valid.lengths[row]))
        batches = [by_length[start : start + size] for start in range(0, len(by_length), size)]
        total = LossSum(torch.zeros((), device=self._place.device), 0)
        for turn in range(0, len(batches), world):
            mine = turn + self._place.rank
            loss = self._engine.evaluate(
                self._batch([self._valid[row] for row in batches[mine if mine < len(batches) else 0]])
            )
            total = total + loss if mine < len(batches) else total
        summed, targets = self._engine.add_up([total.total, total.count])
        return _finite(summed / targets, self._state.step, self._plan.learning_rate(self._state.step - 1))

    def _batch(self, examples: Sequence[Example]) -> MicroBatch:
        return pack(examples) if self._run.training.hyperparameters.packing else pad(examples, self._pad_id)

    def _say(self, message: str) -> None:
        if self._keeper is None:
            return
        state = self._state
        self._tell(
            News(
                TrainingStatus(
                    step=state.step,
                    total_steps=self._plan.total_steps,
                    loss=_decimal(state.loss),
                    validation_loss=_decimal(state.validation_loss),
                    tokens_per_second=_decimal(self._rate.recent),
                    micro_batch_size=self._run.micro_batch_size,
                    last_checkpoint=self._keeper.last,
                ),
                message,
            )
        )


def _place(rank: int, run: TrainRun) -> Place:
    training = run.training
    per_node = training.processes
    if training.gpus_per_node == 0:
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, usable_cpus() // per_node))
        return Place(rank, training.world_size, per_node=per_node)
    return Place(rank, training.world_size, torch.device("cuda", rank % per_node), per_node)


def _distiller(work: RankWork, tokenizer: Any, place: Place) -> Distiller:
    """The student, ready to learn: its attention knows packed rows, its adapters are new, its activations go again."""
    run = work.run
    dtype = weights_dtype(run.training, frozen=run.student.adapter is not None)
    model = fitting(load_start(run, work.start, dtype, str(place.device)), tokenizer)
    if place.first:
        rehearse(model, len(tokenizer), packing=run.training.hyperparameters.packing)
    model.set_attn_implementation(attention.install())
    if run.training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if run.student.adapter is not None:
        model = with_adapter(model, run.student.adapter, run.training.hyperparameters.seed)
    loss = loss_of(run.training.objective, sampled_tail=run.generation.sampled_tail)
    try:
        return Distiller(model, loss, len(tokenizer), _matching(work, model, place))
    except ValueError as error:
        raise BadConfiguration(
            "OutputLayerUnsupported", f"The student's output layer cannot be trained: {error}."
        ) from error


def _matching(work: RankWork, student: Any, place: Place) -> Matching | None:
    """The teacher's weights beside the student, whole on every rank, and what of both is compared."""
    objective = work.run.training.objective
    if work.teacher is None:
        return None
    teacher = at_ease(load_model(work.teacher, torch_dtype(work.run.training.precision), str(place.device)))
    teacher.set_attn_implementation(attention.install())
    hidden, relations = objective.hidden_states, objective.attention
    depths = (each.config.get_text_config().num_hidden_layers for each in (student, teacher))
    terms = Terms(
        pairs=layer_pairs(hidden.layers, *depths) if hidden else (),
        hidden_weight=hidden.weight if hidden else 0.0,
        attention_weight=relations.weight if relations else 0.0,
    )
    torch.manual_seed(work.run.training.hyperparameters.seed)  # all ranks begin with the same projections
    try:
        return Matching(plain(student), TeacherBeside(teacher), terms)
    except ValueError as error:
        raise BadConfiguration(
            "AttentionUnsupported", f"Attentions cannot be compared, {error}: leave training.objective.attention out."
        ) from error


@contextmanager
def _memory_errors_named(micro_batch_size: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text:
            raise DeviceOutOfMemory(
                "DeviceOutOfMemory",
                f"The device's memory is full at a micro batch of {micro_batch_size}: write a smaller "
                "training.hyperparameters.microBatchSize or maxSequenceLength, or a higher deepspeed.zeroStage.",
            ) from error
        raise


def _finite(loss: float, step: int, learning_rate: float) -> float:
    if math.isfinite(loss):
        return loss
    raise BadConfiguration(
        "LossNotFinite",
        f"The loss became {loss} at step {step} (learning rate {learning_rate:.3g}): write a lower "
        "training.hyperparameters.learningRate, a longer warmupRatio, or precision: BF16 or FP32 instead of FP16.",
    )


def _seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step * 4_099 + rank) % 2**63


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
