"""Save and load the training state and the networks of a run."""

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

from mlimages.core import (
    InputError,
    ModelError,
    Preprocessing,
    RunError,
    atomic_write,
    format_command,
    pluralize,
    require_local_path,
    summarize_error,
)
from mlimages.dataset import load_mean_image
from mlimages.networks import (
    LOWER_HEAD_PATH,
    Model,
    add_lower_layers_head,
    add_module_versions,
    build_model,
    find_lower_layers_head,
    read_weights,
    to_channels_last,
    wrap_network,
)
from mlimages.reports import RunFiles, read_settings, require_readable
from mlimages.training.config import FineTuneConfig
from mlimages.training.run import EpochMetrics

STATE_FORMAT_VERSION = 3
READABLE_STATE_VERSIONS = (2, 3)
"""Format versions of the training state that can be loaded. In version 2, which is older, no head uses lower layers."""

NamedTensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class TrainingState:
    """State of a run after an epoch, without the frozen weights, from which the run is resumed.

    Attributes:
        trained_tensors: trainable parameters and all buffers by name, after the last epoch.
        best_trained_tensors: the same tensors after the best epoch.
        optimizer_tensors: the optimizer's tensors by name, such as `0.exp_avg` for the first parameter.
        history: metrics of the epochs so far.
        best_epoch: epoch with the highest validation score or, at equal scores, the lowest loss; 0: before training.
        best_score_neg_loss: validation accuracy (or mean average precision) and negative loss of the best epoch.
        probe_accuracy: validation accuracy of the linear probe (ridge regression) that initializes the head, or None.
        probe_map: mean average precision of the linear probe (see `probe_accuracy`) in a multi-label run, else None.
        frozen_digest: SHA-256 of the frozen weights; empty if nothing is frozen.
        lower_layers_share: weight of the lower layers' features relative to the last layer's in the ridge regression,
            0..1 (see LOWER_LAYERS_SHARES); 0: only the last layer's features are used.
        prediction_set_thresholds: thresholds of prediction sets by coverage such as "0.9", from leave-one-out
            predictions; empty in multi-label runs, in runs without ridge regression, and with bfloat16 features.
        seconds: duration of the run so far, measured from the reading of its images, excluding interruptions.
    """

    trained_tensors: NamedTensors = field(default_factory=dict)
    best_trained_tensors: NamedTensors = field(default_factory=dict)
    optimizer_tensors: NamedTensors = field(default_factory=dict)
    history: tuple[EpochMetrics, ...] = ()
    best_epoch: int = 0
    best_score_neg_loss: tuple[float, float] = (-1.0, 0.0)
    probe_accuracy: float | None = None
    probe_map: float | None = None
    frozen_digest: str = ""
    lower_layers_share: float = 0.0
    prediction_set_thresholds: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def save_state(state: TrainingState, files: RunFiles) -> None:
    """Write the training state to `state.safetensors`, and flush it to disk."""
    metadata = {
        "version": STATE_FORMAT_VERSION,
        "history": [asdict(figures) for figures in state.history],
        "best_epoch": state.best_epoch,
        "best_score": state.best_score_neg_loss,
        "probe_accuracy": state.probe_accuracy,
        "probe_map": state.probe_map,
        "frozen_digest": state.frozen_digest,
        "depths_share": state.lower_layers_share,
        "left_out": dict(state.prediction_set_thresholds),
        "seconds": state.seconds,
    }
    tensors = {f"model.{name}": tensor for name, tensor in state.trained_tensors.items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in state.optimizer_tensors.items()}
    if state.best_epoch < len(state.history):
        tensors |= {f"best.{name}": tensor for name, tensor in state.best_trained_tensors.items()}
    with atomic_write(files.state) as part:
        save_file(tensors, part, metadata={"mlimages": json.dumps(metadata)})
        with part.open("rb") as written:
            os.fsync(written.fileno())


def load_state(files: RunFiles) -> TrainingState | None:
    """Load the training state of a run; return None if no epoch is complete.

    Raises:
        RunError: the file cannot be read, is damaged, or has an unknown version.
    """
    require_readable(files.state)
    if not files.state.exists():
        return None
    try:
        with safe_open(files.state, framework="pt") as file:
            metadata = json.loads(file.metadata()["mlimages"])
            if metadata["version"] not in READABLE_STATE_VERSIONS:
                known = " and ".join(map(str, READABLE_STATE_VERSIONS))
                raise ValueError(f"format version {metadata['version']}; this version of mlimages supports {known}")
            parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "best": {}}
            for key in file.keys():  # noqa: SIM118  # safe_open is no mapping
                part, _, name = key.partition(".")
                parts[part][name] = file.get_tensor(key)
        history = tuple(EpochMetrics(**figures) for figures in metadata["history"])
        score, negative_loss = metadata["best_score"]
        return TrainingState(
            trained_tensors=parts["model"],
            best_trained_tensors=parts["best"] or parts["model"],
            optimizer_tensors=parts["optimizer"],
            history=history,
            best_epoch=metadata["best_epoch"],
            best_score_neg_loss=(score, negative_loss),
            probe_accuracy=metadata["probe_accuracy"],
            probe_map=metadata.get("probe_map"),
            frozen_digest=metadata["frozen_digest"],
            lower_layers_share=metadata.get("depths_share", 0.0),
            prediction_set_thresholds=metadata.get("left_out", {}),
            seconds=metadata["seconds"],
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{files.state} cannot be read ({summarize_error(error)}): delete it to restart this run from the first "
            "epoch"
        ) from error


def copy_trained_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return copies of the trainable parameters and of all buffers (running statistics of batch norm)."""
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return {name: _copy_to_cpu(tensor) for name, tensor in network.state_dict().items() if name not in frozen}


def copy_optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return copies of the optimizer's tensors by name, such as `0.exp_avg` for the first parameter."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": _copy_to_cpu(torch.as_tensor(value))
        for index, values in state.items()
        for key, value in values.items()
        if value is not None
    }


def _copy_to_cpu(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU, as required by safetensors."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def load_trained_tensors(network: nn.Module, tensors: NamedTensors) -> None:
    """Copy the tensors into the network's parameters and buffers of the same names.

    Raises:
        ModelError: the network lacks one of the tensors, or it has another shape.
    """
    own = {name: tensor for name, tensor in network.state_dict().items() if name in tensors}
    require_same_tensor_shapes(own, tensors)
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def require_same_tensor_shapes(network_tensors: NamedTensors, trained_tensors: NamedTensors) -> None:
    """Check that a network has the names and shapes of the tensors that were trained; the values may differ.

    Raises:
        ModelError: a name or shape differs.
    """
    own, trained = ({name: x.shape for name, x in tensors.items()} for tensors in (network_tensors, trained_tensors))
    if different := [name for name in {**trained, **own} if own.get(name) != trained.get(name)]:
        raise ModelError(
            f"the layers of this network differ from those that were trained (such as {different[0]}): use the same "
            "network, and the version of its library that was used for training"
        )


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: NamedTensors) -> None:
    """Restore the optimizer's state from the tensors of `copy_optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = to_channels_last(tensor)
    if state:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoints(network: nn.Module, state: TrainingState, files: RunFiles) -> None:
    """Write `last.safetensors` and `best.safetensors`: the network after these epochs, without a LowerLayersHead."""
    for path, trained in ((files.last, state.trained_tensors), (files.best, state.best_trained_tensors)):
        with atomic_write(path) as part:  # safetensors writes several entries of metadata in any order
            save_file(_make_checkpoint_tensors(network, trained), part, metadata={"format": "pt"})


def _make_checkpoint_tensors(network: nn.Module, trained_tensors: NamedTensors) -> dict[str, Tensor]:
    """Return the state dict with `trained_tensors`, without a LowerLayersHead; tied weights become separate copies."""
    left_out = f"{LOWER_HEAD_PATH}.weight" if find_lower_layers_head(network) else ""
    whole, addresses = dict[str, Tensor](), set[int]()
    for name, tensor in network.state_dict().items():
        if name == left_out:
            continue
        plain = trained_tensors[name] if name in trained_tensors else tensor.detach().cpu().contiguous()
        whole[name] = plain.clone() if plain.data_ptr() in addresses else plain  # safetensors rejects tied weights
        addresses.add(plain.data_ptr())
    return whole


@dataclass(frozen=True, slots=True, eq=False)
class TrainedRun:
    """A trained network loaded from its run folder.

    Attributes:
        network: maps normalized float32 `(N, C, H, W)` to logits `(N, classes)`; in eval mode.
        preprocessing: preprocessing of the images.
        mean_image: float32 `(C, H, W)` in 0..255; None if the preprocessing has none.
        class_names: names of the classes, in the order of the logits.
        config: settings of the run.
        val: label file of the validation set.
        weights: file from which the trained weights were read.
        results: the results, as printed by `finetune --json`; empty if the run is not finished.
        multi_label: whether an image may have any number of labels.
    """

    network: nn.Module
    preprocessing: Preprocessing
    mean_image: NDArray[np.float32] | None
    class_names: tuple[str, ...]
    config: FineTuneConfig
    val: Path
    weights: Path
    results: Mapping[str, Any] = field(default_factory=dict)
    multi_label: bool = False

    def __repr__(self) -> str:
        classes = pluralize(len(self.class_names), "class")
        return f"<TrainedRun: {self.config.model}, {classes}, weights {str(self.weights)!r}>"


def load_run(run: str | os.PathLike[str], checkpoint: str = "best", *, network: nn.Module | None = None) -> TrainedRun:
    """Load the trained network of a run with its preprocessing.

    The weights are read from `best.safetensors` or `last.safetensors`. If the run was killed before it wrote or updated
    this file, or if the network has a LowerLayersHead, the trained weights are read from `state.safetensors`. The
    frozen weights are then those of the file or, if it does not exist, of the pretrained network.

    Args:
        run: run folder.
        checkpoint: `best` (the epoch with the highest validation score) or `last`.
        network: the custom network of the run; its weights are replaced.

    Raises:
        InputError: `checkpoint` is neither `best` nor `last`.
        ModelError: the network cannot be built, differs from the one that was trained, or its file is damaged.
        RunError: `run` is not a run folder, has no checkpoint yet, or one of its files cannot be read.

    >>> run = load_run("runs/first")
    >>> run.network(torch.zeros(1, *run.preprocessing.image.shape)).shape
    torch.Size([1, 2])
    """
    if checkpoint not in ("best", "last"):
        raise InputError(f"checkpoint is {checkpoint!r}: it must be one of best, last")
    files = RunFiles(require_local_path(run))
    settings = read_settings(files)
    config = FineTuneConfig.from_dict(settings["config"])
    preprocessing = Preprocessing.from_dict(settings["preprocessing"])
    image, names = preprocessing.image, files.read_class_names()
    whole, state = files.folder / f"{checkpoint}.safetensors", load_state(files)
    require_readable(whole, files.result)
    if state is None and not whole.exists():
        raise RunError(f"{run} has no {whole.name} yet: resume it with {format_command('finetune', '--resume', run)}")
    if network is None:
        model = build_model(
            config.model, num_classes=len(names), weights=whole if whole.exists() else config.weights,
            size=(image.width, image.height), gray=image.gray_scale, seed=config.seed,
        )  # fmt: skip
    else:
        model = wrap_network(network.cpu(), preprocessing, num_classes=len(names), pretrained=True)
        if whole.exists():
            tensors = read_weights(whole)
            require_same_tensor_shapes(network.state_dict(), tensors)
            network.load_state_dict(add_module_versions(tensors, network))
    network = (_add_lower_head_or_raise(model) if state is not None and state.lower_layers_share else model).network
    weights = whole
    if state is not None:
        trained = state.best_trained_tensors if checkpoint == "best" else state.trained_tensors
        if state.lower_layers_share or not (whole.exists() and _has_tensor_values(whole, trained)):
            load_trained_tensors(network, trained)
            weights = files.state
    return make_trained_run(files, network, weights=weights)


def make_trained_run(files: RunFiles, network: nn.Module, *, weights: Path) -> TrainedRun:
    """Create a TrainedRun from a trained network in memory; `weights` is the file that contains its weights."""
    settings = read_settings(files)
    preprocessing = Preprocessing.from_dict(settings["preprocessing"])
    return TrainedRun(
        network=network.cpu().eval(),
        preprocessing=preprocessing,
        mean_image=load_mean_image(files.mean_image, preprocessing.image)
        if preprocessing.normalization.mean_image
        else None,
        class_names=files.read_class_names(),
        config=FineTuneConfig.from_dict(settings["config"]),
        val=files.val,
        weights=weights,
        results=json.loads(files.result.read_text(encoding="utf-8")) if files.result.exists() else {},
        multi_label=settings.get("multi_label", False),
    )


def _add_lower_head_or_raise(model: Model) -> Model:
    """Return the model with a LowerLayersHead; raise RunError if the installed library lacks its input layers."""
    if (extended := add_lower_layers_head(model)) is None:
        raise RunError(
            f"the layers of {model.name} in {model.library} differ from those that were trained: "
            "install the version that was used for training, or train again"
        )
    return extended


def _has_tensor_values(path: Path, tensors: NamedTensors) -> bool:
    """Return whether the checkpoint file contains each of the tensors with the same values."""
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        return all(name in names and torch.equal(file.get_tensor(name), tensors[name]) for name in tensors)
