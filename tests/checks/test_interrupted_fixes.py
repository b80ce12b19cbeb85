"""`check --fix --yes` that is killed at any of its changes, and then repeated, ends as if it had not been killed."""

import os
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from mlimages.checks import check, find_interrupted_moves, move_files, plan_moves, record_moves, undo_interrupted_moves
from mlimages.labels import LabelFile
from tests.checks.test_validation import jpeg, scene
from tests.conftest import RunCli, fork_server
from tests.images.odd_images import saved

KILLED = """
import os, sys
from pathlib import Path
left = int(sys.argv.pop(1))
def count(function):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os._exit(9)
        return function(*args, **kwargs)
    return call
for name in ("rename", "replace", "symlink", "unlink", "link"):
    setattr(os, name, count(getattr(os, name)))
from mlimages.__main__ import main
main()
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
        lines = "".join(f"{path.relative_to(folder)} 0\n" for path in sorted((folder / start).iterdir()))
        (folder / f"{name}.tsv").write_text("path\tlabel\n" + lines.replace(" 0\n", "\t0\n"))
        labels = LabelFile(folder / f"{name}.tsv")
        images = list(labels)
        LabelFile(folder / f"{name}.txt", items=lambda images=images: images, class_names=("things",)).write(
            folder / f"{name}.txt"
        )
        (folder / f"{name}.tsv").unlink()
    if edited:
        (folder / "train.txt").write_text((folder / "train.txt").read_text() + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_dataset(tmp_path, edited=False)
    return tmp_path


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
    command = ("check", "train.txt", "val.txt", "--fix", "--yes")

    def run(folder: Path, kill_at: int) -> int:
        words = ["-c", KILLED, str(kill_at), *command]
        env = {**os.environ, "MLIMAGES_CACHE": str(tmp_path / "cache")}
        return fork_server().start(words, folder, env, torch=False).communicate().returncode

    make_dataset(tmp_path / "whole", edited=edited)
    assert run(tmp_path / "whole", 0) == 0
    expected = list_tree(tmp_path / "whole")
    assert {"train_quarantine/a/empty.jpg", "b/png.png", "b/link to png.png"} <= expected.keys()
    records = 0
    for kill_at in count(1):
        folder = tmp_path / str(kill_at)
        make_dataset(folder, edited=edited)
        if run(folder, kill_at) == 0:  # it makes fewer changes
            break
        records += (folder / ".train_moves.json").exists()
        assert run(folder, 0) == 0
        assert {name: data for name, data in list_tree(folder).items() if not name.endswith(".part")} == expected
    assert records > 12


@pytest.mark.parametrize("change", ["other file in the old place", "listed in the new place", "removed"])
def test_what_a_person_did_after_the_interruption_stays(folder: Path, change: str) -> None:
    report = check([folder / "train.txt", folder / "val.txt"])
    moves = plan_moves(report)
    with suppress(KeyboardInterrupt), record_moves(report, moves):
        move_files(moves)
        raise KeyboardInterrupt
    if change == "removed":
        (folder / "b/png.png").unlink()
    elif change == "listed in the new place":
        text = (folder / "val.txt").read_text()
        (folder / "val.txt").write_text(text.replace("b/png.jpg", "b/png.png"))
    else:
        (folder / "b/png.jpg").write_bytes(b"mine")
    mine = {path: path.read_bytes() for path in (*folder.glob("b/png.*"), folder / "val.txt")}
    (record,) = find_interrupted_moves(report.files)
    assert len(undo_interrupted_moves(record)) == len(moves) - 1
    assert {path: path.read_bytes() for path in (*folder.glob("b/png.*"), folder / "val.txt")} == mine
    assert find_interrupted_moves(report.files) == []


def test_a_check_without_yes_moves_nothing_back(folder: Path, invoke_cli: RunCli) -> None:
    report = check([folder / "train.txt", folder / "val.txt"])
    moves = plan_moves(report)
    with suppress(KeyboardInterrupt), record_moves(report, moves):
        move_files(moves[:1])
        raise KeyboardInterrupt
    done = invoke_cli("check", "train.txt", "val.txt")
    assert ".train_moves.json: --fix was interrupted: repeat the command with --fix --yes" in done.stderr
    assert moves[0].target.exists()
    done = invoke_cli("check", "train.txt", "val.txt", "--fix", "--yes")
    assert f"{len(moves)} files moved back" in done.stderr
    assert invoke_cli("check", "train.txt", "val.txt").stderr.count("interrupted") == 0
