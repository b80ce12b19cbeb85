"""The codes of single images and classes: which measurements have them, and what is said about them."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlimages.checks import Code, Thresholds, rules
from mlimages.checks.codes import CODES, MIN_IMAGES_FOR_MEDIAN
from mlimages.checks.image_table import ImageTable
from mlimages.checks.measurements import Measurements, make_measurement_table, measure_image
from mlimages.core import LabeledPath
from mlimages.labels import LabelFile
from tests.checks.test_validation import jpeg, scene

ORDINARY = measure_image(jpeg(scene(1)), max_pixels=10**6)
DARK = {"luma_p2": 0, "luma_p98": 60, "red_mean": 20, "green_mean": 21, "blue_mean": 63}
LINES = "{} % of the pixels have one of two gray levels: line art, or an object on a plain background"


def measurements_with(changes: dict[str, object]) -> Measurements:
    return ORDINARY._replace(**changes)  # type: ignore[arg-type]


def codes_of(changes: dict[str, object]) -> set[Code]:
    row = make_measurement_table([measurements_with(changes).pack()])
    return {code for code, rule in rules.RULES.items() if rule.compute_mask(row, Thresholds()).any()}


FACTS: list[tuple[dict[str, object], dict[Code, str]]] = [
    ({}, {}),
    ({"width": 20000, "height": 10000}, {Code.TOO_MANY_PIXELS: "20000 x 10000 is more than 89478485 pixels"}),
    ({"orientation": 8}, {Code.ROTATED: "EXIF orientation 8"}),
    ({"mode": "CMYK"}, {Code.CMYK: "converted to RGB without a colour profile"}),
    ({"mode": "I;16", "high_bit_depth": True}, {Code.SIXTEEN_BIT: "mode I;16: scaled to 8 bits"}),
    ({"mode": "P"}, {Code.PALETTE: "at most 256 colours"}),
    ({"mode": "PA"}, {}),
    ({"transparent": True}, {Code.TRANSPARENT: "composited onto white"}),
    ({"mode": "L", "grayscale": True}, {Code.GREY: "mode L: no colour"}),
    ({"animated": True}, {Code.ANIMATED: "the first frame is used"}),
    (
        {"irregular_jpeg": True},
        {Code.IRREGULAR_JPEG: "padding, or unusual values in the header; the pixels are intact"},
    ),
    ({"width": 31, "height": 40}, {Code.TINY: "31 x 40"}),
    (
        {"width": 100, "height": 325},
        {Code.ODD_SHAPE: "100 x 325, aspect ratio 3.2", Code.CROP_LOSS: "100 x 325, a square crop keeps 31 %"},
    ),
    ({"width": 299, "height": 100}, {Code.CROP_LOSS: "299 x 100, a square crop keeps 33 %"}),
    ({"gray_bottom_percent": 2}, {}),
    (
        {"gray_bottom_percent": 3},
        {Code.GREY_BOTTOM: "the bottom 3 % is uniformly gray; a truncated image may have been saved again"},
    ),
    ({"luma_p2": 100, "luma_p98": 104}, {Code.BLANK: "luma 100 to 104"}),
    ({"luma_p2": 100, "luma_p98": 105}, {Code.LOW_CONTRAST: "luma 100 to 105"}),
    (DARK, {Code.DARK: "luma 0 to 60"}),
    *((DARK | {f"{channel}_mean": 64}, {}) for channel in ("red", "green", "blue")),
    ({"luma_p2": 30, "luma_p98": 63}, {}),  # low in contrast, but neither dark nor bright
    ({"luma_p2": 30, "luma_p98": 64}, {Code.LOW_CONTRAST: "luma 30 to 64"}),
    ({"luma_p2": 225, "luma_p98": 255}, {Code.LOW_CONTRAST: "luma 225 to 255"}),
    ({"luma_p2": 226, "luma_p98": 255}, {Code.BRIGHT: "luma 226 to 255"}),
    ({"sharpness": 0.2874}, {Code.BLURRED: "sharpness 0.287 below 0.300"}),
    ({"two_level_fraction": 0.8}, {Code.PLACEHOLDER: LINES.format(80)}),
    ({"two_level_fraction": 0.987}, {Code.PLACEHOLDER: LINES.format(99)}),
    # a blank image is blank and nothing else that follows from its levels; a tiny one no placeholder
    (
        DARK | {"luma_p98": 4, "gray_bottom_percent": 9, "sharpness": 0.0, "two_level_fraction": 1.0},
        {Code.BLANK: "luma 0 to 4"},
    ),
    ({"luma_p2": 251, "luma_p98": 255}, {Code.BLANK: "luma 251 to 255"}),
    ({"two_level_fraction": 1.0, "width": 31, "height": 31}, {Code.TINY: "31 x 31"}),
]


@pytest.mark.parametrize(("changes", "expected"), FACTS, ids=[str(changes) for changes, _ in FACTS])
def test_measurements_have_these_codes_and_no_others(changes: dict[str, object], expected: dict[Code, str]) -> None:
    assert codes_of(changes) == set(expected)
    row = make_measurement_table([measurements_with(changes).pack()])[0]
    assert {code: rules.RULES[code].describe_value(row, Thresholds()) for code in expected} == expected


def listed(classes: list[int | tuple[int, ...]], names: tuple[str, ...], name: str = "a.txt") -> LabelFile:
    items = [
        LabeledPath(Path(f"{n}.jpg"), -1, label) if isinstance(label, tuple) else LabeledPath(Path(f"{n}.jpg"), label)
        for n, label in enumerate(classes)
    ]
    return LabelFile(name, items=lambda: items, class_names=names)


def table_of(changes: Sequence[dict[str, Any]], *files: LabelFile) -> ImageTable:
    """Images whose measurements are ordinary but for these changes."""
    table = ImageTable.from_files(files or [listed([0] * len(changes), ("all",))])
    table.measurements[:] = make_measurement_table([measurements_with(each).pack() for each in changes])
    return table


def test_rows_of_findings_name_the_image_across_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "RULE_BATCH_SIZE", 3)
    table = table_of([{}, {"mode": "P"}, {}, {"mode": "CMYK"}, {}, {}, {"mode": "P"}, {"mode": "P"}])
    table.measurements[7] = 0  # was not decoded
    table.record_fault(0, CODES[0], "damaged")
    table.record_fault(5, CODES[2], "damaged")
    found = {tuple(row) for row in rules.apply_rules(table, Thresholds()).tolist()}
    palette, cmyk = CODES.index(Code.PALETTE), CODES.index(Code.CMYK)
    assert found == {(0, 0, -1), (5, 2, -1), (1, palette, -1), (3, cmyk, -1), (6, palette, -1)}


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_the_classes_of_which_most_images_are_blurred_are_those_counted_by_hand(is_multi_label: bool) -> None:
    rng = np.random.default_rng(1)
    names = ("ant", "bee", "cow", "dog", "elk")
    least, files, limit = MIN_IMAGES_FOR_MEDIAN, [], float(np.float32(0.3))
    for file, counts in enumerate(([least, least + 1, least - 1, 90], [40, 0, least + 5, 2])):
        classes: list[int | tuple[int, ...]] = [label for label, count in enumerate(counts) for _ in range(count)]
        if is_multi_label:  # elk is no image's class
            classes = [(label, 3) if n % 4 == 0 and label < 3 else (label,) for n, label in enumerate(classes)]
        files.append(listed(classes, names, f"{file}.txt"))
    table = ImageTable.from_files(files)
    table.measurements["width"] = rng.random(len(table)) < 0.98
    usual = np.array([0.2, 0.35, 0.2, 0.29, 0.3])
    own = [item.labels or (item.label,) for file in files for item in file]
    table.measurements["sharpness"] = [usual[labels[0]] + rng.normal(0, 0.005) for labels in own]
    table.measurements["width"][: 2 * least] = 1
    expected = []
    for number, (begin, end) in enumerate(zip(table.file_starts, table.file_starts[1:], strict=False)):
        for label, name in enumerate(names):
            found = [
                float(table.measurements["sharpness"][index])
                for index in range(begin, end)
                if label in own[index] and table.measurements["width"][index]
            ]
            if len(found) >= least and (median := statistics.median(found)) < limit:
                detail = f"{name}: median sharpness {median:.3f} of {len(found)} images; they may have been upscaled"
                expected.append((number, label, Code.CLASS_BLURRED, detail))
    told = [
        (one.file_index, one.label, one.code, one.detail)
        for one in rules.apply_class_rules(table, Thresholds(imbalance=1e9))
        if one.code == Code.CLASS_BLURRED
    ]
    assert told == expected
    assert {label for _, label, *_ in told} == {0, 2, 3}


@pytest.mark.parametrize(("sharpness", "expected"), [(0.2999, 1), (0.3, 0), (0.3001, 0)])
def test_the_threshold_of_the_usual_sharpness_of_a_class(sharpness: float, expected: int) -> None:
    table = ImageTable.from_files([listed([0] * MIN_IMAGES_FOR_MEDIAN, ("all",))])
    table.measurements["width"], table.measurements["sharpness"] = 1, sharpness
    assert len(list(rules.apply_class_rules(table, Thresholds()))) == expected


def test_a_small_class_is_compared_with_the_largest_of_its_own_file() -> None:
    names = ("ant", "bee", "cow")
    files = [
        listed([0] * 3 + [1] * 40, names, "a.txt"),
        listed([1] * 2 + [0] * 21, names[::-1], "b.txt"),
        listed([], ()),
    ]
    found = list(rules.apply_class_rules(ImageTable.from_files(files), Thresholds(imbalance=10)))
    assert [(one.file_index, str(one.path), one.label, one.code, one.detail) for one in found] == [
        (0, "a.txt", 0, Code.CLASS_IMBALANCE, "ant: 3, bee: 40"),
        (0, "a.txt", 2, Code.CLASS_IMBALANCE, "cow: 0, bee: 40"),
        (1, "b.txt", 1, Code.CLASS_IMBALANCE, "bee: 2, cow: 21"),
        (1, "b.txt", 2, Code.CLASS_IMBALANCE, "ant: 0, cow: 21"),
    ]


def test_a_number_that_no_image_has_is_no_small_class_where_classes_have_no_names() -> None:
    table = ImageTable.from_files([listed([1] * 20 + [2], ())])
    found = list(rules.apply_class_rules(table, Thresholds(imbalance=10)))
    assert [(one.label, one.detail) for one in found] == [(2, "2: 1, 1: 20")]


SUFFIXES = [
    # suffix, format, correct suffix
    (".jpg", "JPEG", ".jpg"), (".JPG", "JPEG", ".JPG"), (".jpeg", "JPEG", ".jpeg"), (".png", "JPEG", ".jpg"),
    ("", "JPEG", ".jpg"), (".jpg", "MPO", ".jpg"), (".mpo", "MPO", ".mpo"), (".png", "MPO", ".jpg"),
    (".jpg", "PNG", ".png"), (".apng", "PNG", ".apng"), (".tiff", "TIFF", ".tiff"), (".x", "TIFF", ".tif"),
    (".j2k", "JPEG2000", ".j2k"), (".jpg", "JPEG2000", ".jp2"), (".bmp", "DIB", ".bmp"), (".ico", "CUR", ".ico"),
    (".jpg", "GIF", ".gif"), (".jpg", "HEIF", ".heif"),
]  # fmt: skip


@pytest.mark.parametrize(("suffix", "pil_format", "expected"), SUFFIXES)
def test_a_suffix_that_does_not_fit_the_format_is_named_with_the_right_one(
    suffix: str, pil_format: str, expected: str
) -> None:
    assert rules.get_correct_suffix(suffix, pil_format) == expected
    said = f"{pil_format} data with {f'suffix {suffix}' if suffix else 'no suffix'}: rename to {expected}"
    assert rules.describe_wrong_suffix(f"a.b/c{suffix}", pil_format) == ("" if suffix == expected else said)
    assert rules.describe_wrong_suffix(f"shard-000.tar/c{suffix}", pil_format) == ""


def test_the_suffix_of_heic_is_known_though_its_plugin_was_not_used_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")

    monkeypatch.delitem(Image.EXTENSION, ".heic", raising=False)
    monkeypatch.setattr(rules, "load_all_plugins", load)
    rules.get_correct_suffix.cache_clear()
    assert rules.get_correct_suffix(".heic", "HEIF") == ".heic"
    assert rules.get_correct_suffix(".heic", "JPEG") == ".jpg"
