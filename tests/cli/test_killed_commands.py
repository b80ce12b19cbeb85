"""A command killed before or after any rename of a file: repeated, it is not refused, and writes what it would have."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import NEED_TORCH, cli_in, fork_server

KILLED_BEFORE_OR_AFTER_A_RENAME = """
import os, signal
moments = iter(range(1, 1000))

def may_kill():
    if next(moments) == int(os.environ["KILL_AT"]):
        os.kill(os.getpid(), int(os.environ["SIGNAL"]))

def killing(rename):
    def call(*args, **kwargs):
        may_kill()
        rename(*args, **kwargs)
        may_kill()
    return call

os.replace, os.rename = killing(os.replace), killing(os.rename)
from mlimages.cli.main import main
main()
"""

COMMANDS = {
    "label": "label p -o l.txt --split 0.5,0.5",
    "label, folders": "label p -o l.txt --as-folders classes --copy",
    "check": "check p --report c.html",
    "mean": "mean p --size 8 --per-class -o m.png",
    "show": "show p --size 8 -o s.html",
    "evaluate": "evaluate run p --report e.html",
    "explain": "explain run p/cats -o why",
    "features": "features p --model lenet5 --weights none --layer conv1 -o f.npz",
    "probe": "probe p --model lenet5 --weights none -o p.png --report p.html",
    "compare": "compare run run2 --report r.html",
    "export": "export run -o x.onnx --croissant c.json",
    "finetune": "finetune p --model lenet5 --weights none --epochs 1 -o new",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders `p`, and the run folder `run`."""
    folder = tmp_path_factory.mktemp("inputs")
    pixels = np.random.default_rng(0).integers(0, 255, (16, 24, 32, 3), dtype=np.uint8)
    for number, each in enumerate(pixels):
        path = folder / "p" / ("cats", "dogs")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each).save(path)
    cli_in(folder)(*COMMANDS["finetune"].replace("new", "run").split())
    shutil.copytree(folder / "run", folder / "run2")
    return folder


def file_names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.train
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_each_rename_completes_at_last(name: str, inputs: Path, tmp_path: Path) -> None:
    words = COMMANDS[name].split()
    whole = tmp_path / "whole"
    shutil.copytree(inputs, whole)
    cli_in(whole)(*words)
    shutil.copytree(inputs, tmp_path / "killed")
    code, number = -signal.SIGKILL, 0
    while code == -signal.SIGKILL:
        number += 1
        assert number < 60
        env = {**os.environ, "COLUMNS": "80", "KILL_AT": str(number), "SIGNAL": "9"}
        words_of_python = ["-c", KILLED_BEFORE_OR_AFTER_A_RENAME, *words]
        command = fork_server().start(words_of_python, tmp_path / "killed", env, torch=words[0] in NEED_TORCH)
        ended = command.communicate()
        code = ended.returncode
    assert code == 0, ended.stderr
    assert number > 1, "it renames no file"
    assert file_names(tmp_path / "killed") == file_names(whole)


@pytest.mark.train
@pytest.mark.parametrize(
    "command",
    [*COMMANDS.values(), "augment p --size 8 --flip -o a.npz", "augment p --size 8 --flip -o a"],
)
def test_a_command_that_is_terminated_removes_its_temporary_files(command: str, inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs, tmp_path / "work")
    (tmp_path / "temp").mkdir()
    words = command.split()
    env = {**os.environ, "KILL_AT": "1", "SIGNAL": str(int(signal.SIGTERM)), "TMPDIR": str(tmp_path / "temp")}
    words_of_python = ["-c", KILLED_BEFORE_OR_AFTER_A_RENAME, *words]
    started = fork_server().start(words_of_python, tmp_path / "work", env, torch=words[0] in NEED_TORCH)
    ended = started.communicate()
    assert (ended.returncode, ended.stderr.splitlines()[-1].split(";")[0]) == (130, "mlimages: interrupted")
    assert [name for name in file_names(tmp_path) if ".part" in name] == []
    assert file_names(tmp_path / "temp") == []
