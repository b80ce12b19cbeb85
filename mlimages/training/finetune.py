"""Fine-tuning: a pretrained network learns new classes while its lower layers stay as they are."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Protocol

import torch

from mlimages.core import NoProgress, Progress, RunError
from mlimages.networks import choose_device
from mlimages.training import distributed
from mlimages.training.build import Job, assemble
from mlimages.training.checkpoints import (
    TrainingState,
    load_state,
    optimizer_tensors,
    restore,
    restore_optimizer,
    save_networks,
    save_state,
    trained_tensors,
)
from mlimages.training.config import FineTuneConfig
from mlimages.training.finish import FineTuneResult, finish, finished_result, write_doubtful_labels, write_left_out
from mlimages.training.image_cache import chunks
from mlimages.training.loop import Teacher, train_epoch
from mlimages.training.preparation import plan, prepare
from mlimages.training.ridge import fit_ridge
from mlimages.training.run import EpochFigures, RunFiles, check_folder, write_log, write_metrics
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

NETWORKS_EVERY_S = 600
"""The whole networks are written at the end of training or of its interruption, and every so often before."""


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
    if distributed.from_first(check_folder(config, files)):
        return finished_result(files, export=export)
    planned = plan(config, files)
    state = load_state(files)
    with write_log(files.log) if distributed.is_first() else nullcontext(), torch.random.fork_rng():
        progress = progress if progress and distributed.is_first() else NoProgress()
        started = time.monotonic()
        setup = prepare(config, files, planned, progress)
        job = assemble(config, files, setup, device, progress)
        distributed.demand_same("run folder and weights", (job.digest, state and state.history))
        state = _begin(job) if state is None else _resume(job, state)
        state = _train(job, state, started=started, progress=progress, callbacks=callbacks)
        return finish(job, state, export=export)


def _resume(job: Job, state: TrainingState) -> TrainingState:
    """Go on after the last epoch that ended.

    Raises:
        RunError: the frozen part is not the one that the run began with.
    """
    if state.frozen_digest != job.digest:
        raise RunError(
            f"{job.files.folder}: the weights {job.config.weights!r} are not those that this run began with: "
            "put them back, or start another run with -o"
        )
    if distributed.is_first():
        job.files.tidy()
        write_metrics(job.files, state.history)  # it may have been killed between the state and this
    return state


def _begin(job: Job) -> TrainingState:
    """Where the first epoch starts: the closed-form head on a pretrained network, else what chance gave."""
    if distributed.is_first():
        job.files.tidy()
        write_left_out(job.files.folder, job.setup.data.broken)
    if not job.setup.model.pretrained:
        return TrainingState(frozen_digest=job.digest)
    model, names = job.setup.model, job.setup.class_names
    reached = reach_head(model, job.feed, job.train)
    judged = [(job.train, reached), (job.val, reach_head(model, job.feed, job.val))]
    if distributed.is_first():
        write_doubtful_labels(job.files.folder, judged, names, seed=job.config.seed)
    head = fit_ridge(reached.features.numpy(), reached.labels.numpy(), len(names)).head()
    if not start_head(model, job.feed, job.train, head):
        return TrainingState(frozen_digest=job.digest)
    seen = job.validate().seen
    logger.info("closed-form head: %.1f %% on %d validation pictures", 100 * seen.accuracy, seen.count)
    start = trained_tensors(job.network)
    return TrainingState(
        trained=start,
        best=start,
        best_score=(seen.accuracy, -seen.loss),
        probe_accuracy=seen.accuracy,
        frozen_digest=job.digest,
    )


def _train(
    job: Job, before: TrainingState, *, started: float, progress: Progress, callbacks: Sequence[Callback]
) -> TrainingState:
    """Train the epochs that are left; however it ends, the whole networks lie in the folder afterwards."""
    config, state, network = job.config, before, job.network
    teacher = _teacher(job)
    restore(network, state.trained)
    restore_optimizer(teacher.optimizer, state.optimizer)
    distributed.take_from_first(network)
    deadline = started - before.seconds + config.time_budget_s if config.time_budget_s else math.inf
    written = time.monotonic()
    progress.start("train", len(job.train) * (config.epochs - len(state.history)), "img")
    try:
        for epoch in range(len(state.history) + 1, config.epochs + 1):
            if distributed.from_first(_is_over(state, config, deadline)):
                break
            figures = _epoch(job, teacher, epoch, deadline=deadline, progress=progress)
            seconds = before.seconds + time.monotonic() - started
            state = _after(job, state, figures, teacher.optimizer, seconds=seconds)
            if distributed.is_first():
                save_state(state, job.files)
                write_metrics(job.files, state.history)
                if time.monotonic() - written > NETWORKS_EVERY_S:
                    save_networks(network, state, job.files)
                    written = time.monotonic()
                for callback in callbacks:
                    callback.epoch_ended(figures)
    finally:
        if distributed.is_first() and state.history:
            save_networks(network, state, job.files)
    progress.close()
    return state


def _epoch(job: Job, teacher: Teacher, epoch: int, *, deadline: float, progress: Progress) -> EpochFigures:
    clock = time.monotonic()
    trained = train_epoch(
        job.network,
        job.feed,
        job.train,
        teacher,
        epoch=epoch,
        views=job.views,
        deadline=deadline,
        progress=progress,
    )
    validated = job.validate().seen
    if not (math.isfinite(trained.loss) and math.isfinite(validated.loss)):
        lr = _peak_lr(job)
        raise RunError(
            f"the loss is not finite in epoch {epoch}, at a peak learning rate of {lr:g}: try --lr {lr / 10:g}"
        )
    logger.info("epoch %d: validation %.1f %%, loss %.4f", epoch, 100 * validated.accuracy, validated.loss)
    return EpochFigures(
        epoch=epoch,
        lr=teacher.lr_at(epoch * teacher.steps - 1),
        train_loss=trained.loss,
        train_accuracy=trained.accuracy,
        val_loss=validated.loss,
        val_accuracy=validated.accuracy,
        seconds=time.monotonic() - clock,
    )


def _after(
    job: Job, before: TrainingState, figures: EpochFigures, optimizer: torch.optim.Optimizer, *, seconds: float
) -> TrainingState:
    """The state after an epoch."""
    state = replace(
        before,
        trained=trained_tensors(job.network),
        optimizer=optimizer_tensors(optimizer),
        history=(*before.history, figures),
        seconds=seconds,
    )
    score = (figures.val_accuracy, -figures.val_loss)
    if score <= before.best_score:
        return state
    return replace(state, best=state.trained, best_epoch=figures.epoch, best_score=score)


def _teacher(job: Job) -> Teacher:
    config, lr = job.config, _peak_lr(job)
    warm_up = WARM_UP if job.setup.model.pretrained else 0.0
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


def _peak_lr(job: Job) -> float:
    return highest_lr(job.config, pretrained=job.setup.model.pretrained, below_head=job.below_head)


def _is_over(state: TrainingState, config: FineTuneConfig, deadline: float) -> bool:
    waited = len(state.history) - state.best_epoch
    if config.early_stop and state.history and waited >= config.early_stop:
        logger.info("stopped: no better validation accuracy in %d epochs", waited)
        return True
    if state.history and time.monotonic() > deadline:
        logger.info("stopped: the time budget is spent")
        return True
    return False
