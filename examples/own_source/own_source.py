"""A gather source of one's own: images that a JSON catalogue lists.

python own_source.py https://museum.example/catalogue.json -o data/museum
"""

import argparse
from collections.abc import AsyncIterator

import aiohttp

from mlimages import ImageRef, gather


class Catalogue:
    """Entries such as {"image": URL, "kind": "vase", "artist": "unknown"}."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def __aiter__(self) -> AsyncIterator[ImageRef]:
        async with aiohttp.ClientSession() as session, session.get(self.url) as answer:
            for entry in await answer.json():
                yield ImageRef(entry["image"], label=entry["kind"], source={"artist": entry["artist"]})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--allow-private", action="store_true", help="the catalogue lies on this machine")
    args = parser.parse_args()
    summary = gather(Catalogue(args.url), args.out, allow_private=args.allow_private)
    for kind, count in sorted(summary.classes.items()):
        print(f"{kind:12} {count:5} images")
    for reason, count in summary.reasons.items():
        print(f"{reason:12} {count:5} links")
