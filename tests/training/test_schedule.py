"""The learning rate of each step against torch's schedulers, and the steps of an epoch against plain torch."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler

from mlimages.core import NoProgress
from mlimages.training import FineTuneConfig
from mlimages.training.features import Batch
from mlimages.training.image_set import ChooseView, choose_original_view
from mlimages.training.loop import (
    LR_BELOW_HEAD,
    LR_FROM_SCRATCH,
    LR_HEAD_ONLY,
    Metrics,
    Schedule,
    Trainer,
    make_optimizer,
    validate,
)
from mlimages.training.objective import make_objective

PEAK = 0.3


def settings(**options: Any) -> FineTuneConfig:
    return FineTuneConfig("a.txt", "run", **options)


def run_epoch(trainer: Trainer, images: Any, epoch: int, *, num_views: int = 0, **options: Any) -> Metrics:
    options = {"deadline": math.inf, "progress": NoProgress(), **options}
    return trainer.train_epoch(images, epoch=epoch, num_views=num_views, **options)


def torchs(kind: str, steps: int, **options: float) -> list[float]:
    """The rates of a scheduler of torch over some steps (cosine) or epochs."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], PEAK)
    scheduler = getattr(lr_scheduler, kind)(optimizer, **options)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("steps", "epochs", "warmup"), [(10, 4, 0.1), (7, 3, 0.0), (5, 2, 0.5), (1, 1, 0.0)])
def test_after_a_linear_warmup_the_rate_falls_as_torchs_cosine_to_a_hundredth(
    steps: int, epochs: int, warmup: float
) -> None:
    schedule, total = Schedule(PEAK, steps, epochs, warmup), steps * epochs
    rising = round(warmup * total)
    assert [schedule.get_lr(step) for step in range(rising)] == pytest.approx(
        [PEAK * (step + 1) / (rising + 1) for step in range(rising)]
    )
    expected = torchs("CosineAnnealingLR", total - rising, T_max=total - rising, eta_min=PEAK / 100)
    assert [schedule.get_lr(step) for step in range(rising, total)] == pytest.approx(expected)
    assert schedule.get_lr(total) == pytest.approx(PEAK / 100)


def test_other_decays_are_torchs_epoch_by_epoch() -> None:
    expected = {
        "exponential:0.9": torchs("ExponentialLR", 7, gamma=0.9),
        "step:3:0.2": torchs("StepLR", 7, step_size=3, gamma=0.2),
        "none": [PEAK] * 7,
    }
    for decay, rates in expected.items():
        schedule = Schedule(PEAK, 4, 7, 0.1, decay)
        for epoch, rate in enumerate(rates):
            assert [schedule.get_lr(4 * epoch + step) for step in range(4)] == pytest.approx([rate] * 4), decay


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_the_rate_and_the_warmup_follow_from_what_is_trained(optimizer: str) -> None:
    def schedule(*, pretrained: bool, below: bool, lr: float = 0.0) -> Schedule:
        config = settings(optimizer=optimizer, lr=lr, epochs=5, batch_size=8)
        return Schedule.from_config(config, 18, is_pretrained=pretrained, trains_below_head=below)

    assert schedule(pretrained=False, below=True) == Schedule(LR_FROM_SCRATCH[optimizer], 3, 5, 0.0)
    assert schedule(pretrained=True, below=True) == Schedule(LR_BELOW_HEAD[optimizer], 3, 5, 0.1)
    assert schedule(pretrained=True, below=False) == Schedule(LR_HEAD_ONLY[optimizer], 3, 5, 0.1)
    assert schedule(pretrained=True, below=False, lr=0.7) == Schedule(0.7, 3, 5, 0.1)


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_the_optimizer_has_the_trainable_parameters_and_the_settings(
    name: str, kind: type[torch.optim.Optimizer]
) -> None:
    network = torch.nn.Linear(2, 3)
    network.bias.requires_grad_(False)
    config = settings(optimizer=name, weight_decay=0.03, momentum=0.8)
    optimizer = make_optimizer(network, config, lr=0.2)
    (group,) = optimizer.param_groups
    assert type(optimizer) is kind
    assert [id(parameter) for parameter in group["params"]] == [id(network.weight)]
    assert (group["lr"], group["weight_decay"]) == (0.2, 0.03)
    assert group.get("momentum", 0.8) == 0.8


class Rows:
    """A set of rows `(N, 5)` as a source of batches; rows that are `gone` cannot be read any more."""

    def __init__(self, network: nn.Module, x: torch.Tensor, labels: torch.Tensor, gone: Sequence[int] = ()) -> None:
        self.network, self.x, self.labels, self.gone = network, x, labels, gone
        self.views: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.x)

    def batches(
        self, images: Any, order: Sequence[int], *, batch_size: int, choose_view: ChooseView = choose_original_view
    ) -> Iterator[Batch]:
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            self.views += [(index, choose_view(index)) for index in chunk]
            kept = tuple(index for index in chunk if index not in self.gone)
            rows = tuple(chunk.index(index) for index in kept)
            inputs = self.x[list(kept)] if kept else torch.zeros(1, 5)
            yield Batch((inputs,), self.labels[list(kept)], kept, rows, len(chunk))

    def compute_logits(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        found: torch.Tensor = self.network(*inputs)
        return found


def make_trainer(source: Rows, config: FineTuneConfig, schedule: Schedule) -> Trainer:
    objective = make_objective(config, source.labels, 3, torch.device("cpu"))
    optimizer = make_optimizer(source.network, config, lr=schedule.peak_lr)
    return Trainer(
        source.network, source, optimizer, schedule, config=config, objective=objective, autocast=nullcontext
    )


def trained_on(gone: Sequence[int], *, smoothing: float, weights: Any, deadline: float = math.inf) -> Any:
    """One epoch of `Trainer`, and the same in plain torch."""
    rng = torch.Generator().manual_seed(0)
    x, labels = torch.randn(11, 5, generator=rng), torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    config = settings(optimizer="sgd", batch_size=4, seed=3, label_smoothing=smoothing, class_weights=weights)
    networks = [nn.Linear(5, 3) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    schedule = Schedule(0.5, 3, 2, 0.0)
    source = Rows(networks[0], x, labels, gone)
    metrics = run_epoch(make_trainer(source, config, schedule), source, 2, num_views=3, deadline=deadline)

    optimizer = make_optimizer(networks[1], config, lr=0.5)
    class_weights = torch.tensor([11 / 15, 11 / 9, 11 / 9]) if weights == "balanced" else None
    loss_of = nn.CrossEntropyLoss(class_weights, label_smoothing=smoothing)
    order = np.random.default_rng([3, 2]).permutation(11).tolist()
    losses, correct = [], 0
    for step, start in enumerate(range(0, 11, 4), 3):
        kept = [index for index in order[start : start + 4] if index not in gone]
        optimizer.param_groups[0]["lr"] = schedule.get_lr(step)
        logits = networks[1](x[kept])
        correct += int((logits.argmax(1) == labels[kept]).sum())
        losses.append((loss_of(logits, labels[kept]).item(), len(kept)))
        optimizer.zero_grad()
        loss_of(logits, labels[kept]).backward()
        optimizer.step()
        if deadline == 0.0:
            break
    loss = sum(value * count for value, count in losses) / sum(count for _, count in losses)
    return networks, metrics, (loss, correct, sum(count for _, count in losses)), source


@pytest.mark.parametrize("weights", ["none", "balanced"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("gone", [(), (1, 7)])
def test_an_epoch_is_what_torch_does_step_by_step(gone: tuple[int, ...], smoothing: float, weights: str) -> None:
    (trained, expected), metrics, (loss, correct, count), source = trained_on(
        gone, smoothing=smoothing, weights=weights
    )
    assert torch.allclose(trained.weight, expected.weight, atol=1e-6)
    assert torch.allclose(trained.bias, expected.bias, atol=1e-6)
    assert (metrics.loss, metrics.num_correct, metrics.num_images) == (pytest.approx(loss, rel=1e-5), correct, count)
    assert sorted(source.views) == [(index, (index + 2) % 3) for index in range(11)]


def test_after_the_deadline_no_further_step_is_taken() -> None:
    (trained, expected), metrics, (loss, *_), _ = trained_on((), smoothing=0.0, weights="none", deadline=0.0)
    assert time.monotonic() > 0
    assert torch.allclose(trained.weight, expected.weight, atol=1e-6)
    assert (metrics.loss, metrics.num_images) == (pytest.approx(loss, rel=1e-5), 4)


class Counts(NoProgress):
    """Counts the images that are reported."""

    def __init__(self) -> None:
        self.count = 0

    def advance(self, count: int = 1, **figures: object) -> None:
        self.count += count
        assert figures.keys() == {"loss", "accuracy"}


def dropout_trainer(*, lr: float = 0.1, rows: int = 8, seed: int = 5) -> tuple[nn.Module, Trainer, Rows]:
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3))
    config = settings(optimizer="sgd", batch_size=4, seed=seed)
    source = Rows(network, torch.linspace(-1, 1, 5 * rows).reshape(rows, 5), torch.arange(rows) % 3)
    return network, make_trainer(source, config, Schedule(lr, 2, 3, 0.0, "none")), source


def test_dropout_depends_on_seed_and_epoch_alone_and_is_off_in_validation() -> None:
    states = []
    network, trainer, source = dropout_trainer()
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for epoch in (1, 1, 2):
        torch.manual_seed(len(states))  # whatever was drawn before
        network.load_state_dict(start)
        network.eval()
        trainer.optimizer.state.clear()
        run_epoch(trainer, source, epoch)
        states.append(network[1].weight.detach().clone())  # type: ignore[index]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    other, other_trainer, other_source = dropout_trainer(seed=6)
    other.load_state_dict(start)
    progress = Counts()
    other_trainer._batch_size = 8  # one step: the order of the images does not matter
    trainer._batch_size = 8
    run_epoch(other_trainer, other_source, 1, progress=progress)
    network.load_state_dict(start)
    trainer.optimizer.state.clear()
    run_epoch(trainer, source, 1)
    assert not torch.allclose(network[1].weight, other[1].weight, atol=1e-4)  # type: ignore[index]
    assert progress.count == 8
    assert {view - index for index, view in source.views} == {1, 2}, "new views in each epoch"
    source.gone = (2, 3)
    validation = validate(network, source, source, trainer._objective)  # type: ignore[arg-type]
    expected = network[1](source.x)[[0, 1, 4, 5, 6, 7]]  # type: ignore[index]
    assert validation.image_indices == (0, 1, 4, 5, 6, 7)
    assert torch.allclose(validation.logits, expected)
    assert torch.equal(validation.targets, source.labels[[0, 1, 4, 5, 6, 7]])
    assert validation.metrics.num_images == 6


def test_a_loss_that_is_not_finite_ends_the_epoch_and_no_image_is_no_step() -> None:
    network, trainer, source = dropout_trainer(rows=12)
    source.x[:] = math.nan
    metrics = run_epoch(trainer, source, 1)
    assert (metrics.num_images, math.isfinite(metrics.loss)) == (4, False)
    network, trainer, source = dropout_trainer()
    before = network[1].weight.detach().clone()  # type: ignore[index]
    source.gone = range(8)
    metrics = run_epoch(trainer, source, 1)
    assert torch.equal(network[1].weight, before)  # type: ignore[index]
    assert metrics == Metrics(0.0, 0, 0)


@pytest.mark.parametrize("gone", [(), (0,), (2, 5)])
def test_an_image_that_is_gone_leaves_the_dropout_of_the_others(gone: tuple[int, ...]) -> None:
    network, trainer, source = dropout_trainer(seed=6)
    trainer._batch_size, source.gone = 8, gone
    linear = nn.Linear(5, 3)
    linear.load_state_dict(network[1].state_dict())  # type: ignore[index]
    run_epoch(trainer, source, 2)
    order = np.random.default_rng([6, 2]).permutation(8).tolist()
    torch.manual_seed(6 * 1_000_003 + 2)
    masks = functional.dropout(torch.ones(8, 5), 0.5)  # of the whole batch, as torch draws them
    rows = [row for row, index in enumerate(order) if index not in gone]
    kept = [order[row] for row in rows]
    nn.CrossEntropyLoss()(linear(source.x[kept] * masks[rows]), source.labels[kept]).backward()
    make_optimizer(linear, settings(optimizer="sgd"), lr=0.1).step()
    assert torch.allclose(network[1].weight, linear.weight, atol=1e-6)  # type: ignore[index]


def test_the_mean_average_precision_of_an_epoch_is_scikit_learns() -> None:
    rng = torch.Generator().manual_seed(1)
    x, labels = torch.randn(11, 5, generator=rng), (torch.rand(11, 3, generator=rng) < 0.4).float()
    network, config = nn.Linear(5, 3), settings(batch_size=4)
    source = Rows(network, x, labels, gone=(3,))
    metrics = run_epoch(make_trainer(source, config, Schedule(0.0, 3, 1, 0.0)), source, 1)
    kept = [index for index in range(11) if index != 3]
    scores = network(x[kept]).detach().numpy()
    expected = [average_precision_score(labels[kept, one], scores[:, one]) for one in range(3)]
    assert metrics.mean_ap == pytest.approx(np.mean(expected))
    assert metrics.num_images == 10
