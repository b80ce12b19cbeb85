"""Distributed training: collective operations, dropout and batch norm; everything also works in a single process."""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from mlimages.core import InputError, PeerExitedError, RunError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

CONNECT_TIMEOUT = timedelta(minutes=10)
"""Maximum time for all processes to start and connect."""

PEER_TIMEOUT = timedelta(hours=2)
"""Maximum time to wait for another process, for example while the main process alone splits a large dataset."""


def init_process_group(device: torch.device) -> None:
    """Initialize the process group if RANK is set and WORLD_SIZE is not 1: gloo on CPUs, nccl on GPUs.

    torchrun and PyTorchJob set these variables, MASTER_ADDR and MASTER_PORT; with srun and mpirun the user sets them.
    The group is kept until the process ends: a second group at the same address would read outdated keys of the first
    one from the store.

    Raises:
        InputError: a variable is missing or not a whole number, there are fewer GPUs than processes on this machine, or
            the device does not support several processes.
        RunError: the other processes cannot be reached.
    """
    if dist.is_initialized() or not _is_distributed_launch():
        return
    if device.type == "mps":
        raise InputError("distributed training is not supported on mps: use --device cpu")
    if device.type == "cuda":
        torch.cuda.set_device(_choose_cuda_device())
    try:
        store, own_rank, size = next(rendezvous("env://", timeout=CONNECT_TIMEOUT))
        store.set_timeout(PEER_TIMEOUT)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=own_rank, world_size=size, timeout=PEER_TIMEOUT)
        barrier()  # if one exited while another was connecting to it, that one would wait until `PEER_TIMEOUT`
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RunError(
            f"cannot connect to the other training processes at {address}: {_extract_first_sentence(error)}"
        ) from error
    atexit.register(dist.destroy_process_group)


def _is_distributed_launch() -> bool:
    """Return whether the environment variables of a launch with several processes are set.

    Raises:
        InputError: only some of them are set, or one is not a whole number.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys() or os.environ["WORLD_SIZE"] == "1":
        return False
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(
            f"RANK and WORLD_SIZE are set, but not {' and '.join(missing)}: set MASTER_ADDR to the host and "
            "MASTER_PORT to a free port of the process with rank 0, or unset RANK and WORLD_SIZE to train in one "
            "process"
        )
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK"):
        if not (value := os.environ.get(name, "0")).isdecimal():
            raise InputError(f"the environment variable {name} is {value!r}: it must be a whole number")
    return True


def _choose_cuda_device() -> int:
    """Return the index of this process's GPU."""
    count = torch.cuda.device_count()
    index = int(os.environ.get("LOCAL_RANK", int(os.environ["RANK"]) % count))
    if index >= count:
        raise InputError(f"more training processes than GPUs ({count}): use --nproc-per-node {count}, or --device cpu")
    return index


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this process, 0 to `world_size() - 1`."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    """Return whether this process writes files and shows progress."""
    return rank() == 0


def local_shard(items: Sequence[Item]) -> Sequence[Item]:
    """Return this process's items, `items[rank::world_size]`; there may be none.

    >>> local_shard(["a", "b", "c"])  # in a single process
    ['a', 'b', 'c']
    """
    return items[rank() :: world_size()]


def all_gather(value: Any) -> list[Any]:
    """Return the values of all processes, by rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Return the value of the main process."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Copy the tensors of the main process to all processes."""
    if world_size() > 1:
        for tensor in tensors:
            values = tensor.detach().contiguous()
            dist.broadcast(values, src=0)
            tensor.detach().copy_(values)


def all_reduce(tensor: Tensor) -> Tensor:
    """Replace the tensor with its sum over all processes, and return it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def barrier() -> None:
    """Wait for all processes."""
    all_gather(None)


def gather_rows(indices: Sequence[int], rows: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Gather rows from all processes in the order of the dataset.

    Args:
        indices: index of each row in the dataset.
        rows: tensors `(N, ...)`, one row per index; N may be 0.

    Returns:
        The indices of all processes, int64 `(M,)`, in ascending order, and the tensors `(M, ...)` in that order, on the
        CPU.

    >>> indices, rows = gather_rows([2, 0], {"logits": torch.tensor([[2.0], [0.0]])})
    >>> indices.tolist(), rows["logits"].tolist()
    ([0, 2], [[0.0], [2.0]])
    """
    parts = all_gather((list(indices), {name: tensor.cpu() for name, tensor in rows.items()}))
    joined = torch.tensor([index for part, _ in parts for index in part], dtype=torch.long)  # (M,)
    if len(parts) == 1 and bool((joined.diff() > 0).all()):
        return joined, parts[0][1]  # without two copies of all rows
    order = joined.argsort()
    return joined[order], {name: torch.cat([part[name] for _, part in parts])[order] for name in rows}


def require_same_on_ranks(value_name: str, value: object) -> None:
    """Check that all processes have the same value.

    Args:
        value_name: name of the value in the message, in the plural.
        value: value of this process; compared by its `repr`.

    Raises:
        RunError: the values differ.
    """
    digest = hashlib.sha256(repr(value).encode()).hexdigest()
    if len(set(all_gather(digest))) > 1:
        raise RunError(
            f"the {value_name} differ between the training processes: use a file system that all machines share"
        )


@contextmanager
def map_peer_exit_errors() -> Iterator[None]:
    """Context manager that raises PeerExitedError instead of the torch errors caused by the exit of another process.

    Raises:
        PeerExitedError: another process of the group exited, or did not respond within `PEER_TIMEOUT`.
    """
    try:
        yield
    except RuntimeError as error:  # gloo has no error class of its own
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise PeerExitedError(f"another training process exited ({_extract_first_sentence(error)})") from error
        raise


def _extract_first_sentence(error: Exception) -> str:
    """Return the first sentence of a torch error, without the source location at its start."""
    return re.sub(r"^\[[^]]*\] ", "", str(error)).partition("\n")[0].partition(". ")[0]


class GlobalBatchDropout(TorchFunctionMode):
    """Context manager in which each process draws the dropout masks of the global batch, and applies its own rows.

    Dropout and stochastic depth then drop the same values of each image for any number of processes.

    Args:
        rows: indices of the images of this process in the global batch.
        batch_size: number of images in the global batch.
    """

    def __init__(self, rows: Sequence[int], batch_size: int) -> None:
        super().__init__()
        self._rows, self._batch_size = list(rows), batch_size

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is functional.dropout and options.get("training") and 0 < options["p"] < 1:
            return args[0] * self._make_mask(args[0], 1 - options["p"]).div_(1 - options["p"])
        if func is Tensor.bernoulli_ and len(args[0]) == max(1, len(self._rows)):  # stochastic depth
            return args[0].copy_(self._make_mask(*args, **options))
        return func(*args, **options)

    def _make_mask(self, tensor: Tensor, p_keep: float) -> Tensor:
        """Return this process's rows of a random mask, shaped as `tensor`: ones with probability `p_keep`, or zeros."""
        last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if last else torch.contiguous_format
        shape = (self._batch_size, *tensor.shape[1:])
        mask = torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=order).bernoulli_(p_keep)
        return mask[self._rows] if self._rows else torch.ones_like(tensor)


def convert_sync_batch_norm(network: nn.Module, device: torch.device, *, batch_size: int) -> None:
    """Convert the trainable batch norms to `SyncBatchNorm` if several processes train on GPUs.

    PyTorch supports `SyncBatchNorm` only on GPUs. On CPUs each process normalizes with the statistics of its own
    images, and the running statistics of the main process are kept.

    Args:
        network: network with frozen layers; changed in place.
        batch_size: number of images per step, summed over all processes.

    Raises:
        InputError: a process would have fewer than two images per step for the statistics.
    """
    network.train()
    paths = [path for path, module in network.named_modules() if isinstance(module, _BatchNorm) and module.training]
    network.eval()
    if world_size() == 1 or not paths:
        return
    if device.type == "cuda":
        from timm.layers.norm_act import convert_sync_batchnorm  # torch's loses the activation of timm's BatchNormAct2d

        for path in paths:
            network.set_submodule(path, convert_sync_batchnorm(network.get_submodule(path)))
    elif batch_size < 2 * world_size():
        raise InputError(
            f"batch norm needs at least two images per process: use --batch-size {2 * world_size()} or more, "
            "fewer processes, or pretrained weights, whose batch norm statistics are not updated"
        )
    else:
        logger.info(
            "batch norm is not synchronized on CPUs: statistics are per process (about %d images per step), "
            "so the results differ from those of a single process",
            batch_size // world_size(),
        )


def set_batch_norm_mode(network: nn.Module, *, num_images: int) -> None:
    """Put trainable batch norms into train mode or, if this process has fewer than two images in a step, eval mode.

    Frozen batch norms and `SyncBatchNorm` are not changed.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            module.train(num_images > 1)
