"""Label files: the images of a dataset and their classes."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
