"""Options for reading tables."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Self

from mlimages.core import Option, document_fields


@document_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class TableOptions:
    """Options for reading a table of paths and labels; columns that are not specified are detected."""

    path_column: Annotated[
        str,
        Option("Path column, by name or 1-based number.", "Table", metavar="COLUMN", default_text="detected",
               is_advanced=True),
    ] = ""  # fmt: skip
    label_column: Annotated[
        str,
        Option("Label column, by name or 1-based number. Separate several columns by commas: each contains 0 or 1 for "
               "one class or, with --multi-label, class names.", "Table", metavar="COLUMN",
               default_text="detected", is_advanced=True),
    ] = ""  # fmt: skip
    images: Annotated[
        Path | None,
        Option("Folder that the paths are relative to.", "Table", metavar="DIR", default_text="the table's",
               is_advanced=True),
    ] = None  # fmt: skip
    suffix: Annotated[
        str, Option("Suffix to append to each path, such as .png.", "Table", metavar="SUFFIX", is_advanced=True)
    ] = ""
    class_from: Annotated[
        str,
        Option("Regular expression whose match in the path is the class; if it has a group, the match of the "
               "first group.", "Table", metavar="REGEX", is_advanced=True),
    ] = ""  # fmt: skip

    multi_label: Annotated[
        bool,
        Option("Read any number of classes per image, from cells such as a;b, several label columns, several rows "
               "per image, or copies of an image in several class folders.", "Table"),
    ] = False  # fmt: skip

    @classmethod
    def from_options(cls, options: TableOptions) -> Self:
        """Return only the table options among `options`, such as an instance of `LabelOptions`."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(TableOptions)})

    @property
    def specifies_columns(self) -> bool:
        """Whether the path column or the label column is specified."""
        return bool(self.path_column or self.label_column)
