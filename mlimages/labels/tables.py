"""Tables of images and labels: what was understood of one, and its rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated, Self

from mlimages.core import LabelFileError, Option, counted, documented, is_remote
from mlimages.labels.annotations import local_name
from mlimages.labels.class_names import is_number
from mlimages.labels.formats import PATH_LABEL, Record, Row, records, text_delimiters
from mlimages.labels.scanning import PARTS, natural_key
from mlimages.labels.splitting import compiled, found_by

PATH_WORDS = (
    "path", "file_name", "filename", "file", "image", "image_path", "img_path", "filepath", "file_path", "filepaths",
    "image_name", "img", "img_name", "image_id", "id_code", "image_file", "im_path", "relative_im_path", "fname", "id",
)  # fmt: skip
SHOWN = 10


@documented
@dataclass(frozen=True, slots=True, kw_only=True)
class TableOptions:
    """How to read a table of paths and labels; columns that are not given are detected."""

    path_column: Annotated[
        str,
        Option("Column of the paths, by name or number from 1.", "Table", metavar="COLUMN", default_text="detected",
               is_rare=True),
    ] = ""  # fmt: skip
    label_column: Annotated[
        str,
        Option("Column of the labels; several separated by commas are one-hot.", "Table", metavar="COLUMN",
               default_text="detected", is_rare=True),
    ] = ""  # fmt: skip
    images: Annotated[
        Path | None,
        Option("Folder that the paths are relative to.", "Table", metavar="DIR", default_text="the table's",
               is_rare=True),
    ] = None  # fmt: skip
    suffix: Annotated[str, Option("Append this to each path: .png.", "Table", metavar="SUFFIX", is_rare=True)] = ""
    class_from: Annotated[
        str,
        Option("Regular expression whose first group, matched in the path, is the class.", "Table",
               metavar="REGEX", is_rare=True),
    ] = ""  # fmt: skip

    @classmethod
    def of(cls, options: TableOptions) -> Self:
        """These fields of options that have more."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(TableOptions)})

    @property
    def names_columns(self) -> bool:
        """Whether a column is given."""
        return bool(self.path_column or self.label_column)


@dataclass(frozen=True)
class Table:
    """A table as it was understood.

    Attributes:
        path: the file.
        folder: what the paths are relative to.
        delimiter: between the cells.
        columns: names in the header; "" for each column where there is none.
        path_index: column of the paths.
        label_indices: column of the labels, several if they are one-hot, none if `class_from` finds the labels.
        suffix: appended to each path.
        class_from: regular expression that finds the label in the path.
        has_header: the first row holds the names of the columns.
        parents_cut: this many folders at the front of each path are not there.
        part_index: column of the part (train, val, test) that a row is of, if there is one.
    """

    path: Path
    folder: Path
    delimiter: str
    columns: tuple[str, ...]
    path_index: int
    label_indices: tuple[int, ...]
    suffix: str = ""
    class_from: str = ""
    has_header: bool = True
    parents_cut: int = 0
    part_index: int | None = None

    def rows(self) -> Iterator[Row]:
        """The rows in order; those without a path, or without exactly one class, are left out."""
        return (row for row in self._all_rows() if row.path and row.label)

    def _all_rows(self) -> Iterator[Row]:
        expression = compiled(self.class_from) if self.class_from else None
        for record in self._records():
            name = record.cells[self.path_index] if self.path_index < len(record.cells) else ""
            label = found_by(expression, name) if expression else self._label(record)
            yield Row(record.number, name and file_name(name, self.parents_cut) + self.suffix, label or "")

    def _records(self) -> Iterator[Record]:
        return islice(records(self.path, self.delimiter), int(self.has_header), None)

    def _label(self, record: Record) -> str:
        cells = [record.cells[index].strip() if index < len(record.cells) else "" for index in self.label_indices]
        if len(cells) == 1:
            return cells[0]
        chosen = [index for index, cell in zip(self.label_indices, cells, strict=True) if is_one(cell)]
        return self._name(chosen[0]) if len(chosen) == 1 else ""

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The part of the dataset (train, val, test) that each row is of; none where no column says so."""
        if self.part_index is None:
            return ()
        pairs = zip(self._records(), self._all_rows(), strict=True)
        return tuple(part_named(record.cells, self.part_index) for record, row in pairs if row.path and row.label)

    def _name(self, index: int) -> str:
        return self.columns[index] if index < len(self.columns) and self.columns[index] else f"column {index + 1}"

    @property
    def has_numbers(self) -> bool:
        """Whether its labels are class numbers, as in `path number` lines, and no names."""
        return self.delimiter == PATH_LABEL and not self.class_from and all(map(is_number, self.counts.labels))

    @cached_property
    def is_known_form(self) -> bool:
        """Whether it has the columns `path,label`, as we write them ourselves."""
        return [column.lower() for column in self.columns] in (["path", "label"], ["file_name", "label"])

    @cached_property
    def counts(self) -> TableCounts:
        """All rows counted: images that exist, those that are missing, and the labels."""
        labels: dict[str, None] = {}
        count, missing, unlabelled = 0, [], []
        local = not is_remote(self.folder)
        for row in self._all_rows():
            if not (row.path and row.label):
                unlabelled.append(row.number)
                continue
            count += 1
            labels[row.label] = None
            if local and not os.path.isfile(joined(self.folder, row.path)):  # noqa: PTH113  # texts, for every row
                missing.append(row.path)
        return TableCounts(count, tuple(missing), tuple(sorted(labels, key=natural_key)), tuple(unlabelled))

    @property
    def description(self) -> str:
        """What was understood, in one line."""
        counts = self.counts
        where = [f"suffix {self.suffix} added"] * bool(self.suffix)
        where += [f"in {self.folder}"] * (self.folder != self.path.parent)
        where += [f"without {counted(self.parents_cut, 'parent folder')}"] * bool(self.parents_cut)
        image = f"{self._named(self.path_index)} as image" + (f" ({', '.join(where)})" if where else "")
        labels = ", ".join(self._name(index) for index in self.label_indices)
        label = f"{self.class_from!r} in the path" if self.class_from else labels
        label += " (one-hot)" * (len(self.label_indices) > 1)
        part = f", {self._name(self.part_index)} as part" if self.part_index is not None else ""
        found = f"{counts.rows - len(counts.missing):,} of {counts.rows:,} images exist"
        names = ", ".join(counts.labels[:SHOWN]) + " ..." * (len(counts.labels) > SHOWN)
        classes = f"{len(counts.labels)} class{'es' * (len(counts.labels) != 1)}: {names}"
        return f"{self.path}: {image}, {label} as label{part}; {found}; {classes}"

    @property
    def left_out_note(self) -> tuple[str, ...]:
        """The rows that are left out, in one line; nothing where none is."""
        numbers = self.counts.unlabelled
        shown = ", ".join(map(str, numbers[:SHOWN])) + " ..." * (len(numbers) > SHOWN)
        what = f"{self.path}: left out: {counted(len(numbers), 'row')} without a path or one class (row {shown})"
        return (what,) if numbers else ()

    @property
    def missing_note(self) -> tuple[str, ...]:
        """The images that do not exist, in one line; nothing where all do."""
        missing = self.counts.missing
        more = f" and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
        return (f"{self.path}: missing: {', '.join(missing[:SHOWN])}{more}",) if missing else ()

    def _named(self, index: int) -> str:
        name = self._name(index)
        return name if name.startswith("column ") else f"column {name}"

    def demand_images(self) -> None:
        """See that most of the images are where the table was understood to say.

        Raises:
            LabelFileError: under half of them exist; it names the options.
        """
        counts = self.counts
        if len(counts.unlabelled) >= max(1, counts.rows):
            raise LabelFileError(
                f"{self.path}:{counts.unlabelled[0]}: expected a path and a label, of one class; "
                f"{len(counts.unlabelled)} of {len(counts.unlabelled) + counts.rows} rows have none: {self.advice}"
            )
        if 2 * len(counts.missing) > counts.rows:
            first = joined(self.folder, counts.missing[0])
            raise LabelFileError(
                f"{self.path}: only {counts.rows - len(counts.missing):,} of {counts.rows:,} images exist "
                f"({self._named(self.path_index)} as image; no file at {first}): {self.advice}"
            )

    @property
    def advice(self) -> str:
        """How to say what the table means."""
        return how_to_say(self.columns)


@dataclass(frozen=True, slots=True)
class TableCounts:
    """The rows of a table counted.

    Attributes:
        rows: how many have a path and a label.
        missing: paths of those whose image is missing.
        labels: in natural order.
        unlabelled: lines that are left out: without a path, or without exactly one class.
    """

    rows: int
    missing: tuple[str, ...]
    labels: tuple[str, ...]
    unlabelled: tuple[int, ...]


def path_cells(path: Path) -> Iterator[str]:
    """The column of paths by its name, else the first, of a table whose images may be gone."""
    rows = records(path, text_delimiters(path)[0])
    first = next(rows, None)
    if first is None:
        return
    names = [cell.strip().lower() for cell in first.cells]
    column = min(range(len(names)), key=lambda index: (rank(names[index : index + 1], PATH_WORDS), index))
    if names[column] not in PATH_WORDS:
        yield first.cells[column]
    yield from (row.cells[column] for row in rows if column < len(row.cells))


def how_to_say(columns: Sequence[str]) -> str:
    """The options that settle how a table is read."""
    named = ", ".join(column or str(number) for number, column in enumerate(columns, start=1))
    return f"say --path-column or --label-column (columns: {named}), --images DIR, --suffix .png or --class-from REGEX"


def file_name(cell: str, parents_cut: int) -> str:
    """The path that a cell means, without its first folders; an address of Label Studio's is that of its file."""
    name = local_name(cell.replace("\\", "/"))
    return "/".join(name.strip("/").split("/")[parents_cut:]) if parents_cut else name


def part_named(cells: Sequence[str], index: int) -> str:
    """The part (train, val, test) that a row's cell names; "" if none. 1 and true are val: of columns `is_valid`."""
    cell = cells[index].strip().lower() if index < len(cells) else ""
    return {**PARTS, "0": "train", "1": "val", "false": "train", "true": "val"}.get(cell, "")


def joined(folder: Path, name: str) -> str:
    """A path in a folder, as text."""
    return os.path.join(str(folder), name)  # noqa: PTH118  # texts, for every row


def rank(words: Sequence[str], known: Sequence[str]) -> int:
    """Position of the first word among known ones; behind all of them if it is none."""
    return known.index(words[0]) if words and words[0] in known else len(known)


def is_one(cell: str) -> bool:
    """Whether a cell of a one-hot column is set."""
    return is_zero_or_one(cell) and float(cell) == 1


def is_zero_or_one(cell: str) -> bool:
    """Whether a cell may be of a one-hot column."""
    return cell.strip().lower() in ("0", "1", "0.0", "1.0")
