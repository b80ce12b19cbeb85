"""How to decode an image, and what decoding gives."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

WHITE = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the header of an encoded image says.

    Attributes:
        format, mode: as Pillow names them.
        size: width and height in pixels.
        deep: more than 8 bits a channel.
    """

    format: str
    mode: str
    size: tuple[int, int]
    deep: bool


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """How to decode one image.

    Attributes:
        least: a size (width, height) that suffices: a JPEG is decoded at the smallest scale of 1, 1/2, 1/4 and 1/8
            that holds it.
        mode: `L` or `YCbCr`, kept where the decoder gives it; else the pixels are RGB.
        reduce_to: divide both sides (mean of as many pixels) while the shorter one stays at least this many pixels.
        strict: find the damage in a JPEG that Pillow passes over, where simplejpeg is installed.
        upright: turn the image as its orientation says.
        background: what transparent pixels show.
    """

    least: tuple[int, int] | None = None
    mode: str | None = None
    reduce_to: int | None = None
    strict: bool = False
    upright: bool = True
    background: tuple[int, int, int] = WHITE


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Pixels, and what the file said of them.

    Attributes:
        image: 8-bit RGB (RGBX of a strict decoder, or `DecodeOptions.mode`), at the scale that was asked for.
        header: as the file had it.
        size: width and height of the whole image, upright, in pixels.
        orientation: EXIF orientation of the file, 1 (upright) to 8.
        turn: the one that `image` still has where `upright` was not asked for, else 1.
        animated: has further frames; the first is decoded.
        transparent: some pixel shows the background.
        irregular: a JPEG with padding or odd values in its header that leave the pixels whole (with `strict` alone).
    """

    image: Image.Image
    header: ImageHeader
    size: tuple[int, int]
    orientation: int
    turn: int
    animated: bool
    transparent: bool
    irregular: bool
