"""The whole workflow on handwritten digits, without a network connection."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__, extra="train")
