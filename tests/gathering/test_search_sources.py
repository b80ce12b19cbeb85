"""Openverse, iNaturalist and Wikimedia Commons, against look-alikes that enforce what their documentation says."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlimages import ImageRef, gather
from mlimages.core import GatherError, InputError, cache_dir
from mlimages.gathering import Commons, GatherOptions, ImageNet, INaturalist, Openverse, Pexels, Source, read_manifest
from mlimages.gathering.sources import search_api
from tests.conftest import RunCli
from tests.gathering.providers import CommonsSite, INaturalistSite, OpenverseSite
from tests.servers import Site, answer, closed_port, cut, photo, serve

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


SOURCES: dict[str, Callable[..., Source]] = {
    "openverse": lambda base, wait: Openverse(["cat"], endpoint=base, wait=wait),
    "inaturalist": lambda base, wait: INaturalist(["cat"], endpoint=base, wait=wait),
    "commons": lambda base, wait: Commons(["cat"], endpoint=base, wait=wait),
    "pexels": lambda base, wait: Pexels(["cat"], endpoint=base, wait=wait, i_have_permission=True),
    "imagenet": lambda base, wait: ImageNet(["n02121808"], endpoint=base),
}
FAILURES = {
    "connection refused": None,
    "HTTP 503": answer(b"", 503),
    "connection closed|response cut short": cut(b""),
    "no JSON object|not a tar archive": answer(b"<html>Log in</html>" * 99),
}


@pytest.mark.parametrize("problem", FAILURES)
@pytest.mark.parametrize("name", SOURCES)
def test_a_service_that_fails_is_named_and_retried_with_one_plain_sentence(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, problem: str
) -> None:
    monkeypatch.setenv("PEXELS_API_KEY", "k")
    reply, waits = FAILURES[problem], []
    base = site.base if reply else f"http://127.0.0.1:{closed_port()}"
    site.fallback = reply or site.fallback

    async def wait(seconds: float, why: str) -> None:
        waits.append((seconds, why))

    with pytest.raises(GatherError, match=problem) as failed:
        gather(SOURCES[name](base, wait), tmp_path / "out", **FAST)  # type: ignore[arg-type]
    host = base.removeprefix("http://")
    assert re.fullmatch(rf".*{host}.*: run the same command again [^;]*", str(failed.value))
    if name != "imagenet":
        assert [seconds for seconds, _ in waits] == [1, 2, 4, 8, 16]
        assert all(re.fullmatch(rf".*{host}.*(?:{problem}).*; trying again in \d+ s", why) for _, why in waits)
    assert not re.search(r"Error|Cannot connect|\[|ssl:", " ".join([str(failed.value), *(why for _, why in waits)]))


def test_openverse_filters_are_sent_and_checked(site: Site) -> None:
    served = OpenverseSite(site, total=1)
    filters = {"license_type": "commercial,modification", "source": "flickr", "extension": "jpg"}
    assert len(refs(Openverse(["cat"], licences="by,cc0", filters=filters, endpoint=site.base))) == 1
    assert filters.items() <= served.searches[0].query.items()
    with pytest.raises(InputError, match="unknown licence type 'free': expected one of commercial"):
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


def bees(site: Site, *queries: str, **options: object) -> INaturalist:
    return INaturalist(queries, endpoint=site.url("/v1"), **options)  # type: ignore[arg-type]


def test_inaturalist_gives_every_openly_licensed_photo_of_a_taxon_and_names_its_observer(
    site: Site, tmp_path: Path
) -> None:
    served = INaturalistSite(site, total=450)
    found = refs(bees(site, "bee=apis mellifera", size="large"))
    assert (len(found), {ref.label for ref in found}) == (900, {"bee"})
    assert found[0].url == site.url("/photos/10/large.jpg")
    assert {ref.source["license"] for ref in found} == {"cc-by", "cc0"}, "each photo has a licence of its own"
    searches = [request.query for request in served.searches[1:]]
    assert [query["id_above"] for query in searches] == ["0", "200", "400"]
    assert {query["quality_grade"] for query in searches} == {"research"}
    summary = gather(bees(site, "47219", licences="cc0"), tmp_path / "out", limit=5, **FAST)  # type: ignore[arg-type]
    assert summary.classes == {"47219": 5}
    assert served.searches[-1].query["photo_license"] == "cc0"
    assert "(c) Ann B, some rights reserved (CC BY)" in (tmp_path / "out/ATTRIBUTION.md").read_text()


@pytest.mark.parametrize(
    ("by", "classes"),
    [
        ("species", {"Formica rufa": 8, "Lasius niger": 4}),
        ("genus", {"Formica": 12, "Lasius": 4}),
        (None, {"Ants": 20}),
    ],
)
def test_inaturalist_makes_subtaxa_classes(site: Site, by: str | None, classes: dict[str, int]) -> None:
    INaturalistSite(site, total=10)
    assert Counter(ref.label for ref in refs(bees(site, "Ants", by=by))) == classes


def test_inaturalist_names_what_it_cannot_find(site: Site) -> None:
    INaturalistSite(site, total=1)
    with pytest.raises(
        InputError, match=r"'Formica' matches several taxa \(Formica \(genus 1\), Formica \(subgenus 2\)\): use the id"
    ):
        refs(bees(site, "Formica"))
    with pytest.raises(
        InputError, match=r"has no taxon 'formicula' \(similar: Formicidae \(family 47336\)\): use another name"
    ):
        refs(bees(site, "formicula"))
    for options in ({"licences": "all"}, {"by": "order"}, {"size": "huge"}):
        with pytest.raises(InputError, match="expected one of"):
            bees(site, "x", **options)


def test_inaturalist_is_asked_60_times_a_minute_and_its_media_by_the_gigabyte(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    INaturalistSite(site, total=200 * 70)
    waits: list[tuple[float, str]] = []

    class EnoughError(Exception):
        pass

    async def wait(seconds: float, why: str) -> None:
        waits.append((seconds, why))
        raise EnoughError

    begin = int(search_api.time.time()) - 60
    with monkeypatch.context() as patch:
        patch.setattr(search_api.time, "time", lambda: begin + len(site.requests) / 2)
        with pytest.raises(EnoughError):
            refs(bees(site, "47336", wait=wait))
    assert len(site.requests) == 60
    assert waits == [(30.0, "iNaturalist: 60 requests a minute are allowed; waiting 30 s")]
    source = bees(site, "47336", wait=wait, bytes_per_hour=10_000)
    with pytest.raises(EnoughError):
        gather(source, tmp_path / "out", parallel=1, **FAST)  # type: ignore[arg-type]
    assert "5 GB an hour are allowed" in waits[1][1]


def pages(site: Site, *queries: str, contact: str | None = "me@example.org", **options: object) -> Commons:
    network = GatherOptions(contact=contact)
    return Commons(queries, endpoint=site.url("/w/api.php"), http_options=network, **options)  # type: ignore[arg-type]


def test_commons_categories_and_words_are_read_to_their_end_with_artist_and_licence(site: Site, tmp_path: Path) -> None:
    served = CommonsSite(site, total=120)
    found = refs(pages(site, "Category:Lacerta agilis", "word=sand lizard", width=500))
    assert Counter(ref.label for ref in found) == {"Lacerta agilis": 108, "word": 108}, "a tenth are videos"
    assert found[0].url == site.url("/commons/thumb/1/x.jpg")
    assert served.searches[0].query["gcmtitle"] == "Category:Lacerta agilis"
    assert served.searches[3].query["gsrsearch"].startswith("sand lizard")
    summary = gather(pages(site, "word=sand lizard", width=None), tmp_path / "out", limit=3, **FAST)  # type: ignore[arg-type]
    assert summary.ok == 3
    attribution = (tmp_path / "out/ATTRIBUTION.md").read_text()
    assert "by Bo & Co, [CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0)" in attribution
    assert refs(pages(site, "Category:None", width=None)) != []
    with pytest.raises(InputError, match="width is 800: expected one of 20, 40"):
        pages(site, "x", width=800)


def test_commons_waits_for_its_database_and_is_told_who_asks(site: Site) -> None:
    served = CommonsSite(site, total=5)
    served.lags = 2
    waits: list[float] = []
    messages: list[str] = []

    async def wait(seconds: float, why: str) -> None:
        waits.append(seconds)

    assert len(refs(pages(site, "cat", wait=wait))) == 4
    assert waits == [5.0, 5.0]
    with pytest.raises(
        GatherError, match="Commons returned HTTP 403: Wikimedia may refuse requests without contact information"
    ):
        refs(pages(site, "dog", contact=None, tell=messages.append))
    assert "--contact" in messages[0]


def test_a_contact_and_header_fields_are_sent_and_bad_ones_refused(site: Site, tmp_path: Path) -> None:
    CommonsSite(site, total=2)
    headers = ["Referer: https://example.org/a:b", "X-Empty:"]
    gather(pages(site, "cat"), tmp_path / "out", contact="me@example.org", headers=headers, **FAST)  # type: ignore[arg-type]
    sent = site.requests[-1].headers
    assert sent["referer"] == "https://example.org/a:b"
    assert sent["user-agent"].startswith("mlimages/")
    assert "(me@example.org; " in sent["user-agent"]
    assert "Referer" not in repr(GatherOptions(headers=headers))
    for options in ({"headers": ["no colon"]}, {"headers": ["A: b\r\nC: d"]}, {"contact": "a\nb"}, {"contact": "(x)"}):
        with pytest.raises(InputError):
            GatherOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("headers", [{"Referer": "http://x.org"}, {"Referer": "http://x.org/a:b", "X-Key": "1"}])
def test_header_fields_of_the_command_line_are_sent(
    site: Site, tmp_path: Path, run_cli: RunCli, headers: dict[str, str]
) -> None:
    site.routes["/1.jpg"] = answer(photo(1))
    (tmp_path / "links.txt").write_text(site.url("/1.jpg"))
    words = [word for name, value in headers.items() for word in ("--header", f"{name}: {value}")]
    run_cli("gather", "urls", "links.txt", "-o", "out", "--allow-private", *words)
    sent = next(request.headers for request in site.requests if request.path == "/1.jpg")
    assert {name: sent.get(name.lower()) for name in headers} == headers
