"""What the package returns can be compared, copied and handed to another process."""

import copy
import dataclasses
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mlimages as ml
from mlimages.core import LabeledPath
from mlimages.inference import OnnxBundle
from tests.deploying import made_image
from tests.run_folders import make_run

pytestmark = pytest.mark.train


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of four images."""
    for n in range(12):
        path = tmp_path / "photos" / "abc"[n % 3] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        made_image(n).save(path)
    return tmp_path / "photos"


def as_texts(labels: ml.LabelFile) -> list[tuple[str, object]]:
    return [(str(item.path), item.label) for item in labels]


def table_of(photos: Path) -> Path:
    rows = [f"{path},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
    table = photos.parent / "table.csv"
    table.write_text("file,class\n" + "\n".join(rows))
    return table


def written(photos: Path) -> ml.LabelFile:
    return ml.label_dir_auto(photos).labels.write(photos.parent / "written.txt")


LABEL_FILES: dict[str, Callable[[Path], ml.LabelFile]] = {
    "written": written,
    "table": lambda photos: ml.LabelFile(table_of(photos)),
    "folder": lambda photos: ml.label_dir_auto(photos).labels,
    "items": lambda photos: ml.LabelFile(
        "x.txt", items=lambda: [LabeledPath(photos / "a" / "0.png", 0)], class_names=("a",)
    ),
    "filter": lambda photos: written(photos).filter(lambda item: item.label == 1),
    "shuffle": lambda photos: written(photos).shuffle(3),
    "split": lambda photos: written(photos).split((0.5, 0.5), seed=0)[1],
    "leak-free split": lambda photos: ml.split_labels(written(photos), (0.5, 0.5))[0],
    "limit": lambda photos: written(photos).limit_per_class(2),
    "merge": lambda photos: written(photos).merge(ml.label_dir_auto(photos).labels),
    "without": lambda photos: written(photos).without([photos / "a" / "0.png"]),
    "where": lambda photos: written(photos).where(n % 2 == 1 for n in range(12)),
    "notes": lambda photos: ml.LabelFile(table_of(photos)).with_notes(["a note"]),
}


@pytest.mark.parametrize("form", LABEL_FILES)
def test_a_label_file_of_any_origin_reads_the_same_again_after_a_copy_and_in_another_process(
    photos: Path, form: str
) -> None:
    labels = LABEL_FILES[form](photos)
    want = as_texts(labels)
    assert want
    for same in (labels, copy.copy(labels), copy.deepcopy(labels), through_another_process(labels)):
        assert as_texts(same) == want
        assert same.class_names == labels.class_names
        assert (same.is_stored, same.is_multi_label, same.notes) == (labels.is_stored, False, labels.notes)


def through_another_process(value: ml.LabelFile) -> ml.LabelFile:
    """`value`, sent to another process and back."""
    code = "import pickle, sys; pickle.dump(pickle.load(sys.stdin.buffer), sys.stdout.buffer)"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(value), capture_output=True, check=True)
    labels: ml.LabelFile = pickle.loads(done.stdout)
    return labels


def test_a_predictor_answers_the_same_in_another_process(cnn_bundle: OnnxBundle) -> None:
    predictor = ml.Predictor(cnn_bundle, workers=1, max_pixels=10**6)
    image = str(next((cnn_bundle.path.parent / "images").iterdir()))
    code = (
        "import json, pickle, sys; predictor = pickle.load(sys.stdin.buffer); (result,) = predictor(sys.argv[1]); "
        "print(json.dumps([predictor.workers, predictor.max_pixels, result.class_name, result.probability]))"
    )
    command = [sys.executable, "-c", code, image]
    done = subprocess.run(command, input=pickle.dumps(predictor), capture_output=True, check=True)
    (result,) = copy.deepcopy(predictor)(image)
    assert isinstance(result, ml.Prediction)
    assert json.loads(done.stdout) == [1, 10**6, result.class_name, result.probability]


def test_results_that_hold_arrays_can_be_compared_hashed_and_copied(tmp_path: Path, photos: Path) -> None:
    labels, run = written(photos), make_run(tmp_path / "runs" / "a")
    one = ml.ImageProperty(8)
    results: list[object] = [
        ml.read_run(run),
        ml.read_run(run).predictions,
        ml.check(labels.path),
        ml.check(labels.path).findings,
        ml.TrainingData(labels, one).make_mean_image(tmp_path / "mean.png"),
        *ml.draw_contact_sheet(photos, tmp_path / "sheet.png", image_property=one),
    ]
    for result in results:
        again = copy.deepcopy(result)
        assert result == result
        assert again != result
        assert len({result, again}) == 2
        assert again not in results


def test_no_exported_class_compares_its_arrays() -> None:
    """`==` of two arrays is an array, so that `==` and `in` of a class that compares them raise."""
    comparing = [
        f"{name}.{field.name}"
        for name, cls in ((name, getattr(ml, name)) for name in dir(ml))
        if dataclasses.is_dataclass(cls) and isinstance(cls, type)
        for field in dataclasses.fields(cls)
        if vars(cls)["__dataclass_params__"].eq and any(text in str(field.type) for text in ("NDArray", "Module"))
    ]
    assert comparing == []


PATHS: dict[str, Callable[[str], object]] = {
    "check": lambda path: ml.check(path),
    "label_dir_auto": lambda path: ml.label_dir_auto(path),
    "LabelFile": lambda path: ml.LabelFile(path),
    "split_labels": lambda path: ml.split_labels(path, (0.5, 0.5)),
    "gather into": lambda path: ml.gather("links.tsv", path),
    "finetune": lambda path: ml.FineTuneConfig(path, "run"),
    "finetune into": lambda path: ml.FineTuneConfig("labels.txt", path),
    "draw_contact_sheet": lambda path: ml.draw_contact_sheet(path, "sheet.png", image_property=ml.ImageProperty(8)),
}


@pytest.mark.parametrize("name", PATHS)
def test_an_empty_path_is_not_the_current_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("links.tsv").write_text("a\thttp://127.0.0.1:9/a.png\n")
    with pytest.raises(ml.InputError, match="path is empty"):
        PATHS[name]("")
    assert [path.name for path in tmp_path.iterdir()] == ["links.tsv"]


def test_a_folder_of_class_folders_stands_for_its_label_file_wherever_a_path_is_taken(
    photos: Path, tmp_path: Path, cnn_bundle: OnnxBundle
) -> None:
    images, model, out = ml.ImageProperty(32), str(cnn_bundle.path), tmp_path / "out"
    for name in "abc":
        (photos / name).rename(photos / f"class{'abc'.index(name)}")  # the classes of the model
    file = written(photos)
    out.mkdir()

    def results(labels: str | Path, part: str) -> list[object]:
        augmented = ml.augment(labels, out / f"{part}.npz", image_property=images)
        return [
            ml.evaluate(model, labels).num_images,
            ml.extract_features(labels, model="lenet5").features.shape,
            ml.probe_layers(labels, model="lenet5").num_images,
            [score.probe_result.model for score in ml.probe_models(labels, "lenet5").scores],
            ml.quantize(model, labels, out / f"{part}.onnx").num_images,
            [len(y) for _, y in ml.TrainingData(labels, images).generate_batches(8)],
            [split.num_originals for split in augmented.splits],
        ]

    assert results(str(photos), "folder") == results(file.path, "file")
    image = str(next((cnn_bundle.path.parent / "images").iterdir()))
    assert str(ml.explain(model, image)) == str(ml.explain(ml.Predictor(model), image))
