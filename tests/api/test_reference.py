"""The field reference says what the models say."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_field_reference_is_what_the_models_say() -> None:
    generator = runpy.run_path(str(DOCS / "generate.py"))
    assert (DOCS / "reference" / "distillationjob.md").read_text() == generator["render"](), "run `make generate`"
