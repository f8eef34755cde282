"""Small jobs for the end-to-end tests."""

from __future__ import annotations

from typing import Any


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
