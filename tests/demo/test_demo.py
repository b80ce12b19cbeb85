"""The demo as a user types it: the whole road, nothing from outside this machine."""

import json
import re
from pathlib import Path

import pytest

from mlimages import LabelFile
from tests.conftest import RunCli


@pytest.mark.train
def test_the_demo_walks_the_whole_road_and_leaves_everything_to_look_at(run_cli: RunCli, tmp_path: Path) -> None:
    out = run_cli("demo").stdout

    made = tmp_path / "mlimages-demo"
    rows = [
        json.loads(line)
        for name in ("old", "new")
        for line in (made / name / "manifest.jsonl").read_text().splitlines()
    ]
    assert sum(row["status"] == "ok" for row in rows) == 1797
    assert sum(row["status"] == "duplicate" for row in rows) == 20
    assert {row["reason"] for row in rows if row["status"] == "failed"} == {
        "not-found",
        "html",
        "truncated",
        "placeholder",
    }
    assert sum(1 for _ in LabelFile(made / "few_0.txt")) == 50
    assert (made / "mean.png").exists()
    assert (made / "runs" / "transfer-0" / "model.onnx").exists()

    words = re.findall(r"^\$ mlimages (\w+)", out.split("what  ")[0], re.MULTILINE)
    assert list(dict.fromkeys(words)) == ["gather", "label", "check", "mean", "finetune", "predict"]
    assert max(map(len, out.splitlines())) <= 80
    shares = {name: float(share) for name, share in re.findall(r"^(\w+, \d+ ep\.) +([\d.]+) %", out, re.MULTILINE)}
    assert shares["transfer, 40 ep."] > 85
    assert shares["transfer, 10 ep."] > shares["scratch, 10 ep."]


def test_the_demo_leaves_alone_a_folder_that_is_not_its_own(run_cli: RunCli, tmp_path: Path) -> None:
    kept = tmp_path / "mine" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("years of work")
    done = run_cli("demo", "-o", "mine", check=False)
    assert done.returncode == 1
    assert "mine holds something that no demo made" in done.stderr
    assert kept.read_text() == "years of work"
