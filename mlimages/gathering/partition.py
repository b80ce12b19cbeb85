"""Assign links to shards; the assignment depends only on the list of links and the number of shards.

The links of a host are usually in one shard. With N shards, a host with more than 1/N of all links (and at least 20
links) is spread over several shards, each with an equal part of the concurrent requests to it and of its rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlimages.gathering.links import hash_link, parse_host

MAX_SHARDS_PER_HOST = 4
"""Maximum number of shards over which the links of a host are spread; each of these shards requests robots.txt."""

_MIN_LINKS_PER_SHARD = 10
"""Minimum average number of links of a host in the shards over which it is spread."""

_MAX_COUNTED_HOSTS = 20_000


@dataclass(frozen=True, slots=True)
class LinkPartition:
    """The links of one of several shards.

    Attributes:
        shard_number: number of the shard, 1 to `num_shards`.
        num_shards: number of shards.
        num_shards_by_host: number of shards by host, for each host whose links are spread over several shards.
        max_requests_per_host: maximum number of concurrent requests to a host, over all shards.
    """

    shard_number: int = 1
    num_shards: int = 1
    num_shards_by_host: Mapping[str, int] = field(default_factory=dict)
    max_requests_per_host: int = 8

    def is_in_shard(self, url: str) -> bool:
        """Return whether the link belongs to this shard."""
        return self.num_shards == 1 or choose_shard(url, self.num_shards, self.num_shards_by_host) == self.shard_number

    def count_shards_of_host(self, url: str) -> int:
        """Return the number of shards over which the links of this host are spread."""
        return self.num_shards_by_host.get(_normalize_host(url), 1) if self.num_shards_by_host else 1

    def max_concurrent_requests(self, url: str) -> int:
        """Return the maximum number of concurrent requests of this shard to the link's host.

        It is 0 for some shards of a host that is spread over more than `max_requests_per_host` shards. Such shards skip
        the links of the host. The run without --shard that merges the shards downloads them.
        """
        parts = self.count_shards_of_host(url)
        if parts == 1:
            return self.max_requests_per_host
        number = (self.shard_number - 1 - hash_link("", _normalize_host(url))) % self.num_shards
        return (self.max_requests_per_host + parts - 1 - number % parts) // parts


NO_PARTITION = LinkPartition()
"""The partition of a run without shards, which contains all links."""


def choose_shard(url: str, num_shards: int, num_shards_by_host: Mapping[str, int] | None = None) -> int:
    """Return the number of the shard that gathers a link, from 1 to `num_shards` (see `LinkPartition`)."""
    host = _normalize_host(url)
    number = hash_link("", url if host == "(none)" else host)
    if num_shards_by_host and host in num_shards_by_host:
        number += hash_link("", url) % num_shards_by_host[host]
    return number % num_shards + 1


class LinkCountsByHost:
    """Counts links by host; of very many hosts, only those with many links are kept (Misra and Gries, 1982)."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._total = 0

    def add(self, url: str) -> None:
        """Add 1 to the count of the link's host."""
        self._counts[_normalize_host(url)] += 1
        self._total += 1
        if len(self._counts) > _MAX_COUNTED_HOSTS:
            self._counts = Counter({host: count - 1 for host, count in self._counts.items() if count > 1})

    def count_shards_by_host(self, num_shards: int) -> dict[str, int]:
        """Return the number of shards for each host whose links are to be spread over several shards."""
        parts = {
            host: min(
                MAX_SHARDS_PER_HOST, num_shards, -(-count * num_shards // self._total), count // _MIN_LINKS_PER_SHARD
            )
            for host, count in self._counts.items()
            if host != "(none)"
        }
        return {host: number for host, number in parts.items() if number > 1}


def _normalize_host(url: str) -> str:
    """Return the host of a link in lower case and ASCII (IDNA), with its port unless that is 80 or 443."""
    host = parse_host(url).lower().removesuffix(":80").removesuffix(":443")
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")  # as the host is named in requests
    except UnicodeError:
        return host
