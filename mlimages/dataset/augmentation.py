"""Pictures turned and mirrored, written as arrays or as a folder of pictures, one after the other."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from PIL import Image

from mlimages.checks import split_labels
from mlimages.core import BrokenImage, ImageProperty, InputError, LabeledPath, NoProgress, Progress, replacing
from mlimages.dataset.loading import load_in_order
from mlimages.labels import ClassNames, LabelFile, folder_names, write_label_file

Form = Literal["npz", "npy", "folder"]

PART_NAMES = {1: ("",), 2: ("train", "val"), 3: ("train", "val", "test")}
"""What the parts are called, by their number; the only part of one has no name."""


@dataclass(frozen=True, slots=True)
class View:
    """A way to look at a picture: turned counter-clockwise by `angle_deg`, then mirrored left to right or not."""

    angle_deg: float = 0
    mirrored: bool = False


@dataclass(frozen=True, slots=True)
class AugmentedPart:
    """What was written of one part: `rows` views of `pictures` pictures."""

    name: str
    pictures: int
    rows: int


@dataclass(frozen=True, slots=True)
class AugmentSummary:
    """What `augment` wrote to `out`, and the pictures that it had to leave out."""

    out: Path
    form: Form
    image: ImageProperty
    parts: tuple[AugmentedPart, ...]
    broken: tuple[BrokenImage, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    """One view of one picture: uint8 `(H, W, C)`."""

    item: LabeledPath
    view: View
    pixels: NDArray[np.uint8]


def augment(
    labels: LabelFile,
    out: str | Path,
    *,
    image: ImageProperty,
    angles_deg: Iterable[float] = (),
    flip: bool = False,
    split: Sequence[float] = (1.0,),
    seed: int = 0,
    form: Form = "npz",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> AugmentSummary:
    """Write each picture, its rotations and their mirror images; a broken picture is left out and listed.

    The split comes first, and only the first part is turned and mirrored: no copy of a picture of the other parts
    is in it, and they stay as the network will meet pictures in use. It is the split of `mlimages label --split` with
    the same seed: pictures that look the same stay in one part. Each part is shuffled by `seed`; the views of one
    picture lie together, the plain one first.

    As arrays: `x` uint8 `(N, H, W, C)` RGB, `y` int64 `(N,)`, `class_names` strings, in one .npz or as .npy files
    in the folder `out`; with a split `x_train`, `x_val` and so on. As a folder: `CLASS/*.png` with `labels.txt`,
    or with a split `train/CLASS/*.png` with `train.txt`. It appears whole or not at all; memory holds a few pictures.

    Raises:
        InputError: shares that do not add up to 1, something in the way (`overwrite` replaces an .npz), or no image
            that can be read.
    """
    names = PART_NAMES.get(len(split))
    if names is None:
        raise InputError(f"{len(split)} shares: expected 2 (train, val) or 3 (train, val, test)")
    progress, broken = progress or NoProgress(), list[BrokenImage]()
    looks = [views(angles_deg, flip=flip), *[(View(),)] * (len(names) - 1)]
    write = partial(_write_pictures if form == "folder" else _write_arrays, labels.class_names, image)
    with _building(Path(out), form, overwrite=overwrite) as folder:
        parts = split_labels(labels, split, seed, progress=progress) if len(split) > 1 else (labels,)
        parts = tuple(part.shuffle(seed) for part in parts)
        progress.start("augmenting", sum(1 for _ in labels), "pictures")
        rows = [_rows(part, image, seen, broken, progress) for part, seen in zip(parts, looks, strict=True)]
        counts = [write(folder, name, part) for name, part in zip(names, rows, strict=True)]
        progress.close()
        if not any(counts):
            raise InputError(f"{labels.path}: not one picture could be read: see `mlimages check {labels.path}`")
    written = zip(names, counts, looks, strict=True)
    done = tuple(AugmentedPart(name, count // len(seen), count) for name, count, seen in written)
    return AugmentSummary(Path(out), form, image, done, tuple(broken))


def views(angles_deg: Iterable[float], *, flip: bool) -> tuple[View, ...]:
    """The plain picture, then each angle, each followed by its mirror image."""
    mirrored = (False, True) if flip else (False,)
    return tuple(View(angle, mirror) for angle in dict.fromkeys((0, *angles_deg)) for mirror in mirrored)


def see(pixels: NDArray[np.uint8], looks: Iterable[View]) -> Iterator[NDArray[np.uint8]]:
    """Each view of a picture, uint8 `(H, W, C)`; where turning bares a corner, the picture goes on mirrored."""
    height, width, channels = pixels.shape
    reach = math.ceil(math.hypot(height, width))
    top, left = (reach - height + 1) // 2, (reach - width + 1) // 2
    wide = np.pad(pixels, ((top, top), (left, left), (0, 0)), mode="reflect")  # (H + 2 top, W + 2 left, C)
    around = Image.fromarray(wide if channels > 1 else wide[:, :, 0])
    for look in looks:
        seen = pixels
        if look.angle_deg % 360:
            turned = np.asarray(around.rotate(look.angle_deg, Image.Resampling.BILINEAR)).reshape(wide.shape)
            seen = turned[top : top + height, left : left + width]  # (H, W, C)
        yield seen[:, ::-1] if look.mirrored else seen


def _rows(
    part: LabelFile, image: ImageProperty, looks: Sequence[View], broken: list[BrokenImage], progress: Progress
) -> Iterator[_Row]:
    for item, loaded in load_in_order(part, image):
        if isinstance(loaded, BrokenImage):
            broken.append(loaded)
        else:
            yield from (_Row(item, look, seen) for look, seen in zip(looks, see(loaded, looks), strict=True))
        progress.advance(broken=len(broken))


def _write_arrays(class_names: ClassNames, image: ImageProperty, folder: Path, name: str, rows: Iterable[_Row]) -> int:
    suffix = f"_{name}.npy" if name else ".npy"
    count = 0
    with (
        _growing(folder / f"x{suffix}", (image.height, image.width, image.channels), np.uint8) as append_x,
        _growing(folder / f"y{suffix}", (), np.int64) as append_y,
    ):
        for count, row in enumerate(rows, start=1):  # noqa: B007  # the count is what is returned
            append_x(row.pixels)
            append_y(row.item.label)
    np.save(folder / "class_names.npy", np.array(class_names, dtype=np.str_), allow_pickle=False)
    return count


@contextmanager
def _growing(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Iterator[Callable[[ArrayLike], None]]:
    """Yield what appends a row to a .npy file; numpy's header leaves room for the count, which is set at the end."""
    count = 0
    with path.open("wb") as out:

        def write_header() -> None:
            descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
            header = {"descr": descr, "fortran_order": False, "shape": (count, *shape)}
            np.lib.format.write_array_header_1_0(out, header)

        def append(row: ArrayLike) -> None:
            nonlocal count
            out.write(np.asarray(row, dtype).tobytes())
            count += 1

        write_header()
        yield append
        out.seek(0)
        write_header()


def _write_pictures(class_names: ClassNames, _: ImageProperty, folder: Path, name: str, rows: Iterable[_Row]) -> int:
    pictures, folders = folder / (name or "pictures"), folder_names(class_names, longest=60)

    def saved() -> Iterator[LabeledPath]:
        number = 0
        for row in rows:
            number += row.view == View()  # the plain view comes first
            path = pictures / folders[row.item.label] / _picture_name(number, row)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(row.pixels.squeeze(-1) if row.pixels.shape[2] == 1 else row.pixels).save(path)
            yield LabeledPath(path, row.item.label)

    return write_label_file(folder / f"{name or 'labels'}.txt", saved(), class_names)


def _picture_name(number: int, row: _Row) -> str:
    turned = f"_{row.view.angle_deg:+g}" if row.view.angle_deg else ""
    return f"{number:06}_{row.item.path.stem[:40]}{turned}{'_mirrored' * row.view.mirrored}.png"


@contextmanager
def _building(out: Path, form: Form, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder; in the end it becomes `out`, or the members of the .npz `out`."""
    replaceable = form == "npz" and overwrite and out.is_file()
    if os.path.lexists(out) and not replaceable and not (form != "npz" and out.is_dir() and not any(out.iterdir())):
        force = ", or say --force to replace it" if form == "npz" and out.is_file() else ""
        raise InputError(f"{out} is in the way: move it, name another place with -o{force}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name[:50]}.", suffix=".part", dir=out.parent) as temporary:
        folder = Path(temporary) / "whole"
        folder.mkdir()
        yield folder
        if form == "npz":
            with replacing(out) as part:
                _pack(folder, part)
        else:
            if out.is_dir():
                out.rmdir()
            folder.rename(out)


def _pack(folder: Path, archive_path: Path) -> None:
    """Move the .npy files of a folder into an .npz; as numpy does it, uncompressed and dated 1980."""
    with zipfile.ZipFile(archive_path, "w") as archive:
        for member in sorted(folder.iterdir()):
            with member.open("rb") as rows, archive.open(member.name, "w", force_zip64=True) as packed:
                shutil.copyfileobj(rows, packed, 1 << 20)
            member.unlink()  # at most one member lies on the disk twice
