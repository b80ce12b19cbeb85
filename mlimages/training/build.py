"""What trains, put together: the network, its cut, and what feeds the part above it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from mlimages.core import Progress
from mlimages.networks import FrozenPart, Model, Normalize, autocast, split
from mlimages.reports import RunFiles
from mlimages.training.config import FineTuneConfig
from mlimages.training.features import Feed, FrozenFeatures, PixelFeed
from mlimages.training.global_batch import sync_batch_norm
from mlimages.training.image_cache import PictureSet
from mlimages.training.loop import Validation, validate
from mlimages.training.preparation import Setup
from mlimages.training.views import Augment


@dataclass(frozen=True, slots=True)
class Job:
    """All that trains: the network, its cut, and what feeds it."""

    config: FineTuneConfig
    files: RunFiles
    setup: Setup
    digest: str
    feed: Feed
    train: PictureSet
    val: PictureSet
    views: int

    @property
    def network(self) -> nn.Module:
        """The whole network."""
        return self.setup.model.network

    @property
    def frozen(self) -> FrozenPart:
        """What of it does not learn."""
        return self.setup.frozen

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.network.parameters()).device

    @property
    def below_head(self) -> bool:
        """Whether more than the last layer learns."""
        return _learns_below_head(self.setup.model)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision to train in; on a CPU full beside a frozen part, whose cached outputs are in full precision."""
        exact = self.device.type == "cpu" and self.frozen.parameters
        return nullcontext() if exact else autocast(self.device)

    def validate(self) -> Validation:
        """What the network says now of the validation pictures."""
        return validate(self.network, self.feed, self.val)


def assemble(config: FineTuneConfig, files: RunFiles, setup: Setup, device: torch.device, progress: Progress) -> Job:
    """Freeze, cut, and choose what feeds the trainable part."""
    model, image = setup.model, setup.preprocessing.image
    network = model.network.to(device).to(memory_format=torch.channels_last)
    normalize = Normalize(setup.preprocessing.normalization, setup.mean_image).to(device)
    frozen = setup.frozen
    sync_batch_norm(network, device, batch_size=config.batch_size)
    digest = frozen.digest(network) if frozen.parameters else ""
    strength = config.augment
    if strength == "auto":
        strength = "light" if model.pretrained and _learns_below_head(model) else "none"
    views = Augment(strength, config.rotate_deg, config.seed)
    augment = views if strength != "none" or config.rotate_deg else None
    train = PictureSet(setup.data.train, image, store=setup.pixels, augment=augment)
    val = PictureSet(setup.data.val, image, store=setup.pixels)
    fixed = 1 if augment is None else views.fixed_views if frozen.parameters else 0
    example = torch.zeros(2, max(image.channels, len(normalize.mean[0])), image.height, image.width, device=device)
    feed: Feed = PixelFeed(network, normalize, device)
    if config.cache and (halves := split(network, frozen, example)):
        features = FrozenFeatures(
            model,
            halves,
            normalize=normalize,
            digest=digest,
            preprocessing=setup.preprocessing,
            budget=config.feature_bytes,
            device=device,
        )
        if features.fill((train, fixed), (val, 1), progress=progress):
            feed = features
    return Job(config, files, setup, digest, feed, train, val, fixed)


def _learns_below_head(model: Model) -> bool:
    trained = (name for name, parameter in model.network.named_parameters() if parameter.requires_grad)
    return any(not name.startswith(f"{model.head}.") for name in trained)
