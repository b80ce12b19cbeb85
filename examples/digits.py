"""Images to try any example with: scikit-learn's 1797 handwritten digits as a folder per class.

python examples/digits.py data/digits
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(folder: Path, *, size: int = 28) -> None:
    """Write `folder/DIGIT/NUMBER.png`, white on black, `size` pixels wide and high."""
    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(digit) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((pixels * 255 / 16).astype(np.uint8))  # (8, 8), 0..16 before
        grey.resize((size, size), Image.Resampling.BICUBIC).save(path)


if __name__ == "__main__":
    write_digits(Path(sys.argv[1]))
