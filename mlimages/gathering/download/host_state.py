"""When a host may be asked: its state as a value, and what each answer changes in it. No clock, no sockets.

- A host that cannot be reached is parked: its links wait, and one request at growing intervals (a probe) tells when it
  answers again.
- 429 and 503 park it for as long as it says, or briefly, and lower its rate: a tenth less each time, and a little more
  for each second without (additive increase, multiplicative decrease).
- So does a host that refuses one link after the other: it blocks us, or a page to log in stands before it.
- A host that has never answered, or refuses for so long, is given up after half a minute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

from mlimages.core import Reason

FAILURES_UNTIL_PARKED = 5
"""Links in a row that timed out or were reset: one of these may be the link's own fault."""

REFUSALS_UNTIL_PARKED = 5
"""Links in a row that were answered by 401, 403 or a web page, from which on it is the host that refuses."""

FIRST_PROBE_S = 1.0
FIRST_PAUSE_S = 0.25
"""After a 429 or 503 that does not say how long."""
LEAST_PAUSE_S = 1.0
"""After a Retry-After, even of 0."""
MOST_PAUSE_S = 30.0
"""Between two probes; Retry-After may ask for more."""
NEVER_ANSWERED_S = 30.0

DECREASE = 0.9
STRONG_DECREASE = 0.7
"""Where the rate is more than three times of what the host serves."""
INCREASE_PER_S = 0.05
INCREASE = 0.005
"""Share of the rate that is added each second where it is more than `INCREASE_PER_S`, for hosts that serve hundreds."""
LEAST_RATE = 0.1
_SERVED_OVER_S = 1.0
_LATE_S = 0.002
"""How late a timer may be without lowering the rate."""

_UNREACHABLE = {Reason.REFUSED, Reason.UNREACHABLE, Reason.NAME_SERVER, Reason.PROXY}
_LASTING = {Reason.UNKNOWN_HOST, Reason.TLS}


@dataclass(frozen=True, slots=True)
class HostState:
    """What is known of one host; times are those of a monotonic clock, in seconds.

    Attributes:
        failing: links that failed one after the other, without an answer in between.
        refusals: how often in a row it refused a link.
        is_parked: only probes are sent, from `parked_at` at least until `parked_until`. is_probing: one is on its way.
        pauses: how often in a row it was parked or a probe failed.
        gives_up_at: when to stop probing, of a host that has never answered or only refuses.
        is_given_up: its links are not tried.
        rate: requests a second; None: as many as there are. is_ramping: it grows by one with each answer,
            from the first 429 or 503 to the second.
        served_per_s: answers a second, over about a second until `served_at`.
        next_at: when the rate allows the next request.
    """

    has_answered: bool = False
    failing: frozenset[str] = frozenset()
    refusals: int = 0
    is_parked: bool = False
    is_probing: bool = False
    parked_at: float = -math.inf
    parked_until: float = -math.inf
    pauses: int = 0
    gives_up_at: float = math.inf
    is_given_up: bool = False
    rate: float | None = None
    is_ramping: bool = False
    served_per_s: float = 0.0
    served_at: float = -math.inf
    next_at: float = -math.inf


def seconds_until_request(state: HostState, now: float, deadline: float) -> float | None:
    """How long to wait for the next request; 0: it may be sent; None: the host is given up.

    Args:
        deadline: when to stop waiting for parked hosts.
    """
    if state.is_given_up:
        return None
    if not state.is_parked:
        return max(0.0, state.next_at - now)
    deadline = min(deadline, state.gives_up_at)
    if state.is_probing:
        return deadline - now if now < deadline else None
    if max(now, state.parked_until) > deadline or now == deadline:
        return None
    return max(0.0, state.parked_until - now)


def after_request(state: HostState, now: float) -> HostState:
    """A request is sent."""
    if not (state.rate or state.is_parked or state.is_probing):  # as with most hosts: nothing is to be remembered
        return state
    interval = 1 / state.rate if state.rate else 0.0
    next_at = max(state.next_at, now - _LATE_S) + interval
    return replace(state, is_probing=state.is_parked, next_at=next_at)


def after_answer(state: HostState, now: float, *, asked_at: float, is_redirect: bool = False) -> HostState:
    """The host answered a request that was sent at `asked_at`, with whatever status but 429 and 503.

    Args:
        is_redirect: it may lead to a page to log in, so that it tells nothing of whether the host refuses.
    """
    served_per_s = _served_per_s(state, now) + 1 / _SERVED_OVER_S
    gives_up_at = state.gives_up_at if is_redirect else math.inf
    answered = partial(
        replace, state, has_answered=True, gives_up_at=gives_up_at, served_per_s=served_per_s, served_at=now
    )
    if asked_at < state.parked_at:  # whether it answers now is not known yet
        return answered()
    rate = state.rate
    if rate is not None and rate < 2 * max(1.0, served_per_s):  # else the rate is not what limits it
        rate += 1.0 if state.is_ramping else max(INCREASE_PER_S / rate, INCREASE)
    if is_redirect and state.refusals:
        return answered(rate=rate, is_probing=False)
    return answered(failing=frozenset(), refusals=0, is_parked=False, is_probing=False, pauses=0, rate=rate)


def after_refusal(state: HostState, now: float, *, asked_at: float) -> HostState:
    """The host answered a request that was sent at `asked_at` by 401, 403 or a web page."""
    if asked_at < state.parked_at:
        return state
    state = replace(state, refusals=state.refusals + 1, failing=frozenset(), has_answered=True)
    if state.refusals < REFUSALS_UNTIL_PARKED:
        return replace(state, is_parked=False, is_probing=False, gives_up_at=math.inf)
    gives_up_at = min(state.gives_up_at, now + NEVER_ANSWERED_S)
    return replace(_parked(state, now, FIRST_PROBE_S), gives_up_at=gives_up_at)


def after_throttling(state: HostState, now: float, *, asked_at: float, retry_after_s: float | None) -> HostState:
    """The host answered 429 or 503 to a request that was sent at `asked_at`."""
    asks_until = -math.inf if retry_after_s is None else now + max(retry_after_s, LEAST_PAUSE_S)
    if asked_at < state.parked_at:  # sent before we knew
        return replace(state, parked_until=max(state.parked_until, asks_until))
    lowered = state if state.is_parked else _with_lower_rate(state, now)
    first_pause_s = FIRST_PAUSE_S if retry_after_s is None else 0.0
    parked = _parked(replace(lowered, has_answered=True, gives_up_at=math.inf), now, first_pause_s)
    return replace(parked, parked_until=max(parked.parked_until, asks_until), failing=frozenset())


def after_failure(state: HostState, now: float, *, asked_at: float, link: str, reason: Reason) -> HostState:
    """A request for `link`, sent at `asked_at`, was not answered."""
    if asked_at < state.parked_at:  # sent before we knew
        return state
    failing = state.failing if len(state.failing) >= FAILURES_UNTIL_PARKED else state.failing | {link}
    state = replace(state, failing=failing)
    has_many = len(failing) >= FAILURES_UNTIL_PARKED
    if reason in _LASTING:
        return replace(state, is_given_up=has_many)
    if not (state.is_parked or has_many or reason in _UNREACHABLE):
        return state
    patient = state.has_answered or reason is Reason.NAME_SERVER
    gives_up_at = math.inf if patient else min(state.gives_up_at, asked_at + NEVER_ANSWERED_S)
    return replace(_parked(state, now, FIRST_PROBE_S), gives_up_at=gives_up_at)


def _parked(state: HostState, now: float, first_pause_s: float) -> HostState:
    pause_s = min(MOST_PAUSE_S, first_pause_s * 2**state.pauses)
    return replace(
        state,
        is_parked=True,
        is_probing=False,
        parked_at=now,
        parked_until=now + pause_s,
        pauses=min(state.pauses + 1, 10),
    )


def _with_lower_rate(state: HostState, now: float) -> HostState:
    served = _served_per_s(state, now)
    if state.rate is None:
        return replace(state, rate=max(1.0, DECREASE * served), is_ramping=True)
    factor = STRONG_DECREASE if 3 * served < state.rate else DECREASE
    return replace(state, rate=max(LEAST_RATE, factor * state.rate), is_ramping=False)


def _served_per_s(state: HostState, now: float) -> float:
    return state.served_per_s * math.exp((state.served_at - now) / _SERVED_OVER_S) if state.served_per_s else 0.0
