"""The hyperparameters of training: how the head starts, learning rates and their schedule, optimizer, class weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlimages.networks import Model
from mlimages.training import distributed
from mlimages.training.config import FineTuneConfig
from mlimages.training.features import BatchSource
from mlimages.training.image_cache import ImageSet
from mlimages.training.ridge import RidgeHead

EVALUATION_BATCH = 64

SCRATCH_LR = {"adamw": 1e-3, "sgd": 1e-2}
HEAD_LR = {"adamw": 1e-4, "sgd": 1e-3}
TUNING_LR = {"adamw": 7e-5, "sgd": 5e-3}

WARMUP = 0.1
"""Share of the steps in which the learning rate rises."""


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """The inputs of a network's head, averaged over positions.

    Attributes:
        features: float32 `(N, D)`.
        labels: int64 `(N,)`.
        indices: position of each row's image in its dataset.
        lowest_output: smallest logit of the head as it was.
    """

    features: Tensor
    labels: Tensor
    indices: tuple[int, ...]
    lowest_output: float


def initialize_head(model: Model, source: BatchSource, images: ImageSet, head: RidgeHead) -> bool:
    """Give the network's head the weights of the closed-form head; False where it has no bias to hold its intercept."""
    layer = model.network.get_submodule(model.head)
    if not (isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None):
        return False
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(head.weight).view_as(layer.weight))
        layer.bias.copy_(torch.from_numpy(head.bias))
        if isinstance(layer, nn.Conv2d):
            # SqueezeNet ends in a ReLU, which must not clip a logit; softmax ignores what is added to all of them.
            layer.bias += 2 * max(0.0, -compute_head_inputs(model, source, images).lowest_output)
    return True


def compute_head_inputs(model: Model, source: BatchSource, images: ImageSet) -> HeadInputs:
    """Run the images, without augmentation, through the network up to its head."""
    features: list[Tensor] = []
    lowest: list[Tensor] = []
    indices: list[int] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].float()
        features.append(x.mean(dim=(2, 3)) if x.ndim == 4 else x.flatten(1))  # (n, D)
        lowest.append(output.flatten(1).amin(dim=1))  # (n,)

    hook = model.network.get_submodule(model.head).register_forward_hook(record)
    model.network.eval()
    with torch.no_grad():
        for batch in source.batches(images, range(len(images)), size=EVALUATION_BATCH):
            source.logits(batch.inputs)
            count = len(batch.indices)
            features[-1], lowest[-1] = features[-1][:count], lowest[-1][:count]
            indices += batch.indices
    hook.remove()
    found, rows = distributed.gather_rows(indices, {"features": torch.cat(features), "lowest": torch.cat(lowest)})
    return HeadInputs(rows["features"], images.labels[found], tuple(found.tolist()), float(rows["lowest"].min()))


def make_optimizer(network: nn.Module, config: FineTuneConfig, *, lr: float) -> torch.optim.Optimizer:
    """The optimizer of the parameters that are not frozen."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(trained, lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(trained, lr, weight_decay=config.weight_decay)


def peak_lr(config: FineTuneConfig, *, pretrained: bool, below_head: bool) -> float:
    """The configured learning rate, or a default for what trains.

    Args:
        below_head: whether layers below the head train too.
    """
    return config.lr or (SCRATCH_LR if not pretrained else TUNING_LR if below_head else HEAD_LR)[config.optimizer]


def lr_factor(step: int, steps: int, *, warmup: float) -> float:
    """Share of the peak learning rate at a step: linear warmup, then cosine decay to a hundredth.

    Args:
        step: counted from 0.
        steps: of the whole run.
        warmup: share of the steps in which it rises, 0..1.

    >>> [round(lr_factor(step, 10, warmup=0.2), 2) for step in range(0, 11, 2)]
    [0.33, 1.0, 0.86, 0.51, 0.15, 0.01]
    """
    warmup_steps = warmup * steps
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1.0, steps - warmup_steps)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def class_weights(config: FineTuneConfig, labels: Tensor, classes: int) -> Tensor | None:
    """Weight of each class in the loss, float32 `(classes,)`, with mean 1 over the images; None: all equal."""
    if config.class_weights == "none":
        return None
    counts = torch.bincount(labels, minlength=classes).float()  # (classes,)
    return len(labels) / (classes * counts)
