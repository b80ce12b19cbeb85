"""No public function replaces a file that a person made; `overwrite=True` does, and a file of ours is replaced."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlimages.checks import check, write_results
from mlimages.core import ImageProperty, InputError, Proportion
from mlimages.dataset import MeanImage, TrainingData, augment
from mlimages.export import export_network, quantize
from mlimages.labels import LabelFile, label_dir_auto, write_class_names, write_label_output
from mlimages.reports import (
    LayerScore,
    ModelScore,
    ModelScores,
    ProbeResult,
    SheetRow,
    SuspectLabel,
    Tile,
    draw_contact_sheet,
    draw_run,
    read_run,
    save_models_plot,
    save_probe_plot,
    write_check_report,
    write_croissant,
    write_sheet,
    write_suspects,
)
from mlimages.training import FeatureTable, draw_layer, export_run
from tests.inference.test_bundle import bundle_at, tiny_model
from tests.run_folders import make_run

MINE = b"a person's work"
SHARE = Proportion(0.9, 0.8, 1.0)
PROBE = ProbeResult("alexnet", 10, 2, 0, (LayerScore("fc7", 4, SHARE, True),), "fc7", (), None)
MEAN = MeanImage(np.zeros((3, 8, 8), np.float32), (0.0,) * 3, (1.0,) * 3, 1, ImageProperty(8))
FEATURES = FeatureTable(np.ones((1, 2), np.float32), np.zeros(1, np.int64), ("a.png",), ("a",), "alexnet", "fc7")
ROWS = [SheetRow("cats", 1, (Tile("0.png", np.zeros((8, 8, 3), np.uint8)),))]
SIZE = ImageProperty(8)


@dataclass(frozen=True)
class Writer:
    """A public function: the file that it writes (one of them), and a call."""

    file: str
    call: Callable[[Path, bool], Any]
    ends_early: bool = False
    """Costly, and tried elsewhere: here only that it refuses before it reads anything."""


NONE = Path("none")
WRITERS = {
    "MeanImage.write": Writer("m.npy", lambda f, force: MEAN.write(f / "m.png", overwrite=force)),
    "TrainingData.make_mean_image": Writer(
        "m.json", lambda f, force: TrainingData(f / "labels.txt", SIZE).make_mean_image(f / "m.png", overwrite=force)
    ),
    "FeatureTable.save": Writer("f.npz", lambda f, force: FEATURES.save(f / "f.npz", overwrite=force)),
    "LabelFile.write": Writer(
        "l.txt", lambda f, force: LabelFile(f / "labels.txt").write(f / "l.txt", overwrite=force)
    ),
    "OnnxBundle.write": Writer(
        "b.onnx", lambda f, force: bundle_at(f / "b.onnx").write(tiny_model(f / "net.onnx"), overwrite=force)
    ),
    "write_label_output": Writer(
        "o_class_def.txt", lambda f, force: write_label_output(f / "o.txt", [], ["a"], overwrite=force)
    ),
    "write_class_names": Writer("c.txt", lambda f, force: write_class_names(f / "c.txt", ["a"], overwrite=force)),
    "write_results": Writer(
        "labels_checked.txt", lambda f, force: write_results(check(f / "labels.txt"), overwrite=force)
    ),
    "write_check_report": Writer(
        "r.html", lambda f, force: write_check_report(check(f / "labels.txt"), f / "r.html", overwrite=force)
    ),
    "write_suspects": Writer(
        "s.tsv", lambda f, force: write_suspects([SuspectLabel(f / "a", "a", "b", 0.9)], f / "s.tsv", overwrite=force)
    ),
    "write_sheet": Writer(
        "s.png", lambda f, force: write_sheet(ROWS, f / "s.png", title="", note="", overwrite=force)
    ),
    "draw_contact_sheet": Writer(
        "s.html", lambda f, force: draw_contact_sheet(f / "p", f / "s.html", image_property=SIZE, overwrite=force)
    ),
    "save_probe_plot": Writer("p.png", lambda f, force: save_probe_plot(PROBE, f / "p.png", overwrite=force)),
    "save_models_plot": Writer(
        "n.png",
        lambda f, force: save_models_plot(ModelScores((ModelScore(PROBE, 1, 2),), {}), f / "n.png", overwrite=force),
    ),
    "write_croissant": Writer(
        "run/c.json", lambda f, force: write_croissant(read_run(f / "run"), f / "run/c.json", overwrite=force)
    ),
    "draw_run": Writer("run/curves.png", lambda f, force: draw_run(f / "run", overwrite=force)),
    "augment": Writer(
        "a.npz", lambda f, force: augment(f / "labels.txt", f / "a.npz", image_property=SIZE, overwrite=force)
    ),
    "draw_layer": Writer(
        "d.png", lambda f, force: draw_layer(NONE, NONE, layer="x", out=f / "d.png", overwrite=force), ends_early=True
    ),
    "export_run": Writer(
        "e.onnx", lambda f, force: export_run(NONE, f / "e.onnx", overwrite=force), ends_early=True
    ),
    "export_network": Writer(
        "e.onnx.data",
        lambda f, force: export_network(None, f / "e.onnx", validation=NONE, overwrite=force),  # type: ignore[arg-type]
        ends_early=True,
    ),
    "quantize": Writer(
        "q.onnx", lambda f, force: quantize(NONE, NONE, f / "q.onnx", overwrite=force), ends_early=True
    ),
}  # fmt: skip

TRIED_ELSEWHERE = {
    "fine_tune",  # tests/training/test_edited_files.py
    "record_moves",  # tests/checks/test_interrupted_fixes.py; it removes its file at the end
}
NEVER_REPLACED_WHEN_OURS = {"augment"}  # other settings made it


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, color in (("cats", "red"), ("dogs", "blue")):
        (tmp_path / "p" / name).mkdir(parents=True)
        Image.new("RGB", (32, 24), color).save(tmp_path / "p" / name / "0.png")
    label_dir_auto(tmp_path / "p").labels.write(tmp_path / "labels.txt")
    return tmp_path


def made_way_for(name: str, folder: Path) -> tuple[Path, Callable[[bool], Any]]:
    """The path of the file that a writer writes, which does not exist (a run folder around it does), and the writer."""
    writer = WRITERS[name]
    if writer.file.startswith("run"):
        make_run(folder / "run", names=("cats", "dogs"), per_class=1)
    (folder / writer.file).unlink(missing_ok=True)
    return folder / writer.file, partial(writer.call, folder)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_a_person_made_stays(name: str, folder: Path) -> None:
    file, write = made_way_for(name, folder)
    file.write_bytes(MINE)
    with pytest.raises(InputError, match=r"exists"):
        write(False)
    assert file.read_bytes() == MINE
    if WRITERS[name].ends_early:
        return
    write(True)
    assert file.read_bytes() != MINE
    if name not in NEVER_REPLACED_WHEN_OURS:
        write(False)
    file.write_bytes(MINE)
    with pytest.raises(InputError, match=r"exists"):
        write(False)


@pytest.mark.parametrize("name", WRITERS)
def test_a_link_to_a_file_that_is_gone_stays_too(name: str, folder: Path) -> None:
    file, write = made_way_for(name, folder)
    file.symlink_to("gone")
    with pytest.raises(InputError, match=r"exists"):
        write(False)
    assert str(file.readlink()) == "gone"
    assert not (file.parent / "gone").exists()


@pytest.mark.parametrize("name", [name for name, writer in WRITERS.items() if not writer.ends_early])
def test_a_file_that_is_replaced_keeps_its_permissions_unless_it_is_read_only(name: str, folder: Path) -> None:
    file, write = made_way_for(name, folder)
    write(False)
    overwrite = name in NEVER_REPLACED_WHEN_OURS
    file.chmod(0o640)
    write(overwrite)
    assert file.stat().st_mode & 0o777 == 0o640
    file.chmod(0o440)
    with pytest.raises(InputError, match=r"exists|is read-only: make it writable"):
        write(False)
    write(True)
    assert file.stat().st_mode & 0o777 == 0o440


@pytest.mark.parametrize("name", [name for name, writer in WRITERS.items() if not writer.ends_early])
def test_a_link_by_which_a_person_replaced_a_file_of_ours_stays(name: str, folder: Path) -> None:
    file, write = made_way_for(name, folder)
    write(False)
    file.rename(folder / "moved")
    file.symlink_to(folder / "moved")
    before = (folder / "moved").read_bytes()
    with pytest.raises(InputError, match=r"exists"):
        write(False)
    assert file.is_symlink()
    assert (folder / "moved").read_bytes() == before


def public_callables() -> dict[str, Callable[..., Any]]:
    """Functions, and methods of classes, that a package of mlimages exports."""
    found: dict[str, Callable[..., Any]] = {}
    for package in ("images", "labels", "checks", "dataset", "reports", "inference", "networks", "export", "training"):
        module = importlib.import_module(f"mlimages.{package}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value):
                methods = inspect.getmembers(value, inspect.isfunction)
                found |= {f"{name}.{each}": method for each, method in methods if not each.startswith("_")}
            elif inspect.isfunction(value):
                found[name] = value
    return found


def test_the_table_holds_every_public_function_that_writes_a_file() -> None:
    parameters = {name: set(inspect.signature(each).parameters) for name, each in public_callables().items()}
    assert {name for name, names in parameters.items() if "overwrite" in names} == {*WRITERS, *TRIED_ELSEWHERE}
    unguarded = {name for name, names in parameters.items() if "out" in names and "overwrite" not in names}
    assert unguarded == set()
