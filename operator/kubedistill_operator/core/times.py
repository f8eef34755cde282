"""Times in the status: RFC 3339, UTC, whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def rfc3339(moment: datetime) -> str:
    """A time as the status has it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str | None) -> datetime | None:
    """The inverse of `rfc3339`; None where there is no time, or none that can be read."""
    try:
        found = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found and found.tzinfo is None else found


def since(start: datetime | str | None, now: datetime) -> timedelta:
    """How long ago; zero where there is no start or it lies ahead."""
    begun = moment(start) if isinstance(start, str) else start
    return max(now - begun, timedelta(0)) if begun else timedelta(0)
