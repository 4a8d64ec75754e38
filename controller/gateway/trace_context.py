"""What of a client's headers goes on to Triton: its trace, where that is well-formed.

gRPC refuses a call with metadata that is not ASCII or too long, before it is sent: which would look
as if the variant had failed, and every other one after it. The forms and lengths are those of
https://www.w3.org/TR/trace-context/, which has a wrong header ignored.
"""

import re
from collections.abc import Iterable

from trt_mtp.controller.gateway.servers.upstream import Metadata

FORMS = {
    "traceparent": re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"),
    "tracestate": re.compile(r"[!-~](?:[ -~]{0,510}[!-~])?"),
}


def trace_context(headers: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """The trace in headers with names in lower case; nothing of one that is there twice."""
    given: dict[str, list[str | bytes]] = {name: [] for name in FORMS}
    for name, value in headers:
        if name in given:
            given[name].append(value)
    return tuple(
        (name, values[0])
        for name, values in given.items()
        if len(values) == 1 and isinstance(values[0], str) and FORMS[name].fullmatch(values[0])
    )
