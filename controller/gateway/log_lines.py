"""The gateway's log on stderr: a line for each message, whoever's words are in it."""

import logging

from trt_mtp.printable import one_line

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class _Lines(logging.Formatter):
    """What servers, variants and clients say begins no line of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, without the stack of an exception."""
        return one_line(super().formatMessage(record))


def begin_log() -> None:
    """Log from now on."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines(LOG_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
