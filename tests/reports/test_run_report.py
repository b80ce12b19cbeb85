"""The page and the plots of a run, looked at in a browser."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mlimages import reports
from mlimages.core import NoProgress, RunError, make_install_command
from mlimages.inference import OnnxBundle
from mlimages.reports import SuspectLabel, draw_run, plots, read_run, run_page, write_suspects
from mlimages.reports.plots import plot_curves
from mlimages.training import fine_tune, finish, read_config
from tests.browser import OpenPage
from tests.run_folders import NAMES, make_run
from tests.training.conftest import config_for, write_colours

TEXT = "document.body.innerText"


def make_suspect_run(folder: Path) -> Path:
    run = make_run(folder / "first", wrong=[0, 1, 9])
    write_suspects([SuspectLabel(folder / "images/ants/3.png", "ants", "bees", 0.97)], run / "suspects.tsv")
    return run


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 1999, 2000, 4321])
def test_a_scatter_plot_has_at_most_its_maximum_of_points(count: int) -> None:
    axes = Figure().subplots()
    plots._draw_sizes(axes, np.ones(count, [("width", np.int64), ("height", np.int64)]))
    assert min(count, plots.MAX_SCATTER_POINTS) / 2 < len(axes.collections[0].get_offsets()) <= plots.MAX_SCATTER_POINTS


@pytest.mark.parametrize("count", [1, 2, 30])
def test_the_curves_have_whole_epochs(count: int) -> None:
    names = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
    figure = plot_curves([{"epoch": n + 1, **dict.fromkeys(names, 0.5)} for n in range(count)])
    figure.canvas.draw()
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks
    assert all(re.fullmatch("\N{MINUS SIGN}?\\d+", tick) for tick in ticks)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_suspect_run(tmp_path)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an image that was left out, and its page; tests only read it."""
    run = make_suspect_run(tmp_path_factory.mktemp("drawn"))
    (run / "left_out.tsv").write_text("path\tcode\tdetail\nimages/wasps/9.png\ttruncated\tends too early\n")
    assert draw_run(run) == run / "report.html"
    return run


def test_plots_are_drawn_and_the_same_run_gives_the_same_page(drawn: Path) -> None:
    for name in ("curves.png", "confusion.png"):
        with Image.open(drawn / name) as image:
            assert min(image.size) > 300
    before = (drawn / "report.html").read_bytes()
    assert draw_run(drawn).read_bytes() == before


@pytest.mark.browser
def test_the_page_shows_the_results_of_the_run(drawn: Path, open_page: OpenPage) -> None:
    page = open_page(drawn / "report.html")
    text = page.evaluate(TEXT)
    assert "87.5 % accuracy" in text
    assert "21 of 24 validation images classified correctly; 95 % interval 69 to 96 %." in text
    assert "images/wasps/9.png: truncated" in text
    assert "ants predicted as bees: 2 of 8" in text
    assert "labelled ants (probability 3 %), predicted bees" in text
    assert "mlimages label --drop" in text
    captions = page.evaluate("[...document.querySelectorAll('figcaption')].map(c => c.innerText.split('\\n')[0])")
    assert captions[:3] == ["ants, predicted bees (90 %)"] * 2 + ["bees, predicted wasps (90 %)"]
    rows = page.evaluate(
        "[...document.querySelectorAll('.cells tbody tr')].map(r => [...r.cells].map(c => c.innerText.split('\\n')[0]))"
    )
    assert rows == [["ants", "6", "2", ""], ["bees", "", "7", "1"], ["wasps", "", "", "8"]]
    assert page.evaluate("[...document.images].every(image => image.naturalWidth == 24)"), "the network's input size"


@pytest.mark.browser
def test_every_part_can_be_reached_without_a_mouse_or_eyes(drawn: Path, open_page: OpenPage) -> None:
    page = open_page(drawn / "report.html")
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate("document.querySelectorAll('h1').length") == 1
    assert page.evaluate("[...document.querySelectorAll('svg')].every(s => s.getAttribute('aria-label').length > 20)")
    assert page.evaluate("[...document.querySelectorAll('.scrolls')].every(s => s.tabIndex == 0)")
    assert page.evaluate("[...document.querySelectorAll('th')].every(t => t.scope)")


@pytest.mark.browser
def test_names_from_outside_stay_text(tmp_path: Path, open_page: OpenPage) -> None:
    names = ("<script>document.title='taken'</script>", "b & c", "$x_1$ \\frac", "猫")
    run = make_run(tmp_path / "run", names=[name.replace("/", "∕") for name in names], wrong=[0])
    page = open_page(draw_run(run))
    assert page.evaluate("document.title") == "Run run"
    assert page.console_errors == []
    assert "b & c" in page.evaluate(TEXT)
    assert "$x_1$ \\frac" in page.evaluate(TEXT)


@pytest.mark.browser
def test_the_same_image_in_two_classes_is_shown_side_by_side(run: Path, open_page: OpenPage) -> None:
    images = run.parent / "images"
    with Image.open(images / "ants/2.png") as original:
        original.save(images / "wasps/5.png", compress_level=1)
    page = open_page(draw_run(run))
    shown = page.evaluate("[...document.querySelectorAll('.pairs figcaption')].map(c => c.innerText)")
    assert shown == ["ants ants/2.png\nwasps wasps/5.png"]
    assert page.evaluate("document.querySelectorAll('.pairs img').length") == 2
    page.evaluate("document.querySelector('.pairs').append(document.querySelector('.pairs figure').cloneNode(true))")
    page.evaluate("document.querySelector('.pairs img').remove()")  # as a mistake that is not explained
    assert page.evaluate("new Set([...document.querySelectorAll('.pairs img')].map(i => i.clientWidth)).size") == 1


def test_mistakes_are_explained_unless_the_network_is_large(
    run: Path, cnn_bundle: OnnxBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(cnn_bundle.path, run / "model.onnx")
    for max_bytes, is_explained in ((run_page.MAX_EXPLAINED_MODEL_BYTES, True), (1000, False)):
        monkeypatch.setattr(run_page, "MAX_EXPLAINED_MODEL_BYTES", max_bytes)
        page = draw_run(run, overwrite=True).read_text()
        assert bool(re.search("is hidden|hiding a region", page)) == is_explained
        assert f"mlimages explain {run} IMAGE" in page


def test_many_classes_get_no_table_of_cells(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", names=[f"class {n}" for n in range(45)], per_class=2, wrong=[4])
    page = draw_run(run).read_text()
    assert 'class="cells"' not in page
    assert "class 2 predicted as class 3: 1 of 2" in page


def test_an_image_that_is_gone_costs_its_tile_alone(run: Path) -> None:
    (run.parent / "images/ants/0.png").unlink()
    assert draw_run(run).read_text().count("cannot be read") == 1


def test_a_run_that_has_not_ended_shows_what_there_is(run: Path) -> None:
    for name in ("val_predictions.csv", "result.json", "suspects.tsv"):
        (run / name).unlink()
    assert "is not finished" in draw_run(run).read_text()
    (run / "metrics.csv").unlink()
    assert "is not finished" in draw_run(run).read_text()


def test_predictions_of_earlier_versions_have_class_indices(run: Path) -> None:
    expected = read_run(run).predictions
    path = run / "val_predictions.csv"
    lines = path.read_text().splitlines()
    for index, name in enumerate(read_run(run).class_names):
        lines[1:] = [line.replace(f",{name},", f",{index},", 1) for line in lines[1:]]
    path.write_text("\n".join(lines) + "\n")
    found = read_run(run).predictions
    assert found
    assert expected
    assert found.labels.tolist() == expected.labels.tolist()


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", "{"), ("config.json", "[]"), ("classes.txt", "one\n"), ("metrics.csv", "epoch\nx\n"),
     ("val_predictions.csv", "path,label,a,b,c\np,other,1,0,0\n"), ("val_predictions.csv", "path,label\np\n"),
     ("result.json", "[1]"), ("result.json", "{"),
     *((name, "\0" * 200_000) for name in ("metrics.csv", "val_predictions.csv", "left_out.tsv", "result.json"))],
)  # fmt: skip
def test_a_damaged_file_is_named_in_one_error(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(RunError, match=f"cannot be read as a run folder: .*{re.escape(name)}"):
        read_run(run)


def test_a_class_name_that_is_listed_twice_is_an_error(run: Path) -> None:
    (run / "classes.txt").write_text("a\nb\na\n")
    with pytest.raises(RunError, match=r"classes.txt lists the class 'a' more than once: give each"):
        read_run(run)


def test_class_names_that_are_missing_or_not_utf_8_are_named_as_such(run: Path) -> None:
    for damage in ((run / "classes.txt").unlink, lambda: (run / "classes.txt").write_bytes(b"\xff")):
        damage()
        with pytest.raises(RunError, match=r"classes.txt is missing or damaged: write a class name per line"):
            read_run(run)


@pytest.mark.parametrize("name", ["a\u2028b", "a\x85b", "a\x0bb", "a\x1cb", "a b", "ä"])
def test_a_class_name_ends_at_the_end_of_its_line(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run", names=[name, "bees"], per_class=2)
    assert read_run(run).class_names == (name, "bees")
    (run / "classes.txt").write_bytes((run / "classes.txt").read_bytes().replace(b"\n", b"\r\n").rstrip())
    assert read_run(run).class_names == (name, "bees")


def test_both_readers_of_a_run_refuse_another_version_alike(run: Path) -> None:
    config = run / "config.json"
    config.write_text(config.read_text().replace('"version": 1', '"version": 9'))
    for read in (read_run, read_config):
        with pytest.raises(RunError, match=r"config\.json has format version 9"):
            read(run)


def test_another_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        read_run(tmp_path)


def test_the_figures_of_the_folder_are_read(run: Path) -> None:
    read = read_run(run)
    assert (read.class_names, len(read.epochs), read.final_metrics) == (NAMES, 2, {"seconds": 4.0, "epochs": 2})
    assert read.accuracy.value == 21 / 24


@pytest.mark.train
def test_finetune_ends_with_plots_and_a_page_that_names_what_was_left_out(tmp_path: Path) -> None:
    labels, torn = write_colours(tmp_path), tmp_path / "set/blue/00.png"
    torn.write_bytes(torn.read_bytes()[:99])
    run = fine_tune(config_for(labels, model="lenet5", epochs=2)).run
    page = (run / "report.html").read_text()
    assert "blue/00.png: truncated" in page
    settings = page.partition('id="settings"')[2]
    assert "epochs</th>" in settings
    assert "batch size</th>" not in settings
    assert "% accuracy" in page
    assert (run / "curves.png").exists()
    assert (run / "confusion.png").exists()


def test_without_the_extra_a_run_ends_all_the_same_and_says_so(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in ("pages", "plots", "run_page"):
        monkeypatch.delitem(sys.modules, f"mlimages.reports.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("draw_run", "pages", "plots", "run_page"):
        monkeypatch.delattr(reports, name, raising=False)
    finish.write_plots_and_report(run, overwrite=False, progress=NoProgress())
    assert not (run / "report.html").exists()
    assert make_install_command("report") in caplog.text
