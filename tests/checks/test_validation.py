"""One pass finds what is broken, doubled, leaking or odd, and says so with a stable code."""

import io
import os
import random
import tracemalloc
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from mlimages.checks import (
    ERRORS,
    Code,
    Report,
    Thresholds,
    check,
    duplicate_groups,
    near_duplicates,
    sound_pictures,
    write_outcome,
)
from mlimages.checks.near_duplicates import near_pairs, outlined
from mlimages.core import ImageError, LabeledPath, LabelFileError
from mlimages.images import load_rgb
from mlimages.labels import LabelFile, listed_paths, split, write_label_file


def scene(seed: int, *, width: int = 300, height: int = 200) -> Image.Image:
    """A picture with the spectrum of a photograph: large shapes, fewer small ones, fine grain."""
    rng = np.random.default_rng(seed)
    layers = np.zeros((height, width, 3))
    for cells, strength in ((3, 90), (8, 50), (30, 30), (100, 25)):
        for channel in range(3):
            cell = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
            layers[:, :, channel] += strength * np.asarray(cell.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(layers + 125 + rng.normal(0, 4, layers.shape), 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **{"quality": 88, **options})
    return out.getvalue()


def listed(folder: Path, pictures: dict[str, bytes], *, name: str = "labels.txt", label: int = 0) -> Path:
    """Write pictures and a label file that lists them."""
    for picture, data in pictures.items():
        (folder / picture).parent.mkdir(parents=True, exist_ok=True)
        (folder / picture).write_bytes(data)
    write_label_file(folder / name, [LabeledPath(folder / picture, label) for picture in pictures], ["things"])
    return folder / name


def codes(report: Report) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for one in report.findings:
        found.setdefault(one.path.name, set()).add(one.code)
    return found


def of_one(folder: Path, data: bytes, name: str = "a.jpg", **lines: float) -> set[str]:
    report = check([listed(folder, {name: data})], thresholds=Thresholds(**lines))  # type: ignore[arg-type]
    return codes(report).get(name, set())


def test_a_sound_picture_has_no_code(tmp_path: Path) -> None:
    assert of_one(tmp_path, jpeg(scene(1))) == set()


def test_broken_files_have_their_codes_and_stop_nothing(tmp_path: Path) -> None:
    whole = jpeg(scene(1))
    labels = listed(tmp_path, {
        "empty.jpg": b"", "html.jpg": b"<!doctype html>", "cut.jpg": whole[: len(whole) // 2], "good.jpg": whole,
    })  # fmt: skip
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with labels.open("a") as out:
        out.write("none.jpg 0\ndangling.jpg 0\npipe.jpg 0\n")
    report = check([labels])
    assert codes(report) == {
        "empty.jpg": {"empty"}, "html.jpg": {"not-an-image"}, "cut.jpg": {"truncated"}, "none.jpg": {"missing"},
        "dangling.jpg": {"unreadable"}, "pipe.jpg": {"unreadable"},
    }  # fmt: skip
    assert (report.checked, report.ok) == (7, 1)
    assert all(one.code.is_error for one in report.findings)


def test_too_many_pixels_are_judged_from_the_header_and_from_the_cache(tmp_path: Path) -> None:
    labels = listed(tmp_path, {"a.jpg": jpeg(scene(1))})
    assert codes(check([labels], thresholds=Thresholds(max_pixels=50_000))) == {"a.jpg": {"too-many-pixels"}}
    assert codes(check([labels])) == {}
    assert codes(check([labels], thresholds=Thresholds(max_pixels=50_000))) == {"a.jpg": {"too-many-pixels"}}


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def deep() -> Image.Image:
    return Image.fromarray(np.asarray(scene(1).convert("L")).astype(np.uint16) * 257)


def see_through() -> Image.Image:
    image = scene(1).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 20, 20))
    return image


def grey_bottom() -> Image.Image:
    image = scene(1)
    image.paste((128, 128, 128), (0, 150, 300, 200))
    return image


def sheet() -> Image.Image:
    image = Image.new("RGB", (300, 200), (220, 220, 220))
    image.paste((90, 90, 90), (100, 80, 200, 110))
    return image


def levels(low: float, high: float) -> Image.Image:
    pixels = np.asarray(scene(1), dtype=np.float32) / 255 * (high - low) + low
    return Image.fromarray(pixels.astype(np.uint8))


WARNINGS = {
    Code.WRONG_SUFFIX: ("a.png", jpeg(scene(1))),
    Code.ROTATED: ("a.jpg", jpeg(scene(1), exif=exif(6))),
    Code.CMYK: ("a.jpg", jpeg(scene(1).convert("CMYK"))),
    Code.SIXTEEN_BIT: ("a.png", encoded(deep(), "PNG")),
    Code.PALETTE: ("a.png", encoded(scene(1).quantize(200), "PNG")),
    Code.TRANSPARENT: ("a.png", encoded(see_through(), "PNG")),
    Code.GREY: ("a.jpg", jpeg(scene(1).convert("L").convert("RGB"))),
    Code.ANIMATED: ("a.gif", encoded(scene(1), "GIF", save_all=True, append_images=[scene(2)])),
    Code.TINY: ("a.jpg", jpeg(scene(1).resize((30, 20)))),
    Code.ODD_SHAPE: ("a.jpg", jpeg(scene(1, width=700))),
    Code.CROP_LOSS: ("a.jpg", jpeg(scene(1, width=420))),
    Code.BLANK: ("a.jpg", jpeg(Image.new("RGB", (300, 200), (200, 30, 30)))),
    Code.DARK: ("a.jpg", jpeg(levels(0, 50))),
    Code.BRIGHT: ("a.jpg", jpeg(levels(228, 255))),
    Code.LOW_CONTRAST: ("a.jpg", jpeg(levels(110, 140))),
    Code.BLURRED: ("a.jpg", jpeg(scene(1, width=600, height=400).filter(ImageFilter.GaussianBlur(6)))),
    Code.GREY_BOTTOM: ("a.jpg", jpeg(grey_bottom())),
    Code.PLACEHOLDER: ("a.jpg", jpeg(sheet())),
}
COMPANIONS = {
    Code.SIXTEEN_BIT: {Code.GREY}, Code.ANIMATED: {Code.PALETTE}, Code.ODD_SHAPE: {Code.CROP_LOSS},
    Code.PLACEHOLDER: {Code.GREY, Code.BLURRED},
}  # fmt: skip


@pytest.mark.parametrize("code", WARNINGS, ids=str)
def test_each_oddity_has_its_code_and_is_kept(tmp_path: Path, code: Code) -> None:
    name, data = WARNINGS[code]
    found = of_one(tmp_path, data, name)
    assert code in found
    assert found - {code} <= COMPANIONS.get(code, set())
    assert not code.is_error


def test_a_turned_image_is_measured_upright_once_in_every_format(tmp_path: Path) -> None:
    from mlimages.checks.image_facts import examine

    upright, stored = scene(1), scene(1).transpose(Image.Transpose.ROTATE_90)
    want = examine(encoded(upright, "PNG"), max_pixels=10**6)
    for form in ("PNG", "TIFF", "WEBP"):
        found = examine(
            encoded(stored, form, exif=exif(6), **({"lossless": True} if form == "WEBP" else {})), max_pixels=10**6
        )
        assert (found.width, found.height, found.orientation) == (300, 200, 6), form
        thumbs = np.frombuffer(found.thumb + want.thumb, np.uint8).reshape(2, -1).astype(int)
        assert np.abs(thumbs[0] - thumbs[1]).max() <= 2, form


def test_a_png_with_one_flipped_bit_is_refused_as_it_is_where_it_is_loaded(tmp_path: Path) -> None:
    whole = encoded(scene(1, width=60, height=40), "PNG")
    begin, end = whole.index(b"IDAT") + 6, whole.rindex(b"IEND") - 8
    pictures = {}
    for number, at in enumerate(range(begin, end, (end - begin) // 60)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << number % 8
        pictures[f"{number}.png"] = bytes(flipped)
    report = check([listed(tmp_path, pictures)])
    assert sum(report.errors.values()) == len(pictures)
    for data in pictures.values():
        with pytest.raises(ImageError):
            load_rgb(data)


def test_an_opaque_alpha_channel_is_not_transparent(tmp_path: Path) -> None:
    assert of_one(tmp_path, encoded(scene(1).convert("RGBA"), "PNG"), "a.png") == set()


def edits(image: Image.Image) -> Iterable[tuple[str, bytes]]:
    width, height = image.size
    yield "reencoded", jpeg(image, quality=40)
    yield "webp", encoded(image, "WEBP", quality=70)
    yield "half", encoded(image.resize((width // 2, height // 2)), "PNG")
    yield "cropped", jpeg(image.crop((3, 2, width - 3, height - 2)))
    yield "cut off", jpeg(image.crop((0, 0, width * 24 // 25, height * 24 // 25)))
    yield "brighter", jpeg(ImageEnhance.Brightness(image).enhance(1.15))
    yield "turned", jpeg(image.transpose(Image.Transpose.ROTATE_90), exif=exif(6))
    yield "grey", jpeg(image.convert("L"))


def test_edited_copies_are_found_and_different_pictures_are_not(tmp_path: Path) -> None:
    pictures = {f"{n}.jpg": jpeg(scene(n)) for n in range(60)}
    copies = {f"{n}_{name}.jpg": data for n in (3, 17) for name, data in edits(scene(n))}
    report = check([listed(tmp_path, pictures | copies)])
    groups = [{path.stem.split("_")[0] for path in group} for group in report.duplicate_groups]
    assert groups == [{"3"}, {"17"}]
    assert [len(group) for group in report.duplicate_groups] == [9, 9]
    assert report.warnings["near-duplicate"] == 16


def test_the_same_bytes_are_a_duplicate_under_one_label_and_an_error_under_two(tmp_path: Path) -> None:
    labels = listed(tmp_path, {"a.jpg": jpeg(scene(1)), "again.jpg": jpeg(scene(1)), "b.jpg": jpeg(scene(2))})
    assert codes(check([labels])) == {"again.jpg": {"duplicate"}}
    labels.write_text("a.jpg 0\nagain.jpg 1\nb.jpg 1\n")
    (tmp_path / "labels_class_def.txt").write_text("0 a\n1 b\n")
    report = check([labels])
    assert codes(report) == {"a.jpg": {"same-picture-two-labels"}, "again.jpg": {"same-picture-two-labels"}}
    assert [item.path.name for item in report.kept()] == ["b.jpg"]


def test_little_digits_are_not_taken_for_each_other(tmp_path: Path) -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
    pictures = {}
    for number, levels in enumerate(datasets.load_digits().images[:300]):
        out = io.BytesIO()
        Image.fromarray((levels * 255 / 16).astype(np.uint8)).resize((28, 28), Image.Resampling.BICUBIC).save(
            out, "PNG"
        )
        pictures[f"{number}.png"] = out.getvalue()
    assert check([listed(tmp_path, pictures)]).duplicate_groups == ()


def test_a_picture_in_two_files_leaks_and_stays_in_the_smaller_one(tmp_path: Path) -> None:
    train = listed(tmp_path, {f"t{n}.jpg": jpeg(scene(n)) for n in range(6)}, name="train.txt")
    val = listed(tmp_path, {"v0.jpg": jpeg(scene(0)), "v1.jpg": jpeg(scene(1), quality=50)}, name="val.txt")
    report = check([train, val])
    assert codes(report) == {"t0.jpg": {"leak"}, "t1.jpg": {"leak"}}
    assert report.errors == {"leak": 2}
    assert [len(list(report.kept(file))) for file in (0, 1)] == [4, 2]


def test_findings_are_told_by_code_and_by_file_in_the_order_of_the_lines(tmp_path: Path) -> None:
    dark = jpeg(levels(0, 30))
    one = listed(tmp_path, {"a.jpg": dark, "b.jpg": b"", "c.jpg": jpeg(scene(2)), "d.jpg": b"text"}, name="one.txt")
    two = listed(tmp_path, {"e.jpg": b"", "f.jpg": jpeg(scene(3).point(lambda level: level // 8))}, name="two.txt")
    found = check([one, two], thresholds=Thresholds(blur=0)).findings
    broken = [(0, "b.jpg", "empty"), (0, "d.jpg", "not-an-image"), (1, "e.jpg", "empty")]
    assert [(each.file, each.path.name, each.code) for each in found.select(ERRORS)] == broken
    assert [each.path.name for each in found.select({Code.DARK}, file=1)] == ["f.jpg"]
    assert [each.path.name for each in found] == ["a.jpg", "b.jpg", "d.jpg", "e.jpg", "f.jpg"]
    assert len(found) == 5


def test_a_label_file_that_lost_lines_since_its_check_is_named(tmp_path: Path) -> None:
    labels = listed(tmp_path, {"a.jpg": jpeg(scene(1)), "b.jpg": b""})
    report = check([labels])
    labels.write_text("a.jpg 0\n")
    with pytest.raises(LabelFileError, match=r"labels\.txt: it was changed"):
        list(report.findings)


def test_a_file_that_turns_up_many_times_is_a_placeholder(tmp_path: Path) -> None:
    for picture in (scene(1), sheet()):  # the second looks like one by itself, and is named once all the same
        report = check([listed(tmp_path, {f"{n}.jpg": jpeg(picture) for n in range(5)})])
        assert (report.warnings["duplicate"], report.warnings["placeholder"]) == (4, 5)
        seen = [one.detail for one in report.findings if one.code == Code.PLACEHOLDER]
        assert seen == [f"the same as {tmp_path / name}" for name in ("4.jpg", *["0.jpg"] * 4)]


def test_a_small_class_beside_a_large_one_is_named(tmp_path: Path) -> None:
    items = [LabeledPath(tmp_path / f"{n}.jpg", int(n == 0)) for n in range(30)]
    write_label_file(tmp_path / "labels.txt", items, ["many", "few", "none"])
    found = [one for one in check([tmp_path / "labels.txt"]).findings if one.code == Code.CLASS_IMBALANCE]
    assert [(one.label, one.detail) for one in found] == [(1, "few: 1, many: 29"), (2, "none: 0, many: 29")]


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts what is really decoded from here on."""
    from mlimages.checks import run_checks

    seen: list[int] = []
    examine = run_checks.examine

    def counting(data: bytes, *, max_pixels: int) -> object:
        seen.append(len(data))
        return examine(data, max_pixels=max_pixels)

    monkeypatch.setattr(run_checks, "examine", counting)
    return seen


def test_a_second_check_decodes_nothing_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = {f"{n}.jpg": jpeg(scene(n)) for n in range(9)} | {"bad.jpg": b"bad", "again.jpg": jpeg(scene(1))}
    labels = listed(tmp_path, pictures)
    first = check([labels])
    seen = decoded(monkeypatch)
    (tmp_path / "0.jpg").rename(tmp_path / "moved.jpg")
    labels.write_text(labels.read_text().replace("0.jpg", "moved.jpg"))
    os.utime(tmp_path / "1.jpg", (1, 1))
    second = check([labels])
    assert seen == []
    assert second.errors == first.errors
    assert second.warnings == first.warnings
    assert (second.measures.colour == first.measures.colour).all()
    (tmp_path / "2.jpg").write_bytes(jpeg(scene(99)))
    check([labels])
    assert len(seen) == 1


def replaced_with_size_and_time_kept(path: Path, data: bytes) -> None:
    """As `rsync -t` and `cp -p` do."""
    before = path.stat()
    assert len(data) == before.st_size
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_replaced_with_its_size_and_time_kept_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dark, bright = (encoded(Image.new("RGB", (80, 60), (level,) * 3), "BMP") for level in (20, 200))
    labels = listed(tmp_path, {"a.bmp": dark, "b.bmp": dark})
    assert check([labels]).measures.level.tolist() == [20, 20]
    replaced_with_size_and_time_kept(tmp_path / "b.bmp", bright)
    assert sound_pictures([tmp_path / "a.bmp", tmp_path / "b.bmp"]).keys() == {tmp_path / "a.bmp"}
    assert check([labels]).measures.level.tolist() == [20, 200]
    seen = decoded(monkeypatch)
    (tmp_path / "a.bmp").chmod(0o600)  # another change time, the same bytes
    assert check([labels]).measures.level.tolist() == [20, 200]
    assert seen == []


def test_an_interrupted_check_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlimages.checks import run_checks
    from mlimages.core import NoProgress

    class Interrupting(NoProgress):
        def advance(self, count: int = 1, **figures: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(run_checks, "BATCH", 4)
    labels = listed(tmp_path, {f"{n}.jpg": jpeg(scene(n, width=60, height=40)) for n in range(10)})
    with pytest.raises(KeyboardInterrupt):
        check([labels], progress=Interrupting())
    seen = decoded(monkeypatch)
    assert check([labels]).checked == 10
    assert len(seen) == 6


def test_a_cache_that_is_broken_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = listed(tmp_path, {"a.jpg": jpeg(scene(1))})
    monkeypatch.setenv("MLIMAGES_CACHE", str(tmp_path / "cache"))
    check([labels])
    for path in (tmp_path / "cache" / "checks").iterdir():
        path.write_bytes(b"no database")
    assert check([labels]).ok == 1


def test_the_outcome_lies_beside_each_label_file(tmp_path: Path) -> None:
    labels = listed(
        tmp_path, {"a b.jpg": jpeg(scene(1)), "cut.jpg": jpeg(scene(2))[:900], "grey.jpg": jpeg(scene(3).convert("L"))}
    )
    write_outcome(check([labels]))
    kept = LabelFile(tmp_path / "labels_checked.txt")
    assert [item.path.name for item in kept] == ["a b.jpg", "grey.jpg"]
    assert kept.class_names == ("things",)
    rejected = (tmp_path / "labels_rejected.tsv").read_text().splitlines()
    assert rejected[0] == "path\tlabel\tcode\tdetail"
    assert rejected[1].startswith("cut.jpg\t0\ttruncated\t")
    assert "grey.jpg\t0\tgrey\t" in (tmp_path / "labels_warnings.tsv").read_text()


def test_a_split_keeps_near_duplicates_on_one_side(tmp_path: Path) -> None:
    pictures = {f"{n}_{name}.jpg": data for n in range(12) for name, data in list(edits(scene(n)))[:3]}
    items = list(LabelFile(listed(tmp_path, pictures)))
    groups = duplicate_groups(item.path for item in items)
    assert len(set(groups.values())) == 12
    train, val = split(items, [0.75, 0.25], seed=1, groups=groups)
    assert len(val) == 9
    assert not {item.path.name.split("_")[0] for item in train} & {item.path.name.split("_")[0] for item in val}


def near(hashes: Sequence[int], thumbs: np.ndarray) -> set[tuple[int, int]]:
    least = np.full(len(hashes), 0.9, np.float32)
    pairs = near_pairs(
        thumbs.__getitem__,
        np.array(hashes, np.uint64),
        sketches=outlined(thumbs)[1],
        max_bits=11,
        least=least,
        cropped=0.95,
        families=lambda numbers: numbers,
    )
    return {(min(pair), max(pair)) for pair in pairs}


def test_large_sets_lose_no_pair_though_not_all_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, flip = np.random.default_rng(0), random.Random(0)
    hashes = [flip.getrandbits(64) for _ in range(500)]
    for n in range(100):
        bits = flip.sample(range(64), flip.randint(0, 11))
        hashes.append(hashes[n] ^ sum(1 << bit for bit in bits))
    thumbs = rng.integers(0, 256, (600, 256), dtype=np.uint8)
    thumbs[500:] = thumbs[:100]
    everything = near(hashes, thumbs)
    monkeypatch.setattr(near_duplicates, "SMALL", 10)
    monkeypatch.setattr(near_duplicates, "AT_ONCE", 7)
    assert near(hashes, thumbs) == everything == {(n, 500 + n) for n in range(100)}


def test_other_thresholds_are_not_answered_from_the_cache(tmp_path: Path) -> None:
    whole = scene(1, width=60, height=40)
    labels = listed(tmp_path, {"a.jpg": jpeg(whole), "b.jpg": jpeg(whole.crop((2, 1, 60, 40)))})
    found = [len(check([labels], thresholds=Thresholds(min_side_px=px)).duplicate_groups) for px in (32, 64, 32)]
    assert found == [1, 0, 1]


def test_among_a_million_pictures_the_hash_must_agree_more_closely() -> None:
    bits = {count: Thresholds().narrowed(count).near_bits for count in (0, 20_000, 100_000, 1_000_000)}
    assert bits == {0: 16, 20_000: 16, 100_000: 14, 1_000_000: 11}


def test_a_sketch_hides_no_pair_that_correlates() -> None:
    rng = np.random.default_rng(0)
    waves = rng.normal(size=(300, 256)).cumsum(axis=1)  # most of it slow, as in pictures
    others = waves + rng.normal(size=(300, 256)) * rng.uniform(0, 8, (300, 1))
    one, other = (
        np.clip(128 + 4 * (x - x.mean(axis=1, keepdims=True)), 0, 255).astype(np.uint8) for x in (waves, others)
    )
    correlation = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(one, other, strict=True)], np.float32)
    (_, drawn), (_, redrawn) = outlined(one), outlined(other)
    assert near_duplicates._may_correlate(drawn, redrawn, correlation - 1e-5).all()
    assert not near_duplicates._may_correlate(drawn, drawn[::-1], np.full(300, 0.99, np.float32)).all()


def test_a_long_series_of_frames_is_one_family_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlimages.checks.cache import Store
    from mlimages.checks.columns import columns_on_disk
    from mlimages.checks.image_facts import examine, facts_table
    from mlimages.checks.leaks import Seen

    frame, compared = examine(jpeg(scene(1)), max_pixels=10**6).pack(), []
    alike = near_duplicates._alike
    monkeypatch.setattr(near_duplicates, "_alike", lambda *pair: compared.append(len(pair[0])) or alike(*pair))
    digests = [number.to_bytes(32, "little") for number in range(1, 901)]
    with Store() as store, columns_on_disk() as new_column:
        seen = Seen(new_column)
        seen.add([(0, "", 0)] * 900, digests)
        seen.compare(np.arange(900), facts_table([frame] * 900), Thresholds())
        assert seen.families(Thresholds(), store) == [list(range(900))]
    assert sum(compared) < 2000


def test_what_is_noted_of_pictures_takes_no_memory_as_they_pass() -> None:
    from mlimages.checks.columns import columns_on_disk
    from mlimages.checks.findings import Notes
    from mlimages.checks.image_facts import examine, facts_table
    from mlimages.checks.leaks import Seen

    facts = facts_table([examine(jpeg(scene(1)), max_pixels=10**6).pack()] * 250)
    with columns_on_disk() as new_column:
        seen, notes = Seen(new_column), Notes(new_column)
        tracemalloc.start()
        for begin in range(0, 50_000, 250):
            places = range(begin, begin + 250)
            seen.add([(0, "a.jpg", 0)] * 250, (place.to_bytes(32, "little") for place in places))
            seen.compare(np.array(places), facts, Thresholds())
            for place in places:
                notes.add(place, Code.BLURRED, "sharpness 0.20 below 0.30")
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(seen) == 50_000
        assert held < 50_000  # a byte a picture


@pytest.mark.realdata
def test_real_photographs_show_no_false_pair_and_their_real_ones(test_data: Path, tmp_path: Path) -> None:
    folders = ["hymenoptera_data/train", "hymenoptera_data/val", "flowers5_small/train", "imagenet_samples"]
    paths = [path for folder in folders for path in sorted((test_data / folder).rglob("*.[jJ]*"))]
    items = [LabeledPath(path, 0) for path in paths]
    report = check([LabelFile(tmp_path / "all.txt", items=lambda: items, class_names=("all",))])
    assert report.checked == report.ok
    assert [sorted(path.name for path in group) for group in report.duplicate_groups] == [
        ["17433282043_441b0a07f4_n.jpg", "22429946721_e17a12cb39_n.jpg"],
        ["7166567320_0a2beb6d42.jpg", "7166567320_0a2beb6d42_n.jpg"],
    ]


def irregular(kind: str, data: bytes) -> bytes:
    """A JPEG that breaks the standard outside its scan."""
    end, table = data.rindex(b"\xff\xd9"), data.index(b"\xff\xdb")
    match kind:
        case "zeros before the end":
            return data[:end] + bytes(100) + data[end:]
        case "a run before the end":
            return data[:end] + b"\x20" * 50 + data[end:]
        case "bytes in the header":
            return data[:table] + bytes(range(1, 60)) + data[table:]
        case "bytes in both":
            return data[:table] + bytes(3) + data[table:end] + bytes(200) + data[end:]
        case "an unknown JFIF version":
            return data[:11] + b"\x07" + data[12:]
        case _:
            return data + bytes(50)


@pytest.mark.parametrize(
    "kind",
    ["zeros before the end", "a run before the end", "bytes in the header", "bytes in both", "an unknown JFIF version"],
)
def test_a_jpeg_whose_pixels_are_whole_is_irregular_at_most(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("simplejpeg", reason='needs pip install "mlimages[strict]"')
    whole = jpeg(scene(1), progressive=kind == "bytes in both")
    data = irregular(kind, whole)
    assert (np.asarray(load_rgb(data)) == np.asarray(load_rgb(whole))).all()
    assert of_one(tmp_path, data) == {"irregular-jpeg"}
    assert of_one(tmp_path, whole + bytes(50)) == set()


def test_a_scan_that_ends_early_is_not_taken_for_padding(tmp_path: Path) -> None:
    simplejpeg = pytest.importorskip("simplejpeg", reason='needs pip install "mlimages[strict]"')
    rot, pictures = random.Random(1), {}
    while len(pictures) < 20:
        data = bytearray(jpeg(scene(1)))
        data[rot.randrange(1000, len(data) - 2)] ^= 1 << rot.randrange(8)
        try:
            simplejpeg.decode_jpeg(bytes(data))
        except ValueError:
            pictures[f"{len(pictures)}.jpg"] = bytes(data)
    assert sum(check([listed(tmp_path, pictures)]).errors.values()) == 20


def test_damage_that_pillow_passes_over_is_found_where_simplejpeg_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("simplejpeg", reason="needs simplejpeg")
    rot = random.Random(0)
    pictures = {}
    for n in range(20):
        data = bytearray(jpeg(scene(n)))
        at = rot.randrange(1000, len(data) - 1000)
        data[at : at + 256] = rot.randbytes(256)
        pictures[f"{n}.jpg"] = bytes(data)
    report = check([listed(tmp_path, {**pictures, "sound.jpg": jpeg(scene(99))})])
    assert sum(report.errors.values()) == 20
    assert [item.path.name for item in report.kept()] == ["sound.jpg"]


def test_names_with_tabs_keep_their_column(tmp_path: Path) -> None:
    labels = listed(tmp_path, {"a\tb.jpg": b"no picture"})
    write_outcome(check([labels]))
    assert list(listed_paths(tmp_path / "labels_rejected.tsv")) == [tmp_path / "a\tb.jpg"]
