"""What the next command is given from the one before."""

import logging
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mlimages.cli.hints import find_validation_option, print_next_command
from mlimages.cli.main import _global_options, _is_always_shown


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("labels_train.txt", "labels_val.txt"), "labels_val.txt"),
        (("train_checked.txt", "val_checked.txt"), "val_checked.txt"),
        (("labels_train.txt", "labels_test.txt"), None),
        (("labels.txt", "val.txt"), None),
    ],
)
def test_a_validation_file_of_the_training_files_name_is_kept(
    tmp_path: Path, names: tuple[str, str], expected: str | None
) -> None:
    for name in names:
        (tmp_path / name).touch()
    found = find_validation_option(tmp_path / names[0])
    assert found == (["--val", tmp_path / expected] if expected else [])


def test_a_path_that_begins_with_a_dash_is_no_option_of_the_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    print_next_command("check", Path("-dash/labels.txt"), Path("my cats"), "--yes")
    assert capsys.readouterr().err == "next: mlimages check ./-dash/labels.txt 'my cats' --yes\n"


def test_what_a_package_warns_of_is_shown_but_not_each_skipped_image() -> None:
    def shown(name: str, level: int = logging.WARNING) -> bool:
        return _is_always_shown(logging.LogRecord(name, level, "", 0, "", None, None))

    assert shown("mlimages.gathering.store.merge_manifests")
    assert shown("mlimages.core.cluster")
    assert shown("mlimages.images.text")
    assert not shown("mlimages.dataset.training_data")
    assert not shown("PIL.Image")
    assert shown("asyncio", logging.ERROR)


@pytest.mark.parametrize(("words", "expected"), [((), ""), (("--verbose",), "mlimages.training: epoch 1\n")])
def test_only_with_verbose_what_a_package_reports_is_printed(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], expected: str
) -> None:
    app = typer.Typer(callback=_global_options)

    @app.command()
    def log() -> None:
        logging.getLogger("mlimages.training").info("epoch %d", 1)

    for name in ("", "mlimages"):  # restored after the test
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "level", logger.level)
        monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logging, "captureWarnings", lambda _: None)
    assert CliRunner().invoke(app, [*words, "log"]).stderr == expected
