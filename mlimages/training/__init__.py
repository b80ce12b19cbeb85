"""Fine-tune: feature cache, closed-form head, training loop, checkpoints, probe."""

from mlimages.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__, extra="train")
