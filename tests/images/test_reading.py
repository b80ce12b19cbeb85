"""What is said where a label file's images are not there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mlimages import ImageProperty, InputError, evaluate
from mlimages.core import BrokenImage, Fault, ImageError, ThreadPool
from mlimages.dataset import compute_mean
from mlimages.images import describe_if_most_images_missing, reading
from mlimages.images.reading import make_reader_pool, raise_for_unavailable_images, read_bytes
from mlimages.inference import OnnxBundle
from mlimages.labels import LabelFile
from mlimages.training import FineTuneConfig, extract_features, fine_tune, probe_layers

MOST = "of 6 images are missing: paths are relative to the label file's folder; use --images DIR"


@pytest.mark.parametrize(("missing", "count", "expected"), [(0, 0, False), (1, 2, False), (2, 3, True), (3, 3, True)])
def test_more_than_half_missing_is_a_label_file_in_the_wrong_place(missing: int, count: int, expected: bool) -> None:
    assert bool(describe_if_most_images_missing(missing, count)) is expected


def moved(folder: Path) -> LabelFile:
    """A label file of six images, four of which are not there."""
    for n in range(2):
        Image.new("RGB", (32, 32), (n * 90, 9, 9)).save(folder / f"{n}.png")
    (folder / "labels.txt").write_text("".join(f"{n}.png {n % 2}\n" for n in range(6)))
    (folder / "labels_class_def.txt").write_text("0 class0\n1 class1\n")
    return LabelFile(folder / "labels.txt")


RUN: dict[str, Callable[[LabelFile], object]] = {
    "mean": lambda labels: compute_mean(labels, ImageProperty(8)),
    "finetune": lambda labels: fine_tune(FineTuneConfig(labels.path, labels.path.parent / "run", model="lenet5")),
    "features": lambda labels: extract_features(labels, model="lenet5", weights="none"),
    "probe": lambda labels: probe_layers(labels, model="lenet5", weights="none"),
}


@pytest.mark.parametrize("what", RUN)
def test_nothing_is_computed_from_the_few_that_are_left(tmp_path: Path, what: str) -> None:
    labels = moved(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=f"4 {MOST}"):
        RUN[what](labels)
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "run"] == before
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_nothing_is_measured_on_them(tmp_path: Path, cnn_bundle: OnnxBundle) -> None:
    with pytest.raises(InputError, match=f"4 {MOST}"):
        evaluate(cnn_bundle.path, moved(tmp_path))


class Store:
    """A remote store as fsspec presents it: raises what it is given, in turn, then returns the bytes."""

    def __init__(self, *errors: Exception, protocol: tuple[str, ...] = ("memory",)) -> None:
        self.errors, self.protocol, self.path = list(errors), protocol, "bucket/a.jpg"
        self.options: list[dict[str, int]] = []

    @property
    def fs(self) -> "Store":
        return self

    def __str__(self) -> str:
        return "s3://bucket/a.jpg"

    def cat_file(self, path: str, **options: int) -> bytes:
        assert path == self.path
        self.options.append(options)
        if self.errors:
            raise self.errors.pop(0)
        return b"image"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(reading.time, "sleep", slept.append)
    monkeypatch.setattr(reading, "is_remote", lambda path: isinstance(path, Store))
    monkeypatch.setattr(reading, "_consecutive_failures", 0)
    return slept


@pytest.mark.parametrize(
    ("errors", "expected", "slept"),
    [
        ([], b"image", []),
        ([OSError("slow down")], b"image", [0.4]),
        ([OSError("slow down")] * 3, b"image", [0.4, 1.6, 6.4]),
        ([OSError("slow down")] * 4, "slow down (s3://bucket/a.jpg)", [0.4, 1.6, 6.4]),
        ([RuntimeError()] * 4, "RuntimeError (s3://bucket/a.jpg)", [0.4, 1.6, 6.4]),
        ([PermissionError("denied")], "denied (s3://bucket/a.jpg)", []),
        ([OSError("x"), FileNotFoundError()], None, [0.4]),
    ],
)
def test_a_store_that_fails_is_asked_four_times_and_one_that_denies_access_once(
    errors: list[Exception], expected: bytes | str | None, slept: list[float], pauses: list[float]
) -> None:
    store = Store(*errors)
    if isinstance(expected, bytes):
        assert read_bytes(store) == expected  # type: ignore[arg-type]
    else:
        with pytest.raises(ImageError) as error:
            read_bytes(store)  # type: ignore[arg-type]
        assert error.value.fault is (Fault.UNAVAILABLE if expected else Fault.MISSING)
        assert error.value.detail == (expected or "no file at s3://bucket/a.jpg")
    assert pauses == pytest.approx(slept)
    assert len(store.options) == len(slept) + 1


def test_after_32_failures_in_a_row_a_store_is_asked_once_until_it_answers(pauses: list[float]) -> None:
    def tries(*errors: Exception) -> int:
        store = Store(*errors)
        if len(errors) == 1:
            assert read_bytes(store) == b"image"  # type: ignore[arg-type]
        else:
            with pytest.raises(ImageError):
                read_bytes(store)  # type: ignore[arg-type]
        return len(store.options)

    down = [OSError("down")] * 4
    assert [tries(*down) for _ in range(34)] == [4] * 32 + [1] * 2
    assert read_bytes(Store()) == b"image"  # type: ignore[arg-type]
    assert [tries(*down), tries(OSError("down"))] == [4, 2]


def test_one_request_is_sent_for_each_file(pauses: list[float]) -> None:
    for protocol, options in ((("s3", "s3a"), {"max_concurrency": 1}), (("memory",), {})):
        store = Store(protocol=protocol)
        read_bytes(store)  # type: ignore[arg-type]
        assert store.options == [options]


@pytest.mark.parametrize(("size", "valid"), [(99, True), (100, True), (101, False)])
def test_a_file_may_have_a_size_up_to_the_bound(
    size: int, valid: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reading.MAX_FILE_BYTES == 2**30
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 100)
    (tmp_path / "a.jpg").write_bytes(bytes(size))
    if valid:
        assert len(read_bytes(tmp_path / "a.jpg")) == size
    else:
        with pytest.raises(ImageError, match="101 bytes; at most 100 are supported") as error:
            read_bytes(tmp_path / "a.jpg")
        assert error.value.fault is Fault.UNREADABLE


def test_unavailable_images_end_a_command_unless_they_are_to_be_skipped() -> None:
    broken = [BrokenImage("a", Fault.MISSING, "x"), BrokenImage("b", Fault.UNAVAILABLE, "denied (b)")]
    raise_for_unavailable_images(broken[:1], skip=False)
    raise_for_unavailable_images(broken, skip=True)
    with pytest.raises(InputError, match=r"1 image could not be downloaded; the first: denied \(b\)"):
        raise_for_unavailable_images(broken, skip=False)


@pytest.mark.parametrize(
    ("first", "workers", "count", "chunk_size"),
    [("s3://b/a.jpg", None, 16, 1), ("s3://b/a.jpg", 40, 40, 1), ("s3://b/a.jpg", 3, 16, 1), ("a.jpg", 3, 3, None),
     (None, 5, 5, None), ("a.jpg", None, 7, None)],
)  # fmt: skip
def test_remote_images_are_read_by_more_threads(
    first: str | None, workers: int | None, count: int, chunk_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "count_available_cores", lambda: 7)
    expected = ThreadPool(count) if chunk_size is None else ThreadPool(count, chunk_size=chunk_size)
    assert make_reader_pool(first, workers) == expected
