"""The steps of `mlimages demo`: each prints its command line, then calls the corresponding function."""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mlimages.checks import CheckReport, check, split_labels, write_results
from mlimages.core import GatherSummary, ImageProperty, InputError, Prediction, pluralize, require_local_path
from mlimages.dataset import TrainingData
from mlimages.demo.transfer import MethodAccuracies, describe_difference, draw_accuracies, format_accuracy_bars
from mlimages.demo.website import Response, make_digit_responses, serve_responses
from mlimages.gathering import UrlList, gather
from mlimages.inference import OnnxBundle, Predictor
from mlimages.labels import LabelFile, LabelOptions, label_dir_auto, make_label_files
from mlimages.reports import read_run
from mlimages.training import FineTuneConfig, FineTuneResult, fine_tune

SEEDS = range(5)
IMAGES_PER_CLASS = (1, 3, 10, 30)
EXAMPLE_IMAGES_PER_CLASS = 10
"""The commands are shown only for the runs with this number of images per class and the first of `SEEDS`."""
METHODS = {"transfer": ("runs/old/best.safetensors", "conv2"), "scratch": ("none", "none")}
"""Values of the options --weights and --freeze for each training method."""
PRETRAINING_EPOCHS, EPOCHS = 12, 40
REPORTED_EPOCHS = (10, EPOCHS)
"""Epochs at which the test accuracies are compared."""
LINE_WIDTH, NAME_WIDTH = 79, 20
INTRODUCTION = """\
The whole workflow on real handwritten digits: the 1797 images of scikit-learn,
downloaded from a local web server; some of its links are broken. First, a
network learns the digits 0 to 4. Then it learns 5 to 9 from a few images of
each, with its convolutional layers frozen (transfer), and is compared with a
network that starts from random weights (scratch).
"""
NEXT_STEPS = """
To train on your own images, with one folder per class:
$ mlimages finetune FOLDER -o runs/first
To start from a list of links instead:
$ mlimages gather urls --help"""


def run_demo(out: str | os.PathLike[str], *, show: Callable[[str], None]) -> None:
    """Run all steps from gathering to prediction on handwritten digits, in the folder `out`.

    Takes about one CPU minute and needs no network connection.

    Args:
        out: output folder, new or empty.
        show: function that prints text, such as `print`.

    Raises:
        InputError: `out` is not an empty folder.

    Examples:
        >>> from mlimages.demo import run_demo
        >>> run_demo("mlimages-demo", show=print)  # doctest: +SKIP
    """
    folder = require_local_path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder: choose another one with -o")
    folder.mkdir(parents=True, exist_ok=True)
    show(INTRODUCTION)
    show(f"$ cd {folder}")
    _Walkthrough(folder, show).run()
    show(NEXT_STEPS)


class _Walkthrough:
    """The steps of the demo in a folder; each shows its command line, relative to the folder, and then runs it."""

    def __init__(self, folder: Path, show: Callable[[str], None]) -> None:
        self._folder = folder
        self._show = show

    def run(self) -> None:
        """Run all steps and show a table of their results."""
        responses = make_digit_responses()
        with serve_responses(responses) as url:
            summaries = [
                self._gather("old", url, [response for response in responses if response.class_name < "5"]),
                self._gather("new", url, [response for response in responses if response.class_name >= "5"]),
            ]
        train, val, new = self._write_label_files()
        reports = [self._check(train, val), self._check(new)]
        self._compute_mean(train)
        self._pretrain(train, val)
        few, test = self._split_new_labels(new)
        results = self._compare_methods(few, test)
        run = self._folder / "runs" / f"transfer-{EXAMPLE_IMAGES_PER_CLASS}-{SEEDS[0]}"
        correct, count = self._count_correct_predictions(run, test)
        self._show_accuracies(results)
        reasons: Counter[str] = sum((Counter(summary.reasons) for summary in summaries), Counter())
        self._show_table(
            ("gathered", f"{sum(summary.ok for summary in summaries)} images in 10 classes (digits)"),
            ("duplicates", f"{sum(summary.duplicate for summary in summaries)} skipped"),
            ("failed links", _format_counts(reasons)),
            ("rejected by check", pluralize(sum(report.num_images - report.num_ok for report in reports), "image")),
            ("training time", self._format_training_times()),
            ("ONNX file", _describe_onnx_parity(run)),
            ("predicted", f"{correct} of {count} correct"),
        )

    def _show_command(self, arguments: str) -> None:
        """Show a command line, wrapped with backslashes."""
        lines = textwrap.wrap(
            f"$ mlimages {arguments}", LINE_WIDTH - 2, subsequent_indent="    ", break_on_hyphens=False
        )
        self._show(" \\\n".join(lines))

    def _show_result(self, text: str) -> None:
        self._show(textwrap.fill(text, LINE_WIDTH, initial_indent="  ", subsequent_indent="    ") + "\n")

    def _gather(self, name: str, url: str, responses: Sequence[Response]) -> GatherSummary:
        """Download the images at `url` + `response.path` of these responses into the subfolder `name`."""
        links = self._folder / f"{name}_links.tsv"
        links.write_text("".join(f"{response.class_name}\t{url}{response.path}\n" for response in responses))
        self._show_command(f"gather urls {links.name} -o {name} --allow-private")
        summary = gather(UrlList(links), self._folder / name, allow_private=True)
        counts = f"{pluralize(summary.ok, 'image')}, {pluralize(summary.duplicate, 'duplicate')}"
        self._show_result(f"{counts}; failed: {_format_counts(summary.reasons)}")
        return summary

    def _write_label_files(self) -> list[LabelFile]:
        """Return three label files: the training set and validation set of the digits 0 to 4, and all digits 5 to 9."""
        self._show_command("label old -o old.txt --split 0.8,0.2 --seed 0")
        old = label_dir_auto(self._folder / "old").labels
        parts = split_labels(old, (0.8, 0.2), seed=0)
        names = ("train", "val")
        files = [part.write(self._folder / f"old_{name}.txt") for part, name in zip(parts, names, strict=True)]
        self._show("".join(f"  {_describe_label_file(file)}\n" for file in files))
        self._show_command("label new -o new.txt")
        files.append(label_dir_auto(self._folder / "new").labels.write(self._folder / "new.txt"))
        self._show_result(_describe_label_file(files[-1]))
        return files

    def _check(self, *files: LabelFile) -> CheckReport:
        self._show_command(f"check {' '.join(file.path.name for file in files)}")
        report = check(files)
        write_results(report)
        errors, warnings = _format_counts(report.errors), _format_counts(report.warnings)
        self._show_result(f"{pluralize(report.num_images, 'image')} checked; errors: {errors}; warnings: {warnings}")
        return report

    def _compute_mean(self, train_labels: LabelFile) -> None:
        self._show_command(f"mean {train_labels.path.name} --size 28 --gray -o mean.png")
        TrainingData(train_labels, ImageProperty(28, gray_scale=True)).make_mean_image(self._folder / "mean.png")
        self._show_result("written: mean.png for viewing, and mean.npy for training")

    def _pretrain(self, train_labels: LabelFile, val_labels: LabelFile) -> None:
        """Train a LeNet on the digits 0 to 4 from scratch; its convolutional layers are transferred later."""
        result = self._finetune(
            train_labels, val_labels, "old", weights="none", freeze="none", epochs=PRETRAINING_EPOCHS
        )
        self._show_result(f"validation accuracy {result.score_text}")

    def _split_new_labels(self, new_labels: LabelFile) -> tuple[LabelFile, LabelFile]:
        """Split the digits 5 to 9 into the images from which training sets are sampled, and a test set."""
        self._show_command("label new.txt --split 0.66,0.34 --seed 0")
        options = LabelOptions(new_labels.path, split=(0.66, 0.34))
        few, test = (LabelFile(part.path) for part in make_label_files(options, split=split_labels))
        self._show("".join(f"  {_describe_label_file(file)}\n" for file in (few, test)))
        return few, test

    def _compare_methods(self, new_train_labels: LabelFile, test_labels: LabelFile) -> list[MethodAccuracies]:
        """Train with `transfer` and `scratch` on a few images of each new digit, for each number of images and seed."""
        sizes = ", ".join(map(str, IMAGES_PER_CLASS[:-1])) + f" and {IMAGES_PER_CLASS[-1]}"
        self._show(f"# Train on {sizes} images of each digit 5 to 9, with the random seeds {SEEDS[0]}")
        self._show(f"# to {SEEDS[-1]}. The commands for {EXAMPLE_IMAGES_PER_CLASS} images and the first seed:")
        results = []
        for images_per_class in IMAGES_PER_CLASS:
            runs_by_seed = [
                self._train_both_methods(new_train_labels, test_labels, images_per_class, seed) for seed in SEEDS
            ]
            for epochs in REPORTED_EPOCHS:
                for method in METHODS:
                    # not of the best epoch, which would be chosen on the test images
                    rows = (read_run(runs[method]).epochs[epochs - 1] for runs in runs_by_seed)
                    accuracies = tuple(row["val_accuracy"] for row in rows)
                    results.append(MethodAccuracies(method, images_per_class, epochs, accuracies))
        self._show("")
        return results

    def _train_both_methods(
        self, new_train_labels: LabelFile, test_labels: LabelFile, images_per_class: int, seed: int
    ) -> dict[str, Path]:
        """Train with `transfer` and `scratch` on random images of each digit; return the run folder of each method."""
        is_shown = (images_per_class, seed) == (EXAMPLE_IMAGES_PER_CLASS, SEEDS[0])
        train = self._folder / f"few_{images_per_class}_{seed}.txt"
        if is_shown:
            self._show_command(
                f"label {new_train_labels.path.name} --limit-per-class {images_per_class} --seed {seed} -o {train.name}"
            )
        options = LabelOptions(new_train_labels.path, out=train, limit_per_class=images_per_class, seed=seed)
        make_label_files(options, split=split_labels)
        return {
            method: self._finetune(
                LabelFile(train), test_labels, f"{method}-{images_per_class}-{seed}", weights=weights, freeze=freeze,
                epochs=EPOCHS, seed=seed, show_command=is_shown, export=is_shown and method == "transfer",
            ).run
            for method, (weights, freeze) in METHODS.items()
        }  # fmt: skip

    def _finetune(
        self,
        train_labels: LabelFile,
        val_labels: LabelFile,
        run: str,
        *,
        weights: str,
        freeze: str,
        epochs: int,
        seed: int = 0,
        show_command: bool = True,
        export: bool = False,
    ) -> FineTuneResult:
        """Train a LeNet; if `show_command` is true, first show the equivalent command line."""
        if show_command:
            self._show_command(
                f"finetune {train_labels.path.name} --val {val_labels.path.name} --model lenet5 --weights {weights}"
                f" --freeze {freeze} --epochs {epochs} --lr 0.001 --augment none --seed {seed} -o runs/{run}"
            )
        config = FineTuneConfig(
            train_labels.path,
            self._folder / "runs" / run,
            val=val_labels.path,
            model="lenet5",
            weights=weights if weights == "none" else str(self._folder / weights),
            freeze=freeze,
            epochs=epochs,
            lr=0.001,
            augment="none",
            seed=seed,
        )
        return fine_tune(config, export=export)

    def _count_correct_predictions(self, run: Path, test_labels: LabelFile) -> tuple[int, int]:
        """Classify one test image of each digit; return the number of correct predictions and of images."""
        items = list({item.label: item for item in test_labels}.values())
        names = [item.path.relative_to(self._folder).as_posix() for item in items]
        self._show_command(f"predict runs/{run.name}/model.onnx {' '.join(names)} --top 1")
        predictions = Predictor(run / "model.onnx")([item.path for item in items], top=1)
        correct = 0
        for name, item, prediction in zip(names, items, predictions, strict=True):
            if isinstance(prediction, Prediction):
                correct += prediction.class_name == test_labels.class_names[item.label]
                self._show(f"  {name}: {prediction.class_name} ({100 * prediction.probability:.0f} %)")
        self._show("")
        return correct, len(items)

    def _show_accuracies(self, results: Sequence[MethodAccuracies]) -> None:
        """Show the accuracies by number of images as bars, and draw them as a PNG file."""
        plot = self._folder / "transfer.png"
        draw_accuracies(results, plot)
        for epochs in REPORTED_EPOCHS:
            shown = [result for result in results if result.epochs == epochs]
            self._show(f"Mean test accuracy after {epochs} epochs (minimum to maximum), by images per digit:")
            for transfer, scratch in zip(shown[::2], shown[1::2], strict=True):
                self._show("\n".join(format_accuracy_bars([transfer, scratch])))
                self._show(f"      {describe_difference(transfer, scratch)}")
            self._show("")
        self._show(f"Plot of these accuracies: {plot}\n")

    def _format_training_times(self) -> str:
        """Return the total training time of the runs of each method as text."""
        runs = {method: map(read_run, (self._folder / "runs").glob(f"{method}-*")) for method in METHODS}
        seconds = {method: sum(row["seconds"] for run in each for row in run.epochs) for method, each in runs.items()}
        return ", ".join(f"{method} {total:.0f} s" for method, total in seconds.items())

    def _show_table(self, *rows: tuple[str, str]) -> None:
        self._show(f"{'step':<{NAME_WIDTH}} result")
        self._show("-" * LINE_WIDTH)
        for name, result in rows:
            indent = " " * (NAME_WIDTH + 1)
            self._show(textwrap.fill(f"{name:<{NAME_WIDTH}} {result}", LINE_WIDTH, subsequent_indent=indent))


def _describe_label_file(file: LabelFile) -> str:
    return f"{file.path.name}: {pluralize(sum(1 for _ in file), 'image')} of {', '.join(file.class_names)}"


def _format_counts(counts_by_code: Mapping[str, int]) -> str:
    """Return text such as `2 blank, 1 tiny`; `none` if there are no counts."""
    return ", ".join(f"{count} {code}" for code, count in counts_by_code.items()) or "none"


def _describe_onnx_parity(run: Path) -> str:
    parity = OnnxBundle.read(run / "model.onnx").provenance.parity
    if parity is None:
        return "not compared"
    same = f"same class as PyTorch for {parity.num_images - parity.num_near_ties} of {parity.num_images} test images"
    return f"{same}; largest relative logit difference {parity.max_relative_difference:.0e}"
