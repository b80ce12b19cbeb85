"""Which images a network knows, and which classes are plausible: thresholds and the score in the exported graph."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from mlimages.export import KnownOutput
from mlimages.inference import Known, PredictionSets, conformal_thresholds
from mlimages.reports import RunFiles
from mlimages.training.known import MIN_VALIDATION_IMAGES, fit_known, load_known, save_known

pytestmark = pytest.mark.train


def clusters(count: int, *, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(3, 40)) + 2
    labels = np.arange(count) % 3
    return (centres[labels] + 0.5 * rng.normal(size=(count, 40)) + shift * np.eye(40)[0]).astype(np.float32), labels


def test_the_distance_is_mahalanobis_of_the_shrunk_covariance(tmp_path: Path) -> None:
    features, labels = clusters(300, seed=1)
    validation = clusters(200, seed=2)[0]
    score = fit_known(features, labels, 3, validation=validation)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = np.stack([unit[labels == label].mean(axis=0) for label in range(3)])
    values, vectors = np.linalg.eigh(np.cov((unit - means[labels]).T, bias=True))
    values[:-16] = values[:-16].mean()
    inverse = vectors @ np.diag(1 / values) @ vectors.T
    tested = validation / np.linalg.norm(validation, axis=1, keepdims=True)
    expected = np.min([np.einsum("nd,de,ne->n", tested - m, inverse, tested - m) for m in means], axis=0)
    assert score.distances(torch.from_numpy(validation)).numpy() == pytest.approx(expected, rel=0.03)  # half precision
    known = score(torch.from_numpy(validation)) >= 0.5
    assert known.sum() == 191  # the smallest number that is at least 95 % of 201: one new image counts with them
    assert (score(torch.from_numpy(clusters(200, seed=3, shift=9.0)[0])) >= 0.5).float().mean() < 0.05
    output = KnownOutput(score, "fc", Known(0.95, 200), PredictionSets("validation", 200, {"0.9": 0.2}))
    save_known(output, RunFiles(tmp_path))
    loaded = load_known(RunFiles(tmp_path))
    assert loaded is not None
    assert (loaded.head, loaded.known, loaded.prediction_sets) == (output.head, output.known, output.prediction_sets)
    assert torch.equal(loaded.score(torch.from_numpy(validation)), score(torch.from_numpy(validation)))
    assert RunFiles(tmp_path).known.stat().st_size < 2 * (3 + 16) * 40 + 1000


def test_prediction_sets_hold_the_true_class_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    coverage = {level: [] for level in ("0.8", "0.9", "0.95")}  # type: dict[str, list[float]]
    for _ in range(200):
        probabilities = rng.dirichlet([0.5, 0.5, 0.5, 0.5], size=600)
        labels = (probabilities.cumsum(axis=1) > rng.random((600, 1))).argmax(axis=1)
        thresholds = conformal_thresholds(probabilities[:300], labels[:300])
        own = probabilities[300:][np.arange(300), labels[300:]]
        for level, threshold in thresholds.items():
            coverage[level].append(float((own >= threshold).mean()))
    assert [round(float(np.mean(values)), 2) for values in coverage.values()] == [0.8, 0.9, 0.95]


@pytest.mark.parametrize("count", [4, 8, 9, 18, 19, 57, 300])
def test_a_threshold_is_the_highest_that_holds_so_many_true_classes(count: int) -> None:
    rng = np.random.default_rng(count)
    probabilities, labels = rng.dirichlet([2.0, 1.0, 0.5], size=count).round(6), rng.integers(0, 3, count)
    own = [row[label] for row, label in zip(probabilities, labels, strict=True)]
    for level, threshold in conformal_thresholds(probabilities, labels).items():
        enough = [at for at in own if sum(each >= at for each in own) >= Fraction(level) * (count + 1)]
        assert threshold == max(enough, default=0.0)


def test_new_images_of_the_same_kind_are_known_as_often_as_it_says_even_with_few_validation_images() -> None:
    features, labels = clusters(300, seed=1)
    new = torch.from_numpy(clusters(300, seed=2)[0])
    for count in (MIN_VALIDATION_IMAGES, 60):
        scores = [fit_known(features, labels, 3, validation=clusters(count, seed=seed)[0]) for seed in range(10, 40)]
        assert np.mean([(score(new) >= 0.5).float().mean() for score in scores]) >= 0.94


def test_few_images_give_sets_of_all_classes() -> None:
    assert conformal_thresholds(np.full((3, 2), 0.5), np.zeros(3, np.int64))["0.95"] == 0
