"""The Keras example's network for CIFAR-10, at 100 pixels and from scratch, on the arrays of `mlimages augment`.

python scratch.py creatures.npz creatures_val.txt -o scratch.onnx
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from mlimages import ImageProperty, LabelFile, Normalization, Preprocessing
from mlimages.export import TrainedNetwork, export_network
from mlimages.networks import build_model


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in 0..1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255


def test(network: torch.nn.Module, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Loss and accuracy."""
    network.eval()
    with torch.inference_mode():
        scores = torch.cat([network(to_tensor(x[start : start + 32])) for start in range(0, len(x), 32)])
    labels = torch.from_numpy(y)
    return cross_entropy(scores, labels).item(), (scores.argmax(dim=1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arrays", type=Path)
    parser.add_argument(
        "val", type=LabelFile, help="the images of x_val: the exported file must give them the same classes"
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("scratch.onnx"))
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()

    with np.load(args.arrays) as arrays:
        x, y, x_val, y_val, names = (arrays[name] for name in ("x_train", "y_train", "x_val", "y_val", "class_names"))
    size = x.shape[1]
    views = np.vstack([np.hstack(x[:20:2]), np.hstack(x[1:20:2])])  # one image at all angles; its mirror image below
    Image.fromarray(views).save(args.out.with_suffix(".png"))

    torch.manual_seed(0)
    network = build_model("cifar10_cnn", num_classes=len(names), weights="none", size=size).network
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for epoch in range(args.epochs):
        network.train()
        for rows in np.array_split(np.random.default_rng(epoch).permutation(len(x)), -(-len(x) // 32)):
            loss = cross_entropy(network(to_tensor(x[rows])), torch.from_numpy(y[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        test_loss, accuracy = test(network, x_val, y_val)
        print(f"epoch {epoch + 1}: test loss {test_loss:.3f}, test accuracy {accuracy:.1%}")

    prepare = Preprocessing(ImageProperty(size), Normalization(scale=255))
    trained = TrainedNetwork(network.eval(), prepare, tuple(map(str, names)), "cifar10_cnn")
    export_network(trained, args.out, validation=args.val)


if __name__ == "__main__":
    main()
