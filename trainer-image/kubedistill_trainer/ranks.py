"""The processes of one training on one node: started, listened to, stopped together.

The parent serves progress, catches SIGTERM and writes the result, as in any other stage. It does not use torchrun:
that answers every failure with exit code 1 and kills the ranks 30 s after a SIGTERM, finished with their checkpoint or
not. What the parent does instead:

- SIGTERM is passed on; the ranks agree on a step, write their checkpoint, and raise Stopped. All may finish: the one
  that marks the checkpoint complete is seldom the first that is done.
- The first rank that fails ends all others at once: they wait in a collective for one who will not come.
- A rank whose parent died ends itself, so that no orphan writes beside a new attempt.

One process is no special case for the work, but it is done here, without a child.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Protocol, TypeVar

from kubedistill_trainer.errors import StageError, Stopped, Transient

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
POLL_SECONDS = 0.2


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

    def error(self, rank: int) -> Exception:
        return self.kind(self.reason, self.message) if self.kind else RuntimeError(f"rank {rank}: {self.message}")


def run_together(work: Work[Result], world_size: int, stopping: threading.Event, hear: Callable[[Any], None]) -> Result:
    """Run `work` on every rank and return what rank 0 returned. What ranks tell is heard in this process.

    Raises what the first failing rank raised, a StageError as such, anything else as RuntimeError; Stopped, when every
    rank has ended and one of them stopped.
    """
    if world_size == 1:
        return work(0, stopping, hear)
    group = _Group(work, world_size)
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
    def __init__(self, work: Work[Result], world_size: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ranks: list[tuple[BaseProcess, Connection]] = []
        for rank in range(world_size):
            ours, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(target=_main, args=(work, rank, theirs), name=f"rank {rank}", daemon=True)
            process.start()
            theirs.close()
            self._ranks.append((process, ours))

    def watch(self, stopping: threading.Event, hear: Callable[[Any], None]) -> Result:
        """Listen until all ranks are done."""
        results: dict[int, Result] = {}
        stopped: set[int] = set()
        told_to_stop = False
        while len(results) + len(stopped) < len(self._ranks):
            if stopping.is_set() and not told_to_stop:
                told_to_stop = True
                for process, _ in self._ranks:
                    process.terminate()
            ended = results.keys() | stopped
            open_pipes = {pipe: rank for rank, (_, pipe) in enumerate(self._ranks) if rank not in ended}
            ready = wait(list(open_pipes), timeout=POLL_SECONDS)
            messages = [(open_pipes[pipe], self._receive(open_pipes[pipe], told_to_stop)) for pipe in ready]  # type: ignore[index]
            for _, message in messages:
                if isinstance(message, _Told):
                    hear(message.value)
            stopped |= {rank for rank, message in messages if isinstance(message, _Stopped)}
            failures = [(rank, message) for rank, message in messages if isinstance(message, _Failed)]
            if failures:
                rank, failure = min(failures, key=lambda each: (each[1].kind is None, each[0]))
                raise failure.error(rank)
            results |= {rank: message.result for rank, message in messages if isinstance(message, _Done)}
        if stopped:
            raise Stopped
        return results[0]

    def end(self) -> None:
        """No rank is left."""
        for process, pipe in self._ranks:
            process.join(timeout=0 if process.exitcode is None else None)
            if process.is_alive():
                process.kill()
            process.join()
            pipe.close()

    def _receive(self, rank: int, told_to_stop: bool) -> Any:
        process, pipe = self._ranks[rank]
        try:
            return pipe.recv()
        except EOFError:
            process.join()
            code = process.exitcode or 0
            if told_to_stop and code == -signal.SIGTERM:
                raise Stopped from None  # it had not begun to listen: no step was taken, and the others wait for it
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
