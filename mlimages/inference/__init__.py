"""Predictions, evaluation and calibration with ONNX Runtime; no torch."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
