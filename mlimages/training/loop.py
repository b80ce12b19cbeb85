"""One pass of training and one of validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mlimages.core import Progress
from mlimages.training import distributed
from mlimages.training.features import Fed, Feed
from mlimages.training.global_batch import OneBatch
from mlimages.training.image_cache import PictureSet
from mlimages.training.schedule import EVALUATION_BATCH

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

    def with_more(self, more: Seen) -> Seen:
        """These and others."""
        count = self.count + more.count
        loss = (self.loss * self.count + more.loss * more.count) / max(1, count)
        return Seen(loss, self.right + more.right, count)


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
    whole = Seen(0.0, 0, 0)
    batches = feed.batches(pictures, order, size=teacher.batch_size, view=_view(epoch, views))
    for step, fed in enumerate(batches, (epoch - 1) * teacher.steps):
        for group in teacher.optimizer.param_groups:
            group["lr"] = teacher.lr_at(step)
        seen, late = _step(feed, fed, teacher, deadline)
        whole = whole.with_more(seen)
        progress.advance(seen.count, loss=f"{whole.loss:.3f}", accuracy=f"{whole.accuracy:.1%}")
        if late or not math.isfinite(whole.loss):
            break
    return whole


def _step(feed: Feed, fed: Fed, teacher: Teacher, deadline: float) -> tuple[Seen, bool]:
    """Step down the gradient of the mean loss over the batch of all processes; whether the deadline is past."""
    in_part = distributed.count() > 1 or len(fed.places) < fed.size
    with OneBatch(fed.rows, fed.size) if in_part else nullcontext(), teacher.autocast():
        logits = feed.logits(fed.inputs)[: len(fed.places)]  # (n, classes)
    loss = nn.functional.cross_entropy(
        logits.float(), fed.labels, teacher.weights, label_smoothing=teacher.smoothing, reduction="sum"
    )
    teacher.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    weight = len(fed.places) if teacher.weights is None else float(teacher.weights[fed.labels].sum())
    right = int((logits.argmax(1) == fed.labels).sum())
    sums = torch.tensor([weight, loss.item(), right, len(fed.places), time.monotonic() > deadline], device=loss.device)
    trained = [parameter for group in teacher.optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    distributed.add_up([*gradients, sums])
    weight, loss_sum, right_ones, count, late = sums.tolist()
    if count:  # else all of them turned bad
        for gradient in gradients:
            gradient /= weight
        teacher.optimizer.step()
    return Seen(loss_sum / max(weight, 1e-9), int(right_ones), int(count)), bool(late)


def _view(epoch: int, views: int) -> Callable[[int], int]:
    return lambda place: (epoch + place) % views if views else epoch + place


def validate(network: nn.Module, feed: Feed, pictures: PictureSet) -> Validation:
    """What the network says of each picture as it is, in full precision as the exported file will."""
    network.eval()
    logits: list[Tensor] = []
    places: list[int] = []
    with torch.inference_mode():
        for fed in feed.batches(pictures, range(len(pictures)), size=EVALUATION_BATCH):
            logits.append(feed.logits(fed.inputs)[: len(fed.places)].float().cpu())
            places += fed.places
    rows = distributed.joined_rows({"logits": torch.cat(logits), "places": torch.tensor(places)})
    truth = pictures.labels[rows["places"]]  # (N,)
    right = int((rows["logits"].argmax(1) == truth).sum())
    seen = Seen(float(nn.functional.cross_entropy(rows["logits"], truth)), right, len(truth))
    return Validation(seen, rows["logits"].softmax(1), tuple(rows["places"].tolist()))
