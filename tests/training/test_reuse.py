"""What was decoded once is not decoded again: by the next check, split, mean and run."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from mlimages.checks import check
from mlimages.core import ImageProperty, NoProgress
from mlimages.dataset import TrainingData
from mlimages.images import load_all_plugins
from mlimages.labels import LabelFile
from mlimages.training.array_store import ArrayStore, open_pixel_store
from mlimages.training.image_set import DecodableImage, decode_images
from tests.checks.test_validation import jpeg, scene
from tests.conftest import RunCli

PROP = ImageProperty(24)


@pytest.fixture
def labels(tmp_path: Path) -> LabelFile:
    """Two classes of six images, the last one cut, the first one doubled at lower quality."""
    lines = []
    for n in range(12):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(scene(n, width=90, height=60))[: 700 if n == 11 else None])
        lines.append(f"{n}.jpg {n % 2}\n")
    (tmp_path / "again.jpg").write_bytes(jpeg(scene(0, width=90, height=60), quality=60))
    (tmp_path / "labels.txt").write_text("".join([*lines, "again.jpg 0\n"]))
    (tmp_path / "labels_class_def.txt").write_text("0 even\n1 odd\n")
    return LabelFile(tmp_path / "labels.txt")


_opened: list[str] | None = None


def _note(event: str, args: tuple[object, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(args[0]))


sys.addaudithook(_note)


@contextmanager
def images_opened(labels: LabelFile) -> Iterator[set[str]]:
    """Collects the names of those images of the label file that Python opens meanwhile."""
    global _opened
    _opened, names = [], set[str]()
    try:
        yield names
    finally:
        names.update(item.path.name for item in labels if str(item.path) in _opened)
        _opened = None


def replace_in_place(path: Path, data: bytes) -> None:
    """Keep the file's size and time, as `rsync --inplace -t` and `cp -p` do."""
    before = path.stat()
    path.write_bytes(data.ljust(before.st_size, b"\0"))
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def decoded(labels: LabelFile, store: ArrayStore | None) -> tuple[list[DecodableImage], list[str]]:
    """As finetune does: the images, and the names of those that are broken."""
    found = decode_images(list(labels), PROP, store=store, progress=NoProgress())
    good = [each for each in found if isinstance(each, DecodableImage)]
    return good, [Path(each.path).name for each in found if not isinstance(each, DecodableImage)]


def test_a_split_after_a_check_reads_no_image(labels: LabelFile, tmp_path: Path, run_cli: RunCli) -> None:
    groups = check([labels]).duplicate_groups
    assert [sorted(path.name for path in group) for group in groups] == [["0.jpg", "again.jpg"]]
    with images_opened(labels) as opened:
        assert check([labels]).duplicate_groups == groups
    assert opened == set()
    run_cli("label", "labels.txt", "--split", "0.5,0.5")
    parts = [(tmp_path / f"labels_{part}.txt").read_text() for part in ("train", "val")]
    assert [("\n0.jpg " in f"\n{part}") == ("again.jpg" in part) for part in parts] == [True, True]


def test_a_second_mean_reads_no_image_nor_does_that_of_each_class(labels: LabelFile, tmp_path: Path) -> None:
    first = TrainingData(labels, PROP).make_mean_image(tmp_path / "mean.png", per_class=True)
    with images_opened(labels) as opened:
        again = TrainingData(labels, PROP).make_mean_image(tmp_path / "mean.png", per_class=True)
    assert opened == set()
    assert (again.mean == first.mean).all()
    assert (again.num_images, [one.fault for one in again.broken_images]) == (12, ["truncated"])
    assert {label: mean.tolist() for label, mean in again.class_means.items()} == {
        label: mean.tolist() for label, mean in first.class_means.items()
    }


def test_what_check_has_decoded_a_run_does_not_read_again(labels: LabelFile) -> None:
    check([labels])
    good, _ = decoded(labels, open_pixel_store(PROP))
    for store in (None, open_pixel_store(PROP)):
        with images_opened(labels) as opened:
            again = decoded(labels, store)
        assert opened == {"11.jpg"}  # it could not be decoded
        assert again == (good, ["11.jpg"])
    (first,) = [item.path for item in labels if item.path.name == "0.jpg"]
    replace_in_place(first, b"")
    assert decoded(labels, None)[1] == ["0.jpg", "11.jpg"]


def test_a_file_replaced_with_its_size_and_time_kept_is_not_trained_on_as_it_was(tmp_path: Path) -> None:
    for n in range(4):
        Image.new("RGB", (40, 30), (20,) * 3).save(tmp_path / f"{n}.bmp")
    (tmp_path / "labels.txt").write_text("".join(f"{n}.bmp {n % 2}\n" for n in range(4)))
    (tmp_path / "labels_class_def.txt").write_text("0 even\n1 odd\n")
    labels, store = LabelFile(tmp_path / "labels.txt"), open_pixel_store(PROP)
    check([labels])

    def levels() -> tuple[float, list[int]]:
        found = decode_images(list(labels), PROP, store=store, progress=NoProgress())
        digests = [each.digest for each in found if isinstance(each, DecodableImage)]
        mean = TrainingData(labels, PROP).make_mean_image(tmp_path / "mean.png").mean
        return float(mean.mean()), [int(store.read_rows([digest]).max()) for digest in digests]

    assert levels() == (20, [20] * 4)
    bright = io.BytesIO()
    Image.new("RGB", (40, 30), (220,) * 3).save(bright, "BMP")
    replace_in_place(tmp_path / "2.bmp", bright.getvalue())
    assert levels() == (70, [20, 20, 220, 20])


def test_a_mean_does_not_remember_what_could_not_be_read(
    labels: LabelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_all_plugins()
    out = io.BytesIO()
    Image.new("RGB", (40, 30)).save(out, "HEIF")
    (tmp_path / "0.jpg").write_bytes(out.getvalue())
    with monkeypatch.context() as without_heic:
        without_heic.delitem(Image.OPEN, "HEIF")
        without_heic.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
        first = TrainingData(labels, PROP).make_mean_image(tmp_path / "mean.png")
    assert [one.fault for one in first.broken_images] == ["unreadable", "truncated"]
    again = TrainingData(labels, PROP).make_mean_image(tmp_path / "mean.png")
    assert [one.fault for one in again.broken_images] == ["truncated"]
    assert again.num_images == first.num_images + 1
