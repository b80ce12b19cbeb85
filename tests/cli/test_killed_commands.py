"""A command killed before or after any rename of a file: repeated, it is not refused, and writes what it would have."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import write_ants_and_bees
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
    "explain": "explain run p/ants -o why",
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
    write_ants_and_bees(folder / "p", 16)
    cli_in(folder)(*COMMANDS["finetune"].replace("new", "run").split())
    shutil.copytree(folder / "run", folder / "run2")
    return folder


def run_until(moment: int, number: signal.Signals, words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that gets a signal at a moment before or after a rename; its temporary files go to `temp`."""
    env = {**os.environ, "COLUMNS": "80", "KILL_AT": str(moment), "SIGNAL": str(int(number))}
    env["TMPDIR"] = str(folder.parent / "temp")
    python = ["-c", KILLED_BEFORE_OR_AFTER_A_RENAME, *words.split()]
    return fork_server().start(python, folder, env, torch=words.split()[0] in NEED_TORCH).communicate()


def file_names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.train
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_each_rename_completes_at_last(name: str, inputs: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(inputs, whole)
    cli_in(whole)(*COMMANDS[name].split())
    shutil.copytree(inputs, tmp_path / "killed")
    for moment in range(1, 60):
        ended = run_until(moment, signal.SIGKILL, COMMANDS[name], tmp_path / "killed")
        if ended.returncode != -signal.SIGKILL:
            break
    assert ended.returncode == 0, ended.stderr
    assert moment > 1, "it renames no file"
    assert file_names(tmp_path / "killed") == file_names(whole)


@pytest.mark.train
@pytest.mark.parametrize(
    "command",
    [*COMMANDS.values(), "augment p --size 8 --flip -o a.npz", "augment p --size 8 --flip -o a"],
)
def test_a_command_that_is_terminated_removes_its_temporary_files(command: str, inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs, tmp_path / "work")
    (tmp_path / "temp").mkdir()
    ended = run_until(1, signal.SIGTERM, command, tmp_path / "work")
    assert (ended.returncode, ended.stderr.splitlines()[-1].split(";")[0]) == (130, "mlimages: interrupted")
    assert [name for name in file_names(tmp_path) if ".part" in name] == []
    assert file_names(tmp_path / "temp") == []
