"""What Pillow ignores in PNG and TIFF files is not ignored here."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlimages.checks.measurements import measure_image
from mlimages.core import Fault, ImageError
from mlimages.images import load_rgb
from tests.images.odd_images import png, saved


@settings(deadline=None, max_examples=300)
@given(
    color_and_bits=st.sampled_from(
        [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 8), (4, 8), (4, 16), (6, 8), (6, 16)]
    ),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    black=st.booleans(),
    parts=st.integers(1, 3),
    data=st.data(),
)
def test_a_png_that_lacks_rows_is_truncated_and_one_that_ends_in_black_rows_is_not(
    color_and_bits: tuple[int, int], width: int, height: int, black: bool, parts: int, data: st.DataObject
) -> None:
    color, bits = color_and_bits
    row = 1 + (width * bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color] + 7) // 8
    rows = np.full((height, row), 0 if black else 255, np.uint8)
    rows[:, 0] = 0  # the filter
    whole = rows.tobytes()
    assert load_rgb(png(whole, width, height, bits=bits, color=color, parts=parts)).size == (width, height)
    kept = data.draw(st.integers(0, height - 1)) * row
    with pytest.raises(ImageError) as error:
        load_rgb(png(whole[:kept], width, height, bits=bits, color=color, parts=parts))
    assert error.value.fault is Fault.TRUNCATED


def tiff(levels: np.ndarray, *, sample_format: int, photometric: int) -> bytes:
    """A TIFF of one strip and one channel."""
    height, width = levels.shape
    data = levels.astype(levels.dtype.newbyteorder("<")).tobytes()
    tags = [
        (256, width), (257, height), (258, levels.dtype.itemsize * 8), (259, 1), (262, photometric), (273, 8),
        (277, 1), (278, height), (279, len(data)), (339, sample_format),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(data))
        + data
        + struct.pack("<H", len(tags))
        + entries
        + struct.pack("<I", 0)
    )


UNSIGNED, SIGNED, FLOAT = 1, 2, 3
WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize(
    ("levels", "sample_format", "photometric"),
    [
        (GREY, UNSIGNED, BLACK_IS_ZERO),
        (255 - GREY, UNSIGNED, WHITE_IS_ZERO),
        (GREY.astype(np.uint16) * 257, UNSIGNED, BLACK_IS_ZERO),
        (65535 - GREY.astype(np.uint16) * 257, UNSIGNED, WHITE_IS_ZERO),
        (GREY.astype(np.int32) * 257, SIGNED, BLACK_IS_ZERO),
        (GREY.astype(np.float32) / 255, FLOAT, BLACK_IS_ZERO),
    ],
    ids=["8 bits", "8 bits, 0 is white", "16 bits", "16 bits, 0 is white", "32 bits", "floats"],
)
def test_the_levels_of_a_tiff_are_read_as_it_says(levels: np.ndarray, sample_format: int, photometric: int) -> None:
    image = load_rgb(tiff(levels, sample_format=sample_format, photometric=photometric))
    assert np.asarray(image)[..., 0].tolist() == GREY.tolist()


@pytest.mark.parametrize(
    ("levels", "sample_format"),
    [
        (GREY.astype(np.int16) - 128, SIGNED),
        ((GREY.astype(np.int16) - 128).astype(np.int8), SIGNED),
        (GREY.astype(np.int32) - 1, SIGNED),
        (GREY.astype(np.uint32) << 24, UNSIGNED),
        (GREY.astype(np.int32) * 257 + 1, SIGNED),
        (GREY.astype(np.float64), FLOAT),
        (GREY.astype(np.float16), FLOAT),
        (GREY.astype(np.float32), FLOAT),
        (GREY.astype(np.float32) / 250, FLOAT),
        (GREY.astype(np.float32) / 255 - 0.5, FLOAT),
        (np.array([[0.5, np.nan]], dtype=np.float32), FLOAT),
        (np.array([[0.5, np.inf]], dtype=np.float32), FLOAT),
    ],
    ids=[
        "int16", "int8", "int32", "uint32", "int32 above 65535", "float64", "float16", "float to 255", "float to 1.02",
        "float from -0.5", "NaN", "infinite",
    ],
)  # fmt: skip
def test_levels_of_unknown_scale_are_refused_as_unsupported_not_as_damaged(
    levels: np.ndarray, sample_format: int
) -> None:
    data = tiff(levels, sample_format=sample_format, photometric=BLACK_IS_ZERO)
    for read in (load_rgb, lambda data: measure_image(data, max_pixels=10**6)):
        with pytest.raises(ImageError) as error:
            read(data)
        assert error.value.fault is Fault.UNREADABLE
        assert "damaged" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "white", "sample_format"), [("float32", 1, FLOAT), ("int32", 65535, SIGNED), ("uint16", 65535, UNSIGNED)]
)
@pytest.mark.parametrize("largest", [0.004, 0.5, 1.0])
def test_the_scale_of_the_levels_is_the_same_whatever_the_largest_one(
    kind: str, white: float, sample_format: int, largest: float
) -> None:
    levels = (np.array([[0.002, largest]]) * white).astype(kind)
    files = [tiff(levels, sample_format=sample_format, photometric=BLACK_IS_ZERO)]
    if kind == "uint16":
        files.append(saved(Image.fromarray(levels), "PNG"))
    for data in files:
        found = np.asarray(load_rgb(data))[..., 0].tolist()
        assert found == [[round(255 * float(level) / white) for level in levels[0]]]


def test_an_interlaced_png_is_not_measured_by_the_rows_of_another_order() -> None:
    assert load_rgb(png(b"\0\0", 1, 1, bits=8, color=0, interlace=1)).getpixel((0, 0)) == (0, 0, 0)
