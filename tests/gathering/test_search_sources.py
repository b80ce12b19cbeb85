"""Openverse, iNaturalist, Commons and Pexels, against look-alikes that enforce what their documentation says."""

import asyncio
import io
import re
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from time import gmtime, strftime
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from mlimages.cli import gather_search
from mlimages.cli.gather_search import show_countdown
from mlimages.cli.main import app
from mlimages.core import GatherError, InputError, cache_dir
from mlimages.gathering import Commons, GatherOptions, ImageNet, INaturalist, Openverse, Pexels, Source, read_manifest
from mlimages.gathering.sources import search_api
from tests.gathering.conftest import run
from tests.gathering.providers import CommonsSite, INaturalistSite, OpenverseSite, PexelsSite, Waits, refs
from tests.servers import Connection, Request, Site, answer, closed_port, cut, in_turn, photo


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anonymous for Openverse, with a key for Pexels."""
    for name in ("OPENVERSE_CLIENT_ID", "OPENVERSE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PEXELS_API_KEY", "secret-key")


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
    "connection closed|truncated response": cut(b""),
    "no JSON object|not a tar archive": answer(b"<html>Log in</html>" * 99),
}


@pytest.mark.parametrize("problem", FAILURES)
@pytest.mark.parametrize("name", SOURCES)
def test_a_service_that_fails_is_named_and_retried_with_one_plain_sentence(site: Site, name: str, problem: str) -> None:
    reply, waits = FAILURES[problem], Waits()
    base = site.base if reply else f"http://127.0.0.1:{closed_port()}"
    site.fallback = reply or site.fallback
    with pytest.raises(GatherError, match=problem) as failed:
        refs(SOURCES[name](base, waits))
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
    with pytest.raises(InputError, match="license_type is 'free': expected one of commercial"):
        Openverse(["cat"], filters={"license_type": "free"}, endpoint=site.base)
    with pytest.raises(GatherError, match=r"HTTP 400: \{.*License 'xy' does not exist"):
        refs(Openverse(["cat"], licences="xy", endpoint=site.base))


def test_openverse_thumbnails_belong_to_its_documented_interface(site: Site, tmp_path: Path) -> None:
    OpenverseSite(site, total=5)
    site.routes["/robots.txt"] = answer(b"User-agent: *\nDisallow: /")
    assert run(Openverse(["cat"], endpoint=site.base), tmp_path / "o").reasons == {"opt-out": 5}
    assert run(Openverse(["cat"], thumbnails=True, endpoint=site.base), tmp_path / "t").ok == 5
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


class Clock:
    """A clock that only waits advance, in place of the module `time`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_800_000_000.0
        self.waits: list[tuple[float, str]] = []
        clock = SimpleNamespace(time=lambda: self.now, strftime=strftime, gmtime=gmtime)
        monkeypatch.setattr(search_api, "time", clock)

    async def wait(self, seconds: float, why: str) -> None:
        self.waits.append((seconds, why))
        self.now += seconds


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
    assert run(bees(site, "47219", licences="cc0"), tmp_path / "out", limit=5).classes == {"47219": 5}
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


def test_inaturalist_closes_its_session_when_it_is_not_read_to_its_end(site: Site) -> None:
    INaturalistSite(site, total=10)

    async def read_one() -> bool:
        source = bees(site, "bee=apis mellifera")
        async with aclosing(aiter(source)) as photos:
            await anext(photos)
        return source._api._session.closed

    assert asyncio.run(read_one())


def test_inaturalist_names_what_it_cannot_find(site: Site) -> None:
    INaturalistSite(site, total=1)
    with pytest.raises(
        InputError, match=r"'Formica' matches several taxa \(Formica \(genus 1\), Formica \(subgenus 2\)\): use the id"
    ):
        refs(bees(site, "Formica"))
    with pytest.raises(
        InputError, match=r"has no taxon 'formicula' \(similar: Formicidae \(family 47336\), .*\): use another name"
    ):
        refs(bees(site, "formicula"))
    for options in ({"licences": "all"}, {"by": "order"}, {"size": "huge"}):
        with pytest.raises(InputError, match="expected one of"):
            bees(site, "x", **options)


def test_inaturalist_is_asked_60_times_a_minute_and_its_media_by_the_gigabyte(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    INaturalistSite(site, total=200 * 61)
    Clock(monkeypatch)

    class EnoughError(Exception):
        pass

    async def stop(seconds: float, why: str) -> None:
        raise EnoughError(why)

    with pytest.raises(EnoughError, match=r"^iNaturalist: 60 requests a minute are allowed; waiting 60 s$"):
        refs(bees(site, "47336", wait=stop))
    assert len(site.requests) == 60
    with pytest.raises(EnoughError, match="5 GB an hour are allowed"):
        run(bees(site, "47336", wait=stop, bytes_per_hour=10_000), tmp_path / "out", parallel=1)


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
    assert run(pages(site, "word=sand lizard", width=None), tmp_path / "out", limit=3).ok == 3
    attribution = (tmp_path / "out/ATTRIBUTION.md").read_text()
    assert "by Bo & Co, [CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0)" in attribution
    assert refs(pages(site, "Category:None", width=None)) != []
    for queries in (("cat", "Category:cat"), ("Category: cat", "cat=Category:Felis catus")):
        with pytest.raises(InputError, match="the class 'cat' appears twice"):
            pages(site, *queries)
    with pytest.raises(InputError, match="width is 800: expected one of 20, 40"):
        pages(site, "x", width=800)


def test_commons_waits_for_its_database_and_is_told_who_asks(site: Site) -> None:
    served = CommonsSite(site, total=5)
    served.lags = 2
    waits, messages = Waits(), list[str]()
    assert len(refs(pages(site, "cat", wait=waits))) == 4
    assert [seconds for seconds, _ in waits] == [5.0, 5.0]
    with pytest.raises(
        GatherError, match="Commons returned HTTP 403: Wikimedia may refuse requests without contact information"
    ):
        refs(pages(site, "dog", contact=None, tell=messages.append))
    assert "--contact" in messages[0]


def test_a_contact_and_header_fields_are_sent_and_bad_ones_refused(site: Site, tmp_path: Path) -> None:
    CommonsSite(site, total=2)
    headers = ["Referer: https://example.org/a:b", "X-Empty:"]
    run(pages(site, "cat"), tmp_path / "out", contact="me@example.org", headers=headers)
    sent = site.requests[-1].headers
    assert sent["referer"] == "https://example.org/a:b"
    assert sent["user-agent"].startswith("mlimages/")
    assert "(me@example.org; " in sent["user-agent"]
    assert "Referer" not in repr(GatherOptions(headers=headers))
    for options in ({"headers": ["no colon"]}, {"headers": ["A: b\r\nC: d"]}, {"contact": "a\nb"}, {"contact": "(x)"}):
        with pytest.raises(InputError):
            GatherOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("headers", [{"Referer": "http://x.org"}, {"Referer": "http://x.org/a:b", "X-Key": "1"}])
def test_header_fields_of_the_command_line_are_sent(site: Site, tmp_path: Path, headers: dict[str, str]) -> None:
    site.routes["/1.jpg"] = answer(photo(1))
    (tmp_path / "links.txt").write_text(site.url("/1.jpg"))
    words = [word for name, value in headers.items() for word in ("--header", f"{name}: {value}")]
    command = ["gather", "urls", str(tmp_path / "links.txt"), "-o", str(tmp_path / "out"), "--allow-private", *words]
    assert CliRunner().invoke(app, command).exit_code == 0
    sent = next(request.headers for request in site.requests if request.path == "/1.jpg")
    assert {name: sent.get(name.lower()) for name in headers} == headers


def pexels(site: Site, *queries: str, **options: object) -> Pexels:
    return Pexels(queries, endpoint=site.url("/v1"), i_have_permission=True, **options)  # type: ignore[arg-type]


def test_pexels_fills_each_class_names_the_photographers_and_asks_no_page_twice(site: Site, tmp_path: Path) -> None:
    served, out = PexelsSite(site, total=200), tmp_path / "out"
    summary = run(pexels(site, "cat", "lizard=lizard reptile"), out, limit=90, keep_duplicates=True)
    assert summary.classes == {"cat": 90, "lizard": 90}
    assert [(r.query["query"], r.query["page"]) for r in served.searches] == [
        ("cat", "1"), ("cat", "2"), ("lizard reptile", "1"), ("lizard reptile", "2"),
    ]  # fmt: skip
    attribution = (out / "ATTRIBUTION.md").read_text()
    assert "cat/pexels-0.jpg: Photo by [Ann B](https://www.pexels.com/@ann) on [Pexels]" in attribution
    assert attribution.count("Photo by") == 180
    asked = len(site.requests)
    run(pexels(site, "cat", "lizard=lizard reptile"), out, limit=95, keep_duplicates=True)
    assert len(site.requests) == asked + 10, "ten images more, from the pages that are known"
    everything = "".join(p.read_text() for p in (*out.glob("manifest*"), *out.glob("*.md")))
    assert "secret-key" not in everything + repr(pexels(site, "cat"))


def test_pexels_waits_the_hour_out_or_says_when_to_come_back(site: Site) -> None:
    served = PexelsSite(site, total=100, allowed=1)
    with pytest.raises(GatherError, match="run the same command again in 60 minutes to resume"):
        refs(pexels(site, "cat", wait=None))
    assert served.searches[0].query["per_page"] == "80"
    waits: list[float] = []

    async def wait(seconds: float, why: str) -> None:
        waits.append(seconds)
        served.allowed = 5

    assert len(refs(pexels(site, "cat", wait=wait))) == 100
    assert waits == [pytest.approx(3600, abs=30)]


def test_pexels_is_asked_200_times_an_hour_and_no_more_whatever_it_would_allow(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, served, asked = Clock(monkeypatch), PexelsSite(site, total=250 * 80), list[float]()
    search = site.routes["/v1/search"]

    def note(connection: Connection, request: Request) -> None:
        clock.now += 1
        asked.append(clock.now)
        search(connection, request)

    site.routes["/v1/search"] = note
    assert len(refs(pexels(site, "cat", wait=clock.wait))) == served.total
    assert len(asked) == 250
    assert max(sum(start <= moment < start + 3600 for moment in asked) for start in asked) <= 200
    assert clock.waits == [(pytest.approx(3400, abs=2), "Pexels: 200 requests an hour are allowed; waiting 57 minutes")]


def test_pexels_pace_outlives_the_run_and_stops_where_waiting_is_not_wanted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, served = Clock(monkeypatch), PexelsSite(site, total=250 * 80)
    for _ in range(2):
        with pytest.raises(GatherError, match="run the same command again in 60 minutes to resume"):
            refs(pexels(site, "cat", wait=None))
        assert len(site.requests) == 200, "what was answered is kept, and no more is asked for"
    clock.now += 3600
    assert len(refs(pexels(site, "cat", wait=None))) == served.total
    assert len(site.requests) == 250


def test_a_wait_is_told_and_counted_down_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    clock = iter([0.0, 3399.99, 3400.0])
    monkeypatch.setattr(gather_search, "time", SimpleNamespace(monotonic=clock.__next__))
    asyncio.run(show_countdown(3400.0, "Pexels: 200 requests an hour are allowed; waiting 57 minutes"))
    told, *counted = sys.stderr.getvalue().splitlines()  # type: ignore[attr-defined]
    assert told == (
        "mlimages: Pexels: 200 requests an hour are allowed; waiting 57 minutes "
        "(Ctrl-C stops; run the same command again to resume)"
    )
    assert "0:00 left" in "".join(counted)


def test_pexels_quota_of_the_month_is_known_from_its_headers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, served = Clock(monkeypatch), PexelsSite(site, total=100)
    served.remaining, served.reset = 0, int(clock.now) + 86_400
    message = "the monthly quota of Pexels is used up: run the same command again on 2027-01-16 or later"
    with pytest.raises(GatherError, match=message):
        refs(pexels(site, "cat", wait=clock.wait))
    assert (len(site.requests), clock.waits) == (1, []), "nobody waits for a month"
    clock.now = served.reset
    assert len(refs(pexels(site, "cat"))) == 100


@pytest.mark.parametrize(
    ("key", "permission", "message"),
    [("", True, "set PEXELS_API_KEY"), ("wrong", True, "key in PEXELS_API_KEY is wrong"), ("x", False, "permission")],
)
def test_pexels_needs_a_key_and_permission(
    site: Site, monkeypatch: pytest.MonkeyPatch, key: str, permission: bool, message: str
) -> None:
    PexelsSite(site, total=9)
    monkeypatch.setenv("PEXELS_API_KEY", key)
    with pytest.raises(GatherError, match=message):
        refs(Pexels(["cat"], endpoint=site.url("/v1"), i_have_permission=permission))


def test_a_plan_has_the_number_of_results_that_a_provider_reports(site: Site) -> None:
    for kind in (PexelsSite, OpenverseSite, INaturalistSite, CommonsSite):
        kind(site, total=123)
    plans = [pexels(site, "cat"), Openverse(["cat"], endpoint=site.base), bees(site, "1"), pages(site, "Category:cat")]
    assert [asyncio.run(source.count_links_by_class()) for source in plans] == [
        {"cat": 123},
        {"cat": 123},
        {"1": 123},
        {"cat": None},
    ]


def test_openverse_pages_are_read_throttling_is_honoured_and_creators_are_named(site: Site, tmp_path: Path) -> None:
    served, waits = OpenverseSite(site, total=22), Waits()
    search = site.routes["/v1/images/"]
    site.routes["/v1/images/"] = in_turn(answer(b"", 429, Retry_After=7), search)
    summary = run(Openverse(["cat"], licences="by,cc0", endpoint=site.base, wait=waits), tmp_path / "out")
    assert (summary.classes, [seconds for seconds, _ in waits]) == ({"cat": 22}, [7.0])
    assert {request.query["license"] for request in served.searches} == {"by,cc0"}
    assert "[A cat](https://page) by Bo, [BY 4.0](https://cc/by)" in (tmp_path / "out/ATTRIBUTION.md").read_text()
    assert {row.source["license"] for row in read_manifest(tmp_path / "out")} == {"by"}


@pytest.mark.parametrize(
    "page",
    ["{}", '{"photos": 7, "results": {}}', '{"photos": [1, {"src": [2]}, {}], "results": [1, {}], "page_count": "x"}'],
)
def test_a_provider_that_answers_otherwise_than_it_says_costs_no_more_than_its_images(
    site: Site, tmp_path: Path, page: str
) -> None:
    site.fallback = answer(page.encode(), X_Ratelimit_Remaining="many", X_Ratelimit_Reset="soon")
    for source in (pexels(site, "cat"), Openverse(["cat"], endpoint=site.base)):
        summary = run(source, tmp_path / "out")
        assert (summary.ok, summary.reasons.get("bad-url", 0)) == (0, summary.failed)
