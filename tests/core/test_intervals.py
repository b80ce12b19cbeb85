import pytest

from mlimages.core import wilson_interval


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (10, 10, 0.7225, 1.0), (0, 20, 0.0, 0.1611)],
    ids=["newcombe-1998-table-1", "all", "none"],
)
def test_the_interval_equals_published_figures(successes: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(successes, count) == pytest.approx((low, high), abs=5e-5)


def test_no_count_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_rounding_leaves_no_interval_beyond_0_and_1() -> None:
    for count in range(1, 300):
        assert 0 <= wilson_interval(0, count)[0] <= 1e-12
        assert 1 - 1e-12 <= wilson_interval(count, count)[1] <= 1
