"""Contact sheets: a sample of images of each class, preprocessed for the network."""

from __future__ import annotations

import importlib
import logging
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages.core import (
    Fault,
    ImageError,
    ImageProperty,
    InputError,
    as_path,
    check_at_least,
    check_seed,
    find_name,
    format_command,
    pluralize,
    refresh_remote_listings,
    require_writable,
    write_output,
)
from mlimages.dataset import TrainingData, load_mean_image
from mlimages.images import (
    CLASS_INDICES_NOTE,
    draw_text_line,
    load_pixels,
    replace_undrawable_names,
    to_network_input,
    to_uint8,
)
from mlimages.labels import TableOptions, has_class_folders, label_dir, label_dir_auto, open_labels
from mlimages.reports.run_files import RunFiles

logger = logging.getLogger(__name__)

MAX_TILES = 600
"""Maximum number of images on a sheet. With more, fewer images of each class are shown, then fewer classes."""

MAX_TILE_SIDE_PX = 160
"""Side to which larger tiles are reduced in a PNG file; an HTML page embeds them at full size."""

_GAP_PX, _LINE_PX, _MARGIN_PX = 6, 18, 12
_TEXT_COLOR, _MUTED_COLOR, _BACKGROUND, _PLACEHOLDER = (27, 31, 36), (89, 99, 110), (255, 255, 255), (232, 235, 238)


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """One image of a contact sheet.

    Attributes:
        caption: text below the tile: file name of an image, number of a feature map or, for a mean image, `mean` or
            the mean of a channel (`R: 123.4`).
        pixels: the preprocessed image, uint8 `(H, W, C)`; None if it cannot be decoded.
        fault: why the image cannot be decoded; None if it can.
        path: path of the image; None for a mean image or a feature map.
    """

    caption: str
    pixels: NDArray[np.uint8] | None
    fault: Fault | None = None
    path: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SheetRow:
    """One row of a contact sheet: a class, a mean image or feature maps.

    Attributes:
        name: name of the class, or heading of the row.
        num_images: number of images of the class; 0 for a mean image and feature maps.
        tiles: a sample of the images of the class, or the tiles of the mean image or feature maps.
        label: class index; always 0, without meaning, for a mean image and feature maps.
    """

    name: str
    num_images: int
    tiles: tuple[Tile, ...]
    label: int = 0

    def __repr__(self) -> str:
        return f"<SheetRow {self.name}: {pluralize(len(self.tiles), 'tile')} of {pluralize(self.num_images, 'image')}>"


def draw_contact_sheet(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    image_property: ImageProperty,
    per_class: int = 8,
    seed: int = 0,
    table: TableOptions | None = None,
    overwrite: bool = False,
) -> tuple[SheetRow, ...]:
    """Draw the contact sheet of a label file, a folder of images or a mean image, and return its rows.

    Args:
        source: a label file, a folder (of class folders, otherwise all its images are one class), or a mean image: a
            `.npy`, float32 `(C, H, W)` in 0..255, or a `.png`.
        out: a .png or .html file.
        image_property: size and resize method; not applied to a mean image.
        per_class: maximum number of images of each class; a sheet has at most `MAX_TILES` images.
        seed: random seed of the sample.
        table: if `source` is a label file in the form of a table, such as .csv: which columns to read.
        overwrite: replace a file that mlimages did not write, or that was changed since.

    Raises:
        InputError: there is no image, `source` is a run folder, `out` has another suffix, an argument is out of range,
            or `out` exists, was not written by mlimages or was changed since, and `overwrite` is false.
        MissingExtraError: `out` is a .html file and jinja2 is not installed.

    Example:
        >>> from mlimages import ImageProperty
        >>> draw_contact_sheet("photos", "sheet.png", image_property=ImageProperty(224), per_class=4)
        (<SheetRow cats: 4 tiles of 6 images>, <SheetRow dogs: 4 tiles of 6 images>)
    """
    check_at_least(1, per_class=per_class)
    check_seed(seed)
    source, out = as_path(os.fspath(source)), as_path(os.fspath(out))
    _check_suffix(out)
    require_writable([out], overwrite=overwrite)
    if source.suffix.lower() in (".npy", ".png"):
        rows = make_mean_image_rows(source)
        note = "the mean image, and each of its channels" if len(rows[0].tiles) > 1 else "the mean image"
        write_sheet(rows, out, title=find_name(source), note=note, overwrite=overwrite)
        return rows
    if (run := RunFiles(source)).config.exists() and run.metrics.exists():
        raise InputError(
            f"{source} is a run folder: open {run.report}, or draw feature maps with "
            + format_command("show", source, "IMAGE", "--layer", "NAME")
        )
    with refresh_remote_listings(source):
        if source.is_dir() and not (table and table.class_from):
            labels = label_dir_auto(source).labels if has_class_folders(source) else label_dir(source, 0)
        else:
            labels = open_labels(source, table)
    rows = make_sheet_rows(TrainingData(labels, image_property), per_class=per_class, seed=seed)
    num_images, count_by_class = labels.count_images()
    found = f"{pluralize(num_images, 'image')}, {pluralize(len(count_by_class), 'class')}"
    if len(rows) < len(count_by_class):
        found += f" (the first {len(rows)} are shown)"
    shown_per_class = max(len(row.tiles) for row in rows)
    gray = ", gray" if image_property.gray_scale else ""
    resized = f"resize {image_property.resize}, {image_property.width} x {image_property.height} px{gray}"
    note = f"{found}; a random sample of up to {shown_per_class} per class (seed {seed}); {resized}"
    write_sheet(rows, out, title=find_name(source), note=note, overwrite=overwrite)
    return rows


def make_mean_image_rows(path: Path) -> tuple[SheetRow, ...]:
    """Return one row with a tile of the mean image and, if it has colour, a gray tile of each channel.

    The caption of a channel's tile contains the mean of the channel.
    """
    pixels = to_uint8(load_mean_image(path).transpose(1, 2, 0))  # (H, W, C)
    tiles = [Tile("mean", pixels)]
    names = "RGB" if pixels.shape[2] == 3 else ""
    for channel, name in enumerate(names):
        grey = pixels[:, :, channel : channel + 1]  # (H, W, 1)
        tiles.append(Tile(f"{name}: {grey.mean():.1f}", grey))
    return (SheetRow(path.stem, 0, tuple(tiles)),)


def make_sheet_rows(data: TrainingData, *, per_class: int = 8, seed: int = 0) -> tuple[SheetRow, ...]:
    """Return a row for each class that has images, in the order of the class indices, with a random sample of them.

    A sample has at most `per_class` images, fewer if the sheet would have more than `MAX_TILES`. They are shown as the
    network receives them: preprocessed, with the network's input converted back to pixels.

    Raises:
        InputError: there is no image.
    """
    by_label: dict[int, list[Path]] = {}
    for item in data.labels:
        for label in item.class_indices:
            by_label.setdefault(label, []).append(item.path)
    if not by_label:
        raise InputError("there are no images to show: is the label file empty?")
    labels = sorted(by_label)[:MAX_TILES]
    if len(labels) < len(by_label):
        logger.warning(
            "the sheet shows %d of %d classes, as it has at most %d images", len(labels), len(by_label), MAX_TILES
        )
    per_class = min(per_class, max(1, MAX_TILES // len(labels)))
    rng, class_names = random.Random(int(seed)), data.labels.class_names
    return tuple(
        SheetRow(
            name=class_names[label] if label < len(class_names) else str(label),
            num_images=len(by_label[label]),
            tiles=tuple(
                _load_tile(path, data)
                for path in rng.sample(sorted(by_label[label]), min(per_class, len(by_label[label])))
            ),
            label=label,
        )
        for label in labels
    )


def _check_suffix(path: Path) -> None:
    """Raise an error if the suffix is neither .png nor .html, or if it is .html and jinja2 is not installed."""
    if path.suffix.lower() == ".html":
        importlib.import_module("mlimages.reports.pages")
    elif path.suffix.lower() != ".png":
        raise InputError(f"{path}: a contact sheet must be a .png or .html file")


def write_sheet(rows: Sequence[SheetRow], out: Path, *, title: str, note: str, overwrite: bool = False) -> None:
    """Write a contact sheet: a self-contained page if `out` ends in .html, otherwise a PNG.

    Raises:
        InputError: `out` ends in neither .png nor .html; or it exists, was not written by mlimages or was changed
            since, and `overwrite` is false.
    """
    _check_suffix(out)
    with write_output(out, overwrite=overwrite) as part:
        if out.suffix.lower() == ".html":
            from mlimages.reports.pages import render

            page = render("sheet.html", title=title, subtitle=note, rows=list(map(_make_template_row, rows)))
            part.write_text(page, encoding="utf-8")
        else:
            _draw_png(rows, title=title, note=note).save(part, "PNG")


def _make_template_row(row: SheetRow) -> dict[str, object]:
    from mlimages.reports.pages import GalleryTile, to_data_url

    tiles = [
        GalleryTile(("" if tile.pixels is None else to_data_url(tile.pixels),), (tile.caption,), str(tile.fault))
        for tile in row.tiles
    ]
    return {"name": row.name, "note": pluralize(row.num_images, "image") if row.num_images else "", "tiles": tiles}


def _draw_png(rows: Sequence[SheetRow], *, title: str, note: str) -> Image.Image:
    side = _choose_tile_side(rows)
    columns = max(len(row.tiles) for row in rows)
    width = 2 * _MARGIN_PX + max(columns * (side + _GAP_PX), 420)
    row_height = side + 2 * _LINE_PX + _GAP_PX
    sheet = Image.new("RGB", (width, 2 * _MARGIN_PX + 2 * _LINE_PX + len(rows) * row_height), _BACKGROUND)
    names = replace_undrawable_names([row.name for row in rows], [row.label for row in rows])
    note += "" if names == [row.name for row in rows] else f"; {CLASS_INDICES_NOTE}"
    _draw_text(sheet, (_MARGIN_PX, _MARGIN_PX), title, width=width)
    _draw_text(sheet, (_MARGIN_PX, _MARGIN_PX + _LINE_PX), note, width=width, is_small=True)
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = _MARGIN_PX + 2 * _LINE_PX + number * row_height + _GAP_PX
        right = _draw_text(sheet, (_MARGIN_PX, top), name, width=width)
        if row.num_images:
            _draw_text(sheet, (right + _GAP_PX, top), f"({row.num_images})", width=width)
        for column, tile in enumerate(row.tiles):
            top_left = (_MARGIN_PX + column * (side + _GAP_PX), top + _LINE_PX)
            _draw_tile(sheet, tile, top_left=top_left, tile_side=side)
    return sheet


def _load_tile(path: Path, data: TrainingData) -> Tile:
    try:
        pixels = load_pixels(path, data.image_property)
    except ImageError as error:
        return Tile(path.name, None, error.fault, path)
    array = to_network_input(pixels[None], data.normalization, data.mean_image)[0]  # (C, H, W)
    return Tile(path.name, np.atleast_3d(np.asarray(data.data_to_image(array).image)), path=path)


def _choose_tile_side(rows: Sequence[SheetRow]) -> int:
    """Return the side of a tile in pixels: small images are enlarged by an integer factor, large ones reduced."""
    decoded = (tile.pixels for row in rows for tile in row.tiles if tile.pixels is not None)
    side = max((max(pixels.shape[:2]) for pixels in decoded), default=MAX_TILE_SIDE_PX)
    return min(side * max(1, 96 // side), MAX_TILE_SIDE_PX)


def _draw_tile(sheet: Image.Image, tile: Tile, *, top_left: tuple[int, int], tile_side: int) -> None:
    left, top = top_left
    if tile.pixels is None:
        sheet.paste(_PLACEHOLDER, (left, top, left + tile_side, top + tile_side))
        _draw_text(sheet, (left + 4, top + tile_side // 2), str(tile.fault), width=tile_side - 4, is_small=True)
    else:
        height, width = tile.pixels.shape[:2]
        scale = tile_side / max(height, width)
        image = Image.fromarray(tile.pixels.squeeze(2) if tile.pixels.shape[2] == 1 else tile.pixels)
        resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
        sheet.paste(image.resize((max(1, round(width * scale)), max(1, round(height * scale))), resampling), top_left)
    _draw_text(sheet, (left, top + tile_side + 1), tile.caption, width=tile_side, is_small=True)


def _draw_text(
    sheet: Image.Image, top_left: tuple[float, float], text: str, *, width: float, is_small: bool = False
) -> float:
    """Draw a line of text, cut off after `width` pixels; return the x coordinate of its right end in pixels."""
    size, color = (11, _MUTED_COLOR) if is_small else (14, _TEXT_COLOR)
    return draw_text_line(sheet, top_left, text, size, width=width, color=color)
