"""Commands of the step "gather"."""

from __future__ import annotations

import asyncio
import inspect
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from mlimages.cli.engines import ADDRESS, ENGINE, Engine, open_cluster
from mlimages.cli.gather_search import commons, inaturalist, openverse, pexels, print_message
from mlimages.cli.hints import print_next_command
from mlimages.cli.options import GroupedCommand, takes_options
from mlimages.cli.process import raise_gc_threshold
from mlimages.core import GatherError, GatherSummary, InputError, Reason, as_path, counted
from mlimages.gathering import GatherOptions

if TYPE_CHECKING:
    from mlimages.core import Cluster, Processes
    from mlimages.gathering import Source

_ROWS = 15
_IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic")
_HINTS = {
    Reason.OPT_OUT: "--ignore-opt-out downloads images whose site or metadata opts out",
    Reason.HTML: "the hosts returned web pages instead of images: they require a login or block the requests",
    Reason.FORBIDDEN: "the hosts refuse the requests: use --contact, or --header for a Referer, and --retry-failed "
    "forbidden",
    Reason.NAME_SERVER: "no name server responds: is the network up?",
    Reason.UNREACHABLE: "is the network up?",
    Reason.PROXY: "the HTTP proxy does not respond, or refuses: see --proxy",
    Reason.TOO_SMALL: "--min-size sets the minimum length of the shorter side",
}
"""Advice if most links fail for this reason."""
_REMEDIES = {
    Reason.PRIVATE_ADDRESS: "the address is private: add --allow-private",
    Reason.UNKNOWN_HOST: "the host name does not exist: correct the link",
}
"""Advice for unfinished links for which the same command would fail again."""
_AGAIN = "run the same command again"
_NO_LINKS = "the source has no links"


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
        following = [*args[1:], "--"]
        alone = (arg == "--retry-failed" and after.startswith("-") for arg, after in zip(args, following, strict=True))
        return super().parse_args(ctx, [f"{arg}=all" if bare else arg for arg, bare in zip(args, alone, strict=True)])


def _common_options(
    *,
    out: Path = typer.Option(
        ..., "-o", "--out", metavar="FOLDER", help="Folder for the images and manifest.jsonl.", rich_help_panel="Output"
    ),
    engine: Engine = ENGINE,
    address: str = ADDRESS,
    workers: int = typer.Option(
        1, min=1, metavar="N", help="Number of processes on this machine.", rich_help_panel="Download"
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
        print("\n".join(_summary_lines(summary, ends_with_error=has_failed)))
    if has_failed:
        raise GatherError(f"no image was gathered: {_no_images_reason(summary)}")
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
        raise GatherError(f"nothing to gather: {_NO_LINKS}")
    known = [count for count in plan.values() if count is not None]
    total = str(sum(known)) if len(known) == len(plan) else f"{sum(known)} or more" if known else "unknown"
    print(f"{'total of ' + counted(len(plan), 'class'):<50} {total:>9}")


def _no_images_reason(summary: GatherSummary) -> str:
    if not summary.failed:
        return _NO_LINKS
    advice = [*_hints(summary), *(_remedies(summary) if summary.open else [])]
    if summary.open == summary.failed:
        which = "the only link is" if summary.open == 1 else f"all {summary.open} links are"
        return f"{which} unfinished: {'; '.join(advice)}"
    return "; ".join([*advice, f"see {summary.out}/manifest.jsonl for the reason of each link"])


def _hints(summary: GatherSummary) -> list[str]:
    """Return the advice for the most frequent reason if most links failed."""
    reason = next(iter(summary.reasons), "") if summary.failed > summary.ok else ""
    return [_HINTS[Reason(reason)]] if reason in _HINTS else []


def _remedies(summary: GatherSummary) -> list[str]:
    """Return what to do about the unfinished links; running the same command again, if it helps, comes last."""
    counts = {reason: summary.reasons.get(reason, 0) for reason in _REMEDIES}
    found = [f"{_REMEDIES[reason]} ({counted(count, 'link')})" for reason, count in counts.items() if count]
    return found + [_AGAIN] * (summary.open > sum(counts.values()) or not found)


def _summary_lines(summary: GatherSummary, *, ends_with_error: bool) -> Iterator[str]:
    """Yield the lines of the summary; an error that follows has the advice about failed links."""
    if summary.failed > summary.ok and summary.reasons:
        reason, count = next(iter(summary.reasons.items()))
        hint = "" if ends_with_error else "".join(f" ({hint})" for hint in _hints(summary))
        links = summary.failed + summary.ok + summary.duplicate
        yield f"{summary.failed} of {links} links failed; {reason}: {count}{hint}\n"
    yield from _count_lines("images by class", summary.classes)
    yield from _count_lines("failed links by reason", summary.reasons)
    yield from _count_lines("failed links by host", summary.hosts)
    near = f" ({summary.near_duplicate} of them near-duplicates)" if summary.near_duplicate else ""
    again = counted(summary.duplicate, "duplicate")
    yield f"{summary.ok} good{near}, {again}, {summary.failed} failed in {summary.out}"
    if summary.ok and not summary.fetched and not summary.open:
        yield "nothing was left to download: an earlier run finished every link"
    if summary.open:
        are_open = "1 link is" if summary.open == 1 else f"{summary.open:,} links are"
        remedies = [] if ends_with_error else _remedies(summary)
        yield ": ".join([f"{are_open} unfinished", *filter(None, ["; ".join(remedies)])])
        if _AGAIN in remedies:
            yield f"  mlimages {shlex.join(arg for arg in sys.argv[1:] if arg != '--no-retry')}"
    for host, pause_s in summary.waits_s.items():
        pause = f"{pause_s:.0f} s" if pause_s < 120 else f"{pause_s / 60:.0f} minutes"
        yield f"{host} asks to wait {pause}, longer than --max-wait"
    if summary.conflicting:
        has = "1 duplicate has" if summary.conflicting == 1 else f"{summary.conflicting} duplicates have"
        yield f"{has} a different class from the image that was kept: see `same_as` in manifest.jsonl"
    if count := summary.reasons.get(Reason.PLACEHOLDER, 0):
        returned = "1 link returned" if count == 1 else f"{count} links returned"
        yield f"{returned} a host's placeholder: --retry-failed placeholder --keep-duplicates keeps such images"
    if summary.changed:
        yield f"{counted(summary.changed, 'file')} kept although changed since the download"
    if summary.moved:
        names = "it" if summary.moved == 1 else "them"
        yield f"{counted(summary.moved, 'image')} moved to the class that the list now gives {names}"
    if summary.unmoved:
        were = "1 image was" if summary.unmoved == 1 else f"{summary.unmoved} images were"
        yield f"{were} edited or moved by hand: kept, although the list now gives another class"
    if summary.removed:
        yield f"{counted(summary.removed, 'image')} deleted by hand: not downloaded again (see --restore-deleted)"


def _count_lines(title: str, counts: Mapping[str, int]) -> Iterator[str]:
    if not counts:
        return
    rows = list(counts.items())
    shown, rest = rows[:_ROWS], rows[_ROWS:]
    yield title
    yield from (f"  {name[:48]:<48} {count:8}" for name, count in shown)
    if rest:
        yield f"  {f'{len(rest)} more':<48} {sum(count for _, count in rest):8}"
    yield ""
