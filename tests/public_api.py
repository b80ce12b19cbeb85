"""Every step by the public names, as another project calls them; type-checked by mypy and pyright, never run."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

import mlimages as ml


async def gather_in_a_coroutine(folder: str) -> int:
    summary = await ml.gather_async(ml.UrlList("links.tsv"), folder, limit=10)
    return summary.ok


def prepare(folder: str | Path) -> tuple[Path, Path]:
    summary: ml.GatherSummary = ml.gather("links.tsv", folder, min_size=64, retries=2)
    assert summary.ok >= 0
    train, val = ml.split_labels(ml.label_dir_auto(folder).labels, (0.8, 0.2), seed=0)
    report: ml.CheckReport = ml.check([train.write("train.txt"), "val.txt"], thresholds=ml.Thresholds())
    for finding in report.findings:
        print(finding.path, finding.code, finding.detail)
    return train.path, val.path


def arrays(labels: ml.LabelFile) -> np.ndarray:
    data = ml.TrainingData(labels, ml.ImageProperty(64))
    data.make_mean_image("mean.png")
    images, _labels = next(data.generate_batches(4))  # (4, 3, 64, 64) float32
    return images


def choose(labels: str | Path, folder: os.PathLike[str]) -> list[str]:
    found: ml.ProbeResult = ml.probe_layers(labels, weights=folder)
    features = ml.extract_features(folder).features  # (N, D) float32
    assert features.shape[0] == ml.evaluate("model.onnx", folder).num_images
    ml.explain("model.onnx", "cat.jpg")
    return [found.recommended_freeze, *(score.probe_result.model for score in ml.probe_models(labels, "lenet5").scores)]


def train(labels: Path) -> ml.FineTuneResult:
    config = ml.FineTuneConfig(labels, Path("runs/first"), model="mobilenet_v2", epochs=3, seed=1)
    try:
        return ml.fine_tune(config)
    except (ml.ModelError, ml.RunError, ml.MissingExtraError) as error:
        raise SystemExit(str(error)) from error


def deploy(result: ml.FineTuneResult, labels: ml.LabelFile) -> float:
    assert result.onnx is not None
    predictor = ml.Predictor(result.onnx)
    for answer in predictor(["cat.jpg", Image.new("RGB", (8, 8)), np.zeros((8, 8, 3), np.uint8)]):
        if isinstance(answer, ml.BrokenImage):
            print(answer.path, answer.fault)
        else:
            print(answer.class_name, answer.probability, answer.top[0].label)
    evaluation: ml.Evaluation = ml.evaluate(predictor, labels)
    return evaluation.accuracy.low
