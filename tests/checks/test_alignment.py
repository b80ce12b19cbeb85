"""The alignment of thumbnails and the search for candidates by features, against SciPy, Pillow and brute force."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mlimages.checks import alignment, feature_pairs
from mlimages.checks.alignment import (
    COARSE_PX,
    COARSE_RADIUS_PX,
    NOISE_LEVEL,
    PLACEMENT_SCALES,
    RADIUS_PX,
    THUMBNAIL_PX,
    _compute_gauss_newton_step,
    _compute_gradients,
    _find_best_placements,
    _interpolate,
    _make_box_filter,
    _make_resize_matrix,
    _normalize_contrast,
    _refine_and_correlate,
    align_and_correlate,
)
from mlimages.checks.feature_pairs import (
    MIN_CORRELATION,
    NUM_NEIGHBOURS,
    _align_pairs,
    _compute_features,
    _iter_nearest_neighbours,
    find_pairs_by_features,
    require_usearch,
)
from mlimages.checks.near_duplicates import ORIENTATIONS
from mlimages.core import MissingExtraError, NoProgress
from tests.checks.test_validation import scene

FloatArray = NDArray[np.floating]


def thumb(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("L").resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR))


def scenes(count: int, size: int) -> NDArray[np.float32]:
    found = [scene(n).convert("L").resize((size, size), Image.Resampling.BILINEAR) for n in range(count)]
    return np.stack([np.asarray(each) for each in found]).astype(np.float32)


@pytest.mark.parametrize(("size", "new_size"), [(64, 32), (32, 30), (32, 18), (10, 10)])
def test_an_axis_shrinks_as_pillow_shrinks_it(size: int, new_size: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).normal(100, 40, (1, size)).astype(np.float32))
    expected = np.asarray(image.resize((new_size, 1), Image.Resampling.BILINEAR))[0]
    assert _make_resize_matrix(size, new_size) @ np.asarray(image)[0] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("size", "radius"), [(THUMBNAIL_PX, RADIUS_PX), (COARSE_PX, COARSE_RADIUS_PX)])
def test_local_contrast_is_the_difference_from_the_mean_around_over_the_deviation_around(
    size: int, radius: int
) -> None:
    image = scenes(2, size)[1]

    def mean_around(values: FloatArray) -> FloatArray:
        found = np.empty_like(values)
        for y, x in product(range(size), repeat=2):
            found[y, x] = values[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1].mean()
        return found

    centred = image - mean_around(image)
    expected = centred / np.sqrt(mean_around(centred**2) + NOISE_LEVEL**2)
    assert _normalize_contrast(image[None], _make_box_filter(size, radius))[0] == pytest.approx(expected, abs=1e-4)
    assert np.ptp(expected) > 2


def test_images_are_interpolated_as_scipy_interpolates_them() -> None:
    images, rng = scenes(2, THUMBNAIL_PX), np.random.default_rng(1)
    edge = [[-1, -1], [1, 1], [-1, 1], [1.0001, 0], [0, -1.0001], [-1.2, 1.2]]
    places = np.concatenate([rng.uniform(-1.2, 1.2, (2, 2, 300)), np.array([edge, edge]).transpose(0, 2, 1)], axis=2)
    padded = np.concatenate([places, np.ones((2, 1, places.shape[2]))], axis=1)
    wide = np.pad(padded, ((0, 0), (0, 0), (0, THUMBNAIL_PX**2 - places.shape[2])))
    shown, inside = _interpolate(images, wide)
    pixels = (places[:, ::-1] + 1) * THUMBNAIL_PX / 2 - 0.5  # rows, columns
    expected = [ndimage.map_coordinates(i, p, order=1, mode="nearest") for i, p in zip(images, pixels, strict=True)]
    assert shown.reshape(2, -1)[:, : places.shape[2]] == pytest.approx(np.array(expected), abs=0.1)
    assert np.array_equal(inside[:, : places.shape[2]], (np.abs(places) <= 1).all(axis=1))


def test_gradients_are_central_differences_of_numpy_over_an_image_from_minus_1_to_1() -> None:
    images = scenes(2, THUMBNAIL_PX)
    down, right = np.gradient(images, 2 / THUMBNAIL_PX, axis=(1, 2))
    found = _compute_gradients(images).reshape(2, 2, THUMBNAIL_PX, THUMBNAIL_PX)
    assert found[:, 0, :, 1:-1] == pytest.approx(right[:, :, 1:-1], rel=1e-4, abs=1e-2)
    assert found[:, 1, 1:-1] == pytest.approx(down[:, 1:-1], rel=1e-4, abs=1e-2)
    assert not found[:, 0, :, [0, -1]].any()
    assert not found[:, 1, [0, -1]].any()


def test_a_step_is_the_least_squares_solution_of_numpy_with_damping_within_its_bound() -> None:
    rng = np.random.default_rng(3)
    slopes = rng.normal(0, 1, (3, 2, THUMBNAIL_PX**2)).astype(np.float32)
    grid = alignment._GRID
    wanted = rng.normal(0, 0.05, (3, 6))
    wanted[2, 4] = 3  # beyond the bound
    jacobian = (slopes[:, :, None] * grid).reshape(3, 6, -1)
    difference = (wanted[:, None] @ jacobian)[:, 0].astype(np.float32)
    for number, found in enumerate(_compute_gauss_newton_step(slopes, difference)):
        rows = jacobian[number].astype(float)
        damping = np.sqrt((rows**2).sum() / 6000 + 1e-3)
        system = np.vstack([rows.T, damping * np.eye(6)])
        expected, *_ = np.linalg.lstsq(system, np.concatenate([difference[number], np.zeros(6)]), rcond=None)
        assert found[:2] == pytest.approx(np.eye(3)[:2] + np.clip(expected, -0.15, 0.15).reshape(2, 3), abs=1e-4)
        assert found[2].tolist() == [0, 0, 1]
        assert number < 2 or np.abs(expected).max() > 0.15


def test_the_best_placement_is_the_best_of_all_scales_places_and_orientations() -> None:
    wholes = scenes(3, COARSE_PX)
    crops = [scene(number).crop((30, 20, 240, 160)).convert("L").resize((COARSE_PX, COARSE_PX)) for number in range(3)]
    parts = np.stack([
        ORIENTATIONS[number + 3].apply_to_images(np.asarray(crop, np.float32)) for number, crop in enumerate(crops)
    ])  # fmt: skip
    found = _find_best_placements(parts, wholes)
    for part, whole, placement in zip(parts, wholes, found, strict=True):
        target = _normalize_contrast(whole, _make_box_filter(COARSE_PX, COARSE_RADIUS_PX))
        values = {}
        for scale in PLACEMENT_SCALES:
            size = round(scale * COARSE_PX)
            shrink = _make_resize_matrix(COARSE_PX, size)
            template = _normalize_contrast(shrink @ part @ shrink.T, _make_box_filter(size, COARSE_RADIUS_PX))
            for number, orientation in enumerate(ORIENTATIONS):
                turned = orientation.apply_to_images(template)
                for top, left in product(range(COARSE_PX - size + 1), repeat=2):
                    window = target[top : top + size, left : left + size]
                    norms = np.linalg.norm(turned) * np.linalg.norm(window)
                    values[size, left, top, number] = float((turned * window).sum() / norms)
        size, left, top, number = max(values, key=lambda place: values[place])
        expected = [values[size, left, top, number], *np.array([size, left, top]) / COARSE_PX, number]
        assert placement == pytest.approx(expected, abs=1e-4)
        assert size < COARSE_PX


def warped(image: Image.Image, transform: FloatArray) -> Image.Image:
    """What the transform of coordinates from -1 to 1 shows of an image."""
    half = np.diag([image.width / 2, image.height / 2])
    linear = half @ transform[:, :2] @ np.linalg.inv(half)
    offset = half @ (transform[:, 2] + 1) - linear @ np.diag(half)
    rows = np.column_stack([linear, offset])
    return image.transform(image.size, Image.Transform.AFFINE, tuple(rows.ravel()), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "transform",
    [
        [[0.8, 0, 0], [0, 0.8, 0]],
        [[0.7, 0, 0.1], [0, 0.7, -0.1]],
        [[0.8, 0.1, 0.05], [-0.1, 0.8, 0]],
        [[0.75, 0.05, 0], [0.1, 0.85, 0.05]],
    ],
    ids=str,
)
def test_a_part_that_is_placed_nearly_right_is_aligned(transform: list[list[float]]) -> None:
    image, right = scene(5).resize((300, 300)), np.array(transform)
    ones, others, different = (thumb(each)[None] for each in (warped(image, right), image, scene(6)))
    smoothing = alignment._SMOOTHING
    part, whole, other = (smoothing @ each.astype(np.float32) @ smoothing.T for each in (ones, others, different))
    scale = (right[0, 0] + right[1, 1]) / 2
    placement = np.array([[scale, *(right[:, 2] + 1 - scale) / 2 + 0.02]])
    assert _refine_and_correlate(part, whole, placement) > 0.95
    assert _refine_and_correlate(other, whole, placement) < 0.6
    assert align_and_correlate(ones, others) > 0.95


@pytest.mark.parametrize(("share", "is_compared"), [(0.59, False), (0.61, True)])
def test_a_part_must_lie_within_the_other_image_by_more_than_60_percent(
    share: float, is_compared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "NUM_ITERATIONS", 0)
    whole = scenes(1, THUMBNAIL_PX)
    found = _refine_and_correlate(whole, whole, np.array([[1.0, 1 - round(share * THUMBNAIL_PX) / THUMBNAIL_PX, 0.0]]))
    assert (found != -1) == is_compared


def test_the_order_of_two_images_does_not_matter_and_no_correlation_is_above_1() -> None:
    images = np.stack([thumb(scene(1)), thumb(scene(1).crop((40, 30, 250, 170))), thumb(scene(2))])
    ones, others = images[[0, 0, 0]], images[[0, 1, 2]]
    found = align_and_correlate(ones, others)
    assert align_and_correlate(others, ones) == pytest.approx(found, abs=1e-4)
    assert found[0] == pytest.approx(1, abs=1e-4)
    assert found[1] > MIN_CORRELATION > found[2]


def unit_features(count: int) -> FloatArray:
    return _compute_features([Path(str(n)) for n in range(count)], embed, NoProgress())


def embed(paths: Sequence[Path]) -> NDArray[np.float32]:
    """Ten numbers of each image, which do not depend on the others of a batch."""
    return np.stack([np.random.default_rng(int(path.name)).normal(1, 1, 10) for path in paths]).astype(np.float32)


@pytest.mark.parametrize("at_once", [1, 7, None])
def test_features_are_centred_and_of_length_1_whatever_is_computed_at_once(
    at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EMBED_BATCH_SIZE", "COMPARE_BATCH_SIZE"):
        monkeypatch.setattr(feature_pairs, name, at_once or getattr(feature_pairs, name))
    expected = embed([Path(str(n)) for n in range(20)])
    expected = expected - expected.mean(axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = unit_features(20)
    assert found.dtype == np.float16
    assert found == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 40])
@pytest.mark.parametrize("at_once", [4, 7, None])
def test_candidates_are_the_three_most_similar_other_images(
    count: int, at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_pairs, "COMPARE_BATCH_SIZE", at_once or feature_pairs.COMPARE_BATCH_SIZE)
    features = unit_features(count)
    similarity = features.astype(np.float32) @ features.astype(np.float32).T
    np.fill_diagonal(similarity, np.inf)  # itself first
    nearest = np.argsort(-similarity, axis=1)[:, 1 : NUM_NEIGHBOURS + 1]
    expected = [(index, other) for index in range(count) for other in nearest[index].tolist()]
    assert list(_iter_nearest_neighbours(features)) == expected


@pytest.mark.parametrize(
    "count",
    [
        feature_pairs.MAX_EXACT_IMAGES - 1,
        feature_pairs.MAX_EXACT_IMAGES,
        feature_pairs.MAX_EXACT_IMAGES + 1,
    ],
)
def test_up_to_100_000_images_are_compared_without_usearch(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert feature_pairs.MAX_EXACT_IMAGES == 100_000
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ways = []
    for name in ("_find_nearest_exactly", "_find_nearest_approximately"):
        monkeypatch.setattr(feature_pairs, name, lambda features, name=name: ways.append(name) or iter([]))
    list(_iter_nearest_neighbours(np.empty((count, 1), np.float16)))
    if count <= 100_000:
        require_usearch(count)
        assert ways == ["_find_nearest_exactly"]
    else:
        with pytest.raises(MissingExtraError, match="comparing the features of more than 100,000 images requires an"):
            require_usearch(count)
        assert ways == ["_find_nearest_approximately"]


@pytest.mark.parametrize("at_once", [1, 2, 3, None])
def test_pairs_are_near_duplicates_from_the_minimum_correlation(
    at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_pairs, "ALIGN_BATCH_SIZE", at_once or feature_pairs.ALIGN_BATCH_SIZE)
    values = {1: 0.9, 2: np.nextafter(0.7, 0), 3: 0.7, 4: np.nextafter(0.7, 1), 5: -1.0}
    assert MIN_CORRELATION == 0.7
    monkeypatch.setattr(
        feature_pairs,
        "align_and_correlate",
        lambda ones, others: np.array(
            [values[int(other[0, 0] - one[0, 0])] for one, other in zip(ones, others, strict=True)]
        ),
    )
    thumbs = np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((1, 64, 64), np.uint8)
    found = list(_align_pairs(thumbs, [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 4)], NoProgress()))
    assert found == [(0, 1, 0.9), (0, 3, 0.7), (0, 4, values[4]), (1, 4, 0.7)]


class Recording(NoProgress):
    """Notes what is reported."""

    def __init__(self, steps: list[tuple[object, ...]]) -> None:
        self._steps = steps

    def start(self, what: str, total: int | None, unit: str) -> None:
        self._steps.append((what, total, unit))

    def advance(self, count: int = 1, **figures: object) -> None:
        self._steps.append((count,))

    def close(self) -> None:
        self._steps.append(("close",))


def test_fewer_than_two_images_have_no_pair_and_one_that_is_gone_none_either(tmp_path: Path) -> None:
    def of_length(paths: Sequence[Path]) -> NDArray[np.float32]:
        return np.array([[len(path.name), 1.0] for path in paths], np.float32)

    def never(paths: Sequence[Path]) -> NDArray[np.float32]:
        raise AssertionError("no features are computed")

    for count in (0, 1):
        assert find_pairs_by_features([tmp_path / "a.png"] * count, never, NoProgress()) == []
    for name in ("a.png", "b.png"):
        scene(1).save(tmp_path / name)
    for names, pair in ((("a.png", "b.png"), (0, 1)), (("a.png", "gone.png", "b.png"), (0, 2))):
        steps: list[tuple[object, ...]] = []
        (found,) = find_pairs_by_features([tmp_path / name for name in names], of_length, Recording(steps))
        assert found == (*pair, pytest.approx(1, abs=1e-4))
        counts = {"features": (len(names), "images"), "align": (len(names) * (len(names) - 1) // 2, "pairs")}
        assert steps == [
            step for what, (count, unit) in counts.items() for step in ((what, count, unit), (count,), ("close",))
        ]
