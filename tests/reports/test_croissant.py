"""The dataset of a run in Croissant, read by its own library."""

import json
import warnings
from pathlib import Path

import pytest

from mlimages.reports import read_run, write_croissant
from tests.run_folders import make_run, write_manifest


def test_the_library_of_croissant_accepts_the_file_and_reads_classes_and_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    run = make_run(tmp_path / "run", names=("ants", "bees & wasps", "Käfer"))
    write_manifest(tmp_path / "images", {"license": "CC BY 4.0"})
    write_croissant(read_run(run), run / "croissant.json")
    with warnings.catch_warnings(action="ignore"):  # of rdflib, about its own names
        dataset = mlcroissant.Dataset(jsonld=run / "croissant.json")
    assert "@context" not in caplog.text
    assert not dataset.metadata.issues.errors
    assert dataset.metadata.license == ["CC BY 4.0"]
    rows = [{key.split("/")[1]: value for key, value in row.items()} for row in dataset.records("classes")]
    assert [row["label"] for row in rows] == [0, 1, 2]
    assert rows[2]["name"] in ("Käfer", "Käfer".encode())
    assert [(row["train"], row["val"]) for row in rows] == [(8, 8)] * 3
    assert str(tmp_path) not in (run / "croissant.json").read_text()


@pytest.mark.parametrize("source", [{}, {"license": ""}, {"license": None}])
def test_a_licence_that_no_source_stated_is_not_listed(tmp_path: Path, source: dict[str, str | None]) -> None:
    run = make_run(tmp_path / "run")
    write_manifest(tmp_path / "images", source)
    write_croissant(read_run(run), run / "croissant.json")
    written = json.loads((run / "croissant.json").read_text())
    assert "license" not in written
    assert written["description"].endswith("Licences of the images: not recorded: 1 image.")
