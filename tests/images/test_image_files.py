"""Which files of a folder are images, and where the images of each class are copied to."""

import os
import re
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlimages.core import BrokenImage, ClassScore, Fault, Prediction, atomic_write, write_text_output
from mlimages.images import copy_by_class, find_images, image_files
from mlimages.labels import IMAGE_SUFFIXES

NAMES = ("cats", "dogs")


def made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_a_folder_holds_the_files_with_an_image_suffix_sorted_and_recursively_but_hidden_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = made(
        tmp_path / "photos", "b.JPG", "a.png", "z/2.webp", "z/1.tiff", "c/deep/er/x.gif", "notes.txt", "jpg",
        "a.jpg.part", ".hidden.jpg", ".git/a.jpg", "z/.thumbs/b.jpg",
    )  # fmt: skip
    alone = made(tmp_path, "notes.txt", "no suffix") / "notes.txt"
    found = list(find_images([alone, folder, folder / ".hidden.jpg", folder / "z"]))
    names = ["a.png", "b.JPG", "c/deep/er/x.gif", "z/1.tiff", "z/2.webp"]
    assert found == [
        alone,
        *(folder / name for name in names),
        folder / ".hidden.jpg",
        *(folder / n for n in names[3:]),
    ]
    skipped = "skipped files whose suffix is not that of an image (number by suffix)"
    assert caplog.messages == [f"{folder}: {skipped}: 1 .part, 1 without a suffix, 1 .txt"]
    assert list(find_images([])) == list(find_images([made(tmp_path / "none", "a.txt")])) == []


def test_an_image_that_mlimages_wrote_into_a_folder_is_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made(tmp_path, "a.png")
    sheet = tmp_path / "sheet.png"
    write_text_output(sheet, "")
    assert list(find_images([tmp_path, sheet])) == [tmp_path / "a.png", sheet]
    assert caplog.messages == [f"{tmp_path}: skipped images that mlimages wrote: 1"]


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_each_suffix_of_an_image_is_found_in_upper_and_lower_case(tmp_path: Path, suffix: str) -> None:
    made(tmp_path, f"a{suffix}", f"b{suffix.upper()}", f"c{suffix}x")
    assert [path.name for path in find_images([tmp_path])] == [f"a{suffix}", f"b{suffix.upper()}"]


def of(path: Path, *labels: int, known: bool | None = None, several: bool = False) -> Prediction:
    """A prediction of these classes, or of the first one of them alone."""
    scores = tuple(ClassScore(NAMES[label], label, 0.9 - label / 10) for label in labels)
    return Prediction(str(path), scores, labels=scores if several else None, known=known)


def copied(results: Sequence[Prediction | BrokenImage], out: Path) -> dict[str, bytes]:
    assert list(copy_by_class(results, out, class_names=NAMES)) == list(results), "each is passed on"
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_an_image_is_copied_to_the_folder_of_its_most_probable_class_or_of_each_label(tmp_path: Path) -> None:
    made(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "broken.jpg")
    results = [
        of(tmp_path / "a.jpg", 1, 0),
        of(tmp_path / "b.jpg", 0, known=True),
        of(tmp_path / "c.jpg", 0, known=False),
        of(tmp_path / "d.jpg", 0, 1, several=True),
        of(tmp_path / "e.jpg", several=True),
        BrokenImage(str(tmp_path / "broken.jpg"), Fault.CORRUPT, "damaged"),
        Prediction(None, (ClassScore("cats", 0, 0.9),)),  # of no file
    ]
    assert copied(results, tmp_path / "out") == {
        "dogs/a.jpg": b"a.jpg", "cats/b.jpg": b"b.jpg", "unknown/c.jpg": b"c.jpg", "cats/d.jpg": b"d.jpg",
        "dogs/d.jpg": b"d.jpg", "unknown/e.jpg": b"e.jpg",
    }  # fmt: skip


def test_images_of_one_name_are_numbered_and_the_same_image_is_copied_once(tmp_path: Path) -> None:
    made(tmp_path, "a/1.jpg", "b/1.jpg", "c/1.jpg")
    same = tmp_path / "d" / "1.jpg"
    same.parent.mkdir()
    same.write_bytes(b"b/1.jpg")
    results = [of(tmp_path / folder / "1.jpg", 0) for folder in ("a", "b", "c", "d", "a")]
    expected = {"cats/1.jpg": b"a/1.jpg", "cats/1-2.jpg": b"b/1.jpg", "cats/1-3.jpg": b"c/1.jpg"}
    for _ in range(2):  # a second time nothing is added
        assert copied(results, tmp_path / "out") == expected


def test_what_has_the_name_of_a_copy_is_left_alone_be_it_a_link_or_a_folder(tmp_path: Path) -> None:
    made(tmp_path, "a.jpg", "b.jpg", "c.jpg", "kept.jpg")
    out = tmp_path / "out/cats"
    (out / "b.jpg").mkdir(parents=True)
    (out / "a.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    (out / "c.jpg").symlink_to(tmp_path / "c.jpg")
    found = copied([of(tmp_path / f"{name}.jpg", 0) for name in "abc"], tmp_path / "out")
    assert {name for name in found if not (tmp_path / "out" / name).is_symlink()} == {
        "cats/a-2.jpg", "cats/b-2.jpg", "cats/c-2.jpg",
    }  # fmt: skip
    assert not (tmp_path / "elsewhere.jpg").exists()
    assert (out / "a.jpg").is_symlink()


def test_a_copy_that_does_not_fit_on_the_disk_is_named_and_leaves_nothing_so_that_it_can_be_repeated(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.jpg").write_bytes(bytes(30_000))
    results, target = [of(tmp_path / "a.jpg", 0)], tmp_path / "out/cats/a.jpg"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=re.escape(str(target))):
            list(copy_by_class(results, tmp_path / "out", class_names=NAMES))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(target.parent.iterdir()) == []
    list(copy_by_class(results, tmp_path / "out", class_names=NAMES))
    assert list(target.parent.iterdir()) == [target]


def test_a_copy_does_not_replace_one_that_another_process_makes_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def write_second(path: Path) -> Iterator[Path]:
        with atomic_write(path) as part:
            if path.name == "a.jpg":
                path.write_bytes(b"of another process")
            yield part

    made(tmp_path, "a.jpg")
    monkeypatch.setattr(image_files, "atomic_write", write_second)
    assert copied([of(tmp_path / "a.jpg", 0)], tmp_path / "out") == {
        "cats/a.jpg": b"of another process", "cats/a-2.jpg": b"a.jpg",
    }  # fmt: skip


def test_images_are_copied_to_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    made(tmp_path, "a.jpg")
    monkeypatch.setattr(os, "link", refuse)
    assert copied([of(tmp_path / "a.jpg", 0)], tmp_path / "out") == {"cats/a.jpg": b"a.jpg"}
