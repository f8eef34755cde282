"""A training that goes on in other surroundings than it began in: more processes, fewer, a smaller micro batch.

Whole pods do it in test_processes and test_nodes; here the table is wide and the processes are forks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from training.forks import Server
from training.places import lay_out

from kubedistill_api.run import TrainRun

pytestmark = pytest.mark.slow

EVERY = 2
KILLED_AT = 5
STEPS = 9

KINDS: dict[str, dict[str, Any]] = {
    "all-weights": {},
    "LoRA": {"student": {"adapter": {"rank": 4, "alpha": 8}}},
    "QLoRA": {"student": {"adapter": {"type": "QLoRA", "rank": 4, "alpha": 8}}},
    "ReverseKL": {"training": {"objective": {"type": "ReverseKL"}}},
    "JensenShannon": {"training": {"objective": {"type": "JensenShannon"}}},
    "beside-its-teacher": {"training": {"objective": {"hiddenStates": {"weight": 1}, "attention": {"weight": 0.5}}}},
}
CASES = [
    *(("all-weights", zero) for zero in (0, 1, 2, 3)),
    *(("LoRA", zero) for zero in (2, 3)),
    ("ReverseKL", 2),
    ("JensenShannon", 3),
    ("beside-its-teacher", 2),
    ("QLoRA", 2),
]


@dataclass
class Training:
    """A training in a workspace of its own, whose surroundings may change between two attempts."""

    server: Server
    folder: Path
    a_run: Callable[..., TrainRun]
    changes: dict[str, Any]

    def attempt(self, processes: int, micro_batch: int, death: tuple[int, float] | None = None) -> int:
        """In so many processes, until the end or the step."""
        training = {
            "hyperparameters": {"epochs": 3, "learningRate": 1e-3, "globalBatchSize": 4, "microBatchSize": micro_batch},
            "checkpoints": {"everySteps": EVERY, "keepLast": 2},
            "processesPerNode": processes,
        }
        asked = {**self.changes, "training": {**training, **self.changes.get("training", {})}}
        run = self.a_run(workspace=self.folder.as_uri(), microBatchSize=micro_batch, **asked)
        (self.folder / "run.json").write_text(run.model_dump_json(by_alias=True, exclude_none=True))
        self.trained = self.folder / run.folder
        return self.server.run(self.folder, death)

    @property
    def losses(self) -> list[float]:
        lines = [json.loads(line) for line in (self.trained / "losses.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if "loss" in line]

    @property
    def checkpoint(self) -> int:
        markers = self.trained.glob("checkpoints/*/checkpoint.json")
        return max(int(json.loads(marker.read_text())["state"]["step"]) for marker in markers)


@pytest.fixture(scope="module")
def a_training(
    server: Server, a_run: Callable[..., TrainRun], answers: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Training]:
    trainings = tmp_path_factory.mktemp("trainings")

    def build(name: str, kind: str, zero: int) -> Training:
        folder = trainings / name
        lay_out(answers, folder)
        changes = KINDS[kind]
        training = {**changes.get("training", {}), "deepspeed": {"zeroStage": zero}}
        return Training(server, folder, a_run, {**changes, "training": training})

    return build


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request: pytest.FixtureRequest, a_training: Callable[..., Training]) -> tuple[str, int, list[float]]:
    """A kind of student, a ZeRO stage, and the losses of one process that nobody stopped."""
    kind, zero = request.param
    whole = a_training(f"whole-{kind}-{zero}", kind, zero)
    assert whole.attempt(processes=1, micro_batch=2) == 0
    assert len(whole.losses) == STEPS
    return kind, zero, whole.losses


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param((1, 2), (2, 1), id="1-to-2-processes"),
        pytest.param((2, 1), (1, 2), id="2-to-1-processes"),
        pytest.param((1, 4), (1, 2), id="half-the-micro-batch"),
    ],
)
def test_a_training_goes_on_with_the_same_losses(
    before: tuple[int, int],
    after: tuple[int, int],
    case: tuple[str, int, list[float]],
    a_training: Callable[..., Training],
) -> None:
    kind, zero, losses = case
    moved = a_training(f"{kind}-{zero}-from-{before[0]}x{before[1]}", kind, zero)
    assert moved.attempt(*before, death=(KILLED_AT, 0.0)) != 0
    assert 0 < moved.checkpoint <= KILLED_AT
    assert moved.attempt(*after) == 0
    assert moved.losses[:4] == pytest.approx(losses[:4], rel=1e-5)
    assert moved.losses == pytest.approx(losses, rel=1e-4), "what rounding differs in grows with the steps"
