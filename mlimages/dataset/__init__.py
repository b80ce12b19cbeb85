"""Training batches, mean images and augmented copies of the images of a label file."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
