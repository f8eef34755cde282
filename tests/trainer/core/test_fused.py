"""The kernels of a GPU give the numbers of plain torch; here an interpreter runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TOLERANCE = {"torch.float32": 1e-5, "torch.float16": 2e-3}


def test_the_kernels_agree_with_plain_torch_for_every_head() -> None:
    script = Path(__file__).with_name("fused_script.py")
    variables = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == 10
    for name, gaps in found.items():
        assert max(gaps) < TOLERANCE[name.split()[0]], (name, gaps)
