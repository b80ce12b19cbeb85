"""Run folders that another user trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from mlimages.core import RunError
from mlimages.export import KnownScore
from mlimages.reports import RunFiles
from mlimages.training.known_output import load_known_output
from tests.unprivileged import run_without_override

READ_EACH_WITHOUT_PERMISSION = """
import json, sys
from functools import partial
from pathlib import Path
from mlimages import MlimagesError, export_run, load_run
from mlimages.networks import read_weights

def describe_error(read):
    try:
        return str(read())
    except MlimagesError as error:
        return f"{type(error).__name__}: {error}"

messages = {}
for name in sys.argv[1:]:
    file = Path("run", name)
    file.chmod(0)
    load = partial(load_run, "run", "last" if name == "last.safetensors" else "best")
    export = partial(export_run, "run", "out.onnx")
    readers = {"known.safetensors": [export], "last.safetensors": [load]}.get(name, [load, export])
    messages[name] = [describe_error(read) for read in readers]
    messages[f"weights {name}"] = [describe_error(partial(read_weights, file))] * name.endswith(".safetensors")
    file.chmod(0o644)
print(json.dumps(messages))
"""
FILES = ("config.json", "classes.txt", "result.json", "state.safetensors", "best.safetensors", "last.safetensors",
         "known.safetensors")  # fmt: skip


@pytest.fixture(scope="module")
def messages(finished_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """For each file of a run: the errors of those who may read all files but this one."""
    folder = tmp_path_factory.mktemp("another user's")
    shutil.copytree(finished_runs / "first", folder / "run")
    (folder / "run/known.safetensors").touch()
    done = run_without_override(folder, "-c", READ_EACH_WITHOUT_PERMISSION, *FILES)
    assert done.returncode == 0, done.stderr
    assert not (folder / "out.onnx").exists()
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_run_that_may_not_be_read_is_named_with_the_reason(
    name: str, messages: dict[str, list[str]]
) -> None:
    assert set(messages[name]) == {
        f"RunError: run/{name} cannot be read: Permission denied; ask its owner for permission to read it"
    }
    for message in messages[f"weights {name}"]:
        assert message == f"ModelError: run/{name} cannot be read as .safetensors weights: Permission denied"


def serialize(tensors: dict[str, torch.Tensor]) -> bytes:
    return bytes(save(tensors, metadata={"mlimages": "{}"}))


@pytest.mark.parametrize(
    "content",
    [b"", b"version https://git-lfs.github.com/spec/v1", b"\2\0\0\0\0\0\0\0{}", serialize({}),
     serialize({"means": torch.zeros(3)}), serialize({"means": torch.zeros(2, 3), "directions": torch.zeros(1, 3)}),
     serialize(KnownScore(2, 3, 1).state_dict())],
)  # fmt: skip
def test_damaged_statistics_of_the_output_known_are_an_error_of_the_run(content: bytes, tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    files.known.write_bytes(content)
    with pytest.raises(RunError, match=r"known.safetensors cannot be read \(.*\): restore it, or train again"):
        load_known_output(files)


def test_all_files_of_a_run_may_be_read_by_the_same_users(finished_runs: Path) -> None:
    files = RunFiles(finished_runs / "first")
    assert {file.stat().st_mode for file in files.folder.iterdir()} == {files.config.stat().st_mode}
