"""Verdicts of mlimages and Pillow on the images of a folder, a JSON line each.

Run as `python -m tests.images.verdicts WHO FOLDER`.

WHO is `pillow`, `measure_image` (of `check`), `load_pixels` or `labeled_image`. A process of its own for each: a
decoder that hangs or crashes is found by the line that does not come, and no setting of one reaches another.
"""

import hashlib
import io
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mlimages.core import ImageError, ImageProperty
from mlimages.images import TRANSPOSE_BY_ORIENTATION, LabeledImage, identify, load_all_plugins, load_pixels
from tests.images.odd_images import UNREADABLE

MAX_PIXELS = 4_000_000
PLAIN = ("1", "L", "RGB", "CMYK", "YCbCr")
"""Modes that `convert("RGB")` alone turns into what mlimages gives."""

Verdict = tuple[str, tuple[int, int] | None, str]
"""`ok` or a fault, upright width and height, and a digest of the RGB pixels; as far as known."""


def digest(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


def pillow(path: Path) -> Verdict:
    load_all_plugins()
    formats = [form for form in Image.ID if form not in UNREADABLE]
    try:
        image = Image.open(io.BytesIO(path.read_bytes()), formats=formats)
        if image.width * image.height > MAX_PIXELS:
            return "too-many-pixels", None, ""
        image.convert("RGB")
    except Exception as error:
        return f"{type(error).__name__}: {error}", None, ""
    low, high = image.getextrema()[:2] if image.mode in ("I", "F") else (0, 0)
    if not 0 <= low <= high <= (65535 if image.mode == "I" else 1):  # type: ignore[operator]
        return "Pillow clips the levels", None, ""
    try:
        turned = ImageOps.exif_transpose(image)
    except Exception:  # it rewrites the EXIF block, which may be odd; the orientation may be read all the same
        try:
            value = image.getexif().get(0x0112, 1)
        except Exception:
            value = 1
        turned = image.transpose(TRANSPOSE_BY_ORIENTATION[value]) if value in TRANSPOSE_BY_ORIENTATION else image
    plain = turned.mode in PLAIN and not turned.has_transparency_data
    return "ok", turned.size, digest(turned.convert("RGB")) if plain else ""


def examined(path: Path) -> Verdict:
    from mlimages.checks.measurements import measure_image

    facts = measure_image(path.read_bytes(), max_pixels=MAX_PIXELS)
    return "ok", (facts.width, facts.height), ""


def loaded(path: Path) -> Verdict:
    load_pixels(path, ImageProperty(16), max_pixels=MAX_PIXELS)
    return "ok", None, ""


def labeled(path: Path) -> Verdict:
    identify(path, max_pixels=MAX_PIXELS)
    image = LabeledImage(path).load().image
    return "ok", image.size, digest(image)


WHO: dict[str, Callable[[Path], Verdict]] = {
    "pillow": pillow, "measure_image": examined, "load_pixels": loaded, "labeled_image": labeled,
}  # fmt: skip


def verdicts(who: str, folder: Path) -> Iterator[tuple[str, Verdict]]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            found = WHO[who](path)
        except ImageError as error:
            found = str(error.fault), None, ""
        yield str(path.relative_to(folder)), found


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of odd EXIF
    np.seterr(all="raise")
    for name, found in verdicts(sys.argv[1], Path(sys.argv[2])):
        print(json.dumps([name, found]), flush=True)  # noqa: T201  # its answer
