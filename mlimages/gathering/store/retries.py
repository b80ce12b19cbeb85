"""Decide which recorded failures a run retries."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from mlimages.core import RETRYABLE_REASONS, FetchResult, InputError, Reason
from mlimages.gathering.download.host_state import REFUSALS_UNTIL_PAUSED
from mlimages.gathering.download.reasons import REFUSAL_REASONS
from mlimages.gathering.links import hash_link, parse_host
from mlimages.gathering.options import GatherOptions
from mlimages.gathering.store.shard_storage import strip_shard_name

_PIXEL_SIZE_NOTE = re.compile(r"(\d+) x (\d+)\b")
"""Matches the width and height of an image that was too small or too large, in the `detail` of its row."""
_BYTE_COUNT_NOTE = re.compile(r"(more than )?(\d+) bytes")
"""Matches the size of a file that was too large, in the `detail` of its row."""
_RESIZE_NOTE = re.compile(r"resized: (\d+)")
"""Matches the value of `--resize` with which an image was stored, in the `detail` of its row."""


def needs_retry(row: FetchResult, options: GatherOptions, *, has_image: bool, retry_unfinished: bool) -> bool:
    """Return whether a run retries a link that the manifest records.

    Args:
        row: the row of the link.
        options: options of the run.
        has_image: whether the image of the link is in the folder.
        retry_unfinished: True at the start of a run: failed links and deleted images are retried if `options` say so.
            False at its end: they count as done.
    """
    if row.removed:
        return retry_unfinished and options.restore_deleted
    if row.status == "ok":
        return not has_image
    is_passing = not row.final or meets_current_options(row, options)
    return retry_unfinished and (row.reason in options.retry_failed or (is_passing and not options.no_retry))


def meets_current_options(row: FetchResult, options: GatherOptions) -> bool:
    """Return whether a link that the options of an earlier run rejected may be accepted with the current options.

    >>> row = FetchResult("http://a/b.jpg", "cats", "failed", Reason.TOO_SMALL, detail="200 x 90 pixels")
    >>> [meets_current_options(row, GatherOptions(min_size=size)) for size in (90, 91)]
    [True, False]
    """
    sides = [int(side) for side in found.groups()] if (found := _PIXEL_SIZE_NOTE.match(row.detail)) else []
    match row.reason:
        case Reason.TOO_SMALL:
            return bool(sides) and min(sides) >= options.min_size
        case Reason.TOO_MANY_PIXELS:
            return bool(sides) and sides[0] * sides[1] <= options.max_pixels and "resized" not in row.detail
        case Reason.TOO_LARGE:
            if not (size := _BYTE_COUNT_NOTE.match(row.detail)):
                return False
            return options.max_bytes > int(size[2]) or (not size[1] and options.max_bytes == int(size[2]))
        case Reason.OPT_OUT:
            return options.ignore_opt_out
    return False


def check_same_settings(row: FetchResult, options: GatherOptions, folder: object) -> None:
    """Raise an error if the image in `row` was gathered with another `--resize` or `--layout`.

    Args:
        options: options of the run.
        folder: the gathered folder, for the error message.

    Raises:
        InputError: the settings differ; the message names the earlier setting.
    """
    if row.status != "ok" or row.removed or not row.path:
        return
    found = _RESIZE_NOTE.search(row.detail)
    size = int(found[1]) if found else None
    is_sharded = strip_shard_name(row.path) != row.path
    if size != options.resize:
        had = f"with --resize {size}" if size else "without --resize"
    elif is_sharded != (options.layout == "tar"):
        had = f"{'with' if is_sharded else 'without'} --layout tar"
    else:
        return
    raise InputError(f"{folder} was gathered {had}: use the same setting, or another folder")


class ConsecutiveRefusals:
    """Counts the consecutive links that each host refused (HTTP 401, 403 or 451, or a web page instead of an image).

    If a host refuses many links in a row, it has blocked this client or shows a login page. That is temporary and says
    nothing about the links, so their failures are not final.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._final: dict[str, list[int]] = {}
        self._since: dict[str, str] = {}

    def correct_row(self, key: int, row: FetchResult) -> FetchResult:
        """Count a row and return it, marked as not final if its host has refused many consecutive links.

        Args:
            key: `hash_link` of the link.
        """
        if row.reason in REFUSAL_REASONS and self._counts[parse_host(row.url)] + 1 >= REFUSALS_UNTIL_PAUSED:
            row = replace(row, final=False)
        self.add_row(key, row)
        return row

    def add_row(self, key: int, row: FetchResult) -> None:
        """Count a row without correcting it; call this for the rows of earlier runs, in the order of the manifest."""
        if row.reason not in REFUSAL_REASONS and not self._counts:
            return
        host = parse_host(row.url)
        if row.reason not in REFUSAL_REASONS:
            if row.reason not in RETRYABLE_REASONS and row.fetched_at > self._since.get(host, ""):  # images take longer
                self._counts.pop(host, None)
                self._final.pop(host, None)
            return
        self._counts[host] += 1
        if self._counts[host] == 1:
            self._since[host] = row.fetched_at
        if row.final:
            self._final.setdefault(host, []).append(key)

    def find_refused_keys(self) -> set[int]:
        """Return the keys of rows that are recorded as final although their host has refused many consecutive links.

        They are the first of these links: when they were recorded, there were not yet many. At the end of a run, their
        rows are corrected.
        """
        hosts = (host for host in self._final if self._counts[host] >= REFUSALS_UNTIL_PAUSED)
        return {key for host in hosts for key in self._final[host]}

    def correct_earlier_rows(self, read_current_rows: Callable[[], Iterable[FetchResult]]) -> list[FetchResult]:
        """Return the rows that `find_refused_keys` finds, marked as not final.

        Args:
            read_current_rows: returns the current row of each link; called only if there are such rows.
        """
        keys = self.find_refused_keys()
        wrong = (row for row in (read_current_rows() if keys else ()) if row.final and row.reason in REFUSAL_REASONS)
        return [replace(row, final=False) for row in wrong if hash_link(row.label, row.url) in keys]
