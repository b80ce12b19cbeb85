"""Find opt-outs from training in header fields, TDM reservations and XMP metadata.

Content-Usage and one value of the PLUS vocabulary concern generative models; mlimages also honours them for image
classifiers.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

PRODUCT_TOKEN = "mlimages"
"""Name by which robots.txt and X-Robots-Tag address mlimages (RFC 9309, 2.2.1)."""

_FORBIDDING_DIRECTIVES = {"noai", "noimageai", "noindex", "noimageindex", "noml", "none"}
"""Directives of X-Robots-Tag that forbid training. `none` does because it is short for `noindex, nofollow`."""
_DIRECTIVES_WITH_VALUE = {"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"}
_AGENT_NAME = re.compile(r"[a-z*][^\s,:]*(?: [^\s,:]+)*")
_DATA_MINING_TAG = "{http://ns.useplus.org/ldf/xmp/1.0/}DataMining"
_RDF_NAMESPACE = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_COMPRESSED_XMP_HEADER = b"iTXtXML:com.adobe.xmp\0\x01"
_MAX_XMP_BYTES = 2**20
_XMP_PACKET = re.compile(rb"<(?P<tag>[\w.-]+:(?:xmpmeta|xapmeta|RDF))[\s>].*?</(?P=tag)\s*>", re.DOTALL)


def find_opt_out(headers: CIMultiDictProxy[str]) -> str | None:
    """Return the header field that forbids training on the content; None if there is none."""
    for value in headers.getall("X-Robots-Tag", []):
        if word := find_forbidding_directive(value):
            return f"X-Robots-Tag: {word}"
    if has_preference(",".join(headers.getall("Content-Usage", [])), "train-ai", "n"):
        return "Content-Usage: train-ai=n"
    if any(value.strip() == "1" for value in headers.getall("TDM-Reservation", [])):
        return "TDM-Reservation: 1"
    return None


def find_forbidding_directive(header: str) -> str | None:
    """Return the directive of an X-Robots-Tag header that forbids training; None if there is none.

    Directives after `agent:` apply to that agent only.

    >>> find_forbidding_directive("max-image-preview:large, noai")
    'noai'
    >>> find_forbidding_directive("otherbot: noindex, noai")
    """
    is_ours = True
    for part in header.lower().split(","):
        name, colon, directive = (text.strip() for text in part.partition(":"))
        if colon and name in _DIRECTIVES_WITH_VALUE:
            continue
        if colon and _AGENT_NAME.fullmatch(name):
            is_ours = name in (PRODUCT_TOKEN, "*")
            name = directive
        if is_ours and name in _FORBIDDING_DIRECTIVES:
            return name
    return None


def has_preference(preferences: str, key: str, value: str) -> bool:
    """Return whether `key=value` occurs in preferences such as `search=y, train-ai=n;x=1`.

    >>> has_preference("search=yes, ai-train=no", "ai-train", "no")
    True
    """
    pairs = (member.partition("=")[::2] for member in preferences.lower().split(","))
    return any(name.strip() == key and rest.partition(";")[0].strip() == value for name, rest in pairs)


def parse_tdmrep(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the rules of a tdmrep.json file, in order, as (path pattern, whether text and data mining is forbidden).

    The first rule whose pattern matches a path applies; text that is not valid JSON has no rules.

    Source: W3C Community Group, TDM Reservation Protocol.

    >>> list(parse_tdmrep('[{"location": "/images/", "tdm-reservation": 1}]'))
    [('/images/', True)]
    """
    try:
        rules = json.loads(text)
    except (ValueError, RecursionError):
        return
    for rule in rules if isinstance(rules, list) else []:
        location = rule.get("location") if isinstance(rule, Mapping) else None
        if isinstance(location, str) and "tdm-reservation" in rule:
            reservation = rule["tdm-reservation"]
            yield location, reservation in (1, "1") and reservation is not True


def path_matches(pattern: str, path: str) -> bool:
    """Return whether a pattern of robots.txt, in which `*` and a final `$` are special, matches a path.

    >>> path_matches("/images/*.jpg$", "/images/a.jpg")
    True
    """
    is_anchored = pattern.endswith("$")
    expression = ".*".join(map(re.escape, re.split(r"\*+", pattern.removesuffix("$"))))
    return re.match(expression + ("$" if is_anchored else ""), path, re.DOTALL) is not None


def find_xmp_opt_out(data: bytes) -> str | None:
    """Return the property plus:DataMining in the XMP of an image, if it prohibits data mining; None otherwise.

    Source: PLUS License Data Format, XMP reference, as adopted by the IPTC.
    """
    metadata = data[: _find_end_of_jpeg_header(data)] + _read_compressed_xmp(data)
    if b"DataMining" not in metadata:  # before any slower step
        return None
    for packet in _XMP_PACKET.finditer(metadata):
        for value in _find_data_mining_values(packet[0]):
            term = value.strip().rstrip("/").rpartition("/")[2].upper()
            if term.startswith("DMI-PROHIBITED"):
                return f"XMP plus:DataMining: {term[:60]}"
    return None


def _find_end_of_jpeg_header(data: bytes) -> int:
    """Return the offset of the first scan of a JPEG, where its metadata end; for other files, their length."""
    position = 2
    while data.startswith(b"\xff\xd8") and data[position : position + 1] == b"\xff":
        if data[position + 1 : position + 2] == b"\xda":
            return position
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return len(data)


def _read_compressed_xmp(data: bytes) -> bytes:
    """Return the XMP in the compressed iTXt chunk of a PNG (PNG, 11.3.3.4); empty if there is none."""
    at = data.find(_COMPRESSED_XMP_HEADER) if data.startswith(b"\x89PNG") else -1
    if at < 4:
        return b""
    chunk = data[at + len(_COMPRESSED_XMP_HEADER) : at + 4 + int.from_bytes(data[at - 4 : at], "big")]
    try:
        text = chunk[1:].split(b"\0", 2)[2]  # after the method, the language tag and the translated keyword
        return zlib.decompressobj().decompress(text, _MAX_XMP_BYTES)
    except (zlib.error, IndexError):
        return b""


def _find_data_mining_values(packet: bytes) -> Iterator[str]:
    if b"<!" in packet.replace(b"<!--", b"").replace(b"<![CDATA[", b""):  # no document types, so no entities
        return
    try:
        root = ElementTree.fromstring(packet)
    except (ElementTree.ParseError, ValueError):
        return
    for element in root.iter():
        if _DATA_MINING_TAG in element.attrib:
            yield element.attrib[_DATA_MINING_TAG]
        if element.tag == _DATA_MINING_TAG:
            yield element.get(f"{_RDF_NAMESPACE}resource") or "".join(element.itertext())
