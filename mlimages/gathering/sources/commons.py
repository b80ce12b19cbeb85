"""Images from Wikimedia Commons, by category or search query."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from mlimages.core import ImageRef
from mlimages.gathering.options import GatherOptions
from mlimages.gathering.sources.search_api import SearchApi, WaitFunction, filter_json_objects, make_http_options, sleep
from mlimages.gathering.sources.search_source import SearchSource, require_allowed

ENDPOINT = "https://commons.wikimedia.org/w/api.php"
THUMBNAIL_WIDTHS_PX = (20, 40, 60, 120, 250, 330, 500, 960, 1280, 1920, 3840)
"""Standard widths of thumbnails in pixels; Commons rejects other widths from programs."""
_RESULTS_PER_PAGE = 50  # maximum number of scaled images per response
_CATEGORY_PREFIX = "Category:"
_CONTACT_ADVICE = (
    "Wikimedia may refuse requests without contact information in the User-Agent: set --contact to an e-mail address "
    "or a web page"
)
_EXTMETADATA_NAMES = ("LicenseShortName", "LicenseUrl", "Artist", "Credit", "ImageDescription")
"""Names of the metadata (`extmetadata` of the API) that are requested."""


class Commons(SearchSource):
    """Source of openly licensed images from Wikimedia Commons; no key is needed.

    Args:
        queries: search queries, or `Category:NAME`; `CLASS=QUERY` sets the class.
        width: width of the thumbnails in pixels, one of `THUMBNAIL_WIDTHS_PX`; None for the originals.
        tell: called with notes for the user before the first request.
        endpoint: URL of the search API; by default the provider's.
        http_options, wait, refresh: see `SearchApi`.

    Raises:
        InputError: `width` is not one of `THUMBNAIL_WIDTHS_PX`.
    """

    def __init__(
        self,
        queries: Sequence[str],
        *,
        width: int | None = 960,
        endpoint: str = ENDPOINT,
        http_options: GatherOptions | None = None,
        tell: Callable[[str], None] = lambda text: None,
        wait: WaitFunction = sleep,
        refresh: bool = False,
    ) -> None:
        require_allowed("width", [] if width is None else [width], THUMBNAIL_WIDTHS_PX)
        self._width = width
        self._url = endpoint
        http_options = make_http_options(endpoint, ENDPOINT, http_options)
        self._has_contact = http_options.contact is not None
        self._tell = tell
        api = SearchApi(
            "Commons", http_options=http_options, refusal_advice=_CONTACT_ADVICE, wait=wait, refresh=refresh
        )
        super().__init__(list(map(_add_class, queries)), api)

    async def _prepare_search(self) -> None:
        if not self._has_contact:
            self._tell(_CONTACT_ADVICE)

    async def _read_pages(self, label: str, query: str) -> AsyncIterator[list[ImageRef]]:
        position: dict[str, str] = {}
        while True:
            answer = await self._api.get(self._url, {**self._make_query_params(query), **position})
            result = answer.get("query")
            yield [
                self._make_image_ref(file, info, label)
                for file in filter_json_objects(result.get("pages") if isinstance(result, dict) else None)
                for info in filter_json_objects(file.get("imageinfo"))[:1]
                if str(info.get("mime")).startswith("image/")
            ]
            if not isinstance(answer.get("continue"), dict):
                return
            position = {name: str(value) for name, value in answer["continue"].items()}

    def _make_query_params(self, query: str) -> dict[str, str]:
        params = {
            "action": "query",
            "format": "json",
            "formatversion": "2",
            "maxlag": "5",
            "prop": "imageinfo",
            "iiprop": "url|mime|extmetadata",
            "iiextmetadatafilter": "|".join(_EXTMETADATA_NAMES),
        }
        if self._width:
            params["iiurlwidth"] = str(self._width)
        if query.startswith(_CATEGORY_PREFIX):
            return params | {
                "generator": "categorymembers", "gcmtitle": query, "gcmtype": "file",
                "gcmlimit": str(_RESULTS_PER_PAGE),
            }  # fmt: skip
        return params | {
            "generator": "search", "gsrsearch": f"{query} filetype:bitmap", "gsrnamespace": "6",
            "gsrlimit": str(_RESULTS_PER_PAGE),
        }  # fmt: skip

    def _make_image_ref(self, page: Mapping[str, Any], image_info: Mapping[str, Any], label: str) -> ImageRef:
        metadata = image_info.get("extmetadata")
        texts = {name: _extract_text(metadata, name) for name in _EXTMETADATA_NAMES}
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


def _add_class(query_text: str) -> str:
    """Return `NAME=Category:NAME` for `Category:NAME`; other texts as they are."""
    text = query_text.strip()
    if text.startswith(_CATEGORY_PREFIX) and "=" not in text:
        return f"{text.removeprefix(_CATEGORY_PREFIX)}={text}"
    return text


def _extract_text(metadata: object, name: str) -> str:
    """Return a value of the metadata, which is HTML, as a line of plain text; "" if there is none."""
    entry = metadata.get(name) if isinstance(metadata, dict) else None
    value = str(entry.get("value") or "") if isinstance(entry, dict) else ""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", value)).split())
