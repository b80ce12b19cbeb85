"""Read and check the label files, network and mean image of a run; no image is decoded."""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mlimages.core import (
    DEFAULT_MODEL,
    ImageProperty,
    InputError,
    LabeledPath,
    MissingExtraError,
    MlimagesError,
    ModelError,
    NetworkSummary,
    Preprocessing,
    Resize,
    format_command,
    format_size,
    pluralize,
)
from mlimages.dataset import describe_preprocessing_differences, load_mean_image
from mlimages.labels import ClassNames, LabelFile, find_source, merge_classes, open_labels, open_splits
from mlimages.networks import (
    FrozenLayers,
    Model,
    build_model,
    freeze,
    override_image_property,
    summarize_model,
    wrap_network,
)
from mlimages.reports import RunFiles, read_run, read_settings
from mlimages.training import distributed
from mlimages.training.config import FineTuneConfig
from mlimages.training.run import read_backend, require_same_preprocessing

logger = logging.getLogger(__name__)

MeanImage = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LabeledSplits:
    """The content of a run's label files.

    Attributes:
        class_names: names of the classes, by class index.
        train: training images.
        val: validation images; None if they are to be split off `train`.
    """

    class_names: ClassNames
    train: list[LabeledPath]
    val: list[LabeledPath] | None

    @property
    def is_multi_label(self) -> bool:
        """Whether the label files are multi-label."""
        return self.train[0].labels is not None


@dataclass(frozen=True, slots=True)
class TrainingInputs:
    """Label files, network and mean image of a run, before any image is decoded.

    Attributes:
        splits: paths and labels of the images.
        model: the network, with its lower layers frozen.
        frozen_layers: frozen parameters and modules of the network.
        mean_image: float32 `(C, H, W)` in 0..255, to be stored in the run folder; None if the run has none, or is
            resumed and has already stored it.
        is_resumed: whether the run folder contains a finished epoch.
    """

    splits: LabeledSplits
    model: Model
    frozen_layers: FrozenLayers
    mean_image: MeanImage | None
    is_resumed: bool


@dataclass(frozen=True, slots=True)
class CustomNetwork:
    """A network passed in by the caller, and its preprocessing."""

    network: nn.Module
    preprocessing: Preprocessing

    @property
    def name(self) -> str:
        """Name of the network's Python class, such as `ResNet`."""
        return type(self.network).__name__

    def check_settings(self, config: FineTuneConfig) -> None:
        """Check that the preprocessing and the settings have no value that would be ignored with a custom network.

        Raises:
            InputError: the preprocessing names a mean image but `config.mean` is not a file, or the settings name
                another network or a weights file.
        """
        self.preprocessing.normalization.check_mean_image(config.mean_file)
        if config.model not in (DEFAULT_MODEL, self.name) or config.weights not in ("default", "none"):
            raise InputError(
                f"model {config.model!r} with weights {config.weights!r} cannot be combined with a custom network: "
                "omit both settings, and load weights into the network itself"
            )


def read_inputs(config: FineTuneConfig, files: RunFiles, custom_network: CustomNetwork | None = None) -> TrainingInputs:
    """Read the label files, build the network and freeze its lower layers; decode no image and write nothing.

    Args:
        config: settings of the run.
        custom_network: network to use instead of the one in the configuration.

    Raises:
        InputError: a label file, the mean image or another setting cannot be used.
        MissingExtraError: the run to resume was started with OpenVINO, which is not installed.
        ModelError: the network cannot be built or frozen.
        RunError: `config.json` is damaged, the run to resume had other preprocessing, or the label files or the run
            folder differ between the processes.
    """
    is_resumed = files.state.exists()
    backend = read_backend(files) if is_resumed else None
    if backend and backend.library == "openvino" and not find_spec("openvino"):
        raise MissingExtraError("resuming a run that uses OpenVINO", "train")
    splits = _read_stored_splits(files) if is_resumed else read_labeled_splits(config)
    distributed.require_same_on_ranks("label files and run folder", (is_resumed, splits.train, splits.val))
    min_images = 1 if splits.val is not None or splits.is_multi_label else 2
    require_enough_images(splits.train, splits.class_names, min_images=min_images)
    model = _build_network(config, len(splits.class_names), custom_network)
    if splits.is_multi_label and type(model.network).__name__ == "SqueezeNet":
        raise ModelError(
            f"the logits of {config.model} pass through a ReLU, so that no class would have a probability below 0.5: "
            "use another --model for multi-label training"
        )
    if is_resumed:
        require_same_preprocessing(config, files, model.preprocessing)
    mean = None if is_resumed else _check_std_and_load_mean(config, model, custom_network)
    return TrainingInputs(splits, model, freeze(model, config.freeze), mean, is_resumed)


def _build_network(config: FineTuneConfig, num_classes: int, custom_network: CustomNetwork | None) -> Model:
    if custom_network:
        preprocessing = custom_network.preprocessing
        image = override_image_property(preprocessing.image, size=config.size, resize=config.resize, gray=config.gray)
        return wrap_network(
            custom_network.network,
            replace(preprocessing, image=image),
            num_classes=num_classes,
            pretrained=config.freeze != "none",
        )
    return build_model(
        config.model,
        num_classes=num_classes,
        weights=config.weights,
        size=config.size,
        resize=config.resize,
        gray=config.gray,
        seed=config.seed,
    )


def _read_stored_splits(files: RunFiles) -> LabeledSplits:
    names = files.read_class_names()
    return LabeledSplits(names, list(LabelFile(files.train)), list(LabelFile(files.val)))


def warn_about_changed_labels(config: FineTuneConfig, files: RunFiles) -> None:
    """Log a warning if the label files have changed since the run was started; the run uses the copies in its folder.

    Images are compared by file name and classes, since the folder may have been moved.
    """
    if not (files.state.exists() or files.result.exists()):
        return
    try:
        before, now = (_count_images(found) for found in (_read_stored_splits(files), read_labeled_splits(config)))
        with files.left_out.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
            skipped = {Path(row[0]).name for row in csv.reader(lines, delimiter="\t") if row}
    except (MlimagesError, OSError, csv.Error):  # the label files are no longer there, or left_out.tsv was edited
        return
    added = sum(count for (name, _), count in (now - before).items() if name not in skipped)
    if added or before - now:
        logger.warning(
            "%s has changed since %s was started (rows added: %d, removed: %d): the run uses the original rows; to "
            "train on the changed ones, choose another output folder with -o",
            " or ".join(str(path) for path in (config.labels, config.val) if path),
            files.folder, added, (before - now).total(),
        )  # fmt: skip


def _count_images(splits: LabeledSplits) -> Counter[tuple[str, tuple[str, ...]]]:
    """Count the images by file name and class names."""
    return Counter(
        (image.path.name, tuple(sorted(splits.class_names[label] for label in image.class_indices)))
        for image in (*splits.train, *(splits.val or ()))
    )


def read_labeled_splits(config: FineTuneConfig) -> LabeledSplits:
    """Read the label files or folders `labels` and `val`, and match their classes by name.

    `labels` may contain the splits `train` and `val`, as folders or in a column of a table; a split `val` is used if
    `config.val` is None.

    Raises:
        InputError: a file cannot be read, `labels` has splits but no `train`, a class of the validation images has no
            training image, or there are too few classes: fewer than two, or none in a multi-label run.
    """
    labels, val = config.labels, config.val
    parts = open_splits(labels, config)
    if not parts.keys() & {"", "train"}:
        raise InputError(
            f"{labels} contains the splits {', '.join(parts)}, but no split train: add it, or pass a single split"
        )
    val_labels = open_labels(val, config) if val else parts.get("val")
    files = [parts.get("train") or parts[""], *([val_labels] if val_labels else [])]
    names, own_names = merge_classes(files)
    index_of = {name: index for index, name in enumerate(names)}
    found = [
        [image.renumber_classes(lambda label, own=own: index_of[own[label]]) for image in file]  # type: ignore[misc]
        for file, own in zip(files, own_names, strict=True)
    ]
    used, used_last = ({label for item in part for label in item.class_indices} for part in (found[0], found[-1]))
    if new := [names[label] for label in sorted(used_last - used)]:
        where = find_source(files[-1])
        spellings = {names[label].strip().casefold(): names[label] for label in used}
        meant = [spellings[key] for name in new if (key := name.strip().casefold()) in spellings]
        raise InputError(
            f"{where}: no training images of {', '.join(new)}: "
            + (f"did you mean {', '.join(meant)}? Or " if meant else "")
            + "add some to the training set, or remove "
            f"{'this class' if len(new) == 1 else 'these classes'} from {where.name}"
        )
    if len(names) < 2 and not (names and files[0].is_multi_label):
        raise InputError(
            f"{labels}: found {'only the class ' + names[0] if names else 'no class'}: add images of other classes, "
            "since a classifier needs at least two"
        )
    return LabeledSplits(names, found[0], found[1] if len(found) > 1 else None)


def require_enough_images(
    images: Iterable[LabeledPath], class_names: ClassNames, *, min_images: int, image_kind: str = ""
) -> None:
    """Check that every class has enough training images.

    Args:
        images: training images.
        class_names: names of the classes.
        min_images: minimum number of images per class.
        image_kind: adjective for the message, such as "usable ".

    Raises:
        InputError: a class has fewer images.
    """
    counts = Counter(label for image in images for label in image.class_indices)
    few = [
        name if min_images == 1 else f"{name} ({counts[label]})"
        for label, name in enumerate(class_names)
        if counts[label] < min_images
    ]
    if few:
        fewer = "no" if min_images == 1 else f"fewer than {min_images}"
        raise InputError(f"{fewer} {image_kind}training images of {', '.join(few)}: gather more, or remove the class")


def get_image_property(
    source: str, *, size: int | tuple[int, int] | None = None, resize: Resize | None = None, gray: bool | None = None
) -> ImageProperty:
    """Return the input size, channels and resize method of a network, given its name or a run folder.

    The other arguments are those of `build_model`; they do not apply to a run folder.

    Raises:
        ModelError: there is no such network.
        RunError: the folder is not a run folder.
    """
    folder = Path(source)
    if folder.is_dir():
        return Preprocessing.from_dict(read_settings(RunFiles(folder))["preprocessing"]).image
    return build_model(source, num_classes=2, size=size, resize=resize, gray=gray).preprocessing.image


def summarize_run_network(run: str | os.PathLike[str]) -> NetworkSummary:
    """Summarize the network of a run layer by layer: output shapes, parameters and frozen layers.

    Raises:
        ModelError: the run has a custom network, or its network cannot be built.
        RunError: `run` is not a run folder.

    >>> summarize_run_network("runs/first").layers[0].output
    (6, 28, 28)
    """
    folder = read_run(run)
    image, settings = folder.preprocessing.image, folder.settings
    return summarize_model(
        settings["model"],
        size=(image.width, image.height),
        gray=image.gray_scale,
        num_classes=len(folder.class_names),
        freeze=settings["freeze"],
    )


def _check_std_and_load_mean(config: FineTuneConfig, model: Model, custom: CustomNetwork | None) -> MeanImage | None:
    """Check the number of values of `config.std`; return the mean image, or None if `config.mean` is not a file.

    Raises:
        InputError: `std` does not match the network, or the mean image cannot be used.
    """
    channels, image = model.preprocessing.input_shape[0], model.preprocessing.image
    if len(config.std) not in (0, 1, channels):
        raise InputError(
            f"std has {len(config.std)} values, but the network has {pluralize(channels, 'input channel')}: use one "
            "value"
        )
    if not config.mean_file:
        return None
    if differences := describe_preprocessing_differences(config.mean_file, image):
        code = f"`TrainingData(LABELS, {image}).make_mean_image(PATH)`"
        logger.warning(
            "the mean image %s was computed with other preprocessing than this run uses (%s): recreate it with %s",
            config.mean_file, differences, code if custom else _format_mean_command(config, image),
        )  # fmt: skip
    return load_mean_image(config.mean_file, image)


def _format_mean_command(config: FineTuneConfig, image: ImageProperty) -> str:
    """Return the command that computes a mean image for the network, with the settings of the run."""
    options = ["--size", format_size(image.width, image.height)] if config.size else []
    options += ["--resize", image.resize] * bool(config.resize)
    options += ["--gray" if config.gray else "--no-gray"] * (config.gray is not None)
    return format_command("mean", "LABELS", "--model", config.model, *options)
