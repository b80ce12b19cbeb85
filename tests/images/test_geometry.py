"""Sizes, crops and reduced scales at their bounds, on drawn scenes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mlimages.core import BrokenImage, Fault, ImageError, ImageProperty, LabeledPath, Normalization
from mlimages.images import from_network_input, geometry, load_pixels, load_rgb, prepare_pixels, to_network_input
from mlimages.images.arrays import scale_to_8_bits, to_uint8
from mlimages.images.decoded_image import DecodeOptions, ImageHeader
from mlimages.images.geometry import _choose_decode_options, _compute_central_box, iter_pixels, resize_and_crop
from mlimages.networks import Normalize
from tests.images.odd_images import saved


def scene(width: int, height: int) -> Image.Image:
    """Shapes of different colours on a gradient; no two parts look alike."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.dstack([x, y, 255 - (x + y) / 2]).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 9, height // 8, width // 3, height // 2), fill=(200, 30, 60))
    draw.rectangle((width // 2, height // 3, width * 4 // 5, height * 9 // 10), fill=(20, 160, 90))
    return image


@pytest.mark.parametrize(
    ("size", "prop", "min_size"),
    [
        ((400, 900), ImageProperty(100), (201, 451)),  # exactly four times as large as needed
        ((399, 900), ImageProperty(100), None),
        ((900, 400), ImageProperty(100), (451, 201)),
        ((900, 400), ImageProperty(80, shorter_px=100), (451, 201)),
        ((2000, 1000), ImageProperty(100), (401, 201)),
        ((400, 400), ImageProperty(50, 100, resize="squash"), (201, 201)),
        ((400, 399), ImageProperty(100, 50, resize="squash"), None),
        ((1200, 800), ImageProperty(100, 200, resize="letterbox"), (601, 401)),
        ((4000, 4000), ImageProperty(100, resize="crop"), None),
        ((4000, 4000), ImageProperty(100, resize="downscale"), None),
        ((4000, 4000), ImageProperty(100, resize="position"), None),
    ],
)
def test_an_image_is_decoded_small_if_it_is_four_times_as_large_as_needed(
    size: tuple[int, int], prop: ImageProperty, min_size: tuple[int, int] | None
) -> None:
    assert _choose_decode_options(ImageHeader("JPEG", "RGB", size, False), prop) == DecodeOptions(min_size=min_size)


@pytest.mark.parametrize("gray_scale", [False, True])
def test_a_large_scene_is_decoded_small_and_close_to_the_full_decode(gray_scale: bool) -> None:
    data = saved(scene(1500, 1100), "JPEG", quality=95)
    prop = ImageProperty(100, 120, shorter_px=130, gray_scale=gray_scale)
    small, full = load_pixels(data, prop), prepare_pixels(load_rgb(data), prop)
    assert small.shape == full.shape == (120, 100, 1 if gray_scale else 3)
    difference = np.abs(small.astype(int) - full)
    assert difference.max() <= 40, "at edges alone"
    assert 0 < difference.mean() < 1.5


def test_every_way_to_a_size_is_what_it_says_in_steps_of_pillow() -> None:
    image = scene(83, 57)
    bilinear, bicubic = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
    expected = {
        ImageProperty(20, 30, resize="position", position=(7, 11)): image.crop((7, 11, 27, 41)),
        ImageProperty(20, 30, resize="position", position=(75, 50)): image.crop((75, 50, 95, 80)),  # padded with black
        ImageProperty(83, 57, resize="position", position=(3, 4)): image.crop((3, 4, 86, 61)),
        ImageProperty(20, 30, resize="crop"): image.crop((32, 14, 52, 44)),
        ImageProperty(20, 30, resize="letterbox"): image.resize((20, 14), bilinear).crop((0, -8, 20, 22)),
        ImageProperty(20, 30, resize="squash"): image.resize((20, 30), bilinear),
        ImageProperty(20, 30, resize="squash", interpolation="bicubic"): image.resize((20, 30), bicubic),
        ImageProperty(20, 30, shorter_px=40): image.resize((58, 40), bilinear).crop((19, 5, 39, 35)),
        ImageProperty(20, 30, resize="downscale"): image.crop((22, 0, 60, 57)).resize((20, 30), bilinear),
        ImageProperty(40, 20, resize="downscale"): image.crop((0, 8, 83, 49)).resize((40, 20), bilinear),
        ImageProperty(90, 60, resize="downscale"): image.crop((-3, -1, 87, 59)),
        ImageProperty(83, 57, resize="squash"): image,
    }
    for prop, result in expected.items():
        assert np.array_equal(np.asarray(resize_and_crop(image, prop)), np.asarray(result)), prop
        assert prepare_pixels(image, prop).shape == (prop.height, prop.width, 3)
    grey = prepare_pixels(image, ImageProperty(83, 57, resize="squash", gray_scale=True))
    assert np.array_equal(grey[:, :, 0], np.asarray(image.convert("L")))


@pytest.mark.parametrize(
    ("size", "prop", "box"),
    [
        ((80, 60), ImageProperty(20, 20), (10, 0, 70, 60)),
        ((60, 81), ImageProperty(20, 20), (0, 10, 60, 70)),
        ((20, 20), ImageProperty(20, 20), (0, 0, 20, 20)),
        ((20, 19), ImageProperty(20, 20), (0, 0, 20, 19)),
        ((19, 40), ImageProperty(20, 20), (0, 0, 19, 40)),
        ((50, 90), ImageProperty(30, 10), (0, 37, 50, 53)),
    ],
)
def test_the_central_part_has_the_shape_of_the_result(
    size: tuple[int, int], prop: ImageProperty, box: tuple[int, int, int, int]
) -> None:
    assert _compute_central_box(*size, prop) == box


@pytest.mark.parametrize(("width", "valid"), [(49, True), (50, True), (51, False)])
def test_an_image_may_not_be_enlarged_beyond_the_bound_of_pixels(
    width: int, valid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geometry, "MAX_PIXELS", 40 * 10 * 50)
    image, prop = scene(width, 1), ImageProperty(10, shorter_px=20)  # 20 times as large: 20 * width by 20
    if valid:
        assert prepare_pixels(image, prop).shape == (10, 10, 3)
    else:
        with pytest.raises(ImageError, match=r"51 x 1 scaled to 1020 x 20 is more than 20000 pixels") as error:
            prepare_pixels(image, prop)
        assert error.value.fault is Fault.TOO_MANY_PIXELS
    assert prepare_pixels(image, ImageProperty(300, resize="squash")).shape == (300, 300, 3), "the result may be larger"


def test_images_are_yielded_in_order_with_the_reason_of_each_that_is_broken(tmp_path: Path) -> None:
    items = [LabeledPath(tmp_path / f"{number}.png", number) for number in range(5)]
    for item in items:
        scene(20 + item.label, 20).save(item.path)
    items[2].path.write_bytes(b"no image")
    found = list(iter_pixels(items, ImageProperty(20), workers=2))
    assert [item for item, _ in found] == items
    assert isinstance(found[2][1], BrokenImage)
    assert found[2][1].path == str(items[2].path)
    for item, pixels in (found[0], found[4]):
        assert np.array_equal(pixels, prepare_pixels(Image.open(item.path), ImageProperty(20)))  # type: ignore[arg-type]
    assert list(iter_pixels([], ImageProperty(20))) == []


CHANNELS = {"mean": (0.1, 0.4, 0.7), "std": (0.2, 0.5, 0.9)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        CHANNELS,
        {**CHANNELS, "bgr": True},
        {"scale": 2.0, "mean": (100.0,), "std": (3.0,)},
        {**CHANNELS, "scale": 128.0},
    ],
)
@pytest.mark.parametrize("has_mean_image", [False, True])
def test_pixels_become_the_networks_input_and_come_back(options: dict[str, object], has_mean_image: bool) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    normalization = Normalization(**options)  # type: ignore[arg-type]
    mean_image = rng.uniform(0, 255, (3, 4, 5)).astype(np.float32) if has_mean_image else None
    mean = np.broadcast_to(np.array(normalization.mean), (3,))[:, None, None]
    subtracted = mean if mean_image is None else mean_image / normalization.scale
    expected = pixels.transpose(0, 3, 1, 2) / normalization.scale - subtracted
    expected = expected / np.broadcast_to(np.array(normalization.std), (3,))[:, None, None]
    x = to_network_input(pixels, normalization, mean_image)
    assert x.dtype == np.float32
    assert x == pytest.approx(expected[:, ::-1] if normalization.bgr else expected, rel=1e-4, abs=1e-5)
    assert np.array_equal(x, Normalize(normalization, mean_image)(torch.from_numpy(pixels)))
    assert np.array_equal(from_network_input(x, normalization, mean_image), pixels)


def test_values_are_rounded_and_clipped() -> None:
    values = np.array([-9.0, -0.4, 0.5, 0.6, 1.5, 254.4, 254.6, 255.0, 256.0, np.nan, np.inf, -np.inf])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 2, 254, 255, 255, 255, 0, 255, 0]
    deep = Image.fromarray(np.array([[0, 1000, 30000, 65535]], dtype=np.uint16))
    assert np.asarray(scale_to_8_bits(deep)).tolist() == [[0, 4, 117, 255]]
    deep.info["transparency"] = 1000
    assert np.asarray(scale_to_8_bits(deep)).tolist() == [[[0, 255], [4, 0], [117, 255], [255, 255]]]
    deep.info["transparency"] = b"1000"
    assert scale_to_8_bits(deep).mode == "L"
