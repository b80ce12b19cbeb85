"""Every threshold of a check, with a value just below it, at it and just above it."""

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mlimages.checks import Code, Thresholds, check, rules
from mlimages.checks.cache import CheckCache
from mlimages.checks.image_table import ImageTable
from mlimages.checks.leaks import find_duplicate_groups
from mlimages.checks.measurements import make_measurement_table
from mlimages.checks.near_duplicates import (
    _compute_best_crop_correlation,
    _normalize_vectors,
    compute_perceptual_hashes,
)
from mlimages.checks.rules import apply_class_rules
from mlimages.core import InputError, LabeledPath
from mlimages.labels import LabelFile
from tests.checks.test_rules import ORDINARY, table_of
from tests.checks.test_validation import jpeg, listed, scene
from tests.conftest import RunCli

DIM = {"red_mean": 20, "green_mean": 20, "blue_mean": 63}

SINGLE = {
    # code, the measured values below, at and above the threshold, and which of them have the code
    "max_pixels": (100, Code.TOO_MANY_PIXELS, [{"width": n, "height": 1} for n in (99, 100, 101)], "--x"),
    "min_side_px": (32, Code.TINY, [{"width": 90, "height": n} for n in (31, 32, 33)], "x--"),
    "max_aspect": (3.0, Code.ODD_SHAPE, [{"width": n, "height": 100} for n in (299, 300, 301)], "--x"),
    "max_crop_loss": (0.5, Code.CROP_LOSS, [{"width": n, "height": 100} for n in (199, 200, 201)], "--x"),
    "blank_spread": (4, Code.BLANK, [{"luma_p2": 100, "luma_p98": n} for n in (103, 104, 105)], "xx-"),
    "contrast_spread": (40, Code.LOW_CONTRAST, [{"luma_p2": 100, "luma_p98": n} for n in (139, 140, 141)], "xx-"),
    "dark_level": (64, Code.DARK, [{"luma_p2": 0, "luma_p98": n} | DIM for n in (63, 64, 65)], "x--"),
    "bright_level": (225, Code.BRIGHT, [{"luma_p2": n, "luma_p98": 255} for n in (224, 225, 226)], "--x"),
    "blur": (0.3, Code.BLURRED, [{"sharpness": x} for x in (0.299, 0.3, 0.301)], "x--"),
    "placeholder_share": (0.8, Code.PLACEHOLDER, [{"two_level_fraction": x} for x in (0.799, 0.8, 0.801)], "-xx"),
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_threshold_of_single_images(name: str) -> None:
    value, code, measured, expected = SINGLE[name]
    assert getattr(Thresholds(), name) == value or name == "max_pixels", "the default is what is tried"
    thresholds = Thresholds(**{name: value})
    measurements = make_measurement_table([ORDINARY._replace(**values).pack() for values in measured])  # type: ignore[arg-type]
    assert (
        "".join("x" if found else "-" for found in rules.RULES[code].compute_mask(measurements, thresholds)) == expected
    )


@pytest.mark.parametrize(("copies", "expected"), [(4, False), (5, True), (6, True)])
def test_the_threshold_of_copies_of_a_placeholder(tmp_path: Path, copies: int, expected: bool) -> None:
    labels = listed(tmp_path, {f"{n}.jpg": jpeg(scene(1)) for n in range(copies)})
    report = check(labels)
    assert (report.warnings.get("placeholder", 0) == copies) is expected


@pytest.mark.parametrize(("largest", "expected"), [(9, False), (10, False), (11, True)])
def test_the_threshold_of_imbalance(tmp_path: Path, largest: int, expected: bool) -> None:
    items = [LabeledPath(Path("a.jpg"), 0)] * largest + [LabeledPath(Path("b.jpg"), 1)]
    table = ImageTable.from_files([LabelFile(tmp_path / "a.txt", items=lambda: items, class_names=("many", "few"))])
    assert bool(list(apply_class_rules(table, Thresholds()))) is expected


def is_near(one: NDArray[np.uint8], other: NDArray[np.uint8], thresholds: Thresholds, **measurements: float) -> bool:
    """Whether images with these thumbnails `(256,)` are near-duplicates."""
    table = table_of([{**measurements, "thumbnail": thumb.tobytes()} for thumb in (one, other)])
    table.digests[:, 1] = 1, 2
    with CheckCache() as cache:
        return find_duplicate_groups(table, thresholds, cache).list_sets_of_several() == [[0, 1]]


def thumb(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BOX)).ravel()


def bits_apart(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    hashes = compute_perceptual_hashes(np.stack([one, other]), np.arange(2, dtype=np.int32))
    return int(np.bitwise_count(hashes[0] ^ hashes[1]))


def correlation(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.vecdot(*(_normalize_vectors(thumb.astype(np.float32)) for thumb in (one, other))))


def noisy_pair(strength: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    one = thumb(scene(1))
    noise = np.random.default_rng(0).normal(0, strength, 256)
    return one, np.clip(one + noise, 0, 255).astype(np.uint8)


ANY = Thresholds(near_bits=64, turned_bits=0, near_correlation=0, crop_correlation=1, plain_correlation=0)


def test_the_threshold_of_hash_bits() -> None:
    one, other = noisy_pair(20)
    bits = bits_apart(one, other)
    assert 0 < bits < 64
    found = [is_near(one, other, replace(ANY, near_bits=bits + step)) for step in (-1, 0, 1)]
    assert found == [False, True, True]


def test_the_threshold_of_hash_bits_of_flipped_images() -> None:
    one, other = noisy_pair(20)
    bits, flipped = bits_apart(one, other), other.reshape(16, 16)[:, ::-1].ravel()
    assert bits_apart(one, flipped) > bits
    thresholds = replace(ANY, near_bits=0, near_correlation=0.5)
    found = [is_near(one, flipped, replace(thresholds, turned_bits=bits + step)) for step in (-1, 0, 1)]
    assert found == [False, True, True]
    assert (Thresholds().near_bits, Thresholds().turned_bits) == (16, 12)


def around(value: float) -> Iterator[float]:
    yield from (math.nextafter(value - 1e-6, 0), value, value + 1e-6)


def test_the_threshold_of_correlation() -> None:
    one, other = noisy_pair(20)
    found = [is_near(one, other, replace(ANY, near_correlation=x)) for x in around(correlation(one, other))]
    assert found == [True, True, False]


@pytest.mark.parametrize("measurements", [{"sharpness": 0.25}, {"two_level_fraction": 0.5}, {"height": 31}], ids=str)
def test_the_threshold_of_correlation_of_images_with_little_detail(measurements: dict[str, float]) -> None:
    one, other = noisy_pair(20)
    measured = correlation(one, other)
    found = [is_near(one, other, replace(ANY, plain_correlation=x), **measurements) for x in around(measured)]
    assert found == [True, True, False]


def test_the_threshold_of_correlation_of_crops() -> None:
    image = scene(3)
    one, other = thumb(image), thumb(image.crop((0, 0, 276, 184)))
    a, b = one[None].astype(np.float32), other[None].astype(np.float32)
    aligned = float(max(_compute_best_crop_correlation(a, b)[0], _compute_best_crop_correlation(b, a)[0]))
    unaligned = correlation(one, other)
    assert 0.7 < unaligned < aligned < 1
    thresholds = replace(ANY, near_correlation=(unaligned + aligned) / 2)
    found = [is_near(one, other, replace(thresholds, crop_correlation=x)) for x in around(aligned)]
    assert found == [True, True, False]


TESTED = {
    *SINGLE, "placeholder_copies", "imbalance", "near_bits", "turned_bits", "near_correlation", "plain_correlation",
    "crop_correlation",
}  # fmt: skip


def test_every_threshold_has_its_test() -> None:
    assert {field.name for field in fields(Thresholds)} == TESTED


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("blurr=0.3", "expected NAME=VALUE, where NAME is one of max_pixels"),
        ("blur=", "expected NAME=VALUE, where NAME is one of max_pixels"),
        ("near_bits=1.5", "'1.5' is not a whole number"),
        ("near_bits=65", "near_bits is 65: it must be from 0 to 64"),
        ("max_crop_loss=-0.1", "max_crop_loss is -0.1: it must be from 0 to 1"),
        ("imbalance=nan", "imbalance is nan: it must be at least 1"),
    ],
)
def test_a_threshold_that_cannot_be_is_an_error(setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Thresholds.parse([setting])


def test_help_all_lists_every_threshold_with_its_default(run_cli: RunCli) -> None:
    short, long = run_cli("check", "--help").stdout, run_cli("check", "--help-all").stdout
    for field in fields(Thresholds):
        assert f"{field.name}={field.default}" in long
    assert "Override a threshold" in short
    assert "near_bits=16" not in short


@pytest.mark.parametrize(
    ("count", "median", "blur"),
    [(29, 0.27, 0.30), (30, 0.27, 0.26), (31, 0.27, 0.26), (100, 0.34, 0.295), (100, 0.35, 0.30), (100, 0.36, 0.30),
     (100, 0.47, 0.30), (100, 0.25, 0.25)],
)  # fmt: skip
def test_in_a_set_of_soft_images_only_those_much_softer_are_blurred(count: int, median: float, blur: float) -> None:
    assert Thresholds().adapt_to_sharpness(count, median).blur == pytest.approx(blur)
    assert Thresholds(blur=0.35).adapt_to_sharpness(count, median).blur == 0.35  # given by hand


@pytest.mark.parametrize(
    ("count", "fewer"),
    [
        (0, 0),
        (20_000, 0),
        (29_355, 0),
        (29_356, 1),
        (63_245, 1),
        (63_246, 2),
        (200_000, 3),
        (1_000_000, 5),
        (10**9, 14),
    ],
)
def test_among_more_images_the_hash_must_agree_more_closely(count: int, fewer: int) -> None:
    """By 3 bits per factor of ten above 20,000, rounded: 20,000 * 10 ** (1 / 6) is 29,355.98."""
    found = Thresholds().adapt_to_size(count)
    assert found == Thresholds(near_bits=16 - fewer, turned_bits=max(0, 12 - fewer))
    found = Thresholds(near_bits=1, turned_bits=2).adapt_to_size(count)
    assert (found.near_bits, found.turned_bits) == (max(0, 1 - fewer), max(0, 2 - fewer))


def test_two_codes_concern_classes_and_all_others_images() -> None:
    assert [code for code in Code if code.is_class_level] == [Code.CLASS_IMBALANCE, Code.CLASS_BLURRED]
