"""A label file as arrays: mean image, batches, augmentation, and arrays back to images."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
