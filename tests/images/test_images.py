"""Every kind of image becomes the pixels that it means, and hostile ones a code."""

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as tv

from mlimages.core import (
    ClassScore,
    Fault,
    ImageError,
    ImageProperty,
    InputError,
    Normalization,
    Prediction,
)
from mlimages.images import (
    LabeledImage,
    compute_resized_size,
    copy_by_class,
    identify,
    load_pixels,
    load_rgb,
    prepare_pixels,
    to_upright_rgb,
)
from mlimages.labels import label_dir_auto
from tests.images.odd_images import png_of_size, saved


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def fault_of(source: Path | bytes) -> Fault:
    with pytest.raises(ImageError) as error:
        load_rgb(source)
    return error.value.fault


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 400), height=st.integers(1, 400), shorter=st.integers(8, 64), crop=st.integers(1, 64),
    bicubic=st.booleans(),
)  # fmt: skip
def test_shorter_is_torchvisions_resize_and_centre_crop(
    width: int, height: int, shorter: int, crop: int, bicubic: bool
) -> None:
    image = noise(width, height, seed=width * height)
    crop = min(crop, shorter)
    prop = ImageProperty(crop, shorter_px=shorter, interpolation="bicubic" if bicubic else "bilinear")
    mode = tv.InterpolationMode.BICUBIC if bicubic else tv.InterpolationMode.BILINEAR
    theirs = tv.center_crop(tv.resize(image, [shorter], interpolation=mode), [crop, crop])
    assert (prepare_pixels(image, prop) == np.asarray(theirs)).all()


@given(width=st.integers(1, 60), height=st.integers(1, 60), crop_w=st.integers(1, 60), crop_h=st.integers(1, 60))
def test_crop_is_torchvisions_centre_crop_padded_with_black(width: int, height: int, crop_w: int, crop_h: int) -> None:
    image = noise(width, height)
    ours = prepare_pixels(image, ImageProperty(crop_w, crop_h, resize="crop"))
    assert (ours == np.asarray(tv.center_crop(image, [crop_h, crop_w]))).all()


def test_downscale_shows_nothing_of_what_it_cuts_off() -> None:
    image = Image.new("RGB", (200, 100), "red")
    image.paste("blue", (50, 0, 150, 100))
    blue = np.asarray(LabeledImage.from_array(np.asarray(image, np.float32).transpose(2, 0, 1)).downscale(25).image)
    assert (blue == (0, 0, 255)).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 0}, "width is 0: expected at least 1 px"),
        ({"width": 32.5}, "width is 32.5: expected a whole number of pixels"),
        ({"height": -1}, "height is -1: expected at least 0 px (0 means the same as width)"),
        ({"shorter_px": -5}, "shorter_px is -5: expected at least 0 px"),
        ({"width": 9460}, "9460 x 9460 pixels are too many: at most 89478485 are supported"),
        ({"shorter_px": 10_000}, "10000 x 10000 pixels are too many"),
        ({"shorter_px": 16}, "a shorter side of 16 px cannot contain a crop of 32 x 32"),
        ({"resize": "shorte"}, "resize is 'shorte': it must be one of shorter, crop,"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest': it must be one of bilinear, bicubic"),
        ({"gray_scale": "no"}, "gray_scale is 'no': it must be True or False"),
        ({"resize": "position", "position": (-1, 0)}, "position[0] (left) is -1: expected at least 0 px"),
        ({"resize": "position", "position": (0, -1)}, "position[1] (top) is -1: expected at least 0 px"),
        ({"resize": "position", "position": 5}, "position is 5: expected (left, top) in pixels"),
        ({"resize": "position", "position": (1, 2, 3)}, "position is (1, 2, 3): expected (left, top)"),
    ],
    ids=str,
)
def test_a_size_that_no_image_can_have_is_an_error_at_once(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ImageProperty(**{"width": 32, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": 0}, "scale is 0: pixels are divided by it"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": "255"}, ""),
        ({"mean": 0.5}, "mean is 0.5: expected one value per channel, such as (0.5,)"),
        ({"mean": ()}, "mean is (): expected one or three finite values"),
        ({"mean": (1, 2)}, "mean is (1, 2): expected one or three finite values"),
        ({"mean": (float("inf"),)}, "expected one or three finite values"),
        ({"mean": (104, 117, 123)}, "but pixels / scale is at most 1 with a scale of 255: divide the mean by 255"),
        ({"mean": (1.01,)}, "but pixels / scale is at most 1"),
        ({"mean": (1.0,)}, ""),
        ({"mean": (104, 117, 123), "scale": 1}, ""),
        ({"bgr": "no"}, "bgr is 'no': it must be True or False"),
        ({"mean": ("a",)}, "mean is 'a': expected a number"),
        ({"std": (1, 0, 1)}, "std is (1.0, 0.0, 1.0): the input is divided by it, so it must be greater than 0"),
    ],
    ids=str,
)
def test_a_normalization_that_cannot_be_computed_is_an_error_at_once(values: dict[str, object], message: str) -> None:
    with contextlib.nullcontext() if not message else pytest.raises(InputError, match=re.escape(message)):
        Normalization(**values)  # type: ignore[arg-type]


GRAY, RGB = ImageProperty(16, gray_scale=True), ImageProperty(16)


@pytest.mark.parametrize(
    ("image", "values", "message"),
    [
        (GRAY, {"mean": (0.5, 0.5, 0.5)}, "mean has 3 values, but a grayscale image has one channel"),
        (GRAY, {"std": (0.5, 0.5, 0.5)}, "std has 3 values, but a grayscale image has one channel"),
        (GRAY, {"mean": (0.5,)}, ""),
        (RGB, {"mean": (0.5,), "std": (0.1, 0.2, 0.3)}, ""),
    ],
)
def test_a_normalization_must_have_the_channels_of_the_images(
    image: ImageProperty, values: dict[str, tuple[float, ...]], message: str
) -> None:
    with contextlib.nullcontext() if not message else pytest.raises(InputError, match=message):
        Normalization(**values).check_channels(image)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(1001, 603), (997, 1999), (641, 2399), (1283, 4001)])
def test_an_image_decoded_small_gets_the_size_that_the_whole_one_would(size: tuple[int, int]) -> None:
    white = saved(Image.new("RGB", size, "white"), "JPEG")
    for px in range(40, 60):
        prop = ImageProperty(px, resize="letterbox")
        seen = (load_pixels(white, prop) > 0).all(axis=2)  # (H, W)
        assert (int(seen.any(axis=0).sum()), int(seen.any(axis=1).sum())) == compute_resized_size(*size, prop), px


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation: int, form: str) -> None:
    upright = Image.new("RGB", (24, 16), "red")
    upright.paste("blue", (0, 0, 8, 8))
    stored = upright
    if orientation > 1:
        inverse = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
                   4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
                   7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}  # fmt: skip
        stored = upright.transpose(inverse[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    loaded = np.asarray(load_rgb(saved(stored, form, exif=exif, **options)), dtype=int)
    assert np.abs(loaded - np.asarray(upright)).max() <= (4 if form == "JPEG" else 0)


def test_transparency_lies_over_white_in_every_mode() -> None:
    clear = (255, 255, 255)
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    palette = rgba.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
    grey = Image.fromarray(np.array([[10, 200]], dtype=np.uint8))
    deep = Image.fromarray(np.array([[257, 51400]], dtype=np.uint16))
    cases = {
        "RGBA": saved(rgba),
        "LA": saved(rgba.convert("LA")),
        "P": saved(palette, transparency=palette.getpixel((1, 0))),
        "RGB": saved(rgba.convert("RGB"), transparency=(0, 0, 0)),
        "L": saved(grey, transparency=200),
        "I;16": saved(deep, transparency=51400),
    }
    for mode, data in cases.items():
        loaded = load_rgb(data)
        assert loaded.getpixel((1, 0)) == clear, mode
        assert loaded.getpixel((0, 0)) != clear, mode


@pytest.mark.parametrize("background", [(300, 0, 0), (-1, 0, 0), (0, 0), (0.5, 0, 0), "red", 7])
def test_a_background_that_is_no_colour_is_no_fault_of_the_image(tmp_path: Path, background: Any) -> None:
    Image.new("RGBA", (2, 1), (255, 0, 0, 51)).save(tmp_path / "a.png")
    for load in (LabeledImage(tmp_path / "a.png").load, partial(load_rgb, tmp_path / "a.png")):
        with pytest.raises(InputError, match=re.escape(f"background is {background!r}: expected three")) as error:
            load(background=background)
        assert not isinstance(error.value, ImageError)
    assert LabeledImage(tmp_path / "a.png").load(background=[0, 0, 255]).image.getpixel((1, 0)) == (51, 0, 204)  # type: ignore[arg-type]


def test_an_image_from_an_array_cannot_be_loaded_again() -> None:
    image = LabeledImage.from_array(np.zeros((3, 4, 4), np.float32))
    with pytest.raises(InputError, match="the image has no path, since it is from an array"):
        image.load()
    assert image.image.size == (4, 4)


def test_faults_have_their_codes(tmp_path: Path) -> None:
    whole = saved(noise(64, 64), "JPEG")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert fault_of(tmp_path / "none.jpg") == Fault.MISSING
    assert fault_of(tmp_path / "dangling.jpg") == Fault.MISSING
    assert fault_of(tmp_path / "pipe.jpg") == Fault.UNREADABLE
    assert fault_of(tmp_path) == Fault.UNREADABLE
    assert fault_of(b"") == Fault.EMPTY
    assert fault_of(b"<!doctype html><title>404</title>") == Fault.NOT_AN_IMAGE
    assert fault_of(whole[: len(whole) // 2]) == Fault.TRUNCATED
    assert fault_of(saved(noise(64, 64), "JPEG", comment=bytes(4000))[:3000]) == Fault.TRUNCATED, "in the header"
    assert fault_of(saved(noise(64, 64))[:-200]) == Fault.TRUNCATED


def test_an_image_too_large_is_refused_from_its_header_unless_the_bound_is_larger() -> None:
    for px in (10_000, 20_000, 100_000):
        with pytest.raises(ImageError, match=f"too-many-pixels: {px} x {px} is more than 89478485 pixels"):
            identify(png_of_size(px, px))
    assert identify(png_of_size(20_000, 20_000), max_pixels=10**9).size == (20_000, 20_000)


def test_an_iphones_image_is_opened(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    photo = Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 100).convert("RGB")
    (tmp_path / "cat/IMG_1.HEIC").write_bytes(saved(photo, "HEIF", quality=95))
    (item,) = label_dir_auto(tmp_path).labels
    difference = np.abs(np.asarray(load_rgb(item.path), dtype=int) - np.asarray(photo))
    assert difference.mean() < 4


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of broken EXIF
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_to_a_file_raises_anything_but_an_image_error(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "HEIF"]))
    damaged = bytearray(saved(noise(24, 24), form))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    with contextlib.suppress(ImageError):
        load_pixels(bytes(damaged[:cut]), ImageProperty(16), max_pixels=1_000_000)


@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_strange_images_load_or_have_a_code(test_data: Path) -> None:
    found = {}
    for path in sorted((test_data / "weird").iterdir()):
        try:
            found[path.name] = str(load_rgb(path).size)
        except ImageError as error:
            found[path.name] = error.fault
    faults = {name: fault for name, fault in found.items() if fault in set(Fault)}
    assert faults == {
        "broken.png": Fault.NOT_AN_IMAGE, "truncated_image.png": Fault.TRUNCATED, "truncated_jpeg.jpg": Fault.TRUNCATED,
    }  # fmt: skip
    assert np.asarray(load_rgb(test_data / "weird/i_trns.png")).max() == 255


def test_an_image_goes_to_an_array_and_back_unchanged() -> None:
    image = LabeledImage.from_array(np.asarray(noise(5, 4), dtype=np.float32).transpose(2, 0, 1), 3)
    assert image.label == 3
    assert image.to_array().shape == (3, 4, 5)
    assert (LabeledImage.from_array(image.to_array(bgr=True), bgr=True).to_array() == image.to_array()).all()


def test_values_out_of_range_are_clipped_and_rounded_never_wrapped() -> None:
    array = np.array([-5, 0.4, 0.6, 254.6, 300, np.inf], dtype=np.float32).reshape(1, 1, 6)
    assert LabeledImage.from_array(array).to_array(color=False).ravel().tolist() == [0, 0, 1, 255, 255, 255]
    array[0, 0, 2] = np.nan
    with pytest.raises(InputError, match="contains NaN"):
        LabeledImage.from_array(array)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20, 3), (2, 4, 4), (4, 4, 4), (3, 0, 4), (1, 3, 4, 4)])
def test_an_array_that_is_no_image_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="with 1 or 3 channels"):
        LabeledImage.from_array(np.zeros(shape, np.float32))


@pytest.mark.parametrize("dtype", [object, complex, "U1"])
def test_an_array_without_real_numbers_is_an_error(dtype: Any) -> None:
    with pytest.raises(InputError, match="expected real numbers"):
        LabeledImage.from_array(np.zeros((3, 2, 2), dtype))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda path: LabeledImage(path).convert(16), "expected an ImageProperty, such as .*, got int"),
        (lambda path: LabeledImage(path).load().convert(16), "expected an ImageProperty, .*, got int"),
        (lambda _: load_pixels(noise(8, 8), ImageProperty(8)), "expected a path or the bytes .*, got Image"),
        (lambda _: load_rgb(16), "expected a path or the bytes of an image file, got int"),
        (lambda _: identify(None), "expected a path or the bytes of an image file, got NoneType"),
        (lambda path: to_upright_rgb(path.read_bytes()), "expected a PIL image, got bytes"),
        (lambda path: prepare_pixels(path, ImageProperty(8)), "expected a PIL image, got PosixPath"),
    ],
)
def test_an_argument_of_another_type_is_a_type_error_and_no_fault_of_the_image(
    tmp_path: Path, call: Callable[[Any], object], said: str
) -> None:
    noise(8, 8).save(tmp_path / "a.png")
    with pytest.raises(TypeError, match=said):
        call(tmp_path / "a.png")


def test_the_ways_to_resize_have_their_names_of_0_5() -> None:
    assert ImageProperty(32, resize_by_center=True) == ImageProperty(32, resize="crop")
    assert ImageProperty(32, resize_by_downscale=True) == ImageProperty(32, resize="downscale")
    assert ImageProperty(32, resize_by_position=(3, 4)) == ImageProperty(32, resize="position", position=(3, 4))
    assert replace(ImageProperty(32, resize_by_center=True), width=16).resize == "crop"


def test_a_labeled_image_is_changed_step_by_step(tmp_path: Path) -> None:
    noise(100, 60).save(tmp_path / "a.png")
    image = LabeledImage(tmp_path / "a.png", 1).load()
    assert image.crop_from_center(80, 50).image.size == (80, 50)
    assert image.downscale(20, 10).image.size == (20, 10)
    assert image.crop_from_lefttop(10, 5, 20).image.size == (20, 20)
    padded = image.to_grayscale().to_array()
    assert padded.shape == (3, 20, 20)
    assert padded[:, 5:].max() == 0
    assert image.to_array(color=False).shape == (1, 20, 20)
    assert (image.crop_from_lefttop(2, 3, 20).to_array()[:, :2, :18] == padded[:, 3:5, 2:]).all()  # of its own size


def test_a_labeled_image_has_these_defaults(tmp_path: Path) -> None:
    noise(9, 7).save(tmp_path / "a.png")
    image = LabeledImage(tmp_path / "a.png")
    assert (image.label, LabeledImage.from_array(np.zeros((1, 2, 2), np.float32)).label) == (-1, -1)
    assert repr(image) == f"LabeledImage({str(tmp_path / 'a.png')!r}, -1)"
    assert repr(LabeledImage(label=3)) == "LabeledImage('.', 3)"
    red, _, blue = np.asarray(noise(9, 7), np.float32).transpose(2, 0, 1)
    assert (image.to_array()[[0, 2]] == [red, blue]).all()
    assert (image.to_array(bgr=True)[[0, 2]] == [blue, red]).all()
    assert image.crop_from_center(5).image.size == image.crop_from_center(5, 0).image.size == (5, 5)
    assert image.downscale(3).image.size == image.crop_from_lefttop(0, 0, 3).image.size == (3, 3)


@pytest.mark.parametrize(
    ("size", "expected"), [((1000, 1), (20, 1)), ((1000, 24), (20, 1)), ((1000, 26), (20, 1)), ((1000, 76), (20, 2)),
                           ((1, 1000), (1, 30)), ((30, 20), (20, 13)), ((20, 30), (20, 30)), ((10, 15), (20, 30))],
)  # fmt: skip
def test_a_letterbox_holds_the_whole_image_and_at_least_one_pixel(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert compute_resized_size(*size, ImageProperty(20, 30, resize="letterbox")) == expected


def test_a_labeled_image_converted_is_what_the_network_sees(tmp_path: Path) -> None:
    noise(100, 60).save(tmp_path / "a.png")
    noise(600, 500).save(tmp_path / "large.jpg")
    prop = ImageProperty(32, gray_scale=True)
    for path in (tmp_path / "a.png", tmp_path / "large.jpg"):
        array = LabeledImage(path).convert(prop).to_array(color=False)
        assert (array.transpose(1, 2, 0) == load_pixels(path, prop)).all()


def test_classes_whose_names_become_one_folder_are_copied_apart_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a/b", "a_b", "unknown", "cats"]
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"%d" % number)
    answers = [Prediction(str(tmp_path / f"{n}.jpg"), (ClassScore(name, n, 0.9),)) for n, name in enumerate(names)]
    answers.append(Prediction(str(tmp_path / "4.jpg"), (ClassScore("cats", 3, 0.1),), known=False))
    assert len(list(copy_by_class(answers, tmp_path / "out", class_names=names))) == 5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a_b", "a_b_2", "unknown", "cats", "unknown_2"}
    assert [path.name for path in (tmp_path / "out" / "unknown").iterdir()] == ["2.jpg"], "the class keeps its folder"
    assert caplog.messages == [
        f"{tmp_path / 'out'}: folders whose name differs from the class name: a/b as a_b, a_b as a_b_2",
        f"{tmp_path / 'out'}: images that belong to no class are copied to unknown_2, since one of the classes is "
        "named unknown",
    ]
