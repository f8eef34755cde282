"""What the nodes of a training tell each other, without a training: who ends, and what the others learn of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kubedistill_api.base import Stage
from kubedistill_api.exits import PEER_LOST
from kubedistill_api.results import Success, TrainResult
from kubedistill_api.run import TrainRun
from kubedistill_trainer import engine, meeting, table
from kubedistill_trainer.errors import BadData, StageError, Stopped, Transient
from kubedistill_trainer.meeting import Meeting, meet
from kubedistill_trainer.progress import ProgressBoard
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.store.workspace import Workspace

RESULT = TrainResult(
    input_digest="i", output_digest="o", folder="f", steps=1, loss=0.5, tokens_per_second=1, micro_batch_size=1
)
Body = Callable[[Meeting, StageContext], Any]


class Room:
    """A meeting point, and nodes that come to it in threads."""

    def __init__(self, run: TrainRun, folder: Path, nodes: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            leader = f"127.0.0.1:{free.getsockname()[1]}"
        training = run.training.model_copy(update={"nodes": nodes})
        self._run = run.model_copy(update={"leader": leader, "training": training, "join_seconds": 20})
        self._folder = folder
        self._threads = ThreadPoolExecutor(max_workers=8)
        self.contexts: dict[int, StageContext] = {}

    def enter(self, node: int, body: Body, seconds: int | None = None) -> Future[Any]:
        """A node that does `body` once all are here; what it returns or raises is the future's."""
        context = StageContext(
            workspace=Workspace.open(self._folder.as_uri()),
            scratch=self._folder,
            progress=ProgressBoard(Stage.TRAIN),
            stopping=threading.Event(),
            worker=node,
        )
        self.contexts[node] = context
        run = self._run.model_copy(update={"join_seconds": seconds}) if seconds else self._run

        def live() -> Any:
            with meet(run, context) as nodes:
                return body(nodes, context)

        return self._threads.submit(live)

    def close(self) -> None:
        self._threads.shutdown()


@pytest.fixture
def a_room(
    a_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Room]]:
    """Rooms in which seconds are short."""
    monkeypatch.setattr(table, "BEAT_SECONDS", 0.1)
    for name, seconds in (("LOST_SECONDS", 1.5), ("LEAVE_SECONDS", 3.0)):
        monkeypatch.setattr(meeting, name, seconds)
    rooms: list[Room] = []

    def build(nodes: int = 2) -> Room:
        rooms.append(Room(a_run(), tmp_path, nodes))
        return rooms[-1]

    yield build
    for room in rooms:
        room.close()


def waits(nodes: Meeting, context: StageContext) -> None:
    """As a node whose ranks are in a collective."""
    end = time.monotonic() + 15
    while time.monotonic() < end:
        if (trouble := nodes.trouble()) is not None:
            raise trouble
        if nodes.asked_to_stop() or context.stopping.is_set():
            raise Stopped
        time.sleep(0.02)


def fails(error: Exception) -> Body:
    def body(nodes: Meeting, context: StageContext) -> None:
        raise error

    return body


def reason(ended: Future[Any]) -> str:
    error = ended.exception(timeout=20)
    assert isinstance(error, StageError)
    return error.reason


def test_all_agree_on_what_the_first_says(a_room: Callable[..., Room]) -> None:
    room = a_room(nodes=3)
    heard: dict[int, list[str]] = {}

    def agree(nodes: Meeting, _: StageContext) -> None:
        heard[nodes.node] = [nodes.agree(f"{nodes.node}"), nodes.agree(f"then {nodes.node}")]
        nodes.done(RESULT) if nodes.node == 0 else nodes.result(lambda: None)

    for end in [room.enter(n, agree) for n in range(3)]:
        end.result(timeout=20)
    assert heard == {node: ["0", "then 0"] for node in range(3)}


def test_all_return_what_the_first_has_committed(a_room: Callable[..., Room]) -> None:
    room = a_room(nodes=3)
    first = room.enter(0, lambda nodes, _: (time.sleep(0.5), nodes.done(RESULT)))
    others = [room.enter(n, lambda nodes, _: nodes.result(lambda: None)) for n in (1, 2)]
    assert [end.result(timeout=20) for end in others] == [RESULT, RESULT]
    first.result(timeout=20)


@pytest.mark.parametrize("committed", [RESULT, None])
def test_a_first_node_that_is_gone_may_have_committed(committed: Success | None, a_room: Callable[..., Room]) -> None:
    room = a_room()
    room.enter(0, lambda *_: time.sleep(0.5))
    end = room.enter(1, lambda nodes, _: nodes.result(lambda: committed))
    if committed is not None:
        assert end.result(timeout=20) == RESULT
    else:
        assert reason(end) == PEER_LOST


@pytest.mark.parametrize("failing", [0, 1])
def test_a_node_that_fails_ends_the_others_with_its_words(failing: int, a_room: Callable[..., Room]) -> None:
    room = a_room(nodes=3)
    ends = [room.enter(n, fails(BadData("Bad", "No good.")) if n == failing else waits) for n in range(3)]
    assert reason(ends.pop(failing)) == "Bad"
    for end in ends:
        assert reason(end) == PEER_LOST
        assert f"node {failing}: No good." in str(end.exception())


@pytest.mark.parametrize("silent", [0, 1])
def test_a_node_that_is_silent_is_lost(silent: int, a_room: Callable[..., Room]) -> None:
    room, noticed = a_room(), threading.Event()

    def dies(nodes: Any, context: StageContext) -> None:
        nodes._line.close()  # nothing is sent any more
        if nodes.node == 0:
            nodes._table = nodes._line._table = None
        noticed.wait(20)

    ends = [room.enter(n, dies if n == silent else waits) for n in (0, 1)]
    assert reason(ends[1 - silent]) == PEER_LOST
    noticed.set()


@pytest.mark.parametrize("asked", [0, 1])
def test_a_node_that_is_stopped_stops_the_others(asked: int, a_room: Callable[..., Room]) -> None:
    room = a_room()
    ends = [room.enter(n, fails(Stopped()) if n == asked else waits) for n in (0, 1)]
    assert all(isinstance(end.exception(timeout=20), Stopped) for end in ends)


@pytest.mark.parametrize("asked", [0, 1])
def test_a_node_that_is_stopped_while_others_are_missing_goes_at_once(asked: int, a_room: Callable[..., Room]) -> None:
    room = a_room(nodes=3)
    ends = [room.enter(n, waits) for n in (0, 1)]
    time.sleep(0.5)
    started = time.monotonic()
    room.contexts[asked].stopping.set()
    assert isinstance(ends[asked].exception(timeout=20), Stopped)
    assert time.monotonic() - started < 2
    other = ends[1 - asked].exception(timeout=20)
    assert isinstance(other, Stopped) or (asked == 0 and isinstance(other, Transient))


def test_a_node_that_is_stopped_during_the_export_leaves_the_others_alone(a_room: Callable[..., Room]) -> None:
    room = a_room(nodes=3)
    first = room.enter(0, lambda nodes, _: (time.sleep(1.5), nodes.done(RESULT)))
    others = [room.enter(n, lambda nodes, _: nodes.result(lambda: None)) for n in (1, 2)]
    time.sleep(0.5)
    room.contexts[1].stopping.set()
    assert isinstance(others[0].exception(timeout=20), Stopped)
    assert others[1].result(timeout=20) == RESULT
    first.result(timeout=20)


def test_a_place_is_given_once(a_room: Callable[..., Room]) -> None:
    room = a_room(nodes=3)
    ends = [room.enter(n, waits) for n in (0, 1)]
    time.sleep(1.0)
    again = room.enter(1, waits)
    assert reason(again) == PEER_LOST
    assert "replaced" in str(again.exception())
    ends.append(room.enter(2, fails(Transient("Enough", "x"))))
    assert {reason(end) for end in ends} == {PEER_LOST, "Enough"}


@pytest.mark.parametrize("there", [0, 1])
def test_nodes_that_do_not_come_are_named(there: int, a_room: Callable[..., Room]) -> None:
    end = a_room(nodes=2).enter(there, waits, seconds=1)
    assert reason(end) == "NodesMissing"
    assert ("1 of 2 came" if there == 0 else "did not answer") in str(end.exception())


def test_one_node_meets_nobody(a_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    context = StageContext(Workspace.open(tmp_path.as_uri()), tmp_path, ProgressBoard(Stage.TRAIN), threading.Event())
    with meet(a_run(), context) as nodes:
        assert (nodes.rendezvous, nodes.agree("as I say"), nodes.trouble()) == ("", "as I say", None)


def test_ranks_whose_table_is_gone_say_that_they_lost_another() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = engine.Place(rank=1, world_size=2)
    with pytest.raises(Transient) as lost, engine.together(place, f"tcp://127.0.0.1:{port}"):
        pass
    assert lost.value.reason == PEER_LOST
