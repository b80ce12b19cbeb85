"""Assign links to shards; the assignment depends only on the list of links.

All links of a host are in one shard. Only a host with more than 1/N of the links, for N shards, is spread over several
shards; each of them sends an equal part of the concurrent requests to the host and has an equal part of its rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlimages.gathering.links import hash_link, parse_host

MAX_PARTS = 4
"""Maximum number of shards of a host; each of them requests robots.txt once."""

_MIN_LINKS = 10
"""Minimum number of links of a host in each of its shards."""

_MAX_COUNTED = 20_000


@dataclass(frozen=True, slots=True)
class Partition:
    """The links of one of several shards.

    Attributes:
        shard: number of the shard, 1 to `num_shards`.
        num_shards: number of shards.
        host_parts: number of shards by host, for each host whose links are spread over several shards.
        per_host: maximum number of concurrent requests to a host, over all shards.
    """

    shard: int = 1
    num_shards: int = 1
    host_parts: Mapping[str, int] = field(default_factory=dict)
    per_host: int = 8

    def is_in_shard(self, url: str) -> bool:
        """Return whether the link belongs to this shard."""
        return self.num_shards == 1 or choose_shard(url, self.num_shards, self.host_parts) == self.shard

    def count_shards_of_host(self, url: str) -> int:
        """Return the number of shards over which the links of this host are spread."""
        return self.host_parts.get(_normalize_host(url), 1) if self.host_parts else 1

    def max_concurrent_requests(self, url: str) -> int:
        """Return the maximum number of concurrent requests of this shard to the link's host.

        It is 0 for some shards of a host that is spread over more than `per_host` shards.
        """
        parts = self.count_shards_of_host(url)
        if parts == 1:
            return self.per_host
        number = (self.shard - 1 - hash_link("", _normalize_host(url))) % self.num_shards
        return (self.per_host + parts - 1 - number % parts) // parts


ALL = Partition()


def choose_shard(url: str, num_shards: int, host_parts: Mapping[str, int] | None = None) -> int:
    """Return the number of the shard, 1 to `num_shards`, that gathers a link.

    Args:
        url: the link.
        num_shards: number of shards.
        host_parts: see `Partition`.
    """
    host = _normalize_host(url)
    number = hash_link("", url if host == "(none)" else host)
    if host_parts and host in host_parts:
        number += hash_link("", url) % host_parts[host]
    return number % num_shards + 1


class HostCounts:
    """Counts links by host; if there are very many hosts, only those with many links (Misra and Gries, 1982)."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._total = 0

    def add(self, url: str) -> None:
        """Count a link."""
        self._counts[_normalize_host(url)] += 1
        self._total += 1
        if len(self._counts) > _MAX_COUNTED:
            self._counts = Counter({host: count - 1 for host, count in self._counts.items() if count > 1})

    def compute_host_parts(self, num_shards: int) -> dict[str, int]:
        """Return the number of shards, at most `MAX_PARTS`, by host, for each host that is spread over several."""
        parts = {
            host: min(MAX_PARTS, num_shards, -(-count * num_shards // self._total), count // _MIN_LINKS)
            for host, count in self._counts.items()
            if host != "(none)"
        }
        return {host: number for host, number in parts.items() if number > 1}


def _normalize_host(url: str) -> str:
    host = parse_host(url).lower().removesuffix(":80").removesuffix(":443")
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")  # as the host is named in requests
    except UnicodeError:
        return host
