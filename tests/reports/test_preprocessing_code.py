"""The code in a model card prepares an image as mlimages does, and predicts the same class."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mlimages.core import ImageProperty, Normalization, Preprocessing, Resize
from mlimages.export import ExportOptions, export_network
from mlimages.export import quantization as quantization_module
from mlimages.export.quantization import quantize
from mlimages.images import prepare_pixels
from mlimages.inference import OnnxBundle, Predictor
from mlimages.labels import LabelFile, write_label_file
from mlimages.networks import Normalize
from mlimages.reports import format_model_card
from mlimages.reports.preprocessing_code import describe_preprocessing, format_preprocessing_code
from tests.deploying import made_image, made_images, trained
from tests.export.test_quantization import with_known

pytestmark = pytest.mark.train

SIZES = [(24, 20), (64, 48), (47, 90), (90, 21), (10, 7), (23, 19)]
IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.parametrize("resize", get_args(Resize))
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("gray", "normalization"),
    [
        (False, IMAGENET),
        (False, Normalization(mean=(0.5,), std=(0.25,))),
        (False, Normalization(scale=1.0, mean=(104.0, 117.0, 123.0), bgr=True)),
        (False, Normalization(mean_image="mean.npy", std=(0.5,))),
        (True, Normalization(mean=(0.5,), std=(0.5,))),
        (True, IMAGENET),
    ],
)
def test_the_code_of_a_card_prepares_images_as_the_network_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resize: Any, interpolation: Any, gray: bool,
    normalization: Normalization,
) -> None:  # fmt: skip
    prop = ImageProperty(24, 20, resize, 30 * (resize == "shorter"), (3, 2), interpolation, gray)
    mean_image = np.random.default_rng(0).uniform(0, 255, (3, 20, 24)).astype(np.float32)
    np.save(tmp_path / "mean.npy", mean_image)
    monkeypatch.chdir(tmp_path)
    normalize = Normalize(normalization, mean_image if normalization.mean_image else None)
    preprocessing = Preprocessing(prop, normalization)
    for size in SIZES:
        image = made_image(1, *(7 * side for side in size)).resize(size)
        image.save("image.jpg", "PNG")
        expected = normalize(torch.from_numpy(prepare_pixels(image, prop)[None].copy())).numpy()
        values: dict[str, Any] = {"np": np, "Image": Image, "ImageOps": ImageOps}
        exec(format_preprocessing_code(preprocessing), values)
        assert values["x"].dtype == np.float32
        np.testing.assert_allclose(values["x"], expected, rtol=1e-5, atol=1e-5)
    words = describe_preprocessing(preprocessing)
    assert "24 x 20" in words
    assert ("grayscale" in words, "BGR" in words) == (gray, normalization.bgr)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        ExportOptions(),
        ExportOptions(include_preprocessing=False),
        ExportOptions(target="tensorrt"),
        ExportOptions(target="opencv"),
    ],
    ids=["with preprocessing", "without preprocessing", "tensorrt", "opencv"],
)
def test_the_code_of_a_card_runs_and_predicts_the_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: ExportOptions, quantized: bool
) -> None:
    if options.target == "opencv":
        pytest.importorskip("cv2")
    items, names = made_images(tmp_path / "p", 12), ("class0", "class1", "class2")
    write_label_file(tmp_path / "val.txt", items, names)
    network = with_known(trained("cifar10_cnn"), LabelFile(tmp_path / "val.txt"))
    plain = export_network(network, tmp_path / "plain.onnx", validation=items)
    bundle = export_network(network, tmp_path / "a.onnx", validation=items, options=options)
    if quantized:
        monkeypatch.setattr(quantization_module, "MIN_SPEEDUP", 0.0)
        quantize(bundle, tmp_path / "val.txt", tmp_path / '"q" 😀.onnx', max_drop=100)
        bundle = OnnxBundle.read(tmp_path / '"q" 😀.onnx')
    made_image(3).save(tmp_path / "image.jpg", "PNG")
    card = format_model_card(bundle)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    (result,) = Predictor(plain)([tmp_path / "image.jpg"], top=3)
    assert done.stdout.strip() == result.top[0].class_name  # type: ignore[union-attr]
    assert ("mlimages predict" in card) == bundle.includes_preprocessing
