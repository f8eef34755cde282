"""`make bench` as a whole: one file, whose bounds hold or do not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent


@pytest.mark.slow
def test_a_benchmark_that_ends_without_figures_does_not_hold(tmp_path: Path) -> None:
    command = [sys.executable, BENCH, "--only", "loss", "--tokens=100000000"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ask for fewer --tokens" in done.stdout
    (figure,) = json.loads((tmp_path / "bench.json").read_text())["figures"]
    assert figure["holds"] is False
    assert figure["command"] == "python tests/bench/bench_loss.py --tokens=100000000"
    assert "not measured, exit code 75" in done.stdout
    assert "DOES NOT HOLD" in done.stdout


def test_what_one_benchmark_is_told_is_not_told_to_all(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, BENCH, "--k=8"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "write --only with one benchmark" in done.stderr
    assert list(tmp_path.iterdir()) == []
