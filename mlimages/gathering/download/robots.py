"""Rules of websites in robots.txt and /.well-known/tdmrep.json, which are requested once per site."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from mlimages.core import RETRYABLE_REASONS, Reason
from mlimages.gathering.download.opt_outs import PRODUCT_TOKEN, has_preference, parse_tdmrep, path_matches
from mlimages.gathering.download.reasons import DownloadError, classify_error

if TYPE_CHECKING:
    from protego import Protego

_TRAINING_FIELDS = (("Content-Signal", "ai-train", "no"), ("Content-Usage", "train-ai", "n"))
"""Fields of robots.txt that may forbid training, each with the key and the value that do so."""
_RULE_FIELDS = {"allow", "disallow", *(title.lower() for title, _, _ in _TRAINING_FIELDS)}
_MAX_FILE_BYTES = 500 * 1024  # maximum size of a robots.txt (RFC 9309, 2.5)
_MAX_REDIRECTS = 5
_MIN_RETRY_INTERVAL_S = 1.0
"""Seconds after which a robots.txt that could not be read is requested again."""
_MAX_CACHED_SITES = 20_000


@dataclass(frozen=True, slots=True)
class SiteRules:
    """The rules of one site.

    Attributes:
        access_rules: Allow and Disallow rules of robots.txt; None if everything is allowed.
        training_rules: rules of robots.txt about training, as (path pattern, whether training is forbidden), by kind of
            entry. The key is the form of the entry that forbids training, such as `Content-Signal: ai-train=no`; its
            rules include entries that allow training.
        tdm_rules: rules of tdmrep.json, as (path pattern, whether text and data mining is forbidden).
    """

    access_rules: Protego | None = None
    training_rules: Mapping[str, Sequence[tuple[str, bool]]] = field(default_factory=dict)
    tdm_rules: tuple[tuple[str, bool], ...] = ()

    def find_opt_out(self, url: URL) -> str | None:
        """Return the rule that forbids fetching `url` or training on it; None if there is none."""
        if self.access_rules and not self.access_rules.can_fetch(str(url), PRODUCT_TOKEN):
            return "robots.txt: Disallow"
        path = url.raw_path_qs
        for name, rules in self.training_rules.items():
            matching = [(len(pattern), forbids) for pattern, forbids in rules if path_matches(pattern, path)]
            if max(matching, default=(0, False))[1]:  # the longest pattern; if equal, one that forbids
                return f"robots.txt: {name}"
        if next((forbids for pattern, forbids in self.tdm_rules if path_matches(pattern, path)), False):
            return "tdmrep.json: tdm-reservation"
        return None


def parse_site_rules(robots_txt: str, tdmrep: str = "") -> SiteRules:
    """Parse the robots.txt and the tdmrep.json of a site; an empty text forbids nothing.

    >>> rules = parse_site_rules("User-agent: *\\nContent-Signal: search=yes, ai-train=no")
    >>> rules.find_opt_out(URL("https://example.org/a.jpg"))
    'robots.txt: Content-Signal: ai-train=no'
    """
    lines = _select_lines_for_agent(robots_txt)
    access_rules = None
    if any(name in ("allow", "disallow") for name, _ in lines):
        from protego import Protego

        access_rules = Protego.parse("\n".join(["User-agent: *", *(f"{name}: {value}" for name, value in lines)]))
    training_rules: dict[str, list[tuple[str, bool]]] = {}
    for title, key, value in _TRAINING_FIELDS:
        for name, text in lines:
            if name == title.lower():
                pattern, preferences = (*text.split(None, 1), "")[:2] if text.startswith("/") else ("/", text)
                rule = pattern, has_preference(preferences, key, value)
                training_rules.setdefault(f"{title}: {key}={value}", []).append(rule)
    return SiteRules(access_rules, training_rules, tuple(parse_tdmrep(tdmrep)))


def _select_lines_for_agent(robots_txt: str) -> list[tuple[str, str]]:
    """Return the fields and values for mlimages, or those for all agents if there are none (RFC 9309, 2.2.1).

    Fields about training that precede the first `User-agent` count as fields for all agents.
    """
    groups: dict[str, list[tuple[str, str]]] = {"*": []}
    agents, is_naming, has_begun = {"*"}, False, False
    for line in robots_txt.splitlines():
        name, _, value = (part.strip() for part in line.partition("#")[0].partition(":"))
        name = name.lower()
        if name in ("user-agent", "useragent", "user agent"):
            agents = (agents if is_naming else set()) | {value.lower().partition("/")[0]}
            is_naming = has_begun = True
            for agent in agents:
                groups.setdefault(agent, [])
        elif name in _RULE_FIELDS and (has_begun or name.startswith("content-")):
            is_naming = False
            for agent in agents:
                groups[agent].append((name, value))
    return groups.get(PRODUCT_TOKEN, groups["*"])


class SiteRulesCache:
    """Requests and caches the rules of sites, with a time-out per file; the least recently used are evicted."""

    def __init__(self, session: aiohttp.ClientSession, *, timeout_s: float) -> None:
        self._session = session
        self._timeout_s = timeout_s
        self._rules: OrderedDict[URL, asyncio.Task[SiteRules]] = OrderedDict()

    async def find_opt_out(self, url: URL, on_request: Callable[[], None] = lambda: None) -> str | None:
        """Return the rule that forbids fetching `url` or training on it; None if there is none.

        Args:
            on_request: called before each request.

        Raises:
            DownloadError: robots.txt of the site cannot be read, so the site is not requested (RFC 9309, 2.3.1.4).
        """
        origin = url.origin()
        task = self._rules.get(origin)
        if task is None:
            task = self._rules[origin] = asyncio.create_task(self._request_rules(origin, on_request))
            while len(self._rules) > _MAX_CACHED_SITES:
                self._rules.popitem(last=False)[1].cancel()
        self._rules.move_to_end(origin)
        return (await asyncio.shield(task)).find_opt_out(url)

    async def close(self) -> None:
        """Cancel pending requests."""
        for task in self._rules.values():
            task.cancel()
        await asyncio.gather(*self._rules.values(), return_exceptions=True)

    async def _request_rules(self, origin: URL, on_request: Callable[[], None]) -> SiteRules:
        """Request robots.txt and tdmrep.json of a site; raise DownloadError if robots.txt cannot be read."""
        on_request()
        try:
            robots_txt = await self._request_text(origin / "robots.txt")
        except DownloadError:
            asyncio.get_running_loop().call_later(_MIN_RETRY_INTERVAL_S, self._rules.pop, origin, None)
            raise
        on_request()
        try:
            tdmrep = await self._request_text(origin / ".well-known/tdmrep.json")
        except DownloadError:  # unlike robots.txt, it is optional
            tdmrep = ""
        return parse_site_rules(robots_txt, tdmrep)

    async def _request_text(self, url: URL) -> str:
        """Return the text of the file at `url`; empty for statuses such as 404 and 403, and endless redirects.

        Raises:
            DownloadError: the host cannot be reached, or answers 429 or 5xx.
        """
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._session.get(
                    url, max_redirects=_MAX_REDIRECTS, headers={"Accept": "text/plain,application/json,*/*;q=0.5"}
                ) as response,
            ):
                if response.status == 429 or response.status >= 500:  # there may be rules, but they are unavailable now
                    raise DownloadError(Reason.SERVER_ERROR, f"{url.path}: HTTP {response.status}")
                if response.status != 200:
                    return ""
                data = bytearray()
                async for chunk in response.content.iter_any():
                    data += chunk
                    if len(data) >= _MAX_FILE_BYTES:
                        break
                return data[:_MAX_FILE_BYTES].decode("utf-8-sig", "replace")
        except (aiohttp.TooManyRedirects, aiohttp.RedirectClientError):  # counts as no file (RFC 9309, 2.3.1.2)
            return ""
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason, detail = classify_error(error), f"{url.path}: {type(error).__name__}: {error}"[:200]
            is_kept = reason is Reason.BAD_URL or reason in RETRYABLE_REASONS  # bad-url: the host name is invalid
            raise DownloadError(reason if is_kept else Reason.UNREACHABLE, detail) from error
