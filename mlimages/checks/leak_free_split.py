"""Split label files by the content of the images, with near-duplicates in the same split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlimages.checks.image_table import DIGEST_BYTES
from mlimages.checks.run_checks import check
from mlimages.core import Embedder, ImageError, Pool, Progress, as_path, check_seed
from mlimages.images import read_bytes
from mlimages.labels import LabelFile, check_fractions, open_labels


def split_labels(
    labels: LabelFile | str | os.PathLike[str],
    fractions: Sequence[float],
    seed: int = 0,
    *,
    assigned: Mapping[Path, int] | None = None,
    pool: Pool | None = None,
    embed: Embedder | None = None,
    progress: Progress | None = None,
) -> tuple[LabelFile, ...]:
    """Split a label file, stratified by class, with duplicates and near-duplicates in the same split.

    The split depends on the content of the images and the seed, not on their paths or the order of the lines. `label
    --split`, `augment --split` and the validation set of `finetune` use it. Adding an image moves hardly any other
    image to another split. Each image is decoded once and its measurements are cached for later checks and splits;
    images that cannot be decoded are split like the others.

    Args:
        labels: a label file, or a folder with one subfolder per class.
        fractions: fraction of the images in each split, such as `(0.8, 0.2)`; they add up to 1.
        seed: random seed.
        assigned: index of the split of each image that is already split, by path; its near-duplicates are put in the
            same split.
        pool: workers that examine the images; by default threads.
        embed: function that computes features, to find near-duplicates that perceptual hashes miss; the split may then
            differ between machines.
        progress: shows how many images have been examined.

    Returns:
        One label file per fraction.

    Raises:
        InputError: the fractions are not positive or do not add up to 1, the seed is out of range, or a remote image
            cannot be downloaded.
        LabelFileError: the label file cannot be read.

    Example:
        >>> train, val = split_labels("labels.txt", (0.8, 0.2), seed=0)
        >>> len(list(train)), len(list(val))
        (9, 3)
    """
    check_fractions(fractions)
    check_seed(seed)
    file = open_labels(labels)
    report = check(file, pool=pool, embed=embed, progress=progress)
    groups = {path: number for number, group in enumerate(report.duplicate_groups) for path in group}
    contents = {
        as_path(name): digest.tobytes().hex() if digest.any() else _hash_undecodable_file(as_path(name))
        for (name, _), digest in zip(file.text_items(), report.digests, strict=True)
    }
    return file.split(fractions, seed=seed, groups=groups, contents=contents, assigned=assigned)


def _hash_undecodable_file(path: Path) -> str:
    """Return the hash of an image file for which `check` stores none, since it cannot be decoded; "" if unreadable."""
    try:
        return hashlib.sha256(read_bytes(path)).digest()[:DIGEST_BYTES].hex()
    except ImageError:
        return ""
