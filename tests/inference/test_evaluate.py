"""Measuring a bundle on a label file."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlimages.cli.predictions import format_evaluation
from mlimages.core import InputError, LabeledPath
from mlimages.inference import OnnxBundle, Predictor, evaluate, softmax
from mlimages.inference.class_alignment import align_class_indices
from mlimages.labels import LabelFile, write_label_file
from mlimages.reports import render_evaluation
from tests.browser import OpenPage
from tests.conftest import RunCli
from tests.deploying import made_images

pytestmark = pytest.mark.train
NAMES = ("class0", "class1", "class2")


@pytest.fixture
def items(tmp_path: Path) -> list[LabeledPath]:
    return made_images(tmp_path / "p", 12)


def labels(folder: Path, items: list[LabeledPath], names: tuple[str, ...] = NAMES) -> LabelFile:
    write_label_file(folder / "val.txt", items, names)
    return LabelFile(folder / "val.txt")


def test_right_and_wrong_answers_are_counted_as_predict_gives_them(
    cnn_bundle: OnnxBundle, items: list[LabeledPath], tmp_path: Path
) -> None:
    predictor = Predictor(cnn_bundle)
    said = [result.top[0].label for result in predictor([item.path for item in items])]  # type: ignore[union-attr]
    right = sum(guess == item.label for guess, item in zip(said, items, strict=True))
    found = evaluate(predictor, labels(tmp_path, items))
    assert (found.num_images, found.accuracy.value) == (12, right / 12)
    assert found.accuracy.low < found.accuracy.value < found.accuracy.high
    assert len(found.mistakes) == 12 - right
    for label, row in enumerate(found.confusion_matrix):
        assert list(row) == [
            sum(item.label == label and guess == each for guess, item in zip(said, items, strict=True))
            for each in range(3)
        ]


def test_the_loss_is_that_of_the_logits_divided_by_the_temperature(
    cnn_bundle: OnnxBundle, items: list[LabeledPath], tmp_path: Path
) -> None:
    predictor = Predictor(replace(cnn_bundle, temperature=2.0))
    rows = predictor.compute_output_rows([predictor.decode(item.path)[0] for item in items])  # type: ignore[misc]
    shares = softmax(np.array([row.logits for row in rows]), 2.0)  # (N, classes)
    expected = -np.log(shares[np.arange(len(items)), [item.label for item in items]]).mean()
    assert evaluate(predictor, labels(tmp_path, items)).loss == pytest.approx(expected)


def test_classes_are_matched_by_name_whatever_their_order(
    cnn_bundle: OnnxBundle, items: list[LabeledPath], tmp_path: Path
) -> None:
    turned = [replace(item, label=(item.label + 1) % 3) for item in items]
    (tmp_path / "turned").mkdir()
    predictor = Predictor(cnn_bundle)
    plain = evaluate(predictor, labels(tmp_path, items))
    other = evaluate(predictor, labels(tmp_path / "turned", turned, ("class2", "class0", "class1")))
    assert plain.confusion_matrix == other.confusion_matrix


def test_a_class_that_the_bundle_does_not_know_is_an_error(
    cnn_bundle: OnnxBundle, items: list[LabeledPath], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"'dogs'.*which is not in.*class0, class1, class2.*rename it in \S+_def.txt$"):
        evaluate(Predictor(cnn_bundle), labels(tmp_path, items, ("class0", "class1", "dogs")))
    (tmp_path / "plain.txt").write_text("".join(f"{item.path} {item.label}\n" for item in items))
    with pytest.raises(InputError, match=r"write the class names to \S+/plain_class_def.txt, one per line"):
        evaluate(Predictor(cnn_bundle), LabelFile(tmp_path / "plain.txt"))


def test_a_bundle_with_two_classes_of_one_name_cannot_be_evaluated_on_that_class(
    cnn_bundle: OnnxBundle, items: list[LabeledPath], tmp_path: Path
) -> None:
    bundle = replace(cnn_bundle, class_names=(*cnn_bundle.class_names[:-1], cnn_bundle.class_names[0]))
    with pytest.raises(InputError, match=f"more than one class '{bundle.class_names[0]}'"):
        align_class_indices(labels(tmp_path, items[:1], bundle.class_names[:1]), bundle)


def test_a_label_file_with_some_of_the_classes_is_enough(
    cnn_bundle: OnnxBundle, items: list[LabeledPath], tmp_path: Path
) -> None:
    some = [item for item in items if item.label < 2]
    found = evaluate(Predictor(cnn_bundle), labels(tmp_path, some, ("class0", "class1")))
    assert (found.num_images, sum(found.confusion_matrix[2])) == (8, 0)
    assert format_evaluation(found).startswith("accuracy ")
    assert re.search(r"^class2 +0 +- +- +-\nno image of class2:", format_evaluation(found), re.MULTILINE)
    assert json.loads(found.to_json())["per_class"]["class2"] == {
        "count": 0,
        "precision": None,
        "recall": None,
        "f1": None,
    }
    alone = evaluate(Predictor(cnn_bundle), labels(tmp_path, [item for item in items if item.label == 1], NAMES))
    assert (alone.score_name, alone.score) == ("recall of class1", alone.per_class[1].recall)
    assert format_evaluation(alone).startswith("recall of class1 ")


def test_broken_images_are_listed_and_not_counted(
    cnn_bundle: OnnxBundle, items: list[LabeledPath], tmp_path: Path
) -> None:
    items[3].path.write_text("no image")
    items[5].path.unlink()
    found = evaluate(Predictor(cnn_bundle), labels(tmp_path, items))
    assert found.num_images == 10
    assert [broken.fault for broken in found.broken_images] == ["not-an-image", "missing"]


def test_images_that_the_run_used_are_counted_if_they_can_be_read(
    cnn_bundle: OnnxBundle, items: list[LabeledPath], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(cnn_bundle.path, run / "model.onnx")
    (run / "config.json").write_text("{}")
    write_label_file(run / "train.txt", items[:4], NAMES)
    write_label_file(run / "val.txt", items[4:6], NAMES)
    items[3].path.write_text("no image")
    items[5].path.write_text("no image")
    found = evaluate(run, labels(tmp_path, items))
    assert (found.num_in_training_set, found.num_in_validation_set) == (3, 1)


def copied_run(bundle: OnnxBundle, items: list[LabeledPath], project: Path) -> Path:
    run = project / "runs/first"
    run.mkdir(parents=True)
    shutil.copy(bundle.path, run / "model.onnx")
    (run / "config.json").write_text("{}")
    write_label_file(run / "train.txt", items[:8], NAMES)
    write_label_file(run / "val.txt", items[8:], NAMES)
    return run


@pytest.mark.parametrize("moved", ["the run", "the images", "the file", "one image"])
@pytest.mark.parametrize("command", ["evaluate", "quantize"])
def test_what_a_moved_run_was_trained_on_is_unknown(
    cnn_bundle: OnnxBundle, items: list[LabeledPath], tmp_path: Path, invoke_cli: RunCli, command: str, moved: str
) -> None:
    run = copied_run(cnn_bundle, items, tmp_path)
    if moved == "the run":
        run = shutil.copytree(run, tmp_path / "else/deeper/first")
    elif moved == "the file":
        run = shutil.copy(run / "model.onnx", tmp_path / "moved.onnx")
    elif moved == "the images":
        items = [replace(item, path=tmp_path / "q" / item.path.relative_to(tmp_path / "p")) for item in items]
        (tmp_path / "p").rename(tmp_path / "q")
    else:
        items = [*items, replace(items[0], path=items[0].path.rename(tmp_path / "0.png"))][1:]
    listed = labels(tmp_path, items).path
    words = {"evaluate": ["evaluate", run, listed],
             "quantize": ["quantize", run, "--calibration", listed, "-o", "small.onnx"]}[command]  # fmt: skip
    count = {"the file": "the model was not in a run folder", "one image": "1 image "}.get(moved, "12 images ")
    note = f"unknown whether the run used these images: {count}"
    assert note in invoke_cli(*words).stdout
    told = json.loads(invoke_cli(*words, "--json").stdout)
    assert (told["trained_on"], told["chosen_on"]) == (None, None)


def test_images_of_a_run_are_recognized_behind_links_and_without_its_other_images(
    cnn_bundle: OnnxBundle, items: list[LabeledPath], tmp_path: Path
) -> None:
    run = copied_run(cnn_bundle, items, tmp_path)
    items[11].path.unlink()
    links = [replace(item, path=tmp_path / f"{n}.png") for n, item in enumerate(items[:9])]
    for link, item in zip(links, items, strict=False):
        link.path.symlink_to(item.path)
    found = evaluate(run, labels(tmp_path, links))
    assert (found.num_in_training_set, found.num_in_validation_set) == (8, 1)


def test_a_label_file_without_a_usable_image_is_an_error(cnn_bundle: OnnxBundle, tmp_path: Path) -> None:
    (tmp_path / "none.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="no usable image"):
        evaluate(Predictor(cnn_bundle), labels(tmp_path, [LabeledPath(tmp_path / "none.png", 0)]))


def test_a_folder_without_a_usable_image_is_named_itself(cnn_bundle: OnnxBundle, tmp_path: Path) -> None:
    (tmp_path / "class0").mkdir()
    (tmp_path / "class0/none.png").write_bytes(b"no image")
    with pytest.raises(InputError) as raised:
        evaluate(Predictor(cnn_bundle), tmp_path)
    assert str(raised.value) == f"{tmp_path} has no usable image: see `mlimages check {tmp_path}`"


def test_the_figures_for_programs_have_stable_keys(
    cnn_bundle: OnnxBundle, items: list[LabeledPath], tmp_path: Path
) -> None:
    told = json.loads(evaluate(Predictor(cnn_bundle), labels(tmp_path, items)).to_json())
    assert {
        "accuracy",
        "interval",
        "count",
        "trained_on",
        "chosen_on",
        "per_class",
        "images_per_s",
        "calibration_error",
    } <= set(told)
    assert set(told["per_class"]) == set(NAMES)
    assert set(told["per_class"]["class0"]) == {"count", "precision", "recall", "f1"}
    assert told["interval"][0] < told["accuracy"] < told["interval"][1]
    assert 0 < told["decode_ms"]["p50"] <= told["decode_ms"]["p95"]
    assert 0 < told["network_ms"]["p50"] <= told["network_ms"]["p95"]


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(400, True), (1400, False)])
def test_the_report_opens_offline_and_escapes_what_it_shows(
    cnn_bundle: OnnxBundle, items: list[LabeledPath], tmp_path: Path, open_page: OpenPage, width: int, dark: bool
) -> None:
    items[0].path.write_text("no image")
    found = evaluate(Predictor(cnn_bundle), labels(tmp_path, items))
    hostile = replace(found, class_names=("<script>alert(1)</script>", "class1", "class2"))
    (tmp_path / "report.html").write_text(render_evaluation(hostile, "a <b>title</b>"), "utf-8")
    page = open_page(tmp_path / "report.html", width=width, height=900, dark=dark)
    assert page.evaluate("document.querySelectorAll('figure').length") == len(found.mistakes)
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert page.evaluate("document.querySelectorAll('script').length") == 0
    assert page.evaluate("document.title") == "a <b>title</b>"
    assert len(page.requests) == 1
    assert not page.scrolls_sideways
    assert page.evaluate("(box => box.scrollWidth <= box.clientWidth)(document.querySelector('.scrolls'))")
    assert not page.console_errors


def test_paths_are_taken_as_text_and_results_have_a_short_repr(cnn_bundle: OnnxBundle, tmp_path: Path) -> None:
    items = made_images(tmp_path / "p", 3)
    write_label_file(tmp_path / "val.txt", items, ("class0", "class1", "class2"))
    found = evaluate(str(cnn_bundle.path), str(tmp_path / "val.txt"))
    assert re.fullmatch(
        r"Evaluation\(accuracy=[\d.]+ \([\d.]+ to [\d.]+\), num_images=3, "
        r"num_in_training_set=None, num_in_validation_set=None, broken_images=0, classes=3\)",
        repr(found),
    )
    assert repr(Predictor(str(cnn_bundle.path), workers=2)) == f"Predictor({str(cnn_bundle.path)!r}, workers=2)"
    assert len(repr(OnnxBundle.read(str(cnn_bundle.path)))) < 700
