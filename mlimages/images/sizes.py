"""Where a picture's sides and its crop come to lie: arithmetic alone."""

from __future__ import annotations

from mlimages.core import ImageProperty


def resized_size(width: int, height: int, prop: ImageProperty) -> tuple[int, int]:
    """The size (width, height) to which a picture is scaled before the crop."""
    match prop.resize:
        case "shorter":
            shorter = min(width, height)
            return prop.shorter_px * width // shorter, prop.shorter_px * height // shorter
        case "squash":
            return prop.width, prop.height
        case "letterbox":
            scale = min(prop.width / width, prop.height / height)
            return max(1, round(width * scale)), max(1, round(height * scale))
        case "downscale":
            while width // 2 >= prop.width and height // 2 >= prop.height:
                width, height = width // 2, height // 2
            return width, height
        case _:
            return width, height


def centre_start(size: int, crop: int) -> int:
    """Where a centred crop begins: torchvision's rounding; negative where the picture is smaller."""
    return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)
