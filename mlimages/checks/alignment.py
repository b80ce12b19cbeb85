"""Align two thumbnails, one of which may be a crop of the other, and compute their correlation.

1. Contrast normalization: each pixel minus the local mean, divided by the local standard deviation. The result hardly
   changes with brightness, contrast, colour, gradual shading and half-transparent text.
2. Placement: one thumbnail, in each of the eight orientations, is matched to the other at several scales and every
   position, at half size.
3. Refinement: starting from the best placement, an affine transform is fitted by Gauss-Newton, with the mean of the
   image gradients of both thumbnails (Benhimane and Malis, IROS 2004). The result is the correlation of the normalized
   thumbnails.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlimages.checks.near_duplicates import ORIENTATIONS

THUMBNAIL_PX = 64
"""Width and height of the thumbnails that are compared."""

PLACEMENT_SCALES = (1.0, 0.93, 0.87, 0.81, 0.75, 0.70, 0.65, 0.60, 0.55)
"""Scales of the crop at which its best placement is searched for; the refinement covers the scales between them."""

COARSE_PX = THUMBNAIL_PX // 2
"""Width and height of the half-size thumbnails in which the best placement is searched for."""

COARSE_RADIUS_PX, RADIUS_PX = 5, 4
"""Radius in pixels of the window of the local mean and standard deviation, in half-size and full-size thumbnails."""

NOISE_LEVEL = 6.0
"""The square of this level is added to the local variance, so that contrast below this level is not amplified."""

NUM_ITERATIONS = 8
"""Number of Gauss-Newton iterations of the refinement."""

MAX_COEFFICIENT_CHANGE = 0.15
"""Maximum change of a coefficient of the transform in one iteration; coordinates are -1 to 1."""

MIN_OVERLAP = 0.6
"""Minimum fraction of the crop that must lie within the other image."""

FloatArray = NDArray[np.floating]


def align_and_correlate(thumbnails: NDArray[np.uint8], other_thumbnails: NDArray[np.uint8]) -> FloatArray:
    """Align the gray thumbnails `(n, 64, 64)` of each pair as well as possible; return their correlations `(n,)`."""
    pair = [_SMOOTHING @ thumbs.astype(np.float32) @ _SMOOTHING.T for thumbs in (thumbnails, other_thumbnails)]
    one, other = (_HALVING @ images @ _HALVING.T for images in pair)
    found = np.stack([_find_best_placements(one, other), _find_best_placements(other, one)])  # (2, n, 5)
    role, index = found[:, :, 0].argmax(axis=0), np.arange(len(thumbnails))
    placement = found[role, index]
    crops, images = np.stack(pair)[role, index], np.stack(pair)[1 - role, index]
    oriented = np.stack([orientation.apply_to_images(crops) for orientation in ORIENTATIONS])
    return _refine_and_correlate(oriented[placement[:, 4].astype(np.intp), index], images, placement[:, 1:4])


def _find_best_placements(crops: FloatArray, images: FloatArray) -> FloatArray:
    """Return the best placement of each crop in its image: correlation, scale, left, top and index of the orientation
    `(n, 5)`; left and top are fractions of the image."""
    target = _normalize_contrast(images, _COARSE_BOX)
    spectrum = np.fft.rfft2(target)
    sums = np.pad((target * target).cumsum(axis=1).cumsum(axis=2), ((0, 0), (1, 0), (1, 0)))
    best = np.full((len(crops), 5), -1, np.float32)
    for size in (round(scale * COARSE_PX) for scale in PLACEMENT_SCALES):
        shrink = _make_resize_matrix(COARSE_PX, size)
        template = _normalize_contrast(shrink @ crops @ shrink.T, _make_box_filter(size, COARSE_RADIUS_PX))
        template /= np.linalg.norm(template, axis=(1, 2), keepdims=True) + 1e-6
        places = COARSE_PX - size + 1
        energy = sums[:, size:, size:] - sums[:, :-size, size:] - sums[:, size:, :-size] + sums[:, :-size, :-size]
        norms = np.sqrt(np.maximum(energy, 1e-3))
        for number, orientation in enumerate(ORIENTATIONS):
            oriented = np.fft.rfft2(orientation.apply_to_images(template), (COARSE_PX, COARSE_PX))
            products = np.fft.irfft2(spectrum * oriented.conj())
            flat = (products[:, :places, :places] / norms).reshape(len(crops), -1)
            top, left = np.divmod(flat.argmax(axis=1), places)
            found = np.stack([flat.max(axis=1), np.full(len(crops), size), left, top, top], axis=1)
            found[:, 1:] /= COARSE_PX
            found[:, 4] = number
            best = np.where(found[:, :1] > best[:, :1], found, best)
    return best.astype(np.float32)


def _refine_and_correlate(crops: FloatArray, images: FloatArray, placements: FloatArray) -> FloatArray:
    """Refine an affine transform that aligns each crop with its image, and return the best correlations `(n,)`.

    `placements` `(n, 3)` are the scale, left and top from which the transforms start.

    Coordinates range from -1 at one edge of an image to 1 at the opposite edge. A transform maps coordinates in the
    crop to coordinates in the image.
    """
    scale, corner = placements[:, 0], placements[:, 1:]
    transform: FloatArray = np.zeros((len(crops), 3, 3), np.float32)
    transform[:, (0, 1), (0, 1)] = scale[:, None]
    transform[:, :2, 2] = 2 * corner + scale[:, None] - 1
    transform[:, 2, 2] = 1
    wanted = _normalize_contrast(crops, _BOX)
    wanted_slopes = _compute_gradients(wanted)
    best = np.full(len(crops), -1, np.float32)
    for _ in range(NUM_ITERATIONS + 1):
        shown, inside = _interpolate(images, transform @ _GRID)
        shown = _normalize_contrast(shown, _BOX)
        slopes = (wanted_slopes + _compute_gradients(shown)) / 2 * inside[:, None]  # (n, 2, M)
        wanted_flat, shown_flat = wanted.reshape(len(crops), -1), shown.reshape(len(crops), -1)
        product = np.vecdot(wanted_flat * inside, shown_flat)
        norms = np.vecdot(wanted_flat * inside, wanted_flat) * np.vecdot(shown_flat * inside, shown_flat)
        correlation = product / np.sqrt(norms + 1e-6)
        best = np.maximum(best, np.where(inside.mean(axis=1) > MIN_OVERLAP, correlation, -1))
        transform = transform @ _compute_gauss_newton_step(slopes, wanted_flat - shown_flat)
    return best


def _compute_gauss_newton_step(gradients: FloatArray, differences: FloatArray) -> FloatArray:
    """Return the matrices `(n, 3, 3)` by which the transforms are multiplied in one iteration.

    Args:
        gradients: mean gradients of crop and image at the M = 64 * 64 pixels, 0 outside the image, `(n, 2, M)`.
        differences: crop minus image at these pixels, `(n, M)`.
    """
    jacobian = (gradients[:, :, None] * _GRID).reshape(len(gradients), 6, -1)
    normal = jacobian @ jacobian.transpose(0, 2, 1)
    damping = np.trace(normal, axis1=1, axis2=2) / 6000 + 1e-3
    normal += damping[:, None, None] * np.eye(6, dtype=np.float32)
    change = np.linalg.solve(normal, jacobian @ differences[:, :, None])
    step = np.zeros((len(gradients), 3, 3), np.float32)
    step[:, :2] = np.clip(change, -MAX_COEFFICIENT_CHANGE, MAX_COEFFICIENT_CHANGE).reshape(-1, 2, 3)
    return step + np.eye(3, dtype=np.float32)


def _interpolate(images: FloatArray, positions: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Interpolate each image at 64 * 64 positions; return the new images, and which positions are inside the images.

    Args:
        images: `(n, 64, 64)`.
        positions: homogeneous coordinates (x, y, 1) for each of the M = 64 * 64 new pixels, `(n, 3, M)`.

    Returns:
        the new images `(n, 64, 64)`, and 1 for each position inside its image and 0 for the others, `(n, M)`.
    """
    pixels = (positions[:, :2] + 1) * (THUMBNAIL_PX / 2) - 0.5
    inside: FloatArray = np.asarray(np.all(abs(positions[:, :2]) <= 1, axis=1), np.float32)
    pixels = np.clip(pixels, 0, THUMBNAIL_PX - 1.001)
    below = pixels.astype(np.int32)
    share = (pixels - below).astype(np.float32)
    x, y = share[:, 0], share[:, 1]
    flat, first = images.reshape(len(images), -1), below[:, 1] * THUMBNAIL_PX + below[:, 0]
    upper_left, upper_right, lower_left, lower_right = (
        np.take_along_axis(flat, first + offset, axis=1) for offset in (0, 1, THUMBNAIL_PX, THUMBNAIL_PX + 1)
    )
    upper, lower = upper_left + x * (upper_right - upper_left), lower_left + x * (lower_right - lower_left)
    shown: FloatArray = upper + y * (lower - upper)
    return shown.reshape(images.shape), inside


def _compute_gradients(images: FloatArray) -> FloatArray:
    """Return the derivatives along x and y at all M = 64 * 64 pixels, `(n, 2, M)`; image edges are at -1 and 1."""
    slopes = np.zeros((len(images), 2, *images.shape[1:]), np.float32)
    slopes[:, 0, :, 1:-1] = images[:, :, 2:] - images[:, :, :-2]
    slopes[:, 1, 1:-1] = images[:, 2:] - images[:, :-2]
    return slopes.reshape(len(images), 2, -1) * (THUMBNAIL_PX / 4)


def _normalize_contrast(images: FloatArray, box: FloatArray) -> FloatArray:
    """Subtract the local mean, and divide by the local standard deviation; `box @ image @ box.T` is the local mean."""
    centered = images - box @ images @ box.T
    return centered / np.sqrt(box @ (centered * centered) @ box.T + NOISE_LEVEL**2)


def _normalize_rows(weights: NDArray[np.floating]) -> FloatArray:
    """Scale the rows of a matrix so that each sums to 1."""
    rows: FloatArray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return rows


def _compute_pixel_distances(size: int) -> NDArray[np.intp]:
    """Return the distances `(size, size)` between all pairs of pixels along one axis."""
    return abs(np.subtract.outer(np.arange(size), np.arange(size)))


def _make_box_filter(size: int, radius: int) -> FloatArray:
    """Return the matrix `(size, size)` that averages each pixel with `radius` pixels on both sides."""
    return _normalize_rows((_compute_pixel_distances(size) <= radius).astype(np.float32))


def _make_resize_matrix(size: int, new_size: int) -> FloatArray:
    """Return the matrix `(new_size, size)` that shrinks an image along one axis with a triangular filter."""
    factor = size / new_size
    centers = (np.arange(new_size) + 0.5) * factor - 0.5
    return _normalize_rows(np.maximum(0, 1 - abs(np.arange(size) - centers[:, None]) / factor))


_SMOOTHING = _normalize_rows(np.maximum(0, 2.0 - _compute_pixel_distances(THUMBNAIL_PX)))
_HALVING = _make_resize_matrix(THUMBNAIL_PX, COARSE_PX)
_BOX, _COARSE_BOX = _make_box_filter(THUMBNAIL_PX, RADIUS_PX), _make_box_filter(COARSE_PX, COARSE_RADIUS_PX)
_AXIS = (np.arange(THUMBNAIL_PX) + 0.5) * 2 / THUMBNAIL_PX - 1
_GRID = np.stack([*np.meshgrid(_AXIS, _AXIS), np.ones([THUMBNAIL_PX] * 2)]).reshape(3, -1).astype(np.float32)
"""Homogeneous coordinates (x, y, 1) of all pixels: `(3, M)`."""
