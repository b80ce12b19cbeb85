"""The search for close hashes by bands, against comparing all pairs; and how parts of thumbnails are interpolated."""

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from mlimages.checks import near_duplicates
from mlimages.checks.near_duplicates import (
    CROP_SCALES,
    _compute_best_crop_correlation,
    _expand_ranges,
    _find_close_pairs,
    _make_crop_matrices,
    _normalize_vectors,
    _transpose_bits,
    compute_perceptual_hashes,
    find_near_duplicate_pairs,
)


def pairs_of(found: Iterable[tuple[NDArray[np.intp], NDArray[np.intp]]]) -> list[tuple[int, int]]:
    return [pair for ones, others in found for pair in zip(ones.tolist(), others.tolist(), strict=True)]


@pytest.mark.parametrize("at_once", [7, None])
@pytest.mark.parametrize("max_bits", [0, 3, 6, 11])
@pytest.mark.parametrize("is_large", [False, True])
def test_every_close_pair_is_found_once(
    max_bits: int, at_once: int | None, is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if at_once:
        monkeypatch.setattr(near_duplicates, "HASH_PAIR_BATCH_SIZE", at_once)
    if is_large:
        monkeypatch.setattr(near_duplicates, "COMPARISONS_PER_LOOKUP", 0)
    rng = np.random.default_rng(max_bits)
    hashes = rng.integers(0, 1 << 64, 40, dtype=np.uint64)
    for number in range(10, 40):  # copies that differ in 0 to 8 bits, some of them in one band
        flipped = rng.choice(64 if number % 2 else 16, number % 9, replace=False)
        hashes[number] = hashes[number % 10] ^ np.uint64(sum(1 << int(bit) for bit in flipped))
    rotated = hashes ^ np.uint64(0b101)
    expected = [
        (one, other)
        for one, other in combinations(range(40), 2)
        if int(rotated[one] ^ hashes[other]).bit_count() <= max_bits
    ]
    assert sorted(pairs_of(_find_close_pairs(rotated, hashes, max_bits))) == expected
    assert max_bits == 0 or len(expected) > 10


def test_bits_that_differ_at_the_ends_of_bands_are_found_in_some_band(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "COMPARISONS_PER_LOOKUP", 0)
    ends = [0, 15, 16, 31, 32, 47, 48, 63]
    for bits in (1, 2, 3):
        hashes = np.array([0, *(sum(1 << end for end in some) for some in combinations(ends, bits))], np.uint64)
        for same in (hashes, ~hashes):
            of_first = [pair for pair in pairs_of(_find_close_pairs(same, same, bits)) if pair[0] == 0]
            assert sorted(of_first) == [(0, n) for n in range(1, len(hashes))]


@pytest.mark.parametrize(
    ("max_bits", "look_ups"),  # masks of each band: 1 for none of its bits, 16 for one, 120 for two
    [(0, 1), (2, 3), (3, 4), (4, 3 + 17), (7, 4 * 17), (8, 3 * 17 + 137)],
)
def test_bands_are_used_where_they_cost_less_than_comparing_all(
    max_bits: int, look_ups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_duplicates, "COMPARISONS_PER_LOOKUP", 2)
    monkeypatch.setattr(near_duplicates, "_find_close_pairs_exhaustively", lambda *_: iter([("all", "all")]))
    monkeypatch.setattr(near_duplicates, "_find_close_pairs_in_band", lambda *_: iter([]))
    compared = []
    for count in (2 * look_ups - 1, 2 * look_ups, 2 * look_ups + 1):
        hashes = np.zeros(count, np.uint64)
        compared.append(list(_find_close_pairs(hashes, hashes, max_bits)))
    assert compared == [[("all", "all")], [("all", "all")], []]


@pytest.mark.parametrize("at_once", [1, 5, 100])
def test_ranges_are_expanded_whole_whatever_is_done_at_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "HASH_PAIR_BATCH_SIZE", at_once)
    ones, first, count = np.array([4, 7, 9, 2, 5]), np.array([10, 20, 30, 40, 50]), np.array([3, 0, 6, 1, 0])
    parts = list(_expand_ranges(ones, first, count))
    found = [pair for one, other in parts for pair in zip(one.tolist(), other.tolist(), strict=True)]
    assert found == [(4, 10), (4, 11), (4, 12), *((9, n) for n in range(30, 36)), (2, 40)]
    assert at_once > 1 or max(len(one) for one, _ in parts) == 6, "no range is divided"


def test_windows_interpolate_the_start_the_middle_and_the_end_of_an_axis() -> None:
    windows = _make_crop_matrices()
    assert windows.shape == (len(CROP_SCALES), 3, 16, 16)
    assert windows.sum(axis=3) == pytest.approx(1)
    ramp = np.arange(16) + 0.5  # the centre of each pixel
    for number, size in enumerate(CROP_SCALES):
        for offset, begin in enumerate((0, (1 - size) * 8, (1 - size) * 16)):
            expected = np.clip(begin + size * ramp, 0.5, 15.5)
            assert windows[number, offset] @ ramp == pytest.approx(expected, abs=1e-5)


def test_bits_are_transposed_as_numpy_transposes_them() -> None:
    hashes = np.random.default_rng(3).integers(0, 1 << 64, 20, np.uint64)
    bits = np.unpackbits(hashes.view(np.uint8).reshape(20, 8), axis=1, bitorder="little").reshape(20, 8, 8)
    expected = np.packbits(bits.swapaxes(1, 2).reshape(20, 64), axis=1, bitorder="little").view("<u8").ravel()
    assert np.array_equal(_transpose_bits(hashes), expected)


def test_every_orientation_turns_thumbnails_and_their_hashes_alike() -> None:
    thumbs, every = np.random.default_rng(0).integers(0, 256, (100, 16, 16), np.uint8), np.arange(100, dtype=np.int32)
    hashes = compute_perceptual_hashes(thumbs.reshape(100, 256), every)
    orientations = near_duplicates.ORIENTATIONS
    assert len(set(orientations)) == 8
    for orientation in orientations:
        turned = np.swapaxes(thumbs, 1, 2) if orientation.transposed else thumbs
        turned = np.flip(turned, 1) if orientation.flipped_vertically else turned
        turned = np.flip(turned, 2) if orientation.flipped_horizontally else turned
        assert np.array_equal(orientation.apply_to_images(thumbs), turned)
        expected = compute_perceptual_hashes(turned.reshape(100, 256), every)
        assert np.array_equal(orientation.apply_to_hashes(hashes), expected)
    assert np.array_equal(orientations[0].apply_to_images(thumbs), thumbs)


def smooth(seed: int, count: int, side: int) -> NDArray[np.uint8]:
    """Images `(count, side, side)` of large shapes, from 0 to 255."""
    found = np.random.default_rng(seed).normal(size=(count, side, side)).cumsum(axis=1).cumsum(axis=2)
    lowest, highest = found.min(axis=(1, 2), keepdims=True), found.max(axis=(1, 2), keepdims=True)
    return np.round((found - lowest) / (highest - lowest) * 255).astype(np.uint8)


@pytest.mark.parametrize("at_once", [2, None])
def test_bits_of_a_hash_are_the_signs_of_the_lowest_frequencies_of_scipy(
    at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if at_once:
        monkeypatch.setattr(near_duplicates, "HASH_BATCH_SIZE", at_once)
    thumbs = np.concatenate([smooth(1, 6, 16), np.zeros((1, 16, 16), np.uint8)]).reshape(-1, 256)
    indices = np.array([6, 4, 0, 1, 5], np.int32)
    waves = dctn(thumbs[indices].reshape(-1, 16, 16).astype(float), axes=(1, 2))[:, :8, :8].reshape(-1, 64)
    clear = np.abs(waves) > 0.01  # but for rounding
    found = [[int(each) >> bit & 1 for bit in range(64)] for each in compute_perceptual_hashes(thumbs, indices)]
    assert np.array_equal(np.array(found, bool)[clear], (waves > 0)[clear])
    assert found[0] == [0] * 64, "a black image has no frequency"


def test_vectors_of_mean_0_and_length_1_give_the_correlations_of_numpy() -> None:
    vectors = np.random.default_rng(2).normal(5, [[0.001], [1], [300]], (3, 20)).astype(np.float32)
    unit = _normalize_vectors(vectors)
    assert unit @ unit.T == pytest.approx(np.corrcoef(vectors.astype(float)), abs=1e-3)
    assert np.array_equal(_normalize_vectors(np.full((2, 9), 7, np.float32)), np.zeros((2, 9)))


def test_the_best_overlay_is_the_best_correlation_with_a_part_that_numpy_interpolates() -> None:
    wholes, crops = smooth(3, 3, 16).astype(np.float32), smooth(3, 4, 16)[1:].astype(np.float32)
    expected = []
    for whole, crop in zip(wholes, crops, strict=True):
        found = []
        for size in (0.98, 0.96, 0.94, 0.92, 0.90, 0.88):
            axes = [begin + size * (np.arange(16) + 0.5) - 0.5 for begin in np.array([0, 0.5, 1]) * (1 - size) * 16]
            for rows in axes:
                tall = np.stack([np.interp(rows, np.arange(16), column) for column in whole.T], axis=1)
                for columns in axes:
                    part = np.stack([np.interp(columns, np.arange(16), row) for row in tall])
                    found.append(np.corrcoef(part.ravel(), crop.ravel())[0, 1])
        expected.append(max(found))
    assert _compute_best_crop_correlation(wholes.reshape(3, 256), crops.reshape(3, 256)) == pytest.approx(
        expected, abs=1e-4
    )
    assert len(set(np.round(expected, 3))) == 3


def as_thumb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BOX)).ravel()


def found_pairs(
    thumbs: NDArray[np.uint8], *, correlations: list[float], crop: float, groups: list[int] | None = None
) -> list[tuple[int, int]]:
    """Near-duplicates whose hashes may differ in any number of bits, but in none if one is turned."""
    return list(
        find_near_duplicate_pairs(
            lambda numbers: thumbs[numbers],
            compute_perceptual_hashes(thumbs, np.arange(len(thumbs), dtype=np.int32)),
            max_bits=64,
            max_rotated_bits=-1,
            min_correlation_per_image=np.array(correlations, np.float32),
            min_crop_correlation=crop,
            find_groups=lambda numbers: np.array(groups or range(len(thumbs)), np.int32)[numbers],
        )
    )


@pytest.mark.parametrize("at_once", [1, 2, None])
def test_pairs_are_those_of_two_groups_that_correlate_as_the_stricter_image_requires(
    at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if at_once:
        monkeypatch.setattr(near_duplicates, "PAIR_BATCH_SIZE", at_once)
    thumbs = smooth(5, 7, 16).reshape(7, 256)
    required, groups = [0.1, 0.2, 0.3, 0.6, 0.5, 0.4, 0.9], [0, 1, 2, 2, 4, 0, 6]
    known = np.corrcoef(thumbs.astype(float))
    expected = [
        (one, other)
        for one, other in combinations(range(7), 2)
        if groups[one] != groups[other] and known[one, other] >= max(required[one], required[other])
    ]
    assert sorted(found_pairs(thumbs, correlations=required, crop=0, groups=groups)) == expected
    assert 2 < len(expected) < 15


def test_a_crop_is_aligned_whichever_of_the_two_it_is_unless_more_is_required() -> None:
    whole = smooth(6, 1, 400)[0]
    thumbs = np.stack([as_thumb(whole), as_thumb(np.ascontiguousarray(whole[40:, :360]))])
    direct = np.corrcoef(thumbs.astype(float))[0, 1]
    a, b = thumbs[:1].astype(np.float32), thumbs[1:].astype(np.float32)
    aligned = float(_compute_best_crop_correlation(a, b)[0])
    assert 0.7 < direct < aligned - 0.01
    assert _compute_best_crop_correlation(b, a)[0] < aligned - 0.001
    between = (direct + aligned) / 2
    for order in ([0, 1], [1, 0]):
        for crop, required, expected in [
            (aligned - 1e-4, between, [(0, 1)]),
            (aligned + 1e-4, between, []),
            (between, between - 1e-3, [(0, 1)]),
            (between, between, []),  # as much as of a crop is required: not aligned
            (between, between + 1e-3, []),
        ]:
            assert found_pairs(thumbs[order], correlations=[0, required], crop=np.float32(crop)) == expected


def test_thumbnails_that_hardly_correlate_are_not_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    thumbs = smooth(7, 2, 16).reshape(2, 256)
    monkeypatch.setattr(near_duplicates, "_compute_best_crop_correlation", lambda a, b: np.ones(len(a), np.float32))
    direct = float(np.vecdot(*_normalize_vectors(thumbs.astype(np.float32))))
    found = []
    for limit in (direct - 1e-6, direct, direct + 1e-6):
        monkeypatch.setattr(near_duplicates, "MIN_ALIGN_CORRELATION", np.float32(limit))
        found.append(found_pairs(thumbs, correlations=[0.9, 0.9], crop=0.95))
    assert found == [[(0, 1)], [(0, 1)], []]
