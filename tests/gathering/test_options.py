"""The options of gathering are defined once, and `gather` takes what people have at hand."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
from typer.testing import CliRunner, Result

from mlimages import UrlList, gather
from mlimages.cli.gather_summary import (
    _ADVICE_BY_REASON,
    _UNFINISHED_ADVICE,
    _advise_on_unfinished_links,
    explain_why_no_images,
    format_summary,
)
from mlimages.cli.main import app
from mlimages.core import RETRYABLE_REASONS, GatherSummary, InputError, Reason, option_fields
from mlimages.gathering import GatherKeywords, GatherOptions, parse_shard
from mlimages.gathering.event_loop import run_blocking
from tests.gathering.conftest import links, run
from tests.servers import Site, answer, photo


@pytest.fixture
def site(site: Site) -> Site:
    site.fallback = answer(photo(1))
    return site


def invoke(folder: Path, *options: str) -> Result:
    """Run `gather urls` in this process."""
    return CliRunner().invoke(app, ["gather", "urls", str(folder / "links.txt"), "-o", str(folder / "out"), *options])


def test_keywords_of_gather_are_the_fields_of_the_options() -> None:
    annotated = get_type_hints(GatherOptions, include_extras=True)
    assert get_type_hints(GatherKeywords) == {name: get_args(hint)[0] for name, hint in annotated.items()}


@pytest.mark.parametrize("command", ["urls", "imagenet", "openverse", "pexels"])
def test_every_option_is_one_of_every_command(command: str) -> None:
    full = CliRunner().invoke(app, ["gather", command, "--help-all"], env={"COLUMNS": "80"}).output
    short = CliRunner().invoke(app, ["gather", command, "--help"], env={"COLUMNS": "80"}).output
    for field in option_fields(GatherOptions):
        if not field.option.is_internal:
            flag = field.option.flags[0] if field.option.flags else f"--{field.name.replace('_', '-')}"
            assert f"{flag} " in full
            assert (f"{flag} " in short) != field.option.is_advanced, flag
    assert max(map(len, full.splitlines())) <= 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit is 0: it must be at least 1"),
        ({"per_host": -1}, "per_host is -1"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"decoders": 10**20}, "decoders is 100000000000000000000: it must be from 1 to 256"),
        ({"per_host": 10**6}, "per_host is 1000000: it must be from 1 to 1024"),
        ({"parallel": 10**6}, "parallel is 1000000: it must be from 1 to 4096"),
        ({"retries": -1}, "retries is -1: it must be at least 0"),
        ({"retry_failed": None}, "retry_failed is None: it must be a list"),
        ({"headers": 3}, "headers is 3: it must be a list"),
        ({"shard": (3, 2)}, "shard is 3/2: expected I/N with I from 1 to N"),
        ({"shard": (3, 100_000)}, "and N up to 99999"),
        ({"restore_deleted": True, "keep_deleted": True}, "mutually exclusive"),
        ({"retry_failed": "timeout, never"}, "unknown reason 'never': expected one or more of bad-url, "),
        *(
            ({"retry_failed": value}, r"unknown reason .*: expected one or more of .*timeout.*, or all")
            for value in ("nope", ["not_found"], {"timeout", "nope"}, [1], "")
        ),
        *(
            ({"headers": value}, 'expected "NAME: VALUE", such as "Referer: URL"')
            for value in ((("X-Key", "1"),), [None], [b"X-Key: 1"], "X-Key: 1", {"X-Key": "1"})
        ),
        *(
            ({"proxy": url}, "expected the URL of an HTTP proxy")
            for url in ("127.0.0.1:8080", "socks5://127.0.0.1:1080", "ftp://x:21", "http://", "http://x:y/")
        ),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GatherOptions(**options)  # type: ignore[arg-type]


def test_a_shard_that_is_not_a_number_of_a_count_is_refused() -> None:
    with pytest.raises(InputError, match="shard is 'never': expected I/N"):
        parse_shard("never")


def test_gather_takes_a_list_by_its_path(site: Site, tmp_path: Path) -> None:
    links(tmp_path, site.url("/1.jpg"))
    for number, source in enumerate((tmp_path / "cats.txt", str(tmp_path / "cats.txt"), [tmp_path / "cats.txt"])):
        assert gather(source, str(tmp_path / f"out{number}"), allow_private=True).ok == 1
    for wrong in (None, 3, [3], UrlList):
        with pytest.raises(TypeError, match="expected a path to a list of URLs, or a source object"):
            gather(wrong, tmp_path / "out")  # type: ignore[arg-type]


def test_gather_works_where_an_event_loop_runs(site: Site, tmp_path: Path) -> None:
    source = links(tmp_path, site.url("/1.jpg"))

    async def cell() -> int:
        return run(source, tmp_path / "out").ok

    assert asyncio.run(cell()) == 1


def test_an_interrupted_cell_ends_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started, ended = threading.Event(), threading.Event()

    async def job() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def cell() -> None:
        run_blocking(job())

    def interrupted(future: object, timeout: float | None = None) -> None:
        monkeypatch.undo()
        started.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(cell())
    assert ended.is_set()


@pytest.mark.parametrize("first", ["links.csv", "https://example.com/cats.txt"])
def test_a_list_in_place_of_a_command_is_answered_with_the_command(first: str) -> None:
    done = CliRunner().invoke(app, ["gather", first])
    assert done.exit_code == 2
    assert "mlimages gather urls " in done.output


def test_a_dry_run_ends_with_the_total_and_a_table_of_failures_begins_with_why(tmp_path: Path) -> None:
    links(tmp_path, "cat\thttp://127.0.0.1:9/1", "dog\thttp://127.0.0.1:9/2", name="links.txt")
    plan = invoke(tmp_path, "--dry-run").stdout.splitlines()
    assert plan[-1].split() == ["total", "(2", "classes)", "2"]
    unknown = ["gather", "imagenet", "n02123394", "-o", str(tmp_path / "out"), "--dry-run"]
    assert CliRunner().invoke(app, unknown).stdout.splitlines()[-1].split() == ["total", "(1", "class)", "unknown"]
    done = invoke(tmp_path)
    assert done.stdout.splitlines()[0] == "2 of 2 links failed; private-address: 2"
    assert done.stdout.splitlines()[-1] == "2 links are unfinished"
    assert "could not be downloaded yet: the address is private; add --allow-private (2 links)" in str(done.exception)
    links(tmp_path, name="links.txt")
    assert "the source has no links" in str(invoke(tmp_path, "--dry-run").exception)


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason in {*_ADVICE_BY_REASON, *_UNFINISHED_ADVICE}])
@pytest.mark.parametrize("num_good", [0, 1])
def test_advice_about_failed_links_is_on_the_screen_once(reason: Reason, num_good: int) -> None:
    num_open = 3 if reason in RETRYABLE_REASONS else 0
    summary = GatherSummary(
        out=Path("out"), ok=num_good, duplicate=0, failed=3, near_duplicate=0, conflicting=0, changed=0, moved=0,
        unmoved=0, removed=0, open=num_open, fetched=3, reasons={str(reason): 3}, classes={}, hosts={}, seconds=1.0,
    )  # fmt: skip
    screen = "\n".join(format_summary(summary, ends_with_error=not num_good))
    if not num_good:
        screen += explain_why_no_images(summary)
    advice = [table[reason] for table in (_ADVICE_BY_REASON, _UNFINISHED_ADVICE) if reason in table]
    assert [screen.count(text) for text in advice] == [1]
    assert screen.count("--allow-private") == (reason is Reason.PRIVATE_ADDRESS)


@pytest.mark.parametrize(
    ("reasons", "remedies"),
    [
        ({"private-address": 2}, ["the address is private; add --allow-private (2 links)"]),
        ({"unknown-host": 1}, ["the host name does not exist; correct the link (1 link)"]),
        ({"unknown-host": 1, "timeout": 1},
         ["the host name does not exist; correct the link (1 link)", "run the same command again"]),
        ({"timeout": 1}, ["run the same command again"]),
    ],
)  # fmt: skip
def test_the_same_command_is_proposed_only_where_it_may_help(reasons: dict[str, int], remedies: list[str]) -> None:
    summary = SimpleNamespace(open=sum(reasons.values()), reasons=reasons)
    assert _advise_on_unfinished_links(summary) == remedies  # type: ignore[arg-type]


@pytest.mark.parametrize("command", ["urls", "imagenet", "openverse", "inaturalist", "commons", "pexels"])
def test_a_command_without_arguments_says_what_is_missing(command: str) -> None:
    done = CliRunner().invoke(app, ["gather", command])
    assert (done.exit_code, "Missing" in done.output) == (2, True)


def test_a_number_of_processes_that_no_machine_has_is_refused(tmp_path: Path) -> None:
    done = invoke(tmp_path, "--workers", "9" * 20)
    assert (done.exit_code, "--workers" in done.output, (tmp_path / "out").exists()) == (2, True, False)


def test_a_folder_whose_images_were_all_deleted_says_so(site: Site, tmp_path: Path) -> None:
    site.routes |= {f"/{n}.jpg": answer(photo(n)) for n in (1, 2)}
    run(links(tmp_path, site.url("/1.jpg"), site.url("/2.jpg"), name="links.txt"), tmp_path / "out")
    for image in (tmp_path / "out/links").iterdir():
        image.unlink()
    done = invoke(tmp_path, "--allow-private", "--keep-deleted")
    assert str(done.exception) == (
        "no image was gathered: all 2 images were deleted by hand and therefore not downloaded again; "
        "use --restore-deleted to download them"
    )
    assert "--restore-deleted" not in done.stdout
    assert invoke(tmp_path, "--allow-private", "--restore-deleted").exit_code == 0


def test_duplicates_of_earlier_runs_are_said_to_stay_out(site: Site, tmp_path: Path) -> None:
    links(tmp_path, site.url("/1.jpg"), site.url("/2.jpg"), name="links.txt")
    assert "--keep-duplicates" not in invoke(tmp_path, "--allow-private").stdout
    done = invoke(tmp_path, "--allow-private", "--keep-duplicates")
    assert "1 earlier duplicate is not downloaded again: --keep-duplicates only applies to new" in done.stdout


@pytest.mark.parametrize(
    ("value", "reasons"),
    [("all", set(Reason)), ("timeout, not-found", {Reason.TIMEOUT, Reason.NOT_FOUND}), (["timeout"], {Reason.TIMEOUT}),
     ({Reason.GONE}, {Reason.GONE}), ((), set())],
)  # fmt: skip
def test_reasons_are_taken_from_python_as_from_the_command_line(value: object, reasons: set[Reason]) -> None:
    assert GatherOptions(retry_failed=value).retry_failed == reasons  # type: ignore[arg-type]


@pytest.mark.parametrize("several", [False, True])
def test_the_options_of_a_call_hold_for_the_list_itself(site: Site, tmp_path: Path, several: bool) -> None:
    site.routes["/list.txt"] = answer(site.url("/1.jpg").encode())
    lists = [site.url("/list.txt")] if several else site.url("/list.txt")
    assert run(lists, tmp_path / "out", user_agent="ants/1.0").ok == 1
    assert [request.headers["user-agent"] for request in site.requests] == ["ants/1.0"] * 2
    with pytest.raises(InputError, match="private address: --allow-private permits it"):
        run(lists, tmp_path / "out", allow_private=False)
