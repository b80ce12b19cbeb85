"""The model card says what the file is, and never replaces what a person wrote."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlimages.cli.main import app
from mlimages.inference import InDistributionCalibration, OnnxBundle, ParityResult, PredictionSetThresholds
from mlimages.reports import RunFiles, format_model_card, has_model_card, summarize_onnx, write_model_card
from tests.run_folders import make_run, write_manifest

pytestmark = pytest.mark.train


def test_the_card_is_read_by_the_hub_and_names_data_results_licenses_and_the_command(
    cnn_bundle: OnnxBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlimages.training.run_export import read_provenance

    monkeypatch.chdir(tmp_path.parent)
    run = make_run(tmp_path / "run", names=cnn_bundle.class_names)
    write_manifest(tmp_path / "images", *[{"license": "CC BY 4.0"}] * 3)
    accuracy = (0.75, 0.5, 0.875)
    provenance = replace(
        read_provenance(RunFiles(run), run / "config.json"), accuracy=accuracy, num_evaluated_images=24
    )
    written = replace(cnn_bundle, path=tmp_path / "a.onnx", provenance=provenance)
    written.write(cnn_bundle.path)
    card = format_model_card(OnnxBundle.read(written.path))
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(card).data.to_dict()
    assert data["pipeline_tag"] == "image-classification"
    (result,) = data["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(0.75)
    assert "| class0 | 8 | 8 |\n| class1 | 8 | 8 |" in card
    assert "| CC BY 4.0 | 3 |" in card
    here = tmp_path.name  # paths below the current folder are those that were typed
    assert f"$ mlimages finetune {here}/labels.txt --model lenet5 --freeze head -o {here}/run\n" in card
    assert str(tmp_path) not in card
    summary = CliRunner().invoke(app, ["summary", str(written.path)]).stdout
    assert summary.endswith(f"\n{card}")


def test_a_file_that_was_compared_on_no_image_is_not_said_to_agree(cnn_bundle: OnnxBundle, tmp_path: Path) -> None:
    provenance = replace(
        cnn_bundle.provenance, parity=ParityResult(num_images=0, num_near_ties=0, max_relative_difference=0.0)
    )
    bundle = replace(cnn_bundle, path=tmp_path / "a.onnx", provenance=provenance)
    bundle.write(cnn_bundle.path)
    assert "\nThe file was not compared with the trained network.\n" in format_model_card(bundle)
    assert "parity: not compared with the trained network" in summarize_onnx(bundle.path).notes


def test_one_class_is_in_the_singular(cnn_bundle: OnnxBundle, tmp_path: Path) -> None:
    probe = replace(cnn_bundle.parity_test_image, logits=cnn_bundle.parity_test_image.logits[:1])
    bundle = replace(
        cnn_bundle, path=tmp_path / "a.onnx", multi_label=True, class_names=("ants",), thresholds=(0.5,),
        parity_test_image=probe,
    )  # fmt: skip
    bundle.write(cnn_bundle.path)
    assert "any number of 1 class: ants." in format_model_card(bundle)
    assert any("multi-label, 1 class: ants" in note for note in summarize_onnx(bundle.path).notes)


def test_the_card_counts_near_ties_as_differences(cnn_bundle: OnnxBundle) -> None:
    parity = ParityResult(num_images=24, num_near_ties=2, max_relative_difference=1e-4)
    card = format_model_card(replace(cnn_bundle, provenance=replace(cnn_bundle.provenance, parity=parity)))
    assert "\nONNX Runtime and the trained network agree on 22 of 24 validation images.\n" in card


def test_the_cards_limits_say_what_known_and_the_sets_mean(cnn_bundle: OnnxBundle) -> None:
    sets, without = PredictionSetThresholds("validation", 12, {"0.9": 0.25}), format_model_card(cnn_bundle)
    card = format_model_card(replace(cnn_bundle, known=InDistributionCalibration(0.75, 12), prediction_sets=sets))
    text = " ".join(card.split())
    assert "about 25 % of images like the validation set are wrongly below 0.5. The scale was computed from 12 " in text
    assert "was wrongly below" not in text, "it is not measured"
    assert "at least 0.250 include the true class" in card
    assert 'probabilities, known = session.run(["logits", "probabilities", "known"]' in card
    assert f"names = {list(cnn_bundle.class_names)!r}\nprint(names[probabilities[0].argmax()])\n```" in without
    assert "`known`" not in without
    assert "even one that shows none of them" in without


def test_a_card_of_ours_is_replaced_and_a_readme_of_a_person_stays(cnn_bundle: OnnxBundle, tmp_path: Path) -> None:
    first = replace(cnn_bundle, path=tmp_path / "a.onnx")
    second = replace(first, model="second")
    assert not has_model_card(first)
    assert write_model_card(first) == tmp_path / "README.md"
    assert write_model_card(second) == tmp_path / "README.md"
    assert (has_model_card(first), has_model_card(second)) == (False, True)
    (tmp_path / "README.md").write_text("mine")
    assert write_model_card(first) is None
    assert (tmp_path / "README.md").read_text() == "mine"
