"""Loss, score and metrics of a run, against PyTorch, scikit-learn and counting."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from mlimages.inference import MultiLabel, SingleLabel
from mlimages.training import FineTuneConfig
from mlimages.training.objective import BinaryCrossEntropy, CrossEntropy, Metrics, make_objective

CPU = torch.device("cpu")
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.2, 0.1, -3.0], [-0.5, 0.0, 1.5], [1.0, 3.0, -2.0], [0.0, -1.0, -0.1]])
CLASSES = torch.tensor([0, 1, 2, 1, 1])
LABELS = torch.tensor([[1.0, 0, 1], [1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 1, 1]])


def config(**options: Any) -> FineTuneConfig:
    return FineTuneConfig("a.txt", "run", **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_is_that_of_torch(smoothing: float) -> None:
    objective = make_objective(config(label_smoothing=smoothing), CLASSES, 3, CPU)
    assert isinstance(objective, CrossEntropy)
    assert objective.inference_task == SingleLabel()
    total, weight = objective.sum_losses_and_weights(LOGITS, CLASSES)
    expected = functional.cross_entropy(LOGITS, CLASSES, label_smoothing=smoothing)
    assert (float(total) / weight, weight) == (pytest.approx(float(expected)), 5)
    assert objective.compute_probabilities(LOGITS).numpy() == pytest.approx(LOGITS.softmax(1).numpy())
    assert objective.count_correct(LOGITS, CLASSES) == 3
    plain = functional.cross_entropy(LOGITS, CLASSES)
    assert objective.compute_metrics(LOGITS, CLASSES) == Metrics(float(plain), 3, 5)


def test_balanced_class_weights_are_those_of_scikit_learn() -> None:
    utils = pytest.importorskip("sklearn.utils.class_weight")
    objective = make_objective(config(class_weights="balanced"), CLASSES, 3, CPU)
    weights = utils.compute_class_weight("balanced", classes=np.arange(3), y=CLASSES.numpy())
    total, weight = objective.sum_losses_and_weights(LOGITS[1:], CLASSES[1:])
    expected = functional.cross_entropy(LOGITS[1:], CLASSES[1:], torch.tensor(weights, dtype=torch.float32))
    assert weight == pytest.approx(weights[CLASSES[1:]].sum())
    assert float(total) / weight == pytest.approx(float(expected))
    assert objective.compute_metrics(LOGITS, CLASSES).loss == pytest.approx(
        float(functional.cross_entropy(LOGITS, CLASSES))
    )


@pytest.mark.parametrize("weights", ["none", "balanced"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_of_several_labels_is_summed_over_images_and_averaged_over_classes(
    smoothing: float, weights: str
) -> None:
    objective = make_objective(config(label_smoothing=smoothing, class_weights=weights), LABELS[:4], 3, CPU)
    assert isinstance(objective, BinaryCrossEntropy)
    assert objective.inference_task == MultiLabel()
    positive = torch.tensor([1 / 3, 1, 1]) if weights == "balanced" else torch.ones(3)
    p, t = LOGITS.sigmoid(), LABELS * (1 - smoothing) + smoothing / 2
    losses = -(positive * t * p.log() + (1 - t) * (1 - p).log())
    total, weight = objective.sum_losses_and_weights(LOGITS, LABELS)
    assert (float(total), weight) == (pytest.approx(float(losses.mean(1).sum())), 5)


def test_metrics_of_several_labels_count_images_of_which_every_label_is_right() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    objective = BinaryCrossEntropy(config(label_smoothing=0.2, class_weights="balanced"), LABELS, CPU)
    found = objective.compute_metrics(LOGITS, LABELS)
    expected = metrics.average_precision_score(LABELS.numpy().astype(int), LOGITS.numpy(), average="macro")
    assert found.mean_ap == found.score == pytest.approx(expected)
    assert found.loss == pytest.approx(float(functional.binary_cross_entropy_with_logits(LOGITS, LABELS)))
    assert (found.num_correct, found.num_images, found.accuracy) == (3, 5, 0.6)
    assert objective.compute_probabilities(LOGITS).numpy() == pytest.approx(LOGITS.sigmoid().numpy())


@pytest.mark.parametrize(("logit", "num_correct"), [(-1e-6, 0), (0.0, 1), (1e-6, 1)])
def test_a_label_is_predicted_from_a_probability_of_one_half(logit: float, num_correct: int) -> None:
    objective = BinaryCrossEntropy(config(), LABELS, CPU)
    assert objective.count_correct(torch.tensor([[logit, -1.0, 3.0]]), torch.tensor([[1.0, 0.0, 1.0]])) == num_correct


def test_metrics_of_two_sets_are_those_of_both_together() -> None:
    def metrics(rows: slice) -> Metrics:
        return CrossEntropy(config(), CLASSES, 3, CPU).compute_metrics(LOGITS[rows], CLASSES[rows])

    both, whole = metrics(slice(0, 2)) + metrics(slice(2, 5)), metrics(slice(0, 5))
    assert (both.loss, both.num_correct, both.num_images) == (
        pytest.approx(whole.loss),
        whole.num_correct,
        whole.num_images,
    )
    none, one = Metrics(0.0, 0, 0), Metrics(0.25, 1, 1)
    assert (none + none, one + none, one.accuracy) == (none, one, 1.0)
    assert (none.accuracy, (none + whole).loss) == (0.0, pytest.approx(whole.loss))
    assert (Metrics(0.5, 1, 4).score, Metrics(0.5, 1, 4, 0.75).score) == (0.25, 0.75)
    assert (Metrics(0.5, 1, 4, 0.75) + Metrics(0.5, 1, 4, 0.75)).mean_ap is None
