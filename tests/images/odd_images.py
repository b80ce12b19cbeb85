"""Images in every format that Pillow can write, odd ones made by hand, and what may become of them on their way."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from mlimages.images import load_all_plugins

MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F", "YCbCr", "LAB")
UNREADABLE = {"EPS", "WMF", "GRIB", "BUFR", "HDF5", "MPEG", "IPTC"}
"""Formats that Pillow leaves to another program or cannot decode."""


def made_image(width: int = 40, height: int = 24) -> Image.Image:
    return Image.effect_mandelbrot((width, height), (-2, -1, 1, 1), 60).convert("RGB")


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    load_all_plugins()
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def in_mode(mode: str) -> Image.Image:
    if mode == "LAB":
        return Image.merge("LAB", made_image().split())
    if mode == "I;16":
        return Image.fromarray(np.asarray(made_image().convert("L")).astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(made_image().convert("L")).astype(np.float32) / 255)
    return made_image().convert(mode)


def exif(orientation: int = 6) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010F] = "a camera"
    tags[0x011A] = 72.0
    return tags.tobytes()


def odd_exif() -> bytes:
    """An orientation beside a tag whose value is of another type than its number asks for."""
    entries = [(0x0112, 3, 1, struct.pack("<HH", 6, 0)), (0x011A, 2, 4, b"abc\0"), (0x8769, 2, 4, b"abc\0")]
    body = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + struct.pack("<I", 0)


def every_format() -> Iterator[tuple[str, bytes]]:
    """Name and bytes of one image in each format and mode that Pillow can write and read again."""
    load_all_plugins()
    for form in sorted((Image.SAVE.keys() & Image.OPEN.keys()) - UNREADABLE):
        modes = {"ICNS": ("RGBA",), "SPIDER": ("F",)}  # a megapixel, and floats of 0 to 255 from other modes
        for mode in modes.get(form, MODES):
            try:
                yield f"{form}-{mode}".replace(";", "").lower(), saved(in_mode(mode), form)
            except Exception:  # this format does not hold this mode
                continue
    frames = [made_image().rotate(angle) for angle in (120, 240)]
    for form in ("GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"):
        yield f"{form}-frames".lower(), saved(made_image(), form, save_all=True, append_images=frames)
    for form in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"):
        yield f"{form}-turned".lower(), saved(made_image(), form, exif=exif())
    for form in ("JPEG", "PNG", "WEBP"):
        yield f"{form}-odd-exif".lower(), saved(made_image(), form, exif=odd_exif())
    yield "jpeg-progressive", saved(made_image(), "JPEG", progressive=True)
    yield "jpeg-large", saved(made_image(600, 401), "JPEG", exif=exif())
    yield "png-exif-behind", exif_behind_pixels(saved(made_image(), "PNG"))
    yield "png-palette-clear", saved(made_image().quantize(16), "PNG", transparency=bytes(range(0, 256, 16)))
    yield "png-rgb-clear", saved(made_image(), "PNG", transparency=(0, 0, 0))
    yield "tiff-deflate-turned", saved(made_image(), "TIFF", compression="tiff_deflate", exif=exif(5))
    yield "psd", psd()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def exif_behind_pixels(png: bytes) -> bytes:
    """A PNG whose orientation comes after its pixels, as some programs write it."""
    end = png.rindex(b"IEND") - 4
    return png[:end] + chunk(b"eXIf", exif().removeprefix(b"Exif\0\0")) + png[end:]


def psd(layers: bytes = b"") -> bytes:
    """A flat Photoshop file; `layers` is its section of layers."""
    pixels = np.asarray(made_image()).transpose(2, 0, 1).tobytes()
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 24, 40, 8, 3)
    return head + struct.pack(">III", 0, 0, len(layers)) + layers + struct.pack(">H", 0) + pixels


def made_by_hand() -> dict[str, bytes]:
    """Files that end in every kind of exception somewhere in Pillow, or at a bound of its or ours."""
    dds = bytearray(saved(made_image(), "DDS"))
    dds[80:88] = struct.pack("<I", 4) + b"ZZZZ"  # an unknown FourCC: NotImplementedError
    gif = bytearray(saved(made_image(), "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)  # DecompressionBombError
    return {
        "dds-unknown": bytes(dds),
        "blp-unknown": b"BLP2" + struct.pack("<IBBBB", 1, 9, 8, 0, 0) + struct.pack("<II", 16, 16) + bytes(1200),
        "icns-palette": saved(made_image().quantize(16), "ICNS"),  # AssertionError
        "tiff-odd-exif": tiff_with_odd_tags(),
        "gif-bomb": bytes(gif),
        "gif-no-frame": saved(made_image(), "GIF")[:13] + b";",
        "ico-bomb": b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, 99, 22) + png_of_size(30000, 30000),
        "avif-broken": broken_box(saved(made_image(), "AVIF")),
        "psd-layers": psd(struct.pack(">IH", 9000, 4) + bytes(20)),
        "png-bomb": png_of_size(20000, 20000),
        "png-no-pixels": png_of_size(40, 24),
        "png-zero": png_of_size(0, 10),
        "bmp-zero": b"BM" + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, 0, 10, 1, 24, 0, 0, 0, 0, 0, 0),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        "html": b"<!doctype html><title>404</title>",
        "zeros": bytes(2000),
        "one-byte": b"\x0a",
    }


def tiff_with_odd_tags() -> bytes:
    """A TIFF that is to be turned, with a resolution of a wrong type: its EXIF cannot be written anew."""
    data = bytearray(saved(made_image(), "TIFF", exif=exif(), dpi=(72, 72)))
    at = data.index(struct.pack("<HH", 0x011A, 5))
    data[at + 2 : at + 4] = struct.pack("<H", 2)
    return bytes(data)


def broken_box(avif: bytes) -> bytes:
    at = avif.index(b"mdat") + 4
    return avif[:at] + bytes(len(avif) - at)


def png(rows: bytes, width: int, height: int, *, bits: int, color: int, parts: int = 1, interlace: int = 0) -> bytes:
    """A PNG whose compressed data, in so many chunks, may hold other than `height` rows."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlace)
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if color == 3 else b""
    packed = zlib.compress(rows)
    size = -(-len(packed) // parts)
    data = b"".join(chunk(b"IDAT", packed[at : at + size]) for at in range(0, len(packed), size))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + data + chunk(b"IEND", b"")


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that its few bytes do not hold."""
    return png(b"", width, height, bits=8, color=2)


def flipped(data: bytes, rng: random.Random) -> bytes:
    """One to four flipped bits, half of the time within the header."""
    damaged = bytearray(data)
    end = min(len(data), 256) if rng.random() < 0.5 else len(data)
    for _ in range(rng.randint(1, 4)):
        damaged[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def overwritten(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    noise = rng.randbytes(rng.randint(1, 64))
    return data[:at] + noise + data[at + len(noise) :]


def with_mutated_exif(data: bytes, rng: random.Random) -> bytes:
    """Bytes of the EXIF block at random, its first tags above all; of other files, somewhere in the header."""
    begin = max(data.find(mark) for mark in (b"Exif\0\0", b"eXIf", b"EXIF")) + 6
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        damaged[min(len(data) - 1, begin + rng.randrange(60))] = rng.choice([0, 1, 2, 5, 6, 7, 10, 12, 255])
    return bytes(damaged)


DAMAGE: tuple[Callable[[bytes, random.Random], bytes], ...] = (flipped, cut, overwritten, with_mutated_exif)
