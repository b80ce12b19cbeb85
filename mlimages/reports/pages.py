"""Self-contained HTML pages: templates, one stylesheet, and images embedded as `data:` URLs."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages.core import (
    ClassScore,
    ConfusionMatrix,
    ImageError,
    ImageProperty,
    MissingExtraError,
    format_interval,
    format_percent,
    pluralize,
)
from mlimages.images import load_pixels

try:
    import jinja2
except ModuleNotFoundError as error:
    raise MissingExtraError("a page (.html)", "report") from error

MAX_TILES = 24
"""Maximum number of tiles in a gallery."""

MAX_MATRIX_CLASSES = 30
"""Maximum number of classes for which a confusion matrix is shown as a table."""

THUMBNAIL_PROPERTY = ImageProperty(160, resize="letterbox")

_MAX_PNG_SIDE_PX = 64
"""Images with sides of at most this are embedded as PNG, larger ones as JPEG, which takes about a tenth of the size."""


@dataclass(frozen=True, slots=True)
class GalleryTile:
    """One tile of a gallery.

    Attributes:
        image_urls: `data:` URLs of the images, side by side; an empty string for an image that cannot be decoded.
        caption_lines: lines of the caption.
        placeholder_text: text shown instead of an image that cannot be decoded.
    """

    image_urls: tuple[str, ...]
    caption_lines: tuple[str, ...]
    placeholder_text: str = "cannot be read"


def render(template: str, *, title: str, subtitle: str = "", **values: object) -> str:
    """Render a page from a template.

    Args:
        template: a file in `templates/` that extends `base.html`.
        title, subtitle: headings of the page.
        values: variables of the template. They are escaped, except the variable `drawings`, a list of SVG elements.
    """
    return _templates.get_template(template).render(title=title, subtitle=subtitle, **values)


def embed_thumbnail(path: Path, image_property: ImageProperty = THUMBNAIL_PROPERTY) -> str:
    """Return a thumbnail of an image file as a `data:` URL; empty if the image cannot be decoded."""
    try:
        return to_data_url(load_pixels(path, image_property))
    except ImageError:
        return ""


def make_image_tile(path: Path, caption: str, *, image_property: ImageProperty = THUMBNAIL_PROPERTY) -> GalleryTile:
    """Return a tile of an image file; below `caption`, a second line names its folder and file."""
    return GalleryTile((embed_thumbnail(path, image_property),), (caption, f"{path.parent.name}/{path.name}"))


def format_mistake(labels: Iterable[str], predicted_classes: Iterable[ClassScore]) -> str:
    """Return the caption of a wrong prediction: the true classes, then the predicted classes with their probabilities.

    >>> format_mistake(["cats"], [ClassScore("dogs", 1, 0.9)])
    'cats, predicted dogs (90 %)'
    """
    scores = ", ".join(f"{each.class_name} ({format_percent(each.probability, 0)})" for each in predicted_classes)
    return f"{' and '.join(labels) or 'none'}, predicted {scores or 'none'}"


def to_data_url(pixels: NDArray[np.uint8]) -> str:
    """Return pixels, uint8 `(H, W, C)`, RGB or gray, as a `data:` URL."""
    out = io.BytesIO()
    format_ = "PNG" if max(pixels.shape[:2]) <= _MAX_PNG_SIDE_PX else "JPEG"
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(out, format_, quality=85)
    return f"data:image/{format_.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


def make_matrix_cells(confusion: ConfusionMatrix) -> list[list[tuple[int, float]]]:
    """Return the rows of a confusion matrix, with (count, fraction of the images of the true class) for each cell.

    The list is empty if there are too many classes for a table.
    """
    if len(confusion) > MAX_MATRIX_CLASSES:
        return []
    return [[(count, count / max(1, sum(row))) for count in row] for row in confusion]


_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_templates.globals["pluralize"] = pluralize
_templates.filters |= {
    "percent": format_percent,
    "interval": format_interval,
    # (id, title as HTML) of each section
    "contents": re.compile(r'<h2 id="([^"]+)">\s*(.*?)\s*(?:<small.*?)?</h2>', re.DOTALL).findall,
    "capitalize": lambda text: text[:1].upper() + text[1:],  # Jinja's filter makes "map" of "mAP"
}
