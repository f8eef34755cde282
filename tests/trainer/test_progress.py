"""The progress server, asked by clients that behave and by some that do not."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import urllib.request

import pytest

from kubedistill_api.base import Stage
from kubedistill_api.progress import ProgressReport
from kubedistill_trainer.progress import ProgressBoard, serve


class SlowBoard(ProgressBoard):
    """Answers when it is let, as a stage does that imports a library."""

    def __init__(self) -> None:
        super().__init__(Stage.TRAIN)
        self.asked, self.let = threading.Event(), threading.Event()

    def report(self) -> ProgressReport:
        self.asked.set()
        assert self.let.wait(10)
        return super().report()


def test_a_client_that_did_not_wait_leaves_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    board = SlowBoard()
    server = serve(board, 0)
    assert server is not None
    port, before = server.server_address[1], threading.active_count()
    try:
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
        client.sendall(b"GET /progress HTTP/1.0\r\n\r\n")
        assert board.asked.wait(10)
        client.close()
        board.let.set()
        end = time.monotonic() + 10
        while threading.active_count() > before and time.monotonic() < end:
            time.sleep(0.01)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=10) as answer:
            assert json.load(answer)["stage"] == "Train"
    finally:
        server.shutdown()
        server.server_close()
    assert capfd.readouterr().err == ""
