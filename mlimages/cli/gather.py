"""Commands of the step "gather"."""

from __future__ import annotations

import asyncio
import inspect
import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from mlimages.cli.engines import ADDRESS, ENGINE, Engine, open_cluster
from mlimages.cli.gather_search import commons, inaturalist, openverse, pexels, print_message
from mlimages.cli.gather_summary import NO_LINKS, no_images_reason, summary_lines
from mlimages.cli.hints import print_next_command
from mlimages.cli.options import GroupedCommand, takes_options
from mlimages.cli.process import raise_gc_threshold
from mlimages.core import GatherError, GatherSummary, InputError, as_path, pluralize
from mlimages.gathering import GatherOptions

if TYPE_CHECKING:
    from mlimages.core import Cluster, Processes
    from mlimages.gathering import Source

_IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic")


def register(app: typer.Typer) -> None:
    """Add this step's commands to the command line."""
    sub = typer.Typer(
        cls=_GatherGroup,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help="Download images into one folder per class and verify each.\n\n"
        "The manifest records the result of each link; run the same command again to resume.",
        epilog="Example: mlimages gather urls links.txt -o data/mine",
    )
    for make_source in (urls, imagenet, openverse, inaturalist, commons, pexels):
        sub.command(make_source.__name__, cls=_GatherCommand)(_make_command(make_source))
    app.add_typer(sub, name="gather", rich_help_panel="gather")


class _GatherGroup(TyperGroup):
    """Suggests `gather urls` if a list or a link is given instead of a command."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, or raise an error that suggests the right one."""
        first = args[0]
        if first not in self.commands and ("://" in first or Path(first).suffix or Path(first).exists()):
            out = "" if {"-o", "--out"} & set(args) else " -o FOLDER"
            command = f"mlimages gather urls {shlex.join(args)}{out}"
            if "://" in first and Path(first).suffix.lower() in _IMAGES:
                command = f"echo {shlex.quote(first)} | mlimages gather urls {shlex.join(['-', *args[1:]])}{out}"
            ctx.fail(f"use `gather urls` for links and lists of links: {command}")
        return super().resolve_command(ctx, args)


class _GatherCommand(GroupedCommand):
    """A command whose option `--retry-failed` may have no value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments; `--retry-failed` without a value means all reasons."""
        words = [
            f"{arg}=all" if arg == "--retry-failed" and after.startswith("-") else arg
            for arg, after in pairwise([*args, "--"])
        ]
        return super().parse_args(ctx, words)


def _common_options(
    *,
    out: Path = typer.Option(
        ..., "-o", "--out", metavar="FOLDER", help="Folder for the images and manifest.jsonl.", rich_help_panel="Output"
    ),
    engine: Engine = ENGINE,
    address: str = ADDRESS,
    workers: int = typer.Option(
        1, min=1, max=256, metavar="N", help="Number of processes on this machine.", rich_help_panel="Download"
    ),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print the number of links of each class; download nothing.", rich_help_panel="Output"
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the results as JSON.", rich_help_panel="Output"),
    quiet: bool = typer.Option(
        False, "--quiet", "-q", help="Do not show the progress bar and the table.", rich_help_panel="Output"
    ),
) -> None:
    """Declare the options that all `gather` commands share in addition to `GatherOptions`."""


def _make_command(make_source: Callable[..., Source]) -> Callable[..., None]:
    """Make a command from a function that creates a source: its parameters after the first, then the common ones."""
    common = inspect.signature(_common_options, eval_str=True).parameters
    own = inspect.signature(make_source, eval_str=True)

    def body(options: dict[str, Any], **values: Any) -> None:
        chosen = {name: values.pop(name) for name in common}
        _run_gather(partial(make_source, **values), options, **chosen)

    body.__name__, body.__doc__ = make_source.__name__, make_source.__doc__
    vars(body)["__signature__"] = own.replace(parameters=[*own.parameters.values(), *common.values()])
    return takes_options(GatherOptions)(body)


def urls(
    http_options: GatherOptions,
    lists: list[str] = typer.Argument(
        ..., metavar="LIST...", help="Files or http(s) URLs: .txt .csv .tsv .json .jsonl .parquet; - for stdin."
    ),
    url_col: str = typer.Option(
        None,
        "--url-column",
        "--url-col",
        metavar="COLUMN",
        help="Column of URLs, by name or number (from 1).",
        rich_help_panel="Source",
    ),
    label_col: str = typer.Option(
        None,
        "--label-column",
        "--label-col",
        metavar="COLUMN",
        help="Column of classes, by name or number.",
        rich_help_panel="Source",
    ),
    class_name: str = typer.Option(
        None, "--class", metavar="NAME", help="Put all images into this class.", rich_help_panel="Source"
    ),
) -> Any:  # a Source; its module is not imported for the annotation
    """Download the images in lists of links.

    A list is a text file with one link per line (or CLASS<TAB>LINK), or a table with a column of links and optionally
    one of classes (CSV, TSV, JSON, JSON lines, Parquet, COCO), plain or compressed. Links without a class belong to a
    class named after their file. Each image is decoded before it is kept, under OUT/CLASS/; the outcome of each link
    and the other columns are in OUT/manifest.jsonl.

    Example: mlimages gather urls cats.txt dogs.txt -o data/pets
    """
    from mlimages.gathering import UrlList

    return UrlList(
        *lists,
        url_col=url_col,
        label_col=label_col,
        class_name=class_name,
        http_options=http_options,
        tell=print_message,
    )


def imagenet(
    http_options: GatherOptions,
    words: list[str] = typer.Argument(
        ..., metavar="SYNSET...", help='WordNet ids or words: n02121808, "domestic cat".'
    ),
    subtree: bool = typer.Option(
        False, "--subtree", help="Include all descendant synsets, each in its own folder.", rich_help_panel="Source"
    ),
    archive: Path = typer.Option(
        None, help="Archive (.tar, .tar.gz, .tgz, .zip) or folder to read the images from.", rich_help_panel="Source"
    ),
    url_list: Path = typer.Option(
        None, help="List of WNID_NUMBER<TAB>URL lines, such as fall11_urls.txt (.gz, .tgz).", rich_help_panel="Source"
    ),
    endpoint: str = typer.Option(
        "https://image-net.org", metavar="URL", help="Base URL of the site.", rich_help_panel="rare:Source"
    ),
) -> Any:
    """Download ImageNet's images by WordNet id or word.

    The images come from the first of these that has the synset: --archive, the site's archive, the site's list of
    links, --url-list. Folders are named by the synset's first word: domestic_cat/persian_cat.

    Example: mlimages gather imagenet n02121808 --subtree --limit 200 -o data/cats
    """
    from mlimages.gathering import ImageNet

    return ImageNet(
        words,
        with_subtree=subtree,
        archive=archive,
        url_list=url_list,
        endpoint=endpoint,
        http_options=http_options,
        tell=print_message,
    )


def _run_gather(
    make_source: Callable[[GatherOptions], Source],
    options: dict[str, Any],
    *,
    out: Path,
    engine: Engine,
    address: str | None,
    workers: int,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    raise_gc_threshold()
    from mlimages.core import NoProgress, Processes, TqdmProgress

    out = as_path(out)
    source = make_source(GatherOptions(**options))
    if dry_run:
        _print_plan(source, as_json=as_json)
        return
    progress = NoProgress() if quiet else TqdmProgress()
    if workers > 1 and engine == "ray":
        raise InputError("--workers starts processes on this machine: leave it out with --engine ray")
    with open_cluster(engine, address) as cluster:
        tasks = cluster or (Processes(workers) if workers > 1 else None)
        summary = _gather_images(source, out, tasks, progress=progress, **options)
    has_failed = not summary.ok and not options.get("shard")  # a shard may have no links
    if as_json:
        print(json.dumps(summary.to_dict(), ensure_ascii=False))
    elif not quiet:
        keeps = options["keep_duplicates"]
        print("\n".join(summary_lines(summary, ends_with_error=has_failed, keep_duplicates=keeps)))
    if has_failed:
        raise GatherError(f"no image was gathered: {no_images_reason(summary)}")
    if not quiet and options.get("shard"):
        print("\nnext: when all shards have finished, run the same command without --shard", file=sys.stderr)
    elif not quiet:
        print(file=sys.stderr)
        print_next_command("label", out, *(["--leaf"] if any("/" in label for label in summary.classes) else []))


def _gather_images(source: Source, out: Path, tasks: Cluster | Processes | None, **options: Any) -> GatherSummary:
    if tasks:
        from mlimages.gathering import gather_on

        return gather_on(tasks, source, out, **options)
    from mlimages.gathering import gather

    return gather(source, out, **options)


def _print_plan(source: Any, *, as_json: bool) -> None:
    plan: dict[str, int | None] = asyncio.run(source.plan())
    if as_json:
        print(json.dumps({"classes": plan}, ensure_ascii=False))
        return
    for label, count in plan.items():
        print(f"{label:<50} {'unknown' if count is None else count:>9}")
    if not plan:
        raise GatherError(f"nothing to gather: {NO_LINKS}")
    known = [count for count in plan.values() if count is not None]
    total = str(sum(known)) if len(known) == len(plan) else f"{sum(known)} or more" if known else "unknown"
    print(f"{'total of ' + pluralize(len(plan), 'class'):<50} {total:>9}")
