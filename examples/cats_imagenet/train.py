"""AlexNet as first published, from scratch, in a loop of one's own; the result is a file for `mlimages predict`.

python train.py cats_train.txt cats_val.txt --mean mean.npy -o cats.onnx
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from mlimages import ImageProperty, LabelFile, Normalization, Preprocessing, TrainingData
from mlimages.export import TrainedNetwork, export_network
from mlimages.networks import build_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=LabelFile)
    parser.add_argument("val", type=LabelFile)
    parser.add_argument("--mean", type=Path, required=True, help="mean.npy of `mlimages mean`")
    parser.add_argument("-o", "--out", type=Path, default=Path("cats.onnx"))
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()

    torch.manual_seed(0)
    prepare = Preprocessing(ImageProperty(227), Normalization(scale=255, mean_image=str(args.mean)))
    data = TrainingData(args.train, prepare.image, normalization=prepare.normalization, mean_image=args.mean)
    network = build_model("alex", num_classes=len(args.train.class_names), weights="none").network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.97)

    curves = []  # rate, mean loss, accuracy of each epoch
    for epoch in range(args.epochs):
        network.train()
        rate, losses, right = schedule.get_last_lr()[0], [], []
        for x, y in data.shuffle(seed=epoch).generate_batches(32):  # (N, 3, 227, 227), (N,)
            scores, labels = network(torch.from_numpy(x)), torch.from_numpy(y)
            loss = torch.nn.functional.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            right += (scores.argmax(dim=1) == labels).tolist()
        schedule.step()
        curves.append((rate, np.mean(losses), np.mean(right)))
        print(f"epoch {epoch + 1}: rate {rate:.4f}, loss {np.mean(losses):.3f}, accuracy {np.mean(right):.1%}")

    trained = TrainedNetwork(network.eval(), prepare, args.train.class_names, "alex", data.mean_image)
    export_network(trained, args.out, validation=args.val)
    draw(curves, args.out.with_suffix(".png"))


def draw(curves: list[tuple[float, float, float]], path: Path) -> None:
    figure, panels = plt.subplots(1, 3, figsize=(8, 2.6), layout="constrained")
    for panel, values, name in zip(panels, zip(*curves, strict=True), ("rate", "loss", "accuracy"), strict=True):
        panel.plot(range(1, len(curves) + 1), values, marker=".")
        panel.set(title=name, xlabel="epoch")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
