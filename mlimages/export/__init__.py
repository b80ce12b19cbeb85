"""A network and its preprocessing as one ONNX file, checked for parity; quantization."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__, extra="train")
