"""What Kubernetes' Job controller does, as far as our manifests ask for it: start, start again, give up. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from kubedistill_cli.local.children import LocalChild
from kubedistill_operator.core.seen import JobState


@dataclass(frozen=True)
class Decision:
    """What to do about a Job now."""

    start: tuple[int, ...] = ()
    """Indexes whose process is to be started."""
    stop: bool = False
    """Everything that runs is to be ended."""
    end: JobState | None = None
    """How the Job has ended."""
    reason: str = ""
    message: str = ""


def decide(job: LocalChild, now: datetime, cores: int) -> Decision:
    """The next step of a Job that may have pods and has not ended."""
    spec = job.manifest["spec"]
    running = [pod for pod in job.pods.values() if pod.alive]
    if failed := _given_up(job, spec, now):
        return Decision(
            stop=bool(running), end=None if running else JobState.FAILED, reason=failed[0], message=failed[1]
        )
    completions = int(spec.get("completions", 1))
    done = [pod for pod in job.pods.values() if pod.exit_code == 0]
    if len(done) == completions:
        return Decision(end=JobState.SUCCEEDED)
    wanted = int(spec.get("parallelism", 1))
    room = (wanted if job.meets else max(1, min(wanted, cores))) - len(running)
    waiting = [
        i for i in range(completions) if (pod := job.pods.get(i)) is None or not (pod.alive or pod.exit_code == 0)
    ]
    return Decision(start=tuple(waiting[: max(room, 0)]))


def _given_up(job: LocalChild, spec: dict[str, Any], now: datetime) -> tuple[str, str] | None:
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and job.started_at and now - job.started_at > timedelta(seconds=deadline):
        return "DeadlineExceeded", "Job was active longer than specified deadline"
    fatal = _fatal_codes(spec)
    for pod in job.pods.values():
        if pod.exit_code in fatal:
            text = f"Container for pod {pod.name} failed with exit code {pod.exit_code} matching FailJob rule"
            return "PodFailurePolicy", text
    failures = sum(pod.failures + (pod.exit_code not in (None, 0)) for pod in job.pods.values())
    if failures > int(spec.get("backoffLimit", 6)):
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    return None


def _fatal_codes(spec: dict[str, Any]) -> set[int]:
    rules = spec.get("podFailurePolicy", {}).get("rules", [])
    return {
        code
        for rule in rules
        if rule["action"] == "FailJob" and rule.get("onExitCodes", {}).get("operator") == "In"
        for code in rule["onExitCodes"]["values"]
    }
