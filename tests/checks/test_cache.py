"""The cache of a check: what it returns, what it never keeps, and that its failures cost only time."""

import logging
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from mlimages.checks import check
from mlimages.checks.cache import CheckCache, ExaminedImage, FileVersion
from mlimages.core import Fault
from tests.checks.test_rules import ORDINARY
from tests.checks.test_validation import jpeg, listed, scene

FACTS = ORDINARY.pack()


def image(number: int, fault: Fault | None = None) -> ExaminedImage:
    """A result; no two numbers have the same bytes."""
    return ExaminedImage(bytes([number]) * 32, None if fault else FACTS, fault, "why" if fault else "")


def test_results_are_found_by_path_and_state_and_by_content_in_later_runs() -> None:
    results = {name: image(number) for number, name in enumerate(("a", "b", "c"), start=1)}
    results["cut"] = image(4, Fault.TRUNCATED)
    results["again"] = results["a"]
    with CheckCache() as cache:
        cache.store_results((FileVersion(name, b"1"), one) for name, one in results.items())
    with CheckCache() as cache:
        assert cache.find_results([FileVersion(name, b"1") for name in [*results, "other"]]) == results
        assert cache.find_results([FileVersion("a", b"2"), FileVersion("b", b"1")]) == {"b": results["b"]}
        assert cache.find_results([]) == {}
        assert [cache.find_by_sha256(bytes([number]) * 32) for number in (4, 9)] == [results["cut"], None]
        cache.store_results([(FileVersion("a", b"2"), image(7))])
        assert cache.find_results([FileVersion("a", b"1"), FileVersion("b", b"1")]) == {"b": results["b"]}
        assert cache.find_results([FileVersion("a", b"2")]) == {"a": image(7)}
        cache.store_results([(None, image(8)), (FileVersion("c", b"2"), image(6)), (None, image(7))])
        assert [cache.find_by_sha256(bytes([number]) * 32) for number in (6, 7, 8)] == [image(6), image(7), image(8)]
        assert cache.find_results([FileVersion(name, b"2") for name in "abc"]) == {"a": image(7), "c": image(6)}


@pytest.mark.parametrize("fault", Fault)
def test_faults_that_may_pass_are_not_kept(fault: Fault) -> None:
    """A threshold, a package that is not installed or a store decide of these; no other fault changes."""
    passing = {Fault.TOO_MANY_PIXELS, Fault.UNREADABLE, Fault.UNAVAILABLE}
    with CheckCache() as cache:
        cache.store_results(
            [(FileVersion("a", b"1"), image(1, fault)), (FileVersion("b", b"1"), ExaminedImage(b"", fault=fault))]
        )
        found = cache.find_results([FileVersion("a", b"1"), FileVersion("b", b"1")])
    assert found == ({} if fault in passing else {"a": image(1, fault)}), "without its bytes none is kept"


def test_pairs_of_duplicates_are_those_of_their_key() -> None:
    pairs = np.array([[1, 2], [5, 70_000]])
    with CheckCache() as cache:
        cache.store_duplicate_pairs(b"key", pairs)
        cache.store_duplicate_pairs(b"none", np.empty((0, 2), np.int64))
    with CheckCache() as cache:
        assert np.array_equal(cache.find_duplicate_pairs(b"key"), pairs)  # type: ignore[arg-type]
        none = cache.find_duplicate_pairs(b"none")
        assert none is not None
        assert none.shape == (0, 2)
        assert cache.find_duplicate_pairs(b"other") is None


@pytest.mark.parametrize("table", ["images", "links"])
def test_a_table_that_cannot_be_read_or_written_costs_only_time(
    tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As with a disk that fails or is full."""
    labels = listed(tmp_path, {f"{n}.jpg": jpeg(scene(n // 2, width=60, height=40), quality=80 + n) for n in range(4)})
    connect = sqlite3.connect

    class Failing(sqlite3.Connection):
        def execute(self, query: str, values: object = ()) -> sqlite3.Cursor:
            if table in query:
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(query, values)  # type: ignore[arg-type]

        def executemany(self, query: str, values: object) -> sqlite3.Cursor:
            if table in query:
                raise sqlite3.OperationalError("disk I/O error")
            return super().executemany(query, values)  # type: ignore[arg-type]

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=Failing, **options))
    with caplog.at_level(logging.WARNING, "mlimages.checks.cache"):
        reports = [check([labels]) for _ in range(2)]
    assert {" ".join(record.message.split()[:2]) for record in caplog.records} == {"cannot read", "cannot write"}
    assert all("disk I/O error" in record.message for record in caplog.records)
    for report in reports:
        assert (report.num_ok, len(report.duplicate_groups)) == (4, 2)
