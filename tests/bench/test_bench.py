"""`make bench` on small sizes: it runs, its two losses agree, and its figures are those that are written about."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys.example import load_make_toy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SCRIPT = Path(__file__).with_name("bench_loss.py")
SMALL = ["--tokens=2048", "--vocabulary=32001", "--hidden=64", "--steps=3", "--repeats=1"]


def test_the_benchmark_writes_what_it_prints(tmp_path: Path) -> None:
    output = tmp_path / "new folder" / "bench.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, *SMALL, "--output", output],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    loss = found["loss"]
    assert loss["relative_difference"] < 1e-5
    assert loss["memory_ratio"] > 2, "the plain loss holds [N, V] tensors of 262 MB, the chunked one 134 MB in all"
    assert f"{loss['chunked']['loss']:.7f}" in done.stdout
    assert found["step"]["ratio"] > 0
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_a_step_is_measured_beside_those_of_trl(tmp_path: Path) -> None:
    output = tmp_path / "step.json"
    command = [sys.executable, SCRIPT.with_name("bench_step.py"), "--steps=1", "--output", output]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    for other in ("gkd", "sft"):
        ratio = found["ours"]["seconds"] / found[other]["seconds"]
        assert found[f"{other}_ratios"]["seconds"] == pytest.approx(ratio)
        assert f"{ratio:.2f}" in done.stdout
    assert found["gkd_ratios"]["step_mib"] < 1, "GKDTrainer holds the logits of two models"


def test_what_data_cost_is_measured_on_a_teachers_answers(tmp_path: Path) -> None:
    """A toy of random weights is the teacher: its candidates are alike in nothing, of 2,048 tokens."""
    teacher, output = tmp_path / "toy", tmp_path / "data.json"
    toys = load_make_toy()
    toys.make_toy(teacher, toys.Toy(layers=1, steps=0))
    command = [sys.executable, SCRIPT.with_name("bench_data.py"), "--teacher", teacher, "--answers", tmp_path / "kept"]
    small = ["--prompts=16", "--max-tokens=24", "--random-rows=16", "--steps=2", "--repeats=1", "--output", output]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *small], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    for stored in found["storage"].values():
        assert stored["bytes_a_target"] < stored["bytes_a_target_plain"]
        columns = stored["bytes_a_target_by_column"]
        assert min(columns.values()) > 0
        assert 16 < columns["topk_ids"] < 4 * 32, "32 ids of 2,048 or more tokens, each four bytes as it comes"
        assert 8 < columns["topk_logprobs"] < 2 * 32, "32 levels of 233, each two bytes as they come"
        assert 2 < columns["tail_logprob"] < 4 + 1, "exact in float32, which hardly compresses"
        assert columns["footer"] < stored["bytes_a_target"] / 4
        assert stored["moved"]["forward_kl_max"] < 0.002
    assert f"{found['storage']['real']['bytes_a_target']:.1f}" in done.stdout
    assert found["loading"]["ratio"] >= 20
    assert found["loading"]["share_of_real_tokens_computed"] == 1
    for full in found["packing"]["worlds"].values():
        assert full["packed"] == 1
        assert full["padded"] < 1
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_without_a_teacher_all_is_measured_on_random_rows(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT.with_name("bench_data.py"), "--teacher", tmp_path, "--answers", tmp_path / "none"]
    small = ["--random-rows=16", "--steps=1", "--repeats=1", "--output", tmp_path / "data.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *small], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "`make demo` fetches one" in done.stdout
    assert list(json.loads((tmp_path / "data.json").read_text())["storage"]) == ["random"]


def test_too_little_memory_is_said_before_anything_is_asked_for(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--tokens=100000000", "--output", tmp_path / "bench.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 75
    assert "ask for fewer --tokens" in done.stdout
    assert not (tmp_path / "bench.json").exists()
