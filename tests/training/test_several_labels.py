"""Several labels on one image, from the label file to the exported file, for closed-form and trained heads."""

import csv
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from mlimages.cli.predictions import format_evaluation, print_csv, print_json, print_text
from mlimages.core import InputError, LabeledPath, ModelError, Prediction, mean_average_precision
from mlimages.dataset import multi_hot
from mlimages.export import ExportOptions, TrainedNetwork, export_network, quantize
from mlimages.inference import OnnxBundle, Predictor, evaluate
from mlimages.labels import LabelFile, write_label_file
from mlimages.networks import build_model
from mlimages.reports import (
    compare_runs,
    draw_run,
    format_model_card,
    read_run,
    render_comparison,
    render_evaluation,
    summarize_onnx,
)
from mlimages.serving import make_app
from mlimages.training import FineTuneConfig, FineTuneResult, extract_features, fine_tune, load_run, probe_layers
from mlimages.training.head import fit_ridge
from tests.conftest import RunCli
from tests.serving.apps import run_app
from tests.training.conftest import config_for
from tests.training.test_head import left_out_scores

pytestmark = pytest.mark.train

NAMES = ("bright", "frame", "red")


def draw(path: Path, labels: tuple[int, ...], *, seed: int) -> LabeledPath:
    """A noisy image: brighter, with a dark frame, or reddish, in any combination."""
    noise = np.random.default_rng(seed).normal(0, 25, (32, 32, 3))
    image = noise + (150 if 0 in labels else 80) + np.array([70, 0, -40]) * (2 in labels)
    if 1 in labels:
        image[:5] = image[-5:] = image[:, :5] = image[:, -5:] = 10
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path)
    return LabeledPath(path, -1, labels)


def write_set(folder: Path, name: str, count: int, *, seed: int) -> Path:
    """A label file in which each combination of labels is as frequent, one wrong image in ten left to chance."""
    rng = np.random.default_rng(seed)
    (folder / name).mkdir(parents=True)
    items = []
    for number in range(count):
        labels = tuple(n for n in range(3) if number >> n & 1)
        item = draw(folder / name / f"{number:03}.png", labels, seed=seed + number)
        is_wrong = rng.random() < 0.1
        items.append(LabeledPath(item.path, -1, tuple(sorted({*labels} ^ {0})) if is_wrong else labels))
    write_label_file(folder / f"{name}.txt", items, NAMES)
    return folder / f"{name}.txt"


def multi_label_config(folder: Path, out: str, **options: object) -> FineTuneConfig:
    settings = {"out": folder / out, "val": folder / "val.txt", "model": "lenet5", "size": 28, "gray": False}
    return config_for(folder / "train.txt", **{**settings, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    write_set(folder, "train", 64, seed=1000)
    write_set(folder, "val", 24, seed=5000)
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> FineTuneResult:
    return fine_tune(multi_label_config(folder, "trained", epochs=12))


@pytest.fixture(scope="module")
def closed_form(folder: Path, trained: FineTuneResult) -> FineTuneResult:
    weights = str(trained.run / "best.safetensors")
    return fine_tune(multi_label_config(folder, "closed", weights=weights, freeze="head", epochs=1))


@pytest.fixture(params=["trained", "closed_form"])
def result(request: pytest.FixtureRequest) -> FineTuneResult:
    found: FineTuneResult = request.getfixturevalue(request.param)
    return found


def test_a_run_ranks_each_class_and_says_what_it_leaves_out(result: FineTuneResult) -> None:
    assert result.val_map is not None
    value, low, high = result.val_map
    assert 0.75 < value < 1.0
    assert low < value < high
    assert (result.probe_map is None) == (result.probe_accuracy is None)
    assert "one class per image" in result.missing_outputs_note
    assert not {"suspects.tsv", "known.safetensors", "confusion.png"} & {path.name for path in result.run.iterdir()}
    assert json.loads((result.run / "config.json").read_text())["multi_label"] is True
    rows = list(csv.DictReader((result.run / "metrics.csv").read_text().splitlines()))
    best = max([float(row["val_map"]) for row in rows] + [result.probe_map or 0.0])
    assert value == pytest.approx(best, abs=1e-6)
    assert fine_tune(load_run(result.run).config) == result  # read back


def test_network_file_and_predictor_agree_and_the_file_holds_the_thresholds(result: FineTuneResult) -> None:
    bundle, run = OnnxBundle.read(result.run), load_run(result.run)
    assert (bundle.multi_label, len(bundle.thresholds), bundle.class_names) == (True, 3, NAMES)
    assert bundle.known is bundle.prediction_sets is bundle.provenance.accuracy is None
    assert bundle.provenance.mean_ap == pytest.approx(result.val_map)
    items = list(LabelFile(result.run / "val.txt"))
    predictor = Predictor(bundle)
    pixels = [predictor.decode(item.path)[0] for item in items]
    trained = TrainedNetwork(run.network, run.preprocessing, run.class_names, "lenet5", multi_label=True)
    expected = torch.from_numpy(trained.compute_logits(pixels)).sigmoid().numpy()  # type: ignore[arg-type]
    assert predictor.compute_probabilities(pixels) == pytest.approx(expected, abs=1e-5)  # type: ignore[arg-type]
    for prediction, row in zip(predictor([item.path for item in items], top=1), expected, strict=True):
        assert isinstance(prediction, Prediction)
        labels = prediction.labels
        assert labels is not None
        assert {each.label for each in labels} == set(np.flatnonzero(row >= bundle.thresholds).tolist())
        assert [each.probability for each in labels] == sorted((each.probability for each in labels), reverse=True)
        assert len(prediction.top) == 1
    found, targets = (
        evaluate(predictor, LabelFile(result.run / "val.txt")),
        multi_hot([i.class_indices for i in items], 3) > 0,
    )
    assert found.multi_label_scores is not None
    assert found.score.value == pytest.approx(mean_average_precision(expected, targets))
    assert found.num_in_validation_set == found.num_images == len(items)
    assert found.loss == pytest.approx(
        float(functional.binary_cross_entropy(torch.from_numpy(expected), torch.from_numpy(targets).float())), rel=1e-3
    )
    run_folder = read_run(result.run)
    if result.best_epoch:
        assert found.loss == pytest.approx(run_folder.epochs[result.best_epoch - 1]["val_loss"], rel=1e-4)
    assert run_folder.predictions is not None
    assert run_folder.predictions.thresholds == pytest.approx(bundle.thresholds, abs=1e-6)
    assert run_folder.score == found.score


def test_leaving_one_out_in_closed_form_is_leaving_it_out_for_each_label() -> None:
    rng = np.random.default_rng(3)
    x, targets = rng.normal(size=(30, 6)), rng.random((30, 2)) < [0.5, 0.2]
    fit = fit_ridge(x, targets.astype(np.float32), 2)
    unit = (x - x.mean(0)) / x.std(0)
    unit /= np.sqrt(np.square(unit).sum(axis=1).mean())
    scores = left_out_scores(unit, targets.astype(np.float64), fit.penalty)[0]
    odds = fit.loo_probabilities.astype(np.float64)
    slope = np.log(odds / (1 - odds)) / (2 * scores - 1)  # the sigmoid of one scale for all classes
    assert slope == pytest.approx(np.full((30, 2), slope[0, 0]), rel=1e-2)
    one_hot = fit_ridge(x, np.eye(2, dtype=np.float32)[np.arange(30) % 2], 2)
    assert one_hot.penalty == fit_ridge(x, np.arange(30) % 2, 2).penalty


def test_commands_and_server_list_all_labels(
    trained: FineTuneResult, folder: Path, invoke_cli: RunCli, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = OnnxBundle.read(trained.run)
    strict = replace(bundle, thresholds=(1.1, *bundle.thresholds[1:]))  # no image is bright
    images = [str(folder / "val" / name) for name in ("000.png", "006.png", "007.png")]
    wanted = [each.labels for each in Predictor(strict)(images)]  # type: ignore[union-attr]
    assert [bool(labels) for labels in wanted] == [False, True, True]
    for show in (print_text, print_csv, print_json):
        assert show(Predictor(strict)(images, top=1), top=1, bundle=strict) == 3
    text, table, array = re.split(r"(?=^path,)|(?=^\[)", capsys.readouterr().out, flags=re.MULTILINE)
    assert text.splitlines()[0] == f"{images[0]}: none"
    assert text.splitlines()[2].count(", ") == len(wanted[2] or ()) - 1
    rows = list(csv.DictReader(table.splitlines()))
    for row, shown, labels in zip(rows, json.loads(array), wanted, strict=True):
        assert labels is not None
        assert row["labels"] == ("|".join(each.class_name for each in labels) or "[]")
        assert row["probabilities"] == "|".join(f"{each.probability:.6f}" for each in labels)
        assert shown["labels"] == [asdict(each) for each in labels]
        assert (shown.keys(), len(shown["top"])) == ({"path", "labels", "top"}, 1)
    pixels = np.asarray(Image.open(images[2]))[None]
    inputs = {"name": "image", "datatype": "UINT8", "shape": pixels.shape, "data": pixels.ravel().tolist()}
    body = json.dumps({"inputs": [inputs]}).encode()
    with run_app(make_app(Predictor(strict, workers=1))) as served:
        for image, shown in zip(images, json.loads(array), strict=True):
            answer = served.ask("POST", "/predict?top=1", Path(image).read_bytes()).json["predictions"][0]
            assert {**answer, "name": ""} == {"name": "", "labels": shown["labels"], "top": shown["top"]}
        assert served.ask("GET", "/healthz").json["thresholds"] == list(strict.thresholds)
        outputs = served.ask("POST", "/v2/models/model/infer", body, Content_Type="application/json").json["outputs"]
    assert [each["name"] for each in outputs] == ["probabilities"]
    by_label = sorted(Predictor(bundle)(images[2])[0].top, key=lambda score: score.label)  # type: ignore[union-attr]
    assert outputs[0]["data"] == pytest.approx([score.probability for score in by_label], abs=1e-6)
    again = invoke_cli("predict", trained.run, *images, "--copy-to", "sorted").stdout.splitlines()
    assert again[2].startswith(f"{images[2]}: ")


def test_evaluate_shows_average_precision_precision_and_recall(trained: FineTuneResult, invoke_cli: RunCli) -> None:
    evaluated = json.loads(invoke_cli("evaluate", trained.run, trained.run / "val.txt", "--json").stdout)
    assert evaluated["map"] == pytest.approx(trained.val_map[0])  # type: ignore[index]
    assert [row["threshold"] for row in evaluated["per_class"].values()] == list(
        OnnxBundle.read(trained.run).thresholds
    )
    text = format_evaluation(evaluate(trained.run, trained.run / "val.txt")).splitlines()
    assert text[0].startswith(f"mAP {100 * evaluated['map']:.1f} %")
    row = next(line for line in text if line.startswith("frame"))
    value = evaluated["per_class"]["frame"]
    expected = [value["average_precision"][0], value["precision"][0], value["recall"][0], value["f1"][0]]
    assert re.findall(r"([\d.]+) %", row) == [f"{100 * each:.1f}" for each in expected]
    assert "multi-label, 3 classes" in str(summarize_onnx(trained.run / "model.onnx"))


def test_pages_and_comparison_show_average_precision(trained: FineTuneResult, closed_form: FineTuneResult) -> None:
    page = draw_run(trained.run, overwrite=True).read_text()
    assert f"{100 * trained.val_map[0]:.1f} % mAP" in page  # type: ignore[index]
    assert "accuracy" not in page.replace("train_accuracy", "")
    found = evaluate(trained.run, trained.run / "val.txt")
    evaluation_page = render_evaluation(found, "title")
    assert f"{100 * found.score.value:.1f} % mAP" in evaluation_page
    assert re.search("<p>Of these images, the run used .*: expect lower mAP on new images.</p>", evaluation_page)
    best, other = compare_runs([trained.run, closed_form.run])
    assert best.score.value == max(trained.val_map[0], closed_form.val_map[0])  # type: ignore[index]
    assert other.test_against_best is not None
    assert other.test_against_best.difference.value == pytest.approx(other.score.value - best.score.value)
    assert "paired bootstrap" in render_comparison([best, other])
    card = format_model_card(OnnxBundle.read(trained.run))
    assert "an image may belong to any number of 3 classes: bright, frame, red." in card


def test_what_needs_one_class_per_image_is_refused_with_what_to_do(
    trained: FineTuneResult, folder: Path, tmp_path: Path
) -> None:
    labels = LabelFile(folder / "val.txt")
    with pytest.raises(InputError, match=r"probe does not support multi-label files.*mlimages compare"):
        probe_layers(labels, model="lenet5", weights="none")
    with pytest.raises(ModelError, match=r"ReLU.*another --model"):
        fine_tune(multi_label_config(folder, "squeezed", model="squeezenet1_1", size=64))
    run = load_run(trained.run)
    network = TrainedNetwork(run.network, run.preprocessing, run.class_names, "lenet5", multi_label=True)
    with pytest.raises(InputError, match="--calibrate and --unknown do not apply to multi-label"):
        export_network(network, tmp_path / "a.onnx", validation=labels, options=ExportOptions(calibrate=True))
    with pytest.raises(InputError, match="does not support multi-label models"):
        evaluate(trained.run, labels, background_test_images=3)
    single = build_model("lenet5", num_classes=3, weights="none", size=28)
    export_network(
        TrainedNetwork(single.network.eval(), single.preprocessing, NAMES, "lenet5"),
        tmp_path / "one.onnx",
        validation=[],
    )
    with pytest.raises(InputError, match=r"multi-label file, but .* predicts one class"):
        evaluate(tmp_path / "one.onnx", labels)
    assert extract_features(labels, model="lenet5", weights="none").labels.tolist() == [
        [int(n in item.class_indices) for n in range(3)] for item in labels
    ]


def test_a_class_with_one_image_is_trained_and_its_scores_are_undefined_where_no_image_has_it(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = [*LabelFile(folder / "train.txt")][:24]
    items = [replace(one, labels=(*one.class_indices, 3)) if n == 7 else one for n, one in enumerate(items)]
    write_label_file(folder / "rare.txt", items, [*NAMES, "rare"])
    fine_tune(config_for(folder / "rare.txt", out=folder / "rare", model="lenet5", size=28, epochs=1))
    assert "the training set has only one image of rare" in caplog.messages
    assert "the validation set has no image of rare: there are too few images, or they are" in caplog.text
    found = evaluate(folder / "rare", folder / "val.txt")
    assert found.multi_label_scores is not None
    undefined = dict.fromkeys(("average_precision", "precision", "recall", "f1"))
    assert json.loads(found.to_json())["per_class"]["rare"] == {"count": 0, "threshold": 0.5, **undefined}
    assert found.score.value == pytest.approx(
        np.mean([s.value for s in found.multi_label_scores.average_precision.per_class if s])
    )
    text = format_evaluation(found)
    assert re.search(r"^rare +0 +- +0.500 +- +- +-$", text, re.MULTILINE)
    assert "no image of rare: the scores of a class without images are undefined (-) and excluded from mAP" in text
    cells = r'rare</th><td class="number">0</td>\s*<td class="number">-</td><td class="number">0.500</td>'
    for page in (render_evaluation(found, "title"), (folder / "rare" / "report.html").read_text()):
        assert re.search(cells, page)
        assert "binary cross-entropy" in page
    write_label_file(folder / "none.txt", items, [*NAMES, "rare", "absent"])
    with pytest.raises(InputError, match=r"no training images of absent:"):
        fine_tune(FineTuneConfig(folder / "none.txt", folder / "none"))


def test_quantization_measures_average_precision(trained: FineTuneResult, folder: Path, tmp_path: Path) -> None:
    found = quantize(trained.onnx or "", folder / "val.txt", tmp_path / "int8.onnx", max_drop=100.0)
    assert found.score_name == "mAP"
    assert all(0.5 < trial.accuracy <= 1 for trial in found.trials)
