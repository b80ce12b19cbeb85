"""The command `gather` and its sub-commands."""

from __future__ import annotations

import asyncio
import inspect
import shlex
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from mlimages import core, gathering
from mlimages.cli.engines import ADDRESS, ENGINE, Engine, open_cluster
from mlimages.cli.gather_search import (
    commons,
    inaturalist,
    make_endpoint_option,
    openverse,
    pexels,
    print_message,
    source_option,
)
from mlimages.cli.gather_summary import NO_LINKS_MESSAGE, explain_why_no_images, format_summary
from mlimages.cli.hints import print_as_json, print_next_command, print_to_stderr
from mlimages.cli.options import SectionedHelpCommand, takes_options
from mlimages.cli.process import raise_gc_threshold
from mlimages.core import GatherError, InputError, as_path, escape_unprintable, pluralize

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic")


class _GatherGroup(TyperGroup):
    """The command group `gather`; given a URL or a file instead of a sub-command, it suggests `gather urls`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the sub-command, or end with an error that suggests one."""
        first = args[0]
        if first not in self.commands and ("://" in first or Path(first).suffix or Path(first).exists()):
            out = "" if {"-o", "--out"} & set(args) else " -o FOLDER"
            command = f"mlimages gather urls {shlex.join(args)}{out}"
            if "://" in first and Path(first).suffix.lower() in _IMAGE_SUFFIXES:
                command = f"echo {shlex.quote(first)} | mlimages gather urls {shlex.join(['-', *args[1:]])}{out}"
            ctx.fail(f"use `gather urls` for links and lists of links: {command}")
        return super().resolve_command(ctx, args)


class _GatherCommand(SectionedHelpCommand):
    """A command whose option `--retry-failed` may be given without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; `--retry-failed` without a value retries links that failed for any reason."""
        words = [
            f"{arg}=all" if arg == "--retry-failed" and after.startswith("-") else arg
            for arg, after in pairwise([*args, "--"])
        ]
        return super().parse_args(ctx, words)


def _make_command(make_source: Callable[..., Any]) -> Callable[..., None]:
    """Make a command from a function that creates a source, by adding the options of `_run_gather`."""
    _, _, *common = inspect.signature(_run_gather, eval_str=True).parameters.values()
    signature = inspect.signature(make_source, eval_str=True)

    def command(options: dict[str, Any], **values: Any) -> None:
        common_values = {option.name: values.pop(option.name) for option in common}
        _run_gather(partial(make_source, **values), options, **common_values)

    command.__name__, command.__doc__ = make_source.__name__, make_source.__doc__
    parameters = [*signature.parameters.values(), *common]
    vars(command)["__signature__"] = signature.replace(parameters=parameters)
    return takes_options(gathering.GatherOptions)(command)


def urls(
    http_options: gathering.GatherOptions,
    lists: list[str] = typer.Argument(
        ..., metavar="LIST...", help="Files or http(s) URLs: .txt .csv .tsv .json .jsonl .parquet; -: standard input."
    ),
    url_col: str = source_option(
        None, "--url-column", "--url-col", metavar="COLUMN", help="Column of URLs, by name or 1-based number."
    ),
    label_col: str = source_option(
        None, "--label-column", "--label-col", metavar="COLUMN", help="Column of classes, by name or 1-based number."
    ),
    class_name: str = source_option(
        None, "--class", metavar="NAME", help="Class of all images, or, with --label-column, of those without a class."
    ),
) -> Any:  # a Source; its module is not imported for the annotation
    """Download the images in lists of links.

    A list is a text file with one link per line (or CLASS<TAB>LINK), or a table (CSV, TSV, JSON, JSON lines, Parquet,
    COCO) with a column of links and optionally one of classes; it may be compressed. Links without a class belong to a
    class named after their file, those of standard input to `images`. Each image is decoded before it is stored in
    OUT/CLASS/; the result of each link and the other columns are in OUT/manifest.jsonl.

    Example: mlimages gather urls cats.txt dogs.txt -o data/pets
    """
    return gathering.UrlList(
        *lists,
        url_col=url_col,
        label_col=label_col,
        class_name=class_name,
        http_options=http_options,
        tell=print_message,
    )


def imagenet(
    http_options: gathering.GatherOptions,
    synsets: list[str] = typer.Argument(
        ..., metavar="SYNSET...", help='WordNet ids or words: n02121808, "domestic cat".'
    ),
    subtree: bool = source_option(False, "--subtree", help="Include all descendant synsets, each in its own folder."),
    archive: Path = source_option(None, help="Archive (.tar, .tar.gz, .tgz, .zip) or folder of images."),
    url_list: Path = source_option(
        None, help="List of WNID_NUMBER<TAB>URL lines, such as fall11_urls.txt (.gz, .tgz)."
    ),
    endpoint: str = make_endpoint_option("https://image-net.org", "Base URL of the site."),
) -> Any:
    """Download ImageNet's images by WordNet id or word.

    The images are taken from the first of these sources that has the synset: --archive, the archive of image-net.org,
    the list of links of image-net.org, --url-list. A folder is named after the first word of its synset, with the id
    appended if another synset has the same name (crane_n03126707); --subtree nests the folders
    (domestic_cat/persian_cat).

    Example: mlimages gather imagenet n02121808 --subtree --limit 200 -o data/cats
    """
    return gathering.ImageNet(
        synsets,
        with_subtree=subtree,
        archive=archive,
        url_list=url_list,
        endpoint=endpoint,
        http_options=http_options,
        tell=print_message,
    )


def _run_gather(
    make_source: Callable[[gathering.GatherOptions], Any],
    options: dict[str, Any],
    *,
    out: Path = typer.Option(
        ..., "-o", "--out", metavar="FOLDER", help="Folder for the images and manifest.jsonl.", rich_help_panel="Output"
    ),
    engine: Engine = ENGINE,
    address: str = ADDRESS,
    workers: int = typer.Option(
        1,
        min=1,
        max=256,
        metavar="N",
        help="Number of processes on this machine.",
        rich_help_panel="Download",
    ),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print the number of links of each class; download nothing.", rich_help_panel="Output"
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the results as JSON.", rich_help_panel="Output"),
    quiet: bool = typer.Option(
        False, "--quiet", "-q", help="Do not show the progress bar and the summary.", rich_help_panel="Output"
    ),
) -> None:
    """Gather the images of a source; the options are those that all sub-commands share besides `GatherOptions`."""
    raise_gc_threshold()
    out = as_path(out)
    source = make_source(gathering.GatherOptions(**options))
    if dry_run:
        _print_link_counts(source, as_json=as_json)
        return
    progress = core.NoProgress() if quiet else core.TqdmProgress()
    if workers > 1 and engine == "ray":
        raise InputError("--workers cannot be combined with --engine ray, which has its own workers: omit one of them")
    if workers > 1 or engine == "ray":
        gathering.require_shardable(source, gathering.GatherOptions(**options))
    with open_cluster(engine, address) as cluster:
        tasks = cluster or (core.ProcessPool(workers) if workers > 1 else None)
        run = partial(gathering.gather_on, tasks) if tasks else gathering.gather
        summary = run(source, out, progress=progress, **options)
    has_failed = not summary.ok and not options.get("shard")  # a shard may be empty
    if as_json:
        print_as_json(summary.to_dict())
    elif not quiet:
        lines = format_summary(summary, ends_with_error=has_failed, keep_duplicates=options["keep_duplicates"])
        print("\n".join(lines))
    if has_failed:
        raise GatherError(f"no image was gathered: {explain_why_no_images(summary)}")
    if not quiet and options.get("shard"):
        print_to_stderr("\nnext: when all shards have finished, run the same command without --shard")
    elif not quiet:
        print_to_stderr("")
        print_next_command("label", out, *(["--leaf"] if any("/" in label for label in summary.classes) else []))


def _print_link_counts(source: Any, *, as_json: bool) -> None:
    counts: dict[str, int | None] = asyncio.run(source.count_links_by_class())
    if as_json:
        print_as_json({"classes": counts})
        return
    for label, count in counts.items():
        print(f"{escape_unprintable(label):<50} {'unknown' if count is None else count:>9}")
    if not counts:
        raise GatherError(f"nothing to gather: {NO_LINKS_MESSAGE}")
    known = [count for count in counts.values() if count is not None]
    total = str(sum(known)) if len(known) == len(counts) else f"{sum(known)} or more" if known else "unknown"
    print(f"{'total (' + pluralize(len(counts), 'class') + ')':<50} {total:>9}")


app = typer.Typer(
    cls=_GatherGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Download images into one folder per class and verify each.\n\n"
    "The manifest records the result of each link; run the same command again to resume.",
    epilog="Example: mlimages gather urls links.txt -o data/mine",
)
for function in (urls, imagenet, openverse, inaturalist, commons, pexels):
    app.command(function.__name__, cls=_GatherCommand)(_make_command(function))
