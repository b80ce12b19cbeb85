"""Compute the sizes of resized images, without NumPy, so that the decoding processes of `gather` start fast."""

from __future__ import annotations

from mlimages.core import ImageProperty


def compute_resized_size(width: int, height: int, image_property: ImageProperty) -> tuple[int, int]:
    """Return width and height in pixels of an image after resizing and before cropping.

    With the resize method `downscale`, which first crops a central region, the arguments are the size of this region.

    >>> from mlimages import ImageProperty
    >>> compute_resized_size(640, 480, ImageProperty(224, shorter_px=256))
    (341, 256)
    """
    match image_property.resize:
        case "shorter":
            shorter = min(width, height)
            return image_property.shorter_px * width // shorter, image_property.shorter_px * height // shorter
        case "letterbox":
            scale = min(image_property.width / width, image_property.height / height)
            return max(1, round(width * scale)), max(1, round(height * scale))
        case "squash":
            return image_property.width, image_property.height
        case "downscale" if covers_crop(width, height, image_property):
            return image_property.width, image_property.height
        case _:
            return width, height


def compute_crop_offset(size: int, crop: int) -> int:
    """Return the offset of a centred crop along one axis, rounded as in torchvision; negative if `size < crop`."""
    return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)


def covers_crop(width: int, height: int, image_property: ImageProperty) -> bool:
    """Return whether the image is at least as large as the crop in both directions."""
    return width >= image_property.width and height >= image_property.height
