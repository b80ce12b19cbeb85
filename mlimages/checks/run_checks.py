"""Check label files: examine every image once, then compare all of them."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from copy import copy
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np

from mlimages.checks.cache import ExaminedImage, FactsCache, Stamp
from mlimages.checks.codes import Code, Thresholds
from mlimages.checks.feature_pairs import require_usearch
from mlimages.checks.findings import Findings, merge_rows
from mlimages.checks.image_facts import examine, make_facts_table
from mlimages.checks.image_table import DIGEST_BYTES, ImageTable
from mlimages.checks.leaks import duplicate_findings, find_groups, find_pairs
from mlimages.checks.result import CheckReport, SimilarPair
from mlimages.checks.rules import apply_class_rules, apply_rules, describe_wrong_suffix
from mlimages.core import (
    BrokenImage,
    Embedder,
    Fault,
    ImageError,
    LabeledPath,
    NoProgress,
    Pool,
    Progress,
    Threads,
    as_path,
    check_at_least,
    fingerprint,
    is_remote,
)
from mlimages.images import read_bytes, reading_threads, require_available
from mlimages.labels import LabelFile, open_parts

BATCH = 256
"""Images looked up in the cache at a time; an interrupted check repeats at most this many."""

MAX_BATCH = 16_384
"""Upper limit with many workers; SQLite limits the number of parameters of a query."""

LabelFiles = LabelFile | str | os.PathLike[str] | Iterable[LabelFile | str | os.PathLike[str]]
"""A label file or folder of class folders, or several."""

Find = Callable[[bytes], ExaminedImage | None]
"""Returns the cached result of the bytes with this SHA-256."""


def check(
    label_files: LabelFiles,
    *,
    thresholds: Thresholds | None = None,
    workers: int | None = None,
    pool: Pool | None = None,
    skip_unavailable: bool = False,
    embed: Embedder | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Find corrupt, duplicate, leaked and unusual images; a broken image is a finding, not an exception.

    The facts of each image are cached by size, time and content, so that a later check, or one that resumes after an
    interruption, decodes only new images.

    Args:
        label_files: a label file or folder of class folders, or several; images in more than one of them are leaks.
        thresholds: limits at which an image gets a code.
        workers: threads that examine images; by default one per CPU core.
        pool: workers that examine the images, instead of threads.
        skip_unavailable: report remote images that cannot be downloaded, instead of raising an error.
        embed: computes features, which find near-duplicates that hashes miss, such as strong crops; for example
            `mlimages.training.embedder()`.
        progress: shows how many images have been examined.

    Raises:
        LabelFileError: a label file or a line of it cannot be read.
        InputError: a remote image cannot be downloaded.
        MissingExtraError: comparing the features of so many images needs the extra `usearch`.

    Examples:
        >>> from mlimages import check
        >>> report = check("labels.txt")
        >>> report
        <CheckReport of labels.txt: 12 images, 12 ok>
        >>> report.errors, len(report.findings)
        ({}, 0)
    """
    check_at_least(1, workers=workers)
    began = time.perf_counter()
    thresholds, progress = thresholds or Thresholds(), progress or NoProgress()
    images = ImageTable.from_files(_open_label_files(label_files))
    first = next((path for _, path, _ in images.read_all()), None)
    pool = pool or reading_threads(first, workers)
    if embed:
        require_usearch(len(images))
    with closing(progress), FactsCache() as cache:  # errors start on a new line
        unavailable = _examine_all(images, thresholds, cache, pool, progress)
        require_available(unavailable, skip=skip_unavailable)
        thresholds = thresholds.for_count(len(images))
        sharpness = images.facts["sharpness"][images.decoded_mask]
        if len(sharpness):
            thresholds = thresholds.for_sharpness(len(sharpness), float(np.median(sharpness)))
        sets = find_groups(images, thresholds, cache)
    pairs = find_pairs(images, thresholds, sets, embed, progress) if embed else None
    groups = sets.sets()
    paths = images.paths(set(chain.from_iterable(groups)))
    rows = merge_rows(duplicate_findings(images, groups, thresholds), apply_rules(images, thresholds))
    findings = Findings(images, rows, paths, thresholds, tuple(apply_class_rules(images, thresholds)))
    return CheckReport(
        files=images.files,
        class_names=images.class_names,
        counts=images.counts(),
        checked=len(images),
        ok=len(images) - int(findings.error_mask().sum()),
        findings=findings,
        duplicate_groups=tuple(tuple(paths[index] for index in group) for group in groups),
        feature_pairs=None if pairs is None else tuple(SimilarPair(paths[a], paths[b], value) for a, b, value in pairs),
        thresholds=thresholds,
        seconds=time.perf_counter() - began,
        facts=images.facts,
        digests=images.digest,
    )


def duplicate_groups(
    paths: Iterable[Path], *, thresholds: Thresholds | None = None, progress: Progress | None = None
) -> dict[Path, int]:
    """Return a group number for each image that is a duplicate or near-duplicate, as `labels.split` expects."""
    listed = [LabeledPath(path, 0) for path in paths]
    file = LabelFile("paths.txt", items=lambda: listed, class_names=("all",))
    groups = check([file], thresholds=thresholds, progress=progress).duplicate_groups
    return {path: number for number, group in enumerate(groups) for path in group}


def decodable_images(paths: Iterable[Path]) -> dict[Path, bytes]:
    """Return the SHA-256 of the images that an earlier check decoded and that have not changed; no image is read."""
    waiting, decodable = iter(paths), dict[Path, bytes]()
    with FactsCache() as cache:
        while batch := list(islice(waiting, BATCH)):
            stamps = [_make_stamp(path) for path in batch]
            known = cache.find([stamp for stamp in stamps if stamp])
            found = ((path, known.get(stamp.path)) for path, stamp in zip(batch, stamps, strict=True) if stamp)
            decodable.update((path, one.digest) for path, one in found if one and one.facts)
    return decodable


def _open_label_files(files: LabelFiles) -> list[LabelFile]:
    several = [files] if isinstance(files, (LabelFile, str, os.PathLike)) else files
    opened = [labels for file in several for labels in open_parts(file).values()]
    # a folder is listed once, since images that are moved or added would no longer match the findings
    return [labels if labels.is_stored else copy(labels) for labels in opened]


def _examine_all(
    images: ImageTable, thresholds: Thresholds, cache: FactsCache, pool: Pool, progress: Progress
) -> list[BrokenImage]:
    """Examine every image, unless it is in the cache, and fill the table; return the remote images that are
    unavailable."""
    unavailable: list[BrokenImage] = []
    progress.start("check", len(images), "images")
    listed = images.read_all()
    size = min(BATCH * max(1, pool.workers * pool.chunk_size // 64), MAX_BATCH)  # several for each worker
    while batch := list(islice(listed, size)):
        paths = [path for _, path, _ in batch]
        examined = _examine_batch(paths, cache, thresholds, pool)
        _record_results(images, batch[0][0], paths, examined)
        unavailable += [
            BrokenImage(path, one.fault, one.detail)
            for path, one in zip(paths, examined, strict=True)
            if one.fault is Fault.UNAVAILABLE
        ]
        progress.advance(len(batch))
    return unavailable


def _record_results(
    images: ImageTable, first_index: int, paths: Sequence[str], examined_images: Sequence[ExaminedImage]
) -> None:
    decoded = [row for row, one in enumerate(examined_images) if one.facts]
    if decoded:
        indices = first_index + np.array(decoded)
        images.facts[indices] = make_facts_table(examined_images[row].facts or b"" for row in decoded)
        digests = b"".join(examined_images[row].digest[:DIGEST_BYTES] for row in decoded)
        images.digest[indices] = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    for index, (path, one) in enumerate(zip(paths, examined_images, strict=True), start=first_index):
        if one.fault:
            images.record_fault(index, Code(one.fault), one.detail)
        elif detail := describe_wrong_suffix(path, images.facts["format"][index].decode()):
            images.record_fault(index, Code.WRONG_SUFFIX, detail)


def _examine_batch(paths: Sequence[str], cache: FactsCache, thresholds: Thresholds, pool: Pool) -> list[ExaminedImage]:
    stamps = [_make_stamp(path) for path in paths]
    known = cache.find([stamp for stamp in stamps if stamp])
    new = [row for row, stamp in enumerate(stamps) if not (stamp and stamp.path in known)]
    size = pool.chunk_size
    chunks = ([paths[row] for row in new[start : start + size]] for start in range(0, len(new), size))
    find = cache.find_content if isinstance(pool, Threads) else None  # other processes do not have the cache
    results = pool.map(partial(_examine_files, thresholds=thresholds, find_cached=find), chunks)
    fresh = dict(zip(new, chain.from_iterable(results), strict=True))
    cache.store_results((stamp, fresh[row]) for row in new if (stamp := stamps[row]))
    return [fresh[row] if row in fresh or not stamp else known[stamp.path] for row, stamp in enumerate(stamps)]


def _make_stamp(path: Path | str) -> Stamp | None:
    if is_remote(path):  # requesting its state costs as much as reading it, so it is cached by content only
        return None
    state = fingerprint(path)
    return Stamp(os.path.abspath(path), state) if state else None  # noqa: PTH100  # faster than pathlib


def _examine_files(paths: Sequence[str], thresholds: Thresholds, find_cached: Find | None) -> list[ExaminedImage]:
    return [_examine_file(path, thresholds, find_cached) for path in paths]


def _examine_file(path: str, thresholds: Thresholds, find_cached: Find | None) -> ExaminedImage:
    """Return the facts or the fault of an image; it is decoded unless the cache has the same bytes."""
    digest = b""
    try:
        data = read_bytes(as_path(path))
        digest = hashlib.sha256(data).digest() if data else b""
        known = find_cached(digest) if find_cached and digest else None
        return known or ExaminedImage(digest, examine(data, max_pixels=thresholds.max_pixels).pack())
    except ImageError as error:
        return ExaminedImage(digest, fault=error.fault, detail=error.detail)
