"""Hosts in use: how many requests one gets at a time, and when."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from mlimages.core import Reason
from mlimages.gathering.download.host_state import (
    HostState,
    after_answer,
    after_failure,
    after_refusal,
    after_request,
    after_throttling,
    seconds_until_request,
)

_REMEMBERED = 20_000


class Host:
    """One host and port: its slots, and the state that says when it may be asked."""

    __slots__ = ("_changed", "_hosts", "labels", "slots", "state", "users", "waiting", "waiting_labels")

    def __init__(self, hosts: Hosts, per_host: int) -> None:
        self._hosts = hosts
        self._changed = asyncio.Event()
        self.slots = asyncio.Semaphore(per_host)
        self.state = HostState()
        self.users = 0
        self.labels: Counter[str] = Counter()
        self.waiting = 0
        self.waiting_labels: Counter[str] = Counter()

    async def has_turn(self) -> bool:
        """Wait until a request may be sent; False where the host is given up."""
        while (pause_s := seconds_until_request(self.state, time.monotonic(), self._hosts.deadline)) != 0:
            if pause_s is None:
                return False
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if pause_s == math.inf else pause_s):
                    await self._changed.wait()
        self._become(after_request(self.state, time.monotonic()))
        return True

    def note_answer(self, asked_at: float, *, is_redirect: bool) -> None:
        """It answered a request sent at `asked_at`."""
        self._become(after_answer(self.state, time.monotonic(), asked_at=asked_at, is_redirect=is_redirect))

    def note_refusal(self, asked_at: float) -> None:
        """It refused a request sent at `asked_at`, by 401, 403 or a web page."""
        self._become(after_refusal(self.state, time.monotonic(), asked_at=asked_at))

    def note_further_request(self) -> None:
        """A request is sent that no link waited for: for its robots.txt."""
        self._become(replace(after_request(self.state, time.monotonic()), is_probing=self.state.is_probing))

    def note_throttling(self, asked_at: float, retry_after_s: float | None) -> None:
        """It answered 429 or 503 to a request sent at `asked_at`."""
        now = time.monotonic()
        self._become(after_throttling(self.state, now, asked_at=asked_at, retry_after_s=retry_after_s))

    def note_failure(self, asked_at: float, link: str, reason: Reason) -> None:
        """It did not answer a request sent at `asked_at`."""
        now = time.monotonic()
        self._become(after_failure(self.state, now, asked_at=asked_at, link=link, reason=reason))

    def note_nothing(self) -> None:
        """A request was not sent after all."""
        self._become(replace(self.state, is_probing=False))

    def wake(self) -> None:
        """Wake the tasks waiting for this host so that they check its state again."""
        self._changed.set()

    def _become(self, state: HostState) -> None:
        had_changed = state.is_parked != self.state.is_parked or state.is_given_up or not state.is_probing
        self.state = state
        self._hosts.count(self)
        if had_changed:
            self.wake()


class Hosts:
    """The hosts in use and those used lately; the longest unused are forgotten.

    Args:
        max_wait_s: how long to wait for parked hosts when all others are done.

    Attributes:
        waiting: links on hosts that are parked; waiting_labels: these by label.
        deadline: when their links end, in seconds of the monotonic clock; infinite while another host is in use.
    """

    def __init__(self, per_host: int, max_wait_s: float) -> None:
        self._per_host = per_host
        self._max_wait_s = max_wait_s
        self._hosts: OrderedDict[str, Host] = OrderedDict()
        self._running: set[Host] = set()
        self._parked: set[Host] = set()
        self.waiting = 0
        self.waiting_labels: Counter[str] = Counter()
        self.deadline = math.inf

    @contextmanager
    def use(self, name: str, label: str = "") -> Iterator[Host]:
        """The host of one link, while the link is worked on."""
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = Host(self, self._per_host)
            self._forget()
        self._hosts.move_to_end(name)
        host.users += 1
        host.labels[label] += 1
        self.count(host)
        try:
            yield host
        finally:
            host.users -= 1
            host.labels[label] -= 1
            self.count(host)

    @property
    def blocking_hosts(self) -> list[str]:
        """The parked hosts, where no other is left."""
        if self.deadline == math.inf:
            return []
        return [name.rpartition(":")[0] for name, host in self._hosts.items() if host in self._parked]

    def count(self, host: Host) -> None:
        """Take note of a host's state and users."""
        waiting = host.users if host.state.is_parked else 0
        self.waiting += waiting - host.waiting
        host.waiting = waiting
        if waiting or host.waiting_labels:
            self.waiting_labels.subtract(host.waiting_labels)
            host.waiting_labels = +host.labels if waiting else Counter()
            self.waiting_labels.update(host.waiting_labels)
        for hosts, holds in ((self._parked, waiting > 0), (self._running, host.users > waiting)):
            (hosts.add if holds else hosts.discard)(host)
        if self._running or not self._parked:
            self.deadline = math.inf
        elif self.deadline == math.inf:
            self.deadline = time.monotonic() + self._max_wait_s
            for parked in self._parked:
                parked.wake()

    def _forget(self) -> None:
        while len(self._hosts) > _REMEMBERED:
            name, host = next(iter(self._hosts.items()))
            if host.users:
                return
            del self._hosts[name]
