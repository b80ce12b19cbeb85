"""The mean of a set of pictures: to look at, to compute with, and its figures."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mlimages.core import (
    BrokenImage,
    Fault,
    ImageError,
    ImageProperty,
    InputError,
    LabeledPath,
    NoProgress,
    Pool,
    Progress,
    Threads,
    as_path,
    cache_dir,
    file_state,
    replacing,
    write_text,
)
from mlimages.dataset.loading import load_or_tell
from mlimages.images import PIXELS_VERSION, LabeledImage, load_rgb
from mlimages.labels import LabelFile

SHEET_PX, CAPTION_PX = 1200, 16
"""Width of a sheet of class means, height of a line of text on it."""


@dataclass(frozen=True, slots=True)
class MeanImage:
    """The mean of a set of pictures, and the figures of its channels.

    Attributes:
        mean: float32 `(C, H, W)` in 0..255.
        channel_mean, channel_std: over all pixels of all pictures, in 0..255, by channel.
        count: how many pictures went in.
        prop: how they were prepared.
        broken: those that could not be used.
        by_class: the mean of each class that has a good picture, likewise, by class number; where asked for.
    """

    mean: NDArray[np.float32]
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    count: int
    prop: ImageProperty
    broken: tuple[BrokenImage, ...] = ()
    by_class: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write `.png` to look at, `.npy` to compute with and `.json` with the figures, beside each other."""
        with replacing(path.with_suffix(".png")) as part:
            LabeledImage.from_array(self.mean).image.save(part, "PNG")
        with replacing(path.with_suffix(".npy")) as part, part.open("wb") as out:
            np.save(out, self.mean, allow_pickle=False)
        figures = {"v": 1, "mean": self.channel_mean, "std": self.channel_std, "count": self.count}
        write_text(path.with_suffix(".json"), json.dumps({**figures, "image": asdict(self.prop)}, indent=2) + "\n")


def compute_mean(
    items: Iterable[LabeledPath],
    prop: ImageProperty,
    *,
    per_class: bool = False,
    workers: int | None = None,
    pool: Pool | None = None,
    progress: Progress | None = None,
) -> MeanImage:
    """The mean of the pictures as the network sees them, and with `per_class` that of each class.

    Sums are whole numbers, so that the result does not depend on the workers or on the order.

    Args:
        pool: who reads the pictures; by default `workers` threads (a core each).

    Raises:
        InputError: no picture could be used.
    """
    shape = prop.height, prop.width, prop.channels
    histogram = np.zeros((prop.channels, 256), dtype=np.uint64)
    sums: dict[int, NDArray[Any]] = {}
    counts: Counter[int] = Counter()
    broken: list[BrokenImage] = []
    shown = progress or NoProgress()
    shown.start("mean", None, "pictures")
    pool = pool or Threads(workers or os.cpu_count() or 1)
    for part in pool.map(partial(_summed, prop=prop, per_class=per_class), _lists(items, pool.at_once)):
        broken += part.broken
        shown.advance(part.counts.total() + len(part.broken), broken=len(broken))
        histogram += part.histogram
        counts += part.counts
        for label, pixels in part.sums.items():
            sums.setdefault(label, np.zeros(shape, np.uint32 if per_class else np.uint64))[...] += pixels
    shown.close()
    if not counts:
        raise InputError(f"no mean: none of the {len(broken)} pictures could be used ({_first(broken)})")
    total = np.zeros(shape, np.uint64)
    for some in sums.values():
        total += some
    by_class = {label: _mean(sums[label], counts[label]) for label in sorted(sums)} if per_class else {}
    count = counts.total()
    return MeanImage(_mean(total, count), *_moments(histogram), count, prop, tuple(broken), by_class)


def _mean(sums: NDArray[Any], count: int) -> NDArray[np.float32]:
    """float32 `(C, H, W)` from whole numbers `(H, W, C)`."""
    return np.ascontiguousarray((sums / count).astype(np.float32).transpose(2, 0, 1))


def draw_class_means(made: MeanImage, names: Sequence[str], path: Path) -> None:
    """Write each class's mean under its name, side by side in one picture."""
    means, prop = made.by_class, made.prop
    columns = max(1, SHEET_PX // prop.width)
    rows = -(-len(means) // columns)
    sheet = Image.new("RGB", (min(columns, len(means)) * prop.width, rows * (prop.height + CAPTION_PX)), "white")
    for place, (label, mean) in enumerate(means.items()):
        left, top = place % columns * prop.width, place // columns * (prop.height + CAPTION_PX)
        sheet.paste(LabeledImage.from_array(mean).image, (left, top + CAPTION_PX))
        ImageDraw.Draw(sheet).text((left + 2, top + 2), names[label][: prop.width // 7], fill="black")
    with replacing(path) as part:
        sheet.save(part, "PNG")


def remembered_mean(
    labels: LabelFile, prop: ImageProperty, *, per_class: bool, pool: Pool | None, progress: Progress | None
) -> MeanImage:
    """The mean from the cache where no picture has changed since, else computed and kept.

    Not kept where a picture cannot be read: a permission or a missing package is no property of it.
    """
    digest = hashlib.sha256(f"3 {PIXELS_VERSION} {prop} {per_class}".encode())
    for item in labels:
        state = file_state(item.path) or b""
        told = f"{item.path} {item.path.absolute()} {state.hex()} {item.label if per_class else ''}\n"
        digest.update(told.encode(errors="surrogateescape"))
    kept = cache_dir("means") / f"{digest.hexdigest()[:32]}.npz"
    try:
        return _read_kept(kept, prop)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        made = compute_mean(labels, prop, per_class=per_class, pool=pool, progress=progress)
    if any(one.fault is Fault.UNREADABLE for one in made.broken):
        return made
    told = json.dumps({"mean": made.channel_mean, "std": made.channel_std, "count": made.count,
            "broken": [(one.path, one.fault, one.detail) for one in made.broken]})  # fmt: skip
    by_class = {str(label): mean for label, mean in made.by_class.items()}
    with replacing(kept) as part, part.open("wb") as out:
        np.savez(out, mean=made.mean, told=told, **by_class)  # type: ignore[arg-type]  # numpy's stub
    return made


def _read_kept(path: Path, prop: ImageProperty) -> MeanImage:
    with np.load(path, allow_pickle=False) as values:
        told = json.loads(str(values["told"]))
        broken = tuple(BrokenImage(path, Fault(fault), detail) for path, fault, detail in told["broken"])
        by_class = {int(name): values[name] for name in values.files if name.isdigit()}
        return MeanImage(values["mean"], tuple(told["mean"]), tuple(told["std"]), told["count"], prop, broken, by_class)


def load_mean_image(path: str | os.PathLike[str], image: ImageProperty | None = None) -> NDArray[np.float32]:
    """Read a mean image from a `.npy` or an image file: float32 `(C, H, W)` in 0..255.

    Args:
        path: as `mlimages mean` writes it.
        image: what the network takes: an image file is read as grey or RGB accordingly, and the size must be this one.

    Raises:
        InputError: no such file, an image that cannot be decoded, an array of another shape, NaN or infinite numbers.
    """
    path = as_path(os.fspath(path))
    mean = _read_array(path) if path.suffix.lower() == ".npy" else _read_image(path, image)
    if mean.ndim != 3 or mean.shape[0] not in (1, 3) or mean.dtype.kind not in "fiu":
        raise InputError(f"{path}: a mean image is float32 (C, H, W) with C 1 or 3, this is {mean.dtype} {mean.shape}")
    if image is not None and mean.shape != (shape := (image.channels, image.height, image.width)):
        raise InputError(
            f"{path} is a mean image of {mean.shape}, the network takes {shape} (C, H, W): "
            f"make one with `mlimages mean LABELS --size {image.width}`"
        )
    if not np.isfinite(mean).all():
        raise InputError(f"{path} is a mean image with NaN or infinite numbers: make it again")
    return np.ascontiguousarray(mean, np.float32)


def _read_array(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
            return array
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise InputError(f"{path} cannot be read as a mean image: {error}") from error


def _read_image(path: Path, image: ImageProperty | None) -> NDArray[Any]:
    try:
        pixels = load_rgb(path).convert("L" if image is not None and image.gray_scale else "RGB")
    except ImageError as error:
        raise InputError(f"{path} cannot be read as a mean image: {error}") from error
    return np.atleast_3d(np.asarray(pixels, np.float32)).transpose(2, 0, 1)


@dataclass(frozen=True, slots=True)
class _Summed:
    """Some pictures: uint16 sums `(H, W, C)` and counts by class (or all as class 0), levels uint64 `(C, 256)`."""

    sums: dict[int, NDArray[np.uint16]]
    counts: Counter[int]
    histogram: NDArray[np.uint64]
    broken: list[BrokenImage]


def _summed(items: Sequence[LabeledPath], prop: ImageProperty, per_class: bool) -> _Summed:
    """At most 257 pictures, whose levels add up to 16 bits: little is to travel."""
    found = _Summed({}, Counter(), np.zeros((prop.channels, 256), dtype=np.uint64), [])
    for item in items:
        loaded = load_or_tell(item.path, prop)
        if isinstance(loaded, BrokenImage):
            found.broken.append(loaded)
            continue
        label = item.label if per_class else 0
        found.counts[label] += 1
        found.sums.setdefault(label, np.zeros(loaded.shape, np.uint16))[...] += loaded
        found.histogram[...] += _histogram(loaded)
    return found


def _lists(items: Iterable[LabeledPath], size: int) -> Iterator[list[LabeledPath]]:
    waiting = iter(items)
    while some := list(islice(waiting, size)):
        yield some


def _histogram(pixels: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Counts of each level by channel, `(C, 256)`: the exact sums of x and of x squared at a tenth of their cost."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    counts: NDArray[np.uint64] = np.asarray(image.histogram(), dtype=np.uint64)
    return counts.reshape(-1, 256)


def _moments(histogram: NDArray[np.uint64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel."""
    levels = np.arange(256, dtype=np.float64)
    weights = histogram / histogram.sum(axis=1, keepdims=True)  # (C, 256)
    mean = weights @ levels
    spread = np.sqrt((weights * (levels - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(spread.tolist())


def _first(broken: list[BrokenImage]) -> str:
    return f"first: {broken[0].path}: {broken[0].fault}" if broken else "the label file is empty"
