"""Whatever the bytes, `check` and what loads images agree with each other and with Pillow; no exception gets out."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from mlimages.images import HAS_SIMPLEJPEG
from tests.images.odd_images import DAMAGE, every_format, made_by_hand
from tests.images.verdicts import WHO

CASES = int(os.environ.get("MLIMAGES_FUZZ_CASES", "400"))
SEED = int(os.environ.get("MLIMAGES_FUZZ_SEED", "0"))
FOLDERS = [Path(name) for name in os.environ.get("MLIMAGES_ODD_IMAGES", "").split(os.pathsep) if name]
PER_IMAGE_S = 20
"""No image takes longer, on the slowest machine: a decoder hangs."""

Verdicts = dict[str, tuple[str, list[int] | None, str]]


def said_of(folder: Path, who: str) -> Verdicts:
    """The verdicts of one of them; a traceback, a crash or a hang names the image."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    command = [sys.executable, "-m", "tests.images.verdicts", who, str(folder)]
    limit = 60 + 0.5 * len(names) + PER_IMAGE_S
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        out, problem = done.stdout, done.stderr[-2000:] if done.returncode else ""
    except subprocess.TimeoutExpired as error:
        out, problem = (error.stdout or b"").decode(), f"nothing for {limit:.0f} s"
    found = {name: tuple(verdict) for name, verdict in map(json.loads, out.splitlines())}
    assert not problem, f"{who}: {next((name for name in names if name not in found), names[-1])}: {problem}"
    assert list(found) == names
    return found


def damaged_images() -> dict[str, bytes]:
    rng, sound = random.Random(SEED), list(every_format())
    files = {}
    for number in range(CASES):
        name, data = sound[number % len(sound)]
        damage = DAMAGE[number % len(DAMAGE)]  # all of them at any number of cases
        files[f"{number:05d}-{name}-{damage.__name__}"] = damage(data, rng)
    return files


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdicts]:
    """The verdicts of each on the images in the folders `sound`, `odd` and `damaged`."""
    root = tmp_path_factory.mktemp("images")
    for folder, files in (("sound", dict(every_format())), ("odd", made_by_hand()), ("damaged", damaged_images())):
        (root / folder).mkdir()
        for name, data in files.items():
            (root / folder / name).write_bytes(data)
    return {who: said_of(root, who) for who in WHO}


def examined(found: dict[str, Verdicts], folder: str) -> dict[str, str]:
    """The verdict of `check` on each image of a folder."""
    names = {Path(path): verdict for path, (verdict, *_) in found["measure_image"].items()}
    return {path.name: verdict for path, verdict in names.items() if path.parts[0] == folder}


def differences(found: dict[str, Verdicts], folder: str = "") -> str:
    told = []
    for name, (verdict, size, pixels) in found["pillow"].items():
        if not name.startswith(folder):
            continue
        seen, loaded, labeled = (found[who][name] for who in ("measure_image", "load_pixels", "labeled_image"))
        line = (
            f"{name}: Pillow {verdict!r} {size}, check {seen[:2]}, load_pixels {loaded[0]}, LabeledImage {labeled[:2]}"
        )
        agree = loaded[0] == labeled[0] == seen[0] or (HAS_SIMPLEJPEG and (seen[0], loaded[0]) == ("corrupt", "ok"))
        if not agree or (loaded[0] == "ok") != (verdict == "ok"):
            told.append(line)
        elif verdict == loaded[0] == "ok" and (labeled[1] != size or seen[1] not in (None, size)):
            told.append(f"size of {line}")
        elif verdict == loaded[0] == "ok" and pixels and pixels != labeled[2]:
            told.append(f"pixels of {line}")
    return "\n".join(told)


def test_sound_images_of_every_format_are_read_as_pillow_reads_them(found: dict[str, Verdicts]) -> None:
    assert differences(found, "sound/") == ""
    assert set(examined(found, "sound").values()) == {"ok"}


def test_files_made_to_raise_every_kind_of_exception_have_a_code(found: dict[str, Verdicts]) -> None:
    assert differences(found, "odd/") == ""
    assert examined(found, "odd") == {
        "avif-broken": "corrupt", "blp-unknown": "unreadable", "bmp-zero": "not-an-image", "dds-unknown": "unreadable",
        "eps": "not-an-image", "gif-bomb": "too-many-pixels", "gif-no-frame": "not-an-image", "html": "not-an-image",
        "icns-palette": "ok", "ico-bomb": "too-many-pixels", "one-byte": "not-an-image", "png-bomb": "too-many-pixels",
        "png-no-pixels": "truncated", "png-zero": "not-an-image", "psd-layers": "ok", "tiff-odd-exif": "ok",
        "zeros": "not-an-image",
    }  # fmt: skip


def test_damaged_images_have_one_verdict(found: dict[str, Verdicts]) -> None:
    assert differences(found, "damaged/") == ""


@pytest.mark.skipif(not FOLDERS, reason="MLIMAGES_ODD_IMAGES names no folder")
@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_a_folder_of_images_is_read_as_pillow_reads_it(folder: Path) -> None:
    assert differences({who: said_of(folder, who) for who in WHO}) == ""
