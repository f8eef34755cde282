"""Metrics of the operator itself."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

OUTCOMES = ("ok", "conflict", "foreign", "refused", "unavailable", "unreadable", "error")
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class PassMeter:
    """Counts passes; reads the queue, the leadership and the watch's lag when it is scraped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._total = Counter("kubedistill_reconcile_total", "Passes by outcome.", ["outcome"], registry=registry)
        self._seconds = Histogram(
            "kubedistill_reconcile_duration_seconds", "Time of a pass.", buckets=BUCKETS, registry=registry
        )
        for outcome in OUTCOMES:
            self._total.labels(outcome)

    def passed(self, outcome: str, seconds: float) -> None:
        """A pass ended."""
        self._total.labels(outcome).inc()
        self._seconds.observe(seconds)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge `kubedistill_<name>` that is read at every scrape."""
        Gauge(f"kubedistill_{name}", text, registry=self._registry).set_function(read)
