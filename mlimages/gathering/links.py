"""A link's host, its key and the shard it belongs to."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import urlsplit

_CREDENTIALS = re.compile(r"(//)[^/?#\s]*@")
_MOST_DATA = 200


def without_credentials(text: str) -> str:
    """A text without the users and passwords of the URLs in it."""
    return _CREDENTIALS.sub(r"\1", text) if "@" in text else text


def host_of(url: str) -> str:
    """A link's host and port, for counting."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2][:100] or "(none)"
    except ValueError:
        return "(none)"


def recorded_url(url: str) -> str:
    """A link as the manifest has it: without user and password, and without the bytes of a long `data:` link.

    >>> recorded_url("https://user:password@example.org/a.jpg")
    'https://example.org/a.jpg'
    """
    if url[:5].lower() == "data:" and len(url) > _MOST_DATA:
        digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{url[:60]}...sha256:{digest}"
    return _CREDENTIALS.sub(r"\1", url, count=1) if "@" in url else url


def place_of(url: str) -> int:
    """64 bits that stand for a link's host (the upper half) and path, without query and fragment."""
    start, _, path = url.partition("#")[0].partition("?")[0].partition("://")[2].partition("/")
    host, place = (
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest() for text in (start, path)
    )
    return int.from_bytes(host + place, "big")


def row_key(label: str, url: str) -> int:
    """64 bits that stand for one link of one class."""
    text = f"{label}\n{recorded_url(url)}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def shard_of(url: str, shards: int) -> int:
    """Which of so many shards, from 1, a link belongs to: that of its host, so that a host's limits hold for all."""
    host = host_of(url).lower().removesuffix(":80").removesuffix(":443")
    return row_key("", url if host == "(none)" else host) % shards + 1
