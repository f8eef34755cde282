"""The processes of one training on this node: started, listened to, stopped together.

The parent serves progress, catches SIGTERM and writes the result, as in any other stage. It does not use torchrun:
that answers every failure with exit code 1 and kills the ranks 30 s after a SIGTERM, finished with their checkpoint or
not. What the parent does instead:

- SIGTERM is passed on; the ranks agree on a step, write their checkpoint, and raise Stopped. All may finish: the one
  that marks the checkpoint complete is seldom the first that is done.
- The first rank that fails ends all others at once: they wait in a collective for one who will not come. A rank that
  only lost another says so (PeerLost), and the one that was lost is waited for a moment, since it knows why.
- A rank whose parent died ends itself, so that no orphan writes beside a new attempt.
- Ranks of other nodes have parents of their own; `Others` brings what happened there.

One process is no special case for the work, but where no other node is there it is done here, without a child.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Protocol, TypeVar

from kubedistill_api.exits import PEER_LOST
from kubedistill_trainer.errors import StageError, Stopped, Transient

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
POLL_SECONDS = 0.2
CAUSE_SECONDS = 5.0
"""How long the cause of a lost rank is waited for."""
STOP_SECONDS = 60.0
"""How long ranks may go on after another node has ended in order: they stopped at the same step, or wait for nobody."""


class Others(Protocol):
    """The other nodes."""

    def trouble(self) -> Exception | None:
        """Why it is over for all nodes, where it is."""

    def asked_to_stop(self) -> bool:
        """Whether another node was asked to stop."""


class Work(Protocol[Result_co]):
    """What each rank does. It must be picklable."""

    def __call__(self, rank: int, stopping: threading.Event, tell: Callable[[Any], None]) -> Result_co: ...


@dataclass(frozen=True)
class _Told:
    """Something a rank wants to be known."""

    value: Any


@dataclass(frozen=True)
class _Done:
    """A rank has returned."""

    result: Any


@dataclass(frozen=True)
class _Stopped:
    """A rank has stopped in order, as it was asked to."""


@dataclass(frozen=True)
class _Failed:
    """A rank has raised. Exceptions are sent in parts: not all can be pickled."""

    kind: type[StageError] | None
    """None: nothing that was raised on purpose."""
    reason: str
    message: str

    @property
    def consequence(self) -> bool:
        """Whether it says only that another rank is gone."""
        return self.reason == PEER_LOST

    def error(self, rank: int) -> Exception:
        return self.kind(self.reason, self.message) if self.kind else RuntimeError(f"rank {rank}: {self.message}")


def run_together(
    work: Work[Result],
    ranks: Sequence[int],
    stopping: threading.Event,
    hear: Callable[[Any], None],
    others: Others | None = None,
) -> Result:
    """Run `work` on this node's ranks and return what the first of them returned. What they tell is heard here.

    Raises what the first failing rank raised, a StageError as such, anything else as RuntimeError; the trouble of
    `others`; Stopped, when every rank has ended and one of them stopped.
    """
    if len(ranks) == 1 and others is None:
        return work(ranks[0], stopping, hear)
    group = _Group(work, ranks, others)
    try:
        return group.watch(stopping, hear)
    finally:
        group.end()


def usable_cpus() -> int:
    """CPUs that this process may keep busy: its affinity, and the quota of its container."""
    allowed = len(os.sched_getaffinity(0))
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, round(int(quota) / int(period))))


class _Group(Generic[Result]):
    def __init__(self, work: Work[Result], ranks: Sequence[int], others: Others | None) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._others = others
        self._told_to_stop = False
        self._others_stopped: float | None = None
        self._failures: list[tuple[float, int, _Failed]] = []
        self._ranks: dict[int, tuple[BaseProcess, Connection]] = {}
        for rank in ranks:
            ours, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(target=_main, args=(work, rank, theirs), name=f"rank {rank}", daemon=True)
            process.start()
            theirs.close()
            self._ranks[rank] = process, ours

    def watch(self, stopping: threading.Event, hear: Callable[[Any], None]) -> Result:
        """Listen until all ranks are done."""
        results: dict[int, Result] = {}
        stopped: set[int] = set()
        while len(results) + len(stopped) < len(self._ranks):
            self._look_beyond(stopping)
            ended = {*results, *stopped, *(rank for _, rank, _ in self._failures)}
            open_pipes = {pipe: rank for rank, (_, pipe) in self._ranks.items() if rank not in ended}
            for pipe in wait(list(open_pipes), timeout=POLL_SECONDS):
                rank = open_pipes[pipe]  # type: ignore[index]
                match self._receive(rank):
                    case _Told(value):
                        hear(value)
                    case _Done(result):
                        results[rank] = result
                    case _Stopped():
                        stopped.add(rank)
                    case _Failed() as failure:
                        self._failures.append((time.monotonic(), rank, failure))
            self._raise_the_cause()
            if not open_pipes:
                time.sleep(POLL_SECONDS)  # a failure waits for its cause
        if stopped:
            raise Stopped
        return results[min(results)]

    def _look_beyond(self, stopping: threading.Event) -> None:
        """Pass on what this node and the others were asked; raises what ended the others."""
        if self._others is not None and self._others_stopped is None and self._others.asked_to_stop():
            self._others_stopped = time.monotonic()
        if not self._told_to_stop and (stopping.is_set() or self._others_stopped is not None):
            self._told_to_stop = True
            for process, _ in self._ranks.values():
                process.terminate()
        if self._others is None:
            return
        if (trouble := self._others.trouble()) is not None:
            self._raise_the_cause(at_once=True)
            raise trouble
        if self._others_stopped is not None and time.monotonic() - self._others_stopped > STOP_SECONDS:
            raise Stopped  # these ranks wait for one that is gone; what the last checkpoint holds is what there is

    def _raise_the_cause(self, *, at_once: bool = False) -> None:
        """Raise the failure that explains the others, once it is known; `at_once`: only one that is no consequence."""
        if not self._failures:
            return
        since = self._failures[0][0]
        _, rank, failure = min(self._failures, key=lambda each: (each[2].consequence, each[2].kind is None, each[1]))
        if not failure.consequence or (not at_once and time.monotonic() - since > CAUSE_SECONDS):
            raise failure.error(rank)

    def end(self) -> None:
        """No rank is left."""
        for process, pipe in self._ranks.values():
            process.join(timeout=0 if process.exitcode is None else None)
            if process.is_alive():
                process.kill()
            process.join()
            pipe.close()

    def _receive(self, rank: int) -> Any:
        process, pipe = self._ranks[rank]
        try:
            return pipe.recv()
        except EOFError:
            process.join()
            code = process.exitcode or 0
            if self._told_to_stop and code == -signal.SIGTERM:
                raise Stopped from None  # it had not begun to listen: no step was taken, and the others wait for it
            if code == -signal.SIGABRT and (len(self._ranks) > 1 or self._others is not None):
                return _Failed(
                    Transient,
                    PEER_LOST,
                    f"Process {rank} of the training aborted: so NCCL ends a process "
                    "that waits for another which is gone.",
                )
            return _died(rank, code)


def _died(rank: int, code: int) -> _Failed:
    if code == -signal.SIGKILL:
        return _Failed(
            Transient,
            "RankKilled",
            f"Process {rank} of the training was killed (signal 9), most often because the pod's memory was full: "
            "raise the stage's memory limit, or use fewer processes.",
        )
    return _Failed(None, "", f"ended without a word, exit code {code}")


def _main(work: Work[Any], rank: int, pipe: Connection) -> None:
    """A rank's whole life."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lock = threading.Lock()

    def send(message: _Told | _Done | _Stopped | _Failed) -> None:
        with lock:
            pipe.send(message)

    try:
        result = work(rank, stopping, lambda value: send(_Told(value)))
    except Stopped:
        send(_Stopped())
    except StageError as error:
        send(_Failed(type(error), error.reason, error.message))
    except Exception as error:  # noqa: BLE001  (the parent is told, whatever it was)
        traceback.print_exc()
        send(_Failed(None, "", f"{type(error).__name__}: {error}"))
    else:
        send(_Done(result))
    finally:
        pipe.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
