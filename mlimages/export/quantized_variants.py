"""Write quantized variants of an exported file, and compute their outputs."""

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
from mlimages.export.onnx_writer import insert_preprocessing_graph, pop_preprocessing_graph, round_logits
from mlimages.export.preprocessing_graph import PIXELS
from mlimages.inference import INPUT, KNOWN, LOGITS, PROBABILITIES, BundleSession, OnnxBundle, open_session
from mlimages.networks import Normalize


@contextmanager
def _preserve_sys_path() -> Iterator[None]:
    """Restore `sys.path`: onnxruntime.transformers adds its folder, whose modules have names such as `benchmark`."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before


with disable_telemetry("ORT_DISABLE_TELEMETRY", "1"), _preserve_sys_path():
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from onnxruntime.transformers.float16 import convert_float_to_float16

PARITY_TOLERANCE = 0.1
"""Tolerance for the parity test image of a variant: quantized networks round differently on different processors."""

ModelOutputs = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]
"""Logits and probabilities, each `(N, classes)`, and the output `known` `(N,)`, or None if the file lacks it."""

Runner = Callable[[Sequence[NDArray[np.uint8]]], ModelOutputs]
"""A function that returns the outputs for preprocessed images, each uint8 `(h, w, C)`."""

_InputBatch = Mapping[str, NDArray[np.generic]]


def write_variants(
    bundle: OnnxBundle, pixels: Sequence[NDArray[np.uint8]], folder: Path, *, include_float16: bool, progress: Progress
) -> dict[str, OnnxBundle]:
    """Write each variant to a file in `folder`, and return the variants by name.

    Args:
        bundle: the original.
        pixels: preprocessed images, uint8 `(h, w, C)`, that calibrate the ranges of activations.
        include_float16: also write a float16 variant.
    """
    model = onnx.load(bundle.path)
    preprocessing = pop_preprocessing_graph(model, bundle.preprocessing) if bundle.includes_preprocessing else None
    bare, network = folder / "bare.onnx", folder / "network.onnx"
    onnx.save(model, bare)
    quant_pre_process(bare, network, skip_symbolic_shape=True)
    calibration_batches = [
        {PIXELS: image[None]} if preprocessing else {INPUT: _normalize_pixels(bundle, [image])} for image in pixels
    ]
    excluded_nodes = select_nodes_to_exclude(onnx.load(network))
    names = ["int8", "int8, reduced range", *(["float16"] if include_float16 else [])]
    progress.start("quantize", len(names), "variants")
    variants = {}
    for name in names:
        path = folder / f"{name}.onnx"
        if name == "float16":
            model = convert_float_to_float16(onnx.load(network), keep_io_types=True, node_block_list=excluded_nodes)
        else:
            quantize_static(
                network,
                path,
                _CalibrationBatches(calibration_batches),
                per_channel=True,
                reduce_range=name == "int8, reduced range",
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=excluded_nodes,
            )
            model = onnx.load(path)
        if preprocessing:
            insert_preprocessing_graph(model, preprocessing)
        path.write_bytes(model.SerializeToString())
        variants[name] = _update_expected_logits(replace(bundle, path=path))
        progress.advance()
    progress.close()
    return variants


def select_nodes_to_exclude(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that are not quantized, given a model without preprocessing.

    Only the nodes that lead from the model's input to the last layer with weights are quantized. All others are not:
    that layer itself, and nodes such as the softmax.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    layer = next(
        (node for node in _iter_upstream_nodes(LOGITS, producers) if node.op_type in ("Conv", "Gemm", "MatMul")), None
    )
    quantized = {node.name for node in _iter_upstream_nodes(layer.input[0], producers)} if layer else set()
    return [node.name for node in model.graph.node if node.name not in quantized]


def _iter_upstream_nodes(tensor_name: str, producers: Mapping[str, onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that compute a tensor, the nearest first."""
    tensor_names, visited = deque([tensor_name]), set[str]()
    while tensor_names:
        node = producers.get(tensor_names.popleft())
        if node and node.name not in visited:
            visited.add(node.name)
            tensor_names.extend(node.input)
            yield node


class _CalibrationBatches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Batches of one calibration image each."""

    def __init__(self, calibration_batches: Sequence[_InputBatch]) -> None:
        self._remaining = iter(calibration_batches)

    def get_next(self) -> _InputBatch | None:
        """Return the next batch, an array for each input name; None after the last one."""
        return next(self._remaining, None)


def make_runner(bundle: OnnxBundle) -> Runner:
    """Return a function that computes the outputs of a file for preprocessed images."""
    if bundle.includes_preprocessing:
        return BundleSession(bundle).compute_all_outputs
    session = open_session(bundle.path)

    def compute_all_outputs(pixels: Sequence[NDArray[np.uint8]]) -> ModelOutputs:
        names = [LOGITS, PROBABILITIES, *([KNOWN] if bundle.known else [])]
        logits, probabilities, *known = session.run(names, {INPUT: _normalize_pixels(bundle, pixels)})
        return logits, probabilities, known[0] if known else None

    return compute_all_outputs


def _normalize_pixels(bundle: OnnxBundle, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return the input `(N, C, H, W)` of a file without preprocessing, from preprocessed pixels `(h, w, C)`."""
    normalization = bundle.preprocessing.normalization
    if normalization.mean_image:
        raise BundleError(
            f"{bundle.path} was exported without preprocessing and needs a mean image: export it with --preprocessing"
        )
    x: NDArray[np.float32] = Normalize(normalization)(torch.from_numpy(np.stack(pixels))).numpy()
    return x


def _update_expected_logits(bundle: OnnxBundle) -> OnnxBundle:
    """Run a variant's file on the parity test image, and return the bundle with these logits as the expected ones.

    The tolerance of the parity test is set to `PARITY_TOLERANCE`.
    """
    test_image = bundle.parity_test_image
    image = np.frombuffer(test_image.pixels, np.uint8).reshape(test_image.height, test_image.width, 3)
    if bundle.includes_preprocessing:
        logits = open_session(bundle.path).run([LOGITS], {INPUT: image[None]})[0]
    else:
        logits = make_runner(bundle)([images.prepare_pixels(Image.fromarray(image), bundle.preprocessing.image)])[0]
    test_image = replace(test_image, logits=round_logits(logits[0]), tolerance=PARITY_TOLERANCE)
    return replace(bundle, parity_test_image=test_image)
