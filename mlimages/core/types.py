"""Frozen values that travel between the rooms."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlimages.core.codes import Fault, Reason

Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One picture wanted: where it is, which class it is for, and what its provider says of it.

    Attributes:
        label: the class, and its folder; `/` makes nested folders.
        source: what the provider says (photographer, licence, wnid ...); it goes into the manifest.
        name: the file name to store under, without suffix; by default the last part of the URL.
        load: gives the bytes where `url` is only a name for them (a member of an archive).
        is_interface: the link belongs to the provider's documented interface, for which robots.txt does not speak.
    """

    url: str
    label: str
    source: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    load: Callable[[], Awaitable[bytes]] | None = field(default=None, repr=False, compare=False)
    is_interface: bool = False


@dataclass(frozen=True, slots=True)
class FetchResult:
    """One finished link: a row of the manifest.

    Attributes:
        status: `ok` (a file lies at `path`), `duplicate` (of the file at `same_as`), `placeholder` (a host's image for
            "gone"; `path` is where one copy was put aside) or `failed` (see `reason`).
        final: False where the same command asks again, since only the network, the host or this machine was at fault.
        removed: `user` where somebody deleted the file at `path`; it is not downloaded again.
        path: of the file, relative to the gathered folder, with `/`.
        bytes, sha256: of the file as stored (of what would have been stored, where nothing was).
        dhash: 64-bit difference hash as 16 hexadecimal digits.
        width, height: as stored, in pixels; `orientation` is the EXIF value 1..8 (1: upright).
        same_as: the path of the picture that this one equals, or nearly equals where `status` is `ok`.
        attempts: requests made. elapsed_s: from the first request to the last byte, pauses included.
        fetched_at: UTC, ISO 8601.
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
    """What lies in a gathered folder after a run, and how long the run took.

    Attributes:
        ok, duplicate, failed: links by outcome, those of earlier runs into this folder included.
        near_duplicate: how many of the `ok` look nearly like another.
        changed: how many of the `ok` somebody changed since they were gathered; they are kept as they are.
        removed: images that somebody deleted since they were gathered; they are not in `ok`.
        open: how many of the `failed` the same command asks for again, since only the network or the host was at fault.
        fetched: links finished by this run.
        reasons: failed links by reason, the commonest first. classes: good pictures by class.
        hosts: the hosts with the most failed links, worst first. seconds: of this run.
    """

    out: Path
    ok: int
    duplicate: int
    failed: int
    near_duplicate: int
    changed: int
    removed: int
    open: int
    fetched: int
    reasons: Mapping[str, int]
    classes: Mapping[str, int]
    hosts: Mapping[str, int]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return {**asdict(self), "out": str(self.out)}


@dataclass(frozen=True, slots=True)
class LabeledPath:
    """One line of a label file: a picture's path and its class number."""

    path: Path
    label: int


@dataclass(frozen=True, slots=True)
class BrokenImage:
    """One picture that could not be used, with its code and what was seen."""

    path: str
    fault: Fault
    detail: str

    @property
    def class_name(self) -> None:
        """None: a loop over results may ask each of them."""
        return

    @property
    def probability(self) -> None:
        """None, as `class_name`."""
        return


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class and its probability (0..1)."""

    class_name: str
    label: int
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the network says of one picture: classes by falling probability.

    Attributes:
        path: as it was given; empty for bytes and arrays.
        known: whether the best probability reaches the threshold stored in the bundle, if any.
    """

    path: str
    top: tuple[ClassScore, ...]
    known: bool = True

    @property
    def class_name(self) -> str:
        """The most probable class."""
        return self.top[0].class_name

    @property
    def probability(self) -> float:
        """The most probable class's probability (0..1)."""
        return self.top[0].probability
