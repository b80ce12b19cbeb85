"""Where links come from: lists, ImageNet, Openverse and Pexels, against servers that speak as these do."""

import asyncio
import gzip
import io
import itertools
import tarfile
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlimages import ImageRef, UrlList
from mlimages.core import GatherError, GatherSummary, InputError
from mlimages.gathering import ImageNet, read_list
from mlimages.gathering.download.fetch import parse_url
from mlimages.gathering.sources import archives
from mlimages.gathering.sources.archives import RemoteTar, iter_entries
from mlimages.gathering.sources.wordnet import assign_folders, find_synset, load_synsets
from mlimages.gathering.store.file_names import MAX_NAME_BYTES, file_stem_from_url, label_to_folder, sanitize_name
from tests.gathering.conftest import contents, links, run, stored
from tests.servers import Connection, Request, Site, answer, cut, photo


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@given(st.text(max_size=400))
@settings(deadline=None, max_examples=400)
def test_any_text_becomes_a_name_that_every_file_system_takes(text: str) -> None:
    for name in (
        sanitize_name(text, default_name="image"),
        file_stem_from_url(f"http://x/{text}"),
        *label_to_folder(text).split("/"),
    ):
        assert name
        assert not name.startswith(".")
        assert not name.endswith((" ", "."))
        assert len(name.encode()) <= MAX_NAME_BYTES + 1
        assert not set(name) & set('<>:"/\\|?*\0\n\r\t\x7f')
        assert name.partition(".")[0].lower() not in {"con", "prn", "aux", "nul", "com1", "lpt9"}
        assert sanitize_name(name, default_name="image") == name


def test_wordnet_knows_domestic_cats_and_their_subtree() -> None:
    cat = find_synset("Domestic  cat")
    folders = assign_folders([cat], with_subtree=True)
    assert (cat.wnid, len(folders)) == ("n02121808", 19)
    assert folders["n02123394"] == "domestic_cat/persian_cat"
    assert len(set(folders.values())) == len(folders)
    assert sum("n02121808" in synset.parent_wnids for synset in load_synsets().values()) == 16
    ambiguous = r"is ambiguous.* n02121620 \(cat, true cat: feline mammal"
    for name, message in (("cat", ambiguous), ("N99999999", "not an ImageNet synset")):
        with pytest.raises(InputError, match=message) as error:
            find_synset(name)
        assert "\n" not in str(error.value), "the command line prints a message in one line"
    assert find_synset("N02121808") == cat


@pytest.mark.parametrize("read", [iter_entries, read_list])
@pytest.mark.parametrize("name", ["x.tar", "x.tgz", "x.zip"])
def test_a_text_file_in_place_of_an_archive_is_said_to_be_none(
    tmp_path: Path, name: str, read: Callable[[Path], Iterator[object]]
) -> None:
    (tmp_path / name).write_text("no archive")
    with pytest.raises(InputError, match=r"x\.\w+ cannot be read completely: .*not a (tar archive|zip file)"):
        list(read(tmp_path / name))


def test_an_output_folder_that_is_a_link_to_nothing_is_refused_with_its_target(site: Site, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(GatherError, match=r"out is a link to .*nowhere, which does not exist"):
        run(links(tmp_path, site.url("/1.jpg")), tmp_path / "out")


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

    def gather_again(**options: object) -> GatherSummary:
        return run(ImageNet(["n02121808"], endpoint=site.base, tell=told.append), out, **options)

    summary = gather_again()
    assert (summary.ok, summary.reasons) == (6, {"text": 1})
    assert sorted(p.name for p in (out / "domestic_cat").iterdir()) == [f"n02121808_{n}.jpg" for n in range(6)]
    assert [request.headers.get("range") for request in site.requests] == [None, "bytes=9000-"]
    gather_again()
    assert len(site.requests) == 2
    (out / "domestic_cat/n02121808_3.jpg").unlink()
    assert gather_again(restore_deleted=True).ok == 6
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
    assert run(source, tmp_path / "out").classes == {"domestic_cat": 1, "persian_cat": 1}
    assert told[1:] == [
        "n02123394, n02121808: cannot read the website's archive: HTTP 404 (the website does not offer every synset)",
        "n02121808: the website's list has no images",
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


IMAGES = {f"n02123394_{n}.JPEG": photo(n) for n in range(3)}
ARCHIVES = {
    "n02123394.tar": lambda: tar(IMAGES),
    "tar_of_tars.tar": lambda: tar({"n01440764.tar": tar({}), "n02123394.tar": tar(IMAGES)}),
    "whole.tar": lambda: tar({"all.tar": tar({"n01440764.tar": tar({}), "n02123394.tar": tar(IMAGES)})}),
    "folder_of_tars/n02123394.tar": lambda: tar(IMAGES),
    "imagenette2.tgz": lambda: gzip.compress(tar(CLASS_FOLDERS), 1),
    "imagenette2.tar.gz": lambda: gzip.compress(tar(CLASS_FOLDERS), 1),
    "whole.tar.gz": lambda: gzip.compress(tar({"n02123394.tar": tar(IMAGES)}), 1),
    "imagenette2.zip": lambda: zipped(CLASS_FOLDERS),
    "imagenette2.tar": lambda: tar(CLASS_FOLDERS),
}


async def load_first_two(source: ImageNet) -> list[tuple[str, bytes]]:
    found = []
    async for ref in source:
        assert ref.load
        found.append((ref.label, await ref.load()))
        if len(found) == 2:
            source.skip_class(ref.label)
    return found


@pytest.mark.parametrize("folder", ["n02123394", "n02123394/more", "all/n02123394/1.tar"])
@pytest.mark.parametrize("names", [["1.jpg", "2.jpg"], ["images.tar"], ["images.tgz"], ["images.zip"]])
def test_a_folder_may_say_which_synset_its_images_or_archives_have(
    tmp_path: Path, folder: str, names: list[str]
) -> None:
    members = {"1.jpg": photo(0), "2.jpg": photo(1)}
    data = {
        **members,
        "images.tar": tar(members),
        "images.tgz": gzip.compress(tar(members)),
        "images.zip": zipped(members),
    }
    for name in names:
        write(tmp_path / folder / name, data[name])
    source = ImageNet(["persian cat"], archive=tmp_path / folder.split("/")[0], endpoint="http://127.0.0.1:1")
    assert sorted(run(source, tmp_path / "out").classes.items()) == [("persian_cat", 2)]


def test_a_large_file_of_a_remote_tar_is_skipped(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 1000)
    files = {"a.jpg": b"1", "large.jpg": bytes(5 * 2**19 + 1), "b.jpg": bytes(1000), "too_large.jpg": bytes(1001)}
    site.routes["/x.tar"] = answer(tar(files))

    async def read() -> list[tuple[str, bytes]]:
        async with aiohttp.ClientSession() as session:
            return [(member.name, data) async for member, data in RemoteTar(session, site.url("/x.tar")).members()]

    assert asyncio.run(read()) == [("a.jpg", b"1"), ("b.jpg", bytes(1000))]


@pytest.mark.parametrize("name", [*ARCHIVES, "folder_by_id"])
def test_images_come_from_a_local_archive_until_there_are_enough(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for image, data in ({} if name in ARCHIVES else IMAGES).items():
        write(path / "n02123394" / image, data)
    if name in ARCHIVES:
        write(path, ARCHIVES[name]())
    source = ImageNet(["persian cat"], archive=tmp_path if "/" in name else path, endpoint="http://127.0.0.1:1")
    found = asyncio.run(load_first_two(source))
    assert found == [("persian_cat", photo(0)), ("persian_cat", photo(1))]


def test_an_archive_is_walked_once_for_all_synsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write(tmp_path / "imagenette2.tgz", gzip.compress(tar(CLASS_FOLDERS), 1))
    opened, open_tar = [], tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *args, **more: (opened.append(args), open_tar(*args, **more))[1])
    source = ImageNet(["n02123394", "n01440764"], archive=archive, endpoint="http://127.0.0.1:1")
    assert run(source, tmp_path / "out").classes == {"persian_cat": 3, "tench": 1}
    assert len(opened) == 1


CRANES = {"n02012849": "crane", "n03126707": "crane_n03126707"}
"""The bird and the machine, both in ImageNet-1k."""
CAPS = {"n02954340": "cap", "n02954938": "cap_n02954938", "n02955065": "cap_n02955065"}


def write_synsets(folder: Path, *wnids: str) -> Path:
    for number, wnid in enumerate(wnids):
        for n in range(3):
            write(folder / wnid / f"{n}.jpg", photo(10 * number + n))
    return folder


def imagenet(archive: Path, *wnids: str, **options: Any) -> ImageNet:
    return ImageNet(wnids, archive=archive, endpoint="http://127.0.0.1:1", **options)


@pytest.mark.parametrize("subtree", [False, True])
@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("folders", [CRANES, CAPS], ids=["cranes", "caps"])
def test_synsets_of_the_same_name_are_a_class_each_and_that_is_said(
    tmp_path: Path, folders: dict[str, str], limit: int | None, *, subtree: bool
) -> None:
    told: list[str] = []
    archive = write_synsets(tmp_path / "in", *folders)
    source = imagenet(archive, *folders, with_subtree=subtree, tell=told.append)
    assert told[0].startswith("synsets that have the same name as another one get their id appended to it: ")
    assert all(folder in told[0] for folder in list(folders.values())[1:])
    assert asyncio.run(source.count_links_by_class()).items() >= dict.fromkeys(folders.values()).items()
    assert run(source, tmp_path / "out", limit=limit).classes == dict.fromkeys(sorted(folders.values()), limit or 3)


@pytest.mark.parametrize("subtree", [False, True])
def test_a_synset_is_not_added_to_the_class_of_another_one(tmp_path: Path, *, subtree: bool) -> None:
    archive, out = write_synsets(tmp_path / "in", *CRANES), tmp_path / "out"
    bird, machine = CRANES
    run(imagenet(archive, bird), out)
    for wnids in ((machine,), (machine, bird)):
        before = contents(out)
        with pytest.raises(InputError, match=f"the class crane already has images of {bird}, another .* {machine}:"):
            run(imagenet(archive, *wnids, with_subtree=subtree), out)
        assert contents(out) == before
    advised = imagenet(archive, bird, machine, with_subtree=subtree)
    assert run(advised, out).classes == {"crane": 3, "crane_n03126707": 3}


def test_a_source_of_ones_own_takes_a_few_lines(site: Site, tmp_path: Path) -> None:
    site.fallback = lambda connection, request: answer(photo(len(request.path)))(connection, request)

    class Numbers:
        async def __aiter__(self):  # type: ignore[no-untyped-def]
            for n in itertools.count(1):
                yield ImageRef(site.url("/" + "x" * n), "many" if n % 2 else "few")
                if n == 9:
                    return

    assert run(Numbers(), tmp_path / "out").classes == {"few": 4, "many": 5}


def test_the_plan_says_classes_and_counts(tmp_path: Path) -> None:
    lists = UrlList(write(tmp_path / "a.txt", "http://x/1\nhttp://x/2\n"), write(tmp_path / "b.txt", "http://x/1\n"))
    assert asyncio.run(lists.count_links_by_class()) == {"a": 2, "b": 1}
    assert asyncio.run(ImageNet(["n02123394"]).count_links_by_class()) == {"persian_cat": None}


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
    assert run(links(tmp_path, site.url("/first.jpg")), tmp_path / "out").ok == 1
    assert SIGNED in asked


@pytest.mark.usefixtures("layout")
def test_no_label_ends_a_run(site: Site, tmp_path: Path) -> None:
    labels = ["/".join("abcdefghi" * 5), "/".join(["x" * 200] * 45), "manifest.jsonl", "é/" * 600]
    site.routes = {f"/{n}.jpg": answer(photo(n)) for n in range(4)}
    source = [f"{label}\t{site.url(f'/{n}.jpg')}" for n, label in enumerate(labels)]
    assert run(links(tmp_path, *source), tmp_path / "out").ok == 4
    assert run(links(tmp_path, *source), tmp_path / "out").fetched == 0


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
        run(Failing(*urls), tmp_path / "out")
    assert len(stored(tmp_path / "out")) == 20


def test_links_before_the_cut_of_a_compressed_list_are_gathered(site: Site, tmp_path: Path) -> None:
    site.routes = {f"/{n}.jpg": answer(photo(n)) for n in range(5)}
    lines = "".join(f"{site.url(f'/{n}.jpg')}\n" for n in range(5)).encode()
    (tmp_path / "cats.txt.gz").write_bytes(gzip.compress(lines)[:-8])
    with pytest.raises(InputError, match="cannot be read completely"):
        run(tmp_path / "cats.txt.gz", tmp_path / "out")
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
        assert run(source, tmp_path / folder).ok == 2
