"""The state from which a run is resumed exactly, the whole networks beside it, and a run read back from either."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mlimages.core import Preprocessing, RunError, replacing
from mlimages.dataset import load_mean_image
from mlimages.networks import build_model, channels_last
from mlimages.reports import RunFiles, read_settings
from mlimages.training.config import FineTuneConfig
from mlimages.training.run import EpochFigures

STATE_VERSION = 2

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class TrainingState:
    """All that a run needs to go on after an epoch, beside the network's frozen part.

    Attributes:
        trained: what training changes, by its name in the network, after the last epoch.
        best: the same after the best epoch.
        optimizer: the optimizer's tensors, `N.KEY` for the N-th parameter.
        history: the epochs so far.
        best_epoch: the epoch with the best validation accuracy; 0 for the network before the first epoch.
        best_score: its validation accuracy and negative loss.
        probe_accuracy: validation accuracy of the closed-form head, where there was one.
        frozen_digest: SHA-256 of the frozen part; empty where nothing is frozen.
        seconds: spent on training so far.
    """

    trained: Tensors = field(default_factory=dict)
    best: Tensors = field(default_factory=dict)
    optimizer: Tensors = field(default_factory=dict)
    history: tuple[EpochFigures, ...] = ()
    best_epoch: int = 0
    best_score: tuple[float, float] = (-1.0, 0.0)
    probe_accuracy: float | None = None
    frozen_digest: str = ""
    seconds: float = 0.0


def save_state(state: TrainingState, files: RunFiles) -> None:
    """Write `state.safetensors`, whole or not at all, and to the disk: it decides how far the run has come."""
    note = {
        "version": STATE_VERSION,
        "history": [asdict(figures) for figures in state.history],
        "best_epoch": state.best_epoch,
        "best_score": state.best_score,
        "probe_accuracy": state.probe_accuracy,
        "frozen_digest": state.frozen_digest,
        "seconds": state.seconds,
    }
    tensors = {f"model.{name}": tensor for name, tensor in state.trained.items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in state.optimizer.items()}
    if state.best_epoch < len(state.history):
        tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    with replacing(files.state) as part:
        save_file(tensors, part, metadata={"mlimages": json.dumps(note)})
        with part.open("rb") as written:
            os.fsync(written.fileno())


def load_state(files: RunFiles) -> TrainingState | None:
    """Where the run stands; None before its first epoch has ended.

    Raises:
        RunError: the file is damaged, or of an earlier version.
    """
    if not files.state.exists():
        return None
    try:
        with safe_open(files.state, framework="pt") as file:
            note = json.loads(file.metadata()["mlimages"])
            if note["version"] != STATE_VERSION:
                raise ValueError(f"it is of version {note['version']}, this mlimages reads {STATE_VERSION}")
            parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "best": {}}
            for key in file.keys():  # noqa: SIM118  # no mapping
                part, _, name = key.partition(".")
                parts[part][name] = file.get_tensor(key)
        history = tuple(EpochFigures(**figures) for figures in note["history"])
        accuracy, loss = note["best_score"]
        return TrainingState(
            trained=parts["model"],
            best=parts["best"] or parts["model"],
            optimizer=parts["optimizer"],
            history=history,
            best_epoch=note["best_epoch"],
            best_score=(accuracy, loss),
            probe_accuracy=note["probe_accuracy"],
            frozen_digest=note["frozen_digest"],
            seconds=note["seconds"],
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{files.state} cannot be read ({error}): remove it to start this run again") from error


def trained_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Copies of what training changes: unfrozen parameters, and all buffers (statistics of batch norm)."""
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return {name: _copy(tensor) for name, tensor in network.state_dict().items() if name not in frozen}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of the optimizer's tensors, `N.KEY` for the N-th parameter."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": _copy(torch.as_tensor(value))
        for index, values in state.items()
        for key, value in values.items()
        if value is not None
    }


def _copy(tensor: Tensor) -> Tensor:
    """As files take it: on the CPU, its numbers in the order of its shape, its memory its own."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def restore(network: nn.Module, tensors: Tensors) -> None:
    """Put tensors into the network by name."""
    own = network.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Put the tensors `N.KEY` into the optimizer."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = channels_last(tensor)
    if state:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_networks(network: nn.Module, state: TrainingState, files: RunFiles) -> None:
    """Write `last.safetensors` and `best.safetensors`: whole networks, under the library's own names."""
    for path, trained, epoch in (
        (files.last, state.trained, len(state.history)),
        (files.best, state.best, state.best_epoch),
    ):
        with replacing(path) as part:
            save_file(_whole(network, trained), part, metadata={"format": "pt", "epoch": str(epoch)})


def _whole(network: nn.Module, trained: Tensors) -> dict[str, Tensor]:
    """The network's tensors with others in place of the trained ones, none in the memory of another."""
    whole: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, tensor in network.state_dict().items():
        plain = trained[name] if name in trained else tensor.detach().cpu().contiguous()
        whole[name] = plain.clone() if plain.data_ptr() in addresses else plain  # safetensors refuses tied weights
        addresses.add(plain.data_ptr())
    return whole


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A run read back.

    Attributes:
        network: with its checkpoint's weights, in eval mode; normalised pixels to logits.
        preprocessing: the only one to use with it.
        mean_image: float32 `(C, H, W)` in 0..255, where the preprocessing names one.
        class_names: in the order of the logits.
        config: the settings.
        val: label file of the validation pictures.
        weights: the file that the trained weights were read from.
        figures: the closing figures, as `finetune --json` prints them; empty until the run has ended.
    """

    network: nn.Module
    preprocessing: Preprocessing
    mean_image: NDArray[np.float32] | None
    class_names: tuple[str, ...]
    config: FineTuneConfig
    val: Path
    weights: Path
    figures: Mapping[str, Any] = field(default_factory=dict)


def load_run(run: Path, checkpoint: str = "best") -> TrainedRun:
    """Read a run folder, with the network as it was at a checkpoint (`best` or `last`).

    Of a run that was killed the whole network is older than the resume state, or not there: then the trained tensors
    come from the state, and the frozen ones from the older file or from the weights that the run began with.

    Raises:
        RunError: it is not a run folder, or its files do not belong together.
    """
    files = RunFiles(Path(run))
    settings = read_settings(files)
    config, preprocessing = (
        FineTuneConfig.from_dict(settings["config"]),
        Preprocessing.from_dict(settings["preprocessing"]),
    )
    names = tuple(files.classes.read_text(encoding="utf-8").splitlines())
    whole, state = files.folder / f"{checkpoint}.safetensors", load_state(files)
    if state is None and not whole.exists():
        raise RunError(f"{run} has no {whole.name} yet: go on with `mlimages finetune --resume {run}`")
    image = preprocessing.image
    model = build_model(
        config.model,
        classes=len(names),
        weights=whole if whole.exists() else config.weights,
        size=image.width,
        gray=image.gray_scale,
        seed=config.seed,
    )
    weights = whole
    if state is not None and _epoch_of(whole) != (state.best_epoch if checkpoint == "best" else len(state.history)):
        restore(model.network, state.best if checkpoint == "best" else state.trained)
        weights = files.state
    mean = load_mean_image(files.mean_image, preprocessing.image) if preprocessing.normalization.mean_image else None
    figures = json.loads(files.result.read_text(encoding="utf-8")) if files.result.exists() else {}
    return TrainedRun(model.network, preprocessing, mean, names, config, files.val, weights, figures)


def _epoch_of(path: Path) -> int | None:
    """The epoch of a whole network; None where there is none."""
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        return int((file.metadata() or {}).get("epoch", -1))
