"""Commands of `gather` for search APIs, and waiting at rate limits."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import typer

from mlimages.gathering import GatherOptions

_REFRESH = typer.Option(
    False, "--refresh", help="Ignore search results cached during the last day.", rich_help_panel="Source"
)


def openverse(
    http_options: GatherOptions,
    queries: list[str] = typer.Argument(..., metavar="QUERY...", help="Search query, or CLASS=QUERY."),
    licence: str = typer.Option(
        "", metavar="NAME,...", help="Licences to accept: by,by-sa,cc0,pdm ...", rich_help_panel="Source"
    ),
    license_type: str = typer.Option(
        "",
        metavar="NAME,...",
        help="Uses that the licence must allow: commercial, modification.",
        rich_help_panel="Source",
    ),
    source: str = typer.Option(
        "", metavar="NAME,...", help="Collections to search: flickr, wikimedia ...", rich_help_panel="Source"
    ),
    extension: str = typer.Option(
        "", metavar="NAME,...", help="File types to accept: jpg, png ...", rich_help_panel="Source"
    ),
    thumbnails: bool = typer.Option(
        False, "--thumbnails", help="Download thumbnails (600 pixels wide).", rich_help_panel="Source"
    ),
    no_wait: bool = typer.Option(
        False,
        "--no-wait",
        help="Stop at the rate limit instead of waiting; run the same command again to resume.",
        rich_help_panel="Source",
    ),
    refresh: bool = _REFRESH,
    endpoint: str = typer.Option(
        "https://api.openverse.org", metavar="URL", help="Base URL of the API.", rich_help_panel="rare:Source"
    ),
) -> Any:
    """Download openly licensed images by search query.

    Openverse needs no key, and gives at most 240 results per query without one. OPENVERSE_CLIENT_ID and
    OPENVERSE_CLIENT_SECRET (free: https://api.openverse.org/v1/) raise its limits. Creator and licence of each image
    are in OUT/manifest.jsonl and OUT/ATTRIBUTION.md.

    Example: mlimages gather openverse cat dog --licence by,cc0 --limit 300 -o data/pets
    """
    from mlimages.gathering import Openverse

    return Openverse(
        queries,
        licences=licence,
        filters={"license_type": license_type, "source": source, "extension": extension},
        thumbnails=thumbnails,
        endpoint=endpoint,
        http_options=http_options,
        tell=print_message,
        wait=None if no_wait else count_down,
        refresh=refresh,
    )


def inaturalist(
    http_options: GatherOptions,
    taxa: list[str] = typer.Argument(..., metavar="TAXON...", help="Names or ids of taxa, or CLASS=TAXON."),
    licence: str = typer.Option(
        "", metavar="NAME,...", help="Licences of the photos to accept: cc0,by,by-nc ...", rich_help_panel="Source"
    ),
    by: str = typer.Option(
        None,
        metavar="RANK",
        help="Use each subtaxon of this rank as a class: species or genus.",
        rich_help_panel="Source",
    ),
    quality: str = typer.Option(
        "research", help="Quality grade of the observations: research, needs_id, casual.", rich_help_panel="Source"
    ),
    place: str = typer.Option(
        None, metavar="ID", help="iNaturalist place id of the observations.", rich_help_panel="Source"
    ),
    size: str = typer.Option(
        "medium",
        help="Photo size: square (75 pixels), small (240), medium (500), large (1024) or original.",
        rich_help_panel="Source",
    ),
    refresh: bool = _REFRESH,
    endpoint: str = typer.Option(
        "https://api.inaturalist.org/v1", metavar="URL", help="Base URL of the API.", rich_help_panel="rare:Source"
    ),
) -> Any:
    """Download openly licensed photos of animals, plants and fungi by taxon.

    iNaturalist needs no key. At most 60 requests a minute are sent, and 4.5 GB an hour are downloaded. Observer and
    licence of each photo are in OUT/manifest.jsonl and OUT/ATTRIBUTION.md.

    Example: mlimages gather inaturalist "Apis mellifera" Formicidae --limit 300 -o data/insects
    """
    from mlimages.gathering import INaturalist

    return INaturalist(
        taxa,
        licences=licence,
        by=by,
        quality=quality,
        place=place,
        size=size,
        endpoint=endpoint,
        http_options=http_options,
        wait=count_down,
        refresh=refresh,
    )


def commons(
    http_options: GatherOptions,
    queries: list[str] = typer.Argument(..., metavar="QUERY...", help='Search query, "Category:NAME", or CLASS=QUERY.'),
    width: int = typer.Option(
        960,
        metavar="PIXELS",
        help="Width: 20, 40, 60, 120, 250, 330, 500, 960, 1280, 1920 or 3840.",
        rich_help_panel="Source",
    ),
    originals: bool = typer.Option(
        False, "--originals", help="Download the original files, of any size.", rich_help_panel="Source"
    ),
    refresh: bool = _REFRESH,
    endpoint: str = typer.Option(
        "https://commons.wikimedia.org/w/api.php",
        metavar="URL",
        help="Base URL of the API.",
        rich_help_panel="rare:Source",
    ),
) -> Any:
    """Download freely licensed images from Wikimedia Commons by category or search query.

    Commons needs no key, and asks for --contact. Artist and licence of each image are in OUT/manifest.jsonl and
    OUT/ATTRIBUTION.md.

    Example: mlimages gather commons "Category:Lacerta agilis" --contact me@example.org -o data/lizards
    """
    from mlimages.gathering import Commons

    return Commons(
        queries,
        width=None if originals else width,
        endpoint=endpoint,
        http_options=http_options,
        tell=print_message,
        wait=count_down,
        refresh=refresh,
    )


def pexels(
    http_options: GatherOptions,
    queries: list[str] = typer.Argument(
        ..., metavar="QUERY...", help='Search query, or CLASS=QUERY ("lizard=lizard reptile").'
    ),
    has_permission: bool = typer.Option(
        False,
        "--i-have-permission",
        help="Confirm that Pexels has permitted you to use its photos for machine learning.",
        rich_help_panel="Source",
    ),
    photo_size: str = typer.Option(
        "medium",
        help="Photo size: original, large2x, large, medium, small, portrait, landscape, tiny.",
        rich_help_panel="Source",
    ),
    orientation: str = typer.Option(None, help="Orientation: landscape, portrait or square.", rich_help_panel="Source"),
    size: str = typer.Option(
        None, help="Minimum size: large (24 MP), medium (12 MP) or small (4 MP).", rich_help_panel="Source"
    ),
    color: str = typer.Option(None, help="Colour, by name or as a hexadecimal code.", rich_help_panel="Source"),
    locale: str = typer.Option(None, help="Language of the query, such as de-DE.", rich_help_panel="Source"),
    no_wait: bool = typer.Option(
        False,
        "--no-wait",
        help="Stop at the rate limit instead of waiting an hour; run the same command again to resume.",
        rich_help_panel="Source",
    ),
    refresh: bool = _REFRESH,
    endpoint: str = typer.Option(
        "https://api.pexels.com/v1", metavar="URL", help="Base URL of the API.", rich_help_panel="rare:Source"
    ),
) -> Any:
    """Download photographs from Pexels by search query.

    The key is read from PEXELS_API_KEY (free: https://www.pexels.com/api/). Pexels' terms forbid datasets for machine
    learning without its permission: ask for it, then pass --i-have-permission. Photographers are named in
    OUT/ATTRIBUTION.md.

    Example: mlimages gather pexels cat dog --limit 300 -o data/pets --i-have-permission
    """
    from mlimages.gathering import Pexels

    filters = {"orientation": orientation, "size": size, "color": color, "locale": locale}
    return Pexels(
        queries,
        photo_size=photo_size,
        filters={name: value for name, value in filters.items() if value},
        i_have_permission=has_permission,
        endpoint=endpoint,
        http_options=http_options,
        wait=None if no_wait else count_down,
        refresh=refresh,
    )


def print_message(text: str) -> None:
    """Print a message to standard error, above the progress bar."""
    from tqdm import tqdm

    tqdm.write(f"mlimages: {text}", file=sys.stderr)


_LONG_S = 60.0
"""Shortest wait whose message says how to stop."""


async def count_down(seconds: float, reason: str) -> None:
    """Sleep, and show the remaining time on standard error."""
    print_message(reason + " (Ctrl-C stops; run the same command again to resume)" * (seconds >= _LONG_S))
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if sys.stderr.isatty():
            print(f"\r  {int(left) // 60}:{int(left) % 60:02} left ", end="", file=sys.stderr, flush=True)
        await asyncio.sleep(min(1.0, left))
    if sys.stderr.isatty():
        print("\r" + " " * 14, end="\r", file=sys.stderr, flush=True)
