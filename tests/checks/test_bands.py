"""The search for close hashes by bands, against comparing all pairs; and how parts of thumbnails are interpolated."""

from itertools import combinations

import numpy as np
import pytest

from mlimages.checks import near_duplicates
from mlimages.checks.near_duplicates import (
    CROP_SIZES,
    ORIENTATIONS,
    _close_pairs,
    _expand_ranges,
    _windows,
    perceptual_hashes,
)


@pytest.mark.parametrize("at_once", [7, 1 << 14])
@pytest.mark.parametrize("max_bits", [0, 3, 6])
@pytest.mark.parametrize("is_large", [False, True])
def test_every_close_pair_is_found_once(
    max_bits: int, at_once: int, is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_duplicates, "BATCH_SIZE", at_once)
    if is_large:
        monkeypatch.setattr(near_duplicates, "LOOKUP_COST", 0)
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
    found = [
        pair
        for ones, others in _close_pairs(rotated, hashes, max_bits)
        for pair in zip(ones.tolist(), others.tolist(), strict=True)
    ]
    assert sorted(found) == expected
    assert max_bits == 0 or len(expected) > 10


@pytest.mark.parametrize("at_once", [1, 5, 100])
def test_ranges_are_expanded_whole_whatever_is_done_at_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "BATCH_SIZE", at_once)
    ones, first, count = np.array([4, 7, 9, 2, 5]), np.array([10, 20, 30, 40, 50]), np.array([3, 0, 6, 1, 0])
    parts = list(_expand_ranges(ones, first, count))
    found = [pair for one, other in parts for pair in zip(one.tolist(), other.tolist(), strict=True)]
    assert found == [(4, 10), (4, 11), (4, 12), *((9, n) for n in range(30, 36)), (2, 40)]
    assert at_once > 1 or max(len(one) for one, _ in parts) == 6, "no range is divided"


def test_windows_interpolate_the_start_the_middle_and_the_end_of_an_axis() -> None:
    windows = _windows()
    assert windows.shape == (len(CROP_SIZES), 3, 16, 16)
    assert windows.sum(axis=3) == pytest.approx(1)
    ramp = np.arange(16) + 0.5  # the centre of each pixel
    for number, size in enumerate(CROP_SIZES):
        for offset, begin in enumerate((0, (1 - size) * 8, (1 - size) * 16)):
            expected = np.clip(begin + size * ramp, 0.5, 15.5)
            assert windows[number, offset] @ ramp == pytest.approx(expected, abs=1e-5)


def test_every_orientation_turns_thumbnails_and_their_hashes_alike() -> None:
    smooth = np.random.default_rng(4).normal(size=(5, 16, 16)).cumsum(axis=1).cumsum(axis=2)
    lowest, highest = smooth.min(axis=(1, 2), keepdims=True), smooth.max(axis=(1, 2), keepdims=True)
    thumbs = ((smooth - lowest) / (highest - lowest) * 255).astype(np.uint8)
    hashes = perceptual_hashes(thumbs.reshape(5, 256), np.arange(5, dtype=np.int32))
    assert len(set(ORIENTATIONS)) == 8
    for orientation in ORIENTATIONS:
        turned = np.swapaxes(thumbs, 1, 2) if orientation.transposed else thumbs
        turned = np.flip(turned, 1) if orientation.upside_down else turned
        turned = np.flip(turned, 2) if orientation.mirrored else turned
        assert np.array_equal(orientation.of_thumbs(thumbs.reshape(5, 256)), turned.reshape(5, 256))
        expected = perceptual_hashes(np.ascontiguousarray(turned).reshape(5, 256), np.arange(5, dtype=np.int32))
        assert np.bitwise_count(orientation.of_hashes(hashes) ^ expected).max() <= 2, "but for rounding"
        assert orientation.is_original == (orientation == ORIENTATIONS[0])
