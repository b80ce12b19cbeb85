"""Layers whose output depends on the whole batch, when several processes share it: dropout and batch norm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from mlimages.core import InputError
from mlimages.training import distributed

logger = logging.getLogger(__name__)


class GlobalDropout(TorchFunctionMode):
    """Draws dropout masks for the whole batch and uses this process's rows of them.

    Within it, dropout and stochastic depth drop the same values of an image in any number of processes.

    Args:
        rows: positions in the batch of this process's images.
        size: number of images in the batch.
    """

    def __init__(self, rows: Sequence[int], size: int) -> None:
        super().__init__()
        self._rows, self._size = list(rows), size

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is functional.dropout and options.get("training") and 0 < options["p"] < 1:
            return args[0] * self._mask(args[0], 1 - options["p"]).div_(1 - options["p"])
        if func is Tensor.bernoulli_ and len(args[0]) == max(1, len(self._rows)):  # stochastic depth
            return args[0].copy_(self._mask(*args, **options))
        return func(*args, **options)

    def _mask(self, like: Tensor, p: float) -> Tensor:
        """Zeros and, with probability `p`, ones, in the shape of `like`; torch draws them in the order of memory."""
        last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if last else torch.contiguous_format
        shape = (self._size, *like.shape[1:])
        mask = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=order).bernoulli_(p)
        return mask[self._rows] if self._rows else torch.ones_like(like)


def sync_batch_norm(network: nn.Module, device: torch.device, *, batch_size: int) -> None:
    """Prepare the batch norms that train for several processes: on GPUs they become `SyncBatchNorm`.

    torch has that for GPUs only: on CPUs each process normalizes with the statistics of its own images, and the running
    statistics kept are those of the main process.

    Args:
        network: changed in index, after `freeze`.
        batch_size: images per step, of all processes together.

    Raises:
        InputError: a process would have fewer than two images per step to take statistics of.
    """
    network.train()
    paths = [path for path, module in network.named_modules() if isinstance(module, _BatchNorm) and module.training]
    network.eval()
    if distributed.world_size() == 1 or not paths:
        return
    if device.type == "cuda":
        from timm.layers.norm_act import convert_sync_batchnorm  # torch's drops the activation of timm's BatchNormAct2d

        for path in paths:
            network.set_submodule(path, convert_sync_batchnorm(network.get_submodule(path)))
    elif batch_size < 2 * distributed.world_size():
        raise InputError(
            f"batch norm needs two images per process: use --batch-size {2 * distributed.world_size()} or more, "
            "fewer processes, or pretrained weights"
        )
    else:
        logger.info(
            "batch norm: each process normalizes with the statistics of its own images, about %d per step; "
            "the weights will differ from those of one process (SyncBatchNorm needs GPUs)",
            batch_size // distributed.world_size(),
        )


def set_batch_norm_mode(network: nn.Module, *, images: int) -> None:
    """Let batch norm use its running statistics for a step in which this process has fewer than two images.

    Frozen batch norms and `SyncBatchNorm` stay as they are.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            module.train(images > 1)
