"""The state from which a run goes on exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mlimages.core import RunError, replacing
from mlimages.networks import channels_last
from mlimages.training.run import VERSION, EpochFigures, RunFiles


@dataclass(frozen=True, slots=True)
class Progressed:
    """Where a run stands after an epoch.

    Attributes:
        tensors: `model.NAME` of what trains, `optimizer.N.KEY`.
        history: the epochs so far.
        best_epoch: the one kept as best; 0 for the network before the first epoch.
        best_score: its validation accuracy and negative loss.
        probe_accuracy: the closed-form head's on the validation pictures, where there was one.
        seconds: spent on training so far.
    """

    tensors: Mapping[str, Tensor]
    history: tuple[EpochFigures, ...] = ()
    best_epoch: int = 0
    best_score: tuple[float, float] = (-1.0, 0.0)
    probe_accuracy: float | None = None
    seconds: float = 0.0


def save_progress(files: RunFiles, progressed: Progressed) -> None:
    """Write what resuming needs, whole or not at all."""
    note = {
        "version": VERSION,
        "history": [asdict(figures) for figures in progressed.history],
        "best_epoch": progressed.best_epoch,
        "best_score": progressed.best_score,
        "probe_accuracy": progressed.probe_accuracy,
        "seconds": progressed.seconds,
    }
    save_tensors(progressed.tensors, files.state, note=json.dumps(note))


def save_tensors(tensors: Mapping[str, Tensor], path: Path, *, note: str = "") -> None:
    """Write tensors, whole or not at all, with a note in the file's metadata."""
    with replacing(path) as part:
        save_file(dict(tensors), part, metadata={"mlimages": note})


def load_progress(files: RunFiles) -> Progressed | None:
    """Where the run stands; None before its first epoch has ended.

    Raises:
        RunError: the file is damaged.
    """
    if not files.state.exists():
        return None
    try:
        with safe_open(files.state, framework="pt") as file:
            note = json.loads(file.metadata()["mlimages"])
        tensors = load_file(files.state)
        history = tuple(EpochFigures(**figures) for figures in note["history"])
        accuracy, loss = note["best_score"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{files.state} is damaged ({error}): remove it to start this run anew") from error
    return Progressed(
        tensors, history, note["best_epoch"], (accuracy, loss), note["probe_accuracy"], seconds=note["seconds"]
    )


def trained_tensors(network: nn.Module) -> dict[str, Tensor]:
    """What training changes: unfrozen parameters, and all buffers (batch norm's statistics)."""
    tensors = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    return {f"model.{name}": _plain(tensor) for name, tensor in (*tensors, *network.named_buffers())}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Momenta and the like, by the parameter's place."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{place}.{key}": _plain(torch.as_tensor(value))
        for place, values in state.items()
        for key, value in values.items()
        if value is not None
    }


def _plain(tensor: Tensor) -> Tensor:
    """A copy as files take it."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def restore(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors `model.NAME` into the network."""
    own = network.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.startswith("model."):
                own[name.removeprefix("model.")].copy_(tensor)


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors `optimizer.N.KEY` into the optimiser."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, place, key = name.split(".")
            state.setdefault(int(place), {})[key] = channels_last(tensor)
    if state:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
