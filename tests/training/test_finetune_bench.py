"""The benchmark of fine-tuning stays runnable."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.train
def test_the_benchmark_runs_in_its_tiny_form() -> None:
    script = Path(__file__).parents[2] / "scripts" / "bench" / "finetune.py"
    done = subprocess.run(
        [sys.executable, script, "--tiny", "--only", "cold"], capture_output=True, text=True, check=True
    )
    assert "mlimages, cold" in done.stdout
