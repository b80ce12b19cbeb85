"""A training job: the network, its frozen part and the source of its batches."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from mlimages.core import Progress
from mlimages.networks import FrozenPart, Model, Normalize, autocast, split_network
from mlimages.reports import RunFiles
from mlimages.training.augmentation import Augment
from mlimages.training.config import FineTuneConfig
from mlimages.training.features import BatchSource, FrozenFeatures, PixelSource
from mlimages.training.global_batch import sync_batch_norm
from mlimages.training.image_cache import ImageSet
from mlimages.training.loop import Validation, validate
from mlimages.training.preparation import RunData


@dataclass(frozen=True, slots=True)
class Job:
    """A network to train with its data.

    Attributes:
        config: settings of the run.
        files: the run folder's files.
        data: network, preprocessing, class names and images.
        digest: SHA-256 of the frozen weights; empty where nothing is frozen.
        source: gives the batches and computes their logits.
        train: training set.
        val: validation set.
        views: number of fixed augmented views per image; 0 draws new ones in each epoch.
    """

    config: FineTuneConfig
    files: RunFiles
    data: RunData
    digest: str
    source: BatchSource
    train: ImageSet
    val: ImageSet
    views: int

    @property
    def network(self) -> nn.Module:
        """The whole network."""
        return self.data.model.network

    @property
    def frozen(self) -> FrozenPart:
        """The frozen parameters and buffers."""
        return self.data.frozen

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.network.parameters()).device

    @property
    def below_head(self) -> bool:
        """Whether layers below the head are trained."""
        return _trains_below_head(self.data.model)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision to train in; on a CPU full beside a frozen part, whose cached outputs are in full precision."""
        exact = self.device.type == "cpu" and self.frozen.parameters
        return nullcontext() if exact else autocast(self.device)

    def validate(self) -> Validation:
        """Predict the validation set."""
        return validate(self.network, self.source, self.val)


def build_job(config: FineTuneConfig, files: RunFiles, data: RunData, device: torch.device, progress: Progress) -> Job:
    """Move the network to the device and cache its frozen features, where they fit into the cache."""
    model, image = data.model, data.preprocessing.image
    network = model.network.to(device).to(memory_format=torch.channels_last)
    normalize = Normalize(data.preprocessing.normalization, data.mean_image).to(device)
    frozen = data.frozen
    sync_batch_norm(network, device, batch_size=config.batch_size)
    digest = frozen.digest(network) if frozen.parameters else ""
    strength = config.augment
    if strength == "auto":
        strength = "light" if model.pretrained and _trains_below_head(model) else "none"
    views = Augment(strength, config.rotate_deg, config.seed)
    augment = views if strength != "none" or config.rotate_deg else None
    train = ImageSet(data.images.train, image, store=data.pixels, augment=augment)
    val = ImageSet(data.images.val, image, store=data.pixels)
    fixed = 1 if augment is None else views.fixed_views if frozen.parameters else 0
    example = torch.zeros(2, max(image.channels, len(normalize.mean[0])), image.height, image.width, device=device)
    source: BatchSource = PixelSource(network, normalize, device)
    if config.cache and (halves := split_network(network, frozen, example)):
        features = FrozenFeatures(
            model,
            halves,
            normalize=normalize,
            digest=digest,
            preprocessing=data.preprocessing,
            budget=config.feature_bytes,
            device=device,
        )
        if features.fill((train, fixed), (val, 1), progress=progress):
            source = features
    return Job(config, files, data, digest, source, train, val, fixed)


def _trains_below_head(model: Model) -> bool:
    trained = (name for name, parameter in model.network.named_parameters() if parameter.requires_grad)
    return any(not name.startswith(f"{model.head}.") for name in trained)
