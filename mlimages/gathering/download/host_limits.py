"""Manners towards each host, and when to give one up."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

FAILURES_UNTIL_DOWN = 5
"""Links in a row that could not connect or timed out, after which a host's other links are not tried."""

PATIENCE_S = 120.0
"""What a host may make us wait in all (Retry-After) without serving anything in between."""

_REMEMBERED = 20_000


class Host:
    """One host and port: its slots, its failures in a row, and when it may be asked again."""

    __slots__ = ("_failing", "_not_before", "_waited_s", "slots", "users")

    def __init__(self, per_host: int) -> None:
        self.slots = asyncio.Semaphore(per_host)
        self.users = 0
        self._failing: set[str] = set()
        self._not_before = 0.0
        self._waited_s = 0.0

    @property
    def is_down(self) -> bool:
        """Whether its other links are not worth trying."""
        return len(self._failing) >= FAILURES_UNTIL_DOWN or self._waited_s > PATIENCE_S

    async def wait(self) -> None:
        """Until it may be asked again, as it said itself."""
        while not self.is_down and (pause := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(pause)

    def note(self, url: str, *, failed: bool, retry_after_s: float | None) -> None:
        """A link could not be reached, or was answered, perhaps with a wish to be left alone for some seconds."""
        if failed:
            self._failing.add(url)
            return
        self._failing.clear()
        if retry_after_s is None:
            self._waited_s = 0.0
            return
        until = time.monotonic() + retry_after_s
        self._waited_s += max(0.0, until - max(self._not_before, time.monotonic()))
        self._not_before = max(self._not_before, until)


class Hosts:
    """The hosts in use and those lately met; the longest unused are forgotten."""

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._hosts: OrderedDict[str, Host] = OrderedDict()

    @contextmanager
    def use(self, name: str) -> Iterator[Host]:
        """The host of one link, while the link is worked on."""
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = Host(self._per_host)
            self._forget()
        self._hosts.move_to_end(name)
        host.users += 1
        try:
            yield host
        finally:
            host.users -= 1

    def _forget(self) -> None:
        while len(self._hosts) > _REMEMBERED:
            name, host = next(iter(self._hosts.items()))
            if host.users:
                return
            del self._hosts[name]
