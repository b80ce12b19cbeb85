"""Hosts, hashes and redaction of links."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import urlsplit

_URL_CREDENTIALS = re.compile(r"(//)[^/?#\s]*@")
_MAX_DATA_URL_LENGTH = 200
"""Maximum number of characters of a `data:` URL in the manifest."""


def remove_credentials(text: str) -> str:
    """Remove user names and passwords from the URLs in a text."""
    return _URL_CREDENTIALS.sub(r"\1", text) if "@" in text else text


def parse_host(url: str) -> str:
    """Return the host of a link, with the port if the link has one; "(none)" if it has no host."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2][:100] or "(none)"
    except ValueError:
        return "(none)"


def redact_url(url: str) -> str:
    """Return a link as written to the manifest: without user name and password; a long `data:` URL is shortened.

    >>> redact_url("https://user:password@example.org/a.jpg")
    'https://example.org/a.jpg'
    """
    if url[:5].lower() == "data:" and len(url) > _MAX_DATA_URL_LENGTH:
        digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{url[:60]}...sha256:{digest}"
    return _URL_CREDENTIALS.sub(r"\1", url, count=1) if "@" in url else url


def hash_host_and_path(url: str) -> int:
    """Return a 64-bit hash of a link without query and fragment: 32 bits of the host, then 32 bits of the path."""
    host, _, path = url.partition("#")[0].partition("?")[0].partition("://")[2].partition("/")
    halves = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest() for text in (host, path))
    return int.from_bytes(b"".join(halves), "big")


def hash_link(label: str, url: str) -> int:
    """Return a 64-bit hash of a link and its class."""
    text = f"{label}\n{redact_url(url)}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
