"""Waiting for a slot: Erlang's C formula, and the load at which it stays short enough."""

import math

MAX_LOAD = 0.85  # of the slots, whatever the targets: room for what Poisson arrivals are not


def erlang_c(slots: int, offered: float) -> float:
    """The share of requests that wait, of `offered` erlangs on `slots` slots; 1 if overloaded.

    Erlang, "Solution of some problems in the theory of probabilities" (1917), by the recursion of
    its B formula.

    >>> round(erlang_c(4, 3.0), 4)
    0.5094
    """
    if offered >= slots:
        return 1.0
    blocked = 1.0
    for n in range(1, slots + 1):
        blocked = offered * blocked / (n + offered * blocked)
    return blocked / (1 - offered / slots * (1 - blocked))


def waiting_share(slots: int, load: float, wait_s: float, service_s: float) -> float:
    """The share of requests that wait longer than `wait_s` at this load (0 to 1) of the slots."""
    spare = slots * (1 - load)
    return erlang_c(slots, load * slots) * math.exp(-spare * wait_s / service_s)


def allowed_load(slots: int, wait_s: float, service_s: float, share: float = 0.01) -> float:
    """The highest load, MAX_LOAD at most, at which `share` of requests wait over `wait_s`.

    Service takes `service_s` on average; its spread is taken as exponential.
    """
    low, high = 0.0, MAX_LOAD
    if waiting_share(slots, high, wait_s, service_s) <= share:
        return high
    for _ in range(30):
        middle = (low + high) / 2
        holds = waiting_share(slots, middle, wait_s, service_s) <= share
        low, high = (middle, high) if holds else (low, middle)
    return low
