"""Fine-tuning: a pretrained network learns new classes while its lower layers stay as they are."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Protocol

import torch

from mlimages.core import NoProgress, Progress, RunError
from mlimages.networks import choose_device
from mlimages.reports import RunFiles
from mlimages.training import distributed
from mlimages.training.build import Job, build_job
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
from mlimages.training.finish import FineTuneResult, finish, finished_result, write_skipped, write_suspect_labels
from mlimages.training.head import compute_head_inputs, fit_ridge, initialize_head
from mlimages.training.image_cache import chunks
from mlimages.training.loop import WARMUP, Trainer, class_weights, lr_factor, make_optimizer, peak_lr
from mlimages.training.preparation import prepare_data, read_inputs
from mlimages.training.run import EpochFigures, check_folder, write_log, write_metrics

logger = logging.getLogger(__name__)

NETWORKS_EVERY_S = 600
"""The whole networks are written at the end of training or of its interruption, and every so often before."""


class Callback(Protocol):
    """Receives the metrics of each epoch."""

    def epoch_ended(self, figures: EpochFigures) -> None:
        """Called in the main process after an epoch was trained, validated and saved."""


def fine_tune(
    config: FineTuneConfig,
    *,
    export: bool = True,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
) -> FineTuneResult:
    """Fine-tune a network; a run that was interrupted in the folder `config.out` is resumed.

    Under torchrun every process calls it and they share each batch; only the main process writes files, shows progress
    and runs the callbacks.

    Set OMP_WAIT_POLICY=passive and OPENBLAS_NUM_THREADS=1 before the first import of numpy and torch, as the command
    does: idle threads otherwise keep cores busy.

    Args:
        config: settings of the run.
        export: whether to write `model.onnx`, the plots and `report.html` at the end.
        progress: shows the number of images processed.
        callbacks: called after each epoch.

    Returns:
        The accuracy and files of the run. Every process of a distributed run gets the same accuracy.

    Raises:
        InputError: the label files, images or settings cannot be used.
        ModelError: the network cannot be built, or no parameter is left to train.
        RunError: the folder holds a run with other settings or is in use, the loss is not finite, or another training
            process exited.
        ExportError: the ONNX file's outputs differ from the network's.

    >>> result = fine_tune(FineTuneConfig("cats.txt", "runs/cats", model="alexnet", epochs=5))  # doctest: +SKIP
    >>> f"{result.val_accuracy:.1%}", result.onnx  # doctest: +SKIP
    ('97.5%', PosixPath('runs/cats/model.onnx'))
    """
    files, device = RunFiles(config.out), choose_device(config.device)
    distributed.init_process_group(device)
    is_main = distributed.is_main_process()
    progress = progress if progress and is_main else NoProgress()
    with closing(progress), distributed.peer_exit_named(), torch.random.fork_rng():  # an error begins a new line
        if distributed.broadcast(check_folder(config, files)):
            return finished_result(files, export=export)
        inputs = read_inputs(config, files)
        with files.locked() if is_main else nullcontext(), write_log(files.log) if is_main else nullcontext():
            started, state = time.monotonic(), load_state(files)
            data = prepare_data(config, files, inputs, progress)
            job = build_job(config, files, data, device, progress)
            distributed.require_same("run folder and weights", (job.digest, state and state.history))
            state = _start(job) if state is None else _resume(job, state)
            state = _train(job, state, started=started, progress=progress, callbacks=callbacks)
            return finish(job, state, export=export)


def _resume(job: Job, state: TrainingState) -> TrainingState:
    """Continue after the last complete epoch.

    Raises:
        RunError: the frozen weights are not those the run started with.
    """
    if state.frozen_digest != job.digest:
        raise RunError(
            f"{job.files.folder}: the weights {job.config.weights!r} are not those that this run started with: "
            "restore them, or start another run with -o"
        )
    if distributed.is_main_process():
        job.files.tidy()
        write_metrics(job.files, state.history)  # the run may have been killed after writing the state and before this
    return state


def _start(job: Job) -> TrainingState:
    """The state before the first epoch: the closed-form head on a pretrained network, else random weights."""
    if distributed.is_main_process():
        job.files.tidy()
        write_skipped(job.files.folder, job.data.images.broken)
    if not job.data.model.pretrained:
        return TrainingState(frozen_digest=job.digest)
    model, names = job.data.model, job.data.class_names
    inputs = compute_head_inputs(model, job.source, job.train)
    datasets = [(job.train, inputs), (job.val, compute_head_inputs(model, job.source, job.val))]
    if distributed.is_main_process():
        write_suspect_labels(job.files.folder, datasets, names, seed=job.config.seed)
    head = fit_ridge(inputs.features.numpy(), inputs.labels.numpy(), len(names)).head()
    if not initialize_head(model, job.source, job.train, head):
        return TrainingState(frozen_digest=job.digest)
    metrics = job.validate().metrics
    logger.info("closed-form head: %.1f %% on %d validation images", 100 * metrics.accuracy, metrics.count)
    start = trained_tensors(job.network)
    return TrainingState(
        trained=start,
        best=start,
        best_score=(metrics.accuracy, -metrics.loss),
        probe_accuracy=metrics.accuracy,
        frozen_digest=job.digest,
    )


def _train(
    job: Job, before: TrainingState, *, started: float, progress: Progress, callbacks: Sequence[Callback]
) -> TrainingState:
    """Train the remaining epochs; the whole networks are written at the end, also when training is interrupted."""
    config, state, network = job.config, before, job.network
    trainer = _build_trainer(job)
    restore(network, state.trained)
    restore_optimizer(trainer.optimizer, state.optimizer)
    distributed.broadcast_tensors(network.state_dict().values())
    deadline = started - before.seconds + config.time_budget_s if config.time_budget_s else math.inf
    written = time.monotonic()
    progress.start("train", len(job.train) * (config.epochs - len(state.history)), "img")
    try:
        for epoch in range(len(state.history) + 1, config.epochs + 1):
            if distributed.broadcast(_is_over(state, config, deadline)):
                break
            figures = _epoch(job, trainer, epoch, deadline=deadline, progress=progress)
            seconds = before.seconds + time.monotonic() - started
            state = _advance(job, state, figures, trainer.optimizer, seconds=seconds)
            if distributed.is_main_process():
                save_state(state, job.files)
                write_metrics(job.files, state.history)
                if time.monotonic() - written > NETWORKS_EVERY_S:
                    save_networks(network, state, job.files)
                    written = time.monotonic()
                for callback in callbacks:
                    callback.epoch_ended(figures)
    finally:
        if distributed.is_main_process() and state.history:
            save_networks(network, state, job.files)
    return state


def _epoch(job: Job, trainer: Trainer, epoch: int, *, deadline: float, progress: Progress) -> EpochFigures:
    clock = time.monotonic()
    trained = trainer.train_epoch(job.train, epoch=epoch, views=job.views, deadline=deadline, progress=progress)
    validated = job.validate().metrics
    if not (math.isfinite(trained.loss) and math.isfinite(validated.loss)):
        lr = _peak_lr(job)
        raise RunError(
            f"the loss is not finite in epoch {epoch}, at a peak learning rate of {lr:g}: try --lr {lr / 10:g}"
        )
    logger.info("epoch %d: validation %.1f %%, loss %.4f", epoch, 100 * validated.accuracy, validated.loss)
    return EpochFigures(
        epoch=epoch,
        lr=trainer.lr_at(epoch * _steps(job) - 1),
        train_loss=trained.loss,
        train_accuracy=trained.accuracy,
        val_loss=validated.loss,
        val_accuracy=validated.accuracy,
        seconds=time.monotonic() - clock,
    )


def _advance(
    job: Job, before: TrainingState, figures: EpochFigures, optimizer: torch.optim.Optimizer, *, seconds: float
) -> TrainingState:
    """The state after an epoch, with the best weights so far."""
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


def _build_trainer(job: Job) -> Trainer:
    config, lr, steps = job.config, _peak_lr(job), _steps(job)
    warmup = WARMUP if job.data.model.pretrained else 0.0
    weights = class_weights(config, job.train.labels, len(job.data.class_names))
    return Trainer(
        job.network,
        job.source,
        make_optimizer(job.network, config, lr=lr),
        lr_at=lambda step: lr * lr_factor(step, steps * config.epochs, warmup=warmup),
        class_weights=None if weights is None else weights.to(job.device),
        label_smoothing=config.label_smoothing,
        autocast=job.autocast,
        batch_size=config.batch_size,
        seed=config.seed,
    )


def _steps(job: Job) -> int:
    """Optimizer steps in an epoch."""
    return len(chunks(range(len(job.train)), job.config.batch_size))


def _peak_lr(job: Job) -> float:
    return peak_lr(job.config, pretrained=job.data.model.pretrained, below_head=job.below_head)


def _is_over(state: TrainingState, config: FineTuneConfig, deadline: float) -> bool:
    epochs_since_best = len(state.history) - state.best_epoch
    if config.early_stop and state.history and epochs_since_best >= config.early_stop:
        logger.info("stopped early: no better validation accuracy in %d epochs", epochs_since_best)
        return True
    if state.history and time.monotonic() > deadline:
        logger.info("stopped: the time budget is used up")
        return True
    return False
