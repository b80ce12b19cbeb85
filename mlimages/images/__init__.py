"""Encoded bytes to pixels to the network's array: the only place that decodes."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
