"""Where a stage finds its run file and leaves its result: variables, with the cluster's values as defaults."""

from __future__ import annotations

RUN_FILE = "KUBEDISTILL_RUN"
RUN_FILE_DEFAULT = "/etc/kubedistill/run.json"
TERMINATION_LOG = "KUBEDISTILL_TERMINATION_LOG"
TERMINATION_LOG_DEFAULT = "/dev/termination-log"
PORT = "KUBEDISTILL_PORT"
PORT_DEFAULT = 9100
MEETING_PORT = 29500
"""Where the first node of a training over several nodes meets the others."""
CLAIM_ROOT = "KUBEDISTILL_CLAIM_ROOT"
CLAIM_ROOT_DEFAULT = "/mnt/pvc"
"""`pvc://claim/path` is `<claim root>/claim/path` inside a stage."""
SCRATCH = "KUBEDISTILL_SCRATCH"
SCRATCH_DEFAULT = "/scratch"
"""A writable folder that may be lost: downloads, caches, compiled extensions."""
TEACHER_API_KEY = "KUBEDISTILL_TEACHER_API_KEY"
"""The key of every external teacher that has none of its own (`teacher_api_key`): enough for one provider."""
COMPLETION_INDEX = "JOB_COMPLETION_INDEX"
"""Set by Kubernetes in pods of an Indexed Job."""


def teacher_api_key(teacher: str) -> str:
    """The variable with one external teacher's key: two teachers may have two providers, and Prepare asks both."""
    return f"{TEACHER_API_KEY}_{teacher.upper().replace('-', '_')}"
