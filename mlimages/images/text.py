"""Find fonts that can display class names in any script, in plots and in images drawn by Pillow.

The list of installed fonts is that of matplotlib, which is optional and imported only for non-ASCII text.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from mlimages.core import format_examples

if TYPE_CHECKING:
    from matplotlib.font_manager import FontEntry

logger = logging.getLogger(__name__)

FONT_FAMILIES = (
    "DejaVu Sans",
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR", "Source Han Sans",
    "Hiragino Sans", "Yu Gothic", "Meiryo", "MS Gothic", "IPAGothic", "IPAexGothic", "TakaoGothic",
    "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "Apple SD Gothic Neo", "Malgun Gothic", "NanumGothic", "Arial Unicode MS", "Droid Sans Fallback",
    "Noto Sans", "Noto Sans Arabic", "Noto Naskh Arabic", "Geeza Pro", "Noto Sans Hebrew", "Arial", "Segoe UI",
    "Noto Sans Devanagari", "Lohit Devanagari", "Kohinoor Devanagari", "Mangal", "Nirmala UI",
    "Noto Sans Thai", "Thonburi", "Leelawadee UI", "Tahoma", "Garuda", "Loma",
    "FreeSans", "Unifont",
)  # fmt: skip
"""Font families in order of preference."""

CLASS_INDICES_NOTE = "class indices replace names that no installed font can display"
"""Note below a plot or contact sheet with class indices instead of names."""


@cache
def find_installed_fonts() -> tuple[FontEntry, ...]:
    """Return the installed regular font of each of `FONT_FAMILIES`, in order; an empty tuple without matplotlib."""
    try:
        from matplotlib import font_manager
    except ModuleNotFoundError:
        return ()
    found: dict[str, FontEntry] = {}
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: entry.fname):
        regular = (entry.style, entry.weight, entry.stretch) == ("normal", 400, "normal")
        if regular and entry.name in FONT_FAMILIES and Path(entry.fname).exists():  # the cached list may be outdated
            found.setdefault(entry.name, entry)
    return tuple(found[family] for family in FONT_FAMILIES if family in found)


@cache
def _read_code_points(font_path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(font_path).get_charmap())


def find_font(text: str) -> FontEntry | None:
    """Return the first installed font of `FONT_FAMILIES` that has glyphs for every character; None if there is none."""
    wanted = {ord(char) for char in text if unicodedata.category(char) not in ("Cf", "Zs")}
    return next((font for font in find_installed_fonts() if wanted <= _read_code_points(font.fname)), None)


def replace_undrawable_names(names: Sequence[str], class_indices: Sequence[int] | None = None) -> list[str]:
    """Return the class names, each replaced by its class index if no installed font can display it.

    Args:
        names: class names.
        class_indices: class indices; by default 0, 1, 2 ...
    """
    class_indices = range(len(names)) if class_indices is None else class_indices
    drawable = [name.isascii() or find_font(name) is not None for name in names]
    others = [name for name, has_font in zip(names, drawable, strict=True) if not has_font]
    if others:
        logger.warning(
            "no installed font can display %s: PNG files show class indices instead, and HTML pages show the names. "
            "Install %sa font such as Noto Sans",
            format_examples(others, 3),
            "" if find_installed_fonts() else "matplotlib and ",
        )
    return [name if has_font else str(n) for name, n, has_font in zip(names, class_indices, drawable, strict=True)]


def find_font_families(texts: Sequence[str]) -> list[str]:
    """Return the font families that matplotlib needs to draw these texts, starting with the default."""
    fonts = (find_font(text) for text in texts if not text.isascii())
    return list(dict.fromkeys(["DejaVu Sans", *(font.name for font in fonts if font)]))


def draw_text_line(
    image: Image.Image,
    top_left: tuple[float, float],
    text: str,
    font_size: int,
    *,
    width: float,
    color: tuple[int, int, int] = (0, 0, 0),
) -> float:
    """Draw a line of text onto an image, and return the x coordinate of its right end in pixels.

    Only the first 200 characters are drawn. Text that is wider than `width` is cut and ends in "...". If no font can
    display the whole text, each non-ASCII character becomes a question mark.

    Args:
        image: the image, which is modified.
        top_left: x and y coordinate of the top left corner of the text in pixels.
        text: the text; line breaks and other characters that cannot be printed become question marks.
        font_size: font size in pixels.
        width: maximum width of the text in pixels.
        color: RGB colour of the text.
    """
    text = "".join(char if char.isprintable() else "?" for char in text[:200])
    found = None if text.isascii() else find_font(text)
    if found is None:
        text = "".join(char if char.isascii() else "?" for char in text)
        font = ImageFont.load_default(font_size)
    else:
        font = ImageFont.truetype(found.fname, font_size, getattr(found, "index", 0))
    shown = text
    while len(text) > 1 and font.getlength(shown) > width:
        text = text[:-1]
        shown = f"{text}..."
    ImageDraw.Draw(image).text(top_left, shown, color, font)
    return top_left[0] + font.getlength(shown)
