"""Fine-tuning: a pretrained network learns new classes while its lower layers stay as they are."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol

import torch

from mlimages.core import NoProgress, Progress
from mlimages.networks import choose_device
from mlimages.training import distributed, run_notes
from mlimages.training.build import Job, assemble
from mlimages.training.checkpoints import (
    Progressed,
    load_progress,
    optimizer_tensors,
    restore,
    restore_optimizer,
    save_progress,
    trained_tensors,
)
from mlimages.training.config import FineTuneConfig
from mlimages.training.finish import FineTuneResult, finish
from mlimages.training.image_cache import chunks
from mlimages.training.loop import Teacher, train_epoch
from mlimages.training.preparation import prepare
from mlimages.training.ridge import fit_ridge
from mlimages.training.run import EpochFigures, RunFiles, write_metrics
from mlimages.training.run_log import logged_to
from mlimages.training.schedule import (
    WARM_UP,
    class_weights,
    highest_lr,
    make_optimizer,
    reach_head,
    share_of_lr,
    start_head,
)

logger = logging.getLogger(__name__)


class Callback(Protocol):
    """Told of a run while it goes on."""

    def epoch_ended(self, figures: EpochFigures) -> None:
        """An epoch was trained, validated and saved."""


def fine_tune(
    config: FineTuneConfig,
    *,
    export: bool = True,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
) -> FineTuneResult:
    """Train as `config` says, into the folder `config.out`; an interrupted run in that folder goes on.

    In the processes that torchrun starts, all of which call it, the work is shared, and the first one alone writes,
    shows progress and calls back.

    The command sets OMP_WAIT_POLICY=passive and OPENBLAS_NUM_THREADS=1, as waiting threads that spin burn cores that
    others need. Libraries read it when they are loaded: in Python set it before the first import of numpy and torch.

    Args:
        config: all settings.
        export: at the end write `model.onnx`, the plots and the page.
        progress: told of pictures as they pass.
        callbacks: told of each epoch.

    Raises:
        InputError: the pictures cannot be trained on.
        ModelError: the network cannot be built, or would have nothing to learn.
        RunError: the folder holds a run with other settings, or another process of the job is gone.
        ExportError: the ONNX file would answer otherwise than the network.
    """
    files, device = RunFiles(config.out), choose_device(config.device)
    distributed.join(device)
    with logged_to(files.log) if distributed.is_first() else nullcontext(), torch.random.fork_rng():
        progress = progress if progress and distributed.is_first() else NoProgress()
        started = time.monotonic()
        setup = prepare(config, files, progress)
        job = assemble(config, files, setup, device, progress)
        before = load_progress(files)
        distributed.demand_same("run folder and weights", (job.digest, before and before.history))
        if distributed.is_first():
            files.tidy()
        with job.snapshots if distributed.is_first() else nullcontext():
            before = before or _begin(job)
            progressed = _train(job, before, started=started, progress=progress, callbacks=callbacks)
            return finish(job, progressed, export=export and not (progressed is before and files.onnx.exists()))


def _begin(job: Job) -> Progressed:
    """Where the first epoch starts: the closed-form head on a pretrained network, else what chance gave."""
    if distributed.is_first():
        run_notes.name_left_out(job.files.folder, job.setup.data.broken)
    if not job.setup.model.pretrained:
        return Progressed({})
    model, names = job.setup.model, job.setup.class_names
    reached = reach_head(model, job.feed, job.train)
    judged = [(job.train, reached), (job.val, reach_head(model, job.feed, job.val))]
    if distributed.is_first():
        run_notes.name_suspects(job.files.folder, judged, names, seed=job.config.seed)
    head = fit_ridge(reached.features.numpy(), reached.labels.numpy(), len(names)).head()
    if not start_head(model, job.feed, job.train, head):
        return Progressed({})
    seen = job.validate().seen
    logger.info("closed-form head: %.1f %% on %d validation pictures", 100 * seen.accuracy, seen.count)
    start = trained_tensors(job.network)
    if distributed.is_first():
        job.snapshots.save(job.files.best)
    return Progressed(start, best_score=(seen.accuracy, -seen.loss), probe_accuracy=seen.accuracy)


def _train(
    job: Job, before: Progressed, *, started: float, progress: Progress, callbacks: Sequence[Callback]
) -> Progressed:
    config, network = job.config, job.network
    teacher = _teacher(job)
    restore(network, before.tensors)
    restore_optimizer(teacher.optimizer, before.tensors)
    distributed.take_from_first(network)
    now = before
    deadline = started - before.seconds + config.time_budget_s if config.time_budget_s else math.inf
    progress.start("train", len(job.train) * (config.epochs - len(before.history)), "img")
    for epoch in range(len(before.history) + 1, config.epochs + 1):
        if distributed.from_first(_is_over(now, config, deadline)):
            break
        clock = time.monotonic()
        seen = train_epoch(
            network,
            job.feed,
            job.train,
            teacher,
            epoch=epoch,
            views=job.views,
            deadline=deadline,
            progress=progress,
        )
        checked = job.validate().seen
        figures = EpochFigures(
            epoch=epoch,
            lr=teacher.lr_at(epoch * teacher.steps - 1),
            train_loss=seen.loss,
            train_accuracy=seen.accuracy,
            val_loss=checked.loss,
            val_accuracy=checked.accuracy,
            seconds=time.monotonic() - clock,
        )
        now = _keep(job, now, figures, teacher.optimizer, seconds=before.seconds + time.monotonic() - started)
        for callback in callbacks if distributed.is_first() else ():
            callback.epoch_ended(figures)
    progress.close()
    return now


def _teacher(job: Job) -> Teacher:
    config, pretrained = job.config, job.setup.model.pretrained
    lr = highest_lr(config, pretrained=pretrained, below_head=job.below_head)
    warm_up = WARM_UP if pretrained else 0.0
    weights = class_weights(config, job.train.labels, len(job.setup.class_names))
    steps = len(list(chunks(range(len(job.train)), config.batch_size)))
    return Teacher(
        optimizer=make_optimizer(job.network, config, lr=lr),
        lr_at=lambda step: lr * share_of_lr(step, steps * config.epochs, warm_up=warm_up),
        weights=None if weights is None else weights.to(job.device),
        smoothing=config.label_smoothing,
        autocast=job.autocast,
        steps=steps,
        batch_size=config.batch_size,
        seed=config.seed,
    )


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
    now = Progressed(
        {**trained_tensors(job.network), **optimizer_tensors(optimizer)},
        history=(*before.history, figures),
        best_epoch=figures.epoch if better else before.best_epoch,
        best_score=score if better else before.best_score,
        probe_accuracy=before.probe_accuracy,
        seconds=seconds,
    )
    if distributed.is_first():
        job.snapshots.save(job.files.last, *([job.files.best] if better else []))
        save_progress(job.files, now)
        write_metrics(job.files, now.history)
    logger.info("epoch %d: validation %.1f %%, loss %.4f", figures.epoch, 100 * figures.val_accuracy, figures.val_loss)
    return now
