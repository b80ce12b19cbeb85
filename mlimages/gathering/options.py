"""How to gather: one frozen value that all its modules share."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields

from mlimages import __version__
from mlimages.core import MAX_PIXELS, InputError, Reason
from mlimages.gathering.links import shard_of

USER_AGENT = f"mlimages/{__version__} (gathers images for image classifiers; honours opt-outs)"


@dataclass(frozen=True, slots=True)
class GatherOptions:
    """What `gather` takes as keywords.

    Attributes:
        limit: good pictures per class; None takes every link.
        parallel, per_host: requests at one time, in all and to one host.
        timeout_s: without progress: until the first byte, between two, or at less than 1 KB/s.
            connect_timeout_s: until it is connected.
        retries: further requests after one that may succeed later (429, 408, 5xx, time-outs, cut bodies).
        max_bytes: of one decoded body. max_pixels: width x height, judged from the header.
        min_size: the least shorter side, in pixels.
        resize: store the shorter side at this many pixels, as an upright RGB JPEG; None keeps the original bytes.
        keep_duplicates: keep every copy of the same bytes.
        no_retry: leave the links of earlier runs for which only the network or the host was at fault.
        retry_failed: reasons whose failed links are tried again, final or not.
        restore_deleted: download images again that somebody deleted from the folder. keep_deleted: leave them deleted,
            however many are missing.
        allow_private: connect to addresses that are not global, too.
        ignore_opt_out: take pictures marked X-Robots-Tag: noai or noimageai, too.
        proxy: an HTTP proxy's URL; by default the usual environment variables say.
        shard: (i, n) takes the i-th of n parts, 1 <= i <= n, divided by a hash of the URL; `per_host` then holds for
            all of them together.
        decoders: processes that decode.
    """

    limit: int | None = None
    parallel: int = 64
    per_host: int = 8
    timeout_s: float = 15.0
    connect_timeout_s: float = 10.0
    retries: int = 2
    max_bytes: int = 64 * 2**20
    max_pixels: int = MAX_PIXELS
    min_size: int = 1
    resize: int | None = None
    keep_duplicates: bool = False
    no_retry: bool = False
    retry_failed: Collection[Reason] = frozenset()
    restore_deleted: bool = False
    keep_deleted: bool = False
    allow_private: bool = False
    ignore_opt_out: bool = False
    user_agent: str = USER_AGENT
    proxy: str | None = None
    shard: tuple[int, int] | None = None
    decoders: int = 2

    def __post_init__(self) -> None:
        optional = {"limit", "resize"}
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "retries" else 1
            if isinstance(value, int | float) and not isinstance(value, bool) and value < least:
                raise InputError(f"{field.name} is {value}: it must be at least {least}"
                                 f"{' or left out' if field.name in optional else ''}")  # fmt: skip
        if self.restore_deleted and self.keep_deleted:
            raise InputError("restore_deleted and keep_deleted exclude each other: choose one")
        if self.shard and not 1 <= self.shard[0] <= self.shard[1]:
            raise InputError(f"shard is {self.shard[0]}/{self.shard[1]}: the parts run from 1/N to N/N")

    def has(self, url: str) -> bool:
        """Whether a link is in the shard, if there is one."""
        return self.shard is None or shard_of(url, self.shard[1], self.per_host) == self.shard[0]

    @property
    def own_per_host(self) -> int:
        """Requests at one time to one host, by this shard."""
        return self.per_host // min(self.shard[1], self.per_host) if self.shard else self.per_host


def parse_reasons(text: str) -> frozenset[Reason]:
    """`timeout,host-down` as reasons; `all` is every one.

    Raises:
        InputError: an unknown reason.
    """
    if text == "all":
        return frozenset(Reason)
    try:
        return frozenset(Reason(name.strip()) for name in text.split(","))
    except ValueError as error:
        raise InputError(f"retry-failed: {error}; the reasons are {', '.join(Reason)}") from None
