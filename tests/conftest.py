"""Real servers for whoever asks: each is started once per test session, on free ports, and gone after it. And what the
tests of many folders share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from rig import paths, services
from rig.services import ObjectStore
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

CLUSTER = "tests/cluster/e2e"
"""The tests on the cluster that runs pods: there is one, and the operator is installed once."""

settings.register_profile("kubedistill", deadline=None)  # a busy machine is no reason for a property to fail
settings.load_profile("kubedistill")


class ByFile(LoadFileScheduling):
    """Whole files to a worker, for the fixtures that their tests share; all that share the cluster to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return CLUSTER if file.startswith(CLUSTER) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """Ours for `--dist loadfile`. (`loadgroup` would do, but xdist 3.8 does not reach the node ids of pytest 9.2.)"""
    return ByFile(config, log) if config.getoption("dist") == "loadfile" else None


LONGEST = (
    CLUSTER,
    "tests/examples/test_quickstart",
    "tests/pipeline/",
    "tests/trainer/train/",
    "tests/trainer/store/",
    "tests/bench/",
    "tests/unit_operator/test_any_spec",
)
"""Minutes each. Begun last, one of them would run alone while the other workers have nothing left."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first, when workers share the work."""

    def place(item: pytest.Item) -> int:
        return next((place for place, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """torch computes on one thread, here and in processes that start here, until the session ends.

    On toys a second thread only waits, and on a busy machine for long.
    """
    import torch  # here: the operator's tests need none

    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[ObjectStore]:
    """An empty S3 object store. Its binary is built if this machine has none yet, which takes minutes."""
    with services.seaweedfs() as store:
        yield store


@pytest.fixture(scope="session")
def api_server() -> Iterator[Path]:
    """The kubeconfig of an API server with etcd and controllers and no node, of this test session alone."""
    with services.api_server() as kubeconfig:
        yield kubeconfig


@pytest.fixture(scope="session")
def cluster_kubeconfig() -> Iterator[Path]:
    """The kubeconfig of a cluster that runs pods: the one KUBECONFIG names, or else the rig.

    A rig that is up already stays up; one that was brought up here is taken down again.
    """
    chosen = os.environ.get("KUBECONFIG")
    if chosen:
        yield Path(chosen)
        return
    was_up = _rig("status").returncode == 0
    started = _rig("up")
    assert started.returncode == 0, started.stderr
    yield paths.full().kubeconfig
    if not was_up:
        stopped = _rig("down")
        assert stopped.returncode == 0, stopped.stderr


def _rig(command: str) -> subprocess.CompletedProcess[str]:
    script = paths.RIG / "rig.py"
    return subprocess.run([sys.executable, script, command], check=False, capture_output=True, text=True)
