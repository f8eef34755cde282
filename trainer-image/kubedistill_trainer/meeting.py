"""What the nodes of one training tell each other: that they are here, where they go on from, and that it is over.

Each node is a pod with its index. The first one holds a table of keys (torch's TCPStore) behind a name that the
operator knows before the pods exist, so nobody has to be elected. The processes of the nodes find each other in the
same table. A node talks to it in a thread beside the training, so that no collective is needed to learn that there
will be none:

- A node that fails says so, and the others end at once with `PeerLost`, which blames nobody here.
- A node that says nothing for LOST_SECONDS is lost. Without that the others would wait in a collective for an hour.
- A node that is asked to stop passes it on: all write the checkpoint of one step, and all end with `Stopped`.
- A pod that was replaced is not let in again: its ranks would wait for a training that is half over.

There is no election, no rejoining and no other number of nodes: the next attempt starts all of them anew.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Protocol
from urllib.parse import urlsplit

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch names it without exporting it

from kubedistill_api.exits import PEER_LOST
from kubedistill_api.results import FailedResult, Success, read_result
from kubedistill_api.run import TrainRun
from kubedistill_trainer.errors import StageError, Stopped, Transient
from kubedistill_trainer.runtime import StageContext

JOIN_SECONDS = 1800
"""Images of many gigabytes are pulled on each node before it comes; GPUs of those that are there idle meanwhile."""
BEAT_SECONDS = 1.0
LOST_SECONDS = 30.0
"""Processes that load a model may hold Python's lock for seconds; a node that is gone is gone for good."""
STOP_SECONDS = 90.0
"""How long a node waits for the others' checkpoint once one was asked to stop: within the grace period of a pod."""
LEAVE_SECONDS = 10.0
"""How long the first node keeps the table for the others to read the last word."""
POLL_SECONDS = 0.2
CONNECT_SECONDS = 5

OVER = "over"
STOPPING = "stopping"
DONE = "done"


class Meeting(Protocol):
    """The nodes of a training, seen from one of them."""

    node: int
    """The first one is 0: it decides, exports and commits."""

    @property
    def rendezvous(self) -> str:
        """Where the processes of all nodes find each other; empty: no other node is there."""

    def agree(self, text: str) -> str:
        """What the first node says; collective, in the same order everywhere."""

    def trouble(self) -> Exception | None:
        """Why it is over for all, where it is."""

    def asked_to_stop(self) -> bool:
        """Whether another node was asked to stop."""

    def done(self, result: Success) -> None:
        """The first node has committed; the others are told."""

    def result(self, committed: Callable[[], Success | None]) -> Success:
        """What the first node has committed, once it has; `committed` looks for it in the workspace."""


class Alone:
    """One node: nobody to ask."""

    node = 0
    rendezvous = ""

    def agree(self, text: str) -> str:
        return text

    def trouble(self) -> Exception | None:
        return None

    def asked_to_stop(self) -> bool:
        return False

    def done(self, result: Success) -> None:
        pass

    def result(self, committed: Callable[[], Success | None]) -> Success:
        raise AssertionError("the only node has its own result")


@contextmanager
def meet(run: TrainRun, context: StageContext) -> Iterator[Meeting]:
    """All nodes of the training are here, for as long as the block runs.

    Raises:
        Transient: the others did not come within `run.join_seconds`, or this node's place is taken.
        Stopped: SIGTERM came while waiting.
    """
    if run.leader is None:
        yield Alone()
        return
    nodes = Nodes(run.leader, run.training.nodes, context)
    try:
        nodes.join(run.join_seconds or JOIN_SECONDS)
        yield nodes
    except Stopped:
        nodes.leave_stopped()
        raise
    except Exception as error:
        nodes.leave_failed(error)
        raise
    finally:
        nodes.close()


def table_at(rendezvous: str) -> TCPStore:
    """Another connection to the table of a meeting of several nodes: one thread at a time may use one."""
    where = urlsplit(rendezvous)
    patience = timedelta(seconds=CONNECT_SECONDS)
    return TCPStore(str(where.hostname), where.port or 0, is_master=False, timeout=patience, wait_for_workers=False)


class Letters:
    """What a process of one node leaves in the table for one of another."""

    def __init__(self, rendezvous: str) -> None:
        """`rendezvous` is that of a meeting of several nodes."""
        self._table = table_at(rendezvous)

    def leave(self, name: str, text: str) -> None:
        self._table.set(f"letter/{name}", text)

    def collect(self, name: str) -> str:
        """Wait for it. Who should have left it may be gone: the meeting notices, and ends this process."""
        while not self._table.check([f"letter/{name}"]):
            time.sleep(POLL_SECONDS)
        return self._table.get(f"letter/{name}").decode()


class Nodes:
    """Several nodes. Only `join` is called before it has returned."""

    def __init__(self, leader: str, nodes: int, context: StageContext) -> None:
        """`leader` is `host:port` of the first node."""
        self.node = context.worker
        self._nodes = nodes
        self._context = context
        self._host, _, port = leader.rpartition(":")
        self._port = int(port)
        self._table: TCPStore | None = None
        self._agreed = 0
        self._trouble: Exception | None = None
        self._stopping = threading.Event()
        self._closed = threading.Event()
        self._heard = time.monotonic()
        self._thread = threading.Thread(target=self._beat, name="meeting", daemon=True)

    @property
    def rendezvous(self) -> str:
        return f"tcp://{self._host}:{self._port}"

    def join(self, seconds: float) -> None:
        """Wait until all nodes are here. Raises as `meet`."""
        self._context.progress.update(message=f"waiting for the {self._nodes} nodes of the training")
        try:
            self._wait_for_all(time.monotonic() + seconds)
        except RuntimeError as error:
            raise _lost("the first node is gone") from error
        self._heard = time.monotonic()
        self._thread.start()
        self._context.log.info("node %d: all %d nodes are here", self.node, self._nodes)

    def _wait_for_all(self, end: float) -> None:
        while (table := self._opened()) is None:
            self._wait_or_give_up(end, "the first node did not answer")
        if table.add(f"joined/{self.node}", 1) > 1:
            raise _lost(f"node {self.node} was replaced in the middle")
        self._table = table
        here = table.add("joined", 1)
        while here < self._nodes:
            self._wait_or_give_up(end, f"{here} of {self._nodes} came")
            here = table.add("joined", 0)

    def agree(self, text: str) -> str:
        self._agreed += 1
        key = f"agreed/{self._agreed}"
        if self.node == 0:
            self._lead.set(key, text)
            return text
        return self._awaited(key)

    def trouble(self) -> Exception | None:
        if self._trouble is None and time.monotonic() - self._heard > LOST_SECONDS:
            self._trouble = _lost("the first node does not answer any more")
        return self._trouble

    def asked_to_stop(self) -> bool:
        return self._stopping.is_set()

    def done(self, result: Success) -> None:
        self._lead.set(DONE, result.model_dump_json(by_alias=True))
        self._until_others(LEAVE_SECONDS, "left")

    def result(self, committed: Callable[[], Success | None]) -> Success:
        try:
            text = self._awaited(DONE)
        except Transient:
            found = committed()  # it may have committed and gone before we heard of it
            if found is None:
                raise
            return found
        with suppress(RuntimeError):
            self._lead.set(f"left/{self.node}", "")
        result = read_result(text)
        assert not isinstance(result, FailedResult)
        return result

    def leave_stopped(self) -> None:
        """This node ends in order. The first one keeps the table until the others have, too."""
        with suppress(RuntimeError):
            if self._table is not None:
                self._table.set(STOPPING, "")
                self._table.set(f"stopped/{self.node}", "")
                self._until_others(STOP_SECONDS, "stopped", "left")

    def leave_failed(self, error: Exception) -> None:
        """This node ends because of an error: the others are told, unless they were the cause."""
        with suppress(RuntimeError):
            if self._table is not None and self._thread.is_alive():
                if self._trouble is None:
                    text = error.message if isinstance(error, StageError) else f"{type(error).__name__}: {error}"
                    self._table.compare_set(OVER, "", json.dumps([self.node, text]))
                self._until_others(LEAVE_SECONDS, "stopped", "left")

    def close(self) -> None:
        """The table goes with its last user."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * BEAT_SECONDS)
        self._table = None

    @property
    def _lead(self) -> TCPStore:
        assert self._table is not None, "join comes first"
        return self._table

    def _opened(self) -> TCPStore | None:
        """The table; None if the first node does not answer yet."""
        if self.node == 0:
            return TCPStore("localhost", self._port, is_master=True, wait_for_workers=False)
        try:
            socket.create_connection((self._host, self._port), timeout=CONNECT_SECONDS).close()
        except OSError:  # torch would print a stack of C++ for each time
            return None
        return table_at(self.rendezvous)

    def _wait_or_give_up(self, end: float, how_far: str) -> None:
        self._context.check_stopping()
        if time.monotonic() > end:
            raise Transient(
                "NodesMissing",
                f"The nodes of the training were not there at one time, {how_far}: make room for all "
                f"{self._nodes} pods (a queue that admits them together does: scheduling.queueName), write fewer "
                "training.nodes, or a longer runPolicy.pendingDeadlineSeconds.",
            )
        time.sleep(POLL_SECONDS)

    def _awaited(self, key: str) -> str:
        """The text of a key that the first node will write.

        Raises:
            Transient, Stopped: it never will.
        """
        while True:
            try:
                if self._lead.check([key]):
                    return self._lead.get(key).decode()
            except RuntimeError as error:
                raise _lost("the first node is gone") from error
            if (trouble := self.trouble()) is not None:
                raise trouble
            if self._stopping.is_set() or self._context.stopping.is_set():
                raise Stopped
            time.sleep(POLL_SECONDS)

    def _until_others(self, seconds: float, *words: str) -> None:
        """The first node waits until each other one has said one of these words."""
        end = time.monotonic() + seconds
        while self.node == 0 and time.monotonic() < end:
            if all(any(self._lead.check([f"{word}/{n}"]) for word in words) for n in range(1, self._nodes)):
                return
            time.sleep(POLL_SECONDS)

    # The thread

    def _beat(self) -> None:
        """Say that this node lives, and hear of the others, until it is over."""
        try:
            table = table_at(self.rendezvous)
            beats = _Beats(table, self.node, self._nodes)
            while self._trouble is None and not self._closed.wait(BEAT_SECONDS):
                table.add(f"beat/{self.node}", 1)
                if self.node == 0 and (silent := beats.silent()) is not None:
                    table.compare_set(OVER, "", json.dumps([silent, "it does not answer any more"]))
                if table.check([OVER]):
                    table.set(f"left/{self.node}", "")
                    node, text = json.loads(table.get(OVER))
                    self._trouble = _lost(f"node {node}: {text}") if node != self.node else None
                    return
                if table.check([STOPPING]):
                    self._stopping.set()
                self._heard = time.monotonic()
        except RuntimeError:
            self._trouble = self._trouble or _lost("the first node is gone")


class _Beats:
    """Which nodes live, for the first one."""

    def __init__(self, table: TCPStore, node: int, nodes: int) -> None:
        self._table = table
        self._others = [other for other in range(nodes) if other != node]
        self._last = dict.fromkeys(self._others, (-1, time.monotonic()))

    def silent(self) -> int | None:
        """A node that was not heard for too long and did not say that it goes."""
        now = time.monotonic()
        for node in self._others:
            count, since = self._last[node]
            beats = self._table.add(f"beat/{node}", 0)
            if beats != count:
                self._last[node] = beats, now
            elif now - since > LOST_SECONDS and not any(
                self._table.check([f"{word}/{node}"]) for word in ("stopped", "left")
            ):
                return node
        return None


def _lost(why: str) -> Transient:
    return Transient(PEER_LOST, f"The training over several nodes cannot go on, {why}. All nodes start anew.")
