"""What rank 0 does for a checkpoint once all ranks have written theirs, in a thread beside the training.

Flushing, uploading and removing take their time on slow storage, and no other rank may wait in a collective for it.
One thread does them one after the other, so a marker is written after its files and before older checkpoints go.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from kubedistill_api.status import Checkpoint as CheckpointStatus
from kubedistill_trainer.store.checkpoints import Checkpoint, Checkpoints, TrainingState
from kubedistill_trainer.store.loss_logs import LossLog


class Keeper:
    """Commits checkpoints and removes old ones. Failures surface at the next call."""

    def __init__(self, checkpoints: Checkpoints, losses: LossLog, world_size: int, keep_last: int) -> None:
        self._checkpoints = checkpoints
        self._losses = losses
        self._world_size = world_size
        self._keep_last = keep_last
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._pending: Future[None] | None = None
        complete = checkpoints.complete()
        self._steps = [each.state.step for each in complete]
        self._newest: Checkpoint | None = complete[-1] if complete else None

    @property
    def last(self) -> CheckpointStatus | None:
        """The newest complete checkpoint."""
        newest = self._newest
        return None if newest is None else self._checkpoints.status(newest)

    def begin(self, step: int) -> None:
        """Make room for the checkpoint of `step`, once the one before is complete."""
        self._wait()
        self._checkpoints.begin(step)

    def commit(self, state: TrainingState) -> None:
        """Make the checkpoint that all ranks have written complete."""
        self._submit(state, new=True)

    def note(self, state: TrainingState) -> None:
        """Write what a validation said into the marker of the newest checkpoint."""
        self._submit(state, new=False)

    def close(self) -> None:
        """Wait until all is done."""
        try:
            self._wait()
        finally:
            self._thread.shutdown()

    def _submit(self, state: TrainingState, new: bool) -> None:
        self._wait()
        self._pending = self._thread.submit(self._keep, state, new)

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _keep(self, state: TrainingState, new: bool) -> None:
        self._losses.upload()
        if new or self._newest is None:
            self._newest = self._checkpoints.commit(state, self._world_size)
            self._steps = sorted({*self._steps, state.step})
        else:
            noted = self._newest.model_copy(update={"state": state})
            self._checkpoints.note(noted)
            self._newest = noted
        best = {state.best_step} if state.best_step is not None else set()
        kept = {*self._steps[-self._keep_last :], *best}
        self._checkpoints.keep_only(kept)
        self._steps = sorted(kept & set(self._steps))
