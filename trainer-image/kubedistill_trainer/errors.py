"""What a stage may raise on purpose. Everything else is a bug and ends the process with exit code 1.

StageError                   a constant word (`reason`) and a sentence that says what to write or do
├── BadConfiguration   64    the spec asks for something that cannot be
├── BadData            65    the user's rows cannot be used
├── NotFound           66    a model, a file, a bucket or a credential is not there
├── DeviceOutOfMemory  70    a smaller micro batch may help
└── Transient          75    the same again may succeed
Stopped               143    SIGTERM: everything finished is committed, the rest waits for the next attempt
"""

from __future__ import annotations

from typing import ClassVar

from kubedistill_api.exits import Exit
from kubedistill_api.status import Ledger, Score


class StageError(Exception):
    """A failure that a user or the operator can act on. Raise one of the classes below."""

    exit_code: ClassVar[Exit] = Exit.APPLICATION

    def __init__(
        self, reason: str, message: str, *, ledger: Ledger | None = None, scores: list[Score] | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.ledger = ledger
        self.scores = scores or []


class BadConfiguration(StageError):
    """The spec asks for something that cannot be."""

    exit_code = Exit.BAD_CONFIGURATION


class BadData(StageError):
    """The user's rows cannot be used."""

    exit_code = Exit.BAD_DATA


class NotFound(StageError):
    """A model, a file, a bucket or a credential is not there, or is refused."""

    exit_code = Exit.NOT_FOUND


class DeviceOutOfMemory(StageError):
    """The device's memory is full; a smaller micro batch may help."""

    exit_code = Exit.DEVICE_OUT_OF_MEMORY


class Transient(StageError):
    """The same again may succeed: a server that is away, a full volume, a lost connection."""

    exit_code = Exit.TRANSIENT


class Stopped(Exception):
    """SIGTERM came, and everything that was finished is committed."""

    exit_code: ClassVar[Exit] = Exit.STOPPED_AT_CHECKPOINT
