"""Images from Wikimedia Commons by category or search query."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from mlimages.core import ImageRef, InputError
from mlimages.gathering.options import GatherOptions
from mlimages.gathering.sources.queries import parse_queries
from mlimages.gathering.sources.search_api import SearchApi, Wait, json_objects, options_for_endpoint, sleep

ENDPOINT = "https://commons.wikimedia.org/w/api.php"
WIDTHS = (20, 40, 60, 120, 250, 330, 500, 960, 1280, 1920, 3840)
"""Standard widths of thumbnails in pixels; Commons rejects other widths from programs."""
_PER_PAGE = 50  # maximum number of scaled images per response
_CATEGORY = "Category:"
_CONTACT = (
    "Wikimedia asks for contact information in the User-Agent and may refuse requests without it: set --contact to "
    "an e-mail address or a web page"
)
_EXTMETADATA = ("LicenseShortName", "LicenseUrl", "Artist", "Credit", "ImageDescription")


class Commons:
    """Source of openly licensed images from Wikimedia Commons; no key is needed.

    Args:
        queries: search queries, or `Category:NAME`; `label=query` sets the class name.
        width: width of the thumbnails in pixels, one of `WIDTHS`; None for the originals.
        tell: called with notes for the user before the first request.
        wait, refresh: see `SearchApi`.

    Raises:
        InputError: Commons does not offer this width.
    """

    lookahead = 0

    def __init__(
        self,
        queries: Sequence[str],
        *,
        width: int | None = 960,
        endpoint: str = ENDPOINT,
        http_options: GatherOptions | None = None,
        tell: Callable[[str], None] = lambda text: None,
        wait: Wait = sleep,
        refresh: bool = False,
    ) -> None:
        if width is not None and width not in WIDTHS:
            raise InputError(f"width is {width}: expected one of {', '.join(map(str, WIDTHS))}")
        self._classes = {
            label.removeprefix(_CATEGORY).strip(): query for label, query in parse_queries(queries).items()
        }
        self._width = width
        self._url = endpoint
        http_options = options_for_endpoint(endpoint, ENDPOINT, http_options or GatherOptions())
        self._has_contact = http_options.contact is not None
        self._tell = tell
        self._api = SearchApi("Commons", http_options=http_options, refusal_advice=_CONTACT, wait=wait, refresh=refresh)
        self._full: set[str] = set()

    def enough(self, label: str) -> None:
        """Request no more pages of this class."""
        self._full.add(label)

    async def plan(self) -> dict[str, int | None]:
        """Return the classes; Commons does not report the number of images."""
        return dict.fromkeys(self._classes)

    async def __aiter__(self) -> AsyncIterator[ImageRef]:
        if not self._has_contact:
            self._tell(_CONTACT)
        async with self._api:
            for label, query in self._classes.items():
                async for image_ref in self._images(label, query):
                    yield image_ref

    async def _images(self, label: str, query: str) -> AsyncIterator[ImageRef]:
        following: dict[str, str] = {}
        while label not in self._full:
            answer = await self._api.get(self._url, {**self._make_query_params(query), **following}) or {}
            found = answer.get("query")
            for page in json_objects(found.get("pages") if isinstance(found, dict) else None):
                for info in json_objects(page.get("imageinfo"))[:1]:
                    if label not in self._full and str(info.get("mime")).startswith("image/"):
                        yield self._make_image_ref(page, info, label)
            if not isinstance(answer.get("continue"), dict):
                return
            following = {name: str(value) for name, value in answer["continue"].items()}

    def _make_query_params(self, query: str) -> dict[str, str]:
        params = {
            "action": "query",
            "format": "json",
            "formatversion": "2",
            "maxlag": "5",
            "prop": "imageinfo",
            "iiprop": "url|mime|extmetadata",
            "iiextmetadatafilter": "|".join(_EXTMETADATA),
        }
        if self._width:
            params["iiurlwidth"] = str(self._width)
        if query.startswith(_CATEGORY):
            return params | {
                "generator": "categorymembers", "gcmtitle": query, "gcmtype": "file", "gcmlimit": str(_PER_PAGE),
            }  # fmt: skip
        return params | {
            "generator": "search", "gsrsearch": f"{query} filetype:bitmap", "gsrnamespace": "6",
            "gsrlimit": str(_PER_PAGE),
        }  # fmt: skip

    def _make_image_ref(self, page: Mapping[str, Any], image_info: Mapping[str, Any], label: str) -> ImageRef:
        metadata = image_info.get("extmetadata")
        texts = {name: _plain_text(metadata, name) for name in _EXTMETADATA}
        title, link = str(page.get("title")), image_info.get("descriptionurl")
        artist = texts["Artist"] or texts["Credit"] or "unknown"
        licence = f"[{texts['LicenseShortName'] or 'see its page'}]({texts['LicenseUrl'] or link})"
        source = {
            "provider": "Wikimedia Commons",
            "id": page.get("pageid"),
            "title": title,
            "creator": texts["Artist"],
            "license": texts["LicenseShortName"],
            "license_url": texts["LicenseUrl"],
            "description": texts["ImageDescription"],
            "foreign_landing_url": link,
            "attribution": f"[{title.removeprefix('File:')}]({link}) by {artist}, {licence}",
        }
        return ImageRef(
            str(image_info.get("thumburl" if self._width else "url") or image_info.get("url") or ""),
            label,
            source,
            name=f"commons-{page.get('pageid')}",
        )


def _plain_text(metadata: object, name: str) -> str:
    """Return a value of extmetadata, which is HTML, as one line of text."""
    entry = metadata.get(name) if isinstance(metadata, dict) else None
    value = str(entry.get("value") or "") if isinstance(entry, dict) else ""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", value)).split())
