"""Read weights from files without executing code, and load them into a network by name and shape."""

from __future__ import annotations

import os
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

MAX_LISTED = 3
"""Number of names that an error lists for each kind of mismatch."""


def read_weights(path: str | os.PathLike[str]) -> State:
    """The tensors of a `.safetensors`, `.npz`, `.pth` or `.pt` file, floats of any precision as float32.

    They may be under the key `state_dict`, `model` or `model_state_dict` of a checkpoint, and their names may start
    with the `module.` of DataParallel.

    Raises:
        ModelError: there is no such file, it has another format, or code would have to be executed to read it.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}: give a .safetensors, .npz, .pth or .pt file")
    try:
        state = _READERS[path.suffix.lower()](path)
    except KeyError:
        raise ModelError(f"{path} is not a weights file: expected .safetensors, .npz, .pth or .pt") from None
    except (SafetensorError, zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError) as error:
        raise ModelError(f"{path} cannot be read as {path.suffix} weights: {_first_line(error)}") from error
    if not state:
        raise ModelError(f"{path} contains no tensors")
    return {name.removeprefix("module."): _to_float32(tensor) for name, tensor in state.items()}


def _read_torch(path: Path) -> State:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch's own error class is private
        raise ValueError("it is damaged, or contains objects other than tensors, which would execute code") from error
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


def _to_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def load_weights(network: nn.Module, state: State, *, head: str, source: str) -> bool:
    """Load `state` into `network`, and return whether that includes the head.

    The head is skipped if the file has none or one for another number of classes.

    Args:
        head: module path of the classifier.
        source: what the weights are, for messages.

    Raises:
        ModelError: tensors are missing, unexpected, of another shape or NaN; the message lists the first of each kind.
    """
    own = network.state_dict()
    own_head = {name for name in own if name.startswith(f"{head}.")}
    skip_head = any(name not in state or state[name].shape != own[name].shape for name in own_head)
    state = {name: tensor for name, tensor in state.items() if not (skip_head and name in own_head)}
    expected = own.keys() - (own_head if skip_head else set())
    missing = [name for name in own if name in expected - state.keys() and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    wrong_shape = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong_shape}
    if any(problems.values()):
        listed = (f"{problem}: {_first_names(names)}" for problem, names in problems.items() if names)
        raise ModelError(f"{source} does not fit this network; {'; '.join(listed)}")
    if broken := [name for name in own if name in state and _has_nan(state[name])]:
        raise ModelError(f"{source} is damaged: NaN in {_first_names(broken)}")
    counters = {name for name in expected if name.endswith("num_batches_tracked")} - state.keys()
    state |= {name: torch.zeros((), dtype=torch.long) for name in counters}  # not saved before torch 0.4.1
    network.load_state_dict(state, strict=False, assign=True)
    return not skip_head


def _has_nan(tensor: Tensor) -> bool:
    # min() returns NaN if there is any, and needs no memory of the tensor's size as isnan() does.
    return tensor.is_floating_point() and tensor.numel() > 0 and bool(tensor.min().isnan())


def _first_names(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{', '.join(names[:MAX_LISTED])}{more}"
