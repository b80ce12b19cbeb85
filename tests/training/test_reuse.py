"""What was decoded once is not decoded again: by the next check, split, mean and preflight."""

import os
from pathlib import Path

import pytest

from mlimages.checks import check, duplicate_groups
from mlimages.core import ImageProperty, NoProgress
from mlimages.dataset import TrainingData
from mlimages.labels import LabelFile
from mlimages.training import preflight
from mlimages.training.preparation import pixel_store
from mlimages.training.row_store import RowStore
from tests.checks.test_validation import jpeg, scene
from tests.conftest import RunCli

PROP = ImageProperty(24)


@pytest.fixture
def labels(tmp_path: Path) -> LabelFile:
    """Two classes of six pictures, the last one cut, the first one doubled at lower quality."""
    lines = []
    for n in range(12):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(scene(n, width=90, height=60))[: 700 if n == 11 else None])
        lines.append(f"{n}.jpg {n % 2}\n")
    (tmp_path / "again.jpg").write_bytes(jpeg(scene(0, width=90, height=60), quality=60))
    (tmp_path / "labels.txt").write_text("".join([*lines, "again.jpg 0\n"]))
    (tmp_path / "labels_class_def.txt").write_text("0 even\n1 odd\n")
    return LabelFile(tmp_path / "labels.txt")


def erase(labels: LabelFile) -> None:
    """Leave each file its size and its time, and nothing of its picture."""
    for item in labels:
        seen = item.path.stat()
        item.path.write_bytes(bytes(seen.st_size))
        os.utime(item.path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def looked_at(labels: LabelFile, store: RowStore | None) -> preflight.Data:
    """As finetune does, the last three pictures to validate on."""
    items, names = list(labels), labels.class_names
    return preflight.inspect(
        items[:10], items[10:], names, PROP, split=lambda found: (list(found), []), store=store, progress=NoProgress()
    )


def test_a_split_after_a_check_reads_no_picture(labels: LabelFile, tmp_path: Path, run_cli: RunCli) -> None:
    groups = {tuple(sorted(path.name for path in group)) for group in check([labels]).duplicate_groups}
    assert groups == {("0.jpg", "again.jpg")}
    erase(labels)
    assert set(duplicate_groups(item.path for item in labels)) == {tmp_path / "0.jpg", tmp_path / "again.jpg"}
    run_cli("label", "labels.txt", "--split", "0.5,0.5")
    parts = [(tmp_path / f"labels_{part}.txt").read_text() for part in ("train", "val")]
    assert [("\n0.jpg " in f"\n{part}") == ("again.jpg" in part) for part in parts] == [True, True]


def test_a_second_mean_reads_no_picture_nor_does_that_of_each_class(labels: LabelFile, tmp_path: Path) -> None:
    first = TrainingData(labels, PROP).make_mean_image(tmp_path / "mean.png", per_class=True)
    erase(labels)
    again = TrainingData(labels, PROP).make_mean_image(tmp_path / "mean.png", per_class=True)
    assert (again.mean == first.mean).all()
    assert (again.count, [one.fault for one in again.broken]) == (12, ["truncated"])
    assert {label: mean.tolist() for label, mean in again.by_class.items()} == {
        label: mean.tolist() for label, mean in first.by_class.items()
    }


def test_what_check_has_decoded_the_preflight_does_not_read_again(labels: LabelFile) -> None:
    check([labels])
    pixels = looked_at(labels, pixel_store(PROP))
    erase(labels)
    for store in (None, pixel_store(PROP)):
        again = looked_at(labels, store)
        assert (again.train, again.val) == (pixels.train, pixels.val)
        assert [Path(one.path).name for one in again.broken] == ["11.jpg"]
    os.utime(next(iter(labels)).path, (1, 1))
    assert [Path(one.path).name for one in looked_at(labels, None).broken] == ["0.jpg", "11.jpg"]
