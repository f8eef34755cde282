"""The example jobs: each is read, obeys every rule and says in its header what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubedistill_api.base import Task
from kubedistill_api.documents import read_job

JOBS = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_an_example_is_valid(path: Path) -> None:
    assert read_job(path.read_text()).spec.teachers


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_an_example_says_what_it_shows(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert len(header) >= 4


def test_the_examples_are_there() -> None:
    assert [path.name[:2] for path in JOBS] == ["01", "02", "03", "04", "05", "06", "07"]


def test_every_task_has_an_example_but_the_one_that_needs_no_settings_of_its_own() -> None:
    assert {read_job(path.read_text()).spec.task for path in JOBS} == set(Task) - {Task.QUESTION_ANSWERING}
