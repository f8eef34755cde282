"""The processes of a training live and die together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("ranks_script.py")

pytestmark = pytest.mark.slow


def start(what: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, str(SCRIPT), what, str(folder)], stdout=subprocess.PIPE, text=True)


def wait_for(folder: Path, *names: str) -> None:
    deadline = time.monotonic() + 60
    while not all((folder / name).exists() and (folder / name).read_text() for name in names):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(folder: Path, rank: int) -> bool:
    """Whether a rank's process runs; a zombie does not."""
    pid = (folder / f"pid-{rank}").read_text()
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("what", "end"),
    [
        pytest.param("succeed", "returned result of rank 0", id="all return"),
        pytest.param("full", "raised DeviceOutOfMemory DeviceOutOfMemory", id="one raises a StageError"),
        pytest.param("bug", "raised RuntimeError rank 1: KeyError: 'something'", id="one has a bug"),
        pytest.param("killed", "raised Transient RankKilled", id="one is killed"),
    ],
)
def test_the_first_rank_that_ends_badly_ends_all(what: str, end: str, tmp_path: Path) -> None:
    with start(what, tmp_path) as process:
        said, _ = process.communicate(timeout=120)
    assert said.splitlines()[-1] == end
    assert not alive(tmp_path, 0)
    assert not alive(tmp_path, 1)


def test_what_ranks_tell_is_heard_in_the_parent(tmp_path: Path) -> None:
    with start("succeed", tmp_path) as process:
        said, _ = process.communicate(timeout=120)
    assert {"heard rank 0 is here", "heard rank 1 is here"} <= set(said.splitlines())


def test_sigterm_reaches_every_rank_and_each_finishes_what_it_is_at(tmp_path: Path) -> None:
    with start("wait", tmp_path) as process:
        wait_for(tmp_path, "pid-0", "pid-1")
        time.sleep(0.2)
        process.terminate()
        said, _ = process.communicate(timeout=120)
    assert said.splitlines()[-1] == "raised Stopped"
    assert (tmp_path / "saved-0").exists()


def test_no_rank_outlives_its_parent(tmp_path: Path) -> None:
    with start("full-stop", tmp_path) as process:
        wait_for(tmp_path, "pid-0", "pid-1")
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        deadline = time.monotonic() + 30
        while alive(tmp_path, 0) or alive(tmp_path, 1):
            assert time.monotonic() < deadline
            time.sleep(0.05)
