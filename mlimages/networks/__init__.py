"""Build a pretrained network by name, freeze its lower layers, cut and summarize it."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__, extra="train")
