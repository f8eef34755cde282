"""Exit codes of a stage, and what each means for a retry."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """How a stage's process ended. 64 to 78 follow sysexits.h where it has a word for it."""

    OK = 0
    APPLICATION = 1
    BAD_CONFIGURATION = 64
    BAD_DATA = 65
    NOT_FOUND = 66
    DEVICE_OUT_OF_MEMORY = 70
    TRANSIENT = 75
    KILLED = 137
    STOPPED_AT_CHECKPOINT = 143

    @property
    def permanent(self) -> bool:
        """Whether the same input would fail the same way again."""
        return self in PERMANENT


PERMANENT = frozenset({Exit.BAD_CONFIGURATION, Exit.BAD_DATA, Exit.NOT_FOUND})

PEER_LOST = "PeerLost"
"""The reason of a pod that failed only because another one of its stage did: it is never the one to blame."""
