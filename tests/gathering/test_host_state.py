"""When a host is asked, paused, probed, slowed down and given up, with a clock of the test's own."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from mlimages.core import Reason
from mlimages.gathering.download.host_state import (
    FAILURES_UNTIL_PAUSED,
    GIVE_UP_AFTER_S,
    MAX_PROBE_INTERVAL_S,
    REFUSALS_UNTIL_PAUSED,
    HostState,
    record_failure,
    record_refusal,
    record_request,
    record_response,
    record_throttling,
    seconds_until_request,
)

ANSWERED = replace(HostState(), has_responded=True)


def failed(state: HostState, now: float, reason: Reason, link: str = "a") -> HostState:
    return record_failure(state, now, requested_at=now, link=link, reason=reason)


def throttled(state: HostState, now: float, retry_after_s: float | None = None) -> HostState:
    return record_throttling(state, now, requested_at=now, retry_after_s=retry_after_s)


@pytest.mark.parametrize(
    ("reason", "failures", "is_paused", "is_given_up"),
    [
        (Reason.REFUSED, 1, True, False),
        (Reason.UNREACHABLE, 1, True, False),
        (Reason.NAME_SERVER, 1, True, False),
        (Reason.PROXY, 1, True, False),
        (Reason.TIMEOUT, FAILURES_UNTIL_PAUSED - 1, False, False),
        (Reason.TIMEOUT, FAILURES_UNTIL_PAUSED, True, False),
        (Reason.RESET, FAILURES_UNTIL_PAUSED, True, False),
        (Reason.UNKNOWN_HOST, FAILURES_UNTIL_PAUSED - 1, False, False),
        (Reason.UNKNOWN_HOST, FAILURES_UNTIL_PAUSED, False, True),
        (Reason.TLS, FAILURES_UNTIL_PAUSED, False, True),
    ],
)
def test_failures_pause_a_host_and_lasting_ones_end_it(
    reason: Reason, failures: int, is_paused: bool, is_given_up: bool
) -> None:
    state = ANSWERED
    for number in range(failures):
        state = failed(state, 0.0, reason, f"link {number}")
    assert (state.is_paused, state.is_given_up) == (is_paused, is_given_up)


@pytest.mark.parametrize(
    ("answers", "is_paused"),
    [
        ("r" * (REFUSALS_UNTIL_PAUSED - 1), False),
        ("r" * REFUSALS_UNTIL_PAUSED, True),
        ("rrrr.rrrr", False),
        ("r" * REFUSALS_UNTIL_PAUSED + ".", False),
    ],
)
def test_a_host_that_refuses_one_link_after_the_other_is_paused_until_it_answers(answers: str, is_paused: bool) -> None:
    state, now = HostState(), 0.0
    for each in answers:
        now += seconds_until_request(state, now, math.inf) or 0.01
        state = (record_refusal if each == "r" else record_response)(record_request(state, now), now, requested_at=now)
    assert state.is_paused == is_paused
    assert state.give_up_at == (now + GIVE_UP_AFTER_S if is_paused else math.inf)


@pytest.mark.parametrize(
    ("link", "is_paused", "remembered"), [("the same link", False, 1), ("link {}", True, FAILURES_UNTIL_PAUSED)]
)
def test_only_failures_of_several_links_pause_a_host_and_no_more_are_remembered(
    link: str, is_paused: bool, remembered: int
) -> None:
    state = ANSWERED
    for now in range(50):
        state = failed(state, float(now), Reason.RESET, link.format(now))
    assert (state.is_paused, len(state.failed_links)) == (is_paused, remembered)


def test_probes_come_at_growing_intervals_one_at_a_time_and_an_answer_resumes() -> None:
    state, now, intervals = failed(ANSWERED, 0.0, Reason.REFUSED), 0.0, []
    for _ in range(8):
        pause_s = seconds_until_request(state, now, math.inf)
        assert pause_s
        intervals.append(pause_s)
        now += pause_s
        assert seconds_until_request(state, now, math.inf) == 0
        state = record_request(state, now)
        assert seconds_until_request(state, now, math.inf) == math.inf, "the others wait for the probe"
        state = failed(state, now, Reason.REFUSED)
    assert intervals == [1, 2, 4, 8, 16, MAX_PROBE_INTERVAL_S, MAX_PROBE_INTERVAL_S, MAX_PROBE_INTERVAL_S]
    state = record_response(record_request(state, now + 30), now + 31, requested_at=now + 30)
    assert (state.is_paused, state.failed_links) == (False, frozenset())
    assert seconds_until_request(state, now + 31, math.inf) == 0


@pytest.mark.parametrize(("retry_after_s", "pause_s"), [(0, 1), (0.5, 1), (7, 7), (3600, 3600), (None, 0.25)])
def test_retry_after_is_obeyed_and_none_and_zero_pause_too(retry_after_s: float | None, pause_s: float) -> None:
    state = throttled(ANSWERED, 10.0, retry_after_s)
    assert seconds_until_request(state, 10.0, math.inf) == pause_s


@pytest.mark.parametrize(
    ("state", "now", "deadline", "expected"),
    [
        (ANSWERED, 0.0, 0.0, 0.0),
        (throttled(ANSWERED, 0.0, 3600), 0.0, math.inf, 3600),
        (throttled(ANSWERED, 0.0, 3600), 0.0, 120.0, None),  # waiting until the deadline would be of no use
        (throttled(ANSWERED, 0.0, 60), 0.0, 120.0, 60),
        (throttled(ANSWERED, 0.0, 60), 70.0, 120.0, 0),
        (throttled(ANSWERED, 0.0, 60), 121.0, 120.0, None),
        (record_request(throttled(ANSWERED, 0.0, 60), 70.0), 80.0, 120.0, 40.0),
        (record_request(throttled(ANSWERED, 0.0, 60), 70.0), 120.0, 120.0, None),
        (replace(ANSWERED, is_given_up=True), 0.0, math.inf, None),
        (replace(ANSWERED, max_requests_per_s=4.0, next_request_at=1.0), 0.75, math.inf, 0.25),
    ],
)
def test_when_the_next_request_may_be_sent(
    state: HostState, now: float, deadline: float, expected: float | None
) -> None:
    assert seconds_until_request(state, now, deadline) == expected


@pytest.mark.parametrize(
    ("start", "reason", "give_up_at"),
    [
        (HostState(), Reason.REFUSED, GIVE_UP_AFTER_S),
        (HostState(), Reason.NAME_SERVER, math.inf),
        (ANSWERED, Reason.REFUSED, math.inf),
    ],
)
def test_a_host_that_never_answered_is_given_up_in_half_a_minute(
    start: HostState, reason: Reason, give_up_at: float
) -> None:
    state, now = failed(start, 0.0, reason), 0.0
    for _ in range(12):
        pause_s = seconds_until_request(state, now, math.inf)
        if pause_s is None:
            break
        now += pause_s
        state = failed(record_request(state, now), now, reason)
    assert state.give_up_at == give_up_at
    assert (now <= GIVE_UP_AFTER_S) == (give_up_at < math.inf)


def test_requests_to_a_host_without_a_limit_change_no_state() -> None:
    state = HostState()
    assert record_request(state, 1.0) is state


@pytest.mark.parametrize(("requested_at", "counts"), [(4.9, False), (5.0, True)])
def test_an_outcome_counts_if_its_request_was_sent_when_the_host_was_paused_or_later(
    requested_at: float, counts: bool
) -> None:
    paused = failed(ANSWERED, 5.0, Reason.REFUSED)
    paused = replace(paused, num_refusals=REFUSALS_UNTIL_PAUSED, max_requests_per_s=8.0)
    assert record_response(paused, 6.0, requested_at=requested_at).is_paused is not counts
    for state in (
        record_refusal(paused, 6.0, requested_at=requested_at),
        record_throttling(paused, 6.0, requested_at=requested_at, retry_after_s=None),
        record_failure(paused, 6.0, requested_at=requested_at, link="b", reason=Reason.REFUSED),
    ):
        assert (state.paused_at, state.num_pauses) == ((6.0, 2) if counts else (5.0, 1))
        assert counts or state == paused
    assert record_throttling(paused, 6.0, requested_at=requested_at, retry_after_s=60).paused_until == 66.0


@pytest.mark.parametrize(
    "state",
    [
        record_response(HostState(), 0.0, requested_at=0.0),
        record_response(HostState(), 0.0, requested_at=0.0, is_redirect=True),
        record_refusal(HostState(), 0.0, requested_at=0.0),
        throttled(HostState(), 0.0),
    ],
)
def test_a_host_that_has_responded_in_any_way_is_probed_for_as_long_as_it_takes(state: HostState) -> None:
    assert failed(state, 1.0, Reason.REFUSED).give_up_at == math.inf


def test_a_redirect_ends_the_probe_of_a_host_that_refuses_but_does_not_resume_it() -> None:
    paused = replace(ANSWERED, num_refusals=REFUSALS_UNTIL_PAUSED, is_paused=True, paused_at=0.0, paused_until=1.0)
    paused = replace(paused, give_up_at=50.0)
    state = record_response(record_request(paused, 1.0), 1.1, requested_at=1.0, is_redirect=True)
    assert (state.is_paused, state.is_probing, state.num_refusals) == (True, False, REFUSALS_UNTIL_PAUSED)
    assert state.give_up_at == 50.0


@pytest.mark.parametrize(
    ("rate", "served", "parts", "lowered"),
    [
        (None, 0.0, 1, 1.0), (None, 0.0, 4, 0.25), (None, 20.0, 1, 18.0), (None, 20.0, 4, 18.0),
        (10.0, 4.0, 1, 9.0), (12.0, 4.0, 1, 10.8), (12.1, 4.0, 1, 8.47), (10.0, 0.0, 1, 7.0),
        (0.15, 0.0, 1, 0.105), (0.14, 0.0, 1, 0.1), (0.12, 0.0, 4, 0.084), (0.03, 0.0, 4, 0.025),
    ],
)  # fmt: skip
def test_the_rate_is_lowered_with_what_the_host_serves(
    rate: float | None, served: float, parts: int, lowered: float
) -> None:
    state = HostState(max_requests_per_s=rate, responses_per_s=served, last_response_at=5.0, num_client_processes=parts)
    assert throttled(state, 5.0).max_requests_per_s == pytest.approx(lowered)
    assert throttled(state, 5.0).is_ramping_up is (rate is None)


@pytest.mark.parametrize(
    ("rate", "served", "parts", "is_ramping_up", "raised"),
    [
        (4.0, 0.9, 1, False, 4.0), (3.8, 0.9, 1, False, 3.8), (3.7, 0.9, 1, False, 3.7 + 0.05 / 3.7),
        (2.0, 9.0, 1, True, 3.0), (2.0, 9.0, 4, False, 2 + 0.05 / 4 / 2), (100.0, 99.0, 1, False, 100.005),
        (1.9, 0.0, 4, True, 2.9), (2.0, 0.0, 4, True, 2.0),
    ],
)  # fmt: skip
def test_the_rate_is_raised_while_the_host_serves_more_than_half_of_it(
    rate: float, served: float, parts: int, is_ramping_up: bool, raised: float
) -> None:
    state = HostState(
        max_requests_per_s=rate,
        responses_per_s=served,
        last_response_at=5.0,
        num_client_processes=parts,
        is_ramping_up=is_ramping_up,
    )
    assert record_response(state, 5.0, requested_at=4.9).max_requests_per_s == pytest.approx(raised)


class Bucket:
    """A server that admits so many requests a second, and `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst, self.tokens, self.at = rate, burst, burst, 0.0

    def admits(self, now: float) -> bool:
        self.tokens = min(self.burst, self.tokens + self.rate * (now - self.at))
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Window:
    """A server that admits so many requests in each second of its clock."""

    def __init__(self, rate: float) -> None:
        self.rate, self.second, self.count = rate, -1, 0

    def admits(self, now: float) -> bool:
        if int(now) != self.second:
            self.second, self.count = int(now), 0
        self.count += 1
        return self.count <= self.rate


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("latency_s", [0.002, 0.05, 0.3])
@pytest.mark.parametrize("retry_after_s", [None, 0, 1])
@pytest.mark.parametrize(
    "make_server", [partial(Bucket, 10, 1), partial(Bucket, 10, 10), partial(Bucket, 10, 100), partial(Window, 10)]
)
def test_a_host_that_admits_ten_a_second_gets_about_ten_a_second(
    make_server: Callable[[], Bucket | Window], retry_after_s: float | None, latency_s: float, parts: int
) -> None:
    server, states, now = make_server(), [HostState(num_client_processes=parts)] * parts, 0.0
    in_flight: list[list[tuple[float, float, bool]]] = [[] for _ in states]
    sent: list[float] = []
    while now < 60:
        moments = []
        for n, ahead in enumerate(in_flight):
            if now < 0.37 * n:  # the parts do not start at the same time
                moments.append(0.37 * n)
                continue
            state = states[n]
            while ahead and ahead[0][0] <= now:
                _, requested_at, is_admitted = ahead.pop(0)
                if is_admitted:
                    state = record_response(state, now, requested_at=requested_at)
                else:
                    state = record_throttling(state, now, requested_at=requested_at, retry_after_s=retry_after_s)
            while len(ahead) < 8 // parts and seconds_until_request(state, now, math.inf) == 0:
                state = record_request(state, now)
                sent.append(now)
                ahead.append((now + latency_s, now, server.admits(now)))
            pause_s = seconds_until_request(state, now, math.inf) if len(ahead) < 8 // parts else math.inf
            assert pause_s is not None
            moments += [now + pause_s, *(arrival for arrival, _, _ in ahead)]
            states[n] = state
        now = min(moments)
    lowest = 2 if parts > 1 and getattr(server, "burst", 10) == 1 else 8  # requests of two at one time are refused
    for start in (20, 40):
        assert lowest <= sum(start <= moment < start + 20 for moment in sent) / 20 <= (11 if parts == 1 else 11.5)
