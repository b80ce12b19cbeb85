"""The demo as a user types it: the whole workflow, without a network connection."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from mlimages import InputError, LabelFile
from mlimages.demo import run_demo
from mlimages.demo.transfer import MethodAccuracies, describe_difference, format_accuracy_bars
from tests.conftest import fork_server

SMALLER = """
import sys
from mlimages.__main__ import main
from mlimages.demo import walkthrough
walkthrough.SEEDS, walkthrough.IMAGES_PER_CLASS = range(2), (2, 10)
sys.argv[1:] = ["demo"]
main()
"""


@pytest.mark.train
def test_the_demo_runs_every_step_and_keeps_all_files(tmp_path: Path) -> None:
    done = fork_server().start(["-c", SMALLER], tmp_path, os.environ, torch=True).communicate()
    assert done.returncode == 0, done.stderr
    output, folder = done.stdout, tmp_path / "mlimages-demo"

    rows = [
        json.loads(line)
        for name in ("old", "new")
        for line in (folder / name / "manifest.jsonl").read_text().splitlines()
    ]
    assert sum(row["status"] == "ok" for row in rows) == 1797
    assert sum(row["status"] == "duplicate" for row in rows) == 20
    failures = Counter(row["reason"] for row in rows if row["status"] in ("failed", "placeholder"))
    assert failures == {"not-found": 20, "html": 12, "truncated": 12, "placeholder": 15}
    assert sum(1 for _ in LabelFile(folder / "few_10_0.txt")) == 50
    test_images = {item.path for item in LabelFile(folder / "new_val.txt")}
    assert not test_images & {item.path for item in LabelFile(folder / "few_10_1.txt")}
    for name in ("mean.png", "transfer.png", "runs/transfer-10-0/model.onnx"):
        assert (folder / name).exists()

    commands = re.findall(r"^\$ mlimages (\w+)", output[: output.rindex("$ mlimages finetune FOLDER")], re.MULTILINE)
    assert list(dict.fromkeys(commands)) == ["gather", "label", "check", "mean", "finetune", "predict"]
    assert max(map(len, output.splitlines())) <= 80
    means = [float(mean) for mean in re.findall(r"^ +10 \w+ +#+ +([\d.]+) %", output, re.MULTILINE)]
    assert len(means) == 4
    assert min(means[2:]) > 80, "after 40 epochs, transfer and scratch"
    assert re.search(r"same class as PyTorch for (\d+) of \1 test\s+images", output)


def test_both_ways_to_train_are_compared_seed_by_seed() -> None:
    transfer = MethodAccuracies("transfer", 5, 10, (0.75, 0.5, 1.0))
    scratch = MethodAccuracies("scratch", 5, 10, (0.5, 0.5, 0.8))
    assert (
        describe_difference(transfer, scratch)
        == "transfer minus scratch: +15.0 percentage points; higher for 2 of 3 seeds"
    )
    assert describe_difference(scratch, transfer).startswith(
        "transfer minus scratch: -15.0 percentage points; higher for 0 of 3"
    )
    first, _ = format_accuracy_bars([transfer, scratch])
    assert first.split() == ["5", "transfer", "#" * 27, "75.0", "%", "(50.0", "to", "100.0", "%)"]


@pytest.mark.parametrize("out", ["documents", "documents/thesis.txt"])
def test_the_demo_refuses_a_folder_with_files_and_a_file(tmp_path: Path, out: str) -> None:
    thesis = tmp_path / "documents" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(InputError, match=f"{out} is not an empty folder: choose another one with -o"):
        run_demo(tmp_path / out, show=print)
    assert thesis.read_text() == "years of work"
