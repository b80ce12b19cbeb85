"""Look-alikes of the providers' APIs, after their documentation: they refuse unknown parameters and enforce limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar
from urllib.parse import parse_qs

from tests.servers import Connection, Reply, Request, Site, answer, photo


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
        "by",
        "by-nc",
        "by-nc-nd",
        "by-nc-sa",
        "by-nd",
        "by-sa",
        "cc0",
        "nc-sampling+",
        "pdm",
        "sampling+",
    }

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
