"""examples/models/make_toy.py, which is no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SCRIPT = Path(__file__).resolve().parents[4] / "examples" / "models" / "make_toy.py"


def load_make_toy() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("make_toy", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_toy"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module
