"""Files that are whole or not there."""

import errno
import fcntl
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from mlimages.core import (
    InputError,
    RunError,
    atomic_write,
    cache_dir,
    file_lock,
    list_written_files,
    read_settings,
    record_settings,
    write_output,
    write_text,
)


def test_a_write_that_is_interrupted_changes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("as it was")

    def write_half() -> None:
        with atomic_write(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "as it was")]


def test_an_error_about_another_file_keeps_the_name_of_that_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a.txt"):
        (tmp_path / "gone.txt").read_bytes()
    assert caught.value.filename == str(tmp_path / "gone.txt")


WRITERS: dict[str, Callable[[Path], object]] = {
    "safetensors": lambda path: safetensors.numpy.save_file({"a": np.zeros(10_000)}, path),
    "tofile": lambda path: np.zeros(10_000).tofile(path),
    "text": lambda path: path.write_text("a" * 80_000),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_writes_a_disk_that_takes_no_more_is_one_error_that_names_the_file(
    tmp_path: Path, writer: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("as it was")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=re.escape(str(path))) as caught, atomic_write(path) as part:
            WRITERS[writer](part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "as it was")]


@pytest.mark.parametrize("writer", [*WRITERS, "rename", "copy2"])
def test_a_new_file_may_be_read_by_whom_the_system_says_whatever_writes_it(tmp_path: Path, writer: str) -> None:
    source = tmp_path / "source"
    source.touch(mode=0o600)
    writers = {**WRITERS, "rename": source.rename, "copy2": lambda path: shutil.copy2(source, path)}
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a.txt") as part:
            writers[writer](part)
    finally:
        os.umask(before)
    expected = 0o600 if writer == "copy2" else 0o640  # a file that is moved to another file system stays private
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == expected


HOLD = """
import sys, time
from pathlib import Path
from mlimages.core import RunError
from mlimages.core import file_lock
with file_lock(Path(sys.argv[1]), RunError("in use")):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_released_when_its_process_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "new" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="in use"), file_lock(lock, RunError("in use"), timeout_s=0):
            pass
        holder.kill()
    with file_lock(lock, RunError("in use")):
        assert lock.exists()
    assert not lock.exists()


def test_a_file_system_that_cannot_lock_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with file_lock(tmp_path / ".lock", RunError("in use")), file_lock(tmp_path / ".lock", RunError("in use")):
        pass


def test_a_lock_file_in_which_a_user_wrote_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("mine")
    for _ in range(2):
        with file_lock(tmp_path / ".lock", RunError("in use")):
            pass
    assert (tmp_path / ".lock").read_text() == "mine"


def test_a_folder_that_another_process_removes_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, opened = tmp_path / "out" / ".gather", os.open
    removals = iter([True])

    def open_late(path: Path, *args: int) -> int:
        if next(removals, False):
            folder.rmdir()
        return opened(path, *args)

    monkeypatch.setattr(os, "open", open_late)
    with file_lock(folder / "one.lock", RunError("in use")):
        assert (folder / "one.lock").exists()


def test_a_cache_folder_that_cannot_be_created_is_named_with_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLIMAGES_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cache folder .*file/checks \(Not a directory\): set MLIMAGES_CACHE"):
        cache_dir("checks")


@pytest.mark.parametrize(
    "name",
    ["labels.txt", "my  labels.txt", "# labels.txt", "a\u2028b\x85c\x0c.txt", "a\nb.txt", "a\r\n\r.txt",
     "\na\\nb\\.txt", "a\\nb.txt", "\\a.txt", "a\n# b: c  d"],
)  # fmt: skip
@pytest.mark.parametrize("settings", ["--split 0.8,0.2  --seed 1", "--group a\\n\nb"])
def test_a_file_of_any_name_is_recorded_and_replaced_and_its_settings_are_read_back(
    name: str, settings: str, tmp_path: Path
) -> None:
    for content in ("old", "new"):
        with write_output(tmp_path / name) as part:
            part.write_text(content)
        record_settings(tmp_path / name, settings)
    assert list_written_files(tmp_path) == {name}
    assert read_settings(tmp_path / name) == settings


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="there is no sha256sum to check the records with")
@pytest.mark.parametrize("name", ["a.txt", "a\nb.txt", "a\\nb.txt", "a\n\\b.txt"])
def test_sha256sum_checks_the_records(name: str, tmp_path: Path) -> None:
    with write_output(tmp_path / name) as part:
        part.write_text("a")
    record_settings(tmp_path / name, "--split 0.8,0.2")
    words = ["sha256sum", "--check", "--status", ".mlimages-written"]
    subprocess.run(words, cwd=tmp_path, check=True)
    (tmp_path / name).write_text("b")
    assert subprocess.run(words, cwd=tmp_path, check=False).returncode == 1


def test_a_file_is_replaced_where_the_file_system_has_fixed_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    write_text(tmp_path / "a.txt", "old")
    (tmp_path / "a.txt").chmod(0o600)
    monkeypatch.setattr(os, "chmod", refuse)
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


WRITES_FOR_EVER = """
import sys
from pathlib import Path
from mlimages.core import atomic_write, temporary_folder_beside
with atomic_write(Path("report.html")) as part, temporary_folder_beside(Path("report.html")) as folder:
    (folder / "model.onnx").touch()
    print(part.name, folder.name, flush=True)
    sys.stdin.read()
"""


def test_the_next_write_removes_what_killed_processes_left_but_nothing_of_a_person_or_of_a_running_process(
    tmp_path: Path,
) -> None:
    theirs = {".report.html.0123456789abcdef.part", ".export.abcdefgh", ".notes.part"}
    for name in theirs:
        (tmp_path / name).write_text("a person's work")
    words = [sys.executable, "-c", WRITES_FOR_EVER]
    start = partial(subprocess.Popen, words, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with start() as killed:
        killed_names = killed.stdout.readline().split() if killed.stdout else []
        killed.kill()
    with start() as running:
        running_names = running.stdout.readline().split() if running.stdout else []
        assert {path.name for path in tmp_path.iterdir()} == {*theirs, *running_names}
        write_text(tmp_path / "other.txt", "")
        assert {path.name for path in tmp_path.iterdir()} == {*theirs, *running_names, "other.txt"}
        running.kill()
    assert len(killed_names) == 2
