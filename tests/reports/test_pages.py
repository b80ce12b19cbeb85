"""What holds for every page: one design, names escaped, nothing from the network, readable at any width."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mlimages.checks import check
from mlimages.core import BrokenImage, ClassScore, Fault, ImageProperty, Prediction, Proportion
from mlimages.inference import Evaluation
from mlimages.inference.evaluation import Latency
from mlimages.reports import (
    LayerScore,
    LearningCurvePoint,
    ProbeResult,
    SuspectLabel,
    compare_runs,
    draw_contact_sheet,
    draw_run,
    render_comparison,
    render_evaluation,
    render_probe,
    write_check_report,
    write_suspects,
)
from tests.browser import OpenPage
from tests.run_folders import make_run

HOSTILE = "<script>alert(1)<∕script>\"'&"
NAMES = (HOSTILE, "bees", f"a class with a {'very' * 16} long name")


def run_page(folder: Path) -> Path:
    run = make_run(folder / HOSTILE, names=NAMES, wrong=[0, 1, 9])
    write_suspects([SuspectLabel(folder / "images/bees/3.png", "bees", HOSTILE, 0.97)], run / "suspects.tsv")
    (run / "left_out.tsv").write_text(f"path\tcode\tdetail\nimages/{'9' * 60}.png\ttruncated\t{HOSTILE}\n")
    return draw_run(run)


def compare_page(folder: Path) -> Path:
    runs = [make_run(folder / name, names=NAMES, wrong=wrong, model=name)
            for name, wrong in [(f"{HOSTILE}1", [0]), ("another_rather_long_name", [*range(2, 20)])]]  # fmt: skip
    (folder / "compare.html").write_text(render_comparison(compare_runs(runs)))
    return folder / "compare.html"


def sheet_page(folder: Path) -> Path:
    make_run(folder / "run", names=NAMES)
    (folder / "images" / "bees" / "2.png").write_bytes(b"no image")
    draw_contact_sheet(folder / "images", folder / "sheet.html", image_property=ImageProperty(24))
    return folder / "sheet.html"


def check_page(folder: Path) -> Path:
    run = make_run(folder / "run", names=NAMES)
    first, second = (folder / "images" / "bees" / f"{n}.png" for n in (0, 1))
    second.write_bytes(first.read_bytes())
    (folder / "images" / "bees" / "2.png").write_bytes(b"no image")
    write_check_report(check([run / "train.txt", run / "val.txt"]), folder / "check.html")
    return folder / "check.html"


def evaluation_page(folder: Path) -> Path:
    image = folder / f"{HOSTILE}.png"
    Image.new("RGB", (80, 60), "orange").save(image)
    wrong = Prediction(str(image), (ClassScore(NAMES[0], 0, 0.9),), known=True)
    found = Evaluation(
        class_names=NAMES,
        confusion_matrix=((9, 1, 0), (0, 100, 0), (0, 0, 10)),
        mistakes=((wrong, 1),),
        broken_images=(BrokenImage(str(image), Fault.TRUNCATED, HOSTILE),),
        loss=0.5,
        calibration_error=0.1,
        num_unknown=3,
        images_per_s=100,
        decode_ms=Latency(1, 2),
        network_ms=Latency(3, 4),
    )
    (folder / "evaluation.html").write_text(render_evaluation(found, HOSTILE))
    return folder / "evaluation.html"


def probe_page(folder: Path, *layers: str) -> Path:
    accuracy = Proportion(0.9, 0.78, 0.99)
    cuts = tuple(LayerScore(name, 64, accuracy, is_within_noise=True) for name in layers or ("conv1", HOSTILE))
    curve = tuple(LearningCurvePoint(count, accuracy) for count in (5, 10, 20))
    found = ProbeResult(HOSTILE, 60, 3, 1, cuts, cuts[-1].layer_name, curve, Proportion(0.02, 0.01, 0.03))
    (folder / "probe.html").write_text(render_probe(found))
    return folder / "probe.html"


PAGES: list[Callable[[Path], Path]] = [run_page, compare_page, sheet_page, check_page, evaluation_page, probe_page]


@pytest.fixture(scope="module", params=PAGES, ids=lambda make: make.__name__)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of each kind."""
    page: Path = request.param(tmp_path_factory.mktemp("page"))
    return page


def test_names_are_escaped_and_nothing_is_loaded_from_elsewhere(path: Path) -> None:
    page = path.read_text()
    assert "<script" not in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert not re.findall(r"url\((?!#)|@import|<link(?! rel=\"icon\" href=\"data:,\")", page)


def test_every_section_is_in_the_table_of_contents(path: Path) -> None:
    page = path.read_text()
    contents = page[page.index("<nav") : page.index("</nav>")]
    sections = re.findall(r'<h2 id="([^"]+)"', page)
    assert re.findall(r'href="#([^"]+)"', contents) == sections
    assert len(set(sections)) == len(sections) > 1


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_page_can_be_read_offline_at_any_width(path: Path, open_page: OpenPage, width: int, dark: bool) -> None:
    page = open_page(path, width=width, dark=dark)
    assert page.console_errors == []
    assert page.requests == [page.url]
    assert not page.scrolls_sideways
    assert page.evaluate("[...document.images].every(image => image.naturalWidth && image.alt)")
    whole = "table => table.parentElement.scrollWidth <= table.parentElement.clientWidth"
    assert page.evaluate(f"[...document.querySelectorAll('table:not(.cells)')].every({whole})")
    styles = [("body", "backgroundColor"), ("body", "color"), ("svg text", "fill")]
    read = "(all => all.length ? getComputedStyle(all[0]).{1} : '')(document.querySelectorAll('{0}'))"
    colors = filter(None, (page.evaluate(read.format(*style)) for style in styles))
    ground, *texts = (sum(map(int, color[4:-1].split(","))) / 3 for color in colors)
    assert (ground < 60 and min(texts) > 200) if dark else (ground > 240 and max(texts) < 60)


@pytest.mark.browser
def test_the_name_of_a_layer_stays_on_one_line_in_a_narrow_window(tmp_path: Path, open_page: OpenPage) -> None:
    page = open_page(probe_page(tmp_path, "conv_stem", "blocks.6", "conv_head"), width=400)
    lines = "th => (range => (range.selectNodeContents(th), range.getClientRects().length))(document.createRange())"
    assert page.evaluate(f"[...document.querySelectorAll('th[scope=row]')].map({lines})") == [1, 1, 1]


def test_both_images_of_a_duplicate_are_shown(tmp_path: Path) -> None:
    page = check_page(tmp_path).read_text()
    section = page[page.index('id="duplicate"') :]
    assert section[: section.index("</figure>")].count("<img") == 2


def test_only_settings_that_differ_from_the_defaults_are_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", lr=0.5, epochs=10, freeze="head")
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config[:-1] + ', "defaults": {"epochs": 10, "lr": 0.01, "freeze": "auto"}}')
    settings = draw_run(run).read_text().partition('id="settings"')[2]
    assert ">lr</th>" in settings
    assert ">epochs</th>" not in settings
    assert ">freeze</th>" not in settings
