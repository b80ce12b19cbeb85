"""A quantized file is written only if it is faster and still accurate."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mlimages import images
from mlimages.cli.predictions import format_quantization
from mlimages.core import BundleError, InputError, Proportion, format_percent, pluralize
from mlimages.export import (
    ExportOptions,
    KnownOutput,
    KnownScore,
    Quantization,
    TrainedNetwork,
    export_network,
    quantize,
)
from mlimages.export import quantization as module
from mlimages.export.quantization import VariantTrial, _choose_variant, _describe_rejection, _Measurement
from mlimages.export.quantized_variants import make_runner
from mlimages.inference import (
    InDistributionCalibration,
    OnnxBundle,
    PredictionSetThresholds,
    Predictor,
    compute_conformal_thresholds,
    open_session,
    softmax,
)
from mlimages.inference.onnx_file import read_metadata
from mlimages.labels import LabelFile, write_label_file
from mlimages.reports import describe_bundle, format_model_card
from tests.deploying import made_images, trained

pytestmark = pytest.mark.train


@pytest.fixture
def labels(tmp_path: Path) -> LabelFile:
    write_label_file(tmp_path / "val.txt", made_images(tmp_path / "p", 8), ("class0", "class1", "class2"))
    return LabelFile(tmp_path / "val.txt")


def quantize_any(cnn_bundle: OnnxBundle, labels: LabelFile, out: Path, *, fp16: bool = False) -> Quantization:
    return quantize(cnn_bundle, labels, out, max_drop=100, fp16=fp16)


def test_the_best_variant_is_written_with_all_measurements_and_predicts_nearly_the_same(
    cnn_bundle: OnnxBundle, labels: LabelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_SPEEDUP", 0.0)
    result = quantize_any(cnn_bundle, labels, tmp_path / "small.onnx", fp16=True)
    written = OnnxBundle.read(tmp_path / "small.onnx")
    assert [trial.name for trial in result.trials] == ["original", "int8", "int8, reduced range", "float16"]
    assert result.written_trial is not None
    assert [row["name"] for row in written.provenance.quantization] == [trial.name for trial in result.trials]
    notes = "\n".join(describe_bundle(written.path, read_metadata(written.path, open_session(written.path))))
    assert f"on {result.num_images} images" in notes
    assert f"quantization: int8: accuracy {format_percent(result.trials[1].accuracy)}, " in notes
    assert (written.class_names, written.preprocessing) == (cnn_bundle.class_names, cnn_bundle.preprocessing)
    assert written.path.stat().st_size < 0.6 * cnn_bundle.path.stat().st_size
    paths = [item.path for item in labels]
    for before, after in zip(Predictor(cnn_bundle)(paths), Predictor(written)(paths), strict=True):
        of = {score.label: score.probability for score in before.top}  # type: ignore[union-attr]
        assert all(score.probability == pytest.approx(of[score.label], abs=0.05) for score in after.top)  # type: ignore[union-attr]


def test_the_preprocessing_is_not_quantized(
    cnn_bundle: OnnxBundle, labels: LabelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_SPEEDUP", 0.0)
    quantize_any(cnn_bundle, labels, tmp_path / "small.onnx")
    model, before = onnx.load(tmp_path / "small.onnx"), onnx.load(cnn_bundle.path)
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    preprocessing = [[node for node in each.graph.node if node.name.startswith("prepare/")] for each in (before, model)]
    assert preprocessing[0] == preprocessing[1]


def test_nothing_is_written_if_no_variant_is_faster(
    cnn_bundle: OnnxBundle, labels: LabelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_SPEEDUP", 1000.0)
    result = quantize_any(cnn_bundle, labels, tmp_path / "small.onnx")
    assert result.written_trial is None
    assert not (tmp_path / "small.onnx").exists()


@pytest.mark.parametrize(
    ("accuracy", "images_per_s", "count", "refusal"),
    [
        (0.895, 200.0, 1000, ""),
        (0.89, 106.0, 1000, ""),
        (0.95, 102.0, 1000, "too slow (1.02 x the original speed, at least 1.05 x is required)"),
        (0.80, 900.0, 1000, "loses 10.0 points of accuracy, more than the maximum drop of 1"),
        (
            0.80,
            50.0,
            1000,
            "too slow (0.50 x the original speed, at least 1.05 x is required) and loses 10.0 points of accuracy",
        ),
        (0.80, 900.0, 10, ""),  # one image of ten
    ],
)
def test_a_refusal_names_each_condition_that_failed_and_one_image_may_always_be_lost(
    accuracy: float, images_per_s: float, count: int, refusal: str
) -> None:
    found = _describe_rejection(
        VariantTrial("a", accuracy, images_per_s, 1), VariantTrial("original", 0.9, 100.0, 1), count, 1.0
    )
    assert found.startswith(refusal)
    assert bool(found) == bool(refusal)


def test_a_maximum_drop_of_zero_allows_none() -> None:
    found = _describe_rejection(VariantTrial("a", 0.8, 200.0, 1), VariantTrial("original", 0.9, 100.0, 1), 10, 0.0)
    assert found == "loses 10.0 points of accuracy, more than the maximum drop of 0"


@pytest.mark.parametrize(
    ("speeds", "accuracies", "chosen"),
    [
        ((200, 209), (0.9, 0.8), 0),
        ((200, 211), (0.9, 0.8), 1),
        ((200, 205), (0.8, 0.8), 1),
        ((200, 150), (0.8, 0.9), 0),
    ],
)
def test_of_variants_of_about_one_speed_the_most_accurate_is_chosen(
    speeds: tuple[float, ...], accuracies: tuple[float, ...], chosen: int
) -> None:
    trials = [VariantTrial(str(n), *values, 1) for n, values in enumerate(zip(accuracies, speeds, strict=True))]
    found = _choose_variant(
        [_Measurement(trial, Proportion(trial.accuracy, 0, 1), 0.0, None, None) for trial in trials], ["", ""]
    )
    assert found
    assert found.trial.name == str(chosen)
    assert _choose_variant([], []) is None


def with_known(network: TrainedNetwork, labels: LabelFile) -> TrainedNetwork:
    """The network with an output `known` of its own features, of which about half the images pass."""
    head = [name for name, _ in network.network.named_children()][-1]
    features: list[torch.Tensor] = []
    hook = network.network.get_submodule(head).register_forward_pre_hook(lambda _, x: features.append(x[0].flatten(1)))
    network.compute_logits([images.load_pixels(item.path, network.preprocessing.image) for item in labels])
    hook.remove()
    (seen,) = features
    score = KnownScore(num_classes=1, num_features=seen.shape[1], num_directions=1)
    score.means.copy_(torch.nn.functional.normalize(seen[:4], dim=1).mean(0))
    score.threshold.copy_(score.compute_squared_distances(seen).median())
    sets = PredictionSetThresholds("validation", 12, {"0.9": 0.01})
    return replace(network, known_output=KnownOutput(score, head, InDistributionCalibration(0.95, 12), sets))


@pytest.mark.parametrize("preprocessing", [True, False])
def test_a_quantized_file_keeps_float_probabilities_and_claims_only_what_was_measured_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preprocessing: bool
) -> None:
    """Of 40 classes an 8-bit softmax gives most the probability 0, and rows that do not add up to 1."""
    monkeypatch.setattr(module, "MIN_SPEEDUP", 0.0)
    names = tuple(f"class{n}" for n in range(40))
    write_label_file(tmp_path / "val.txt", made_images(tmp_path / "p", 40), names)
    network = with_known(trained("cifar10_cnn", classes=40), LabelFile(tmp_path / "val.txt"))
    options = ExportOptions(include_preprocessing=preprocessing, calibrate=True)
    before = export_network(network, tmp_path / "a.onnx", validation=tmp_path / "val.txt", options=options)
    result = quantize(before, tmp_path / "val.txt", tmp_path / "b.onnx", max_drop=100)
    after = OnnxBundle.read(tmp_path / "b.onnx")
    pixels = [images.load_pixels(item.path, network.preprocessing.image) for item in LabelFile(tmp_path / "val.txt")]
    logits, probabilities, known = make_runner(after)(pixels)
    assert result.written_trial is not None
    assert (probabilities > 0).all()
    assert after.known == InDistributionCalibration(result.written_trial.known_share, result.num_images)
    assert 0 < result.written_trial.known_share < 1
    tested = known[[n for n in range(40) if n % 2]]
    assert result.written_trial.known_share == (tested >= 0.5).mean()
    labels = np.array([item.label for item in LabelFile(tmp_path / "val.txt")])
    odd = slice(1, None, 2)
    assert after.prediction_sets is not None
    assert (after.prediction_sets.source, after.prediction_sets.count) == ("calibration", result.num_images)
    thresholds = compute_conformal_thresholds(softmax(logits[odd]), labels[odd])
    assert after.prediction_sets.thresholds == pytest.approx(thresholds, abs=1e-4)
    np.testing.assert_allclose(known, make_runner(before)(pixels)[2], atol=0.05)
    np.testing.assert_allclose(probabilities, softmax(logits, before.temperature), rtol=1e-4)
    assert after.provenance.calibration_error is not None
    assert after.provenance.calibration_error[1] == result.written_trial.calibration_error
    assert (after.provenance.parity, after.provenance.num_evaluated_images) == (None, result.num_images)
    assert after.includes_preprocessing == preprocessing
    metadata = {entry.key for entry in onnx.load(after.path).metadata_props}
    assert ("Image.BitmapPixelFormat" in metadata) == preprocessing


@pytest.fixture(scope="module")
def known_bundle(tmp_path_factory: pytest.TempPathFactory) -> OnnxBundle:
    folder = tmp_path_factory.mktemp("known")
    items, names = made_images(folder / "p", 12), ("class0", "class1", "class2")
    write_label_file(folder / "all.txt", items, names)
    network = with_known(trained("cifar10_cnn"), LabelFile(folder / "all.txt"))
    return export_network(network, folder / "model.onnx", validation=items)


@pytest.mark.parametrize(
    ("count", "num_train", "in_run", "kept", "notes"),
    [
        (40, 0, True, False, ("", "")),
        (40, 20, True, True, ("the run used 10 for training and 10 to choose the epoch", "but there are only 10")),
        (40, 40, True, True, ("of these images, the run used 20 for training: ", "but there are only 0")),
        (60, 20, True, False, ("the run used 10 for training and 10 to choose the epoch", "")),
        (36, 0, True, True, ("", "but there are only 18")),
        (2, 0, True, True, ("", "but there is only 1")),
        (40, 40, False, False, ("unknown whether the run used these images", "")),
    ],
)
def test_thresholds_are_measured_on_enough_images_that_the_run_was_not_trained_on_or_kept(
    known_bundle: OnnxBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, num_train: int,
    in_run: bool, kept: bool, notes: tuple[str, str],
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "MIN_SPEEDUP", 0.0)
    run, items, names = tmp_path / "run", made_images(tmp_path / "p", count), ("class0", "class1", "class2")
    run.mkdir()
    write_label_file(tmp_path / "all.txt", items, names)
    write_label_file(run / "train.txt", items[:num_train], names)
    write_label_file(run / "val.txt", items[num_train : 2 * num_train], names)
    if in_run:
        (run / "config.json").write_text("{}")
    before = OnnxBundle.read(shutil.copy(known_bundle.path, run / "model.onnx"))
    result = quantize(before, tmp_path / "all.txt", tmp_path / "q.onnx", max_drop=100)
    after = OnnxBundle.read(tmp_path / "q.onnx")
    assert ((after.known, after.prediction_sets) == (before.known, before.prediction_sets)) == kept
    for note, expected in zip((result.training_note, result.thresholds_note), notes, strict=True):
        assert expected in note
        assert bool(expected) == bool(note)
        assert note in format_quantization(result)
    assert after.provenance.num_in_splits == result.num_in_splits
    num_new = result.num_held_out
    assert num_new == result.num_images - (result.num_in_splits or (0, 0))[0]
    assert after.prediction_sets
    assert after.prediction_sets.count == (12 if kept else num_new)
    card, written = " ".join(format_model_card(after).split()), json.loads(json.dumps(result.to_dict()))
    assert (written["keeps_thresholds"], written["trained_on"]) == (kept, (result.num_in_splits or (None,))[0])
    assert (
        f"{format_percent(written['chosen']['accuracy'])} on {pluralize(result.num_images, 'calibration image')} ("
        in card
    )
    assert (f"{result.training_note[1:]}." if notes[0] else "The run did not use these images.") in card
    kind = "12 validation images before quantization" if kept else f"{num_new} calibration images"
    assert card.count(f" {kind}.") == 2


def test_a_class_that_the_bundle_does_not_know_is_an_error(cnn_bundle: OnnxBundle, tmp_path: Path) -> None:
    write_label_file(tmp_path / "val.txt", made_images(tmp_path / "p", 3), ("class0", "class1", "other"))
    with pytest.raises(InputError, match=r"'other'.*which is not in"):
        quantize_any(cnn_bundle, LabelFile(tmp_path / "val.txt"), tmp_path / "small.onnx")


@pytest.mark.parametrize("kind", [str, Path])
def test_paths_of_every_kind_are_taken(cnn_bundle: OnnxBundle, labels: LabelFile, tmp_path: Path, kind: type) -> None:
    result = quantize(kind(cnn_bundle.path), kind(labels.path), kind(tmp_path / "small.onnx"), max_drop=100)
    assert result.num_images == 4
    assert repr(result).startswith("Quantization(original (")
    assert f"; 4 images; written: {result.written_trial.name if result.written_trial else None})" in repr(result)


def test_a_file_is_neither_replaced_by_its_variant_nor_quantized_twice(
    cnn_bundle: OnnxBundle, labels: LabelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_load_samples", None)  # all are refused before the images are read
    own = replace(cnn_bundle, path=tmp_path / "own.onnx")
    own.write(cnn_bundle.path)
    with pytest.raises(InputError, match="is also an input"):
        quantize_any(own, labels, tmp_path / "." / "own.onnx")
    trials = ({"name": "int8", "accuracy": 1.0, "images_per_s": 1.0, "size_bytes": 1},)
    with pytest.raises(InputError, match="is already quantized: quantize the original file"):
        quantize_any(replace(own, provenance=replace(own.provenance, quantization=trials)), labels, tmp_path / "q.onnx")
    damaged = replace(
        own,
        parity_test_image=replace(
            own.parity_test_image, logits=tuple(value + 1 for value in own.parity_test_image.logits)
        ),
    )
    with pytest.raises(BundleError, match="does not reproduce"):
        quantize_any(damaged, labels, tmp_path / "q.onnx")


def test_a_folder_of_too_few_images_is_named_itself(cnn_bundle: OnnxBundle, tmp_path: Path) -> None:
    made_images(tmp_path / "photos/class0", 1)
    with pytest.raises(InputError, match=f"^{tmp_path / 'photos'}: only 1 image can be decoded"):
        quantize(cnn_bundle, tmp_path / "photos", tmp_path / "q.onnx")


def test_the_size_includes_external_weights(cnn_bundle: OnnxBundle, labels: LabelFile, tmp_path: Path) -> None:
    shutil.copy(cnn_bundle.path, tmp_path / "a.onnx")
    (tmp_path / "a.onnx.data").write_bytes(bytes(5000))
    result = quantize_any(OnnxBundle.read(tmp_path / "a.onnx"), labels, tmp_path / "q.onnx")
    assert result.trials[0].size_bytes == cnn_bundle.path.stat().st_size + 5000


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_are_an_error_that_counts_them(cnn_bundle: OnnxBundle, tmp_path: Path, count: int) -> None:
    write_label_file(tmp_path / "val.txt", made_images(tmp_path / "p", count), ("class0",))
    with pytest.raises(
        InputError, match=rf"val.txt: only {count} images? can be decoded, but quantization requires at least 2"
    ):
        quantize_any(cnn_bundle, LabelFile(tmp_path / "val.txt"), tmp_path / "small.onnx")
