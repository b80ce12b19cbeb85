"""A batch shared among processes, computed as if one held it whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mlimages.learning import ranks


class OneBatch(TorchFunctionMode):
    """Within it dropout draws for all pictures of a batch, and batch norm takes its statistics over all of them.

    Every process goes through the same layers; one without a picture of the batch feeds a stand-in, which counts for
    nothing. `torch.nn.SyncBatchNorm` does the same for batch norm, on GPUs alone.

    Args:
        rows: which of the batch's pictures are this process's.
        size: how many pictures the batch has.
    """

    def __init__(self, rows: Sequence[int], size: int) -> None:
        super().__init__()
        self._rows, self._size = list(rows), size

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is functional.batch_norm and options.get("training"):
            return self._batch_norm(*args, **options)
        if func is functional.dropout and options.get("training") and 0 < options["p"] < 1:
            return args[0] * self._drawn(args[0], 1 - options["p"]).div_(1 - options["p"])
        if func is Tensor.bernoulli_ and len(args[0]) == max(1, len(self._rows)):  # a residual branch dropped
            return args[0].copy_(self._drawn(*args, **options))
        return func(*args, **options)

    def _drawn(self, like: Tensor, p: float) -> Tensor:
        """Ones and zeros drawn for the whole batch, in the order of memory that chance follows: this process's rows."""
        last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if last else torch.contiguous_format
        shape = (self._size, *like.shape[1:])
        drawn = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=order).bernoulli_(p)
        return drawn[self._rows] if self._rows else torch.ones_like(like)

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        own, axes = wide[: len(self._rows)], [0, *range(2, x.ndim)]
        numbers = own.new_tensor([own.numel() / x.shape[1]])
        sums = _Sum.apply(torch.cat([own.sum(axes), numbers]))  # (C + 1,)
        number = sums[-1].clamp(min=2)
        mean = sums[:-1] / number  # (C,)
        shape = (1, -1, *[1] * (x.ndim - 2))
        var = _Sum.apply((own - mean.view(shape)).square().sum(axes)) / number  # (C,)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                share = momentum if sums[-1] else 0.0  # all of them turned bad
                running_mean.lerp_(mean, share)
                running_var.lerp_(var * number / (number - 1), share)
        normal: Tensor = (wide - mean.view(shape)) * (var + eps).rsqrt().view(shape)
        if weight is not None and bias is not None:
            normal = normal * weight.view(shape) + bias.view(shape)
        return normal.to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes; each one's gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        ranks.add_up([total])
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        ranks.add_up([total])
        return total
