"""Find near-duplicates by a network's features: strong crops, tilted images, half-transparent overlays.

No threshold on the similarity of features separates copies from other images of the same kind. Therefore the three
nearest neighbours of each image are candidates, and each pair is aligned (see `alignment`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlimages.checks.alignment import THUMBNAIL_PX, align_and_correlate
from mlimages.core import Embedder, ImageProperty, LabeledPath, Progress, require_extra
from mlimages.images import iter_pixels

NUM_NEIGHBOURS = 3
"""Number of nearest neighbours that are candidates; for 92 to 100 % of edited copies, the original is among them."""

MIN_CORRELATION = 0.7
"""Minimum correlation of the aligned thumbnails of near-duplicates. The highest correlation of 2,400 candidates that
are different images was 0.63; all but one of 230 pairs of an image and its edited copy exceeded 0.75."""

MAX_EXACT_IMAGES = 100_000
"""Maximum number of images for an exact search, whose time grows with the square of this number."""

EMBED_BATCH_SIZE, COMPARE_BATCH_SIZE = 256, 1024
"""Number of images whose features are computed at a time, and number of images whose features are compared at a time
with those of as many others."""

ALIGN_BATCH_SIZE = 32
"""Pairs aligned at a time; their arrays fit the processor's cache."""

THUMBNAIL_PROPERTY = ImageProperty(THUMBNAIL_PX, resize="squash", gray_scale=True)
"""Size and colour of the thumbnails to align: 64 x 64 pixels, grayscale, without keeping the aspect ratio."""

Features = NDArray[np.floating]

AlignedPair = tuple[int, int, float]
"""The indices of two images, and the correlation of their aligned thumbnails."""


def find_pairs_by_features(paths: Sequence[Path], embed: Embedder, progress: Progress) -> list[AlignedPair]:
    """Return the pairs of near-duplicates, as indices in `paths`.

    Features are kept in memory as float16, and the thumbnails of all images, 4 KiB each, in one temporary file.

    Args:
        paths: paths of the images.
        embed: function that computes the features of images.
        progress: shows how many images and pairs have been processed.
    """
    if len(paths) < 2:
        return []
    features = _compute_features(paths, embed, progress)
    pairs = sorted({(min(pair), max(pair)) for pair in _iter_nearest_neighbours(features)})
    with tempfile.TemporaryFile() as file:
        thumbs = np.memmap(file, np.uint8, shape=(len(paths), THUMBNAIL_PX, THUMBNAIL_PX))
        for index, (_, pixels) in enumerate(iter_pixels((LabeledPath(path, 0) for path in paths), THUMBNAIL_PROPERTY)):
            thumbs[index] = pixels[:, :, 0] if isinstance(pixels, np.ndarray) else 0
        found = list(_align_pairs(thumbs, pairs, progress))
        del thumbs  # Windows does not remove a file that is mapped
    return found


def require_usearch(num_images: int) -> None:
    """Raise an error if comparing `num_images` images needs usearch and it is not installed.

    Raises:
        MissingExtraError: the extra `usearch` is not installed.
    """
    if num_images > MAX_EXACT_IMAGES:
        require_extra(f"comparing the features of more than {MAX_EXACT_IMAGES:,} images", "usearch", "usearch")


def _compute_features(paths: Sequence[Path], embed: Embedder, progress: Progress) -> Features:
    """Return float16 features `(N, D)`, centred (which separates similar images better) and scaled to length 1."""
    progress.start("features", len(paths), "images")
    parts = []
    for begin in range(0, len(paths), EMBED_BATCH_SIZE):
        chunk = paths[begin : begin + EMBED_BATCH_SIZE]
        parts.append(embed(chunk).astype(np.float16))
        progress.advance(len(chunk))
    progress.close()
    features = np.concatenate(parts)
    mean = features.mean(axis=0, dtype=np.float32)
    for begin in range(0, len(features), COMPARE_BATCH_SIZE):
        rows = features[begin : begin + COMPARE_BATCH_SIZE].astype(np.float32) - mean
        features[begin : begin + COMPARE_BATCH_SIZE] = rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6)
    return features


def _iter_nearest_neighbours(features: Features) -> Iterator[tuple[int, int]]:
    """Yield a pair of indices for each image and each of its three nearest neighbours."""
    nearest = _find_nearest_exactly if len(features) <= MAX_EXACT_IMAGES else _find_nearest_approximately
    for begin, found in nearest(features):
        for index, others in enumerate(found.tolist(), start=begin):
            yield from ((index, other) for other in [other for other in others if other != index][:NUM_NEIGHBOURS])


def _find_nearest_exactly(features: Features) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield, for each chunk of images, the index of the first one, and the indices of the nearest neighbours `(n, K)`.

    The neighbours of an image include the image itself.
    """
    count = min(NUM_NEIGHBOURS + 1, len(features))
    starts = range(0, len(features), COMPARE_BATCH_SIZE)
    for begin in starts:
        rows = features[begin : begin + COMPARE_BATCH_SIZE].astype(np.float32)
        similarity: Features = np.empty((len(rows), 0), np.float32)
        nearest: NDArray[np.intp] = np.empty((len(rows), 0), np.intp)
        for start in starts:
            products = rows @ features[start : start + COMPARE_BATCH_SIZE].astype(np.float32).T
            similarity = np.hstack([similarity, products])
            indices = np.broadcast_to(np.arange(start, start + products.shape[1]), products.shape)
            nearest = np.hstack([nearest, indices])
            best = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
            similarity = np.take_along_axis(similarity, best, axis=1)
            nearest = np.take_along_axis(nearest, best, axis=1)
        yield begin, np.take_along_axis(nearest, np.argsort(-similarity, axis=1), axis=1)


def _find_nearest_approximately(features: Features) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Approximate `_find_nearest_exactly` by an HNSW graph (Malkov and Yashunin, 2018)."""
    from usearch.index import Index

    index = Index(ndim=features.shape[1], metric="ip", dtype="f16")
    index.add(np.arange(len(features)), features)
    for begin in range(0, len(features), COMPARE_BATCH_SIZE):
        found = index.search(features[begin : begin + COMPARE_BATCH_SIZE], NUM_NEIGHBOURS + 1)
        yield begin, found.keys.astype(np.intp)


def _align_pairs(
    thumbnails: NDArray[np.uint8], pairs: Sequence[tuple[int, int]], progress: Progress
) -> Iterator[AlignedPair]:
    """Yield the pairs whose aligned thumbnails have a correlation of at least `MIN_CORRELATION`."""
    progress.start("align", len(pairs), "pairs")
    for begin in range(0, len(pairs), ALIGN_BATCH_SIZE):
        chunk = np.array(pairs[begin : begin + ALIGN_BATCH_SIZE])
        correlations = align_and_correlate(thumbnails[chunk[:, 0]], thumbnails[chunk[:, 1]])
        for (first, second), correlation in zip(chunk.tolist(), correlations.tolist(), strict=True):
            if correlation >= MIN_CORRELATION:
                yield first, second, correlation
        progress.advance(len(chunk))
    progress.close()
