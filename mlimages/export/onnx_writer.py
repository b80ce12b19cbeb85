"""Write a trained network and its preprocessing to one .onnx file."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from mlimages import images
from mlimages.core import ExportError, Preprocessing, summarize_error
from mlimages.export.known_score import KnownOutput
from mlimages.export.preprocessing_graph import OPSET, PIXELS, PREFIX, ResizeImplementation, build_preprocessing_graph
from mlimages.export.serialization import write_model
from mlimages.export.targets import ComputeLogits, load_in_onnxruntime
from mlimages.inference import (
    INPUT,
    KNOWN,
    LOGITS,
    PROBABILITIES,
    OnnxBundle,
    ParityTestImage,
    Provenance,
    external_data_path,
)
from mlimages.networks import Normalize


@dataclass(frozen=True, slots=True, repr=False)
class TrainedNetwork:
    """A trained network, with the preprocessing and the class names to export with it.

    Attributes:
        network: maps normalized float32 `(N, C, H, W)` to logits `(N, classes)`; in eval mode, on the CPU.
        preprocessing: how an image is converted to the network's input.
        class_names: class names by class index.
        model_name: name of the network.
        mean_image: float32 `(C, H, W)` in 0..255, if `preprocessing` has a mean image.
        known_output: the output `known` (an in-distribution score) and prediction sets; None omits both.
        multi_label: an image may have any number of classes, and probabilities are the sigmoid of the logits.

    Raises:
        InputError: `preprocessing` has a mean image, but `mean_image` is None.
        TypeError: `class_names` is a single string.

    Examples:
        >>> import numpy as np
        >>> from mlimages.export import TrainedNetwork
        >>> from mlimages.networks import build_model
        >>> model = build_model("lenet5", num_classes=2, weights="none")
        >>> trained_network = TrainedNetwork(model.network, model.preprocessing, ("cats", "dogs"), model.name)
        >>> trained_network
        TrainedNetwork('lenet5', 28 x 28 px, classes: cats, dogs)
        >>> trained_network.compute_logits([np.zeros((28, 28, 1), np.uint8)]).shape
        (1, 2)
    """

    network: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    model_name: str
    mean_image: NDArray[np.float32] | None = None
    known_output: KnownOutput | None = None
    multi_label: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.class_names, str):
            raise TypeError(f"class_names={self.class_names!r}: expected a list of names, such as ('cats', 'dogs')")
        object.__setattr__(self, "class_names", tuple(self.class_names))
        self.preprocessing.normalization.check_mean_image(self.mean_image)

    def __repr__(self) -> str:
        image, names = self.preprocessing.image, ", ".join(self.class_names[:5])
        more = f" and {len(self.class_names) - 5} more" if len(self.class_names) > 5 else ""
        return f"TrainedNetwork({self.model_name!r}, {image.width} x {image.height} px, classes: {names}{more})"

    def normalize_pixels(self, pixels: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Normalize and stack images that are already resized and cropped, each uint8 `(H, W, C)`.

        Returns:
            The network's input, float32 `(N, C, H, W)`.
        """
        x: Tensor = Normalize(self.preprocessing.normalization, self.mean_image)(torch.from_numpy(np.stack(pixels)))
        return x

    def compute_logits(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return the logits, float32 `(N, classes)`, of uint8 images `(H, W, C)` from `images.load_pixels`."""
        with torch.inference_mode():
            logits: NDArray[np.float32] = self.network(self.normalize_pixels(pixels)).float().numpy()
        return logits


@dataclass(frozen=True, slots=True)
class DecisionParameters:
    """Parameters that turn logits into predictions.

    Attributes:
        temperature: divides the logits before the softmax or, in a multi-label network, the sigmoid.
        unknown_below: an image whose highest probability is below this threshold is predicted as "unknown"; 0 for
            no threshold.
        thresholds: for each class of a multi-label network, the minimum probability at which it is predicted; empty
            for other networks.
    """

    temperature: float = 1.0
    unknown_below: float = 0.0
    thresholds: tuple[float, ...] = ()


class _ExportedModule(nn.Module):
    """The module that torch.onnx exports; it returns the logits, the probabilities and, if configured, `known`.

    The input is uint8 pixels `(N, h, w, C)`, which the module `normalize` converts to the network's input. If
    `normalize` is the identity, the input is the network's input itself.
    """

    def __init__(self, normalize: nn.Module, trained_network: TrainedNetwork, temperature: float) -> None:
        super().__init__()
        self.normalize, self.network, self.temperature = normalize, trained_network.network, temperature
        self.score = trained_network.known_output.score if trained_network.known_output else None
        self.multi_label = trained_network.multi_label
        self._head_inputs: list[Tensor] = []

    def record_head_input(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Store the input of the head; a forward pre-hook."""
        self._head_inputs.append(inputs[0])

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        self._head_inputs.clear()
        logits = self.network(self.normalize(pixels))  # (N, classes)
        scaled = logits / self.temperature
        outputs = logits, torch.sigmoid(scaled) if self.multi_label else torch.softmax(scaled, dim=1)
        if self.score is None:
            return outputs
        features = self._head_inputs[0]
        return *outputs, self.score(features.mean((2, 3)) if features.ndim == 4 else features.flatten(1))


class _AttentionReshapeMode(TorchFunctionMode):
    """Reshapes attention inputs with five (Hiera) or three (SAM) dimensions to four, as torch.onnx requires."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is scaled_dot_product_attention:
            return _compute_attention_in_4d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _compute_attention_in_4d(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
) -> Tensor:
    """Reshape the inputs to four dimensions, call `scaled_dot_product_attention`, and reshape the result back."""
    if query.ndim == 4:
        return scaled_dot_product_attention(query, key, value, attn_mask, **options)
    if attn_mask is not None:
        attn_mask = _reshape_to_4d(attn_mask.expand(*query.shape[:-1], key.shape[-2]))
    q, k, v = map(_reshape_to_4d, (query, key, value))
    return scaled_dot_product_attention(q, k, v, attn_mask, **options).reshape(*query.shape[:-1], -1)


def _reshape_to_4d(tensor: Tensor) -> Tensor:
    """Reshape `(N, tokens, D)` to `(N, 1, tokens, D)`, and `(N, A, B, tokens, D)` to `(N, A * B, tokens, D)`."""
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.flatten(1, -3)


def write_onnx(
    trained_network: TrainedNetwork,
    path: Path,
    *,
    resize_implementation: ResizeImplementation | None = "operator",
    decision_parameters: DecisionParameters | None = None,
    provenance: Provenance | None = None,
) -> tuple[OnnxBundle, ComputeLogits]:
    """Write the network to `path` as ONNX, without its metadata and without a parity check.

    Args:
        trained_network: the network.
        path: the .onnx file to write.
        resize_implementation: implementation of the resize inside the file; None omits the preprocessing.
        decision_parameters: how logits are turned into predictions; by default without temperature and thresholds.
        provenance: origin and evaluation of the network.

    Returns:
        The metadata, which the caller adds to the file with `OnnxBundle.write`; and a function that computes the logits
        of the file.
    """
    decision_parameters = decision_parameters or DecisionParameters()
    network = path.with_name(f"{path.name}.network")
    model = _convert_to_onnx(
        trained_network,
        network,
        skip_normalization=resize_implementation is None,
        temperature=decision_parameters.temperature,
    )
    if resize_implementation:
        _prepend_preprocessing(model, trained_network.preprocessing, resize_implementation=resize_implementation)
    model.producer_name = "mlimages"
    write_model(model, external_data_path(network), path)
    external_data_path(network).unlink(missing_ok=True)
    compute_logits = load_in_onnxruntime(path)
    normalization = trained_network.preprocessing.normalization
    # Only the file name of the mean image, since its folder would reveal details of this machine.
    normalization = replace(normalization, mean_image=Path(normalization.mean_image).name)
    versions = {name: version(name) for name in ("mlimages", "onnx", "onnxruntime", "pillow", "torch")}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    bundle = OnnxBundle(
        path=path,
        class_names=trained_network.class_names,
        preprocessing=replace(trained_network.preprocessing, normalization=normalization),
        model=trained_network.model_name,
        parity_test_image=_make_parity_test_image(trained_network, compute_logits if resize_implementation else None),
        includes_preprocessing=resize_implementation is not None,
        exact_resize=resize_implementation == "exact",
        temperature=decision_parameters.temperature,
        unknown_below=decision_parameters.unknown_below,
        known=trained_network.known_output.calibration if trained_network.known_output else None,
        prediction_sets=trained_network.known_output.prediction_sets if trained_network.known_output else None,
        multi_label=trained_network.multi_label,
        thresholds=decision_parameters.thresholds,
        provenance=replace(provenance or Provenance(), created=created, versions=versions),
    )
    return bundle, compute_logits


def _convert_to_onnx(
    trained_network: TrainedNetwork, path: Path, *, skip_normalization: bool, temperature: float
) -> onnx.ModelProto:
    """Return the network as an ONNX model; only its weights are written to disk, to `external_data_path(path)`.

    The model takes uint8 pixels `(N, h, w, C)`; with `skip_normalization`, normalized float32 `(N, C, h, w)`.
    """
    normalize = Normalize(trained_network.preprocessing.normalization, trained_network.mean_image)
    prop = trained_network.preprocessing.image
    pixels = torch.zeros(2, prop.height, prop.width, prop.channels, dtype=torch.uint8)  # (2, h, w, C)
    module = _ExportedModule(nn.Identity() if skip_normalization else normalize, trained_network, temperature).eval()
    outputs = [LOGITS, PROBABILITIES]
    hook: AbstractContextManager[object] = nullcontext()
    if trained_network.known_output:
        outputs.append(KNOWN)
        hook = trained_network.network.get_submodule(trained_network.known_output.head_name).register_forward_pre_hook(
            module.record_head_input
        )
    math = sdpa_kernel(SDPBackend.MATH)  # the strides of other kernels are lost where torch.onnx decomposes them (BEiT)
    with hook, math, _AttentionReshapeMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.onnx calls deprecated functions of torch
        try:
            program = torch.onnx.export(
                module,
                (normalize(pixels) if skip_normalization else pixels,),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=[INPUT if skip_normalization else PIXELS],
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("N")},),
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(
                f"PyTorch cannot convert {trained_network.model_name} to ONNX "
                f"({summarize_error(error.__cause__ or error)[:200]}): use the weights in PyTorch, or train another "
                "network"
            ) from error
    assert program is not None  # it is None only if a path is given
    program.save(path, external_data=True)
    model = onnx.load(path, load_external_data=False)
    path.unlink()
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        node.ClearField("metadata_props")  # stack traces with local paths
    return model


def _prepend_preprocessing(
    model: onnx.ModelProto, preprocessing: Preprocessing, *, resize_implementation: ResizeImplementation
) -> None:
    """Build the graph that resizes and crops images of any size, and insert it into the model, in place."""
    graph = build_preprocessing_graph(preprocessing.image, resize_implementation=resize_implementation).graph
    for dimension, denotation in zip(graph.input[0].type.tensor_type.shape.dim, _DIMENSION_DENOTATIONS, strict=True):
        dimension.denotation = denotation
    graph.input[0].type.denotation = "IMAGE"
    insert_preprocessing_graph(model, graph)


def insert_preprocessing_graph(model: onnx.ModelProto, graph: onnx.GraphProto) -> None:
    """Prepend `graph` to `model`, in place: the output `pixels` of `graph` replaces the input `pixels` of `model`."""
    model.graph.initializer.extend(graph.initializer)  # those of the network are not copied
    for field in ("input", "node"):
        values = getattr(model.graph, field)
        merged = [*getattr(graph, field), *(value for value in values if value.name != PIXELS)]
        del values[:]
        values.extend(merged)


def pop_preprocessing_graph(model: onnx.ModelProto, preprocessing: Preprocessing) -> onnx.GraphProto:
    """Remove from `model`, in place, the graph that `insert_preprocessing_graph` prepended; return this graph."""
    graph = onnx.GraphProto(input=model.graph.input)
    for field in ("node", "initializer"):
        values = list(getattr(model.graph, field))
        for target, is_inside in ((graph, True), (model.graph, False)):
            del getattr(target, field)[:]
            getattr(target, field).extend(value for value in values if value.name.startswith(PREFIX) == is_inside)
    prop = preprocessing.image
    shape: list[str | int | None] = ["N", prop.height, prop.width, prop.channels]
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info(PIXELS, onnx.TensorProto.UINT8, shape))
    return graph


_DIMENSION_DENOTATIONS = ("DATA_BATCH", "DATA_FEATURE", "DATA_FEATURE", "DATA_CHANNEL")
"""Denotations of the input's dimensions (onnx/docs/DimensionDenotation.md)."""


def _make_parity_test_image(trained_network: TrainedNetwork, compute_logits: ComputeLogits | None) -> ParityTestImage:
    """Return a small image with its logits.

    Args:
        trained_network: the network.
        compute_logits: returns the logits of the file. None if the file has no preprocessing: the logits are then those
            of the network.
    """
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((48, 40), Image.Resampling.BICUBIC)
    if compute_logits is None:
        logits = trained_network.compute_logits([images.prepare_pixels(image, trained_network.preprocessing.image)])[0]
    else:
        logits = compute_logits(np.asarray(image)[None])[0]
    return ParityTestImage(48, 40, image.tobytes(), round_logits(logits))


def round_logits(logits: NDArray[np.float32]) -> tuple[float, ...]:
    """Round the logits `(classes,)` of a parity test image to nine significant digits, enough to restore float32."""
    return tuple(float(f"{logit:.9g}") for logit in logits)
