"""Describe a run's dataset in Croissant 1.1 (https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html)."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from mlimages.core import as_path, pluralize, write_output
from mlimages.labels import LabelFile
from mlimages.reports.cards import read_image_licenses
from mlimages.reports.run_folder import RunFolder

_CROISSANT_TERMS = (
    "citeAs column equivalentProperty extract field fileProperty fileObject fileSet format includes "
    "isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace "
    "samplingRate separator source subField transform"
)
"""Terms of Croissant that its standard JSON-LD context maps to the namespace `cr`."""

_JSON_LD_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "sc": "https://schema.org/",
    **{name: f"cr:{name}" for name in _CROISSANT_TERMS.split()},
}


def write_croissant(run: RunFolder, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Describe a run's dataset in the Croissant format (JSON-LD): label files, class counts, licences of the images.

    Raises:
        InputError: `path` exists, `overwrite` is false, and mlimages did not write it or it was changed since.

    Example:
        >>> from mlimages.reports import read_run
        >>> write_croissant(read_run("runs/first"), "runs/first/croissant.json")
    """
    with write_output(as_path(path), overwrite=overwrite) as part:
        part.write_text(json.dumps(_make_dataset_json(run), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _make_dataset_json(run: RunFolder) -> dict[str, Any]:
    """Return the JSON-LD: label files (by name only), class counts, and licences recorded by `gather`."""
    files = {name: file for name in ("train", "val") if (file := run.path / f"{name}.txt").exists()}
    items = {name: list(LabelFile(file)) for name, file in files.items()}
    counts = {name: Counter(label for item in each for label in item.class_indices) for name, each in items.items()}
    licenses = Counter(read_image_licenses(item.path for each in items.values() for item in each).values())
    total = sum(map(len, items.values()))
    rows = [
        {"classes/label": label, "classes/name": name, **{f"classes/{part}": counts[part][label] for part in counts}}
        for label, name in enumerate(run.class_names)
    ]
    stated = "; ".join(f"{licence}: {pluralize(count, 'image')}" for licence, count in licenses.most_common())
    recorded = [licence for licence in licenses if licence != "not recorded"]
    size = f"{pluralize(total, 'image')} of {pluralize(len(run.class_names), 'class')}"
    description = f"{size}. Licences of the images: {stated or 'not recorded'}."
    return {
        "@context": _JSON_LD_CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": run.path.resolve().name,
        "description": description,
        **({"license": recorded} if recorded else {}),
        "distribution": [_make_file_object(file) for file in files.values()],
        "recordSet": [_make_class_record_set(tuple(files), rows)],
    }


def _make_file_object(path: Path) -> dict[str, str]:
    return {
        "@type": "cr:FileObject",
        "@id": path.name,
        "name": path.name,
        "description": "One image per line: path, white space, class index (or class indices in brackets).",
        "contentUrl": path.name,
        "encodingFormat": "text/plain",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def _make_class_record_set(split_names: tuple[str, ...], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the RecordSet of the classes; each row has the label, the name and the number of images in each split."""
    kinds = {"label": "sc:Integer", "name": "sc:Text", **dict.fromkeys(split_names, "sc:Integer")}
    fields = [
        {"@type": "cr:Field", "@id": f"classes/{name}", "name": f"classes/{name}", "dataType": kind}
        for name, kind in kinds.items()
    ]
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "description": "The classes, and the number of images of each class in each split.",
        "key": {"@id": "classes/label"},
        "field": fields,
        "data": rows,
    }
