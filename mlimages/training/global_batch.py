"""A batch shared among processes, computed as if one held it whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mlimages.training import distributed


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
        with torch.no_grad():
            own, axes = _wide(x)[: len(self._rows)], _all_but_channels(x)
            sums = _sum(torch.cat([own.sum(axes), own.new_tensor([own.numel() / x.shape[1]])]))  # (C + 1,)
            number = sums[-1].clamp(min=2)
            mean = sums[:-1] / number  # (C,)
            var = _sum((own - _to_channels(mean, x)).square_().sum(axes)) / number  # (C,)
            if running_mean is not None and running_var is not None:
                share = momentum if sums[-1] else 0.0  # all of them turned bad
                running_mean.lerp_(mean, share)
                running_var.lerp_(var * number / (number - 1), share)
        scale = (var + eps).rsqrt()
        weight = torch.ones_like(mean) if weight is None else weight
        bias = torch.zeros_like(mean) if bias is None else bias
        normal: Tensor = _Normal.apply(x, weight, bias, mean, scale, number, len(self._rows))
        return normal


class _Normal(torch.autograd.Function):
    """`(x - mean) * scale * weight + bias`, with the mean and scale of all processes' pictures.

    Backward: Ioffe & Szegedy 2015, section 3. Operation by operation it took twice the time.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, number: Tensor, own: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, scale, number)
        ctx.own = own
        factor = scale * weight  # (C,)
        shift = bias - mean * factor  # (C,)
        return torch.addcmul(_to_channels(shift, x), _wide(x), _to_channels(factor, x)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, number = ctx.saved_tensors
        wide, centred, axes = _wide(gradient), _wide(x) - _to_channels(mean, x), _all_but_channels(x)
        own = torch.stack([wide.sum(axes), (wide * centred).sum(axes)])  # (2, C)
        first, second = _sum(own.clone()) / number  # (C,) each
        onward = centred.mul_(_to_channels(-second * scale.square(), x)).add_(wide).sub_(_to_channels(first, x))
        onward.mul_(_to_channels(scale * weight, x))[ctx.own :] = 0  # the stand-in had no part in mean and scale
        return onward.to(x.dtype), own[1] * scale, own[0], None, None, None, None


def _sum(own: Tensor) -> Tensor:
    """The sum over all processes, in the place of this one's."""
    distributed.add_up([own])
    return own


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _to_channels(values: Tensor, x: Tensor) -> Tensor:
    """`(C,)` in a shape that meets the channels of `x`."""
    return values.view(1, -1, *[1] * (x.ndim - 2))
