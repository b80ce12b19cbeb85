"""What must stay true of the packages, whoever builds on them."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import mlimages
from mlimages.cli import main as cli
from mlimages.core import make_install_command
from tests.commands import COMMANDS

PACKAGE = Path(mlimages.__file__).parent
ROOT = PACKAGE.parent
HEAVY = ["PIL", "aiohttp", "numpy", "onnxruntime", "timm", "torch", "torchvision"]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def package_of(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def third_party(module: Path) -> set[str]:
    """The top-level names of what a module imports, lazily too, beyond the standard library."""
    names = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    found = {alias.name for node in names if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in names if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in found} - sys.stdlib_module_names


def test_the_command_line_starts_without_heavy_imports() -> None:
    code = f"import sys, mlimages.cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_but_networks_training_and_export_import_where_torch_is_not_installed() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"networks", "training", "export", "demo"}
    code = (
        "import importlib, pkgutil, sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'timm']))\n"
        f"for name in {sorted(packages)!r}:\n"
        "    package = importlib.import_module(f'mlimages.{name}')\n"
        "    for found in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(found.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stub", sorted(PACKAGE.rglob("*.pyi")), ids=lambda path: path.parent.name)
def test_a_package_exports_names_of_its_own_modules_alone_and_none_of_a_module(stub: Path) -> None:
    package, module_names = ".".join(stub.parent.relative_to(ROOT).parts), {path.stem for path in stub.parent.iterdir()}
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 1
            for alias in node.names:
                assert alias.name == alias.asname
                assert alias.name not in module_names
                assert getattr(importlib.import_module(package), alias.name) is getattr(
                    importlib.import_module(f"{package}.{node.module}"), alias.name
                )


def test_nothing_on_disk_can_run_code() -> None:
    for path in modules():
        text = path.read_text()
        assert not re.search(r"^\s*(import|from) (pickle|marshal|shelve|dill)\b", text, re.MULTILINE), path
        for call in re.findall(r"torch\.load\(.*?\)", text, re.DOTALL):
            assert "weights_only=True" in call, f"{path}: {call}"
        for call in re.findall(r"np\.load\(.*?\)", text, re.DOTALL):
            assert "allow_pickle=False" in call, f"{path}: {call}"


BINARY = {".png", ".pyc", ".xz"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMELESS_INSTALL = re.compile(r"""pip install\b[^\n`]*?[\s"']mlimages(?!-)(?:\[[^\]\n]*\])?+(?!>=1)""")
"""An install line by which pip may take PyPI's mlimages 0.5, another program."""


def texts() -> Iterator[Path]:
    """What a person reads or copies from: the documentation, the examples, the scripts and the package."""
    yield from ROOT.glob("*.md")
    for folder in ("docs", "examples", "scripts", "mlimages"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix not in BINARY)


@pytest.mark.parametrize(
    ("line", "is_refused"),
    [
        ("$ pip install mlimages", True),
        ('$ pip install "mlimages[train]"', True),
        ("python -m pip install -U mlimages[ray]   # a cluster", True),
        ('pip install torch "mlimages[train]"', True),
        ('pip install "mlimages>=0.5"', True),
        (make_install_command("train"), False),
        ('pip install ".[train]"', False),
        ('pip install "mlimages-1.0.0-py3-none-any.whl[train]"', False),
        ("pip install s3fs; `mlimages check` reads there", False),
    ],
)
def test_an_install_line_that_may_bring_another_program_is_recognized(line: str, is_refused: bool) -> None:
    assert bool(NAMELESS_INSTALL.search(line)) == is_refused


def test_no_install_line_may_bring_pypis_other_mlimages() -> None:
    found = {str(path.relative_to(ROOT)): NAMELESS_INSTALL.findall(path.read_text()) for path in texts()}
    assert len(found) > 100
    assert not {path: lines for path, lines in found.items() if lines}
    assert "<" not in PROJECT["requires-python"], "with an upper bound, a later Python's pip goes back to 0.5"


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_install_hints_have_one_source_and_name_extras_that_exist(module: Path) -> None:
    nodes = list(ast.walk(ast.parse(module.read_text())))
    strings = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    if module.name != "errors.py":
        assert not [text for text in strings if "pip install" in text or "mlimages[" in text]
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    hints = [call.args[-1] for call in calls if call.func.id in ("make_install_command", "MissingExtraError")]  # type: ignore[attr-defined]
    extras = {hint.value for hint in hints if isinstance(hint, ast.Constant)}
    assert extras <= set(PROJECT["optional-dependencies"])


def test_the_extra_train_holds_all_that_training_and_the_demo_import() -> None:
    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[>=]", requirement)[0] for requirement in requirements}

    extras = PROJECT["optional-dependencies"]
    installed = names([*PROJECT["dependencies"], *extras["train"], *extras["report"]])
    distribution = {"PIL": "pillow", "sklearn": "scikit-learn", "huggingface_hub": "huggingface-hub"}
    for module in modules():
        if package_of(module) in ("networks", "training", "export", "demo", "reports"):
            assert {distribution.get(name, name) for name in third_party(module)} <= installed | {"mlimages"}, module


def test_no_module_is_longer_than_350_lines() -> None:
    assert [path for path in modules() if len(path.read_text().splitlines()) > 350] == []


def test_the_version_is_written_once_and_the_documents_follow() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert f"mlimages-{mlimages.__version__}-py3-none-any.whl" in (ROOT / "README.md").read_text()
    newest = re.search(r"^## \[(.+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == mlimages.__version__


def test_the_list_of_commands_fits_one_screen() -> None:
    text = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "80"}).stdout
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.split("\n", 3)[3], "a command's first line is too long for the list"


@pytest.mark.parametrize(("words", "command"), [pytest.param(*each, id=" ".join(each[0])) for each in COMMANDS])
def test_every_command_and_its_options_have_help_and_it_is_in_the_readme(words: list[str], command: Any) -> None:
    done = CliRunner().invoke(cli.app, [*words, "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) > 4
    assert "mlimages " + " ".join(words) in (ROOT / "README.md").read_text()
    assert not [param.name for param in command.params if param.name != "help" and not param.help]


IMPORT = re.compile(r"^ *from (mlimages[\w.]*) import (?:\(([^)]*)\)|([\w, ]+))", re.MULTILINE)


def test_what_scripts_examples_and_documents_import_is_there() -> None:
    files = [path for folder in ("scripts", "examples", "docs") for path in (ROOT / folder).rglob("*")]
    missing = [
        f"{path.relative_to(ROOT)}: {module}.{name}"
        for path in [ROOT / "README.md", *files]
        if path.suffix in (".py", ".md", ".ipynb")
        for module, listed, inline in IMPORT.findall(path.read_text())
        for name in filter(None, map(str.strip, (listed or inline).split(",")))
        if not _is_importable(module, name.split(" as ")[0])
    ]
    assert missing == []


def _is_importable(module: str, name: str) -> bool:
    with suppress(ImportError):
        return hasattr(importlib.import_module(module), name) or bool(importlib.import_module(f"{module}.{name}"))
    return False


_STATE = """
import asyncio, importlib, logging, multiprocessing, signal, sys, threading
import matplotlib, numpy, PIL.Image, PIL.ImageFile, torch
def state():
    return (list(sys.path), sys.excepthook, sys.unraisablehook, threading.excepthook,
            [signal.getsignal(each) for each in signal.valid_signals()], logging.root.level, logging.root.handlers[:],
            str(numpy.random.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads(),
            matplotlib.get_backend(), dict(matplotlib.rcParams), PIL.Image.MAX_IMAGE_PIXELS,
            PIL.ImageFile.LOAD_TRUNCATED_IMAGES, multiprocessing.get_start_method(allow_none=True),
            asyncio.get_event_loop_policy(), threading.enumerate())
before = state()
"""


def test_every_module_imports_without_side_effects_and_no_library_stores_an_identifier(tmp_path: Path) -> None:
    names = (path.relative_to(ROOT).with_suffix("").parts for path in modules() if path.name != "__main__.py")
    code = _STATE + "for name in sys.argv[1:]:\n    if name != 'mlimages.core.cluster': importlib.import_module(name)\n"
    code += "from mlimages.export import import_openvino; import_openvino()\n"
    code += "changed = [pair for pair in zip(before, state()) if pair[0] != pair[1]]; assert not changed, changed\n"
    code += "import mlimages.core.cluster\n"  # Ray changes sys.path and sys.excepthook
    code += "import os; assert not {'ORT_DISABLE_TELEMETRY', 'RAY_USAGE_STATS_ENABLED'} & os.environ.keys()"
    telemetry = ("CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "RAY_USAGE_STATS_ENABLED")
    env = {name: value for name, value in os.environ.items() if name not in telemetry}
    env |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, *(".".join(parts).removesuffix(".__init__") for parts in names)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "matplotlib" not in path.parts] == []


def test_commands_in_messages_are_quoted() -> None:
    """A path with a space would be two arguments: `command` quotes it."""
    unquoted = re.compile(
        r"mlimages [a-z]+ [^`\n]*(?<!\{)\{(?!\{|shlex\.)[a-z_.]*(?:path|folder|run|root|table|name|stem)\b"
    )
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in modules()
        for line in path.read_text().splitlines()
        if unquoted.search(line)
        and "demo" not in path.parts
        and path.name != "formats.py"  # its `_CONVERSIONS` are filled quoted
    ]
    assert found == []


def test_only_a_missing_module_is_taken_for_one_that_is_not_installed() -> None:
    """A broken installation, or Ctrl-C while a native library is loaded, raises another ImportError."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name) and node.type.id == "ImportError"
    ]
    assert found == []
