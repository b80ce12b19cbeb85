"""Build pretrained networks by name, freeze, split and summarize them."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__, extra="train")
