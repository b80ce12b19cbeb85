"""`mlimages augment`: rotated and flipped copies of images, as arrays or as a folder."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mlimages import ImageProperty, LabelFile, augment
from mlimages.cli.main import app
from mlimages.core import InputError
from mlimages.dataset.augment_summary import Format
from mlimages.dataset.augmentation import View, make_views, render_views
from mlimages.images import load_pixels
from tests.conftest import RunCli, fork_server


def colour_of(number: int) -> tuple[int, int, int]:
    return number * 5, 255 - number * 3, 100


@pytest.fixture
def labels(tmp_path: Path) -> LabelFile:
    """Twelve cats and eight dogs, each image in a colour of its own."""
    lines = []
    for number in range(20):
        path = tmp_path / "photos" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), colour_of(number)).save(path)
        lines.append(f"photos/{number}.png {int(number >= 12)}\n")
    (tmp_path / "labels.txt").write_text("".join(lines))
    (tmp_path / "labels_class_def.txt").write_text("0 cats\n1 dogs\n")
    return LabelFile(tmp_path / "labels.txt")


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def colours(x: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(value) for value in row[10, 10]) for row in x}


def test_the_original_comes_first_then_every_angle_each_with_its_flipped_copy() -> None:
    views = make_views(range(-30, 30, 6), flip=True)
    assert len(views) == 20
    assert views[:3] == (View(0, False), View(0, True), View(-30, False))
    assert {view.angle_deg for view in views} == {-30, -24, -18, -12, -6, 0, 6, 12, 18, 24}
    assert make_views([10], flip=False) == (View(0), View(10))


def test_rotation_is_counterclockwise_and_flipping_is_left_to_right() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    original, rotated, flipped = render_views(pixels, [View(), View(90), View(0, True)])
    assert np.array_equal(original, pixels)
    assert np.array_equal(rotated, np.rot90(pixels))
    assert np.array_equal(flipped, pixels[:, ::-1])


@pytest.mark.parametrize("shape", [(20, 30, 3), (31, 20, 1), (1, 1, 3)])
def test_rotation_leaves_no_empty_corner_whatever_the_shape(shape: tuple[int, int, int]) -> None:
    white = np.full(shape, 255, dtype=np.uint8)
    for view in render_views(white, make_views([45, 7.5], flip=True)):
        assert view.shape == shape
        assert (view == 255).all()


def test_no_copy_of_a_held_out_image_is_in_the_training_split_and_the_split_is_that_of_label(
    labels: LabelFile, tmp_path: Path, run_cli: RunCli
) -> None:
    options = ["--split", "0.75,0.25", "--seed", "1"]
    run_cli("augment", "labels.txt", "-o", "a.npz", "--size", "20", "--rotate", "-30:30:6", "--flip", *options)
    found = arrays(tmp_path / "a.npz")
    assert found["x_train"].shape == (15 * 20, 20, 20, 3)
    assert found["x_val"].shape == (5, 20, 20, 3)
    assert [part.dtype for part in (found["x_train"], found["y_train"])] == [np.uint8, np.int64]
    assert np.bincount(found["y_val"]).tolist() == [3, 2]
    assert found["class_names"].tolist() == ["cats", "dogs"]
    train, val = colours(found["x_train"]), colours(found["x_val"])
    assert not train & val
    assert train | val == {colour_of(number) for number in range(20)}
    run_cli("label", "labels.txt", "-o", "l.txt", *options)
    assert val == {colour_of(int(item.path.stem)) for item in LabelFile(tmp_path / "l_val.txt")}


def test_original_rows_are_the_pixels_that_the_network_gets(labels: LabelFile, tmp_path: Path) -> None:
    size = ImageProperty(24, 16)
    augment(labels, tmp_path / "a.npz", image_property=size, angles_deg=[10], flip=True, seed=3)
    found = arrays(tmp_path / "a.npz")
    for row, label, item in zip(found["x"][::4], found["y"][::4], labels.shuffle(3), strict=True):
        assert np.array_equal(row, load_pixels(item.path, size))
        assert label == item.label


def test_the_rows_are_shuffled_and_the_same_seed_gives_the_same_bytes(labels: LabelFile, tmp_path: Path) -> None:
    for name, seed in (("a.npz", 1), ("again.npz", 1), ("other.npz", 2)):
        augment(labels, tmp_path / name, image_property=ImageProperty(8), seed=seed)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    assert (tmp_path / "a.npz").read_bytes() != (tmp_path / "other.npz").read_bytes()
    y = arrays(tmp_path / "a.npz")["y"]
    assert (np.diff(y) < 0).any(), "sorted by class"


def test_a_broken_image_is_skipped_and_listed(labels: LabelFile, tmp_path: Path, run_cli: RunCli) -> None:
    for number in range(2):
        (tmp_path / f"broken{number}.png").write_bytes(b"<!doctype html>")
    labels.path.write_text(labels.path.read_text() + "broken0.png 0\nbroken1.png 0\n")
    done = run_cli("augment", "labels.txt", "-o", "a.npz", "--size", "8", "--flip", "--json")
    summary = json.loads(done.stdout)
    assert [part["rows"] for part in summary["parts"]] == [40]
    assert [row["fault"] for row in summary["broken"]] == ["not-an-image"] * 2
    assert "broken0.png: not-an-image" in done.stderr
    found = arrays(tmp_path / "a.npz")
    assert len(found["x"]) == len(found["y"]) == 40


def test_the_npy_files_hold_what_the_npz_holds_and_can_be_mapped(labels: LabelFile, tmp_path: Path) -> None:
    for name, format in (("a.npz", "npz"), ("folder", "npy")):
        augment(labels, tmp_path / name, image_property=ImageProperty(8), split=(0.5, 0.25, 0.25), format=format)  # type: ignore[arg-type]
    found = arrays(tmp_path / "a.npz")
    assert {f"{name}.npy" for name in found} == {path.name for path in (tmp_path / "folder").iterdir()}
    assert set(found) == {"class_names", *(f"{axis}_{part}" for axis in "xy" for part in ("train", "val", "test"))}
    for name, values in found.items():
        mapped = np.load(tmp_path / "folder" / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        assert np.array_equal(mapped, values)


def test_a_folder_of_images_holds_the_same_pixels_with_label_files(labels: LabelFile, tmp_path: Path) -> None:
    for out, format in (("a.npz", "npz"), ("folder", "folder")):
        augment(
            labels, tmp_path / out, image_property=ImageProperty(20), angles_deg=range(-30, 30, 6), flip=True,
            split=(0.75, 0.25), seed=1, format=format,  # type: ignore[arg-type]
        )  # fmt: skip
    found = arrays(tmp_path / "a.npz")
    for part in ("train", "val"):
        listed = LabelFile(tmp_path / "folder" / f"{part}.txt")
        assert listed.class_names == ("cats", "dogs")
        items = list(listed)
        assert [item.label for item in items] == found[f"y_{part}"].tolist()
        for item, row in zip(items, found[f"x_{part}"], strict=True):
            assert item.path.parent == tmp_path / "folder" / part / listed.class_names[item.label]
            assert np.array_equal(np.asarray(Image.open(item.path)), row)


def test_a_class_name_cannot_lead_out_of_the_folder(labels: LabelFile, tmp_path: Path) -> None:
    (tmp_path / "labels_class_def.txt").write_text("0 ../../../away\n1 ..\n")
    summary = augment(labels, tmp_path / "deep" / "folder", image_property=ImageProperty(8), format="folder")
    assert summary.notes == ("folders whose name differs from the class name: ../../../away as _.._.._away, .. as _",)
    written = [path for path in tmp_path.rglob("*.png") if path.parent != tmp_path / "photos"]
    assert len(written) == 20
    assert all(path.is_relative_to(tmp_path / "deep" / "folder" / "images") for path in written)


FORMATS = pytest.mark.parametrize("format", ["npz", "npy", "folder"])


@FORMATS
def test_where_no_image_can_be_decoded_earlier_output_stays(labels: LabelFile, tmp_path: Path, format: Format) -> None:
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    out = tmp_path / "made" / "a.npz"
    out.parent.mkdir()
    if format == "npz":
        out.write_text("as it was")
    with pytest.raises(InputError, match=r"no image of .* can be decoded"):
        augment(labels, out, image_property=ImageProperty(8), format=format, overwrite=True)
    assert [path.name for path in out.parent.iterdir()] == (["a.npz"] if format == "npz" else [])
    assert format != "npz" or out.read_text() == "as it was"


def test_a_folder_without_an_image_that_can_be_decoded_is_named_itself(tmp_path: Path) -> None:
    (tmp_path / "photos/cats").mkdir(parents=True)
    (tmp_path / "photos/cats/a.png").write_bytes(b"")
    with pytest.raises(InputError) as raised:
        augment(tmp_path / "photos", tmp_path / "a.npz", image_property=ImageProperty(8))
    folder = tmp_path / "photos"
    assert str(raised.value) == f"no image of {folder} can be decoded: see `mlimages check {folder}`"


@FORMATS
def test_an_existing_folder_is_left_alone(labels: LabelFile, tmp_path: Path, format: Format) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        augment(labels, tmp_path / "full", image_property=ImageProperty(8), format=format)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("out", ["a.npz", "folder"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_leaves_no_output(labels: LabelFile, tmp_path: Path, how: signal.Signals, out: str) -> None:
    labels.path.write_text(labels.path.read_text() * 200)
    words = ["-m", "mlimages", "augment", "labels.txt", "-o", f"made/{out}", "--size", "300"]
    child = fork_server().start(words, tmp_path, os.environ, torch=False)
    while not any(path.is_file() for path in tmp_path.glob("made/.*/**/*")):
        os.kill(child.pid, 0)  # an error if it has ended
    os.kill(child.pid, how)
    done = child.communicate()
    left = [path.name for path in (tmp_path / "made").iterdir()]
    assert out not in left
    if how == signal.SIGINT:
        assert done.returncode == 130
        assert left == []


PEAKS = """
import resource, sys
from mlimages import ImageProperty, LabelFile, augment
options = {"angles_deg": range(-30, 30, 6), "flip": True, "overwrite": True}
for labels in sys.argv[2:]:
    augment(LabelFile(labels), sys.argv[1], image_property=ImageProperty(200), **options)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_number_of_images(labels: LabelFile, tmp_path: Path) -> None:
    four_times = labels.path.with_name("four_times.txt")
    four_times.write_text(labels.path.read_text() * 4)
    command = [sys.executable, "-c", PEAKS, tmp_path / "a.npz", labels.path, four_times]
    peaks_mib = list(map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))
    assert (tmp_path / "a.npz").stat().st_size > 180 << 20
    assert peaks_mib[1] - peaks_mib[0] < 20, f"{peaks_mib} MiB for 46 and 183 MiB of arrays"


@pytest.mark.parametrize(
    "wrong",
    ["--rotate 30", "--rotate 0:9:0", "--rotate 0:9999:1", "--as zip", "--split half", "--split 0.5,0.2"],
)
def test_an_invalid_option_is_a_usage_error(labels: LabelFile, wrong: str) -> None:
    option, value = wrong.split()
    words = ["augment", str(labels.path), "-o", str(labels.img_root / "a.npz"), "--size", "8", option, value]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert option in done.stderr


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        *(({"split": shares}, InputError, "split fractions") for shares in ((0.5, 0.2), (0.25,) * 4, (1.5, -0.5))),
        ({"split": 0.8}, TypeError, r"split=0.8: expected a list of fractions that add up to 1, such as \(0.8, 0.2\)"),
        ({"format": "zip"}, InputError, "format is 'zip': it must be one of npz, npy, folder"),
    ],
)
def test_invalid_arguments_are_an_error_before_any_work(
    labels: LabelFile, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        augment(labels, tmp_path / "a.npz", image_property=ImageProperty(8), **options)
    assert not (tmp_path / "a.npz").exists()


def test_paths_of_every_kind_and_a_single_angle_are_taken(labels: LabelFile, tmp_path: Path) -> None:
    image = ImageProperty(8)
    augment(labels, tmp_path / "a.npz", image_property=image, angles_deg=[10])
    for source, out in [(str(labels.path), str(tmp_path / "b.npz")), (labels.path, tmp_path / "c.npz")]:
        summary = augment(source, out, image_property=image, angles_deg=10)
        assert Path(out).read_bytes() == (tmp_path / "a.npz").read_bytes()
        assert repr(summary) == f"AugmentSummary({str(out)!r}, all: 40 images from 20 originals, 0 broken)"


@pytest.mark.parametrize("angles", [(10.00001, 10.00002), (1e-9, 2e-9), (123456.1, 123456.2), (10, 10.0, -10)])
def test_each_copy_in_a_folder_has_a_file_of_its_own(
    labels: LabelFile, tmp_path: Path, angles: tuple[float, ...]
) -> None:
    augment(labels, tmp_path / "out", image_property=ImageProperty(8), angles_deg=angles, flip=True, format="folder")
    written = list(LabelFile(tmp_path / "out/labels.txt"))
    assert len(written) == 2 * 20 * (1 + len(set(angles)))
    assert {item.path for item in written} == set((tmp_path / "out/images").rglob("*.png"))
    assert len({item.path for item in written}) == len(written)
