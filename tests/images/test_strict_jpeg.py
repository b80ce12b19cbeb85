"""Which deviations of a JPEG from the standard damage its pixels, at the bounds of what counts as padding."""

import io
import re
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from mlimages.core import Fault, ImageError
from mlimages.images import DecodeOptions, decode, strict_jpeg
from mlimages.images.strict_jpeg import JpegScanError, _remove_header_padding, _remove_reported_padding, decode_strictly
from tests.images.odd_images import made_image, saved

pytest.importorskip("simplejpeg", reason='needs pip install "mlimages[strict]"')

SIZE = (64, 48)


def jpeg(**options: object) -> bytes:
    return saved(made_image(*SIZE), "JPEG", quality=90, **options)


def segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Offset and code of each marker, but those within scans."""
    at = 2
    while data[at + 1] != 0xD9:
        yield at, data[at + 1]
        is_scan = data[at + 1] == 0xDA
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        while is_scan and (data[at] != 0xFF or data[at + 1] in (0, *range(0xD0, 0xD8))):
            at += 1


@pytest.mark.parametrize(("paddings", "is_whole"), [(0, True), (1, True), (6, True), (7, True), (8, False), (9, False)])
def test_a_jpeg_is_decoded_eight_times_so_seven_paddings_are_removed(paddings: int, is_whole: bool) -> None:
    whole = jpeg(progressive=True)
    scans = [at for at, code in segments(whole) if code == 0xDA][1:]
    assert len(scans) == 9
    data = whole
    for at in reversed(scans[:paddings]):
        data = data[:at] + bytes(40) + data[at:]
    if not is_whole:
        with pytest.raises(JpegScanError, match="40 extraneous bytes before marker 0xda"):
            decode_strictly(data, SIZE)
        return
    image, irregular = decode_strictly(data, SIZE)
    expected, _ = decode_strictly(whole, SIZE)
    assert image is not None
    assert expected is not None
    assert np.array_equal(np.asarray(image), np.asarray(expected))
    assert irregular is (paddings > 0)


END = b"\xff\xd9"
SCAN = b"\xff\xda\0\4ab"
HEAD = b"\xff\xd8\xff\xe0\0\4xy"


@pytest.mark.parametrize(
    ("padding", "removed"),
    [
        (b"\0", True), (b"\0\0\0", True), (b"\7\7\7", False), (b"\7\7\7\7", True), (b"\7\7\7\7\7", True),
        (b"\7\7\7\6", False), (b"\0\0\0\1", False), (b"\1\0\0\0", False), (b"\xff" * 4, True),
    ],
)  # fmt: skip
def test_zeros_and_four_equal_bytes_are_padding(padding: bytes, removed: bool) -> None:
    data = HEAD + SCAN + b"scan" + padding + END
    warning = f"Corrupt JPEG data: {len(padding)} extraneous bytes before marker 0xd9"
    assert _remove_reported_padding(data, warning) == (HEAD + SCAN + b"scan" + END if removed else None)
    assert _remove_reported_padding(data, "Corrupt JPEG data: bad Huffman code") is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"scan\0\0\xff\xc4..\0\0\xff\xc4.", b"scan\0\0\xff\xc4..\xff\xc4."),  # the last one that has it
        (b"scan\0\0\xff\xc4..\0.\xff\xc4.", b"scan\xff\xc4..\0.\xff\xc4."),
        (b"scan.\0\xff\xc4..\0.\xff\xc4.", None),
        (b"scan\0\0\xff\xc5.", None),  # before another marker
        (b"\0\0\xff\xc4.", b"\xff\xc4."),
    ],
)
def test_padding_is_removed_before_its_marker_behind_the_header(body: bytes, expected: bytes | None) -> None:
    warning = "Corrupt JPEG data: 2 extraneous bytes before marker 0xc4"
    found = _remove_reported_padding(HEAD + SCAN + body + END, warning)
    assert found == (None if expected is None else HEAD + SCAN + expected + END)
    assert _remove_reported_padding(HEAD + b"\xff\xda\0\2\xff\xc4", warning) is None, "not of the header"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"\xff\xe0\0\4xy", b"\xff\xe0\0\4xy"),
        (b"\1\2\3\xff\xe0\0\4xy", b"\xff\xe0\0\4xy"),
        (b"\xff\xe0\0\4xy\1\2\xff\xdb\0\3z", b"\xff\xe0\0\4xy\xff\xdb\0\3z"),
        (b"\xff\xff\xff\xe0\0\4xy", b"\xff\xe0\0\4xy"),  # fill bytes
        (b"\xff\x00\xff\xe0\0\4xy", b"\xff\xe0\0\4xy"),  # no marker
        (b"\xff\xe1\x7f\xff\xff\xe0\0\4xy", b"\xff\xe0\0\4xy"),  # a segment longer than the file
    ],
)
def test_padding_between_segments_of_the_header_is_removed(header: bytes, expected: bytes) -> None:
    start = b"\xff\xd8"
    assert _remove_header_padding(start + header + SCAN + b"scan" + END) == (
        start + expected + SCAN + b"scan" + END,
        len(start + expected),
    )
    data = start + header
    assert _remove_header_padding(data) == (data, len(data)), "without a scan it stays as it is"
    if header != expected:
        warning = "Corrupt JPEG data: 9 extraneous bytes before marker 0xda"
        assert _remove_reported_padding(data + SCAN + END, warning) == start + expected + SCAN + END


WARNINGS = {
    # of libjpeg-turbo's jerror.h, and what becomes of the file
    "Corrupt JPEG data: bad arithmetic code": "damaged",
    "Inconsistent progression sequence for component 0 coefficient 1": "damaged",
    "Corrupt JPEG data: 7 extraneous bytes before marker 0xd9": "damaged",
    "Corrupt JPEG data: premature end of data segment": "damaged",
    "Corrupt JPEG data: bad Huffman code": "damaged",
    "Premature end of JPEG file": "damaged",
    "Corrupt JPEG data: found marker 0xd9 instead of RST3": "damaged",
    "Unknown Adobe color transform code 7": "irregular",
    "Warning: unknown JFIF revision number 7.01": "irregular",
    "Invalid SOS parameters for sequential JPEG": "irregular",
    "Corrupt JPEG data: bad ICC marker": "irregular",
    "Unsupported color conversion request": "left to Pillow",
}


@pytest.mark.parametrize("warning", WARNINGS)
def test_each_warning_of_libjpeg_is_damage_or_not(warning: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode_jpeg(*_: object, **__: object) -> None:
        raise ValueError(warning)

    monkeypatch.setattr(strict_jpeg.simplejpeg, "decode_jpeg", decode_jpeg)
    if WARNINGS[warning] == "damaged":
        with pytest.raises(JpegScanError, match=f"^{re.escape(warning)}$"):
            decode_strictly(jpeg(), SIZE)
    else:
        assert decode_strictly(jpeg(), SIZE) == (None, WARNINGS[warning] == "irregular")


@pytest.mark.parametrize(
    "min_size", [(64, 48), (57, 42), (56, 42), (56, 43), (33, 24), (32, 25), (32, 24), (9, 6), (8, 6), (1, 1)]
)
def test_a_jpeg_is_decoded_at_the_smallest_eighth_that_is_not_below(min_size: tuple[int, int]) -> None:
    scales = ((8 * eighths, 6 * eighths) for eighths in range(1, 9))
    size = next(each for each in scales if each[0] >= min_size[0] and each[1] >= min_size[1])
    image, irregular = decode_strictly(jpeg(), min_size)
    assert image is not None
    assert (image.size, image.mode, irregular) == (size, "RGBX", False)
    reference = Image.open(io.BytesIO(jpeg()))
    reference.draft(None, size)
    if reference.size == size:  # Pillow decodes at 1, 1/2, 1/4 and 1/8
        assert np.array_equal(np.asarray(image)[:, :, :3], np.asarray(reference))


@pytest.mark.parametrize("is_installed", [True, False])
def test_damage_that_pillow_passes_over_is_found_only_with_simplejpeg(
    is_installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strict_jpeg, "HAS_SIMPLEJPEG", is_installed)
    whole = jpeg()
    (scan,) = (at for at, code in segments(whole) if code == 0xDA)
    middle = (scan + len(whole)) // 2
    data = whole[:middle] + b"\x5a\xa5" * 20 + whole[middle + 40 :]
    assert decode(data).image.size == SIZE
    if is_installed:
        with pytest.raises(ImageError) as error:
            decode(data, options=DecodeOptions(strict=True))
        assert error.value.fault is Fault.CORRUPT
    else:
        found = decode(data, options=DecodeOptions(strict=True))
        assert np.array_equal(np.asarray(found.image), np.asarray(decode(data).image))
        assert not found.irregular_jpeg
