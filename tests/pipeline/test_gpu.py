"""`kubedistill run` on a machine with a GPU: teacher, training and evaluation are on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def on_gpu(make_job: Callable[[str], Any]) -> Any:
    """The small job with a GPU for everything, in half precision, to its end."""
    job = make_job("gpu")
    file = job.folder / "job.yaml"
    document = yaml.safe_load(file.read_text())
    spec = document["spec"]
    spec["teachers"][0]["batch"] |= {"gpus": 1, "precision": "BF16", "batchSize": 8}
    spec["training"] |= {"gpusPerNode": 1, "precision": "BF16", "gradientCheckpointing": True}
    spec["evaluation"]["metrics"] += ["Perplexity", "Latency", "Throughput", "Memory"]
    file.write_text(yaml.safe_dump(document))
    job.run()
    return job


def test_the_student_comes_nearer_to_its_teacher(on_gpu: Any) -> None:
    said = json.loads(on_gpu.run("run", "job.yaml", "--output", "json"))
    scores = {score["metric"]: score for score in said["status"]["evaluation"]}
    assert float(scores["TeacherKL"]["student"]) < float(scores["TeacherKL"]["baseline"])
    assert all(float(scores[metric]["student"]) > 0 for metric in ("Perplexity", "Latency", "Throughput", "Memory"))


def test_its_model_loads_like_any_other(on_gpu: Any) -> None:
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(on_gpu.output).config.num_hidden_layers == 2
