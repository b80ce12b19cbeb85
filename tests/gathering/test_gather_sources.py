"""Where links come from: lists, ImageNet, Openverse and Pexels, against servers that speak as these do."""

import asyncio
import contextlib
import gzip
import io
import itertools
import json
import sys
import tarfile
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from time import gmtime, strftime
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlimages import ImageRef, UrlList, gather
from mlimages.cli import gather_search
from mlimages.cli.gather_search import count_down
from mlimages.core import GatherError, GatherSummary, InputError
from mlimages.gathering import ImageNet, Openverse, Pexels, read_list, read_manifest
from mlimages.gathering.download.fetch import parse_url
from mlimages.gathering.sources import search_api
from mlimages.gathering.sources.wordnet import find_subtree, find_synset, load_synsets
from mlimages.gathering.store.file_names import MAX_BYTES, name_from_url, safe_folder, safe_name
from tests.gathering.conftest import stored
from tests.servers import Connection, Request, Site, answer, cut, photo, serve

FAST = {"allow_private": True, "timeout_s": 60.0, "retries": 0, "decoders": 1}


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        yield running


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def seen(refs: Iterator[ImageRef]) -> list[tuple[str, str]]:
    return [(ref.label, ref.url) for ref in refs]


A, B = "http://x/a.jpg", 'http://x/b,"c".jpg?d=e f'


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("cats.txt", f"\ufeff{A}\r\n\n# no\n{B}\n", [("cats", A), ("cats", B)]),
        ("x.txt", f"big cat\t{A}\n\t{B}", [("big cat", A), ("x", B)]),
        ("x.txt", f"n00004475_6590\t{A}\n", [("n00004475", A)]),
        ("x.csv", f'id,URL,Label\n1,{A},cat\n2,"{B.replace(chr(34), chr(34) * 2)}",\n', [("cat", A), ("x", B)]),
        ("x.csv", f"{A},cat\nhttp://x/2,dog\n", [("cat", A), ("dog", "http://x/2")]),
        ("x.tsv", f"image_url\tcategory\n{A}\tcat\n{B}\tdog\n", [("cat", A), ("dog", B)]),
        ("x.jsonl", json.dumps({"url": A, "label": 3}) + "\n[1]\n{", [("3", A), ("x", "[1]"), ("x", "{")]),
        ("x.csv", f'url,label\n{A},cat\n"', [("cat", A), ("x", "\n")]),
    ],
)  # fmt: skip
def test_lists_of_every_form_are_read(tmp_path: Path, name: str, text: str, expected: list[tuple[str, str]]) -> None:
    expected = [(label, url.strip()) for label, url in expected]
    assert seen(read_list(write(tmp_path / name, text))) == expected
    assert seen(read_list(write(tmp_path / f"{name}.gz", gzip.compress(text.encode())))) == expected


def test_columns_with_unusual_names_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", f"where,what\n{A},cat\n")
    assert seen(read_list(path, "where", "what")) == [("cat", A)]
    with pytest.raises(InputError, match=r"columns: where, what; first row: .* --url-column"):
        list(read_list(write(tmp_path / "y.csv", "where,what\nx,y\n")))


def test_parquet_is_read_in_batches(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table(
        {"label": ["cat"] * 2500, "extra": [None] * 2500, "url": [f"http://x/{n}" for n in range(2500)]}
    )
    parquet.write_table(table, tmp_path / "x.parquet")
    assert seen(read_list(tmp_path / "x.parquet"))[2499] == ("cat", "http://x/2499")
    with pytest.raises(InputError, match="cannot be read"):
        list(read_list(write(tmp_path / "y.parquet", b"PAR1 no")))


@given(st.binary(max_size=300), st.sampled_from(["txt", "csv", "tsv", "jsonl", "txt.gz", "tgz"]))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lists_of_noise_end_as_links_or_one_clear_error(tmp_path: Path, noise: bytes, suffix: str) -> None:
    path = write(tmp_path / f"noise.{suffix}", b"url,label\nhttp://x/1,a\n" + noise if "csv" in suffix else noise)
    with contextlib.suppress(InputError):
        assert all(isinstance(ref.url, str) and ref.label for ref in read_list(path))


def test_a_line_without_end_is_cut_and_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", b"http://x/" + b"y" * 5_000_000 + f"\n{A}\n".encode())
    first, second = read_list(path)
    assert (len(first.url), second.url) == (2**20, A)


@given(st.text(max_size=400))
@settings(deadline=None, max_examples=400)
def test_any_text_becomes_a_name_that_every_file_system_takes(text: str) -> None:
    for name in (
        safe_name(text, default_name="image"),
        name_from_url(f"http://x/{text}"),
        *safe_folder(text).split("/"),
    ):
        assert name
        assert not name.startswith(".")
        assert not name.endswith((" ", "."))
        assert len(name.encode()) <= MAX_BYTES + 1
        assert not set(name) & set('<>:"/\\|?*\0\n\r\t\x7f')
        assert name.partition(".")[0].lower() not in {"con", "prn", "aux", "nul", "com1", "lpt9"}
        assert safe_name(name, default_name="image") == name


def test_wordnet_knows_domestic_cats_and_their_subtree() -> None:
    cat = find_synset("Domestic  cat")
    folders = find_subtree(cat)
    assert (cat.wnid, len(folders)) == ("n02121808", 19)
    assert folders["n02123394"] == "domestic_cat/persian_cat"
    assert len(set(folders.values())) == len(folders)
    assert sum("n02121808" in synset.parents for synset in load_synsets().values()) == 16
    with pytest.raises(InputError, match=r"is ambiguous(.|\n)*n02121620  cat, true cat: feline mammal"):
        find_synset("cat")
    with pytest.raises(InputError, match="not an ImageNet synset"):
        find_synset("n99999999")


def tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("../../link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return out.getvalue()


def ranged(data: bytes, breaks_at: int | None = None) -> Callable[[Connection, Request], None]:
    """Serves parts of a file; the first whole request breaks off at `breaks_at`."""
    broken = [breaks_at]

    def reply(connection: Connection, request: Request) -> None:
        if "range" not in request.headers:
            at = broken.pop() if broken else None
            if at is None:
                return answer(data)(connection, request)
            return cut(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data[:at])(connection, request)
        first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        return answer(part, 206, Content_Range=f"bytes {first}-/{len(data)}")(connection, request)

    return reply


def test_a_synsets_archive_is_streamed_resumed_and_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    images = {f"n02121808_{n}.JPEG": photo(n) for n in range(6)} | {"n02121808_9.JPEG": b"broken"}
    path = "/data/winter21_whole/n02121808.tar"
    site.routes = {path: ranged(tar(images), breaks_at=9000)}
    told: list[str] = []
    out = tmp_path / "out"

    def run(**options: object) -> GatherSummary:
        source = ImageNet(["n02121808"], endpoint=site.base, tell=told.append)
        return gather(source, out, **FAST, **options)  # type: ignore[arg-type]

    summary = run()
    assert (summary.ok, summary.reasons) == (6, {"text": 1})
    assert sorted(p.name for p in (out / "domestic_cat").iterdir()) == [f"n02121808_{n}.jpg" for n in range(6)]
    assert [request.headers.get("range") for request in site.requests] == [None, "bytes=9000-"]
    run()
    assert len(site.requests) == 2
    (out / "domestic_cat/n02121808_3.jpg").unlink()
    assert run(restore_deleted=True).ok == 6
    assert len(site.requests) == 3, "only the missing member is asked for"
    assert told[0].startswith("ImageNet's images are for non-commercial research")


def test_imagenet_goes_from_one_way_to_the_next_and_says_why(site: Site, tmp_path: Path) -> None:

    def list_links(connection: Connection, request: Request) -> None:
        known = request.query["wnid"] == "n02123394"
        answer(f"{site.url('/a.jpg')}\r\n\r\n".encode() if known else b"Invalid url!")(connection, request)

    site.routes = {"/a.jpg": answer(photo(1)), "/b.jpg": answer(photo(2)), "/api/imagenet.synset.geturls": list_links}
    urls = write(tmp_path / "urls.txt", f"n02121808_1\t{site.url('/b.jpg')}\nn09999999_1\t{site.url('/c.jpg')}\n")
    told: list[str] = []
    source = ImageNet(["n02123394", "n02121808"], url_list=urls, endpoint=site.base, tell=told.append)
    summary = gather(source, tmp_path / "out", **FAST)
    assert summary.classes == {"domestic_cat": 1, "persian_cat": 1}
    assert told[1:] == [
        "cannot read the website's archive: HTTP 404 (not offered for this synset): n02123394, n02121808",
        "the website's list has no images: n02121808",
    ]
    assert (tmp_path / "out/domestic_cat/n02121808_1.jpg").exists()


CLASS_FOLDERS = {
    "imagenette2/noisy_imagenette.csv": b"path,label",
    **{f"imagenette2/train/n02123394/ILSVRC2012_val_{n}.JPEG": photo(n) for n in range(3)},
    "imagenette2/train/n01440764/n01440764_1.JPEG": photo(9),
    "imagenette2/train/n02123394/._n02123394_1.JPEG": b"macOS",
}


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize(
    "form",
    ["tar", "tar of tars", "folder of tars", "folder by id", "imagenette2.tgz", "imagenette2.tar.gz", "whole.tar.gz",
     "imagenette2.zip", "imagenette2.tar"],
)  # fmt: skip
def test_images_come_from_a_local_archive(tmp_path: Path, form: str) -> None:
    inner = tar({f"n02123394_{n}.JPEG": photo(n) for n in range(3)})
    archive = tmp_path / "n02123394.tar"
    match form:
        case "imagenette2.tgz" | "imagenette2.tar.gz":
            write(archive := tmp_path / form, gzip.compress(tar(CLASS_FOLDERS), 1))
        case "whole.tar.gz":
            write(archive := tmp_path / form, gzip.compress(tar({"n02123394.tar": inner}), 1))
        case "imagenette2.zip":
            write(archive := tmp_path / form, zipped(CLASS_FOLDERS))
        case "imagenette2.tar":
            write(archive := tmp_path / form, tar(CLASS_FOLDERS))
        case "tar":
            write(archive, inner)
        case "tar of tars":
            write(archive := tmp_path / "whole.tar", tar({"n01440764.tar": tar({}), "n02123394.tar": inner}))
        case "folder of tars":
            write(archive, inner)
            archive = tmp_path
        case "folder by id":
            (archive := tmp_path / "n02123394").mkdir()
            for n in range(3):
                write(archive / f"n02123394_{n}.JPEG", photo(n))
            archive = tmp_path
    source = ImageNet(["persian cat"], archive=archive, endpoint="http://127.0.0.1:1")
    summary = gather(source, tmp_path / "out", limit=2, **FAST)
    assert (summary.classes, summary.failed) == ({"persian_cat": 2}, 0)


def test_an_archive_is_walked_once_for_all_synsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write(tmp_path / "imagenette2.tgz", gzip.compress(tar(CLASS_FOLDERS), 1))
    opened, open_tar = [], tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *args, **more: (opened.append(args), open_tar(*args, **more))[1])
    source = ImageNet(["n02123394", "n01440764"], archive=archive, endpoint="http://127.0.0.1:1")
    assert gather(source, tmp_path / "out", **FAST).classes == {"persian_cat": 3, "tench": 1}
    assert len(opened) == 1


class PexelsSite:
    """Pexels' search as its documentation describes it, with `total` photographs and a limit of requests."""

    remaining, reset = 15_000, 1_900_000_000

    def __init__(self, site: Site, total: int, allowed: int = 1000) -> None:
        self.site, self.total, self.allowed = site, total, allowed
        site.routes["/v1/search"] = self.search
        site.fallback = lambda connection, request: answer(photo(int(request.path.strip("/").split(".")[0])))(
            connection, request
        )

    def search(self, connection: Connection, request: Request) -> None:
        if request.headers.get("authorization") != "secret-key":
            return answer(b'{"error": "unauthorized"}', 401)(connection, request)
        if self.allowed == 0:
            return answer(b"", 429)(connection, request)
        self.allowed -= 1
        page, size = int(request.query["page"]), int(request.query["per_page"])
        assert size <= 80
        numbers = range((page - 1) * size, min(page * size, self.total))
        body = {
            "total_results": self.total,
            "photos": [
                {"id": n, "url": f"https://www.pexels.com/photo/{n}/", "photographer": "Ann B", "alt": "",
                 "photographer_url": "https://www.pexels.com/@ann",
                 "src": {"medium": self.site.url(f"/{n}.jpg"), "original": self.site.url(f"/{n}.png")}}
                for n in numbers
            ],
        }  # fmt: skip
        if page * size < self.total:
            body["next_page"] = "another"
        headers = {"X_Ratelimit_Remaining": self.remaining, "X_Ratelimit_Reset": self.reset}
        return answer(json.dumps(body).encode(), **headers)(connection, request)


@pytest.fixture
def pexels_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEXELS_API_KEY", "secret-key")


def pexels(site: Site, *queries: str, **options: object) -> Pexels:
    return Pexels(queries, endpoint=site.url("/v1"), i_have_permission=True, **options)  # type: ignore[arg-type]


def test_pexels_fills_each_class_names_the_photographers_and_asks_no_page_twice(
    site: Site, tmp_path: Path, pexels_key: None
) -> None:
    PexelsSite(site, total=200)
    out = tmp_path / "out"
    summary = gather(pexels(site, "cat", "lizard=lizard reptile"), out, limit=90, keep_duplicates=True, **FAST)
    assert summary.classes == {"cat": 90, "lizard": 90}
    searches = [request for request in site.requests if request.path == "/v1/search"]
    assert [(r.query["query"], r.query["page"]) for r in searches] == [
        ("cat", "1"), ("cat", "2"), ("lizard reptile", "1"), ("lizard reptile", "2"),
    ]  # fmt: skip
    attribution = (out / "ATTRIBUTION.md").read_text()
    assert "cat/pexels-0.jpg: Photo by [Ann B](https://www.pexels.com/@ann) on [Pexels]" in attribution
    assert attribution.count("Photo by") == 180
    asked = len(site.requests)
    gather(pexels(site, "cat", "lizard=lizard reptile"), out, limit=95, keep_duplicates=True, **FAST)
    assert len(site.requests) == asked + 10, "ten images more, from the pages that are known"
    everything = "".join(p.read_text() for p in (*out.glob("manifest*"), *out.glob("*.md")))
    assert "secret-key" not in everything + repr(pexels(site, "cat"))


def test_pexels_waits_the_hour_out_or_says_when_to_come_back(site: Site, tmp_path: Path, pexels_key: None) -> None:
    served = PexelsSite(site, total=100, allowed=1)
    with pytest.raises(GatherError, match="run the same command again in 60 minutes to resume"):
        gather(pexels(site, "cat", wait=None), tmp_path / "out", **FAST)
    waits: list[float] = []

    async def wait(seconds: float, why: str) -> None:
        waits.append(seconds)
        served.allowed = 5

    assert gather(pexels(site, "cat", wait=wait), tmp_path / "out", **FAST).ok == 100
    assert waits == [pytest.approx(3600, abs=30)]


class Clock:
    """A clock that stands still but for what is asked of it, in place of the module `time`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_800_000_000.0
        self.waits: list[tuple[float, str]] = []
        monkeypatch.setattr(
            search_api, "time", SimpleNamespace(time=lambda: self.now, strftime=strftime, gmtime=gmtime)
        )

    async def wait(self, seconds: float, why: str) -> None:
        self.waits.append((seconds, why))
        self.now += seconds


async def photographs(source: Pexels) -> int:
    return sum([1 async for _ in source])


def test_pexels_is_asked_200_times_an_hour_and_no_more_whatever_it_would_allow(
    site: Site, pexels_key: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, served = Clock(monkeypatch), PexelsSite(site, total=250 * 80, allowed=250)
    asked = []

    def note(connection: Connection, request: Request) -> None:
        clock.now += 1
        asked.append(clock.now)
        served.search(connection, request)

    site.routes["/v1/search"] = note
    assert asyncio.run(photographs(pexels(site, "cat", wait=clock.wait))) == served.total
    assert len(asked) == 250
    assert max(sum(start <= moment < start + 3600 for moment in asked) for start in asked) <= 200
    assert clock.waits == [(pytest.approx(3400, abs=2), "Pexels: 200 requests an hour are allowed; waiting 57 minutes")]


def test_pexels_pace_outlives_the_run_and_stops_where_waiting_is_not_wanted(
    site: Site, tmp_path: Path, pexels_key: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, served = Clock(monkeypatch), PexelsSite(site, total=250 * 80, allowed=250)
    for _ in range(2):
        with pytest.raises(GatherError, match="run the same command again in 60 minutes to resume"):
            asyncio.run(photographs(pexels(site, "cat", wait=None)))
        assert len(site.requests) == 200, "what was answered is kept, and no more is asked for"
    clock.now += 3600
    assert asyncio.run(photographs(pexels(site, "cat", wait=None))) == served.total
    assert len(site.requests) == 250


def test_a_wait_is_told_and_counted_down_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    clock = iter([0.0, 3399.99, 3400.0])
    monkeypatch.setattr(gather_search, "time", SimpleNamespace(monotonic=clock.__next__))
    asyncio.run(count_down(3400.0, "Pexels: 200 requests an hour are allowed; waiting 57 minutes"))
    told, *counted = sys.stderr.getvalue().splitlines()  # type: ignore[attr-defined]
    assert told == (
        "mlimages: Pexels: 200 requests an hour are allowed; waiting 57 minutes "
        "(Ctrl-C stops; run the same command again to resume)"
    )
    assert "0:00 left" in "".join(counted)


def test_pexels_quota_of_the_month_is_known_from_its_headers(
    site: Site, pexels_key: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, served = Clock(monkeypatch), PexelsSite(site, total=100)
    served.remaining, served.reset = 0, int(clock.now) + 86_400
    with pytest.raises(
        GatherError, match="the monthly quota of Pexels is used up: run the same command again on 2027-01-16 or later"
    ):
        asyncio.run(photographs(pexels(site, "cat", wait=clock.wait)))
    assert (len(site.requests), clock.waits) == (1, []), "nobody waits for a month"
    clock.now = served.reset
    assert asyncio.run(photographs(pexels(site, "cat"))) == 100


@pytest.mark.parametrize(
    ("key", "permission", "message"),
    [("", True, "set PEXELS_API_KEY"), ("wrong", True, "key in PEXELS_API_KEY is wrong"), ("x", False, "permission")],
)
def test_pexels_needs_a_key_and_permission(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, permission: bool, message: str
) -> None:
    PexelsSite(site, total=9)
    monkeypatch.setenv("PEXELS_API_KEY", key)
    with pytest.raises(GatherError, match=message):
        gather(Pexels(["cat"], endpoint=site.url("/v1"), i_have_permission=permission), tmp_path / "out", **FAST)


def test_openverse_pages_are_read_throttling_is_honoured_and_creators_are_named(site: Site, tmp_path: Path) -> None:
    busy = [True]

    def search(connection: Connection, request: Request) -> None:
        if busy and busy.pop():
            return answer(b"", 429, Retry_After=7)(connection, request)
        assert request.query["license"] == "by,cc0"
        page = int(request.query["page"])
        results = [
            {"id": f"{page}-{n}", "title": "A cat", "url": site.url(f"/{page}{n}.jpg"), "creator": "Bo",
             "license": "by", "license_version": "4.0", "license_url": "https://cc/by", "foreign_landing_url": "https://page"}
            for n in range(3)
        ]  # fmt: skip
        return answer(json.dumps({"result_count": 6, "page_count": 2, "results": results}).encode())(
            connection, request
        )

    site.routes["/v1/images/"] = search
    site.fallback = lambda connection, request: answer(photo(int(request.path[1:3])))(connection, request)
    waits: list[float] = []

    async def wait(seconds: float, why: str) -> None:
        waits.append(seconds)

    source = Openverse(["cat"], licences="by,cc0", endpoint=site.base, wait=wait)
    summary = gather(source, tmp_path / "out", **FAST)
    assert (summary.classes, waits) == ({"cat": 6}, [7.0])
    assert "[A cat](https://page) by Bo, [BY 4.0](https://cc/by)" in (tmp_path / "out/ATTRIBUTION.md").read_text()
    assert {row.source["license"] for row in read_manifest(tmp_path / "out")} == {"by"}


@pytest.mark.parametrize(
    "page",
    ["{}", '{"photos": 7, "results": {}}', '{"photos": [1, {"src": [2]}, {}], "results": [1, {}], "page_count": "x"}'],
)
def test_a_provider_that_answers_otherwise_than_it_says_costs_no_more_than_its_images(
    site: Site, tmp_path: Path, pexels_key: None, page: str
) -> None:
    site.fallback = answer(page.encode(), X_Ratelimit_Remaining="many", X_Ratelimit_Reset="soon")
    for source in (pexels(site, "cat"), Openverse(["cat"], endpoint=site.base)):
        summary = gather(source, tmp_path / "out", **FAST)
        assert (summary.ok, summary.reasons.get("bad-url", 0)) == (0, summary.failed)


def test_a_request_that_a_provider_does_not_understand_ends_with_its_words(site: Site, tmp_path: Path) -> None:
    site.routes["/v1/images/"] = answer(b'{"license": "no such licence"}', 400)
    with pytest.raises(GatherError, match=r'HTTP 400: \{"license": "no such licence"\}'):
        gather(Openverse(["cat"], licences="zero", endpoint=site.base), tmp_path / "out", **FAST)


def test_a_source_of_ones_own_takes_a_few_lines(site: Site, tmp_path: Path) -> None:
    site.fallback = lambda connection, request: answer(photo(len(request.path)))(connection, request)

    class Numbers:
        async def __aiter__(self):  # type: ignore[no-untyped-def]
            for n in itertools.count(1):
                yield ImageRef(site.url("/" + "x" * n), "many" if n % 2 else "few")
                if n == 9:
                    return

    assert gather(Numbers(), tmp_path / "out", **FAST).classes == {"few": 4, "many": 5}


def test_the_plan_says_classes_and_counts(site: Site, tmp_path: Path, pexels_key: None) -> None:
    PexelsSite(site, total=123)
    lists = UrlList(write(tmp_path / "a.txt", "http://x/1\nhttp://x/2\n"), write(tmp_path / "b.txt", "http://x/1\n"))
    assert asyncio.run(lists.plan()) == {"a": 2, "b": 1}
    assert asyncio.run(pexels(site, "cat").plan()) == {"cat": 123}
    assert asyncio.run(ImageNet(["n02123394"]).plan()) == {"persian_cat": None}


SIGNED = "/a%2Cb%3a/c.jpg?sig=a%2Fb%3D%3d&e=1+2&x=~*'(),;:@!$[1]"


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        (SIGNED, SIGNED),
        ("/a.jpg?b=c#part", "/a.jpg?b=c"),
        ("/a b.jpg", "/a%20b.jpg"),
        ("/é.jpg?q=é#part", "/%C3%A9.jpg?q=%C3%A9"),
        ("/100%.jpg", "/100%25.jpg"),
        ("?a=b", "/?a=b"),
        ("", "/"),
    ],
)
def test_links_are_sent_as_they_were_written(written: str, sent: str) -> None:
    assert parse_url(f"http://example.com{written}").raw_path_qs == sent


def test_a_signed_link_survives_a_redirect(site: Site, tmp_path: Path) -> None:
    asked: list[str] = []

    def note(connection: Connection, request: Request) -> None:
        asked.append(request.target)
        answer(photo(1), Content_Encoding="none", X_Long="x" * 20_000)(connection, request)

    site.routes["/first.jpg"] = answer(b"", 302, Location=SIGNED)
    site.fallback = note
    (tmp_path / "cats.txt").write_text(site.url("/first.jpg"))
    assert gather(tmp_path / "cats.txt", tmp_path / "out", **FAST).ok == 1
    assert SIGNED in asked


@pytest.mark.parametrize("label", ["/".join("abcdefghi" * 5), "/".join(["x" * 200] * 45), "manifest.jsonl", "é/" * 600])
@pytest.mark.usefixtures("layout")
def test_no_label_ends_a_run(site: Site, tmp_path: Path, label: str) -> None:
    site.fallback = answer(photo(1))
    (tmp_path / "list.txt").write_text(f"{label}\t{site.url('/1.jpg')}\n")
    assert gather(tmp_path / "list.txt", tmp_path / "out", **FAST).ok == 1
    assert gather(tmp_path / "list.txt", tmp_path / "out", **FAST).fetched == 0


class Failing:
    """A source that ends early."""

    def __init__(self, *urls: str) -> None:
        self.urls = urls

    async def __aiter__(self) -> AsyncIterator[ImageRef]:
        for url in self.urls:
            yield ImageRef(url, "cats")
        raise InputError("the rest cannot be read")


@pytest.mark.usefixtures("layout")
def test_what_a_source_named_before_its_error_is_finished(site: Site, tmp_path: Path) -> None:
    urls = [site.url(f"/{n}.jpg") for n in range(20)]
    site.routes = {f"/{n}.jpg": answer(photo(n)) for n in range(20)}
    with pytest.raises(InputError, match="the rest cannot be read"):
        gather(Failing(*urls), tmp_path / "out", **FAST)
    assert len(stored(tmp_path / "out")) == 20


def test_links_before_the_cut_of_a_compressed_list_are_gathered(site: Site, tmp_path: Path) -> None:
    site.routes = {f"/{n}.jpg": answer(photo(n)) for n in range(5)}
    lines = "".join(f"{site.url(f'/{n}.jpg')}\n" for n in range(5)).encode()
    (tmp_path / "cats.txt.gz").write_bytes(gzip.compress(lines)[:-8])
    with pytest.raises(InputError, match="cannot be read completely"):
        gather(tmp_path / "cats.txt.gz", tmp_path / "out", **FAST)
    assert len(list((tmp_path / "out/cats").iterdir())) == 5


@pytest.mark.parametrize("cut", [0.05, 0.5, 0.95])
def test_an_error_of_a_list_comes_after_all_links_before_it(tmp_path: Path, cut: float) -> None:
    lines = "".join(f"http://x/{n * 7919 % 99_991}\n" for n in range(2500)).encode()
    packed = gzip.compress(lines)[: int(len(lines) * cut / 5)]
    (tmp_path / "cats.txt.gz").write_bytes(packed)

    found = 0

    async def read() -> None:
        nonlocal found
        async for _ in UrlList(tmp_path / "cats.txt.gz"):
            found += 1

    with pytest.raises(InputError):
        asyncio.run(read())
    assert found == zlib.decompressobj(wbits=31).decompress(packed).count(b"\n")


def test_a_part_of_an_archive_that_comes_in_pieces_is_whole(site: Site, tmp_path: Path) -> None:
    images = {f"n02121808_{n}.JPEG": photo(n, (900, 900), quality=95) for n in range(2)}
    site.routes = {"/data/winter21_whole/n02121808.tar": ranged(tar(images))}
    for folder in ("one", "two"):
        source = ImageNet(["n02121808"], endpoint=site.base)
        assert gather(source, tmp_path / folder, **FAST).ok == 2
