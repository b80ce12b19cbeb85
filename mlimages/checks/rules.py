"""Rules for the codes that depend on measurements of a single image, or on the size and sharpness of a class."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages.checks.codes import CODES, MIN_IMAGES_FOR_MEDIAN, Code, Finding, Thresholds
from mlimages.checks.image_table import FINDING_DTYPE, ImageTable
from mlimages.checks.measurements import MeasurementTable
from mlimages.core import is_member_path
from mlimages.images import load_all_plugins

RULE_BATCH_SIZE = 1 << 12
"""Images processed at a time; limits memory."""

MIN_GRAY_BOTTOM_PERCENT = 3
"""Minimum percentage of the height, from the bottom, that is gray in an image with the code `grey-bottom`."""


class Rule(NamedTuple):
    """Rule for a code that depends only on the measurements of an image.

    Attributes:
        compute_mask: function that returns whether each image in a table of measurements has the code, bool `(n,)`.
        describe_value: function that formats the measured value of an image, given its measurements.
    """

    compute_mask: Callable[[MeasurementTable, Thresholds], NDArray[np.bool_]]
    describe_value: Callable[[Any, Thresholds], str]


def apply_rules(images: ImageTable, thresholds: Thresholds) -> NDArray[np.void]:
    """Return the faults of image files and the findings of `RULES`, as rows of `FINDING_DTYPE`."""
    found = [_make_finding_rows(np.flatnonzero(images.fault_codes >= 0), images.fault_codes[images.fault_codes >= 0])]
    for begin in range(0, len(images), RULE_BATCH_SIZE):
        chunk = slice(begin, begin + RULE_BATCH_SIZE)
        indices = begin + np.flatnonzero(images.measurements["width"][chunk])
        measurements = images.measurements[indices]
        found += [
            _make_finding_rows(indices[rule.compute_mask(measurements, thresholds)], CODES.index(code))
            for code, rule in RULES.items()
        ]
    return np.concatenate(found)


def apply_class_rules(images: ImageTable, thresholds: Thresholds) -> Iterator[Finding]:
    """Yield a finding for each class that is much smaller than its label file's largest class, or is blurred."""
    for number, file in enumerate(images.files):
        yield from _iter_blurred_classes(images, number)
        class_index_map = images.class_index_maps[number]
        counts = images.count_by_merged_class(number)[class_index_map]
        for label in np.flatnonzero(counts * thresholds.imbalance < counts.max(initial=0)).tolist():
            if counts[label] or label < len(file.defined_class_names):
                few, many = (images.class_names[class_index_map[own]] for own in (label, counts.argmax()))
                detail = f"{few}: {counts[label]}, {many}: {counts.max()}"
                yield Finding(number, file.path, label, Code.CLASS_IMBALANCE, detail)


def _iter_blurred_classes(images: ImageTable, file_index: int) -> Iterator[Finding]:
    """Yield a finding for each class of a label file whose median sharpness is below the default of `blur`.

    Classes with fewer than `MIN_IMAGES_FOR_MEDIAN` decoded images are skipped.
    """
    rows = slice(*images.file_starts[file_index : file_index + 2])
    sharpness = images.measurements["sharpness"][rows]
    labels_by_class: dict[int, list[int]] = defaultdict(list)
    for label_index, classes in enumerate(images.distinct_labels):
        for class_index in classes:
            labels_by_class[class_index].append(label_index)
    for label, class_index in enumerate(images.class_index_maps[file_index].tolist()):
        own = sharpness[images.decoded_mask[rows] & np.isin(images.label_indices[rows], labels_by_class[class_index])]
        if len(own) >= MIN_IMAGES_FOR_MEDIAN and (median := np.median(own)) < Thresholds().blur:
            name = images.class_names[class_index]
            detail = f"{name}: median sharpness {median:.3f} of {len(own)} images; they may have been upscaled"
            yield Finding(file_index, images.files[file_index].path, label, Code.CLASS_BLURRED, detail)


@lru_cache(maxsize=1024)
def get_correct_suffix(suffix: str, pil_format: str) -> str:
    """Return the suffix if it fits the format (as named by Pillow), else the usual suffix of the format."""
    if pil_format == "HEIF":
        load_all_plugins()  # no plugin is loaded if the measurements come from the cache
    named = Image.registered_extensions().get(suffix.lower(), "")
    if pil_format == named or (pil_format, named) in _FORMATS_WITH_SAME_SUFFIX:
        return suffix
    return _SUFFIX_BY_FORMAT.get(pil_format, f".{pil_format.lower()}")


def describe_wrong_suffix(path: str, pil_format: str) -> str:
    """Return a message if the suffix does not fit the format (as named by Pillow), else "".

    Images in shards are not checked: `gather` gives all of them the same suffix, as `datasets.load_dataset` requires.
    """
    suffix = os.path.splitext(path)[1]  # noqa: PTH122  # a str
    right = get_correct_suffix(suffix, pil_format)
    if right == suffix or is_member_path(path):
        return ""
    return f"{pil_format} data with {f'suffix {suffix}' if suffix else 'no suffix'}: rename to {right}"


_SUFFIX_BY_FORMAT = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}
_FORMATS_WITH_SAME_SUFFIX = {("MPO", "JPEG"), ("DIB", "BMP"), ("CUR", "ICO")}


def is_tiny(measurements: MeasurementTable, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Return whether the shorter side of each image is below the threshold, bool `(n,)`."""
    tiny: NDArray[np.bool_] = np.minimum(measurements["width"], measurements["height"]) < thresholds.min_side_px
    return tiny


def is_blank(measurements: MeasurementTable, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Return whether nearly all pixels of each image have nearly the same luma, bool `(n,)`."""
    return _compute_luma_range(measurements) <= thresholds.blank_spread


def _compute_luma_range(measurements: MeasurementTable) -> NDArray[np.int16]:
    """Return the difference between the 98th and the 2nd percentile of luma `(n,)`."""
    apart: NDArray[np.int16] = measurements["luma_p98"].astype(np.int16) - measurements["luma_p2"]
    return apart


def _make_finding_rows(indices: NDArray[np.intp], code: NDArray[np.int8] | int) -> NDArray[np.void]:
    """Return findings without a related image, as rows of `FINDING_DTYPE`; `code` is an index in `CODES`."""
    rows = np.empty(len(indices), FINDING_DTYPE)
    rows["index"], rows["code"], rows["other"] = indices, code, -1
    return rows


def _compute_aspect_ratio(measurements: Any) -> Any:
    """Return the longer side divided by the shorter side: a number for one image, `(n,)` for a table of images."""
    ratio = measurements["width"] / measurements["height"]
    return np.maximum(ratio, 1 / ratio)


def _describe_size(measurements: Any, _thresholds: Thresholds) -> str:
    return f"{measurements['width']} x {measurements['height']}"


def _describe_luma(measurements: Any, _thresholds: Thresholds) -> str:
    return f"luma {measurements['luma_p2']} to {measurements['luma_p98']}"


def _is_dark(measurements: MeasurementTable, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Return whether luma and the mean of each channel are low; luma alone does not suffice: it is 29 for pure blue."""
    brightest = np.maximum.reduce([measurements["red_mean"], measurements["green_mean"], measurements["blue_mean"]])
    dark: NDArray[np.bool_] = (measurements["luma_p98"] < thresholds.dark_level) & (brightest < thresholds.dark_level)
    return dark


RULES = {
    Code.TOO_MANY_PIXELS: Rule(
        lambda f, t: f["width"].astype(np.int64) * f["height"] > t.max_pixels,
        lambda f, t: f"{_describe_size(f, t)} is more than {t.max_pixels} pixels",
    ),
    Code.ROTATED: Rule(lambda f, t: f["orientation"] != 1, lambda f, t: f"EXIF orientation {f['orientation']}"),
    Code.CMYK: Rule(lambda f, t: f["mode"] == b"CMYK", lambda f, t: "converted to RGB without a colour profile"),
    Code.SIXTEEN_BIT: Rule(
        lambda f, t: f["high_bit_depth"], lambda f, t: f"mode {f['mode'].decode()}: scaled to 8 bits"
    ),
    Code.PALETTE: Rule(lambda f, t: f["mode"] == b"P", lambda f, t: "at most 256 colours"),
    Code.TRANSPARENT: Rule(lambda f, t: f["transparent"], lambda f, t: "composited onto white"),
    Code.GREY: Rule(lambda f, t: f["grayscale"], lambda f, t: f"mode {f['mode'].decode()}: no colour"),
    Code.ANIMATED: Rule(lambda f, t: f["animated"], lambda f, t: "the first frame is used"),
    Code.IRREGULAR_JPEG: Rule(
        lambda f, t: f["irregular_jpeg"],
        lambda f, t: "padding, or unusual values in the header; the pixels are intact",
    ),
    Code.TINY: Rule(is_tiny, _describe_size),
    Code.ODD_SHAPE: Rule(
        lambda f, t: _compute_aspect_ratio(f) > t.max_aspect,
        lambda f, t: f"{_describe_size(f, t)}, aspect ratio {_compute_aspect_ratio(f):.1f}",
    ),
    Code.CROP_LOSS: Rule(
        lambda f, t: 1 - 1 / _compute_aspect_ratio(f) > t.max_crop_loss,
        lambda f, t: f"{_describe_size(f, t)}, a square crop keeps {100 / _compute_aspect_ratio(f):.0f} %",
    ),
    Code.GREY_BOTTOM: Rule(
        lambda f, t: ~is_blank(f, t) & (f["gray_bottom_percent"] >= MIN_GRAY_BOTTOM_PERCENT),
        lambda f, t: (
            f"the bottom {f['gray_bottom_percent']} % is uniformly gray; a truncated image may have been saved again"
        ),
    ),
    Code.BLANK: Rule(is_blank, _describe_luma),
    Code.DARK: Rule(lambda f, t: ~is_blank(f, t) & _is_dark(f, t), _describe_luma),
    Code.BRIGHT: Rule(lambda f, t: ~is_blank(f, t) & (f["luma_p2"] > t.bright_level), _describe_luma),
    Code.LOW_CONTRAST: Rule(  # dark and bright images have their own codes
        lambda f, t: (
            ~is_blank(f, t)
            & (f["luma_p98"] >= t.dark_level)
            & (f["luma_p2"] <= t.bright_level)
            & (_compute_luma_range(f) <= t.contrast_spread)
        ),
        _describe_luma,
    ),
    Code.BLURRED: Rule(
        lambda f, t: ~is_blank(f, t) & (f["sharpness"] < t.blur),
        lambda f, t: f"sharpness {f['sharpness']:.3f} below {t.blur:.3f}",
    ),
    Code.PLACEHOLDER: Rule(
        lambda f, t: ~is_blank(f, t) & ~is_tiny(f, t) & (f["two_level_fraction"] >= t.placeholder_share),
        lambda f, t: (
            f"{100 * f['two_level_fraction']:.0f} % of the pixels have one of two gray levels: line art, or an "
            "object on a plain background"
        ),
    ),
}
"""The rule for each code. The parameters of the lambdas are the measurements `f` and the thresholds `t`."""
