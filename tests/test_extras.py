"""What works without an extra, and what says which one to install, before any work."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import mlimages
from mlimages.core import make_install_command
from tests.conftest import RunCli


def run_without(modules: str, code: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process that cannot import `modules`, named with spaces between them."""
    masked = f"import sys; sys.modules.update(dict.fromkeys({modules.split()!r}))\n{code}"
    return subprocess.run([sys.executable, "-c", masked, *words], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("modules", "words", "extra"),
    [
        ("matplotlib", "check labels.txt --report page.html", "report"),
        ("jinja2", "check labels.txt --report page.html", "report"),
        ("jinja2", "show labels.txt -o sheet.html", "report"),
        ("torch", "probe labels.txt", "train"),
        ("matplotlib", "probe labels.txt", "report"),
        ("timm", "finetune labels.txt", "train"),
        ("onnx", "finetune labels.txt", "train"),
        ("onnxscript", "export none", "train"),
        ("torchvision", "summary alexnet", "train"),
        ("onnx", "summary none.onnx", "train"),
        ("torch", "quantize none.onnx --calibration labels.txt", "train"),
        ("sklearn", "demo", "train"),
        ("tensorboard", "finetune labels.txt --tensorboard", "tensorboard"),
        ("ray", "check labels.txt --engine ray", "ray"),
        ("upath", "label s3://bucket/folder", "remote"),
        ("pyarrow", "gather urls empty.parquet -o photos", "parquet"),
        ("pyarrow", "gather imagenet n02121808 --url-list empty.parquet -o photos", "parquet"),
    ],
)
def test_a_command_names_the_missing_extra_before_it_reads_or_writes(
    tmp_path: Path, modules: str, words: str, extra: str
) -> None:
    for name in ("empty.parquet", "labels.txt"):
        (tmp_path / name).touch()
    done = run_without(modules, "from mlimages.cli.main import main; main()", tmp_path, *words.split())
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("mlimages: ")
    assert line.endswith(f"requires an optional dependency: {make_install_command(extra)}")
    assert {path.name for path in tmp_path.iterdir()} == {"empty.parquet", "labels.txt"}


@pytest.mark.parametrize(
    "code",
    [
        "from mlimages import fine_tune",
        "from mlimages import check, fine_tune",
        "from mlimages.networks import build_model",
        "from mlimages.training import fine_tune",
        "import mlimages\nmlimages.fine_tune(None)",
        "import mlimages\ntry: mlimages.fine_tune(None)\nexcept mlimages.MlimagesError as error: sys.exit(str(error))",
        "try: from mlimages import fine_tune\nexcept ImportError as error: sys.exit(str(error))",
    ],
)
def test_python_code_that_needs_a_missing_extra_ends_with_the_way_to_install_it(tmp_path: Path, code: str) -> None:
    done = run_without("torch torchvision timm", code, tmp_path)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(f"requires an optional dependency: {make_install_command('train')}")


def test_without_torch_the_package_can_be_asked_listed_and_imported_whole(tmp_path: Path) -> None:
    code = """
import pydoc
import mlimages
assert not hasattr(mlimages, "fine_tune")
assert hasattr(mlimages, "check")
from mlimages import *
assert callable(check)
assert "fine_tune" not in globals()
text = pydoc.render_doc(mlimages, renderer=pydoc.plaintext)
assert "class LabelFile" in text
assert "fine_tune(" not in text
print(*sorted(set(dir(mlimages)) - set(mlimages.__all__)))
"""
    done = run_without("torch torchvision timm", code, tmp_path)
    assert done.returncode == 0, done.stderr
    expected = (
        "ExportOptions FeatureTable FineTuneResult TrainedRun "
        "__version__ export_run extract_features fine_tune load_run probe_layers probe_models quantize "
        "summarize summarize_model"
    )
    assert done.stdout.strip() == expected


def test_version_tells_those_of_the_libraries_without_importing_them(run_cli: RunCli, tmp_path: Path) -> None:
    assert run_cli("--version").stdout.splitlines() == [
        f"mlimages {mlimages.__version__}",
        *(f"{name} {metadata.version(name)}" for name in ("torch", "timm", "onnxruntime")),
    ]
    bare = "import importlib.metadata as m\ndef absent(name): raise m.PackageNotFoundError(name)\nm.version = absent\n"
    done = run_without(
        "torch timm onnxruntime", f"{bare}from mlimages.cli.main import main; main()", tmp_path, "--version"
    )
    assert done.stdout.splitlines()[1:] == ["torch not installed", "timm not installed", "onnxruntime not installed"]
