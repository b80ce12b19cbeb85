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

from mlimages.core import (
    BundleError,
    Preprocessing,
    TargetRuntime,
    atomic_write,
    format_command,
    require_local_path,
    summarize_error,
    write_output,
)
from mlimages.inference.onnx_file import copy_with_metadata, open_session, read_metadata
from mlimages.inference.tasks import MultiLabel, SingleLabel, Task

METADATA_VERSION = 1
"""Version of the JSON under the metadata key `mlimages`."""

INPUT, LOGITS, PROBABILITIES, KNOWN = "image", "logits", "probabilities", "known"
"""Names of the graph's input and outputs; `known` is the in-distribution score, 0..1 (`InDistributionCalibration`)."""

_JSON_KEYS = {
    "num_images": "count",
    "num_near_ties": "near_ties",
    "max_relative_difference": "worst",
    "num_evaluated_images": "accuracy_count",
    "parity_test_image": "probe",
}
"""JSON keys of the attributes whose JSON key differs from their name."""


def external_data_path(onnx_path: Path) -> Path:
    """Return the path of the external data of an .onnx file: the file with its weights, if these exceed 2 GB."""
    return onnx_path.with_name(f"{onnx_path.name}.data")


def measure_model_size(onnx_path: Path) -> int:
    """Return the size of an .onnx file and its external data in bytes."""
    return sum(file.stat().st_size for file in (onnx_path, external_data_path(onnx_path)) if file.exists())


def find_model_file(model: str | os.PathLike[str]) -> Path:
    """Return the path of an .onnx file, given the file itself or a run folder.

    Raises:
        BundleError: `model` is a folder without `model.onnx`, or a .safetensors file.
        InputError: `model` is empty, or an fsspec address.
    """
    path = require_local_path(model)
    if path.suffix == ".safetensors":
        raise BundleError(f"{path} contains weights, not an exported model: use the run folder {path.parent}")
    if not path.is_dir():
        return path
    if (file := path / "model.onnx").is_file():
        return file
    if (path / "config.json").is_file():
        raise BundleError(f"{path} has no model.onnx yet: create it with {format_command('export', path)}")
    raise BundleError(f"{path} is a folder without model.onnx: use MODEL.onnx or a run folder of `mlimages finetune`")


@dataclass(frozen=True, slots=True)
class ParityTestImage:
    """A small image and the logits that the exported model must return for it.

    Attributes:
        width, height: size of the image in pixels.
        pixels: RGB, row by row, `height * width * 3` bytes.
        logits: one per class.
        tolerance: largest accepted difference of a logit, relative to the largest absolute logit.
    """

    width: int
    height: int
    pixels: bytes
    logits: tuple[float, ...]
    tolerance: float = 5e-3


@dataclass(frozen=True, slots=True)
class ParityResult:
    """Comparison of the outputs of the exported model with those of the trained network on the validation images.

    Attributes:
        num_images: number of images compared.
        num_near_ties: number of images for which the model and the network predict different classes because of a near
            tie: the probabilities of the two classes, or a probability and its threshold, differ by at most 1e-4.
        max_relative_difference: largest difference of a logit, relative to the largest absolute logit of that image.
    """

    num_images: int
    num_near_ties: int
    max_relative_difference: float


@dataclass(frozen=True, slots=True)
class Provenance:
    """Origin and evaluation of an exported model; unknown values are empty.

    Attributes:
        created: date and time, ISO 8601, UTC.
        weights_sha256: hash of the checkpoint.
        data_sha256: for each split, the hash of its label file.
        split_sizes: for each split, the number of its images.
        class_counts: for each split, the number of images of each class, in the order of the class indices.
        licenses: for each licence that `gather` recorded, the number of images; empty without such records.
        command: command line that reproduces the run.
        accuracy: accuracy on the validation images, or the calibration images of a quantized file, with the bounds of
            its 95 % interval.
        num_evaluated_images: number of images that `accuracy` or `mean_ap` was measured on.
        num_in_splits: for a quantized file, how many of the `num_evaluated_images` images are in the training set of
            the run, and how many in its validation set; None if unknown.
        mean_ap: mean average precision of a multi-label file, in place of the accuracy, with the bounds of its 95 %
            interval.
        parity: comparison of the outputs in ONNX Runtime with those of the network; None for a quantized file.
        calibration_error: expected calibration error (0..1) before and after temperature scaling.
        quantization: for each variant that `quantize` measured, the values of `VariantTrial.to_dict`.
        versions: versions of the packages that wrote the file.
        target: the runtime that the file was exported for.
        target_parity: comparison of the outputs in the runtime `target` with those of the network; None if the target
            is ONNX Runtime, or was not installed.
    """

    created: str = ""
    weights_sha256: str = ""
    data_sha256: Mapping[str, str] = field(default_factory=dict)
    split_sizes: Mapping[str, int] = field(default_factory=dict)
    class_counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    licenses: Mapping[str, int] = field(default_factory=dict)
    command: str = ""
    accuracy: tuple[float, float, float] | None = None
    num_evaluated_images: int = 0
    num_in_splits: tuple[int, int] | None = None
    mean_ap: tuple[float, float, float] | None = None
    parity: ParityResult | None = None
    calibration_error: tuple[float, float] | None = None
    quantization: tuple[Mapping[str, str | float], ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    target: TargetRuntime = "onnxruntime"
    target_parity: ParityResult | None = None

    @property
    def evaluated_set(self) -> str:
        """The images that the score was measured on: "calibration" for a quantized file, otherwise "validation"."""
        return "calibration" if self.quantization else "validation"


@dataclass(frozen=True, slots=True)
class InDistributionCalibration:
    """Calibration of the model's output `known`, the in-distribution score: high for images like the training images.

    An image counts as in-distribution if its score is at least 0.5.

    Attributes:
        share: expected share (0..1) of new images like the validation images that count as in-distribution. Training
            scales the score so that this share is 0.95. In a quantized file, it is the share measured on the
            calibration images, unless these are too few.
        count: number of validation images from which the scale was computed, or of calibration images on which the
            share was measured.
    """

    share: float
    count: int


@dataclass(frozen=True, slots=True)
class PredictionSetThresholds:
    """Thresholds of prediction sets, which include the true class with a given probability.

    Attributes:
        source: `leave-one-out` if the thresholds were computed from leave-one-out predictions of the training images,
            `validation` if they were computed from predictions of the validation images, `calibration` from those of
            the images passed to `quantize` that were not used for training.
        count: number of images that the thresholds were computed from.
        thresholds: for each coverage level ("0.9"), the minimum softmax probability of the classes in the set.
    """

    source: str
    count: int
    thresholds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class OnnxBundle:
    """The path and the metadata of one .onnx file; the network itself is not loaded.

    Attributes:
        path: the file.
        class_names: class names by class index.
        preprocessing: preprocessing of an upright RGB image for the network.
        model: the network's name.
        parity_test_image: an image and its logits, which the file must reproduce whenever it is opened for prediction.
        includes_preprocessing: whether the graph preprocesses images. If so, the input is uint8 RGB `(N, H, W, 3)` of
            any size; if not, it is preprocessed and normalized float32 `(N, C, H, W)`.
        exact_resize: whether the graph's resize is bit-identical to Pillow's.
        temperature: divides the logits before the softmax.
        unknown_below: an image whose highest probability is below this threshold is predicted as unknown.
        known: calibration of the output `known` (the in-distribution score); None if the graph has no such output.
        prediction_sets: thresholds of prediction sets; None if unknown.
        multi_label: whether an image may have any number of classes; probabilities are then the sigmoid of the logits.
        thresholds: for a multi-label model, the minimum probability at which each class is predicted.
        provenance: origin and evaluation of the file.
    """

    path: Path
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    model: str
    parity_test_image: ParityTestImage = field(repr=False)
    includes_preprocessing: bool = True
    exact_resize: bool = False
    temperature: float = 1.0
    unknown_below: float = 0.0
    known: InDistributionCalibration | None = None
    prediction_sets: PredictionSetThresholds | None = None
    multi_label: bool = False
    thresholds: tuple[float, ...] = ()
    provenance: Provenance = field(default=Provenance(), repr=False)

    @property
    def task(self) -> Task:
        """The task of the model, which defines its probabilities and scores: single-label or multi-label."""
        return MultiLabel(self.thresholds) if self.multi_label else SingleLabel()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> OnnxBundle:
        """Read a file's metadata.

        Args:
            path: an .onnx file, or a run folder.

        Raises:
            BundleError: there is no such file, it cannot be read, or this version of mlimages did not export it.

        Example:
            >>> OnnxBundle.read("runs/first/model.onnx").class_names
            ('cats', 'dogs')
        """
        path = find_model_file(path)
        return cls.from_metadata(path, read_metadata(path, open_session(path)))

    @classmethod
    def from_metadata(cls, path: Path, metadata: Mapping[str, str]) -> OnnxBundle:
        """Parse the metadata of the file at `path`.

        Raises:
            BundleError: the metadata are missing, damaged, or from another version of mlimages.
        """
        text = metadata.get("mlimages")
        if text is None:
            raise BundleError(f"{path} has no mlimages metadata: create a file with `mlimages export RUN -o NAME.onnx`")
        try:
            values = json.loads(text)
            if values.pop("v") != METADATA_VERSION:
                raise BundleError(f"{path} is from another version of mlimages: export it again with this version")
            return cls(path=path, **_parse_json_values(values))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BundleError(
                f"{path} has damaged mlimages metadata ({summarize_error(error)}): export it again"
            ) from error

    def to_json(self) -> str:
        """Return the metadata as the JSON text stored in the file; the path is not part of it."""
        values = dataclasses.asdict(
            self, dict_factory=lambda items: {_JSON_KEYS.get(name, name): x for name, x in items}
        )
        del values["path"]
        if not self.multi_label:  # earlier versions read files with one class per image
            del values["multi_label"], values["thresholds"], values["provenance"]["mean_ap"]
        if self.provenance.num_in_splits is None:  # only in quantized files
            del values["provenance"]["num_in_splits"]
        values["probe"]["pixels"] = base64.b64encode(self.parity_test_image.pixels).decode()
        return json.dumps({"v": METADATA_VERSION, **values}, sort_keys=True)

    def write(self, source: Path, *, overwrite: bool = False) -> None:
        """Write the network of `source` with this bundle's metadata to `self.path`, which may be `source` itself.

        Args:
            source: an .onnx file.
            overwrite: replace a file that mlimages did not write, or that was changed since.

        Raises:
            InputError: the file exists, was not written by mlimages or was changed since, and `overwrite` is false.
        """
        metadata = {"mlimages": self.to_json(), **self._make_interoperability_metadata()}
        # a file that is updated in place is recorded when it is moved to its final folder
        writing = atomic_write(self.path) if self.path == source else write_output(self.path, overwrite=overwrite)
        with writing as part:
            copy_with_metadata(source, part, metadata)

    def _make_interoperability_metadata(self) -> dict[str, str]:
        """Return the metadata for other tools: ONNX's standard keys for images (docs/MetadataProps.md of the
        repository onnx/onnx), and the keys of Ultralytics."""
        if not self.includes_preprocessing:  # no such key describes the normalization of the input
            return {}
        image = self.preprocessing.image
        return {
            "Image.BitmapPixelFormat": "Rgb8",
            "Image.ColorSpaceGamma": "SRGB",
            "Image.NominalPixelRange": "NominalRange_0_255",
            "names": str(dict(enumerate(self.class_names))),
            "imgsz": str([image.height, image.width]),
            **({} if self.multi_label else {"task": "classify"}),
        }


def _rename_json_keys(json_values: Mapping[str, Any]) -> dict[str, Any]:
    """Rename JSON keys to the names of the attributes."""
    names = {key: name for name, key in _JSON_KEYS.items()}
    return {names.get(key, key): value for key, value in json_values.items()}


def _parse_json_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `OnnxBundle` except `path`, from the JSON values stored in the file."""
    values, provenance = _rename_json_keys(values), _rename_json_keys(values["provenance"])
    for key in ("parity", "target_parity"):
        provenance[key] = ParityResult(**_rename_json_keys(provenance[key])) if provenance.get(key) else None
    image = values["parity_test_image"]
    image["pixels"] = base64.b64decode(image["pixels"])
    width, height, num_bytes = image["width"], image["height"], len(image["pixels"])
    if width < 1 or num_bytes != width * height * 3:
        raise ValueError(f"the parity test image is {width} x {height} px but has {num_bytes} bytes of pixels")
    values["parity_test_image"] = ParityTestImage(**{**image, "logits": tuple(image["logits"])})
    for key in ("accuracy", "calibration_error", "quantization", "mean_ap", "num_in_splits"):
        provenance[key] = None if provenance.get(key) is None else tuple(provenance[key])
    counts = provenance.get("class_counts", {})
    provenance["class_counts"] = {name: tuple(each) for name, each in counts.items()}
    values["provenance"] = Provenance(**provenance)
    for key, kind in (("known", InDistributionCalibration), ("prediction_sets", PredictionSetThresholds)):
        values[key] = kind(**values[key]) if values.get(key) else None
    values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
    values["class_names"] = tuple(map(str, values["class_names"]))
    values["thresholds"] = tuple(map(float, values.get("thresholds", ())))
    if values.get("multi_label") and len(values["thresholds"]) != len(values["class_names"]):
        raise ValueError("the number of thresholds differs from the number of classes")
    return values
