"""The closed-form classifier says of a fold what a fit without that fold says."""

import numpy as np
import pytest
from numpy.typing import NDArray

from mlimages.training.head import fit_ridge, stratified_folds


def blobs(count: int, width: int, classes: int = 3) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    chance = np.random.default_rng(7)
    labels = np.arange(count) % classes
    return chance.normal(size=(count, width)) + 1.2 * chance.normal(size=(classes, width))[labels], labels


@pytest.mark.parametrize(("count", "width"), [(60, 9), (30, 80)], ids=["tall", "wide"])
def test_out_of_fold_equals_fitting_without_the_fold(count: int, width: int) -> None:
    features, labels = blobs(count, width)
    fold = stratified_folds(labels, folds=5, seed=0)
    fit = fit_ridge(features, labels, 3)
    probabilities = fit.out_of_fold(fold)
    x = (features - features.mean(axis=0)) / features.std(axis=0)
    penalty = fit.penalty * np.square(x).sum() / count
    for number in range(5):
        kept = fold != number
        mean, base = x[kept].mean(axis=0), np.eye(3)[labels[kept]].mean(axis=0)
        a, b = x[kept] - mean, np.eye(3)[labels[kept]] - base
        weight = np.linalg.solve(a.T @ a + penalty * np.eye(width), a.T @ b)
        scores = base + (x[~kept] - mean) @ weight
        logs = np.log(probabilities[~kept])  # the softmax of scale * scores
        spread = (scores - scores.mean(axis=1, keepdims=True)) / (logs - logs.mean(axis=1, keepdims=True))
        assert spread == pytest.approx(spread.flat[0])


def test_probabilities_add_up_and_are_calibrated_enough_to_rank() -> None:
    features, labels = blobs(300, 6)
    probabilities = fit_ridge(features, labels, 3).out_of_fold(stratified_folds(labels, folds=5, seed=0))
    assert probabilities.sum(axis=1) == pytest.approx(1.0)
    sure = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    assert sure.mean() == pytest.approx(right.mean(), abs=0.08)


def test_no_image_is_judged_by_itself() -> None:
    features = np.random.default_rng(0).normal(size=(200, 300))
    labels = np.arange(200) % 2  # features know nothing of it: only memory could be right
    probabilities = fit_ridge(features, labels, 2).out_of_fold(stratified_folds(labels, folds=5, seed=0))
    assert 0.35 < (probabilities.argmax(axis=1) == labels).mean() < 0.6


def test_folds_are_even_in_every_class_and_the_same_each_time() -> None:
    labels = np.array([0] * 13 + [1] * 7 + [2] * 5)
    fold = stratified_folds(labels, folds=5, seed=3)
    counts = np.array([[(fold[labels == label] == number).sum() for number in range(5)] for label in range(3)])
    assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all()
    assert (counts.sum(axis=0) == 5).all()
    assert (fold == stratified_folds(labels, folds=5, seed=3)).all()
