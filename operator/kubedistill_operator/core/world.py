"""What a pass looks at: the job, what was seen of its children, the time, and the installation's choices."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kubedistill_api.job import DistillationJob
from kubedistill_operator.core.seen import Seen
from kubedistill_operator.core.settings import Settings


@dataclass(frozen=True)
class World:
    """All that a decision may depend on."""

    job: DistillationJob
    seen: Seen
    now: datetime
    settings: Settings
