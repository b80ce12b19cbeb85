"""The preprocessing inside an exported file computes what `images.prepare_pixels` computes."""

import itertools

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from PIL import Image

from mlimages import images
from mlimages.core import ImageProperty
from mlimages.export.preprocessing_graph import ResizeImplementation, build_preprocessing_graph
from mlimages.inference.session import to_graph_input
from tests.deploying import made_image

SIZES = [
    (500, 375), (375, 500), (100, 300), (300, 1000), (1000, 300), (200, 640), (256, 256), (333, 223), (40, 30),
    (30, 40), (96, 80), (7, 5), (501, 640), (225, 1200), (97, 81), (99, 83),
]  # fmt: skip
QUIET = ort.SessionOptions()
QUIET.log_severity_level = 3  # inlined functions leave constants that ONNX Runtime warns of
PROPS = {
    "shorter": ImageProperty(96, 80, shorter_px=112),
    "shorter odd": ImageProperty(95, 80, shorter_px=100),
    "crop": ImageProperty(96, 80, resize="crop"),
    "downscale": ImageProperty(96, 80, resize="downscale"),
    "position": ImageProperty(96, 80, resize="position", position=(11, 3)),
    "position outside": ImageProperty(96, 80, resize="position", position=(60, 47)),
    "squash": ImageProperty(96, 80, resize="squash"),
    "letterbox": ImageProperty(96, 80, resize="letterbox"),
}


def geometry(name: str, *, gray: bool, bicubic: bool) -> ImageProperty:
    prop = PROPS[name]
    return ImageProperty(
        prop.width, prop.height, resize=prop.resize, shorter_px=prop.shorter_px, position=prop.position,
        interpolation="bicubic" if bicubic else "bilinear", gray_scale=gray,
    )  # fmt: skip


def difference(prop: ImageProperty, form: ResizeImplementation) -> tuple[int, float]:
    """Largest difference in levels over all sizes, and the share of values that differ."""
    model = build_preprocessing_graph(prop, resize_implementation=form)
    session = ort.InferenceSession(model.SerializeToString(), QUIET)

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
        return np.asarray(session.run(None, {"image": pixels})[0][0], np.int16)

    differences = []
    for number, size in enumerate(SIZES):
        image = made_image(number, *size)
        expected = images.prepare_pixels(image, prop)
        differences.append(np.abs(run(np.asarray(image)[None]) - expected).ravel())
        assert (run(to_graph_input([expected], prop)) == expected).all(), "preprocessed images must pass unchanged"
    levels = np.concatenate(differences)
    return int(levels.max()), float((levels > 0).mean())


CASES = list(itertools.product(PROPS, (False, True), (False, True)))


@pytest.mark.parametrize(("name", "gray", "bicubic"), CASES)
def test_the_exact_resize_equals_pillows_bit_for_bit(name: str, gray: bool, bicubic: bool) -> None:
    assert difference(geometry(name, gray=gray, bicubic=bicubic), "exact") == (0, 0.0)


@pytest.mark.parametrize(("name", "gray", "bicubic"), CASES)
def test_the_fast_resize_differs_by_at_most_one_level_for_few_values(name: str, gray: bool, bicubic: bool) -> None:
    worst, share = difference(geometry(name, gray=gray, bicubic=bicubic), "operator")
    two_roundings = bicubic or name == "downscale"  # which scales both sides by little
    assert worst <= (2 if two_roundings else 1)
    assert share < 0.01


@pytest.mark.parametrize("name", PROPS)
@pytest.mark.parametrize("bicubic", [False, True])
def test_the_portable_resize_differs_by_few_levels(name: str, bicubic: bool) -> None:
    worst, share = difference(geometry(name, gray=False, bicubic=bicubic), "portable")
    assert worst <= (3 if bicubic else 2)  # a bicubic filter overshoots, and levels are cut off between the passes
    assert share < 0.15


def test_openvino_computes_the_portable_resize_even_in_bfloat16() -> None:
    """The forms for ONNX Runtime are up to 255 levels off there."""
    pytest.importorskip("openvino")
    import openvino

    prop = geometry("squash", gray=False, bicubic=True)
    model = build_preprocessing_graph(prop, resize_implementation="portable").SerializeToString()
    core = openvino.Core()
    for precision in ("f32", "bf16"):
        run = core.compile_model(core.read_model(model, b""), "CPU", {"INFERENCE_PRECISION_HINT": precision})
        for number, size in enumerate(SIZES[:5]):
            image = made_image(number, *size)
            pixels = np.asarray(run(np.asarray(image)[None])[0][0], np.int16)
            assert np.abs(pixels - images.prepare_pixels(image, prop)).max() <= 3


def test_openvino_makes_the_gray_of_pillow() -> None:
    """It rounds the quotient of integers, so that every second gray level was one too high."""
    openvino = pytest.importorskip("openvino")
    rgb = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    prop = ImageProperty(32, 24, resize="squash", gray_scale=True)
    model = build_preprocessing_graph(prop).SerializeToString()
    core = openvino.Core()
    for precision in ("f32", "bf16"):
        run = core.compile_model(core.read_model(model, b""), "CPU", {"INFERENCE_PRECISION_HINT": precision})
        assert np.array_equal(run(rgb[None])[0][0, :, :, 0], Image.fromarray(rgb).convert("L"))
