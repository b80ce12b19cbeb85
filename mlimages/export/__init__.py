"""A network and its preprocessing as one ONNX file, checked for parity; quantization."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
