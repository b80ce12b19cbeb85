"""Encoded bytes to pixels to the network's array: the only place that decodes."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
