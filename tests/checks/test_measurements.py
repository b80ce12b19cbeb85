"""What is measured of an image, against NumPy, at the bounds of each measurement."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mlimages.checks import measurements
from mlimages.checks.measurements import (
    Measurements,
    _choose_decode_options,
    _compute_luma_statistics,
    _is_gray,
    _measure_gray_bottom_percent,
    _measure_sharpness,
    make_measurement_table,
    measure_image,
)
from mlimages.images import DecodeOptions, ImageHeader
from tests.checks.test_validation import scene
from tests.images.odd_images import saved


def measure(image: Image.Image) -> Measurements:
    return measure_image(saved(image, "TIFF" if image.mode in "IF" else "PNG"), max_pixels=10**7)


def of_levels(*counts: tuple[int, int]) -> Image.Image:
    """A row of pixels: so many of each level."""
    return Image.fromarray(np.repeat(*np.array(counts).T).astype(np.uint8)[None])


@pytest.mark.parametrize(
    ("counts", "low", "typical", "high"),
    [
        ([(10, 1), (90, 199)], 90, 90, 90),  # a level counts from 2 % of the pixels
        ([(10, 4), (90, 196)], 10, 90, 90),
        ([(10, 3), (90, 197)], 90, 90, 90),
        ([(10, 5), (90, 195)], 10, 90, 90),
        ([(10, 197), (90, 3)], 10, 10, 10),
        ([(10, 196), (90, 4)], 10, 10, 10),  # 98 % are not above 10
        ([(10, 195), (90, 5)], 10, 10, 90),
        ([(10, 99), (90, 101)], 10, 90, 90),
        ([(10, 100), (90, 100)], 10, 10, 90),
        ([(0, 4), (1, 96), (254, 96), (255, 4)], 0, 1, 254),
    ],
)
def test_percentiles_are_the_smallest_levels_that_hold_the_share(
    counts: list[tuple[int, int]], low: int, typical: int, high: int
) -> None:
    luma = of_levels(*counts)
    found = np.percentile(np.asarray(luma), [2, 50, 98], method="inverted_cdf")
    assert list(found) == [low, typical, high], "as NumPy defines them"
    assert _compute_luma_statistics(luma)[:3] == (low, high, typical)


@pytest.mark.parametrize("seed", range(5))
def test_luma_is_measured_as_numpy_measures_it(seed: int) -> None:
    image = scene(seed, width=130, height=131).convert("L")
    levels = np.asarray(image)
    low, typical, high = np.percentile(levels, [2, 50, 98], method="inverted_cdf")
    counts = np.sort(np.bincount(levels.ravel(), minlength=256))
    assert _compute_luma_statistics(image) == (low, high, typical, pytest.approx(counts[-2:].sum() / levels.size))
    measurements = measure(image)
    assert (measurements.luma_p2, measurements.luma_p98, measurements.luma_median) == (low, high, typical)
    assert _compute_luma_statistics(of_levels((7, 30)))[3] == 1.0, "one level alone"


def test_means_and_thumbnail_are_those_of_the_pixels() -> None:
    image = scene(3, width=32, height=32)
    measurements = measure(image)
    means = np.asarray(image).reshape(-1, 3).mean(axis=0)
    assert [measurements.red_mean, measurements.green_mean, measurements.blue_mean] == pytest.approx(means, abs=0.51)
    assert len(set(np.round(means))) == 3
    blocks = np.asarray(image.convert("L"), float).reshape(16, 2, 16, 2).mean(axis=(1, 3))
    thumbnail = np.frombuffer(measurements.thumbnail, np.uint8).reshape(16, 16)
    assert thumbnail == pytest.approx(blocks, abs=1)  # rounded twice


def sharpness_of_every_third_row(levels: NDArray[np.uint8], step: int) -> float:
    """Differences of neighbours over those of pixels two apart, in groups of three rows, one group per `step` rows."""
    near, far = [0.0, 0.0], [0.0, 0.0]
    for top in range(0, len(levels) - step + 1, step):
        rows = levels[top : top + 3].astype(float)
        near[0] += np.square(np.diff(rows, axis=0)).sum() / 2
        near[1] += np.square(np.diff(rows, axis=1)).sum() / 3
        far[0] += np.square(rows[2] - rows[0]).sum()
        far[1] += np.square(rows[:, 2:] - rows[:, :-2]).sum() / 3
    return sum(near) / sum(far)


@pytest.mark.parametrize(
    ("width", "height", "step"),
    [(40, 30, 3), (40, 31, 3), (20, 127, 3), (20, 128, 18), (20, 129, 18), (127, 127, 5), (83, 40, 3), (84, 40, 3),
     (303, 33, 3), (334, 30, 4), (300, 200, 19), (600, 128, 24), (4000, 5, 5), (4000, 3, 3)],
)  # fmt: skip
def test_sharpness_is_the_energy_of_near_over_that_of_far_differences(width: int, height: int, step: int) -> None:
    image = scene(width + height, width=width, height=height).convert("L")
    found = _measure_sharpness(image)
    assert found == pytest.approx(sharpness_of_every_third_row(np.asarray(image), step), rel=1e-5)


def test_sharpness_is_025_of_a_smooth_image_05_of_edges_and_1_of_noise() -> None:
    x = np.arange(120)
    ramp = np.add.outer(x, x)
    edges = np.where(np.add.outer(x // 12 % 2, x // 12 % 2) == 1, 200, 20)
    noise = np.random.default_rng(0).integers(0, 256, (120, 120))
    found = [_measure_sharpness(Image.fromarray(each.astype(np.uint8))) for each in (ramp, edges, noise)]
    assert found == pytest.approx([0.25, 0.5, 1.0], abs=0.02)
    assert _measure_sharpness(Image.new("L", (50, 40), 7)) == 1.0, "no differences at all"


@pytest.mark.parametrize(
    "size", [(100, 99), (101, 99), (300, 200), (2000, 128), (129, 4000), (1, 1), (2, 2), (9000, 3)]
)
def test_no_vector_is_long_enough_for_the_threads_of_openblas(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    monkeypatch.setattr(
        measurements, "_compute_sum_of_squares", lambda differences: lengths.append(differences.size) or 1.0
    )
    _measure_sharpness(Image.new("L", size))
    assert max(lengths) <= max(measurements.MAX_ONE_THREAD_LENGTH, 3 * size[0]), "at least three rows are taken"


def chroma(rgb: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cb and Cr of JFIF 1.02 `(n, 2)`."""
    weights = np.array([[-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]])
    return rgb @ weights.T + 128


def test_an_image_is_grey_if_cb_and_cr_are_within_2_of_128() -> None:
    around = np.stack(np.meshgrid(*[np.arange(-7, 8)] * 3), axis=-1).reshape(-1, 3)
    rgb = np.random.default_rng(0).permutation(around)[:900] + 100
    levels = chroma(rgb)
    clear = (np.abs(levels - np.rint(levels)) > 0.03).all(axis=1)  # but for the precision of Pillow, which rounds down
    expected = ((np.floor(levels) >= 126) & (np.floor(levels) <= 130)).all(axis=1)
    assert {125, 126, 130, 131} <= set(np.floor(levels[clear]).ravel())
    found = [_is_gray(Image.new("RGB", (4, 4), tuple(each))) for each in rgb.tolist()]
    assert np.array_equal(np.array(found)[clear], expected[clear])


def test_one_coloured_pixel_is_no_grey_image() -> None:
    image = Image.new("RGB", (32, 32), (99, 99, 99))
    image.putpixel((31, 5), (99, 80, 130))
    assert not measure(image).grayscale


@pytest.mark.parametrize(
    ("mode", "grey"),
    [("1", True), ("L", True), ("LA", True), ("I;16", True), ("I", True), ("F", True), ("P", False), ("RGB", False),
     ("RGBA", False)],
)  # fmt: skip
def test_modes_without_colour_are_grey_whatever_they_hold(mode: str, grey: bool) -> None:
    image = scene(1, width=40, height=40)
    luma = np.asarray(image.convert("L"))
    deep = {"I;16": luma.astype(np.uint16) * 250, "F": luma.astype(np.float32) / 255}
    assert measure(Image.fromarray(deep[mode]) if mode in deep else image.convert(mode)).grayscale is grey
    if mode in ("P", "RGB", "RGBA"):
        assert measure(scene(1, width=40, height=40).convert("L").convert(mode)).grayscale


@pytest.mark.parametrize(
    ("level", "is_flat"),
    [((128, 128, 128), True), ((122, 128, 134), True), ((134, 122, 122), True), ((121, 128, 128), False),
     ((128, 135, 128), False), ((128, 128, 121), False), ((135, 128, 128), False), ((128, 121, 128), False),
     ((128, 128, 135), False)],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["RGB", "RGBX"])
def test_levels_within_6_of_128_are_flat(level: tuple[int, int, int], is_flat: bool, mode: str) -> None:
    image = scene(2, width=40, height=50)
    image.paste(level, (0, 40, 40, 50))
    if mode == "RGBX":  # as the strict decoder returns
        image = Image.merge("RGBX", [*image.split(), Image.new("L", image.size, 255)])
    assert _measure_gray_bottom_percent(image) == (20 if is_flat else 0)


@pytest.mark.parametrize(("column", "channel"), [(0, 1), (17, 0), (17, 2), (39, 1)])
@pytest.mark.parametrize(("rows", "percent"), [(0, 0), (1, 1), (2, 3), (3, 4), (31, 50), (32, 51), (61, 98), (62, 100)])
def test_flat_rows_are_counted_from_the_bottom_up_to_the_first_other_value(
    rows: int, percent: int, column: int, channel: int
) -> None:
    pixels = np.asarray(scene(2, width=40, height=62)).copy()
    pixels[62 - rows :] = 128
    pixels[5:9] = 128  # above others: does not count
    if rows < 62:
        pixels[61 - rows] = 128
        pixels[61 - rows, column, channel] = 135
    assert _measure_gray_bottom_percent(Image.fromarray(pixels)) == percent


@pytest.mark.parametrize(
    ("size", "min_size"),
    [((300, 127), (300, 127)), ((300, 255), (300, 255)), ((300, 256), (150, 128)), ((301, 257), (150, 128)),
     ((257, 301), (128, 150)), ((900, 383), (450, 191)), ((900, 384), (300, 128)), ((1, 1), (1, 1))],
)  # fmt: skip
def test_an_image_is_measured_at_128_pixels_or_more(size: tuple[int, int], min_size: tuple[int, int]) -> None:
    options = _choose_decode_options(ImageHeader("JPEG", "RGB", size, False))
    assert options == DecodeOptions(min_size=min_size, min_reduced_side_px=128, strict=True, apply_orientation=False)


def test_measurements_are_read_as_they_were_packed() -> None:
    measurements = measure(scene(4, width=40, height=50))._replace(
        format="JPEG2000", mode="I;16BS12", width=70_001, height=2**32 - 1, orientation=8, animated=True,
        irregular_jpeg=True, two_level_fraction=0.125, gray_bottom_percent=99, sharpness=0.75,
    )  # fmt: skip
    (row,) = make_measurement_table([measurements.pack()])
    found = Measurements(*row.tolist())
    assert found._replace(format="JPEG2000", mode="I;16BS12", thumbnail=measurements.thumbnail) == measurements
    assert (found.format, found.mode, row["thumbnail"].tobytes()) == (b"JPEG2000", b"I;16BS12", measurements.thumbnail)
