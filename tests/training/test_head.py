"""The closed-form head: leave-one-out is leaving it out, with any number of layers; and it needs little memory."""

import tracemalloc
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from mlimages.training.head import (
    CHUNK_IMAGES,
    LABEL_SMOOTHING,
    LOWER_LAYERS_SHARES,
    MIN_RELATIVE_STD,
    PENALTIES,
    RidgeFit,
    _fit_sigmoid_scaling,
    _fit_softmax_scaling,
    _RidgeSolver,
    _StandardizedFeatures,
    assign_stratified_folds,
    fit_ridge,
)

pytestmark = pytest.mark.train


def blobs(count: int, width: int, *, classes: int = 3, seed: int = 7) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    return rng.normal(size=(count, width)) + 1.2 * rng.normal(size=(classes, width))[labels], labels


def standardized(blocks: list[NDArray[np.float64]], fit: RidgeFit) -> NDArray[np.float64]:
    """The features whose kernel the fit has: each block has mean 1 on its kernel's diagonal, times its share."""
    shares = [1 - fit.lower_layers_share, *[fit.lower_layers_share / max(1, len(blocks) - 1)] * (len(blocks) - 1)]
    parts = []
    for block, share in zip(blocks, shares, strict=True):
        spread = block.std(axis=0)
        assert (spread > MIN_RELATIVE_STD * np.sqrt(np.square(spread).mean())).all()
        x = (block - block.mean(axis=0)) / spread
        parts.append(x * np.sqrt(share / np.square(x).sum(axis=1).mean()))
    return np.concatenate(parts, axis=1)


def left_out_scores(x: NDArray[np.float64], targets: NDArray[np.floating], penalties: ArrayLike) -> NDArray[np.float64]:
    """The scores of each image by fits without it, `(penalties, N, classes)`."""
    scores = np.empty((np.size(penalties), *targets.shape))
    for index in range(len(x)):
        keep = np.arange(len(x)) != index
        mean, base = x[keep].mean(0), targets[keep].mean(0)
        centred = x[keep] - mean
        grams = centred.T @ centred + np.reshape(penalties, (-1, 1, 1)) * np.eye(x.shape[1])
        scores[:, index] = base + (x[index] - mean) @ np.linalg.solve(grams, (centred.T @ (targets[keep] - base))[None])
    return scores


@pytest.mark.parametrize("widths", [(5,), (60,), (4, 3, 5), (20, 30, 10)], ids=str)
def test_leaving_one_out_in_closed_form_is_leaving_it_out(widths: tuple[int, ...]) -> None:
    blocks = [blobs(40, width, seed=number)[0] for number, width in enumerate(widths)]
    labels = blobs(40, 1)[1]
    fit = fit_ridge(blocks[0], labels, 3, lower_features=blocks[1:], share_candidates=LOWER_LAYERS_SHARES[1:])
    assert (fit.penalty in PENALTIES, fit.lower_layers_share in LOWER_LAYERS_SHARES[1:]) == (True, len(widths) > 1)
    scores = left_out_scores(standardized(blocks, fit), np.eye(3)[labels], fit.penalty)[0]
    logs = np.log(fit.loo_probabilities.astype(np.float64))  # the softmax of scale * scores
    spread = (logs - logs.mean(1, keepdims=True)) / (scores - scores.mean(1, keepdims=True))
    assert spread == pytest.approx(np.repeat(spread[:, :1], 3, axis=1), rel=1e-2)
    correct = fit.head.compute_probabilities(np.concatenate(blocks, axis=1)).argmax(axis=1) == labels
    assert correct.mean() >= (fit.loo_probabilities.argmax(axis=1) == labels).mean()


@pytest.mark.parametrize("widths", [(5,), (60,), (4, 3, 5)], ids=str)
def test_penalty_and_share_have_the_least_error_of_leaving_one_out(widths: tuple[int, ...]) -> None:
    blocks = [blobs(40, width, seed=number + 4)[0] for number, width in enumerate(widths)]
    labels = np.array([0] * 22 + [1] * 12 + [2] * 6)
    blocks[0][:, 0] += labels
    fit = fit_ridge(blocks[0], labels, 3, lower_features=blocks[1:], share_candidates=LOWER_LAYERS_SHARES[1:])
    shares = LOWER_LAYERS_SHARES[1:] if len(widths) > 1 else (0.0,)
    targets = np.eye(3)[labels]
    features = [standardized(blocks, replace(fit, lower_layers_share=share)) for share in shares]
    errors = [np.square(left_out_scores(x, targets, PENALTIES) - targets).mean(axis=(1, 2)) for x in features]
    share, penalty = np.unravel_index(np.argmin(errors), np.shape(errors))
    assert (fit.lower_layers_share, fit.penalty) == (shares[share], PENALTIES[penalty])
    assert 0 < penalty < len(PENALTIES) - 1


@pytest.mark.parametrize("seed", range(6))
def test_the_search_finds_the_share_that_trying_all_shares_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 150)
    signal = rng.uniform(0, 1.5, 3)  # how far each layer tells the classes apart
    layers = [rng.normal(size=(150, width)) for width in (30, 20, 40)]
    for layer, strength in zip(layers, signal, strict=True):
        layer[:, :3] += strength * np.eye(3)[labels]
    errors: dict[float, float] = {}
    fit = _RidgeSolver.fit

    def record_error(self: _RidgeSolver) -> RidgeFit:
        found = fit(self)
        errors[found.lower_layers_share] = self.errors.mean()
        return found

    with mock.patch.object(_RidgeSolver, "fit", record_error):
        for share in LOWER_LAYERS_SHARES[1:]:
            fit_ridge(layers[0], labels, 3, lower_features=layers[1:], share_candidates=[share])
    found = fit_ridge(layers[0], labels, 3, lower_features=layers[1:], share_candidates=LOWER_LAYERS_SHARES[1:])
    assert found.lower_layers_share == min(errors, key=errors.__getitem__)


@pytest.mark.parametrize(("helpful", "share"), [(0, 0.0), (1, 1.0)], ids=["the last layer", "a lower layer"])
def test_leave_one_out_finds_the_layer_that_tells_the_classes_apart(helpful: int, share: float) -> None:
    good, labels = blobs(200, 10)
    layers = [np.random.default_rng(1).normal(size=(200, 40)) for _ in range(2)]
    layers[helpful] = good
    fit = fit_ridge(layers[0], labels, 3, lower_features=layers[1:])
    assert abs(fit.lower_layers_share - share) <= 0.1
    assert fit.head.weight.shape[1] == layers[0].shape[1] + (layers[1].shape[1] if fit.lower_layers_share else 0)


def test_lower_layers_without_information_are_used_as_seldom_as_chance_explains() -> None:
    good, labels = blobs(120, 10)
    noise = [[np.random.default_rng((seed, n)).normal(size=(120, 10)) for n in range(2)] for seed in range(40)]
    shares = [fit_ridge(good, labels, 3, lower_features=lower).lower_layers_share for lower in noise]
    assert sum(share > 0 for share in shares) <= 4, shares  # two standard errors; the best of six shares


def test_probabilities_add_up_and_are_calibrated_enough_to_rank() -> None:
    features, labels = blobs(300, 6)
    probabilities = fit_ridge(features, labels, 3).loo_probabilities
    assert probabilities.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    right = probabilities.argmax(axis=1) == labels
    assert probabilities.max(axis=1).mean() == pytest.approx(right.mean(), abs=0.08)


def test_no_image_is_judged_by_itself() -> None:
    features = np.random.default_rng(0).normal(size=(200, 300))
    labels = np.arange(200) % 2  # features know nothing of it: only memory could be right
    probabilities = fit_ridge(features, labels, 2).loo_probabilities
    assert (probabilities.argmax(axis=1) == labels).mean() < 0.6  # without an image the other class is more frequent
    assert np.abs(probabilities - 0.5).max() < 0.1


def test_many_images_and_classes_need_no_array_of_images_by_classes_but_the_result() -> None:
    count, width, classes = 12_000, 24, 400
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(count, width)).astype(np.float32), rng.integers(0, classes, count)
    lower = [rng.normal(size=(count, 8)).astype(np.float32)]
    tracemalloc.start()
    fit_ridge(features, labels, classes, lower_features=lower, share_candidates=(0.5,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    working = 6 * 8 * max(CHUNK_IMAGES, 4000) * classes  # float64 arrays of the chunk, or of the images that choose
    assert peak < 1.2 * (4 * count * classes + working)
    assert working + 4 * count * classes < 31 * 8 * count * classes / 8  # far below an array for each penalty


def test_folds_are_even_in_every_class_and_the_same_each_time() -> None:
    labels = np.array([0] * 13 + [1] * 7 + [2] * 5)
    fold = assign_stratified_folds(labels, num_folds=5, seed=3)
    counts = np.array([[(fold[labels == label] == number).sum() for number in range(5)] for label in range(3)])
    assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all()
    assert (counts.sum(axis=0) == 5).all()
    assert (fold == assign_stratified_folds(labels, num_folds=5, seed=3)).all()


@pytest.mark.parametrize("width", [4, 60], ids=["fewer features than images", "more"])
def test_the_head_is_the_ridge_regression_that_scikit_learn_fits(width: int) -> None:
    """Up to the scale of the softmax; unequal classes, so that the base rates count."""
    linear = pytest.importorskip("sklearn.linear_model")
    features, _ = blobs(40, width)
    labels = np.array([0] * 22 + [1] * 12 + [2] * 6)
    features += labels[:, None]
    fit = fit_ridge(features, labels, 3)
    x = standardized([features], fit)
    ridge = linear.Ridge(alpha=fit.penalty * np.square(x).sum() / 40).fit(x, np.eye(3)[labels])
    expected = ridge.predict(x)
    found = features @ fit.head.weight.T + fit.head.bias
    scale = (found - found.mean(1, keepdims=True)) / (expected - expected.mean(1, keepdims=True))
    assert scale == pytest.approx(scale[0, 0], rel=1e-4)
    scores = fit.head.bias / scale[0, 0] + features @ fit.head.weight.T / scale[0, 0]
    assert scores.sum(axis=1) == pytest.approx(1)  # the targets of an image add up to 1


@pytest.mark.parametrize("sharpness", [0.05, 0.7, 6.0])
def test_the_scales_have_the_greatest_likelihood(sharpness: float) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 400)
    targets = np.eye(3)[labels]
    scores = targets * 0.3 + rng.normal(scale=0.3 / sharpness, size=(400, 3)) / 3

    def softmax_loss(scale: float) -> float:
        logs = scale * scores - np.logaddexp.reduce(scale * scores, axis=1, keepdims=True)
        return -float((((1 - LABEL_SMOOTHING) * targets + LABEL_SMOOTHING / 3) * logs).sum(axis=1).mean())

    def sigmoid_loss(scale: float) -> float:
        logits, smoothed = scale * (2 * scores - 1), (1 - LABEL_SMOOTHING) * targets + LABEL_SMOOTHING / 2
        return float(np.mean(np.logaddexp(0, logits) - smoothed * logits))

    candidates = np.logspace(-0.5, 2, 400)
    for found, loss in (
        (_fit_softmax_scaling(scores, labels)[0], softmax_loss),
        (_fit_sigmoid_scaling(scores, targets)[0] / 2, sigmoid_loss),
    ):
        best = min(candidates, key=loss)
        assert found == pytest.approx(best, rel=0.06)
    assert _fit_softmax_scaling(scores, labels)[1] == 0.0
    scale, offset = _fit_sigmoid_scaling(scores, targets)
    assert offset == -scale / 2


def test_features_that_hardly_vary_are_divided_by_a_twentieth_of_the_usual_spread() -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(5000, 4)) * [1.0, 3.0, 1e-3, 0.0] + 7
    block = _StandardizedFeatures.compute(features)
    mean, factor = block.mean, block.scale
    spread = features.std(axis=0)
    usual = np.sqrt(np.square(spread).mean())
    assert mean == pytest.approx(features.mean(axis=0))
    x = (features - mean) * factor
    assert np.square(x).sum(axis=1).mean() == pytest.approx(1)
    assert factor / factor[0] == pytest.approx(spread[0] / np.array([spread[0], spread[1], usual / 20, usual / 20]))


def test_shares_of_the_lower_layers_rise_from_none_to_all() -> None:
    assert (LOWER_LAYERS_SHARES[0], LOWER_LAYERS_SHARES[-1]) == (0.0, 1.0)
    assert list(LOWER_LAYERS_SHARES) == sorted(set(LOWER_LAYERS_SHARES))
