"""The benchmarks of deployment still run."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlimages.inference import OnnxBundle

pytestmark = pytest.mark.train
SCRIPTS = Path(__file__).parents[2] / "scripts" / "bench"


@pytest.mark.parametrize(
    ("script", "said"), [("predict.py", "first answer"), ("serve.py", "mlimages"), ("soak.py", "sound")]
)
def test_the_quick_form_of_a_benchmark_runs(script: str, said: str, cnn_bundle: OnnxBundle) -> None:
    folder = cnn_bundle.path.parent / "images"
    command = [sys.executable, SCRIPTS / script, "--tiny", cnn_bundle.path, folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout
