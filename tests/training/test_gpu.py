"""Training on a CUDA device; skipped, with the reason, where there is none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mlimages.training import fine_tune
from tests.training.conftest import config_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.train,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]


def test_a_whole_network_learns_and_its_exported_file_answers_as_it_does(colours: Path) -> None:
    config = config_for(colours, epochs=6, device="cuda")
    result = fine_tune(config)
    assert result.epochs == 6
    assert result.onnx


def test_the_head_learns_on_a_gpu_what_it_learns_on_a_cpu(colours: Path, pretrained: Path, tmp_path: Path) -> None:
    config = config_for(colours, weights=str(pretrained), freeze="head", optimizer="sgd", lr=0.001)
    runs = [
        fine_tune(replace(config, device=device, out=tmp_path / device), export=False) for device in ("cpu", "cuda")
    ]
    cpu, cuda = (load_file(result.run / "last.safetensors")["fc6.weight"] for result in runs)
    assert torch.allclose(cpu, cuda, atol=0.02 * float(cpu.abs().max()))
