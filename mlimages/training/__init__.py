"""A label file as arrays: mean image, batches, and arrays back to images."""

from mlimages.training.loading import load_in_order
from mlimages.training.mean_image import (
    MeanImage,
    compute_mean,
    load_mean_image,
)
from mlimages.training.training_data import TrainingData

__all__ = [
    "MeanImage",
    "TrainingData",
    "compute_mean",
    "load_in_order",
    "load_mean_image",
]
