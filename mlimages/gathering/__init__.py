"""Download images from lists and search APIs into folders, with a manifest."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
