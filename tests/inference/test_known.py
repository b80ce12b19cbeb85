"""What the file says beside the classes reaches every output: whether the image is known, and the prediction set."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from mlimages.cli.main import app
from mlimages.core import Prediction
from mlimages.inference import (
    KNOWN,
    PROBABILITIES,
    InDistributionCalibration,
    OnnxBundle,
    PredictionSetThresholds,
    Predictor,
)
from tests.deploying import made_image

pytestmark = pytest.mark.train


def with_known(bundle: OnnxBundle, out: Path, *, known: float, threshold: float) -> OnnxBundle:
    """The file with a constant output `known`, and a threshold of its prediction sets."""
    model, helper = onnx.load(bundle.path), onnx.helper
    values = {"known_zero": 0.0, "known_value": known}
    model.graph.initializer.extend(helper.make_tensor(name, 1, [], [value]) for name, value in values.items())
    model.graph.node.extend([
        helper.make_node("ReduceMax", [PROBABILITIES, "known_axes"], ["known_best"], name="known_best", keepdims=0),
        helper.make_node("Mul", ["known_best", "known_zero"], ["known_none"], name="known_none"),
        helper.make_node("Add", ["known_none", "known_value"], [KNOWN], name=KNOWN),
    ])  # fmt: skip
    model.graph.initializer.append(helper.make_tensor("known_axes", 7, [1], [1]))
    model.graph.output.append(helper.make_tensor_value_info(KNOWN, 1, ["N"]))
    onnx.save(model, out)
    sets = PredictionSetThresholds("validation", 20, {"0.9": threshold})
    written = replace(bundle, path=out, known=InDistributionCalibration(0.95, 20), prediction_sets=sets)
    written.write(out)
    return written


@pytest.mark.parametrize(("known", "threshold"), [(0.2, 0.0), (0.8, 0.0), (0.8, 1.1)])
def test_known_and_the_set_reach_python_text_json_and_csv(
    known: float, threshold: float, cnn_bundle: OnnxBundle, tmp_path: Path
) -> None:
    path = with_known(cnn_bundle, tmp_path / "a.onnx", known=known, threshold=threshold).path
    made_image(1).save(tmp_path / "a.png")
    (result,) = Predictor(path)(tmp_path / "a.png")
    assert isinstance(result, Prediction)
    assert result.known == (known >= 0.5)
    assert result.known_score == pytest.approx(known)
    names = [score.class_name for score in result.top]
    assert result.prediction_set == tuple(names if threshold == 0 else names[:1])

    def run(*options: str) -> str:
        return CliRunner().invoke(app, ["predict", str(path), str(tmp_path / "a.png"), *options]).stdout

    done = CliRunner().invoke(app, ["predict", str(path), str(tmp_path / "a.png")])
    assert ("unlike the training images" in done.stderr) == (not result.known)
    text = done.stdout
    assert ("none of these (nearest: " in text) == (not result.known)
    assert (" or ".join(names) in text) == (result.known and threshold == 0)
    (values,) = json.loads(run("--json"))
    assert (values["known"], values["prediction_set"]) == (result.known, list(result.prediction_set or ()))
    (row,) = csv.DictReader(run("--csv").splitlines())
    assert row["fault"] == ("" if result.known else "unknown")
    assert float(row["known"]) == pytest.approx(known)
    assert row["set"] == "|".join(result.prediction_set or ())


def test_a_file_without_them_says_nothing_of_either(cnn_bundle: OnnxBundle, tmp_path: Path) -> None:
    (result,) = Predictor(cnn_bundle)(made_image(1))
    assert isinstance(result, Prediction)
    assert (result.known, result.known_score, result.prediction_set) == (None, None, None)
    made_image(1).save(tmp_path / "a.png")
    said = [CliRunner().invoke(app, ["predict", str(cnn_bundle.path), str(tmp_path / "a.png"), each]).stdout
            for each in ("--json", "--csv")]  # fmt: skip
    (values,), (row,) = json.loads(said[0]), csv.DictReader(said[1].splitlines())
    assert [values[key] for key in ("known", "known_score", "prediction_set")] == [None] * 3
    assert values["class_name"] == result.class_name
    assert [row[key] for key in ("fault", "known", "set")] == [""] * 3
