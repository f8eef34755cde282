"""A checkpoint is whole or invisible."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kubedistill_trainer.store.checkpoints import MARKER, Checkpoints, TrainingState
from kubedistill_trainer.store.loss_logs import LossLog
from kubedistill_trainer.store.workspace import Workspace


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return those_of("sha256:1", tmp_path)


def those_of(input_digest: str, tmp_path: Path) -> Checkpoints:
    workspace = Workspace.open((tmp_path / "workspace").as_uri())
    return Checkpoints(workspace, "trained", tmp_path / "scratch", input_digest)


def written(checkpoints: Checkpoints, step: int) -> Path:
    folder = checkpoints.begin(step)
    (folder / "state").mkdir()
    (folder / "state" / "weights.pt").write_bytes(b"w" * step)
    checkpoints.commit(TrainingState(step=step, loss=1.0), 2, checkpoints.deliver(step))
    return folder


def steps(checkpoints: Checkpoints) -> list[int]:
    return [each.state.step for each in checkpoints.complete()]


def test_complete_checkpoints_are_listed_the_newest_last(checkpoints: Checkpoints) -> None:
    written(checkpoints, 20)
    written(checkpoints, 3)
    newest = checkpoints.complete()[-1]
    assert steps(checkpoints) == [3, 20]
    assert (newest.world_size, newest.files) == (2, {"state/weights.pt": 20})
    assert checkpoints.fetch(20) == checkpoints.local(20)


def test_without_its_marker_a_checkpoint_does_not_exist(checkpoints: Checkpoints) -> None:
    written(checkpoints, 1)
    folder = checkpoints.begin(2)
    (folder / "weights.pt").write_bytes(b"w")
    assert steps(checkpoints) == [1]


@pytest.mark.parametrize("size", [0, 4, 6, None], ids=["empty", "cut short", "too long", "gone"])
def test_a_checkpoint_with_a_torn_file_does_not_exist(size: int | None, checkpoints: Checkpoints) -> None:
    written(checkpoints, 1)
    file = written(checkpoints, 5) / "state" / "weights.pt"
    file.unlink() if size is None else file.write_bytes(b"w" * size)
    assert steps(checkpoints) == [1]


def test_a_torn_marker_counts_as_none(checkpoints: Checkpoints) -> None:
    marker = written(checkpoints, 5) / MARKER
    marker.write_bytes(marker.read_bytes()[:20])
    assert steps(checkpoints) == []


def test_a_checkpoint_of_other_inputs_is_none_of_ours(checkpoints: Checkpoints, tmp_path: Path) -> None:
    written(checkpoints, 5)
    assert steps(those_of("sha256:2", tmp_path)) == []


def test_a_renamed_checkpoint_is_not_taken_for_another_step(checkpoints: Checkpoints) -> None:
    folder = written(checkpoints, 5)
    shutil.copytree(folder, folder.with_name("step-00000099"))
    assert steps(checkpoints) == [5]


def test_beginning_a_step_again_withdraws_what_was_there(checkpoints: Checkpoints) -> None:
    written(checkpoints, 5)
    folder = checkpoints.begin(5)
    assert steps(checkpoints) == []
    assert list(folder.iterdir()) == []


def test_only_what_is_to_be_kept_stays(checkpoints: Checkpoints) -> None:
    for step in (1, 2, 3):
        written(checkpoints, step)
    (checkpoints.begin(4) / "half").touch()
    checkpoints.keep_only([1, 3])
    assert steps(checkpoints) == [1, 3]
    assert sorted(path.name for path in checkpoints.local(1).parent.iterdir()) == ["step-00000001", "step-00000003"]


def test_a_marker_can_be_written_again_with_what_a_validation_said(checkpoints: Checkpoints) -> None:
    written(checkpoints, 5)
    [checkpoint] = checkpoints.complete()
    state = TrainingState(step=5, validated_step=5, validation_loss=0.5)
    checkpoints.note(checkpoint.model_copy(update={"state": state}))
    assert [each.state for each in checkpoints.complete()] == [state]


def test_losses_after_the_checkpoint_are_forgotten_and_so_is_a_torn_line(tmp_path: Path) -> None:
    log = LossLog(Workspace.open(tmp_path.as_uri()), "trained", tmp_path / "scratch")
    log.rewind(0, 0)
    for step in (1, 2, 3):
        log.append(step=step, loss=1.0 / step)
    log.append(step=2, validation_loss=0.7)
    with log.path.open("a") as file:
        file.write('{"step": 1, "lo')
    log.rewind(2, 2)
    steps = ['{"step": 1, "loss": 1.0}', '{"step": 2, "loss": 0.5}']
    assert log.path.read_text().splitlines() == [*steps, '{"step": 2, "validation_loss": 0.7}']
    log.rewind(2, 1)
    assert log.path.read_text().splitlines() == steps, "the checkpoint does not know of that look: it will come again"
