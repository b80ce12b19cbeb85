"""Mini-batches of a label file in two plain loops, NumPy and PyTorch, which learn the same numbers.

python batches.py labels.txt -o batches.png
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from mlimages import ImageProperty, LabelFile, TrainingData

RATE = 0.01


def learn_in_numpy(data: TrainingData, classes: int, *, epochs: int) -> Iterator[float]:
    """Softmax regression by gradient descent; the loss of each batch."""
    weight = np.zeros(
        (data.image_property.channels * data.image_property.height * data.image_property.width, classes),
        dtype=np.float32,
    )
    for epoch in range(epochs):
        for x, y in data.shuffle(seed=epoch).generate_batches(32):  # (N, C, H, W), (N,)
            x = x.reshape(len(x), -1)  # (N, C H W)
            scores = x @ weight  # (N, classes)
            chances = np.exp(scores - scores.max(axis=1, keepdims=True))
            chances /= chances.sum(axis=1, keepdims=True)
            yield -float(np.log(chances[np.arange(len(y)), y]).mean())
            chances[np.arange(len(y)), y] -= 1
            weight -= RATE / len(y) * x.T @ chances


def learn_in_torch(data: TrainingData, classes: int, *, epochs: int) -> Iterator[float]:
    """The same with PyTorch's layer, loss and optimizer."""
    layer = torch.nn.Linear(
        data.image_property.channels * data.image_property.height * data.image_property.width, classes, bias=False
    )
    torch.nn.init.zeros_(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=RATE)
    for epoch in range(epochs):
        for x, y in data.shuffle(seed=epoch).generate_batches(32):
            loss = torch.nn.functional.cross_entropy(layer(torch.from_numpy(x).flatten(1)), torch.from_numpy(y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=LabelFile)
    parser.add_argument("-o", "--out", type=Path, default=Path("batches.png"))
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()

    data = TrainingData(args.labels, ImageProperty(16, gray_scale=True))
    classes = len(args.labels.class_names)
    losses = {
        "NumPy": list(learn_in_numpy(data, classes, epochs=args.epochs)),
        "PyTorch": list(learn_in_torch(data, classes, epochs=args.epochs)),
    }
    per_epoch = {name: np.array_split(values, args.epochs) for name, values in losses.items()}
    print("epoch  mean loss in NumPy  in PyTorch")
    for epoch, (ours, theirs) in enumerate(zip(*per_epoch.values(), strict=True), start=1):
        print(f"{epoch:5}  {ours.mean():18.5f}  {theirs.mean():10.5f}")

    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.plot(losses["NumPy"], linewidth=4, alpha=0.4, label="NumPy")
    axes.plot(losses["PyTorch"], linewidth=1, label="PyTorch")
    axes.set(xlabel="batch of 32 images", ylabel="loss", title="The same batches, the same losses")
    axes.legend()
    figure.savefig(args.out, dpi=100)


if __name__ == "__main__":
    main()
