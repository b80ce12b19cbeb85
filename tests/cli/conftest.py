from pathlib import Path

import pytest

from tests.checks.test_validation import jpeg, scene


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder `data`, with two classes of four images."""
    for n in range(8):
        path = tmp_path / "data" / ("ants" if n % 2 else "bees") / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(scene(n, width=90, height=60)))
    return tmp_path / "data"
