"""mlimages: from a word, a folder or a list of links to a deployed image classifier."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlimages.augmentation import augment
    from mlimages.bundle import OnnxBundle
    from mlimages.errors import MlimagesError
    from mlimages.evaluation import evaluate
    from mlimages.gathering import Source, UrlList, gather, gather_async
    from mlimages.images import LabeledImage
    from mlimages.insight.compare import compare_runs
    from mlimages.insight.run_report import draw_run
    from mlimages.insight.sheet import draw_sheet
    from mlimages.labels import LabelFile, label_dir_auto
    from mlimages.learning import FineTuneConfig, fine_tune, load_run, probe_cuts, summarize_model
    from mlimages.learning.export import export_run
    from mlimages.learning.quantize import quantize
    from mlimages.predictor import Predictor
    from mlimages.records import BrokenImage, ImageProperty, ImageRef, Normalization, Prediction, Preprocessing
    from mlimages.server import make_app
    from mlimages.training import TrainingData
    from mlimages.validation import check

__version__ = "1.0.0a1"

_MODULE_OF = {
    "BrokenImage": "records",
    "FineTuneConfig": "learning",
    "ImageProperty": "records",
    "ImageRef": "records",
    "LabelFile": "labels",
    "LabeledImage": "images",
    "MlimagesError": "errors",
    "Normalization": "records",
    "OnnxBundle": "bundle",
    "Prediction": "records",
    "Predictor": "predictor",
    "Preprocessing": "records",
    "Source": "gathering",
    "TrainingData": "training",
    "UrlList": "gathering",
    "augment": "augmentation",
    "check": "validation",
    "compare_runs": "insight.compare",
    "draw_run": "insight.run_report",
    "draw_sheet": "insight.sheet",
    "evaluate": "evaluation",
    "export_run": "learning.export",
    "fine_tune": "learning",
    "gather": "gathering",
    "gather_async": "gathering",
    "label_dir_auto": "labels",
    "load_run": "learning",
    "make_app": "server",
    "probe_cuts": "learning",
    "quantize": "learning.quantize",
    "summarize_model": "learning",
}

__all__ = [
    "BrokenImage",
    "FineTuneConfig",
    "ImageProperty",
    "ImageRef",
    "LabelFile",
    "LabeledImage",
    "MlimagesError",
    "Normalization",
    "OnnxBundle",
    "Prediction",
    "Predictor",
    "Preprocessing",
    "Source",
    "TrainingData",
    "UrlList",
    "augment",
    "check",
    "compare_runs",
    "draw_run",
    "draw_sheet",
    "evaluate",
    "export_run",
    "fine_tune",
    "gather",
    "gather_async",
    "label_dir_auto",
    "load_run",
    "make_app",
    "probe_cuts",
    "quantize",
    "summarize_model",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
