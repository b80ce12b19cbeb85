"""MNIST's files as a folder of images per digit.

python idx_to_images.py t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz data/digits
"""

import gzip
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def read_idx(path: Path) -> np.ndarray:
    """The array in an idx file, uint8; the header is a magic number of 4 bytes and big-endian sizes."""
    data = (gzip.open if path.suffix == ".gz" else open)(path, "rb").read()
    sizes = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(sizes)


def main(images: Path, labels: Path, folder: Path) -> None:
    for number, (pixels, digit) in enumerate(zip(read_idx(images), read_idx(labels), strict=True)):
        path = folder / str(digit) / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    print(f"{number + 1} images in {folder}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
