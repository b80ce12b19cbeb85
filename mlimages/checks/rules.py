"""From facts to codes: what is wrong with pictures, and with a class."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages.checks.codes import Code, Thresholds
from mlimages.checks.image_facts import FactsTable
from mlimages.images import load_all_plugins

Verdict = tuple[Code, NDArray[np.bool_], Callable[[int], str]]
"""A code, which rows have it, and what was seen in a row."""

MIN_FLAT_BOTTOM = 3
"""Percent of the height."""


def judge(paths: Sequence[str], facts: FactsTable, lines: Thresholds) -> Iterator[tuple[int, Code, str]]:
    """All codes of decoded pictures: row, code, what was seen."""
    for code, having, seen in (*_form(paths, facts), *_shape(facts, lines), *_levels(facts, lines)):
        yield from ((row, code, seen(row)) for row in np.flatnonzero(having).tolist())


def judge_classes(
    counts: Mapping[int, int], names: Mapping[int, str], lines: Thresholds
) -> Iterator[tuple[int, Code, str]]:
    """Classes that are small beside the largest: number, code, what was seen."""
    largest = max(counts, key=lambda label: (counts[label], -label), default=0)
    for label in sorted(counts):
        if counts[label] * lines.imbalance < counts[largest]:
            seen = f"{names.get(label, label)}: {counts[label]}, {names.get(largest, largest)}: {counts[largest]}"
            yield label, Code.CLASS_IMBALANCE, seen


@lru_cache(maxsize=1024)
def right_suffix(suffix: str, form: str) -> str:
    """A file's suffix where it fits the format (as Pillow names it), else the one that would."""
    if form == "HEIF":
        load_all_plugins()  # its facts may come from the cache
    named = Image.registered_extensions().get(suffix.lower(), "")
    if form == named or (form, named) in _SAME_SUFFIX:
        return suffix
    return _SUFFIX_OF.get(form, f".{form.lower()}")


_SUFFIX_OF = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}
_SAME_SUFFIX = {("MPO", "JPEG"), ("DIB", "BMP"), ("CUR", "ICO")}
_SCALED = {
    "F": "0 to 1, 255 or 65535, the first that holds its values, becomes 0 to 255",
    "I": "0 to 65535, or to the largest value above that, becomes 0 to 255",
} | dict.fromkeys(("I;16", "I;16B", "I;16L"), "0 to 65535 becomes 0 to 255")
"""What becomes of values of more than 8 bits (see `images.deep`), by mode."""


def _form(paths: Sequence[str], facts: FactsTable) -> Iterator[Verdict]:
    form, mode, orientation = facts["format"].astype("U8").tolist(), facts["mode"].astype("U8"), facts["orientation"]
    suffix = [os.path.splitext(path)[1] for path in paths]  # noqa: PTH122  # texts
    right = [right_suffix(*named) for named in zip(suffix, form, strict=True)]
    yield (
        Code.WRONG_SUFFIX,
        np.array([one != other for one, other in zip(suffix, right, strict=True)], dtype=bool),
        lambda row: f"{form[row]} in a {suffix[row] or 'nameless'} file: rename to {right[row]}",
    )
    yield Code.ROTATED, orientation != 1, lambda row: f"EXIF orientation {orientation[row]}"
    yield Code.CMYK, mode == "CMYK", lambda row: "four inks; converted to RGB without a colour profile"
    yield Code.SIXTEEN_BIT, facts["deep"], lambda row: f"mode {mode[row]}: {_SCALED.get(mode[row], '8 bits are used')}"
    yield Code.PALETTE, mode == "P", lambda row: "at most 256 colours"
    yield Code.TRANSPARENT, facts["transparent"], lambda row: "laid over white"
    yield Code.GREY, facts["grey"], lambda row: f"mode {mode[row]}: no colour"
    yield Code.ANIMATED, facts["animated"], lambda row: "the first frame is used"
    yield (
        Code.IRREGULAR_JPEG,
        facts["irregular"],
        lambda row: "padding or odd values between its segments; the pixels are whole",
    )


def _shape(facts: FactsTable, lines: Thresholds) -> Iterator[Verdict]:
    width, height = facts["width"].astype(np.int64), facts["height"].astype(np.int64)
    shorter, longer, bottom = np.minimum(width, height), np.maximum(width, height), facts["flat_bottom"]

    def size(row: int) -> str:
        return f"{width[row]} x {height[row]}"

    yield (
        Code.TOO_MANY_PIXELS,
        width * height > lines.max_pixels,
        lambda row: f"{size(row)} is more than {lines.max_pixels} pixels",
    )
    yield Code.TINY, shorter < lines.min_side_px, size
    yield (
        Code.ODD_SHAPE,
        longer > lines.max_aspect * shorter,
        lambda row: f"{size(row)}: 1 to {longer[row] / shorter[row]:.1f}",
    )
    yield (
        Code.CROP_LOSS,
        longer - shorter > lines.max_crop_loss * longer,
        lambda row: f"{size(row)}: a square crop leaves {100 * shorter[row] // longer[row]} %",
    )
    yield (
        Code.GREY_BOTTOM,
        (bottom >= MIN_FLAT_BOTTOM) & (spread(facts) > lines.blank_spread),
        lambda row: f"the lowest {bottom[row]} % are one grey: cut, then saved again",
    )


def _levels(facts: FactsTable, lines: Thresholds) -> Iterator[Verdict]:
    low, high, sharpness, two_levels = facts["low"], facts["high"], facts["sharpness"], facts["two_levels"]
    tiny = np.minimum(facts["width"], facts["height"]) < lines.min_side_px

    def seen(row: int) -> str:
        return f"levels {low[row]} to {high[row]}"

    blank = spread(facts) <= lines.blank_spread
    yield Code.BLANK, blank, seen
    dark, bright = high < lines.dark_level, low > lines.bright_level
    yield Code.DARK, ~blank & dark, seen
    yield Code.BRIGHT, ~blank & ~dark & bright, seen
    yield Code.LOW_CONTRAST, ~blank & ~dark & ~bright & (spread(facts) <= lines.contrast_spread), seen
    yield (
        Code.BLURRED,
        ~blank & (sharpness < lines.blur),
        lambda row: f"sharpness {sharpness[row]:.2f} below {lines.blur:.2f}",
    )
    yield (
        Code.PLACEHOLDER,
        ~blank & ~tiny & (two_levels >= lines.placeholder_share),
        lambda row: f"two levels cover {100 * two_levels[row]:.0f} %: a drawn sheet, or a thing on a plain ground",
    )


def spread(facts: FactsTable) -> NDArray[np.int16]:
    """How far the levels' 2nd and 98th percentile lie apart."""
    apart: NDArray[np.int16] = facts["high"].astype(np.int16) - facts["low"]
    return apart
