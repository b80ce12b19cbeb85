"""The inputs of a run: first everything that can be checked without an image, then the images."""

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
from mlimages.training.image_cache import ImageSet, TrainingImage, chunks
from mlimages.training.row_store import RowStore, make_room
from mlimages.training.run import write_settings

MeanImage = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RunInputs:
    """Network and label files, checked; no image was decoded yet.

    Attributes:
        model: the network, with its lower layers frozen.
        frozen: its frozen parameters and buffers.
        class_names: in the order of the logits.
        train: paths and labels to train on.
        val: paths and labels to validate on; None if part of `train` is to be held out.
        mean_image: float32 `(C, H, W)` in 0..255, if one was given.
        resumed: whether the run folder holds a finished epoch.
    """

    model: Model
    frozen: FrozenPart
    class_names: ClassNames
    train: Sequence[LabeledPath]
    val: Sequence[LabeledPath] | None
    mean_image: MeanImage | None
    resumed: bool


@dataclass(frozen=True, slots=True)
class RunData:
    """Network, preprocessing and images of a run.

    Attributes:
        model: the network, with its lower layers frozen.
        frozen: its frozen parameters and buffers.
        preprocessing: of every image.
        mean_image: float32 `(C, H, W)` in 0..255, if the preprocessing has one.
        class_names: in the order of the logits.
        images: training and validation set.
        pixels: cache of the decoded images; None without a cache.
    """

    model: Model
    frozen: FrozenPart
    preprocessing: Preprocessing
    mean_image: MeanImage | None
    class_names: ClassNames
    images: preflight.ImageSplit
    pixels: RowStore | None


def read_inputs(config: FineTuneConfig, files: RunFiles) -> RunInputs:
    """Read the label files, build the network and freeze it; decode no image and write nothing.

    Raises:
        InputError: a label file, the mean image or another setting cannot be used.
        ModelError: the network cannot be built or frozen so.
    """
    resumed = files.state.exists()
    images = _resumed_images(files) if resumed else preflight.read_label_files(config)
    names, train, val = images.names, images.train, images.val
    distributed.require_same("label files and run folder", (resumed, train, val))
    preflight.require_classes(train, names)
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
    mean = None if resumed else _load_mean(config, model.preprocessing)
    return RunInputs(model, frozen, names, train, val, mean, resumed)


def prepare_data(config: FineTuneConfig, files: RunFiles, inputs: RunInputs, progress: Progress) -> RunData:
    """Decode every image and split them; write the run folder, or continue the one that is there.

    Raises:
        InputError: the images cannot be trained on.
    """
    model, names = inputs.model, inputs.class_names
    image = model.preprocessing.image
    pixels = _pixel_store_within(config, image, count=len(inputs.train) + len(inputs.val or []))
    data = preflight.decode_and_split(
        inputs.train,
        inputs.val,
        names,
        image,
        split=lambda found: preflight.hold_out(found, config),
        store=pixels,
        progress=progress,
    )
    if distributed.is_main_process():
        if inputs.resumed:
            _write_epochs(config, files)
        else:
            _write_folder(config, files, inputs, data, pixels)
    distributed.barrier()
    preprocessing = Preprocessing.from_dict(read_settings(files)["preprocessing"])
    mean = load_mean_image(files.mean_image, preprocessing.image) if preprocessing.normalization.mean_image else None
    return RunData(model, inputs.frozen, preprocessing, mean, names, data, pixels)


def _resumed_images(files: RunFiles) -> preflight.LabeledImages:
    return preflight.LabeledImages(_names(files.classes), list(LabelFile(files.train)), list(LabelFile(files.val)))


def _names(path: Path) -> ClassNames:
    return tuple(path.read_text(encoding="utf-8").splitlines())


def pixel_store(image: ImageProperty) -> RowStore:
    """The cache of decoded images with this geometry, shared by all runs."""
    name = hashlib.sha256(f"v{PIXELS_VERSION} {json.dumps(asdict(image), sort_keys=True)}".encode()).hexdigest()[:32]
    return RowStore(cache_dir("pixels") / name, (image.height, image.width, image.channels), np.uint8)


def _pixel_store_within(config: FineTuneConfig, image: ImageProperty, *, count: int) -> RowStore | None:
    """The cache of decoded images, if it may hold `count` of them."""
    needed = count * image.height * image.width * image.channels
    if not config.cache or needed > config.pixel_bytes:
        return None
    store = pixel_store(image)
    make_room(store.folder.parent, needed=needed, budget=config.pixel_bytes, keep=store.folder)
    return store


def _write_epochs(config: FineTuneConfig, files: RunFiles) -> None:
    """Write a higher number of epochs into `config.json`; the run is then no longer finished."""
    settings = read_settings(files)
    if settings["config"]["epochs"] != config.epochs:
        files.result.unlink(missing_ok=True)
        write_settings(files, config, Preprocessing.from_dict(settings["preprocessing"]))


def _write_folder(
    config: FineTuneConfig, files: RunFiles, inputs: RunInputs, data: preflight.ImageSplit, pixels: RowStore | None
) -> None:
    """Write the run folder before training; config.json first, as it marks the folder as a run's."""
    expected, mean = inputs.model.preprocessing, inputs.mean_image
    normalization = _normalization(config, expected, data.train, pixels)
    write_settings(files, config, Preprocessing(expected.image, normalization))
    if mean is not None:
        with replacing(files.mean_image) as part, part.open("wb") as out:
            np.save(out, mean, allow_pickle=False)
    write_text(files.classes, "".join(f"{name}\n" for name in inputs.class_names))
    for path, images in ((files.train, data.train), (files.val, data.val)):
        write_label_file(path, [LabeledPath(image.path, image.label) for image in images], inputs.class_names)


def _load_mean(config: FineTuneConfig, expected: Preprocessing) -> MeanImage | None:
    """The mean image of `config.mean`; the number of values of `std` is checked too.

    Raises:
        InputError: std does not fit the network, or the mean image cannot be used.
    """
    channels = max(expected.image.channels, len(expected.normalization.mean))
    if len(config.std) not in (0, 1, channels):
        raise InputError(f"std has {len(config.std)} numbers, the network takes {channels} channel: give one number")
    return load_mean_image(config.mean_file, expected.image) if config.mean_file else None


def _normalization(
    config: FineTuneConfig, expected: Preprocessing, train: Sequence[TrainingImage], pixels: RowStore | None
) -> Normalization:
    """The normalization that the weights expect, with the overrides of the settings."""
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
            means = _channel_means(ImageSet(train, image, store=pixels))
            return replace(kept, mean=tuple(float(mean) / scale for mean in means))
        case _:
            return replace(kept, mean_image="mean.npy")


def _channel_means(images: ImageSet) -> NDArray[np.float64]:
    """Mean of each channel, 0..255, float64 `(C,)`."""
    total, count = np.zeros(images.geometry.channels), 0
    for batch in images.batches(chunks(range(len(images)), 32)):
        total += batch.pixels.numpy().sum(axis=(0, 1, 2), dtype=np.float64)
        count += batch.pixels.numel() // images.geometry.channels
    return total / max(1, count)
