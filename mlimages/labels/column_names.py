"""Known names of the columns of a table, and hints about its columns."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlimages.labels.split_column import SPLIT_COLUMN_NAMES

PATH_COLUMN_NAMES = (
    "path", "file_name", "filename", "file", "image", "image_path", "img_path", "filepath", "file_path", "filepaths",
    "image_name", "img", "img_name", "image_id", "imageid", "id_code", "image_file", "im_path", "relative_im_path",
    "fname", "id",
)  # fmt: skip
"""Names of path columns, in order of preference."""

LABEL_COLUMN_NAMES = (
    "class_name", "label_name", "labelname", "category_name", "label", "labels", "class", "category", "choice",
    "target", "breed", "species", "diagnosis", "variety", "tag", "tags", "y", "cls", "class_id", "label_id",
    "category_id",
)  # fmt: skip
"""Names of label columns, in order of preference."""

NON_LABEL_COLUMN_NAMES = frozenset({
    "width", "height", "size", "bytes", "url", "md5", "sha256", "dhash", *SPLIT_COLUMN_NAMES,
})  # fmt: skip
"""Names of columns that are never labels, even if there is no other column."""


def normalize_column_name(cell: str) -> str:
    """Return a header cell in the form of the known names: lower case, underscores instead of spaces and hyphens."""
    return re.sub(r"[\s-]+", "_", cell.strip().lower())


def rank_path_column(name: str) -> int:
    """Return the rank of a column name among the known names of path columns: 0 for the best, unknown names last."""
    return PATH_COLUMN_NAMES.index(name) if name in PATH_COLUMN_NAMES else len(PATH_COLUMN_NAMES)


def suggest_table_options(columns: Sequence[str]) -> str:
    """Return a hint that names the options for reading a table, such as --path-column, and lists its columns."""
    names = ", ".join(column or str(number) for number, column in enumerate(columns, start=1))
    return (
        "specify the paths with --path-column, --images DIR or --suffix .png, the labels with --label-column or "
        f"--class-from REGEX (columns: {names})"
    )
