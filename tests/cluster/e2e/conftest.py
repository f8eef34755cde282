"""The installed operator and a namespace with models and prompts, for every end-to-end test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from walk import steps
from walk.kube import Kube

ROOT = steps.ROOT


@pytest.fixture(scope="session")
def operator(cluster_kubeconfig: Path) -> Kube:
    """The operator as `helm install` leaves it, seen from its own namespace."""
    subprocess.run([sys.executable, ROOT / "tests" / "cluster" / "images.py"], check=True)
    steps.install(cluster_kubeconfig)
    return Kube(cluster_kubeconfig, steps.SYSTEM)


@pytest.fixture(scope="session")
def kube(operator: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """The demonstration's namespace with the real teacher, a toy and the prompts in claims."""
    kube = steps.make_namespace(operator.kubeconfig, steps.DEMO)
    toy = tmp_path_factory.mktemp("models") / "toy"
    models = ROOT / "examples" / "models"
    subprocess.run([sys.executable, models / "fetch_smollm2.py"], check=True)
    subprocess.run([sys.executable, models / "make_toy.py", "--output", toy], check=True)
    steps.lay_out(kube)
    steps.put(kube, steps.TEACHER, "kubedistill-models")
    steps.put(kube, toy, "kubedistill-models")
    for name in ("support-train.jsonl", "support-valid.jsonl"):
        steps.put(kube, ROOT / "examples" / "data" / name, "kubedistill-data")
    yield kube
    kube("delete", "dj", "--all", "--ignore-not-found", "--wait=true", "--timeout=120s")
