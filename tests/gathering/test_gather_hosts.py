"""Hosts that go away, come back, slow down or never answer: no link is lost to them, and others go on."""

import socket
import threading
import time
from pathlib import Path

import pytest

from mlimages import UrlList
from mlimages.core import GatherSummary, Reason
from mlimages.gathering import read_manifest
from tests.gathering import conftest
from tests.gathering.conftest import links
from tests.servers import Connection, Reply, Request, Site, answer, closed_port, in_turn, photo, serve, silence


def run(source: UrlList, out: Path, **options: object) -> GatherSummary:
    return conftest.run(source, out, **{"retries": 2, "max_wait_s": 120.0, **options})


def a_photo(connection: Connection, request: Request) -> None:
    answer(photo(int(request.path[1:-4])))(connection, request)


def test_a_server_that_restarts_costs_no_link(tmp_path: Path) -> None:
    port = closed_port()
    urls = [f"http://127.0.0.1:{port}/{n}.jpg" for n in range(60)]
    done: list[GatherSummary] = []
    runner = threading.Thread(target=lambda: done.append(run(links(tmp_path, *urls), tmp_path / "out")))
    answered = threading.Event()

    def forty_then_stop(connection: Connection, request: Request) -> None:
        if len(first.requests) > 20:
            answered.set()
            raise ConnectionAbortedError
        a_photo(connection, request)

    with serve(port=port) as first:
        first.fallback = forty_then_stop
        runner.start()
        assert answered.wait(60)
    with serve(port=port, fallback=a_photo):
        runner.join(60)
    assert [(summary.ok, summary.open, summary.reasons) for summary in done] == [(60, 0, {})]


def test_a_name_server_that_is_away_for_a_moment_costs_no_link(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.fallback = a_photo
    look_up, away_until = socket.getaddrinfo, time.monotonic() + 1.5

    def looked_up(host: str, *rest: object, **more: object) -> object:
        if host == "away.example":
            if time.monotonic() < away_until:
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            host = "127.0.0.1"
        elif host == "nowhere.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    port = site.base.rpartition(":")[2]
    urls = [f"http://{host}.example:{port}/{n}.jpg" for host in ("away", "nowhere") for n in range(20)]
    summary = run(links(tmp_path, *urls), tmp_path / "out")
    assert (summary.ok, set(summary.reasons)) == (20, {"unknown-host", "host-down"})
    unrequested = {row.detail for row in read_manifest(tmp_path / "out") if row.reason is Reason.HOST_DOWN}
    assert unrequested == {"earlier requests could not reach the host"}


def limited(per_s: float, status: int, **headers: object) -> Reply:
    """Images, at most so many a second; none is admitted beyond that."""
    lock, free_at = threading.Lock(), [time.monotonic()]

    def reply(connection: Connection, request: Request) -> None:
        with lock:
            now = time.monotonic()
            is_admitted = now >= free_at[0] - 9 / per_s
            if is_admitted:
                free_at[0] = max(now - 1 / per_s, free_at[0]) + 1 / per_s
        (a_photo if is_admitted else answer(b"slow down", status, **headers))(connection, request)

    return reply


@pytest.mark.parametrize(("status", "headers"), [(429, {}), (503, {}), (429, {"Retry_After": 0})])
def test_a_host_that_admits_forty_a_second_loses_no_link_and_is_not_flooded(
    site: Site, tmp_path: Path, status: int, headers: dict[str, object]
) -> None:
    site.fallback = limited(40, status, **headers)
    summary = run(links(tmp_path, *(site.url(f"/{n}.jpg") for n in range(120))), tmp_path / "out", retries=0)
    assert (summary.ok, summary.failed) == (120, 0)
    assert len(site.requests) < 120 * 1.3


@pytest.mark.parametrize("status", [420, 429, 503])
def test_a_host_that_asks_for_an_hour_ends_the_wait_at_once_and_its_links_stay_open(
    site: Site, tmp_path: Path, status: int
) -> None:
    site.fallback = answer(b"", status, Retry_After="3600")
    with serve() as other:
        other.fallback = a_photo
        urls = [base.url(f"/{n}.jpg") for n in range(30) for base in (site, other)]
        summary = run(links(tmp_path, *urls), tmp_path / "out")
    assert (summary.ok, summary.open) == (30, 30)
    requested = "server-error" if status == 503 else "throttled"
    assert summary.reasons == {"host-down": 30 - len(site.requests), requested: len(site.requests)}
    unrequested = {row.detail for row in read_manifest(tmp_path / "out") if row.reason is Reason.HOST_DOWN}
    assert unrequested == {"the host throttles requests (HTTP 429 or 503)"}
    assert summary.seconds < 30
    assert {host: 3000 < wait_s <= 3600 for host, wait_s in summary.waits_s.items()} == {"127.0.0.1": True}
    assert len(site.requests) <= 8


def test_links_of_hosts_that_do_not_answer_do_not_hold_up_the_others(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlimages.gathering.run.MAX_LINKS_IN_PROGRESS", 64)
    site.fallback = a_photo
    down = f"http://127.0.0.1:{closed_port()}"
    urls = [*(f"{down}/{n}.jpg" for n in range(100)), *(site.url(f"/{n}.jpg") for n in range(20))]
    out = tmp_path / "out"
    summary = run(links(tmp_path, *urls), out, max_wait_s=3.0)
    assert [row.status for row in read_manifest(out)][:20] == ["ok"] * 20
    assert (summary.ok, summary.open) == (20, 100)


def test_a_list_sorted_by_host_keeps_several_hosts_busy(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlimages.gathering.run.MAX_LINKS_IN_PROGRESS", 4)
    with serve() as other:
        other.fallback = a_photo

        def once_the_other_is_asked(connection: Connection, request: Request) -> None:
            while not other.requests and not connection.pause(0.01):
                pass
            a_photo(connection, request)

        site.fallback = once_the_other_is_asked
        urls = [(site if n < 20 else other).url(f"/{n}.jpg") for n in range(40)]
        assert run(links(tmp_path, *urls), tmp_path / "out", timeout_s=3.0, per_host=2).ok == 40


def test_links_that_wait_for_their_host_do_not_fill_a_limit_and_never_exceed_it(site: Site, tmp_path: Path) -> None:
    site.fallback = a_photo
    down = f"http://127.0.0.1:{closed_port()}"
    urls = [*(f"{down}/{n}.jpg" for n in range(20)), *(site.url(f"/{n}.jpg") for n in range(20))]
    summary = run(links(tmp_path, *urls), tmp_path / "out", limit=4, max_wait_s=3.0)
    assert [row.status for row in read_manifest(tmp_path / "out")][-1] == "failed", "the others did not wait for these"
    assert (summary.ok, summary.classes) == (4, {"cats": 4})
    with serve() as slow:
        slow.fallback = in_turn(*[answer(b"", 503, Retry_After=1)] * 8, a_photo)
        urls = [*(slow.url(f"/{n}.jpg") for n in range(30, 40)), *(site.url(f"/{n}.jpg") for n in range(40, 50))]
        assert run(links(tmp_path, *urls), tmp_path / "out-2", limit=6, per_host=4).classes == {"cats": 6}


def test_a_silent_host_is_given_up_long_before_a_minute(site: Site, tmp_path: Path) -> None:
    site.fallback = silence()
    source = links(tmp_path, *(site.url(f"/{n}.jpg") for n in range(1000)))
    summary = run(source, tmp_path / "out", timeout_s=1.0)
    assert (summary.open, summary.seconds < 45, len(site.requests) < 30) == (1000, True, True)


def test_a_link_that_always_answers_503_does_not_keep_a_run_alive(site: Site, tmp_path: Path) -> None:
    site.fallback = a_photo
    site.routes["/1000.jpg"] = answer(b"", 503)
    urls = [site.url(f"/{n}.jpg") for n in [1000, *range(20)]]
    summary = run(links(tmp_path, *urls), tmp_path / "out", max_wait_s=2.0)
    assert (summary.ok, summary.reasons) == (20, {"server-error": 1})
