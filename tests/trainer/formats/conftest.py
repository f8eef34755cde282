"""Models of each family, made once, and prompts for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from toys.families import save


@pytest.fixture(scope="session")
def a_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model of a family."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = save(family, tmp_path_factory.mktemp(family))
        return made[family]

    return make


@pytest.fixture
def texts() -> list[list[int]]:
    """Token ids of three prompts."""
    return [list(range(3, 60)), list(range(200, 230)), [5, 6, 7]]
