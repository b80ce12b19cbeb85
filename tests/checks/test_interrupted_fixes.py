"""`check --fix --yes` that is killed at any of its changes, and then repeated, ends as if it had not been killed."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from mlimages.checks import (
    Move,
    check,
    find_interrupted_moves,
    move_files,
    plan_moves,
    record_moves,
    undo_interrupted_moves,
)
from mlimages.core import LabeledPath
from mlimages.labels import LabelFile
from tests.checks.test_validation import jpeg, scene
from tests.conftest import RunCli, fork_server
from tests.images.odd_images import saved

KILLED_AT_EACH_CHANGE = """
import os, shutil
from contextlib import suppress
from itertools import count
from mlimages.cli.main import main

def run(folder, kill_at):
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    changes = count(1)
    def killing(function):
        def call(*args, **kwargs):
            if next(changes) == kill_at:
                os._exit(9)
            return function(*args, **kwargs)
        return call
    for name in ("rename", "replace", "symlink", "unlink", "link"):
        setattr(os, name, killing(getattr(os, name)))
    os.chdir(folder)
    main()

shutil.copytree("new", "whole", symlinks=True)
os.chdir("whole")
with suppress(SystemExit):
    main()  # in this process, so that the others need not import what it imports
os.chdir("..")
for kill_at in count(1):
    folder = str(kill_at)
    shutil.copytree("new", folder, symlinks=True)
    if run(folder, kill_at) == 0:  # it makes fewer changes
        break
    with open("kills.txt", "a") as kills:
        print(folder, os.path.exists(folder + "/.train_moves.json"), run(folder, 0), file=kills)
"""


def make_dataset(folder: Path, *, edited: bool) -> None:
    """Two label files: sound images, broken ones, a PNG named .jpg, and links to a broken image and to a PNG."""
    files = {
        "a/0.jpg": jpeg(scene(0, width=60, height=40)), "a/1.jpg": jpeg(scene(1, width=60, height=40)),
        "a/png.jpg": saved(scene(2, width=60, height=40), "PNG"), "a/empty.jpg": b"", "b/page.jpg": b"<!doctype html>",
        "b/png.jpg": saved(scene(3, width=60, height=40), "PNG"),
    }  # fmt: skip
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "b/cut.jpg").write_bytes(files["a/1.jpg"][:600])
    (folder / "a/linked.jpg").symlink_to("../b/cut.jpg")
    (folder / "away.png").write_bytes(saved(scene(4, width=60, height=40), "PNG"))
    (folder / "b/link to png.jpg").symlink_to("../away.png")
    for name, start in (("train", "a"), ("val", "b")):
        images = [LabeledPath(path, 0) for path in sorted((folder / start).iterdir())]
        labels = folder / f"{name}.txt"
        LabelFile(labels, items=lambda images=images: images, class_names=("things",)).write(labels)
    if edited:
        (folder / "train.txt").write_text((folder / "train.txt").read_text() + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_dataset(tmp_path, edited=False)
    return tmp_path


def interrupt_fix(*sources: Path | str, count: int | None = None) -> list[Move]:
    """Move images, or the first `count` of them, as an interrupted `check --fix` does; return all planned moves."""
    report = check(sources)
    with suppress(KeyboardInterrupt), record_moves(report, moves := plan_moves(report)):
        move_files(moves[:count])
        raise KeyboardInterrupt
    return moves


def list_tree(folder: Path) -> dict[str, bytes | str]:
    return {
        path.relative_to(folder).as_posix(): os.path.realpath(path).removeprefix(str(folder))
        if path.is_symlink()
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or path.is_file()) and path.name != ".mlimages-written"
    }


@pytest.mark.parametrize("edited", [False, True])
def test_a_fix_that_is_killed_and_repeated_ends_as_if_it_had_not_been_killed(tmp_path: Path, edited: bool) -> None:
    make_dataset(tmp_path / "new", edited=edited)
    words = ["-c", KILLED_AT_EACH_CHANGE, "check", "train.txt", "val.txt", "--fix", "--yes"]
    env = {**os.environ, "MLIMAGES_CACHE": str(tmp_path / "cache")}
    ended = fork_server().start(words, tmp_path, env, torch=False).communicate()
    assert ended.returncode == 0, ended.stderr
    expected = list_tree(tmp_path / "whole")
    assert {"train_quarantine/a/empty.jpg", "b/png.png", "b/link to png.png"} <= expected.keys()
    kills = [line.split() for line in (tmp_path / "kills.txt").read_text().splitlines()]
    assert sum(has_record == "True" for _, has_record, _ in kills) > 12
    for folder, _, code in kills:
        assert code == "0"
        tree = list_tree(tmp_path / folder)
        assert {name: data for name, data in tree.items() if not name.endswith(".part")} == expected


@pytest.mark.parametrize("change", ["other file in the old place", "listed in the new place", "removed"])
def test_what_a_person_did_after_the_interruption_stays(folder: Path, change: str) -> None:
    moves = interrupt_fix(folder / "train.txt", folder / "val.txt")
    if change == "removed":
        (folder / "b/png.png").unlink()
    elif change == "listed in the new place":
        text = (folder / "val.txt").read_text()
        (folder / "val.txt").write_text(text.replace("b/png.jpg", "b/png.png"))
    else:
        (folder / "b/png.jpg").write_bytes(b"mine")
    mine = {path: path.read_bytes() for path in (*folder.glob("b/png.*"), folder / "val.txt")}
    (record,) = find_interrupted_moves([folder / "train.txt"])
    undo_interrupted_moves(record)
    undone = [move for move in moves if os.path.lexists(move.source) and not os.path.lexists(move.target)]
    assert len(undone) == len(moves) - 1
    assert {path: path.read_bytes() for path in (*folder.glob("b/png.*"), folder / "val.txt")} == mine
    assert find_interrupted_moves([folder / "train.txt"]) == []


@pytest.mark.parametrize("words", [["--fix", "--yes"], ["--fix"], []], ids=" ".join)
@pytest.mark.parametrize("num_interrupted", [0, 1])
def test_notes_about_label_files_are_printed_once_also_after_an_interruption(
    folder: Path, invoke_cli: RunCli, words: list[str], num_interrupted: int
) -> None:
    (folder / "a.csv").write_text("file,class\na/0.jpg,things\na/1.jpg,things\na/empty.jpg,things\n")
    for _ in range(num_interrupted):
        interrupt_fix(folder / "a.csv")
    lines = invoke_cli("check", "a.csv", *words).stderr.splitlines()
    assert sum("--fix was interrupted" in line for line in lines) == num_interrupted
    num_found = 2 if num_interrupted and "--yes" not in words else 3
    assert [line for line in lines if line.startswith("a.csv: column")] == [
        f"a.csv: column file as image, class as label; {num_found} of 3 images exist; 1 class: things"
    ]


@pytest.mark.parametrize("source", ["a.csv", "../here/a.csv", "data", "."])
def test_sources_that_cannot_be_read_after_an_interruption_are_checked_again(
    tmp_path: Path, invoke_cli: RunCli, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    here = tmp_path / "here"
    for name in ("data/ants/0.jpg", "data/ants/1.jpg", "data/bees/2.jpg"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).touch()
    monkeypatch.chdir(here)
    num_ok = 2 * source.endswith(".csv")
    if num_ok:
        rows = ["data/ants/0.jpg,ant", "data/ants/1.jpg,ant", "data/bees/2.jpg,bee", "../3.jpg,ant", "../4.jpg,bee"]
        (here / "a.csv").write_text("\n".join(["path,label", *rows, ""]))
        for n in (3, 4):
            (tmp_path / f"{n}.jpg").write_bytes(jpeg(scene(n, width=60, height=40)))
    moves = interrupt_fix(source)
    assert len(moves) == 3
    again = invoke_cli("check", source, check=False)
    assert "--fix was interrupted: repeat the command with --fix --yes\n" in again.stderr
    done = invoke_cli("check", source, "--fix", "--yes")
    assert "--fix was interrupted: its moves have been undone\n" in done.stderr
    assert f"{3 + num_ok} images checked, {num_ok} ok" in done.stdout
    assert all(move.target.exists() and not move.source.exists() for move in moves)
    assert "interrupted" not in invoke_cli("check", source, check=False).stderr


def test_a_file_of_a_person_with_the_name_of_the_record_is_kept(folder: Path, invoke_cli: RunCli) -> None:
    (folder / ".train_moves.json").write_text("mine")
    done = invoke_cli("check", "train.txt", "val.txt", "--fix", "--yes", check=False)
    assert (done.returncode, "train_moves.json exists and was not written by mlimages" in done.stderr) == (1, True)
    assert "interrupted" not in done.stderr
    assert (folder / ".train_moves.json").read_text() == "mine"
    assert not (folder / "train_quarantine").exists()
    invoke_cli("check", "train.txt", "val.txt", "--fix", "--yes", "--force")  # as the message advises
    assert not (folder / ".train_moves.json").exists()
    assert (folder / "train_quarantine").exists()


def test_a_check_without_yes_moves_nothing_back(folder: Path, invoke_cli: RunCli) -> None:
    moves = interrupt_fix(folder / "train.txt", folder / "val.txt", count=1)
    done = invoke_cli("check", "train.txt", "val.txt")
    assert ".train_moves.json: --fix was interrupted: repeat the command with --fix --yes" in done.stderr
    assert moves[0].target.exists()
    done = invoke_cli("check", "train.txt", "val.txt", "--fix", "--yes")
    assert ".train_moves.json: --fix was interrupted: its moves have been undone\n" in done.stderr
    assert invoke_cli("check", "train.txt", "val.txt").stderr.count("interrupted") == 0
