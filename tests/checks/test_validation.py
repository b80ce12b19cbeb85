"""One pass finds what is broken, doubled, leaking or odd, and says so with a stable code."""

import errno
import fcntl
import os
import random
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from mlimages.checks import (
    ERROR_CODES,
    CheckReport,
    Code,
    Thresholds,
    check,
    find_decodable_images,
    near_duplicates,
    run_checks,
    split_labels,
    write_results,
)
from mlimages.checks.cache import CheckCache, ExaminedImage
from mlimages.checks.image_table import ImageTable
from mlimages.checks.leaks import find_duplicate_groups
from mlimages.checks.measurements import make_measurement_table, measure_image
from mlimages.core import ImageError, LabeledPath, LabelFileError, NoProgress, as_path
from mlimages.images import load_rgb
from mlimages.labels import LabelFile, formats, label_file, read_paths, write_label_file
from tests.checks.leaks import false_groups, found_share, plant_leaks
from tests.images.odd_images import saved


def scene(seed: int, *, width: int = 300, height: int = 200) -> Image.Image:
    """An image with the spectrum of a photograph: large shapes, fewer small ones, fine grain."""
    rng = np.random.default_rng(seed)
    layers = np.zeros((height, width, 3))
    for cells, strength in ((3, 90), (8, 50), (30, 30), (100, 25)):
        for channel in range(3):
            cell = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
            layers[:, :, channel] += strength * np.asarray(cell.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(layers + 125 + rng.normal(0, 4, layers.shape), 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    return saved(image, "JPEG", **{"quality": 88, **options})


def listed(folder: Path, images: dict[str, bytes], *, name: str = "labels.txt", label: int = 0) -> Path:
    """Write images and a label file that lists them."""
    for image, data in images.items():
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).write_bytes(data)
    write_label_file(folder / name, [LabeledPath(folder / image, label) for image in images], ["things"])
    return folder / name


def codes(report: CheckReport) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for one in report.findings:
        found.setdefault(one.path.name, set()).add(one.code)
    return found


def of_one(folder: Path, data: bytes, name: str = "a.jpg", **lines: float) -> set[str]:
    report = check([listed(folder, {name: data})], thresholds=Thresholds(**lines))  # type: ignore[arg-type]
    return codes(report).get(name, set())


def test_a_sound_image_has_no_code(tmp_path: Path) -> None:
    assert of_one(tmp_path, jpeg(scene(1))) == set()


def test_broken_files_have_their_codes_and_stop_nothing(tmp_path: Path) -> None:
    whole = jpeg(scene(1))
    labels = listed(tmp_path, {
        "empty.jpg": b"", "html.jpg": b"<!doctype html>", "cut.jpg": whole[: len(whole) // 2], "good.jpg": whole,
    })  # fmt: skip
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with labels.open("a") as out:
        out.write("none.jpg 0\ndangling.jpg 0\npipe.jpg 0\n")
    report = check([labels])
    assert codes(report) == {
        "empty.jpg": {"empty"}, "html.jpg": {"not-an-image"}, "cut.jpg": {"truncated"}, "none.jpg": {"missing"},
        "dangling.jpg": {"missing"}, "pipe.jpg": {"unreadable"},
    }  # fmt: skip
    assert (report.num_images, report.num_ok) == (7, 1)
    assert all(one.code.is_error for one in report.findings)


def test_too_many_pixels_are_judged_from_the_header_and_from_the_cache(tmp_path: Path) -> None:
    labels = listed(tmp_path, {"a.jpg": jpeg(scene(1))})
    assert codes(check([labels], thresholds=Thresholds(max_pixels=50_000))) == {"a.jpg": {"too-many-pixels"}}
    assert codes(check([labels])) == {}
    assert codes(check([labels], thresholds=Thresholds(max_pixels=50_000))) == {"a.jpg": {"too-many-pixels"}}


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def deep() -> Image.Image:
    return Image.fromarray(np.asarray(scene(1).convert("L")).astype(np.uint16) * 257)


def see_through() -> Image.Image:
    image = scene(1).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 20, 20))
    return image


def grey_bottom() -> Image.Image:
    image = scene(1)
    image.paste((128, 128, 128), (0, 150, 300, 200))
    return image


def sheet() -> Image.Image:
    image = Image.new("RGB", (300, 200), (220, 220, 220))
    image.paste((90, 90, 90), (100, 80, 200, 110))
    return image


def levels(low: float, high: float) -> Image.Image:
    pixels = np.asarray(scene(1), dtype=np.float32) / 255 * (high - low) + low
    return Image.fromarray(pixels.astype(np.uint8))


WARNINGS = {
    Code.WRONG_SUFFIX: ("a.png", jpeg(scene(1))),
    Code.ROTATED: ("a.jpg", jpeg(scene(1), exif=exif(6))),
    Code.CMYK: ("a.jpg", jpeg(scene(1).convert("CMYK"))),
    Code.SIXTEEN_BIT: ("a.png", saved(deep(), "PNG")),
    Code.PALETTE: ("a.png", saved(scene(1).quantize(200), "PNG")),
    Code.TRANSPARENT: ("a.png", saved(see_through(), "PNG")),
    Code.GREY: ("a.jpg", jpeg(scene(1).convert("L").convert("RGB"))),
    Code.ANIMATED: ("a.gif", saved(scene(1), "GIF", save_all=True, append_images=[scene(2)])),
    Code.TINY: ("a.jpg", jpeg(scene(1).resize((30, 20)))),
    Code.ODD_SHAPE: ("a.jpg", jpeg(scene(1, width=700))),
    Code.CROP_LOSS: ("a.jpg", jpeg(scene(1, width=420))),
    Code.BLANK: ("a.jpg", jpeg(Image.new("RGB", (300, 200), (200, 30, 30)))),
    Code.DARK: ("a.jpg", jpeg(levels(0, 50))),
    Code.BRIGHT: ("a.jpg", jpeg(levels(228, 255))),
    Code.LOW_CONTRAST: ("a.jpg", jpeg(levels(110, 140))),
    Code.BLURRED: ("a.jpg", jpeg(scene(1, width=600, height=400).filter(ImageFilter.GaussianBlur(6)))),
    Code.GREY_BOTTOM: ("a.jpg", jpeg(grey_bottom())),
    Code.PLACEHOLDER: ("a.jpg", jpeg(sheet())),
}
COMPANIONS = {
    Code.SIXTEEN_BIT: {Code.GREY}, Code.ANIMATED: {Code.PALETTE}, Code.ODD_SHAPE: {Code.CROP_LOSS},
    Code.PLACEHOLDER: {Code.GREY, Code.BLURRED},
}  # fmt: skip


@pytest.mark.parametrize("code", WARNINGS, ids=str)
def test_each_oddity_has_its_code_and_is_kept(tmp_path: Path, code: Code) -> None:
    name, data = WARNINGS[code]
    found = of_one(tmp_path, data, name)
    assert code in found
    assert found - {code} <= COMPANIONS.get(code, set())
    assert not code.is_error


def test_a_turned_image_is_measured_upright_once_in_every_format(tmp_path: Path) -> None:
    upright, stored = scene(1), scene(1).transpose(Image.Transpose.ROTATE_90)
    want = measure_image(saved(upright, "PNG"), max_pixels=10**6)
    for form in ("PNG", "TIFF", "WEBP"):
        found = measure_image(
            saved(stored, form, exif=exif(6), **({"lossless": True} if form == "WEBP" else {})), max_pixels=10**6
        )
        assert (found.width, found.height, found.orientation) == (300, 200, 6), form
        thumbs = np.frombuffer(found.thumbnail + want.thumbnail, np.uint8).reshape(2, -1).astype(int)
        assert np.abs(thumbs[0] - thumbs[1]).max() <= 2, form


def test_a_png_with_one_flipped_bit_is_refused_as_it_is_where_it_is_loaded(tmp_path: Path) -> None:
    whole = saved(scene(1, width=60, height=40), "PNG")
    begin, end = whole.index(b"IDAT") + 6, whole.rindex(b"IEND") - 8
    images = {}
    for number, at in enumerate(range(begin, end, (end - begin) // 60)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << number % 8
        images[f"{number}.png"] = bytes(flipped)
    report = check([listed(tmp_path, images)])
    assert sum(report.errors.values()) == len(images)
    for data in images.values():
        with pytest.raises(ImageError):
            load_rgb(data)


def edits(image: Image.Image) -> Iterable[tuple[str, bytes]]:
    width, height = image.size
    yield "reencoded", jpeg(image, quality=40)
    yield "webp", saved(image, "WEBP", quality=70)
    yield "half", saved(image.resize((width // 2, height // 2)), "PNG")
    yield "cropped", jpeg(image.crop((3, 2, width - 3, height - 2)))
    yield "cut off", jpeg(image.crop((0, 0, width * 24 // 25, height * 24 // 25)))
    yield "brighter", jpeg(ImageEnhance.Brightness(image).enhance(1.15))
    yield "turned", jpeg(image.transpose(Image.Transpose.ROTATE_90), exif=exif(6))
    yield "grey", jpeg(image.convert("L"))


def test_edited_copies_are_found_and_different_images_are_not(tmp_path: Path) -> None:
    images = {f"{n}.jpg": jpeg(scene(n)) for n in range(60)}
    copies = {f"{n}_{name}.jpg": data for n in (3, 17) for name, data in edits(scene(n))}
    report = check([listed(tmp_path, images | copies)])
    groups = [{path.stem.split("_")[0] for path in group} for group in report.duplicate_groups]
    assert groups == [{"3"}, {"17"}]
    assert [len(group) for group in report.duplicate_groups] == [9, 9]
    assert report.warnings["near-duplicate"] == 16


def test_the_same_bytes_are_a_duplicate_under_one_label_and_an_error_under_two(tmp_path: Path) -> None:
    labels = listed(tmp_path, {"a.jpg": jpeg(scene(1)), "again.jpg": jpeg(scene(1)), "b.jpg": jpeg(scene(2))})
    assert codes(check([labels])) == {"again.jpg": {"duplicate"}}
    labels.write_text("a.jpg 0\nagain.jpg 1\nb.jpg 1\n")
    (tmp_path / "labels_class_def.txt").write_text("0 a\n1 b\n")
    report = check([labels])
    assert codes(report) == {"a.jpg": {"same-picture-two-labels"}, "again.jpg": {"same-picture-two-labels"}}
    assert [item.path.name for item in report.exclude_errors()] == ["b.jpg"]


def test_a_near_duplicate_in_another_class_says_so(tmp_path: Path) -> None:
    images = {"a.jpg": jpeg(scene(1)), "a2.jpg": jpeg(scene(1), quality=60), "b.jpg": jpeg(scene(1), quality=50)}
    labels = listed(tmp_path, images)
    (tmp_path / "labels_class_def.txt").write_text("0 cat\n1 dog\n")
    labels.write_text("a.jpg 0\na2.jpg 0\nb.jpg 1\n")
    report = check(labels)
    two = "near-duplicate-two-labels"
    assert codes(report) == {"a.jpg": {two}, "a2.jpg": {two, "near-duplicate"}, "b.jpg": {two}}
    details = [one.detail for one in report.findings.select({Code.NEAR_TWO_LABELS})]
    other, own = (
        f"nearly the same as {tmp_path / 'b.jpg'} of class dog",
        f"nearly the same as {tmp_path / 'a.jpg'} of class cat",
    )
    assert details == [other, other, own]
    assert len(list(report.exclude_errors())) == 3


@pytest.mark.parametrize("with_names", [True, False])
def test_classes_of_several_files_are_compared_by_name(tmp_path: Path, with_names: bool) -> None:
    """The val file lacks the class `ant`: number 0 is `bee` there and 1 in the train file."""
    images = {f"{n}.jpg": jpeg(scene(n)) for n in range(4)}
    train, val = listed(tmp_path, images, name="train.txt"), listed(tmp_path, {"v.jpg": jpeg(scene(1))}, name="val.txt")
    train.write_text("0.jpg 0\n1.jpg 1\n2.jpg 1\n3.jpg 0\n")
    (tmp_path / "train_class_def.txt").write_text("0 ant\n1 bee\n")
    (tmp_path / "val_class_def.txt").write_text("0 bee\n")
    if not with_names:
        (tmp_path / "val_class_def.txt").unlink()
    report = check([train, val])
    if with_names:
        assert report.errors == {"leak": 1}
        assert [[item.path.name for item in report.exclude_errors(n)] for n in (0, 1)] == [
            ["0.jpg", "2.jpg", "3.jpg"],
            ["v.jpg"],
        ]
        assert report.class_counts == {(0, "ant"): 2, (0, "bee"): 2, (1, "bee"): 1}
    else:  # then by number
        assert report.errors == {"leak": 1, "same-picture-two-labels": 2}
        assert report.class_counts == {(0, "ant"): 2, (0, "bee"): 2, (1, "ant"): 1}


@pytest.mark.parametrize("form", [str, Path, LabelFile, lambda path: [path], lambda path: iter([path])])
def test_one_label_file_is_taken_as_one(tmp_path: Path, form: Callable[[Path], Any]) -> None:
    labels = listed(tmp_path, {"a.jpg": jpeg(scene(1)), "b.jpg": jpeg(scene(2))[:900]})
    report = check(form(labels))
    assert repr(report) == f"<CheckReport of {labels}: 2 images, 1 ok; 1 truncated>"
    assert repr(report.findings) == "<1 Findings: 1 truncated>"


def test_little_digits_are_not_taken_for_each_other(tmp_path: Path) -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
    images = {}
    for number, levels in enumerate(datasets.load_digits().images[:300]):
        image = Image.fromarray((levels * 255 / 16).astype(np.uint8))
        images[f"{number}.png"] = saved(image.resize((28, 28), Image.Resampling.BICUBIC))
    assert check([listed(tmp_path, images)]).duplicate_groups == ()


def test_an_image_in_two_files_leaks_and_stays_in_the_smaller_one(tmp_path: Path) -> None:
    train = listed(tmp_path, {f"t{n}.jpg": jpeg(scene(n)) for n in range(6)}, name="train.txt")
    val = listed(tmp_path, {"v0.jpg": jpeg(scene(0)), "v1.jpg": jpeg(scene(1), quality=50)}, name="val.txt")
    report = check([train, val])
    assert codes(report) == {"t0.jpg": {"leak"}, "t1.jpg": {"leak"}}
    assert report.errors == {"leak": 2}
    assert [len(list(report.exclude_errors(file))) for file in (0, 1)] == [4, 2]


def test_findings_are_told_by_code_and_by_file_in_the_order_of_the_lines(tmp_path: Path) -> None:
    dark = jpeg(levels(0, 30))
    one = listed(tmp_path, {"a.jpg": dark, "b.jpg": b"", "c.jpg": jpeg(scene(2)), "d.jpg": b"text"}, name="one.txt")
    two = listed(tmp_path, {"e.jpg": b"", "f.jpg": jpeg(scene(3).point(lambda level: level // 8))}, name="two.txt")
    found = check([one, two], thresholds=Thresholds(blur=0)).findings
    broken = [(0, "b.jpg", "empty"), (0, "d.jpg", "not-an-image"), (1, "e.jpg", "empty")]
    assert [(each.file_index, each.path.name, each.code) for each in found.select(ERROR_CODES)] == broken
    assert [each.path.name for each in found.select({Code.DARK}, file_index=1)] == ["f.jpg"]
    assert [each.path.name for each in found] == ["a.jpg", "b.jpg", "d.jpg", "e.jpg", "f.jpg"]
    assert len(found) == 5


@pytest.mark.parametrize("lines", ["a.jpg 0\n", "new.jpg 0\na.jpg 0\nb.jpg 0\n", "a.jpg 0\nb.jpg 0\nnew.jpg 0\n"])
def test_a_label_file_that_lost_or_got_lines_since_its_check_is_named(tmp_path: Path, lines: str) -> None:
    labels = listed(tmp_path, {"a.jpg": jpeg(scene(1)), "b.jpg": b""})
    report = check([labels])
    labels.write_text(lines)
    with pytest.raises(LabelFileError, match=r"labels\.txt has changed since the check began"):
        list(report.findings)


@pytest.mark.parametrize("as_source", [str, as_path, lambda path: [as_path(path)]])
def test_remote_images_are_decoded_only_once(
    as_source: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"memory://{tmp_path.name}"
    for number in range(3):
        as_path(f"{source}/cats/{number}.jpg").write_bytes(jpeg(scene(number)))
    assert check(as_source(source)).num_ok == 3
    monkeypatch.setattr(run_checks, "measure_image", None)
    assert check(as_source(source)).num_ok == 3
    as_path(f"{source}/cats/0.jpg").write_bytes(jpeg(scene(3)))
    with pytest.raises(TypeError):
        check(as_source(source))


def test_a_file_that_turns_up_many_times_is_a_placeholder(tmp_path: Path) -> None:
    for image in (scene(1), sheet()):  # the second looks like one by itself, and is named once all the same
        report = check([listed(tmp_path, {f"{n}.jpg": jpeg(image) for n in range(5)})])
        assert (report.warnings["duplicate"], report.warnings["placeholder"]) == (4, 5)
        seen = [one.detail for one in report.findings if one.code == Code.PLACEHOLDER]
        assert seen == [f"the same as {tmp_path / name}" for name in ("4.jpg", *["0.jpg"] * 4)]


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts what is really decoded from here on."""
    seen: list[int] = []
    measure_image = run_checks.measure_image

    def counting(data: bytes, *, max_pixels: int) -> object:
        seen.append(len(data))
        return measure_image(data, max_pixels=max_pixels)

    monkeypatch.setattr(run_checks, "measure_image", counting)
    return seen


def test_a_second_check_decodes_nothing_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {f"{n}.jpg": jpeg(scene(n)) for n in range(9)} | {"bad.jpg": b"bad", "again.jpg": jpeg(scene(1))}
    labels = listed(tmp_path, images)
    first = check([labels])
    seen = decoded(monkeypatch)
    (tmp_path / "0.jpg").rename(tmp_path / "moved.jpg")
    labels.write_text(labels.read_text().replace("0.jpg", "moved.jpg"))
    os.utime(tmp_path / "1.jpg", (1, 1))
    second = check([labels])
    assert seen == []
    assert second.errors == first.errors
    assert second.warnings == first.warnings
    assert (second.measurements == first.measurements).all()
    (tmp_path / "2.jpg").write_bytes(jpeg(scene(99)))
    check([labels])
    assert len(seen) == 1


def replaced_with_size_and_time_kept(path: Path, data: bytes) -> None:
    """As `rsync -t` and `cp -p` do."""
    before = path.stat()
    assert len(data) == before.st_size
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_replaced_with_its_size_and_time_kept_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dark, bright = (saved(Image.new("RGB", (80, 60), (level,) * 3), "BMP") for level in (20, 200))
    labels = listed(tmp_path, {"a.bmp": dark, "b.bmp": dark})
    assert check([labels]).measurements["luma_median"].tolist() == [20, 20]
    replaced_with_size_and_time_kept(tmp_path / "b.bmp", bright)
    assert find_decodable_images([tmp_path / "a.bmp", tmp_path / "b.bmp"]).keys() == {tmp_path / "a.bmp"}
    assert check([labels]).measurements["luma_median"].tolist() == [20, 200]
    seen = decoded(monkeypatch)
    (tmp_path / "a.bmp").chmod(0o600)  # another change time, the same bytes
    assert check([labels]).measurements["luma_median"].tolist() == [20, 200]
    assert seen == []


def test_an_interrupted_check_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting(NoProgress):
        def advance(self, count: int = 1, **figures: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(run_checks, "MIN_BATCH_SIZE", 4)
    labels = listed(tmp_path, {f"{n}.jpg": jpeg(scene(n, width=60, height=40)) for n in range(10)})
    with pytest.raises(KeyboardInterrupt):
        check([labels], progress=Interrupting())
    seen = decoded(monkeypatch)
    assert check([labels]).num_images == 10
    assert len(seen) == 6


@pytest.mark.parametrize(
    "damaged", [lambda data: b"no database", lambda data: data[:5000], lambda data: bytes(len(data))]
)
def test_a_cache_that_is_broken_costs_only_the_time_of_one_check(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damaged: Callable[[bytes], bytes],
) -> None:
    labels = listed(tmp_path, {"a.jpg": jpeg(scene(1))})
    monkeypatch.setenv("MLIMAGES_CACHE", str(tmp_path / "cache"))
    check([labels])
    [path] = (tmp_path / "cache" / "checks").iterdir()
    path.write_bytes(data := damaged(path.read_bytes()))
    seen = decoded(monkeypatch)
    for _ in range(2):
        assert check([labels]).num_ok == 1
    assert len(seen) == 1
    assert caplog.text.count("the cache of `check` is damaged") == 1
    assert path.with_name(f"{path.name}.damaged").read_bytes() == data


def test_a_cache_on_a_file_system_without_locks_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    labels = listed(tmp_path, {"a.jpg": jpeg(scene(1))})
    monkeypatch.setenv("MLIMAGES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fcntl, "lockf", unsupported)
    assert check([labels]).num_ok == 1
    assert "its file system does not support locks; set MLIMAGES_CACHE to a folder on another one" in caplog.text
    assert not list((tmp_path / "cache" / "checks").iterdir())


def test_the_results_lie_beside_each_label_file(tmp_path: Path) -> None:
    labels = listed(
        tmp_path, {"a b.jpg": jpeg(scene(1)), "cut.jpg": jpeg(scene(2))[:900], "grey.jpg": jpeg(scene(3).convert("L"))}
    )
    write_results(check([labels]))
    kept = LabelFile(tmp_path / "labels_checked.txt")
    assert [item.path.name for item in kept] == ["a b.jpg", "grey.jpg"]
    assert kept.class_names == ("things",)
    rejected = (tmp_path / "labels_rejected.tsv").read_text().splitlines()
    assert rejected[0] == "path\tlabel\tcode\tdetail"
    assert rejected[1].startswith("cut.jpg\tthings\ttruncated\t")
    assert "grey.jpg\tthings\tgrey\t" in (tmp_path / "labels_warnings.tsv").read_text()


def test_writing_results_reads_a_label_file_no_more_often_for_more_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "labels.txt").write_text("".join(f"missing{n}.jpg 0\n" for n in range(50)))
    report = check([tmp_path / "labels.txt"])
    reads: list[Path] = []
    monkeypatch.setattr(label_file, "read_text_rows", lambda path: reads.append(path) or formats.read_text_rows(path))
    write_results(report)
    assert 0 < len(reads) < 10


def test_a_split_keeps_near_duplicates_on_one_side(tmp_path: Path) -> None:
    images = {f"{n}_{name}.jpg": data for n in range(12) for name, data in list(edits(scene(n)))[:3]}
    train, val = (
        [item.path.name.split("_")[0] for item in part]
        for part in split_labels(listed(tmp_path, images), [0.75, 0.25], seed=1)
    )
    assert len(val) == 9
    assert not set(train) & set(val)


def test_mirrored_and_turned_copies_are_found(tmp_path: Path) -> None:
    images = {f"{n}.jpg": jpeg(scene(n)) for n in range(30)}
    copies = {f"{turn.name}_{turn}.jpg": jpeg(scene(turn).transpose(turn), quality=50) for turn in Image.Transpose}
    report = check([listed(tmp_path, images | copies)])
    groups = {tuple(sorted(path.name for path in group)) for group in report.duplicate_groups}
    assert groups == {(f"{turn}.jpg", f"{turn.name}_{turn}.jpg") for turn in Image.Transpose}


@pytest.mark.realdata
def test_leaks_that_the_web_makes_are_found_without_a_false_one(test_data: Path, tmp_path: Path) -> None:
    """Of 198 a seed; crops are found by features only."""
    images = [path for folder in ("hymenoptera_data", "flowers5_small") for path in (test_data / folder).rglob("*.jpg")]
    real = {"17433282043_441b0a07f4_n", "22429946721_e17a12cb39_n", "7166567320_0a2beb6d42", "7166567320_0a2beb6d42_n"}
    for seed in (1, 3):
        (tmp_path / str(seed)).mkdir()
        plants = plant_leaks(sorted(images), tmp_path / str(seed), seed=seed)
        report = check([plants.train, plants.val])
        found = found_share(plants, report)
        assert {path.stem for group in false_groups(plants, report) for path in group} <= real
        assert min(found[kind] for kind in ("mirrored", "turned", "watermarked", "re-encoded")) > 0.9


def test_other_thresholds_are_not_answered_from_the_cache(tmp_path: Path) -> None:
    whole = scene(1, width=60, height=40)
    labels = listed(tmp_path, {"a.jpg": jpeg(whole), "b.jpg": jpeg(whole.crop((2, 1, 60, 40)))})
    found = [len(check([labels], thresholds=Thresholds(min_side_px=px)).duplicate_groups) for px in (32, 64, 32)]
    assert found == [1, 0, 1]


def made_up_table(count: int, tmp_path: Path) -> ImageTable:
    """One class, images that differ in their bytes alone."""
    listed = [LabeledPath(Path("a.jpg"), 0)] * count
    images = ImageTable.from_files([LabelFile(tmp_path / "all.txt", items=lambda: listed, class_names=("all",))])
    images.measurements[:] = make_measurement_table([measure_image(jpeg(scene(1)), max_pixels=10**6).pack()])
    images.digests[:, 1] = np.arange(1, count + 1)
    return images


def test_a_long_series_of_frames_is_one_group_compared_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compared = []
    alike = near_duplicates._are_near_duplicates
    monkeypatch.setattr(
        near_duplicates, "_are_near_duplicates", lambda *pair: compared.append(len(pair[0])) or alike(*pair)
    )
    with CheckCache() as cache:
        assert find_duplicate_groups(made_up_table(900, tmp_path), Thresholds(), cache).list_sets_of_several() == [
            list(range(900))
        ]
    assert sum(compared) < 2000


class MadeUp:
    """Examines nothing: every image has other measurements, bytes and one finding."""

    workers, chunk_size = 1, 64

    def __init__(self) -> None:
        self._measured = measure_image(jpeg(scene(1)), max_pixels=10**6)._replace(sharpness=0.2, thumbnail=b"")
        self._rng = np.random.default_rng(0)

    def map(self, function: object, items: Iterable[Sequence[str]]) -> Iterator[list[ExaminedImage]]:
        for paths in items:
            yield [
                ExaminedImage(self._rng.bytes(32), self._measured._replace(thumbnail=self._rng.bytes(256)).pack())
                for _ in paths
            ]


@pytest.mark.parametrize(
    ("workers", "chunk_size", "size"),
    [(1, 1, 4), (1, 64, 4), (1, 127, 4), (1, 128, 8), (2, 64, 8), (3, 64, 12), (4, 64, 16), (5, 64, 16), (99, 64, 16)],
)
def test_more_images_are_looked_up_at_once_for_more_workers_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, chunk_size: int, size: int
) -> None:
    advanced: list[int] = []

    class Noting(NoProgress):
        def advance(self, count: int = 1, **figures: object) -> None:
            advanced.append(count)

    assert (run_checks.MIN_BATCH_SIZE, run_checks.MAX_BATCH_SIZE) == (256, 16_384)
    monkeypatch.setattr(run_checks, "MIN_BATCH_SIZE", 4)
    monkeypatch.setattr(run_checks, "MAX_BATCH_SIZE", 16)
    pool = MadeUp()
    pool.workers, pool.chunk_size = workers, chunk_size
    (tmp_path / "labels.txt").write_text("".join(f"{number}.jpg 0\n" for number in range(50)))
    report = check([tmp_path / "labels.txt"], pool=pool, progress=Noting())
    assert advanced == [size] * (50 // size) + [50 % size] * (50 % size > 0)
    assert len({digest.tobytes() for digest in report.digests}) == 50


def test_a_check_takes_at_most_400_bytes_an_image(tmp_path: Path) -> None:
    count = 10_000
    (tmp_path / "labels.txt").write_text("".join(f"{number}.jpg 0\n" for number in range(count)))
    (tmp_path / "few.txt").write_text("0.jpg 0\n")
    check([tmp_path / "few.txt"], pool=MadeUp())  # what is loaded once
    tracemalloc.start()
    report = check([tmp_path / "labels.txt"], pool=MadeUp())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.warnings == {"blurred": count, "class-blurred": 1}
    assert peak < 400 * count + 3_000_000


@pytest.mark.realdata
def test_real_photographs_show_no_false_pair_and_their_real_ones(test_data: Path, tmp_path: Path) -> None:
    folders = ["hymenoptera_data/train", "hymenoptera_data/val", "flowers5_small/train", "imagenet_samples"]
    paths = [path for folder in folders for path in sorted((test_data / folder).rglob("*.[jJ]*"))]
    items = [LabeledPath(path, 0) for path in paths]
    report = check([LabelFile(tmp_path / "all.txt", items=lambda: items, class_names=("all",))])
    assert report.num_images == report.num_ok
    assert [sorted(path.name for path in group) for group in report.duplicate_groups] == [
        ["17433282043_441b0a07f4_n.jpg", "22429946721_e17a12cb39_n.jpg"],
        ["7166567320_0a2beb6d42.jpg", "7166567320_0a2beb6d42_n.jpg"],
    ]


@pytest.mark.parametrize(
    ("version", "in_header", "before_end"),
    [
        (1, b"", bytes(100)),
        (1, b"", b"\x20" * 50),
        (1, bytes(range(1, 60)), b""),
        (1, bytes(3), bytes(200)),
        (7, b"", b""),
    ],
    ids=["zeros before the end", "a run before the end", "bytes in the header", "bytes in both", "JFIF version"],
)
def test_a_jpeg_whose_pixels_are_whole_is_irregular_at_most(
    tmp_path: Path, version: int, in_header: bytes, before_end: bytes
) -> None:
    pytest.importorskip("simplejpeg", reason='needs pip install "mlimages[strict]"')
    whole = jpeg(scene(1), progressive=bool(in_header and before_end))
    end, table = whole.rindex(b"\xff\xd9"), whole.index(b"\xff\xdb")
    data = whole[:11] + bytes([version]) + whole[12:table] + in_header + whole[table:end] + before_end + whole[end:]
    assert (np.asarray(load_rgb(data)) == np.asarray(load_rgb(whole))).all()
    assert of_one(tmp_path, data) == {"irregular-jpeg"}
    assert of_one(tmp_path, whole + bytes(50)) == set()


def test_a_scan_that_ends_early_is_not_taken_for_padding(tmp_path: Path) -> None:
    simplejpeg = pytest.importorskip("simplejpeg", reason='needs pip install "mlimages[strict]"')
    rot, images = random.Random(1), {}
    while len(images) < 20:
        data = bytearray(jpeg(scene(1)))
        data[rot.randrange(1000, len(data) - 2)] ^= 1 << rot.randrange(8)
        try:
            simplejpeg.decode_jpeg(bytes(data))
        except ValueError:
            images[f"{len(images)}.jpg"] = bytes(data)
    assert sum(check([listed(tmp_path, images)]).errors.values()) == 20


def test_names_with_tabs_keep_their_column(tmp_path: Path) -> None:
    labels = listed(tmp_path, {"a\tb.jpg": b"no image"})
    write_results(check([labels]))
    assert list(read_paths(tmp_path / "labels_rejected.tsv")) == [tmp_path / "a\tb.jpg"]
