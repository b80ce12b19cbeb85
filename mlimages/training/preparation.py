"""What a run needs before training: all that can be checked without an image first, then the images."""

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
    cache_dir,
    replacing,
    write_text,
)
from mlimages.dataset import load_mean_image
from mlimages.images import PIXELS_VERSION
from mlimages.labels import ClassNames, LabelFile, write_label_file
from mlimages.networks import FrozenPart, Model, build_model, freeze
from mlimages.reports import RunFiles, read_settings
from mlimages.training import distributed, preflight
from mlimages.training.config import FineTuneConfig
from mlimages.training.image_cache import Picture, PictureSet, chunks
from mlimages.training.row_store import RowStore, make_room
from mlimages.training.run import write_settings

MeanImage = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that only its images can still stop.

    Attributes:
        model: the network, frozen already.
        frozen: what of it does not learn.
        class_names: in the order of the logits.
        train: the label file's lines.
        val: those of the other one; None where some of `train` are to be set aside.
        mean_image: float32 `(C, H, W)` in 0..255, where one was given.
        resumed: whether an epoch has ended before.
    """

    model: Model
    frozen: FrozenPart
    class_names: ClassNames
    train: Sequence[LabeledPath]
    val: Sequence[LabeledPath] | None
    mean_image: MeanImage | None
    resumed: bool


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run works on; `pixels` keeps the decoded images."""

    model: Model
    frozen: FrozenPart
    preprocessing: Preprocessing
    mean_image: MeanImage | None
    class_names: ClassNames
    data: preflight.Data
    pixels: RowStore | None


def plan(config: FineTuneConfig, files: RunFiles) -> Plan:
    """Read the label files, build the network and freeze it; decode no image and write nothing.

    Raises:
        InputError: a label file, the mean image or another setting cannot be used.
        ModelError: the network cannot be built or frozen so.
    """
    resumed = files.state.exists()
    images = _resumed_images(files) if resumed else preflight.read_label_files(config.labels, config.val)
    names, train, val = images.names, images.train, images.val
    distributed.require_same("label files and run folder", (resumed, train, val))
    preflight.demand_classes(train, names)
    model = build_model(
        config.model,
        classes=len(names),
        weights=config.weights,
        size=config.size,
        resize=config.resize,
        gray=config.gray,
        seed=config.seed,
    )
    frozen = freeze(model, config.freeze)
    mean = None if resumed else _given_mean(config, model.preprocessing)
    return Plan(model, frozen, names, train, val, mean, resumed)


def prepare(config: FineTuneConfig, files: RunFiles, planned: Plan, progress: Progress) -> Setup:
    """Look at every image and split them; write the run folder, or go on with the one that is there.

    Raises:
        InputError: the images cannot be trained on.
    """
    model, names = planned.model, planned.class_names
    image = model.preprocessing.image
    pixels = _pixel_store_within(config, image, count=len(planned.train) + len(planned.val or []))
    data = preflight.inspect(
        planned.train,
        planned.val,
        names,
        image,
        split=lambda found: preflight.set_aside(found, config.val_share, labels=config.labels, seed=config.seed),
        store=pixels,
        progress=progress,
    )
    if distributed.is_main_process():
        if planned.resumed:
            _write_epochs(config, files)
        else:
            _write(config, files, planned, data, pixels)
    distributed.barrier()
    preprocessing = Preprocessing.from_dict(read_settings(files)["preprocessing"])
    mean = load_mean_image(files.mean_image, preprocessing.image) if preprocessing.normalization.mean_image else None
    return Setup(model, planned.frozen, preprocessing, mean, names, data, pixels)


def _resumed_images(files: RunFiles) -> preflight.LabeledImages:
    return preflight.LabeledImages(_names(files.classes), list(LabelFile(files.train)), list(LabelFile(files.val)))


def _names(path: Path) -> ClassNames:
    return tuple(path.read_text(encoding="utf-8").splitlines())


def pixel_store(image: ImageProperty) -> RowStore:
    """The cache of pictures prepared in this way, shared by all runs."""
    name = hashlib.sha256(f"v{PIXELS_VERSION} {json.dumps(asdict(image), sort_keys=True)}".encode()).hexdigest()[:32]
    return RowStore(cache_dir("pixels") / name, (image.height, image.width, image.channels), np.uint8)


def _pixel_store_within(config: FineTuneConfig, image: ImageProperty, *, count: int) -> RowStore | None:
    """The cache of decoded pictures, if it may hold `count` of them."""
    needed = count * image.height * image.width * image.channels
    if not config.cache or needed > config.pixel_bytes:
        return None
    store = pixel_store(image)
    make_room(store.folder.parent, needed=needed, budget=config.pixel_bytes, keep=store.folder)
    return store


def _write_epochs(config: FineTuneConfig, files: RunFiles) -> None:
    """Note that a run is given more epochs: it has not ended any more."""
    settings = read_settings(files)
    if settings["config"]["epochs"] != config.epochs:
        files.result.unlink(missing_ok=True)
        write_settings(files, config, Preprocessing.from_dict(settings["preprocessing"]))


def _write(
    config: FineTuneConfig, files: RunFiles, planned: Plan, data: preflight.Data, pixels: RowStore | None
) -> None:
    """The run folder as it is before training; config.json comes first, and says whose the others are."""
    expected, mean = planned.model.preprocessing, planned.mean_image
    normalization = _normalization(config, expected, data.train, pixels)
    write_settings(files, config, Preprocessing(expected.image, normalization))
    if mean is not None:
        with replacing(files.mean_image) as part, part.open("wb") as out:
            np.save(out, mean, allow_pickle=False)
    write_text(files.classes, "".join(f"{name}\n" for name in planned.class_names))
    for path, pictures in ((files.train, data.train), (files.val, data.val)):
        write_label_file(path, [LabeledPath(picture.path, picture.label) for picture in pictures], planned.class_names)


def _given_mean(config: FineTuneConfig, expected: Preprocessing) -> MeanImage | None:
    """The mean image that the settings name; what they say of std fits the network.

    Raises:
        InputError: it does not, or the mean image cannot be used.
    """
    channels = max(expected.image.channels, len(expected.normalization.mean))
    if len(config.std) not in (0, 1, channels):
        raise InputError(f"std has {len(config.std)} numbers, the network takes {channels} channel: give one number")
    return load_mean_image(config.mean_file, expected.image) if config.mean_file else None


def _normalization(
    config: FineTuneConfig, expected: Preprocessing, train: Sequence[Picture], pixels: RowStore | None
) -> Normalization:
    """The weights' own figures with what the settings override."""
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
            return kept
        case "none":
            return replace(kept, mean=(0.0,) * len(base.mean))
        case "channel":
            means = _channel_means(PictureSet(train, image, store=pixels))
            return replace(kept, mean=tuple(float(mean) / scale for mean in means))
        case _:
            return replace(kept, mean_image="mean.npy")


def _channel_means(pictures: PictureSet) -> NDArray[np.float64]:
    """Mean of the prepared pixels, 0..255, by channel."""
    total, count = np.zeros(pictures.image.channels), 0
    for batch in pictures.batches(chunks(range(len(pictures)), 32)):
        total += batch.pixels.numpy().sum(axis=(0, 1, 2), dtype=np.float64)
        count += batch.pixels.numel() // pictures.image.channels
    return total / max(1, count)
