"""Contact sheets: some pictures of each class as the network sees them."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mlimages.core import Fault, ImageError, ImageProperty, InputError, counted, replacing, write_text
from mlimages.dataset import TrainingData
from mlimages.images import load_pixels, load_rgb, to_network
from mlimages.labels import LabelFile, has_class_folders, label_dir, label_dir_auto

MAX_TILES = 600
"""A sheet is to be looked at: where there are more pictures, each class shows fewer, then fewer classes are shown."""

MAX_SIDE_PX = 160
"""Larger tiles are drawn at this size in a PNG; an HTML page scales them itself."""

_GAP_PX, _LINE_PX, _MARGIN_PX = 6, 18, 12
_INK, _QUIET, _GROUND, _HOLE = (27, 31, 36), (89, 99, 110), (255, 255, 255), (232, 235, 238)


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture: uint8 `(H, W, C)` as the network sees it, or the fault that keeps it from being seen."""

    caption: str
    pixels: NDArray[np.uint8] | None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class SheetRow:
    """One class: how many pictures it has, and some of them."""

    name: str
    count: int
    tiles: tuple[Tile, ...]


def draw_sheet(
    source: Path, out: Path, *, prop: ImageProperty, per_class: int = 8, seed: int = 0
) -> tuple[SheetRow, ...]:
    """Write the contact sheet of a label file, a folder of class folders or a mean, and return what is on it.

    Args:
        source: a mean is a `.npy`, float32 `(C, H, W)` in 0..255, or a `.png`; it is shown whole and by channel.
        out: a .png or .html file.
        prop: how each picture is prepared; a mean is shown as it is.

    Raises:
        InputError: nothing there to show, or another suffix.
        MissingExtraError: a .html file, and what makes it is not installed.
    """
    _check_form(out)
    if source.suffix.lower() in (".npy", ".png"):
        rows = mean_rows(source)
        write_sheet(rows, out, title=source.name, note="the mean image, and each of its channels")
        return rows
    if not source.is_dir():
        labels = LabelFile(source)
    else:
        labels = label_dir_auto(source).labels if has_class_folders(source) else label_dir(source, 0)
    rows = sheet_rows(TrainingData(labels, prop), per_class=per_class, seed=seed)
    shown = f"{counted(sum(row.count for row in rows), 'picture')}, {counted(len(rows), 'class')}"
    way = f"{prop.resize} to {prop.width} x {prop.height} px" + (", grey" if prop.gray_scale else "")
    note = f"{shown}; up to {per_class} of each by chance (seed {seed}); {way}"
    write_sheet(rows, out, title=source.name, note=note)
    return rows


def mean_rows(path: Path) -> tuple[SheetRow, ...]:
    """A mean image whole, and each channel in grey with its figure."""
    pixels = _mean_pixels(path)
    tiles = [Tile("mean", pixels)]
    names = "RGB" if pixels.shape[2] == 3 else ""
    for channel, name in enumerate(names):
        grey = pixels[:, :, channel : channel + 1]  # (H, W, 1)
        tiles.append(Tile(f"{name}: {grey.mean():.1f}", grey))
    return (SheetRow(path.stem, 0, tuple(tiles)),)


def _mean_pixels(path: Path) -> NDArray[np.uint8]:
    if path.suffix.lower() == ".png":
        return np.asarray(load_rgb(path))
    try:
        with path.open("rb") as file:
            mean: NDArray[np.float32] = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, MemoryError) as error:
        raise InputError(f"{path}: not a mean image of `mlimages mean` ({error})") from error
    if mean.ndim != 3 or mean.shape[0] not in (1, 3):
        raise InputError(f"{path}: expected an array (channels, height, width), found {mean.shape}")
    pixels: NDArray[np.uint8] = np.clip(np.rint(mean.transpose(1, 2, 0)), 0, 255).astype(np.uint8)  # (H, W, C)
    return pixels


def sheet_rows(data: TrainingData, *, per_class: int = 8, seed: int = 0) -> tuple[SheetRow, ...]:
    """Choose `per_class` pictures of each class by chance; each is shown as its array gives it back.

    Raises:
        InputError: there is no picture.
    """
    by_label: dict[int, list[Path]] = {}
    for item in data.labels:
        by_label.setdefault(item.label, []).append(item.path)
    if not by_label:
        raise InputError("no picture to show: is the label file empty?")
    labels = sorted(by_label)[:MAX_TILES]
    per_class = min(per_class, max(1, MAX_TILES // len(labels)))
    chance, class_names = random.Random(seed), data.labels.class_names
    return tuple(
        SheetRow(
            name=class_names[label] if label < len(class_names) else str(label),
            count=len(by_label[label]),
            tiles=tuple(_tile(path, data) for path in _some(by_label[label], per_class, chance)),
        )
        for label in labels
    )


def _check_form(out: Path) -> None:
    """Raise now what `write_sheet` would raise when all pictures are decoded."""
    if out.suffix.lower() == ".html":
        importlib.import_module("mlimages.reports.pages")
    elif out.suffix.lower() != ".png":
        raise InputError(f"{out}: a contact sheet is a .png or .html file")


def write_sheet(rows: Sequence[SheetRow], out: Path, *, title: str, note: str) -> None:
    """Write a contact sheet as its suffix says: .png, or .html in one file."""
    if out.suffix.lower() == ".html":
        from mlimages.reports.pages import fill, picture_address

        write_text(out, fill("sheet.html", rows=rows, title=title, note=note, address=picture_address))
    else:
        with replacing(out) as part:
            _drawn(rows, title=title, note=note).save(part, "PNG")


def _drawn(rows: Sequence[SheetRow], *, title: str, note: str) -> Image.Image:
    """The sheet as one picture, a line of tiles a class."""
    side = _tile_side(rows)
    columns = max(len(row.tiles) for row in rows)
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    width = 2 * _MARGIN_PX + max(columns * (side + _GAP_PX), 420)
    row_height = side + 2 * _LINE_PX + _GAP_PX
    sheet = Image.new("RGB", (width, 2 * _MARGIN_PX + 2 * _LINE_PX + len(rows) * row_height), _GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN_PX, _MARGIN_PX), _fit(title, font, width), _INK, font)
    draw.text((_MARGIN_PX, _MARGIN_PX + _LINE_PX), _fit(note, small, width), _QUIET, small)
    for number, row in enumerate(rows):
        top = _MARGIN_PX + 2 * _LINE_PX + number * row_height + _GAP_PX
        heading = f"{row.name}  ({row.count})" if row.count else row.name
        draw.text((_MARGIN_PX, top), _fit(heading, font, width), _INK, font)
        for column, tile in enumerate(row.tiles):
            corner = (_MARGIN_PX + column * (side + _GAP_PX), top + _LINE_PX)
            _draw_tile(sheet, draw, tile, corner=corner, side=side, font=small)
    return sheet


def _some(paths: list[Path], count: int, chance: random.Random) -> list[Path]:
    return chance.sample(sorted(paths), min(count, len(paths)))


def _tile(path: Path, data: TrainingData) -> Tile:
    try:
        pixels = load_pixels(path, data.prop)
    except ImageError as error:
        return Tile(path.name, None, error.fault)
    array = to_network(pixels[None], data.normalization, data.mean_image)[0]  # (C, H, W)
    return Tile(path.name, np.atleast_3d(np.asarray(data.data_to_image(array).image)))


def _seen(rows: Sequence[SheetRow]) -> Iterator[NDArray[np.uint8]]:
    return (tile.pixels for row in rows for tile in row.tiles if tile.pixels is not None)


def _tile_side(rows: Sequence[SheetRow]) -> int:
    """Pictures of a few pixels are enlarged by a whole number, large ones are drawn at `MAX_SIDE_PX`."""
    side = max((max(pixels.shape[:2]) for pixels in _seen(rows)), default=MAX_SIDE_PX)
    return min(side * max(1, 96 // side), MAX_SIDE_PX)


def _draw_tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    tile: Tile,
    *,
    corner: tuple[int, int],
    side: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    left, top = corner
    if tile.pixels is None:
        draw.rectangle((left, top, left + side - 1, top + side - 1), _HOLE)
        draw.text((left + 4, top + side // 2), _fit(str(tile.fault), font, side - 4), _QUIET, font)
    else:
        height, width = tile.pixels.shape[:2]
        scale = side / max(height, width)
        picture = Image.fromarray(tile.pixels.squeeze(2) if tile.pixels.shape[2] == 1 else tile.pixels)
        way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
        sheet.paste(picture.resize((max(1, round(width * scale)), max(1, round(height * scale))), way), corner)
    draw.text((left, top + side + 1), _fit(tile.caption, font, side), _QUIET, font)


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """`text` cut so that it takes at most `width` pixels."""
    text = "".join(char if char.isprintable() else "?" for char in text[:200])
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2] + "…"
    return text
