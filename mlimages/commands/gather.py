"""Commands of the step "gather"."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mlimages.errors import GatherError
from mlimages.progress import NoProgress, TqdmProgress
from mlimages.records import GatherSummary

if TYPE_CHECKING:
    from mlimages.gathering import Source

_ROWS = 15


def register(app: typer.Typer) -> None:
    """Add this step's commands to the command line."""
    sub = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help="Download pictures into a folder per class, verified.\n\n"
        "Broken links cost nothing but their row in the manifest; run the same command again to go on.",
        epilog="Example: mlimages gather urls links.txt -o data/mine",
    )
    sub.command("urls")(_urls)
    app.add_typer(sub, name="gather", rich_help_panel="gather")


def _common(
    *,
    out: Path = typer.Option(..., "-o", "--out", help="Folder for the pictures and manifest.jsonl."),
    limit: int = typer.Option(None, help="Good pictures per class; it goes on until so many are there."),
    parallel: int = typer.Option(64, help="Requests at one time."),
    per_host: int = typer.Option(8, help="Requests at one time to one host."),
    timeout: float = typer.Option(15.0, help="Seconds for one whole request."),
    connect_timeout: float = typer.Option(10.0, help="Seconds until a host is connected."),
    retries: int = typer.Option(2, help="Further tries after a passing failure (time-out, 429, 5xx)."),
    max_bytes: int = typer.Option(64 * 2**20, help="The longest body, in bytes."),
    max_pixels: int = typer.Option(89_478_485, help="The most pixels, judged before decoding."),
    min_size: int = typer.Option(1, help="The least shorter side, in pixels."),
    resize: int = typer.Option(None, help="Store the shorter side at so many pixels (upright RGB JPEG)."),
    keep_duplicates: bool = typer.Option(False, "--keep-duplicates", help="Keep every copy of the same bytes."),
    retry_failed: str = typer.Option(
        None, metavar="REASON,...", help="Try these failed links again ('all': every one)."
    ),
    allow_private: bool = typer.Option(False, "--allow-private", help="Connect to private and loopback addresses too."),
    ignore_opt_out: bool = typer.Option(False, "--ignore-opt-out", help="Take pictures marked X-Robots-Tag: noai too."),
    user_agent: str = typer.Option(None, help="What to call ourselves; by default mlimages and its version."),
    proxy: str = typer.Option(None, metavar="URL", help="HTTP proxy; by default as HTTP_PROXY and its like say."),
    shard: str = typer.Option(None, metavar="I/N", help="Take the I-th of N parts of the links."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show classes and counts, fetch nothing."),
    as_json: bool = typer.Option(False, "--json", help="Print the outcome as JSON."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress bar and no table."),
) -> None:
    """The options that every kind of gathering has."""


def _gathering(make_source: Callable[..., Source]) -> Callable[..., None]:
    """A command from a function that makes a source: its own parameters, then the common ones."""
    common = inspect.signature(_common, eval_str=True).parameters
    own = inspect.signature(make_source, eval_str=True)

    @wraps(make_source)
    def command(**values: Any) -> None:
        chosen = {name: values.pop(name) for name in common}
        _run(make_source(**values), **chosen)

    vars(command).pop("__wrapped__")  # Typer would read the inner function's parameters
    parameters = [*own.parameters.values(), *common.values()]
    vars(command)["__signature__"] = own.replace(parameters=parameters, return_annotation=None)
    return command


@_gathering
def _urls(
    lists: list[Path] = typer.Argument(..., help="Lists: .txt, .csv, .tsv, .jsonl, .parquet; .gz of any; - for stdin."),
    url_col: str = typer.Option(None, help="The column of links, if it has an unusual name."),
    label_col: str = typer.Option(None, help="The column of classes, if it has an unusual name."),
) -> Any:  # a Source: its module is not to be imported for the signature
    """Download the pictures behind lists of links.

    A list is text with a URL a line (or CLASS<TAB>URL), or a table with a column of links and perhaps one of classes.
    Links without a class belong to a class named after their file. Each picture is decoded before it is kept, under
    OUT/CLASS/; what became of each link is in OUT/manifest.jsonl.

    Example: mlimages gather urls cats.txt dogs.txt -o data/pets
    """
    from mlimages.gathering import UrlList

    return UrlList(*lists, url_col=url_col, label_col=label_col)


def _run(source: Source, *, out: Path, dry_run: bool, as_json: bool, quiet: bool, **chosen: Any) -> None:
    from mlimages.gathering import gather
    from mlimages.gathering.options import parse_reasons, parse_shard

    options = {name: value for name, value in chosen.items() if value is not None}
    options |= {f"{name}_s": options.pop(name) for name in ("timeout", "connect_timeout")}
    if "shard" in options:
        options["shard"] = parse_shard(options["shard"])
    if "retry_failed" in options:
        options["retry_failed"] = parse_reasons(options["retry_failed"])
    summary = gather(source, out, progress=NoProgress() if quiet else TqdmProgress(), **options)
    if as_json:
        print(json.dumps(summary.to_dict()))
    elif not quiet:
        print("\n".join(_table(summary)))
    if not summary.ok:
        raise GatherError(f"nothing was gathered; {out}/manifest.jsonl says why, link by link")
    if not quiet:
        print(f"\nnext: mlimages label {out}", file=sys.stderr)


def _table(summary: GatherSummary) -> Iterator[str]:
    yield from _counts("good pictures by class", summary.classes)
    yield from _counts("failed links by reason", summary.reasons)
    yield from _counts("failed links by host", summary.hosts)
    near = f" ({summary.near_duplicate} look nearly like another)" if summary.near_duplicate else ""
    yield f"{summary.ok} good{near}, {summary.duplicate} duplicates, {summary.failed} failed in {summary.out}"


def _counts(title: str, counts: Mapping[str, int]) -> Iterator[str]:
    if not counts:
        return
    rows = list(counts.items())
    shown, rest = rows[:_ROWS], rows[_ROWS:]
    yield title
    yield from (f"  {name[:48]:<48} {count:8}" for name, count in shown)
    if rest:
        yield f"  {f'{len(rest)} more':<48} {sum(count for _, count in rest):8}"
    yield ""
