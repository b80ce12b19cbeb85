"""What may be wrong with a picture: one stable code each, and where the lines are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from mlimages.core import MAX_PIXELS, InputError


class Code(StrEnum):
    """Errors first, in the order in which they are judged; then warnings."""

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
        """Errors are left out of NAME_checked.txt; warnings are kept and listed."""
        return self in ERRORS


MANY = 20_000
"""Pictures; see `Thresholds.narrowed`."""

ERRORS = frozenset(list(Code)[: list(Code).index(Code.DUPLICATE)])


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where the lines are drawn. Levels are 0..255 of luma.

    Attributes:
        max_pixels: too-many-pixels above this width x height.
        min_side_px: tiny below this shorter side.
        max_aspect: odd-shape above this longer / shorter side.
        max_crop_loss: crop-loss where a centred square crop cuts away more than this share.
        blank_spread: blank where the levels' 2nd and 98th percentile lie no farther apart.
        contrast_spread: low-contrast likewise.
        dark_level: dark where the 98th percentile lies below.
        bright_level: bright where the 2nd percentile lies above.
        blur: blurred where the sharpness (see `Facts.sharpness`) lies below.
        placeholder_share: placeholder where the two most frequent levels cover at least this share of a picture that
            is neither blank nor tiny; and where the same file turns up `placeholder_copies` times.
        near_bits: near-duplicate where the perceptual hashes differ in at most so many of 64 bits (see `narrowed`) ...
        near_correlation: ... and the thumbnails correlate at least so much;
        crop_correlation: or so much after one is laid over a part of the other;
        plain_correlation: where one is tiny, plain (a drawing: half of it of two levels) or smooth (a small digit blown
            up), so much, and no crop: pictures with little in them are alike without being the same.
        imbalance: class-imbalance where the largest class is more than so many times as large.
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
    near_correlation: float = 0.90
    crop_correlation: float = 0.95
    plain_correlation: float = 0.99
    imbalance: float = 10.0

    def narrowed(self, count: int) -> Thresholds:
        """As they are drawn among so many pictures: `near_bits` is 3 less for each tenfold above MANY.

        Of pairs of unlike photographs 4e-4 lie within 16 bits, and a quarter of that for each two bits less: so chance
        hardly brings a picture more pairs to compare than among MANY.
        """
        fewer = round(3 * math.log10(count / MANY)) if count > MANY else 0
        return replace(self, near_bits=max(0, self.near_bits - fewer))

    @classmethod
    def parse(cls, settings: Iterable[str]) -> Thresholds:
        """Thresholds from `name=value` texts.

        Raises:
            InputError: an unknown name, or a value that is no number.
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
                raise InputError(f"threshold {setting!r}: {value!r} is no number") from error
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing said of one picture.

    Attributes:
        file: number of the label file among those given.
        path: the picture; the label file itself where a whole class is meant.
        label: its class number.
        code: what it is.
        detail: what was seen, for a person.
    """

    file: int
    path: Path
    label: int
    code: Code
    detail: str
