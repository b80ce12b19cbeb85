"""Rows of the manifest, made of how a link ended."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from mlimages.core import FetchResult, ImageRef, Reason
from mlimages.gathering.download.fetch import Fetched
from mlimages.gathering.download.image_facts import Facts, Rejection
from mlimages.gathering.download.reasons import NOT_ANSWERED
from mlimages.gathering.links import recorded_url, without_credentials
from mlimages.gathering.store.image_index import ImageIndex


def row_of(ref: ImageRef, fetched: Fetched, outcome: dict[str, Any]) -> FetchResult:
    """The row of one finished link; `outcome` has its status and what is known of its image."""
    return FetchResult(
        url=recorded_url(ref.url),
        label=ref.label,
        final_url=fetched.final_url and without_credentials(fetched.final_url),
        http_status=fetched.http_status,
        attempts=fetched.attempts,
        elapsed_s=fetched.elapsed_s,
        fetched_at=datetime.fromtimestamp(fetched.asked_at, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
        source=ref.source,
        **outcome,
    )


def image_values(
    ref: ImageRef, fetched: Fetched, found: Facts, images: ImageIndex, *, keep_duplicates: bool
) -> dict[str, Any]:
    """What a row says of a good image, beside those that are known."""
    values = {name: getattr(found, name) for name in found.__slots__ if name != "suffix"}
    values["detail"] = "; ".join(filter(None, (found.detail, fetched.detail)))
    copies = images.copies(found.sha256)
    if copies.is_gone or (copies.is_gone_with(ref.url) and not keep_duplicates):
        values["detail"] = "the same bytes lie behind many paths of one host"
        return {"status": "placeholder", "reason": Reason.PLACEHOLDER, **values}
    if copies.path and not keep_duplicates:
        return {"status": "duplicate", "same_as": copies.path, **values}
    return {"status": "ok", "same_as": images.find_near(found.dhash), **values}


def failed_values(fetched: Fetched, found: Rejection | None) -> dict[str, Any]:
    """What a row says of a link that failed; it is final if the answer was the item's own."""
    if found is None:
        status = "placeholder" if fetched.reason is Reason.PLACEHOLDER else "failed"
        final = fetched.reason not in NOT_ANSWERED
        return {
            "status": status,
            "reason": fetched.reason,
            "final": final,
            "detail": without_credentials(fetched.detail),
        }
    is_of_machine = found.reason is Reason.DECODER  # out of memory, or a decoder that hung or died
    may_be_cut = found.reason is Reason.TRUNCATED and not fetched.is_whole
    values = {name: getattr(found, name) for name in found.__slots__}
    return {"status": "failed", "final": not (is_of_machine or may_be_cut), **values}
