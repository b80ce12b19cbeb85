"""A run folder over its life: stopped anywhere, resumed, moved, extended; its weights depend on the epochs alone.

`MLIMAGES_STATEFUL_EXAMPLES` (3) makes it try more sequences.
"""

import csv
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from safetensors.torch import save_file

from mlimages.core import NoProgress, RunError
from mlimages.networks import build_model
from mlimages.reports import RunFiles
from mlimages.training import FineTuneConfig, fine_tune, load_run, read_config
from mlimages.training.checkpoints import load_state
from tests.run_folders import StopsAfter
from tests.training.conftest import write_colours
from tests.training.test_run import Killed, kill_at

MAX_EPOCHS = 5
OTHER = {"lr": 0.5, "batch_size": 7, "seed": 9, "augment": "flip", "freeze": "conv1"}
Where = Literal["never", "callback", "images", "save_state", "write_metrics"]
Epochs = tuple[int, ...]
"""Of each epoch, the number of epochs that the run had then: the learning rate depends on it."""


@pytest.fixture(scope="module", autouse=True)
def _data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A label file with an image that cannot be read, and weights to start from."""
    labels = write_colours(tmp_path_factory.mktemp("data"))
    (labels.parent / "set/green/07.png").write_bytes(b"<!doctype html>")
    state = build_model("lenet5", num_classes=4, weights="none", seed=3).network.state_dict()
    save_file(state, labels.with_name("weights.safetensors"))
    SHARED.append(labels)
    yield
    SHARED.clear()
    REFERENCE.clear()


SHARED: list[Path] = []
REFERENCE: dict[tuple[str, Epochs], str] = {}
"""What a run with these settings has to be after these epochs, whatever befell it."""


class StopsAt(NoProgress):
    """Ends a run after so many images of training."""

    def __init__(self, images: int) -> None:
        self._left, self._is_training = images, False

    def start(self, what: str, total: int | None, unit: str) -> None:
        self._is_training = what == "train"

    def advance(self, count: int = 1, **figures: object) -> None:
        self._left -= count * self._is_training
        if self._left < 0:
            raise KeyboardInterrupt


class RunFolderLife(RuleBasedStateMachine):
    """The model: the settings of the run, and the epochs that ended."""

    def __init__(self) -> None:
        super().__init__()
        self._open = ExitStack()
        self.root = Path(self._open.enter_context(tempfile.TemporaryDirectory())).resolve()
        self.epochs: Epochs = ()
        self.moves = 0

    def teardown(self) -> None:
        self._open.close()

    @initialize(freeze=st.sampled_from(["none", "conv2"]), total=st.integers(1, 3))
    def settings_are_chosen(self, freeze: str, total: int) -> None:
        weights = "none" if freeze == "none" else str(SHARED[0].with_name("weights.safetensors"))
        self.config = FineTuneConfig(
            SHARED[0], self.root / "run", model="lenet5", weights=weights, freeze=freeze, epochs=total, seed=1,
            batch_size=5, augment="none" if freeze == "none" else "light", cache=freeze == "none",
        )  # fmt: skip
        self.config.out.mkdir()
        (self.config.out / "notes.txt").write_text("mine")

    @property
    def files(self) -> RunFiles:
        return RunFiles(self.config.out)

    @property
    def is_started(self) -> bool:
        return self.files.config.exists()

    @property
    def is_finished(self) -> bool:
        return len(self.epochs) == self.config.epochs

    @precondition(lambda self: not self.is_finished)
    @rule(where=st.sampled_from(Where.__args__), number=st.integers(1, 3), before=st.booleans())
    def train(self, where: Where, number: int, before: bool) -> None:
        """Start or resume; stop after so many epochs, images, or calls of what writes."""
        config = self.config
        if self.is_started and number % 2 and read_config(config.out).epochs == config.epochs:
            config = read_config(config.out)  # as --resume does
        callbacks = [StopsAfter(len(self.epochs) + number)] if where == "callback" else []
        images = number * 14
        progress = StopsAt(images) if where == "images" else None
        was_resumed = bool(self.epochs)
        with pytest.MonkeyPatch.context() as patch:
            if where in ("save_state", "write_metrics"):
                kill_at(patch, where, call=number, before=before)
            try:
                result = fine_tune(config, export=False, callbacks=callbacks, progress=progress)
            except (KeyboardInterrupt, Killed):
                ended = {
                    "callback": number,
                    "images": images // self.train_images,
                    "save_state": number - before,
                    "write_metrics": number - was_resumed,
                }[where]
            else:
                ended = self.config.epochs - len(self.epochs)
                assert result.epochs == config.epochs
                assert [Path(each.path).name for each in result.broken] == ["07.png"] * (not was_resumed)
        self.epochs += (self.config.epochs,) * ended
        if where in ("never", "callback") and self.epochs:
            self.require_reference()

    @property
    def train_images(self) -> int:
        return sum(1 for line in self.files.train.read_text().splitlines() if line)

    @precondition(lambda self: self.is_finished)
    @rule()
    def start_again(self) -> None:
        was_finished, before = self.files.result.exists(), self.contents()
        assert fine_tune(read_config(self.config.out), export=False).epochs == self.config.epochs
        assert not was_finished or self.contents() == before

    @precondition(lambda self: self.epochs and self.config.epochs < MAX_EPOCHS)
    @rule(more=st.integers(1, 2))
    def extend(self, more: int) -> None:
        """The next start trains for more epochs."""
        self.config = replace(self.config, epochs=self.config.epochs + more)

    @precondition(lambda self: self.epochs)
    @rule(name=st.sampled_from([*OTHER, "epochs"]))
    def another_setting_is_refused(self, name: str) -> None:
        value = OTHER.get(name, len(self.epochs) - 1 or None)
        if value is None:
            return
        before = self.contents()
        with pytest.raises(RunError, match=f"contains a run with other settings.*{name}") as error:
            fine_tune(replace(self.config, **{name: value}), export=False)  # type: ignore[arg-type]
        assert ("can be raised, not lowered" in str(error.value)) == (name == "epochs")
        assert self.contents() == before

    @precondition(lambda self: self.is_started)
    @rule()
    def move(self) -> None:
        self.moves += 1
        moved = self.root / f"run-{self.moves}"
        self.config.out.rename(moved)
        self.config = replace(self.config, out=moved)

    @precondition(lambda self: self.epochs)
    @rule()
    def require_reference(self) -> None:
        """The state is that of any run of these epochs; both networks can be read."""
        state = load_state(self.files)
        assert state is not None
        key = self.config.freeze, self.epochs
        if key not in REFERENCE and len(set(self.epochs)) == 1:  # it was not extended: compare with a run in one go
            whole = replace(self.config, out=self.root / f"whole-{self.epochs}", epochs=self.epochs[0])
            with suppress(KeyboardInterrupt):
                fine_tune(whole, export=False, callbacks=[StopsAfter(len(self.epochs))])
            REFERENCE[key] = digest_of(whole.out)
        assert REFERENCE.setdefault(key, digest_of(self.config.out)) == digest_of(self.config.out)
        for checkpoint, tensors in (("last", state.trained_tensors), ("best", state.best_trained_tensors)):
            loaded = load_run(self.config.out, checkpoint).network.state_dict()
            assert all(torch.equal(tensor, loaded[name]) for name, tensor in tensors.items())

    @invariant()
    def the_epochs_are_written_and_nothing_else(self) -> None:
        if not self.is_started:
            return
        state = load_state(self.files)
        assert (len(state.history) if state else 0) == len(self.epochs)
        if self.files.result.exists():
            with self.files.metrics.open() as lines:
                assert [int(row["epoch"]) for row in csv.DictReader(lines)] == list(range(1, len(self.epochs) + 1))
        assert (self.config.out / "notes.txt").read_text() == "mine"
        assert list(self.config.out.glob(".*.part")) == []

    def contents(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.config.out.iterdir() if path.is_file()}


def digest_of(run: Path) -> str:
    """Of the tensors after the last and the best epoch."""
    state = load_state(RunFiles(run))
    assert state is not None
    found = hashlib.sha256()
    for tensors in (state.trained_tensors, state.best_trained_tensors):
        for name, tensor in sorted(tensors.items()):
            found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


TestRunFolderLife = RunFolderLife.TestCase
TestRunFolderLife.settings = settings(
    max_examples=int(os.environ.get("MLIMAGES_STATEFUL_EXAMPLES", "3")), stateful_step_count=8, deadline=None
)
