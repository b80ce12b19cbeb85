"""Label files as arrays: batches, mean images and augmented copies."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
