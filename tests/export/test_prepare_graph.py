"""The graph inside an exported file prepares pixels as `images.prepare` does."""

import itertools

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from mlimages import images
from mlimages.core import ImageProperty
from mlimages.export.preprocessing_graph import prepare_graph
from mlimages.inference.session import at_fixed_point
from tests.deploying import picture

SIZES = [
    (500, 375), (375, 500), (100, 300), (300, 1000), (1000, 300), (200, 640), (256, 256), (333, 223), (40, 30),
    (30, 40), (96, 80), (7, 5), (501, 640), (225, 1200), (97, 81), (99, 83),
]  # fmt: skip
PROPS = {
    "shorter": ImageProperty(96, 80, shorter_px=112),
    "shorter odd": ImageProperty(95, 80, shorter_px=100),
    "crop": ImageProperty(96, 80, resize="crop"),
    "downscale": ImageProperty(96, 80, resize="downscale"),
    "position": ImageProperty(96, 80, resize="position", position=(11, 3)),
    "position outside": ImageProperty(96, 80, resize="position", position=(-20, -7)),
    "squash": ImageProperty(96, 80, resize="squash"),
    "letterbox": ImageProperty(96, 80, resize="letterbox"),
}


def with_looks(name: str, *, gray: bool, bicubic: bool) -> ImageProperty:
    prop = PROPS[name]
    return ImageProperty(
        prop.width, prop.height, resize=prop.resize, shorter_px=prop.shorter_px, position=prop.position,
        interpolation="bicubic" if bicubic else "bilinear", gray_scale=gray,
    )  # fmt: skip


def off_by(prop: ImageProperty, *, exact: bool) -> tuple[int, float]:
    """Greatest difference in levels over all sizes, and the share of values that differ."""
    session = ort.InferenceSession(prepare_graph(prop, opset=20, ir_version=10, exact=exact).SerializeToString())

    def graph(pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
        return np.asarray(session.run(None, {"image": pixels})[0][0], np.int16)

    differences = []
    for number, size in enumerate(SIZES):
        whole = picture(number, *size)
        want = images.prepare(whole, prop)
        differences.append(np.abs(graph(np.asarray(whole)[None]) - want).ravel())
        assert (graph(at_fixed_point([want], prop)) == want).all(), "prepared pixels must pass unchanged"
    together = np.concatenate(differences)
    return int(together.max()), float((together > 0).mean())


CASES = list(itertools.product(PROPS, (False, True), (False, True)))


@pytest.mark.parametrize(("name", "gray", "bicubic"), CASES)
def test_the_exact_graph_gives_pillows_pixels_to_the_bit(name: str, gray: bool, bicubic: bool) -> None:
    assert off_by(with_looks(name, gray=gray, bicubic=bicubic), exact=True) == (0, 0.0)


@pytest.mark.parametrize(("name", "gray", "bicubic"), CASES)
def test_the_fast_graph_is_a_level_off_at_most_on_few_values(name: str, gray: bool, bicubic: bool) -> None:
    worst, share = off_by(with_looks(name, gray=gray, bicubic=bicubic), exact=False)
    assert worst <= (2 if bicubic else 1)
    assert share < 0.01
