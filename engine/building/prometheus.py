"""Counters of a worker for Prometheus, served in its text format (https://prometheus.io/docs/instrumenting/exposition_formats/).

Builds are counted as this worker, or one that it started, reports them; how many wait is asked of the database at each scrape.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...registry import Registry
from ...registry.errors import RecCocktailError, UsageError
from .worker_events import WorkerEvent

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily

BUCKETS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200)  # seconds
ENDS = ("succeeded", "failed", "cancelled", "postponed")


class Counters:
    """Listens to what happens, and serves `/metrics` until the process ends. Raises UsageError where it cannot."""

    def __init__(self, registry: Registry, host: str, port: int) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
        except ImportError as error:
            raise UsageError(f"{error.name} is not installed", hint="pip install 'reccocktail[metrics]'") from error
        kept = CollectorRegistry()
        self._begun = Counter("reccocktail_builds_begun", "Attempts at builds, started.", registry=kept)
        self._ended = Counter("reccocktail_builds", "Attempts at builds, by outcome.", ["end"], registry=kept)
        self._seconds = Histogram(
            "reccocktail_build_seconds", "Seconds per succeeded build.", buckets=BUCKETS, registry=kept
        )
        self._died = Counter("reccocktail_workers_died", "Worker processes or tasks that died.", registry=kept)
        self._outages = Counter(
            "reccocktail_database_outages", "Number of times the database was unreachable.", registry=kept
        )
        for end in ENDS:
            self._ended.labels(end)  # shown as 0 from the first scrape on
        kept.register(_Queue(registry))
        try:
            self._server, _ = start_http_server(port, addr=host, registry=kept)
        except OSError as error:
            raise UsageError(
                f"counters cannot be served at {host}:{port}: {error.strerror or error}", hint="another --metrics-port"
            ) from error

    def hear(self, event: WorkerEvent) -> None:
        if event.what == "begins":
            self._begun.inc()
        elif event.what in ENDS:
            self._ended.labels(event.what).inc()
            if event.seconds is not None:
                self._seconds.observe(event.seconds)
        elif event.what == "died":
            self._died.inc()
        elif event.what == "waiting":
            self._outages.inc()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Queue:
    """What the database holds of builds, by status; nothing while it cannot be reached."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[GaugeMetricFamily]:
        from prometheus_client.core import GaugeMetricFamily

        gauge = GaugeMetricFamily("reccocktail_builds_in_registry", "Builds in the registry.", labels=["status"])
        try:
            for status, count in self._registry.builds.counts().items():
                gauge.add_metric([status], count)
        except RecCocktailError:
            return
        yield gauge
