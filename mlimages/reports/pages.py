"""Pages in one file each: templates filled in, pictures inside as `data:` addresses, nothing fetched."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages.core import MissingExtraError

try:
    import jinja2
except ImportError as error:
    raise MissingExtraError("a page (.html)", "report") from error

_LOSSLESS_PX = 64
"""Up to this side a picture is embedded as PNG; larger ones as JPEG, a tenth of the size."""

_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def fill(template: str, **values: object) -> str:
    """The page made from one template; every value is escaped."""
    return _templates.get_template(template).render(**values)


def picture_address(pixels: NDArray[np.uint8]) -> str:
    """uint8 `(H, W, C)`, RGB or grey, as a `data:` address."""
    out = io.BytesIO()
    format_ = "PNG" if max(pixels.shape[:2]) <= _LOSSLESS_PX else "JPEG"
    to_picture(pixels).save(out, format_, quality=90)
    return data_address(out.getvalue(), f"image/{format_.lower()}")


def data_address(data: bytes, mime: str) -> str:
    """Bytes as a `data:` address."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def to_picture(pixels: NDArray[np.uint8]) -> Image.Image:
    """uint8 `(H, W, C)`, RGB or grey, as a picture."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
