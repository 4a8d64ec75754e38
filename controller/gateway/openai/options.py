"""How the gateway's OpenAI API is set up."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpenAiOptions:
    """What `trt-mtp gateway` has options for."""

    aliases: tuple[str, ...] = ()  # other names of the public model
    origins: tuple[str, ...] = ()  # of web pages that may use it; "*" for any
    keep_alive_s: float = 10.0  # between chunks of a stream; many clients give up after 20
