"""What is done for a checkpoint once all ranks have written theirs, in a thread beside the training.

Flushing, uploading and removing take their time on slow storage, and no rank may wait in a collective for it. One
thread does them one after the other, so a marker is written after its files and before older checkpoints go.

Of several nodes each delivers what its ranks wrote: into a bucket nobody else can, and what is written through one
node's cache of a shared volume only that node can flush. Then it tells the first node, which writes the marker.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from kubedistill_api.status import Checkpoint as CheckpointStatus
from kubedistill_trainer.engine import Place
from kubedistill_trainer.store.checkpoints import Checkpoint, Checkpoints, TrainingState
from kubedistill_trainer.store.loss_logs import LossLog
from kubedistill_trainer.table import Letters


class Helper(Protocol):
    """What a rank calls around its checkpoints. What went wrong in the thread surfaces at the next call."""

    def begin(self, step: int) -> None:
        """Make room for the checkpoint of `step`, once the one before is complete."""

    def check(self) -> None:
        """Raise what went wrong. Called before each step: other nodes may wait for what failed here."""

    def commit(self, state: TrainingState) -> None:
        """All ranks have written it."""

    def close(self) -> None:
        """Wait until all is done."""


class Keeper:
    """Rank 0's: commits checkpoints and removes old ones."""

    def __init__(
        self, checkpoints: Checkpoints, losses: LossLog, place: Place, keep_last: int, letters: Letters | None
    ) -> None:
        """`letters` bring what other nodes have delivered."""
        self._checkpoints = checkpoints
        self._losses = losses
        self._place = place
        self._keep_last = keep_last
        self._letters = letters
        self._beside = _Beside()
        complete = checkpoints.complete()
        self._steps = [each.state.step for each in complete]
        self._newest: Checkpoint | None = complete[-1] if complete else None

    @property
    def last(self) -> CheckpointStatus | None:
        """The newest complete checkpoint."""
        newest = self._newest
        return None if newest is None else self._checkpoints.status(newest)

    def begin(self, step: int) -> None:
        self._beside.wait()
        self._checkpoints.begin(step)

    def check(self) -> None:
        self._beside.check()

    def commit(self, state: TrainingState) -> None:
        self._beside.do(lambda: self._keep(state, new=True))

    def note(self, state: TrainingState) -> None:
        """Write what a validation said into the marker of the newest checkpoint."""
        self._beside.do(lambda: self._keep(state, new=False))

    def close(self) -> None:
        self._beside.close()

    def _keep(self, state: TrainingState, new: bool) -> None:
        self._losses.upload()
        if new or self._newest is None:
            files = self._delivered(state.step)
            self._newest = self._checkpoints.commit(state, self._place.world_size, files)
            self._steps = sorted({*self._steps, state.step})
        else:
            noted = self._newest.model_copy(update={"state": state})
            self._checkpoints.note(noted)
            self._newest = noted
        best = {state.best_step} if state.best_step is not None else set()
        kept = {*self._steps[-self._keep_last :], *best}
        self._checkpoints.keep_only(kept)
        self._steps = sorted(kept & set(self._steps))

    def _delivered(self, step: int) -> dict[str, int]:
        """What all nodes have delivered, bytes by path."""
        files = self._checkpoints.deliver(step)
        if self._letters is not None:
            for node in range(1, self._place.nodes):
                theirs: dict[str, int] = json.loads(self._letters.collect(_letter(step, node)))
                # Of a shared volume all list all files. Files only grow: a smaller size is that of an old cache.
                files = {path: max(files.get(path, 0), theirs.get(path, 0)) for path in {*files, *theirs}}
        return files


class Courier:
    """The first rank's of another node: delivers what the node's ranks wrote, and says so."""

    def __init__(self, checkpoints: Checkpoints, place: Place, letters: Letters) -> None:
        self._checkpoints = checkpoints
        self._place = place
        self._letters = letters
        self._beside = _Beside()

    def begin(self, step: int) -> None:
        self._beside.wait()
        if not self._checkpoints.shared:
            self._checkpoints.drop_here()  # also the one that was gone on from
            self._checkpoints.begin_here(step)

    def check(self) -> None:
        self._beside.check()

    def commit(self, state: TrainingState) -> None:
        self._beside.do(lambda: self._deliver(state.step))

    def close(self) -> None:
        self._beside.close()

    def _deliver(self, step: int) -> None:
        files = self._checkpoints.deliver(step)
        self._letters.leave(_letter(step, self._place.node), json.dumps(files))
        if not self._checkpoints.shared:
            self._checkpoints.drop_here()


class _Beside:
    """One thread, one thing after the other; nothing after one that went wrong."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._pending: list[Future[None]] = []

    def do(self, what: Callable[[], None]) -> None:
        before = self._pending[-1] if self._pending else None
        self._pending.append(self._thread.submit(lambda: what() if before is None or not before.exception() else None))

    def check(self) -> None:
        """Raise what went wrong with anything that is over."""
        while self._pending and self._pending[0].done():
            self._pending.pop(0).result()

    def wait(self) -> None:
        """Until all is done; raises what it raised."""
        while self._pending:
            self._pending.pop(0).result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()


def _letter(step: int, node: int) -> str:
    return f"checkpoint/{step}/{node}"
