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


def make_image_row(
    image_ref: ImageRef, download: DownloadResult, image_info: ImageInfo, index: ImageIndex, *, keep_duplicates: bool
) -> FetchResult:
    """Create the row of a valid image: its properties, and the status `ok`, `duplicate` or `placeholder`.

    Args:
        image_ref: the link.
        download: the result of downloading the link.
        image_info: the properties of the image.
        index: index of the earlier images of the folder.
        keep_duplicates: keep every copy of the same bytes.
    """
    values = {name: getattr(image_info, name) for name in image_info.__slots__ if name != "suffix"}
    values["detail"] = "; ".join(filter(None, (image_info.detail, download.detail)))
    copies = index.find_copies(image_info.sha256)
    is_known_target = (download.final_url and remove_credentials(download.final_url)) in index.placeholder_targets
    if is_known_target and not copies.num_links:
        values |= {"reason": Reason.PLACEHOLDER, "detail": "redirected to a known placeholder image of a host"}
        return _make_row(image_ref, download, "placeholder", values)
    if copies.is_placeholder or (not keep_duplicates and index.becomes_placeholder(image_info.sha256, image_ref.url)):
        values |= {"reason": Reason.PLACEHOLDER, "detail": "the same bytes are served at many paths of one host"}
        return _make_row(image_ref, download, "placeholder", values)
    if copies.path and not keep_duplicates:
        return _make_row(image_ref, download, "duplicate", values | {"same_as": copies.path})
    return _make_row(image_ref, download, "ok", values | {"same_as": index.find_near_duplicate(image_info.dhash)})


def make_failure_row(image_ref: ImageRef, download: DownloadResult, rejection: Rejection | None) -> FetchResult:
    """Create the row of a failed link, with the reason.

    The field `final` is False if the network, the host or this machine failed, so that the link may succeed later.
    """
    if rejection is None:
        detail, is_final = remove_credentials(download.detail), download.reason not in NON_FINAL_REASONS
        values = {"reason": download.reason, "detail": detail, "final": is_final}
        return _make_row(image_ref, download, "failed", values)
    is_of_machine = rejection.reason is Reason.DECODER  # out of memory, or the decoder hung or crashed
    may_be_truncated = rejection.reason is Reason.TRUNCATED and not download.has_known_length
    values = {name: getattr(rejection, name) for name in rejection.__slots__}
    return _make_row(image_ref, download, "failed", values | {"final": not (is_of_machine or may_be_truncated)})


def _make_row(image_ref: ImageRef, download: DownloadResult, status: Any, values: dict[str, Any]) -> FetchResult:
    return FetchResult(
        url=redact_url(image_ref.url),
        label=image_ref.label,
        status=status,
        final_url=download.final_url and remove_credentials(download.final_url),
        http_status=download.http_status,
        attempts=download.attempts,
        elapsed_s=download.elapsed_s,
        fetched_at=datetime.fromtimestamp(download.fetched_at, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
        source=image_ref.source,
        **values,
    )
