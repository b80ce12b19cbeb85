"""The pass itself: every picture once, then what the pictures have to do with each other."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, chain, islice
from pathlib import Path

import numpy as np

from mlimages.checks.cache import Examined, Stamp, Store
from mlimages.checks.codes import Code, Finding, Thresholds
from mlimages.checks.columns import NewColumn, columns_on_disk
from mlimages.checks.findings import Notes
from mlimages.checks.image_facts import FactsTable, examine, facts_table
from mlimages.checks.leaks import Listed, Seen, described, relations
from mlimages.checks.result import Measures, Report
from mlimages.checks.rules import judge, judge_classes
from mlimages.core import ImageError, LabeledPath, NoProgress, Pool, Progress, Threads, as_path, file_state, is_remote
from mlimages.images import read_bytes
from mlimages.labels import LabelFile

BATCH = 256
"""Pictures looked up and kept at a time: so many an interrupted check may do again."""

MOST = 16_384
"""The most of them, however many workers there are: so many files SQLite finds in one question."""

_MEASURED = np.dtype([("label", "i4"), ("size", "i4", 2), ("level", "u1"), ("colour", "u1", 3)])

Find = Callable[[bytes], Examined | None]
"""Looks up what is known of the same bytes."""


def check(
    label_files: Sequence[LabelFile | str | Path],
    *,
    thresholds: Thresholds | None = None,
    workers: int | None = None,
    pool: Pool | None = None,
    progress: Progress | None = None,
) -> Report:
    """Look at every picture of the label files once; nothing about a picture raises.

    What was found is kept in the cache folder by size, time and content: a later check, or one that goes on after an
    interruption, decodes only what it has not seen.

    Args:
        pool: who looks at the pictures; by default `workers` threads (a core each).

    Raises:
        LabelFileError: a label file that cannot be read, or a line of it.
    """
    began = time.perf_counter()
    lines = thresholds or Thresholds()
    files = tuple(file if isinstance(file, LabelFile) else LabelFile(file) for file in label_files)
    shown = progress or NoProgress()
    shown.start("check", sum(1 for file in files for _ in file.named()) if progress else None, "pictures")
    with Store() as store, columns_on_disk() as new_column:
        seen, measuring, notes = Seen(new_column), _Measuring(new_column), Notes(new_column)
        for batch, pictures in _examined(files, lines, store, pool or Threads(workers or os.cpu_count() or 1)):
            for place, code, detail in _noted(batch, pictures, seen, measuring, lines):
                notes.add(place, code, detail)
            shown.advance(len(batch))
        lines = lines.narrowed(len(seen))
        families = seen.families(lines, store)
        shown.close()
        sizes = (sum(count for (of, _), count in seen.counts.items() if of == number) for number in range(len(files)))
        begins = list(accumulate(sizes, initial=0))
        items = _looked_up(files, {place for family in families for place in family})
        for one in relations(seen, families, begins, lines):
            notes.add(one.place, one.code, described(one, items, same=seen.digest(one.place) == seen.digest(one.other)))
        findings = notes.done(files, begins, tuple(_class_findings(files, seen.counts, lines)))
        measures, digests = measuring.done(), seen.digests()
    return Report(
        files=files,
        counts=dict(seen.counts),
        checked=len(seen),
        ok=len(seen) - sum(int(findings.left_out(number).sum()) for number in range(len(files))),
        findings=findings,
        duplicate_groups=tuple(tuple(items[place].path for place in family) for family in families),
        thresholds=lines,
        seconds=time.perf_counter() - began,
        measures=measures,
        digests=digests,
    )


def duplicate_groups(
    paths: Iterable[Path], *, thresholds: Thresholds | None = None, progress: Progress | None = None
) -> dict[Path, int]:
    """The number of its group for each picture that is the same as another or nearly so, as `labels.split` takes it."""
    listed = [LabeledPath(path, 0) for path in paths]
    file = LabelFile("paths.txt", items=lambda: listed, class_names=("all",))
    groups = check([file], thresholds=thresholds, progress=progress).duplicate_groups
    return {path: number for number, group in enumerate(groups) for path in group}


def sound_pictures(paths: Iterable[Path]) -> dict[Path, bytes]:
    """SHA-256 of those pictures that an earlier check could decode and that have not changed since; none is read."""
    waiting, sound = iter(paths), dict[Path, bytes]()
    with Store() as store:
        while batch := list(islice(waiting, BATCH)):
            stamps = [_stamp(path) for path in batch]
            known = store.find([stamp for stamp in stamps if stamp])
            found = ((path, known.get(stamp.path)) for path, stamp in zip(batch, stamps, strict=True) if stamp)
            sound.update((path, picture.digest) for path, picture in found if picture and picture.facts)
    return sound


class _Measuring:
    def __init__(self, new_column: NewColumn) -> None:
        self._rows = new_column(_MEASURED)

    def add(self, label: Sequence[int], facts: FactsTable) -> None:
        rows = np.empty(len(facts), _MEASURED)
        rows["label"], rows["level"] = label, facts["typical"]
        rows["size"] = np.stack([facts["width"], facts["height"]], axis=1)
        rows["colour"] = np.stack([facts["red"], facts["green"], facts["blue"]], axis=1)
        self._rows.add(rows)

    def done(self) -> Measures:
        rows = self._rows.whole()
        return Measures(rows["label"], rows["size"], rows["level"], rows["colour"])


def _noted(
    batch: Sequence[Listed], pictures: Sequence[Examined], seen: Seen, measuring: _Measuring, lines: Thresholds
) -> Iterator[tuple[int, Code, str]]:
    """Keep what is needed of some pictures; yield what is wrong with each by itself: place, code, what was seen."""
    begin, rows = len(seen), [row for row, picture in enumerate(pictures) if picture.facts]
    facts = facts_table(picture.facts or b"" for picture in pictures)
    seen.add(batch, (picture.digest if picture.facts else b"" for picture in pictures))
    seen.compare(begin + np.array(rows, dtype=np.intp), facts, lines)
    measuring.add([batch[row][2] for row in rows], facts)
    for row, code, detail in judge([batch[row][1] for row in rows], facts, lines):
        yield begin + rows[row], code, detail
    yield from ((begin + row, Code(one.fault or ""), one.detail) for row, one in enumerate(pictures) if not one.facts)


def _examined(
    files: Iterable[LabelFile], lines: Thresholds, store: Store, pool: Pool
) -> Iterator[tuple[list[Listed], list[Examined]]]:
    """Every picture of every file, in order, some at a time."""
    items = ((number, name, label) for number, file in enumerate(files) for name, label in file.named())
    size = min(BATCH * max(1, pool.workers * pool.at_once // 64), MOST)  # several for each worker
    while batch := list(islice(items, size)):
        yield batch, _batch([name for _, name, _ in batch], store, lines, pool)


def _batch(paths: Sequence[str], store: Store, lines: Thresholds, pool: Pool) -> list[Examined]:
    stamps = [_stamp(path) for path in paths]
    known = store.find([stamp for stamp in stamps if stamp])
    new = [place for place, stamp in enumerate(stamps) if not (stamp and stamp.path in known)]
    size = pool.at_once
    chunks = ([paths[place] for place in new[start : start + size]] for start in range(0, len(new), size))
    find = store.find_content if isinstance(pool, Threads) else None  # the store does not travel
    looked = pool.map(partial(_look_at, lines=lines, find=find), chunks)
    fresh = dict(zip(new, chain.from_iterable(looked), strict=True))
    store.keep((stamp, fresh[place]) for place in new if (stamp := stamps[place]))
    return [fresh[place] if place in fresh or not stamp else known[stamp.path] for place, stamp in enumerate(stamps)]


def _stamp(path: Path | str) -> Stamp | None:
    if is_remote(path):  # to ask for its state costs as much as to read it: known by its content alone
        return None
    state = file_state(path)
    return Stamp(os.path.abspath(path), state) if state else None  # noqa: PTH100  # twice as fast, for every image


def _look_at(paths: Sequence[str], lines: Thresholds, find: Find | None) -> list[Examined]:
    return [_look(path, lines, find) for path in paths]


def _look(path: str, lines: Thresholds, find: Find | None) -> Examined:
    """One picture's facts or fault; decoded unless the same bytes were seen before."""
    digest = b""
    try:
        data = read_bytes(as_path(path))
        digest = hashlib.sha256(data).digest() if data else b""
        known = find(digest) if find and digest else None
        return known or Examined(digest, examine(data, max_pixels=lines.max_pixels).pack())
    except ImageError as error:
        return Examined(digest, fault=error.fault, detail=error.detail)


def _looked_up(files: Iterable[LabelFile], places: Collection[int]) -> dict[int, LabeledPath]:
    """The pictures at some places: the files are read once more, so that not all paths lie in memory."""
    listed = islice(chain.from_iterable(file.named() for file in files), max(places, default=-1) + 1)
    return {place: LabeledPath(as_path(name), label) for place, (name, label) in enumerate(listed) if place in places}


def _class_findings(
    files: Sequence[LabelFile], counts: Counter[tuple[int, int]], lines: Thresholds
) -> Iterator[Finding]:
    for number, file in enumerate(files):
        names = dict(enumerate(file.defined_class_names))
        own = {label: count for (of, label), count in counts.items() if of == number}
        for label, code, detail in judge_classes({**dict.fromkeys(names, 0), **own}, names, lines):
            yield Finding(number, file.path, label, code, detail)
