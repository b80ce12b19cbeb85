"""When a request may be sent to a host: its state, and functions that return the state after an event.

- An unreachable host is paused: its links wait, and single requests at growing intervals (probes) detect when it
  responds again.
- 429 and 503 pause it for the time in Retry-After, or briefly, and lower its rate by a tenth; the rate then grows
  linearly (additive increase, multiplicative decrease).
- A host that refuses consecutive links is paused too: it blocks us, or requires a login.
- A host that has never responded, or only refuses, is given up after half a minute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

from mlimages.core import Reason

FAILURES_UNTIL_PAUSED = 5
"""Number of consecutive links that timed out or were reset; a single one may be the fault of the link."""

REFUSALS_UNTIL_PAUSED = 5
"""Number of consecutive links with 401, 403 or a web page after which the host is considered refusing."""

FIRST_PROBE_S = 1.0
FIRST_PAUSE_S = 0.25
"""Pause after a 429 or 503 without Retry-After."""
MIN_PAUSE_S = 1.0
"""Minimum pause after a Retry-After, even of 0."""
MAX_PAUSE_S = 30.0
"""Maximum pause between two probes; Retry-After may be longer."""
NEVER_RESPONDED_S = 30.0

DECREASE = 0.9
STRONG_DECREASE = 0.7
"""Factor of the rate if it is more than three times what the host serves."""
INCREASE_PER_S = 0.05
INCREASE = 0.005
"""Share of the rate that is added per second if it exceeds `INCREASE_PER_S`, for hosts that serve hundreds per second.
"""
MIN_RATE = 0.1
_SERVED_OVER_S = 1.0
_LATE_S = 0.002
"""Maximum delay of a timer that does not lower the rate."""

_UNREACHABLE = {Reason.REFUSED, Reason.UNREACHABLE, Reason.NAME_SERVER, Reason.PROXY}
_LASTING = {Reason.UNKNOWN_HOST, Reason.TLS}


@dataclass(frozen=True, slots=True)
class HostState:
    """The state of one host; times are seconds of a monotonic clock.

    Attributes:
        failed_links: links that failed since the last response.
        refusals: number of consecutive links that the host refused (401, 403 or a web page).
        is_paused: only single test requests (probes) are sent, and none from `paused_at` to `paused_until`.
        is_probing: a probe is in flight.
        pauses: number of pauses since the host last accepted a request.
        gives_up_at: when to stop probing a host that has never responded or only refuses.
        is_given_up: the links of the host fail without a request.
        rate: maximum requests per second; None: unlimited.
        is_ramping: the rate grows by one with each response, between the first 429 or 503 and the second.
        served_per_s: responses per second, averaged over about a second until `served_at`.
        next_request_at: when the rate allows the next request.
        num_processes: number of processes that send requests to the host; each has an equal part of the rate.
    """

    has_responded: bool = False
    failed_links: frozenset[str] = frozenset()
    refusals: int = 0
    is_paused: bool = False
    is_probing: bool = False
    paused_at: float = -math.inf
    paused_until: float = -math.inf
    pauses: int = 0
    gives_up_at: float = math.inf
    is_given_up: bool = False
    rate: float | None = None
    is_ramping: bool = False
    served_per_s: float = 0.0
    served_at: float = -math.inf
    next_request_at: float = -math.inf
    num_processes: int = 1


def seconds_until_request(state: HostState, now: float, deadline: float) -> float | None:
    """Return the seconds until the next request may be sent; None if the host is given up.

    Args:
        state, now: state of the host, and the current time.
        deadline: when to stop waiting for paused hosts.
    """
    if state.is_given_up:
        return None
    if not state.is_paused:
        return max(0.0, state.next_request_at - now)
    deadline = min(deadline, state.gives_up_at)
    if state.is_probing:
        return deadline - now if now < deadline else None
    if max(now, state.paused_until) > deadline or now == deadline:
        return None
    return max(0.0, state.paused_until - now)


def record_request(state: HostState, now: float) -> HostState:
    """Return the state after a request was sent."""
    if not (state.rate or state.is_paused or state.is_probing):  # most hosts need no state
        return state
    interval = 1 / state.rate if state.rate else 0.0
    next_request_at = max(state.next_request_at, now - _LATE_S) + interval
    return replace(state, is_probing=state.is_paused, next_request_at=next_request_at)


def record_response(state: HostState, now: float, *, requested_at: float, is_redirect: bool = False) -> HostState:
    """Return the state after a response with any status except 429 and 503.

    Args:
        is_redirect: the response is a redirect, possibly to a login page, so it does not show that the host accepts
            requests.
    """
    served_per_s = _estimate_served_per_s(state, now) + 1 / _SERVED_OVER_S
    gives_up_at = state.gives_up_at if is_redirect else math.inf
    respond = partial(
        replace, state, has_responded=True, gives_up_at=gives_up_at, served_per_s=served_per_s, served_at=now
    )
    if requested_at < state.paused_at:  # sent before the host was paused
        return respond()
    rate = state.rate
    if rate is not None and rate < 2 * served_per_s:  # otherwise it is not the bottleneck
        rate += 1.0 if state.is_ramping else max(INCREASE_PER_S / state.num_processes / rate, INCREASE)
    if is_redirect and state.refusals:
        return respond(rate=rate, is_probing=False)
    return respond(failed_links=frozenset(), refusals=0, is_paused=False, is_probing=False, pauses=0, rate=rate)


def record_refusal(state: HostState, now: float, *, requested_at: float) -> HostState:
    """Return the state after a refusal (401, 403 or a web page) of a request sent at `requested_at`."""
    if requested_at < state.paused_at:
        return state
    state = replace(state, refusals=state.refusals + 1, failed_links=frozenset(), has_responded=True)
    if state.refusals < REFUSALS_UNTIL_PAUSED:
        return replace(state, is_paused=False, is_probing=False, gives_up_at=math.inf)
    gives_up_at = min(state.gives_up_at, now + NEVER_RESPONDED_S)
    return replace(_pause(state, now, FIRST_PROBE_S), gives_up_at=gives_up_at)


def record_throttling(state: HostState, now: float, *, requested_at: float, retry_after_s: float | None) -> HostState:
    """Return the state after a 429 or 503 response to a request sent at `requested_at`."""
    asks_until = -math.inf if retry_after_s is None else now + max(retry_after_s, MIN_PAUSE_S)
    if requested_at < state.paused_at:  # sent before the host was paused
        return replace(state, paused_until=max(state.paused_until, asks_until))
    lowered = state if state.is_paused else _lower_rate(state, now)
    first_pause_s = FIRST_PAUSE_S if retry_after_s is None else 0.0
    paused = _pause(replace(lowered, has_responded=True, gives_up_at=math.inf), now, first_pause_s)
    return replace(paused, paused_until=max(paused.paused_until, asks_until), failed_links=frozenset())


def record_failure(state: HostState, now: float, *, requested_at: float, link: str, reason: Reason) -> HostState:
    """Return the state after a request for `link`, sent at `requested_at`, has failed without a response."""
    if requested_at < state.paused_at:  # sent before the host was paused
        return state
    if len(state.failed_links) < FAILURES_UNTIL_PAUSED:
        state = replace(state, failed_links=state.failed_links | {link})
    has_many = len(state.failed_links) >= FAILURES_UNTIL_PAUSED
    if reason in _LASTING:
        return replace(state, is_given_up=has_many)
    if not (state.is_paused or has_many or reason in _UNREACHABLE):
        return state
    patient = state.has_responded or reason is Reason.NAME_SERVER
    gives_up_at = math.inf if patient else min(state.gives_up_at, requested_at + NEVER_RESPONDED_S)
    return replace(_pause(state, now, FIRST_PROBE_S), gives_up_at=gives_up_at)


def _pause(state: HostState, now: float, first_pause_s: float) -> HostState:
    pause_s = min(MAX_PAUSE_S, first_pause_s * 2**state.pauses)
    return replace(
        state,
        is_paused=True,
        is_probing=False,
        paused_at=now,
        paused_until=now + pause_s,
        pauses=min(state.pauses + 1, 10),
    )


def _lower_rate(state: HostState, now: float) -> HostState:
    served = _estimate_served_per_s(state, now)
    if state.rate is None:
        return replace(state, rate=max(1.0 / state.num_processes, DECREASE * served), is_ramping=True)
    factor = STRONG_DECREASE if 3 * served < state.rate else DECREASE
    return replace(state, rate=max(MIN_RATE / state.num_processes, factor * state.rate), is_ramping=False)


def _estimate_served_per_s(state: HostState, now: float) -> float:
    return state.served_per_s * math.exp((state.served_at - now) / _SERVED_OVER_S) if state.served_per_s else 0.0
