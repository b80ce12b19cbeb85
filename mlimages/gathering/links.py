"""A link's host, its key and the shard it belongs to."""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit


def host_of(url: str) -> str:
    """A link's host and port, for counting."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2][:100] or "(none)"
    except ValueError:
        return "(none)"


def row_key(label: str, url: str) -> int:
    """64 bits that stand for one link of one class."""
    text = f"{label}\n{url}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def shard_of(url: str, shards: int, per_host: int) -> int:
    """Which of so many shards, from 1, a link belongs to; a host's links go to no more than `per_host` of them."""
    return (row_key("", host_of(url)) + row_key("", url) % min(shards, per_host)) % shards + 1
