"""Limit the number and the rate of requests to each host."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from mlimages.gathering.download.host_state import HostState, record_request, seconds_until_request
from mlimages.gathering.partition import LinkPartition

_MAX_CACHED_HOSTS = 20_000
"""Maximum number of hosts in the cache. It may be exceeded, since hosts in use are never evicted."""


@dataclass(slots=True, eq=False)
class Host:
    """Limits the requests to one host and port, and counts the links in progress.

    Attributes:
        max_concurrent_requests: maximum number of concurrent requests.
        state: determines when the next request may be sent.
        request_slots: semaphore that limits the number of concurrent requests.
        num_active_links: number of links in progress, including those that wait.
        num_active_links_by_label: `num_active_links` by class.
        num_paused_links_by_label: number of links that wait because the host is paused, by class:
            `num_active_links_by_label`, or empty while the host is not paused.
        num_links_awaiting_slot: number of links that wait for one of `request_slots`; 0 while the host is paused.
    """

    _hosts: Hosts
    max_concurrent_requests: int
    state: HostState
    request_slots: asyncio.Semaphore
    num_active_links: int = 0
    num_active_links_by_label: Counter[str] = field(default_factory=Counter)
    num_paused_links_by_label: Counter[str] = field(default_factory=Counter)
    num_links_awaiting_slot: int = 0
    _state_changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_for_turn(self) -> bool:
        """Wait until a request may be sent; return False if the host is given up, or still paused at the deadline."""
        while (pause_s := seconds_until_request(self.state, time.monotonic(), self._hosts.deadline)) != 0:
            if pause_s is None:
                return False
            self._state_changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if pause_s == math.inf else pause_s):
                    await self._state_changed.wait()
        self.set_state(record_request(self.state, time.monotonic()))
        return True

    def record_site_rules_request(self) -> None:
        """Record a request that is not for a link, such as one for robots.txt."""
        self.set_state(replace(record_request(self.state, time.monotonic()), is_probing=self.state.is_probing))

    def record_unsent_request(self) -> None:
        """Record that a request was not sent although `wait_for_turn` allowed it.

        `wait_for_turn` allows one request at a time (a probe) to a paused host; after this call, it allows another.
        """
        self.set_state(replace(self.state, is_probing=False))

    def notify_waiting_tasks(self) -> None:
        """Wake the tasks waiting for this host so that they check its state again."""
        self._state_changed.set()

    def set_state(self, state: HostState) -> None:
        """Set the state, update the counts of links, and wake the tasks that wait for this host.

        The tasks are not woken while a single request tests whether a paused host responds again (a probe), since they
        need its result.
        """
        may_proceed = state.is_paused != self.state.is_paused or state.is_given_up or not state.is_probing
        self.state = state
        self._hosts.update_counts(self)
        if may_proceed:
            self.notify_waiting_tasks()


class Hosts:
    """The hosts in use and those used recently; the least recently used are evicted.

    Args:
        partition: determines how many concurrent requests this process may send to a host.
        max_wait_s: maximum seconds to wait for paused hosts once all hosts in use are paused.

    Attributes:
        num_paused_links: number of links in progress whose host is paused.
        num_paused_links_by_label: number of links in progress whose host is paused, by class.
        num_links_awaiting_slot: number of links in progress that wait because their host already has the maximum number
            of concurrent requests.
        deadline: monotonic time at which links of paused hosts stop waiting and fail: `max_wait_s` after the last host
            in use was paused. Infinite while a host in use is not paused.
    """

    def __init__(self, partition: LinkPartition, max_wait_s: float) -> None:
        self._partition = partition
        self._max_wait_s = max_wait_s
        self._hosts: OrderedDict[str, Host] = OrderedDict()
        self._running: set[Host] = set()
        self._paused: set[Host] = set()
        self.num_paused_links = 0
        self.num_links_awaiting_slot = 0
        self.num_paused_links_by_label: Counter[str] = Counter()
        self.deadline = math.inf

    @contextmanager
    def use_host(self, name: str, url: str, label: str = "") -> Iterator[Host]:
        """Yield the host `name` (host and port) of `url`; until exit, a link of class `label` counts as in progress."""
        host = self._hosts.get(name)
        if host is None:
            limit = max(1, self._partition.max_concurrent_requests(url))  # redirects lead to hosts of other shards
            num_client_processes = min(self._partition.count_shards_of_host(url), self._partition.max_requests_per_host)
            host = Host(self, limit, HostState(num_client_processes=num_client_processes), asyncio.Semaphore(limit))
            self._hosts[name] = host
            while len(self._hosts) > _MAX_CACHED_HOSTS and not next(iter(self._hosts.values())).num_active_links:
                self._hosts.popitem(last=False)
        self._hosts.move_to_end(name)
        host.num_active_links += 1
        host.num_active_links_by_label[label] += 1
        self.update_counts(host)
        try:
            yield host
        finally:
            host.num_active_links -= 1
            host.num_active_links_by_label[label] -= 1
            self.update_counts(host)

    @property
    def host_names_if_all_paused(self) -> list[str]:
        """Names (without ports) of the hosts in use if all of them are paused; empty otherwise."""
        if self.deadline == math.inf:
            return []
        return [name.rpartition(":")[0] for name, host in self._hosts.items() if host in self._paused]

    @property
    def long_pause_s_by_host(self) -> dict[str, float]:
        """Remaining seconds of pauses too long to wait for, by name of the host that limits requests (429 or 503).

        Pauses of at most `max_wait_s`, for which the run waits, and of at most a second are left out.
        """
        now = time.monotonic()
        pauses = {
            name.rpartition(":")[0]: round(host.state.paused_until - now)
            for name, host in self._hosts.items()
            if host.state.is_paused and host.state.max_requests_per_s is not None
        }
        return {name: pause_s for name, pause_s in pauses.items() if pause_s > max(1, self._max_wait_s)}

    def update_counts(self, host: Host) -> None:
        """Update the counts of waiting links, of `host` and in total, after its state or active links have changed."""
        num_paused = host.num_active_links if host.state.is_paused else 0
        self.num_paused_links += num_paused - host.num_paused_links_by_label.total()
        awaiting = 0 if host.state.is_paused else max(0, host.num_active_links - host.max_concurrent_requests)
        self.num_links_awaiting_slot += awaiting - host.num_links_awaiting_slot
        host.num_links_awaiting_slot = awaiting
        if num_paused or host.num_paused_links_by_label:
            self.num_paused_links_by_label.subtract(host.num_paused_links_by_label)
            host.num_paused_links_by_label = +host.num_active_links_by_label if num_paused else Counter()
            self.num_paused_links_by_label.update(host.num_paused_links_by_label)
        for hosts, holds in ((self._paused, num_paused > 0), (self._running, host.num_active_links > num_paused)):
            (hosts.add if holds else hosts.discard)(host)
        if self._running or not self._paused:
            self.deadline = math.inf
        elif self.deadline == math.inf:
            self.deadline = time.monotonic() + self._max_wait_s
            for paused in self._paused:
                paused.notify_waiting_tasks()
