"""Codes of errors and warnings, and the thresholds that determine them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from mlimages.core import MAX_PIXELS, InputError, Option, check_options, document_fields, option_fields
from mlimages.labels import Label


class Code(StrEnum):
    """Code of an error or a warning about an image or a class; the codes of errors are declared first."""

    MISSING = "missing"
    EMPTY = "empty"
    NOT_AN_IMAGE = "not-an-image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_MANY_PIXELS = "too-many-pixels"
    UNREADABLE = "unreadable"
    UNAVAILABLE = "unavailable"
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
    CLASS_BLURRED = "class-blurred"

    @property
    def is_error(self) -> bool:
        """Whether images with this code are excluded from NAME_checked.txt; images with warnings are not."""
        return self in ERROR_CODES

    @property
    def is_class_level(self) -> bool:
        """Whether a finding with this code concerns a class of a label file, not an image."""
        return self in (Code.CLASS_IMBALANCE, Code.CLASS_BLURRED)


CODES = tuple(Code)
"""Arrays store a code as its index in this tuple."""

SMOOTH_SHARPNESS = 0.25
"""Sharpness of an image without any detail (see `Measurements`)."""

MIN_IMAGES_FOR_MEDIAN = 30
"""Minimum number of images for a reliable median sharpness."""

LARGE_DATASET_IMAGES = 20_000
"""Number of images above which `Thresholds.adapt_to_size` lowers `near_bits` and `turned_bits`."""

ERROR_CODES = frozenset(CODES[: CODES.index(Code.DUPLICATE)])

_fraction = partial(Option, min=0, max=1)
_luma = partial(Option, min=0, max=255)
_hash_bits = partial(Option, min=0, max=64)


@document_fields
@dataclass(frozen=True, slots=True)
class Thresholds:
    """Thresholds of the checks. Luma, the brightness of a pixel, is 0 to 255.

    Raises:
        InputError: a value is out of bounds.

    Examples:
        >>> from mlimages import Thresholds
        >>> Thresholds(blur=0.35).near_bits
        16
    """

    max_pixels: Annotated[
        int, Option("too-many-pixels: the image has more pixels (width x height) than this.", min=1)
    ] = MAX_PIXELS
    min_side_px: Annotated[int, Option("tiny: the shorter side has fewer pixels than this.", min=0)] = 32
    max_aspect: Annotated[
        float, Option("odd-shape: the aspect ratio (longer / shorter side) is above this value.", min=1)
    ] = 3.0
    max_crop_loss: Annotated[
        float, _fraction("crop-loss: a centred square crop removes more than this fraction of the pixels.")
    ] = 0.5
    blank_spread: Annotated[
        int, _luma("blank: the 98th and the 2nd percentile of luma (0 to 255) differ by at most this value.")
    ] = 4
    contrast_spread: Annotated[
        int,
        _luma(
            "low-contrast: the 98th and the 2nd percentile of luma differ by at most this value; blank, dark and "
            "bright images are exempt."
        ),
    ] = 40
    dark_level: Annotated[
        int,
        _luma(
            "dark: the 98th percentile of luma and the mean of each channel are below this value; blank images are "
            "exempt."
        ),
    ] = 64
    bright_level: Annotated[
        int, _luma("bright: the 2nd percentile of luma is above this value; blank images are exempt.")
    ] = 225
    blur: Annotated[
        float,
        _fraction(
            "blurred: the sharpness (0.25: smooth, 0.5: sharp edges, 1: noise) is below this value; blank images are "
            "exempt. The default is lowered if the median sharpness of all images is below 0.35."
        ),
    ] = 0.30
    placeholder_share: Annotated[
        float,
        _fraction(
            "placeholder: the two most frequent luma values cover at least this fraction of the image; blank and tiny "
            "images are exempt."
        ),
    ] = 0.8
    placeholder_copies: Annotated[
        int,
        Option("placeholder: at least this many images are byte-identical; independent of placeholder_share.", min=2),
    ] = 5
    near_bits: Annotated[
        int,
        _hash_bits(
            "near-duplicate: perceptual hashes differ in at most this many of 64 bits (fewer above 20,000 images)."
        ),
    ] = 16
    turned_bits: Annotated[
        int, _hash_bits("near-duplicate: as near_bits, but for pairs in which one image is flipped or rotated.")
    ] = 12
    near_correlation: Annotated[float, _fraction("near-duplicate: minimum correlation of the two thumbnails.")] = 0.90
    crop_correlation: Annotated[
        float, _fraction("near-duplicate: minimum correlation of one image with the matching crop of the other.")
    ] = 0.95
    plain_correlation: Annotated[
        float, _fraction("near-duplicate: minimum correlation if one image is tiny, smooth or line art.")
    ] = 0.99
    imbalance: Annotated[
        float,
        Option("class-imbalance: the class has fewer images than the largest class divided by this value.", min=1),
    ] = 10.0

    def __post_init__(self) -> None:
        check_options(self)

    def adapt_to_size(self, num_images: int) -> Thresholds:
        """Return the thresholds for a dataset of this number of images.

        Above 20,000 images, `near_bits` and `turned_bits` are lowered: by 3 at 200,000 images, by 6 at 2,000,000. The
        number of pairs of different photographs with such similar perceptual hashes then grows hardly faster than the
        number of images. In a fraction of 2e-4 of all such pairs, the hashes differ in at most 16 bits, in 5e-5 in at
        most 14, and so on.
        """
        fewer = round(3 * math.log10(num_images / LARGE_DATASET_IMAGES)) if num_images > LARGE_DATASET_IMAGES else 0
        return replace(self, near_bits=max(0, self.near_bits - fewer), turned_bits=max(0, self.turned_bits - fewer))

    def adapt_to_sharpness(self, num_images: int, median: float) -> Thresholds:
        """Return the thresholds for a dataset of this number of images and median sharpness.

        If `median` is below 0.35, for example because small images were enlarged, `blur` is lowered to the mean of 0.25
        (the sharpness without any detail) and `median`. It is not changed if there are fewer than 30 images, or if it
        is not the default.
        """
        if num_images < MIN_IMAGES_FOR_MEDIAN or self.blur != Thresholds().blur:
            return self
        return replace(self, blur=min(self.blur, SMOOTH_SHARPNESS + (median - SMOOTH_SHARPNESS) / 2))

    @classmethod
    def parse(cls, settings: Iterable[str]) -> Thresholds:
        """Return the default thresholds with the settings `NAME=VALUE` applied.

        Raises:
            InputError: a name is unknown, or a value is not a number or is out of bounds.

        Examples:
            >>> from mlimages import Thresholds
            >>> Thresholds.parse(["blur=0.35"]).blur
            0.35
        """
        types: dict[str, type] = {field.name: field.type for field in option_fields(cls)}
        values: dict[str, Any] = {}
        for setting in settings:
            name, _, value = setting.partition("=")
            if name not in types or not value:
                raise InputError(f"threshold {setting!r}: expected NAME=VALUE, where NAME is one of {', '.join(types)}")
            try:
                values[name] = types[name](value)
            except ValueError as error:
                kind = "a whole number" if types[name] is int else "a number"
                raise InputError(f"threshold {setting!r}: {value!r} is not {kind}") from error
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Finding:
    """An error or a warning about an image or a class.

    Attributes:
        file_index: index of the label file in `CheckReport.files`.
        path: path of the image; for a finding about a class, path of the label file.
        label: class index, in the label file `file_index`, of the image or of the class that the finding is about. For
            an image in a multi-label file, the sorted class indices.
        code: code of the error or warning.
        detail: the measured value, the related image, or why the file cannot be read, as text.
        related_path: path of the image that this one duplicates or nearly duplicates; None for other findings.
    """

    file_index: int
    path: Path
    label: Label
    code: Code
    detail: str
    related_path: Path | None = None
