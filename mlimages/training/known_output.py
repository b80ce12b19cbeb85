"""Fit, save and load the statistics of the output `known`, which detects out-of-distribution images."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mlimages.core import RunError, atomic_write, summarize_error
from mlimages.export import KnownOutput, KnownScore
from mlimages.inference import InDistributionCalibration, PredictionSetThresholds
from mlimages.reports import RunFiles, require_readable

KNOWN_SHARE = 0.95
"""Share of new images, drawn from the distribution of the validation images, that count as known: their output `known`
is at least 0.5. The threshold on their distance is chosen to obtain this share."""

NUM_PRINCIPAL_DIRECTIONS = 16
"""Maximum number of principal directions of the covariance. All other directions share the mean of their variances."""


def fit_known_score(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    num_classes: int,
    *,
    validation_features: NDArray[np.float32],
) -> KnownScore:
    """Fit the output `known`: a score from the Mahalanobis distance to the nearest class mean (see KnownScore).

    The distance at which the score is 0.5 is computed on the validation images. Features are scaled to length 1. The
    within-class covariance is kept along at most NUM_PRINCIPAL_DIRECTIONS directions of largest variance, and replaced
    by the mean variance along all other directions. Based on K. Lee et al., A Simple Unified Framework for Detecting
    Out-of-Distribution Samples and Adversarial Attacks, NeurIPS 2018.

    Args:
        features: inputs of the head for the training images, float32 `(N, D)`.
        labels: class indices of the training images, int64 `(N,)`.
        num_classes: number of classes.
        validation_features: inputs of the head for the validation images, float32 `(M, D)`; M is at least
            MIN_CONFORMAL_IMAGES.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    means = np.stack([unit[labels == label].mean(axis=0) for label in range(num_classes)])  # (classes, D)
    residuals = unit - means[labels]
    count = min(NUM_PRINCIPAL_DIRECTIONS, *np.subtract(residuals.shape, 1))
    variances, vectors = _compute_principal_directions(residuals, count)
    rest = max(1e-9, (np.square(residuals).sum() / len(residuals) - variances.sum()) / (residuals.shape[1] - count))
    score = KnownScore(num_classes, features.shape[1], count)
    values = {
        "means": means,
        "directions": vectors.T,
        "inverse_variance": 1 / rest,
        "corrections": 1 / np.maximum(variances, rest) - 1 / rest,
        "threshold": 1.0,
    }
    score.load_state_dict({name: torch.as_tensor(value) for name, value in values.items()})
    with torch.inference_mode():
        distances = score.compute_squared_distances(torch.from_numpy(validation_features))
    rank = math.ceil(KNOWN_SHARE * (len(distances) + 1))  # the conformal quantile, as in `compute_conformal_thresholds`
    score.threshold.fill_(max(1e-9, float(np.sort(distances.numpy())[rank - 1])))
    return score


def _compute_principal_directions(
    residuals: NDArray[np.float32], count: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return the `count` largest variances `(K,)` of `residuals` `(N, D)`, and their directions `(D, K)`."""
    is_wide = len(residuals) <= residuals.shape[1]
    gram = residuals @ residuals.T if is_wide else residuals.T @ residuals
    values, vectors = np.linalg.eigh(gram / len(residuals))
    first = len(values) - count  # -count would take all if it is 0
    values, vectors = np.maximum(values[first:], 1e-12), vectors[:, first:]
    directions = residuals.T @ vectors if is_wide else vectors
    return values, directions / np.maximum(np.linalg.norm(directions, axis=0), 1e-12)


def save_known_output(known_output: KnownOutput, files: RunFiles) -> None:
    """Write the in-distribution score (the output `known`) and prediction set thresholds to `known.safetensors`."""
    values = {
        "head": known_output.head_name,
        "known": asdict(known_output.calibration),
        "prediction_sets": asdict(known_output.prediction_sets),
    }
    with atomic_write(files.known) as part:
        save_file(known_output.score.state_dict(), part, metadata={"mlimages": json.dumps(values)})


def load_known_output(files: RunFiles) -> KnownOutput | None:
    """Read the output `known`, an in-distribution score, from `known.safetensors`; None if there is no such file.

    Runs do not have it if they are multi-label or not finished, or have fewer than MIN_CONFORMAL_IMAGES validation
    images.

    Raises:
        RunError: the file cannot be read, or is damaged.
    """
    require_readable(files.known)
    if not files.known.exists():
        return None
    try:
        with safe_open(files.known, framework="pt") as file:
            values = json.loads(file.metadata()["mlimages"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # safe_open is no mapping
        classes, width = tensors["means"].shape
        score = KnownScore(classes, width, len(tensors["directions"]))
        score.load_state_dict(tensors)
        return KnownOutput(
            score,
            values["head"],
            InDistributionCalibration(**values["known"]),
            PredictionSetThresholds(**values["prediction_sets"]),
        )
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:  # RuntimeError: load_state_dict
        raise RunError(
            f"{files.known} cannot be read ({summarize_error(error)}): restore it, or train again"
        ) from error
