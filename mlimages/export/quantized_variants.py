"""Write quantized variants of an exported file, and run them."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from PIL import Image

from mlimages import images
from mlimages.core import BundleError, Progress, disable_telemetry
from mlimages.export.onnx_writer import insert_preprocessing, probe_image, remove_preprocessing, replace_probe_logits
from mlimages.export.preprocessing_graph import PIXELS
from mlimages.inference import INPUT, KNOWN, LOGITS, PROBABILITIES, BundleSession, OnnxBundle, open_session
from mlimages.networks import Normalize


@contextmanager
def _keeping_sys_path() -> Iterator[None]:
    """Restore `sys.path`: onnxruntime.transformers appends its folder, whose modules have names such as `benchmark`."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before


with disable_telemetry("ORT_DISABLE_TELEMETRY", "1"), _keeping_sys_path():
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from onnxruntime.transformers.float16 import convert_float_to_float16

PROBE_TOLERANCE = 0.1
"""Integer kernels round differently from one processor to another."""

Outputs = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]
"""Logits and probabilities, each `(N, classes)`, and the output `known` `(N,)`, where there is one."""

Run = Callable[[Sequence[NDArray[np.uint8]]], Outputs]
"""Computes the outputs for preprocessed images, each uint8 `(h, w, C)`."""

_Batch = Mapping[str, NDArray[np.generic]]


def write_variants(
    bundle: OnnxBundle, pixels: Sequence[NDArray[np.uint8]], folder: Path, *, with_float16: bool, progress: Progress
) -> dict[str, OnnxBundle]:
    """Write each variant to a file in `folder`; `pixels` are preprocessed images to calibrate the ranges."""
    model = onnx.load(bundle.path)
    preprocessing = remove_preprocessing(model, bundle.preprocessing) if bundle.includes_preprocessing else None
    bare, network = folder / "bare.onnx", folder / "network.onnx"
    onnx.save(model, bare)
    quant_pre_process(bare, network, skip_symbolic_shape=True)
    calibration_batches = [
        {PIXELS: one[None]} if preprocessing else {INPUT: _normalize_pixels(bundle, [one])} for one in pixels
    ]
    float_nodes = find_unquantized_nodes(onnx.load(network))
    writers: dict[str, Callable[[Path], None]] = {
        "int8": lambda path: _write_int8(network, path, calibration_batches, float_nodes, reduce_range=False),
        "int8, reduced range": lambda path: _write_int8(
            network, path, calibration_batches, float_nodes, reduce_range=True
        ),
    }
    if with_float16:
        writers["float16"] = lambda path: _write_float16(network, path, float_nodes)
    progress.start("quantize", len(writers), "variants")
    variants = {}
    for name, write in writers.items():
        path = folder / f"{name}.onnx"
        write(path)
        if preprocessing:
            model = onnx.load(path)
            insert_preprocessing(model, preprocessing)
            path.write_bytes(model.SerializeToString())
        variants[name] = _with_new_probe(replace(bundle, path=path))
        progress.advance()
    progress.close()
    return variants


def find_unquantized_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes not to quantize: the last layer with weights, and all nodes that are not upstream
    of it."""
    producers = {output: node for node in model.graph.node for output in node.output}
    layer = next(
        (node for node in _iter_upstream_nodes(LOGITS, producers) if node.op_type in ("Conv", "Gemm", "MatMul")), None
    )
    body = {node.name for node in _iter_upstream_nodes(layer.input[0], producers)} if layer else set()
    return [node.name for node in model.graph.node if node.name not in body]


def _iter_upstream_nodes(tensor: str, producers: Mapping[str, onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that compute a tensor, the nearest first."""
    waiting, seen = deque([tensor]), set[str]()
    while waiting:
        node = producers.get(waiting.popleft())
        if node and node.name not in seen:
            seen.add(node.name)
            waiting.extend(node.input)
            yield node


def _write_int8(
    network: Path, path: Path, calibration_batches: Sequence[_Batch], float_nodes: list[str], *, reduce_range: bool
) -> None:
    quantize_static(
        network,
        path,
        _CalibrationBatches(calibration_batches),
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=float_nodes,
    )


def _write_float16(network: Path, path: Path, float_nodes: list[str]) -> None:
    onnx.save(convert_float_to_float16(onnx.load(network), keep_io_types=True, node_block_list=float_nodes), path)


class _CalibrationBatches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Calibration images as batches of one."""

    def __init__(self, calibration_batches: Sequence[_Batch]) -> None:
        self._remaining = iter(calibration_batches)

    def get_next(self) -> _Batch | None:
        return next(self._remaining, None)


def make_runner(bundle: OnnxBundle) -> Run:
    """Return a function that computes the outputs of a file for pixels that are already resized and cropped."""
    if bundle.includes_preprocessing:
        return BundleSession(bundle).run_all
    session = open_session(bundle.path)

    def run(pixels: Sequence[NDArray[np.uint8]]) -> Outputs:
        names = [LOGITS, PROBABILITIES, *([KNOWN] if bundle.known else [])]
        logits, probabilities, *known = session.run(names, {INPUT: _normalize_pixels(bundle, pixels)})
        return logits, probabilities, known[0] if known else None

    return run


def _normalize_pixels(bundle: OnnxBundle, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    normalization = bundle.preprocessing.normalization
    if normalization.mean_image:
        raise BundleError(
            f"{bundle.path} was exported without preprocessing and needs a mean image: export it with --preprocessing"
        )
    x: NDArray[np.float32] = Normalize(normalization)(torch.from_numpy(np.stack(pixels))).numpy()
    return x


def _with_new_probe(bundle: OnnxBundle) -> OnnxBundle:
    image = probe_image(bundle)
    if bundle.includes_preprocessing:
        logits = open_session(bundle.path).run([LOGITS], {INPUT: image[None]})[0]
    else:
        logits = make_runner(bundle)([images.prepare(Image.fromarray(image), bundle.preprocessing.image)])[0]
    return replace_probe_logits(bundle, logits[0], tolerance=PROBE_TOLERANCE)
