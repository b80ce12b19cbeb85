"""What a check found, in columns: a fault may be that of a million pictures, and then nine bytes each must do."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from mlimages.checks.codes import ERRORS, Code, Finding
from mlimages.checks.columns import NewColumn
from mlimages.core import LabelFileError, as_path
from mlimages.labels import LabelFile

_CODES = tuple(Code)
_NUMBERS = {code: number for number, code in enumerate(_CODES)}
_ROW = struct.Struct("=iBi")


@dataclass(frozen=True, slots=True)
class Findings:
    """All findings, by file and line; iterating reads the pictures' paths from the label files once more.

    Attributes:
        files: the label files.
        begins: the place of each file's first picture, and after the last one the count of all.
        place: where each one's picture stands, counted through all files `(N,)`, ascending.
        code, detail: numbers of `Code` and of `details` `(N,)`.
        details: what was seen, each text once.
        of_classes: those that mean whole classes.
    """

    files: Sequence[LabelFile]
    begins: Sequence[int]
    place: NDArray[np.int32]
    code: NDArray[np.uint8]
    detail: NDArray[np.int32]
    details: Sequence[str]
    of_classes: Sequence[Finding]

    def __len__(self) -> int:
        return len(self.place) + len(self.of_classes)

    def __iter__(self) -> Iterator[Finding]:
        return self.select()

    def select(self, codes: Collection[Code] = _CODES, *, file: int | None = None) -> Iterator[Finding]:
        """Those of some codes, of the label file with that number or of all.

        Raises:
            LabelFileError: a label file is gone, or holds fewer pictures than when it was checked.
        """
        wanted = np.flatnonzero(np.array([code in codes for code in _CODES])[self.code])
        for number in range(len(self.files)) if file is None else (file,):
            begin, end = np.searchsorted(self.place[wanted], self.begins[number : number + 2])
            yield from self._read(number, wanted[begin:end])
        yield from (one for one in self.of_classes if one.code in codes and file in (None, one.file))

    def counts(self) -> Counter[Code]:
        """How many there are of each code."""
        numbers, counts = np.unique(self.code, return_counts=True)
        of_pictures = {_CODES[number]: count for number, count in zip(numbers, counts.tolist(), strict=True)}
        return Counter(one.code for one in self.of_classes) + Counter(of_pictures)

    def left_out(self, file: int) -> NDArray[np.bool_]:
        """Which pictures of the label file with that number have an error `(n,)`, by line."""
        begin, end = self.begins[file : file + 2]
        places = self.place[self.code < len(ERRORS)]
        found = np.zeros(end - begin, np.bool_)
        found[places[(begin <= places) & (places < end)] - begin] = True
        return found

    def _read(self, file: int, rows: NDArray[np.intp]) -> Iterator[Finding]:
        pictures, at, found = self.files[file].named(), self.begins[file] - 1, None
        for row in rows:
            place = int(self.place[row])
            if place > at:
                found, at = next(islice(pictures, place - at - 1, None), None), place
            if found is None:
                raise LabelFileError(f"{self.files[file].path}: it was changed while it was checked; check it again")
            detail = self.details[self.detail[row]]
            yield Finding(file, as_path(found[0]), found[1], _CODES[self.code[row]], detail)


class Notes:
    """Findings as they come."""

    def __init__(self, new_column: NewColumn) -> None:
        self._rows = new_column([("place", "i4"), ("code", "u1"), ("detail", "i4")])
        self._details: dict[str, int] = {}

    def add(self, place: int, code: Code, detail: str) -> None:
        """Note what the picture at a place has; once more, and the later detail counts."""
        self._rows.add(_ROW.pack(place, _NUMBERS[code], self._details.setdefault(detail, len(self._details))))

    def done(self, files: Sequence[LabelFile], begins: Sequence[int], of_classes: Sequence[Finding]) -> Findings:
        """All of them in order."""
        rows = self._rows.whole()
        rows = rows[np.lexsort((rows["code"], rows["place"]))]
        place, code = rows["place"], rows["code"]
        last = np.ones(len(rows), np.bool_)
        last[:-1] = (place[1:] != place[:-1]) | (code[1:] != code[:-1])
        return Findings(files, begins, place[last], code[last], rows["detail"][last], tuple(self._details), of_classes)
