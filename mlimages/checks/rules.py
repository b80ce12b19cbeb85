"""Rules that derive codes from the facts of an image and the size of a class."""

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
"""Minimum share of the height, in percent."""


Test = Callable[[FactsTable, Thresholds], NDArray[np.bool_]]
"""Tests each row of a table of facts for a code; returns booleans `(n,)`."""


class Rule(NamedTuple):
    """Rule for a code that depends only on the measurements of an image.

    Attributes:
        applies: tests each row of a table of facts for the code.
        describe: formats the measured value of one image, given its facts.
    """

    applies: Test
    describe: Callable[[Any, Thresholds], str]


def apply_rules(images: ImageTable, thresholds: Thresholds) -> NDArray[np.void]:
    """Return the findings on single images, in rows of `FINDING_ROW`."""
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
    """Return why an image has the code, with the measured value if there is one."""
    return RULES[code].describe(image_facts, thresholds)


def apply_class_rules(images: ImageTable, thresholds: Thresholds) -> Iterator[Finding]:
    """Yield the classes that are small compared with the largest of their label file, or blurred as a whole."""
    for number, file in enumerate(images.files):
        yield from _iter_blurred_classes(images, number)
        counts = images.class_counts(number)[images.class_ids[number]]
        for label in np.flatnonzero(counts * thresholds.imbalance < counts.max(initial=0)).tolist():
            if counts[label] or label < len(file.defined_class_names):
                few, many = (images.class_names[images.class_ids[number][own]] for own in (label, counts.argmax()))
                detail = f"{few}: {counts[label]}, {many}: {counts.max()}"
                yield Finding(number, file.path, label, Code.CLASS_IMBALANCE, detail)


def _iter_blurred_classes(images: ImageTable, file_index: int) -> Iterator[Finding]:
    """Yield the classes of a label file in which most images have little detail, instead of flagging each image."""
    rows = slice(*images.starts[file_index : file_index + 2])
    sharpness = images.facts["sharpness"][rows]
    ids_of: dict[int, list[int]] = defaultdict(list)
    for number, classes in enumerate(images.class_sets):
        for class_id in classes:
            ids_of[class_id].append(number)
    for label, class_id in enumerate(images.class_ids[file_index].tolist()):
        ids, found = ids_of[class_id], images.class_id[rows]
        own = sharpness[images.decoded_mask[rows] & (found == ids[0] if len(ids) == 1 else np.isin(found, ids))]
        if len(own) >= MIN_IMAGES_FOR_MEDIAN and (usual := np.median(own)) < Thresholds().blur:
            detail = f"{images.class_names[class_id]}: median sharpness {usual:.3f} of {len(own)} images: upscaled?"
            yield Finding(file_index, images.files[file_index].path, label, Code.CLASS_BLURRED, detail)


@lru_cache(maxsize=1024)
def correct_suffix(suffix: str, pil_format: str) -> str:
    """Return the suffix if it matches the format (as named by Pillow), else the usual suffix of that format."""
    if pil_format == "HEIF":
        load_all_plugins()  # the facts may come from the cache, with no plugin loaded
    named = Image.registered_extensions().get(suffix.lower(), "")
    if pil_format == named or (pil_format, named) in _SAME_SUFFIX:
        return suffix
    return _SUFFIX_OF.get(pil_format, f".{pil_format.lower()}")


def describe_wrong_suffix(path: str, pil_format: str) -> str:
    """Describe a suffix that does not fit the format (as named by Pillow); return "" if it fits.

    All images of a shard that `gather` wrote have the same suffix, as `datasets.load_dataset` requires.
    """
    if is_member(path):
        return ""
    suffix = os.path.splitext(path)[1]  # noqa: PTH122  # a str
    right = correct_suffix(suffix, pil_format)
    return "" if right == suffix else f"{pil_format} data, suffix {suffix or 'missing'}: rename to {right}"


_SUFFIX_OF = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}
_SAME_SUFFIX = {("MPO", "JPEG"), ("DIB", "BMP"), ("CUR", "ICO")}


def is_tiny(image_facts: FactsTable, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Whether the shorter side of each image is below the threshold."""
    tiny: NDArray[np.bool_] = _side_lengths(image_facts)[0] < thresholds.min_side_px
    return tiny


def is_blank(image_facts: FactsTable, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Return whether nearly all pixels of each image have the same luma."""
    blank: NDArray[np.bool_] = luma_spread(image_facts) <= thresholds.blank_spread
    return blank


def luma_spread(image_facts: FactsTable) -> NDArray[np.int16]:
    """Return the difference between the 2nd and 98th percentile of the levels."""
    apart: NDArray[np.int16] = image_facts["high"].astype(np.int16) - image_facts["low"]
    return apart


def _make_finding_rows(indices: NDArray[np.intp], code: NDArray[np.int8] | int) -> NDArray[np.void]:
    rows = np.empty(len(indices), FINDING_ROW)
    rows["index"], rows["code"], rows["other"] = indices, code, -1
    return rows


def _side_lengths(image_facts: Any) -> tuple[Any, Any]:
    """Return the shorter and the longer side in pixels."""
    return np.minimum(image_facts["width"], image_facts["height"]), np.maximum(
        image_facts["width"], image_facts["height"]
    )


def _size_text(image_facts: Any, _: Thresholds) -> str:
    return f"{image_facts['width']} x {image_facts['height']}"


def _mode_text(image_facts: Any) -> str:
    return str(image_facts["mode"].decode())


def _luma_text(image_facts: Any, _: Thresholds) -> str:
    return f"luma {image_facts['low']} to {image_facts['high']}"


def _has_too_many_pixels(image_facts: FactsTable, thresholds: Thresholds) -> NDArray[np.bool_]:
    many: NDArray[np.bool_] = image_facts["width"].astype(np.int64) * image_facts["height"] > thresholds.max_pixels
    return many


def _is_dark(image_facts: FactsTable, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Whether the luma and the mean of each channel are low: saturated blue has a luma of 29 at most."""
    brightest = np.maximum.reduce([image_facts["red"], image_facts["green"], image_facts["blue"]])
    dark: NDArray[np.bool_] = (image_facts["high"] < thresholds.dark_level) & (brightest < thresholds.dark_level)
    return dark


def _has_low_contrast(image_facts: FactsTable, thresholds: Thresholds) -> NDArray[np.bool_]:
    between: NDArray[np.bool_] = (image_facts["high"] >= thresholds.dark_level) & (
        image_facts["low"] <= thresholds.bright_level
    )
    return between & (luma_spread(image_facts) <= thresholds.contrast_spread)


RULES = {
    Code.TOO_MANY_PIXELS: Rule(
        _has_too_many_pixels, lambda f, t: f"{_size_text(f, t)} is more than {t.max_pixels} pixels"
    ),
    Code.ROTATED: Rule(lambda f, t: f["orientation"] != 1, lambda f, t: f"EXIF orientation {f['orientation']}"),
    Code.CMYK: Rule(lambda f, t: f["mode"] == b"CMYK", lambda f, t: "converted to RGB without a colour profile"),
    Code.SIXTEEN_BIT: Rule(lambda f, t: f["deep"], lambda f, t: f"mode {_mode_text(f)}: scaled to 8 bits"),
    Code.PALETTE: Rule(lambda f, t: f["mode"] == b"P", lambda f, t: "at most 256 colours"),
    Code.TRANSPARENT: Rule(lambda f, t: f["transparent"], lambda f, t: "composited onto white"),
    Code.GREY: Rule(lambda f, t: f["grey"], lambda f, t: f"mode {_mode_text(f)}: no colour"),
    Code.ANIMATED: Rule(lambda f, t: f["animated"], lambda f, t: "the first frame is used"),
    Code.IRREGULAR_JPEG: Rule(
        lambda f, t: f["irregular"], lambda f, t: "padding or unusual values between segments; the pixels are intact"
    ),
    Code.TINY: Rule(is_tiny, _size_text),
    Code.ODD_SHAPE: Rule(
        lambda f, t: _side_lengths(f)[1] > t.max_aspect * _side_lengths(f)[0],
        lambda f, t: f"{_size_text(f, t)}: aspect ratio {_side_lengths(f)[1] / _side_lengths(f)[0]:.1f}",
    ),
    Code.CROP_LOSS: Rule(
        lambda f, t: _side_lengths(f)[1] - _side_lengths(f)[0] > t.max_crop_loss * _side_lengths(f)[1],
        lambda f, t: (
            f"{_size_text(f, t)}: a square crop leaves {100 * int(_side_lengths(f)[0]) // int(_side_lengths(f)[1])} %"
        ),
    ),
    Code.GREY_BOTTOM: Rule(
        lambda f, t: ~is_blank(f, t) & (f["flat_bottom"] >= MIN_FLAT_BOTTOM),
        lambda f, t: f"the lowest {f['flat_bottom']} % of rows are one gray level: truncated, then saved again?",
    ),
    Code.BLANK: Rule(is_blank, _luma_text),
    Code.DARK: Rule(lambda f, t: ~is_blank(f, t) & _is_dark(f, t), _luma_text),
    Code.BRIGHT: Rule(lambda f, t: ~is_blank(f, t) & (f["low"] > t.bright_level), _luma_text),
    Code.LOW_CONTRAST: Rule(lambda f, t: ~is_blank(f, t) & _has_low_contrast(f, t), _luma_text),
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
"""The rule of each code; f: facts of images, t: thresholds."""
