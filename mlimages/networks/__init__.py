"""Build a pretrained network by name, freeze its lower layers, cut and summarize it."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
