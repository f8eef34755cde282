"""A table of keys that the first of several nodes holds (torch's TCPStore), and how the others read it.

torch's calls wait for an answer as long as the network takes to give up, which is a quarter of an hour. So one thread
talks, and whoever wants to know something waits for the thread, as long as they like.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from urllib.parse import urlsplit

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch names it without exporting it

BEAT_SECONDS = 1.0
POLL_SECONDS = 0.2
CONNECT_SECONDS = 5


def open_table(port: int) -> TCPStore:
    """A new table on this machine. Raises RuntimeError if the port is taken."""
    return TCPStore("localhost", port, is_master=True, wait_for_workers=False)


def table_at(rendezvous: str) -> TCPStore:
    """A connection to the table at `tcp://host:port`, for one thread. Raises RuntimeError if none answers."""
    where = urlsplit(rendezvous)
    patience = timedelta(seconds=CONNECT_SECONDS)
    return TCPStore(str(where.hostname), where.port or 0, is_master=False, timeout=patience, wait_for_workers=False)


class Letters:
    """What a process of one node leaves in the table for one of another."""

    def __init__(self, rendezvous: str) -> None:
        self._table = table_at(rendezvous)

    def leave(self, name: str, text: str) -> None:
        self._table.set(f"letter/{name}", text)

    def collect(self, name: str) -> str:
        """Wait for it. Who should have left it may have failed: then its node ends this one."""
        while not self._table.check([f"letter/{name}"]):
            time.sleep(POLL_SECONDS)
        return self._table.get(f"letter/{name}").decode()


class Line:
    """A thread that says, asks and listens for one node. Its methods never wait for the network."""

    def __init__(self, table: TCPStore, node: int, watch: Callable[[TCPStore], None] | None = None) -> None:
        """`watch` is called with the table at each beat."""
        self._table = table
        self._node = node
        self._watch = watch
        self._changed = threading.Condition()
        self._to_say: list[Callable[[], object]] = []
        self._asked: set[str] = set()
        self._texts: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._heard = time.monotonic()
        self._broken = self._closed = False
        self._thread = threading.Thread(target=self._talk, name="table", daemon=True)
        self._thread.start()

    @property
    def silent_seconds(self) -> float:
        """Since the table last answered; without end once it is gone."""
        return float("inf") if self._broken else time.monotonic() - self._heard

    def say(self, key: str, text: str = "") -> None:
        """Set a key."""
        self._do(lambda: self._table.set(key, text))

    def say_first(self, key: str, text: str) -> None:
        """Set a key, unless somebody has."""
        self._do(lambda: self._table.compare_set(key, "", text))

    def count(self, key: str) -> None:
        """Add one to a number."""
        self._counts.setdefault(key, 0)
        self._do(lambda: self._table.add(key, 1))

    def number(self, key: str) -> int:
        """A number that this node adds to, as last heard."""
        return self._counts[key]

    def ask(self, *keys: str) -> None:
        """Listen for keys from now on."""
        with self._changed:
            self._asked.update(keys)
            self._changed.notify_all()

    def heard(self, key: str) -> str | None:
        """The text of a key that was asked for, once somebody has set it."""
        return self._texts.get(key)

    def wait(self) -> None:
        """A moment, or until something was heard."""
        with self._changed:
            self._changed.wait(POLL_SECONDS)

    def until(self, true: Callable[[], bool], seconds: float) -> None:
        """Wait until something holds, what was said is said, or the time is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._broken and (self._to_say or not true()):
            self.wait()

    def close(self) -> None:
        """End the thread; one that hangs in the network ends with the process."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=2 * BEAT_SECONDS)

    def _do(self, what: Callable[[], object]) -> None:
        with self._changed:
            self._to_say.append(what)
            self._changed.notify_all()

    def _talk(self) -> None:
        try:
            while not self._closed:
                self._beat()
                with self._changed:
                    if not self._to_say and not self._closed:
                        self._changed.wait(BEAT_SECONDS)
        except RuntimeError:
            with self._changed:
                self._broken = True
                self._changed.notify_all()

    def _beat(self) -> None:
        said = list(self._to_say)
        for say in said:
            say()
        self._table.add(f"beat/{self._node}", 1)
        counts = {key: int(self._table.add(key, 0)) for key in list(self._counts)}
        wanted = sorted(self._asked - self._texts.keys())
        texts = {key: self._table.get(key).decode() for key in wanted if self._table.check([key])}
        if self._watch is not None:
            self._watch(self._table)
        with self._changed:
            del self._to_say[: len(said)]
            self._counts |= counts
            self._texts |= texts
            self._heard = time.monotonic()
            self._changed.notify_all()
