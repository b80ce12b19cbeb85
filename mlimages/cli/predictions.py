"""How predictions and their measurement are printed."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from mlimages.core import BrokenImage, Prediction, counted

if TYPE_CHECKING:
    from mlimages.export import Quantization
    from mlimages.inference import Evaluation, OnnxBundle

Results = Iterable[Prediction | BrokenImage]


def as_text(results: Results, *, top: int) -> int:
    """Print a line a picture; return how many were named."""
    good = 0
    for result in results:
        good += isinstance(result, Prediction)
        print(f"{result.path or '-'}: {_words(result)}")
    return good


def as_json(results: Results, *, top: int) -> int:
    """Print one array, an image a line, closed whatever ends it; return how many were named."""
    good = 0
    separator = "\n"
    print("[", end="")
    try:
        for result in results:
            good += isinstance(result, Prediction)
            print(separator, json.dumps(values(result)), sep="", end="")
            separator = ",\n"
    finally:
        print("\n]")
    return good


def as_csv(results: Results, *, top: int) -> int:
    """Print a header and a row a picture; return how many were named."""
    good = 0
    rows = csv.writer(sys.stdout, lineterminator="\n")
    head = ["path", "fault", *(f"{what}_{n}" for n in range(1, top + 1) for what in ("class", "probability"))]
    rows.writerow(head)
    for result in results:
        good += isinstance(result, Prediction)
        cells = [result.path, *_cells(result)]
        rows.writerow([*cells, *[""] * (len(head) - len(cells))])
    return good


def export_notes(bundle: OnnxBundle) -> Iterator[str]:
    """What a person should know of a new file."""
    from mlimages.inference import data_path

    told = bundle.provenance
    if told.parity:
        ties = f", {told.parity.near_ties} near ties aside" if told.parity.near_ties else ""
        yield f"{told.parity.count} validation pictures: the same answers as the network's{ties}"
    if bundle.exact_resize:
        yield "the resize inside is Pillow's to the bit"
    if told.calibration_error:
        before, after = told.calibration_error
        yield f"temperature {bundle.temperature:.3f}: calibration error {before:.3f} before, {after:.3f} after"
    if bundle.unknown_below:
        yield f'under {_percent(bundle.unknown_below)} the answer is "unknown"'
    if (data := data_path(bundle.path)).exists():
        yield f"more than 2 GB of weights: keep {data} beside it"


def evaluation_text(found: Evaluation) -> str:
    """Accuracy, a line a class, and the speed, for people."""
    accuracy = found.accuracy
    width = max(map(len, ("class", *found.class_names)))
    lines = [
        f"accuracy {_percent(accuracy.value)} ({_percent(accuracy.low)} to {_percent(accuracy.high)}) "
        f"on {counted(found.count, 'picture')}",
        f"loss {found.loss:.3f}, calibration error {found.calibration_error:.3f}",
        f"{'class':{width}}  pictures  precision  recall     F1",
    ]
    lines += [
        f"{one.name:{width}}  {one.count:8}  {_percent(one.precision.value):>9}  {_percent(one.recall.value):>6}"
        f"  {_percent(one.f1.value):>6}"
        for one in found.per_class
    ]
    if found.unknown:
        lines.append(f'answered "unknown": {counted(found.unknown, "picture")}')
    if found.broken:
        first = found.broken[0]
        lines.append(f"{counted(len(found.broken), 'picture')} could not be used: {first.path} ({first.fault})")
    decode, network = found.decode_ms, found.network_ms
    lines.append(
        f"{found.images_per_s:.0f} pictures/s; ms a picture (half, 95 %): decode {decode.p50:.1f}, {decode.p95:.1f}; "
        f"network {network.p50:.1f}, {network.p95:.1f}"
    )
    return "\n".join(lines)


def quantization_text(found: Quantization) -> str:
    """A line a trial, and what came of it, for people."""
    lines = [f"{'form':20}  accuracy  pictures/s      MB"]
    lines += [
        f"{trial.name:20}  {_percent(trial.accuracy):>8}  {trial.images_per_s:10.1f}  {trial.size_bytes / 1e6:6.1f}"
        for trial in found.trials
    ]
    lines.append(f"measured on {counted(found.count, 'picture')} and one core of this machine")
    lines.append(f"written: {found.chosen.name}" if found.chosen else "none is faster within the drop: nothing written")
    return "\n".join(lines)


def _words(result: Prediction | BrokenImage) -> str:
    if isinstance(result, BrokenImage):
        return f"broken, {result.fault}: {result.detail}"
    named = ", ".join(f"{score.class_name} {_percent(score.probability)}" for score in result.top)
    return named if result.known else f"unknown (nearest: {named})"


def values(result: Prediction | BrokenImage) -> dict[str, object]:
    """One result as JSON has it."""
    if isinstance(result, BrokenImage):
        return asdict(result)
    return {"path": result.path, "class_name": result.class_name if result.known else None, **asdict(result)}


def _cells(result: Prediction | BrokenImage) -> list[object]:
    if isinstance(result, BrokenImage):
        return [result.fault]
    pairs = [cell for score in result.top for cell in (score.class_name, f"{score.probability:.6f}")]
    return ["" if result.known else "unknown", *pairs]


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"
