"""Prepare a run: write its folder, choose the normalization and cache the frozen features."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mlimages.core import (
    BrokenImage,
    Normalization,
    Preprocessing,
    Progress,
    write_output,
    write_text_output,
)
from mlimages.dataset import load_mean_image
from mlimages.labels import ClassNames, write_label_output
from mlimages.networks import (
    LOWER_HEAD_PATH,
    FrozenLayers,
    Model,
    Normalize,
    add_lower_layers_head,
    find_lower_layers_head,
    has_fast_bf16,
    split_network,
)
from mlimages.reports import RunFiles, read_settings
from mlimages.training import distributed
from mlimages.training.augmentation import Augmenter
from mlimages.training.compute_backend import ComputeBackend, Workload, choose_backend, count_gmacs
from mlimages.training.config import FineTuneConfig
from mlimages.training.feature_cache import cache_features
from mlimages.training.features import BatchSource, FeatureSource, PixelSource
from mlimages.training.image_set import ImageSet, split_into_chunks
from mlimages.training.inputs import TrainingInputs
from mlimages.training.objective import Objective, make_objective
from mlimages.training.run import override_normalization, read_backend, write_settings
from mlimages.training.run_images import DecodedSplits

logger = logging.getLogger(__name__)

MAX_LOWER_FIT_SIZE = 4000
"""If both the number of images and the number of features of the lower layers exceed this, the closed-form head uses
only the features of the last layer. The time to fit the head grows with the cube of the smaller of the two numbers."""


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A network to train, with its data and settings.

    Attributes:
        config: settings of the run.
        files: the run folder's files.
        model: the network to train. It may have a `LowerLayersHead`, a second linear classifier on the outputs of the
            lower layers, whose logits are added to those of the head.
        model_without_lower_head: `model` without its `LowerLayersHead`; `model` itself if it has none.
        frozen_layers: frozen parameters and modules of the network.
        frozen_digest: SHA-256 of the frozen weights; empty if nothing is frozen.
        class_names: names of the classes, in the order of the logits.
        source: yields batches and computes their logits.
        train_set: training set.
        val_set: validation set.
        num_views: number of fixed augmented views per image; 0 draws new views in each epoch.
        broken_images: images that could not be decoded.
        backend: library and precision that the network is computed with.
        objective: loss function and score.
    """

    config: FineTuneConfig
    files: RunFiles
    model: Model
    model_without_lower_head: Model
    frozen_layers: FrozenLayers
    frozen_digest: str
    class_names: ClassNames
    source: BatchSource
    train_set: ImageSet
    val_set: ImageSet
    num_views: int
    broken_images: tuple[BrokenImage, ...]
    backend: ComputeBackend
    objective: Objective

    @property
    def network(self) -> nn.Module:
        """The full network."""
        return self.model.network

    @property
    def device(self) -> torch.device:
        """The device of the network's parameters."""
        return next(self.network.parameters()).device

    def without_lower_head(self) -> TrainingJob:
        """Return a copy of this job whose model has no `LowerLayersHead`; both jobs use the same cached features."""
        if self.model is not self.model_without_lower_head:
            self.network.get_parameter(f"{LOWER_HEAD_PATH}.weight").requires_grad_(False)  # they are zero
        return replace(self, model=self.model_without_lower_head)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context for the precision of the trained part: autocast to bfloat16, or none."""
        is_rounded = self.backend.trained_precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16) if is_rounded else nullcontext()


def prepare_run_folder(
    config: FineTuneConfig, files: RunFiles, inputs: TrainingInputs, images: DecodedSplits
) -> Preprocessing:
    """Write the first files of a new run, or the number of epochs of a resumed run; return the stored preprocessing."""
    if distributed.is_main_process():
        if inputs.is_resumed:
            _update_num_epochs(config, files)
        else:
            _write_run_folder(config, files, inputs, images)
    distributed.barrier()
    return Preprocessing.from_dict(read_settings(files)["preprocessing"])


def _update_num_epochs(config: FineTuneConfig, files: RunFiles) -> None:
    """Write a higher number of epochs to `config.json`; the run then no longer counts as finished."""
    settings = read_settings(files)
    if settings["config"]["epochs"] != config.epochs:
        files.result.unlink(missing_ok=True)
        preprocessing = Preprocessing.from_dict(settings["preprocessing"])
        is_multi = settings.get("multi_label", False)
        write_settings(files, config, preprocessing, backend=read_backend(files), multi_label=is_multi)


def _write_run_folder(config: FineTuneConfig, files: RunFiles, inputs: TrainingInputs, images: DecodedSplits) -> None:
    """Write the files that a run has before training; `config.json` is the first, since it identifies a run folder."""
    expected, names = inputs.model.preprocessing, inputs.splits.class_names
    preprocessing = Preprocessing(expected.image, _resolve_normalization(config, expected, images))
    write_settings(files, config, preprocessing, multi_label=inputs.splits.is_multi_label)
    if inputs.mean_image is not None:
        with write_output(files.mean_image, overwrite=True) as part, part.open("wb") as out:
            np.save(out, inputs.mean_image, allow_pickle=False)
    write_text_output(files.classes, "".join(f"{name}\n" for name in names), overwrite=True)
    for path, part_images in ((files.train, images.train), (files.val, images.val)):
        write_label_output(path, part_images, names, overwrite=True)


def _resolve_normalization(
    config: FineTuneConfig, expected_preprocessing: Preprocessing, images: DecodedSplits
) -> Normalization:
    """Return the normalization that the weights expect; values that are given in the settings replace its own."""
    base = override_normalization(expected_preprocessing.normalization, config)
    match config.mean:
        case "":
            return base
        case "none":
            return replace(base, mean=(0.0,) * len(base.mean))
        case "channel":
            train_set = ImageSet(images.train, expected_preprocessing.image, store=images.pixel_store)
            means = _compute_channel_means(train_set)
            values = [float(mean) / base.scale for mean in means]
            # a network for color images gets a gray channel three times
            return replace(base, mean=tuple(values * (expected_preprocessing.input_shape[0] // len(values))))
        case _:
            return replace(base, mean_image="mean.npy")


def _compute_channel_means(images: ImageSet) -> NDArray[np.float64]:
    """Return the mean of each channel, 0..255, float64 `(C,)`."""
    total, count = np.zeros(images.image_property.channels), 0
    for pixels, _ in images.batches(split_into_chunks(range(len(images)), 32)):
        total += pixels.numpy().sum(axis=(0, 1, 2), dtype=np.float64)
        count += pixels.numel() // images.image_property.channels
    return total / max(1, count)


def build_training_job(
    config: FineTuneConfig,
    files: RunFiles,
    *,
    inputs: TrainingInputs,
    images: DecodedSplits,
    preprocessing: Preprocessing,
    device: torch.device,
    progress: Progress,
) -> TrainingJob:
    """Return a job that is ready to train: network on the device, features of the frozen part cached if they fit."""
    frozen, image = inputs.frozen_layers, preprocessing.image
    model = _add_lower_head_if_possible(config, inputs.model, len(images.train))
    network = model.network.to(device).to(memory_format=torch.channels_last)
    mean = load_mean_image(files.mean_image, image) if preprocessing.normalization.mean_image else None
    normalize = Normalize(preprocessing.normalization, mean).to(device)
    distributed.convert_sync_batch_norm(network, device, batch_size=config.batch_size)
    digest = frozen.digest(network) if frozen.parameter_names else ""
    augmenter = _make_augmenter(config, model)
    names = inputs.splits.class_names
    train = ImageSet(images.train, image, store=images.pixel_store, augmenter=augmenter, num_classes=len(names))
    val = ImageSet(images.val, image, store=images.pixel_store, num_classes=len(names))
    views = 1 if augmenter is None else augmenter.num_cached_views if frozen.parameter_names else 0
    example = torch.zeros(2, *preprocessing.input_shape, device=device)
    source: BatchSource = PixelSource(network, normalize, device)
    split = split_network(network, frozen, example) if config.cache else None
    gmacs = count_gmacs(split.lower_part, example) if split else 0.0
    work, backend = None, read_backend(files)
    if split and not inputs.is_resumed:  # a resumed run of an earlier version keeps to PyTorch
        work = Workload(model.name, gmacs, len(train) * views, len(val))
    if backend is None:
        backend = choose_backend(work, config.precision, device=device, is_frozen=bool(digest))
    backend = distributed.broadcast(backend)
    if "bf16" in (backend.frozen_precision, backend.trained_precision) and not has_fast_bf16(device):
        logger.warning(
            "this run was started in bfloat16, which is slow on this processor: start a new run to use float32"
        )
    if split:
        create_features = partial(
            FeatureSource, model, split, normalize=normalize, frozen_digest=digest, preprocessing=preprocessing,
            device=device, validation=val, gmacs=gmacs,
        )  # fmt: skip
        features, backend = cache_features(
            create_features, backend, is_resumed=inputs.is_resumed, train_set=train, num_views=views, val_set=val,
            cache_bytes=config.cache_bytes, progress=progress,
        )  # fmt: skip
        source = features or source
    if distributed.is_main_process() and not inputs.is_resumed:
        is_multi = inputs.splits.is_multi_label
        write_settings(files, config, preprocessing, backend=backend, multi_label=is_multi)
    return TrainingJob(
        config, files, model, inputs.model, frozen, digest, names, source, train, val, views, images.broken_images,
        backend, make_objective(config, train.labels, len(names), device),
    )  # fmt: skip


def _add_lower_head_if_possible(config: FineTuneConfig, model: Model, num_images: int) -> Model:
    """Return a copy of the model with an added `LowerLayersHead`, or `model` itself if it can have none.

    It can have none if the settings, the network or MAX_LOWER_FIT_SIZE do not allow it. The run drops an added head
    later if ridge regression chooses to use only the last layer.
    """
    if config.head == "last" or config.freeze != "head" or not model.pretrained:
        return model
    extended = add_lower_layers_head(model)
    if extended is None:
        reason = f"no lower layers of {model.name} were found whose features it could use"
    elif min(num_images, extended.network.get_parameter(f"{LOWER_HEAD_PATH}.weight").shape[1]) > MAX_LOWER_FIT_SIZE:
        reason = (
            f"fitting it to more than {MAX_LOWER_FIT_SIZE} images and more than {MAX_LOWER_FIT_SIZE} features of lower "
            "layers would take too long"
        )
    else:
        return extended
    logger.log(
        logging.WARNING if config.head == "all-depths" else logging.INFO,
        "the classifier uses only the features of the last layer, as with --head last: %s",
        reason,
    )
    return model


def _make_augmenter(config: FineTuneConfig, model: Model) -> Augmenter | None:
    strength = config.augment
    if strength == "auto":
        strength = "light" if model.pretrained and trains_below_head(model) else "none"
    return Augmenter(strength, config.rotate_deg, config.seed) if strength != "none" or config.rotate_deg else None


def trains_below_head(model: Model) -> bool:
    """Return whether a parameter outside the heads is trained."""
    lower_head = find_lower_layers_head(model.network)
    return any(
        parameter.requires_grad and not model.is_head(name) and parameter is not (lower_head and lower_head.weight)
        for name, parameter in model.network.named_parameters()
    )
