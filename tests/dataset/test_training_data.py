"""A label file as arrays: in order, complete, and equal to what an exported file computes."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from mlimages.core import ImageProperty, InputError, LabeledPath, Normalization, Preprocessing
from mlimages.dataset import TrainingData, augment, compute_mean, describe_preprocessing_differences, load_mean_image
from mlimages.export import TrainedNetwork
from mlimages.export.onnx_writer import write_onnx
from mlimages.images import load_pixels, to_network_input
from mlimages.inference import BundleSession, Predictor
from mlimages.labels import LabelFile, write_label_file
from mlimages.networks import Normalize
from mlimages.reports import draw_contact_sheet

PROP = ImageProperty(16)
IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.fixture
def labels(tmp_path: Path) -> LabelFile:
    """Ten images of two classes, the fourth of them broken."""
    rng = np.random.default_rng(0)
    items = [LabeledPath(tmp_path / f"{n}.png", n % 2) for n in range(10)]
    for item in items:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(item.path)
    items[3].path.write_bytes(b"broken")
    write_label_file(tmp_path / "labels.txt", items, ["even", "odd"])
    return LabelFile(tmp_path / "labels.txt")


def good(labels: LabelFile) -> list[LabeledPath]:
    return [item for item in labels if item.path.name != "3.png"]


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_hold_every_good_image_in_order_and_the_last_is_smaller(
    labels: LabelFile, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    data = TrainingData(labels, PROP, normalization=IMAGENET)
    with caplog.at_level(logging.WARNING):
        batches = list(data.generate_batches(4, workers=workers))
    assert [x.shape for x, _ in batches] == [(4, 3, 16, 16), (4, 3, 16, 16), (1, 3, 16, 16)]
    assert {(x.dtype, y.dtype) for x, y in batches} == {(np.dtype(np.float32), np.dtype(np.int64))}
    assert np.concatenate([y for _, y in batches]).tolist() == [item.label for item in good(labels)]
    pixels = np.stack([load_pixels(item.path, PROP) for item in good(labels)])
    assert (np.concatenate([x for x, _ in batches]) == to_network_input(pixels, IMAGENET)).all()
    assert "3.png: not-an-image" in caplog.text


@pytest.mark.parametrize("normalization", [IMAGENET, Normalization(scale=1.0, mean=(1.5, 2.5, 3.5), bgr=True)])
@pytest.mark.parametrize("by_image", [False, True])
def test_batches_are_bit_for_bit_the_input_of_an_exported_network(
    labels: LabelFile, tmp_path: Path, normalization: Normalization, by_image: bool
) -> None:
    mean_image = np.random.default_rng(1).uniform(0, 255, (3, 16, 16)).astype(np.float32) if by_image else None
    data = TrainingData(labels, PROP, normalization=normalization, mean_image=mean_image)
    exported = replace(normalization, mean_image="mean.npy" if by_image else "")
    names = tuple(str(number) for number in range(3 * 16 * 16))
    identity = TrainedNetwork(nn.Flatten(), Preprocessing(PROP, exported), names, "none", mean_image)
    predictor = Predictor(write_onnx(identity, tmp_path / "model.onnx")[0])
    decoded = [predictor.decode(item.path)[0] for item in good(labels)]
    inputs, _ = BundleSession(predictor.bundle).run(decoded)
    assert (inputs.reshape(-1, 3, 16, 16) == np.concatenate([x for x, _ in data.generate_batches(4)])).all()


def test_a_mean_image_that_is_only_named_is_refused_wherever_it_would_be_subtracted(labels: LabelFile) -> None:
    named, mean_image = Normalization(mean_image="mean.npy"), np.full((3, 16, 16), 99, np.float32)
    pixels, message = np.zeros((1, 16, 16, 3), np.uint8), r"'mean.npy'\) is only the name of .*TrainingData\(mean_"
    uses: list[Callable[..., object]] = [
        lambda mean: TrainingData(labels, PROP, normalization=named, mean_image=mean),
        lambda mean: to_network_input(pixels, named, mean),
        lambda mean: Normalize(named, mean),
        lambda mean: TrainedNetwork(nn.Flatten(), Preprocessing(PROP, named), ("a", "b"), "none", mean),
    ]
    for use in uses:
        use(mean_image)
        with pytest.raises(InputError, match=message):
            use(None)


def test_a_consumer_may_stop_early(labels: LabelFile) -> None:
    batches = TrainingData(labels, PROP).generate_batches(2, workers=2)
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def test_single_images_are_generated_too_and_shuffled_by_seed(labels: LabelFile) -> None:
    data = TrainingData(labels, PROP)
    assert [label for _, label in data.generate()] == [item.label for item in good(labels)]
    first, again = ([x.sum() for x, _ in data.shuffle(1).generate()] for _ in range(2))
    assert first == again
    assert first != [x.sum() for x, _ in data.generate()]


@pytest.mark.parametrize("normalization", [IMAGENET, Normalization(scale=1.0, bgr=True)])
def test_an_array_becomes_the_image_that_it_was_made_from(
    labels: LabelFile, tmp_path: Path, normalization: Normalization
) -> None:
    for mean_image in (None, np.random.default_rng(1).uniform(0, 255, (3, 16, 16)).astype(np.float32)):
        data = TrainingData(labels, PROP, normalization=normalization, mean_image=mean_image)
        array, label = next(iter(data.generate()))
        image = data.data_to_image(array, label)
        assert image.label == label
        assert (np.asarray(image.image) == load_pixels(tmp_path / "0.png", PROP)).all()


@pytest.mark.parametrize("shape", [(16, 16), (1, 16, 16), (3, 16, 17)])
def test_an_array_of_another_shape_is_no_image_of_these(labels: LabelFile, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected \(3, 16, 16\)"):
        TrainingData(labels, PROP).data_to_image(np.zeros(shape, np.float32))


def test_the_mean_image_is_written_for_viewing_and_for_training(labels: LabelFile, tmp_path: Path) -> None:
    data = TrainingData(labels, PROP)
    result = data.make_mean_image(tmp_path / "mean.png")
    pixels = np.stack([load_pixels(item.path, PROP) for item in good(labels)]).astype(np.float64)
    assert np.load(tmp_path / "mean.npy").dtype == np.float32
    assert np.allclose(np.load(tmp_path / "mean.npy"), pixels.mean(axis=0).transpose(2, 0, 1), atol=1e-4)
    assert np.allclose(np.asarray(Image.open(tmp_path / "mean.png")), pixels.mean(axis=0), atol=0.51)
    statistics = json.loads((tmp_path / "mean.json").read_text())
    assert np.allclose(statistics["mean"], pixels.mean(axis=(0, 1, 2)))
    assert np.allclose(statistics["std"], pixels.std(axis=(0, 1, 2)))
    assert statistics["count"] == result.num_images == 9
    assert [broken.fault for broken in result.broken_images] == ["not-an-image"]
    used = list(LabelFile(tmp_path / "labels_used_in_mean.txt"))
    assert used == good(labels)
    assert abs(np.concatenate([x for x, _ in data.generate_batches(4)]).mean(axis=0)).max() < 1e-6


def test_the_mean_does_not_depend_on_workers_or_order(labels: LabelFile) -> None:
    means = [compute_mean(labels.shuffle(seed), PROP, workers=seed + 1) for seed in range(3)]
    assert all((mean.mean == means[0].mean).all() and mean.channel_std == means[0].channel_std for mean in means)


def test_a_gray_mean_has_one_channel_and_one_line_of_statistics(labels: LabelFile) -> None:
    mean = compute_mean(labels, ImageProperty(16, gray_scale=True))
    assert mean.mean.shape == (1, 16, 16)
    assert repr(mean).startswith("MeanImage(9 images, 1 broken, 16 x 16 px, channel_mean=(1")
    assert len(repr(mean)) < 110


def test_a_mean_of_no_image_is_an_error_that_names_the_first_broken_one(labels: LabelFile) -> None:
    with pytest.raises(InputError, match=r"mean image: no image can be decoded \(first: .*3.png: not-an-image"):
        compute_mean(labels.filter(lambda item: item.path.name == "3.png"), PROP)


def test_a_mean_image_is_loaded_from_npy_or_png_only(labels: LabelFile, tmp_path: Path) -> None:
    result = TrainingData(labels, PROP).make_mean_image(tmp_path / "mean.png")
    assert (load_mean_image(tmp_path / "mean.npy") == result.mean).all()
    assert np.allclose(load_mean_image(tmp_path / "mean.png"), result.mean, atol=0.51)
    np.save(tmp_path / "flat.npy", np.zeros(3, np.float32))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    for name in ("flat.npy", "objects.npy", "none.npy"):
        with pytest.raises(InputError, match=name):
            load_mean_image(tmp_path / name)


def test_a_cached_mean_decodes_nothing_until_an_image_changes(
    labels: LabelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlimages.images import geometry

    decoded: list[Path] = []

    def counting(path: Path, prop: ImageProperty) -> object:
        decoded.append(path)
        return load_pixels(path, prop)

    first = TrainingData(labels, PROP).make_mean_image(tmp_path / "mean.png")
    monkeypatch.setattr(geometry, "load_pixels", counting)
    again = TrainingData(labels, PROP).make_mean_image(tmp_path / "again.png")
    assert decoded == []
    assert (tmp_path / "again.npy").read_bytes() == (tmp_path / "mean.npy").read_bytes()
    assert (again.channel_mean, again.num_images, again.broken_images) == (
        first.channel_mean,
        first.num_images,
        first.broken_images,
    )
    Image.new("RGB", (9, 9)).save(tmp_path / "3.png")
    assert TrainingData(labels, PROP).make_mean_image(tmp_path / "mean.png").num_images == 10
    assert len(decoded) == 10


def test_class_means_are_drawn_below_their_names(labels: LabelFile, tmp_path: Path) -> None:
    means = TrainingData(labels, PROP).make_mean_image(tmp_path / "mean.png", per_class=True).class_means
    even = [load_pixels(item.path, PROP) for item in good(labels) if item.label == 0]
    assert list(means) == [0, 1]
    assert np.allclose(means[0], np.mean(even, axis=0).transpose(2, 0, 1), atol=1e-3)
    sheet = np.asarray(Image.open(tmp_path / "mean_per_class.png"))
    assert sheet.shape == (32, 32, 3)
    assert np.allclose(sheet[16:, :16], means[0].transpose(1, 2, 0), atol=0.51)


@pytest.mark.parametrize("name", ["m.npy", "m.json", "m_per_class.png", "labels_used_in_mean.txt"])
def test_a_mean_image_is_written_only_if_all_its_files_may_be_replaced(
    labels: LabelFile, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("by hand")
    before = sorted(tmp_path.iterdir())
    make = partial(TrainingData(labels, PROP).make_mean_image, per_class=True)
    writers: list[Callable[[Path], object]] = [make, *[compute_mean(labels, PROP).write] * name.startswith("m.")]
    for write in writers:
        with pytest.raises(InputError, match=f"{name} exists and was not written by mlimages"):
            write(tmp_path / "m.png")
        assert sorted(tmp_path.iterdir()) == before
    make(tmp_path / "m.png", overwrite=True)
    assert (tmp_path / name).read_bytes() != b"by hand"


def test_paths_of_every_kind_are_taken(labels: LabelFile, tmp_path: Path) -> None:
    expected = TrainingData(labels, PROP).make_mean_image(tmp_path / "mean.png")
    for kind in (str, Path):
        data = TrainingData(kind(labels.path), PROP, mean_image=kind(tmp_path / "mean.npy"))
        assert (data.mean_image == expected.mean).all()
        assert repr(data) == f"TrainingData({str(labels.path)!r}, 16 x 16 px, RGB, mean image)"
        expected.write(kind(tmp_path / "again.png"))
        assert (load_mean_image(kind(tmp_path / "again.npy")) == expected.mean).all()
        assert compute_mean(kind(labels.path), PROP).channel_mean == expected.channel_mean
        assert load_pixels(kind(tmp_path / "0.png"), PROP).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("prop", "mean_shape"),
    [
        (ImageProperty(16, gray_scale=True), (3, 16, 16)),
        *((PROP, shape) for shape in ((1, 16, 16), (3, 16, 17), (16, 16, 3), (3,))),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_a_mean_image_of_another_shape_is_an_error_at_once(
    labels: LabelFile, tmp_path: Path, prop: ImageProperty, mean_shape: tuple[int, ...], as_file: bool
) -> None:
    mean = np.zeros(mean_shape, np.float32)
    np.save(tmp_path / "mean.npy", mean)
    with pytest.raises(InputError, match=r"expected a mean image|but the network expects") as error:
        TrainingData(labels, prop, mean_image=tmp_path / "mean.npy" if as_file else mean)
    data = TrainingData(labels, prop)
    with pytest.raises(InputError, match=r"expected a mean image|but the network expects"):
        data.mean_image = tmp_path / "mean.npy" if as_file else mean
    assert data.mean_image is None
    assert not as_file or len(mean_shape) < 3 or ("--gray" in str(error.value)) == prop.gray_scale


@pytest.mark.parametrize("values", [-3.0, 1000.0, 255.5])
def test_a_mean_image_outside_0_to_255_is_refused(labels: LabelFile, values: float) -> None:
    with pytest.raises(InputError, match=r"a mean image has values in 0\.\.255"):
        TrainingData(labels, PROP, mean_image=np.full(PROP.shape, values, np.float32))


@pytest.mark.parametrize(("value", "is_doubtful"), [(0.0, False), (0.5, True), (1.0, True), (99.0, False)])
def test_a_mean_image_that_may_be_in_0_to_1_is_a_warning(
    labels: LabelFile, value: float, is_doubtful: bool, caplog: pytest.LogCaptureFixture
) -> None:
    TrainingData(labels, PROP, mean_image=np.full(PROP.shape, value, np.float32))
    assert ("is it in 0..1?" in caplog.text) == is_doubtful


def test_a_number_instead_of_an_image_property_is_a_type_error_with_an_example(
    labels: LabelFile, tmp_path: Path
) -> None:
    uses: list[Callable[[Any], object]] = [
        lambda size: TrainingData(labels, size),
        lambda size: compute_mean(labels, size),
        lambda size: augment(labels, tmp_path / "a.npz", image_property=size),
        lambda size: draw_contact_sheet(labels.path, tmp_path / "a.png", image_property=size),
    ]
    for use in uses:
        with pytest.raises(TypeError, match=r"expected an ImageProperty, such as ImageProperty\(224\), got int"):
            use(16)
    assert not (tmp_path / "a.npz").exists()


def test_images_of_which_none_can_be_decoded_are_an_error(labels: LabelFile) -> None:
    data = TrainingData(LabelFile(labels.path, "nowhere"), PROP)
    for images in (data.generate(), data.generate_batches(4)):
        with pytest.raises(
            InputError, match=r"none of the images of .* can be used \(first: nowhere\S*: missing\): see"
        ):
            list(images)
    assert list(TrainingData(labels.filter(lambda item: False), PROP).generate()) == []


def test_the_mean_of_grayscale_images_is_read_from_its_png(labels: LabelFile, tmp_path: Path) -> None:
    gray = ImageProperty(16, gray_scale=True)
    mean = TrainingData(labels, gray).make_mean_image(tmp_path / "mean.png").mean
    data = TrainingData(labels, gray, mean_image_file=str(tmp_path / "mean.png"))
    assert data.mean_image is not None
    assert np.allclose(data.mean_image, mean, atol=0.51)


def test_color_statistics_for_grayscale_images_are_an_error(labels: LabelFile) -> None:
    with pytest.raises(InputError, match="mean has 3 values, but a grayscale image has one channel"):
        TrainingData(labels, ImageProperty(16, gray_scale=True), normalization=IMAGENET)


@pytest.mark.parametrize("size", [0, -1, 1.5, "3", None])
def test_a_number_of_images_that_no_batch_has_is_an_error_at_the_call(labels: LabelFile, size: Any) -> None:
    with pytest.raises(InputError, match=f"batch size is {size!r}: expected a whole number of at least 1"):
        TrainingData(labels, PROP).generate_batches(size)


@pytest.mark.parametrize("workers", [0, -1, 1.5, "3"])
def test_a_number_of_threads_that_cannot_be_is_an_error_at_the_call(labels: LabelFile, workers: Any) -> None:
    for call in (
        lambda: TrainingData(labels, PROP).generate_batches(2, workers=workers),
        lambda: compute_mean(labels, PROP, workers=workers),
    ):
        with pytest.raises(InputError, match=f"workers is {workers!r}: it must be a whole number of at least 1"):
            call()


@pytest.mark.parametrize(
    "value",
    [[1, 2, 3], np.full((3, 16, 16), np.nan), np.empty((3, 16, 16), object), 7, np.empty((3, 0, 16)), [[[]]], []],
)
def test_an_array_that_is_no_mean_image_is_an_error_at_once(labels: LabelFile, value: Any) -> None:
    with pytest.raises(InputError, match=r"mean_image: expected a mean image|mean_image contains NaN"):
        TrainingData(labels, PROP, mean_image=value)
    with pytest.raises(InputError, match=r"mean_image: expected a mean image|mean_image contains NaN"):
        load_mean_image(value)


@pytest.mark.parametrize(
    "name", ["mean_image_file", "scale", "color", "image_property", "label_file", "normalization", "labels"]
)
def test_settings_that_nothing_would_check_cannot_be_set(labels: LabelFile, name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        setattr(TrainingData(labels, PROP), name, "mean.png")


def test_a_mean_of_images_prepared_otherwise_is_said(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "1.png")
    (tmp_path / "labels.txt").write_text("1.png 0\n")
    made = ImageProperty(4, shorter_px=6)
    TrainingData(tmp_path / "labels.txt", made).make_mean_image(tmp_path / "mean.png")
    assert describe_preprocessing_differences(tmp_path / "mean.npy", made) == ""
    for prop, said in (
        (ImageProperty(4), "shorter_px: 6 for the mean image, 4 for the network"),
        (ImageProperty(4, resize="squash"), "resize: shorter for the mean image, squash for the network"),
        (
            ImageProperty(4, shorter_px=6, interpolation="bicubic"),
            "interpolation: bilinear for the mean image, bicubic for the network",
        ),
    ):
        assert describe_preprocessing_differences(tmp_path / "mean.npy", prop) == said
    (tmp_path / "mean.json").unlink()
    assert describe_preprocessing_differences(tmp_path / "mean.npy", ImageProperty(8)) == ""


def test_the_mean_of_more_images_than_a_chunk_of_sums_can_hold_is_exact(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "white").save(tmp_path / "a.png")
    found = compute_mean([LabeledPath(tmp_path / "a.png", 3)] * 300, ImageProperty(4), per_class=True)
    assert found.num_images == 300
    assert {float(value) for mean in (found.mean, found.class_means[3]) for value in mean.ravel()} == {255.0}
