"""Processes that a test may kill at any instant, started in milliseconds.

A server process imports what writers need, once; every writer is a fork of it, so that fifty of them cost what one
import costs. They are real processes with their own connections: SIGKILL leaves them no last word.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from typing import Any

Say = Callable[[Any], None]
"""Tell the test something. What was said before a SIGKILL arrives."""

_forks = multiprocessing.get_context("forkserver")
_STORE = ("artifacts", "checkpoints", "manifests", "shards", "workspace")
# Not `storing.writers`, which imports them: the server process does not get this process's sys.path, and a module
# that it cannot find it passes over in silence.
_forks.set_forkserver_preload([f"kubedistill_trainer.store.{name}" for name in _STORE])


class Mortal:
    """`function(*arguments, say=...)` in a process of its own, from its construction on."""

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        self._ours, theirs = _forks.Pipe(duplex=False)
        # The server process began with the environment of its day: each writer is told today's.
        variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        self._process = _forks.Process(target=_run, args=(function, arguments, theirs, variables), daemon=True)
        self._process.start()
        theirs.close()
        self.said: list[Any] = []

    def listen(self, seconds: float | None = None) -> bool:
        """Add the next message to `said`. False: none came within `seconds`, or it has said its last."""
        try:
            if seconds is not None and not self._ours.poll(seconds):
                return False
            self.said.append(self._ours.recv())
        except EOFError:
            return False
        return True

    def ready(self) -> None:
        """Wait for the first message: everything is open, and writing begins."""
        assert self.listen(60), "the writer did not begin"

    def kill(self) -> list[Any]:
        """SIGKILL; all that it had said by then."""
        self._process.kill()
        return self._end()

    def finish(self) -> list[Any]:
        """Wait for its end; all that it said."""
        said = self._end(120)
        assert self._process.exitcode == 0, f"the writer ended with {self._process.exitcode}"
        return said

    def _end(self, seconds: float = 30) -> list[Any]:
        while self.listen():
            pass
        self._process.join(seconds)
        self._ours.close()
        return self.said


def _run(function: Callable[..., None], arguments: tuple[Any, ...], pipe: Any, variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    function(*arguments, say=pipe.send)
