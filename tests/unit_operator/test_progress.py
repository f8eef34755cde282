"""What the progress says of pods that say nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from kubedistill_api.status import Progress
from kubedistill_operator.core.progress import STARTING, UNREACHABLE, merged

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
