"""Compute the sizes of resized images; NumPy is not imported, so that the decoding processes of gather start fast."""

from __future__ import annotations

from mlimages.core import ImageProperty


def resized_size(width: int, height: int, prop: ImageProperty) -> tuple[int, int]:
    """Return the size (width, height) of the resized image before the crop, in pixels.

    For `downscale`, `width` and `height` are those of the central region.

    >>> from mlimages import ImageProperty
    >>> resized_size(640, 480, ImageProperty(224, shorter_px=256))
    (341, 256)
    """
    match prop.resize:
        case "shorter":
            shorter = min(width, height)
            return prop.shorter_px * width // shorter, prop.shorter_px * height // shorter
        case "letterbox":
            scale = min(prop.width / width, prop.height / height)
            return max(1, round(width * scale)), max(1, round(height * scale))
        case "squash":
            return prop.width, prop.height
        case "downscale" if covers_crop(width, height, prop):
            return prop.width, prop.height
        case _:
            return width, height


def centre_start(size: int, crop: int) -> int:
    """Return the offset of a centred crop in pixels, rounded as in torchvision; negative if the image is smaller."""
    return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)


def covers_crop(width: int, height: int, image_property: ImageProperty) -> bool:
    """Whether the image is at least as large as the crop in both directions."""
    return width >= image_property.width and height >= image_property.height
