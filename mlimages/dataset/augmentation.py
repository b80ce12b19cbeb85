"""Write rotated and flipped copies of images as arrays or as a folder of images."""

from __future__ import annotations

import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from PIL import Image

from mlimages.checks import split_labels
from mlimages.core import (
    BrokenImage,
    ImageProperty,
    InputError,
    LabeledPath,
    NoProgress,
    Progress,
    atomic_write,
    check_choice,
    check_seed,
    format_command,
    require_local_path,
    temporary_folder_beside,
)
from mlimages.dataset.augment_summary import AugmentedSplit, AugmentSummary, Format
from mlimages.dataset.training_data import multi_hot
from mlimages.images import iter_pixels, require_image_property
from mlimages.labels import (
    SPLIT_NAMES_BY_COUNT,
    LabelFile,
    describe_renamed_folders,
    find_source,
    make_folder_names,
    open_labels,
    require_outside_dataset,
    write_label_file,
)


@dataclass(frozen=True, slots=True)
class View:
    """How an image is augmented: rotated counterclockwise by `angle_deg`, then flipped left to right if `flipped`."""

    angle_deg: float = 0
    flipped: bool = False


_AugmentedImage = tuple[LabeledPath, View, NDArray[np.uint8]]
"""The original image, the view of it, and the pixels of this view, uint8 `(H, W, C)`."""


def augment(
    labels: LabelFile | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    image_property: ImageProperty,
    angles_deg: float | Iterable[float] = (),
    flip: bool = False,
    split: Sequence[float] = (1.0,),
    seed: int = 0,
    format: Format = "npz",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> AugmentSummary:
    """Write the images of a label file together with rotated and flipped copies; broken images are skipped.

    The images are split first, and only the training split is augmented, so that no copies of validation or test
    images are in the training split. The split is that of `mlimages label --split` with the same seed:
    near-duplicates stay in one split. Each split is shuffled; the copies of an image directly follow the image.

    The formats `npz` and `npy` store the arrays `x`, uint8 `(N, H, W, C)`, `y`, int64 `(N,)`, and `class_names`. If the
    images are split, the arrays are named `x_train`, `x_val` and so on. The format `folder` stores
    `images/CLASS/*.png` and `labels.txt`, or `train/CLASS/*.png`, `train.txt` and so on if the images are split. For a
    multi-label file with K classes, `y` is float32 `(N, K)` (see `multi_hot`), and there are no class folders. The
    output is created only when it is complete. Only a few images are in memory at a time.

    Args:
        labels: a label file, or the path of a label file or of a folder of class folders.
        image_property: size and resize method of the images.
        angles_deg: counterclockwise rotations in degrees, in addition to the original.
        flip: also add a copy of each image that is flipped left to right.
        split: fractions of train, val and test, which add up to 1; (1.0,) does not split the images.
        seed: random seed of the split and of the order.
        format: one .npz file, a folder of .npy files, or a folder of images.
        overwrite: replace an existing .npz file.
        progress: shows the number of images processed.

    Raises:
        InputError: the fractions do not add up to 1, an angle is not finite, the seed or format is invalid, `out`
            already exists (unless it is an empty folder and `format` is not `npz`) or, for images, is inside the
            dataset, or no image can be decoded.
        TypeError: `split` is a single number, or `image_property` is not an ImageProperty.

    Examples:
        >>> import numpy as np
        >>> from mlimages import ImageProperty, augment
        >>> augment("labels.txt", "pets.npz", image_property=ImageProperty(32), angles_deg=(-10, 10), flip=True)
        AugmentSummary('pets.npz', all: 72 images from 12 originals, 0 broken)
        >>> data = np.load("pets.npz", allow_pickle=False)
        >>> data["x"].shape, data["y"].shape, data["class_names"].tolist()
        ((72, 32, 32, 3), (72,), ['cats', 'dogs'])
    """
    if not isinstance(split, Sequence):
        raise TypeError(f"split={split!r}: expected a list of fractions that add up to 1, such as (0.8, 0.2)")
    names = {1: ("",), **SPLIT_NAMES_BY_COUNT}.get(len(split))
    if names is None:
        raise InputError(f"{len(split)} split fractions: expected 2 (train, val) or 3 (train, val, test)")
    require_image_property(image_property)
    check_choice(Format, format=format)
    check_seed(seed)
    source, labels, out = labels, open_labels(labels), require_local_path(out)
    if format == "folder":
        require_outside_dataset(out, source, labels)
    progress, broken_images = progress or NoProgress(), list[BrokenImage]()
    angles = (angles_deg,) if isinstance(angles_deg, int | float) else angles_deg
    views_by_split = [make_views(angles, flip=flip), *[(View(),)] * (len(names) - 1)]
    write = partial(_write_images, labels) if format == "folder" else partial(_write_arrays, labels, image_property)
    with _open_output_folder(out, format, overwrite=overwrite) as folder:
        files = split_labels(labels, split, seed, progress=progress) if len(split) > 1 else (labels,)
        progress.start("augment", sum(1 for _ in labels), "images")
        splits = []
        for name, file, views in zip(names, files, views_by_split, strict=True):
            images = _iter_augmented_images(file.shuffle(seed), image_property, views, broken_images, progress)
            count = write(folder, name, images)
            splits.append(AugmentedSplit(name, count // len(views), count))
        progress.close()
        if not any(each.num_images for each in splits):
            source = find_source(labels)
            raise InputError(f"no image of {source} can be decoded: see {format_command('check', source)}")
    notes = list[str]()
    if format == "folder" and not labels.is_multi_label:
        notes = describe_renamed_folders(labels.class_names, _make_class_folder_names(labels))
    return AugmentSummary(out, format, image_property, tuple(splits), tuple(broken_images), tuple(notes))


def make_views(angles_deg: Iterable[float], *, flip: bool) -> tuple[View, ...]:
    """Return a view without rotation and one for each angle; with `flip`, each is followed by its flipped view.

    Raises:
        InputError: an angle is not a finite number.
    """
    angles = tuple(angles_deg)
    if not all(map(math.isfinite, angles)):
        raise InputError(f"angles_deg={angles}: expected rotations in degrees, such as (-10, 10)")
    flips = (False, True) if flip else (False,)
    return tuple(View(angle, flipped) for angle in dict.fromkeys((0, *angles)) for flipped in flips)


def render_views(pixels: NDArray[np.uint8], views: Iterable[View]) -> Iterator[NDArray[np.uint8]]:
    """Yield each view of an image, uint8 `(H, W, C)`; corners outside a rotated image are filled by reflection."""
    height, width, channels = pixels.shape
    diagonal = math.ceil(math.hypot(height, width))
    top, left = (diagonal - height + 1) // 2, (diagonal - width + 1) // 2
    padded = np.pad(pixels, ((top, top), (left, left), (0, 0)), mode="reflect")  # (H + 2 top, W + 2 left, C)
    canvas = Image.fromarray(padded if channels > 1 else padded[:, :, 0])
    for view in views:
        rendered = pixels
        if view.angle_deg % 360:
            rotated = np.asarray(canvas.rotate(view.angle_deg, Image.Resampling.BILINEAR)).reshape(padded.shape)
            rendered = rotated[top : top + height, left : left + width]  # (H, W, C)
        yield rendered[:, ::-1] if view.flipped else rendered


def _iter_augmented_images(
    labels: LabelFile,
    image_property: ImageProperty,
    views: Sequence[View],
    broken_images: list[BrokenImage],
    progress: Progress,
) -> Iterator[_AugmentedImage]:
    """Yield each image in all views; append images that cannot be decoded to `broken_images`."""
    for item, loaded in iter_pixels(labels, image_property):
        if isinstance(loaded, BrokenImage):
            broken_images.append(loaded)
        else:
            yield from ((item, *each) for each in zip(views, render_views(loaded, views), strict=True))
        progress.advance(broken=len(broken_images))


def _write_arrays(
    labels: LabelFile, image_property: ImageProperty, folder: Path, split_name: str, images: Iterable[_AugmentedImage]
) -> int:
    """Write the arrays of a split and the class names to .npy files; return the number of images."""
    num_classes = len(labels.class_names)
    target = ((num_classes,), np.float32) if labels.is_multi_label else ((), np.int64)
    shape = image_property.height, image_property.width, image_property.channels
    suffix = f"_{split_name}.npy" if split_name else ".npy"
    count = 0
    with (
        _open_npy_writer(folder / f"x{suffix}", shape, np.uint8) as append_x,
        _open_npy_writer(folder / f"y{suffix}", *target) as append_y,
    ):
        for count, (item, _, pixels) in enumerate(images, start=1):  # noqa: B007  # the count is the result
            append_x(pixels)
            append_y(item.label if item.labels is None else multi_hot([item.labels], num_classes))
    np.save(folder / "class_names.npy", np.array(labels.class_names, dtype=np.str_), allow_pickle=False)
    return count


@contextmanager
def _open_npy_writer(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Iterator[Callable[[ArrayLike], None]]:
    """Yield a function that appends a row to a .npy file; the number of rows in the header is written at the end."""
    count = 0
    with path.open("wb") as out:

        def write_header() -> None:
            descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
            header = {"descr": descr, "fortran_order": False, "shape": (count, *shape)}
            np.lib.format.write_array_header_1_0(out, header)

        def append_row(row: ArrayLike) -> None:
            nonlocal count
            out.write(np.asarray(row, dtype).tobytes())
            count += 1

        write_header()
        yield append_row
        out.seek(0)
        write_header()


def _write_images(labels: LabelFile, folder: Path, split_name: str, images: Iterable[_AugmentedImage]) -> int:
    """Write the images of a split and its label file; return the number of images."""
    image_folder, class_folders = folder / (split_name or "images"), _make_class_folder_names(labels)

    def save_images() -> Iterator[LabeledPath]:
        original_number = 0
        for item, view, pixels in images:
            original_number += view == View()  # the original comes first
            class_folder = class_folders[item.label] if item.labels is None else ""
            path = image_folder / class_folder / _make_file_name(original_number, item.path, view)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels).save(path)
            yield replace(item, path=path)

    return write_label_file(folder / f"{split_name or 'labels'}.txt", save_images(), labels.class_names)


def _make_class_folder_names(labels: LabelFile) -> tuple[str, ...]:
    return make_folder_names(labels.class_names, max_length=60)


def _make_file_name(original_number: int, original: Path, view: View) -> str:
    """Return a file name such as `000012_cat_+10_flipped.png` for the 12th original, cat.jpg."""
    angle = f"_{float(view.angle_deg):+}".removesuffix(".0") if view.angle_deg else ""  # all digits
    return f"{original_number:06}_{original.stem[:40]}{angle}{'_flipped' * view.flipped}.png"


@contextmanager
def _open_output_folder(path: Path, format: Format, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `path` at the end, or packed into the .npz file `path`."""
    is_empty_folder = path.is_dir() and not any(path.iterdir())
    may_replace = overwrite and path.is_file() if format == "npz" else is_empty_folder
    if os.path.lexists(path) and not may_replace:  # even if mlimages wrote it: with other settings
        advice = "move it or choose another name with -o"
        if format == "npz" and path.is_file():
            advice = "move it, choose another name with -o, or replace the file with --force"
        raise InputError(f"{path} already exists: {advice}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder_beside(path) as temporary:
        folder = temporary / "output"
        folder.mkdir()
        yield folder
        if format == "npz":
            with atomic_write(path) as temporary_path:
                _pack_npz(folder, temporary_path)
        else:
            if path.is_dir():
                path.rmdir()
            folder.rename(path)


def _pack_npz(folder: Path, archive_path: Path) -> None:
    """Move the .npy files of a folder into an uncompressed .npz file; its timestamps are 1980-01-01, as in NumPy."""
    with zipfile.ZipFile(archive_path, "w") as archive:
        for member in sorted(folder.iterdir()):
            with member.open("rb") as source, archive.open(member.name, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)
            member.unlink()  # so that at most one member is on disk twice
