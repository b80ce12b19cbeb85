"""What outputs mean with one class per image and with several labels, against SciPy, scikit-learn and brute force."""

from pathlib import Path

import numpy as np
import pytest
from scipy import special

from mlimages.core import ClassScore, LabeledPath, Prediction, wilson_interval
from mlimages.inference import MultiLabel, SingleLabel
from mlimages.inference.multi_label import score_multi_label_predictions
from mlimages.inference.tasks import sigmoid

metrics = pytest.importorskip("sklearn.metrics")

LOGITS = np.random.default_rng(0).normal(0, 2, (40, 4)).astype(np.float32)
CLASSES = np.random.default_rng(1).integers(0, 4, 40)
LABELS = np.random.default_rng(2).random((40, 4)) < [0.5, 0.3, 0.6, 0.2]


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The mean gap of confidence and accuracy over 15 bins, each weighted by its images."""
    bins = [(confidence >= n / 15) & ((confidence < (n + 1) / 15) | (n == 14)) for n in range(15)]
    gaps = [abs(confidence[own].mean() - right[own].mean()) * own.mean() for own in bins if own.any()]
    return float(sum(gaps))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_probabilities_are_scipys_softmax_and_logistic_function(temperature: float) -> None:
    logits = np.vstack([LOGITS, [[800, -800, 0, 1]]]).astype(np.float32)
    scaled = logits.astype(float) / temperature
    assert SingleLabel().compute_probabilities(logits, temperature) == pytest.approx(
        special.softmax(scaled, axis=1), abs=1e-9
    )
    assert MultiLabel().compute_probabilities(logits, temperature) == pytest.approx(special.expit(scaled), abs=1e-7)
    if temperature == 1:
        for task in (SingleLabel(), MultiLabel()):
            assert np.array_equal(task.compute_probabilities(logits), task.compute_probabilities(logits, 1.0))
    assert sigmoid(logits) == pytest.approx(special.expit(logits.astype(float)), abs=1e-12)


def test_targets_are_class_numbers_or_whether_an_image_has_each_class() -> None:
    single = [LabeledPath(Path("a"), 2), LabeledPath(Path("b"), 0)]
    found = SingleLabel().make_targets(single, 4)
    assert (found.tolist(), found.dtype) == ([2, 0], np.int64)
    several = [LabeledPath(Path("a"), -1, (0, 3)), LabeledPath(Path("b"), -1, ()), LabeledPath(Path("c"), 1)]
    mask = MultiLabel().make_targets(several, 4)
    assert (mask.tolist(), mask.dtype) == ([[True, False, False, True], [False] * 4, [False, True, False, False]], bool)


def test_one_class_per_image_is_scored_by_accuracy() -> None:
    task = SingleLabel()
    probabilities = task.compute_probabilities(LOGITS)
    right = probabilities.argmax(axis=1) == CLASSES
    found = task.score(probabilities, CLASSES)
    assert (found.value, found.low, found.high) == (right.mean(), *wilson_interval(right.sum(), 40))
    error = task.compute_calibration_error(probabilities, CLASSES)
    assert error == pytest.approx(calibration_error(probabilities.max(axis=1), right))
    assert task.apply_thresholds(probabilities[0]) is None
    assert task.score_name == "accuracy"


def test_several_labels_are_scored_by_mean_average_precision() -> None:
    task = MultiLabel()
    probabilities = task.compute_probabilities(LOGITS)
    expected = metrics.average_precision_score(LABELS, probabilities, average="macro")
    found = task.score(probabilities, LABELS.astype(np.float32))
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high
    confidence = np.maximum(probabilities, 1 - probabilities).ravel()
    right = (probabilities > 0.5).ravel() == LABELS.ravel()
    assert task.compute_calibration_error(probabilities, LABELS) == pytest.approx(calibration_error(confidence, right))
    assert task.score_name == "mAP"


@pytest.mark.parametrize(
    ("thresholds", "probabilities", "labels"),
    [
        ((), [0.499, 0.5, 0.501], (1, 2)),
        ((0.2, 0.2, 0.2), [0.199, 0.2, 0.201], (1, 2)),
        ((0.1, 0.6, 0.9), [0.1, 0.59, 0.91], (0, 2)),
        ((0.9, 0.9, 0.9), [0.1, 0.2, 0.3], ()),
        ((0.0, 0.0, 1.0), [0.0, 0.5, 1.0], (0, 1, 2)),
    ],
)
def test_a_label_is_predicted_from_its_threshold_on(
    thresholds: tuple[float, ...], probabilities: list[float], labels: tuple[int, ...]
) -> None:
    task = MultiLabel(thresholds)
    assert task.apply_thresholds(np.array(probabilities)) == labels
    mask = task.compute_label_mask(np.array([probabilities, [0.55, 0.55, 0.55]]))
    assert np.flatnonzero(mask[0]).tolist() == list(labels)
    assert mask[1].tolist() == [each <= 0.55 for each in thresholds or (0.5,) * 3]
    inner = np.clip(probabilities, 0.01, 0.99)
    assert task.predict_classes(special.logit(inner + 1e-6)) == task.apply_thresholds(inner + 1e-6)


@pytest.mark.parametrize("predicted", range(4))
def test_the_margin_of_a_class_is_what_its_probability_lacks(predicted: int) -> None:
    task = SingleLabel()
    for logits in LOGITS:
        p = special.softmax(logits.astype(float))
        assert task.compute_margin_over(logits, (predicted,)) == pytest.approx(p.max() - p[predicted], abs=1e-6)
        assert task.predict_classes(logits) == (int(p.argmax()),)
    assert task.compute_margin_over(np.array([900.0, 0, 0, 0]), (predicted,)) == (0.0 if predicted == 0 else 1.0)


@pytest.mark.parametrize("thresholds", [(), (0.3, 0.4, 0.6, 0.7)])
def test_the_margin_of_labels_is_the_largest_distance_of_those_that_differ(thresholds: tuple[float, ...]) -> None:
    task, levels = MultiLabel(thresholds), thresholds or (0.5,) * 4
    rng = np.random.default_rng(5)
    for logits in LOGITS:
        predicted = tuple(np.flatnonzero(rng.random(4) < 0.5).tolist())
        p = special.expit(logits.astype(float))
        differing = [abs(p[n] - levels[n]) for n in range(4) if (p[n] >= levels[n]) != (n in predicted)]
        assert task.compute_margin_over(logits, predicted) == pytest.approx(max(differing, default=0.0), abs=1e-9)
        assert task.compute_margin_over(logits, task.predict_classes(logits)) == 0.0


def test_scores_of_labels_are_those_of_scikit_learn_and_mistakes_begin_with_the_most_certain() -> None:
    names, thresholds = ("ant", "bee", "cow", "dog"), (0.3, 0.5, 0.6, 0.4)
    probabilities = special.expit(LOGITS.astype(float) + 2 * LABELS - 1)
    predicted = probabilities >= thresholds
    predictions = [
        Prediction(str(n), (), labels=tuple(ClassScore(names[c], c, float(row[c])) for c in np.flatnonzero(mask)))
        for n, (row, mask) in enumerate(zip(probabilities, predicted, strict=True))
    ]
    labels = [tuple(np.flatnonzero(row).tolist()) for row in LABELS]
    found = score_multi_label_predictions(predictions, labels, probabilities, thresholds=thresholds, class_names=names)
    assert found.num_images == 40
    assert found.exact_match_ratio.value == metrics.accuracy_score(LABELS, predicted)
    expected = metrics.precision_recall_fscore_support(LABELS, predicted)
    rows = np.array([(row.precision.value, row.recall.value, row.f1.value, row.count) for row in found.per_class])
    assert rows == pytest.approx(np.transpose(expected))
    precision = metrics.average_precision_score(LABELS, probabilities, average=None)
    assert [each.value for each in found.average_precision.per_class if each] == pytest.approx(precision)
    wrong = predicted != LABELS
    certainty = {n: max(abs(probabilities[n] - thresholds)[wrong[n]]) for n in range(40) if wrong[n].any()}
    order = sorted(certainty, key=lambda n: -certainty[n])
    assert [(int(one.path or -1), true) for one, true in found.mistakes] == [(n, labels[n]) for n in order]
    assert 5 < len(order) < 40
    values = found.to_dict()
    assert values["map"] == pytest.approx(precision.mean())
    assert values["interval"] == [found.average_precision.mean.low, found.average_precision.mean.high]
    assert values["accuracy"] == [
        found.exact_match_ratio.value,
        found.exact_match_ratio.low,
        found.exact_match_ratio.high,
    ]
    assert values["per_class"]["bee"] == {  # type: ignore[index]
        "count": int(LABELS[:, 1].sum()),
        "threshold": 0.5,
        **{
            name: [share.value, share.low, share.high]
            for name, share in (
                ("average_precision", found.average_precision.per_class[1]),
                ("precision", found.per_class[1].precision),
                ("recall", found.per_class[1].recall),
                ("f1", found.per_class[1].f1),
            )
            if share
        },
    }


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_loss_is_that_of_scikit_learn(temperature: float) -> None:
    single, multi = SingleLabel(), MultiLabel()
    p = single.compute_probabilities(LOGITS, temperature)
    assert single.compute_loss(LOGITS, CLASSES, temperature) == pytest.approx(metrics.log_loss(CLASSES, p))
    p = multi.compute_probabilities(LOGITS, temperature)
    expected = np.mean([metrics.log_loss(LABELS[:, n], p[:, n]) for n in range(4)])
    assert multi.compute_loss(LOGITS, LABELS, temperature) == pytest.approx(expected)


@pytest.mark.parametrize("margin", [20.0, 200.0, 2e4])
@pytest.mark.parametrize("task", [SingleLabel(), MultiLabel()])
def test_the_loss_of_a_wrong_prediction_is_not_capped(task: SingleLabel | MultiLabel, margin: float) -> None:
    logits = np.array([[margin, 0.0 if isinstance(task, SingleLabel) else -margin]], np.float32)
    right, wrong = (task.make_targets([LabeledPath(Path("a"), n, (n,))], 2) for n in (0, 1))
    assert task.compute_loss(logits, wrong) == pytest.approx(margin)
    assert 0 <= task.compute_loss(logits, right) < 1e-8
    assert task.compute_loss(logits, wrong, temperature=4.0) == pytest.approx(margin / 4, rel=1e-2)


def test_a_wrong_label_is_a_mistake() -> None:
    wrong = np.array([[1.0, 0.0]])
    prediction = Prediction("a", (), labels=(ClassScore("ant", 0, 1.0),))
    found = score_multi_label_predictions(
        [prediction], [(1,)], wrong, thresholds=(0.5, 0.5), class_names=("ant", "bee")
    )
    assert found.exact_match_ratio.value == 0.0
    found = score_multi_label_predictions(
        [prediction], [(0,)], wrong, thresholds=(0.5, 0.5), class_names=("ant", "bee")
    )
    assert (found.exact_match_ratio.value, found.mistakes) == (1.0, ())
