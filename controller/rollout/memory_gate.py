"""The gate on memory: the share that is in use, from Triton's metrics, against a limit.

Memory in use is that of all processes of the machine, because a longer prompt or a neighbor's
model can only get what all of them leave.
"""

import contextlib
import http.client
import re
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from trt_mtp.controller.rollout.gates import GateFailedError
from trt_mtp.controller.rollout.spec import Server
from trt_mtp.controller.rollout.triton import UnreachableError
from trt_mtp.serve.ports import body_of

READ_S = 5.0
FRESH_S = 2.5  # Triton measures every 2 s, unless its --metrics-interval-ms says otherwise
POLL_S = 0.2
HOST = "host"
MAX_LINE_CHARS = 1_000  # of a sample; reading one takes its length squared

# docs/user_guide/metrics.md of triton-inference-server/server: one for each GPU that the server
# may use, by its uuid, and one for the machine
_GAUGE = re.compile(
    r"^nv_(cpu|gpu)_memory_(used|total)_bytes(?:{[^}\n]*gpu_uuid=\"([^\"\n]*)\"[^}\n]*})? (\S+)$",
    re.MULTILINE,
)


class Memory(NamedTuple):
    """The memory of one device."""

    device: str  # HOST, or the GPU's uuid
    used_bytes: int
    total_bytes: int

    @property
    def share(self) -> float:
        """The share of the total that is in use, 0 to 1."""
        return self.used_bytes / self.total_bytes

    def text(self) -> str:
        """The numbers for people."""
        used, total = self.used_bytes / 1e9, self.total_bytes / 1e9
        return f"{self.device} {used:.2f} of {total:.2f} GB ({self.share:.1%})"


class MemoryGate:
    """Limits the share of a server's memory that is in use."""

    def __init__(self, server: Server, max_share: float) -> None:
        """The server must have `metrics`."""
        assert server.metrics is not None
        self.server, self.max_share = server.grpc, max_share
        self.highest: dict[str, Memory] = {}  # the most seen so far, by device
        self._metrics = server.metrics

    def look(self) -> Memory:
        """The device with the highest share in use; raises UnreachableError without metrics."""
        devices = read_memory(self._metrics)
        for memory in devices:
            before = self.highest.get(memory.device)
            if before is None or memory.used_bytes > before.used_bytes:
                self.highest[memory.device] = memory
        return max(devices, key=lambda memory: memory.share)

    def check(self) -> None:
        """Raise GateFailedError if too much is in use, UnreachableError without metrics."""
        fullest = self.look()
        if fullest.share > self.max_share:
            raise GateFailedError(
                f"memory of {self.server}: {fullest.text()} in use, gates.max_memory_share allows "
                f"{self.max_share:.1%}",
                {"memory": self.to_json()},
            )

    def check_fresh(self, still_ours: Callable[[], None]) -> None:
        """`check` a measurement that was made after this call."""
        deadline = time.monotonic() + FRESH_S
        while time.monotonic() < deadline:
            still_ours()
            time.sleep(POLL_S)
        self.check()

    def to_json(self) -> dict[str, Any]:
        """The most that was seen, for the history and for `sentence`."""
        devices = [memory._asdict() for memory in tuple(self.highest.values())]
        return {"server": self.server, "max_share": self.max_share, "devices": devices}


def sentence(seen: dict[str, Any]) -> str:
    """What `to_json` returned, for people."""
    devices = ", ".join(Memory(**device).text() for device in seen["devices"])
    return (
        f"memory of {seen['server']}: {devices or 'not seen yet'}, "
        f"fails above {seen['max_share']:.1%}"
    )


def not_gated(servers: Iterable[Server]) -> list[str]:
    """A sentence for each server without metrics, whose memory is not gated."""
    return [
        f"memory of {server.grpc} is not gated: the file has no `metrics` of it"
        for server in servers
        if server.metrics is None
    ]


def read_memory(address: str) -> list[Memory]:
    """The memory by the Triton metrics at host:port.

    Waits FRESH_S for a Triton that has not measured yet, then raises UnreachableError.
    """
    deadline = time.monotonic() + FRESH_S
    while not (devices := _parse(_get(address))):
        if time.monotonic() > deadline:
            raise UnreachableError(
                f"the metrics at {address} tell no memory: expected nv_gpu_memory_used_bytes or "
                f"nv_cpu_memory_used_bytes (tritonserver --allow-gpu-metrics, --allow-cpu-metrics)"
            )
        time.sleep(POLL_S)
    return devices


def _parse(text: str) -> list[Memory]:
    gauges: dict[str, dict[str, int]] = {}  # by device: used, total
    short = "\n".join(line for line in text.split("\n") if len(line) <= MAX_LINE_CHARS)
    for kind, which, uuid, value in _GAUGE.findall(short):
        with contextlib.suppress(ValueError, OverflowError):  # NaN, an infinity, a word
            gauges.setdefault(uuid if kind == "gpu" else HOST, {})[which] = int(float(value))
    return [
        Memory(device, values["used"], values["total"])
        for device, values in gauges.items()
        if values.get("total") and "used" in values
    ]


def _get(address: str) -> str:
    """The text of Triton's metrics; ignores proxies."""
    connection = http.client.HTTPConnection(address, timeout=READ_S)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise http.client.HTTPException(f"status {response.status}")
        return body_of(response, READ_S).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(
            f"the metrics at {address} can't be read: {error or type(error).__name__}; expected "
            f"where.servers.metrics to be Triton's metrics port"
        ) from None
    finally:
        connection.close()
