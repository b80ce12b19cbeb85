"""An image and its class, with methods that transform it."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages.core import ImageProperty, InputError, as_path
from mlimages.images.arrays import to_uint8
from mlimages.images.decoded_image import WHITE
from mlimages.images.decoding import load_rgb
from mlimages.images.geometry import load_pixels, prepare_pixels, resize_and_crop


class LabeledImage:
    """An image and its class index; each method that transforms the image returns the same object.

    Args:
        path: path of the image file; may be empty if the image comes from an array.
        label: class index; -1 if unknown.

    Examples:
        >>> from mlimages import LabeledImage
        >>> image = LabeledImage("photos/cats/0.png", 0).downscale(32)
        >>> image.image.size, image.to_array().shape
        ((32, 32), (3, 32, 32))
    """

    __slots__ = ("_image", "label", "path")

    def __init__(self, path: str | os.PathLike[str] = "", label: int = -1) -> None:
        self.path = as_path(path or Path())
        self.label = label
        self._image: Image.Image | None = None

    def __repr__(self) -> str:
        return f"LabeledImage({str(self.path)!r}, {self.label})"

    @property
    def image(self) -> Image.Image:
        """The current image, 8-bit RGB or grayscale; loaded on first access.

        Raises:
            ImageError: the file cannot be decoded.
        """
        if self._image is None:
            self._image = load_rgb(self.path)
        return self._image

    def load(self, *, background: tuple[int, int, int] = WHITE) -> Self:
        """Load the image file again, as upright 8-bit RGB; of an animation, the first frame. This undoes all changes.

        Args:
            background: RGB colour behind transparent pixels.

        Raises:
            InputError: the image has no path, or `background` is no colour.
            ImageError: the file cannot be decoded.
        """
        if self.path == Path():
            raise InputError("the image has no path, since it is from an array: there is no file to load again")
        self._image = load_rgb(self.path, background=background)
        return self

    def to_grayscale(self) -> Self:
        """Convert the image to grayscale (ITU-R 601-2 luma)."""
        self._image = self.image.convert("L")
        return self

    def downscale(self, width: int, height: int = 0) -> Self:
        """Crop the largest central region with the target's aspect ratio, and shrink it to `width` x `height` pixels.

        An image is never enlarged. If its width is below `width` or its height below `height`, only the central
        `width` x `height` pixels are cropped, as by `crop_from_center`, with black where the image is smaller.

        Args:
            width: width in pixels.
            height: height in pixels; 0 means the same as width.
        """
        return self._resize_and_crop(ImageProperty(width, height, resize="downscale"))

    def crop_from_lefttop(self, left: int, top: int, width: int, height: int = 0) -> Self:
        """Crop a region of `width` x `height` pixels; pixels outside the image are black.

        Args:
            left: left edge of the region in pixels.
            top: top edge of the region in pixels.
            width: width in pixels.
            height: height in pixels; 0 means the same as width.
        """
        return self._resize_and_crop(ImageProperty(width, height, resize="position", position=(left, top)))

    def crop_from_center(self, width: int, height: int = 0) -> Self:
        """Crop the central region of `width` x `height` pixels; pixels outside the image are black.

        Args:
            width: width in pixels.
            height: height in pixels; 0 means the same as width.
        """
        return self._resize_and_crop(ImageProperty(width, height, resize="crop"))

    def convert(self, image_property: ImageProperty) -> Self:
        """Convert the image to a network's input: resize and crop it, and make it RGB or grayscale.

        If the file has not been loaded yet, the pixels are identical to those in training and prediction. Otherwise the
        current image, with all previous changes, is resized and cropped.

        Args:
            image_property: size, resize method and number of channels.

        Raises:
            ImageError: the file cannot be decoded, or the resized image would have too many pixels.
            TypeError: `image_property` is not an ImageProperty.
        """
        if self._image is None:
            self._image = _from_pixels(load_pixels(self.path, image_property))
        else:
            self._image = _from_pixels(prepare_pixels(self._image.convert("RGB"), image_property))
        return self

    def to_array(self, xp: ModuleType = np, color: bool = True, *, bgr: bool = False) -> NDArray[np.float32]:
        """Return the image as an array, float32 `(C, H, W)` in 0..255.

        Args:
            xp: array module: `numpy`, or `cupy` for an array on a GPU.
            color: return three channels (of a grayscale image, three equal ones) instead of one channel of luma.
            bgr: return the channels in the order blue, green, red.
        """
        array = np.asarray(self.image.convert("RGB" if color else "L"), dtype=np.float32)  # (H, W[, 3])
        array = array.transpose(2, 0, 1) if color else array[None]  # (C, H, W)
        result: NDArray[np.float32] = xp.asarray(np.ascontiguousarray(array[::-1] if bgr else array))
        return result

    @classmethod
    def from_array(cls, array: NDArray[np.floating[Any]], label: int = -1, *, bgr: bool = False) -> Self:
        """Create an image from an array `(C, H, W)` with 1 or 3 channels and values in 0..255, rounded and clipped.

        Args:
            array: the pixels.
            label: class index; -1 if unknown.
            bgr: the channels of the array are in the order blue, green, red.

        Raises:
            InputError: the array has another shape, or its values are not real numbers or are NaN.

        Examples:
            >>> import numpy as np
            >>> from mlimages import LabeledImage
            >>> LabeledImage.from_array(np.zeros((3, 24, 32), np.float32)).image.size
            (32, 24)
        """
        array = np.asarray(array)
        if array.ndim != 3 or array.shape[0] not in (1, 3) or not array.size:
            raise InputError(
                f"an array of shape {array.shape}: expected (channels, height, width) with 1 or 3 channels"
            )
        if array.dtype.kind not in "biuf":
            raise InputError(f"an array of {array.dtype}: expected real numbers in 0..255")
        if np.isnan(array).any():
            raise InputError("an array that contains NaN: expected real numbers in 0..255")
        result = cls("", label)
        result._image = _from_pixels(to_uint8(array[::-1] if bgr else array).transpose(1, 2, 0))
        return result

    def _resize_and_crop(self, image_property: ImageProperty) -> Self:
        self._image = resize_and_crop(self.image, image_property)
        return self


def _from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    """Convert uint8 `(H, W, C)` to an image."""
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
