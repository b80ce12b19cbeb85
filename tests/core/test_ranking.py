"""Average precision, its intervals and the thresholds: against scikit-learn, and against resampling by hand."""

import warnings
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from mlimages.core import (
    average_precisions,
    difference_of_means,
    f1_thresholds,
    label_scores,
    mean_average_precision,
    ranking,
)

metrics = pytest.importorskip("sklearn.metrics")


def labelled(count: int, classes: int, *, seed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Probabilities with ties, and labels that they tell something of; the last class has no positive image."""
    rng = np.random.default_rng(seed)
    targets = rng.random((count, classes)) < np.linspace(0.5, 0.1, classes)
    targets[:, -1] = False
    return np.round(np.clip(rng.normal(0.3 + 0.3 * targets, 0.2), 0, 1), 2), targets


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_is_that_of_scikit_learn_and_its_interval_that_of_resampled_images(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "RESAMPLES", 60)
    count, classes = 4 + 3 * seed, 4
    probabilities, targets = labelled(count, classes, seed=seed)
    found = average_precisions(probabilities, targets)
    named = [n for n in range(classes) if targets[:, n].any()]
    expected = [metrics.average_precision_score(targets[:, n], probabilities[:, n]) for n in named]
    assert [found.per_class[n].value for n in named] == pytest.approx(expected)
    assert found.mean.value == pytest.approx(np.mean(expected) if named else 0.0)
    assert mean_average_precision(probabilities, targets) == pytest.approx(found.mean.value)
    assert (found.per_class[-1].value, found.per_class[-1].low, found.per_class[-1].high) == (0, 0, 1)
    if seed % 7 == 3:
        rows = np.random.default_rng(0).integers(0, count, (60, count))
        resampled = np.full((60, classes), np.nan)
        for (number, chosen), n in product(enumerate(rows), named):
            if targets[chosen, n].any():
                resampled[number, n] = metrics.average_precision_score(targets[chosen, n], probabilities[chosen, n])
        for n in named:
            low, high = np.nanquantile(resampled[:, n], (0.025, 0.975))
            assert (found.per_class[n].low, found.per_class[n].high) == pytest.approx((low, high))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a resample without any positive image
            means = np.nan_to_num(np.nanmean(resampled, axis=1))
        assert (found.mean.low, found.mean.high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))))


@pytest.mark.parametrize("seed", range(10))
def test_no_threshold_has_a_better_f1_and_each_lies_between_two_probabilities(seed: int) -> None:
    probabilities, targets = labelled(15, 3, seed=seed)
    thresholds = f1_thresholds(probabilities, targets)
    assert thresholds[-1] == 0.5  # no positive image
    scores = label_scores(targets, probabilities >= thresholds, ["a", "b", "c"])
    for column, true, threshold, score in zip(probabilities.T[:2], targets.T[:2], thresholds, scores, strict=False):
        if not true.any():
            continue
        best = max(metrics.f1_score(true, column >= each, zero_division=0) for each in [0, *column])
        assert metrics.f1_score(true, column >= threshold) == pytest.approx(best) == pytest.approx(score.f1.value)
        assert threshold not in column
        below, above = (column[column < threshold], column[column > threshold])
        assert threshold == pytest.approx((max(below, default=0.0) + min(above)) / 2)
        assert score.precision.value == pytest.approx(metrics.precision_score(true, column >= threshold))
        assert score.recall.value == pytest.approx(metrics.recall_score(true, column >= threshold))


def test_the_difference_of_two_models_is_paired() -> None:
    good, targets = labelled(80, 3, seed=1)
    noise = np.random.default_rng(5).normal(0, 0.4, good.shape)
    worse, p_value = difference_of_means(good + noise, good, targets)
    assert worse.value == pytest.approx(
        mean_average_precision(good + noise, targets) - mean_average_precision(good, targets)
    )
    assert (worse.low < worse.value < worse.high < 0, p_value < 0.05) == (True, True)
    better, same = difference_of_means(good, good + noise, targets)
    assert (better.value, better.low, better.high) == pytest.approx((-worse.value, -worse.high, -worse.low))
    assert same == p_value
    assert difference_of_means(good, good, targets)[1] == 1.0
