"""Commands of the step "gather"."""

from __future__ import annotations

import asyncio
import inspect
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from mlimages.cli.engines import ADDRESS, ENGINE, Engine, cluster_of
from mlimages.cli.hints import say_next
from mlimages.cli.options import GroupedCommand, takes_options
from mlimages.cli.process import collect_garbage_rarely
from mlimages.core import GatherError, GatherSummary, as_path, counted
from mlimages.gathering import GatherOptions

if TYPE_CHECKING:
    from mlimages.core import Cluster
    from mlimages.gathering import Source

_ROWS = 15


def register(app: typer.Typer) -> None:
    """Add this step's commands to the command line."""
    sub = typer.Typer(
        cls=_Gather,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help="Download images into one folder per class and verify each.\n\n"
        "What became of each link is in the manifest; the same command again goes on where the last one stopped.",
        epilog="Example: mlimages gather urls links.txt -o data/mine",
    )
    for name, command in {"urls": _urls, "imagenet": _imagenet, "openverse": _openverse, "pexels": _pexels}.items():
        sub.command(name, cls=_Command)(command)
    app.add_typer(sub, name="gather", rich_help_panel="gather")


class _Gather(TyperGroup):
    """Says `gather urls` to who names a list or a link straight away."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, or name the one that takes what was given in its place."""
        first = args[0]
        if first not in self.commands and ("://" in first or Path(first).suffix or Path(first).exists()):
            links = (
                f"echo {shlex.quote(first)} | mlimages gather urls -"
                if "://" in first
                else (f"mlimages gather urls {shlex.join(args)}")
            )
            out = "" if {"-o", "--out"} & set(args) and "://" not in first else " -o FOLDER"
            ctx.fail(f"lists of links are taken by `gather urls`: {links}{out}")
        return super().resolve_command(ctx, args)


class _Command(GroupedCommand):
    """A command whose `--retry-failed` may stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as ever, with every reason where none is named."""
        following = [*args[1:], "--"]
        alone = (arg == "--retry-failed" and after.startswith("-") for arg, after in zip(args, following, strict=True))
        return super().parse_args(ctx, [f"{arg}=all" if bare else arg for arg, bare in zip(args, alone, strict=True)])


def _common(
    *,
    out: Path = typer.Option(
        ..., "-o", "--out", metavar="FOLDER", help="Folder for the images and manifest.jsonl.", rich_help_panel="Output"
    ),
    engine: Engine = ENGINE,
    address: str = ADDRESS,
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print the classes and their links; download nothing.", rich_help_panel="Output"
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the results as JSON.", rich_help_panel="Output"),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress bar and no table.", rich_help_panel="Output"),
) -> None:
    """The options of every gathering that are not those of `GatherOptions`."""


def _gathering(make_source: Callable[..., Source]) -> Callable[..., None]:
    """A command from a function that makes a source: its own parameters after the first, then the common ones."""
    common = inspect.signature(_common, eval_str=True).parameters
    own = inspect.signature(make_source, eval_str=True)

    def body(options: dict[str, Any], **values: Any) -> None:
        chosen = {name: values.pop(name) for name in common}
        _run(partial(make_source, **values), options, **chosen)

    body.__name__, body.__doc__ = make_source.__name__, make_source.__doc__
    vars(body)["__signature__"] = own.replace(parameters=[*own.parameters.values(), *common.values()])
    return takes_options(GatherOptions)(body)


@_gathering
def _urls(
    network: GatherOptions,
    lists: list[Path] = typer.Argument(
        ..., metavar="LIST...", help="Lists: .txt, .csv, .tsv, .jsonl, .parquet; .gz of any; - for stdin."
    ),
    url_col: str = typer.Option(None, help="The column of links, if it has an unusual name.", rich_help_panel="Source"),
    label_col: str = typer.Option(
        None, help="The column of classes, if it has an unusual name.", rich_help_panel="Source"
    ),
) -> Any:  # a Source: its module is not to be imported for the signature
    """Download the images behind lists of links.

    A list is text with a URL a line (or CLASS<TAB>URL), or a table with a column of links and perhaps one of classes.
    Links without a class belong to a class named after their file. Each image is decoded before it is kept, under
    OUT/CLASS/; what became of each link is in OUT/manifest.jsonl.

    Example: mlimages gather urls cats.txt dogs.txt -o data/pets
    """
    from mlimages.gathering import UrlList

    return UrlList(*lists, url_col=url_col, label_col=label_col)


@_gathering
def _imagenet(
    network: GatherOptions,
    words: list[str] = typer.Argument(
        ..., metavar="SYNSET...", help='WordNet ids or words: n02121808, "domestic cat".'
    ),
    subtree: bool = typer.Option(
        False, "--subtree", help="Include every synset below it, each in its own folder.", rich_help_panel="Source"
    ),
    archive: Path = typer.Option(None, help="Tar or folder to read the images from.", rich_help_panel="Source"),
    url_list: Path = typer.Option(
        None, help="Lines WNID_NUMBER<TAB>URL, such as fall11_urls.txt (.gz, .tgz).", rich_help_panel="Source"
    ),
    endpoint: str = typer.Option(
        "https://image-net.org", metavar="URL", help="Address of the site.", rich_help_panel="rare:Source"
    ),
) -> Any:
    """Download ImageNet's images by WordNet id or word.

    The images come from the first of these that has them: --archive, the site's archive of the synset, the site's
    list of links, --url-list. Folders are named by the synset's first word: domestic_cat/persian_cat.

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
    network: GatherOptions,
    queries: list[str] = typer.Argument(..., metavar="QUERY...", help="Words to search for, or CLASS=WORDS."),
    licence: str = typer.Option(
        "", metavar="NAME,...", help="Only these licences: by,by-sa,cc0,pdm ...", rich_help_panel="Source"
    ),
    no_wait: bool = typer.Option(
        False,
        "--no-wait",
        help="Stop at the rate limit instead of waiting; the same command goes on.",
        rich_help_panel="Source",
    ),
    endpoint: str = typer.Option(
        "https://api.openverse.org", metavar="URL", help="Address of the API.", rich_help_panel="rare:Source"
    ),
) -> Any:
    """Download openly licensed images by search word.

    Openverse needs no key. Creator and licence of each image are in OUT/manifest.jsonl and OUT/ATTRIBUTION.md.

    Example: mlimages gather openverse cat dog --licence by,cc0 --limit 300 -o data/pets
    """
    from mlimages.gathering import Openverse

    wait = None if no_wait else _count_down
    return Openverse(queries, licences=licence, endpoint=endpoint, network=network, wait=wait)


@_gathering
def _pexels(
    network: GatherOptions,
    queries: list[str] = typer.Argument(
        ..., metavar="QUERY...", help='Words to search for, or CLASS=WORDS ("lizard=lizard reptile").'
    ),
    i_have_permission: bool = typer.Option(
        False, "--i-have-permission", help="Confirm that Pexels allowed it.", rich_help_panel="Source"
    ),
    photo_size: str = typer.Option(
        "medium", help="original, large2x, large, medium, small, portrait, landscape, tiny.", rich_help_panel="Source"
    ),
    orientation: str = typer.Option(None, help="landscape, portrait or square.", rich_help_panel="Source"),
    size: str = typer.Option(
        None, help="Minimum size: large (24 MP), medium (12 MP) or small (4 MP).", rich_help_panel="Source"
    ),
    color: str = typer.Option(None, help="Colour, by name or as a hexadecimal code.", rich_help_panel="Source"),
    locale: str = typer.Option(None, help="Language of the words, such as de-DE.", rich_help_panel="Source"),
    no_wait: bool = typer.Option(
        False,
        "--no-wait",
        help="Stop at the rate limit instead of waiting an hour; the same command goes on.",
        rich_help_panel="Source",
    ),
    endpoint: str = typer.Option(
        "https://api.pexels.com/v1", metavar="URL", help="Address of the API.", rich_help_panel="rare:Source"
    ),
) -> Any:
    """Download photographs from Pexels by search word.

    The key is read from PEXELS_API_KEY (free: https://www.pexels.com/api/). Pexels' terms forbid datasets for machine
    learning without its permission: ask for it, then give --i-have-permission. Photographers are named in
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
    make_source: Callable[[GatherOptions], Source],
    options: dict[str, Any],
    *,
    out: Path,
    engine: Engine,
    address: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    collect_garbage_rarely()
    from mlimages.core import NoProgress, TqdmProgress

    out = as_path(out)
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
