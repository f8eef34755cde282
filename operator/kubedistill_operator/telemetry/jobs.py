"""Metrics of each DistillationJob, computed from its status when Prometheus asks. Nothing is counted or kept.

At most `limit` jobs are shown, the unfinished and the youngest first: labels by job are bounded whatever the cluster
holds. `kubedistill_jobs` counts all of them by phase.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import ValidationError

from kubedistill_api.status import Phase, StageState, Status

Raw = dict[str, Any]
LABELS = ("namespace", "name")
FINISHED = (Phase.SUCCEEDED, Phase.FAILED)


class JobCollector(Collector):
    """What is known of every job, at the moment of a scrape."""

    def __init__(self, jobs: Callable[[], Iterable[Raw]], limit: int, now: Callable[[], datetime]) -> None:
        """`jobs` gives the DistillationJobs as the API server sends them."""
        self._jobs = jobs
        self._limit = limit
        self._now = now

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: registering must not read any job."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The metric families, each with a sample for every shown job that has the number."""
        everyone = [(raw, status) for raw in self._jobs() if (status := _status(raw)) is not None]
        yield _counted(everyone)
        shown = sorted(everyone, key=_youngest_unfinished_first)[: self._limit]
        yield from _families([(_labels(raw), raw, status) for raw, status in shown], self._now())


Shown = list[tuple[list[str], Raw, Status]]


def _families(shown: Shown, now: datetime) -> Iterator[Metric]:
    yield _info(shown)
    yield _phase(shown)
    progress = _gauge("progress_ratio", "Done share of the current stage, 0 to 1.", "stage")
    duration = _gauge("stage_duration_seconds", "Wall-clock time of a stage, so far or in all.", "stage")
    restarts = CounterMetricFamily(
        "kubedistill_job_stage_restarts", "New attempts after failures.", labels=_with("stage")
    )
    tokens = CounterMetricFamily("kubedistill_job_tokens_generated", "Tokens the teachers made.", labels=LABELS)
    gpu = CounterMetricFamily("kubedistill_job_gpu_seconds", "GPUs x seconds, teacher included.", labels=LABELS)
    numbers = {
        "loss": _gauge("training_loss", "Mean loss of the last optimizer step, nats a target token."),
        "validation_loss": _gauge("validation_loss", "Mean loss on held-out answers, nats a target token."),
        "tokens_per_second": _gauge("training_tokens_per_second", "Prompt and answer, over all devices."),
        "step": _gauge("training_step", "Optimizer steps done."),
    }
    scores = _gauge("score", "A metric of the evaluation.", "metric", "of")
    for labels, _, status in shown:
        for stage in status.stages:
            if stage.progress is not None and stage.progress.total and stage.state is StageState.RUNNING:
                progress.add_metric([*labels, stage.name], min(1.0, stage.progress.done / stage.progress.total))
            if (seconds := _seconds(stage.start_time, stage.completion_time, now)) is not None:
                duration.add_metric([*labels, stage.name], seconds)
            if stage.restarts:
                restarts.add_metric([*labels, stage.name], stage.restarts)
        if status.usage is not None:
            tokens.add_metric(labels, status.usage.tokens_generated)
            gpu.add_metric(labels, status.usage.gpu_seconds)
        for name, family in numbers.items():
            if status.training is not None and (number := _number(getattr(status.training, name))) is not None:
                family.add_metric(labels, number)
        for score in status.evaluation:
            for of in ("student", "baseline", "teacher", "retained"):
                if (number := _number(getattr(score, of))) is not None:
                    scores.add_metric([*labels, score.metric, of], number)
    yield from (progress, duration, restarts, tokens, gpu, *numbers.values(), scores)


def _counted(everyone: list[tuple[Raw, Status]]) -> Metric:
    family = GaugeMetricFamily("kubedistill_jobs", "DistillationJobs by phase.", labels=["phase"])
    found = Counter(status.phase for _, status in everyone)
    for phase in Phase:
        family.add_metric([phase.value], found[phase])
    return family


def _info(shown: Shown) -> Metric:
    family = _gauge("info", "What the job distils: always 1.", "task", "student")
    for labels, raw, _ in shown:
        spec = raw.get("spec", {})
        student = spec.get("student", {}).get("model", {}).get("uri", "")
        family.add_metric([*labels, spec.get("task", ""), student], 1)
    return family


def _phase(shown: Shown) -> Metric:
    family = _gauge("phase", "1 for the phase the job is in, 0 for the others.", "phase")
    for labels, _, status in shown:
        for phase in Phase:
            family.add_metric([*labels, phase.value], float(status.phase is phase))
    return family


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"kubedistill_job_{name}", text, labels=_with(*labels))


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"kubedistill_job_{name}", text, labels=_with(*labels))


def _with(*labels: str) -> tuple[str, ...]:
    return (*LABELS, *labels)


def _labels(raw: Raw) -> list[str]:
    return [raw["metadata"]["namespace"], raw["metadata"]["name"]]


def _status(raw: Raw) -> Status | None:
    """The status, or None where a newer operator wrote one that we cannot read."""
    with suppress(ValidationError):
        return Status.model_validate(raw.get("status") or {})
    return None


def _youngest_unfinished_first(item: tuple[Raw, Status]) -> tuple[bool, float]:
    raw, status = item
    created = raw["metadata"].get("creationTimestamp")
    return status.phase in FINISHED, -datetime.fromisoformat(created).timestamp() if created else 0.0


def _seconds(start: str | None, end: str | None, now: datetime) -> float | None:
    if not start:
        return None
    until = datetime.fromisoformat(end) if end else now
    return max(0.0, (until - datetime.fromisoformat(start).astimezone(UTC)).total_seconds())


def _number(value: object) -> float | None:
    """A decimal of the status as a number; None where it is empty or no number."""
    if value in ("", None):
        return None
    try:
        return float(str(value))
    except ValueError:
        return None
