"""Numbers for Prometheus, in a registry of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

MEDIA = "text/plain"
_SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
"""Bounds of the histogram: a look-up, a small upload, a pack, a long poll."""


@dataclass(frozen=True)
class Gauges:
    """What is looked up when somebody asks."""

    jobs: Mapping[str, int]
    """By state."""
    agents_connected: int
    chunks: int
    packs: int
    stored_bytes: int
    damaged_chunks: int
    store_free_bytes: int
    store_reserve_bytes: int


class _Looked(Collector):
    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        jobs = GaugeMetricFamily("holdfast_jobs", "jobs by state", labels=["state"])
        for state, count in self._gauges.jobs.items():
            jobs.add_metric([state], count)
        yield jobs
        for name, text in (
            ("agents_connected", "agents with a live control connection"),
            ("chunks", "chunks in the catalog"),
            ("packs", "packs in the store"),
            ("stored_bytes", "bytes of sealed chunks in the store"),
            ("damaged_chunks", "chunks whose stored bytes are not what was stored"),
            ("store_free_bytes", "room in the store, the reserve included"),
            ("store_reserve_bytes", "room kept for commits and deletes"),
        ):
            yield GaugeMetricFamily(f"holdfast_{name}", text, value=getattr(self._gauges, name))


class Metrics:
    """What is counted while the server runs. Thread-safe."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._received = Counter(
            "holdfast_received_bytes_total", "bytes of request bodies", registry=self._registry
        )
        self._requests = Histogram(
            "holdfast_request_seconds",
            "time from a request's head to the end of its answer",
            ["method", "route", "status"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def received(self, size: int) -> None:
        """Count `size` bytes of a request's body."""
        self._received.inc(size)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that is over; `route` is a pattern, so the labels are few."""
        method = method if method in ("GET", "POST", "PUT", "PATCH", "DELETE") else "other"
        self._requests.labels(method, route, str(status)).observe(seconds)

    def text(self, gauges: Gauges) -> bytes:
        """Return all numbers as Prometheus reads them."""
        registry = CollectorRegistry()
        registry.register(_Looked(gauges))
        return generate_latest(self._registry) + generate_latest(registry)
