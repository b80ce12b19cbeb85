"""Find corrupt, duplicate and unusual images in label files, and leaks: images of one file that are also in another."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
