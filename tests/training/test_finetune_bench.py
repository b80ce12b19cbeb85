"""The benchmark of fine-tuning stays runnable."""

import os
from pathlib import Path

import pytest

from tests.conftest import fork_server


@pytest.mark.train
def test_the_benchmark_runs_in_its_tiny_form(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "bench" / "finetune.py"
    words = [str(script), "--tiny", "--only", "cold"]
    done = fork_server().start(words, tmp_path, dict(os.environ), torch=True).communicate()
    assert (done.returncode, "mlimages, cold" in done.stdout) == (0, True), done.stderr
