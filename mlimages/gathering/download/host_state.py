"""Decide when a request may be sent to a host. The functions return the state of the host after an event.

- An unreachable host is paused: its links wait, and single requests at growing intervals (probes) detect when it
  responds again.
- 420, 429 and 503 pause it for the time in Retry-After, or briefly, and lower its rate by a tenth or more; the rate
  then grows linearly (additive increase, multiplicative decrease).
- A host that refuses consecutive links is paused too: it blocks this client, or requires a login.
- A host that has never responded, or only refuses, is given up after half a minute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from mlimages.core import Reason

FAILURES_UNTIL_PAUSED = 5
"""Number of links with a time-out or reset, without a response in between, after which the host is paused."""

REFUSALS_UNTIL_PAUSED = 5
"""Number of consecutive links with 401, 403, 451 or a web page after which the host is paused."""

FIRST_PROBE_DELAY_S = 1.0
"""Pause before the first probe; doubled before each further probe."""
FIRST_THROTTLING_PAUSE_S = 0.25
"""Pause after the first 429 or 503 without Retry-After; doubled after each further one."""
MIN_RETRY_AFTER_S = 1.0
"""Minimum pause after a response with Retry-After, even if its value is 0."""
MAX_PROBE_INTERVAL_S = 30.0
"""Maximum pause between two probes; Retry-After may be longer."""
GIVE_UP_AFTER_S = 30.0
"""Seconds after which a host that has never responded, or only refuses, is given up."""

RATE_DECREASE_FACTOR = 0.9
"""Factor by which the rate is multiplied after a 429 or 503."""
STRONG_RATE_DECREASE_FACTOR = 0.7
"""Replaces `RATE_DECREASE_FACTOR` if the host sends less than a third of the responses that the rate allows."""
RATE_INCREASE_PER_S = 0.05
"""How much the rate, in requests per second, increases in each second without a 429 or 503."""
MIN_RATE_INCREASE_PER_RESPONSE = 0.005
"""Minimum increase of the rate with each response, for hosts that serve hundreds of requests per second."""
MIN_REQUESTS_PER_S = 0.1
_RATE_AVERAGING_S = 1.0
"""Time over which the rate of responses is averaged (exponentially)."""
_MAX_TIMER_DELAY_S = 0.002
"""If a timer fires late by up to this many seconds, the next request is sent earlier by the same time."""

_UNREACHABLE_REASONS = {Reason.REFUSED, Reason.UNREACHABLE, Reason.NAME_SERVER, Reason.PROXY}
"""Reasons after which the host is paused at once."""
_PERMANENT_REASONS = {Reason.UNKNOWN_HOST, Reason.TLS}
"""Causes that waiting does not remove, such as an unknown host name: the host is given up rather than paused."""


@dataclass(frozen=True, slots=True)
class HostState:
    """The state of one host; times are seconds of a monotonic clock.

    Attributes:
        has_responded: whether the host has responded at least once.
        failed_links: links that failed since the last response, up to `FAILURES_UNTIL_PAUSED`.
        num_refusals: number of consecutive links that the host refused (401, 403, 451 or a web page).
        is_paused: whether the host is paused: it is sent no request until `paused_until`, then single test requests
            (probes) until it responds.
        paused_at, paused_until: start of the current pause, and time of the next probe.
        is_probing: whether a probe is in flight.
        num_pauses: number of pauses since the host last accepted a request.
        give_up_at: when to stop probing a host that has never responded or only refuses; infinite for other hosts.
        is_given_up: whether the links of the host fail without a request.
        max_requests_per_s: the rate, that is, the maximum number of requests per second; None: unlimited.
        is_ramping_up: whether `max_requests_per_s` grows by 1 with each response, to find the limit of the host quickly
            (like TCP's slow start). True from the first 429 or 503, which sets `max_requests_per_s`, to the second one.
        responses_per_s: responses per second, averaged over about a second.
        last_response_at: time of the last response that `responses_per_s` counts; it does not count refusals, 420, 429
            and 503.
        next_request_at: when `max_requests_per_s` allows the next request.
        num_client_processes: number of processes that send requests to the host; each has an equal part of the rate.
    """

    has_responded: bool = False
    failed_links: frozenset[str] = frozenset()
    num_refusals: int = 0
    is_paused: bool = False
    is_probing: bool = False
    paused_at: float = -math.inf
    paused_until: float = -math.inf
    num_pauses: int = 0
    give_up_at: float = math.inf
    is_given_up: bool = False
    max_requests_per_s: float | None = None
    is_ramping_up: bool = False
    responses_per_s: float = 0.0
    last_response_at: float = -math.inf
    next_request_at: float = -math.inf
    num_client_processes: int = 1


def seconds_until_request(state: HostState, now: float, deadline: float) -> float | None:
    """Return the seconds until the next request may be sent; None if waiting is useless.

    Waiting is useless if the host is given up, or would still be paused at the deadline. While a probe is in flight,
    the seconds until the deadline are returned.

    Args:
        state, now: state of the host, and the current time.
        deadline: when to stop waiting for paused hosts.
    """
    if state.is_given_up:
        return None
    if not state.is_paused:
        return max(0.0, state.next_request_at - now)
    deadline = min(deadline, state.give_up_at)
    if state.is_probing:
        return deadline - now if now < deadline else None
    if max(now, state.paused_until) > deadline or now == deadline:
        return None
    return max(0.0, state.paused_until - now)


def record_request(state: HostState, now: float) -> HostState:
    """Return the state after a request was sent."""
    if not (state.max_requests_per_s or state.is_paused or state.is_probing):  # most hosts need no state
        return state
    interval = 1 / state.max_requests_per_s if state.max_requests_per_s else 0.0
    next_request_at = max(state.next_request_at, now - _MAX_TIMER_DELAY_S) + interval
    return replace(state, is_probing=state.is_paused, next_request_at=next_request_at)


def record_response(state: HostState, now: float, *, requested_at: float, is_redirect: bool = False) -> HostState:
    """Return the state after a response that neither throttles nor refuses the request.

    Args:
        requested_at: when the request was sent.
        is_redirect: the response is a redirect, possibly to a login page, so it does not show that the host accepts
            requests.
    """
    responses_per_s = _estimate_responses_per_s(state, now) + 1 / _RATE_AVERAGING_S
    changes: dict[str, Any] = {"has_responded": True, "responses_per_s": responses_per_s, "last_response_at": now}
    if not is_redirect:
        changes["give_up_at"] = math.inf
    if requested_at >= state.paused_at:  # sent after the host was paused, if it was
        rate = state.max_requests_per_s
        if rate is not None and rate < 2 * responses_per_s:  # otherwise it is not the bottleneck
            slow_increase = max(RATE_INCREASE_PER_S / state.num_client_processes / rate, MIN_RATE_INCREASE_PER_RESPONSE)
            rate += 1.0 if state.is_ramping_up else slow_increase
        changes |= {"max_requests_per_s": rate, "is_probing": False}
        if not (is_redirect and state.num_refusals):
            changes |= {"failed_links": frozenset(), "num_refusals": 0, "is_paused": False, "num_pauses": 0}
    return replace(state, **changes)


def record_refusal(state: HostState, now: float, *, requested_at: float) -> HostState:
    """Return the state after the host answered a request sent at `requested_at` with 401, 403, 451 or a web page."""
    if requested_at < state.paused_at:
        return state
    state = replace(state, num_refusals=state.num_refusals + 1, failed_links=frozenset(), has_responded=True)
    if state.num_refusals < REFUSALS_UNTIL_PAUSED:
        return replace(state, is_paused=False, is_probing=False, give_up_at=math.inf)
    give_up_at = min(state.give_up_at, now + GIVE_UP_AFTER_S)
    return replace(_pause(state, now, FIRST_PROBE_DELAY_S), give_up_at=give_up_at)


def record_throttling(state: HostState, now: float, *, requested_at: float, retry_after_s: float | None) -> HostState:
    """Return the state after a 420, 429 or 503 response to a request sent at `requested_at`."""
    asks_until = -math.inf if retry_after_s is None else now + max(retry_after_s, MIN_RETRY_AFTER_S)
    if requested_at < state.paused_at:  # sent before the host was paused
        return replace(state, paused_until=max(state.paused_until, asks_until))
    lowered = state if state.is_paused else _lower_rate(state, now)
    first_pause_s = FIRST_THROTTLING_PAUSE_S if retry_after_s is None else 0.0
    paused = _pause(replace(lowered, has_responded=True, give_up_at=math.inf), now, first_pause_s)
    return replace(paused, paused_until=max(paused.paused_until, asks_until), failed_links=frozenset())


def record_failure(state: HostState, now: float, *, requested_at: float, link: str, reason: Reason) -> HostState:
    """Return the state after a request for `link`, sent at `requested_at`, failed without a complete response."""
    if requested_at < state.paused_at:  # sent before the host was paused
        return state
    if len(state.failed_links) < FAILURES_UNTIL_PAUSED:
        state = replace(state, failed_links=state.failed_links | {link})
    has_many = len(state.failed_links) >= FAILURES_UNTIL_PAUSED
    if reason in _PERMANENT_REASONS:
        return replace(state, is_given_up=has_many)
    if not (state.is_paused or has_many or reason in _UNREACHABLE_REASONS):
        return state
    patient = state.has_responded or reason is Reason.NAME_SERVER
    give_up_at = math.inf if patient else min(state.give_up_at, requested_at + GIVE_UP_AFTER_S)
    return replace(_pause(state, now, FIRST_PROBE_DELAY_S), give_up_at=give_up_at)


def _pause(state: HostState, now: float, first_pause_s: float) -> HostState:
    """Return the state with a pause of `first_pause_s`, doubled for each of the `num_pauses` before it."""
    pause_s = min(MAX_PROBE_INTERVAL_S, first_pause_s * 2**state.num_pauses)
    return replace(
        state,
        is_paused=True,
        is_probing=False,
        paused_at=now,
        paused_until=now + pause_s,
        num_pauses=min(state.num_pauses + 1, 10),
    )


def _lower_rate(state: HostState, now: float) -> HostState:
    served = _estimate_responses_per_s(state, now)
    if state.max_requests_per_s is None:
        rate = max(1.0 / state.num_client_processes, RATE_DECREASE_FACTOR * served)
        return replace(state, max_requests_per_s=rate, is_ramping_up=True)
    factor = STRONG_RATE_DECREASE_FACTOR if 3 * served < state.max_requests_per_s else RATE_DECREASE_FACTOR
    rate = max(MIN_REQUESTS_PER_S / state.num_client_processes, factor * state.max_requests_per_s)
    return replace(state, max_requests_per_s=rate, is_ramping_up=False)


def _estimate_responses_per_s(state: HostState, now: float) -> float:
    """Return the value of `responses_per_s` at the time `now`; it decays exponentially after the last response."""
    return state.responses_per_s * math.exp((state.last_response_at - now) / _RATE_AVERAGING_S)
