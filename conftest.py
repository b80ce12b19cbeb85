"""Doctests run in a folder with a small dataset: `photos/cats`, `photos/dogs`, `labels.txt`, and runs trained on it."""

import os
import shutil
import sys
from pathlib import Path

import pytest

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "MPLBACKEND": "agg"}
os.environ.update(ONE_THREAD)  # before NumPy and torch: threads of tests that run side by side wait for each other

LONG = (
    ("tests/test_examples.py",),
    ("tests/training/test_ranks.py",),
    ("tests/test_readme.py", "tests/cli/test_road.py", "tests/demo"),
)
"""Files of the longest tests, for each of three processes."""

CLASS_NAMES = ("cats", "dogs")
IMAGES_PER_CLASS = 6


def pytest_configure() -> None:
    """Refuse a locale in which the names of many tests' files cannot be written."""
    if sys.getfilesystemencoding() != "utf-8":
        raise pytest.UsageError("the tests need a UTF-8 locale, such as LC_ALL=C.UTF-8, or PYTHONUTF8=1")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each of three processes begin with long tests, so that none is left alone with them at the end."""
    parts = [[item for item in items if item.nodeid.startswith(files)] for files in LONG]
    rest = [item for item in items if not item.nodeid.startswith(sum(LONG, ()))]
    third = -(-len(rest) // len(LONG))
    items[:] = [item for n, part in enumerate(parts) for item in (*part, *rest[n * third : (n + 1) * third])]


def write_dataset(folder: Path) -> None:
    """Write PNG images of noise, a label file and its class definition."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    lines = []
    for label, name in enumerate(CLASS_NAMES):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            path = f"photos/{name}/{number}.png"
            pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)  # (H, W, C)
            Image.fromarray(pixels).save(folder / path)
            lines.append(f"{path} {label}\n")
    (folder / "labels.txt").write_text("".join(lines))
    (folder / "labels_class_def.txt").write_text("".join(f"{label} {name}\n" for label, name in enumerate(CLASS_NAMES)))


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run folders `runs/first` and `runs/second` of a small network trained on the dataset."""
    from mlimages.training import FineTuneConfig, fine_tune

    folder = tmp_path_factory.mktemp("runs")
    write_dataset(folder)
    for seed, name in enumerate(("first", "second")):
        config = FineTuneConfig(
            folder / "labels.txt",
            folder / "runs" / name,
            model="lenet5",
            weights="none",
            freeze="none",
            seed=seed,
            epochs=1,
        )
        fine_tune(config)
    return folder / "runs"


@pytest.fixture(autouse=True)
def _doctest_folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        folder: Path = request.getfixturevalue("tmp_path")
        monkeypatch.setenv("MLIMAGES_CACHE", str(folder / "cache"))
        monkeypatch.chdir(folder)
        write_dataset(folder)
        if any("runs/first" in example.source for example in request.node.dtest.examples):
            shutil.copytree(request.getfixturevalue("finished_runs"), folder / "runs")
