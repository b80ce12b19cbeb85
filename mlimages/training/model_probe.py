"""Compare networks as frozen feature extractors: accuracy, time and size."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence

import torch

from mlimages.core import DEFAULT_MODEL, InputError, ModelError, NoProgress, Progress, check_at_least, check_seed
from mlimages.labels import LabelFile, open_labels
from mlimages.networks import Model, build_model, has_local_weights
from mlimages.reports import ModelScore, ModelScores, sort_best_first
from mlimages.training.probing import MAX_IMAGES, probe_layers

SMALL_MODELS = (
    DEFAULT_MODEL,
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "squeezenet1_0",
    "squeezenet1_1",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "resnet18",
    "alexnet",
    "timm:mobilenetv4_conv_small.e2400_r224_in1k",
    "timm:vit_small_patch14_dinov2.lvd142m",
)
"""Networks that `probe_models(labels, "small")` compares, except those without weights on this machine."""

TIMED_BATCH_SIZE = 4
NUM_TIMED_PASSES = 3


def probe_models(
    labels: LabelFile | str | os.PathLike[str],
    models: str | Sequence[str],
    *,
    max_images: int = MAX_IMAGES,
    seed: int = 0,
    progress: Progress | None = None,
) -> ModelScores:
    """Compare networks as frozen feature extractors, on the same images: accuracy of a linear probe, CPU time and size.

    Args:
        labels: a label file, its path, or the path of a folder of class folders. There must be at least two classes,
            each with at least two images.
        models: one or more names of networks; `small` stands for the small networks with weights on this machine.
        max_images: maximum number of images. Of a larger dataset, a stratified sample of at least `max_images / 2`
            images is used.
        seed: random seed of the sample and of the subsets of it on which learning curves are computed.
        progress: shows the number of images processed.

    Returns:
        Accuracy, learning curve, time and size of each network, and the reason for each network that could not be
        probed.

    Raises:
        InputError: there are too few images, the label file is multi-label, `models` is empty, or an argument is out of
            range.
        ModelError: none of the networks can be probed.

    >>> result = probe_models("cats.txt", ["efficientnet_lite0", "alexnet"])  # doctest: +SKIP
    >>> result.scores[0].model  # doctest: +SKIP
    'efficientnet_lite0'
    """
    check_at_least(1, max_images=max_images)
    check_seed(seed)
    labels, progress = open_labels(labels), progress or NoProgress()
    models = [models] if isinstance(models, str) else models
    small = [name for name in SMALL_MODELS if has_local_weights(name)]
    names = dict.fromkeys(name for each in models for name in (small if each == "small" else [each]))
    if not names:
        raise InputError("no network to probe: pass one or more names")
    scores: list[ModelScore] = []
    unavailable: dict[str, str] = {}
    for name in names:
        try:
            model = build_model(name, num_classes=len(labels.class_names), seed=seed)
            probe = probe_layers(labels, model=name, max_images=max_images, seed=seed, progress=progress)
        except ModelError as error:
            unavailable[name] = str(error)
            continue
        num_values = sum(tensor.numel() for tensor in model.network.state_dict().values())
        scores.append(ModelScore(probe, _measure_cpu_time_ms(model), onnx_mb=4 * num_values / 1e6))  # float32
    if not scores:
        raise ModelError("; ".join(f"{name}: {reason}" for name, reason in unavailable.items()))
    return ModelScores(sort_best_first(scores), unavailable)


def _measure_cpu_time_ms(model: Model) -> float:
    """Return the CPU time per image in milliseconds: the median of NUM_TIMED_PASSES forward passes after a warmup."""
    images = torch.zeros(TIMED_BATCH_SIZE, *model.preprocessing.input_shape)
    times = []
    with torch.inference_mode():
        for _ in range(NUM_TIMED_PASSES + 1):
            start = time.process_time()
            model.network(images)
            times.append(time.process_time() - start)
    return 1000 * statistics.median(times[1:]) / TIMED_BATCH_SIZE
