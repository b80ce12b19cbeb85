"""From facts to codes: what is wrong with one picture, and with a class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image

from mlimages.validation.codes import Code, Thresholds
from mlimages.validation.facts import Facts

Verdict = tuple[Code, str]
"""A code, and what was seen."""


def judge(path: Path, facts: Facts, lines: Thresholds) -> Iterator[Verdict]:
    """All codes of one decoded picture."""
    if facts.width * facts.height > lines.max_pixels:
        yield Code.TOO_MANY_PIXELS, f"{facts.width} x {facts.height} is more than {lines.max_pixels} pixels"
    yield from _judge_form(path, facts)
    yield from _judge_shape(facts, lines)
    yield from _judge_levels(facts, lines)


def judge_classes(
    counts: Mapping[int, int], names: Mapping[int, str], lines: Thresholds
) -> Iterator[tuple[int, Verdict]]:
    """Classes that are small beside the largest, with their numbers."""
    largest = max(counts, key=lambda label: (counts[label], -label), default=0)
    for label in sorted(counts):
        if counts[label] * lines.imbalance < counts[largest]:
            seen = f"{names.get(label, label)}: {counts[label]}, {names.get(largest, largest)}: {counts[largest]}"
            yield label, (Code.CLASS_IMBALANCE, seen)


def right_suffix(path: Path, form: str) -> str:
    """The file's suffix where it fits the format (as Pillow names it), else the one that would."""
    named = Image.registered_extensions().get(path.suffix.lower(), "")
    if form == named or (form, named) in _SAME_SUFFIX:
        return path.suffix
    return _SUFFIX_OF.get(form, f".{form.lower()}")


_SUFFIX_OF = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}
_SAME_SUFFIX = {("MPO", "JPEG"), ("DIB", "BMP"), ("CUR", "ICO")}


def _judge_form(path: Path, facts: Facts) -> Iterator[Verdict]:
    right = right_suffix(path, facts.format)
    if right != path.suffix:
        yield Code.WRONG_SUFFIX, f"{facts.format} in a {path.suffix or 'nameless'} file: rename to {right}"
    if facts.orientation != 1:
        yield Code.ROTATED, f"EXIF orientation {facts.orientation}"
    if facts.mode == "CMYK":
        yield Code.CMYK, "four inks; converted to RGB without a colour profile"
    if facts.deep:
        yield Code.SIXTEEN_BIT, f"mode {facts.mode}: scaled to 8 bits"
    if facts.mode == "P":
        yield Code.PALETTE, "at most 256 colours"
    if facts.transparent:
        yield Code.TRANSPARENT, "laid over white"
    if facts.grey:
        yield Code.GREY, f"mode {facts.mode}: no colour"
    if facts.animated:
        yield Code.ANIMATED, "the first frame is used"


def _judge_shape(facts: Facts, lines: Thresholds) -> Iterator[Verdict]:
    shorter, longer = sorted((facts.width, facts.height))
    size = f"{facts.width} x {facts.height}"
    if shorter < lines.min_side_px:
        yield Code.TINY, size
    if longer > lines.max_aspect * shorter:
        yield Code.ODD_SHAPE, f"{size}: 1 to {longer / shorter:.1f}"
    if longer - shorter > lines.max_crop_loss * longer:
        yield Code.CROP_LOSS, f"{size}: a square crop leaves {100 * shorter // longer} %"
    if facts.flat_bottom >= MIN_FLAT_BOTTOM and facts.high - facts.low > lines.blank_spread:
        yield Code.GREY_BOTTOM, f"the lowest {facts.flat_bottom} % are one grey: cut, then saved again"


MIN_FLAT_BOTTOM = 3
"""Percent of the height."""


def _judge_levels(facts: Facts, lines: Thresholds) -> Iterator[Verdict]:
    spread, seen = facts.high - facts.low, f"levels {facts.low} to {facts.high}"
    if spread <= lines.blank_spread:
        yield Code.BLANK, seen
        return
    if facts.high < lines.dark_level:
        yield Code.DARK, seen
    elif facts.low > lines.bright_level:
        yield Code.BRIGHT, seen
    elif spread <= lines.contrast_spread:
        yield Code.LOW_CONTRAST, seen
    if facts.sharpness < lines.blur:
        yield Code.BLURRED, f"sharpness {facts.sharpness:.2f} below {lines.blur:.2f}"
    if facts.two_levels >= lines.placeholder_share:
        yield Code.PLACEHOLDER, f"two levels cover {100 * facts.two_levels:.0f} %: a drawn sheet, no photograph"
