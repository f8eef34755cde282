"""The kernels of a GPU give the numbers of plain torch; here an interpreter runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TOLERANCE = {"torch.float32": 5e-5, "torch.float16": 1e-3, "torch.bfloat16": 8e-3}
"""Relative, of norms: one rounding to the type."""


def test_the_kernels_agree_with_plain_torch_in_every_case() -> None:
    script = Path(__file__).with_name("fused_script.py")
    variables = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == 30
    for name, case in found.items():
        assert case["same"], name
        assert all(gap < TOLERANCE[name.split()[0]] for gap in case["gaps"]), (name, case["gaps"])
