"""The header fields of --header are sent to the hosts of the list, and to no others."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mlimages.gathering import GatherOptions
from mlimages.gathering.download.fetch import DownloadResult, Fetcher
from mlimages.gathering.partition import NO_PARTITION
from tests.gathering.conftest import links, run
from tests.servers import Site, answer, photo, serve

CREDENTIALS = ("Authorization: Bearer SECRET", "Cookie: k=v", "Proxy-Authorization: Basic eDp5", "X-Api-Key: SECRET")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_port_or_host_is_followed_without_the_given_header_fields(
    site: Site, tmp_path: Path, status: int
) -> None:
    names = {text.partition(":")[0].lower() for text in CREDENTIALS}
    with serve() as other:
        other.routes["/image"] = answer(photo(1))
        targets = {"/port": other.url("/image"), "/host": other.url("/image?2").replace("127.0.0.1", "localhost")}
        site.routes |= {path: answer(b"", status, Location=target) for path, target in targets.items()}
        summary = run(links(tmp_path, *map(site.url, targets)), tmp_path / "out", headers=CREDENTIALS)
        assert summary.ok + summary.duplicate == 2
        assert all(names <= request.headers.keys() for request in site.requests)
        assert [names & request.headers.keys() for request in other.requests] == [set(), set()]


def test_redirects_within_a_site_keep_the_header_fields_also_on_the_way_back_from_another(
    site: Site, tmp_path: Path
) -> None:
    with serve() as other:
        other.routes["/away"] = answer(b"", 302, Location=site.url("/image"))
        site.routes |= {
            "/start": answer(b"", 302, Location="/next"),
            "/next": answer(b"", 302, Location=other.url("/away")),
            "/image": answer(photo(1)),
        }
        assert run(links(tmp_path, site.url("/start")), tmp_path / "out", headers=CREDENTIALS).ok == 1
        assert [request.headers.get("x-api-key") for request in other.requests] == [None]
    assert [request.headers.get("x-api-key") for request in site.requests] == ["SECRET"] * 3


@pytest.mark.parametrize(
    ("link", "target", "is_sent"),
    [
        ("http://a.example/1", "https://a.example/2", True),
        ("https://a.example/1", "http://a.example/2", False),
        ("http://a.example/1", "https://b.example/1", False),
        ("http://a.example/1", "https://a.example:444/1", False),
    ],
)
def test_header_fields_are_also_sent_where_a_site_redirects_from_http_to_https(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str, target: str, is_sent: bool
) -> None:
    sent: dict[str, object] = {}

    async def redirect_once(_: Fetcher, request: Any, __: object) -> DownloadResult:
        sent[str(request.url)] = request.headers
        return DownloadResult(http_status=302, redirect_location=target if str(request.url) == link else None)

    monkeypatch.setattr(Fetcher, "_request", redirect_once)  # the default ports are not available
    asyncio.run(Fetcher(GatherOptions(headers=["X-Api-Key: SECRET"]), NO_PARTITION).fetch(link, tmp_path / "image"))
    fields = {"X-Api-Key": "SECRET"}
    assert sent == {link: fields, target: fields if is_sent else {}}
