"""The installed operator and a namespace with models and prompts, for every end-to-end test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def toy_job(name: str, **spec: Any) -> dict[str, Any]:
    """A small job that a toy can do in a minute or two: the teacher answers inside the Generate pod."""
    document: dict[str, Any] = {
        "apiVersion": "kubedistill.io/v1alpha1",
        "kind": "DistillationJob",
        "metadata": {"name": name},
        "spec": {
            "teachers": [
                {
                    "name": "toy",
                    "model": {"uri": "pvc://kubedistill-models/toy"},
                    "batch": {"gpus": 0, "precision": "FP32"},
                }
            ],
            "student": {"prunedFrom": {"teacher": "toy", "layers": 2}},
            "data": {"train": {"uri": "pvc://kubedistill-data/support-train.jsonl"}, "maxRows": 32},
            "generation": {
                "signal": "TopK",
                "topK": 8,
                "maxTokens": 16,
                "shards": 2,
                "parallelism": 1,
                "minYield": 0.1,
                "filters": {"dropTruncated": False, "dropRepetitive": False, "deduplicate": False},
            },
            "training": {
                "objective": {"type": "ForwardKL", "softWeight": 1.0},
                "hyperparameters": {"learningRate": 1e-3, "epochs": 2, "microBatchSize": 8, "globalBatchSize": 8},
                "gpusPerNode": 0,
                "precision": "FP32",
                "gradientCheckpointing": False,
                "deepspeed": {"zeroStage": 0},
                "checkpoints": {"everySteps": 2},
            },
            "evaluation": {"metrics": ["TeacherKL", "Perplexity"], "maxRows": 4},
            "output": {"uri": f"pvc://kubedistill-students/{name}", "overwrite": "IfOwned"},
        },
    }
    document["spec"].update(spec)
    return document
