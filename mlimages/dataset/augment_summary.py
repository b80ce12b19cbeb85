"""The result of `augment`: its output, and the number of images in each split."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mlimages.core import BrokenImage, ImageProperty

Format = Literal["npz", "npy", "folder"]


@dataclass(frozen=True, slots=True)
class AugmentedSplit:
    """Statistics of a split of the output.

    Attributes:
        name: train, val or test; "" if the images were not split.
        num_originals: number of original images.
        num_images: number of images written: the originals and their augmented copies.
    """

    name: str
    num_originals: int
    num_images: int


@dataclass(frozen=True, slots=True, repr=False)
class AugmentSummary:
    """The output of `augment`.

    Attributes:
        out: the output file or folder.
        format: format of the output.
        image_property: size and resize method of the images.
        splits: the splits train, val and, if there is one, test; or one split without a name.
        broken_images: images that could not be decoded.
        notes: messages about class folders whose name differs from the class name.
    """

    out: Path
    format: Format
    image_property: ImageProperty
    splits: tuple[AugmentedSplit, ...]
    broken_images: tuple[BrokenImage, ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        splits = ", ".join(
            f"{split.name or 'all'}: {split.num_images} images from {split.num_originals} originals"
            for split in self.splits
        )
        return f"AugmentSummary({str(self.out)!r}, {splits}, {len(self.broken_images)} broken)"

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as a dict that `json.dumps` can write, with paths as text."""
        return {
            "out": str(self.out),
            "format": self.format,
            "image": asdict(self.image_property),
            "parts": [
                {"name": split.name, "images": split.num_originals, "rows": split.num_images} for split in self.splits
            ],
            "broken": [asdict(image) for image in self.broken_images],
            "notes": self.notes,
        }
