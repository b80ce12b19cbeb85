"""An evaluation as one page that opens offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from mlimages import images
from mlimages.core import Prediction, Share, as_path, counted
from mlimages.inference import Evaluation

SHOWN = 24
"""Mistakes in the gallery, at most."""


def report_html(found: Evaluation, title: str) -> str:
    """One self-contained HTML page."""
    template = Template(
        resources.files("mlimages.reports").joinpath("templates/evaluation.html").read_text(encoding="utf-8")
    )
    accuracy, decode, network = found.accuracy, found.decode_ms, found.network_ms
    summary = (
        f"95 % interval {_percent(accuracy.low)} to {_percent(accuracy.high)}, on {counted(found.count, 'picture')}. "
        f"Calibration error {found.calibration_error:.3f}. {found.unknown} answered “unknown”. "
        f"{found.images_per_s:.0f} pictures per second; "
        f"one takes {decode.p50:.1f} ms to decode (95 %: {decode.p95:.1f}) "
        f"and {network.p50:.1f} ms in the network (95 %: {network.p95:.1f})."
    )
    return template.substitute(
        title=escape(title),
        accuracy=f"{_percent(accuracy.value)} right",
        summary=summary,
        classes="\n".join(_class_rows(found)),
        confusion="\n".join(_confusion_rows(found)),
        mistakes=_gallery(found),
        broken=_list(f"{broken.path}: {broken.fault}, {broken.detail}" for broken in found.broken),
    )


def _class_rows(found: Evaluation) -> Iterable[str]:
    for one in found.per_class:
        shares = "".join(f"<td>{_with_interval(share)}</td>" for share in (one.precision, one.recall, one.f1))
        yield f'<tr><th scope="row">{escape(one.name)}</th><td>{one.count}</td>{shares}</tr>'


def _confusion_rows(found: Evaluation) -> Iterable[str]:
    yield "<tr><td></td>" + "".join(f'<th scope="col">{escape(name)}</th>' for name in found.class_names) + "</tr>"
    for name, row in zip(found.class_names, found.confusion, strict=True):
        total = max(1, sum(row))
        cells = "".join(f'<td style="--share: {count / total:.3f}">{count}</td>' for count in row)
        yield f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


def _gallery(found: Evaluation) -> str:
    if not found.mistakes:
        return "<p>None.</p>"
    figures = (_figure(wrong, found.class_names[label]) for wrong, label in found.mistakes[:SHOWN])
    return f'<div class="gallery">{"".join(figures)}</div>'


def _figure(wrong: Prediction, name: str) -> str:
    said = f"{escape(wrong.class_name)} {_percent(wrong.probability)}, is {escape(name)}"
    path = escape(wrong.path)
    return (
        f'<figure><img src="{_thumbnail(as_path(wrong.path))}" alt="{path}">'
        f"<figcaption>{said}<br>{path}</figcaption></figure>"
    )


def _thumbnail(path: Path) -> str:
    image, out = images.load_rgb(path), io.BytesIO()
    image.thumbnail((320, 320))
    image.save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else "<p>None.</p>"


def _with_interval(share: Share) -> str:
    return f"{_percent(share.value)} <small>{share.low * 100:.0f} to {share.high * 100:.0f}</small>"


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"
