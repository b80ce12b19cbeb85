import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlimages import images
from mlimages.core import BrokenImage, BundleError, Fault, Prediction
from mlimages.export import ExportOptions
from mlimages.inference import OnnxBundle, Predictor, explain, onnx_file
from tests.deploying import exported, made_image, trained

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def bundle(cnn_bundle: OnnxBundle) -> OnnxBundle:
    return cnn_bundle


@pytest.fixture(scope="module")
def files(bundle: OnnxBundle) -> list[Path]:
    return sorted((bundle.path.parent / "images").iterdir())


def probabilities(result: Prediction | BrokenImage) -> list[float]:
    assert isinstance(result, Prediction)
    return [score.probability for score in sorted(result.top, key=lambda score: score.label)]


def test_a_prediction_is_what_the_trained_network_says_of_the_training_pixels(
    bundle: OnnxBundle, files: list[Path]
) -> None:
    network = trained("cifar10_cnn")
    pixels = [images.load_pixels(path, network.preprocessing.image) for path in files]
    logits = network.compute_logits(pixels).astype(np.float64)
    want = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    got = [probabilities(result) for result in Predictor(bundle)(files)]
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_paths_bytes_and_arrays_of_one_image_give_one_answer(bundle: OnnxBundle, files: list[Path]) -> None:
    path = files[0]
    kinds = [path, str(path), path.read_bytes(), np.asarray(Image.open(path))]
    results = Predictor(bundle)(kinds)
    assert len({tuple(probabilities(result)) for result in results}) == 1
    assert [result.path for result in results] == [str(path), str(path), "", ""]


def test_predictions_and_explanations_name_a_path_of_any_kind_alike(bundle: OnnxBundle, files: list[Path]) -> None:
    remote = pytest.importorskip("upath").UPath("memory://photos/a.png")
    remote.write_bytes(files[0].read_bytes())
    with os.scandir(files[0].parent) as found:
        entry = next(each for each in found if each.name == files[0].name)
    inputs = {str(files[0]): entry, files[0].as_uri(): files[0].as_uri(), str(remote): remote}
    predictor = Predictor(bundle)
    want = probabilities(predictor(files[0])[0])
    for name, image in inputs.items():
        (result,) = predictor(image)
        assert (result.path, probabilities(result)) == (name, want)
        assert explain(predictor, image).path == name


def test_one_image_in_any_form_is_taken_as_a_list_of_one(bundle: OnnxBundle, files: list[Path]) -> None:
    image = Image.open(files[0])
    predictor = Predictor(bundle)
    want = [probabilities(result) for result in predictor([files[0]])]
    for one in (files[0], str(files[0]), files[0].read_bytes(), image, np.asarray(image), np.asarray(image)[None]):
        assert [probabilities(result) for result in predictor(one)] == want
    assert len(predictor(path for path in files[:2])) == 2


ARRAY = np.zeros((8, 9, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "error", "said"),
    [
        (ARRAY.astype(np.float32), TypeError, "a uint8 array with values 0 to 255, got float32"),
        ([ARRAY.astype(np.int64)], TypeError, "got int64"),
        (ARRAY.transpose(2, 0, 1), ValueError, r"got \(3, 8, 9\)"),
        (np.zeros((8, 9, 4), np.uint8), ValueError, "shape"),
        (np.zeros((0, 9, 3), np.uint8), ValueError, "shape"),
        (np.zeros(9, np.uint8), ValueError, "shape"),
        ([ARRAY, [1, 2]], TypeError, "got list"),
        (None, TypeError, "got NoneType"),
        (7, TypeError, "got int"),
    ],
)
def test_what_is_no_image_is_an_error_with_a_sentence(
    bundle: OnnxBundle, images: Any, error: type[Exception], said: str
) -> None:
    predictor = Predictor(bundle)
    with pytest.raises(error, match=said):
        predictor(images)
    with pytest.raises(error):
        explain(predictor, images)


@pytest.mark.parametrize("top", [0, -1])
def test_a_top_below_one_is_a_value_error(bundle: OnnxBundle, files: list[Path], top: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Predictor(bundle)(files, top=top)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_a_value_error(bundle: OnnxBundle, files: list[Path], batch_size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        list(Predictor(bundle).stream(files, batch_size=batch_size))


def test_every_result_has_a_class_name(bundle: OnnxBundle, files: list[Path]) -> None:
    good, broken = Predictor(bundle)([files[0], b"no image"])
    assert good.class_name
    assert (broken.class_name, broken.probability) == (None, None)


def test_classes_come_by_falling_probability_and_top_cuts_them(bundle: OnnxBundle, files: list[Path]) -> None:
    (whole,), (cut,) = Predictor(bundle)(files[:1]), Predictor(bundle)(files[:1], top=2)
    assert isinstance(whole, Prediction)
    assert isinstance(cut, Prediction)
    assert sorted((score.probability for score in whole.top), reverse=True) == [s.probability for s in whole.top]
    assert cut.top == whole.top[:2]
    assert (whole.class_name, whole.probability) == (whole.top[0].class_name, whole.top[0].probability)


def test_broken_images_are_values_among_the_good_in_their_order(
    bundle: OnnxBundle, files: list[Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.jpg"
    made_image(0).save(cut)
    cut.write_bytes(cut.read_bytes()[:-400])
    mixed = [files[0], cut, files[1], tmp_path / "none.png", b"", b"<html>", files[2]]
    results = Predictor(bundle)(mixed)
    faults = [result.fault if isinstance(result, BrokenImage) else None for result in results]
    assert faults == [None, Fault.TRUNCATED, None, Fault.MISSING, Fault.EMPTY, Fault.NOT_AN_IMAGE, None]
    assert [result for result in results if isinstance(result, Prediction)] == Predictor(bundle)(files[:3])


DECODER_EXCEPTIONS = [
    RuntimeError, NotImplementedError, AssertionError, RecursionError, MemoryError, SyntaxError, ZeroDivisionError,
    Image.DecompressionBombError, UnicodeDecodeError("utf-8", b"", 0, 1, "odd"), StopIteration, Exception,
]  # fmt: skip


@pytest.mark.parametrize("error", DECODER_EXCEPTIONS, ids=str)
def test_whatever_a_decoder_raises_is_the_outcome_of_that_image_alone(
    bundle: OnnxBundle, files: list[Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    load = images.load_pixels

    def failing(source: Path | bytes, *args: Any, **options: Any) -> Any:
        if source == b"odd":
            raise error
        return load(source, *args, **options)

    monkeypatch.setattr(images, "load_pixels", failing)
    results = Predictor(bundle)([files[0], b"odd", files[1]])
    assert [result.fault if isinstance(result, BrokenImage) else None for result in results] == [None, "corrupt", None]
    assert [results[0], results[2]] == Predictor(bundle)(files[:2])


def test_an_image_of_too_many_pixels_is_broken_before_it_is_decoded(bundle: OnnxBundle, files: list[Path]) -> None:
    (result,) = Predictor(bundle, max_pixels=100)(files[:1])
    assert isinstance(result, BrokenImage)
    assert result.fault is Fault.TOO_MANY_PIXELS


def test_one_predictor_answers_many_threads_rightly(bundle: OnnxBundle, files: list[Path]) -> None:
    predictor = Predictor(bundle, workers=2)
    want = predictor(files)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(predictor, [files] * 24)) == [want] * 24


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_a_stream_answers_in_order_whatever_the_batch(bundle: OnnxBundle, files: list[Path], batch: int) -> None:
    want = [str(path) for path in files * 3]
    got = [answer.result.path for answer in Predictor(bundle, workers=3).stream(iter(files * 3), batch_size=batch)]
    assert got == want


def test_a_stream_reads_no_further_ahead_than_it_must(bundle: OnnxBundle, files: list[Path]) -> None:
    taken = []

    def endless() -> object:
        while True:
            taken.append(1)
            yield files[0]

    stream = Predictor(bundle, workers=2).stream(endless(), batch_size=2)  # type: ignore[arg-type]
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert len(taken) <= 2 * (2 * 2 + 1)


def test_a_grey_network_answers_colour_images_as_it_was_trained(tmp_path: Path) -> None:
    bundle, network = exported("lenet5", tmp_path), trained("lenet5")
    paths = sorted((tmp_path / "images").iterdir())
    pixels = [images.load_pixels(path, network.preprocessing.image) for path in paths]
    want = network.compute_logits(pixels).argmax(axis=1)
    assert [result.top[0].label for result in Predictor(bundle)(paths)] == want.tolist()  # type: ignore[union-attr]


def test_no_images_give_no_results(bundle: OnnxBundle) -> None:
    assert Predictor(bundle)([]) == []


def test_a_best_probability_under_the_threshold_is_not_known(bundle: OnnxBundle, files: list[Path]) -> None:
    strict = replace(bundle, unknown_below=0.999)
    assert not any(result.known for result in Predictor(strict)(files))  # type: ignore[union-attr]
    assert all(result.known is None for result in Predictor(bundle)(files))  # type: ignore[union-attr]


@pytest.mark.parametrize(("quantization", "kind"), [((), "validation"), (({"name": "int8"},), "calibration")])
def test_the_table_of_a_predictor_names_the_images_of_its_accuracy(
    bundle: OnnxBundle, quantization: tuple[dict[str, str | float], ...], kind: str
) -> None:
    measured = replace(bundle.provenance, accuracy=(0.5, 0.4, 0.6), num_evaluated_images=9, quantization=quantization)
    table = Predictor(replace(bundle, provenance=measured))._repr_html_()
    assert f"on 9 {kind} images" in table


def test_a_file_whose_weights_were_altered_is_refused_by_its_own_probe(bundle: OnnxBundle, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(bundle.path)
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(weights) * 1.1
    weights.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), weights.name))
    onnx.save(model, tmp_path / "altered.onnx")
    with pytest.raises(BundleError, match=r"altered\.onnx does not reproduce the logits stored with its test image"):
        Predictor(tmp_path / "altered.onnx")


def test_a_path_is_opened_once_for_what_it_says_and_for_its_answers(
    bundle: OnnxBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    session = onnx_file.ort.InferenceSession
    monkeypatch.setattr(
        onnx_file.ort,
        "InferenceSession",
        lambda path, *more, **options: opened.append(path) or session(path, *more, **options),
    )
    assert Predictor(bundle.path).bundle.to_json() == bundle.to_json()
    assert opened == [str(bundle.path)]


def test_a_bare_network_is_refused_with_what_to_do(tmp_path: Path) -> None:
    bare = exported("cifar10_cnn", tmp_path, options=ExportOptions(include_preprocessing=False))
    with pytest.raises(
        BundleError, match=r"`mlimages summary .*` describes; to use the run with mlimages, export it again without"
    ):
        Predictor(bare)


def test_prediction_and_its_command_work_where_torch_is_not_installed(bundle: OnnxBundle, files: list[Path]) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'timm', 'onnx', 'matplotlib']))\n"
        "sys.argv = ['mlimages', 'predict', *sys.argv[1:]]\nfrom mlimages.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, bundle.path, files[0]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "class" in done.stdout


@pytest.mark.parametrize("link", ["https://x.example/a.jpg", "HTTP://x.example", "ftp://x/a.png", "data:image/png,x"])
def test_a_link_is_answered_with_what_to_do(cnn_bundle: OnnxBundle, link: str) -> None:
    (result,) = Predictor(cnn_bundle)(link)
    assert isinstance(result, BrokenImage)
    assert (result.path, result.fault) == (link, Fault.MISSING)
    assert "mlimages gather urls" in result.detail


@pytest.mark.parametrize(
    ("address", "said"), [("sftp://x/a.jpg", "neither a path"), ("file://machine/a.jpg", "neither"), ("", "empty")]
)
def test_what_is_no_path_is_an_image_that_is_missing(cnn_bundle: OnnxBundle, address: str, said: str) -> None:
    result, other = Predictor(cnn_bundle)([address, ARRAY])
    assert isinstance(result, BrokenImage)
    assert (result.path, result.fault) == (address, Fault.MISSING)
    assert said in result.detail
    assert isinstance(other, Prediction)
