"""A whole job whose model, data, workspace and output are in buckets of a real S3 server, none of them on this disk.

Its training runs over two nodes, each with a scratch folder of its own: what one wrote the other finds in the bucket.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3fs
import yaml
from toys.example import load_make_toy

from kubedistill_trainer.store.artifacts import MANIFEST
from kubedistill_trainer.store.workspace import Workspace

pytestmark = [pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(1800)]

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
PATIENCE_SECONDS = 900
"""For a busy machine."""
STEPS, EVERY_STEPS = 120, 10
"""So many that a signal sent at the first checkpoint comes long before the last; a toy makes dozens in a second."""


def test_every_stage_works_on_s3_and_a_stopped_training_goes_on_there(s3_bucket: str, tmp_path: Path) -> None:
    place = Workspace.open(f"{s3_bucket}/{tmp_path.name}")
    teacher = a_toy(tmp_path / "toy")
    place.put(teacher, "models/toy")
    rows = (EXAMPLES / "data" / "support-train.jsonl").read_bytes().splitlines(keepends=True)[:32]
    place.write_bytes("data/train.jsonl", b"".join(rows))
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(a_job(place.root)))

    with kubedistill(tmp_path) as first:
        wait_for(lambda: complete_checkpoints(place), first)
        first.send_signal(signal.SIGINT)
        text, _ = first.communicate(timeout=PATIENCE_SECONDS)
    assert first.returncode == 130, f"{text}\n{logs(tmp_path)}"
    stopped_at = max(complete_checkpoints(place))
    assert EVERY_STEPS <= stopped_at < STEPS
    shards = {path: place.read_bytes(path) for path in place.list("workspace") if "/shards/" in path}
    assert len(shards) == 3
    assert not any(path.startswith("out/") for path in place.list("out")), "nothing is published yet"
    parts = [path for path in place.list("workspace") if f"/step-{stopped_at:08}/" in path and "optim_states" in path]
    assert {path.split("_pp_rank_")[1].split("_")[0] for path in parts} == {"0", "1"}, "each node brings its own"
    assert not list(tmp_path.glob(".kubedistill/jobs/small/scratch/node-1/checkpoints/*")), "it is in the bucket"

    stale = (
        tmp_path
        / ".kubedistill"
        / "jobs"
        / "small"
        / "scratch"
        / "node-0"
        / "export"
        / "adapter"
        / "of-an-earlier-training"
    )
    stale.parent.mkdir(parents=True)
    stale.touch()
    with kubedistill(tmp_path) as second:
        text, _ = second.communicate(timeout=PATIENCE_SECONDS)
    assert second.returncode == 0, f"{text}\n{logs(tmp_path)}"
    assert f"going on from the checkpoint of step {stopped_at}" in logs(tmp_path)
    assert {path: place.read_bytes(path) for path in shards} == shards
    [losses] = [path for path in place.list("workspace") if path.endswith("/losses.jsonl")]
    lines = [json.loads(line) for line in place.read_bytes(losses).splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    for stage in ("prepare", "train", "evaluate", "publish"):
        assert any(f"/{stage}-" in path and path.endswith("/manifest.json") for path in place.list("workspace")), stage
    assert not any(path.endswith(stale.name) for path in place.list("workspace"))
    assert any(path.endswith("report.html") for path in place.list("workspace"))
    local = tmp_path / ".kubedistill" / "jobs" / "small" / "workspace"
    assert not local.exists() or not any(local.iterdir()), "something was kept on this disk"

    model = loaded_from_s3(f"{place.root}/out", tmp_path / "read back")
    assert model.config.num_hidden_layers == 2


def loaded_from_s3(uri: str, folder: Path) -> Any:
    """The published model as a user would get it: with a client of their own, each file held against its digest."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    client = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"], skip_instance_cache=True)
    client.get(f"{uri}/", f"{folder}/", recursive=True)
    manifest = json.loads((folder / MANIFEST).read_text())
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert set(there) == {MANIFEST, *manifest["files"]}
    for name, entry in manifest["files"].items():
        assert hashlib.sha256(there[name].read_bytes()).hexdigest() == entry["sha256"], name
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Where is my parcel?"}], add_generation_prompt=True, return_tensors="pt"
    )
    said = model.generate(**asked, max_new_tokens=4, do_sample=False)
    assert said.shape[1] > asked["input_ids"].shape[1]
    return model


def complete_checkpoints(place: Workspace) -> list[int]:
    """Steps of the markers in the bucket."""
    markers = [path for path in place.list("workspace") if path.endswith("/checkpoint.json")]
    return [int(path.split("/step-")[1].split("/")[0]) for path in markers]


def kubedistill(folder: Path) -> subprocess.Popen[str]:
    """`kubedistill run job.yaml`: each stage is a `python -m kubedistill_trainer <stage>` of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "kubedistill_cli", "run", "job.yaml"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "150"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(happened: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        if process.poll() is not None:
            pytest.fail(f"the job ended too early:\n{process.communicate()[0]}")
        assert time.monotonic() < end
        time.sleep(0.05)


def logs(folder: Path) -> str:
    paths = sorted((folder / ".kubedistill" / "jobs" / "small" / "logs").glob("*.log"))
    return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in paths)


def a_toy(folder: Path) -> Path:
    """The toy teacher, taught so far that a pruned student has something to win back."""
    make_toy = load_make_toy()
    return Path(make_toy.make_toy(folder, make_toy.Toy(vocabulary=512, steps=60)))


def a_job(root: str) -> dict[str, Any]:
    """Everything below one prefix of a bucket."""
    spec = {
        "task": "Conversation",
        "teachers": [
            {
                "name": "toy",
                "model": {"uri": f"{root}/models/toy"},
                "batch": {"engine": "Transformers", "gpus": 0, "batchSize": 16, "precision": "FP32"},
            }
        ],
        "student": {"prunedFrom": {"teacher": "toy", "layers": 2}},
        "data": {"train": {"uri": f"{root}/data/train.jsonl"}, "validationFraction": 0.2},
        "generation": {
            "signal": "TopK",
            "topK": 8,
            "tail": "Bucket",
            "temperature": 0,
            "maxTokens": 12,
            "shards": 2,
            "parallelism": 1,
            "minYield": 0.1,
            # A toy may babble until it is cut off.
            "filters": {"dropTruncated": False, "dropRepetitive": False, "minTokens": 0},
        },
        "training": {
            "objective": {"type": "ForwardKL", "softWeight": 1.0},
            "hyperparameters": {
                "learningRate": 2e-4,
                "epochs": STEPS,
                "maxSteps": STEPS,
                "globalBatchSize": 4,
                "microBatchSize": 2,
                "maxSequenceLength": 256,
            },
            "gpusPerNode": 0,
            "precision": "FP32",
            "gradientCheckpointing": False,
            "deepspeed": {"zeroStage": 2},
            "nodes": 2,
            "checkpoints": {"everySteps": EVERY_STEPS, "keepLast": 2},
        },
        "evaluation": {"metrics": ["TeacherKL", "TeacherAgreement"], "maxRows": 4},
        "output": {"uri": f"{root}/out"},
        "workspace": {"uri": f"{root}/workspace"},
    }
    metadata = {"name": "small"}
    return {"apiVersion": "kubedistill.io/v1alpha1", "kind": "DistillationJob", "metadata": metadata, "spec": spec}
