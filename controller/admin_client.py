"""A gateway's statistics, asked at its admin port."""

import http.client
import json
from typing import Any

from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.serve.hosts import bare_host

ANSWER_S = 5.0
MAX_BYTES = 16 * 1024 * 1024  # thousands of variants


def read_statistics(address: str) -> dict[str, Any]:
    """`GET /statistics` at HOST:PORT, without a proxy.

    Raises InputError for an address that is none, TrtMtpError where no gateway's admin port
    answers.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 65_536):
        raise InputError(f"--admin is {address[:80]!r}: expected HOST:PORT, such as 127.0.0.1:9001")
    connection = http.client.HTTPConnection(bare_host(host), int(port), timeout=ANSWER_S)
    try:
        connection.request("GET", "/statistics")
        response = connection.getresponse()
        value = json.loads(response.read(MAX_BYTES))
    except OSError as error:
        raise TrtMtpError(
            f"--admin {address} does not answer ({str(error) or type(error).__name__}): start the "
            "gateway with --admin-port, and give that port"
        ) from None
    except http.client.HTTPException:  # with bytes of another protocol in its text
        value = None
    except (ValueError, RecursionError):
        value = None
    finally:
        connection.close()
    if not isinstance(value, dict) or "tasks" not in value:
        raise InputError(f"--admin {address} is not a gateway's admin port (see --admin-port)")
    return value
