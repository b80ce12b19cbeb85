"""Normalization of pixels by a layer before the network, in training and in exported files with preprocessing."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlimages.core import Normalization


class Normalize(nn.Module):
    """Layer that normalizes uint8 pixels `(N, H, W, C)` from `images.load_pixels` to float32 `(N, C, H, W)`.

    Args:
        normalization: mean, standard deviation, scale and order of the channels.
        mean_image: float32 `(C, H, W)` in 0..255, if `normalization` has a mean image.

    Examples:
        >>> import torch
        >>> from mlimages import Normalization
        >>> from mlimages.networks import Normalize
        >>> normalize = Normalize(Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
        >>> x = normalize(torch.full((2, 8, 8, 3), 255, dtype=torch.uint8))
        >>> x.shape, x.max().item()
        (torch.Size([2, 3, 8, 8]), 1.0)
    """

    mean: Tensor
    divisor: Tensor

    def __init__(self, normalization: Normalization, mean_image: NDArray[np.float32] | None = None) -> None:
        super().__init__()
        normalization.check_mean_image(mean_image)
        scale = normalization.scale
        if mean_image is not None:
            mean = torch.from_numpy(mean_image)[None]  # (1, C, H, W)
        else:
            mean = scale * torch.tensor(normalization.mean, dtype=torch.float32).view(1, -1, 1, 1)  # (1, C, 1, 1)
        divisor = scale * torch.tensor(normalization.std, dtype=torch.float32).view(1, -1, 1, 1)  # (1, C, 1, 1)
        self.bgr = normalization.bgr
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("divisor", divisor, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the normalized images `(N, C, H, W)`, with the channels in BGR order for networks that expect it."""
        x = pixels.permute(0, 3, 1, 2).to(self.mean.dtype, memory_format=torch.contiguous_format)  # (N, C, H, W)
        x = (x - self.mean) / self.divisor  # (N, C, H, W)
        return x.flip(1) if self.bgr else x
