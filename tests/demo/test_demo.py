"""The demo as a user types it: the whole workflow, without a network connection."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from mlimages import LabelFile
from tests.conftest import RunCli


@pytest.mark.train
def test_the_demo_runs_every_step_and_keeps_all_files(run_cli: RunCli, tmp_path: Path) -> None:
    output = run_cli("demo").stdout

    folder = tmp_path / "mlimages-demo"
    rows = [
        json.loads(line)
        for name in ("old", "new")
        for line in (folder / name / "manifest.jsonl").read_text().splitlines()
    ]
    assert sum(row["status"] == "ok" for row in rows) == 1797
    assert sum(row["status"] == "duplicate" for row in rows) == 20
    failures = Counter(row["reason"] for row in rows if row["status"] in ("failed", "placeholder"))
    assert failures == {"not-found": 20, "html": 12, "truncated": 12, "placeholder": 15}
    assert sum(1 for _ in LabelFile(folder / "few_0.txt")) == 50
    assert (folder / "mean.png").exists()
    assert (folder / "runs" / "transfer-0" / "model.onnx").exists()

    steps, table = re.split(r"^step  .*$", output, flags=re.MULTILINE)
    commands = re.findall(r"^\$ mlimages (\w+)", steps, re.MULTILINE)
    assert list(dict.fromkeys(commands)) == ["gather", "label", "check", "mean", "finetune", "predict"]
    assert max(map(len, output.splitlines())) <= 80
    accuracies = {
        name: float(mean) for name, mean in re.findall(r"^(\w+, \d+ epochs) +([\d.]+) %", table, re.MULTILINE)
    }
    assert accuracies["transfer, 40 epochs"] > 85
    assert accuracies["transfer, 10 epochs"] > accuracies["scratch, 10 epochs"]
    assert re.search(r"same class as PyTorch for (\d+) of \1 test\s+images", table)


def test_the_demo_refuses_a_folder_that_it_did_not_create(run_cli: RunCli, tmp_path: Path) -> None:
    thesis = tmp_path / "documents" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    done = run_cli("demo", "-o", "documents", check=False)
    assert done.returncode == 1
    assert "documents was not created by the demo and is not empty: choose another folder" in done.stderr
    assert thesis.read_text() == "years of work"
