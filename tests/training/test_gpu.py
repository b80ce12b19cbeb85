"""Training on a CUDA device; skipped, with the reason, where there is none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mlimages.networks import build_model
from mlimages.training import fine_tune
from tests.training.conftest import config_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.train,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]
CUDA = torch.device("cuda")


def test_half_precision_is_bfloat16_where_the_device_has_it() -> None:
    wanted = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    layer, x = nn.Linear(4, 2).to(CUDA), torch.ones(1, 4, device=CUDA)
    with torch.autocast("cuda", torch.bfloat16):
        assert layer(x).dtype == wanted


def test_a_whole_network_learns_and_its_exported_file_answers_as_it_does(colours: Path) -> None:
    config = config_for(colours, epochs=6, device="cuda")
    result = fine_tune(config)
    assert result.epochs == 6
    assert result.onnx


def test_the_head_learns_on_a_gpu_what_it_learns_on_a_cpu(colours: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    save_file(build_model("cifar10_cnn", num_classes=10, weights="none", seed=9).network.state_dict(), weights)
    config = config_for(colours, weights=str(weights), freeze="head", optimizer="sgd", lr=0.001)
    runs = [
        fine_tune(replace(config, device=device, out=tmp_path / device), export=False) for device in ("cpu", "cuda")
    ]
    cpu, cuda = (load_file(result.run / "last.safetensors")["fc6.weight"] for result in runs)
    assert torch.allclose(cpu, cuda, atol=0.02 * float(cpu.abs().max()))
