"""Download images from lists and search interfaces into folders, with a manifest."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
