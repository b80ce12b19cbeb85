"""Look-alikes of the providers' APIs, after their documentation: they refuse unknown parameters and enforce limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, ClassVar
from urllib.parse import parse_qs

from mlimages.core import ImageRef
from mlimages.gathering import Source
from tests.servers import Connection, Reply, Request, Site, answer, photo


def refs(source: Source) -> list[ImageRef]:
    """All links of a source."""

    async def read() -> list[ImageRef]:
        return [ref async for ref in source]

    return asyncio.run(read())


class Waits(list[tuple[float, str]]):
    """What a source waits for, and why; nothing waits."""

    async def __call__(self, seconds: float, reason: str) -> None:
        self.append((seconds, reason))


def as_json(body: object, status: int = 200, **headers: object) -> Reply:
    return answer(json.dumps(body).encode(), status, Content_Type="application/json", **headers)


class Provider:
    """One API on a site; `refuses` is asked before each answer."""

    parameters: ClassVar[dict[str, set[str]]]

    def __init__(self, site: Site) -> None:
        self.site = site
        self.searches: list[Request] = []
        site.fallback = self.image

    def image(self, connection: Connection, request: Request) -> None:
        number = "".join(filter(str.isdigit, request.path)) or "0"
        answer(photo(int(number) % 10_007))(connection, request)

    def serve(self, path: str, reply: Callable[[Request], Reply]) -> None:
        def route(connection: Connection, request: Request) -> None:
            self.searches.append(request)
            unknown = set(request.query) - self.parameters[path]
            if unknown:
                as_json({"detail": f"unknown: {sorted(unknown)}"}, 400)(connection, request)
            else:
                reply(request)(connection, request)

        self.site.routes[path] = route


class OpenverseSite(Provider):
    """Openverse, v1: 20 results a page and 240 a query to anonymous clients, 50 a page with a token.

    Source: its API's parameters and access levels (WordPress/openverse, api/api/constants/restricted_features.py).
    """

    parameters: ClassVar = {
        "/v1/images/": {
            "q", "source", "excluded_source", "license", "license_type", "creator", "tags", "title", "filter_dead",
            "extension", "mature", "category", "aspect_ratio", "size", "page", "page_size",
        },
        "/v1/auth_tokens/token/": set(),
    }  # fmt: skip
    licences: ClassVar = {
        "by", "by-nc", "by-nc-nd", "by-nc-sa", "by-nd", "by-sa", "cc0", "nc-sampling+", "pdm", "sampling+",
    }  # fmt: skip

    def __init__(self, site: Site, total: int, *, depth: int = 240) -> None:
        super().__init__(site)
        self.total, self.depth, self.tokens = total, depth, ["t1"]
        self.serve("/v1/images/", self.search)
        self.serve("/v1/auth_tokens/token/", self.token)

    def token(self, request: Request) -> Reply:
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        if form != {"grant_type": "client_credentials", "client_id": "me", "client_secret": "secret-1"}:
            return as_json({"error": "invalid_client"}, 401)
        token = self.tokens[-1]
        return as_json({"access_token": token, "scope": "read write", "expires_in": 43200, "token_type": "Bearer"})

    def search(self, request: Request) -> Reply:
        sent = request.headers.get("authorization")
        if sent is not None and sent != f"Bearer {self.tokens[-1]}":
            return as_json({"detail": "Invalid token."}, 401)
        query = request.query
        page, size = int(query.get("page", 1)), int(query.get("page_size", 20))
        if size > (50 if sent else 20):
            return as_json({"detail": "page_size"}, 400 if sent else 401)
        if page * size > self.depth + size - 1:
            return as_json({"detail": "depth"}, 400 if sent else 401)
        for licence in query.get("license", "by").split(","):
            if licence not in self.licences:
                return as_json({"detail": f"License '{licence}' does not exist."}, 400)
        count = min(self.total, self.depth)
        results = [self.result(n) for n in range((page - 1) * size, min(page * size, count))]
        pages = -(-count // size)
        return as_json(
            {"result_count": self.total, "page_count": pages, "page_size": size, "page": page, "results": results}
        )

    def result(self, number: int) -> dict[str, Any]:
        return {
            "id": f"id-{number}", "title": "A cat", "url": self.site.url(f"/{number}.jpg"), "creator": "Bo",
            "license": "by", "license_version": "4.0", "license_url": "https://cc/by", "provider": "flickr",
            "foreign_landing_url": "https://page", "thumbnail": self.site.url(f"/v1/images/id-{number}/thumb/"),
        }  # fmt: skip


class PexelsSite(Provider):
    """Pexels, v1: at most 80 photographs a page, and `allowed` requests.

    Source: pexels.com/api/documentation.
    """

    parameters: ClassVar = {"/v1/search": {"query", "orientation", "size", "color", "locale", "page", "per_page"}}
    remaining, reset = 15_000, 1_900_000_000

    def __init__(self, site: Site, total: int, allowed: int = 1000) -> None:
        super().__init__(site)
        self.total, self.allowed = total, allowed
        self.serve("/v1/search", self.search)

    def search(self, request: Request) -> Reply:
        if request.headers.get("authorization") != "secret-key":
            return as_json({"error": "unauthorized"}, 401)
        if self.allowed == 0:
            return answer(b"", 429)
        self.allowed -= 1
        page, size = int(request.query["page"]), int(request.query["per_page"])
        if size > 80:
            return as_json({"error": "per_page"}, 400)
        numbers = range((page - 1) * size, min(page * size, self.total))
        body = {"total_results": self.total, "photos": [self.photograph(n) for n in numbers]}
        body |= {"next_page": "another"} if page * size < self.total else {}
        return as_json(body, X_Ratelimit_Remaining=self.remaining, X_Ratelimit_Reset=self.reset)

    def photograph(self, number: int) -> dict[str, Any]:
        return {
            "id": number, "url": f"https://www.pexels.com/photo/{number}/", "photographer": "Ann B", "alt": "",
            "photographer_url": "https://www.pexels.com/@ann",
            "src": {"medium": self.site.url(f"/{number}.jpg"), "original": self.site.url(f"/{number}.png")},
        }  # fmt: skip


class INaturalistSite(Provider):
    """iNaturalist's API v1: at most 200 observations a page and 100 requests a minute; ids ascend.

    Source: api.inaturalist.org/v1/docs. Each third photo is all rights reserved, though its observation is found.
    """

    parameters: ClassVar = {
        "/v1/taxa": {"q", "is_active", "taxon_id", "parent_id", "rank", "rank_level", "id_above", "id_below",
                     "per_page", "page", "locale", "preferred_place_id", "only_id", "all_names", "order", "order_by"},
        "/v1/observations": {"taxon_id", "photos", "photo_license", "photo_licensed", "license", "per_page", "page",
                             "order", "order_by", "id_above", "id_below", "quality_grade", "place_id", "hrank", "lrank",
                             "captive", "rank", "without_taxon_id", "locale"},
    }  # fmt: skip
    taxa: ClassVar = [
        {"id": 47336, "name": "Formicidae", "rank": "family", "preferred_common_name": "Ants", "is_active": True},
        {"id": 1, "name": "Formica", "rank": "genus", "preferred_common_name": "Wood Ants", "is_active": True},
        {"id": 2, "name": "Formica", "rank": "subgenus", "is_active": True},
        {"id": 47219, "name": "Apis mellifera", "rank": "species", "preferred_common_name": "Western Honey Bee"},
    ]
    found: ClassVar = [
        ("Formica rufa", "species"), ("Formica rufa rufa", "subspecies"), ("Lasius niger", "species"),
        ("Formica", "genus"), ("Formicidae", "family"),
    ]  # fmt: skip

    def __init__(self, site: Site, total: int) -> None:
        super().__init__(site)
        self.total = total
        self.serve("/v1/taxa", self.search_taxa)
        self.serve("/v1/observations", self.search)

    def search_taxa(self, request: Request) -> Reply:
        assert request.query["is_active"] in ("true", "false", "any")
        words = request.query["q"].lower()
        names = ("name", "preferred_common_name")
        results = [taxon for taxon in self.taxa if any(words[:4] in str(taxon.get(name)).lower() for name in names)]
        return as_json({"total_results": len(results), "page": 1, "per_page": 30, "results": results})

    def search(self, request: Request) -> Reply:
        query = request.query
        size, above = int(query.get("per_page", 30)), int(query.get("id_above", 0))
        licences = set(query["photo_license"].split(","))
        known = {"cc0", "cc-by", "cc-by-nc", "cc-by-nd", "cc-by-sa", "cc-by-nc-nd", "cc-by-nc-sa"}
        grades = {"research", "needs_id", "casual"}
        if size > 200 or not licences <= known or query.get("quality_grade", "casual") not in grades:
            return as_json({"error": "Unprocessable Entity", "status": 422}, 422)
        if (query["order_by"], query["order"]) != ("id", "asc"):
            return as_json({"error": "id_above needs an order"}, 422)
        results = [self.observation(n) for n in range(above + 1, self.total + 1)][:size]
        return as_json({"total_results": self.total, "page": 1, "per_page": size, "results": results})

    def observation(self, number: int) -> dict[str, Any]:
        name, rank = self.found[number % len(self.found)]
        codes = ("cc-by", "cc0", None)
        photos = [
            {"id": 10 * number + n, "license_code": code, "url": self.site.url(f"/photos/{10 * number + n}/square.jpg"),
             "attribution": "(c) Ann B, some rights reserved (CC BY)"}
            for n, code in enumerate(codes)
        ]  # fmt: skip
        return {
            "id": number, "uri": f"https://www.inaturalist.org/observations/{number}", "quality_grade": "research",
            "taxon": {"id": number % 5, "name": name, "rank": rank}, "photos": photos,
            "user": {"login": "ann", "name": "Ann B"},
        }  # fmt: skip


class CommonsSite(Provider):
    """The action API of Wikimedia Commons: 50 scaled images an answer, standard widths, a contact in the User-Agent.

    Source: mediawiki.org, API:Imageinfo, API:Categorymembers, API:Search, Manual:Maxlag parameter; User-Agent policy.
    """

    parameters: ClassVar = {
        "/w/api.php": {
            "action", "format", "formatversion", "maxlag", "prop", "iiprop", "iiurlwidth", "iiextmetadatafilter",
            "generator", "gcmtitle", "gcmtype", "gcmlimit", "gcmcontinue", "gsrsearch", "gsrnamespace", "gsrlimit",
            "gsroffset", "continue",
        }
    }  # fmt: skip
    widths: ClassVar = {20, 40, 60, 120, 250, 330, 500, 960, 1280, 1920, 3840}

    def __init__(self, site: Site, total: int) -> None:
        super().__init__(site)
        self.total, self.lags = total, 0
        self.serve("/w/api.php", self.query)

    def query(self, request: Request) -> Reply:
        query = request.query
        if "@" not in request.headers["user-agent"]:
            return answer(b"Please set a user-agent", 403)
        if self.lags and "maxlag" in query:
            self.lags -= 1
            return as_json(
                {"error": {"code": "maxlag", "info": "Waiting for a database: 9 s lagged", "lag": 9}}, Retry_After=5
            )
        if "iiurlwidth" in query and int(query["iiurlwidth"]) not in self.widths:
            return as_json({"error": {"code": "badvalue", "info": "width"}})
        prefix, offset = ("gcm", "gcmcontinue") if query["generator"] == "categorymembers" else ("gsr", "gsroffset")
        if int(query[f"{prefix}limit"]) > 50:
            return as_json({"error": {"code": "toomany", "info": "limit"}})
        start = int(query.get(offset, "0").removeprefix("file|"))
        if start and "continue" not in query:
            return as_json({"error": {"code": "badcontinue", "info": "continue is missing"}})
        stop = min(start + int(query[f"{prefix}limit"]), self.total)
        body: dict[str, Any] = {"batchcomplete": True}
        if stop > start:
            body["query"] = {"pages": [self.page(n, query) for n in range(start, stop)]}
        if stop < self.total:
            body["continue"] = {offset: f"file|{stop}" if prefix == "gcm" else stop, "continue": f"{offset}||"}
        return as_json(body)

    def page(self, number: int, query: dict[str, str]) -> dict[str, Any]:
        metadata = {
            "LicenseShortName": {"value": "CC BY-SA 4.0", "source": "commons-desc-page", "hidden": ""},
            "LicenseUrl": {"value": "https://creativecommons.org/licenses/by-sa/4.0"},
            "Artist": {"value": '<a href="//commons.wikimedia.org/wiki/User:Bo" title="User:Bo">Bo &amp; Co</a>'},
        }
        info = {
            "url": self.site.url(f"/commons/{number}.jpg"), "extmetadata": metadata,
            "descriptionurl": f"https://commons.wikimedia.org/wiki/File:{number}.jpg",
            "mime": "image/jpeg" if number % 10 else "video/webm",
        }  # fmt: skip
        if "iiurlwidth" in query:
            info["thumburl"] = self.site.url(f"/commons/thumb/{number}/x.jpg")
        title = f"File:{number}.jpg"
        return {"pageid": number, "ns": 6, "title": title, "imagerepository": "local", "imageinfo": [info]}
