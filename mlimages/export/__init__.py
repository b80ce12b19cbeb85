"""Export a network and its preprocessing to one ONNX file with a parity check; quantization."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__, extra="train")
