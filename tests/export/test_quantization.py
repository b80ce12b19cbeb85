"""A quantized file is written only if it is faster and still accurate."""

from pathlib import Path

import onnx
import pytest

from mlimages.core import InputError
from mlimages.export import Quantization, quantize
from mlimages.export import quantization as module
from mlimages.export.quantization import Trial, _best
from mlimages.inference import OnnxBundle, Predictor, open_session
from mlimages.inference.onnx_metadata import read_metadata
from mlimages.labels import LabelFile, write_label_file
from mlimages.reports import bundle_notes
from tests.deploying import pictures

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def bundle(cnn_bundle: OnnxBundle) -> OnnxBundle:
    return cnn_bundle


@pytest.fixture
def labels(tmp_path: Path) -> LabelFile:
    write_label_file(tmp_path / "val.txt", pictures(tmp_path / "p", 8), ("class0", "class1", "class2"))
    return LabelFile(tmp_path / "val.txt")


def quantize_any(bundle: OnnxBundle, labels: LabelFile, out: Path, *, fp16: bool = False) -> Quantization:
    return quantize(bundle, labels, out, max_drop=100, fp16=fp16)


def test_the_best_variant_is_written_with_all_measurements_and_predicts_nearly_the_same(
    bundle: OnnxBundle, labels: LabelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_SPEEDUP", 0.0)
    result = quantize_any(bundle, labels, tmp_path / "small.onnx", fp16=True)
    written = OnnxBundle.read(tmp_path / "small.onnx")
    assert [trial.name for trial in result.trials] == ["original", "int8", "int8, reduced range", "float16"]
    assert result.chosen is not None
    assert [row["name"] for row in written.provenance.quantization] == [trial.name for trial in result.trials]
    notes = "\n".join(bundle_notes(written.path, read_metadata(written.path, open_session(written.path, threads=1))))
    assert f"on {result.count} images" in notes
    assert f"quantization: int8: accuracy {result.trials[1].accuracy:.1%}, " in notes
    assert (written.class_names, written.preprocessing) == (bundle.class_names, bundle.preprocessing)
    assert written.path.stat().st_size < 0.6 * bundle.path.stat().st_size
    paths = [item.path for item in labels]
    for before, after in zip(Predictor(bundle)(paths), Predictor(written)(paths), strict=True):
        of = {score.label: score.probability for score in before.top}  # type: ignore[union-attr]
        assert all(score.probability == pytest.approx(of[score.label], abs=0.05) for score in after.top)  # type: ignore[union-attr]


def test_the_preprocessing_is_not_quantized(
    bundle: OnnxBundle, labels: LabelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_SPEEDUP", 0.0)
    quantize_any(bundle, labels, tmp_path / "small.onnx")
    model, before = onnx.load(tmp_path / "small.onnx"), onnx.load(bundle.path)
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    preprocessing = [[node for node in each.graph.node if node.name.startswith("prepare/")] for each in (before, model)]
    assert preprocessing[0] == preprocessing[1]


def test_nothing_is_written_if_no_variant_is_faster(
    bundle: OnnxBundle, labels: LabelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_SPEEDUP", 1000.0)
    result = quantize_any(bundle, labels, tmp_path / "small.onnx")
    assert result.chosen is None
    assert not (tmp_path / "small.onnx").exists()


@pytest.mark.parametrize(
    ("trials", "chosen"),
    [
        ([("a", 0.90, 300.0), ("b", 0.895, 200.0)], "a"),
        ([("a", 0.88, 300.0), ("b", 0.89, 200.0)], "b"),
        ([("a", 0.95, 102.0)], None),
        ([("a", 0.80, 900.0)], None),
    ],
    ids=["the fastest", "the fastest within the drop", "not clearly faster", "too inaccurate"],
)
def test_the_best_variant_is_the_fastest_that_keeps_its_accuracy(
    trials: list[tuple[str, float, float]], chosen: str | None
) -> None:
    best = _best([Trial("original", 0.9, 100.0, 1), *(Trial(*one, 1) for one in trials)], 1.0)
    assert (best.name if best else None) == chosen


def test_a_class_that_the_bundle_does_not_know_is_an_error(bundle: OnnxBundle, tmp_path: Path) -> None:
    write_label_file(tmp_path / "val.txt", pictures(tmp_path / "p", 3), ("class0", "class1", "other"))
    with pytest.raises(InputError, match=r"'other'.*does not know"):
        quantize_any(bundle, LabelFile(tmp_path / "val.txt"), tmp_path / "small.onnx")


@pytest.mark.parametrize("kind", [str, Path])
def test_paths_of_every_kind_are_taken(bundle: OnnxBundle, labels: LabelFile, tmp_path: Path, kind: type) -> None:
    result = quantize(kind(bundle.path), kind(labels.path), kind(tmp_path / "small.onnx"), max_drop=100)
    assert result.count == 4
    assert repr(result).startswith("Quantization(original (")
    assert f"; 4 images; chosen: {result.chosen.name if result.chosen else None})" in repr(result)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_are_an_error_that_counts_them(bundle: OnnxBundle, tmp_path: Path, count: int) -> None:
    write_label_file(tmp_path / "val.txt", pictures(tmp_path / "p", count), ("class0",))
    with pytest.raises(InputError, match=rf"val.txt: {count} images? can be decoded: quantization needs at least 2"):
        quantize_any(bundle, LabelFile(tmp_path / "val.txt"), tmp_path / "small.onnx")
