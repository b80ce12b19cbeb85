"""Prometheus metrics: counts and latencies."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram buckets in seconds."""

REQUEST_STAGES = ("read", "queue", "decode", "network", "total")
"""Stages whose durations are recorded: `read` for each request to /predict, `total` for each request, the others for
each image of a prediction."""


class Metrics:
    """Metrics of one application since its start.

    Args:
        count_queued: returns the number of images in the queue.

    Attributes:
        requests: finished requests, by route and status.
        images: images, by result: `ok` or an error code.
        stages: durations in seconds, by stage (see `REQUEST_STAGES`).
    """

    def __init__(self, count_queued: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "mlimages_requests",
            "Completed requests, by route and status.",
            ("route", "status"),
            registry=self._registry,
        )
        self.images = Counter(
            "mlimages_images", "Processed images, by result: ok or an error code.", ("result",), registry=self._registry
        )
        queue = Gauge("mlimages_queue_images", "Images in the queue.", registry=self._registry)
        queue.set_function(count_queued)
        stages = Histogram(
            "mlimages_stage_seconds",
            "Latency by stage: read and total per request; queue, decode and network per image.",
            ("stage",),
            registry=self._registry,
            buckets=BUCKETS_S,
        )
        self.stages = {stage: stages.labels(stage) for stage in REQUEST_STAGES}

    def to_text(self) -> bytes:
        """Return all metrics in Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry)
