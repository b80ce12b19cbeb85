"""Near-duplicates that only the comparison of features finds."""

import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter, ImageOps

from mlimages.checks import check, feature_pairs, split_labels
from mlimages.core import MissingExtraError, ModelError
from mlimages.core.written_files import RECORDS_FILE_NAME
from mlimages.labels import LabelFile, LabelOptions, make_label_files
from mlimages.reports import write_check_report
from mlimages.training import embedder
from tests.checks.leaks import EDITS, TURNS, cropped, false_groups, found_share, plant_leaks, tilted
from tests.checks.test_validation import jpeg, listed, scene


def photographed(image: Image.Image, rng: random.Random) -> Image.Image:
    """Printed and photographed at an angle: perspective, paler tones, noise, blur; not among the plants of `leaks`."""
    width, height = image.size
    corners = [(0, 0), (0, height), (width, height), (width, 0)]
    quad = [
        side + rng.uniform(-1, 1) * 0.06 * size
        for corner in corners
        for side, size in zip(corner, image.size, strict=True)
    ]
    image = image.transform(image.size, Image.Transform.QUAD, quad, Image.Resampling.BICUBIC, fillcolor=(200, 195, 190))
    gamma, low, high = rng.uniform(0.7, 1.4), rng.uniform(20, 60), rng.uniform(190, 235)
    image = image.point([round(low + (high - low) * (level / 255) ** gamma) for level in range(256)] * 3)
    noise = Image.effect_noise(image.size, 14).convert("RGB")
    return ImageChops.add(image, noise, scale=1, offset=-128).filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.5)))


def cast(image: Image.Image, rng: random.Random) -> Image.Image:
    """Under light of another colour; not among the plants of `leaks`."""
    gains = [rng.uniform(0.45, 1.35) for _ in range(3)]
    return image.point([min(255, round(gain * level)) for gain in gains for level in range(256)])


def turned_crop(image: Image.Image, rng: random.Random) -> Image.Image:
    """Part of an image, in another orientation."""
    return cropped(image, rng, 0.6, 0.7).transpose(rng.choice(TURNS))


HELD_OUT = {"photographed": photographed, "color cast": cast, "turned crop": turned_crop}


def by_number(paths: Sequence[Path]) -> NDArray[np.float32]:
    """Features in place of a network's: 0.jpg and copy0.jpg have the same, and other images are candidates too."""
    return np.eye(10, dtype=np.float32)[[int(path.stem[-1]) for path in paths]]


@pytest.mark.parametrize("max_exact", [feature_pairs.MAX_EXACT_IMAGES, 3])
def test_copies_that_hashes_miss_are_pairs_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_exact: int
) -> None:
    monkeypatch.setattr(feature_pairs, "MAX_EXACT_IMAGES", max_exact)  # above it, usearch finds the candidates
    monkeypatch.setattr(feature_pairs, "COMPARE_BATCH_SIZE", 4)  # several blocks
    rng, scenes = random.Random(1), [scene(number) for number in range(6)]
    edits = [lambda image, rng: cropped(image, rng, 0.6, 0.7), tilted, photographed, cast, turned_crop]
    train = listed(tmp_path, {f"{number}.jpg": jpeg(image) for number, image in enumerate(scenes)}, name="train.txt")
    copies = [edit(ImageOps.mirror(image), rng) for image, edit in zip(scenes, edits, strict=False)]
    val = listed(tmp_path, {f"copy{number}.jpg": jpeg(image) for number, image in enumerate(copies)}, name="val.txt")
    by_hashes = check([train, val])
    hashed = {path.name for group in by_hashes.duplicate_groups for path in group}
    report = check([train, val], embed=by_number)
    found = {(pair.path.name, pair.other_path.name) for pair in report.feature_pairs or ()}
    assert ("0.jpg", "copy0.jpg") in found
    assert found == {(f"{n}.jpg", f"copy{n}.jpg") for n in range(5) if f"copy{n}.jpg" not in hashed}
    assert "copy4.jpg" not in hashed
    assert report.errors == {"leak": 5}
    for each, words in ((by_hashes, "mlimages check --features"), (report, "Near-duplicates found by features only")):
        write_check_report(each, tmp_path / "check.html")
        assert words in (tmp_path / "check.html").read_text()


def test_many_images_need_the_extra_before_any_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_pairs, "MAX_EXACT_IMAGES", 1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    labels = listed(tmp_path, {"a.jpg": b"", "b.jpg": b""})
    with pytest.raises(MissingExtraError, match=r"mlimages\[usearch\]"):
        check(labels, embed=by_number)


@pytest.mark.parametrize("model", ["lenet5", "cifar10_cnn"])
def test_a_network_without_pretrained_weights_compares_no_images(model: str) -> None:
    with pytest.raises(ModelError, match=f"{model} has no pretrained weights"):
        embedder(model)


def test_the_network_finds_97_percent_of_edited_copies(test_data: Path, tmp_path: Path) -> None:
    images = sorted((test_data / "imagenet_samples").glob("*.JPEG"))[:60]
    plants = plant_leaks(images, tmp_path, count=2, seed=1, edits=EDITS | HELD_OUT)
    report = check([plants.train, plants.val], embed=embedder())
    found = found_share(plants, report)
    assert sum(found.values()) >= 0.97 * len(found)
    assert not false_groups(plants, report)


def test_a_split_by_features_keeps_crops_together_and_is_recorded(tmp_path: Path) -> None:
    rng, folder = random.Random(1), tmp_path / "photos"
    for number in range(4):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        image = scene(number)
        image.save(folder / "ab"[number % 2] / f"{number}.jpg")
        cropped(image, rng, 0.6, 0.7).save(folder / "ab"[number % 2] / f"crop{number}.jpg")
    separated = dict.fromkeys(("hashes", "features"), 0)
    for group_by, embed in (("hashes", None), ("features", by_number)):
        for seed in range(3):
            out = tmp_path / f"{group_by}{seed}.txt"
            options = LabelOptions(source=folder, out=out, split=(0.5, 0.5), seed=seed, group_by=group_by)
            train, _ = make_label_files(options, split=partial(split_labels, embed=embed))
            numbers = Counter(item.path.stem[-1] for item in LabelFile(train.path))
            separated[group_by] += sum(count == 1 for count in numbers.values())
    assert separated["features"] == 0
    assert separated["hashes"] > 0
    assert (
        "# features2_val.txt: --split 0.5,0.5 --seed 2 --group-by features"
        in (tmp_path / RECORDS_FILE_NAME).read_text()
    )
