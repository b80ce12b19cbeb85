"""Leave out the rows of a table that are no links: repeated headers, and rows with more cells than the first row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from mlimages.core import InputError, escape_unprintable, pluralize
from mlimages.gathering.links import remove_credentials
from mlimages.gathering.sources.columns import is_link
from mlimages.labels import format_row_numbers, has_too_many_cells, is_repeated_header

_MAX_EXAMPLE_LENGTH = 100


@dataclass(slots=True)
class LeftOutRows:
    """The rows of a table that were left out so far.

    Attributes:
        num_repeated_headers: number of rows that repeat the header, as in concatenated files.
        too_long: row numbers of the rows with more cells than the first row. The first row (a header or a link) has
            number 1; blank lines are not numbered.
        num_columns: number of cells of the first row.
        example: text of the first row that has too many cells.
    """

    num_repeated_headers: int = 0
    too_long: list[int] = field(default_factory=list)
    num_columns: int = 0
    example: str = ""

    def filter_rows(self, rows: Iterable[Sequence[str]], first_row: Sequence[str]) -> Iterator[Sequence[str]]:
        """Yield the rows that can be used; record the others as left out.

        Args:
            rows: the rows of a table, without its first row.
            first_row: the first row, without spaces around its cells.
        """
        self.num_columns = len(first_row)
        header = () if any(map(is_link, first_row)) else first_row
        for number, row in enumerate(rows, start=2):
            if is_repeated_header(row, header):
                self.num_repeated_headers += 1
            elif has_too_many_cells(row, first_row):
                self.too_long.append(number)
                self.example = self.example or remove_credentials(" | ".join(row))[:_MAX_EXAMPLE_LENGTH]
            else:
                yield row

    def describe(self, within: str = "") -> Iterator[str]:
        """Yield a message about the repeated headers, and one about the rows that are too long, if there are any.

        Args:
            within: text that is inserted after the number of rows, such as " in the first 9 rows".
        """
        if self.num_repeated_headers:
            yield f"left out: {pluralize(self.num_repeated_headers, 'repeated header')}{within}"
        if self.too_long:
            cells, rows = pluralize(self.num_columns, "cell"), pluralize(len(self.too_long), "row")
            yield (
                f"left out: {rows}{within} with more than {cells} ({format_row_numbers(self.too_long)}), such as "
                f"{escape_unprintable(self.example)}: quote cells that contain the delimiter"
            )

    def reject_if_most_are_too_long(self, num_links: int, list_name: str) -> None:
        """Raise InputError if more rows were left out as too long than were read as links (`num_links`)."""
        if len(self.too_long) > num_links:
            total = pluralize(len(self.too_long) + num_links, "row")
            raise InputError(
                f"{list_name}: {len(self.too_long)} of {total} have more cells than the first row "
                f"({self.num_columns}), such as row {self.too_long[0]}, {escape_unprintable(self.example)}: name all "
                "columns in the first row, and quote cells that contain the delimiter"
            )
