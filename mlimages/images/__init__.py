"""Decode image files to pixels, and convert pixels to the network's input; no other package decodes images."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
