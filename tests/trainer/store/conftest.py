"""One place to store things: a folder, and a bucket of a real S3 server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kubedistill_trainer.store.workspace import Workspace


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def kind(request: pytest.FixtureRequest) -> str:
    """Which sort of place a test is about."""
    return str(request.param)


@pytest.fixture
def new_uri(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Callable[[str], str]:
    """The URI of an empty place of this test, by name."""
    root = request.getfixturevalue("s3_bucket") if kind == "s3" else tmp_path.as_uri()
    return lambda name: f"{root}/{tmp_path.parent.name}-{tmp_path.name}/{name}"


@pytest.fixture
def place(new_uri: Callable[[str], str]) -> Workspace:
    """An empty workspace."""
    return Workspace.open(new_uri("workspace"))
