"""A run is set up: from its settings, or from the folder that an interrupted one left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlimages.core import (
    ImageProperty,
    InputError,
    LabeledPath,
    Normalization,
    Preprocessing,
    Progress,
    RunError,
    cache_dir,
    replacing,
    write_text,
)
from mlimages.images import load_rgb
from mlimages.labels import ClassNames, LabelFile, write_label_file
from mlimages.networks import Model, build_model
from mlimages.training import distributed, preflight
from mlimages.training.config import FineTuneConfig
from mlimages.training.image_cache import Picture, PictureSet, chunks
from mlimages.training.row_store import RowStore, make_room
from mlimages.training.run import RunFiles, read_settings, write_settings

MeanImage = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run works on; `pixels` keeps the decoded pictures."""

    model: Model
    preprocessing: Preprocessing
    mean_image: MeanImage | None
    class_names: ClassNames
    data: preflight.Data
    pixels: RowStore | None


def prepare(config: FineTuneConfig, files: RunFiles, progress: Progress) -> Setup:
    """Build the network and look at every picture; write the run folder, or go on with the one that is there.

    Raises:
        RunError: the folder is of a run with other settings.
        InputError: the pictures cannot be trained on.
        ModelError: the network cannot be built.
    """
    started = files.config.exists()
    if started:
        _demand_same(config, files)
    names = _names(files.classes) if started else preflight.class_names(config.labels, config.val)
    model = build_model(
        config.model,
        classes=len(names),
        weights=config.weights,
        size=config.size,
        resize=config.resize,
        gray=config.gray,
        seed=config.seed,
    )
    image = model.preprocessing.image
    train = list(LabelFile(files.train if started else config.labels))
    val_file = files.val if started else config.val
    val = None if val_file is None else list(LabelFile(val_file))
    distributed.demand_same("label files and run folder", (started, train, val))
    pixels = _pixel_store_within(config, image, count=len(train) + len(val or []))
    data = preflight.inspect(
        train,
        val,
        names,
        image,
        split=lambda found: preflight.set_aside(found, config.val_share, root=config.labels.parent, seed=config.seed),
        store=pixels,
        progress=progress,
    )
    if not started and distributed.is_first():
        _write(config, files, model, names, data, pixels)
    distributed.wait()
    preprocessing = Preprocessing.from_dict(read_settings(files)["preprocessing"])
    mean = np.load(files.mean_image, allow_pickle=False) if preprocessing.normalization.mean_image else None
    return Setup(model, preprocessing, mean, names, data, pixels)


def _demand_same(config: FineTuneConfig, files: RunFiles) -> None:
    before, now = read_settings(files)["config"], json.loads(config.to_json())
    other = sorted(name for name in now if name != "out" and before.get(name) != now[name])
    if other:
        said = ", ".join(f"{name} {before.get(name)!r} there, {now[name]!r} now" for name in other[:3])
        raise RunError(
            f"{files.folder} holds a run with other settings ({said}): go on with it by "
            f"`mlimages finetune --resume {files.folder}`, or give another -o"
        )


def _names(path: Path) -> ClassNames:
    return tuple(path.read_text(encoding="utf-8").splitlines())


def pixel_store(image: ImageProperty) -> RowStore:
    """The cache of pictures prepared in this way, shared by all runs."""
    name = hashlib.sha256(f"v1 {json.dumps(asdict(image), sort_keys=True)}".encode()).hexdigest()[:32]
    return RowStore(cache_dir("pixels") / name, (image.height, image.width, image.channels), np.uint8)


def _pixel_store_within(config: FineTuneConfig, image: ImageProperty, *, count: int) -> RowStore | None:
    """The cache of decoded pictures, if it may hold `count` of them."""
    needed = count * image.height * image.width * image.channels
    if not config.cache or needed > config.pixel_bytes:
        return None
    store = pixel_store(image)
    make_room(store.folder.parent, needed=needed, budget=config.pixel_bytes, keep=store.folder)
    return store


def _write(
    config: FineTuneConfig,
    files: RunFiles,
    model: Model,
    names: ClassNames,
    data: preflight.Data,
    pixels: RowStore | None,
) -> None:
    """The run folder as it stands before training; config.json comes last and makes it one."""
    normalization, mean = _normalization(config, model.preprocessing, data.train, pixels)
    if mean is not None:
        with replacing(files.mean_image) as part, part.open("wb") as out:
            np.save(out, mean, allow_pickle=False)
    write_text(files.classes, "".join(f"{name}\n" for name in names))
    for path, pictures in ((files.train, data.train), (files.val, data.val)):
        write_label_file(path, [LabeledPath(picture.path, picture.label) for picture in pictures], names)
    write_settings(files, config, Preprocessing(model.preprocessing.image, normalization))


def _normalization(
    config: FineTuneConfig, expected: Preprocessing, train: Sequence[Picture], pixels: RowStore | None
) -> tuple[Normalization, MeanImage | None]:
    """The weights' own figures with what the settings override, and the mean image where one is given."""
    image, base = expected.image, expected.normalization
    scale = config.scale or base.scale
    kept = replace(
        base,
        scale=scale,
        mean=tuple(mean * base.scale / scale for mean in base.mean),
        std=config.std or base.std,
        bgr=base.bgr if config.bgr is None else config.bgr,
    )
    match config.mean:
        case "":
            return kept, None
        case "none":
            return replace(kept, mean=(0.0,) * len(base.mean)), None
        case "channel":
            means = _channel_means(PictureSet(train, image, store=pixels))
            return replace(kept, mean=tuple(float(mean) / scale for mean in means)), None
        case path:
            return replace(kept, mean_image="mean.npy"), _mean_image(Path(path), image)


def _channel_means(pictures: PictureSet) -> NDArray[np.float64]:
    """Mean of the prepared pixels, 0..255, by channel."""
    total, count = np.zeros(pictures.image.channels), 0
    for batch in pictures.batches(chunks(range(len(pictures)), 32)):
        total += batch.pixels.numpy().sum(axis=(0, 1, 2), dtype=np.float64)
        count += batch.pixels.numel() // pictures.image.channels
    return total / max(1, count)


def _mean_image(path: Path, image: ImageProperty) -> MeanImage:
    """A mean image of the size that the network is fed, float32 `(C, H, W)` in 0..255.

    Raises:
        InputError: it cannot be read or has another shape.
    """
    wanted = (image.channels, image.height, image.width)
    try:
        if path.suffix == ".npy":
            mean = np.load(path, allow_pickle=False).astype(np.float32)
        else:
            picture = load_rgb(path).convert("L" if image.gray_scale else "RGB")
            mean = np.asarray(picture, np.float32).reshape(picture.height, picture.width, -1).transpose(2, 0, 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a mean image: {error}") from error
    if mean.shape != wanted:
        raise InputError(
            f"{path} is a mean image of {mean.shape}, the network takes {wanted} (C, H, W): "
            f"make one with `mlimages mean LABELS --size {image.width}`"
        )
    return np.ascontiguousarray(mean)
