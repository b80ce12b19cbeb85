"""Sub-commands of `gather` for search APIs, and the countdown at rate limits."""

from __future__ import annotations

import asyncio
import sys
import time
from functools import partial
from typing import Any

import typer

from mlimages import gathering
from mlimages.core import escape_unprintable

source_option = partial(typer.Option, rich_help_panel="Source")
QUERIES = typer.Argument(..., metavar="QUERY...", help="Search query, or CLASS=QUERY.")
NO_WAIT = source_option(
    False, "--no-wait", help="Stop at the rate limit instead of waiting; run the same command again to resume."
)
REFRESH = source_option(False, "--refresh", help="Ignore the cached search results of the last day.")


def make_endpoint_option(url: str, help_text: str = "Base URL of the API.") -> Any:
    """Return the option for the base URL of a source."""
    return typer.Option(url, metavar="URL", help=help_text, rich_help_panel="advanced:Source")


def openverse(
    http_options: gathering.GatherOptions,
    queries: list[str] = QUERIES,
    licence: str = source_option("", metavar="NAME,...", help="Licences to accept, such as by,by-sa,cc0,pdm."),
    license_type: str = source_option(
        "", metavar="NAME,...", help="Uses that the licence must permit: commercial, modification."
    ),
    source: str = source_option("", metavar="NAME,...", help="Collections to search, such as flickr,wikimedia."),
    extension: str = source_option("", metavar="NAME,...", help="File types to accept, such as jpg,png."),
    thumbnails: bool = source_option(
        False, "--thumbnails", help="Download thumbnails, 600 pixels wide, instead of the images."
    ),
    no_wait: bool = NO_WAIT,
    refresh: bool = REFRESH,
    endpoint: str = make_endpoint_option("https://api.openverse.org"),
) -> Any:
    """Download openly licensed images by search query.

    Openverse requires no key; without one, it returns at most 240 results per query. OPENVERSE_CLIENT_ID and
    OPENVERSE_CLIENT_SECRET (free: https://api.openverse.org/v1/) raise its limits. The creator and licence of each
    image are in OUT/manifest.jsonl and OUT/ATTRIBUTION.md.

    Example: mlimages gather openverse cat dog --licence by,cc0 --limit 300 -o data/pets
    """
    return gathering.Openverse(
        queries,
        licences=licence,
        filters={"license_type": license_type, "source": source, "extension": extension},
        thumbnails=thumbnails,
        endpoint=endpoint,
        http_options=http_options,
        tell=print_message,
        wait=None if no_wait else show_countdown,
        refresh=refresh,
    )


def inaturalist(
    http_options: gathering.GatherOptions,
    taxa: list[str] = typer.Argument(..., metavar="TAXON...", help="Name or id of a taxon, or CLASS=TAXON."),
    licence: str = source_option("", metavar="NAME,...", help="Licences to accept, such as cc0,by,by-nc."),
    by: str = source_option(None, metavar="RANK", help="Use each subtaxon of this rank, species or genus, as a class."),
    quality: str = source_option("research", help="Quality grade: research, needs_id or casual."),
    place: str = source_option(None, metavar="ID", help="Only observations in this iNaturalist place."),
    size: str = source_option(
        "medium", help="Photo size: square (75 pixels), small (240), medium (500), large (1024) or original."
    ),
    refresh: bool = REFRESH,
    endpoint: str = make_endpoint_option("https://api.inaturalist.org/v1"),
) -> Any:
    """Download openly licensed photos of animals, plants and fungi by taxon.

    iNaturalist requires no key. At most 60 requests per minute and 10,000 per day are sent to its API, and at most
    4.5 GB per hour are downloaded. The observer and licence of each photo are in OUT/manifest.jsonl and
    OUT/ATTRIBUTION.md.

    Example: mlimages gather inaturalist "Apis mellifera" Formicidae --limit 300 -o data/insects
    """
    return gathering.INaturalist(
        taxa,
        licences=licence,
        by=by,
        quality=quality,
        place=place,
        size=size,
        endpoint=endpoint,
        http_options=http_options,
        wait=show_countdown,
        refresh=refresh,
    )


def commons(
    http_options: gathering.GatherOptions,
    queries: list[str] = typer.Argument(..., metavar="QUERY...", help='Search query, "Category:NAME", or CLASS=QUERY.'),
    width: int = source_option(
        960, metavar="PIXELS", help="Width of the images: 20, 40, 60, 120, 250, 330, 500, 960, 1280, 1920 or 3840."
    ),
    originals: bool = source_option(False, "--originals", help="Download the original files, of any size."),
    refresh: bool = REFRESH,
    endpoint: str = make_endpoint_option("https://commons.wikimedia.org/w/api.php"),
) -> Any:
    """Download freely licensed images from Wikimedia Commons by category or search query.

    Wikimedia Commons requires no key, but asks clients for an e-mail address or URL: use --contact. The artist and
    licence of each image are in OUT/manifest.jsonl and OUT/ATTRIBUTION.md.

    Example: mlimages gather commons "Category:Lacerta agilis" --contact me@example.org -o data/lizards
    """
    return gathering.Commons(
        queries,
        width=None if originals else width,
        endpoint=endpoint,
        http_options=http_options,
        tell=print_message,
        wait=show_countdown,
        refresh=refresh,
    )


def pexels(
    http_options: gathering.GatherOptions,
    queries: list[str] = typer.Argument(
        ..., metavar="QUERY...", help='Search query, or CLASS=QUERY ("lizard=lizard reptile").'
    ),
    has_permission: bool = source_option(
        False,
        "--i-have-permission",
        help="Confirm that Pexels has permitted you to use its photos for machine learning.",
    ),
    photo_size: str = source_option(
        "medium", help="Photo size: original, large2x, large, medium, small, portrait, landscape, tiny."
    ),
    orientation: str = source_option(None, help="Orientation: landscape, portrait or square."),
    size: str = source_option(None, help="Minimum size: large (24 MP), medium (12 MP) or small (4 MP)."),
    color: str = source_option(None, help="Colour, by name or as a hexadecimal code."),
    locale: str = source_option(None, help="Language of the query, such as de-DE."),
    no_wait: bool = NO_WAIT,
    refresh: bool = REFRESH,
    endpoint: str = make_endpoint_option("https://api.pexels.com/v1"),
) -> Any:
    """Download photographs from Pexels by search query.

    The API key is read from PEXELS_API_KEY (free: https://www.pexels.com/api/). The terms of Pexels forbid datasets for
    machine learning without permission: ask for permission, then use --i-have-permission. The photographers are named
    in OUT/ATTRIBUTION.md.

    Example: mlimages gather pexels cat dog --limit 300 -o data/pets --i-have-permission
    """
    filters = {"orientation": orientation, "size": size, "color": color, "locale": locale}
    return gathering.Pexels(
        queries,
        photo_size=photo_size,
        filters={name: value for name, value in filters.items() if value},
        i_have_permission=has_permission,
        endpoint=endpoint,
        http_options=http_options,
        wait=None if no_wait else show_countdown,
        refresh=refresh,
    )


def print_message(text: str) -> None:
    """Print a message to standard error, above the progress bar."""
    from tqdm import tqdm

    tqdm.write(f"mlimages: {escape_unprintable(text)}", file=sys.stderr)


_LONG_WAIT_S = 60.0
"""Shortest wait in seconds for which the message also says how to stop."""


async def show_countdown(seconds: float, reason: str) -> None:
    """Print the reason and wait; on a terminal, also show the remaining time."""
    print_message(reason + " (Ctrl-C stops; run the same command again to resume)" * (seconds >= _LONG_WAIT_S))
    until = time.monotonic() + seconds
    while (remaining_s := until - time.monotonic()) > 0:
        if sys.stderr.isatty():
            print(f"\r  {int(remaining_s) // 60}:{int(remaining_s) % 60:02} left ", end="", file=sys.stderr, flush=True)
        await asyncio.sleep(min(1.0, remaining_s))
    if sys.stderr.isatty():
        print("\r" + " " * 14, end="\r", file=sys.stderr, flush=True)
