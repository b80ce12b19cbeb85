"""What must stay true of the house, whoever builds on it."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mlimages
from mlimages.cli import main as cli

PACKAGE = Path(mlimages.__file__).parent
ROOT = PACKAGE.parent
HEAVY = ["PIL", "aiohttp", "numpy", "onnxruntime", "timm", "torch", "torchvision"]
TORCH = {"torch", "torchvision", "timm"}
TOOLS = {"errors", "records", "files", "progress", "wording", "intervals", "scores", "pools", "cluster"}
MAY_IMPORT = {
    "errors": {"records"},
    "records": {"errors"},
    "files": {"errors"},
    "progress": set(),
    "wording": set(),
    "pools": set(),
    "cluster": {"errors", "pools"},
    "intervals": set(),
    "scores": {"intervals"},
    "labels": TOOLS,
    "images": TOOLS,
    "training": TOOLS | {"labels", "images"},
    "validation": TOOLS | {"labels", "images"},
    "augmentation": TOOLS | {"labels", "images", "training", "validation"},
    "report": TOOLS | {"labels", "images", "training", "validation"},
    "gathering": TOOLS | {"images"},
    "onnx_metadata": TOOLS,
    "bundle": TOOLS | {"onnx_metadata"},
    "calibration": set(),
    "runtime": TOOLS | {"bundle"},
    "picture_files": TOOLS | {"labels"},
    "matching": TOOLS | {"bundle", "labels"},
    "predictor": TOOLS | {"images", "bundle", "runtime"},
    "evaluation": TOOLS | {"bundle", "predictor", "labels", "matching", "calibration"},
    "evaluation_report": TOOLS | {"images", "evaluation"},
    "server": TOOLS | {"images", "bundle", "predictor"},
    "insight": TOOLS | {"labels", "images", "training", "validation", "report", "bundle", "onnx_metadata", "runtime"},
    "learning": TOOLS
    | {
        "labels",
        "images",
        "training",
        "validation",
        "report",
        "bundle",
        "matching",
        "runtime",
        "calibration",
        "insight",
    },
    "demo": TOOLS | {"bundle", "labels", "images", "training", "validation", "gathering", "learning", "predictor"},
    "commands": TOOLS,
    "cli": {"errors", "commands"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(module: Path) -> str:
    first = module.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(module: Path, *, lazy: bool) -> Iterator[str]:
    """Absolute names imported when the module is (not under TYPE_CHECKING); with `lazy`, inside functions too."""
    tree = ast.parse(module.read_text())
    nodes = ast.walk(tree) if lazy else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "mlimages":
            yield from (f"mlimages.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def command_lines() -> list[list[str]]:
    """Each command's words, sub-commands included."""

    def walk(command: object, words: list[str]) -> Iterator[list[str]]:
        children = getattr(command, "commands", {})
        if words and not children:
            yield words
        for name, child in sorted(children.items()):
            yield from walk(child, [*words, name])

    import typer.main

    return list(walk(typer.main.get_command(cli.app), []))


def test_the_command_line_starts_without_heavy_imports() -> None:
    code = f"import sys, mlimages.cli; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_prediction_serving_and_curation_import_where_torch_is_not_installed() -> None:
    rooms = "predictor, server, images, labels, training, validation, gathering"
    names = ", ".join(f"mlimages.{room}" for room in rooms.split(", "))
    code = f"import sys; sys.modules.update(dict.fromkeys({sorted(TORCH)!r})); import {names}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(module: Path) -> None:
    room = room_of(module)
    if room in ("__init__", "__main__"):
        return
    rooms = {name.split(".")[1] for name in imported(module, lazy=False) if name.startswith("mlimages.")}
    rooms -= {room, "__version__"}
    assert rooms <= MAY_IMPORT[room], f"{room} may not import {sorted(rooms - MAY_IMPORT[room])}"


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_torch_is_imported_in_learning_alone(module: Path) -> None:
    if room_of(module) == "learning":
        return
    assert not TORCH & {name.split(".")[0] for name in imported(module, lazy=True)}


def test_nothing_on_disk_can_run_code() -> None:
    source = {path: path.read_text() for path in modules()}
    assert not [
        path
        for path, text in source.items()
        if re.search(r"^\s*(import|from) (pickle|marshal|shelve|dill)\b", text, re.MULTILINE)
    ]
    for path, text in source.items():
        for call in re.findall(r"torch\.load\(.*?\)", text, re.DOTALL):
            assert "weights_only=True" in call, f"{path}: {call}"
        for call in re.findall(r"np\.load\(.*?\)", text, re.DOTALL):
            assert "allow_pickle=False" in call, f"{path}: {call}"


def test_the_public_names_are_sorted_complete_and_there() -> None:
    assert mlimages.__all__ == sorted(mlimages.__all__)
    assert set(mlimages.__all__) == set(mlimages._MODULE_OF)
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    twins = {
        (alias.name, node.module.removeprefix("mlimages."))
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert twins == set(mlimages._MODULE_OF.items())
    for name in mlimages.__all__:
        assert getattr(mlimages, name).__name__ == name


def test_no_public_name_hides_a_module() -> None:
    assert not set(mlimages.__all__) & {path.stem for path in PACKAGE.iterdir()}


def test_the_list_of_commands_fits_one_screen() -> None:
    text = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "80"}).stdout
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.split("\n", 3)[3], "a command's first line is too long for the list"


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_every_command_has_help_and_is_in_the_readme(words: list[str]) -> None:
    done = CliRunner().invoke(cli.app, [*words, "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) > 4
    assert "mlimages " + " ".join(words) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_every_option_says_what_it_does(words: list[str]) -> None:
    import typer.main

    command: object = typer.main.get_command(cli.app)
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]
    silent = [param.name for param in command.params if not getattr(param, "help", None)]  # type: ignore[attr-defined]
    assert not [name for name in silent if name != "help"]


def test_every_module_of_the_package_imports() -> None:
    for path in modules():
        if path.name != "__main__.py":
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
