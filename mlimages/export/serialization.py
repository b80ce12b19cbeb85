"""Write an ONNX model with external weights to one file, or to two if the weights are large."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from mlimages.core import copy_bytes
from mlimages.inference import external_data_path

MAX_EMBEDDED_WEIGHTS_BYTES = 1_900_000_000
"""Larger weights are written to a second file, NAME.onnx.data, since a protocol buffer is limited to 2 GiB."""

GRAPH_FIELD = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
INITIALIZER_FIELD = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
RAW_DATA_FIELD = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
LENGTH_DELIMITED_WIRE_TYPE = 2
"""Wire type of a field that is preceded by its length (protobuf.dev/programming-guides/encoding)."""


def write_model(model: onnx.ModelProto, weights_path: Path, path: Path) -> None:
    """Write a model and its weights to `path`, or to `path` and `NAME.onnx.data` if one file cannot contain them.

    The weights are copied from file to file, since protocol buffers would need three times their size in memory.

    Args:
        model: the model, which is modified and must not be used afterwards.
        weights_path: the file with the external data of the initializers. If two files are written, it becomes the
            second one.
        path: the .onnx file to write.
    """
    if weights_path.exists() and weights_path.stat().st_size > MAX_EMBEDDED_WEIGHTS_BYTES:
        weights_path.rename(external_data_path(path))
        for tensor in filter(uses_external_data, model.graph.initializer):
            location = next(entry for entry in tensor.external_data if entry.key == "location")
            location.value = external_data_path(path).name
        path.write_bytes(model.SerializeToString())
        return
    tensors = [_SerializedInitializer.from_proto(tensor) for tensor in model.graph.initializer]
    del model.graph.initializer[:]
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    weights_path.touch()
    with weights_path.open("rb") as values, path.open("wb") as file:
        file.write(model.SerializeToString())
        graph_bytes = len(graph) + sum(tensor.num_bytes for tensor in tensors)
        file.write(_encode_field_header(GRAPH_FIELD, graph_bytes) + graph)
        for tensor in tensors:
            file.write(tensor.header)
            copy_bytes(values, file, offset=tensor.values_offset, length=tensor.num_value_bytes)


@dataclass(frozen=True, slots=True)
class _SerializedInitializer:
    """A weight tensor (initializer) to write: `header`, and then its values, which are copied from the weights file.

    Attributes:
        header: the serialized tensor up to its values; the whole tensor if its values are not in the weights file.
        values_offset: where the values begin in the weights file, in bytes.
        num_value_bytes: size of the values in the weights file; 0 if they are in `header`.
    """

    header: bytes
    values_offset: int
    num_value_bytes: int

    @property
    def num_bytes(self) -> int:
        return len(self.header) + self.num_value_bytes

    @classmethod
    def from_proto(cls, tensor: onnx.TensorProto) -> _SerializedInitializer:
        if not uses_external_data(tensor):
            return cls(_encode_field_header(INITIALIZER_FIELD, tensor.ByteSize()) + tensor.SerializeToString(), 0, 0)
        external = ExternalDataInfo(tensor)
        offset, length = external.offset or 0, external.length or 0
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        fields = tensor.SerializeToString() + _encode_field_header(RAW_DATA_FIELD, length)
        return cls(_encode_field_header(INITIALIZER_FIELD, len(fields) + length) + fields, offset, length)


def _encode_field_header(field_number: int, content_length: int) -> bytes:
    """Return the bytes before a field's content: number with wire type, then length, both with 7 bits per byte."""
    encoded = bytearray()
    for value in (field_number << 3 | LENGTH_DELIMITED_WIRE_TYPE, content_length):
        while value > 127:
            encoded.append(value & 127 | 128)
            value >>= 7
        encoded.append(value)
    return bytes(encoded)
