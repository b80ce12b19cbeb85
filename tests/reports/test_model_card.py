"""The model card says what the file is, and never replaces what a person wrote."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlimages.inference import Known, OnnxBundle, PredictionSets
from mlimages.reports import model_card, read_run, write_model_card
from tests.run_folders import make_run

COMMAND = "mlimages finetune labels.txt -o first"


@pytest.mark.train
def test_the_card_is_read_by_the_hub_and_names_data_results_licenses_and_the_command(
    cnn_bundle: OnnxBundle, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    row = {"v": 1, "label": "ants", "status": "ok", "bytes": 9, "sha256": "0" * 64, "dhash": "0" * 16}
    rows = [
        {**row, "url": f"http://a/{n}", "path": f"ants/{n}.png", "source": {"license": "CC BY 4.0"}} for n in range(3)
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / "pictures" / "manifest.jsonl").write_text(text)
    card = model_card(replace(cnn_bundle, path=tmp_path / "a.onnx"), read_run(run), command=COMMAND)
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(card).data.to_dict()
    assert data["pipeline_tag"] == "image-classification"
    assert cnn_bundle.provenance.accuracy is not None
    (result,) = data["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(cnn_bundle.provenance.accuracy[0], abs=1e-4)
    assert "| ants | 8 | 8 |\n| bees | 8 | 8 |" in card
    assert "| CC BY 4.0 | 3 |" in card
    assert f"$ {COMMAND}\n" in card
    assert str(tmp_path) not in card


@pytest.mark.train
def test_the_cards_limits_say_what_known_and_the_sets_mean(cnn_bundle: OnnxBundle, tmp_path: Path) -> None:
    run, sets = read_run(make_run(tmp_path / "run")), PredictionSets("validation", 12, {"0.9": 0.25})
    without = model_card(cnn_bundle, run, command=COMMAND)
    card = model_card(replace(cnn_bundle, known=Known(0.75, 12), prediction_sets=sets), run, command=COMMAND)
    assert "25% of 12 validation images" in card
    assert "at least 0.250 hold the true one" in card
    assert 'probabilities, known = session.run(["logits", "probabilities", "known"]' in card
    assert "`known`" not in without
    assert "also one that shows none of them" in without


@pytest.mark.train
def test_a_card_of_ours_is_replaced_and_a_readme_of_a_person_stays(cnn_bundle: OnnxBundle, tmp_path: Path) -> None:
    run, bundle = read_run(make_run(tmp_path / "run")), replace(cnn_bundle, path=tmp_path / "a.onnx")
    assert write_model_card(bundle, run, command="first") == tmp_path / "README.md"
    assert write_model_card(bundle, run, command="second") == tmp_path / "README.md"
    assert "second" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    assert write_model_card(bundle, run, command="third") is None
    assert (tmp_path / "README.md").read_text() == "mine"
