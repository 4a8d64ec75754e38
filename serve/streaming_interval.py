"""How much of a streamed answer goes into a message: as the request says, or the variant."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from trt_mtp.errors import InputError
from trt_mtp.serve.contract import INTERVAL, INTERVAL_MS, MAX_HOLD_S

INTERVALS = (INTERVAL, INTERVAL_MS)
MAX_HOLD_MS = round(MAX_HOLD_S * 1000)

GivenInterval = Mapping[str, int]  # of INTERVALS, those that are given
NO_INTERVAL: GivenInterval = MappingProxyType({})


class Interval(NamedTuple):
    """How much waits for the next message: until either is reached."""

    tokens: int = 1
    seconds: float = 0.0


def asked_interval(given: GivenInterval, max_tokens: int) -> Interval:
    """What a request for up to `max_tokens` gives; raises InputError for what can be none."""
    for name, value in given.items():
        limit = max_tokens if name == INTERVAL else MAX_HOLD_MS
        if not 1 <= value <= limit:
            what = "sampling_param_max_tokens, " if name == INTERVAL else ""
            raise InputError(f"{name} is {value}: expected 1 to {what}{limit}")
    # with milliseconds alone, no number of tokens is enough
    tokens = given.get(INTERVAL, max_tokens if INTERVAL_MS in given else 1)
    return Interval(tokens, given.get(INTERVAL_MS, MAX_HOLD_MS) / 1000 if given else 0.0)


def default_interval(given: GivenInterval, max_tokens: int) -> Interval:
    """A variant's default for an answer of up to `max_tokens`, which may be shorter than it."""
    limits = {INTERVAL: max_tokens, INTERVAL_MS: MAX_HOLD_MS}
    return asked_interval({name: min(given[name], limits[name]) for name in given}, max_tokens)


def interval_in(parameters: Mapping[str, str]) -> GivenInterval:
    """The default in the parameters of a Triton model; raises InputError for one that is none."""
    given = {name: parameters[name] for name in INTERVALS if name in parameters}
    for name, text in given.items():
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            raise InputError(f"{name} is {text!r} in config.pbtxt: expected a number from 1")
    return {name: int(text) for name, text in given.items()}
