"""Weights from files: read without running code, and fitted to a network by name and shape."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mlimages.core import ModelError

State = dict[str, Tensor]

SHOWN = 3
"""How many names of each kind of mismatch an error lists."""


def read_weights(path: Path) -> State:
    """The tensors of a `.safetensors`, `.npz`, `.pth` or `.pt` file, half precision as float32.

    A checkpoint that keeps them under `state_dict` or `model`, and the prefix `module.` of a
    data-parallel network, are understood.

    Raises:
        ModelError: no such file, another format, or one that would have to run code to be read.
    """
    if not path.is_file():
        raise ModelError(f"no weights at {path}: give a .safetensors, .npz, .pth or .pt file")
    try:
        state = _READERS[path.suffix.lower()](path)
    except KeyError:
        raise ModelError(f"{path}: weights come as .safetensors, .npz, .pth or .pt") from None
    except (SafetensorError, zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError) as error:
        raise ModelError(f"{path} cannot be read as {path.suffix} weights: {_first_line(error)}") from error
    if not state:
        raise ModelError(f"{path} holds no tensors")
    return {name.removeprefix("module."): _full(tensor) for name, tensor in state.items()}


def _read_torch(path: Path) -> State:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # the restricted reader's own error comes from a module that is not for import
        raise ValueError("it is damaged or holds more than tensors, and no code of a file is ever run") from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise ValueError("it is not a dictionary of tensors")
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}


def _read_npz(path: Path) -> State:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


_READERS: dict[str, Any] = {
    ".safetensors": load_file,
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
}


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def fit_weights(network: nn.Module, state: State, *, head: str, source: str) -> bool:
    """Load `state` into `network`; a head of another class count is left out.

    Returns whether the head was loaded too.

    Raises:
        ModelError: names are missing, unexpected or of another shape, the first of each listed.
    """
    wanted = network.state_dict()
    own_head = {name for name in wanted if name.startswith(f"{head}.")}
    other_head = any(name not in state or state[name].shape != wanted[name].shape for name in own_head)
    state = {name: tensor for name, tensor in state.items() if not (other_head and name in own_head)}
    expected = wanted.keys() - (own_head if other_head else set())
    missing = [name for name in wanted if name in expected - state.keys() and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    misshaped = [
        f"{name} {tuple(state[name].shape)} for {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    said = [_listed("missing", missing), _listed("unexpected", unexpected), _listed("of another shape", misshaped)]
    if any(said):
        raise ModelError(f"{source} does not fit this network: " + "; ".join(filter(None, said)))
    if broken := [name for name in wanted if name in state and _has_nan(state[name])]:
        raise ModelError(f"{source} is damaged: " + _listed("NaN in", broken))
    counters = {name for name in expected if name.endswith("num_batches_tracked")} - state.keys()
    state |= {name: torch.zeros((), dtype=torch.long) for name in counters}  # files older than torch 0.4.1 have none
    network.load_state_dict(state, strict=False, assign=True)
    return not other_head


def _has_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0 and bool(tensor.min().isnan())  # NaN is the least


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what}: {', '.join(names[:SHOWN])}{more}"
