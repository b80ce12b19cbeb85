"""Openverse, iNaturalist and Wikimedia Commons, against look-alikes that enforce what their documentation says."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlimages import ImageRef, gather
from mlimages.core import GatherError, InputError, cache_dir
from mlimages.gathering import Openverse, read_manifest
from mlimages.gathering.sources import search_api
from tests.gathering.providers import OpenverseSite
from tests.servers import Site, answer, serve

FAST = {"allow_private": True, "timeout_s": 60.0, "retries": 0, "decoders": 1}


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        yield running


@pytest.fixture(autouse=True)
def anonymous(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENVERSE_CLIENT_ID", "OPENVERSE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)


async def listed(source: object) -> list[ImageRef]:
    return [ref async for ref in source]  # type: ignore[attr-defined]


def refs(source: object) -> list[ImageRef]:
    return asyncio.run(listed(source))


def test_openverse_says_its_limit_before_it_starts_and_gives_what_there_is_without_a_key(site: Site) -> None:
    served = OpenverseSite(site, total=1000)
    messages: list[str] = []
    source = Openverse(["cat"], endpoint=site.base, tell=messages.append)
    assert messages == [], "what a plan prints comes first"
    assert len(refs(source)) == 240
    assert "240 results per query" in messages[0]
    assert "OPENVERSE_CLIENT_ID and OPENVERSE_CLIENT_SECRET" in messages[0]
    assert {request.query["page_size"] for request in served.searches} == {"20"}


def test_openverse_gives_larger_pages_to_a_client_id_whose_secret_stays_secret(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENVERSE_CLIENT_ID", "me")
    monkeypatch.setenv("OPENVERSE_CLIENT_SECRET", "secret-1")
    served = OpenverseSite(site, total=120, depth=4800)
    messages: list[str] = []
    source = Openverse(["cat"], endpoint=site.base, tell=messages.append)
    assert (len(refs(source)), messages) == (120, [])
    assert [request.path for request in served.searches] == ["/v1/auth_tokens/token/", *["/v1/images/"] * 3]
    written = "".join(p.read_text() for p in cache_dir("openverse").rglob("*") if p.is_file())
    assert "secret-1" not in written + repr(source)
    assert "t1" not in written.replace("fetched_at", "")


def test_an_openverse_token_that_expired_is_exchanged_again_and_a_wrong_secret_is_named(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENVERSE_CLIENT_ID", "me")
    with pytest.raises(InputError, match="only one of OPENVERSE_CLIENT_ID and OPENVERSE_CLIENT_SECRET"):
        Openverse(["cat"], endpoint=site.base)
    monkeypatch.setenv("OPENVERSE_CLIENT_SECRET", "secret-1")
    served = OpenverseSite(site, total=120)

    async def all_but_first() -> int:
        count = 0
        async for _ in Openverse(["cat"], endpoint=site.base):
            served.tokens = ["t1", "t2"] if count == 0 else served.tokens
            count += 1
        return count

    assert asyncio.run(all_but_first()) == 120
    monkeypatch.setenv("OPENVERSE_CLIENT_SECRET", "wrong")
    with pytest.raises(GatherError, match="OPENVERSE_CLIENT_ID or OPENVERSE_CLIENT_SECRET is wrong"):
        refs(Openverse(["dog"], endpoint=site.base))


def test_openverse_filters_are_sent_and_checked(site: Site) -> None:
    served = OpenverseSite(site, total=1)
    filters = {"license_type": "commercial,modification", "source": "flickr", "extension": "jpg"}
    assert len(refs(Openverse(["cat"], licences="by,cc0", filters=filters, endpoint=site.base))) == 1
    assert filters.items() <= served.searches[0].query.items()
    with pytest.raises(InputError, match="license type is 'free': expected one of commercial"):
        Openverse(["cat"], filters={"license_type": "free"}, endpoint=site.base)
    with pytest.raises(GatherError, match="License 'xy' does not exist"):
        refs(Openverse(["cat"], licences="xy", endpoint=site.base))


def test_openverse_thumbnails_belong_to_its_documented_interface(site: Site, tmp_path: Path) -> None:
    OpenverseSite(site, total=5)
    site.routes["/robots.txt"] = answer(b"User-agent: *\nDisallow: /")
    assert gather(Openverse(["cat"], endpoint=site.base), tmp_path / "o", **FAST).reasons == {"opt-out": 5}  # type: ignore[arg-type]
    summary = gather(Openverse(["cat"], thumbnails=True, endpoint=site.base), tmp_path / "t", **FAST)  # type: ignore[arg-type]
    assert summary.ok == 5
    assert all(row.url.endswith("/thumb/") for row in read_manifest(tmp_path / "t"))


def test_a_cached_page_expires_and_an_empty_a_torn_or_a_refreshed_one_is_asked_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = OpenverseSite(site, total=0)

    def asks(**options: object) -> int:
        before = len(served.searches)
        refs(Openverse(["cat"], endpoint=site.base, **options))  # type: ignore[arg-type]
        return len(served.searches) - before

    assert [asks(), asks()] == [1, 1], "an empty answer is not kept"
    served.total = 3
    assert [asks(), asks(), asks(refresh=True), asks()] == [1, 0, 1, 0]
    (cached,) = cache_dir("openverse").glob("*[0-9a-f].json")
    for torn in (cached.read_text()[:20], "", "[]", "{}", "null"):
        cached.write_text(torn)
        assert [asks(), asks()] == [1, 0]
    now = search_api.time.time()
    monkeypatch.setattr(search_api.time, "time", lambda: now + 86_401)
    assert [asks(), asks()] == [1, 0]
