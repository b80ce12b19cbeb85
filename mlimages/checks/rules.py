"""Rules that give an image a code for its measurements, and a class a code for its size or sharpness."""

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
from mlimages.checks.image_facts import FactsTable
from mlimages.checks.image_table import FINDING_ROW, ImageTable
from mlimages.core import is_member
from mlimages.images import load_all_plugins

BATCH_SIZE = 1 << 12
"""Images processed at a time; limits memory."""

MIN_FLAT_BOTTOM = 3
"""Minimum percentage of the height that is gray."""


class Rule(NamedTuple):
    """Rule for a code that depends only on the measurements of an image.

    Attributes:
        applies: function that returns whether each image in a table of facts has the code, bool `(n,)`.
        describe: function that formats the measured value of an image, given its facts.
    """

    applies: Callable[[FactsTable, Thresholds], NDArray[np.bool_]]
    describe: Callable[[Any, Thresholds], str]


def apply_rules(images: ImageTable, thresholds: Thresholds) -> NDArray[np.void]:
    """Return the findings about single images, as rows of `FINDING_ROW`."""
    found = [_make_finding_rows(np.flatnonzero(images.file_code >= 0), images.file_code[images.file_code >= 0])]
    for begin in range(0, len(images), BATCH_SIZE):
        chunk = slice(begin, begin + BATCH_SIZE)
        indices = begin + np.flatnonzero(images.facts["width"][chunk])
        facts = images.facts[indices]
        found += [
            _make_finding_rows(indices[rule.applies(facts, thresholds)], CODES.index(code))
            for code, rule in RULES.items()
        ]
    return np.concatenate(found)


def describe_image_finding(code: Code, image_facts: np.void, thresholds: Thresholds) -> str:
    """Return why an image has the code, such as the measured value."""
    return RULES[code].describe(image_facts, thresholds)


def apply_class_rules(images: ImageTable, thresholds: Thresholds) -> Iterator[Finding]:
    """Yield a finding for each class that is much smaller than its label file's largest class, or mostly blurred."""
    for number, file in enumerate(images.files):
        yield from _iter_blurred_classes(images, number)
        counts = images.count_by_class(number)[images.class_ids[number]]
        for label in np.flatnonzero(counts * thresholds.imbalance < counts.max(initial=0)).tolist():
            if counts[label] or label < len(file.defined_class_names):
                few, many = (images.class_names[images.class_ids[number][own]] for own in (label, counts.argmax()))
                detail = f"{few}: {counts[label]}, {many}: {counts.max()}"
                yield Finding(number, file.path, label, Code.CLASS_IMBALANCE, detail)


def _iter_blurred_classes(images: ImageTable, file_index: int) -> Iterator[Finding]:
    """Yield a finding for each class of a label file whose images are mostly blurred."""
    rows = slice(*images.starts[file_index : file_index + 2])
    sharpness = images.facts["sharpness"][rows]
    ids_of: dict[int, list[int]] = defaultdict(list)
    for number, classes in enumerate(images.class_sets):
        for class_id in classes:
            ids_of[class_id].append(number)
    for label, class_id in enumerate(images.class_ids[file_index].tolist()):
        own = sharpness[images.decoded_mask[rows] & np.isin(images.class_id[rows], ids_of[class_id])]
        if len(own) >= MIN_IMAGES_FOR_MEDIAN and (median := np.median(own)) < Thresholds().blur:
            name = images.class_names[class_id]
            detail = f"{name}: median sharpness {median:.3f} of {len(own)} images; they may have been upscaled"
            yield Finding(file_index, images.files[file_index].path, label, Code.CLASS_BLURRED, detail)


@lru_cache(maxsize=1024)
def correct_suffix(suffix: str, pil_format: str) -> str:
    """Return the suffix if it fits the format (as named by Pillow), else the usual suffix of the format."""
    if pil_format == "HEIF":
        load_all_plugins()  # no plugin is loaded if the facts come from the cache
    named = Image.registered_extensions().get(suffix.lower(), "")
    if pil_format == named or (pil_format, named) in _SAME_SUFFIX:
        return suffix
    return _SUFFIX_OF.get(pil_format, f".{pil_format.lower()}")


def describe_wrong_suffix(path: str, pil_format: str) -> str:
    """Return a message if the suffix does not fit the format (as named by Pillow), else "".

    All images of a shard that `gather` wrote have the same suffix, as `datasets.load_dataset` requires.
    """
    if is_member(path):
        return ""
    suffix = os.path.splitext(path)[1]  # noqa: PTH122  # a str
    right = correct_suffix(suffix, pil_format)
    return (
        ""
        if right == suffix
        else f"{pil_format} data with {f'suffix {suffix}' if suffix else 'no suffix'}: rename to {right}"
    )


_SUFFIX_OF = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}
_SAME_SUFFIX = {("MPO", "JPEG"), ("DIB", "BMP"), ("CUR", "ICO")}


def is_tiny(image_facts: FactsTable, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Return whether the shorter side of each image is below the threshold, bool `(n,)`."""
    tiny: NDArray[np.bool_] = np.minimum(image_facts["width"], image_facts["height"]) < thresholds.min_side_px
    return tiny


def is_blank(image_facts: FactsTable, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Return whether nearly all pixels of each image have the same luma, bool `(n,)`."""
    blank: NDArray[np.bool_] = _compute_luma_range(image_facts) <= thresholds.blank_spread
    return blank


def _compute_luma_range(image_facts: FactsTable) -> NDArray[np.int16]:
    """Return the difference between the 98th and the 2nd percentile of luma `(n,)`."""
    apart: NDArray[np.int16] = image_facts["high"].astype(np.int16) - image_facts["low"]
    return apart


def _make_finding_rows(indices: NDArray[np.intp], code: NDArray[np.int8] | int) -> NDArray[np.void]:
    rows = np.empty(len(indices), FINDING_ROW)
    rows["index"], rows["code"], rows["other"] = indices, code, -1
    return rows


def _compute_aspect_ratio(image_facts: Any) -> Any:
    """Return the longer side divided by the shorter side, of one image or of each `(n,)`."""
    ratio = image_facts["width"] / image_facts["height"]
    return np.maximum(ratio, 1 / ratio)


def _describe_size(image_facts: Any, _thresholds: Thresholds) -> str:
    return f"{image_facts['width']} x {image_facts['height']}"


def _describe_luma(image_facts: Any, _thresholds: Thresholds) -> str:
    return f"luma {image_facts['low']} to {image_facts['high']}"


def _is_dark(image_facts: FactsTable, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Return whether luma and each channel's mean are low; luma alone would not do: pure blue has a luma of only 29."""
    brightest = np.maximum.reduce([image_facts["red"], image_facts["green"], image_facts["blue"]])
    dark: NDArray[np.bool_] = (image_facts["high"] < thresholds.dark_level) & (brightest < thresholds.dark_level)
    return dark


RULES = {
    Code.TOO_MANY_PIXELS: Rule(
        lambda f, t: f["width"].astype(np.int64) * f["height"] > t.max_pixels,
        lambda f, t: f"{_describe_size(f, t)} is more than {t.max_pixels} pixels",
    ),
    Code.ROTATED: Rule(lambda f, t: f["orientation"] != 1, lambda f, t: f"EXIF orientation {f['orientation']}"),
    Code.CMYK: Rule(lambda f, t: f["mode"] == b"CMYK", lambda f, t: "converted to RGB without a colour profile"),
    Code.SIXTEEN_BIT: Rule(lambda f, t: f["deep"], lambda f, t: f"mode {f['mode'].decode()}: scaled to 8 bits"),
    Code.PALETTE: Rule(lambda f, t: f["mode"] == b"P", lambda f, t: "at most 256 colours"),
    Code.TRANSPARENT: Rule(lambda f, t: f["transparent"], lambda f, t: "composited onto white"),
    Code.GREY: Rule(lambda f, t: f["grey"], lambda f, t: f"mode {f['mode'].decode()}: no colour"),
    Code.ANIMATED: Rule(lambda f, t: f["animated"], lambda f, t: "the first frame is used"),
    Code.IRREGULAR_JPEG: Rule(
        lambda f, t: f["irregular"], lambda f, t: "padding or unusual values between segments; the pixels are intact"
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
        lambda f, t: ~is_blank(f, t) & (f["flat_bottom"] >= MIN_FLAT_BOTTOM),
        lambda f, t: f"the bottom {f['flat_bottom']} % is uniformly gray; a truncated image may have been saved again",
    ),
    Code.BLANK: Rule(is_blank, _describe_luma),
    Code.DARK: Rule(lambda f, t: ~is_blank(f, t) & _is_dark(f, t), _describe_luma),
    Code.BRIGHT: Rule(lambda f, t: ~is_blank(f, t) & (f["low"] > t.bright_level), _describe_luma),
    Code.LOW_CONTRAST: Rule(  # dark and bright images have their own codes
        lambda f, t: (
            ~is_blank(f, t)
            & (f["high"] >= t.dark_level)
            & (f["low"] <= t.bright_level)
            & (_compute_luma_range(f) <= t.contrast_spread)
        ),
        _describe_luma,
    ),
    Code.BLURRED: Rule(
        lambda f, t: ~is_blank(f, t) & (f["sharpness"] < t.blur),
        lambda f, t: f"sharpness {f['sharpness']:.3f} below {t.blur:.3f}",
    ),
    Code.PLACEHOLDER: Rule(
        lambda f, t: ~is_blank(f, t) & ~is_tiny(f, t) & (f["two_levels"] >= t.placeholder_share),
        lambda f, t: (
            f"two luma values cover {100 * f['two_levels']:.0f} %: line art, or an object on a plain background"
        ),
    ),
}
"""The rule for each code; f: facts of images, t: thresholds."""
