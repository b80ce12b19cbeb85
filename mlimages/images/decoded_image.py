"""Options and results of decoding."""

from __future__ import annotations

from dataclasses import dataclass
from operator import index

from PIL import Image

from mlimages.core import InputError

WHITE = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The header of an encoded image.

    Attributes:
        format, mode: format and mode, as named by Pillow.
        size: width and height in pixels.
        high_bit_depth: whether the image has more than 8 bits per channel; false for colour images in JPEG 2000, AVIF
            and HEIC, whose bit depth Pillow does not report.
    """

    format: str
    mode: str
    size: tuple[int, int]
    high_bit_depth: bool


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """Options of `decode`.

    Attributes:
        min_size: decode a JPEG at a reduced scale, the smallest of 1, 1/2, 1/4 and 1/8 (or, with simplejpeg, of 1/8,
            2/8 ... 8/8) at which the image has at least this width and height in pixels. None: decode at full scale.
        mode: `L` or `YCbCr`: return the image in this mode if the decoder can deliver it, and in RGB otherwise.
            None: always return RGB.
        min_reduced_side_px: after decoding, downscale an image of any format by the largest integer factor that leaves
            its shorter side at least this many pixels. It has no effect if the image is returned in `mode`. None: do
            not downscale.
        strict: decode a JPEG with simplejpeg, if installed, which detects damage that Pillow ignores.
        apply_orientation: apply the EXIF orientation.
        background: RGB colour behind transparent pixels.

    Raises:
        InputError: `background` does not consist of three whole numbers in 0..255.
    """

    min_size: tuple[int, int] | None = None
    mode: str | None = None
    min_reduced_side_px: int | None = None
    strict: bool = False
    apply_orientation: bool = True
    background: tuple[int, int, int] = WHITE

    def __post_init__(self) -> None:
        try:
            levels = tuple(map(index, self.background))
        except TypeError:
            levels = ()
        if len(levels) != 3 or not all(0 <= level <= 255 for level in levels):
            raise InputError(f"background is {self.background!r}: expected three whole numbers in 0..255 (RGB)")
        object.__setattr__(self, "background", levels)


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """The pixels and properties of a decoded image.

    Attributes:
        image: 8-bit RGB image (RGBX if decoded by simplejpeg, or `DecodeOptions.mode`), possibly at a reduced scale.
        header: header of the file.
        size: width and height of the upright image at full scale, in pixels.
        orientation: EXIF orientation of the file, 1 (upright) to 8.
        remaining_orientation: EXIF orientation still to apply to `image`; 1 with `DecodeOptions.apply_orientation`.
        animated: whether the file has more than one frame, except MPO; only the first is decoded.
        transparent: whether any pixel is at least partly transparent.
        irregular_jpeg: whether the file is a JPEG with needless bytes between or after its segments (padding), or with
            unusual header values, but with intact pixels; only detected with `DecodeOptions.strict` and simplejpeg.
    """

    image: Image.Image
    header: ImageHeader
    size: tuple[int, int]
    orientation: int
    remaining_orientation: int
    animated: bool
    transparent: bool
    irregular_jpeg: bool
