"""One pass of training and one of validation."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mlimages.learning.features import Feed
from mlimages.learning.pictures import PictureSet
from mlimages.learning.recipe import EVALUATION_BATCH
from mlimages.progress import Progress

Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Seen:
    """Mean loss (nats), right answers, and pictures seen."""

    loss: float
    right: int
    count: int

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0..1."""
        return self.right / max(1, self.count)


@dataclass(frozen=True, slots=True)
class Validation:
    """What the network says of the validation pictures.

    Attributes:
        probabilities: float32 `(N, classes)`.
        places: which pictures these are; one that turned bad is missing.
    """

    seen: Seen
    probabilities: Tensor
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Teacher:
    """What turns logits into steps.

    Attributes:
        optimizer: over what is not frozen.
        lr_at: the learning rate at a step counted over the whole run.
        weights: of the classes in the loss `(classes,)`; None counts them alike.
        smoothing: of the labels.
        autocast: the precision to train in.
        steps: of one epoch.
        batch_size: pictures per step.
        seed: of the order of the pictures and of dropout.
    """

    optimizer: torch.optim.Optimizer
    lr_at: Callable[[int], float]
    weights: Tensor | None
    smoothing: float
    autocast: Autocast
    steps: int
    batch_size: int
    seed: int


def train_epoch(
    network: nn.Module,
    feed: Feed,
    pictures: PictureSet,
    teacher: Teacher,
    *,
    epoch: int,
    views: int,
    deadline: float,
    progress: Progress,
) -> Seen:
    """Train on every picture once, in an order and in views that seed and epoch decide.

    Args:
        epoch: counted from 1.
        views: how many fixed views there are; 0 makes a new one each time.
        deadline: stop early at this `time.monotonic()`.
    """
    torch.manual_seed(
        teacher.seed * 1_000_003 + epoch
    )  # dropout: an epoch depends on nothing before it but the weights
    order = np.random.default_rng([teacher.seed, epoch]).permutation(len(pictures)).tolist()
    network.train()
    loss_sum, right, count = 0.0, 0, 0
    batches = feed.batches(pictures, order, size=teacher.batch_size, view=_view(epoch, views))
    for step, fed in enumerate(batches, (epoch - 1) * teacher.steps):
        for group in teacher.optimizer.param_groups:
            group["lr"] = teacher.lr_at(step)
        with teacher.autocast():
            logits = feed.logits(fed.inputs)  # (n, classes)
        loss = nn.functional.cross_entropy(
            logits.float(), fed.labels, teacher.weights, label_smoothing=teacher.smoothing
        )
        teacher.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        teacher.optimizer.step()
        loss_sum += loss.item() * len(fed.labels)
        right += int((logits.argmax(1) == fed.labels).sum())
        count += len(fed.labels)
        progress.advance(len(fed.labels), loss=f"{loss_sum / count:.3f}", accuracy=f"{right / count:.1%}")
        if time.monotonic() > deadline:
            break
    return Seen(loss_sum / max(1, count), right, count)


def _view(epoch: int, views: int) -> Callable[[int], int]:
    return lambda place: (epoch + place) % views if views else epoch + place


def validate(network: nn.Module, feed: Feed, pictures: PictureSet) -> Validation:
    """What the network says of each picture as it is, in full precision as the exported file will."""
    network.eval()
    parts: list[Tensor] = []
    labels: list[Tensor] = []
    places: list[int] = []
    with torch.inference_mode():
        for fed in feed.batches(pictures, range(len(pictures)), size=EVALUATION_BATCH):
            parts.append(feed.logits(fed.inputs).float().cpu())
            labels.append(fed.labels.cpu())
            places += fed.places
    logits, truth = torch.cat(parts), torch.cat(labels)  # (N, classes), (N,)
    seen = Seen(float(nn.functional.cross_entropy(logits, truth)), int((logits.argmax(1) == truth).sum()), len(truth))
    return Validation(seen, logits.softmax(1), tuple(places))
