"""Built-in networks: classic and small networks that torchvision and timm do not provide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from mlimages.core import ImageProperty, Normalization, Preprocessing

NamedLayers = list[tuple[str, nn.Module]]
HeightWidth = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True, slots=True)
class BuiltinNet:
    """A built-in network and the preprocessing that it is designed for.

    Attributes:
        make_layers: function of `(num_classes, channels, size)` that returns the named layers, with random weights.
            `size` is the image's height and width in pixels; invalid sizes are not rejected.
        preprocessing: preprocessing of the images.
    """

    make_layers: Callable[[int, int, HeightWidth], NamedLayers]
    preprocessing: Preprocessing


def _make_lenet5(num_classes: int, channels: int, size: HeightWidth) -> NamedLayers:
    # LeCun et al., Gradient-based learning applied to document recognition, 1998; with ReLU and max pooling.
    height, width = (max((side // 2 - 4) // 2, 1) for side in size)
    return [
        ("conv1", nn.Conv2d(channels, 6, 5, padding=2)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(6, 16, 5)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()),
        ("fc3", nn.Linear(16 * height * width, 120)),
        ("relu3", nn.ReLU()),
        ("fc4", nn.Linear(120, 84)),
        ("relu4", nn.ReLU()),
        ("fc5", nn.Linear(84, num_classes)),
    ]


def _make_mnist_cnn(num_classes: int, channels: int, size: HeightWidth) -> NamedLayers:
    height, width = (max(((side - 2) // 2 - 2) // 2, 1) for side in size)  # 28 -> 26 -> 13 -> 11 -> 5
    return [
        ("conv1", nn.Conv2d(channels, 64, 3)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(64, 32, 3)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()),
        ("fc3", nn.Linear(32 * height * width, 128)),
        ("relu3", nn.ReLU()),
        ("fc4", nn.Linear(128, num_classes)),
    ]


def _make_cifar10_cnn(num_classes: int, channels: int, size: HeightWidth) -> NamedLayers:
    # cifar10_cnn.py of Keras: the first convolution of each block pads, the second does not.
    height, width = (max(((side - 2) // 2 - 2) // 2, 1) for side in size)  # 32 -> 30 -> 15 -> 13 -> 6
    return [
        ("conv1", nn.Conv2d(channels, 32, 3, padding=1)),
        ("relu1", nn.ReLU()),
        ("conv2", nn.Conv2d(32, 32, 3)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(2)),
        ("drop2", nn.Dropout(0.25)),
        ("conv3", nn.Conv2d(32, 64, 3, padding=1)),
        ("relu3", nn.ReLU()),
        ("conv4", nn.Conv2d(64, 64, 3)),
        ("relu4", nn.ReLU()),
        ("pool4", nn.MaxPool2d(2)),
        ("drop4", nn.Dropout(0.25)),
        ("flatten", nn.Flatten()),
        ("fc5", nn.Linear(64 * height * width, 512)),
        ("relu5", nn.ReLU()),
        ("drop5", nn.Dropout(0.5)),
        ("fc6", nn.Linear(512, num_classes)),
    ]


def _make_alexnet(
    num_classes: int, channels: int, size: HeightWidth, *, groups: int, lrn_alpha: float, lrn_k: float
) -> NamedLayers:
    layers: NamedLayers = [
        ("conv1", nn.Conv2d(channels, 96, 11, stride=4)),
        ("relu1", nn.ReLU()),
        ("norm1", nn.LocalResponseNorm(5, alpha=lrn_alpha, beta=0.75, k=lrn_k)),
        ("pool1", nn.MaxPool2d(3, 2)),
        ("conv2", nn.Conv2d(96, 256, 5, padding=2, groups=groups)),
        ("relu2", nn.ReLU()),
        ("norm2", nn.LocalResponseNorm(5, alpha=lrn_alpha, beta=0.75, k=lrn_k)),
        ("pool2", nn.MaxPool2d(3, 2)),
        ("conv3", nn.Conv2d(256, 384, 3, padding=1)),
        ("relu3", nn.ReLU()),
        ("conv4", nn.Conv2d(384, 384, 3, padding=1, groups=groups)),
        ("relu4", nn.ReLU()),
        ("conv5", nn.Conv2d(384, 256, 3, padding=1, groups=groups)),
        ("relu5", nn.ReLU()),
        ("pool5", nn.MaxPool2d(3, 2)),
        ("flatten", nn.Flatten()),
        ("fc6", nn.Linear(256 * 6 * 6, 4096)),
        ("relu6", nn.ReLU()),
        ("drop6", nn.Dropout(0.5)),
        ("fc7", nn.Linear(4096, 4096)),
        ("relu7", nn.ReLU()),
        ("drop7", nn.Dropout(0.5)),
        ("fc8", nn.Linear(4096, num_classes)),
    ]
    for _, layer in layers:
        # He et al. 2015; with torch's default initialization the signal vanishes over eight layers.
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # both have a bias
    return layers


def _make_preprocessing(size_px: int, normalization: Normalization | None = None, **options: Any) -> Preprocessing:
    return Preprocessing(ImageProperty(size_px, **options), normalization or Normalization())


_IMAGENET_NORMALIZATION = Normalization(mean=(0.485, 0.456, 0.406))
_CAFFE_NORMALIZATION = Normalization(scale=1.0, mean=(122.67891434, 116.66876762, 104.00698793), bgr=True)
"""As in Caffe: the channel means of ilsvrc_2012_mean.npy are subtracted, and the network's input is BGR.

The values of `mean` are in RGB order.
"""

# Krizhevsky et al. 2012, but without the two channel groups: alpha 1e-4 multiplies the sum over 5 channels (torch
# divides it by 5), k 2.
_make_alex = partial(_make_alexnet, groups=1, lrn_alpha=5e-4, lrn_k=2.0)
# bvlc_alexnet of Caffe: alpha 1e-4 is divided by 5 as in torch, k 1; the two towers are two channel groups.
_make_alex_grouped = partial(_make_alexnet, groups=2, lrn_alpha=1e-4, lrn_k=1.0)

BUILTIN_NETS = {
    "alex": BuiltinNet(_make_alex, _make_preprocessing(227, _IMAGENET_NORMALIZATION, shorter_px=256)),
    "alex-grouped": BuiltinNet(_make_alex_grouped, _make_preprocessing(227, _CAFFE_NORMALIZATION, shorter_px=256)),
    "cifar10_cnn": BuiltinNet(_make_cifar10_cnn, _make_preprocessing(32)),
    "lenet5": BuiltinNet(_make_lenet5, _make_preprocessing(28, gray_scale=True)),
    "mnist_cnn": BuiltinNet(_make_mnist_cnn, _make_preprocessing(28, gray_scale=True)),
}
"""The built-in networks by name."""
