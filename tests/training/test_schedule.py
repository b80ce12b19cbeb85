"""The learning rate of each step against torch's schedulers, and metrics of unequal batches."""

from pathlib import Path

import pytest
import torch
from torch.optim import lr_scheduler

from mlimages.training import FineTuneConfig
from mlimages.training.loop import HEAD_LR, SCRATCH_LR, TUNING_LR, Metrics, Schedule, make_optimizer

PEAK = 0.3


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
    assert [schedule.lr_at(step) for step in range(rising)] == pytest.approx(
        [PEAK * (step + 1) / (rising + 1) for step in range(rising)]
    )
    expected = torchs("CosineAnnealingLR", total - rising, T_max=total - rising, eta_min=PEAK / 100)
    assert [schedule.lr_at(step) for step in range(rising, total)] == pytest.approx(expected)
    assert schedule.lr_at(total) == pytest.approx(PEAK / 100)


def test_other_decays_are_torchs_epoch_by_epoch() -> None:
    expected = {
        "exponential:0.9": torchs("ExponentialLR", 7, gamma=0.9),
        "step:3:0.2": torchs("StepLR", 7, step_size=3, gamma=0.2),
        "none": [PEAK] * 7,
    }
    for decay, rates in expected.items():
        schedule = Schedule(PEAK, 4, 7, 0.1, decay)
        for epoch, rate in enumerate(rates):
            assert [schedule.lr_at(4 * epoch + step) for step in range(4)] == pytest.approx([rate] * 4), decay


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_the_rate_and_the_warmup_follow_from_what_is_trained(optimizer: str) -> None:
    def schedule(*, pretrained: bool, below: bool, lr: float = 0.0) -> Schedule:
        config = FineTuneConfig(Path("a.txt"), Path("run"), optimizer=optimizer, lr=lr, epochs=5, batch_size=8)  # type: ignore[arg-type]
        return Schedule.for_run(config, 18, pretrained=pretrained, trains_below_head=below)

    assert schedule(pretrained=False, below=True) == Schedule(SCRATCH_LR[optimizer], 3, 5, 0.0)
    assert schedule(pretrained=True, below=True) == Schedule(TUNING_LR[optimizer], 3, 5, 0.1)
    assert schedule(pretrained=True, below=False) == Schedule(HEAD_LR[optimizer], 3, 5, 0.1)
    assert schedule(pretrained=True, below=False, lr=0.7) == Schedule(0.7, 3, 5, 0.1)


def test_metrics_of_unequal_batches_add_up() -> None:
    together = Metrics(2.0, 1, 1) + Metrics(0.5, 3, 9)
    assert (together.loss, together.correct, together.count) == (pytest.approx(0.65), 4, 10)
    assert together.accuracy == 0.4
    assert Metrics(0.0, 0, 0) + Metrics(0.0, 0, 0) == Metrics(0.0, 0, 0)
    assert Metrics(2.0, 1, 1) + Metrics(0.0, 0, 0) == Metrics(2.0, 1, 1)
    assert Metrics(0.0, 0, 0).accuracy == 0.0
    assert Metrics(1.0, 1, 1).accuracy == 1.0


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_the_optimizer_has_the_trainable_parameters_and_the_settings(
    name: str, kind: type[torch.optim.Optimizer]
) -> None:
    network = torch.nn.Linear(2, 3)
    network.bias.requires_grad_(False)
    config = FineTuneConfig(Path("a.txt"), Path("run"), optimizer=name, weight_decay=0.03, momentum=0.8)  # type: ignore[arg-type]
    optimizer = make_optimizer(network, config, lr=0.2)
    (group,) = optimizer.param_groups
    assert type(optimizer) is kind
    assert [id(parameter) for parameter in group["params"]] == [id(network.weight)]
    assert (group["lr"], group["weight_decay"]) == (0.2, 0.03)
    assert group.get("momentum", 0.8) == 0.8
