"""The progress bar in a log."""

import io

import pytest

from mlimages.core import TqdmProgress


def test_a_short_stage_takes_two_lines_of_a_log_however_often_it_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    progress = TqdmProgress()
    progress.start("gather", 2000, "links")
    for done in range(2000):
        progress.advance(done % 3, ok=done)
    progress.advance(1, ok=2000)
    progress.close()
    first, last = log.getvalue().strip().split("\r")
    assert "0/2000" in first
    assert "2000/2000" in last
    assert "ok 2000" in last
