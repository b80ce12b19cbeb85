"""Check label files: examine every image once, then compare the images."""

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

from mlimages.checks.cache import CheckCache, ExaminedImage, FileVersion
from mlimages.checks.codes import Code, Thresholds
from mlimages.checks.feature_pairs import require_usearch
from mlimages.checks.image_table import DIGEST_BYTES, ImageTable
from mlimages.checks.leaks import find_duplicate_groups, make_duplicate_findings, merge_groups_by_features
from mlimages.checks.measurements import make_measurement_table, measure_image
from mlimages.checks.result import CheckReport, Findings, SimilarPair, merge_finding_rows
from mlimages.checks.rules import apply_class_rules, apply_rules, describe_wrong_suffix
from mlimages.core import (
    BrokenImage,
    Embedder,
    Fault,
    ImageError,
    NoProgress,
    Pool,
    Progress,
    ThreadPool,
    as_path,
    check_at_least,
    fingerprint,
    is_remote,
)
from mlimages.images import make_reader_pool, raise_for_unavailable_images, read_bytes
from mlimages.labels import LabelFile, open_splits

MIN_BATCH_SIZE = 256
"""Minimum number of images looked up in the cache at a time; after an interruption, one batch is examined again."""

MAX_BATCH_SIZE = 16_384
"""Maximum batch size for many workers; SQLite limits the number of parameters of a query."""

LabelFiles = LabelFile | str | os.PathLike[str] | Iterable[LabelFile | str | os.PathLike[str]]
"""A label file or folder of class folders, or several."""

CacheLookup = Callable[[bytes], ExaminedImage | None]
"""Function that returns the cached result for a SHA-256."""


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
    """Find corrupt, duplicate, leaked and unusual images.

    A broken image is a finding, not an exception. The measurements of each image are cached, so that a later check, or
    one that was interrupted, decodes only new and changed images. Remote images are read again to compare their bytes.

    Args:
        label_files: one or more label files, or folders with one subfolder per class. An image that is in two of these
            files or folders is a leak, and so is one that is in two splits, such as train and val, of the same one.
        thresholds: thresholds of the errors and warnings.
        workers: number of threads that examine images; by default one per CPU core, and at least 16 if the images are
            remote.
        pool: workers that examine the images, instead of threads.
        skip_unavailable: report remote images that cannot be downloaded, instead of raising an error.
        embed: function that computes features, such as `mlimages.training.embedder()`, to find near-duplicates
            that perceptual hashes miss, such as small crops.
        progress: shows how many images have been examined.

    Raises:
        LabelFileError: a label file or one of its lines cannot be read.
        InputError: a remote image cannot be downloaded, and `skip_unavailable` is false.
        MissingExtraError: `embed` is given, there are more than 100,000 images, and the extra `usearch` is not
            installed.

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
    first = next((path for _, path, _ in images.iter_all_labels()), None)
    pool = pool or make_reader_pool(first, workers)
    if embed:
        require_usearch(len(images))
    with closing(progress), CheckCache() as cache:  # a closed progress bar ends its line before an error
        unavailable = _examine_all(images, thresholds, cache, pool, progress)
        raise_for_unavailable_images(unavailable, skip=skip_unavailable)
        thresholds = thresholds.adapt_to_size(len(images))
        sharpness = images.measurements["sharpness"][images.decoded_mask]
        if len(sharpness):
            thresholds = thresholds.adapt_to_sharpness(len(sharpness), float(np.median(sharpness)))
        sets = find_duplicate_groups(images, thresholds, cache)
    pairs = merge_groups_by_features(images, thresholds, sets, embed, progress) if embed else None
    groups = sets.list_sets_of_several()
    paths = images.find_paths(set(chain.from_iterable(groups)))
    rows = merge_finding_rows(make_duplicate_findings(images, groups, thresholds), apply_rules(images, thresholds))
    findings = Findings(images, rows, paths, thresholds, tuple(apply_class_rules(images, thresholds)))
    return CheckReport(
        files=images.files,
        class_names=images.class_names,
        class_counts=images.count_by_file_and_class(),
        num_images=len(images),
        num_ok=len(images) - int(findings.error_mask().sum()),
        findings=findings,
        duplicate_groups=tuple(tuple(paths[index] for index in group) for group in groups),
        feature_pairs=None if pairs is None else tuple(SimilarPair(paths[a], paths[b], value) for a, b, value in pairs),
        thresholds=thresholds,
        duration_s=time.perf_counter() - began,
        measurements=images.measurements,
        digests=images.digests,
    )


def find_decodable_images(paths: Iterable[Path]) -> dict[Path, bytes]:
    """Return the SHA-256, by path, of the images that an earlier check decoded and that have not changed since."""
    remaining, decodable = iter(paths), dict[Path, bytes]()
    with CheckCache() as cache:
        while batch := list(islice(remaining, MIN_BATCH_SIZE)):
            cached = _find_cached_results(batch, cache)[1]
            decodable.update(
                (path, one.sha256) for path, one in zip(batch, cached, strict=True) if one and one.packed_measurements
            )
    return decodable


def _open_label_files(files: LabelFiles) -> list[LabelFile]:
    several = [files] if isinstance(files, (LabelFile, str)) or not isinstance(files, Iterable) else files
    opened = [labels for file in several for labels in open_splits(file).values()]
    # a folder is listed only once: images that are moved or added later would not match the findings
    return [labels if labels.is_stored else copy(labels) for labels in opened]


def _examine_all(
    images: ImageTable, thresholds: Thresholds, cache: CheckCache, pool: Pool, progress: Progress
) -> list[BrokenImage]:
    """Fill the table with the results of all images; return the remote images that cannot be downloaded."""
    unavailable: list[BrokenImage] = []
    progress.start("check", len(images), "images")
    listed = images.iter_all_labels()
    size = min(MIN_BATCH_SIZE * max(1, pool.workers * pool.chunk_size // 64), MAX_BATCH_SIZE)  # several for each worker
    while batch := list(islice(listed, size)):
        paths = [path for _, path, _ in batch]
        examined = _examine_batch(paths, cache, thresholds, pool)
        _record_examined_images(images, batch[0][0], paths, examined)
        unavailable += [
            BrokenImage(path, image.fault, image.detail)
            for path, image in zip(paths, examined, strict=True)
            if image.fault is Fault.UNAVAILABLE
        ]
        progress.advance(len(batch))
    return unavailable


def _record_examined_images(
    images: ImageTable, first_index: int, paths: Sequence[str], examined_images: Sequence[ExaminedImage]
) -> None:
    """Write the results of consecutive images, from index `first_index` on, to the table."""
    decoded = [image for image in examined_images if image.packed_measurements]
    indices = first_index + np.flatnonzero([bool(image.packed_measurements) for image in examined_images])
    images.measurements[indices] = make_measurement_table(image.packed_measurements or b"" for image in decoded)
    digests = b"".join(image.sha256[:DIGEST_BYTES] for image in decoded)
    images.digests[indices] = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    for index, (path, image) in enumerate(zip(paths, examined_images, strict=True), start=first_index):
        if image.fault:
            images.record_fault(index, Code(image.fault), image.detail)
        elif detail := describe_wrong_suffix(path, images.measurements["format"][index].decode()):
            images.record_fault(index, Code.WRONG_SUFFIX, detail)


def _examine_batch(paths: Sequence[str], cache: CheckCache, thresholds: Thresholds, pool: Pool) -> list[ExaminedImage]:
    """Return the result of each image, from the cache if the file has not changed or the content is known."""
    versions, cached = _find_cached_results(paths, cache)
    new = [row for row, image in enumerate(cached) if not image]
    size = pool.chunk_size
    chunks = ([paths[row] for row in new[start : start + size]] for start in range(0, len(new), size))
    lookup = cache.find_by_sha256 if isinstance(pool, ThreadPool) else None  # other processes do not have the cache
    results = pool.map(partial(_examine_files, thresholds=thresholds, lookup=lookup), chunks)
    examined = dict(zip(new, chain.from_iterable(results), strict=True))
    cache.store_results((versions[row], examined[row]) for row in new)
    return [image or examined[row] for row, image in enumerate(cached)]


def _find_cached_results(
    paths: Sequence[Path | str], cache: CheckCache
) -> tuple[list[FileVersion | None], list[ExaminedImage | None]]:
    """Return the version of each file (see `_read_file_version`), and its cached result, or None if there is none."""
    versions = [_read_file_version(path) for path in paths]
    found = cache.find_results([version for version in versions if version])
    return versions, [found.get(version.path) if version else None for version in versions]


def _read_file_version(path: Path | str) -> FileVersion | None:
    """Return the path and fingerprint of a file; None if the file is remote or cannot be examined."""
    if is_remote(path):  # requesting the version takes as long as reading the file, so it is cached by content only
        return None
    stamp = fingerprint(path)
    return FileVersion(os.path.abspath(path), stamp) if stamp else None  # noqa: PTH100  # faster than pathlib


def _examine_files(paths: Sequence[str], thresholds: Thresholds, lookup: CacheLookup | None) -> list[ExaminedImage]:
    return [_examine_file(path, thresholds, lookup) for path in paths]


def _examine_file(path: str, thresholds: Thresholds, lookup: CacheLookup | None) -> ExaminedImage:
    """Return the measurements or the fault of an image; it is decoded unless the same bytes are in the cache."""
    sha256 = b""
    try:
        data = read_bytes(as_path(path))
        sha256 = hashlib.sha256(data).digest() if data else b""
        cached = lookup(sha256) if lookup and sha256 else None
        return cached or ExaminedImage(sha256, measure_image(data, max_pixels=thresholds.max_pixels).pack())
    except ImageError as error:
        return ExaminedImage(sha256, fault=error.fault, detail=error.detail)
