"""Class names of any script are drawn with a font that has them, or replaced by the class index: never as boxes."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from mlimages.core import ImageProperty
from mlimages.dataset import MeanImage
from mlimages.dataset.mean_image import draw_class_means
from mlimages.images import CLASS_INDICES_NOTE, draw_text_line, find_font_families, replace_undrawable_names, text
from mlimages.reports.contact_sheet import SheetRow, Tile, write_sheet
from mlimages.reports.plots import plot_confusion_matrix, save_png

JAPANESE, CYRILLIC = "猫", "кошка"


@pytest.fixture
def japanese_font(tmp_path: Path) -> Path:
    """A font with a filled square for each of a few characters."""
    pen = TTGlyphPen(None)
    for point, draw in zip([(100, 0), (100, 800), (900, 800), (900, 0)], [pen.moveTo, *[pen.lineTo] * 3], strict=True):
        draw(point)
    pen.closePath()
    square, names = pen.glyph(), [".notdef", "square"]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(char): "square" for char in JAPANESE})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "IPAGothic", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWeightClass=400)
    builder.setupPost()
    builder.save(tmp_path / "japanese.ttf")
    return tmp_path / "japanese.ttf"


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[font_manager.FontManager]:
    """matplotlib's own fonts alone, whichever others are installed."""
    manager = font_manager.fontManager
    own = [entry for entry in manager.ttflist if "mpl-data" in Path(entry.fname).parts]
    monkeypatch.setattr(manager, "ttflist", own)
    text.find_installed_fonts.cache_clear()
    yield manager
    text.find_installed_fonts.cache_clear()


def draw_all(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    """The images that show class names."""
    folder.mkdir()
    pixels = np.full((1, 64, 64), 200, np.float32)
    mean = MeanImage(pixels, (0.0,), (1.0,), 2, ImageProperty(64), class_means=dict.fromkeys(range(len(names)), pixels))
    draw_class_means(mean, names, folder / "means.png")
    tile = Tile("0.png", np.zeros((8, 8, 3), np.uint8))
    rows = [SheetRow(name, 3, (tile,), label) for label, name in enumerate(names)]
    write_sheet(rows, folder / "sheet.png", title="sheet", note="")
    counts = tuple(tuple(1 for _ in names) for _ in names)
    save_png(
        plot_confusion_matrix(counts, names), folder / "confusion.png"
    )  # a missing glyph is a warning: an error here
    return {path.name: np.asarray(Image.open(path).convert("L")) for path in sorted(folder.iterdir())
            if path.suffix == ".png"}  # fmt: skip


def test_a_name_that_no_font_has_is_drawn_as_its_number(
    fonts: font_manager.FontManager, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert replace_undrawable_names(["dog", CYRILLIC, JAPANESE]) == ["dog", CYRILLIC, "2"]
    assert f"no installed font can display {JAPANESE}: PNG files show class indices instead" in caplog.text
    shown, numbers = (draw_all(tmp_path / f"{ord(n)}", ["dog", CYRILLIC, n]) for n in (JAPANESE, "2"))
    assert list(shown) == ["confusion.png", "means.png", "sheet.png"]
    assert (shown["means.png"][:-16] == numbers["means.png"]).all()
    assert (shown["means.png"][-16:] < 128).any(), "the note"
    assert (shown["sheet.png"][48:] == numbers["sheet.png"][48:]).all()
    assert (shown["sheet.png"][:48] != numbers["sheet.png"][:48]).any(), "the note"
    figure = plot_confusion_matrix(((1, 0), (0, 1)), ["dog", JAPANESE])
    assert figure.axes[0].get_xlabel() == f"predicted class\n({CLASS_INDICES_NOTE})"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["dog", "1"]


def test_names_are_drawn_with_an_installed_font_that_has_their_characters(
    fonts: font_manager.FontManager, japanese_font: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fonts.addfont(japanese_font)
    names = ["dog", CYRILLIC, JAPANESE]
    assert replace_undrawable_names(names) == names
    assert find_font_families(names) == ["DejaVu Sans", "IPAGothic"]
    for name in names[1:]:
        font = text.find_font(name)
        assert font is not None
        with TTFont(font.fname) as file:
            assert {ord(char) for char in name} <= set(file.getBestCmap())
    drawn, numbers = (draw_all(tmp_path / f"{ord(n)}", ["dog", CYRILLIC, n]) for n in (JAPANESE, "2"))
    assert not caplog.records
    for name, image in drawn.items():
        assert image.shape != numbers[name].shape or (image != numbers[name]).any(), name


LINE = "class names of any length, drawn in one line"
DEFAULT = ImageFont.load_default(14)


def drawn(line: str, *, width: float = 1000) -> tuple[np.ndarray, float]:
    """The pixels of a line of text at (5, 3), and its right end."""
    image = Image.new("RGB", (700, 30), "white")
    end = draw_text_line(image, (5, 3), line, 14, width=width)
    return np.asarray(image), end


def in_default_font(line: str) -> np.ndarray:
    image = Image.new("RGB", (700, 30), "white")
    ImageDraw.Draw(image).text((5, 3), line, "black", DEFAULT)
    return np.asarray(image)


@pytest.mark.parametrize("cut", [0, 2, 3, 20, len(LINE) - 1])
def test_a_line_is_shortened_by_as_few_letters_as_fit(cut: int) -> None:
    shown = f"{LINE[:-cut]}..." if cut else LINE
    least = DEFAULT.getlength(shown)
    for width in (least, least + 0.5):
        image, end = drawn(LINE, width=width)
        assert np.array_equal(image, in_default_font(shown))
        assert end == 5 + least
    image, end = drawn(LINE, width=least - 0.5)
    assert end < 5 + least or cut == len(LINE) - 1
    assert drawn(LINE, width=1)[1] == 5 + DEFAULT.getlength(f"{LINE[0]}..."), "one letter is always left"
    assert drawn("x" * 300, width=5000)[1] == drawn("x" * 200, width=5000)[1] != drawn("x" * 199, width=5000)[1]


def test_what_cannot_be_printed_or_drawn_is_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "find_font", lambda line: None)
    for line, shown in (("a\tb\x00c\n", "a?b?c?"), ("né!", "n?!"), ("plain", "plain")):
        assert np.array_equal(drawn(line)[0], in_default_font(shown))


def test_a_line_in_another_script_is_drawn_whole_with_its_font(
    fonts: font_manager.FontManager, japanese_font: Path
) -> None:
    fonts.addfont(japanese_font)
    image, end = drawn(JAPANESE * 3)
    font = ImageFont.truetype(japanese_font, 14)
    assert end == 5 + font.getlength(JAPANESE * 3)
    assert (image < 128).sum() > 200, "three squares"
    assert not np.array_equal(image, in_default_font("???"))


def test_only_regular_fonts_of_known_families_that_are_there_are_installed(
    fonts: font_manager.FontManager, japanese_font: Path, tmp_path: Path
) -> None:
    fonts.addfont(japanese_font)
    (own,) = (each for each in fonts.ttflist if each.name == "IPAGothic")
    changes = [
        {"fname": str(tmp_path / "gone.ttf")}, {"style": "italic"}, {"weight": 700}, {"stretch": "condensed"},
        {"name": "Comic Sans"}, {"fname": str(japanese_font), "name": "Unifont", "index": 0},
    ]  # fmt: skip
    fonts.ttflist = [*(replace(own, **change) for change in changes), own]
    found = text.find_installed_fonts()
    assert [(font.name, font.fname, getattr(font, "index", 0)) for font in found] == [
        ("IPAGothic", str(japanese_font), 0), ("Unifont", str(japanese_font), 0),
    ]  # fmt: skip


def test_every_script_is_drawn_or_replaced_whatever_is_installed(tmp_path: Path) -> None:
    names = ["café", CYRILLIC, JAPANESE, "قط", "बिल्ली", "แมว", "🐈"]
    for number, (name, shown) in enumerate(zip(names, replace_undrawable_names(names), strict=True)):
        assert shown in (name, str(number))
    draw_all(tmp_path / "all", names)


def test_without_matplotlib_names_beyond_ascii_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "find_installed_fonts", tuple)
    assert replace_undrawable_names(["dog", "café"], [4, 7]) == ["dog", "7"]
