"""HTML reports, plots, contact sheets, model cards and summaries; reading and comparing run folders."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__, extra="report")
