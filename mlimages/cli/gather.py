"""Commands of the step "gather"."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mlimages.cli.engines import ADDRESS, ENGINE, Engine, cluster_of
from mlimages.cli.hints import say_next
from mlimages.cli.options import GroupedCommand
from mlimages.cli.process import collect_garbage_rarely
from mlimages.core import GatherError, GatherSummary, as_path, counted

if TYPE_CHECKING:
    from mlimages.core import Cluster
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
    for name, command in {"urls": _urls, "imagenet": _imagenet, "openverse": _openverse, "pexels": _pexels}.items():
        sub.command(name, cls=_Command)(command)
    app.add_typer(sub, name="gather", rich_help_panel="gather")


class _Command(GroupedCommand):
    """A command whose `--retry-failed` may stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as ever, with every reason where none is named."""
        following = [*args[1:], "--"]
        alone = (arg == "--retry-failed" and after.startswith("-") for arg, after in zip(args, following, strict=True))
        return super().parse_args(ctx, [f"{arg}=all" if bare else arg for arg, bare in zip(args, alone, strict=True)])


def _common(
    *,
    out: Path = typer.Option(..., "-o", "--out", help="Folder for the pictures and manifest.jsonl."),
    limit: int = typer.Option(None, help="Good pictures per class; it goes on until so many are there."),
    parallel: int = typer.Option(64, help="Requests at one time, by each shard or worker."),
    per_host: int = typer.Option(8, help="Requests at one time to one host, by all shards and workers together."),
    timeout: float = typer.Option(15.0, help="Seconds without progress: no byte, or less than 1 KB/s."),
    connect_timeout: float = typer.Option(10.0, help="Seconds until a host is connected."),
    retries: int = typer.Option(2, help="Further tries after a passing failure (time-out, 429, 5xx)."),
    max_bytes: int = typer.Option(64 * 2**20, help="The longest body, in bytes."),
    max_pixels: int = typer.Option(89_478_485, help="The most pixels, judged before decoding."),
    min_size: int = typer.Option(1, help="The least shorter side, in pixels."),
    resize: int = typer.Option(None, help="Store the shorter side at so many pixels (upright RGB JPEG)."),
    keep_duplicates: bool = typer.Option(False, "--keep-duplicates", help="Keep every copy of the same bytes."),
    retry_failed: str = typer.Option(None, metavar="[REASON,...]", help="Try failed links again: these, or every one."),
    no_retry: bool = typer.Option(False, "--no-retry", help="Leave links that are still open from earlier runs."),
    restore_deleted: bool = typer.Option(
        False, "--restore-deleted", help="Download images again that were deleted from the folder."
    ),
    keep_deleted: bool = typer.Option(
        False, "--keep-deleted", help="Leave deleted images deleted, however many are missing."
    ),
    allow_private: bool = typer.Option(False, "--allow-private", help="Connect to private and loopback addresses too."),
    ignore_opt_out: bool = typer.Option(False, "--ignore-opt-out", help="Take pictures marked X-Robots-Tag: noai too."),
    user_agent: str = typer.Option(None, help="What to call ourselves; by default mlimages and its version."),
    proxy: str = typer.Option(None, metavar="URL", help="HTTP proxy; by default as HTTP_PROXY and its like say."),
    shard: str = typer.Option(None, metavar="I/N", help="Take the I-th of N parts of the links."),
    engine: Engine = ENGINE,
    address: str = ADDRESS,
    dry_run: bool = typer.Option(False, "--dry-run", help="Show classes and counts, fetch nothing."),
    as_json: bool = typer.Option(False, "--json", help="Print the outcome as JSON."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress bar and no table."),
) -> None:
    """The options that every kind of gathering has."""


def _gathering(make_source: Callable[..., Source]) -> Callable[..., None]:
    """A command from a function that makes a source: its own parameters after the first, then the common ones."""
    common = inspect.signature(_common, eval_str=True).parameters
    own = inspect.signature(make_source, eval_str=True)

    @wraps(make_source)
    def command(**values: Any) -> None:
        chosen = {name: values.pop(name) for name in common}
        _run(partial(make_source, **values), **chosen)

    vars(command).pop("__wrapped__")  # Typer would read the inner function's parameters
    parameters = [*list(own.parameters.values())[1:], *common.values()]
    vars(command)["__signature__"] = own.replace(parameters=parameters, return_annotation=None)
    return command


@_gathering
def _urls(
    network: Any,
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


@_gathering
def _imagenet(
    network: Any,
    words: list[str] = typer.Argument(..., help='WordNet ids or words: n02121808, "domestic cat".'),
    subtree: bool = typer.Option(False, "--subtree", help="Every synset beneath it too, each in its own folder."),
    archive: Path = typer.Option(None, help="Take the pictures from this tar or folder."),
    url_list: Path = typer.Option(None, help="Lines WNID_NUMBER<TAB>URL, such as fall11_urls.txt (.gz, .tgz)."),
    endpoint: str = typer.Option("https://image-net.org", metavar="URL", help="Another address of the same site."),
) -> Any:
    """Gather ImageNet's pictures by WordNet id or word.

    The pictures come by the first way that works: --archive, the site's archive of the synset, the site's list of
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
        network=network,
        tell=_tell,
    )


@_gathering
def _openverse(
    network: Any,
    queries: list[str] = typer.Argument(..., help="Words to search for, or CLASS=WORDS."),
    licence: str = typer.Option("", metavar="NAME,...", help="Only these licences: by,by-sa,cc0,pdm ..."),
    no_wait: bool = typer.Option(False, "--no-wait", help="Stop where it would wait; the same command goes on."),
    endpoint: str = typer.Option("https://api.openverse.org", metavar="URL", help="Another address of the interface."),
) -> Any:
    """Gather openly licensed pictures by search word.

    Openverse needs no key. Creator and licence of each picture are in OUT/manifest.jsonl and OUT/ATTRIBUTION.md.

    Example: mlimages gather openverse cat dog --licence by,cc0 --limit 300 -o data/pets
    """
    from mlimages.gathering import Openverse

    wait = None if no_wait else _count_down
    return Openverse(queries, licences=licence, endpoint=endpoint, network=network, wait=wait)


@_gathering
def _pexels(
    network: Any,
    queries: list[str] = typer.Argument(..., help='Words to search for, or CLASS=WORDS ("lizard=lizard reptile").'),
    i_have_permission: bool = typer.Option(False, "--i-have-permission", help="Pexels allowed you to do this."),
    photo_size: str = typer.Option(
        "medium", help="original, large2x, large, medium, small, portrait, landscape, tiny."
    ),
    orientation: str = typer.Option(None, help="landscape, portrait or square."),
    size: str = typer.Option(None, help="The least size: large (24 MP), medium (12 MP) or small (4 MP)."),
    color: str = typer.Option(None, help="A colour by name, or as a hexadecimal code."),
    locale: str = typer.Option(None, help="The language of the words, such as de-DE."),
    no_wait: bool = typer.Option(
        False, "--no-wait", help="Stop where it would wait an hour; the same command goes on."
    ),
    endpoint: str = typer.Option("https://api.pexels.com/v1", metavar="URL", help="Another address of the interface."),
) -> Any:
    """Gather photographs from Pexels by search word.

    The key is read from PEXELS_API_KEY (free: https://www.pexels.com/api/). Pexels' terms forbid data sets for machine
    learning without its permission: ask for it, then say --i-have-permission. Photographers are named in
    OUT/ATTRIBUTION.md.

    Example: mlimages gather pexels cat dog --limit 300 -o data/pets --i-have-permission
    """
    from mlimages.gathering import Pexels

    filters = {"orientation": orientation, "size": size, "color": color, "locale": locale}
    return Pexels(
        queries,
        photo_size=photo_size,
        filters={name: value for name, value in filters.items() if value},
        i_have_permission=i_have_permission,
        endpoint=endpoint,
        network=network,
        wait=None if no_wait else _count_down,
    )


def _run(
    make_source: Callable[[Any], Source],
    *,
    out: Path,
    engine: Engine,
    address: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **chosen: Any,
) -> None:
    collect_garbage_rarely()
    from mlimages.core import NoProgress, TqdmProgress
    from mlimages.gathering import GatherOptions

    options, out = _options(**chosen), as_path(out)
    source = make_source(GatherOptions(**options))
    if dry_run:
        _print_plan(source, as_json=as_json)
        return
    progress = NoProgress() if quiet else TqdmProgress()
    with cluster_of(engine, address) as cluster:
        summary = _gathered(source, out, cluster, progress=progress, **options)
    if as_json:
        print(json.dumps(summary.to_dict(), ensure_ascii=False))
    elif not quiet:
        print("\n".join(_table(summary)))
    if not summary.ok:
        why = f"{out}/manifest.jsonl says why, link by link" if summary.failed else "there was no link to follow"
        raise GatherError(f"nothing was gathered; {why}")
    if not quiet:
        print(file=sys.stderr)
        say_next("label", out, *(["--leaf"] if any("/" in label for label in summary.classes) else []))


def _gathered(source: Source, out: Path, cluster: Cluster | None, **options: Any) -> GatherSummary:
    if cluster:
        from mlimages.gathering import gather_on

        return gather_on(cluster, source, out, **options)
    from mlimages.gathering import gather

    return gather(source, out, **options)


def _options(
    *, timeout: float, connect_timeout: float, retry_failed: str | None, shard: str | None, **others: Any
) -> dict[str, Any]:
    from mlimages.gathering import parse_reasons, parse_shard

    options = {"timeout_s": timeout, "connect_timeout_s": connect_timeout, **others}
    options["retry_failed"] = parse_reasons(retry_failed) if retry_failed else None
    options["shard"] = parse_shard(shard) if shard else None
    return {name: value for name, value in options.items() if value is not None}


def _print_plan(source: Any, *, as_json: bool) -> None:
    plan: dict[str, int | None] = asyncio.run(source.plan())
    if as_json:
        print(json.dumps({"classes": plan}, ensure_ascii=False))
        return
    for label, count in plan.items():
        print(f"{label:<50} {'not known' if count is None else count:>9}")


def _tell(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"mlimages: {text}", file=sys.stderr)  # above the bar


async def _count_down(seconds: float, why: str) -> None:
    """Wait, with the time that is left on standard error."""
    _tell(f"{why} (Ctrl-C stops, the same command goes on)")
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if sys.stderr.isatty():
            print(f"\r  {int(left) // 60}:{int(left) % 60:02} left ", end="", file=sys.stderr, flush=True)
        await asyncio.sleep(min(1.0, left))
    if sys.stderr.isatty():
        print("\r" + " " * 14, end="\r", file=sys.stderr, flush=True)


def _table(summary: GatherSummary) -> Iterator[str]:
    yield from _counts("good pictures by class", summary.classes)
    yield from _counts("failed links by reason", summary.reasons)
    yield from _counts("failed links by host", summary.hosts)
    near = f" ({summary.near_duplicate} look nearly like another)" if summary.near_duplicate else ""
    again = counted(summary.duplicate, "duplicate")
    yield f"{summary.ok} good{near}, {again}, {summary.failed} failed in {summary.out}"
    if summary.open:
        are_open = "1 link is" if summary.open == 1 else f"{summary.open:,} links are"
        yield f"{are_open} still open: run the same command again"
    if summary.changed:
        yield f"{counted(summary.changed, 'file')} changed since they were gathered: kept"
    if summary.removed:
        yield f"{counted(summary.removed, 'image')} deleted by hand: left so (--restore-deleted downloads them again)"


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
