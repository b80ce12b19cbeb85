"""The pairs of strings in an .onnx file's metadata, read and written without loading the network.

An ONNX file is a protocol-buffer message (https://protobuf.dev/programming-guides/encoding/), `ModelProto` of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto; its field 14 holds the pairs. The other fields, the weights
among them, are stepped over.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from mlimages.core import BundleError, replacing

_METADATA_FIELD = 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_PAIR_BYTES = 64 << 20


def read_metadata(path: Path) -> dict[str, str]:
    """Every pair of strings in an .onnx file's metadata.

    Raises:
        BundleError: there is no such file, or it is not an ONNX file.
    """
    try:
        with path.open("rb") as file:
            return dict(_pair(file, start, end) for number, start, end in _fields(file) if number == _METADATA_FIELD)
    except FileNotFoundError as error:
        raise BundleError(f"no file at {path}: `mlimages export RUN -o {path.name}` makes one") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, IndexError) as error:
        raise BundleError(f"{path} is not an ONNX file ({error})") from error


def write_metadata(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Write `source`'s network with this metadata, in place of its own, to `target` (they may be one file)."""
    with replacing(target) as part, source.open("rb") as old, part.open("wb") as new:
        position = 0
        for number, _, end in _fields(old):
            if number != _METADATA_FIELD:
                old.seek(position)
                _copy(old, new, end - position)
            position = end
        for key, value in sorted(metadata.items()):
            new.write(_encoded(_METADATA_FIELD, _encoded(1, key.encode()) + _encoded(2, value.encode())))


def _fields(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each top-level field's value; the file may be moved between two steps."""
    end_of_file = file.seek(0, 2)
    position = 0
    while position < end_of_file:
        file.seek(position)
        key = _varint(file)
        kind, start = key & 7, file.tell()
        if kind == _VARINT:
            _varint(file)
            end = file.tell()
        elif kind == _BYTES:
            length = _varint(file)
            start = file.tell()
            end = start + length
        elif kind in (_FIXED64, _FIXED32):
            end = start + (8 if kind == _FIXED64 else 4)
        else:
            raise ValueError(f"unknown wire type {kind} at byte {position}")
        if end > end_of_file or not key >> 3:
            raise ValueError(f"cut or damaged at byte {position}")
        yield key >> 3, start, end
        position = end


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("an integer of more than ten bytes")


def _pair(file: BinaryIO, start: int, end: int) -> tuple[str, str]:
    if end - start > _MAX_PAIR_BYTES:
        raise ValueError("metadata of more than 64 MiB")
    file.seek(start)
    entry = io.BytesIO(file.read(end - start))
    texts = {}
    for number, begin, finish in list(_fields(entry)):
        texts[number] = entry.getvalue()[begin:finish].decode()
    return texts.get(1, ""), texts.get(2, "")


def _copy(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count:
        chunk = source.read(min(count, 1 << 20))
        target.write(chunk)
        count -= len(chunk)


def _encoded(number: int, value: bytes) -> bytes:
    return _encoded_varint(number << 3 | _BYTES) + _encoded_varint(len(value)) + value


def _encoded_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
