"""A snapshot is a whole file that no later one touches, though little of it is written anew."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mlimages.training.checkpoint_writer import Snapshots

CONSTANT = frozenset({"0.weight", "0.bias", "1.weight", "1.bias"})


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))


def learn(network: nn.Module) -> None:
    """Change all that is not constant, batch norm's counter among it."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name not in CONSTANT:
                tensor += 1


def plain_bytes(network: nn.Module, folder: Path) -> bytes:
    Snapshots(network, folder, constant=()).save(folder / "plain")
    return (folder / "plain").read_bytes()


BETTER = "1011100010"


def test_three_files_are_written_in_turn_and_each_is_what_a_plain_one_would_be(
    network: nn.Module, tmp_path: Path
) -> None:
    best, last, files = tmp_path / "run/best", tmp_path / "run/last", set()
    with Snapshots(network, tmp_path / "run", constant=CONSTANT) as snapshots:
        snapshots.save(best)
        for better in BETTER:
            learn(network)
            wanted, before = plain_bytes(network, tmp_path), best.read_bytes()
            snapshots.save(*([last, best] if better == "1" else [last]))
            assert last.read_bytes() == wanted
            assert best.read_bytes() == (wanted if better == "1" else before)
            files |= {best.stat().st_ino, last.stat().st_ino}
    assert len(files) == 3
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best", "last"]


def opened(path: Path) -> Callable[[], bytes]:
    file = path.open("rb")

    def read() -> bytes:
        with file:
            return file.read()

    return read


def mapped(path: Path) -> Callable[[], bytes]:
    return np.memmap(path, np.uint8, "r").tobytes


def linked(path: Path) -> Callable[[], bytes]:
    os.link(path, path.with_name("linked"))
    return path.with_name("linked").read_bytes


@pytest.mark.parametrize("held", [opened, mapped, linked])
def test_what_someone_holds_stays_as_it_is(
    network: nn.Module, tmp_path: Path, held: Callable[[Path], Callable[[], bytes]]
) -> None:
    path, snapshots = tmp_path / "last", Snapshots(network, tmp_path, constant=CONSTANT)
    snapshots.save(path)
    first, read = path.read_bytes(), held(path)
    for _ in range(4):
        learn(network)
        snapshots.save(path)
        assert path.read_bytes() == plain_bytes(network, tmp_path)
    assert read() == first


def test_a_file_that_someone_has_changed_is_not_written_on(network: nn.Module, tmp_path: Path) -> None:
    path, snapshots = tmp_path / "last", Snapshots(network, tmp_path, constant=CONSTANT)
    snapshots.save(path)
    path.write_bytes(b"another network")
    for _ in range(4):
        learn(network)
        snapshots.save(path)
        assert path.read_bytes() == plain_bytes(network, tmp_path)


def test_safetensors_itself_reads_a_network_of_every_kind_of_numbers(tmp_path: Path) -> None:
    network = torch.nn.Module()
    network.register_buffer("flag", torch.tensor(True))
    network.register_buffer("empty", torch.zeros(0, 3))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16):
        network.register_buffer(f"as_{str(dtype)[6:]}", torch.arange(-3, 4).to(dtype).reshape(7, 1))
    network.register_buffer("across", torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last))
    Snapshots(network, tmp_path, constant=()).save(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with (tmp_path / "a.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        sizes = {name: tensor.element_size() for name, tensor in network.state_dict().items()}
        assert file.tell() % 8 == 0
    assert all(told["data_offsets"][0] % sizes[name] == 0 for name, told in header.items()), (
        "each where its size allows"
    )
    for name in ("a", "b"):
        found = load_file(tmp_path / f"{name}.safetensors")
        assert set(found) == set(network.state_dict())
        for key, tensor in network.state_dict().items():
            assert found[key].dtype == tensor.dtype
            assert torch.equal(found[key], tensor)
