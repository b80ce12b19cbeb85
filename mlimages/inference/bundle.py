"""The metadata of an .onnx file: classes, preprocessing, calibration, provenance."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlimages.core import BundleError, Preprocessing, Target, outputs
from mlimages.inference.onnx_metadata import open_session, read_metadata, write_metadata

VERSION = 1
"""Of the JSON under the metadata key `mlimages`."""

INPUT, LOGITS, PROBABILITIES, KNOWN = "image", "logits", "probabilities", "known"
"""Names of the graph's input and outputs."""


def data_path(path: Path) -> Path:
    """The file beside an .onnx file that holds its weights, where they are more than 2 GB."""
    return path.with_name(f"{path.name}.data")


def model_file(model: str | os.PathLike[str]) -> Path:
    """The .onnx file that a person means: the file itself, or that of a run folder.

    Raises:
        BundleError: it is a folder without a model.
    """
    path = Path(model)
    if path.suffix == ".safetensors":
        raise BundleError(f"{path} holds weights, not an exported model: give the run folder {path.parent}")
    if not path.is_dir():
        return path
    if (file := path / "model.onnx").is_file():
        return file
    if (path / "config.json").is_file():
        raise BundleError(f"{path} has no model.onnx yet: `mlimages export {path}` makes one")
    raise BundleError(f"{path} is a folder without model.onnx: give MODEL.onnx or a run folder of `mlimages finetune`")


@dataclass(frozen=True, slots=True)
class ParityProbe:
    """A small image with the logits that the file must give for it.

    Attributes:
        width, height: of the image, in pixels.
        pixels: RGB, row by row, `height * width * 3` bytes.
        logits: one per class.
        tolerance: greatest difference of a logit, relative to the largest.
    """

    width: int
    height: int
    pixels: bytes
    logits: tuple[float, ...]
    tolerance: float = 5e-3


@dataclass(frozen=True, slots=True)
class Parity:
    """The file's predictions compared with the trained network's on the validation images.

    Attributes:
        count: images compared.
        near_ties: images whose two best classes are within 1e-4 and swapped.
        worst: greatest difference of a logit, relative to that image's largest.
    """

    count: int
    near_ties: int
    worst: float


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a file was made and measured; unknown values are empty.

    Attributes:
        created: date and time, ISO 8601, UTC.
        weights_sha256, data_sha256: of the checkpoint, and of each label file by split name.
        split_sizes: images by split name.
        class_counts: the same by class number.
        licenses: images by the license that `gather` recorded; empty where it recorded none.
        command: what makes the run again.
        accuracy: on validation images: share, and its 95 % interval.
        accuracy_count: how many images that is.
        calibration_error: expected calibration error (0..1) before and after the temperature was fitted.
        quantization: one row per trial: name, accuracy, images per second, bytes.
        versions: of the packages that made the file.
        target: the runtime that the file is for.
        target_parity: the same comparison in that runtime; None where it is ONNX Runtime, or was not installed.
    """

    created: str = ""
    weights_sha256: str = ""
    data_sha256: Mapping[str, str] = field(default_factory=dict)
    split_sizes: Mapping[str, int] = field(default_factory=dict)
    class_counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    licenses: Mapping[str, int] = field(default_factory=dict)
    command: str = ""
    accuracy: tuple[float, float, float] | None = None
    accuracy_count: int = 0
    parity: Parity | None = None
    calibration_error: tuple[float, float] | None = None
    quantization: tuple[Mapping[str, str | float], ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    target: Target = "onnxruntime"
    target_parity: Parity | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What the output `known` means: an image is known where it is at least 0.5.

    Attributes:
        share: share (0..1) of the validation images that are known.
        count: how many validation images that is measured on.
    """

    share: float
    count: int


@dataclass(frozen=True, slots=True)
class PredictionSets:
    """Sets of classes that hold the true one with a given probability.

    Attributes:
        source: what the thresholds are from: `leave-one-out` on the training images, or `validation`.
        count: number of those images.
        thresholds: by level ("0.9"): a set holds the classes whose softmax of the logits is at least this.
    """

    source: str
    count: int
    thresholds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class OnnxBundle:
    """The metadata of one .onnx file.

    Attributes:
        path: the file.
        class_names: by class number.
        preprocessing: from an upright RGB image to the network's input.
        model: the network's name.
        probe: checked whenever the file is opened to predict.
        includes_preprocessing: the graph takes uint8 RGB `(N, H, W, 3)` of any size; otherwise preprocessed
            and normalised float32 `(N, C, H, W)`.
        exact_resize: the graph's resize is Pillow's to the bit.
        temperature: divisor of the logits before the softmax.
        unknown_below: an image whose best probability is below this is "unknown".
        known: what the graph's output `known` means; None where it has none.
        prediction_sets: their thresholds; None where they are not known.
    """

    path: Path
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    model: str
    probe: ParityProbe = field(repr=False)
    includes_preprocessing: bool = True
    exact_resize: bool = False
    temperature: float = 1.0
    unknown_below: float = 0.0
    known: Known | None = None
    prediction_sets: PredictionSets | None = None
    provenance: Provenance = field(default=Provenance(), repr=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> OnnxBundle:
        """Read a file's metadata.

        Args:
            path: an .onnx file, or a run folder.

        Raises:
            BundleError: there is no such file, or mlimages did not export it.

        Example:
            >>> OnnxBundle.read("runs/first/model.onnx").class_names
            ('cats', 'dogs')
        """
        path = model_file(path)
        return cls.from_metadata(path, read_metadata(path, open_session(path, threads=1)))

    @classmethod
    def from_metadata(cls, path: Path, metadata: Mapping[str, str]) -> OnnxBundle:
        """Parse the metadata of the file at `path`.

        Raises:
            BundleError: mlimages did not write it.
        """
        text = metadata.get("mlimages")
        if text is None:
            raise BundleError(f"{path} has no mlimages metadata: make one with `mlimages export RUN -o NAME.onnx`")
        try:
            values = json.loads(text)
            if values.pop("v") != VERSION:
                raise BundleError(f"{path} was made by another version of mlimages: export it again with this one")
            return cls(path=path, **_from_json(values))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BundleError(f"{path} has damaged mlimages metadata ({error}): export it again") from error

    def to_json(self) -> str:
        """Everything except the path, as JSON, as it is stored in the file."""
        values = dataclasses.asdict(self)
        del values["path"]
        values["probe"]["pixels"] = base64.b64encode(self.probe.pixels).decode()
        return json.dumps({"v": VERSION, **values}, sort_keys=True)

    def write(self, source: Path, *, overwrite: bool = False) -> None:
        """Write `source`'s network with this bundle's metadata to `self.path` (they may be one file).

        Args:
            source: an .onnx file.
            overwrite: replace another file that mlimages did not write, or that was changed since.

        Raises:
            InputError: there is such a file.
        """
        metadata = {"mlimages": self.to_json(), **self._for_other_tools()}
        with outputs([self.path] if self.path != source else [], overwrite=overwrite):
            write_metadata(source, self.path, metadata)

    def _for_other_tools(self) -> dict[str, str]:
        """The ONNX standard's image keys (docs/MetadataProps.md), and those that Ultralytics reads."""
        if not self.includes_preprocessing:  # none of them can say how its input is normalised
            return {}
        image = self.preprocessing.image
        return {
            "Image.BitmapPixelFormat": "Rgb8",
            "Image.ColorSpaceGamma": "SRGB",
            "Image.NominalPixelRange": "NominalRange_0_255",
            "names": str(dict(enumerate(self.class_names))),
            "imgsz": str([image.height, image.width]),
            "task": "classify",
        }


def _from_json(values: dict[str, Any]) -> dict[str, Any]:
    probe, provenance = values["probe"], values["provenance"]
    for key in ("parity", "target_parity"):
        provenance[key] = Parity(**provenance[key]) if provenance.get(key) else None
    probe["pixels"] = base64.b64decode(probe["pixels"])
    if len(probe["pixels"]) != probe["width"] * probe["height"] * 3:
        raise ValueError("the probe image does not match its declared width and height")
    values["probe"] = ParityProbe(**{**probe, "logits": tuple(probe["logits"])})
    for key in ("accuracy", "calibration_error", "quantization"):
        provenance[key] = None if provenance[key] is None else tuple(provenance[key])
    counts = provenance.get("class_counts", {})
    provenance["class_counts"] = {name: tuple(each) for name, each in counts.items()}
    values["provenance"] = Provenance(**provenance)
    for key, kind in (("known", Known), ("prediction_sets", PredictionSets)):
        values[key] = kind(**values[key]) if values.get(key) else None
    values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
    values["class_names"] = tuple(map(str, values["class_names"]))
    return values
