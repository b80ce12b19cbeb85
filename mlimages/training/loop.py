"""Train and validate one epoch; create the optimizer and the learning rate schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mlimages.core import Progress, format_percent, mean_average_precision
from mlimages.inference import MultiLabel
from mlimages.training import distributed
from mlimages.training.config import FineTuneConfig
from mlimages.training.features import EVALUATION_BATCH_SIZE, Batch, BatchSource
from mlimages.training.image_set import ImageSet, split_into_chunks
from mlimages.training.objective import Metrics, Objective

LR_FROM_SCRATCH = {"adamw": 1e-3, "adam": 1e-3, "sgd": 1e-2}
LR_HEAD_ONLY = {"adamw": 1e-4, "adam": 1e-4, "sgd": 1e-3}
LR_BELOW_HEAD = {"adamw": 7e-5, "adam": 7e-5, "sgd": 5e-3}

WARMUP_RATIO = 0.1
"""Share of the steps used for warmup, in which the learning rate rises, if the weights are pretrained."""


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """Predictions and metrics of a network on a validation set.

    Attributes:
        metrics: loss, accuracy and, in a multi-label run, mean average precision.
        logits: float32 `(N, classes)`.
        probabilities: float32 `(N, classes)`.
        targets: labels of the images, in the form of `ImageSet.labels`.
        image_indices: index of each row's image in the validation set; images that can no longer be read are left out.
    """

    metrics: Metrics
    logits: Tensor
    probabilities: Tensor
    targets: Tensor
    image_indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate schedule: linear warmup, then cosine decay to 1 % of the peak; other decays have no warmup.

    Attributes:
        peak_lr: maximum learning rate.
        steps_per_epoch: optimizer steps per epoch.
        epochs: number of epochs.
        warmup_ratio: share of all steps used for warmup, 0..1; only `cosine` uses it.
        decay: `cosine`; `exponential:GAMMA` multiplies the learning rate by GAMMA after each epoch,
            `step:EPOCHS:GAMMA` after every EPOCHS epochs; `none` keeps it constant.

    >>> schedule = Schedule(peak_lr=1.0, steps_per_epoch=10, epochs=1, warmup_ratio=0.2)
    >>> [round(schedule.get_lr(step), 2) for step in range(0, 11, 2)]
    [0.33, 1.0, 0.86, 0.51, 0.15, 0.01]
    >>> [round(Schedule(1.0, 10, 3, 0.2, "exponential:0.97").get_lr(step), 4) for step in (0, 9, 10, 29)]
    [1.0, 1.0, 0.97, 0.9409]
    >>> [Schedule(1.0, 10, 90, 0.2, "step:30:0.1").get_lr(10 * epoch) for epoch in (0, 29, 30)]
    [1.0, 1.0, 0.1]
    """

    peak_lr: float
    steps_per_epoch: int
    epochs: int
    warmup_ratio: float
    decay: str = "cosine"

    @classmethod
    def from_config(
        cls, config: FineTuneConfig, num_images: int, *, is_pretrained: bool, trains_below_head: bool
    ) -> Schedule:
        """Return the schedule of a run with `num_images` training images.

        If `config.lr` is 0 (`auto`), the peak depends on the optimizer, the layers that are trained and whether the
        weights are pretrained. Without pretrained weights, there is no warmup.
        """
        lr = LR_FROM_SCRATCH if not is_pretrained else LR_BELOW_HEAD if trains_below_head else LR_HEAD_ONLY
        steps = len(split_into_chunks(range(num_images), config.batch_size))
        warmup = WARMUP_RATIO if is_pretrained else 0.0
        return cls(config.lr or lr[config.optimizer], steps, config.epochs, warmup, config.schedule)

    def get_lr(self, step: int) -> float:
        """Return the learning rate at a step; steps are counted from 0 over all epochs."""
        kind, *numbers = self.decay.split(":")
        if kind != "cosine":
            every, gamma = map(float, {"none": "11", "exponential": ["1", *numbers], "step": numbers}[kind])
            return float(self.peak_lr * gamma ** (step // self.steps_per_epoch // every))
        steps, warmup_steps = self.steps_per_epoch * self.epochs, self.warmup_ratio * self.steps_per_epoch * self.epochs
        if step < warmup_steps:
            return self.peak_lr * (step + 1) / (warmup_steps + 1)
        progress = (step - warmup_steps) / (steps - warmup_steps)
        return self.peak_lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


class Trainer:
    """Trains the parameters that require gradients.

    Several processes share each batch, and `DistributedDataParallel` averages their gradients: the batches, their order
    and the weight of each image in the loss are the same as in a single process.

    Args:
        network: the full network.
        source: yields batches of images and computes their logits.
        optimizer: optimizer of the trainable parameters.
        schedule: learning rate by step.
        config: settings, of which the batch size and the random seed (of shuffling and dropout) are used.
        objective: loss function and score.
        autocast: returns the autocast context of the forward pass.
    """

    def __init__(
        self,
        network: nn.Module,
        source: BatchSource,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        config: FineTuneConfig,
        objective: Objective,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.optimizer, self.schedule = optimizer, schedule
        self._network, self._source, self._autocast = network, source, autocast
        self._batch_size, self._seed = config.batch_size, config.seed
        self._objective, self._is_multi_label = objective, isinstance(objective.inference_task, MultiLabel)
        self._forward: nn.Module = _LogitsModule(
            source, [p for group in optimizer.param_groups for p in group["params"]]
        )
        if distributed.world_size() > 1:
            # static_graph: unused parameters, such as those of an auxiliary head, are detected in the first step
            self._forward = DistributedDataParallel(self._forward, static_graph=True, gradient_as_bucket_view=True)

    def train_epoch(
        self, images: ImageSet, *, epoch: int, num_views: int, deadline: float, progress: Progress
    ) -> Metrics:
        """Train on every image once; the random seed and the epoch determine the order and the augmented views.

        Training stops early if the deadline passes or the loss is not finite.

        Args:
            images: training set.
            epoch: counted from 1.
            num_views: number of fixed augmented views per image; 0 draws new views in each epoch.
            deadline: value of `time.monotonic()` after which training stops.
            progress: shows the number of images processed.

        Returns:
            Metrics of the training images, computed during the epoch, with class weights and label smoothing.
        """
        torch.manual_seed(self._seed * 1_000_003 + epoch)  # a resumed run draws the same dropout masks
        order = np.random.default_rng([self._seed, epoch]).permutation(len(images)).tolist()
        self._network.train()
        metrics, indices, logits = Metrics(0.0, 0, 0), list[int](), list[Tensor]()

        def choose_view(image_index: int) -> int:  # successive epochs cycle through fixed views
            return (epoch + image_index) % num_views if num_views else epoch + image_index

        batches = self._source.batches(images, order, batch_size=self._batch_size, choose_view=choose_view)
        for step, batch in enumerate(batches, (epoch - 1) * self.schedule.steps_per_epoch):
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.get_lr(step)
            of_batch, batch_logits, is_late = self._train_step(batch, deadline)
            metrics += of_batch
            if self._is_multi_label:  # its score cannot be summed over batches
                logits.append(batch_logits)
                indices += batch.image_indices
            progress.advance(of_batch.num_images, loss=f"{metrics.loss:.3f}", accuracy=format_percent(metrics.accuracy))
            if is_late or not math.isfinite(metrics.loss):
                break
        distributed.broadcast_tensors(self._network.buffers())  # running statistics of batch norm
        if not self._is_multi_label:
            return metrics
        found, rows = distributed.gather_rows(indices, {"logits": torch.cat(logits)})
        mean_ap = mean_average_precision(rows["logits"].numpy(), images.labels[found].bool().numpy())
        return replace(metrics, mean_ap=mean_ap)

    def _train_step(self, batch: Batch, deadline: float) -> tuple[Metrics, Tensor, bool]:
        """Take one optimizer step.

        Return the metrics of the whole batch, this process's logits, and whether any process is past the deadline.

        The gradient is that of the weighted mean loss of the whole batch. `DistributedDataParallel` averages the
        gradients of the processes, so each process multiplies the sum of its losses by the number of processes, and
        divides it by the weight of the whole batch. A process without an image has the loss 0.
        """
        count = len(batch.image_indices)
        distributed.set_batch_norm_mode(self._network, num_images=count)
        is_partial = distributed.world_size() > 1 or count < batch.global_batch_size
        dropout = (
            distributed.GlobalBatchDropout(batch.global_batch_positions, batch.global_batch_size)
            if is_partial
            else nullcontext()
        )
        with dropout, self._autocast():
            logits = self._forward(*batch.inputs)[:count]  # (N, classes)
        loss, weight = self._objective.sum_losses_and_weights(logits.float(), batch.labels)
        correct = self._objective.count_correct(logits, batch.labels)
        is_late = time.monotonic() > deadline
        totals = distributed.all_reduce(
            torch.tensor([weight, loss.item(), correct, count, is_late], device=loss.device)
        )
        weight, loss_sum, correct, count, is_late = totals.tolist()
        weight = max(weight, 1e-9)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * (distributed.world_size() / weight)).backward()
        if count:  # 0 if no image of the batch can be read any more
            self.optimizer.step()
        return Metrics(loss_sum / weight, int(correct), int(count)), logits.detach().float(), bool(is_late)


class _LogitsModule(nn.Module):
    """Module with the trainable parameters and the forward pass of a batch source, for `DistributedDataParallel`."""

    def __init__(self, source: BatchSource, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self._source, self._parameters_trained = source, nn.ParameterList(parameters)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute logits `(N, classes)`."""
        return self._source.compute_logits(inputs)


def validate(network: nn.Module, source: BatchSource, images: ImageSet, objective: Objective) -> ValidationResult:
    """Evaluate the network on a validation set, without augmentation and in float32, like the exported file."""
    network.eval()
    logits: list[Tensor] = []
    indices: list[int] = []
    with torch.inference_mode():
        for batch in source.batches(images, range(len(images)), batch_size=EVALUATION_BATCH_SIZE):
            logits.append(source.compute_logits(batch.inputs)[: len(batch.image_indices)].float())
            indices += batch.image_indices
    found, rows = distributed.gather_rows(indices, {"logits": torch.cat(logits)})
    targets = images.labels[found]
    metrics = objective.compute_metrics(rows["logits"], targets)
    probabilities = objective.compute_probabilities(rows["logits"])
    return ValidationResult(metrics, rows["logits"], probabilities, targets, tuple(found.tolist()))


def make_optimizer(network: nn.Module, config: FineTuneConfig, *, lr: float) -> torch.optim.Optimizer:
    """Return the optimizer of `config` for the trainable parameters, with learning rate `lr`."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(trained, lr, momentum=config.momentum, weight_decay=config.weight_decay)
    adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return adam(trained, lr, weight_decay=config.weight_decay)
