"""HTML pages, plots and contact sheets; reading and comparing run folders."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
