"""Create manifest rows from the results of downloading and inspecting links."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from mlimages.core import FetchResult, ImageRef, Reason
from mlimages.gathering.download.fetch import DownloadResult
from mlimages.gathering.download.image_info import ImageInfo, Rejection
from mlimages.gathering.download.reasons import NON_FINAL_REASONS
from mlimages.gathering.links import redact_url, remove_credentials
from mlimages.gathering.store.image_index import ImageIndex


def make_row(image_ref: ImageRef, download: DownloadResult, outcome_fields: dict[str, Any]) -> FetchResult:
    """Create the row of a finished link.

    Args:
        image_ref: the link.
        download: the result of downloading the link.
        outcome_fields: result of `make_image_fields` or `make_failure_fields`.
    """
    return FetchResult(
        url=redact_url(image_ref.url),
        label=image_ref.label,
        final_url=download.final_url and remove_credentials(download.final_url),
        http_status=download.http_status,
        attempts=download.attempts,
        elapsed_s=download.elapsed_s,
        fetched_at=datetime.fromtimestamp(download.fetched_at, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
        source=image_ref.source,
        **outcome_fields,
    )


def make_image_fields(
    image_ref: ImageRef, download: DownloadResult, image_info: ImageInfo, index: ImageIndex, *, keep_duplicates: bool
) -> dict[str, Any]:
    """Return fields of the row of a valid image: its properties, and the status `ok`, `duplicate` or `placeholder`.

    Args:
        image_ref, download: see `make_row`.
        image_info: the properties of the image.
        index: index of the earlier images of the folder.
        keep_duplicates: keep every copy of the same bytes.
    """
    values = {name: getattr(image_info, name) for name in image_info.__slots__ if name != "suffix"}
    values["detail"] = "; ".join(filter(None, (image_info.detail, download.detail)))
    copies = index.find_copies(image_info.sha256)
    is_known_target = index.is_placeholder_url(download.final_url and remove_credentials(download.final_url))
    if is_known_target and not copies.num_links:
        values["detail"] = "redirected to a known placeholder image of a host"
        return {"status": "placeholder", "reason": Reason.PLACEHOLDER, **values}
    if copies.is_placeholder or (not keep_duplicates and index.becomes_placeholder(image_info.sha256, image_ref.url)):
        values["detail"] = "the same bytes are served at many paths of one host"
        return {"status": "placeholder", "reason": Reason.PLACEHOLDER, **values}
    if copies.path and not keep_duplicates:
        return {"status": "duplicate", "same_as": copies.path, **values}
    return {"status": "ok", "same_as": index.find_near_duplicate(image_info.dhash), **values}


def make_failure_fields(download: DownloadResult, rejection: Rejection | None) -> dict[str, Any]:
    """Return the status and the reason for the row of a failed link, by field name.

    The field `final` is False if the network, the host or this machine failed, so that the link may succeed later.
    """
    if rejection is None:
        return {
            "status": "failed",
            "reason": download.reason,
            "final": download.reason not in NON_FINAL_REASONS,
            "detail": remove_credentials(download.detail),
        }
    is_of_machine = rejection.reason is Reason.DECODER  # out of memory, or the decoder hung or crashed
    may_be_truncated = rejection.reason is Reason.TRUNCATED and not download.has_known_length
    values = {name: getattr(rejection, name) for name in rejection.__slots__}
    return {"status": "failed", "final": not (is_of_machine or may_be_truncated), **values}
