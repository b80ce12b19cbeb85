"""What the wheel and the source distribution hold."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import mlimages

PACKAGE = Path(mlimages.__file__).parent
ROOT = PACKAGE.parent


def left_out(folder: str, names: list[str]) -> set[str]:
    """What is no part of the checkout: hidden files, caches, and what earlier builds left at its top."""
    made = {"build", "dist"} if Path(folder) == ROOT else set()
    return shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")(folder, names) | made


def files_of(*folders: str) -> set[str]:
    """Every file of some folders of the checkout, by its path in it."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return {str(path.relative_to(ROOT)) for path in paths if path.is_file() and "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both distributions, built from a copy of the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("build") / "copy"
    shutil.copytree(ROOT, copy, ignore=left_out)
    code = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
    (copy / "dist").mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return copy / "dist"


def test_the_wheel_holds_every_file_of_the_package(built: Path) -> None:
    with zipfile.ZipFile(built / f"mlimages-{mlimages.__version__}-py3-none-any.whl") as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == files_of("mlimages")


def test_the_source_distribution_holds_tests_examples_and_changelog(built: Path) -> None:
    top = f"mlimages-{mlimages.__version__}"
    with tarfile.open(built / f"{top}.tar.gz") as archive:
        held = {name.removeprefix(f"{top}/") for name in archive.getnames()}
    wanted = files_of("mlimages", "deploy", "docs", "examples", "scripts", "tests")
    assert wanted | {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "pyproject.toml"} <= held


def test_the_description_on_a_package_index_links_nothing_that_is_not_there() -> None:
    text = (ROOT / "docs" / "package.md").read_text()
    assert 'readme = "docs/package.md"' in (ROOT / "pyproject.toml").read_text()
    assert "](" not in text
    assert "<img" not in text
