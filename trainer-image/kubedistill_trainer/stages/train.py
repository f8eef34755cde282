"""Train: from the teacher's accepted answers to a student that anybody can load.

<trained>/model/          the student: config, bfloat16 safetensors, tokenizer, chat template, generation config
<trained>/adapter/        its adapters, unmerged (LoRA)
<trained>/student.json    the layers that were kept (pruned student)
<trained>/losses.jsonl    see store.loss_logs
<trained>/checkpoints/    see store.checkpoints
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from kubedistill_api.identity import digest
from kubedistill_api.results import Success, TrainResult
from kubedistill_api.run import TrainRun
from kubedistill_api.training import ObjectiveType, Precision, Training
from kubedistill_trainer import engine, export, four_bits
from kubedistill_trainer.errors import BadConfiguration, BadData
from kubedistill_trainer.meeting import Meeting, meet
from kubedistill_trainer.models import fetch_pinned, load_model, load_tokenizer
from kubedistill_trainer.ranks import run_together
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.stages.train_rank import News, Outcome, RankWork
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.checkpoints import Checkpoint, Checkpoints, TrainingState
from kubedistill_trainer.store.examples import Examples
from kubedistill_trainer.store.loss_logs import NAME as LOSSES
from kubedistill_trainer.store.loss_logs import LossLog
from kubedistill_trainer.store.manifests import FileEntry, entries_of, entry
from kubedistill_trainer.store.rows import Split, fetch_tokenizer
from kubedistill_trainer.store.shards import AnswerRow, read_answers
from kubedistill_trainer.students import RECORD, start_folder, with_adapter

LOG_SECONDS = 10.0


def run(run: TrainRun, context: StageContext) -> Success:
    """Train the student.

    1. Refuse what cannot be trained here; meet the other nodes. 2. Lay the answers out on local disk. 3. Make or fetch
    the student as it is before training. 4. Find the newest complete checkpoint. 5. Train, in as many processes as the
    spec asks for. 6. Export the weights of the lowest validation loss and load them again. 7. Commit.

    Of several nodes the first does 4, 6 and 7, and the others return what it has committed.

    Raises:
        BadConfiguration: the spec cannot be trained here, or the loss left the numbers.
        BadData: no accepted answer can be trained on.
        NotFound: a model is not there.
        DeviceOutOfMemory: the micro batch is too large for the device.
        Transient: another node is gone, or did not come.
        Stopped: SIGTERM here or on another node; a complete checkpoint was written.
    """
    _refuse(run)
    local = context.scratch / "train"
    shutil.rmtree(local, ignore_errors=True)  # of an attempt that was killed
    local.mkdir(parents=True)
    try:
        with meet(run, context) as nodes:
            return _train(run, context, local, nodes)
    finally:
        shutil.rmtree(local, ignore_errors=True)


def _train(run: TrainRun, context: StageContext, local: Path, nodes: Meeting) -> Success:
    rows, too_long = _examples(run, context, local, "train")
    _examples(run, context, local, "valid")
    if not rows:
        raise BadData(
            "NothingToTrainOn",
            f"None of the accepted answers can be trained on ({too_long} are longer than "
            f"{run.training.hyperparameters.max_sequence_length} tokens): raise "
            "training.hyperparameters.maxSequenceLength.",
        )
    half = engine.weights_dtype(run.training, frozen=run.student.adapter is not None) == torch.bfloat16
    start, kept_layers = start_folder(run, context, torch.bfloat16 if half else torch.float32)
    tokenizer = fetch_tokenizer(context.workspace, run.prepared, context.scratch)
    checkpoints = Checkpoints(context.workspace, run.folder, context.scratch, run.input_digest)
    newest = _agreed(nodes, lambda: _newest(run, checkpoints, context))
    work = RankWork(
        run=run,
        start=start,
        teacher=_teacher_beside(run, context),
        tokenizer=tokenizer,
        train=local / "train",
        valid=local / "valid",
        scratch=context.scratch,
        # torch deletes the file when it collects the last one's store
        rendezvous=nodes.rendezvous or (local / f"rendezvous-{uuid.uuid4().hex}").absolute().as_uri(),
        resume=newest.state if newest else TrainingState(),
        resume_from=_resume_folder(newest, checkpoints, run.training.world_size, local),
    )
    outcome = _outcome(work, newest, checkpoints, context, nodes)
    if nodes.node > 0:
        context.progress.update(message="the first node exports")
        return nodes.result(lambda: _committed(run, context))
    context.progress.update(message="exporting")
    parameters = _export(run, context, start, tokenizer, checkpoints.fetch(_best_step(outcome.state)))
    files = _files(run, context)
    result = context.commit(
        TrainResult(
            input_digest=run.input_digest,
            output_digest=digest({path: file.sha256 for path, file in files.items() if path.startswith("model/")}),
            folder=run.folder,
            message=_summary(outcome, too_long),
            steps=outcome.state.step,
            loss=outcome.state.loss or 0.0,
            validation_loss=outcome.state.best_loss,
            tokens_per_second=round(outcome.tokens_per_second, 1),
            micro_batch_size=run.micro_batch_size,
            last_checkpoint=outcome.last_checkpoint,
            parameters=parameters,
            layers_kept=list(kept_layers),
        ),
        files,
    )
    nodes.done(result)
    return result


def _refuse(run: TrainRun) -> None:
    """What the spec or this machine makes impossible, told before anything is fetched."""
    training = run.training
    if training.precision is Precision.FP16 and training.gpus_per_node == 0:
        raise BadConfiguration(
            "PrecisionUnsupported",
            "CPUs do not train in FP16: write training.precision: FP32 (or BF16, where the CPU has instructions for "
            "it).",
        )
    try:
        engine.configuration(training, run.micro_batch_size)
    except ValueError as error:
        raise BadConfiguration("TrainingUnsupported", f"The training cannot be set up: {error}.") from error
    if training.gpus_per_node > 0:
        _check_devices(training.gpus_per_node)
    if run.student.in_four_bits:
        _check_four_bits(training)


def _check_devices(wanted: int) -> None:
    found = torch.cuda.device_count()
    if found < wanted:
        raise BadConfiguration(
            "DevicesMissing",
            f"The training asks for {wanted} GPUs and sees {found}: write training.gpusPerNode: 0 to train on CPUs, or "
            "run where the GPUs are.",
        )


def _check_four_bits(training: Training) -> None:
    if training.gpus_per_node == 0:
        four_bits.check_device("cpu")
    else:
        four_bits.check_device_apart("cuda")


def _examples(run: TrainRun, context: StageContext, local: Path, split: Split) -> tuple[int, int]:
    """Rows of a split that are laid out below `local`, and rows that are too long."""
    context.progress.update(message=f"reading the {split} answers")
    longest = run.training.hyperparameters.max_sequence_length
    left_out = 0

    def fitting() -> Iterator[AnswerRow]:
        nonlocal left_out
        for row in read_answers(context.workspace, run.answers, split):
            if len(row.input_ids) > longest:
                left_out += 1
            elif row.targets:
                yield row

    try:
        soft = run.training.objective.type is not ObjectiveType.CROSS_ENTROPY
        rows = len(Examples.write(local / split, fitting(), signals=soft))
    except ValueError as error:
        raise BadConfiguration(
            "SignalMissing", f"{error}: write generation.signal: TopK, or training.objective.type: CrossEntropy."
        ) from error
    context.log.info("%s: %d rows, %d left out as longer than %d tokens", split, rows, left_out, longest)
    return rows, left_out


def _teacher_beside(run: TrainRun, context: StageContext) -> Path | None:
    """The teacher's weights at the commit that answered, where the objective looks inside it."""
    if not run.training.objective.looks_inside:
        return None
    teacher = run.teachers[0]
    assert teacher.model is not None, "a rule of the API"
    context.progress.update(message="fetching the teacher")
    return fetch_pinned(teacher.model, f"teacher:{teacher.name}", run.prepared, context)


def _newest(run: TrainRun, checkpoints: Checkpoints, context: StageContext) -> Checkpoint | None:
    """The newest complete checkpoint. What was left incomplete, or logged after it, is removed."""
    complete = checkpoints.complete()
    checkpoints.keep_only([each.state.step for each in complete])
    newest = complete[-1] if complete else None
    state = newest.state if newest else TrainingState()
    LossLog(context.workspace, run.folder, context.scratch).rewind(state.step, state.validated_step)
    if newest is not None:
        context.log.info("going on from the checkpoint of step %d", newest.state.step)
    return newest


def _agreed(nodes: Meeting, newest: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """What the first node finds: another might see an older folder, or one that is being removed."""
    found = newest() if nodes.node == 0 else None
    text = nodes.agree(found.model_dump_json() if found is not None else "")
    return Checkpoint.model_validate_json(text) if text else None


def _committed(run: TrainRun, context: StageContext) -> Success | None:
    """What the first node has committed, where it has."""
    manifest = manifests.load(context.workspace, run.folder)
    return manifest.result if manifest is not None and manifest.input_digest == run.input_digest else None


def _resume_folder(newest: Checkpoint | None, checkpoints: Checkpoints, world_size: int, local: Path) -> Path | None:
    if newest is None or newest.state.finished:
        return None
    folder = checkpoints.fetch(newest.state.step)
    return folder if newest.world_size == world_size else engine.reshaped(folder, local / "reshaped")


def _outcome(
    work: RankWork, newest: Checkpoint | None, checkpoints: Checkpoints, context: StageContext, nodes: Meeting
) -> Outcome:
    if newest is not None and newest.state.finished:
        return Outcome(newest.state, 0.0, checkpoints.status(newest))
    training = work.run.training
    first = nodes.node * training.processes
    ranks = range(first, first + training.processes)
    if nodes.node > 0:
        context.progress.update(message=f"training as node {nodes.node} of {training.nodes}")
    return run_together(work, ranks, context.stopping, _listener(context), nodes if training.nodes > 1 else None)


def _listener(context: StageContext) -> Callable[[Any], None]:
    """Puts what rank 0 tells on the board, and now and then into the log."""
    said = 0.0

    def hear(news: News) -> None:
        nonlocal said
        training = news.training
        context.progress.update(
            done=training.step, total=training.total_steps, unit="steps", message=news.message, training=training
        )
        if time.monotonic() - said > LOG_SECONDS:
            said = time.monotonic()
            context.log.info(
                "step %d of %d, loss %s, validation loss %s, %s tokens/s",
                training.step,
                training.total_steps,
                training.loss or "-",
                training.validation_loss or "-",
                training.tokens_per_second,
            )

    return hear


def _best_step(state: TrainingState) -> int:
    return state.step if state.best_step is None else state.best_step


def _export(run: TrainRun, context: StageContext, start: Path, tokenizer: Path, checkpoint: Path) -> int:
    """Make `<trained>/model` (and `adapter`) from a checkpoint; the student's parameters come back."""
    model = load_model(start, torch.float32)
    parameters = int(sum(weight.numel() for weight in model.parameters()))
    if run.student.adapter is not None:
        model = with_adapter(model, run.student.adapter, run.training.hyperparameters.seed)
    export.fill(model, engine.weights(checkpoint))
    for name in ("model", "adapter"):
        context.workspace.remove(f"{run.folder}/{name}")
    target = context.workspace.local_path(f"{run.folder}/model") or context.scratch / "export" / "model"
    if context.workspace.local_path("") is None:
        shutil.rmtree(target.parent, ignore_errors=True)  # an earlier training may have left its adapters there
    export.save(model, load_tokenizer(tokenizer), start, target)
    if context.workspace.local_path("") is None:
        context.workspace.put(target.parent, run.folder)
    return parameters


def _files(run: TrainRun, context: StageContext) -> dict[str, FileEntry]:
    """What the manifest vouches for: all but the checkpoints."""
    workspace = context.workspace
    direct = workspace.local_path(run.folder)
    root = direct or context.scratch / "export"
    files: dict[str, FileEntry] = {}
    for name in ("model", "adapter"):
        if (root / name).is_dir():
            files |= {f"{name}/{path}": file for path, file in entries_of(root / name).items()}
    for name in (LOSSES, RECORD):
        if workspace.exists(f"{run.folder}/{name}"):
            files[name] = entry(workspace.read_bytes(f"{run.folder}/{name}"))
    return files


def _summary(outcome: Outcome, left_out: int) -> str:
    state = outcome.state
    held_out = (
        "" if state.best_loss is None else f"; lowest held-out loss {state.best_loss:.4g} at step {state.best_step}"
    )
    long = f"; {left_out} rows were too long" if left_out else ""
    return f"{state.step} steps, last loss {state.loss or 0.0:.4g}{held_out}{long}."
