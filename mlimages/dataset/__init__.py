"""A label file as arrays: mean image, batches, augmentation, and arrays back to images."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
