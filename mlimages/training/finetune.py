"""Fine-tune a pretrained network on new classes while its lower layers stay frozen."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import nn

from mlimages.core import InputError, NoProgress, Preprocessing, Progress, RunError
from mlimages.inference import compute_conformal_thresholds
from mlimages.networks import choose_device, resolve_weights_and_freeze
from mlimages.reports import RunFiles
from mlimages.training import distributed
from mlimages.training.checkpoints import (
    TrainingState,
    copy_optimizer_tensors,
    copy_trained_tensors,
    load_optimizer_tensors,
    load_state,
    load_trained_tensors,
    require_same_tensor_shapes,
    save_checkpoints,
    save_state,
)
from mlimages.training.config import FineTuneConfig
from mlimages.training.finish import (
    FineTuneResult,
    complete_finished_run,
    finish_run,
    write_suspect_labels,
)
from mlimages.training.head import LOWER_LAYERS_SHARES, fit_ridge
from mlimages.training.head_inputs import compute_head_inputs, initialize_head
from mlimages.training.inputs import CustomNetwork, read_inputs, warn_about_changed_labels
from mlimages.training.loop import Schedule, Trainer, make_optimizer, validate
from mlimages.training.run import (
    EpochMetrics,
    contains_finished_run,
    log_to_file,
    require_unedited_files,
    write_metrics,
    write_skipped_images,
)
from mlimages.training.run_images import decode_splits
from mlimages.training.training_job import TrainingJob, build_training_job, prepare_run_folder, trains_below_head

logger = logging.getLogger(__name__)

NETWORK_SAVE_INTERVAL_S = 600
"""Minimum time in seconds between two saves of `last.safetensors` and `best.safetensors`, the full networks after the
last and the best epoch. They are also saved when training ends or is interrupted."""


class Callback(Protocol):
    """Receives the metrics after each epoch of `fine_tune`."""

    def on_epoch_end(self, metrics: EpochMetrics) -> None:
        """Handle the metrics of an epoch; called in the main process after the training state is saved."""


def fine_tune(
    config: FineTuneConfig,
    *,
    network: nn.Module | None = None,
    preprocessing: Preprocessing | None = None,
    export: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
) -> FineTuneResult:
    """Fine-tune a network, or resume an interrupted run in the folder `config.out`.

    The stored result of a finished run is returned, unless `config.epochs` is raised.

    Under torchrun, all processes call `fine_tune` and share each batch; only the main process writes files, shows
    progress and runs the callbacks.

    Set OMP_WAIT_POLICY=passive and OPENBLAS_NUM_THREADS=1 before the first import of numpy and torch, as the command
    line does: otherwise idle threads keep cores busy.

    Args:
        config: settings of the run.
        network: a custom network with one output per class, trained instead of `config.model`; by default, no layer is
            frozen. The same network is needed to resume the run.
        preprocessing: preprocessing of the images for `network`. The settings `size`, `resize`, `gray`, `mean`, `std`,
            `scale` and `bgr` of `config` replace its values if they are set; a mean image is only set by `mean`.
        export: whether to write `model.onnx`, the plots and `report.html` at the end.
        overwrite: also replace files of the run folder that were edited after mlimages wrote them.
        progress: shows the number of images processed.
        callbacks: called after each epoch.

    Returns:
        The accuracy and files of the run. Every process of a distributed run gets the same accuracy.

    Raises:
        InputError: the label files, images or settings cannot be used, or a file to replace was edited.
        MissingExtraError: the run to resume uses OpenVINO, which is not installed.
        ModelError: the network cannot be built, differs from that of the run to resume, or has no layer left to train.
        RunError: the folder contains a run with other settings or is in use, the loss is not finite, or another
            training process exited.
        ExportError: `model.onnx` cannot be written, or its outputs differ from the network's. Training is complete.

    >>> config = FineTuneConfig("labels.txt", "runs/new", model="lenet5", weights="none", freeze="none", epochs=1)
    >>> fine_tune(config).onnx
    PosixPath('runs/new/model.onnx')
    """
    if (network is None) != (preprocessing is None):
        raise InputError("network and preprocessing must be passed together")
    custom_network = CustomNetwork(network, preprocessing) if network is not None and preprocessing else None
    config = _resolve_defaults(config, custom_network)
    files, device = RunFiles(config.out), choose_device(config.device)
    distributed.init_process_group(device)
    is_main = distributed.is_main_process()
    progress = progress if progress and is_main else NoProgress()
    with closing(progress), distributed.map_peer_exit_errors(), torch.random.fork_rng():  # errors start on a new line
        is_finished = distributed.broadcast(contains_finished_run(config, files))
        if is_main:
            warn_about_changed_labels(config, files)
        if is_finished:
            return complete_finished_run(files, export=export, network=network, overwrite=overwrite, progress=progress)
        if is_main:
            require_unedited_files(files, export=export, overwrite=overwrite)
        inputs = read_inputs(config, files, custom_network)  # all checks that need no image, before anything is written
        with files.lock() if is_main else nullcontext(), log_to_file(files.log) if is_main else nullcontext():
            started, state = time.monotonic(), load_state(files)
            images = decode_splits(config, inputs, progress)
            preprocessing = prepare_run_folder(config, files, inputs, images)
            job = build_training_job(
                config, files, inputs=inputs, images=images, preprocessing=preprocessing, device=device,
                progress=progress,
            )  # fmt: skip
            distributed.require_same_on_ranks("run folder and weights", (job.frozen_digest, state and state.history))
            state = state or _make_initial_state(job)
            job = job if state.lower_layers_share else job.without_lower_head()
            if inputs.is_resumed:
                _prepare_resumed_run(job, state)
            state = _train_epochs(job, state, start_time=started, progress=progress, callbacks=callbacks)
            return finish_run(job, state, export=export, custom_network=network, overwrite=overwrite, progress=progress)


def _resolve_defaults(config: FineTuneConfig, custom_network: CustomNetwork | None) -> FineTuneConfig:
    """Replace the defaults of `weights` and `freeze`, which depend on the network, by their values."""
    if custom_network:
        custom_network.check_settings(config)
        freeze = "none" if config.freeze == "auto" else config.freeze
        return replace(config, model=custom_network.name, weights="none", freeze=freeze)
    weights, freeze = resolve_weights_and_freeze(config.model, weights=config.weights, freeze=config.freeze)
    return replace(config, weights=weights, freeze=freeze)


def _prepare_resumed_run(job: TrainingJob, state: TrainingState) -> None:
    """Check the network, and prepare the run folder to resume the run after its last complete epoch.

    Raises:
        ModelError: the layers are not those that were trained.
        RunError: the frozen weights are not those that the run started with.
    """
    require_same_tensor_shapes(copy_trained_tensors(job.network), state.trained_tensors)
    if state.frozen_digest != job.frozen_digest:
        raise RunError(
            f"{job.files.folder}: the frozen weights of {job.model.name} differ from those that this run started with: "
            "restore them, or choose another output folder with -o"
        )
    if distributed.is_main_process():
        write_metrics(job.files, state.history)  # the run may have been killed before writing them


def _make_initial_state(job: TrainingJob) -> TrainingState:
    """Return the state before the first epoch; the head of a pretrained network is fitted by ridge regression."""
    if distributed.is_main_process():
        write_skipped_images(job.files, job.broken_images)
    objective, is_single = job.objective, job.train_set.labels.ndim == 1
    if not job.model.pretrained:
        return TrainingState(frozen_digest=job.frozen_digest)
    train, val = (compute_head_inputs(job.model, job.source, images) for images in (job.train_set, job.val_set))
    shares = [share for share in LOWER_LAYERS_SHARES if share or job.config.head == "auto"]
    fit = fit_ridge(
        train.features,
        train.labels,
        len(job.class_names),
        lower_features=train.lower_features,
        share_candidates=shares,
    )
    lower_share, loo_probabilities = fit.lower_layers_share, fit.loo_probabilities
    if distributed.is_main_process() and is_single:
        probabilities = np.concatenate([loo_probabilities, val.compute_probabilities(fit.head)])  # out of sample
        sets = (job.train_set, train), (job.val_set, val)
        paths = [images.images[n].path for images, found in sets for n in found.image_indices]
        labels = np.concatenate([train.labels, val.labels])
        write_suspect_labels(job.files, paths, labels, probabilities, job.class_names)
    if not lower_share:
        job = job.without_lower_head()
    if not initialize_head(job.model, job.source, job.train_set, fit.head):
        return TrainingState(frozen_digest=job.frozen_digest)
    job.model.zero_other_heads()
    metrics = validate(job.network, job.source, job.val_set, objective).metrics
    is_rounded = job.backend.frozen_precision != "fp32"
    task = objective.inference_task
    left_out = task.score(loo_probabilities, train.labels).value
    logger.info(
        "closed-form head (ridge regression)%s: %s %.1f %% on %d validation images%s",
        f" on the features of all layers (weight of the lower layers: {lower_share:g})" if lower_share else "",
        task.score_name,
        100 * metrics.score,
        metrics.num_images,
        ""
        if is_rounded
        else f", leave-one-out {task.score_name} {100 * left_out:.1f} %",  # the other metrics are those of fp32
    )
    start = copy_trained_tensors(job.network)
    has_sets = is_single and not is_rounded
    return TrainingState(
        trained_tensors=start,
        best_trained_tensors=start,
        best_score_neg_loss=(metrics.score, -metrics.loss),
        probe_accuracy=metrics.accuracy,
        probe_map=metrics.mean_ap,
        frozen_digest=job.frozen_digest,
        lower_layers_share=lower_share,
        prediction_set_thresholds=compute_conformal_thresholds(loo_probabilities, train.labels) if has_sets else {},
    )


def _train_epochs(
    job: TrainingJob,
    previous_state: TrainingState,
    *,
    start_time: float,
    progress: Progress,
    callbacks: Sequence[Callback],
) -> TrainingState:
    """Train the remaining epochs and return the last state; also save `last.safetensors` and `best.safetensors`."""
    config, state, network = job.config, previous_state, job.network
    schedule = Schedule.from_config(
        config, len(job.train_set), is_pretrained=job.model.pretrained, trains_below_head=trains_below_head(job.model)
    )
    trainer = Trainer(
        network,
        job.source,
        make_optimizer(network, config, lr=schedule.peak_lr),
        schedule,
        config=config,
        objective=job.objective,
        autocast=job.autocast,
    )
    load_trained_tensors(network, state.trained_tensors)
    load_optimizer_tensors(trainer.optimizer, state.optimizer_tensors)
    distributed.broadcast_tensors(network.state_dict().values())
    deadline = start_time - previous_state.seconds + config.time_budget_s if config.time_budget_s else math.inf
    written = time.monotonic()
    progress.start("train", len(job.train_set) * (config.epochs - len(state.history)), "img")
    try:
        for epoch in range(len(state.history) + 1, config.epochs + 1):
            if reason := distributed.broadcast(_find_stop_reason(state, config, deadline)):
                if distributed.is_main_process():
                    progress.close()  # the message starts on a new line
                    logger.warning("stopped after %d of %d epochs: %s", epoch - 1, config.epochs, reason)
                break
            metrics = _run_epoch(job, trainer, epoch, deadline=deadline, progress=progress)
            seconds = previous_state.seconds + time.monotonic() - start_time
            state = _make_next_state(job, state, metrics, trainer.optimizer, seconds=seconds)
            if distributed.is_main_process():
                save_state(state, job.files)
                write_metrics(job.files, state.history)
                if time.monotonic() - written > NETWORK_SAVE_INTERVAL_S:
                    save_checkpoints(network, state, job.files)
                    written = time.monotonic()
                for callback in callbacks:
                    callback.on_epoch_end(metrics)
    finally:
        if distributed.is_main_process() and state.history:
            save_checkpoints(network, state, job.files)
    return state


def _run_epoch(job: TrainingJob, trainer: Trainer, epoch: int, *, deadline: float, progress: Progress) -> EpochMetrics:
    clock = time.monotonic()
    trained = trainer.train_epoch(
        job.train_set, epoch=epoch, num_views=job.num_views, deadline=deadline, progress=progress
    )
    validated = validate(job.network, job.source, job.val_set, job.objective).metrics
    if not (math.isfinite(trained.loss) and math.isfinite(validated.loss)):
        lr = trainer.schedule.peak_lr
        advice = "leave out --lr, or " if job.config.lr else ""
        raise RunError(
            f"the loss is not finite in epoch {epoch}, at a peak learning rate of {lr:g}: {advice}try --lr {lr / 10:g}"
        )
    score_name = job.objective.inference_task.score_name
    logger.info("epoch %d: validation %s %.1f %%, loss %.4f", epoch, score_name, 100 * validated.score, validated.loss)
    return EpochMetrics(
        epoch=epoch,
        lr=trainer.schedule.get_lr(epoch * trainer.schedule.steps_per_epoch - 1),
        train_loss=trained.loss,
        train_accuracy=trained.accuracy,
        val_loss=validated.loss,
        val_accuracy=validated.accuracy,
        seconds=time.monotonic() - clock,
        train_map=trained.mean_ap,
        val_map=validated.mean_ap,
    )


def _make_next_state(
    job: TrainingJob,
    previous_state: TrainingState,
    metrics: EpochMetrics,
    optimizer: torch.optim.Optimizer,
    *,
    seconds: float,
) -> TrainingState:
    """Return the state after an epoch; its best weights are those of the best epoch so far."""
    state = replace(
        previous_state,
        trained_tensors=copy_trained_tensors(job.network),
        optimizer_tensors=copy_optimizer_tensors(optimizer),
        history=(*previous_state.history, metrics),
        seconds=seconds,
    )
    key = (metrics.val_score, -metrics.val_loss)
    if key <= previous_state.best_score_neg_loss:
        return state
    return replace(state, best_trained_tensors=state.trained_tensors, best_epoch=metrics.epoch, best_score_neg_loss=key)


def _find_stop_reason(state: TrainingState, config: FineTuneConfig, deadline: float) -> str:
    """Return why training stops before the last epoch; "" if it does not."""
    epochs_since_best = len(state.history) - state.best_epoch
    if config.early_stop and state.history and epochs_since_best >= config.early_stop:
        return (
            f"the validation score has not improved for {epochs_since_best} epochs (--early-stop {config.early_stop})"
        )
    if state.history and time.monotonic() > deadline:
        return f"the time limit is reached (--time-budget {config.time_budget_s:g}s)"
    return ""
