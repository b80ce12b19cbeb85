"""Read weights from files without executing code, and load them into a network by name and shape."""

from __future__ import annotations

import logging
import os
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mlimages.core import ModelError, describe_unsupported_content, require_local_path, summarize_error

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

MAX_LISTED_NAMES = 3
"""Maximum number of names that an error message lists for each kind of mismatch."""

SUPPORTED_SUFFIXES_TEXT = ".safetensors, .npz, .pth, .pt, .ckpt, .bin or .tar"

_STATE_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module", "teacher", "params")
"""Keys under which a checkpoint may store a state dict, in order of preference: averaged weights first, as in timm."""

_CHAINER_TO_TORCH_NAMES = {"W": "weight", "b": "bias", "gamma": "weight", "beta": "bias", "avg_mean": "running_mean",
                  "avg_var": "running_var", "N": "num_batches_tracked"}  # fmt: skip


def read_weights(path: str | os.PathLike[str]) -> StateDict:
    """Read the tensors of a weights file or checkpoint by name; floats of any precision become float32.

    Checkpoints of timm, Lightning or a training loop may store the tensors under `state_dict`, `model` and similar
    keys.

    Raises:
        ModelError: there is no such file, its format is not supported, it is damaged or holds no tensors, or loading it
            could execute code.
    """
    path = require_local_path(path)
    if not path.is_file():
        raise ModelError(f"no weights file at {path}: expected a {SUPPORTED_SUFFIXES_TEXT} file")
    try:
        state_dict = _READERS_BY_SUFFIX[path.suffix.lower()](path)
    except KeyError:
        raise ModelError(f"{path} is not a weights file: expected a {SUPPORTED_SUFFIXES_TEXT} file") from None
    except (SafetensorError, zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError) as error:
        cause = _diagnose_unreadable_file(path) or summarize_error(error)[:200]
        raise ModelError(f"{path} cannot be read as {path.suffix} weights: {cause}") from error
    if not state_dict:
        raise ModelError(f"{path} contains no tensors: save the network's state_dict()")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state_dict.items()}


def _diagnose_unreadable_file(path: Path) -> str:
    """Return why a weights file cannot be read, or what it contains instead; "" if unknown."""
    try:
        with path.open("rb") as file:
            begin = file.read(1000)
    except OSError as error:  # safetensors takes a file without read permission for missing
        return summarize_error(error)
    if not begin.startswith(b"PK\x03\x04"):
        return describe_unsupported_content(begin) if begin else "the file is empty; copy or download it again"
    if not zipfile.is_zipfile(path):
        return "the file is incomplete; download it again"
    with zipfile.ZipFile(path) as archive:
        is_script = any(name.endswith("/constants.pkl") for name in archive.namelist())
    return "the file is a TorchScript archive; save the state_dict() of the loaded module instead" if is_script else ""


class _IgnoredObject:
    """Placeholder for objects in a checkpoint that are not tensors or plain values, such as training options.

    Unpickling creates it instead of the original class, which is neither imported nor called.
    """

    def __init__(self, *args: object, **options: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _read_torch_checkpoint(path: Path) -> StateDict:
    try:
        is_zip = zipfile.is_zipfile(path)
        others = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_zip else ["argparse.Namespace"]
        with torch.serialization.safe_globals([(_IgnoredObject, name) for name in others]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # torch's own error class is private
        raise ValueError("the file is damaged, or contains objects that could execute code when loaded") from error
    while isinstance(loaded, Mapping) and (key := next((k for k in _STATE_KEYS if _has_mapping(loaded, k)), "")):
        loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise ValueError("the file does not contain a dictionary of tensors: save the network's state_dict()")
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}


def _has_mapping(contents: Mapping[Any, Any], key: str) -> bool:
    return isinstance(contents.get(key), Mapping) and bool(contents[key])


def _read_npz(path: Path) -> StateDict:
    """Read the arrays of a .npz file by name; names of Chainer are converted: `conv1/W` becomes `conv1.weight`."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {_convert_chainer_name(name): torch.from_numpy(arrays[name]) for name in arrays.files}


def _convert_chainer_name(name: str) -> str:
    *parents, last = name.split("/")
    return ".".join([*parents, _CHAINER_TO_TORCH_NAMES.get(last, last)]) if parents else name


_READERS_BY_SUFFIX: dict[str, Any] = {
    ".safetensors": load_file,
    ".npz": _read_npz,
    **dict.fromkeys((".pth", ".pt", ".ckpt", ".bin", ".tar"), _read_torch_checkpoint),
}


def rename_tensors_by_order(
    network: nn.Module, state_dict: StateDict, *, heads: Sequence[str], weights_name: str
) -> StateDict:
    """Rename tensors to the names of the network's tensors, by position: the first to the first name, and so on.

    Return `state_dict` unchanged if it and the network have a tensor name in common, or if the number or the shapes of
    the tensors differ. It is also unchanged if a weight would get the name of a bias, for example: `conv1.W` would
    become `0.weight`, but `conv2.W` would become `3.bias`.

    Args:
        network: a network of the same architecture.
        state_dict: tensors in the order in which the network saved them.
        heads: module paths of the classifiers, whose shapes may differ.
        weights_name: name of the weights, for the warning.
    """
    own = network.state_dict()
    names, others = ([name for name in each if not name.endswith("num_batches_tracked")] for each in (own, state_dict))
    if own.keys() & state_dict.keys() or len(names) != len(others):
        return state_dict
    kinds: dict[str, str] = {}  # such as W: weight
    for name, other in zip(names, others, strict=True):
        kind, other_kind = (text.rpartition(".")[2] for text in (name, other))
        is_same = own[name].shape == state_dict[other].shape or is_in_modules(name, heads)
        if not is_same or kinds.setdefault(other_kind, kind) != kind:
            return state_dict
    logger.warning("%s: the tensor names differ from the network's; matching them by order", weights_name)
    return {name: state_dict[other] for name, other in zip(names, others, strict=True)}


def remove_prefix(state_dict: StateDict, network: nn.Module, *, weights_name: str) -> StateDict:
    """Remove a prefix of the tensor names, such as `module.` or `backbone.`, that the names in the network do not have.

    The prefix is removed only if at least n / 2 names are then names of the network. Here, n is the number of tensors
    in the file or in the network, whichever is smaller. Tensors without the prefix are left out, with a warning.
    """
    own = network.state_dict().keys()
    parts = (name.split(".") for name in state_dict)
    prefixes = Counter(
        "".join(f"{part}." for part in names[:end])
        for names in parts
        for end in range(len(names))
        if ".".join(names[end:]) in own
    )
    prefix, count = max(prefixes.items(), key=lambda item: (item[1], -len(item[0])), default=("", 0))
    if not prefix or count < min(len(own), len(state_dict)) / 2:
        return state_dict
    outside = [name for name in state_dict if not name.startswith(prefix)]
    logger.info("%s: removed the prefix %r from the tensor names", weights_name, prefix)
    if outside:
        logger.warning("%s: skipped tensors without the prefix %r: %s", weights_name, prefix, _format_names(outside))
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def load_weights(network: nn.Module, state_dict: StateDict, *, heads: Sequence[str], weights_name: str) -> bool:
    """Load `state_dict` into `network`; return whether the weights of the heads were loaded.

    If a tensor of the heads is missing or has another shape, as with another number of classes, the heads are skipped.
    Tensors of top-level modules that the network does not have, such as an auxiliary classifier, are skipped with a
    warning. Within a module that the network has, an unknown tensor, such as `layer1.extra`, is an error.

    Args:
        network: changed in place.
        state_dict: the tensors by name.
        heads: module paths of the classifiers.
        weights_name: name of the weights, for messages.

    Raises:
        ModelError: tensors are missing, unknown, of another shape, or contain NaN or infinity; the message lists the
            first of each kind.
    """
    own = network.state_dict()
    own_head = {name for name in own if is_in_modules(name, heads)}
    skip_head = any(name not in state_dict or state_dict[name].shape != own[name].shape for name in own_head)
    parts = {name.partition(".")[0] for name in own}
    head_parents = {head.rpartition(".")[0] for head in heads if "." in head and skip_head}
    extra = [
        name
        for name in state_dict
        if name not in own and (name.partition(".")[0] not in parts or is_in_modules(name, head_parents))
    ]
    state_dict = {name: tensor for name, tensor in state_dict.items() if not (skip_head and is_in_modules(name, heads))}
    expected = own.keys() - (own_head if skip_head else set())
    absent = expected - state_dict.keys()
    missing = [name for name in own if name in absent and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state_dict if name not in expected and (missing or name not in extra)]
    wrong_shape = [
        f"{name} {tuple(state_dict[name].shape)} instead of the network's {tuple(own[name].shape)}"
        for name in own
        if name in state_dict and state_dict[name].shape != own[name].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong_shape}
    if any(problems.values()):
        listed = [f"{problem}: {_format_names(names)}" for problem, names in problems.items() if names]
        if not own.keys() & state_dict.keys():
            listed.insert(
                0,
                "no tensor name in common: the weights may be for another network or another library (timm:NAME is "
                "a network of timm)",
            )
        raise ModelError(f"{weights_name} does not match this network; {'; '.join(listed)}")
    if broken := [name for name in own if name in state_dict and _has_non_finite_values(state_dict[name])]:
        raise ModelError(
            f"{weights_name} is damaged: NaN or infinity in {_format_names(broken)}; download or save it again"
        )
    if extra:
        logger.warning("%s: skipped tensors that the network does not have: %s", weights_name, _format_names(extra))
    counters = absent - set(missing)  # absent in files of torch before 0.4.1
    state_dict |= {name: torch.zeros((), dtype=torch.long) for name in counters}
    network.load_state_dict(add_module_versions(state_dict, network), strict=False, assign=True)
    return not skip_head


def add_module_versions(state_dict: StateDict, network: nn.Module) -> StateDict:
    """Return a copy of `state_dict` with the versions of the network's modules in its `_metadata`.

    `load_state_dict` reads the versions; without them, torchvision's MNASNet refuses to load. Neither safetensors nor a
    plain dictionary keeps them.
    """
    versioned = network.state_dict()
    versioned.clear()
    versioned.update(state_dict)
    return versioned


def is_in_modules(name: str, module_paths: Collection[str]) -> bool:
    """Return whether the name of a parameter or module is one of `module_paths` or inside one of them."""
    parts = name.split(".")
    return any(".".join(parts[:length]) in module_paths for length in range(1, len(parts) + 1))


def _has_non_finite_values(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.sum(dtype=torch.float32).isfinite():
        return False  # NaN and infinity carry over to the sum, which is fast only in float32, where it may overflow
    return not bool(tensor.double().isfinite().all())


def _format_names(tensor_names: list[str]) -> str:
    more = f" and {len(tensor_names) - MAX_LISTED_NAMES} more" if len(tensor_names) > MAX_LISTED_NAMES else ""
    return f"{', '.join(tensor_names[:MAX_LISTED_NAMES])}{more}"
