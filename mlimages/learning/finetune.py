"""Fine-tuning: a pretrained network learns new classes while its lower layers stay as they are."""

from __future__ import annotations

import csv
import functools
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file
from torch import nn

from mlimages.errors import RunError
from mlimages.files import replacing, write_text
from mlimages.intervals import wilson_interval
from mlimages.labels.label_file import relative_name
from mlimages.learning import account
from mlimages.learning.augment import Augment
from mlimages.learning.checkpoints import (
    Progressed,
    blended,
    load_progress,
    optimizer_tensors,
    restore,
    restore_optimizer,
    save_network,
    save_progress,
    save_tensors,
    trained_tensors,
)
from mlimages.learning.config import FineTuneConfig
from mlimages.learning.devices import autocast, choose_device
from mlimages.learning.export import export_run
from mlimages.learning.features import Feed, FrozenFeatures, PixelFeed
from mlimages.learning.freezing import FrozenPart, freeze
from mlimages.learning.loop import Teacher, Validation, train_epoch, validate
from mlimages.learning.models import Model
from mlimages.learning.normalize import Normalize
from mlimages.learning.pictures import PictureSet, chunks
from mlimages.learning.preparation import Setup, prepare
from mlimages.learning.recipe import (
    WARM_UP,
    class_weights,
    highest_lr,
    make_optimizer,
    reach_head,
    share_of_lr,
    start_head,
)
from mlimages.learning.run import EpochFigures, RunFiles, write_metrics
from mlimages.learning.run_log import logged_to
from mlimages.learning.splitting import split
from mlimages.progress import NoProgress, Progress
from mlimages.records import BrokenImage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FineTuneResult:
    """How a run ended; accuracies in 0..1.

    Attributes:
        run: the run folder.
        val_accuracy: of the best epoch, on the validation pictures that also chose it.
        val_interval: its 95 % interval.
        probe_accuracy: of the closed-form head before the first epoch; None where the network starts at random.
        best_epoch: 0 is the closed-form head.
        epochs: trained.
        tuned_share: of the way from the weights at the start to the tuned ones; below 1 where `interpolate` chose so.
        frozen_digest: of the frozen weights, the same at start and end; empty where nothing is frozen.
        broken: pictures left out.
        seconds: since the run began, pauses aside.
        onnx: the exported file; None where none was asked for.
    """

    run: Path
    model: str
    freeze: str
    classes: tuple[str, ...]
    train_images: int
    val_images: int
    val_accuracy: float
    val_interval: tuple[float, float]
    probe_accuracy: float | None
    best_epoch: int
    epochs: int
    tuned_share: float
    frozen_digest: str
    broken: tuple[BrokenImage, ...]
    seconds: float
    onnx: Path | None

    def to_dict(self) -> dict[str, object]:
        """The figures as JSON takes them."""
        paths = {"run": str(self.run), "onnx": None if self.onnx is None else str(self.onnx)}
        return {**asdict(self), **paths}


class Callback(Protocol):
    """Told of a run while it goes on."""

    def epoch_ended(self, figures: EpochFigures) -> None:
        """An epoch was trained, validated and saved."""


@dataclass(frozen=True, slots=True)
class Job:
    """All that trains: the network, its cut, and what feeds it."""

    config: FineTuneConfig
    files: RunFiles
    setup: Setup
    frozen: FrozenPart
    digest: str
    feed: Feed
    train: PictureSet
    val: PictureSet
    views: int

    @property
    def network(self) -> nn.Module:
        """The whole network."""
        return self.setup.model.network


def fine_tune(
    config: FineTuneConfig,
    *,
    export: bool = True,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
) -> FineTuneResult:
    """Train as `config` says, into the folder `config.out`; an interrupted run in that folder goes on.

    Args:
        config: all settings.
        export: at the end write `model.onnx`, the plots and the page.
        progress: told of pictures as they pass.
        callbacks: told of each epoch.

    Raises:
        InputError: the pictures cannot be trained on.
        ModelError: the network cannot be built, or would have nothing to learn.
        RunError: the folder holds a run with other settings.
        ExportError: the ONNX file would answer otherwise than the network.
    """
    files, progress = RunFiles(config.out), progress or NoProgress()
    with logged_to(files.log), torch.random.fork_rng():
        started = time.monotonic()
        setup = prepare(config, files, progress)
        job = _assemble(config, files, setup, progress)
        before = load_progress(files) or _begin(job)
        progressed = _train(job, before, started=started, progress=progress, callbacks=callbacks)
        return _finish(job, progressed, export=export and not (progressed is before and files.onnx.exists()))


def _assemble(config: FineTuneConfig, files: RunFiles, setup: Setup, progress: Progress) -> Job:
    """Freeze, cut, and choose what feeds the trainable part."""
    device = choose_device(config.device)
    model, image = setup.model, setup.preprocessing.image
    network = model.network.to(device)
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)
    normalize = Normalize(setup.preprocessing.normalization, setup.mean_image).to(device)
    frozen = freeze(model, config.freeze, regex=config.freeze_regex)
    digest = frozen.digest(network) if frozen.parameters else ""
    strength = config.augment
    if strength == "auto":
        strength = "light" if model.pretrained and _learns_below_head(model) else "none"
    views = Augment(strength, config.rotate_deg, config.seed)
    augment = views if strength != "none" or config.rotate_deg else None
    train = PictureSet(setup.data.train, image, store=setup.pixels, augment=augment)
    val = PictureSet(setup.data.val, image, store=setup.pixels)
    fixed = 1 if augment is None else views.fixed_views if frozen.parameters else 0
    example = torch.zeros(2, max(image.channels, len(normalize.mean[0])), image.height, image.width, device=device)
    feed: Feed = PixelFeed(network, normalize, device)
    if config.cache and (halves := split(network, frozen, example)):
        features = FrozenFeatures(
            halves,
            normalize,
            digest=digest,
            preprocessing=setup.preprocessing,
            budget=config.feature_bytes,
            device=device,
        )
        if features.fill((train, fixed), (val, 1), progress=progress):
            feed = features
    return Job(config, files, setup, frozen, digest, feed, train, val, fixed)


def _learns_below_head(model: Model) -> bool:
    trained = (name for name, parameter in model.network.named_parameters() if parameter.requires_grad)
    return any(not name.startswith(f"{model.head}.") for name in trained)


def _begin(job: Job) -> Progressed:
    """Where the first epoch starts: the closed-form head on a pretrained network, else what chance gave."""
    account.name_left_out(job.files.folder, job.setup.data.broken)
    if not job.setup.model.pretrained:
        return Progressed({})
    model, names = job.setup.model, job.setup.class_names
    reached = reach_head(model, job.feed, job.train)
    judged = [(job.train, reached), (job.val, reach_head(model, job.feed, job.val))]
    account.name_suspects(job.files.folder, judged, names, seed=job.config.seed)
    if start_head(model, job.feed, job.train, reached, len(names)) is None:
        return Progressed({})
    seen = validate(job.network, job.feed, job.val, functools.partial(autocast, _device(job.network))).seen
    logger.info("closed-form head: %.1f %% on %d validation pictures", 100 * seen.accuracy, seen.count)
    save_network(job.network, job.files.best)
    start = trained_tensors(job.network)
    if job.config.interpolate:
        save_tensors(start, job.files.start)
    return Progressed(start, best_score=(seen.accuracy, -seen.loss), probe_accuracy=seen.accuracy)


def _train(
    job: Job, before: Progressed, *, started: float, progress: Progress, callbacks: Sequence[Callback]
) -> Progressed:
    config, network = job.config, job.network
    device = _device(network)
    precision = functools.partial(autocast, device)
    steps = len(list(chunks(range(len(job.train)), config.batch_size)))
    pretrained = job.setup.model.pretrained
    lr = highest_lr(config, pretrained=pretrained, below_head=_learns_below_head(job.setup.model))
    warm_up = WARM_UP if pretrained else 0.0
    weights = class_weights(config, job.train.labels, len(job.setup.class_names))
    teacher = Teacher(
        optimizer=make_optimizer(network, config, lr=lr),
        lr_at=lambda step: lr * share_of_lr(step, steps * config.epochs, warm_up=warm_up),
        weights=None if weights is None else weights.to(device),
        smoothing=config.label_smoothing,
        autocast=precision,
    )
    restore(network, before.tensors)
    restore_optimizer(teacher.optimizer, before.tensors)
    now = before
    deadline = started - before.seconds + config.time_budget_s if config.time_budget_s else math.inf
    progress.start("train", len(job.train) * (config.epochs - len(before.history)), "img")
    for epoch in range(len(before.history) + 1, config.epochs + 1):
        if _is_over(now, config, deadline):
            break
        clock = time.monotonic()
        seen = train_epoch(
            network,
            job.feed,
            job.train,
            teacher,
            epoch=epoch,
            steps=steps,
            batch_size=config.batch_size,
            views=job.views,
            seed=config.seed,
            deadline=deadline,
            progress=progress,
        )
        checked = validate(network, job.feed, job.val, precision).seen
        figures = EpochFigures(
            epoch=epoch,
            lr=teacher.lr_at(epoch * steps - 1),
            train_loss=seen.loss,
            train_accuracy=seen.accuracy,
            val_loss=checked.loss,
            val_accuracy=checked.accuracy,
            seconds=time.monotonic() - clock,
        )
        now = _keep(job, now, figures, teacher.optimizer, seconds=before.seconds + time.monotonic() - started)
        for callback in callbacks:
            callback.epoch_ended(figures)
    progress.close()
    return now


def _is_over(now: Progressed, config: FineTuneConfig, deadline: float) -> bool:
    waited = len(now.history) - now.best_epoch
    if config.early_stop and now.history and waited >= config.early_stop:
        logger.info("stopped: no better validation accuracy in %d epochs", waited)
        return True
    if now.history and time.monotonic() > deadline:
        logger.info("stopped: the time budget is spent")
        return True
    return False


def _keep(
    job: Job, before: Progressed, figures: EpochFigures, optimizer: torch.optim.Optimizer, *, seconds: float
) -> Progressed:
    """Write the epoch's checkpoints, then the state that makes it done, then its line."""
    score = (figures.val_accuracy, -figures.val_loss)
    better = score > before.best_score
    save_network(job.network, job.files.last, also=job.files.best if better else None)
    now = Progressed(
        {
            **trained_tensors(job.network),
            **optimizer_tensors(optimizer),
        },
        history=(*before.history, figures),
        best_epoch=figures.epoch if better else before.best_epoch,
        best_score=score if better else before.best_score,
        probe_accuracy=before.probe_accuracy,
        seconds=seconds,
    )
    save_progress(job.files, now)
    write_metrics(job.files, now.history)
    logger.info("epoch %d: validation %.1f %%, loss %.4f", figures.epoch, 100 * figures.val_accuracy, figures.val_loss)
    return now


def _finish(job: Job, progressed: Progressed, *, export: bool) -> FineTuneResult:
    """Take the best epoch, see that the frozen part is untouched, and write what the run has to say."""
    network, config, files = job.network, job.config, job.files
    if job.digest and job.frozen.digest(network) != job.digest:
        raise RunError(f"{files.folder}: the frozen part changed while training; please report this")
    network.load_state_dict(load_file(files.best))
    share = _interpolate(job) if config.interpolate and files.start.exists() else 1.0
    checked = validate(network, job.feed, job.val, functools.partial(autocast, _device(network)))
    _write_predictions(job, checked)
    if export:
        export_run(files.folder, files.onnx)
    result = FineTuneResult(
        run=files.folder,
        model=config.model,
        freeze=config.freeze_regex or config.freeze,
        classes=job.setup.class_names,
        train_images=len(job.train),
        val_images=checked.seen.count,
        val_accuracy=checked.seen.accuracy,
        val_interval=wilson_interval(checked.seen.right, checked.seen.count),
        probe_accuracy=progressed.probe_accuracy,
        best_epoch=progressed.best_epoch,
        epochs=len(progressed.history),
        tuned_share=share,
        frozen_digest=job.digest,
        broken=job.setup.data.broken,
        seconds=round(progressed.seconds, 1),
        onnx=files.onnx if files.onnx.exists() else None,
    )
    write_text(files.result, json.dumps(result.to_dict(), indent=1) + "\n")
    if export:
        account.draw(files.folder)
    return result


def _interpolate(job: Job) -> float:
    """Put the network at the best point between its start and its best epoch; return how far along it lies."""
    network, start = job.network, load_file(job.files.start)
    if not job.files.tuned.exists():  # else stopped while blending: `best` may no longer be what was tuned
        save_tensors(trained_tensors(network), job.files.tuned)
    tuned = load_file(job.files.tuned)
    best_score, best_share = (-1.0, 0.0), 1.0
    for share in (tenth / 10 for tenth in range(10, -1, -1)):
        restore(network, blended(start, tuned, share))
        seen = validate(network, job.feed, job.val, functools.partial(autocast, _device(network))).seen
        if (seen.accuracy, -seen.loss) > best_score:
            best_score, best_share = (seen.accuracy, -seen.loss), share
    restore(network, blended(start, tuned, best_share))
    save_network(network, job.files.best)
    logger.info("%.0f %% of the way from the start to the tuned weights validates best", 100 * best_share)
    return best_share


def _write_predictions(job: Job, checked: Validation) -> None:
    with replacing(job.files.predictions) as part, part.open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["path", "label", *job.setup.class_names])
        for place, row in zip(checked.places, checked.probabilities.tolist(), strict=True):
            picture = job.val.pictures[place]
            table.writerow([relative_name(picture.path, job.files.folder.absolute()), picture.label, *row])


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
