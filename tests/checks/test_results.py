"""What a report says as JSON, which files are moved where, and which label files get the new paths."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mlimages.checks import CheckReport, Code, Move, Thresholds, check, move_files, plan_moves, write_results
from mlimages.checks.result import SimilarPair
from mlimages.core import InputError, LabeledPath
from mlimages.labels import LabelFile, label_dir_auto, write_label_file
from tests.checks.test_validation import jpeg, scene
from tests.images.odd_images import saved

SMALL = {number: scene(number, width=60, height=40) for number in range(6)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sound images, a duplicate, a PNG named .jpg, and one of each kind that is broken, in two folders."""
    images = {
        "a/0.jpg": jpeg(SMALL[0]), "a/1.jpg": jpeg(SMALL[1]), "b/0 again.jpg": jpeg(SMALL[0]),
        "b/2.jpg": saved(SMALL[2], "PNG"), "a/cut.jpg": jpeg(SMALL[3])[:900], "b/cut.jpg": jpeg(SMALL[4])[:900],
        "b/empty.jpg": b"", "b/page.jpg": b"<!doctype html>",
    }  # fmt: skip
    for name, data in images.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    items = [LabeledPath(tmp_path / "photos" / name, 0) for name in images]
    path = tmp_path / "labels.txt"
    LabelFile(path, items=lambda: items, class_names=("things",)).write(path)
    return tmp_path


def moved(folder: Path, report: CheckReport) -> dict[str, str]:
    return {
        move.source.resolve().relative_to(folder).as_posix(): move.target.relative_to(folder).as_posix()
        for move in plan_moves(report)
    }


MOVES = {
    "photos/b/2.jpg": "photos/b/2.png",
    "photos/a/cut.jpg": "labels_quarantine/photos/a/cut.jpg",
    "photos/b/cut.jpg": "labels_quarantine/photos/b/cut.jpg",
    "photos/b/empty.jpg": "labels_quarantine/photos/b/empty.jpg",
    "photos/b/page.jpg": "labels_quarantine/photos/b/page.jpg",
}


def test_broken_files_are_moved_below_the_quarantine_and_wrong_suffixes_corrected(folder: Path) -> None:
    report = check(folder / "labels.txt")
    assert moved(folder, report) == MOVES
    moves = plan_moves(report)
    assert {move.code for move in moves} == {Code.WRONG_SUFFIX, Code.TRUNCATED, Code.EMPTY, Code.NOT_AN_IMAGE}
    before = {move.target: move.source.read_bytes() for move in moves}
    move_files(moves)
    assert {move.target: move.target.read_bytes() for move in moves} == before
    assert not any(move.source.exists() for move in moves)


def test_a_relative_link_that_is_moved_still_leads_to_its_file(folder: Path) -> None:
    linked = [folder / name for name in MOVES if name.endswith(".jpg")]
    for number, path in enumerate(linked):
        path.rename(folder / str(number))
        path.symlink_to(f"../../{number}")
    moves = plan_moves(check(folder / "labels.txt"))
    before = {move.target: move.source.read_bytes() for move in moves}
    assert {move.target.relative_to(folder).as_posix() for move in moves} == set(MOVES.values())
    move_files(moves)
    assert {move.target: move.target.read_bytes() for move in moves} == before
    links = [move.target for move in moves if move.target.is_symlink()]
    assert len(links) == len(linked) > 1
    assert not any(link.readlink().is_absolute() for link in links)


def test_relative_links_are_resolved_as_the_system_does_and_follow_a_file_that_is_moved_too(folder: Path) -> None:
    photos, elsewhere = folder / "photos", folder / "elsewhere/deep"
    elsewhere.mkdir(parents=True)
    (photos / "b/page.jpg").rename(elsewhere.parent / "page")
    (photos / "b/deep").symlink_to(elsewhere)
    (photos / "b/page.jpg").symlink_to("deep/../page")  # elsewhere/page, not photos/b/page
    (photos / "a/cut.jpg").unlink()
    (photos / "a/cut.jpg").symlink_to("../b/cut.jpg")  # listed before its file
    moves = plan_moves(check(folder / "labels.txt"))
    before = {move.target: move.source.read_bytes() for move in moves}
    assert {target.relative_to(folder).as_posix() for target in before} == set(MOVES.values())
    move_files(moves)
    assert {move.target: move.target.read_bytes() for move in moves} == before


@pytest.mark.parametrize("links", [{"c.jpg": "2.jpg"}, {"c.png": "2.jpg"}, {"c.jpg": "d.jpg", "d.jpg": "2.jpg"}])
def test_a_file_to_which_another_image_is_a_link_is_not_renamed(
    folder: Path, links: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    for name, target in links.items():
        (folder / "photos/b" / name).symlink_to(target)
    names = ["2.jpg", *links]
    write_label_file(folder / "some.txt", [LabeledPath(folder / "photos/b" / name, 0) for name in names], ["things"])
    before = (folder / "photos/b/2.jpg").read_bytes()
    report = check(folder / "some.txt")
    moves = plan_moves(report)
    move_files(moves)
    listed = [item.path for item in LabelFile(write_results(report, moves)[0])]
    assert len(listed) == len(names)
    assert {path.read_bytes() for path in listed} == {before}
    assert (folder / "photos/b/2.jpg").exists()
    assert "2.jpg is not renamed" in caplog.text


def test_nothing_is_moved_over_another_file(folder: Path) -> None:
    (folder / "photos/b/2.png").write_bytes(b"mine")
    (folder / "photos/b/2_2.png").symlink_to("nowhere")
    found = moved(folder, check(folder / "labels.txt"))
    assert found == MOVES | {"photos/b/2.jpg": "photos/b/2_3.png"}


def test_images_outside_the_folder_of_the_labels_are_moved_by_name_and_numbered(folder: Path) -> None:
    (folder / "lists").mkdir()
    names = ["photos/a/cut.jpg", "photos/b/cut.jpg", "photos/a/cut.jpg", "photos/b/0 again.jpg"]
    items = [LabeledPath(folder / name, 0) for name in names]
    write_label_file(folder / "lists/some.txt", items, ["things"])
    assert moved(folder, check(folder / "lists/some.txt")) == {  # a file that is listed twice once
        "photos/a/cut.jpg": "lists/some_quarantine/cut.jpg", "photos/b/cut.jpg": "lists/some_quarantine/cut_2.jpg",
    }  # fmt: skip


def test_a_file_that_is_no_image_any_more_keeps_its_suffix(folder: Path) -> None:
    report = check(folder / "labels.txt")
    (folder / "photos/b/2.jpg").write_bytes(b"text")
    assert moved(folder, report) == {source: target for source, target in MOVES.items() if "2.jpg" not in source}


def test_moved_images_have_their_new_paths_in_what_is_written_and_in_a_label_file_of_ours(folder: Path) -> None:
    labels = folder / "labels.txt"
    report = check(labels)
    moves = plan_moves(report)
    move_files(moves)
    result_paths = [folder / f"labels_{end}" for end in ("checked.txt", "rejected.tsv", "warnings.tsv")]
    assert write_results(report, moves) == [*result_paths, labels]
    names = [item.path.relative_to(folder).as_posix() for item in LabelFile(labels)]
    assert set(MOVES.values()) <= set(names)
    assert set(MOVES) & set(names) == set()
    assert LabelFile(labels).class_names == ("things",)
    kept = [item.path.relative_to(folder).as_posix() for item in LabelFile(result_paths[0])]
    assert kept == ["photos/a/0.jpg", "photos/a/1.jpg", "photos/b/0 again.jpg", "photos/b/2.png"]
    for table in result_paths[1:]:
        shown = [line.split("\t")[0] for line in table.read_text().splitlines()[1:]]
        assert set(shown) & set(MOVES) == set()
        assert shown
    again = check(labels)
    assert again.errors == report.errors
    assert moved(folder, again) == {}  # what is in the quarantine stays there


@pytest.mark.parametrize("kind", ["edited", "not moved", "of a folder", "nothing moved"])
def test_other_label_files_stay_as_they_are(folder: Path, kind: str) -> None:
    labels = folder / "labels.txt"
    if kind == "edited":
        labels.write_text(labels.read_text().replace("photos/a/0.jpg 0\n", ""))
    before = labels.read_bytes()
    report = check(label_dir_auto(folder / "photos").labels if kind == "of a folder" else labels)
    moves = plan_moves(report)
    if kind == "not moved":
        moves = [Move(folder / "other.jpg", folder / "others.jpg", Code.EMPTY)]
    written = write_results(report, [] if kind == "nothing moved" else moves)
    assert len(written) == 3
    assert labels.read_bytes() == before


def test_a_file_of_results_that_was_edited_is_written_over_only_if_asked(folder: Path) -> None:
    report = check(folder / "labels.txt")
    checked, *_ = write_results(report)
    write_results(report)
    checked.write_text("mine")
    with pytest.raises(InputError, match="edited since"):
        write_results(report)
    assert checked.read_text() == "mine"
    write_results(report, overwrite=True)
    assert len(list(LabelFile(checked))) == 4


def test_a_report_as_json_has_its_counts_groups_pairs_and_thresholds(folder: Path) -> None:
    report = check(folder / "labels.txt", thresholds=Thresholds(blur=0.2))
    one, other = folder / "photos/a/0.jpg", folder / "photos/b/0 again.jpg"
    report = replace(report, duration_s=1.23456)
    values = json.loads(json.dumps(report.to_dict()))
    assert values == {
        "checked": 8, "ok": 4, "errors": {"empty": 1, "not-an-image": 1, "truncated": 2},
        "warnings": {"duplicate": 1, "wrong-suffix": 1}, "duplicate_groups": [[str(one), str(other)]],
        "feature_pairs": None, "seconds": 1.235, "files": [str(folder / "labels.txt")],
        "thresholds": asdict(Thresholds(blur=0.2)),
    }  # fmt: skip
    pairs = replace(report, feature_pairs=(SimilarPair(one, other, 0.87654),)).to_dict()["feature_pairs"]
    assert pairs == [[str(one), str(other), 0.877]]
    assert replace(report, feature_pairs=()).to_dict()["feature_pairs"] == ()
    page = report._repr_html_()
    assert "8 images checked, 4 without an error" in page
    for code, count in (report.errors | report.warnings).items():
        assert f"<td>{code}</td><td>{count}</td>" in page.replace("\n", "")
