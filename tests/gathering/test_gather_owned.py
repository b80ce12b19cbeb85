"""What a person has in a gathered folder stays: edited, deleted, moved and linked files, lists and manifests."""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from mlimages import UrlList
from mlimages.core import FetchResult, GatherError, Reason
from mlimages.gathering import read_manifest
from mlimages.gathering.store.attribution import write_attributions
from mlimages.gathering.store.file_storage import FileStorage
from mlimages.gathering.store.manifest import dump_row, find_manifests, is_manifest
from mlimages.gathering.store.missing import check_missing_count
from tests.conftest import RunCli
from tests.gathering import conftest
from tests.gathering.conftest import contents, run, stored
from tests.servers import Site, answer, photo, serve

DEAD = answer(b"no", 404)
MANY = 24


@pytest.fixture
def site(site: Site) -> Site:
    site.routes = {f"/{n}.jpg": answer(photo(n)) for n in range(MANY)}
    return site


@pytest.fixture
def links(site: Site, tmp_path: Path) -> UrlList:
    return conftest.links(tmp_path, *map(site.url, site.routes))


def edit(out: Path) -> None:
    (out / "cats/3.jpg").write_bytes(photo(3, (24, 16)))


def edit_to_the_same_size(out: Path) -> None:
    path = out / "cats/3.jpg"
    path.write_bytes(bytes(reversed(path.read_bytes())))
    os.utime(path, (time.time() + 60,) * 2)  # an edit in the second of the download is not told from it


def empty(out: Path) -> None:
    (out / "cats/3.jpg").write_bytes(b"")


def delete(out: Path) -> None:
    (out / "cats/3.jpg").unlink()
    (out / "cats/5.jpg").unlink()


def move(out: Path) -> None:
    (out / "dogs/more").mkdir(parents=True)
    for number in range(1, 10):
        (out / f"cats/{number}.jpg").rename(out / f"dogs/more/my-{number}.jpg")


def rename_the_class(out: Path) -> None:
    (out / "cats").rename(out / "lions")


def add_files(out: Path) -> None:
    (out / "cats/mine.jpg").write_bytes(photo(999))
    (out / "cats/copy of 3.jpg").write_bytes((out / "cats/3.jpg").read_bytes())
    (out / ".placeholders").mkdir()
    (out / ".placeholders/note.txt").write_text("mine")


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Path]]:
    """A server, and a folder with the list of its images, and `out` with all but the first."""
    folder = tmp_path_factory.mktemp("gathered")
    with serve() as site:
        site.routes = {f"/{n}.jpg": answer(photo(n)) if n else DEAD for n in range(MANY)}
        assert run(conftest.links(folder, *map(site.url, site.routes)), folder / "out").ok == MANY - 1
        yield site, folder


TOUCHES = [edit, edit_to_the_same_size, empty, delete, move, rename_the_class, add_files]


@pytest.mark.parametrize("touch", TOUCHES)
@pytest.mark.parametrize(
    ("again", "server"),
    [("plain", "dead"), ("plain", "alive"), ("retry-failed", "changed"), ("shard", "dead"), ("joined", "alive")],
)
def test_the_same_command_leaves_everything_as_the_person_left_it(
    gathered: tuple[Site, Path], tmp_path: Path, touch: Callable[[Path], None], again: str, server: str
) -> None:
    site, links, out = gathered[0], UrlList(gathered[1] / "cats.txt"), tmp_path / "out"
    shutil.copytree(gathered[1] / "out", out)
    if again == "joined":
        (out / "manifest.jsonl").rename(out / "manifest-00001-of-00001.jsonl")
    shift = 500 if server == "changed" else 0
    site.routes = {p: DEAD if server == "dead" else answer(photo(int(p[1:-4]) + shift)) for p in site.routes}
    touch(out)
    before = contents(out)
    options = {"retry-failed": {"retry_failed": set(Reason)}, "shard": {"shard": (1, 1)}}.get(again, {})
    for _ in range(2):
        summary = run(links, out, **options)
        after = contents(out)
        assert {path: after.get(path) for path in before} == before
    new = int(again == "retry-failed")
    assert len(after) == len(before) + new, "only the link that had failed may give an image"
    removed = 2 if touch is delete else 0
    assert (summary.ok, summary.removed) == (MANY - 1 + new - removed, removed)
    assert summary.changed == (touch in (edit, edit_to_the_same_size, empty))


def test_deleted_images_stay_deleted_until_they_are_asked_for_or_put_back(
    site: Site, links: UrlList, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(links, out)
    delete(out)
    site.requests.clear()
    assert (run(links, out).ok, run(links, out).removed) == (MANY - 2, 2)
    (out / "cats/5.jpg").write_bytes(photo(5))
    back = run(links, out)
    assert (back.ok, back.removed) == (MANY - 1, 1)
    assert not site.requests
    site.routes["/copy.jpg"] = answer(photo(3))
    more = conftest.links(tmp_path, site.url("/copy.jpg"), name="more.txt")
    assert run(more, out).duplicate == 1, "nor does it come back by another link"
    restored = run(links, out, restore_deleted=True)
    assert (restored.ok, restored.removed, restored.fetched) == (MANY, 0, 1)
    assert (out / "cats/3.jpg").read_bytes() == photo(3)


def test_where_much_is_missing_the_run_stops_and_both_ways_to_go_on_are_named(
    site: Site, links: UrlList, tmp_path: Path, run_cli: RunCli
) -> None:
    out = tmp_path / "out"
    run(links, out)
    for number in range(4):
        (out / f"cats/{number}.jpg").unlink()
    manifest = (out / "manifest.jsonl").read_bytes()
    words = ["gather", "urls", "cats.txt", "-o", "out", "--allow-private"]
    done = run_cli(*words, check=False)
    assert done.returncode == 1
    assert "4 gathered images missing: 4 of 24 in cats. Is the disk mounted" in done.stderr
    assert "--keep-deleted" in done.stderr
    assert "--restore-deleted" in done.stderr
    assert (out / "manifest.jsonl").read_bytes() == manifest
    shutil.copytree(out, tmp_path / "copy")
    done = run_cli(*words, "--keep-deleted")
    assert done.stdout.splitlines()[-1] == "4 images deleted by hand and not downloaded again (see --restore-deleted)"
    assert json.loads(run_cli(*words, "--json", "--quiet").stdout)["removed"] == 4
    assert run(links, tmp_path / "copy", restore_deleted=True).ok == MANY
    shutil.rmtree(out / "cats")
    with pytest.raises(GatherError, match="20 of 20 in cats"):
        run(links, out)


@pytest.mark.parametrize(
    ("deleted", "total", "stops"),
    [(0, 5, False), (1, 1, True), (1, 2, False), (2, 2, True), (2, 5, True), (1, 10, False), (2, 10, True),
     (2, 20, False), (3, 20, True), (100, 1000, False), (101, 1000, True)],
)  # fmt: skip
def test_a_whole_folder_or_more_than_a_tenth_is_much(deleted: int, total: int, stops: bool) -> None:
    with pytest.raises(GatherError, match=f"{deleted} of {total} in cats") if stops else nullcontext():
        check_missing_count({"cats": deleted} if deleted else {}, {"cats": total, "dogs": 7})


@pytest.mark.parametrize(
    ("folders", "shown"),
    [("a", "2 gathered images missing: 2 of 2 in a. Is"), ("abc", "2 of 2 in a, 2 of 2 in b, 2 of 2 in c. Is"),
     ("abcd", "8 gathered images missing: 2 of 2 in a, 2 of 2 in b, 2 of 2 in c, and others in 1 more folder. Is"),
     ("abcdef", " in c, and others in 3 more folders. Is")],
)  # fmt: skip
def test_three_folders_are_named_and_the_others_counted(folders: str, shown: str) -> None:
    with pytest.raises(GatherError, match=re.escape(shown)):
        check_missing_count(dict.fromkeys(folders, 2), dict.fromkeys(folders, 2))


ROW = dump_row(FetchResult("http://x/a.jpg", "cats", "failed", Reason.NOT_FOUND))
NAMES = {
    "manifest.jsonl": True,
    "manifest-00001.jsonl": True,
    "manifest-00001-of-00008.jsonl": True,
    "manifest-0123456789abcdef.jsonl": True,
    "manifest-links.jsonl": False,
    "manifest-before.jsonl": False,
    "manifest (copy).jsonl": False,
    "manifest-1.jsonl": False,
    "manifest-00001 (1).jsonl": False,
    "manifest2.jsonl": False,
    "manifest-00001-of-8.jsonl": False,
}


@pytest.mark.parametrize(("name", "ours"), NAMES.items())
def test_a_manifest_is_ours_by_its_name_and_others_are_neither_read_nor_removed(
    name: str, ours: bool, links: UrlList, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(links, out)
    (out / name).write_bytes(ROW)
    assert (out / name in find_manifests(out)) == ours
    summary = run(links, out)
    assert (summary.ok, summary.failed) == (MANY, int(ours))
    if not ours:
        assert (out / name).read_bytes() == ROW


@pytest.mark.parametrize(
    ("text", "ours"),
    [(ROW, True), (b"", True), (ROW[:30], True), (b'{"v"', True), (b"\0" * 40, True), (ROW + b"noise\n", True),
     (b'{"url": "http://x/a.jpg", "label": "cats"}\n', False), (b"\n" + ROW, False), (b"[1]\n", False),
     (b'{"v": "1", "url": "u", "status": "ok"}\n', False), (b"http://x/a.jpg\n", False), (b"http://x/a.jpg", False),
     (b'{"v": 1, "url": "u"}\n', False)],
)  # fmt: skip
def test_a_manifest_is_ours_by_its_first_whole_line_too(text: bytes, ours: bool, tmp_path: Path) -> None:
    source, shard, own = conftest.links(tmp_path), tmp_path / "manifest-00001.jsonl", tmp_path / "manifest.jsonl"
    shard.write_bytes(text)
    assert is_manifest(shard) == ours
    run(source, tmp_path)
    assert shard.exists() != ours
    own.write_bytes(text)
    if not ours:
        with pytest.raises(GatherError, match=r"manifest\.jsonl was not written by mlimages: move the file"):
            run(source, tmp_path)
        assert own.read_bytes() == text


@pytest.mark.usefixtures("layout")
def test_a_list_of_ones_own_in_the_folder_is_read_and_stays(site: Site, tmp_path: Path) -> None:
    own = tmp_path / "manifest-links.jsonl"
    text = "".join(json.dumps({"url": site.url(path), "label": "cats"}) + "\n" for path in site.routes)
    own.write_text(text)
    for _ in range(2):
        assert run(UrlList(own), tmp_path).ok == MANY
    assert own.read_text() == text


@pytest.mark.parametrize("again", [{}, {"retry_failed": set(Reason)}])
@pytest.mark.usefixtures("layout")
def test_copies_that_were_kept_stay_without_the_option_too(
    site: Site, tmp_path: Path, again: dict[str, object]
) -> None:
    site.routes = {f"/{n}.jpg": answer(photo(n // 6)) for n in range(12)} | {"/dead.jpg": DEAD}
    links, out = conftest.links(tmp_path, *map(site.url, site.routes)), tmp_path / "out"
    run(links, out, keep_duplicates=True)
    before = stored(out)
    assert len(before) == 12
    assert run(links, out, **again).ok == 12
    site.routes["/another.jpg"] = answer(photo(0))
    more = run(conftest.links(tmp_path, site.url("/another.jpg"), name="more.txt"), out, **again)
    assert (more.ok, more.duplicate, more.reasons.get("placeholder")) == (12, 1, None)
    assert stored(out) == before
    for shard in ((1, 2), (2, 2)):
        run(links, tmp_path / "shards", keep_duplicates=True, shard=shard)
    assert run(links, tmp_path / "shards").ok == 12


def test_nothing_is_removed_through_a_symbolic_link(site: Site, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    out.mkdir()
    (out / "cats").symlink_to(elsewhere)
    site.routes |= {f"/same/{n}.jpg": answer(photo(99)) for n in range(7)}
    links = conftest.links(tmp_path, *map(site.url, site.routes))
    for _ in range(2):
        run(links, out)
        assert photo(99) in contents(elsewhere).values(), "a host's image for `gone` would have been put aside"
    (out / ".gather").symlink_to(elsewhere)
    with pytest.raises(GatherError, match=r"\.gather is a symbolic link"):
        run(links, out)
    assert len(contents(elsewhere)) == MANY + 1


def test_files_of_the_user_in_the_hidden_folder_are_kept(site: Site, tmp_path: Path) -> None:
    hidden = tmp_path / "out/.gather"
    mine = ["notes.txt", "manifest/notes.txt", "manifest/draft.part", "other/b.jpg", "manifest.lock"]
    for name in mine:
        (hidden / name).parent.mkdir(parents=True, exist_ok=True)
        (hidden / name).write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/1.part").write_text("mine")
    (hidden / "linked").symlink_to(tmp_path / "elsewhere")
    (hidden / "manifest/7.part").write_bytes(b"half an image")
    site.routes |= {"/a.jpg": answer(photo(1))}
    for _ in range(2):
        run(conftest.links(tmp_path, site.url("/a.jpg")), tmp_path / "out")
    assert sorted(path.relative_to(hidden).as_posix() for path in hidden.rglob("*") if path.is_file()) == sorted(mine)
    assert (tmp_path / "elsewhere/1.part").exists()
    assert len(contents(tmp_path / "out/cats")) == 1


def test_only_a_file_with_the_bytes_of_its_row_is_removed_or_put_aside(tmp_path: Path) -> None:
    files, sha256 = FileStorage(tmp_path), hashlib.sha256(b"ours").hexdigest()
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to("real")
    for name in ("real/a.jpg", "real/b.jpg", "real/c.jpg"):
        (tmp_path / name).write_bytes(b"ours")
    (tmp_path / "real/edited.jpg").write_bytes(b"mine")
    (tmp_path / "real/link.jpg").symlink_to("a.jpg")
    before = sorted((tmp_path / "real").iterdir())
    for path in ("linked/a.jpg", "real/link.jpg", "real/edited.jpg", "real/none.jpg"):
        files.remove(path, sha256)
        assert files.quarantine_placeholder(path, sha256) is None
    assert sorted((tmp_path / "real").iterdir()) == before
    files.remove("real/a.jpg", sha256)
    assert files.quarantine_placeholder("real/b.jpg", sha256) == f".placeholders/{sha256[:16]}.jpg"
    assert files.quarantine_placeholder("real/c.jpg", sha256) == f".placeholders/{sha256[:16]}.jpg"
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["edited.jpg", "link.jpg"]


def test_an_image_put_aside_by_a_run_that_was_killed_was_not_deleted_by_anybody(site: Site, tmp_path: Path) -> None:
    site.routes = {f"/{n}.jpg": answer(photo(min(n, 4))) for n in range(9)}
    links, out = conftest.links(tmp_path, *map(site.url, site.routes)), tmp_path / "out"
    assert run(links, out, limit=5, parallel=1).ok == 5
    (row,) = (row for row in read_manifest(out) if row.path == "cats/4.jpg")
    assert FileStorage(out).quarantine_placeholder("cats/4.jpg", row.sha256 or "")
    again = run(links, out, parallel=1)
    assert (again.ok, again.removed, again.reasons) == (4, 0, {"placeholder": 5})


def test_an_attribution_file_that_somebody_changed_stays(tmp_path: Path) -> None:
    facts = {"sha256": "0" * 64, "dhash": "0" * 16, "bytes": 1}
    row = FetchResult("u", "l", "ok", path="l/a.jpg", source={"attribution": "by Bo"}, **facts)  # type: ignore[arg-type]
    (tmp_path / "manifest.jsonl").write_bytes(dump_row(row))
    names = ["ATTRIBUTION.md", "ATTRIBUTION-2.md", "ATTRIBUTION-3.md"]
    (tmp_path / names[0]).write_text("# Mine\n")
    for _ in range(2):
        write_attributions(tmp_path)
    assert "- l/a.jpg: by Bo" in (tmp_path / names[1]).read_text()
    with (tmp_path / names[1]).open("a") as file:
        file.write("and by me")
    write_attributions(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("ATTR*")) == sorted(names)
    assert (tmp_path / names[0]).read_text() == "# Mine\n"
    assert (tmp_path / names[1]).read_text().endswith("and by me")


def test_a_persons_files_at_an_address_are_neither_replaced_nor_removed(
    site: Site, links: UrlList, tmp_path: Path
) -> None:
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("upath")
    files = fsspec.filesystem("memory")
    mine = {"/own/cats/3.jpg": b"mine", "/own/manifest-links.jsonl": b"mine", "/own/ATTRIBUTION.md": b"mine"}
    for path, data in mine.items():
        files.pipe(path, data)
    try:
        for _ in range(2):
            assert run(links, "memory://own").ok == MANY
        assert {path: files.cat(path) for path in mine} == mine
        fifth, sixth = (next(name for name in files.find("/own") if f"/{n}-" in name) for n in (5, 6))
        files.pipe(fifth, b"edited")
        files.rm(sixth)
        site.routes |= {f"/same/{n}.jpg": answer(photo(5)) for n in range(7)}
        summary = run(conftest.links(tmp_path, *map(site.url, site.routes)), "memory://own")
        assert (summary.removed, files.exists(sixth)) == (1, False)
        assert files.cat(fifth) == b"edited"
        assert {path: files.cat(path) for path in mine} == mine
    finally:
        files.rm("/own", recursive=True)


def test_a_manifest_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    reasons = ["placeholder", "host-down", "timeout", "truncated", "not-found"]
    row = {"v": 1, "url": "u", "label": "l", "status": "failed", "sha256": "0" * 64}
    lines = (json.dumps({**row, "reason": reason}) for reason in reasons)
    (tmp_path / "manifest.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert [(row.status, row.final) for row in read_manifest(tmp_path)] == [
        ("placeholder", True), ("failed", False), ("failed", False), ("failed", True), ("failed", True),
    ]  # fmt: skip
