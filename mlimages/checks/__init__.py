"""One pass over label files: corrupt, duplicate, leaked and unusual images."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
