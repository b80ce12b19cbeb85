"""HTML tables and images for the display of results in notebooks."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

MAX_SHOWN_IMAGES, MAX_IMAGE_BYTES = 4, 1 << 18
_MEDIA_SUBTYPES = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".gif": "gif", ".webp": "webp"}
"""Media subtypes of the images that browsers display, by suffix."""


class Html(str):
    """HTML that `make_html_table` inserts unescaped."""

    __slots__ = ()


def make_html_table(title: str, rows: Iterable[Sequence[object]], *, header: Sequence[str] = ()) -> str:
    """Return an HTML table with a title; cells are escaped unless they are `Html`.

    >>> make_html_table("Classes", [("cats & dogs", 2)])
    '<b>Classes</b><table><tr><td>cats &amp; dogs</td><td>2</td></tr></table>'
    """
    head = f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in header)}</tr>" if header else ""
    cells = ((value if isinstance(value, Html) else html.escape(str(value)) for value in row) for row in rows)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
    return f"<b>{html.escape(title)}</b><table>{head}{body}</table>"


def make_html_images(paths: Iterable[str | os.PathLike[str]], *, height_px: int = 64) -> Html:
    """Return `<img>` tags of the first four images that a browser can display and that have at most 256 KiB."""
    tags = (
        f'<img src="{uri}" alt="{html.escape(path.name)}" style="height:{height_px}px">'
        for path in map(Path, paths)
        if (uri := _make_data_uri(path))
    )
    return Html(" ".join(islice(tags, MAX_SHOWN_IMAGES)))


def _make_data_uri(path: Path) -> str:
    """Return an image file as a `data:` URI; "" if it is too large to embed, or no browser displays it."""
    kind = _MEDIA_SUBTYPES.get(path.suffix.lower())
    try:
        if not kind or path.stat().st_size > MAX_IMAGE_BYTES:
            return ""
        return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError:
        return ""
