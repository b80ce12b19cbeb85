"""Count the results of the links."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mlimages.core import FetchResult, GatherSummary
from mlimages.gathering.links import parse_host
from mlimages.gathering.store.file_names import is_in_folder_of
from mlimages.gathering.store.shard_storage import strip_shard_name

_MAX_LISTED_HOSTS = 10
_NUM_HOSTS_TO_KEEP = 10_000
"""If more than twice as many hosts have failed links, only this many, those with the most, are kept to limit memory."""


class ResultTally:
    """Counts rows by status, class, reason and host."""

    def __init__(self) -> None:
        self.status: Counter[str] = Counter()
        self.classes: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._hosts: Counter[str] = Counter()
        self._near = 0
        self._removed = 0
        self._open = 0
        self._conflicting = 0
        self.changed = 0
        self.moved = 0
        self.unmoved = 0

    def add(self, row: FetchResult) -> None:
        """Count a row."""
        if row.removed:
            self._removed += 1
            return
        self.status[row.status] += 1
        self._open += not row.final
        if row.status == "ok":
            self.classes[row.label] += 1
            self._near += row.same_as is not None
        elif row.status == "duplicate" and row.same_as:
            self._conflicting += not is_in_folder_of(row.label, strip_shard_name(row.same_as))
        elif row.reason:
            self._reasons[row.reason.value] += 1
            self._hosts[parse_host(row.url)] += 1
            if len(self._hosts) > 2 * _NUM_HOSTS_TO_KEEP:
                self._hosts = Counter(dict(self._hosts.most_common(_NUM_HOSTS_TO_KEEP)))

    def make_progress_counts(self) -> dict[str, int]:
        """Return the number of links that are "ok", "failed" and "open" (unfinished), to show beside a progress bar."""
        failed = self.status["failed"] + self.status["placeholder"]
        return {"ok": self.status["ok"], "failed": failed - self._open, "open": self._open}

    def make_summary(self, out: Path, *, num_fetched: int, seconds: float) -> GatherSummary:
        """Return the counts as a summary.

        Args:
            out: the gathered folder.
            num_fetched: number of links that the run tried, whether or not they yielded an image.
            seconds: duration of the run.
        """
        return GatherSummary(
            out=out,
            ok=self.status["ok"],
            duplicate=self.status["duplicate"],
            failed=self.status["failed"] + self.status["placeholder"],
            near_duplicate=self._near,
            conflicting=self._conflicting,
            changed=self.changed,
            moved=self.moved,
            unmoved=self.unmoved,
            removed=self._removed,
            open=self._open,
            fetched=num_fetched,
            reasons=_sort_counts(self._reasons),
            classes=dict(sorted(self.classes.items())),
            hosts=dict(list(_sort_counts(self._hosts).items())[:_MAX_LISTED_HOSTS]),
            seconds=round(seconds, 2),
        )


def _sort_counts(counts: Counter[str]) -> Mapping[str, int]:
    """Return the counts in descending order; equal counts by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
