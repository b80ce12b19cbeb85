"""Compute the inputs of a network's head, and set its weights to the closed-form head."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlimages.networks import LOWER_HEAD_PATH, Model, find_lower_layers_head
from mlimages.training import distributed
from mlimages.training.features import EVALUATION_BATCH_SIZE, BatchSource
from mlimages.training.head import Float64Array, RidgeHead, Targets
from mlimages.training.image_set import ImageSet


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """Inputs of the head for a set of images, averaged over positions.

    Attributes:
        features: float32 `(N, D)`.
        lower_features: for each lower layer, its outputs averaged over positions, float32 `(N, L)`; empty if the
            network has no `LowerLayersHead`.
        labels: labels of the images, in the form of `ImageSet.labels`.
        image_indices: index of each row's image in its set.
        min_logit: smallest logit that the network's head computes for these images. If this is negative,
            `initialize_head` raises the bias of a convolution.
    """

    features: NDArray[np.float32]
    lower_features: tuple[NDArray[np.float32], ...]
    labels: Targets
    image_indices: tuple[int, ...]
    min_logit: float

    def compute_probabilities(self, head: RidgeHead) -> Float64Array:
        """Return the probabilities `(N, classes)` that a ridge regression predicts from these inputs."""
        all_features = np.concatenate([self.features, *self.lower_features], axis=1)  # (N, D)
        return head.compute_probabilities(all_features[:, : head.weight.shape[1]])


def initialize_head(model: Model, source: BatchSource, images: ImageSet, head: RidgeHead) -> bool:
    """Copy the weights of a ridge regression to the network's head; return False if the head's type does not allow it.

    Args:
        model: the network, changed in place.
        source: yields batches and computes their logits.
        images: the training set. If the head is a convolution, its bias is raised until no logit of these images is
            negative, since SqueezeNet applies a ReLU to the logits.
        head: the ridge regression.

    Returns:
        True if the weights were copied; False if the network's head is not a linear layer or convolution with a bias.
    """
    layer = model.network.get_submodule(model.head)
    if not (isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None):
        return False
    weight, width = torch.from_numpy(head.weight), layer.weight.shape[1]
    with torch.no_grad():
        layer.weight.copy_(weight[:, :width].reshape_as(layer.weight))
        layer.bias.copy_(torch.from_numpy(head.bias))
        if weight.shape[1] > width:
            model.network.get_parameter(f"{LOWER_HEAD_PATH}.weight").copy_(weight[:, width:])
        if isinstance(layer, nn.Conv2d) and images.labels.ndim == 1:
            # SqueezeNet ends in a ReLU, which must not clip a logit; softmax is invariant to adding a constant to all.
            layer.bias += 2 * max(0.0, -compute_head_inputs(model, source, images).min_logit)
    return True


def compute_head_inputs(model: Model, source: BatchSource, images: ImageSet) -> HeadInputs:
    """Compute the inputs of the network's head for all images that can still be read, without augmentation."""
    parts: dict[str, list[Tensor]] = defaultdict(list)
    indices: list[int] = []

    def record_head_input(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].float()
        parts["features"].append(x.mean(dim=(2, 3)) if x.ndim == 4 else x.flatten(1))  # (n, D)
        parts["lowest"].append(output.flatten(1).amin(dim=1))  # (n,)

    def record_lower_features(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        parts["lower"].append(inputs[0].float())  # (n, L)

    hooks = [model.network.get_submodule(model.head).register_forward_hook(record_head_input)]
    lower_head = find_lower_layers_head(model.network)
    if lower_head:
        hooks.append(lower_head.register_forward_hook(record_lower_features))
    model.network.eval()
    with torch.no_grad():
        for batch in source.batches(images, range(len(images)), batch_size=EVALUATION_BATCH_SIZE):
            source.compute_logits(batch.inputs)
            count = len(batch.image_indices)
            for tensors in parts.values():
                tensors[-1] = tensors[-1][:count]
            indices += batch.image_indices
    for hook in hooks:
        hook.remove()
    found, rows = distributed.gather_rows(indices, {name: torch.cat(tensors) for name, tensors in parts.items()})
    return HeadInputs(
        rows["features"].numpy(),
        tuple(part.numpy() for part in torch.split(rows["lower"], [*lower_head.layer_features], dim=1))
        if lower_head
        else (),
        images.labels[found].numpy(),
        tuple(found.tolist()),
        float(rows["lowest"].min()),
    )
