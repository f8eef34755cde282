"""One point's training, through Train as the product runs it, in a workspace of its own that goes away afterwards."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ablations.answers import JOB, NAME, PREPARED, Corpus, context_of, generation_of, teacher_of
from ablations.points import RENORMALISED, Point
from ablations.renormalised import in_place_of_the_products
from ablations.signals import with_k
from kubedistill_api.base import Stage, Task
from kubedistill_api.results import GenerateResult, TrainResult
from kubedistill_api.run import TrainRun
from kubedistill_api.status import Ledger
from kubedistill_api.student import ChooseLayers
from kubedistill_trainer.core.pruning import most_influential
from kubedistill_trainer.stages import train
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.shards import AnswerRow, Shard, ShardMeta, commit_shard
from kubedistill_trainer.store.workspace import Workspace
from kubedistill_trainer.students import RECORD, Record

FOLDER, ANSWERS = "trained", "answers"
ROWS_A_STEP = 8
"""The global batch: so many answers an optimizer step, in one pass."""


@dataclass(frozen=True)
class Trained:
    """What came of a training."""

    model: Path
    """The student's folder; it is gone when the block of `trained` ends."""
    steps: int
    tokens: int
    """Of prompts and answers, read in training."""
    targets: int
    """Of answers, learned from."""
    seconds: float
    cpu_seconds: float
    """Of the training alone, of all threads; neighbours on the machine hardly change it."""


def drawn(rows: Sequence[AnswerRow], point: Point) -> list[AnswerRow]:
    """The point's answers out of all: a lot that the seed decides. Fewer prompts of one seed are among its more.

    Raises ValueError if there are not so many.
    """
    if len(rows) < point.prompts:
        raise ValueError(f"there are {len(rows)} answers, not {point.prompts}")
    by_lot = sorted(rows, key=lambda row: hashlib.sha256(f"{point.seed}/{row.row_id}".encode()).digest())
    return by_lot[: point.prompts]


@contextmanager
def trained(point: Point, corpus: Corpus, rows: Sequence[AnswerRow], influence: Sequence[float]) -> Iterator[Trained]:
    """Train a point on its share of `rows`. `influence` is that of the teacher's layers, measured once for all points.

    Raises:
        StageError: as Train.
    """
    share = [with_k(row, point.k) for row in drawn(rows, point)]
    (corpus.work / "points").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=corpus.work / "points") as folder:
        place = Workspace.open(Path(folder).absolute().as_uri())
        shutil.copytree(corpus.work / PREPARED, Path(folder) / PREPARED)
        _lay_out(place, share, point)
        if point.choose == ChooseLayers.BLOCK_INFLUENCE:
            record = Record(kept_layers=list(most_influential(influence, point.layers)))
            place.write_bytes(f"{FOLDER}/{RECORD}", record.model_dump_json(by_alias=True).encode())
        context = context_of(Stage.TRAIN, place, Path(folder) / "scratch")
        started = time.perf_counter(), time.process_time()
        with in_place_of_the_products() if point.tail == RENORMALISED else nullcontext():
            result = train.run(_run(point, corpus, place), context)
        assert isinstance(result, TrainResult)
        yield Trained(
            model=Path(folder) / FOLDER / "model",
            steps=result.steps,
            tokens=point.epochs * sum(len(row.input_ids) for row in share),
            targets=point.epochs * sum(row.targets for row in share),
            seconds=time.perf_counter() - started[0],
            cpu_seconds=time.process_time() - started[1],
        )


def _lay_out(place: Workspace, rows: Sequence[AnswerRow], point: Point) -> None:
    """The answers as Generate leaves them; none is held out, so that the last weights are those that are published."""
    meta = ShardMeta(split="train", index=0, teacher=NAME, k=point.k)
    commit_shard(place, ANSWERS, Shard(meta, rows))
    manifests.commit(
        place,
        GenerateResult(
            input_digest="sha256:studies",
            output_digest="sha256:studies",
            folder=ANSWERS,
            teacher=NAME,
            ledger=Ledger(accepted=len(rows)),
        ),
    )


def _run(point: Point, corpus: Corpus, place: Workspace) -> TrainRun:
    generation = generation_of(point.temperature, point.k, corpus.max_tokens).model_dump(by_alias=True)
    return TrainRun.model_validate(
        {
            "job": JOB,
            "workspace": place.root,
            "folder": FOLDER,
            "inputDigest": "sha256:studies",
            "task": Task.CONVERSATION,
            "student": {"prunedFrom": {"teacher": NAME, "layers": point.layers, "choose": point.choose}},
            "teachers": [teacher_of(corpus)],
            "generation": generation | {"tail": "Bucket" if point.tail == RENORMALISED else point.tail},
            "training": {
                "gpusPerNode": 0,
                "precision": "BF16",  # autocast over float32 weights, a quarter faster on CPUs that know it
                "gradientCheckpointing": False,
                "deepspeed": {"zeroStage": 0},
                "checkpoints": {"everySteps": 10**9, "keepLast": 1},
                "objective": {"type": point.objective, "softWeight": point.soft_weight, "beta": point.beta},
                "hyperparameters": {
                    "learningRate": point.learning_rate,
                    "epochs": point.epochs,
                    "microBatchSize": ROWS_A_STEP,
                    "globalBatchSize": ROWS_A_STEP,
                    "maxSequenceLength": 512,
                    "warmupRatio": 0.1,
                    "seed": point.seed,
                },
            },
            "microBatchSize": ROWS_A_STEP,
            "prepared": PREPARED,
            "answers": [ANSWERS],
        }
    )
