"""Counts and latencies in Prometheus' text form (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STAGES = ("read", "queue", "decode", "network", "total")


class Metrics:
    """What a server has done since it started; used by its event loop alone."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._pictures: Counter[str] = Counter()
        self._buckets = {stage: [0] * (len(BUCKETS_S) + 1) for stage in STAGES}
        self._sums = dict.fromkeys(STAGES, 0.0)

    def request(self, route: str, status: int) -> None:
        """Note an answered request."""
        self._requests[route, status] += 1

    def picture(self, result: str) -> None:
        """Note a picture: `ok` or its fault."""
        self._pictures[result] += 1

    def stage(self, stage: str, seconds: float) -> None:
        """Note how long one stage took."""
        self._buckets[stage][bisect_left(BUCKETS_S, seconds)] += 1
        self._sums[stage] += seconds

    def text(self, *, waiting: int) -> str:
        """Everything, as Prometheus reads it."""
        return "".join(f"{line}\n" for line in self._lines(waiting))

    def _lines(self, waiting: int) -> Iterator[str]:
        yield "# HELP mlimages_requests_total Requests answered, by route and status."
        yield "# TYPE mlimages_requests_total counter"
        for (route, status), count in sorted(self._requests.items()):
            yield f'mlimages_requests_total{{route="{route}",status="{status}"}} {count}'
        yield "# HELP mlimages_pictures_total Pictures answered, by result: ok, or what was wrong."
        yield "# TYPE mlimages_pictures_total counter"
        for result, count in sorted(self._pictures.items()):
            yield f'mlimages_pictures_total{{result="{result}"}} {count}'
        yield "# HELP mlimages_queue_pictures Pictures that wait."
        yield "# TYPE mlimages_queue_pictures gauge"
        yield f"mlimages_queue_pictures {waiting}"
        yield "# HELP mlimages_stage_seconds Latency by stage."
        yield "# TYPE mlimages_stage_seconds histogram"
        for stage in STAGES:
            yield from self._histogram(stage)

    def _histogram(self, stage: str) -> Iterator[str]:
        below = 0
        for bound, count in zip((*BUCKETS_S, "+Inf"), self._buckets[stage], strict=True):
            below += count
            yield f'mlimages_stage_seconds_bucket{{stage="{stage}",le="{bound}"}} {below}'
        yield f'mlimages_stage_seconds_sum{{stage="{stage}"}} {self._sums[stage]}'
        yield f'mlimages_stage_seconds_count{{stage="{stage}"}} {below}'
