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


def quantized(bundle: OnnxBundle, labels: LabelFile, out: Path, *, fp16: bool = False) -> Quantization:
    return quantize(bundle, labels, out, max_drop=100, fp16=fp16)


def test_the_winner_is_written_with_the_table_and_answers_nearly_as_before(
    bundle: OnnxBundle, labels: LabelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FASTER", 0.0)
    found = quantized(bundle, labels, tmp_path / "small.onnx", fp16=True)
    written = OnnxBundle.read(tmp_path / "small.onnx")
    assert [trial.name for trial in found.trials] == ["as it is", "int8", "int8, reduced range", "float16"]
    assert found.chosen is not None
    assert [row["name"] for row in written.provenance.quantization] == [trial.name for trial in found.trials]
    told = "\n".join(bundle_notes(written.path, read_metadata(written.path, open_session(written.path, threads=1))))
    assert f"on {found.count} pictures" in told
    assert f"quantization: int8: accuracy {found.trials[1].accuracy:.1%}, " in told
    assert (written.class_names, written.preprocessing) == (bundle.class_names, bundle.preprocessing)
    assert written.path.stat().st_size < 0.6 * bundle.path.stat().st_size
    paths = [item.path for item in labels]
    for before, after in zip(Predictor(bundle)(paths), Predictor(written)(paths), strict=True):
        of = {score.label: score.probability for score in before.top}  # type: ignore[union-attr]
        assert all(score.probability == pytest.approx(of[score.label], abs=0.05) for score in after.top)  # type: ignore[union-attr]


def test_the_preparation_of_pixels_is_not_quantized(
    bundle: OnnxBundle, labels: LabelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FASTER", 0.0)
    quantized(bundle, labels, tmp_path / "small.onnx")
    model, before = onnx.load(tmp_path / "small.onnx"), onnx.load(bundle.path)
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    prepared = [[node for node in each.graph.node if node.name.startswith("prepare/")] for each in (before, model)]
    assert prepared[0] == prepared[1]


def test_where_nothing_is_faster_nothing_is_written(
    bundle: OnnxBundle, labels: LabelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FASTER", 1000.0)
    found = quantized(bundle, labels, tmp_path / "small.onnx")
    assert found.chosen is None
    assert not (tmp_path / "small.onnx").exists()


@pytest.mark.parametrize(
    ("trials", "chosen"),
    [
        ([("a", 0.90, 300.0), ("b", 0.895, 200.0)], "a"),
        ([("a", 0.88, 300.0), ("b", 0.89, 200.0)], "b"),
        ([("a", 0.95, 102.0)], None),
        ([("a", 0.80, 900.0)], None),
    ],
    ids=["the fastest", "the fastest within the drop", "hardly faster", "too inaccurate"],
)
def test_the_winner_is_the_fastest_that_keeps_its_accuracy(
    trials: list[tuple[str, float, float]], chosen: str | None
) -> None:
    best = _best([Trial("as it is", 0.9, 100.0, 1), *(Trial(*one, 1) for one in trials)], 1.0)
    assert (best.name if best else None) == chosen


def test_a_class_that_the_bundle_does_not_know_is_an_error(bundle: OnnxBundle, tmp_path: Path) -> None:
    write_label_file(tmp_path / "val.txt", pictures(tmp_path / "p", 3), ("class0", "class1", "other"))
    with pytest.raises(InputError, match=r"'other'.*does not know"):
        quantized(bundle, LabelFile(tmp_path / "val.txt"), tmp_path / "small.onnx")


def test_quantizing_without_pictures_is_an_error(bundle: OnnxBundle, tmp_path: Path) -> None:
    write_label_file(tmp_path / "val.txt", [], ("class0",))
    with pytest.raises(InputError, match="needs pictures"):
        quantized(bundle, LabelFile(tmp_path / "val.txt"), tmp_path / "small.onnx")
