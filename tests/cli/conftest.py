from pathlib import Path

import pytest

from tests.checks.test_validation import jpeg, scene


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder `data`, with two classes of four images."""
    return write_ants_and_bees(tmp_path / "data", 8)


def write_ants_and_bees(folder: Path, count: int) -> Path:
    for n in range(count):
        path = folder / ("ants" if n % 2 else "bees") / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(scene(n, width=90, height=60)))
    return folder
