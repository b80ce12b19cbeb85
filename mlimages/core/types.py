"""Value types that are passed between packages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from mlimages.core.codes import Fault, Reason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Device = Literal["auto", "cpu", "cuda", "mps"]

DEFAULT_MODEL = "efficientnet_lite0"
"""The network whose pretrained weights are installed with mlimages."""

TargetRuntime = Literal["onnxruntime", "openvino", "tensorrt", "opencv", "web"]
"""Runtime for which a model is exported; web is onnxruntime-web in a browser."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image to download: its URL, its class and the provider's metadata.

    Attributes:
        url: URL of the image.
        label: the class, and the folder to store it in; `/` creates nested folders.
        source: the provider's metadata (photographer, licence, wnid ...), copied into the manifest.
        name: file name without suffix; by default the last part of the URL.
        load: returns the bytes of an image that is read from elsewhere, such as a member of an archive; None if the
            image is requested by its URL.
        is_api: the URL belongs to the provider's documented API, to which robots.txt does not apply.
    """

    url: str
    label: str
    source: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    load: Callable[[], Awaitable[bytes]] | None = field(default=None, repr=False, compare=False)
    is_api: bool = False


@dataclass(frozen=True, slots=True)
class FetchResult:
    """The result of one link: a row of the manifest.

    Attributes:
        url, label: URL and class of the link.
        status: `ok` (stored at `path`), `duplicate` (of the file at `same_as`), `placeholder` (an image that a host
            returns for missing ones; one copy is stored at `path`) or `failed` (see `reason`).
        final: whether the link is finished; False if the same command requests it again, since the network, the host or
            this machine failed.
        reason: why the link yields no image, if `status` is `placeholder` or `failed`; None otherwise.
        removed: `user` if the user has deleted the file at `path`, which is then not downloaded again; None otherwise.
        detail: further information on the result, in words.
        path: path of the stored file relative to the output folder, with `/`.
        final_url, http_status: URL after redirects, and status of the last response.
        bytes, sha256: size and hash of the stored file (of the downloaded one if none was stored).
        dhash: 64-bit difference hash, 16 hexadecimal digits.
        format: image format as named by Pillow, such as `JPEG`.
        width, height: size of the stored image in pixels.
        orientation: EXIF value 1..8 (1: upright).
        same_as: path of the image of which this is a duplicate, or a near-duplicate if `status` is `ok`.
        attempts: number of requests. If the rules of the site forbid a request, it counts although it is not sent.
        elapsed_s: duration of the download in seconds, including retries and waiting for the host.
        fetched_at: time of the last request, UTC in ISO 8601.
        source: metadata from the list or the provider.
    """

    url: str
    label: str
    status: Literal["ok", "duplicate", "placeholder", "failed"]
    reason: Reason | None = None
    final: bool = True
    removed: Literal["user"] | None = None
    detail: str = ""
    path: str | None = None
    final_url: str | None = None
    http_status: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    dhash: str | None = None
    format: str | None = None
    width: int | None = None
    height: int | None = None
    orientation: int | None = None
    same_as: str | None = None
    attempts: int = 0
    elapsed_s: float = 0.0
    fetched_at: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GatherSummary:
    """The state of an output folder after a run of `gather`.

    Attributes:
        out: the output folder.
        ok, duplicate, failed: number of links with this result, in this run and earlier runs into this folder. `failed`
            includes placeholders.
        near_duplicate: number of `ok` images that are near-duplicates of another image.
        conflicting: number of duplicates whose link has another class than the image that was kept.
        changed: number of `ok` images that the user edited after the download; the edited files are kept.
        moved: number of images that this run moved, since the list now gives another class.
        unmoved: number of images that stay where they are because they were edited or moved by hand, although the
            list now gives another class.
        removed: number of images deleted by hand since they were gathered; not part of `ok`.
        open: number of unfinished links: the `failed` ones that the same command requests again, because the network or
            the host failed.
        fetched: number of links that this run tried, whether or not they yielded an image.
        reasons: number of failed links by reason, most frequent first.
        classes: number of stored images by class.
        hosts: number of failed links by host, in descending order; only the hosts with the most failed links.
        seconds: duration of this run in seconds.
        waits_s: by host, the seconds after the end of the run until the next request is possible; only hosts that
            throttle requests for longer than `max_wait_s`.
        renamed: the folders of the classes whose folder has another name, by class; `label` names these classes by
            their folders. Empty for tar shards.
    """

    out: Path
    ok: int
    duplicate: int
    failed: int
    near_duplicate: int
    conflicting: int
    changed: int
    moved: int
    unmoved: int
    removed: int
    open: int
    fetched: int
    reasons: Mapping[str, int]
    classes: Mapping[str, int]
    hosts: Mapping[str, int]
    seconds: float
    waits_s: Mapping[str, float] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON types, as printed by `--json`."""
        return {**asdict(self), "out": str(self.out)}


class Embedder(Protocol):
    """Computes features of images; `mlimages.training.embedder()` returns one."""

    def __call__(self, paths: Sequence[Path]) -> NDArray[np.float32]:
        """Return the features of each image, float32 `(N, D)`; zeros for an image that cannot be decoded."""


@dataclass(frozen=True, slots=True)
class LabeledPath:
    """One line of a label file: an image's path and its class index.

    Attributes:
        path: path of the image.
        label: class index; -1 in a multi-label file.
        labels: the sorted class indices, which may be empty, in a multi-label file; None in any other.
    """

    path: Path
    label: int
    labels: tuple[int, ...] | None = None

    @property
    def class_indices(self) -> tuple[int, ...]:
        """The class indices: `labels`, or `label` alone."""
        return (self.label,) if self.labels is None else self.labels

    def renumber_classes(self, to_new_index: Callable[[int], int]) -> LabeledPath:
        """Return a copy in which each class index is replaced by `to_new_index(index)`."""
        if self.labels is None:
            return LabeledPath(self.path, to_new_index(self.label))
        return LabeledPath(self.path, -1, tuple(sorted(map(to_new_index, self.labels))))


@dataclass(frozen=True, slots=True)
class BrokenImage:
    """An image that cannot be used.

    Attributes:
        path: path of the image; empty for bytes and arrays.
        fault: code of the reason.
        detail: the cause that the decoder or the system reported.
        class_name, probability: always None, so that predictions and broken images can be read in the same way.
    """

    path: str
    fault: Fault
    detail: str
    class_name: ClassVar[None] = None
    probability: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class ClassScore:
    """A class and its predicted probability.

    Attributes:
        class_name: name of the class.
        label: class index.
        probability: predicted probability, 0..1.
    """

    class_name: str
    label: int
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one image: classes in descending order of probability.

    Attributes:
        path: path of the image; empty for bytes and arrays.
        top: the most probable classes, in descending order of probability.
        known: whether the image seems to belong to one of the classes: `known_score` is at least 0.5, and the highest
            probability reaches the model's threshold. If the model has only one of score and threshold, only
            this one is checked; None if it has neither.
        known_score: how much the image resembles the training images, the model's output `known` (0..1); None if the
            model has no such output.
        prediction_set: classes that include the true class in at least 90 % of cases, most probable first; None if the
            model has no threshold for prediction sets.
        labels: all classes whose probability reaches the threshold of the class, most probable first; None if the model
            assigns one class to each image.
    """

    path: str
    top: tuple[ClassScore, ...]
    known: bool | None = None
    known_score: float | None = None
    prediction_set: tuple[str, ...] | None = None
    labels: tuple[ClassScore, ...] | None = None

    @property
    def class_name(self) -> str:
        """Name of the most probable class."""
        return self.top[0].class_name

    @property
    def probability(self) -> float:
        """Probability of the most probable class (0..1)."""
        return self.top[0].probability
