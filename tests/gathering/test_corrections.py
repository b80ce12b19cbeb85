"""A class that is corrected in the list: the image moves there, if it is still as it was gathered."""

import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlimages import UrlList, gather
from mlimages.core import FetchResult, ImageRef
from mlimages.gathering import GatherOptions, read_manifest
from mlimages.gathering.store.gather_folder import GatherFolder
from mlimages.gathering.store.manifest import dump_commit_row, dump_row
from mlimages.gathering.store.tally import ResultTally
from tests.conftest import RunCli
from tests.gathering.conftest import contents
from tests.servers import Site, answer, photo

Links = list[tuple[str, str]]


def gathered(out: Path, *links: tuple[str, str], near: str | None = None) -> None:
    """A closed folder with one image for each `(class, name)`, whose bytes are its name."""
    rows = []
    for label, name in links:
        path = out / label / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        facts = {"sha256": hashlib.sha256(name.encode()).hexdigest(), "dhash": "0" * 16, "bytes": len(name)}
        rows.append(FetchResult(url(name), label, "ok", path=f"{label}/{name}.jpg", same_as=near, **facts))  # type: ignore[arg-type]
    (out / "manifest.jsonl").write_bytes(b"".join(map(dump_row, rows)) + dump_commit_row(keep_duplicates=False))


def url(name: str) -> str:
    return f"http://127.0.0.1/{name}.jpg"


def listed(out: Path, links: Links, **options: object) -> tuple[list[tuple[str, str]], ResultTally]:
    """The links that a run with this list requests, and what it counts; no request is answered."""
    with GatherFolder(out, GatherOptions(**options), is_list=True) as folder:  # type: ignore[arg-type]
        refs = [ImageRef(url(name), label, {"column": 1}) for label, name in links]
        wanted = [ref for ref in refs if folder.claim_link(ref)]
        wanted += [ref for ref in folder.resolve_deferred_links() if folder.claim_link(ref)]
        folder.finish()
    return [(ref.label, ref.url[17:-4]) for ref in wanted], folder.tally


def rows_of(out: Path) -> list[tuple[str, str, str]]:
    """Class, name and path of each image that is there; an image that was moved by hand has two rows."""
    rows = ((row.label, row.url[17:-4], row.path or "") for row in read_manifest(out))
    return sorted(row for row in rows if (out / row[2]).is_file())


def nothing(out: Path) -> None:
    pass


def edit(out: Path) -> None:
    (out / "cat/a.jpg").write_text("mine")


def own_file_of_that_name(out: Path) -> None:
    (out / "dog").mkdir(exist_ok=True)
    (out / "dog/A.JPG").write_text("mine")
    (out / "dog/a.jpg").write_text("mine")


def move_to_the_new_class(out: Path) -> None:
    (out / "dog").mkdir(exist_ok=True)
    (out / "cat/a.jpg").rename(out / "dog/my.jpg")


def move_elsewhere(out: Path) -> None:
    (out / "best").mkdir()
    (out / "cat/a.jpg").rename(out / "best/a.jpg")


def link_new_folder(out: Path) -> None:
    (out.parent / "elsewhere").mkdir()
    (out / "dog").symlink_to(out.parent / "elsewhere")


def link_old_folder(out: Path) -> None:
    (out / "cat").rename(out.parent / "elsewhere")
    (out / "cat").symlink_to(out.parent / "elsewhere")


def own_file_in_place_of_the_folder(out: Path) -> None:
    (out / "dog").write_text("mine")


CATS = [("cat", "a"), ("cat", "b"), ("cat", "c")]


@dataclass
class Case:
    """A folder of three cats, what a person does to it, the list of the next run, and what follows."""

    touch: Callable[[Path], None]
    links: Links
    a_lies_at: str = "cat/a.jpg"
    moved: int = 0
    unmoved: int = 0
    wanted: tuple[tuple[str, str], ...] = ()


CORRECTED = [("dog", "a"), ("cat", "b"), ("cat", "c")]
CASES = {
    "corrected": Case(nothing, CORRECTED, "dog/a.jpg", moved=1),
    "the rest of the list is missing": Case(nothing, CORRECTED[:1], "dog/a.jpg", moved=1),
    "named twice for the new class": Case(nothing, [*CORRECTED, ("dog", "a")], "dog/a.jpg", moved=1),
    "named for both": Case(nothing, [*CORRECTED, ("cat", "a")], wanted=(("dog", "a"),)),
    "named for two new ones": Case(nothing, [*CORRECTED, ("cow", "a")], wanted=(("dog", "a"), ("cow", "a"))),
    "another link of the same name": Case(nothing, [*CATS, ("dog", "x")], wanted=(("dog", "x"),)),
    "the class is blank now": Case(nothing, [("", "a"), *CATS[1:]], wanted=(("", "a"),)),
    "edited": Case(edit, CORRECTED, unmoved=1),
    "the name is taken": Case(own_file_of_that_name, CORRECTED, "dog/a-*.jpg", moved=1),
    "moved there by hand": Case(move_to_the_new_class, CORRECTED, "dog/my.jpg", moved=1),
    "moved elsewhere by hand": Case(move_elsewhere, CORRECTED, "best/a.jpg", unmoved=1),
    "the new folder is a symbolic link": Case(link_new_folder, CORRECTED, unmoved=1),
    "the old folder is a symbolic link": Case(link_old_folder, CORRECTED, unmoved=1),
    "a file has the name of the new folder": Case(own_file_in_place_of_the_folder, CORRECTED, unmoved=1),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_image_moves_if_its_class_was_corrected_and_nobody_touched_it(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    gathered(out, *CATS)
    case.touch(out)
    before = contents(out)
    wanted, tally = listed(out, case.links)
    assert (tuple(wanted), tally.counts["moved"], tally.counts["unmoved"]) == (case.wanted, case.moved, case.unmoved)
    (place,) = (path.relative_to(out).as_posix() for path in out.glob(case.a_lies_at))
    label = "dog" if case.moved else "cat"
    assert rows_of(out) == sorted([(label, "a", place), ("cat", "b", "cat/b.jpg"), ("cat", "c", "cat/c.jpg")])
    after = contents(out)
    assert sorted(after.values()) == sorted(before.values())
    assert all(after[name] == data for name, data in before.items() if name != "cat/a.jpg" or not case.moved)
    assert tally.classes == ({"cat": 2, "dog": 1} if case.moved else {"cat": 3})
    again, tally = listed(out, case.links)
    assert (tuple(again), tally.counts["moved"], tally.counts["unmoved"]) == (case.wanted, 0, case.unmoved)
    assert contents(out) == after


@pytest.mark.parametrize("options", [{"limit": 9}, {"shard": (1, 1)}])
def test_a_run_that_may_not_see_the_whole_list_moves_nothing(options: dict[str, object], tmp_path: Path) -> None:
    gathered(tmp_path, *CATS)
    wanted, tally = listed(tmp_path, CORRECTED, **options)
    assert (wanted, tally.counts["moved"]) == ([("dog", "a")], 0)
    assert contents(tmp_path) == {"cat/a.jpg": b"a", "cat/b.jpg": b"b", "cat/c.jpg": b"c"}


@pytest.mark.parametrize(("other", "wanted"), [("cow", [("dog", "a")]), ("dog", [])])
def test_a_link_that_is_stored_under_two_classes_moves_nothing(
    other: str, wanted: list[tuple[str, str]], tmp_path: Path
) -> None:
    gathered(tmp_path, ("cat", "a"), (other, "a"))
    found, tally = listed(tmp_path, [("dog", "a")])
    assert (found, tally.counts["moved"]) == (wanted, 0)


def test_what_names_the_image_follows_it_and_a_correction_can_be_taken_back(tmp_path: Path) -> None:
    gathered(tmp_path, *CATS, near="cat/a.jpg")
    manifest = (tmp_path / "manifest.jsonl").read_bytes()
    listed(tmp_path, CORRECTED)
    assert {row.same_as for row in read_manifest(tmp_path)} == {"dog/a.jpg"}
    assert [row.source for row in read_manifest(tmp_path)] == [{"column": 1}, {}, {}]
    listed(tmp_path, CATS)
    assert (tmp_path / "manifest.jsonl").read_bytes() == manifest.replace(
        b'"source": {}', b'"source": {"column": 1}', 1
    )


def test_classes_that_differ_in_case_alone_never_share_a_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether two processes placed them, or the list renames one: elsewhere, `cat` and `Cat` are one folder."""
    gathered(tmp_path, ("cat", "a"), ("cat", "b"))
    (tmp_path / "manifest.jsonl").rename(tmp_path / "manifest-00001-of-00002.jsonl")
    gathered(tmp_path, ("Cat", "c"))
    (tmp_path / "manifest.jsonl").rename(tmp_path / "manifest-00002-of-00002.jsonl")
    listed(tmp_path, [("cat", "a"), ("cat", "b"), ("Cat", "c")])
    own = f"Cat-{hashlib.sha256(b'Cat').hexdigest()[:8]}"
    assert contents(tmp_path) == {f"{own}/c.jpg": b"c", "cat/a.jpg": b"a", "cat/b.jpg": b"b"}
    assert caplog.text.count(f"class 'Cat': its images are in {own}, because Cat is the folder of class 'cat'") >= 1
    listed(tmp_path, [("Cat", "a"), ("Cat", "b"), ("Cat", "c")])
    assert list(contents(tmp_path)) == [f"{own}/{name}.jpg" for name in "abc"]
    (tmp_path / "Cat").mkdir(exist_ok=True)
    (tmp_path / own / "c.jpg").rename(tmp_path / "Cat/c.jpg")
    listed(tmp_path, [("Cat", "a"), ("Cat", "b"), ("Cat", "c")])
    assert "Cat/c.jpg" in contents(tmp_path), "moved by hand"


class Killed(BaseException):
    """The process is gone."""


def test_a_run_killed_at_any_write_moves_each_image_once_at_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrected = [("dog", "a"), ("dog", "b"), ("cat", "c")]
    for kill_at in range(20):
        out, calls = tmp_path / str(kill_at), iter(range(1000))
        gathered(out, *CATS)

        def dying(
            write: Callable[..., object], calls: Iterator[int] = calls, last: int = kill_at
        ) -> Callable[..., object]:
            def call(*args: object) -> object:
                if next(calls) == last:
                    raise Killed
                done = write(*args)
                if next(calls) == last:
                    raise Killed
                return done

            return call

        with monkeypatch.context() as patch:
            for name in ("rename", "replace"):
                patch.setattr(Path, name, dying(getattr(Path, name)))
            try:
                listed(out, corrected)
            except Killed:
                pass
            else:
                break
        wanted, tally = listed(out, corrected)
        assert (wanted, tally.make_summary(out, num_fetched=0, seconds=0).removed) == ([], 0)
        assert rows_of(out) == [("cat", "c", "cat/c.jpg"), ("dog", "a", "dog/a.jpg"), ("dog", "b", "dog/b.jpg")]
        assert contents(out) == {"cat/c.jpg": b"c", "dog/a.jpg": b"a", "dog/b.jpg": b"b"}
    assert kill_at == 6, "two images and the manifest, before and after each"


@pytest.fixture
def site(site: Site) -> Site:
    site.routes = {f"/{name}.jpg": answer(photo(n)) for n, name in enumerate("abcde")}
    return site


def test_the_same_command_moves_what_the_list_corrects_and_says_so(site: Site, tmp_path: Path, run_cli: RunCli) -> None:
    def write(classes: str) -> None:
        rows = (
            f"{'cat' if c == 'c' else 'dog'},{site.url(f'/{name}.jpg')}\n"
            for c, name in zip(classes, "abcde", strict=False)
        )
        (tmp_path / "rl.csv").write_text("label,url\n" + "".join(rows))

    words = ["gather", "urls", "rl.csv", "-o", "out", "--allow-private"]
    write("cccd")
    run_cli(*words)
    assert not site.asked("/e.jpg")
    (tmp_path / "out/cat/c.jpg").write_bytes(photo(77))
    site.requests.clear()
    write("ddddd")
    assert run_cli(*words).stdout.splitlines()[-4:] == [
        "5 images, 0 duplicates, 0 failed links in out",
        "1 file edited since the download and kept",
        "2 images moved, since the list now gives another class",
        "1 image was edited or moved by hand and therefore left in place, although the list now gives another class",
    ]
    assert [request.path for request in site.requests] == ["/e.jpg"], "only what is new"
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.jpg"))
    assert found == ["cat/c.jpg", "dog/a.jpg", "dog/b.jpg", "dog/d.jpg", "dog/e.jpg"]


def test_what_an_earlier_run_took_for_a_duplicate_is_moved_without_a_request(site: Site, tmp_path: Path) -> None:
    @dataclass
    class Search:
        label: str

        async def __aiter__(self) -> AsyncIterator[ImageRef]:
            yield ImageRef(site.url("/a.jpg"), self.label)
            if self.label == "cow":
                raise RuntimeError("the source breaks")

    def run(source: object) -> tuple[int, int, int, int]:
        summary = gather(source, tmp_path / "out", allow_private=True, decoders=1)  # type: ignore[arg-type]
        return summary.ok, summary.moved, summary.duplicate, len(site.requests)

    assert run(Search("cat")) == (1, 0, 0, 1)
    assert run(Search("dog")) == (1, 0, 1, 2), "results of a search correct nothing"
    (tmp_path / "dog.txt").write_text(site.url("/a.jpg"))
    assert run(UrlList(tmp_path / "dog.txt")) == (1, 1, 0, 2)
    broken = Search("cow")
    broken.is_list = True  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError):
        run(broken)
    assert [(row.label, row.path) for row in read_manifest(tmp_path / "out")] == [("dog", "dog/a.jpg")]
