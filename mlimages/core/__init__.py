"""Shared by all packages: errors, codes, types, files, progress, parallel map, statistics."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
