"""Scores from counts, and their intervals."""

import pytest

from mlimages.core import (
    Proportion,
    accuracy,
    class_scores,
    confusion_matrix,
    format_interval,
    format_percent,
    mcnemar_test,
    wilson_interval,
)

LABELS = [0, 0, 0, 0, 1, 1, 1, 2]
PREDICTED = [0, 0, 1, 0, 1, 1, 0, 1]


def test_pairs_are_counted_by_label_then_prediction() -> None:
    assert confusion_matrix(LABELS, PREDICTED, 3) == ((3, 1, 0), (1, 2, 0), (0, 1, 0))


def test_scores_equal_scikit_learns() -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    confusion = confusion_matrix(LABELS, PREDICTED, 3)
    scores = class_scores(confusion, ["a", "b", "c"])
    expected = sklearn_metrics.precision_recall_fscore_support(LABELS, PREDICTED, zero_division=0)
    for index, field in enumerate(("precision", "recall", "f1")):
        assert [getattr(score, field).value for score in scores] == pytest.approx(list(expected[index]))
    assert [score.count for score in scores] == list(expected[3])
    assert accuracy(confusion).value == pytest.approx(sklearn_metrics.accuracy_score(LABELS, PREDICTED))


def test_every_share_lies_within_its_interval() -> None:
    for score in class_scores(confusion_matrix(LABELS, PREDICTED, 3), ["a", "b", "c"]):
        for share in (score.precision, score.recall, score.f1):
            assert 0 <= share.low <= share.value <= share.high <= 1
    first = class_scores(((3, 1, 0), (1, 2, 0), (0, 1, 0)), ["a", "b", "c"])[0]
    assert (first.recall.low, first.recall.high) == wilson_interval(3, 4)


def test_a_class_without_images_says_that_nothing_is_known() -> None:
    empty = class_scores(((1, 0), (0, 0)), ["a", "b"])[1]
    assert (empty.recall.value, empty.recall.low, empty.recall.high) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 3), (2, 9), (9, 2), (0, 12), (40, 61), (700, 600)])
def test_the_sign_test_equals_scipys(gained: int, lost: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar_test(gained, lost) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.875, None, "87.5 %"), (0.123456, 2, "12.35 %"), (1.0, 0, "100 %"), (0.0, None, "0.0 %")],
)
def test_a_share_is_shown_in_percent(value: float, digits: int | None, text: str) -> None:
    assert (format_percent(value) if digits is None else format_percent(value, digits)) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(0.781, 0.992, "78 to 99 %"), (0.5, 0.5199, "50.0 to 52.0 %"), (0.0, 0.02, "0 to 2 %"), (0.0, 0.0201, "0 to 2 %"),
     (0.9812, 0.9999, "98.1 to 100.0 %"), (0.9962, 0.9998, "99.6 to 100.0 %"), (0, 1, "0 to 100 %")],
)  # fmt: skip
def test_an_interval_narrower_than_two_percent_is_shown_with_decimals(low: float, high: float, text: str) -> None:
    assert format_interval(Proportion((low + high) / 2, low, high)) == text


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (10, 10, 0.7225, 1.0), (0, 20, 0.0, 0.1611), (0, 0, 0.0, 1.0)],
    ids=["newcombe-1998-table-1", "all", "none", "no observation"],
)
def test_the_interval_equals_published_figures(successes: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(successes, count) == pytest.approx((low, high), abs=5e-5)


def test_rounding_leaves_no_interval_beyond_0_and_1() -> None:
    for count in range(1, 300):
        assert wilson_interval(0, count)[0] == 0
        assert wilson_interval(count, count)[1] == 1
