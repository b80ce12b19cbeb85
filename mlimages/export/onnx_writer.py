"""A trained network written as one .onnx file, with the preparation of its pixels before it."""

from __future__ import annotations

import datetime
import importlib.metadata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mlimages import images
from mlimages.core import Preprocessing
from mlimages.export.preprocessing_graph import PIXELS, PREFIX, prepare_graph
from mlimages.inference import (
    INPUT,
    LOGITS,
    PROBABILITIES,
    OnnxBundle,
    ParityProbe,
    Provenance,
    data_path,
    open_session,
)
from mlimages.networks import Normalize

EXTERNAL_DATA_BYTES = 1_900_000_000
"""Weights beyond this lie in a second file, NAME.onnx.data: a protocol buffer holds less than 2 GiB."""


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """What an exported file is made of.

    Attributes:
        network: normalised float32 `(N, C, H, W)` to logits `(N, classes)`; in eval mode, on the CPU.
        mean_image: float32 `(C, H, W)` in 0..255, where the preprocessing names one.
        model: the network's name.
    """

    network: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    model: str
    mean_image: NDArray[np.float32] | None = None

    def normalized(self, pixels: Sequence[NDArray[np.uint8]]) -> Tensor:
        """The network's input, float32 `(N, C, H, W)`, of pictures prepared by `images.load_pixels`."""
        normalize = Normalize(self.preprocessing.normalization, self.mean_image)
        normalized: Tensor = normalize(torch.from_numpy(np.stack(pixels)))
        return normalized

    def logits(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Logits `(N, classes)` of the same."""
        with torch.inference_mode():
            logits: NDArray[np.float32] = self.network(self.normalized(pixels)).float().numpy()
        return logits


class _Answering(nn.Module):
    """Prepared pixels (or normalised numbers, where `normalize` is the identity) to logits and probabilities."""

    def __init__(self, normalize: nn.Module, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.normalize, self.network, self.temperature = normalize, network, temperature

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(self.normalize(pixels))  # (N, classes)
        return logits, torch.softmax(logits / self.temperature, dim=1)


def export_network(
    trained: TrainedNetwork,
    out: Path,
    *,
    include_preprocessing: bool = True,
    exact: bool = False,
    temperature: float = 1.0,
    unknown_below: float = 0.0,
    provenance: Provenance | None = None,
) -> OnnxBundle:
    """Write `out`; whether it answers as the network does is for `parity.check_parity` to say.

    Args:
        include_preprocessing: take uint8 pictures of any size; else the bare network, float32 `(N, C, H, W)`.
        exact: resize inside by Pillow's own integer weights, to the bit.
    """
    model = _as_onnx(trained, bare=not include_preprocessing, temperature=temperature)
    if include_preprocessing:
        prepend_preparation(model, trained.preprocessing, exact=exact)
    _save(model, out)
    bundle = OnnxBundle(
        path=out,
        class_names=trained.class_names,
        preprocessing=_without_folders(trained.preprocessing),
        model=trained.model,
        probe=_probe(trained, out if include_preprocessing else None),
        includes_preprocessing=include_preprocessing,
        exact_resize=exact,
        temperature=temperature,
        unknown_below=unknown_below,
        provenance=replace(provenance or Provenance(), created=_now(), versions=_versions()),
    )
    bundle.write(out)
    return bundle


def _as_onnx(trained: TrainedNetwork, *, bare: bool, temperature: float) -> onnx.ModelProto:
    normalize = Normalize(trained.preprocessing.normalization, trained.mean_image)
    prop = trained.preprocessing.image
    pixels = torch.zeros(2, prop.height, prop.width, prop.channels, dtype=torch.uint8)  # (2, h, w, C)
    answering = _Answering(nn.Identity() if bare else normalize, trained.network, temperature).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        program = torch.onnx.export(
            answering,
            (normalize(pixels) if bare else pixels,),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=[INPUT if bare else PIXELS],
            output_names=[LOGITS, PROBABILITIES],
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )
    assert program is not None  # it is without a path
    model = program.model_proto
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        node.ClearField("metadata_props")  # stack traces, with the paths of this machine
    return model


def prepend_preparation(model: onnx.ModelProto, preprocessing: Preprocessing, *, exact: bool) -> None:
    """Put the preparation of pixels before a network that takes prepared ones, in place."""
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    first = prepare_graph(preprocessing.image, opset=opset, ir_version=model.ir_version, exact=exact)
    for dimension, meaning in zip(first.graph.input[0].type.tensor_type.shape.dim, _MEANINGS, strict=True):
        dimension.denotation = meaning
    first.graph.input[0].type.denotation = "IMAGE"
    for parts in ("input", "node", "initializer"):  # in place: compose.merge_models copies the weights three times
        before, after = getattr(first.graph, parts), getattr(model.graph, parts)
        joined = [*before, *(part for part in after if part.name != PIXELS)]
        del after[:]
        after.extend(joined)


def strip_preparation(model: onnx.ModelProto, preprocessing: Preprocessing) -> onnx.ModelProto:
    """The inverse, in place: the network from prepared pixels on."""
    for parts in ("node", "initializer"):
        field = getattr(model.graph, parts)
        kept = [part for part in field if not part.name.startswith(PREFIX)]
        del field[:]
        field.extend(kept)
    prop = preprocessing.image
    shape: list[str | int | None] = ["N", prop.height, prop.width, prop.channels]
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info(PIXELS, onnx.TensorProto.UINT8, shape))
    return model


_MEANINGS = ("DATA_BATCH", "DATA_FEATURE", "DATA_FEATURE", "DATA_CHANNEL")
"""Of the input's dimensions (onnx/docs/DimensionDenotation.md)."""


def _save(model: onnx.ModelProto, path: Path) -> None:
    model.producer_name = "mlimages"
    if model.ByteSize() > EXTERNAL_DATA_BYTES:
        data = data_path(path)
        data.unlink(missing_ok=True)  # onnx would write behind what is there
        onnx.save_model(model, path, save_as_external_data=True, location=data.name)
        data.chmod(path.stat().st_mode)  # onnx lets its owner alone read it
    else:
        path.write_bytes(model.SerializeToString())


def _probe(trained: TrainedNetwork, written: Path | None) -> ParityProbe:
    """A small picture, with what the written file gives for it (the bare network: what the trained one gives)."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((48, 40), Image.Resampling.BICUBIC)
    if written is None:
        logits = trained.logits([images.prepare(picture, trained.preprocessing.image)])[0]
    else:
        logits = _file_logits(written, np.asarray(picture))
    return ParityProbe(48, 40, picture.tobytes(), _rounded(logits))


def with_own_probe(bundle: OnnxBundle, *, tolerance: float) -> OnnxBundle:
    """The bundle with the logits that its file gives now; for a file whose network was changed on purpose."""
    probe = bundle.probe
    picture = np.frombuffer(probe.pixels, np.uint8).reshape(probe.height, probe.width, 3)
    logits = _rounded(_file_logits(bundle.path, picture))
    return replace(bundle, probe=replace(probe, logits=logits, tolerance=tolerance))


def _file_logits(path: Path, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    (logits,) = open_session(path, threads=1).run([LOGITS], {INPUT: picture[None]})
    first: NDArray[np.float32] = logits[0]
    return first


def _rounded(logits: NDArray[np.float32]) -> tuple[float, ...]:
    return tuple(float(f"{logit:.9g}") for logit in logits)


def _without_folders(preprocessing: Preprocessing) -> Preprocessing:
    """The mean image lies inside the file; where it lay on this machine is nobody's business."""
    normalization = preprocessing.normalization
    name = Path(normalization.mean_image).name if normalization.mean_image else ""
    return replace(preprocessing, normalization=replace(normalization, mean_image=name))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("mlimages", "onnx", "onnxruntime", "pillow", "torch")}
