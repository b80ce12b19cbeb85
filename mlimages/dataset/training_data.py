"""Convert the images of a label file to input arrays of a network, and arrays back to images."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from numbers import Integral
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from mlimages.core import (
    BrokenImage,
    ImageProperty,
    InputError,
    Normalization,
    Pool,
    Progress,
    as_path,
    check_at_least,
    format_command,
    require_writable,
)
from mlimages.dataset.mean_files import load_mean_image
from mlimages.dataset.mean_image import MeanImage, compute_cached_mean, compute_mean, draw_class_means, list_mean_files
from mlimages.images import LabeledImage, from_network_input, iter_pixels, require_image_property, to_network_input
from mlimages.labels import (
    LabelFile,
    class_definition_path,
    find_source,
    open_labels,
    require_unchanged_classes,
    write_label_output,
)

logger = logging.getLogger(__name__)


class TrainingData:
    """Input arrays for a network, from the images of a label file; broken images are skipped and logged.

    Images are decoded while arrays are generated, and only a few images are in memory at a time.

    Args:
        labels: a label file, or the path of one or of a folder of class folders.
        image_property: size and resize method of the images.
        normalization: how uint8 pixels are converted to the input of the network; by default to 0..1.
        mean_image: mean image to subtract before scaling: a .npy or image file, or float32 `(C, H, W)` in 0..255.
        mean_image_file: earlier name of the argument `mean_image`, in mlimages 0.5.

    Raises:
        InputError: `mean_image` is not a mean image, or `mean_image` or `normalization` does not match the size and
            channels of the images, or `labels` cannot be read or is split into train, val and test.
        TypeError: `image_property` is not an ImageProperty.

    Examples:
        >>> from mlimages import ImageProperty, TrainingData
        >>> data = TrainingData("labels.txt", ImageProperty(32))
        >>> data
        TrainingData('labels.txt', 32 x 32 px, RGB)
        >>> for x, y in data.shuffle(seed=0).generate_batches(8):
        ...     print(x.shape, x.dtype, y.shape, y.dtype)
        (8, 3, 32, 32) float32 (8,) int64
        (4, 3, 32, 32) float32 (4,) int64

    For a multi-label file, y is float32 `(N, K)` for K classes: 1 for each class of an image, else 0 (see `multi_hot`).
    """

    __slots__ = ("_image_property", "_labels", "_mean_image", "_normalization")

    def __init__(
        self,
        labels: LabelFile | str | os.PathLike[str],
        image_property: ImageProperty,
        *,
        normalization: Normalization | None = None,
        mean_image: str | os.PathLike[str] | NDArray[np.float32] | None = None,
        mean_image_file: str | os.PathLike[str] = "",
    ) -> None:
        if mean_image_file and mean_image is not None:
            raise InputError("mean_image_file is the earlier name of mean_image: use only mean_image")
        require_image_property(image_property)
        self._labels = open_labels(labels)
        self._image_property = image_property
        self._normalization = Normalization() if normalization is None else normalization
        self._normalization.check_channels(image_property)
        self.mean_image = mean_image_file or None if mean_image is None else mean_image

    def __repr__(self) -> str:
        channels = "gray" if self.image_property.gray_scale else "RGB"
        mean = "" if self.mean_image is None else ", mean image"
        size = f"{self.image_property.width} x {self.image_property.height} px"
        return f"TrainingData({str(self.labels.path)!r}, {size}, {channels}{mean})"

    @property
    def labels(self) -> LabelFile:
        """The LabelFile that lists the images and their class indices."""
        return self._labels

    @property
    def image_property(self) -> ImageProperty:
        """Size and resize method of the images."""
        return self._image_property

    @property
    def normalization(self) -> Normalization:
        """How uint8 pixels are converted to the input of the network."""
        return self._normalization

    @property
    def mean_image(self) -> NDArray[np.float32] | None:
        """The mean image to subtract, float32 `(C, H, W)` in 0..255, or None.

        It can be set to the same values as the argument of the constructor.

        Raises:
            InputError: the value is not a mean image, or does not match the size and channels of the images.
        """
        return self._mean_image

    @mean_image.setter
    def mean_image(self, value: str | os.PathLike[str] | NDArray[np.float32] | None) -> None:
        self.normalization.check_mean_image(value)
        self._mean_image = None if value is None else load_mean_image(value, self.image_property)

    def shuffle(self, seed: int) -> TrainingData:
        """Return a TrainingData with the same images in a random order, which `seed` reproduces."""
        return TrainingData(
            self.labels.shuffle(seed), self.image_property, normalization=self.normalization, mean_image=self.mean_image
        )

    def make_mean_image(
        self,
        path: str | os.PathLike[str],
        *,
        per_class: bool = False,
        overwrite: bool = False,
        pool: Pool | None = None,
        skip_unavailable: bool = False,
        progress: Progress | None = None,
    ) -> MeanImage:
        """Compute the mean image, write it to files, and set `mean_image` to subtract it from the images.

        Three files are written: `NAME.png` for viewing, `NAME.npy` (float32 `(C, H, W)` in 0..255) and `NAME.json`
        (statistics per channel). `LABELS_used_in_mean.txt`, beside the label file, lists the images that could be
        decoded.

        Args:
            path: the .png file; the other files are written beside it.
            per_class: also write the mean image of each class to `NAME_per_class.png`.
            overwrite: replace files that mlimages did not write, or that were changed since.
            pool: workers that decode the images; by default threads, as for `compute_mean`.
            skip_unavailable: skip remote images that cannot be downloaded, instead of raising an error.
            progress: shows the number of images processed.

        Raises:
            InputError: `path` does not end in .png, no image can be decoded, more than half of the images are missing,
                a remote image cannot be downloaded, or a file exists that mlimages did not write or that was changed
                since, and `overwrite` is false.

        Examples:
            >>> from mlimages import ImageProperty, TrainingData
            >>> result = TrainingData("labels.txt", ImageProperty(32)).make_mean_image("mean.png")
            >>> result.num_images, result.mean.shape, len(result.channel_std)
            (12, (3, 32, 32), 3)
        """
        path = as_path(path)
        mean_files = list_mean_files(path)
        per_class_path = path.with_name(f"{path.stem}_per_class.png")
        used_path = self.labels.path.with_name(f"{self.labels.path.stem}_used_in_mean.txt")
        files = [*mean_files, used_path, class_definition_path(used_path)]
        require_writable([*files, *([per_class_path] if per_class else [])], overwrite=overwrite)
        require_unchanged_classes(used_path, self.labels.class_names)
        compute = partial(
            compute_mean,
            self.labels,
            self.image_property,
            per_class=per_class,
            pool=pool,
            skip_unavailable=skip_unavailable,
            progress=progress,
        )
        mean_image = compute_cached_mean(self.labels, self.image_property, per_class=per_class, compute=compute)
        mean_image.write(path, overwrite=overwrite)
        if per_class:
            draw_class_means(mean_image, self.labels.class_names, per_class_path, overwrite=overwrite)
        broken = {image.path for image in mean_image.broken_images}
        used = self.labels.filter(lambda item: str(item.path) not in broken)
        write_label_output(used_path, used, self.labels.class_names, overwrite=overwrite)
        self.mean_image = mean_image.mean
        return mean_image

    def generate(self) -> Iterator[tuple[NDArray[np.float32], Any]]:
        """Yield each image in order, as float32 `(C, H, W)` and its class index.

        For a multi-label file with K classes, the class index is replaced by the targets of the image, float32 `(K,)`.

        Raises:
            InputError: at the end, if no image could be decoded.

        Examples:
            >>> from mlimages import ImageProperty, TrainingData
            >>> x, label = next(TrainingData("labels.txt", ImageProperty(32)).generate())
            >>> x.shape, label
            ((3, 32, 32), 0)
        """
        for x, y in self.generate_batches(1, workers=1):
            yield x[0], y[0] if y.ndim == 2 else int(y[0])

    def generate_batches(
        self, size: int, *, workers: int | None = None
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
        """Yield batches in order: x float32 `(N, C, H, W)`, y int64 `(N,)`, or float32 `(N, K)` if multi-label.

        Args:
            size: batch size, N; the last batch may be smaller.
            workers: threads that decode images ahead; by default one per CPU core, for remote images at least 16.

        Raises:
            InputError: `size` or `workers` is not a whole number, or is less than 1; or at the end, if no image could
                be decoded.
        """
        if not isinstance(size, Integral) or size < 1:
            raise InputError(f"batch size is {size!r}: expected a whole number of at least 1")
        check_at_least(1, workers=workers)
        return self._iter_batches(size, workers)

    def _iter_batches(self, size: int, workers: int | None) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
        decoded = self._iter_decoded(workers)
        while batch := list(islice(decoded, size)):
            pixels, labels = zip(*batch, strict=True)
            x = to_network_input(np.stack(pixels), self.normalization, self.mean_image)  # (N, C, H, W)
            if self.labels.is_multi_label:
                yield x, multi_hot(labels, len(self.labels.class_names))
            else:
                yield x, np.asarray(labels, dtype=np.int64)

    def _iter_decoded(self, workers: int | None) -> Iterator[tuple[NDArray[np.uint8], Any]]:
        """Yield the pixels and the class index, or class indices, of each image; skip and log broken images."""
        first_broken, num_decoded = None, 0
        for item, loaded in iter_pixels(self.labels, self.image_property, workers=workers):
            if isinstance(loaded, BrokenImage):
                logger.warning("skipped %s: %s (%s)", loaded.path, loaded.fault, loaded.detail)
                first_broken = first_broken or loaded
            else:
                num_decoded += 1
                yield loaded, item.label if item.labels is None else item.labels
        if first_broken and not num_decoded:
            raise InputError(
                f"none of the images of {find_source(self.labels)} can be used (first: {first_broken.path}: "
                f"{first_broken.fault}): see {format_command('check', find_source(self.labels))}"
            )

    @overload
    def data_to_image(
        self, array: NDArray[np.float32], label: int = -1, *, raw: Literal[False] = False
    ) -> LabeledImage: ...

    @overload
    def data_to_image(
        self, array: NDArray[np.float32], label: int = -1, *, raw: Literal[True]
    ) -> NDArray[np.float32]: ...

    def data_to_image(
        self, array: NDArray[np.float32], label: int = -1, *, raw: bool = False
    ) -> LabeledImage | NDArray[np.float32]:
        """Convert an array that `generate` yielded, float32 `(C, H, W)`, back to an image.

        Args:
            label: class index of the returned image; -1 if unknown.
            raw: return the pixel values, float32 `(C, H, W)` in 0..255, instead of an image.

        Raises:
            InputError: the array has another shape.

        Examples:
            >>> from mlimages import ImageProperty, TrainingData
            >>> data = TrainingData("labels.txt", ImageProperty(32))
            >>> x, label = next(data.generate())
            >>> data.data_to_image(x, label).image.size
            (32, 32)
        """
        if array.shape != self.image_property.shape:
            raise InputError(
                f"array of shape {array.shape}: expected {self.image_property.shape} (channels, height, width), the "
                "shape of the arrays from `TrainingData.generate`"
            )
        pixels = from_network_input(array[None], self.normalization, self.mean_image)[0]  # (H, W, C)
        image = LabeledImage.from_array(pixels.transpose(2, 0, 1).astype(np.float32), label)
        return image.to_array(color=not self.image_property.gray_scale) if raw else image


def multi_hot(labels: Sequence[Sequence[int]], num_classes: int) -> NDArray[np.float32]:
    """Return multi-label targets, float32 `(N, K)`: 1 for each class of an image, else 0.

    Args:
        labels: the class indices of each of the N images (`LabeledPath.labels`).
        num_classes: number of classes, K.

    Examples:
        >>> from mlimages.dataset import multi_hot
        >>> multi_hot([(0, 2), (), (1,)], 3).tolist()
        [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    targets = np.zeros((len(labels), num_classes), np.float32)
    for row, classes in zip(targets, labels, strict=True):
        row[list(classes)] = 1
    return targets
