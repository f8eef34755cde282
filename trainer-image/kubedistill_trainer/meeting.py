"""What the nodes of one training tell each other: that they are here, where they go on from, and that it is over.

Each node is a pod with its index. The first one holds a table of keys behind a name that the operator knows before the
pods exist, so nobody has to be elected. The processes of the nodes find each other in the same table. Nodes talk to it
beside the training, so that no collective is needed to learn that there will be none:

- A node that fails says so, and the others end at once with `PeerLost`, which blames nobody here.
- A node that says nothing for LOST_SECONDS is lost. Without that the others would wait in a collective for an hour.
- A node that is asked to stop passes it on: all write the checkpoint of one step, and all end with `Stopped`.
- A pod that was replaced is not let in again: its ranks would wait for a training that is half over.

There is no rejoining and no other number of nodes: the next attempt starts all of them anew.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch names it without exporting it

from kubedistill_api.exits import PEER_LOST
from kubedistill_api.results import FailedResult, Success, read_result
from kubedistill_api.run import JOIN_SECONDS, TrainRun
from kubedistill_trainer.errors import StageError, Stopped, Transient
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.table import CONNECT_SECONDS, POLL_SECONDS, Line, open_table, table_at

LOST_SECONDS = 30.0
"""Processes that load a model may hold Python's lock for seconds; a node that is gone is gone for good."""
LEAVE_SECONDS = 10.0
"""How long the first node keeps the table for the others to read the last word."""

JOINED = "joined"
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
        """Whether another node has stopped, or is about to."""

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
        Stopped: SIGTERM came while waiting, here or to another node.
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


class Nodes:
    """Several nodes."""

    def __init__(self, leader: str, nodes: int, context: StageContext) -> None:
        """`leader` is `host:port` of the first node."""
        self.node = context.worker
        self._nodes = nodes
        self._others = range(1, nodes)
        self._context = context
        self._host, _, port = leader.rpartition(":")
        self._port = int(port)
        self._table: TCPStore | None = None
        """Of the first node; it lives as long as this does."""
        self._line: Line | None = None
        self._over: Transient | None = None
        self._complete = self._exporting = False
        self._agreed = 0

    @property
    def rendezvous(self) -> str:
        return f"tcp://{self._host}:{self._port}"

    def join(self, seconds: float) -> None:
        """Wait until all nodes are here. Raises as `meet`; called first, and once."""
        end = time.monotonic() + seconds
        self._context.progress.update(message=f"waiting for the {self._nodes} nodes of the training")
        while (table := self._opened()) is None:
            self._give_up_at(end, "the first node did not answer")
            time.sleep(POLL_SECONDS)
        if not _takes_place(table, self.node):
            raise _lost(f"node {self.node} was replaced in the middle")
        line = self._line = Line(table, self.node, _Watch(self._nodes) if self.node == 0 else None)
        line.ask(OVER, STOPPING)
        line.count(JOINED)
        while line.number(JOINED) < self._nodes:
            self._give_up_at(end, f"{line.number(JOINED)} of {self._nodes} came")
            self._raise_trouble()
            line.wait()
        self._complete = True
        self._context.log.info("node %d: all %d nodes are here", self.node, self._nodes)

    def agree(self, text: str) -> str:
        self._agreed += 1
        key = f"agreed/{self._agreed}"
        if self.node > 0:
            return self._awaited(key)
        self._to_others.say(key, text)
        return text

    def trouble(self) -> Exception | None:
        line = self._to_others
        if self._over is None and (over := line.heard(OVER)) is not None:
            node, text = json.loads(over)
            self._over = _lost(f"node {node}: {text}") if node != self.node else None
        if self._over is None and line.silent_seconds > LOST_SECONDS:
            self._over = _lost("the first node does not answer any more")
        return self._over

    def asked_to_stop(self) -> bool:
        return self._to_others.heard(STOPPING) is not None

    def done(self, result: Success) -> None:
        self._to_others.say(DONE, result.model_dump_json(by_alias=True))
        self._until_others_left()

    def result(self, committed: Callable[[], Success | None]) -> Success:
        self._exporting = True
        try:
            text = self._awaited(DONE)
        except Transient:
            found = committed()  # it may have committed and gone before we heard of it
            if found is None:
                raise
            return found
        self._to_others.say(f"left/{self.node}")
        self._to_others.until(lambda: True, LEAVE_SECONDS)
        result = read_result(text)
        assert not isinstance(result, FailedResult)
        return result

    def leave_stopped(self) -> None:
        """This node ends in order, and the others with it, unless only the first one's export is left to wait for."""
        if self._line is None:
            return
        if not self._exporting:
            self._line.say(STOPPING)
        self._line.say(f"left/{self.node}")
        self._until_others_left()

    def leave_failed(self, error: Exception) -> None:
        """This node ends because of an error: the others are told, unless they were the cause."""
        if self._line is None:
            return
        if self.trouble() is None:
            text = error.message if isinstance(error, StageError) else f"{type(error).__name__}: {error}"
            self._line.say_first(OVER, json.dumps([self.node, text]))
        self._line.say(f"left/{self.node}")
        self._until_others_left()

    def close(self) -> None:
        """The table goes with its last user."""
        if self._line is not None:
            self._line.close()
        self._table = None

    @property
    def _to_others(self) -> Line:
        assert self._line is not None, "join comes first"
        return self._line

    def _opened(self) -> TCPStore | None:
        """A connection to the table; None if the first node does not answer yet."""
        if self.node == 0:
            try:
                self._table = open_table(self._port)
            except RuntimeError as error:
                raise Transient(
                    "MeetingPortTaken", f"Port {self._port}, where the nodes of the training meet, is taken."
                ) from error
            return self._table
        try:
            # torch would print a stack of C++ for each time in vain
            socket.create_connection((self._host, self._port), timeout=CONNECT_SECONDS).close()
            return table_at(self.rendezvous)
        except (OSError, RuntimeError):
            return None

    def _give_up_at(self, end: float, how_far: str) -> None:
        self._context.check_stopping()
        if time.monotonic() > end:
            raise Transient(
                "NodesMissing",
                f"The nodes of the training were not there at one time, {how_far}: make room for all "
                f"{self._nodes} pods (a queue that admits them together does: scheduling.queueName), write fewer "
                "training.nodes, or a longer runPolicy.pendingDeadlineSeconds.",
            )

    def _raise_trouble(self) -> None:
        if (trouble := self.trouble()) is not None:
            raise trouble
        if self.asked_to_stop() and not self._exporting:
            raise Stopped

    def _awaited(self, key: str) -> str:
        """The text of a key that the first node will write.

        Raises:
            Transient, Stopped: it never will, or we cannot wait.
        """
        line = self._to_others
        line.ask(key)
        while (text := line.heard(key)) is None:
            self._context.check_stopping()
            self._raise_trouble()
            line.wait()
        return text

    def _until_others_left(self) -> None:
        """The first node waits until each other one has read the last word; others only until theirs is said."""
        keys = [f"left/{node}" for node in self._others] if self.node == 0 and self._complete else []
        self._to_others.ask(*keys)
        self._to_others.until(lambda: all(self._to_others.heard(key) is not None for key in keys), LEAVE_SECONDS)


def _takes_place(table: TCPStore, node: int) -> bool:
    try:
        return int(table.add(f"place/{node}", 1)) == 1
    except RuntimeError as error:
        raise _lost("the first node is gone") from error


class _Watch:
    """What the first node does at each beat: it tells all of a node that was not heard for too long and did not go."""

    def __init__(self, nodes: int) -> None:
        self._last = dict.fromkeys(range(1, nodes), (0, time.monotonic()))

    def __call__(self, table: TCPStore) -> None:
        now = time.monotonic()
        for node, (count, since) in self._last.items():
            beats = int(table.add(f"beat/{node}", 0))
            if beats != count or not beats:  # one that never came is waited for elsewhere
                self._last[node] = beats, now
            elif now - since > LOST_SECONDS and not table.check([f"left/{node}"]):
                table.compare_set(OVER, "", json.dumps([node, "it does not answer any more"]))


def _lost(why: str) -> Transient:
    return Transient(PEER_LOST, f"The training over several nodes cannot go on, {why}. All nodes start anew.")
