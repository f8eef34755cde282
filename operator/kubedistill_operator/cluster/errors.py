"""What can go wrong between us and the API server.

::

    ClusterError
    ├── UnavailableError      it did not answer, or asked to come again later: the pass is repeated
    ├── LeadershipLostError   another operator may lead by now: nothing is written any more
    └── RefusedError          it refused, and would refuse the same request again
        ├── ForeignObjectError    the name is taken by an object that is not ours
        └── ChildRefusedError     a child was refused: the next observation says so, and the plan tells the user
    ConflictError (core.ports)    the object changed since it was read: the pass decides anew
"""

from __future__ import annotations


class ClusterError(Exception):
    """Something between us and the API server."""


class UnavailableError(ClusterError):
    """No answer, 429 or 5xx, more often than we tried."""


class LeadershipLostError(ClusterError):
    """The lease ran out before this write could be sent."""


class RefusedError(ClusterError):
    """The API server refused a request: `status` is HTTP's, `reason` and `message` are its own words."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message

    @property
    def says_not_found(self) -> bool:
        """Whether the API server itself says that the object is not there: a gateway before it answers 404, too."""
        return self.status == 404 and self.reason == "NotFound"


class ForeignObjectError(RefusedError):
    """A child's name is taken by an object of somebody else."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(409, "ForeignObject", f"{kind} {name} exists and belongs to somebody else")
        self.kind = kind
        self.name = name


class ChildRefusedError(RefusedError):
    """The API server will not have a child: a quota is full (403), admission or validation forbids it (403, 422)."""

    def __init__(self, child: str, refused: RefusedError) -> None:
        super().__init__(refused.status, refused.reason, f"{child}: {refused.message}")
