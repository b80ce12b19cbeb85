"""A score of the similarity to the training images, which an exported file computes in addition to the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlimages.inference import InDistributionCalibration, PredictionSetThresholds


class KnownScore(nn.Module):
    """In-distribution score of feature vectors, 0..1: low for images unlike those of the training classes.

    The score is 1 / (1 + d / t), where d is the squared Mahalanobis distance to the nearest class mean and t is a
    threshold. Features are scaled to length 1. Their inverse covariance is modelled as `inverse_variance` times the
    identity, plus a correction along each principal direction. Means and directions are stored in half precision.

    Args:
        num_classes: number of classes.
        num_features: number of features.
        num_directions: number of principal directions of the covariance.

    Attributes:
        means: mean of each class's scaled feature vectors, `(classes, features)`.
        directions: principal directions, `(directions, features)`.
        inverse_variance: inverse of the variance along every direction orthogonal to `directions`.
        corrections: inverse variance along each principal direction minus `inverse_variance`, `(directions,)`.
        threshold: squared distance at which the score is 0.5.

    Examples:
        >>> import torch
        >>> from mlimages.export import KnownScore
        >>> KnownScore(num_classes=2, num_features=8, num_directions=3)(torch.ones(4, 8)).shape
        torch.Size([4])
    """

    means: Tensor
    directions: Tensor
    inverse_variance: Tensor
    corrections: Tensor
    threshold: Tensor

    def __init__(self, num_classes: int, num_features: int, num_directions: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(num_classes, num_features, dtype=torch.float16))
        self.register_buffer("directions", torch.zeros(num_directions, num_features, dtype=torch.float16))
        self.register_buffer("inverse_variance", torch.tensor(1.0))
        self.register_buffer("corrections", torch.zeros(num_directions))
        self.register_buffer("threshold", torch.tensor(1.0))

    def compute_squared_distances(self, features: Tensor) -> Tensor:
        """Return the squared Mahalanobis distance `(N,)` of each feature vector `(N, D)` to the nearest class mean.

        The feature vectors are scaled to length 1 first.
        """
        unit, means, directions = functional.normalize(features, dim=1), self.means.float(), self.directions.float()
        squares = unit.square().sum(1, keepdim=True) - 2 * unit @ means.T + means.square().sum(1)  # (N, classes)
        along = (unit @ directions.T).unsqueeze(1) - (means @ directions.T).unsqueeze(0)  # (N, classes, directions)
        distances = self.inverse_variance * squares + (along.square() * self.corrections).sum(2)  # (N, classes)
        return distances.amin(1).clamp_min(0)

    def forward(self, features: Tensor) -> Tensor:
        """Return the in-distribution score `(N,)`, 0..1, of features `(N, D)`."""
        return 1 / (1 + self.compute_squared_distances(features) / self.threshold)


@dataclass(frozen=True, slots=True)
class KnownOutput:
    """The output `known` of an exported file, and the thresholds of prediction sets, which do not depend on it.

    The output `known` is an in-distribution score, 0..1: an image counts as in-distribution if it is at least 0.5.

    Attributes:
        score: computes `known` from the input of the network's head. If this input is a feature map `(N, D, H, W)`, it
            is first averaged over H and W.
        head_name: name of the head in `network.named_modules()`.
        calibration: how `score` was calibrated.
        prediction_sets: thresholds of prediction sets, which are stored in the metadata of the file.
    """

    score: KnownScore
    head_name: str
    calibration: InDistributionCalibration
    prediction_sets: PredictionSetThresholds
