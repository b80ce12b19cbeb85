"""The shell completes commands and options."""

import pytest
from typer.testing import CliRunner

from mlimages.cli import main as cli


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("mlimages fin", "finetune"),
        ("mlimages gather inat", "inaturalist"),
        ("mlimages finetune --opti", "--optimizer"),
    ],
)
def test_what_is_typed_is_completed(typed: str, offered: str) -> None:
    asked = {"_MLIMAGES_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = CliRunner().invoke(cli.app, [], env=asked, prog_name="mlimages")
    assert done.stdout.split() == [offered]
