"""Average precision, its intervals and the thresholds: against scikit-learn, simulation and resampling by hand."""

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from mlimages.core import (
    average_precisions,
    combine_class_scores,
    find_f1_thresholds,
    mean_ap_difference,
    mean_average_precision,
    multi_label_scores,
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
def test_average_precision_is_that_of_scikit_learn_and_undefined_without_a_positive_image(seed: int) -> None:
    count, classes = 4 + 3 * seed, 4
    probabilities, targets = labelled(count, classes, seed=seed)
    found = average_precisions(probabilities, targets)
    named = [n for n in range(classes) if targets[:, n].any()]
    expected = {n: metrics.average_precision_score(targets[:, n], probabilities[:, n]) for n in named}
    values = {n: each.value for n, each in enumerate(found.per_class) if each}
    assert values == pytest.approx(expected)
    assert found.mean.value == pytest.approx(np.mean([*expected.values()]) if named else 0.0)
    assert mean_average_precision(probabilities, targets) == pytest.approx(found.mean.value)
    scores = multi_label_scores(targets, probabilities >= 0.5, ["a", "b", "c", "d"])
    for n, row in enumerate(combine_class_scores(scores, found, (0.5,) * classes)):
        shares = (row.average_precision, row.precision, row.recall, row.f1)
        assert [each is None for each in shares] == [n not in named] * 4


@pytest.mark.parametrize(("count", "separation"), [(10, 1.0), (10, 4.0), (30, 1.0), (30, 4.0), (100, 2.5)])
def test_intervals_cover_the_average_precision_of_many_images(count: int, separation: float) -> None:
    rng = np.random.default_rng(0)

    def draw(images: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        targets = rng.random((images, 3)) < 0.3
        targets[0] = True
        return rng.normal(size=targets.shape) + separation * targets, targets

    many = average_precisions(*draw(30_000))
    expected = [each.value for each in (many.mean, *many.per_class) if each]
    trials = [average_precisions(*draw(count)) for _ in range(60)]
    found = [[each for each in (one.mean, *one.per_class) if each] for one in trials]
    covered = [[s.low <= value <= s.high for s, value in zip(row, expected, strict=True)] for row in found]
    assert np.mean(covered) > 0.93  # of the percentile bootstrap, 0.1 to 0.9
    assert all(one.low < one.high for row in found for one in row)


@pytest.mark.parametrize("seed", range(10))
def test_no_threshold_has_a_better_f1_and_each_lies_between_two_probabilities(seed: int) -> None:
    probabilities, targets = labelled(15, 3, seed=seed)
    thresholds = find_f1_thresholds(probabilities, targets)
    assert thresholds[-1] == 0.5  # no positive image
    scores = multi_label_scores(targets, probabilities >= thresholds, ["a", "b", "c"])
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
    worse, p_value = mean_ap_difference(good + noise, good, targets)
    assert worse.value == pytest.approx(
        mean_average_precision(good + noise, targets) - mean_average_precision(good, targets)
    )
    assert (worse.low < worse.value < worse.high < 0, p_value < 0.05) == (True, True)
    better, same = mean_ap_difference(good, good + noise, targets)
    assert (better.value, better.low, better.high) == pytest.approx((-worse.value, -worse.high, -worse.low))
    assert same == p_value
    assert mean_ap_difference(good, good, targets)[1] == 1.0


def test_the_interval_of_a_difference_is_that_of_resampled_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "NUM_RESAMPLES", 60)
    one, targets = labelled(13, 4, seed=3)
    other = 1 - one
    rows = np.random.default_rng(0).integers(0, 13, (60, 13))
    found = []
    for chosen in rows:
        named = [n for n in range(4) if targets[chosen, n].any()]
        pairs = [
            metrics.average_precision_score(targets[chosen, n], each[chosen, n])
            for each, n in product((one, other), named)
        ]
        found.append(np.subtract(*np.reshape(pairs, (2, -1)).mean(axis=1)) if named else 0.0)
    difference, _ = mean_ap_difference(one, other, targets)
    assert (difference.low, difference.high) == pytest.approx(tuple(np.quantile(found, (0.025, 0.975))))
