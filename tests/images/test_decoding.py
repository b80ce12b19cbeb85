"""What is said of each error of a decoder and of each unknown beginning, and what each option of decoding changes."""

import io

import numpy as np
import pytest
from PIL import Image

from mlimages.core import Fault, ImageError, make_install_command
from mlimages.images import decoding
from mlimages.images.decoded_image import DecodeOptions
from mlimages.images.decoding import (
    TRANSPOSE_BY_ORIENTATION,
    _make_unknown_format_error,
    _to_image_error,
    decode,
    identify,
    to_upright_rgb,
)
from tests.images.odd_images import exif, made_image, png, saved

BOMB = "an image inside the file has more pixels than Pillow supports"
AGAIN = "copy or download the file again"
BEGIN = "the file begins with"
BASE64 = "the file is base64 text; decode it to the bytes of the image file"
LFS = "the file is a Git LFS pointer; fetch the file with `git lfs pull`"
SVG = "the file is an SVG drawing; convert it to PNG"
PAGE = "the file is a web page; download the image or model file instead"
VARIANT = "the installed Pillow cannot decode this variant of the format"


@pytest.mark.parametrize(
    ("error", "fault", "detail"),
    [
        (Image.DecompressionBombError("x"), Fault.TOO_MANY_PIXELS, BOMB),
        (Image.DecompressionBombWarning("x"), Fault.TOO_MANY_PIXELS, BOMB),
        (MemoryError(), Fault.UNREADABLE, "not enough memory to decode the image"),
        (NotImplementedError("BC9"), Fault.UNREADABLE, f"{VARIANT} (BC9)"),
        (ImportError("zlib"), Fault.UNREADABLE, f"{VARIANT} (zlib)"),
        (OSError("decoder jpeg2k not available"), Fault.UNREADABLE, f"{VARIANT} (decoder jpeg2k not available)"),
        (OSError("Truncated File Read"), Fault.TRUNCATED,
         f"the data is truncated: {AGAIN} (Truncated File Read)"),
        (OSError("unrecognized data stream contents"), Fault.TRUNCATED,
         f"the data is truncated: {AGAIN} (unrecognized data stream contents)"),
        (EOFError(), Fault.TRUNCATED, f"the data is truncated: {AGAIN} (EOFError)"),
        (ValueError("invalid literal: b'0\\xff'"), Fault.CORRUPT,
         f"the data is damaged: {AGAIN} (invalid literal: 0\\xff)"),
        (RuntimeError("odd"), Fault.CORRUPT, f"the data is damaged: {AGAIN} (odd)"),
    ],
)  # fmt: skip
def test_every_error_of_a_decoder_has_a_code(error: Exception, fault: Fault, detail: str) -> None:
    found = _to_image_error(error)
    assert (found.fault, found.detail) == (fault, detail)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0"


@pytest.mark.parametrize(
    ("data", "missing", "claimed", "fault", "detail"),
    [
        (HEIC, "", "", Fault.UNREADABLE, f"HEIC needs an optional package: `{make_install_command('heic')}`"),
        (b"\0" + HEIC, "", "", Fault.NOT_AN_IMAGE, f"{BEGIN} 00 00 00 00 18 66 74 79 70 68 65 69"),
        (HEIC.replace(b"heic", b"isom"), "", "", Fault.NOT_AN_IMAGE, f"{BEGIN} 00 00 00 18 66 74 79 70 69 73 6f 6d"),
        (b"x", "needs libx", "PNG", Fault.UNREADABLE, "the installed Pillow cannot decode the format (needs libx)"),
        (b"x", "", "PNG", Fault.NOT_AN_IMAGE, f"the file begins like a PNG file, but its header is damaged: {AGAIN}"),
        (b"0123456789abcdef", "", "", Fault.NOT_AN_IMAGE, 'the file begins with "0123456789ab"'),
        (b"data:image/jpeg;base64,/9j/4", "", "", Fault.NOT_AN_IMAGE, f'{BEGIN} "data:image/j": {BASE64}'),
        (b"iVBORw0KGgoAAAANSUhEUg==", "", "", Fault.NOT_AN_IMAGE, f'{BEGIN} "iVBORw0KGgoA": {BASE64}'),
        (b"version https://git-lfs.github.com/spec/v1", "", "", Fault.NOT_AN_IMAGE, f'{BEGIN} "version http": {LFS}'),
        (b"<?xml  ?><svg/>", "", "", Fault.NOT_AN_IMAGE, f'{BEGIN} "<?xml  ?><sv": {SVG}'),
        (b"<!DOCTYPE html><title>", "", "", Fault.NOT_AN_IMAGE, f'{BEGIN} "<!DOCTYPE ht": {PAGE}'),
        (b"line\nline", "", "", Fault.NOT_AN_IMAGE, "the file begins with 6c 69 6e 65 0a 6c 69 6e 65"),
    ],
)  # fmt: skip
def test_data_of_no_known_format_is_shown_by_its_beginning(
    data: bytes, missing: str, claimed: str, fault: Fault, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    found = _make_unknown_format_error(data, missing, claimed)
    assert (found.fault, found.detail) == (fault, detail)


@pytest.mark.parametrize(
    ("data", "fault", "detail"),
    [
        (b"", Fault.EMPTY, "the file is empty"),
        (b"GIF89a", Fault.NOT_AN_IMAGE, f"the file begins like a GIF file, but its header is damaged: {AGAIN}"),
        (b"a text, no image", Fault.NOT_AN_IMAGE, 'the file begins with "a text, no i"'),
    ],
)
def test_data_that_is_no_image_is_refused_with_its_reason(data: bytes, fault: Fault, detail: str) -> None:
    for read in (identify, decode):
        with pytest.raises(ImageError) as error:
            read(data)
        assert (error.value.fault, error.value.detail) == (fault, detail)


@pytest.mark.parametrize(
    ("size", "fault"),
    [((10, 10), None), ((10, 11), Fault.TOO_MANY_PIXELS), ((0, 9), Fault.CORRUPT), ((9, 0), Fault.CORRUPT),
     ((1, 1), None), ((1, 100), None)],
)  # fmt: skip
def test_an_image_has_at_least_one_pixel_and_at_most_the_bound(size: tuple[int, int], fault: Fault | None) -> None:
    if fault is None:
        decoding._check_pixel_count(size, 100)
        return
    with pytest.raises(ImageError) as error:
        decoding._check_pixel_count(size, 100)
    assert error.value.fault is fault


@pytest.mark.parametrize(
    ("form", "mode", "high_bit_depth"),
    [("PNG", "L", False), ("PNG", "I;16", True), ("TIFF", "F", True), ("TIFF", "I;16", True), ("JPEG", "RGB", False),
     ("PPM", "I", True), ("PNG", "RGB", False), ("GIF", "P", False)],
)  # fmt: skip
def test_more_than_eight_bits_are_read_from_the_header(form: str, mode: str, high_bit_depth: bool) -> None:
    image = Image.fromarray(np.full((4, 6), 1000, np.uint16)) if mode == "I;16" else made_image(6, 4).convert(mode)
    header = identify(saved(image, form))
    assert (header.format, header.size, header.high_bit_depth) == (form, (6, 4), high_bit_depth)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_only_if_it_is_to_be(orientation: int) -> None:
    data = saved(made_image(6, 4), "PNG", exif=exif(orientation))
    plain = np.asarray(made_image(6, 4))
    turned = np.asarray(made_image(6, 4).transpose(TRANSPOSE_BY_ORIENTATION[orientation])) if orientation > 1 else plain
    size = (4, 6) if orientation >= 5 else (6, 4)
    upright, as_stored = decode(data), decode(data, options=DecodeOptions(apply_orientation=False))
    assert np.array_equal(np.asarray(upright.image), turned)
    assert np.array_equal(np.asarray(as_stored.image), plain)
    assert (upright.size, upright.orientation, upright.remaining_orientation) == (size, orientation, 1)
    assert (as_stored.size, as_stored.orientation, as_stored.remaining_orientation) == (size, orientation, orientation)


@pytest.mark.parametrize(
    ("min_reduced_side_px", "factor"), [(None, 1), (13, 1), (12, 2), (8, 3), (7, 3), (6, 4), (100, 1)]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_an_image_is_reduced_by_the_largest_factor_that_leaves_the_shorter_side(
    min_reduced_side_px: int | None, factor: int, mode: str
) -> None:
    image = made_image(40, 24).convert(mode)
    found = decode(saved(image, "PNG"), options=DecodeOptions(min_reduced_side_px=min_reduced_side_px))
    first = image.reduce(factor).convert("RGB") if mode in ("RGB", "L") else image.convert("RGB").reduce(factor)
    assert np.array_equal(np.asarray(found.image), np.asarray(first))
    assert (found.size, found.transparent, found.animated, found.irregular_jpeg) == ((40, 24), False, False, False)


@pytest.mark.parametrize(("alpha", "transparent"), [(255, False), (254, True), (0, True)])
def test_an_image_is_transparent_if_some_pixel_shows_the_background(alpha: int, transparent: bool) -> None:
    image = made_image(6, 4).convert("RGBA")
    image.putpixel((2, 1), (10, 20, 30, alpha))
    found = decode(saved(image, "PNG"), options=DecodeOptions(background=(0, 0, 0)))
    assert found.transparent is transparent
    assert found.image.getpixel((2, 1)) == tuple(round(value * alpha / 255) for value in (10, 20, 30))


@pytest.mark.parametrize(
    ("mode", "form", "stored", "kept"),
    [("L", "PNG", "L", "L"), ("L", "PNG", "RGB", "RGB"), ("L", "JPEG", "RGB", "L"), ("YCbCr", "JPEG", "RGB", "YCbCr"),
     ("YCbCr", "PNG", "RGB", "RGB"), (None, "JPEG", "L", "RGB")],
)  # fmt: skip
def test_a_mode_is_kept_where_the_decoder_returns_it(mode: str | None, form: str, stored: str, kept: str) -> None:
    data = saved(made_image(16, 16).convert(stored), form)
    assert decode(data, options=DecodeOptions(mode=mode)).image.mode == kept


def test_ycbcr_is_asked_only_of_jfif_files_and_frames_only_of_formats_that_have_them() -> None:
    adobe = saved(made_image(16, 16), "JPEG", keep_rgb=True)
    assert decode(adobe, options=DecodeOptions(mode="YCbCr")).image.mode == "RGB"
    frames = [made_image(16, 16).rotate(90)]
    assert decode(saved(made_image(16, 16), "GIF", save_all=True, append_images=frames)).animated
    assert not decode(saved(made_image(16, 16), "MPO", save_all=True, append_images=frames)).animated


@pytest.mark.parametrize("white", [1, 16, 160, 216, 255, 256, 1023, 65535])
@pytest.mark.parametrize(("kind", "channels"), [(5, 1), (6, 3)])
def test_a_ppm_has_more_than_eight_bits_if_its_level_of_white_is_above_255(
    kind: int, channels: int, white: int
) -> None:
    header = identify(f"P{kind} 2 2 {white}\n".encode() + bytes(4 * channels * (2 if white > 255 else 1)))
    assert header.high_bit_depth == (white > 255)


@pytest.mark.parametrize(("form", "options"), [("JPEG2000", {}), ("TIFF", {"compression": "tiff_lzw"})])
def test_eight_bits_are_not_sixteen_whatever_the_size_of_the_file(form: str, options: dict[str, object]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    files = [saved(Image.fromarray(noise[:height]), form, **options) for height in range(4, 40)]
    assert any("16" in str(len(data)) for data in files)
    assert not any(identify(data).high_bit_depth for data in files)


def test_sixteen_bits_a_channel_are_read_from_the_header_though_pillow_gives_eight() -> None:
    for bits in (8, 16):
        header = identify(png((b"\0" + bytes(2 * 3 * bits // 8)) * 2, 2, 2, bits=bits, color=2))
        assert (header.mode, header.high_bit_depth) == ("RGB", bits == 16)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_an_opened_image_is_converted_as_its_file_is(mode: str, orientation: int) -> None:
    image = made_image(6, 4).convert(mode)
    if mode == "RGBA":
        image.putalpha(100)
    data = saved(image, "PNG", exif=exif(orientation))
    found = to_upright_rgb(Image.open(io.BytesIO(data)))
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found), np.asarray(decode(data).image))


@pytest.mark.parametrize(
    ("value", "orientation"), [(-1, 1), (0, 1), (1, 1), (2, 2), (8, 8), (9, 1), (6.0, 6), ("6", 1), (None, 1)]
)
def test_an_orientation_that_exif_does_not_have_is_upright(value: object, orientation: int) -> None:
    assert decoding._parse_orientation({0x0112: value}) == orientation
    assert decoding._parse_orientation({0x010F: value}) == 1


def test_a_transparent_colour_is_replaced_before_the_image_is_reduced() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0] = 200
    found = decode(
        saved(Image.fromarray(pixels), "PNG", transparency=(200, 200, 200)),
        options=DecodeOptions(min_reduced_side_px=1, background=(40, 80, 120)),
    )
    assert (found.image.size, found.image.getpixel((0, 0)), found.transparent) == ((1, 1), (10, 20, 30), True)


def test_damage_behind_the_first_frame_does_not_make_an_image_animated() -> None:
    class Damaged(Image.Image):
        format = "GIF"

        @property
        def is_animated(self) -> bool:
            raise OSError("truncated")

    assert decoding._is_animated(Damaged()) is False


def test_a_format_whose_library_pillow_lacks_is_named_unless_another_plugin_reads_the_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lacks(prefix: bytes) -> str | bool:
        return (
            "image file could not be identified because WEBP support not installed"
            if prefix[8:12] == b"WEBP"
            else False
        )

    webp, png = (saved(made_image(6, 4), form) for form in ("WEBP", "PNG"))
    monkeypatch.setitem(Image.OPEN, "WEBP", (Image.OPEN["WEBP"][0], lacks))
    assert identify(png).format == "PNG"
    with pytest.raises(ImageError, match=r"Pillow cannot decode the format \(.*WEBP support not installed\)") as error:
        identify(webp)
    assert error.value.fault is Fault.UNREADABLE


def test_exif_that_pillow_cannot_read_leaves_an_image_as_it_is() -> None:
    class Odd(Image.Image):
        def getexif(self) -> Image.Exif:
            raise ValueError("odd")

    assert decoding._read_exif_orientation(Odd()) == 1
