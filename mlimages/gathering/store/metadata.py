"""metadata.jsonl: the columns of the list beside the images, as Hugging Face's `imagefolder` reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from mlimages.core import FetchResult, InputError, demand_free, writing

NAME = "metadata.jsonl"


def demand_free_metadata(folder: Path) -> None:
    """Check that a person's file would not be replaced.

    Raises:
        InputError: metadata.jsonl is there and was not written by mlimages, or was edited since.
    """
    try:
        demand_free([folder / NAME])
    except InputError:
        raise InputError(
            f"{folder / NAME} exists and was not written by mlimages, or was edited since: move it, or leave out "
            "--metadata"
        ) from None


def write_metadata(folder: Path, rows: Iterable[FetchResult]) -> None:
    """Write a line for each of these images: `file_name`, `label`, and what its list or provider says of it.

    Raises:
        InputError: as `demand_free_metadata`.
    """
    demand_free_metadata(folder)
    with writing(folder / NAME) as part, part.open("w", encoding="utf-8") as out:
        for row in rows:
            values = {"file_name": row.path, "label": row.label}
            out.write(json.dumps(values | {**row.source, **values}, default=str) + "\n")
