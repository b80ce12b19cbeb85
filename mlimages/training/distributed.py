"""The processes of one job, as torchrun starts them; a process alone is the first of one, and waits for nobody."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor, nn

from mlimages.core import InputError, RunError

Item = TypeVar("Item")

PATIENCE = timedelta(hours=2)
"""How long the others wait for what one does alone (splitting a large set); one that ends ends the wait at once."""

AFTERWARDS = (
    "see what was said before this, then go on with the same command, or with `mlimages finetune --resume RUN`, "
    "in any number of processes"
)


def join(device: torch.device) -> None:
    """Join the job that torchrun has started, if it has, for good: gloo between CPUs, nccl between GPUs.

    Raises:
        InputError: there are fewer GPUs than processes on this machine, or its GPU cannot share.
    """
    if dist.is_initialized() or not dist.is_torchelastic_launched():
        return
    if device.type == "mps":
        raise InputError("several processes cannot share work on mps: take --device cpu")
    if device.type == "cuda":
        place, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= there:
            raise InputError(f"torch sees {there} GPUs here: take --nproc-per-node {there}, or --device cpu")
        torch.cuda.set_device(place)
    with _talking():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _told_to_stop)
    atexit.register(dist.destroy_process_group)  # not before: a second start would find the addresses of the first


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the one that writes and speaks."""
    return number() == 0


def share(items: Sequence[Item]) -> Sequence[Item]:
    """Every n-th of `items`, those that fall to this process."""
    return items[number() :: count()]


def exchanged(value: Any) -> list[Any]:
    """What each process says, anything that JSON takes, in their order."""
    if count() == 1:
        return [value]
    return [json.loads(said) for said in _exchanged_bytes(json.dumps(value).encode())]


def from_first(value: Any) -> Any:
    """What the first process says."""
    return exchanged(value if is_first() else None)[0]


def demand_same(what: str, seen: object) -> None:
    """Make sure that what this process sees is what the others see.

    Raises:
        RunError: it is not.
    """
    digest = hashlib.sha256(repr(seen).encode()).hexdigest()
    if len(set(exchanged(digest))) > 1:
        raise RunError(f"the processes of this job each see another {what}: put it on a disk that all machines share")


def wait() -> None:
    """Until every process has come here."""
    exchanged(None)


def joined_rows(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows of all processes, sorted by the tensor `places`, which says of each where it belongs."""
    if count() == 1:
        return rows
    parts = [load(said) for said in _exchanged_bytes(save({name: each.contiguous() for name, each in rows.items()}))]
    order = torch.cat([part["places"] for part in parts]).argsort()
    return {name: torch.cat([part[name] for part in parts])[order] for name in rows}


def add_up(tensors: Sequence[Tensor]) -> None:
    """Put the sum over all processes in the place of each tensor."""
    if count() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    with _talking():
        dist.all_reduce(flat)
    with torch.no_grad():
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def take_from_first(network: nn.Module) -> None:
    """Give every process the weights and statistics of the first."""
    if count() > 1:
        with _talking(), torch.no_grad():
            for tensor in network.state_dict().values():
                whole = tensor.contiguous()
                dist.broadcast(whole, 0)
                tensor.copy_(whole)


def _exchanged_bytes(own: bytes) -> list[bytes]:
    sizes = [torch.zeros(1, dtype=torch.long) for _ in range(count())]
    with _talking():
        dist.all_gather(sizes, torch.tensor([len(own)]))
        longest = int(max(sizes))
        padded = torch.frombuffer(bytearray(own.ljust(max(1, longest), b"\0")), dtype=torch.uint8)
        said = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(said, padded)
    return [each.numpy().tobytes()[: int(size)] for each, size in zip(said, sizes, strict=True)]


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # all that torch.distributed raises
        raise RunError(f"another process of this job is gone ({str(error).splitlines()[0]}): {AFTERWARDS}") from error


def _told_to_stop(signal_number: int, frame: object) -> NoReturn:
    raise RunError(f"torchrun stops this process, as one of the job's is gone: {AFTERWARDS}")
