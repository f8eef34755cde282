"""What the progress says of pods that say nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from kubedistill_api.base import Stage
from kubedistill_api.progress import ProgressReport
from kubedistill_api.status import Progress
from kubedistill_operator.core.progress import STARTING, UNREACHABLE, added_up, merged

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EVERY = timedelta(seconds=15)


def test_pods_that_have_not_spoken_yet_are_starting() -> None:
    first = merged(None, [], NOW, EVERY)
    assert first.message == STARTING
    assert merged(first, [], NOW + EVERY, EVERY) is first, "their silence counts from its beginning"


def test_pods_that_fall_silent_are_told_once_and_their_count_is_kept() -> None:
    spoken = Progress(done=3, total=9, unit="steps", updated_at="2025-12-31T23:59:00Z")
    silent = merged(spoken, [], NOW, EVERY)
    assert (silent.message, silent.done) == (UNREACHABLE, 3)
    assert merged(silent, [], NOW + EVERY, EVERY) is silent


def test_the_first_node_of_a_training_counts_for_all() -> None:
    counts = Progress(done=3, total=9, unit="steps", message="training")
    others = [Progress(message=f"training as node {node} of 3") for node in (1, 2)]
    reports = [ProgressReport(stage=Stage.TRAIN, worker=n, progress=p) for n, p in enumerate([counts, *others])]
    for shuffled in (reports, reports[::-1]):
        found = added_up(shuffled, NOW)
        assert found is not None
        assert (found.done, found.total, found.unit, found.message) == (3, 9, "steps", "training")
