"""Devices: the names that are accepted, and whether bfloat16 is fast on them."""

import pytest
import torch

from mlimages.core import InputError
from mlimages.networks import choose_device, has_fast_bf16


@pytest.mark.parametrize("name", ["gpu", "cuda:1", ""])
def test_an_unknown_device_is_an_error_that_names_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match="it must be one of auto, cpu, cuda, mps"):
        choose_device(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_fast", [False, True])
def test_a_gpu_that_emulates_bfloat16_is_not_fast_in_it(is_fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or is_fast
    )
    assert has_fast_bf16(torch.device("cuda")) == is_fast
