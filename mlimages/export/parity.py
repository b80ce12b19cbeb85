"""Whether an exported file answers as the trained network does, picture by picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlimages import images
from mlimages.core import ExportError, ImageError, ImageProperty, LabeledPath, Progress
from mlimages.export.onnx_writer import TrainedNetwork
from mlimages.inference import INPUT, LOGITS, BundleSession, OnnxBundle, Parity, open_session, relative_difference

NEAR_TIE = 1e-4
"""Two probabilities within this may change places."""

TOLERANCE = 1e-3
"""Greatest difference of a logit, relative to the picture's largest, on the same pixels."""

RESIZE_TOLERANCE = 5e-2
"""The same, where the file's own resize may be one level off."""


class ResizeParityError(ExportError):
    """Only the resize inside the file makes it answer otherwise; the exact one will not."""


_Compare = Callable[[Path, NDArray[np.float32]], "_Comparison"]


@dataclass(frozen=True, slots=True)
class Answers:
    """What the trained network says of each picture: `logits[n]`, `(classes,)`, of `items[n]`."""

    items: tuple[LabeledPath, ...]
    logits: NDArray[np.float32]  # (N, classes)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The true class numbers `(N,)`."""
        return np.array([item.label for item in self.items], np.int64)


def network_answers(trained: TrainedNetwork, items: Iterable[LabeledPath], *, progress: Progress) -> Answers:
    """Put every picture that can be read to the trained network."""
    progress.start("network", None, "pictures")
    kept: list[LabeledPath] = []
    logits = [np.empty((0, len(trained.class_names)), np.float32)]
    readable = _readable(items, trained.preprocessing.image)
    while chunk := list(islice(readable, 8)):
        kept += [item for item, _ in chunk]
        logits.append(trained.logits([pixels for _, pixels in chunk]))
        progress.advance(len(chunk))
    progress.close()
    return Answers(tuple(kept), np.concatenate(logits))


def check_parity(trained: TrainedNetwork, bundle: OnnxBundle, answers: Answers, *, progress: Progress) -> Parity:
    """Put the same pictures, whole, to the file (to the bare network: prepared and normalised).

    Raises:
        ResizeParityError: the file differs, but by its own resize alone.
        ExportError: the file differs; the worst picture is named.
    """
    compare = _compare_whole(trained, bundle) if bundle.includes_preprocessing else _compare_bare(trained, bundle)
    progress.start("onnx", len(answers.items), "pictures")
    compared: list[_Comparison] = []
    for item, want in zip(answers.items, answers.logits, strict=True):
        compared.append(compare(item.path, want))
        progress.advance()
    progress.close()
    for error, blamed in ((ExportError, "network"), (ResizeParityError, "resize")):
        refused = [one for one in compared if one.blamed == blamed]
        if refused:
            raise error(max(refused, key=lambda one: one.difference).refusal(trained.class_names))
    worst = max((one.difference for one in compared), default=0.0)
    return Parity(len(compared), sum(one.wanted != one.given for one in compared), worst)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """One picture's answers: the network's class and the file's, and what is to blame where they differ too much."""

    path: Path
    difference: float
    wanted: int
    given: int
    agrees: bool
    blamed: Literal["", "network", "resize"] = ""

    def refusal(self, names: tuple[str, ...]) -> str:
        return (
            f"the ONNX file does not answer as the network does; worst is {self.path}: the network says "
            f"{names[self.wanted]}, the file {names[self.given]}, and a logit differs by {self.difference:.2g} of "
            "the largest; nothing was written"
        )


def _compare_whole(trained: TrainedNetwork, bundle: OnnxBundle) -> _Compare:
    session, prop = BundleSession(bundle, threads=0), trained.preprocessing.image

    def compare(path: Path, want: NDArray[np.float32]) -> _Comparison:
        rgb = images.load_rgb(path)
        got = session.run_raw(np.asarray(rgb)[None])[0][0]  # (classes,)
        whole = _comparison(path, got, want, TOLERANCE)
        if whole.agrees:
            return whole
        prepared = _comparison(path, session.run([images.load_pixels(path, prop)])[0][0], want, TOLERANCE)
        if not prepared.agrees:
            return replace(prepared, blamed="network")
        without_draft = trained.logits([images.prepare(rgb, prop)])[0]  # the file gets the picture decoded in full
        whole = _comparison(path, got, without_draft, RESIZE_TOLERANCE)
        return whole if whole.agrees else replace(whole, blamed="resize")

    return compare


def _compare_bare(trained: TrainedNetwork, bundle: OnnxBundle) -> _Compare:
    session, prop = open_session(bundle.path, threads=0), trained.preprocessing.image

    def compare(path: Path, want: NDArray[np.float32]) -> _Comparison:
        numbers = trained.normalized([images.load_pixels(path, prop)]).numpy()  # (1, C, H, W)
        bare = _comparison(path, session.run([LOGITS], {INPUT: numbers})[0][0], want, TOLERANCE)
        return bare if bare.agrees else replace(bare, blamed="network")

    return compare


def _comparison(path: Path, got: NDArray[np.float32], want: NDArray[np.float32], tolerance: float) -> _Comparison:
    difference = float(relative_difference(got[None], want[None])[0])
    wanted, given = int(want.argmax()), int(got.argmax())
    odds = np.exp(want - want.max())
    gap = float((odds[wanted] - odds[given]) / odds.sum())
    return _Comparison(path, difference, wanted, given, difference <= tolerance and gap <= NEAR_TIE)


def _readable(items: Iterable[LabeledPath], prop: ImageProperty) -> Iterator[tuple[LabeledPath, NDArray[np.uint8]]]:
    for item in items:
        with suppress(ImageError):
            yield item, images.load_pixels(item.path, prop)
