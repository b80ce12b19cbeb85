"""Which rows and files remain when manifests are merged: a table of small folders, before and after."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlimages.core import FetchResult, Reason
from mlimages.gathering.store.file_storage import FileStorage
from mlimages.gathering.store.manifest import (
    CommitRows,
    dump_commit_row,
    dump_row,
    read_commit_rows,
    read_rows,
    read_rows_with_fsync_flags,
)
from mlimages.gathering.store.merge_manifests import CurrentRows, rewrite_manifests, warn_about_unlisted_images

HOST = "https://a.example"
QUARANTINED = f".placeholders/{hashlib.sha256(b'X').hexdigest()[:16]}.jpg"
SHARDS = ["manifest-00000-of-00002.jsonl", "manifest-00001-of-00002.jsonl"]
RUNS = ["manifest.jsonl", "manifest-0123456789abcdef.jsonl"]


def row(link: str, status: str = "ok", data: str = "X", path: str | None = "1.jpg", **values: object) -> FetchResult:
    """A row for `link`, "path" or "host/path" or "label:path", whose image has these bytes."""
    label, _, link = link.rpartition(":")
    sha256 = hashlib.sha256(data.encode()).hexdigest() if data else None
    known = {"path": path, "bytes": len(data), "dhash": sha256 and sha256[:16]} if status == "ok" else {}
    url = f"https://{link}" if "/" in link else f"{HOST}/{link}"
    return FetchResult(**{"url": url, "label": label or "ant", "status": status, "sha256": sha256, **known, **values})  # type: ignore[arg-type]


def failed(link: str) -> FetchResult:
    return row(link, "failed", "", reason=Reason.NOT_AN_IMAGE)


def removed(link: str, data: str = "X") -> FetchResult:
    return row(link, data=data, removed="user")


def placeholder(link: str) -> FetchResult:
    return row(link, "placeholder", reason=Reason.PLACEHOLDER, path=None)


def duplicate(link: str, same_as: str = "old.jpg") -> FetchResult:
    return row(link, "duplicate", same_as=same_as)


def each(links: str, first: int = 1, **values: object) -> list[FetchResult]:
    """Rows for links of one letter, whose images have the same bytes, at 1.jpg, 2.jpg..."""
    return [row(link, path=f"{n}.jpg", **values) for n, link in enumerate(links, first)]  # type: ignore[arg-type]


def write(folder: Path, names: Sequence[str], rows: Sequence[Sequence[FetchResult]], files: str) -> list[Path]:
    """Write manifests and images: "1X 2Y" writes X into 1.jpg and Y into 2.jpg."""
    for each in files.split():
        (folder / f"{each[0]}.jpg").write_text(each[1:])
    for name, found in zip(names, rows, strict=True):
        (folder / name).write_bytes(b"".join(map(dump_row, found)) + dump_commit_row(keep_duplicates=False))
    return [folder / name for name in names]


def merged(folder: Path, manifests: list[Path], **options: object) -> tuple[str, str]:
    """The rows after merging, and the images."""
    options = {"keep_duplicates": False, **options}
    assert rewrite_manifests(FileStorage(folder), manifests, manifests[0], **options)  # type: ignore[arg-type]
    assert sorted(folder.glob("manifest*")) == [manifests[0]]
    texts = []
    for found in read_rows(manifests[:1]):
        words = [found.url.removeprefix(f"{HOST}/").removeprefix("https://"), found.status, found.path]
        texts.append(" ".join(filter(None, [*words, found.same_as and f"= {found.same_as}"])))
    images = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.jpg"))
    return "; ".join(texts), " ".join(f"{name}{(folder / name).with_suffix('.jpg').read_text()}" for name in images)


OK_1, OK_2 = row("a"), row("a", data="Y", path="2.jpg")
ASIDE = QUARANTINED.removesuffix(".jpg") + "X"


@pytest.mark.parametrize(
    ("first", "second", "files", "rows", "left"),
    [
        # several rows for one link: the last whose image exists, else the last that settles it, else the last
        ([OK_1], [OK_2], "1X 2Y", "a ok 2.jpg", "2Y"),
        ([OK_1], [OK_2], "1Z 2Y", "a ok 2.jpg", "1Z 2Y"),  # edited, so not removed
        ([OK_1, OK_2], [row("b", data="Z", path="3.jpg")], "1X 2Y 3Z", "a ok 2.jpg; b ok 3.jpg", "2Y 3Z"),
        ([OK_1], [OK_2], "1X", "a ok 1.jpg", "1X"),
        ([OK_1], [OK_2], "", "a ok 2.jpg", ""),
        ([OK_1], [failed("a")], "1X", "a ok 1.jpg", "1X"),
        ([OK_1], [failed("a")], "", "a failed", ""),
        ([failed("a"), row("b", data="Y", path="2.jpg")], [OK_1], "1X 2Y", "b ok 2.jpg; a ok 1.jpg", "1X 2Y"),
        ([duplicate("a")], [failed("a")], "", "a duplicate = old.jpg", ""),
        ([OK_1], [duplicate("a")], "1X", "a ok 1.jpg", "1X"),
        ([duplicate("a")], [OK_2], "", "a duplicate = old.jpg", ""),
        ([removed("a")], [failed("a")], "", "a ok 1.jpg", ""),
        ([removed("a")], [OK_2], "", "a ok 1.jpg", ""),
        ([removed("a")], [OK_2], "2Y", "a ok 2.jpg", "2Y"),
        ([OK_2], [removed("a")], "2Y", "a ok 2.jpg", "2Y"),
        ([OK_1], [row("bee:a", data="Y", path="2.jpg")], "1X 2Y", "a ok 1.jpg; a ok 2.jpg", "1X 2Y"),  # two labels
        # the image of a replaced row stays while a row lists it
        ([OK_1, row("b")], [OK_2], "1X 2Y", "b ok 1.jpg; a ok 2.jpg", "1X 2Y"),
        # the same bytes under two links: one image, unless a run kept both or somebody has edited one
        (each("a"), each("b", 2), "1X 2X", "a ok 1.jpg; b duplicate = 1.jpg", "1X"),
        (each("a"), each("b", 2), "1X 2Z", "a ok 1.jpg; b ok 2.jpg = 1.jpg", "1X 2Z"),
        (each("a"), each("b", 2), "1Z 2X", "a ok 1.jpg; b ok 2.jpg = 1.jpg", "1Z 2X"),
        (each("ab"), [], "1X 2X", "a ok 1.jpg; b ok 2.jpg = 1.jpg", "1X 2X"),
        (each("ab"), each("c", 3), "1X 2X 3X", "a ok 1.jpg; b ok 2.jpg = 1.jpg; c duplicate = 1.jpg", "1X 2X"),
        ([OK_1], [duplicate("b")], "1X", "a ok 1.jpg; b duplicate = 1.jpg", "1X"),
        ([duplicate("b")], [OK_1], "1X", "b duplicate = old.jpg; a ok 1.jpg", "1X"),
        ([removed("a")], [duplicate("b")], "", "a ok 1.jpg; b duplicate = old.jpg", ""),
        # the same bytes under five paths of a host are its placeholder, unless a run kept copies on purpose
        (each("a"), [*map(duplicate, "bcd")], "1X", "a ok 1.jpg; " + "; ".join(
            f"{link} duplicate = 1.jpg" for link in "bcd"
        ), "1X"),
        ([OK_1], [*map(duplicate, "bcde")], "1X", f"a placeholder {QUARANTINED}; " + "; ".join(
            f"{link} placeholder" for link in "bcde"
        ), ASIDE),
        ([OK_1], [*map(duplicate, ["b", "c", "d", "b.example/e"])], "1X", "a ok 1.jpg; " + "; ".join(
            f"{link} duplicate = 1.jpg" for link in ["b", "c", "d", "b.example/e"]
        ), "1X"),
        (each("ab"), [*map(duplicate, "cde")], "1X 2X", "a ok 1.jpg; b ok 2.jpg = 1.jpg; " + "; ".join(
            f"{link} duplicate = 1.jpg" for link in "cde"
        ), "1X 2X"),
        ([placeholder("a")], each("b"), "1X", f"a placeholder; b placeholder {QUARANTINED}", ASIDE),
        ([placeholder("a")], each("b"), "1Z", "a placeholder; b ok 1.jpg", "1Z"),  # edited
        ([placeholder("a")], each("b"), "", "a placeholder; b placeholder", ""),
        ([placeholder("a")], [removed("b")], "", "a placeholder; b ok 1.jpg", ""),
        ([placeholder("a")], [OK_2], "2Y", "a ok 2.jpg", "2Y"),
        ([row("a", "failed", reason=Reason.NOT_AN_IMAGE)], each("b"), "1X", "a failed; b ok 1.jpg", "1X"),
        # a near-duplicate is searched again, in all manifests
        (
            [row("a", dhash="00000000ffffffff")],
            [row("b", data="Y", path="2.jpg", dhash="00000000fffffffc", same_as="gone.jpg")],
            "1X 2Y", "a ok 1.jpg; b ok 2.jpg = 1.jpg", "1X 2Y",
        ),
        (
            [row("a", dhash="00000000ffffffff")],
            [row("b", data="Y", path="2.jpg", dhash="00000000fffffff8", same_as="gone.jpg")],
            "1X 2Y", "a ok 1.jpg; b ok 2.jpg", "1X 2Y",
        ),
    ],
)  # fmt: skip
def test_merging_keeps_one_row_per_link_and_the_images_that_rows_list(
    tmp_path: Path, first: list[FetchResult], second: list[FetchResult], files: str, rows: str, left: str
) -> None:
    assert merged(tmp_path, write(tmp_path, RUNS, [first, second], files)) == (rows, left)


def test_a_run_that_keeps_duplicates_keeps_every_image_of_its_rows(tmp_path: Path) -> None:
    manifests = write(tmp_path, RUNS, [each("abc"), each("def", 4)], "1X 2X 3X 4X 5X 6X")
    rows = "; ".join([
        "a ok 1.jpg", *(f"{link} ok {n}.jpg = 1.jpg" for n, link in enumerate("bcdef", 2))
    ])  # fmt: skip
    assert merged(tmp_path, manifests, keep_duplicates=True) == (rows, "1X 2X 3X 4X 5X 6X")
    assert read_commit_rows(manifests[0]).keeps_duplicates


@pytest.mark.parametrize(
    ("names", "limit", "links"),
    [(SHARDS, None, "12345"), (SHARDS, 4, "12345"), (SHARDS, 3, "1235"), (SHARDS, 1, "15"), (RUNS, 1, "12345")],
)
def test_a_limit_holds_for_each_class_over_all_shards(
    tmp_path: Path, names: list[str], limit: int | None, links: str
) -> None:
    rows = [row(f"{'bee' if n == '5' else 'ant'}:{n}", data=n, path=f"{n}.jpg") for n in "12345"]
    manifests = write(tmp_path, names, [rows[:2], rows[2:]], "11 22 33 44 55")
    assert merged(tmp_path, manifests, limit=limit) == (
        "; ".join(f"{n} ok {n}.jpg" for n in links),
        " ".join(2 * n for n in links),
    )


@pytest.mark.parametrize("torn", [None, 0, 1])
def test_the_new_manifest_is_closed_if_all_were(tmp_path: Path, torn: int | None) -> None:
    manifests = write(tmp_path, RUNS, [each("a"), each("b", 2)], "1X 2X")
    if torn is not None:
        manifests[torn].write_bytes(manifests[torn].read_bytes() + dump_row(failed("c")))
    merged(tmp_path, manifests)
    found = read_commit_rows(manifests[0])
    assert (found.is_at_end, found.last_line_number) == ((False, 0) if torn is not None else (True, 3))


@pytest.mark.parametrize("source", [{"status": "closed"}, {"a": {"status": "closed", "keep_duplicates": True}}])
def test_a_row_whose_list_says_closed_is_no_commit_row(tmp_path: Path, source: dict[str, Any]) -> None:
    path = tmp_path / "manifest.jsonl"
    row = FetchResult("http://a.example/1.jpg", "a", "failed", source=source)
    path.write_bytes(dump_row(row))
    assert read_commit_rows(path) == CommitRows(0, is_at_end=False, keeps_duplicates=False)
    path.write_bytes(dump_commit_row(keep_duplicates=False) + 2 * dump_row(row))
    assert read_commit_rows(path) == CommitRows(1, is_at_end=False, keeps_duplicates=False)
    assert [is_fsynced for _, is_fsynced in read_rows_with_fsync_flags([path])] == [False, False]


def test_nothing_is_removed_unless_the_new_manifest_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = write(tmp_path, RUNS, [[OK_1], [OK_2]], "1X 2Y")
    files, shown = FileStorage(tmp_path), []

    def publish(path: Path) -> bool:
        shown.append([found.path for found in read_rows([path])])
        return False

    monkeypatch.setattr(files, "publish_manifest", publish)
    assert not rewrite_manifests(files, manifests, tmp_path / "manifest.jsonl", keep_duplicates=False)
    assert shown == [["2.jpg"]]
    assert all(path.exists() for path in [*manifests, tmp_path / "1.jpg", tmp_path / "2.jpg"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("1.jpg", None),
        ("1.jpg 2.JPG", "{out} contains 1 image that its manifest does not list: 2.JPG"),
        (
            "1.jpg 2.png 3.png 4.png notes.txt",
            "{out} contains 3 images that its manifest does not list: 2.png, 3.png, 4.png",
        ),
        ("2.png 3.png 4.png 5.png", "{out} contains 4 images that its manifest does not list: 2.png, 3.png, 4.png ..."),
    ],
)
def test_images_without_a_row_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, names: str, message: str | None
) -> None:
    (manifest,) = write(tmp_path, RUNS[:1], [[OK_1, failed("b")]], "")
    files = FileStorage(tmp_path)
    monkeypatch.setattr(files, "iter_file_paths", lambda: iter(names.split()))
    with caplog.at_level(logging.WARNING):
        warn_about_unlisted_images(files, manifest, tmp_path)
    assert [record.message for record in caplog.records] == ([message.format(out=tmp_path)] if message else [])


def test_the_current_rows_of_a_folder_are_known_by_their_index(tmp_path: Path) -> None:
    rows = [OK_1, row("b", data="Z", path="3.jpg"), replace(OK_1, label="bee"), OK_2]
    manifests = write(tmp_path, RUNS, [rows[:2], rows[2:]], "1X 2Y 3Z")
    current = CurrentRows(FileStorage(tmp_path), manifests)
    assert [current.is_current(at, found) for at, found in enumerate(rows)] == [False, True, True, True]
    assert list(current.rows()) == rows[1:]
    assert [number for number, *_ in current.rows_with_origin()] == [0, 1, 1]
    assert [is_shard for *_, is_shard in current.rows_with_origin()] == [False] * 3
