"""The page of a check."""

from pathlib import Path

from mlimages.checks import check
from mlimages.checks.codes import MIN_IMAGES_FOR_MEDIAN
from mlimages.core import LabeledPath
from mlimages.labels import write_label_file
from mlimages.reports import write_check_report
from tests.checks.test_validation import jpeg, listed, scene, sheet
from tests.images.odd_images import saved

HOSTILE = "<script>alert(1)</script>"


def test_the_page_shows_every_code_with_its_images_and_escapes_names(tmp_path: Path) -> None:
    images = {f"t{n}.jpg": jpeg(scene(n, width=120, height=80)) for n in range(8)}
    odd = {"cut.jpg": jpeg(scene(8))[:900], "grey.jpg": jpeg(scene(9).convert("L")), "sheet.jpg": jpeg(sheet())}
    again = {"t0 again.jpg": jpeg(scene(0, width=120, height=80), quality=50), f"{'x' * 60}.png": jpeg(scene(10))}
    train = listed(tmp_path, images | odd | again, name="train.txt")
    val = listed(tmp_path, {"v.jpg": jpeg(scene(1, width=120, height=80))}, name="val.txt")
    (tmp_path / "train_class_def.txt").write_text(f"0 {HOSTILE}\n1 rare\n")
    report = check([train, val])
    assert {"truncated", "near-duplicate", "wrong-suffix"} <= {*report.errors, *report.warnings}
    write_check_report(report, tmp_path / "check.html")
    page = (tmp_path / "check.html").read_text()
    for code in (*report.errors, *report.warnings):
        assert f'id="{code}"' in page
    assert page.count("data:image/jpeg") >= 8
    assert HOSTILE not in page
    section = page[page.index('id="near-duplicate"') :]
    assert section[: section.index("</figure>")].count("<img") == 2, "both images of a pair"


def test_a_finding_about_a_class_is_a_line_without_an_image(tmp_path: Path) -> None:
    images = {
        f"{n}.png": saved(scene(n, width=8, height=8).resize((80, 80)), "PNG") for n in range(MIN_IMAGES_FOR_MEDIAN)
    }
    report = check([listed(tmp_path, images)])
    assert report.warnings["class-blurred"] == 1
    write_check_report(report, tmp_path / "check.html")
    page = (tmp_path / "check.html").read_text()
    section = page[page.index('id="class-blurred"') : page.index('id="classes"')]
    assert "1 class" in section
    assert "cannot be read" not in section


def test_of_many_copies_the_first_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    data = jpeg(scene(0))
    write_check_report(check([listed(tmp_path, {f"{n}.jpg": data for n in range(11)})]), tmp_path / "check.html")
    assert "The first 8 of 11 images." in (tmp_path / "check.html").read_text()


def test_a_check_of_missing_images_only_is_still_a_page(tmp_path: Path) -> None:
    write_label_file(tmp_path / "l.txt", [LabeledPath(tmp_path / "none.jpg", 0)], ["a"])
    write_check_report(check([tmp_path / "l.txt"]), tmp_path / "check.html")
    assert 'id="missing"' in (tmp_path / "check.html").read_text()
