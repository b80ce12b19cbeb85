"""What every package uses: errors, codes, types, files, progress, parallel map, statistics."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
