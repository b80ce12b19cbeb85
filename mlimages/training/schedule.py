"""The numbers of training: where the head starts, which parameters move how fast, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlimages.networks import Model
from mlimages.training import distributed
from mlimages.training.config import FineTuneConfig
from mlimages.training.features import Feed
from mlimages.training.image_cache import PictureSet
from mlimages.training.ridge import RidgeHead

EVALUATION_BATCH = 64

SCRATCH_LR = {"adamw": 1e-3, "sgd": 1e-2}
HEAD_LR = {"adamw": 1e-4, "sgd": 1e-3}
TUNING_LR = {"adamw": 7e-5, "sgd": 5e-3}

WARM_UP = 0.1
"""Share of the steps in which the rate rises."""


@dataclass(frozen=True, slots=True)
class Reached:
    """What reaches the last layer of a network, averaged over positions.

    Attributes:
        features: `(N, D)`.
        labels: int64 `(N,)`.
        places: where in their set the pictures stand.
        lowest: the least that leaves the last layer.
    """

    features: Tensor
    labels: Tensor
    places: tuple[int, ...]
    lowest: float


def start_head(model: Model, feed: Feed, pictures: PictureSet, head: RidgeHead) -> bool:
    """Give the last layer the ridge solution on what reaches it; False where it has no bias to hold that."""
    layer = model.network.get_submodule(model.head)
    if not (isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None):
        return False
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(head.weight).view_as(layer.weight))
        layer.bias.copy_(torch.from_numpy(head.bias))
        if isinstance(layer, nn.Conv2d):
            # SqueezeNet ends in a ReLU, which must clip nothing; softmax does not see what all classes get alike.
            layer.bias += 2 * max(0.0, -reach_head(model, feed, pictures).lowest)
    return True


def reach_head(model: Model, feed: Feed, pictures: PictureSet) -> Reached:
    """Send the pictures as they are up to the last layer."""
    reached: list[Tensor] = []
    left: list[Tensor] = []
    labels: list[Tensor] = []
    places: list[int] = []

    def catch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].float()
        reached.append(x.mean(dim=(2, 3)) if x.ndim == 4 else x.flatten(1))  # (n, D)
        left.append(output.flatten(1).amin(dim=1))

    hook = model.network.get_submodule(model.head).register_forward_hook(catch)
    model.network.eval()
    with torch.no_grad():
        for fed in feed.batches(pictures, range(len(pictures)), size=EVALUATION_BATCH):
            own = len(fed.places)
            feed.logits(fed.inputs)
            reached[-1], left[-1] = reached[-1][:own], left[-1][:own]
            labels.append(fed.labels)
            places += fed.places
    hook.remove()
    own_rows = {"features": torch.cat(reached), "labels": torch.cat(labels), "lowest": torch.cat(left)}
    rows = distributed.joined_rows(
        {"places": torch.tensor(places), **{name: each.cpu() for name, each in own_rows.items()}}
    )
    return Reached(rows["features"], rows["labels"], tuple(rows["places"].tolist()), float(rows["lowest"].min()))


def make_optimizer(network: nn.Module, config: FineTuneConfig, *, lr: float) -> torch.optim.Optimizer:
    """The optimiser over what is not frozen."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(trained, lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(trained, lr, weight_decay=config.weight_decay)


def highest_lr(config: FineTuneConfig, *, pretrained: bool, below_head: bool) -> float:
    """The learning rate asked for, or one that suits what is trained; `below_head`: more than the last layer."""
    return config.lr or (SCRATCH_LR if not pretrained else TUNING_LR if below_head else HEAD_LR)[config.optimizer]


def share_of_lr(step: int, steps: int, *, warm_up: float) -> float:
    """What of the highest rate is used at a step: a linear rise, then half a cosine down to a hundredth."""
    rise = warm_up * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    done = (step - rise) / max(1.0, steps - rise)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def class_weights(config: FineTuneConfig, labels: Tensor, classes: int) -> Tensor | None:
    """Weights `(classes,)` by which the loss counts each class, with mean 1 over the pictures."""
    if config.class_weights == "none":
        return None
    counts = torch.bincount(labels, minlength=classes).float()
    return len(labels) / (classes * counts)
