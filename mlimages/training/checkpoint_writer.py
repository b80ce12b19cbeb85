"""The whole network on disk after each epoch, though an epoch writes only what it changed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import struct
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from mlimages.core import replacing

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Snapshots:
    """Writes a network's weights, under the library's own names, to .safetensors files of a folder.

    A file that loses its name to a newer one is kept under a hidden one, and a later snapshot is that file with all but
    the constant weights written anew, unless someone reads it, has linked it elsewhere or has changed it. So a run
    writes what is frozen to three files at most.

    Args:
        network: written as it is at each `save`.
        folder: of all the files.
        constant: names of the weights that no one changes.
    """

    def __init__(self, network: nn.Module, folder: Path, *, constant: Collection[str]) -> None:
        self._network, self._folder, self._constant = network, folder, constant
        self._spares: list[Path] = []
        self._written: set[tuple[int, int]] = set()

    def save(self, *paths: Path) -> None:
        """Have each path hold the network as it is now, whole or not at all: one file under all of these names."""
        for path in paths:
            with replacing(path) as part:
                if path == paths[0]:
                    self._write(part)
                else:
                    part.unlink()
                    _link_or_copy(paths[0], part)
                self._keep(path)

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(self, *exc: object) -> None:
        for spare in self._spares:
            spare.unlink(missing_ok=True)

    def _write(self, part: Path) -> None:
        """Write a .safetensors file: length of the header, header, numbers (https://huggingface.co/docs/safetensors).

        Its blocks are reserved at once, else ext4 looks for them when the file takes another's place. It is on the disk
        before that, as no name may outlive a power cut without its file, and then needs no memory as a cache.
        """
        state = self._network.state_dict()
        header, starts, size = _layout(state)
        known = self._constant if self._take_spare(part) else ()
        with part.open("r+b") as out:
            if not known:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(out.fileno(), 0, size)
                out.write(header)
            for name in starts.keys() - known:
                out.seek(starts[name])
                out.write(state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            out.flush()
            os.fsync(out.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self._written.add(_version(out.fileno()))

    def _keep(self, path: Path) -> None:
        """Give a file that is about to lose a name a hidden one."""
        spare = self._folder / f".spare.safetensors.{secrets.token_hex(8)}.part"
        with suppress(OSError):  # there is none, or the file system has no links
            os.link(path, spare)
            self._spares.append(spare)

    def _take_spare(self, part: Path) -> bool:
        """Have a hidden file take the place of `part`, if there is one that no one else has to do with."""
        while self._spares:
            spare = self._spares.pop()
            with spare.open("r+b") as file:
                is_free = _version(file.fileno()) in self._written and _is_held_here_alone(file.fileno())
            if is_free:
                spare.replace(part)
                return True
            spare.unlink()
        return False


def _layout(state: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int], int]:
    """The header with the length before it, where in the file each tensor starts, and the file's size."""
    header, starts, end = {}, {}, 0
    tensors = sorted(state.items(), key=lambda item: -item[1].element_size())  # each stands where its size allows
    for name, tensor in tensors:
        starts[name], end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [starts[name], end],
        }
    said = json.dumps(header).encode()
    said += b" " * (-len(said) % 8)
    head = struct.pack("<Q", len(said)) + said
    return head, {name: len(head) + start for name, start in starts.items()}, len(head) + end


def _version(file: int) -> tuple[int, int]:
    """Tells an open file as it is now from all others and from itself changed."""
    status = os.fstat(file)
    return status.st_ino, status.st_mtime_ns


def _is_held_here_alone(file: int) -> bool:
    """Whether a file has one name and is open or mapped nowhere else; False where the system cannot tell.

    Linux grants a lease for writing on this condition (fcntl(2)).
    """
    try:
        import fcntl

        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)  # ignored; another opener's signal would end the process
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except (AttributeError, ImportError, OSError):
        return False
    return os.fstat(file).st_nlink == 1


def _link_or_copy(path: Path, name: Path) -> None:
    try:
        os.link(path, name)
    except OSError:  # a file system without links
        shutil.copyfile(path, name)
