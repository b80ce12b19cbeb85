"""What an exported file says of itself, in lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mlimages.core import BundleError, counted
from mlimages.inference import BundleSession, OnnxBundle


def bundle_notes(path: Path, metadata: Mapping[str, str]) -> Iterator[str]:
    """Classes, pictures, figures, origin and parity probe of a file; the probe is run."""
    try:
        bundle = OnnxBundle.from_metadata(path, metadata)
    except BundleError:
        yield "no mlimages metadata: classes and preprocessing are not known"
        return
    yield from _network(bundle)
    yield from _figures(bundle)
    yield from _origin(bundle)
    others = sorted(metadata.keys() - {"mlimages"})
    yield f"for other tools: {', '.join(others)}"
    yield f"probe: {_probe(bundle)}"


def _network(bundle: OnnxBundle) -> Iterator[str]:
    image, names = bundle.preprocessing.image, bundle.class_names
    more = " ..." if len(names) > 8 else ""
    yield f"network: {bundle.model}, {len(names)} classes: {', '.join(names[:8])}{more}"
    size = f"{image.width} x {image.height} px" + (", grey" if image.gray_scale else "")
    way = f"shorter side to {image.shorter_px} px, centre" if image.resize == "shorter" else f"{image.resize} to"
    exact = ", Pillow's resize to the bit" if bundle.exact_resize else ""
    yield (
        f"pictures: {way} {size}, "
        + ("done in the graph" if bundle.includes_preprocessing else "to be done before")
        + exact
    )


def _figures(bundle: OnnxBundle) -> Iterator[str]:
    told = bundle.provenance
    if told.accuracy:
        value, low, high = (100 * part for part in told.accuracy)
        yield f"accuracy: {value:.1f} % (95 %: {low:.1f}-{high:.1f}) on {counted(told.accuracy_count, 'picture')}"
    if told.parity:
        ties = f", {told.parity.near_ties} near ties aside" if told.parity.near_ties else ""
        asked = counted(told.parity.count, "picture")
        yield f"parity: {asked} compared{ties}, logits differ by {told.parity.worst:.1e} at most"
    if told.calibration_error:
        before, after = told.calibration_error
        yield f"temperature: {bundle.temperature:.3g}; calibration error {before:.3f} before, {after:.3f} after"
    if bundle.unknown_below:
        yield f"unknown: below {bundle.unknown_below:.3g}"
    for row in told.quantization:
        accuracy, per_s, size = (float(row[key]) for key in ("accuracy", "images_per_s", "size_bytes"))
        yield f"quantization: {row['name']}: accuracy {accuracy:.1%}, {per_s:.1f} pictures/s, {size / 1e6:.1f} MB"


def _origin(bundle: OnnxBundle) -> Iterator[str]:
    told = bundle.provenance
    if told.split_sizes:
        yield "data: " + ", ".join(
            f"{name} {counted(size, 'picture')} (sha256 {told.data_sha256.get(name, '?')[:16]})"
            for name, size in told.split_sizes.items()
        )
    if told.weights_sha256:
        yield f"weights: sha256 {told.weights_sha256[:16]}"
    if told.created:
        versions = ", ".join(f"{name} {version}" for name, version in told.versions.items())
        yield f"made: {told.created}" + (f" with {versions}" if versions else "")


def _probe(bundle: OnnxBundle) -> str:
    probe = bundle.probe
    best = max(range(len(probe.logits)), key=probe.logits.__getitem__)
    wanted = (
        f"a picture of {probe.width} x {probe.height} px must give {bundle.class_names[best]} a logit of "
        f"{probe.logits[best]:.3f}, each logit within {probe.tolerance:.1%}"
    )
    if not bundle.includes_preprocessing:
        return f"{wanted}; not run on a bare network"
    try:
        BundleSession(bundle)
    except BundleError as error:
        return f"{wanted}; FAILS: {error}"
    return f"{wanted}; it does"
