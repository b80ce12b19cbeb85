"""One .onnx file that knows its classes: what its metadata says."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlimages.core import BundleError, Preprocessing
from mlimages.inference.onnx_metadata import open_session, read_metadata, write_metadata

VERSION = 1
"""Of the JSON under the metadata key `mlimages`."""

INPUT, LOGITS, PROBABILITIES = "image", "logits", "probabilities"
"""Names of the graph's input and outputs."""


def data_path(path: Path) -> Path:
    """The file beside an .onnx file that holds its weights, where they are more than 2 GB."""
    return path.with_name(f"{path.name}.data")


@dataclass(frozen=True, slots=True)
class ParityProbe:
    """A small picture, and the logits that the file must give for it.

    Attributes:
        width, height: of the picture, in pixels.
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
    """How the file's answers compared with the trained network's on the validation pictures.

    Attributes:
        count: pictures compared.
        near_ties: pictures whose two best classes were within 1e-4, and changed places.
        worst: greatest difference of a logit, relative to that picture's largest.
    """

    count: int
    near_ties: int
    worst: float


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a bundle comes from and how it was judged; what is not known is empty.

    Attributes:
        created: date and time, ISO 8601, UTC.
        weights_sha256, data_sha256: of the checkpoint, and of each label file by split name.
        split_sizes: pictures by split name.
        accuracy: on validation pictures: share, and its 95 % interval.
        accuracy_count: how many pictures that is.
        calibration_error: expected calibration error (0..1) before and after the temperature was fitted.
        quantization: what was tried, a row each: name, accuracy, pictures per second, bytes.
        versions: of the packages that made the file.
    """

    created: str = ""
    weights_sha256: str = ""
    data_sha256: Mapping[str, str] = field(default_factory=dict)
    split_sizes: Mapping[str, int] = field(default_factory=dict)
    accuracy: tuple[float, float, float] | None = None
    accuracy_count: int = 0
    parity: Parity | None = None
    calibration_error: tuple[float, float] | None = None
    quantization: tuple[Mapping[str, str | float], ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OnnxBundle:
    """What one .onnx file says of itself.

    Attributes:
        path: the file.
        class_names: by class number.
        preprocessing: from an upright RGB picture to the network's numbers.
        model: the network's name.
        probe: checked whenever the file is opened to predict.
        includes_preprocessing: the graph takes uint8 RGB `(N, H, W, 3)` of any size; else it takes float32
            `(N, C, H, W)`, prepared and normalised.
        exact_resize: the graph's resize is Pillow's to the bit.
        temperature: what the logits are divided by before the softmax.
        unknown_below: a best probability under this is answered "unknown".
    """

    path: Path
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    model: str
    probe: ParityProbe
    includes_preprocessing: bool = True
    exact_resize: bool = False
    temperature: float = 1.0
    unknown_below: float = 0.0
    provenance: Provenance = Provenance()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> OnnxBundle:
        """What the file says of itself.

        Raises:
            BundleError: there is no such file, or it is no bundle of ours.
        """
        path = Path(path)
        return cls.from_metadata(path, read_metadata(path, open_session(path, threads=1)))

    @classmethod
    def from_metadata(cls, path: Path, metadata: Mapping[str, str]) -> OnnxBundle:
        """What the metadata of the file at `path` says.

        Raises:
            BundleError: it is no bundle of ours.
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
        """All that it says of itself but its path, as it stands in the file."""
        values = dataclasses.asdict(self)
        del values["path"]
        values["probe"]["pixels"] = base64.b64encode(self.probe.pixels).decode()
        return json.dumps({"v": VERSION, **values}, sort_keys=True)

    def write(self, source: Path) -> None:
        """Write `source`'s network with this bundle's metadata to `self.path` (they may be one file)."""
        write_metadata(source, self.path, {"mlimages": self.to_json(), **self._for_other_tools()})

    def _for_other_tools(self) -> dict[str, str]:
        """The ONNX standard's image keys (docs/MetadataProps.md), and those that Ultralytics reads."""
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
    if provenance["parity"] is not None:
        provenance["parity"] = Parity(**provenance["parity"])
    probe["pixels"] = base64.b64decode(probe["pixels"])
    if len(probe["pixels"]) != probe["width"] * probe["height"] * 3:
        raise ValueError("the probe's picture has another size")
    values["probe"] = ParityProbe(**{**probe, "logits": tuple(probe["logits"])})
    for key in ("accuracy", "calibration_error", "quantization"):
        provenance[key] = None if provenance[key] is None else tuple(provenance[key])
    values["provenance"] = Provenance(**provenance)
    values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
    values["class_names"] = tuple(map(str, values["class_names"]))
    return values
