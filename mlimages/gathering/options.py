"""Options of gathering; the command line, validation and documentation follow from the fields."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypedDict
from urllib.parse import urlsplit

from mlimages import __version__
from mlimages.core import MAX_PIXELS, InputError, Option, Reason, check_options, document_fields

DEFAULT_USER_AGENT = f"mlimages/{__version__} (gathers images for image classifiers; honours opt-outs)"

MAX_SHARDS = 99_999
"""Maximum number of shards: the name of a shard's manifest has five digits for its number."""


def parse_shard(text: str) -> tuple[int, int]:
    """Parse a shard such as `2/8` into its number and the number of shards.

    Raises:
        InputError: the text is not `I/N`.

    Example:
        >>> parse_shard("2/8")
        (2, 8)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match:
        raise InputError(f"shard is {text!r}: expected I/N, such as 1/4")
    return int(match[1]), int(match[2])


def parse_reasons(values: str | Collection[str]) -> frozenset[Reason]:
    """Parse reasons, given as one text, such as `timeout,host-down`, or as a collection; `all` means every reason.

    Raises:
        InputError: a reason is unknown.

    Example:
        >>> sorted(parse_reasons("timeout,host-down"))
        [<Reason.HOST_DOWN: 'host-down'>, <Reason.TIMEOUT: 'timeout'>]
    """
    names = {name.strip() for name in values.split(",")} if isinstance(values, str) else set(values)
    if names == {"all"}:
        return frozenset(Reason)
    if unknown := names - set(Reason):
        raise InputError(
            f"unknown reason {min(unknown, key=str)!r}: expected one or more of {', '.join(Reason)}, or all"
        )
    return frozenset(map(Reason, names))


def check_http_proxy(url: str) -> None:
    """Check that a URL may be that of an HTTP proxy: it has a host and begins with `http://` or `https://`.

    Raises:
        InputError: the URL is of another form.
    """
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        shown = re.sub(r"//[^/@]*@", "//", url)
        raise InputError(f"proxy is {shown!r}: expected the URL of an HTTP proxy, such as http://127.0.0.1:8080")


@document_fields
@dataclass(frozen=True, slots=True)
class GatherOptions:
    """Options of `gather`, which accepts them as keyword arguments.

    Example:
        >>> GatherOptions(limit=300, resize=256).per_host
        8
    """

    limit: Annotated[int | None, Option("Stop after this many images per class.", "Limits", min=1)] = None
    shard: Annotated[
        tuple[int, int] | None,
        Option(
            "Divide the links by host into N parts and gather only the I-th; --limit applies to each part.",
            "Limits",
            metavar="I/N",
            parse=parse_shard,
            is_advanced=True,
        ),
    ] = None
    min_size: Annotated[
        int, Option("Skip images whose shorter side is below this many pixels.", "Images", metavar="PIXELS", min=1)
    ] = 1
    resize: Annotated[
        int | None,
        Option(
            "Convert images to upright RGB JPEG with a shorter side of this many pixels.",
            "Images",
            metavar="PIXELS",
            min=1,
            default_text="the original bytes",
        ),
    ] = None
    keep_duplicates: Annotated[bool, Option("Keep byte-identical duplicates.", "Images")] = False
    max_bytes: Annotated[
        int, Option("Skip files of more than this many bytes.", "Images", metavar="BYTES", min=1, is_advanced=True)
    ] = 64 * 2**20
    max_pixels: Annotated[
        int,
        Option(
            "Skip images with more than this many pixels (width x height), as read from the header.",
            "Images",
            metavar="PIXELS",
            min=1,
            is_advanced=True,
        ),
    ] = MAX_PIXELS
    restore_deleted: Annotated[bool, Option("Download deleted images again.", "Images", is_advanced=True)] = False
    keep_deleted: Annotated[
        bool,
        Option(
            "Treat missing images as deleted on purpose, however many are missing, instead of stopping with an error.",
            "Images",
            is_advanced=True,
        ),
    ] = False
    layout: Annotated[
        Literal["folders", "tar"],
        Option(
            "folders: a file per image in a folder per class; tar: shards of up to 10,000 images, with a JSON file per "
            "image (WebDataset).",
            "Output",
        ),
    ] = "folders"
    metadata: Annotated[
        bool,
        Option(
            "Write metadata.jsonl for the Hugging Face imagefolder loader, with the label of each image and the "
            "metadata from its list or provider.",
            "Output",
        ),
    ] = False
    parquet: Annotated[
        bool,
        Option(
            "Also write the manifest as manifest.parquet (requires the extra `parquet`).", "Output", is_advanced=True
        ),
    ] = False
    subfolders: Annotated[
        bool,
        Option(
            "Store the images of a class in subfolders of up to 10,000 images: CLASS/part-0000/ and so on.",
            "Output",
            is_advanced=True,
        ),
    ] = False
    parallel: Annotated[int, Option("Number of concurrent requests of each process.", "Download", min=1, max=4096)] = 64
    per_host: Annotated[
        int,
        Option("Number of concurrent requests to one host, over all shards and workers.", "Download", min=1, max=1024),
    ] = 8
    timeout_s: Annotated[
        float,
        Option(
            "Seconds without progress (no connection, no response, less than 1 KB/s) before a request is abandoned. A "
            "whole download may take four times this value, plus the time to transfer a file of the maximum size at 32 "
            "KB/s: 35 minutes by default.",
            "Download",
            ("--timeout",),
            "SECONDS",
            min=1,
        ),
    ] = 15.0
    retries: Annotated[
        int, Option("Number of retries after a transient failure (time-out, 5xx).", "Download", min=0, is_advanced=True)
    ] = 2
    max_wait_s: Annotated[
        float,
        Option(
            "Maximum seconds to wait, once all other links are done, for hosts that limit requests or do not respond.",
            "Download",
            ("--max-wait",),
            "SECONDS",
            min=0,
            is_advanced=True,
        ),
    ] = 120.0
    retry_failed: Annotated[
        Collection[Reason],
        Option(
            "Retry failed links: all, or only those that failed for these reasons.",
            "Download",
            metavar="[REASON,...]",
            parse=parse_reasons,
        ),
    ] = frozenset()
    no_retry: Annotated[
        bool,
        Option(
            "Do not retry links of earlier runs that were left unfinished (for example, the host did not respond), or "
            "that were rejected by an option that is now less strict (for example, --min-size).",
            "Download",
            is_advanced=True,
        ),
    ] = False
    allow_private: Annotated[
        bool, Option("Also connect to private and loopback addresses.", "Download", is_advanced=True)
    ] = False
    ignore_opt_out: Annotated[
        bool,
        Option(
            "Also download images whose site or metadata opts out of machine learning.", "Download", is_advanced=True
        ),
    ] = False
    user_agent: Annotated[
        str,
        Option("User-Agent of the requests.", "Download", default_text="mlimages and its version", is_advanced=True),
    ] = DEFAULT_USER_AGENT
    contact: Annotated[
        str | None,
        Option(
            "E-mail address or web page to include in the User-Agent, as Wikimedia requests.",
            "Download",
            metavar="TEXT",
        ),
    ] = None
    headers: Annotated[
        Sequence[str],
        Option(
            "Header field to send with each request for an image, except after a redirect to another host or port, or "
            "from https to http; repeatable.",
            "Download",
            ("--header",),
            '"NAME: VALUE"',
            is_advanced=True,
        ),
    ] = field(default=(), repr=False)
    proxy: Annotated[
        str | None,
        Option("HTTP proxy.", "Download", metavar="URL", default_text="HTTP_PROXY and HTTPS_PROXY", is_advanced=True),
    ] = None
    decoders: Annotated[
        int,
        Option(
            "Number of processes that decode images. With --workers or --engine ray, each worker always has one.",
            "Download",
            min=1,
            max=256,
            is_advanced=True,
        ),
    ] = 2

    def __post_init__(self) -> None:
        check_options(self)
        object.__setattr__(self, "retry_failed", parse_reasons(self.retry_failed))
        if self.proxy:
            check_http_proxy(self.proxy)
        if self.restore_deleted and self.keep_deleted:
            raise InputError("restore_deleted and keep_deleted are mutually exclusive")
        if self.metadata and self.layout == "tar":
            raise InputError(
                "`metadata` requires the layout `folders`: shards store the metadata in the JSON file of each image"
            )
        if self.subfolders and self.layout == "tar":
            raise InputError("`subfolders` requires the layout `folders`: shards are already limited to 10,000 images")
        if self.shard and not 1 <= self.shard[0] <= self.shard[1] <= MAX_SHARDS:
            raise InputError(
                f"shard is {self.shard[0]}/{self.shard[1]}: expected I/N with I from 1 to N, and N up to {MAX_SHARDS}"
            )
        if self.contact is not None and not re.fullmatch(r"[ -'*-~]+", self.contact):
            raise InputError("contact must be an ASCII e-mail address or URL without parentheses")
        for text in self.headers:
            if not isinstance(text, str):
                raise InputError(f'a header is a {type(text).__name__}: expected "NAME: VALUE", such as "Referer: URL"')
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*", text):
                raise InputError(
                    f'invalid header {text.partition(":")[0]!r}: expected "NAME: VALUE", such as "Referer: URL"'
                )

    @property
    def full_user_agent(self) -> str:
        """Value of the User-Agent header: `user_agent`, followed by `contact` in parentheses.

        In the default `user_agent`, `contact` is inserted in the parentheses that are already there.

        Example:
            >>> GatherOptions(user_agent="ants/1.0", contact="me@example.org").full_user_agent
            'ants/1.0 (me@example.org)'
        """
        if self.contact is None:
            return self.user_agent
        if self.user_agent == DEFAULT_USER_AGENT:
            return DEFAULT_USER_AGENT.replace("(", f"({self.contact}; ", 1)
        return f"{self.user_agent} ({self.contact})"

    @property
    def header_fields(self) -> dict[str, str]:
        """The fields of `headers`, as a dict of values by name."""
        return {name: value.strip() for name, _, value in (text.partition(":") for text in self.headers)}


class GatherKeywords(TypedDict, total=False):
    """Keyword arguments of `gather`, for type checkers: the fields of `GatherOptions`, which documents them."""

    limit: int | None
    shard: tuple[int, int] | None
    min_size: int
    """Minimum length of the shorter side of an image, in pixels."""
    resize: int | None
    keep_duplicates: bool
    max_bytes: int
    max_pixels: int
    restore_deleted: bool
    keep_deleted: bool
    """Treat missing images as deleted on purpose, however many are missing, instead of raising an error."""
    layout: Literal["folders", "tar"]
    metadata: bool
    """Write metadata.jsonl, with the label and the metadata of each image."""
    parquet: bool
    subfolders: bool
    parallel: int
    per_host: int
    timeout_s: float
    retries: int
    max_wait_s: float
    retry_failed: Collection[Reason]
    no_retry: bool
    allow_private: bool
    ignore_opt_out: bool
    user_agent: str
    contact: str | None
    headers: Sequence[str]
    proxy: str | None
    decoders: int
