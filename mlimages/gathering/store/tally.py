"""Count the results of the links."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlimages.core import FetchResult, GatherSummary
from mlimages.gathering.links import parse_host
from mlimages.gathering.store.file_names import is_in_folder_of
from mlimages.gathering.store.shard_storage import strip_shard_name

_COUNTED_FIELDS = ("ok", "duplicate", "failed", "near_duplicate", "conflicting", "changed", "moved", "unmoved",
                   "removed", "open")  # fmt: skip
_MAX_LISTED_HOSTS = 10
_NUM_HOSTS_TO_KEEP = 10_000
"""If more than twice as many hosts have failed links, only this many, those with the most, are kept to limit memory."""


class ResultTally:
    """Counts rows by class, reason and host, and for the fields of `GatherSummary` that are numbers of links."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.classes: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._hosts: Counter[str] = Counter()

    def add(self, row: FetchResult) -> None:
        """Count a row."""
        if row.removed:
            self.counts["removed"] += 1
            return
        self.counts["failed" if row.status == "placeholder" else row.status] += 1
        self.counts["open"] += not row.final
        if row.status == "ok":
            self.classes[row.label] += 1
            self.counts["near_duplicate"] += row.same_as is not None
        elif row.status == "duplicate" and row.same_as:
            self.counts["conflicting"] += not is_in_folder_of(row.label, strip_shard_name(row.same_as))
        elif row.reason:
            self._reasons[row.reason.value] += 1
            self._hosts[parse_host(row.url)] += 1
            if len(self._hosts) > 2 * _NUM_HOSTS_TO_KEEP:
                self._hosts = Counter(dict(self._hosts.most_common(_NUM_HOSTS_TO_KEEP)))

    def make_progress_counts(self) -> dict[str, int]:
        """Return the number of links that are "ok", "failed" and "open" (unfinished), to show beside a progress bar."""
        num_open = self.counts["open"]
        return {"ok": self.counts["ok"], "failed": self.counts["failed"] - num_open, "open": num_open}

    def make_summary(self, out: Path, *, num_fetched: int, seconds: float) -> GatherSummary:
        """Return the counts as a summary.

        Args:
            out: the gathered folder.
            num_fetched: number of links that the run tried, whether or not they yielded an image.
            seconds: duration of the run.
        """
        counts: dict[str, Any] = {name: self.counts[name] for name in _COUNTED_FIELDS}
        return GatherSummary(
            **counts,
            out=out,
            fetched=num_fetched,
            reasons=_sort_counts(self._reasons),
            classes=dict(sorted(self.classes.items())),
            hosts=dict(list(_sort_counts(self._hosts).items())[:_MAX_LISTED_HOSTS]),
            seconds=round(seconds, 2),
        )


def _sort_counts(counts: Counter[str]) -> Mapping[str, int]:
    """Return the counts in descending order; equal counts by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
