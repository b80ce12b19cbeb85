"""Which images a network knows, and which classes are plausible: thresholds and the score in the exported graph."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from mlimages.export import KnownOutput
from mlimages.inference import (
    MIN_CONFORMAL_IMAGES,
    InDistributionCalibration,
    PredictionSetThresholds,
    compute_conformal_thresholds,
)
from mlimages.reports import RunFiles
from mlimages.training import known_output
from mlimages.training.known_output import (
    fit_known_score,
    load_known_output,
    save_known_output,
)

pytestmark = pytest.mark.train


def clusters(count: int, *, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(3, 40)) + 2
    labels = np.arange(count) % 3
    return (centres[labels] + 0.5 * rng.normal(size=(count, 40)) + shift * np.eye(40)[0]).astype(np.float32), labels


def test_the_distance_is_mahalanobis_of_the_shrunk_covariance(tmp_path: Path) -> None:
    features, labels = clusters(300, seed=1)
    validation = clusters(200, seed=2)[0]
    score = fit_known_score(features, labels, 3, validation_features=validation)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = np.stack([unit[labels == label].mean(axis=0) for label in range(3)])
    values, vectors = np.linalg.eigh(np.cov((unit - means[labels]).T, bias=True))
    values[:-16] = values[:-16].mean()
    inverse = vectors @ np.diag(1 / values) @ vectors.T
    tested = validation / np.linalg.norm(validation, axis=1, keepdims=True)
    expected = np.min([np.einsum("nd,de,ne->n", tested - m, inverse, tested - m) for m in means], axis=0)
    assert score.compute_squared_distances(torch.from_numpy(validation)).numpy() == pytest.approx(
        expected, rel=0.03
    )  # half precision
    known = score(torch.from_numpy(validation)) >= 0.5
    assert known.sum() == 191  # the smallest number that is at least 95 % of 201: one new image counts with them
    assert (score(torch.from_numpy(clusters(200, seed=3, shift=9.0)[0])) >= 0.5).float().mean() < 0.05
    output = KnownOutput(
        score, "fc", InDistributionCalibration(0.95, 200), PredictionSetThresholds("validation", 200, {"0.9": 0.2})
    )
    save_known_output(output, RunFiles(tmp_path))
    loaded = load_known_output(RunFiles(tmp_path))
    assert loaded is not None
    assert (loaded.head_name, loaded.calibration, loaded.prediction_sets) == (
        output.head_name,
        output.calibration,
        output.prediction_sets,
    )
    assert torch.equal(loaded.score(torch.from_numpy(validation)), score(torch.from_numpy(validation)))
    assert RunFiles(tmp_path).known.stat().st_size < 2 * (3 + 16) * 40 + 1000


@pytest.mark.parametrize("width", [1, 2, 3])
def test_few_features_have_one_direction_less_than_features(width: int) -> None:
    features = np.random.default_rng(1).normal(2, 1, (40, width)).astype(np.float32)
    score = fit_known_score(features, np.arange(40) % 2, 2, validation_features=features)
    assert len(score.directions) == width - 1
    assert (score(torch.from_numpy(features)) >= 0.5).float().mean() >= 0.95


@pytest.mark.parametrize(
    ("count", "width", "kept"),
    [
        (200, 40, 16),
        (200, 18, 16),
        (200, 17, 16),
        (200, 16, 15),
        (40, 60, 16),
        (41, 40, 16),
        (40, 40, 16),
        (39, 40, 16),
    ],
)
def test_the_covariance_is_that_of_probabilistic_pca(count: int, width: int, kept: int) -> None:
    """Tipping and Bishop 1999: the mean variance in all directions but some."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    features = np.random.default_rng(1).normal(2, np.linspace(0.1, 1.5, width), (count, width)).astype(np.float32)
    features /= 100  # shorter than 1
    labels = np.arange(count) % 2
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    residuals = unit - np.stack([unit[labels == label].mean(axis=0) for label in (0, 1)])[labels]
    score = fit_known_score(features, labels, 2, validation_features=features[:30])
    assert (kept, len(score.directions)) == (min(known_output.NUM_PRINCIPAL_DIRECTIONS, count - 1, width - 1), kept)
    directions, corrections = score.directions.double().numpy(), score.corrections.double().numpy()
    inverse = float(score.inverse_variance) * np.eye(width) + directions.T @ np.diag(corrections) @ directions
    pca = decomposition.PCA(kept).fit(residuals)
    variances = pca.explained_variance_ * (count - 1) / count  # of a population, as NumPy's
    rest = (np.square(residuals).sum() / count - variances.sum()) / (width - kept)
    vars(pca).update(explained_variance_=variances, noise_variance_=rest)
    expected = pca.get_precision()
    assert inverse == pytest.approx(expected, rel=5e-3, abs=5e-3 * float(np.abs(expected).max()))


def test_images_all_alike_and_features_of_length_0_have_a_finite_score() -> None:
    features = np.zeros((20, 5), np.float32)
    features[:10] = [1, 2, 3, 4, 5]
    score = fit_known_score(features, np.arange(20) // 10, 2, validation_features=features)
    assert float(score.inverse_variance) == pytest.approx(1e9)
    assert float(score.threshold) == pytest.approx(1e-9)
    assert torch.isfinite(score(torch.from_numpy(features))).all()
    assert score(torch.tensor([[-1.0, 0.0, 0.0, 0.0, 0.0]])) < 0.01
    assert score.means[0].numpy() == pytest.approx(features[0] / np.linalg.norm(features[0]), abs=1e-3)


def test_the_fewest_validation_images_are_those_with_which_a_threshold_keeps_the_share_of_new_images() -> None:
    enough = [count for count in range(1, 40) if Fraction(str(known_output.KNOWN_SHARE)) * (count + 1) <= count]
    assert enough == list(range(MIN_CONFORMAL_IMAGES, 40))


def test_prediction_sets_hold_the_true_class_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    coverage = {level: [] for level in ("0.8", "0.9", "0.95")}  # type: dict[str, list[float]]
    for _ in range(200):
        probabilities = rng.dirichlet([0.5, 0.5, 0.5, 0.5], size=600)
        labels = (probabilities.cumsum(axis=1) > rng.random((600, 1))).argmax(axis=1)
        thresholds = compute_conformal_thresholds(probabilities[:300], labels[:300])
        own = probabilities[300:][np.arange(300), labels[300:]]
        for level, threshold in thresholds.items():
            coverage[level].append(float((own >= threshold).mean()))
    assert [round(float(np.mean(values)), 2) for values in coverage.values()] == [0.8, 0.9, 0.95]


@pytest.mark.parametrize("count", [4, 8, 9, 18, 19, 57, 300])
def test_a_threshold_is_the_highest_that_holds_so_many_true_classes(count: int) -> None:
    rng = np.random.default_rng(count)
    probabilities, labels = rng.dirichlet([2.0, 1.0, 0.5], size=count).round(6), rng.integers(0, 3, count)
    own = [row[label] for row, label in zip(probabilities, labels, strict=True)]
    for level, threshold in compute_conformal_thresholds(probabilities, labels).items():
        enough = [at for at in own if sum(each >= at for each in own) >= Fraction(level) * (count + 1)]
        assert threshold == max(enough, default=0.0)


def test_new_images_of_the_same_kind_are_known_as_often_as_it_says_even_with_few_validation_images() -> None:
    features, labels = clusters(300, seed=1)
    new = torch.from_numpy(clusters(300, seed=2)[0])
    for count in (MIN_CONFORMAL_IMAGES, 60):
        scores = [
            fit_known_score(features, labels, 3, validation_features=clusters(count, seed=seed)[0])
            for seed in range(10, 40)
        ]
        assert np.mean([(score(new) >= 0.5).float().mean() for score in scores]) >= 0.94
