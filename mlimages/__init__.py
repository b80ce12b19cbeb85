"""mlimages: from a word, a folder or a list of links to a deployed image classifier."""

from lazy_loader import attach_stub

__version__ = "1.0.0"

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
