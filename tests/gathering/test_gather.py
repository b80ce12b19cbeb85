"""Gathering from real servers that behave well, badly, and as the web does."""

import asyncio
import errno
import fcntl
import gzip
import hashlib
import io
import itertools
import json
import os
import socket
import ssl
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageDraw, ImageStat

from mlimages.core import FetchResult, GatherError, ImageRef, NoProgress, Reason
from mlimages.gathering import GatherOptions, read_manifest
from mlimages.gathering.download import address_guard
from mlimages.gathering.download.body_file import StallDetector
from mlimages.gathering.download.fetch import DownloadResult
from mlimages.gathering.download.image_info import ImageInfo, ImageRequirements, Rejection
from mlimages.gathering.download.inspect import verify_and_resize
from mlimages.gathering.download.response_head import repair_head
from mlimages.gathering.links import redact_url
from mlimages.gathering.store.gather_folder import GatherFolder
from mlimages.gathering.store.image_index import PlaceholderDetector
from mlimages.gathering.store.output_folder import open_work_folder
from tests.gathering.conftest import contents, links, run, stored
from tests.servers import (
    Connection,
    Reply,
    Request,
    Site,
    answer,
    closed_port,
    cut,
    drip,
    endless,
    in_turn,
    path_of,
    photo,
    raw,
    reset,
    serve,
    silence,
    trickle,
    urls_in,
)  # fmt: skip


def rows(out: Path) -> dict[str, FetchResult]:
    found = list(read_manifest(out))
    by_url = {row.url: row for row in found}
    assert len(by_url) == len(found), "a link has more than one row"
    return by_url


def unclosed(out: Path) -> None:
    """Make the folder look as if its run had been killed at the end."""
    *lines, commit_row = (out / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    assert json.loads(commit_row)["status"] == "closed"
    (out / "manifest.jsonl").write_bytes(b"".join(lines))


PHOTO = photo(1)
MISBEHAVIOURS = {
    "html": (answer(b"<!DOCTYPE html><html>gone</html>", Content_Type="image/jpeg"), "html"),
    "nothing": (answer(b""), "empty"),
    "text": (answer(b"no such image"), "text"),
    "noise": (answer(bytes(range(128, 256)) * 9), "not-an-image"),
    "404": (answer(b"no", 404), "not-found"),
    "403": (answer(b"no", 403), "forbidden"),
    "410": (answer(b"no", 410), "gone"),
    "418": (answer(b"no", 418), "other-status"),
    "204": (answer(b"", 204), "other-status"),
    "500": (answer(b"no", 500), "server-error"),
    "reset": (reset(), "reset"),
    "silence": (silence(), "timeout"),
    "drip": (drip(PHOTO), "timeout"),
    "closes": (cut(b""), "reset"),
    "cut-by-length": (cut(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + PHOTO), "truncated"),
    "cut-by-chunk": (cut(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" + PHOTO[:1000]), "truncated"),
    "cut-inside": (answer(PHOTO[:-20]), "truncated"),
    "cut-last-bytes": (answer(PHOTO[:-2]), "truncated"),
    "cut-png": (answer(photo(1, form="PNG")[:-12]), "truncated"),
    "cut-webp": (answer(photo(1, form="WEBP")[:-3]), "truncated"),
    "endless": (endless(PHOTO), "too-large"),
    "declared-huge": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"), "too-large"),
    "gzip-bomb": (answer(gzip.compress(b"\0" * 50_000_000), Content_Encoding="gzip"), "too-large"),
    "brotli": (answer(PHOTO, Content_Encoding="br"), "bad-http"),
    "not-gzip": (answer(PHOTO, Content_Encoding="gzip"), "corrupt"),
    "cut-gzip": (answer(gzip.compress(PHOTO)[:-9], Content_Encoding="gzip"), "truncated"),
    "many-pixels": (answer(photo(1, (2100, 2000), "PNG", compress_level=1)), "too-many-pixels"),
    "tiny": (answer(photo(1, (20, 9))), "too-small"),
    "eps": (answer(photo(1, form="EPS")), "text"),
    "loop": (answer(b"", 302, Location="/loop"), "too-many-redirects"),
    "to-file": (answer(b"", 302, Location="file:///etc/passwd"), "bad-redirect"),
    "to-ftp": (answer(b"", 302, Location="ftp://127.0.0.1/x"), "bad-redirect"),
    "to-nothing": (answer(b"", 302), "bad-redirect"),
    "to-empty": (answer(b"", 302, Location=""), "bad-redirect"),
    "no-http": (raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "bad-http"),
    "long-header": (raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"), "bad-http"),
    "noai": (answer(PHOTO, X_Robots_Tag="noindex, noai"), "opt-out"),
    "noimageai": (answer(PHOTO, X_Robots_Tag="mlimages: noimageai"), "opt-out"),
}  # fmt: skip
"""What a server does, and the reason that its link must end with."""


def test_every_misbehaviour_ends_as_one_row_with_its_reason_and_the_good_is_kept(site: Site, tmp_path: Path) -> None:
    site.routes = {f"/{name}": reply for name, (reply, _) in MISBEHAVIOURS.items()}
    site.routes |= {"/good": answer(photo(2))}
    urls = {site.url(f"/{name}"): reason for name, (_, reason) in MISBEHAVIOURS.items()}
    elsewhere = {
        "no link at all": "bad-url",
        "http://": "bad-url",
        "http://[::1": "bad-url",
        "http://[::1]:8@/x.jpg": "bad-url",  # an IndexError of yarl
        "http://127.0.0.1:99999/x.jpg": "bad-url",
        "http://a..b/x.jpg": "bad-url",
        "http://x/" + "y" * 10_000: "bad-url",
        "ftp://127.0.0.1/a.jpg": "bad-scheme",
        "file:///etc/passwd": "bad-scheme",
        "data:image/png;base64,AAAA": "bad-scheme",
        "http://no-such-host.invalid/a.jpg": "unknown-host",
        f"http://127.0.0.1:{closed_port()}/a.jpg": "refused",
    }
    wanted = urls | elsewhere
    source = links(tmp_path, site.url("/good"), *wanted)
    limits = {"max_bytes": 2_000_000, "max_pixels": 4_000_000, "min_size": 10, "timeout_s": 5.0}
    summary = run(source, tmp_path / "out", per_host=64, **limits)
    found = rows(tmp_path / "out")
    assert {url: found[redact_url(url)].reason for url in wanted} == wanted
    assert list(contents(tmp_path / "out")) == ["cats/good.jpg"]
    assert (summary.ok, summary.failed) == (1, len(wanted))
    assert sum(summary.reasons.values()) == summary.failed


def sent(head: str, body: bytes = PHOTO) -> Reply:
    return cut(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + body)


LENGTH = f"Content-Length: {len(PHOTO)}"
RAW_DEFLATE = zlib.compressobj(wbits=-15)
FORGIVEN = {
    "two-equal-lengths": sent(f"{LENGTH}\r\nX: y\r\n{LENGTH}"),
    "length-and-chunks": sent(
        f"{LENGTH}\r\nTransfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(PHOTO), PHOTO)
    ),
    "a-line-without-colon": sent(f"no field\r\n{LENGTH}"),
    "a-name-with-a-space": sent(f"My Server: x\r\n{LENGTH}"),
    "raw-deflate": sent("Content-Encoding: deflate", RAW_DEFLATE.compress(PHOTO) + RAW_DEFLATE.flush()),
    "gzip-twice": sent("Content-Encoding: gzip, gzip", gzip.compress(gzip.compress(PHOTO))),
    "binary": sent("Content-Encoding: binary"),
    "partial": answer(PHOTO, 206, Content_Range=f"bytes 0-{len(PHOTO) - 1}/{len(PHOTO)}"),
    "too-early": in_turn(answer(b"", 425), answer(PHOTO)),
    "empty-once": in_turn(answer(b""), answer(PHOTO)),
}


def test_what_browsers_forgive_is_taken(site: Site, tmp_path: Path) -> None:
    site.routes = {f"/{name}.jpg": reply for name, reply in FORGIVEN.items()}
    run(links(tmp_path, *map(site.url, site.routes)), tmp_path / "out", keep_duplicates=True, retries=1)
    assert {row.url: row.reason for row in read_manifest(tmp_path / "out")} == {
        site.url(path): None for path in site.routes
    }


def test_heic_is_gathered_where_its_reader_is_installed(site: Site, tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    site.routes = {"/a": answer(photo(1, form="HEIF"))}
    assert run(links(tmp_path, site.url("/a")), tmp_path / "out").ok == 1
    assert list(contents(tmp_path / "out")) == ["cats/a.heic"]


def test_a_cookie_is_kept_for_the_redirects_of_its_link_alone(site: Site, tmp_path: Path) -> None:
    def with_cookie(connection: Connection, request: Request) -> None:
        has_cookie = request.headers.get("cookie") == "seen=1"
        reply = answer(PHOTO) if has_cookie else answer(b"", 302, Location=request.path, Set_Cookie="seen=1; Path=/")
        reply(connection, request)

    site.fallback = with_cookie
    run(links(tmp_path, site.url("/a.jpg"), site.url("/b.jpg")), tmp_path / "out", per_host=1)
    cookies = sorted((request.path, request.headers.get("cookie", "")) for request in site.requests)
    assert cookies == [("/a.jpg", ""), ("/a.jpg", "seen=1"), ("/b.jpg", ""), ("/b.jpg", "seen=1")]


@pytest.mark.parametrize(
    ("head", "mended"),
    [
        (b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 5\r\nContent-Length: 6"),
        (b"A: 1\r\nContent-Length: 5\r\nB:", b"A: 1\r\nContent-Length: 5\r\nB:"),
        (b"A: 1\r\n continued\r\nB: 2", b"A: 1\r\n continued\r\nB: 2"),
        (b"A: 1\r\nA: 1\r\n: none\r\nno field", b"A: 1\r\nA: 1"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5", b"Transfer-Encoding: chunked"),
    ],
)
def test_heads_are_mended_where_their_meaning_is_plain(head: bytes, mended: bytes) -> None:
    start, end = b"HTTP/1.1 200 OK\r\n", b"\r\n\r\n"
    assert repair_head(start + head + end) == start + mended + end


OPEN = {"timeout", "reset", "refused", "unknown-host", "throttled", "server-error", "proxy", "private-address", "tls",
        "host-down", "unreachable"}  # fmt: skip
"""Reasons that are no answer of the item itself."""


@pytest.mark.usefixtures("layout")
def test_only_an_answer_of_the_item_itself_is_final(site: Site, tmp_path: Path) -> None:
    slow = {"silence", "drip", "endless", "gzip-bomb"}
    kinds = {f"/{name}": (reply, reason) for name, (reply, reason) in MISBEHAVIOURS.items() if name not in slow}
    kinds["/407"] = (answer(b"no", 407), "proxy")
    site.routes = {path: reply for path, (reply, _) in kinds.items()}
    cut_on_its_way = {"/cut-by-length", "/cut-by-chunk", "/cut-gzip"}
    is_open = {path for path, (_, reason) in kinds.items() if reason in OPEN} | cut_on_its_way
    elsewhere = ["http://no-such-host.invalid/a.jpg", f"http://127.0.0.1:{closed_port()}/a.jpg", "ftp://x/a.jpg"]
    source = links(tmp_path, *map(site.url, kinds), *elsewhere)
    limits = {"max_pixels": 4_000_000, "min_size": 10, "per_host": 64}
    first = run(source, tmp_path / "out", **limits)
    found = rows(tmp_path / "out")
    assert {path for path in kinds if not found[site.url(path)].final} == is_open
    assert [found[url].final for url in elsewhere] == [False, False, True]
    assert first.open == len(is_open) + 2
    site.requests.clear()
    left = run(source, tmp_path / "out", no_retry=True, **limits)
    assert (left.open, left.failed, left.fetched, site.requests) == (first.open, first.failed, 0, [])
    site.routes = {path: answer(photo(number)) for number, path in enumerate(kinds)}
    again = run(source, tmp_path / "out", **limits)
    assert {request.path for request in site.requests} == is_open
    assert (again.ok, again.open) == (len(is_open), 2)


def test_an_image_that_a_decoder_failed_on_is_asked_for_again(site: Site, tmp_path: Path) -> None:
    ref, found = ImageRef(site.url("/a.jpg"), "cats"), Rejection(Reason.DECODER, "decoding took more than 30 s")
    with GatherFolder(tmp_path / "out", GatherOptions()) as gathered:
        gathered.claim_link(ref)
        recording = gathered.record_download(ref, DownloadResult(attempts=1), found, gathered.make_temp_path())
        assert not asyncio.run(recording).final
    with GatherFolder(tmp_path / "out", GatherOptions()) as gathered:
        assert gathered.claim_link(ref)


@pytest.mark.usefixtures("layout")
def test_a_forgotten_allow_private_and_a_wrong_proxy_spend_no_link(site: Site, tmp_path: Path) -> None:
    site.fallback = lambda connection, request: answer(photo(int(request.path[1:-4])))(connection, request)
    source = links(tmp_path, *(site.url(f"/{n}.jpg") for n in range(20)))
    assert run(source, tmp_path / "out", allow_private=False).open == 20
    wrong = run(source, tmp_path / "out", proxy=f"http://127.0.0.1:{closed_port()}")
    assert (wrong.open, set(wrong.reasons)) == (20, {"proxy", "host-down"})
    assert run(source, tmp_path / "out").ok == 20


@pytest.mark.usefixtures("layout")
def test_links_that_are_open_but_not_in_this_list_still_count(site: Site, tmp_path: Path) -> None:
    site.fallback = answer(b"", 500)
    run(links(tmp_path, site.url("/a.jpg"), site.url("/b.jpg")), tmp_path / "out")
    site.fallback = answer(photo(1))
    summary = run(links(tmp_path, site.url("/a.jpg")), tmp_path / "out")
    assert (summary.ok, summary.open, summary.failed) == (1, 1, 1)


def in_pieces(head: bytes, pieces: list[bytes], every_s: float) -> Reply:
    """A head, then the pieces with pauses."""

    def reply(connection: Connection, request: Request) -> None:
        connection.send(head)
        for piece in pieces:
            if connection.pause(every_s) or not connection.send(piece):
                raise ConnectionAbortedError

    return reply


@pytest.mark.parametrize("kind", ["multipart/x-mixed-replace; boundary=F", "Multipart/Mixed; boundary=F"])
def test_a_stream_of_images_is_refused_by_its_head(site: Site, tmp_path: Path, kind: str) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode()
    site.routes = {"/camera": in_pieces(head, [b"--F\r\nContent-Type: image/jpeg\r\n\r\n" + PHOTO] * 60, 0.25)}
    run(links(tmp_path, site.url("/camera")), tmp_path / "out")
    row = rows(tmp_path / "out")[site.url("/camera")]
    assert (row.reason, row.final, row.detail) == ("not-an-image", True, f"Content-Type: {kind.lower().split(';')[0]}")
    assert row.elapsed_s < 10


def test_a_time_out_means_no_progress_and_a_slow_line_is_none(site: Site, tmp_path: Path) -> None:
    body = photo(1, (700, 500))
    pieces = [body[at : at + len(body) // 8 + 1] for at in range(0, len(body), len(body) // 8 + 1)]
    length = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(body)
    site.routes = {
        "/slow": in_pieces(length + b"\r\n", pieces, 0.5),
        "/drip": drip(body, 0.05),
        "/head": in_pieces(length, [b"X"] * 10_000, 0.05),
    }
    source = links(tmp_path, *map(site.url, site.routes))
    summary = run(source, tmp_path / "out", timeout_s=2.0)
    found = rows(tmp_path / "out")
    assert found[site.url("/slow")].elapsed_s > 2.0
    assert [found[site.url(path)].reason for path in site.routes] == [None, Reason.TIMEOUT, Reason.TIMEOUT]
    assert (summary.open, summary.seconds < 30) == (2, True)


@pytest.mark.parametrize(
    ("arrivals", "stalled_at"),
    [
        ([(1, 1), (14, 10), (15, 11)], 15),  # a byte now and then
        ([(1, 9000), (15, 15_360), (29, 15_361), (30, 15_362)], 30),  # good at first, then a drip
        ([(15, 15_359)], 15),
        ([(15, 15_360), (30, 30_720), (45, 46_080)], None),  # just fast enough, for as long as it takes
        ([(14.9, 1)], None),
    ],
)
def test_progress_is_a_kilobyte_a_second_over_each_time_out(
    arrivals: list[tuple[float, int]], stalled_at: float | None
) -> None:
    pace = StallDetector(15.0, 2**26, 0.0)
    stalled = [moment for moment, total in arrivals if pace.describe_stall(moment, total)]
    assert stalled == ([] if stalled_at is None else [stalled_at])


@pytest.mark.parametrize(
    ("timeout_s", "max_bytes", "bytes_per_s", "expected_s"),
    [
        (15.0, 2**26, 50_000, None),  # the largest file on a poor line
        (15.0, 2**26, 32 * 1024, None),
        (15.0, 2**26, 1_100, 2109),
        (60.0, 2**26, 1_100, 2289),
        (1.0, 2**16, 1_100, 7),
        (15.0, 100, 1_100, None),
        (15.0, 50_000, 1_024, None),
    ],
)
def test_a_whole_transfer_takes_bounded_time_at_any_rate(
    timeout_s: float, max_bytes: int, bytes_per_s: int, expected_s: int | None
) -> None:
    pace, size = StallDetector(timeout_s, max_bytes, 0.0), 0
    for second in itertools.count(1):
        size += bytes_per_s
        if size > max_bytes or (problem := pace.describe_stall(second, size)):
            break
    assert (None if size > max_bytes else second) == expected_s
    assert expected_s is None or problem == f"not complete after {expected_s - 1} s"


SLOW_BODIES = {
    "image": trickle("Content-Type: image/jpeg", PHOTO[:600]),
    "untyped": trickle("X: y", bytes(600)),
    "declared": trickle("Content-Length: 30000", bytes(600)),
    "chunked": trickle("Transfer-Encoding: chunked", b"258\r\n%b\r\n" % bytes(600)),
    "gzip-of-nothing": trickle("Content-Encoding: gzip", b"\0\0\0\xff\xff" * 120, start=gzip.compress(b"")[:10]),
}


def test_a_body_that_makes_progress_but_does_not_end_is_a_time_out(site: Site, tmp_path: Path) -> None:
    site.routes = {f"/{name}.jpg": reply for name, reply in SLOW_BODIES.items()}
    run(links(tmp_path, *map(site.url, site.routes)), tmp_path / "out", timeout_s=1.0, max_bytes=2**15)
    found = {path_of(row.url): (row.reason, row.detail, row.final) for row in read_manifest(tmp_path / "out")}
    assert found == dict.fromkeys(site.routes, (Reason.TIMEOUT, "TimeoutError: not complete after 5 s", False))


def test_a_compressed_body_that_contains_nothing_is_bounded_in_size(site: Site, tmp_path: Path) -> None:
    start = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n" + gzip.compress(b"")[:10]
    site.routes = {"/a.jpg": cut(start + b"\0\0\0\xff\xff" * 20_000)}
    run(links(tmp_path, site.url("/a.jpg")), tmp_path / "out", max_bytes=50_000)
    assert [row.reason for row in read_manifest(tmp_path / "out")] == [Reason.TOO_LARGE]


def test_passing_failures_are_asked_for_again_and_lasting_ones_are_not(site: Site, tmp_path: Path) -> None:
    site.routes = {
        "/busy": in_turn(answer(b"", 503), answer(b"", 429, Retry_After="0"), answer(photo(1))),
        "/cut": in_turn(cut(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\nabc"), answer(photo(2))),
        "/never": answer(b"", 500),
    }
    urls = [site.url(path) for path in ("/busy", "/cut", "/never", "/absent")]
    run(links(tmp_path, *urls), tmp_path / "out", retries=2, max_wait_s=60.0)
    found = rows(tmp_path / "out")
    assert [found[url].status for url in urls] == ["ok", "ok", "failed", "failed"]
    assert [found[url].attempts for url in urls] == [3, 2, 3, 1]


def test_a_host_that_asks_for_more_patience_than_there_is_ends_the_wait(site: Site, tmp_path: Path) -> None:
    site.fallback = answer(b"", 429, Retry_After="9999")
    summary = run(links(tmp_path, *(site.url(f"/{n}") for n in range(30))), tmp_path / "out", retries=2, per_host=2)
    assert summary.reasons == {"host-down": 28, "throttled": 2}
    assert len(site.requests) == 2


def test_a_thousand_links_on_a_host_that_never_answers_cost_a_few_requests(site: Site, tmp_path: Path) -> None:
    site.fallback = silence()
    source = links(tmp_path, *(site.url(f"/{n}.jpg") for n in range(1000)))
    summary = run(source, tmp_path / "out", retries=2, timeout_s=3.0)
    assert len(site.requests) <= summary.reasons["timeout"] <= 16  # fewer, had this process halted before it asked
    assert summary.reasons["host-down"] == 1000 - summary.reasons["timeout"]
    site.fallback = answer(photo(1))
    again = run(links(tmp_path, site.url("/7.jpg"), site.url("/999.jpg")), tmp_path / "out")
    assert (again.ok, again.duplicate, again.failed, again.fetched) == (1, 1, 998, 2)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"])
def test_private_addresses_are_refused_however_they_are_written(site: Site, tmp_path: Path, host: str) -> None:
    site.fallback = answer(photo(1))
    url = site.url("/a.jpg").replace("127.0.0.1", host)
    run(links(tmp_path, url), tmp_path / "out", allow_private=False)
    assert rows(tmp_path / "out")[url].reason is Reason.PRIVATE_ADDRESS
    assert not site.requests


def test_a_redirect_leads_to_no_private_address_whether_written_or_looked_up(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_global, look_up = address_guard.is_public, socket.getaddrinfo
    monkeypatch.setattr(
        address_guard, "is_public", lambda ip: ip == "127.0.0.1" or is_global(ip)
    )  # our server: the web
    inner = {"inner.example": "127.0.0.2", "both.example": "10.0.0.1"}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: look_up(inner.get(host, host), *rest, **more)
    )
    site.routes = {"/good": answer(photo(1)), "/open": answer(b"", 302, Location="/good")}
    for name, host in {"literal": "127.0.0.2", "mapped": "[::ffff:10.0.0.1]", "hexadecimal": "0x7f000002",
                       "name": "inner.example", "other": "both.example"}.items():  # fmt: skip
        site.routes[f"/{name}"] = answer(b"", 302, Location=f"http://{host}:{site.base.rpartition(':')[2]}/good")
    paths = ["/open", "/literal", "/mapped", "/hexadecimal", "/name", "/other"]
    run(links(tmp_path, *map(site.url, paths)), tmp_path / "out", allow_private=False)
    found = rows(tmp_path / "out")
    assert [found[site.url(path)].reason for path in paths] == [None] + [Reason.PRIVATE_ADDRESS] * 5
    assert site.asked("/good") == 1


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "NO_PROXY"])
def test_the_guard_holds_for_each_connection_that_no_proxy_makes(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    site.fallback = answer(photo(1))
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: look_up("127.0.0.1", *rest, **more))
    monkeypatch.setenv("HTTPS_PROXY", site.base)
    if variable == "NO_PROXY":
        monkeypatch.setenv("HTTP_PROXY", site.base)
        monkeypatch.setenv("NO_PROXY", "inner.example")
    port = site.base.rpartition(":")[2]
    summary = run(links(tmp_path, f"http://inner.example:{port}/a.jpg"), tmp_path / "out", allow_private=False)
    assert (summary.reasons, site.requests) == ({"private-address": 1}, [])


def test_passwords_of_netrc_stay_there_and_those_of_links_reach_no_manifest(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hidden")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    site.fallback = answer(photo(1))
    own = site.url("/own.jpg").replace("//", "//user:secret@")
    data = "data:image/png;base64," + "A" * 5000
    for _ in range(2):
        summary = run(links(tmp_path, site.url("/a.jpg"), own, data), tmp_path / "out", keep_duplicates=True)
    assert {r.path: r.headers.get("authorization") for r in site.requests if "jpg" in r.path} == {
        "/a.jpg": None, "/own.jpg": "Basic dXNlcjpzZWNyZXQ=",
    }  # fmt: skip
    text = (tmp_path / "out/manifest.jsonl").read_text()
    assert (summary.ok, summary.fetched, "secret" in text, len(text) < 5000) == (2, 0, False, True)


def test_a_proxy_is_taken_from_the_option_or_the_environment(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.fallback = answer(photo(1))
    options = {"allow_private": False, "keep_duplicates": True}
    run(links(tmp_path, "http://example.invalid/a.jpg"), tmp_path / "out", proxy=site.base, **options)
    monkeypatch.setenv("HTTP_PROXY", site.base)
    source = links(tmp_path, "http://example.invalid/b.jpg", "http://10.1.1.1/c.jpg", "http://localhost/d.jpg")
    summary = run(source, tmp_path / "out", **options)
    assert [request.path for request in site.requests] == ["/a.jpg", "/b.jpg"]
    assert (summary.ok, summary.reasons) == (2, {"private-address": 2})


def test_a_redirect_to_a_private_address_is_not_asked_of_a_proxy(site: Site, tmp_path: Path) -> None:
    site.routes = {"/away": answer(b"", 302, Location="http://10.0.0.1/secret")}
    run(links(tmp_path, "http://example.invalid/away"), tmp_path / "out", proxy=site.base, allow_private=False)
    assert [row.reason for row in rows(tmp_path / "out").values()] == [Reason.PRIVATE_ADDRESS]
    assert [request.path for request in site.requests] == ["/away"]


def test_the_bytes_decide_suffix_and_type_and_names_are_made_safe(site: Site, tmp_path: Path) -> None:
    png = photo(1, form="PNG")
    site.routes = {"/wrong.jpg": answer(png, Content_Type="text/html"), "/..%2F..%2Fetc": answer(photo(2)),
                   "/": answer(photo(3)), "/img.php": answer(photo(4)), "/CON.jpg": answer(photo(5))}  # fmt: skip
    urls = [site.url(path) for path in ("/wrong.jpg", "/..%2F..%2Fetc", "/", "/img.php?id=4&x=.jpg", "/CON.jpg")]
    run(links(tmp_path, *urls), tmp_path / "out")
    assert list(contents(tmp_path / "out")) == [
        "cats/_.._etc.jpg", "cats/_CON.jpg", "cats/image.jpg", "cats/img.jpg", "cats/wrong.png",
    ]  # fmt: skip
    assert (tmp_path / "out/cats/wrong.png").read_bytes() == png


@pytest.mark.usefixtures("layout")
def test_one_name_with_different_bytes_keeps_both_and_the_same_bytes_are_kept_once(site: Site, tmp_path: Path) -> None:
    site.routes = {"/a/x.jpg": answer(photo(1)), "/b/x.jpg": answer(photo(2)), "/c/y.jpg": answer(photo(1)),
                   "/d/near.jpg": answer(photo(1, quality=60))}  # fmt: skip
    urls = [site.url(path) for path in site.routes]
    summary = run(links(tmp_path, *urls), tmp_path / "out", parallel=1)
    found = rows(tmp_path / "out")
    assert [found[url].status for url in urls] == ["ok", "ok", "duplicate", "ok"]
    assert found[urls[2]].same_as == found[urls[3]].same_as == found[urls[0]].path
    assert (summary.ok, summary.duplicate, summary.near_duplicate) == (3, 1, 1)
    assert len(stored(tmp_path / "out")) == 3
    kept = run(links(tmp_path, *urls), tmp_path / "kept", keep_duplicates=True, parallel=1)
    assert (kept.ok, kept.duplicate, len(stored(tmp_path / "kept"))) == (4, 0, 4)


def test_thumbnails_that_differ_do_not_look_alike(site: Site, tmp_path: Path) -> None:
    site.routes = {f"/{n}.jpg": answer(photo(n, (32, 32))) for n in range(60)}
    summary = run(links(tmp_path, *map(site.url, site.routes)), tmp_path / "out")
    assert (summary.ok, summary.near_duplicate) == (60, 0)


def test_the_same_bytes_behind_five_links_are_a_placeholder_and_none_is_kept(site: Site, tmp_path: Path) -> None:
    site.routes = {f"/{n}.jpg": answer(b"", 302, Location="/gone") for n in range(8)} | {"/good.jpg": answer(photo(1))}
    source = links(tmp_path, *(site.url(path) for path in site.routes if path != "/7.jpg"))
    site.routes["/gone"] = answer(photo(0))
    summary = run(source, tmp_path / "out")
    assert (summary.ok, summary.duplicate, summary.reasons) == (1, 0, {"placeholder": 7})
    aside, good = contents(tmp_path / "out")
    assert (aside.partition("/")[0], good) == (".placeholders", "cats/good.jpg")
    assert (tmp_path / "out" / aside).read_bytes() == photo(0), "one copy is put aside, where no label file looks"
    found = [row for url, row in rows(tmp_path / "out").items() if "good" not in url]
    assert {(row.status, row.reason) for row in found} == {("placeholder", Reason.PLACEHOLDER)}
    assert {row.path for row in found} == {aside, None}
    more = run(links(tmp_path, site.url("/6.jpg?again"), name="more.txt"), tmp_path / "out")
    assert more.reasons == {"placeholder": 8}
    site.routes["/gone"] = answer(photo(2))
    more = run(links(tmp_path, site.url("/7.jpg"), name="more.txt"), tmp_path / "out")
    assert more.reasons == {"placeholder": 9}, "redirected to the same address"


@pytest.mark.parametrize("kind", ["labels", "queries", "fragments"])
@pytest.mark.usefixtures("layout")
def test_one_image_behind_many_links_is_a_duplicate_and_one_is_kept(site: Site, tmp_path: Path, kind: str) -> None:
    site.fallback = answer(photo(0))
    lines = {
        "labels": [f"class{n}\t{site.url('/a.jpg')}" for n in range(7)],
        "queries": [site.url(f"/a.jpg?utm={n}") for n in range(7)],
        "fragments": [site.url(f"/a.jpg#{n}") for n in range(7)],
    }[kind]
    for _ in range(2):
        summary = run(links(tmp_path, *lines), tmp_path / "out")
        assert (summary.ok, summary.duplicate, summary.failed) == (1, 6, 0)


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        ([f"http://h/{n}.jpg" for n in range(5)], True),
        ([f"http://h/{n}.jpg" for n in range(4)], False),
        ([f"http://h{n}/{n}.jpg" for n in range(50)], False),
        ([f"http://h/a.jpg?{n}#{n}" for n in range(50)], False),
    ],
)
def test_a_placeholder_is_many_different_paths_of_one_host(urls: list[str], expected: bool) -> None:
    counts, sha256 = PlaceholderDetector(), "0" * 64
    for url in urls:
        counts.add(sha256, url)
    assert counts.is_placeholder(sha256) is expected
    assert list(counts.find_placeholders()) == [sha256] * expected


@pytest.mark.usefixtures("layout")
def test_a_limit_counts_good_images_per_class_and_no_more_are_fetched(site: Site, tmp_path: Path) -> None:
    site.routes = {f"/{n}.jpg": answer(photo(n)) for n in range(0, 40, 2)}
    lines = [f"{label}\t{site.url(f'/{n}.jpg')}?{label}" for n in range(40) for label in ("a", "b")]
    summary = run(links(tmp_path, *lines), tmp_path / "out", limit=5, keep_duplicates=True)
    assert summary.classes == {"a": 5, "b": 5}
    assert len(site.requests) <= 2 * 10 + 2
    before = len(site.requests)
    assert run(links(tmp_path, *lines), tmp_path / "out", limit=5, keep_duplicates=True).ok == 10
    assert len(site.requests) == before
    assert run(links(tmp_path, *lines), tmp_path / "out", limit=7, keep_duplicates=True).classes == {"a": 7, "b": 7}


def test_the_progress_ends_at_its_total_whatever_the_list_holds(site: Site, tmp_path: Path) -> None:
    class Recorder(NoProgress):
        total, count = 0, 0

        def start(self, what: str, total: int | None, unit: str) -> None:
            self.total = total or 0

        def advance(self, count: int = 1, **figures: object) -> None:
            self.count += count

    site.routes = {f"/{n}.jpg": answer(photo(n)) for n in range(9)}
    lines = ["# comment", "", *map(site.url, site.routes), "  ", site.url("/0.jpg"), "#", site.url("/gone.jpg"), ""]
    for limit in (None, 3):
        progress = Recorder()
        run(links(tmp_path, *lines), tmp_path / f"out{limit}", progress=progress, limit=limit)
        assert (progress.count, progress.total) == (11, 11)


def test_a_second_run_asks_for_nothing_that_is_there_and_for_what_is_new_or_lost(site: Site, tmp_path: Path) -> None:
    site.routes = {f"/{n}.jpg": answer(photo(n)) for n in range(4)}
    urls = [site.url(path) for path in site.routes]
    run(links(tmp_path, *urls[:3], site.url("/gone.jpg")), tmp_path / "out")
    unclosed(tmp_path / "out")
    (tmp_path / "out/cats/0.jpg").unlink()
    (tmp_path / "out/cats/1.jpg").write_bytes(b"")
    site.requests.clear()
    summary = run(links(tmp_path, *urls, site.url("/gone.jpg")), tmp_path / "out")
    assert sorted(request.path for request in site.requests) == ["/0.jpg", "/1.jpg", "/3.jpg"]
    assert (summary.ok, summary.failed, summary.removed, summary.fetched) == (4, 1, 0, 3)
    rows(tmp_path / "out")
    assert contents(tmp_path / "out") == {f"cats/{n}.jpg": photo(n) for n in range(4)}


def test_images_of_every_shape_are_inspected(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for size in ((1, 1), (5, 300), (300, 5), (8, 8), (1, 3000)):
        path.write_bytes(photo(1, size))
        found = verify_and_resize(path, ImageRequirements())
        assert isinstance(found, ImageInfo)
        assert (found.width, found.height) == size
    found = verify_and_resize(path, ImageRequirements(target_shorter_px=256))
    assert isinstance(found, Rejection)
    assert (found.reason, found.detail) == (Reason.TOO_MANY_PIXELS, "too large after resizing: 256 x 768000 pixels")


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("tail", [b"\0" * 100_000, b"\xff\xda\xff\xd8\xff" * 99, b"ftypmp42" + bytes(range(256)) * 500])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0\xff\xd9\xff\xda"}])
def test_bytes_after_an_image_do_not_matter_and_its_own_end_does(
    tmp_path: Path, form: str, tail: bytes, options: dict[str, object]
) -> None:
    image, path = photo(1, (300, 200), form, **options if form == "JPEG" else {}), tmp_path / "x"
    path.write_bytes(image + tail)
    assert isinstance(verify_and_resize(path, ImageRequirements()), ImageInfo)
    for missing in (2, 20, len(image) // 2):
        path.write_bytes(image[:-missing])
        found = verify_and_resize(path, ImageRequirements())
        assert isinstance(found, Rejection)
        assert found.reason is Reason.TRUNCATED


def test_resized_images_are_upright_rgb_with_the_shorter_side_as_asked(site: Site, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    transparent = io.BytesIO()
    Image.new("RGBA", (90, 60), (255, 0, 0, 0)).save(transparent, "PNG")
    cmyk, deep = io.BytesIO(), io.BytesIO()
    Image.new("CMYK", (90, 60), (0, 255, 255, 0)).save(cmyk, "JPEG")
    Image.new("I;16", (90, 60), 128 * 257).save(deep, "PNG")
    site.routes = {"/turned.jpg": answer(photo(1, (400, 200), exif=exif)), "/glass.png": answer(transparent.getvalue()),
                   "/cmyk.jpg": answer(cmyk.getvalue()), "/deep.png": answer(deep.getvalue())}  # fmt: skip
    run(links(tmp_path, *map(site.url, site.routes)), tmp_path / "out", resize=40)
    opened = {path: Image.open(io.BytesIO(data)) for path, data in contents(tmp_path / "out").items()}
    assert {path: (image.mode, image.size) for path, image in opened.items()} == {
        "cats/cmyk.jpg": ("RGB", (60, 40)), "cats/deep.jpg": ("RGB", (60, 40)),
        "cats/glass.jpg": ("RGB", (60, 40)), "cats/turned.jpg": ("RGB", (40, 80)),
    }  # fmt: skip
    colours = {"cats/cmyk.jpg": (255, 0, 0), "cats/deep.jpg": (128,) * 3, "cats/glass.jpg": (255,) * 3}
    for path, colour in colours.items():
        assert opened[path].getpixel((30, 20)) == pytest.approx(colour, abs=4)
    for row in rows(tmp_path / "out").values():
        stored = (tmp_path / "out" / str(row.path)).read_bytes()
        assert (row.bytes, row.sha256) == (len(stored), hashlib.sha256(stored).hexdigest())


@pytest.mark.parametrize("size", [(350, 240), (240, 350), (900, 700)])
def test_a_jpeg_made_smaller_looks_as_if_resized_in_rgb(size: tuple[int, int], tmp_path: Path) -> None:
    path, exif = tmp_path / "lines.jpg", Image.Exif()
    exif[0x0112] = 6
    lines = Image.open(io.BytesIO(photo(1, size)))
    for start in range(0, 2 * max(size), max(size) // 20):
        ImageDraw.Draw(lines).line((start, 0, 0, start), fill="white", width=max(size) // 100)
    lines.save(path, quality=95, exif=exif)
    with Image.open(path) as image:
        turned = image.transpose(Image.Transpose.ROTATE_270)
    assert isinstance(verify_and_resize(path, ImageRequirements(target_shorter_px=160)), ImageInfo)
    as_rgb = io.BytesIO()
    with Image.open(path) as stored:
        turned.resize(stored.size, Image.Resampling.HAMMING).save(as_rgb, "JPEG", quality=95)
        apart = ImageChops.difference(stored, Image.open(as_rgb))
        brightness_apart = ImageChops.difference(stored.convert("L"), Image.open(as_rgb).convert("L"))
    assert max(ImageStat.Stat(apart).mean) < 5  # of 255 levels
    assert ImageStat.Stat(brightness_apart).mean[0] < 2.5


@pytest.mark.parametrize(
    ("first", "second"), [(None, None), ((1, 2), None), (None, (1, 2)), (None, (1, 1)), ((1, 2), (1, 2))]
)
def test_a_second_run_into_a_folder_is_refused_and_clears_up_after_one_that_was_killed(
    tmp_path: Path, first: tuple[int, int] | None, second: tuple[int, int] | None
) -> None:
    with (
        GatherFolder(tmp_path / "out", GatherOptions(shard=first)),
        pytest.raises(GatherError, match="another run is gathering into"),
        GatherFolder(tmp_path / "out", GatherOptions(shard=second)),
    ):
        pass
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".jsonl"], "nothing hidden is left"
    left = tmp_path / "out" / ".gather" / "manifest-00001" / "1.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half an image")
    run(links(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out" / ".gather").exists()


def test_a_run_in_several_processes_keeps_others_out_and_is_cleared_up_after(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        open_work_folder(out, "80107372f2ac4cb6", is_exclusive=False) as held,
        pytest.raises(GatherError, match="another run is gathering into"),
        GatherFolder(out, GatherOptions()),
    ):
        pass
    held.mkdir(parents=True)  # as if it had been killed
    run(links(tmp_path), out)
    assert not (out / ".gather").exists()


def test_shards_run_beside_each_other_and_clear_up_after_a_run_that_was_killed(tmp_path: Path) -> None:
    left = tmp_path / "out" / ".gather" / "manifest" / "1.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half an image")
    with (
        GatherFolder(tmp_path / "out", GatherOptions(shard=(1, 2))),
        GatherFolder(tmp_path / "out", GatherOptions(shard=(2, 2))),
    ):
        assert not left.exists()
    assert not (tmp_path / "out" / ".gather").exists()


def test_a_run_waits_for_one_that_is_about_to_end_and_takes_its_hidden_folder_along(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.routes = {"/a.jpg": answer(photo(1))}
    ending = GatherFolder(tmp_path / "out", GatherOptions())
    ending.__enter__()
    asked = itertools.count(1)

    def flock(handle: int, how: int, really: Callable[[int, int], None] = fcntl.flock) -> None:
        if next(asked) == 2:  # the folder is open already
            ending.__exit__(None, None, None)
        really(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert run(links(tmp_path, site.url("/a.jpg")), tmp_path / "out").ok == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_not_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with GatherFolder(tmp_path / "out", GatherOptions()), GatherFolder(tmp_path / "out", GatherOptions(shard=(1, 2))):
        pass


def test_shards_joined_in_one_folder_settle_without_a_request(site: Site, tmp_path: Path) -> None:
    gone = photo(99)
    bytes_in = {
        1: [photo(0), photo(1), *[gone] * 5],
        2: [photo(0), photo(0), photo(1, quality=60)],
        3: [photo(2), photo(0, quality=60)],
    }
    found = {n: list(zip(urls_in(site, n, 3), bodies, strict=False)) for n, bodies in bytes_in.items()}
    site.routes = {path_of(url): answer(body) for pairs in found.values() for url, body in pairs}
    source = links(tmp_path, *(url for pairs in found.values() for url, _ in pairs))
    whole = run(source, tmp_path / "whole")
    for shard in (1, 2, 3):
        run(source, tmp_path / f"part{shard}", shard=(shard, 3))
        subprocess.run(["cp", "-r", f"{tmp_path}/part{shard}/.", tmp_path / "joined"], check=True)
    site.requests.clear()
    joined = run(source, tmp_path / "joined")
    assert not site.requests
    for one in (joined, whole):
        assert (one.ok, one.duplicate, one.near_duplicate, one.reasons) == (5, 2, 2, {"placeholder": 5})
    named = {row.same_as for row in rows(tmp_path / "joined").values()}
    assert named - {None} <= contents(tmp_path / "joined").keys()
    assert len(contents(tmp_path / "joined")) == len(contents(tmp_path / "whole")) == 6
    assert sum(path.startswith(".placeholders/") for path in contents(tmp_path / "joined")) == 1
    assert [path.name for path in (tmp_path / "joined").glob("manifest*")] == ["manifest.jsonl"]


def test_a_shard_asks_for_nothing_that_any_manifest_of_its_folder_holds(site: Site, tmp_path: Path) -> None:
    sides = urls_in(site, 1, 2), urls_in(site, 2, 2)
    urls = [next(sides[n % 2]) for n in range(4)]
    paths = [*map(path_of, urls)]
    site.routes = {path: answer(photo(n)) for n, path in enumerate(paths[:3])}
    source = links(tmp_path, *urls)
    out = tmp_path / "out"
    run(source, out)
    site.requests.clear()
    shards = [run(source, out, shard=(number, 2)) for number in (1, 2)]
    assert not site.requests
    assert [(shard.ok, shard.failed, shard.fetched) for shard in shards] == [(2, 0, 0), (1, 1, 0)]
    site.routes[paths[3]] = answer(photo(3))
    for _ in range(2):
        for number in (1, 2):
            last = run(source, out, shard=(number, 2), retry_failed={Reason.NOT_FOUND})
    assert [request.path for request in site.requests] == [paths[3]], "the later manifest counts"
    assert (last.ok, last.failed) == (2, 0)
    settled = run(source, out)
    assert (settled.ok, settled.failed, len(contents(out))) == (4, 0, 4), "the link is as the shard says"


def test_tls_is_verified_and_one_context_serves_all(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with serve(context) as site:
        site.fallback = answer(photo(1))
        url = site.url("/a.jpg").replace("127.0.0.1", "localhost")
        code = (
            "import sys; from mlimages import gather, UrlList;"
            "print(gather(UrlList(sys.argv[1]), sys.argv[2], allow_private=True, retries=0).reasons)"
        )
        links(tmp_path, url)
        for trusted, expected in (("", "{'tls': 1}"), (str(certificate[0]), "{}")):
            env = {**os.environ, "SSL_CERT_FILE": trusted} if trusted else os.environ
            arguments = [sys.executable, "-c", code, tmp_path / "cats.txt", tmp_path / f"out{bool(trusted)}"]
            done = subprocess.run(arguments, capture_output=True, text=True, env=env)
            assert done.stdout.strip() == expected, done.stderr


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost and its key."""
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-out", paths[0], "-keyout", paths[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return paths
