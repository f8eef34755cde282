"""Containers as processes: the command line that a pod would have, with this machine's Python, folders and ports."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kubedistill_cli.local.folders import JobFolder
from kubedistill_cli.local.translation import command_of, run_file_of
from kubedistill_operator.manifests.stage_job import ENTRYPOINT

ROOT = Path(__file__).parents[2]
FOLDER = JobFolder(Path("/somewhere"), "small")


def test_a_stage_runs_what_the_image_would() -> None:
    assert command_of({"args": ["train"]}, FOLDER, 1) == [sys.executable, "-m", "kubedistill_trainer", "train"]


def test_the_image_starts_the_stages_behind_tini() -> None:
    """The Job gives arguments only, so what the image starts and what the local runner starts must be the same."""
    lines = (ROOT / "trainer-image/Dockerfile").read_text().splitlines()
    entrypoint = json.loads(next(line for line in lines if line.startswith("ENTRYPOINT")).removeprefix("ENTRYPOINT"))
    assert entrypoint == ["tini", "--", *ENTRYPOINT]


def test_a_teacher_keeps_its_own_command_with_a_port_and_a_folder_of_this_machine() -> None:
    container = {
        "command": ["python3", "-m", "vllm.entrypoints.openai.api_server"],
        "args": ["--model=/mnt/pvc/models/big", "--port=8000"],
    }
    command = command_of(container, FOLDER, 4711)
    assert command[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert command[3:] == ["--model=/somewhere/claims/models/big", "--port=4711"]


def test_nodes_meet_on_this_machine() -> None:
    run = {"stage": "Train", "leader": "small-train-1-0.small-train.default.svc:29500"}
    assert json.loads(run_file_of(json.dumps(run), {}, 4712))["leader"] == "127.0.0.1:4712"
    assert "leader" not in json.loads(run_file_of(json.dumps({"stage": "Train"}), {}, 0))
