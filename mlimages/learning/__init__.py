"""Networks, freezing, training and export: the only place where torch is imported."""

from __future__ import annotations

import gc
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from mlimages.errors import MissingExtraError

if TYPE_CHECKING:
    from mlimages.learning.config import FineTuneConfig
    from mlimages.learning.export import export_trained
    from mlimages.learning.features import FrozenFeatures
    from mlimages.learning.finetune import Callback, fine_tune
    from mlimages.learning.freezing import FrozenPart, freeze
    from mlimages.learning.models import Model, build_model
    from mlimages.learning.onnx_writer import TrainedNetwork
    from mlimages.learning.outcome import FineTuneResult
    from mlimages.learning.probe import probe_cuts
    from mlimages.learning.run import TrainedRun, load_run
    from mlimages.learning.summary import summarize_model, summarize_network, summarize_run

if any(importlib.util.find_spec(name) is None for name in ("safetensors", "timm", "torch", "torchvision")):
    raise MissingExtraError("training, or exporting what was trained,", "train")

_MODULE_OF = {
    "Callback": "finetune",
    "FineTuneConfig": "config",
    "FineTuneResult": "outcome",
    "FrozenFeatures": "features",
    "FrozenPart": "freezing",
    "Model": "models",
    "TrainedNetwork": "onnx_writer",
    "TrainedRun": "run",
    "build_model": "models",
    "export_trained": "export",
    "fine_tune": "finetune",
    "freeze": "freezing",
    "load_run": "run",
    "probe_cuts": "probe",
    "summarize_model": "summary",
    "summarize_network": "summary",
    "summarize_run": "summary",
}

__all__ = [
    "Callback",
    "FineTuneConfig",
    "FineTuneResult",
    "FrozenFeatures",
    "FrozenPart",
    "Model",
    "TrainedNetwork",
    "TrainedRun",
    "build_model",
    "export_trained",
    "fine_tune",
    "freeze",
    "load_run",
    "probe_cuts",
    "summarize_model",
    "summarize_network",
    "summarize_run",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    collects = gc.isenabled()
    gc.disable()  # a fifth of the time to load torch goes into looking for garbage among what it makes and keeps
    try:
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    finally:
        if collects:
            gc.enable()
