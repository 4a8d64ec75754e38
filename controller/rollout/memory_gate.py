"""The gate on memory: what a server uses, as its Triton publishes it, against a share of the total.

Used is what all processes of the machine use together, and so is the limit: what is left of a GPU
is what a longer prompt or a neighbour's model can still get.
"""

import http.client
import re
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from trt_mtp.controller.rollout.gates import GateFailed
from trt_mtp.controller.rollout.spec import Server
from trt_mtp.controller.rollout.triton import Unreachable

READ_S = 5.0
FRESH_S = 2.5  # Triton measures every 2 s, unless its --metrics-interval-ms says otherwise
POLL_S = 0.2
HOST = "host"

# docs/user_guide/metrics.md of triton-inference-server/server: one for each GPU that the server
# may use, by its uuid, and one for the machine
_GAUGE = re.compile(
    r"^nv_(cpu|gpu)_memory_(used|total)_bytes(?:{[^}]*gpu_uuid=\"([^\"]*)\"[^}]*})? (\S+)$",
    re.MULTILINE,
)


class Memory(NamedTuple):
    """What is used of the memory of one device."""

    device: str  # HOST, or the GPU's uuid
    used_bytes: int
    total_bytes: int

    @property
    def share(self) -> float:
        """Used, of the total."""
        return self.used_bytes / self.total_bytes

    def text(self) -> str:
        """For people."""
        used, total = self.used_bytes / 1e9, self.total_bytes / 1e9
        return f"{self.device} {used:.2f} of {total:.2f} GB ({self.share:.1%})"


class MemoryGate:
    """The memory of one server, and how much of it may be used."""

    def __init__(self, server: Server, max_share: float) -> None:
        """Of a server that has `metrics`."""
        assert server.metrics is not None
        self.server, self.max_share = server.grpc, max_share
        self.highest: dict[str, Memory] = {}  # that was seen, by device
        self._metrics = server.metrics

    def look(self) -> Memory:
        """The device with the most in use; raises Unreachable when nobody tells."""
        found = read_memory(self._metrics)
        for memory in found:
            before = self.highest.get(memory.device)
            if before is None or memory.used_bytes > before.used_bytes:
                self.highest[memory.device] = memory
        return max(found, key=lambda memory: memory.share)

    def check(self) -> None:
        """Raise GateFailed when a device has too much in use, Unreachable when nobody tells."""
        fullest = self.look()
        if fullest.share > self.max_share:
            raise GateFailed(
                f"memory of {self.server}: {fullest.text()} in use, gates.max_memory_share allows "
                f"{self.max_share:.1%}",
                {"memory": self.to_json()},
            )

    def check_fresh(self, still_ours: Callable[[], None]) -> None:
        """`check` what was measured after the call."""
        deadline = time.monotonic() + FRESH_S
        while time.monotonic() < deadline:
            still_ours()
            time.sleep(POLL_S)
        self.check()

    def to_json(self) -> dict[str, Any]:
        """The most that was seen, for the record and for `sentence`."""
        devices = [memory._asdict() for memory in tuple(self.highest.values())]
        return {"server": self.server, "max_share": self.max_share, "devices": devices}


def sentence(seen: dict[str, Any]) -> str:
    """For people: what `to_json` has."""
    devices = ", ".join(Memory(**device).text() for device in seen["devices"])
    return (
        f"memory of {seen['server']}: {devices or 'not seen yet'}, "
        f"fails above {seen['max_share']:.1%}"
    )


def not_gated(servers: Iterable[Server]) -> list[str]:
    """What to say of servers whose memory nobody tells us."""
    return [
        f"memory of {server.grpc} is not gated: the file has no `metrics` of it"
        for server in servers
        if server.metrics is None
    ]


def read_memory(address: str) -> list[Memory]:
    """The memory that the Triton with its metrics at host:port tells of.

    Raises Unreachable when it doesn't; one that was just started is given time to measure.
    """
    deadline = time.monotonic() + FRESH_S
    while not (devices := _parse(_get(address))):
        if time.monotonic() > deadline:
            raise Unreachable(
                f"the metrics at {address} tell no memory: expected nv_gpu_memory_used_bytes or "
                f"nv_cpu_memory_used_bytes (tritonserver --allow-gpu-metrics, --allow-cpu-metrics)"
            )
        time.sleep(POLL_S)
    return devices


def _parse(text: str) -> list[Memory]:
    found: dict[str, dict[str, int]] = {}
    for kind, which, uuid, value in _GAUGE.findall(text):
        found.setdefault(uuid if kind == "gpu" else HOST, {})[which] = int(float(value))
    return [
        Memory(device, values["used"], values["total"])
        for device, values in found.items()
        if values.get("total") and "used" in values
    ]


def _get(address: str) -> str:
    """What Triton publishes now, whatever proxies there are."""
    connection = http.client.HTTPConnection(address, timeout=READ_S)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise http.client.HTTPException(f"status {response.status}")
        return response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(
            f"the metrics at {address} can't be read: {error or type(error).__name__}; expected "
            f"where.servers.metrics to be Triton's metrics port"
        ) from None
    finally:
        connection.close()
