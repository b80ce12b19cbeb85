"""Split label files without leaks: near-duplicates stay in one part, and image content determines the split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from mlimages.checks.run_checks import check
from mlimages.core import Embedder, ImageError, Pool, Progress, as_path
from mlimages.images import read_bytes
from mlimages.labels import LabelFile, check_shares, open_labels

DIGITS = 32
"""Number of hexadecimal digits of an image's SHA-256 that identify it."""


def split_labels(
    labels: LabelFile | str | os.PathLike[str],
    shares: Sequence[float],
    seed: int = 0,
    *,
    pool: Pool | None = None,
    embed: Embedder | None = None,
    progress: Progress | None = None,
) -> tuple[LabelFile, ...]:
    """Return one LabelFile per share, stratified by class, with duplicates and near-duplicates in one part.

    The split depends on the content of the images and the seed, not on their paths or the order of the lines. `label
    --split`, `augment --split` and the validation set of `finetune` use it. Adding an image leaves nearly all others in
    their part. Each image is decoded once and cached for later checks and splits; images that cannot be decoded are
    split like the others.

    Args:
        labels: a label file, or a folder of class folders.
        shares: positive numbers that add up to 1.
        pool: workers that examine the images; by default threads.
        embed: computes features, to keep together what hashes miss; results may then differ between machines.

    Raises:
        InputError: the shares are not positive or do not add up to 1.
        LabelFileError: the label file cannot be read.

    Example:
        >>> train, val = split_labels("labels.txt", (0.8, 0.2), seed=0)
        >>> len(list(train)), len(list(val))
        (9, 3)
    """
    check_shares(shares)
    file = open_labels(labels)
    report = check([file], pool=pool, embed=embed, progress=progress)
    groups = {path: number for number, group in enumerate(report.duplicate_groups) for path in group}
    contents = {
        as_path(name): digest.tobytes().hex() if digest.any() else _content_hash(as_path(name))
        for (name, _), digest in zip(file.text_items(), report.digests, strict=True)
    }
    return file.split(shares, seed=seed, groups=groups, contents=contents)


def _content_hash(path: Path) -> str:
    """Return the content hash of an image file that cannot be decoded; "" if the file cannot be read."""
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()[:DIGITS]
    except ImageError:
        return ""
