"""Contact sheets show images as the network sees them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mlimages.cli.main import app
from mlimages.core import Fault, ImageProperty, InputError, LabeledPath
from mlimages.dataset import TrainingData
from mlimages.images import load_pixels
from mlimages.labels import LabelFile
from mlimages.reports import draw_contact_sheet
from mlimages.reports.contact_sheet import MAX_TILES, make_mean_image_rows, make_sheet_rows
from tests.browser import OpenPage
from tests.conftest import RunCli

COLOURS = {"blue": (20, 60, 200), "red": (200, 40, 20)}
PROP = ImageProperty(32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in COLOURS.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (40 + number, 32), colour).save(tmp_path / "images" / name / f"{number}.png")
    (tmp_path / "images/red/cut.png").write_bytes((tmp_path / "images/red/0.png").read_bytes()[:-30])
    return tmp_path / "images"


def items(folder: Path) -> list[LabeledPath]:
    return [LabeledPath(path, list(COLOURS).index(path.parent.name)) for path in folder.rglob("*.png")]


def data_of(listed: list[LabeledPath], **options: Any) -> TrainingData:
    return TrainingData(LabelFile("labels.txt", items=lambda: listed, class_names=tuple(COLOURS)), PROP, **options)


@pytest.mark.parametrize("mean_image", [None, np.full((3, 32, 32), 90.4, np.float32)], ids=["plain", "mean subtracted"])
def test_each_tile_is_the_networks_array_restored(folder: Path, mean_image: Any) -> None:
    rows = make_sheet_rows(data_of(items(folder), mean_image=mean_image), per_class=6)
    assert [(row.name, row.num_images, len(row.tiles)) for row in rows] == [("blue", 5, 5), ("red", 6, 6)]
    for row in rows:
        for tile in row.tiles:
            if tile.fault is None:
                assert np.array_equal(tile.pixels, load_pixels(folder / row.name / tile.caption, PROP))
    assert [tile.fault for tile in rows[1].tiles if tile.fault] == [Fault.TRUNCATED]


def test_the_seed_chooses_and_the_order_of_lines_does_not(folder: Path) -> None:
    def chosen(seed: int, listed: list[LabeledPath]) -> list[str]:
        rows = make_sheet_rows(data_of(listed), per_class=3, seed=seed)
        return [tile.caption for row in rows for tile in row.tiles]

    assert chosen(1, items(folder)) == chosen(1, items(folder)[::-1])
    assert len({tuple(chosen(seed, items(folder))) for seed in range(6)}) > 1


def test_of_too_many_classes_the_first_are_shown_and_all_are_counted(tmp_path: Path, run_cli: RunCli) -> None:
    count = MAX_TILES + 10
    (tmp_path / "all.txt").write_text("".join(f"{n}.png {n}\n" for n in range(count)))
    done = run_cli("show", "all.txt", "--size", "16", "-o", "sheet.html", "--json")
    assert len(json.loads(done.stdout)["shown"]) == MAX_TILES
    assert done.stderr == f"mlimages: the sheet shows {MAX_TILES} of {count} classes, as it has at most 600 images\n"
    expected = (
        f"{count} images, {count} classes (the first {MAX_TILES} are shown); a random sample of up to 1 per class"
    )
    assert expected in (tmp_path / "sheet.html").read_text()


def test_a_sheet_as_png_holds_each_class_in_a_line(folder: Path, tmp_path: Path) -> None:
    draw_contact_sheet(folder, tmp_path / "sheet.png", image_property=PROP, per_class=2)
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))  # (H, W, 3)
    lines = {name: np.argwhere((pixels == colour).all(axis=2))[:, 0] for name, colour in COLOURS.items()}
    assert lines["blue"].size == lines["red"].size == 2 * 96 * 96  # 32 px, enlarged threefold
    assert lines["blue"].max() < lines["red"].min()


def test_a_mean_is_shown_whole_and_by_channel(tmp_path: Path) -> None:
    mean = np.stack([np.full((8, 8), value, np.float32) for value in (10.4, 99.6, 254.6)])
    np.save(tmp_path / "mean.npy", mean)
    tiles = make_mean_image_rows(tmp_path / "mean.npy")[0].tiles
    assert [tile.caption for tile in tiles] == ["mean", "R: 10.0", "G: 100.0", "B: 255.0"]
    assert tiles[0].pixels is not None
    assert tiles[0].pixels[0, 0].tolist() == [10, 100, 255]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY garbage", b"PK\x03\x04"], ids=["empty", "torn", "zip"])
def test_another_file_than_a_mean_image_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mean.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"mean\.npy cannot be read as a mean image"):
        make_mean_image_rows(tmp_path / "mean.npy")


@pytest.mark.browser
def test_a_sheet_as_a_page_has_a_section_of_each_class(folder: Path, open_page: OpenPage) -> None:
    out = folder.parent / "sheet.html"
    (folder / "red").rename(folder / "<b>red & co")
    draw_contact_sheet(folder, out, image_property=PROP, per_class=6)
    page = open_page(out)
    assert page.evaluate("[...document.images].every(image => image.naturalWidth == 32)")
    assert page.evaluate("[...document.querySelectorAll('h2')].map(h => h.firstChild.data.trim())") == [
        "<b>red & co",
        "blue",
    ]


def test_the_command_draws_and_says_what_is_next(run_cli: RunCli, folder: Path) -> None:
    labels = folder.parent / "labels.txt"
    labels.write_text("".join(f"images/{path.parent.name}/{path.name} [0,1]\n" for path in folder.rglob("*.png")))
    done = run_cli("show", "labels.txt", "--per-class", 11, "--gray")
    assert done.stdout == "sheet.png\n"
    assert "11 images of 2 classes, 1 unreadable\n" in done.stderr
    assert "next: mlimages" in done.stderr


def test_the_result_as_json_names_the_broken_images(folder: Path, tmp_path: Path) -> None:
    sheet = str(tmp_path / "sheet.html")
    printed = json.loads(CliRunner().invoke(app, ["show", str(folder), "-o", sheet, "--json"]).stdout)
    assert printed == {"sheet": sheet, "shown": {"blue": 5, "red": 6}, "broken": ["cut.png"]}


def test_another_suffix_or_an_unknown_way_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"^sheet.gif: a contact sheet must be a .png or .html file$"):
        draw_contact_sheet(folder, "sheet.gif", image_property=PROP)
    assert CliRunner().invoke(app, ["show", str(folder), "--resize", "stretch"]).exit_code == 2


def test_a_run_folder_is_not_a_folder_of_images(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "metrics.csv"):
        (folder / name).write_text("{}")
    with pytest.raises(
        InputError, match=r"images is a run folder: open \S+report\.html, or draw feature maps with `mli"
    ):
        draw_contact_sheet(folder, tmp_path / "sheet.png", image_property=PROP)


def test_what_was_read_from_a_table_is_printed(folder: Path, tmp_path: Path) -> None:
    (folder / "table.csv").write_text(
        "file,kind\n" + "".join(f"{path.relative_to(folder)},x\n" for path in folder.rglob("*.png"))
    )
    words = ["show", str(folder / "table.csv"), "--per-class", "1", "--size", "8", "-o", str(tmp_path / "sheet.png")]
    done = CliRunner().invoke(app, words)
    assert "table.csv: column file as image, kind as label; " in done.stderr
