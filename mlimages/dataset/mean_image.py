"""Compute the mean image and the channel statistics of a dataset."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages.core import (
    BrokenImage,
    Fault,
    ImageProperty,
    InputError,
    LabeledPath,
    NoProgress,
    Pool,
    Progress,
    as_path,
    atomic_write,
    cache_dir,
    check_at_least,
    fingerprint,
    is_remote,
    pluralize,
    require_writable,
    write_output,
    write_text_output,
)
from mlimages.images import (
    CLASS_INDICES_NOTE,
    PIXELS_VERSION,
    LabeledImage,
    draw_text_line,
    make_reader_pool,
    raise_for_unavailable_images,
    raise_if_most_images_missing,
    replace_undrawable_names,
    require_image_property,
    try_load_pixels,
)
from mlimages.labels import LabelFile, open_labels

SHEET_PX, CAPTION_PX, CAPTION_SIZE = 1200, 16, 10
"""Layout of the image that shows the mean of each class, in pixels: its width, caption height and font size."""

ALL_IMAGES = -2
"""Class index under which every image is summed once, whatever its classes."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MeanImage:
    """The mean of a set of images and its channel statistics.

    Attributes:
        mean: float32 `(C, H, W)` in 0..255.
        channel_mean, channel_std: mean and standard deviation of the pixels of each channel, in 0..255.
        num_images: number of images that could be decoded.
        image_property: size and preprocessing of the images.
        broken_images: images that could not be decoded.
        class_means: mean image by class index, float32 `(C, H, W)` in 0..255; empty without `per_class`.
    """

    mean: NDArray[np.float32]
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    num_images: int
    image_property: ImageProperty
    broken_images: tuple[BrokenImage, ...] = ()
    class_means: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)

    def __repr__(self) -> str:
        broken = f", {len(self.broken_images)} broken" if self.broken_images else ""
        images = pluralize(self.num_images, "image") + broken
        mean, std = (", ".join(f"{value:.1f}" for value in values) for values in (self.channel_mean, self.channel_std))
        return (
            f"MeanImage({images}, {self.image_property.width} x {self.image_property.height} px, "
            f"channel_mean=({mean}), channel_std=({std}))"
        )

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the mean image to `NAME.png` and `NAME.npy` (float32 `(C, H, W)`), and the statistics to `NAME.json`.

        Raises:
            InputError: `path` does not end in .png, or a file exists that mlimages did not write or that was changed
                since, and `overwrite` is false.
        """
        png, npy, statistics = list_mean_files(as_path(path))
        values = {"v": 1, "mean": self.channel_mean, "std": self.channel_std, "count": self.num_images}
        require_writable([png, npy, statistics], overwrite=overwrite)
        with write_output(png, overwrite=overwrite) as temporary_path:
            LabeledImage.from_array(self.mean).image.save(temporary_path, "PNG")
        with write_output(npy, overwrite=overwrite) as temporary_path, temporary_path.open("wb") as out:
            np.save(out, self.mean, allow_pickle=False)
        text = json.dumps({**values, "image": asdict(self.image_property)}, indent=2) + "\n"
        write_text_output(statistics, text, overwrite=overwrite)


def list_mean_files(png: Path) -> tuple[Path, Path, Path]:
    """Return the paths of the image, the array and the statistics of a mean image, given the path of the image.

    Raises:
        InputError: the path does not end in .png.
    """
    if png.suffix.lower() != ".png":
        raise InputError(f"{png}: expected a file name that ends in .png, such as mean.png")
    return png, png.with_suffix(".npy"), png.with_suffix(".json")


def compute_mean(
    items: Iterable[LabeledPath] | str | os.PathLike[str],
    image_property: ImageProperty,
    *,
    per_class: bool = False,
    workers: int | None = None,
    pool: Pool | None = None,
    skip_unavailable: bool = False,
    progress: Progress | None = None,
) -> MeanImage:
    """Compute the mean of all images after resizing and cropping.

    The sums are integers, so the result depends neither on the number of workers nor on the order of the images.

    Args:
        items: a label file, the path of a label file or of a folder of class folders, or image paths with labels.
        image_property: size and resize method of the images.
        per_class: also compute the mean of each class.
        workers: threads that decode the images; by default one per CPU core, for remote images at least 16.
        pool: workers that decode the images, instead of these threads.
        skip_unavailable: skip remote images that cannot be downloaded, instead of raising an error.
        progress: shows the number of images processed.

    Raises:
        InputError: no image can be decoded, more than half of the images are missing, a remote image cannot be
            downloaded, or `workers` is below 1.
        TypeError: `image_property` is not an ImageProperty.

    Examples:
        >>> from mlimages import ImageProperty
        >>> from mlimages.dataset import compute_mean
        >>> result = compute_mean("labels.txt", ImageProperty(32), per_class=True)
        >>> result.mean.shape, result.num_images, sorted(result.class_means)
        ((3, 32, 32), 12, [0, 1])
    """
    check_at_least(1, workers=workers)
    require_image_property(image_property)
    if isinstance(items, str | os.PathLike):
        items = open_labels(items)
    listed = iter(items)
    first = list(islice(listed, 1))
    shape = image_property.height, image_property.width, image_property.channels
    total = _Sums(np.zeros((image_property.channels, 256), np.uint64))
    progress = progress or NoProgress()
    progress.start("mean", None, "images")
    pool = pool or make_reader_pool(first[0].path if first else None, workers)
    remaining, chunk_size = chain(first, listed), pool.chunk_size
    chunks = iter(lambda: list(islice(remaining, chunk_size)), [])
    for part in pool.map(partial(_compute_sums, image_property=image_property, per_class=per_class), chunks):
        total.histogram[...] += part.histogram
        total.counts.update(part.counts)
        total.broken_images.extend(part.broken_images)
        for label, pixels in part.sums.items():
            dtype = np.uint64 if label == ALL_IMAGES else np.uint32
            total.sums.setdefault(label, np.zeros(shape, dtype))[...] += pixels
        progress.advance(part.counts[ALL_IMAGES] + len(part.broken_images), broken=len(total.broken_images))
    progress.close()
    count, broken = total.counts[ALL_IMAGES], total.broken_images
    raise_for_unavailable_images(broken, skip=skip_unavailable)
    raise_if_most_images_missing(broken, count + len(broken))
    if not count:
        reason = "the label file is empty"
        if broken:
            reason = f"no image can be decoded (first: {broken[0].path}: {broken[0].fault})"
        raise InputError(f"cannot compute a mean image: {reason}")
    means = {label: _sums_to_mean(sums, total.counts[label]) for label, sums in sorted(total.sums.items())}
    mean, std = _compute_channel_statistics(total.histogram)
    return MeanImage(means.pop(ALL_IMAGES), mean, std, count, image_property, tuple(broken), means)


def _sums_to_mean(sums: NDArray[Any], num_images: int) -> NDArray[np.float32]:
    """Return the mean, float32 `(C, H, W)`, of integer sums `(H, W, C)`."""
    return np.ascontiguousarray((sums / num_images).astype(np.float32).transpose(2, 0, 1))


def draw_class_means(mean_image: MeanImage, class_names: Sequence[str], path: Path, *, overwrite: bool = False) -> None:
    """Write an image of all class means; the captions are class names, or indices if no font can display them."""
    means, image_property = mean_image.class_means, mean_image.image_property
    columns = max(1, SHEET_PX // image_property.width)
    rows = -(-len(means) // columns)
    names = replace_undrawable_names([class_names[label] for label in means], list(means))
    note = "" if names == [class_names[label] for label in means] else CLASS_INDICES_NOTE
    height = rows * (image_property.height + CAPTION_PX) + (CAPTION_PX if note else 0)
    sheet = Image.new("RGB", (min(columns, len(means)) * image_property.width, height), "white")
    for index, (name, mean) in enumerate(zip(names, means.values(), strict=True)):
        left, top = index % columns * image_property.width, index // columns * (image_property.height + CAPTION_PX)
        sheet.paste(LabeledImage.from_array(mean).image, (left, top + CAPTION_PX))
        draw_text_line(sheet, (left + 2, top + 2), name, CAPTION_SIZE, width=image_property.width - 4)
    draw_text_line(sheet, (2, height - CAPTION_PX + 2), note, CAPTION_SIZE, width=sheet.width - 4)
    with write_output(path, overwrite=overwrite) as temporary_path:
        sheet.save(temporary_path, "PNG")


def compute_cached_mean(
    labels: LabelFile, image_property: ImageProperty, *, per_class: bool, compute: Callable[[], MeanImage]
) -> MeanImage:
    """Return the result of `compute`, which is cached on disk until an image file changes.

    Nothing is cached if an image is remote or cannot be read: new permissions or another installed package may make it
    readable without a change of the file.
    """
    key = hashlib.sha256(f"4 {PIXELS_VERSION} {image_property} {per_class}".encode())
    for item in labels:
        if is_remote(item.path):  # requesting its state costs as much as reading it
            return compute()
        state = fingerprint(item.path) or b""
        label = item.label if item.labels is None else item.labels
        line = f"{item.path} {item.path.absolute()} {state.hex()} {label if per_class else ''}\n"
        key.update(line.encode(errors="surrogateescape"))
    cache_file = cache_dir("means") / f"{key.hexdigest()[:32]}.npz"
    try:
        return _read_cache_file(cache_file, image_property)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        result = compute()
    if not any(image.fault is Fault.UNREADABLE for image in result.broken_images):
        _write_cache_file(cache_file, result)
    return result


def _write_cache_file(path: Path, result: MeanImage) -> None:
    broken = [(image.path, image.fault, image.detail) for image in result.broken_images]
    statistics = {"mean": result.channel_mean, "std": result.channel_std, "count": result.num_images, "broken": broken}
    class_means = {str(label): mean for label, mean in result.class_means.items()}
    with atomic_write(path) as temporary_path, temporary_path.open("wb") as out:
        np.savez(out, mean=result.mean, statistics=json.dumps(statistics), **class_means)  # type: ignore[arg-type]  # numpy's stub


def _read_cache_file(path: Path, image_property: ImageProperty) -> MeanImage:
    with np.load(path, allow_pickle=False) as arrays:
        statistics = json.loads(str(arrays["statistics"]))
        broken_images = tuple(BrokenImage(image, Fault(fault), detail) for image, fault, detail in statistics["broken"])
        class_means = {int(name): arrays[name] for name in arrays.files if name.isdigit()}
        mean, std = tuple(statistics["mean"]), tuple(statistics["std"])
        return MeanImage(arrays["mean"], mean, std, statistics["count"], image_property, broken_images, class_means)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums of the pixel values of some images.

    Attributes:
        histogram: number of pixels of each value in each channel, uint64 `(C, 256)`.
        sums: sum of the images by class index `(H, W, C)`; without `per_class`, only of ALL_IMAGES.
        counts: number of images in each element of `sums`, by the same key.
        broken_images: images that could not be decoded.
    """

    histogram: NDArray[np.uint64]
    sums: dict[int, NDArray[Any]] = field(default_factory=dict)
    counts: Counter[int] = field(default_factory=Counter)
    broken_images: list[BrokenImage] = field(default_factory=list)


def _compute_sums(items: Sequence[LabeledPath], image_property: ImageProperty, per_class: bool) -> _Sums:
    """Sum the images in `items`; there must be at most 257.

    The sums of at most 257 images fit into uint16, so that worker processes return little data.
    """
    result = _Sums(np.zeros((image_property.channels, 256), np.uint64))
    for item in items:
        loaded = try_load_pixels(item.path, image_property)
        if isinstance(loaded, BrokenImage):
            result.broken_images.append(loaded)
            continue
        labels = (item.label,) if item.labels is None else item.labels
        for label in (ALL_IMAGES, *labels) if per_class else (ALL_IMAGES,):
            result.counts[label] += 1
            result.sums.setdefault(label, np.zeros(loaded.shape, np.uint16))[...] += loaded
        # mean and std from a histogram are exact, and cost a tenth of those from the pixels
        values = Image.fromarray(loaded[:, :, 0] if loaded.shape[2] == 1 else loaded).histogram()
        result.histogram[...] += np.asarray(values, np.uint64).reshape(-1, 256)
    return result


def _compute_channel_statistics(histogram: NDArray[np.uint64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    levels = np.arange(256, dtype=np.float64)
    weights = histogram / histogram.sum(axis=1, keepdims=True)  # (C, 256)
    mean = weights @ levels
    std = np.sqrt((weights * (levels - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(std.tolist())
