"""Thresholds of gathering that no other module has in a table, with a value just below each, at it and just above."""

import gzip
from pathlib import Path

import pytest

from mlimages import UrlList, gather
from mlimages.core import Reason
from mlimages.gathering import read_manifest
from mlimages.gathering.store.image_index import ImageIndex
from tests.servers import Reply, answer, path_of, photo, raw, serve

LIMITS = {"min_size": 40, "max_pixels": 4000, "max_bytes": 3000}


def padded(size: int) -> bytes:
    """An image of so many bytes."""
    return photo(size, (60, 50)).ljust(size, b"\0")


def packed(size: int) -> Reply:
    return answer(gzip.compress(padded(size)), Content_Encoding="gzip")


def chunked(size: int) -> Reply:
    """A body whose length no header says."""
    return raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (size, padded(size)))


CASES = {
    # the replies below, at and above the threshold; the reason, and which of them have it
    "min-size": ([answer(photo(n, (60, n))) for n in (39, 40, 41)], Reason.TOO_SMALL, "x--"),
    "max-pixels": ([answer(photo(n, (n, 40))) for n in (99, 100, 101)], Reason.TOO_MANY_PIXELS, "--x"),
    "max-bytes": ([answer(padded(n)) for n in (2999, 3000, 3001)], Reason.TOO_LARGE, "--x"),
    "max-bytes-chunked": ([chunked(n) for n in (2999, 3000, 3001)], Reason.TOO_LARGE, "--x"),
    "max-bytes-packed": ([packed(n) for n in (2999, 3000, 3001)], Reason.TOO_LARGE, "--x"),
    "redirects": ([answer(b"", 302, Location=f"/redirects/{n}") for n in (9, 10, 11)], Reason.REDIRECTS, "--x"),
}


def test_every_threshold_of_a_link(tmp_path: Path) -> None:
    with serve() as site:
        site.routes = {f"/{name}/{step}": reply for name, (replies, _, _) in CASES.items()
                       for step, reply in zip("abc", replies, strict=True)}  # fmt: skip
        urls = [site.url(path) for path in site.routes]
        site.routes |= {f"/redirects/{n}": answer(b"", 302, Location=f"/redirects/{n - 1}") for n in range(2, 12)}
        site.routes["/redirects/1"] = answer(photo(1, (60, 50)))
        (tmp_path / "cats.txt").write_text("\n".join(urls))
        source = UrlList(tmp_path / "cats.txt")
        gather(source, tmp_path / "out", allow_private=True, keep_duplicates=True, decoders=1, **LIMITS)  # type: ignore[arg-type]
    found = {path_of(row.url): row.reason for row in read_manifest(tmp_path / "out")}
    reasons = {"x": lambda reason: reason, "-": lambda _: None}
    assert found == {
        f"/{name}/{step}": reasons[mark](reason)
        for name, (_, reason, expected) in CASES.items()
        for step, mark in zip("abc", expected, strict=True)
    }


@pytest.mark.parametrize(
    ("value", "changed", "is_near"),
    [
        *((0x0F0F_0F0F_0F0F_0F0F, changed, changed != 0b111) for changed in (0b1, 0b11, 1 << 63 | 1, 0b111)),
        *(((1 << ones) - 1, 0, 8 <= ones <= 56) for ones in (7, 8, 9, 55, 56, 57)),  # not if the image is plain
    ],
)
def test_the_thresholds_of_near_duplicates(value: int, changed: int, is_near: bool) -> None:
    index = ImageIndex()
    index.add_difference_hash(f"{value:016x}", "a.jpg")
    assert (index.find_near_duplicate(f"{value ^ changed:016x}") is not None) is is_near
