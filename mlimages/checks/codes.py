"""What can be wrong with an image: one stable code each, and the thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from mlimages.core import MAX_PIXELS, InputError


class Code(StrEnum):
    """What can be wrong; errors first, then warnings."""

    MISSING = "missing"
    EMPTY = "empty"
    NOT_AN_IMAGE = "not-an-image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_MANY_PIXELS = "too-many-pixels"
    UNREADABLE = "unreadable"
    TWO_LABELS = "same-picture-two-labels"
    LEAK = "leak"

    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near-duplicate"
    NEAR_TWO_LABELS = "near-duplicate-two-labels"
    WRONG_SUFFIX = "wrong-suffix"
    ROTATED = "rotated"
    CMYK = "cmyk"
    SIXTEEN_BIT = "16-bit"
    PALETTE = "palette"
    TRANSPARENT = "transparent"
    GREY = "grey"
    ANIMATED = "animated"
    IRREGULAR_JPEG = "irregular-jpeg"
    TINY = "tiny"
    ODD_SHAPE = "odd-shape"
    BLANK = "blank"
    DARK = "dark"
    BRIGHT = "bright"
    LOW_CONTRAST = "low-contrast"
    BLURRED = "blurred"
    GREY_BOTTOM = "grey-bottom"
    PLACEHOLDER = "placeholder"
    CROP_LOSS = "crop-loss"
    CLASS_IMBALANCE = "class-imbalance"

    @property
    def is_error(self) -> bool:
        """Whether such images are left out of NAME_checked.txt; those with warnings are kept and listed."""
        return self in ERRORS


CODES = tuple(Code)
"""Arrays hold a code as its index here."""

MANY = 20_000
"""Images; see `Thresholds.for_count`."""

ERRORS = frozenset(list(Code)[: list(Code).index(Code.DUPLICATE)])


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When an image gets a code. Levels are 0..255 of luma.

    Attributes:
        max_pixels: too-many-pixels above this width x height.
        min_side_px: tiny below this shorter side.
        max_aspect: odd-shape above this longer / shorter side.
        max_crop_loss: crop-loss where a centered square crop removes more than this share.
        blank_spread: blank where the 2nd and 98th percentile of the levels are at most this far apart.
        contrast_spread: low-contrast likewise.
        dark_level: dark where the 98th percentile is below.
        bright_level: bright where the 2nd percentile is above.
        blur: blurred where the sharpness (see `Facts.sharpness`) is below.
        placeholder_share: placeholder where the two most frequent levels cover at least this share of an image that is
            neither blank nor tiny; and where the same file is listed `placeholder_copies` times.
        near_bits: near-duplicate where the perceptual hashes differ in at most this many of 64 bits (see `for_count`)
        turned_bits: (or in this many, after one is mirrored or turned)
        near_correlation: and the thumbnails have at least this correlation,
        crop_correlation: or this one after one thumbnail is aligned with a part of the other;
        plain_correlation: if one image is tiny, plain (a drawing: two levels cover half of it) or smooth (an enlarged
            digit), this one, without aligning: images with little detail are alike without being the same.
        imbalance: class-imbalance where the largest class has more than this many times as many images.
    """

    max_pixels: int = MAX_PIXELS
    min_side_px: int = 32
    max_aspect: float = 3.0
    max_crop_loss: float = 0.5
    blank_spread: int = 4
    contrast_spread: int = 40
    dark_level: int = 64
    bright_level: int = 225
    blur: float = 0.30
    placeholder_share: float = 0.8
    placeholder_copies: int = 5
    near_bits: int = 16
    turned_bits: int = 12
    near_correlation: float = 0.90
    crop_correlation: float = 0.95
    plain_correlation: float = 0.99
    imbalance: float = 10.0

    def for_count(self, count: int) -> Thresholds:
        """The thresholds for a set of that size: above MANY images, 3 bits less for each factor of ten.

        Of pairs of different photographs 2e-4 lie within 16 bits, and a quarter of that for each two bits less: so the
        number of pairs that are close by chance grows hardly faster than the number of images.
        """
        fewer = round(3 * math.log10(count / MANY)) if count > MANY else 0
        return replace(self, near_bits=max(0, self.near_bits - fewer), turned_bits=max(0, self.turned_bits - fewer))

    @classmethod
    def parse(cls, settings: Iterable[str]) -> Thresholds:
        """Thresholds from `name=value` texts.

        Raises:
            InputError: an unknown name, or a value that is not a number.
        """
        kinds: dict[str, type] = {name: type(value) for name, value in asdict(cls()).items()}
        values: dict[str, Any] = {}
        for setting in settings:
            name, _, value = setting.partition("=")
            if name not in kinds:
                raise InputError(f"threshold {setting!r}: expected NAME=VALUE, NAME one of {', '.join(kinds)}")
            try:
                values[name] = kinds[name](value)
            except ValueError as error:
                raise InputError(f"threshold {setting!r}: {value!r} is not a number") from error
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding about one image.

    Attributes:
        file: index of the label file among those given.
        path: the image; the label file for class-imbalance.
        label: class number in that label file.
        code: what it is.
        detail: what was measured, or the related image, as text.
        related: the other image of a duplicate or a leak.
    """

    file: int
    path: Path
    label: int
    code: Code
    detail: str
    related: Path | None = None
