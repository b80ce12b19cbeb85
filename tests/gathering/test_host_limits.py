"""What the hosts in use count, against a count over all links, and when paused hosts fail."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from random import Random
from types import SimpleNamespace

import pytest

from mlimages.core import Reason
from mlimages.gathering.download import host_limits
from mlimages.gathering.download.host_limits import Host, Hosts
from mlimages.gathering.download.host_state import HostState, record_failure, record_response, record_throttling
from mlimages.gathering.partition import LinkPartition

WAIT_S = 100.0
URL = "https://{}.example/1.jpg"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A clock of the test's own: `clock.now`."""
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(host_limits, "time", clock)
    return clock  # type: ignore[return-value]


def use(hosts: Hosts, held: ExitStack, name: str, label: str = "") -> Host:
    return held.enter_context(hosts.use_host(f"{name}.example:443", URL.format(name), label))


def update(host: Host, now: float, record: Callable[..., HostState], **event: object) -> None:
    host.set_state(record(host.state, now, requested_at=now, **event))


def pause(host: Host, clock: SimpleNamespace) -> None:
    update(host, clock.now, record_failure, link="link", reason=Reason.REFUSED)


@pytest.mark.parametrize("seed", range(5))
def test_links_are_counted_as_over_all_of_them(clock: SimpleNamespace, seed: int) -> None:
    rng, hosts = Random(seed), Hosts(LinkPartition(max_requests_per_host=2), WAIT_S)
    links: list[tuple[Host, str, str, ExitStack]] = []
    deadline = math.inf
    for _ in range(120):
        clock.now += 1.0
        step = rng.choice(["use", "use", "leave", "pause", "resume"])
        if step == "use" or not links:
            held, name, label = ExitStack(), rng.choice("abc"), rng.choice("xyz")
            links.append((use(hosts, held, name, label), name, label, held))
        elif step == "leave":
            links.pop(rng.randrange(len(links)))[-1].close()
        elif step == "pause":
            pause(rng.choice(links)[0], clock)
        else:
            update(rng.choice(links)[0], clock.now, record_response)
        waiting = [(name, label) for host, name, label, _ in links if host.state.is_paused]
        running = Counter(name for host, name, *_ in links if not host.state.is_paused)
        assert hosts.num_paused_links == len(waiting)
        assert +hosts.num_paused_links_by_label == Counter(label for _, label in waiting)
        assert hosts.num_links_awaiting_slot == sum(max(0, count - 2) for count in running.values())
        deadline = min(deadline, clock.now + WAIT_S) if waiting and not running else math.inf
        assert hosts.deadline == deadline
        names = {f"{name}.example" for name, _ in waiting}
        assert set(hosts.host_names_if_all_paused) == (names if deadline < math.inf else set())


@pytest.mark.parametrize(
    ("partition", "slots", "parts"),
    [
        (LinkPartition(), 8, 1),
        (LinkPartition(max_requests_per_host=3), 3, 1),
        (LinkPartition(1, 2, {"a.example": 2}, max_requests_per_host=6), 3, 2),
        (LinkPartition(1, 4, {"a.example": 4}, max_requests_per_host=2), 1, 2),
    ],
)
def test_a_host_gets_its_part_of_the_requests(partition: LinkPartition, slots: int, parts: int) -> None:
    assert partition.count_shards_of_host(URL.format("a")) >= parts
    with ExitStack() as held:
        host = use(Hosts(partition, WAIT_S), held, "a")
        limits = host.max_concurrent_requests, host.request_slots._value, host.state.num_client_processes
        assert limits == (slots, slots, parts)


def test_the_hosts_used_least_recently_are_forgotten_but_none_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_limits, "_MAX_CACHED_HOSTS", 2)
    hosts = Hosts(LinkPartition(), WAIT_S)
    with ExitStack() as held:
        first = use(hosts, held, "a")
        for name in "bc":
            with ExitStack() as short:
                use(hosts, short, name)
        assert [name[0] for name in hosts._hosts] == ["a", "b", "c"]
        assert use(hosts, held, "a") is first
        use(hosts, held, "d")
        assert [name[0] for name in hosts._hosts] == ["a", "d"]


@pytest.mark.parametrize(
    ("max_wait_s", "retry_after_s", "waits"),
    [
        (WAIT_S, 100.4, {}), (WAIT_S, 101, {"a.example": 101}), (WAIT_S, None, {}), (0.0, 1, {}),
        (0.0, 2, {"a.example": 2}),
    ],
)  # fmt: skip
def test_hosts_that_ask_to_wait_longer_than_the_maximum_and_a_second_are_named(
    clock: SimpleNamespace, max_wait_s: float, retry_after_s: float | None, waits: dict[str, float]
) -> None:
    hosts = Hosts(LinkPartition(), max_wait_s)
    with ExitStack() as held:
        pause(use(hosts, held, "b"), clock)
        update(use(hosts, held, "a"), clock.now, record_throttling, retry_after_s=retry_after_s)
        assert hosts.long_pause_s_by_host == waits


def test_a_host_is_asked_by_one_task_at_a_time_until_it_answers(clock: SimpleNamespace) -> None:
    async def run() -> None:
        hosts = Hosts(LinkPartition(), WAIT_S)
        with ExitStack() as held:
            host = use(hosts, held, "a")
            use(hosts, held, "b")  # another host is in use, so there is no deadline
            assert await host.wait_for_turn()
            update(host, clock.now, record_response)
            pause(host, clock)
            clock.now += 1.0
            host.record_site_rules_request()
            assert not host.state.is_probing, "no link waited for it"
            assert await host.wait_for_turn()
            assert host.state.is_probing
            others = [asyncio.create_task(host.wait_for_turn()) for _ in range(2)]
            await asyncio.sleep(0)
            assert not any(task.done() for task in others)
            host.record_site_rules_request()
            assert host.state.is_probing
            host.record_unsent_request()
            await asyncio.wait(others, return_when="FIRST_COMPLETED")
            assert [task.done() for task in others].count(True) == 1
            update(host, clock.now, record_response)
            assert await asyncio.gather(*others) == [True, True]
            assert not host.state.is_paused

    asyncio.run(asyncio.wait_for(run(), 10))


def test_links_on_paused_hosts_fail_at_the_deadline(clock: SimpleNamespace) -> None:
    async def run() -> None:
        hosts = Hosts(LinkPartition(), 0.5)
        with ExitStack() as held:
            host = use(hosts, held, "a")
            update(host, clock.now, record_response)
            with ExitStack() as other:
                use(hosts, other, "b")
                update(host, clock.now, record_throttling, retry_after_s=60)
                waiting = asyncio.create_task(host.wait_for_turn())
                await asyncio.sleep(0)
                assert not waiting.done()
            assert not await waiting, "the last host that is not paused is done, and 60 s is beyond the deadline"

    asyncio.run(asyncio.wait_for(run(), 10))
